"""The book as a web site, made of the notebooks' saved outputs and of the modules' docstrings; used by tools/site.sh. Nothing is executed.

Pages are written to OUT/source in the Markdown of myst-nb, and Sphinx builds OUT/html from them. What the keel (notebook 79) knows of equations is taken from its cells.
"""
import argparse, ast, contextlib, html, io, json, os, re, subprocess, sys, tokenize
from pathlib import Path

from nb import cfg, flags, nbs, read, replace, root, text

lib, tools = cfg['lib_name'], Path(__file__).parent

def keel():
    "The names that notebook 79 defines: the book's cells, its modules, which equations there are. Whether its rules hold is for its own run to say."
    space, here = dict(ast=ast, json=json, re=re, sys=sys, Path=Path), os.getcwd()
    os.chdir(nbs)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in read('79_keel.ipynb')['cells']:
                if cell['id'] not in ('read', 'equations'):
                    continue
                tree = ast.parse(text(cell['source']))
                tree.body = [n for n in tree.body if not isinstance(n, ast.Assert)]
                exec(compile(tree, cell['id'], 'exec'), space)
    finally:
        os.chdir(here)
    return space

K = keel()
tags, named, module = K['tags'], K['named'], K['module']
every = {t for nb in K['book'] for t in tags(nb)}
number = {s[:2]: s for s in K['book'] if re.match(r'\d\d_', s)} # '12' -> '12_posterior'
module_of = {nb: m for m, nb in module.items()}

# ---- words become links -------------------------------------------------------------------------------------------------

untouched = re.compile(
    r'(```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|!?\[[^\]\n]*\]\([^)\n]*\)|<[^>\n]*>)', re.S)
# what stands between the members of a list
run = r'(?:\s*(?:,|;|and|or|to|-|–)\s*|,\s*and\s+)'
eq, nn = r'\d\d\.\d{1,2}(?![\d.]*\d)', r'\d\d(?![\d.]*\d)'

def eq_link(m):
    return f'[{m[0]}](#eq-{m[0].replace(".", "-")})' if m[0] in every else m[0]

def nb_link(m):
    return f'[{m[0]}](/{number[m[0]]}.ipynb)' if m[0] in number else m[0]

def each(pattern, link):
    return lambda m: re.sub(pattern, link, m[0])

def linked(words, need=False):
    "The equations and notebooks that a piece of prose names, as links."
    # Eq. 12.4; (12.4); (the posterior, 12.4); the first column of a table
    for where in (r'[Ee]qs?\.\s*', r'\(', r', (?=[\d.]+\))', r'^\|\s*'):
        words = re.sub(rf'{where}{eq}(?:{run}{eq})*(?=\s*[\W–]|$)', each(eq, eq_link), words,
                       flags=re.M)
    if need:
        return re.sub(rf'(?<![\w.\[#-]){nn}(?![\w-])', nb_link, words)
    words = re.sub(rf'[Nn]otebooks? {nn}(?:{run}{nn})*', each(nn, nb_link), words)
    return re.sub(rf'\({nn}(?:{run}{nn})*\)', each(nn, nb_link), words)

def prose(source):
    "Markdown of a cell with links, and with a target before each numbered equation."
    def piece(s, need):
        if s.startswith('$$') and (tag := re.search(r'\\tag\{(\d\d)\.(\d+)\}', s)):
            # Sphinx wraps lines of $$ in a way that allows no tag
            if '\\\\' in s:
                s = f'\\begin{{equation*}}\n{s.strip("$ ")}\n\\end{{equation*}}'
            return f'(eq-{tag[1]}-{tag[2]})=\n{s}'
        if (m := re.fullmatch(r'`(\d\d_\w+)(?:\.ipynb)?`', s)) and m[1] in K['book']:
            return f'[{s}](/{m[1]}.ipynb)'
        return s if untouched.fullmatch(s) else linked(s, need)

    def paragraph(p):
        need, *rest = re.split(r'(?=\*\*You will)', p, maxsplit=1) if '**You need**' in p else ('',
                                                                                                p)
        return ''.join(
            piece(s, b)
            for part, b in ((need, True), (''.join(rest), p.startswith('One evening:')))
            for s in untouched.split(part)
            if s)

    return paragraph(source) if '$$' in source or '```' in source else '\n\n'.join(
        map(paragraph, source.split('\n\n')))

def plain(words):
    "A docstring as Markdown: code stays code, all else is literal, and equations are links."
    literal = lambda s: linked(re.sub(r'([\\*_$<>\[\]|~{}^#])', r'\\\1', s))
    return ''.join(s if s.startswith('`') else literal(s)
                   for s in re.split(r'(`[^`\n]*`)', ' '.join(words.split())))

# ---- notebooks ----------------------------------------------------------------------------------------------------------

def markdown(id, source):
    return dict(cell_type='markdown', id=id, metadata={}, source=source)

def runs_alone(stem, repo):
    return 'github.com' in repo and stem[:2] not in ('in', '79', '90'
                                                     ) # the others read their neighbours

def page(path, shown_pages):
    "A notebook as the site shows it: without flags, set-up folded, targets before equations and exported cells."
    nb, stem, cells, repo = read(path), path.stem, [], repository()
    for cell in nb['cells']:
        f, source = flags(cell) if cell['cell_type'] == 'code' else {}, text(cell['source'])
        if cell['cell_type'] == 'raw' or 'hide' in f and stem == 'index' or 'nbdev_export(' in source:
            continue
        if 'default_exp' in f:
            cells.append(
                markdown(
                    cell['id'],
                    'Cells with a blue edge are the module '
                    f'[`{lib}.{module_of[stem]}`](/api/{module_of[stem]}.md); the others check and '
                    'draw.'
                ))
            continue
        if cell['cell_type'] == 'markdown':
            if stem in number.values() and source.startswith('# '):
                source = f'# {stem[:2]} {source[2:]}'
            if source.startswith('# '):
                source = re.sub(r'^> ', '{.subtitle}\n> ', source, count=1, flags=re.M) + (
                    f'\n\n{{.origin}}\n[Run it in Colab]({colab(stem, repo)})' if runs_alone(
                        stem, repo) else '')
            cells.append(
                dict(cell,
                     source=prose(source.replace('](../CONTRIBUTING.md)', '](/contributing.md)'))))
            continue
        export = bool(f.keys() & {'export', 'exports', 'exporti'})
        if export:
            cells.append(markdown(f'at-{cell["id"]}', f'(c{stem[:2]}-{cell["id"]})='))
        shown = '\n'.join(l for l in source.splitlines()
                          if not re.match(r'\s*#\s*\|', l)).strip('\n')
        solution = cell['id'].startswith('solution-')
        fold = cell['id'].replace(
            '-', ' ').capitalize() if solution else 'Set-up' if 'hide' in f else None
        tags = ['export']*export + ['hide-cell' if solution else 'hide-input']*bool(fold)
        cells.append(
            dict(
                cell, source=shown, metadata=dict(
                    tags=tags, mystnb=dict(image=dict(alt=cell['id'].replace('-', ' ')),
                                           code_prompt_show=fold, code_prompt_hide=fold))))
    if stem == 'index':
        cells.append(markdown('contents', contents(nb, shown_pages)))
    return json.dumps(
        dict(
            nb, cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3'),
                                           language_info=dict(name='python'))), ensure_ascii=False)

def tree(caption, names):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *names, '```', ''])

def contents(index, pages):
    "The contents at the side: the rooms as the front page names them, then the library."
    rooms = dict(
        re.findall(r'\|\s*\*\*(\d) ([^*|]+)\*\*',
                   '\n'.join(text(c['source']) for c in index['cells'])))
    doors = {d: [s for s in pages if s[0] == d] for d in sorted({s[0] for s in pages})}
    return '\n'.join([
        *(tree(f'{d} {rooms.get(d, "")}'.strip(), names) for d, names in doors.items()),
        tree('the library', ['api/index', 'equations', 'contributing'])
    ])

# ---- modules ------------------------------------------------------------------------------------------------------------

class Module:
    "A module as its source tells it: what it offers, in order, with signatures as they are written, comments with shapes included."
    def __init__(self, name):
        self.name, self.notebook = name, module[name]
        source = (root/lib/(name.replace('.', '/') + '.py')).read_text(encoding='utf-8')
        self.lines, self.body = source.splitlines(), ast.parse(source).body
        self.doc = ast.get_docstring(ast.parse(source)) or ''
        self.comment = {
            t.start[0]: t.string
            for t in tokenize.generate_tokens(io.StringIO(source).readline)
            if t.type == tokenize.COMMENT
        }
        offered = next(
            (ast.literal_eval(n.value) for n in self.body if self.names(n) == ['__all__']), [])
        self.items = [(n, names)
                      for n in self.body
                      if (names := [x for x in dict.fromkeys(self.names(n)) if x in offered])]

    @staticmethod
    def names(node):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return [node.name]
        if isinstance(node, ast.AnnAssign):
            return [node.target.id]
        return [
            n.id for t in node.targets if not isinstance(t, (ast.Subscript, ast.Attribute))
            for n in ast.walk(t) if isinstance(n, ast.Name)
        ] if isinstance(node, ast.Assign) else []

    def cell(self, node):
        "The target of the cell that a definition stands in."
        for line in self.lines[node.lineno - 1::-1]:
            if m := re.match(r'# %% \S*?(\d\d)_\w+\.ipynb #(\S+)', line):
                return f'c{m[1]}-{m[2]}'

    def text(self, node):
        "Lines of a statement as written; long ones are cut."
        lines = self.lines[node.lineno - 1:node.end_lineno]
        return lines if len(lines) <= 8 else [
            *lines[:6], lines[0][:len(lines[0]) - len(lines[0].lstrip())] + '    ...'
        ]

    def head(self, node):
        "From the decorators to the colon, with the comments on the way; of a class also the fields and the public methods."
        first, body = min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.body[0]
        begin = min([body.lineno, *(d.lineno for d in getattr(body, 'decorator_list', []))])
        lines = self.lines[first - 1:begin - 1]
        # the body stands on the line of the colon
        if begin == node.lineno or len(lines) and ':' not in lines[-1].split('#')[0]:
            lines = [
                *lines, self.lines[begin - 1].encode()[:body.col_offset].decode().rstrip() + ' ' +
                self.comment.get(body.end_lineno, '')
            ]
        lines = [l.rstrip() for l in lines if l.strip() and not l.strip().startswith('#')]
        if isinstance(node, ast.ClassDef):
            for n in node.body:
                if isinstance(n, (ast.AnnAssign, ast.Assign)):
                    lines += self.text(n)
                if isinstance(n, ast.FunctionDef) and (not n.name.startswith('_')
                                                       or n.name in ('__init__', '__call__')):
                    lines += self.head(n)
        return lines

    def page(self):
        out = [
            f'# {plain(f"{lib}.{self.name}")}', '', '{.subtitle}', f'> {plain(self.doc)}', '',
            f'Made by notebook [{self.notebook[:2]}](/{self.notebook}.ipynb).', ''
        ]
        for node, names in self.items:
            code, kind = (self.text(node),
                          'data') if isinstance(node, (ast.Assign, ast.AnnAssign)) else (
                              self.head(node),
                              'class' if isinstance(node, ast.ClassDef) else 'function')
            indent = min(len(l) - len(l.lstrip()) for l in code)
            out += [f'## {", ".join(f"`{n}`" for n in names)}', '']
            for n in names:
                out += [
                    f'```{{py:{kind}}} {n}', f':module: {lib}.{self.name}', ':no-typesetting:',
                    '```', ''
                ]
            out += ['{.signature}', '```python', *(l[indent:] for l in code), '```', '']
            if kind != 'data' and (doc := ast.get_docstring(node)):
                out += [plain(doc), '']
            if kind == 'class':
                docs = [(n.name, ast.get_docstring(n))
                        for n in node.body
                        if isinstance(n, ast.FunctionDef) and not n.name.startswith('_')]
                out += [f'- `{name}`: {plain(doc)}' for name, doc in docs if doc] + ['']
            if at := self.cell(node):
                out += ['{.origin}', f'[notebook {at[1:3]}, cell {at[4:]}](#{at})', '']
        return '\n'.join(out)

def library(modules):
    "The page of all modules."
    rows = [
        f'| [`{m.name}`](/api/{m.name}.md) | [{m.notebook[:2]}](/{m.notebook}.ipynb) | '
        f'{plain(m.doc)} |'
        for m in modules
    ]
    return '\n'.join([
        '# The library, module by module', '',
        'A module offers what its notebook exports. Comments say shapes: b batch, c channels, h w '
        'space, l tokens, d embedding, k classes, n heads.',
        '', '| module | notebook | |', '|---|---|---|', *rows, '',
        tree('modules', [m.name for m in modules])
    ])

def equations(modules):
    "The page of all equations, each with the first definition that cites it."
    code, out = {}, [
        '# All equations', '',
        'Each number leads to its equation, each name to the code that mirrors it.', ''
    ]
    for m in modules:
        for node, names in m.items:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for t in named(ast.get_docstring(node) or ''):
                    code.setdefault(t, f'[`{names[0]}`](#{lib}.{m.name}.{names[0]})')
    for nb in sorted(number.values()):
        if tags(nb):
            out += [
                f'**[{nb[:2]} {K["book"][nb][0][1].splitlines()[0].lstrip("# ")}](/{nb}.ipynb)**',
                '', ' · '.join(f'[{t}](#eq-{t.replace(".", "-")}) {code.get(t, "")}'.strip()
                               for t in tags(nb)), ''
            ]
    return '\n'.join(out)

# ---- the site -----------------------------------------------------------------------------------------------------------

def repository():
    "Where this copy of the book lives, from the environment of a workflow or from the remote; '' if it lives nowhere."
    if name := os.environ.get('GITHUB_REPOSITORY'):
        return f'{os.environ.get("GITHUB_SERVER_URL", "https://github.com")}/{name}'
    remote = subprocess.run(['git', 'remote', 'get-url', 'origin'], cwd=root, capture_output=True,
                            text=True).stdout.strip()
    m = re.fullmatch(
        r'(?:https?://|ssh://)?(?:[\w.-]+@)?([\w-]+(?:\.[\w-]+)+)[:/]([^/]+/[^/]+?)(?:\.git)?/?',
        remote)
    return f'https://{m[1]}/{m[2]}' if m and re.search('github|gitlab|bitbucket', m[1]) else ''

def colab(stem, repo):
    "Where Colab finds a notebook's copy that installs the book first: on the branch that the site is published on."
    return f'https://colab.research.google.com/github/{repo.split("github.com/")[1]}/blob/gh-pages/colab/{stem}.ipynb'

def for_colab(stem, repo):
    "That copy; Colab starts with nothing."
    nb, line = read(
        nbs/f'{stem}.ipynb'), f"%pip install -q git+{repo}@{cfg['branch']} torchmetrics hypothesis"
    return json.dumps(
        dict(
            nb, cells=[
                dict(cell_type='code', id='install', metadata={}, execution_count=None, outputs=[],
                     source=line), *nb['cells']
            ]), ensure_ascii=False)

dot = lambda x, y, r, ink: f'<circle cx="{x}" cy="{y}" r="{r}" fill="{ink}"/>'
mark = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">' + dot(
    9, 16, 8, '#1f77b4') + ''.join(
        dot(x, y, 2, '#999')
        for x, y in ((20, 8), (22, 17), (19, 25), (27, 12), (28, 22))) + '</svg>'

def settings(only):
    repo = repository()
    launch = dict(binderhub_url='https://mybinder.org',
                  notebook_interface='jupyterlab') if 'github.com' in repo else {}
    theme = dict(
        path_to_docs=cfg['nbs_path'], repository_branch=cfg['branch'], show_toc_level=1,
        use_download_button=False, use_fullscreen_button=False, navbar_persistent=[],
        home_page_in_toc=True,
        **(dict(repository_url=repo, use_repository_button=True, use_source_button=True,
                launch_buttons=launch) if repo else {}))
    return dict(project=cfg['lib_name'], author=cfg['author'],
                html_title=cfg['lib_name'], copyright=cfg['copyright'].replace(
                    '%(author)s', cfg['author']), language='en', extensions=[
                        'myst_nb', 'sphinx.ext.mathjax', 'sphinx-mathjax-offline'
                    ], source_suffix={'.ipynb': 'myst-nb', '.md': 'myst-nb'}, root_doc='index',
                html_theme='sphinx_book_theme', html_theme_options=theme, html_static_path=[
                    '_static'
                ], html_favicon='_static/mark.svg', html_context=dict(default_mode='auto'),
                html_css_files=['site.css'], html_copy_source=False, html_show_sphinx=False,
                nb_execution_mode='off', nb_render_markdown_format='myst', myst_enable_extensions=[
                    'amsmath', 'dollarmath', 'attrs_block'
                ], add_module_names=False,
                suppress_warnings=['myst.header'] + ['myst.xref_missing']*bool(only))

def main(out, only):
    from sphinx.application import Sphinx
    source = out/'source'
    shown = [s for n, s in sorted(number.items()) if not only or n in only]
    modules = [Module(module_of[s]) for s in shown if s in module_of]
    pages = {f'{s}.ipynb': page(nbs/f'{s}.ipynb', shown) for s in [*shown, 'index']}
    pages |= {f'api/{m.name}.md': m.page() for m in modules} | {
        'api/index.md': library(modules), 'equations.md': equations(modules),
        'contributing.md': (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    }
    pages |= {
        '_static/site.css': (tools/'site.css').read_text(encoding='utf-8'), '_static/mark.svg': mark
    }
    # only what changed is written, so only that is built again
    for name, body in pages.items():
        path = source/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != body:
            replace(path, body.encode())
    for path in [*source.rglob('*.*')]:
        if path.is_file() and str(path.relative_to(source)) not in pages:
            path.unlink()
    app = Sphinx(source, None, out/'html', out/'doctrees', 'html', settings(only))
    app.build()
    (out/'html'/'.nojekyll').touch()
    (out/'html'/'colab').mkdir(exist_ok=True)
    for stem in shown:
        if runs_alone(stem, repository()):
            replace(out/'html'/'colab'/f'{stem}.ipynb', for_colab(stem, repository()).encode())
    print(f'{len(pages) - 2} pages in {out/"html"}, {app._warncount} warnings')
    return bool(app._warncount)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=root/'_site')
    p.add_argument('--only', nargs='*', default=[],
                   help='numbers of notebooks, for a quick look while working on the site')
    a = p.parse_args()
    sys.exit(main(a.out.resolve(), a.only))
