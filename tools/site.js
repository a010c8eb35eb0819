// sliders show one frame from the start
document.addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.slider input').forEach(i => i.dispatchEvent(new Event('input')));
  document.querySelector('.bd-sidebar-primary .current.active a')?.scrollIntoView({block: 'center'});
  window.scrollTo(0, window.location.hash ? window.scrollY : 0);
});
