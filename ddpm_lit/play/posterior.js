// Two measurements of x_s: one from x_0, one from x_t; and both together, the posterior (12.8).
import {$, calm, say} from './page.js';
import {posterior, sigma, signal} from './sampling.js';

const WIDE = 720, BASE = 262, TALL = 225, MOST = 3, LONGEST = 3.6;  // the plot, and the ends of its axis
const at = {h0: 1.5, hT: -.2};
let playing = null;

const X = (v) => WIDE/2 + v/LONGEST*WIDE/2;
const logSnr = (alphaBar) => Math.log(alphaBar/(1 - alphaBar));  // (01.8)

// the height of a bell
const density = (y, {mean, std}) => Math.exp(-(((y - mean)/std)**2)/2)/std;

function path(bell, highest) {
  const places = [...Array(241).keys()].map(i => -LONGEST + i*LONGEST/120);
  return 'M' + places.map(y => `${X(y).toFixed(1)} ${(BASE - TALL*density(y, bell)/highest).toFixed(1)}`).join(' L');
}

function show() {
  const before = Number($('before').value), beta = Number($('beta').value);
  const s = logSnr(before), t = logSnr(before*(1 - beta)), r = signal(t)/signal(s);

  // x_s is signal x_0 and noise; x_t is r x_s and noise, so x_t/r is x_s and noise
  const bells = {
    bell0: {mean: signal(s)*at.h0, std: sigma(s)},
    bellT: {mean: at.hT/r, std: Math.sqrt(beta)/r},
    bell: posterior(at.h0, at.hT, s, t)};
  const highest = 1/bells.bell.std;  // the posterior is the narrowest
  for (const [id, bell] of Object.entries(bells)) $(id).setAttribute('d', path(bell, highest));
  for (const id of ['h0', 'hT']) {
    $(id).setAttribute('transform', `translate(${X(at[id])} ${BASE})`);
    $(id).setAttribute('aria-valuenow', at[id].toFixed(2));
  }
  $('tip').setAttribute('transform', `translate(${X(bells.bell.mean)} ${BASE + 2})`);
  const from0 = posterior(1, 0, s, t).mean, fromT = posterior(0, 1, s, t).mean;
  $('level').textContent = `mean ${bells.bell.mean.toFixed(2)} = ${from0.toFixed(2)} x₀ + ${fromT.toFixed(2)} x_t; `
    + `variances ${(bells.bell0.std**2).toFixed(2)} and ${(bells.bellT.std**2).toFixed(2)}, both ${(bells.bell.std**2).toFixed(2)}`;
}

// ---- what a visitor does ------------------------------------------------------------------------

function move(id, v) {
  at[id] = Math.max(-MOST, Math.min(MOST, v));
  show();
}

for (const id of ['h0', 'hT']) {
  const handle = $(id);
  const drag = (e) => {
    const box = $('plane').getBoundingClientRect();
    if (e.buttons === 1) move(id, ((e.clientX - box.left)/box.width*2 - 1)*LONGEST);
  };
  handle.onpointerdown = (e) => {
    handle.setPointerCapture(e.pointerId);
    drag(e);
  };
  handle.onpointermove = drag;
  handle.onkeydown = (e) => {
    const by = {ArrowLeft: -.1, ArrowDown: -.1, ArrowRight: .1, ArrowUp: .1, PageDown: -1, PageUp: 1, Home: -9, End: 9}[e.key];
    if (!by) return;
    e.preventDefault();
    move(id, at[id] + by);
  };
}

function rest() {
  clearInterval(playing);
  playing = null;
  $('play').textContent = 'Play';
}

// the step adds more and more noise
function play(most) {
  const lever = $('beta');
  if (Number(lever.value) >= most) lever.value = lever.min;
  $('play').textContent = 'Pause';
  playing = setInterval(() => {
    lever.value = Number(lever.value) + (calm() ? .08 : .01);
    lever.dispatchEvent(new Event('input'));
    if (Number(lever.value) >= most) rest();
  }, calm() ? 600 : 50);
}

$('play').onclick = () => playing ? rest() : play(Number($('beta').max));
for (const id of ['beta', 'before']) {
  $(id).addEventListener('input', show);
  $(id).addEventListener('pointerdown', rest);
}
say('');
show();
if (!calm()) play(Number($('beta').value));
