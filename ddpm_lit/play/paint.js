// A sentence: the latent and the guess, both decoded, at every step of a run.
import {$, Painter, bar, draw, say, scrubber, whole} from './page.js';
import {singleSpaced} from './tokens.js';

let states = [], asked = null, busy = false, notes = [], styles = {};

const film = scrubber(k => {
  const at = states[k];
  if (!at) return;
  draw($('x'), at.x, 64, 3);
  draw($('x0'), at.x0 ?? new Float32Array(at.x.length), 64, 3);
  $('level').textContent = `step ${k} of ${asked.steps}`;
  for (const id of ['filmX', 'film0']) {
    [...$(id).children].forEach((c, i) => c.classList.toggle('at', i === k));
    const here = $(id).children[k];
    if (here) $(id).scrollLeft = here.offsetLeft - $(id).offsetLeft - $(id).clientWidth/2 + 36;
  }
});

function frame(id, x) {
  const canvas = document.createElement('canvas'), k = $(id).children.length;
  draw(canvas, x, 64, 3);
  canvas.onclick = () => {
    $('at').value = k;
    $('at').oninput();
  };
  $(id).append(canvas);
}

const painter = new Painter('paint', (m) => {
  if (m.kind === 'progress') bar(m.share);
  else if (m.kind === 'ready') bar(null);
  else if (m.kind === 'notes') {
    notes = m.notes;
    say([...notes, 'Painting ...'].join(' '));
  } else if (m.kind === 'step') {
    states.push(m);
    frame('filmX', m.x);
    frame('film0', m.x0 ?? new Float32Array(m.x.length));
    film.grow(states.length);
  } else if (m.kind === 'done') {
    busy = false;
    say([...notes, `Painted in ${m.seconds.toFixed(1)} s.`].join(' '));
  } else if (m.kind === 'error') {
    busy = false;
    bar(null);
    say(m.words, true);
    if (m.fatal) painter.stop();
  }
});

const quoted = (words) => `'${words.replaceAll("'", "'\\''")}'`;

function command() {
  const v = (id) => $(id).value, style = v('style') ? ` --style ${v('style')}` : '';
  $('command').textContent = `ddpm_lit paint ${quoted(singleSpaced(v('caption')))} --system latent --n 1`
    + `${style} --steps ${v('steps')} --w ${v('w')} --seed ${v('seed')}`;
}

$('form').oninput = command;
$('form').onsubmit = (e) => {
  e.preventDefault();
  try {
    const caption = singleSpaced($('caption').value), style = styles[$('style').value];
    if (!caption) throw new Error('The caption is empty: write what is to be painted.');
    const w = Number($('w').value);
    if ($('w').value === '' || !(w >= 0 && w <= 20)) throw new Error('Guidance w: give a number from 0 to 20.');
    asked = {caption: style ? `a ${style} emoji of ${caption}` : caption, w,
             steps: whole('steps', 1, 100, 'Steps'), seed: whole('seed', 0, 2**32 - 1, 'Seed')};
  } catch (fault) {
    return say(fault.message, true);
  }
  if (busy && states.length) painter.stop();  // the old run ends
  busy = true;
  states = [];
  film.clear();
  for (const id of ['filmX', 'film0']) $(id).replaceChildren();
  say('Fetching the networks ...');
  painter.run(asked);
};

for (const button of document.querySelectorAll('.captions button')) {
  button.onclick = () => {
    $('caption').value = button.textContent;
    command();
    $('form').requestSubmit();
  };
}

// the styles that emoji were learned in
fetch('models.json').then(r => r.json()).then(({paint}) => {
  styles = paint.styles;
  for (const name of Object.keys(styles)) $('style').append(new Option(name, name));
}).catch(() => {});

command();
for (const id of ['x', 'x0']) draw($(id), new Float32Array(3*64*64), 64, 3);
