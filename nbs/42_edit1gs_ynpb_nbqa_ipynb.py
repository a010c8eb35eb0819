# %%NBQA-CELL-SEP7dc948
#| default_exp guide.edit


# %%NBQA-CELL-SEP7dc948
#| export
import torch
from torch import Tensor
from typing import Callable, Iterator
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, from_x0
from ddpm_lit.core.level import Level, append_dims, widest
from ddpm_lit.diffusion.forward import q_sample, q_step
from ddpm_lit.diffusion.sample import edit_x0, fixed_small, reverse, steps
from ddpm_lit.diffusion.schedule import Grid


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, the shipped network, and helpers for figures
import math
import matplotlib.pyplot as plt
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.level import CLEAN
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.forward import new_noise
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import ancestral, clamp_x0, ddim, exact, last, respace
from ddpm_lit.diffusion.schedule import Cosine, grid, karras, linear
from ddpm_lit.diffusion.solve import heun
from ddpm_lit.guide import edit as library  # the first pages use what the later ones build
from ddpm_lit.guide.cfg import cfg_batched  # for a prediction that leaves the range of images
from ddpm_lit.guide.classifier import guide
from ddpm_lit.systems.sohl_dickstein2015 import multiplied, near
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64
RED = show.INK['guidance']
BLUE = show.INK['model']

model = load_weights('mnist')[0]
unconditional = model.given(None)
test = to_unit(mnist('test').pixels[:40])


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


def figure(rows, columns, height, **kw):
    "Axes in rows, seven inches wide."
    dpi = kw.pop('dpi', 160)
    return plt.subplots(rows, columns, figsize=(7, height), layout='constrained', dpi=dpi, **kw)


def bare(ax):
    "No ticks and no frame."
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def sheet(rows, height, columns):
    "A sheet of digits: each row of a dict under its name, to the left."
    fig, axes = figure(len(rows), 1, height, dpi=144, squeeze=False)
    fig.get_layout_engine().set(w_pad=.03, h_pad=.02)
    for ax, (name, x) in zip(axes[:, 0], rows.items()):
        bare(ax).imshow(show.tile(x, columns))
        ax.set_ylabel(name, rotation=0, ha='right', va='center')


# a three and a seven of straight lines
ruler = -torch.ones(2, 1, 28, 28)
ruler[0, 0, [5, 13, 22], 9:20] = 1
ruler[0, 0, 5:23, 18:20] = 1
ruler[1, 0, 5:7, 8:21] = 1
ruler[1, 0, 5:24, 18:20] = 1


# %%NBQA-CELL-SEP7dc948
# Figure 42.1: three edits with one network
torch.manual_seed(0)
d = clamp_x0(unconditional)
run = karras(20, .02)
rows = 3  # samples of each
left_half = (torch.arange(28) < 14).float().expand(28, 28)


def completed(y, project):
    "Samples that agree with what is known of y: replacement, each step taken ten times."
    known = y.repeat(rows, 1, 1, 1)
    edited = library.replacement(d, known, project)
    return last(library.repaint(edited, run, torch.randn_like(known), 10))


y = test[[9, 11, 10, 15]]
grey = torch.where(left_half > 0, y, 0.)
hole = torch.cat([grey, completed(y, library.pixels(left_half))])

y = test[[0, 1, 3, 4]]
mosaic = library.blocks(7)
coarse = torch.cat([mosaic(y), completed(y, mosaic)])

# a sketch is a list of straight strokes, each from a row and column to another
strokes = {2: [(6, 8, 6, 19), (6, 19, 13, 19), (13, 19, 22, 8), (22, 8, 22, 20)],
           3: [(5, 9, 5, 19), (13, 9, 13, 19), (22, 9, 22, 19), (5, 19, 22, 19)],
           4: [(5, 9, 14, 8), (14, 8, 14, 20), (5, 18, 23, 18)],
           7: [(6, 8, 6, 20), (6, 20, 23, 12)]}
place = torch.stack(torch.meshgrid(*[torch.arange(28.)]*2, indexing='ij'), -1)


def stroke(top, left, bottom, right):
    "White within half a pixel of the line, black from one and a half on."
    a = torch.tensor([top, left])
    b = torch.tensor([bottom, right]) - a
    on_line = (((place - a) @ b.float())/b.square().sum()).clamp(0, 1)
    far = (place - a - on_line[..., None]*b).norm(dim=-1)
    return 1 - 2*(far - .5).clamp(0, 1)


y = torch.stack([torch.stack([stroke(*s) for s in of]).amax(0) for of in strokes.values()])[:, None]
digit = clamp_x0(model.given(torch.tensor([*strokes]*rows)))
torch.manual_seed(3)
drawn = last(library.sdedit(ancestral, digit, karras(40, .02), y.repeat(rows, 1, 1, 1),
                            Level(-2.)))
sketched = torch.cat([y, drawn])

fig, axes = figure(1, 3, 2.5)
fig.get_layout_engine().set(w_pad=.04)
titles = ('fill the right half', 'sharpen 4 × 4 pixels', 'redraw a sketch')
middles = [14 + 29*k for k in range(4)]
for ax, title, x in zip(axes, titles, (hole, coarse, sketched)):
    bare(ax).imshow(show.tile(x, 4))
    ax.set_title(title, fontsize=9)
    ax.tick_params(length=0)
    ax.axhline(28, color=RED, linewidth=1.5)
axes[0].set_yticks(middles, ['given', 'sample 1', 'sample 2', 'sample 3'])


# %%NBQA-CELL-SEP7dc948
import torch

alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, .02, 1000), 0)  # DDPM's schedule


@torch.no_grad()
def inpaint(net, x, y, mask, steps=50, repeats=5):
    timesteps = torch.linspace(999, 0, steps).round().long()
    levels = torch.cat([alpha_bar[timesteps], torch.ones(1)]).to(x)  # the last is clean
    for t, ab_t, ab_s in zip(timesteps.to(x.device), levels, levels[1:]):
        for k in range(repeats):
            y_t = ab_t.sqrt()*y + (1 - ab_t).sqrt()*torch.randn_like(y)
            x_in = x + mask*(y_t - x)                   # replacement: known part, noised
            x0 = (x_in - (1 - ab_t).sqrt()*net(x_in, t.repeat(len(x))))/ab_t.sqrt()
            x0 = x0.clamp(-1, 1)                        # for pixels, not for latents
            x0 = x0 + mask*(y - x0)                     # what is known stays

            beta = 1 - ab_t/ab_s                        # DDPM's step from t to s
            mean = ab_s.sqrt()*beta*x0 + (ab_t/ab_s).sqrt()*(1 - ab_s)*x
            variance = (1 - ab_s)/(1 - ab_t)*beta
            x = mean/(1 - ab_t) + variance.sqrt()*torch.randn_like(x)
            if k < repeats - 1:                         # RePaint: back with fresh noise
                x = (1 - beta).sqrt()*x + beta.sqrt()*torch.randn_like(x)
    return x


# %%NBQA-CELL-SEP7dc948
# Eq. 42.2, 42.3: the plain code against the library, draw for draw
schedule = linear()  # the same betas


def net(x_t, t):
    "The book's digit network without a label, at integer timesteps."
    return unconditional(x_t, Level(schedule.log_snr[t]).like(x_t)).eps


torch.manual_seed(0)
start = torch.randn(4, 1, 28, 28)
torch.manual_seed(1)
plain = inpaint(net, start, test[8:12], left_half, steps=5, repeats=2)
torch.manual_seed(1)
edited = library.replacement(d, test[8:12], library.pixels(left_half))
want = last(library.repaint(edited, respace(schedule, '5'), start, 2))
passed('plain inpainting in five steps = library', close(plain, want, 1e-3), by='digit network')


# %%NBQA-CELL-SEP7dc948
#| export
# linear, and P(P(x)) = P(x): what is known of x [b ...]
_Projection = Callable[[Tensor], Tensor]


def pixels(mask: Tensor) -> _Projection:  # 1 where known, else 0; broadcasts against x
    "Know some pixels. Eq. 42.2."
    if not ((mask == 0) | (mask == 1)).all():
        raise Problem('A mask is 1 where pixels are known and 0 elsewhere: threshold it '
                      'first.')

    def masked(x):
        return mask.to(x)*x

    return masked


def blocks(size: int) -> _Projection:  # size x size pixels
    "Know the mean of each block, a coarse image. Eq. 42.2 (ILVR)."
    def mean(x):  # [b c h w]
        if x.ndim != 4 or x.shape[2] % size or x.shape[3] % size:
            raise Problem(f'Pictures of {[*x.shape]} have no whole blocks of {size} '
                          'pixels: choose a size that divides height and width.')
        coarse = torch.nn.functional.avg_pool2d(x, size)
        return coarse.repeat_interleave(size, 2).repeat_interleave(size, 3)

    return mean


def project_x0(denoiser: Denoiser, known: Tensor,
         project: _Projection) -> Denoiser:  # known [b ...], only P(known) matters
    "The denoiser whose clean guess agrees with what is known. Eq. 42.2."
    return edit_x0(denoiser, lambda x0: x0 + project(known.to(x0) - x0))


# %%NBQA-CELL-SEP7dc948
# Eq. 42.2: projections are linear and do nothing twice; both by hand; a run ends on what is known
torch.manual_seed(0)
mask = (torch.arange(28) < 14).float().expand(28, 28)
known = test[:4]
x = torch.randn(4, 1, 28, 28)
linear_errors = []
for P in (pixels(mask), blocks(7)):
    linear_errors += [close(P(P(x)), P(x), 1e-6),
                      close(P(2*x + known), 2*P(x) + P(known), 1e-5)]
by_hand = [close(blocks(7)(x)[1, 0, 9, 20], x[1, 0, 7:14, 14:21].mean(), 1e-6),
           close(pixels(mask)(x), torch.cat([x[..., :14], 0*x[..., 14:]], 3), 0)]


def block_means(x):
    return x.reshape(4, 4, 7, 4, 7).mean((2, 4))


end = last(ddim(project_x0(model, known, blocks(7)), karras(5, .02), x))
passed('pixels and blocks are linear, and the same if applied twice', *linear_errors)
passed('pixels and blocks', *by_hand, by='by hand')
passed('(42.2) a run ends on the known block means',
       close(block_means(end), block_means(known), 1e-5), by='means by reshape')


# %%NBQA-CELL-SEP7dc948
#| export
def replacement(denoiser: Denoiser, known: Tensor, project: _Projection,
             noise=torch.randn_like) -> Denoiser:
    "`project_x0` at x_t with its known part noised anew. Eq. 42.2-42.3 (Song 2021)."
    def edited(x, t):
        # x_t' = x_t + P(signal y + sigma z - x_t)
        y = known.to(x)
        p = denoiser(x + project(q_sample(y, t, noise(x)) - x), t)

        # x0' = x0 + P(y - x0); the noise follows from x_t
        q = from_x0(p.x0 + project(y - p.x0), x, t)
        return p._replace(x0=q.x0, eps=q.eps)

    return edited


# %%NBQA-CELL-SEP7dc948
# The two pixels: variance 1, correlation rho; the left one is known to be a
rho = .9
a = 1.5
C = torch.tensor([[1., .9], [.9, 1.]], dtype=D)
left = pixels(torch.tensor([1., 0.], dtype=D))
known = torch.tensor([[a, 0.]], dtype=D)


def gain(t):
    "The matrix of the best linear prediction of both pixels."
    return t.signal*C @ torch.linalg.inv(t.alpha_bar*C + t.sigma**2*torch.eye(2, dtype=D))


def pair(x, t):
    "The exact denoiser of the two pixels."
    return from_x0(x @ gain(t).T, x, t)


def width(unknown):
    "The exact variance of each step (14.4); a known pixel has only the posterior's."
    def variance(p, x, s, t):
        of_x0 = (C - t.signal*gain(t) @ C).diagonal()
        stretch = s.signal*new_noise(s, t)
        return (fixed_small(p, x, s, t)**2 + stretch**2*unknown*of_x0).sqrt()

    return variance


levels = grid(Cosine(), 40)
b_only = width(torch.tensor([0., 1.], dtype=D))


# %%NBQA-CELL-SEP7dc948
# Eq. 42.3: where the denoiser is evaluated, by hand; its prediction keeps what is known and fits
# x; and DDIM with `project_x0` is replacement with one noise all the way
torch.manual_seed(0)


def fixed(z):
    "A source of noise that gives z at each call."
    return lambda x: z


x, z = torch.randn(2, 5, 2, dtype=D)
t = level(-.5)
seen = []


def recorded(x, t):
    seen.append(x)
    return pair(x, t)


p = replacement(recorded, known, left, fixed(z))(x, t)
by_hand = torch.stack([t.signal*a + t.sigma*z[:, 0], x[:, 1]], 1)
passed('(42.3) where the denoiser is evaluated, and its edited prediction',
       close(seen[0], by_hand), close(p.x0[:, 0], a),
       close(p.x0[:, 1], pair(by_hand, t).x0[:, 1]),
       close(t.signal*p.x0 + t.sigma*p.eps, x), by='by hand')

t = [*levels][0]
one = (x - t.signal*known)/t.sigma
with_keep = last(ddim(project_x0(pair, known, left), levels, x))
replaced_once = last(ddim(replacement(pair, known, left, fixed(one)), levels, x))
passed('(42.2) with DDIM = replacement with the same noise at all levels',
       close(with_keep, replaced_once), by='40 steps')


# %%NBQA-CELL-SEP7dc948
# Figure 42.2: the factors of (42.5)
v = torch.linspace(8, -8, 81, dtype=D)
t = Level(v)
truth = rho*t.sigma**2/(t.alpha_bar*(1 - rho**2) + t.sigma**2)
found = rho*t.alpha_bar*t.sigma**2/(1 - t.alpha_bar**2*rho**2)
fig, ax = figure(1, 1, 2.3)
ax.plot(v, truth, color='black', linestyle='--')
ax.plot(v, found, color=BLUE)
ax.text(-2, .8, 'should be: $a$ decides $b$', ha='left', va='top')
ax.text(-2.2, .16, 'replacement: $a$ is hidden by noise', color=BLUE, ha='left')
ax.text(7.8, .62, 'both small: $b$ itself\nis nearly visible', color='0.45')
ax.set(xlim=(8, -8), ylim=(0, 1), xlabel='log SNR (clean left, noise right)',
       ylabel='factor of $a$ in\nthe prediction of $b$')


# %%NBQA-CELL-SEP7dc948
# Eq. 42.4, 42.5: how the prediction of `replacement` changes with a, for two noises; and the truth
# by Bayes on a line, as sums
x = torch.tensor([[0., .4]], dtype=D)
lv = [level(u) for u in (-4., -1., 1., 4.)]
at_lv = [60, 45, 35, 20]  # their places among the levels of the plot


def one(a, t, z):
    "The prediction of b by replacement with the noise z."
    y = torch.tensor([[a, 0.]], dtype=D)
    return replacement(pair, y, left, fixed(torch.full_like(x, z)))(x, t).x0[0, 1]


def felt(t):
    return sum(one(1., t, z) - one(0., t, z) for z in (-1., .5))/2


# the joint density of both pixels on a line of values of b
b = torch.linspace(-9, 9, 20_001, dtype=D)


def log_pair(a):
    return -(a**2 - 2*rho*a*b + b**2)/2/(1 - rho**2)


def best(a, t):
    "E[b | b_t = .4, a]."
    return (log_pair(a) - (.4 - t.signal*b)**2/2/t.sigma**2).softmax(0) @ b


p = log_pair(a).softmax(0)
right = torch.stack([best(1., t) - best(0., t) for t in lv])
passed('(42.4) mean and variance of b given a', close(p @ b, rho*a, 1e-9),
       close(p @ b**2 - (p @ b)**2, 1 - rho**2, 1e-9), by='sums over a line')
passed('(42.5) left: the right factor', close(right, truth[at_lv], 1e-9), by='Bayes on a line')
passed('(42.5) right: the factor of replacement',
       close(torch.stack([felt(t) for t in lv]), found[at_lv], 1e-9), by='its code at 4 levels')


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def repaint(denoiser: Denoiser, levels: Grid, x: Tensor, repeats: int = 4,
              variance=fixed_small, noise=torch.randn_like) -> Iterator[Tensor]:
    "`ancestral`, with each step taken `repeats` times. Eq. 11.6 (RePaint Algorithm 1)."
    if repeats < 1:
        raise Problem(f'{repeats} repeats take no step: ask for at least 1.')

    for t, s in steps(levels):
        for k in range(repeats):
            # down from t to s and, but for the last time, up again with fresh noise
            y = reverse(denoiser, x, s, t, variance).sample(noise(x))
            if k < repeats - 1:
                x = q_step(y, s, t, noise(x))
        x = y
        yield x


# %%NBQA-CELL-SEP7dc948
# Eq. 11.6: taken once, each step is that of `ancestral`, draw for draw; taken three times, by
# hand, on three steps
torch.manual_seed(0)
few = grid(Cosine(), 3)
x = torch.randn(5, 2, dtype=D)
z = torch.randn(15, 5, 2, dtype=D)


def in_turn(rows):
    "A source of noise that gives one row at each call, and no more."
    rows = iter(rows)
    return lambda x: next(rows)


once = last(repaint(pair, few, x, 1, b_only, in_turn(z[:3])))
passed('repaint with one repeat = ancestral sampling',
       close(once, last(ancestral(pair, few, x, b_only, in_turn(z[:3])))), by='the same noise')

ours = last(repaint(pair, few, x, 3, b_only, in_turn(z)))
noise = in_turn(z)
for t, s in few.pairs():
    r = t.signal/s.signal
    for up in (True, True, False):
        y = reverse(pair, x, s, t, b_only).sample(noise(x))
        if up:
            x = r*y + (t.sigma**2 - r**2*s.sigma**2).sqrt()*noise(x)
    x = y
passed('three repeats, up by (11.6)', close(ours, x), by='by hand')


# %%NBQA-CELL-SEP7dc948
# Measured: exact mean and variance of b at the end of each method
def moments(run):
    "Exact mean and variance of b at the end of run(x, noise)."
    # without any noise, counting the draws
    calls = []

    def zero(x):
        calls.append(1)
        return torch.zeros_like(x)

    mean = last(run(torch.zeros(1, 2, dtype=D), zero))[0]

    # one row for each number that is drawn: that one 1, all others 0
    draws = len(calls) + 1
    units = torch.eye(2*draws, dtype=D).reshape(-1, draws, 2)
    start, *noises = units.unbind(1)
    out = last(run(start, in_turn(noises))) - mean
    return mean[1].item(), (out[:, 1]**2).sum().item()


def kept(z):
    return project_x0(pair, known, left)


def anew(z):
    return replacement(pair, known, left, z)


def with_ancestral(edit, levels=levels):
    return moments(lambda x, z: ancestral(edit(z), levels, x, b_only, z))


def by_2015(x, z):  # what `inpaint` of 26 does
    clean_half = near(known, torch.tensor([0., math.inf]))
    return multiplied(pair, levels, x, clean_half, b_only, z)


both = {'projected': kept, 'replaced': anew}
table = {'truth (42.4)': (rho*a, 1 - rho**2)}
for name, edit in both.items():
    table[f'{name}, DDIM'] = moments(lambda x, z: ddim(edit(z), levels, x))
for name, edit in both.items():
    table[f'{name}, ancestral'] = with_ancestral(edit)
table['replaced, 400 steps'] = with_ancestral(anew, grid(Cosine(), 400))
table['clean half, as in 2015'] = moments(by_2015)
for n in (2, 4, 8, 16):
    table[f'replaced, {n} x'] = moments(lambda x, z: repaint(anew(z), levels, x, n, b_only, z))
for name, (m, v) in table.items():
    print(f'{name:22} mean {m:.3f}  variance {v:.3f}')


# %%NBQA-CELL-SEP7dc948
# Figure 42.3: where each method ends
fig, ax = figure(1, 1, 2.7)
chain = ['replaced, ancestral', *[f'replaced, {n} x' for n in (2, 4, 8, 16)]]
ax.plot(*zip(*[table[name] for name in chain]), color=RED, marker='o', markersize=4)
for name, (m, v) in table.items():
    if name not in chain and 'truth' not in name:
        ax.plot(m, v, 'o', markersize=4, color=BLUE if 'projected' in name else '0.4')
ax.plot(*table['truth (42.4)'], '*', markersize=13, color='black')
words = {'truth (42.4)': ('truth', 0, 10), 'projected, DDIM': ('project_x0, DDIM', 8, -3),
         'replaced, DDIM': ('replacement, DDIM', 8, -3),
         'projected, ancestral': ('project_x0, ancestral', 8, -3),
         'replaced, ancestral': ('replacement, ancestral', -8, -3),
         'replaced, 400 steps': ('400 steps', -4, -13),
         'clean half, as in 2015': ('known half without noise (2015)', 8, -3),
         'replaced, 2 x': ('RePaint, each step 2 times', -8, -8), 'replaced, 4 x': ('4', -3, -13),
         'replaced, 8 x': ('8', -4, -13), 'replaced, 16 x': ('16', -4, -13)}
for name, (word, right, up) in words.items():
    colour = RED if name in chain else BLUE if 'projected' in name else '0.3'
    side = 'left' if right > 0 else 'center' if name == 'truth (42.4)' else 'right'
    ax.annotate(word, table[name], (right, up), textcoords='offset points', ha=side, color=colour)
ax.set(xlim=(.6, 1.42), ylim=(.16, .53), xlabel='mean of the unknown pixel $b$',
       ylabel='its variance')


# %%NBQA-CELL-SEP7dc948
# Eq. 42.2-42.4: the method itself where the answer is known, both pixels free; same means, less
# variance; ten times the steps, and twice the repeats
free = moments(lambda x, z: ancestral(pair, levels, x, width(1.), z))
passed('both pixels unknown: mean 0, variance 1', close(free[0], 0), close(free[1], 1, .05),
       by='40 ancestral steps')

m, v = table['truth (42.4)']
bias = {name: m - mean for name, (mean, _) in table.items()}
extra = {name: variance - v for name, (_, variance) in table.items()}

# equal means but for the start, where `project_x0` has pure noise; less variance
passed('project_x0 and replacement have equal means',
       close(bias['projected, DDIM'], bias['replaced, DDIM'], 1e-4),
       close(bias['projected, ancestral'], bias['replaced, ancestral'], 1e-4))
for sampler in ('DDIM', 'ancestral'):
    assert extra[f'replaced, {sampler}'] < extra[f'projected, {sampler}']
assert bias['projected, DDIM'] > bias['projected, ancestral'] > .3*m
assert bias['replaced, 400 steps'] > .9*bias['replaced, ancestral']
assert 0 < bias['clean half, as in 2015'] < bias['replaced, ancestral']

# twice the repeats: about half the bias
repeated = ['replaced, ancestral', *[f'replaced, {n} x' for n in (2, 4, 8, 16)]]
for fewer, more in zip(repeated, repeated[1:]):
    assert .4 < bias[more]/bias[fewer] < .6
    assert extra[more] < extra[fewer]
passed('16 repeats: mean and variance',
       close(torch.tensor(table['replaced, 16 x']), torch.tensor((m, v)), .05), by='the truth')


# %%NBQA-CELL-SEP7dc948
# Figure 42.4: half a digit, three ways
torch.manual_seed(0)
y = test[8:16]
known_half = pixels(mask)
x = torch.randn(8, 1, 28, 28)
d = clamp_x0(model.given(None))
run = karras(20, .02)
rows = [last(ddim(project_x0(d, y, known_half), run, x))]
for n in (1, 5):
    rows.append(last(repaint(replacement(d, y, known_half), run, x, n)))
sheet({'given': torch.where(mask > 0, y, 0.), 'project_x0': rows[0], 'replacement': rows[1],
       'RePaint, 5 times': rows[2], 'original': y}, 3.9, 8)


# %%NBQA-CELL-SEP7dc948
# Eq. 42.2, 42.3: the given half is there to the last digit; at the seam, the jump between the two
# middle columns, beside that of real digits
def seam(x):
    return (x[..., 14] - x[..., 13]).abs().mean().item()


given = [close(r[..., :14], y[..., :14], 1e-5) for r in rows]
jump = [round(seam(r), 3) for r in (*rows, y)]
assert jump[3] < jump[2] < min(jump[:2])
passed('the given half is there', *given)
passed('the jump at the seam falls from (42.2) and replacement to RePaint')


# %%NBQA-CELL-SEP7dc948
# Figure 42.5: from block means to digits, by (42.2) alone and by RePaint
torch.manual_seed(0)
y = test[:8]
x = torch.randn(8, 1, 28, 28)
d = clamp_x0(model.given(None))
run = karras(20, .02)
alone = last(ddim(project_x0(d, y, blocks(7)), run, x))
repeated = last(repaint(replacement(d, y, blocks(7)), run, x, 5))
sheet({'given': blocks(7)(y), 'project_x0': alone, 'RePaint, 5 times': repeated,
       'original': y}, 3.3, 8)


# %%NBQA-CELL-SEP7dc948
# Eq. 42.6: guided by it, the prediction of b at four levels is the exact one of 42.4; then a run
# that must have its moments
torch.manual_seed(0)


def log_match(x, t):
    guess = pair(x, t).x0[:, 0]
    v = t.sigma**2/t.signal*gain(t)[0, 0]
    return -(a - guess)**2/2/v


def exact_b(x, t):
    "E[b | b_t, a]."
    v = 1 - rho**2
    return rho*a + t.signal*v/(t.alpha_bar*v + t.sigma**2)*(x[:, 1] - t.signal*rho*a)


knows = guide(pair, log_match, classifier_scale=1.)
x = torch.randn(50, 2, dtype=D)
passed('(42.6) guided prediction of b = E[b | b_t, a]',
       max(close(knows(x, t).x0[:, 1], exact_b(x, t), 1e-9) for t in lv), by='four levels')

cond = Mixture(torch.ones(1, dtype=D), torch.tensor([[rho*a]], dtype=D),
               torch.tensor([(1 - rho**2)**.5], dtype=D))
z = torch.randn(40, 2, dtype=D)
ours = last(ddim(knows, levels, z))
want = last(ddim(cond, levels, z[:, 1:]))
passed('(42.6) a guided run ends at a, and at the conditional b',
       close(ours[:, 0], a, 1e-6), close(ours[:, 1:], want, 1e-8), by='conditional DDIM')


# %%NBQA-CELL-SEP7dc948
@torch.no_grad()
def from_sketch(net, y, strength=.6, steps=50):  # strength: the share of the schedule
    timesteps = torch.linspace(round(999*strength), 0, steps).round().long()
    levels = torch.cat([alpha_bar[timesteps], torch.ones(1)]).to(y)
    x = levels[0].sqrt()*y + (1 - levels[0]).sqrt()*torch.randn_like(y)
    for t, ab_t, ab_s in zip(timesteps.to(y.device), levels, levels[1:]):
        x0 = (x - (1 - ab_t).sqrt()*net(x, t.repeat(len(x))))/ab_t.sqrt()
        x0 = x0.clamp(-1, 1)
        eps = (x - ab_t.sqrt()*x0)/(1 - ab_t).sqrt()
        x = ab_s.sqrt()*x0 + (1 - ab_s).sqrt()*eps
    return x


# %%NBQA-CELL-SEP7dc948
# Eq. 42.7: the plain code against the library on the same noise; strengths in log SNR
t = torch.linspace(round(999*.6), 0, 10).round().long()
levels_down = Grid(torch.cat([schedule.log_snr[t], torch.tensor([math.inf])]))
torch.manual_seed(2)
plain = from_sketch(net, ruler, .6, 10)
torch.manual_seed(2)
first = Level(levels_down.log_snr[0])
want = last(library.sdedit(ddim, clamp_x0(unconditional), levels_down, ruler, first))
passed('plain SDEdit in ten steps = library', close(plain, want, 1e-3), by='digit network')
stated = {.2: .7, .3: -.4, .4: -1.4, .5: -2.5, .6: -3.6, .7: -5., .8: -6.5}
passed('strengths in log SNR', *(close(schedule.log_snr[round(999*s)].double(), v, .06)
                                 for s, v in stated.items()), by="DDPM's betas")


# %%NBQA-CELL-SEP7dc948
# Slider: a three and a seven of straight lines, four noises each, by seven starts
torch.manual_seed(0)
sketch = ruler.repeat_interleave(4, 0)
z = torch.randn(8, 1, 28, 28)
starts = (1.5, 0., -1., -2., -3., -4., -6.)
d = clamp_x0(model.given(torch.tensor([3, 7]).repeat_interleave(4)))
pages = []
for u in starts:
    start = Level(torch.tensor(u))
    pages.append(last(library.sdedit(ddim, d, karras(12, .02), sketch, start, lambda x: z)))

# the variances of the digits' principal directions number 1, 10 and 100
digits = to_unit(mnist('train').pixels[:2000]).flatten(1).double()
widths = torch.linalg.eigvalsh(digits.T.cov()).flip(0)[[0, 9, 99]]


def label_of(u):
    "The start, and sqrt(k) in three directions."
    left = ', '.join(f'{100*(w/(w + math.exp(-u)))**.5:.0f}' for w in widths)
    return f'from log SNR {u:g}: {left} % left in directions 1, 10, 100'.replace('-', '−')


show.Slider([sketch, *pages], ['the sketch', *map(label_of, starts)],
            'A three and a seven drawn with a ruler, with the labels 3 and 7 and four noises each. '
            'Where does it stop being your sketch and start being a digit?', 8)


# %%NBQA-CELL-SEP7dc948
#| export
def truncated(levels: Grid, start: Level) -> Grid:  # start: one level
    "The same run from `start` on: it, then all cleaner levels. Eq. 42.7 (SDEdit)."
    if start.log_snr.numel() != 1:
        raise Problem('A run starts at one level for all: give a single number.')
    at = start.log_snr.reshape(1).to(levels.log_snr)
    if not levels.log_snr[0] <= at < levels.log_snr[-1]:
        raise Problem(f'This run goes from log SNR {levels.log_snr[0]:.2f} to '
                      f'{levels.log_snr[-1]:.2f}: start between them.')
    return Grid(torch.cat([at, levels.log_snr[levels.log_snr > at]]))


@torch.no_grad()
def sdedit(sampler, denoiser: Denoiser, levels: Grid, sketch: Tensor, start: Level,
           noise=torch.randn_like) -> Iterator[Tensor]:
    "Noise a sketch [b ...] to a level, and sample from there. Eq. 42.7 (Meng 2022)."
    run = truncated(levels, start)
    # a plain number takes the dtype and the device of the sketch
    start = Level(start.log_snr.reshape(()))
    yield from sampler(denoiser, run, q_sample(sketch, start, noise(sketch)))


# %%NBQA-CELL-SEP7dc948
# Eq. 42.7: exact moments of ancestral runs from three levels, in a world N(.5, .8^2), for a sketch
# at -1
m = .5
v = .64
y = torch.full((1, 1), -1., dtype=D)
bell = Mixture(torch.ones(1, dtype=D), torch.tensor([[m]], dtype=D), torch.tensor([.8], dtype=D))


def ends(t):
    "Mean and variance at the end, from a run without noise and one with each noise set to 1."
    calls = []

    def zero(x):
        calls.append(1)
        return 0*x

    def run(y, z):
        def sampler(denoiser, levels, x):
            return ancestral(denoiser, levels, x, exact(bell), z)

        return last(sdedit(sampler, bell, levels, y, t, z))

    mean = run(y, zero)
    units = torch.eye(len(calls), dtype=D)[..., None]
    shares = run(y.expand(len(calls), 1), in_turn(units)) - mean
    return mean[0, 0], (shares**2).sum()


def law(t):
    k = t.alpha_bar*v/(t.alpha_bar*v + t.sigma**2)
    return m + k*(-1. - m), v*(1 - k**2)


# a level of shape [1]; the grid below a level
at_zero = Level(torch.zeros(1, dtype=D))
end = last(sdedit(ddim, bell.to(torch.float32), levels, y.float(), at_zero, torch.zeros_like))
assert end.dtype == torch.float32
assert len(truncated(levels, level(0.))) == (levels.log_snr > 0).sum()
assert truncated(levels, level(0.)).log_snr[0] == 0

errors = []
for u in (-3., 0., 3.):
    mean, variance = ends(level(u))
    want_mean, want_variance = law(level(u))
    errors += [close(mean, want_mean), close(variance, want_variance)]
passed('(42.7) mean and variance of ancestral runs from three levels', *errors,
       by='exact moments')


# %%NBQA-CELL-SEP7dc948
# Eq. 42.7: DDIM's sqrt(k) and v (1 - k), by a fine run (its map is linear: three points determine
# it); and where half of a sketch is left in the digits' directions number 1, 10 and 100
fine = Grid(torch.linspace(-14, 16, 301, dtype=D))
sketches, noises = torch.tensor([[0., 1, 0], [0, 0, 1]], dtype=D)[..., None]
errors = []
for t in (level(-3.), level(0.), level(3.)):
    k = t.alpha_bar*v/(t.alpha_bar*v + t.sigma**2)
    o, by_y, by_z = last(sdedit(heun, bell, fine, sketches, t, fixed(noises)))[:, 0]
    errors += [close(by_y - o, k.sqrt(), 1e-3), close((by_z - o)**2, v*(1 - k), 1e-3)]
passed('DDIM keeps √k of the sketch, with variance v (1 − k)', *errors, by='300 Heun steps')

# half is left at SNR = 1/(3 v)
half_left = [round(-math.log(3*w), 1) for w in widths.tolist()]
passed(f'half of a sketch is left at log SNR {half_left} in directions 1, 10, 100')


# %%NBQA-CELL-SEP7dc948
# Eq. 42.7: the farther up, the farther from the sketch (rms, where white - black is 2), and from
# one noise to the next
far = [(x - sketch).square().mean().sqrt().item() for x in pages]
apart = [x.reshape(2, 4, -1).var(1).mean().sqrt().item() for x in pages]
assert far == sorted(far)
assert apart == sorted(apart)
assert far[1] < far[4]/2
print('log SNR of the start       ', *[f'{u:5g}' for u in starts])
print('distance from the sketch   ', *[f'{u:5.2f}' for u in far])
print('spread over noises         ', *[f'{u:5.2f}' for u in apart])
passed('both grow with the noise')


# %%NBQA-CELL-SEP7dc948
#| export
def slerp(a: Tensor, b: Tensor,
          w: float | Tensor) -> Tensor:  # a, b [b ...]; w a number, or [b 1 ... 1]
    "From a (w = 0) to b (w = 1) along the great circle, example by example. Eq. 42.8."
    if a.shape != b.shape:
        raise Problem(f'Both ends must have one shape, not {[*a.shape]} and '
                      f'{[*b.shape]}.')
    wide = widest(a.device)
    w = torch.as_tensor(w, dtype=wide, device=a.device)

    # the angle; atan2 keeps its digits, and its gradient, where acos has none
    u, v = (torch.nn.functional.normalize(x.flatten(1).to(wide)) for x in (a, b))
    theta = 2*torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    theta = append_dims(theta, a)
    if (theta > torch.pi - 1e-6).any():
        raise Problem('These two point in opposite directions, and no great circle is '
                      'the shortest: change one of them a little.')

    def part(w):  # sin(w theta)/sin(theta), and w at theta = 0
        return w*torch.sinc(w*theta/torch.pi)/torch.sinc(theta/torch.pi)

    return (part(1 - w)*a.to(wide) + part(w)*b.to(wide)).to(a)


# %%NBQA-CELL-SEP7dc948
# Eq. 42.8: ends; on the sphere; a third of the angle from a and two thirds from b; the same
# direction gives the line; shares of variance
torch.manual_seed(0)


def unit(x):
    return x/x.flatten(1).norm(dim=1)[:, None, None]


def angle(p, q):
    return (p*q).sum((1, 2)).clamp(-1, 1).acos()


a_, b_ = torch.randn(2, 5, 3, 4, dtype=D)
u, v = unit(a_), unit(b_)
s = slerp(u, v, 1/3)
passed('(42.8) ends, length, and a third of the angle',
       close(slerp(a_, b_, 0.), a_), close(slerp(a_, b_, 1.), b_), close(s.norm(dim=(1, 2)), 1),
       close(angle(u, s), angle(u, v)/3, 1e-8), close(angle(s, v), 2*angle(u, v)/3, 1e-8),
       by='lengths and angles')

# the same direction; one w for each; float32
half_way = slerp(a_, b_, .5)
each = torch.linspace(0, 1, 5, dtype=D)[:, None, None]
rough = slerp(a_.float(), b_.float(), .3)
passed('(42.8) the same direction, one w for each example, float32',
       close(slerp(a_, 2*a_, .25), 1.25*a_), close(slerp(a_, b_, each)[2], half_way[2]),
       close(rough, slerp(a_, b_, .3).float(), 1e-6))

# in many dimensions
big, other = torch.randn(2, 1, 200_000)
around = slerp(big, other, .5).var()
straight = (.5*big + .5*other).var()
passed(f'variance half-way: {around:.2f} around, {straight:.2f} straight through',
       close(around, 1., 5*(2/200_000)**.5), close(straight, .5, 2.5*(2/200_000)**.5),
       by='200,000 numbers, 5 sigma')


# %%NBQA-CELL-SEP7dc948
# Eq. 42.8: inversion up to noise, slerp, and down, against slerp of the data themselves (the
# factor of the flow cancels)
torch.manual_seed(0)
centred = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 6, dtype=D), torch.tensor([.5], dtype=D))
p, q = .5*torch.randn(2, 9, 6, dtype=D)
ladder = Grid(torch.linspace(-8, 8, 401, dtype=D))


def rise(x):
    return last(ddim(centred, ladder.flip(), x))


def fall(x):
    return last(ddim(centred, ladder, x))


mixed = fall(slerp(rise(p), rise(q), .3))
factor = fall(rise(p)).norm()/p.norm()
passed('inversion, slerp and sampling', close(mixed/factor, slerp(p, q, .3)),
       by='slerp of the data')


# %%NBQA-CELL-SEP7dc948
# Figure 42.6: between two pairs of unseen digits, around and straight through
torch.manual_seed(0)
d = model.given(None)
run = karras(20, .05)
first = [*run.flip()][0]
ends_ = (test[[10, 1]], test[[18, 17]])
w = (0, .25, .5, .75, 1)


def up(x, z=1.):
    "The noise that leads to x, from the first level on."
    return last(heun(d, run.flip(), q_sample(x, first, z*torch.randn_like(x))))


def straight(a, b, w):
    return (1 - w)*a + w*b


ups = [up(e) for e in ends_]
ways = (slerp, straight)
down = []
for way in ways:
    between = [last(heun(d, run, way(ups[0], ups[1], u))) for u in w]
    down.append(torch.stack([ends_[0], *between, ends_[1]], 1))
names = ('around', 'around', 'straight', 'straight')
fig, axes = figure(4, 1, 3.6, dpi=144)
fig.get_layout_engine().set(w_pad=.03, h_pad=.02)
for ax, name, x in zip(axes, names, torch.cat(down)):
    bare(ax).imshow(show.tile(x, 7))
    ax.set_ylabel(name, rotation=0, ha='right', va='center')
titles = ('original', 'w = 0', '0.25', '0.5', '0.75', '1', 'original')
axes[0].set_xticks([29*i + 14 for i in range(7)], titles)
axes[0].xaxis.tick_top()
axes[0].tick_params(length=0)


# %%NBQA-CELL-SEP7dc948
# Eq. 42.8: the ends come back (rms, where white - black is 2); the variance at the top, with the
# first noise and without; half-way around and straight
torch.manual_seed(0)
back = down[0][:, [1, 5]] - down[0][:, [0, 6]]
off = back.square().mean().sqrt()
assert off < .1
tops = [torch.stack(ups).var().item(), up(ends_[0], 0.).var().item()]
mid = [way(ups[0], ups[1], .5).var().item() for way in ways]
assert .8 < tops[0] < 1.2
assert tops[1] < .4
assert mid[0] > 1.5*mid[1]
passed(f'the ends come back: {off:.3f} off (black to white is 2)')
passed('variance of the noise at the top: {:.2f}; without the first noise: {:.2f}'.format(*tops))
passed('variance half-way: {:.2f} around, {:.2f} straight through'.format(*mid))


# %%NBQA-CELL-SEP7dc948
# Figure 42.7: what two edits make of the values of one predicted image
torch.manual_seed(0)
t = Level(-1.)
x_t = q_sample(test[:1], t, torch.randn(1, 1, 28, 28))
with torch.no_grad():
    strong = cfg_batched(model, 7, w=8.)
    raw = strong(x_t, t).x0.flatten()
    scaled = library.threshold_x0(strong, .95)(x_t, t).x0.flatten()

fig, ax = figure(1, 1, 2.4)
values = torch.linspace(raw.min(), raw.max(), 400)
r = raw.abs().quantile(.95).clamp(min=1)
ax.plot(values, values.clamp(-1, 1), color='0.55')
ax.plot(values, values.clamp(-r, r)/r, color=RED)
assert (scaled - raw.clamp(-r, r)/r).abs().max() < 1e-5
ax.plot(raw, torch.full_like(raw, -1.32), '|', color='black', alpha=.25, markersize=6)
ax.text(1.05, 1.06, 'clamped to ±1: all of this becomes white', color='0.4', va='bottom')
ax.text(1.5, .6, 'dynamic thresholding:\nshades keep their order', color=RED, va='top')
ax.text(raw.max(), -1.2, 'the 784 pixels', ha='right', va='bottom')
ax.set(xlabel='predicted value', ylabel='value after the edit', ylim=(-1.45, 1.4),
       yticks=[-1, 0, 1])


# %%NBQA-CELL-SEP7dc948
#| export
def threshold_x0(denoiser: Denoiser,
                 p: float = .995) -> Denoiser:  # the share of pixels that is not clamped
    "The denoiser whose clean guess is scaled into +-1. Eq. 42.1 (Imagen sec. 2.3)."
    if not 0 < p <= 1:
        raise Problem(f'p is {p}: give the share of pixels to keep, above 0 and at '
                      'most 1.')

    def edit(x0):
        # r = max(1, the quantile of |x0| over each image), [b 1 ... 1]
        size = x0.flatten(1).abs().to(torch.promote_types(x0.dtype, torch.float32))
        r = append_dims(size.quantile(p, dim=1).clamp(min=1).to(x0), x0)
        return x0.clamp(-r, r)/r

    return edit_x0(denoiser, edit)


# %%NBQA-CELL-SEP7dc948
# Eq. 42.1: one image by sorting, r between the order statistics; an image in range is left alone;
# p = 1 clamps nothing, and scales
torch.manual_seed(0)


def predicts(x0):
    "A denoiser whose clean prediction is always x0."
    return lambda x, t: from_x0(x0, x, t)


x = torch.randn(3, 1, 5, 5, dtype=D)
t = level(0.)
x0 = torch.cat([3*torch.randn(1, 1, 5, 5, dtype=D),
                torch.rand(1, 1, 5, 5, dtype=D),
                torch.linspace(-2, 4, 25, dtype=D).reshape(1, 1, 5, 5)])
q = threshold_x0(predicts(x0), .9)(x, t)
scaled = threshold_x0(predicts(x0), 1.)(x, t)

# the quantile .9 of 25 values lies at .9*24 = 21.6
at = x0[0].abs().flatten().sort().values
r = at[21] + .6*(at[22] - at[21])
passed('(42.1) one image', close(q.x0[0], x0[0].clamp(-r, r)/r), by='sorting by hand')
passed('(42.1) in range: unchanged; p = 1: only scaled; x_t stays the sum of both parts',
       close(q.x0[1], x0[1], 0), close(scaled.x0[2], x0[2]/4),
       close(t.signal*q.x0 + t.sigma*q.eps, x))


# %%NBQA-CELL-SEP7dc948
# Eq. 42.2: known pixels at 1.5, beyond the range, in both orders
torch.manual_seed(0)
far_out = torch.full((1, 1, 28, 28), 1.5)
x = torch.randn(1, 1, 28, 28)
t = Level(torch.tensor(0.))
P = pixels(mask)
inside = project_x0(clamp_x0(model), far_out, P)(x, t).x0
outside = clamp_x0(project_x0(model, far_out, P))(x, t).x0
passed('clamp inside: 1.5 is kept; outside: it becomes 1; elsewhere the same',
       close(inside[..., :14], 1.5, 1e-6),
       close(outside[..., :14], 1., 1e-6),
       close(inside[..., 14:], outside[..., 14:], 1e-6))


# %%NBQA-CELL-SEP7dc948
x = torch.randn(2, 1, 28, 28)
t = Level(torch.tensor(0.))
with expect_fail('above 0 and at most 1', Problem):
    threshold_x0(model, 99.5)
with expect_fail('1 where pixels are known', Problem):
    pixels(torch.full((28, 28), .5))
with expect_fail('no whole blocks of 5', Problem):
    project_x0(model, x, blocks(5))(x, t)
with expect_fail('at least 1', Problem):
    last(repaint(pair, levels, torch.randn(3, 2, dtype=D), 0))
with expect_fail('Random steps lead from noise', Problem):
    last(repaint(pair, levels.flip(), torch.randn(3, 2, dtype=D)))
with expect_fail('start between them', Problem):
    truncated(levels, Level(torch.tensor(-30.)))
with expect_fail('-20.00 to inf: start between them', Problem):
    truncated(levels, CLEAN)
with expect_fail('a single number', Problem):
    truncated(levels, Level(torch.zeros(2)))
with expect_fail('opposite directions', Problem):
    slerp(x, -x, .5)
with expect_fail('one shape', Problem):
    slerp(x, x[:1], .5)


# %%NBQA-CELL-SEP7dc948
# Question 2: at the value where b_t settles its predicted noise is 0; and there a step down and
# up again leaves the mean where it was
still = replacement(pair, known, left, torch.zeros_like)
errors = []
for t, s in ((level(-2.), level(-1.)), (level(1.), level(3.))):
    q = t.alpha_bar*rho
    r = t.signal/s.signal
    at = torch.stack([t.signal*a, q*t.signal*a])[None]
    back = r*reverse(still, at, s, t).mean
    errors += [close(pair(at, t).eps[:, 1], 0.), close(back[:, 1], at[:, 1])]
passed('question 2: where repeats settle', *errors, by='a step down and up')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
my_guess = ...  # (projected, replaced)
C = torch.eye(2, dtype=D)
rho = 0.


def projected_run(x, z):
    return ddim(project_x0(pair, known, left), levels, x)


def replaced_run(x, z):
    return repaint(replacement(pair, known, left, z), levels, x, 1, b_only, z)


means = torch.tensor([moments(projected_run)[0], moments(replaced_run)[0]])
close(means, torch.tensor(my_guess))


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: a run for the sketch -1 must end half-way to the mean 1/2
my_log_snr = ...
close(ends(level(my_log_snr))[0], -.25)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def known_part(x):
    ...  # [b c h w] -> [b c h w]; that of an image which is its own mirror image is 0


x = torch.randn(8, 1, 28, 28)
close(known_part(known_part(x)), known_part(x), 1e-6)
close(known_part(x + x.flip(3)), 0., 1e-6)
symmetric = replacement(clamp_x0(model.given(None)), 0*x, known_part)
r = last(repaint(symmetric, karras(10, .02), x, 3))
show.sheet(r)
close(r, r.flip(3), 1e-5)


# %%NBQA-CELL-SEP7dc948
# solution 1: both end with 0 = rho a, the truth. Where a says nothing of b, it does not matter
# when it comes in
my_guess = (0., 0.)
C = torch.eye(2, dtype=D)
rho = 0.


def projected_run(x, z):
    return ddim(project_x0(pair, known, left), levels, x)


def replaced_run(x, z):
    return repaint(replacement(pair, known, left, z), levels, x, 1, b_only, z)


means = torch.tensor([moments(projected_run)[0], moments(replaced_run)[0]])
close(means, torch.tensor(my_guess))


# %%NBQA-CELL-SEP7dc948
# solution 2: k = 1/2 where signal^2 v = sigma^2 (42.7), at SNR = 1/v
my_log_snr = -math.log(.8**2)
close(ends(level(my_log_snr))[0], -.25)


# %%NBQA-CELL-SEP7dc948
# solution 3: an image is an even part, (x + flip x)/2, and an odd one, (x - flip x)/2. A mirror
# image of itself has no odd part; taking the odd part twice changes nothing
def known_part(x):
    return (x - x.flip(3))/2


x = torch.randn(8, 1, 28, 28)
close(known_part(known_part(x)), known_part(x), 1e-6)
close(known_part(x + x.flip(3)), 0., 1e-6)
symmetric = replacement(clamp_x0(model.given(None)), 0*x, known_part)
r = last(repaint(symmetric, karras(10, .02), x, 3))
show.sheet(r)
close(r, r.flip(3), 1e-5)
