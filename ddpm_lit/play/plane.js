// A plane in which a thousand grains follow a denoiser: states on demand, a lever over the steps, arrows.
import {$, calm, colour, onLook, sharpen} from './page.js';
import {ddim, normal, sigma} from './sampling.js';

export const GRAINS = 1000, WIDE = 4.2, HIGH = 2.8;  // half the plane
const SECONDS = 4;  // a run

export class Plane {
  // under(pen) draws below the grains, over(pen, t) above them; a pen knows where a point lies
  constructor(under, over = () => {}) {
    Object.assign(this, {under, over, canvas: $('plane'), states: [], levels: [Infinity], at: 0, playing: false, before: 0});
    $('at').oninput = () => {
      this.playing = false;
      this.at = Number($('at').value);
      this.draw();
      this.label();
    };
    $('play').onclick = () => {
      this.playing = !this.playing && this.run !== null;
      if (this.at >= this.levels.length - 1) this.at = 0;
      this.before = performance.now();
      this.tick();
    };
    onLook(() => this.draw());
  }

  // a run from noise; without a denoiser the grains stay where they are
  restart(denoiser, levels, {seed = 0, eta = 0, play = true} = {}) {
    const x = normal(seed, 2*GRAINS);
    let k = 1;
    this.states = [x];
    this.levels = levels;
    this.run = denoiser && ddim(denoiser, levels, x, eta, (n) => normal(seed + 7919*k++, n));
    $('at').max = levels.length - 1;
    this.at = calm() && denoiser ? levels.length - 1 : 0;
    const began = this.playing;
    this.playing = play && !calm() && denoiser !== null;
    this.before = performance.now();
    this.draw();
    if (!began || !this.playing) this.tick();
  }

  // back to the noise, at rest
  stop() {
    this.states.length = 1;
    Object.assign(this, {run: null, at: 0, playing: false});
    this.label();
  }

  // state k, computed when it is first asked for
  state(k) {
    while (this.states.length <= k) {
      const {value} = this.run?.next() ?? {};
      if (!value) return this.states.at(-1);
      this.states.push(value.x);
    }
    return this.states[k];
  }

  level() {
    return this.levels[Math.min(Math.floor(this.at), this.levels.length - 1)];
  }

  draw() {
    const {canvas, levels, at} = this, ink = canvas.getContext('2d'), ratio = sharpen(canvas, HIGH/WIDE);
    const scale = canvas.width/2/WIDE, X = (v) => canvas.width/2 + v*scale, Y = (v) => canvas.height/2 - v*scale;
    const pen = {ink, ratio, X, Y, scale};
    ink.fillStyle = colour('back');
    ink.fillRect(0, 0, canvas.width, canvas.height);
    this.under(pen);

    // grains as dots between two states
    const k = Math.min(Math.floor(at), levels.length - 1), a = this.state(k), b = at > k ? this.state(k + 1) : a, part = at - k;
    const r = 1.7*ratio;
    ink.fillStyle = colour('blue');
    for (let i = 0; i < a.length; i += 2) {
      ink.fillRect(X(a[i] + part*(b[i] - a[i])) - r/2, Y(a[i + 1] + part*(b[i + 1] - a[i + 1])) - r/2, r, r);
    }
    const t = levels[k];
    this.over(pen, t);
    $('at').value = at;
    $('level').textContent = `step ${k} of ${levels.length - 1}, log SNR ${t === Infinity ? '∞' : t.toFixed(1).replace('-', '−')}`;
  }

  label() {
    $('play').textContent = this.playing ? 'Pause' : 'Play';
  }

  tick(now = performance.now()) {
    this.label();
    if (!this.playing) return;
    const last = this.levels.length - 1, gone = Math.min(100, Math.max(0, now - this.before));
    this.before = now;
    this.at = Math.min(last, this.at + gone*last/1000/SECONDS);
    if (this.at >= last) this.playing = false;
    this.draw();
    requestAnimationFrame((now) => this.tick(now));
  }
}

// points as rings
export function rings({ink, ratio, X, Y}, points, shade, radius = 3) {
  ink.strokeStyle = shade;
  ink.lineWidth = ratio;
  ink.globalAlpha = .55;
  ink.beginPath();
  for (const [x, y] of points) {
    ink.moveTo(X(x) + radius*ratio, Y(y));
    ink.arc(X(x), Y(y), radius*ratio, 0, 7);
  }
  ink.stroke();
  ink.globalAlpha = 1;
}

// places of a grid, [x y x y ...]
export function grid(apart = .4) {
  const places = [];
  for (let x = -WIDE + .3; x < WIDE; x += apart) for (let y = -HIGH + .2; y < HIGH; y += apart) places.push(x, y);
  return Float32Array.from(places);
}

// the score, -eps/sigma (02.6), at these places; a long arrow is cut
export function arrows({ink, ratio, X, Y}, places, eps, t, shade, strength = .5) {
  const most = .34;
  ink.strokeStyle = shade;
  ink.lineWidth = 1.1*ratio;
  ink.globalAlpha = strength;
  ink.beginPath();
  for (let i = 0; i < places.length; i += 2) {
    const u = -eps[i], v = -eps[i + 1], size = Math.hypot(u, v)/sigma(t) || 1e-9;
    const length = most*Math.tanh(size/3)/(Math.hypot(u, v) || 1e-9);
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

// where the pointer is in the plane
export function place(canvas, e) {
  const box = canvas.getBoundingClientRect();
  return [((e.clientX - box.left)/box.width*2 - 1)*WIDE, (1 - (e.clientY - box.top)/box.height*2)*HIGH];
}
