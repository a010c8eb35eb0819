"""Opens every page of the built site in a headless browser at a phone's width: python tools/site_check.py [_site/html] [--pages index 12_posterior]

A fault is an error in the console, a request that fails or leaves the site, a formula that is not rendered, a picture that is not there,
a link that leads nowhere, and a page wider than the screen. Needs `pip install playwright` and an installed Chromium or Chrome.
"""
import argparse, functools, shutil, sys, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOOK = r"""() => {
  const faults = [], all = (s) => [...document.querySelectorAll(s)], page = location.href.split('#')[0], wide = document.documentElement.clientWidth;
  all('mjx-merror').forEach(e => faults.push('a formula that cannot be read: ' + e.textContent.slice(0, 80)));
  all('.math').forEach(e => { if (!e.querySelector('mjx-container')) faults.push('a formula that is not rendered: ' + e.textContent.slice(0, 80)); });
  all('main .math mjx-container').forEach(e => { if (e.offsetParent && e.getBoundingClientRect().left < -1) faults.push('a formula that begins off the screen: ' + e.closest('.math').id); });
  const words = document.createTreeWalker(document.querySelector('main') || document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const e = words.currentNode.parentElement, found = words.currentNode.data.match(/\$\$|\\(tag|frac|text|mathcal|mathrm|sqrt|bar|hat|begin)\b|\]\(#?\w|\{\.\w/);
    if (found && !e.closest('pre, code, script, style, mjx-container')) faults.push('raw source in the text: ' + words.currentNode.data.slice(Math.max(0, found.index - 30), found.index + 50));
  }
  all('img').forEach(e => { if (!e.complete || !e.naturalWidth) faults.push('a picture that is not there: ' + e.src.slice(-80)); });
  if (document.documentElement.scrollWidth > wide + 1) {
    const scrolls = (e) => { for (; e && e !== document.body; e = e.parentElement) if (getComputedStyle(e).overflowX !== 'visible') return true; };
    const out = all('main *').filter(e => e.getBoundingClientRect().right > wide + 1 && !scrolls(e)).pop();
    faults.push(`wider than the screen, ${document.documentElement.scrollWidth} of ${wide} pixels: ` + (out ? out.outerHTML.slice(0, 100) : ''));
  }
  return {faults, ids: all('[id]').map(e => e.id), links: [...new Set(all('a[href]').map(e => e.href).filter(h => h.startsWith(location.origin)))]};
}"""
INK = "() => ['color', 'backgroundColor'].map(k => { const v = getComputedStyle(document.body)[k].match(/[\\d.]+/g).map(Number); return (v[0] + v[1] + v[2])/3; })"

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

def main(root, only, browser, wait):
    from playwright.sync_api import sync_playwright
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site, count, ids, links = f'http://127.0.0.1:{server.server_port}/', 0, {}, {}
    pages = sorted(
        str(p.relative_to(root)) for p in root.rglob('*.html') if '_static' not in p.parts)
    if only:
        pages = [p for p in pages if p[:-len('.html')] in only]

    def fault(page, what):
        nonlocal count
        count += 1
        print(f'{page}: {" ".join(what.split())}', flush=True)

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser)

        def context(**kw):
            c = chromium.new_context(viewport=dict(width=390, height=844), **kw)
            c.set_default_timeout(wait*1000)
            return c

        phone = context()
        for page in pages:
            tab = phone.new_page()
            tab.on('console', lambda m: m.type == 'error' and fault(page, f'console: {m.text}'))
            tab.on('pageerror', lambda e: fault(page, f'script: {e}'))
            tab.on(
                'request', lambda r: r.url.startswith(
                    (site, 'data:', 'blob:')) or fault(page, f'asks elsewhere: {r.url}'))
            tab.on('requestfailed', lambda r: fault(page, f'not loaded: {r.url}'))
            tab.on('response',
                   lambda r: r.status >= 400 and fault(page, f'status {r.status}: {r.url}'))
            tab.goto(site + page, wait_until='load')
            tab.evaluate(
                '() => window.MathJax && MathJax.startup && MathJax.startup.promise.then(() => '
                'null)'
            )
            seen = tab.evaluate(LOOK)
            for f in seen['faults']:
                fault(page, f)
            ids[page], links[page] = set(seen['ids']), seen['links']
            tab.close()
        for scheme, dark in (('light', False), ('dark', True)):
            tab = context(color_scheme=scheme).new_page()
            tab.goto(site + 'index.html')
            ink, paper = tab.evaluate(INK)
            if (paper < ink) != dark or abs(ink - paper) < 100:
                fault('index.html', f'{scheme} mode: words of brightness {ink:.0f} on {paper:.0f}')
        tab.goto(site + 'search.html?q=posterior')
        try:
            tab.wait_for_selector('#search-results li a')
        except Exception:
            fault('search.html', 'finds nothing for "posterior"')
        chromium.close()
    for page, hrefs in links.items():
        for href in hrefs:
            url = urlsplit(href)
            path, anchor = unquote(url.path).lstrip('/') or 'index.html', unquote(url.fragment)
            if not (root/path).is_file():
                fault(page, f'a link that leads nowhere: {path}')
            elif anchor and path in ids and anchor not in ids[path]:
                fault(page, f'a link to a place that is not there: {path}#{anchor}')
    print(f'{len(pages)} pages, {count} faults')
    return count > 0 or not pages

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('site', nargs='?', type=Path,
                   default=Path(__file__).resolve().parent.parent/'_site'/'html')
    p.add_argument('--pages', nargs='*', default=[], help='only these, without .html')
    p.add_argument(
        '--browser', default=next(
            filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
            None))
    p.add_argument('--wait', type=float, default=120, help='seconds that a page may take')
    a = p.parse_args()
    sys.exit(main(a.site.resolve(), a.pages, a.browser, a.wait))
