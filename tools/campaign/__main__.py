"""Tries every public command and loader with broken input, and counts what became of it.

    python tools/campaign [--seed 0] [--only PART ...] [--case TEXT] [--json [FILE]]
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
import importlib
import json
import math
import os
import pkgutil
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Callable

os.environ.pop('DDPM_LIT_DATA', None)  # the fixtures are the only data
# a fork has none of its parent's threads, and would wait for them
os.environ.update({f'{name}_NUM_THREADS': '1' for name in ('OMP', 'MKL', 'OPENBLAS')})
sys.path.pop(0)  # the modules of this folder are found as those of the package, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from campaign.captions import captioned_cases
from campaign.disks import disk_cases, race_cases
from campaign.ends import kill_cases, stopped_cases
from campaign.files import file_cases
from campaign.fixtures import make_fixtures, make_runs, put
from campaign.fuzz import fuzz_cases
from campaign.hostile import hostile_cases
from campaign.machine import try_all
from campaign.results import Progress, Results, report, tell
from campaign.right import BOX, FIX, Case, root
from campaign.samplers import sampler_cases, sampler_tables
from campaign.shapes import shape_cases
from campaign.terminal import long_cases, terminal_cases
from campaign.values import option_cases
from ddpm_lit import show
from ddpm_lit.core.check import machine

QUICK = dict(hostile=.1, files=.1, disks=.02, races=.1, kills=.01, shapes=1., options=.1,
             captioned=.06, fuzz=.1)  # shares


def no_network(*_, **__):
    raise OSError('there is no network here')


def prepare(fixtures: bool):
    "No network, all of the library imported, and the fixtures if a part needs them."
    torch.set_num_threads(1)
    socket.getaddrinfo = socket.create_connection = no_network
    # tiny files in the real formats have other sums
    from torchvision import datasets
    datasets.CelebA.file_list = [(i, None, name) for i, _, name in datasets.CelebA.file_list]
    for folder in (BOX, FIX):
        folder.mkdir(mode=0o700)
    for module in pkgutil.walk_packages([str(root/'ddpm_lit')], 'ddpm_lit.'):
        if module.name != 'ddpm_lit.__main__':
            importlib.import_module(module.name)
    show.cloud(torch.zeros(1, 2))
    show.save_figure(BOX/'warm.png')
    if fixtures:
        make_fixtures()
        make_runs()


def parts_of(a) -> dict[str, Callable]:
    "Part -> its cases, as (name, call, *args); each begins with the same random numbers."
    return dict(hostile=hostile_cases, files=file_cases, disks=disk_cases, races=race_cases,
                kills=kill_cases, shapes=lambda _: shape_cases(a.seed, a.examples),
                options=option_cases, captioned=captioned_cases, fuzz=fuzz_cases,
                terminal=terminal_cases, samplers=sampler_cases, stopped=stopped_cases,
                long=long_cases)


def with_own_names(part: str, cases) -> list[Case]:
    "No two cases of a part have one name."
    seen: Counter = Counter()
    named = []
    for name, call, *args in cases:
        seen[name] += 1
        again = f' ({seen[name]})' if seen[name] > 1 else ''
        named.append(Case(part, name + again, call, tuple(args)))
    return named


def wanted_cases(a):
    "The cases of each part that were asked for, part by part."
    for part, make in parts_of(a).items():
        share = QUICK.get(part, 0.) if a.quick else a.share
        if share and (not a.only or part in a.only):
            cases = [case for case in with_own_names(part, make(random.Random(a.seed)))
                     if a.case in case.name]
            drawn = random.Random(f'{a.seed} {part}').sample(range(len(cases)),
                                                             math.ceil(share*len(cases)))
            yield [cases[i] for i in sorted(drawn)]


def try_wanted(a, results: Results) -> int:
    "Tries what was asked for; how many cases were not begun."
    until = time.monotonic() + 60*a.minutes
    progress = Progress()
    left, failed = 0, 0
    for wanted in wanted_cases(a):
        cases = results.missing(wanted, not a.case and not a.quick and a.share == 1)
        if not cases:
            continue
        part = cases[0].part
        progress.tell(part, len(wanted) - len(cases), len(wanted), failed, always=True)
        left += len(cases)
        with contextlib.closing(try_all(cases, until)) as tried:
            for case, tally in tried:
                left -= 1
                results.add(case, tally)
                failed += len(tally.failures)
                for what in () if a.json == '-' else tally.failures:
                    tell(case, what, a)
                progress.tell(part, len(wanted) - left, len(wanted), failed)
    return left


def arguments() -> argparse.Namespace:
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
    return a


def finish(a, results: Results, ended: str):
    "The tables, what was measured, and a line with the number of failures."
    report(results, a.json == '-')
    rows = results.measured()
    if a.json != '-':
        sampler_tables(rows)
    if a.measured:
        command = f'python tools/campaign --only samplers --measured {a.measured}'
        what = 'Frechet distances of each sampler on each grid, in float32 and in bfloat16'
        book = dict(what=what, command=command, machine=machine(), rows=rows)
        put(root/a.measured, json.dumps(book, indent=1) + '\n')
    total = sum(row['cases'] for row in results.table().values())
    failures = results.failures()
    print(f'{total} cases, {len(failures)} failures{ended}')
    sys.exit(130 if ended == ', stopped' else bool(failures or not total))


def main():
    a = arguments()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    path = Path(a.json).resolve() if a.json not in (None, '-') else None
    results = Results(a.seed, path)
    ended = ''
    try:
        prepare(fixtures=a.only != ['samplers'])
        left = try_wanted(a, results)
        ended = f', {left} not begun'*bool(left)
    except KeyboardInterrupt:
        ended = ', stopped'
    finally:
        os.chdir(root)
        shutil.rmtree(BOX, ignore_errors=True)
        results.save()
    finish(a, results, ended)


if __name__ == '__main__':
    main()
