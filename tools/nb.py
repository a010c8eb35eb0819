"""Runs the notebooks, each in a fresh process with one torch thread.

    python tools/nb.py test  [NB ...]   execute
    python tools/nb.py run   [NB ...]   execute and save the outputs in the notebook
    python tools/nb.py fresh [NB ...]   execute and compare with the saved outputs
    python tools/nb.py readme [--check] write README.md from nbs/index.ipynb, or say whether it is in step

Cells marked `#| eval: false` are skipped, and so are those with a flag from tst_flags in settings.ini unless --flags names it.
`fresh` compares text exactly, numbers within 5 % (or both below 1e-6), pictures and HTML by kind, and cells marked `#| volatile` by kind.
"""
import argparse, base64, io, json, math, os, re, signal, subprocess, sys, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
nbs = root/cfg['nbs_path']

# ---- notebooks as files -------------------------------------------------------------------------------------------------

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
        if m := re.match(r'\s*#\s*\|\s*([^\s:]+):?\s*(.*)', line):
            found[m[1]] = m[2].strip()
        elif line.strip() and not line.startswith('%%'):
            break
    return found

def skipped(cell, run_flags):
    f = flags(cell)
    return (cell['cell_type'] != 'code' or 'nbdev_export(' in text(cell['source'])
            or f.get('eval', '').lower() == 'false'
            or bool((set(cfg['tst_flags'].split()) - set(run_flags)) & f.keys()))

# ---- one notebook, in this process --------------------------------------------------------------------------------------

address = re.compile(r'(<.*?) at 0x[0-9a-fA-F]+(>)')

def lighter(png):
    "A picture in its own 256 colours, if that takes fewer bytes: nobody sees a difference, and a notebook is half as long."
    from PIL import Image
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA'), io.BytesIO()
    flat = Image.new('RGB', picture.size, 'white')
    flat.paste(picture, mask=picture.getchannel('A'))
    flat.quantize(256, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    new = base64.b64encode(out.getvalue()).decode()
    return new if len(new) < .9*len(png) else png

def tidy(out):
    "One output as nbdev_clean leaves it: no counts, no addresses in reprs, no volatile metadata; and no places on this machine."
    strip = lambda x: [
        address.sub(r'\1\2', l)
        for l in text(x).replace(str(root), '/path/to/ddpm_lit').splitlines(True)
    ]
    if out['output_type'] == 'stream':
        return dict(out, text=strip(out['text']))
    # a PIL image offers both
    once = {
        k: v for k, v in out['data'].items() if k != 'image/jpeg' or 'image/png' not in out['data']
    }
    data = {
        k: strip(v) if k.startswith('text/') else lighter(v)
        if k == 'image/png' else v.rstrip() if isinstance(v, str) and 'svg' not in k else v
        for k, v in once.items()
    }
    return dict(out, data=data, metadata={},
                **({'execution_count': None} if out['output_type'] == 'execute_result' else {}))

def execute(path, run_flags):
    "Execute as nbdev_test does, in the notebook's folder; returns [(cell, outputs)] of the cells that ran, and the error if one failed."
    from execnb.shell import CaptureShell, _out_nb, format_exc
    shell = CaptureShell(path, mpl_format='png')
    # the plain traceback is enough
    shell.showtraceback = shell.showsyntaxerror = lambda *a, **k: None
    os.chdir(path.parent)
    done = []
    for cell in read(path)['cells']:
        if skipped(cell, run_flags):
            continue
        source = text(cell['source'])
        # the comment keeps prints, which execnb drops after a final ;
        got = shell.run_cell(source + '\n#')
        got.quiet = source.rstrip().endswith(';')
        if got.exception:
            trace = ''.join(format_exc(got.exception))
            return done, f"cell {cell['id']}\n{source}\n\n{got.stdout}{got.stderr}{trace}"
        done.append((cell, [tidy(o) for o in _out_nb(got, shell.display_formatter)]))
    return done, None

def execute_plainly(path, run_flags):
    "The same without outputs, where IPython is not to be had."
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    space = dict(__name__='__main__', display=lambda *a, **k: None)
    for cell in read(path)['cells']:
        if skipped(cell, run_flags):
            continue
        try:
            exec(compile(text(cell['source']), f"<cell {cell['id']}>", 'exec'), space)
        except Exception:
            return [], f"cell {cell['id']}\n{text(cell['source'])}\n\n{traceback.format_exc()}"
    return [], None

def child(mode, path, run_flags):
    "The work of the fresh process: prints its report; exit status 0 if all is well."
    path = Path(path)
    plain = mode == 'test' and not find_spec('execnb')
    done, error = (execute_plainly if plain else execute)(path, run_flags)
    if error:
        print(error)
        return 1
    if mode == 'run':
        nb = read(path)
        new = {cell['id']: outputs for cell, outputs in done}
        for cell in nb['cells']:
            if cell['cell_type'] != 'code':
                continue
            cell['execution_count'] = None
            # skipped cells keep what was saved
            cell['outputs'] = new.get(cell['id'], cell['outputs'])
        save(nb, path)
    diffs = [d for cell, outputs in done for d in compare(cell, outputs)] if mode == 'fresh' else []
    print('\n'.join(diffs))
    return bool(diffs)

# ---- saved against fresh ------------------------------------------------------------------------------------------------

number = re.compile(r'[ \t]*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)')

def normal(s):
    "Without what differs between machines: addresses, installed packages' places, temporary files."
    s = re.sub(r' at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}|[^\s\'"]*(?=/site-packages/)', '', text(s))
    return re.sub(rf'(?:{re.escape(tempfile.gettempdir())}|/tmp)/[^\s\'",:)\]]+', '<temporary>',
                  s).rstrip()

def same(a, b):
    "Words equal; numbers within 5 % or both below 1e-6."
    a, b = number.split(normal(a)), number.split(normal(b))
    near = lambda x, y: math.isclose(x, y, rel_tol=.05) or max(abs(x), abs(y)) < 1e-6
    return a[::2] == b[::2] and all(near(float(x), float(y)) for x, y in zip(a[1::2], b[1::2]))

def kind(out):
    return ' '.join([out['output_type'], out.get('name', ''), *sorted(out.get('data', {}))])

def compare(cell, fresh):
    "What differs between a cell's saved outputs and `fresh`, as sentences."
    saved, where = cell['outputs'], f"cell {cell['id']}: "
    if [*map(kind, saved)] != [*map(kind, fresh)]:
        yield f'{where}saved outputs are {[*map(kind, saved)]}, fresh ones {[*map(kind, fresh)]}'
    elif 'volatile' not in flags(cell):
        for a, b in zip(saved, fresh):
            pairs = [(a['text'], b['text'])
                     ] if 'text' in a else [(a['data'][k], b['data'][k])
                                            for k in a['data']
                                            if k.startswith('text/') and k != 'text/html']
            for x, y in pairs:
                if same(x, y):
                    continue
                x, y = normal(x).splitlines(), normal(y).splitlines()
                i = next((i for i, (p, q) in enumerate(zip(x, y)) if not same(p, q)),
                         min(len(x), len(y)))
                line = lambda l: l[i] if i < len(l) else '(nothing)'
                yield f'{where}line {i + 1} of its output\n    saved: {line(x)}\n    fresh: {line(y)}'

# ---- all notebooks ------------------------------------------------------------------------------------------------------

# process groups, so that an interrupt ends them too
running = set()

def fresh_process(mode, path, run_flags, timeout):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(
        filter(None, [str(root), os.environ.get('PYTHONPATH')])), IN_TEST='1', PYTHONHASHSEED='0',
               **{v + '_NUM_THREADS': '1' for v in ('OMP', 'MKL', 'OPENBLAS')})
    p = subprocess.Popen(
        [sys.executable, __file__, 'child-' + mode,
         str(path), '--flags', ' '.join(run_flags)], env=env, text=True, encoding='utf-8',
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True)
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
    if missing := [n for n in names if not Path(n).is_file()]:
        print(f'no such notebook: {", ".join(missing)}')
        sys.exit(2)
    return [Path(n).resolve() for n in names] or [
        p for p in sorted(nbs.rglob('*.ipynb')) if not any(s[0] in '._'
                                                           for s in p.relative_to(nbs).parts)
    ]

def run_all(mode, paths, run_flags, workers, timeout):
    def one(path):
        start = time.time()
        ok, report = fresh_process(mode, path, run_flags, timeout)
        print(
            f'{"passed" if ok else "FAILED"} {path.name} ({time.time() - start:.0f} s)' +
            ('' if ok else '\n    ' + report.replace('\n', '\n    ')), flush=True)
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

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        'mode',
        choices=['test', 'run', 'fresh', 'readme', 'child-test', 'child-run',
                 'child-fresh'], metavar='test|run|fresh|readme')
    p.add_argument('notebooks', nargs='*', metavar='NB', help='paths; all of nbs/ if none is given')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--timeout', type=float, default=600, help='seconds for one notebook')
    p.add_argument('--flags', default='', help='flags whose cells run too, for example "gpu slow"')
    p.add_argument('--check', action='store_true',
                   help='readme: write nothing, fail if out of step')
    a = p.parse_intermixed_args()
    if a.mode == 'readme':
        from readme import readme
        sys.exit(readme(a.check))
    if a.mode.startswith('child-'):
        sys.exit(child(a.mode[6:], a.notebooks[0], a.flags.split()))
    if not (paths := find(a.notebooks)):
        print(f'no notebook found in {nbs}')
        sys.exit(2)
    sys.exit(run_all(a.mode, paths, a.flags.split(), a.workers, a.timeout))
