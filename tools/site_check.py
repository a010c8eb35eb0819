"""Opens every page of the built site in a headless browser at a phone's width.

    python tools/site_check.py [_site/html] [--pages index 12_posterior] [--wide]

A fault is an error in the console, a request that fails or leaves the site, a formula that is not
rendered, a picture that is not there, a link that leads nowhere, and a page wider than the screen.
With --wide, each page is also laid out at 1400 pixels, and an equation wider than its column is a
fault; that takes about as long again.
Needs `pip install playwright` and an installed Chromium or Chrome.
"""
import argparse
import functools
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# the faults of a page, its targets, and its links within the site
LOOK = r"""() => {
  const faults = [];
  const all = (s) => [...document.querySelectorAll(s)];
  const wide = document.documentElement.clientWidth;

  if (/[\\$]/.test(document.title)) faults.push('a formula in the title: ' + document.title);
  for (const e of all('mjx-merror')) {
    faults.push('a formula that cannot be read: ' + e.textContent.slice(0, 80));
  }
  for (const e of all('.math')) {
    if (e.querySelector('mjx-container')) continue;
    faults.push('a formula that is not rendered: ' + e.textContent.slice(0, 80));
  }
  for (const e of all('main .math mjx-container')) {
    if (e.offsetParent && e.getBoundingClientRect().left < -1) {
      faults.push('a formula that begins off the screen: ' + e.closest('.math').id);
    }
  }

  const raw = /\$\$|\\(tag|frac|text|mathcal|mathrm|sqrt|bar|hat|begin)\b|\]\(#?\w|\{\.\w/;
  const main = document.querySelector('main') || document.body;
  const words = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const text = words.currentNode.data, found = text.match(raw);
    const source = words.currentNode.parentElement.closest(
      'pre, code, script, style, mjx-container');
    if (found && !source) {
      const around = text.slice(Math.max(0, found.index - 30), found.index + 50);
      faults.push('raw source in the text: ' + around);
    }
  }

  for (const e of all('img')) {
    if (e.complete && e.naturalWidth) continue;
    faults.push('a picture that is not there: ' + e.src.slice(-80));
  }

  const full = document.documentElement.scrollWidth;
  if (full > wide + 1) {
    const scrolls = (e) => {
      for (; e && e !== document.body; e = e.parentElement) {
        if (getComputedStyle(e).overflowX !== 'visible') return true;
      }
    };
    const beyond = (e) => e.getBoundingClientRect().right > wide + 1;
    const out = all('main *').filter(e => beyond(e) && !scrolls(e)).pop();
    const what = out ? out.outerHTML.slice(0, 100) : '';
    faults.push(`wider than the screen, ${full} of ${wide} pixels: ` + what);
  }

  const inside = all('a[href]').map(e => e.href).filter(h => h.startsWith(location.origin));
  return {faults, ids: all('[id]').map(e => e.id), links: [...new Set(inside)]};
}"""

# the equations that are wider than their column, all of them set
WIDER = """async () => {
  if (!window.MathJax) return [];
  await MathJax.startup.document.lazyTypesetAll();
  const wider = (e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1;
  const all = [...document.querySelectorAll('main div.math')];
  return all.filter(e => wider(e) || [...e.querySelectorAll('mjx-container')].some(wider))
    .map(e => e.id || e.previousElementSibling?.textContent.slice(-60) || '');
}"""

# the brightness of words and of paper
INK = r"""() => ['color', 'backgroundColor'].map(k => {
  const v = getComputedStyle(document.body)[k].match(/[\d.]+/g).map(Number);
  return (v[0] + v[1] + v[2])/3;
})"""

FORMULAS_READY = """() => window.MathJax && MathJax.startup
  && MathJax.startup.promise.then(() => null)"""
# pictures load when they are near: here all of them
PICTURES_READY = """() => Promise.all([...document.images].map(i => {
  i.loading = 'eager';
  return i.decode().catch(() => null);
})).then(() => null)"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Faults:
    "Prints and counts what is wrong."

    def __init__(self):
        self.count = 0

    def __call__(self, page, what):
        self.count += 1
        print(f'{page}: {" ".join(what.split())}', flush=True)


def listen(tab, page, site, fault):
    "Errors of the console, and requests that fail or leave the site."
    def console(m):
        if m.type == 'error':
            fault(page, f'console: {m.text}')

    def request(r):
        if not r.url.startswith((site, 'data:', 'blob:')):
            fault(page, f'asks elsewhere: {r.url}')

    def response(r):
        if r.status >= 400:
            fault(page, f'status {r.status}: {r.url}')

    tab.on('console', console)
    tab.on('pageerror', lambda e: fault(page, f'script: {e}'))
    tab.on('request', request)
    tab.on('requestfailed', lambda r: fault(page, f'not loaded: {r.url}'))
    tab.on('response', response)


def look_at(phone, page, site, fault, wide=False):
    "One page: its targets and its links; if `wide`, also its equations at 1400 pixels."
    tab = phone.new_page()
    listen(tab, page, site, fault)
    tab.goto(site + page, wait_until='load')
    tab.evaluate(FORMULAS_READY)
    tab.evaluate(PICTURES_READY)
    seen = tab.evaluate(LOOK)
    if wide:
        tab.set_viewport_size(dict(width=1400, height=900))
        for equation in tab.evaluate(WIDER):
            fault(page, f'an equation wider than its column: {equation}')
    tab.close()
    for f in seen['faults']:
        fault(page, f)
    return set(seen['ids']), seen['links']


def check_modes(context, site, fault):
    "Words stand out from the paper, in light and in dark mode."
    for scheme in ('light', 'dark'):
        tab = context(color_scheme=scheme).new_page()
        tab.goto(site + 'index.html')
        ink, paper = tab.evaluate(INK)
        if (paper < ink) != (scheme == 'dark') or abs(ink - paper) < 100:
            fault('index.html', f'{scheme} mode: words of brightness {ink:.0f} on {paper:.0f}')


def check_search(phone, site, fault):
    tab = phone.new_page()
    tab.goto(site + 'search.html?q=posterior')
    try:
        tab.wait_for_selector('#search-results li a')
    except Exception:
        fault('search.html', 'finds nothing for "posterior"')


def check_links(root, ids, links, fault):
    "Every link leads to a file and to a target that exist."
    for page, hrefs in links.items():
        for href in hrefs:
            url = urlsplit(href)
            path = unquote(url.path).lstrip('/') or 'index.html'
            anchor = unquote(url.fragment)
            if not (root/path).is_file():
                fault(page, f'a link that leads nowhere: {path}')
            elif anchor and path in ids and anchor not in ids[path]:
                fault(page, f'a link to a place that is not there: {path}#{anchor}')


def check(root, only, browser, wait, wide=False):
    "Check the site in this folder; True if something is wrong."
    from playwright.sync_api import sync_playwright
    handler = functools.partial(Quiet, directory=str(root))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f'http://127.0.0.1:{server.server_port}/'

    found = [p.relative_to(root) for p in root.rglob('*.html') if '_static' not in p.parts]
    pages = sorted(map(str, found))
    if only:
        pages = [p for p in pages if p.removesuffix('.html') in only]

    fault = Faults()
    ids, links = {}, {}
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser)

        def context(**kw):
            c = chromium.new_context(viewport=dict(width=390, height=844), **kw)
            c.set_default_timeout(wait*1000)
            return c

        phone = context()
        for page in pages:
            ids[page], links[page] = look_at(phone, page, site, fault, wide)
        check_modes(context, site, fault)
        check_search(context(), site, fault)
        chromium.close()
    check_links(root, ids, links, fault)
    print(f'{len(pages)} pages, {fault.count} faults')
    return fault.count > 0 or not pages


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    built = Path(__file__).resolve().parent.parent/'_site'/'html'
    browsers = filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))
    p.add_argument('site', nargs='?', type=Path, default=built)
    p.add_argument('--pages', nargs='*', default=[], help='only these, without .html')
    p.add_argument('--browser', default=next(browsers, None))
    p.add_argument('--wait', type=float, default=120, help='seconds that a page may take')
    p.add_argument('--wide', action='store_true', help='equations at 1400 pixels, too')
    a = p.parse_args()
    return check(a.site.resolve(), a.pages, a.browser, a.wait, a.wide)


if __name__ == '__main__':
    sys.exit(main())
