# %%NBQA-CELL-SEP15d533
#| default_exp core.problem


# %%NBQA-CELL-SEP15d533
#| export
import contextlib
import importlib
import os
import re
from importlib.resources import files
from typing import Any, Callable


# %%NBQA-CELL-SEP15d533
#| export core.files
import contextlib
import json
import os
import re
import shutil
import stat
from importlib.resources import files
from pathlib import Path
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP15d533
#| export core.stop
import contextlib
import os
import signal
import sys
from typing import Callable, Iterable, Iterator


# %%NBQA-CELL-SEP15d533
#| hide
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock as mock
from concurrent.futures import ThreadPoolExecutor
from ddpm_lit.core.check import expect_fail, passed


# %%NBQA-CELL-SEP15d533
# Figure 00.1: an atomic write
from ddpm_lit import show

boxes = {'new contents': (.65, 1.3), 'a second file, beside': (2.75, 1.3),
         'the file, new': (6.2, 1.3), 'the file, old': (6.2, .4)}
arrows = [('new contents', 'a second file, beside', ''),
          ('a second file, beside', 'the file, new', 'whole: replaced in one step'),
          ('a second file, beside', 'the file, old', 'full disk, Ctrl-C: it stays')]
inks = {'the file, new': 'model', 'the file, old': 'noise'}
show.diagram(boxes, arrows, inks=inks, height=1.7).figure.set_dpi(160)


# %%NBQA-CELL-SEP15d533
#| export
def printable(text: str, also: str = '') -> str:
    "The text in signs that every terminal shows, `also` those; others by their numbers."
    return ''.join(c if c.isprintable() or c in also else
                   c.encode('unicode_escape').decode() for c in text)


def shortened(text: str, most: int, end: int) -> str:  # letters; so many of its end stay
    "The text, its middle cut out if long."
    return text if len(text) <= most else f'{text[:most - end - 5]} ... {text[-end:]}'


def sentence(text: str, most: int = 300) -> str:  # most: letters
    "The text on one line in signs that every terminal shows, its middle cut out if long."
    # cut before and after: a sign that is not shown takes up to ten letters
    line = re.sub(r'\s*\n\s*', ' ', shortened(text, most, 120))
    return shortened(printable(line), most, 120)


def counted(n: int, word: str) -> str:
    "'1 picture', '2,000 pictures'."
    return f'{n:,} {word}' + ('' if n == 1 else 's')


def respelled(text: str, spell: Callable[[str], str]) -> str:
    "The text with each name in backquotes as `spell` writes it."
    parts = text.split('`')
    if len(parts) % 2 == 0:  # one of them is the user's own
        return text
    parts[1::2] = map(spell, parts[1::2])
    return ''.join(parts)


class Problem(Exception):
    "Something the user can put right; its message is one sentence that says how."

    def __str__(self):
        return sentence(super().__str__(), 290)  # and the name of a command before it

    @property
    def names(self) -> tuple[str, ...]:
        "The arguments and functions that the sentence names, in backquotes."
        found: dict[str, None] = {}
        respelled(super().__str__(),
                  lambda code: str(found.setdefault(code.split('=')[0])))
        return tuple(found)


def check_each(n: int, what: str, of: int, whom: str = 'samples'):
    "A `Problem` unless there is one thing for each of so many, or one for all."
    if n not in (1, of):
        raise Problem(f'{n} {what} do not fit {of} {whom}: give one for each, or one for '
                      'all.')


# %%NBQA-CELL-SEP15d533
# A `Problem` is no ValueError: where values of a file are tried, the sentence about them goes on
with expect_fail('take a coat', Problem):
    try:
        raise Problem('It snows: take a coat.')
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError, RuntimeError):
        pass

# the names in it are known, and can be spelled otherwise
cold = Problem("It snows: give `coat='warm'`, another `coat` or `hat`.")
assert cold.names == ('coat', 'hat')
assert respelled(str(cold), str.upper) == "It snows: give COAT='WARM', another COAT or HAT."
assert respelled('a lone ` stays', str.upper) == 'a lone ` stays' and Problem('a`').names == ()

# The module that defines it brings no PyTorch along
program = 'import sys, ddpm_lit.core.problem; print("torch" in sys.modules)'
said = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
assert said.stdout.strip() == 'False'
passed('the module is imported without PyTorch', by='a fresh process')


# %%NBQA-CELL-SEP15d533
# Whatever a sentence quotes, it is one line of at most 300 signs that a terminal shows, and it
# begins and ends as it was written
for quoted in ('a\033]0;title\a', 'a\u202eb', 'two\n  lines', '\udcff', 'x'*10**6, '\0'*10**6,
               '日本'):
    said = str(Problem(f'There is no {quoted}: take a coat.'))
    assert said.isprintable() and len(said) <= 290, said
    assert said.startswith('There is no ') and said.endswith(': take a coat.')
    print(said[:60])
assert [counted(n, 'step') for n in (0, 1, 2000)] == ['0 steps', '1 step', '2,000 steps']
assert str(Problem('Two  spaces stay, `as` they "are".')) == 'Two  spaces stay, `as` they "are".'


# %%NBQA-CELL-SEP15d533
#| export
_NO_MEMORY = ('out of memory', "can't allocate memory",
              'Storage size calculation overflowed',
              'failed to map segment')  # of a library that is imported
# what pip calls a package that Python calls otherwise
_CALLED = dict(PIL='pillow', open_clip='open_clip_torch')


def no_memory(e: BaseException) -> bool:
    "Does this error say that memory ran out?"
    return isinstance(e, MemoryError) or any(words in str(e) for words in _NO_MEMORY)


def package_of(module: str) -> str:
    "What to install, so that a module can be imported."
    name = module.split('.')[0]
    return _CALLED.get(name, name)


def needed(module: str):
    "A library that the book can do without, or the sentence that says how to get it."
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = package_of(e.name or module)  # what a package needs may be missing too
        raise Problem(f'This needs the package {package}, which is not installed: '
                      f'pip install {package}.') from e


# %%NBQA-CELL-SEP15d533
# What this machine says when it has no memory, and what it says of a damaged file
try:
    bytearray(1 << 62)
except MemoryError as e:
    assert no_memory(e)
assert no_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
assert not no_memory(RuntimeError('invalid file'))
assert needed('os.path') is os.path
with contextlib.redirect_stdout(None), expect_fail('pip install no_such_package', Problem):
    needed('no_such_package.part')

# a package that is here, but not what it imports
with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, 'path', [folder, *sys.path]):
    (Path(folder)/'half_there.py').write_text('import no_such_part')
    with contextlib.redirect_stdout(None), expect_fail('pip install no_such_part', Problem):
        needed('half_there')


# %%NBQA-CELL-SEP15d533
#| export core.files
def shipped_data() -> Path:
    "The folder of the book's own data: in an installed wheel, or else in a checkout."
    home = Path(str(files('ddpm_lit')))
    inside = home/'data_files'
    return inside if inside.is_dir() else home.parent/'data'


def data_dir(*parts: str) -> Path:  # an existing file or folder
    "The path of shipped data, `data_dir('mnist')`: the folder DDPM_LIT_DATA comes first."
    shipped = shipped_data()
    own = os.environ.get('DDPM_LIT_DATA')
    if own and not os.path.isdir(own):
        raise Problem(f'DDPM_LIT_DATA is {own}, which is no folder: set it to one, or '
                      'leave it out.')
    roots = [Path(own), shipped] if own else [shipped]
    for root in roots:
        path = root.joinpath(*parts)
        with contextlib.suppress(OSError):  # a name that is too long is no file
            if path.exists():
                return path
    cure = 'put it there, or set DDPM_LIT_DATA to the folder that holds it.'
    if shipped.name == 'data_files':
        cure = ('an installed package leaves some files out, so clone the repository and '
                'set DDPM_LIT_DATA to its folder data.')
    raise Problem(f'There is no {"/".join(parts)} in {" or ".join(map(str, roots))}: '
                  f'{cure}')


# %%NBQA-CELL-SEP15d533
# Checked: a folder of your own comes first, then a wheel, then the checkout
with tempfile.TemporaryDirectory() as d, mock.patch.dict(os.environ, DDPM_LIT_DATA=d):
    (Path(d)/'mine').mkdir()
    assert data_dir('mine') == Path(d)/'mine'
    assert data_dir('mnist').name == 'mnist'

    # as in an installed wheel
    (Path(d)/'data_files'/'mnist').mkdir(parents=True)
    with mock.patch.dict(globals(), files=lambda package: d):
        assert data_dir('mnist') == Path(d)/'data_files'/'mnist'
        with contextlib.redirect_stdout(None), expect_fail('so clone the repository', Problem):
            data_dir('weights', 'latent.safetensors')

# a folder that is not there is not passed over in silence
with mock.patch.dict(os.environ, DDPM_LIT_DATA=d):
    with contextlib.redirect_stdout(None), expect_fail('no folder', Problem):
        data_dir('mnist')

os.environ.pop('DDPM_LIT_DATA', None)
assert (data_dir('mnist')/'train-labels-idx1-ubyte.gz').exists()
with expect_fail('put it there', Problem):
    data_dir('no-such-set')
# the sentence about a long name would be long too
with contextlib.redirect_stdout(None):
    with expect_fail('put it there', Problem):
        data_dir('x'*300)


# %%NBQA-CELL-SEP15d533
#| export core.files
def open_input(path, most: int | None = None):  # most: bytes -> a binary file
    "Open an ordinary file of at most so many bytes; anything else is a `Problem`."
    try:
        # a pipe to which nobody writes is not waited for
        handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0)
                         | getattr(os, 'O_BINARY', 0))
    except (OSError, ValueError) as e:
        raise Problem(f'{path} cannot be read ({getattr(e, "strerror", None) or e}): '
                      'check the name and the permissions.') from e

    # no folder, device or pipe
    file = os.fdopen(handle, 'rb') if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        os.close(handle)
        raise Problem(f'{path} is no ordinary file: give one.')

    size = os.fstat(handle).st_size
    if most is not None and size > most:
        file.close()
        raise Problem(f'{path} has {size:,} bytes, and at most {most:,} are read: give '
                      'another file.')

    return file


def read_text(path, most: int = 16 << 20,  # bytes
              errors: str = 'strict') -> str:  # or 'replace': of bytes that are no text
    "The text of an ordinary file in UTF-8, line ends as \\n; all else is a `Problem`."
    with open_input(path, most) as f:
        raw = f.read(most + 1)  # a file of the system may be longer than it says
    if len(raw) > most:
        raise Problem(f'{path} has more than {most:,} bytes: give another file.')
    try:
        return raw.decode('utf-8', errors).replace('\r\n', '\n')
    except UnicodeDecodeError as e:
        raise Problem(f'{path} is no text in UTF-8 ({e}): give another file.') from e


def read_json(path, cure: str):  # cure: what to do about a file that is not whole
    "What a JSON file holds; all else is a `Problem`."
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Problem(f'{path} is not whole ({e}): {cure}.') from e


# the longest list of tensors that is read; a published one is rarely 1 MB
_HEAD_BYTES = 8 << 20


def check_tensors(path):
    "A `Problem` if a file's list of tensors is too long to be meant; 8 bytes are read."
    with open_input(path) as f:
        long = int.from_bytes(f.read(8), 'little')
        size = os.fstat(f.fileno()).st_size
    # a longer list than the file is no list: whoever reads the file says so
    if _HEAD_BYTES < long <= size - 8:
        raise Problem(f'{path} lists its tensors in {long:,} bytes, and at most '
                      f'{_HEAD_BYTES:,} are read: give another file.')


# %%NBQA-CELL-SEP15d533
# A text is read; a pipe, a device, a folder, a link without end, a text that is no text, what is
# missing and what is too large are refused
with tempfile.TemporaryDirectory() as d:
    home = Path(d)
    (home/'text').write_bytes('é\r\nb'.encode())
    assert read_text(home/'text') == 'é\nb'
    (home/'latin').write_bytes(b'\xe9')
    os.mkfifo(home/'pipe')
    os.symlink('/dev/zero', home/'zero')
    os.symlink('loop', home/'loop')
    with open(home/'sparse', 'wb') as f:
        f.truncate(5 << 30)
    for name in ('latin', 'pipe', 'zero', 'loop', 'sparse', '.', 'nowhere', 'a\0b', 'x'*300):
        with contextlib.redirect_stdout(None), expect_fail('', Problem):
            read_text(home/name)
    assert read_text(home/'latin', errors='replace') == '\ufffd'
    # JSON that is cut, and JSON too deep to be read
    (home/'whole').write_text('{"a": 1}')
    assert read_json(home/'whole', 'fetch it again') == {'a': 1}
    for said in ('{"a"', '['*100_000):
        (home/'cut').write_text(said)
        with contextlib.redirect_stdout(None), expect_fail('fetch it again', Problem):
            read_json(home/'cut', 'fetch it again')

    # the size of a file of the system is not known before
    with contextlib.redirect_stdout(None), expect_fail('more than 9 bytes', Problem):
        read_text('/proc/self/status', 9)
    with open_input(home/'text', 5) as f:
        assert f.read() == b'\xc3\xa9\r\nb'
    with contextlib.redirect_stdout(None), expect_fail('at most 4 are read', Problem):
        open_input(home/'text', 4)

    # a list of 9 MB is refused without being read; one that could not be whole is left to others
    def listing(length, size):
        (home/'w').write_bytes(length.to_bytes(8, 'little'))
        os.truncate(home/'w', size)
        check_tensors(home/'w')

    for length, size in ((_HEAD_BYTES, 9 << 20), (1 << 62, 9 << 20), (9 << 20, 9 << 20), (0, 0)):
        listing(length, size)
    with contextlib.redirect_stdout(None), expect_fail('9,437,184 bytes', Problem):
        listing(9 << 20, (9 << 20) + 8)
    with contextlib.redirect_stdout(None), expect_fail('no ordinary file', Problem):
        check_tensors(home/'pipe')
passed('a file is read, and nine other things are refused')


# %%NBQA-CELL-SEP15d533
#| export core.files
def _not_too_deep(path: Path) -> Path:
    "The path; a `Problem` if it has more folders than a program can work through."
    if len(path.parts) > 200:
        raise Problem(f'{path} has more than 200 folders: choose another place.')
    return path


def _check_name(path: Path, ending: str):
    "A `Problem` unless every program can read a name, and it says what the file is."
    if ending and path.name and path.suffix.lower() != ending:
        raise Problem(f'{path} would not be what its name says: give a name that ends in '
                      f'{ending}.')
    try:
        # half characters are names for few programs
        str(path).encode()
    except UnicodeEncodeError as e:
        raise Problem(f'{str(path)!r} is no name that every program can read: '
                      'choose another place.') from e


def _place_of(path, ending: str = '') -> Path:  # where a link leads to
    "The file written for `path`; a `Problem` where none can be, or by another ending."
    path = _not_too_deep(Path(path))
    _check_name(path, ending)

    # a link stays, and leads to the new file
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if not path.name or '\0' in str(path) or path.exists() and not path.is_file():
        raise Problem(f'{str(path)!r} is no file that can be written: '
                      'choose another place.')
    if path.exists() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise Problem(f'{path} is protected from being written: allow it (chmod u+w), or '
                      'choose another place.')
    return path


@contextlib.contextmanager
def _unwritten(path):
    "What the system says against writing `path`, as a `Problem`."
    try:
        yield
    except OSError as e:
        raise Problem(f'{path} could not be written ({e.strerror or e}): '
                      'free some space or choose another place.') from e


def _start_of(path: Path) -> str:
    "How the name of the folder beside begins: with as much of the name as fits."
    return f'.{os.fsencode(path.name)[:200].decode(errors="ignore")}.'


# %%NBQA-CELL-SEP15d533
#| export core.files
@contextlib.contextmanager
def _folder_beside(path: Path, parent: Path):
    "A hidden folder that nobody else has, until the end of the block, however it comes."
    # the name is known before the folder is there: a signal at any moment leaves none
    own = parent/f'{_start_of(path)}{os.urandom(4).hex()}.tmp'
    made = True
    try:
        try:
            own.mkdir(0o700)
        except FileExistsError:
            made = False
            raise
        yield own
    finally:
        # twice, since a signal may come in the middle of the first time
        try:
            if made:
                shutil.rmtree(own, ignore_errors=True)
        finally:
            if made:
                shutil.rmtree(own, ignore_errors=True)


def check_output(path, ending: str = ''):
    "Before any work: a `Problem` unless `replacing(path, ending)` can write there."
    with _unwritten(path):
        place = _place_of(path, ending)
        parent = next(p for p in place.absolute().parents if p.exists())
        with _folder_beside(place, parent):
            pass


SIGNATURE = 'ddpm_lit'  # in PNG files, as the program that wrote them


def check_unnamed(path):
    "A `Problem` where a PNG that nobody named would replace a file that is not ours."
    if not os.path.exists(path):
        return
    with open_input(path) as f:
        start = f.read(1024)
    if f'tEXtSoftware\0{SIGNATURE}'.encode() not in start:
        raise Problem(f'There is a {path} already, which was not written by this '
                      'program: move it away, or say by `out` where to write.')


@contextlib.contextmanager
def replacing(path, ending: str = ''):  # the file to make or replace, and how it must end
    "Give a path to write to beside `path`, and put it in its place when all went well."
    with _unwritten(path):
        path = _place_of(path, ending)
        path.parent.mkdir(parents=True, exist_ok=True)

        # whatever is put into such a folder was put there by us
        with _folder_beside(path, path.parent) as own:
            beside = own/path.name

            # it will be as the old file is, or as every new file
            beside.touch()
            like = (path if path.exists() else beside).stat()
            beside.unlink()
            yield beside

            # the bytes on the disk first, then the name
            with open(beside, 'rb+') as f:
                os.fsync(f.fileno())
            with contextlib.suppress(OSError, AttributeError):  # to whom it belonged
                os.chown(beside, like.st_uid, like.st_gid)
            os.chmod(beside, like.st_mode & 0o777)
            os.replace(beside, path)


# %%NBQA-CELL-SEP15d533
#| export core.files
def half_written(path) -> list[Path]:  # folders
    "What calls of `replacing(path)` that were killed have left beside `path`."
    path = Path(path)
    # names like those that `replacing` gives, and in such a folder only the file and
    # what safetensors writes before it
    folder = re.compile(re.escape(_start_of(path)) + r'[a-z0-9_]{8}\.tmp')
    inside = re.compile(re.escape(path.name) + r'|\.tmp[A-Za-z0-9]{6}')

    found = []
    for p in path.parent.iterdir():
        if folder.fullmatch(p.name) and p.is_dir() and not p.is_symlink():
            if all(inside.fullmatch(q.name) and q.is_file() for q in p.iterdir()):
                found.append(p)
    return found


# %%NBQA-CELL-SEP15d533
#| volatile
# Checked: an interrupted writer, a full disk and a blocked path leave the old file as it was
with tempfile.TemporaryDirectory() as d:
    f = Path(d)/'sub'/'note.txt'
    with replacing(f) as p:
        p.write_text('good')

    # interrupted, a full disk, a file where a folder should be
    with expect_fail('pressed', KeyboardInterrupt):
        with replacing(f) as p:
            p.write_text('hal')
            raise KeyboardInterrupt('Ctrl-C pressed')
    with expect_fail('free some space', Problem):
        with replacing(f) as p:
            raise OSError(28, 'No space left on device')
    with expect_fail('choose another place', Problem):
        with replacing(f/'below'/'a file') as p:
            p.write_text('never')

    # nor is a device replaced by a file
    for no_file in (f.parent, '', f.parent/'..', f.parent/'a\0b', f.parent/'a\udcff', os.devnull):
        with expect_fail('choose another place', Problem):
            with replacing(no_file) as p:
                p.write_text('never')

    # a link stays a link
    link = f.with_name('link')
    os.symlink(f.name, link)
    with replacing(link) as p:
        p.write_text('good')
    assert link.is_symlink()
    link.unlink()

    assert f.read_text() == 'good'
    assert [q.name for q in f.parent.iterdir()] == ['note.txt']


# %%NBQA-CELL-SEP15d533
# a writer that is killed, again and again: the good file stays, what was left of each is found,
# and nothing else that lies there, whatever it is called
with tempfile.TemporaryDirectory() as d:
    home = Path(d)
    f = home/'note.txt'
    f.write_text('good')
    for beside_it in (0, 1, 1):
        child = os.fork()
        if child == 0:
            with replacing(f) as p:
                p.write_text('hal')
                if beside_it:
                    p.with_name('.tmpAb12Cd').write_text('half a tensor')
                os._exit(9)
        os.waitpid(child, 0)

    # files with similar names, a folder of this name that holds something else, one with a
    # folder in it, and a link
    foreign = ['.my_tmp_notes', '.note.txt.12.tmp', '.note.txt.tmp', '.note.txt.abcdefgh.tmp2',
               '.tmpAb12Cd', 'note.txt.abcdefgh.tmp']
    for name in foreign:
        (home/name).write_text('mine')
    for i, name in enumerate(('diary.txt', 'note.txt/deep')):
        (home/f'.note.txt.mine___{i}.tmp'/name).mkdir(parents=True)
    os.symlink(d, home/'.note.txt.linked__.tmp')

    left = half_written(f)
    assert len(left) == 3 and all((p/'note.txt').read_text() == 'hal' for p in left)
    assert half_written(home/'other.txt') == [] and f.read_text() == 'good'
    for p in left:
        shutil.rmtree(p)
    assert all((home/name).read_text() == 'mine' for name in foreign)
    assert half_written(f) == []

    # two names of the same file at once do not meet
    with replacing(f) as a, replacing(f) as b:
        assert a != b
        a.write_text('first')
        b.write_text('second')
    assert f.read_text() == 'first' and len([*home.iterdir()]) == len(foreign) + 4


# %%NBQA-CELL-SEP15d533
# The mode and the owner of a file stay, a new one gets what the umask leaves even where a library
# writes it with another mode, and what is protected is refused, before the work and after it
def write(path, mode=None):
    with replacing(path) as p:
        p.write_text('new')
        if mode is not None:
            p.chmod(mode)


old_mask = os.umask(0o027)
with tempfile.TemporaryDirectory() as d:
    f = Path(d)/'note.txt'
    write(f, 0o600)
    assert f.stat().st_mode & 0o777 == 0o640
    f.chmod(0o604)
    with contextlib.suppress(PermissionError):  # which only root can do
        os.chown(f, 1, 1)
    before = f.stat()
    write(f, 0o600)
    after = f.stat()
    assert after.st_ino != before.st_ino
    assert [after.st_mode, after.st_uid, after.st_gid] == [before.st_mode, before.st_uid,
                                                           before.st_gid]

    f.chmod(0o444)
    f_text = f.read_bytes()
    for attempt in (write, check_output):
        with contextlib.redirect_stdout(None), expect_fail('is protected', Problem):
            attempt(f)
    assert f.stat().st_mode & 0o777 == 0o444 and f.read_bytes() == f_text

    # a name as long as the system allows, and what a killed writer of it leaves
    long = Path(d)/('x'*251 + '.png')
    write(long)
    assert long.read_text() == 'new'
    os.mkdir(Path(d)/f'{_start_of(long)}abcdefgh.tmp')
    assert len(half_written(long)) == 1
os.umask(old_mask)
passed('a file that is replaced keeps its mode and its owner')


# %%NBQA-CELL-SEP15d533
# Asked before the work, `check_output` says what `replacing` would say after it, and leaves nothing
with tempfile.TemporaryDirectory() as d:
    home = Path(d)
    (home/'file').write_text('x')
    check_output(home/'new'/'deep'/'a.PNG', '.png')
    check_output(home/'file')
    for path, ending in ((home/'file'/'a.png', '.png'), (home/'a.jpg', '.png'), (home, ''),
                         ('/dev/null', ''), ('/proc/a.png', '.png'), (home/('x'*300), ''),
                         (home/'png', '.png'), (home/('a/'*300 + 'a'), '')):
        said = []
        for writes in (check_output, replacing):
            try:
                with writes(path, ending) as p:
                    p.write_text('never')
            except Problem as e:
                said.append(str(e))
        assert len(said) == 2 and said[0].split('(')[0] == said[1].split('(')[0], said
    assert [p.name for p in home.iterdir()] == ['file']

    # Ctrl-C in the middle of the removal leaves nothing, either
    remove, pressed = shutil.rmtree, []

    def interrupted_once(folder, **how):
        if not pressed:
            pressed.append(folder)
            raise KeyboardInterrupt('pressed')
        remove(folder, **how)

    with mock.patch('shutil.rmtree', interrupted_once), expect_fail('pressed', KeyboardInterrupt):
        check_output(home/'new.png')
    assert pressed and [p.name for p in home.iterdir()] == ['file']

    # a file that is not ours is not replaced under a name that nobody gave
    check_unnamed(home/'new.png')
    with expect_fail('not written by this program', Problem):
        check_unnamed(home/'file')
passed('eight places where nothing can be written are told before the work')


# %%NBQA-CELL-SEP15d533
#| export core.files
def check_new(path) -> Path:
    "Before any work: the folder to make; a `Problem` if it cannot be, or holds anything."
    # a name that can be written, and what it stands for
    try:
        str(path).encode()
        place = Path(os.path.realpath(path))
    except ValueError as e:  # half characters, and the one that ends names
        raise Problem(f'{str(path)!r} is no name that every program can read: choose '
                      'another place.') from e

    _not_too_deep(place)

    # nothing is there yet
    with _unwritten(path):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise Problem(f'{place} is there already, and nothing is ever overwritten: '
                          'name a new folder, or empty it.')
        if place == Path.cwd():
            raise Problem('This is the folder that you are in: name a new one.')

        # a folder can be made where it will be: one is, and is taken away again
        parent = next(p for p in place.parents if p.exists())
        with _folder_beside(place, parent):
            pass
    return place


@contextlib.contextmanager
def new_folder(path):
    "Give a folder to fill beside `path`, and put it in its place when all went well."
    own = None
    try:
        with _unwritten(path):
            path = check_new(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _folder_beside(path, path.parent) as own:
                inside = own/path.name
                inside.mkdir()
                yield inside

                # an empty folder is replaced, one that was filled meanwhile is not
                if path.exists():
                    os.chmod(inside, path.stat().st_mode & 0o777 | 0o700)
                    path.rmdir()
                os.replace(inside, path)
    except Problem as e:
        # a file that could not be written is named as it would have been called
        raise Problem(str(e).replace(str(own/path.name), str(path))
                      if own else str(e)) from e


# %%NBQA-CELL-SEP15d533
#| volatile
# Checked: a folder that holds anything is refused, and a writer that fails leaves nothing behind
with tempfile.TemporaryDirectory() as d:
    place = Path(d)
    (place/'full').mkdir()
    (place/'full'/'notes.txt').write_text('mine')
    (place/'empty').mkdir(0o700)
    with expect_fail('nothing is ever overwritten', Problem):
        check_new(place/'full')
    try:
        with new_folder(place/'new') as inside:
            (inside/'half').write_text('half')
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert sorted(p.name for p in place.iterdir()) == ['empty', 'full']

    for name in ('empty', 'deep/new'):
        with new_folder(place/name) as inside:
            (inside/'whole').write_text('whole')
        assert [p.name for p in (place/name).iterdir()] == ['whole']
    if sys.platform != 'win32':  # a private folder stays one
        assert (place/'empty').stat().st_mode & 0o777 == 0o700
    assert (place/'full'/'notes.txt').read_text() == 'mine'
    assert sorted(p.name for p in place.iterdir()) == ['deep', 'empty', 'full']

    # where nothing can be made, it is told before the work
    started_in = os.getcwd()
    (place/'here').mkdir()
    os.chdir(place/'here')
    for path, words in ((place/'full'/'notes.txt'/'new', 'choose another place'),
                        (place/('x'*3000), 'choose another place'), ('a\0b', 'no name'),
                        (place/('a/'*300), 'more than 200 folders'),
                        ('\udcff', 'no name'), ('', 'that you are in'),
                        (place/'full'/'notes.txt', 'nothing is ever overwritten')):
        with expect_fail(words, Problem):
            check_new(path)
    os.chdir(started_in)
    assert [*(place/'here').iterdir()] == []

    # a full disk is told with the name that the folder would have had
    with expect_fail('late could not be written', Problem):
        with new_folder(place/'late') as inside:
            raise OSError(28, 'No space left on device')
    assert not (place/'late').exists()
passed('a folder appears whole or not at all', by='what lies beside it')


# %%NBQA-CELL-SEP15d533
#| export
@contextlib.contextmanager
def in_package_folder():
    "Work in the package's folder: the user's may hold files that are named like modules."
    back = os.getcwd()
    os.chdir(str(files('ddpm_lit')))
    try:
        yield
    finally:
        os.chdir(back)


def end_with_parent():
    "Called first in a process, which then ends with its parent, however that ended."
    import multiprocessing
    import threading

    def wait():
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# %%NBQA-CELL-SEP15d533
# A program begins a process that sleeps for two minutes, and is killed: the process is gone soon
PROGRAM = '''
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from ddpm_lit.core.problem import end_with_parent

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 120).result()
'''
with tempfile.TemporaryDirectory() as d:
    (Path(d)/'program.py').write_text(PROGRAM)
    paths = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen([sys.executable, str(Path(d)/'program.py')], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | dict(PYTHONPATH=paths)) as p:
        worker = int(p.stdout.readline())
        p.kill()
        began = time.monotonic()
        p.stderr.read()  # its end is open as long as one of the two lives
        assert time.monotonic() - began < 60
passed('no process outlives the program that began it', by='a program that is killed')


# %%NBQA-CELL-SEP15d533
#| export core.stop
class Stop(BaseException):
    "Somebody asked for an end, by the signal of this number."

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


# Ctrl-C, `kill`, the end of a terminal, Ctrl-\
_ENDS = 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'


def end_signals(names: Iterable[str] = _ENDS) -> list[int]:
    "Signals that ask for an end, by number; that of a terminal unless nohup ignores it."
    numbers = [getattr(signal, name) for name in names
               if hasattr(signal, name)]  # Windows has two of them
    return [n for n in numbers if signal.Signals(n).name != 'SIGHUP'
            or signal.getsignal(n) != signal.SIG_IGN]


def answer(numbers: Iterable[int], how) -> dict:  # how: a function, or as in `signal`
    "In the main thread let signals call a function; gives what answered them before."
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in numbers:
            before[number] = signal.signal(number, how)
    return before


@contextlib.contextmanager
def answering(numbers: Iterable[int],
              how: Callable,  # (number, frame)
              raises: type[BaseException] = Stop,
              lost: Callable[[], object] = lambda: None) -> Iterator[dict]:
    "A block in which signals call a function; `lost`, if Python ignores what it raises."
    def ignored(unraisable):
        if isinstance(unraisable.exc_value, raises):
            lost()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, ignored
    before = answer(numbers, how)
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        sys.unraisablehook = hook


def end_at_once(number: int, frame=None):
    "Say so and end, whatever was begun."
    try:
        os.write(2, b'ddpm_lit: stopped.\n')
    finally:
        os._exit(128 + number)


# %%NBQA-CELL-SEP15d533
# In a block a signal is answered; after it, and in another thread, it does what it did before
number = signal.SIGTERM
before = signal.getsignal(number)
seen = []
with answering([number], lambda number, frame: seen.append(number)) as earlier:
    os.kill(os.getpid(), number)
    assert seen == [number] and earlier == {number: before}
assert signal.getsignal(number) == before

with ThreadPoolExecutor(1) as pool:
    assert pool.submit(answer, [number], print).result() == {}
assert signal.getsignal(number) == before

# nohup has the end of a terminal ignored
earlier = answer([signal.SIGHUP], signal.SIG_IGN)
assert signal.SIGHUP not in end_signals() and signal.SIGINT in end_signals()
answer([signal.SIGHUP], earlier[signal.SIGHUP])


# what Python ignores in a callback is told to `lost`, other errors there as ever
class Callback:
    def __init__(self, f):
        self.f = f

    def __del__(self):
        self.f()


def leave(number, frame):
    raise Stop(number)


lost = []
told = []
with mock.patch('sys.unraisablehook', told.append):
    with answering([number], leave, lost=lambda: lost.append(True)):
        Callback(lambda: os.kill(os.getpid(), number))
        assert lost == [True] and told == []
        Callback(lambda: 1/0)
        assert [type(e.exc_value) for e in told] == [ZeroDivisionError]
        with expect_fail('15', Stop):
            os.kill(os.getpid(), number)
    assert sys.unraisablehook == told.append

with mock.patch('os._exit') as ended, mock.patch('os.write') as written:
    end_at_once(number)
assert ended.call_args.args == (143,) and written.call_args.args[0] == 2
passed('a signal is answered in its block alone', by='what answered before')


# %%NBQA-CELL-SEP15d533
#| export
def identity(x: Any) -> Any:
    "What it is given, as it is: where something may be edited or wrapped, and is not."
    return x


def no_progress(*_) -> None:
    "Nobody wants to know how far the work is: takes whatever a progress function takes."


# %%NBQA-CELL-SEP15d533
# One gives back the same object, the other takes any arguments
thing = [1, 2]
assert identity(thing) is thing
assert no_progress(1, 2) is None
assert no_progress('reading', 1, 2) is None
