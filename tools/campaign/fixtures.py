"Fixtures: what is whole, before anything is broken."
import contextlib
import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from campaign.right import FIX, quietly
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from ddpm_lit import show
from ddpm_lit.bench.parity import read_fixture
from ddpm_lit.core.files import data_dir
from ddpm_lit.data import captions
from ddpm_lit.interop import checkpoints as theirs, glide, unet as weights
from ddpm_lit.train import recipe as recipes, run as runs

TRAIN_TO = 'train roll --steps 24 --batch 16 --save-every 0 --out'


def put(path, raw: bytes | str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def idx(a) -> bytes:
    "An array in the format of MNIST."
    return b'\0\0\x08' + bytes([a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()


def change_json(path: Path, /, *left_out: str, **new):
    "Settings of a file are changed or left out."
    kept = json.loads(path.read_text()) | new
    put(path, json.dumps({k: v for k, v in kept.items() if k not in left_out}))


def head_of(path: Path) -> dict[str, str]:
    with safe_open(path, 'pt') as f:
        return f.metadata()


def change_tensors(path: Path, change: Callable[[dict], dict]):
    "The tensors of a file are changed, and its head is kept."
    state = change(load_file(path))
    save_file({name: w.contiguous() for name, w in state.items()}, path, head_of(path))


def own_pictures(folder: str = 'd'):
    "Four pictures in a folder."
    for k in range(4):
        put(Path(folder)/f'{k}.png', show.png(torch.full((1, 3, 8, 8), k/4), zoom=1))


def own_run(line: str = '--steps 2'):
    "A small run `r` of the pictures in `d`."
    own_pictures()
    quietly(f'train --data d --batch 2 --base 8 --no-augment --out r {line}')


def make_picture(rng, path: str, *shape: int, **how):
    "A picture of noise, in a file."
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path, **how)


def make_mnist(rng):
    "MNIST and Fashion-MNIST, a few rows of each part; digits and a table of one's own."
    x = rng.integers(0, 255, (30, 28, 28), dtype=np.uint8)
    y = rng.integers(0, 10, 30, dtype=np.uint8)
    for part, where in itertools.product(('train', 't10k'),
                                         ('data/mnist', 'data/ddpm_lit/FashionMNIST/raw')):
        put(f'{where}/{part}-images-idx3-ubyte.gz', gzip.compress(idx(x)))
        put(f'{where}/{part}-labels-idx1-ubyte', idx(y))
    make_picture(rng, 'digit/1.png', 28, 28)
    make_picture(rng, 'digit/2.png', 7, 7)
    put('series.csv', '\n'.join(f'{v:.3f}' for v in rng.normal(size=120)))


def make_cifar(rng):
    "CIFAR-10 in both of its formats."
    rows = rng.integers(0, 9, (4, 3073), dtype=np.uint8)
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        put(f'data/cifar-10-batches-bin/{name}.bin', rows.tobytes())
        batch = dict(data=rows[:, 1:], labels=rows[:, 0].tolist())
        put(f'data/cifar-10-batches-py/{name}', pickle.dumps(batch, 2))


def make_folders(rng):
    "Pictures of five formats in folders."
    kinds = {'a/1.png': 'PNG', 'a/2.jpg': 'JPEG', 'b/3.webp': 'WEBP', 'b/4.gif': 'GIF',
             'b/5.bmp': 'BMP'}
    for (name, kind), home in itertools.product(kinds.items(), ('celebahq', 'lsun', 'imagenet')):
        make_picture(rng, f'data/{home}/{name}', 20, 24, 3, format=kind)


def make_celeba(rng):
    "CelebA: three faces and what its tables say of them."
    faces = [f'{i:06}.jpg' for i in range(1, 4)]
    celeba = {'list_eval_partition.txt': [f'{f} 0' for f in faces],
              'identity_CelebA.txt': [f'{f} {i}' for i, f in enumerate(faces)],
              'list_attr_celeba.txt': ['3', 'Bald Young', *(f'{f} -1 1' for f in faces)],
              'list_bbox_celeba.txt': ['3', 'image_id x y w h', *(f'{f} 1 2 3 4' for f in faces)],
              'list_landmarks_align_celeba.txt': ['3', 'a b', *(f'{f} 1 2' for f in faces)]}
    for name, lines in celeba.items():
        put(f'data/celeba/{name}', '\n'.join(lines) + '\n')
    for f in faces:
        make_picture(rng, f'data/celeba/img_align_celeba/{f}', 21, 17, 3)


def make_captioned(rng):
    "Pictures with captions beside them, in tables and in a tar."
    make_picture(rng, 'said/dog.png', 20, 24, 3)
    put('said/dog.txt', 'a dog\nsome dog\n')
    make_picture(rng, 'said/cat.png', 64, 64, 4)
    put('said/metadata.jsonl', '{"file_name": "cat.png", "text": "a cat"}\n')

    # a folder with labels and captions in tables, and a tar of samples
    for name in ('1.png', '2.jpg', '3.tif'):
        make_picture(rng, f'mine/{name}', 20, 24, 3)
    put('mine/labels.csv', 'file,label\n1.png,a\n2.jpg,b\n3.tif,a\n')
    put('mine/captions.txt', '1.png\ta dog\n2.jpg\ta cat\n3.tif\ta cat\n')
    put('tar/1.txt', 'a dog')
    put('tar/1.cls', '7')
    with tarfile.open('tar/a.tar', 'w') as tar:
        for name in ('mine/1.png', 'tar/1.txt', 'tar/1.cls', 'mine/2.jpg'):
            tar.add(name, Path(name).name)


def make_emoji(rng):
    "A few emoji in every style."
    lines = []
    with open(data_dir('emoji', 'base.jsonl'), encoding='utf-8') as f:
        for i, line in enumerate(itertools.islice(f, 6)):
            tiles = dict.fromkeys(captions.STYLES, i)
            row = json.loads(line) | dict(tiles=tiles, split='train' if i else 'test')
            lines.append(json.dumps(row))
    put('data/emoji/base.jsonl', '\n'.join(lines))
    for style in captions.STYLES:
        make_picture(rng, f'data/emoji/base-{style}-64.webp', 128, 192, 3, lossless=True)


def make_words():
    "Vocabularies, and names of classes."
    merges = data_dir('vocab', 'captions.bpe').read_bytes()
    put('vocab/v.bpe', merges)
    put('vocab/v.bpe.gz', gzip.compress(merges))
    put('names/names.txt', 'a dog\na cat\n')


def network_of(name: str) -> tuple[dict, dict]:
    "The tensors and the configuration of a small network of another program."
    f = read_fixture(data_dir('parity', f'{name}.safetensors'))
    state = {k: v.float() if v.is_floating_point() else v for k, v in f.weights.items()}
    return state, dict(f.config)


def make_pickled(state: dict):
    "The same tensors in a zip, in a plain pickle, and a program."
    for kind in ('new', 'old', 'script'):
        Path(kind).mkdir()
    torch.save(state, 'new/m.pt')
    torch.save(state, 'old/m.pt', _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).save('script/m.pt')


def make_shards(state: dict):
    "The same tensors in two files and an index."
    keys = sorted(state)
    weight_map = {}
    for name, part in (('a.safetensors', keys[::2]), ('b.safetensors', keys[1::2])):
        put(f'shards/{name}', save({k: state[k] for k in part}))
        weight_map |= dict.fromkeys(part, name)
    put('shards/m.safetensors.index.json', json.dumps(dict(weight_map=weight_map)))


def make_networks():
    "Small networks of other programs, in every kind of file."
    more = dict(openai_clip_vit=dict(vision_config=dict(num_attention_heads=1),
                                     text_config=dict(num_attention_heads=4)))
    for name in ('iddpm_unet', 'ddpm_unet', 'openai_clip_vit', 'unclip_prior', 'glide_superres',
                 'unclip_upsampler'):
        state, config = network_of(name)
        put(f'{name}/m.safetensors', save(state))
        put(f'{name}/config.json', json.dumps(config | more.get(name, {})))
    steps = dict(num_train_timesteps=50, beta_schedule='linear', beta_start=1e-4, beta_end=.02)
    put('ddpm_unet/scheduler_config.json', json.dumps(steps))
    make_pickled(network_of('openai_clip_vit')[0])
    make_shards(network_of('unclip_upsampler')[0])


def about_of(part: str) -> str:
    "The file that configures a part of Karlo's folder."
    return 'config.json' if part in theirs.UNCLIP_FOLDERS else 'scheduler_config.json'


def make_karlo():
    "A folder like Karlo's: tiny networks, as many tokens as CLIP has."
    f = read_fixture(data_dir('parity', 'unclip_run.safetensors'))
    w = dict(f.weights)
    place = w['prior.positional_embedding']
    w['prior.positional_embedding'] = torch.cat([torch.randn(1, 77, 16).half(), place[:, -4:]], 1)
    for name, n in (('token', 49_408), ('position', 77)):
        key = f'text_encoder.text_model.embeddings.{name}_embedding.weight'
        w[key] = torch.randn(n, 16).half()
    f.config['text_encoder'] |= dict(vocab_size=49_408, max_position_embeddings=77)
    f.config['prior'] |= dict(num_embeddings=77)
    for part in (*theirs.UNCLIP_FOLDERS, *theirs.SCHEDULERS):
        put(f'karlo/{part}/{about_of(part)}', json.dumps(f.config[part]))
    for part in theirs.UNCLIP_FOLDERS:
        state = {k.removeprefix(f'{part}.'): v for k, v in w.items() if k.startswith(f'{part}.')}
        save_file(state, f'karlo/{part}/m.safetensors')


def make_glide():
    "Tiny networks in the format of GLIDE."
    Path('glide').mkdir()
    tiny = dict(model_channels=32, xf_width=8, xf_layers=1, xf_heads=1, num_res_blocks=1,
                channel_mult=(1, 2), attention_resolutions=(2,))
    for name, kind, more in (('base', 'base', {}), ('upsample', 'upsample', {}),
                             ('inpaint', 'inpaint', {}), ('words', 'base', dict(n_vocab=60))):
        net = glide.glide_openai(kind, tiny | more)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=.05)
        state = {k: v.half() for k, v in weights.to_official(net).items()}
        torch.save(state, f'glide/{name}.pt')


def copy_in(folder: str, *paths):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy(path, folder)


def make_fixtures():
    "Small files of every kind that the library reads."
    rng = np.random.default_rng(0)
    os.chdir(FIX)
    quietly('train roll --steps 8 --batch 16 --out run')
    for make in (make_mnist, make_cifar, make_folders, make_celeba, make_captioned, make_emoji):
        make(rng)
    for make in (make_words, make_networks, make_karlo, make_glide):
        make()

    copy_in('compare', data_dir('runs', 'compare', 'gan-points.safetensors'))
    put('parity/f.safetensors', data_dir('parity', 'ddpm_unet.safetensors').read_bytes())
    put('reader/m.safetensors', data_dir('weights', 'digits-classifier.safetensors').read_bytes())
    cards = json.loads(data_dir('runs', 'compare', 'cards.json').read_text())
    cards = [c for c in cards if (c['family'], c['data']) == ('gan', 'points')]
    put('compare/cards.json', json.dumps(cards))
    copy_in('store/weights', 'run/roll.safetensors', 'run/roll.json')


def make_runs():
    "A run that nobody disturbs, and the same run half-way."
    quietly(f'{TRAIN_TO} {FIX}/ref')
    options = dict(steps=24, batch=16, lr=None, seed=None, bf16=None)
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        half = runs.open_run(FIX/'half', recipes.find_recipe('roll'), options,
                             place=runs.Place(torch.device('cpu')))
        for line in runs.go(half):
            if line['step'] == 10:
                half.save()
                break
