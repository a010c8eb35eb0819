// The two systems of the pages: digits by DDIM (25), captions by latent diffusion (67).
import {Machine} from './kernel.js';
import {Layers, decoder, dit, textEncoder, unet} from './nets.js';
import {cosineLevels, ddim, dpmpp2m, guided, normal, sigma, signal, straightLevels} from './sampling.js';
import {Problem, readTensors} from './weights.js';
import {singleSpaced, Tokenizer} from './tokens.js';

// files: name -> bytes; about: what models.json says of the system
export function openDigits(files, about, machine = new Machine()) {
  const L = new Layers(machine, readTensors(files.mnist, 'mnist'), about.net).at('net.net');
  const [channels, side] = about.shape, n = channels*side*side;

  // v = signal eps - sigma x0, read as x0 and eps (02.4, 02.5); the guess stays within the limit (14.10)
  function denoiser(labels, w) {
    const b = labels.length;
    return (x, t) => {
      const time = 500 - 25*Math.max(-20, Math.min(20, t));  // (02.9)
      const both = w ? [...labels, ...labels.map(() => -1)] : labels;
      const v = unet(L, w ? twice(x) : x, [channels, side], time, both);
      const x0 = new Float32Array(b*n), eps = new Float32Array(b*n), [a, s] = [signal(t), sigma(t)];
      const clean = (i) => a*x[i%x.length] - s*v[i];
      for (let i = 0; i < x0.length; i++) {
        const guess = w ? clean(i) + w*(clean(i) - clean(i + x0.length)) : clean(i);
        x0[i] = Math.max(-about.limit, Math.min(about.limit, guess));
        eps[i] = (x[i] - a*x0[i])/s;
      }
      return {x0, eps};
    };
  }

  return {
    size: {n, side, channels},
    // {x, x0, t} at every step, the noise first
    * run({seed, steps, w, labels = about.labels}) {
      const x = normal(seed, labels.length*n), levels = cosineLevels(steps, about.schedule);
      yield {x, x0: null, t: levels[0]};
      yield* ddim(denoiser(labels, w), levels, x);
    }};
}

function twice(x) {
  const y = new Float32Array(2*x.length);
  y.set(x);
  y.set(x, x.length);
  return y;
}

export function openPainter(files, about, machine = new Machine()) {
  const tensors = readTensors(files.latent, 'latent');
  const [T, N] = [new Layers(machine, tensors, about.text).at('text'), new Layers(machine, tensors, about.net).at('net.net')];
  const D = new Layers(machine, readTensors(files.decoder, 'decoder'), about.decoder).at('decoder');
  const tokenizer = new Tokenizer(new TextDecoder().decode(files.captions), about.length);
  const [channels, side] = tensors.probe.shape, n = channels*side*side;
  const places = T.tensor('places').shape[0], {mean, std} = tensors;
  const encoded = (text) => textEncoder(T, tokenizer.row(text).slice(0, places), tokenizer.pad);
  const empty = encoded('');

  // v = eps - x0, read as x0 and eps (32.10), from the caption and from none (41.3)
  function denoiser(caption, w) {
    const captions = [caption, empty];
    return (x, t) => {
      const v = dit(N, twice(x), [channels, side], 1000*sigma(t)/(sigma(t) + signal(t)), captions);
      const [c, u] = [0, n].map(at => x.map((x_i, i) => (x_i - sigma(t)*v[at + i])/(signal(t) + sigma(t))));
      return {x0: guided(c, u, w)};
    };
  }

  return {
    tokenizer, places, side: about.shape[1],
    // what should be said before: [] or sentences
    notes(caption) {
      const ids = tokenizer.encode(caption), room = places - 1, notes = [];  // after the start
      if (ids.length > room) notes.push(`The caption has ${ids.length} pieces, and the first ${room} are read.`);

      // a word that was common in the training is one piece or two
      const words = singleSpaced(caption).split(' ').filter(word => tokenizer.encode(` ${word}`).length > 4);
      if (words.length) {
        const some = words.slice(0, 4).map(word => `“${word.slice(0, 24)}”`).join(', ');
        notes.push(`Rare or new to the networks, and perhaps misread: ${some}${words.length > 4 ? ' and more' : ''}.`);
      }
      return notes;
    },
    // a standardised latent as a picture (65.8): [3 64 64] in [-1, 1]
    decoded(z) {
      const x = decoder(D, z.map((v, i) => v*std.values[Math.floor(i/side/side)] + mean.values[Math.floor(i/side/side)]),
                        1, [channels, side], about.shape[0]);
      return x.map(v => Math.max(-1, Math.min(1, v)));
    },
    // {x, x0, t} at every step, the noise first
    * run({caption, seed, steps, w}) {
      const words = singleSpaced(caption);
      if (!words) throw new Problem('The caption is empty: write what is to be painted.');
      const x = normal(1_000_003*seed%2**32, n), levels = straightLevels(steps, about.rho);
      yield {x, x0: null, t: levels[0]};
      yield* dpmpp2m(denoiser(encoded(words), w), levels, x);
    }};
}
