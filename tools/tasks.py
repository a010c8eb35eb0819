"""What a practitioner asks for, on icons that this file draws: python tools/tasks.py [--only 1 7]

Twelve tasks and three wishes, a few steps each: own pictures, captions, classes, stopping and going
on, Python, export and import, a plug-in, an own loop, edits, a CLIP, measures, several processes;
then a picture as the condition, series and five channels, a word for a style. Nothing is learned in
so few steps: what is checked are the files, shapes, words and exit codes. A line for each task says
what was found; the last one is `N passed, N failed`. smoke.py does what every platform has to do.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENV = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1',
           PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
COLOURS = dict(red=(214, 40, 57), blue=(38, 84, 198), green=(46, 160, 67), yellow=(247, 190, 33),
               purple=(130, 60, 170))
SHAPES = 'disc', 'square', 'triangle', 'ring'


class Unmet(Exception):
    "What should be there is not."


def needs(met, words: str):
    if not met:
        raise Unmet(words)


def run(*args: str, code: int = 0, kind=('-m', 'ddpm_lit')) -> str:
    "A command of ours in this folder: what it said. It must end with the exit code."
    done = subprocess.run([sys.executable, *kind, *map(str, args)], capture_output=True, text=True,
                          env=ENV)
    said = done.stdout if '--json' in args else done.stdout + done.stderr
    needs(done.returncode == code, f'{" ".join(map(str, args))[:300]}: exit code {done.returncode}'
          f'\n{(done.stdout + done.stderr)[-1500:]}')
    return said


def python(script: str) -> str:
    return run(script, kind=('-c',))


def draw(shape: str, colour: str, r: int, side: int = 32):
    "An icon, as a PIL image on white."
    from PIL import Image, ImageDraw
    image = Image.new('RGB', (side, side), 'white')
    pen = ImageDraw.Draw(image)
    m = side/2
    box = m - r, m - r, m + r, m + r
    if shape == 'disc':
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == 'square':
        pen.rectangle(box, fill=COLOURS[colour])
    elif shape == 'triangle':
        pen.polygon([(m, m - r), (m + r, m + r), (m - r, m + r)], fill=COLOURS[colour])
    else:
        pen.ellipse(box, outline=COLOURS[colour], width=4)
    return image


def write_icons(n: int = 300):
    "The icons in three folders: alone, with captions beside them, and by shape."
    for i in range(n):
        shape = SHAPES[i % 4]
        colour = [*COLOURS][i // 4 % 5]
        image = draw(shape, colour, 6 + i // 20 % 9)
        name = f'{i:03}.png'
        for folder in ('icons', 'said', f'classes/{shape}'):
            Path(folder).mkdir(parents=True, exist_ok=True)
            image.save(Path(folder)/name)
        (Path('said')/name).with_suffix('.txt').write_text(f'a {colour} {shape}\n')


def size(path) -> tuple[int, int]:
    "Width and height of a PNG that is whole."
    from PIL import Image
    needs(Path(path).exists(), f'{path} was not written')
    with Image.open(path) as image:
        image.load()
        return image.size


def weights_in(folder) -> Path:
    "The weights that a training has left."
    found = [p for p in Path(folder).glob('*.safetensors') if p.name != 'state.safetensors']
    needs(len(found) == 1, f'weights in {folder}: {found}')
    return found[0]


SMALL = '--base', 16, '--batch', 16, '--threads', 1


def icons():
    "300 icons: train, sample, eval"
    said = run('train', '--data', 'icons', '--steps', 6, *SMALL)
    needs('300 pictures of 32 x 32' in said and 'runs/icons' in said, said)
    run('sample', 'runs/icons', '--n', 8, '--steps', 4, '--out', 'icons.png')
    needs(size('icons.png')[0] > 8*32, 'the sheet is too small')
    found = json.loads(run('eval', 'runs/icons', '--n', 40, '--steps', 3, '--json'))
    needs(found['n'] == 40 and 'share' in found['copies'], str(found)[:500])


def captions():
    "captions: a style word, a whole model, paint"
    said = run('train', '--data', 'said', '--system', 'latent', '--style-word', 'zorbl',
               '--share-old', 0, '--steps', 2, '--batch', 4, '--out', 'runs/zorbl')
    needs('zorbl' in said, said)
    run('train', '--data', 'said', '--system', 'latent', '--whole', '--share-old', 0, '--steps', 2,
        '--batch', 4, '--out', 'runs/whole')
    for name in ('zorbl', 'whole'):
        run('paint', 'a zorbl emoji of a red disc', '--weights', f'runs/{name}', '--n', 2,
            '--steps', 3, '--out', f'{name}.png')
        needs(size(f'{name}.png')[0] >= 2*64, f'{name}.png is too small')


def classes():
    "class folders: sample a class, compare weights of guidance"
    said = run('train', '--data', 'classes', '--labels', 'folders', '--steps', 5, *SMALL)
    needs('4 classes' in said, said)
    run('sample', 'runs/classes', '--label', 'ring', '--n', 4, '--steps', 3, '--w', 1,
        '--out', 'rings.png')
    size('rings.png')
    rows = json.loads(run('eval', 'runs/classes', '--n', 24, '--steps', 2, '--w', 0, '--w', 1,
                          '--json'))
    needs([row['w'] for row in rows] == [0, 1], str(rows)[:300])


def resume():
    "Ctrl-C, --resume with more steps and another rate, previews, a log"
    log = Path('runs/stopped/log.jsonl')
    args = ['train', '--data', 'icons', '--steps', 5000, '--save-every', 0, *SMALL,
            '--out', 'runs/stopped']
    p = subprocess.Popen([sys.executable, '-m', 'ddpm_lit', *map(str, args)], env=ENV, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    began = time.time()
    while time.time() < began + 120 and not (log.exists() and log.read_text().count('\n') > 1):
        time.sleep(.2)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=60)[0]
    stopped = re.search(r'stopped at step ([\d,]+)', said)
    needs(stopped and '--resume' in said and p.returncode == 130, f'{p.returncode}: {said[-900:]}')

    steps = int(stopped[1].replace(',', '')) + 4
    more = ['--log', 'tensorboard'] if find_spec('tensorboard') else []
    said = run('train', '--resume', '--out', 'runs/stopped', '--steps', steps, '--lr', 5e-4,
               '--preview', 2, *more)
    needs(len([*Path('runs/stopped/previews').glob('*.png')]) >= 2, said)
    needs(not more or any(Path('runs/stopped/tensorboard').iterdir()), 'no events were written')
    card = weights_in('runs/stopped').with_suffix('.json').read_text()
    needs('"changed"' in card and '"lr": 0.0005' in card, card[:900])


def in_python():
    "Python: a sampler, labels, a guidance, states and the seed"
    python('''
import torch, ddpm_lit
from ddpm_lit.guide.cfg import cfg
m = ddpm_lit.load('mnist')

def mine(denoiser, levels, x):
    for t, s in levels.pairs():
        p = denoiser(x, t)
        x = s.signal*p.x0 + s.sigma*p.eps
        yield x

def pull(model, label, w):
    return cfg(model.given(label), model.given(), w)

x = m.sample(2, label=[3, 7], sampler=mine, steps=3)
assert (x - m.sample(2, label=[3, 7], steps=3)).abs().max() < 1e-4
assert m.sample(2, label=3, w=1., guidance=pull, steps=2).isfinite().all()
film = m.states(2, label=[3, 7], steps=3)
assert film.shape == (4, 2, 1, 28, 28) and (film[-1] - x).abs().max() < 1e-4
a, b = (m.sample(2, seed=None, steps=2) for _ in range(2))
assert (a - b).abs().max() > .01
own = ddpm_lit.load('runs/icons')
assert own.sample(2, steps=2).shape == (2, 3, 32, 32)
ddpm_lit.save(a, 'own.png')
''')
    size('own.png')


# a tiny network in the layout of diffusers, from the files that parity is checked with
THEIRS = """
import json
from pathlib import Path
from ddpm_lit.bench.parity import read_fixture
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.tensors import write_tensors
f = read_fixture(data_dir('parity')/'ddpm_unet.safetensors')
here = Path('unet')
here.mkdir()
write_tensors(here/'diffusion_pytorch_model.safetensors', f.weights)
for name, value in (('config', f.config), ('scheduler_config', dict(beta_schedule='linear'))):
    (here/f'{name}.json').write_text(json.dumps(value))
"""


def exports():
    "export to other formats, draw from the folder, and train it further"
    import torch
    run('export', 'mnist', '--to', 'torchscript', 'ts')
    net = torch.jit.load(next(Path('ts').glob('*.pt')))
    x = torch.randn(2, 1, 28, 28)
    x0, eps = net(x, torch.tensor([999, 5]), torch.tensor([3, 7]))
    needs(x0.shape == eps.shape == x.shape, f'{x0.shape}, {eps.shape}')

    # a folder for diffusers; its squares of pixels are no pictures to go on with
    run('export', 'runs/icons', '--to', 'diffusers', '--fold', 'theirs')
    needs(Path('theirs/model_index.json').exists(), 'theirs/model_index.json is not there')
    said = run('train', '--data', 'icons', '--init', 'theirs', '--steps', 2, '--out', 'runs/no',
               code=1)
    needs('exported from' in said, said)
    run('train', '--data', 'icons', '--init', 'runs/icons', '--steps', 2, '--batch', 8,
        '--out', 'runs/further')

    # somebody else's network: drawn from, trained further, and written again
    python(THEIRS)
    run('sample', 'unet', '--layout', 'auto', '--n', 2, '--steps', 2, '--out', 'unet.png')
    run('train', '--data', 'icons', '--side', 16, '--init', 'unet', '--steps', 2, '--batch', 8,
        '--out', 'runs/theirs')
    run('export', 'runs/theirs', '--to', 'diffusers', 'again')
    run('sample', 'again', '--layout', 'auto', '--n', 2, '--steps', 2, '--out', 'again.png')
    size('again.png')
    if find_spec('onnx'):
        run('export', 'mnist', '--to', 'onnx', 'onnx')
        needs([*Path('onnx').glob('*.onnx')], 'no file for ONNX')
    if find_spec('diffusers'):
        python('from diffusers import DiffusionPipeline as P; P.from_pretrained("theirs")')


PLUGIN = '''
import torch
from torch import nn
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.sample import SAMPLERS
from ddpm_lit.diffusion.schedule import SCHEDULES, as_times
from ddpm_lit.systems.own import NETWORKS


@SAMPLERS.add('plain')
def plain(denoiser, levels, x):
    for t, s in levels.pairs():
        p = denoiser(x, t)
        x = s.signal*p.x0 + s.sigma*p.eps
        yield x


class Straight:
    def __call__(self, time):
        return Level(8 - 16*as_times(time))

    def time(self, t):
        return (8 - t.log_snr.cpu().double())/16


SCHEDULES.add('straight', Straight())


class Net(nn.Module):
    def __init__(self, channels, base):
        super().__init__()
        self.enter = nn.Conv2d(channels + 1, base, 3, padding=1)
        self.leave = nn.Conv2d(base, channels, 3, padding=1)

    def forward(self, x, time, label=None):
        plane = (time/1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.leave(torch.relu(self.enter(torch.cat([x, plane], 1))))


@NETWORKS.add('two-layers')
def two_layers(channels, side, classes, base):
    return Net(channels, base)
'''


def plugin():
    "a plug-in: a sampler, a schedule, a network"
    Path('mine.py').write_text(PLUGIN)
    run('--plugin', 'mine.py', 'train', '--data', 'icons', '--net', 'two-layers', '--schedule',
        'straight', '--no-augment', '--steps', 3, '--out', 'runs/mine', *SMALL)
    said = run('--plugin', 'mine.py', 'sample', 'runs/mine', '--n', 2, '--sampler', 'plain',
               '--steps', 3, '--out', 'mine.png')
    needs('plain in 3 steps' in said, said)
    said = run('sample', 'runs/mine', '--n', 2, code=1)
    needs('--plugin FILE' in said, said)


def own_loop():
    "a loop of one's own: levels as the schedule gives them, a loss, a sampler"
    python('''
import torch
from torch import nn
from ddpm_lit.core.denoiser import Model
from ddpm_lit.diffusion.loss import v_weight, weighted
from ddpm_lit.diffusion.sample import ddim, last
from ddpm_lit.diffusion.schedule import Cosine, grid

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x, time):
        return self.conv(x)

torch.manual_seed(0)
model, schedule, loss = Model(Net()), Cosine(), weighted(v_weight)
opt = torch.optim.Adam(model.parameters(), 1e-2)
values = []
for step in range(60):
    x0 = torch.zeros(16, 3, 8, 8)
    t = schedule(torch.rand(16, 1, 1, 1))
    value = loss(model, x0, t, torch.randn_like(x0)).mean()
    opt.zero_grad()
    value.backward()
    opt.step()
    values.append(value.item())
assert sum(values[-10:]) < .7*sum(values[:10]), values
levels = grid(schedule, 5)
assert levels[0].sigma > .99 and levels[-1].sigma == 0
x = last(ddim(model, levels, torch.randn(2, 3, 8, 8)))
assert x.shape == (2, 3, 8, 8) and x.isfinite().all()
''')


def edits():
    "a picture and a mask, strength, edit, blend, restore"
    from PIL import Image
    icon = draw('disc', 'red', 20, 64)
    icon.save('disc.png')
    draw('ring', 'blue', 20, 64).save('ring.png')
    mask = Image.new('L', (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save('mask.png')
    few = '--n', 2, '--steps', 3
    run('paint', 'a green disc', '--init', 'disc.png', '--mask', 'mask.png', *few, '--out', 'a.png')
    run('paint', 'a red heart', '--init', 'disc.png', '--strength', .5, *few, '--out', 'b.png')
    run('edit', 'disc.png', '--from', 'a red disc', '--to', 'a blue disc', *few, '--out', 'c.png')
    run('blend', 'disc.png', 'ring.png', *few, '--out', 'd.png')
    Image.new('L', (28, 28), 90).save('grey.png')
    run('restore', 'grey.png', '--operator', 'blur', *few, '--out', 'e.png')
    for name in 'abcde':
        size(f'{name}.png')


def pairs():
    "a CLIP on own pairs, classify, search"
    run('train', '--data', 'said', '--system', 'clip', '--steps', 2, '--batch', 8,
        '--out', 'runs/pairs')
    Path('names.txt').write_text('a red disc\na blue ring\na green square\n')
    found = json.loads(run('classify', 'icons/000.png', '--names', 'names.txt', '--weights',
                           'runs/pairs', '--json'))
    needs(len(found['captions']) == 3, str(found)[:300])
    found = json.loads(run('search', 'icons', 'a blue ring', 'a red disc', '--top', 5, '--weights',
                           'runs/pairs', '--out', 'found.png', '--json'))
    needs([len(row['pictures']) for row in found['found']] == [5, 5], str(found)[:300])
    size('found.png')


def measures():
    "bits, distances and copies of own pictures"
    found = json.loads(run('eval', 'runs/icons', '--n', 40, '--steps', 2, '--bits-pictures', 8,
                           '--bits-draws', 2, '--json'))
    bits = found['bits_per_dim']
    needs(bits and bits['pictures'] == 8 and bits['error'] > 0, str(bits))
    said = run('eval', 'runs/icons', '--n', 40, '--steps', 2, '--bits-pictures', 8,
               '--bits-draws', 2)
    needs('bits' in said and 'near copies' in said, said)


def processes(compiled: bool = False):
    "micro-batches, two processes, bfloat16"
    import torch
    from safetensors.torch import load_file
    shared = ['train', '--data', 'icons', '--steps', 3, '--no-bf16', *SMALL]
    run(*shared, '--out', 'runs/one')
    run(*shared, '--micro', 5, '--out', 'runs/micro')
    run(*shared[:-6], '--bf16', *SMALL, '--out', 'runs/bf16')
    many = ['one', 'micro']
    if torch.distributed.is_available():
        run(*shared, '--out', 'runs/two', kind=('-m', 'torch.distributed.run', '--standalone',
                                                '--nproc-per-node', '2', '-m', 'ddpm_lit'))
        many.append('two')
    if compiled:
        run(*shared, '--compile', '--out', 'runs/compiled')
    first, *others = [load_file(weights_in(f'runs/{name}')) for name in many]
    for name, other in zip(many[1:], others):
        error = max((first[k].float() - other[k].float()).abs().max().item() for k in first)
        needs(error < 1e-3, f'{name}: weights differ by {error}')


LOOP = '''
import torch
from torch import nn
from ddpm_lit.core.denoiser import Model
from ddpm_lit.diffusion.loss import v_weight, weighted
from ddpm_lit.diffusion.sample import ddim, last
from ddpm_lit.diffusion.schedule import Cosine, grid
from ddpm_lit.train.fit import Training, fit

def trained(net, batches, steps=20):
    training = Training(Model(net))
    for p in fit(training, batches, Cosine(), weighted(v_weight), steps, warmup=1):
        assert p.loss.isfinite()
    return training.average

def drawn(denoiser, *shape):
    x = last(ddim(denoiser, grid(Cosine(), 4), torch.randn(shape)))
    assert x.shape == shape and x.isfinite().all()
    return x
'''


def paired():
    "wish: a picture as the condition of a picture"
    python(LOOP + '''
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, padding=1)
    def forward(self, x, time, grey):
        return self.conv(torch.cat([x, grey], 1))

def batches(step):
    x0 = torch.rand(8, 3, 16, 16)*2 - 1
    return x0, dict(grey=x0.mean(1, keepdim=True))

model = trained(Net(), batches)
x0, condition = batches(0)
a = drawn(model.given(**condition), 8, 3, 16, 16)
try:
    model.given(gray=condition['grey'])(a, Cosine()(.5))
except Exception as e:
    assert 'gray' in str(e), e
else:
    raise AssertionError('a condition with another name was taken')
''')


def shapes():
    "wish: series and five channels"
    python(LOOP + '''
class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 5, padding=2)
    def forward(self, x, time):
        return self.conv(x)

class Bands(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
    def forward(self, x, time):
        return self.conv(x)

def waves(step):
    at = torch.arange(64)/8 + 6*torch.rand(8, 1, 1)
    return (at.sin(),)

drawn(trained(Series(), waves).given(), 4, 1, 64)
drawn(trained(Bands(), lambda step: (torch.randn(8, 5, 12, 20),)).given(), 4, 5, 12, 20)
''')


def trigger():
    "wish: a word that switches a style"
    if not Path('runs/zorbl').exists():
        captions()
    run('paint', 'a red disc', '--weights', 'runs/zorbl', '--n', 2, '--steps', 3,
        '--out', 'without.png')
    run('paint', 'a zorbl emoji of a red disc', '--weights', 'runs/zorbl', '--n', 2, '--steps', 3,
        '--out', 'with.png')
    needs(Path('with.png').read_bytes() != Path('without.png').read_bytes(),
          'the word changes nothing')


TASKS = [icons, captions, classes, resume, in_python, exports, plugin, own_loop, edits, pairs,
         measures, processes, paired, shapes, trigger]
ALONE = 5, 6, 11  # these look at the run of task 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', type=int, metavar='N', help='these tasks, from 1 on')
    parser.add_argument('--compile', action='store_true', help='a compiled network too: minutes')
    args = parser.parse_args()
    wanted = args.only or range(1, len(TASKS) + 1)
    if {*wanted} & {*ALONE}:
        wanted = sorted({1, *wanted})

    failed = 0
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_icons()
        for number in wanted:
            task = TASKS[number - 1]
            began = time.perf_counter()
            more = dict(compiled=True) if args.compile and task is processes else {}
            try:
                task(**more)
                words = ''
            except Exception as e:  # whatever it is, the others go on
                failed += 1
                words = f'\n{type(e).__name__}: {e}'
            seconds = time.perf_counter() - began
            print(f'{"FAILED" if words else "ok    "} {number:2} {task.__doc__}, '
                  f'{seconds:.0f} s{words}', flush=True)
        os.chdir(back)
    print(f'{len(wanted) - failed} passed, {failed} failed')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
