"Runs in whose folder others have written: they go on, or refuse and stay as they are."
import hashlib
import json
import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from campaign.fixtures import change_json, change_tensors, own_pictures, own_run, put
from campaign.pickles import PICKLES
from campaign.right import (FIX, cases, files, kept_if_refused, nothing, quietly, run_line,
                            unharmed)
from safetensors.torch import load_file, save_file
from ddpm_lit.train import run as runs

RESUME = 'train roll --resume --steps 10 --out r'


def own_copy():
    shutil.copytree(FIX/'run', 'r')


def stays(line: str, why: str, folder: str = 'r'):
    "A command refuses and changes nothing in a folder; `why` it must."
    with kept_if_refused(folder):
        run_line(line)
    raise AssertionError(f'it went on, {why}')


# ---- what others put there --------------------------------------------------------------------


def led_to_mine(path: str):
    "A file of a run becomes a link to one that lies elsewhere."
    Path(path).rename('mine')
    Path(path).symlink_to('../mine')


def is_mine(path: str):
    put(path, b'mine')


INTRUDERS = {
    'weights': (is_mine, 'r/roll.safetensors'),
    'a card': (is_mine, 'r/roll.json'),
    'a sheet': (is_mine, 'r/previews/0000010.png'),
    'a link to weights': (led_to_mine, 'r/roll.safetensors'),
    'a link to notes': (led_to_mine, 'r/log.jsonl'),
    'a link to a state': (led_to_mine, 'r/state.safetensors')}


def by_others(intruder: tuple[Callable[[str], Any], str]):
    "What somebody else has put into the folder of a run is not replaced."
    change, path = intruder
    own_copy()
    change(path)
    stays(RESUME, 'though it would replace what others wrote', '.')


def led_outside():
    "A run whose recipe is called as weights outside its folder are: those stay."
    own_run()
    put('victim.safetensors', b'mine')
    kept = json.loads(Path('r/run.json').read_text())
    for named, key in ((kept, 'recipe'), (kept['spec'], 'name'), (kept['source'], 'name')):
        named[key] = '../victim'
    put('r/run.json', json.dumps(kept))

    # its state says that it is of this run
    own = json.dumps({k: kept.get(k) for k in runs.ALWAYS}, sort_keys=True)
    mark = dict(run=hashlib.sha256(own.encode()).hexdigest())
    save_file(load_file('r/state.safetensors'), 'r/state.safetensors', mark)
    try:
        return run_line('train --resume --out r --steps 5')
    finally:
        assert Path('victim.safetensors').read_bytes() == b'mine', 'a file outside was replaced'


def state_of_another(settings: str):
    "The state of a run with another setting, in the folder of this one, is refused and stays."
    own_copy()
    quietly(f'train roll --steps 8 {settings} --out other')
    shutil.copy('other/state.safetensors', 'r/state.safetensors')
    stays(RESUME, 'with the state of another run')


def weights_without_state():
    "A resumed run whose state is gone keeps the weights that it had."
    own_copy()
    Path('r/state.safetensors').unlink()
    before = files('r')
    try:
        run_line(RESUME)
    finally:
        assert files('r') == before, 'its weights were replaced'


# the names of logs, and what is added to one
LOGS = {repr(text[:12]): text for text in (
    'mine', '{"step": 1}', '{"step": 4, "loss": 1}\nmine\n', '\0')}


def log_of_others(text: str):
    "What others have written into the log of a run is kept when it goes on."
    shutil.copytree(FIX/'half', 'r')
    with open('r/log.jsonl', 'a') as f:
        f.write(text)
    run_line('train roll --resume --steps 24 --out r')
    kept = [line for p in Path('r').glob('log*') for line in p.read_text().splitlines()]
    assert not {*text.splitlines()} - {*kept}, 'the log has lost a line of others'


# ---- settings and states of other versions ----------------------------------------------------


def with_type(start: str, kind: torch.dtype, at: Path):
    "A state in which the first tensor whose name begins so is of another type."
    def change(state):
        name = min(k for k in state if k.startswith(start))
        return state | {name: state[name].to(kind)}

    change_tensors(at, change)


def with_other_names(state: dict) -> dict:
    return {k.replace('model.', 'network.'): v for k, v in state.items()}


def of_90_megabytes(at: Path):
    put(at, b'{"x": "' + b'a'*90_000_000 + b'"}')


# settings of types or sizes that no run has, and numbers of types that no state has
ODD_SETTINGS = dict(init=(7, {}, [[]]), changed=(None, 7), source=(None, [], 7, 'x'),
                    steps=(10**400,), lr=(10**400,))
ODD_TYPES = (torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn)
ODD = {f'settings with {name} = {str(v)[:9]}': ('run.json', partial(change_json, **{name: v}))
       for name, values in ODD_SETTINGS.items() for v in values}
ODD |= {f'a state with {start} of {kind}': ('state.safetensors', partial(with_type, start, kind))
        for start in ('step', 'opt.step.', 'opt.exp_avg_sq.', 'model.') for kind in ODD_TYPES}

# what another version may have left in a run's folder
OLDER = {
    'a state without the mark of its run': (
        'state.safetensors', lambda at: save_file(load_file(at), at)),
    'a state with other names': (
        'state.safetensors', partial(change_tensors, change=with_other_names)),
    'settings without "micro"': ('run.json', lambda at: change_json(at, 'micro')),
    'settings without "recipe"': ('run.json', lambda at: change_json(at, 'recipe')),
    'settings of 90 MB': ('run.json', of_90_megabytes),
    'a card of 90 MB': ('roll.json', of_90_megabytes)}
OLDER_LINES = (RESUME, 'sample r --n 4 --steps 1 --out a.png',
               'eval r/roll.safetensors --n 12 --steps 2', 'export r --to safetensors e')


def older(file_and_change: tuple[str, Callable[[Path], Any]], line: str):
    "With such a run a command works, or the run stays as it is."
    file, change = file_and_change
    own_copy()
    change(Path('r', file))
    with kept_if_refused():
        return run_line(line)


# ---- spread over processes --------------------------------------------------------------------

SPREAD = 'train roll --shard --steps 2 --batch 8'


def spread_run(line: str):
    "A command in a group of one process, whose model is spread over it."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    return run_line(line)


def part_of_another(p):
    spread_run(f'{SPREAD} --seed 1 --out other')
    shutil.copy('other/state-2/0.safetensors', p)


PARTS = dict(whole=nothing, cut=lambda p: p.write_bytes(p.read_bytes()[:999]),
             missing=Path.unlink, pickle=lambda p: p.write_bytes(PICKLES['runs a command']),
             beside=lambda p: p.with_name('.metadata').write_bytes(PICKLES['runs a command']))


def spread_state(change: Callable[[Path], Any]):
    "A run spread over its processes goes on from its own state, or stays as it is."
    spread_run(f'{SPREAD} --out r')
    change(Path('r/state-2/0.safetensors'))
    with kept_if_refused():
        return unharmed(spread_run, 'train roll --resume --out r')


def spread_another():
    "Its state is another's: refused."
    spread_state(part_of_another)
    raise AssertionError('it went on with the state of another run')


# ---- runs of own pictures ---------------------------------------------------------------------


def about_pictures(line: str):
    own_pictures('d')
    return run_line(line)


def called_as_a_file(folder: str):
    "A model of pictures whose folder is called as a file of a run is: it goes on."
    own_pictures(folder)
    line = f'train --data {folder} --batch 2 --base 8 --no-augment'
    quietly(f'{line} --steps 2')
    return run_line(f'{line} --steps 3 --resume')


def among_pictures(line: str):
    "A run in the folder of its own pictures goes on; `line` is a command in between."
    own_pictures('d')
    os.chdir('d')
    quietly('train --data . --batch 2 --base 8 --no-augment --steps 2 --preview 1')
    quietly(line)
    return run_line('train --resume --out runs/d --steps 3')


SOURCES = (dict(labels=7), dict(labels=[]), dict(captions=7), dict(captions=[]),
           dict(system=None), dict(files=7, digest='x'), dict(files=[[]], digest='x'),
           dict(files=[1, 'a'], digest='x'))


def with_source(changes: dict, line: str):
    "A run of own pictures whose run.json says something else of them."
    own_run()
    source = json.loads(Path('r/run.json').read_text())['source']
    change_json(Path('r/run.json'), source=source | changes)
    return run_line(line)


# ---- all of them, in groups -------------------------------------------------------------------


def spoilt_cases():
    yield from cases('the state of another run, {}', state_of_another,
                     ('--batch 16 --seed 1', '--batch 8', '--batch 16 --bf16'))
    yield 'weights whose state is gone', weights_without_state
    yield from cases('in the folder of a run lies {} of others', by_others, INTRUDERS)
    yield 'a run called as a file outside', led_outside
    yield from cases('{}', older, ODD, [RESUME])
    yield from cases('the state of a spread run, {}', spread_state, PARTS)
    yield 'the state of a spread run, of another', spread_another


def picture_cases():
    # more seconds than there are steps, and large pictures
    yield 'own pictures in a time without end', own_run, '--seconds 1e308 --steps 1'
    line = 'train --data d --steps 1 --batch 2 --base 8 --out r --side '
    yield from cases('own pictures --side {}', about_pictures,
                     {side: line + side for side in ('4096', '4x4096')})


def folder_cases():
    yield from cases('pictures in a folder called {}', called_as_a_file,
                     ('state', 'run', 'log', 'State'))
    yield from cases('a run among its pictures: {}', among_pictures,
                     ('sample runs/d --n 1 --steps 1 --out runs/d/x.png',
                      'sample runs/d --n 1 --steps 1 --out x.png'))


def source_cases():
    return cases('run.json of {}: {}', with_source, SOURCES,
                 ('train --resume --steps 4 --out r', 'eval r --n 12 --steps 2'))


def older_cases():
    return cases('{}: {}', older, OLDER, OLDER_LINES)
