// Ten digits: x_t and the guess of x_0 at every step of a run.
import {$, Painter, bar, draw, say, scrubber, whole} from './page.js';

let states = [], asked = null, seconds = 0, notes = [];

// ten pictures as one, five beside each other
function drawn(canvas, x) {
  const s = Math.round(Math.sqrt(x.length/10)), sheet = new Float32Array(x.length);
  for (let k = 0; k < 10; k++) {
    for (let r = 0; r < s; r++) {
      sheet.set(x.subarray((k*s + r)*s, (k*s + r + 1)*s), ((Math.floor(k/5)*s + r)*5 + k%5)*s);
    }
  }
  draw(canvas, sheet, 5*s, 1, 2*s);
}

const film = scrubber(k => {
  const at = states[k];
  if (!at) return;
  drawn($('x'), at.x);
  drawn($('x0'), at.x0 ?? new Float32Array(at.x.length));
  $('level').textContent = `step ${k} of ${asked.steps}`;
});

const painter = new Painter('digits', (m) => {
  if (m.kind === 'progress') bar(m.share);
  else if (m.kind === 'ready') bar(null);
  else if (m.kind === 'notes') {
    notes = m.notes;
    say([...notes, 'Drawing ...'].join(' '));
  } else if (m.kind === 'step') {
    states.push(m);
    film.grow(states.length);
  } else if (m.kind === 'done') {
    seconds = m.seconds;
    say([...notes, `Ten digits in ${seconds.toFixed(1)} s.`].join(' '));
  } else if (m.kind === 'error') {
    bar(null);
    say(m.words, true);
    if (m.fatal) painter.stop();
  }
});

function command() {
  const v = (id) => $(id).value;
  $('command').textContent = 'ddpm_lit sample mnist --n 10 --sampler ddim --no-bf16 '
    + `--steps ${v('steps')} --seed ${v('seed')}${Number(v('w')) ? ` --w ${v('w')}` : ''}`;
}

$('form').oninput = command;
$('form').onsubmit = (e) => {
  e.preventDefault();
  try {
    asked = {steps: whole('steps', 1, 100, 'Steps'), seed: whole('seed', 0, 2**32 - 1, 'Seed'), w: Number($('w').value)};
  } catch (fault) {
    return say(fault.message, true);
  }
  if (painter.worker && states.length && states.length <= asked.steps && !seconds) painter.stop();  // the old run ends
  states = [];
  seconds = 0;
  film.clear();
  say('Fetching the network ...');
  painter.run(asked);
};
command();
drawn($('x'), new Float32Array(10*28*28));
drawn($('x0'), new Float32Array(10*28*28));
