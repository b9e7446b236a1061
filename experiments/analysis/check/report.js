// Measures the page it runs in for check: what overflows, is empty, faint, nameless or leads somewhere.
(() => {
  const seen = (e) => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const name = (e) => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') +
    (e.classList && e.classList.length ? '.' + [...e.classList].join('.') : '');
  const scrolls = (e) => {
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) {
      const x = getComputedStyle(p).overflowX;
      if (x === 'auto' || x === 'scroll' || x === 'hidden' || x === 'clip') return true;
    }
    return false;
  };
  const width = document.documentElement.clientWidth;
  const overflow = [...document.body.querySelectorAll('*')]
    .filter((e) => seen(e) && e.getBoundingClientRect().right > width + 1 && !scrolls(e)).map(name);
  const images = [...document.images].filter((i) => !(i.complete && i.naturalWidth > 0))
    .map((i) => i.getAttribute('src').slice(0, 80));
  const figures = [...document.querySelectorAll('svg')]
    .filter((s) => !seen(s) && !s.closest('details:not([open])') && getComputedStyle(s.parentElement).display !== 'none')
    .map(name);
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  const twice = [...new Set(ids.filter((id, i) => ids.indexOf(id) !== i))];
  const links = [...document.querySelectorAll('a[href]')].map((a) => [a.getAttribute('href'), a.href]);
  const levels = [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map((h) => [Number(h.tagName[1]), h.textContent]);
  const jumps = levels.filter((h, i) => i && h[0] > levels[i - 1][0] + 1).map((h) => h[1].trim());
  const bare = 'img:not([alt]), svg:not([aria-label]):not([aria-labelledby]):not([aria-hidden])';
  const nameless = [...document.querySelectorAll(bare)].map(name);
  const headless = [...document.querySelectorAll('table')]
    .filter((t) => !t.caption || [...t.querySelectorAll('th')].some((h) => !h.scope)).map(name);

  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  canvas.canvas.width = canvas.canvas.height = 1;
  const known = new Map();
  const colour = (text) => {
    if (!known.has(text)) {
      canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
      known.set(text, [...canvas.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(text);
  };
  const over = (top, below) => {
    const a = top[3] / 255;
    return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)).concat(255);
  };
  const behind = (e) => {
    const layers = [];
    for (let p = e; p; p = p.parentElement) layers.push(colour(getComputedStyle(p).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), colour(getComputedStyle(document.documentElement)
      .colorScheme.includes('dark') && matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#ffffff'));
  };
  const light = (c) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = new Map(), tiny = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !seen(e) || e.closest('script, style, title, desc')) continue;
    const style = getComputedStyle(e), drawing = e.closest('svg');
    let size = parseFloat(style.fontSize);
    if (drawing) {
      const m = e.getScreenCTM ? e.getScreenCTM() : null;
      size *= m ? Math.hypot(m.a, m.b) : 1;
    }
    if (size < LEAST_TEXT) tiny.add(size.toFixed(1) + ' px: ' + node.data.trim().slice(0, 30));
    const back = behind(drawing ? drawing.parentElement : e);
    const [a, b] = [light(over(colour(drawing ? style.fill : style.color), back)), light(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const bold = Number(style.fontWeight) >= 700;
    if (ratio < (size >= 24 || (bold && size >= 18.66) ? 3 : 4.5) - 0.01)
      faint.set(name(e), ratio.toFixed(2) + ': ' + node.data.trim().slice(0, 30));
  }
  return {
    width, inner: innerWidth, scroll: document.documentElement.scrollWidth, overflow, images, figures, twice, links,
    jumps, nameless, headless, ids, faint: [...faint].map((f) => f.join(' ')), tiny: [...tiny],
    h1: levels.filter((h) => h[0] === 1).length, lang: document.documentElement.lang, title: document.title,
  };
})()
