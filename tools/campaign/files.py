"Files that are cut, flipped in some bits, or gone."
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, Callable

import torch
from campaign.fixtures import copy_in
from campaign.right import FIX, nothing, run, run_line
from ddpm_lit.baselines import compare
from ddpm_lit.clip import tokens
from ddpm_lit.clip.zero_shot import read_picture
from ddpm_lit.data import folder as folders, images
from ddpm_lit.diffusion import sample, schedule
from ddpm_lit.interop import checkpoints as theirs, glide, unclip
from ddpm_lit.train import fit, recipe as recipes, weights as stored
from ddpm_lit.train.measure import load_classifier


def roll():
    return fit.Training(recipes.find_recipe('roll').build())


def asked(found):
    "A model and its recipe -> what it draws."
    model, recipe = found
    levels = schedule.grid(schedule.Cosine(), 2)
    noise = torch.randn(2, *recipe.shape)
    return [model, sample.last(sample.ddim(model.given(), levels, noise))]


def load_weights(p):
    return stored.load_weights(str(p))


def load_state(p):
    return roll().load(p).state()


def resumed(p):
    "Go on with a copy of a run; what is not copied is missing."
    copy_in('run', *(q for q in p.parent.iterdir() if q.is_file()))
    return run_line('train roll --steps 8 --out run --resume')


def data_set(name: str, *more):
    "Reads a data set, from wherever DDPM_LIT_DATA leads."
    return lambda p: images.load_images(name, *more)


def of_folder(read: Callable):
    "Reads the folder of a file."
    return lambda p: read(p.parent)


def small_set(p):
    return folders.read_folder(p, 8)


def whole_state(p):
    return [*theirs.read_state(p)]


def configured(name: str, load: Callable, *left_out: str):
    "Loads weights of a fixture by its configuration, which is whole."
    def read(p):
        config = json.loads((FIX/name/'config.json').read_text())
        return load(p, {k: v for k, v in config.items() if k not in left_out})

    return read


def parity(p):
    "The command; its code 1 only says that something differs."
    return run('parity', str(p), '--json', found=1)


# A line is a command: {file} is the file, {folder} its folder, {weights} the weights beside a card.
# A CLIP of the fixtures has a vocabulary of its own: words of ours are beyond it.
EVAL = 'eval {weights} --n 12 --steps 2 --json'
INIT = 'train roll --init --steps 2 --batch 8 --out r --json'
CLASSIFY = 'classify {file} a b --weights {clip} --json'
WITH_CLIP = 'classify {cat} a b --weights {file} --json'

# file of the fixtures, and after a colon the way it is read: what reads it
READERS = {
    'run/roll.safetensors:load': lambda p: asked(load_weights(p)),
    'run/roll.safetensors:sample': 'sample {file} --n 4 --steps 2 --out a.png --json',
    'run/roll.safetensors:eval': EVAL,
    'run/roll.json:eval': EVAL,
    'run/state.safetensors:load': load_state,
    'run/state.safetensors:resume': resumed,
    'run/run.json:resume': resumed,
    'run/log.jsonl:resume': resumed,
    'store/weights/roll.json:init': INIT,
    'store/weights/roll.safetensors:init': INIT,
    'data/mnist/t10k-images-idx3-ubyte.gz': data_set('mnist', 'test'),
    'data/mnist/train-labels-idx1-ubyte': data_set('mnist'),
    'data/mnist/train-labels-idx1-ubyte:train': 'train mnist --steps 1 --batch 2 --out r --json',
    'data/ddpm_lit/FashionMNIST/raw/train-images-idx3-ubyte.gz': data_set('fashion-mnist'),
    'data/cifar-10-batches-bin/test_batch.bin': data_set('cifar10', 'test'),
    'data/cifar-10-batches-py/data_batch_3': images._read_cifar,
    **{f'data/{name}': data_set(name.split('/')[0]) for name in (
        'celeba/list_attr_celeba.txt', 'celeba/list_eval_partition.txt',
        'celeba/img_align_celeba/000002.jpg', 'celebahq/a/1.png', 'celebahq/a/2.jpg',
        'lsun/b/3.webp', 'lsun/b/4.gif', 'imagenet/b/5.bmp', 'emoji/base.jsonl',
        'emoji/base-noto-64.webp')},
    **dict.fromkeys(('said/dog.png', 'said/dog.txt', 'said/metadata.jsonl'),
                    of_folder(folders.pictures_with_captions)),
    **dict.fromkeys(('mine/1.png', 'mine/3.tif', 'mine/labels.csv', 'mine/captions.txt'),
                    lambda p: folders.read_folder(p.parent, 8, 'pad', labels='labels.csv')),
    'tar/a.tar': small_set,
    **dict.fromkeys(('vocab/v.bpe', 'vocab/v.bpe.gz'), lambda p: tokens.Tokenizer(
        tokens.read_pairs(p), tokens.split_gpt2, 32, [])(['a red heart'])),
    'said/cat.png:picture': read_picture,
    'said/cat.png:classify': CLASSIFY,
    'said/cat.png:search': 'search {folder} a b --weights {clip} --json',
    'said/cat.png:vary': 'vary {file} --n 0',
    'names/names.txt:classify': 'classify {cat} --names {file} --weights {clip}',
    **dict.fromkeys(('new/m.pt', 'old/m.pt', 'script/m.pt'), whole_state),
    'new/m.pt:clip': theirs.clip_at,
    'new/m.pt:classify': WITH_CLIP,
    'openai_clip_vit/m.safetensors': theirs.clip_at,
    'openai_clip_vit/m.safetensors:classify': WITH_CLIP,
    'openai_clip_vit/config.json': of_folder(theirs.clip_at),
    'iddpm_unet/m.safetensors': lambda p: asked(theirs.open_denoiser(
        p, order='legacy', heads=4, schedule='linear', side=8)),
    **dict.fromkeys(('ddpm_unet/m.safetensors', 'ddpm_unet/config.json',
                     'ddpm_unet/scheduler_config.json'),
                    lambda p: asked(theirs.open_denoiser(p.parent))),
    'ddpm_unet/config.json:sample': 'sample {folder} --layout auto --n 2 --steps 2',
    'shards/m.safetensors.index.json': theirs.read_state,
    'shards/a.safetensors': of_folder(whole_state),
    'unclip_prior/m.safetensors': configured('unclip_prior', unclip.load_prior),
    'unclip_upsampler/m.safetensors': configured('unclip_upsampler', unclip.load_upsampler),
    'glide_superres/m.safetensors': configured(
        'glide_superres', lambda p, config: glide.load_glide(p, config=config), 'small_size'),
    'parity/f.safetensors': parity,
    'reader/m.safetensors': load_classifier,
    'compare/cards.json': 'compare --out {folder} --n 100 --json',
    'compare/gan-points.safetensors':
        lambda p: compare.load_contender('gan', 'points', p.parent)}


def read_by(reader: Callable | str, p: Path):
    "Give a file to a function, or to the command of a line."
    if callable(reader):
        return reader(p)
    return run_line(reader, file=p, folder=p.parent, weights=p.with_suffix('.safetensors'))


def damages(raw: bytes, rng: random.Random, k: int):
    "A file, broken in every way: (how, bytes)."
    yield from dict(empty=b'', one_byte=raw[:1], zeros=bytes(len(raw)),
                    twice=raw*2, tail=raw + b'\0', space=b' \n',
                    list=b'[]', number=b'7', null=b'null', object=b'{}',
                    ff=b'\xff\xfe' + raw).items()
    number = rng.randrange(10**6)
    yield f'noise {number}', random.Random(number).randbytes(len(raw))
    for i in range(k):
        within = min(len(raw), (64, 600, len(raw))[i % 3])
        n = rng.randrange(1, max(2, within))
        yield f'cut at {n}', raw[:n]
    for i in range(2*k):
        within = min(len(raw), (24, 400, len(raw))[i % 3])
        n = rng.randrange(within)
        b = rng.randrange(8)
        yield f'bit {b} of byte {n}', raw[:n] + bytes([raw[n] ^ 1 << b]) + raw[n + 1:]


def link_to(target):
    return lambda p: p.symlink_to(target)


def link_to_itself(p):
    p.symlink_to(p.name)


def three_gigabytes(p):
    "A file that says it is large, and takes no room on the disk."
    with open(p, 'wb') as f:
        f.truncate(3 << 30)


# what stands in the place of a file
PLACES = dict(missing=nothing, folder=Path.mkdir, loop=link_to_itself, dangling=link_to('nowhere'),
              pipe=os.mkfifo, endless=link_to('/dev/zero'), void=link_to('/dev/null'),
              sparse=three_gigabytes)


def put_there(path: Path, make: Callable[[Path], Any]):
    path.unlink()
    make(path)


def spoiled(path: Path, reader, change: Callable, *args):
    "Change a file in a copy of its folder, and read it."
    home = path.parts[0]
    shutil.copytree(FIX/home, 'in')
    p = (Path('in')/path.relative_to(home)).resolve()
    change(p, *args)
    os.environ['DDPM_LIT_DATA'] = str(Path('in').resolve())
    return read_by(reader, p)


def file_cases(rng, k: int = 5, readers=READERS, places=PLACES):
    "Each file whole, then damaged, then with something else in its place."
    for name, reader in readers.items():
        path = Path(name.split(':')[0])
        yield f'{name} whole', spoiled, path, reader, nothing
        for how, raw in damages((FIX/path).read_bytes(), rng, k):
            yield f'{name} {how}', spoiled, path, reader, Path.write_bytes, raw
        for how, make in places.items():
            yield f'{name} {how}', spoiled, path, reader, put_there, make
