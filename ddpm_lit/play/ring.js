// Guidance on a ring of eight classes: the scores, and where grains go, are exact (41.3).
import {$, colour, say} from './page.js';
import {mixture, world} from './mixture.js';
import {arrows, grid, place, Plane, rings} from './plane.js';
import {cosineLevels, steered} from './sampling.js';

const MEANS = world('ring'), STEPS = 60, places = grid(.5);
const canvas = $('plane');
let seed = 0;

const std = () => Number($('width').value);
const label = () => Number($('label').value);
const of_label = (x, t) => mixture([MEANS[label()]], std())(x, t);
const of_all = (x, t) => mixture(MEANS, std())(x, t);
const guided = (x, t) => steered(of_label, of_all, Number($('w').value))(x, t);

// what the arrows show, in the inks of the book
const FIELDS = {
  guided: [guided, 'quiet'],
  label: [of_label, 'text'],
  all: [of_all, 'blue'],
  difference: [(x, t) => {
    const u = of_all(x, t).eps;
    return {eps: of_label(x, t).eps.map((c, i) => c - u[i])};  // (41.1)
  }, 'red']};

const plane = new Plane(
  (pen) => {
    rings(pen, MEANS, colour('quiet'), 5);
    for (const radius of [8, 9]) rings(pen, [MEANS[label()]], colour('red'), radius);
  },
  (pen, t) => {
    const found = FIELDS[$('field').value], near = Math.min(t, 3);
    if (found) arrows(pen, places, found[0](places, near).eps, near, colour(found[1]), .75);
  });

function restart() {
  const far = Number($('w').value) > 4;
  say(far ? 'So much guidance carries grains beyond the class that it asks for.' : '');
  plane.restart(guided, cosineLevels(STEPS), {seed});
}

// a touch chooses the nearest class
canvas.onclick = (e) => {
  const [x, y] = place(canvas, e), far = MEANS.map(([u, v]) => Math.hypot(x - u, y - v));
  $('label').value = far.indexOf(Math.min(...far));
  restart();
};
for (const id of ['w', 'width']) $(id).oninput = restart;
$('label').onchange = restart;
$('field').onchange = () => plane.draw();
$('again').onclick = () => {
  seed += 1;
  restart();
};
restart();
