# %%NBQA-CELL-SEP15d533
#| default_exp core.check


# %%NBQA-CELL-SEP15d533
#| export
import contextlib
import ctypes
import gc
import json
import os
import platform
import random
import sys
import warnings
import weakref
from pathlib import Path
from types import ModuleType
from typing import Callable
import torch
from torch import Tensor
from ddpm_lit import __version__
from ddpm_lit.core.files import data_dir, read_json, replacing
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP15d533
# Figure 00.2: what a check consists of
import subprocess
from pathlib import Path
from ddpm_lit import show

claim, code = 'claim:\nEq. 12.4', "the book's code"
reference = 'a reference that does\nnot use this code'
compared = 'close: the largest\ndifference (00.1)'
boxes = {claim: (.55, 1.), code: (2.3, 1.55), reference: (2.3, .45), compared: (4.35, 1.),
         'a line with ✓': (6.2, 1.6), 'the notebook stops': (6.2, .4)}
arrows = [(claim, code, ''), (claim, reference, ''), (code, compared, ''),
          (reference, compared, ''), (compared, 'a line with ✓', 'small'),
          (compared, 'the notebook stops', 'large')]
inks = {code: 'model', 'the notebook stops': 'guidance'}
show.diagram(boxes, arrows, inks=inks).figure.set_dpi(160)


# %%NBQA-CELL-SEP15d533
#| export
class _Error(float):
    "A number that shows itself with two digits, as errors should be shown."

    def __repr__(self):
        return f'{float(self):.1e}'


def close(
    a,  # a tensor or number
    b,  # what it should be: the same shape, or one number
    tol=1e-9,  # the largest difference allowed
) -> _Error:  # the largest difference found
    "Assert that `a` equals `b` up to `tol`, and return the largest error. Eq. 00.1."
    def in_float64(v):
        if isinstance(v, Tensor):
            return v.detach().cpu().double()
        return torch.as_tensor(v, dtype=torch.float64)

    a = in_float64(a)
    b = in_float64(b)
    assert b.ndim == 0 or a.shape == b.shape, (
        f'shapes differ: {tuple(a.shape)} and {tuple(b.shape)}')

    # equal infinities differ by nothing; a NaN makes the error NaN, which is never <= tol
    err = torch.where(a == b, 0., (a - b).abs()).max().item()
    assert err <= tol, f'the largest error is {err:.3g}, more than {tol:g}'
    return _Error(err)


def redrawn(again: Tensor,  # [n] what a sampler gives again, one number for each sample
            stored,         # [m] what it gave when the numbers were stored, m >= n
            ) -> _Error:
    "Assert that samples are the stored ones, up to a quarter of how far samples differ."
    # many steps enlarge rounding, which differs between processors; other weights or
    # another seed give other samples, and n of them pass by chance once in 7^n trials
    stored = torch.as_tensor(stored)
    return close(again, stored[:len(again)], max(.25*stored.std().item(), .02))


# %%NBQA-CELL-SEP15d533
#| export
def passed(claim: str, *errors: float, by: str = ''):
    "One line for the reader: what was checked, the largest error, and against what."
    line = f'✓ {claim}'
    if errors:
        worst = max(map(float, errors))
        line += f': error {worst:.0e}' if worst else ': exact'
    print(f'{line} ({by})' if by else line)


# %%NBQA-CELL-SEP15d533
# What `passed` prints: a claim, the largest of its errors with one digit, and what it was
# compared with
passed('(12.4) the mean of the posterior', 3e-16, 7e-16, by='brute force')
passed('both are the same', close(2, 2))
passed('no error to tell')


# %%NBQA-CELL-SEP15d533
# Eq. 00.1: against differences worked out by hand; NaN and a wrong shape must not pass
import math

x = torch.tensor([1., 2., 4.])
assert close(x, torch.tensor([1., 2.5, 3.75]), tol=.5) == .5
for wrong in (torch.tensor([1., 2., math.nan]), torch.ones(1, 3),
              torch.tensor([1., 2., 4.2])):
    try:
        close(x, wrong, tol=.1)
    except AssertionError as e:
        print(e)
    else:
        raise RuntimeError('a wrong result passed')

assert close(torch.tensor([-math.inf, 1]), [-math.inf, 1.]) == 0
third = torch.tensor(1, dtype=torch.float64)/3
close(third, 1/3, tol=1e-16)

# samples that rounding has moved are the stored ones; those of another seed are not
torch.manual_seed(1)
stored = torch.randn(5)
assert redrawn(stored[:3] + .1*stored.std(), stored.tolist()) > 0
others = 0
for _ in range(1000):
    with contextlib.suppress(AssertionError):
        redrawn(torch.randn(3), torch.randn(5))
        others += 1
assert others < 20, others


# %%NBQA-CELL-SEP15d533
#| export
@contextlib.contextmanager
def expect_fail(
    words='',  # must occur in the message
    kind=Exception,  # the type of error expected
    show=True,  # print the message
):
    "Run a block that must raise `kind` with `words` in its message, and print it."
    try:
        yield
    except kind as e:
        assert words in str(e), f'it failed with another message: {e}'
        if show:
            print(f'{type(e).__name__}: {e}')
    else:
        raise AssertionError(f'nothing failed, though "{words}" was expected')


# %%NBQA-CELL-SEP15d533
with expect_fail('more than 1e-09'):
    close(torch.ones(2), 1 + 1e-3)
with expect_fail('more than 1e-09', show=False):  # says nothing
    close(torch.ones(2), 1 + 1e-3)
with expect_fail('nothing failed', AssertionError):
    with expect_fail('anything'):
        pass
with expect_fail('another message', AssertionError):
    with expect_fail('rain'):
        raise Problem('It snows: take a coat.')


# %%NBQA-CELL-SEP15d533
#| export
def keep_memory():
    "Let freed memory serve the next tensor: the system zeroes all that it hands out."
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if libc is not None and hasattr(libc, 'mallopt'):  # glibc has it
        libc.mallopt(-3, 2**30)   # M_MMAP_THRESHOLD: only larger blocks are mapped alone
        libc.mallopt(-1, 2**29)   # M_TRIM_THRESHOLD: so much may stay free at the end


def give_memory_back():
    "Return what is free to the system."
    gc.collect()
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if libc is not None and hasattr(libc, 'malloc_trim'):  # glibc has it
        libc.malloc_trim(0)


# %%NBQA-CELL-SEP15d533
# Where glibc is, a large tensor takes the place of the one before it: no new pages are asked for.
# A new process, so that nothing else that runs here lies in between
program = """
import resource, torch
from ddpm_lit.core.check import keep_memory
keep_memory()
for _ in range(10):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""
if sys.platform == 'linux' and hasattr(ctypes.CDLL(None), 'mallopt'):
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    ran = subprocess.run([sys.executable, '-c', program], env=os.environ | dict(PYTHONPATH=paths),
                         capture_output=True, text=True, check=True)
    faults = [*map(int, ran.stdout.split())]
    assert len(faults) == 10 and sum(faults[1:]) < 100, faults
    passed('after the first, nine tensors of 40 MB ask the system for no memory')


# %%NBQA-CELL-SEP15d533
# What is given back is no longer the process's
if sys.platform == 'linux' and hasattr(ctypes.CDLL(None), 'malloc_trim'):
    def resident():
        return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')

    keep_memory()
    held = [torch.ones(25_000) for _ in range(2000)]  # 200 MB in small pieces
    most = resident()
    del held
    give_memory_back()
    assert resident() < most - 150e6
    passed('200 MB in small pieces go back to the system')


# %%NBQA-CELL-SEP15d533
#| export
# the process as it was before its first notebook, and the notebook that began last
_first = dict(os.environ), [*sys.path], [*warnings.filters]
_begun: Callable = object  # a weak reference to its `__main__`


def forget_notebook(notebook: ModuleType):  # its `__main__`
    "Undo what a notebook left in this process: names, caches, figures, settings."
    # its shell outlives it, and would keep all that it defined
    vars(notebook).clear()

    for name, module in [*sys.modules.items()]:
        if name.startswith('ddpm_lit_plugin_'):
            del sys.modules[name]
        elif name.split('.')[0] == 'ddpm_lit':
            for thing in [*vars(module).values()]:
                # registries forget, and functions have their cache cleared
                if hasattr(type(thing), 'forget'):
                    thing.forget()
                elif hasattr(type(thing), 'cache_clear'):
                    thing.cache_clear()

    environment, path, filters = _first
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    warnings.resetwarnings()
    vars(warnings)['filters'].extend(filters)
    torch.set_grad_enabled(True)
    torch.set_default_device(None)

    if 'matplotlib.pyplot' in sys.modules:
        import matplotlib.pyplot as plt
        plt.close('all')
        plt.rcdefaults()
    give_memory_back()


def setup():
    "Start a notebook: seed, float32, one thread, the book's figure style."
    global _begun
    notebook = sys.modules['__main__']
    before = _begun()
    if isinstance(before, ModuleType) and before is not notebook:
        forget_notebook(before)
    _begun = weakref.ref(notebook)

    torch.manual_seed(0)
    random.seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    keep_memory()

    import matplotlib as mpl
    mpl.rcParams.update({
        'figure.figsize': (7, 3), 'figure.dpi': 80, 'savefig.bbox': 'tight',
        'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False,
        'axes.titlesize': 9, 'legend.frameon': False, 'image.cmap': 'gray'})


def budget(quick, full):
    "`quick`, or `full` where the environment says DDPM_LIT_BUDGET=full."
    choice = os.environ.get('DDPM_LIT_BUDGET', 'quick')
    if choice not in ('quick', 'full'):
        raise Problem(f'DDPM_LIT_BUDGET is "{choice}": set it to quick or full.')
    return full if choice == 'full' else quick


# %%NBQA-CELL-SEP15d533
import functools
import unittest.mock as mock

with mock.patch.dict(os.environ, DDPM_LIT_BUDGET='full'):
    assert budget(1, 2) == 2
with mock.patch.dict(os.environ, DDPM_LIT_BUDGET='quick'):
    assert budget(1, 2) == 1
with mock.patch.dict(os.environ, DDPM_LIT_BUDGET='slow'):
    with expect_fail('set it to quick or full', Problem):
        budget(1, 2)

torch.set_default_dtype(torch.float64)
setup()
a = torch.rand(3)
setup()
passed('after `setup()` random numbers begin anew', close(a, torch.rand(3), tol=0))


# %%NBQA-CELL-SEP15d533
# A notebook leaves nothing to the next: names, caches, figures and settings of one are gone when
# the next calls `setup`, and a second call in one notebook undoes none of its own
import matplotlib.pyplot as plt
from ddpm_lit.core import check, registry


def left():
    "What of the first notebook is still there."
    there = dict(name='mine' in registry.SHADES, cache=registry.tint.cache_info().currsize > 0,
                 plugin='ddpm_lit_plugin_mine' in sys.modules, figure=bool(plt.get_fignums()),
                 variable='DDPM_LIT_TRIAL' in os.environ, path='nowhere' in sys.path,
                 warning=warnings.filters[0][0] == 'error', gradient=not torch.is_grad_enabled(),
                 precision=torch.get_default_dtype() == torch.float64,
                 threads=torch.get_num_threads() > 1, style=plt.rcParams['lines.linewidth'] == 7)
    return {name for name, found in there.items() if found}


def use_all():
    "Leave something of each kind."
    registry.SHADES.add('mine', 1)
    registry.tint(1)
    sys.modules['ddpm_lit_plugin_mine'] = ModuleType('ddpm_lit_plugin_mine')
    plt.figure()
    os.environ['DDPM_LIT_TRIAL'] = '1'
    sys.path.append('nowhere')
    warnings.simplefilter('error')
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    plt.rcParams['lines.linewidth'] = 7


kept = {'name', 'cache', 'plugin', 'figure', 'variable', 'path', 'warning', 'gradient', 'style'}
added = dict(SHADES=registry.Registry('shade'), tint=functools.cache(str))
this = sys.modules['__main__']
first, second = ModuleType('__main__'), ModuleType('__main__')
with mock.patch.dict(vars(registry), added), mock.patch.dict(sys.modules, __main__=first):
    check.setup()
    use_all()
    first.held = torch.ones(3)
    assert len(left()) == 11
    check.setup()
    assert left() == kept, left() ^ kept  # the same notebook: dtype and threads alone
    sys.modules['__main__'] = second
    check.setup()
    assert not left() and not hasattr(first, 'held'), left()
    sys.modules['__main__'] = this
    check.setup()
passed('the next notebook finds nothing of the one before', by='eleven kinds of things')


# %%NBQA-CELL-SEP15d533
#| export
def pick_device(name: str = 'auto') -> torch.device:
    "The device of a command: 'auto' is a CUDA GPU if there is one, else the CPU."
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        # on meta there are no numbers
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError,
            ImportError) as e:
        raise Problem(f'There is no device "{name}" here: '
                      'choose cpu or auto.') from e
    return torch.device(name)


# %%NBQA-CELL-SEP15d533
assert pick_device('cpu') == torch.device('cpu')
assert pick_device().type in ('cpu', 'cuda')
for name in ('abacus', 'meta', ''):
    with expect_fail('choose cpu or auto', Problem):
        pick_device(name)


# %%NBQA-CELL-SEP15d533
#| export
def machine(device: torch.device = torch.device('cpu')) -> dict:
    "Where something ran: processor, cores, threads, versions, device."
    # Linux names the processor in a file, other systems by a call
    names = []
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                names.append(line.split(':')[1].strip())

    on_gpu = device.type == 'cuda'
    return dict(
        processor=names[0] if names else platform.processor() or platform.machine(),
        cores=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__,
        ddpm_lit=__version__,
        device=torch.cuda.get_device_name(device) if on_gpu else device.type)


def measurement(
    name: str,          # the file's, in data/runs
    what: str = '',     # of one that is made here: what it is,
    command: str = '',  # the command that makes it,
    rows: list | dict | None = None,  # and where its rows begin; None: no rows
) -> dict:  # what, command, machine, rows
    "A measurement as it is stored, or the beginning of one that is not."
    path = data_dir('runs')/f'{name}.json'
    if path.exists() or not what:
        return read_json(path, 'fetch it again')
    begun = [] if rows is None else rows
    return dict(what=what, command=command, machine=None, rows=begun)


def keep_measurement(name: str, found: dict):  # found: as `measurement` gives it
    "Store a measurement; the machine is this one."
    found['machine'] = machine()
    with replacing(data_dir('runs')/f'{name}.json') as p:
        p.write_text(json.dumps(found, indent=1) + '\n')


# %%NBQA-CELL-SEP15d533
# What is kept is read again, with the machine; a new one is begun where there is none
import tempfile
import unittest.mock as mock
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    with mock.patch.dict(globals(), data_dir=lambda *_: Path(folder)):
        found = measurement('heights', 'heights in cm', 'python measure.py')
        assert found['rows'] == [] and found['machine'] is None
        found['rows'].append(dict(name='Ann', height=170))
        keep_measurement('heights', found)
        again = measurement('heights')
        assert again == found and [*again] == ['what', 'command', 'machine', 'rows']
        assert {'cores', 'processor', 'torch'} <= again['machine'].keys()
        with expect_fail('widths.json'):
            measurement('widths')
passed('a measurement is read as it was kept, with the machine')


# %%NBQA-CELL-SEP15d533
#| eval: false
with expect_fail(...):
    close(torch.ones(3), torch.ones(3, 1))
assert (torch.ones(3) - torch.ones(3, 1)).shape == ...


# %%NBQA-CELL-SEP15d533
#| eval: false
# from the two tails of a normal beyond five standard deviations, without erfc
one_in = ...
close(one_in, 1/math.erfc(5/2**.5), tol=1e5)


# %%NBQA-CELL-SEP15d533
#| eval: false
def close_rel(a, b, tol=1e-9):
    ...


close_rel(torch.tensor(1e12 + 1, dtype=torch.float64), 1e12)
with expect_fail('largest error is 1,'):
    close_rel(torch.tensor(2e-12, dtype=torch.float64), 1e-12)


# %%NBQA-CELL-SEP15d533
# solution 1: close refuses shapes that broadcast; subtraction makes a table of all pairs
with expect_fail('shapes differ'):
    close(torch.ones(3), torch.ones(3, 1))
assert (torch.ones(3) - torch.ones(3, 1)).shape == (3, 3)


# %%NBQA-CELL-SEP15d533
# solution 2: the bell f has f' = -x f, so by parts the tail beyond 5 is f(5)/5 minus the integral
# of f/x^2, which is nearly f(5)/5^3; about 1.75 million
tail = math.exp(-12.5)/math.sqrt(2*math.pi)*(1/5 - 1/5**3)
one_in = 1/(2*tail)
close(one_in, 1/math.erfc(5/2**.5), tol=1e5)


# %%NBQA-CELL-SEP15d533
# solution 3: both in units of the largest element of b, then as before
def close_rel(a, b, tol=1e-9):
    b = torch.as_tensor(b, dtype=torch.float64)
    size = b.abs().max()
    return close(a/size, b/size, tol)


close_rel(torch.tensor(1e12 + 1, dtype=torch.float64), 1e12)
with expect_fail('largest error is 1,'):
    close_rel(torch.tensor(2e-12, dtype=torch.float64), 1e-12)
