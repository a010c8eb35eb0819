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
    "Whether a cell carries a directive, such as `#| hide`."
    return re.search(rf'^#\|\s*{flag}\s*$', source, re.M)


# ---- modules, and what they import ------------------------------------------------------------

module = {}  # 'diffusion.posterior' -> '12_posterior'
for nb in book:
    for source in sources(nb, 'code'):
        m = re.search(r'^#\|\s*default_exp\s+(\S+)', source, re.M)
        if m:
            module[m[1]] = nb


def exported(nb):
    "The code that a notebook exports, without directives and magics."
    code = [source for source in sources(nb, 'code') if has(source, 'exports?')]
    return re.sub(r'^[#%!]\|?.*$', '', '\n'.join(code), flags=re.M)


def imports(nb):
    "The modules of the library that a notebook's exported code imports."
    for node in ast.walk(ast.parse(exported(nb))):
        names = set()
        if isinstance(node, ast.Import):
            names = {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
        yield from {name.removeprefix('ddpm_lit.') for name in names} & module.keys()


def edges():
    "All imports as pairs of notebooks: (who imports, from whom)."
    found = {(nb, module[name]) for nb in module.values() for name in imports(nb)}
    return {(a, b) for a, b in found if a != b}


# ---- equations, and who cites or checks them --------------------------------------------------

def tags(nb):
    "The numbers of a notebook's equations, in order."
    return [t for source in sources(nb, 'markdown')
            for t in re.findall(r'\\tag\{(\d\d\.\d+)\}', source)]


def named(source):
    "The equations that a text names, ranges included: Eq. 12.1-12.3, 12.5."
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
for nb in module.values():
    for name, doc in docs(nb):
        for t in named(doc):
            if nb.startswith(t[:2]):
                where.setdefault(t, name)


def is_check(source):
    "Whether a cell is always run and can fail."
    can_fail = r'(?<![\w.])(close|test_\w+|expect_fail)\(|^\s*assert\b|;\s*assert\b'
    left_out = r'^#\|\s*(eval:\s*false|slow|gpu|peers)|^#\|\s*exports?\s*$'
    return bool(re.search(can_fail, source, re.M)) and not re.search(left_out, source, re.M)


def checked(nb):
    "The equations that a notebook's checks name."
    return set().union(*(named(source) for source in sources(nb, 'code') if is_check(source)))
