// A thousand grains of noise flow onto points, by their exact denoiser.
import {$, calm, say} from './page.js';
import {cosineLevels, ddim, normal, sigma, signal} from './sampling.js';

const GRAINS = 1000, MOST = 400, WIDE = 4.2, HIGH = 2.8;  // half the plane
const canvas = $('plane'), ink = canvas.getContext('2d');
let points = [], seed = 0, states = [], run = null, levels = [], at = 0, playing = false, cross = null;

// the worlds of notebook 03: roll (03.1), ring (13), moons (03.4)
const turn = (angle, radius) => [radius*Math.cos(angle), radius*Math.sin(angle)];
const WORLDS = {
  roll: (u) => turn(1.5*Math.PI*(1 + 2*u), 1.5*Math.PI*(1 + 2*u)/7),
  ring: (u) => turn(Math.floor(8*u)*Math.PI/4, 2),
  moons: (u, i) => {
    const [x, y] = turn(Math.PI*u, 1);
    return [1.4*(x + .5), 1.4*(y - .25)].map(v => i%2 ? v : -v);
  },
  none: null};

function choose(name) {
  const make = WORLDS[name], n = name === 'ring' ? 8 : 160;
  points = make ? [...Array(n).keys()].map(i => make((i + .5)/n, i)) : [];
}

// E[x0 | x_t] and E[eps | x_t] of round Gaussians at the points, all of one width (13.4, 13.5)
function denoiser(x, t) {
  const a = signal(t), s = sigma(t), std = Number($('width').value), v = a*a*std*std + s*s;
  const n = points.length, px = Float64Array.from(points, p => p[0]), py = Float64Array.from(points, p => p[1]);
  const x0 = new Float32Array(x.length), eps = new Float32Array(x.length), e = new Float64Array(n);
  for (let i = 0; i < x.length; i += 2) {
    let most = -Infinity;
    for (let k = 0; k < n; k++) {
      const dx = x[i] - a*px[k], dy = x[i + 1] - a*py[k];
      e[k] = -(dx*dx + dy*dy)/(2*v);
      if (e[k] > most) most = e[k];
    }
    let sum = 0, mx = 0, my = 0;  // the mean of the points, weighted by p(k | x_t)
    for (let k = 0; k < n; k++) {
      const p = e[k] - most < -40 ? 0 : Math.exp(e[k] - most);
      sum += p;
      mx += p*px[k];
      my += p*py[k];
    }
    const pull = [(x[i] - a*mx/sum)/v, (x[i + 1] - a*my/sum)/v];
    x0[i] = mx/sum + a*std*std*pull[0];
    x0[i + 1] = my/sum + a*std*std*pull[1];
    eps[i] = s*pull[0];
    eps[i + 1] = s*pull[1];
  }
  return {x0, eps};
}

function restart(play = true) {
  const steps = Math.round(Number($('steps').value));
  if (!(steps >= 1 && steps <= 200)) return say('Steps: give a whole number from 1 to 200.', true);
  say(points.length ? '' : 'Draw some points: noise needs a place to go.');
  levels = cosineLevels(steps);
  const x = normal(seed, 2*GRAINS), eta = Number($('eta').value);
  let k = 1;
  states = [x];
  run = points.length ? ddim(denoiser, levels, x, eta, (n) => normal(seed + 7919*k++, n)) : null;
  $('at').max = steps;
  at = calm() && points.length ? steps : 0;
  playing = play && !calm() && points.length > 0;
  draw();
  if (playing) tick();
}

// state k, computed when it is first asked for
function state(k) {
  while (states.length <= k) {
    const {value} = run?.next() ?? {};
    if (!value) return states.at(-1);
    states.push(value.x);
  }
  return states[k];
}

function draw() {
  const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name).trim();
  const ratio = Math.min(2, devicePixelRatio || 1), width = canvas.clientWidth || 600;
  if (canvas.width !== Math.round(width*ratio)) {
    canvas.width = Math.round(width*ratio);
    canvas.height = Math.round(width*HIGH/WIDE*ratio);
  }
  const scale = canvas.width/2/WIDE, X = (v) => canvas.width/2 + v*scale, Y = (v) => canvas.height/2 - v*scale;
  ink.fillStyle = colour('--back');
  ink.fillRect(0, 0, canvas.width, canvas.height);

  // points as rings, grains as dots between two states
  ink.strokeStyle = colour('--warm');
  ink.lineWidth = ratio;
  ink.beginPath();
  for (const [x, y] of points) {
    ink.moveTo(X(x) + 3*ratio, Y(y));
    ink.arc(X(x), Y(y), 3*ratio, 0, 7);
  }
  ink.globalAlpha = .55;
  ink.stroke();
  ink.globalAlpha = 1;
  const k = Math.min(Math.floor(at), levels.length - 1), a = state(k), b = at > k ? state(k + 1) : a, part = at - k;
  ink.fillStyle = colour('--blue');
  const r = 1.7*ratio;
  for (let i = 0; i < a.length; i += 2) {
    ink.fillRect(X(a[i] + part*(b[i] - a[i])) - r/2, Y(a[i + 1] + part*(b[i + 1] - a[i + 1])) - r/2, r, r);
  }

  const t = levels[k];
  if ($('arrows').getAttribute('aria-pressed') === 'true' && points.length) arrows(Math.min(t, 8), X, Y, ratio, colour('--quiet'));
  if (cross && document.activeElement === canvas) {
    ink.strokeStyle = colour('--text');
    ink.strokeRect(X(cross[0]) - 5*ratio, Y(cross[1]) - 5*ratio, 10*ratio, 10*ratio);
  }
  $('at').value = at;
  $('level').textContent = `step ${k} of ${levels.length - 1}, log SNR ${t === Infinity ? '∞' : t.toFixed(1)}`;
}

// the score, -eps/sigma (02.6), on a grid; a long arrow is cut
function arrows(t, X, Y, ratio, colour) {
  const places = [];
  for (let x = -WIDE + .3; x < WIDE; x += .4) for (let y = -HIGH + .2; y < HIGH; y += .4) places.push(x, y);
  const {eps} = denoiser(Float32Array.from(places), t), most = .34;
  ink.strokeStyle = colour;
  ink.lineWidth = .8*ratio;
  ink.globalAlpha = .5;
  ink.beginPath();
  for (let i = 0; i < places.length; i += 2) {
    const [u, v] = [-eps[i], -eps[i + 1]], size = Math.hypot(u, v)/sigma(t) || 1e-9, length = most*Math.tanh(size/3)/Math.hypot(u, v);
    const [x, y, dx, dy] = [places[i], places[i + 1], u*length, v*length];
    ink.moveTo(X(x), Y(y));
    ink.lineTo(X(x + dx), Y(y + dy));
    for (const side of [.25, -.25]) {
      ink.moveTo(X(x + dx), Y(y + dy));
      ink.lineTo(X(x + .7*dx - side*dy), Y(y + .7*dy + side*dx));
    }
  }
  ink.stroke();
  ink.globalAlpha = 1;
}

let before = 0;
function tick(now = performance.now()) {
  $('play').textContent = playing ? 'Pause' : 'Play';
  if (!playing) return;
  const last = levels.length - 1, gone = Math.min(100, Math.max(0, now - before));
  before = now;
  at = Math.min(last, at + gone*last/4000);  // four seconds a run
  if (at >= last) playing = false;
  draw();
  requestAnimationFrame(tick);
}

// ---- what a visitor does ------------------------------------------------------------------------

function drop(x, y) {
  const far = points.every(p => Math.hypot(p[0] - x, p[1] - y) > .05);
  if (!far) return;
  if (points.length >= MOST) return say(`${MOST} points are the most: clear some.`, true);
  points.push([x, y]);
  $('shape').value = 'none';
  playing = false;
  draw();
}

const place = (e) => {
  const box = canvas.getBoundingClientRect();
  return [((e.clientX - box.left)/box.width*2 - 1)*WIDE, (1 - (e.clientY - box.top)/box.height*2)*HIGH];
};
let drawing = false;
canvas.onpointerdown = (e) => {
  drawing = true;
  canvas.setPointerCapture(e.pointerId);
  states.length = 1;
  run = null;
  at = 0;
  drop(...place(e));
};
canvas.onpointermove = (e) => drawing && drop(...place(e));
canvas.onpointerup = canvas.onpointercancel = () => {
  if (drawing) restart();
  drawing = false;
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
  draw();
};
canvas.onfocus = canvas.onblur = () => draw();

$('shape').onchange = () => {
  choose($('shape').value);
  restart();
};
for (const id of ['eta', 'width']) {
  $(id).oninput = () => {
    $(`${id}Out`).textContent = $(id).value;
    restart();
  };
}
$('steps').onchange = () => restart();
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
  $('arrows').setAttribute('aria-pressed', $('arrows').getAttribute('aria-pressed') !== 'true');
  draw();
};
$('at').oninput = () => {
  playing = false;
  at = Number($('at').value);
  draw();
};
$('play').onclick = () => {
  if (!points.length) return say('Draw some points: noise needs a place to go.');
  playing = !playing;
  if (at >= levels.length - 1) at = 0;
  before = performance.now();
  tick();
};
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);

choose('roll');
restart();
