# %%NBQA-CELL-SEP15d533
#| default_exp guide.guided


# %%NBQA-CELL-SEP15d533
# Figure 46.1: a class of three groups; a model of it that is too wide; two guidances
import matplotlib.pyplot as plt
import torch
from ddpm_lit.core.check import setup
from ddpm_lit.core.level import CLEAN
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import last
from ddpm_lit.diffusion.schedule import Grid
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.guide import guided as library  # the first pages use what the later ones build
from ddpm_lit.guide.cfg import cfg
from ddpm_lit.show import INK

setup()
D = torch.float64
RED = INK['guidance']
BLUE = INK['model']


def ladder(n, lo=-14., hi=16.):
    "n equal steps of log SNR, then the last one to the clean end."
    return Grid(torch.cat([torch.linspace(lo, hi, n + 1, dtype=D), CLEAN.log_snr[None]]))


def row(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160, **kw)
    return [*axes]


def groups(std, k=8):
    "The first k of eight round groups on a circle."
    whole = ring(std=std, dtype=D)
    return Mixture(torch.full((k,), 1/k, dtype=D), whole.mean[:k], whole.std[:k])


torch.manual_seed(0)
noise_2d = torch.randn(3000, 2, dtype=D)
trained = groups(.3, 3)  # of the class; the data have standard deviation .15
weaker = groups(.6, 3)
anything = groups(.3)    # of all classes


def draw_2d(denoiser):
    return last(dpmpp_2m(denoiser, ladder(60, -9., 9.), noise_2d))


clouds = {'data of one class': groups(.15, 3).sample(3000),
          'trained model': draw_2d(trained),
          'classifier-free, $w = 2$': draw_2d(cfg(trained, anything, w=2.)),
          'weaker network, $w = 1$': draw_2d(cfg(trained, weaker, w=1.))}
inks = (INK['data'], BLUE, RED, RED)
for ax, (title, x), ink in zip(row(4, 1.9), clouds.items(), inks):
    ax.scatter(*x[:700].T, s=1.5, alpha=.5, color=ink, linewidths=0)
    ax.add_patch(plt.Circle((0, 0), 2., fill=False, color='.85', zorder=0))
    ax.scatter(*ring(dtype=D).mean[3:].T, s=12, color='.8', marker='x', linewidths=1)
    ax.set(title=title, xticks=[], yticks=[], aspect='equal', xlim=(-2.9, 3.4), ylim=(-2.9, 3.1))
    ax.spines[:].set_visible(False)


# %%NBQA-CELL-SEP15d533
import torch


@torch.no_grad()
def sample(good, other, x, w, alpha_bar, weighted=False):  # [steps + 1], the last is 1
    log_w = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for t, (ab_t, ab_s) in enumerate(zip(alpha_bar, alpha_bar[1:])):
        g, o = good(x, t), other(x, t)
        gap = (g - o).flatten(1).square().sum(1)/(1 - ab_t)
        log_w += w*(1 + w)/2*gap*(ab_s/ab_t).log()

        eps = g + w*(g - o)                                 # guidance
        x0 = (x - (1 - ab_t).sqrt()*eps)/ab_t.sqrt()
        std = ((1 - ab_s)/(1 - ab_t)*(1 - ab_t/ab_s)).sqrt()
        x = (ab_s.sqrt()*x0 + (1 - ab_s - std**2).sqrt()*eps  # an ancestral step
             + std*torch.randn_like(x))

        p = log_w.softmax(0)
        if weighted and (1/p.square().sum() < len(x)/2 or ab_s == 1):
            place = (torch.arange(len(x)) + torch.rand(1))/len(x)
            x = x[torch.searchsorted(p.cumsum(0), place.to(p)).clamp(max=len(x) - 1)]
            log_w.zero_()                                   # as many copies as it weighs
    return x


# %%NBQA-CELL-SEP15d533
#| export
from typing import Iterator
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser
from ddpm_lit.core.problem import Problem
from ddpm_lit.diffusion.posterior import posterior
from ddpm_lit.diffusion.sample import steps
from ddpm_lit.diffusion.schedule import Grid
from ddpm_lit.guide.cfg import extrapolate


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, one-dimensional worlds
import math
from ddpm_lit import show
from ddpm_lit.core.check import budget, close, expect_fail, passed, redrawn
from ddpm_lit.core.check import keep_measurement, measurement
from ddpm_lit.core.denoiser import Model, from_eps, from_x0
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.level import Level
from ddpm_lit.core.tensors import write_tensors
from ddpm_lit.data.images import Batches, mnist, to_bytes, to_unit
from ddpm_lit.diffusion.loss import min_snr, weighted
from ddpm_lit.diffusion.sample import ancestral, clamp_x0, ddim, last, reverse
from ddpm_lit.diffusion.schedule import Cosine, karras
from ddpm_lit.diffusion.score import drift, langevin_step
from ddpm_lit.diffusion.solve import dpmpp_2m, from_flow
from ddpm_lit.guide.cfg import cfg, cfg_batched, guidance_interval
from ddpm_lit.train.fit import Training, fit, has_bf16
from ddpm_lit.train.measure import frechet_distance, in_parts, kernel_distance
from ddpm_lit.train.measure import load_classifier, manifold
from ddpm_lit.train.weights import load_weights

one = torch.ones(1, dtype=D)


def bell(v, mean=0.):
    "One Gaussian of variance v on a line."
    return Mixture(one, mean*one[None], v**.5*one)


# %%NBQA-CELL-SEP15d533
# Figure 46.1: shares of the three groups, and points farther from all centres than data ever are
def spread_of(x):
    "Share farther than .53 from all centres (3.5 standard deviations); least share of a group."
    away, nearest = torch.cdist(x, ring(dtype=D).mean[:3]).min(1)
    least = nearest.bincount(minlength=3).min().item()/len(x)
    return (away > .53).double().mean().item(), least


found = {name: spread_of(x) for name, x in clouds.items()}
for name, (far, least) in found.items():
    print(f'{name:26} too far out {far:6.1%}   smallest group {least:6.1%}')
model_far, model_least = found['trained model']
for w in (.5, 1., 2., 4.):  # no weight of classifier-free guidance mends it
    far, least = spread_of(draw_2d(cfg(trained, anything, w=w)))
    assert far > .8*model_far and least < model_least - .04
far, least = found['weaker network, $w = 1$']
assert far < .1*model_far
passed('Figure 46.1: with the weaker network, the groups keep their shares',
       close(least, model_least, .01), by='3,000 points')


# %%NBQA-CELL-SEP15d533
# Eq. 46.5: the plain code against the library, without weights and with them, from the same draws
levels = ladder(12, -6., 6.)
table = torch.stack([t.alpha_bar for t in levels])
of_class = groups(.3, 3)


def by_index(denoiser):
    return lambda x, t: denoiser(x, [*levels][t]).eps


def both(weighted):
    "The largest difference of 40 samples."
    torch.manual_seed(1)
    x = torch.randn(40, 2, dtype=D)
    plain = sample(by_index(of_class), by_index(anything), x, 1., table, weighted)
    torch.manual_seed(1)
    x = torch.randn(40, 2, dtype=D)
    if weighted:
        run = library.feynman_kac(of_class, anything, 1., levels, x)
    else:
        run = ancestral(cfg(of_class, anything, 1.), levels, x)
    return close(last(run), plain, 1e-8)


passed('the plain code gives what the library gives', both(False), both(True))


# %%NBQA-CELL-SEP15d533
# Figure 46.2: variances over w; densities of two classes on a line
def tilted_variance(V, w, U=1.):
    return 1/((1 + w)/V - w/U)


def flow_variance(V, w, U=1.):
    return V**(1 + w)*U**-w


def sde_variance(V, w):
    return V*(1 - V**(1 + 2*w))/((1 + 2*w)*(1 - V))


half, wide = torch.tensor([[.5, .5], [.7, .7]], dtype=D)
pair = Mixture(half, torch.tensor([[-1.], [1.]], dtype=D), wide)
right_one = pair.given(1)
line = torch.linspace(-2, 4, 601, dtype=D)
tilted = (right_one.log_prob(line[:, None]) + 2*pair.classify(line[:, None])[:, 1]).softmax(0)

torch.manual_seed(0)
start = torch.randn(6000, 1, dtype=D)
rungs = ladder(200, -8., 10.)
ends = {'DDIM': last(ddim(cfg(right_one, pair, 2.), rungs, start)),
        'ancestral': last(ancestral(cfg(right_one, pair, 2.), rungs, start)),
        'with weights': last(library.feynman_kac(right_one, pair, 2., rungs, start))}

left, right = row(2, 2.5, width_ratios=(1, 1.35))
ws = torch.linspace(0, 6, 121)
left.semilogy(ws, tilted_variance(.5, ws), 'k--')
left.semilogy(ws, sde_variance(.5, ws), color=RED)
left.semilogy(ws, flow_variance(.5, ws), ':', color=RED)
left.text(3.6, .21, 'tilted density')
left.text(4.1, .05, 'ancestral', color=RED)
left.text(1.1, .035, 'DDIM', color=RED)
left.set(title='variance, one Gaussian', xlabel='w', ylim=(.009, .6), yticks=[.5, .2, .1, .05, .02])
left.set_yticklabels(['0.5', '0.2', '0.1', '0.05', '0.02'])
left.minorticks_off()
edges = torch.linspace(-2, 4, 61)
right.plot(line, tilted/(line[1] - line[0]), 'k--')
for (name, x), style, colour in zip(ends.items(), (':', '-', '-'), (RED, RED, BLUE)):
    height, _ = torch.histogram(x[:, 0].float(), edges, density=True)
    right.stairs(height, edges, color=colour, linestyle=style, linewidth=1.2)
right.text(2.3, .85, 'DDIM', color=RED)
right.text(2.45, .55, 'ancestral', color=RED)
right.text(-.1, .62, 'ancestral\nwith weights', color=BLUE, ha='right')
right.set(title='two classes, the right one asked for, $w = 2$', xlabel='x', yticks=[],
          xlim=(-1.5, 3.7))


# %%NBQA-CELL-SEP15d533
# Eq. 46.1: the flow's variance at every level, by the slope of a fine guided DDIM run; also U = .8
two = torch.tensor([[0.], [1.]], dtype=D)


def flow_error(V, U, w):
    levels = ladder(1500)
    states = ddim(cfg(bell(V), bell(U), w=w), levels, two)
    worst = 0.
    for x, t in zip(states, [*levels][1:]):
        v, u = (t.alpha_bar*k + t.sigma**2 for k in (V, U))
        worst = max(worst, abs((x[1] - x[0]).item()**2/(v**(1 + w)*u**-w).item() - 1))
    return worst


errors = [close(flow_error(*case), 0., .02) for case in ((.5, 1., 3.), (.3, .8, 1.))]
passed('(46.1) relative error of the flow, at 1,500 levels', *errors, by='guided DDIM')


# Eq. 46.2: variance of ancestral steps, followed exactly: the mean of a step is linear in x
def ancestral_variance(V, U, w, n):
    P = 1.
    for t, s in library.steps(ladder(n)):
        k = reverse(cfg(bell(V), bell(U), w=w), two, s, t)
        P = (k.mean[1] - k.mean[0]).item()**2*P + k.std.item()**2
    return P


def limit(f, n):
    "What a quantity with an error of order 1/n tends to, from n and 2 n steps."
    return 2*f(2*n) - f(n)


def integral(V, U, w):
    u = torch.linspace(0, 1, 4001, dtype=D)
    G = (1 + u*(V - 1))**(1 + w)*(1 + u*(U - 1))**-w
    return G[-1]**2*torch.trapezoid(G**-2, u)


random_errors = []
for V, U, w in ((.5, 1., 3.), (.5, 1., .5), (.3, .5, 1.)):
    steady = limit(lambda n: ancestral_variance(V, U, w, n), 400)
    random_errors.append(close(integral(V, U, w), steady, 1e-3))
    assert abs(steady - flow_variance(V, w, U)) > .01  # neither of the others
    assert abs(steady - tilted_variance(V, w, U)) > .01
passed('(46.2) the integral', *random_errors, by='ancestral steps, followed exactly')
passed('(46.2) the closed form', close(sde_variance(.5, 3.), integral(.5, 1., 3.), 1e-6),
       close(sde_variance(.2, 1.), integral(.2, 1., 1.), 1e-6), by='the integral')
close(sde_variance(.5, 1e4)/tilted_variance(.5, 1e4), .5, 1e-3)
print(f'V = 0.5, w = 3: flow {flow_variance(.5, 3.):.4f}, random {sde_variance(.5, 3.):.4f}, '
      f'tilted {tilted_variance(.5, 3.):.4f}; ancestral, 400 steps '
      f'{ancestral_variance(.5, 1., 3., 400):.4f}')


# %%NBQA-CELL-SEP15d533
# Eq. 46.3: the two drifts add up to the guided one; and the alternation, followed exactly, ends at
# (46.2). With w in place of 2 w it ends elsewhere
torch.manual_seed(0)
x = 2*torch.randn(50, 1, dtype=D)
t = Level(torch.tensor(.7, dtype=D))
twice = cfg(right_one, pair, 4.)
parts = drift(right_one, x, t) + drift(twice, x, t, churn=1.) - drift(twice, x, t)
algebra = close(drift(cfg(right_one, pair, 2.), x, t, churn=1.), parts)


def alternated(w, doubled, n):
    P = 1.
    for t, s in library.steps(Grid(ladder(n).log_snr[:-1])):
        y = next(ddim(bell(.5), [t, s], two))
        length = (s.log_snr - t.log_snr).item()
        z = langevin_step(cfg(bell(.5), bell(1.), w=doubled), y, s, length, torch.zeros_like)
        P = (z[1] - z[0]).item()**2*P + length*s.sigma.item()**2
    return P


along = limit(lambda n: alternated(3., 6., n), 400)
assert abs(limit(lambda n: alternated(3., 3., n), 400) - .1417) > .05
passed('(46.3) the drifts', algebra)
passed('(46.3) flow of the condition and Langevin at 1 + 2w',
       close(along, sde_variance(.5, 3.), 2e-3), by='the closed form (46.2)')


# %%NBQA-CELL-SEP15d533
# Eq. 46.4: two classes on a line: a lattice of starts, carried by the guided flow with weights,
# against the tilted density by brute force. Without weights, or with w^2 for w (1 + w), it fails
def carried(cond, uncond, w, n, factor):
    "A lattice of starts at its end, and log weights, the density of the start included."
    x = torch.linspace(-9, 9, 401, dtype=D)[:, None]
    log_w = -x[:, 0]**2/2
    for t, s in library.steps(Grid(torch.linspace(-14, 14, n + 1, dtype=D))):
        c, u = cond(x, t), uncond(x, t)
        log_w = log_w + factor/2*(c.eps - u.eps)[:, 0]**2*(s.log_snr - t.log_snr)
        x = next(ddim(cfg(cond, uncond, w), [t, s], x))
    return x[:, 0], log_w.softmax(0)


def moments(cond, uncond, w, factor, n=400):
    "Mean and variance, extrapolated to many steps."
    def at(n):
        x, p = carried(cond, uncond, w, n, factor)
        return torch.stack([p @ x, p @ x**2 - (p @ x)**2])

    return limit(at, n)


wide_line = torch.linspace(-5, 7, 2401, dtype=D)
p = (right_one.log_prob(wide_line[:, None])
     + 2*pair.classify(wide_line[:, None])[:, 1]).softmax(0)
want = torch.stack([p @ wide_line, p @ wide_line**2 - (p @ wide_line)**2])
got = moments(right_one, pair, 2., 2.*3.)
errors = [close(got, want, .02)]
for wrong in (0., 2.*2.):
    assert (moments(right_one, pair, 2., wrong) - want).abs().max() > .05
without = moments(right_one, pair, 2., 0.)
print(f'mean and variance: tilted {want[0]:.3f} {want[1]:.3f}, flow with weights {got[0]:.3f} '
      f'{got[1]:.3f}, without {without[0]:.3f} {without[1]:.3f}')
passed('(46.4) the weighted flow has the mean and variance of the tilted density', *errors,
       by='brute force')

# Gaussians: with random steps the weight adds w (1 + w) sigma^2 (1/V - 1/U)^2 P^2 to dP/d lambda


def riccati(V, U, w, factor, chi, n=1000):
    P = torch.ones((), dtype=D)
    for t, s in library.steps(Grid(torch.linspace(-14, 14, n + 1, dtype=D))):
        v, u = (t.alpha_bar*k + t.sigma**2 for k in (V, U))
        A = (1 + w)/v - w/u
        change = (1 - (1 + chi)*A)*P + chi + factor*(1/v - 1/u)**2*P**2
        P = P + t.sigma**2*change*(s.log_snr - t.log_snr)
    return P


flow_end, random_end, wrong_end = (riccati(.5, 1., 3., f, chi)
                                   for f, chi in ((12., 0.), (12., 1.), (9., 1.)))
assert abs(wrong_end - .2) > .02
passed('(46.4) variance 0.2 with random steps and without',
       close(flow_end, .2, 3e-3), close(random_end, .2, 3e-3), by='equation for the variance')


# %%NBQA-CELL-SEP15d533
#| export
def effective_number(log_w: Tensor) -> Tensor:  # [n] -> []
    "How many equal weights say as much as these. Eq. 46.6."
    return 1/log_w.softmax(0).square().sum()


def resample(x: Tensor,      # [n ...]
             log_w: Tensor,  # [n]
             offset: Tensor  # [] or [1], in [0, 1]
             ) -> Tensor:    # [n ...]
    "Copies of particles, each as often as it weighs, up to one. Eq. 46.6."
    place = (torch.arange(len(x), device=x.device) + offset.to(x.device))/len(x)
    row = torch.searchsorted(log_w.softmax(0).cumsum(0), place.to(log_w))
    return x[row.clamp(max=len(x) - 1)]


@torch.no_grad()
def feynman_kac(cond: Denoiser, uncond: Denoiser, w: float, levels: Grid,
                x: Tensor) -> Iterator[Tensor]:
    "Guided ancestral steps, weighted: they sample cond^(1+w) uncond^-w. Eq. 46.4-46.6."
    if len(x) < 2:
        raise Problem('Weights compare samples, and this is one: start from many.')
    log_w = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    pairs = steps(levels)
    for t, s in pairs:
        c = cond(x, t)
        u = uncond(x, t)

        # the weight of the step (46.5)
        gap = ((c.eps - u.eps)/t.sigma).flatten(1).square().sum(1)
        log_w = log_w + w*(1 + w)/2*gap*(s.alpha_bar/t.alpha_bar).log()

        # the guided step (14.8)
        mean, std = posterior(extrapolate(c, u, w).x0, x, s, t)
        x = mean + std*torch.randn_like(x)

        # equal weights again, if few samples hold the weight, and at the end
        if effective_number(log_w) < len(x)/2 or s is pairs[-1][1]:
            x = resample(x, log_w, torch.rand(1))
            log_w = torch.zeros_like(log_w)
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 46.5: the same particles as the plain code's, to the last copy
torch.manual_seed(1)
begin = torch.randn(40, 2, dtype=D)
by_hand = sample(by_index(of_class), by_index(anything), begin, 1., table, weighted=True)
torch.manual_seed(1)
begin = torch.randn(40, 2, dtype=D)
close(last(feynman_kac(of_class, anything, 1., levels, begin)), by_hand, 1e-8)

# Eq. 46.5: 20,000 particles and 400 steps in the Gaussian world; without weights it fails
torch.manual_seed(0)
N = 20_000
start = torch.randn(N, 1, dtype=D)
run = ladder(400, -9., 12.)
weighed = last(feynman_kac(bell(.5), bell(1.), 3., run, start)).var()
unweighed = last(ancestral(cfg(bell(.5), bell(1.), 3.), run, start)).var()
tolerance = 5*.2*(2/N)**.5 + .008  # of the draws, and of 400 steps
error = close(weighed, .2, tolerance)
assert abs(unweighed - .2) > 3*tolerance
print(f'variance: with weights {weighed:.4f}, without {unweighed:.4f}, tilted 0.2000')
passed('(46.5) 20,000 particles have the variance of the tilted density', error, by='formula')

# Eq. 46.5: two classes: the blue histogram of Figure 46.2 has the tilted mean, the red ones do not
means = {name: x.mean().item() for name, x in ends.items()}
print('means:', ', '.join(f'{name} {m:.2f}' for name, m in means.items()), f'tilted {want[0]:.2f}')
close(means['with weights'], want[0], .12)
assert min(means['DDIM'], means['ancestral']) > want[0] + .25

# Eq. 46.6: equal weights count as n, one as 1; copies are as many as they weigh, up to one
log_w = torch.tensor([.1, .2, .3, .4], dtype=D).log()
errors = [close(effective_number(torch.zeros(7)), 7, 1e-5),
          close(effective_number(torch.tensor([0., -90.])), 1),
          close(effective_number(log_w), 1/.3)]
for offset in (0., .35, .999):
    copies = resample(torch.arange(4), log_w.repeat_interleave(1), torch.tensor(offset)).bincount(
        minlength=4)
    assert ((copies - 4*log_w.exp()).abs() < 1).all()
many = resample(torch.arange(4).repeat_interleave(1000), log_w.repeat_interleave(1000) - 5.,
                torch.tensor(.5))
errors.append(close(many.bincount(minlength=4)/4000, log_w.exp(), 1e-3))
passed('(46.6) effective number; copies in proportion to weights', *errors)


# %%NBQA-CELL-SEP15d533
# Eq. 46.7: guided at log SNR -1 to 3 only: a fine DDIM run against the formula; everywhere fails
def ratio(log_snr, V, U):
    a = Level(torch.tensor(log_snr, dtype=D)).alpha_bar
    return (a*V + 1 - a)/(a*U + 1 - a)


def interval_variance(V, U, w, lo, hi, n):
    inside = guidance_interval(cfg(bell(V), bell(U), w), bell(V), lo, hi - 1e-9)
    end = last(ddim(inside, ladder(n), two))
    return (end[1] - end[0]).item()**2


want = .5*(ratio(3., .5, 1.)/ratio(-1., .5, 1.))**3
end = limit(lambda n: interval_variance(.5, 1., 3., -1., 3., n), 750)
assert abs(flow_variance(.5, 3.) - want) > .04
print(f'guided from -1 to 3: {end:.4f}')
passed('(46.7) variance with guidance in an interval', close(end, want, 1e-3), by='guided DDIM')


# %%NBQA-CELL-SEP15d533
# Eq. 46.8: the flow and the random steps for S = .25, V1 = .3, V0 = .5
w_star = math.log(.3/.25)/math.log(.5/.3)


def auto_variance(w, n):
    end = last(ddim(cfg(bell(.3), bell(.5), w), ladder(n), two))
    return (end[1] - end[0]).item()**2


ends_at = {w: limit(lambda n: auto_variance(w, n), 500) for w in (0., w_star, 1.)}
errors = [close(ends_at[1.], .3**2/.5, 1e-3), close(ends_at[w_star], .25, 1e-3)]
assert abs(ends_at[0.] - .25) > .04  # without guidance it is the network's
print(f'w* = {w_star:.3f}: flow {ends_at[w_star]:.4f}, random steps {integral(.3, .5, w_star):.4f}')
passed('(46.8) at w* the variance is the true one', *errors, by='guided DDIM')
close(math.log(.3**2/.15**2)/math.log(.6**2/.3**2), 1)  # Figure 46.1

# the opposite case: a "weaker" network that is too narrow makes the model wider
assert integral(.3, .2, 1.) > .35 and flow_variance(.3, 1., .2) > .35


# %%NBQA-CELL-SEP15d533
#| export systems.weaker
from functools import lru_cache
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser, Model
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.tensors import load_strictly, read_tensors
from ddpm_lit.guide.cfg import cfg
from ddpm_lit.nets.unet import small_unet
from ddpm_lit.systems.draw import GUIDANCES


# %%NBQA-CELL-SEP15d533
#| export systems.weaker
@lru_cache
def weak_digits() -> Model:
    "A small digit network that trained for 600 steps only. Eq. 46.8."
    path = data_dir('runs', 'weak-digits.safetensors')
    model = Model(small_unet(base=8))
    load_strictly(model, read_tensors(path), path)
    return model.eval().requires_grad_(False)


@GUIDANCES.add('weaker')
def _by_weaker(model: Model, label: Tensor, w: float) -> Denoiser:
    "Guidance of a digit network by `weak_digits`, both given the label. Eq. 46.8."
    guided = cfg(model.given(label), weak_digits().to(label.device).given(label), w=w)

    def denoiser(x, t):
        if x.shape[1:] != (1, 28, 28):
            raise Problem('The weaker network that ships knows digits of 28 by 28, not '
                          f'{[*x.shape[1:]]}: train one, and guide with `cfg` (41).')
        return guided(x, t)

    return denoiser


# %%NBQA-CELL-SEP15d533
# Eq. 46.8: the guidance of that name is the extrapolation from the weaker network; labels count
from ddpm_lit.systems.draw import steering
from ddpm_lit.systems.weaker import weak_digits as shipped_weak
from ddpm_lit.train.recipe import find_recipe

strong, _ = load_weights('mnist')
label = torch.arange(10)
torch.manual_seed(0)
x = torch.randn(10, 1, 28, 28)
t = Level(-1.)
with torch.no_grad():
    named = steering(find_recipe('mnist'), w=.5, guidance='weaker')(strong, label)(x, t)
    d1 = strong.given(label)(x, t)
    d0 = shipped_weak().given(label)(x, t)
    errors = [close(named.eps, 1.5*d1.eps - .5*d0.eps, 1e-5),
              close(named.x0, 1.5*d1.x0 - .5*d0.x0, 1e-5)]
    assert (d0.x0 - shipped_weak().given(label.flip(0))(x, t).x0).abs().max() > .1
sizes = [sum(p.numel() for p in m.parameters()) for m in (strong, shipped_weak())]
assert 23.5 < sizes[0]/sizes[1] < 24.5
passed('`weaker` by name is the extrapolation', *errors, by='digit networks')


# %%NBQA-CELL-SEP15d533
# How the networks were trained and the digits measured; in the full budget it happens here
def train_small(steps):
    "A small network of digits, trained for so many steps."
    torch.manual_seed(0)
    training = Training(Model(small_unet(base=8)))
    for _ in fit(training, Batches(mnist('train'), 64, 0, drop=.1), Cosine(), weighted(min_snr()),
                 steps, lr=4e-3):
        pass
    return training.averaged()


COMMAND = 'DDPM_LIT_BUDGET=full python tools/nb.py run nbs/46_guided.ipynb'
CASES = (('small', 'none', 0.), ('small', 'weaker', .5), ('small', 'weaker', 1.),
         ('small', 'classifier-free', .25), ('small', 'classifier-free', 1.),
         ('large', 'none', 0.), ('large', 'weaker', .25), ('large', 'classifier-free', .1))
SEEDS = dict(small=3, large=1)
networks = dict(large=(strong, weak_digits()), small=(weak_digits(), None))  # and its weaker one
reader = load_classifier()


def guided_digits(network, guidance, w, label):
    "The denoiser of a row."
    net, weak = networks[network]
    if guidance == 'classifier-free':
        return clamp_x0(cfg_batched(net, label, w=w))
    if guidance == 'weaker':
        return clamp_x0(cfg(net.given(label), weak.given(label), w=w))
    return clamp_x0(net.given(label))


def draw_digits(network, guidance, w, seed, n, of=500):
    "The first n of so many digits, all labels in turn: DPM-Solver++, eight evaluations."
    torch.manual_seed(seed)
    noise = torch.randn(of, 1, 28, 28)[:n]
    label = torch.arange(n) % 10
    pictures = []
    with torch.autocast('cpu', torch.bfloat16, enabled=has_bf16(torch.device('cpu'))):
        for x, y in zip(noise.split(100), label.split(100)):
            denoiser = guided_digits(network, guidance, w, y)
            pictures.append(last(dpmpp_2m(denoiser, karras(8, .02), x)).float())
    return torch.cat(pictures), label


def ink(x):
    "The mean brightness of each picture, from 0 to 1."
    return (x.clamp(-1, 1) + 1).flatten(1).mean(1)/2


def measure_digits(network, guidance, w, seed, real):
    "A row: 500 digits against the features of all test digits [10000 64]."
    x, label = draw_digits(network, guidance, w, seed, 500)
    found = in_parts(reader.features, x).double()
    near = manifold(real[::10], found)
    agreement = (in_parts(reader, x).argmax(1) == label).double().mean().item()
    return dict(network=network, guidance=guidance, w=w, seed=seed, n=500,
                frechet=frechet_distance(found, real), kernel=kernel_distance(found, real[::2]),
                precision=near['precision'], recall=near['recall'], agreement=agreement,
                ink=[round(v, 4) for v in ink(x[:16]).tolist()])


def guided_row(book):
    "The first row of the small network that is guided by the weaker one."
    return next(r for r in book['rows'] if (r['network'], r['guidance']) == ('small', 'weaker'))


stored = measurement('guided-digits', 'digits guided by a weaker network and classifier-free, by '
                     'two networks', COMMAND, [])
if budget(False, True):
    # the network that ships, in 16 bits, and a weaker one for it
    halves = {k: v.half() for k, v in train_small(600).state_dict().items()}
    write_tensors(data_dir('runs')/'weak-digits.safetensors', halves)
    weak_digits.cache_clear()
    networks = dict(large=(strong, weak_digits()), small=(weak_digits(), train_small(150)))
    real = in_parts(reader.features, to_unit(mnist('test').pixels)).double()
    done = [(r['network'], r['guidance'], r['w'], r['seed']) for r in stored['rows']]
    for case in CASES:
        for seed in range(SEEDS[case[0]]):
            if (*case, seed) not in done:
                stored['rows'].append(measure_digits(*case, seed, real))
    # the weaker network does not ship: ten of the digits that it guides
    ten = to_bytes(draw_digits('small', 'weaker', .5, 0, 10)[0].clamp(-1, 1))
    guided_row(stored)['pictures'] = ten.flatten().numpy().tobytes().hex()
    keep_measurement('guided-digits', stored)
digit_rows = stored['rows']
by_weaker = torch.tensor([*bytes.fromhex(guided_row(stored)['pictures'])], dtype=torch.uint8)
by_weaker = to_unit(by_weaker.reshape(10, 1, 28, 28))


# %%NBQA-CELL-SEP15d533
# Figure 46.3: digits of the small network; distance beside recall, three seeds
def mean_of(network, guidance, w, what):
    "The mean over the seeds, and its standard error."
    v = torch.tensor([r[what] for r in digit_rows
                      if (r['network'], r['guidance'], r['w']) == (network, guidance, w)])
    return v.mean().item(), v.std().item()/len(v)**.5 if len(v) > 1 else 0.


fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout='constrained', dpi=160,
                                  width_ratios=(1.25, 1))
sheet = {'unguided': draw_digits('small', 'none', 0., 0, 10)[0],
         'weaker,\n$w$ = 0.5': by_weaker,
         'classifier-\nfree, $w$ = 1': draw_digits('small', 'classifier-free', 1., 0, 10)[0],
         'large network,\nunguided': draw_digits('large', 'none', 0., 0, 10)[0],
         'large, weaker,\n$w$ = 0.25': draw_digits('large', 'weaker', .25, 0, 10)[0]}
left.imshow(show.tile(torch.cat([*sheet.values()]), 10), interpolation='nearest')
left.set(xticks=[], yticks=[14 + 29*i for i in range(len(sheet))])
left.set_yticklabels(sheet)
left.tick_params(left=False)
left.spines[:].set_visible(False)
looks = {'none': ('black', 'o'), 'weaker': (BLUE, 's'), 'classifier-free': (RED, '^')}
places = {('none', 0.): (.7, 8.2), ('classifier-free', .25): (.69, 7.), ('classifier-free', 1.):
          (.66, 5.3), ('weaker', 1.): (.57, 3.1), ('weaker', .5): (.7, 2.6)}
for network, guidance, w in CASES[:5]:
    mine = [r for r in digit_rows
            if (r['network'], r['guidance'], r['w']) == (network, guidance, w)]
    colour, mark = looks[guidance]
    right.plot([r['recall'] for r in mine], [r['kernel'] for r in mine], mark, color=colour,
               markersize=5)
    name = guidance if w else 'unguided'
    right.text(*places[guidance, w], f'{name}, {w:g}' if w else name, color=colour, fontsize=8)
right.set(title='small network: 500 digits a point', xlabel='recall', ylabel='kernel distance',
          ylim=(0, 9), xlim=(.56, .8))


# %%NBQA-CELL-SEP15d533
# Table: means of three seeds and standard errors (large network: one seed); some digits drawn again
print('network  guidance          w  distance           recall  precision  misread')
for case in CASES:
    k, k_error = mean_of(*case, 'kernel')
    network, guidance, w = case
    recall, precision, agreement = (mean_of(*case, what)[0]
                                    for what in ('recall', 'precision', 'agreement'))
    error = f'± {k_error:.2f}' if network == 'small' else ''
    print(f'{network:9}{guidance:16}{w:4g}{k:8.2f} {error:6}{recall:11.3f}{precision:11.3f}'
          f'{1 - agreement:9.1%}')
assert len(digit_rows) == sum(SEEDS[case[0]] for case in CASES)


def by_seed(case, what):
    return torch.tensor([r[what] for r in digit_rows
                         if (r['network'], r['guidance'], r['w']) == case])


# the small network, seed by seed: nearer than classifier-free guidance, and recall no lower
auto, free, much = CASES[1], CASES[3], CASES[4]
assert (by_seed(auto, 'kernel') < .6*by_seed(free, 'kernel')).all()
assert (by_seed(auto, 'kernel') < .8*by_seed(much, 'kernel')).all()
assert (by_seed(auto, 'recall') > by_seed(free, 'recall')).all()
assert (by_seed(auto, 'recall') > by_seed(much, 'recall')).all()
# the large one, one seed: both guidances lead away from the data, and labels are read better
for case in CASES[6:]:
    assert (by_seed(case, 'kernel') > by_seed(CASES[5], 'kernel')).all()
    assert (by_seed(case, 'agreement') > by_seed(CASES[5], 'agreement')).all()

again = []
for case in (('small', 'none', 0.), ('small', 'classifier-free', 1.), ('large', 'weaker', .25)):
    first = next(r for r in digit_rows
                 if (r['network'], r['guidance'], r['w'], r['seed']) == (*case, 0))
    again.append(redrawn(ink(draw_digits(*case, 0, 6)[0]), first['ink']))
again.append(redrawn(ink(by_weaker), guided_row(stored)['ink'][:10]))
passed('brightness of digits of four rows, of which three are drawn again', *again,
       by='stored rows')


# %%NBQA-CELL-SEP15d533
# Eq. 46.4: on the flow the weight is exp(k z^2) for a start z; its variance is finite while k < 1/4
def growth(w, n=20_000):
    "k, by a sum over the levels, for V = 1/2 and U = 1."
    t = Level(torch.linspace(-14, 16, n, dtype=D))
    v = t.alpha_bar/2 + t.sigma**2
    return torch.trapezoid(w*(1 + w)/2*t.sigma**2*(1/v - 1)**2*v**(1 + w), t.log_snr).item()


# the weighted variance is that of the tilted density: flow/(1 - 2 k)
errors = [close(flow_variance(.5, w)/(1 - 2*growth(w)), tilted_variance(.5, w), 1e-4)
          for w in (.5, 1., 2., 3.)]
passed('weights of the flow: variance of the tilted density', *errors, by='a sum over levels')
errors = [close(growth(2.), .25, 1e-4), close(flow_variance(.5, 2.), .5*tilted_variance(.5, 2.))]
assert growth(1.9) < .25 < growth(2.1)
passed('infinite variance of the weights from w = 2 on', *errors)
close(flow_variance(.3, 1., .2), .45)

with expect_fail('start from many', Problem):
    last(feynman_kac(bell(.5), bell(1.), 1., ladder(4), torch.zeros(1, 1, dtype=D)))
with expect_fail('knows digits of 28 by 28', Problem):
    _by_weaker(strong, torch.arange(2), .5)(torch.randn(2, 3, 32, 32), Level(0.))


# %%NBQA-CELL-SEP15d533
# Questions 1 and 2: half the variance at w = 20; effective numbers multiply over coordinates
ratio_20 = sde_variance(.5, 20.)/tilted_variance(.5, 20.)
torch.manual_seed(0)
log_w = torch.randn(200_000, 3, dtype=D)*math.log(2)**.5  # E W^2/(E W)^2 = 2 for each column
shares = [(effective_number(log_w[:, :k].sum(1))/len(log_w)).item() for k in (1, 2, 3)]
passed('questions 1 and 2', close(ratio_20, .5, .05), close(shares[0], .5, .03),
       close(shares[1], .25, .03), close(shares[2], .125, .03))


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1
flow = ...
weighted_flow = ...
got = moments(bell(.5), bell(1.), -.5, -.25, 200)
plain = moments(bell(.5), bell(1.), -.5, 0., 200)
close(got[1], weighted_flow, 1e-3), close(plain[1], flow, 1e-3)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2: the guidance scale
def scale(l, s, t):
    return ...


def step_of(l, s, t, c, u, x):
    "A step of CFG++."
    x0 = from_eps(u + l*(c - u), x, t).x0
    return s.signal*x0 + s.sigma*u


x, c, u = torch.randn(3, 5, dtype=D)
t = Level(torch.tensor(-1., dtype=D))
s = Level(torch.tensor(-.4, dtype=D))
p = from_eps(u + scale(.6, s, t)*(c - u), x, t)
close(s.signal*p.x0 + s.sigma*p.eps, step_of(.6, s, t, c, u, x))


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: denoiser x denoiser -> denoiser, as cfg is
def apg(cond, uncond, w):
    ...


def cfg_zero(cond, uncond, w):
    ...


x = torch.randn(9, 1, dtype=D)
t = Level(torch.tensor(-1., dtype=D))
for guidance in (apg, cfg_zero):
    close(guidance(bell(.5), bell(1.), 3.)(x, t).eps, bell(.5)(x, t).eps)
    moved = guidance(trained, anything, 2.)(noise_2d, t).x0 - trained(noise_2d, t).x0
    assert moved.abs().mean() > .05


# %%NBQA-CELL-SEP15d533
# solution 1: (46.1) gives V^(1/2) U^(1/2); the precisions of the tilted density are 1/2 + 1/(2 V).
# w (1 + w) is negative here: samples lose weight where the predictions disagree
flow = .5**.5
weighted_flow = 1/(.5 + .5/.5)
got = moments(bell(.5), bell(1.), -.5, -.25, 200)
plain = moments(bell(.5), bell(1.), -.5, 0., 200)
close(got[1], weighted_flow, 1e-3), close(plain[1], flow, 1e-3)


# %%NBQA-CELL-SEP15d533
# solution 2: with y = x/signal and k = edm_sigma, CFG++ makes y + (k_s - k_t) u - k_t l (c - u),
# DDIM with the scale g makes y + (k_s - k_t) (u + g (c - u)). So g = l/(1 - k_s/k_t): in shorter
# steps k_s/k_t tends to 1, and the scale grows without limit
def scale(l, s, t):
    return l/(1 - s.edm_sigma/t.edm_sigma)


def step_of(l, s, t, c, u, x):
    "A step of CFG++."
    x0 = from_eps(u + l*(c - u), x, t).x0
    return s.signal*x0 + s.sigma*u


x, c, u = torch.randn(3, 5, dtype=D)
t = Level(torch.tensor(-1., dtype=D))
s = Level(torch.tensor(-.4, dtype=D))
p = from_eps(u + scale(.6, s, t)*(c - u), x, t)
close(s.signal*p.x0 + s.sigma*p.eps, step_of(.6, s, t, c, u, x))


# %%NBQA-CELL-SEP15d533
# solution 3: nothing is left in one coordinate: no direction is at right angles to the only one,
# and s v_u is v_c. So both keep variance V there, at any w; they act where directions differ
def along(a, b):
    "The part of a along b, sample by sample."
    share = (a*b).flatten(1).sum(1)/(b*b).flatten(1).sum(1)
    return share.view(-1, *[1]*(a.ndim - 1))*b


def apg(cond, uncond, w):
    def guided(x, t):
        c = cond(x, t).x0
        d = c - uncond(x, t).x0
        return from_x0(c + w*(d - along(d, c)), x, t.like(x))

    return guided


def cfg_zero(cond, uncond, w):
    def guided(x, t):
        c, u = cond(x, t), uncond(x, t)
        v = c.eps - c.x0
        scaled = along(v, u.eps - u.x0)
        return from_flow(v + w*(v - scaled), x, t.like(x))

    return guided


x = torch.randn(9, 1, dtype=D)
t = Level(torch.tensor(-1., dtype=D))
for guidance in (apg, cfg_zero):
    close(guidance(bell(.5), bell(1.), 3.)(x, t).eps, bell(.5)(x, t).eps)
    moved = guidance(trained, anything, 2.)(noise_2d, t).x0 - trained(noise_2d, t).x0
    assert moved.abs().mean() > .05
