"""Plays the pages of `ddpm_lit play` in the browsers of this machine, as a visitor would.

    python tools/play_check.py [--browser chromium firefox-esr]

Each browser opens play_check.html, which opens the pages in a frame, presses their buttons, moves
their levers, types a caption, reads their canvases and sends what it found: so no driver has to be
installed, and every browser that is there can be asked. Compared with the library: "a red heart"
in 4 steps, ten guided digits, a posterior; to one byte. A fault is also an error in the console,
and a request to another host, which a header forbids.
"""
import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from ddpm_lit.cli.play import _Handler, _Server, play_files
from ddpm_lit.core.level import from_alpha_bar
from ddpm_lit.diffusion.posterior import posterior
from ddpm_lit.systems.draw import labels, sample_recipe, steering
from ddpm_lit.systems.latent import LatentRequest, paint_latent
from ddpm_lit.train.weights import load_weights

# one of each kind
KNOWN = (('chromium', 'chromium-browser', 'google-chrome'), ('firefox-esr', 'firefox'))
# what goes wrong in a page is told to the page around it
LISTEN = b'''<head><script>
  const told = (words) => parent.fault?.(words);
  addEventListener('error', (e) => told(e.message));
  addEventListener('unhandledrejection', (e) => told(String(e.reason)));
  addEventListener('securitypolicyviolation', (e) => told('asks elsewhere: ' + e.blockedURI));
  const error = console.error;
  console.error = (...words) => told(words.join(' ')) ?? error(...words);
</script>'''
OWN_HOST = ("default-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
            "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'")


def as_bytes(x):
    "Numbers in [-1, 1] as the bytes of a picture."
    return ((x + 1)*127.5 + .5).clamp(0, 255).floor().flatten().int().tolist()


def expected():
    "What the library computes."
    model, recipe = load_weights('mnist')
    drawn = sample_recipe(model, recipe, 10, labels(recipe, 10), seed=5, steps=2,
                          sampler='ddim', steer=steering(recipe, w=2.)).x
    sheet = drawn.view(2, 5, 28, 28).transpose(1, 2)  # five beside each other
    heart = paint_latent(LatentRequest(('a red heart',), steps=(4,)))[64]
    s, t = (from_alpha_bar(torch.tensor(a, dtype=torch.float64)) for a in (.7, .7*.57))
    mean, _ = posterior(torch.tensor(1.5), torch.tensor(-.2), s, t)
    return dict(digits=as_bytes(sheet), heart=as_bytes(heart), posterior=f'mean {mean:.2f} =')


class Handler(_Handler):
    "The pages, with one that plays them, and an ear for what it found."
    reports: queue.Queue = queue.Queue()
    others: dict[str, bytes] = {}

    def found(self):
        name = self.path.split('?')[0].lstrip('/')
        if name in self.others:
            return name, self.others[name]
        there = super().found()
        if there and name.endswith('.html'):
            return name, there[1].replace(b'<head>', LISTEN, 1)
        return there

    def end_headers(self):
        self.send_header('Content-Security-Policy', OWN_HOST)
        super().end_headers()

    def do_POST(self):
        self.reports.put(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
        self.send_response(204)
        self.end_headers()


def command(browser, folder, address):
    "How a browser opens an address without a screen, with nothing of its user's."
    if 'firefox' in browser:
        (folder/'user.js').write_text('user_pref("browser.shell.checkDefaultBrowser", false);\n'
                                      'user_pref("app.update.auto", false);\n')
        return [browser, '--headless', '--no-remote', '--profile', folder, address]
    return [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run',
            f'--user-data-dir={folder}', '--window-size=1400,1000', address]


def played(browser, address, wait):
    "What a browser found, or one fault that says why it found nothing."
    while not Handler.reports.empty():
        Handler.reports.get()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        run = subprocess.Popen(command(browser, Path(home), address), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | dict(HOME=home))
        try:
            return Handler.reports.get(timeout=wait)
        except queue.Empty:
            return dict(faults=[f'nothing heard in {wait:.0f} s'], found={})
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def installed():
    "The browsers of this machine, one of each kind."
    found = (next(filter(shutil.which, kind), None) for kind in KNOWN)
    return [*filter(None, found)]


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--browser', nargs='*', default=installed())
    p.add_argument('--wait', type=float, default=120, help='seconds that a browser may take')
    a = p.parse_args()
    if not a.browser:
        print('No browser is installed (Chromium, Chrome, Firefox): nothing was played.')
        return 0
    page = Path(__file__).with_suffix('.html').read_bytes()
    Handler.others = {'check.html': page, 'expected.json': json.dumps(expected()).encode()}
    play_files()
    server = _Server(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, args=(.05,), daemon=True).start()
    address = f'http://127.0.0.1:{server.server_address[1]}/check.html'

    faults = 0
    for browser in a.browser:
        began = time.perf_counter()
        heard = played(browser, address, a.wait)
        faults += len(heard['faults'])
        for fault in heard['faults']:
            print(f'{browser}: {fault}')
        if not heard['faults']:
            off = ', '.join(f'{name} {n}' for name, n in heard['found'].items())
            print(f'{browser}: all pages play, in {time.perf_counter() - began:.0f} s; '
                  f'bytes off the library: {off}')
    server.shutdown()
    return faults > 0


if __name__ == '__main__':
    sys.exit(main())
