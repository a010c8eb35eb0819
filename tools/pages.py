"""Counts what a reader meets on each page: words, lines of code, figures, and minutes.

    python tools/pages.py [--check] [--write] [NAME...]

Two counts a page: the main line, which ends at the heading that the page's cell `need` names, or at
*What breaks*, and leaves out asides; and all of it before the questions. Folded text, formulas and
hidden code are not counted. A reader takes a minute for 180 words, one for a figure and half of one
for a cell of code.

--check fails if a page states minutes that differ from the counted ones by more than a fifth and
more than a minute, or if the main line of a chapter has more than 2,500 words or 200 lines;
--write puts the counted minutes into the pages.
"""
import argparse
import json
import re
import sys

from nb import nbs, read, text

MOST_WORDS, MOST_LINES = 2500, 200
STATED = re.compile(r'\*\*Minutes:\*\* (\d+) for the main line'
                    r'(?: \(up to \*([^*]+)\*([^)]*)\))?, (\d+) for all')
END = re.compile(r'^## (?:What breaks|Questions|Exercises|Sources)', re.M)
LAST = re.compile(r'^## (?:Questions|Exercises|Sources|Solutions)', re.M)


def hidden(cell):
    "Whether a reader sees the code of a cell only on request."
    tags = cell['metadata'].get('tags', [])
    return cell['metadata'].get('jupyter', {}).get('source_hidden') or 'hide-input' in tags


def is_heading(source, words):
    "Whether a line of the cell begins so, a heading as a rule; its end may be left out as '…'."
    begins = words.rstrip('… ')
    return any(line.lstrip('#>*_ ').startswith(begins) for line in source.splitlines())


def count(cells):
    "Words, visible lines of code, figures and visible cells."
    words = lines = figures = shown = 0
    for cell in cells:
        source = text(cell['source'])
        if cell['cell_type'] == 'markdown':
            source = re.sub(r'<details.*?</details>', '', source, flags=re.S)
            figures += len(re.findall(r'^\*\*Figure \d', source, re.M))
            words += len(re.sub(r'\$\$.*?\$\$|\$[^$]*\$', '', source, flags=re.S).split())
        elif cell['cell_type'] == 'code' and not hidden(cell):
            n = sum(not line.startswith('#|') for line in source.splitlines() if line.strip())
            lines, shown = lines + n, shown + (n > 0)
    return words, lines, figures, shown


def minutes(words, lines, figures, shown):
    "How long a first reading takes."
    return round(words/180 + figures + shown/2)


def until(cells, is_end):
    "The cells before the first markdown that ends them."
    for k, cell in enumerate(cells):
        if cell['cell_type'] == 'markdown' and is_end(text(cell['source'])):
            return cells[:k]
    return cells


def without_asides(cells):
    "The cells that are not in a section marked as an aside."
    aside = False
    for cell in cells:
        heading = re.search(r'^## (.*)', text(cell['source']), re.M)
        if cell['cell_type'] == 'markdown' and heading:
            aside = heading[1].startswith('Aside')
        if not aside:
            yield cell


def page(path):
    "(what the page states or None, counts of the main line, counts of all of it)."
    cells = read(path)['cells']
    stated = next((m for c in cells if (m := STATED.search(text(c['source'])))), None)
    end = stated and stated[2]
    # 'What breaks' may be the name that is given
    main = until(cells, (lambda s: is_heading(s, end)) if end else END.search)
    return stated, count(without_asides(main)), count(until(cells, LAST.search))


def is_chapter(stem):
    "Whether a page is read for its idea: what the library does besides, and reports, are not."
    return '01' <= stem[:2] < '70' and not stem.endswith('_card')


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true')
    p.add_argument('--write', action='store_true')
    p.add_argument('names', nargs='*', help='notebooks, such as 12_posterior; all without')
    a = p.parse_args()

    wrong = []
    print(f'{"page":30} {"main line: words":>18} {"lines":>6} {"minutes":>8} '
          f'{"all: words":>15} {"minutes":>8}')
    for path in sorted(nbs.glob('[0-9]*.ipynb')):
        if a.names and path.stem not in a.names:
            continue
        stated, main_line, everything = page(path)
        short, whole = minutes(*main_line), minutes(*everything)
        print(f'{path.stem:30} {main_line[0]:18,} {main_line[1]:6} {short:8} '
              f'{everything[0]:15,} {whole:8}')
        if is_chapter(path.stem) and (main_line[0] > MOST_WORDS or main_line[1] > MOST_LINES):
            wrong.append(f'{path.stem}: the main line has {main_line[0]:,} words and '
                         f'{main_line[1]} lines, more than {MOST_WORDS:,} and {MOST_LINES}')
        if not stated:
            continue
        for said, is_true in ((int(stated[1]), short), (int(stated[4]), whole)):
            if abs(said - is_true) > max(1, .2*is_true):
                wrong.append(f'{path.stem}: {said} minutes are stated, {is_true} counted')
        if a.write:
            where = f' (up to *{stated[2]}*{stated[3]})' if stated[2] else ''
            new = f'**Minutes:** {short} for the main line{where}, {whole} for all'
            source = path.read_text(encoding='utf-8')
            old, new = (json.dumps(s, ensure_ascii=False)[1:-1] for s in (stated[0], new))
            path.write_text(source.replace(old, new), encoding='utf-8')
    if a.check:
        sys.exit('\n'.join(wrong) or 0)


if __name__ == '__main__':
    main()
