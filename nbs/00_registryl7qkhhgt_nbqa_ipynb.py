# %%NBQA-CELL-SEP7dc948
#| default_exp core.registry


# %%NBQA-CELL-SEP7dc948
#| export
import importlib
import importlib.util
import json
import sys
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from traceback import extract_tb
import ddpm_lit
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| hide
import copy
import os
import subprocess
import tempfile
import unittest.mock as mock
from dataclasses import dataclass
from ddpm_lit.core.check import expect_fail, passed, setup

setup()


# %%NBQA-CELL-SEP7dc948
# Figure 00.3: how a name is found
from ddpm_lit import show

asked, known = '--sampler heun', 'registry SAMPLERS'
first, found = 'names.json', 'import\nddpm_lit.diffusion.solve'
second = 'what installed packages declare'
boxes = {asked: (.7, .75), known: (2.5, .75), first: (4.2, 1.15), found: (6., 1.15),
         second: (4.9, .3)}
arrows = [(asked, known, ''), (known, first, '1'), (first, found, ''), (known, second, '2')]
show.diagram(boxes, arrows, inks={known: 'model'}, height=1.5).figure.set_dpi(160)


# %%NBQA-CELL-SEP7dc948
#| eval: false
from ddpm_lit.core.registry import Registry

SAMPLERS = Registry('sampler')


@SAMPLERS.add('mine')        # or SAMPLERS.add('mine', sampler)
def sampler(denoiser, levels, x):
    ...


SAMPLERS.find('mine')        # the function
SAMPLERS.find('dpmpp_2m')    # imports ddpm_lit.diffusion.solve, which adds it


# %%NBQA-CELL-SEP7dc948
#| export
@lru_cache
def _library_names() -> dict[str, dict[str, str]]:  # kind -> name -> module
    "Which module of the library adds which name: the generated list, read once."
    path = Path(str(ddpm_lit.__file__)).parent/'names.json'
    return json.loads(path.read_text(encoding='utf-8'))


# %%NBQA-CELL-SEP7dc948
#| export
def _described(thing):
    "What a thing is, without the module in which it was defined."
    if isinstance(thing, partial):
        named = [(k, _described(v)) for k, v in sorted(thing.keywords.items())]
        return 'partial', _described(thing.func), [*map(_described, thing.args)], named

    # an object by its values: two that were built alike mean the same
    if is_dataclass(thing) and not isinstance(thing, type):
        parts = [_described(getattr(thing, f.name)) for f in fields(thing)]
        return type(thing).__qualname__, parts

    # constants as they are, all else by its name
    if isinstance(thing, (str, int, float, bool, tuple, type(None))):
        return thing
    return getattr(thing, '__qualname__', type(thing).__qualname__)


# %%NBQA-CELL-SEP7dc948
#| export
class UnknownName(Problem):
    "A name that is in no registry of its kind, and what to do instead."

    def __init__(self, kind: str, name: str, hint: str):
        super().__init__(f'There is no {kind} "{name}": {hint}')
        self.kind = kind
        self.name = name
        self.hint = hint

    def __reduce__(self):  # from one process to another
        return type(self), (self.kind, self.name, self.hint)


def is_own(module: str) -> bool:
    "Whether a module belongs to the library."
    return module.split('.')[0] == 'ddpm_lit'


def caller() -> str:
    "The module that called the function that asks."
    return sys._getframe(2).f_globals['__name__']


# what a file calls a name may be megabytes: nothing looks like that
_LONGEST_NAME = 300


# %%NBQA-CELL-SEP7dc948
#| export
class Registry(dict):
    "Things of one kind by name: each name once, found without knowing its module."

    def __init__(
        self,
        kind: str,        # what the things are called, in sentences and in the list
        group: str = '',  # the entry points of other packages; '': none
    ):
        self.kind = kind
        self.group = group
        self.owners: dict[str, str] = {}   # name -> the module that added it
        self.aliases: dict[str, str] = {}  # a shorter name -> the name
        self.covered: dict[str, tuple] = {}  # what a notebook's own stands in for

    def add(
        self,
        name: str,
        *thing,                    # left out where this decorates a definition
        owner: str | None = None,  # None: the module that calls this
    ):
        "Make a thing known by a name; a second meaning of the name is a `Problem`."
        owner = owner or caller()
        if not thing:
            return partial(self._decorate, name, owner)
        self._put(name, thing[0], owner)
        return None

    def add_all(self, things: dict):
        "Make several things known, each by its name."
        owner = caller()
        for name, thing in things.items():
            self._put(name, thing, owner)

    def _decorate(self, name, owner, thing):
        self._put(name, thing, owner)
        return thing

    def _may_follow(self, name, thing, owner, before) -> bool:
        "Is it the same, built alike in one place, or does a notebook change its own?"
        if owner == before == '__main__':
            return True
        same_place = owner == before or '__main__' in (owner, before)
        return same_place and _described(thing) == _described(self.get(name))

    def _check_free(self, name, thing, owner):
        "A `Problem` if the name means something else already."
        if name in self.aliases:
            known = self.aliases[name]
            raise Problem(f'"{name}" means the {self.kind} "{known}" already: '
                          'give yours another name.')

        # no plug-in may take a name of the library, whether its module is imported or not
        guest = not is_own(owner) and owner != '__main__'
        if name not in self and not (guest and name in self.library()):
            return

        before = self.owners.get(name) or self.library().get(name, 'elsewhere')
        if self._may_follow(name, thing, owner, before):
            return

        # the library keeps its names, also where it comes second
        late = is_own(owner) and not is_own(before)
        first, second = (owner, before) if late else (before, owner)
        raise Problem(f'There is a {self.kind} "{name}" already, from {first}: give '
                      f'yours, from {second}, another name.')

    def _put(self, name, thing, owner):
        if self.get(name) is not thing:
            self._check_free(name, thing, owner)

        # a notebook that defines the library's object anew has its own for a while
        if is_own(owner):
            self.covered.pop(name, None)
        elif name in self and is_own(self.owners.get(name, '')):
            self.covered[name] = self[name], self.owners[name]
        self[name] = thing
        self.owners[name] = owner

    def alias(self, short: str, name: str):
        "A second name for a thing."
        owner = caller()
        if self.aliases.get(short) == name:
            return
        taken = short in self or short in self.aliases
        if taken or (not is_own(owner) and short in self.library()):
            raise Problem(f'"{short}" means another {self.kind} already.')
        self.aliases[short] = name
        self.owners[short] = owner

    def forget(self):
        "Keep what the library added, and drop what notebooks and plug-ins did."
        guests = [name for name, owner in self.owners.items() if not is_own(owner)]
        for name in guests:
            del self.owners[name]
            self.pop(name, None)
            self.aliases.pop(name, None)

        for name, (thing, owner) in self.covered.items():
            self[name] = thing
            self.owners[name] = owner
        self.covered = {}

    def library(self) -> dict[str, str]:  # name -> module
        "The library's own names of this kind, whether their modules are imported or not."
        return _library_names().get(self.kind, {})

    def declared(self):
        "What other packages declare: entry points."
        return entry_points(group=self.group) if self.group else ()

    def load(self, name: str | None = None):
        "Import what adds this name, or whatever adds anything."
        for module in sorted({m for n, m in self.library().items() if name in (None, n)}):
            importlib.import_module(module)

        # a name that means something else already is refused
        for point in self.declared():
            if name in (None, point.name):
                self._put(point.name, point.load(), point.value)

    def look(self, name: str):
        "The thing of that name, wherever it is defined, or None."
        # in a file anything may stand in the place of a name
        if not isinstance(name, str):
            raise Problem(f'The name of a {self.kind} is text, and none is of the type '
                          f'{type(name).__name__}: give it in quotes.')
        name = self.aliases.get(name, name)
        if name not in self:
            self.load(name)
        return self.get(self.aliases.get(name, name))

    def find(self, name: str):
        "The thing of that name, wherever it is defined; `UnknownName` if there is none."
        thing = self.look(name)
        if thing is not None:
            return thing

        # of many names only those that are spelled alike
        known = self.names()
        near = []
        if len(known) > 12 and len(name) <= _LONGEST_NAME:
            near = get_close_matches(name.lower(), known)
        hint = f'choose one of {", ".join(known)}.'
        if near:
            hint = f'did you mean {" or ".join(near)}?'
        raise UnknownName(self.kind, name, hint)

    def names(self) -> list[str]:
        "All names that there are, without importing what they mean."
        declared = {point.name for point in self.declared()}
        return sorted({*self, *self.library(), *declared} - self.aliases.keys())


# %%NBQA-CELL-SEP7dc948
# Names are found, in a table of their own, by the list, in entry points; unknown ones are answered
# by all there are
colours = Registry('colour', group='ddpm_lit.colours')
modules = dict(red='ddpm_lit.red', scarlet='ddpm_lit.red')
listed = dict(colour=modules, ground=dict(blue='not.there'))


class Point:
    name = 'green'
    value = 'a_package:green'

    def load(self):
        return 'G'


def imported(module):
    assert module == 'ddpm_lit.red'
    colours._put('red', 'R', module)
    colours.aliases['scarlet'] = 'red'


def declared(group):
    assert group == 'ddpm_lit.colours'
    return [Point()]


here = dict(_library_names=lambda: listed, entry_points=declared)
with mock.patch.dict(globals(), here), mock.patch('importlib.import_module', imported):
    # no plug-in takes a name of the list, nor an alias, and nothing is imported to find that out
    with expect_fail('already, from ddpm_lit.red: give yours, from a_plugin, another', Problem):
        colours._put('red', 'mine', 'a_plugin')
    with expect_fail('"scarlet" means another colour already', Problem):
        colours.alias('scarlet', 'green')
    assert colours.names() == ['green', 'red', 'scarlet'] and not colours
    assert colours.find('scarlet') == 'R' and colours.names() == ['green', 'red']
    assert colours.find('red') == 'R' and [*colours] == ['red']
    assert colours.look('blue') is None and colours.find('green') == 'G'
    with expect_fail('choose one of green, red', Problem):
        colours.find('blue')
    with mock.patch.dict(colours, {f'shade-{i}': i for i in range(20)}):
        with expect_fail('"gren": did you mean green?', Problem):
            colours.find('gren')
    # a name of a megabyte is compared with none
    many = mock.patch.dict(colours, {f'shade-{i}': i for i in range(20)})
    with many, mock.patch.dict(globals(), get_close_matches=None):
        with expect_fail('There is no colour "xxx', Problem, show=False):
            colours.find('x'*10**6)
    # in a file anything may stand in the place of a name
    for name in (7, None, [], {}):
        with expect_fail('The name of a colour is text', Problem, show=False):
            colours.find(name)
    again = copy.copy(UnknownName('colour', 'blue', 'choose red.'))
    assert (again.kind, again.name) == ('colour', 'blue') and 'no colour "blue"' in str(again)
    colours.alias('rouge', 'red')
    assert colours.find('rouge') == 'R' and colours.names() == ['green', 'red']
    with expect_fail('"rouge" means the colour "red" already', Problem):
        colours.add('rouge', 'another')
    with expect_fail('means another colour', Problem):
        colours.alias('green', 'red')
    with expect_fail('means another colour', Problem):
        colours.alias('rouge', 'green')
    # a package may declare what is there, and nothing else under its name
    colours.load()
    with mock.patch.object(Point, 'name', 'red'):
        with expect_fail('already, from ddpm_lit.red: give yours, from a_package:green', Problem):
            colours.load()
        # the sentence is the same if the library's module is imported last, or not at all
        del colours['red']
        with expect_fail('already, from ddpm_lit.red: give yours, from a_package:green', Problem):
            colours.find('red')
        with mock.patch.dict(modules, clear=True):
            del colours['red']
            colours.find('red')
        with expect_fail('already, from ddpm_lit.red: give yours, from a_package:green', Problem):
            imported('ddpm_lit.red')
        colours['red'] = 'R'
passed('a name is found where it is defined', by='three places and an alias')


# %%NBQA-CELL-SEP7dc948
# What all modules add is what the list says; a name imports what its module does, the list nothing
every = """
import importlib, json, pkgutil, sys
import ddpm_lit
from ddpm_lit.core.registry import Registry

added = {}
for module in pkgutil.walk_packages(ddpm_lit.__path__, 'ddpm_lit.'):
    if module.name != 'ddpm_lit.__main__':
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, Registry):
                added[id(thing)] = thing
print(json.dumps([(r.kind, name, r.owners[name]) for r in added.values() for name in r.owners]))
"""
one = """
import sys
from ddpm_lit.train.recipe import RECIPES
before = {*sys.modules}
names = RECIPES.names()
assert 'clip-vit-cbow' in names and before == {*sys.modules}
"""
by_name = "RECIPES.find('clip-vit-cbow')"
by_hand = f"import {_library_names()['recipe']['clip-vit-cbow']}"
shown = "print(*sorted(m for m in {*sys.modules} - before if m.startswith('ddpm_lit.')))"


def in_new_process(*program):
    command = [sys.executable, '-c', '\n'.join(program)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert not said.returncode, said.stderr
    return said.stdout


added = [tuple(row) for row in json.loads(in_new_process(every))]
listed = [(kind, name, module) for kind, names in _library_names().items()
          for name, module in names.items()]
lacks, too_many = {*added} - {*listed}, {*listed} - {*added}
assert not lacks and not too_many, (lacks, too_many)
assert len(added) == len({(kind, name) for kind, name, _ in added}) > 100

assert in_new_process(one, by_name, shown) == in_new_process(one, by_hand, shown) != ''
passed('the list has what all modules add, and nothing else', by='a new process, both directions')


# %%NBQA-CELL-SEP7dc948
# A second meaning is refused; a cell that runs again, and a module beside its notebook, are not
tables = Registry('table')


@tables.add('square')
def square(x):
    return x*x


assert tables['square'] is square and square(3) == 9 and tables.owners['square'] == '__main__'


@tables.add('square')
def square(x):  # the cell again
    return x**2


assert tables['square'] is square

# the module of this notebook adds its own
twin = partial(square)
tables._put('square', square, 'a.module')
assert tables.owners['square'] == 'a.module'
with expect_fail('There is a table "square" already, from a.module', Problem):
    tables._put('square', lambda x: x, 'another.module')
with expect_fail('give yours, from __main__, another name', Problem):
    tables.add('square', twin)  # at the prompt, and not described alike


@dataclass(frozen=True)
class Size:
    side: int
    made: object = None


assert _described(Size(3, square)) == _described(Size(3, square)) != _described(Size(4, square))
assert _described(partial(square, x=1)) != _described(partial(square))
assert _described(partial(square, x=1)) == _described(partial(square, x=1))
assert _described(partial(square, 1)) != _described(partial(square, 2))
tables._put('churned', partial(square, x=0), 'a.module')
tables._put('churned', partial(square, x=0), 'a.module')
with expect_fail('There is a table "churned" already', Problem):
    tables._put('churned', partial(square, x=1), 'a.module')
# nor may one module give a name two meanings
with expect_fail('There is a table "square" already', Problem):
    tables._put('square', twin, 'a.module')
tables._put('square', square, 'a.module')
passed('a second meaning of a name is refused', by='eight ways to add it twice')


# %%NBQA-CELL-SEP7dc948
# `forget` leaves what the library added: what a notebook put in its place goes, and so do a
# plug-in's names and both their aliases
def shown():
    return {k: tables.find(k) for k in ('square', 'block')}


tables = Registry('table')
with mock.patch(f'{__name__}._library_names', dict):
    tables._put('square', square, 'ddpm_lit.a')
    tables._put('block', 'B', 'ddpm_lit.a')
    tables.aliases['box'] = 'square'
    tables.owners['box'] = 'ddpm_lit.a'
    before = shown()

    @tables.add('square')
    def square(x):
        return x**2

    tables.add('mine', 1)
    tables._put('yours', 2, 'ddpm_lit_plugin_yours')
    tables.alias('own', 'mine')
    tables.alias('box', 'square')
    assert shown() != before and tables.find('own') == 1
    tables.forget()
    assert shown() == before and sorted(tables) == ['block', 'square']
    assert tables.aliases == {'box': 'square'} and {*tables.owners.values()} == {'ddpm_lit.a'}

    # a module that comes after its notebook keeps its place
    tables.add('late', square)
    tables._put('late', square, 'ddpm_lit.b')
    tables.forget()
    assert tables.owners['late'] == 'ddpm_lit.b' and not tables.covered
passed('a notebook leaves no name behind', by='its own, a covered one, a plug-in, two aliases')


# %%NBQA-CELL-SEP7dc948
#| export
def _plugin_fault(path, file: str, e: BaseException) -> Problem:
    "What went wrong in a plug-in, and in which of its lines."
    lines = [f.lineno for f in extract_tb(e.__traceback__) if f.filename == file]
    if isinstance(e, SyntaxError):
        lines = [e.lineno]
    where = f' in line {lines[-1]}' if lines and lines[-1] else ''
    try:
        words = str(e)
    except Exception:
        words = 'without words'
    return Problem(f'The plug-in {path} fails{where} ({type(e).__name__}: {words}): '
                   'mend it first.')


def _check_plugin(path: Path, name: str, whole: str):  # whole: its path from the root
    "A `Problem` unless this is a Python file, and the only plug-in of its name."
    if not path.exists():
        raise Problem(f'There is no plug-in {path}: give the path of a Python file.')
    if path.suffix != '.py' or not path.is_file():
        raise Problem(f'{path} is no Python file: a plug-in is a file NAME.py.')
    if name in sys.modules and sys.modules[name].__file__ != whole:
        raise Problem(f'There is a plug-in {path.stem} already, from '
                      f'{sys.modules[name].__file__}: rename one of them.')


def load_plugin(path) -> str:  # the name of its module
    "Run a Python file that adds to the registries. A `Problem` if it cannot be."
    path = Path(path)
    whole = str(path.resolve())
    name = f'ddpm_lit_plugin_{path.stem}'
    _check_plugin(path, name, whole)

    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec and spec.loader  # since it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module

    # it runs here; one that fails is forgotten, so that it can be loaded when mended
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        del sys.modules[name]
        # Ctrl-C is no failure of its own, an error that it defines is, whatever its kind
        own = isinstance(e, (Exception, SystemExit)) or type(e).__module__ == name
        if isinstance(e, Problem) or not own:
            raise
        raise _plugin_fault(path, whole, e) from e

    return name


# %%NBQA-CELL-SEP7dc948
# A file adds a sampler to the library's own table; a broken one is told by its line
program = """
from ddpm_lit.core.registry import Registry, load_plugin
import ddpm_lit.core.registry as registry
registry.TABLE = Registry('table')
load_plugin('mine.py')
print(registry.TABLE.find('mine')(3), registry.TABLE.owners['mine'])
"""
taken = """
import sys
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.registry import load_plugin
try:
    load_plugin('heun.py')
except Problem as e:
    print(e)
"""
with tempfile.TemporaryDirectory() as d:
    (Path(d)/'mine.py').write_text('from ddpm_lit.core import registry\n'
                                   'registry.TABLE.add("mine", lambda x: x + 1)\n')
    (Path(d)/'broken.py').write_text('x = 1\ny = x/0\n')
    (Path(d)/'syntax.py').write_text('x = (\n')
    (Path(d)/'ends.py').write_text('raise SystemExit(3)\n')
    said = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=d)
    assert said.stdout == '4 ddpm_lit_plugin_mine\n', said
    # a name of the library is refused before the module is imported that defines it
    (Path(d)/'heun.py').write_text('from ddpm_lit.diffusion.sample import SAMPLERS\n'
                                   'SAMPLERS.add("heun", lambda x: x + 1)\n')
    said = subprocess.run([sys.executable, '-c', taken], capture_output=True, text=True, cwd=d)
    assert said.stdout == ('There is a sampler "heun" already, from ddpm_lit.diffusion.solve: '
                           'give yours, from ddpm_lit_plugin_heun, another name.\n'), said
    with mock.patch.object(sys, 'stdout'):
        with expect_fail('fails in line 2 (ZeroDivisionError', Problem):
            load_plugin(Path(d)/'broken.py')
        with expect_fail('fails in line 1 (SyntaxError', Problem):
            load_plugin(Path(d)/'syntax.py')
        with expect_fail('fails in line 1 (SystemExit', Problem):
            load_plugin(Path(d)/'ends.py')
        # errors of a kind of its own, and one that cannot be put into words
        for kind, says in (('BaseException', 'pass'), ('Exception', '__str__ = None')):
            (Path(d)/'odd.py').write_text(f'class X({kind}):\n    {says}\nraise X\n')
            with expect_fail('fails in line 3 (X', Problem):
                load_plugin(Path(d)/'odd.py')
        with expect_fail('There is no plug-in', Problem):
            load_plugin(Path(d)/'none.py')
        with expect_fail('is no Python file', Problem):
            load_plugin(d)

        # a path from here tells its line too; two files of one name are two plug-ins
        home = os.getcwd()
        os.chdir(d)
        with expect_fail('fails in line 2', Problem):
            load_plugin('broken.py')
        for folder in ('a', 'b'):
            (Path(d)/folder).mkdir()
            (Path(d)/folder/'same.py').write_text('x = 1\n')
        load_plugin('a/same.py')
        load_plugin('a/same.py')
        with expect_fail('rename one of them', Problem):
            load_plugin('b/same.py')
        os.chdir(home)
passed('a stranger\'s file adds a name', by='a fresh process')
