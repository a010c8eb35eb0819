"""A PDF of the book's main line: the built site's chapters in reading order, joined.
    python tools/pdf.py [book.pdf] [--site _site/html] [--chapters 05 12] [--proofs]

Chromium prints each page as site.css has it on paper: without what is folded, films as stills.
Links between chapters lead to pages of the PDF. Without --chapters: the front page, and the rooms
0 to 6 without cards. Needs `pip install playwright pypdf`, and an installed Chromium or Chrome.
"""
import argparse
import io
import re
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject
from site_check import FORMULAS_READY, PICTURES_READY, Quiet, installed, serve

ALL_SET = """async (proofs) => {
  document.querySelectorAll('article details').forEach(
    e => e.open = proofs && !e.matches('.hide, .checks'));
  await window.MathJax?.startup.document.lazyTypesetAll();
}"""
PAPER = '@page { size: A4; margin: 18mm 20mm 20mm; %s }'
NUMBER = PAPER % '@bottom-center { content: counter(page); font: 9pt sans-serif }'
AS_STYLED = dict(prefer_css_page_size=True, print_background=True)
EMPTY = '<p style="break-after: page">&nbsp;</p>'


class Still(Quiet):
    "Scripts within tags do not run: so films and sliders stay pictures."
    def end_headers(self):
        self.send_header('Content-Security-Policy', "script-src-attr 'none'")
        super().end_headers()


def in_order(site, chapters):
    "The pages to print, by the arrow *next* from the front page."
    name = 'index.html'
    while name and '/' not in name:
        if name[:2] in chapters or not chapters and re.match(r'index|[0-6]\d_(?!.*_card\.)', name):
            yield name
        following = r'<link rel="next" [^>]*href="([^"]*)"|$'
        name = re.search(following, (site/name).read_text(encoding='utf-8'))[1]


def printed(tab, url, proofs):
    "A page's title, and it as a PDF."
    tab.goto(url, wait_until='load')
    for script in (FORMULAS_READY, PICTURES_READY, ALL_SET):
        tab.evaluate(script, proofs)
    tab.add_style_tag(content=PAPER % '')
    title = tab.locator('h1').first.text_content().removesuffix('#').strip()
    return title, io.BytesIO(tab.pdf(**AS_STYLED))


def within(book, address, first):
    "Links between pages of the site lead to pages of the book, or nowhere."
    for page in book.pages:
        for link in [l.get_object() for l in page.get('/Annots', ())]:
            url = link.get('/A', {}).get('/URI', '')
            if url.startswith(address):
                del link['/A']
                target = first.get(urlsplit(url).path.lstrip('/') or 'index.html')
                if target is not None:
                    at = [book.pages[target].indirect_reference, NameObject('/Fit')]
                    link[NameObject('/Dest')] = ArrayObject(at)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('out', nargs='?', type=Path, default=Path('book.pdf'))
    p.add_argument('--site', type=Path, default=Path(__file__).parents[1]/'_site'/'html')
    p.add_argument('--chapters', nargs='*', default=[], help='numbers of notebooks, such as 12')
    p.add_argument('--proofs', action='store_true', help='folded proofs and answers, too')
    a = p.parse_args()

    address, book = serve(a.site.resolve(), Still), PdfWriter()
    first = {}  # page of the site -> its number in the book
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=installed())
        tab = chromium.new_page(viewport=dict(width=1000, height=1400), color_scheme='light')
        for name in in_order(a.site, a.chapters):
            first[name] = len(book.pages)
            title, pdf = printed(tab, address + name, a.proofs)
            book.append(pdf, outline_item=title, import_outline=False)
        tab.set_content(f'<style>{NUMBER}</style>{EMPTY*len(book.pages)}')
        numbers = PdfReader(io.BytesIO(tab.pdf(**AS_STYLED)))
        for page, number in zip(book.pages, numbers.pages):
            page.merge_page(number)
            page.compress_content_streams()
        chromium.close()
    within(book, address, first)
    book.compress_identical_objects()
    book.write(a.out)
    print(f'{len(book.pages)} pages, {a.out.stat().st_size/1e6:.1f} MB in {a.out}')


if __name__ == '__main__':
    main()
