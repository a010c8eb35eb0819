"""Tries every public command and loader with broken input, and counts what became of it.

    python tools/campaign.py [--seed 0] [--only PART ...] [--case TEXT] [--json [FILE]]
                             [--share .1 | --quick] [--minutes 4] [--measured FILE]

Each case runs in a folder of its own, in a forked process with a limit on memory and on processor
time. Refused means a `Problem`, or from a command an exit code that is not zero and one line on
standard error that begins with `ddpm_lit:`. Worked means that what came of it was looked at:
finite numbers, files that load. A traceback, a warning, a hang, NaN, a half-written or lost file,
a signal, too much memory: a failure, printed with the line that repeats it.

A case is data: its part, its name, and a call with its arguments. A command stands in the tables as
a line, in which {roll}, {cat} ... are files of the fixtures (FILES).

The seed decides what is damaged and how, which odd words meet which options, and with --share which
cases are tried: that part of them, and at least one of each part. After --minutes no other case is
begun. --quick is for every change: a share of the parts that need no long run, with a few full
disks, a race of two processes and a few kills, in about a minute of one core.

All of it takes long, so it can be run in pieces. Ctrl-C ends it with the table of what is done.
With --json FILE the results stand in FILE, by seed: run again, it tries only what is not there, and
what failed; the table then adds up all seeds of the file. --json alone prints the results.
--measured FILE keeps the Frechet distances of the samplers.
"""
import argparse
import contextlib
import gzip
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Callable, NamedTuple

os.environ.pop('DDPM_LIT_DATA', None)  # the fixtures are the only data
import click
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed as seeded, settings, strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from ddpm_lit import show
from ddpm_lit.cli import base as cli
from ddpm_lit.clip import tokens
from ddpm_lit.clip.zero_shot import fill, read_picture
from ddpm_lit.core.problem import Problem, data_dir
from ddpm_lit.core.registry import package_sources
from ddpm_lit.core.denoiser import Model
from ddpm_lit.core.level import CLEAN, Level, from_alpha_bar, from_edm_sigma
from ddpm_lit.data import captions, images, toy
from ddpm_lit.data import folder as folders
from ddpm_lit.diffusion import sample, schedule, score, solve
from ddpm_lit.diffusion.oracle import EmpiricalDenoiser
from ddpm_lit.guide.cfg import as_w
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.baselines import compare
from ddpm_lit.interop import checkpoints as theirs, glide, unclip, unet as weights
from ddpm_lit.interop.speed import in_bf16
from ddpm_lit.systems.manipulate import UnclipEditor
from ddpm_lit.systems.pipeline import Request, weights_on
from ddpm_lit.systems.evaluate import sample_recipe
from ddpm_lit.train import fit, run as runs
from ddpm_lit.train.measure import frechet_distance, load_classifier

SECONDS = 60  # of the processor, for each case
MEMORY = 4 << 30  # of addresses, beyond those at the start
GROWTH = 1 << 29  # of memory really used
FIX: Path  # the folder of the fixtures, set by main

# what stands in braces in the lines of the tables
FILES = dict(roll='run/roll.safetensors', cat='said/cat.png', clip='openai_clip_vit',
             parity='parity/f.safetensors', compare='compare', iddpm='iddpm_unet/m.safetensors',
             glide='glide/base.pt', up='glide/upsample.pt', karlo='karlo')


class Refused(Exception):
    "A command said no, and said it well."


class Skipped(Exception):
    "This machine does not let us try."


class Slow(BaseException):
    "The limit on processor time."


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


def in_part(part: str) -> Callable:
    "A function that makes the cases of one part: (name, call, *args) -> Case."
    return lambda name, call, *args: Case(part, name, call, args)


# ---- what is right ----------------------------------------------------------------------------


def sentence(text: str):
    "Something is said, at no great length, in signs that a terminal shows."
    assert len(text.strip()) > 9, f'no clear sentence: {text[:200]!r}'
    assert len(text) <= 300, f'{len(text)} signs are no sentence: {text[:200]!r}'
    assert text.isprintable(), f'signs that nobody can read: {text[:200]!r}'


def sound(v):
    "Whatever came of it holds no NaN, and is what it says."
    if isinstance(v, Tensor):
        looked_at = v.is_floating_point() and not v.is_meta and v.ndim <= 64
        assert not looked_at or v.double().isfinite().all(), 'numbers that are not finite'
    elif isinstance(v, nn.Module):
        sound(v.state_dict())
    elif isinstance(v, images.Images):
        assert v.pixels.shape[0] == len(v) > 0 and (v.label is None or len(v.label) == len(v))
        sound(v.pixels[:1] if isinstance(v.pixels, Tensor) else v.pixels[torch.tensor([0])])
    elif isinstance(v, dict):
        sound([*v.values()])
    elif isinstance(v, (list, tuple)):
        for x in v:
            sound(x)
    elif is_dataclass(v) and not isinstance(v, type):
        sound([getattr(v, f.name) for f in fields(v)])
    elif isinstance(v, float):
        assert not math.isnan(v), 'NaN'


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
        missing = name in fit.RECIPES and name not in ABSENT
        assert not missing, f'the weights "{name}" are missing here, so nothing was tried'


def said(code: int | None, out: str, err: str, as_json: bool = False, found: int | None = None):
    "Was it refused with one sentence, or did it work? `found` is a code that is no refusal."
    if code and code == found and out:
        code = 0
    check_weights_are_there(err)
    lines = [l for l in err.splitlines() if l.strip()]
    last = lines.pop() if code and lines else ''

    # what a command may say besides
    allowed = r'ddpm_lit: (the |no picture of)|[^:]+: \d+ of \d+'
    strange = [l for l in lines if not re.match(allowed, l)]
    if strange:
        raise AssertionError(f'it also said: {strange[0][:150]!r} ... {lines[-1][:150]!r}')
    if not code:
        return as_json and json.loads(out, parse_constant=no_nan)

    assert last.startswith('ddpm_lit: '), f'exit code {code} and no sentence but {last[:300]!r}'
    sentence(last)
    assert '.tmp' not in last, f'it names a file of its own: {last}'
    kept = re.search(r'and add (\S+), which says where', last)
    if kept or 'a mistake of the program' in last:
        raise AssertionError('a traceback: ' + (Path(kept[1]).read_text()[-600:] if kept else last))
    raise Refused(last)


def terminal(errors: str) -> io.TextIOWrapper:
    "What a command writes to, as a terminal encodes it."
    return io.TextIOWrapper(io.BytesIO(), 'utf-8', errors, write_through=True)


def run(*args: str, found: int | None = None):
    "A command, in this process: what it says and what it leaves."
    before = files()
    out, err = terminal('strict'), terminal('backslashreplace')
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main([*args])
            except SystemExit as e:
                code = e.code
    finally:
        show.plt.close('all')

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


# ---- the machine that tries -------------------------------------------------------------------


def memory(what: str) -> int:
    "A line of what the system knows of this process, in bytes."
    for line in open('/proc/self/status'):
        if line.startswith(what):
            return int(line.split()[1]) << 10


def slow(*_):
    raise Slow(f'more than {SECONDS} s of the processor')


def where_in_library(e: BaseException) -> str:
    "The last line of the library that an exception passed."
    inside = [f for f in traceback.extract_tb(e.__traceback__)
              if 'ddpm_lit/ddpm_lit' in f.filename or f'{root}/ddpm_lit/' in f.filename]
    return f'  [{Path(inside[-1].filename).name}:{inside[-1].lineno}]' if inside else ''


def outcome(case: Case) -> Tally:
    "What becomes of a call that ends as it should."
    try:
        value = case.call(*case.args)
        if isinstance(value, Tally):
            return value
        sound(value)
        return Tally(worked=1)
    except Refused:
        return Tally(refused=1)
    except Skipped as e:
        print(f'skipped {case.name}: {e}', file=sys.stderr)
        return Tally()
    except Problem as e:
        check_weights_are_there(str(e))
        sentence(str(e))
        return Tally(refused=1)


def attempt(case: Case, box: Path) -> Tally:
    "A case in an empty folder, with limits; whatever else it raises is a failure."
    here = box/'here'
    env = dict(os.environ)

    # an empty folder, and the same random numbers whichever case came before
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    os.chdir(here)
    random.seed(case.name)
    torch.manual_seed(0)
    torch.set_num_threads(1)

    # limits of memory and time
    Path('/proc/self/clear_refs').write_text('5')  # the high-water mark begins anew
    start = memory('VmRSS')
    signal.setitimer(signal.ITIMER_PROF, SECONDS)

    # a case that ends well may still have taken too much, or left something behind
    try:
        tally = outcome(case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = memory('VmHWM') - start
        left = [*here.rglob('.*.tmp*')]
        if grown > GROWTH:
            tally = Tally(failures=(f'it took {grown >> 20} MiB',))
        if left:
            tally = Tally(failures=(f'left behind: {left[0].name}',))
    except BaseException as e:
        signal.setitimer(signal.ITIMER_PROF, 0)
        tally = Tally(failures=(f'{type(e).__name__}: {str(e)[:400]}{where_in_library(e)}',))

    # what a case may have changed
    os.environ.clear()
    os.environ.update(env)
    os.chdir(box)
    return tally


def worker(cases: list[tuple[int, Case]], pipe: int, box: Path, until: float):
    "Tries one case after the other until then, and tells of each before and after."
    os.setpgid(0, 0)  # a Ctrl-C is for the campaign, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    limit = memory('VmSize') + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, slow)
    for i, case in cases:
        if time.monotonic() > until:
            break
        os.write(pipe, f'{json.dumps([i])}\n'.encode())
        began = sum(os.times()[:4])
        tally = attempt(case, box)
        tally = tally._replace(seconds=round(sum(os.times()[:4]) - began, 3))
        os.write(pipe, f'{json.dumps([i, *tally])}\n'.encode())


def family(pid: int) -> list[int]:
    "A process and all that it started and that are alive."
    found = [pid]
    for children in Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for child_ in children.read_text().split():
                found += family(int(child_))
    return found


def end_all(pid: int, box: Path):
    "No process of a worker lives on, and no disk of its case stays."
    for one_ in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one_, signal.SIGKILL)
    if os.path.ismount(box/'here/disk'):
        subprocess.run(['umount', '-l', box/'here/disk'])


def spent(pid: int) -> float:
    "Seconds of the processor."
    with contextlib.suppress(OSError, IndexError):
        after_name = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
        return sum(map(int, after_name[11:13]))/os.sysconf('SC_CLK_TCK')
    return 0.


def forked(f: Callable, *args) -> int:
    "A child that does f and ends."
    pid = os.fork()
    if pid:
        return pid
    try:
        f(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(9)
    os._exit(0)


def watched(pid: int, pipe: int):
    "(i, None) when a worker begins case i and (i, tally) when it ends; one that hangs is killed."
    text, at = b'', None
    began, cpu = time.monotonic(), 0.
    while True:
        if select.select([pipe], [], [], 2)[0]:
            got = os.read(pipe, 1 << 16)
            if not got:
                return
            *lines, text = (text + got).split(b'\n')
            for line in lines:
                at, *tally = json.loads(line)
                began, cpu = time.monotonic(), spent(pid)
                yield at, Tally(*tally) if tally else None
                if tally:
                    at = None
        elif at is not None:
            if spent(pid) - cpu > 2*SECONDS or time.monotonic() - began > 600:
                yield at, Tally(failures=('it did not end',))
                return


def try_all(cases: list[Case], box: Path, until: float):
    "(case, tally) in order; where a worker dies or hangs its case failed, and another goes on."
    first = 0
    while first < len(cases) and time.monotonic() < until:
        read_end, write_end = os.pipe()
        pid = forked(worker, [*enumerate(cases)][first:], write_end, box, until)
        os.close(write_end)

        at = None  # the case that was begun and has not ended
        try:
            for i, tally in watched(pid, read_end):
                at = i
                if tally:
                    yield cases[i], tally
                    first, at = i + 1, None
        finally:
            end_all(pid, box)
            os.close(read_end)
            status = os.waitpid(pid, 0)[1]
        if at is not None:
            yield cases[at], Tally(failures=(f'the process died, status {status}',))
            first = at + 1


# ---- fixtures: what is whole, before anything is broken ---------------------------------------


def put(path, raw: bytes | str):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)


def idx(a) -> bytes:
    "An array in the format of MNIST."
    return b'\0\0\x08' + bytes([a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()


def quietly(line: str):
    "A command without its words."
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            cli.main(line.split())
        except SystemExit as e:
            if e.code:
                raise


def make_data_sets(rng, picture):
    "MNIST, CIFAR-10, CelebA, folders of pictures, emoji: a few rows of each."
    x = rng.integers(0, 255, (30, 28, 28), dtype=np.uint8)
    y = rng.integers(0, 10, 30, dtype=np.uint8)
    for part in ('train', 't10k'):
        for where in ('data/mnist', 'data/ddpm_lit/FashionMNIST/raw'):
            put(f'{where}/{part}-images-idx3-ubyte.gz', gzip.compress(idx(x)))
            put(f'{where}/{part}-labels-idx1-ubyte', idx(y))

    rows = rng.integers(0, 9, (4, 3073), dtype=np.uint8)
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        put(f'data/cifar-10-batches-bin/{name}.bin', rows.tobytes())
        batch = dict(data=rows[:, 1:], labels=rows[:, 0].tolist())
        put(f'data/cifar-10-batches-py/{name}', pickle.dumps(batch, 2))

    kinds = {'a/1.png': 'PNG', 'a/2.jpg': 'JPEG', 'b/3.webp': 'WEBP', 'b/4.gif': 'GIF',
             'b/5.bmp': 'BMP'}
    for name, kind in kinds.items():
        for home in ('celebahq', 'lsun', 'imagenet'):
            path = Path('data', home, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(20, 24, 3).save(path, format=kind)

    faces = [f'{i:06}.jpg' for i in range(1, 4)]
    celeba = {'list_eval_partition.txt': [f'{f} 0' for f in faces],
              'identity_CelebA.txt': [f'{f} {i}' for i, f in enumerate(faces)],
              'list_attr_celeba.txt': ['3', 'Bald Young', *(f'{f} -1 1' for f in faces)],
              'list_bbox_celeba.txt': ['3', 'image_id x y w h', *(f'{f} 1 2 3 4' for f in faces)],
              'list_landmarks_align_celeba.txt': ['3', 'a b', *(f'{f} 1 2' for f in faces)]}
    for name, lines in celeba.items():
        put(f'data/celeba/{name}', '\n'.join(lines) + '\n')
    Path('data/celeba/img_align_celeba').mkdir()
    for f in faces:
        picture(21, 17, 3).save(f'data/celeba/img_align_celeba/{f}')


def make_captioned(picture):
    "Pictures with captions, emoji, vocabularies, names."
    Path('said').mkdir()
    picture(20, 24, 3).save('said/dog.png')
    put('said/dog.txt', 'a dog\nsome dog\n')
    picture(64, 64, 4).save('said/cat.png')
    put('said/metadata.jsonl', '{"file_name": "cat.png", "text": "a cat"}\n')

    # a folder with labels and captions in tables, and a tar of samples
    Path('mine').mkdir()
    for name in ('1.png', '2.jpg', '3.tif'):
        picture(20, 24, 3).save(f'mine/{name}')
    put('mine/labels.csv', 'file,label\n1.png,a\n2.jpg,b\n3.tif,a\n')
    put('mine/captions.txt', '1.png\ta dog\n2.jpg\ta cat\n3.tif\ta cat\n')
    put('tar/1.txt', 'a dog')
    put('tar/1.cls', '7')
    with tarfile.open('tar/a.tar', 'w') as tar:
        for name in ('mine/1.png', 'tar/1.txt', 'tar/1.cls', 'mine/2.jpg'):
            tar.add(name, Path(name).name)

    lines = []
    with open(data_dir('emoji', 'base.jsonl'), encoding='utf-8') as f:
        for i, line in enumerate(itertools.islice(f, 6)):
            tiles = {style: i for style in captions.STYLES}
            row = json.loads(line) | dict(tiles=tiles, split='train' if i else 'test')
            lines.append(json.dumps(row))
    put('data/emoji/base.jsonl', '\n'.join(lines))
    for style in captions.STYLES:
        picture(128, 192, 3).save(f'data/emoji/base-{style}-64.webp', lossless=True)

    merges = data_dir('vocab', 'captions.bpe').read_bytes()
    put('vocab/v.bpe', merges)
    put('vocab/v.bpe.gz', gzip.compress(merges))
    put('names/names.txt', 'a dog\na cat\n')


def make_networks():
    "Small networks of other programs, in every kind of file."
    for name in ('iddpm_unet', 'ddpm_unet', 'openai_clip_vit', 'unclip_prior', 'glide_superres',
                 'unclip_upsampler'):
        f = weights.read_fixture(data_dir('parity', f'{name}.safetensors'))
        state = {k: v.float() if v.is_floating_point() else v for k, v in f.weights.items()}
        config = dict(f.config)
        Path(name).mkdir()
        save_file(state, f'{name}/m.safetensors')
        if name == 'openai_clip_vit':
            config |= dict(vision_config={'num_attention_heads': 1},
                           text_config={'num_attention_heads': 4})
            for kind in ('new', 'old', 'script'):
                Path(kind).mkdir()
            torch.save(state, 'new/m.pt')
            torch.save(state, 'old/m.pt', _use_new_zipfile_serialization=False)
            torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).save('script/m.pt')
        if name == 'ddpm_unet':
            steps = dict(num_train_timesteps=50, beta_schedule='linear', beta_start=1e-4,
                         beta_end=.02)
            put(f'{name}/scheduler_config.json', json.dumps(steps))
        put(f'{name}/config.json', json.dumps(config))

    # the last of them in two shards
    Path('shards').mkdir()
    keys = sorted(state)
    parts = {'a.safetensors': keys[::2], 'b.safetensors': keys[1::2]}
    for name, ks in parts.items():
        save_file({k: state[k] for k in ks}, f'shards/{name}')
    weight_map = {k: name for name, ks in parts.items() for k in ks}
    put('shards/m.safetensors.index.json', json.dumps(dict(weight_map=weight_map)))


def about_of(part: str) -> str:
    "The file that configures a part of Karlo's folder."
    return 'config.json' if part in theirs.UNCLIP_FOLDERS else 'scheduler_config.json'


def make_karlo():
    "A folder like Karlo's: tiny networks, as many tokens as CLIP has."
    f = weights.read_fixture(data_dir('parity', 'unclip_run.safetensors'))
    w = dict(f.weights)
    place = w['prior.positional_embedding']
    w['prior.positional_embedding'] = torch.cat([torch.randn(1, 77, 16).half(), place[:, -4:]], 1)
    for name, n in (('token', 49_408), ('position', 77)):
        key = f'text_encoder.text_model.embeddings.{name}_embedding.weight'
        w[key] = torch.randn(n, 16).half()
    f.config['text_encoder'] |= dict(vocab_size=49_408, max_position_embeddings=77)
    f.config['prior'] |= dict(num_embeddings=77)
    for part in (*theirs.UNCLIP_FOLDERS, *theirs.SCHEDULERS):
        put(f'karlo/{part}/{about_of(part)}', json.dumps(f.config[part]))
    for part in theirs.UNCLIP_FOLDERS:
        state = {k.removeprefix(f'{part}.'): v for k, v in w.items() if k.startswith(f'{part}.')}
        save_file(state, f'karlo/{part}/m.safetensors')


def make_glide():
    "Tiny networks in the format of GLIDE."
    Path('glide').mkdir()
    tiny = dict(model_channels=32, xf_width=8, xf_layers=1, xf_heads=1, num_res_blocks=1,
                channel_mult=(1, 2), attention_resolutions=(2,))
    for name, kind, more in (('base', 'base', {}), ('upsample', 'upsample', {}),
                             ('inpaint', 'inpaint', {}), ('words', 'base', dict(n_vocab=60))):
        net = glide.glide_openai(kind, tiny | more)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=.05)
        state = {k: v.half() for k, v in weights.to_official(net).items()}
        torch.save(state, f'glide/{name}.pt')


def copy_in(folder: str, *paths):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy(path, folder)


def make_fixtures(at: Path):
    "Small files of every kind that the library reads."
    rng = np.random.default_rng(0)

    def picture(*shape):
        return Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))

    os.chdir(at)
    quietly('train roll --steps 8 --batch 16 --out run')
    make_data_sets(rng, picture)
    make_captioned(picture)
    make_networks()
    make_karlo()
    make_glide()

    Path('parity').mkdir()
    shutil.copy(data_dir('parity', 'ddpm_unet.safetensors'), 'parity/f.safetensors')
    Path('reader').mkdir()
    shutil.copy(data_dir('weights', 'digits-classifier.safetensors'), 'reader/m.safetensors')
    copy_in('compare', data_dir('runs', 'compare', 'gan-points.safetensors'))
    cards = json.loads(data_dir('runs', 'compare', 'cards.json').read_text())
    cards = [c for c in cards if (c['family'], c['data']) == ('gan', 'points')]
    put('compare/cards.json', json.dumps(cards))
    copy_in('store/weights', 'run/roll.safetensors', 'run/roll.json')


def make_runs():
    "A run that nobody disturbs and the seconds it takes, and the same run half-way."
    began = time.monotonic()
    quietly(f'{TRAIN_TO} {FIX}/ref')
    put(FIX/'seconds', str(time.monotonic() - began))
    options = dict(steps=24, batch=16, lr=None, seed=None, bf16=None)
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        half = runs.open_run(FIX/'half', fit.find_recipe('roll'), options,
                             place=runs.Place(torch.device('cpu')))
        for line in runs.go(half):
            if line['step'] == 10:
                half.save()
                break


# ---- files: cut, flipped, gone ----------------------------------------------------------------


def roll():
    return fit.Training(fit.find_recipe('roll').build())


def asked(found):
    "A model and its recipe -> what it draws."
    model, recipe = found
    condition = [None] if recipe.classes else []
    levels = schedule.grid(schedule.Cosine(), 2)
    noise = torch.randn(2, *recipe.shape)
    return [model, sample.last(sample.ddim(model.given(*condition), levels, noise))]


def load_weights(p):
    return fit.load_weights(str(p))


def load_and_draw(p):
    return asked(load_weights(p))


def load_state(p):
    return roll().load(p).state()


def resumed(p):
    "Go on with a copy of a run; what is not copied is missing."
    copy_in('run', *(q for q in p.parent.iterdir() if q.is_file()))
    return run_line('train roll --steps 8 --out run --resume')


def data_set(name: str, *more):
    "Reads a data set, from wherever DDPM_LIT_DATA leads."
    return lambda p: images.load_images(name, *more)


def of_folder(read: Callable):
    "Reads the folder of a file."
    return lambda p: read(p.parent)


def small_set(p):
    return folders.read_folder(p, 8)


def labelled(p):
    return folders.read_folder(p, 8, 'pad', labels='labels.csv')


def merges(p):
    tokenizer = tokens.Tokenizer(tokens.read_pairs(p), tokens.split_gpt2, 32, [])
    return tokenizer(['a red heart'])


def whole_state(p):
    return [*theirs.read_state(p)]


def open_iddpm(p):
    return asked(theirs.open_denoiser(p, order='legacy', heads=4, schedule='linear', side=8))


def open_and_draw(p):
    return asked(theirs.open_denoiser(p))


def configured(name: str, load: Callable, *left_out: str):
    "Loads weights of a fixture by its configuration, which is whole."
    def read(p):
        config = json.loads((FIX/name/'config.json').read_text())
        return load(p, {k: v for k, v in config.items() if k not in left_out})

    return read


def load_glide(p, config):
    return glide.load_glide(p, config=config)


def parity(p):
    "The command; its code 1 only says that something differs."
    return run('parity', str(p), '--json', found=1)


def load_gan(p):
    return compare.load_contender('gan', 'points', p.parent)


# A line is a command: {file} is the file, {folder} its folder, {weights} the weights beside a card.
# A CLIP of the fixtures has a vocabulary of its own: words of ours are beyond it.
SAMPLE = 'sample {file} --n 4 --steps 2 --out a.png --json'
EVAL = 'eval {weights} --n 12 --steps 2 --json'
INIT = 'train roll --init --steps 2 --batch 8 --out r --json'
CLASSIFY = 'classify {file} a b --weights {clip} --json'
WITH_CLIP = 'classify {cat} a b --weights {file} --json'

# file of the fixtures, and after a colon the way it is read: what reads it
READERS = {
    'run/roll.safetensors:load': load_and_draw,
    'run/roll.safetensors:sample': SAMPLE,
    'run/roll.safetensors:eval': EVAL,
    'run/roll.json:eval': EVAL,
    'run/state.safetensors:load': load_state,
    'run/state.safetensors:resume': resumed,
    'run/run.json:resume': resumed,
    'run/log.jsonl:resume': resumed,
    'store/weights/roll.json:init': INIT,
    'store/weights/roll.safetensors:init': INIT,
    'data/mnist/t10k-images-idx3-ubyte.gz': data_set('mnist', 'test'),
    'data/mnist/train-labels-idx1-ubyte': data_set('mnist'),
    'data/mnist/train-labels-idx1-ubyte:train':
        'train mnist --steps 1 --batch 2 --out r --json',
    'data/ddpm_lit/FashionMNIST/raw/train-images-idx3-ubyte.gz': data_set('fashion-mnist'),
    'data/cifar-10-batches-bin/test_batch.bin': data_set('cifar10', 'test'),
    'data/cifar-10-batches-py/data_batch_3': images.read_cifar,
    'data/celeba/list_attr_celeba.txt': data_set('celeba'),
    'data/celeba/list_eval_partition.txt': data_set('celeba'),
    'data/celeba/img_align_celeba/000002.jpg': data_set('celeba'),
    'data/celebahq/a/1.png': data_set('celebahq'),
    'data/celebahq/a/2.jpg': data_set('celebahq'),
    'data/lsun/b/3.webp': data_set('lsun'),
    'data/lsun/b/4.gif': data_set('lsun'),
    'data/imagenet/b/5.bmp': data_set('imagenet'),
    'data/emoji/base.jsonl': data_set('emoji'),
    'data/emoji/base-noto-64.webp': data_set('emoji'),
    'said/dog.png': of_folder(folders.pictures_with_captions),
    'said/dog.txt': of_folder(folders.pictures_with_captions),
    'said/metadata.jsonl': of_folder(folders.pictures_with_captions),
    'mine/1.png': of_folder(labelled),
    'mine/3.tif': of_folder(labelled),
    'mine/labels.csv': of_folder(labelled),
    'mine/captions.txt': of_folder(labelled),
    'tar/a.tar': small_set,
    'vocab/v.bpe': merges,
    'vocab/v.bpe.gz': merges,
    'said/cat.png:picture': read_picture,
    'said/cat.png:classify': CLASSIFY,
    'said/cat.png:vary': 'vary {file} --n 0',
    'names/names.txt:classify': 'classify {cat} --names {file} --weights {clip}',
    'new/m.pt': whole_state,
    'old/m.pt': whole_state,
    'script/m.pt': whole_state,
    'new/m.pt:clip': theirs.clip_at,
    'new/m.pt:classify': WITH_CLIP,
    'openai_clip_vit/m.safetensors': theirs.clip_at,
    'openai_clip_vit/m.safetensors:classify': WITH_CLIP,
    'openai_clip_vit/config.json': of_folder(theirs.clip_at),
    'iddpm_unet/m.safetensors': open_iddpm,
    'ddpm_unet/m.safetensors': of_folder(open_and_draw),
    'ddpm_unet/config.json': of_folder(open_and_draw),
    'ddpm_unet/scheduler_config.json': of_folder(open_and_draw),
    'ddpm_unet/config.json:sample': 'sample {folder} --layout auto --n 2 --steps 2',
    'shards/m.safetensors.index.json': theirs.read_state,
    'shards/a.safetensors': of_folder(whole_state),
    'unclip_prior/m.safetensors': configured('unclip_prior', unclip.load_prior),
    'unclip_upsampler/m.safetensors': configured('unclip_upsampler', unclip.load_upsampler),
    'glide_superres/m.safetensors': configured('glide_superres', load_glide, 'small_size'),
    'parity/f.safetensors': parity,
    'reader/m.safetensors': load_classifier,
    'compare/cards.json': 'compare --out {folder} --n 100 --json',
    'compare/gan-points.safetensors': load_gan}


def read_by(reader: Callable | str, p: Path):
    "Give a file to a function, or to the command of a line."
    if callable(reader):
        return reader(p)
    return run_line(reader, file=p, folder=p.parent, weights=p.with_suffix('.safetensors'))


def damages(raw: bytes, rng: random.Random, k: int):
    "A file, broken in every way: (how, bytes)."
    yield from dict(empty=b'', one_byte=raw[:1], zeros=bytes(len(raw)),
                    twice=raw*2, tail=raw + b'\0', space=b' \n',
                    list=b'[]', number=b'7', null=b'null', object=b'{}',
                    ff=b'\xff\xfe' + raw).items()
    number = rng.randrange(10**6)
    yield f'noise {number}', random.Random(number).randbytes(len(raw))
    for i in range(k):
        within = min(len(raw), (64, 600, len(raw))[i % 3])
        n = rng.randrange(1, max(2, within))
        yield f'cut at {n}', raw[:n]
    for i in range(2*k):
        within = min(len(raw), (24, 400, len(raw))[i % 3])
        n = rng.randrange(within)
        b = rng.randrange(8)
        yield f'bit {b} of byte {n}', raw[:n] + bytes([raw[n] ^ 1 << b]) + raw[n + 1:]


def nothing(*_):
    "No change."


def link_to(target):
    return lambda p: p.symlink_to(target)


def link_to_itself(p):
    p.symlink_to(p.name)


def three_gigabytes(p):
    "A file that says it is large, and takes no room on the disk."
    with open(p, 'wb') as f:
        f.truncate(3 << 30)


# what stands in the place of a file
PLACES = dict(missing=nothing, folder=Path.mkdir, loop=link_to_itself, dangling=link_to('nowhere'),
              pipe=os.mkfifo, endless=link_to('/dev/zero'), void=link_to('/dev/null'),
              sparse=three_gigabytes)


def put_there(path: Path, make: Callable[[Path], Any]):
    path.unlink()
    make(path)


def spoiled(path: Path, reader, change: Callable, *args):
    "Change a file in a copy of its folder, and read it."
    home = path.parts[0]
    shutil.copytree(FIX/home, 'in')
    p = (Path('in')/path.relative_to(home)).resolve()
    change(p, *args)
    os.environ['DDPM_LIT_DATA'] = str(Path('in').resolve())
    return read_by(reader, p)


def files_cases(rng, k: int = 5, readers=READERS, part: str = 'files', places=PLACES):
    "Each file whole, then damaged, then with something else in its place."
    case = in_part(part)
    for name, reader in readers.items():
        path = Path(name.split(':')[0])
        yield case(f'{name} whole', spoiled, path, reader, nothing)
        for how, raw in damages((FIX/path).read_bytes(), rng, k):
            yield case(f'{name} {how}', spoiled, path, reader, Path.write_bytes, raw)
        for how, make in places.items():
            yield case(f'{name} {how}', spoiled, path, reader, put_there, make)


# ---- made to harm -----------------------------------------------------------------------------


def head(text: bytes, n: int = 16, size: int | None = None) -> bytes:
    "A safetensors file: the size of its head, the head, n bytes of data."
    return struct.pack('<Q', len(text) if size is None else size) + text + bytes(n)


FOUR = dict(dtype='F32', shape=[4], data_offsets=[0, 16])
FOUR_TEXT = b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


def one(**changes) -> bytes:
    "A head of one tensor, 2 x 2, with changes."
    tensor = dict(dtype='F32', shape=[2, 2], data_offsets=[0, 16]) | changes
    return json.dumps({'a': tensor}).encode()


HEADS = {
    'huge length': head(b'{}', size=2**63),
    'length beyond': head(b'{}', size=10**6),
    'negative length': head(b'{}', size=2**64 - 1),
    'no UTF-8': head(b'{"\xff\xfe": {}}'),
    'deep': head(b'{"a":' + b'['*100_000 + b']'*100_000 + b'}'),
    'no JSON': head(b'{a}'),
    'a list': head(b'[1]'),
    'a word': head(b'"x"'),
    'NaN': head(b'{"a": NaN}'),
    'twice': head(b'{' + FOUR_TEXT + b',' + FOUR_TEXT + b'}'),
    'overlap': head(json.dumps({'a': FOUR, 'b': FOUR}).encode()),
    'hole': head(one(data_offsets=[8, 24]), 24),
    'beyond': head(one(data_offsets=[0, 2**40], shape=[2**19, 2**19])),
    'negative offset': head(one(data_offsets=[-16, 0])),
    'backwards': head(one(data_offsets=[16, 0])),
    'huge shape': head(one(shape=[2**62, 2**62])),
    'zero times huge': head(one(shape=[0, 2**62], data_offsets=[0, 0]), 0),
    'negative shape': head(one(shape=[-2, -2])),
    'float shape': head(one(shape=[2.5, 2])),
    'text shape': head(one(shape='2')),
    'many axes': head(one(shape=[1]*5000 + [4])),
    'no dtype': head(one(dtype=None)),
    'odd dtype': head(one(dtype='F8_E4M3', data_offsets=[0, 4]), 4),
    'unknown dtype': head(one(dtype='X9')),
    'complex': head(one(dtype='C64', shape=[2])),
    'no shape': head(b'{"a":{"dtype":"F32","data_offsets":[0,16]}}'),
    'metadata numbers': head(b'{"__metadata__":{"recipe":7}}', 0),
    'recipe nowhere': head(b'{"__metadata__":{"recipe":"../../x"}}', 0),
    'recipe of a megabyte': head(b'{"__metadata__":{"recipe":"' + b'x'*10**6 + b'"}}', 0),
    'recipe of 7 MB': head(b'{"__metadata__":{"recipe":"' + b'x'*7*10**6 + b'"}}', 0),
    'metadata list': head(b'{"__metadata__":[]}', 0),
    'list of 9 MB': head(b'{' + b' '*(9 << 20) + FOUR_TEXT + b'}'),
    'nul key': head(json.dumps({'\0': FOUR}).encode()),
    'long key': head(json.dumps({'k'*10**6: FOUR}).encode()),
    'right recipe, nothing else': head(b'{"__metadata__":{"recipe":"roll"}}', 0)}

HEAD_READERS = dict(read=fit.read_tensors, load=load_weights, state=load_state,
                    open=theirs.open_denoiser, sample='sample {file} --n 2', parity='parity {file}')


class Calls:
    "A pickle of it asks to call a function."

    def __init__(self, f, *args):
        self.how = f, args

    def __reduce__(self):
        return self.how


def nested(depth: int) -> list:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def batch(data) -> bytes:
    "A pickle as a file of CIFAR-10 is."
    return pickle.dumps(dict(data=data, labels=[1]), 2)


def of_objects() -> bytes:
    "A dtype that is made one of objects after it was made: its bytes would be read as pointers."
    plain_ = batch(Calls(np.ndarray, (1,), np.dtype('u8'), b'A'*8))
    return plain_.replace(b'u8', b'O8')


LOOP: dict = {}
LOOP['a'] = LOOP
LAUGHS = b''.join(b'](h' + bytes([i]) + (b'h' + bytes([i]))*9 + b'eq' + bytes([i + 1])
                  for i in range(30))
TOUCH = Calls(os.system, 'touch HARM')

PICKLES = {
    'runs a command': pickle.dumps(TOUCH, 2),
    'evaluates': pickle.dumps(Calls(eval, "open('HARM','w')"), 2),
    'old protocol': pickle.dumps(TOUCH, 0),
    'new protocol': pickle.dumps(TOUCH, 5),
    'a bare number': pickle.dumps(7, 2),
    'text': pickle.dumps('x', 2),
    'deep': pickle.dumps(nested(400), 2),
    'a loop': pickle.dumps(LOOP, 2),
    'words for keys': pickle.dumps({(1, 2): 3}, 2),
    'a name of a megabyte': b'\x80\x02c' + b'a'*10**6 + b'\nb\n.',
    'no stop': b'\x80\x02}',
    'pops nothing': b'\x80\x020.',
    'gets what was never put': b'\x80\x02h\xff.',
    'huge text': b'\x80\x02X\xff\xff\xff\x7fabc.',
    'huge long': b'\x80\x02\x8b\xff\xff\xff\x7f\x01.',
    'negative long': b'\x80\x02\x8b\xff\xff\xff\xff.',
    'huge memo': b'\x80\x02}r\xff\xff\xff\x7f.',
    'billion laughs': b'\x80\x02]q\0' + LAUGHS + b'.',
    'grows': b'\x80\x02' + b'(]'*100_000 + b'.',
    'doubles text': b'\x80\x02X\x04\0\0\0abcd' + b'2\x86'*40 + b'.',
    'extension': b'\x80\x02\x82\x01.',
    'persistent': b'\x80\x02X\x01\0\0\0aQ.',
    'buffer': b'\x80\x05\x97.',
    'odd set': b'\x80\x04\x8f(K\x01\x90.',
    'instance': b'(i__main__\nx\n.',
    'object': b'\x80\x02(cos\nsystem\no.',
    'an array of pointers': batch(Calls(np.ndarray, (1,), np.dtype('O'), b'A'*8)),
    'pointers by another way': of_objects(),
    'an array of what lies about': batch(Calls(np.ndarray, (153_600,), np.dtype('u1'))),
    'a huge array': batch(Calls(np.ndarray, (1 << 40,), np.dtype('u1')))}

# the entries of a zip; a number is a size
ZIPS = {
    'bomb': {'a/data.pkl': 3*10**8},
    'bomb beside': {'a/data.pkl': pickle.dumps({}, 2), 'a/data/0': 3*10**8},
    'traversal': {'../../HARM/data.pkl': pickle.dumps({}, 2)},
    'two programs': {'a/data.pkl': b'', 'b/data.pkl': b''},
    'no program': {'x': b''},
    'other order': {'a/data.pkl': pickle.dumps({}, 2), 'a/byteorder': b'big'},
    'nothing': {}}


def zipped(entries: dict[str, bytes | int]):
    with warnings.catch_warnings(), zipfile.ZipFile('m.pt', 'w', zipfile.ZIP_DEFLATED) as z:
        warnings.simplefilter('ignore')
        for name, raw in entries.items():
            z.writestr(name, bytes(raw) if isinstance(raw, int) else raw)


def read_zip(entries: dict[str, bytes | int]):
    zipped(entries)
    return unharmed(theirs.read_state, 'm.pt')


def png(w: int, h: int) -> bytes:
    "A picture that says it has this size, and has a million zeros."
    chunks = {b'IHDR': struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0),
              b'IDAT': zlib.compress(bytes(10**6)), b'IEND': b''}
    raw = b'\x89PNG\r\n\x1a\n'
    for kind, data in chunks.items():
        crc = struct.pack('>I', zlib.crc32(kind + data))
        raw += struct.pack('>I', len(data)) + kind + data + crc
    return raw


BMP_HEAD = (54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
PICTURES = {
    'png 60000 x 60000': png(60000, 60000),
    'png 12000 x 12000': png(12000, 12000),
    'png without size': png(0, 0),
    'png 1 x 2 million': png(1, 2*10**6),
    'png negative': png(2**32 - 1, 2**32 - 1),
    'gif 65535 x 65535': b'GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0'
                         b'\xff\xff\xff\xff\0\x02\x02D\x01\0;',
    'bmp huge': b'BM' + struct.pack('<IHHIIiiHHIIiiII', *BMP_HEAD),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    'postscript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9000 9000\n'
                  b'(HARM) (w) file\n%%EOF\n',
    'tiff loop': b'II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\x01\0\0\0\x08\0\0\0',
    'a zip': b'PK\x05\x06' + bytes(18),
    'avif': b'\0\0\0\x18ftypavif\0\0\0\0avifmif1' + bytes(99),
    'dds': b'DDS |\0\0\0' + bytes(200),
    'blp': b'BLP2\1\0\0\0' + bytes(200),
    'text': b'hello'}


def with_other_names(at: Path):
    state = {k.replace('model.', 'network.'): v for k, v in load_file(at).items()}
    save_file(state, at, head_of(at))


def head_of(at: Path) -> dict[str, str]:
    with safe_open(at, 'pt') as f:
        return f.metadata()


def without_setting(name: str, at: Path):
    kept = json.loads(at.read_text())
    del kept[name]
    put(at, json.dumps(kept))


def with_setting(name: str, value: Any, at: Path):
    put(at, json.dumps(json.loads(at.read_text()) | {name: value}))


def with_type(start: str, kind: torch.dtype, at: Path):
    "A state in which the first tensor whose name begins so is of another type."
    state = load_file(at)
    name = min(k for k in state if k.startswith(start))
    save_file(state | {name: state[name].to(kind)}, at, head_of(at))


# settings of types or sizes that no run has, and numbers of types that no state has
ODD_SETTINGS = dict(init=(7, {}, [[]]), anew=(None, 7), source=(None, [], 7, 'x'),
                    steps=(10**400,), lr=(10**400,))
ODD_TYPES = (torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn)

# what somebody else has put into a run's folder
INTRUDERS = {
    'weights': lambda: put('r/roll.safetensors', b'mine'),
    'a card': lambda: put('r/roll.json', b'mine'),
    'a sheet': lambda: put('r/previews/0000010.png', b'mine'),
    'a link to weights': lambda: led_to_mine('r/roll.safetensors'),
    'a link to notes': lambda: led_to_mine('r/log.jsonl'),
    'a link to a state': lambda: led_to_mine('r/state.safetensors')}


def led_to_mine(path: str):
    "A file of a run becomes a link to one that lies elsewhere."
    Path(path).rename('mine')
    Path(path).symlink_to('../mine')


def by_others(change: Callable):
    "What somebody else has put into the folder of a run is not replaced."
    shutil.copytree(FIX/'run', 'r')
    change()
    before = files()
    try:
        run_line('train roll --resume --steps 10 --out r')
    except Refused:
        assert files() == before, 'it was changed by a command that refused it'
        raise
    raise AssertionError('it went on, though it would replace what others wrote')


def led_outside():
    "A run whose recipe is called as weights outside its folder are: those stay."
    own_pictures('d')
    quietly('train --data d --steps 2 --batch 2 --base 8 --no-augment --out r')
    put('victim.safetensors', b'mine')
    kept = json.loads(Path('r/run.json').read_text())
    for named, key in ((kept, 'recipe'), (kept['spec'], 'name'), (kept['source'], 'name')):
        named[key] = '../victim'
    put('r/run.json', json.dumps(kept))

    # its state says that it is of this run
    mark = dict(run=runs.Beginning.read(kept).identity())
    save_file(load_file('r/state.safetensors'), 'r/state.safetensors', mark)
    try:
        return run_line('train --resume --out r --steps 5')
    finally:
        assert Path('victim.safetensors').read_bytes() == b'mine', 'a file outside was replaced'


OLDER = {  # what another version may have left in a run's folder
    'a state without the mark of its run': ('state.safetensors',
                                            lambda at: save_file(load_file(at), at)),
    'a state with other names': ('state.safetensors', with_other_names),
    'settings without "bf16"': ('run.json', partial(without_setting, 'bf16')),
    'settings without "recipe"': ('run.json', partial(without_setting, 'recipe')),
    'settings of 90 MB': ('run.json', lambda at: put(at, b'{"x": "' + b'a'*90_000_000 + b'"}')),
    'a card of 90 MB': ('roll.json', lambda at: put(at, b'{"x": "' + b'a'*90_000_000 + b'"}'))}


def older(file: str, change: Callable[[Path], Any], line: str):
    "With such a run a command works, or the run stays as it is."
    shutil.copytree(FIX/'run', 'r')
    change(Path('r', file))
    before = files('r')
    try:
        return run_line(line)
    except Refused:
        assert files('r') == before, 'it was changed by a command that refused it'
        raise


def state_of_another(settings: str):
    "The state of a run with another setting, in the folder of this one, is refused and stays."
    shutil.copytree(FIX/'run', 'r')
    quietly(f'train roll --steps 8 {settings} --out other')
    shutil.copy('other/state.safetensors', 'r/state.safetensors')
    before = files('r')
    try:
        run_line('train roll --resume --steps 10 --out r')
    except Refused:
        assert files('r') == before, 'it was changed by a command that refused it'
        raise
    raise AssertionError('it went on with the state of another run')


def weights_without_state():
    "A resumed run whose state is gone keeps the weights that it had."
    shutil.copytree(FIX/'run', 'r')
    Path('r/state.safetensors').unlink()
    before = files('r')
    try:
        run_line('train roll --resume --steps 10 --out r')
    finally:
        assert files('r') == before, 'its weights were replaced'


def spread_run(line: str):
    "A command in a group of one process, whose model is spread over it."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    return run_line(line)


def cut_short(p):
    p.write_bytes(p.read_bytes()[:999])


def pickle_beside(p):
    p.with_name('.metadata').write_bytes(PICKLES['runs a command'])


def pickle_there(p):
    p.write_bytes(PICKLES['runs a command'])


def part_of_another(p):
    spread_run(f'{SPREAD} --seed 1 --out other')
    shutil.copy('other/state-2/0.safetensors', p)


SPREAD = 'train roll --shard --steps 2 --batch 8'
PARTS = dict(whole=lambda p: None, cut=cut_short, missing=Path.unlink, pickle=pickle_there,
             beside=pickle_beside)


def spread_state(change: Callable[[Path], Any]):
    "A run spread over its processes goes on from its own state, or stays as it is."
    spread_run(f'{SPREAD} --out r')
    change(Path('r/state-2/0.safetensors'))
    before = files('r')
    try:
        return unharmed(spread_run, 'train roll --resume --out r')
    except Refused:
        assert files('r') == before, 'it was changed by a command that refused it'
        raise


def spread_another():
    "Its state is another's: refused."
    spread_state(part_of_another)
    raise AssertionError('it went on with the state of another run')


def about_pictures(line: str):
    own_pictures('d')
    return run_line(line)


def long_time():
    "More seconds than there are steps."
    own_pictures('d')
    quietly('train --data d --seconds 1e308 --steps 1 --batch 2 --base 8 --no-augment --out r')


def with_loop(line: str):
    "A name that is a link to itself."
    Path('loop').symlink_to('loop')
    return run_line(line)


def with_plugin(text: str):
    put('a.py', text)
    return run('--plugin', 'a.py', 'presets', 'ddpm-cifar10')


def with_sampler(states: str):
    "A sampler of a plug-in that yields what no sampler should: the plug-in is named."
    put('p.py', 'from ddpm_lit.diffusion.sample import SAMPLERS\n'
                f'SAMPLERS.add("odd", lambda denoiser, levels, x: {states})\n')
    try:
        return run_line('--plugin p.py sample {roll} --n 4 --steps 2 --sampler odd --out a.png')
    except Refused as e:
        assert 'p.py' in str(e), f'the plug-in is not named: {e}'
        raise


def log_of_others(text: str):
    "What others have written into the log of a run is kept when it goes on."
    shutil.copytree(FIX/'half', 'r')
    with open('r/log.jsonl', 'a') as f:
        f.write(text)
    run_line('train roll --resume --steps 24 --out r')
    kept = [line for p in Path('r').glob('log*') for line in p.read_text().splitlines()]
    assert not {*text.splitlines()} - {*kept}, 'the log has lost a line of others'


def with_timesteps(T):
    "A folder of diffusers whose schedule has so many timesteps."
    shutil.copytree(FIX/'ddpm_unet', 'd')
    put('d/scheduler_config.json', json.dumps(dict(num_train_timesteps=T)))
    return run_line('sample d --layout diffusers --n 1 --steps 1 --out a.png')


def own_pictures(folder: str):
    "Four pictures in a folder."
    for k in range(4):
        put(Path(folder)/f'{k}.png', show.png(torch.full((1, 3, 8, 8), k/4), zoom=1))


def called_as_a_file(folder: str):
    "A model of pictures whose folder is called as a file of a run is: it goes on."
    own_pictures(folder)
    line = f'train --data {folder} --batch 2 --base 8 --no-augment'
    quietly(f'{line} --steps 2')
    return run_line(f'{line} --steps 3 --resume')


def among_pictures(line: str):
    "A run in the folder of its own pictures goes on; `line` is a command in between."
    own_pictures('d')
    os.chdir('d')
    quietly('train --data . --batch 2 --base 8 --no-augment --steps 2 --preview 1')
    quietly(line)
    return run_line('train --resume --out runs/d --steps 3')


def with_source(line: str, changes: dict):
    "A run of own pictures whose run.json says something else of them."
    own_pictures('d')
    quietly('train --data d --steps 2 --batch 2 --base 8 --no-augment --out r')
    settings = json.loads(Path('r/run.json').read_text())
    put('r/run.json', json.dumps(settings | dict(source=settings['source'] | changes)))
    return run_line(line)


SOURCES = (dict(labels=7), dict(labels=[]), dict(captions=7), dict(captions=[]),
           dict(system=None), dict(files=7, digest='x'), dict(files=[[]], digest='x'),
           dict(files=[1, 'a'], digest='x'))


def in_table(paths: list, rows: int, more: int):
    "A parquet table whose rows share one picture of so many bytes more, and their paths."
    pa, pq = folders.needed('pyarrow'), folders.needed('pyarrow.parquet')
    raw = show.png(torch.zeros(1, 3, 8, 8), zoom=1) + bytes(more)
    shared = pa.DictionaryArray.from_arrays(pa.array([0]*rows), pa.array([raw]))
    image = pa.StructArray.from_arrays([shared.cast('binary'), pa.array(paths*rows)],
                                       ['bytes', 'path']) if paths else shared
    pq.write_table(pa.table(dict(image=image)), 't.parquet', compression='zstd')
    return small_set(Path('t.parquet'))


def saved_set(name: str, make: Callable = nothing):
    "A saved data set that names such a file as its own."
    put('d/state.json', json.dumps(dict(_data_files=[dict(filename=name)])))
    put('d/dataset_info.json', '{}')
    make(Path('d', 'a.arrow'))
    return small_set(Path('d'))


def packed_tar(kind: bytes):
    "A tar of 4 MB that unpacks to 4 GB: a member of that size, of a kind."
    header = tarfile.TarInfo('a.png')
    header.type, header.size = kind, 4 << 30
    zeros = 4096*gzip.compress(bytes(1 << 20), 1)
    put('t.tar.gz', gzip.compress(header.tobuf()) + zeros)
    return small_set(Path('t.tar.gz'))


def in_bits():
    "A GIF of 160 MB, in comments of one byte each."
    head = b'GIF89a\2\0\2\0\xf0\0\0' + bytes(6)
    frame = b',\0\0\0\0\2\0\2\0\0\2\2\x44\1\0;'
    put('p.gif', head + b'!\xfe' + b'\1a'*80_000_000 + b'\0' + frame)
    return read_picture('p.gif')


def captioned_picture(p):
    p.with_suffix('.txt').write_text('x')
    return folders.pictures_with_captions(p.parent)


def small_folder(p):
    return images.folder(p.parent, 8)


IDX = {
    '255 axes': b'\0\0\x08\xff' + b'\0\0\0\2'*255,
    'huge': b'\0\0\x08\3' + b'\xff'*12,
    'no axis': b'\0\0\x08\0x',
    'no rows': b'\0\0\x08\3' + bytes(12),
    'empty rows': b'\0\0\x08\2\0\0\0\5\0\0\0\0',
    'floats': b'\0\0\x0d\1\0\0\0\1\0\0\0\0'}


def in_mnist(p):
    "The pictures of MNIST, with five labels beside."
    labels = b'\0\0\x08\1' + struct.pack('>I', 5) + bytes(5)
    p.with_name('train-labels-idx1-ubyte').write_bytes(labels)
    os.environ['DDPM_LIT_DATA'] = str(p.parent.parent.resolve())
    return images.load_images('mnist')


DEEP = {'deep': b'['*10**5 + b']'*10**5,
        'deep objects': b'{"a":'*10**5 + b'1' + b'}'*10**5}
JSONS = DEEP | {
    'long number': b'9'*10**4,
    'NaN': b'{"step": NaN, "weight_map": NaN, "sample_size": NaN}',
    'twice': b'{"a":1,"a":2}',
    'surrogate': b'{"weight_map": {"a": "\\ud800"}, "recipe": "\\ud800"}',
    'traversal': b'{"weight_map": {"a": "../../etc/passwd"}}',
    'absolute': b'{"weight_map": {"a": "/etc/passwd"}}',
    'itself': b'{"weight_map": {"a": "m.safetensors.index.json"}}',
    'nul': b'{"weight_map": {"a": "\\u0000"}}',
    'BOM': b'\xef\xbb\xbf{}',
    'step huge': b'{"step": 1e999}',
    'wide': b'[' + b'1,'*10**6 + b'1]'}


def read_config(p):
    return [*theirs.read_configuration(p)]


def log_of_a_run(p):
    names = ('run.json', 'state.safetensors', 'roll.json', 'roll.safetensors')
    copy_in(p.parent, *(FIX/'run'/name for name in names))
    return resumed(p)


def settings_of_a_run(p):
    copy_in(p.parent, *(FIX/'run'/name for name in ('log.jsonl', 'state.safetensors')))
    return resumed(p)


def card_of_weights(p):
    copy_in(p.parent, FIX/'run/roll.safetensors')
    return read_by(EVAL, p)


# what reads a JSON: the file it stands in, and the reader
JSON_READERS = {
    'index': ('m.safetensors.index.json', theirs.read_state),
    'config': ('config.json', read_config),
    'cards': ('d/cards.json', 'compare --out {folder} --n 100'),
    'captions': ('d/metadata.jsonl', of_folder(folders.pictures_with_captions)),
    'log': ('d/log.jsonl', log_of_a_run),
    'settings': ('d/run.json', settings_of_a_run),
    'card': ('d/roll.json', card_of_weights)}

def shared_numbers():
    "A file of 4 MB whose tensors take 4 GB."
    row = torch.zeros(1 << 20)
    torch.save({f'w{i}': row.view(1024, 1024) for i in range(1000)}, 'm.pt')
    return theirs.read_state('m.pt')


def long_list(reader):
    "The head of a safetensors file, of 60 MB."
    tensors = (f'"{i:07}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
               for i in range(10**6))
    put('m.safetensors', head(('{' + ','.join(tensors) + '}').encode(), 0))
    return reader('m.safetensors')


FILE_NAMES = ('../out.png', '/etc/passwd', 'a/../../x.png', 'x\0.png', '.', '..', '', 'cat.png\n',
              '\ud800', 'x'*300)


def small_captioned(*more):
    return lambda p: folders.pictures_with_captions(p.parent, 8, *more)


def hostile_file(raw: bytes, name: str, reader):
    "Write a file and read it."
    put(name, raw)
    return unharmed(read_by, reader, Path(name))


def hostile_cases(rng):
    case = in_part('hostile')
    for name, raw in HEADS.items():
        for how, reader in HEAD_READERS.items():
            yield case(f'safetensors {how}: {name}', hostile_file, raw, 'm.safetensors', reader)

    for name, raw in PICKLES.items():
        for how, file, reader in (('pickle', 'm.pt', theirs.read_state),
                                  ('pickle as safetensors', 'm.safetensors', fit.read_tensors),
                                  ('pickle as CIFAR', 'data_batch_1', images.read_cifar),
                                  ('pickle sampled', 'm.pt', 'sample {file} --layout auto')):
            yield case(f'{how}: {name}', hostile_file, raw, file, reader)
        yield case(f'pickle in a zip: {name}', read_zip, {'a/data.pkl': raw})

    for name, entries in ZIPS.items():
        yield case(f'zip: {name}', read_zip, entries)
    tensor = (FIX/'new/m.pt').read_bytes()
    forged = tensor.replace(b'\0\0\x08\x08', b'\xff\xff\x08\x08')
    for name, raw in {'prefixed': b'#!/bin/sh\n' + tensor, 'forged sizes': forged}.items():
        yield case(f'zip: {name}', hostile_file, raw, 'm.pt', theirs.read_state)

    for name, raw in PICTURES.items():
        for how, file, reader in (('picture', 'p.png', read_picture),
                                  ('picture in a folder', 'd/p.png', small_folder),
                                  ('picture with caption', 'd/p.png', captioned_picture),
                                  ('picture classified', 'p.png', CLASSIFY)):
            yield case(f'{how}: {name}', hostile_file, raw, file, reader)

    yield case('a picture in 80 million pieces', in_bits)
    for how in ('--batch 16 --seed 1', '--batch 8', '--batch 16 --bf16'):
        yield case(f'the state of another run, {how}', state_of_another, how)
    yield case('weights whose state is gone', weights_without_state)
    for name, change in INTRUDERS.items():
        yield case(f'in the folder of a run lies {name} of others', by_others, change)
    yield case('a run called as a file outside', led_outside)
    resume = 'train roll --resume --steps 10 --out r'
    for name, values in ODD_SETTINGS.items():
        for value in values:
            yield case(f'settings with {name} = {str(value)[:9]}', older, 'run.json',
                       partial(with_setting, name, value), resume)
    for start, kind in itertools.product(('step', 'opt.step.', 'opt.exp_avg_sq.', 'model.'),
                                         ODD_TYPES):
        yield case(f'a state with {start} of {kind}', older, 'state.safetensors',
                   partial(with_type, start, kind), resume)
    for how, change in PARTS.items():
        yield case(f'the state of a spread run, {how}', spread_state, change)
    yield case('the state of a spread run, of another', spread_another)
    for line in ('train --data loop --steps 1 --out r', 'sample loop', 'classify loop a b',
                 'export loop --to ddpm_lit e', 'export {roll} --to safetensors loop'):
        yield case(f'a link to itself: {line}', with_loop, line)
    yield case('own pictures in a time without end', long_time)
    for side in ('4096', '4x4096'):
        yield case(f'own pictures --side {side}', about_pictures,
                   f'train --data d --steps 1 --batch 2 --base 8 --out r --side {side}')
    for text in ('raise SystemExit(3)', 'raise KeyboardInterrupt', 'x = "\0"', 'import nowhere_'):
        yield case(f'plug-in: {text!r}', with_plugin, text)
    for states in ('iter(())', 'None', 'x', '[x[:1]]', '["a"]'):
        yield case(f'a sampler that yields {states}', with_sampler, states)
    for text in ('mine', '{"step": 1}', '{"step": 4, "loss": 1}\nmine\n', '\0'):
        yield case(f'{text[:12]!r} in a log', log_of_others, text)
    for T in (10**9, 0, -1, 2.5, '1000', None):
        yield case(f'a schedule of {T} timesteps', with_timesteps, T)
    for name in ('state', 'run', 'log', 'State'):
        yield case(f'pictures in a folder called {name}', called_as_a_file, name)
    for line in ('sample runs/d --n 1 --steps 1 --out runs/d/x.png',
                 'sample runs/d --n 1 --steps 1 --out x.png'):
        yield case(f'a run among its pictures: {line}', among_pictures, line)
    for name in ('REGTYPE', 'XHDTYPE', 'GNUTYPE_LONGNAME', 'GNUTYPE_SPARSE', 'DIRTYPE'):
        yield case(f'a tar of 4 GB: {name}', packed_tar, getattr(tarfile, name))
    for changes, line in itertools.product(SOURCES, (
            'train --resume --steps 4 --out r', 'eval r --n 12 --steps 2')):
        yield case(f'run.json of {changes}: {line}', with_source, line, changes)
    yield case('a parquet file of 2 KB whose rows share 1.3 GB', in_table, [], 64, 20_000_000)
    for path in (7, .5, b'x', True):
        yield case(f'a parquet file with the path {path}', in_table, [path], 4, 0)
    for name in FILE_NAMES:
        yield case(f'a saved data set names {name[:20]!r}', saved_set, name)
    for how, make in PLACES.items():
        yield case(f'a saved data set, its file {how}', saved_set, 'a.arrow', make)
    for (name, (file, change)), line in itertools.product(OLDER.items(), (
            'train roll --resume --steps 10 --out r', 'sample r --n 4 --steps 1 --out a.png',
            'eval r/roll.safetensors --n 12 --steps 2', 'export r --to safetensors e')):
        yield case(f'{name}: {line}', older, file, change, line)
    packed = gzip.compress(bytes(7*10**8), 1)
    for name, raw in {'bomb': packed, **IDX}.items():
        yield case(f'idx: {name}', hostile_file, raw, 't-idx.gz', images.read_idx)
        yield case(f'idx in MNIST: {name}', hostile_file, raw,
                   'd/mnist/train-images-idx3-ubyte', in_mnist)
    yield case('vocabulary: bomb', hostile_file, packed, 'v.gz', tokens.read_pairs)
    letters = bytes(rng.choices(range(97, 123), k=10**6))
    obeyed = b'\x1b]0;x\x07\n\xe2\x80\xaea\n\x08'
    for name, raw in {'bomb of lines': b'a\n'*10**6, 'one long line': letters + b'\nx',
                      'signs that a terminal obeys': obeyed}.items():
        yield case(f'names: {name}', hostile_file, raw, 'n.txt', 'classify {cat} --names {file}')
    for line in ('classify {cat} b', 'paint --n 1 --steps 2'):
        yield case(f'a word of 120 thousand letters, {line}', run_line, line,
                   letters[:120_000].decode())
    yield case('a .pt of shared numbers', shared_numbers)
    yield case('a safetensors file that lists a million tensors', long_list, load_weights)
    yield case('the same, by its layout', long_list, whole_state)
    yield case('the same, sampled', long_list, lambda p: run_line(f'sample {p}'))
    yield case('the same, to begin with', long_list, lambda p: run_line(f'train roll --init {p}'))

    for name, raw in JSONS.items():
        for how, (file, reader) in JSON_READERS.items():
            yield case(f'json {how}: {name}', hostile_file, raw, file, reader)
    for name in FILE_NAMES:
        line = json.dumps(dict(file_name=name, text='a cat')).encode()
        for end, reader in (('', small_captioned()), (', skipped', small_captioned('skip'))):
            yield case(f'caption names {name[:20]!r}{end}', hostile_file, line,
                       'd/metadata.jsonl', reader)


# ---- numbers and words on the command line ----------------------------------------------------

# a run of each command that takes little time; with a second name, only some of its options
RUNS = {
    ('train', ''): 'train roll --steps 2 --batch 8 --out r --json',
    ('sample', ''): 'sample {roll} --n 4 --steps 2 --out a.png --json',
    ('eval', ''): 'eval {roll} --n 12 --steps 2 --json',
    ('classify', ''): 'classify {cat} --among heart sun --out c.png --json',
    ('paint', ''): "paint 'a red heart' --n 1 --steps 2 --out p.png --json",
    ('vary', ''): 'vary {cat} --n 1 --steps 2 --out v.png --json',
    ('blend', ''): 'blend {cat} {cat} --n 2 --steps 2 --out b.png --json',
    ('edit', ''): 'edit {cat} --from heart --to sun --n 2 --steps 2 --out e.png --json',
    ('compare', ''): 'compare --out {compare} --n 100 --json',
    ('demo', ''): 'demo --steps 1 --n 1 --json',
    ('bench', ''): 'bench nothing --json',
    ('parity', ''): 'parity {parity} --json',
    ('presets', ''): 'presets ddpm-cifar10 --json',
    ('export', ''): 'export {roll} --to safetensors e --json',
    ('sample', 'guided'): 'sample mnist --n 2 --steps 2 --out a.png --json',
    ('paint', 'clip'): 'paint heart --n 1 --steps 2 --guidance clip --json',
    ('paint', 'init'): 'paint heart --n 1 --steps 2 --init {cat}',
    ('eval', 'digits'): 'eval mnist --n 20 --steps 1 --bits-pictures 1 --bits-draws 1 --json',
    ('sample', 'theirs'): 'sample {iddpm} --layout auto --heads 4 --attention-order legacy '
                          '--schedule linear --side 8 --n 2 --steps 2 --out a.png --json',
    ('export', 'theirs'): 'export {iddpm} --to torchscript x --heads 4 --attention-order legacy '
                          '--schedule linear --side 8 --json',
    ('sample', 'captioned'): 'sample {glide} --caption dog --side 8 --steps 2 --out a.png --json',
    ('sample', 'upsampled'): 'sample {glide} --caption dog --side 8 --steps 2 --out a.png --json '
                            '--upsampler {up}',
    ('sample', 'karlo'): 'sample {karlo} --caption dog --steps 2 --out a.png --json'}

# the options that are tried there
ONLY = dict(
    guided='w guidance_scale classifier_scale label guidance', clip='clip_scale',
    init='strength mask', digits='weights bits_draws bits_pictures label batch',
    theirs='heads head_width side schedule order preset layout n',
    upsampled='captions upsampler side n seed', karlo='name captions side steps w guidance_scale')

# what a command is about, which an argument without a name replaces
SUBJECTS = ('{roll}', 'roll', 'mnist', 'ddpm-cifar10', 'a red heart', '{parity}', '{cat}',
            '{iddpm}', '{glide}', '{up}', '{karlo}')

NUMBERS = ['nan', 'inf', '-inf', '-1', '0', '1e400', '1e-320', '1000000000000',
           '100000000000000000000', '', 'x', '1_0', chr(0xff11)]
WORDS = ['', ' ', '.', '..', '/', '../../x', 'no/such/place/c.png', 'x\0y', 'x'*5000, '\udcff',
         'a\u0301 \u202e\u65e5\u672c\u8a9e', '\U0001f98a'*40, '-', '%s{}{0}', '\x1b[31m',
         'line\nbreak', '/proc/x.png', '/dev/null/x.png', 'con.txt', 'a red heart '*3000,
         '<|endoftext|>', '\ufeffheart']
DEVICES = ['meta', 'cuda', 'cuda:99', 'cuda:-1', 'cpu:7', 'CPU', 'mps', 'xla', 'hpu', 'vulkan',
           'auto:0', 'cpu:x']
# large numbers are what is asked for there, and take their time
AGES = {('train', 'steps'), ('demo', 'seconds'), ('demo', 'steps'), ('compare', 'seconds')}

LINES = ['', 'nothing', '--nothing', 'train', 'sample', 'train roll roll',
         'sample mnist --w 1 --guidance-scale 2', 'sample mnist --label 10',
         'sample mnist --label -1', 'sample mnist --label ٣', 'sample clip', 'eval clip --w 1',
         'eval glide --label 1', 'eval mnist --sheet a.png', 'eval real --sheet a.txt',
         'train clip --batch 1000000000', 'presets nothing',
         'parity nothing', 'classify nothing a b', 'edit x', 'blend x', 'paint',
         'paint a --mask x', 'paint a --strength .5', 'paint a --prior ar',
         'paint a --system nobody', 'paint a --data shapes --style noto',
         'paint a --guidance clip --w 1', 'train roll --resume', 'train roll --resume --out x',
         'train roll --init', 'train nobody', 'train roll --ship --steps 1 --out r',
         'compare --out nowhere', 'sample roll', '--version', '-h',
         'sample mnist --n 1 --steps 1000000000', 'sample mnist --n 1000000000 --steps 1',
         'paint heart --n 1 --steps 1000000000']
SAYS = {'sample mnist --guidance cfg --out a.png': '--w',
        'sample mnist --guidance cfg --label 3 --out a.png': '--w',
        'sample mnist --w 1 --guidance-scale 2 --out a.png': '--guidance-scale',
        'train roll --resume': 'leave --resume out'}
# what a file of weights holds, the name that it bears, and a command that reads that name
HOLE = 'paint a --n 1 --steps 2 --init {cat} --mask {cat}'
RENAMED = (('mnist', 'latent', 'paint a --n 1 --steps 2 --system latent'),
           ('glide', 'latent', 'paint a --n 1 --steps 2 --system latent'),
           ('latent', 'autoencoder', 'paint a --n 1 --steps 2 --system latent'),
           ('mnist', 'glide', 'paint a --n 1 --steps 2'),
           ('dalle2-up-64', 'glide-up-64', 'paint a --n 1 --steps 2'),
           ('glide', 'glide-inpaint', HOLE), ('glide-up-64', 'glide-up-64-inpaint', HOLE),
           ('glide', 'dalle2', 'paint a --n 1 --steps 2 --system dalle2'),
           ('prior-ar', 'prior', 'paint a --n 1 --steps 2 --system dalle2'),
           ('noised-clip', 'clip', 'classify {cat} a b'),
           ('clip-vit-transformer', 'clip', 'classify {cat} a b'),
           ('adm', 'mnist', 'sample mnist --n 1 --steps 1 --out a.png'),
           ('adm', 'mnist', 'train mnist --init --steps 1 --batch 1 --out r'),
           ('ncsn', 'mnist', 'export mnist --to safetensors e'))
DATA_FOLDERS = ('/nowhere', '/etc/passwd', 'x\0', '', '.', '/proc/self', 'x'*5000)
DATA_LINES = ('sample mnist --n 1 --steps 1 --out a.png',
              'train mnist --steps 1 --batch 1 --out r', 'eval nothing')


def is_number(p) -> bool:
    return isinstance(p.type, (click.types.IntParamType, click.types.FloatParamType))


def accepted(p, value: str) -> bool:
    "Whether click lets a value through to the command."
    try:
        p.type.convert(value, p, None)
        return True
    except Exception:
        return False


def takes_long(command: str, p, value: str) -> bool:
    "Whether a command might in fact begin, where that takes long."
    if not accepted(p, value):
        return False
    if (command, p.name) in AGES and len(value) > 5:
        return True
    paths = ('/proc/x.png', 'x\0y', 'x'*5000)
    return command in ('demo', 'bench') and (is_number(p) or value not in paths)


def values_for(p, rng, k: int) -> list[str]:
    if is_number(p):
        return NUMBERS
    if p.name == 'device':
        return DEVICES + WORDS[:3]
    return [*WORDS[:6], *rng.sample(WORDS[6:], k)]


def with_value(line: str, p, value: str) -> list[str]:
    "The words of a run with an option added, or with another subject."
    if isinstance(p, click.Option):
        return [*words_of(line), p.opts[0], value]
    words = shlex.split(line)
    subject = next((word for word in words if word in SUBJECTS), None)
    return [value if word == subject else placed(word) for word in words]


def line_here(line: str):
    "A command that puts its weights into this folder, if it ships them."
    if '--ship' in line:
        os.environ['DDPM_LIT_DATA'] = str(Path.cwd())
    return run(*line.split())


def says(line: str, words: str):
    "A command is refused with the option that would mend it."
    try:
        run_line(line)
    except Refused as e:
        assert words in str(e), f'{words} is not in: {e}'
        raise
    raise AssertionError('it was not refused')


def renamed(held: str, name: str, line: str):
    "A command is refused where the file of a shipped name holds other weights."
    Path('weights').mkdir()
    Path(f'weights/{name}.safetensors').symlink_to(data_dir('weights', f'{held}.safetensors'))
    os.environ['DDPM_LIT_DATA'] = str(Path.cwd())
    weights_on.cache_clear()  # what cases before have read
    says(line, f'holds {held}, not {name}')


def line_with_data(folder: str, line: str):
    if '\0' not in folder:
        os.environ['DDPM_LIT_DATA'] = folder
    return run(*line.split())


def every_command_is_tried():
    assert {*cli.COMMANDS} <= {command for command, _ in RUNS}


def option_cases(rng, k: int = 9):
    case = in_part('options')
    for (command, which), line in RUNS.items():
        if command not in ('demo', 'bench'):
            yield case(f'{command} {which} as it should be', run_line, line)
        for p in cli.command.get_command(None, command).params:
            tried = ONLY.get(which, p.name).split()
            if p.name not in tried or p.name == 'help' or getattr(p, 'is_flag', False):
                continue
            for v in values_for(p, rng, k):
                if not takes_long(command, p, v):
                    yield case(f'{command} {which} {p.opts[0]} {v[:24]!r}', run,
                               *with_value(line, p, v))

    yield case('each command is tried', every_command_is_tried)
    for line in LINES:
        yield case(line, line_here, line)
    for line, words in SAYS.items():
        yield case(f'{line}: it says {words}', says, line, words)
    for held, name, line in RENAMED:
        yield case(f'{held} called {name}: {line}', renamed, held, name, line)
    for folder, line in itertools.product(DATA_FOLDERS, DATA_LINES):
        yield case(f'DDPM_LIT_DATA={folder[:9]!r} {line}', line_with_data, folder, line)


# ---- shapes, dtypes, levels, captions ---------------------------------------------------------

DTYPES = [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
          torch.bool]
few_int = st.integers(0, 6)
any_int = st.integers(-3, 70)
some_shape = st.lists(st.integers(0, 5), max_size=5)
real = st.floats()
dtype = st.sampled_from(DTYPES)
text = st.text(max_size=60)
value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                     lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4),
                     max_leaves=12)
split = st.sampled_from(['train', 'test'])


@st.deferred
def caption():
    "Words of scenes in any order, and captions of scenes."
    some_words = sorted(captions.LEXICON) + ['at the top left', 'left of', 'on white', ',', '.']
    scenes = captions.every_scene(1)[::97] + captions.every_scene(2)[::997]
    any_order = st.lists(st.sampled_from(some_words), max_size=9).map(' '.join)
    return any_order | st.sampled_from([s.say() for s in scenes])


@st.deferred
def key_of_config():
    config = json.loads((FIX/'ddpm_unet/config.json').read_text())
    return st.sampled_from(sorted(config))


def maybe(good):
    "Good values, and whatever else JSON can say."
    return good | value


def draw(shape, dtype) -> Tensor:
    return (torch.rand(shape)*255).to(dtype)


def same(a, b):
    assert a == b, f'{a!r} is not {b!r}'
    return a


def written(v, name: str) -> Path:
    put(name, json.dumps(v))
    return Path(name)


@cache
def tiny_images():
    return images.Images(torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.arange(12))


@cache
def few_shapes():
    return captions.shapes(n=8, size=16)


@cache
def roll_denoiser():
    return EmpiricalDenoiser(toy.swiss_roll(20))


@cache
def tiny_network():
    return small_unet(1, 3, 8, (1, 2), attention=(), unshuffle=1, middle=False).eval()


PROPERTIES: list[tuple[str, Callable, dict]] = []


def holds(title: str, **strategies):
    "Registers a property: for whatever is drawn, the body refuses or gives something sound."
    def register(body):
        PROPERTIES.append((title, body, strategies))
        return body

    return register


# levels and schedules


@holds('level from alpha-bar', a=real)
def _(a):
    same(bool((from_alpha_bar(a).alpha_bar - a).abs() < 1e-9), True)


@holds('level from sigma', a=real)
def _(a):
    t = from_edm_sigma(a)
    return t.signal, t.sigma


@holds('linear', T=any_int, a=real, b=real)
def _(T, a, b):
    return schedule.linear(T, a, b).log_snr


@holds('constant', T=any_int, b=real)
def _(T, b):
    return schedule.constant(T, b).log_snr


@holds('cosine', T=any_int)
def _(T):
    return schedule.cosine(T).log_snr


@holds('one over t', T=any_int)
def _(T):
    return schedule.one_over_t(T).log_snr


@holds('time', x=real)
def _(x):
    return schedule.Cosine()(x).log_snr, schedule.linear()(x).log_snr


@holds('grid', T=any_int, n=any_int)
def _(T, n):
    continuous = schedule.linear(T) if T > 1 else schedule.Cosine()
    return schedule.grid(continuous, n).log_snr[:-1]


@holds('karras', n=any_int, lo=real, hi=real, rho=real)
def _(n, lo, hi, rho):
    return schedule.karras(n, lo, hi, rho).log_snr[:-1]


def joined(numbers):
    return ','.join(map(str, numbers))


@holds('respace', spec=text | st.lists(any_int, max_size=4).map(joined)
       | any_int.map('ddim{}'.format))
def _(spec):
    return sample.respace(schedule.linear(60), spec).log_snr[:-1]


# data


def toy_set(make):
    holds(make.__name__, n=any_int | real, noise=real.filter(lambda v: v != math.inf))(make)


for make in (toy.swiss_roll, toy.moons, toy.circles, toy.tree):
    toy_set(make)


@holds('ddim', shape=some_shape | st.tuples(few_int, st.just(2)),
       dtype=dtype.filter(lambda d: d.is_floating_point), n=st.integers(-1, 5),
       eta=real | st.floats(0, 1))
def _(shape, dtype, n, eta):
    levels = schedule.grid(schedule.Cosine(), n)
    return sample.last(sample.ddim(roll_denoiser(), levels, draw(shape, dtype), eta))


@holds('batches', size=any_int, drop=real, flip=st.booleans(), step=st.integers(0, 99))
def _(size, drop, flip, step):
    return images.Batches(tiny_images(), size, 0, drop, flip)(step)


@holds('square', shape=some_shape, size=any_int)
def _(shape, size):
    return images.square(draw(shape, torch.uint8), size)


@holds('bytes', x=st.lists(st.integers(0, 255)))
def _(x):
    return same(images.to_bytes(images.to_unit(torch.tensor(x, dtype=torch.uint8))).tolist(), x)


@holds('load_images', name=st.sampled_from(['shapes', 'mnist', 'emoji', 'lsun']) | text,
       split=split | text, size=st.none() | any_int, k=st.integers(-2, 9))
def _(name, split, size, k):
    return images.load_images(name, split, size, k)


@holds('captioned', shape=some_shape, dtype=dtype, k=few_int)
def _(shape, dtype, k):
    return captions.Captioned(draw(shape, dtype), few_shapes().rows[:k])


@holds('join', sizes=st.lists(st.sampled_from([16, 32]), max_size=3))
def _(sizes):
    return captions.join(*[captions.shapes(n=1, size=s) for s in sizes])


@holds('caption batches', size=any_int, drop=real, shift=any_int, step=few_int)
def _(size, drop, shift, step):
    tokenizer = tokens.caption_tokenizer()
    return captions.CaptionBatches(few_shapes(), tokenizer, size, 0, drop, shift)(step)


@holds('shapes', split=st.sampled_from(['train', 'test', 'all']) | text, k=st.integers(-2, 9),
       size=any_int | st.sampled_from([16, 32, 64]), objects=st.integers(-1, 3))
def _(split, k, size, objects):
    return captions.shapes(split, k, size, 0, objects)


# captions and tokens


@holds('read', c=caption | text)
def _(c):
    scene = captions.read(c)
    complete = scene.where and scene.ground
    return same(captions.read(scene.say() if complete else c), scene)


@holds('parse', shape=some_shape | st.tuples(few_int, st.just(3), st.just(16), st.just(16)),
       dtype=dtype, bad=st.sampled_from([1, 0, math.nan, math.inf, -1]))
def _(shape, dtype, bad):
    return same(len(captions.parse(draw(shape, dtype)*bad)), shape[0])


@holds('our tokens', t=text | caption)
def _(t):
    ours = tokens.caption_tokenizer()
    return same(ours.decode(ours.encode(t)), t), ours(t, 'truncate')


@holds("CLIP's tokens", t=text | caption | st.text(min_size=200, max_size=3000))
def _(t):
    clip = tokens.clip_tokenizer()
    return clip(t), clip.decode(clip.encode(t))


@holds('half characters', t=st.text(st.characters(categories=['Cs', 'Ll']), max_size=9))
def _(t):
    return tokens.clip_tokenizer()(t)


@holds('template', t=text | text.map('{}{{}}'.format), names=st.lists(text))
def _(t, names):
    return fill(t, names)


# networks and requests


@holds('guidance', a=st.none() | real, b=st.none() | st.floats(-9, 9))
def _(a, b):
    return as_w(a, b) if a is None or math.isfinite(a) else 0.


@holds('labels', label=st.none() | any_int | st.lists(any_int, max_size=4), b=st.integers(1, 3))
def _(label, b):
    label = label if label is None else torch.tensor(label)
    return tiny_network()(torch.randn(b, 1, 4, 4), torch.tensor(.5), label)


@holds('network', dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bool]),
       shape=some_shape | st.tuples(st.just(2), st.just(1), st.integers(0, 9), st.integers(0, 9)))
def _(shape, dtype):
    return tiny_network()(draw(shape, dtype), torch.tensor(.5))


@holds('request', captions=maybe(st.lists(text, max_size=3).map(tuple)),
       data=maybe(st.sampled_from(['emoji', 'shapes'])), seed=maybe(any_int),
       steps=maybe(st.tuples(any_int, any_int, any_int)), w=maybe(real),
       guidance=maybe(st.sampled_from(['cfg', 'clip'])), clip_scale=maybe(st.none() | real),
       strength=maybe(st.floats(0, 1)))
def _(**options):
    Request(**options)


@holds('studio', data=maybe(st.sampled_from(['emoji', 'shapes'])), seed=maybe(any_int),
       steps=maybe(st.tuples(st.integers(1, 9), any_int, any_int)), w=maybe(real))
def _(**options):
    UnclipEditor(**options)


# pictures and files


@holds('sheet', shape=some_shape, dtype=dtype, columns=any_int,
       scale=st.sampled_from([1, math.nan, 1e30]))
def _(shape, dtype, columns, scale):
    return show.save_sheet(draw(shape, dtype)*scale, 's.png', columns)


@holds('captioned rows', said=st.lists(text, max_size=3),
       shapes=st.lists(st.tuples(few_int, st.just(3), few_int, few_int), max_size=3))
def _(shapes, said):
    return show.save_captioned([torch.zeros(s) for s in shapes], said, 'c.png')


@holds('write and read', tensors=st.dictionaries(text, st.builds(draw, some_shape, dtype),
                                                 max_size=4))
def _(tensors):
    fit.write_tensors('w.safetensors', tensors)
    back = fit.read_tensors('w.safetensors')
    same({k: v.shape for k, v in tensors.items()}, {k: v.shape for k, v in back.items()})


@holds('settings of a run', v=value)
def _(v):
    p = written(v, 'd/run.json')
    shutil.copy(FIX/'run/state.safetensors', 'd/state.safetensors')
    return runs.choose_settings(p.parent, fit.find_recipe('roll'), {}, True, False,
                                torch.device('cpu'))


@holds('log of a run', v=value)
def _(v):
    return runs.Log(written(v, 'd/log.jsonl'), 3).lines


@holds('cards of runs',
       v=value | st.lists(st.dictionaries(st.sampled_from(['family', 'data']), value)))
def _(v):
    return [*compare.read_cards(written(v, 'd/cards.json').parent)]


@holds('index of shards', v=value | st.fixed_dictionaries(dict(weight_map=value)))
def _(v):
    return theirs.read_state(written(v, 'd/m.safetensors.index.json'))


@holds('configuration', keys=st.lists(key_of_config, min_size=1, max_size=2, unique=True),
       values=st.lists(value | any_int, min_size=2, max_size=2))
def _(keys, values):
    "Whatever JSON, in a configuration of diffusers'."
    shutil.copytree(FIX/'ddpm_unet', 'c', dirs_exist_ok=True)
    config = json.loads((FIX/'ddpm_unet/config.json').read_text())
    written(config | dict(zip(keys, values)), 'c/config.json')
    return asked(theirs.open_denoiser('c'))


@holds('captions of a folder',
       v=value | st.fixed_dictionaries(dict(file_name=value, text=value)))
def _(v):
    return folders.captions_in(written(v, 'd/metadata.jsonl'))


@holds('plain pickles', v=value)
def _(v):
    put('m.pt', pickle.dumps(v, 2))
    return theirs.read_state('m.pt')


@holds('pickles in a zip', v=value)
def _(v):
    zipped({'a/data.pkl': pickle.dumps(v, 2)})
    return theirs.read_state('m.pt')


@holds('any bytes as a picture',
       raw=st.binary(max_size=200) | st.binary(max_size=60).map(b'GIF89a'.__add__))
def _(raw):
    put('p', raw)
    return read_picture('p')


@holds('any bytes as merges', raw=st.binary(max_size=60) | text.map(str.encode))
def _(raw):
    put('v', b'#\n' + raw)
    return tokens.Tokenizer(tokens.read_pairs('v'), tokens.split_gpt2, 16, [])(['abc'])


def property_of(body: Callable, strategies: dict, seed: int, examples: int) -> Tally:
    "Many examples of a property; the smallest one that fails is named."
    counts = Counter(refused=0, worked=0)
    last, failed = {}, []

    @seeded(seed)
    @settings(max_examples=examples, database=None, deadline=None, report_multiple_bugs=False,
              suppress_health_check=[*HealthCheck], phases=[Phase.generate, Phase.shrink])
    @given(**strategies)
    def each(**drawn):
        last.clear()
        last.update(drawn)
        try:
            sound(body(**drawn))
            counts['worked'] += not failed
        except Problem as e:
            sentence(str(e).replace('\n', ' '))
            counts['refused'] += not failed
        except Exception:
            failed.append(1)
            raise

    failures = ()
    try:
        each()
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        failures = (f'{type(e).__name__}: {str(e)[:200]} for {str(last)[:300]} '
                    f'[{Path(at.filename).name}:{at.lineno}]',)
    return Tally(**counts, failures=failures)


def shape_cases(seed: int, examples: int):
    case = in_part('shapes')
    for title, body, strategies in PROPERTIES:
        yield case(f'{title}, seed {seed}', property_of, body, strategies, seed, examples)


# ---- disks, two writers, kill -9 --------------------------------------------------------------


def mount(*options: str) -> bool:
    return subprocess.run(['mount', *options, 'disk'], capture_output=True).returncode == 0


@contextlib.contextmanager
def disk(size: str, read_only: bool, fill: Callable):
    "A small disk of its own in the folder `disk`."
    Path('disk').mkdir()
    if not mount('-t', 'tmpfs', '-o', f'size={size}', 'none'):
        raise Skipped('no disk can be mounted here')
    try:
        fill()
        assert not read_only or mount('-o', 'remount,ro')
        yield
    finally:
        subprocess.run(['umount', '-l', 'disk'], check=True)


def on_disk(size: str, f: Callable, *args, fill: Callable = nothing):
    with disk(size, False, fill):
        return f(*args)


def read_only(f: Callable, *args, fill: Callable = nothing, size: str = '1m'):
    with disk(size, True, fill):
        return f(*args)


def at_most(size: int, f: Callable, *args):
    "Files may grow to so many bytes."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        return f(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def in_the_way(f: Callable, *args):
    "A file where a folder is wanted stays whole."
    Path('disk').write_text('x')
    f(*args)
    whole(Path('disk'))


# what writes into the folder {at}
ROLL_SHEET = 'sample {roll} --n 4 --steps 1 --out'
WRITERS = {
    'train': 'train roll --steps 4 --batch 8 --save-every 0 --out {at}/r --json',
    'sample': 'sample {roll} --n 400 --steps 1 --out {at}/a.png',
    'classify': 'classify {cat} heart sun --out {at}/c.png',
    'paint': 'paint heart --n 1 --steps 2 --out {at}/p.png',
    'export': 'export {roll} --to safetensors {at}/e',
    'torchscript': 'export {roll} --to torchscript {at}/e',
    'tensors': lambda at: fit.write_tensors(f'{at}/w.safetensors', dict(a=torch.zeros(200_000))),
    'weights': lambda at: fit.save_weights(f'{at}/r.safetensors', roll().model,
                                           dict(recipe='roll')),
    'pairs': lambda at: tokens.write_pairs(f'{at}/v', [('a', 'b')]*9000, 'x'),
    'sheet': lambda at: show.save_sheet(torch.rand(40, 3, 32, 32), f'{at}/s.png'),
    'state': lambda at: roll().save(f'{at}/s.safetensors'),
    'captioned': "sample {glide} --caption 'a dog' --steps 2 --json --side 16 --n 100 "
            '--out {at}/a.png'}


def write_to(writer: Callable | str, at: str):
    return writer(at) if callable(writer) else run_line(writer, at=at)


def copied_run():
    shutil.copytree(FIX/'run', 'disk/run')


def resume_on_disk():
    "A run that is whole stays whole where there is no room for another."
    try:
        run_line('train roll --resume --steps 8 --out disk/run')
    finally:
        roll().load('disk/run/state.safetensors')
        fit.load_weights('disk/run/roll.safetensors')
        whole(Path('disk/run/run.json'))


def to_device(kind: str):
    "A sheet into a device."
    mode = 0o010000 if kind == 'pipe' else 0o020000
    os.mknod('out.png', 0o600 | mode, os.makedev(1, dict(null=3, full=7, pipe=0)[kind]))
    try:
        return run_line(ROLL_SHEET, 'out.png')
    finally:
        assert not Path('out.png').is_file(), 'a device was replaced by a file'


def to_link():
    Path('t.png').write_bytes(b'x')
    Path('out.png').symlink_to('t.png')
    return run_line(ROLL_SHEET, 'out.png')


def disk_cases(rng):
    case = in_part('disks')
    for name, writer in WRITERS.items():
        for size in ('4k', '16k', '72k', '300k', '620k'):
            yield case(f'{name}, {size} free', on_disk, size, write_to, writer, 'disk')
        for size in (0, 1, 5000, 100_000):
            yield case(f'{name}, files of {size} bytes', at_most, size, write_to, writer, '.')
        yield case(f'{name}, read-only', read_only, write_to, writer, 'disk')
        yield case(f'{name}, a file in the place of the folder', in_the_way, write_to, writer,
                   'disk')

    run_size = sum(f.stat().st_size + 8192 for f in (FIX/'run').iterdir()) >> 10
    for size in (0, 8, 80, 400, 900, 9000):
        yield case(f'resume, {size}k free', partial(on_disk, fill=copied_run),
                   f'{run_size + size}k', resume_on_disk)
    yield case('resume, read-only', partial(read_only, fill=copied_run, size='9m'), resume_on_disk)
    for kind in ('null', 'full', 'pipe'):
        yield case(f'--out is a device, {kind}', to_device, kind)
    yield case('--out is a link', to_link)


TRAIN_TO = 'train roll --steps 24 --batch 16 --save-every 0 --out'
TRAIN = f'{TRAIN_TO} r'
OTHER = f'{TRAIN} --seed 1'
MORE = f'{TRAIN} --resume'
SHEET = 'sample r/roll.safetensors --n 4 --steps 1 --out a.png'


def child(name: str, line: str, begin: Callable = nothing) -> int:
    "A forked process that runs a command, its words in files beside."
    def go():
        begin()
        for fd, end in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(f'{name}.{end}', os.O_CREAT | os.O_WRONLY), fd)
        sys.stdout, sys.stderr = open(1, 'w'), open(2, 'w')
        signal.setitimer(signal.ITIMER_PROF, 0)

        # its own processes begin as those of the terminal's do, not with this program
        sys.modules['__main__'] = importlib.import_module('ddpm_lit.__main__')
        try:
            cli.main(words_of(line))
        except SystemExit as e:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(e.code or 0)

    return forked(go)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def steps_of(log) -> list[int]:
    return [json.loads(line)['step'] for line in open(log)]


def begun():
    shutil.copytree(FIX/'half', 'r')


def two_writers(a: str, b: str, before: Callable = nothing):
    "Both end well or with a sentence, at least one of them well, and what they leave goes on."
    before()
    pids = {'a': child('a', a), 'b': child('b', b)}
    codes = []
    for name, pid in pids.items():
        codes.append(code_of(pid))
        with contextlib.suppress(Refused):
            said(codes[-1], '', Path(f'{name}.err').read_text())
    assert 0 in codes, Path('a.err').read_text()[-300:] + Path('b.err').read_text()[-300:]

    for p in files('r'):
        whole(p)
    steps = steps_of('r/log.jsonl')
    assert steps == sorted({*steps}), f'a log of two runs: {steps}'
    kept = json.loads(Path('r/run.json').read_text())
    if a.startswith('train') and b.startswith('train'):
        return run('train', 'roll', '--resume', '--steps', str(kept['steps']), '--out', 'r')


def stopped(number):
    "The signal twice: the run saves, ends, and can be resumed."
    def has_words(p):
        return p.exists() and p.read_text()

    pid = child('a', TRAIN)
    while not Path('r/state.safetensors').exists() and not has_words(Path('a.err')):
        time.sleep(.02)
    os.kill(pid, number)
    time.sleep(.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    code = code_of(pid)
    roll().load('r/state.safetensors')
    assert code in (0, 130, 143, -number), f'exit code {code}'
    run_line(MORE)


def race_cases(rng):
    case = in_part('races')
    for i in range(3):
        yield case(f'two new runs, {i}', two_writers, TRAIN, OTHER)
        yield case(f'two go on, {i}', two_writers, MORE, MORE, begun)
    for i in range(2):
        yield case(f'one goes on, one begins, {i}', two_writers, MORE, TRAIN, begun)
        yield case(f'one trains, one draws, {i}', two_writers, MORE, SHEET, begun)


# ---- ended at any moment ----------------------------------------------------------------------

# a command, and what it replaces; its seconds are measured, where they are not given
KILLED = {
    'train': (TRAIN, None, None),
    'sample': ('sample {roll} --n 40 --steps 40 --out a.png', 'a.png', None),
    'paint': ("paint 'a red heart' --n 1 --steps 4 --out a.png", 'a.png', None),
    'compare': ('compare --train --seconds 9 --out c', None, 4.),
    'export': ('export {roll} --to torchscript e', None, None)}
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


def signal_when_ready(ready: int):
    "`stoppable` of the command, which writes to `ready` when it listens."
    listening = cli.stoppable

    @contextlib.contextmanager
    def stoppable(*args):
        with listening(*args):
            os.write(ready, b'x')
            yield

    cli.stoppable = stoppable


def in_a_group(line: str) -> int:
    "A command in a group of its own, from the moment on when it listens: its number."
    read_end, write_end = os.pipe()

    def begin():
        os.setsid()
        os.close(read_end)
        signal_when_ready(write_end)

    pid = child('a', line, begin)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    return pid


@cache
def seconds_of(name: str) -> float:
    "How long a command takes where nobody ends it."
    line, _, seconds = KILLED[name]
    if seconds:
        return seconds
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pid = in_a_group(line)
        began = time.monotonic()
        code = code_of(pid)
        seconds = time.monotonic() - began
        os.chdir(here)
    assert code == 0, f'undisturbed it ends with {code}'
    return seconds


def patience() -> float:
    "Two seconds of a machine that has nothing else to do, and more where others take its time."
    began, mine = time.monotonic(), time.process_time()
    while time.process_time() - mine < .02:
        pass
    share = .02/(time.monotonic() - began)
    return 2/min(1, share, os.cpu_count()/max(.01, os.getloadavg()[0]))


def wait_for_all(group: int):
    "Nobody of the group is alive any more."
    asked, most = time.monotonic(), patience()
    while time.monotonic() - asked < most:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(.02)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError(f'alive after {time.monotonic() - asked:.1f} s')


def killed(name: str, when: float, number: int):
    "A signal at a moment: what is there is whole, nobody lives on, and the work can go on."
    line, out, _ = KILLED[name]
    old = (FIX/'said/cat.png').read_bytes()
    if out:
        put(out, old)
    seconds = seconds_of(name)
    group = in_a_group(line)
    time.sleep(when*seconds)

    # a terminal's Ctrl-C reaches the whole group, kill one process
    asked = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(group, number)
    code = code_of(group)
    took = time.monotonic() - asked
    wait_for_all(group)
    assert took < patience(), f'it lived on for {took:.1f} s'  # measured when it has ended
    err = Path('a.err').read_text()
    if number == signal.SIGKILL:
        assert code in (0, -number), f'exit code {code}: {err[-300:]!r}'
    else:
        assert code in (0, 128 + number), f'exit code {code}: {err[-300:]!r}'
        with contextlib.suppress(Refused):
            said(code, '', err)

    # what is there is whole, and hidden files only after kill -9
    hidden = [p for p in Path('.').rglob('.*')]
    assert number == signal.SIGKILL or not hidden, f'left behind: {hidden[0]}'
    for p in hidden:
        if p.is_dir():
            shutil.rmtree(p)
    for p in files():
        if p.suffix not in ('.out', '.err'):
            whole(p)  # that of before, or the new one
    assert not out or Path(out).exists(), f'{out} is lost'
    assert not Path('e').exists() or {*os.listdir('e')} == {'README.md', 'config.json', 'model.pt'}

    # and the work goes on: a training to the same numbers as if nothing had been
    if name == 'train':
        run_line(MORE if Path('r/run.json').exists() else TRAIN)
        a, b = (load_file(at/'state.safetensors') for at in (Path('r'), FIX/'ref'))
        assert all(torch.equal(a[k], b[k]) for k in b), 'the resumed run is another'
        assert not [*Path('r').rglob('*tmp*')]
        return steps_of('r/log.jsonl')
    if number == signal.SIGKILL and name not in ('compare', 'export'):
        return run_line(line)


def in_a_long_step(number: int):
    "A step of several seconds is cut short: nobody waits for it, and its beginning is not kept."
    group = in_a_group('train roll --steps 2 --batch 100000 --threads 1 --out r')
    while not Path('r/run.json').exists():
        time.sleep(.02)
    time.sleep(.7)
    asked = time.monotonic()
    os.killpg(group, number)
    code = code_of(group)
    took = time.monotonic() - asked
    assert code == 128 + number, f'exit code {code}'
    assert took < patience(), f'it lived on for {took:.1f} s'
    wait_for_all(group)
    step = int(load_file('r/state.safetensors')['step'])
    assert step == 0, f'it went on to step {step}'
    with contextlib.suppress(Refused):
        said(code, '', Path('a.err').read_text())


def kill_cases(rng, moments: int = 14):
    case = in_part('kills')
    for i, number, name in itertools.product(range(moments), SIGNALS, KILLED):
        when = rng.random()*1.1
        yield case(f'{name}, {number.name}, {i}: at {when:.2f} of it', killed, name, when, number)
    for number in (signal.SIGINT, signal.SIGTERM):
        yield case(f'{number.name} twice', stopped, number)
        yield case(f'{number.name} in a long step', in_a_long_step, number)


# ---- captions: GLIDE's files, Karlo's folder --------------------------------------------------

CAPTION = "sample {file} --caption 'a dog' --steps 2 --out a.png --json"
CAPTION_GLIDE = f'{CAPTION} --side 8'.replace('{file}', '{glide}')
KARLO = (*theirs.UNCLIP_FOLDERS, *theirs.SCHEDULERS)


def captioned(p, *more: str):
    return run_line(CAPTION, *more, file=p)


def captioned_readers() -> dict[str, Callable | str]:
    "The files of Karlo's folder and of GLIDE: what reads them."
    found = {}
    for part in KARLO:
        for name in (about_of(part), 'm.safetensors'):
            if (FIX/'karlo'/part/name).exists():
                found[f'karlo/{part}/{name}'] = of_folder(of_folder(captioned))
    found['glide/base.pt'] = f'{CAPTION} --side 8'
    found['glide/upsample.pt'] = (f'{CAPTION} --side 8'.replace('{file}', '{folder}/base.pt')
                                  + ' --upsampler {file}')
    return found


def link_elsewhere(p):
    inside = FIX/p.relative_to(Path('in').resolve())
    p.symlink_to('/etc/passwd' if 'karlo' in str(p) else inside)


ALSO = PLACES | dict(elsewhere=link_elsewhere)

# changes of a folder like Karlo's: of a configuration


def set_values(d: Path, at: str, **new):
    (d/at).write_text(json.dumps(json.loads((d/at).read_text()) | new))


def set_value(d: Path, at: str, key: str, v):
    set_values(d, at, **{key: v})


def without_value(d: Path, at: str, key: str):
    config = json.loads((d/at).read_text())
    del config[key]
    (d/at).write_text(json.dumps(config))


def set_bytes(d: Path, at: str, raw: bytes):
    (d/at).write_bytes(raw)


# of a part as a whole


def replaced(make: Callable):
    "Something else in the place of a folder."
    def change(p):
        shutil.rmtree(p)
        make(p)

    return change


def link_to_whole(p):
    p.symlink_to(FIX/'karlo'/p.name)


FOLDERS = dict(missing=shutil.rmtree, file=replaced(partial(Path.write_text, data='x')),
               empty=replaced(Path.mkdir), loop=replaced(link_to_itself),
               linked=replaced(link_to_whole), itself=replaced(link_to('..')),
               locked=methodcaller('chmod', 0))


def change_part(d: Path, part: str, change: Callable):
    change(d/part)


def exchange(d: Path, a: str, b: str):
    (d/a).rename('t')
    (d/b).rename(d/a)
    Path('t').rename(d/b)


# of weights


def save_states(*pairs):
    for path, state in pairs:
        save_file({name: w.contiguous() for name, w in state.items()}, path)


def give_key(d: Path, a: str, b: str):
    paths = [d/part/'m.safetensors' for part in (a, b)]
    giver, taker = map(load_file, paths)
    name = sorted(giver)[0]
    taker[name] = giver.pop(name)
    save_states(*zip(paths, (giver, taker)))


def change_weight(d: Path, part: str, key: str, f: Callable):
    path = d/part/'m.safetensors'
    state = load_file(path)
    save_states((path, state | {key: f(state[key])}))


def captioned_karlo(change: Callable, *args):
    "A caption for a copy of the folder, after a change."
    shutil.copytree(FIX/'karlo', 'k')
    change(Path('k'), *args)
    return unharmed(captioned, 'k')


VALUES = [None, True, 'x', '', 'x'*9999, math.nan, math.inf, -1, 0, 1, 2, 3, 2.5, 10**5, 10**9,
          10**30, -10**30, 1e308, 1e-320, [], [[]], [1]*9, [0, 0], [8, math.nan], [10**9, 10**9],
          ['x', 'x'], [None, 16], {}, {'a': 1}, nested(89), 'gelu', 'silu', 'v_prediction',
          'AttnDownBlock2D']
OTHERS = {
    'config.json': ('_class_name', 'norm_eps', 'layer_norm_eps', 'dropout', 'attn_norm_num_groups',
                    'time_embedding_dim', 'num_class_embeds', 'mid_block_type', 'class_embed_type',
                    'act_fn', 'downsample_padding', 'freq_shift', 'torch_dtype', 'a\x1b[31m'),
    'scheduler_config.json': ('_class_name', 'beta_schedule', 'beta_start', 'trained_betas')}
CONFIGS = DEEP | {
    'long number': b'{"sample_size": ' + b'9'*10**4 + b'}',
    'wide': b'{"block_out_channels": [' + b'8,'*10**6 + b'8]}',
    'BOM': b'\xef\xbb\xbf{}',
    'surrogate': b'{"hidden_act": "\\ud800", "act_fn": "\\ud800", "prediction_type": "\\ud800"}'}

# what becomes of a tensor
CHANGED = dict(complex=methodcaller('to', torch.complex64), bytes=methodcaller('to', torch.uint8),
               bools=methodcaller('bool'), double=methodcaller('double'),
               float8=methodcaller('to', torch.float8_e4m3fn), huge=lambda w: w.float()*1e37,
               zero=methodcaller('mul', 0), flat=methodcaller('reshape', -1),
               single=lambda w: w.reshape(-1)[0], none=lambda w: w.reshape(-1)[:0],
               axis=lambda w: w[None], longer=lambda w: torch.atleast_1d(w).repeat_interleave(2, 0),
               nan=methodcaller('mul', math.nan), infinite=methodcaller('div', 0))


def karlo_cases(rng, k: int):
    "Configurations, folders and weights of Karlo, changed and exchanged."
    def case(name, change, *args):
        return Case('captioned', f'karlo {name}', captioned_karlo, (change, *args))

    for part in KARLO:
        name = about_of(part)
        at = f'{part}/{name}'
        config = json.loads((FIX/'karlo'/at).read_text())
        for key in sorted({*config, *OTHERS[name]}):
            for v in rng.sample(VALUES, k):
                yield case(f'{part} {key}={str(v)[:30]!r}', set_value, at, key, v)
            v = config.get(key)
            if isinstance(v, list):
                yield case(f'{part} {key} one longer', set_value, at, key, v + v[-1:])
            if key in config:
                yield case(f'{part} without {key}', without_value, at, key)
        for i in range(k):
            new = dict(zip(rng.sample(sorted(config), 2), rng.sample(VALUES, 2)))
            yield case(f'{part} {str(new)[:60]}, {i}', partial(set_values, **new), at)
        for how, raw in CONFIGS.items():
            yield case(f'{part} {how}', set_bytes, at, raw)
        for how, change in FOLDERS.items():
            yield case(f'{part} {how}', change_part, part, change)

    for a, b in itertools.combinations(theirs.UNCLIP_FOLDERS, 2):
        yield case(f'{a} and {b} exchanged', exchange, a, b)
        for what, file in (('weights', 'm.safetensors'), ('configurations', 'config.json')):
            yield case(f'{a} and {b}: {what} exchanged', exchange, f'{a}/{file}', f'{b}/{file}')
        yield case(f'{a} gives {b} a key', give_key, a, b)
        yield case(f'{b} gives {a} a key', give_key, b, a)
    for a, b in itertools.combinations(theirs.SCHEDULERS, 2):
        yield case(f'{a} and {b} exchanged', exchange, a, b)

    for (how, f), part in itertools.product(CHANGED.items(), theirs.UNCLIP_FOLDERS):
        keys = sorted(load_file(FIX/'karlo'/part/'m.safetensors'))
        for key in rng.sample(keys, 2):
            yield case(f'{part} {key} {how}', change_weight, part, key, f)


# changes of GLIDE's weights


def change_key(state, key, f):
    return state | {key: f(state[key])}


def without_key(state, key):
    return {name: w for name, w in state.items() if name != key}


def odd_place(state, key):
    return {name.replace('.0.', '.7.', 1) if name == key else name: w
            for name, w in state.items()}


def huge_place(state, key):
    return state | {f'input_blocks.{10**30}.{key}': state[key],
                    f'transformer.resblocks.{key}': state[key]}


STATES = dict(list=lambda s: [*s.values()], empty=lambda s: {},
              nested=lambda s: dict(state_dict=s),
              module=lambda s: {f'module.{name}': w for name, w in s.items()},
              numbers=lambda s: s | {'step': 7}, more=lambda s: s | {'more': torch.zeros(2)})
CENTRAL = ('input_blocks.0.0.weight', 'token_embedding.weight', 'positional_embedding',
           'time_embed.0.weight', 'input_blocks.1.0.emb_layers.1.weight', 'transformer_proj.weight')


def captioned_glide(up: bool, change: Callable, *args):
    "A caption for copies of GLIDE's files, after a change of one."
    changed = 'upsample' if up else 'base'
    for name in ('base', 'upsample'):
        state = torch.load(FIX/f'glide/{name}.pt')
        torch.save(change(state, *args) if name == changed else state, f'{name}.pt')
    more = ['--upsampler', 'upsample.pt'] if up else []
    return unharmed(captioned, 'base.pt', '--side', '8', *more)


def glide_cases(rng):
    "Weights of GLIDE, changed."
    case = in_part('captioned')
    keys = sorted(torch.load(FIX/'glide/base.pt'))
    for (how, f), up in itertools.product(CHANGED.items(), (False, True)):
        for key in [*CENTRAL, *rng.sample(keys, 3)]:
            yield case(f'glide {"upsample" if up else "base"} {key} {how}', captioned_glide, up,
                       change_key, key, f)
    for key in rng.sample(keys, 12):
        yield case(f'glide without {key}', captioned_glide, False, without_key, key)
        yield case(f'glide {key} at odd places', captioned_glide, False, odd_place, key)
        yield case(f'glide {key} at huge places', captioned_glide, False, huge_place, key)
    for how, change in STATES.items():
        yield case(f'glide, {how}', captioned_glide, False, change)


# options: a name, the captions, and more words
CAPTION_FILES = ('glide/upsample.pt', 'glide/inpaint.pt', 'glide/words.pt', 'glide', 'karlo',
              'karlo/prior', 'karlo/decoder/m.safetensors', 'iddpm_unet', 'ddpm_unet',
              'openai_clip_vit', 'unclip_prior', 'run/roll.safetensors', 'run', 'said/cat.png',
              'reader', 'vocab/v.bpe.gz', 'script/m.pt', 'old/m.pt', 'shards', '.')
CAPTION_OPTIONS = ('--label 3', '--bf16', '--no-bf16', '--guidance cfg', '--classifier-scale 1',
                '--sampler ddim', '--layout openai', '--preset adm-64', '--attention-order new',
                '--heads 1', '--head-width 1', '--schedule linear', '--w 1 --guidance-scale 2',
                '--caption', '--upsampler', '--threads 2', '--device meta', '--out .',
                '--out x/y/z.png', '--out /dev/null', '--out a')
CAPTION_WORDS = [*WORDS, 'a'*10**6, 'a '*10**5, '\U0001f98a'*10**4, '\n\t\r', '\u3000', '\u200b',
              '\xa0', '\0', '\ud800', '\u202e\u05d0', '\x07\x1b]0;x\x07', '\ufdfa'*300,
              'e' + '\u0301'*9999, '--caption', "'; rm -rf *"]


def captioned_option_cases():
    "Sides, numbers, steps, weights, other files, other options, odd captions."
    case = in_part('captioned')
    glide_, karlo, up = (str(FIX/FILES[name]) for name in ('glide', 'karlo', 'up'))
    for side in ('1', '2', '3', '7', '65536', '100000', '1000000000'):
        yield case(f'glide --side {side}', captioned, glide_, '--side', side)
        yield case(f'glide --side {side}, upsampled', captioned, glide_, '--side', side,
                   '--upsampler', up)
        yield case(f'karlo --side {side}', captioned, karlo, '--side', side)
    for n in ('1000000000', '100000000', '1000000'):
        yield case(f'glide --n {n}', captioned, glide_, '--n', n, '--side', '64')
        yield case(f'karlo --n {n}, no more steps than there are', captioned, karlo, '--n', n,
                   '--steps', '1001')
    for steps in ('1', '27', '1000', '1001', '1000000000'):
        yield case(f'glide --steps {steps}', captioned, glide_, '--side', '2', '--steps', steps)
        if steps != '1000':
            yield case(f'karlo --steps {steps}', captioned, karlo, '--steps', steps)
    for w in ('1e30', '-1e30', '1e308', '0', '-1', '1e-300'):
        yield case(f'glide --w {w}', captioned, glide_, '--side', '8', '--w', w)
        yield case(f'karlo --guidance-scale {w}', captioned, karlo, '--guidance-scale', w)

    for name in CAPTION_FILES:
        path = str(FIX/name)
        yield case(f'caption {name}', captioned, path)
        yield case(f'--upsampler {name}', captioned, glide_, '--side', '8', '--upsampler', path)
        yield case(f'without --caption: {name}', run, 'sample', path, '--layout', 'auto',
                   '--n', '1', '--steps', '1')
    for line in CAPTION_OPTIONS:
        yield case(f'glide {line}', captioned, glide_, '--side', '8', *line.split())
        yield case(f'karlo {line}', captioned, karlo, *line.split())

    for v in CAPTION_WORDS:
        for name, args in dict(glide=(glide_, '--side', '8'), karlo=(karlo,)).items():
            yield case(f'{name} with the caption {v[:24]!r} ({len(v)})', run, 'sample', *args,
                       '--caption', v, '--steps', '2', '--out', 'a.png', '--json')
            yield case(f'{name} with a dog and {v[:24]!r} ({len(v)})', captioned, *args,
                       '--caption', v, '--n', '2')
    yield case('many captions', captioned, glide_, '--side', '2', *['--caption', 'x']*200)


def killed_writing(when: float, old: bytes | None):
    "kill -9 while a sheet is written: the old one is there, or the new one whole."
    if old:
        Path('a.png').write_bytes(old)
    pid = child('a', 'sample {glide} --caption dog --steps 2 --side 32 --n 60 --out a.png')
    done = 0
    while not done and not [*Path('.').glob('.a.png.*.tmp')]:
        time.sleep(.0005)
        done = os.waitpid(pid, os.WNOHANG)[0]
    if not done:
        time.sleep(when)
        os.kill(pid, signal.SIGKILL)
        code_of(pid)

    # the folder that it left is hidden, and in nobody's way
    for folder in [*Path('.').glob('.a.png.*.tmp')]:
        shutil.rmtree(folder)
    sheet = Path('a.png')
    if sheet.exists() and sheet.read_bytes() != old:
        whole(sheet)
    assert sheet.exists() or not old, 'the old sheet is lost'
    return run_line(CAPTION_GLIDE)


def captioned_cases(rng, k: int = 3):
    yield from files_cases(rng, 3, captioned_readers(), 'captioned', ALSO)
    yield from karlo_cases(rng, k)
    yield from glide_cases(rng)
    yield from captioned_option_cases()
    case = in_part('captioned')
    cat = (FIX/'said/cat.png').read_bytes()
    for i in range(6):
        when = rng.random()*.02
        yield case(f'kill -9 after {when:.4f} s of writing a sheet, {i}', killed_writing, when,
                   cat if i % 2 else None)


# ---- the terminal, and long runs --------------------------------------------------------------

ROLL = '$D sample $FIX/run/roll.safetensors --n 4 --steps 1 --out a.png'
LONG_NAME = 'x'*251 + '.png'
CAT = '$FIX/said/cat.png'
EVIL = "echo 'open(\"HARM\", \"w\")' | tee"
GREP_MINE = 'grep -q mine a.*'
LARGE = "from PIL import Image; Image.new('RGBA', (9450, 9450), (1, 2, 3, 4)).save('large.png')"


def then(line: str, holds: str) -> str:
    "A command, and what must hold after it however it ends."
    return f'{line}; c=$?; {holds} || exit 99; exit $c'


SCRIPTS = [
    '$D --help | head -c 5',
    '$D --help >&-',
    '$D --help >/dev/full',
    '$D presets | head -1',
    '$D presets >&-',
    '$D nothing >&-',
    '$D presets --json >/dev/full',
    '$D nothing 2>&-; true',
    f'{ROLL} >&- 2>&-',
    f'{ROLL} <&- >/dev/full',
    'LC_ALL=C PYTHONIOENCODING=ascii $D classify $FIX/said/cat.png heart sun --out é.png',
    'PYTHONUTF8=0 LC_ALL=C $D sample 日本',
    f'{ROLL} --json | head -c 1',
    'python -O -m ddpm_lit presets ddpm-cifar10',
    f'mkdir gone; cd gone; rmdir ../gone; {ROLL}',
    f'ulimit -n 24; {ROLL}',
    'ulimit -v 400000; $D sample mnist',
    'mkdir PIL; echo "raise OSError(1)" >PIL/__init__.py; PYTHONPATH=.:$PYTHONPATH '
    f'$D classify {CAT} heart sun',
    'ulimit -v 3000000; $D eval $FIX/run/roll.safetensors --n 999999999',
    f'ulimit -f 1; {ROLL}',
    f'timeout -s INT 300 {ROLL}',
    f'unset HOME; {ROLL}',
    f'TMPDIR=/nowhere {ROLL}',
    f'{ROLL} --device cuda',
    'COLUMNS=0 $D sample --help',
    'COLUMNS=x $D train --help',
    '$D train roll --steps 3 --batch 4 --out r --device cpu --threads 2 --json 2>/dev/null',
    'CUDA_VISIBLE_DEVICES=99 $D presets',
    "$D paint $'\\xff' --n 1 --steps 2",
    # settings and programs of the current folder and of the environment
    f'MPLBACKEND=nonsense {ROLL}',
    f'MPLBACKEND=module://nothing {ROLL}',
    f"echo 'backend: module://evil' >matplotlibrc; {EVIL} evil.py >/dev/null; "
    f"{then(ROLL, 'test ! -e HARM')}",
    f"{EVIL} click.py numpy.py torch.py >/dev/null; {then(ROLL, 'test ! -e HARM')}",
    f"{EVIL} struct.py pickle.py torch.py multiprocessing.py >/dev/null; "
    + then('timeout -s INT 40 $D compare --train --seconds .5 --out c', 'test ! -e HARM'),
    f"{EVIL} struct.py pickle.py torch.py >/dev/null; "
    + then('$D bench small --rounds 1', 'test ! -e HARM'),
    f"{EVIL} struct.py pickle.py torch.py >/dev/null; "
    + then('$D train roll --compile --steps 2 --out r', 'test ! -e HARM'),
    f'{ROLL[:-5]} $(printf a/%.0s $(seq 1000))a.png',
    f'{ROLL} --each a.png',
    'PYTORCH_JIT=0 $D export $FIX/run/roll.safetensors e --to torchscript',
    then('mkdir -m 700 e; $D export $FIX/run/roll.safetensors e --to safetensors',
         'test "$(stat -c %a e)" = 700'),
    # what was there stays
    'mkdir c; echo mine >c/gan-points.safetensors; '
    + then('$D compare --train --seconds .5 --n 100 --out c', 'grep -q mine c/gan-points*'),
    'mkdir c; echo mine >c/quality.png; '
    + then('$D bench quality --data mnist --seconds 1 --seeds 1 --out c', 'grep -q mine c/q*'),
    f"printf 'text.usetex: True\\n# \\xff' >matplotlibrc; {ROLL}",
    f'OMP_NUM_THREADS=x {ROLL}',
    # names of files
    f"cp {CAT} '$\\frac{{$.png'; $D vary '$\\frac{{$.png' --n 1 --steps 2",
    f"cp {CAT} $'\\xff.png'; $D vary $'\\xff.png' --n 1 --steps 2",
    f'cp {CAT} 日本.png; $D vary 日本.png --n 1 --steps 2',
    then(ROLL.replace('a.png', LONG_NAME), f'test -e {LONG_NAME}'),
    f"cp {CAT} '$x^2$.png'; $D blend '$x^2$.png' '$x^2$.png' --n 2 --steps 2",
    # links in the place of what a command might write before it has the name that was asked for
    'echo mine >victim; for i in $(seq $$ $(($$ + 400))); do ln -s victim .a.$i.tmp.png; done; '
    + then(ROLL, 'grep -q mine victim; rm .a.*.tmp.png; test ! -L a.png'),
    then('umask 027; $D train roll --steps 2 --batch 4 --out r',
         'test "$(stat -c %a r/roll.safetensors)" = 640'),
    'cp $FIX/run/roll.* .; '
    + then('$D sample roll.safetensors --n 4 --steps 1 --out roll.safetensors',
           'cmp roll.safetensors $FIX/run/roll.safetensors'),
    'mkfifo w.safetensors; timeout 60 $D classify $FIX/said/cat.png a b --weights w.safetensors',
    'python -OO -m ddpm_lit sample --help | grep -q steps',
    f'PYTHONWARNINGS=error {ROLL}',
    # what is there stays as it was: its mode, protected, of another format, what is read
    then(f'umask 077; {ROLL}; umask 022; {ROLL}', 'test "$(stat -c %a a.png)" = 600'),
    f'echo mine >a.png; chmod 400 a.png; {then(ROLL, GREP_MINE)}',
    f'echo mine >a.jpg; {then(ROLL.replace("a.png", "a.jpg"), GREP_MINE)}',
    f'cp {CAT} a.png; ' + then('$D vary a.png --n 1 --steps 2 --out ./a.png', f'cmp a.png {CAT}'),
    'mkdir r; echo mine >r/.my_tmp_notes; echo mine >r/log.jsonl; '
    + then('$D train roll --steps 2 --batch 4 --out r', 'grep -q mine r/.my_tmp_notes r/log.jsonl'),
    'mkdir d; $D classify $FIX/said/cat.png a b --weights d',
    # a picture of 300 kB and 89 million pixels
    f'python -c "{LARGE}"; '
    + then('ulimit -v 4500000; $D vary large.png --n 1 --steps 2', 'test -e vary.png'),
    # readers that leave, and a disk that is full
    then('$D train roll --steps 400 --batch 4 --out r 2> >(true)', 'test -e r/roll.safetensors'),
    then(f'{ROLL} 2>/dev/full', 'test -e a.png'),
    'RANK=1 WORLD_SIZE=2 $D train roll --steps 1',
    'RANK=x WORLD_SIZE=y $D train roll --steps 1 --out r']


# what is stopped at a moment of its life, and in how many seconds that is over
STOPPED = {
    'sample': ('sample {roll} --n 4000 --steps 200 --out a.png', 4),
    'train': ('train roll --steps 100000 --batch 8 --out r', 4),
    'compare': ('compare --train --seconds 9 --out c', 9),
    'eval': ('eval {roll} --n 4000', 5),
    'presets': ('presets', 3)}
MOMENTS = .2, .35, .5, .65, .8, 1.  # of that


def stopped_at(line: str, when: float, number: int):
    "A signal to the command and all that it started: one sentence, and nobody is there after 2 s."
    # from the first import of ours on: before that, Python itself is starting
    program = """
import sys
from ddpm_lit.cli import main
def watch(event, args):
    if event == 'import' and args[0] == 'ddpm_lit.cli.base':
        open('began', 'w').close()
sys.addaudithook(watch)
main()
"""
    p = subprocess.Popen([sys.executable, '-c', program, *words_of(line)], text=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         start_new_session=True,
                         env=os.environ | dict(PYTHONPATH=str(root)))

    # the signal, to the whole group, so long after the beginning
    while not Path('began').exists() and p.poll() is None:
        time.sleep(.002)
    time.sleep(when)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(p.pid, number)

    # how it ended, and how soon
    asked = time.monotonic()
    err = p.stderr.read()  # until the last of them has ended
    seconds = time.monotonic() - asked
    code = p.wait()
    assert code in (0, 128 + number), f'exit code {code}: {err[-300:]!r}'
    assert seconds < 2*patience(), f'it lived on for {seconds:.1f} s'

    # nothing half written, and one sentence
    left = [*Path('.').rglob('.*')]
    assert not left, f'left behind: {left[0]}'
    with contextlib.suppress(Refused):
        said(code, '', err)


def stopped_cases():
    case = in_part('stopped')
    for name, (line, seconds) in STOPPED.items():
        for part in MOMENTS:
            yield case(f'{name} after {part*seconds:.2f} s', stopped_at, line, part*seconds,
                       signal.SIGINT)
        yield case(f'{name}, SIGTERM', stopped_at, line, seconds/2, signal.SIGTERM)
        yield case(f'{name} at its start', stopped_at, line, 0., signal.SIGINT)


# ---- fuzz: pictures, fixtures, and options in any company --------------------------------------

PICTURE_KINDS = dict(PNG={}, JPEG={}, WEBP={}, GIF={}, BMP={}, TIFF={}, PPM={},
                     lossless=dict(format='WEBP', lossless=True),
                     progressive=dict(format='JPEG', progressive=True),
                     lzw=dict(format='TIFF', compression='tiff_lzw'))


def mutant(raw: bytes, rng) -> bytes:
    "Bytes with a few of them changed, left out, moved or taken from elsewhere."
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i = rng.randrange(min(len(raw), rng.choice((32, 400, len(raw)))))
        how = rng.randrange(5)
        if how == 0:
            raw[i] ^= 1 << rng.randrange(8)
        elif how == 1:
            raw[i:i + 4] = rng.choice((b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', b'\0\0\0\1'))
        elif how == 2:
            del raw[i:i + rng.randint(1, 9)]
        elif how == 3:
            j = rng.randrange(len(raw))
            raw[i:i + 8] = raw[j:j + rng.randint(0, 40)]
        else:
            raw[i:i] = rng.randbytes(rng.randint(1, 9))
        raw = raw or bytearray(b'x')
    return bytes(raw)


def with_sums(raw: bytes) -> bytes:
    "A PNG whose parts have the sums that belong to them, so that a decoder reads on."
    out, at = raw[:8], 8
    while at + 12 <= len(raw):
        size = struct.unpack('>I', raw[at:at + 4])[0]
        part = raw[at + 4:at + 8 + size]
        out += raw[at:at + 4] + part + struct.pack('>I', zlib.crc32(part))
        at += 12 + size
    return out


def fuzzed_picture(kind: str, seed: str, n: int = 400) -> Tally:
    "Many pictures that were damaged; one that fails is named by its number."
    rng = random.Random(f'{kind} {seed}')

    # a whole picture of noise, in a mode that the format has
    how = dict(format=kind) | PICTURE_KINDS[kind]
    modes = ('RGB', 'L', 'RGBA')
    if how['format'] in ('JPEG', 'PPM', 'BMP'):
        modes = ('RGB', 'L')
    elif kind == 'lossless':
        modes = ('RGB', 'RGBA')
    mode = rng.choice(modes)
    pixels = np.frombuffer(rng.randbytes(24*20*4), np.uint8).reshape(24, 20, 4)
    image = Image.fromarray(pixels.copy(), 'RGBA').convert(mode)
    file = io.BytesIO()
    image.save(file, **how)

    # each damaged copy is refused or read; of a PNG three in four have sums that fit
    counts = Counter(refused=0, worked=0)
    for i in range(n):
        raw = mutant(file.getvalue(), rng)
        put('p.png', with_sums(raw) if kind == 'PNG' and i % 4 else raw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                sound(read_picture('p.png'))
            counts['worked'] += 1
        except Problem as e:
            sentence(str(e))
            counts['refused'] += 1
        except Exception as e:
            raise AssertionError(f'mutant {i}: {type(e).__name__}: {e}') from e
    return Tally(**counts)


def changed_fixture(name: str, seed: str, n: int = 3) -> Tally:
    "A fixture that is whole as a file, with an input, a weight or a setting that does not fit."
    rng = random.Random(f'{name} {seed}')

    # the fixture as it is
    path = data_dir('parity', name)
    with safe_open(path, 'pt') as f:
        meta = f.metadata()
    state = load_file(path)
    config = json.loads(meta.get('config', '{}'))
    inputs = [k for k in state if k.startswith('in.')]

    counts = Counter(refused=0, worked=0)
    for i in range(n):
        tensors = dict(state)
        words = dict(meta)
        options = dict(config)

        # one change: a tensor that is missing, another or renamed, a setting, or all of them
        key = rng.choice(inputs if inputs and rng.random() < .5 else [*state])
        how = rng.randrange(5)
        if how == 0:
            del tensors[key]
        elif how == 1:
            tensors[key] = rng.choice([*CHANGED.values()])(tensors[key]).contiguous()
        elif how == 2 and options:
            options[rng.choice([*options])] = rng.choice(VALUES)
        elif how == 3:
            tensors['out.\x1b]0;x\x07\u202e'] = tensors.pop(key)
        else:
            words['config'] = rng.choice(('[1]', '7', '{', 'null', '{"a": NaN}'))
        if how == 2:
            words['config'] = json.dumps(options)
        save_file(tensors, 'f.safetensors', words)

        # it is refused in a sentence, or read
        try:
            parity('f.safetensors')
            counts['worked'] += 1
        except Refused:
            counts['refused'] += 1
        except Exception as e:
            raise AssertionError(f'change {i} of kind {how} at {key}: {e}') from e
    return Tally(**counts)


PLAUSIBLE = {'seed': ('0', '7'), 'n': ('1', '3'), 'steps': ('1', '3'), 'batch': ('1', '5'),
             'w': ('0', '.5', '-2'), 'strength': ('.5', '0', '1'), 'top': ('1', '9'),
             'device': ('cpu',), 'threads': ('1',)}
SLOW = ('train', 'demo', 'compare', 'bench')


def mixed_options(rng) -> tuple[str, ...]:
    "A command with up to four options, each with a value that may be right or odd."
    (command, _), line = rng.choice([run for run in RUNS.items() if run[0][0] not in SLOW])
    words = words_of(line)
    params = [p for p in cli.command.get_command(None, command).params
              if isinstance(p, click.Option) and p.name != 'help']
    for p in rng.sample(params, rng.randint(1, min(4, len(params)))):
        odd = NUMBERS if is_number(p) else DEVICES if p.name == 'device' else WORDS
        value = rng.choice(PLAUSIBLE.get(p.name, ()) if rng.random() < .5 and p.name in PLAUSIBLE
                           else odd)
        words += [p.opts[0]] if p.is_flag else [p.opts[0], value]
    return tuple(words)


def fuzz_cases(rng, n: int = 12):
    case = in_part('fuzz')
    seed = rng.randrange(10**6)
    for kind, i in itertools.product(PICTURE_KINDS, range(n)):
        yield case(f'pictures: {kind}, {seed} {i}', fuzzed_picture, kind, f'{seed} {i}')
    for name in sorted(p.name for p in data_dir('parity').glob('*.safetensors')):
        for i in range(max(1, n // 4)):
            yield case(f'parity: {name}, {seed} {i}', changed_fixture, name, f'{seed} {i}')
    for i in range(5*n):
        words = mixed_options(rng)
        shown = ' '.join(word.replace(str(FIX), '')[:16] for word in words)
        yield case(f'options {i}: {ascii(shown)[1:-1]}', run, *words)


# ---- right results: every sampler and grid on every system of pictures that ships ---------------


def flow_grid(n: int) -> schedule.Grid:
    "Even times of flow matching, from a little below 1, where a network that predicts eps begins."
    times = .99*torch.arange(n, 0, -1, dtype=torch.float64)/n
    return schedule.Grid(torch.cat([solve.StraightPath()(times).log_snr, CLEAN.log_snr[None]]))


# a grid of n levels for a system; `own` is that of its recipe
GRIDS: dict[str, Callable] = dict(
    own=lambda recipe, n: schedule.grid(recipe.schedule, n),
    cosine=lambda _, n: schedule.grid(schedule.Cosine(), n),
    linear=lambda _, n: schedule.grid(schedule.linear(), n),
    karras=lambda _, n: schedule.karras(n, .02),
    flow=lambda _, n: flow_grid(n))
# systems with captions: two samplers show that their denoisers are right
CAPTIONED = 'glide', 'dalle2', 'latent'
# of its 100 evaluations at each level only ten, and on the ladder of a system that walks down one
FEW_STEPS = 'langevin-10'
DRAWN, STEPS = 100, 6  # pictures, and steps of each run
FAR = 10  # times the distance of the best
# runs that may be far off: samplers, grids, why
EXPLAINED = (
    (('ddim', 'heun', 'dpmpp_2m', 'pc', FEW_STEPS), ('cosine',),
     'the grid opens with a leap from log SNR -20, where a prediction is worth nothing (32)'),
    (('ancestral', 'ancestral-large'), tuple(GRIDS),
     'a random step is a Gaussian only if it is short, and six are long (14)'),
    (('ddim', 'heun', 'dpmpp_2m'), ('flow',),
     'the first leap, from log SNR -9 to -3, decides a coloured background (32)'),
    (('pc', FEW_STEPS), tuple(GRIDS),
     'Langevin steps leave a variance of their own at each level (31, 32)'))


def picture_systems() -> list[str]:
    "The shipped weights that a sampler draws pictures from."
    found = []
    for path in sorted(data_dir('weights').glob('*.safetensors')):
        try:
            recipe = fit.find_recipe(fit.card_in(path)['recipe'])
        except Problem:  # a network beside, such as a classifier that measures
            continue
        # the latents of latent diffusion are its pictures here
        if (recipe.sampler or path.stem == 'latent') and len(recipe.shape) == 3:
            found.append(path.stem)
    return found


def seen_from_afar(x: Tensor) -> Tensor:  # [n c h w] -> [n 8c]
    "The mean of each quarter of a picture, and its standard deviation."
    x = x.float()
    mean = nn.functional.adaptive_avg_pool2d(x, 2)
    square = nn.functional.adaptive_avg_pool2d(x**2, 2)
    return torch.cat([mean, (square - mean**2).clamp(min=0).sqrt()], 1).flatten(1)


def recipe_of(name: str) -> fit.Recipe:
    "The recipe of shipped weights."
    return fit.find_recipe(fit.card_in(data_dir('weights', f'{name}.safetensors'))['recipe'])


@cache
def learned_from(name: str) -> tuple[Tensor, tuple, Tensor]:
    "A system's own data: [n c h w] and what goes with it, and [10n 8c] of more, from afar."
    recipe = recipe_of(name)
    step = recipe.batches(DRAWN, 1, torch.device('cpu'))
    data, *condition = step(0)
    more = [seen_from_afar(step(i)[0]) for i in range(1, 11)]
    return data, tuple(condition), torch.cat(more)


class Levels(NamedTuple):
    "A grid as the schedule that this grid is even on."
    levels: schedule.Grid

    def __call__(self, times) -> Level:
        return Level(self.levels.log_snr[:-1])


def nearest(rows: list[dict]) -> float:
    "The distance of the best run of a system, or of as many of its data if they are no nearer."
    return max(rows[0]['data'], min(r['frechet'] for r in rows if r['frechet'] is not None))


def sampler_on(name: str, which: str, sampler: str, bf16: bool):
    "The Frechet distance of a few samples, seen from afar, to the data; noise is farther away."
    model, recipe = fit.load_weights(name)
    data, condition, real = learned_from(name)
    levels = GRIDS[which](recipe, STEPS)

    def given(_):
        denoiser = model.given(*condition)
        if recipe.limit:
            denoiser = sample.clamp_x0(denoiser, recipe.limit)
        return in_bf16(denoiser) if bf16 else denoiser

    measured = dict(system=name, grid=which, sampler=sampler, bf16=bf16, steps=STEPS, n=DRAWN,
                    data=round(frechet_distance(seen_from_afar(data), real), 4))
    try:
        on_grid = replace(recipe, schedule=Levels(levels), classes=0, sampler=sampler)
        drawn = sample_recipe(model, on_grid, DRAWN, None, 0, STEPS, sampler, edit=given)
    except Problem as e:
        sentence(str(e))
        return Tally(refused=1, measured=measured | dict(frechet=None, refused=str(e)))
    away = frechet_distance(seen_from_afar(drawn.x), real)
    noise = frechet_distance(seen_from_afar(torch.randn_like(data)), real)
    measured |= dict(frechet=round(away, 4), evaluations=drawn.evaluations)
    if away > noise:
        return Tally(failures=(f'worse than noise: {away:.2f}, {noise:.2f}',), measured=measured)
    return Tally(worked=1, measured=measured)


def samplers() -> list[str]:
    "All samplers by name, that of many evaluations with few of them."
    names = [*sample.SAMPLERS]
    if FEW_STEPS not in names:
        sample.SAMPLERS.add(FEW_STEPS, partial(score.langevin, repeats=10))
    return [FEW_STEPS if name == 'langevin' else name for name in names if name != FEW_STEPS]


def grids_of(name: str) -> list[str]:
    "The grids for a system; its own is left out where it is the cosine grid."
    own = recipe_of(name).schedule
    if isinstance(own, score.Ladder):  # its network has learned these few levels and no other
        return ['own']
    own_is_cosine = own == schedule.Cosine()
    return [which for which in GRIDS if which != 'own' or not own_is_cosine]


def sampler_cases():
    case = in_part('samplers')
    for name, bf16 in itertools.product(picture_systems(), (False, True)):
        captioned = name.startswith(CAPTIONED)
        if captioned:
            learned_from(name)  # a minute of CLIP for all drawings, before a case's clock starts
        grids = ['cosine', 'karras'] if captioned else grids_of(name)
        names = ['dpmpp_2m', 'heun'] if captioned else samplers()
        walks = recipe_of(name).sampler == 'langevin'
        for which, sampler in itertools.product(grids, names):
            # ten steps of a walk forget where it began only if levels are near each other
            if sampler == FEW_STEPS and (bf16 or not walks or which != grids[0]):
                continue
            yield case(f'{name}, {which}, {sampler}' + ', bf16'*bf16, sampler_on, name, which,
                       sampler, bf16)


# ---- what is written to a terminal ---------------------------------------------------------------


def narrow_help(name: str):
    "Help on a terminal of eight columns."
    os.environ.update(COLUMNS='8', TERM='dumb')
    return run(name, '--help')


def terminal_cases(rng):
    case = in_part('terminal')
    for name in cli.COMMANDS:
        yield case(f'{name} --help, narrow', narrow_help, name)
    for script in SCRIPTS:
        yield case(script, shell, script)


def flat(states, every: int):
    "Memory over a long run: what a straight line through it says, after a tenth to warm up."
    seen = [memory('VmRSS')/2**20 for i, _ in enumerate(states, 1) if i % every == 0]
    seen = np.array(seen[len(seen) // 10:])
    slope = np.polyfit(np.arange(len(seen)), seen, 1)[0]*len(seen)
    print(f'memory over {len(seen)*every} steps: {seen[0]:.1f} MiB at first, '
          f'{seen[-1]:.1f} at last, along a line {slope:+.2f}', file=sys.stderr)
    assert slope < 3 and seen[-1] - seen[0] < 4, f'it grew by {slope:.1f} MiB'


def sampling():
    model, _ = fit.load_weights(str(FIX/'run/roll.safetensors'))
    levels = schedule.grid(schedule.Cosine(), 10_000)
    flat(sample.ddim(model.given(), levels, torch.randn(16, 2), 1.), 100)


def unet():
    net = small_unet(1, 0, 8, (1, 2), attention=(), unshuffle=1, middle=False)
    denoiser = sample.clamp_x0(Model(net.eval()).given())
    levels = schedule.grid(schedule.Cosine(), 2000)
    flat(sample.ancestral(denoiser, levels, torch.randn(1, 1, 8, 8)), 20)


def training():
    recipe = fit.find_recipe('roll')
    batches = recipe.batches(32, 0, torch.device('cpu'))
    flat(fit.fit(roll(), batches, recipe.schedule, recipe.loss, 2000, **recipe.settings), 20)


def whole_runs():
    def again():
        for _ in range(60):
            shutil.rmtree('r', ignore_errors=True)
            run_line('train roll --steps 2 --batch 8 --out r --json')
            yield

    flat(again(), 2)


def long_cases():
    case = in_part('long')
    for f in (sampling, unet, training, whole_runs):
        yield case(f.__name__.replace('_', ' '), f)


# ---- all of it --------------------------------------------------------------------------------


def no_network(*_, **__):
    raise OSError('there is no network here')


def prepare(box: Path, fixtures: bool):
    "No network, all of the library imported, and the fixtures if a part needs them."
    global FIX
    torch.set_num_threads(1)
    socket.getaddrinfo = socket.create_connection = no_network
    # tiny files in the real formats have other sums
    from torchvision import datasets
    datasets.CelebA.file_list = [(i, None, name) for i, _, name in datasets.CelebA.file_list]
    FIX = box/'fix'
    FIX.mkdir()
    for module in package_sources():
        importlib.import_module(module)
    show.cloud(torch.zeros(1, 2))
    show.save_figure(box/'warm.png')
    if fixtures:
        make_fixtures(FIX)
        make_runs()


def parts_of(a) -> dict[str, Callable]:
    "Part -> its cases; each begins with the same random numbers."
    def seeded_by(cases):
        return lambda: cases(random.Random(a.seed))

    return dict(hostile=seeded_by(hostile_cases), files=seeded_by(files_cases),
                disks=seeded_by(disk_cases), races=seeded_by(race_cases),
                kills=seeded_by(kill_cases),
                shapes=lambda: shape_cases(a.seed, a.examples), options=seeded_by(option_cases),
                captioned=seeded_by(captioned_cases), fuzz=seeded_by(fuzz_cases),
                terminal=seeded_by(terminal_cases), samplers=sampler_cases,
                stopped=stopped_cases, long=long_cases)


QUICK = dict(hostile=.1, files=.1, disks=.02, races=.1, kills=.01, shapes=1., options=.1,
             captioned=.06, fuzz=.1)  # shares


def share_of(part: str, a) -> float:
    return QUICK.get(part, 0.) if a.quick else a.share


def with_own_names(cases) -> list[Case]:
    "No two cases of a part have one name."
    seen: Counter = Counter()
    named = []
    for case in cases:
        seen[case.name] += 1
        again = f' ({seen[case.name]})' if seen[case.name] > 1 else ''
        named.append(case._replace(name=case.name + again))
    return named


def wanted_cases(a):
    "The cases of each part that were asked for, part by part."
    for name, make in parts_of(a).items():
        if not a.only or name in a.only:
            if not share_of(name, a):
                continue
            cases = [case for case in with_own_names(make()) if a.case in case.name]
            k = math.ceil(share_of(name, a)*len(cases))
            drawn = random.Random(f'{a.seed} {name}').sample(range(len(cases)), k)
            yield [cases[i] for i in sorted(drawn)]


def tell(case: Case, what: str, a):
    "A failure, with the line that repeats it."
    repeat = subprocess.list2cmdline([case.name])
    print(f'FAILED  {case.part}: {case.name}\n        {what}\n'
          f'        python tools/campaign.py --seed {a.seed} --only {case.part} --case {repeat}',
          flush=True)


class Results:
    "What became of each case, by seed and part; with a file, it goes on with what stands there."

    def __init__(self, seed: int, path: Path | None):
        self.path = path
        self.seeds: dict[str, dict] = {}
        if path and path.exists():
            self.seeds = json.loads(path.read_text())['seeds']
        self.parts = self.seeds.setdefault(str(seed), {})
        self.saved = time.monotonic()

    def missing(self, cases: list[Case], all_of_them: bool) -> list[Case]:
        "The cases that are not there, and those that failed; with another seed some are the same."
        if all_of_them:  # what an older campaign tried is left out
            names = {case.name for case in cases}
            part = self.parts.get(cases[0].part, {}) if cases else {}
            for name in part.keys() - names:
                del part[name]

        def fine(case):
            found = [parts.get(case.part, {}).get(case.name) for parts in self.seeds.values()]
            return any(tally and not tally['failures'] for tally in found)

        return [case for case in cases if not fine(case)]

    def add(self, case: Case, tally: Tally):
        self.parts.setdefault(case.part, {})[case.name] = tally._asdict()
        if time.monotonic() - self.saved > 60:
            self.save()

    def save(self):
        if self.path:
            new = self.path.with_suffix('.new')
            new.write_text(json.dumps(dict(seeds=self.seeds)) + '\n')
            new.replace(self.path)
            self.saved = time.monotonic()

    def table(self) -> dict[str, Counter]:
        "A row for each part, over all seeds."
        rows: dict[str, Counter] = {}
        for parts in self.seeds.values():
            for part, cases in parts.items():
                row = rows.setdefault(part, Counter())
                for tally in cases.values():
                    row.update(cases=1, refused=tally['refused'], worked=tally['worked'],
                               failures=len(tally['failures']), seconds=tally['seconds'])
        return rows

    def measured(self) -> list[dict]:
        "What the cases of samplers measured, in the order of their names."
        found = {}
        for parts in self.seeds.values():
            for name, tally in parts.get('samplers', {}).items():
                if tally['measured']:
                    found[name] = tally['measured']
        return [found[name] for name in sorted(found)]

    def failures(self) -> list[dict]:
        found = [dict(seed=int(seed), part=part, case=name, what=what)
                 for seed, parts in self.seeds.items() for part, cases in parts.items()
                 for name, tally in cases.items() for what in tally['failures']]
        unexplained = [', '.join(map(str, key)) for key, why in far_off(self.measured()).items()
                       if not why]
        return found + [dict(part='samplers', case=name, what='far off, and nobody knows why')
                        for name in unexplained]


def report(results: Results, as_json: bool):
    "The table; a case of the fuzz stands for many inputs, each of which is refused or works."
    rows = results.table()
    if as_json:
        print(json.dumps(dict(seeds=[*map(int, results.seeds)], parts=rows,
                              failures=results.failures()), indent=1))
        return
    columns = 'cases', 'refused', 'worked', 'failures', 'seconds'
    total = sum(rows.values(), Counter())
    print(f'seed {", ".join(results.seeds)}')
    print(' '*10 + ''.join(f'{name:>10}' for name in columns))
    for part, row in (rows | {'all': total}).items():
        print(f'{part:10}' + ''.join(f'{row[name]:10.0f}' for name in columns))


def far_off(rows: list[dict]) -> dict[tuple, str]:
    "(system, sampler, grid, bf16) of the runs that are far off -> why, or nothing."
    found = {}
    for system in {row['system'] for row in rows}:
        ours = [row for row in rows if row['system'] == system]
        for r in ours:
            if r['frechet'] is not None and r['frechet'] > FAR*nearest(ours):
                whys = [why for names, grids, why in EXPLAINED
                        if r['sampler'] in names and r['grid'] in grids]
                found[system, r['sampler'], r['grid'], r['bf16']] = (*whys, '')[0]
    return found


def sampler_tables(rows: list[dict]):
    "For each system the Frechet distances, samplers by grids, in bfloat16 after a slash."
    far = far_off(rows)
    whys = [*dict.fromkeys(far.values())]
    for system in dict.fromkeys(row['system'] for row in rows):
        ours = [row for row in rows if row['system'] == system]
        away = {(r['sampler'], r['grid'], r['bf16']): r['frechet'] for r in ours}
        grids = [g for g in GRIDS if any(r['grid'] == g for r in ours)]
        print(f'\n{system}, {STEPS} steps: {DRAWN} pictures of the data {ours[0]["data"]:.3f}')
        print(' '*16 + ''.join(f'{g:>20}' for g in grids))
        for sampler in dict.fromkeys(r['sampler'] for r in ours):
            line = ''
            for g in grids:
                both = []
                for bf16 in (False, True):
                    v = away.get((sampler, g, bf16))
                    why = far.get((system, sampler, g, bf16))
                    mark = '' if why is None else f'{whys.index(why) + 1}' if why else '!'
                    both.append('-' if v is None else f'{v:.3f}' + f'({mark})'*bool(mark))
                line += f'{" / ".join(both):>20}'
            print(f'{sampler:16}{line}')
    for i, why in enumerate(whys, 1):
        print(f'({i}) {why}' if why else f'(!) more than {FAR} times as far as the best')


class Progress:
    "A line on standard error when a part begins, and every 20 seconds."

    def __init__(self):
        self.began = self.reported = time.monotonic()

    def tell(self, part: str, done: int, of: int, failures: int, always: bool = False):
        now = time.monotonic()
        if always or now - self.reported > 20:
            print(f'{now - self.began:6.0f} s  {part} {done} of {of}, {failures} failures',
                  file=sys.stderr, flush=True)
            self.reported = now


def try_wanted(a, box: Path, results: Results) -> int:
    "Tries what was asked for; how many cases were not begun."
    until = time.monotonic() + 60*a.minutes
    progress = Progress()
    left = 0
    failed = 0
    for wanted in wanted_cases(a):
        cases = results.missing(wanted, not a.case and not a.quick and a.share == 1)
        if not cases:
            continue
        part = cases[0].part
        progress.tell(part, len(wanted) - len(cases), len(wanted), failed, always=True)
        left += len(cases)
        with contextlib.closing(try_all(cases, box, until)) as tried:
            for case, tally in tried:
                left -= 1
                results.add(case, tally)
                failed += len(tally.failures)
                for what in () if a.json == '-' else tally.failures:
                    tell(case, what, a)
                progress.tell(part, len(wanted) - left, len(wanted), failed)
    return left


def stop(*_):
    raise KeyboardInterrupt


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='*', default=[])
    p.add_argument('--case', default='')
    p.add_argument('--json', nargs='?', const='-')
    p.add_argument('--measured', metavar='FILE')
    p.add_argument('--examples', type=int, default=40)
    p.add_argument('--share', type=float, default=1.)
    p.add_argument('--quick', action='store_true')
    p.add_argument('--minutes', type=float, default=math.inf)
    a = p.parse_args()
    if a.quick:
        a.examples = 4
    unknown = {*a.only} - parts_of(a).keys()
    if unknown:
        p.error(f'no part {", ".join(unknown)}: choose of {", ".join(parts_of(a))}')

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    path = Path(a.json).resolve() if a.json not in (None, '-') else None
    results = Results(a.seed, path)
    box = Path(tempfile.mkdtemp(prefix='campaign')).resolve()
    left, ended = 0, ''
    try:
        prepare(box, fixtures=a.only != ['samplers'])
        left = try_wanted(a, box, results)
        ended = f', {left} not begun'*bool(left)
    except KeyboardInterrupt:
        ended = ', stopped'
    finally:
        os.chdir(root)
        shutil.rmtree(box, ignore_errors=True)
        results.save()

    report(results, a.json == '-')
    rows = results.measured()
    if a.json != '-':
        sampler_tables(rows)
    if a.measured:
        command = f'python tools/campaign.py --only samplers --measured {a.measured}'
        put(root/a.measured, json.dumps(dict(command=command, rows=rows), indent=1) + '\n')
    total = sum(row['cases'] for row in results.table().values())
    failures = results.failures()
    print(f'{total} cases, {len(failures)} failures{ended}')
    sys.exit(130 if ended == ', stopped' else bool(failures or not total))


if __name__ == '__main__':
    main()
