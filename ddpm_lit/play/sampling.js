// Noise, levels and samplers: the chapters 10, 14, 32 and 67 in a page. Numbers in brackets are the book's equations.

// ---- PyTorch's normal numbers, so that one seed gives one picture everywhere -------------------

// the Mersenne Twister: 32 bits at each call
export function twister(seed) {
  const s = new Uint32Array(624);
  s[0] = seed % 2**32;
  for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ s[i - 1] >>> 30) + i;
  let at = 624;
  return () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = s[i] & 0x80000000 | s[(i + 1)%624] & 0x7fffffff;
        s[i] = s[(i + 397)%624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = s[at++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return (y ^ y >>> 18) >>> 0;
  };
}

// n >= 16 normal numbers: Box and Muller on sixteen uniform ones at a time
export function normal(seed, n) {
  const next = twister(seed), x = new Float32Array(n);
  const uniform = () => (next() & 0xffffff)/2**24;
  const sixteen = (at) => {
    for (let j = at; j < at + 8; j++) {
      const radius = Math.sqrt(-2*Math.log(1 - x[j])), angle = Math.fround(Math.fround(2*Math.PI)*x[j + 8]);
      x[j] = radius*Math.cos(angle);
      x[j + 8] = radius*Math.sin(angle);
    }
  };
  for (let i = 0; i < n; i++) x[i] = uniform();
  for (let i = 0; i + 16 <= n; i += 16) sixteen(i);
  if (n%16) {  // the last sixteen anew
    for (let i = n - 16; i < n; i++) x[i] = uniform();
    sixteen(n - 16);
  }
  return x;
}

// ---- levels -------------------------------------------------------------------------------------

// a level is its log SNR (01.5-01.7)
export const signal = (l) => Math.sqrt(1/(1 + Math.exp(-l)));
export const sigma = (l) => Math.sqrt(1/(1 + Math.exp(l)));

// times n/n ... 1/n, then clean (10.12)
const grid = (schedule, n) => [...Array(n).keys()].map(i => schedule((n - i)/n)).concat(Infinity);

// schedules: from a time in [0, 1] to a level
// the cosine schedule (10.6)
export function cosine({s = .008, limit = 20} = {}) {
  const angle = (u) => (u + s)/(1 + s)*Math.PI/2, a0 = angle(0);
  const logSnr = (a) => 2*Math.log(Math.cos(a)) - Math.log(Math.sin(a + a0)*Math.sin(a - a0));
  return (u) => Math.max(-limit, Math.min(limit, logSnr(angle(u))));
}

// the straight path (32.9), shifted towards noise by rho (67.7)
export const straight = (rho = 1) => (u) => 2*(Math.log1p(-u) - Math.log(u)) - 2*Math.log(rho);

// DDPM's betas on a line (10.4); between two steps log SNR is linear (10.2)
export function linear(T = 1000, first = 1e-4, last = .02) {
  const table = [];
  let logAlphaBar = 0;
  for (let i = 0; i < T; i++) {
    logAlphaBar += Math.log1p(-first - (last - first)*i/(T - 1));
    table.push(logAlphaBar - Math.log(-Math.expm1(logAlphaBar)));
  }
  return (u) => {
    const i = Math.max(0, u*T - 1), low = Math.floor(i), high = Math.ceil(i);
    return table[low] + (i - low)*(table[high] - table[low]);
  };
}

// the time at which a schedule has this level, by halving
export function timeOf(schedule, level) {
  let [low, high] = [0, 1];
  for (let k = 0; k < 40; k++) {
    const middle = (low + high)/2;
    if (schedule(middle) > level) low = middle;
    else high = middle;
  }
  return (low + high)/2;
}

export const cosineLevels = (n, said) => grid(cosine(said), n);
export const straightLevels = (n, rho) => grid(straight(rho), n);

// ---- noise added, and taken away knowing x_0 -----------------------------------------------------

// x_t: so much of x_0, so much noise (11.4)
export const noised = (x0, eps, t) => x0.map((v, i) => signal(t)*v + sigma(t)*eps[i]);

// the share of the noise of t that is newer than s (11.5)
export const newNoise = (s, t) => -Math.expm1(t - s);

// mean and standard deviation of q(x_s | x_t, x_0), s cleaner than t (12.8)
export function posterior(x0, x_t, s, t) {
  const c = newNoise(s, t);
  return {mean: signal(s)*c*x0 + (sigma(s)/sigma(t))**2*signal(t)/signal(s)*x_t, std: sigma(s)*Math.sqrt(c)};
}

// ---- samplers: each yields {x, x0, t} at every step; a denoiser is (x, t) -> {x0, eps} ---------

// DDIM (14.9); with eta the share eta^2 c of the noise is drawn anew, and at 1 it is ancestral sampling (14.8)
export function* ddim(denoiser, levels, x, eta = 0, noise = null) {
  for (let k = 0; k + 1 < levels.length; k++) {
    const t = levels[k], s = levels[k + 1], {x0, eps} = denoiser(x, t);
    const fresh = eta*eta*newNoise(s, t), z = fresh > 0 ? noise(x.length) : null;
    const next = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      const e = z ? Math.sqrt(1 - fresh)*eps[i] + Math.sqrt(fresh)*z[i] : eps[i];
      next[i] = signal(s)*x0[i] + sigma(s)*e;
    }
    yield {x: x = next, x0, t: s};
  }
}

// DPM-Solver++ 2M: the guess half a step ahead, on the line through the last two (32.7),
// but no line beyond its own length (32.8)
export function* dpmpp2m(denoiser, levels, x) {
  let past = null, before = 0;
  for (let k = 0; k + 1 < levels.length; k++) {
    const t = levels[k], s = levels[k + 1], h = s - t, {x0} = denoiser(x, t);
    const ahead = past && h/before <= 2 ? h/2/before : 0;
    const keep = sigma(s)/sigma(t), gain = signal(s) - signal(t)*keep;
    const next = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      next[i] = keep*x[i] + gain*(x0[i] + (ahead ? ahead*(x0[i] - past[i]) : 0));
    }
    yield {x: x = next, x0, t: s};
    [past, before] = [x0, h];
  }
}

// classifier-free guidance: from u through c and beyond, w times as far (41.3)
export const guided = (c, u, w) => c.map((v, i) => v + w*(v - u[i]));

// the same for two denoisers; x0 and eps move together, since x_t = signal x0 + sigma eps (02.1)
export const steered = (conditional, unconditional, w) => (x, t) => {
  const c = conditional(x, t), u = unconditional(x, t);
  return {x0: guided(c.x0, u.x0, w), eps: guided(c.eps, u.eps, w)};
};
