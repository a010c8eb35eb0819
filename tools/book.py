"""Reads the notebooks: cells, modules and imports, and which code cites or checks an equation.

The rules of notebook 92, the paths of notebook 90 and the links of the site (site_build.py) are
made with these names. Nothing is executed here, and nothing is judged.
"""
import ast
import re

from nb import nbs, read, text

# ---- cells ------------------------------------------------------------------------------------

stored = {path.stem: read(path)['cells'] for path in sorted(nbs.glob('*.ipynb'))}  # as JSON
book = {nb: [(c['cell_type'], text(c['source'])) for c in cells] for nb, cells in stored.items()}


def sources(nb, kind):
    "The text of a notebook's cells of one kind, 'markdown' or 'code'."
    return [source for cell_type, source in book[nb] if cell_type == kind]


def has(source, flag):
    "Whether a cell carries a directive, such as `#| hide` or `#| export core.files`."
    return re.search(rf'^#\|[ \t]*{flag}(?:[ \t]+(\S+))?[ \t]*$', source, re.M)


# ---- modules, and what they import ------------------------------------------------------------

def own_module(nb):
    "The module that a notebook's `#| export` means without a name; None if it names none."
    for source in sources(nb, 'code'):
        m = has(source, 'default_exp')
        if m:
            return m[1]


def parts(nb):
    "(module, source) of each cell that a notebook exports, in order."
    for source in sources(nb, 'code'):
        m = has(source, 'exports?')
        if m:
            yield m[1] or own_module(nb), source


module = {}  # 'diffusion.posterior' -> '12_posterior'; a notebook may fill several
for nb in book:
    for name in [own_module(nb), *(name for name, _ in parts(nb))]:
        if name:
            assert module.setdefault(name, nb) == nb, f'{name} is filled by two notebooks'
authors = [*dict.fromkeys(module.values())]  # the notebooks that fill modules


def exported(nb, name=None):  # None: all of them
    "The code that a notebook exports into a module, without directives and magics."
    code = [source for into, source in parts(nb) if name in (None, into)]
    return re.sub(r'^[#%!]\|?.*$', '', '\n'.join(code), flags=re.M)


def imports(name):
    "The modules of the library that a module imports."
    for node in ast.walk(ast.parse(exported(module[name], name))):
        names = set()
        if isinstance(node, ast.Import):
            names = {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
        yield from {name.removeprefix('ddpm_lit.') for name in names} & module.keys()


def edges():
    "All imports as pairs of notebooks: (who imports, from whom)."
    found = {(nb, module[other]) for name, nb in module.items() for other in imports(name)}
    return {(a, b) for a, b in found if a != b}


# ---- equations, and who cites or checks them --------------------------------------------------

def tags(nb):
    "The numbers of a notebook's equations, in order."
    return [t for source in sources(nb, 'markdown')
            for t in re.findall(r'\\tag\{(\d\d\.\d+)\}', source)]


def named(source):
    "The equations that a text names, ranges included: Eq. 12.5-12.7, 12.12."
    found = set()
    for listed in re.findall(r'Eqs?\.\s*((?:\d\d\.\d+(?:\s*(?:,|and|to|-|–)\s*)?)+)', source):
        for first, last in re.findall(r'(\d\d\.\d+)(?:\s*(?:-|–|to)\s*(\d\d\.\d+))?', listed):
            chapter, low = first.split('.')
            high = (last or first).split('.')[1]
            found |= {f'{chapter}.{k}' for k in range(int(low), int(high) + 1)}
    return found


every = {t for nb in book for t in tags(nb)}


def docs(nb):
    "(name, docstring or '') of each function and class that a notebook exports."
    for node in ast.walk(ast.parse(exported(nb))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, ast.get_docstring(node) or ''


where = {}  # equation -> the first function or class of its own notebook that cites it
for nb in authors:
    for name, doc in docs(nb):
        for t in named(doc):
            if nb.startswith(t[:2]):
                where.setdefault(t, name)


def is_check(source):
    "Whether a cell is always run and can fail."
    can_fail = r'(?<![\w.])(close|test_\w+|expect_fail)\(|^\s*assert\b|;\s*assert\b'
    left_out = r'^#\|\s*(eval:\s*false|slow|gpu|peers)|^#\|\s*exports?\b'
    return bool(re.search(can_fail, source, re.M)) and not re.search(left_out, source, re.M)


def checked(nb):
    "The equations that a notebook's checks name."
    return set().union(*(named(source) for source in sources(nb, 'code') if is_check(source)))


def check_of(nb, t):
    "The first cell that checks an equation."
    for cell in stored[nb]:
        source = text(cell['source'])
        if cell['cell_type'] == 'code' and is_check(source) and t in named(source):
            return cell


def last_words(cell):
    "The last line of what a cell showed when it was last saved; '' if it showed none."
    shown = [text(o.get('text') or o.get('data', {}).get('text/plain', ''))
             for o in cell['outputs']]
    lines = '\n'.join(shown).strip().splitlines()
    return lines[-1][:72] if lines else ''
