// What the pages share: a worker that computes, a line that says how it goes, pictures on a canvas.

export const $ = (id) => document.getElementById(id);
export const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

// ---- the address: in a frame of the book only what moves is shown, and fields begin as it says ----

const asked = new URLSearchParams(location.search);
document.documentElement.classList.toggle('embedded', asked.has('embed'));
for (const [id, value] of asked) {
  if (['INPUT', 'SELECT'].includes($(id)?.tagName)) $(id).value = value;
}
addEventListener('load', () => asked.has('run') && $('go').click());

// the pages, for the bar on top
const PAGES = {index: 'Play', points: 'Points', noising: 'Noising', posterior: 'Posterior', ring: 'Guidance', digits: 'Digits', paint: 'Sentences'};
const here = location.pathname.match(/(\w+)\.html$/)?.[1] ?? 'index';
document.querySelector('nav').replaceChildren(...Object.entries(PAGES).map(([name, words]) => {
  const link = Object.assign(document.createElement('a'), {href: `${name}.html`, textContent: words});
  if (name === here) link.setAttribute('aria-current', 'page');
  return link;
}));

// beside a lever stands its value
for (const lever of document.querySelectorAll('input[type=range]')) {
  const show = () => $(`${lever.id}Out`) && ($(`${lever.id}Out`).textContent = lever.value);
  lever.addEventListener('input', show);
  show();
}

// ---- colours: the system's, or those of the book's page around this one ---------------------------

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// draw again whenever colours or the width change
export function onLook(draw) {
  addEventListener('resize', draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  new MutationObserver(draw).observe(document.documentElement, {attributeFilter: ['data-theme']});
}

// a canvas as sharp as the screen, of so much height for its width; the pixels of one CSS pixel
export function sharpen(canvas, tall) {
  const ratio = Math.min(2, devicePixelRatio || 1), wide = Math.round((canvas.clientWidth || 600)*ratio);
  if (canvas.width !== wide) Object.assign(canvas, {width: wide, height: Math.round(wide*tall)});
  return ratio;
}

// the line under the form; an error is one sentence
export function say(words, error = false) {
  const line = $('status');
  line.textContent = words;
  line.classList.toggle('error', error);
  line.setAttribute('role', error ? 'alert' : 'status');
}

// a worker for `system`, started at the first call; hear(message) gets what it finds
export class Painter {
  constructor(system, hear) {
    Object.assign(this, {system, hear, ready: false});
  }

  start() {
    if (this.worker) return;
    this.worker = new Worker(new URL('./worker.js', import.meta.url), {type: 'module'});
    this.worker.onmessage = ({data}) => this.hear(data);
    this.worker.onerror = (e) => {
      e.preventDefault();
      this.stop();
      this.hear({kind: 'error', words: 'This browser cannot run the page: it needs module workers (Chrome 80, Firefox 114, Safari 15).'});
    };
    this.worker.postMessage({ask: 'load', system: this.system});
  }

  run(asked) {
    this.start();
    this.worker.postMessage({ask: 'run', system: this.system, asked});
  }

  stop() {
    this.worker?.terminate();
    this.worker = null;
  }
}

// numbers in [-1, 1], [c h w], onto a canvas of that size
export function draw(canvas, x, width, channels, height = width) {
  Object.assign(canvas, {width, height});
  const image = new ImageData(width, height), places = width*height;
  for (let i = 0; i < places; i++) {
    for (let c = 0; c < 3; c++) {
      const v = x[(channels === 3 ? c*places : 0) + i];
      image.data[4*i + c] = Math.floor(Math.min(255, Math.max(0, (v + 1)*127.5 + .5)));
    }
    image.data[4*i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

// a bar while weights come: [0, 1], or null when they are there
export function bar(share) {
  const shown = $('bar');
  shown.hidden = share === null;
  if (share !== null) shown.value = share;
}

// a whole number from a field, or a sentence
export function whole(id, least, most, what) {
  const v = Number($(id).value);
  if ($(id).value.trim() === '' || !Number.isInteger(v) || v < least || v > most) {
    throw new Error(`${what}: give a whole number from ${least} to ${most}.`);
  }
  return v;
}

// a slider over the states of a run, and a button that plays them; show(k) draws state k
export function scrubber(show) {
  const slider = $('at'), button = $('play');
  let timer = null;
  const rest = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = 'Play';
  };
  slider.oninput = () => {
    rest();
    show(Number(slider.value));
  };
  button.onclick = () => {
    if (timer) return rest();
    const last = Number(slider.max);
    let k = Number(slider.value) >= last ? 0 : Number(slider.value);
    button.textContent = 'Pause';
    timer = setInterval(() => {
      slider.value = k;
      show(k);
      if (k++ >= last) rest();
    }, calm() ? 700 : 120);
  };
  return {
    // so many states; the newest is shown
    grow(n) {
      slider.max = Math.max(0, n - 1);
      slider.value = slider.max;
      slider.disabled = button.disabled = n < 2;
      show(n - 1);
    },
    clear() {
      rest();
      slider.max = slider.value = 0;
      slider.disabled = button.disabled = true;
    }};
}
