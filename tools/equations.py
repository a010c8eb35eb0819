r"""Keeps the rules of equations' numbers: they rise down a page, and each keeps its formula.

    python tools/equations.py                  do the notebooks agree with the list?
    python tools/equations.py --update         list new numbers, and mark those that are gone
    python tools/equations.py --accept 14.9    the formula of this number was meant to change

The list, nbs/equations.txt, has a line for each number that was ever used: the number, a sum of its
formula without white space, and its first words, or `removed`: such a number comes back with its
formula or never.
Numbers move with every reference to them only, by tools/renumber.py.
"""
import argparse
import hashlib
import re
import sys

from book import book, sources
from nb import nbs, replace

LEDGER = nbs/'equations.txt'


def order(number: str) -> list[int]:
    return [int(part) for part in number.split('.')]


def page(nb: str) -> list[str]:
    "The numbers of a notebook's equations, in the order of its page."
    return [*dict.fromkeys(re.findall(r'\\tag\{([\d.]+)\}', '\n'.join(sources(nb, 'markdown'))))]


def in_notebooks() -> dict[str, tuple[str, str]]:
    "number -> (sum, first words) of every numbered equation of the notebooks."
    found = {}
    for nb in book:
        for block in re.findall(r'\$\$(.*?)\$\$', '\n'.join(sources(nb, 'markdown')), re.S):
            for number in re.findall(r'\\tag\{([\d.]+)\}', block):
                formula = block.replace(rf'\tag{{{number}}}', '')
                digest = hashlib.sha256(re.sub(r'\s', '', formula).encode()).hexdigest()
                found[number] = digest[:10], ' '.join(formula.split())[:60].rstrip()
    return found


def fault(number: str, now: dict, ledger: dict) -> tuple[str, str] | None:
    "What is wrong with a number, and the option that mends it, if one does; None if nothing is."
    new, old = now.get(number), ledger.get(number)
    if new is None:
        return None if old[1] == 'removed' else ('is gone', '--update')
    if old and old[0] == new[0]:
        return None if old[1] != 'removed' else ('is back', '--update')

    # another number had this formula, and has it no more
    for other in ledger:
        if ledger[other][0] == new[0] and now.get(other, '?')[0] != new[0]:
            return f'is what was {other}: a number is not moved', ''
    if old is None:
        return 'is new', '--update'
    if old[1] == 'removed':
        return 'was removed, and is used again: take a number that was never used', ''
    return f'was: {old[1]}\n     is now: {new[1]}', f'--accept {number}'


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--update', action='store_true')
    p.add_argument('--accept', nargs='+', default=[], metavar='NUMBER')
    a = p.parse_args()
    allowed = ['--update'] * a.update + [f'--accept {number}' for number in a.accept]
    lines = [line.split(None, 2) for line in LEDGER.read_text(encoding='utf-8').splitlines()]
    ledger = {number: (digest, words) for number, digest, words in lines}
    now, faults = in_notebooks(), []
    for number in sorted({*now, *ledger}, key=order):
        what, option = fault(number, now, ledger) or ('', '')
        if option in allowed:
            ledger[number] = now.get(number) or (ledger[number][0], 'removed')
        elif what:
            faults.append(f'{number} {what}' + f' ({option})' * bool(option))
    faults += [f'{nb}: numbers do not rise down the page: python tools/renumber.py --write'
               for nb in book if page(nb) != sorted(page(nb), key=order)]
    if allowed:
        lines = (f'{n} {" ".join(ledger[n])}\n' for n in sorted(ledger, key=order))
        replace(LEDGER, ''.join(lines).encode())
    print(*faults, f'{len(now)} equations, {len(faults)} faults', sep='\n')
    return bool(faults)


if __name__ == '__main__':
    sys.exit(main())
