"Random damage to pictures and fixtures, and options in any company."
import io
import itertools
import json
import random
import struct
import warnings
import zlib
from collections import Counter
from typing import Callable

import click
import numpy as np
from campaign.captions import CHANGED, VALUES
from campaign.files import parity
from campaign.fixtures import head_of, put
from campaign.right import FIX, Refused, Tally, run, sentence, sound, words_of
from campaign.values import DEVICES, NUMBERS, RUNS, WORDS, is_number
from PIL import Image
from safetensors.torch import load_file, save_file
from ddpm_lit.cli import base as cli
from ddpm_lit.clip.zero_shot import read_picture
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.problem import Problem


def fuzzed(attempts: Callable, what: str, seed: str) -> Tally:
    "Many attempts, each of which is refused or works; one that fails is named."
    counts = Counter(refused=0, worked=0)
    for name, attempt in attempts(what, random.Random(f'{what} {seed}')):
        try:
            sound(attempt())
            counts['worked'] += 1
        except (Refused, Problem) as e:
            sentence(str(e))
            counts['refused'] += 1
        except Exception as e:
            raise AssertionError(f'{name}: {type(e).__name__}: {e}') from e
    return Tally(**counts)


PICTURE_KINDS = dict(PNG={}, JPEG={}, WEBP={}, GIF={}, BMP={}, TIFF={}, PPM={},
                     lossless=dict(format='WEBP', lossless=True),
                     progressive=dict(format='JPEG', progressive=True),
                     lzw=dict(format='TIFF', compression='tiff_lzw'))


def mutant(raw: bytes, rng) -> bytes:
    "Bytes with a few of them changed, left out, moved or taken from elsewhere."
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i = rng.randrange(min(len(raw), rng.choice((32, 400, len(raw)))))
        how = rng.randrange(5)
        if how == 0:
            raw[i] ^= 1 << rng.randrange(8)
        elif how == 1:
            raw[i:i + 4] = rng.choice((b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', b'\0\0\0\1'))
        elif how == 2:
            del raw[i:i + rng.randint(1, 9)]
        elif how == 3:
            j = rng.randrange(len(raw))
            raw[i:i + 8] = raw[j:j + rng.randint(0, 40)]
        else:
            raw[i:i] = rng.randbytes(rng.randint(1, 9))
        raw = raw or bytearray(b'x')
    return bytes(raw)


def with_sums(raw: bytes) -> bytes:
    "A PNG whose parts have the sums that belong to them, so that a decoder reads on."
    out, at = raw[:8], 8
    while at + 12 <= len(raw):
        size = struct.unpack('>I', raw[at:at + 4])[0]
        part = raw[at + 4:at + 8 + size]
        out += raw[at:at + 4] + part + struct.pack('>I', zlib.crc32(part))
        at += 12 + size
    return out


def modes_of(kind: str, file_format: str) -> tuple[str, ...]:
    "The modes that a format has."
    if file_format in ('JPEG', 'PPM', 'BMP'):
        return 'RGB', 'L'
    return ('RGB', 'RGBA') if kind == 'lossless' else ('RGB', 'L', 'RGBA')


def noise_picture(kind: str, rng) -> bytes:
    "A whole picture of noise."
    how = dict(format=kind) | PICTURE_KINDS[kind]
    mode = rng.choice(modes_of(kind, how['format']))
    pixels = np.frombuffer(rng.randbytes(24*20*4), np.uint8).reshape(24, 20, 4)
    file = io.BytesIO()
    Image.fromarray(pixels.copy(), 'RGBA').convert(mode).save(file, **how)
    return file.getvalue()


def read_strictly():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return read_picture('p.png')


def mutants(kind: str, rng, n: int = 400):
    "Damaged copies of a picture; of a PNG three in four have sums that fit."
    whole = noise_picture(kind, rng)
    for i in range(n):
        raw = mutant(whole, rng)
        put('p.png', with_sums(raw) if kind == 'PNG' and i % 4 else raw)
        yield f'mutant {i}', read_strictly


def misfit(tensors: dict, words: dict, key: str, how: int, rng):
    "A tensor that is missing, another or renamed, another setting, or no settings at all."
    if how == 0:
        del tensors[key]
    elif how == 1:
        tensors[key] = rng.choice([*CHANGED.values()])(tensors[key]).contiguous()
    elif how == 2:
        options = json.loads(words['config'])
        options[rng.choice([*options])] = rng.choice(VALUES)
        words['config'] = json.dumps(options)
    elif how == 3:
        tensors['out.\x1b]0;x\x07\u202e'] = tensors.pop(key)
    else:
        words['config'] = rng.choice(('[1]', '7', '{', 'null', '{"a": NaN}'))


def misfits(name: str, rng, n: int = 3):
    "A fixture that is whole as a file, each time with one thing that does not fit."
    path = data_dir('parity', name)
    state = load_file(path)
    inputs = [k for k in state if k.startswith('in.')]
    for i in range(n):
        tensors, words = dict(state), head_of(path)
        key = rng.choice(inputs if inputs and rng.random() < .5 else [*state])
        how = rng.randrange(5)
        misfit(tensors, words, key, how, rng)
        save_file(tensors, 'f.safetensors', words)
        yield f'change {i} of kind {how} at {key}', lambda: parity('f.safetensors')


PLAUSIBLE = {'seed': ('0', '7'), 'n': ('1', '3'), 'steps': ('1', '3'), 'batch': ('1', '5'),
             'w': ('0', '.5', '-2'), 'strength': ('.5', '0', '1'), 'top': ('1', '9'),
             'device': ('cpu',), 'threads': ('1',)}
SLOW = ('train', 'demo', 'compare', 'bench')


def odd_value(p: click.Parameter, rng) -> str:
    "A value that may be right or odd."
    odd = NUMBERS if is_number(p) else DEVICES if p.name == 'device' else WORDS
    return rng.choice(PLAUSIBLE.get(p.name, odd) if rng.random() < .5 else odd)


def mixed_options(rng) -> tuple[str, ...]:
    "A command with up to four options."
    (command, _), line = rng.choice([run for run in RUNS.items() if run[0][0] not in SLOW])
    words = words_of(line)
    params = [p for p in cli.command.get_command(None, command).params
              if isinstance(p, click.Option) and p.name != 'help']
    for p in rng.sample(params, rng.randint(1, min(4, len(params)))):
        value = odd_value(p, rng)
        words += [p.opts[0]] if p.is_flag else [p.opts[0], value]
    return tuple(words)


def fuzz_cases(rng, n: int = 12):
    seed = rng.randrange(10**6)
    for kind, i in itertools.product(PICTURE_KINDS, range(n)):
        yield f'pictures: {kind}, {seed} {i}', fuzzed, mutants, kind, f'{seed} {i}'
    for name in sorted(p.name for p in data_dir('parity').glob('*.safetensors')):
        for i in range(max(1, n // 4)):
            yield f'parity: {name}, {seed} {i}', fuzzed, misfits, name, f'{seed} {i}'
    for i in range(5*n):
        words = mixed_options(rng)
        shown = ' '.join(word.replace(str(FIX), '')[:16] for word in words)
        yield f'options {i}: {ascii(shown)[1:-1]}', run, *words
