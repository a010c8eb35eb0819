"""The book as a web site, made of the notebooks' saved outputs and of the modules' docstrings.

Used by tools/site.sh; nothing is executed. Pages are written to OUT/source in the Markdown of
myst-nb, and Sphinx builds OUT/html from them.
"""
import argparse
import ast
import base64
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

from book import authors, book, check_of, every, last_words, module, named, tags
from nb import cfg, flags, nbs, read, replace, root, text

lib = cfg['lib_name']
tools = Path(__file__).parent
chapters = sorted(stem for stem in book if re.match(r'\d\d_', stem))
number = {}  # '12' -> '12_posterior'; of several with one number the first
for chapter in chapters:
    number.setdefault(chapter[:2], chapter)
filled_by = {stem: [name for name in module if module[name] == stem] for stem in authors}

# ---- words become links -----------------------------------------------------------------------

# code, formulas, links and tags stay as they are; no Markdown is read within a summary
untouched = re.compile(
    r'(```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|!?\[[^\]\n]*\]\([^)\n]*\)'
    r'|<summary>.*?</summary>|<[^>\n]*>)', re.S)
# what stands between the members of a list
run = r'(?:\s*(?:,|;|and|or|to|-|–)\s*|,\s*and\s+)'
eq = r'\d\d\.\d{1,2}(?![\d.]*\d)'
nn = r'\d\d(?![\d.]*\d)'


def eq_link(m):
    return f'[{m[0]}](#eq-{m[0].replace(".", "-")})' if m[0] in every else m[0]


def nb_link(m):
    return f'[{m[0]}](/{number[m[0]]}.ipynb)' if m[0] in number else m[0]


def each(pattern, link):
    "A replacement that links every member of the list that was matched."
    return lambda m: re.sub(pattern, link, m[0])


def linked(words, need=False):
    "The equations and notebooks that a piece of prose names, as links."
    # Eq. 12.8; (12.8); (the posterior, 12.4); the first column of a table
    for where in (r'[Ee]qs?\.\s*', r'\(', r', (?=[\d.]+\))', r'^\|\s*'):
        numbers = rf'{where}{eq}(?:{run}{eq})*(?=\s*[\W–]|$)'
        words = re.sub(numbers, each(eq, eq_link), words, flags=re.M)
    if need:
        return re.sub(rf'(?<![\w.\[#-]){nn}(?![\w-])', nb_link, words)
    words = re.sub(rf'[Nn]otebooks? {nn}(?:{run}{nn})*', each(nn, nb_link), words)
    return re.sub(rf'\({nn}(?:{run}{nn})*\)', each(nn, nb_link), words)


group = r'(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})'  # braces, up to three deep
no_sign = (r'\\(mathcal|mathrm|mathbb|text|operatorname|bar|hat|tilde|[bB]igg?|left|right)'
           r'(?![a-zA-Z])')


def signs(formula):
    "About how many signs of a formula stand side by side; of a fraction, those of its longer part."
    formula = re.sub(r'\\tag\{[^}]*\}', '', formula)
    formula = re.sub(rf'\\[td]?frac\s*{group}\s*{group}', lambda m: max(m[1], m[2], key=len),
                     formula)
    formula = re.sub(r'\\[a-zA-Z]+|\\.', 'x', re.sub(no_sign, '', formula))
    return len(re.sub(r'[{}^_&\s]', '', formula))


def in_lines(formula, most=66):  # signs that fit beside the number
    "A wide formula in lines, broken where \\qquad stands between its parts."
    if '\\\\' in formula or signs(formula) <= most:
        return formula
    tag = re.search(r'\s*\\tag\{[^}]*\}', formula)
    tag = tag[0] if tag else ''
    bare = re.sub(r'\\qquad\s*(\\text\{[^}]*\})\s*\\qquad', r'\\qquad \1\\quad ',
                  formula.replace(tag, ''))

    # a \qquad within braces breaks nothing
    lines = ['']
    for part in bare.split('\\qquad'):
        together = f'{lines[-1]}\\qquad{part}' if lines[-1] else part
        open_ = lines[-1].count('{') != lines[-1].count('}')
        if open_ or not lines[-1] or signs(together) <= most:
            lines[-1] = together
        else:
            lines.append(part)
    if len(lines) == 1:
        return formula
    below = r' \\[.3em] & '.join(lines)
    return rf'\begin{{aligned}} & {below} \end{{aligned}}{tag}'


RELATION = re.compile(r'=|\\(?:approx|leq?|geq?|sim|propto|equiv|(?:Left)?[Rr]ightarrow)')
SUM = re.compile(r'[+-]')
TOKEN = re.compile(r'\\(?:left|right)(?![a-zA-Z])|\\[a-zA-Z]+|\\.|.', re.S)


def parts_of(formula, mark):
    "A formula cut before each mark that stands in no bracket."
    parts, depth = [''], 0
    for m in TOKEN.finditer(formula):
        token = m[0]
        if depth == 0 and mark.fullmatch(token) and signs(parts[-1]) > 1:
            parts.append('')
        parts[-1] += token
        depth += token in ('{', '(', '[', '\\left', '\\{')
        depth -= token in ('}', ')', ']', '\\right', '\\}')
    return parts


def joined(parts, most):
    "Neighbours together where they fit into a line."
    lines = []
    for part in parts:
        if lines and signs(lines[-1] + part) <= most:
            lines[-1] += part
        else:
            lines.append(part)
    return lines


def narrow(formula, most=24):  # signs that fit on a phone beside the number
    "A formula in lines for a phone, broken before relations and sums; None if it is short."
    tag = re.search(r'\s*\\tag\{[^}]*\}', formula)
    tag = tag[0] if tag else ''
    bare = formula.replace(tag, '').strip()
    m = re.fullmatch(r'\\begin\{aligned\}(.*)\\end\{aligned\}', bare, re.S)
    rows = re.split(r'\\\\(?:\[[^\]]*\])?', m[1]) if m else [bare]
    if '\\begin' in ''.join(rows) or '\\\\' in bare and not m or signs(bare) <= most:
        return None

    lines = []
    for row in rows:
        for piece in parts_of(row.replace('&', ''), re.compile(r'\\qquad')):
            cut = [piece]
            for mark in (RELATION, SUM):
                cut = [line for part in cut for line in
                       (joined(parts_of(part, mark), most) if signs(part) > most else [part])]
            lines += [cut[0].replace('\\qquad', '').strip(), *('\\quad {}' + c for c in cut[1:])]
    below = r' \\[.3em] & '.join(line for line in lines if line)
    return rf'\begin{{aligned}} & {below} \end{{aligned}}{tag}'


def piece(s, need):
    "A formula with its target, a notebook's name as a link, or words with links."
    if s.startswith('$$'):
        tag = re.search(r'\\tag\{(\d\d)\.(\d+)\}', s)
        formula = in_lines(s.strip('$ '))
        # Sphinx wraps lines of $$ in a way that allows no tag
        if '\\\\' in formula and (tag or '\\\\' not in s):
            s = f'\\begin{{equation*}}\n{formula}\n\\end{{equation*}}'
        return f'(eq-{tag[1]}-{tag[2]})=\n{s}' if tag else s
    m = re.fullmatch(r'`(\d\d_\w+)(?:\.ipynb)?`', s)
    if m and m[1] in book:
        return f'[{s}](/{m[1]}.ipynb)'
    return s if untouched.fullmatch(s) else linked(s, need)


def paragraph(words):
    "In the needs of a notebook, and in the path of an evening, bare numbers are notebooks."
    need, rest = '', words
    if '**You need**' in words:
        need, *after = re.split(r'(?=\*\*You will)', words, maxsplit=1)
        rest = ''.join(after)

    out = []
    for part, bare in ((need, True), (rest, words.startswith('One evening:'))):
        out += [piece(s, bare) for s in untouched.split(part) if s]
    return ''.join(out)


def prose(source):
    "Markdown of a cell with links, and with a target before each numbered equation."
    if '$$' in source or '```' in source:  # these may hold empty lines
        return paragraph(source)
    return '\n\n'.join(map(paragraph, source.split('\n\n')))


def literal(words):
    "Words with what Markdown would read as markup escaped, and equations as links."
    return linked(re.sub(r'([\\*_$<>\[\]|~{}^#])', r'\\\1', words))


def plain(words):
    "A docstring as Markdown: code stays code, all else is literal."
    pieces = re.split(r'(`[^`\n]*`)', ' '.join(words.split()))
    return ''.join(s if s.startswith('`') else literal(s) for s in pieces)


# ---- notebooks --------------------------------------------------------------------------------


def markdown(id, source):
    return dict(cell_type='markdown', id=id, metadata={}, source=source)


def runs_alone(stem, repo):
    "Whether Colab can run it; the others read their neighbours."
    return 'github.com' in repo and stem[:2] not in ('in', '90', '92')


papers = [line.split(' ', 1)
          for line in (tools/'papers.txt').read_text(encoding='utf-8').splitlines()
          if not line.startswith('#')]


def paper(m):
    "A title among the sources, linked if it is on arXiv."
    for arxiv, begins in papers:
        if m[1].lower().startswith(begins):
            return f'[*{m[1]}*](https://arxiv.org/abs/{arxiv})'
    return m[0]


def with_papers(source):
    "The sources of a notebook with links."
    before, heading, after = source.partition('## Sources')
    return before + heading + re.sub(r'(?<![\w*])\*([^*\n]+)\*(?!\*)', paper, after)


def with_heads(source):
    "The last table of a notebook, whose head is empty, with words in it."
    if not re.match(r'## (In one table|Earned)\n', source):
        return source
    columns = '| equation | says | code |' if re.search(r'^\| \d\d\.\d', source, re.M) else None
    source = re.sub(r'^\| \| \|$', '| code | does |', source, count=1, flags=re.M)
    return re.sub(r'^\| \| \| \|$', columns, source, count=1, flags=re.M) if columns else source


def in_repository(m):
    "A link to a file that is no page of the site; the word alone where there is no repository."
    repo = repository()
    return f'[{m[1]}]({repo}/blob/{cfg["branch"]}/{m[2]})' if repo else m[1]


# what a chapter's page lets a visitor play, below its first figure: a page of ddpm_lit/play, how
# it begins, and what one can do there
PLAYED = {
    'index': ('points', '', 'noise flows onto points that you draw'),
    '01_level': ('noising', '', 'one lever from a picture to noise; your own picture, too'),
    '05_evening': ('points', 'shape=moons', 'noise flows onto points that you draw'),
    '10_schedule': ('noising', 'picture=seven&side=32', 'a picture, and when each schedule '
                    'reaches its noise'),
    '11_forward': ('noising', 'clock=linear', 'a picture sinks into noise; your own, too'),
    '12_posterior': ('posterior', '', 'pull the two measurements, and see what both say'),
    '13_oracle': ('points', 'width=0.02', 'draw data, and watch their exact denoiser at work'),
    '14_sample': ('points', 'steps=20&eta=1', 'run DDIM or ancestral steps onto points that you '
                  'draw'),
    '25_ddpm': ('digits', 'w=0&run', 'your browser draws ten digits (fetches 2 MB)'),
    '32_solve': ('points', 'shape=ring&steps=8', 'few steps or many onto points that you draw'),
    '41_cfg': ('ring', '', 'pull the guidance, and see where it leads on a ring'),
    '60_glide': ('paint', 'run', 'type a sentence, and watch it become a picture (fetches 17 MB)'),
    '67_latent': ('paint', 'caption=a+fox&run', 'type a sentence, and watch it become a picture '
                  '(fetches 17 MB)')}
ALSO = {'41_cfg': ('digits', 'w=2&run', 'ten digits with your guidance (fetches 2 MB)')}
ELSEWHERE = {'index': ('digits', 'ring', 'paint', 'noising', 'posterior'), '93_play': ('index',)}


def play_button(page, begin, said):
    "A link to what can be played, which site.js opens in place."
    asked = f'?{html.escape(begin)}' if begin else ''
    return (f'<p class="play"><a href="play/{page}.html{asked}"><b>Play</b> {said}</a></p>')


def playing(stem):
    "The cells with which a page lets a visitor play."
    found = [table[stem] for table in (PLAYED, ALSO) if stem in table]
    shown = ''.join(play_button(*entry) for entry in found)
    names = dict(index='all pages that play', digits='digits', ring='guidance', paint='sentences',
                 noising='noising', posterior='the posterior')
    more = [f'<a href="play/{page}.html">{names[page]}</a>' for page in ELSEWHERE.get(stem, ())]
    if more:
        shown += f'<p class="more-play">{"More that plays: "*bool(shown)}{" · ".join(more)}</p>'
    auto = ' data-auto' if stem == 'index' else ''
    return [raw('play', f'<div class="playing"{auto}>{shown}</div>')] if shown else []


def markdown_cell(cell, source, stem, repo):
    "A cell of prose; the title gets its number, its subtitle's mark and the link to Colab."
    if source.startswith('# '):
        if stem in chapters:
            source = f'# {stem[:2]} {source[2:]}'
        source = re.sub(r'^> ', '{.subtitle}\n> ', source, count=1, flags=re.M)
        if runs_alone(stem, repo):
            source += f'\n\n{{.origin}}\n[Run it in Colab]({colab(stem, repo)})'
    source = source.replace('](../CONTRIBUTING.md)', '](/contributing.md)')
    source = with_papers(with_heads(source))
    source = re.sub(r'\[([^\]]+)\]\(\.\./(LICENSE|CITATION\.cff)\)', in_repository, source)
    return dict(cell, source=prose(source))


def title_of(cell, shown):
    "What a folded cell is called: its first comment, up to the end of its first sentence."
    if cell['id'].startswith('solution-'):
        return cell['id'].replace('-', ' ').capitalize()
    lines = []
    for line in shown.splitlines():
        if not line.startswith('# '):
            break
        lines.append(line[2:])
    said = ' '.join(lines)
    if not said:
        if re.search(r'^setup\(', shown, re.M):
            return 'Set-up'
        named_in = re.search(r'^(?:def|class) (\w+)', shown, re.M)
        if named_in:
            return f'Code of {named_in[1]}'
        return 'Imports' if shown.startswith(('import ', 'from ')) else 'Code'
    return said if len(said) <= 110 else said[:109].rsplit(' ', 1)[0] + ' ...'


def is_folded(cell, shown):
    "Set-up, checks, figures and solutions: what a first reading passes over."
    folded = 'hide-input' in cell['metadata'].get('tags', [])
    imports = all(line.startswith(('import ', 'from ', ' ', ')', '#')) or not line
                  for line in shown.splitlines())
    check = shown.startswith('# Eq. ')
    return folded or imports or check or 'hide' in flags(cell)


def draws(cell):
    "Whether a cell of code shows a picture, or a film of them."
    return any(kind.startswith('image/') or 'class="film"' in ''.join(shown)
               for output in cell.get('outputs', [])
               for kind, shown in output.get('data', {}).items())


def message(cells):
    "The message of the caption that follows a picture, before the next picture; '' without one."
    for cell in cells:
        if cell['cell_type'] == 'code' and draws(cell):
            break
        caption = re.search(r'^\*\*Figure [\d.]+\*\*\s+\*(?!\*)(.+?[.?!:])\*(?=\s|$)',
                            text(cell['source']), re.M)
        if cell['cell_type'] == 'markdown' and caption:
            # formulas as words: $\\tilde\\beta$ is "tilde beta"
            words = re.sub(r'\\([a-zA-Z]+)', r' \1 ', caption[1])
            return ' '.join(re.sub(r'[$`{}]', '', words).split())
    return ''


def code_cell(cell, source, export, fold_all=False, caption=''):
    "A cell of code without its directives; set-up, checks, figures and solutions are folded."
    lines = [l for l in source.splitlines() if not re.match(r'\s*#\s*\|', l)]
    shown = '\n'.join(lines).strip('\n')
    solution = cell['id'].startswith('solution-')
    exercise = cell['id'].startswith('exercise-')
    folded = solution or fold_all and not exercise or is_folded(cell, shown)
    fold = title_of(cell, shown) if folded else None

    cell_tags = ['export']*export
    if fold:
        cell_tags.append('hide-cell' if solution else 'hide-input')
    if fold and 'passed(' in shown:
        cell_tags.append('check')
    named_by = fold if fold and not solution else cell['id'].replace('-', ' ')
    alt = caption or named_by
    mystnb = dict(image=dict(alt=alt), code_prompt_show=fold, code_prompt_hide=fold)
    return dict(cell, source=shown, metadata=dict(tags=cell_tags, mystnb=mystnb))


def is_plain_check(cell):
    "Whether a folded cell checks something, has said so in lines of ✓, and draws nothing."
    return (cell['cell_type'] == 'code' and 'check' in cell['metadata'].get('tags', ())
            and ticks(cell) and not draws(cell))


def ticks(cell):
    "The lines of a cell's output that tell of a check."
    shown = ''.join(text(o.get('text', '')) for o in cell.get('outputs', []))
    return re.findall(r'^✓.*', shown, re.M)


def raw(id, tag):
    return markdown(id, f'```{{raw}} html\n{tag}\n```')


def in_one_line(checks):
    "The checks of a section below one line, which opens to them; a single one stays as it is."
    if len(checks) < 2:
        return checks
    lines = [line for cell in checks for line in ticks(cell)]
    errors = [float(e) for line in lines for e in re.findall(r': error ([\d.e+-]+)', line)]
    said = f'✓ {len(lines)} checks'
    if errors:
        said += f', largest error {max(errors):.0e}'
    id = checks[0]['id']
    opening = f'<details class="checks"><summary>{said}</summary>'
    return [raw(f'{id}-all', opening), *checks, raw(f'{id}-end', '</details>')]


def with_checks_last(cells):
    "Cells with the checks of each section at its end, below one line."
    arranged = []
    checks = []
    for cell in cells:
        if cell['cell_type'] == 'markdown' and re.search(r'^#+ ', text(cell['source']), re.M):
            arranged += in_one_line(checks)
            checks = []
        if is_plain_check(cell):
            checks.append(cell)
        else:
            arranged.append(cell)
    return arranged + in_one_line(checks)


def with_hero_first(cells, play=()):
    "First figure and caption directly below the title, if the page opens so; then what plays."
    at = next((i for i, c in enumerate(cells) if c['cell_type'] == 'code' and draws(c)), len(cells))
    before = '\n'.join(text(c['source']) for c in cells[:at] if c['cell_type'] == 'markdown')
    if at == len(cells) or len(re.findall('^## ', before, re.M)) > 1:
        return [*cells[:1], *play, *cells[1:]]
    first = [cells[at]]
    rest = cells[:at] + cells[at + 1:]

    # the caption is the first paragraph of the text that follows
    words = rest[at] if at < len(rest) else None
    captions = r'\*\*Figure|\*(?!\*)'
    if words and words['cell_type'] == 'markdown' and re.match(captions, text(words['source'])):
        caption, _, more = text(words['source']).partition('\n\n')
        first.append(markdown('hero-caption', caption))
        rest[at:at + 1] = [dict(words, source=more)] if more else []
    return [*rest[:1], *first, *play, *rest[1:]]


def page(path, shown_pages):
    "A notebook as the site shows it: set-up folded, targets before equations and exported cells."
    nb = read(path)
    stem = path.stem
    repo = repository()
    cells = []
    notes = []  # on the module that the page fills, at its end
    for i, cell in enumerate(nb['cells']):
        source = text(cell['source'])
        f = flags(cell) if cell['cell_type'] == 'code' else {}
        hidden = 'hide' in f and stem == 'index'
        if cell['cell_type'] == 'raw' or hidden or 'nbdev_export(' in source:
            continue
        if cell['cell_type'] == 'markdown':
            cells.append(markdown_cell(cell, source, stem, repo))
        elif 'default_exp' in f:
            names = [f'[`{lib}.{name}`](/api/{name}.md)' for name in filled_by[stem]]
            are = 'is the module' if len(names) == 1 else 'are the modules'
            note = (f'Code with a blue edge, marked *library*, {are} {", ".join(names)}; '
                    'the other cells check and draw.')
            notes.append(markdown(cell['id'], note))
        else:
            export = bool(f.keys() & {'export', 'exports', 'exporti'})
            if export:
                cells.append(markdown(f'at-{cell["id"]}', f'(c{stem[:2]}-{cell["id"]})='))
            # what these two print is for readers; how they find it is not
            caption = message(nb['cells'][i + 1:]) if draws(cell) else ''
            cells.append(code_cell(cell, source, export, stem[:2] in ('90', '92'), caption))
    if stem == 'index':
        cells.append(markdown('contents', contents(shown_pages)))

    kernel = dict(name='python3', display_name='Python 3')
    metadata = dict(kernelspec=kernel, language_info=dict(name='python'))
    cells = with_checks_last(with_hero_first(cells, playing(stem))) + notes
    return json.dumps(dict(nb, cells=cells, metadata=metadata), ensure_ascii=False)


def tree(caption, names):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *names, '```', ''])


def short_title(stem):
    "The number of a notebook and its title, up to a colon."
    first = text(read(nbs/f'{stem}.ipynb')['cells'][0]['source']).splitlines()[0]
    return f'{stem[:2]} {first.removeprefix("# ").split(":")[0]}'


# who reads on by the arrow *next* meets the evening first, and what the book is made with last
MADE_WITH = '00_begin', '00_check', '00_registry', '04_show', '06_unpickle'


def part_of(stem):
    "The part of the contents in which a notebook stands, as a key by which parts are ordered."
    if stem == '05_evening':
        return '', 'start here'
    if stem in MADE_WITH:
        return 'b', 'what the book is made with'
    if stem.endswith('_card'):
        return 'a', 'cards: what each system reaches'
    return stem[0], ''


def contents(pages):
    "The contents at the side: the rooms as the guide names them, then the library."
    guide = '\n'.join(text(c['source']) for c in read(nbs/'90_guide.ipynb')['cells'])
    rooms = dict(re.findall(r'\|\s*\*\*(\d) ([^*|]+)\*\*', guide))
    trees = []
    for key, caption in sorted({part_of(stem) for stem in pages}):
        names = [f'{short_title(s)} <{s}>' for s in pages if part_of(s)[0] == key]
        trees.append(tree(caption or f'{key} {rooms.get(key, "")}'.strip(), names))
    trees.append(tree('the library', ['api/index', 'equations', 'contributing', 'security']))
    return '\n'.join(trees)


# ---- modules ----------------------------------------------------------------------------------


def is_data(node):
    return isinstance(node, (ast.Assign, ast.AnnAssign))


def defined(node):
    "The names that a statement of a module defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id]
    if not isinstance(node, ast.Assign):
        return []
    targets = [t for t in node.targets if not isinstance(t, (ast.Subscript, ast.Attribute))]
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


class Module:
    "What a module offers, in order, with signatures and comments on shapes as they are written."

    def __init__(self, name):
        self.name = name
        self.notebook = module[name]
        source = (root/lib/(name.replace('.', '/') + '.py')).read_text(encoding='utf-8')
        tree = ast.parse(source)
        self.lines = source.splitlines()
        self.doc = ast.get_docstring(tree) or ''

        self.comment = {}  # line -> comment
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                self.comment[token.start[0]] = token.string

        # what __all__ names
        offered = []
        for node in tree.body:
            if defined(node) == ['__all__']:
                offered = ast.literal_eval(node.value)
                break
        self.items = []  # (statement, the names it offers)
        for node in tree.body:
            names = [name for name in dict.fromkeys(defined(node)) if name in offered]
            if names:
                self.items.append((node, names))

    def cell(self, node):
        "The target of the cell that a definition stands in."
        for line in self.lines[node.lineno - 1::-1]:
            m = re.match(r'# %% \S*?(\d\d)_\w+\.ipynb #(\S+)', line)
            if m:
                return f'c{m[1]}-{m[2]}'

    def text(self, node):
        "Lines of a statement as written; long ones are cut."
        lines = self.lines[node.lineno - 1:node.end_lineno]
        if len(lines) <= 8:
            return lines
        indent = lines[0][:len(lines[0]) - len(lines[0].lstrip())]
        return [*lines[:6], indent + '    ...']

    def head(self, node):
        "From the decorators to the colon; of a class also the fields and the public methods."
        body = node.body[0]
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        begin = min([body.lineno, *(d.lineno for d in getattr(body, 'decorator_list', []))])
        lines = self.lines[first - 1:begin - 1]

        # the body stands on the line of the colon
        if begin == node.lineno or lines and ':' not in lines[-1].split('#')[0]:
            before_body = self.lines[begin - 1].encode()[:body.col_offset].decode().rstrip()
            lines.append(before_body + ' ' + self.comment.get(body.end_lineno, ''))

        lines = [l.rstrip() for l in lines if l.strip() and not l.strip().startswith('#')]
        if isinstance(node, ast.ClassDef):
            for n in node.body:
                if is_data(n):
                    lines += self.text(n)
                elif isinstance(n, ast.FunctionDef):
                    if not n.name.startswith('_') or n.name in ('__init__', '__call__'):
                        lines += self.head(n)
        return lines

    def item(self, node, names):
        "The lines of one statement: heading, targets, signature, docstring, where it comes from."
        kind = 'function'
        if is_data(node):
            kind = 'data'
        elif isinstance(node, ast.ClassDef):
            kind = 'class'
        code = self.text(node) if kind == 'data' else self.head(node)
        indent = min(len(l) - len(l.lstrip()) for l in code)

        out = [f'## {", ".join(f"`{n}`" for n in names)}', '']
        for n in names:
            out += [f'```{{py:{kind}}} {n}', f':module: {lib}.{self.name}', ':no-typesetting:',
                    '```', '']
        out += ['{.signature}', '```python', *(l[indent:] for l in code), '```', '']
        doc = ast.get_docstring(node) if kind != 'data' else None
        if doc:
            out += [plain(doc), '']
        if kind == 'class':
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            said = {n.name: ast.get_docstring(n) for n in methods if not n.name.startswith('_')}
            out += [f'- `{name}`: {plain(doc)}' for name, doc in said.items() if doc]
            out.append('')
        at = self.cell(node)
        if at:
            out += ['{.origin}', f'[notebook {at[1:3]}, cell {at[4:]}](#{at})', '']
        return out

    def page(self):
        out = [f'# {plain(f"{lib}.{self.name}")}', '',
               '{.subtitle}', f'> {plain(self.doc)}', '',
               f'Made by notebook [{self.notebook[:2]}](/{self.notebook}.ipynb).', '']
        for node, names in self.items:
            out += self.item(node, names)
        return '\n'.join(out)


def library(modules):
    "The page of all modules."
    out = ['# The library, module by module', '',
           'A module offers what its notebook exports into it. Comments say shapes: b batch, '
           'c channels, h w space, l tokens, d embedding, k classes, n heads.', '',
           '| module | notebook | |', '|---|---|---|']
    for m in modules:
        out.append(f'| [`{m.name}`](/api/{m.name}.md) | [{m.notebook[:2]}](/{m.notebook}.ipynb) | '
                   f'{plain(m.doc)} |')
    return '\n'.join([*out, '', tree('modules', [m.name for m in modules])])


def formulas(nb):
    "(number, formula) of each numbered equation of a notebook."
    prose = '\n\n'.join(source for kind, source in book[nb] if kind == 'markdown')
    for body in re.findall(r'\$\$(.*?)\$\$', prose, re.S):
        tag = re.search(r'\\tag\{(\d\d\.\d+)\}', body)
        if tag:
            bare = in_lines(body.replace(tag[0], '').strip())
            begin, end = '$$', '$$'
            if '\\\\' in bare:  # Sphinx wraps lines of $$ in a way of its own
                begin, end = '\\begin{equation*}', '\\end{equation*}'
            formula = f'{begin}\n{bare}\n{end}'
            yield tag[1], formula


def equations(modules):
    "The page of all equations, each with the first definition that cites it, and its check."
    code = {}
    for m in modules:
        for node, names in m.items:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for t in named(ast.get_docstring(node) or ''):
                    code.setdefault(t, f'[`{names[0]}`](#{lib}.{m.name}.{names[0]})')

    out = ['# All equations', '',
           'Each number leads to its equation, each name to the code that mirrors it; '
           'the last line is what its check printed.', '']
    for nb in chapters:
        if not tags(nb):
            continue
        title = book[nb][0][1].splitlines()[0].lstrip('# ')
        out += [f'## [{nb[:2]} {title}](/{nb}.ipynb)', '']
        for t, formula in formulas(nb):
            out += [f'[{t}](#eq-{t.replace(".", "-")}) {code.get(t, "")}'.strip(), '', formula, '']
            shown = last_words(check_of(nb, t))
            out += [literal(shown), ''] if shown else []
    return '\n'.join(out)


# ---- the site ---------------------------------------------------------------------------------


def repository():
    "Where this copy of the book lives, from a workflow's environment or the remote; '' if nowhere."
    name = os.environ.get('GITHUB_REPOSITORY')
    if name:
        return f'{os.environ.get("GITHUB_SERVER_URL", "https://github.com")}/{name}'
    asked = subprocess.run(['git', 'remote', 'get-url', 'origin'], cwd=root, capture_output=True,
                           text=True)
    url = r'(?:https?://|ssh://)?(?:[\w.-]+@)?([\w-]+(?:\.[\w-]+)+)[:/]([^/]+/[^/]+?)(?:\.git)?/?'
    m = re.fullmatch(url, asked.stdout.strip())
    if m and re.search('github|gitlab|bitbucket', m[1]):
        return f'https://{m[1]}/{m[2]}'
    return ''


def colab(stem, repo):
    "Where Colab finds a notebook's copy: on the branch that the site is published on."
    name = repo.split('github.com/')[1]
    return f'https://colab.research.google.com/github/{name}/blob/gh-pages/colab/{stem}.ipynb'


def for_colab(stem, repo):
    "That copy; Colab starts with nothing, so its first cell installs the book."
    nb = read(nbs/f'{stem}.ipynb')
    line = f"%pip install -q git+{repo}@{cfg['branch']} torchmetrics hypothesis"
    install = dict(cell_type='code', id='install', metadata={}, execution_count=None, outputs=[],
                   source=line)
    return json.dumps(dict(nb, cells=[install, *nb['cells']]), ensure_ascii=False)


def dot(x, y, r, ink):
    return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{ink}"/>'


specks = ((20, 8), (22, 17), (19, 25), (27, 12), (28, 22))
mark = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        + dot(9, 16, 8, '#1f77b4') + ''.join(dot(x, y, 2, '#999') for x, y in specks) + '</svg>')


MATH = dict(chtml=dict(displayAlign='left', displayIndent='1.5em', matchFontHeight=False,
                       scale=1.12),
            loader=dict(load=['ui/lazy']))
COPIED = 'div.cell_input div.highlight pre, div.highlight-sh pre'  # no outputs


def settings(only):
    "The settings of Sphinx."
    repo = repository()
    theme = dict(path_to_docs=cfg['nbs_path'], repository_branch=cfg['branch'], show_toc_level=1,
                 use_download_button=False, use_fullscreen_button=False, navbar_persistent=[],
                 home_page_in_toc=True, search_as_you_type=True)
    if repo:
        theme |= dict(repository_url=repo, use_repository_button=True, use_source_button=True,
                      launch_buttons={})
    if 'github.com' in repo:
        theme['launch_buttons'] = dict(binderhub_url='https://mybinder.org',
                                       notebook_interface='jupyterlab')
    # equations stand at the left, of one size with any font, and are set when they are seen
    from sphinx import version_info
    math = {f'mathjax{3 if version_info < (9,) else 4}_config': MATH}
    warnings = ['myst.header']
    if only:
        warnings.append('myst.xref_missing')
    return math | dict(
        project=lib, author=cfg['author'], html_title=lib, language='en', root_doc='index',
        copyright=cfg['copyright'].replace('%(author)s', cfg['author']),
        extensions=['myst_nb', 'sphinx.ext.mathjax', 'sphinx-mathjax-offline',
                    'sphinx_copybutton'],
        source_suffix={'.ipynb': 'myst-nb', '.md': 'myst-nb'},
        html_theme='sphinx_book_theme', html_theme_options=theme, html_static_path=['_static'],
        html_favicon='_static/mark.svg', html_css_files=['site.css'],
        html_js_files=['site.js'], copybutton_selector=COPIED,
        html_context=dict(default_mode='auto'), html_copy_source=False, html_show_sphinx=False,
        nb_execution_mode='off', nb_render_markdown_format='myst', add_module_names=False,
        myst_enable_extensions=['amsmath', 'dollarmath', 'attrs_block'], suppress_warnings=warnings)


def house(name):
    "A file of the root as a page; links to its neighbours lead to their pages."
    source = (root/name).read_text(encoding='utf-8')
    source = source.replace('```mermaid', '```text')  # a code host draws it, Sphinx does not
    return re.sub(r'\]\((CONTRIBUTING|SECURITY)\.md\)', lambda m: f'](/{m[1].lower()}.md)', source)


def all_pages(shown):
    "{name: text} of the site's source, for these notebooks."
    modules = [Module(name) for s in shown for name in filled_by.get(s, [])]
    pages = {f'{s}.ipynb': page(nbs/f'{s}.ipynb', shown) for s in [*shown, 'index']}
    pages |= {f'api/{m.name}.md': m.page() for m in modules}
    pages |= {'api/index.md': library(modules),
              'equations.md': equations(modules),
              'contributing.md': house('CONTRIBUTING.md'),
              'security.md': house('SECURITY.md'),
              '_static/site.css': (tools/'site.css').read_text(encoding='utf-8'),
              '_static/site.js': (tools/'site.js').read_text(encoding='utf-8'),
              '_static/mark.svg': mark}
    return pages


def write(pages, source):
    "Only what changed is written, so only that is built again; what is not a page is removed."
    for name, body in pages.items():
        path = source/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != body:
            replace(path, body.encode())
    for path in [*source.rglob('*.*')]:
        if path.is_file() and str(path.relative_to(source)) not in pages:
            path.unlink()


def said_of(stem):
    "What a notebook says of itself: the line under its title, without markup."
    quoted = re.search(r'^> (.*)', text(read(nbs/f'{stem}.ipynb')['cells'][0]['source']), re.M)
    return re.sub(r'[`*$\\]', '', quoted[1]) if quoted else cfg['description']


def describe(app, page, template, context, doctree):
    "For search engines, and for whoever is sent a link: a sentence and a picture."
    stem = page if page in book else 'index'
    said = html.escape(said_of(stem))
    title = html.escape(re.sub('<[^>]*>', '', context.get('title') or lib))
    tags = [f'<meta name="description" content="{said}">',
            f'<meta property="og:title" content="{title}">',
            f'<meta property="og:description" content="{said}">']
    m = re.fullmatch(r'https://github\.com/([^/]+)/(.+)', repository())
    if m:
        image = f'https://{m[1].lower()}.github.io/{m[2]}/_static/hero.webp'
        tags.append(f'<meta property="og:image" content="{image}">')
    context['metatags'] = context.get('metatags', '') + '\n'.join(tags)


def write_play(folder):
    "The pages that paint in the browser, and what they fetch, packed."
    from ddpm_lit.cli.play import PAGES, pages_dir, play_files
    fetched = play_files(packed=True)
    for name, content in ({p: (pages_dir()/p).read_bytes() for p in PAGES} | fetched).items():
        path = folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content)
    size = sum(map(len, fetched.values()))/1e6
    print(f'{len(PAGES)} files of pages in {folder}, which fetch {size:.1f} MB')


ICONS = re.compile(r'\s*<(?:script|link)[^>]*fontawesome\.js[^>]*>(?:</script>)?')
# site.js asks for these when somebody searches
SEARCH = re.compile(r'<script src="[./]*(?:_static/searchtools|_static/language_data|searchindex)'
                    r'\.js"></script>')
FORMULA = re.compile(r'(<div class="(?:amsmath )?math (?![^>]*data-narrow)[^>]*)>\s*\\\['
                     r'(?:\\begin\{equation\*\})?(.*?)(?:\\end\{equation\*\})?\\\]\s*</div>', re.S)


def with_narrow(m):
    "A formula with its lines for a phone beside it, which site.js takes there."
    lines = narrow(html.unescape(m[2]).strip())
    return f'{m[1]} data-narrow="{html.escape(lines)}"{m[0][len(m[1]):]}' if lines else m[0]


def icons(target):
    "The icons that pages show as a style sheet: two fonts of hundreds of others stay unread."
    pages = '\n'.join(p.read_text(encoding='utf-8') for p in target.glob('*.html'))
    script = (target/'_static'/'scripts'/'fontawesome.js').read_text(encoding='utf-8')
    rules = []
    for name in sorted(set(re.findall(r'\bfa-([a-z-]+)', pages))):
        drawn = rf'[{{,]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"\w+","([^"]+)"'
        found = [*re.finditer(drawn, script)]
        if found:
            wide, tall, path = found[-1].groups()
            picture = (f"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox="
                       f"'0 0 {wide} {tall}'%3E%3Cpath d='{path}'/%3E%3C/svg%3E")
            rules.append(f'i.fa-{name}, span.fa-{name} {{ font-family: inherit; }}\n'
                         f'i.fa-{name}::before, span.fa-{name}::before {{ content: ""; display: '
                         f'inline-block; height: 1em; aspect-ratio: {wide}/{tall}; vertical-align: '
                         f'-.125em; background: currentColor; mask: url("{picture}") center / '
                         'contain no-repeat; }')
    return '\n'.join(rules)


def with_sizes(folder):  # -> a function for re.sub, of one <img ...>
    "Give pictures their sizes, so that no text jumps, and load them when they are near."
    from PIL import Image

    def sized(m):
        found = re.search(r'src="([^":]+\.(?:png|webp))"', m[0])
        path = folder/found[1].split('?')[0] if found else None
        if path is None or 'width=' in m[0] or not path.is_file():
            return m[0]
        with Image.open(path) as picture:
            w, h = picture.size
        return m[0].replace('<img', f'<img loading="lazy" width="{w}" height="{h}"', 1)
    return sized


def in_files(folder):  # -> a function for re.sub, of one picture within a page
    "Films and sliders carry their pictures with them; on the site these come when they are near."
    def moved(m):
        content = base64.b64decode(m[2])
        name = f'_images/{hashlib.sha256(content).hexdigest()[:16]}.{m[1]}'
        if not (folder/name).exists():
            replace(folder/name, content)
        return name
    return moved


def lighten(target):
    "Take from every page what it does not need: the fonts have the icons that the script draws."
    for path in target.rglob('*.html'):
        body = path.read_text(encoding='utf-8')
        lighter = FORMULA.sub(with_narrow, ICONS.sub('', body))
        if path.name != 'search.html':
            lighter = SEARCH.sub('', lighter)
        # a page answers before its formulas are set
        lighter = re.sub(r'<script defer="defer" (?=src="[^"]*mathjax/)', '<script async ', lighter)
        # a summary is named by its words; a cell without words is no heading
        lighter = lighter.replace('<summary aria-label="Toggle hidden content">', '<summary>')
        lighter = re.sub(r'<th [^>]*>\s*(?:<p></p>)?\s*</th>', '<td></td>', lighter)
        if path.parent == target:
            lighter = re.sub(r'data:image/(png|webp);base64,([\w+/=]{2000,})', in_files(target),
                             lighter)
        lighter = re.sub(r'<img [^>]*>', with_sizes(path.parent), lighter)
        if lighter != body:
            replace(path, lighter.encode())
    theme = target/'_static'/'styles'/'pydata-sphinx-theme.css'
    letters = r'(?:\.fa-[\w-]+,?)+\{--fa:"[^"]*"\}'  # of the icons that nobody sees
    replace(theme, re.sub(letters, '', theme.read_text(encoding='utf-8')).encode())
    style = target/'_static'/'site.css'
    replace(style, ((tools/'site.css').read_text(encoding='utf-8') + icons(target)).encode())


LOST = '''<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>Not found</title>
<body style="font-family: sans-serif; max-width: 34em; margin: 4em auto; padding: 0 1em">
<h1>There is no such page</h1>
<p>It may have been renamed. <a href="{base}index.html">The front page</a> lists all chapters,
and <a href="{base}search.html">search</a> finds their words.</p>
'''


def for_robots_and_the_lost(target):
    "A page for addresses that lead nowhere and, where the site has an address, a list of pages."
    m = re.fullmatch(r'https://github\.com/([^/]+)/(.+)', repository())
    base = f'https://{m[1].lower()}.github.io/{m[2]}/' if m else '/'
    replace(target/'404.html', LOST.format(base=base).encode())
    if m:
        names = sorted(str(p.relative_to(target)) for p in target.rglob('*.html')
                       if p.name not in ('404.html', 'genindex.html', 'search.html'))
        rows = ''.join(f'<url><loc>{base}{name}</loc></url>\n' for name in names)
        head = '<?xml version="1.0" encoding="UTF-8"?>\n'
        space = 'http://www.sitemaps.org/schemas/sitemap/0.9'
        replace(target/'sitemap.xml', f'{head}<urlset xmlns="{space}">\n{rows}</urlset>'.encode())


def build(out, only):
    "Build the site in `out`; True if Sphinx warned."
    from sphinx.application import Sphinx
    source, target = out/'source', out/'html'
    shown = [stem for stem in chapters if not only or stem[:2] in only]
    pages = all_pages(shown)
    write(pages, source)
    app = Sphinx(source, None, target, out/'doctrees', 'html', settings(only))
    app.connect('html-page-context', describe)
    app.build()

    (target/'.nojekyll').touch()
    replace(target/'_static'/'hero.webp', (nbs/'readme'/'hero.webp').read_bytes())
    (target/'colab').mkdir(exist_ok=True)
    for stem in shown:
        if runs_alone(stem, repository()):
            replace(target/'colab'/f'{stem}.ipynb', for_colab(stem, repository()).encode())
    write_play(target/'play')
    lighten(target)
    for_robots_and_the_lost(target)
    n = sum(not name.startswith('_static') for name in pages)
    print(f'{n} pages in {target}, {app._warncount} warnings')
    return bool(app._warncount)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=root/'_site')
    p.add_argument('--only', nargs='*', default=[],
                   help='numbers of notebooks, for a quick look while working on the site')
    a = p.parse_args()
    return build(a.out.resolve(), a.only)


if __name__ == '__main__':
    sys.exit(main())
