# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.solve


# %%NBQA-CELL-SEP7dc948
# Figure 32.1: a curve and Euler's steps along it; digits after five evaluations
import matplotlib.pyplot as plt
import torch
from ddpm_lit import show
from ddpm_lit.core.check import setup
from ddpm_lit.diffusion import solve as library  # the first pages use what later ones build
from ddpm_lit.diffusion.oracle import Mixture
from ddpm_lit.diffusion.sample import ddim, last
from ddpm_lit.diffusion.schedule import Grid, karras
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64

# two Gaussians on a line
world = Mixture(torch.tensor([.3, .7], dtype=D), torch.tensor([[-1.2], [.6]], dtype=D),
                torch.tensor([.3, .2], dtype=D))

torch.manual_seed(0)
whole, recipe = load_weights('mnist')
digit_model = whole.given(torch.arange(8))
digit_noise = torch.randn(8, 1, 28, 28)


def draw(run, n):
    "Digits by n steps on a Karras grid, always from the same eight noises."
    return last(run(digit_model, karras(n, .01), digit_noise))


digits = {'DDIM': draw(ddim, 5), 'Heun': draw(library.heun, 3),
          'DPM-\nSolver++': draw(library.dpmpp_2m, 5),
          '80 evalua-\ntions': draw(library.dpmpp_2m, 80)}


def first(levels):
    "The level that a run starts from."
    return [*levels][0]


def path(run, sizes, y):
    "The states of a run in the coordinate y, the start first: [starts, steps + 1]."
    levels = Grid(-2*sizes.log())
    states = [y]
    for x, t in zip(run(world, levels, y*first(levels).signal), [*levels][1:]):
        states.append(x/t.signal)
    return torch.cat(states, 1)


def sizes(n):
    "n + 1 sizes of noise from 3 to .05."
    return torch.linspace(3**(1/3), .05**(1/3), n + 1, dtype=D)**3


fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.3), layout='constrained', dpi=160,
                                  width_ratios=(3, 4.4))
starts = torch.linspace(-4, 4, 13, dtype=D)[:, None]
begin = torch.full((1, 1), -1.9, dtype=D)
left.plot(sizes(200), path(library.heun, sizes(200), starts).T, color='.8', lw=.7)
left.plot(sizes(200), path(library.heun, sizes(200), begin).T, '--', color='black', lw=1)
left.plot(sizes(4), path(ddim, sizes(4), begin).T, '.-', color='tab:red', lw=1.2)
left.text(1.15, -.75, "4 steps of Euler's\nmethod (DDIM)", color='tab:red')
left.annotate('exact', (.3, -.72), (.15, -2.9), arrowprops=dict(arrowstyle='-', lw=.6))
left.set(xlabel=r'size of the noise, $\hat\sigma$', ylabel='$y$', ylim=(-4, 4), xlim=(0, 3))
right.imshow(show.tile(torch.cat([*digits.values()]), 8), interpolation='nearest')
right.set(xticks=[], yticks=[14 + 29*i for i in range(4)])
right.set_yticklabels(digits)
right.set_title('after 5 evaluations; last row: after 80', loc='left')
right.tick_params(left=False)
right.spines[:].set_visible(False)


# %%NBQA-CELL-SEP7dc948
#| export
import math
from typing import Iterator
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, Prediction
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.forward import q_step
from ddpm_lit.diffusion.sample import SAMPLERS, Sampler, ddim, last, steps
from ddpm_lit.diffusion.schedule import Grid, as_times
from ddpm_lit.diffusion.score import langevin_step


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, one Gaussian on a line, and evenly spaced noise levels
from ddpm_lit.core.check import close, expect_fail, measurement, passed
from ddpm_lit.core.denoiser import from_eps, from_v, from_x0
from ddpm_lit.core.level import CLEAN, from_edm_sigma
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.oracle import EmpiricalDenoiser, ring
from ddpm_lit.diffusion.sample import Counted, ancestral, find_sampler, respace
from ddpm_lit.diffusion.schedule import Cosine, grid, linear
from ddpm_lit.show import INK


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


def ladder(n, lo=-6., hi=4.):
    "n equal steps in log SNR."
    return Grid(torch.linspace(lo, hi, n + 1, dtype=D))


# one Gaussian on a line
m = .3
std = .5
one = torch.ones(1, dtype=D)
bell = Mixture(one, m*one[None], std*one)


def row(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160, **kw)
    return [*axes] if n > 1 else axes


# %%NBQA-CELL-SEP7dc948
# Figure 32.1: evaluations; white pixels; how far Heun's digits are from those of eighty evaluations
for run, n in ((ddim, 5), (library.heun, 3), (library.dpmpp_2m, 5)):
    counted = Counted(world)
    last(run(counted, karras(n, .01), torch.zeros(1, 1, dtype=D)))
    close(counted.nfe, 5)
*few, best = digits.values()
names = ('DDIM', 'Heun', 'DPM-Solver++', '80 evaluations')
white = {name: (x > .8).double().mean().item() for name, x in zip(names, digits.values())}
print('white pixels:', ', '.join(f'{name} {100*v:.1f} %' for name, v in white.items()))
assert white['DDIM'] < .75*white['80 evaluations']
passed('Figure 32.1: DPM-Solver++ has as many white pixels as 80 evaluations',
       close(white['DPM-Solver++'], white['80 evaluations'], .01))
assert (few[1] - best).square().mean() > 9*(few[2] - best).square().mean()


# %%NBQA-CELL-SEP7dc948
import torch


@torch.no_grad()
def plain_heun(net, y, sigmas):  # two evaluations a step
    for a, b in zip(sigmas, sigmas[1:]):
        slope = net(y, a)
        if b > 0:
            ahead = y + (b - a)*slope  # Euler's step, which is DDIM's
            slope = (slope + net(ahead, b))/2
        y = y + (b - a)*slope
    return y


@torch.no_grad()
def plain_dpmpp_2m(net, y, sigmas):  # one evaluation a step
    past = None
    step = None
    for a, b in zip(sigmas, sigmas[1:]):
        clean = y - a*net(y, a)
        guess = clean
        h = (a/b).log()  # infinite in the last step
        if past is not None and h <= 2*step:
            guess = clean + h/(2*step)*(clean - past)  # half a step ahead
        y = b/a*y + (1 - b/a)*guess
        step = h
        past = clean
    return y


# %%NBQA-CELL-SEP7dc948
# The plain samplers against the library's, on toy data and with the digit network
def plain_net(denoiser):
    "net(y, sigma) of a denoiser."
    def net(y, sigma):
        t = from_edm_sigma(sigma).like(y)
        return denoiser(t.signal*y, t).eps

    return net


def plain_error(denoiser, n, x, tol):
    "Both plain samplers beside the library's, from the same state at the noisiest level."
    levels = karras(n)
    some = torch.stack([t.edm_sigma for t in levels]).to(x)
    y = x/first(levels).signal.to(x)
    pairs = (plain_heun, library.heun), (plain_dpmpp_2m, library.dpmpp_2m)
    return [close(plain(plain_net(denoiser), y, some), last(run(denoiser, levels, x)), tol)
            for plain, run in pairs]


torch.manual_seed(0)
passed('plain samplers = library', *plain_error(world, 40, torch.randn(50, 1, dtype=D), 1e-9),
       by='two Gaussians, 40 steps')
label_3 = whole.given(torch.tensor([3]))
passed('plain samplers = library', *plain_error(label_3, 13, torch.randn(1, 1, 28, 28), 1e-3),
       by='trained digit network, 13 steps')


# %%NBQA-CELL-SEP7dc948
# Eq. 32.1: eps against the slope of the lines of constant distribution function, by autograd,
# at five sizes of noise
def share(y, blur):
    "The share of the data to the left of y."
    z = (y - world.mean.T)/(world.std**2 + blur**2).sqrt()
    return (world.weight*torch.special.ndtr(z)).sum(1, keepdim=True)


def slope_and_eps(blur):
    y = torch.linspace(-2, 2, 41, dtype=D)[:, None].requires_grad_()
    e = torch.full((41, 1), blur, dtype=D, requires_grad=True)
    up, side = torch.autograd.grad(share(y, e).sum(), (e, y))
    t = from_edm_sigma(e.detach()[0, 0])
    return -up/side, world(t.signal*y.detach(), t).eps


passed('(32.1) slope of the flow = predicted noise',
       *(close(*slope_and_eps(blur)) for blur in (.05, .2, .5, 1., 3.)),
       by='lines of constant distribution function')


# %%NBQA-CELL-SEP7dc948
#| export
def gaussian_flow(x: Tensor, s: Level, t: Level, mean: Tensor | float,
                  std: Tensor | float) -> Tensor:  # x [b ...] at t -> [b ...] at s
    "Where the flow takes x from t to s, for data N(mean, std^2). Eq. 32.2."
    v_s = s.alpha_bar*std**2 + s.sigma**2
    v_t = t.alpha_bar*std**2 + t.sigma**2
    return s.signal*mean + (v_s/v_t).sqrt()*(x - t.signal*mean)


# %%NBQA-CELL-SEP7dc948
# Eq. 32.2: it solves Eq. 32.1 (its derivative by autograd is eps), starts where it should, and
# arrives on the data
x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
t = level(-1.)

e = torch.full((9, 1), .7, dtype=D, requires_grad=True)
s = from_edm_sigma(e)
y = gaussian_flow(x, s, t, m, std)/s.signal
rate, = torch.autograd.grad(y.sum(), e)
eps = bell(s.signal.detach()*y.detach(), from_edm_sigma(.7)).eps
passed('(32.2) the formula solves (32.1)', close(rate, eps),
       close(gaussian_flow(x, t, t, m, std), x), by='autograd')

# points at -1, 0 and 2 standard deviations stay there
z = torch.tensor([[-1.], [0.], [2.]], dtype=D)
std_t = (t.alpha_bar*std**2 + t.sigma**2).sqrt()
end = gaussian_flow(t.signal*m + std_t*z, CLEAN, t, m, std)
passed('(32.2) points at −1, 0 and 2 standard deviations stay there',
       close(end, torch.tensor([[-.2], [.3], [1.3]], dtype=D)))


# %%NBQA-CELL-SEP7dc948
# Eq. 32.3: Euler in the unit-signal coordinate against ddim, state by state, down and then up
torch.manual_seed(0)
x = torch.randn(50, 1, dtype=D)


def euler(levels, x):
    y = x/first(levels).signal
    for t, s in levels.pairs():
        y = y + (s.edm_sigma - t.edm_sigma)*world(t.signal*y, t).eps
        yield s.signal*y


def euler_error(levels):
    states = zip(euler(levels, x), ddim(world, levels, x), strict=True)
    return max(close(a, b, 1e-12) for a, b in states)


passed('(32.3) Euler = DDIM, state by state, down and up',
       euler_error(ladder(20)), euler_error(ladder(20).flip()))


# %%NBQA-CELL-SEP7dc948
#| export
def mean_slope(s: Level, t: Level) -> Tensor:
    "What Heun's method multiplies the change of eps by. Eq. 32.4."
    # without a bound a leap from nearly no signal would be multiplied by hundreds
    return ((s.sigma - s.signal*t.edm_sigma)/2).clamp(min=-1)


@torch.no_grad()
def heun(denoiser: Denoiser, levels: Grid, x: Tensor, churn: float = 0.,
         noise=torch.randn_like) -> Iterator[Tensor]:
    """Two evaluations a step, an error of second order; with churn, fresh noise.
    Eq. 32.4-32.5 (EDM Algorithms 1 and 2, wherever their factor is above -1)."""
    if churn < 0:
        raise Problem(f'churn is {churn}: choose 0 (nothing random) or more.')
    pairs = steps(levels, up=churn == 0)
    gamma = min(churn/len(pairs), math.sqrt(2) - 1)

    for t, s in pairs:
        # fresh noise, and the level that it leads to; pure noise stays what it is (32.5)
        if gamma and t.signal > 0:
            noisier = Level(t.log_snr - 2*math.log1p(gamma))
            x = q_step(x, t, noisier, noise(x))
            t = noisier

        # Euler's step (32.3)
        p = denoiser(x, t)
        x = s.signal*p.x0 + s.sigma*p.eps

        # the mean with the slope where it landed (32.4); there is none at CLEAN
        if s.sigma > 0:
            x = x + mean_slope(s, t)*(denoiser(x, s).eps - p.eps)
        yield x


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4, 32.5: EDM's Algorithm 2 in its own letters (with S_noise 1), which at churn 0 is its
# Algorithm 1, on the same noise; with steps so short the bound never applies
torch.manual_seed(0)


def edm(levels, x, churn, noise):
    sig = [t.edm_sigma for t in levels]
    N = len(sig) - 1

    def slope(x, sigma):
        t = from_edm_sigma(sigma)
        return (x - world(x*t.signal, t).x0)/sigma

    x = x/first(levels).signal
    for i in range(N):
        hat = sig[i]*(1 + min(churn/N, 2**.5 - 1))
        x = x + (hat**2 - sig[i]**2).sqrt()*noise[i]
        d = slope(x, hat)
        after = x + (sig[i + 1] - hat)*d
        if sig[i + 1] == 0:
            x = after
        else:
            x = x + (sig[i + 1] - hat)*(d + slope(after, sig[i + 1]))/2
        yield x*from_edm_sigma(sig[i + 1]).signal


def edm_error(churn):
    draws = iter(z)
    ours = heun(world, karras(48), start, churn, lambda x: next(draws))
    theirs = edm(karras(48), start, churn, z)
    return max(close(a, b, 1e-10) for a, b in zip(ours, theirs, strict=True))


start = torch.randn(20, 1, dtype=D)
z = torch.randn(12, 20, 1, dtype=D).repeat(4, 1, 1)
passed('(32.4) (32.5) Heun with churn 0, 3 and 40',
       *(edm_error(churn) for churn in (0., 3., 40.)), by="EDM's Algorithms 1 and 2")


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4: the other rule, the mean of two predictions, in its own variable 1/edm_sigma, against
# its factor
t = level(-3.)
s = level(-1.)
x_t = torch.linspace(-2, 2, 9, dtype=D)[:, None]
p = bell(x_t, t)
euler_step = s.signal*p.x0 + s.sigma*p.eps
there = bell(euler_step, s)
by_guesses = s.sigma*(x_t/t.sigma + (1/s.edm_sigma - 1/t.edm_sigma)*(p.x0 + there.x0)/2)
factor = s.sigma/2*(s.edm_sigma/t.edm_sigma - 1)
passed('(32.4) the mean of two predictions has the same form, with another factor',
       close(by_guesses, euler_step + factor*(there.eps - p.eps)))


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4: where the noise falls to a third, and below an edm_sigma of 2, the bound never applies
errors = []
for before, after in ((80., 27.), (9., 3.1), (2., .002)):
    t = from_edm_sigma(before)
    s = from_edm_sigma(after)
    errors.append(close(mean_slope(s, t), s.signal*(after - before)/2))
passed('(32.4) no bound where the noise falls to a third, or below 2', *errors)

# a leap from nearly pure noise ends at most as far from the exact flow as Euler's
t = level(-20.)
s = level(-5.5)
ends = gaussian_flow(x_t, s, t, m, std)
p = bell(x_t, t)
euler_step = s.signal*p.x0 + s.sigma*p.eps
off = (next(heun(bell, [t, s], x_t)) - ends).abs().max()
assert off < 1.01*(euler_step - ends).abs().max()
factor = s.sigma/2*(s.edm_sigma/t.edm_sigma - 1)
passed('(32.4) a leap from log SNR −20 to −5.5: factors −0.5, and −1 at the bound',
       close(factor, -.5, 3e-3), close(mean_slope(s, t), -1))


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4: on the levels that the command line draws digits with, nearer to the end of the flow
# than Euler's steps with as many evaluations, and the error falls with more steps
def missed_by(run, n):
    levels = grid(Cosine(), n)
    ends = gaussian_flow(start, CLEAN, first(levels), m, std)
    return (last(run(bell, levels, start)) - ends).abs().max()


missed = [missed_by(heun, n).item() for n in (10, 25, 50)]
assert missed[0] > 2*missed[1] > 4*missed[2]
for n, miss in zip((10, 25, 50), missed):
    assert miss < missed_by(ddim, 2*n)
print('error with 10, 25 and 50 steps:', [round(miss, 4) for miss in missed])
passed('(32.4) on the cosine schedule Heun is nearer than DDIM with as many evaluations')


# %%NBQA-CELL-SEP7dc948
# Eq. 32.5: from q(x_t), with much churn, the moments of the data come out; bounds
# 5 sigma/sqrt(N), and .002 for the steps. Without churn nothing is drawn
torch.manual_seed(0)
N = 20_000
levels = ladder(40, -6., 8.)
x = gaussian_flow(torch.randn(N, 1, dtype=D), first(levels), level(-50.), m, std)


def no_noise(x):
    raise AssertionError('noise was drawn')


last(heun(bell, levels, x[:9], noise=no_noise))
y = last(heun(bell, levels, x, 30.))
passed('(32.5) with churn 30, mean and standard deviation of the data',
       close(y.mean(), m, 5*std/N**.5), close(y.std(), std, 5*std/(2*N)**.5 + .002),
       by='20,000 samples')


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def dpmpp_2m(denoiser: Denoiser, levels: Grid, x: Tensor) -> Iterator[Tensor]:
    "One evaluation a step, second order. Eq. 32.7, 32.13 (DPM-Solver++ Alg. 2)."
    past = None
    for t, s in steps(levels, up=True):
        # twice the h of the equation: only a ratio of two h is needed
        h = s.log_snr - t.log_snr
        x0 = denoiser(x, t).x0

        # the guess half a step ahead, on the line through the last two
        ahead = torch.zeros_like(x0)
        if past is not None:
            x0_past, h_past = past
            # no line beyond its own length (32.13), so none to CLEAN
            if h/h_past <= 2:
                ahead = h/2*(x0 - x0_past)/h_past

        keep = s.sigma/t.sigma
        x = keep*x + (s.signal - t.signal*keep)*(x0 + ahead)
        yield x
        past = x0, h


# found by its name, which imports this module (00)
SAMPLERS.add('heun', heun)
SAMPLERS.add('dpmpp_2m', dpmpp_2m)


# %%NBQA-CELL-SEP7dc948
# Eq. 32.6: the integral as a sum (Simpson) along the exact flow of one Gaussian, over a long step
s = level(3.)
t = level(-2.)
x = torch.tensor([[1.3], [-.4]], dtype=D)
lam = torch.linspace(-1., 1.5, 2001, dtype=D)

# Simpson's weights: 1 4 2 4 ... 2 4 1
w = torch.full((2001,), 2., dtype=D)
w[1::2] = 4
w[[0, -1]] = 1

on_path = []
for l in lam:
    now = Level(2*l)
    on_path.append(bell(gaussian_flow(x, now, t, m, std), now).x0)
weighted = (w*lam.exp())[:, None, None]*torch.stack(on_path)
integral = weighted.sum(0)*(lam[1] - lam[0])/3
passed('(32.6) linear part + integral = the flow',
       close(s.sigma/t.sigma*x + s.sigma*integral, gaussian_flow(x, s, t, m, std), 1e-10),
       by="Simpson's rule and (32.2)")


# %%NBQA-CELL-SEP7dc948
# Eq. 32.7: against the published algorithm in its own letters (r and D), on uneven steps up to
# CLEAN, and on the way up
def published(denoiser, levels, x):
    "Algorithm 2, which extrapolates in every step but the first and the last."
    a = [t.signal for t in levels]
    sig = [t.sigma for t in levels]
    lam = [(t.signal/t.sigma).log() for t in levels]
    Q = []
    for i in range(1, len(lam)):
        h = lam[i] - lam[i - 1]
        Q.append(denoiser(x, [*levels][i - 1]).x0)
        d = Q[-1]
        if i > 1 and h < 99:
            r = (lam[i - 1] - lam[i - 2])/h
            d = (1 + 1/(2*r))*Q[-1] - 1/(2*r)*Q[-2]
        x = sig[i]/sig[i - 1]*x - a[i]*((-h).exp() - 1)*d
        yield x


def published_error(levels):
    states = zip(dpmpp_2m(world, levels, start), published(world, levels, start), strict=True)
    return max(close(a, b, 1e-11) for a, b in states)


passed('(32.7) DPM-Solver++, down and up', published_error(karras(12)),
       published_error(karras(12).flip()), by="Algorithm 2 in its own letters")


# %%NBQA-CELL-SEP7dc948
# Eq. 32.13: for a prediction that is a parabola in half log SNR, the miss read off a step of the
# sampler against the formula; the line up to h = 2 h_-, none beyond
def bent(x, t):
    "A prediction that depends on the level alone, with the second derivative 1.4."
    l = t.log_snr/2
    return from_x0(.3 - l + .7*l**2 + 0*x, x, t)


def miss_of_middle(h_past, h):
    "The prediction in the middle of the second step less the guess that the sampler took."
    t, s = level(2*h_past), level(2*(h_past + h))
    before, after = dpmpp_2m(bent, [level(0.), t, s], start)
    keep = s.sigma/t.sigma
    guess = (after - keep*before)/(s.signal - t.signal*keep)
    return bent(start, level(2*h_past + h)).x0 - guess, bent(start, t).x0 - guess


errors_ = []
for h_past, h in ((.4, .3), (.4, .79), (.2, .39)):
    errors_.append(close(miss_of_middle(h_past, h)[0], h/4*(h/2 + h_past)*1.4 + 0*start))
passed('(32.13) what the line misses = a second difference', *errors_, by='a parabola')
passed('(32.13) beyond h = 2 h_- the guess is the prediction as it is',
       *(close(miss_of_middle(.4, h)[1], 0*start) for h in (.81, 3.)))

# the longest step over the one before, on the grids of this book and on DDPM's timesteps


def longest(levels):
    h = levels.log_snr[levels.log_snr.isfinite()].diff()
    return (h[1:]/h[:-1]).max().item()


ratios = []
for n in (4, 5, 6, 10, 20, 40, 80):
    for levels in (karras(n, .02), grid(Cosine(), n), grid(library.StraightPath(), n)):
        ratios.append(longest(levels))
ratios_ddpm = [longest(respace(linear(), str(n))) for n in (20, 40, 80, 160)]
print(f'a step is at most {max(ratios):.1f} times as long as the one before;',
      "DDPM's timesteps:", ', '.join(f'{r:.1f}' for r in ratios_ddpm))
assert max(ratios) < 1.8 and 2.2 < min(ratios_ddpm) and max(ratios_ddpm) < 4.5


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4, 32.7: one point needs no small steps; pure noise at either end; points and pictures,
# both precisions
torch.manual_seed(0)
point = Mixture(one, .4*one[None], 0*one)
pure = Grid(torch.tensor([-math.inf, -2., 0., 3., math.inf], dtype=D))
nearly = Grid(torch.cat([torch.tensor([-60.], dtype=D), pure.log_snr[1:]]))


def check_states(run, x):
    "Five steps on random pictures keep the shape and the dtype, and stay finite."
    states = [*run(EmpiricalDenoiser(torch.rand(9, *x.shape[1:])), grid(Cosine(), 5), x)]
    assert len(states) == 5
    for y in states:
        assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()


for name in ('heun', 'dpmpp_2m'):
    run = find_sampler(name)
    end = gaussian_flow(start, level(4.), level(-6.), .4, 0.)
    passed(f'data of one point: three steps of {name} are exact',
           close(last(run(point, ladder(3), start)), end), by='(32.2)')
    for x in (torch.randn(5, 2), torch.randn(5, 2, dtype=D), torch.randn(2, 3, 4, 4)):
        check_states(run, x)

    # a first step from no signal at all is the limit of those from little signal
    close(next(run(world, pure, start)), next(run(world, nearly, start)))
    assert last(run(world, pure, start)).isfinite().all()
    # and a run up to no signal
    assert last(run(world, Grid(pure.log_snr[:-1].flip(0)), start)).isfinite().all()
    if name == 'heun':
        assert last(heun(world, pure, start, 2.)).isfinite().all()


# %%NBQA-CELL-SEP7dc948
# Eq. 32.4, 32.7: how often the denoiser is evaluated in seven steps
def asked(run):
    d = Counted(world)
    last(run(d, karras(7), start))
    return d.nfe


passed('evaluations in seven steps: DDIM 7, Heun 13, DPM-Solver++ 7',
       close(asked(ddim), 7), close(asked(heun), 13), close(asked(dpmpp_2m), 7))


# %%NBQA-CELL-SEP7dc948
# Measured: the error at the end of a run by evaluations: on even levels, on DDPM's timesteps,
# there also without the rule (32.13)
runs = dict(ddim=ddim, heun=heun, dpmpp_2m=dpmpp_2m)
x = torch.linspace(-2, 2, 21, dtype=D)[:, None]
truths = {'one Gaussian': (bell, gaussian_flow(x, level(4.), level(-6.), m, std)),
          'a mixture': (world, last(heun(world, ladder(2000), x)))}
nfe = torch.tensor([16, 32, 64, 128, 256])


def error(name, evaluations, denoiser, truth):
    n = evaluations // 2 if name == 'heun' else evaluations
    return (last(runs[name](denoiser, ladder(n), x)) - truth).abs().mean().item()


errors = {}
for where, (denoiser, truth) in truths.items():
    errors[where] = {name: [error(name, n, denoiser, truth) for n in nfe.tolist()]
                     for name in runs}


def to_clean(name, evaluations, levels_of, denoiser=bell):
    "The mean error on levels that end at CLEAN; Heun has one evaluation less."
    n = evaluations // 2 if name == 'heun' else evaluations
    levels = levels_of(n)
    if denoiser is bell:
        end = gaussian_flow(x, CLEAN, first(levels), m, std)
    else:
        end = mixture_end
    return (last(with_and_without[name](denoiser, levels, x)) - end).abs().mean().item()


def timesteps(n):
    "n of DDPM's thousand timesteps."
    return respace(linear(), str(n))


with_and_without = runs | dict(no_rule=published)
nfe_clean = [20, 40, 80, 160]
begin = first(timesteps(20)).log_snr.item()
finest = torch.linspace(begin, 14, 2001, dtype=D)
mixture_end = last(heun(world, Grid(torch.cat([finest, CLEAN.log_snr[None]])), x))
respaced = {}
for where, denoiser in (('one Gaussian', bell), ('a mixture', world)):
    respaced[where] = {name: [to_clean(name, n, timesteps, denoiser) for n in nfe_clean]
                       for name in with_and_without}


# %%NBQA-CELL-SEP7dc948
# Figure 32.2: error by evaluations, on levels even in log SNR and on DDPM's timesteps
inks = dict(ddim=INK['data'], heun=INK['guidance'], dpmpp_2m=INK['model'], no_rule=INK['model'])
labels = dict(ddim='DDIM', heun='Heun', dpmpp_2m='DPM-Solver++', no_rule='without the rule')
curves_of = {'even in log SNR:\na mixture': errors['a mixture'],
             "DDPM's timesteps:\na mixture": respaced['a mixture'],
             "DDPM's timesteps:\none Gaussian": respaced['one Gaussian']}
axes = row(3, 2.7)
for ax, (title, curves) in zip(axes, curves_of.items()):
    counts = nfe if len(curves['ddim']) == 5 else nfe_clean
    for name, e in curves.items():
        ax.plot(counts, e, '.--' if name == 'no_rule' else '.-', color=inks[name])
    ax.set(title=title, xscale='log', yscale='log', xlabel='evaluations')
    ax.minorticks_off()
    ax.set_xticks(counts, [str(int(n)) for n in counts])
axes[0].set_ylabel('error')
spots = (dict(ddim=(70, 1.6e-2), heun=(72, 2.3e-3), dpmpp_2m=(15, 5e-5)),
         dict(ddim=(70, 2.3e-2), heun=(72, 5e-3), dpmpp_2m=(19, 6e-4)),
         dict(no_rule=(34, 8e-2)))
for ax, places in zip(axes, spots):
    for name, spot in places.items():
        ax.text(*spot, labels[name], color=inks[name])


# %%NBQA-CELL-SEP7dc948
# Eq. 32.3, 32.4, 32.7: the slopes between the last two points are 1, 2 and 2, in both worlds
slopes = {}
for where, e in errors.items():
    slopes[where] = {name: round(math.log2(v[-2]/v[-1]), 2) for name, v in e.items()}
    error_of_order = close(torch.tensor([*slopes[where].values()]), torch.tensor([1., 2., 2.]), .2)
    passed(f'(32.3) (32.4) (32.7) orders 1, 2 and 2 for {where}', error_of_order)

    # DPM-Solver++ with half of Heun's evaluations, and a smaller error
    assert all(p < h for p, h in zip(e['dpmpp_2m'], e['heun'][1:]))
passed('even levels: DPM-Solver++ is better than Heun with twice the evaluations')


# %%NBQA-CELL-SEP7dc948
# Eq. 32.13: on DDPM's own thousand timesteps, the last step to CLEAN included, in both worlds: what
# the rule gains, and DPM-Solver++ beside Heun's method at equal evaluations
for where, most in (('one Gaussian', .002), ('a mixture', .0145)):
    e = respaced[where]
    for name in with_and_without:
        print(f'{where:13}{labels[name]:17}' + ' '.join(f'{v:.4f}' for v in e[name]))
    ruled, ruleless, others = e['dpmpp_2m'], e['no_rule'], e['heun']

    # 40 evaluations: with the rule a small error, without it one like DDIM's
    assert ruled[1] < most and ruleless[1] > 2*ruled[1] and ruleless[1] > .9*e['ddim'][1]
    # the rule never loses, and the order comes back
    assert all(with_ < .6*without for with_, without in zip(ruled, ruleless))
    assert all(mine < other + .0003 for mine, other in zip(ruled, others))
    assert ruled[0] < .7*others[0] and ruled[2] < .75*others[2]
passed("(32.13) DDPM's timesteps: with the rule DPM-Solver++ is ahead of Heun or level",
       by='20, 40, 80 and 160 evaluations, two worlds')
for where, e in respaced.items():
    halved = e['ddim'][2]/e['ddim'][3]
    passed(f"(32.3) DDIM is of order 1 on DDPM's timesteps, {where}", close(halved, 2, .1))
    assert e['heun'][2] > 4*e['heun'][3]

by_grid = {"DDPM's timesteps": timesteps, 'Karras': lambda n: karras(n, .01),
           'even in log SNR': lambda n: Grid(torch.cat([torch.linspace(-9, 9, n, dtype=D),
                                                        CLEAN.log_snr[None]]))}
at_40 = {where: {name: to_clean(name, 40, f) for name in runs} for where, f in by_grid.items()}
print('error at 40 evaluations, from noise to CLEAN, one Gaussian:')
for where, e in at_40.items():
    print(f'{where:17}' + '  '.join(f'{labels[name]} {v:.5f}' for name, v in e.items()))
    assert e['dpmpp_2m'] < e['heun'] < e['ddim']


# %%NBQA-CELL-SEP7dc948
# Figure 32.3: Fréchet distance of 500 digits by evaluations, as the card measured it; at five
# DPM-Solver++ is five times nearer than any other, and up to 20 DDIM is behind it
solved = measurement('solve-mnist')['rows']['rows']
ways = ('ancestral', 'fixed_large', 'ddim', 'dpmpp_2m', 'heun')
curve = {}
for name in ways:
    rows = [r for r in solved if (r['sampler'], r['seed'], r['n']) == (name, 0, 500)]
    curve[name] = {r['evaluations']: r['frechet'] for r in rows}

others = [curve[name][5] for name in ways if name != 'dpmpp_2m']
assert min(others) > 5*curve['dpmpp_2m'][5]
assert all(curve['ddim'][n] > curve['dpmpp_2m'][n] + .15 for n in (5, 10, 20))

ax = row(1, 2.8)
looks = dict(ancestral=('.5', 'ancestral'), fixed_large=('.75', 'ancestral, fixed_large'),
             ddim=('black', 'DDIM'), heun=('tab:red', 'Heun'),
             dpmpp_2m=('tab:blue', 'DPM-Solver++'))
for name, (colour, _) in looks.items():
    points = sorted(p for p in curve[name].items() if p[0] < 100)
    ax.plot(*zip(*points), '.-', color=colour)
spots = dict(ancestral=(5.1, .95), fixed_large=(10.4, 1.3), ddim=(11.5, .66), heun=(5.3, 9.4),
             dpmpp_2m=(5.1, .55))
for name, (colour, text) in looks.items():
    ax.text(*spots[name], text, color='.5' if name == 'fixed_large' else colour)
ax.axhline(curve['ancestral'][250], color='black', ls='--', lw=.8)
ax.text(41, curve['ancestral'][250], ' ancestral,\n 250', va='center')
ax.set(xscale='log', yscale='log', xlabel='evaluations', xlim=(4.7, 41),
       ylabel='Fréchet distance, 500 digits')
ax.minorticks_off()
ax.set_xticks([5, 10, 20, 40], [5, 10, 20, 40])
ax.set_yticks([.3, 1, 3, 10], [.3, 1, 3, 10])


# %%NBQA-CELL-SEP7dc948
# Slider: the same noise after more and more evaluations of DPM-Solver++
few_steps = [1, 2, 3, 4, 5, 7, 10, 15, 20]
show.Slider([draw(dpmpp_2m, n) for n in few_steps], [f'{n} evaluations' for n in few_steps],
            'From the same noise: after how many evaluations does the digit no longer change?', 8)


# %%NBQA-CELL-SEP7dc948
# Eq. 32.7: how far the ten-step digits of DDIM and DPM-Solver++ are from those of eighty, per
# pixel; two other grids
def far(levels):
    differences = [last(run(digit_model, levels, digit_noise)) - best
                   for run in (ddim, dpmpp_2m)]
    return [d.square().mean().sqrt().item() for d in differences]


cosine = grid(Cosine(), 10)
milder = Grid(torch.cat([torch.tensor([-9.], dtype=D), cosine.log_snr[1:]]))
table = dict(karras=far(karras(10, .01)), cosine=far(cosine), milder=far(milder))
for where, (by_ddim, by_dpm) in table.items():
    print(f'{where:7} DDIM {by_ddim:.2f}, DPM-Solver++ {by_dpm:.2f}')
assert table['karras'][1] < .85*table['karras'][0]
assert min(table['cosine']) > 2*max(table['milder'])
passed('(32.7) a milder first level more than halves the distance')


# %%NBQA-CELL-SEP7dc948
# Figure 32.4: three test digits, the noise found for them, and the way back
torch.manual_seed(0)
real_digits = mnist('test')[:3]
three = whole.given(real_digits.label)
lowest = from_edm_sigma(torch.tensor(.02, dtype=D))
clean = to_unit(real_digits.pixels)
noised = lowest.signal.float()*clean + lowest.sigma.float()*torch.randn_like(clean)
trips = {}
for name, run, n in (('DDIM, 10 steps', ddim, 10), ('DDIM, 40 steps', ddim, 40),
                     ('Heun, 10 steps', heun, 10)):
    route = Grid(karras(n + 1, .02).log_snr[:-1])
    up = last(run(three, route.flip(), noised))
    trips[name] = up, last(run(three, route, up))

axes = row(3, 1.9)
for ax, (name, (up, back)) in zip(axes, trips.items()):
    ax.imshow(show.tile(torch.cat([noised, up/2, back]), 3), interpolation='nearest')
    rms = (back - noised).square().mean().sqrt()
    ax.set_title(f'{name}: off by {rms:.2f}')
    ax.axis('off')
axes[0].text(-3, 14, 'digit', ha='right', va='center')
axes[0].text(-3, 43, 'noise', ha='right', va='center')
axes[0].text(-3, 72, 'digit\nagain', ha='right', va='center')


# %%NBQA-CELL-SEP7dc948
# Figure 32.4: the way back, and the variance of the noise found; without a little noise at the
# start it is too small
def variance_up(x):
    route = Grid(karras(11, .02).log_snr[:-1])
    return last(heun(three, route.flip(), x)).var().item()


def off_by(name):
    return (trips[name][1] - noised).square().mean().sqrt().item()


assert off_by('Heun, 10 steps') < off_by('DDIM, 40 steps') < off_by('DDIM, 10 steps')
with_noise = trips['Heun, 10 steps'][0].var().item()
without = variance_up(clean)
print(f'variance of the noise found: {with_noise:.2f}; from digits without noise {without:.2f}')
assert without < .5*with_noise
passed('Figure 32.4: Heun in 10 steps leads back better than DDIM in 40')


# %%NBQA-CELL-SEP7dc948
def invert_ddim(denoiser, levels, x, iterations=1):  # levels from clean to noisy
    for t, s in levels.pairs():
        eps = denoiser(x, t).eps  # plain DDIM inversion stops here
        y = x/t.signal
        for _ in range(iterations):
            ahead = s.signal*(y + (s.edm_sigma - t.edm_sigma)*eps)
            eps = denoiser(ahead, s).eps  # now at the noisier end
        x = s.signal*(y + (s.edm_sigma - t.edm_sigma)*eps)
    return x


# %%NBQA-CELL-SEP7dc948
# DDIM inversion with more and more iterations, and the way back, in 20 steps on the mixture
x0 = torch.linspace(-1.5, 1, 21, dtype=D)[:, None]


def back_by_ddim(iterations):
    up = invert_ddim(world, ladder(20).flip(), x0, iterations)
    return (last(ddim(world, ladder(20), up)) - x0).abs().max().item()


misses = {k: back_by_ddim(k) for k in (0, 1, 3, 30)}
print('largest error after so many iterations:', {k: f'{v:.0e}' for k, v in misses.items()})
plain_up = last(ddim(world, ladder(20).flip(), x0))
passed('no iteration: plain DDIM inversion',
       close(invert_ddim(world, ladder(20).flip(), x0, 0), plain_up))
assert misses[0] > 3*misses[1] > 9*misses[3]
passed('30 iterations: DDIM leads back to the start', close(misses[30], 0., 1e-6),
       by='two Gaussians, 20 steps')


# %%NBQA-CELL-SEP7dc948
# DDIM up and down again with guidance to the right group of the mixture, in 20 steps
group = Mixture(one, world.mean[1:], world.std[1:])
inside = torch.linspace(.2, 1., 21, dtype=D)[:, None]


def guided(w):
    "Classifier-free guidance: (1 + w) conditional less w unconditional predictions (41.3)."
    def denoiser(x, t):
        eps = (1 + w)*group(x, t).eps - w*world(x, t).eps
        return from_eps(eps, x, t)

    return denoiser


missed = {}
for w in (0, 1, 3):
    there = last(ddim(guided(w), ladder(20).flip(), inside))
    back = last(ddim(guided(w), ladder(20), there))
    missed[w] = (back - inside).abs().mean().item()
print('mean error after the way up and down:', {f'w = {w}': f'{e:.2f}' for w, e in missed.items()})
assert missed[0] < missed[1] < missed[3]
passed('the larger w, the farther DDIM misses the start', by='two Gaussians, 20 steps')


# %%NBQA-CELL-SEP7dc948
# Eq. 32.3, 32.4, 32.7: how far points land from where they were after a walk up and down; the
# orders when the number of steps is doubled
def round_trip(run, denoiser, levels):
    up = last(run(denoiser, levels.flip(), x0))
    return last(run(denoiser, levels, up))


def missing(run, n):
    return (round_trip(run, world, ladder(n)) - x0).abs().mean().item()


missed = {name: (missing(run, 200), missing(run, 400)) for name, run in runs.items()}
orders = torch.tensor([math.log2(a/b) for a, b in missed.values()])
print('200 and 400 steps:', {name: f'{a:.1e} {b:.1e}' for name, (a, b) in missed.items()})
passed('(32.3) (32.4) (32.7) up and down: orders 1, 3 and 2',
       close(orders, torch.tensor([1., 3., 2.]), .2))


# %%NBQA-CELL-SEP7dc948
# Eq. 32.3: DDIM's round trip for one Gaussian against the product of the shares kept; with twice
# the steps, half of it is missing
def kept(levels):
    product = 1.
    for t, s in levels.pairs():
        v_s = s.alpha_bar*std**2 + s.sigma**2
        v_t = t.alpha_bar*std**2 + t.sigma**2
        lost = std**2*(s.signal*t.sigma - t.signal*s.sigma)**2/(v_s*v_t)
        product *= (1 - lost).item()
    return product


center = level(4.).signal*m
errors_ = []
for n in (5, 100, 200):
    expected = center + kept(ladder(n))*(x0 - center)
    errors_.append(close(round_trip(ddim, bell, ladder(n)), expected))
passed("(32.3) DDIM's round trip = the product of the shares kept", *errors_, by='one Gaussian')
passed('(32.3) twice the steps, half of it missing',
       close((1 - kept(ladder(200)))/(1 - kept(ladder(400))), 2, .02))


# %%NBQA-CELL-SEP7dc948
#| export
def from_flow(v: Tensor, x: Tensor, t: Level) -> Prediction:  # all [b ...]
    "Read v = eps - x0, the velocity of flow matching. Eq. 32.9 (rectified flow eq. 1)."
    both = t.signal + t.sigma
    return Prediction((x - t.sigma*v)/both, (x + t.signal*v)/both)


class StraightPath:
    "The schedule of flow matching: at time u, (1 - u) x0 + u eps, rescaled. Eq. 32.8."

    def __call__(self, time) -> Level:  # u in [0, 1], any shape
        u = as_times(time)
        return Level(2*((-u).log1p() - u.log()))

    def time(self, t: Level) -> Tensor:
        return (-t.log_snr/2).sigmoid()


# %%NBQA-CELL-SEP7dc948
# Eq. 32.8, 32.9: the mix against our level, the time and back, the ends; a prediction read from
# v = eps - x0 against the three other readings
torch.manual_seed(0)
x0, eps = torch.randn(3, 40, dtype=D)[:2]
u = torch.linspace(.01, .99, 40, dtype=D)
t = StraightPath()(u)
x_u = (1 - u)*x0 + u*eps
x = x_u*(t.signal + t.sigma)
passed('(32.8) the straight mix is our x_t, and time and level agree',
       close(t.edm_sigma, u/(1 - u), 1e-10), close(StraightPath().time(t), u),
       close(x, t.signal*x0 + t.sigma*eps), close(x, x_u/((1 - u)**2 + u**2).sqrt()))
assert StraightPath()(1.).signal == 0 and StraightPath()(0.).sigma == 0

v = eps - x0
at_clean = torch.stack(from_flow(v, x, CLEAN)[:2])
close(at_clean, torch.stack([x, x + v]))
p = from_flow(v, x, t)
others = (from_eps(eps, x, t),
          from_x0(x0, x, t),
          from_v(t.signal*eps - t.sigma*x0, x, t))
passed('(32.9) predictions from the velocity',
       *(max(close(p.x0, q.x0), close(p.eps, q.eps)) for q in others),
       by='three other parameterizations')


# %%NBQA-CELL-SEP7dc948
# Eq. 32.10: Euler in u on rectified flow's own states against ddim on the same levels, from pure
# noise to CLEAN
levels = grid(StraightPath(), 10)
x = start
errors_ = []
for k, ours in zip(range(10, 0, -1), ddim(world, levels, start), strict=True):
    t = StraightPath()(k/10)
    p = world((t.signal + t.sigma)*x, t)
    x = x - .1*(p.eps - p.x0)
    s = StraightPath()((k - 1)/10)
    errors_.append(close(ours, (s.signal + s.sigma)*x, 1e-12))
passed('(32.10) Euler steps of flow matching = DDIM', *errors_, by='ten steps from pure noise')


# %%NBQA-CELL-SEP7dc948
# Figure 32.5: paths of the flow in the coordinate x_u, for data of one point and for the ring
torch.manual_seed(1)
one_point = Mixture(torch.ones(1), torch.tensor([[1., .5]]), torch.zeros(1))
x = torch.randn(40, 2)
levels = grid(StraightPath(), 60)


def mixed_states(run, denoiser):
    "The states of a run from x in the coordinate x_u, the start first."
    states = [x]
    for y, t in zip(run(denoiser, levels, x), [*levels][1:]):
        states.append(y/(t.signal + t.sigma))
    return torch.stack(states)


for ax, d in zip(show.panels(2, ['one point', 'the ring'], dpi=160), (one_point, ring())):
    xs = mixed_states(dpmpp_2m, d).transpose(0, 1)  # [path time 2]
    for at, ink in ((0, 'noise'), (-1, 'data')):
        show.cloud(xs[:, at], ax, ink, size=8, alpha=1.)
    for path_ in xs:
        ax.plot(*path_.T, color=INK['model'], linewidth=.6)


# %%NBQA-CELL-SEP7dc948
# Eq. 32.10: towards one point every state lies on the line from its noise to the point; on the
# ring the paths are longer than their chords
lengths = xs.diff(dim=1).norm(dim=2).sum(1)
chords = (xs[:, -1] - xs[:, 0]).norm(dim=1)
longer = (lengths/chords).mean().item()
assert (xs[:, -1].norm(dim=1) > 1.4).all() and 1.01 < longer < 2
print(f'on the ring, paths are {longer:.2f} times as long as their chords')

u = torch.linspace(1, 0, 61)[:, None, None]
passed('(32.10) towards one point, all states lie on straight lines',
       close(mixed_states(ddim, one_point), (1 - u)*one_point.mean + u*x, 1e-5))


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def predictor_corrector(denoiser: Denoiser, levels: Grid, x: Tensor,
                        predictor: Sampler = ddim, repeats: int = 1, step: float = .3,
                        noise=torch.randn_like) -> Iterator[Tensor]:
    "A sampler's step, then Langevin steps at its level. Eq. 31.8 (Song 2021, Alg. 2-3)."
    if repeats < 1:
        raise Problem(f'A corrector repeats {repeats} times: ask for one step or more, '
                      'or run the predictor alone.')
    if not 0 < step < 4:
        raise Problem(f'The step is {step}: choose it above 0 and below 4, where '
                      'Langevin steps begin to grow without end.')

    for t, s in steps(levels):
        x = last(predictor(denoiser, [t, s], x))
        # an evaluation each; at CLEAN there is nothing to correct
        for _ in range(repeats if s.sigma > 0 else 0):
            x = langevin_step(denoiser, x, s, step, noise)
        yield x


SAMPLERS.add('pc', predictor_corrector)


# %%NBQA-CELL-SEP7dc948
# Eq. 32.11: three steps from twice the true variance, and the end of many, against the formulas;
# a step is a x + b z, and a and b are known from its values at x = 0 and 1, with z = 0 and 1
errors_ = []
for t, step in ((level(-2.), .3), (level(1.), 1.5)):
    v = (t.alpha_bar*std**2 + t.sigma**2).item()
    rho = step*t.sigma.item()**2/v
    at = torch.tensor([[0.], [1.]], dtype=D)
    z0 = langevin_step(bell, at, t, step, torch.zeros_like)
    z1 = langevin_step(bell, at, t, step, torch.ones_like)
    a = (z0[1] - z0[0]).item()
    b = (z1 - z0)[0].item()

    # three steps: as they are, and by the formula
    V = W = 2*v
    for _ in range(3):
        V = a**2*V + b**2
        W = (1 - rho/2)**2*W + rho*v

    limit = v/(1 - rho/4)
    errors_ += [close(V, W), close(b**2/(1 - a**2), limit),
                close(V - limit, (1 - rho/2)**6*(2*v - limit))]
passed('(32.11) three corrector steps from twice the variance, and the limit of many', *errors_)


# %%NBQA-CELL-SEP7dc948
# The corrector: Song et al.'s Algorithm 2 in its own letters, for data whose noise grows and
# signal stays, on the same noise; one and three corrections
torch.manual_seed(0)


def algorithm_2(levels, x, M, r, z):
    def score(y, sigma):
        t = from_edm_sigma(sigma)
        return -world(y*t.signal, t).eps/sigma

    sig = [t.edm_sigma for t in levels]
    y = x/first(levels).signal
    for a, b in zip(sig, sig[1:]):
        y = y + (a**2 - b**2)*score(y, a) + (a**2 - b**2).sqrt()*next(z)
        for _ in range(M):
            e = r*b**2/2
            y = y + e*score(y, b) + (2*e).sqrt()*next(z)
        yield y*from_edm_sigma(b).signal


def exploding(p, x, s, t):
    "The standard deviation of a step of the exploding process."
    return s.signal*(t.edm_sigma**2 - s.edm_sigma**2).sqrt()


def algorithm_2_error(M):
    zs = torch.randn(8 + 8*M, 20, 1, dtype=D)
    draws = iter(zs)

    def draw_next(x):
        return next(draws)

    def predictor(denoiser, levels, x):
        return ancestral(denoiser, levels, x, exploding, draw_next)

    ours = predictor_corrector(world, ladder(8), start, predictor, M, .2, draw_next)
    theirs = algorithm_2(ladder(8), start, M, .2, iter(zs))
    return max(close(p, q, 1e-11) for p, q in zip(ours, theirs, strict=True))


passed('predictor-corrector, one and three corrections', *(algorithm_2_error(M) for M in (1, 3)),
       by="Song et al.'s Algorithm 2")


# %%NBQA-CELL-SEP7dc948
# Measured: the width of the samples over the true one, without drawing anything
def true_std(t):
    return (t.alpha_bar*std**2 + t.sigma**2).sqrt()


def width(run, levels, wide):
    "The standard deviation at the end over the true one."
    # everything is linear, so a run can be taken with unit vectors for noise: in row k the k-th
    # random number is 1 and all others are 0, and row 0 has none. Then y - y[0] is what each
    # of them contributes
    rows = iter(torch.eye(2*len(levels) + 2, dtype=D)[1:, :, None])

    def unit(x):
        return next(rows)

    t = first(levels)
    y = last(run(levels, t.signal*m + wide*true_std(t)*unit(0), unit))
    return ((y - y[0]).norm()/true_std([*levels][-1])).item()


def by_ancestral(levels, x, z):
    return ancestral(bell, levels, x, noise=z)


def by_ddim(levels, x, z):
    return ddim(bell, levels, x)


def by_corrector(levels, x, z):
    return predictor_corrector(bell, levels, x, noise=z)


kinds = dict(ancestral=by_ancestral, ddim=by_ddim, corrected=by_corrector)
cost = dict(ancestral=1, ddim=1, corrected=2)  # evaluations a step
lots = [8, 16, 32, 64, 128, 256]
widths = {}
for wide in (1., 1.3):
    widths[wide] = {name: [width(run, ladder(n // cost[name], -2.), wide) for n in lots]
                    for name, run in kinds.items()}


# %%NBQA-CELL-SEP7dc948
# Figure 32.6: the width of the samples, from a right start and from one that is too wide
names = dict(ancestral='ancestral', ddim='DDIM', corrected='DDIM + corrector')
colours = dict(ancestral='.5', ddim='black', corrected='tab:red')
titles = ('right start', 'start 1.3 times too wide')
axes = row(2, 2.4, sharey=True)
for ax, title, w in zip(axes, titles, widths.values()):
    ax.axhline(1, color='.85', lw=.8, zorder=0)
    for name, values in w.items():
        ax.plot(lots, values, '.-', color=colours[name])
    ax.set(title=title, xlabel='evaluations')
    ax.set_xscale('log', base=2)
    ax.set_xticks(lots, lots)
axes[0].set_ylabel('width / true width')
for name, spot in dict(ancestral=(15, .87), ddim=(7.6, .945), corrected=(36, 1.025)).items():
    axes[0].text(*spot, names[name], color=colours[name])
for name, spot in dict(ancestral=(17, .9), ddim=(64, 1.25), corrected=(24, 1.05)).items():
    axes[1].text(*spot, names[name], color=colours[name])


# %%NBQA-CELL-SEP7dc948
# Eq. 32.2, 32.11: DDIM keeps the wrong width, the corrector all but loses it; from the right
# start, DDIM is nearer to 1 with the same evaluations, from 128 on
right_start = widths[1.]
wrong_start = widths[1.3]
for ddim_width, corrected_width in zip(right_start['ddim'][4:], right_start['corrected'][4:]):
    assert abs(ddim_width - 1) < abs(corrected_width - 1)
assert 1 < right_start['corrected'][-1] < 1.01
passed('(32.2) DDIM keeps the 1.3', close(wrong_start['ddim'][-1], 1.3, .01))
passed('(32.11) corrector and ancestral sampling return to 1',
       close(wrong_start['corrected'][-1], 1, .01), close(wrong_start['ancestral'][-1], 1, .01))


# %%NBQA-CELL-SEP7dc948
# How far a corrector reaches: the weight of the left part after sixty corrections of .3 at each
# of four levels, by sums on a line; true .3, at first .5
y = torch.linspace(-5, 5, 1001, dtype=D)[:, None]


def shaken(t, step):  # [from, to]
    "The probabilities of a step."
    mean = langevin_step(world, y, t, step, torch.zeros_like)
    std = step**.5*t.sigma
    return torch.distributions.Normal(mean, std).log_prob(y.T).softmax(1)


def weight_left(log_snr):
    t = level(log_snr)
    part = world.classify(y, t).exp()
    even = torch.tensor([.5, .5], dtype=D)
    q = world.log_prob(y, t).softmax(0)*(part @ (even/world.weight))
    step = shaken(t, .3)
    for _ in range(60):
        q = q @ step
    return round((q @ part[:, 0]/q.sum()).item(), 3)


left_part = {log_snr: weight_left(log_snr) for log_snr in (-2., 0., 2., 4.)}
assert abs(left_part[-2.] - .3) < .02 and left_part[4.] > .49
print('weight of the left part by log SNR:', left_part)


# %%NBQA-CELL-SEP7dc948
# Predictor-corrector: points and pictures, both precisions, from pure noise to CLEAN, each
# predictor, those with a memory too; how often the denoiser is evaluated
torch.manual_seed(0)
for predictor, n in ((ancestral, 7), (ddim, 7), (heun, 13), (dpmpp_2m, 7)):
    close(asked(lambda d, levels, x: predictor_corrector(d, levels, x, predictor, 2)), n + 2*6)


def without_noise(predictor):
    return last(predictor_corrector(world, karras(7), start, predictor, noise=torch.zeros_like))


# a memory of one step is none
passed('with a corrector, DPM-Solver++ = DDIM',
       close(without_noise(dpmpp_2m), without_noise(ddim)))
for x in (torch.randn(5, 2), torch.randn(5, 2, dtype=D), torch.randn(2, 3, 4, 4)):
    check_states(find_sampler('pc'), x)
assert last(predictor_corrector(world, pure, start)).isfinite().all()

# many points from noise have the moments of the data; .01 for the corrector's own mistake
N = 20_000
x = last(predictor_corrector(bell, respace(linear(), '100'), torch.randn(N, 1, dtype=D)))
passed('with a corrector, mean and standard deviation of the data',
       close(x.mean(), m, 5*std/N**.5), close(x.std(), std, 5*std/(2*N)**.5 + .01),
       by='20,000 samples')


# %%NBQA-CELL-SEP7dc948
# What raises an error: noise on the way up, levels that turn back, a start at CLEAN
x = torch.randn(4, 2)
levels = grid(Cosine(), 5)
up = levels.flip()


def half_random(*a):
    return ddim(*a, eta=.5)


with expect_fail('Random steps lead from noise', Problem):
    last(heun(ring(), up, x, churn=1.))
for run in (predictor_corrector, ancestral, half_random):  # the same answer
    with expect_fail('Random steps lead from noise', Problem, show=False):
        last(run(ring(), up, x))
for run in (ddim, heun, dpmpp_2m):
    with expect_fail('A run goes one way', Problem, show=run is ddim):
        last(run(ring(), map(level, (-4., 0., -1.)), x))
with expect_fail('repeats 0 times', Problem):
    last(predictor_corrector(ring(), levels, x, repeats=0))
for step in (0., 4.):
    with expect_fail('below 4', Problem):
        last(predictor_corrector(ring(), levels, x, step=step))
with expect_fail('churn is -1', Problem):
    last(heun(ring(), levels, x, churn=-1))
with expect_fail('No step starts at CLEAN', Problem):
    last(dpmpp_2m(ring(), [CLEAN, level(0.)], x))
with expect_fail('Time runs from 0', Problem):
    StraightPath()(1.5)


# %%NBQA-CELL-SEP7dc948
# Question 3: a network that predicts v can be evaluated in pure noise, one that predicts eps
# cannot; question 2: a start of standard deviation 1 at alpha-bar 0.2, carried to the data by
# (32.2) and by a sampler
def finite_from_noise(read):
    def constant(x, t):
        return read(.1 + 0*x, x, t)

    return last(ddim(constant, grid(StraightPath(), 10), start)).isfinite().all()


assert finite_from_noise(from_v) and not finite_from_noise(from_eps)
wrong = level(math.log(.2/.8))
x = torch.ones(1, 1, dtype=D)
end = gaussian_flow(x, CLEAN, wrong, 0., .5)
half = Mixture(one, 0*one[None], .5*one)
solved = last(dpmpp_2m(half, ladder(400, wrong.log_snr.item(), 14.), x))
passed('question 2: samples of standard deviation 0.54',
       close(end, .5*1.085, 1e-3), close(solved, end, 1e-3), by='a sampler')


# %%NBQA-CELL-SEP7dc948
#| eval: false
my_guess = ...
end = gaussian_flow(start, level(4.), level(-6.), .4, 0.)
close(last(ddim(point, ladder(1), start)) - end, my_guess)


# %%NBQA-CELL-SEP7dc948
#| eval: false
def factor(h):
    return ...


h = torch.tensor(.7, dtype=D)
lam = torch.linspace(0, .7, 100_001, dtype=D)
close(factor(h), torch.trapezoid((lam - h).exp()*lam, lam), 1e-8)


# %%NBQA-CELL-SEP7dc948
#| eval: false
def midpoint(denoiser, levels, x):
    ...


def midpoint_error(n):
    return (last(midpoint(world, ladder(n), start)) - truth).abs().mean()


truth = last(heun(world, ladder(2000), start))
close(math.log2(midpoint_error(50)/midpoint_error(100)), 2, .2)


# %%NBQA-CELL-SEP7dc948
# solution 1: none. The guess is the one point wherever it is evaluated, so the slope never
# changes (32.3), and one step is as good as many
my_guess = 0.
end = gaussian_flow(start, level(4.), level(-6.), .4, 0.)
close(last(ddim(point, ladder(1), start)) - end, my_guess)


# %%NBQA-CELL-SEP7dc948
# solution 2: the slope's factor is the integral of e^(lam - h) lam from 0 to h; by parts it is
# h - (1 - e^-h). For small h both are h^2/2
def factor(h):
    return h - 1 + (-h).exp()


h = torch.tensor(.7, dtype=D)
lam = torch.linspace(0, .7, 100_001, dtype=D)
close(factor(h), torch.trapezoid((lam - h).exp()*lam, lam), 1e-8)


# %%NBQA-CELL-SEP7dc948
# solution 3: yes: the slope in the middle is right, like the mean of both ends, for slopes that
# change at a constant rate
def midpoint(denoiser, levels, x):
    for t, s in steps(levels):
        y = x/t.signal
        mid = from_edm_sigma((s.edm_sigma + t.edm_sigma)/2)
        halfway = y + (mid.edm_sigma - t.edm_sigma)*denoiser(x, t).eps
        slope = denoiser(mid.signal*halfway, mid).eps
        x = s.signal*(y + (s.edm_sigma - t.edm_sigma)*slope)
        yield x


def midpoint_error(n):
    return (last(midpoint(world, ladder(n), start)) - truth).abs().mean()


truth = last(heun(world, ladder(2000), start))
close(math.log2(midpoint_error(50)/midpoint_error(100)), 2, .2)
