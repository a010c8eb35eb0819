"""Opens every page of the built site in a headless browser at a phone's width.

    python tools/site_check.py [_site/html] [--pages index 12_posterior] [--wide] [--table]

A fault is an error in the console, a request that fails or leaves the site, a formula that is not
rendered, a picture that is not there, a link that leads nowhere, and a page wider than the screen.
With --wide, each page is also laid out at 1400 pixels, and an equation wider than its column is a
fault; that takes about as long again. With --table, a table of measures with their targets follows:
chapters at 390 and 1400 pixels with all that folds unfolded, a first visit with text sent as gzip,
and the same over slow 4G (1.6 Mbit/s, 150 ms). `--axe axe.min.js`, of npm's axe-core, adds a row.
Needs `pip install playwright` and an installed Chromium or Chrome.
"""
import argparse
import functools
import gzip
import re
import shutil
import statistics
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

FORMULAS_READY = """async () => {
  while (window.MathJax && !MathJax.startup?.document) {
    await new Promise(done => setTimeout(done, 20));
  }
  if (window.MathJax) await MathJax.startup.promise;
}"""
# pictures load when they are near: here all of them
PICTURES_READY = """() => Promise.all([...document.images].map(i => {
  i.loading = 'eager';
  return i.decode().catch(() => null);
})).then(() => null)"""


# what the table counts on a page, as it lies there and then with all that folds unfolded
MEASURE = """async () => {
  const all = (s) => [...document.querySelectorAll('article ' + s)];
  const screens = (e) => e ? (e.getBoundingClientRect().top + scrollY)/innerHeight : 99;
  const middle = (e) => e ? screens(e) + e.getBoundingClientRect().height/2/innerHeight : 99;
  const first = all('div.cell_output img, .film')[0];
  const found = {figure: middle(first), moves: screens(all('.film, .playing')[0])};

  for (const e of all('details')) e.open = true;
  if (window.MathJax) await MathJax.startup.document.lazyTypesetAll();
  await document.fonts.ready;
  await new Promise(done => setTimeout(done, 100));
  const wider = (e) => e.scrollWidth > e.clientWidth + 1;
  const maths = all('div.math').filter(e => e.offsetParent);
  found.equations = maths.length;
  found.cut = maths.filter(e => [e, ...e.querySelectorAll('mjx-container')].some(wider)).length;

  // a film is made of its own pixels
  const still = all('img').filter(i => i.clientWidth && !i.closest('.film') && i.naturalWidth);
  found.pictures = still.map(i => i.naturalWidth/i.clientWidth);
  return found;
}"""
# milliseconds to the first paint, and until everything on the page answers
TIMES = """() => {
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  const page = performance.getEntriesByType('navigation')[0];
  return [paint.startTime, page.domContentLoadedEventEnd];
}"""
PLAYING = ('index', '01', '05', '11', '12', '13', '14', '25', '32', '41', '60', '67')
HEAVY = ('index', '05_evening', '12_posterior', '60_glide')
TEXT = ('.html', '.css', '.js', '.svg', '.json', '.txt')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Packing(Quiet):
    "Sends text as GitHub's pages are sent, in gzip."
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.suffix not in TEXT or not path.is_file():
            return super().do_GET()
        packed = gzip.compress(path.read_bytes(), 6)
        self.send_response(200)
        for name, value in (('Content-Type', self.guess_type(str(path))),
                            ('Content-Encoding', 'gzip'), ('Content-Length', len(packed))):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(packed)


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
    tab.close()
    if wide:
        tab = phone.new_page()
        tab.set_viewport_size(dict(width=1400, height=900))
        tab.goto(site + page, wait_until='load')
        tab.evaluate(FORMULAS_READY)
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


def check_play(context, root, site, fault):
    "Each button that plays opens its page in place; what moves moves, and follows the theme."
    for path in sorted(root.glob('*.html')):
        if 'class="playing"' not in path.read_text(encoding='utf-8'):
            continue
        tab = context().new_page()
        listen(tab, path.name, site, fault)
        tab.goto(site + path.name)
        link = tab.locator('.playing p.play a').first
        if not link.count():
            tab.close()
            continue
        if link.bounding_box()['y'] > 2*844:
            fault(path.name, 'what plays is not on the first two screens')
        if tab.locator('.playing[data-auto]').count():
            link.scroll_into_view_if_needed()  # it begins by itself
        else:
            link.click()
        frame = tab.frame_locator('.playing iframe').first
        frame.locator('#play').wait_for()
        inside = tab.frames[1]
        inside.wait_for_function('document.documentElement.dataset.theme')
        tall = tab.locator('.playing iframe').first.bounding_box()['height']
        if inside.evaluate('document.documentElement.scrollHeight') > tall + 1:
            fault(path.name, 'what plays is cut')
        if inside.evaluate('document.documentElement.scrollWidth') > 390:
            fault(path.name, 'what plays is wider than the screen')
        if 'points.html' in inside.url:  # draw with the mouse
            frame.locator('canvas#plane').hover()
            tab.mouse.down()
            tab.mouse.move(200, 400, steps=5)
            tab.mouse.up()
            if frame.locator('#shape').input_value() != 'none':
                fault(path.name, 'drawing draws no points')
        tab.close()


def installed():
    "The browser of this machine; None if there is none."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return next(filter(None, map(shutil.which, names)), None)


def serve(root, handler):
    "The address of a server of this folder."
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(handler, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}/'


def measured(context, site, pages, width, height):
    "MEASURE of each page, in a window of this size."
    found = {}
    for page in pages:
        tab = context(viewport=dict(width=width, height=height)).new_page()
        tab.goto(site + page, wait_until='load')
        tab.evaluate(FORMULAS_READY)
        tab.evaluate(PICTURES_READY)
        found[page] = tab.evaluate(MEASURE)
        tab.context.close()
    return found


def first_visit(context, site, page, slow):
    "Bytes, seconds to the first paint, seconds until all answers, for who comes the first time."
    tab = context().new_page()
    wire = tab.context.new_cdp_session(tab)
    wire.send('Network.enable')
    if slow:
        wire.send('Network.emulateNetworkConditions', dict(
            offline=False, latency=150, downloadThroughput=200_000, uploadThroughput=94_000))
    sent = []
    wire.on('Network.loadingFinished', lambda e: sent.append(e['encodedDataLength']))
    tab.goto(site + page, wait_until='networkidle')
    paint, ready = tab.evaluate(TIMES)
    tab.context.close()
    return sum(sent), paint/1000, ready/1000


def violations(context, site, pages, axe):
    "What axe-core finds, in light and in dark mode: rules of WCAG 2 A and AA, and good practice."
    found = []
    for page in pages:
        for scheme in ('light', 'dark'):
            tab = context(color_scheme=scheme).new_page()
            tab.goto(site + page, wait_until='load')
            tab.evaluate(FORMULAS_READY)
            tab.evaluate(axe.read_text(encoding='utf-8'))
            rules = tab.evaluate('async () => (await axe.run()).violations.map(v => v.id)')
            found += [f'{page} {scheme}: {rule}' for rule in rules]
            tab.context.close()
    return found


def print_table(context, root, axe=None):
    "Measures of the chapters beside their targets."
    site, packed = serve(root, Quiet), serve(root, Packing)
    chapters = sorted(p.name for p in root.glob('*.html') if re.match(r'\d\d_', p.name))
    phone = measured(context, site, ['index.html', *chapters], 390, 844)
    desk = measured(context, site, ['index.html', *chapters], 1400, 1000)

    rows = []
    for name, seen, at_least in (('1400 × 1000', desk, 60), ('390 × 844', phone, 40)):
        there = sum(seen[page]['figure'] < 1 for page in chapters)
        rows.append((f'middle of the first figure in the first screen, {name}',
                     f'{there} of {len(chapters)}', f'>= {at_least}', there >= at_least))
    alive = [page for page in phone if page.startswith(PLAYING) and '_card' not in page]
    still = [page for page in alive if max(phone[page]['moves'], desk[page]['moves']) >= 2]
    rows.append(('chapters with something that moves in the first two screens, both widths',
                 f'{len(alive) - len(still)} of {len(alive)} {" ".join(still)}', 'all', not still))
    for name, seen, share in (('390', phone, .03), ('1400', desk, 0.)):
        n, cut = (sum(m[k] for m in seen.values()) for k in ('equations', 'cut'))
        worst = sorted(seen, key=lambda page: -seen[page]['cut'])[:6*bool(cut)]
        where = ', '.join(f'{page[:2]} {seen[page]["cut"]}' for page in worst if seen[page]['cut'])
        rows.append((f'equations cut at {name} px', f'{cut} of {n} = {cut/n:.1%} ({where})',
                     f'<= {share:.0%}', cut <= share*n))
    pixels = [p for m in desk.values() for p in m['pictures']]
    sharp = sum(p >= 1.99 for p in pixels)
    few = {page: min(m['pictures']) for page, m in desk.items() if m['pictures']}
    worst = ', '.join(f'{page[:2]} {few[page]:.2f}' for page in sorted(few, key=few.get)[:6])
    rows.append(('pictures with two pixels for one at 1400 px',
                 f'{sharp} of {len(pixels)}, median {statistics.median(pixels):.2f}; least {worst}',
                 'all', sharp == len(pixels)))

    for stem in HEAVY:
        size, *_ = first_visit(context, packed, f'{stem}.html', False)
        _, paint, ready = first_visit(context, packed, f'{stem}.html', True)
        rows += [(f'{stem}: sent to a first visitor, not scrolled', f'{size/1e6:.2f} MB',
                  '<= 0.5 MB', size <= 5e5),
                 (f'{stem}: slow 4G, first paint', f'{paint:.1f} s', '<= 1.5 s', paint <= 1.5),
                 (f'{stem}: slow 4G, usable', f'{ready:.1f} s', '<= 3.5 s', ready <= 3.5)]
    if axe:
        bad = violations(context, site, [f'{stem}.html' for stem in HEAVY], axe)
        rows.append((f'violations by axe-core, {len(HEAVY)} pages, light and dark',
                     '; '.join([str(len(bad)), *bad]), '0', not bad))
    for what, found, target, met in rows:
        print(f'{"met   " if met else "missed"} {what:76} {target:>9}  {found}')


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


def check(root, only, browser, wait, wide=False, table=False, axe=None):
    "Check the site in this folder; True if something is wrong."
    from playwright.sync_api import sync_playwright
    site = serve(root, Quiet)

    found = [p.relative_to(root) for p in root.rglob('*.html') if '_static' not in p.parts]
    pages = sorted(map(str, found))
    if only:
        pages = [p for p in pages if p.removesuffix('.html') in only]

    fault = Faults()
    ids, links = {}, {}
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser)

        def context(**kw):
            c = chromium.new_context(**dict(viewport=dict(width=390, height=844)) | kw)
            c.set_default_timeout(wait*1000)
            return c

        phone = context()
        for page in pages:
            ids[page], links[page] = look_at(phone, page, site, fault, wide)
        check_modes(context, site, fault)
        check_search(context(), site, fault)
        if not only:
            check_play(context, root, site, fault)
        if table:
            print_table(context, root, axe)
        chromium.close()
    check_links(root, ids, links, fault)
    print(f'{len(pages)} pages, {fault.count} faults')
    return fault.count > 0 or not pages


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    built = Path(__file__).resolve().parent.parent/'_site'/'html'
    p.add_argument('site', nargs='?', type=Path, default=built)
    p.add_argument('--pages', nargs='*', default=[], help='only these, without .html')
    p.add_argument('--browser', default=installed())
    p.add_argument('--wait', type=float, default=120, help='seconds that a page may take')
    p.add_argument('--wide', action='store_true', help='equations at 1400 pixels, too')
    p.add_argument('--table', action='store_true', help='measures with their targets')
    p.add_argument('--axe', type=Path, help='axe.min.js, for a row of the table')
    a = p.parse_args()
    return check(a.site.resolve(), a.pages, a.browser, a.wait, a.wide, a.table, a.axe)


if __name__ == '__main__':
    sys.exit(main())
