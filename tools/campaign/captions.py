"Captions: the files of GLIDE and the folder of Karlo, changed; sides, steps, odd words."
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import time
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Callable

import torch
from campaign.files import PLACES, file_cases, link_to, link_to_itself, of_folder
from campaign.fixtures import about_of, change_json, change_tensors
from campaign.hostile import DEEP
from campaign.machine import child, code_of
from campaign.pickles import nested
from campaign.right import FIX, cases, run_line, unharmed, whole
from campaign.values import WORDS
from safetensors.torch import load_file
from ddpm_lit.interop import checkpoints as theirs

CAPTION = "sample {file} --caption 'a dog' --steps 2 --out a.png --json"
GLIDE = CAPTION.replace('{file}', '{glide}')
KARLO = CAPTION.replace('{file}', '{karlo}')
PARTS = (*theirs.UNCLIP_FOLDERS, *theirs.SCHEDULERS)


def captioned(p):
    return run_line(CAPTION, file=p)


def captioned_readers() -> dict[str, Callable | str]:
    "The files of Karlo's folder and of GLIDE: what reads them."
    names = [f'karlo/{part}/{name}' for part in PARTS for name in (about_of(part), 'm.safetensors')]
    of_karlo = {name: of_folder(of_folder(captioned)) for name in names if (FIX/name).exists()}
    base, up = CAPTION, CAPTION.replace('{file}', '{folder}/base.pt') + ' --upsampler {file}'
    return of_karlo | {'glide/base.pt': f'{base} --side 8', 'glide/upsample.pt': f'{up} --side 8'}


def link_elsewhere(p):
    inside = FIX/p.relative_to(Path('in').resolve())
    p.symlink_to('/etc/passwd' if 'karlo' in str(p) else inside)


ALSO = PLACES | dict(elsewhere=link_elsewhere)


def replaced(make: Callable):
    "Something else in the place of a folder."
    def change(p):
        shutil.rmtree(p)
        make(p)

    return change


def link_to_whole(p):
    p.symlink_to(FIX/'karlo'/p.name)


FOLDERS = dict(missing=shutil.rmtree, file=replaced(partial(Path.write_text, data='x')),
               empty=replaced(Path.mkdir), loop=replaced(link_to_itself),
               linked=replaced(link_to_whole), itself=replaced(link_to('..')),
               locked=methodcaller('chmod', 0))


def exchange(d: Path, a: str, b: str):
    (d/a).rename('t')
    (d/b).rename(d/a)
    Path('t').rename(d/b)


def give_key(d: Path, a: str, b: str):
    "The first tensor of one part becomes one of another."
    name, given = min(load_file(d/a/'m.safetensors').items())
    change_tensors(d/a/'m.safetensors', partial(without_key, key=name))
    change_tensors(d/b/'m.safetensors', lambda state: state | {name: given})


def captioned_karlo(at: str, change: Callable, *args):
    "A caption for a copy of the folder, after a change of something in it."
    shutil.copytree(FIX/'karlo', 'k')
    change(Path('k', at), *args)
    return unharmed(captioned, 'k')


VALUES = [None, True, 'x', '', 'x'*9999, math.nan, math.inf, -1, 0, 1, 2, 3, 2.5, 10**5, 10**9,
          10**30, -10**30, 1e308, 1e-320, [], [[]], [1]*9, [0, 0], [8, math.nan], [10**9, 10**9],
          ['x', 'x'], [None, 16], {}, {'a': 1}, nested(89), 'gelu', 'silu', 'v_prediction',
          'AttnDownBlock2D']
OTHERS = {
    'config.json': ('_class_name', 'norm_eps', 'layer_norm_eps', 'dropout', 'attn_norm_num_groups',
                    'time_embedding_dim', 'num_class_embeds', 'mid_block_type', 'class_embed_type',
                    'act_fn', 'downsample_padding', 'freq_shift', 'torch_dtype', 'a\x1b[31m'),
    'scheduler_config.json': ('_class_name', 'beta_schedule', 'beta_start', 'trained_betas')}
CONFIGS = DEEP | {
    'long number': b'{"sample_size": ' + b'9'*10**4 + b'}',
    'wide': b'{"block_out_channels": [' + b'8,'*10**6 + b'8]}',
    'BOM': b'\xef\xbb\xbf{}',
    'surrogate': b'{"hidden_act": "\\ud800", "act_fn": "\\ud800", "prediction_type": "\\ud800"}'}

# what becomes of a tensor
CHANGED = dict(complex=methodcaller('to', torch.complex64), bytes=methodcaller('to', torch.uint8),
               bools=methodcaller('bool'), double=methodcaller('double'),
               float8=methodcaller('to', torch.float8_e4m3fn), huge=lambda w: w.float()*1e37,
               zero=methodcaller('mul', 0), flat=methodcaller('reshape', -1),
               single=lambda w: w.reshape(-1)[0], none=lambda w: w.reshape(-1)[:0],
               axis=lambda w: w[None], longer=lambda w: torch.atleast_1d(w).repeat_interleave(2, 0),
               nan=methodcaller('mul', math.nan), infinite=methodcaller('div', 0))


def setting_cases(part: str, rng, k: int):
    "A part of the folder with settings changed, added and left out; another file or folder there."
    name = about_of(part)
    at = f'{part}/{name}'
    config = json.loads((FIX/'karlo'/at).read_text())
    for key in sorted({*config, *OTHERS[name]}):
        for v in rng.sample(VALUES, k):
            yield f'{part} {key}={str(v)[:30]!r}', at, partial(change_json, **{key: v})
        v = config.get(key)
        if isinstance(v, list):
            yield f'{part} {key} one longer', at, partial(change_json, **{key: v + v[-1:]})
        if key in config:
            yield f'{part} without {key}', at, change_json, key
    for i in range(k):
        new = dict(zip(rng.sample(sorted(config), 2), rng.sample(VALUES, 2)))
        yield f'{part} {str(new)[:60]}, {i}', at, partial(change_json, **new)
    for how, raw in CONFIGS.items():
        yield f'{part} {how}', at, Path.write_bytes, raw
    for how, change in FOLDERS.items():
        yield f'{part} {how}', part, change


def exchange_cases():
    "Two parts exchanged, whole or by their weights, configurations or a key."
    for a, b in itertools.combinations(theirs.UNCLIP_FOLDERS, 2):
        yield f'{a} and {b} exchanged', '.', exchange, a, b
        for what, file in (('weights', 'm.safetensors'), ('configurations', 'config.json')):
            yield f'{a} and {b}: {what} exchanged', '.', exchange, f'{a}/{file}', f'{b}/{file}'
        yield f'{a} gives {b} a key', '.', give_key, a, b
        yield f'{b} gives {a} a key', '.', give_key, b, a
    for a, b in itertools.combinations(theirs.SCHEDULERS, 2):
        yield f'{a} and {b} exchanged', '.', exchange, a, b


def weight_cases(rng):
    "Two tensors of each part, changed."
    for (how, f), part in itertools.product(CHANGED.items(), theirs.UNCLIP_FOLDERS):
        at = f'{part}/m.safetensors'
        for key in rng.sample(sorted(load_file(FIX/'karlo'/at)), 2):
            yield f'{part} {key} {how}', at, change_tensors, partial(change_key, key=key, f=f)


def karlo_cases(rng, k: int):
    settings = [setting_cases(part, rng, k) for part in PARTS]
    for name, *change in itertools.chain(*settings, exchange_cases(), weight_cases(rng)):
        yield f'karlo {name}', captioned_karlo, *change


def change_key(state, key, f):
    return state | {key: f(state[key])}


def without_key(state, key):
    return {name: w for name, w in state.items() if name != key}


def odd_place(state, key):
    return {name.replace('.0.', '.7.', 1) if name == key else name: w
            for name, w in state.items()}


def huge_place(state, key):
    return state | {f'input_blocks.{10**30}.{key}': state[key],
                    f'transformer.resblocks.{key}': state[key]}


STATES = dict(list=lambda s: [*s.values()], empty=lambda s: {},
              nested=lambda s: dict(state_dict=s),
              module=lambda s: {f'module.{name}': w for name, w in s.items()},
              numbers=lambda s: s | {'step': 7}, more=lambda s: s | {'more': torch.zeros(2)})
CENTRAL = ('input_blocks.0.0.weight', 'token_embedding.weight', 'positional_embedding',
           'time_embed.0.weight', 'input_blocks.1.0.emb_layers.1.weight', 'transformer_proj.weight')


def captioned_glide(up: bool, change: Callable, *args):
    "A caption for copies of GLIDE's files, after a change of one."
    changed = 'upsample' if up else 'base'
    for name in ('base', 'upsample'):
        state = torch.load(FIX/f'glide/{name}.pt')
        torch.save(change(state, *args) if name == changed else state, f'{name}.pt')
    more = ' --upsampler upsample.pt'*up
    return unharmed(partial(run_line, f'{CAPTION} --side 8{more}', file='base.pt'))


def glide_cases(rng):
    "Weights of GLIDE, changed."
    keys = sorted(torch.load(FIX/'glide/base.pt'))
    for (how, f), up in itertools.product(CHANGED.items(), (False, True)):
        for key in [*CENTRAL, *rng.sample(keys, 3)]:
            yield (f'glide {"upsample" if up else "base"} {key} {how}', captioned_glide, up,
                   change_key, key, f)
    for key in rng.sample(keys, 12):
        yield f'glide without {key}', captioned_glide, False, without_key, key
        yield f'glide {key} at odd places', captioned_glide, False, odd_place, key
        yield f'glide {key} at huge places', captioned_glide, False, huge_place, key
    yield from cases('glide, {1}', captioned_glide, [False], STATES)


# lines, and what stands in the place of each @ in turn
NUMBERS = {
    '1 2 3 7 65536 100000 1000000000': {
        'glide --side @': f'{GLIDE} --side @',
        'glide --side @, upsampled': f'{GLIDE} --side @ --upsampler {{up}}',
        'karlo --side @': f'{KARLO} --side @'},
    '1000000000 100000000 1000000': {
        'glide --n @': f'{GLIDE} --n @ --side 64',
        'karlo --n @, no more steps than there are': f'{KARLO} --n @ --steps 1001'},
    '1 27 1000 1001 1000000000': {
        'glide --steps @': f'{GLIDE} --side 2 --steps @',
        'karlo --steps @': f'{KARLO} --steps @'},
    '1e30 -1e30 1e308 0 -1 1e-300': {
        'glide --w @': f'{GLIDE} --side 8 --w @',
        'karlo --guidance-scale @': f'{KARLO} --guidance-scale @'}}
SLOW = 'karlo --steps 1000',  # it takes as long as it says
NAMES = {
    'caption @': CAPTION.replace('{file}', '@'),
    '--upsampler @': f'{GLIDE} --side 8 --upsampler @',
    'without --caption: @': 'sample @ --layout auto --n 1 --steps 1'}
MORE = {'glide @': f'{GLIDE} --side 8 @', 'karlo @': f'{KARLO} @'}
SAID = {
    'glide with the caption': 'sample {glide} --side 8 --steps 2 --out a.png --json',
    'glide with a dog and': f'{GLIDE} --side 8 --n 2',
    'karlo with the caption': 'sample {karlo} --steps 2 --out a.png --json',
    'karlo with a dog and': f'{KARLO} --n 2'}
CAPTION_FILES = ('glide/upsample.pt', 'glide/inpaint.pt', 'glide/words.pt', 'glide', 'karlo',
              'karlo/prior', 'karlo/decoder/m.safetensors', 'iddpm_unet', 'ddpm_unet',
              'openai_clip_vit', 'unclip_prior', 'run/roll.safetensors', 'run', 'said/cat.png',
              'reader', 'vocab/v.bpe.gz', 'script/m.pt', 'old/m.pt', 'shards', '.')
CAPTION_OPTIONS = ('--label 3', '--bf16', '--no-bf16', '--guidance cfg', '--classifier-scale 1',
                '--sampler ddim', '--layout openai', '--preset adm-64', '--attention-order new',
                '--heads 1', '--head-width 1', '--schedule linear', '--w 1 --guidance-scale 2',
                '--caption', '--upsampler', '--threads 2', '--device meta', '--out .',
                '--out x/y/z.png', '--out /dev/null', '--out a')
CAPTION_WORDS = [*WORDS, 'a'*10**6, 'a '*10**5, '\U0001f98a'*10**4, '\n\t\r', '\u3000', '\u200b',
              '\xa0', '\0', '\ud800', '\u202e\u05d0', '\x07\x1b]0;x\x07', '\ufdfa'*300,
              'e' + '\u0301'*9999, '--caption', "'; rm -rf *"]


def lines_with(values, lines: dict[str, str]):
    "Every line with each value in the place of @; a name shows the key of a value that has one."
    shown = values if isinstance(values, dict) else {v: v for v in values}
    for (key, v), (name, line) in itertools.product(shown.items(), lines.items()):
        yield name.replace('@', key), run_line, line.replace('@', v)


def captioned_option_cases():
    "Sides, numbers, steps, weights, other files, other options, odd captions."
    for values, lines in NUMBERS.items():
        yield from (case for case in lines_with(values.split(), lines) if case[0] not in SLOW)
    yield from lines_with({name: shlex.quote(str(FIX/name)) for name in CAPTION_FILES}, NAMES)
    yield from lines_with(CAPTION_OPTIONS, MORE)
    for v, (how, line) in itertools.product(CAPTION_WORDS, SAID.items()):
        yield f'{how} {v[:24]!r} ({len(v)})', run_line, line, '--caption', v
    yield 'many captions', run_line, f'{GLIDE} --side 2' + ' --caption x'*200


def killed_writing(when: float, old: bytes | None):
    "kill -9 while a sheet is written: the old one is there, or the new one whole."
    if old:
        Path('a.png').write_bytes(old)
    pid = child('a', 'sample {glide} --caption dog --steps 2 --side 32 --n 60 --out a.png')
    done = 0
    while not done and not [*Path('.').glob('.a.png.*.tmp')]:
        time.sleep(.0005)
        done = os.waitpid(pid, os.WNOHANG)[0]
    if not done:
        time.sleep(when)
        os.kill(pid, signal.SIGKILL)
        code_of(pid)

    # the folder that it left is hidden, and in nobody's way
    for folder in [*Path('.').glob('.a.png.*.tmp')]:
        shutil.rmtree(folder)
    sheet = Path('a.png')
    if sheet.exists() and sheet.read_bytes() != old:
        whole(sheet)
    assert sheet.exists() or not old, 'the old sheet is lost'
    return run_line(f'{GLIDE} --side 8')


def captioned_cases(rng, k: int = 3):
    yield from file_cases(rng, 3, captioned_readers(), ALSO)
    yield from karlo_cases(rng, k)
    yield from glide_cases(rng)
    yield from captioned_option_cases()
    cat = (FIX/'said/cat.png').read_bytes()
    for i in range(6):
        when = rng.random()*.02
        yield (f'kill -9 after {when:.4f} s of writing a sheet, {i}', killed_writing, when,
               cat if i % 2 else None)
