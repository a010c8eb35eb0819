# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.series


# %%NBQA-CELL-SEP15d533
#| export
import math
from itertools import pairwise
from typing import Iterable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser, Prediction
from ddpm_lit.core.level import Level
from ddpm_lit.core.problem import Problem
from ddpm_lit.diffusion.forward import new_noise, q_sample
from ddpm_lit.diffusion.loss import Loss
from ddpm_lit.diffusion.schedule import Grid, Schedule


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, the number of steps, how a table is drawn
import json
import shutil
import tempfile
from pathlib import Path
import matplotlib.pyplot as plt
from ddpm_lit.cli.base import Terminal, command
from ddpm_lit.core.check import close, expect_fail, keep_measurement, measurement, passed
from ddpm_lit.core.check import setup
from ddpm_lit.core.denoiser import Model
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.tensors import load_strictly, read_tensors, write_tensors
from ddpm_lit.diffusion import series as library  # the first pages use what later ones build
from ddpm_lit.diffusion.sample import ancestral, ddim, last
from ddpm_lit.diffusion.schedule import Cosine, grid
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.guide.edit import pixels, replacement
from ddpm_lit.nets.series import SeriesNet, near_log_snr
from ddpm_lit.show import INK
from ddpm_lit.train.fit import Training, fit

setup()
D = torch.float64
RED = INK['guidance']
BLUE = INK['model']
STEPS, PAST = 24, 12


# %%NBQA-CELL-SEP15d533
# Figure 94.1: one past, continued by the network and by replacement; dashed: Kalman's exact bands
world = library.autoregression((1.5, -.75), STEPS)
torch.manual_seed(159)
shown = world.sample(1)
exact = world.given(shown[:, 0, :PAST])
known = torch.arange(STEPS) < PAST
kept = read_tensors(data_dir('runs')/'series.safetensors')
network = Model(SeriesNet(1), level_input=near_log_snr).eval()
load_strictly(network, {k: v.float() for k, v in kept.items()}, 'series.safetensors')

LIMIT = 2.5
many = shown.expand(1000, 1, STEPS)
noise = torch.randn(1000, 1, STEPS, dtype=D)
fans = {
    'network, told the past': last(dpmpp_2m(library.told(network, many.float(), known),
                                            grid(Cosine(), 30), noise.float())).double(),
    'exact denoiser, past replaced': last(ancestral(
        replacement(world, many, pixels(known.double())), grid(Cosine(), 100), noise))}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7), layout='constrained', dpi=160, sharey=True)
ahead = torch.arange(PAST, STEPS + 1)
middle = exact.mean[0]
width = 1.2816*exact.cov.diag().sqrt()  # 80 % of a Gaussian
start = shown[0, 0, PAST - 1:PAST]
for ax, (title, fan), ink in zip(axes, fans.items(), (BLUE, RED)):
    drawn = torch.cat([start.expand(1000, 1), fan[:, 0, PAST:]], 1)
    low, high = drawn.quantile(torch.tensor([.1, .9], dtype=D), dim=0)
    ax.fill_between(ahead, low, high, color=ink, alpha=.2, linewidth=0)
    ax.plot(ahead, drawn[:6].T, color=ink, linewidth=.7)
    for side in (-1, 1):
        ax.plot(ahead, torch.cat([start, middle + side*width]), 'k--', linewidth=1)
    ax.plot(range(1, PAST + 1), shown[0, 0, :PAST], 'k', linewidth=1.4)
    ax.axhline(LIMIT, color='.6', linewidth=.8, zorder=0)
    share = (fan[:, 0, PAST:] > LIMIT).any(1).double().mean()
    ax.text(1, LIMIT + .15, f'passed by {share:.0%} of the paths', fontsize=8, color=ink)
    ax.set(title=title, xlabel='step', xticks=[1, 6, 12, 18, 24], ylim=(-3.2, 3.6))
axes[0].set(ylabel='value')


# %%NBQA-CELL-SEP15d533
# Figure 94.1: the share of paths that pass the limit, beside 100,000 paths of the exact forecast
torch.manual_seed(0)
root = torch.linalg.cholesky(exact.cov)
draws = exact.mean + torch.randn(100_000, STEPS - PAST, dtype=D) @ root.T
chance = (draws > LIMIT).any(1).double().mean()
passing = [(fan[:, 0, PAST:] > LIMIT).any(1).double().mean() for fan in fans.values()]
print(f'exact {chance:.1%}, network {passing[0]:.1%}, replacement {passing[1]:.1%}')
assert passing[1] < .8*chance
away = fans['exact denoiser, past replaced'][:, 0, PAST].mean() - middle[0]
print(f'the next step by replacement: {away/width[0]*1.2816:+.1f} standard deviations off')
passed('Figure 94.1: the chance of passing 2.5', close(passing[0], chance, .07), by='exact paths')


# %%NBQA-CELL-SEP15d533
import torch


@torch.no_grad()
def forecast(net, past, horizon, alpha_bar, n):  # [l]; alpha_bar rises and ends at 1
    past, x = past.expand(n, -1), torch.randn(n, horizon, dtype=past.dtype)
    for ab_t, ab_s in zip(alpha_bar, alpha_bar[1:]):
        level = torch.cat([torch.ones_like(past[0]), ab_t.expand(horizon)])
        eps = net(torch.cat([past, x], 1), level)[:, past.shape[1]:]
        x0 = (x - (1 - ab_t).sqrt()*eps)/ab_t.sqrt()
        x = ab_s.sqrt()*x0 + (1 - ab_s).sqrt()*eps
    return x                                                                 # n paths


def fair_crps(draws, y):                                                     # [n], []
    n = len(draws)
    pairs = (draws[:, None] - draws).abs().sum()/(n*(n - 1))
    return (draws - y).abs().mean() - pairs/2


# %%NBQA-CELL-SEP15d533
# Eq. 94.5, 94.10: the plain code against the library, from the same noise
levels = grid(Cosine(), 20)
table = torch.stack([t.alpha_bar for t in levels])


def by_row(x, alpha_bar):
    "The exact denoiser, as the plain code calls it."
    t = Level((alpha_bar/(1 - alpha_bar)).log()[None, None])
    return world(x[:, None], t).eps[:, 0]


torch.manual_seed(3)
plain = forecast(by_row, shown[0, 0, :PAST], STEPS - PAST, table, 30)
torch.manual_seed(3)
noise = torch.cat([torch.zeros(30, PAST, dtype=D), torch.randn(30, STEPS - PAST, dtype=D)], 1)
same = last(ddim(library.told(world, shown.expand(30, 1, STEPS), known), levels, noise[:, None]))
errors = [close(plain, same[:, 0, PAST:], 1e-8)]
errors += [close(fair_crps(plain[:, k], shown[0, 0, PAST + k]),
                 library.fair_crps(plain, shown[0, 0, PAST:])[k]) for k in range(3)]
passed('the plain code gives what the library gives', *errors)


# %%NBQA-CELL-SEP15d533
#| export
class GaussianSeries:
    "A Gaussian process, the exact denoiser of its sequences at any levels. Eq. 94.2."

    def __init__(self, mean: Tensor,  # [l], or [n l]: one for each of n sequences
                 cov: Tensor):        # [l l]
        self.mean = mean
        self.cov = cov

    def __call__(self, x: Tensor, t: Level) -> Prediction:  # x [b 1 l]
        t = t.like(x)
        a, s = (v.expand(len(v), 1, x.shape[-1])[:, 0] for v in (t.signal, t.sigma))

        # w solves (A C A + Sigma) w = x - A mean; one matrix if all levels are alike
        matrix = a[:, :, None]*self.cov*a[:, None] + torch.diag_embed(s**2)
        off = x[:, 0] - a*self.mean
        if len(matrix) == 1:
            w = torch.linalg.solve(matrix[0], off.T).T
        else:
            w = torch.linalg.solve(matrix, off)
        x0 = self.mean + (a*w) @ self.cov
        return Prediction(x0[:, None], (s*w)[:, None])

    def sample(self, n: int) -> Tensor:  # [n 1 l]
        "Draw n sequences."
        z = torch.randn(n, len(self.cov), dtype=self.cov.dtype)
        return (self.mean + z @ torch.linalg.cholesky(self.cov).T)[:, None]

    def given(self, past: Tensor) -> 'GaussianSeries':  # [n p]: the first p steps
        "What follows on some first steps: the exact forecast. Eq. 94.4."
        p = past.shape[-1]
        gain = torch.linalg.solve(self.cov[:p, :p], self.cov[:p, p:])
        mean = self.mean[p:] + (past - self.mean[:p]) @ gain
        return GaussianSeries(mean, self.cov[p:, p:] - self.cov[p:, :p] @ gain)


def autoregression(coefficients: Iterable[float],  # of the last step, of the one before
                   length: int) -> GaussianSeries:
    "A stationary autoregression of mean 0 and variance 1. Eq. 94.3."
    a = torch.tensor([*coefficients] or [0.], dtype=torch.float64)
    p = len(a)
    matrix = torch.eye(p, dtype=a.dtype).roll(1, 0)
    matrix[0] = a
    if torch.linalg.eigvals(matrix).abs().max() >= 1:
        raise Problem('This autoregression grows without end: give coefficients whose '
                      'effects die out.')

    # the covariance of p steps: P = F P F' + Q, then on by the recursion
    new = torch.zeros(p, p, dtype=a.dtype)
    new[0, 0] = 1
    full = torch.linalg.solve(torch.eye(p*p, dtype=a.dtype) - torch.kron(matrix, matrix),
                              new.flatten()).view(p, p)
    g = [*full[0]/full[0, 0]]
    while len(g) < length:
        g.append(sum(c*v for c, v in zip(a, g[::-1])))
    apart = torch.arange(length)
    cov = torch.stack(g)[(apart[:, None] - apart).abs()]
    return GaussianSeries(torch.zeros(length, dtype=a.dtype), cov)


# %%NBQA-CELL-SEP15d533
# Eq. 94.1-94.4: the denoiser against the recursion, Kalman's filter and the density's gradient
world = autoregression((1.5, -.75), STEPS)
gain = 1 - 1.5*world.cov[0, 1] + .75*world.cov[0, 2]  # s^2, since the variance is 1
torch.manual_seed(1)
x0 = world.sample(3)
later = torch.arange(STEPS) >= PAST
question = Level(torch.where(later, -math.inf, torch.tensor(math.inf, dtype=D))[None, None])

# a clean past and a future without signal: the recursion, carried on with e = 0
two = [x0[:, 0, PAST - 2], x0[:, 0, PAST - 1]]
psi = [0., 1.]
for _ in range(STEPS - PAST):
    two.append(1.5*two[-1] - .75*two[-2])
    psi.append(1.5*psi[-1] - .75*psi[-2])
carried = torch.stack(two[2:], 1)
grown = gain*torch.tensor(psi[1:-1], dtype=D).square().cumsum(0)
forecast = world(torch.where(later, 0., x0), question).x0[:, 0, PAST:]
answer = world.given(x0[:, 0, :PAST])
errors = [close(forecast, carried), close(answer.mean, carried), close(answer.cov.diag(), grown)]
passed('(94.2-94.4) means and variances of forecasts', *errors, by='the recursion')
print('variances at 1, 4 and 12 steps:', *(f'{v:.4f}' for v in grown[[0, 3, 11]].tolist()))


def kalman(y, t):
    "Mean of the last step from noisy measurements y [b l] at levels t: Kalman's recursion."
    F = torch.tensor([[1.5, -.75], [1., 0.]], dtype=D)
    m = torch.zeros(len(y), 2, dtype=D)
    P = torch.tensor([[1., 6/7], [6/7, 1.]], dtype=D)  # of two steps: 1.5/(1 + .75)
    for k in range(y.shape[1]):
        if k:
            m, P = m @ F.T, F @ P @ F.T + torch.diag(torch.stack([gain, 0*gain]))
        a, s = t.signal[0, 0, k], t.sigma[0, 0, k]
        K = P[:, 0]*a/(a**2*P[0, 0] + s**2)
        m = m + (y[:, k] - a*m[:, 0])[:, None]*K
        P = P - a*torch.outer(K, P[0])
    return m[:, 0]


t = Level(torch.linspace(-3, 4, STEPS, dtype=D)[None, None])  # a different level each
x_t = t.signal*x0 + t.sigma*torch.randn_like(x0)
p = world(x_t, t)
errors = [close(p.x0[:, 0, -1], kalman(x_t[:, 0], t)),
          close(t.signal*p.x0 + t.sigma*p.eps, x_t)]
passed('(94.1-94.2) the last of 24 noisy steps', *errors, by="Kalman's filter")

# 02.6: eps is minus sigma times the gradient of log q(x_t), by autograd; levels for each row
apart = Level(torch.linspace(-4, 4, 3*STEPS, dtype=D).view(3, 1, STEPS))
y = torch.randn(3, 1, STEPS, dtype=D, requires_grad=True)
cov = [torch.diag(a) @ world.cov @ torch.diag(a) + torch.diag(s**2)
       for a, s in zip(apart.signal[:, 0], apart.sigma[:, 0])]
density = torch.distributions.MultivariateNormal(torch.zeros(STEPS, dtype=D), torch.stack(cov))
score, = torch.autograd.grad(density.log_prob(y[:, 0]).sum(), y)
wide = autoregression((.6, .2, -.3), 400)
ratio = wide.cov[0, 1:5] - torch.stack([.6*wide.cov[0, k] + .2*wide.cov[0, abs(k - 1)]
                                        - .3*wide.cov[0, abs(k - 2)] for k in range(4)])
passed('(94.2) the noise; Yule-Walker for order three',
       close(world(y, apart).eps, -apart.sigma*score), close(ratio, 0., 1e-12), by='autograd')
close(autoregression((), 3).cov, torch.eye(3))
with expect_fail('die out', Problem):
    autoregression((1.2,), 5)


# %%NBQA-CELL-SEP15d533
#| export
def told(denoiser: Denoiser, x0: Tensor,  # [b c l], of which only what is known matters
         known: Tensor) -> Denoiser:      # bool, broadcasts against x0
    "The denoiser that is told some steps: they are clean. Eq. 94.5 (CSDI)."
    def informed(x, t):
        t = t.like(x)
        mixed = Level(torch.where(known, math.inf, t.log_snr))
        p = denoiser(torch.where(known, x0, x), mixed)

        # for the sampler, known steps are predicted without error
        eps = torch.where(known, (x - t.signal*x0)/t.sigma, p.eps)
        return Prediction(torch.where(known, x0, p.x0), eps)

    return informed


# %%NBQA-CELL-SEP15d533
world = autoregression((1.5, -.75), 24)
torch.manual_seed(0)
x0 = world.sample(1).expand(500, 1, 24)       # one history, 500 paths
known = torch.arange(24) < 12
denoiser = told(world, x0, known)
paths = last(ddim(denoiser, grid(Cosine(), 50), torch.randn_like(x0)))
bool((paths == x0)[..., :12].all()), paths[:, 0, 12].std()  # the exact one is 0.341


# %%NBQA-CELL-SEP15d533
# Eq. 94.5: DDIM is linear here, so unit vectors as noise show the mean and covariance of its paths
def linear_law(run, n=STEPS):
    "Mean [l] and covariance [l l] of what a linear sampler makes of Gaussian noise [b 1 l]."
    ends = run(torch.cat([torch.zeros(1, n, dtype=D), torch.eye(n, dtype=D)])[:, None])[:, 0]
    effects = ends[1:] - ends[0]
    return ends[0], effects.T @ effects


torch.manual_seed(2)
truth = world.sample(1)
exact_forecast = world.given(truth[0, :, :PAST])
errors = []
for n, tol in ((50, .1), (200, .025), (800, .007)):  # the error falls as 1/n
    mean, cov = linear_law(lambda x: last(ddim(told(world, truth, ~later), grid(Cosine(), n), x)))
    ratio = cov.diag()[PAST:]/exact_forecast.cov.diag()
    errors.append(close(ratio, 1., tol))
    assert close(mean[:PAST], truth[0, 0, :PAST]) < 1e-9
    assert ratio.max() < 1.01
    close((mean[PAST:] - exact_forecast.mean[0])/exact_forecast.cov.diag().sqrt(), 0., tol)
assert errors[0] > 3*errors[1] > 9*errors[2]
two_m = linear_law(lambda x: last(dpmpp_2m(told(world, truth, ~later), grid(Cosine(), 50), x)))
errors_2m = close(two_m[1][PAST:, PAST:], exact_forecast.cov, .02)
passed('(94.5) variances of paths, 800 steps of DDIM', errors[-1], by='the exact forecast')
passed('(94.5) covariances of paths, 50 steps of dpmpp_2m', errors_2m, by='the exact forecast')

# x_t = signal x0 + sigma eps holds in known steps, too (02.1)
t = Level(.3)
x_t = torch.randn(2, 1, STEPS, dtype=D)
p = told(world, truth, ~later)(x_t, t)
assert (p.x0 == truth)[..., ~later].all()
passed('(94.5) prediction and state agree', close(t.signal*p.x0 + t.sigma*p.eps, x_t))

# a gap in the middle: the bridge between its ends
gap = (torch.arange(STEPS) >= 8) & (torch.arange(STEPS) < 16)
hidden, seen = gap.nonzero()[:, 0], (~gap).nonzero()[:, 0]
K = torch.linalg.solve(world.cov[seen][:, seen], world.cov[seen][:, hidden])
mean, cov = linear_law(lambda x: last(dpmpp_2m(told(world, truth, ~gap), grid(Cosine(), 50), x)))
bridge = world.cov[hidden][:, hidden] - world.cov[hidden][:, seen] @ K
passed('(94.5) a gap of eight steps', close(mean[gap], truth[0, 0, seen] @ K, .02),
       close(cov[gap][:, gap], bridge, .02), by='conditioning')


# %%NBQA-CELL-SEP15d533
# Eq. 94.6: variance of the disturbance at the join and one step later, by the exact denoiser
torch.manual_seed(5)
pasts = world.sample(1500)
noise = torch.randn(1500, 1, STEPS, dtype=D)
by_words = last(dpmpp_2m(told(world, pasts, ~later), grid(Cosine(), 50), noise))
by_force = last(ancestral(replacement(world, pasts, pixels((~later).double())),
                          grid(Cosine(), 100), noise))
sizes = {}
for name, x in (('told', by_words), ('replaced', by_force)):
    e = (x - 1.5*x.roll(1, -1) + .75*x.roll(2, -1))[:, 0]
    sizes[name] = e[:, PAST:PAST + 3].square().mean(0)/gain
    print(f'{name:9}', *(f'{v:5.2f}' for v in sizes[name].tolist()))
assert sizes['replaced'][0] > 3
passed('(94.6) disturbances at the join: told', close(sizes['told'], 1., .2), by='1,500 paths')
passed('(94.6) replaced, two steps later', close(sizes['replaced'][2], 1., .25))


# %%NBQA-CELL-SEP15d533
#| export
def staircase(levels: Grid,  # of an ordinary run, from noise to clean
              past: int, length: int,  # steps that are known, and steps in all
              delay: int = 0,          # rounds between the starts of two steps
              ) -> list[Level]:        # [1 1 l] each
    "Levels by which the near future gets clean before the far one. Eq. 94.7 (Chen 2024)."
    if not 0 <= past < length or delay < 0:
        raise Problem(f'{past} known steps of {length}, and a delay of {delay}: leave '
                      'some steps to sample, and give a delay of 0 or more.')
    n = len(levels)
    ahead = torch.arange(length) - past
    rounds = []
    for r in range(n + delay*(length - past - 1) + 1):
        log_snr = levels.log_snr[(r - delay*ahead).clamp(0, n)]
        rounds.append(Level(torch.where(ahead < 0, math.inf, log_snr)[None, None]))
    return rounds


@torch.no_grad()
def by_levels(denoiser: Denoiser, levels: Iterable[Level],  # [b 1 l] or [1 1 l] each
              x: Tensor,  # [b c l]: noise, and whatever is known
              eta: float = 0., noise=torch.randn_like) -> Iterator[Tensor]:
    "Sample a sequence whose steps have levels of their own. Eq. 94.8 (Chen 2024)."
    for t, s in pairwise(v.like(x) for v in levels):
        if (s.log_snr < t.log_snr).any():
            raise Problem('Some steps would get noisier here: give levels that only get '
                          'cleaner.')
        moves = s.log_snr > t.log_snr
        p = denoiser(x, t)

        # DDIM at each step's own levels; where nothing moves there is no new noise
        new = torch.where(moves, eta**2*new_noise(s, t), 0.)
        eps = (1 - new).sqrt()*p.eps
        if eta:
            eps = eps + new.sqrt()*noise(x)
        x = torch.where(moves, s.signal*p.x0 + s.sigma*eps, x)
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 94.7-94.8: without delay the usual DDIM, at any eta; by any staircase the same law
levels = grid(Cosine(), 40)
noise = torch.randn(40, 5, 1, STEPS, dtype=D)


def counted_noise():
    "Stored noise, one tensor after another."
    at = iter(noise)
    return lambda x: next(at)


start = torch.where(later, noise[0], truth)
errors = []
for eta in (0., .7, 1.):
    one = last(ddim(told(world, truth, ~later), levels, start, eta, noise=counted_noise()))
    each = last(by_levels(world, staircase(levels, PAST, STEPS), start, eta, counted_noise()))
    errors.append(close(each, one, 1e-9))
passed('(94.8) delay 0', *errors, by='ddim, told the past')


def law_by(denoiser, delay, n=60):
    "Mean and covariance of the future, sampled along a staircase."
    rounds = staircase(grid(Cosine(), n), PAST, STEPS, delay)
    mean, cov = linear_law(lambda x: last(by_levels(denoiser, rounds,
                                                    torch.where(later, x, truth))))
    return mean[PAST:], cov[PAST:, PAST:]


rounds = staircase(levels, PAST, STEPS, 3)
assert len(rounds) == 40 + 3*11 + 1 and rounds[-1].log_snr.isinf().all()
at = torch.stack([v.log_snr[0, 0] for v in rounds])
assert (at[:, :PAST] == math.inf).all() and (at[9:, PAST + 3] == at[:-9, PAST]).all()
with expect_fail('leave some steps to sample', Problem):
    staircase(levels, 24, 24)
with expect_fail('only get cleaner', Problem):
    last(by_levels(world, staircase(levels, PAST, STEPS)[::-1], truth))


# %%NBQA-CELL-SEP15d533
# Figure 94.2: three staircases; exact variances that causal and two-sided denoisers reach by them
class Causal:
    "The exact denoiser of each step given the steps up to it."

    def __call__(self, x, t):
        t = t.like(x)
        parts = []
        for j in range(1, STEPS + 1):
            first = library.GaussianSeries(world.mean[:j], world.cov[:j, :j])
            p = first(x[..., :j], Level(t.log_snr[..., :j]))
            parts.append(torch.stack([p.x0[..., -1], p.eps[..., -1]]))
        return Prediction(*torch.stack(parts, -1))


exact_law = world.given(truth[0, :, :PAST])
shares = {}
for name, denoiser in (('two-sided', world), ('causal', Causal())):
    for delay in (0, 4, 60):
        shares[name, delay] = law_by(denoiser, delay)[1].diag()/exact_law.cov.diag()
fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout='constrained', dpi=160,
                         width_ratios=(1, 1, 1, 1.5))
for ax, delay in zip(axes, (0, 4, 60)):
    rounds = staircase(grid(Cosine(), 60), PAST, STEPS, delay)
    rounds = torch.stack([v.log_snr[0, 0] for v in rounds])
    ax.imshow(rounds.clamp(-8, 8), aspect='auto', cmap='Blues', vmin=-8, vmax=10,
              extent=(.5, 24.5, len(rounds) - 1, 0))
    ax.set(title=f'delay {delay}', xlabel='step of the sequence', xticks=[1, 12, 24])
axes[0].set(ylabel='round')
ax = axes[3]
ahead = torch.arange(1, STEPS - PAST + 1)
ax.axhline(1, color='k', linestyle='--', linewidth=1)
for delay, style in ((0, '-'), (4, ':')):
    ax.plot(ahead, shares['causal', delay], style, color=RED, linewidth=1.3)
ax.plot(ahead, shares['causal', 60], color=RED, alpha=.4, linewidth=1.3)
ax.plot(ahead, shares['two-sided', 0], color=BLUE, linewidth=1.3)
for place, words, colour in (((4.5, 1.01), 'two-sided', BLUE), ((4, .885), 'causal, delay 60', RED),
                             ((5.6, .755), 'delay 4', RED), ((3.2, .64), 'causal, delay 0', RED)):
    ax.text(*place, words, color=colour, fontsize=7.5)
ax.set(title='variance / exact', xlabel='steps ahead', ylim=(.5, 1.05), xticks=[1, 6, 12])


# %%NBQA-CELL-SEP15d533
# Figure 94.2: two-sided, any staircase; causal, only one step after another
for delay in (0, 4, 60):
    assert .9 < shares['two-sided', delay].min() and shares['two-sided', delay].max() < 1.001
assert shares['causal', 0][2:].max() < .8 and shares['causal', 4][2:].max() < .8
one_by_one = shares['causal', 60]
assert .9 < one_by_one.min()
# one after another, each step is a forecast of one step from an exact past: the first share
passed('(94.8) causal, one after another', close(one_by_one, one_by_one[0], .02),
       close(shares['two-sided', 60], one_by_one, 1e-3), by='the two-sided denoiser')


# %%NBQA-CELL-SEP15d533
#| export
def fair_crps(draws: Tensor,  # [n ...], two draws or more
              y: Tensor,      # [...] what happened
              ) -> Tensor:    # [...]
    "The continuous ranked probability score, fair for any n. Eq. 94.10 (Ferro 2014)."
    n = len(draws)
    if n < 2:
        raise Problem('A score of a forecast compares its draws: give two or more.')
    # of the sorted draws, the k-th is larger than k and smaller than n - 1 - k
    excess = 2*torch.arange(n, dtype=draws.dtype, device=draws.device) - (n - 1)
    pairs = torch.tensordot(excess, draws.sort(0).values, 1)
    return (draws - y).abs().mean(0) - pairs/(n*(n - 1))


def gaussian_crps(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:  # [...] each
    "The score of a Gaussian forecast. Eq. 94.11 (Gneiting & Raftery 2007)."
    z = (y - mean)/std
    density = torch.exp(-z**2/2)/math.sqrt(2*math.pi)
    return std*(z*(2*torch.special.ndtr(z) - 1) + 2*density - 1/math.sqrt(math.pi))


def energy_score(paths: Tensor,  # [n ... l], two paths or more
                 y: Tensor,      # [... l]
                 ) -> Tensor:    # [...]
    "The score of whole paths, by their distances, fair for any n. Eq. 94.13."
    n = len(paths)
    if n < 2:
        raise Problem('A score of a forecast compares its paths: give two or more.')
    among = torch.zeros_like(y[..., 0])
    for path in paths:
        among = among + (paths - path).norm(dim=-1).sum(0)
    return (paths - y).norm(dim=-1).mean(0) - among/(2*n*(n - 1))


def rank_among(draws: Tensor,  # [n ...]
               y: Tensor,      # [...]
               ) -> Tensor:    # [...] from 0 to n
    "How many draws lie below what happened; ties fall by chance. Eq. 94.12."
    ties = (draws == y).sum(0)
    return (draws < y).sum(0) + (torch.rand(ties.shape)*(ties + 1)).long().to(ties)


# %%NBQA-CELL-SEP15d533
# Eq. 94.9-94.13: the integral, all pairs, the Gaussian, and what is uniform, each beside the code
torch.manual_seed(4)
draws, y = torch.randn(7, 5, dtype=D).mul(2), torch.randn(5, dtype=D)
pairs = (draws[:, None] - draws).abs().sum((0, 1))/(2*7*6)
errors = [close(fair_crps(draws, y), (draws - y).abs().mean(0) - pairs),
          close(fair_crps(draws[:2], y)[0], (draws[:2, 0] - y[0]).abs().mean()
                - (draws[0, 0] - draws[1, 0]).abs()/2)]
u = torch.linspace(-12, 12, 240_001, dtype=D)
F = torch.special.ndtr((u - .3)/1.7)
for v in (-1.1, .4, 3.):
    integral = torch.trapezoid((F - (u >= v).double())**2, u)
    errors.append(close(gaussian_crps(torch.tensor(.3, dtype=D), torch.tensor(1.7, dtype=D),
                                      torch.tensor(v, dtype=D)), integral, 1e-4))
passed('(94.9-94.11) CRPS', *errors, by='all pairs; the integral')

# fair: the mean over ensembles of three is the score of the distribution; divided by n^2 it is not
many = torch.randn(3, 200_000, dtype=D)
now = torch.randn(200_000, dtype=D)
right = 1/math.sqrt(math.pi)  # of N(0, 1) for its own draws
plain = (many - now).abs().mean(0) - (many[:, None] - many).abs().sum((0, 1))/18
passed('(94.10) ensembles of three, on average', close(fair_crps(many, now).mean(), right, .006),
       close(plain.mean(), right*(1 + 1/3), .006), by='200,000 of them')
with expect_fail('two or more', Problem):
    fair_crps(draws[:1], y)

# paths of one step are numbers; longer ones by all pairs; ranks are uniform, ties among them
walks = torch.randn(6, 5, 4, dtype=D)
seen = torch.randn(5, 4, dtype=D)
by_pairs = torch.stack([(walks - seen).norm(dim=-1).mean(0)[k]
                        - torch.pdist(walks[:, k]).sum()/(6*5) for k in range(5)])
with expect_fail('two or more', Problem):
    energy_score(walks[:1], seen)
three = torch.tensor([3., 1., 2.])[:, None].expand(3, 4)
assert rank_among(three, torch.tensor([0., 1.5, 2.5, 9.])).tolist() == [0, 1, 2, 3]
ranks = rank_among(torch.randint(4, (9, 40_000)), torch.randint(4, (40_000,)))
shares = ranks.bincount(minlength=10)/40_000
passed('(94.12-94.13) paths and ranks', close(energy_score(draws[..., None], y[..., None]),
       fair_crps(draws, y)), close(energy_score(walks, seen), by_pairs), close(shares, .1, .008),
       by='all pairs; uniform ranks')


# %%NBQA-CELL-SEP15d533
#| export nets.series
import torch
from torch import Tensor, nn
from torch.nn.functional import silu


# %%NBQA-CELL-SEP15d533
#| export nets.series
class SeriesNet(nn.Module):
    "Dilated convolutions over a sequence, which read the level of each step."

    def __init__(self, channels: int,  # numbers at each step
                 width: int = 32,
                 dilations: tuple[int, ...] = (1, 2, 4, 8)*2):
        super().__init__()
        self.first = nn.Conv1d(channels + 3, width, 3, padding=1)
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d)
                                 for d in dilations)
        self.level = nn.ModuleList(nn.Conv1d(3, 2*width, 1) for _ in dilations)
        self.back = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.last = nn.Conv1d(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor,       # [b c l]
                log_snr: Tensor,       # [b], or [b 1 l]: one for each step
                ) -> Tensor:           # [b c l]
        # the level as three numbers a step
        level = log_snr.reshape(len(x), 1, -1).to(x).expand(-1, 1, x.shape[-1])
        level = torch.cat([level/8, (level/2).sigmoid(), (-level/2).sigmoid()], 1)

        h = self.first(torch.cat([x, level], 1))
        for mix, read, back in zip(self.mix, self.level, self.back):
            scale, shift = read(level).chunk(2, 1)
            h = h + back(silu(mix(h)*(1 + scale) + shift))
        return self.last(silu(h))


def near_log_snr(t) -> Tensor:  # t: a Level
    "What the network reads of a level: its log SNR within +-12."
    return t.log_snr.clamp(-12, 12)


# %%NBQA-CELL-SEP15d533
#| export
def step_levels(schedule: Schedule, t: Level,  # [b 1 1]: one of each sequence
                length: int, past: int | None = None,  # None: drawn for each sequence
                ) -> Level:  # [b 1 l]
    "Levels to train on: a clean past in odd sequences, else independent ones. Eq. 94.14."
    b = len(t.log_snr)
    u = schedule.time(t).expand(b, 1, length)
    free = schedule((u + torch.rand(b, 1, length, dtype=u.dtype)) % 1).log_snr

    cut = torch.randint(1, length, (b, 1, 1)) if past is None else past
    told = torch.where(torch.arange(length) < cut, math.inf, schedule(u).log_snr)
    odd = torch.arange(b)[:, None, None] % 2 == 1
    return Level(torch.where(odd, told, free))


def series_loss(schedule: Schedule, past: int | None = None) -> Loss:
    "The error of v wherever there is noise, at levels for each step. Eq. 94.14."
    def loss(denoiser, x0, t, eps):
        t = step_levels(schedule, t, x0.shape[-1], past).like(x0)
        p = denoiser(q_sample(x0, t, eps), t)
        error = t.signal*(eps - p.eps) - t.sigma*(x0 - p.x0)
        noisy = t.log_snr.isfinite().expand_as(x0).to(x0)
        return (noisy*error**2).flatten(1).sum(1)/noisy.flatten(1).sum(1)

    return loss


# %%NBQA-CELL-SEP15d533
# Eq. 94.14: by hand; clean steps do not count; the exact denoiser is best; levels are as described
torch.manual_seed(6)
x0 = world.sample(400)
eps = torch.randn_like(x0)
one = Cosine()(torch.rand(400, dtype=D)).like(x0)
t = step_levels(Cosine(), one, STEPS)
even, odd = t.log_snr[::2, 0], t.log_snr[1::2, 0]
clean = odd.isinf()
assert even.isfinite().all() and (clean[:, 1:] <= clean[:, :-1]).all()
close(odd[:, -1], one.log_snr[1::2, 0, 0], 1e-6)
assert clean.sum(1).min() >= 1 and clean.sum(1).max() == STEPS - 1
u = Cosine().time(Level(even))
told_12 = step_levels(Cosine(), one, STEPS, PAST).log_snr[1::2, 0].isinf()
errors = [close(u.mean(0), .5, .08), close(torch.corrcoef(u.T) - torch.eye(STEPS), 0., .3),
          close(told_12.sum(1), 12.), close(clean.double().mean(), .5, .06)]
passed('(94.14) levels: independent, or a clean past and one level', *errors)


def mixed(share, clean=0.):
    "The exact denoiser, a share of it; something else at clean steps."
    def denoiser(x, t):
        p = world(x, t)
        bad = clean*t.log_snr.isinf()
        return Prediction(share*p.x0 + bad, p.eps + bad)
    return denoiser


def loss_of(denoiser):
    torch.manual_seed(7)  # the same levels each time
    return series_loss(Cosine())(denoiser, x0, one, eps)


torch.manual_seed(7)
t = step_levels(Cosine(), one, STEPS)
p = world(t.signal*x0 + t.sigma*eps, t)
by_hand = []
for k in range(6):
    noisy = t.log_snr[k, 0].isfinite()
    v = (t.signal*eps - t.sigma*x0)[k, 0, noisy] - (t.signal*p.eps - t.sigma*p.x0)[k, 0, noisy]
    by_hand.append(v.square().mean())
best = loss_of(mixed(1.))
assert loss_of(mixed(.9)).mean() > best.mean() and loss_of(mixed(1.1)).mean() > best.mean()
passed('(94.14) the loss', close(best[:6], torch.stack(by_hand)),
       close(loss_of(mixed(1., 5.)), best), by='step by step')


# %%NBQA-CELL-SEP15d533
# The network reads the level of each step, knows its neighbours, and starts at zero
torch.manual_seed(8)
net = SeriesNet(2, 8, (1, 2)).double()
x = torch.randn(3, 2, 10, dtype=D)
lam = torch.randn(3, 1, 10, dtype=D)
assert net(x, lam).abs().max() == 0 and sum(p.numel() for p in SeriesNet(1).parameters()) < 40_000
nn.init.normal_(net.last.weight)
moved = lam.clone()
moved[..., 4] += 1
changed = (net(x, moved) != net(x, lam)).any(1)[0]
assert changed.nonzero()[:, 0].tolist() == [*range(10)][0:9]  # 1 + 1 + 2 steps to each side
passed('one level for all steps', close(net(x, lam[..., 0].flatten()),
       net(x, lam[..., :1].expand(3, 1, 10))), by='the same level at each step')


# %%NBQA-CELL-SEP15d533
#| slow
# trains in under a minute of one core; what it measures is stored
def new_sequences(step):
    return (world.sample(128).float(),)


torch.manual_seed(0)
training = Training(Model(SeriesNet(1), level_input=near_log_snr))
for progress in fit(training, new_sequences, Cosine(), series_loss(Cosine()), 1200,
                    lr=4e-3, bf16=False):
    pass
small = {k: v.half() for k, v in training.average.state_dict().items()}
write_tensors(data_dir('runs')/'series.safetensors', small)


# %%NBQA-CELL-SEP15d533
# The trained network, and forecasts of many histories by seven ways; each is judged alike
def trained():
    "The network of the cell above, in float32."
    model = Model(SeriesNet(1), level_input=near_log_snr).eval()
    kept = read_tensors(data_dir('runs')/'series.safetensors')
    load_strictly(model, {k: v.float() for k, v in kept.items()}, 'series.safetensors')
    return model


DRAWS = 39  # their outer tenths on both sides are four ranks each


@torch.no_grad()
def forecasts(histories, names=None):
    "39 paths for each history [k 1 24], by each way."
    k = len(histories)
    past = histories[:, 0, :PAST]
    told_by = histories.repeat(DRAWS, 1, 1)
    noise = torch.randn(DRAWS*k, 1, STEPS, dtype=D)
    known = ~later
    answer = world.given(past)
    deviation = answer.cov.diag().sqrt()
    shape = DRAWS, k, STEPS - PAST

    def future(x):
        return x[:, 0, PAST:].reshape(shape).double()

    def by_network():
        small = noise.float()
        return future(last(dpmpp_2m(told(trained(), told_by.float(), known),
                                    grid(Cosine(), 30), small)))

    def replaced():
        return future(last(ancestral(replacement(world, told_by, pixels(known.double())),
                                     grid(Cosine(), 100), noise)))

    ways = {
        'Kalman': lambda: answer.mean + torch.randn(shape, dtype=D)
        @ torch.linalg.cholesky(answer.cov).T,
        'network': by_network,
        'exact denoiser, told': lambda: future(last(dpmpp_2m(told(world, told_by, known),
                                                             grid(Cosine(), 50), noise))),
        'exact denoiser, replacement': replaced,
        'right marginals, independent': lambda: answer.mean
        + deviation*torch.randn(shape, dtype=D),
        'any year: ignores the past': lambda: world.sample(DRAWS*k)[:, 0, :STEPS - PAST]
        .reshape(shape),
        'last value': lambda: past[:, -1:].expand(shape)}
    return {name: ways[name]() for name in names or ways}


def expected_crps(paths, answer):
    "The score on average over all that may happen: nothing of y is left to chance. [h]"
    deviation = answer.cov.diag().sqrt()
    z = (paths - answer.mean)/deviation
    density = torch.exp(-z**2/2)/math.sqrt(2*math.pi)
    away = deviation*(z*(2*torch.special.ndtr(z) - 1) + 2*density)  # E |X - y|
    pairs = paths.abs().mean(0) - fair_crps(paths, torch.zeros_like(paths[0]))
    return (away.mean(0) - pairs).mean(0)


def covered(draws, y):
    "The share of what happened within the middle 80 %."
    rank = rank_among(draws, y)
    return ((rank >= 4) & (rank < 36)).double().mean()


def judged(paths, histories):
    "All that the table says of one way to forecast."
    past, y = histories[:, 0, :PAST], histories[:, 0, PAST:]
    answer = world.given(past)
    best = answer.cov.diag().sqrt()/math.sqrt(math.pi)
    crps = expected_crps(paths, answer)
    joined = torch.cat([past[:, -2:].expand(len(paths), -1, -1), paths], 2)
    first = joined[..., 2] - 1.5*joined[..., 1] + .75*joined[..., 0]
    top, top_y = paths.amax(-1), y.amax(-1)
    ranks = rank_among(paths[..., 0], y[:, 0]), rank_among(top, top_y)
    return dict(
        crps=(crps.mean()/best.mean()).item(), by_step=(crps/best).tolist(),
        covered=covered(paths, y).item(), first=(first.square().mean()/gain).item(),
        energy=energy_score(paths, y).mean().item(), top=fair_crps(top, top_y).mean().item(),
        top_covered=covered(top, top_y).item(),
        ranks=[(r // 4).bincount(minlength=10).tolist() for r in ranks])


# %%NBQA-CELL-SEP15d533
#| slow
# 400 histories by each way
what = ('fair CRPS of forecasts of AR(2), on average over what may happen, divided by '
        'that of the exact forecast; the share of 80 % bands; the variance of the first '
        'disturbance / exact; scores of paths and of their highest value; ranks in '
        'tenths, of the first step and of the highest value')
found = measurement('series', what,
                    'python tools/nb.py run nbs/94_series.ipynb --flags slow', {})
torch.manual_seed(11)
histories = world.sample(400)
found['rows'] = {name: judged(paths, histories)
                 for name, paths in forecasts(histories).items()}
keep_measurement('series', found)


# %%NBQA-CELL-SEP15d533
# Table 94.1: seven ways to forecast twelve steps; and some of it measured again
rows = measurement('series')['rows']
best = rows['Kalman']
print(f'{"":30}{"CRPS":>7}{"step 1":>8}{"80 % bands":>12}{"first jump":>12}'
      f'{"energy":>8}{"highest":>9}{"80 %":>7}')
for name, r in rows.items():
    print(f'{name:30}{r["crps"]:7.3f}{r["by_step"][0]:8.2f}{r["covered"]:12.0%}{r["first"]:12.2f}'
          f'{r["energy"]/best["energy"]:8.3f}{r["top"]/best["top"]:9.2f}{r["top_covered"]:7.0%}')


# %%NBQA-CELL-SEP15d533
# Figure 94.3: scores over the steps ahead; ranks of what happened, in tenths
fig, axes = plt.subplots(1, 5, figsize=(7, 2.1), layout='constrained', dpi=160,
                         width_ratios=(2.1, 1, 1, 1, 1))
ax = axes[0]
looks = {'exact denoiser, replacement': (RED, 'replacement', (3.2, 1.24)),
         'any year: ignores the past': ('.5', 'any year', (1.9, 2.0)),
         'last value': ('.7', 'last value', (7.6, 2.6)), 'network': (BLUE, 'network', (8.4, .82))}
for name, (colour, label, place) in looks.items():
    ax.plot(range(1, 13), rows[name]['by_step'], color=colour, linewidth=1.3)
    ax.text(*place, label, color=colour, fontsize=8)
ax.axhline(1, color='k', linestyle='--', linewidth=.8, zorder=0)
ax.set(title='CRPS / exact', xlabel='steps ahead', xticks=[1, 4, 8, 12], ylim=(.7, 3))
panels = (('network', 0, BLUE, 'network,\nnext step'),
          ('exact denoiser, replacement', 0, RED, 'replacement,\nnext step'),
          ('any year: ignores the past', 0, '.5', 'any year,\nnext step'),
          ('right marginals, independent', 1, RED, 'independent,\nhighest value'))
for ax, (name, which, colour, title) in zip(axes[1:], panels):
    ax.bar(range(10), rows[name]['ranks'][which], 1, color=colour, alpha=.6)
    ax.axhline(40, color='k', linestyle='--', linewidth=.8)
    ax.set(title=title, xticks=[-.5, 9.5], xticklabels=['low', 'high'], yticks=[], ylim=(0, 160))


# %%NBQA-CELL-SEP15d533
# Table 94.1: its claims, by the stored rows; three of them measured again on 25 other histories
net, swapped = rows['network'], rows['exact denoiser, replacement']
apart, anyhow = rows['right marginals, independent'], rows['any year: ignores the past']
assert net['crps'] < 1.03 and max(net['by_step']) < 1.03 and abs(net['top_covered'] - .8) < .06
assert swapped['by_step'][0] > 1.3 and abs(swapped['covered'] - .8) < .03
assert apart['crps'] < 1.01 and apart['top_covered'] < .7 and apart['top'] > 1.1*best['top']
assert abs(anyhow['covered'] - .8) < .03 and anyhow['by_step'][0] > 2.5
torch.manual_seed(13)
histories = world.sample(25)
ways = 'Kalman', 'network', 'exact denoiser, replacement', 'right marginals, independent'
again = {name: judged(paths, histories) for name, paths in forecasts(histories, ways).items()}
errors = [close(again[name]['crps'], rows[name]['crps'], .05) for name in ways]
assert again[ways[2]]['by_step'][0] > 1.25 and again['network']['by_step'][0] < 1.1
answer = world.given(histories[:, 0, :PAST])
right = answer.cov.diag().sqrt()/math.sqrt(math.pi)
drawn = forecasts(histories, ['Kalman'])['Kalman']
errors.append(close(expected_crps(drawn, answer)/right, 1., .05))
passed('table 94.1, measured again', *errors, by='25 other histories')


# %%NBQA-CELL-SEP15d533
#| export systems.forecast
import csv
import hashlib
import math
import re
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Model
from ddpm_lit.core.files import read_json, read_text, replacing
from ddpm_lit.core.problem import Problem, counted
from ddpm_lit.diffusion.sample import last
from ddpm_lit.diffusion.schedule import Cosine, grid
from ddpm_lit.diffusion.series import fair_crps, rank_among, series_loss, told
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.nets.series import SeriesNet, near_log_snr
from ddpm_lit.systems.own import Watch, recipe_for_time, train_recipe
from ddpm_lit.train.recipe import MAKERS, Recipe, made
from ddpm_lit.train.run import Place
from ddpm_lit.train.weights import load_weights


# %%NBQA-CELL-SEP15d533
#| export systems.forecast
@dataclass(frozen=True)
class Table:
    "Numbers in time: rows of a file, oldest first."
    names: list[str]  # of the variables
    times: list       # [l] datetimes, or numbers
    values: Tensor    # [c l] float64

    def ahead(self, k: int) -> str:  # k rows after the last one, from 1 on
        "The time of a row to come, as text."
        before, end = self.times[-2:]
        if not isinstance(end, datetime):
            return f'{end + k*(end - before):g}'

        # months have no fixed length
        months = (end.year - before.year)*12 + end.month - before.month
        if months and (before.day, before.time()) == (end.day, end.time()) and end.day < 29:
            years, month = divmod(end.month - 1 + k*months, 12)
            time = end.replace(year=end.year + years, month=month + 1)
        else:
            apart = sorted(b - a for a, b in pairwise(self.times))
            time = end + k*apart[len(apart) // 2]
        return time.isoformat(' ').removesuffix(' 00:00:00')


# columns of numbers that are times, by their names
_CLOCKS = 'time', 'times', 'date', 'datetime', 'timestamp', 'year', 'month', 'day', 't'


def _number_in(cell: str) -> float | None:  # None: it is no number
    "A finite number as it is typed, or NaN for an empty cell."
    if cell.strip().lower() in ('', 'na', 'nan', 'null', 'none', '-'):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else math.nan


def _time_in(cell: str) -> datetime | None:  # None: it is no time
    "A time as ISO 8601 writes it; a month alone is its first day."
    cell = cell.strip()
    try:
        return datetime.fromisoformat(f'{cell}-01' if re.fullmatch(r'\d{4}-\d\d', cell)
                                      else cell)
    except ValueError:
        return None


def _cells_of(path) -> list[list[str]]:
    "The lines of a table, as rows of cells; semicolons and tabs divide them, too."
    text = read_text(path, 64 << 20).lstrip('\ufeff')
    first = text.split('\n', 1)[0]
    mark = max(',;\t', key=first.count)
    try:
        rows = [*csv.reader(text.rstrip().split('\n'), delimiter=mark)]
    except csv.Error as e:
        raise Problem(f'{path} is no table that can be read ({e}): write one row a line, '
                      'with commas between numbers.') from e
    if mark != ',':  # 1,5 is one and a half there
        rows = [[re.sub(r'^(\s*-?\d*),(\d+\s*)$', r'\1.\2', cell) for cell in row]
                for row in rows]
    if len(rows) < 2:
        raise Problem(f'{path} has {counted(len(rows), "row")}: a forecast needs many '
                      'rows, one for each time.')
    for k, row in enumerate(rows, 1):
        if not any(cell.strip() for cell in row):
            raise Problem(f'Row {k} of {path} is empty: fill it in, or keep the rows '
                          'after it.')
        if len(row) != len(rows[0]):
            raise Problem(f'Row {k} of {path} has {counted(len(row), "cell")}, and row 1 '
                          f'has {len(rows[0])}: give each row one for each column.')
    return rows


def _checked_times(times: list, skip: int, path) -> list:  # skip: lines of names
    "The same times; a `Problem` unless they rise, evenly where most of them do."
    try:
        apart = [b - a for a, b in pairwise(times)]
        zero = times[0] - times[0]
        behind = [k for k, d in enumerate(apart) if d <= zero]
    except TypeError as e:
        raise Problem(f'Some times of {path} have a time zone and some have none: write '
                      'all in one way.') from e
    if behind:
        raise Problem(f'Row {behind[0] + 2 + skip} of {path} is not later than the row '
                      'before: sort the rows by time, each time once.')

    # a few long steps among equal ones are rows that are missing
    usual = sorted(apart)[len(apart) // 2]
    long = [k for k, d in enumerate(apart) if d > 1.5*usual]
    if 0 < len(long) < .1*len(apart):
        raise Problem(f'Rows are missing in {path} after row {long[0] + 1 + skip}: fill '
                      'them in, or keep what comes after the gap.')
    return times


def read_series(path) -> Table:
    "The table of a CSV file, one row a time, one column a variable."
    rows = _cells_of(path)
    named = any(_number_in(cell) is None and _time_in(cell) is None for cell in rows[0])
    names = [cell.strip() for cell in rows[0]] if named else []
    body = rows[named:]
    columns = [*zip(*body)]

    # at most one column of text, the times; or numbers that are called so and rise
    texts = [k for k, column in enumerate(columns)
             if sum(_number_in(cell) is None for cell in column) > len(column)/2]
    if len(texts) > 1:
        which = ', '.join(names[k] if named else f'{k + 1}' for k in texts[:3])
        raise Problem(f'{path} has {len(texts)} columns that are no numbers ({which}): '
                      'keep the one of the times, and take the others out.')
    clocks = texts or [k for k in range(len(names)) if names[k].lower() in _CLOCKS][:1]
    clock = clocks[0] if clocks else None
    if len(columns) == (clock is not None):
        raise Problem(f'{path} has no column of numbers: add what is to be forecast.')
    times: list = [*range(1, len(body) + 1)]
    if clock is not None:
        read = _time_in if texts else _number_in
        times = [read(cell) for cell in columns[clock]]
        for k, time in enumerate(times):
            if time is None or time != time:
                raise Problem(f'Row {k + 1 + named} of {path} has no time that can be '
                              'read: write it as 2026-01-31 or 2026-01-31 13:00.')
        times = _checked_times(times, named, path)

    # the numbers, none missing
    kept = [k for k in range(len(columns)) if k != clock]
    names = [names[k] or f'column {k + 1}' for k in kept] if named else \
        [f'column {k + 1}' for k in kept]
    numbers = [[_number_in(cell) for cell in columns[k]] for k in kept]
    values = torch.tensor([[math.nan if v is None else v for v in column]
                           for column in numbers], dtype=torch.float64)
    gaps = (~values.isfinite()).nonzero()
    if len(gaps):
        c, k = gaps[gaps[:, 1].argmin()].tolist()
        raise Problem(f'Row {k + 1 + named} of {path} has no number for {names[c]}: fill '
                      'it in, or keep the rows after it.')
    for name, column in zip(names, values):
        if (column == column[0]).all():
            raise Problem(f'{name} is the same number in all rows of {path}: take that '
                          'column out.')
    return Table(names, times, values)


# %%NBQA-CELL-SEP15d533
#| export systems.forecast
def _not_here(batch, seed, device):
    raise Problem('The rows of a series are in its file: go on with ddpm_lit forecast '
                  'FILE.')


@MAKERS.add('series')
def _series_recipe(variables: list[str], past: int, horizon: int, rows: int, digest: str,
                   center: list[float], scale: list[float],  # [c], of the numbers
                   follows: bool,  # does it learn the way from the last known value?
                   ) -> Recipe:
    "A small network for the series of a table."
    length = past + horizon
    dilations = tuple(2**k for k in range(9) if 2**k <= max(1, length // 3))*2

    def build():
        return Model(SeriesNet(len(variables), 32, dilations), level_input=near_log_snr)

    return Recipe('forecast', build, _not_here, (len(variables), length),
                  loss=series_loss(Cosine(), past), settings=dict(bf16=False, lr=4e-3),
                  sampler='')


def _digest(values: Tensor) -> str:  # [c rows]
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


def _scaled(windows: Tensor, spec: dict) -> tuple[Tensor, Tensor, Tensor]:  # [b c l]
    "Windows as the network reads them, and the base and the scale that lead back."
    scale = torch.tensor(spec['scale'], dtype=windows.dtype)[:, None]
    base = torch.tensor(spec['center'], dtype=windows.dtype)[:, None]
    if spec['follows']:
        base = windows[..., spec['past'] - 1:spec['past']]
    return (windows - base)/scale, base, scale


def plan_series(table: Table, horizon: int,
                past: int | None = None,  # None: twice the horizon, at least 24
                ) -> Recipe:
    "A recipe for the first rows of a table; the last ones are held out."
    rows = table.values.shape[1]
    past = past or max(2*horizon, 24)
    held = max(2*horizon, rows // 10)
    least = past + 5*horizon
    if rows < least:
        raise Problem(f'There are {rows:,} rows, and a forecast of {horizon} from {past} '
                      f'needs {least:,}: give more rows, or a smaller `horizon`.')

    # does it wander? then the network learns the way from the last known value
    seen = table.values[:, :rows - held]
    far = (seen[:, horizon:] - seen[:, :-horizon]).square().mean(1)
    follows = bool((far < 1.5*seen.var(1)).all())
    spec = dict(maker='series', variables=table.names, past=past, horizon=horizon,
                rows=rows - held, digest=_digest(seen), follows=follows,
                center=seen.mean(1).tolist(), scale=seen.std(1).tolist())
    length = past + horizon
    if follows:
        windows = seen.unfold(1, length, 1).transpose(0, 1)
        away = _scaled(windows, spec)[0]
        spec['scale'] = (away.square().mean((0, 2)).sqrt()*seen.std(1)).tolist()

    # a small table is not learned by heart
    recipe = made(spec)
    looks = min(400*(rows - held - length + 1), 1_000_000)
    return replace(recipe, steps=max(200, looks // recipe.batch))


def _with_rows(recipe: Recipe, table: Table) -> Recipe:
    "The recipe, with the rows that it learns from."
    spec = recipe.spec
    seen = table.values[:, :spec['rows']]
    length = spec['past'] + spec['horizon']
    if table.names != spec['variables'] or _digest(seen) != spec['digest']:
        raise Problem('The first rows of this table are not those that the run has '
                      'learned: give another folder with `out`.')

    def batches(size, seed, device):
        def batch(step):
            first = torch.randint(spec['rows'] - length + 1, (size, 1))
            windows = seen[:, first + torch.arange(length)].transpose(0, 1)
            return (_scaled(windows, spec)[0].float().to(device),)
        return batch

    return replace(recipe, batches=batches)


def train_series(table: Table, out, horizon: int, past: int | None = None,
                 seconds: float = 60., seed: int = 0, place: Place | None = None,
                 watch: Watch | None = None) -> tuple[Model, Recipe]:
    "The network of the run in `out`; it is trained, or trained on, where it has to be."
    out = Path(out)
    place = place or Place()
    weights = out/'forecast.safetensors'
    begun = weights.exists()
    if begun:
        card = read_json(weights.with_suffix('.json'), 'give another folder with `out`')
        if (card.get('spec') or {}).get('maker') != 'series':
            raise Problem(f'{weights} is not of a series: give another folder with `out`.')
        recipe = _with_rows(made(card['spec']), table)
        spec = recipe.spec
        if horizon > spec['horizon'] or past not in (None, spec['past']):
            raise Problem(f'The run in {out} forecasts {spec["horizon"]} rows from '
                          f'{spec["past"]}: ask for that, or give another folder with '
                          '`out`.')
    else:
        recipe = _with_rows(plan_series(table, horizon, past), table)
        most = recipe.steps
        recipe, _ = recipe_for_time(recipe, seconds, device=place.device)
        recipe = replace(recipe, steps=min(most, recipe.steps))
    if not begun or card['steps'] < card['steps_planned']:
        given = {} if begun else dict(seed=seed)
        train_recipe(recipe, out, given, begun, False, place, watch)
    return load_weights(str(weights))[0], recipe


# %%NBQA-CELL-SEP15d533
#| export systems.forecast
@torch.no_grad()
def continued_paths(model: Model, spec: dict, past: Tensor,  # [m c p]: the last p rows
                    n: int, steps: int = 20,
                    device: str | torch.device = 'cpu') -> Tensor:  # [n m c h]
    "Draw n paths that go on from each of m pasts. Eq. 94.5."
    m, c, _ = past.shape
    horizon = spec['horizon']
    windows = torch.cat([past[..., -spec['past']:], past.new_zeros(m, c, horizon)], -1)
    x0, base, scale = _scaled(windows, spec)
    known = torch.arange(x0.shape[-1], device=device) < spec['past']
    x0 = x0.float().to(device).repeat(n, 1, 1)

    ends = []
    for some in x0.split(2048):
        denoiser = told(model.to(device), some, known)
        ends.append(last(dpmpp_2m(denoiser, grid(Cosine(), steps),
                                  torch.randn_like(some))))
    paths = torch.cat(ends)[..., spec['past']:].view(n, m, c, horizon).cpu().to(past)
    return paths*scale + base


def _linear_paths(seen: Tensor,  # [c rows]: to fit
                  past: Tensor,  # [m c p]
                  horizon: int, n: int) -> Tensor:  # [n m c h]
    "Paths of an autoregression for each variable, with its residuals as disturbances."
    order = min(past.shape[-1], 24, seen.shape[1] // 4)
    paths = past.new_zeros(n, *past.shape[:2], horizon)
    for c, series in enumerate(seen):
        # least squares: the next value from the last ones and a constant
        windows = series.unfold(0, order + 1, 1)
        one = torch.ones_like(windows[:, :1])
        X, y = torch.cat([windows[:, :-1], one], 1), windows[:, -1:]
        b = torch.linalg.lstsq(X, y).solution
        left = (y - X @ b)[:, 0]*math.sqrt(len(y)/max(len(y) - order - 1, 1))

        state = past[:, c, -order:].repeat(n, 1)
        for k in range(horizon):
            e = left[torch.randint(len(left), (len(state),))]
            now = state @ b[:-1, 0] + b[-1, 0] + e
            paths[..., c, k] = now.view(n, -1)
            state = torch.cat([state[:, 1:], now[:, None]], 1)
    return paths


def judge_series(model: Model, recipe: Recipe, table: Table, n: int = 39,
                 device: str | torch.device = 'cpu') -> dict:
    "Forecasts of rows that were held out, beside an autoregression and the last value."
    spec = recipe.spec
    values, past, horizon = table.values, spec['past'], spec['horizon']
    rows = values.shape[1]

    # starts, evenly; what is known at each, and what happened then
    starts = torch.arange(spec['rows'], rows - horizon + 1)
    starts = starts[torch.linspace(0, len(starts) - 1, 20).round().long().unique()]
    before = torch.stack([values[:, s - past:s] for s in starts.tolist()])
    y = torch.stack([values[:, s:s + horizon] for s in starts.tolist()])
    unit = values[:, :spec['rows']].std(1)[:, None]

    found = {}
    scores = []
    for name, paths in (
            ('network', continued_paths(model, spec, before, n, device=device)),
            ('autoregression', _linear_paths(values[:, :spec['rows']], before, horizon, n)),
            ('last value', before[..., -1:].expand(n, *y.shape))):
        scores.append((fair_crps(paths, y)/unit).mean((1, 2)))

        # 39 draws: their outer tenths on both sides are four ranks each
        rank = rank_among(paths, y)
        k = (n + 1) // 10
        held = ((rank >= k) & (rank < n + 1 - k)).double().mean()
        found[name] = dict(crps=scores[-1].mean().item(), covered=held.item())

    # of the same starts: the difference, and its standard error
    gap = scores[0] - scores[1]
    error = (gap.std()/math.sqrt(len(gap))).item() if len(gap) > 1 else math.inf
    return dict(forecasts=len(starts), rivals=found, gap=gap.mean().item(), error=error)


def verdict(judged: dict) -> str:  # of `judge_series`
    "What the scores say about trust, in a sentence."
    gap, error = judged['gap'], judged['error']
    if gap + 2*error < 0:
        return 'On rows held out, the network forecasts better than an autoregression.'
    if gap - 2*error > 0:
        return ('On rows held out, an autoregression forecasts better: trust that '
                'instead.')
    return ('On rows held out, the network and an autoregression forecast equally well, '
            'as far as so few forecasts can tell.')


# %%NBQA-CELL-SEP15d533
#| export systems.forecast
SHARES = .1, .25, .5, .75, .9


def write_forecast(table: Table, paths: Tensor, out):  # [n c h]; out: a folder
    "Quantiles and paths as CSV files; gives their names."
    times = [table.ahead(k + 1) for k in range(paths.shape[-1])]
    bands = paths.quantile(torch.tensor(SHARES, dtype=paths.dtype), dim=0)  # [5 c h]
    written = {}
    for name, head, rows in (
            ('forecast', [f'{v} {100*q:.0f} %' for v in table.names for q in SHARES],
             bands.permute(2, 1, 0).flatten(1)),
            ('paths', [f'{v} {i + 1}' for v in table.names for i in range(len(paths))],
             paths.permute(2, 1, 0).flatten(1))):
        with replacing(Path(out)/f'{name}.csv') as p, open(p, 'w', newline='') as f:
            write = csv.writer(f)
            write.writerow(['time', *head])
            for time, row in zip(times, rows.tolist()):
                write.writerow([time, *(f'{v:.6g}' for v in row)])
        written[name] = str(Path(out)/f'{name}.csv')
    return written


# %%NBQA-CELL-SEP15d533
#| export cli.forecast
import os
import click
from ddpm_lit.cli.base import (
    Bars, Command, Count, Number, Range, emit, note, options, start)


def _forecast_report(found: dict) -> str:
    "What a forecast says, and how far it can be trusted."
    rivals = found['rivals']
    lines = [f'{name:16}{r["crps"]:10.3f}{r["covered"]:22.0%}' for name, r in rivals.items()]
    chances = [f'chance that {name} passes {found["above"]:g}: {share:.0%}'
               for name, share in found['chances'].items()]
    return '\n'.join([
        f'{"":16}{"fair CRPS":>10}{"within 80 % bands":>22}   ({found["forecasts"]} '
        'forecasts; in standard deviations)',
        *lines, found['verdict'], *chances,
        f'chart: {found["chart"]}', f'quantiles: {found["forecast"]}',
        f'paths: {found["paths"]}'])


def _fan_chart(shares, table, paths):  # [n c h] -> a figure of matplotlib
    "The last rows, and bands that hold half and four fifths of the paths."
    import matplotlib.pyplot as plt
    import torch
    from ddpm_lit.show import INK
    n, c, h = paths.shape
    shown = min(c, 6)
    fig, axes = plt.subplots(shown, 1, figsize=(7, 2.4*shown), layout='constrained',
                             sharex=True, squeeze=False)
    past = table.values[:, -3*h:]
    ago = torch.arange(1 - past.shape[1], 1)
    ahead = torch.arange(h + 1)
    for ax, name, seen, drawn in zip(axes[:, 0], table.names, past, paths.transpose(0, 1)):
        drawn = torch.cat([seen[-1:].expand(n, 1), drawn], 1)
        bands = drawn.quantile(torch.tensor(shares, dtype=drawn.dtype), dim=0)
        ax.fill_between(ahead, bands[0], bands[4], color=INK['model'], alpha=.2, lw=0)
        ax.fill_between(ahead, bands[1], bands[3], color=INK['model'], alpha=.3, lw=0)
        ax.plot(ahead, drawn[:5].T, color=INK['model'], lw=.6)
        ax.plot(ago, seen, color='k', lw=1)
        ax.set(ylabel=name)
    axes[-1, 0].set(xlabel='rows from the last one known')
    return fig


@click.command('forecast', cls=Command)
@click.argument('file')
@click.option('--horizon', type=Count(1, 10_000), default=24, show_default=True,
              help='How many rows to forecast.')
@click.option('--past', type=Count(2, 10_000),
              help='How many rows a forecast reads.  [default: twice the horizon, at '
                   'least 24]')
@click.option('--out', type=click.Path(file_okay=False),
              help='Folder of the run, which a later call uses again.  [default: '
                   'runs/NAME, as FILE is called]')
@click.option('--seconds', type=Range(1), default=60., show_default=True,
              help='Train for about so long, where there is no run yet.')
@click.option('--n', type=Count(20, 10_000), default=199, show_default=True,
              help='How many paths to draw.')
@click.option('--above', type=Number(),
              help='Also say how likely it is that a path passes this value.')
@options('seed', 'place', 'json')
def forecast_command(file, horizon, past, out, seconds, n, above, seed, place, as_json):
    """Forecast the next rows of the table FILE, and say how far to trust it. A CSV file:
    a row for each time, a column for each variable, and times in a column if you like."""
    from pathlib import Path
    from ddpm_lit.systems import forecast as library

    table = library.read_series(file)
    out = Path(out or f'runs/{Path(os.path.realpath(file)).stem}')
    device = start(place['device'], place['threads'])
    found = _forecast_in(library, table, out, horizon, past, seconds, n, above, seed,
                         device)
    emit(as_json, found, _forecast_report(found))


def _forecast_in(library, table, out, horizon, past, seconds, n, above, seed,
                 device) -> dict:
    "Train, judge and forecast; what came of it."
    import torch
    from ddpm_lit.show import save_figure
    from ddpm_lit.systems.own import Watch
    from ddpm_lit.train.run import Place, Stopped

    try:
        with Bars() as bars:
            def progress(at, of, words):
                bars('train forecast', at, of, words)
            watch = Watch(progress=progress)
            model, recipe = library.train_series(table, out, horizon, past, seconds, seed,
                                                 Place(device), watch)
    except Stopped as e:
        note(f'stopped, and all steps are saved in {out}: give the same command to go on.')
        raise click.exceptions.Exit(e.exit_code) from e

    torch.manual_seed(seed)
    judged = library.judge_series(model, recipe, table, device=device)
    paths = library.continued_paths(model, recipe.spec, table.values[None], n,
                                    device=device)[:, 0, :, :horizon]
    written = library.write_forecast(table, paths, out)
    _fan_chart(library.SHARES, table, paths)
    save_figure(out/'forecast.png')
    chances = {}
    if above is not None:
        share = (paths > above).any(-1).double().mean(0).tolist()
        chances = dict(zip(table.names, share))
    return dict(judged, verdict=library.verdict(judged), above=above, chances=chances,
                chart=str(out/'forecast.png'), **written)


# %%NBQA-CELL-SEP15d533
# Tables as people write them; what is refused, each in one sentence
folder = Path(tempfile.mkdtemp())


def table_of(text, name='load.csv'):
    "`read_series` of a file with this text."
    (folder/name).write_text(text)
    return read_series(folder/name)


def lines(f, n=20):
    return '\n'.join(map(f, range(n)))


plain = table_of(lines(lambda k: f'{k*k},{-k}'))
assert plain.names == ['column 1', 'column 2'] and plain.ahead(2) == '22'
assert plain.values.tolist() == [[k*k for k in range(20)], [-k for k in range(20)]]
monthly = table_of('month;a b\n' + lines(lambda k: f'{2000 + k // 12}-{k % 12 + 1:02};{k},5'))
assert monthly.names == ['a b'] and monthly.values[0, 3] == 3.5
assert [monthly.ahead(k) for k in (1, 5, 17)] == ['2001-09-01', '2002-01-01', '2003-01-01']
hourly = table_of('t,v\n' + lines(lambda k: f'2026-01-0{1 + k // 24} {k % 24:02}:00,{k % 7}', 30))
assert hourly.ahead(19) == '2026-01-03 00:00:00'[:10] and hourly.ahead(1) == '2026-01-02 06:00:00'
yearly = table_of('year,v\n' + lines(lambda k: f'{1990 + k},{k % 5}'))
assert yearly.ahead(3) == '2012' and yearly.names == ['v']

day = '2026-01-{:02},{}'
for text, words in (
        ('a\n1\n\n3\n', 'Row 3'), ('a,b\n1,2\n,3\n', 'no number for a'),
        ('a,b\n1,2\n3,x\n4,5\n', 'Row 3'), ('a,b\n1,2\n3\n', '1 cell'),
        ('name,note,a\nx,y,1\nu,v,2\n', '2 columns that are no numbers (name, note)'),
        ('d,a\n' + lines(lambda k: day.format(20 - k, k), 9), 'sort the rows'),
        ('d,a\n' + lines(lambda k: day.format(1 + k + (k > 9), k)), 'missing'),
        ('d,a\n2026-01-01,1\nsoon,2\n', '2026-01-31'), ('a\n1\n1\n1\n', 'same number'),
        ('', '1 row'), ('d\n2026-01-01\n2026-01-02\n', 'no column of numbers'),
        ('d,a\n2026-01-02,1\n2026-01-03T00:00+01:00,3\n', 'time zone')):
    with expect_fail(words, Problem, show=False):
        table_of(text)
with expect_fail('give more rows', Problem):
    plan_series(plain, 12)
passed('tables: read, or refused in a sentence', by='16 files')


# %%NBQA-CELL-SEP15d533
# From a terminal: a run, a second call that uses it, and the numbers beside those of the library
torch.manual_seed(9)
long = autoregression((1.5, -.75), 400).sample(1)[0, 0]*3 + 10
days = [datetime.fromordinal(738_900 + k).date() for k in range(330)]
rows_in = ['day,load', *(f'{day},{v:.4f}' for day, v in zip(days, long.tolist()))]
(folder/'load.csv').write_text('\n'.join(rows_in))
terminal = Terminal(folder)
command.add_command(forecast_command)  # the one of this page
line = 'forecast load.csv --horizon 6 --past 12 --seconds 1 --n 40 --above 14 --json'
out, err, code = terminal(line)
assert code == 0, err
first = json.loads(out)
weights = folder/'runs'/'load'/'forecast.safetensors'
was = weights.read_bytes()
out, err, code = terminal(line)
again = json.loads(out)
assert code == 0 and weights.read_bytes() == was and again.keys() == first.keys(), err
errors = [close(again['rivals'][name]['crps'], first['rivals'][name]['crps'], 1e-4)
          for name in ('network', 'autoregression', 'last value')]

out, err, code = terminal(line.removesuffix(' --json'))
assert code == 0 and err == '' and 'fair CRPS' in out and 'chance that load passes 14: ' in out
assert [row.split()[0] for row in out.splitlines()[1:4]] == ['network', 'autoregression', 'last']
assert verdict(again) in out

# its paths lie in paths.csv, in time after the last row; chances and quantiles are theirs
written = [row.split(',') for row in (folder/'runs'/'load'/'paths.csv').read_text().splitlines()]
assert len(written) == 7 and len(written[0]) == 41 and written[0][1] == 'load 1'
drawn = torch.tensor([[float(v) for v in row[1:]] for row in written[1:]], dtype=D)
bands = [row.split(',') for row in
         (folder/'runs'/'load'/'forecast.csv').read_text().splitlines()[1:]]
errors.append(close((drawn > 14).any(0).double().mean(), again['chances']['load'], .03))
errors.append(close(drawn.quantile(.5, 1), [float(b[3]) for b in bands], 1e-3))
last_day, next_day = rows_in[-1].split(',')[0], bands[0][0]
assert next_day > last_day and (folder/'runs'/'load'/'forecast.png').stat().st_size > 5000

# a longer horizon, other rows, too few rows: one sentence, and the run is as it was
short = '\n'.join(rows_in[:40])
(folder/'short.csv').write_text(short)
(folder/'other.csv').write_text('\n'.join([rows_in[0], *rows_in[20:]]))
for wrong, words in (('forecast load.csv --horizon 9', 'forecasts 6 rows from 12'),
                     ('forecast short.csv --horizon 12', 'or a smaller --horizon'),
                     ('forecast other.csv --horizon 6 --out runs/load', 'give another folder'),
                     ('forecast none.csv', 'cannot be read'),
                     ('train --resume --out runs/load', 'ddpm_lit forecast'),
                     ('train --data load.csv', 'ddpm_lit forecast'),
                     ('sample runs/load', 'does not draw')):
    out, err, code = terminal(wrong)
    assert code == 1 and words in err and err.count('\n') == 1, (wrong, err)
assert weights.read_bytes() == was
card = json.loads((weights.with_suffix('.json')).read_text())
assert card['command'] == 'ddpm_lit forecast FILE --horizon 6 --past 12 --seed 0'
passed('ddpm_lit forecast: chances and quantiles', *errors, by='its own paths')


# %%NBQA-CELL-SEP15d533
# The rivals and the verdict: an autoregression that is known; scales and bases lead back
torch.manual_seed(10)
two = torch.stack([autoregression((1.5, -.75), 3000).sample(1)[0, 0]*2 + 5,
                   torch.randn(3000, dtype=D).cumsum(0)])
known_one = autoregression((1.5, -.75), 24)
past = known_one.sample(40)[..., :PAST]
with torch.random.fork_rng():
    drawn = _linear_paths(two[:1], past*2 + 5, 12, 400)
answer = known_one.given(past[:, 0])
away = ((drawn[:, :, 0] - 5)/2 - answer.mean)/answer.cov.diag().sqrt()
errors = [close(away.mean(0).square().mean(), 0., .05), close(away.var(0).mean(0), 1., .12)]
table = Table(['a', 'b'], [*range(3000)], two)
plans = [plan_series(Table([name], table.times, two[k:k + 1]), 12) for k, name in enumerate('ab')]
assert [p.spec['follows'] for p in plans] == [False, True]  # the second one wanders
for plan in plans:
    windows = torch.randn(4, 1, 36, dtype=D)*3
    x, base, scale = _scaled(windows, plan.spec)
    errors.append(close(x*scale + base, windows))
    batch = _with_rows(plan, Table(plan.spec['variables'], table.times,
                                   two[:1] if plan is plans[0] else two[1:])).batches(256, 0, 'cpu')
    errors.append(close(batch(0)[0].square().mean(), 1., .3))
passed('autoregression as a rival, and the scale of windows', *errors, by='the exact forecast')


class Exact:
    "The exact denoiser of windows of 36 steps, where a trained network is expected."
    world = autoregression((1.5, -.75), 36)

    def to(self, device):
        return self

    def __call__(self, x, t):
        p = self.world(x.double(), Level(t.log_snr.double()))
        return Prediction(p.x0.float(), p.eps.float())


plan = plans[0]
plan.spec.update(center=[5.], scale=[2.])
made_up = Table(['a'], table.times, two[:1])
found = judge_series(Exact(), plan, made_up)
held = torch.arange(plan.spec['rows'], 3000 - 11)
at = held[torch.linspace(0, len(held) - 1, 20).round().long()].tolist()
then = torch.stack([two[0, s:s + 12] for s in at])
answer = Exact.world.given(torch.stack([(two[0, s - 24:s] - 5)/2 for s in at]))
unit = two[0, :plan.spec['rows']].std()
by_formula = 2*gaussian_crps(answer.mean, answer.cov.diag().sqrt(), (then - 5)/2).mean()/unit
still = (then - torch.stack([two[0, s - 1:s] for s in at])).abs().mean()/unit
scores = {name: r['crps'] for name, r in found['rivals'].items()}
assert found['forecasts'] == 20 and found['error'] > 0
assert found['rivals']['last value']['covered'] == 0
passed('held-out scores of an exact network', close(scores['network'], by_formula, .03),
       close(scores['autoregression'], by_formula, .04), close(scores['last value'], still),
       close(found['gap'], scores['network'] - scores['autoregression']),
       close(found['rivals']['network']['covered'], .8, .12), by='the exact forecast')
paths = continued_paths(Exact(), plan.spec, two[None, :1], 400)[:, 0]
answer = Exact.world.given((two[:1, -24:] - 5)/2)
off = ((paths[:, 0] - 5)/2 - answer.mean)/answer.cov.diag().sqrt()
files = write_forecast(made_up, paths, folder)
bands = [row.split(',') for row in Path(files['forecast']).read_text().splitlines()]
assert bands[0] == ['time', *(f'a {q} %' for q in (10, 25, 50, 75, 90))] and bands[1][0] == '3000'
assert [len(ax.lines) for ax in _fan_chart(SHARES, made_up, paths).axes] == [6]
plt.close()
passed('paths from the last row on', close(off.mean(0), 0., .2), close(off.var(0), 1., .3),
       close(paths[:, 0, 3].quantile(.75), float(bands[4][4]), 1e-3), by='the exact forecast')
for gap, error, words in ((-.1, .01, 'the network forecasts better'), (.1, .01, 'trust that'),
                          (.1, .1, 'equally well'), (-.1, .1, 'equally well')):
    assert words in verdict(dict(gap=gap, error=error))
shutil.rmtree(folder)


# %%NBQA-CELL-SEP15d533
# A clean past at the sampler's level, and one that is told as slightly noisy: exact laws
def mislabelled(x, t):
    "The exact denoiser, which reads one level for all steps."
    p = world(torch.where(later, x, truth), t.like(x))
    return Prediction(torch.where(later, p.x0, truth),
                      torch.where(later, p.eps, (x - t.signal*truth)/t.sigma))


mean, cov = linear_law(lambda x: last(ddim(mislabelled, grid(Cosine(), 400), x)))
ratio = (cov.diag()/torch.cat([torch.ones(PAST), exact_law.cov.diag()]))[PAST:]
print('variance / exact at 1, 4, 12 steps:', *(f'{v:.2f}' for v in ratio[[0, 3, 11]].tolist()))
assert ratio[0] > 1.5

t = Level(6.75)
seen = t.alpha_bar*world.cov[:PAST, :PAST] + t.sigma**2*torch.eye(PAST, dtype=D)
across = t.signal*world.cov[:PAST, PAST:]
wider = world.cov[PAST:, PAST:] - across.T @ torch.linalg.solve(seen, across)
growth = wider.diag()/exact_law.cov.diag()
noisy_past = Level(torch.where(later, -math.inf, torch.tensor(6.75, dtype=D))[None, None])
x = torch.cat([torch.zeros(1, STEPS, dtype=D), torch.eye(STEPS, dtype=D)])[:, None]
effects = world(x, noisy_past).x0[1:, 0, PAST:]  # of what is measured, on the forecast
explained = effects[:PAST].T @ seen @ effects[:PAST]
passed('a past at log SNR 6.75: three per cent wider at first', close(growth[0], 1.03, .005),
       close(wider + explained, world.cov[PAST:, PAST:]), by='variances of forecast and error')
assert (growth[1:] < growth[0]).all() and (growth > 1).all()


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1
def score(s):
    return ...


torch.manual_seed(0)
y = torch.randn(100_000, dtype=D)
for s in (.5, 1., 2.):
    now = fair_crps(s*torch.randn(8, 100_000, dtype=D), y).mean()
    close(now, score(s), .01)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2: the expected quantile loss of N(0, 1) at its own quantile
def quantile_loss(tau):
    return ...


tau = torch.arange(1, 20, dtype=D)/20
fine = (torch.arange(200_000, dtype=D) + .5)/200_000
close(quantile_loss(fine).mean(), 1/math.sqrt(math.pi), 1e-4), quantile_loss(tau).mean()


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: rounds of levels [1 1 l]; the past stays at log SNR 1
def measured_rounds(n):
    return ...


t = Level(1.)
torch.manual_seed(0)
seen_past = t.signal*truth + t.sigma*torch.randn_like(truth)
rounds = measured_rounds(200)


def run(x):
    return last(by_levels(world, rounds, torch.where(later, x, seen_past)))


mean, cov = linear_law(run)
matrix = t.alpha_bar*world.cov[:PAST, :PAST] + t.sigma**2*torch.eye(PAST, dtype=D)
gains = torch.linalg.solve(matrix, t.signal*world.cov[:PAST, PAST:])
width = world.cov[PAST:, PAST:] - gains.T @ matrix @ gains
close(mean[PAST:], seen_past[0, 0, :PAST] @ gains, .03)
close(cov[PAST:, PAST:], width, .04)


# %%NBQA-CELL-SEP15d533
# solution 1: E|X - y| = sqrt(2 (1 + s^2)/pi), and E|X - X'|/2 = s/sqrt(pi). At s = 1/2, 1, 2 this
# is 0.610, 0.564, 0.656: too wide costs more
def score(s):
    return math.sqrt(2*(1 + s**2)/math.pi) - s/math.sqrt(math.pi)


torch.manual_seed(0)
y = torch.randn(100_000, dtype=D)
for s in (.5, 1., 2.):
    now = fair_crps(s*torch.randn(8, 100_000, dtype=D), y).mean()
    close(now, score(s), .01)
close(score(.5), .61, 1e-3), close(score(2.), .6557, 1e-3), score(1.) < score(.5) < score(2.)


# %%NBQA-CELL-SEP15d533
# solution 2: the loss at the quantile q is 2 phi(q). Its mean over 19 values is 0.592, 5 % more
# than 0.564: the missing tails, where the loss is small, would bring it down
def quantile_loss(tau):
    q = torch.special.ndtri(tau)
    return 2*torch.exp(-q**2/2)/math.sqrt(2*math.pi)


tau = torch.arange(1, 20, dtype=D)/20
fine = (torch.arange(200_000, dtype=D) + .5)/200_000
q = torch.special.ndtri(tau)[:, None]
torch.manual_seed(0)
y = torch.randn(100_000, dtype=D)
drawn = (2*(y - q)*(tau[:, None] - (y < q).double())).mean(1)
close(quantile_loss(tau), drawn, .012)
close(quantile_loss(fine).mean(), 1/math.sqrt(math.pi), 1e-4), quantile_loss(tau).mean()


# %%NBQA-CELL-SEP15d533
# solution 3: the levels of a staircase, with the past at log SNR 1 in each round
def measured_rounds(n):
    return [Level(torch.where(later, t.log_snr, 1.))
            for t in staircase(grid(Cosine(), n), PAST, STEPS)]


t = Level(1.)
torch.manual_seed(0)
seen_past = t.signal*truth + t.sigma*torch.randn_like(truth)
rounds = measured_rounds(200)


def run(x):
    return last(by_levels(world, rounds, torch.where(later, x, seen_past)))


mean, cov = linear_law(run)
matrix = t.alpha_bar*world.cov[:PAST, :PAST] + t.sigma**2*torch.eye(PAST, dtype=D)
gains = torch.linalg.solve(matrix, t.signal*world.cov[:PAST, PAST:])
width = world.cov[PAST:, PAST:] - gains.T @ matrix @ gains
close(mean[PAST:], seen_past[0, 0, :PAST] @ gains, .03)
close(cov[PAST:, PAST:], width, .04)
