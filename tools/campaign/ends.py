"Commands that are ended at any moment: what is there is whole, nobody lives on."
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
from campaign.disks import MORE, TRAIN, steps_of
from campaign.files import roll
from campaign.fixtures import put
from campaign.machine import child, code_of
from campaign.right import FIX, Refused, files, root, run_line, said, whole, words_of
from safetensors.torch import load_file
from ddpm_lit.cli import base as cli

# a command, and what it replaces; its seconds are measured, where they are not given
KILLED = {
    'train': (TRAIN, None, None),
    'sample': ('sample {roll} --n 40 --steps 40 --out a.png', 'a.png', None),
    'paint': ("paint 'a red heart' --n 1 --steps 4 --out a.png", 'a.png', None),
    'compare': ('compare --train --seconds 9 --out c', None, 4.),
    'export': ('export {roll} --to torchscript e', None, None)}


def signal_when_ready(ready: int):
    "`stoppable` of the command, which writes to `ready` when it listens."
    listening = cli.stoppable

    @contextlib.contextmanager
    def stoppable(*args):
        with listening(*args):
            os.write(ready, b'x')
            yield

    cli.stoppable = stoppable


def in_a_group(line: str) -> int:
    "A command in a group of its own, from the moment on when it listens: its number."
    read_end, write_end = os.pipe()

    def begin():
        os.setsid()
        os.close(read_end)
        signal_when_ready(write_end)

    pid = child('a', line, begin)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    return pid


@cache
def seconds_of(name: str) -> float:
    "How long a command takes where nobody ends it."
    line, _, known = KILLED[name]
    if known:
        return known
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pid = in_a_group(line)
        began = time.monotonic()
        code = code_of(pid)
        seconds = time.monotonic() - began
        os.chdir(here)
    assert code == 0, f'undisturbed it ends with {code}'
    return seconds


def patience() -> float:
    "Two seconds of a machine that has nothing else to do, and more where others take its time."
    began, mine = time.monotonic(), time.process_time()
    while time.process_time() - mine < .02:
        pass
    share = .02/(time.monotonic() - began)
    return 2/min(1, share, os.cpu_count()/max(.01, os.getloadavg()[0]))


def wait_for_all(group: int):
    "Nobody of the group is alive any more."
    asked, most = time.monotonic(), patience()
    while time.monotonic() - asked < most:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(.02)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError(f'alive after {time.monotonic() - asked:.1f} s')


def ended(group: int, number: int, kill=os.killpg) -> int:
    "The exit code after a signal; soon nobody of the group is alive."
    asked = time.monotonic()
    kill(group, number)
    code = code_of(group)
    took = time.monotonic() - asked
    wait_for_all(group)
    assert took < patience(), f'it lived on for {took:.1f} s'  # measured when it has ended
    return code


def check_end(code: int, number: int, err: str):
    "It had come to its end, or it ends as the signal asks and says at most one sentence."
    unheard = number == signal.SIGKILL
    assert code in (0, -number if unheard else 128 + number), f'exit code {code}: {err[-300:]!r}'
    if not unheard:
        with contextlib.suppress(Refused):
            said(code, '', err)


def check_files(number: int, out: str | None):
    "What is there is whole, and hidden files only after kill -9."
    hidden = [*Path('.').rglob('.*')]
    assert number == signal.SIGKILL or not hidden, f'left behind: {hidden[0]}'
    for p in hidden:
        if p.is_dir():
            shutil.rmtree(p)
    for p in files():
        if p.suffix not in ('.out', '.err'):
            whole(p)  # that of before, or the new one
    assert not out or Path(out).exists(), f'{out} is lost'
    assert not Path('e').exists() or {*os.listdir('e')} == {'README.md', 'config.json', 'model.pt'}


def resumed_to_the_same():
    "A training goes on to the same numbers as if nothing had been."
    run_line(MORE if Path('r/run.json').exists() else TRAIN)
    a, b = (load_file(at/'state.safetensors') for at in (Path('r'), FIX/'ref'))
    assert all(torch.equal(a[k], b[k]) for k in b), 'the resumed run is another'
    assert not [*Path('r').rglob('*tmp*')]
    return steps_of('r/log.jsonl')


def killed(name: str, when: float, number: int):
    "A signal at a moment: what is there is whole, nobody lives on, and the work can go on."
    line, out, _ = KILLED[name]
    if out:
        put(out, (FIX/'said/cat.png').read_bytes())
    seconds = seconds_of(name)
    group = in_a_group(line)
    time.sleep(when*seconds)

    # a terminal's Ctrl-C reaches the whole group, kill one process
    code = ended(group, number, os.killpg if number == signal.SIGINT else os.kill)
    check_end(code, number, Path('a.err').read_text())
    check_files(number, out)

    # and the work goes on
    if name == 'train':
        return resumed_to_the_same()
    if number == signal.SIGKILL and name not in ('compare', 'export'):
        return run_line(line)


def in_a_long_step(number: int):
    "A step of several seconds is cut short: nobody waits for it, and its beginning is not kept."
    group = in_a_group('train roll --steps 2 --batch 100000 --threads 1 --out r')
    while not Path('r/run.json').exists():
        time.sleep(.02)
    time.sleep(.7)
    code = ended(group, number)
    assert code == 128 + number, f'exit code {code}'
    step = int(load_file('r/state.safetensors')['step'])
    assert step == 0, f'it went on to step {step}'
    check_end(code, number, Path('a.err').read_text())


def stopped(number):
    "The signal twice: the run saves, ends, and can be resumed."
    pid = child('a', TRAIN)
    err = Path('a.err')
    while not Path('r/state.safetensors').exists() and not (err.exists() and err.read_text()):
        time.sleep(.02)
    os.kill(pid, number)
    time.sleep(.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    code = code_of(pid)
    roll().load('r/state.safetensors')
    assert code in (0, 130, 143, -number), f'exit code {code}'
    run_line(MORE)


def kill_cases(rng, moments: int = 14):
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
    for i, number, name in itertools.product(range(moments), signals, KILLED):
        when = rng.random()*1.1
        yield f'{name}, {number.name}, {i}: at {when:.2f} of it', killed, name, when, number
    for number in (signal.SIGINT, signal.SIGTERM):
        yield f'{number.name} twice', stopped, number
        yield f'{number.name} in a long step', in_a_long_step, number


# what is stopped at a moment of its life, and in how many seconds that is over
STOPPED = {
    'sample': ('sample {roll} --n 4000 --steps 200 --out a.png', 4),
    'train': ('train roll --steps 100000 --batch 8 --out r', 4),
    'compare': ('compare --train --seconds 9 --out c', 9),
    'eval': ('eval {roll} --n 4000', 5),
    'presets': ('presets', 3)}
MOMENTS = .2, .35, .5, .65, .8, 1.  # of that

# from the first import of ours on: before that, Python itself is starting
PROGRAM = """
import sys
from ddpm_lit.cli import main
def watch(event, args):
    if event == 'import' and args[0] == 'ddpm_lit.cli.base':
        open('began', 'w').close()
sys.addaudithook(watch)
main()
"""


def stopped_at(line: str, when: float, number: int):
    "A signal to the command and all that it started: one sentence, and nobody is there after 2 s."
    p = subprocess.Popen([sys.executable, '-c', PROGRAM, *words_of(line)], text=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         start_new_session=True, env=os.environ | dict(PYTHONPATH=str(root)))

    # the signal, to the whole group, so long after the beginning
    while not Path('began').exists() and p.poll() is None:
        time.sleep(.002)
    time.sleep(when)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(p.pid, number)

    # how it ended, and how soon
    asked = time.monotonic()
    err = p.stderr.read()  # until the last of them has ended
    seconds = time.monotonic() - asked
    code = p.wait()
    assert seconds < 2*patience(), f'it lived on for {seconds:.1f} s'

    # nothing half written, and one sentence
    left = [*Path('.').rglob('.*')]
    assert not left, f'left behind: {left[0]}'
    check_end(code, number, err)


def stopped_cases(_):
    for name, (line, seconds) in STOPPED.items():
        for part in MOMENTS:
            when = part*seconds
            yield f'{name} after {when:.2f} s', stopped_at, line, when, signal.SIGINT
        yield f'{name}, SIGTERM', stopped_at, line, seconds/2, signal.SIGTERM
        yield f'{name} at its start', stopped_at, line, 0., signal.SIGINT
