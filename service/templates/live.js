// Keeps the parts of an admin page up to date: each message of the stream is one part's new HTML, made by the server.
'use strict';
(() => {
  const main = document.getElementById('main');
  const page = main && main.dataset.page;
  if (!page || !window.EventSource) return;
  const state = document.getElementById('link-state');
  const news = document.getElementById('news');
  const known = new Map();
  let troubles = null;

  const nameOf = element => element.id || element.dataset.keep || (element.tagName === 'SUMMARY' ?
    'summary of ' + nameOf(element.parentElement) :
    [element.tagName, ...['name', 'value', 'href'].map(name => element.getAttribute(name))].join('|'));
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  function replace(target, html) {
    const fresh = document.createElement('template');
    fresh.innerHTML = html;
    if (fresh.innerHTML === target.innerHTML) return;
    const opened = new Map(all(target, 'details').map(each => [nameOf(each), each.open]));
    const ticked = new Set(all(target, 'input:checked').map(nameOf));
    const stops = () => all(target, 'a, button, input, summary');
    const focused = target.contains(document.activeElement) ? document.activeElement : null;
    const same = focused ? stops().filter(each => nameOf(each) === nameOf(focused)).indexOf(focused) : -1;
    target.replaceChildren(fresh.content);
    all(target, 'details').forEach(each => { if (opened.has(nameOf(each))) each.open = opened.get(nameOf(each)); });
    all(target, 'input[type=checkbox]').forEach(each => { each.checked = ticked.has(nameOf(each)); });
    if (focused) {
      const again = stops().filter(each => nameOf(each) === nameOf(focused));
      if (again.length) again[Math.min(same, again.length - 1)].focus({ preventScroll: true });
    }
  }

  const source = new EventSource('/admin/events?page=' + encodeURIComponent(page));
  source.addEventListener('part', event => {
    const part = JSON.parse(event.data);
    const target = document.getElementById('part-' + part.name);
    if (target && known.get(part.name) !== part.html) replace(target, part.html);
    known.set(part.name, part.html);
    if (troubles !== null && part.troubles !== troubles) {
      news.textContent = part.troubles ? part.troubles + ' things need somebody' : 'Nothing needs you any more';
    }
    troubles = part.troubles;
    if (document.querySelectorAll('main .live').length) {
      state.textContent = 'live';
      state.classList.add('ok');
    }
  });
  source.addEventListener('error', () => {
    state.classList.remove('ok');
    state.textContent = source.readyState === EventSource.CLOSED ? 'not live: reload the page' : 'connecting again';
  });
})();
