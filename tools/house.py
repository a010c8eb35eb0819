"""Draws the house: the rooms of ddpm_lit and which room uses which, read from the imports.

    python tools/house.py             write the drawing into CONTRIBUTING.md
    python tools/house.py --check     say whether it is in step
    python tools/house.py --counts    lines, names and functions of each room

Imports at the head of a module count, and so do those inside functions, drawn as broken lines.
"""
import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

root = Path(__file__).resolve().parent.parent
package = root/'ddpm_lit'
page = root/'CONTRIBUTING.md'
begin, end = '<!-- the house: python tools/house.py -->', '<!-- end of the house -->'
rooms = sorted(p.parent.name for p in package.glob('*/__init__.py'))


def modules(room):
    "(path, syntax tree) of a room's modules."
    for path in sorted((package/room).glob('*.py')):
        yield path, ast.parse(path.read_text(encoding='utf-8'))


def room_of(node, path):
    "The rooms that an import statement names."
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif node.level:  # .level, ..core.level: from the room that stands so many folders above
        above = path.relative_to(root).parts[:-node.level]
        names = ['.'.join([*above, node.module or '', a.name]) for a in node.names]
    else:
        names = [f'{node.module}.{a.name}' for a in node.names]
    parts = [name.replace('..', '.').split('.') for name in names]
    return {p[1] for p in parts if p[0] == 'ddpm_lit' and p[1:] and p[1] in rooms}


def uses(room):
    "(rooms used by the heads of its modules, rooms used within its functions only)."
    head, within = set(), set()
    for path, tree in modules(room):
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                (head if node in tree.body else within).update(room_of(node, path))
    return head - {room}, within - head - {room}


def below(room, used):
    "All rooms that a room stands on."
    direct = used[room]
    return direct.union(*(below(other, used) for other in direct))


def drawing():
    "The rooms as a graph without arrows that follow from others, and a line on each."
    found = {room: uses(room) for room in rooms}
    used = {room: head for room, (head, _) in found.items()}
    lines = ['```mermaid', 'graph TD']
    for room, (head, within) in found.items():
        direct = head - set().union(*(below(other, used) for other in head))
        lines += [f'    {room} --> {other}' for other in sorted(direct)]
        lines += [f'    {room} -.-> {other}' for other in sorted(within - below(room, used))]
    lines += ['```', '', '| room | what it does | modules |', '|---|---|---|']
    for room in sorted(rooms, key=lambda r: (len(below(r, used)), r)):
        trees = dict(modules(room))
        about = ast.get_docstring(trees[package/room/'__init__.py']).splitlines()[0]
        names = ' '.join(p.stem for p in trees if not p.stem.startswith('_'))
        lines.append(f'| `{room}` | {about} | {names} |')
    return '\n'.join(lines)


def branches(function):
    "Ways through a function: one, and one more for each condition, loop and handler."
    forks = ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert
    n = 1
    for node in ast.walk(function):
        n += isinstance(node, forks)
        if isinstance(node, ast.comprehension):
            n += 1 + len(node.ifs)
        if isinstance(node, ast.BoolOp):
            n += len(node.values) - 1
    return n


def parameters(function):
    a = function.args
    return len(a.posonlyargs + a.args + a.kwonlyargs)


def public(tree):
    "The names in a module's `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return ast.literal_eval(node.value)
    return []


def counts():
    "A table: for each room its lines, public names, and functions that are large."
    heads = 'over 7 parameters', 'over 10 branches'
    print(f'{"room":10} {"lines":>7} {"names":>6} {heads[0]:>18} {heads[1]:>17}')
    total, homes = [0]*4, defaultdict(set)
    for room in [*rooms, '']:  # '': the modules outside all rooms
        row = [0]*4
        for path, tree in modules(room):
            if path.stem == '_modidx':
                continue
            names = public(tree)
            functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
            row[0] += len(path.read_text(encoding='utf-8').splitlines())
            row[1] += len(names)
            row[2] += sum(parameters(f) > 7 for f in functions)
            row[3] += sum(branches(f) > 10 for f in functions)
            if path.stem != '__init__':  # which offers what stands elsewhere
                for name in names:
                    homes[name].add(path)
        total = [a + b for a, b in zip(total, row)]
        print(f'{room or "(none)":10} {row[0]:7,} {row[1]:6,} {row[2]:18} {row[3]:17}')
    print(f'{"all":10} {total[0]:7,} {total[1]:6,} {total[2]:18} {total[3]:17}')
    twice = sorted(name for name, paths in homes.items() if len(paths) > 1)
    print(f'{len(twice)} names stand in two modules: {" ".join(twice)}')


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true')
    p.add_argument('--counts', action='store_true')
    a = p.parse_args()
    if a.counts:
        return counts()
    text = page.read_text(encoding='utf-8')
    if begin not in text or end not in text:
        return f'{page.name} lacks the lines "{begin}" and "{end}"'
    before, rest = text.split(begin)
    new = f'{before}{begin}\n{drawing()}\n{end}{rest.split(end)[1]}'
    if a.check:
        return 0 if new == text else f'the house in {page.name} is out of step; run tools/house.py'
    page.write_text(new, encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
