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

  // results of a search show words of the text, without buttons, formulas and folded code
  if (typeof Search !== 'undefined') {
    Search.htmlToText = (html) => {
      const article = parsed(html).querySelector('article.bd-article');
      article?.querySelectorAll('.math, .headerlink, details.hide, script, style').forEach(e => e.remove());
      return article ? article.textContent : '';
    };
  }

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
