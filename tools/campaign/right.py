"What a case is, and what is right: one sentence, finite numbers, files that are whole."
import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from ddpm_lit import show
from ddpm_lit.cli import base as cli
from ddpm_lit.data import images
from ddpm_lit.train import recipe as recipes

root = Path(__file__).resolve().parents[2]
BOX = Path(tempfile.gettempdir()).resolve()/f'campaign{secrets.token_hex(4)}'  # made by main
FIX = BOX/'fix'  # the folder of the fixtures

# what stands in braces in the lines of the tables
FILES = dict(roll='run/roll.safetensors', said='said', cat='said/cat.png', digit='digit/1.png',
             small='digit/2.png', digits='digit', table='series.csv', clip='openai_clip_vit',
             parity='parity/f.safetensors', compare='compare', iddpm='iddpm_unet/m.safetensors',
             glide='glide/base.pt', up='glide/upsample.pt', karlo='karlo')


class Refused(Exception):
    "A command said no, and said it well."


class Skipped(Exception):
    "This machine does not let us try."


class Tally(NamedTuple):
    refused: int = 0
    worked: int = 0
    failures: tuple[str, ...] = ()
    seconds: float = 0.  # of the processor
    measured: dict = {}


class Case(NamedTuple):
    part: str
    name: str
    call: Callable
    args: tuple = ()


def cases(name: str, call: Callable, *columns):
    "(name, call, *values), a value from each column; the name shows it, or its key in a dict."
    pairs = [c.items() if isinstance(c, dict) else [(v, v) for v in c] for c in columns]
    for row in itertools.product(*pairs):
        yield name.format(*(shown for shown, _ in row)), call, *(v for _, v in row)


def nothing(*_):
    "No change."


def sentence(text: str):
    "Something is said, at no great length, in signs that a terminal shows."
    assert len(text.strip()) > 9, f'no clear sentence: {text[:200]!r}'
    assert len(text) <= 300, f'{len(text)} signs are no sentence: {text[:200]!r}'
    assert text.isprintable(), f'signs that nobody can read: {text[:200]!r}'


def inside(v) -> list:
    "What a value is made of."
    if isinstance(v, nn.Module):
        return [v.state_dict()]
    if isinstance(v, images.Images):
        return [v.pixels[:1] if isinstance(v.pixels, Tensor) else v.pixels[torch.tensor([0])]]
    if isinstance(v, dict):
        return [*v.values()]
    if isinstance(v, (list, tuple)):
        return [*v]
    if is_dataclass(v) and not isinstance(v, type):
        return [getattr(v, f.name) for f in fields(v)]
    return []


def sound(v):
    "Whatever came of it holds no NaN, and is what it says."
    if isinstance(v, Tensor):
        looked_at = v.is_floating_point() and not v.is_meta and v.ndim <= 64
        assert not looked_at or v.double().isfinite().all(), 'numbers that are not finite'
    elif isinstance(v, images.Images):
        assert v.pixels.shape[0] == len(v) > 0 and (v.label is None or len(v.label) == len(v))
    elif isinstance(v, float):
        assert not math.isnan(v), 'NaN'
    for x in inside(v):
        sound(x)


def no_nan(word):
    raise ValueError(f'{word} is no JSON')


def whole(p: Path):
    "A file that a command leaves can be read."
    assert '.tmp' not in str(p), f'left behind: {p}'
    if p.suffix == '.safetensors':
        load_file(p)
    elif p.suffix == '.json':
        json.loads(p.read_text(), parse_constant=no_nan)
    elif p.suffix == '.jsonl':
        for line in p.read_text().splitlines():
            json.loads(line, parse_constant=no_nan)
    elif p.suffix == '.png':
        Image.open(p).load()


def contents(p: Path) -> str:
    "What identifies the contents of a file; of a sparse one, which is not read, its size."
    size = p.stat().st_size
    return str(size) if size > 1 << 28 else hashlib.sha1(p.read_bytes()).hexdigest()


def files(folder='.') -> dict[Path, str]:
    "All files with what identifies their contents."
    found = [p for p in Path(folder).rglob('*') if p.is_file() and not p.is_symlink()]
    return {p: contents(p) for p in found}


ABSENT = 'roll',  # weights of the book that do not ship: cases ask for them where there are none


def check_weights_are_there(words: str):
    "An answer that weights of the book are missing is a failure: nothing else was tried."
    pattern = r'There is no weights/([\w-]+)\.safetensors in|There are no weights "([\w-]+)"'
    for name in [''.join(found) for found in re.findall(pattern, words)]:
        missing = name in recipes.RECIPES and name not in ABSENT
        assert not missing, f'the weights "{name}" are missing here, so nothing was tried'


def check_nothing_else(lines: list[str]):
    "Besides its answer a command says only how far it is, and what it leaves out."
    allowed = r'ddpm_lit: (the |no picture of)|[^:]+: \d+ of \d+'
    strange = [l for l in lines if not re.match(allowed, l)]
    if strange:
        raise AssertionError(f'it also said: {strange[0][:150]!r} ... {lines[-1][:150]!r}')


def check_refusal(code: int, last: str):
    "A command that fails ends in a sentence of its own, and without a traceback."
    assert last.startswith('ddpm_lit: '), f'exit code {code} and no sentence but {last[:300]!r}'
    sentence(last)
    assert '.tmp' not in last, f'it names a file of its own: {last}'
    kept = re.search(r'and add (\S+), which says where', last)
    if kept or 'a mistake of the program' in last:
        raise AssertionError('a traceback: ' + (Path(kept[1]).read_text()[-600:] if kept else last))


def said(code: int | None, out: str, err: str, as_json: bool = False, found: int | None = None):
    "Was it refused with one sentence, or did it work? `found` is a code that is no refusal."
    if code and code == found and out:
        code = 0
    check_weights_are_there(err)
    lines = [l for l in err.splitlines() if l.strip()]
    last = lines.pop() if code and lines else ''
    check_nothing_else(lines)
    if not code:
        return as_json and json.loads(out, parse_constant=no_nan)
    check_refusal(code, last)
    raise Refused(last)


def terminal(errors: str) -> io.TextIOWrapper:
    "What a command writes to, as a terminal encodes it."
    return io.TextIOWrapper(io.BytesIO(), 'utf-8', errors, write_through=True)


def code_in_process(args, out, err) -> int | None:
    "A command, in this process: its exit code."
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main([*args])
    except SystemExit as e:
        return e.code
    finally:
        show.plt.close('all')
    return 0


def run(*args: str, found: int | None = None):
    "A command, in this process: what it says and what it leaves."
    before = files()
    out, err = terminal('strict'), terminal('backslashreplace')
    code = code_in_process(args, out, err)

    after = files()
    # a write that was killed leaves a hidden folder, which the next run clears away
    lost = {p for p in before.keys() - after.keys() if '.tmp' not in str(p)}
    if lost:
        raise AssertionError(f'lost: {sorted(map(str, lost))}')
    for p in after:
        if after[p] != before.get(p):
            whole(p)
    words = [f.buffer.getvalue().decode() for f in (out, err)]
    assert words[0].replace('\n', '').isprintable(), f'raw signs: {words[0][:200]!r}'
    return said(code, *words, '--json' in args, found)


def quietly(line: str):
    "A command without its words."
    nowhere = io.StringIO()
    code = code_in_process(line.split(), nowhere, nowhere)
    if code:
        raise SystemExit(code)


def placed(word: str, **more) -> str:
    "A word of a table, with a file in the place of what stands in braces."
    def place(m):
        if m[1] in more:
            return str(more[m[1]])
        return str(FIX/FILES[m[1]]) if m[1] in FILES else m[0]

    return re.sub(r'\{(\w+)\}', place, word)


def words_of(line: str, **more) -> list[str]:
    return [placed(word, **more) for word in shlex.split(line)]


def run_line(line: str, *words: str, **more):
    "A command of a table; `words` are added as they are."
    return run(*words_of(line, **more), *words)


def shell(script: str, **env: str):
    "A command, in a shell of its own."
    command = f'{sys.executable} -m ddpm_lit'
    env = os.environ | dict(D=command, PYTHONPATH=str(root), FIX=str(FIX)) | env
    p = subprocess.run(['bash', '-c', script], env=env, stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, errors='replace', timeout=900)
    killed = p.returncode < 0 or p.returncode in (134, 137, 139)
    assert not killed, f'killed by a signal ({p.returncode})'
    return said(p.returncode, p.stdout, p.stderr)


def unharmed(f: Callable, *args):
    "Nothing of what a hostile file asks for has happened."
    try:
        return f(*args)
    finally:
        harm = [*Path('.').rglob('HARM*'), *Path('..').glob('HARM*')]
        assert not harm, 'a program in the file was run'


@contextlib.contextmanager
def kept_if_refused(folder: str = 'r'):
    "A command that refuses changes nothing in a folder."
    before = files(folder)
    try:
        yield
    except Refused:
        assert files(folder) == before, 'it was changed by a command that refused it'
        raise


def refused_for(words: str, line: str):
    "A command is refused in a sentence with these words."
    try:
        run_line(line)
    except Refused as e:
        assert words in str(e), f'{words} is not in: {e}'
        raise
    raise AssertionError('it was not refused')
