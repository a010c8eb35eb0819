// Worlds in the plane whose best denoiser is known: round Gaussians, all of one width (13).
import {sigma, signal} from './sampling.js';

// the worlds of notebook 03: roll (03.1), ring (13), moons (03.4)
const turn = (angle, radius) => [radius*Math.cos(angle), radius*Math.sin(angle)];
const WORLDS = {
  roll: (u) => turn(1.5*Math.PI*(1 + 2*u), 1.5*Math.PI*(1 + 2*u)/7),
  ring: (u) => turn(Math.floor(8*u)*Math.PI/4, 2),
  moons: (u, i) => {
    const [x, y] = turn(Math.PI*u, 1);
    return [1.4*(x + .5), 1.4*(y - .25)].map(v => i%2 ? v : -v);
  }};

// the points of a world, evenly along it
export function world(name) {
  const make = WORLDS[name], n = name === 'ring' ? 8 : 160;
  return make ? [...Array(n).keys()].map(i => make((i + .5)/n, i)) : [];
}

// E[x0 | x_t] and E[eps | x_t] of Gaussians at the means (13.5, 13.6); x: [x y x y ...]
export const mixture = (means, std) => (x, t) => {
  const a = signal(t), s = sigma(t), v = a*a*std*std + s*s;
  const n = means.length, mx = Float64Array.from(means, m => m[0]), my = Float64Array.from(means, m => m[1]);
  const x0 = new Float32Array(x.length), eps = new Float32Array(x.length), e = new Float64Array(n);
  for (let i = 0; i < x.length; i += 2) {
    let most = -Infinity;
    for (let k = 0; k < n; k++) {
      const dx = x[i] - a*mx[k], dy = x[i + 1] - a*my[k];
      e[k] = -(dx*dx + dy*dy)/(2*v);
      if (e[k] > most) most = e[k];
    }

    // the mean of the means, weighted by p(k | x_t)
    let sum = 0, px = 0, py = 0;
    for (let k = 0; k < n; k++) {
      const p = e[k] - most < -40 ? 0 : Math.exp(e[k] - most);
      sum += p;
      px += p*mx[k];
      py += p*my[k];
    }
    const pull = [(x[i] - a*px/sum)/v, (x[i + 1] - a*py/sum)/v];
    x0[i] = px/sum + a*std*std*pull[0];
    x0[i + 1] = py/sum + a*std*std*pull[1];
    eps[i] = s*pull[0];
    eps[i + 1] = s*pull[1];
  }
  return {x0, eps};
};
