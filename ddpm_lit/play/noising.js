// A picture under noise of one level, and the times at which three schedules reach that level.
import {$, calm, colour, draw, onLook, say, sharpen} from './page.js';
import {cosine, linear, noised, normal, sigma, signal, straight, timeOf} from './sampling.js';

const SCHEDULES = {cosine: [cosine(), 'blue'], linear: [linear(), 'red'], flow: [straight(), 'green']};
const MOST = 12, SECONDS = 6;  // log SNR from MOST to -MOST
let source = null, x0 = null, eps = null, side = 0, playing = null;

const level = () => -Number($('at').value);

// the middle of a picture as numbers in [-1, 1], [3 side side]
function numbers(image, side) {
  const canvas = Object.assign(document.createElement('canvas'), {width: side, height: side});
  const ink = canvas.getContext('2d', {willReadFrequently: true}), {width, height} = image, least = Math.min(width, height);
  ink.fillStyle = '#fff';
  ink.fillRect(0, 0, side, side);
  ink.drawImage(image, (width - least)/2, (height - least)/2, least, least, 0, 0, side, side);
  const {data} = ink.getImageData(0, 0, side, side), n = side*side;
  return Float32Array.from({length: 3*n}, (_, i) => data[4*(i%n) + Math.floor(i/n)]/127.5 - 1);
}

function prepare() {
  side = Number($('side').value);
  x0 = source && numbers(source, side);

  // a grey picture gets grey noise
  const n = side*side, grey = x0?.every((v, i) => v === x0[i%n]);
  eps = normal(0, 3*n);
  if (grey) eps = eps.map((_, i) => eps[i%n]);
  show();
}

function show() {
  const t = level(), [a, s] = [signal(t), sigma(t)];
  if (x0) draw($('x'), noised(x0, eps, t), side, 3);
  $('mix').textContent = `x_t = ${a.toFixed(3)} x₀ + ${s.toFixed(3)} ε: of the variance ${percent(a*a)} signal, ${percent(s*s)} noise`;
  $('level').textContent = `log SNR ${t.toFixed(1).replace('-', '−')}`;
  $('times').textContent = 'reached at time ' + Object.entries(SCHEDULES)
    .map(([name, [schedule]]) => `${timeOf(schedule, t).toFixed(2)} (${name})`).join(', ');
  plot(t);
}

const percent = (share) => `${(100*share).toFixed(share > .1 && share < .9 ? 0 : 1)} %`;

// where a time and a level lie on the canvas
const frame = () => {
  const {width, height} = $('curves'), edge = .07*width;
  return {X: (u) => edge + u*(width - 1.4*edge), Y: (l) => height/2 - l/MOST*(height/2 - edge), edge};
};

function plot(t) {
  const canvas = $('curves'), ink = canvas.getContext('2d'), ratio = sharpen(canvas, .62);
  const {X, Y, edge} = frame();
  ink.clearRect(0, 0, canvas.width, canvas.height);
  ink.font = `${12*ratio}px system-ui, sans-serif`;

  // axes
  ink.strokeStyle = colour('edge');
  ink.fillStyle = colour('quiet');
  ink.lineWidth = ratio;
  ink.textAlign = 'right';
  for (const l of [-10, -5, 0, 5, 10]) {
    line(ink, [[X(0), Y(l)], [X(1), Y(l)]]);
    ink.fillText(String(l).replace('-', '−'), X(0) - 4*ratio, Y(l) + 4*ratio);
  }
  ink.fillText('time: from clean to noise', X(1), canvas.height - .2*edge);
  ink.textAlign = 'left';
  ink.fillText('log SNR', 0, .5*edge);

  // schedules, and when each has this level
  Object.entries(SCHEDULES).forEach(([name, [schedule, shade]], k) => {
    const us = [...Array(201).keys()].map(i => Math.min(.9999, Math.max(.0005, i/200)));
    const inside = us.filter(u => Math.abs(schedule(u)) <= MOST);
    ink.strokeStyle = ink.fillStyle = colour(shade);
    ink.lineWidth = 2*ratio;
    line(ink, inside.map(u => [X(u), Y(schedule(u))]));
    ink.textAlign = 'right';
    ink.fillText(name, X(1), Y(MOST) + (1 + k)*16*ratio);
    ink.beginPath();
    ink.arc(X(timeOf(schedule, t)), Y(t), 5*ratio, 0, 7);
    ink.fill();
  });
  ink.strokeStyle = colour('text');
  ink.lineWidth = ratio;
  ink.setLineDash([4*ratio, 4*ratio]);
  line(ink, [[X(0), Y(t)], [X(1), Y(t)]]);
  ink.setLineDash([]);
}

function line(ink, places) {
  ink.beginPath();
  places.forEach(([x, y]) => ink.lineTo(x, y));
  ink.stroke();
}

// ---- what a visitor does ------------------------------------------------------------------------

function go(t) {
  $('at').value = -t;
  show();
}

function rest() {
  cancelAnimationFrame(playing);
  playing = null;
  $('play').textContent = 'Play';
}

// time runs evenly, and the schedule says which level it has
function play() {
  const [schedule] = SCHEDULES[$('clock').value];
  const from = level() <= -MOST ? 0 : timeOf(schedule, Math.min(MOST, level()));
  const began = performance.now();
  $('play').textContent = 'Pause';
  const tick = (now) => {
    const u = Math.min(1, from + Math.max(0, now - began)/1000/SECONDS);
    go(Math.max(-MOST, Math.min(MOST, schedule(u))));
    if (u >= 1 || level() <= -MOST) rest();
    else playing = requestAnimationFrame(tick);
  };
  playing = requestAnimationFrame(tick);
}

$('play').onclick = () => playing ? rest() : play();
$('at').oninput = () => {
  rest();
  show();
};

// a level can be dragged in the plot
const drag = (e) => {
  if (e.buttons !== 1) return;
  const box = $('curves').getBoundingClientRect(), {edge} = frame(), {height} = $('curves');
  const y = (e.clientY - box.top)/box.height*height;
  rest();
  go(Math.max(-MOST, Math.min(MOST, (height/2 - y)/(height/2 - edge)*MOST)));
};
$('curves').onpointerdown = (e) => {
  e.target.setPointerCapture(e.pointerId);
  drag(e);
};
$('curves').onpointermove = drag;

$('side').onchange = prepare;
$('picture').onchange = () => $('picture').value === 'own' ? $('own').click() : shipped();

async function shipped() {
  const image = Object.assign(new Image(), {src: new URL(`./${$('picture').value}.png`, import.meta.url)});
  try {
    await image.decode();
  } catch {
    return say('The picture could not be fetched: reload the page.', true);
  }
  say('');
  source = image;
  prepare();
}

async function own(file) {
  if (!file) return;
  try {
    source = await createImageBitmap(file);
  } catch {
    return say(`${file.name} is no picture that this browser reads: try a PNG or a JPEG.`, true);
  }
  say(`${file.name} stays in this page: nothing is sent.`);
  $('picture').querySelector('[value=own]').hidden = false;
  $('picture').value = 'own';
  prepare();
}

$('own').onchange = () => own($('own').files[0]);
document.ondragover = (e) => e.preventDefault();
document.ondrop = (e) => {
  e.preventDefault();
  own(e.dataTransfer.files[0]);
};

onLook(show);
await shipped();
if (calm()) go(0);
else {
  go(MOST);
  play();
}
