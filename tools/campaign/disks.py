"Full disks, files in the way, two processes at one place."
import contextlib
import json
import os
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Callable

import torch
from campaign.files import roll
from campaign.fixtures import TRAIN_TO
from campaign.machine import child, code_of
from campaign.right import (FIX, Refused, Skipped, cases, files, nothing, run, run_line, said,
                            whole)
from ddpm_lit import show
from ddpm_lit.clip import tokens
from ddpm_lit.core import tensors as in_files
from ddpm_lit.train import weights as stored


def mount(*options: str) -> bool:
    return subprocess.run(['mount', *options, 'disk'], capture_output=True).returncode == 0


def on_disk(size: str, f: Callable, *args, fill: Callable = nothing, read_only: bool = False):
    "Do f with a small disk of its own in the folder `disk`."
    Path('disk').mkdir()
    if not mount('-t', 'tmpfs', '-o', f'size={size}', 'none'):
        raise Skipped('no disk can be mounted here')
    try:
        fill()
        assert not read_only or mount('-o', 'remount,ro')
        return f(*args)
    finally:
        subprocess.run(['umount', '-l', 'disk'], check=True)


protected = partial(on_disk, read_only=True)


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
    'search': 'search {said} heart --out {at}/f.png',
    'paint': 'paint heart --n 1 --steps 2 --out {at}/p.png',
    'export': 'export {roll} --to safetensors {at}/e',
    'torchscript': 'export {roll} --to torchscript {at}/e',
    'tensors': lambda at: in_files.write_tensors(f'{at}/w.safetensors',
                                                 dict(a=torch.zeros(200_000))),
    'weights': lambda at: stored.save_weights(f'{at}/r.safetensors', roll().model,
                                              dict(recipe='roll')),
    'pairs': lambda at: tokens.write_pairs(f'{at}/v', [('a', 'b')]*9000, 'x'),
    'sheet': lambda at: show.save_sheet(torch.rand(40, 3, 32, 32), f'{at}/s.png'),
    'state': lambda at: roll().save(f'{at}/s.safetensors'),
    'captioned': "sample {glide} --caption 'a dog' --steps 2 --json --side 16 --n 100 "
            '--out {at}/a.png'}


def write_to(writer: Callable | str, at: str):
    return writer(at) if callable(writer) else run_line(writer, at=at)


def resume_on_disk():
    "A run that is whole stays whole where there is no room for another."
    try:
        run_line('train roll --resume --steps 8 --out disk/run')
    finally:
        roll().load('disk/run/state.safetensors')
        stored.load_weights('disk/run/roll.safetensors')
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


def disk_cases(_):
    for name, writer in WRITERS.items():
        for size in ('4k', '16k', '72k', '300k', '620k'):
            yield f'{name}, {size} free', on_disk, size, write_to, writer, 'disk'
        for size in (0, 1, 5000, 100_000):
            yield f'{name}, files of {size} bytes', at_most, size, write_to, writer, '.'
        yield f'{name}, read-only', protected, '1m', write_to, writer, 'disk'
        yield f'{name}, a file in the place of the folder', in_the_way, write_to, writer, 'disk'

    run_size = sum(f.stat().st_size + 8192 for f in (FIX/'run').iterdir()) >> 10
    copied_run = partial(shutil.copytree, FIX/'run', 'disk/run')
    for size in (0, 8, 80, 400, 900, 9000):
        yield (f'resume, {size}k free', partial(on_disk, fill=copied_run), f'{run_size + size}k',
               resume_on_disk)
    yield 'resume, read-only', partial(protected, fill=copied_run), '9m', resume_on_disk
    yield from cases('--out is a device, {}', to_device, ('null', 'full', 'pipe'))
    yield '--out is a link', to_link


TRAIN = f'{TRAIN_TO} r'
OTHER = f'{TRAIN} --seed 1'
MORE = f'{TRAIN} --resume'
SHEET = 'sample r/roll.safetensors --n 4 --steps 1 --out a.png'
begun = partial(shutil.copytree, FIX/'half', 'r')


def steps_of(log) -> list[int]:
    return [json.loads(line)['step'] for line in open(log)]


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


def race_cases(_):
    for i in range(3):
        yield f'two new runs, {i}', two_writers, TRAIN, OTHER
        yield f'two go on, {i}', two_writers, MORE, MORE, begun
    for i in range(2):
        yield f'one goes on, one begins, {i}', two_writers, MORE, TRAIN, begun
        yield f'one trains, one draws, {i}', two_writers, MORE, SHEET, begun
