# %%NBQA-CELL-SEP7dc948
#| default_exp core.unpickle


# %%NBQA-CELL-SEP7dc948
#| export
import inspect
import math
import pickletools
from typing import Any, Callable, Mapping, NamedTuple
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| hide
import io
import os
import pickle
import random
import tempfile
import time
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
from ddpm_lit import show
from ddpm_lit.core import unpickle as library  # the first page uses what the later ones build
from ddpm_lit.core.check import close, expect_fail, passed, setup

setup()


def read(program, **options):
    "What a program builds, by the reader of this notebook."
    return SafeUnpickler('it.pickle', **options).run(io.BytesIO(program))


def refusal(program, as_array=False, **options):
    "The sentence that refuses a program, or what it notes as an array."
    try:
        value = read(program, **options)
        if as_array:
            read_array(value)
    except Problem as e:
        return str(e)
    return 'it was read'


# %%NBQA-CELL-SEP7dc948
# Figure 06.1: the stack after each instruction of a pickle of {'labels': [3, 8]}
program = pickle.dumps({'labels': [3, 8]}, 2)
machine = library.SafeUnpickler('it.pickle')
columns = []
for op, arg, _ in pickletools.genops(program):
    if op.name == 'STOP':
        break
    machine.step(op.name, arg)
    if op.name not in ('PROTO', 'BINPUT'):  # the version, and what is stored for later use
        stack = ['mark' if v is library.MARK else repr(v) for v in machine.stack]
        columns.append((op.name, '' if arg is None else repr(arg), stack))

fig, ax = plt.subplots(figsize=(7, 2.3), layout='constrained', dpi=160)
for i, (name, arg, stack) in enumerate(columns):
    ax.text(i, -1, f'{name}\n{arg}', ha='center', va='center', fontsize=7)
    for k, text in enumerate(stack):
        new = i == 0 or k >= len(columns[i - 1][2]) or columns[i - 1][2][k] != text
        color = show.INK['model'] if new else show.INK['noise']
        box = dict(boxstyle='round,pad=.3', facecolor='white', edgecolor=color)
        ax.text(i, k, text.replace(': ', ':\n'), ha='center', va='center', fontsize=7, bbox=box)
ax.set(xlim=(-.6, len(columns) - .4), ylim=(-1.6, 5.5), xticks=[], yticks=[])
ax.spines[:].set_visible(False)


# %%NBQA-CELL-SEP7dc948
def plain_unpickle(program: bytes):
    stack = []
    for op, arg, _ in pickletools.genops(program):
        if op.name in ('PROTO', 'BINPUT'):
            continue
        elif op.name == 'STOP':
            return stack.pop()
        elif op.name in ('BINUNICODE', 'BININT1'):
            stack.append(arg)
        elif op.name in ('EMPTY_DICT', 'EMPTY_LIST'):
            stack.append({} if op.name == 'EMPTY_DICT' else [])
        elif op.name == 'MARK':
            mark = len(stack)
        elif op.name == 'APPENDS':
            stack[mark - 1].extend(stack[mark:])
            del stack[mark:]
        elif op.name == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        else:
            raise ValueError(f'{op.name} could run something')


# %%NBQA-CELL-SEP7dc948
# The plain machine against Python's own, on a program of ours
built = plain_unpickle(program)
assert built == pickle.loads(program) == {'labels': [3, 8]}  # noqa: S301
with expect_fail('GLOBAL could run something'):
    plain_unpickle(pickle.dumps(os.getcwd, 2))
passed("the plain machine builds {'labels': [3, 8]}", by='pickle.loads')


# %%NBQA-CELL-SEP7dc948
class Attack:
    def __reduce__(self):  # pickle: "to make me again, call this with that"
        return os.mkdir, ('made by a pickle',)


attack = pickle.dumps(Attack(), 2)
print(attack)


# %%NBQA-CELL-SEP7dc948
# Python's reader runs the call, ours names it; in a folder that is gone afterwards
before = os.getcwd()
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    try:
        with expect_fail('calls "posix mkdir"', Problem):
            library.SafeUnpickler('it.pickle').run(io.BytesIO(attack))
        assert not Path('made by a pickle').exists()
        pickle.loads(attack)  # noqa: S301
        assert Path('made by a pickle').is_dir()
    finally:
        os.chdir(before)
assert len(attack) == 47
passed('the same 47 bytes make a folder when Python opens them, and none here')


# %%NBQA-CELL-SEP7dc948
#| export
MARK = object()  # where the elements of a container begin

# instructions by what they do: nothing, push their argument, a new container, a constant
_IGNORED = {'PROTO', 'FRAME'}
_VALUES = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
           'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
           'BINSTRING', 'SHORT_BINSTRING',  # the text of Python 2, or its bytes
           'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_EMPTY = dict(EMPTY_DICT=dict, EMPTY_LIST=list, EMPTY_TUPLE=tuple)
_CONSTANTS = dict(NONE=None, NEWTRUE=True, NEWFALSE=False, MARK=MARK)
_STORE = {'BINPUT', 'LONG_BINPUT', 'MEMOIZE'}
_RECALL = {'BINGET', 'LONG_BINGET'}
# of how many values; None: to the mark
_TUPLES = dict(TUPLE=None, TUPLE1=1, TUPLE2=2, TUPLE3=3)
APPENDS = dict(APPEND=1, APPENDS=None)
_ITEMS = dict(SETITEM=2, SETITEMS=None)

_LONGEST_NAME = 300
_MOST_ARGUMENTS = 20


# %%NBQA-CELL-SEP7dc948
#| export
class Named(NamedTuple):
    "A name that a pickle mentions, as 'module name'. Nothing is looked up by it."
    name: str


class PlainObject(dict):
    "An object without its class: its attributes by name."


class Note:
    "A call noted down and not made: whose, with what, and the state that was set."
    __slots__ = ('name', 'args', 'state')  # equal only to itself, so it hashes at once

    def __init__(self, name: str, args: tuple):
        self.name = name
        self.args = args
        self.state: Any = None


# %%NBQA-CELL-SEP7dc948
#| export
class SafeUnpickler:
    "A stack machine for pickles, with only the instructions that build. Eq. 06.1."

    def __init__(
        self,
        origin,  # what the messages call the file
        calls: Mapping[str, Callable] | None = None,  # 'module name' -> our function
        objects: tuple[str, ...] = (),  # how class names begin that become a PlainObject
        persistent: Callable | None = None,  # what a persistent id stands for
        advice: str = 'fetch it again from where it is published',
    ):
        self.origin = origin
        self.calls = calls or {}
        self.objects = objects
        self.persistent = persistent
        self.advice = advice
        self.stack: list = []
        self.memo: dict = {}

    def run(self, stream) -> Any:  # a binary file, or bytes
        "What the next program in a stream builds. Eq. 06.1."
        self.stack = []
        self.memo = {}

        # an instruction after the other; STOP leaves the result on the stack
        try:
            for op, arg, _ in pickletools.genops(stream):
                if op.name == 'STOP':
                    return self.take(1)[0]
                self.step(op.name, arg)
        except (ValueError, LookupError, TypeError, OverflowError) as e:
            raise Problem(f'{self.origin} is no whole pickle '
                          f'({e or type(e).__name__}): {self.advice}.') from e

    def step(self, op: str, arg):
        "One instruction of the program."
        known = (self.push_value(op, arg) or self.build_container(op)
                 or self.use_name(op, arg))
        if not known:
            raise Problem(f'{self.origin} uses the instruction {op} of pickles, which '
                          f'data do not need: nothing of it was run; {self.advice}.')

    def top(self):
        "The last value, left where it is."
        if not self.stack:
            raise ValueError('its program takes what is not there')
        return self.stack[-1]

    def take(self, n: int | None) -> list:
        "Remove the last n values; None: those above the last mark, and the mark."
        if n is None:
            places = reversed(range(len(self.stack)))
            start = next((i for i in places if self.stack[i] is MARK), -1)
            taken = self.stack[start + 1:]
        else:
            start = len(self.stack) - n
            taken = self.stack[start:]

        # too few values, or a mark among them: the program is damaged
        if start < 0 or any(v is MARK for v in taken):
            raise ValueError('its program takes what is not there')

        del self.stack[start:]
        return taken

    # ---- the three groups of instructions ------------------------------------------

    def push_value(self, op: str, arg) -> bool:
        "Values, and the memo."
        if op in _IGNORED:
            pass
        elif op in _VALUES:
            self.stack.append(arg)
        elif op in _EMPTY:
            self.stack.append(_EMPTY[op]())
        elif op in _CONSTANTS:
            self.stack.append(_CONSTANTS[op])

        # the memo: values by their numbers
        elif op in _STORE:
            self.memo[len(self.memo) if arg is None else arg] = self.top()
        elif op in _RECALL:
            if arg not in self.memo:
                raise ValueError('its program takes what is not there')
            self.stack.append(self.memo[arg])
        else:
            return False

        return True

    def build_container(self, op: str) -> bool:
        "Tuples, lists and dictionaries, of values that are on the stack."
        if op in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[op])))

        # lists are extended in place
        elif op in APPENDS:
            more = self.take(APPENDS[op])
            if type(self.top()) is not list:
                raise ValueError('it appends to what is no list')
            self.stack[-1].extend(more)

        # and so are dictionaries, by keys and values in turns
        elif op in _ITEMS:
            more = self.take(_ITEMS[op])
            if not isinstance(self.top(), dict) or len(more) % 2:
                raise ValueError('it files pairs in what is no dictionary')
            if not all(map(_is_key, more[::2])):
                raise ValueError('a key is no name')
            self.stack[-1].update(zip(more[::2], more[1::2]))
        else:
            return False

        return True

    def use_name(self, op: str, arg) -> bool:
        "Names, and what is called by them."
        if op == 'GLOBAL':
            self.stack.append(named(arg))
        elif op == 'STACK_GLOBAL':
            self.stack.append(named(*self.take(2)))

        # what is called, and with what
        elif op == 'REDUCE':
            function, args = self.take(2)
            self.stack.append(self.call(function, args))
        elif op == 'NEWOBJ':
            kind, _ = self.take(2)
            self.stack.append(self.new_object(kind))

        elif op == 'BUILD':
            (state,) = self.take(1)
            _set_state(self.top(), state)
        elif op == 'BINPERSID' and self.persistent:
            (about,) = self.take(1)
            self.stack.append(self.persistent(about))
        else:
            return False

        return True

    # ---- names and calls -----------------------------------------------------------

    def refuse(self, function):
        "A call that is not in the list."
        is_name = isinstance(function, Named)
        name = function.name if is_name else type(function).__name__
        raise Problem(f'{self.origin} calls "{name}", which data do not need: nothing of '
                      f'it was run; {self.advice}.')

    def call(self, function, args):
        "What our function of that name returns."
        if not isinstance(function, Named) or function.name not in self.calls:
            self.refuse(function)
        ours = self.calls[function.name]

        # few arguments, and as many as it takes
        if type(args) is not tuple or len(args) > _MOST_ARGUMENTS:
            raise ValueError(f'it calls "{function.name}" without a few arguments')
        try:
            inspect.signature(ours).bind(*args)
        except TypeError:
            raise ValueError(f'it calls "{function.name}" with arguments that do not '
                             'fit') from None
        return ours(*args)

    def new_object(self, kind) -> PlainObject:
        "An object whose class nobody looks up."
        if not isinstance(kind, Named) or not kind.name.startswith(self.objects):
            self.refuse(kind)
        return PlainObject()


# %%NBQA-CELL-SEP7dc948
#| export
def named(*parts) -> Named:
    "A name from its parts, which are short texts."
    if not all(type(p) is str and len(p) <= _LONGEST_NAME for p in parts):
        raise ValueError('a name has no end')
    return Named(' '.join(parts))


def _is_key(value) -> bool:
    "What may be a key: it is hashed and compared at once."
    if type(value) is int:
        return abs(value) < 2**31
    return type(value) in (str, bytes, Note)


def _set_state(thing, state):
    "Move a state into an object; a note keeps it, and in a dictionary it is no datum."
    if isinstance(thing, Named):
        raise ValueError('a name cannot be changed')
    if isinstance(thing, Note) and thing.state is None:
        thing.state = state
    elif isinstance(thing, dict) and isinstance(state, dict):
        # moved: one state copied into many objects would fill the memory
        if isinstance(thing, PlainObject):
            thing.update(state)
            state.clear()
    else:
        raise ValueError('it gives what has no parts a state')


# %%NBQA-CELL-SEP7dc948
# Against Python's own reader: 500 random values in each protocol from 2 on, with shared parts
def random_value(rng, depth=0):
    "Numbers, text, bytes and containers of them; what has been made may come again."
    leaves = (None, True, False, rng.randrange(-2**70, 2**70), rng.randrange(300), rng.random(),
              ''.join(rng.choices('aß☃', k=rng.randrange(300))), made[rng.randrange(len(made))])
    kind = rng.randrange(len(leaves) + 4*(depth < 4))
    if kind < len(leaves):
        return leaves[kind]
    parts = [random_value(rng, depth + 1) for _ in range(rng.randrange(6))]
    keys = [rng.choice((f'k{i}', i)) for i in range(len(parts))]
    value = (tuple(parts), parts, dict(zip(keys, parts)), [parts, parts])[kind - len(leaves)]
    made.append(value)
    return value


made = [7]
rng = random.Random(0)
values = [random_value(rng) for _ in range(500)]
for protocol in (2, 3, 4, 5):
    for value in values:
        program = pickle.dumps(value, protocol)
        assert repr(read(program)) == repr(pickle.loads(program))  # noqa: S301
passed(f'{4*len(values):,} random values, alike to the last type', by='pickle.loads')

# any number of 32 bits may be a key; longer ones, which take long to compare, may not
ends = {1 - 2**31: 'least', 2**31 - 1: 'most'}
assert read(pickle.dumps(ends)) == ends and 'it was read' not in refusal(pickle.dumps({2**31: 0}))

# shared parts stay shared, a list may hold itself, and the bytes of Python 3 are bytes
twice = read(pickle.dumps([made[-1]]*2, 2))
assert twice[0] is twice[1]
loop = []
loop.append(loop)
loop = read(pickle.dumps(loop, 2))
assert loop[0] is loop
assert read(pickle.dumps(b'\x00\xff', 3)) == b'\x00\xff'
assert read(b'\x80\x02U\x02\x00\xff.') == '\x00\xff'  # as Python 2 wrote them


# %%NBQA-CELL-SEP7dc948
# A call goes to our function, a class of the right name becomes a plain object, and a state is
# moved into one object only
def new_dict():
    return {}


ordered = pickle.dumps(__import__('collections').OrderedDict(a=1), 2)
found = read(ordered, calls={'collections OrderedDict': new_dict})
assert type(found) is dict
assert found == {'a': 1}

thing = b'cour.module\nThing\n)\x81h\x05b'  # an object, whose state is entry 5 of the memo
two_things = b'\x80\x02}q\x05X\x01\x00\x00\x00aK\x01s' + 2*thing + b'\x86.'
one, other = read(two_things, objects=('our.module ',))
assert type(one) is PlainObject
assert type(other) is PlainObject
assert (one, other) == ({'a': 1}, {})

about = read(b'\x80\x02K\x07K\x08\x86Q.', persistent=lambda pair: sum(pair))
passed('names lead to our functions and to plain objects', close(about, 15, 0), by='7 + 8')


# %%NBQA-CELL-SEP7dc948
# Eq. 06.1: on random values and on the tree of lists: distinct objects, instructions, bytes
def objects_in(value):
    "The distinct containers that can be reached, each visited once."
    seen = {}
    todo = [value]
    while todo:
        v = todo.pop()
        if isinstance(v, (list, tuple, dict)) and id(v) not in seen:
            seen[id(v)] = v
            todo += [*v.values()] if isinstance(v, dict) else v
    return len(seen)


def tree(b, d):
    "A program: d lists, each with b references to the one before, the first with b ones."
    lines = [b']q\x00(' + b'K\x01'*b + b'e']
    for level in range(1, d):
        lines.append(b']q' + bytes([level]) + b'(' + (b'h' + bytes([level - 1]))*b + b'e')
    return b'\x80\x02' + b''.join(lines) + b'.'


shares = []
for program in [pickle.dumps(v, 2) for v in values] + [tree(10, 12), tree(100, 200)]:
    instructions = sum(1 for _ in pickletools.genops(program))
    built = objects_in(read(program))
    assert built <= instructions <= len(program)
    shares.append(built/len(program))
passed(f'(06.1) objects ≤ instructions ≤ bytes; at most {max(shares):.2f} objects a byte',
       by='counted')


# %%NBQA-CELL-SEP7dc948
# Eq. 06.2: leaves counted one by one where they are few, and by their number per object where
# they are not
def walk(value):
    return sum(map(walk, value)) if isinstance(value, list) else 1


def count(value, known):
    "The same with each list counted once."
    if not isinstance(value, list):
        return 1
    if id(value) not in known:
        known[id(value)] = sum(count(v, known) for v in value)
    return known[id(value)]


for b, d in ((2, 3), (3, 5), (10, 4)):
    small = read(tree(b, d))
    assert walk(small) == count(small, {}) == b**d
large = read(tree(10, 12))
assert len(tree(10, 12)) == 303
passed(f'(06.2) {len(tree(10, 12))} bytes, 12 lists, 10^12 leaves',
       close(count(large, {}), 10**12, 0), by='walked where they are few')


# %%NBQA-CELL-SEP7dc948
# Eq. 06.1: programs that would take for ever if an instruction copied, hashed or walked: one
# large text for many names and calls, a tree as key and as argument, numbers of one hash
large_text = b'X' + (10**6).to_bytes(4, 'little') + b'a'*10**6 + b'q\x00'
deep = b']q\x00' + b'h\x00h\x00\x86q\x00'*60
many = b'\x80\x02(' + b'K\x01'*300_000 + b'tq\x00'  # a tuple
alike = [k*(2**61 - 1) for k in range(1, 100)]
assert {hash(k) for k in alike} == {0}
calls = {'a b': lambda *args: Note('b', args)}
endless = {
    'long names': (b'\x80\x02' + large_text + b'h\x00h\x00\x93'*100_000 + b'.', 'has no end'),
    'many arguments': (many + b'ca\nb\nq\x01' + b'h\x01h\x00R'*100_000 + b'.', 'few arguments'),
    'a tree as a key': (b'\x80\x02' + deep + b'}h\x00K\x01s.', 'a key is no name'),
    'a tree called': (b'\x80\x02' + deep + b')R.', 'calls "tuple"'),
    'numbers of one hash': (pickle.dumps(dict.fromkeys(alike), 2), 'a key is no name'),
}
began = time.perf_counter()
for name, (program, words) in endless.items():
    assert words in refusal(program, calls=calls), name

# one text in many notes is no copy
notes = read(b'\x80\x02](' + large_text + b'ca\nb\nq\x01' + b'h\x01h\x00\x85R'*50_000
             + b'e.', calls=calls)
assert len({id(n.args[0]) for n in notes if isinstance(n, Note)}) == 1
assert time.perf_counter() - began < 20
passed(f'(06.1) {len(endless)} programs that would take for ever end at once')


# %%NBQA-CELL-SEP7dc948
#| export
_ARRAY_DTYPES = dict(u1=torch.uint8, i4=torch.int32, i8=torch.int64,
                     f4=torch.float32, f8=torch.float64)


def _noted(name: str) -> Callable[..., Note]:
    "A function that makes a note of its arguments."
    def note(*args):
        return Note(name, args)

    return note


# for `SafeUnpickler`: NumPy's names before and since version 2
NUMPY_CALLS = {
    'numpy dtype': _noted('dtype'),
    '_codecs encode': _noted('encode'),
    'numpy.core.multiarray _reconstruct': _noted('_reconstruct'),
    'numpy._core.multiarray _reconstruct': _noted('_reconstruct'),
    'numpy.core.numeric _frombuffer': _noted('_frombuffer'),
    'numpy._core.numeric _frombuffer': _noted('_frombuffer'),
}


def text_of(value):  # -> str, or the value itself if it is no text
    "A text in any of its spellings: text, bytes, or text that would be made into bytes."
    if isinstance(value, bytes):
        return value.decode('latin1')
    if isinstance(value, Note) and value.name == 'encode' and len(value.args) == 2:
        text, how = value.args
        if type(text) is str and how == 'latin1':
            return text
    return value


def _raw_bytes(value) -> bytes | bytearray:
    "Bytes in any of their spellings."
    if isinstance(value, (bytes, bytearray)):
        return value
    text = text_of(value)
    if not isinstance(text, str):
        raise ValueError('an array without its bytes')
    return text.encode('latin1')


# %%NBQA-CELL-SEP7dc948
#| export
def _array_parts(note) -> tuple:  # shape, type, bytes: as they stand in the file
    "What NumPy notes of an array, in either of its two ways."
    if not isinstance(note, Note):
        raise ValueError('no array where one is expected')

    # the older way, then that of pickle's protocol 5
    if note.name == '_reconstruct' and type(note.state) is tuple and len(note.state) == 5:
        version, shape, kind, turned, raw = note.state
    elif note.name == '_frombuffer' and note.state is None and len(note.args) == 4:
        raw, kind, shape, order = note.args
        version = 1
        turned = order != 'C'
    else:
        raise ValueError('no array where one is expected')

    # turned: the values stand column by column
    if version != 1 or turned:
        raise ValueError('an array in an unknown order')
    return shape, kind, raw


def _array_dtype(kind) -> torch.dtype:
    "The type of an array's numbers, if it is one of a few and nothing else is said."
    if not isinstance(kind, Note) or kind.name != 'dtype' or not kind.args:
        raise ValueError('an array of an unknown type')
    name = kind.args[0].lstrip('|<') if type(kind.args[0]) is str else None
    if name not in _ARRAY_DTYPES:
        raise ValueError('an array of an unknown type')

    # no fields, no flags that turn bytes into addresses, least byte first
    order = '|' if name == 'u1' else '<'
    if kind.state not in (None, (3, order, None, None, None, -1, -1, 0)):
        raise ValueError('an array of an unknown type')
    return _ARRAY_DTYPES[name]


def read_array(note, origin='This pickle') -> Tensor:
    "The tensor that a noted array of NumPy's describes. Eq. 06.3."
    try:
        shape, kind, raw = _array_parts(note)
        dtype = _array_dtype(kind)
        raw = _raw_bytes(raw)

        # as many bytes as the shape needs
        natural = type(shape) is tuple and len(shape) <= 32 and all(
            type(m) is int and 0 < m <= len(raw) for m in shape)
        if not natural or len(raw) != dtype.itemsize*math.prod(shape):
            raise ValueError(f'{len(raw)} bytes do not fill its shape')
    except ValueError as e:
        raise Problem(f'{origin} holds no array that can be read ({e}): '
                      'fetch it again.') from e
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


# %%NBQA-CELL-SEP7dc948
# Eq. 06.3: arrays of all five types and of 0 to 4 axes, in all protocols, against NumPy
generator = np.random.default_rng(0)
errors = []
for name in _ARRAY_DTYPES:
    for shape in ((), (7,), (2, 3), (1, 1, 5), (2, 3, 4, 5)):
        array = np.array(100*generator.random(shape)).astype(name)
        for protocol in (2, 3, 4, 5):
            program = pickle.dumps({'data': array, b'key': 1}, protocol)
            found = {text_of(k): v for k, v in read(program, calls=NUMPY_CALLS).items()}
            assert found['key'] == 1
            tensor = read_array(found['data'])
            assert tensor.dtype == _ARRAY_DTYPES[name]
            errors.append(close(tensor, torch.from_numpy(array), 0))
passed(f'(06.3) {len(errors)} arrays', *errors, by='NumPy')


# %%NBQA-CELL-SEP7dc948
class Calls:
    "Pickled as a call of `maker` with `given`, whose result is then told `state`."

    def __init__(self, maker, given, state=None):
        self.call = (maker, given) if state is None else (maker, given, state)

    def __reduce__(self):
        return self.call


octets = np.dtype('u1')


def array(shape=(2, 3), kind=octets, turned=False, raw=bytes(6)):
    "NumPy's own call, with a state of our choice."
    rebuild = np.zeros((1, 1)).__reduce__()
    return Calls(rebuild[0], rebuild[1], (1, shape, kind, turned, raw))


for harm, words in ((Calls(os.system, ('touch harmed',)), 'calls "posix system"'),
                    (Calls(np.ndarray, ((3072,),)), 'calls "numpy ndarray"'),
                    (Calls(eval, ('1',)), 'calls "__builtin__ eval"')):
    with expect_fail(words, Problem):
        read(pickle.dumps(harm, 2), calls=NUMPY_CALLS)

close(read_array(read(pickle.dumps(array(), 2), calls=NUMPY_CALLS)), torch.zeros(2, 3), 0)
pointers = Calls(np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, 63))
for forged, words in ((array(kind=pointers), 'an unknown type'),
                      (array(shape=(10**12, 10**12)), '6 bytes do not fill its shape')):
    with expect_fail(words, Problem):
        read_array(read(pickle.dumps(forged, 2), calls=NUMPY_CALLS))


# %%NBQA-CELL-SEP7dc948
# Arrays that are not what they say: types, orders, shapes, bytes, and what is no array at all
flags = Calls(np.dtype, ('u1', False, True), (3, '|', None, None, None, -1, -1, 63))
turned_bytes = Calls(np.dtype, ('i4', False, True), (3, '>', None, None, None, -1, -1, 0))
from_buffer = np.zeros(1).__reduce_ex__(5)[0]
forged = [
    *((array(kind=k), 'unknown type') for k in (
        flags, turned_bytes, np.dtype('f2'), np.dtype('>i4'), np.dtype('U3'), None, 'u1',
        np.dtype([('a', 'u1')]), Calls(np.dtype, ('V6',)))),
    *((array(shape=s), 'do not fill') for s in (
        (2, 4), (), (0, 0), (-2, -3), (2., 3), (True, 6), [2, 3], 6, (1,)*40 + (6,))),
    *((array(raw=r), 'without its bytes') for r in ([0]*6, None, 6, Calls(np.dtype, ('u1',)))),
    (array(raw=bytes(5)), '5 bytes do not fill'),
    (array(raw='☃'*6), "can't encode"),
    (array(turned=True), 'unknown order'),
    (Calls(from_buffer, (bytes(6), np.dtype('u1'), (2, 3), 'F')), 'unknown order'),
    (Calls(from_buffer, (bytes(6), pointers, (2, 3), 'C')), 'unknown type'),
    (Calls(from_buffer, (bytes(6),)), 'no array where'),
    (np.dtype('u1'), 'no array where'),
    (7, 'no array where'),
]
for note, words in forged:
    assert words in refusal(pickle.dumps(note, 2), as_array=True, calls=NUMPY_CALLS), words

# a name told a state, and a note told two
changed = b'\x80\x02cnumpy\nndarray\n}U\x04nameU\x06encodesb.'
assert 'a name cannot be changed' in refusal(changed)
two_states = b'\x80\x02cnumpy\ndtype\nU\x02u1\x85RK\x01bK\x02b.'
assert 'no parts a state' in refusal(two_states, calls=NUMPY_CALLS)
passed(f'{len(forged)} forged arrays and two forged states, each refused in a sentence')


# %%NBQA-CELL-SEP7dc948
# Programs that are broken: nothing there, marks in odd places, wrong containers and arguments
calls = {'a b': lambda x: x}
broken = {b'': 'exhausted', b'\x80\x02': 'exhausted', b'?': 'unknown', b'.': 'not there',
          b'(.': 'not there', b'(\x85.': 'not there', b'\x86.': 'not there', b't.': 'not there',
          b'h\x07.': 'not there', b'q\x00.': 'not there', b'K\x01K\x02a.': 'no list',
          b'(K\x01ee.': 'not there', b']K\x01K\x02s.': 'no dictionary',
          b'}(K\x01u.': 'no dictionary', b'}]K\x01s.': 'a key is no name',
          b'ca\nb\nK\x01R.': 'few arguments', b'ca\nb\n)R.': 'do not fit',
          b'K\x01)R.': 'calls "int"', b'K\x01)\x81.': 'calls "int"', b'K\x01K\x02\x93.': 'a name',
          b'X\xff\xff\xff\x7fabc.': 'expected', b'\x8b\xff\xff\xff\x7f\x01.': 'not enough',
          b'K\x01K\x02b.': 'no parts', b'X\x02\x00\x00\x00\xff\xff.': 'decode',
          b'cos\nsystem\n(U\x04exitR.': 'not there'}
for program, words in broken.items():
    assert words in refusal(program, calls=calls), (program, words)

# instructions that build nothing that data need
useless = (b'K\x01Q.', b'K\x010.', b'K\x012.', b'(cos\nsystem\no.', b'(ios\nsystem\n.',
           b'\x82\x01.', b'\x97.', b'\x8f.', b"S'a'\n.", b'I1\n.', b'Pa\n.')
for program in useless:
    assert 'which data do not need' in refusal(program), program
passed(f'{len(broken)} broken programs and {len(useless)} useless instructions are refused')

# one byte forged at random: read or refused, and no other error comes out
whole = pickle.dumps({'data': np.arange(6, dtype='u1'), 'labels': [3, 8], 'x': (None, .5)}, 2)
refused = 0
for _ in range(3000):
    at = rng.randrange(len(whole))
    program = whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1:]
    try:
        found = read(program, calls=NUMPY_CALLS)
        read_array(found['data'] if isinstance(found, dict) and 'data' in found else None)
    except Problem:
        refused += 1
assert 500 < refused < 2900
passed('3,000 programs with one forged byte, each read or refused')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...
program = pickle.dumps([5]*1000, 2)
close(sum(1 for _ in pickletools.genops(program)), guess, 20)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2
b, n_bytes = ..., ...
costs = {k: (2*k + 5)*math.ceil(12/math.log10(k) - 1e-9) for k in range(2, 101)}
assert costs[b] == min(costs.values()) == n_bytes


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def sorted_set(numbers):
    ...


def read_set(program):
    return read(program, calls={'__builtin__ set': sorted_set})


assert read_set(pickle.dumps({3, 1, 2}, 2)) == (1, 2, 3)
with expect_fail('numbers', Problem):
    read_set(b'\x80\x02c__builtin__\nset\n](]]e\x85R.')


# %%NBQA-CELL-SEP7dc948
# solution 1: one for each element (the number 5 is too small to be stored in the memo), and the
# head, the list, its entry in the memo, marks and appends once more after each 1,000, and the stop
guess = 1006
program = pickle.dumps([5]*1000, 2)
close(sum(1 for _ in pickletools.genops(program)), guess, 20)


# %%NBQA-CELL-SEP7dc948
# solution 2: the bytes are (2b + 5) 12/log10(b); without rounding, the best b solves
# log b = 1 + 5/(2b), so it lies near 4.6; whole levels then decide
b, n_bytes = 4, 260
costs = {k: (2*k + 5)*math.ceil(12/math.log10(k) - 1e-9) for k in range(2, 101)}
assert costs[b] == min(costs.values()) == n_bytes


# %%NBQA-CELL-SEP7dc948
# solution 3: sorting takes time and the tuple is a copy, and the same list may come from the memo
# for many calls; so it is emptied, as a state is moved, and each element is copied once at most
def sorted_set(numbers):
    if type(numbers) is not list or not all(type(n) is int for n in numbers):
        raise ValueError('a set of other things than numbers')
    found = tuple(sorted({*numbers}))
    numbers.clear()
    return found


def read_set(program):
    return read(program, calls={'__builtin__ set': sorted_set})


assert read_set(pickle.dumps({3, 1, 2}, 2)) == (1, 2, 3)
with expect_fail('numbers', Problem):
    read_set(b'\x80\x02c__builtin__\nset\n](]]e\x85R.')
