# %%NBQA-CELL-SEP7dc948
#| default_exp guide.cfg


# %%NBQA-CELL-SEP7dc948
# Figure 41.1: a text-to-image model, three prompts, four weights
import matplotlib.pyplot as plt
from ddpm_lit import show
from ddpm_lit.core.check import setup
from ddpm_lit.systems.latent import LatentRequest, paint_latent  # a preview of 67

setup()


def figure(rows, columns, height, **kw):
    "Axes in rows, seven inches wide."
    dpi = kw.pop('dpi', 160)
    return plt.subplots(rows, columns, figsize=(7, height), layout='constrained', dpi=dpi, **kw)


def bare(ax):
    "No ticks and no frame."
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def row_label(ax, text):
    "A label to the left of a row of pictures."
    ax.set_ylabel(text, rotation=0, ha='right', va='center')


prompts = ('penguin', 'tulip', 'mushroom')
captions = tuple(p for p in prompts for _ in range(4))
fig, axes = figure(4, 3, 2.35)
fig.get_layout_engine().set(w_pad=.03, h_pad=.01, wspace=.01, hspace=.01)
for row, w in zip(axes, (-1., 0., 1., 4.)):
    images = paint_latent(LatentRequest(captions, w=w, seed=1))[64]
    for ax, part in zip(row, images.split(4)):
        bare(ax).imshow(show.tile(part, 4))
        ax.spines[:].set(visible=True, color='.8', linewidth=.6)
        ax.vlines([64.5 + 65*k for k in range(3)], -.5, 63.5, color='.8', linewidth=.6)
    row_label(row[0], f'w = {w:g}'.replace('-', '−'))
for ax, prompt in zip(axes[0], prompts):
    ax.set_title(f'“{prompt}”')


# %%NBQA-CELL-SEP7dc948
import torch

NULL = 10  # the null label, after the labels 0 to 9
alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, .02, 1000), 0)  # DDPM's schedule


def training_loss(net, x0, y):
    dropped = torch.rand(len(y), device=y.device) < .1
    y = y.masked_fill(dropped, NULL)                     # drop one label in ten
    t = torch.randint(1000, (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    ab = alpha_bar.to(x0)[t].view(-1, 1, 1, 1)
    return (net(ab.sqrt()*x0 + (1 - ab).sqrt()*eps, t, y) - eps).square().mean()


@torch.no_grad()
def sample(net, x, y, w, steps=50):                      # DDIM with guidance
    timesteps = torch.linspace(999, 0, steps).round().long()
    levels = torch.cat([alpha_bar[timesteps], torch.ones(1)]).to(x)  # the last is clean
    for t, ab_t, ab_s in zip(timesteps.to(x.device), levels, levels[1:]):
        t = t.repeat(len(x))
        eps_c = net(x, t, y)                             # conditional
        eps_u = net(x, t, torch.full_like(y, NULL))      # unconditional
        eps = eps_c + w*(eps_c - eps_u)                  # guidance
        x0 = (x - (1 - ab_t).sqrt()*eps)/ab_t.sqrt()
        x0 = x0.clamp(-1, 1)                             # for pixels, not for latents
        eps = (x - ab_t.sqrt()*x0)/(1 - ab_t).sqrt()
        x = ab_s.sqrt()*x0 + (1 - ab_s).sqrt()*eps
    return x


# %%NBQA-CELL-SEP7dc948
#| export
from typing import Callable
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import (
    Condition, Denoiser, Model, Prediction, each_part, for_each, from_x0)
from ddpm_lit.core.level import Level, append_dims


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports and the shipped networks
import json
import math
import subprocess
import sys
import time
from ddpm_lit.core.check import budget, close, expect_fail, passed
from ddpm_lit.core.check import keep_measurement, measurement
from ddpm_lit.core.level import CLEAN
from ddpm_lit.data.images import Batches, mnist, to_unit
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.loss import l_simple
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import Counted, ancestral, clamp_x0, ddim, last, respace
from ddpm_lit.diffusion.schedule import Cosine, Grid, grid, karras, linear
from ddpm_lit.diffusion.solve import dpmpp_2m, heun
from ddpm_lit.guide import cfg as library  # the first pages use what the later ones build
from ddpm_lit.guide.classifier import gradient, guide, label_log_prob
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.systems import ddpm  # its recipe
from ddpm_lit.train.weights import load_weights
from ddpm_lit.train.measure import load_classifier, weigh_digits

D = torch.float64
RED = show.INK['guidance']
BLUE = show.INK['model']

model, _ = load_weights('mnist')             # the digit network of notebook 25
noisy, _ = load_weights('noisy-classifier')  # the classifier of noisy digits of notebook 40
reader = load_classifier()                   # an independent classifier of clean digits (27)
world = ring(std=.5, dtype=D)                # eight Gaussian classes, all scores exact (13)


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


# %%NBQA-CELL-SEP7dc948
# Eq. 41.3: the plain code against the library: the loss with dropped labels, and a guided run
schedule = linear()  # the same betas
conditions = []


def net(x_t, t, y):
    "The book's digit network at integer timesteps; for it the null label is -1."
    conditions.append(y)
    return model(x_t, Level(schedule.log_snr[t]).like(x_t), y.masked_fill(y == NULL, -1)).eps


batch = mnist('test')[:32]
images = to_unit(batch.pixels)
with torch.no_grad():
    torch.manual_seed(0)
    loss = training_loss(net, images, batch.label)
    kept = conditions.pop()
    dropped = kept == NULL
    assert (kept == batch.label)[~dropped].all() and 0 < dropped.sum() < 12

    # the same draws again, for the library's loss
    torch.manual_seed(0)
    torch.rand(32)
    t = torch.randint(1000, (32,))
    eps = torch.randn_like(images)
    label = kept.masked_fill(dropped, -1)
    want = l_simple(model.given(label), images, Level(schedule.log_snr[t]).like(images), eps)
    loss_error = close(loss, want.mean(), 1e-4)

    start = torch.randn(4, 1, 28, 28)
    label = torch.tensor([0, 3, 5, 8])
    run = sample(net, start, label, w=2., steps=5)
    denoiser = clamp_x0(library.cfg_batched(model, label, w=2.))
    want = last(ddim(denoiser, respace(schedule, '5'), start))
passed('plain loss and five guided steps = library', loss_error, close(run, want, 1e-3),
       by='digit network')


# %%NBQA-CELL-SEP7dc948
# Figure 41.2: one noisy digit, three labels, two networks
torch.manual_seed(0)
t = Level(-2.)
images = to_unit(mnist('test').pixels[:200])
noised = q_sample(images, t, torch.randn_like(images))[173:174]
labels = torch.tensor([3, 2, 0])
x = noised.expand(3, -1, -1, -1)
with torch.no_grad():
    cond = model.given(labels)(x, t).x0
    uncond = model.given(None)(x, t).x0
difference = cond - uncond
slope = gradient(noisy.given(labels), x, t)
cosine = torch.cosine_similarity(difference.flatten(1), slope.flatten(1))

fig, axes = figure(3, 5, 3.7)
fig.get_layout_engine().set(w_pad=.03, h_pad=.02)
titles = ('noisy image $x_t$', 'conditional $\\hat x_0$', 'unconditional $\\hat x_0$',
          'difference', 'classifier’s gradient')
for i, row in enumerate(axes):
    for ax, image in zip(row, (x[i, 0]/2, cond[i, 0], uncond[i, 0])):
        bare(ax).imshow(image, cmap='gray', vmin=-1, vmax=1)
    for ax, image in zip(row[3:], (difference[i, 0], slope[i, 0])):
        most = image.abs().quantile(.995)
        bare(ax).imshow(image, cmap='RdBu_r', vmin=-most, vmax=most)
    row_label(row[0], f'y = {labels[i]}')
    row[4].set_xlabel(f'cosine {cosine[i]:.2f}')
for ax, title in zip(axes[0], titles):
    ax.set_title(title)


# %%NBQA-CELL-SEP7dc948
# Figure 41.3: exact scores on the ring, and their difference
t = level(0.)
limit = 3.2
side = torch.linspace(-.9*limit, .9*limit, 10, dtype=D)
points = torch.cartesian_prod(side, side)
conditional = -world.given(0)(points, t).eps
unconditional = -world(points, t).eps
means = t.signal*world.mean

fig, axes = figure(1, 3, 2.5)
fig.get_layout_engine().set(wspace=.13)
arrows = (conditional, unconditional, conditional - unconditional)
titles = ('conditional score', 'unconditional score', 'difference, on a map of $p(y\\,|\\,x_t)$')
for ax, vectors, colour, title in zip(axes, arrows, ('black', BLUE, RED), titles):
    show.plane(ax, limit).set_title(title)
    ax.quiver(*points.T, *.26*vectors.T, color=colour, angles='xy', scale_units='xy', scale=1,
              width=.007, headwidth=4, headlength=4)
    ax.scatter(*means.T, s=16, color='0.5', linewidths=0)
    ax.scatter(*means[:1].T, s=110, facecolors='none', edgecolors=RED, linewidths=1.5)
axes[0].text(1.42, .45, '$y$', color=RED, fontsize=11)
for ax, sign in zip(axes, '−='):
    ax.text(1.075, .5, sign, transform=ax.transAxes, fontsize=18, ha='center', va='center')

# the shade: the exact classifier
fine = torch.linspace(-limit, limit, 120, dtype=D)
plane = torch.stack(torch.meshgrid(fine, fine, indexing='xy'), 2).reshape(-1, 2)
shade = world.classify(plane, t)[:, 0].exp().reshape(120, 120)
axes[2].imshow(shade, extent=(-limit, limit)*2, origin='lower', cmap='Oranges', vmax=1.2)


# %%NBQA-CELL-SEP7dc948
# Eq. 41.1, 41.2: exact densities, eight labels, nine noise levels
torch.manual_seed(0)
x = 2*torch.randn(360, 2, dtype=D)
t = Level(torch.linspace(-9, 9, 9, dtype=D).repeat_interleave(40)[:, None])
conditional = [world.given(k)(x, t) for k in range(8)]
unconditional = world(x, t)

# the unconditional prediction is the mean of the conditional ones, weighted by p(k | x_t)
p = world.classify(x, t).exp()
mean = sum(p[:, k, None]*conditional[k].eps for k in range(8))

# the difference of two predictions is -sigma times the gradient of log p(k | x_t)
errors = []
for k in range(8):
    want = -t.sigma*gradient(label_log_prob(world.classify, k), x, t)
    errors.append(close(conditional[k].eps - unconditional.eps, want, 1e-10))
passed('(41.1) difference of predictions = −σ · gradient of log p(y | x)', *errors, by='autograd')
passed('(41.2) unconditional = mean of conditional, weighted by p(k | x)',
       close(unconditional.eps, mean))


# %%NBQA-CELL-SEP7dc948
# Eq. 41.1, 41.2: the trained network on twelve noised test digits, at four levels
torch.manual_seed(0)
batches = Batches(mnist('test'), 1000, drop=.1)
dropped = torch.cat([batches(i)[1] for i in range(4)]) == -1
close(dropped.double().mean(), .1, 5*(.09/4000)**.5)  # one label in ten, to five standard errors
digits = to_unit(mnist('test').pixels[:12])


def rms(v):
    return v.square().mean().sqrt().item()


def mean_cosine(u, v):
    return torch.cosine_similarity(u, v, dim=2).mean().item()


print('         (41.1) mean cosine with the gradient   (41.2) root mean square per pixel')
print('log SNR       same label   another label          off by   spread of ten labels')
for log_snr in (-5., -3., -2., 0.):
    t = Level(log_snr)
    x = q_sample(digits, t, torch.randn_like(digits))
    with torch.no_grad():
        ten = torch.stack([model.given(k)(x, t).x0 for k in range(10)], 1)
        none = model.given(None)(x, t).x0
        p = noisy(x, t).exp()[..., None, None, None]
    slopes = torch.stack([gradient(noisy.given(k), x, t) for k in range(10)], 1).flatten(2)

    # (41.1): differences of predicted images beside the gradients of the noisy classifier
    difference = (ten - none[:, None]).flatten(2)
    cosine = mean_cosine(difference, slopes)
    mismatched = mean_cosine(difference, slopes.roll(1, 1))

    # (41.2): the unconditional prediction beside the mean, weighted and not
    off = rms(none - (p*ten).sum(1))
    plain = rms(none - ten.mean(1))
    spread = rms(ten - ten.mean(1, keepdim=True))
    if log_snr < 0:
        assert cosine > .4
        assert off < plain and off < .65*spread
    assert abs(mismatched) < .5*cosine
    print(f'{log_snr:7g}{cosine:17.2f}{mismatched:16.2f}{off:16.2f}{spread:18.2f}')
passed('asserted for log SNR below 0: cosine above 0.4, off by less than 65 % of the spread')


# %%NBQA-CELL-SEP7dc948
# Figure 41.4: from the unconditional prediction through the conditional one and beyond
stops = (-1., -.5, 0., 1., 3., 7.)
names = {-1.: 'unconditional', -.5: 'between', 0.: 'conditional', 3.: 'guided'}
fig, axes = figure(1, 6, 1.7)
fig.get_layout_engine().set(w_pad=.04)
for ax, w in zip(axes, stops):
    bare(ax).imshow(cond[0, 0] + w*(cond[0, 0] - uncond[0, 0]), cmap='gray', vmin=-1, vmax=1)
    ax.set_title(names.get(w, ''))
    ax.set_xlabel(f'w = {w:g}\nscale = {1 + w:g}'.replace('-', '−'))


# %%NBQA-CELL-SEP7dc948
#| export
def as_w(w: float | None, guidance_scale: float | None) -> float:
    "The weight w, given in either convention: guidance_scale = 1 + w. Eq. 41.3."
    if w is not None and guidance_scale is None:
        return w
    if guidance_scale is not None and w is None:
        return guidance_scale - 1
    raise Problem('Give either `w` (0: the conditional network as it is) or '
                  '`guidance_scale` = 1 + w (1: the same), and not both.')


def extrapolate(c: Prediction, u: Prediction, w: float) -> Prediction:
    "From u through c and beyond, w times as far. Eq. 41.3 (Ho & Salimans eq. 6)."
    x0 = c.x0 + w*(c.x0 - u.x0)
    eps = c.eps + w*(c.eps - u.eps)
    return c._replace(x0=x0, eps=eps)  # a learned variance is that of c


def cfg(cond: Denoiser, uncond: Denoiser, w: float | None = None,
        guidance_scale: float | None = None) -> Denoiser:
    "Classifier-free guidance of two denoisers, w in either convention. Eq. 41.3."
    w = as_w(w, guidance_scale)

    def guided(x, t):
        return extrapolate(cond(x, t), uncond(x, t), w)

    return guided


# %%NBQA-CELL-SEP7dc948
# Eq. 41.3, 41.4: both conventions and two guided denoisers; w = 0, -1 give the conditional and the
# unconditional prediction; a learned variance is that of the conditional prediction
torch.manual_seed(0)
x = 2*torch.randn(360, 2, dtype=D)
t = Level(torch.linspace(-9, 9, 9, dtype=D).repeat_interleave(40)[:, None])


def at(denoiser):
    return denoiser(x, t)


formula = []
same = []
for k, w in ((0, 1.5), (5, .3), (2, -1.), (7, 0.)):
    c = world.given(k)
    match = label_log_prob(world.classify, k)
    p = at(cfg(c, world, w=w))
    scaled = at(cfg(c, world, guidance_scale=1 + w))
    from_uncond = at(guide(world, match, 1 + w))
    from_cond = at(guide(c, match, w))
    formula += [close(p.eps, (1 + w)*at(c).eps - w*at(world).eps),
                close(p.x0, scaled.x0),
                close(t.signal*p.x0 + t.sigma*p.eps, x)]
    same += [close(p.x0, from_uncond.x0, 1e-9),
             close(p.x0, from_cond.x0, 1e-9)]


def with_frac(denoiser, frac):
    return lambda x, t: denoiser(x, t)._replace(frac=frac)


mixed = cfg(with_frac(c, x), with_frac(world, -x), w=2.)
assert at(mixed).frac is x
without = at(cfg(c, world, w=0.))
only_uncond = at(cfg(c, world, guidance_scale=0.))
formula += [close(without.x0, at(c).x0, 0), close(only_uncond.x0, at(world).x0)]
passed('(41.3) three spellings, w = 0 and w = −1', *formula, by='ring, 9 levels')
passed('(41.4) it is classifier guidance, at scale 1 + w and at scale w', *same, by='autograd')


# %%NBQA-CELL-SEP7dc948
def guided_eps(net, x_t, t, y, w):
    none = torch.full_like(y, NULL)
    eps = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, none]))
    eps_c, eps_u = eps.chunk(2)
    return eps_c + w*(eps_c - eps_u)


# %%NBQA-CELL-SEP7dc948
#| export
_Pair = Callable[[Tensor, Level], tuple[Prediction, Prediction]]


def batched_pair(model: Model, a: Condition, b: Condition) -> _Pair:
    "(x, t) -> the predictions under a and under b, from one doubled batch. Eq. 41.3."
    # what the network receives of both, computed once for a whole run
    halves = [model.encoded(a), model.encoded(b)]
    names = [*{**halves[0], **halves[1]}]
    for name in names:
        if not all(name in half or name in model.absent for half in halves):
            raise Problem(f'One of two conditions lacks "{name}", and the network reads '
                          'nothing that says so: give it in both.')

    def both(name, x):
        "One input for the doubled batch: a's for the first half, b's for the second."
        parts = [half[name] if name in half else model.absent[name] for half in halves]
        return torch.cat([for_each(part, x) for part in parts])

    def pair(x, t):
        # double the batch, and the levels if each sample has its own
        twice = Level(torch.cat([t.log_snr]*2)) if t.log_snr.ndim else t
        p = model(torch.cat([x, x]), twice, **{name: both(name, x) for name in names})

        # split every part of the prediction: x0, eps and, if there is one, the variance
        return each_part(lambda v: v[:len(x)], p), each_part(lambda v: v[len(x):], p)

    return pair


def cfg_batched(model: Model, condition: Condition, w: float | None = None,
                guidance_scale: float | None = None,
                instead_of: Condition = None) -> Denoiser:
    "`cfg` in one evaluation a step; `instead_of`: a negative condition. Eq. 41.3, 41.5."
    w = as_w(w, guidance_scale)
    pair = batched_pair(model, condition, instead_of)

    def guided(x, t):
        return extrapolate(*pair(x, t), w)

    return guided


# %%NBQA-CELL-SEP7dc948
# Eq. 41.3: one doubled batch is two calls, for one level and one each, with and without a learned
# variance; counted: one evaluation a step
torch.manual_seed(0)
own = Model(small_unet(base=8, learn_variance=True).double(), learned_variance=True)
for parameter in own.parameters():
    torch.nn.init.normal_(parameter, std=.1)
xs = torch.randn(3, 1, 28, 28, dtype=D)
label = torch.tensor([4, 0, 9])
several = Level(torch.tensor([-2., 0., 3.], dtype=D).reshape(3, 1, 1, 1))

errors = []
with torch.no_grad():
    for ts in (level(1.), several):
        for a, b in ((label, None), (3, label)):
            for got, c in zip(batched_pair(own, a, b)(xs, ts), (a, b)):
                want = own.given(c)(xs, ts)
                errors += [close(u, v, 1e-9) for u, v in zip(got, want, strict=True)]
        got = cfg_batched(own, label, guidance_scale=4.)(xs, ts)
        want = cfg(own.given(label), own.given(None), w=3.)(xs, ts)
        errors += [close(u, v, 1e-9) for u, v in zip(got, want)]

    calls = []
    own.register_forward_hook(lambda *a: calls.append(1))
    last(ddim(cfg_batched(own, 3, w=1.), karras(4), xs))
assert len(calls) == 4


class TwoInputs(torch.nn.Module):
    "A network with two conditions."

    def forward(self, x, time, a, b):
        return a.reshape(-1, 1, 1, 1)*x + b.sum(1).reshape(-1, 1, 1, 1)


# two conditions by name, of which one differs; one that is absent on one side is asked for
two = Model(TwoInputs())
rows = torch.randn(3, 4, dtype=D)
first = dict(a=2, b=rows)
second = dict(a=3, b=rows[:1])
for got, c in zip(batched_pair(two, first, second)(xs, Level(0.)), (first, second)):
    want = two.given(**c)(xs, Level(0.))
    errors += [close(u, v, 1e-9) for u, v in zip(got[:2], want[:2])]
with expect_fail('One of two conditions lacks "b"', Problem):
    batched_pair(two, first, dict(a=3))
passed('(41.3) one doubled batch = two calls, in one evaluation per step', close(errors, 0., 1e-9),
       by='float64')

# the shipped network, and the plain code
with torch.no_grad():
    half = batched_pair(model, 3, None)(digits, Level(0.))[1]
    want = model.given(None)(digits, Level(0.))
    shipped = close(torch.stack(half[:2]), torch.stack(want[:2]), 1e-4)
    label = torch.arange(12) % 10
    plain = guided_eps(net, digits, torch.full((12,), 500), label, 3.)
    want = cfg_batched(model, label, w=3.)(digits, Level(schedule.log_snr[500])).eps
passed('plain batch = library', shipped, close(plain, want, 1e-3), by='digit network, float32')


# %%NBQA-CELL-SEP7dc948
ten_levels = grid(Cosine(), 10)


def draw(y, noise, w):
    "The seed is set again, so that each weight gets the same noise in every step."
    torch.manual_seed(0)
    guided = cfg_batched(model, y, w=w) if w else model.given(y)
    return last(ancestral(clamp_x0(guided), ten_levels, noise))


torch.manual_seed(3)
noise = torch.randn(24, 1, 28, 28)
y = torch.tensor([4, 7]).repeat_interleave(12)
drawn = {w: draw(y, noise, w) for w in (0., 1., 4.)}


# %%NBQA-CELL-SEP7dc948
# Figure 41.5: twelve samples for each label and weight, and their average
fig, axes = figure(3, 4, 2.5, dpi=130, width_ratios=[6, 2, 6, 2])
fig.get_layout_engine().set(w_pad=.03, h_pad=.02)
for row, (w, samples) in zip(axes, drawn.items()):
    wrong = reader(samples).argmax(1) != y
    for k, left, right in ((4, *row[:2]), (7, *row[2:])):
        mine = y == k
        bare(left).imshow(show.tile(samples[mine], 6))
        bare(right).imshow(samples[mine].mean(0)[0], cmap='gray', vmin=-1, vmax=1)
        for i in wrong[mine].nonzero()[:, 0].tolist():
            corner = (29*(i % 6) - .5, 29*(i // 6) - .5)
            left.add_patch(plt.Rectangle(corner, 28, 28, fill=False, edgecolor=RED, linewidth=1.6))
        if w == 0:
            left.set_title(f'label {k}')
            right.set_title('average')
    row_label(row[0], f'w = {w:g}')


# %%NBQA-CELL-SEP7dc948
# Slider: the labels 0 to 9 at five weights
y = torch.arange(10)
torch.manual_seed(0)
noise = torch.randn(10, 1, 28, 28)
weights = (-1., 0., 1., 4., 16.)
frames = [draw(y, noise, w) for w in weights]
show.Slider(frames, [f'w = {w:g}' for w in weights],
            'Labels 0 to 9, one noise each: at which weight are all correct, and from which is it '
            'too much?')


# %%NBQA-CELL-SEP7dc948
# Measured: 2,000 digits for each weight, by the command line; stored, because it takes minutes
line = ('eval mnist --w 0 --w 0.5 --w 1 --w 2 --w 4 --sampler ancestral --steps 10 '
        '--bits-pictures 0 --json')
small = line.replace('--sampler ancestral --steps 10', '--n 80 --sampler ddim --steps 5')
keys = ('w', 'n', 'sampler', 'steps', 'seed', 'evaluations', 'frechet', 'floor', 'kernel',
        'precision', 'recall', 'coverage', 'agreement', 'score')


def rows_of(line):
    "The rows that the command prints, with what they were made of."
    command = [sys.executable, '-m', 'ddpm_lit', *line.split(), '--threads', '1']
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    rows = json.loads(printed)
    real = rows[0]['real']
    return dict(command=f'ddpm_lit {line}',
                cpu_seconds=sum(r['cpu_seconds'] for r in rows),
                weights=rows[0]['weights']['sha256'],
                real={k: real[k] for k in keys if k in real},
                rows=[{k: r[k] for k in keys} for r in rows])


COMMAND = 'DDPM_LIT_BUDGET=full python tools/nb.py run nbs/41_cfg.ipynb'
file_of_both = measurement('guidance', 'digits by guidance weight, drawn with two samplers',
                           COMMAND, {})
if budget(False, not file_of_both['rows']):
    file_of_both['rows'] = dict(large=rows_of(line), small=rows_of(small))
    keep_measurement('guidance', file_of_both)
book = file_of_both['rows']
curve = book['large']['rows']
perfect = book['large']['real']


# %%NBQA-CELL-SEP7dc948
# Table: scores by weight
named_rows = [(f'w = {r["w"]:g}', r) for r in curve] + [('real digits', perfect)]
print('              misread  inception  Fréchet  precision  recall')
for name, r in named_rows:
    print(f'{name:14}{1 - r["agreement"]:7.1%}{r["score"]:11.2f}{r["frechet"]:9.2f}'
          f'{r["precision"]:11.3f}{r["recall"]:8.3f}')


# %%NBQA-CELL-SEP7dc948
# Figure 41.6: both scores, precision and recall
ws = [r['w'] for r in curve]


def of(key):
    return [r[key] for r in curve]


fig, (left, middle, right) = figure(1, 3, 2.1)
fig.get_layout_engine().set(wspace=.06)
for ax, key, title in ((left, 'score', 'inception score'),
                       (middle, 'frechet', 'Fréchet distance')):
    ax.plot(ws, of(key), marker='o', markersize=4, color=RED)
    ax.axhline(perfect[key], color='black', linestyle='--', linewidth=1)
    ax.set_title(title)
left.text(4.1, perfect['score'] + .012, 'real digits', ha='right', va='bottom')
left.text(4.1, 9.93, 'better: surer', ha='right', color=RED)
middle.text(4.1, perfect['frechet'] + .15, 'real digits', ha='right', va='bottom')
middle.text(-.1, 5.6, 'worse: too alike', color=RED)
for key, colour, height in (('precision', 'black', .93), ('recall', BLUE, .42)):
    right.plot(ws, of(key), marker='o', markersize=4, color=colour)
    right.text(4.1, height, key, color=colour, ha='right', va='bottom')
right.set(title='precision and recall', ylim=(.3, 1.02))
for ax in (left, middle, right):
    ax.set(xlabel='w', xticks=[0, 1, 2, 4])


# %%NBQA-CELL-SEP7dc948
# Eq. 41.3: the published pattern: from w = 0 upwards the Frechet distance and the inception score
# both rise, as do label accuracy and, to w = 1, precision; recall falls
by_weight = {r['w']: r for r in curve}
lowest, second, most = (by_weight[w] for w in (0, 1, 4))
assert most['frechet'] > 2*lowest['frechet']
for key in ('score', 'agreement', 'precision'):
    assert lowest[key] < second[key]
assert most['recall'] < lowest['recall'] - .1

# and the stored rows belong to this code and these weights: one of eighty digits in five steps
r = next(r for r in book['small']['rows'] if r['w'] == 2)
label = torch.arange(80) % 10
torch.manual_seed(r['seed'])
z = torch.randn(80, 1, 28, 28)
with torch.no_grad():
    samples = last(ddim(clamp_x0(cfg_batched(model, label, w=2.)), grid(Cosine(), 5), z))
    again = weigh_digits(samples, label, mnist('test'), reader)
errors = (close(again['score'], r['score'], .05),
          close(again['agreement'], r['agreement'], .03),
          close(again['frechet']/r['frechet'], 1., .02))
passed('the stored table belongs to this code', *errors, by='80 digits once more')


# %%NBQA-CELL-SEP7dc948
# Measured: 1,000 digits for each method and weight; stored, because it takes twenty minutes
FREE = 'classifier-free'
INSIDE = 'classifier, conditional model'
OUTSIDE = 'classifier, unconditional model'
KEYS = ('n', 'frechet', 'floor', 'precision', 'recall', 'agreement', 'score')


def build(method, y, w):
    "The denoiser that a method makes for labels y."
    plain = model.given(y)
    guided = cfg_batched(model, y, w=w)
    if method == FREE:
        return guided
    if method in (INSIDE, OUTSIDE):
        start = plain if method == INSIDE else model.given(None)
        steered = guide(start, noisy.given(y), w)
        # not at log SNR -20, where (40.2) multiplies the classifier's gradient by 22,000
        return library.guidance_interval(steered, start, -10., 30.)
    if method.startswith('rescaled'):
        return library.rescaled(guided, plain, float(method.split()[1]))
    noisiest, cleanest = map(float, method.split()[1:])  # 'interval -3 0.3'
    return library.guidance_interval(guided, plain, noisiest, cleanest)


def samples_of(method, w, n, seed=0):
    "n digits, all labels in turn, from the same noise for every method."
    torch.manual_seed(seed)
    y = torch.arange(n) % 10
    noise = torch.randn(n, 1, 28, 28)
    parts = []
    for labels, z in zip(y.split(250), noise.split(250)):
        denoiser = clamp_x0(build(method, labels, w))
        parts.append(last(ancestral(denoiser, ten_levels, z)))
    return torch.cat(parts), y


def measured(method, w, n, seed=0):
    "One row: what notebook 27 measures, the guiding classifier's own accuracy, and the ink."
    began = time.process_time()
    x, y = samples_of(method, w, n, seed)
    found = weigh_digits(x, y, mnist('test'), reader)
    with torch.no_grad():
        own = torch.cat([noisy(part, Level(8.)).argmax(1) for part in x.split(250)])
    row = {key: found[key] for key in KEYS}
    row |= dict(own=(own == y).double().mean().item(), ink=((x + 1)/2).mean().item())
    row |= dict(cpu_seconds=round(time.process_time() - began, 1))
    return dict(method=method, w=w, seed=seed) | row


def all_rows():
    "All that this chapter compares."
    runs = [(FREE, w) for w in (0., .1, .25, .5, 1., 2., 4.)]
    runs += [(INSIDE, w) for w in (.25, .5, 1., 2., 4., 8.)]
    runs += [(OUTSIDE, w) for w in (1., 2., 3., 5., 10.)]
    runs += [(f'interval {ends}', 2.) for ends in ('-30 -3', '-2.13 2.55', '0.3 30')]
    runs += [('rescaled 0.7', 4.), ('rescaled 1', 4.)]
    small = []
    for method in (INSIDE, 'interval 0.3 30'):
        x, _ = samples_of(method, 2., 20)
        small.append(dict(method=method, w=2., n=20, ink=((x + 1)/2).mean().item()))
    seeds = [measured(method, w, 1000, seed) for seed in (1, 2)
             for method, w in ((FREE, .5), (INSIDE, 2.))]
    return dict(large=[measured(*run, 1000) for run in runs], small=small, seeds=seeds)


file_of_methods = measurement(
    'guidance-methods', 'digits by three ways to guide, each with several weights, and '
    'intervals of guidance', COMMAND, {})
if budget(False, not file_of_methods['rows']):
    file_of_methods['rows'] = all_rows()
    keep_measurement('guidance-methods', file_of_methods)
methods = file_of_methods['rows']


# %%NBQA-CELL-SEP7dc948
# Figure 41.7: misread digits against the Frechet distance, for three ways to guide
unguided = next(r for r in methods['large'] if r['method'] == FREE and r['w'] == 0)
curves = ((OUTSIDE, 'black', []), (INSIDE, BLUE, [unguided]), (FREE, RED, []))
fig, ax = figure(1, 1, 3.)
for method, colour, start in curves:  # at weight 0 the blue curve is the plain conditional model
    rows = [r for r in methods['large'] if r['method'] == method]
    rows = start + sorted(rows, key=lambda r: r['w'])
    misread = [1000*(1 - r['agreement']) for r in rows]
    ax.plot(misread, [r['frechet'] for r in rows], marker='o', markersize=4, color=colour)
    for r, wrong in zip(rows, misread):
        if r is not unguided:
            below = colour == RED and r['w'] < .5 or method == OUTSIDE and r['w'] == 2
            ax.annotate(f'{r["w"]:g}', (wrong, r['frechet']), (4, -12) if below else (5, 3),
                        textcoords='offset points', color=colour, annotation_clip=True)
ax.annotate('no guidance', (33, unguided['frechet']), (20, -14), textcoords='offset points',
            color='0.4', arrowprops=dict(arrowstyle='-', color='0.6'))
ax.text(.06, 1.2, 'classifier-free', color=RED)
ax.text(1.2, 3.1, 'trained classifier on\nthe conditional model', color=BLUE)
ax.text(38, 2.6, 'trained classifier on\nthe unconditional model', color='black')
ax.set_xscale('symlog', linthresh=2, linscale=.7)
ax.set(xlabel='digits of 1,000 that an independent classifier misreads',
       ylabel='Fréchet distance', xlim=(-.3, 900), ylim=(0, 5.3),
       xticks=[0, 1, 3, 10, 30, 100, 300], xticklabels=['0', '1', '3', '10', '30', '100', '300'])
ax.minorticks_off()


# %%NBQA-CELL-SEP7dc948
# Eq. 41.4: what the text claims of Figure 41.7; and two small runs repeat their stored rows
def row(method, w):
    return next(r for r in methods['large'] if r['method'] == method and r['w'] == w)


def misread_by(method, w, by='agreement'):
    return round(1000*(1 - row(method, w)[by]))


assert misread_by(FREE, .5) == misread_by(INSIDE, 2.) == 1
assert row(FREE, .5)['frechet'] < .8*row(INSIDE, 2.)['frechet']
for r in methods['seeds']:
    low, high = (1.8, 2.) if r['method'] == FREE else (2.5, 2.65)
    assert r['agreement'] > .9975 and low < r['frechet'] < high
assert misread_by(OUTSIDE, 1.) > 300 and misread_by(FREE, 0.) < 40
for w in (2., 3., 5., 10.):
    assert misread_by(OUTSIDE, w) > 1.4*misread_by(OUTSIDE, w, 'own')
assert abs(misread_by(FREE, 0.) - misread_by(FREE, 0., 'own')) <= 1
seconds = {m: [r['cpu_seconds'] for r in methods['large'] + methods['seeds'] if r['method'] == m]
           for m in (FREE, INSIDE)}
assert 32.5 < min(seconds[INSIDE]) and max(seconds[INSIDE]) < 38.5
assert 44.5 < min(seconds[FREE]) and max(seconds[FREE]) < 55
assert misread_by(FREE, .25) < 5 and row(FREE, .25)['recall'] > .8

errors = []
for r in methods['small']:
    x, _ = samples_of(r['method'], r['w'], r['n'])
    errors.append(close(((x + 1)/2).mean(), r['ink'], 1e-4))
passed('the stored comparison belongs to this code', *errors, by='ink of 20 digits each, once more')


# %%NBQA-CELL-SEP7dc948
# Figure 41.8: guidance away from all classes, and away from one
torch.manual_seed(0)
wide = ring(std=.5)
noise = torch.randn(600, 2)
levels = karras(30, lo=.02)
target = wide.given(0)
neighbour = wide.given(1)
draws = {'no guidance': cfg(target, wide, w=0.),
         'w = 2, away from all': cfg(target, wide, w=2.),
         'w = 0.5, away from one': cfg(target, neighbour, w=.5)}
fig, axes = figure(1, 3, 2.5)
for ax, (name, denoiser) in zip(axes, draws.items()):
    show.cloud(last(dpmpp_2m(denoiser, levels, noise)), ax, 'guidance', 4.5, size=4)
    show.cloud(wide.mean, ax, 'data', 4.5, size=18)
    ax.scatter(*target.mean.T, s=110, facecolors='none', edgecolors='black', linewidths=1.2)
    ax.set_title(name)
axes[2].scatter(*wide.mean[1], s=60, marker='x', color='black')
axes[2].annotate('n', wide.mean[1], (8, 4), textcoords='offset points')


# %%NBQA-CELL-SEP7dc948
# Eq. 41.5: for neighbours on the ring, by autograd of the log odds
torch.manual_seed(0)
x = 2*torch.randn(360, 2, dtype=D)
t = Level(torch.linspace(-9, 9, 9, dtype=D).repeat_interleave(40)[:, None])


def odds(x, t):
    logs = world.classify(x, t)
    return logs[:, 0] - logs[:, 1]


away = at(cfg(world.given(0), world.given(1), w=1.7))
by_odds = at(guide(world.given(0), odds, 1.7))
passed('(41.5) guidance away from n = gradient of the log odds, y against n',
       close(away.eps, by_odds.eps, 1e-10), by='autograd')


# %%NBQA-CELL-SEP7dc948
#| export
def guidance_interval(guided: Denoiser, plain: Denoiser,
                      noisiest: float, cleanest: float,  # log SNR of the ends
                      ) -> Denoiser:
    "Guided at levels of an interval, else plain. Eq. 41.6 (Kynkaanniemi et al. 2024)."

    def denoiser(x, t):
        inside = (t.log_snr >= noisiest) & (t.log_snr <= cleanest)

        # all samples on one side: only one of the two is evaluated
        if inside.all():
            return guided(x, t)
        if not inside.any():
            return plain(x, t)

        # some inside, some outside: evaluate both and choose sample by sample
        inside = inside.to(x.device)

        def choose(g, p):
            return torch.where(inside, g, p)

        return each_part(choose, guided(x, t), plain(x, t))

    return denoiser


# %%NBQA-CELL-SEP7dc948
# Table: intervals on digits, 1,000 for each row, from the stored rows of Figure 41.7
cases = (('no level', FREE, 0.), ('all ten levels', FREE, 2.), ('all ten levels', FREE, .5),
         ('-2.1 to 2.6', 'interval -2.13 2.55', 2.),
         ('noisier than -3', 'interval -30 -3', 2.),
         ('cleaner than 0.3', 'interval 0.3 30', 2.))
log_snrs = ten_levels.log_snr[:-1]
print('guided at log SNR         w   misread   recall   Fréchet   evaluations')
for name, method, w in cases:
    r = row(method, w)
    low, high = (-30, 30) if method == FREE else map(float, method.split()[1:])
    doubled = ((log_snrs >= low) & (log_snrs <= high)).sum().item() if w else 0
    print(f'{name:23}{w:4g}{1000*(1 - r["agreement"]):8.0f}{r["recall"]:11.2f}'
          f'{r["frechet"]:10.2f}{10 + doubled:11d}')
assert row('interval -2.13 2.55', 2.)['frechet'] < row(FREE, 2.)['frechet']/3
assert row('interval -30 -3', 2.)['recall'] < row('interval 0.3 30', 2.)['recall'] - .1


# %%NBQA-CELL-SEP7dc948
# Eq. 41.6: level by level against the two denoisers, for a level each and for a whole run, whose
# evaluations are counted
c = world.given(2)
g = Counted(cfg(c, world, w=3.))
always = at(cfg(c, world, w=3.))
never = at(c)
mixed = at(guidance_interval(g, c, -4., 2.))
inside = (t.log_snr >= -4) & (t.log_snr <= 2)
assert 0 < inside.sum() < 360
errors = [close(mixed.x0, torch.where(inside, always.x0, never.x0), 0),
          close(mixed.eps[inside[:, 0]], always.eps[inside[:, 0]], 0)]

g.nfe = 0
run = karras(20)
last(ddim(guidance_interval(g, c, -4., 2.), run, x))
wanted = sum(-4 <= s.log_snr.item() <= 2 for s in [*run][:-1])
errors.append(close(g.nfe, wanted, 0))
passed(f'(41.6) guided inside ({wanted} of 20 steps), plain outside', *errors, by='ring')


# %%NBQA-CELL-SEP7dc948
#| export
def rescaled(guided: Denoiser, cond: Denoiser,
             share: float = .7) -> Denoiser:  # 0: as guided, 1: as spread as cond
    "Guided, with the contrast of `cond`. Eq. 41.7 (Lin et al. 2024, sec. 3.4)."
    if not 0 <= share <= 1:
        raise Problem(f'The share is {share}: choose it from 0 (as guided) to 1 (as '
                      'spread as the conditional guess).')

    def denoiser(x, t):
        p = guided(x, t)
        if not (t.sigma > 0).any():
            return p  # clean data are left as they are

        def sd(v):  # over all values of each sample, [b 1 ... 1]
            return append_dims(v.flatten(1).std(1), x)

        now = sd(p.x0)
        noisy = t.like(x).sigma > 0
        factor = share*sd(cond(x, t).x0)/now + 1 - share
        factor = torch.where(noisy & (now > 0), factor, 1.)  # an image of one grey stays

        q = from_x0(factor*p.x0, x, t.like(x))
        return p._replace(x0=q.x0, eps=torch.where(noisy, q.eps, p.eps))

    return denoiser


# %%NBQA-CELL-SEP7dc948
# Eq. 41.7: standard deviations of the rescaled guess: as guided, as conditional, halfway; x_t is
# still what both parts add up to; clean data and images of one grey stay
torch.manual_seed(0)
t_ = Level(0.)
c = model.given(3)
far = cfg(c, model.given(None), w=6.)
xt = q_sample(digits, t_, torch.randn_like(digits))


def sd(p):
    return p.x0.flatten(1).std(1)


def flat(x, t):
    return from_x0(0*x - .5, x, t)


with torch.no_grad():
    a = far(xt, t_)
    b = c(xt, t_)
    half = rescaled(far, c, .5)(xt, t_)
    full = rescaled(far, c, 1.)(xt, t_)
    unchanged = rescaled(far, c, 0.)(xt, t_)
    none = model.given(None)(xt, t_)
    assert (sd(a) > torch.maximum(sd(b), sd(none))).double().mean() > .7
    assert torch.equal(rescaled(c, c, .7)(digits, CLEAN).x0, c(digits, CLEAN).x0)
    assert torch.equal(rescaled(flat, c, 1.)(xt, t_).x0, flat(xt, t_).x0)

    # clean images among noisy ones
    some = Level(torch.tensor([0., math.inf]*6).reshape(-1, 1, 1, 1))
    mixed = rescaled(far, c, 1.)(xt, some)
    guided = far(xt, some)
    errors = [close(mixed.x0[1::2], guided.x0[1::2], 0),
              close(mixed.eps[1::2], guided.eps[1::2], 0),
              close(sd(mixed)[::2], sd(c(xt, some))[::2], 1e-5)]

errors += [close(sd(full), sd(b), 1e-5),
           close(sd(half), (sd(a) + sd(b))/2, 1e-5),
           close(t_.signal*half.x0 + t_.sigma*half.eps, xt, 1e-5),
           close(unchanged.x0, a.x0, 1e-6)]
passed(f'(41.7) sd {sd(b).mean():.2f} conditional, {sd(a).mean():.2f} guided, '
       f'{sd(full).mean():.2f} rescaled', *errors, by='digits, w = 6')

# what it does to the black background of a digit, and to recall
ground = digits == -1
before = a.x0.clamp(-1, 1)[ground].mean().item()
after = full.x0.clamp(-1, 1)[ground].mean().item()
assert before < after - .03
passed(f'black background (−1): {before:.2f} guided, {after:.2f} rescaled'.replace('-', '−'))
recall = [row(method, 4.)['recall'] for method in (FREE, 'rescaled 0.7', 'rescaled 1')]
assert recall[0] < recall[1] < recall[2]
passed('recall of digits at w = 4: {:.2f}; φ = 0.7: {:.2f}; φ = 1: {:.2f}'.format(*recall))


# %%NBQA-CELL-SEP7dc948
# Figure 41.9: exact densities of guided samples
half, std = torch.tensor([[.5, .5], [.7, .7]], dtype=D)
pair = Mixture(half, torch.tensor([[-1.], [1.]], dtype=D), std)
z = torch.linspace(-4, 4, 401, dtype=D)
levels_201 = Grid(torch.linspace(-14, 14, 201, dtype=D))
ends = last(heun(cfg(pair.given(1), pair, w=2.), levels_201, z[:, None]))[:, 0]

# a deterministic run keeps the order of points: divide the noise density by the slope of the map
run = (-z**2/2).exp()/(2*math.pi)**.5/torch.gradient(ends, spacing=(z,))[0]

line = torch.linspace(-2, 4, 401, dtype=D)
of_label = pair.given(1).log_prob(line[:, None])
log_tilted = of_label + 2*pair.classify(line[:, None])[:, 1]
tilted = log_tilted.softmax(0)/(line[1] - line[0])

fig, (left, right) = figure(1, 2, 2.5, width_ratios=[1.5, 1])
fig.get_layout_engine().set(wspace=.06)
left.plot(line, of_label.exp(), color='0.6')
left.plot(line, tilted, color='black', linestyle='--')
left.plot(ends, run, color=RED)
left.text(-.25, .42, '$p(x\\,|\\,y)$', color='0.45', ha='right')
left.text(.28, .62, 'often claimed:\n$p(x)\\,p(y\\,|\\,x)^3$', ha='right')
left.text(2.05, .75, 'guided samples, $w = 2$', color=RED)
left.set(title='two classes on a line, $y$ the right one', xlabel='x', yticks=[],
         xlim=(-2, 4), ylim=(0, None))

w = torch.linspace(0, 4, 100)
V = .5
right.semilogy(w, V**(1 + w), color=RED)
right.semilogy(w, V/(V + (1 + w)*(1 - V)), color='black', linestyle='--')
right.text(2.45, .062, 'guided\n$V^{1+w}$', color=RED, ha='right', va='top')
right.text(2.6, .25, 'claimed', ha='left')
right.set(title='variance, one Gaussian class', xlabel='w', yticks=[.5, .2, .1, .05])
right.set_yticklabels(['0.5', '0.2', '0.1', '0.05'])
right.minorticks_off()


# %%NBQA-CELL-SEP7dc948
# Eq. 41.8: the variance at the end of a fine run (the map is linear) against the formula; the
# tilted density's by brute force; equal at w = 0
one = torch.ones(1, dtype=D)
u = torch.linspace(-9, 9, 6001, dtype=D)
everything = Mixture(one, 0*one[None], one)
fine = Grid(torch.linspace(-14, 16, 601, dtype=D))


def widths(V, w):
    "The variance of guided samples, and that of the tilted density."
    c = Mixture(one, .4*one[None], V**.5*one)
    two_points = torch.tensor([[0.], [1.]], dtype=D)
    ends = last(heun(cfg(c, everything, w=w), fine, two_points))

    # p(x) p(y | x)^(1+w), up to a constant
    log_p = (1 + w)*c.log_prob(u[:, None]) - w*everything.log_prob(u[:, None])
    p = log_p.softmax(0)
    return ((ends[1] - ends[0])**2).item(), (p @ u**2 - (p @ u)**2).item()


guided_errors = []
tilted_errors = []
for V, w in ((.5, 0.), (.5, 1.), (.5, 3.), (.2, 1.)):
    got, wide_one = widths(V, w)
    guided_errors.append(close(got, V**(1 + w), 5e-4))
    tilted_errors.append(close(wide_one, V/(V + (1 + w)*(1 - V)), 1e-6))
    print(f'V = {V}, w = {w}: guided {got:.4f}, tilted density {wide_one:.4f}')
    if (V, w) == (.5, 1.):
        assert got < .8*wide_one
passed('(41.8) left side: variance of guided samples', *guided_errors, by='600 Heun steps')
passed('(41.8) right side: variance of the tilted density', *tilted_errors, by='brute-force sums')


# %%NBQA-CELL-SEP7dc948
# Eq. 41.8: not only Gaussians: the run's mean is off from that of p(x) p(y | x)^3, and its density
# integrates to 1
def mean(y, p):
    return torch.trapezoid(y*p, y)


assert abs(mean(ends, run) - mean(line, tilted)) > .1
passed(f'mean of the red curve {mean(ends, run):.2f}, of the dashed one {mean(line, tilted):.2f}; '
       'red integrates to 1', close(torch.trapezoid(run, ends), 1., 1e-3))


# %%NBQA-CELL-SEP7dc948
x0 = torch.randn(10, 1, 28, 28)
unlabelled = Model(small_unet(classes=0))

with expect_fail('and not both', Problem):
    cfg(world, world, w=1., guidance_scale=2.)
with expect_fail('Give either `w`', Problem, show=False):  # the same answer
    cfg_batched(model, 3)
with expect_fail('2 conditions do not fit 10', Problem):
    cfg_batched(model, torch.tensor([1, 2]), w=1.)(x0, Level(0.))
with expect_fail('labels are 0 to 9', Problem):
    cfg_batched(model, 10, w=1.)(x0, Level(0.))
with expect_fail('knows no labels', Problem):
    cfg_batched(unlabelled, 3, w=1.)(x0, Level(0.))
for share in (-.1, 1.1):
    with expect_fail('choose it from 0', Problem):
        rescaled(world, world, share)


# %%NBQA-CELL-SEP7dc948
# How a large weight fails: the share of predicted values outside [-1.1, 1.1], and with the wrong
# convention, at log SNR -2, for twelve test digits and their own labels
torch.manual_seed(0)
label = mnist('test').label[:12]
x = q_sample(digits, Level(-2.), torch.randn_like(digits))
outside = {}
with torch.no_grad():
    for w in (0., 1., 4., 16.):
        predicted = cfg_batched(model, label, w=w)(x, Level(-2.)).x0
        outside[w] = (predicted.abs() > 1.1).double().mean().item()
    scale_one = cfg_batched(model, label, guidance_scale=1.)(x, Level(-2.)).x0
    scale_zero = cfg_batched(model, label, guidance_scale=0.)(x, Level(-2.)).x0
    errors = [close(scale_one, model.given(label)(x, Level(-2.)).x0, 1e-4),
              close(scale_zero, model.given(None)(x, Level(-2.)).x0, 1e-4)]
assert outside[0.] < outside[1.] < outside[4.] < outside[16.]
print('values outside the range of images:',
      ', '.join(f'w = {w:g}: {100*share:.1f} %' for w, share in outside.items()))
passed('guidance_scale 1 is no guidance, 0 no label', *errors, by='digit network')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...
close(cfg(everything, everything, w=7.)(u[:, None], level(0.)).x0, guess)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: `everything` is N(0, 1), here the density of n
guess = ...
close(widths(1.5, 2.)[0], guess, 1e-2)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def annealed(cond, uncond, w_of):
    ...


d = annealed(wide.given(0), wide, lambda t: 3*t.alpha_bar)
close(d(noise, Level(0.)).eps,
      cfg(wide.given(0), wide, w=1.5)(noise, Level(0.)).eps, 1e-5)


# %%NBQA-CELL-SEP7dc948
# solution 1: nothing. The label carries no information, so both predictions are one, and their
# difference is 0 at any w. What is left is the plain prediction signal x_t for N(0, 1)
guess = level(0.).signal*u[:, None]
close(cfg(everything, everything, w=7.)(u[:, None], level(0.)).x0, guess)


# %%NBQA-CELL-SEP7dc948
# solution 2: the precision (1 + w)/V - w = 3/1.5 - 2 is 0: p(x | y)^3/p(x | n)^2 does not fall off
# and has no integral. The run ends all the same, with the variance V^(1 + w): the derivation of
# (41.8) holds with n in place of all data
guess = 1.5**3
close(widths(1.5, 2.)[0], guess, 1e-2)


# %%NBQA-CELL-SEP7dc948
# solution 3: the weight is looked up at each level; then the factor of each shape by bisection.
# Rising with the noise keeps a little more variance than the others
def annealed(cond, uncond, w_of):
    def guided(x, t):
        return extrapolate(cond(x, t), uncond(x, t), w_of(t))

    return guided


def weight(shape, t):
    if shape == 'constant':
        return 1.
    return t.alpha_bar if shape == 'falling' else 1 - t.alpha_bar


for shape in ('constant', 'rising with the noise', 'falling'):
    lo, hi = 0., 20.
    for _ in range(10):
        f = (lo + hi)/2
        denoiser = annealed(wide.given(0), wide, lambda t: f*weight(shape, t))
        ends = last(dpmpp_2m(denoiser, karras(30, lo=.02), noise))
        accuracy = wide.classify(ends)[:, 0].exp().mean()
        lo, hi = (lo, f) if accuracy > .95 else (f, hi)
    print(f'{shape:22} factor {f:5.2f}  accuracy {accuracy:.3f}  variance {ends.var(0).sum():.3f}')

d = annealed(wide.given(0), wide, lambda t: 3*t.alpha_bar)
close(d(noise, Level(0.)).eps, cfg(wide.given(0), wide, w=1.5)(noise, Level(0.)).eps, 1e-5)
