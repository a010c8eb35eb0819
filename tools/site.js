// sliders show one frame from the start
document.addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.slider input').forEach(i => i.dispatchEvent(new Event('input')));
  document.querySelector('.bd-sidebar-primary .current.active a')?.scrollIntoView({block: 'center'});

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
