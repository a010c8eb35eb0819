// The networks of the book, layer by layer: text encoder (60), DiT (66), decoder (65) and U-Net (24).
//
// Rows of numbers: tokens [b l d], pictures [b h w c]. Widths and depths are read from the shapes of the weights;
// what shapes do not tell (heads, groups, activations) comes with their description.

// ---- layers -------------------------------------------------------------------------------------

// weights by name, packed for the machine when first used
export class Layers {
  constructor(machine, tensors, about = {}, prefix = '', packed = new Map()) {
    Object.assign(this, {machine, tensors, about, prefix, packed});
  }

  at(name) {
    return new Layers(this.machine, this.tensors, this.about, `${this.prefix}${name}.`, this.packed);
  }

  has(name) {
    return Object.keys(this.tensors).some(k => k.startsWith(this.prefix + name));
  }

  tensor(name) {
    const found = this.tensors[this.prefix + name];
    if (!found) throw new Error(`the weights lack ${this.prefix + name}`);
    return found;
  }

  vector(name) {
    const {values, scale, shape} = this.tensor(name), k = values.length/shape[0];
    return scale ? Float32Array.from(values, (v, i) => v*scale[Math.floor(i/k)]) : values;
  }

  // W with its columns in the order that pictures have, place by place, and a part for each row of the square
  parts(name) {
    const key = `${this.prefix}${name}.weight`;
    if (!this.packed.has(key)) {
      const {values, scale, shape: [rows, c, side = 1, wide = side]} = this.tensor(`${name}.weight`);
      const k = c*wide, places = side*wide, parts = [];
      for (let dy = 0; dy < side; dy++) {
        const column = Int32Array.from({length: k}, (_, i) => i%c*places + dy*wide + Math.floor(i/c));
        const W = this.machine.panels(rows, k);
        parts.push(this.machine.pack(W, values, scale, column, c*places));
      }
      this.packed.set(key, parts);
    }
    return this.packed.get(key);
  }

  // x W^T + b for n rows
  linear(name, x, n) {
    return this.machine.multiply(this.parts(name)[0], this.vector(`${name}.bias`), x, n);
  }

  // a convolution: each place reads a square of the picture, nothing beyond its edges
  conv(name, p, {stride = 1, pad = 1} = {}) {
    const M = this.machine, parts = this.parts(name), side = parts.length, bias = this.vector(`${name}.bias`);
    const {b, h, w, c, data} = p, [h2, w2] = [h, w].map(n => Math.floor((n + 2*pad - side)/stride) + 1);
    const W = parts[0], rows = w2 + (-w2 & 3), wide = w + 2*pad, out = new Float32Array(b*h2*w2*W.rows);
    const x = M.own('picture', (h + 2*pad)*wide*c + 4*stride*c), y = M.begin(W, h2*rows, bias, 'places');

    for (let k = 0; k < b; k++) {
      // the picture with an edge of zeros
      if (k) M.begin(W, h2*rows, bias, 'places');
      if (pad) M.heap.fill(0, x, x + (h + 2*pad)*wide*c);
      for (let r = 0; r < h; r++) {
        M.heap.set(data.subarray((k*h + r)*w*c, (k*h + r + 1)*w*c), x + ((r + pad)*wide + pad)*c);
      }

      // a row of places reads `side` rows of the picture, each side by side
      for (let r = 0; r < h2; r++) {
        parts.forEach((part, dy) => M.run(x + (r*stride + dy)*wide*c, stride*c, part, y + r*rows*W.wide, w2));
        out.set(M.taken(W, y + r*rows*W.wide, w2), (k*h2 + r)*w2*W.rows);
      }
    }
    return {b, h: h2, w: w2, c: W.rows, data: out};
  }
}

const sigmoid = (v) => 1/(1 + Math.exp(-v));
const erf = (v) => {  // Abramowitz and Stegun 7.1.26, to 1.5e-7
  const t = 1/(1 + .3275911*Math.abs(v));
  const p = t*(.254829592 + t*(-.284496736 + t*(1.421413741 + t*(-1.453152027 + t*1.061405429))));
  return Math.sign(v)*(1 - p*Math.exp(-v*v));
};
export const ACTS = {  // by the names of the library
  silu: (v) => v*sigmoid(v),
  gelu: (v) => .5*v*(1 + erf(v/Math.SQRT2)),
  quick_gelu: (v) => v*sigmoid(1.702*v),
  gelu_tanh: (v) => .5*v*(1 + Math.tanh(Math.sqrt(2/Math.PI)*(v + .044715*v**3)))};

function each(x, f) {
  if (f === ACTS.silu) return silu(x);
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = f(x[i]);
  return y;
}

function silu(x) {  // as ACTS.silu; a loop of its own is four times as fast
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = x[i]/(1 + Math.exp(-x[i]));
  return y;
}

function add(x, y) {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) sum[i] = x[i] + y[i];
  return sum;
}

// x + gate y, a gate for each of b pictures
function addGated(x, gate, y, b) {
  const out = new Float32Array(x.length), d = gate.length/b, rows = x.length/d;
  for (let r = 0, i = 0; r < rows; r++) {
    for (let j = 0, c = Math.floor(r*b/rows)*d; j < d; j++, i++) out[i] = x[i] + gate[c + j]*y[i];
  }
  return out;
}

// n parts of every row
function chunk(x, n, b) {
  const row = x.length/b, d = row/n;
  return [...Array(n).keys()].map(part => {
    const y = new Float32Array(b*d);
    for (let r = 0; r < b; r++) y.set(x.subarray(r*row + part*d, r*row + (part + 1)*d), r*d);
    return y;
  });
}

// waves of falling frequency, cosines first (21.1)
function waves(time, dim) {
  const half = dim/2;
  return Float32Array.from({length: dim}, (_, i) => {
    const angle = Math.fround(time)*Math.exp(-Math.log(1e4)*(i%half)/half);
    return i < half ? Math.cos(angle) : Math.sin(angle);
  });
}

// two layers on top of the waves (24.1)
function timeEmbedding(L, time) {
  const w = waves(time, L.tensor('inner.weight').shape[1]);
  return L.linear('outer', silu(L.linear('inner', w, 1)), 1);
}

// each row of width d with mean 0 and variance 1
function layerNorm(x, d, eps, weight = null, bias = null) {
  const y = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += d) {
    let mean = 0, square = 0;
    for (let i = at; i < at + d; i++) mean += x[i]/d;
    for (let i = at; i < at + d; i++) square += (x[i] - mean)**2/d;
    const by = 1/Math.sqrt(square + eps);
    for (let i = 0; i < d; i++) {
      const v = (x[at + i] - mean)*by;
      y[at + i] = weight ? v*weight[i] + bias[i] : v;
    }
  }
  return y;
}

// the channels of a picture in groups, each with mean 0 and variance 1
function groupNorm(L, name, p) {
  const {b, h, w, c, data} = p, {groups, eps} = L.about.norm, some = c/groups, n = h*w*some;
  const weight = L.vector(`${name}.weight`), bias = L.vector(`${name}.bias`);
  const y = new Float32Array(data.length), sum = new Float64Array(c), a = new Float64Array(c), m = new Float64Array(c);
  const mean = (k) => sum.subarray(k*some, (k + 1)*some).reduce((u, v) => u + v, 0)/n;
  const ofGroups = (f) => { for (let j = 0; j < c; j++) f(j, Math.floor(j/some)); };

  for (let at = 0, end = h*w*c; at < data.length; at = end, end += h*w*c) {
    sum.fill(0);
    for (let i = at; i < end;) for (let j = 0; j < c; j++, i++) sum[j] += data[i];
    ofGroups((j, k) => m[j] = mean(k));
    sum.fill(0);
    for (let i = at; i < end;) for (let j = 0; j < c; j++, i++) sum[j] += (data[i] - m[j])*(data[i] - m[j]);
    ofGroups((j, k) => a[j] = weight[j]/Math.sqrt(mean(k) + eps));
    for (let i = at; i < end;) for (let j = 0; j < c; j++, i++) y[i] = (data[i] - m[j])*a[j] + bias[j];
  }
  return {...p, data: y};
}

// the numbers of a row, then nothing, as shares of 1
function softmax(x, at, n, wide) {
  let most = -Infinity, sum = 0;
  for (let j = at; j < at + n; j++) most = Math.max(most, x[j]);
  for (let j = at; j < at + n; j++) sum += x[j] = Math.exp(x[j] - most);
  for (let j = at; j < at + n; j++) x[j] /= sum;
  x.fill(0, at + n, at + wide);
}

// softmax(q k^T/sqrt(d)) v (24.6), by heads, for b pictures of l places; rows of qkv hold their q, k and v, rows of kv
// the keys and values of m further tokens
function attend(M, qkv, kv, b, l, m, width, heads) {
  const d = width/heads | 0, all = new Float32Array(b*l*width), by = 1/Math.sqrt(d);
  const keys = M.panels(m + l, d, 'keys'), values = M.panels(d, m + l, 'values');
  const q = M.own('queries', (l + 3)*(d + 3));
  const both = new Float32Array((m + l)*2*width);  // keys and values of the tokens, then of the picture

  for (let picture = 0; picture < b; picture++) {
    if (m) both.set(kv.subarray(picture*m*2*width, (picture + 1)*m*2*width));
    for (let i = 0; i < l; i++) {
      const row = (picture*l + i)*3*width;
      both.set(qkv.subarray(row + width, row + 3*width), (m + i)*2*width);
    }
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < l; i++) {
        const from = (picture*l + i)*3*width + head*d, to = q + i*4*keys.k4;
        for (let e = 0; e < d; e++) M.heap[to + e] = qkv[from + e]*by;
      }
      M.packSteps(keys, both, head*d, 2*width, 1);
      M.packSteps(values, both, width + head*d, 1, 2*width);

      const fit = M.begin(keys, l, null, 'fit'), y = M.begin(values, l, null, 'read');
      M.run(q, 4*keys.k4, keys, fit, l);
      for (let i = 0; i < l; i++) softmax(M.heap, fit + i*keys.wide, m + l, keys.wide);
      M.run(fit, keys.wide, values, y, l);
      for (let i = 0; i < l; i++) {
        all.set(M.heap.subarray(y + i*values.wide, y + i*values.wide + d), (picture*l + i)*width + head*d);
      }
    }
  }
  return all;
}

// each position reads the others and, if there are any, the words of a caption (52.2, 52.6)
function attention(L, x, b, heads, words = null) {
  const width = L.tensor('out.weight').shape[0], l = x.length/b/width;
  const m = words ? words.data.length/b/words.width : 0;
  if (words && !words.kv.has(L.prefix)) words.kv.set(L.prefix, L.linear('kv', words.data, b*m));  // once for a run
  return L.linear('out', attend(L.machine, L.linear('qkv', x, b*l), words?.kv.get(L.prefix), b, l, m, width, heads), b*l);
}

// how many there are of NAME.0, NAME.1, ...
const count = (L, name) => 1 + Math.max(-1, ...Object.keys(L.tensors).filter(k => k.startsWith(`${L.prefix}${name}.`))
  .map(k => parseInt(k.slice(L.prefix.length + name.length + 1), 10)));

// ---- the text encoder: a caption as one vector, and as one for each token (60.1, 60.2) ----------

export function textEncoder(L, ids, pad) {
  const {heads, act, eps} = L.about, [length, d] = L.tensor('places').shape;
  const pieces = L.vector('pieces.weight'), places = L.vector('places'), padding = L.vector('padding');

  // token and place where there is text, a learned vector on padding (60.1)
  let h = new Float32Array(length*d);
  for (let i = 0; i < length*d; i++) {
    const id = ids[Math.floor(i/d)];
    h[i] = id === pad ? padding[i] : pieces[id*d + i%d] + places[i];
  }

  // y = x + attention, and x = y + a small network at each position (52.7)
  const norm = (M, name, x) => layerNorm(x, d, eps, M.vector(`${name}.weight`), M.vector(`${name}.bias`));
  for (let k = 0; k < count(L, 'transformer.blocks'); k++) {
    const B = L.at(`transformer.blocks.${k}`);
    h = add(h, attention(B.at('attn'), norm(B, 'norm1', h), 1, heads));
    h = add(h, B.linear('outer', each(B.linear('inner', norm(B, 'norm2', h), length), ACTS[act]), length));
  }

  // the last position becomes the one vector (60.2)
  h = norm(L, 'norm', h);
  return {whole: L.linear('whole', h.subarray((length - 1)*d), 1), words: h, width: d};
}

// ---- the diffusion transformer (66.1-66.5) ----------------------------------------------------------

// (1 + scale) h + shift (66.4)
function modulate(h, shift, scale, b) {
  const y = new Float32Array(h.length), d = shift.length/b, rows = h.length/d;
  for (let r = 0, i = 0; r < rows; r++) {
    for (let j = 0, c = Math.floor(r*b/rows)*d; j < d; j++, i++) y[i] = h[i]*(1 + scale[c + j]) + shift[c + j];
  }
  return y;
}

// a block that the condition c scales, shifts and gates (66.4)
function ditBlock(L, h, c, b, words) {
  const {heads, act, eps} = L.about, d = c.length/b, l = h.length/d;
  const [shift1, scale1, gate1, shift2, scale2, gate2] = chunk(L.linear('ada', c, b), 6, b);

  // each patch learns from the others, and from the words
  const a = attention(L.at('attn'), modulate(layerNorm(h, d, eps), shift1, scale1, b), b, heads, words);
  h = addGated(h, gate1, a, b);

  // a small network for each patch alone
  const f = each(L.linear('inner', modulate(layerNorm(h, d, eps), shift2, scale2, b), l), ACTS[act]);
  return addGated(h, gate2, L.linear('outer', f, l), b);
}

// x [b c h w], captions as textEncoder gives them, one for each of b -> [b c' h w]
export function dit(L, x, [channels, side], time, captions) {
  const b = captions.length, [width, , patch] = L.tensor('first.weight').shape, n = side/patch;
  const words = captions.words ??= {
    data: joined(captions.map(c => c.words)), width: captions[0].width, kv: new Map()};

  // the condition: time and caption
  const e = timeEmbedding(L.at('time'), time);
  const c = silu(joined(captions.map(caption => add(e, caption.whole))));

  // patches to tokens (66.1), and through the blocks
  const places = L.vector('places');
  let h = each(L.conv('first', rows(x, b, channels, side), {stride: patch, pad: 0}).data, v => v);
  for (let i = 0; i < h.length; i++) h[i] += places[i%places.length];
  for (let k = 0; k < count(L, 'blocks'); k++) h = ditBlock(L.at(`blocks.${k}`), h, c, b, words);

  // tokens to patches: row, column and channel of a patch
  const [shift, scale] = chunk(L.linear('ada', c, b), 2, b);
  const y = L.linear('last', modulate(layerNorm(h, width, L.about.eps), shift, scale, b), b*n*n);
  const out = new Float32Array(b*channels*side*side);
  for (let i = 0; i < out.length; i++) {
    const column = i%side, row = Math.floor(i/side)%side, at = Math.floor(i/side/side);
    const token = (Math.floor(at/channels)*n + Math.floor(row/patch))*n + Math.floor(column/patch);
    out[i] = y[((token*patch + row%patch)*patch + column%patch)*channels + at%channels];
  }
  return out;
}

function joined(parts) {
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

// ---- pictures -----------------------------------------------------------------------------------

// [b c h w], squares of f x f pixels taken for one place (24.9) -> [b h/f w/f c f f]
function rows(x, b, c, side, f = 1) {
  const s = side/f, data = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const column = i%side, row = Math.floor(i/side)%side, at = Math.floor(i/side/side);
    const place = (Math.floor(at/c)*s + Math.floor(row/f))*s + Math.floor(column/f);
    data[((place*c + at%c)*f + row%f)*f + column%f] = x[i];
  }
  return {b, h: s, w: s, c: c*f*f, data};
}

// and back: [b h w c f f] -> [b c f*h f*w]
function picture(p, f = 1) {
  const {b, h, c, data} = p, channels = c/f/f, side = h*f, out = new Float32Array(data.length);
  for (let i = 0; i < out.length; i++) {
    const column = i%side, row = Math.floor(i/side)%side, at = Math.floor(i/side/side);
    const place = (Math.floor(at/channels)*h + Math.floor(row/f))*h + Math.floor(column/f);
    out[i] = data[((place*channels + at%channels)*f + row%f)*f + column%f];
  }
  return b ? out : null;
}

// each pixel four times (24.3)
function double(p) {
  const {b, h, w, c, data} = p, out = new Float32Array(4*data.length);
  for (let row = 0; row < b*2*h; row++) {
    for (let column = 0; column < 2*w; column++) {
      const from = ((row >> 1)*w + (column >> 1))*c;
      out.set(data.subarray(from, from + c), (row*2*w + column)*c);
    }
  }
  return {b, h: 2*h, w: 2*w, c, data: out};
}

const plus = (p, q) => ({...p, data: add(p.data, q.data)});
const activated = (p) => ({...p, data: silu(p.data)});
const skip = (L, p) => L.has('skip.') ? L.conv('skip', p, {pad: 0}) : p;

// ---- the decoder: a latent to a picture (65.1) ---------------------------------------------------

export function decoder(L, z, b, [channels, side], wanted) {
  let h = L.conv('first', rows(z, b, channels, side));
  for (let k = 0; k < count(L, 'steps'); k++) {
    const B = L.at(`steps.${k}`);
    if (!B.has('')) {  // a step without weights doubles the side
      h = double(h);
      continue;
    }
    const r = B.conv('conv1', activated(groupNorm(B, 'norm1', h)));
    h = plus(skip(B, h), B.conv('conv2', activated(groupNorm(B, 'norm2', r))));
  }
  h = L.conv('last', activated(groupNorm(L, 'norm', h)));
  return picture(h, Math.round(Math.sqrt(h.c/wanted)));
}

// ---- the U-Net: h plus two convolutions of it, scaled and shifted by the embedding (24.5) ------------

function resBlock(L, h, e) {
  const r = L.conv('conv1', activated(groupNorm(L, 'norm1', h)));
  const [s, m] = chunk(L.linear('emb', e, h.b), 2, h.b);
  const n = modulate(groupNorm(L, 'norm2', r).data, m, s, h.b);  // (1 + s) GN(r) + m
  return plus(skip(L, h), L.conv('conv2', activated({...r, data: n})));
}

// a step of the ladder: a block, attention, a change of size, each optional (24.8)
function step(L, h, e, resample) {
  if (L.has('res.')) h = resBlock(L.at('res'), h, e);
  if (L.has('attn.')) {
    const A = L.at('attn');
    h = plus(h, {data: attention(A, groupNorm(A, 'norm', h).data, h.b, L.about.heads)});
  }
  return L.has('resample.') ? resample(h) : h;
}

// labels below 0: none; x [b c h w] -> [b c' h w]
export function unet(L, x, [channels, side], time, labels) {
  const b = labels.length, f = Math.round(Math.sqrt(L.tensor('first.weight').shape[1]/channels));
  const rowsOf = L.vector('label.weight'), d = L.tensor('label.weight').shape[1];

  // time and label in one embedding (24.1)
  const t = timeEmbedding(L.at('time'), time);
  const e = silu(joined(labels.map(k => k < 0 ? t : add(t, rowsOf.subarray(k*d, (k + 1)*d)))));
  let h = L.conv('first', rows(x, b, channels, side, f));

  // down, with a copy of every state on the trail
  const trail = [h];
  for (let k = 0; k < count(L, 'down'); k++) {
    const S = L.at(`down.${k}`);
    h = step(S, h, e, p => S.conv('resample.conv', p, {stride: 2}));
    trail.push(h);
  }
  for (let k = 0; k < count(L, 'middle'); k++) h = step(L.at(`middle.${k}`), h, e);

  // up, with the copies beside
  for (let k = 0; k < count(L, 'up'); k++) {
    const S = L.at(`up.${k}`);
    h = step(S, beside(h, trail.pop()), e, p => S.conv('resample.conv', double(p)));
  }
  return picture(L.conv('last', activated(groupNorm(L, 'norm', h))), f);
}

function beside(p, q) {
  const c = p.c + q.c, data = new Float32Array(p.b*p.h*p.w*c);
  for (let i = 0; i < p.b*p.h*p.w; i++) {
    data.set(p.data.subarray(i*p.c, (i + 1)*p.c), i*c);
    data.set(q.data.subarray(i*q.c, (i + 1)*q.c), i*c + p.c);
  }
  return {...p, c, data};
}
