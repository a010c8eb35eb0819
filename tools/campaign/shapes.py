"Odd shapes, types, levels and captions, from Python."
import json
import math
import pickle
import shutil
import traceback
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Callable

import torch
from campaign.files import asked
from campaign.fixtures import put
from campaign.pickles import read_zip
from campaign.right import FIX, Tally, sentence, sound
from hypothesis import HealthCheck, Phase, given, seed as seeded, settings, strategies as st
from torch import Tensor
from ddpm_lit import show
from ddpm_lit.baselines import compare
from ddpm_lit.clip import tokens
from ddpm_lit.clip.zero_shot import fill, read_picture
from ddpm_lit.core.level import from_alpha_bar, from_edm_sigma
from ddpm_lit.core.problem import Problem
from ddpm_lit.data import captions, folder as folders, images, toy
from ddpm_lit.diffusion import sample, schedule
from ddpm_lit.diffusion.oracle import EmpiricalDenoiser
from ddpm_lit.guide.cfg import as_w
from ddpm_lit.interop import checkpoints as theirs
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.systems.manipulate import UnclipEditor
from ddpm_lit.systems.pipeline import Request
from ddpm_lit.core import tensors as in_files
from ddpm_lit.train import recipe as recipes, run as runs

few_int = st.integers(0, 6)
any_int = st.integers(-3, 70)
some_shape = st.lists(st.integers(0, 5), max_size=5)
real = st.floats()
dtype = st.sampled_from([torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32,
                         torch.float64, torch.bool])
text = st.text(max_size=60)
value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                     lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4),
                     max_leaves=12)


@st.deferred
def caption():
    "Words of scenes in any order, and captions of scenes."
    some_words = sorted(captions.LEXICON) + ['at the top left', 'left of', 'on white', ',', '.']
    scenes = captions.every_scene(1)[::97] + captions.every_scene(2)[::997]
    any_order = st.lists(st.sampled_from(some_words), max_size=9).map(' '.join)
    return any_order | st.sampled_from([s.say() for s in scenes])


@st.deferred
def key_of_config():
    config = json.loads((FIX/'ddpm_unet/config.json').read_text())
    return st.sampled_from(sorted(config))


def maybe(good):
    "Good values, and whatever else JSON can say."
    return good | value


def draw(shape, dtype) -> Tensor:
    return (torch.rand(shape)*255).to(dtype)


def same(a, b):
    assert a == b, f'{a!r} is not {b!r}'
    return a


def written(v, name: str) -> Path:
    return put(name, json.dumps(v))


# made when they are needed, and once
tiny_images = cache(lambda: images.Images(torch.zeros(12, 1, 4, 4, dtype=torch.uint8),
                                          torch.arange(12)))
few_shapes = cache(lambda: captions.shapes(n=8, size=16))
roll_denoiser = cache(lambda: EmpiricalDenoiser(toy.swiss_roll(20)))
tiny_network = cache(lambda: small_unet(1, 3, 8, (1, 2), attention=(), unshuffle=1,
                                        middle=False).eval())
PROPERTIES: list[tuple[str, Callable, dict]] = []


def holds(title: str, body: Callable | None = None, /, **strategies):
    "Registers a property: for whatever is drawn, the body refuses or gives something sound."
    if body is None:
        return lambda body: holds(title, body, **strategies)
    PROPERTIES.append((title, body, strategies))


# levels and schedules
holds('level from alpha-bar', lambda a:
      same(bool((from_alpha_bar(a).alpha_bar - a).abs() < 1e-9), True), a=real)
holds('level from sigma', lambda a: [from_edm_sigma(a).signal, from_edm_sigma(a).sigma], a=real)
holds('linear', lambda T, a, b: schedule.linear(T, a, b).log_snr, T=any_int, a=real, b=real)
holds('constant', lambda T, b: schedule.constant(T, b).log_snr, T=any_int, b=real)
holds('cosine', lambda T: schedule.cosine(T).log_snr, T=any_int)
holds('one over t', lambda T: schedule.one_over_t(T).log_snr, T=any_int)
holds('time', lambda x: (schedule.Cosine()(x).log_snr, schedule.linear()(x).log_snr), x=real)
holds('grid', lambda T, n: schedule.grid(
      schedule.linear(T) if T > 1 else schedule.Cosine(), n).log_snr[:-1], T=any_int, n=any_int)
holds('karras', lambda n, lo, hi, rho: schedule.karras(n, lo, hi, rho).log_snr[:-1],
      n=any_int, lo=real, hi=real, rho=real)
holds('respace', lambda spec: sample.respace(schedule.linear(60), spec).log_snr[:-1],
      spec=text | st.lists(any_int, max_size=4).map(
          lambda numbers: ','.join(map(str, numbers))) | any_int.map('ddim{}'.format))

# data
for make in (toy.swiss_roll, toy.moons, toy.circles, toy.tree):
    holds(make.__name__, make, n=any_int | real, noise=real.filter(lambda v: v != math.inf))
holds('ddim', lambda shape, dtype, n, eta: sample.last(sample.ddim(
      roll_denoiser(), schedule.grid(schedule.Cosine(), n), draw(shape, dtype), eta)),
      shape=some_shape | st.tuples(few_int, st.just(2)),
      dtype=dtype.filter(lambda d: d.is_floating_point), n=st.integers(-1, 5),
      eta=real | st.floats(0, 1))
holds('batches', lambda size, drop, flip, step:
      images.Batches(tiny_images(), size, 0, drop, flip)(step),
      size=any_int, drop=real, flip=st.booleans(), step=st.integers(0, 99))
holds('square', lambda shape, size: images.square(draw(shape, torch.uint8), size),
      shape=some_shape, size=any_int)
holds('bytes', lambda x:
      same(images.to_bytes(images.to_unit(torch.tensor(x, dtype=torch.uint8))).tolist(), x),
      x=st.lists(st.integers(0, 255)))
holds('load_images', images.load_images,
      name=st.sampled_from(['shapes', 'mnist', 'emoji', 'lsun']) | text, n=st.integers(-2, 9),
      split=st.sampled_from(['train', 'test']) | text, size=st.none() | any_int)
holds('captioned', lambda shape, dtype, k:
      captions.Captioned(draw(shape, dtype), few_shapes().rows[:k]),
      shape=some_shape, dtype=dtype, k=few_int)
holds('join', lambda sizes: captions.join(*[captions.shapes(n=1, size=s) for s in sizes]),
      sizes=st.lists(st.sampled_from([16, 32]), max_size=3))
holds('caption batches', lambda size, drop, shift, step: captions.CaptionBatches(
      few_shapes(), tokens.caption_tokenizer(), size, 0, drop, shift)(step),
      size=any_int, drop=real, shift=any_int, step=few_int)
holds('shapes', lambda split, k, size, objects: captions.shapes(split, k, size, 0, objects),
      split=st.sampled_from(['train', 'test', 'all']) | text, k=st.integers(-2, 9),
      size=any_int | st.sampled_from([16, 32, 64]), objects=st.integers(-1, 3))

# captions and tokens
@holds('read', c=caption | text)
def _(c):
    scene = captions.read(c)
    complete = scene.where and scene.ground
    return same(captions.read(scene.say() if complete else c), scene)


holds('parse', lambda shape, dtype, bad:
      same(len(captions.parse(draw(shape, dtype)*bad)), shape[0]),
      shape=some_shape | st.tuples(few_int, st.just(3), st.just(16), st.just(16)),
      dtype=dtype, bad=st.sampled_from([1, 0, math.nan, math.inf, -1]))


@holds('our tokens', t=text | caption)
def _(t):
    ours = tokens.caption_tokenizer()
    return same(ours.decode(ours.encode(t)), t), ours(t, 'truncate')


@holds("CLIP's tokens", t=text | caption | st.text(min_size=200, max_size=3000))
def _(t):
    clip = tokens.clip_tokenizer()
    return clip(t), clip.decode(clip.encode(t))


holds('half characters', lambda t: tokens.clip_tokenizer()(t),
      t=st.text(st.characters(categories=['Cs', 'Ll']), max_size=9))
holds('template', fill, template=text | text.map('{}{{}}'.format), names=st.lists(text))

# networks and requests
holds('guidance', lambda a, b: as_w(a, b) if a is None or math.isfinite(a) else 0.,
      a=st.none() | real, b=st.none() | st.floats(-9, 9))
holds('labels', lambda label, b: tiny_network()(
      torch.randn(b, 1, 4, 4), torch.tensor(.5), label if label is None else torch.tensor(label)),
      label=st.none() | any_int | st.lists(any_int, max_size=4), b=st.integers(1, 3))
holds('network', lambda dtype, shape: tiny_network()(draw(shape, dtype), torch.tensor(.5)),
      dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bool]),
      shape=some_shape | st.tuples(st.just(2), st.just(1), st.integers(0, 9), st.integers(0, 9)))


@holds('request', captions=maybe(st.lists(text, max_size=3).map(tuple)),
       data=maybe(st.sampled_from(['emoji', 'shapes'])), seed=maybe(any_int),
       steps=maybe(st.tuples(any_int, any_int, any_int)), w=maybe(real),
       guidance=maybe(st.sampled_from(['cfg', 'clip'])), clip_scale=maybe(st.none() | real),
       strength=maybe(st.floats(0, 1)))
def _(**options):
    Request(**options)


@holds('studio', data=maybe(st.sampled_from(['emoji', 'shapes'])), seed=maybe(any_int),
       steps=maybe(st.tuples(st.integers(1, 9), any_int, any_int)), w=maybe(real))
def _(**options):
    UnclipEditor(**options)


# pictures and files
holds('sheet', lambda shape, dtype, columns, scale:
      show.save_sheet(draw(shape, dtype)*scale, 's.png', columns),
      shape=some_shape, dtype=dtype, columns=any_int, scale=st.sampled_from([1, math.nan, 1e30]))
holds('captioned rows', lambda shapes, said:
      show.save_captioned([torch.zeros(s) for s in shapes], said, 'c.png'),
      said=st.lists(text, max_size=3),
      shapes=st.lists(st.tuples(few_int, st.just(3), few_int, few_int), max_size=3))


@holds('write and read', tensors=st.dictionaries(text, st.builds(draw, some_shape, dtype),
                                                 max_size=4))
def _(tensors):
    in_files.write_tensors('w.safetensors', tensors)
    back = in_files.read_tensors('w.safetensors')
    same({k: v.shape for k, v in tensors.items()}, {k: v.shape for k, v in back.items()})


@holds('settings of a run', v=value)
def _(v):
    p = written(v, 'd/run.json')
    shutil.copy(FIX/'run/state.safetensors', 'd/state.safetensors')
    return runs.choose_settings(p.parent, recipes.find_recipe('roll'), {}, True, False,
                                torch.device('cpu'))


holds('log of a run', lambda v: runs.Log(written(v, 'd/log.jsonl'), 3).lines, v=value)
holds('cards of runs', lambda v: [*compare.read_cards(written(v, 'd/cards.json').parent)],
      v=value | st.lists(st.dictionaries(st.sampled_from(['family', 'data']), value)))
holds('index of shards', lambda v: theirs.read_state(written(v, 'd/m.safetensors.index.json')),
      v=value | st.fixed_dictionaries(dict(weight_map=value)))


@holds('configuration', keys=st.lists(key_of_config, min_size=1, max_size=2, unique=True),
       values=st.lists(value | any_int, min_size=2, max_size=2))
def _(keys, values):
    "Whatever JSON, in a configuration of diffusers'."
    shutil.copytree(FIX/'ddpm_unet', 'c', dirs_exist_ok=True)
    config = json.loads((FIX/'ddpm_unet/config.json').read_text())
    written(config | dict(zip(keys, values)), 'c/config.json')
    return asked(theirs.open_denoiser('c'))


holds('captions of a folder', lambda v: folders._captions_in(written(v, 'd/metadata.jsonl')),
      v=value | st.fixed_dictionaries(dict(file_name=value, text=value)))
holds('plain pickles', lambda v: theirs.read_state(put('m.pt', pickle.dumps(v, 2))), v=value)
holds('pickles in a zip', lambda v: read_zip({'a/data.pkl': pickle.dumps(v, 2)}), v=value)
holds('any bytes as a picture', lambda raw: read_picture(put('p', raw)),
      raw=st.binary(max_size=200) | st.binary(max_size=60).map(b'GIF89a'.__add__))
holds('any bytes as merges', lambda raw: tokens.Tokenizer(
      tokens.read_pairs(put('v', b'#\n' + raw)), tokens.split_gpt2, 16, [])(['abc']),
      raw=st.binary(max_size=60) | text.map(str.encode))


def property_of(body: Callable, strategies: dict, seed: int, examples: int) -> Tally:
    "Many examples of a property; the smallest one that fails is named."
    counts = Counter(refused=0, worked=0)
    last, failed = {}, []

    @seeded(seed)
    @settings(max_examples=examples, database=None, deadline=None, report_multiple_bugs=False,
              suppress_health_check=[*HealthCheck], phases=[Phase.generate, Phase.shrink])
    @given(**strategies)
    def each(**drawn):
        last.clear()
        last.update(drawn)
        try:
            sound(body(**drawn))
            counts['worked'] += not failed
        except Problem as e:
            sentence(str(e).replace('\n', ' '))
            counts['refused'] += not failed
        except Exception:
            failed.append(1)
            raise

    failures = ()
    try:
        each()
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        failures = (f'{type(e).__name__}: {str(e)[:200]} for {str(last)[:300]} '
                    f'[{Path(at.filename).name}:{at.lineno}]',)
    return Tally(**counts, failures=failures)


def shape_cases(seed: int, examples: int):
    for title, body, strategies in PROPERTIES:
        yield f'{title}, seed {seed}', property_of, body, strategies, seed, examples
