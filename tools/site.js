const parsed = (html) => new DOMParser().parseFromString(html, 'text/html');

// the equation that a link leads to, in a card beside the link; each page is read once
const pages = {};
let shown = null;  // the link whose equation is shown, or is to be

async function preview(link) {
  shown = link;
  const url = new URL(link.href);
  const page = url.origin + url.pathname;
  pages[page] ??= fetch(page).then(answer => answer.text()).then(parsed);
  const equation = (await pages[page].catch(() => null))?.getElementById(url.hash.slice(1));
  if (!equation || shown !== link) return;

  const card = document.createElement('div');
  card.className = 'preview math';
  card.setAttribute('role', 'tooltip');
  card.textContent = equation.textContent;
  document.querySelector('.preview')?.remove();
  document.body.append(card);
  await MathJax.typesetPromise([card]);
  const at = link.getBoundingClientRect();
  const room = document.documentElement.clientWidth - card.offsetWidth - 8;
  card.style.left = `${Math.max(8, Math.min(at.left, room))}px`;
  const below = at.bottom + 6 + card.offsetHeight < window.innerHeight;
  card.style.top = `${below ? at.bottom + 6 : at.top - card.offsetHeight - 6}px`;
  card.style.visibility = 'visible';
}

function endPreview() {
  shown = null;
  document.querySelector('.preview')?.remove();
}

// what plays opens where its link stands, as high as it is, in the colours of the page
function openPlay(link) {
  const frame = document.createElement('iframe'), url = new URL(link.href);
  url.searchParams.append('embed', '');
  frame.title = link.textContent;
  frame.src = url;
  const paint = () => frame.contentDocument?.documentElement.setAttribute('data-theme', document.documentElement.dataset.theme);
  frame.onload = () => {
    const inside = frame.contentDocument.body;
    new ResizeObserver(() => frame.style.height = `${Math.ceil(inside.getBoundingClientRect().height)}px`).observe(inside);
    paint();
  };
  new MutationObserver(paint).observe(document.documentElement, {attributeFilter: ['data-theme']});
  const row = link.closest('p.play');
  row.classList.add('open');
  row.after(frame);
  link.textContent = 'on a page of its own';
  link.onclick = null;
  return frame;
}

// on a phone formulas are set in shorter lines; what is still too wide is set smaller
if (window.MathJax) MathJax.startup = {pageReady: () => {
  if (matchMedia('(max-width: 600px)').matches) {
    document.querySelectorAll('div.math[data-narrow]').forEach(e => e.textContent = `\\[${e.dataset.narrow}\\]`);
  }
  new MutationObserver((changes) => {
    const set = changes.flatMap(c => [...c.addedNodes]).map(e => e.parentElement?.closest('article div.math'));
    new Set(set).forEach(e => e && fit(e));
  }).observe(document.querySelector('article'), {childList: true, subtree: true});
  document.fonts.addEventListener('loadingdone', () => document.querySelectorAll('article div.math').forEach(fit));
  return MathJax.startup.defaultPageReady();
}};

function fit(formula) {
  formula.style.fontSize = '';
  const boxes = [formula, ...formula.querySelectorAll('mjx-container')];
  const beyond = Math.max(...boxes.map(e => e.clientWidth ? e.scrollWidth/e.clientWidth : 1));
  if (beyond > 1) formula.style.fontSize = `${Math.max(.6, .98/beyond)*100}%`;
}

// the index of all words, 200 kB, is read when somebody searches; its own Search replaces this one
const base = new URL('..', document.currentScript.src);
let index = null;
const read = (file) => new Promise((done, failed) => document.head.append(
  Object.assign(document.createElement('script'), {src: new URL(file, base), onload: done, onerror: failed})));
async function readIndex() {
  for (const file of ['_static/searchtools.js', '_static/language_data.js', 'searchindex.js']) await read(file);
  showWords();
}
window.Search = {performSearch: async (words) => {
  await (index ??= readIndex());
  Search.performSearch(words);
}};

// results of a search show words of the text, without buttons, formulas and folded code
function showWords() {
  Search.htmlToText = (html) => {
    const article = parsed(html).querySelector('article.bd-article');
    article?.querySelectorAll('.math, .headerlink, details.hide, script, style').forEach(e => e.remove());
    return article ? article.textContent : '';
  };
}

// sliders show one frame from the start
document.addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.slider input').forEach(i => i.dispatchEvent(new Event('input')));

  // at the side one room is open, the one that is read; the others unfold at a click on their names
  document.querySelectorAll('.bd-sidebar-primary p.caption').forEach(room => {
    const chapters = room.nextElementSibling;
    const button = document.createElement('button');
    const show = (open) => {
      chapters.hidden = !open;
      button.setAttribute('aria-expanded', open);
    };
    button.className = 'room';
    button.append(...room.childNodes);
    button.onclick = () => show(chapters.hidden);
    room.append(button);
    show(chapters.querySelector('.current') !== null);
  });
  document.querySelector('.bd-sidebar-primary .current.active a')?.scrollIntoView({block: 'nearest'});

  // a click opens what plays; on the front page it begins when it is near, unless motion is not wanted
  document.querySelectorAll('p.play a').forEach(link => {
    link.onclick = (e) => {
      if (e.ctrlKey || e.metaKey || e.shiftKey) return;
      e.preventDefault();
      openPlay(link).focus();
    };
  });
  const alive = document.querySelector('.playing[data-auto] p.play a');
  if (alive && !matchMedia('(prefers-reduced-motion: reduce)').matches) {
    const near = new IntersectionObserver(([seen]) => {
      if (!seen.isIntersecting) return;
      near.disconnect();
      openPlay(alive);
    });
    near.observe(alive);
  }

  // where a mouse rests on the number of an equation, or the keyboard reaches it, the equation appears
  if (window.matchMedia('(hover: hover)').matches) {
    document.querySelectorAll('article a[href*="#eq-"]').forEach(link => {
      link.addEventListener('mouseenter', () => preview(link));
      link.addEventListener('focus', () => preview(link));
      link.addEventListener('mouseleave', endPreview);
      link.addEventListener('blur', endPreview);
    });
    window.addEventListener('scroll', endPreview, {passive: true});
  }

  showWords();
  document.addEventListener('focusin', (e) => {
    if (e.target.matches('#pst-search-dialog input')) index ??= readIndex();
  });

  // on a phone a touch enlarges a figure (site.css)
  document.querySelectorAll('article div.cell_output img').forEach(i => {
    i.addEventListener('click', () => i.classList.toggle('large'));
  });

  // a switch that unfolds all code of a page, and remembers it for the next one
  const folds = [...document.querySelectorAll('article details.hide')];
  if (folds.length > 3) {
    const button = document.createElement('button');
    const show = (all) => {
      folds.forEach(f => f.open = all);
      button.textContent = all ? 'fold the code' : 'show all code';
      button.setAttribute('aria-pressed', all);
    };
    let all = localStorage.getItem('all-code') === 'yes';
    button.className = 'unfold';
    button.onclick = () => {
      all = !all;
      localStorage.setItem('all-code', all ? 'yes' : 'no');
      show(all);
    };
    show(all);
    document.querySelector('article').prepend(button);
  }

  window.scrollTo(0, window.location.hash ? window.scrollY : 0);
});
