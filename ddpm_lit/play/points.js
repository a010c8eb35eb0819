// A thousand grains of noise flow onto points, by their exact denoiser.
import {$, calm, colour, say} from './page.js';
import {mixture, world} from './mixture.js';
import {arrows, grid, HIGH, place, Plane, rings, WIDE} from './plane.js';
import {cosineLevels} from './sampling.js';

const MOST = 400;
const canvas = $('plane');
let points = [], seed = 0, cross = null;

const denoiser = (x, t) => mixture(points, Number($('width').value))(x, t);

const plane = new Plane(
  (pen) => rings(pen, points, colour('warm')),
  (pen, t) => {
    const near = Math.min(t, 8), places = grid();
    if (pressed() && points.length) arrows(pen, places, denoiser(places, near).eps, near, colour('quiet'));
    if (cross && document.activeElement === canvas) {
      pen.ink.strokeStyle = colour('text');
      pen.ink.strokeRect(pen.X(cross[0]) - 5*pen.ratio, pen.Y(cross[1]) - 5*pen.ratio, 10*pen.ratio, 10*pen.ratio);
    }
  });

const pressed = () => $('arrows').getAttribute('aria-pressed') === 'true';

function restart() {
  const steps = Math.round(Number($('steps').value));
  if (!(steps >= 1 && steps <= 200)) return say('Steps: give a whole number from 1 to 200.', true);
  say(points.length ? '' : 'Draw some points: noise needs a place to go.');
  plane.restart(points.length ? denoiser : null, cosineLevels(steps), {seed, eta: Number($('eta').value)});
}

// ---- what a visitor does ------------------------------------------------------------------------

function drop(x, y) {
  const far = points.every(p => Math.hypot(p[0] - x, p[1] - y) > .05);
  if (!far) return;
  if (points.length >= MOST) return say(`${MOST} points are the most: clear some.`, true);
  points.push([x, y]);
  $('shape').value = 'none';
  plane.stop();
  plane.draw();
}

let drawing = null;  // the points before, in case the finger only scrolls
canvas.onpointerdown = (e) => {
  drawing = [...points];
  canvas.setPointerCapture(e.pointerId);
  drop(...place(canvas, e));
};
canvas.onpointermove = (e) => drawing && drop(...place(canvas, e));
canvas.onpointerup = canvas.onpointercancel = (e) => {
  if (!drawing) return;
  if (e.type === 'pointercancel') points = drawing;
  drawing = null;
  restart();
};
canvas.onkeydown = (e) => {
  const by = {ArrowLeft: [-.15, 0], ArrowRight: [.15, 0], ArrowUp: [0, .15], ArrowDown: [0, -.15]}[e.key];
  if (!by && e.key !== ' ' && e.key !== 'Enter') return;
  e.preventDefault();
  cross ??= [0, 0];
  if (by) cross = [Math.max(-WIDE, Math.min(WIDE, cross[0] + by[0])), Math.max(-HIGH, Math.min(HIGH, cross[1] + by[1]))];
  else {
    drop(...cross);
    return restart();
  }
  plane.draw();
};
canvas.onfocus = canvas.onblur = () => plane.draw();

$('shape').onchange = () => {
  points = world($('shape').value);
  restart();
};
for (const id of ['eta', 'width']) $(id).oninput = restart;
$('steps').onchange = restart;
$('again').onclick = () => {
  seed += 1;
  restart();
};
$('clear').onclick = () => {
  points = [];
  $('shape').value = 'none';
  restart();
};
$('arrows').onclick = () => {
  $('arrows').setAttribute('aria-pressed', !pressed());
  plane.draw();
};

points = world($('shape').value);
restart();
