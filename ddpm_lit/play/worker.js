// The networks run here, so that the page never stands still.
import {Machine, hasSimd} from './kernel.js';
import {openDigits, openPainter} from './systems.js';
import {checked, fetched, Problem} from './weights.js';

const NEEDS = {digits: ['mnist'], paint: ['latent', 'decoder', 'captions']};
let opened = null, noted = '';

function sentence(e) {
  if (e instanceof Problem) return e.message;
  if (e instanceof RangeError) return 'There is not enough memory for the network here: close other pages, or try a larger machine.';
  return `The page met a fault of its own (${e.message}): reload it, and if it comes back, report it.`;
}

async function load(system) {
  const said = await fetched(new URL('./models.json', import.meta.url));
  let about;
  try {
    about = JSON.parse(new TextDecoder().decode(said));
  } catch {
    throw new Problem('The description of the weights, models.json, is damaged: reload the page.');
  }
  const names = NEEDS[system], total = names.reduce((n, name) => n + about.files[name].bytes, 0);
  const files = {};
  let before = 0;
  for (const name of names) {
    const {path, bytes, sha256} = about.files[name];
    const raw = await fetched(new URL(`./${path}`, import.meta.url),
                              done => postMessage({kind: 'progress', share: Math.min(1, (before + done)/total), total}));
    files[name] = await checked(raw, name, sha256);
    before += bytes;
  }
  if (!hasSimd()) noted = 'This browser has no WebAssembly SIMD: it computes in plain JavaScript, about ten times as slowly.';
  opened = (system === 'digits' ? openDigits : openPainter)(files, about[system], new Machine());
  postMessage({kind: 'ready', about: about[system], noted});
}

let loading = null;

// one at a time; a page that asks for another run starts another worker
async function run(system, asked) {
  await loading;
  const notes = system === 'paint' ? opened.notes(asked.caption) : [];
  postMessage({kind: 'notes', notes: noted ? [noted, ...notes] : notes});
  const began = performance.now();
  let k = 0;
  for (const {x, x0} of opened.run(asked)) {
    if (![...x.subarray(0, 64)].every(Number.isFinite)) throw new Problem('The numbers grew without end: ask for less guidance.');
    const show = system === 'paint' ? (z) => z && opened.decoded(z) : (z) => z && Float32Array.from(z);
    postMessage({kind: 'step', k: k++, x: show(x), x0: show(x0)});
  }
  postMessage({kind: 'done', seconds: (performance.now() - began)/1000});
}

onmessage = async ({data: {ask, system, asked}}) => {
  try {
    if (ask === 'load') await (loading = load(system));
    else await run(system, asked);
  } catch (e) {
    if (!opened && ask === 'run') return;  // said when it was loaded
    postMessage({kind: 'error', words: sentence(e), fatal: !opened});
  }
};
