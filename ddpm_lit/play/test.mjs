// Compares the pages' arithmetic with the library's numbers: node test.mjs FOLDER
//
// FOLDER has the files that the pages fetch, and expected.json. Prints the largest differences as JSON.
import {readFile} from 'node:fs/promises';
import path from 'node:path';
import {Machine, hasSimd} from './kernel.js';
import {mixture, world} from './mixture.js';
import {cosine, cosineLevels, ddim, linear, noised, normal, posterior, steered, straight, timeOf} from './sampling.js';
import {openDigits, openPainter} from './systems.js';
import {Tokenizer} from './tokens.js';
import {checked, half, readTensors, unpacked} from './weights.js';

const folder = process.argv[2];
const json = async (name) => JSON.parse(await readFile(path.join(folder, name), 'utf8'));
const [about, expected] = [await json('models.json'), await json('expected.json')];
const began = performance.now();
const files = {};
let bytes = 0;
for (const [name, said] of Object.entries(about.files)) {
  const raw = new Uint8Array(await readFile(path.join(folder, said.path)));
  bytes += raw.length;
  files[name] = await checked(await unpacked(raw, name), name, said.sha256);
}
const seconds = () => (performance.now() - began)/1000;
const found = {node: process.version, simd: hasSimd(), bytes, loaded: seconds()};

// the largest difference of two rows of numbers; Infinity where one has another length or no number
function off(a, b) {
  let most = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Number.isFinite(a[i]) ? Math.abs(a[i] - b[i]) : Infinity);
  return most;
}

const byte = (v) => Math.floor(Math.min(255, Math.max(0, (v + 1)*127.5 + .5)));
const last = (states) => [...states].pop();

// a picture from a caption, first of all: its seconds are those of a fresh page
const painter = openPainter(files, about.paint);
const z = last(painter.run(expected.paint));
const picture = painter.decoded(z.x);
found.firstPicture = seconds();
found.paint = off(picture, expected.paint.picture);
found.paintBytes = off(picture.map(byte), expected.paint.picture.map(byte));
found.repeated = off(painter.decoded(last(painter.run(expected.paint)).x), picture);

// schedules and back, noise of one level, the posterior, a guided run on the ring
const {times, schedules, noised: one_level, posterior: both, flow} = expected.plane;
const ours = {cosine: cosine(), linear: linear(), straight: straight()};
found.schedules = Math.max(...Object.entries(schedules).map(([name, l]) => off(times.map(ours[name]), l)));
found.times = off(times.map(u => timeOf(ours.cosine, ours.cosine(u))), times);
found.noised = off(noised(one_level.x0, one_level.eps, one_level.t), one_level.x);
const met = posterior(both.x0, both.x_t, both.s, both.t);
found.posterior = off([met.mean, met.std], [both.mean, both.std]);
const means = world('ring');
const run = [...ddim(steered(mixture([means[flow.label]], flow.std), mixture(means, flow.std), flow.w),
                     cosineLevels(flow.steps), flow.start)];
found.flow = Math.max(off(run[9].x, flow.x[0]), off(run.at(-1).x, flow.x[1]));

// words, noise, half precision
const tokenizer = new Tokenizer(new TextDecoder().decode(files.captions), about.paint.length);
found.texts = expected.texts.length;
found.tokens = expected.texts.filter((t, i) => off(tokenizer.row(t), expected.rows[i]) > 0).length;
found.noise = Math.max(...expected.noise.map(({seed, x}) => off(normal(seed, x.length), x)));
found.half = off(expected.half.bits.map(half), expected.half.values);

// ten digits; the kernel in plain JavaScript gives the same
const digits = openDigits(files, about.digits);
found.digits = Math.max(...expected.digits.map(d => off(last(digits.run(d)).x, d.x)));
const plain = openDigits(files, about.digits, new Machine(false));
const one = {seed: 3, steps: 1, w: 0, labels: [7]};
found.plain = off(last(plain.run(one)).x, last(digits.run(one)).x);

// what is damaged or odd ends in a sentence
const refusals = {
  cut: () => readTensors(files.mnist.subarray(0, files.mnist.length - 9)),
  empty: () => readTensors(new Uint8Array(3)),
  changed: () => readTensors(files.mnist.map((v, i) => i === 20 ? v ^ 255 : v)),
  packed: () => unpacked(new Uint8Array([0x1f, 0x8b, 1, 2, 3])),
  other: () => checked(files.captions, 'captions', about.files.mnist.sha256),
  blank: () => last(painter.run({...expected.paint, caption: ' \n'})),
  broken: () => last(painter.run({...expected.paint, caption: 'a \ud800 heart'}))};
found.refused = 0;
for (const [name, ask] of Object.entries(refusals)) {
  try {
    await ask();
    console.error(`${name}: not refused`);
  } catch (e) {
    if (e.name === 'Error' && e.constructor.name === 'Problem') found.refused++;
    else console.error(name, e);
  }
}
found.asked = Object.keys(refusals).length;
found.notes = ['a red heart', 'a '.repeat(60), 'a red жук'].map(c => painter.notes(c).length);
console.log(JSON.stringify(found));
