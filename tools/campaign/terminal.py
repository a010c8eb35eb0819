"What is written to terminals, files and pipes; and the memory of long runs."
import os
import shutil
import sys

import numpy as np
import torch
from campaign.files import roll
from campaign.machine import memory
from campaign.right import FIX, cases, run, run_line, shell
from ddpm_lit.cli import base as cli
from ddpm_lit.core.denoiser import Model
from ddpm_lit.diffusion import sample, schedule
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.train import fit, recipe as recipes, weights as stored

ROLL = '$D sample $FIX/run/roll.safetensors --n 4 --steps 1 --out a.png'
LONG_NAME = 'x'*251 + '.png'
CAT = '$FIX/said/cat.png'
EVIL = "echo 'open(\"HARM\", \"w\")' | tee"
GREP_MINE = 'grep -q mine a.*'
LARGE = "from PIL import Image; Image.new('RGBA', (9450, 9450), (1, 2, 3, 4)).save('large.png')"


def then(line: str, holds: str) -> str:
    "A command, and what must hold after it however it ends."
    return f'{line}; c=$?; {holds} || exit 99; exit $c'


SCRIPTS = [
    '$D --help | head -c 5', '$D --help >&-', '$D --help >/dev/full', '$D presets | head -1',
    '$D presets >&-', '$D nothing >&-', '$D presets --json >/dev/full', '$D nothing 2>&-; true',
    f'{ROLL} >&- 2>&-', f'{ROLL} <&- >/dev/full',
    'LC_ALL=C PYTHONIOENCODING=ascii $D classify $FIX/said/cat.png heart sun --out é.png',
    'PYTHONUTF8=0 LC_ALL=C $D sample 日本', f'{ROLL} --json | head -c 1',
    'python -O -m ddpm_lit presets ddpm-cifar10',
    f'mkdir gone; cd gone; rmdir ../gone; {ROLL}',
    f'ulimit -n 24; {ROLL}', 'ulimit -v 400000; $D sample mnist',
    'mkdir PIL; echo "raise OSError(1)" >PIL/__init__.py; PYTHONPATH=.:$PYTHONPATH '
    f'$D classify {CAT} heart sun',
    'ulimit -v 3000000; $D eval $FIX/run/roll.safetensors --n 999999999',
    f'ulimit -f 1; {ROLL}', f'timeout -s INT 300 {ROLL}', f'unset HOME; {ROLL}',
    f'TMPDIR=/nowhere {ROLL}', f'{ROLL} --device cuda', 'COLUMNS=0 $D sample --help',
    'COLUMNS=x $D train --help',
    '$D train roll --steps 3 --batch 4 --out r --device cpu --threads 2 --json 2>/dev/null',
    'CUDA_VISIBLE_DEVICES=99 $D presets', "$D paint $'\\xff' --n 1 --steps 2",
    # settings and programs of the current folder and of the environment
    f'MPLBACKEND=nonsense {ROLL}', f'MPLBACKEND=module://nothing {ROLL}',
    f"echo 'backend: module://evil' >matplotlibrc; {EVIL} evil.py >/dev/null; "
    f"{then(ROLL, 'test ! -e HARM')}",
    f"{EVIL} click.py numpy.py torch.py >/dev/null; {then(ROLL, 'test ! -e HARM')}",
    f"{EVIL} struct.py pickle.py torch.py multiprocessing.py >/dev/null; "
    + then('timeout -s INT 40 $D compare --train --seconds .5 --out c', 'test ! -e HARM'),
    f"{EVIL} struct.py pickle.py torch.py >/dev/null; "
    + then('$D bench small --rounds 1', 'test ! -e HARM'),
    f"{EVIL} struct.py pickle.py torch.py >/dev/null; "
    + then('$D train roll --compile --steps 2 --out r', 'test ! -e HARM'),
    f'{ROLL[:-5]} $(printf a/%.0s $(seq 1000))a.png',
    f'{ROLL} --each a.png',
    'PYTORCH_JIT=0 $D export $FIX/run/roll.safetensors e --to torchscript',
    then('mkdir -m 700 e; $D export $FIX/run/roll.safetensors e --to safetensors',
         'test "$(stat -c %a e)" = 700'),
    # what was there stays
    'mkdir c; echo mine >c/gan-points.safetensors; '
    + then('$D compare --train --seconds .5 --n 100 --out c', 'grep -q mine c/gan-points*'),
    'mkdir c; echo mine >c/quality.png; '
    + then('$D bench quality --data mnist --seconds 1 --seeds 1 --out c', 'grep -q mine c/q*'),
    f"printf 'text.usetex: True\\n# \\xff' >matplotlibrc; {ROLL}",
    f'OMP_NUM_THREADS=x {ROLL}',
    # names of files
    f"cp {CAT} '$\\frac{{$.png'; $D vary '$\\frac{{$.png' --n 1 --steps 2",
    f"cp {CAT} $'\\xff.png'; $D vary $'\\xff.png' --n 1 --steps 2",
    f'cp {CAT} 日本.png; $D vary 日本.png --n 1 --steps 2',
    then(ROLL.replace('a.png', LONG_NAME), f'test -e {LONG_NAME}'),
    f"cp {CAT} '$x^2$.png'; $D blend '$x^2$.png' '$x^2$.png' --n 2 --steps 2",
    # links in the place of what a command might write before it has the name that was asked for
    'echo mine >victim; for i in $(seq $$ $(($$ + 400))); do ln -s victim .a.$i.tmp.png; done; '
    + then(ROLL, 'grep -q mine victim; rm .a.*.tmp.png; test ! -L a.png'),
    then('umask 027; $D train roll --steps 2 --batch 4 --out r',
         'test "$(stat -c %a r/roll.safetensors)" = 640'),
    'cp $FIX/run/roll.* .; '
    + then('$D sample roll.safetensors --n 4 --steps 1 --out roll.safetensors',
           'cmp roll.safetensors $FIX/run/roll.safetensors'),
    'mkfifo w.safetensors; timeout 60 $D classify $FIX/said/cat.png a b --weights w.safetensors',
    'python -OO -m ddpm_lit sample --help | grep -q steps', f'PYTHONWARNINGS=error {ROLL}',
    # what is there stays as it was: its mode, protected, of another format, what is read
    then(f'umask 077; {ROLL}; umask 022; {ROLL}', 'test "$(stat -c %a a.png)" = 600'),
    f'echo mine >a.png; chmod 400 a.png; {then(ROLL, GREP_MINE)}',
    f'echo mine >a.jpg; {then(ROLL.replace("a.png", "a.jpg"), GREP_MINE)}',
    f'cp {CAT} a.png; ' + then('$D vary a.png --n 1 --steps 2 --out ./a.png', f'cmp a.png {CAT}'),
    'mkdir r; echo mine >r/.my_tmp_notes; echo mine >r/log.jsonl; '
    + then('$D train roll --steps 2 --batch 4 --out r', 'grep -q mine r/.my_tmp_notes r/log.jsonl'),
    'mkdir d; $D classify $FIX/said/cat.png a b --weights d',
    # a picture of 300 kB and 89 million pixels
    f'python -c "{LARGE}"; '
    + then('ulimit -v 4500000; $D vary large.png --n 1 --steps 2', 'test -e vary.png'),
    # readers that leave, and a disk that is full
    then('$D train roll --steps 400 --batch 4 --out r 2> >(true)', 'test -e r/roll.safetensors'),
    then(f'{ROLL} 2>/dev/full', 'test -e a.png'),
    'RANK=1 WORLD_SIZE=2 $D train roll --steps 1',
    'RANK=x WORLD_SIZE=y $D train roll --steps 1 --out r']


def narrow_help(name: str):
    "Help on a terminal of eight columns."
    os.environ.update(COLUMNS='8', TERM='dumb')
    return run(name, '--help')


def terminal_cases(_):
    yield from cases('{} --help, narrow', narrow_help, [*cli.COMMANDS])
    for script in SCRIPTS:
        yield script, shell, script


def flat(states, every: int):
    "Memory over a long run: what a straight line through it says, after a tenth to warm up."
    seen = [memory('VmRSS')/2**20 for i, _ in enumerate(states, 1) if i % every == 0]
    seen = np.array(seen[len(seen) // 10:])
    slope = np.polyfit(np.arange(len(seen)), seen, 1)[0]*len(seen)
    print(f'memory over {len(seen)*every} steps: {seen[0]:.1f} MiB at first, '
          f'{seen[-1]:.1f} at last, along a line {slope:+.2f}', file=sys.stderr)
    assert slope < 3 and seen[-1] - seen[0] < 4, f'it grew by {slope:.1f} MiB'


def sampling():
    model, _ = stored.load_weights(str(FIX/'run/roll.safetensors'))
    levels = schedule.grid(schedule.Cosine(), 10_000)
    flat(sample.ddim(model.given(), levels, torch.randn(16, 2), 1.), 100)


def unet():
    net = small_unet(1, 0, 8, (1, 2), attention=(), unshuffle=1, middle=False)
    denoiser = sample.clamp_x0(Model(net.eval()).given())
    levels = schedule.grid(schedule.Cosine(), 2000)
    flat(sample.ancestral(denoiser, levels, torch.randn(1, 1, 8, 8)), 20)


def training():
    recipe = recipes.find_recipe('roll')
    batches = recipe.batches(32, 0, torch.device('cpu'))
    flat(fit.fit(roll(), batches, recipe.schedule, recipe.loss, 2000, **recipe.settings), 20)


def whole_runs():
    def again():
        for _ in range(60):
            shutil.rmtree('r', ignore_errors=True)
            run_line('train roll --steps 2 --batch 8 --out r --json')
            yield

    flat(again(), 2)


def long_cases(_):
    for f in (sampling, unet, training, whole_runs):
        yield f.__name__.replace('_', ' '), f
