"What became of each case: kept in a file, added up in a table, told on the way."
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from campaign.right import Case, Tally
from campaign.samplers import far_off


def tell(case: Case, what: str, a):
    "A failure, with the line that repeats it."
    repeat = subprocess.list2cmdline([case.name])
    print(f'FAILED  {case.part}: {case.name}\n        {what}\n'
          f'        python tools/campaign --seed {a.seed} --only {case.part} --case {repeat}',
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
