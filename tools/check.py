"""Runs the checks of notebooks one by one, with only the cells that they build on.

    python tools/check.py 14.8 12       the checks of equation 14.8, and all of notebook 12
    python tools/check.py 14 -k ddim    those of notebook 14 with "ddim" in their id or title
    python tools/check.py 14 --whole    with every cell from the top: the same random numbers

Each notebook runs in a fresh process with one torch thread. A check that fails is printed with
its cell's id and traceback, and the run goes on. The last line is `N passed, N failed`.
"""
import argparse
import ast
import contextlib
import dis
import io
import linecache
import os
import re
import subprocess
import sys
import time
import traceback
import types
from itertools import takewhile
from pathlib import Path

from book import is_check, named
from nb import nbs, read, root, skipped, text


def title(source):
    "The first comment of a cell, over all its lines."
    lines = [line for line in source.splitlines() if not re.match(r'\s*#\s*\|', line)]
    return ' '.join(line[2:] for line in takewhile(lambda line: line.startswith('# '), lines))


def names_in(code, kinds, deep=True):
    "The names that instructions of these kinds name, in order: (kind, name)."
    for step in dis.get_instructions(code):
        if step.opname in kinds:
            yield step.opname, step.argval
    for part in code.co_consts if deep else ():
        if isinstance(part, types.CodeType):
            yield from names_in(part, kinds)


def changed(tree):
    "The names whose values a cell changes: x.a = 1, x[0] = 1, x.append(1)."
    for node in ast.walk(tree):
        target = None
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            target = node.value
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            target = node.value.func
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        if isinstance(target, ast.Name):
            yield target.id


def flow(source):
    "The names that a cell reads from others, those it binds, and those whose values it changes."
    tree = ast.parse(source)
    code = compile(tree, 'cell', 'exec')
    read_first, bound = set(), set()
    for kind, name in names_in(code, {'LOAD_NAME', 'STORE_NAME'}, deep=False):
        if kind == 'STORE_NAME':
            bound.add(name)
        elif name not in bound:
            read_first.add(name)
    inside = {name for part in code.co_consts if isinstance(part, types.CodeType)
              for _, name in names_in(part, {'LOAD_NAME', 'LOAD_GLOBAL'})}
    return read_first | inside - bound, bound, {*changed(tree)}


def needed(sources, wanted):
    "The places of the wanted cells and of all cells before them that they build on."
    keep, names = set(), set()
    for i in reversed(range(len(sources))):
        used, bound, touched = flow(sources[i])
        if i in wanted or keep and ((bound | touched) & names or 'exec' in used):
            keep.add(i)
            names = names - bound | used
    return keep


def run_cell(id, source, space):
    "Execute a cell as a notebook does: the value of its last expression, or None."
    name = f'<cell {id}>'
    linecache.cache[name] = len(source), None, source.splitlines(True), name
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, 'exec'), space)
    return last and eval(compile(ast.Expression(last.value), name, 'eval'), space)


def run_notebook(path, words, k, whole):
    "The work of the fresh process: exit status 0 if every check passes."
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    cells = [c for c in read(path)['cells'] if not skipped(c, [])]
    sources = [text(c['source']) for c in cells]

    def asked(cell, source):
        equations = named(title(source)) & words
        all_of_it = path.stem[:2] in words or path.stem in words
        return is_check(source) and (equations or all_of_it) and k in cell['id'] + title(source)

    wanted = {i for i, pair in enumerate(zip(cells, sources)) if asked(*pair)}
    keep = set(range(max(wanted, default=-1) + 1)) if whole else needed(sources, wanted)
    space = dict(__name__='__main__', display=lambda *a, **k: None)
    failed = 0
    for i in sorted(keep):
        start = time.time()
        try:
            # only the checks that were asked for print
            with contextlib.redirect_stdout(sys.stdout if i in wanted else io.StringIO()):
                value = run_cell(cells[i]['id'], sources[i], space)
        except Exception as e:
            trace = ''.join(traceback.format_exception(e.with_traceback(e.__traceback__.tb_next)))
            report = f'FAILED {path.stem} {cells[i]["id"]}\n{sources[i]}\n\n{trace.rstrip()}'
            print(report.replace('\n', '\n    '), flush=True)
            failed = 1
            continue
        if i in wanted:
            shown = '' if value is None else f': {value}'
            took = time.time() - start
            print(f'passed {path.stem} {cells[i]["id"]} ({took:.1f} s){shown}', flush=True)
    return failed


def environment():
    "That of a fresh process: one thread, and the library of this clone."
    env = dict(os.environ, IN_TEST='1', PYTHONHASHSEED='0', MPLBACKEND='Agg')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    return env | {v + '_NUM_THREADS': '1' for v in ('OMP', 'MKL', 'OPENBLAS')}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='+', help='equations (14.8) and notebooks (12, 14_sample)')
    p.add_argument('-k', default='', metavar='TEXT', help='only checks with it in id or title')
    p.add_argument('--whole', action='store_true', help='run every cell up to the last check')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_intermixed_args()
    words = {Path(w).stem if w.endswith('.ipynb') else w for w in a.what}
    if a.child:
        return run_notebook(nbs/a.child, words, a.k, a.whole)

    passed = failed = 0
    for path in sorted(nbs.glob('*.ipynb')):
        if not any(w[:2] == path.stem[:2] for w in words):
            continue
        command = [sys.executable, __file__, *a.what, '-k', a.k, '--child', path.name]
        child = subprocess.Popen(command + ['--whole']*a.whole, env=environment(), text=True,
                                 stdout=subprocess.PIPE, encoding='utf-8')
        before = failed
        for line in child.stdout:
            print(line, end='', flush=True)
            passed += line.startswith('passed ')
            failed += line.startswith('FAILED ')
        # a process that ended otherwise than by a failed cell counts as a failure too
        failed += child.wait() != 0 and failed == before
    print(f'{passed} passed, {failed} failed' if passed + failed else 'no such check')
    return failed > 0 or passed == 0


if __name__ == '__main__':
    sys.exit(main())
