"What others have left: runs, which go on or stay as they are, links, plug-ins, data sets."
import gzip
import json
import os
import shutil
import socket
import tarfile
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from campaign.files import PLACES, small_set
from campaign.fixtures import change_json, change_tensors, own_pictures, own_run, put
from campaign.pickles import PICKLES
from campaign.right import (FIX, cases, kept_if_refused, nothing, quietly, refused_for, run,
                            run_line, unharmed)
from safetensors.torch import load_file, save_file
from ddpm_lit import show
from ddpm_lit.data import folder as folders
from ddpm_lit.train import run as runs

RESUME = 'train roll --resume --steps 10 --out r'
own_copy = partial(shutil.copytree, FIX/'run', 'r')


def stays(line: str, why: str, folder: str = 'r'):
    "A command refuses and changes nothing in a folder; `why` it must."
    with kept_if_refused(folder):
        run_line(line)
    raise AssertionError(f'it went on, {why}')


def led_to_mine(path: str):
    "A file of a run becomes a link to one that lies elsewhere."
    Path(path).rename('mine')
    Path(path).symlink_to('../mine')


INTRUDERS = {
    'weights': lambda: put('r/roll.safetensors', b'mine'),
    'a card': lambda: put('r/roll.json', b'mine'),
    'a sheet': lambda: put('r/previews/0000010.png', b'mine'),
    'a link to weights': lambda: led_to_mine('r/roll.safetensors'),
    'a link to notes': lambda: led_to_mine('r/log.jsonl'),
    'a link to a state': lambda: led_to_mine('r/state.safetensors')}


def by_others(change: Callable):
    "What somebody else has put into the folder of a run is not replaced."
    own_copy()
    change()
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
    mark = dict(run=runs.Beginning.read(kept).identity())
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
    stays(RESUME, 'and its weights were replaced')


# the names of logs, and what is added to one
LOGS = {repr(text[:12]): text for text in (
    'mine', '{"step": 1}', '{"step": 4, "loss": 1}\nmine\n', '\0')}


def log_of_others(text: str):
    "What others have written into the log of a run is kept when it goes on."
    shutil.copytree(FIX/'half', 'r')
    log = Path('r/log.jsonl')
    put(log, log.read_text() + text)
    run_line('train roll --resume --steps 24 --out r')
    kept = [line for p in Path('r').glob('log*') for line in p.read_text().splitlines()]
    assert not {*text.splitlines()} - {*kept}, 'the log has lost a line of others'


def with_type(start: str, kind: torch.dtype, at: Path):
    "A state in which the first tensor whose name begins so is of another type."
    def change(state):
        name = min(k for k in state if k.startswith(start))
        return state | {name: state[name].to(kind)}

    change_tensors(at, change)


# settings of types or sizes that no run has, and numbers of types that no state has
ODD_SETTINGS = dict(init=(7, {}, [[]]), anew=(None, 7), source=(None, [], 7, 'x'),
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
    'a state with other names': ('state.safetensors', lambda at: change_tensors(
        at, lambda state: {k.replace('model.', 'network.'): v for k, v in state.items()})),
    'settings without "bf16"': ('run.json', lambda at: change_json(at, 'bf16')),
    'settings without "recipe"': ('run.json', lambda at: change_json(at, 'recipe')),
    'settings of 90 MB': ('run.json', lambda at: put(at, b'{"x": "%b"}' % (b'a'*90_000_000))),
    'a card of 90 MB': ('roll.json', lambda at: put(at, b'{"x": "%b"}' % (b'a'*90_000_000)))}
OLDER_LINES = (RESUME, 'sample r --n 4 --steps 1 --out a.png',
               'eval r/roll.safetensors --n 12 --steps 2', 'export r --to safetensors e')


def older(file_and_change: tuple[str, Callable[[Path], Any]], line: str):
    "With such a run a command works, or the run stays as it is."
    file, change = file_and_change
    own_copy()
    change(Path('r', file))
    with kept_if_refused():
        return run_line(line)


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
             beside=lambda p: p.with_name('.metadata').write_bytes(PICKLES['runs a command']),
             **{'of another': part_of_another})


def spread_state(change: Callable[[Path], Any]):
    "A run spread over its processes goes on from its own state, or stays as it is."
    spread_run(f'{SPREAD} --out r')
    change(Path('r/state-2/0.safetensors'))
    with kept_if_refused():
        value = unharmed(spread_run, 'train roll --resume --out r')
    assert change is not part_of_another, 'it went on with the state of another run'
    return value


def after(prepare: Callable, line: str):
    "A command in a folder that was prepared."
    prepare()
    return run_line(line)


def called_as_a_file(folder: str):
    "A model of pictures whose folder is called as a file of a run is: it goes on."
    own_pictures(folder)
    line = f'train --data {folder} --batch 2 --base 8 --no-augment'
    quietly(f'{line} --steps 2')
    return run_line(f'{line} --steps 3 --resume')


def among_pictures(line: str):
    "A run in the folder of its own pictures goes on; `line` is a command in between."
    own_pictures()
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


def with_plugin(text: str):
    put('a.py', text)
    return run('--plugin', 'a.py', 'presets', 'ddpm-cifar10')


def with_sampler(states: str):
    "A sampler of a plug-in that yields what no sampler should: the plug-in is named."
    put('p.py', 'from ddpm_lit.diffusion.sample import SAMPLERS\n'
                f'SAMPLERS.add("odd", lambda denoiser, levels, x: {states})\n')
    refused_for('p.py', '--plugin p.py sample {roll} --n 4 --steps 2 --sampler odd --out a.png')


def with_timesteps(T):
    "A folder of diffusers whose schedule has so many timesteps."
    shutil.copytree(FIX/'ddpm_unet', 'd')
    put('d/scheduler_config.json', json.dumps(dict(num_train_timesteps=T)))
    return run_line('sample d --layout diffusers --n 1 --steps 1 --out a.png')


def in_table(paths: list, rows: int, more: int):
    "A parquet table whose rows share one picture of so many bytes more, and their paths."
    pa, pq = folders.needed('pyarrow'), folders.needed('pyarrow.parquet')
    raw = show.png(torch.zeros(1, 3, 8, 8), zoom=1) + bytes(more)
    shared = pa.DictionaryArray.from_arrays(pa.array([0]*rows), pa.array([raw]))
    image = pa.StructArray.from_arrays([shared.cast('binary'), pa.array(paths*rows)],
                                       ['bytes', 'path']) if paths else shared
    pq.write_table(pa.table(dict(image=image)), 't.parquet', compression='zstd')
    return small_set(Path('t.parquet'))


def saved_set(name: str, make: Callable = nothing):
    "A saved data set that names such a file as its own."
    put('d/state.json', json.dumps(dict(_data_files=[dict(filename=name)])))
    put('d/dataset_info.json', '{}')
    make(Path('d', 'a.arrow'))
    return small_set(Path('d'))


def packed_tar(kind: bytes):
    "A tar of 4 MB that unpacks to 4 GB: a member of that size, of a kind."
    header = tarfile.TarInfo('a.png')
    header.type, header.size = kind, 4 << 30
    zeros = 4096*gzip.compress(bytes(1 << 20), 1)
    return small_set(put('t.tar.gz', gzip.compress(header.tobuf()) + zeros))


TAR_KINDS = {name: getattr(tarfile, name) for name in (
    'REGTYPE', 'XHDTYPE', 'GNUTYPE_LONGNAME', 'GNUTYPE_SPARSE', 'DIRTYPE')}
FILE_NAMES = ('../out.png', '/etc/passwd', 'a/../../x.png', 'x\0.png', '.', '..', '', 'cat.png\n',
              '\ud800', 'x'*300)
SHOWN_NAMES = {repr(name[:20]): name for name in FILE_NAMES}
PLUGINS = ('raise SystemExit(3)', 'raise KeyboardInterrupt', 'x = "\0"', 'import nowhere_')
LOOPS = ('train --data loop --steps 1 --out r', 'sample loop', 'classify loop a b',
         'export loop --to ddpm_lit e', 'export {roll} --to safetensors loop')
LARGE = 'train --data d --steps 1 --batch 2 --base 8 --out r --side '


def run_cases():
    "Runs in whose folder others have written."
    yield from cases('the state of another run, {}', state_of_another,
                     ('--batch 16 --seed 1', '--batch 8', '--batch 16 --bf16'))
    yield 'weights whose state is gone', weights_without_state
    yield from cases('in the folder of a run lies {} of others', by_others, INTRUDERS)
    yield 'a run called as a file outside', led_outside
    yield from cases('{}', older, ODD, [RESUME])
    yield from cases('the state of a spread run, {}', spread_state, PARTS)


def left_cases():
    yield from run_cases()
    yield from cases('a link to itself: {1}', after, [partial(os.symlink, 'loop', 'loop')],
                     LOOPS)
    # more seconds than there are steps
    yield 'own pictures in a time without end', own_run, '--seconds 1e308 --steps 1'
    yield from cases('own pictures --side {1}', after, [own_pictures],
                     {side: LARGE + side for side in ('4096', '4x4096')})
    yield from cases('plug-in: {!r}', with_plugin, PLUGINS)
    yield from cases('a sampler that yields {}', with_sampler,
                     ('iter(())', 'None', 'x', '[x[:1]]', '["a"]'))
    yield from cases('{} in a log', log_of_others, LOGS)
    yield from cases('a schedule of {} timesteps', with_timesteps,
                     (10**9, 0, -1, 2.5, '1000', None))
    yield from cases('pictures in a folder called {}', called_as_a_file,
                     ('state', 'run', 'log', 'State'))
    yield from cases('a run among its pictures: {}', among_pictures,
                     ('sample runs/d --n 1 --steps 1 --out runs/d/x.png',
                      'sample runs/d --n 1 --steps 1 --out x.png'))
    yield from cases('a tar of 4 GB: {}', packed_tar, TAR_KINDS)
    yield from cases('run.json of {}: {}', with_source, SOURCES,
                     ('train --resume --steps 4 --out r', 'eval r --n 12 --steps 2'))
    yield 'a parquet file of 2 KB whose rows share 1.3 GB', in_table, [], 64, 20_000_000
    for path in (7, .5, b'x', True):
        yield f'a parquet file with the path {path}', in_table, [path], 4, 0
    yield from cases('a saved data set names {}', saved_set, SHOWN_NAMES)
    yield from cases('a saved data set, its file {1}', saved_set, ['a.arrow'], PLACES)
    yield from cases('{}: {}', older, OLDER, OLDER_LINES)
