// Texts that lie on each other, leave their panel or are hard to read: as JSON in the element "found". For the tests only.
addEventListener('load', () => setTimeout(() => {
  for (const details of document.querySelectorAll('details')) details.open = true;
  const rgb = c => (c.match(/[0-9.]+/g) || [0, 0, 0]).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => { v /= 255; return v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c && !/, 0\)/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const shown = [...document.querySelectorAll('h1,h2,h3,p,td,th,summary,pre,.legend .chip,svg text')]
    .filter(e => e.textContent.trim() && e.getBoundingClientRect().width > 0);
  const boxes = shown.map(e => e.getBoundingClientRect()), overlaps = [], faint = [], outside = [];
  for (let i = 0; i < shown.length; i++) {
    for (let j = i + 1; j < shown.length; j++) {
      if (shown[i].contains(shown[j]) || shown[j].contains(shown[i])) continue;
      const a = boxes[i], b = boxes[j];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1.5 && y > 1.5) overlaps.push(shown[i].textContent.slice(0, 30) + ' | ' + shown[j].textContent.slice(0, 30));
    }
    const svg = shown[i].tagName === 'text', style = getComputedStyle(shown[i]);
    const one = light(svg ? style.fill : style.color), two = light(behind(shown[i]));
    if ((Math.max(one, two) + .05) / (Math.min(one, two) + .05) < 4.5) faint.push(shown[i].textContent.slice(0, 30));
    const panel = shown[i].closest('.panel');
    if (panel && (boxes[i].right > panel.getBoundingClientRect().right + 1)) outside.push(shown[i].textContent.slice(0, 30));
  }
  for (const plot of document.querySelectorAll('.panel svg')) {
    if (plot.getBoundingClientRect().right > plot.closest('.panel').getBoundingClientRect().right + 1) outside.push('svg');
  }
  const found = { faults, overlaps, faint, outside, hacked: window.hacked || 0, texts: shown.length,
    plots: document.querySelectorAll('.js-plotly-plot .main-svg').length, dark: matchMedia('(prefers-color-scheme: dark)').matches,
    lines: document.querySelectorAll('.scatterlayer .js-line').length,
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth };
  const pre = document.createElement('pre'); pre.id = 'found'; pre.textContent = JSON.stringify(found);
  document.body.append(pre);
}, 300));
