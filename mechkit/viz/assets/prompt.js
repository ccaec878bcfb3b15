(() => {
'use strict';
const { features } = JSON.parse(document.getElementById('payload').textContent);
const spans = [...document.querySelectorAll('.prompt .t')];
const buttons = [...document.querySelectorAll('button[data-feature]')];
const plain = spans.map((span) => span.className.replace(/\s*\b[pn]\d+\b/g, ''));

const show = (id) => {
  const chosen = features[id];
  if (!chosen) return;
  spans.forEach((span, i) => {
    span.className = `${plain[i]} ${chosen.shades[i]}`;
    span.title = chosen.titles[i];
  });
  document.getElementById('chosen').textContent = chosen.name;
  document.getElementById('chosen-most').textContent = chosen.most;
  buttons.forEach((button) => button.setAttribute('aria-pressed', String(button.dataset.feature === id)));
};

buttons.forEach((button) => button.addEventListener('click', () => {
  show(button.dataset.feature);
  history.replaceState(null, '', `#feature=${button.dataset.feature}`);
}));
const fromHash = () => show(/^#feature=(\d+)$/.exec(location.hash)?.[1]);
addEventListener('hashchange', fromHash);
show(document.querySelector('.list button')?.dataset.feature);
fromHash();
document.documentElement.dataset.ready = 'true';
})();
