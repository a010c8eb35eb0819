"""Tries every public command and loader with broken input and counts: refused with a sentence, worked, anything else is a failure.

    python tools/campaign.py [--seed 0] [--only PART ...] [--case TEXT] [--json]

Each case runs in a folder of its own, in a forked process with a limit on memory and on processor time. Refused means a `Problem`, or from a command
an exit code that is not zero and one line on standard error that begins with `ddpm_lit:`. Worked means that what came of it was looked at: finite
numbers, files that load. A traceback, a warning, a hang, NaN, a half-written or lost file, a signal, too much memory: a failure, told with the line that repeats it.
"""
import argparse, contextlib, gzip, hashlib, io, itertools, json, math, multiprocessing, os, pickle, random, re, resource, select, shutil, signal, struct, subprocess, sys, tempfile, time, traceback, warnings, zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple

os.environ |= dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg')
os.environ.pop('DDPM_LIT_DATA', None)
import click, numpy as np, torch
from hypothesis import HealthCheck, Phase, given, seed as seeded, settings, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from ddpm_lit import cli, show
from ddpm_lit.clip import tokens
from ddpm_lit.clip.zero_shot import fill, read_picture
from ddpm_lit.core.check import Problem, data_dir
from ddpm_lit.core.denoiser import Model
from ddpm_lit.core.level import from_alpha_bar, from_edm_sigma
from ddpm_lit.data import captions as words, images, toy
from ddpm_lit.diffusion import sample, schedule
from ddpm_lit.diffusion.oracle import Ideal
from ddpm_lit.guide.free import as_w
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.rivals import compare
from ddpm_lit.scale import glide, open as theirs, unclip, weights
from ddpm_lit.systems.manipulate import Studio
from ddpm_lit.systems.upsample import Request
from ddpm_lit.train import fit
from ddpm_lit.train.measure import load_classifier

# of the processor, of addresses beyond those at the start, of memory really used: for each case
SECONDS, MEMORY, GROWTH = 60, 4 << 30, 1 << 29

class Refused(Exception):
    "A command said no, and said it well."

class Skipped(Exception):
    "This machine does not let us try."

class Slow(BaseException):
    "The limit on processor time."

class Tally(NamedTuple):
    refused: int = 0
    worked: int = 0
    failures: tuple[str, ...] = ()

class Case(NamedTuple):
    part: str
    name: str
    run: Callable[[], Any]

# ---- what is right ----------------------------------------------------------------------------------------------------------

def sentence(text: str):
    "Something is said."
    assert len(text.strip()) > 9, f'no clear sentence: {text[:200]!r}'

def sound(v):
    "Whatever came of it holds no NaN, and is what it says."
    if isinstance(v, Tensor):
        assert v.is_meta or v.ndim > 64 or v.is_complex() or v.double().isfinite().all(
        ), 'numbers that are not finite'
    elif isinstance(v, nn.Module):
        sound(v.state_dict())
    elif isinstance(v, images.Images):
        assert v.pixels.shape[0] == len(v) > 0 and (v.label is None or len(v.label) == len(v))
        sound(v.pixels[:1] if isinstance(v.pixels, Tensor) else v.pixels[torch.tensor([0])])
    elif isinstance(v, dict):
        sound([*v.values()])
    elif isinstance(v, (list, tuple)):
        [sound(x) for x in v]
    elif is_dataclass(v) and not isinstance(v, type):
        sound([getattr(v, f.name) for f in fields(v)])
    elif isinstance(v, float):
        assert not math.isnan(v), 'NaN'

def no_nan(word):
    raise ValueError(f'{word} is no JSON')

def whole(p: Path):
    "A file that a command leaves can be read."
    assert not re.search(r'\.tmp', p.name), f'left behind: {p.name}'
    if p.suffix == '.safetensors':
        load_file(p)
    if p.suffix == '.json':
        json.loads(p.read_text(), parse_constant=no_nan)
    if p.suffix == '.jsonl':
        [json.loads(line, parse_constant=no_nan) for line in p.read_text().splitlines()]
    if p.suffix == '.png':
        Image.open(p).load()

def files(folder='.') -> dict[Path, str]:
    return {
        p: hashlib.sha1(p.read_bytes()).hexdigest()
        for p in Path(folder).rglob('*')
        if p.is_file() and not p.is_symlink()
    }

def said(code: int | None, out: str, err: str, as_json: bool = False, found: int
         | None = None): # found: a code that only says that something was found, as parity does
    "Was it refused with one sentence, or did it work?"
    if code and code == found and out:
        code = 0
    lines = [l for l in err.splitlines() if l.strip()]
    last = lines.pop() if code and lines else ''
    if strange := [
            l for l in lines if not re.match(r'ddpm_lit: (the |no picture of)|[^:]+: \d+ of \d+', l)
    ]:
        raise AssertionError(f'it also said: {strange[0][:150]!r} ... {lines[-1][:150]!r}')
    if not code:
        return as_json and json.loads(out, parse_constant=no_nan)
    assert last.startswith('ddpm_lit: '), f'exit code {code} and no sentence but {last[:300]!r}'
    sentence(last)
    assert last.isprintable(), f'signs that nobody can read: {last[:200]!r}'
    raise Refused(last)

def run(*args: str, found: int | None = None):
    "A command, in this process: what it says and what it leaves."
    # as a terminal's
    before, out, err, code = files(), io.TextIOWrapper(
        io.BytesIO(), 'utf-8', write_through=True), io.TextIOWrapper(
            io.BytesIO(), 'utf-8', 'backslashreplace', write_through=True), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main([*args])
            except SystemExit as e:
                code = e.code
    finally:
        show.plt.close('all')
    after = files()
    if lost := {p for p in before.keys() - after.keys() if '.tmp' not in p.name}:
        raise AssertionError(f'lost: {sorted(map(str, lost))}')
    for p in after:
        if after[p] != before.get(p):
            whole(p)
    return said(code, *(f.buffer.getvalue().decode() for f in (out, err)), '--json' in args, found)

def shell(script: str, **env: str):
    "A command, in a shell of its own."
    env = dict(os.environ, D=f'{sys.executable} -m ddpm_lit', PYTHONPATH=str(root),
               FIX=str(FIX)) | env
    p = subprocess.run(['bash', '-c', script], env={k: v for k, v in env.items() if v is not None},
                       stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace',
                       timeout=900)
    assert p.returncode >= 0 and p.returncode not in (134, 137,
                                                      139), f'killed by a signal ({p.returncode})'
    return said(p.returncode, p.stdout, p.stderr)

# ---- the machine that tries -------------------------------------------------------------------------------------------------

def memory(what: str) -> int:
    return next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith(what))

def slow(*_):
    raise Slow(f'more than {SECONDS} s of the processor')

def attempt(case: Case, box: Path) -> Tally:
    here, env = box/'here', dict(os.environ)
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    os.chdir(here)
    tally = Tally()
    random.seed(case.name)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    Path('/proc/self/clear_refs').write_text('5')
    start = memory('VmRSS')
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        try:
            value = case.run()
            tally = value if isinstance(value, Tally) else (sound(value), Tally(worked=1))[1]
        except Refused:
            tally = Tally(refused=1)
        except Skipped as e:
            print(f'skipped {case.name}: {e}', file=sys.stderr)
        except Problem as e:
            sentence(str(e))
            tally = Tally(refused=1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (grown := memory('VmHWM') - start) > GROWTH:
            tally = Tally(failures=(f'it took {grown >> 20} MiB', ))
        if left := [p for p in here.rglob('.*.tmp*')]:
            tally = Tally(failures=(f'left behind: {left[0].name}', ))
    except BaseException as e:
        signal.setitimer(signal.ITIMER_PROF, 0)
        at = [
            f for f in traceback.extract_tb(e.__traceback__)
            if 'ddpm_lit/ddpm_lit' in f.filename or f'{root}/ddpm_lit/' in f.filename
        ][-1:]
        tally = Tally(failures=(f'{type(e).__name__}: {str(e)[:400]}' +
                                ''.join(f'  [{Path(f.filename).name}:{f.lineno}]' for f in at), ))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(box)
    return tally

def worker(cases: list[tuple[int, Case]], pipe: int, box: Path):
    "Tries one case after the other, and tells of each before and after."
    limit = memory('VmSize') + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, slow)
    for i, case in cases:
        os.write(pipe, f'{json.dumps([i])}\n'.encode())
        os.write(pipe, f'{json.dumps([i, *attempt(case, box)])}\n'.encode())

def spent(pid: int) -> float:
    "Seconds of the processor."
    with contextlib.suppress(OSError, IndexError):
        return sum(map(int,
                       Path(f'/proc/{pid}/stat').read_text().rsplit(
                           ')', 1)[1].split()[11:13]))/os.sysconf('SC_CLK_TCK')
    return 0.

def forked(f: Callable, *args) -> int:
    "A child that does f and ends."
    if pid := os.fork():
        return pid
    try:
        f(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(9)
    os._exit(0)

def try_all(cases: list[Case], box: Path):
    "(case, tally) in order; a worker that dies or hangs is a failure of its case, and the next one takes over."
    todo = [*enumerate(cases)]
    while todo:
        r, w = os.pipe()
        pid = forked(worker, todo, w, box)
        os.close(w)
        text, at, began, cpu = b'', None, time.monotonic(), 0.
        stopped = ''
        while True:
            if select.select([r], [], [], 2)[0]:
                if not (got := os.read(r, 1 << 16)):
                    break
                *lines, text = (text + got).split(b'\n')
                for line in lines:
                    at, *tally = json.loads(line)
                    began, cpu = time.monotonic(), spent(pid)
                    if tally:
                        yield cases[at], Tally(*tally)
                        todo = [(i, c) for i, c in todo if i > at]
                        at = None
            elif at is not None and (spent(pid) - cpu > 2*SECONDS
                                     or time.monotonic() - began > 1800):
                stopped = 'it did not end'
                os.kill(pid, signal.SIGKILL)
        os.close(r)
        status = os.waitpid(pid, 0)[1]
        if at is not None:
            yield cases[at], Tally(failures=(stopped or f'the process died, status {status}', ))
            todo = [(i, c) for i, c in todo if i > at]

# ---- what is whole, before anything is broken -------------------------------------------------------------------------------

def make_fixtures(at: Path):
    "Small files of every kind that the library reads."
    rng = np.random.default_rng(0)
    picture = lambda *shape: Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))
    os.chdir(at)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
            io.StringIO()), contextlib.suppress(SystemExit):
        cli.main('train roll --steps 8 --batch 16 --out run'.split())

    def put(path, raw: bytes):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(raw)

    idx = lambda a: b'\0\0\x08' + bytes([a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape
                                                                ) + a.tobytes()
    x, y = rng.integers(0, 255, (30, 28, 28),
                        dtype=np.uint8), rng.integers(0, 10, 30, dtype=np.uint8)
    for part, where in itertools.product(('train', 't10k'),
                                         ('data/mnist', 'data/ddpm_lit/FashionMNIST/raw')):
        put(f'{where}/{part}-images-idx3-ubyte.gz', gzip.compress(idx(x)))
        put(f'{where}/{part}-labels-idx1-ubyte', idx(y))
    rows = rng.integers(0, 9, (4, 3073), dtype=np.uint8)
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        put(f'data/cifar-10-batches-bin/{name}.bin', rows.tobytes())
        put(f'data/cifar-10-batches-py/{name}',
            pickle.dumps(dict(data=rows[:, 1:], labels=rows[:, 0].tolist()), 2))
    for name, kind in (('a/1.png', 'PNG'), ('a/2.jpg', 'JPEG'), ('b/3.webp', 'WEBP'),
                       ('b/4.gif', 'GIF'), ('b/5.bmp', 'BMP')):
        for home in ('celebahq', 'lsun', 'imagenet'):
            Path('data', home, name).parent.mkdir(parents=True, exist_ok=True)
            picture(20, 24, 3).save(Path('data', home, name), format=kind)
    faces = [f'{i:06}.jpg' for i in range(1, 4)]
    celeba = {
        'list_eval_partition.txt': [f'{f} 0' for f in faces], 'identity_CelebA.txt': [
            f'{f} {i}' for i, f in enumerate(faces)
        ], 'list_attr_celeba.txt': ['3', 'Bald Young', *(f'{f} -1 1' for f in faces)],
        'list_bbox_celeba.txt': ['3', 'image_id x y w h', *(f'{f} 1 2 3 4' for f in faces)],
        'list_landmarks_align_celeba.txt': ['3', 'a b', *(f'{f} 1 2' for f in faces)]
    }
    for name, lines in celeba.items():
        put(f'data/celeba/{name}', '\n'.join(lines).encode() + b'\n')
    for f in faces:
        Path('data/celeba/img_align_celeba').mkdir(exist_ok=True)
        picture(21, 17, 3).save(f'data/celeba/img_align_celeba/{f}')
    Path('said').mkdir()
    picture(20, 24, 3).save('said/dog.png')
    put('said/dog.txt', 'a dog\nsome dog\n'.encode())
    picture(64, 64, 4).save('said/cat.png')
    put('said/metadata.jsonl', b'{"file_name": "cat.png", "text": "a cat"}\n')
    table = [
        json.loads(l)
        for l in open(data_dir('emoji', 'base.jsonl'), encoding='utf-8').readlines()[:6]
    ]
    put(
        'data/emoji/base.jsonl', '\n'.join(
            json.dumps(r | dict(tiles={s: i
                                       for s in words.STYLES}, split='train' if i else 'test'))
            for i, r in enumerate(table)).encode())
    for style in words.STYLES:
        picture(128, 192, 3).save(f'data/emoji/base-{style}-64.webp', lossless=True)
    put('vocab/v.bpe', data_dir('vocab', 'captions.bpe').read_bytes())
    put('vocab/v.bpe.gz', gzip.compress(data_dir('vocab', 'captions.bpe').read_bytes()))
    put('names/names.txt', 'a dog\na cat\n'.encode())
    for name in ('iddpm_unet', 'ddpm_unet', 'openai_clip_vit', 'unclip_prior', 'glide_superres',
                 'unclip_upsampler'):
        f = weights.read_fixture(data_dir('parity', f'{name}.safetensors'))
        state = {k: v.float() if v.is_floating_point() else v for k, v in f.weights.items()}
        Path(name).mkdir()
        save_file(state, f'{name}/m.safetensors')
        put(
            f'{name}/config.json',
            json.dumps(f.config | ({
                'vision_config': {'num_attention_heads': 1},
                'text_config': {'num_attention_heads': 4}
            } if 'clip' in name else {})).encode())
        if name == 'ddpm_unet':
            put(
                f'{name}/scheduler_config.json',
                json.dumps(
                    dict(num_train_timesteps=50, beta_schedule='linear', beta_start=1e-4,
                         beta_end=.02)).encode())
        if name == 'openai_clip_vit':
            for kind in ('new', 'old', 'script'):
                Path(kind).mkdir()
            torch.save(state, 'new/m.pt')
            torch.save(state, 'old/m.pt', _use_new_zipfile_serialization=False)
            torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).save('script/m.pt')
    Path('shards').mkdir()
    keys = sorted(state)
    parts = {'a.safetensors': keys[::2], 'b.safetensors': keys[1::2]}
    for n, ks in parts.items():
        save_file({k: state[k] for k in ks}, f'shards/{n}')
    put('shards/m.safetensors.index.json',
        json.dumps(dict(weight_map={k: n for n, ks in parts.items() for k in ks})).encode())
    Path('parity').mkdir()
    shutil.copy(data_dir('parity', 'ddpm_unet.safetensors'), 'parity/f.safetensors')
    Path('reader').mkdir()
    shutil.copy(data_dir('weights', 'digits-classifier.safetensors'), 'reader/m.safetensors')
    Path('compare').mkdir()
    shutil.copy(data_dir('runs', 'compare', 'gan-points.safetensors'), 'compare')
    put(
        'compare/cards.json',
        json.dumps([
            c for c in json.loads(data_dir('runs', 'compare', 'cards.json').read_text())
            if (c['family'], c['data']) == ('gan', 'points')
        ]).encode())
    # as large as CLIP's tokens want it
    f = weights.read_fixture(data_dir('parity', 'unclip_run.safetensors'))
    w, place = {**f.weights}, f.weights['prior.positional_embedding']
    w |= {
        f'text_encoder.text_model.embeddings.{k}_embedding.weight': torch.randn(n, 16).half()
        for k, n in (('token', 49_408), ('position', 77))
    } | {
        'prior.positional_embedding': torch.cat([torch.randn(1, 77, 16).half(), place[:, -4:]], 1)
    }
    f.config['text_encoder'] |= dict(vocab_size=49_408, max_position_embeddings=77)
    f.config['prior'] |= dict(num_embeddings=77)
    for part in (*theirs.UNCLIP, *theirs.CLOCKS):
        put(f'karlo/{part}/{about_of(part)}', json.dumps(f.config[part]).encode())
    for part in theirs.UNCLIP:
        save_file({k.removeprefix(f'{part}.'): v for k, v in w.items() if k.startswith(f'{part}.')},
                  f'karlo/{part}/m.safetensors')
    Path('glide').mkdir()
    tiny = dict(model_channels=32, xf_width=8, xf_layers=1, xf_heads=1, num_res_blocks=1,
                channel_mult=(1, 2), attention_resolutions=(2, ))
    for name, kind, more in (('base', 'base', {}), ('upsample', 'upsample', {}),
                             ('inpaint', 'inpaint', {}), ('words', 'base', dict(n_vocab=60))):
        net = glide.glide_openai(kind, tiny | more)
        [nn.init.normal_(q, std=.05) for q in net.parameters()]
        torch.save({k: v.half() for k, v in weights.to_official(net).items()}, f'glide/{name}.pt')
    Path('store/weights').mkdir(parents=True)
    [shutil.copy(f'run/roll.{end}', 'store/weights') for end in ('safetensors', 'json')]

def about_of(part: str) -> str:
    return 'config.json' if part in theirs.UNCLIP else 'scheduler_config.json'

def no_network(*_, **__):
    raise OSError('there is no network here')

# ---- files: cut, flipped, gone ----------------------------------------------------------------------------------------------

def roll():
    return fit.Training(fit.find_recipe('roll').build())

def asked(found): # a model and its recipe -> what it draws
    model, recipe = found
    return [
        model,
        sample.last(
            sample.ddim(model.given(*([None] if recipe.classes else [])),
                        schedule.grid(schedule.Cosine(), 2), torch.randn(2, *recipe.shape)))
    ]

def resumed(p):
    Path('run').mkdir()
    [shutil.copy(q, 'run') for q in p.parent.iterdir() if q.is_file()]
    return run('train', 'roll', '--steps', '8', '--out', 'run',
               '--resume') # a copy: what is not copied is missing

def inside(name: str, *more):
    return lambda p: images.load_images(name, *more)

def classified(*more: str):
    return lambda p: run('classify', str(p), *more, '--weights', str(FIX/'openai_clip_vit'
                                                                     ), '--json'
                         ) # a CLIP with a vocabulary of its own: words of ours are beyond it

def loaded(name: str, load: Callable):
    return lambda p: load(p, json.loads((FIX/name/'config.json').read_text()))

def read_by() -> dict[str, Callable]: # file of the fixtures -> what reads it
    sampled = lambda p: run('sample', str(p), '--n', '4', '--steps', '2', '--out', 'a.png', '--json'
                            )
    return {
        'run/roll.safetensors:load': lambda p: asked(fit.load_weights(str(p))),
        'run/roll.safetensors:sample': sampled, 'run/roll.safetensors:eval': lambda p: run(
            'eval', str(p), '--n', '12', '--steps', '2', '--json'), 'run/roll.json:eval': lambda p:
        run('eval', str(p.with_suffix('.safetensors')), '--n', '12', '--steps', '2', '--json'),
        'run/state.safetensors:load': lambda p: roll().load(p).state(),
        'run/state.safetensors:resume': resumed, 'run/run.json:resume': resumed,
        'run/log.jsonl:resume': resumed, 'store/weights/roll.json:init': lambda p: run(
            'train', 'roll', '--init', '--steps', '2', '--batch', '8', '--out', 'r', '--json'),
        'store/weights/roll.safetensors:init': lambda p: run(
            'train', 'roll', '--init', '--steps', '2', '--batch', '8', '--out', 'r', '--json'),
        'data/mnist/t10k-images-idx3-ubyte.gz': inside(
            'mnist', 'test'), 'data/mnist/train-labels-idx1-ubyte': inside('mnist'),
        'data/mnist/train-labels-idx1-ubyte:train': lambda p: run(
            'train', 'mnist', '--steps', '1', '--batch', '2', '--out', 'r', '--json'),
        'data/ddpm_lit/FashionMNIST/raw/train-images-idx3-ubyte.gz': inside('fashion-mnist'),
        'data/cifar-10-batches-bin/test_batch.bin': inside('cifar10', 'test'),
        'data/cifar-10-batches-py/data_batch_3': lambda p: images.read_cifar(p), **{
            f'data/celeba/{f}': inside('celeba') for f in ('list_attr_celeba.txt', 'list_eval_partition.txt', 'img_align_celeba/000002.jpg')
        }, **{
            f'data/{f}': inside(f.split('/')[0]) for f in ('celebahq/a/1.png', 'celebahq/a/2.jpg', 'lsun/b/3.webp', 'lsun/b/4.gif', 'imagenet/b/5.bmp')
        }, 'data/emoji/base.jsonl': inside('emoji'),
        'data/emoji/base-noto-64.webp': inside('emoji'), **{
            f'said/{f}': lambda p: words.pictures_with_captions(p.parent) for f in ('dog.png', 'dog.txt', 'metadata.jsonl')
        }, **{
            f'vocab/{f}': lambda p: tokens.Tokenizer(tokens.read_pairs(p), tokens.split_gpt2, 32, [
                                                     ])(['a red heart']) for f in ('v.bpe', 'v.bpe.gz')
        }, 'said/cat.png:picture': read_picture, 'said/cat.png:classify': classified(
            'a', 'b'), 'said/cat.png:vary': lambda p: run('vary', str(p), '--n', '0'),
        'names/names.txt:classify': lambda p: run('classify', str(
            FIX/'said/cat.png'), '--names', str(p), '--weights', str(FIX/'openai_clip_vit')), **{
                f'{k}/m.pt': lambda p: [*theirs.read_state(p)] for k in ('new', 'old', 'script')
            }, 'new/m.pt:clip': theirs.clip_at, 'openai_clip_vit/m.safetensors': theirs.clip_at,
        'openai_clip_vit/config.json': lambda p: theirs.clip_at(p.parent),
        'iddpm_unet/m.safetensors': lambda p: asked(
            theirs.open_denoiser(p, order='legacy', heads=4, schedule='linear', side=8)),
        'ddpm_unet/m.safetensors': lambda p: asked(theirs.open_denoiser(p.parent)),
        'ddpm_unet/config.json': lambda p: asked(theirs.open_denoiser(p.parent)),
        'ddpm_unet/scheduler_config.json': lambda p: asked(theirs.open_denoiser(p.parent)),
        'ddpm_unet/config.json:sample': lambda p: run('sample', str(p.parent), '--layout', 'auto',
                                                      '--n', '2', '--steps', '2'),
        'shards/m.safetensors.index.json': theirs.read_state,
        'shards/a.safetensors': lambda p: [*theirs.read_state(p.parent)],
        'unclip_prior/m.safetensors': loaded(
            'unclip_prior', unclip.load_prior), 'unclip_upsampler/m.safetensors': loaded(
                'unclip_upsampler', unclip.load_upsampler), 'glide_superres/m.safetensors': loaded(
                    'glide_superres', lambda p, c: glide.load_glide(
                        p, config={k: v for k, v in c.items() if k not in ('small_size', )})),
        'parity/f.safetensors': lambda p: run('parity', str(p), '--json', found=1),
        'reader/m.safetensors': load_classifier, 'compare/cards.json': lambda p: run(
            'compare', '--out', str(p.parent), '--n', '100', '--json'),
        'compare/gan-points.safetensors': lambda p: compare.load_contender(
            'gan', 'points', p.parent)
    }

def damages(raw: bytes, rng: random.Random, k: int):
    "A file, broken in every way."
    for name, new in dict(empty=b'', one_byte=raw[:1], zeros=bytes(len(raw)), noise=rng.randbytes(
            len(raw)), twice=raw*2, tail=raw + b'\0', space=b' \n', list=b'[]', number=b'7',
                          null=b'null', object=b'{}', ff=b'\xff\xfe' + raw).items():
        yield name, new
    for i in range(k):
        n = rng.randrange(1, max(2, min(len(raw), (64, 600, len(raw))[i % 3])))
        yield f'cut at {n}', raw[:n]
    for i in range(2*k):
        n, b = rng.randrange(min(len(raw), (24, 400, len(raw))[i % 3])), rng.randrange(8)
        yield f'bit {b} of byte {n}', raw[:n] + bytes([raw[n] ^ 1 << b]) + raw[n + 1:]

def put_there(path: Path, make: Callable[[Path], Any]):
    path.unlink()
    make(path)

PLACES = dict(missing=lambda p: None, folder=lambda p: p.mkdir(),
              loop=lambda p: p.symlink_to(p.name), dangling=lambda p: p.symlink_to('nowhere'))

def files_cases(rng, k: int = 5, readers=read_by, part: str = 'files', places=PLACES):
    for name, read in readers().items():
        path = Path(name.split(':')[0])
        home = path.parts[0]

        def spoil(change, path=path, home=home, read=read):
            shutil.copytree(FIX/home, 'in')
            p = (Path('in')/path.relative_to(home)).resolve()
            change(p)
            os.environ['DDPM_LIT_DATA'] = str(Path('in').resolve())
            return read(p)

        yield Case(part, f'{name} whole', lambda spoil=spoil: spoil(lambda p: None))
        for how, raw in damages((FIX/path).read_bytes(), rng, k):
            yield Case(part, f'{name} {how}',
                       lambda raw=raw, spoil=spoil: spoil(lambda p: p.write_bytes(raw)))
        for how, make in places.items():
            yield Case(part, f'{name} {how}',
                       lambda make=make, spoil=spoil: spoil(lambda p: put_there(p, make)))

# ---- made to harm -----------------------------------------------------------------------------------------------------------

def safetensors_heads():
    head = lambda h, n=16, size=None: struct.pack('<Q',
                                                  len(h) if size is None else size) + h + bytes(n)
    one = lambda **k: json.dumps({'a': dict(dtype='F32', shape=[2, 2], data_offsets=[0, 16]) | k}
                                 ).encode()
    yield from {
        'huge length': head(b'{}', size=2**63), 'length beyond': head(b'{}', size=10**6),
        'negative length': head(b'{}', size=2**64 - 1), 'no UTF-8': head(b'{"\xff\xfe": {}}'),
        'deep': head(b'{"a":' + b'['*100_000 + b']'*100_000 + b'}'), 'no JSON': head(b'{a}'),
        'a list': head(b'[1]'), 'a word': head(b'"x"'), 'NaN': head(b'{"a": NaN}'), 'twice': head(
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
        ), 'overlap': head(
            json.dumps({k: dict(dtype='F32', shape=[4], data_offsets=[0, 16])
                        for k in 'ab'}).encode()), 'hole': head(one(data_offsets=[8, 24]), 24),
        'beyond': head(one(data_offsets=[0, 2**40], shape=[2**19, 2**19])), 'negative offset': head(
            one(data_offsets=[-16, 0])), 'backwards': head(one(data_offsets=[16, 0])),
        'huge shape': head(one(shape=[2**62, 2**62])), 'zero times huge': head(
            one(shape=[0, 2**62], data_offsets=[0, 0]), 0), 'negative shape': head(
                one(shape=[-2, -2])), 'float shape': head(one(shape=[2.5, 2])), 'text shape': head(
                    one(shape='2')), 'many axes': head(one(shape=[1]*5000 + [4])), 'no dtype': head(
                        one(dtype=None)), 'odd dtype': head(
                            one(dtype='F8_E4M3', data_offsets=[0, 4]), 4), 'unknown dtype': head(
                                one(dtype='X9')), 'complex': head(one(dtype='C64', shape=[2])),
        'no shape': head(b'{"a":{"dtype":"F32","data_offsets":[0,16]}}'), 'metadata numbers': head(
            b'{"__metadata__":{"recipe":7}}', 0), 'recipe nowhere': head(
                b'{"__metadata__":{"recipe":"../../x"}}',
                0), 'metadata list': head(b'{"__metadata__":[]}', 0), 'nul key': head(
                    json.dumps({'\0': dict(dtype='F32', shape=[4],
                                           data_offsets=[0, 16])}).encode()), 'long key': head(
                                               json.dumps({
                                                   'k'*10**6: dict(dtype='F32', shape=[4],
                                                                   data_offsets=[0, 16])
                                               }).encode()), 'right recipe, nothing else': head(
                                                   b'{"__metadata__":{"recipe":"roll"}}', 0)
    }.items()

class Calls: # a pickle of it asks to call a function
    def __init__(self, f, *args):
        self.how = f, args

    def __reduce__(self):
        return self.how

def pickles():
    deep: Any = []
    [deep := [deep] for _ in range(400)]
    loop: dict = {}
    loop['a'] = loop
    op = pickle
    yield from {
        'runs a command': pickle.dumps(Calls(os.system, 'touch HARM'), 2),
        'evaluates': pickle.dumps(Calls(eval, "open('HARM','w')"), 2), 'old protocol': pickle.dumps(
            Calls(os.system, 'touch HARM'), 0), 'new protocol': pickle.dumps(
                Calls(os.system,
                      'touch HARM'), 5), 'a bare number': pickle.dumps(7, 2), 'text': pickle.dumps(
                          'x', 2), 'deep': pickle.dumps(deep, 2), 'a loop': pickle.dumps(loop, 2),
        'words for keys': pickle.dumps({(1, 2): 3},
                                       2), 'no stop': b'\x80\x02}', 'pops nothing': b'\x80\x020.',
        'gets what was never put': b'\x80\x02h\xff.', 'huge text': b'\x80\x02X\xff\xff\xff\x7fabc.',
        'huge long': b'\x80\x02\x8b\xff\xff\xff\x7f\x01.',
        'negative long': b'\x80\x02\x8b\xff\xff\xff\xff.',
        'huge memo': b'\x80\x02}r\xff\xff\xff\x7f.', 'billion laughs': b'\x80\x02]q\0' +
        b''.join(b'](h' + bytes([i]) + (b'h' + bytes([i]))*9 + b'eq' + bytes([i + 1])
                 for i in range(30)) + b'.', 'grows': b'\x80\x02' + b'(]'*100_000 + b'.',
        'doubles text': b'\x80\x02X\x04\0\0\0abcd' + b'2\x86'*40 + b'.',
        'extension': b'\x80\x02\x82\x01.', 'persistent': b'\x80\x02X\x01\0\0\0aQ.',
        'buffer': b'\x80\x05\x97.', 'odd set': b'\x80\x04\x8f(K\x01\x90.',
        'instance': b'(i__main__\nx\n.', 'object': b'\x80\x02(cos\nsystem\no.'
    }.items()

def zipped(path='m.pt', **entries: bytes):
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        warnings.simplefilter('ignore')
        [
            z.writestr(name.replace('__', '/').replace('_dot_', '.'), raw)
            for name, raw in entries.items()
        ]

def bombs():
    png = lambda w, h: b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(d)) + k + d + struct.pack('>I',
                                                        __import__('zlib').crc32(k + d))
        for k, d in ((b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)),
                     (b'IDAT', __import__('zlib').compress(bytes(10**6))), (b'IEND', b'')))
    yield from {
        'png 60000 x 60000': png(60000, 60000), 'png 12000 x 12000': png(12000, 12000),
        'png without size': png(0, 0), 'png 1 x 2 million': png(1, 2*10**6), 'png negative': png(
            2**32 - 1, 2**32 - 1),
        'gif 65535 x 65535': b'GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;',
        'bmp huge': b'BM' + struct.pack('<IHHIIiiHHIIiiII', 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1,
                                        1, 24, 0, 0, 0, 0, 0, 0),
        'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        'postscript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9000 9000\n(HARM) (w) '
                      b'file\n%%EOF\n',
        'tiff loop': b'II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\x01\0\0\0\x08\0\0\0',
        'a zip': b'PK\x05\x06' + bytes(18), 'text': b'hello'
    }.items()

def unharmed(f: Callable):
    "Nothing of what a hostile file asks for has happened."
    try:
        return f()
    finally:
        assert not [*Path('.').rglob('HARM*')] and not [*Path('..').glob('HARM*')
                                                        ], 'a program in the file was run'

def hostile_cases(rng):
    def case(name, raw: bytes, to: str, read):
        return Case(
            'hostile', name, lambda:
            (Path(to).parent.mkdir(parents=True, exist_ok=True), Path(to).write_bytes(raw),
             unharmed(lambda: read(Path(to))))[2])

    for name, raw in safetensors_heads():
        for how, read in dict(read=fit.read_tensors, load=lambda p: fit.load_weights(str(p)),
                              state=lambda p: roll().load(p), open=theirs.open_denoiser,
                              sample=lambda p: run('sample', str(p), '--n', '2'),
                              parity=lambda p: run('parity', str(p))).items():
            yield case(f'safetensors {how}: {name}', raw, 'm.safetensors', read)
    for name, raw in pickles():
        yield case(f'pickle: {name}', raw, 'm.pt', theirs.read_state)
        yield case(f'pickle as safetensors: {name}', raw, 'm.safetensors', fit.read_tensors)
        yield case(f'pickle as CIFAR: {name}', raw, 'data_batch_1', images.read_cifar)
        yield case(f'pickle sampled: {name}', raw, 'm.pt',
                   lambda p: run('sample', str(p), '--layout', 'auto'))
        yield Case(
            'hostile', f'pickle in a zip: {name}', lambda raw=raw:
            (zipped(a__data_dot_pkl=raw), unharmed(lambda: theirs.read_state('m.pt')))[1])
    tensor = (FIX/'new/m.pt').read_bytes()
    for name, entries in {
            'bomb': {'a__data_dot_pkl': bytes(3*10**8)},
            'bomb beside': {'a__data_dot_pkl': pickle.dumps({}, 2),
                            'a__data__0': bytes(3*10**8)}, 'traversal': {
                                '.._____.._HARM/data.pkl'.replace('_____', '/').replace(
                                    '_HARM', '/HARM'): pickle.dumps({}, 2)
                            }, 'two programs': {'a__data_dot_pkl': b'',
                                                'b__data_dot_pkl': b''}, 'no program': {'x': b''},
            'other order': {'a__data_dot_pkl': pickle.dumps({}, 2),
                            'a__byteorder': b'big'}, 'nothing': {}
    }.items():
        yield Case(
            'hostile', f'zip: {name}', lambda entries=entries:
            (zipped(**entries), unharmed(lambda: theirs.read_state('m.pt')))[1])
    yield case('zip: prefixed', b'#!/bin/sh\n' + tensor, 'm.pt', theirs.read_state)
    yield case('zip: forged sizes', tensor.replace(b'\0\0\x08\x08', b'\xff\xff\x08\x08'), 'm.pt',
               theirs.read_state)
    for name, raw in bombs():
        yield case(f'picture: {name}', raw, 'p.png', read_picture)
        yield case(f'picture in a folder: {name}', raw, 'd/p.png',
                   lambda p: images.folder(p.parent, 8))
        yield case(
            f'picture with caption: {name}', raw, 'd/p.png', lambda p:
            (p.with_suffix('.txt').write_text('x'), words.pictures_with_captions(p.parent))[1])
        yield case(f'picture classified: {name}', raw, 'p.png', classified('a', 'b'))
    packed = gzip.compress(bytes(7*10**8), 1)
    for name, raw in {
            'bomb': packed, '255 axes': b'\0\0\x08\xff' + b'\0\0\0\2'*255,
            'huge': b'\0\0\x08\3' + b'\xff'*12, 'no axis': b'\0\0\x08\0x',
            'no rows': b'\0\0\x08\3' + bytes(12), 'empty rows': b'\0\0\x08\2\0\0\0\5\0\0\0\0',
            'floats': b'\0\0\x0d\1\0\0\0\1\0\0\0\0'
    }.items():
        yield case(f'idx: {name}', raw, 't-idx.gz', images.read_idx)
        yield case(
            f'idx in MNIST: {name}', raw, 'd/mnist/train-images-idx3-ubyte', lambda p:
            (p.with_name('train-labels-idx1-ubyte').write_bytes(b'\0\0\x08\1' + struct.pack(
                '>I', 5) + bytes(5)), os.environ.update(DDPM_LIT_DATA=str(p.parent.parent.resolve())
                                                        ), images.load_images('mnist'))[2])
    yield case('vocabulary: bomb', packed, 'v.gz', tokens.read_pairs)
    yield case('names: bomb of lines', b'a\n'*10**6, 'n.txt',
               lambda p: run('classify', str(FIX/'said/cat.png'), '--names', str(p)))
    jsons = {
        'deep': b'['*10**5 + b']'*10**5, 'deep objects': b'{"a":'*10**5 + b'1' + b'}'*10**5,
        'long number': b'9'*10**4, 'NaN': b'{"step": NaN, "weight_map": NaN, "sample_size": NaN}',
        'twice': b'{"a":1,"a":2}',
        'surrogate': b'{"weight_map": {"a": "\\ud800"}, "recipe": "\\ud800"}',
        'traversal': b'{"weight_map": {"a": "../../etc/passwd"}}',
        'absolute': b'{"weight_map": {"a": "/etc/passwd"}}',
        'itself': b'{"weight_map": {"a": "m.safetensors.index.json"}}',
        'nul': b'{"weight_map": {"a": "\\u0000"}}', 'BOM': b'\xef\xbb\xbf{}',
        'step huge': b'{"step": 1e999}', 'wide': b'[' + b'1,'*10**6 + b'1]'
    }
    for name, raw in jsons.items():
        yield case(f'json index: {name}', raw, 'm.safetensors.index.json', theirs.read_state)
        yield case(f'json config: {name}', raw, 'config.json', lambda p: [*theirs.read_json(p)])
        yield case(f'json cards: {name}', raw, 'd/cards.json',
                   lambda p: run('compare', '--out', str(p.parent), '--n', '100'))
        yield case(f'json captions: {name}', raw, 'd/metadata.jsonl',
                   lambda p: words.pictures_with_captions(p.parent))
        yield case(
            f'json log: {name}', raw, 'd/log.jsonl', lambda p: ([
                shutil.copy(FIX/'run'/f, p.parent)
                for f in ('run.json', 'state.safetensors', 'roll.json', 'roll.safetensors')
            ], resumed(p))[1])
        yield case(
            f'json settings: {name}', raw, 'd/run.json', lambda p:
            ([shutil.copy(FIX/'run'/f, p.parent)
              for f in ('log.jsonl', 'state.safetensors')], resumed(p))[1])
        yield case(
            f'json card: {name}', raw, 'd/roll.json', lambda p:
            (shutil.copy(FIX/'run/roll.safetensors', p.parent),
             run('eval', str(p.with_suffix('.safetensors')), '--n', '12', '--steps', '2', '--json')
             )[1])
    for name in ('../out.png', '/etc/passwd', 'a/../../x.png', 'x\0.png', '.', '..', '',
                 'cat.png\n', '\ud800', 'x'*300):
        line = json.dumps(dict(file_name=name, text='a cat')).encode()
        yield case(f'caption names {name[:20]!r}', line, 'd/metadata.jsonl',
                   lambda p: words.pictures_with_captions(p.parent, 8))
        yield case(f'caption names {name[:20]!r}, skipped', line, 'd/metadata.jsonl',
                   lambda p: words.pictures_with_captions(p.parent, 8, 'skip'))

# ---- numbers and words on the command line ------------------------------------------------------------------------------------

def base() -> dict[str, list[str]]: # a run of each command that takes little time
    cat, clip = str(FIX/'said/cat.png'), str(FIX/'openai_clip_vit')
    return dict(
        train='train roll --steps 2 --batch 8 --out r --json'.split(), sample=[
            'sample',
            str(FIX/'run/roll.safetensors'), *'--n 4 --steps 2 --out a.png --json'.split()
        ], eval=['eval',
                 str(FIX/'run/roll.safetensors'), *'--n 12 --steps 2 --json'.split()], classify=[
                     'classify', cat, *'--among heart sun --out c.png --json'.split()
                 ], paint=['paint', 'a red heart', *'--n 1 --steps 2 --out p.png --json'.split()],
        vary=['vary', cat, *'--n 1 --steps 2 --out v.png --json'.split()], blend=[
            'blend', cat, cat, *'--n 2 --steps 2 --out b.png --json'.split()
        ], edit=['edit', cat, *'--from heart --to sun --n 2 --steps 2 --out e.png --json'.split()],
        compare=['compare', '--out', str(FIX/'compare'), '--n', '100', '--json'],
        demo='demo --steps 1 --n 1 --json'.split(), bench='bench nothing --json'.split(), parity=[
            'parity', str(FIX/'parity/f.safetensors'), '--json'
        ], presets=['presets', 'ddpm-cifar10', '--json'])

MORE = {
    ('sample', 'guided'): 'sample mnist --n 2 --steps 2 --out a.png --json'.split(),
    ('paint', 'clip'): 'paint heart --n 1 --steps 2 --guidance clip --json'.split(),
    ('paint', 'init'): ['paint', 'heart', '--n', '1', '--steps', '2', '--init', '{cat}'],
    ('eval', 'digits'): 'eval mnist --n 20 --steps 1 --bits-pictures 1 --bits-draws 1 --json'.split(
    ), ('sample', 'theirs'): [
        'sample', '{iddpm}',
        *'--layout auto --heads 4 --attention-order legacy --schedule linear --side 8 --n 2 '
         '--steps 2 --out a.png --json'
        .split()
    ], ('sample', 'told'): [
        'sample', '{glide}', *'--caption dog --side 8 --steps 2 --out a.png --json'.split()
    ], ('sample', 'enlarged'): [
        'sample', '{glide}',
        *'--caption dog --side 8 --steps 2 --out a.png --json --enlarge'.split(), '{up}'
    ], ('sample', 'karlo'): [
        'sample', '{karlo}', *'--caption dog --steps 2 --out a.png --json'.split()
    ]
}
ONLY = dict(guided=('w', 'guidance_scale', 'classifier_scale', 'label',
                    'guidance'), clip=('clip_scale', ), init=('strength', 'mask'),
            digits=('weights', 'bits_draws', 'bits_pictures', 'label', 'batch'),
            theirs=('heads', 'head_width', 'side', 'schedule', 'order', 'preset', 'layout', 'n'),
            enlarged=('captions', 'enlarge', 'side', 'n', 'seed'),
            karlo=('name', 'captions', 'side', 'steps', 'w', 'guidance_scale'))
NUMBERS = [
    'nan', 'inf', '-inf', '-1', '0', '1e400', '1e-320', '1000000000000', '100000000000000000000',
    '', 'x', '1_0',
    chr(0xff11)
]
WORDS = [
    '', ' ', '.', '..', '/', '../../x', 'no/such/place/c.png', 'x\0y', 'x'*5000, '\udcff',
    'a\u0301 \u202e\u65e5\u672c\u8a9e', '\U0001f98a'*40, '-', '%s{}{0}', '\x1b[31m', 'line\nbreak',
    '/proc/x.png', '/dev/null/x.png', 'con.txt', 'a red heart '*3000, '<|endoftext|>', '\ufeffheart'
]
DEVICES = [
    'meta', 'cuda', 'cuda:99', 'cuda:-1', 'cpu:7', 'CPU', 'mps', 'xla', 'hpu', 'vulkan', 'auto:0',
    'cpu:x'
]
# large numbers are what is asked for there, and take their time
AGES = {('train', 'steps'), ('demo', 'seconds'), ('demo', 'steps'), ('compare', 'seconds')}

def option_cases(rng, k: int = 9):
    places = {
        f'{{{k}}}': str(FIX/v)
        for k, v in dict(cat='said/cat.png', iddpm='iddpm_unet/m.safetensors',
                         glide='glide/base.pt', up='glide/upsample.pt', karlo='karlo').items()
    }
    bases = [(name, None, args)
             for name, args in base().items()] + [(name, which, [places.get(a, a)
                                                                 for a in args])
                                                  for (name, which), args in MORE.items()]
    for name, which, args in bases:
        if name not in ('demo', 'bench'):
            yield Case('options', f'{name} {which or ""} as it should be',
                       lambda args=args: run(*args))
        for p in cli.command.commands[name].params:
            if p.name not in ONLY.get(which, [p.name]) or p.name == 'help' or getattr(
                    p, 'is_flag', False):
                continue
            number = isinstance(p.type, (click.types.IntParamType, click.types.FloatParamType))
            for v in NUMBERS if number else DEVICES + WORDS[:3] if p.name == 'device' else [
                    *WORDS[:6], *rng.sample(WORDS[6:], k)
            ]:
                try:
                    p.type.convert(v, p, None)
                    refused = False
                except Exception:
                    refused = True
                if not refused and (name in ('demo', 'bench') and
                                    (number or v not in ('/proc/x.png', 'x\0y', 'x'*5000)) or
                                    (name, p.name) in AGES and len(v) > 5):
                    continue
                at = [
                    a for a in args
                    if a in (str(FIX/'run/roll.safetensors'), 'roll', 'mnist', 'ddpm-cifar10',
                             'a red heart', str(FIX/'parity/f.safetensors'), *places.values())
                ][:1]
                new = [*args, p.opts[0], v] if isinstance(
                    p, click.Option) else [v if [a] == at else a for a in args]
                yield Case('options', f'{name} {which or ""} {p.opts[0]} {v[:24]!r}',
                           lambda new=new: run(*new))
    yield Case('options', 'each command is tried',
               lambda: [name for name in cli.command.commands if base()[name]])
    for line in ('', 'nothing', '--nothing', 'train', 'sample', 'train roll roll',
                 'sample mnist --w 1 --guidance-scale 2', 'sample mnist --label 10',
                 'sample mnist --label -1', 'sample mnist --label ٣', 'sample clip',
                 'eval clip --w 1', 'eval glide --label 1', 'train clip --batch 1000000000',
                 'presets nothing', 'parity nothing', 'classify nothing a b', 'edit x', 'blend x',
                 'paint', 'paint a --mask x', 'paint a --strength .5', 'paint a --prior ar',
                 'paint a --system nobody', 'paint a --data shapes --style noto',
                 'paint a --guidance clip --w 1', 'train roll --resume',
                 'train roll --resume --out x', 'train roll --init', 'train nobody',
                 'train roll --ship --steps 1 --out r', 'compare --out nowhere', 'sample roll',
                 '--version', '-h'):
        yield Case(
            'options', line, lambda line=line:
            (os.environ.update(DDPM_LIT_DATA=str(Path.cwd()))
             if '--ship' in line else None, run(*line.split()))[1])
    for v in ('/nowhere', '/etc/passwd', 'x\0', '', '.', '/proc/self', 'x'*5000):
        for line in ('sample mnist --n 1 --steps 1 --out a.png',
                     'train mnist --steps 1 --batch 1 --out r', 'eval nothing'):
            yield Case(
                'options', f'DDPM_LIT_DATA={v[:9]!r} {line}', lambda v=v, line=line:
                ('\0' in v or os.environ.update(DDPM_LIT_DATA=v), run(*line.split()))[1])

# ---- shapes, dtypes, levels, captions -----------------------------------------------------------------------------------------

def shape_cases(seed: int, examples: int):
    def holds(title: str, body: Callable, /, **strategies):
        def check():
            counts, last, failed = dict(refused=0, worked=0), {}, []

            @seeded(seed)
            @settings(max_examples=examples, database=None, deadline=None,
                      report_multiple_bugs=False, suppress_health_check=[*HealthCheck],
                      phases=[Phase.generate, Phase.shrink])
            @given(**strategies)
            def each(**k):
                last.clear()
                last.update(k)
                try:
                    sound(body(**k))
                    counts['worked'] += not failed
                except Problem as e:
                    sentence(str(e).replace('\n', ' ') or '')
                    counts['refused'] += not failed
                except Exception:
                    failed.append(1)
                    raise

            try:
                each()
            except Exception as e:
                at = traceback.extract_tb(e.__traceback__)[-1]
                return Tally(
                    **counts, failures=(
                        f'{type(e).__name__}: {str(e)[:200]} for {str(last)[:300]} '
                        f'[{Path(at.filename).name}:{at.lineno}]',
                    ))
            return Tally(**counts)

        return Case('shapes', title, check)

    n, any_int, small, real = st.integers(0, 6), st.integers(-3, 70), st.lists(
        st.integers(0, 5), max_size=5), st.floats()
    dtype = st.sampled_from([
        torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.bool
    ])
    text = st.text(max_size=60)
    value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                         lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4),
                         max_leaves=12)
    said = st.lists(
        st.sampled_from(
            sorted(words.LEXICON) + ['at the top left', 'left of', 'on white', ',', '.']),
        max_size=9).map(' '.join) | st.sampled_from(
            [s.say() for s in words.every_scene(1)[::97] + words.every_scene(2)[::997]])
    draw = lambda shape, dtype: (torch.rand(shape)*255).to(dtype)

    def same(a, b):
        assert a == b, f'{a!r} is not {b!r}'
        return a

    def written(v, name):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(json.dumps(v))
        return Path(name)

    def settings_of(v):
        p = written(v, 'd/run.json')
        shutil.copy(FIX/'run/state.safetensors', 'd/state.safetensors')
        return cli.choose_settings(p.parent, fit.find_recipe('roll'), {}, True, False,
                                   torch.device('cpu'))

    def drawn(v): # whatever JSON, as a configuration of diffusers'
        shutil.copytree(FIX/'ddpm_unet', 'c', dirs_exist_ok=True)
        c = json.loads((FIX/'ddpm_unet/config.json').read_text())
        written(c | {k: x for k, x in zip(v[0], v[1])}, 'c/config.json')
        return asked(theirs.open_denoiser('c'))

    tiny = images.Images(torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.arange(12))
    few = words.shapes(n=8, size=16)
    world = Ideal(toy.swiss_roll(20))
    ours, clips = tokens.caption_tokenizer(), tokens.clip_tokenizer()
    net = small_unet(1, 3, 8, (1, 2), attention=(), unshuffle=1, middle=False).eval()
    keys = sorted(json.loads((FIX/'ddpm_unet/config.json').read_text()))
    yield holds(
        'level from alpha-bar', lambda a: same((lambda t: bool((t.alpha_bar - a).abs() < 1e-9))
                                               (from_alpha_bar(a)), True), a=real)
    yield holds('level from sigma', lambda a: (lambda t: [t.signal, t.sigma])(from_edm_sigma(a)),
                a=real)
    yield holds('linear', lambda T, a, b: schedule.linear(T, a, b).log_snr, T=any_int, a=real,
                b=real)
    yield holds('constant', lambda T, b: schedule.constant(T, b).log_snr, T=any_int, b=real)
    yield holds('cosine', lambda T: schedule.cosine(T).log_snr, T=any_int)
    yield holds('one over t', lambda T: schedule.one_over_t(T).log_snr, T=any_int)
    yield holds('time',
                lambda x: [schedule.Cosine()
                           (x).log_snr, schedule.linear()(x).log_snr], x=real)
    yield holds(
        'grid', lambda T, n: schedule.grid(schedule.linear(T)
                                           if T > 1 else schedule.Cosine(), n).log_snr[:-1],
        T=any_int, n=any_int)
    yield holds('karras', lambda n, lo, hi, rho: schedule.karras(n, lo, hi, rho).log_snr[:-1],
                n=any_int, lo=real, hi=real, rho=real)
    yield holds(
        'respace', lambda spec: sample.respace(schedule.linear(60), spec).log_snr[:-1],
        spec=text | st.lists(any_int, max_size=4).map(lambda v: ','.join(map(str, v)))
        | any_int.map(lambda v: f'ddim{v}'))
    for f in (toy.swiss_roll, toy.moons, toy.circles, toy.tree):
        yield holds(f.__name__, lambda n, noise, f=f: f(n, noise), n=any_int | real,
                    noise=real.filter(lambda v: v != math.inf))
    yield holds(
        'ddim', lambda shape, dtype, n, eta: sample.last(
            sample.ddim(world, schedule.grid(schedule.Cosine(), n), draw(shape, dtype), eta)),
        shape=small | st.tuples(n, st.just(2)), dtype=dtype.filter(lambda d: d.is_floating_point),
        n=st.integers(-1, 5), eta=real | st.floats(0, 1))
    yield holds('batches', lambda size, drop, flip, step: images.Batches(tiny, size, 0, drop, flip)
                (step), size=any_int, drop=real, flip=st.booleans(), step=st.integers(0, 99))
    yield holds('square', lambda shape, size: images.square(draw(shape, torch.uint8), size),
                shape=small, size=any_int)
    yield holds(
        'bytes', lambda x: same(
            images.to_bytes(images.to_unit(torch.tensor(x, dtype=torch.uint8))).tolist(), x),
        x=st.lists(st.integers(0, 255)))
    yield holds(
        'load_images', lambda name, split, size, k: images.load_images(name, split, size, k),
        name=st.sampled_from(['shapes', 'mnist', 'emoji', 'lsun']) | text,
        split=st.sampled_from(['train', 'test']) | text, size=st.none() | any_int, k=st.integers(
            -2, 9))
    yield holds('captioned',
                lambda shape, dtype, k: words.Captioned(draw(shape, dtype), few.rows[:k]),
                shape=small, dtype=dtype, k=n)
    yield holds('join', lambda sizes: words.join(*[words.shapes(n=1, size=s) for s in sizes]),
                sizes=st.lists(st.sampled_from([16, 32]), max_size=3))
    yield holds(
        'caption batches',
        lambda size, drop, shift, step: words.CaptionBatches(few, ours, size, 0, drop, shift)(step),
        size=any_int, drop=real, shift=any_int, step=n)
    yield holds('shapes', lambda split, k, size, objects: words.shapes(split, k, size, 0, objects),
                split=st.sampled_from(['train', 'test', 'all']) | text, k=st.integers(-2, 9),
                size=any_int | st.sampled_from([16, 32, 64]), objects=st.integers(-1, 3))
    yield holds(
        'read', lambda c: (lambda s: same(words.read(s.say() if all(
            (s.where, s.ground)) else c), s))(words.read(c)), c=said | text)
    yield holds('parse',
                lambda shape, dtype, bad: same(len(words.parse(draw(shape, dtype)*bad)), shape[0]),
                shape=small | st.tuples(n, st.just(3), st.just(16), st.just(16)), dtype=dtype,
                bad=st.sampled_from([1, 0, math.nan, math.inf, -1]))
    yield holds('our tokens', lambda t: [same(ours.decode(ours.encode(t)), t),
                                         ours(t, 'truncate')], t=text | said)
    yield holds("CLIP's tokens", lambda t: [clips(t), clips.decode(clips.encode(t))],
                t=text | said | st.text(min_size=200, max_size=3000))
    yield holds('half characters', lambda t: clips(t),
                t=st.text(st.characters(categories=['Cs', 'Ll']), max_size=9))
    yield holds('template', lambda t, names: fill(t, names), t=text | text.map(lambda s: s + '{}'),
                names=st.lists(text))
    yield holds('guidance', lambda a, b: as_w(a, b) if a is None or math.isfinite(a) else 0.,
                a=st.none() | real, b=st.none() | st.floats(-9, 9))
    yield holds(
        'labels', lambda label, b: net(torch.randn(b, 1, 4, 4), torch.tensor(.5), label
                                       if label is None else torch.tensor(label)),
        label=st.none() | any_int | st.lists(any_int, max_size=4), b=st.integers(1, 3))
    yield holds(
        'network', lambda shape, dtype: net(draw(shape, dtype), torch.tensor(.5)),
        shape=small | st.tuples(st.just(2), st.just(1), st.integers(0, 9), st.integers(0, 9)),
        dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bool]))
    maybe = lambda good: good | value
    yield holds('request', lambda **k: Request(**k) and 1, captions=maybe(
        st.lists(text, max_size=3).map(tuple)), data=maybe(st.sampled_from(['emoji', 'shapes'])),
                seed=maybe(any_int), steps=maybe(st.tuples(any_int, any_int, any_int)),
                w=maybe(real), guidance=maybe(st.sampled_from(['cfg', 'clip'])),
                clip_scale=maybe(st.none() | real), strength=maybe(st.floats(0, 1)))
    yield holds('studio', lambda **k: Studio(**k) and 1,
                data=maybe(st.sampled_from(['emoji', 'shapes'])), seed=maybe(any_int), steps=maybe(
                    st.tuples(st.integers(1, 9), any_int, any_int)), w=maybe(real))
    yield holds(
        'sheet', lambda shape, dtype, columns, scale: show.save_sheet(
            draw(shape, dtype)*scale, 's.png', columns), shape=small, dtype=dtype, columns=any_int,
        scale=st.sampled_from([1, math.nan, 1e30]))
    yield holds(
        'captioned rows',
        lambda shapes, said: show.save_captioned([torch.zeros(s) for s in shapes], said, 'c.png'),
        shapes=st.lists(st.tuples(n, st.just(3), n, n),
                        max_size=3), said=st.lists(text, max_size=3))
    yield holds(
        'write and read',
        lambda tensors: same({k: v.shape for k, v in tensors.items()},
                             (fit.write_tensors('w.safetensors', tensors),
                              {k: v.shape
                               for k, v in fit.read_tensors('w.safetensors').items()})[1]) and 1,
        tensors=st.dictionaries(text, st.builds(draw, small, dtype), max_size=4))
    yield holds('settings of a run', settings_of, v=value)
    yield holds('log of a run', lambda v:
                (written(v, 'd/log.jsonl'), cli.Log('d/log.jsonl', 3).lines)[1], v=value)
    yield holds('cards of runs', lambda v:
                (written(v, 'd/cards.json'), [*compare.read_cards(Path('d'))])[1],
                v=value | st.lists(st.dictionaries(st.sampled_from(['family', 'data']), value)))
    yield holds('index of shards',
                lambda v: theirs.read_state(written(v, 'd/m.safetensors.index.json')),
                v=value | st.fixed_dictionaries(dict(weight_map=value)))
    yield holds(
        'configuration', drawn,
        v=st.tuples(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True),
                    st.lists(value | any_int, min_size=2, max_size=2)))
    yield holds('captions of a folder', lambda v:
                (written(v, 'd/metadata.jsonl'), words.captions_in(Path('d')))[1],
                v=value | st.fixed_dictionaries(dict(file_name=value, text=value)))
    yield holds('plain pickles', lambda v:
                (pickle.dump(v, open('m.pt', 'wb'), 2), theirs.read_state('m.pt'))[1], v=value)
    yield holds(
        'pickles in a zip', lambda v:
        (zipped(a__data_dot_pkl=pickle.dumps(v, 2)), theirs.read_state('m.pt'))[1], v=value)
    yield holds('any bytes as a picture', lambda raw:
                (Path('p').write_bytes(raw), read_picture('p'))[1],
                raw=st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b'GIF89a' + b))
    yield holds(
        'any bytes as merges', lambda raw:
        (Path('v').write_bytes(b'#\n' + raw),
         tokens.Tokenizer(tokens.read_pairs('v'), tokens.split_gpt2, 16, [])
         (['abc']))[1], raw=st.binary(max_size=60) | text.map(str.encode))

# ---- disks, two writers, kill -9 ----------------------------------------------------------------------------------------------

@contextlib.contextmanager
def disk(size: str, read_only: bool = False, fill: Callable = lambda: None):
    "A small disk of its own in the folder `disk`."
    Path('disk').mkdir()
    mount = lambda *a: subprocess.run(['mount', *a, 'disk'], capture_output=True).returncode == 0
    if not mount('-t', 'tmpfs', '-o', f'size={size}', 'none'):
        raise Skipped('no disk can be mounted here')
    try:
        fill()
        assert not read_only or mount('-o', 'remount,ro')
        yield
    finally:
        subprocess.run(['umount', '-l', 'disk'], check=True)

def on_disk(size, read_only, fill, f):
    with disk(size, read_only, fill):
        return f()

def at_most(size: int, f):
    "Files may grow to so many bytes."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        return f()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

def disk_cases(rng):
    copied = lambda: shutil.copytree(FIX/'run', 'disk/run')
    x = torch.rand(40, 3, 32, 32)
    writers = {
        'train': lambda at: run(
            *f'train roll --steps 4 --batch 8 --save-every 0 --out {at}/r --json'.split()),
        'sample': lambda at: run('sample', str(FIX/'run/roll.safetensors'), '--n', '400', '--steps',
                                 '1', '--out', f'{at}/a.png'),
        'classify': lambda at: run('classify', str(FIX/'said/cat.png'), 'heart', 'sun', '--out',
                                   f'{at}/c.png'), 'tensors': lambda at: fit.write_tensors(
                                       f'{at}/w.safetensors', dict(a=torch.zeros(200_000))),
        'weights': lambda at: fit.save_weights(f'{at}/r.safetensors',
                                               roll().model, dict(recipe='roll')),
        'pairs': lambda at: tokens.write_pairs(f'{at}/v', [('a', 'b')]*9000, 'x'),
        'sheet': lambda at: show.save_sheet(x, f'{at}/s.png'),
        'state': lambda at: roll().save(f'{at}/s.safetensors'), 'told': lambda at: told(
            FIX/'glide/base.pt', '--side', '16', '--n', '100', '--out', f'{at}/a.png')
    }

    def resume():
        run('train', 'roll', '--resume', '--steps', '8', '--out', 'disk/run')

    def once_more(): # a run that is whole stays whole where there is no room for another
        try:
            resume()
        finally:
            roll().load('disk/run/state.safetensors')
            fit.load_weights('disk/run/roll.safetensors')
            whole(Path('disk/run/run.json'))

    for name, f in writers.items():
        for size in ('4k', '16k', '72k', '300k', '620k'):
            yield Case('disks', f'{name}, {size} free',
                       lambda f=f, size=size: on_disk(size, False, lambda: None, lambda: f('disk')))
        for size in (0, 1, 5000, 100_000):
            yield Case('disks', f'{name}, files of {size} bytes',
                       lambda f=f, size=size: at_most(size, lambda: f('.')))
        yield Case('disks', f'{name}, read-only',
                   lambda f=f: on_disk('1m', True, lambda: None, lambda: f('disk')))
        yield Case('disks', f'{name}, a file in the place of the folder', lambda f=f:
                   (Path('disk').write_text('x'), f('disk'), whole(Path('disk')))[1])
    run_size = sum(f.stat().st_size + 8192 for f in (FIX/'run').iterdir()) >> 10
    for size in (0, 8, 80, 400, 900, 9000):
        yield Case('disks', f'resume, {size}k free',
                   lambda size=size: on_disk(f'{run_size + size}k', False, copied, once_more))
    yield Case('disks', 'resume, read-only', lambda: on_disk('9m', True, copied, once_more))

    def device(kind):
        os.mknod('out.png', 0o600 | (0o020000 if kind != 'pipe' else 0o010000),
                 os.makedev(1,
                            dict(null=3, full=7, pipe=0)[kind]))
        try:
            return run('sample', str(FIX/'run/roll.safetensors'), '--n', '4', '--steps', '1',
                       '--out', 'out.png')
        finally:
            assert not Path('out.png').is_file(), 'a device was replaced by a file'

    for kind in ('null', 'full', 'pipe'):
        yield Case('disks', f'--out is a device, {kind}', lambda kind=kind: device(kind))

    def linked():
        Path('t.png').write_bytes(b'x')
        Path('out.png').symlink_to('t.png')
        return run('sample', str(FIX/'run/roll.safetensors'), '--n', '4', '--steps', '1', '--out',
                   'out.png')

    yield Case('disks', '--out is a link', linked)

def child(name: str, *args: str) -> int:
    "A forked process that runs a command, its words in files beside."
    def go():
        for fd, end in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(f'{name}.{end}', os.O_CREAT | os.O_WRONLY), fd)
        sys.stdout, sys.stderr = open(1, 'w'), open(2, 'w')
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            cli.main([*args])
        except SystemExit as e:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(e.code or 0)

    return forked(go)

def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

TRAIN = 'train roll --steps 24 --batch 16 --save-every 0 --out r'.split()

def two_writers(a: list[str], b: list[str], before: Callable = lambda: None):
    "Both end well or with a sentence, at least one of them well, and what they leave goes on."
    before()
    codes = []
    pids = {name: child(name, *args) for name, args in (('a', a), ('b', b))}
    for name, pid in pids.items():
        codes.append(code_of(pid))
        with contextlib.suppress(Refused):
            said(codes[-1], '', Path(f'{name}.err').read_text())
    assert 0 in codes, Path('a.err').read_text()[-300:] + Path('b.err').read_text()[-300:]
    for p in files('r'):
        whole(p)
    lines = [json.loads(l)['step'] for l in open('r/log.jsonl')]
    assert lines == sorted({*lines}), f'a log of two runs: {lines}'
    kept = json.loads(Path('r/run.json').read_text())
    return run('train', 'roll', '--resume', '--steps', str(kept['steps']), '--out', 'r') if all(
        'roll' in c for c in (a, b)) else None

def killed(when: float):
    "kill -9 at some moment: what was saved is whole, and resumed it is the run that nobody killed, bit for bit."
    pid = child('a', *TRAIN)
    time.sleep(when*float((FIX/'seconds').read_text()))
    os.kill(pid, signal.SIGKILL)
    code_of(pid)
    out = Path('r')
    for p in (out/f'{n}.safetensors' for n in ('state', 'roll')):
        if p.exists():
            load_file(p)
    if (out/'roll.json').exists():
        whole(out/'roll.json')
    if (out/'run.json').exists():
        run(*TRAIN, '--resume')
    else:
        run(*TRAIN)
    a, b = (load_file(at/'state.safetensors') for at in (out, FIX/'ref'))
    assert all(torch.equal(a[k], b[k]) for k in b), 'the resumed run is another'
    assert not [*out.rglob('*tmp*')]
    return [json.loads(l)['step'] for l in open(out/'log.jsonl')]

def race_cases(rng, kills: int = 36):
    other, more = [*TRAIN, '--seed', '1'], [*TRAIN, '--resume']
    begun = lambda: shutil.copytree(FIX/'half', 'r')
    for i in range(3):
        yield Case('races', f'two new runs, {i}', lambda: two_writers(TRAIN, other))
        yield Case('races', f'two go on, {i}', lambda: two_writers(more, more, begun))
    for i in range(2):
        yield Case('races', f'one goes on, one begins, {i}',
                   lambda: two_writers(more, TRAIN, begun))
        yield Case(
            'races', f'one trains, one draws, {i}',
            lambda: two_writers(more, [
                'sample', 'r/roll.safetensors', '--n', '4', '--steps', '1', '--out', 'a.png'
            ], begun))
    for i in range(kills):
        yield Case('kills', f'kill -9, {i}', lambda when=rng.random()*1.1: killed(when))
    for number in (signal.SIGINT, signal.SIGTERM):
        yield Case('kills', f'{number.name} twice', lambda number=number: stopped(number))

def stopped(number):
    pid = child('a', *TRAIN)
    while not Path('r/state.safetensors').exists() and not (Path('a.err').exists()
                                                            and Path('a.err').read_text()):
        time.sleep(.02)
    os.kill(pid, number)
    time.sleep(.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    code = code_of(pid)
    roll().load('r/state.safetensors')
    assert code in (0, 130, 143, -number), f'exit code {code}'
    run(*TRAIN, '--resume')

# ---- told a sentence: GLIDE's files, Karlo's folder ---------------------------------------------------------------------------

def told(p, *more: str):
    return run('sample', str(p), '--caption', 'a dog', '--steps', '2', '--out', 'a.png', '--json',
               *more)

def told_by() -> dict[str, Callable]:
    whole = lambda p: told(p.parent.parent)
    return {
        f'karlo/{part}/{name}': whole
        for part in (*theirs.UNCLIP, *theirs.CLOCKS)
        for name in (about_of(part), 'm.safetensors')
        if (FIX/'karlo'/part/name).exists()
    } | {
        'glide/base.pt': lambda p: told(p, '--side', '8'), 'glide/upsample.pt': lambda p: told(
            p.with_name('base.pt'), '--side', '8', '--enlarge', str(p))
    }

ALSO = PLACES | dict(
    endless=lambda p: p.symlink_to('/dev/zero'), pipe=os.mkfifo,
    void=lambda p: p.symlink_to('/dev/null'),
    elsewhere=lambda p: p.symlink_to(FIX/p.relative_to(Path('in').resolve())
                                     if 'karlo' not in str(p) else '/etc/passwd'))
VALUES = [
    None, True, 'x', '', 'x'*9999, math.nan, math.inf, -1, 0, 1, 2, 3, 2.5, 10**5, 10**9, 10**30,
    -10**30, 1e308, 1e-320, [], [[]], [1]*9, [0, 0], [8, math.nan], [10**9, 10**9], ['x', 'x'],
    [None, 16], {}, {'a': 1},
    eval('['*90 + ']'*90), 'gelu', 'silu', 'v_prediction', 'AttnDownBlock2D'
]
OTHERS = {
    'config.json': ('_class_name', 'norm_eps', 'layer_norm_eps', 'dropout', 'attn_norm_num_groups',
                    'time_embedding_dim', 'num_class_embeds', 'mid_block_type', 'class_embed_type',
                    'act_fn', 'downsample_padding', 'freq_shift', 'torch_dtype', 'a\x1b[31m'),
    'scheduler_config.json': ('_class_name', 'beta_schedule', 'beta_start', 'trained_betas')
}
CHANGED = dict(complex=lambda w: w.to(torch.complex64), bytes=lambda w: w.to(torch.uint8),
               bools=lambda w: w.bool(), double=lambda w: w.double(),
               float8=lambda w: w.to(torch.float8_e4m3fn), huge=lambda w: w.float()*1e37,
               zero=lambda w: w*0, flat=lambda w: w.reshape(-1), single=lambda w: w.reshape(-1)[0],
               none=lambda w: w.reshape(-1)[:0], axis=lambda w: w[None],
               longer=lambda w: torch.cat([w, w]), nan=lambda w: w*math.nan, infinite=lambda w: w/0)

def told_cases(rng, k: int = 3):
    yield from files_cases(rng, 3, told_by, 'told', ALSO)

    def folder(change):
        shutil.copytree(FIX/'karlo', 'k')
        change(Path('k'))
        return unharmed(lambda: told('k'))

    def case(name, change):
        return Case('told', f'karlo {name}', lambda: folder(change))

    def swap(a: Path, b: Path):
        a.rename('t')
        b.rename(a)
        Path('t').rename(b)

    def edit(p: Path, **new):
        p.write_text(json.dumps(json.loads(p.read_text()) | new))

    def states(f, *paths):
        new = f(*[load_file(p) for p in paths])
        [
            save_file({n: w.contiguous()
                       for n, w in state.items()}, p)
            for p, state in zip(paths, new)
        ]

    def moved(a, b):
        n = sorted(a)[0]
        b[n] = a.pop(n)
        return a, b

    parts, m = (*theirs.UNCLIP, *theirs.CLOCKS), 'm.safetensors'
    for part in parts:
        name = about_of(part)
        at = f'{part}/{name}'
        c = json.loads((FIX/'karlo'/at).read_text())
        for key in sorted({*c, *OTHERS[name]}):
            for v in rng.sample(VALUES, k):
                yield case(f'{part} {key}={str(v)[:30]!r}',
                           lambda d, p=at, key=key, v=v: edit(d/p, **{key: v}))
            if isinstance(c.get(key), list):
                yield case(f'{part} {key} one longer',
                           lambda d, p=at, key=key, c=c: edit(d/p, **{key: c[key] + c[key][-1:]}))
            if key in c:
                yield case(
                    f'{part} without {key}', lambda d, p=at, key=key, c=c:
                    (d/p).write_text(json.dumps({n: v for n, v in c.items() if n != key})))
        for i in range(k):
            changed = {key: v for key, v in zip(rng.sample(sorted(c), 2), rng.sample(VALUES, 2))}
            yield case(f'{part} {str(changed)[:60]}, {i}',
                       lambda d, p=at, changed=changed: edit(d/p, **changed))
        for how, raw in {
                'deep': b'['*10**5 + b']'*10**5, 'deep objects': b'{"a":'*10**5 + b'1' + b'}'*10**5,
                'long number': b'{"sample_size": ' + b'9'*10**4 + b'}',
                'wide': b'{"block_out_channels": [' + b'8,'*10**6 + b'8]}',
                'BOM': b'\xef\xbb\xbf{}',
                'surrogate': b'{"hidden_act": "\\ud800", "act_fn": "\\ud800", "prediction_type": '
                             b'"\\ud800"}'
        }.items():
            yield case(f'{part} {how}', lambda d, p=at, raw=raw: (d/p).write_bytes(raw))
        for how, make in dict(
                missing=shutil.rmtree, file=lambda p: (shutil.rmtree(p), p.write_text('x')),
                empty=lambda p: (shutil.rmtree(p), p.mkdir()), loop=lambda p:
            (shutil.rmtree(p), p.symlink_to(p.name)), linked=lambda p:
            (shutil.rmtree(p), p.symlink_to(FIX/'karlo'/p.name)), itself=lambda p:
            (shutil.rmtree(p), p.symlink_to('..')), locked=lambda p: p.chmod(0)).items():
            yield case(f'{part} {how}', lambda d, part=part, make=make: make(d/part))
    for a, b in itertools.combinations(theirs.UNCLIP, 2):
        yield case(f'{a} and {b} exchanged', lambda d, a=a, b=b: swap(d/a, d/b))
        yield case(f'{a} and {b}: weights exchanged', lambda d, a=a, b=b: swap(d/a/m, d/b/m))
        yield case(f'{a} and {b}: configurations exchanged',
                   lambda d, a=a, b=b: swap(d/a/'config.json', d/b/'config.json'))
        yield case(f'{a} gives {b} a key', lambda d, a=a, b=b: states(moved, d/a/m, d/b/m))
        yield case(f'{b} gives {a} a key', lambda d, a=a, b=b: states(moved, d/b/m, d/a/m))
    for a, b in itertools.combinations(theirs.CLOCKS, 2):
        yield case(f'{a} and {b} exchanged', lambda d, a=a, b=b: swap(d/a, d/b))

    def base(change, side='8', up=False):
        state = {name: torch.load(FIX/f'glide/{name}.pt') for name in ('base', 'upsample')}
        which = 'upsample' if up else 'base'
        state[which] = change(state[which])
        [torch.save(v, f'{n}.pt') for n, v in state.items()]
        return unharmed(
            lambda: told('base.pt', '--side', side, *(['--enlarge', 'upsample.pt'] if up else [])))

    for (how, f), part in itertools.product(CHANGED.items(), theirs.UNCLIP):
        for key in rng.sample(sorted(load_file(FIX/'karlo'/part/m)), 2):
            yield case(
                f'{part} {key} {how}', lambda d, part=part, key=key, f=f: states(
                    lambda s: [s | {key: f(s[key])}], d/part/m))
    for (how, f), up in itertools.product(CHANGED.items(), (False, True)):
        keys = sorted(torch.load(FIX/'glide/base.pt'))
        for key in [
                'input_blocks.0.0.weight', 'token_embedding.weight', 'positional_embedding',
                'time_embed.0.weight', 'input_blocks.1.0.emb_layers.1.weight',
                'transformer_proj.weight', *rng.sample(keys, 3)
        ]:
            yield Case('told', f'glide {"upsample" if up else "base"} {key} {how}',
                       lambda key=key, f=f, up=up: base(lambda s: s | {key: f(s[key])}, up=up))
    for key in rng.sample(keys, 12):
        yield Case('told', f'glide without {key}',
                   lambda key=key: base(lambda s: {n: w for n, w in s.items() if n != key}))
        yield Case(
            'told', f'glide {key} at odd places', lambda key=key: base(
                lambda s: {n.replace('.0.', '.7.', 1) if n == key else n: w for n, w in s.items()}))
        yield Case(
            'told', f'glide {key} at huge places', lambda key=key: base(lambda s: s | {
                f'input_blocks.{10**30}.{key}': s[key], f'transformer.resblocks.{key}': s[key]
            }))
    for how, f in dict(
            list=lambda s: [*s.values()], empty=lambda s: {}, nested=lambda s: dict(state_dict=s),
            module=lambda s: {f'module.{n}': w for n, w in s.items()},
            numbers=lambda s: s | {'step': 7}, more=lambda s: s | {'more': torch.zeros(2)}).items():
        yield Case('told', f'glide, {how}', lambda f=f: base(f))
    glide_, karlo, up = str(FIX/'glide/base.pt'), str(FIX/'karlo'), str(FIX/'glide/upsample.pt')
    for side in ('1', '2', '3', '7', '65536', '100000', '1000000000'):
        yield Case('told', f'glide --side {side}', lambda side=side: told(glide_, '--side', side))
        yield Case('told', f'glide --side {side}, enlarged',
                   lambda side=side: told(glide_, '--side', side, '--enlarge', up))
        yield Case('told', f'karlo --side {side}', lambda side=side: told(karlo, '--side', side))
    for n in ('1000000000', '100000000', '1000000'):
        yield Case('told', f'glide --n {n}', lambda n=n: told(glide_, '--n', n, '--side', '64'))
        yield Case('told', f'karlo --n {n}, no more steps than there are',
                   lambda n=n: told(karlo, '--n', n, '--steps', '1001'))
    for steps, (name, args) in itertools.product(('1', '27', '1000', '1001', '1000000000'),
                                                 dict(glide=[glide_, '--side', '2'],
                                                      karlo=[karlo]).items()):
        if (name, steps) != ('karlo', '1000'):
            yield Case('told', f'{name} --steps {steps}',
                       lambda args=args, steps=steps: told(*args, '--steps', steps))
    for w in ('1e30', '-1e30', '1e308', '0', '-1', '1e-300'):
        yield Case('told', f'glide --w {w}', lambda w=w: told(glide_, '--side', '8', '--w', w))
        yield Case('told', f'karlo --guidance-scale {w}',
                   lambda w=w: told(karlo, '--guidance-scale', w))
    for name in ('glide/upsample.pt', 'glide/inpaint.pt', 'glide/words.pt', 'glide', 'karlo',
                 'karlo/prior', 'karlo/decoder/m.safetensors', 'iddpm_unet', 'ddpm_unet',
                 'openai_clip_vit', 'unclip_prior', 'run/roll.safetensors', 'run', 'said/cat.png',
                 'reader', 'vocab/v.bpe.gz', 'script/m.pt', 'old/m.pt', 'shards', '.'):
        yield Case('told', f'tell {name}', lambda name=name: told(FIX/name))
        yield Case('told', f'--enlarge {name}',
                   lambda name=name: told(glide_, '--side', '8', '--enlarge', str(FIX/name)))
        yield Case(
            'told', f'without --caption: {name}', lambda name=name: run(
                'sample', str(FIX/name), '--layout', 'auto', '--n', '1', '--steps', '1'))
    for line in ('--label 3', '--bf16', '--no-bf16', '--guidance free', '--classifier-scale 1',
                 '--sampler ddim', '--layout openai', '--preset adm-64', '--attention-order new',
                 '--heads 1', '--head-width 1', '--schedule linear', '--w 1 --guidance-scale 2',
                 '--caption', '--enlarge', '--threads 2', '--device meta', '--out .',
                 '--out x/y/z.png', '--out /dev/null', '--out a'):
        yield Case('told', f'glide {line}',
                   lambda line=line: told(glide_, '--side', '8', *line.split()))
        yield Case('told', f'karlo {line}', lambda line=line: told(karlo, *line.split()))
    for v in [
            *WORDS, 'a'*10**6, 'a '*10**5, '\U0001f98a'*10**4, '\n\t\r', '\u3000', '\u200b', '\xa0',
            '\0', '\ud800', '\u202e\u05d0', '\x07\x1b]0;x\x07', '\ufdfa'*300, 'e' + '\u0301'*9999,
            '--caption', "'; rm -rf *"
    ]:
        for name, args in dict(glide=[glide_, '--side', '8'], karlo=[karlo]).items():
            yield Case(
                'told', f'{name} is told {v[:24]!r} ({len(v)})', lambda args=args, v=v: run(
                    'sample', *args, '--caption', v, '--steps', '2', '--out', 'a.png', '--json'))
            yield Case('told', f'{name} is told a dog and {v[:24]!r} ({len(v)})',
                       lambda args=args, v=v: told(*args, '--caption', v, '--n', '2'))
    yield Case('told', 'many captions',
               lambda: told(glide_, '--side', '2', *['--caption', 'x']*200))

    def killed_writing(when: float, old: bytes | None):
        if old:
            Path('a.png').write_bytes(old)
        pid = child(
            'a', *f'sample {glide_} --caption dog --steps 2 --side 32 --n 60 --out a.png'.split())
        done = 0
        while not done and not [*Path('.').glob('.a.*.tmp.png')]:
            time.sleep(.0005)
            done = os.waitpid(pid, os.WNOHANG)[0]
        if not done:
            time.sleep(when)
            os.kill(pid, signal.SIGKILL)
            code_of(pid)
        # hidden, and in nobody's way
        rest = [*Path('.').glob('.*.tmp.png')]
        [p.unlink() for p in rest]
        if (p := Path('a.png')).exists() and p.read_bytes() != old:
            whole(p)
        assert p.exists() or not old, 'the old sheet is lost'
        return told(glide_, '--side', '8')

    for i in range(6):
        yield Case(
            'told', f'kill -9 while the sheet is written, {i}',
            lambda when=rng.random()*.02, old=(FIX/'said/cat.png').read_bytes()
            if i % 2 else None: killed_writing(when, old))

# ---- the terminal, and long runs ----------------------------------------------------------------------------------------------

def terminal_cases(rng):
    roll = '$D sample $FIX/run/roll.safetensors --n 4 --steps 1 --out a.png'
    for name in cli.command.commands:
        yield Case('terminal', f'{name} --help, narrow',
                   lambda name=name: shell(f'$D {name} --help', COLUMNS='8', TERM='dumb'))
    for line in (
            '$D --help | head -c 5', '$D --help >&-', '$D --help >/dev/full',
            '$D presets | head -1', '$D presets >&-', '$D nothing >&-',
            '$D presets --json >/dev/full', '$D nothing 2>&-; true', f'{roll} >&- 2>&-',
            f'{roll} <&- >/dev/full',
            f'LC_ALL=C PYTHONIOENCODING=ascii $D classify $FIX/said/cat.png heart sun --out é.png',
            'PYTHONUTF8=0 LC_ALL=C $D sample 日本', f'{roll} --json | head -c 1',
            f'python -O -m ddpm_lit presets ddpm-cifar10',
            f'mkdir gone; cd gone; rmdir ../gone; {roll}', f'ulimit -n 24; {roll}',
            f'ulimit -v 3000000; {roll.replace("--n 4", "--n 999999999")}', f'ulimit -f 1; {roll}',
            f'timeout -s INT 300 {roll}', f'unset HOME; {roll}', f'TMPDIR=/nowhere {roll}',
            f'{roll} --device cuda', f'COLUMNS=0 $D sample --help', 'COLUMNS=x $D train --help',
            '$D train roll --steps 3 --batch 4 --out r --device cpu --threads 2 --json 2>/dev/null',
            'CUDA_VISIBLE_DEVICES=99 $D presets', "$D paint $'\\xff' --n 1 --steps 2",
            'RANK=1 WORLD_SIZE=2 $D train roll --steps 1',
            'RANK=x WORLD_SIZE=y $D train roll --steps 1 --out r'):
        yield Case('terminal', line, lambda line=line: shell(line))

def flat(states, every: int) -> dict:
    "Memory over a long run: what a straight line through it says, after a tenth to warm up."
    seen = [memory('VmRSS')/2**20 for i, _ in enumerate(states, 1) if i % every == 0]
    seen = np.array(seen[len(seen) // 10:])
    slope = np.polyfit(np.arange(len(seen)), seen, 1)[0]*len(seen)
    print(
        f'memory over {len(seen)*every} steps: {seen[0]:.1f} MiB at first, {seen[-1]:.1f} at last, '
        f'along a line {slope:+.2f}',
        file=sys.stderr)
    assert slope < 3 and seen[-1] - seen[0] < 4, f'it grew by {slope:.1f} MiB'

def long_cases():
    def sampling():
        model, _ = fit.load_weights(str(FIX/'run/roll.safetensors'))
        return flat(
            sample.ddim(model.given(), schedule.grid(schedule.Cosine(), 10_000), torch.randn(16, 2),
                        1.), 100)

    def unet():
        net = small_unet(1, 0, 8, (1, 2), attention=(), unshuffle=1, middle=False)
        return flat(
            sample.ancestral(sample.clamp_x0(Model(net.eval()).given()),
                             schedule.grid(schedule.Cosine(), 2000), torch.randn(1, 1, 8, 8)), 20)

    def training():
        recipe = fit.find_recipe('roll')
        return flat(
            fit.fit(roll(), recipe.batches(32, 0, torch.device('cpu')), recipe.schedule,
                    recipe.loss, 2000, **recipe.settings), 20)

    def whole_runs():
        def again():
            for i in range(60):
                shutil.rmtree('r', ignore_errors=True)
                run(*'train roll --steps 2 --batch 8 --out r --json'.split())
                yield

        return flat(again(), 2)

    for f in (sampling, unet, training, whole_runs):
        yield Case('long', f.__name__.replace('_', ' '), f)

# ---- all of it ----------------------------------------------------------------------------------------------------------------

def main():
    global FIX
    args = argparse.ArgumentParser()
    args.add_argument('--seed', type=int, default=0)
    args.add_argument('--only', nargs='*', default=[])
    args.add_argument('--case', default='')
    args.add_argument('--json', action='store_true')
    args.add_argument('--examples', type=int, default=40)
    a = args.parse_args()
    torch.set_num_threads(1)
    import socket
    socket.getaddrinfo = socket.create_connection = no_network
    rng = lambda: random.Random(a.seed)
    # tiny files in the real formats
    from torchvision import datasets
    datasets.CelebA.file_list = [(i, None, name) for i, _, name in datasets.CelebA.file_list]
    box = Path(tempfile.mkdtemp(prefix='campaign')).resolve()
    FIX = box/'fix'
    FIX.mkdir()
    cli.recipes()
    cli.visit('scale')
    show.cloud(torch.zeros(1, 2))
    show.save_figure(box/'warm.png')
    make_fixtures(FIX)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        began = time.monotonic()
        with contextlib.suppress(SystemExit):
            cli.main([*TRAIN[:-1], 'ref'])
        (FIX/'seconds').write_text(str(time.monotonic() - began))
        half = cli.open_run(FIX/'half', fit.find_recipe('roll'),
                            dict(steps=24, batch=16, lr=None, seed=None, bf16=None),
                            device=torch.device('cpu'))
        for line in cli.go(half):
            if line['step'] == 10:
                half.save()
                break
    parts = dict(hostile=lambda: hostile_cases(rng()), files=lambda: files_cases(rng()),
                 disks=lambda: disk_cases(rng()), races=lambda: race_cases(rng()),
                 shapes=lambda: shape_cases(a.seed, a.examples),
                 options=lambda: option_cases(rng()), told=lambda: told_cases(rng()),
                 terminal=lambda: terminal_cases(rng()), long=long_cases)
    table, failures = {}, []
    wanted = lambda make: [
        c for c in make() if a.case in c.name and (not a.only or c.part in a.only)
    ]
    try:
        for case, t in itertools.chain.from_iterable(
                try_all(wanted(make), box)
                for name, make in parts.items()
                if not a.only or {name, dict(races='kills').get(name)} & {*a.only}):
            row = table.setdefault(case.part, [0, 0, 0, 0.])
            row[0] += t.refused
            row[1] += t.worked
            row[2] += len(t.failures)
            for f in t.failures:
                failures.append(dict(part=case.part, case=case.name, what=f))
                a.json or print(
                    f'FAILED  {case.part}: {case.name}\n        {f}\n        python '
                    f'tools/campaign.py --seed {a.seed} --only {case.part} --case '
                    f'{subprocess.list2cmdline([case.name])}',
                    flush=True)
    finally:
        os.chdir(root)
        shutil.rmtree(box, ignore_errors=True)
    total = [sum(r[i] for r in table.values()) for i in range(3)]
    if a.json:
        print(
            json.dumps(
                dict(
                    seed=a.seed, parts={
                        k: dict(cases=sum(r[:3]), refused=r[0], worked=r[1], failures=r[2])
                        for k, r in table.items()
                    }, failures=failures), indent=1))
    else:
        print(f'{"":10}{"cases":>8}{"refused":>9}{"worked":>8}{"failures":>10}',
              *(f'{k:10}{sum(r[:3]):8}{r[0]:9}{r[1]:8}{r[2]:10}' for k, r in table.items()),
              sep='\n')
    print(f'{sum(total)} cases, {total[2]} failures')
    sys.exit(bool(total[2] or not sum(total)))

if __name__ == '__main__':
    main()
