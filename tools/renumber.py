r"""Numbers the equations of each notebook in the order of its page, and every reference to them.

    python tools/renumber.py            show what would change, and what was left for a look
    python tools/renumber.py --write    change it in notebooks, tools, play pages, nbs/equations.txt

A reference is a number after `Eq.` or in brackets, the first column of a table, or a number in
quotes; several stand with commas, dashes or words between. Numbers of figures and tables stay as
they are. A number of an equation in any other place may be a quantity: it is listed, not changed.
Afterwards `python tools/nb.py export`, and run the notebooks whose figures name equations.
"""
import argparse
import json
import re
import subprocess
import sys

from book import book
from equations import LEDGER, order, page
from nb import read, replace, root, text

NUMBER = r'\d\d\.\d{1,2}'
BETWEEN = r"(?:, and |, | and | or | to |[-–]|\),? (?:and |or |to )?\(|', ')"
SEVERAL = re.compile(rf'(?<![\w.,/=<>+*]){NUMBER}(?:{BETWEEN}{NUMBER})*(?!\.?\d| ?%|[a-zA-Z])')
REFERENCE = re.compile(r"(Eqs?\. |(?<!\w)\(|\| |\\tag\{|'|[Ee]quations? )$")
OTHER = re.compile(r'(Figures?|Tables?|Exercise|[Ss]ec\.|[Ss]ection) [\d., –and-]*$')


known = {number for nb in book for number in page(nb)}
moved = {old: new for nb in book
         for old, new in zip(page(nb), sorted(page(nb), key=order)) if old != new}


def between(a: str, b: str) -> list[str]:
    "All numbers from a to b."
    return [n for n in sorted(known, key=order) if order(a) <= order(n) <= order(b)]


def joined(numbers: list[str], dash: str) -> str:
    "Numbers in order, three or more in a row as a range."
    places = {n: i for i, n in enumerate(sorted(known, key=order))}
    rows: list[list[str]] = []
    for n in sorted({*numbers}, key=places.get):
        after = rows and rows[-1][-1][:2] == n[:2] and places[rows[-1][-1]] + 1 == places[n]
        rows[-1].append(n) if after else rows.append([n])
    return ', '.join(f'{row[0]}{dash}{row[-1]}' if len(row) > 2 else ', '.join(row)
                     for row in rows)


def renumbered(several: str) -> str:
    "Several numbers as they stand in a text, with the new ones in their place."
    dash = re.search('[-–]', several)
    if not dash:
        return re.sub(NUMBER, lambda m: moved.get(m[0], m[0]), several)
    every = []
    for part in re.split(r', ', several):
        ends = re.findall(NUMBER, part)
        every += between(*ends) if len(ends) == 2 else ends
    if not {*every} & {*moved} or {*re.sub(NUMBER, '', several)} - {*', -–'}:
        return several
    return joined([moved.get(n, n) for n in every], dash[0])


def change(source: str, where: str, told: list[str]) -> str:
    "A text with its references renumbered; each change, and each doubt, is told."
    def one(m):
        before, new = source[max(0, m.start() - 40):m.start()], renumbered(m[0])
        if new == m[0] or OTHER.search(before):
            return m[0]
        sure = REFERENCE.search(before) and m[0] in known | {m[0]} - {*re.findall(NUMBER, m[0])}
        line = f'{before[-24:]}[{m[0]} -> {new}]{source[m.end():m.end() + 16]}'
        told.append(f'{"" if sure else "LEFT  "}{where}: ' + ' '.join(line.split()))
        return new if sure else m[0]
    return SEVERAL.sub(one, source)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--write', action='store_true')
    write = p.parse_args().write
    told: list[str] = []
    asked = ['git', 'ls-files', 'nbs', 'tools', 'ddpm_lit/play', '*.md']
    files = subprocess.check_output(asked, text=True, cwd=root)
    for name in files.split():
        path = root/name
        if path == LEDGER or path.suffix not in ('.ipynb', '.py', '.md', '.js', '.html'):
            continue
        old = path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb':
            nb = read(path)
            for cell in nb['cells']:
                where = f'{path.stem} {cell.get("id")}'
                cell['source'] = change(text(cell['source']), where, told).splitlines(True)
                for out in cell.get('outputs', []):
                    for place in (out, out.get('data', {})):
                        for kind in {'text', 'text/plain', 'text/markdown'} & {*place}:
                            new = change(text(place[kind]), where, told)
                            place[kind] = new.splitlines(True)
            new = json.dumps(nb, indent=1, ensure_ascii=False) + '\n'
        else:
            new = change(old, name, told)
        if write and new != old:
            replace(path, new.encode())
    if write and moved:
        lines = [line.split(None, 1) for line in LEDGER.read_text(encoding='utf-8').splitlines()]
        ledger = {moved.get(number, number): rest for number, rest in lines}
        replace(LEDGER, ''.join(f'{n} {ledger[n]}\n' for n in sorted(ledger, key=order)).encode())
    print(*sorted(told), f'{len(moved)} equations have another number', sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
