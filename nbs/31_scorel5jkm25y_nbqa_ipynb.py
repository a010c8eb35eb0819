# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.score


# %%NBQA-CELL-SEP7dc948
#| export
import math
from typing import Callable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.sample import SAMPLERS, steps
from ddpm_lit.diffusion.schedule import DiscreteSchedule, Grid, as_times


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, double precision, two Gaussians on a line and two far-away groups in the plane
import gzip
import itertools
import matplotlib.pyplot as plt
from torch import nn
from torch.distributions import Normal
from ddpm_lit import show
from ddpm_lit.core.check import budget, close, expect_fail, passed, setup
from ddpm_lit.core.denoiser import Model, from_eps
from ddpm_lit.core.level import CLEAN, from_edm_sigma
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import score as library  # the first pages use what later ones build
from ddpm_lit.diffusion.bits import density_to_grey
from ddpm_lit.diffusion.forward import q_step
from ddpm_lit.diffusion.loss import l_simple
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import ddim, exact, last, reverse
from ddpm_lit.diffusion.schedule import grid, linear_scaled
from ddpm_lit.nets.mlp import MLP
from ddpm_lit.show import INK
from ddpm_lit.train.fit import stratified
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


line = Mixture(torch.tensor([.3, .7], dtype=D),
               torch.tensor([[-1.2], [.6]], dtype=D),
               torch.tensor([.3, .2], dtype=D))
pair = Mixture(torch.tensor([.2, .8]), torch.tensor([[-5., -5.], [5., 5.]]), torch.ones(2))


def noisy_score(y, size):
    "The exact score of the two groups with noise of this size added, at points y."
    t = from_edm_sigma(torch.tensor(size))
    return t.signal*library.score(pair, t.signal*y, t)


def arrows(ax, at, v, wrong=None, width=.005):
    "Arrows of a field, the wrong ones in red; long ones are shortened, so that all can be seen."
    n = v.norm(dim=1, keepdim=True)
    share = n.clamp(max=2*n.median())/(2*n.median())
    v = v/n*share.sqrt()
    inks = '.35' if wrong is None else ['tab:red' if w else '.35' for w in wrong]
    ax.quiver(*at.T, *v.T, color=inks, width=width, angles='xy', scale_units='xy', scale=.8)


# %%NBQA-CELL-SEP7dc948
# Figure 31.1: the score of two groups at three sizes of noise, and three Langevin walks
torch.manual_seed(0)
places = show.lattice(13, 10.)
pixels = show.lattice(81, 11.)
colours = ('tab:blue', 'tab:red', 'tab:green')
y = torch.tensor([[-8., 6.], [7., -6.], [1., 1.]])
crossed = {}  # the chains that cross the line halfway between the groups
fig, axes = plt.subplots(1, 3, figsize=(7, 2.55), layout='constrained', dpi=160)
for ax, size, step in zip(axes, (4., 1.5, .3), (.1, .1, .2)):
    t = from_edm_sigma(torch.tensor(size))
    shade = (pair.log_prob(t.signal*pixels, t)/2).exp().view(81, 81).T
    ax.imshow(shade, cmap='Greys', origin='lower', extent=(-11, 11, -11, 11),
              vmax=1.6*shade.max(), alpha=.9)
    arrows(ax, places, noisy_score(places, size))

    # 30 steps at this level, begun where the last level ended
    states = [y]
    for _ in range(30):
        y = library.langevin_step(pair, t.signal*y, t, step)/t.signal
        states.append(y)
    side = torch.stack(states).sum(2) > 0
    crossed[size] = [c for c, s in zip(colours, side.T) if s.any() and not s.all()]
    for path, colour in zip(torch.stack(states, 1), colours):
        ax.plot(*path.T, color=colour, lw=.8)
        ax.plot(*path[0], 'o', color=colour, mfc='white', ms=4)
        ax.plot(*path[-1], 'o', color=colour, ms=4)
    show.plane(ax, 11.)
    ax.set_title(f'noise of size {size:g}')
assert crossed == {4.: [*colours], 1.5: ['tab:green'], .3: []}


# %%NBQA-CELL-SEP7dc948
import torch

sigmas = torch.logspace(0, -2, 10)  # NCSN's ten sizes of noise, from 1 to 0.01


def loss(net, x):  # denoising score matching, for pictures [b c h w]
    sigma = sigmas.to(x)[torch.randint(10, (len(x),))].view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    error = sigma*net(x + sigma*noise, sigma) + noise
    return error.square().sum((1, 2, 3)).mean()/2


@torch.no_grad()
def sample(net, x, repeats=100, eps=2e-5):  # annealed Langevin dynamics
    for sigma in sigmas.to(x):
        alpha = eps*(sigma/sigmas[-1])**2  # the step is a share of the noise's variance
        for _ in range(repeats):
            x = x + alpha/2*net(x, sigma) + alpha.sqrt()*torch.randn_like(x)
    return x


# %%NBQA-CELL-SEP7dc948
# The plain loss and the plain sampler against the library's, with a trained digit network
def ncsn_net(denoiser):
    "NCSN's s(x, sigma), for pixels in [0, 1], of a denoiser for pixels in [-1, 1] (31.3)."
    def net(x, sigma):
        t = from_edm_sigma(2*sigma).like(x)
        return 2*t.signal*library.score(denoiser, t.signal*(2*x - 1), t)

    return net


ddpm = load_weights('mnist')[0].given(-1)
torch.manual_seed(0)
x = torch.rand(4, 1, 28, 28)
plain = loss(ncsn_net(ddpm), x)
torch.manual_seed(0)
assert torch.equal(torch.rand(4, 1, 28, 28), x)
sigma = sigmas[torch.randint(10, (4,))].view(-1, 1, 1, 1)
ours = 784/2*l_simple(ddpm, 2*x - 1, from_edm_sigma(2*sigma), torch.randn_like(x))
passed('plain loss = d/2 times DDPM\'s loss', close(plain/ours.mean(), 1., 1e-3),
       by='trained digit network')

torch.manual_seed(1)
plain = sample(ncsn_net(ddpm), x[:2], repeats=1)
torch.manual_seed(1)
S = library.geometric()
run = library.langevin(ddpm, grid(S, 10), S(1.).signal*(2*x[:2] - 1), repeats=1, step=.2)
passed('plain sampler = library', close(last(run), 2*plain - 1, 1e-3),
       by='trained digit network, ten levels')


# %%NBQA-CELL-SEP7dc948
#| export
def score(denoiser: Denoiser, x: Tensor, t: Level) -> Tensor:  # [b ...]
    "The gradient of log q(x_t), by the denoiser. Eq. 31.1."
    return -denoiser(x, t).eps/t.sigma


# %%NBQA-CELL-SEP7dc948
# Eq. 31.1: against autograd through the log density of the ring, at nine levels
torch.manual_seed(0)
world = ring(dtype=D)


def slope(world, x, t):
    "The gradient of log q(x_t), by autograd."
    x = x.clone().requires_grad_()
    return torch.autograd.grad(world.log_prob(x, t).sum(), x)[0]


x = 2*torch.randn(200, 2, dtype=D)
levels = map(level, range(-4, 5))
passed('(31.1) −ε/σ of the best denoiser = gradient of log q',
       max(close(score(world, x, t), slope(world, x, t)) for t in levels),
       by='autograd, nine levels')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.2: both sides by integration on the line, the score by autograd, for a network with
# random weights; and their gradients
torch.manual_seed(0)
t = level(.5)
net = MLP(1, 16, 1).double()
nn.init.normal_(net.out.weight, std=.5)


def s(x):
    place = torch.full((x.numel(),), 300., dtype=D)
    return net(x.reshape(-1, 1), place).reshape(x.shape)


# the left side: q(x0) q(eps), times the area of a cell, on a table of x0 and eps
x0 = torch.linspace(-4, 4, 401, dtype=D)
e = torch.linspace(-8, 8, 401, dtype=D)
p_x0 = line.log_prob(x0[:, None]).exp()[:, None]
joint = p_x0*Normal(0, 1).log_prob(e).exp()*(x0[1] - x0[0])*(e[1] - e[0])
denoising = .5*(joint*(s(t.signal*x0[:, None] + t.sigma*e) + e/t.sigma)**2).sum()

# the right side: J(s) and the constant, by sums over x_t
xt = torch.linspace(-9, 9, 2001, dtype=D)
q = line.log_prob(xt[:, None], t).exp()*(xt[1] - xt[0])
true = slope(line, xt[:, None], t)[:, 0]
explicit = .5*(q*(s(xt) - true)**2).sum()
C = .5*(1/t.sigma**2 - (q*true**2).sum())


def gradient(loss):
    grads = torch.autograd.grad(loss, [*net.parameters()])
    return torch.cat([g.flatten() for g in grads])


print(f'left side {denoising:.4f}, J {explicit:.4f}, C {C:.4f}')
passed('(31.2) denoising loss = J + C', close(denoising, explicit + C), by='integrals as sums')
passed('(31.2) both have the same gradients',
       close(gradient(denoising), gradient(explicit)), by='autograd')


# %%NBQA-CELL-SEP7dc948
# Figure 31.2: the exact score and one that was learned, with little noise and with much
def learned(size):
    "A small network, trained for 600 steps by denoising score matching at one size of noise."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 2))
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(600):
        noise = torch.randn(256, 2)
        y = pair.sample(256) + size*noise
        loss_ = (size*net(y) + noise).square().mean()
        adam.zero_grad()
        loss_.backward()
        adam.step()
    return net.requires_grad_(False)


def is_wrong(net, size, at):
    "Whether an arrow is off by more than half the length of the exact one."
    true = noisy_score(at, size)
    return (net(at) - true).norm(dim=1) > .5*true.norm(dim=1)


places = show.lattice(15, 9.)
wrong = {}
lengths = {}
fig, axes = plt.subplots(1, 4, figsize=(7, 2.), layout='constrained', dpi=160)
for left, right, size in zip(axes[::2], axes[1::2], (.3, 5.)):
    net = learned(size)
    noisy = pair.sample(2000) + size*torch.randn(2000, 2)
    wrong[size] = [is_wrong(net, size, at).double().mean().item() for at in (places, noisy)]
    missed = is_wrong(net, size, noisy)
    exact_length = noisy_score(noisy, size).norm(dim=1)
    lengths[size] = exact_length[missed].median(), exact_length[~missed].median()
    for ax, name in ((left, 'exact'), (right, 'learned')):
        show.cloud(noisy[:300], ax, 'model', 10., size=4., alpha=.3)
        ax.set_title(f'{name}, noise {size:g}')
    arrows(left, places, noisy_score(places, size), width=.008)
    arrows(right, places, net(places), is_wrong(net, size, places), width=.008)


# %%NBQA-CELL-SEP7dc948
# Figure 31.2: the share of wrong arrows on the lattice, and at noisy data; where those at the data
# are wrong, the exact arrow is short
for size, (everywhere, at_data) in wrong.items():
    print(f'noise {size:g}: {100*everywhere:.0f} % of the arrows are wrong, '
          f'{100*at_data:.1f} % at the data')
assert wrong[.3][0] > .2 and wrong[5.][0] < .05
assert all(everywhere > at_data for everywhere, at_data in wrong.values())
where_wrong, where_right = lengths[.3]
assert where_wrong < where_right/2
passed('Figure 31.2: little noise, many wrong arrows; much noise, few')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.3, 31.4: the published objective in its own letters, for a network of random weights,
# against l_simple at edm_sigma 2 sigma
torch.manual_seed(0)
net = MLP(6, 32, 2).double()
nn.init.normal_(net.out.weight, std=.3)
model = Model(net, from_eps)


def s_theta(x_tilde, sigma):
    t = from_edm_sigma(2*sigma)
    return 2*t.signal*score(model, t.signal*(2*x_tilde - 1), t)


x = torch.rand(40, 6, dtype=D)
z = torch.randn(40, 6, dtype=D)
sigma = torch.logspace(0, -2, 40, dtype=D)[:, None]
x_tilde = x + sigma*z
published = .5*(sigma*s_theta(x_tilde, sigma) + (x_tilde - x)/sigma).square().sum(1)

t = from_edm_sigma(2*sigma)
passed('(31.3) noisy pixels of NCSN on our scale',
       close(t.signal*(2*x_tilde - 1), q_sample(2*x - 1, t, z)), by='the jump from x_0 to x_t')
passed('(31.4) NCSN\'s objective = d/2 times L_simple',
       close(published, 6/2*l_simple(model, 2*x - 1, t, z)), by="the paper's own letters")


# %%NBQA-CELL-SEP7dc948
#| export
class Ladder(DiscreteSchedule):
    "A table of T levels and nothing between: time is rounded up to the next. Eq. 31.5."

    def __call__(self, time) -> Level:  # any shape, in [0, 1]
        place = as_times(time)*len(self) - 1 - 1e-6
        return Level(self.log_snr[place.ceil().clamp(min=0).long()])


def geometric(n: int = 10,
              lo: float = .02, hi: float = 2.) -> Ladder:  # edm_sigma at both ends
    "n levels whose edm_sigma grow by a constant factor; by default NCSN's. Eq. 31.5."
    if n < 2 or not 0 < lo < hi:
        raise Problem(f'{n} levels from {lo} to {hi}: give two or more, and edm_sigma '
                      'that rise from above 0.')
    i = torch.arange(n, dtype=torch.float64)
    var = lo**2*(hi/lo)**(2*i/(n - 1))
    return Ladder(torch.cat([var[:1], var.diff()])/(1 + var))


# %%NBQA-CELL-SEP7dc948
# Eq. 31.5: twice NCSN's own sigmas; time has these levels only, all equally often, and can be
# read backwards; a run visits each once
torch.manual_seed(0)
S = geometric()
published = 2*torch.logspace(-2, 0, 10, dtype=D)
seen = S(stratified(1000)).log_snr
assert (torch.isclose(seen[:, None], S.log_snr).sum(0) == 100).all()
tenths = torch.arange(11, dtype=D)/10
assert torch.equal(S(torch.arange(11)/10).log_snr, S(tenths).log_snr)

table = Level(S.log_snr)
rounded = S(torch.tensor([0., .01, .1, .11, 1.]))
visited = torch.stack([t.edm_sigma for t in grid(S, 10)])
ended = torch.cat([published.flip(0), torch.zeros(1, dtype=D)])
errors = (close(table.edm_sigma, published),
          close(S(S.time(table)).edm_sigma, published),
          close(rounded.edm_sigma, published[[0, 0, 0, 1, 9]]),
          close(visited, ended),
          close(Level(geometric(3, .5, 8.).log_snr).edm_sigma, [.5, 2., 8.]))
passed('(31.5) the ten levels, by index, by time and in a run', *errors, by="the paper's sigmas")


# %%NBQA-CELL-SEP7dc948
#| export
# What a walk refuses
def _check_walk(levels: Grid, x: Tensor, repeats: int, step: float, known):
    "A `Problem` unless Langevin dynamics can walk along these levels, in such steps."
    if repeats < 1 or not 0 < step < 4:
        raise Problem(f'{repeats} repeats of step {step}: take one or more, and a step '
                      'between 0 and 4, where the walk flies apart.')
    shapes = [v.shape for v in known or ()]
    if torch.broadcast_shapes(*shapes, x.shape) != x.shape:
        known, mask = map(list, shapes)
        raise Problem(f'known {known} and mask {mask} do not fit x {[*x.shape]}: give '
                      'them its shape.')
    if not all((t.signal > 0).all() for t, s in steps(levels)):
        raise Problem('The walk needs some signal at each level: start below pure '
                      'noise, as geometric() does.')


# %%NBQA-CELL-SEP7dc948
#| export
def langevin_step(
        denoiser: Denoiser, x: Tensor, t: Level,
        step: float,  # in units of the noise's variance
        noise=torch.randn_like) -> Tensor:
    "One step of Langevin dynamics at level t, of alpha = step sigma^2. Eq. 31.6, 31.8."
    return x - step/2*t.sigma*denoiser(x, t).eps + step**.5*t.sigma*noise(x)


@torch.no_grad()
def langevin(
        denoiser: Denoiser, levels: Grid, x: Tensor,
        repeats: int = 100,  # steps at each level
        step: float = .2,
        noise=torch.randn_like,
        # a picture [b ...], and where it is kept
        known: tuple[Tensor, Tensor] | None = None) -> Iterator[Tensor]:
    "Annealed Langevin dynamics: the state after each level. Eq. 31.8 (NCSN Alg. 1-2)."
    _check_walk(levels, x, repeats, step, known)
    picture, mask = known or (x, torch.zeros_like(x, dtype=torch.bool))

    for t, s in steps(levels):
        # the known part, noisy as level t is, and drawn once for the level
        noisy = q_sample(picture, t, noise(x)) if known else x
        x = torch.where(mask, noisy, x)
        for _ in range(repeats):
            x = torch.where(mask, noisy, langevin_step(denoiser, x, t, step, noise))

        # the same picture at the next level: its signal is rescaled
        x = x*(s.signal/t.signal)
        yield x


SAMPLERS.add('langevin', langevin)


# %%NBQA-CELL-SEP7dc948
# Eq. 31.6: one step keeps p, to first order: the density after it, an integral over where it came
# from, against p; twice the step errs four times as much
t = level(1.)
g = torch.linspace(-6, 6, 2001, dtype=D)
p = line.log_prob(g[:, None], t).exp()
two_levels = [t, Level(t.log_snr + 1e-12)]


def off(step):
    mean = next(langevin(line, two_levels, g[:, None], 1, step, torch.zeros_like))
    moved = Normal(mean, step**.5*t.sigma).log_prob(g).exp()  # [from, to]
    return (p*(g[1] - g[0]) @ moved - p).abs().max()


error = [off(step) for step in (.01, .005)]
passed(f'(31.6) a step of .005 changes a density of at most {p.max():.2f} by {error[1]:.0e}')
passed('(31.6) twice the step, four times the change', close(error[0]/error[1], 4., .1),
       by='integrals as sums')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.7: one Gaussian: the variance after 60 steps of 20,000 chains, within 3 standard errors;
# and how fast the start is forgotten, without noise
torch.manual_seed(0)
N = 20_000
v0 = .09
t = level(1.)
one = torch.ones(1, dtype=D)
bell = Mixture(one, 0*one[None], v0**.5*one)
v = t.alpha_bar*v0 + t.sigma**2
levels = [t, level(1. + 1e-12)]
for step in (.2, 1.5):
    x = last(langevin(bell, levels, torch.randn(N, 1, dtype=D), 60, step))
    V = v/(1 - step*t.sigma**2/(4*v))
    error = close(x.var(), V, 3*V*(2/N)**.5)
    passed(f'(31.7) step {step}: variance {x.var():.3f}, predicted {V:.3f} (data: {v:.3f})',
           error, by='20,000 chains')

mean = last(langevin(bell, levels, one[None], 7, .2, torch.zeros_like))
passed('(31.7) without noise, seven steps shrink the distance by a to the 7th',
       close(mean, (1 - .2*t.sigma**2/(2*v))**7, 1e-8))


# %%NBQA-CELL-SEP7dc948
# Eq. 31.8: NCSN's Algorithms 1 and 2 in their own letters, pixels in [0, 1], on the same noise;
# 5 steps a level
torch.manual_seed(0)
sigmas_ = torch.logspace(0, -2, 10, dtype=D)
L, T = 10, 5
eps_step = 2e-5


def algorithm_1(x, noise, y=None, m=None):
    for i in range(L):
        alpha = eps_step*sigmas_[i]**2/sigmas_[L - 1]**2
        if y is not None:
            z = next(noise)
            held = y + sigmas_[i]*z
            x = x*(1 - m) + held*m
        for _ in range(T):
            x = x + alpha/2*s_theta(x, sigmas_[i]) + alpha.sqrt()*next(noise)
            if y is not None:
                x = x*(1 - m) + held*m
    return x


x = torch.rand(8, 6, dtype=D)
y = torch.rand(8, 6, dtype=D)
m = torch.tensor([1., 1, 0, 0, 0, 1], dtype=D)
z = torch.randn(60, 8, 6, dtype=D)


def ours(known=None):
    draws = iter(z)
    S = geometric()
    start = S(1.).signal*(2*x - 1)
    return last(langevin(model, grid(S, 10), start, T, noise=lambda x: next(draws), known=known))


inpainted = ours((2*y - 1, m.bool()))
passed('(31.8) annealed Langevin dynamics', close(ours(), 2*algorithm_1(x, iter(z)) - 1),
       by="NCSN's Algorithm 1")
passed('(31.8) inpainting', close(inpainted, 2*algorithm_1(x, iter(z), y, m) - 1),
       by="NCSN's Algorithm 2")


# %%NBQA-CELL-SEP7dc948
# Figure 31.3: 8,000 chains by annealed and by plain Langevin dynamics, exact score
torch.manual_seed(0)
N = 8000
start = torch.rand(N, 2)*16 - 8
S = geometric(20, .2, 20.)
end = Grid(torch.stack([S.log_snr[0], CLEAN.log_snr]))
plain = last(langevin(pair, end, Level(S.log_snr[0]).signal*start, 2000, 2.))
annealed = last(langevin(pair, grid(S, 20), S(1.).signal*start))


def share(x):
    return (x.sum(1) < 0).double().mean().item()


sets = dict(data=pair.sample(N), annealed=annealed, plain=plain)
titles = dict(data='data', annealed='annealed Langevin', plain='plain Langevin')
axes = show.panels(3, [*titles.values()], dpi=160)
for ax, (name, points) in zip(axes, sets.items()):
    show.cloud(points[:2000], ax, 'data' if name == 'data' else 'model', 9.)
    ax.text(-8.5, -8.4, f'{100*share(points):.0f} %')
    ax.text(8.5, 7.6, f'{100 - 100*share(points):.0f} %', ha='right')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.8: shares of the smaller group, within 5 standard errors: annealed nearly 1/5; plain the
# share that started on its side, far from 1/5
sigma = (.2*.8/N)**.5
print(f'started {share(start):.3f}, plain {share(plain):.3f}, '
      f'annealed {share(annealed):.3f} ± {sigma:.3f}')
assert share(plain) - .2 > 5*sigma
passed('(31.8) plain: the share that started on that side',
       close(share(plain), share(start), 5*(.25/N)**.5), by='5 standard errors')
passed('(31.8) annealed: nearly the true share, 1/5', close(share(annealed), .2, 5*sigma),
       by='5 standard errors')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.9: q_step over ever shorter steps: the coefficients' distance from the equation falls by 2
# with the step; DDPM's betas; the noise in y
t = level(.7)


def off(h):
    u = Level(t.log_snr - h)
    one, zero = torch.ones(1, 1, dtype=D), torch.zeros(1, 1, dtype=D)
    drift = (q_step(one, t, u, zero) - 1)/h
    chance = q_step(zero, t, u, one)**2/h
    return drift + .5*t.sigma**2, chance - t.sigma**2


errors = [close(a/b, 2., .01) for a, b in zip(off(1e-3), off(5e-4))]
passed('(31.9) half the step, half the distance from the equation', *errors, by='q_step')

table = linear_scaled(20_000)
u = torch.tensor([.100025, .500025, .900025], dtype=D, requires_grad=True)
l = table(u)
slope_l, = torch.autograd.grad(l.log_snr.sum(), u)
beta = table.betas[(u*20_000).long()]*20_000
passed("(31.9) β(u) = DDPM's betas per unit of time",
       close(-l.sigma**2*slope_l/beta, 1., 2e-3), by='20,000 timesteps')

e = torch.tensor(1.3, dtype=D, requires_grad=True)
grow, = torch.autograd.grad(Level(-e).edm_sigma**2, e)
passed('(31.9) the noise in y has variance σ̂², which grows at the rate σ̂²',
       close(grow, Level(-e.detach()).edm_sigma**2), by='autograd')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.15: mean and variance by their own equations, dm/du = -beta m/2, dV/du = beta (1 - V) and
# dV/du = g^2, in 4,000 midpoint steps over the cosine schedule: what q_sample has at the end
from ddpm_lit.diffusion.schedule import Cosine

schedule = Cosine()
u = torch.linspace(.02, .9, 4001, dtype=D)
middle = ((u[1:] + u[:-1])/2).requires_grad_()
du = u[1] - u[0]
t = schedule(middle)
slope_t, = torch.autograd.grad(t.log_snr.sum(), middle)
beta = -t.sigma.detach()**2*slope_t
t = schedule(middle)
grow, = torch.autograd.grad((t.edm_sigma**2).sum(), middle)
start, end = (schedule(u[k]) for k in (0, -1))
m, V, spread = start.signal, start.sigma**2, start.edm_sigma**2
for b, g2 in zip(beta, grow):
    m = m*torch.exp(-b*du/2)
    V = 1 - (1 - V)*torch.exp(-b*du)
    spread = spread + g2*du
passed('(31.15) VP: signal and variance at the end; VE: the variance of y',
       close(m, end.signal, 1e-5), close(V, end.sigma**2, 1e-5),
       close(spread/end.edm_sigma**2, 1., 1e-5), by='4,000 short steps')


# %%NBQA-CELL-SEP7dc948
#| export
def drift(denoiser: Denoiser, x: Tensor, t: Level,
          churn: float = 0.,  # chi, 0: the probability flow, 1: the reverse equation
          ) -> Tensor:  # [b ...]
    "The velocity per unit of log SNR, towards clean. Eq. 31.11 (Song 2021 eq. 6 and 13)."
    return .5*t.sigma**2*x - (1 + churn)/2*t.sigma*denoiser(x, t).eps


# %%NBQA-CELL-SEP7dc948
# Eq. 31.10, 31.11: two Gaussians on a line, whose density is known: both sides of the
# Fokker-Planck equation by autograd: chi = -1 is the forward process, then four shares of chance
x = torch.linspace(-2.5, 2.5, 41, dtype=D)[:, None].requires_grad_()
lam = torch.full((41, 1), .4, dtype=D, requires_grad=True)
p = line.log_prob(x, Level(lam)).exp()
t = Level(lam.detach())


def by(y, v):  # the derivative of y by v
    return torch.autograd.grad(y.sum(), v, create_graph=True)[0]


errors = []
for churn in (-1., 0., .5, 1., 3.):
    stream = by(p[:, None]*drift(line, x, t, churn), x)
    spread = .5*churn*t.sigma**2*by(by(p, x), x)
    errors.append(close(by(p, lam), -stream + spread))
passed('(31.10) forwards, (31.11) with χ = 0, .5, 1 and 3: both sides agree', *errors,
       by='autograd')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.11: short steps of ancestral sampling (with the exact variance) and of DDIM: the remainder
# falls with the square of the step
t = level(.4)
x = torch.linspace(-2, 2, 21, dtype=D)[:, None]


def remainder(h):
    s = Level(t.log_snr + h)
    k = reverse(line, x, s, t, exact(line))
    mean = k.mean - x - h*drift(line, x, t, 1.)
    variance = k.std**2 - h*t.sigma**2
    flow = next(ddim(line, [t, s], x)) - x - h*drift(line, x, t)
    return [v.abs().max() for v in (mean, variance, flow)]


ratios = [close(a/b, 4., .1) for a, b in zip(remainder(.01), remainder(.005))]
passed('(31.11) short steps are right to second order, χ = 1 and 0', *ratios,
       by='half the step, a quarter')


# %%NBQA-CELL-SEP7dc948
# Figure 31.4: 4,000 points on their way from noise to data, without and with randomness
torch.manual_seed(0)
lam = torch.linspace(-5, 6, 201, dtype=D)
h = lam[1] - lam[0]
side = torch.linspace(-3.7, 3.7, 149, dtype=D)[:, None]
quantile = (torch.arange(4000, dtype=D) + .5)/4000
starts = torch.erfinv(2*quantile - 1)[:, None]*2**.5
walk = {churn: [starts] for churn in (0., 1.)}
for l in lam[:-1]:
    for churn, xs in walk.items():
        kick = (churn*h)**.5*Level(l).sigma*torch.randn_like(starts)
        xs.append(xs[-1] + h*drift(line, xs[-1], Level(l), churn) + kick)

density = torch.stack([line.log_prob(side, Level(l)).exp() for l in lam.flip(0)], 1)
fig, axes = plt.subplots(1, 4, figsize=(7, 2.4), layout='constrained', dpi=160, sharey=True,
                         width_ratios=(1, 3, 1, 3))
titles = (r'probability flow, $\chi = 0$', r'reverse SDE, $\chi = 1$')
for ends, ax, title, xs in zip(axes[::2], axes[1::2], titles, walk.values()):
    show.heat(density.sqrt(), ax, (6, -5, -3.7, 3.7), vmax=1.3)
    ax.plot(lam, torch.cat(xs, 1).T[:, 50::100], color=INK['model'], lw=.5)
    ax.set(title=title, xlabel='log SNR', xlim=(6, -5), ylim=(-3.7, 3.7))

    # on the left, where all 4,000 end, and the exact density
    ends.hist(xs[-1].flatten().numpy(), 60, range=(-3, 3), density=True,
              orientation='horizontal', color=INK['model'], alpha=.6)
    exact_p = line.log_prob(side, Level(lam[-1])).exp()
    ends.plot(exact_p.where(exact_p > .01, math.nan), side, '--', color='black', lw=1)
    ends.set(xticks=[], xlabel='ends', xlim=(1.6, 0))
    ends.spines[['top', 'bottom']].set_visible(False)
axes[0].set_ylabel('$x$')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.11: the ends against the exact distribution function (Kolmogorov-Smirnov): chance alone
# makes .03 in 4,000 draws once in a thousand times
def distance(x):
    t = Level(lam[-1])
    std = (t.alpha_bar*line.std**2 + t.sigma**2).sqrt()
    x = x.flatten().sort().values[:, None]
    below = (line.weight*Normal(t.signal*line.mean.T, std).cdf(x)).sum(1)
    return (below - quantile).abs().max()


passed('Figure 31.4: distribution functions of the ends',
       *(close(distance(xs[-1]), 0., .031) for xs in walk.values()), by='the exact one')
ordered = torch.cat(walk[0.], 1).diff(dim=0)
assert (ordered > 0).all()
passed('Figure 31.4: paths of the probability flow never cross')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.11: one Gaussian, three shares of chance: mean and variance of short steps (exact, since
# all is linear) from log SNR -5 to 6 against those of x_t; the error halves with the step
bell = Mixture(torch.ones(1, dtype=D),
               torch.full((1, 1), .7, dtype=D),
               torch.full((1,), .5, dtype=D))


def at(l):
    t = Level(l)
    return t.signal*.7, t.alpha_bar*.25 + t.sigma**2


def moments(churn, n):
    lam = torch.linspace(-5, 6, n + 1, dtype=D)
    h = lam[1] - lam[0]
    m, V = at(lam[0])
    for l in lam[:-1]:
        # the drift is b + (a_b - b) x, read off at 0 and 1
        b, a_b = drift(bell, torch.tensor([[0.], [1.]], dtype=D), Level(l), churn)[:, 0]
        a = 1 + h*(a_b - b)
        m = a*m + h*b
        V = a**2*V + churn*h*Level(l).sigma**2
    true_m, true_V = at(lam[-1])
    return torch.stack([m - true_m, V - true_V])


few, many = (torch.stack([moments(churn, n) for churn in (0., 1., 2.)]) for n in (1000, 2000))
print(f'largest error of mean and variance {many.abs().max():.1e}')
passed('(31.11) twice the steps, half the error, for χ = 0, 1 and 2', close(few/many, 2., .1),
       by='the moments of x_t')


# %%NBQA-CELL-SEP7dc948
import torch


def beta(u):  # Song's VP SDE
    return .1 + 19.9*u


def alpha_bar(u):  # exp of minus the integral of beta
    return torch.exp(-.1*u - 19.9*u**2/2)


@torch.no_grad()
def reverse_sde(net, x, chi=1., steps=500, end=1e-3):  # chi 0: probability flow ODE
    times = torch.linspace(1, end, steps + 1, dtype=x.dtype, device=x.device)
    for u, v in zip(times, times[1:]):
        score = -net(x, u)/(1 - alpha_bar(u)).sqrt()
        move = beta(u)*(x/2 + (1 + chi)/2*score)
        x = x + move*(u - v) + (chi*beta(u)*(u - v)).sqrt()*torch.randn_like(x)
    return x


# %%NBQA-CELL-SEP7dc948
# Eq. 31.16: the plain loop on two Gaussians on a line, 4,000 points: their distribution function at
# the end against the exact one; without the factor (1 + chi)/2 it fails
def predict(x, u):
    return line(x, Level(torch.logit(alpha_bar(u)))).eps


def far_off(net, chi):
    "The largest distance of the distribution functions at the end."
    torch.manual_seed(0)
    x = reverse_sde(net, starts, chi, 300).flatten().sort().values[:, None]
    ab = alpha_bar(torch.tensor(1e-3, dtype=D))
    std = (ab*line.std**2 + 1 - ab).sqrt()
    below = (line.weight*Normal(ab.sqrt()*line.mean.T, std).cdf(x)).sum(1)
    return (below - quantile).abs().max()


passed('(31.16) the reverse SDE and the flow end in the data',
       *(close(far_off(predict, chi), 0., .031) for chi in (0., .5, 1.)),
       by='the exact distribution function')
assert far_off(lambda x, u: predict(x, u)/2, 1.) > .1
assert far_off(lambda x, u: predict(x, u)*2, 0.) > .1


# %%NBQA-CELL-SEP7dc948
# Figure 31.5: the digit network in the plain loop: the flow, and the reverse SDE twice
digits_net, _ = load_weights('mnist')
unlabelled = digits_net.given()


def predict_digits(x, u):
    return unlabelled(x, Level(torch.logit(alpha_bar(u)))).eps


def film(chi, seed):
    "The states of one digit at seven times; each stretch by the plain loop."
    torch.manual_seed(4)
    x = torch.randn(1, 1, 28, 28)
    torch.manual_seed(seed)
    states = [x]

    def keep(x, u):
        if len(states) < len(shown) and u <= shown[len(states)]:
            states.append(x)
        return predict_digits(x, u)

    x = reverse_sde(keep, x, chi, steps=budget(100, 500))
    return torch.cat([*states, x])


shown = [1., .7, .5, .35, .2, .1]
sheet = {r'flow, $\chi = 0$': film(0., 0), r'SDE, $\chi = 1$': film(1., 1),
         'SDE again': film(1., 2)}
fig, axes = plt.subplots(3, 7, figsize=(7, 3.2), dpi=160, layout='constrained')
for line_of_axes, (name, states) in zip(axes, sheet.items()):
    for ax, x, u in zip(line_of_axes, states, [*shown, 0.]):
        ax.imshow(x[0], cmap='gray', vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
        if name == [*sheet][0]:
            ax.set_title(f'$u = {u:g}$', fontsize=9)
    line_of_axes[0].set_ylabel(name, fontsize=9)


# %%NBQA-CELL-SEP7dc948
#| export
def signs(x: Tensor) -> Tensor:
    "Random signs of the shape of x."
    return torch.randint(0, 2, x.shape, device=x.device).to(x)*2 - 1


def divergence(
        f: Callable[[Tensor], Tensor], x: Tensor,
        probes: int | None = None,  # None: the exact trace, by d passes backwards
        noise=signs) -> tuple[Tensor, Tensor]:  # f(x) [b ...], its divergence [b]
    "The trace of the Jacobian, or a mean of `probes` estimates. Eq. 31.14 (Hutchinson)."
    if probes is not None and probes < 1:
        raise Problem(f'{probes} probes see nothing: take one or more, or None for the '
                      'exact trace.')

    # f at x, as a function that can be differentiated
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = f(x)
        if y.shape != x.shape:
            raise Problem(f'A divergence needs a field: give f that maps {[*x.shape]} to '
                          f'the same shape, not to {[*y.shape]}.')
        if not y.requires_grad:
            raise Problem('This denoiser cannot be differentiated: take no_grad, detach '
                          'or rounding out of it.')

        # one pass backwards gives z J, and so the quadratic form z J z
        def quadratic(z):  # [b ...] -> [b]
            back = torch.autograd.grad(y, x, z, retain_graph=True)[0]
            return (back*z).flatten(1).sum(1)

        # with the axes as z: the trace; with random z: its mean (31.14)
        if probes is None:
            axes = torch.eye(x[0].numel()).to(x)
            total = sum(quadratic(e.reshape(1, *x.shape[1:]).expand_as(x)) for e in axes)
        else:
            total = sum(quadratic(noise(x)) for _ in range(probes))/probes
    return y.detach(), total


# %%NBQA-CELL-SEP7dc948
# Eq. 31.14: all 16 sign vectors of four dimensions: their mean is the trace, their variance as
# predicted; the exact trace against torch's Jacobian
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4)).double()
x = torch.randn(1, 4, dtype=D)
A = torch.func.jacrev(net)(x[0])
z = torch.tensor([*itertools.product((-1., 1.), repeat=4)], dtype=D)
many = x.expand(16, 4)
value, trace = divergence(net, x)


def estimate(*draws):
    left = iter(draws)
    return divergence(net, many, len(draws), lambda x: next(left))[1]


each = estimate(z)
symmetric = A + A.T
off = symmetric - torch.diag(torch.diag(symmetric))
two = estimate(z, z.flip(1))
other = estimate(z.flip(1))

drawn = signs(torch.zeros(10_000, 4))
assert set(drawn.flatten().tolist()) == {-1., 1.}
passed('(31.14) the exact trace, and the mean over all sign vectors',
       close(trace, A.trace()), close(each.mean(), A.trace()), close(value, net(x), 0),
       by="torch's Jacobian")
passed('(31.14) the variance over all sign vectors, and two probes at once',
       close(each.var(correction=0), .5*(off**2).sum()), close(two, (each + other)/2))
passed('(31.14) random signs are uncorrelated',
       close(drawn.T @ drawn/1e4, torch.eye(4), 5/1e2), by='10,000 draws')


# %%NBQA-CELL-SEP7dc948
#| export
def log_likelihood(
        denoiser: Denoiser,
        x: Tensor,  # [b ...] at the first of the levels
        levels: Grid,  # ever noisier, as grid(...).flip() is
        probes: int | None = None,  # None: the exact trace
        # log density [b] at the last level; None: N(0, I)
        prior: Callable[[Tensor, Level], Tensor] | None = None,
) -> Tensor:  # [b], nats
    "log p(x) by the probability flow and midpoint rule. Eq. 31.13 (Song 2021 eq. 39)."
    total = x.new_zeros(len(x))
    for s, t in steps(levels, up=True):
        if not ((t.log_snr < s.log_snr) & (t.log_snr > -math.inf)).all():
            raise Problem('The likelihood is carried from the data to the noise: give '
                          'levels that get ever noisier, with some signal left, as '
                          'grid(...).flip() does.')

        # half a step along the flow, to the middle
        h = t.log_snr - s.log_snr
        middle = Level((s.log_snr + t.log_snr)/2)
        with torch.no_grad():
            half = x + h/2*drift(denoiser, x, s)

        # the whole step by f = (sigma^2 x - sigma eps)/2 and its divergence there
        eps, div = divergence(lambda x: denoiser(x, middle).eps, half, probes)
        x = x + h/2*(middle.sigma**2*half - middle.sigma*eps)
        total = total + h/2*(middle.sigma**2*x[0].numel() - middle.sigma*div)

    if prior:
        end = prior(x, t)
    else:
        end = -.5*(x.square() + math.log(2*math.pi)).flatten(1).sum(1)
    if end.shape != total.shape:
        raise Problem(f'The prior gave {[*end.shape]} for {len(x)} samples: one log '
                      'density each, [b], is wanted.')
    return end + total


# %%NBQA-CELL-SEP7dc948
# Eq. 31.12, 31.13: the ring, whose log density is known, at 50 points: with the exact trace the
# error falls by 4 when steps double; N(0, I) as the end
torch.manual_seed(0)


def up(n, lo=-4.):
    return Grid(torch.linspace(5., lo, n + 1, dtype=D))


t = level(5.)
x = q_sample(world.sample(50), t, torch.randn(50, 2, dtype=D))
truth = world.log_prob(x, t)
error = {}
for n in (50, 100, 200):
    found = log_likelihood(world, x, up(n), prior=world.log_prob)
    error[n] = (found - truth).abs().mean().item()
whole = log_likelihood(world, x, up(400, -16.)) - truth
print('error of the log density:', {n: f'{e:.1e}' for n, e in error.items()})
passed('(31.13) twice the steps, a quarter of the error',
       close(error[50]/error[100], 4., .4), close(error[100]/error[200], 4., .4))
passed('(31.12) (31.13) log density at 50 points, from N(0, I)', close(whole, 0., 3e-3),
       by='the ring, 400 steps')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.14: the estimate is right on average: 400 runs at one point, within 5 standard errors of
# the exact trace's answer; more probes, less spread
torch.manual_seed(0)
same = x[:1].expand(400, 2)
one, four = (log_likelihood(world, same, up(60), n, prior=world.log_prob) for n in (1, 4))
sure = log_likelihood(world, x[:1], up(60), prior=world.log_prob)[0]
print(f'spread {one.std():.3f} with one probe, {four.std():.3f} with four')
assert four.std() < .7*one.std()
errors = [close(some.mean(), sure, 5*some.std().item()/20) for some in (one, four)]
passed('(31.14) the mean over 400 runs', *errors, by='the exact trace')


# %%NBQA-CELL-SEP7dc948
# Eq. 31.13: digits cost less than raw bytes, and less than the same grey values in a random order;
# the steps are short enough
torch.manual_seed(0)
all_digits = mnist('test')
test = all_digits[:budget(8, 100)]
x0 = to_unit(test.pixels) + (torch.rand(len(test), 1, 28, 28) - .5)/127.5
route = Grid(torch.linspace(9., -12., budget(40, 200) + 1, dtype=D))
t = [*route][0]


def bits(d, x0, route=route):
    log_p = log_likelihood(d, t.signal*x0, route, 1) + 784*t.signal.log()
    return density_to_grey(-log_p/784)


own = bits(ddpm, x0)
shuffled = x0.flatten(1)[:, torch.randperm(784)].reshape_as(x0)
flat = bits(ddpm, shuffled)
rough = bits(ddpm, x0, Grid(route.log_snr[::2]))

# the simple codes for the same digits
counted = torch.bincount(all_digits.pixels[len(test):].flatten().long(), minlength=256) + 1.
one_table = -(counted/counted.sum())[test.pixels.long()].log2().mean().item()
packed = 8*len(gzip.compress(test.pixels.numpy().tobytes(), 9))/test.pixels.numel()

print(f'raw bytes                8.00 bits per pixel ({len(test)} digits)')
print(f'probability flow         {own.mean():.2f} ± {own.std()/len(own)**.5:.2f}; '
      f'with half as many steps {rough.mean():.2f}; with shuffled pixels {flat.mean():.2f}')
print(f'one table of grey values {one_table:.2f}')
print(f'gzip                     {packed:.2f}')
assert 0 < own.mean() < 8
assert (flat > own).all()
assert (rough - own).abs().mean() < .3
assert own.mean() > 1.5*one_table and own.mean() > 1.5*packed


# %%NBQA-CELL-SEP7dc948
# Eq. 31.13: a Gaussian of 784 dimensions, for which one probe is exact, costs its entropy
torch.manual_seed(0)


def wide(x, t):
    return from_eps(t.sigma*x/(.09*t.alpha_bar + t.sigma**2), x, t)


x = .3*torch.randn(200, 1, 28, 28).double()
got = bits(wide, x).mean()
entropy = density_to_grey(torch.tensor(.5*math.log(2*math.pi*math.e*.09)))
passed('(31.13) bits of Gaussian pixels = their entropy',
       close(got, entropy, 5*.5**.5/(200*784)**.5/math.log(2) + 2e-3), by='200 pictures')


# %%NBQA-CELL-SEP7dc948
#| gpu
# Eq. 31.8, 31.13: the same walk and the same likelihood on a card
torch.manual_seed(0)
x = torch.randn(64, 2)
fixed = torch.randn(64, 2)
card = ring().to('cuda')


def walk(d, x):
    return last(langevin(d, grid(geometric(), 10), x, 5, noise=lambda x: fixed.to(x)))


passed('(31.8) the same walk on a GPU', close(walk(card, x.cuda()), walk(ring(), x), 1e-3),
       by='the CPU')
passed('(31.13) the same likelihood on a GPU',
       close(log_likelihood(card, x.cuda(), up(40)), log_likelihood(ring(), x, up(40)), 1e-3),
       by='the CPU')


# %%NBQA-CELL-SEP7dc948
# What is refused, and with which words
x = torch.randn(4, 2)
lv = grid(geometric(), 10)
mask = torch.ones(3, 4, 2).bool()
from_pure = Grid(torch.tensor([-math.inf, 0., 4.]))
to_pure = Grid(torch.tensor([4., 0., -math.inf]))
assert score(ring(), x, CLEAN).isnan().all()


@torch.no_grad()
def detached(x, t):
    return ring()(x.detach(), t)


with expect_fail('needs some signal', Problem):
    last(langevin(ring(), from_pure, torch.randn(2, 2)))
with expect_fail('lead from noise to cleaner', Problem):
    last(langevin(ring(), lv.flip(), x))
with expect_fail('at least two levels', Problem):
    last(langevin(ring(), [level(0.)], x))
with expect_fail('flies apart', Problem):
    last(langevin(ring(), lv, x, step=4.))
with expect_fail('one or more', Problem):
    last(langevin(ring(), lv, x, repeats=0))
with expect_fail('do not fit x [4, 2]', Problem):
    last(langevin(ring(), lv, x, known=(x, mask)))
with expect_fail('rise from above 0', Problem):
    geometric(10, 2., .02)
with expect_fail('two or more', Problem):
    geometric(1)
with expect_fail('has 10 steps', Problem):
    grid(geometric(), 50)
with expect_fail('ever noisier', Problem):
    log_likelihood(ring(), x, Grid(torch.tensor([-4., 0., 4.])))
with expect_fail('some signal left', Problem, show=False):  # the same answer
    log_likelihood(ring(), x, to_pure)
with expect_fail('No step starts at CLEAN', Problem):
    log_likelihood(ring(), x, [CLEAN, level(3.)])
with expect_fail('cannot be differentiated', Problem):
    log_likelihood(detached, x, up(3))
with expect_fail('to the same shape', Problem):
    divergence(lambda x: x[:, :1], x)
with expect_fail('0 probes see nothing', Problem):
    log_likelihood(ring(), x, up(3), 0)
with expect_fail('one log density each', Problem):
    log_likelihood(ring(), x, up(3), prior=lambda x, t: x)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...  # 'below', 'inside' or 'above'
S = geometric(5, .2, 20.)
start = torch.rand(20_000, 2)*16 - 8
x = last(langevin(pair, grid(S, 5), S(1.).signal*start))
off = (share(x) - .2)/(.2*.8/20_000)**.5
assert guess == ('below' if off < -5 else 'above' if off > 5 else 'inside')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2
def s(x):
    return .3*x - torch.sin(x)


t = level(.5)
q = line.log_prob(xt[:, None], t).exp()*(xt[1] - xt[0])
true = slope(line, xt[:, None], t)[:, 0]
implicit = (q*(...)).sum()  # of s(xt) and its derivative, by divergence(s, xt[:, None])
close(implicit + .5*(q*true**2).sum(), .5*(q*(s(xt) - true)**2).sum(), 1e-8)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def cool(denoiser, x, t, step, temperature):
    ...  # one step


x = torch.zeros(20_000, 1, dtype=D)
t = level(0.)
v = t.alpha_bar*.25 + t.sigma**2
for _ in range(300):
    x = cool(bell, x, t, .1, .5)
close(x.var(), .5*v, 5*.5*v*(2/20_000)**.5 + .02*v)


# %%NBQA-CELL-SEP7dc948
# solution 1: at the noisiest level chains lie on both sides in nearly equal numbers; at
# the next, a third as noisy, few can cross any more
torch.manual_seed(0)
guess = 'above'
S = geometric(5, .2, 20.)
start = torch.rand(20_000, 2)*16 - 8
x = last(langevin(pair, grid(S, 5), S(1.).signal*start))
off = (share(x) - .2)/(.2*.8/20_000)**.5
assert guess == ('below' if off < -5 else 'above' if off > 5 else 'inside')
off


# %%NBQA-CELL-SEP7dc948
# solution 2: E[s . grad log q] = integral of s . grad q = -E[div s], by parts, as q
# vanishes far out; so J = E[|s|^2/2 + div s] + E|grad log q|^2/2
def s(x):
    return .3*x - torch.sin(x)


t = level(.5)
q = line.log_prob(xt[:, None], t).exp()*(xt[1] - xt[0])
true = slope(line, xt[:, None], t)[:, 0]
implicit = (q*(.5*s(xt)**2 + divergence(s, xt[:, None])[1])).sum()
close(implicit + .5*(q*true**2).sum(), .5*(q*(s(xt) - true)**2).sum(), 1e-8)


# %%NBQA-CELL-SEP7dc948
# solution 3: the score of p^(1/kappa) is the score over kappa; take a step kappa times as
# long, and only the noise changes: sqrt(kappa) as large
torch.manual_seed(0)


def cool(denoiser, x, t, step, temperature):
    return langevin_step(denoiser, x, t, step,
                         lambda x: temperature**.5*torch.randn_like(x))


x = torch.zeros(20_000, 1, dtype=D)
t = level(0.)
v = t.alpha_bar*.25 + t.sigma**2
for _ in range(300):
    x = cool(bell, x, t, .1, .5)
close(x.var(), .5*v, 5*.5*v*(2/20_000)**.5 + .02*v)
