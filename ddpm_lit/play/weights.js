// Files of weights: fetched with a progress, unpacked where they are packed, and read as they are shipped.

// what a visitor can put right, in one sentence
export class Problem extends Error {}

// the bytes behind a URL; tell(done) hears how many have come
export async function fetched(url, tell = () => {}) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new Problem('The weights could not be fetched: check the connection, and try again.');
  }
  const name = String(url).split('/').pop();
  if (answer.status === 404) throw new Problem(`The file ${name} is not there: this copy of the pages lacks it.`);
  if (!answer.ok) throw new Problem(`The server could not give ${name} (${answer.status}): are its weights whole?`);
  const parts = [];
  let done = 0;
  try {
    for (const reader = answer.body.getReader(); ;) {
      const {value, done: end} = await reader.read();
      if (end) break;
      parts.push(value);
      tell(done += value.length);
    }
  } catch {
    throw new Problem(`The file ${name} broke off after ${done} bytes: check the connection, and try again.`);
  }
  return unpacked(new Uint8Array(await new Blob(parts).arrayBuffer()), name);
}

// some servers unpack .gz themselves, so the first two bytes say whether it is packed
export async function unpacked(bytes, name = 'file') {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  if (typeof DecompressionStream === 'undefined') {
    throw new Problem('This browser cannot unpack the weights: it needs DecompressionStream (Chrome 80, Firefox 113, Safari 16.4).');
  }
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Problem(`The file ${name} is damaged and cannot be unpacked: reload the page, or bring back a whole copy.`);
  }
}

// is it the file that the description tells of?
export async function checked(bytes, name, sha256) {
  if (!sha256 || !globalThis.crypto?.subtle) return bytes;
  const sum = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  const hex = [...sum].map(b => b.toString(16).padStart(2, '0')).join('');
  if (hex !== sha256) throw new Problem(`The file ${name} is damaged: reload the page, or bring back a whole copy.`);
  return bytes;
}

const SIZES = {I8: 1, F16: 2, F32: 4};

// safetensors: the length of a list, the list in JSON, the numbers. name -> {shape, at(i)}
export function readTensors(bytes, name = 'file') {
  const damaged = new Problem(`The file ${name} is damaged: reload the page, or bring back a whole copy.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length > 8 ? view.getUint32(0, true) : Infinity;
  if (8 + length > bytes.length || view.getUint32(4, true)) throw damaged;
  let list;
  try {
    list = JSON.parse(new TextDecoder('utf-8', {fatal: true}).decode(bytes.subarray(8, 8 + length)));
  } catch {
    throw damaged;
  }

  const found = {};
  for (const [key, said] of Object.entries(list)) {
    if (key === '__metadata__') continue;
    const {dtype, shape, data_offsets: [begin, end] = []} = said ?? {};
    const count = Array.isArray(shape) ? shape.reduce((a, b) => a*b, 1) : NaN;
    const whole = end - begin === count*SIZES[dtype] && begin >= 0 && 8 + length + end <= bytes.length;
    if (!whole) throw damaged;
    const numbers = bytes.slice(8 + length + begin, 8 + length + end);
    found[key] = {shape, values: VALUES[dtype](numbers.buffer)};
  }

  // w_ij = s_i q_ij: a scale for each row of whole numbers (22.8)
  for (const key of Object.keys(found).filter(k => k.endsWith('.row_scale'))) {
    const rows = found[key.slice(0, -'.row_scale'.length)];
    if (!rows || rows.shape[0] !== found[key].shape[0]) throw damaged;
    rows.scale = found[key].values;
    delete found[key];
  }
  return found;
}

const VALUES = {
  I8: (b) => new Int8Array(b),
  F16: (b) => Float32Array.from(new Uint16Array(b), half),
  F32: (b) => new Float32Array(b)};

// 16 bits: a sign, five of an exponent, ten of a fraction
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign*Infinity;
  return sign*(exponent ? 2**(exponent - 25)*(1024 + fraction) : 2**-24*fraction);
}
