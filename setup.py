"""Builds the package from settings.ini; data/ travels inside the wheel as ddpm_lit/data_files.

In the wheel the comments beside arguments, shapes and units, stand in the docstrings too, where
help() shows them, with the notebook that derives each module and the cell of each name.

Left out are what measures the library, ddpm_lit.bench and data/parity (a wheel stays below 100 MB),
and _modidx.py, nbdev's index of the notebooks, which the library never reads.
"""
import ast
import io
import tokenize
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, files = cfg['lib_name'], cfg['lib_name'] + '.data_files'
readme = here/'README.md'


def beside(node, comments):
    "What comments beside the arguments of a function, or the fields of a class, say of them."
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if getattr(n, 'name', '') == '__init__']
        if made:
            return [row for row in beside(made[0], comments) if row[0] != 'returns']
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return [[n.target.id, comments[n.end_lineno]] for n in fields if n.end_lineno in comments]

    args = node.args
    args = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    rows = []
    for line in range(node.lineno, node.body[0].lineno):
        here = [a.arg for a in args if a and a.lineno == line and a.arg not in ('self', 'cls')]
        if line not in comments:
            continue
        if node.returns and node.returns.end_lineno == line:
            rows.append(['returns', comments[line]])
        elif here:
            rows.append([', '.join(here), comments[line]])
        elif rows:  # a comment that goes on
            rows[-1][1] += ' ' + comments[line]
    return rows


def with_comments(text):
    "A module whose docstrings say what its comments say, and where each name is derived."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    cells = {n: c.removeprefix('%% ').lstrip('./') for n, c in comments.items() if c[:3] == '%% '}
    lines = text.splitlines()
    kinds = ast.FunctionDef, ast.ClassDef
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds) and ast.get_docstring(n)]

    # from the end, so that the places of what comes before stay
    for node in sorted(nodes, key=lambda n: -n.body[0].lineno):
        if any(w in ast.unparse(d) for w in ('command', 'group') for d in node.decorator_list):
            continue  # its docstring is printed by --help
        doc, pad = node.body[0], ' '*node.body[0].col_offset
        said = [f'{names}: {what}' for names, what in beside(node, comments)]
        if not node.col_offset and (cell := [c for n, c in cells.items() if n < node.lineno]):
            said.append('Docs: ' + cell[-1].replace(' #', ', cell '))
        if said:
            whole = '\n'.join([ast.get_docstring(node), '', *said])
            whole = whole.replace('\\', '\\\\').replace('"""', '\\"\\"\\"').splitlines()
            whole = [f'{pad}{line}'.rstrip() for line in whole]
            lines[doc.lineno - 1:doc.end_lineno] = [f'{pad}"""{whole[0].lstrip()}', *whole[1:],
                                                    f'{pad}"""']

    # the module itself: the notebooks that derive it
    notebooks = {c.split(' #')[0]: None for c in cells.values() if '.ipynb #' in c}
    notebooks = [n for n in notebooks if '/rooms/' not in n]
    if (doc := ast.get_docstring(ast.parse(text))) and notebooks:
        end = ast.parse(text).body[0].end_lineno
        lines[:end] = [f'"""{doc}', '', 'Docs: ' + ', '.join(notebooks), '"""']
    return '\n'.join(lines) + '\n'


class Documented(build_py):
    def build_module(self, module, module_file, package):
        done = super().build_module(module, module_file, package)
        if not self.editable_mode:
            built = Path(done[0])
            built.write_text(with_comments(built.read_text(encoding='utf-8')), encoding='utf-8')
        return done

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [(*names, path) for *names, path in found if Path(path).name != '_modidx.py']


setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: ' + cfg['audience'],
                 'Natural Language :: ' + cfg['language'],
                 *(f'Programming Language :: Python :: 3.{n}' for n in range(10, 15))],
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[extra + '_requirements'].split()
                    for extra in ('dev', 'docs', 'peers', 'export', 'data')},
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
    packages=find_packages(str(here), include=[lib, lib + '.*'],
                           exclude=[lib + '.bench']) + [files],
    package_dir={lib: lib, files: 'data'},
    package_data={lib: ['py.typed', 'names.json', 'play/*'], files: ['*', '**/*']},
    # measurements that notebooks alone read stay out as well
    exclude_package_data={files: ['parity/*', 'icons/*', '**/*.tmp', 'runs/edits.*',
                                  'runs/copying.*', 'runs/own-icons.*',
                                  'runs/own-style.*', 'runs/hoops.*',
                                  'runs/lora-teal.*', 'runs/series.*', 'runs/restore.*',
                                  'runs/*-film.*', 'runs/latent-two.*']},
    include_package_data=False, zip_safe=False,
    cmdclass=dict(build_py=Documented),
)
