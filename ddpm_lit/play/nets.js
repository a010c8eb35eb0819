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

  // W with its columns in the order that pictures have: place in the square, then channel
  matrix(name) {
    const key = `${this.prefix}${name}.weight`;
    if (!this.packed.has(key)) {
      const {values, scale, shape: [rows, c, ...square]} = this.tensor(`${name}.weight`);
      const places = square.reduce((a, b) => a*b, 1), k = c*places;
      const column = Int32Array.from({length: k}, (_, i) => i%c*places + Math.floor(i/c));
      this.packed.set(key, this.machine.pack(values, scale, rows, k, column));
    }
    return this.packed.get(key);
  }

  // x W^T + b for n rows
  linear(name, x, n) {
    const W = this.matrix(name), k = W.k;
    return this.machine.multiply(W, this.vector(`${name}.bias`), n, (heap, row, at) => {
      for (let i = 0, from = row*k; i < k; i++, at += 4) heap[at] = x[from + i];
    });
  }

  // a convolution: each place reads a square of the picture, nothing beyond its edges
  conv(name, p, {stride = 1, pad = 1} = {}) {
    const [c2, , side] = this.tensor(`${name}.weight`).shape, {b, h, w, c, data} = p;
    const h2 = Math.floor((h + 2*pad - side)/stride) + 1, w2 = Math.floor((w + 2*pad - side)/stride) + 1;
    const y = this.machine.multiply(this.matrix(name), this.vector(`${name}.bias`), b*h2*w2, (heap, row, at) => {
      const x0 = row%w2*stride - pad, y0 = Math.floor(row/w2)%h2*stride - pad, picture = Math.floor(row/(h2*w2))*h;
      for (let dy = 0; dy < side; dy++) {
        for (let dx = 0; dx < side; dx++) {
          const inside = y0 + dy >= 0 && y0 + dy < h && x0 + dx >= 0 && x0 + dx < w;
          const from = ((picture + y0 + dy)*w + x0 + dx)*c;
          for (let i = 0; i < c; i++, at += 4) heap[at] = inside ? data[from + i] : 0;
        }
      }
    });
    return {b, h: h2, w: w2, c: c2, data: y};
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
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = f(x[i]);
  return y;
}

const silu = (x) => each(x, ACTS.silu);

function add(x, y) {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) sum[i] = x[i] + y[i];
  return sum;
}

// x + gate y, a gate for each of b pictures
function addGated(x, gate, y, b) {
  const out = new Float32Array(x.length), d = gate.length/b, each = x.length/b;
  for (let i = 0; i < x.length; i++) out[i] = x[i] + gate[Math.floor(i/each)*d + i%d]*y[i];
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
  const {b, h, w, c, data} = p, {groups, eps} = L.about.norm, some = c/groups, places = h*w;
  const weight = L.vector(`${name}.weight`), bias = L.vector(`${name}.bias`);
  const y = new Float32Array(data.length);
  for (let k = 0; k < b*groups; k++) {
    const from = Math.floor(k/groups)*places*c, first = k%groups*some, n = places*some;
    let mean = 0, square = 0;
    for (let i = 0; i < places; i++) for (let j = first; j < first + some; j++) mean += data[from + i*c + j];
    mean /= n;
    for (let i = 0; i < places; i++) for (let j = first; j < first + some; j++) square += (data[from + i*c + j] - mean)**2;
    const by = 1/Math.sqrt(square/n + eps);
    for (let i = 0; i < places; i++) {
      for (let j = first; j < first + some; j++) y[from + i*c + j] = (data[from + i*c + j] - mean)*by*weight[j] + bias[j];
    }
  }
  return {...p, data: y};
}

// softmax(q k^T/sqrt(d)) v by heads (24.6); q, k and v stand in rows of qkv, further keys and values in rows of kv
function attend(qkv, kv, b, l, m, width, heads) {
  const d = width/heads, out = new Float32Array(b*l*width), fit = new Float64Array(m + l), by = 1/Math.sqrt(d);
  for (let i = 0; i < b*l*heads; i++) {
    const head = i%heads*d, row = Math.floor(i/heads), picture = Math.floor(row/l), q = row*3*width + head;
    const key = (j) => j < m ? (picture*m + j)*2*width + head : (picture*l + j - m)*3*width + width + head;
    let most = -Infinity, sum = 0;
    for (let j = 0; j < m + l; j++) {
      const from = j < m ? kv : qkv, k = key(j);
      let dot = 0;
      for (let e = 0; e < d; e++) dot += qkv[q + e]*from[k + e];
      fit[j] = dot*by;
      if (fit[j] > most) most = fit[j];
    }
    for (let j = 0; j < m + l; j++) sum += fit[j] = Math.exp(fit[j] - most);
    for (let j = 0; j < m + l; j++) {
      const from = j < m ? kv : qkv, v = key(j) + width, p = fit[j]/sum, to = row*width + head;
      for (let e = 0; e < d; e++) out[to + e] += p*from[v + e];
    }
  }
  return out;
}

// each position reads the others and, if there are any, the words of a caption (52.2, 52.6)
function attention(L, x, b, heads, words = null) {
  const width = L.tensor('out.weight').shape[0], l = x.length/b/width;
  const m = words ? words.data.length/b/words.width : 0;
  if (words && !words.kv.has(L.prefix)) words.kv.set(L.prefix, L.linear('kv', words.data, b*m));  // once for a run
  return L.linear('out', attend(L.linear('qkv', x, b*l), words?.kv.get(L.prefix), b, l, m, width, heads), b*l);
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
  const y = new Float32Array(h.length), d = shift.length/b, each = h.length/b;
  for (let i = 0; i < h.length; i++) {
    const c = Math.floor(i/each)*d + i%d;
    y[i] = h[i]*(1 + scale[c]) + shift[c];
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
