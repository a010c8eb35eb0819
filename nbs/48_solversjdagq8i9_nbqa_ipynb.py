# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.multistep


# %%NBQA-CELL-SEP7dc948
# Figure 48.1: errors on a mixture whose flow is known, and distances of digits
import math
from functools import partial
import matplotlib.pyplot as plt
import torch
from ddpm_lit.core.check import measurement, setup
from ddpm_lit.core.level import CLEAN, Level
from ddpm_lit.diffusion import multistep as library  # the first pages use what is built below
from ddpm_lit.diffusion.oracle import Mixture
from ddpm_lit.diffusion.sample import ddim, last
from ddpm_lit.diffusion.schedule import Grid
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.show import INK

setup()
D = torch.float64


def number(v):
    "Numbers in float64."
    return torch.tensor(v, dtype=D)


def even(n, lo=-8., hi=8.):
    "n equal steps of log SNR."
    return Grid(torch.linspace(lo, hi, n + 1, dtype=D))


world = Mixture(number([.3, .7]), number([[-1.5], [.8]]), number([.25, .4]))
torch.manual_seed(0)
starts = torch.randn(400, 1, dtype=D)
ends = last(library.multistep(world, even(2000), starts, 4))


def error(solver, n):
    "The rms distance from the exact end of the flow after n even steps."
    return (last(solver(world, even(n), starts)) - ends).square().mean().sqrt().item()


SOLVERS = {'DDIM': ddim, 'DEIS': library.deis, '2M': dpmpp_2m,
           '3M': partial(library.multistep, order=3),
           'UniPC': partial(library.multistep, order=2, correct=True)}
sizes = (10, 20, 40, 80, 160, 320)
errors = {name: [error(solver, n) for n in sizes] for name, solver in SOLVERS.items()}


def slope(name):
    "How often the error halves when steps are halved."
    return math.log2(errors[name][-2]/errors[name][-1])


def distances(name, n):
    "Stored Fréchet distances of digits, one for each seed."
    return number([r['frechet'] for r in measurement('solvers')['rows']
                   if (r['sampler'], r['evaluations']) == (name, n)])


fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.7), layout='constrained', dpi=160)
inks = dict(DDIM='.6', DEIS='.4', **{'2M': 'black', '3M': INK['guidance'], 'UniPC': INK['model']})
for name, found in errors.items():
    left.loglog(sizes, found, 'o-', ms=3, lw=1, color=inks[name])
    left.text(350, found[-1]*dict(UniPC=1.3).get(name, 1/1.3 if name == '3M' else 1),
              f'{name}, order {slope(name):.1f}', color=inks[name], va='center')
left.set(xlabel='steps', ylabel='error on the mixture', xlim=(9, 2600), xticks=sizes)
left.set_xticklabels(map(str, sizes))
left.minorticks_off()
few = (5, 8, 12)
shift = dict(zip(inks, (-.3, -.15, 0., .15, .3)))
for name in inks:
    if len(distances(name, 5)):
        for n in few:
            at = n + 1.2*shift[name]
            right.plot([at]*3, distances(name, n), 'o', ms=3, color=inks[name])
        right.text(6.3 + 1.7*[*inks].index(name), .82, name, color=inks[name], ha='center')
right.axhline(.47, color='.8', lw=1, zorder=0)
right.text(10., .475, '500 real digits', color='.6', ha='center', va='bottom', fontsize=8)
right.set(xlabel='evaluations', ylabel='Fréchet distance of digits', xticks=few, ylim=(.2, .9),
          xlim=(4, 13.2))


# %%NBQA-CELL-SEP7dc948
import torch


@torch.no_grad()
def solve(x0_of, lams, x, order=3):
    past = []  # (place, prediction), the latest first
    for here, there in zip(lams[:-1], lams[1:]):
        past = [(here, x0_of(x, here)), *past][:order]
        h, k = there - here, torch.arange(len(past)).double()
        # moments of e^(u - h) from 0 to h
        m = [-torch.expm1(-h)]
        for p in range(1, len(past)):
            m.append(h**p - p*m[-1])
        if len(past) == 2:
            m[1] = h/2*m[0]  # as 2M takes it (32.7)
        # weights that are exact for polynomials through the past
        u = torch.stack([place - here for place, _ in past])
        w = torch.linalg.solve(u**k[:, None], torch.stack(m))
        signal_s, sigma_s = torch.sigmoid(2*there).sqrt(), torch.sigmoid(-2*there).sqrt()
        x = sigma_s/torch.sigmoid(-2*here).sqrt()*x
        x = x + signal_s*sum(a*x0 for a, (_, x0) in zip(w, past))
    return x


# %%NBQA-CELL-SEP7dc948
#| export
import math
from functools import partial
from typing import Iterator, Sequence
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser
from ddpm_lit.core.problem import Problem
from ddpm_lit.diffusion.sample import SAMPLERS, steps
from ddpm_lit.diffusion.schedule import Grid


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports
import itertools
from ddpm_lit.core.check import budget, close, expect_fail, keep_measurement, passed, redrawn
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.sample import Counted, ancestral
from ddpm_lit.diffusion.schedule import karras
from ddpm_lit.diffusion.solve import gaussian_flow
from ddpm_lit.train.measure import frechet_distance, in_parts, load_classifier
from ddpm_lit.train.weights import load_weights


# %%NBQA-CELL-SEP7dc948
# The plain solver against the library's, on the mixture
def plain_x0(x, lam):
    return world(x, Level(2*lam)).x0


for order in (1, 2, 3):
    plain = solve(plain_x0, torch.linspace(-4., 4., 21, dtype=D), starts, order)
    ours = last(library.multistep(world, even(20), starts, order))
    error_of_plain = close(plain, ours, 1e-10)
passed('plain solver = library, orders 1 to 3', error_of_plain)


# %%NBQA-CELL-SEP7dc948
#| export
def exponential_moments(h: float, k: int, eta: float = 0.) -> Tensor:  # [k]
    "Integrals of u^p, p < k, from 0 to h, under the weight of a step. Eq. 48.2, 48.6."
    rate = 1 + eta
    found = [-math.expm1(-rate*h)]
    for p in range(1, k):
        found.append(h**p - p/rate*found[-1])
    return torch.tensor(found, dtype=torch.float64)


def weights_at(places: Sequence[float], moments: Tensor) -> Tensor:  # [k], [k] -> [k]
    "Weights of values at these places, exact for polynomials below order k. Eq. 48.3."
    p = torch.arange(len(places), dtype=torch.float64)
    powers = torch.tensor(places, dtype=torch.float64)**p[:, None]
    return torch.linalg.solve(powers, moments)


# %%NBQA-CELL-SEP7dc948
# Eq. 48.1: the flow of one Gaussian, whose ends are known; Eq. 48.2, 48.3: by a fine sum, and for
# a polynomial of the highest order
def fine(f, h, n=20_000):
    "An integral from 0 to h by Simpson's rule."
    u = torch.linspace(0, h, 2*n + 1, dtype=D)
    w = torch.ones_like(u)
    w[1:-1:2], w[2:-1:2] = 4, 2
    return (w*f(u)).sum()*h/(6*n)


one = torch.ones(1, dtype=D)
bell = Mixture(one, .4*one[None], .5*one)
t, s = Level(number(-3.)), Level(number(1.))
x_t = number([[1.3]])


def on_the_way(u):
    "The predictions along the exact flow."
    levels = [Level(t.log_snr + 2*v) for v in u]
    return torch.cat([bell(gaussian_flow(x_t, to, t, .4, .5), to).x0 for to in levels])[:, 0]


integral = fine(lambda u: (u - 2).exp()*on_the_way(u), 2., 200)
by_integral = s.sigma/t.sigma*x_t + s.signal*integral
passed('(48.1) the flow of a Gaussian', close(by_integral, gaussian_flow(x_t, s, t, .4, .5), 1e-8),
       by='(32.2)')

for h, eta in ((.7, 0.), (2.5, 0.), (.7, 1.)):
    sums = torch.stack([fine(lambda u: (1 + eta)*((1 + eta)*(u - h)).exp()*u**p, h)
                        for p in range(4)])
    moment_error = close(exponential_moments(h, 4, eta), sums, 1e-9)
passed('(48.2) moments, also with fresh noise (48.6)', moment_error, by="Simpson's rule")

places = [0., -.5, -.8, -1.5]
w = weights_at(places, exponential_moments(.7, 4))
cubic = [.3, -1., .7, 2.]  # of u^0, u^1, ...


def value(u):
    return sum(c*u**p for p, c in enumerate(cubic))


passed('(48.3) a cubic through four places', close((w*value(number(places))).sum(),
       fine(lambda u: (u - .7).exp()*value(u), .7), 1e-9), by="Simpson's rule")


# %%NBQA-CELL-SEP7dc948
#| export
def _used(past: list, there: float) -> list:
    "Of the past what a step may use: all of it, unless the step is too long. Eq. 32.13."
    here = past[0][0]
    reach = 2*abs(here - past[1][0]) if len(past) > 1 else 0.
    return past if abs(there - here) <= reach else past[:1]


def _integrated(past: list, here: float, h: float, eta: float) -> Tensor:
    "The integral of a polynomial through these predictions. Eq. 48.1-48.3."
    # a step to CLEAN, or from pure noise, forgets the state
    if math.isinf(h):
        return past[0][1]
    moments = exponential_moments(h, len(past), eta)
    if len(past) == 2:
        moments[1] = h/2*moments[0]  # a line is read in the middle of the step (32.7)
    w = weights_at([place - here for place, _ in past], moments)
    return sum(weight*x0 for weight, (_, x0) in zip(w.tolist(), past))


@torch.no_grad()
def multistep(denoiser: Denoiser, levels: Grid, x: Tensor,
              order: int = 3,         # predictions that a step uses
              correct: bool = False,  # use the next one, too, as soon as it is there
              eta: float = 0.,        # fresh noise: 0 none, 1 as the reverse equation
              noise=torch.randn_like) -> Iterator[Tensor]:
    """One evaluation a step, an error of this order or, corrected, of one more.
    Eq. 48.1-48.6 (DPM-Solver++, UniPC)."""
    if type(order) is not int or not 1 <= order <= 4:
        raise Problem(f'The order is {order}: choose 1 to 4.')
    if eta < 0:
        raise Problem(f'eta is {eta}: choose 0 (nothing random) or more.')
    pairs = steps(levels, up=eta == 0)
    past: list[tuple[float, Tensor]] = []  # places and predictions, the latest first

    for i, (t, s) in enumerate(pairs):
        here, there = (level.log_snr.item()/2 for level in (t, s))
        h = there - here
        if not past or past[0][0] != here:
            past = [(here, denoiser(x, t).x0), *past]
        past = past[:order]
        used = _used(past, there)

        # what stays of the state, and fresh noise (48.6)
        rest = s.sigma/t.sigma*x
        if eta:
            rest = math.exp(-eta*h)*rest
            rest = rest + s.sigma*math.sqrt(-math.expm1(-2*eta*h))*noise(x)

        # the past is integrated (48.1)
        x = rest + s.signal*_integrated(used, here, h, eta)

        # and once more with the prediction where that led (48.5)
        if correct and i + 1 < len(pairs):
            ahead = there, denoiser(x, s).x0
            x = rest + s.signal*_integrated([ahead, *used], here, h, eta)
            past = [ahead, *past]
        yield x


SAMPLERS.add('dpmpp_3m', partial(multistep, order=3))
SAMPLERS.add('unipc', partial(multistep, order=2, correct=True))
SAMPLERS.add('dpmpp_2m_sde', partial(multistep, order=2, eta=1.))


# %%NBQA-CELL-SEP7dc948
# Eq. 48.4: with these differences a step is that of (48.3); with half of the second one the
# order is 2; and the orders of the figure
def differences(h, places, d, half=1.):
    "A step's integral by (48.4), and with part of the second difference."
    r1, r2 = -places[1]/h, (places[1] - places[2])/h
    first, before = (d[0] - d[1])/r1, (d[1] - d[2])/r2
    delta = first - before
    m = exponential_moments(h, 3)
    D1, D2 = first + r1/(r1 + r2)*delta, delta/(r1 + r2)
    return m[0]*d[0] + m[1]/h*D1 + half*m[2]/h**2*D2


places = [0., -.3, -.7]
torch.manual_seed(1)
d = torch.randn(3, dtype=D)
by_weights = (weights_at(places, exponential_moments(.5, 3))*d).sum()
passed('(48.4) differences = weights', close(differences(.5, places, d), by_weights, 1e-12))


def released(denoiser, levels, x):
    "3M with half of its second difference, as released."
    past = []
    for t, s in zip([*levels][:-1], [*levels][1:]):
        here, there = t.log_snr.item()/2, s.log_snr.item()/2
        past = [(here, denoiser(x, t).x0), *past][:3]
        if len(past) < 3:
            mean = _integrated(past, here, there - here, 0.)
        else:
            at, values = zip(*past)
            mean = differences(there - here, [a - here for a in at], values, .5)
        x = s.sigma/t.sigma*x + s.signal*mean
        yield x


own = {'3M': partial(multistep, order=3), 'UniPC': partial(multistep, order=2, correct=True)}
errors |= {name: [error(solver, n) for n in sizes] for name, solver in own.items()}
errors['released 3M'] = [error(released, n) for n in sizes]
errors['order 4'] = [error(partial(multistep, order=4), n) for n in sizes]
wanted = {'DDIM': 1, 'DEIS': 3, '2M': 2, '3M': 3, 'UniPC': 3, 'released 3M': 2}
print(', '.join(f'{name} {slope(name):.2f}' for name in errors))
passed('orders, from 160 steps to 320',
       *[close(number(slope(name)), number(float(p)), .3) for name, p in wanted.items()],
       by='the exact flow of a mixture')
assert slope('released 3M') < 2.3 < 2.7 < slope('3M') < slope('order 4') - .2
passed('order 2 is 2M', close(last(multistep(world, even(20), starts, 2)),
       last(dpmpp_2m(world, even(20), starts)), 1e-12), by='(32.7)')


# %%NBQA-CELL-SEP7dc948
# Eq. 48.5: evaluations are as many as steps; a corrected step against the two weights by hand
counted = Counted(world)
levels = Grid(torch.cat([even(12).log_snr, CLEAN.log_snr[None]]))
last(multistep(counted, levels, starts, 2, correct=True))
assert counted.nfe == 13

a, b, c = (Level(number(v)) for v in (-1., 0., .8))
x = starts[:5]
first = world(x, a).x0
h = .5
guess = b.sigma/a.sigma*x + b.signal*(1 - math.exp(-h))*first
second = world(guess, b).x0
hand = b.sigma/a.sigma*x + b.signal*(1 - math.exp(-h))*(first + second)/2
grid = Grid(torch.stack([v.log_snr for v in (a, b, c)]))
ours = next(multistep(world, grid, x, 2, True))
passed('(48.5) the first corrected step', close(ours, hand, 1e-12),
       by='the mean of both predictions')
assert (hand - guess).abs().max() > 1e-3


def in_letters(levels, x):
    "UniPC-2 in its own letters: B(h) = e^-h - 1 (bh2), ratios r, and two equations for rho."
    ours = [*levels]
    d = world(x, ours[0]).x0
    past = []
    for t, s in zip(ours[:-1], ours[1:]):
        h = (s.log_snr - t.log_snr)/2
        B = (-h).expm1()
        x = s.sigma/t.sigma*x - s.signal*B*d
        predicted = x
        if past:
            r = -past[-1][1]/h
            predicted = x - s.signal*B*(past[-1][0] - d)/r/2
        if s.log_snr == ours[-1].log_snr:
            return predicted
        new = world(predicted, s).x0
        rho, rest = number([.5]), 0.
        if past:
            q2 = B/-h - 1
            q3 = q2/-h - .5
            A = torch.stack([torch.ones(2, dtype=D), torch.stack([r, 0*r + 1])])
            rho = torch.linalg.solve(A, torch.stack([q2/B, 2*q3/B]))
            rest = rho[0]*(past[-1][0] - d)/r
        past.append((d, h))
        x = x - s.signal*B*(rest + rho[-1]*(new - d))
        d = new


uneven = Grid(number([-6., -4., -2.5, -1., 1., 2., 4.]))
passed('(48.5) six steps', close(last(multistep(world, uneven, starts, 2, True)),
       in_letters(uneven, starts), 1e-10), by="UniPC's own letters")


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def deis(denoiser: Denoiser, levels: Grid, x: Tensor,
         order: int = 3) -> Iterator[Tensor]:  # predictions that a step uses
    "Adams-Bashforth for eps in edm_sigma. Eq. 48.7 (DEIS)."
    if type(order) is not int or not 1 <= order <= 4:
        raise Problem(f'The order is {order}: choose 1 to 4.')
    past: list[tuple[float, Tensor]] = []  # places and predictions, the latest first
    before = math.inf  # the length of the last step in log SNR
    for t, s in steps(levels, up=True):
        p = denoiser(x, t)
        step = abs(s.log_snr.item() - t.log_snr.item())

        # pure noise has no place on the axis of edm_sigma: DDIM's step
        if not (t.signal > 0 and s.signal > 0):
            x = s.signal*p.x0 + s.sigma*p.eps
            yield x
            continue

        here, there = (level.edm_sigma.item() for level in (t, s))
        past = [(here, p.eps), *past][:order]
        # no polynomial far beyond its places (32.13)
        used = past if step <= 2*before else past[:1]
        before = step

        h = there - here
        flat = torch.tensor([h**(k + 1)/(k + 1) for k in range(len(used))],
                            dtype=torch.float64)
        w = weights_at([place - here for place, _ in used], flat)
        slope = sum(weight*eps for weight, (_, eps) in zip(w.tolist(), used))
        x = s.signal*(x/t.signal + slope)
        yield x


SAMPLERS.add('deis', deis)


# %%NBQA-CELL-SEP7dc948
# Eq. 48.7: with equal steps of edm_sigma the weights are those of the textbook, 23/12, -16/12 and
# 5/12; one step of order 1 is DDIM
h = -.2
flat = number([h, h**2/2, h**3/3])
textbook = h*number([23, -16, 5])/12
passed('(48.7) equal steps', close(weights_at([0., .2, .4], flat), textbook, 1e-12),
       by='Adams-Bashforth of order 3')
equal = Grid(-2*torch.linspace(2., .2, 10, dtype=D).log())
states = [starts, *deis(world, equal, starts)]
slopes = [world(x, t).eps for x, t in zip(states, equal)]
t, s = [*equal][4:6]
y = states[4]/t.signal + sum(c*e for c, e in zip(textbook.tolist(), slopes[4:1:-1]))
passed('(48.7) a step', close(states[5], s.signal*y, 1e-10), by='the textbook weights')
passed('(48.7) order 1 is DDIM', close(last(deis(world, even(7), starts, 1)),
       last(ddim(world, even(7), starts)), 1e-10))
errors['DEIS'] = [error(deis, n) for n in sizes]
passed('(48.7) the order of DEIS', close(number(slope('DEIS')), number(3.), .3))

# a step more than twice as long as the one before forgets the past (32.13), a shorter one does not


def from_ddim(ratio):
    "How far a second step that is so many times as long lies from one of DDIM."
    uneven = Grid(number([0., .5, .5 + .5*ratio]))
    before, after = deis(world, uneven, starts, 2)
    t, s = [*uneven][1:]
    p = world(before, t)
    return (after - s.signal*p.x0 - s.sigma*p.eps).abs().max().item()


assert from_ddim(1.9) > 1e-3
passed('(32.13) a step of DEIS that is too long is one of DDIM',
       close(number(from_ddim(2.1)), 0., 1e-12))


# %%NBQA-CELL-SEP7dc948
# Eq. 48.6: with a perfect prediction a step keeps the marginal; order 1 is ancestral sampling; the
# variance of a run by the recursion of (x, prediction before), against 40,000 samples
narrow = Mixture(one, 0*one[None], .5*one)
t, s = Level(number(-1.)), Level(number(.6))
h = .8
for eta in (0., .5, 1., 2.):
    # data at 0: x_t = sigma_t z, so x_s must have the variance sigma_s^2
    stay = (s.sigma*math.exp(-eta*h))**2 + s.sigma**2*-math.expm1(-2*eta*h)
    marginal_error = close(stay, s.sigma**2, 1e-12)
passed('(48.6) variances add up for every eta', marginal_error, by='data at one point')

torch.manual_seed(0)
ours = last(multistep(world, even(9), starts, 1, eta=1.))
torch.manual_seed(0)
passed('(48.6) order 1, eta 1', close(ours, last(ancestral(world, even(9), starts)), 1e-10),
       by='ancestral sampling')


def variance(n, order, eta, middle=True):
    "Of the last state: the covariance of (x, x0 before) goes through each step's matrix."
    levels = [*karras(n, .002, 80.)]
    C = torch.zeros(2, 2, dtype=D)
    C[0, 0] = levels[0].alpha_bar*.25 + levels[0].sigma**2
    before = None
    for t, s in zip(levels[:-1], levels[1:]):
        gain = t.signal*.25/(t.alpha_bar*.25 + t.sigma**2)  # x0 = gain x
        h = (s.log_snr - t.log_snr).item()/2
        two = order == 2 and before is not None and h <= 2*before
        if math.isinf(h):
            stay, w, q = 0., number([1., 0.]), 0.
        else:
            m = exponential_moments(h, 2, eta)
            reach = h/2*m[0] if middle else m[1]  # (32.7), or exactly
            late = reach/before if two else 0*m[0]
            w = torch.stack([m[0] + late, -late])
            stay = s.sigma/t.sigma*math.exp(-eta*h)
            q = s.sigma**2*-math.expm1(-2*eta*h)
        step = torch.zeros(2, 2, dtype=D)
        step[0, 0] = stay + s.signal*w[0]*gain
        step[0, 1] = s.signal*w[1]
        step[1, 0] = gain
        C = step @ C @ step.T
        C[0, 0] += q
        before = h
    return C[0, 0].item()


ways = {'ancestral (order 1, eta 1)': (1, 1.), '2M with noise (order 2, eta 1)': (2, 1.),
        'DDIM (order 1, eta 0)': (1, 0.), '2M (order 2, eta 0)': (2, 0.)}
print('variance of the samples (data: 0.25) in', ', '.join(f'{n}' for n in (20, 40, 80)), 'steps')
for name, (order, eta) in ways.items():
    print(f'  {name:31}', '  '.join(f'{variance(n, order, eta):.3f}' for n in (20, 40, 80)))
    levels = karras(10, .002, 80.)
    top = next(iter(levels))
    x = (top.alpha_bar*.25 + top.sigma**2).sqrt()*torch.randn(40_000, 1, dtype=D)
    drawn = last(multistep(narrow, levels, x, order, eta=eta)).var()
    exact = variance(10, order, eta)
    passed(f'(48.6) {name}', close(drawn, exact, 5*exact*(2/40_000)**.5), by='40,000 samples')
exactly = [variance(n, 2, 1., middle=False) for n in (20, 40, 80)]
print('  the same, moments exact        ', '  '.join(f'{v:.3f}' for v in exactly))
assert all(abs(v - .25) > abs(variance(n, 2, 1.) - .25) for v, n in zip(exactly, (20, 40, 80)))
off = [[abs(variance(40, order, eta) - .25) for eta in (0., 1.)] for order in (1, 2)]
assert off[0][1] > off[0][0] > off[1][1] > off[1][0]  # noise costs, order helps


# %%NBQA-CELL-SEP7dc948
#| export
def best_grid(cost: Tensor,  # [m m], of a step from level i to level j > i
              n: int) -> list[int]:  # [n + 1]
    "The n steps from first to last level that cost least. Eq. 48.9 (Watson et al. 2021)."
    m = len(cost)
    if not 1 <= n < m:
        raise Problem(f'{n} steps do not fit among {m} levels: choose 1 to {m - 1}.')
    cost = cost.masked_fill(torch.ones(m, m, dtype=torch.bool).tril(), math.inf)

    # the least cost of each level in one step, two, ..., and where it came from
    best = cost[0]
    came = []
    for _ in range(n - 1):
        best, at = (best[:, None] + cost).min(0)
        came.append(at)

    # back from the last level
    path = [m - 1]
    for at in reversed(came):
        path.append(int(at[path[-1]]))
    return [0, *reversed(path)]


# %%NBQA-CELL-SEP7dc948
# Eq. 48.8: with ever more steps the bound falls to the mutual information of Gaussian data;
# Eq. 48.9: against all choices of three levels among fourteen
spectrum = 1/torch.arange(1, 65, dtype=D)**2


def costs(log_snr):
    snr = log_snr.exp()
    mse = (spectrum/(1 + spectrum*snr[:, None])).sum(1)
    return .5*(snr[None] - snr[:, None])*mse[:, None]


def total(cost, path):
    return sum(cost[a, b] for a, b in itertools.pairwise(path)).item()


lo, hi = -6., 8.
limit = .5*((1 + spectrum*math.exp(hi)).log() - (1 + spectrum*math.exp(lo)).log()).sum()
many = torch.linspace(lo, hi, 4001, dtype=D)
passed('(48.8) 4,000 steps, nats above the limit', close(
    number(total(costs(many), range(4001))), limit, .05*limit), by='I-MMSE for Gaussians (30)')

small = costs(torch.linspace(lo, hi, 16, dtype=D))
brute = min(total(small, [0, *inner, 15]) for inner in itertools.combinations(range(1, 15), 3))
passed('(48.9) four steps', close(number(total(small, best_grid(small, 4))), number(brute),
       1e-9), by='all 364 choices')

candidates = torch.linspace(lo, hi, 281, dtype=D)
cost = costs(candidates)
found = best_grid(cost, 20)
above = {'best': total(cost, found) - limit,
         'even steps of log SNR': total(cost, range(0, 281, 14)) - limit}
print('20 steps, nats above the limit: ' + ', '.join(f'{k} {v:.2f}' for k, v in above.items()))
assert above['best'] < .6*above['even steps of log SNR']
steps_found = candidates[found].diff()
late = (candidates[found[1:]] > 4).double().mean()
print(f'steps of log SNR, from noise to data: {steps_found[0]:.2f}, {steps_found[10]:.2f}, '
      f'{steps_found[-1]:.2f}; {late:.0%} of them end where noise is below a seventh of the signal')
assert late > .5


# %%NBQA-CELL-SEP7dc948
# Measured: distances in 5, 8 and 12 evaluations, three seeds, stored; each solver on the best of
# four Karras grids (edm_sigma at their ends), chosen on seed 0
label = torch.arange(100) % 10
grids = [(.3, 12.), (.2, 20.), (.1, 20.), (.05, 40.)]
of_digits = {'2M': dpmpp_2m, '3M': partial(library.multistep, order=3),
             'UniPC': partial(library.multistep, order=2, correct=True), 'DEIS': library.deis}


def hundred(name, n, ends, seed, part):
    "A hundred digits in n evaluations, ten of each label."
    torch.manual_seed(1000*seed + part)
    noise = torch.randn(100, 1, 28, 28)
    return last(of_digits[name](digit_model.given(label), karras(n, *ends), noise))


book = measurement('solvers', 'Frechet distance of 500 digits from the 10,000 test digits, in '
                   'features of the shipped classifier, by solver and evaluations',
                   'DDPM_LIT_BUDGET=full python tools/nb.py run nbs/48_solvers.ipynb')
digit_model, _ = load_weights('mnist')
have = {(r['sampler'], r['evaluations'], r['seed']) for r in book['rows']}
ways = [(name, n) for name in of_digits for n in (5, 8, 12)]
missing = budget([], [way for way in ways if (*way, 2) not in have])
if missing:
    net = load_classifier()
    real = in_parts(net.features, to_unit(mnist('test').pixels))


def row_of(name, n, ends, seed):
    x = torch.cat([hundred(name, n, ends, seed, part) for part in range(5)])
    distance = frechet_distance(in_parts(net.features, x), real)
    return dict(sampler=name, evaluations=n, seed=seed, n=500, ends=ends,
                frechet=round(distance, 4),
                first=[round(v, 5) for v in x[:10].mean((1, 2, 3)).tolist()])


for name, n in missing:
    best = min((row_of(name, n, ends, 0) for ends in grids), key=lambda r: r['frechet'])
    book['rows'] += [best, *(row_of(name, n, best['ends'], seed) for seed in (1, 2))]
    keep_measurement('solvers', book)

print('Fréchet distance, mean of three seeds and their spread')
for name in of_digits:
    print(f'  {name:6}' + ''.join(f'   {n:2} evaluations {distances(name, n).mean():5.2f} ± '
                                  f'{distances(name, n).std():.2f}' for n in (5, 8, 12)))
row = next(r for r in book['rows'] if (r['sampler'], r['evaluations']) == ('UniPC', 8))
again = hundred('UniPC', 8, row['ends'], row['seed'], 0)[:10].mean((1, 2, 3))
passed('the stored digits of UniPC, 8 evaluations', redrawn(again, row['first']),
       by='the first ten drawn again')


# %%NBQA-CELL-SEP7dc948
# What the text says: DEIS is behind with five evaluations, in every seed; no other is far from 0.47
worst = {name: max(distances(name, n).max().item() for n in (5, 8, 12))
         for name in ('2M', '3M', 'UniPC')}
assert distances('DEIS', 5).min() > max(worst.values()) and max(worst.values()) < .5
assert min(distances('3M', n).min() - distances('2M', n).max() for n in (5, 8, 12)) > 0
for n in (5, 8, 12):
    both = distances('2M', n), distances('UniPC', n)
    assert abs(both[0].mean() - both[1].mean()) < 2*max(x.std() for x in both)
passed('with five evaluations DEIS is behind in every seed; 2M and UniPC are level')


# %%NBQA-CELL-SEP7dc948
for order in (0, 5, 2.):
    with expect_fail('choose 1 to 4', Problem, show=order == 0):
        next(multistep(world, even(4), starts, order))
with expect_fail('eta is -1: choose 0', Problem):
    next(multistep(world, even(4), starts, eta=-1))
with expect_fail('3 steps do not fit among 3 levels', Problem):
    best_grid(torch.zeros(3, 3), 3)

# a long leap is taken at order 1, so order 3 and DDIM agree on a grid of ever longer steps
leaps = Grid(number([-6., -5.9, -5.6, -4.8, -2.5, 4.]))
passed('ever longer steps are those of DDIM', close(last(multistep(world, leaps, starts)),
       last(ddim(world, leaps, starts)), 1e-12))
there = last(multistep(world, even(80), starts))
back = last(multistep(world, even(80).flip(), there))
passed('up and down again', close(back, starts, .02), by='where it began')
# DEIS takes DDIM's step from pure noise, as from a level with hardly any signal
from_noise = [last(deis(world, Grid(number([start, -2., 0., 2.])), starts))
              for start in (-math.inf, -36.)]
passed('DEIS from pure noise', close(from_noise[0], from_noise[1], 1e-6), by='log SNR -36')


# %%NBQA-CELL-SEP7dc948
#| eval: false
better = ...
three, four = (error(partial(multistep, order=order), 10) for order in (3, 4))
assert better == (four < three)


# %%NBQA-CELL-SEP7dc948
#| eval: false
def two_weights(h):
    return ...


close(number(two_weights(.3)), weights_at([0., -.3], exponential_moments(.3, 2)), 1e-12)


# %%NBQA-CELL-SEP7dc948
# solution 1: worse; a cubic through predictions far apart
better = False
three, four = (error(partial(multistep, order=order), 10) for order in (3, 4))
assert better == (four < three)


# %%NBQA-CELL-SEP7dc948
# solution 2: the second power must give m_1 = h - (1 - e^-h), so -h w_2 = m_1, and w_1 = m_0 - w_2
def two_weights(h):
    late = 1 - (1 - math.exp(-h))/h
    return [1 - math.exp(-h) + late, -late]


close(number(two_weights(.3)), weights_at([0., -.3], exponential_moments(.3, 2)), 1e-12)
