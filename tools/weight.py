r"""Refuses a commit that makes every clone larger, unless its message says why.

    python tools/weight.py MESSAGE          what is staged, with a file that holds the message
    python tools/weight.py --range A..B     each commit of a range

A commit may add 3 MB: the bytes of the lines that it adds, and all of a changed file that is not
text. In a range each file of data/weights may change once. A line `Weight: REASON` in the message
lets a commit through. pre-commit gives the message in its stage commit-msg.
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

LIMIT = 3_000_000


def git(*args: str) -> bytes:
    return subprocess.run(['git', *args], check=True, stdout=subprocess.PIPE).stdout


def lines(*args: str) -> list[str]:
    return git(*args).decode().splitlines()


def marked(message: str) -> bool:
    return bool(re.search(r'^Weight: *\S', message, re.M))


def added(*between: str) -> int:
    "The bytes that a difference adds: of its lines, binary files included."
    raw = git('diff', *between, '-U0', '--text', '--no-renames', '--no-ext-diff', '--no-color',
              '--no-textconv', '--diff-filter=AM')
    return sum(len(line) for line in raw.split(b'\n') if line.startswith(b'+'))


def weights(*between: str) -> set[str]:
    names = lines('diff', *between, '--name-only', '--no-renames', '--', 'data/weights')
    return {name for name in names if name.endswith('.safetensors')}


def too_heavy(title: str, message: str, *between: str) -> list[str]:
    size = added(*between)
    print(f'{size/1e6:6.2f} MB  {title}')
    if size <= LIMIT or marked(message):
        return []
    return [f'{title}: {size/1e6:.1f} MB are more than {LIMIT/1e6:.0f}; if every clone shall carry '
            'them, say why in a line of the message: Weight: REASON']


def in_range(commits: str):
    "What is wrong with the commits of a range, from the oldest; merges are made of the others."
    first, _, last = commits.partition('..')
    known = subprocess.run(['git', 'rev-parse', '-q', '--verify', f'{first}^{{commit}}'],
                           capture_output=True).returncode == 0
    if not known:
        print(f'{first} is not in this clone: only {last or "HEAD"} is looked at')
    names = [commits] if known else ['-1', last or 'HEAD']
    changed = set()
    for line in lines('rev-list', '--reverse', '--no-merges', '--parents', *names):
        commit, *parents = line.split()
        if not parents:
            print(f'{commit[:9]} has no parent in this clone: nothing to compare with')
            continue
        message = git('log', '-1', '--format=%B', commit).decode()
        title = f'{commit[:9]} {message.splitlines()[0][:60]}'
        yield from too_heavy(title, message, parents[0], commit)
        networks = weights(parents[0], commit)
        if not marked(message):
            yield from (f'{title}: {name} changes again; it is stored once, when it is final'
                        for name in sorted(networks & changed))
        changed |= networks


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('message', nargs='?', help='the file with the message of the commit to come')
    p.add_argument('--range', metavar='A..B')
    a = p.parse_args()
    if a.range:
        faults = [*in_range(a.range)]
    else:
        message = Path(a.message).read_text(encoding='utf-8') if a.message else ''
        faults = too_heavy('what is staged', message, '--cached')
    print(*faults, sep='\n', end='\n' if faults else '')
    return bool(faults)


if __name__ == '__main__':
    sys.exit(main())
