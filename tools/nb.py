"""Runs the notebooks, each in a fresh process with one torch thread.

    python tools/nb.py test  [NB ...]    execute
    python tools/nb.py run   [NB ...]    execute and save the outputs in the notebook
    python tools/nb.py fresh [NB ...]    execute and compare with the saved outputs
    python tools/nb.py together [NB ...] execute all in one process, in a shuffled order
    python tools/nb.py types [NB ...]    types of whole notebooks by mypy; without names the heart's
    python tools/nb.py readme            write README.md from nbs/index.ipynb
    python tools/nb.py readme --check    say whether it is in step
    python tools/nb.py export            nbdev_export, and names
    python tools/nb.py names             write ddpm_lit/names.json, which module adds which name
    python tools/nb.py names --check     say whether it is in step

`--processor NAME` computes as another kind of processor would: sse4, avx2 or avx512, without
bfloat16.

Cells marked `#| eval: false` are skipped, and so are those with a flag from tst_flags in
settings.ini unless --flags names it. `fresh` compares text exactly, numbers within 5 % (or none
above 1e-5), pictures and HTML by kind, and cells marked `#| volatile` by kind; what a cell marked
`#| unsaved` shows is built from other notebooks, and never saved. The error at the
end of a check's line is not compared: the check bounds it, and rounding differs between machines.
"""
import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
nbs = root/cfg['nbs_path']

# ---- notebooks as files -----------------------------------------------------------------------


def read(path):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def text(x):
    return x if isinstance(x, str) else ''.join(x)


def replace(path, data: bytes):
    "Write beside, then replace: a reader never sees half a file."
    tmp = path.with_name(path.name + '.tmp')
    tmp.write_bytes(data)
    os.replace(tmp, path)


def save(nb, path):
    replace(path, (json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n').encode())


def flags(cell):
    "nbdev's directives: the `#| name args` lines above a cell's code, as {name: args}."
    found = {}
    for line in text(cell['source']).splitlines():
        m = re.match(r'\s*#\s*\|\s*([^\s:]+):?\s*(.*)', line)
        if m:
            found[m[1]] = m[2].strip()
        elif line.strip() and not line.startswith('%%'):
            break
    return found


def skipped(cell, run_flags):
    "Whether a cell is not run: not code, not evaluated, or with a flag that was not asked for."
    if cell['cell_type'] != 'code' or 'nbdev_export(' in text(cell['source']):
        return True
    found = flags(cell)
    left_out = set(cfg['tst_flags'].split()) - set(run_flags)
    return found.get('eval', '').lower() == 'false' or bool(left_out & found.keys())


# ---- other processors -------------------------------------------------------------------------

# what makes torch and its libraries use the instructions of another processor
PROCESSORS = {
    'sse4': dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41', MKL_CBWR='COMPATIBLE'),
    'avx2': dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2', MKL_CBWR='AVX2'),
    'avx512': dict(ATEN_CPU_CAPABILITY='avx512', ONEDNN_MAX_CPU_ISA='AVX512_CORE',
                   MKL_CBWR='AVX512')}


# ---- one notebook, in this process ------------------------------------------------------------

address = re.compile(r'(<.*?) at 0x[0-9a-fA-F]+(>)')


def without_places(x):
    "Lines of an output without addresses in reprs, and without places on this machine."
    lines = text(x).replace(str(root), '/path/to/ddpm_lit').splitlines(True)
    return [address.sub(r'\1\2', line) for line in lines]


def tidy_value(kind, value):
    "One representation of an output, such as its text/plain."
    if kind.startswith('text/'):
        return without_places(value)
    return value.rstrip() if isinstance(value, str) and 'svg' not in kind else value


def tidy(out):
    "One output as nbdev_clean leaves it: without counts, addresses and volatile metadata."
    if out['output_type'] == 'stream':
        return dict(out, text=without_places(out['text']))

    data = dict(out['data'])
    if 'image/png' in data:
        data.pop('image/jpeg', None)  # a PIL image offers both
    data = {kind: tidy_value(kind, value) for kind, value in data.items()}
    count = {'execution_count': None} if out['output_type'] == 'execute_result' else {}
    return dict(out, data=data, metadata={}, **count)


def silent(*given, **named):
    "What stands in for a function that prints."


def run_cell(shell, source):
    "Run a cell's source: what execnb caught, and the outputs, none after an error."
    from execnb.shell import _out_nb
    # the comment keeps prints, which execnb drops after a final ;
    got = shell.run_cell(source + '\n#')
    got.quiet = source.rstrip().endswith(';')
    if got.exception:
        return got, []
    return got, [tidy(o) for o in _out_nb(got, shell.display_formatter)]


def execute(path, run_flags):
    "Run as nbdev_test does, in the notebook's folder: [(cell, outputs)] of what ran, and an error."
    from execnb.shell import CaptureShell, format_exc
    shell = CaptureShell(path, mpl_format='png')
    # the plain traceback is enough
    shell.showtraceback = shell.showsyntaxerror = silent
    os.chdir(path.parent)

    done = []
    for cell in read(path)['cells']:
        if skipped(cell, run_flags):
            continue
        source = text(cell['source'])
        got, outputs = run_cell(shell, source)
        if got.exception:
            trace = ''.join(format_exc(got.exception))
            return done, f"cell {cell['id']}\n{source}\n\n{got.stdout}{got.stderr}{trace}"
        done.append((cell, outputs))
    return done, None


def keep_outputs(folder):
    "From now on what nbdev_test runs in this process leaves its outputs in a folder."
    from execnb.shell import CaptureShell

    def run_all(shell, notebook, preproc, **_):  # as execnb's: all cells up to the first error
        done = []
        for cell in notebook.cells:
            if not preproc(cell):
                shell._cell_idx = cell.idx_ + 1
                got, outputs = run_cell(shell, cell.source)
                shell.exc = got.exception
                if shell.exc:
                    raise shell.exc from None
                done.append((cell.id, outputs))
        name = Path(notebook.path_).with_suffix('.json').name
        Path(folder, name).write_text(json.dumps(done), encoding='utf-8')

    CaptureShell.run_all = run_all


def compare_kept(folder, paths):
    "Print which notebooks have the outputs that are saved in them; (as saved, all)."
    good = 0
    for path in paths:
        kept = Path(folder, path.with_suffix('.json').name)
        if kept.is_file():
            saved = {cell['id']: cell for cell in read(path)['cells']}
            done = json.loads(kept.read_text(encoding='utf-8'))
            diffs = [d for name, outputs in done for d in compare(saved[name], outputs)]
        else:
            diffs = ['it did not run to its end']
        good += not diffs
        if diffs:
            print(f'OUTPUTS DIFFER {path.name}\n    ' + '\n'.join(diffs).replace('\n', '\n    '))
    return good, len(paths)


def execute_plainly(path, run_flags):
    "The same without outputs, where IPython is not to be had."
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    space = dict(__name__='__main__', display=lambda *a, **k: None)
    for cell in read(path)['cells']:
        if skipped(cell, run_flags):
            continue
        source = text(cell['source'])
        try:
            exec(compile(source, f"<cell {cell['id']}>", 'exec'), space)
        except Exception:
            return [], f"cell {cell['id']}\n{source}\n\n{traceback.format_exc()}"
    return [], None


def save_outputs(path, done):
    "Put fresh outputs into a notebook; what was skipped, or looks the same, stays as it was saved."
    from pictures import kept
    nb = read(path)
    new = {cell['id']: outputs for cell, outputs in done}
    for cell in nb['cells']:
        if cell['cell_type'] == 'code':
            cell['execution_count'] = None
            if cell['id'] in new:
                shown = [] if 'unsaved' in flags(cell) else new[cell['id']]
                cell['outputs'] = kept(cell['outputs'], shown)
    save(nb, path)


def used():
    "Seconds of the processor and the most memory of this process and those that it ran."
    try:
        import resource
    except ImportError:  # not on Windows
        return ''
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    own, others = (resource.getrusage(who) for who in whose)
    seconds = sum(u.ru_utime + u.ru_stime for u in (own, others))
    return f'{seconds:.0f} s of the processor, {own.ru_maxrss/1e6:.1f} GB'


def child(mode, path, run_flags):
    "The work of the fresh process: prints its report; exit status 0 if all is well."
    path = Path(path)
    plain = mode == 'test' and not find_spec('execnb')
    done, error = (execute_plainly if plain else execute)(path, run_flags)
    if error:
        print(error)
        return 1
    if mode == 'run':
        save_outputs(path, done)
    diffs = []
    if mode == 'fresh':
        diffs = [d for cell, outputs in done for d in compare(cell, outputs)]
    print('\n'.join(diffs))
    print(used())
    return bool(diffs)


# ---- saved against fresh ----------------------------------------------------------------------

number = re.compile(r'[ \t]*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)')


def normal(s):
    "Without what differs between machines: addresses, places of packages, temporary files."
    s = re.sub(r' at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}|[^\s\'"]*(?=/site-packages/)', '', text(s))
    temporary = rf'(?:{re.escape(tempfile.gettempdir())}|/tmp)/[^\s\'",:)\]]+'
    return re.sub(temporary, '<temporary>', s).rstrip()


def near(a, b):
    return math.isclose(a, b, rel_tol=.05) or max(abs(a), abs(b)) <= 1e-5


# what `passed` prints after a claim, and what `close` returns at the end of a cell
rounding = re.compile(r'(?m)^(✓ .*): (?:exact|error \d+e[-+]\d+)(?=$| \()')
returned = re.compile(r'(?m)^\d\.\de[-+]\d\d$')


def errors(parts):
    "For each number of a text split at its numbers: its error, if the text gives one (a ± e)."
    numbers, between = [*map(float, parts[1::2])], [t.strip() for t in parts[2::2]]
    return [e if t == '±' else 0. for t, e in zip(between, [*numbers[1:], 0.])]


def same(a, b):
    """Words equal, but for errors of checks; numbers within 5 %, or none above 1e-5, or within
    a quarter of the error that the text gives them."""
    a, b = (returned.sub('error', rounding.sub(r'\1', normal(v))) for v in (a, b))
    a, b = number.split(a), number.split(b)
    numbers = zip(map(float, a[1::2]), map(float, b[1::2]), errors(a))
    return a[::2] == b[::2] and all(near(x, y) or abs(x - y) <= e/4 for x, y, e in numbers)


def kind(out):
    return ' '.join([out['output_type'], out.get('name', ''), *sorted(out.get('data', {}))])


def texts(out):
    "The texts of an output that are compared: {kind: text}."
    if 'text' in out:
        return {'stream': out['text']}
    return {k: v for k, v in out['data'].items() if k.startswith('text/') and k != 'text/html'}


def first_difference(saved, fresh):
    "The first line that differs: its number, and what it is on both sides."
    saved, fresh = normal(saved).splitlines(), normal(fresh).splitlines()
    pairs = enumerate(zip(saved, fresh))
    i = next((i for i, (x, y) in pairs if not same(x, y)), min(len(saved), len(fresh)))
    return i + 1, *(lines[i] if i < len(lines) else '(nothing)' for lines in (saved, fresh))


def compare(cell, fresh):
    "What differs between a cell's saved outputs and `fresh`, as sentences."
    if 'unsaved' in flags(cell):
        if cell['outputs']:
            yield f"cell {cell['id']}: it is marked `#| unsaved`, and has saved outputs"
        return
    saved = cell['outputs']
    where = f"cell {cell['id']}: "
    kinds = [*map(kind, saved)], [*map(kind, fresh)]
    if kinds[0] != kinds[1]:
        yield f'{where}saved outputs are {kinds[0]}, fresh ones {kinds[1]}'
        return
    if 'volatile' in flags(cell):
        return
    for old, new in zip(map(texts, saved), map(texts, fresh)):
        for k in old:
            if not same(old[k], new[k]):
                line, was, now = first_difference(old[k], new[k])
                yield f'{where}line {line} of its output\n    saved: {was}\n    fresh: {now}'


# ---- all notebooks ----------------------------------------------------------------------------

# process groups, so that an interrupt ends them too
running = set()


def fresh_process(mode, path, run_flags, timeout):
    "Run a notebook in a process of its own: (whether all is well, its report)."
    env = dict(os.environ, IN_TEST='1', PYTHONHASHSEED='0')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env.update({v + '_NUM_THREADS': '1' for v in ('OMP', 'MKL', 'OPENBLAS')})
    command = [sys.executable, __file__, 'child-' + mode, str(path), '--flags', ' '.join(run_flags)]
    p = subprocess.Popen(command, env=env, text=True, encoding='utf-8', stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    running.add(p.pid)
    try:
        report = p.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        return False, f'stopped after {timeout:g} s: it takes longer than --timeout allows'
    finally:
        running.discard(p.pid)
    return p.returncode == 0, report.strip() or f'the process ended with status {p.returncode}'


def find(names):
    "The notebooks of these names; all of them if none is named."
    missing = [n for n in names if not Path(n).is_file()]
    if missing:
        print(f'no such notebook: {", ".join(missing)}')
        sys.exit(2)
    if names:
        return [Path(n).resolve() for n in names]
    # those in nbs/rooms only name modules: nothing in them is run
    return [p for p in sorted(nbs.glob('*.ipynb')) if p.name[0] not in '._']


def run_all(mode, paths, run_flags, workers, timeout):
    def one(path):
        start = time.time()
        ok, report = fresh_process(mode, path, run_flags, timeout)
        *report, cost = report.splitlines() or ['']
        report = '\n'.join(report if ok or cost.endswith(' GB') else [*report, cost])
        cost = f'; {cost}' if cost.endswith(' GB') else ''
        line = f'{"passed" if ok else "FAILED"} {path.name} ({time.time() - start:.0f} s{cost})'
        if not ok:
            line += '\n    ' + report.replace('\n', '\n    ')
        print(line, flush=True)
        return ok

    pool = ThreadPoolExecutor(workers)
    try:
        good = list(pool.map(one, paths))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for pid in running:
            os.killpg(pid, signal.SIGKILL)
        sys.exit('stopped')
    print(f'{sum(good)} passed, {len(good) - sum(good)} failed')
    return not all(good)


def together(paths, run_flags, seed):
    "Run notebooks in this process, as a worker of nbdev_test does: what one leaves meets the next."
    from nbdev.test import test_nb
    os.environ.update({v + '_NUM_THREADS': '1' for v in ('OMP', 'MKL', 'OPENBLAS')})
    random.Random(seed).shuffle(paths)
    left_out = [flag for flag in cfg['tst_flags'].split() if flag not in run_flags]
    good = 0
    for path in paths:
        ok, seconds = test_nb(path, skip_flags=left_out, basepath=root)
        good += ok
        print(f'{"passed" if ok else "FAILED"} {path.name} ({seconds:.0f} s)', flush=True)
    print(f'{good} passed, {len(paths) - good} failed')
    return good < len(paths)


heart = re.compile(r'^#\| *default_exp (core|diffusion|guide|nets)\.', re.M)


def check_types(paths):
    "mypy on the notebooks' cells, the checks too; it names the notebook, the cell and the line."
    command = 'mypy --config-file .mypy_notebooks.ini'
    return subprocess.run(['nbqa', command, *map(str, paths)], cwd=root).returncode


def export():
    "The modules by nbdev, then their names, which are read from the modules."
    status = subprocess.run(['nbdev_export'], cwd=root).returncode
    if status:
        return status
    from names import write_names
    return write_names(check=False)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    shown = ['test', 'run', 'fresh', 'together', 'types', 'readme', 'export', 'names']
    modes = [*shown, 'child-test', 'child-run', 'child-fresh']
    p.add_argument('mode', choices=modes, metavar='|'.join(shown))
    p.add_argument('notebooks', nargs='*', metavar='NB', help='paths; all of nbs/ if none is given')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--timeout', type=float, default=600, help='seconds for one notebook')
    p.add_argument('--flags', default='', help='flags whose cells run too, for example "gpu slow"')
    p.add_argument('--processor', choices=PROCESSORS, help='compute as another kind of processor')
    p.add_argument('--seed', type=int, default=0, help='together: of the order')
    p.add_argument('--check', action='store_true',
                   help='readme, names: write nothing, fail if out of step')
    a = p.parse_intermixed_args()
    if a.mode == 'readme':
        from readme import readme
        return readme(a.check)
    if a.mode == 'export':
        return export()
    if a.mode == 'names':
        from names import write_names
        return write_names(a.check)
    if a.mode.startswith('child-'):
        return child(a.mode.removeprefix('child-'), a.notebooks[0], a.flags.split())
    os.environ.update(PROCESSORS.get(a.processor, {}))
    paths = find(a.notebooks)
    if not paths:
        print(f'no notebook found in {nbs}')
        return 2
    if a.mode == 'together':
        return together(paths, a.flags.split(), a.seed)
    if a.mode == 'types':
        given = a.notebooks
        return check_types([path for path in paths
                            if given or any(heart.search(text(cell['source']))
                                            for cell in read(path)['cells'])])
    return run_all(a.mode, paths, a.flags.split(), a.workers, a.timeout)


if __name__ == '__main__':
    sys.exit(main())
