"Odd numbers and words on the command line."
import itertools
import os
import shlex
from pathlib import Path

import click
from campaign.right import placed, refused_for, run, run_line, words_of
from ddpm_lit.cli import base as cli
from ddpm_lit.core.files import data_dir
from ddpm_lit.systems.pipeline import weights_on

# a run of each command that takes little time; with a second name, only some of its options
RUNS = {
    ('train', ''): 'train roll --steps 2 --batch 8 --out r --json',
    ('distil', ''): 'distil {roll} --steps 2 --train-steps 2 --batch 8 --out d --json',
    ('sample', ''): 'sample {roll} --n 4 --steps 2 --out a.png --json',
    ('eval', ''): 'eval {roll} --n 12 --steps 2 --json',
    ('classify', ''): 'classify {cat} --among heart sun --out c.png --json',
    ('search', ''): 'search {said} heart sun --top 2 --out f.png --json',
    ('paint', ''): "paint 'a red heart' --n 1 --steps 2 --out p.png --json",
    ('vary', ''): 'vary {cat} --n 1 --steps 2 --out v.png --json',
    ('blend', ''): 'blend {cat} {cat} --n 2 --steps 2 --out b.png --json',
    ('edit', ''): 'edit {cat} --from heart --to sun --n 2 --steps 2 --out e.png --json',
    ('restore', ''): 'restore {digit} --operator blur --n 2 --steps 2 --out s.png --json',
    ('restore', 'small'): 'restore {small} --operator down --n 2 --steps 2 --out s.png --json',
    ('write', ''): "write 'a red ___ above a blue square' --n 2 --json",
    ('forecast', ''): 'forecast {table} --horizon 2 --past 4 --seconds 1 --n 20 --out f --json',
    ('translate', ''): 'translate {digits} {digits} --side 8 --seconds 1 --steps 2 --run t '
                       '--out t.png --json',
    ('compare', ''): 'compare --out {compare} --n 100 --json',
    ('demo', ''): 'demo --steps 1 --n 1 --json',
    ('bench', ''): 'bench nothing --json',
    ('parity', ''): 'parity {parity} --json',
    ('presets', ''): 'presets ddpm-cifar10 --json',
    ('api', ''): 'api ddim --json',
    ('export', ''): 'export {roll} --to safetensors e --json',
    ('sample', 'guided'): 'sample mnist --n 2 --steps 2 --out a.png --json',
    ('paint', 'clip'): 'paint heart --n 1 --steps 2 --guidance clip --json',
    ('paint', 'init'): 'paint heart --n 1 --steps 2 --init {cat}',
    ('eval', 'digits'): 'eval mnist --n 20 --steps 1 --bits-pictures 1 --bits-draws 1 --json',
    ('sample', 'theirs'): 'sample {iddpm} --layout auto --heads 4 --attention-order legacy '
                          '--schedule linear --side 8 --n 2 --steps 2 --out a.png --json',
    ('export', 'theirs'): 'export {iddpm} --to torchscript x --heads 4 --attention-order legacy '
                          '--schedule linear --side 8 --json',
    ('sample', 'captioned'): 'sample {glide} --caption dog --side 8 --steps 2 --out a.png --json',
    ('sample', 'upsampled'): 'sample {glide} --caption dog --side 8 --steps 2 --out a.png --json '
                            '--upsampler {up}',
    ('sample', 'karlo'): 'sample {karlo} --caption dog --steps 2 --out a.png --json'}

# the options that are tried there
ONLY = dict(
    guided='w guidance_scale classifier_scale label guidance', clip='clip_scale',
    init='strength mask', digits='weights bits_draws bits_pictures label batch',
    small='factor kind', theirs='heads head_width side schedule order preset layout n',
    upsampled='captions upsampler side n seed', karlo='name captions side steps w guidance_scale')

# what a command is about, which an argument without a name replaces
SUBJECTS = ('{roll}', 'roll', 'mnist', 'ddpm-cifar10', 'a red heart', '{parity}', '{cat}',
            '{digit}', '{small}', '{table}', '{iddpm}', '{glide}', '{up}', '{karlo}', '{said}',
            'ddim')

NUMBERS = ['nan', 'inf', '-inf', '-1', '0', '1e400', '1e-320', '1000000000000',
           '100000000000000000000', '', 'x', '1_0', chr(0xff11)]
WORDS = ['', ' ', '.', '..', '/', '../../x', 'no/such/place/c.png', 'x\0y', 'x'*5000, '\udcff',
         'a\u0301 \u202e\u65e5\u672c\u8a9e', '\U0001f98a'*40, '-', '%s{}{0}', '\x1b[31m',
         'line\nbreak', '/proc/x.png', '/dev/null/x.png', 'con.txt', 'a red heart '*3000,
         '<|endoftext|>', '\ufeffheart']
DEVICES = ['meta', 'cuda', 'cuda:99', 'cuda:-1', 'cpu:7', 'CPU', 'mps', 'xla', 'hpu', 'vulkan',
           'auto:0', 'cpu:x']
# large numbers are what is asked for there, and take their time
AGES = {('train', 'steps'), ('forecast', 'seconds'), ('translate', 'seconds'),
        ('demo', 'seconds'), ('demo', 'steps'), ('compare', 'seconds')}

LINES = ['', 'nothing', '--nothing', 'train', 'sample', 'train roll roll',
         'sample mnist --w 1 --guidance-scale 2', 'sample mnist --label 10',
         'sample mnist --label -1', 'sample mnist --label ٣', 'sample clip', 'eval clip --w 1',
         'eval glide --label 1', 'eval mnist --sheet a.png', 'eval real --sheet a.txt',
         'train clip --batch 1000000000', 'presets nothing',
         'parity nothing', 'classify nothing a b', 'edit x', 'blend x', 'paint',
         'paint a --mask x', 'paint a --strength .5', 'paint a --prior ar',
         'paint a --system nobody', 'paint a --data shapes --style noto',
         'paint a --guidance clip --w 1', 'train roll --resume', 'train roll --resume --out x',
         'train roll --init', 'train nobody', 'train roll --ship --steps 1 --out r',
         'compare --out nowhere', 'sample roll', '--version', '-h',
         'sample mnist --n 1 --steps 1000000000', 'sample mnist --n 1000000000 --steps 1',
         'paint heart --n 1 --steps 1000000000']
SAYS = {'sample mnist --guidance cfg --out a.png': '--w',
        'sample mnist --guidance cfg --label 3 --out a.png': '--w',
        'sample mnist --w 1 --guidance-scale 2 --out a.png': '--guidance-scale',
        'train roll --resume': 'leave --resume out'}
# what a file of weights holds, the name that it bears, and a command that reads that name
HOLE = 'paint a --n 1 --steps 2 --init {cat} --mask {cat}'
RENAMED = (('mnist', 'latent', 'paint a --n 1 --steps 2 --system latent'),
           ('glide', 'latent', 'paint a --n 1 --steps 2 --system latent'),
           ('latent', 'autoencoder', 'paint a --n 1 --steps 2 --system latent'),
           ('mnist', 'glide', 'paint a --n 1 --steps 2'),
           ('dalle2-up-64', 'glide-up-64', 'paint a --n 1 --steps 2'),
           ('glide', 'glide-inpaint', HOLE), ('glide-up-64', 'glide-up-64-inpaint', HOLE),
           ('glide', 'dalle2', 'paint a --n 1 --steps 2 --system dalle2'),
           ('prior-ar', 'prior', 'paint a --n 1 --steps 2 --system dalle2'),
           ('noised-clip', 'clip', 'classify {cat} a b'),
           ('clip-vit-transformer', 'clip', 'classify {cat} a b'),
           ('adm', 'mnist', 'sample mnist --n 1 --steps 1 --out a.png'),
           ('adm', 'mnist', 'train mnist --init --steps 1 --batch 1 --out r'),
           ('ncsn', 'mnist', 'export mnist --to safetensors e'))
DATA_FOLDERS = ('/nowhere', '/etc/passwd', 'x\0', '', '.', '/proc/self', 'x'*5000)
DATA_LINES = ('sample mnist --n 1 --steps 1 --out a.png',
              'train mnist --steps 1 --batch 1 --out r', 'eval nothing')


def is_number(p) -> bool:
    return isinstance(p.type, (click.types.IntParamType, click.types.FloatParamType))


def accepted(p, value: str) -> bool:
    "Whether click lets a value through to the command."
    try:
        p.type.convert(value, p, None)
        return True
    except Exception:
        return False


def takes_long(command: str, p, value: str) -> bool:
    "Whether a command might in fact begin, where that takes long."
    if not accepted(p, value):
        return False
    if (command, p.name) in AGES and len(value) > 5:
        return True
    if (command, p.name, value) == ('search', 'folder', '/'):  # all pictures of a machine
        return True
    paths = ('/proc/x.png', 'x\0y', 'x'*5000)
    return command in ('demo', 'bench') and (is_number(p) or value not in paths)


def values_for(p, rng, k: int) -> list[str]:
    if is_number(p):
        return NUMBERS
    if p.name == 'device':
        return DEVICES + WORDS[:3]
    return [*WORDS[:6], *rng.sample(WORDS[6:], k)]


def with_value(line: str, p, value: str) -> list[str]:
    "The words of a run with an option added, or with another subject."
    if isinstance(p, click.Option):
        return [*words_of(line), p.opts[0], value]
    words = shlex.split(line)
    subject = next((word for word in words if word in SUBJECTS), None)
    return [value if word == subject else placed(word) for word in words]


def line_with_data(folder: str, line: str):
    "A command with its data in a folder."
    if '\0' not in folder:
        os.environ['DDPM_LIT_DATA'] = folder
    return run(*line.split())


def renamed(held: str, name: str, line: str):
    "A command is refused where the file of a shipped name holds other weights."
    Path('weights').mkdir()
    Path(f'weights/{name}.safetensors').symlink_to(data_dir('weights', f'{held}.safetensors'))
    os.environ['DDPM_LIT_DATA'] = str(Path.cwd())
    weights_on.cache_clear()  # what cases before have read
    refused_for(f'holds {held}, not {name}', line)


def every_command_is_tried():
    served = {'play'}  # until somebody ends it
    assert {*cli.COMMANDS} <= served | {command for command, _ in RUNS}


def tried_options(command: str, which: str) -> list[click.Parameter]:
    "The options of a run that take a value."
    params = cli.command.get_command(None, command).params
    return [p for p in params if p.name in ONLY.get(which, p.name).split()
            and p.name != 'help' and not getattr(p, 'is_flag', False)]


def value_cases(command: str, which: str, line: str, rng, k: int):
    "A run as it should be, then each of its options with odd values."
    if command not in ('demo', 'bench'):
        yield f'{command} {which} as it should be', run_line, line
    for p in tried_options(command, which):
        for v in values_for(p, rng, k):
            if not takes_long(command, p, v):
                name = f'{command} {which} {p.opts[0]} {v[:24]!r}'
                yield name, run, *with_value(line, p, v)


def option_cases(rng, k: int = 9):
    for (command, which), line in RUNS.items():
        yield from value_cases(command, which, line, rng, k)
    yield 'each command is tried', every_command_is_tried
    for line in LINES:  # weights that are shipped go into the folder of the case
        yield line, line_with_data, '.' if '--ship' in line else '\0', line
    for line, words in SAYS.items():
        yield f'{line}: it says {words}', refused_for, words, line
    for held, name, line in RENAMED:
        yield f'{held} called {name}: {line}', renamed, held, name, line
    for folder, line in itertools.product(DATA_FOLDERS, DATA_LINES):
        yield f'DDPM_LIT_DATA={folder[:9]!r} {line}', line_with_data, folder, line
