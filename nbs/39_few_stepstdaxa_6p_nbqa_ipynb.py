# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.jump


# %%NBQA-CELL-SEP15d533
# Figure 39.1: one jump from noise to data as each family learns it; digits in few evaluations
import math
import matplotlib.pyplot as plt
import numpy as np
import torch
from ddpm_lit import show
from ddpm_lit.core.check import setup
from ddpm_lit.core.level import CLEAN, from_edm_sigma
from ddpm_lit.diffusion import jump as library  # the first pages use what later ones build
from ddpm_lit.diffusion.oracle import Mixture
from ddpm_lit.diffusion.sample import ddim, last
from ddpm_lit.diffusion.schedule import Grid, grid, karras
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.show import INK
from ddpm_lit.systems.distil import teacher_levels
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64


def number(v):
    "A number in float64."
    return torch.tensor(v, dtype=D)


def levels_of(n):
    "n levels of the Karras grid, the last at edm_sigma .002; clean is not among them."
    return Grid(karras(n).log_snr[:-1])


# a mixture on a line, with its exact map
world = Mixture(number([.3, .7]), number([[-1.5], [.8]]), number([.25, .4]))
exact = library.exact_jumper(world)
noisy = from_edm_sigma(80.)
clean = from_edm_sigma(.002)


def land(p, s):
    "Where a prediction's jump lands, over the signal: the coordinate y."
    return p.x0 + s.edm_sigma*p.eps


# what consistency training converges to (39.9), on a lattice, level by level
nodes, mass = map(torch.tensor, np.polynomial.hermite_e.hermegauss(40))
mass = mass/mass.sum()


def lattice(size):
    "Values of y, dense where the data are."
    return torch.sinh(torch.linspace(-1, 1, 4001, dtype=D)*math.asinh((3 + 5.5*size)/.5))*.5


def between(y, known, values):
    "Linear interpolation."
    return torch.from_numpy(np.interp(y, known, values))


def ct_step(y, s, t, known, values):
    "The mean of the last f over x0 given y, by quadrature."
    variance = world.std**2 + t.edm_sigma**2
    p = world.classify(t.signal*y[:, None], t).exp()
    mean = (world.mean.T*t.edm_sigma**2 + world.std**2*y[:, None])/variance
    x0 = mean[..., None] + (world.std*t.edm_sigma/variance.sqrt())[:, None]*nodes
    ratio = s.edm_sigma/t.edm_sigma
    after = between((1 - ratio)*x0 + ratio*y[:, None, None], known, values)
    return (p[..., None]*mass*after).sum((1, 2))


def ct_limit(levels, y):
    "Consistency training's one jump from the noisiest of the levels."
    s, *noisier = [*levels][::-1]
    known = values = lattice(s.edm_sigma)
    for t in noisier:
        now = lattice(t.edm_sigma)
        known, values = now, ct_step(now, s, t, known, values)
        s = t
    return between(y, known, values)


# one jump from noise to the mixture, by each
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout='constrained', dpi=160,
                                  width_ratios=(1, 1.5))
z = torch.linspace(-2.2, 2.2, 401, dtype=D)[:, None]
y = 80*z
true = land(exact(noisy.signal*y, noisy, clean), clean)
few = levels_of(20)
euler = last(ddim(world, few, noisy.signal*y))/clean.signal
one_step = world(noisy.signal*y, noisy).x0
left.plot(z, true, '--', color='black', lw=1.4, zorder=3)
left.plot(z, euler, color=INK['model'], lw=1.2)
left.plot(z, ct_limit(few, y), color=INK['guidance'], lw=1.2)
left.plot(z, one_step, color='.6', lw=1.2)
left.text(-.2, -.35, 'denoiser, one step', color='.5')
left.text(-2.2, 1.9, 'exact: MeanFlow, reflow', color='black')
left.text(-2.2, 1.55, 'consistency distillation', color=INK['model'])
left.text(-2.2, 1.2, 'consistency training', color=INK['guidance'])
left.set(xlabel='noise at the start, in standard deviations', ylabel='where the jump lands',
         ylim=(-2.3, 2.3))
digit_model, _ = load_weights('mnist')
two_model, two_recipe = load_weights('mnist-2')
edges = grid(two_recipe.schedule, 2)
torch.manual_seed(3)
digit_noise = torch.randn(10, 1, 28, 28)[2:7]
digits = torch.arange(2, 7)
teacher, student = digit_model.given(digits), two_model.given(digits)
drawn = {'DPM-Solver++,\ntwo evaluations': last(dpmpp_2m(teacher, karras(2, 1., 6.), digit_noise)),
         'two learned\njumps': last(ddim(student, edges, digit_noise)),
         'DPM-Solver++,\neight evaluations': last(
             dpmpp_2m(teacher, teacher_levels(edges), digit_noise))}
right.imshow(show.tile(torch.cat([x.clamp(-1, 1) for x in drawn.values()]), 5),
             interpolation='nearest')
right.set(xticks=[], yticks=[14 + 29*i for i in range(3)])
right.set_yticklabels(drawn)
right.tick_params(left=False)
right.spines[:].set_visible(False)


# %%NBQA-CELL-SEP15d533
import torch


def distillation_loss(student, teacher, x0, sigmas, net_noise):
    # two neighbouring noise sizes for each sample
    i = torch.randint(1, len(sigmas), (len(x0),), device=x0.device)
    shape = [-1] + [1]*(x0.ndim - 1)
    high, low = sigmas[i].view(shape), sigmas[i - 1].view(shape)

    # a step of the teacher along the flow, and from there the student's own answer
    y = x0 + high*net_noise
    with torch.no_grad():
        slope = (y - teacher(y, high))/high
        target = student(y + (low - high)*slope, low)
    return (student(y, high) - target).square().mean()


# %%NBQA-CELL-SEP15d533
#| export
from typing import Callable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, Prediction, from_x0
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.oracle import Gaussians
from ddpm_lit.diffusion.sample import Sampler, last, steps
from ddpm_lit.diffusion.schedule import Grid
from ddpm_lit.diffusion.solve import StraightPath


# %%NBQA-CELL-SEP15d533
#| export systems.distil
import functools
from dataclasses import replace
from functools import partial
from typing import Callable
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, Model
from ddpm_lit.core.level import CLEAN, Level
from ddpm_lit.diffusion.jump import as_jump
from ddpm_lit.diffusion.loss import v_weight
from ddpm_lit.diffusion.schedule import Grid, grid
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.train.fit import has_bf16
from ddpm_lit.train.recipe import MAKERS, Recipe, find_recipe, made
from ddpm_lit.train.run import open_weights, recipe_of


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, and one Gaussian
import tempfile
from torch.nn.attention import SDPBackend, sdpa_kernel
from ddpm_lit.core.check import budget, close, expect_fail, keep_measurement, passed, redrawn
from ddpm_lit.core.check import measurement
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.sample import Counted
from ddpm_lit.diffusion.solve import gaussian_flow, heun
from ddpm_lit.train.measure import frechet_distance, in_parts, load_classifier
from ddpm_lit.train.run import go, open_run


def bell_of(variance):
    "The data N(0, variance) on a line."
    one = torch.ones(1, dtype=D)
    return Mixture(one, 0*one[None], variance**.5*one)


bell = bell_of(.25)


# %%NBQA-CELL-SEP15d533
# Figure 39.1: rms distances to the exact map from 401 starts; the digits: how far row two and row
# one are from the teacher's
far = {name: (v - true)[(z.abs() < 2.1)].square().mean().sqrt().item() for name, v in
       (('denoiser', one_step), ('training', ct_limit(few, y)), ('distillation', euler))}
print('rms distance to the exact map:', ', '.join(f'{k} {v:.2f}' for k, v in far.items()))
assert far['denoiser'] > 2*far['training'] > 3*far['distillation']
two_solver, two_jumps, eight = drawn.values()
near, away = ((x - eight).square().mean().item() for x in (two_jumps, two_solver))
print(f'mean squared distance to the teacher: two jumps {near:.3f}, 2M with two {away:.3f}')
assert near < .5*away
counted = Counted(student)
last(ddim(counted, edges, digit_noise))
passed('Figure 39.1: two jumps are two evaluations, and nearer to eight steps than 2M with two',
       close(counted.nfe, 2))


# %%NBQA-CELL-SEP15d533
# The plain loss against the library's, on the mixture, one sample at a time with the same level
torch.manual_seed(0)
sizes = torch.stack([t.edm_sigma for t in levels_of(10)]).flip(0)


def at_size(denoiser):
    "net(y, sigma) of a denoiser on a line."
    def net(y, sigma):
        t = from_edm_sigma(sigma)
        return denoiser(t.signal*y, t).x0
    return net


errors = []
for k in range(1, 10):
    x0, eps = torch.randn(2, 50, 1, dtype=D)
    pair = sizes[k - 1:k + 1]
    plain_value = distillation_loss(at_size(bell), at_size(world), x0, pair, eps)
    t, u = from_edm_sigma(pair[1]), from_edm_sigma(pair[0])
    x_t = t.signal*x0 + t.sigma*eps
    ours = library.semigroup_loss(library.by_denoiser(bell), library.by_denoiser(world),
                                  library.by_denoiser(bell), x_t, CLEAN, u, t)
    errors.append(close(plain_value, ours.mean(), 1e-9))
passed('the plain loss = semigroup_loss with s = CLEAN', *errors, by='nine pairs of levels')


# %%NBQA-CELL-SEP15d533
#| export
Jumper = Callable[[Tensor, Level, Level], Prediction]  # (x_t [b ...], t, s)


def by_denoiser(denoiser: Denoiser) -> Jumper:
    "Jump with the prediction at the start, as DDIM does. Eq. 39.2."
    def jumper(x, t, s):
        return denoiser(x, t)
    return jumper


def _gap(s: Level, t: Level) -> Tensor:  # s cleaner than t
    "1 - edm_sigma_s/edm_sigma_t, without cancellation."
    return -torch.expm1((t.log_snr - s.log_snr)/2)


def as_jump(x_s: Tensor, x_t: Tensor, s: Level, t: Level) -> Prediction:  # [b ...] each
    "The prediction whose DDIM step leads from x_t to x_s. Eq. 39.2."
    if (s.log_snr <= t.log_snr).any():
        raise Problem('A jump leads to a cleaner level: give s cleaner than t.')
    x0 = (x_s - s.sigma/t.sigma*x_t)/(s.signal*_gap(s, t))
    return from_x0(x0, x_t, t)


@torch.no_grad()
def jumps(jumper: Jumper, levels: Grid, x: Tensor) -> Iterator[Tensor]:
    "From level to level by jumps. Eq. 39.1-39.2."
    for t, s in steps(levels):
        p = jumper(x, t, s)
        x = s.signal*p.x0 + s.sigma*p.eps
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 39.2: random jumps land where they should and start where they did; and a denoiser's jumps
# are DDIM
torch.manual_seed(0)
lam = torch.empty(2, 500, 1, dtype=D).uniform_(-8, 8).sort(0).values
t, s = map(Level, lam)
x_t, x_s = torch.randn(2, 500, 1, dtype=D)
p = as_jump(x_s, x_t, s, t)
lands = close(s.signal*p.x0 + s.sigma*p.eps, x_s), close(t.signal*p.x0 + t.sigma*p.eps, x_t)
to_clean = close(as_jump(x_s, x_t, CLEAN, t).x0, x_s)
x = torch.randn(20, 1, dtype=D)
same = [close(a, b) for a, b in zip(jumps(by_denoiser(world), karras(9), x),
                                    ddim(world, karras(9), x), strict=True)]
passed('(39.2) a jump from its two ends; jumps of a denoiser = DDIM', *lands, to_clean, *same)


# %%NBQA-CELL-SEP15d533
#| export
def share_below(world: Gaussians, x: Tensor, t: Level) -> Tensor:  # [b 1] -> [b 1]
    "The share of x_t on the left of x, for data on a line. Eq. 39.3."
    std = (t.signal**2*world.std**2 + t.sigma**2).sqrt()
    z = (x - t.signal*world.mean.T)/std
    return (world.weight*torch.special.ndtr(z)).sum(1, keepdim=True)


def exact_jumper(world: Gaussians, reach: float = 40.) -> Jumper:
    "The flow map of data on a line, for states within +-reach. Eq. 39.3."
    def jumper(x, t, s):
        share = share_below(world, x, t)
        low = torch.full_like(x, -reach)
        high = torch.full_like(x, reach)
        for _ in range(80):  # halve the interval that holds x_s
            middle = (low + high)/2
            below = share_below(world, middle, s) < share
            low = torch.where(below, middle, low)
            high = torch.where(below, high, middle)
        return as_jump((low + high)/2, x, s, t)

    return jumper


# %%NBQA-CELL-SEP15d533
# Eq. 39.1, 39.3, 39.4: the exact map against the formula of one Gaussian, against 2,000 steps of
# Heun's method, as a semigroup, and its two derivatives by central differences
x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
t, u, s = map(Level, (-3., -.5, 1.5))
there = library.exact_jumper(bell)(x, t, s)
known = close(s.signal*land(there, s), gaussian_flow(x, s, t, 0., .5))
path = Grid(torch.linspace(-3., 1.5, 2001, dtype=D))
solved = last(heun(world, path, x))/s.signal
passed('(39.3) quantiles', known, close(land(exact(x, t, s), s), solved, 1e-6),
       by='one Gaussian in closed form; 2,000 steps of Heun')
halfway = u.signal*land(exact(x, t, u), u)
passed('(39.1) two jumps are one', close(land(exact(halfway, u, s), s), land(exact(x, t, s), s)))


def Y(y, size_s, size_t):
    "The map in the coordinate y."
    t, s = from_edm_sigma(size_t), from_edm_sigma(size_s)
    return land(exact(t.signal*y, t, s), s)


def slope(y, size):
    t = from_edm_sigma(size)
    return world(t.signal*y, t).eps


y = torch.linspace(-3, 3, 7, dtype=D)[:, None]
h = 1e-4
a, b = number(.4), number(1.7)
end_rate = (Y(y, a + h, b) - Y(y, a - h, b))/(2*h)
along = (Y(y + h*slope(y, b), a, b + h) - Y(y - h*slope(y, b), a, b - h))/(2*h)
passed('(39.4) Lagrangian and Eulerian', close(end_rate, slope(Y(y, a, b), a), 1e-6),
       close(along, 0*y, 1e-6), by='central differences')
still = (Y(y, a, b + h) - Y(y, a, b - h))/(2*h)
assert still.abs().max() > .1  # a start that stays where it is does move the end


# %%NBQA-CELL-SEP15d533
#| export
def join_jumps(p: Prediction,  # of the jump from t to u
               q: Prediction,  # of the jump from there to s
               s: Level, u: Level, t: Level) -> Prediction:
    "The jump from t to s that two jumps make. Eq. 39.6."
    alpha = _gap(u, t)/_gap(s, t)
    beta = _gap(s, u)/_gap(s, t)
    return Prediction((1 - beta)*p.x0 + beta*q.x0, alpha*p.eps + (1 - alpha)*q.eps)


# %%NBQA-CELL-SEP15d533
# Eq. 39.5, 39.6: the exact jump's eps against the mean slope by quadrature, and two joined jumps
# against one from end to end
x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
t, u, s = map(Level, (-3., -.5, 1.5))
p = exact(x, t, s)
ways = torch.linspace(s.edm_sigma, t.edm_sigma, 4001, dtype=D)
slopes = torch.stack([slope(land(exact(x[4:7], t, from_edm_sigma(k)), from_edm_sigma(k)), k)
                      for k in ways[1:-1:20]])
middle = (ways[1:-1:20] - ways[0])/(ways[-1] - ways[0])
ends = torch.stack([slope(land(p, s)[4:7], s.edm_sigma), slope(x[4:7]/t.signal, t.edm_sigma)])
slopes = torch.cat([ends[:1], slopes, ends[1:]])
middle = torch.cat([number([0.]), middle, number([1.])])
mean = torch.trapezoid(slopes, middle, dim=0)
passed('(39.5) eps of a jump = mean slope', close(p.eps[4:7], mean, 2e-4), by='quadrature')
assert (p.eps[4:7] - world(x[4:7], t).eps).abs().max() > .02  # the slope at the start is not

errors = []
for end in (s, CLEAN):
    whole = exact(x, t, end)
    first = exact(x, t, u)
    joined = join_jumps(first, exact(u.signal*land(first, u), u, end), end, u, t)
    errors += [close(joined.x0, whole.x0), close(joined.eps, whole.eps)]
passed('(39.6) two jumps joined', *errors, by='one exact jump, to a level and to CLEAN')


# %%NBQA-CELL-SEP15d533
#| export
def semigroup_loss(student: Jumper, first: Jumper, second: Jumper,
                   x_t: Tensor,  # [b ...]
                   s: Level, u: Level, t: Level) -> Tensor:  # [b]
    "A long jump against two short ones, which get no gradient. Eq. 39.7."
    with torch.no_grad():
        p = first(x_t, t, u)
        x_u = u.signal*p.x0 + u.sigma*p.eps
        target = join_jumps(p, second(x_u, u, s), s, u, t)
    return (target.x0 - student(x_t, t, s).x0).square().flatten(1).mean(1)


# %%NBQA-CELL-SEP15d533
# Eq. 39.7: zero for the exact map; progressive distillation by repeated halving is the run of its
# first teacher; the gradient reaches the student alone
x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
t, u, s = map(Level, (-3., -.5, 1.5))
zero_there = close(semigroup_loss(exact, exact, exact, x, s, u, t), 0.)
short = semigroup_loss(by_denoiser(world), exact, exact, x, s, u, t)
hand = (exact(x, t, s).x0 - world(x, t).x0).square()[:, 0]
passed('(39.7) zero for the exact map, the squared distance for a denoiser', zero_there,
       close(short, hand), by='hand')
assert short.max() > .01

scale = torch.ones((), dtype=D, requires_grad=True)


def student(x, t, s):
    p = world(x, t)
    return Prediction(scale*p.x0, p.eps)


semigroup_loss(student, student, student, x, s, u, t).sum().backward()
target = join_jumps(world(x, t), world(u.signal*land(world(x, t), u), u), s, u, t).x0
x0 = world(x, t).x0
passed('(39.7) its gradient', close(scale.grad, (2*(x0 - target)*x0).sum()), by='hand')


# %%NBQA-CELL-SEP15d533
#| export
def by_sampler(sampler: Sampler, denoiser: Denoiser, levels: Grid) -> Jumper:
    "A sampler's run over those levels that lie between, as one jump. Eq. 39.8."
    def jumper(x, t, s):
        on_the_way = [u for u in levels if t.log_snr < u.log_snr < s.log_snr]
        path = Grid(torch.stack([u.log_snr for u in (t, *on_the_way, s)]))
        x_s = last(sampler(denoiser, path, x))
        return as_jump(x_s, x, s, t)

    return jumper


# %%NBQA-CELL-SEP15d533
# Eq. 39.8: CD's loss is zero at the solver's run and not at the exact map; the product formula;
# progressive distillation of eight steps
few = levels_of(20)
run = by_sampler(ddim, world, few)
x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
errors = []
away = 0.
for t, u in [*few.pairs()][:-1]:
    cd = semigroup_loss(run, by_denoiser(world), run, x, clean, u, t)
    errors.append(close(cd, 0.))
    away = max(away, semigroup_loss(exact, by_denoiser(world), exact, x, clean, u, t).max())
passed("(39.8) consistency distillation's loss at the 20-level run of DDIM", *errors)
print(f'the same loss at the exact flow map: up to {away:.4f}')
assert away > 1e-3


def product(levels, S):
    k = torch.stack([t.edm_sigma for t in levels])
    return ((S + k[:-1]*k[1:])/(S + k[:-1]**2)).prod()


errors = []
one = torch.ones(1, 1, dtype=D)
for n, known in ((18, .42305), (40, .46487), (1280, .49889)):
    spread = product(levels_of(n), .25)*(.25 + 80**2)**.5
    by_run = last(ddim(bell, levels_of(n), noisy.signal*one))/clean.signal
    errors += [close(product(levels_of(n), .25), by_run.squeeze()), close(spread, known, 1e-5)]
    assert abs(spread - .5) > 1e-3  # the exact map would give .5
passed('(39.8) product', *errors, by="the library's DDIM; standard deviations .423, .465, .499")

eight = Grid(torch.linspace(-9, 9, 9, dtype=D))
levels = [*eight]
jumper = by_denoiser(bell)
while len(levels) > 2:
    table = {}
    for t, u, s in zip(levels[:-2:2], levels[1:-1:2], levels[2::2]):
        p = jumper(one, t, u)
        joined = join_jumps(p, jumper(u.signal*land(p, u), u, s), s, u, t)
        table[t.log_snr.item()] = joined.x0  # of a linear map, for x = 1

    def jumper(x, t, s, table=table):
        return from_x0(table[t.log_snr.item()]*x, x, t)
    levels = levels[::2]
t, s = levels
start_std = (t.alpha_bar*.25 + t.sigma**2).sqrt()
end = land(jumper(one, t, s), s)*s.signal
passed('(39.6) eight steps halved three times = eight steps of DDIM',
       close(end, last(ddim(bell, eight, one))),
       close(end*start_std, .377, 5e-4), by='sampler; standard deviation .377, not .5')
assert abs(gaussian_flow(one, s, t, 0., .5)*start_std - .377) > .1


# %%NBQA-CELL-SEP15d533
# Eq. 39.9: its lattice against weighted draws; for a Gaussian the loss with drawn pairs is smallest
# at CD's factors; rms distances to the exact map: CT, CD with Euler, CD with Heun
torch.manual_seed(0)
t, u, s = map(from_edm_sigma, (1.2, .8, .5))
known = lattice(s.edm_sigma)
f1 = ct_step(lattice(u.edm_sigma), s, u, known, known)
y = number([-1., -.4, .3, 1.5])
x0 = world.sample(400_000)
weight = (-(y - x0)**2/(2*t.edm_sigma**2)).softmax(0)
rho = u.edm_sigma/t.edm_sigma
drawn = (weight*between((1 - rho)*x0 + rho*y, lattice(u.edm_sigma), f1)).sum(0)
passed('(39.9) conditional mean', close(ct_step(y, u, t, lattice(u.edm_sigma), f1), drawn, .01),
       by='400,000 weighted draws')
euler = between(land(world(t.signal*y[:, None], t), u)[:, 0], lattice(u.edm_sigma), f1)
assert (euler - drawn).abs().max() > .02  # one step of DDIM, then the same f, is not

factor = 1.
x0, eps = torch.randn(2, 200_000, 1, dtype=D)
x0 = .5*x0
sizes = number([.1, .5, 1., 3.])
errors = []
for low, high in zip(sizes, sizes[1:]):
    t, u = from_edm_sigma(high), from_edm_sigma(low)

    def linear(c):
        return lambda x, t, s: from_x0(c*x/t.signal, x, t)

    def pair(x, t, s):
        return Prediction(x0, eps)

    x_t = t.signal*x0 + t.sigma*eps
    low_c, mid_c, high_c = (semigroup_loss(linear(c), pair, linear(factor), x_t, CLEAN, u, t).mean()
                            for c in (-1., 0., 1.))
    factor = ((low_c - high_c)/(2*(low_c + high_c - 2*mid_c))).item()
    errors.append(close(factor, product(Grid(-2*sizes[:list(sizes).index(high) + 1]
                                             .flip(0).log()), .25), .01))
passed('(39.8, 39.9) for a Gaussian, consistency training finds the same factors', *errors,
       by='the minimum of 200,000 drawn losses')

y = world.sample(20_000) + 80*torch.randn(20_000, 1, dtype=D)
true = land(exact(noisy.signal*y, noisy, clean), clean)
print('levels   training   distilled, Euler   distilled, Heun')
rms = {}
for n in (20, 40):
    start = noisy.signal*y
    found = (ct_limit(levels_of(n), y), last(ddim(world, levels_of(n), start))/clean.signal,
             last(heun(world, levels_of(n), start))/clean.signal)
    rms[n] = [((v - true)**2).mean().sqrt().item() for v in found]
    print(f'{n:4}      {rms[n][0]:.3f}          {rms[n][1]:.3f}              {rms[n][2]:.3f}')
wanted = {20: (.287, .15, .025), 40: (.21, .084, .006)}
passed('distances to the exact map', *(close(rms[n], number(wanted[n]), .006) for n in wanted),
       by='another program')
assert rms[40][0] > 2*rms[40][1] > 8*rms[40][2]


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def mean_flow_target(jumper: Jumper, x_t: Tensor, s: Level, t: Level,
                     v: Tensor,  # [b ...] eps - x0 of the pair, or the flow's
                     h: float = 1e-3) -> Tensor:  # [b ...], for eps - x0 of the jump
    "MeanFlow's target, its derivative a central difference. Eq. 39.11."
    path = StraightPath()
    z = x_t/(t.signal + t.sigma)

    def mean_velocity(step):
        near = Level(path(path.time(t) + step).log_snr.to(t.log_snr))
        p = jumper((z + step*v)*(near.signal + near.sigma), near, s)
        return p.eps - p.x0

    rate = (mean_velocity(h) - mean_velocity(-h))/(2*h)
    return v - (path.time(t) - path.time(s)).to(x_t)*rate


# %%NBQA-CELL-SEP15d533
# Eq. 39.10, 39.11: both sides for the exact map; the usual mistakes; the mean over drawn pairs
path = StraightPath()
t, s = path(number(.7)), path(number(.2))
x = number([[.37]])*(t.signal + t.sigma)
p = exact(x, t, s)
w = world(x, t)
v = w.eps - w.x0
target = mean_flow_target(exact, x, s, t, v)
passed('(39.11) both sides', close(target, p.eps - p.x0, 2e-6),
       close(p.eps - p.x0, -.57843504, 1e-8), by='the exact map')
rate = (v - target)/.5


def other(tau, z, r):
    t, s = path(number(tau)), path(number(r))
    p = exact(z*(t.signal + t.sigma), t, s)
    return p.eps - p.x0


z = number([[.37]])
h = 1e-4
held = (other(.7 + h, z + h*v, .2 + h) - other(.7 - h, z - h*v, .2 - h))/(2*h)
wrong = {'s moves along': v - .5*held, 'sign': v + .5*rate, 'v forgotten': -.5*rate}
print('target', f'{target.item():.3f};', ', '.join(f'{k} {g.item():.3f}' for k, g in wrong.items()))
assert min((g - target).abs() for g in wrong.values()) > .03

k, m = t.edm_sigma, s.edm_sigma


def eps_of(y, size):
    t = from_edm_sigma(size)
    return exact(t.signal*y, t, s).eps


y = x/t.signal
total = (eps_of(y + h*w.eps, k + h) - eps_of(y - h*w.eps, k - h))/(2*h)
passed('(39.10) both sides', close(w.eps - (k - m)*total, p.eps, 1e-6), by='the exact map')

# 400,000 data, weighted by how likely each is given x_t: the target is linear in v
torch.manual_seed(0)
x0 = world.sample(400_000)
weight = (-((x - t.signal*x0)/t.sigma)**2/2).softmax(0)
pairs = (x - t.signal*x0)/t.sigma - x0
close((weight*pairs).sum(), v.item(), .01)
one_by_one = torch.cat([mean_flow_target(exact, x, s, t, c) for c in (v - 1, v + 1)]).mean()
passed('(39.11) the target is linear in v', close(one_by_one, target.item(), 1e-5))


# %%NBQA-CELL-SEP15d533
# Eq. 39.11: on the digit network the central difference, against forward-mode differentiation with
# PyTorch's plain attention; its fast attention has none
three = digit_model.given(3)
torch.manual_seed(0)
x, v = torch.randn(2, 1, 1, 28, 28)
t, s = (Level(torch.tensor(l)) for l in (-1., 2.))
by_difference = mean_flow_target(by_denoiser(three), x, s, t, v, 1e-3)
z = x/(t.signal + t.sigma)


def velocity(z, tau):
    t = Level(2*((-tau).log1p() - tau.log()))
    p = three(z*(t.signal + t.sigma), t)
    return p.eps - p.x0


tau = t.sigma/(t.signal + t.sigma)
both = (z, tau), (v, torch.ones(()))
with sdpa_kernel(SDPBackend.MATH):
    _, rate = torch.func.jvp(velocity, *both)
with expect_fail(kind=NotImplementedError, show=False):
    torch.func.jvp(velocity, *both)
width = tau - s.sigma/(s.signal + s.sigma)
relative = (by_difference - (v - width*rate)).norm()/(width*rate).norm()
passed('(39.11) the central difference on digits', close(relative, 0., 5e-3),
       by='forward-mode differentiation; relative')


# %%NBQA-CELL-SEP15d533
# Eq. 39.12: four steps of Euler along the second flow, found by halving, and along the first
e = torch.linspace(-2.5, 2.5, 11, dtype=D)[:, None]
noise_end = Level(number(-60.))


def X(e):
    return exact(e, noise_end, CLEAN).x0


def second_velocity(z, tau):
    low, high = torch.full_like(z, -9.), torch.full_like(z, 9.)
    for _ in range(60):
        middle = (low + high)/2
        below = (1 - tau)*X(middle) + tau*middle < z
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low - X(low)


def first_velocity(z, tau):
    t = StraightPath()(number(tau - 1e-12))
    p = world(z*(t.signal + t.sigma), t)
    return p.eps - p.x0


def rms_of(velocity, n):
    z = e
    for i in range(n):
        z = z - velocity(z, 1 - i/n)/n
    return (z - X(e)).square().mean().sqrt()


straight = [close(rms_of(second_velocity, n), 0., 1e-9) for n in (1, 4)]
bent = [rms_of(first_velocity, n).item() for n in (1, 4)]
passed('(39.12) one and four steps of the second flow', *straight, by='quantiles')
print(f'the first flow: {bent[0]:.2f} and {bent[1]:.3f}')
passed('the first flow is bent, and one or four steps miss its end',
       close(number(bent), number([1.42, .238]), .005), by='the text')


# %%NBQA-CELL-SEP15d533
# Eq. 39.13: a generator G = theta z of data N(0, .25): the mean by a quadrature that is exact for
# squares, against the derivative of the KL of two Gaussians by differences
theta, size = .3, number(.7)
t = from_edm_sigma(size)


def KL(theta):
    ratio = (theta**2 + size**2)/(.25 + size**2)
    return (ratio - 1 - ratio.log())/2


zs = number([[1.], [1.], [-1.], [-1.]])
es = number([[1.], [-1.], [1.], [-1.]])
y = theta*zs + size*es


def D_of(variance):
    return bell_of(variance)(t.signal*y, t).x0


gradient = ((D_of(theta**2) - D_of(.25))/size**2*zs).mean()
numeric = (KL(theta + 1e-5) - KL(theta - 1e-5))/2e-5
passed('(39.13) gradient', close(gradient, numeric, 1e-8), close(gradient, -.111836, 1e-6),
       by='KL by differences')
lagging = ((D_of(.2**2) - D_of(.25))/size**2*zs).mean()  # a fake denoiser of older samples
assert abs(lagging - numeric) > .02


# %%NBQA-CELL-SEP15d533
# Eq. 39.14: the guided flow by Heun's method; guiding the distilled map again
V, U, weight = .5, 1., 3.
inner, outer = bell_of(V), bell_of(U)


def guided(x, t):
    p, q = inner(x, t), outer(x, t)
    return Prediction(p.x0 + weight*(p.x0 - q.x0), p.eps + weight*(p.eps - q.eps))


path = Grid(torch.linspace(-24, 24, 4001, dtype=D))
one = torch.ones(1, 1, dtype=D)
end = last(heun(guided, path, one))**2
passed('(39.14) the guided flow', close(end, V**(1 + weight)*U**-weight, 1e-4),
       close(V**(1 + weight)*U**-weight, .0625), by="4,000 steps of Heun's method")
tilt = 1/((1 + weight)/V - weight/U)
assert abs(end.item() - tilt) > .1 and abs(tilt - .2) < 1e-9
inner = bell_of(.0625)  # a network that has learned the guided flow, guided again
twice = last(heun(guided, path, one))**2
print(f'variance: guided once {end.item():.4f}, twice {twice.item():.6f}')


# %%NBQA-CELL-SEP15d533
#| export systems.distil
def teacher_levels(edges: Grid) -> Grid:  # where jumps start, then CLEAN
    "Levels of a run that meets all edges, four or more to each, then CLEAN. Eq. 10.10."
    each = max(4, 8//len(edges))
    sizes = Level(edges.log_snr[:-1]).edm_sigma
    ends = torch.cat([sizes, (sizes[-1:]/2).clamp(max=.03)])
    ends[0] = ends[0].clamp(max=60.)  # noisier states are noise alone

    # even in the root of order 7 from edge to edge (10.10)
    root = ends**(1/7)
    parts = [torch.linspace(a, b, each + 1, dtype=torch.float64)[:-1]
             for a, b in zip(root[:-2], root[1:-1])]
    parts.append(torch.linspace(root[-2], root[-1], each, dtype=torch.float64))
    return Grid(torch.cat([-14*torch.cat(parts).log(), CLEAN.log_snr[None]]))


def _teacher_pairs(batch: int, seed: int, device: torch.device,
                   teacher: str, edges: Grid,
                   runs: int = 5120,  # that are drawn; then the first comes again
                   ) -> Callable[[int], tuple]:
    "Both ends of jumps on runs of a teacher, [b 2 ...], and its labels. Eq. 39.7."
    n = len(edges)
    if batch % n:
        raise Problem(f'A batch has as many of each of the {n} jumps: make `batch` '
                      f'{max(1, batch//n)*n}.')
    model, recipe = open_weights(teacher)
    model = model.to(device)
    levels = teacher_levels(edges)
    each = len(levels)//n
    kept = max(1, runs*n//batch)

    @functools.lru_cache(kept)
    def drawn(step):
        g = torch.Generator().manual_seed(seed*1_000_003 + step)
        noise = torch.randn(batch//n, *recipe.shape, generator=g).to(device)
        label = None
        if recipe.classes:
            label = torch.randint(recipe.classes, (batch//n,), generator=g)
            label[torch.rand(batch//n, generator=g) < .1] = -1
            label = label.to(device)

        # the states at the edges; the last jump comes first
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            states = [*dpmpp_2m(model.given(label), levels, noise)]
        at = [noise, *states[each - 1::each]][::-1]
        pairs = torch.stack([torch.cat(at[1:]), torch.cat(at[:-1])], 1)
        return (pairs,) if label is None else (pairs, label.repeat(n))

    return lambda step: drawn(step % kept)


# %%NBQA-CELL-SEP15d533
#| export systems.distil
def jump_loss(denoiser: Denoiser,
              pairs: Tensor,  # [b 2 ...] where jumps start and end
              t: Level,       # as drawn: it says which of the jumps
              eps: Tensor,
              edges: Grid) -> Tensor:  # [b]
    "The norm of the error of v, over all jumps from noise to data. Eq. 39.2, 39.7."
    x_t, x_s = pairs.unbind(1)
    log_snr = edges.log_snr.to(x_t)

    # how many jumps start at noisier levels; that one's ends
    drawn = t.log_snr.reshape(-1, 1)
    k = (drawn >= log_snr[1:-1]).sum(1)
    t, s = (Level(log_snr[i]).like(x_t) for i in (k, k + 1))

    target = as_jump(x_s, x_t, s, t).x0
    error = (target - denoiser(x_t, t).x0).square().flatten(1).sum(1)
    return (v_weight(t.log_snr).reshape(-1)*error + .01).sqrt()


# %%NBQA-CELL-SEP15d533
#| export systems.distil
@MAKERS.add('distilled')
def distilled(name: str,
              of: str | dict,  # the teacher's recipe: its name, or its spec
              jumps: int) -> Recipe:
    "The network of a recipe, which jumps from noise to data in so many steps. Eq. 39.7."
    if type(jumps) is not int or not 1 <= jumps <= 16:
        raise Problem(f'No network is distilled into {jumps} steps: ask for 1 to 16.')
    theirs = find_recipe(of) if isinstance(of, str) else made(of)
    edges = grid(theirs.schedule, jumps)

    def batches(size, seed, device):
        raise Problem(f'The teacher of {name} is not known here: name its weights.')

    return replace(theirs, name=name, batches=batches, limit=None, sampler='ddim',
                   loss=partial(jump_loss, edges=edges), steps=1000, source=None,
                   batch=128//jumps*jumps, sample_steps=jumps, jumps=jumps,
                   settings=dict(lr=1e-3, warmup=40, halflife=100.))


def student_of(teacher: str,  # as for `open_weights`
               jumps: int) -> Recipe:
    "A recipe that distils weights into so many jumps; they also begin it. Eq. 39.7."
    theirs = recipe_of(teacher)
    with torch.random.fork_rng():
        kind = type(theirs.build()) if theirs.sampler else None
    if theirs.jumps:
        raise Problem(f'{teacher} is distilled and only jumps: name the weights that it '
                      'was distilled from.')
    if kind is not Model:
        raise Problem(f'{teacher} is no denoiser of noise and labels, so there is no '
                      'flow to jump along: name other weights.')
    spec = dict(maker='distilled', name=f'{theirs.name}-{jumps}',
                of=theirs.spec or theirs.name, jumps=jumps)
    recipe = made(spec)
    edges = grid(theirs.schedule, jumps)
    return replace(recipe, batches=partial(_teacher_pairs, teacher=teacher, edges=edges))


# %%NBQA-CELL-SEP15d533
# Measured: distances in 1 to 8 evaluations, three seeds, stored; the grids of DDIM and 2M are the
# best of a few Karras grids (edm_sigma at their ends), chosen on seed 0
label = torch.arange(100) % 10
ends = {('ddim', 1): (.01, 5.), ('ddim', 2): (1., 6.), ('ddim', 4): (.3, 12.),
        ('ddim', 8): (.2, 20.), ('dpmpp_2m', 1): (.01, 5.), ('dpmpp_2m', 2): (1., 6.),
        ('dpmpp_2m', 4): (.2, 20.), ('dpmpp_2m', 8): (.2, 20.)}


@functools.cache
def jumping(n):
    "A network that jumps n times: two jumps ship, one jump is trained here, in ten minutes."
    if n == 2:
        return two_model
    with tempfile.TemporaryDirectory() as here:
        run = open_run(f'{here}/mnist-1', student_of('mnist', 1))
        for _ in go(run, 1e9):
            pass
        return load_weights(str(run.weights))[0]


def hundred(name, n, seed, part):
    "A hundred digits in n evaluations, ten of each label."
    torch.manual_seed(1000*seed + part)
    noise = torch.randn(100, 1, 28, 28)
    if name == 'jumps':
        return last(ddim(jumping(n).given(label), grid(two_recipe.schedule, n), noise))
    run = dict(ddim=ddim, dpmpp_2m=dpmpp_2m)[name]
    return last(run(digit_model.given(label), karras(n, *ends[name, n]), noise))


book = measurement('few-steps', 'Frechet distance of 500 digits from the 10,000 test digits, '
                   'in features of the shipped classifier, by evaluations',
                   'DDPM_LIT_BUDGET=full python tools/nb.py run nbs/39_few_steps.ipynb')
have = {(r['sampler'], r['evaluations'], r['seed']) for r in book['rows']}
wanted = [(*way, seed) for way in [*ends, ('jumps', 1), ('jumps', 2)] for seed in range(3)]
missing = budget([], [w for w in wanted if w not in have])
if missing:
    net = load_classifier()
    real = in_parts(net.features, to_unit(mnist('test').pixels))
for name, n, seed in missing:
    x = torch.cat([hundred(name, n, seed, part) for part in range(5)])
    distance = frechet_distance(in_parts(net.features, x), real)
    read = (in_parts(net, x).argmax(1) == label.repeat(5)).double().mean().item()
    book['rows'].append(dict(sampler=name, evaluations=n, seed=seed, n=500,
                             frechet=round(distance, 4), read=round(read, 4),
                             first=[round(v, 5) for v in x[:10].mean((1, 2, 3)).tolist()]))
    keep_measurement('few-steps', book)


def distances(name, n):
    "The stored distances, one for each seed."
    return torch.tensor([r['frechet'] for r in book['rows']
                         if (r['sampler'], r['evaluations']) == (name, n)])


for way in (('jumps', 2), ('dpmpp_2m', 4)):
    row = next(r for r in book['rows'] if (r['sampler'], r['evaluations'], r['seed']) == (*way, 0))
    passed(f'the stored digits of {way[0]}, {way[1]} evaluations',
           redrawn(hundred(*way, 0, 0)[:10].mean((1, 2, 3)), row['first']),
           by='the first ten drawn again')


# %%NBQA-CELL-SEP15d533
# Figure 39.2: Frechet distance by evaluations
fig, ax = plt.subplots(figsize=(7, 2.5), layout='constrained', dpi=160)
at = (1, 2, 4, 8)
for name, text, colour in (('ddim', 'DDIM', '.5'), ('dpmpp_2m', 'DPM-Solver++ (2M)', 'black')):
    values = torch.stack([distances(name, n) for n in at])
    ax.plot(at, values.mean(1), '-', color=colour, lw=1)
    ax.plot(at, values, 'o', color=colour, ms=3)
    ax.text(8.2, values[-1].mean(), text, color=colour, va='center')
for n in (1, 2):
    ax.plot([n]*3, distances('jumps', n), 's', color=INK['model'], ms=4)
ax.text(1.06, distances('jumps', 1).mean(), 'one jump, two jumps:\ndistilled', color=INK['model'],
        va='bottom')
ax.set(xscale='log', yscale='log', xticks=at, xlim=(.9, 12), ylim=(.2, 90),
       xlabel='evaluations of the network', ylabel='Fréchet distance')
ax.set_xticklabels(map(str, at))
ax.minorticks_off()


# %%NBQA-CELL-SEP15d533
# Figure 39.2, from the stored rows: every seed of one jump and of two is nearer than the solvers
# with as many evaluations by a factor of ten; they are about as near as 2M with four
ways = ('jumps', 1), ('jumps', 2), ('dpmpp_2m', 1), ('dpmpp_2m', 2), ('dpmpp_2m', 4)
once, jumped, one, two, four = (distances(*way) for way in ways)
print(f'one jump {once.mean():.2f}, two jumps {jumped.mean():.2f}; '
      f'2M with 2: {two.mean():.1f}, with 4: {four.mean():.2f}, '
      f'with 8: {distances("dpmpp_2m", 8).mean():.2f}; '
      f'DDIM with 8: {distances("ddim", 8).mean():.2f}')
perfect = measurement('solve-mnist')['rows']['floor']['500']
print(f'expected of 500 real digits (27.3): {perfect}')
assert len(once) == len(jumped) == 3
for row, solver in ((once, one), (jumped, two)):
    assert row.max() < .57 and 10*row.max() < solver.min()
    assert abs(row.mean() - four.mean()) < .1
assert abs(once.mean() - jumped.mean()) < .1

# the recipe: its levels, its pairs and its loss, on two runs of the teacher
start, middle, _ = edges
levels = teacher_levels(edges)
one_jump, three_jumps = (teacher_levels(grid(two_recipe.schedule, n)) for n in (1, 3))
sizes = [t.edm_sigma for t in levels]
passed('the fifth level of the teacher is where the jumps meet',
       close(levels.log_snr[4], middle.log_snr), close(sizes[0], 60.), close(sizes[7], .03),
       close(2*sizes[2]**(1/7), sizes[0]**(1/7) + sizes[4]**(1/7)),
       close(one_jump.log_snr[:8], karras(8, .03, 60.).log_snr[:8]),
       close(three_jumps.log_snr[[4, 8]], two_recipe.schedule([2/3, 1/3]).log_snr))
two_edges = Grid(torch.cat([-2*number([5., .04]).log(), CLEAN.log_snr[None]]))
close(teacher_levels(two_edges).log_snr[7], -2*math.log(.02))
recipe = student_of('mnist', 2)
cpu = torch.device('cpu')
pairs, labels = recipe.batches(4, 0, cpu)(0)
assert pairs.shape == (4, 2, 1, 28, 28) and (labels[:2] == labels[2:]).all()
passed('the first jump ends where the second begins', close(pairs[2:, 1], pairs[:2, 0], 0))
kept = recipe.batches(4, 0, cpu, runs=4)  # type: ignore[call-arg]
again = [kept(step)[0] for step in (0, 1, 2)]
assert (again[0] == again[2]).all() and (again[0] != again[1]).any()
known = last(dpmpp_2m(digit_model.given(labels[:2]), levels, pairs[2:, 0]))
passed("the pairs are the teacher's run", close(pairs[:2, 1], known, .3), by='in float32')
assert (pairs[:2, 1] - known).square().mean() < 1e-3

t = Level(torch.tensor([3., 1., -1., -6.])).like(pairs)
v_error = []
for i, (a, b) in enumerate(((middle, CLEAN),)*2 + ((start, middle),)*2):
    a, b = Level(a.log_snr.float()), Level(b.log_snr.float())
    x_t, x_s = pairs[i:i + 1, 0], pairs[i:i + 1, 1]
    p = two_model.given(labels[i:i + 1])(x_t, a)
    q = as_jump(x_s, x_t, b, a)
    error = a.signal*(q.eps - p.eps) - a.sigma*(q.x0 - p.x0)
    v_error.append((error.square().sum() + .01).sqrt())
ours = recipe.loss(two_model.given(labels), pairs, t, torch.randn_like(pairs))
passed('its loss is the norm of the error of v', close(ours, torch.stack(v_error), .02), by='hand')

# what it is, and what is refused
assert (recipe.name, recipe.sample_steps, recipe.batch) == ('mnist-2', 2, 128)
assert recipe.spec == two_recipe.spec and student_of('mnist', 3).batch == 126
labelled = student_of('diffusion2015', 2).batches(2, 0, cpu)
assert len(labelled(0)) == 1  # a teacher without labels
for wrong, words in ((lambda: recipe.batches(5, 0, cpu), 'make `batch` 4'),
                     (lambda: two_recipe.batches(4, 0, cpu), 'teacher of mnist-2'),
                     (lambda: student_of('mnist', 0), 'into 0 steps: ask for 1 to 16'),
                     (lambda: student_of('mnist', math.inf), 'into inf steps'),
                     (lambda: student_of('mnist-2', 1), 'only jumps'),
                     (lambda: student_of('clip', 1), 'no denoiser of noise')):
    with expect_fail(words, Problem, show=False):
        wrong()


# %%NBQA-CELL-SEP15d533
x = torch.zeros(1, 1, dtype=D)
with expect_fail('cleaner level', Problem):
    as_jump(x, x, Level(-1.), Level(1.))


# %%NBQA-CELL-SEP15d533
#| eval: false
my_guess = ...


def multiplier(tau):  # v = multiplier(tau) z
    return (tau - .25*(1 - tau))/(tau**2 + .25*(1 - tau)**2)


close(abs(math.prod(1 - multiplier(1 - i/128)/128 for i in range(128))), my_guess, .01)


# %%NBQA-CELL-SEP15d533
#| eval: false
second = ...
close(second, .46397, 2e-5)


# %%NBQA-CELL-SEP15d533
#| eval: false
alpha = ...


def half_fisher(theta):  # E (D_real - D_fake)^2/2
    difference = .25/(.25 + .49) - theta**2/(theta**2 + .49)
    return difference**2*(theta**2 + .49)/2


def sid_gradient(alpha):
    theta = torch.tensor(.3, dtype=D, requires_grad=True)
    G = theta*zs
    y = G + .7*es
    real = .25/(.25 + .49)*y
    fake = .09/(.09 + .49)*y
    ((real - fake)*(real - G - alpha*(real - fake))).mean().backward()
    return theta.grad


slope_there = (half_fisher(.3 + 1e-5) - half_fisher(.3 - 1e-5))/2e-5
close(sid_gradient(alpha), slope_there, 1e-8)


# %%NBQA-CELL-SEP15d533
# solution 1: that of 128 steps, .494: the semigroup holds exactly, and the finest pair decides
my_guess = .494


def multiplier(tau):  # v = multiplier(tau) z
    return (tau - .25*(1 - tau))/(tau**2 + .25*(1 - tau)**2)


close(abs(math.prod(1 - multiplier(1 - i/128)/128 for i in range(128))), my_guess, .01)
close(abs(math.prod(1 - multiplier(1 - i/128)/128 for i in range(128))), .49425, 1e-5)


# %%NBQA-CELL-SEP15d533
# solution 2: the factor from that level down, times the deviation of the first result and noise
all_levels = levels_of(40)
sizes = torch.stack([t.edm_sigma for t in all_levels])
i = (sizes - .821).abs().argmin()
first_std = product(all_levels, .25)*(.25 + 80**2)**.5
second = product(Grid(all_levels.log_snr[i:]), .25)*(first_std**2 + sizes[i]**2).sqrt()
close(second, .46397, 2e-5)


# %%NBQA-CELL-SEP15d533
# solution 3: 1/2. With a y and b y for the two predictions, the gradients are 2 theta (a - b) times
# a - 1 - alpha (a - b), and times (a + b)/2 - 1. The authors' 1 to 1.2 gives another gradient
alpha = .5


def half_fisher(theta):  # E (D_real - D_fake)^2/2
    difference = .25/(.25 + .49) - theta**2/(theta**2 + .49)
    return difference**2*(theta**2 + .49)/2


def sid_gradient(alpha):
    theta = torch.tensor(.3, dtype=D, requires_grad=True)
    G = theta*zs
    y = G + .7*es
    real = .25/(.25 + .49)*y
    fake = .09/(.09 + .49)*y
    ((real - fake)*(real - G - alpha*(real - fake))).mean().backward()
    return theta.grad


slope_there = (half_fisher(.3 + 1e-5) - half_fisher(.3 - 1e-5))/2e-5
close(sid_gradient(alpha), slope_there, 1e-8)
assert min((sid_gradient(other) - slope_there).abs() for other in (0., 1., 1.2)) > .005
