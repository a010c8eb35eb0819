// Products of matrices: a WebAssembly kernel of four numbers at a time, and the same in plain JavaScript.
//
// Y += X W^T in tiles of 4 rows of X by 8 rows of W. A row of X begins so many bytes after the one before, so that
// the squares that a convolution reads need no copies. W lies in panels of 8 rows, column k of all eight side by side.

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
const constant = (n) => [0x41, ...leb(n)];  // below 64, since the seventh bit is the sign
const [ADD, SUBTRACT, SHIFT] = [[0x6a], [0x6b], [0x74]];
const simd = (code, ...rest) => [0xfd, ...leb(code), ...rest];
const load = (at) => simd(0, 4, ...leb(at));        // v128.load, 16 bytes
const splat = (at) => simd(9, 2, ...leb(at));       // v128.load32_splat: one number, four times
const store = (at) => simd(11, 4, ...leb(at));
const [FADD, FMUL] = [simd(0xe4), simd(0xe6)];      // f32x4.add, f32x4.mul
const WIDE = [0x41, 0x80, 1];  // 128
const more = (local, by) => [...get(local), ...by, ...ADD, ...set(local)];

// body, as often as the local says; it counts down to 0
const repeat = (local, body) => [0x03, 0x40, ...body, ...get(local), 0x41, 0x7f, ...ADD, 0x22, ...leb(local),
                                 0x0d, 0, 0x0b];

// (x, step, w, y, groups, k4, panels): addresses and the step from row to row of X in bytes; groups of 4 rows of X,
// of 4 columns, and of 8 rows of W
function assemble() {
  const [X, STEP, W, Y, GROUPS, K4, PANELS, wAt, yAt, yRow, i, g, rowBytes, P] = Array(14).keys();  // P: four rows of X
  const A = P + 4, W0 = A + 8, W1 = W0 + 1, S = W0 + 2;  // eight sums, two parts of W, one number of X
  const rows = [0, 1, 2, 3];
  const following = [1, 2, 3].flatMap(r => [...get(P + r - 1), ...get(STEP), ...ADD, ...set(P + r)]);

  // one column: sum += x_r w
  const column = (k) => [
    ...get(wAt), ...load(32*k), ...set(W0), ...get(wAt), ...load(32*k + 16), ...set(W1),
    ...rows.flatMap(r => [
      ...get(P + r), ...splat(4*k), ...set(S),
      ...get(A + 2*r), ...get(S), ...get(W0), ...FMUL, ...FADD, ...set(A + 2*r),
      ...get(A + 2*r + 1), ...get(S), ...get(W1), ...FMUL, ...FADD, ...set(A + 2*r + 1)])];
  const columns = [
    ...rows.flatMap(column), ...more(wAt, WIDE), ...rows.flatMap(r => more(P + r, constant(16)))];

  // four rows by eight, begun with what Y holds
  const walkY = (f) => [
    ...get(yAt), ...set(yRow), ...rows.flatMap(r => [...f(r), ...more(yRow, get(rowBytes))])];
  const tile = [
    ...walkY(r => [...get(yRow), ...load(0), ...set(A + 2*r), ...get(yRow), ...load(16), ...set(A + 2*r + 1)]),
    ...get(W), ...set(wAt), ...get(K4), ...set(i), ...repeat(i, columns),
    ...walkY(r => [...get(yRow), ...get(A + 2*r), ...store(0), ...get(yRow), ...get(A + 2*r + 1), ...store(16)]),
    ...get(yRow), ...set(yAt),
    // the next four rows: back to where they began, and three steps on, as the last pointer is
    ...get(P + 3), ...get(K4), ...constant(4), ...SHIFT, ...SUBTRACT, ...get(STEP), ...ADD, ...set(P), ...following];
  const panel = [
    ...get(X), ...set(P), ...following, ...get(Y), ...set(yAt), ...get(GROUPS), ...set(g), ...repeat(g, tile),
    ...get(wAt), ...set(W), ...more(Y, constant(32))];
  const body = [
    ...leb(2), ...leb(10), I32, ...leb(11), V128,
    ...get(PANELS), ...constant(5), ...SHIFT, ...set(rowBytes), ...repeat(PANELS, panel), 0x0b];

  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, 7, ...Array(7).fill(I32), 0]),                       // the type of the function
    ...section(2, [1, ...text('a'), ...text('m'), 2, 0, 1]),                     // memory comes from outside
    ...section(3, [1, 0]),
    ...section(7, [1, ...text('multiply'), 0, 0]),
    ...section(10, [1, ...leb(body.length), ...body])]);
}

// ---- a machine: one memory, and what multiplies in it -----------------------------------------

const up = (n, by) => n + (by - n%by)%by;  // to a multiple

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
    this.scratch = {};
    if (simd) {
      this.memory = new WebAssembly.Memory({initial: 1});
      const module = new WebAssembly.Module(assemble());
      this.kernel = new WebAssembly.Instance(module, {a: {m: this.memory}}).exports.multiply;
    }
  }

  // room for so many numbers: where it begins; what lies behind may be read, too
  room(n) {
    const at = this.used, wanted = at + n + 64;
    this.used += up(n, 4);
    if (wanted > this.heap.length && this.simd) {
      this.memory.grow(Math.ceil(4*wanted/65536) - this.memory.buffer.byteLength/65536 + 16);
      this.heap = new Float32Array(this.memory.buffer);
    } else if (wanted > this.heap.length) {
      const old = this.heap;
      this.heap = new Float32Array(Math.ceil(1.2*wanted));
      this.heap.set(old);
    }
    return at;
  }

  // scratch space, one for each purpose
  own(purpose, n) {
    const old = this.scratch[purpose];
    if (!old || old.n < n) this.scratch[purpose] = {at: this.room(n), n};
    return this.scratch[purpose].at;
  }

  // room for W in panels of 8 rows
  panels(rows, k, purpose = null) {
    const size = up(rows, 8)*up(k, 4);
    return {at: purpose ? this.own(purpose, size) : this.room(size), rows, k, k4: up(k, 4)/4, wide: up(rows, 8)};
  }

  // W: of each row of `long` values those of some columns, by the scale of the row
  pack(W, values, scale, column, long) {
    const {at, rows, k, k4} = W, heap = this.heap;
    for (let r = 0; r < rows; r++) {
      const by = scale ? scale[r] : 1;
      let to = at + (r - r%8)*4*k4 + r%8;
      for (let i = 0; i < k; i++, to += 8) heap[to] = values[r*long + column[i]]*by;
    }
    return W;
  }

  // W from numbers that lie `down` apart in a column and `right` apart in a row
  packSteps(W, values, first, down, right) {
    const {at, rows, k, k4} = W, heap = this.heap;
    for (let r = 0; r < rows; r++) {
      let to = at + (r - r%8)*4*k4 + r%8, from = first + r*down;
      for (let i = 0; i < k; i++, to += 8, from += right) heap[to] = values[from];
      for (let i = k; i < 4*k4; i++, to += 8) heap[to] = 0;
    }
    return W;
  }

  // the rows of Y that n rows of X need, begun with the bias: where they are
  begin(W, n, bias = null, purpose = 'y') {
    const rows = up(n, 4), y = this.own(purpose, rows*W.wide), heap = this.heap;
    if (!bias) heap.fill(0, y, y + rows*W.wide);
    else for (let r = 0; r < rows; r++) heap.set(bias, y + r*W.wide);
    return y;
  }

  // Y += X W^T, n rows of X that begin `step` numbers after each other
  run(x, step, W, y, n) {
    const groups = up(n, 4)/4;
    if (this.simd) this.kernel(4*x, 4*step, 4*W.at, 4*y, groups, W.k4, W.wide/8);
    else plainly(this.heap, x, step, W.at, y, groups, W.k4, W.wide/8);
  }

  // n rows of Y, without those that only fill up a panel
  taken(W, y, n) {
    if (W.rows === W.wide) return this.heap.slice(y, y + n*W.rows);
    const out = new Float32Array(n*W.rows);
    for (let r = 0; r < n; r++) out.set(this.heap.subarray(y + r*W.wide, y + r*W.wide + W.rows), r*W.rows);
    return out;
  }

  // X W^T + b for n rows that lie side by side
  multiply(W, bias, x, n) {
    const k = 4*W.k4, at = this.own('x', up(n, 4)*k), y = this.begin(W, n, bias);
    if (W.k === k) this.heap.set(x.length > n*k ? x.subarray(0, n*k) : x, at);
    else {
      this.heap.fill(0, at, at + n*k);
      for (let r = 0; r < n; r++) this.heap.set(x.subarray(r*W.k, (r + 1)*W.k), at + r*k);
    }
    this.run(at, k, W, y, n);
    return this.taken(W, y, n);
  }
}

// the kernel in words
export function plainly(heap, x, step, w, y, groups, k4, panels) {
  for (let p = 0; p < panels; p++) {
    for (let r = 0; r < 4*groups; r++) {
      const to = y + (r*panels + p)*8;
      for (let j = 0; j < 8; j++) {
        let sum = heap[to + j];
        for (let i = 0, at = w + p*32*k4 + j; i < 4*k4; i++, at += 8) sum += heap[x + r*step + i]*heap[at];
        heap[to + j] = sum;
      }
    }
  }
}
