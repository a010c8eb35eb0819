"""Runs the checks of notebooks one by one, with only the cells that they build on.

    python tools/check.py 14.8 12       the checks of equation 14.8, and all of notebook 12
    python tools/check.py -k 14.8       those with "14.8" in their id or title, in any notebook
    python tools/check.py 14 -k ddim    those of notebook 14 with "ddim" there
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
from nb import nbs, read, root, silent, skipped, text


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


def patched(tree):
    "The names that a cell puts something else in the place of: patch(f'{__name__}.a')."
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield from re.findall(r'\{__name__\}\.(\w+)', ast.unparse(node))


def registers(tree):
    "Whether a cell makes something known by a name, `@KINDS.add('a')`: any other may need it."
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    calls += [call for node in tree.body for call in getattr(node, 'decorator_list', ())]
    return any(isinstance(call, ast.Call)
               and ast.unparse(call.func).split('.')[-1] in ('add', 'register')
               for call in calls)


def effects(sources):
    "The names whose values a call changes, by the name of the function."
    found = {node.name: {*changed(node)} for source in sources for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef)}
    for _ in found:
        further = {f: names.union(*(found.get(name, ()) for name in names))
                   for f, names in found.items()}
        if further == found:
            break
        found = further
    return found


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
    return read_first | {*patched(tree)} | inside - bound, bound, {*changed(tree)}


def needed(sources, wanted):
    "The places of the wanted cells and of all cells before them that they build on."
    keep = set()
    names = set()
    by_call = effects(sources)
    for i in reversed(range(len(sources))):
        used, bound, touched = flow(sources[i])
        touched = touched.union(*(by_call.get(name, ()) for name in touched))
        needs = (bound | touched) & names or 'exec' in used or registers(ast.parse(sources[i]))
        if i in wanted or keep and needs:
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


def checks_of(path, words, k):
    "The cells of a notebook that can run: ids, sources, and the places of the wanted checks."
    cells = [c for c in read(path)['cells'] if not skipped(c, [])]
    ids = [c['id'] for c in cells]
    sources = [text(c['source']) for c in cells]
    all_of_it = not words or path.stem[:2] in words or path.stem in words

    # 14.8 is not 14.81
    pattern = re.escape(k)
    if re.fullmatch(r'\d+\.\d+', k):
        pattern = rf'(?<!\d){pattern}(?!\d)'

    def asked(id, source):
        first = title(source)
        return (is_check(source) and (all_of_it or named(first) & words)
                and re.search(pattern, f'{id} {first}'))

    return ids, sources, {i for i, pair in enumerate(zip(ids, sources)) if asked(*pair)}


def run_notebook(path, words, k, whole):
    "The work of the fresh process: exit status 0 if every check passes."
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    ids, sources, wanted = checks_of(path, words, k)
    keep = set(range(max(wanted, default=-1) + 1)) if whole else needed(sources, wanted)
    # what a cell defines, tests and patches as `__main__`
    sys.modules['__main__'] = types.ModuleType('__main__')
    space = vars(sys.modules['__main__'])
    space['display'] = silent
    failed = 0
    for i in sorted(keep):
        start = time.time()
        try:
            # only the checks that were asked for print
            with contextlib.redirect_stdout(sys.stdout if i in wanted else io.StringIO()):
                value = run_cell(ids[i], sources[i], space)
        except Exception as e:
            trace = ''.join(traceback.format_exception(e.with_traceback(e.__traceback__.tb_next)))
            report = f'FAILED {path.stem} {ids[i]}\n{sources[i]}\n\n{trace.rstrip()}'
            print(report.replace('\n', '\n    '), flush=True)
            failed = 1
            continue
        if i in wanted:
            shown = '' if value is None else f': {value}'
            took = time.time() - start
            print(f'passed {path.stem} {ids[i]} ({took:.1f} s){shown}', flush=True)
    return failed


def environment():
    "That of a fresh process: one thread, and the library of this clone."
    env = dict(os.environ, IN_TEST='1', PYTHONHASHSEED='0', MPLBACKEND='Agg')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    return env | {v + '_NUM_THREADS': '1' for v in ('OMP', 'MKL', 'OPENBLAS')}


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='*', help='equations (14.8) and notebooks (12, 14_sample)')
    p.add_argument('-k', default='', metavar='TEXT', help='only checks with it in id or title')
    p.add_argument('--whole', action='store_true', help='run every cell up to the last check')
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_intermixed_args()
    words = {Path(w).stem if w.endswith('.ipynb') else w for w in a.what}
    if not (words or a.k):
        p.error('name equations or notebooks, or give -k')
    if a.child:
        return run_notebook(nbs/a.child, words, a.k, a.whole)

    passed = failed = 0
    for path in sorted(nbs.glob('*.ipynb')):
        if words and not any(w[:2] == path.stem[:2] for w in words):
            continue
        if not checks_of(path, words, a.k)[2]:
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
