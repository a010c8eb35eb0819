"The machine that tries: each case in a process, in an empty folder, with limits."
import contextlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Callable

import torch
from campaign.right import (BOX, Case, Refused, Skipped, Tally, check_weights_are_there, nothing,
                            root, sentence, sound, words_of)
from ddpm_lit.cli import base as cli
from ddpm_lit.core.problem import Problem

SECONDS = 60  # of the processor, for each case
MEMORY = 4 << 30  # of addresses, beyond those at the start
GROWTH = 1 << 29  # of memory really used
HERE = BOX/'here'  # the folder of a case


class Slow(BaseException):
    "The limit on processor time."


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


def attempt(case: Case) -> Tally:
    "A case in an empty folder, with limits; whatever else it raises is a failure."
    env = dict(os.environ)

    # an empty folder, and the same random numbers whichever case came before
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    os.chdir(HERE)
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
        left = [*HERE.rglob('.*.tmp*')]
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
    os.chdir(BOX)
    return tally


def worker(cases: list[tuple[int, Case]], pipe: int, until: float):
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
        tally = attempt(case)
        tally = tally._replace(seconds=round(sum(os.times()[:4]) - began, 3))
        os.write(pipe, f'{json.dumps([i, *tally])}\n'.encode())


def family(pid: int) -> list[int]:
    "A process and all that it started and that are alive."
    found = [pid]
    for children in Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for number in children.read_text().split():
                found += family(int(number))
    return found


def end_all(pid: int):
    "No process of a worker lives on, and no disk of its case stays."
    for member in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    if os.path.ismount(HERE/'disk'):
        subprocess.run(['umount', '-l', HERE/'disk'])


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


def try_all(cases: list[Case], until: float):
    "(case, tally) in order; where a worker dies or hangs its case failed, and another goes on."
    first = 0
    while first < len(cases) and time.monotonic() < until:
        read_end, write_end = os.pipe()
        pid = forked(worker, [*enumerate(cases)][first:], write_end, until)
        os.close(write_end)

        at = None  # the case that was begun and has not ended
        try:
            for i, tally in watched(pid, read_end):
                at = i
                if tally:
                    yield cases[i], tally
                    first, at = i + 1, None
        finally:
            end_all(pid)
            os.close(read_end)
            status = os.waitpid(pid, 0)[1]
        if at is not None:
            yield cases[at], Tally(failures=(f'the process died, status {status}',))
            first = at + 1
