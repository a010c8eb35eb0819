// Products of matrices: a WebAssembly kernel of four numbers at a time, and the same in plain JavaScript.
//
// Y = X W^T in tiles of 4 rows of X by 8 rows of W. Both lie ready for it: X in groups of 4 rows, number k of
// all four side by side; W in panels of 8 rows, number k of all eight side by side.

// ---- a small assembler ------------------------------------------------------------------------

// a whole number as WebAssembly writes it, 7 bits a byte
function leb(n) {
  const low = n & 127;
  return n < 128 ? [low] : [low | 128, ...leb(n >>> 7)];
}

const section = (id, body) => [id, ...leb(body.length), ...body];
const text = (s) => [...leb(s.length), ...new TextEncoder().encode(s)];
const I32 = 0x7f, V128 = 0x7b;
const get = (local) => [0x20, ...leb(local)];
const set = (local) => [0x21, ...leb(local)];
const constant = (n) => [0x41, ...leb(n)];  // below 64: the sign is the seventh bit
const ADD = [0x6a], MULTIPLY = [0x6c], SHIFT = [0x74];
const simd = (code, ...rest) => [0xfd, ...leb(code), ...rest];
const load = (at) => simd(0, 4, ...leb(at));        // v128.load, 16 bytes
const splat = (at) => simd(9, 2, ...leb(at));       // v128.load32_splat: one number, four times
const store = simd(11, 4, 0);
const [FADD, FMUL] = [simd(0xe4), simd(0xe6)];      // f32x4.add, f32x4.mul
const ZERO = simd(12, ...Array(16).fill(0));
const more = (local, by) => [...get(local), ...by, ...ADD, ...set(local)];

// body, as often as the local says; it counts down to 0
const repeat = (local, body) => [0x03, 0x40, ...body, ...get(local), 0x41, 0x7f, ...ADD, 0x22, ...leb(local),
                                 0x0d, 0, 0x0b];

// (x, w, y, groups, k, panels): addresses in bytes, and how many of each there are
function assemble() {
  const [X, W, Y, GROUPS, K, PANELS, xAt, wAt, yAt, yRow, i, g, rowBytes] = Array(13).keys();
  const A = 13, W0 = A + 8, W1 = W0 + 1, S = W0 + 2;  // eight sums, two parts of W, one number of X
  const sums = [...Array(8).keys()];

  // four rows by eight columns: sum += x_r * w
  const inner = [
    ...get(wAt), ...load(0), ...set(W0), ...get(wAt), ...load(16), ...set(W1),
    ...[0, 1, 2, 3].flatMap(r => [
      ...get(xAt), ...splat(4*r), ...set(S),
      ...get(A + 2*r), ...get(S), ...get(W0), ...FMUL, ...FADD, ...set(A + 2*r),
      ...get(A + 2*r + 1), ...get(S), ...get(W1), ...FMUL, ...FADD, ...set(A + 2*r + 1)]),
    ...more(xAt, constant(16)), ...more(wAt, constant(32))];
  const tile = [
    ...sums.flatMap(j => [...ZERO, ...set(A + j)]), ...get(W), ...set(wAt), ...get(K), ...set(i),
    ...repeat(i, inner), ...get(yAt), ...set(yRow),
    ...[0, 1, 2, 3].flatMap(r => [
      ...get(yRow), ...get(A + 2*r), ...store, ...get(yRow), ...constant(16), ...ADD, ...get(A + 2*r + 1), ...store,
      ...more(yRow, get(rowBytes))]),
    ...get(yRow), ...set(yAt)];
  const panel = [
    ...get(X), ...set(xAt), ...get(Y), ...set(yAt), ...get(GROUPS), ...set(g), ...repeat(g, tile),
    ...get(wAt), ...set(W), ...more(Y, constant(32))];
  const body = [
    ...leb(2), ...leb(7), I32, ...leb(11), V128,
    ...get(PANELS), ...constant(5), ...SHIFT, ...set(rowBytes), ...repeat(PANELS, panel), 0x0b];

  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, 6, ...Array(6).fill(I32), 0]),                       // the type of the function
    ...section(2, [1, ...text('a'), ...text('m'), 2, 0, 1]),                     // memory comes from outside
    ...section(3, [1, 0]),
    ...section(7, [1, ...text('multiply'), 0, 0]),
    ...section(10, [1, ...leb(body.length), ...body])]);
}

// ---- a machine: one memory, and what multiplies in it -----------------------------------------

const TILE = 4, PANEL = 8, AT_ONCE = 64;  // rows of X, rows of W, rows of X in one call

export function hasSimd() {
  try {
    return WebAssembly.validate(assemble());
  } catch {
    return false;
  }
}

export class Machine {
  constructor(simd = hasSimd()) {
    this.simd = simd;
    this.used = 0;  // numbers
    this.heap = new Float32Array(0);
    if (simd) {
      this.memory = new WebAssembly.Memory({initial: 1});
      const module = new WebAssembly.Module(assemble());
      this.kernel = new WebAssembly.Instance(module, {a: {m: this.memory}}).exports.multiply;
    }
    this.scratch = {};
  }

  // room for so many numbers: where it begins
  room(n) {
    const at = this.used;
    this.used += n + (-n & 3);
    if (this.used > this.heap.length) {
      const wanted = Math.max(this.used, Math.ceil(1.1*this.heap.length));
      if (this.simd) {
        this.memory.grow(Math.ceil((4*wanted - this.memory.buffer.byteLength)/65536 + 1));
        this.heap = new Float32Array(this.memory.buffer);
      } else {
        const old = this.heap;
        this.heap = new Float32Array(wanted);
        this.heap.set(old);
      }
    }
    return at;
  }

  // scratch space, one for each purpose, never given back
  own(purpose, n) {
    const old = this.scratch[purpose];
    if (!old || old.n < n) this.scratch[purpose] = {at: this.room(n), n};
    return this.scratch[purpose].at;
  }

  // W in panels: its columns in a new order, and each row by its scale
  pack(values, scale, rows, k, column) {
    const panels = Math.ceil(rows/PANEL);
    const at = this.room(panels*PANEL*k);
    const heap = this.heap;
    for (let r = 0; r < rows; r++) {
      const by = scale ? scale[r] : 1;
      let to = at + (r - r%PANEL)*k + r%PANEL;
      for (let i = 0; i < k; i++, to += PANEL) heap[to] = values[r*k + column[i]]*by;
    }
    return {at, rows, k, panels};
  }

  // Y = X W^T + b; fill(into, row, at) writes row `row` of X from heap[at] on, a number every 4 places
  multiply(W, bias, n, fill) {
    const {k, rows, panels} = W, wide = panels*PANEL;
    const x = this.own('x', AT_ONCE*k), y = this.own('y', AT_ONCE*wide);
    const heap = this.heap, out = new Float32Array(n*rows);

    for (let first = 0; first < n; first += AT_ONCE) {
      const some = Math.min(AT_ONCE, n - first), groups = Math.ceil(some/TILE);
      if (some%TILE) heap.fill(0, x + (groups - 1)*TILE*k, x + groups*TILE*k);
      for (let r = 0; r < some; r++) fill(heap, first + r, x + (r - r%TILE)*k + r%TILE);

      if (this.simd) this.kernel(4*x, 4*W.at, 4*y, groups, k, panels);
      else plainly(heap, x, W.at, y, groups, k, panels);

      for (let r = 0; r < some; r++) {
        const from = y + r*wide, to = (first + r)*rows;
        for (let j = 0; j < rows; j++) out[to + j] = heap[from + j] + bias[j];
      }
    }
    return out;
  }
}

// the kernel in words
export function plainly(heap, x, w, y, groups, k, panels) {
  const sums = new Float32Array(TILE*PANEL);
  for (let p = 0; p < panels; p++) {
    for (let g = 0; g < groups; g++) {
      sums.fill(0);
      for (let i = 0; i < k; i++) {
        const xAt = x + (g*k + i)*TILE, wAt = w + (p*k + i)*PANEL;
        for (let r = 0; r < TILE; r++) {
          const v = heap[xAt + r];
          for (let j = 0; j < PANEL; j++) sums[r*PANEL + j] += v*heap[wAt + j];
        }
      }
      for (let r = 0; r < TILE; r++) {
        const to = y + ((g*TILE + r)*panels + p)*PANEL;
        for (let j = 0; j < PANEL; j++) heap[to + j] = sums[r*PANEL + j];
      }
    }
  }
}
