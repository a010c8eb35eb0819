# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.sample


# %%NBQA-CELL-SEP15d533
#| export
import math
import sys
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate, pairwise, repeat
from typing import Callable, Iterable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.registry import Registry, is_own
from ddpm_lit.core.denoiser import Denoiser, Prediction, from_x0
from ddpm_lit.core.level import Level, CLEAN
from ddpm_lit.diffusion.forward import new_noise
from ddpm_lit.diffusion.posterior import posterior
from ddpm_lit.diffusion.schedule import DiscreteSchedule, Grid


# %%NBQA-CELL-SEP15d533
#| hide
from functools import partial
import matplotlib.pyplot as plt
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.level import from_alpha_bar
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.data.toy import swiss_roll
from ddpm_lit.diffusion import sample as library  # the first pages use what the later ones build
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.oracle import EmpiricalDenoiser, Mixture, ring
from ddpm_lit.diffusion.schedule import Cosine, constant, grid, linear, linear_scaled
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


# worlds in one dimension, and the ring
one = torch.ones(1, dtype=D)
zero = torch.zeros(1, dtype=D)
humps = Mixture(torch.tensor([.3, .7], dtype=D), torch.tensor([[-1.2], [.6]], dtype=D),
                torch.tensor([.3, .2], dtype=D))
centred = Mixture(one, zero[None], zero + .5)
world = ring(dtype=D)


def bayes(u, x, s, t):
    "q(x_s = u | x_t = x) of the humps, as weights of a lattice [u x]: without any x0."
    rho = t.signal/s.signal  # 1 - rho^2 is beta
    likely = torch.distributions.Normal(rho*u, (1 - rho**2).sqrt())
    return (humps.log_prob(u, s)[:, None] + likely.log_prob(x.T)).softmax(0)


def tables(S):
    "DDPM's beta, alpha-bar and beta-tilde, the last one from t = 2."
    beta = S.betas
    ab = (1 - beta).cumprod(0)
    return beta, ab, beta[1:]*(1 - ab[:-1])/(1 - ab[1:])


def ladder(n):
    "n even steps of log SNR, from -6 to 4."
    return Grid(torch.linspace(-6, 4, n + 1, dtype=D))


# %%NBQA-CELL-SEP15d533
# Figure 14.1: noise becomes a swiss roll, by ancestral sampling and by DDIM; a film and its still
torch.manual_seed(0)
points = swiss_roll(1000)
roll = EmpiricalDenoiser(points)
x = torch.randn(600, 2)
x[:4] = torch.tensor([[-1.3, .9], [.9, 1.2], [1.2, -1.], [-.5, -1.5]])  # the marked ones
shown = {0: 'noise', 20: '20 steps', 30: '30', 34: '34', 37: '37', 40: '40: data'}
runs = {name: [x, *f(roll, grid(Cosine(), 40), x)]
        for name, f in (('ancestral', library.ancestral), ('DDIM', library.ddim))}
MARKS = ['tab:red', 'tab:orange', 'tab:green', 'tab:purple']


def draw(state, ax, size):
    "The points, and the four marked ones."
    show.cloud(state, ax, 'model', size=size, alpha=.5, limit=2.7)
    ax.scatter(*state[:4].T, s=11*size, zorder=3, edgecolors='black', linewidths=.7, c=MARKS)


still, axes = plt.subplots(2, 6, figsize=(7, 2.6), layout='constrained', dpi=160)
for row, (name, states) in zip(axes, runs.items()):
    row[0].set_ylabel(name)
    for ax, i in zip(row, shown):
        draw(states[i], ax, 2)
for ax, title in zip(axes[0], shown.values()):
    ax.set_title(title)


def frame(i):
    "Both runs after i steps."
    fig, pair = plt.subplots(1, 2, figsize=(7, 3.6), layout='constrained')
    for ax, (name, states) in zip(pair, runs.items()):
        ax.set_title(name)
        draw(states[i], ax, 4)
    return fig


kept = [0, 8, 14, 18, *range(20, 41)]  # little is seen of the first steps
values = [f'step {i}, log SNR {l.log_snr:.1f}'.replace('-', '−').replace('inf', '∞')
          for i, l in enumerate(grid(Cosine(), 40))]
show.Film(map(frame, kept), [values[i] for i in kept], still=still, alt='Noise becomes data step '
          'by step: ancestral sampling moves points about at random, DDIM moves them smoothly')


# %%NBQA-CELL-SEP15d533
# Figure 14.1: both runs end within 0.1 of the 1,000 points
far = [torch.cdist(states[-1], points).min(1).values for states in runs.values()]
passed('Figure 14.1: the distance of the farthest sample from the data',
       *(close(d, 0., .1) for d in far))


# %%NBQA-CELL-SEP15d533
import torch

alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, .02, 1000, dtype=torch.float64), 0)


@torch.no_grad()
def sample(net, x, steps=50, eta=0.):  # eta 0: DDIM, eta 1: ancestral sampling (DDPM)
    timesteps = torch.linspace(999, 0, steps).round().long()
    levels = torch.cat([alpha_bar[timesteps], torch.ones(1)])  # the last level is clean

    for t, ab_t, ab_s in zip(timesteps, levels, levels[1:]):
        # the predicted noise, and the clean data that it implies
        eps = net(x, t.repeat(len(x)).to(x.device))
        x0 = (x - (1 - ab_t).sqrt()*eps)/ab_t.sqrt()

        # the same two under less noise, some of it new if eta > 0
        std = eta*((1 - ab_s)/(1 - ab_t)*(1 - ab_t/ab_s)).sqrt()
        x = ab_s.sqrt()*x0 + (1 - ab_s - std**2).sqrt()*eps + std*torch.randn_like(x)
    return x


# %%NBQA-CELL-SEP15d533
# The plain sampler against the library's, on the ring and with a digit network
table = linear()


def plain_net(denoiser):
    "net(x, t) of a denoiser, at DDPM's timesteps."
    def net(x, t):
        return denoiser(x, Level(table.log_snr[t]).like(x)).eps

    return net


def gap(denoiser, x, n, eta, tol):
    "The plain sampler and the library's, from the same seed."
    torch.manual_seed(1)
    plain = sample(plain_net(denoiser), x, n, eta)
    torch.manual_seed(1)
    run = library.ddim(denoiser, library.respace(table, str(n)), x, eta)
    return close(library.last(run), plain, tol)


torch.manual_seed(0)
x = torch.randn(64, 2, dtype=D)
errors = [gap(world, x, n, eta, 1e-9) for n in (7, 50) for eta in (0., .5, 1.)]
close(max(errors), 0., 1e-9)
digit_network = load_weights('mnist')[0].given(None)
errors += [gap(digit_network, torch.randn(2, 1, 28, 28), 5, eta, 1e-3) for eta in (0., 1.)]
passed("the plain sampler gives what this book's library gives", *errors,
       by='ring, and a trained digit network in float32')


# %%NBQA-CELL-SEP15d533
# Figure 14.2: the density of a cleaner state, for a short, a longer and a long step
u = torch.linspace(-2.6, 2.6, 2001, dtype=D)[:, None]
fig, axes = plt.subplots(1, 3, figsize=(7, 2.), layout='constrained', dpi=160)
for ax, step in zip(axes, (.5, 2., 4.)):
    p = bayes(u, zero[None], level(step), level(0.))[:, 0]
    mean = p @ u
    std = (p @ u**2 - mean**2).sqrt()
    bell = torch.distributions.Normal(mean, std).log_prob(u)[:, 0].exp()
    ax.fill_between(u[:, 0], p/.0026, color='tab:blue', alpha=.25, linewidth=0)
    ax.plot(u, p/.0026, color='tab:blue')
    ax.plot(u, bell, '--', color='black', linewidth=1)
    off = .5*(p - bell*.0026).abs().sum().item()
    ax.set(title=f'step of {step:g} in log SNR', xlabel='$x_s$', yticks=[], ylim=(0, None))
    ax.spines['left'].set_visible(False)
    ax.text(.98, .95, f'{100*off:.0f} % off', transform=ax.transAxes, ha='right', va='top')
axes[2].text(.9, 1.1, 'exact', color='tab:blue')
axes[2].text(-2.5, .55, 'Gaussian')


# %%NBQA-CELL-SEP15d533
#| export
@dataclass(frozen=True)
class Gaussian:
    "A Gaussian with independent coordinates, as a step p(x_s | x_t) is. Eq. 14.1."
    mean: Tensor  # [b ...]
    std: Tensor  # [], [b 1 ... 1] or [b ...]

    def sample(self, noise: Tensor) -> Tensor:  # [b ...] from N(0, I)
        "The step that this noise makes. Eq. 14.1."
        return self.mean + self.std*noise

    def tilt(self, g: Tensor) -> 'Gaussian':  # g [b ...]: grad log r at the mean
        "The step times r(x): exact if log r is linear, else to first order. Eq. 14.2."
        return Gaussian(self.mean + self.std**2*g, self.std)


# %%NBQA-CELL-SEP15d533
# Eq. 14.1, 14.2: moments of a tilted and normalised density by sums; the draws of a kernel
torch.manual_seed(0)
u = torch.linspace(-9, 9, 4001, dtype=D)
g = torch.tensor(-1.3, dtype=D)
k = Gaussian(torch.tensor(.7, dtype=D), torch.tensor(.6, dtype=D))
p = (torch.distributions.Normal(k.mean, k.std).log_prob(u) + g*u).softmax(0)
errors = close(k.tilt(g).mean, p @ u), close(k.tilt(g).std**2, p @ u**2 - (p @ u)**2)
exact_part = max(errors)
draws = k.sample(torch.randn(40_000, dtype=D))
errors = close(draws.mean(), .7, 5*.6/200), close(draws.var(), .36, 5*.36*2**.5/200)
passed('(14.2) mean and variance of a tilted step; (14.1) those of 40,000 draws', exact_part,
       by='sums on a lattice')


# %%NBQA-CELL-SEP15d533
# Eq. 14.1: half the step, nearly a third of the distance from the Gaussian of the same moments
u = torch.linspace(-6, 6, 8001, dtype=D)[:, None]


def distance(step):
    "Total variation between q(x_s | x_t = 0) and the Gaussian of the same mean and variance."
    p = bayes(u, zero[None], level(step), level(0.))[:, 0]
    mean = p @ u
    std = (p @ u**2 - mean**2).sqrt()
    bell = torch.distributions.Normal(mean, std).log_prob(u)[:, 0].softmax(0)
    return .5*(p - bell).abs().sum().item()


off = [distance(step) for step in (.5, .25, .125, .0625)]
assert off[0] < .03 < .2 < distance(2.) < distance(4.)
assert all(2.6 < a/b < 3.2 for a, b in zip(off, off[1:])), off
ratios = ', '.join(f'{a/b:.2f}' for a, b in zip(off, off[1:]))
passed(f'(14.1) half the step, so many times nearer to a Gaussian: {ratios}', by='Bayes by sums')


# %%NBQA-CELL-SEP15d533
#| export
def fixed_small(p: Prediction, x: Tensor, s: Level,
                t: Level) -> Tensor:  # std [] or [b 1 ... 1]
    "The posterior standard deviation, root of beta-tilde: right for known x0. Eq. 14.5."
    return s.sigma*new_noise(s, t).sqrt()


def fixed_large(p: Prediction, x: Tensor, s: Level,
                t: Level) -> Tensor:  # std [] or [b 1 ... 1]
    "A forward step's standard deviation, root of beta: right for data N(0, I). Eq. 14.6."
    return t.sigma*new_noise(s, t).sqrt()*(s.sigma > 0)  # the last step draws nothing


def learned_range(p: Prediction, x: Tensor, s: Level, t: Level) -> Tensor:  # [b ...]
    "Between the two, on a log scale, as predicted. Eq. 14.7 (improved DDPM eq. 15)."
    if p.frac is None:
        raise Problem('This network has no learned variance: '
                      'sample with fixed_small or fixed_large.')
    # the root of beta-tilde/beta, to a power
    std = fixed_large(p, x, s, t)*(s.sigma/t.sigma)**(1 - p.frac)
    return torch.where((s.sigma > 0).to(std.device), std, torch.zeros_like(std))


def exact(world):  # has var_x0(x, t)
    "The true standard deviation of x_s given x_t, in a world that knows it. Eq. 14.4."
    def variance(p, x, s, t):
        # given x0, and what not knowing x0 adds
        known = fixed_small(p, x, s, t)**2
        unknown = (s.signal*new_noise(s, t))**2*world.var_x0(x, t)
        return (known + unknown).sqrt()

    return variance


# %%NBQA-CELL-SEP15d533
#| export
def reverse(denoiser: Denoiser, x: Tensor, s: Level, t: Level,
            variance=fixed_small) -> Gaussian:
    "The model's step from t to s: its x0 in the posterior. Eq. 14.3 (DDPM eq. 11)."
    p = denoiser(x, t)
    mean, _ = posterior(p.x0, x, s, t)
    return Gaussian(mean, variance(p, x, s, t))


# %%NBQA-CELL-SEP15d533
# Eq. 14.3, 14.4: mean and variance of x_s given x_t by Bayes' rule, for a short and a long step
u = torch.linspace(-6, 6, 4001, dtype=D)[:, None]
x = torch.linspace(-3, 3, 25, dtype=D)[:, None]
means = []
variances = []
for s, t in ((level(.5), level(0.)), (level(4.), level(-5.))):
    k = reverse(humps, x, s, t, exact(humps))
    p = bayes(u, x, s, t)
    mean = p.T @ u
    means.append(close(k.mean, mean))
    variances.append(close(k.std**2, p.T @ u**2 - mean**2))
passed('(14.3, 14.4) mean and variance of a short and of a long step', *means, *variances,
       by='Bayes by sums')


# %%NBQA-CELL-SEP15d533
# Eq. 14.5, 14.6: one point and N(0, I), by their true variance; DDPM's tables, by hand
torch.manual_seed(0)
point = Mixture(one, zero[None] + .4, zero)
normal = Mixture(one, zero[None], one)
S = linear()
beta, ab, tilde = tables(S)

# all neighbours in the table
s = Level(S.log_snr[:-1, None])
t = Level(S.log_snr[1:, None])
x = torch.randn(999, 1, dtype=D)
errors = (close(exact(point)(None, x, s, t)**2, tilde[:, None]),
          close(fixed_small(None, x, s, t)**2, tilde[:, None]))
errors += (close(exact(normal)(None, x, s, t)**2, beta[1:, None]),
          close(fixed_large(None, x, s, t)**2, beta[1:, None]))


def second(S):
    "beta-tilde at t = 2."
    return fixed_small(None, None, Level(S.log_snr[0]), Level(S.log_snr[1]))**2


errors += (close(second(S), 5.4531876613021935e-5),
          close(second(constant(10, .2)), 1/9),
          close(second(constant(10, .05)), 1/39))
passed('(14.5, 14.6) the variance for one point, and for N(0, I)', *errors,
       by="DDPM's table; fractions")


# %%NBQA-CELL-SEP15d533
# Eq. 14.7: both ends, the middle by the published logarithm, and no noise in the last step
S = linear()
beta, ab, tilde = tables(S)
f = torch.tensor([[0., .25, 1., 1.1]], dtype=D)
p = Prediction(f, f, f)
s, t = (Level(S.log_snr[i]) for i in (400, 401))
logs = f*beta[401].log() + (1 - f)*tilde[400].log()
outside = p._replace(frac=f - .5)
errors = [close((learned_range(p, f, s, t)**2).log(), logs)]
for variance in (learned_range, fixed_small, fixed_large):
    errors.append(close(variance(outside, f, CLEAN, t), 0.))
passed('(14.7) a mix of logarithms, and no noise in the last step', *errors,
       by='improved DDPM eq. 15')


# %%NBQA-CELL-SEP15d533
# Figure 14.3: the true variance of a step for the two points -1 and 1, and its two bounds
two = Mixture(one.repeat(2)/2, torch.tensor([[-1.], [1.]], dtype=D), zero.repeat(2))
u = torch.linspace(-7, 7, 1401, dtype=D)[:, None]


def true_variance(a):
    "The variance of the step from log SNR a to a + .3, averaged over q(x_t)."
    p = two.log_prob(u, level(a)).softmax(0)
    return p @ exact(two)(None, u, level(a + .3), level(a))**2


v = torch.linspace(8, -8, 60, dtype=D)
s, t = Level(v[:, None] + .3), Level(v[:, None])
true = torch.stack([true_variance(a) for a in v.tolist()])
ratio = {'true': true/fixed_large(None, u, s, t)**2,
         'beta-tilde': (s.sigma/t.sigma)**2,
         'beta': one + 0*v[:, None]}
fig, ax = plt.subplots(figsize=(7, 2.3), layout='constrained', dpi=160)
ax.plot(v, ratio['beta'], color='.55')
ax.plot(v, ratio['beta-tilde'], color='tab:blue')
ax.plot(v, ratio['true'], '--', color='black')
ax.text(5, 1.008, r'$\beta$  (fixed_large)', color='.4')
ax.text(-1.5, .87, r'$\tilde\beta$  (fixed_small)', color='tab:blue', ha='right')
ax.text(1.45, .9, 'true (exact)')
ax.set(xlabel='log SNR of $x_t$: noise left, data right', ylabel=r'variance / $\beta$',
       xlim=(-8, 8), ylim=(.7, 1.04))


# %%NBQA-CELL-SEP15d533
# Eq. 14.7: the true variance of the two points lies between the bounds at all sixty levels
assert (ratio['beta-tilde'] <= ratio['true'] + 1e-12).all()
assert (ratio['true'] <= 1 + 1e-12).all()
errors = (close(ratio['true'][-1], 1, 1e-3),
          close(ratio['true'][0], ratio['beta-tilde'][0], 1e-3))
passed('(14.7) the true variance lies between both, and meets them at the ends', *errors)


# %%NBQA-CELL-SEP15d533
#| export
# yields each x on the way, the last one clean
Sampler = Callable[[Denoiser, Grid, Tensor], Iterator[Tensor]]


def steps(levels: Iterable[Level], up: bool = False) -> list[tuple[Level, Level]]:
    "The steps (t, s) of a run, each to a cleaner level or, with `up`, to a noisier one."
    pairs = [*pairwise(levels)]
    if not pairs:
        raise Problem('A run needs at least two levels: '
                      'give it a grid of one step or more.')

    # the first step says which way
    rising = up and (pairs[0][1].log_snr < pairs[0][0].log_snr).all()
    for t, s in pairs:
        noisy, clean = (s, t) if rising else (t, s)
        one_way = (noisy.log_snr < clean.log_snr).all()
        if not one_way and up:
            raise Problem('A run goes one way: '
                          'give levels that only get cleaner, or only noisier.')
        if not one_way:
            raise Problem('Random steps lead from noise to cleaner levels: '
                          'give the noisiest first, or walk up with ddim at eta 0.')
        if not (t.log_snr < math.inf).all():
            raise Problem('No step starts at CLEAN: '
                          'walk up from a level below it, as grid.flip() does.')
    return pairs


def last(states: Iterable[Tensor]) -> Tensor:
    "The end of a run: `last(ddim(denoiser, grid(Cosine(), 50), x))`."
    for x in states:
        pass
    return x


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def ancestral(denoiser: Denoiser, levels: Grid, x: Tensor, variance=fixed_small,
              noise=torch.randn_like) -> Iterator[Tensor]:
    "Sample step by step. Eq. 14.8 (DDPM Algorithm 2)."
    for t, s in steps(levels):
        x = reverse(denoiser, x, s, t, variance).sample(noise(x))
        yield x


# %%NBQA-CELL-SEP15d533
denoiser = EmpiricalDenoiser(swiss_roll(2000))  # or a trained network
levels = grid(Cosine(), 40)                     # 40 steps on the cosine schedule
noise = torch.randn(100, 2)
points = last(ancestral(denoiser, levels, noise))


# %%NBQA-CELL-SEP15d533
# Eq. 14.8: a whole run against Algorithm 2 with its own tables, on the same noise
torch.manual_seed(0)
T = 100
S = linear_scaled(T)
beta = S.betas
ab = (1 - S.betas).cumprod(0)
before = torch.cat([torch.ones(1, dtype=D), ab[:-1]])
tilde = beta*(1 - before)/(1 - ab)
z = torch.randn(T, 64, 2, dtype=D)
start = torch.randn(64, 2, dtype=D)
for variance, sigma in ((fixed_small, tilde.sqrt()), (fixed_large, beta.sqrt())):
    x = start
    for t in reversed(range(T)):
        eps = world(x, from_alpha_bar(ab[t])).eps
        x = (x - beta[t]/(1 - ab[t]).sqrt()*eps)/(1 - beta[t]).sqrt()
        if t > 0:
            x = x + sigma[t]*z[t]
    draws = iter(z.flip(0))
    run = ancestral(world, grid(S, T), start, variance, lambda x: next(draws))
    passed(f'(14.8) 100 ancestral steps, {variance.__name__}', close(last(run), x),
           by="DDPM's Algorithm 2")


# %%NBQA-CELL-SEP15d533
# Eq. 14.3, 14.4: moments of a whole run, propagated exactly, against those of q at each level
def moments(levels, variance, sd=.5):
    "(s, mean, variance) of the samples after each step, for data N(.7, sd^2)."
    gauss = Mixture(one, zero[None] + .7, zero + sd)
    variance = exact(gauss) if variance == 'exact' else variance
    t = [*levels][0]
    m = t.signal*.7  # of q(x_T)
    v = t.signal**2*sd**2 + t.sigma**2
    for t, s in steps(levels):
        at_0, at_1 = (reverse(gauss, zero[None] + u, s, t, variance) for u in (0, 1))
        a = at_1.mean - at_0.mean  # the step is a x + b plus noise
        b = at_0.mean
        m = a*m + b
        v = a**2*v + at_0.std**2
        yield s, m, v


errors = []
for s, m, v in moments(grid(Cosine(), 30), 'exact'):
    errors += [close(m, s.signal*.7), close(v, s.signal**2*.25 + s.sigma**2)]
passed('(14.3, 14.4) mean and variance after each of 30 steps', *errors, by='those of q')

final = {}
for n in (10, 50, 250):
    runs = [[*moments(grid(Cosine(), n), var)] for var in (fixed_small, 'exact', fixed_large)]
    final[n] = [round(run[-1][2].item(), 4) for run in runs]
    print(f'{n:3d} steps, final variance: beta-tilde {final[n][0]}, true {final[n][1]}, '
          f'beta {final[n][2]}')
assert all(a < b < c for a, b, c in final.values())


# %%NBQA-CELL-SEP15d533
# Figure 14.4: the standard deviation of the samples, by the number of steps
def spread(n, variance, sd):
    "The standard deviation at the end of n steps, in units of that of the data."
    return last(moments(grid(Cosine(), n), variance, sd))[2].sqrt().item()/sd


def ddim_spread(n, sd):
    "The same for DDIM: a linear map of x, found from two points."
    gauss = Mixture(one, zero[None] + .7, zero + sd)
    t = [*grid(Cosine(), n)][0]
    a, b = last(library.ddim(gauss, grid(Cosine(), n), torch.tensor([[0.], [1.]], dtype=D)))
    return ((b - a)*(t.signal**2*sd**2 + t.sigma**2).sqrt()).item()/sd


many = [5, 10, 20, 50, 100]
ways = {'true': ('exact', 'black', '--'), 'beta': (fixed_large, '.55', '-'),
        'beta-tilde': (fixed_small, 'tab:blue', '-')}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout='constrained', dpi=160, sharey=True)
widths = {}
for ax, sd in zip(axes, (.5, .05)):
    for name, (variance, color, line) in ways.items():
        widths[sd, name] = [spread(n, variance, sd) for n in many]
        ax.plot(many, widths[sd, name], line, marker='o', markersize=3, color=color)
    widths[sd, 'DDIM'] = [ddim_spread(n, sd) for n in many]
    ax.plot(many, widths[sd, 'DDIM'], marker='o', markersize=3, color='tab:green')
    ax.set(xscale='log', xlabel='steps', title=f'data: standard deviation {sd:g}', ylim=(0, 1.15))
    ax.set_xticks(many, many)
    ax.minorticks_off()
axes[0].set_ylabel('std of samples / std of data')
axes[0].text(5, 1.07, r'$\beta$', color='.4')
axes[0].text(21, .76, r'$\tilde\beta$', color='tab:blue')
axes[0].text(7.3, .86, 'DDIM', color='tab:green', ha='center')
axes[1].text(21, .34, r'$\tilde\beta$', color='tab:blue')
axes[1].text(49, .76, 'DDIM', color='tab:green', ha='right')
axes[1].text(10, .56, r'$\beta$', color='.4', ha='right')
axes[1].text(6, 1.05, 'true')


# %%NBQA-CELL-SEP15d533
# Eq. 14.4: one long step on the ring, then a run: mean, variance and shares, within 5 sigma/sqrt(N)
torch.manual_seed(0)
N = 20_000
r = ring(4)
s, t = level(1.), level(-2.)
x_t = q_sample(r.sample(N), t, torch.randn(N, 2))
x = reverse(r, x_t, s, t, exact(r)).sample(torch.randn(N, 2))
var = (s.signal**2*(2 + .15**2) + s.sigma**2).item()  # half of the squared radius in each direction
errors = (close(x.mean(0), 0., 5*(var/N)**.5),
          close(x.var(0), torch.full((2,), var), 5*var*(2/N)**.5))
passed('(14.4) mean and variance of one long step', *errors, by='20,000 samples of a ring')

x = last(ancestral(r, grid(Cosine(), 100), torch.randn(4000, 2), exact(r)))
p = r.classify(x)
share = p.exp().mean(0)
spread_ = (x - r.mean[p.argmax(1)]).std(0)
errors = close(share, .25, 5*.433/4000**.5), close(spread_, .15, 5*.15/8000**.5 + .01)
passed('(14.4) shares and widths of the components after 100 steps', *errors, by='4,000 samples')


# %%NBQA-CELL-SEP15d533
# Figure 14.4: what is too narrow; what the last of five steps should draw, and what is missing
t = [*grid(Cosine(), 5)][4]
narrow = Mixture(one, zero[None] + .7, zero + .05)
last_share = (narrow.var_x0(zero[None], t)/.05**2).item()
missing_ = 1 - widths[.05, 'beta'][0]**2
assert all(w < 1 for sd in (.5, .05) for name in ('beta-tilde', 'DDIM') for w in widths[sd, name])
assert all(abs(w - 1) < 1 - v for sd in (.5, .05)
           for w, v in zip(widths[sd, 'beta'], widths[sd, 'beta-tilde']))
assert last_share > .9 and missing_ > .9
passed(f'the last of five steps should draw {100*last_share:.0f} % of the variance of narrow data')
print(f'  with beta, {100*missing_:.0f} % of it is missing at the end')


# %%NBQA-CELL-SEP15d533
# Figure 14.5: the way of four samples to the ring, for three eta
torch.manual_seed(0)
x = torch.tensor([[-1., .5], [.4, .3], [1.5, -.8], [-.3, -1.2]])
titles = ['ancestral: η = 1', 'η = 0.3', 'DDIM: η = 0']
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout='constrained', dpi=160)
data = ring().sample(800)
for ax, eta, title in zip(axes, (1., .3, 0.), titles):
    show.cloud(data, ax, 'noise', limit=2.8)
    ax.set_title(title)
    for path, color in zip(torch.stack([x, *library.ddim(ring(), grid(Cosine(), 60), x, eta)], 1),
                           ('tab:red', 'tab:blue', 'tab:green', 'tab:purple')):
        ax.plot(*path.T, color=color, linewidth=.7, alpha=.8)
        ax.plot(*path[0], 'o', color=color, markersize=4.5)
        ax.plot(*path[-1], 'o', markerfacecolor='white', color=color, markersize=5)


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def ddim(denoiser: Denoiser, levels: Grid, x: Tensor, eta: float = 0.,
         noise=torch.randn_like) -> Iterator[Tensor]:
    "Keep the noise (eta 0) or renew some (eta 1, `ancestral`). Eq. 14.9 (DDIM eq. 12)."
    if not 0 <= eta <= 1:
        raise Problem(f'eta is {eta}: '
                      'choose it from 0 (nothing random) to 1 (as ancestral).')

    for t, s in steps(levels, up=eta == 0):
        p = denoiser(x, t)

        # of the noise's variance the share eta^2 c is drawn anew (14.9)
        eps = p.eps
        if eta:
            new = eta**2*new_noise(s, t)
            eps = (1 - new).sqrt()*eps + new.sqrt()*noise(x)

        # to level s: the same guess under less noise
        x = s.signal*p.x0 + s.sigma*eps
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: every state against DDIM's eq. 12 with the sigma of its eq. 16, on the same noise
torch.manual_seed(1)
z = torch.randn(100, 64, 2, dtype=D)
start = torch.randn(64, 2, dtype=D)


def paper(x, eta, noise):
    for (t, s), z in zip(steps(grid(Cosine(), 20)), noise):
        a, b = t.alpha_bar, s.alpha_bar
        eps = world(x, t).eps
        sigma = eta*((1 - b)/(1 - a)).sqrt()*(1 - a/b).sqrt()
        predicted_x0 = (x - (1 - a).sqrt()*eps)/a.sqrt()
        direction = (1 - b - sigma**2).clamp(min=0).sqrt()*eps
        x = b.sqrt()*predicted_x0 + direction + sigma*z
        yield x


def both(eta):
    draws = iter(z)
    ours = ddim(world, grid(Cosine(), 20), start, eta, lambda x: next(draws))
    return zip(ours, paper(start, eta, z), strict=True)


errors = [max(close(a, b) for a, b in both(eta)) for eta in (0., .3, 1.)]
passed('(14.9) 20 states each for eta 0, 0.3 and 1', *errors, by="DDIM's eq. 12 and 16")


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: eta 1 is ancestral on the same noise, state by state; eta 0 draws nothing at all
def none(x):
    raise AssertionError('noise was drawn')


levels = grid(Cosine(), 50)
draws = iter(z)
again = iter(z)
one_run = ddim(world, levels, start, 1., lambda x: next(draws))
other_run = ancestral(world, levels, start, noise=lambda x: next(again))
last(ddim(world, levels, start, noise=none))
passed('(14.9) eta 0 draws nothing, and eta 1 is ancestral sampling',
       *(close(a, b) for a, b in zip(one_run, other_run)), by='50 states')


# %%NBQA-CELL-SEP15d533
# Figure 14.6: seven digits of a trained network, each column from one starting noise
torch.manual_seed(0)
asked = torch.tensor([2, 3, 4, 5, 7, 8, 9])
network = library.clamp_x0(load_weights('mnist')[0].given(asked))
x = torch.randn(7, 1, 28, 28)
rows = {}
for name, n, eta in (('DDIM\n10 steps', 10, 0.), ('DDIM\n20 steps', 20, 0.),
                     ('ancestral\n20 steps', 20, 1.), ('ancestral\n20, again', 20, 1.)):
    rows[name] = last(ddim(network, grid(Cosine(), n), x, eta))
fig, axes = plt.subplots(4, 1, figsize=(7, 3.4), layout='constrained', dpi=144)
for ax, (name, pictures) in zip(axes, rows.items()):
    ax.imshow(show.tile(pictures, 7), interpolation='nearest')
    ax.set_ylabel(name, rotation=0, ha='right', va='center')
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: how far the rows of Figure 14.6 are from each other
a, b, c, d = rows.values()
same = (a - b).square().mean().sqrt().item()
other = (c - d).square().mean().sqrt().item()
assert same < .6*other
passed(f'Figure 14.6: rms between DDIM rows {same:.2f}, between ancestral rows {other:.2f}')


# %%NBQA-CELL-SEP15d533
#| export
# by the names that the command line knows
SAMPLERS = Registry('sampler', group='ddpm_lit.samplers')
SAMPLERS.add('ancestral', ancestral)
SAMPLERS.add('ddim', ddim)


def _watched_sampler(sampler: Sampler, name: str, origin: str) -> Sampler:
    "Somebody else's sampler; a `Problem` if it yields no states, or what are none."
    @wraps(sampler)
    @torch.no_grad()  # it may have forgotten that
    def run(denoiser, levels, x, *args, **kwargs):
        needed = f'it should yield each state of the run, a tensor {[*x.shape]}.'
        states = 0
        found = sampler(denoiser, levels, x, *args, **kwargs)
        for state in found if isinstance(found, Iterable) else ():
            if getattr(state, 'shape', None) != x.shape:
                raise Problem(f'The sampler "{name}" of {origin} yields what is none, a '
                              f'{type(state).__name__}: {needed}')
            states += 1
            yield state
        if not states:
            raise Problem(f'The sampler "{name}" of {origin} yields nothing: {needed}')

    return run


def find_sampler(name: str | Sampler) -> Sampler:
    "The sampler of that name, wherever it is defined; or the given function, watched."
    if callable(name):
        own = getattr(name, '__name__', type(name).__name__)
        return _watched_sampler(name, own, getattr(name, '__module__', 'yours'))

    sampler = SAMPLERS.find(name)
    owner = SAMPLERS.owners.get(SAMPLERS.aliases.get(name, name))
    if owner is None or is_own(owner):
        return sampler
    origin = getattr(sys.modules.get(owner), '__file__', None) or owner
    return _watched_sampler(sampler, name, origin)


# %%NBQA-CELL-SEP15d533
# Eq. 14.8, 14.9: each sampler by name, on points and pictures, in both precisions
torch.manual_seed(0)
for name in SAMPLERS:
    for x in (torch.randn(5, 2), torch.randn(5, 2, dtype=D), torch.randn(2, 3, 4, 4)):
        denoiser = EmpiricalDenoiser(torch.rand(9, *x.shape[1:]))
        run = [*find_sampler(name)(denoiser, grid(Cosine(), 5), x)]
        assert all(y.shape == x.shape and y.dtype == x.dtype for y in run)
        assert all(y.isfinite().all() for y in run)
passed('each sampler yields five states of the shape and type of x', close(len(run), 5))

# one of a plug-in that yields no states, or what are none, is named
x = torch.randn(5, 2)
odd = dict(none=lambda *_: iter(()), nothing=lambda *_: None, wrong=lambda *_: [x[:1]])
for name, sampler in odd.items():
    with expect_fail('of somebody yields', Problem, show=False):
        [*_watched_sampler(sampler, name, 'somebody')(None, None, x)]
good = _watched_sampler(lambda *_: [x, x], 'good', 'somebody')
assert [y is x for y in good(None, None, x)] == [True, True]

# a function goes for a name, is watched too, and keeps no gradients if it forgot to say so


def forgetful(denoiser, levels, x):
    for t, s in levels.pairs():
        x = x*free
        yield x


free = torch.ones((), requires_grad=True)
*_, end = find_sampler(forgetful)(None, grid(Cosine(), 3), x)
assert (end == x).all() and not end.requires_grad
assert find_sampler(partial(ddim, eta=1.)) and not SAMPLERS.look('forgetful')
with expect_fail('The sampler "<lambda>" of __main__ yields nothing', Problem, show=False):
    [*find_sampler(lambda *_: iter(()))(None, None, x)]


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: the end of a run for one Gaussian against the smooth curve, as steps double (order 1: 2)
def width(v):
    "The standard deviation of q at log SNR v, for data of variance .25."
    t = level(v)
    return (t.signal**2*.25 + t.sigma**2).sqrt()


x = torch.ones(1, 1, dtype=D)
want = width(4.)/width(-6.)
error = [(last(ddim(centred, ladder(n), x)) - want).item() for n in (200, 400, 800)]
errors = close(error[0]/error[1], 2, .05), close(error[1]/error[2], 2, .05)
passed('(14.9) twice the steps, half the distance from the curve', *errors, by='ratio minus 2')


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: up and down again on the ring: how far each point lands from where it was
torch.manual_seed(0)
x = world.sample(200)


def return_error(n):
    up = last(ddim(world, ladder(n).flip(), x))
    down = last(ddim(world, ladder(n), up))
    return (down - x).norm(dim=1).mean().item()


error = [return_error(n) for n in (100, 200, 400)]
assert error[0] < .05
assert error[0]/error[1] > 1.8 and error[1]/error[2] > 1.8
far = ', '.join(f'{e:.4f}' for e in error)
passed(f'(14.9) up and down in 100, 200, 400 steps: {far} from the start', by='ring')


# %%NBQA-CELL-SEP15d533
#| export
def edit_x0(denoiser: Denoiser, edit: Callable[[Tensor], Tensor]) -> Denoiser:
    "The denoiser whose clean estimate is edited; the noise follows from it. Eq. 14.10."
    def edited(x, t):
        p = denoiser(x, t)
        q = from_x0(edit(p.x0), x, t)
        return p._replace(x0=q.x0, eps=q.eps)

    return edited


def clamp_x0(denoiser: Denoiser, limit: float = 1.) -> Denoiser:
    "The denoiser whose clean estimate stays within +-limit. Eq. 14.10."
    return edit_x0(denoiser, lambda x0: x0.clamp(-limit, limit))


class Counted:
    "A denoiser that counts its evaluations, `nfe`, and reports the number at each."

    def __init__(self, denoiser: Denoiser,
                 progress: Callable[[int], object] | None = None):
        self.denoiser = denoiser
        self.progress = progress
        self.nfe = 0

    def __call__(self, x, t):
        self.nfe += 1
        if self.progress is not None:
            self.progress(self.nfe)
        return self.denoiser(x, t)


# %%NBQA-CELL-SEP15d533
# Eq. 14.10: data and noise still make x_t, the learned mix survives, and evaluations are counted
torch.manual_seed(0)


def with_variance(x, t):
    return Prediction(x, x, frac=x + 1)


t = level(.5)
x = 2*torch.randn(99, 2, dtype=D)
p = clamp_x0(world, 1.5)(x, t)
assert p.x0.abs().max() == 1.5
assert edit_x0(with_variance, abs)(x, t).frac is not None
reported = []
counted = Counted(world, reported.append)
for f in (ancestral, ddim):
    last(f(counted, grid(Cosine(), 7), x))
assert reported == [*range(1, 15)]
errors = (close(q_sample(p.x0, t, p.eps), x),
          close(clamp_x0(world, 9.)(x, t).eps, world(x, t).eps),
          close(counted.nfe, 2*7))
passed('(14.10) clamped data and their noise still make x_t', *errors)


# %%NBQA-CELL-SEP15d533
# Figure 14.7: the timesteps of three shorter runs
fig, ax = plt.subplots(figsize=(7, 1.3), layout='constrained', dpi=160)
names = ['27', '10,10,3,2,2', 'ddim25']
for i, spec in enumerate(names):
    chosen = library.respace(linear(), spec).step
    ax.plot(chosen, torch.full_like(chosen, -i), '|', color='tab:blue', markersize=11)
ax.set_yticks([0, -1, -2], names)
ax.set(ylim=(-2.6, .6), xlim=(1015, -15), xlabel='timestep: noise left, data right')
ax.spines['left'].set_visible(False)
ax.tick_params(axis='y', length=0)


# %%NBQA-CELL-SEP15d533
#| export
def _by_stride(T: int, n: int) -> list[int] | None:  # None: no stride takes so many
    "n of T timesteps, by the smallest stride that takes as many."
    taken = (range(1, T + 1, stride) for stride in range(1, T + 1))
    return next(([*steps] for steps in taken if len(steps) == n), None)


def _by_sections(sizes: list[int], counts: list[int]) -> list[int]:
    "Timesteps evenly within each section, both its ends among them."
    chosen = []
    for first, n, size in zip(accumulate(sizes, initial=1), counts, sizes):
        # the stride is added up, so that halves are rounded as the authors' are
        stride = (size - 1)/max(n - 1, 1)
        places = accumulate(repeat(stride, n - 1), initial=0.)
        chosen += [first + round(i) for i in places]
    return chosen


def respace(schedule: DiscreteSchedule,
            spec: str,  # "250", "ddim25", or counts per section as in "10,10,3,2,2"
            ) -> Grid:
    "A grid on some of a schedule's timesteps, named as in improved DDPM. Eq. 14.11."
    if not isinstance(schedule, DiscreteSchedule):
        raise Problem('Respacing picks timesteps, and this schedule has none: '
                      'use grid(schedule, n).')
    try:
        counts = [int(n) for n in spec.removeprefix('ddim').split(',')]
    except ValueError:
        raise Problem(f'"{spec}" is no respacing: '
                      'write "250", "ddim25" or "10,10,3,2,2".') from None

    # sections of equal size; the first ones take what is left over
    T = len(schedule)
    k = len(counts)
    sizes = [T // k + (i < T % k) for i in range(k)]
    if any(not 1 <= n <= size for n, size in zip(counts, sizes)):
        raise Problem(f'"{spec}" does not fit into {T} timesteps: ask for fewer.')

    chosen: list[int] | None = _by_sections(sizes, counts)
    if spec.startswith('ddim'):
        chosen = _by_stride(T, counts[0]) if k == 1 else None
    if chosen is None:
        raise Problem(f'No stride takes "{spec}" from {T} timesteps: '
                      f'write "{counts[0]}".')
    step = torch.tensor(chosen).flip(0)
    return Grid(torch.cat([schedule.log_snr[step - 1], CLEAN.log_snr[None]]), step)


# %%NBQA-CELL-SEP15d533
# Eq. 14.11: against steps worked out by hand, and the sections of improved DDPM's own example
S = linear()


def up(spec, S=S):
    return respace(S, spec).step.flip(0).tolist()


assert up('1000') == up('ddim1000') == [*range(1, 1001)]
assert up('ddim1') == [1] and up('ddim25') == [*range(1, 1001, 40)]
assert up('4') == [1, 334, 667, 1000]
assert up('5', linear(10)) == [1, 3, 5, 8, 10]
assert up('2,1,2', linear(11)) == [1, 4, 5, 9, 11]
assert up('10,10,3,2,2')[:4] == [1, 23, 45, 67]
assert up('10,10,3,2,2')[-7:] == [401, 501, 600, 601, 800, 801, 1000]

# 15 of 16: the eighth is a half, which the sum rounds in its own way
added = []
total = 0.
for _ in range(15):
    added.append(1 + round(total))
    total += 15/14
assert up('15', linear(16)) == added
passed('(14.11) the steps of nine strings', by='steps worked out by hand')

section = torch.tensor(up('10,15,20', linear(300))).sub(1).div(100, rounding_mode='floor')
every_40th = S.log_snr[torch.arange(960, -1, -40)]
errors = (close(section.bincount(), torch.tensor([10, 15, 20])),
          close(respace(S, 'ddim25').log_snr[:-1], every_40th))
passed('(14.11) counts of each section, and every 40th level', *errors,
       by="improved DDPM's example")


# %%NBQA-CELL-SEP15d533
# Eight samples of the ideal denoiser, and the nearest training digits
torch.manual_seed(0)
train = mnist('train')[:2000]
digits = to_unit(train.pixels)
labels = train.label
ideal = EmpiricalDenoiser(digits)
x = last(ddim(ideal, grid(Cosine(), 50), torch.randn(8, 1, 28, 28)))
nearest = torch.cdist(x.flatten(1), digits.flatten(1)).argmin(1)


# %%NBQA-CELL-SEP15d533
# Eq. 14.9: every sample is a training digit, and not always the same one
assert len(set(nearest.tolist())) > 4
passed('(14.9) each of eight samples is a training digit', close(x, digits[nearest], 1e-4))


# %%NBQA-CELL-SEP15d533
# Figure 14.8: ten ancestral steps from the right start and from the wrong one
torch.manual_seed(0)
N = 256
levels = grid(constant(10, .2), 10)
t = [*levels][0]
some = digits[torch.randint(2000, (N,))]
right = q_sample(some, t, torch.randn(N, 1, 28, 28))
wrong = torch.randn(N, 1, 28, 28)
ends = [last(ancestral(ideal, levels, x)) for x in (right, wrong)]


def ones(x):
    nearest = torch.cdist(x.flatten(1), digits.flatten(1)).argmin(1)
    return (labels[nearest] == 1).float().mean().item()


def white(x):
    return (x.mean().item() + 1)/2


sets = dict(zip(('data', 'from q(x_10)', 'from N(0, I)'), (digits, *ends)))
table = {name: (round(ones(x), 3), round(white(x), 3)) for name, x in sets.items()}
titles = ('training digits', 'samples from $q(x_{10})$', 'samples from pure noise')
fig, axes = plt.subplots(3, 1, figsize=(7, 3.6), layout='constrained', dpi=144)
for ax, title, (name, x) in zip(axes, titles, sets.items()):
    ax.imshow(show.tile(x[:32], 16), interpolation='nearest')
    ax.set_title(f'{title}: {100*table[name][0]:.0f} % ones, {100*table[name][1]:.0f} % white',
                 loc='left')
    ax.axis('off')


# %%NBQA-CELL-SEP15d533
# Eq. 14.8: share of ones and of white in the data, from the right start, from the wrong one, and
# from the wrong one with the mean picture of q(x_10) added
close(t.alpha_bar, .1073741824)
passed('(14.8) from q(x_10) the share of ones is that of the data',
       close(ones(ends[0]), ones(digits), 3*(.11*.89/N)**.5), by='256 samples')
assert ones(ends[1]) < .05 and white(ends[1]) > 1.2*white(digits)
assert 3.5e-5 < alpha_bar[-1] < 4.5e-5  # DDPM's schedule
end = last(ancestral(ideal, levels, wrong + t.signal*digits.mean(0)))
table['with its mean'] = ones(end), white(end)
assert ones(end) > .06 and white(end) < white(digits)
for name, (share, bright) in table.items():
    print(f'{name:13s} ones {share:.3f}  white {bright:.3f}')


# %%NBQA-CELL-SEP15d533
# Figure 14.9: ten and a hundred ancestral steps from the same start
torch.manual_seed(0)
N = 800
data = Mixture(torch.full((500,), 1/500), swiss_roll(500, 0.), torch.full((500,), .05))
toy = grid(constant(10, .05), 10)
t = [*toy][0]
x = q_sample(data.sample(N), t, torch.randn(N, 2))
fine = Grid(torch.cat([torch.linspace(toy.log_snr[0], 8, 100, dtype=D), CLEAN.log_snr[None]]))
ends = [last(ancestral(data, levels, x, exact(data))) for levels in (toy, fine)]
fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout='constrained', dpi=160)
titles = ['data', '100 steps from $q(x_{10})$', '10 steps from $q(x_{10})$']
inks = ('data', 'model', 'model')
for ax, points_, title, ink in zip(axes, [data.sample(N), *ends[::-1]], titles, inks):
    show.cloud(points_, ax, ink, size=2., alpha=.5)
    ax.set_title(title)


# %%NBQA-CELL-SEP15d533
# Eq. 14.1: nats of log density lost in ten steps and in a hundred; the distance of the two starts
torch.manual_seed(0)
close(t.alpha_bar, .5987369392383786)
lost = []
for x in ends:
    loss = data.log_prob(data.sample(4000)).mean() - data.log_prob(x).mean()
    lost.append(loss.item())

# KL of the two starts, an integral as a sum
side = torch.linspace(-5, 5, 101)
u = torch.cartesian_prod(side, side)
q = data.log_prob(u, t)
normal_log_p = torch.distributions.Normal(0, 1).log_prob(u).sum(1)
gap_ = (q.exp()*.01 @ (q - normal_log_p)).item()
assert lost[0] > 1 > .3 > lost[1] and .01 < gap_ < .1
passed(f'(14.1) log density lost: {lost[0]:.2f} nats in 10 steps, {lost[1]:.2f} in 100')
passed(f'q(x_10) differs from pure noise by {gap_:.2f} nats', by='KL as a sum')


# %%NBQA-CELL-SEP15d533
#| gpu
# Eq. 14.8, 14.9: the same runs on a card, with the same noise, from denoisers that live there
x = torch.randn(64, 2)
fixed = torch.randn(64, 2)
levels = grid(Cosine(), 20)


def noise(x):
    return fixed.to(x)


here = ring()
there = here.to('cuda')
want = last(ancestral(here, levels, x, exact(here), noise))
error = close(last(ancestral(there, levels, x.cuda(), exact(there), noise)), want, 1e-3)
passed('(14.8) the same ancestral run on a GPU', error, by='the CPU')

here = EmpiricalDenoiser(swiss_roll(500))
there = EmpiricalDenoiser(here.data.cuda())
want = last(ddim(here, levels, x, 1., noise))
error = close(last(ddim(there, levels, x.cuda(), 1., noise)), want, 1e-3)
passed('(14.9) the same DDIM run on a GPU', error, by='the CPU')


# %%NBQA-CELL-SEP15d533
levels = grid(Cosine(), 5)
x = torch.randn(4, 2)
with expect_fail('walk up with ddim', Problem):
    last(ancestral(ring(), levels.flip(), x))
with expect_fail('walk up with ddim', Problem, show=False):  # the same answer
    last(ddim(ring(), levels.flip(), x, eta=.5))
with expect_fail('No step starts at CLEAN', Problem):
    last(ddim(ring(), [CLEAN, level(0.)], x))
for k, zigzag in enumerate(([-2., 0., -1.], [0., -2., -1.], [0., 0.])):
    with expect_fail('goes one way', Problem, show=k == 0):  # the same answer
        last(ddim(ring(), map(level, zigzag), x))
with expect_fail('at least two levels', Problem):
    last(ddim(ring(), [], x))
with expect_fail('eta is 1.5', Problem):
    last(ddim(ring(), levels, x, eta=1.5))
with expect_fail('no learned variance', Problem):
    last(ancestral(ring(), levels, x, learned_range))
for spec in ('soon', '0', '1001', 'ddim999', 'ddim5,5'):
    with expect_fail(spec, Problem):
        respace(linear(), spec)
with expect_fail('use grid', Problem):
    respace(Cosine(), '10')
with expect_fail('no sampler "euler": choose one of ancestral,', Problem):
    find_sampler('euler')


# %%NBQA-CELL-SEP15d533
#| eval: false
my_guess: Tensor = ...  # [2]
x = last(ddim(ring(), Grid(torch.tensor([-20., math.inf])), torch.randn(100, 2)))
close(x, my_guess.expand(100, 2), 1e-3)


# %%NBQA-CELL-SEP15d533
#| eval: false
def missing(v, s, t):
    return ...


s, t = level(1.), level(0.)
k = reverse(centred, zero[None], s, t)
k1 = reverse(centred, one[None], s, t)
var = (k1.mean - k.mean)**2*(t.signal**2*.25 + t.sigma**2) + k.std**2
close(var, (s.signal**2*.25 + s.sigma**2)*(1 - missing(.25, s, t)))


# %%NBQA-CELL-SEP15d533
#| eval: false
def fast27(schedule):
    ...


fast = fast27(linear())
errors = (close(fast.step[:4], torch.tensor([998, 801, 800, 601])),
          close(fast.log_snr[:2], linear().log_snr[[997, 800]]))
errors


# %%NBQA-CELL-SEP15d533
#| eval: false
def half_and_half(denoiser, levels, x, noise=torch.randn_like):
    for t, s in steps(levels):
        x = ...
        yield x


SAMPLERS.add('half-and-half', half_and_half)
torch.manual_seed(0)
x = last(SAMPLERS['half-and-half'](ring(), grid(Cosine(), 60), torch.randn(4000, 2)))

away, component = torch.cdist(x, ring().mean).min(1)
shares = component.bincount(minlength=8)/4000
errors = (close(shares, torch.full((8,), 1/8), 5*(7/64/4000)**.5),
          close((away.square().mean()/2).sqrt(), .15, .01))
errors


# %%NBQA-CELL-SEP15d533
# solution 1: in so much noise the guess is the mean of the world, and the step to CLEAN is the
# guess
my_guess = torch.zeros(2)
x = last(ddim(ring(), Grid(torch.tensor([-20., math.inf])), torch.randn(100, 2)))
close(x, my_guess.expand(100, 2), 1e-3)


# %%NBQA-CELL-SEP15d533
# solution 2: the exact step from q(x_t) arrives at q(x_s), of variance signal_s^2 v + sigma_s^2;
# with beta-tilde the second term of (14.4) is missing, and there
# Var[x0 | x_t] = v sigma_t^2/(signal_t^2 v + sigma_t^2), by (13.6) with one component
def missing(v, s, t):
    var_x0 = v*t.sigma**2/(t.signal**2*v + t.sigma**2)
    return (s.signal*new_noise(s, t))**2*var_x0/(s.signal**2*v + s.sigma**2)


s, t = level(1.), level(0.)
k = reverse(centred, zero[None], s, t)
k1 = reverse(centred, one[None], s, t)
var = (k1.mean - k.mean)**2*(t.signal**2*.25 + t.sigma**2) + k.std**2
close(var, (s.signal**2*.25 + s.sigma**2)*(1 - missing(.25, s, t)))


# %%NBQA-CELL-SEP15d533
# solution 3: one step of the grid is exchanged, and its level with it
def fast27(schedule):
    step = respace(schedule, '10,10,3,2,2').step
    step[0] = len(schedule) - 2
    return Grid(torch.cat([schedule.log_snr[step - 1], CLEAN.log_snr[None]]), step)


fast = fast27(linear())
errors = (close(fast.step[:4], torch.tensor([998, 801, 800, 601])),
          close(fast.log_snr[:2], linear().log_snr[[997, 800]]))
errors


# %%NBQA-CELL-SEP15d533
# solution 4: a generator of states; the kernel (14.3) while there is much noise, then (14.9)
def half_and_half(denoiser, levels, x, noise=torch.randn_like):
    for t, s in steps(levels):
        if t.log_snr < 1:
            x = reverse(denoiser, x, s, t, fixed_large).sample(noise(x))
        else:
            p = denoiser(x, t)
            x = s.signal*p.x0 + s.sigma*p.eps
        yield x


SAMPLERS.add('half-and-half', half_and_half)
torch.manual_seed(0)
x = last(SAMPLERS['half-and-half'](ring(), grid(Cosine(), 60), torch.randn(4000, 2)))

away, component = torch.cdist(x, ring().mean).min(1)
shares = component.bincount(minlength=8)/4000
errors = (close(shares, torch.full((8,), 1/8), 5*(7/64/4000)**.5),
          close((away.square().mean()/2).sqrt(), .15, .01))
errors
