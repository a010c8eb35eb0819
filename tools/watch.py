"""Runs a command, and tells which notebooks each process ran, which took longest, and the memory.

    python tools/watch.py [--most GB] [--most-each GB] [--saved] COMMAND...

With --saved the outputs of all notebooks of nbs/ are compared with those that are saved in them, as
`python tools/nb.py fresh` does.

Memory is what processes hold for themselves: files that they map do not count, and what a process
shares with one that it forked counts once (Pss_Anon, Linux). At the peak all processes are named.
The exit status is the command's, or 1 if it held more than allowed.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from nb import compare_kept, find

# runs in every Python process of the command: notes each notebook that nbdev opens to execute it,
# and has its outputs kept
NOTE_NOTEBOOKS = '''
import os, sys, time

ready = False

def keep_outputs():
    global ready
    ready = True
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location('tools_nb', os.environ['NOTED_TOOL'])
    nb = module_from_spec(spec)
    spec.loader.exec_module(nb)
    nb.keep_outputs(os.environ['NOTED_OUTPUTS'])

def note(event, args):
    if event != 'open' or not str(args[0]).endswith('.ipynb'):
        return
    callers = set()
    frame = sys._getframe()
    while frame:
        callers.add(frame.f_code.co_name)
        frame = frame.f_back
    if 'test_nb' in callers and 'run_cell' not in callers:
        with open(os.environ['NOTED_NOTEBOOKS'], 'a') as f:
            f.write(f'{os.getpid()} {time.time()} {os.path.basename(args[0])}\\n')
        if 'NOTED_OUTPUTS' in os.environ and not ready:
            keep_outputs()

sys.addaudithook(note)
'''


def children(pid: int) -> list[int]:
    "A process and all that it started."
    try:
        direct = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return [pid]
    return [pid, *(p for child in direct for p in children(int(child)))]


def held(pid: int) -> float:
    "Gigabytes that a process holds for itself."
    try:
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    except OSError:
        return 0.
    return sum(int(line.split()[1]) for line in lines if line.startswith('Pss_Anon:'))/1e6


def named(pid: int) -> str:
    "The command of a process, its first letters."
    try:
        words = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    except OSError:
        return 'ended'
    return ' '.join(b' '.join(words).decode(errors='replace').split())[:70]


class Watch(threading.Thread):
    "Asks twice a second how much memory a process and its children hold."
    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid = pid
        self.most = 0.
        self.at_most = []  # (gigabytes, process, its command) when all held the most
        self.each = defaultdict(float)
        self.when = {}  # each process held the most

    def run(self):
        while True:
            now = {pid: held(pid) for pid in children(self.pid)}
            for pid, gb in now.items():
                if gb > self.each[pid]:
                    self.each[pid], self.when[pid] = gb, time.time()
            if sum(now.values()) > self.most:
                self.most = sum(now.values())
                self.at_most = sorted(((gb, pid, named(pid)) for pid, gb in now.items()
                                       if gb > .05), reverse=True)
            time.sleep(.5)


def longest(orders: dict[int, dict[str, float]], end: float, n: int = 12) -> list[tuple]:
    "The notebooks that took longest, and how many seconds."
    took = [(after - began, name) for names in orders.values()
            for (name, began), after in zip(names.items(), [*names.values(), end][1:])]
    return sorted(took, reverse=True)[:n]


def orders(text: str) -> dict[int, dict[str, float]]:
    "The notebooks of each process in the order in which it ran them, and when it began each."
    found = defaultdict(dict)
    for line in text.splitlines():
        pid, began, name = line.split(maxsplit=2)
        found[int(pid)].setdefault(name.removesuffix('.ipynb'), float(began))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    any_number = float('inf')
    p.add_argument('--most', type=float, default=any_number, help='gigabytes of all together')
    p.add_argument('--most-each', type=float, default=any_number, help='gigabytes of one process')
    p.add_argument('--saved', action='store_true', help='compare outputs with the saved ones')
    p.add_argument('command', nargs=argparse.REMAINDER)
    a = p.parse_args()

    with tempfile.TemporaryDirectory() as d:
        noted = Path(d)/'noted'
        noted.touch()
        Path(d, 'sitecustomize.py').write_text(NOTE_NOTEBOOKS)
        path = os.pathsep.join(filter(None, [d, os.environ.get('PYTHONPATH')]))
        start = time.time()
        env = os.environ | dict(PYTHONPATH=path, NOTED_NOTEBOOKS=str(noted))
        if a.saved:
            env |= dict(NOTED_OUTPUTS=d, NOTED_TOOL=str(Path(__file__).with_name('nb.py')))
        command = subprocess.Popen(a.command, env=env)
        watch = Watch(command.pid)
        watch.start()
        status = command.wait()
        seconds = time.time() - start
        found = orders(noted.read_text())
        for pid, names in found.items():
            before = [n for n, began in names.items() if began <= watch.when.get(pid, start)]
            print(f'worker {pid}, {len(names)} notebooks, at most {watch.each[pid]:.2f} GB in '
                  f'{(before or ["the beginning"])[-1]}: {" ".join(names)}')

        print('longest: ' + ', '.join(f'{name} {took:.0f} s' for took, name
                                      in longest(found, start + seconds)))

        if a.saved:
            good, every = compare_kept(d, find([]))
            print(f'outputs as saved in {good} of {every} notebooks')
            status = status or int(good < every)

        for gb, pid, name in watch.at_most:
            print(f'at the peak {gb:.1f} GB in {pid}: {name}')

    most_each = max(watch.each.values(), default=0.)
    print(f'{seconds/60:.1f} minutes, at most {watch.most:.1f} GB of memory, '
          f'{most_each:.1f} GB in one process')
    if watch.most > a.most or most_each > a.most_each:
        print(f'It may hold {a.most:g} GB, and {a.most_each:g} GB in one process.')
        status = status or 1
    return status


if __name__ == '__main__':
    sys.exit(main())
