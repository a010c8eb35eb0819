# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.posterior


# %%NBQA-CELL-SEP15d533
#| export
from torch import Tensor
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.forward import check_order, new_noise


# %%NBQA-CELL-SEP15d533
#| hide
import math
from itertools import pairwise
import matplotlib.pyplot as plt
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.level import CLEAN, from_alpha_bar
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import posterior as library  # the first pages use what later ones build
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.schedule import constant, cosine, linear
from ddpm_lit.show import INK

setup()
D = torch.float64
S = linear()  # DDPM's schedule


def number(v):
    "A number in float64."
    return torch.tensor(v, dtype=D)


def random_levels():
    "1,000 random pairs of levels, s cleaner than t."
    lam = torch.empty(2, 1000, dtype=D).uniform_(-8, 8)
    return map(Level, lam.sort(0, descending=True).values)


def row(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160, **kw)
    return [*axes]


# %%NBQA-CELL-SEP15d533
# Figure 12.1: two measurements of x_(t-1), and what they say together, for three sizes of the step
def two_measurements(x0, x_t, before, now):
    "Mean and variance of x_(t-1): from x0 alone, from x_t alone, and from both."
    r = (now/before)**.5
    from_x0 = before**.5*x0, 1 - before
    from_x_t = x_t/r, (1 - now/before)/r**2
    precisions = 1/from_x0[1], 1/from_x_t[1]
    total = sum(precisions)
    mean = (precisions[0]*from_x0[0] + precisions[1]*from_x_t[0])/total
    return from_x0, from_x_t, (mean, 1/total)


y = torch.linspace(-2.6, 3.4, 400, dtype=D)
titles = ('step $t$ adds little noise', 'more noise', 'much noise')
colours = (INK['data'], '.5', INK['model'])
hero = row(3, 2.1, sharey=True)
for ax, title, now in zip(hero, titles, (.65, .4, .1)):
    found = two_measurements(1.5, -.2, .7, now)
    for i, (colour, (mean, variance)) in enumerate(zip(colours, found)):
        p = Normal(number(mean), number(variance**.5)).log_prob(y).exp()
        ax.plot(y, p, color=colour, lw=1.1 if i < 2 else 1.8)
        ax.plot(mean, 0, '^', color=colour, markersize=6, clip_on=False, zorder=3)
        ax.text(.99, .98 - .13*i, f'variance {variance:.2f}', color=colour,
                ha='right', va='top', transform=ax.transAxes)
    ax.set(title=title, xlabel='$x_{t-1}$', yticks=[], ylim=(0, 2.4))
hero[0].text(-.62, 1.15, 'from $x_t$', color='.5', ha='right')
hero[0].text(.45, 1.05, 'both', color=INK['model'])
hero[0].text(1.5, .8, 'from $x_0$')


# %%NBQA-CELL-SEP15d533
import torch

# index t is step t; index 0 is the clean end
betas = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)
betas = torch.cat([torch.zeros(1), betas])
alpha_bar = (1 - betas).cumprod(0)
before = torch.cat([torch.ones(1), alpha_bar[:-1]])  # alpha-bar of step t - 1

of_x0 = before.sqrt()*betas/(1 - alpha_bar)
of_x_t = (1 - betas).sqrt()*(1 - before)/(1 - alpha_bar)
variance = (1 - before)/(1 - alpha_bar)*betas


def at(table, t, x):  # the entry of each picture's step, in a shape that multiplies x
    return table[t.cpu()].to(x).view(-1, 1, 1, 1)


def q_posterior(x0, x_t, t):  # two batches of pictures [b c h w], steps 1 .. 1000 [b]
    mean = at(of_x0, t, x_t)*x0 + at(of_x_t, t, x_t)*x_t
    return mean, at(variance, t, x_t).sqrt()


def p_sample(x_t, eps, t):  # eps: the prediction of the noise in x_t
    share = at(betas/(1 - alpha_bar).sqrt(), t, x_t)
    mean = (x_t - share*eps)/at((1 - betas).sqrt(), t, x_t)
    return mean + at(variance, t, x_t).sqrt()*torch.randn_like(x_t)


# %%NBQA-CELL-SEP15d533
# The plain code against the library's `posterior`, for all 1,000 steps; the last one arrives at the
# clean data; and a step from the noise, with the same draw
torch.manual_seed(0)
x0, x_t = torch.randn(2, 1000, 1, 2, 2, dtype=D)
steps = torch.arange(1, 1001)
earlier = torch.cat([CLEAN.log_snr[None], S.log_snr[:-1]]).view(-1, 1, 1, 1)
now = S.log_snr.view(-1, 1, 1, 1)
want_mean, want_std = library.posterior(x0, x_t, Level(earlier), Level(now))
mean, std = q_posterior(x0, x_t, steps)
errors = [close(mean, want_mean), close(std, want_std)]

# at t = 1 the mean is x0 and no noise is added
errors += [close(mean[0], x0[0]), close(std[0], 0., tol=0)]

# the noise that leads from x0 to x_t
eps = (x_t - Level(now).signal*x0)/Level(now).sigma
torch.manual_seed(1)
got = p_sample(x_t, eps, steps)
torch.manual_seed(1)
errors.append(close(got, want_mean + want_std*torch.randn_like(x_t)))
narrow, _ = q_posterior(x0.float(), x_t.float(), steps)
close(narrow, want_mean, 1e-5)  # in float32
passed("both plain functions give what this book's library gives", *errors, by='all 1,000 steps')


# %%NBQA-CELL-SEP15d533
# The two thermometers, by multiplying the two densities on a lattice
room = torch.linspace(0, 45, 40_001, dtype=D)
p = (Normal(number(20.), 1.).log_prob(room) + Normal(number(23.), 2.).log_prob(room)).softmax(0)
mean = (p*room).sum()
errors = [close(mean, 20.6), close((p*(room - mean)**2).sum(), .8)]

# the blue curves of Figure 12.1, against the library's posterior
for now in (.65, .4, .1):
    mean, var = two_measurements(1.5, -.2, .7, now)[2]
    s, t = from_alpha_bar(.7), from_alpha_bar(now)
    want_mean, want_std = library.posterior(number(1.5), number(-.2), s, t)
    errors += [close(mean, want_mean), close(var, want_std**2)]
passed('two thermometers: 20.6 degrees, variance 0.8; the blue curves of Figure 12.1', *errors,
       by='product on a lattice; library')


# %%NBQA-CELL-SEP15d533
# Eq. 12.8, 12.12: the two densities multiplied on a lattice, at steps of DDPM's schedule
x0 = number(1.3)
errors = []
for k in (2, 10, 100, 500, 1000):
    b, ab, old = betas[k], alpha_bar[k], alpha_bar[k - 1]
    x_t = ab.sqrt()*x0 + .7*(1 - ab).sqrt()
    x = old.sqrt()*x0 + (1 - old).sqrt()*torch.linspace(-14, 14, 200_001, dtype=D)
    p = (Normal((1 - b).sqrt()*x, b.sqrt()).log_prob(x_t)
         + Normal(old.sqrt()*x0, (1 - old).sqrt()).log_prob(x)).softmax(0)
    mean = (p*x).sum()
    precision = (1 - b)/b + 1/(1 - old)
    errors += [close(precision*(p*(x - mean)**2).sum(), 1., tol=1e-9),
               close(precision*variance[k], 1.),
               close(of_x0[k]*x0 + of_x_t[k]*x_t, mean, tol=1e-9)]
passed('(12.8, 12.12) mean and variance', *errors, by='two densities multiplied, five steps')


# %%NBQA-CELL-SEP15d533
# Eq. 12.13, 12.14: the mean from the noise, by autograd of a linear function; the variance of
# x_(t-1) given x_t on a lattice, for data at one point, N(0, 1), and two points at -1 and 1
torch.manual_seed(0)
eps = torch.randn((), dtype=D, requires_grad=True)
x_t = torch.randn((), dtype=D, requires_grad=True)
errors = []
for k in (1, 2, 100, 1000):
    x0 = (x_t - (1 - alpha_bar[k]).sqrt()*eps)/alpha_bar[k].sqrt()
    of_both = torch.autograd.grad(of_x0[k]*x0 + of_x_t[k]*x_t, (x_t, eps))
    root = (1 - betas[k]).sqrt()
    errors += [close(of_both[0], 1/root),
               close(of_both[1], -betas[k]/(1 - alpha_bar[k]).sqrt()/root)]
passed('(12.13) coefficients of x_t and of the noise', *errors, by='autograd')


def mean_variance(points, spread, k):
    "E Var[x_(t-1) | x_t] at step k, for Gaussians of variance `spread` around the points."
    b, old = betas[k], alpha_bar[k - 1]
    x = torch.linspace(-6, 6, 1201, dtype=D)  # of x_(t-1) and of x_t
    centre = old.sqrt()*torch.tensor(points, dtype=D)[:, None]
    prior = Normal(centre, (old*spread + 1 - old).sqrt()).log_prob(x).exp().mean(0)
    joint = prior*Normal((1 - b).sqrt()*x, b.sqrt()).log_prob(x[:, None]).exp()  # [x_t x_(t-1)]
    total = joint.sum(1).clamp(min=1e-300)
    mean = (joint*x).sum(1)/total
    return ((joint*x**2).sum(1) - total*mean**2).sum()/total.sum()


errors = []
for k in (30, 100, 300):
    point, normal, two = (mean_variance(*data, k) for data in (([0.], 0.), ([0.], 1.),
                                                               ([-1., 1.], 0.)))
    errors += [close(point/variance[k], 1., tol=1e-5), close(normal/betas[k], 1., tol=1e-5)]
    assert variance[k]*(1 - 1e-5) <= two <= betas[k]*(1 + 1e-5)
passed('(12.14) a point and N(0, 1) are the two ends, two points lie between', *errors,
       by='lattice')
factor = variance[2:]/betas[2:]
assert abs(factor[0] - .45) < .005 and factor[97] < .99 and factor[98:].min() > .98


# %%NBQA-CELL-SEP15d533
# Figure 12.2: the step back without and with x0, for data at -1 and +1
def step_back(x, x_t, ab_s, ab_t):
    "Densities of x_s given x_t: for x0 = +1 and x0 = -1, each with its weight p(x0 | x_t)."
    s, t = from_alpha_bar(ab_s), from_alpha_bar(ab_t)
    weight = torch.sigmoid(2*t.signal*x_t/t.sigma**2)  # of +1, by Bayes
    parts = []
    for x0, w in ((1., weight), (-1., 1 - weight)):
        mean, std = library.posterior(number(x0), number(x_t), s, t)
        parts.append((w, Normal(mean, std).log_prob(x).exp()))
    return parts


y = torch.linspace(-2.2, 2.2, 600, dtype=D)
for ax, title, ab_s in zip(row(2, 2.1), ('a large step', 'a small step'), (.9, .22)):
    (w, plus), (u, minus) = step_back(y, .15, ab_s, .2)
    total = w*plus + u*minus
    ax.fill_between(y, w*plus, color=INK['model'], alpha=.4, lw=0)
    ax.fill_between(y, u*minus, color=INK['guidance'], alpha=.4, lw=0)
    ax.plot(y, total, color=INK['data'], lw=1.2)
    top = total.max().item()
    right, left = (1.45, -1.42) if ab_s == .9 else (.72, -.5)
    ax.text(right, .42*top, 'if $x_0 = 1$', color=INK['model'])
    ax.text(left, .42*top, 'if $x_0 = -1$', color=INK['guidance'], ha='right')
    if ab_s == .9:
        ax.text(0, .6*top, '$q(x_s\\,|\\,x_t)$:\nthe sum', ha='center', va='center')
    else:
        ax.text(.5, .85*top, '$q(x_s\\,|\\,x_t)$: the sum')
    ax.set(title=title, xlabel='$x_s$', yticks=[], ylim=(0, 1.1*top))


# %%NBQA-CELL-SEP15d533
# Brute force: Bayes on a lattice
def brute(x0, x_t, ab_s, ab_t, n=40_001):  # four numbers; the levels by their alpha-bars
    "Mean and std of q(x_s | x_t, x0) by Bayes on a lattice, and q(x_t | x0)."
    x = torch.linspace(-1, 1, n, dtype=D)*14 + ab_s**.5*x0
    alpha = ab_t/ab_s  # the product of the alphas between s and t

    # the numerator of (12.1), as logarithms
    forward = Normal(alpha**.5*x, (1 - alpha)**.5).log_prob(x_t)
    prior = Normal(ab_s**.5*x0, (1 - ab_s)**.5).log_prob(x)

    # divided by its sum
    p = (forward + prior).softmax(0)
    evidence = (forward + prior).logsumexp(0).exp()*(x[1] - x[0])
    mean = (p*x).sum()
    return mean, (p*(x - mean)**2).sum().sqrt(), evidence


# %%NBQA-CELL-SEP15d533
# Eq. 12.1: the lattice's sum is the denominator, which notebook 11 knows as the density of one jump
x0, x_t, ab_s, ab_t = map(number, (1.3, -.4, .7, .2))
mean, std, evidence = brute(x0, x_t, ab_s, ab_t)
jump = Normal(ab_t.sqrt()*x0, (1 - ab_t).sqrt()).log_prob(x_t).exp()
print(f'x0 = 1.3, x_t = -0.4: mean {mean:.6f}, standard deviation {std:.6f}')
passed('(12.1) the sum over the lattice is q(x_t | x0)', close(evidence, jump), by='Eq. 11.4')


# %%NBQA-CELL-SEP15d533
# Figure 12.2: the black curves, by Bayes on a lattice; and how far they are from a Gaussian
x = torch.linspace(-8, 8, 16_001, dtype=D)
dx = x[1] - x[0]
errors, far = [], []
for ab_s in (number(.9), number(.22)):
    each = [Normal(sign*ab_s**.5, (1 - ab_s)**.5).log_prob(x) for sign in (1, -1)]
    forward = Normal((.2/ab_s)**.5*x, (1 - .2/ab_s)**.5).log_prob(number(.15))
    want = (torch.logaddexp(*each) + forward).softmax(0)/dx
    total = sum(w*p for w, p in step_back(x, .15, ab_s, number(.2)))
    errors.append(close(total, want))

    mean = (want*x).sum()*dx
    std = ((want*(x - mean)**2).sum()*dx).sqrt()
    log_ratio = want.clamp(min=1e-300).log() - Normal(mean, std).log_prob(x)
    far.append((want*log_ratio).sum()*dx)
passed('Figure 12.2: the sum of weighted posteriors is q(x_s | x_t)', *errors, by='lattice')
assert far[0] > .2 and far[1] < 1e-5
print(f'KL from the Gaussian of the same mean and variance: {far[0]:.2f} nats, large step;')
print('below 1e-5 nats, small step')


# %%NBQA-CELL-SEP15d533
# Eq. 12.2: b/a and 1/sqrt(a) against brute force
x0, x_t, ab_s, ab_t = map(number, (1.3, -.4, .7, .2))
mean, std, _ = brute(x0, x_t, ab_s, ab_t)
r = (ab_t/ab_s).sqrt()
v = 1 - ab_t/ab_s
a = r**2/v + 1/(1 - ab_s)
b = r/v*x_t + ab_s.sqrt()/(1 - ab_s)*x0
passed('(12.2) mean b/a, standard deviation 1/sqrt(a)', close(b/a, mean), close(a**-.5, std),
       by='brute force')


# %%NBQA-CELL-SEP15d533
#| export
def posterior(x0: Tensor,  # [b ...] clean data
              x_t: Tensor,  # [b ...] the noisier state
              s: Level,  # the level asked about, cleaner than t
              t: Level,  # the level of x_t
              ) -> tuple[Tensor, Tensor]:  # mean [b ...], std [] or [b 1 ... 1]
    "Mean and standard deviation of q(x_s | x_t, x0). Eq. 12.4 (DDPM eq. 6-7)."
    check_order(s, t)
    c = new_noise(s, t)
    mean = s.signal*c*x0 + (s.sigma/t.sigma)**2*t.signal/s.signal*x_t
    return mean, s.sigma*c.sqrt()


# %%NBQA-CELL-SEP15d533
# Eq. 12.3, 12.4: against brute force, at four pairs of levels
x0, x_t = number(1.3), number(-.4)
errors = []
for ab_s, ab_t in ((.7, .2), (.99, .9), (.5, .499), (.3, 1e-4)):
    want_mean, want_std, _ = brute(x0, x_t, number(ab_s), number(ab_t))
    mean, std = posterior(x0, x_t, from_alpha_bar(number(ab_s)), from_alpha_bar(number(ab_t)))
    errors += [close(mean, want_mean), close(std, want_std)]
passed('(12.3, 12.4) mean and standard deviation', *errors, by='brute force, 4 pairs of levels')


# %%NBQA-CELL-SEP15d533
# The coefficients of (12.4) between neighbours
def coefficients(S):  # of a discrete schedule
    "The coefficients of x0 and of x_t, and beta-tilde, for t = 2 .. T."
    s, t = Level(S.log_snr[:-1]), Level(S.log_snr[1:])
    one = torch.ones(len(S) - 1, dtype=D)
    of_x0, std = posterior(one, 0*one, s, t)
    of_x_t, _ = posterior(0*one, one, s, t)
    return of_x0, of_x_t, std**2


# %%NBQA-CELL-SEP15d533
# Eq. 12.8: coefficients from betas by running products, as DDPM's code has them, against ours,
# on three schedules
errors = []
for schedule in (linear(), cosine(), constant(10, .2)):
    products = (1 - schedule.betas).cumprod(0)
    old = products[:-1]  # of t - 1
    ab = products[1:]  # of t
    b = schedule.betas[1:]
    a = 1 - b
    theirs = old.sqrt()*b/(1 - ab), a.sqrt()*(1 - old)/(1 - ab), (1 - old)/(1 - ab)*b
    errors += [close(x, y) for x, y in zip(coefficients(schedule), theirs)]
passed('(12.8) coefficients and variance, three schedules', *errors, by='running products')


# %%NBQA-CELL-SEP15d533
# Eq. 12.8: values that the official schedules are known to give: coefficients at t = 2, and
# beta-tilde at t = 2 and t = T
def second(schedule):
    return torch.stack([v[0] for v in coefficients(schedule)])


published = torch.tensor([.5452914995, .4547084990, 5.4531876613021935e-5], dtype=D)
errors = [close(second(linear()), published, tol=1e-10)]
published = torch.tensor([.5277814093, .4722185904, 2.178949614569182e-5], dtype=D)
errors.append(close(second(cosine()), published, tol=1e-10))

places = ((linear(), -1), (cosine(), -1), (constant(10, .2), 0), (constant(10, .2), -1),
          (constant(10, .05), 0))
variances = torch.stack([coefficients(schedule)[2][i] for schedule, i in places])
published = torch.tensor([.01999998352656061, .9989975760881921, 1/9, .19398548751991643, 1/39],
                         dtype=D)
errors.append(close(variances, published, tol=1e-12))
passed('(12.8) at t = 2 and t = T', *errors, by='values of the official schedules')


# %%NBQA-CELL-SEP15d533
# Figure 12.3: means and draws of the posterior for one digit and one x_t
torch.manual_seed(0)
x0 = to_unit(mnist('test').pixels[[18]]).double()
t = from_alpha_bar(number(.2))
x_t = q_sample(x0, t, torch.randn_like(x0))
noise = torch.randn_like(x0)
shares = (.2, .25, .4, .7, .95, 1.)
fig, axes = plt.subplots(2, 6, figsize=(7, 2.8), layout='constrained', dpi=160)
for k, (share, pair) in enumerate(zip(shares, axes.T)):
    s = CLEAN if share == 1 else t if share == .2 else from_alpha_bar(number(share))
    of_x0, std = posterior(number(1.), number(0.), s, t)
    of_x_t, _ = posterior(number(0.), number(1.), s, t)
    mean, std = posterior(x0, x_t, s, t)
    for ax, picture in zip(pair, (mean, mean + std*noise)):
        ax.imshow(picture[0, 0], vmin=-2, vmax=2)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color='.8')
    end = {0: '$s = t$', 5: '$s$ clean'}.get(k, f'$\\bar\\alpha_s = {share:g}$')
    pair[0].set_title(f'{end}\n{of_x0:.2f} $x_0$ + {of_x_t:.2f} $x_t$', fontsize=8)
    pair[1].set_xlabel(f'std {std.abs():.2f}', fontsize=8)
axes[0, 0].set_ylabel('mean')
axes[1, 0].set_ylabel('sample')


# %%NBQA-CELL-SEP15d533
# Eq. 12.7: exactly, through the exported function: the mean at x_t = signal_t x0, the coefficient
# of x_t as a difference
torch.manual_seed(0)
x0, x_t = torch.randn(2, 1000, dtype=D)
s, t = random_levels()
mean, std = posterior(x0, t.signal*x0, s, t)
k = posterior(x0, x_t + 1, s, t)[0] - posterior(x0, x_t, s, t)[0]
errors = close(mean, s.signal*x0), close(k**2*t.sigma**2 + std**2, s.sigma**2)
passed('(12.7) mean and variance of the detour = one jump', *errors, by='1,000 random pairs')


# %%NBQA-CELL-SEP15d533
# Eq. 12.7: by 200,000 draws, within 5 sigma; and x_s, x_t together have the covariance of the
# forward process
torch.manual_seed(0)
N = 200_000
x0 = torch.tensor(1.3)
s, t = (from_alpha_bar(number(a)) for a in (.6, .15))
x_t = q_sample(x0, t, torch.randn(N))
mean, std = posterior(x0, x_t, s, t)
x_s = mean + std*torch.randn(N)
cov = torch.cov(torch.stack([x_s, x_t]))[0, 1]
C = t.signal/s.signal*s.sigma**2
errors = (close(x_s.mean(), s.signal*1.3, tol=5*s.sigma/N**.5),
          close(x_s.var(), s.sigma**2, tol=5*s.sigma**2*(2/N)**.5),
          close(cov, C, tol=5*((s.sigma**2*t.sigma**2 + C**2)/N)**.5))
passed('(12.7) mean, variance and covariance of draws', *errors, by='200,000 draws, 5 sigma')


# %%NBQA-CELL-SEP15d533
# The three rows; one level for each sample as for one alone; and float32
def pair(s, t):
    "Mean and standard deviation of the posterior in one tensor [12 3]."
    return torch.cat([v.expand(6, 3) for v in posterior(x0, x_t, s, t)])


torch.manual_seed(0)
x0, x_t = torch.randn(2, 6, 3, dtype=D)
s, t = (Level(torch.linspace(-6, 6, 6, dtype=D)[:, None] + d) for d in (1, 0))
void = Level(number(-math.inf))
zeros = torch.zeros(6, 3, dtype=D)
one, _ = posterior(x0[2], x_t[2], Level(s.log_snr[2]), Level(t.log_snr[2]))
narrow, _ = posterior(x0.float(), x_t.float(),
                      Level(s.log_snr.float()), Level(t.log_snr.float()))
errors = (close(pair(CLEAN, t), torch.cat([x0, zeros]), tol=0),
          close(pair(s, void), torch.cat([s.signal*x0, s.sigma.expand(6, 3)])),
          close(pair(t, t), torch.cat([x_t, zeros])),
          close(pair(s, t)[2], one),
          close(narrow, pair(s, t)[:6], tol=1e-5))
passed('s clean; t pure noise; s = t; a level for each sample', *errors[:4])


# %%NBQA-CELL-SEP15d533
#| export
def gaussian_kl(mean_p: Tensor, std_p: Tensor, mean_q: Tensor,
                std_q: Tensor) -> Tensor:  # all [b ...] or broadcasting
    "KL(p || q) of two Gaussians, element by element, in nats. Eq. 12.10."
    return (std_q/std_p).log() + (std_p**2 + (mean_p - mean_q)**2)/(2*std_q**2) - .5


def posterior_kl(x0: Tensor, x0_hat: Tensor,  # [b ...] both
                 s: Level, t: Level) -> Tensor:  # s cleaner than t
    "KL between the posteriors of x0 and its estimate, by element, in nats. Eq. 12.11."
    return .5*(s.snr - t.snr)*(x0 - x0_hat)**2


# %%NBQA-CELL-SEP15d533
# Eq. 12.10: against the integral of p (log p - log q) on a lattice, and against torch's own for
# 1,000 random pairs
p = Normal(number(.3), number(.7))
q = Normal(number(-.5), number(1.2))
y = torch.linspace(-12, 12, 20_001, dtype=D)
integrand = p.log_prob(y).exp()*(p.log_prob(y) - q.log_prob(y))
integral = integrand.sum()*(y[1] - y[0])

torch.manual_seed(0)
mp, mq = torch.randn(2, 1000, dtype=D)
sp, sq = torch.randn(2, 1000, dtype=D).exp()
theirs = kl_divergence(Normal(mp, sp), Normal(mq, sq))
errors = (close(gaussian_kl(p.mean, p.stddev, q.mean, q.stddev), integral),
          close(gaussian_kl(mp, sp, mq, sq)/theirs, 1.))
passed('(12.10) KL of two Gaussians', *errors, by='integral on a lattice, torch')


# %%NBQA-CELL-SEP15d533
# Eq. 12.11: against Eq. 12.10 with the two posteriors, at 1,000 pairs of levels; and the 999
# steps of a schedule telescope
torch.manual_seed(0)
mp, mq, x_t = torch.randn(3, 1000, dtype=D)
s, t = random_levels()
m, std = posterior(mp, x_t, s, t)
m_hat, _ = posterior(mq, x_t, s, t)
ours = posterior_kl(mp, mq, s, t)
other = gaussian_kl(m, std, m_hat, std)
errors = [close((ours - other)/(1 + other), 0.)]

truth, guess = torch.tensor([1., .5])
steps = posterior_kl(truth, guess, Level(S.log_snr[:-1]), Level(S.log_snr[1:]))
ends = posterior_kl(truth, guess, Level(S.log_snr[0]), Level(S.log_snr[-1]))
errors.append(close(steps.sum()/ends, 1.))
example = posterior_kl(truth, guess, Level(math.log(1.)), Level(math.log(.5)))
errors.append(close(example, .0625))
passed('(12.11) KL of two posteriors; 999 steps cost as much as one; the example', *errors,
       by='Eq. 12.10')


# %%NBQA-CELL-SEP15d533
# Eq. 12.5: against (12.4) for 1,000 random pairs of levels and values
torch.manual_seed(0)
s, t = random_levels()
x0, x_t = torch.randn(2, 1000, dtype=D)
mean, std = posterior(x0, x_t, s, t)

# x_s given x_t: the regression coefficient is their covariance over the variance of x_t
k = t.signal/s.signal*s.sigma**2/t.sigma**2
errors = (close(mean, s.signal*x0 + k*(x_t - t.signal*x0)),
          close(std**2, s.sigma**2 - k*t.signal/s.signal*s.sigma**2))
passed('(12.5) linear regression = (12.4)', *errors, by='1,000 random pairs')


# %%NBQA-CELL-SEP15d533
# Eq. 12.5: log of the joint density of (x_s, x_t) minus that of x_t, by torch's multivariate
# normal, against the posterior's
torch.manual_seed(0)
s, t = random_levels()
x0, x_t = torch.randn(2, 1000, dtype=D)
mean, std = posterior(x0, x_t, s, t)
C = t.signal/s.signal*s.sigma**2
means = torch.stack([s.signal*x0, t.signal*x0], 1)
covariance = torch.stack([s.sigma**2, C, C, t.sigma**2], 1).reshape(-1, 2, 2)
joint = MultivariateNormal(means, covariance)
marginal = Normal(t.signal*x0, t.sigma)
x_s = mean + std*torch.randn(1000, dtype=D)
conditional = joint.log_prob(torch.stack([x_s, x_t], 1)) - marginal.log_prob(x_t)
error = close(conditional, Normal(mean, std).log_prob(x_s), tol=1e-7)
passed('(12.5) joint density over marginal = posterior', error, by='torch')


# %%NBQA-CELL-SEP15d533
# Eq. 12.6: the product of both densities is the posterior, in mean and variance
torch.manual_seed(0)
s, t = random_levels()
x0, x_t = torch.randn(2, 1000, dtype=D)
mean, std = posterior(x0, x_t, s, t)
r = t.signal/s.signal
v = t.sigma**2 - t.signal**2/s.signal**2*s.sigma**2
m1, v1 = s.signal*x0, s.sigma**2  # from x0
m2, v2 = x_t/r, v/r**2  # from x_t
errors = (close((m1/v1 + m2/v2)/(1/v1 + 1/v2), mean, tol=1e-8),
          close(1/(1/v1 + 1/v2), std**2))
passed('(12.6) product of two Gaussians = (12.4)', *errors, by='1,000 random pairs')


# %%NBQA-CELL-SEP15d533
# Eq. 12.9: which spelling is Bayes? By brute force, at steps of the linear schedule; the
# coefficient of x_t is what a shift of x_t by 1 does
products = (1 - S.betas).cumprod(0)
zero = number(0.)
print('   t     brute force    sqrt(alpha_t)   sqrt(alpha-bar_t)')
errors = []
for k in (2, 100, 300, 500, 900):
    before, now = products[k - 2], products[k - 1]
    slope = brute(zero, zero + 1, before, now)[0] - brute(zero, zero, before, now)[0]
    right = (1 - S.betas[k - 1]).sqrt()*(1 - before)/(1 - now)
    wrong = now.sqrt()*(1 - before)/(1 - now)
    print(f'{k:4}   {slope:13.9f}  {right:13.9f}   {wrong:13.9f}')
    errors += [close(right, slope), close(wrong, before.sqrt()*right)]
passed('(12.9) the first spelling is right', *errors[::2], by='brute force')
passed('(12.9) the second is sqrt(alpha-bar_(t-1)) times the first', *errors[1::2])


# %%NBQA-CELL-SEP15d533
# The standard deviation of the state, exactly, along a whole run
def walk(S, slip):  # slip: use the second spelling
    "The state's standard deviation at t = 0 .. T, from pure noise to the data."
    V = number(1.)
    out = [V.sqrt()]
    noisy_first = [*map(Level, S.log_snr)][::-1] + [CLEAN]
    for t, s in pairwise(noisy_first):
        c = new_noise(s, t)
        k = t.signal/s.signal*s.sigma**2/t.sigma**2*(s.signal if slip else 1)
        V = (s.signal*c*t.signal + k)**2*V + s.sigma**2*c + (s.signal*c)**2*t.sigma**2
        out.append(V.sqrt())
    return torch.stack(out).flip(0)


# %%NBQA-CELL-SEP15d533
# Figure 12.4: both spellings of the coefficient, and what each does to the states of a run
left, right = row(2, 2.4)
of_x_t_right = coefficients(S)[1]
of_x_t_slip = of_x_t_right*Level(S.log_snr[:-1]).signal
bar, no_bar = r'with $\sqrt{\bar\alpha_t}$', r'with $\sqrt{\alpha_t}$'
left.plot(range(2, 1001), of_x_t_right, color=INK['data'])
left.plot(range(2, 1001), of_x_t_slip, color=INK['guidance'])
left.text(1000, .91, no_bar, va='top', ha='right')
left.text(430, .45, bar, color=INK['guidance'])
left.set(title='coefficient of $x_t$', xlabel='$t$', ylim=(0, 1.1))
right.plot(range(1001), walk(S, False), color=INK['data'])
right.plot(range(1001), walk(S, True), color=INK['guidance'])
right.text(500, .95, f'{no_bar}: stays 1', va='top', ha='center')
right.text(500, .16, f'{bar}: falls at the first step', va='bottom', ha='center',
           color=INK['guidance'])
right.annotate('', (300, .55), (700, .55), arrowprops=dict(arrowstyle='->', color='.5'))
right.text(500, .57, 'sampling', color='.5', ha='center', va='bottom')
right.set(title='standard deviation of the state', xlabel='$t$', ylim=(0, 1.1))


# %%NBQA-CELL-SEP15d533
# Eq. 12.9: with Bayes' coefficient the state keeps variance 1; with the slip it does not
bayes = walk(S, False)
slip = walk(S, True)
print(f'standard deviation of samples: {bayes[0]:.4f} and {slip[0]:.4f}')
print(f'with the slip, after the first step {slip[999]:.4f}, halfway {slip[500]:.4f}')
assert slip[1000] == 1 and abs(slip[999] - .14) < .005 and abs(slip[0] - .2) < .005
passed('(12.9) with the first spelling the variance stays 1', close(bayes, 1., tol=1e-9))


# %%NBQA-CELL-SEP15d533
x0, x_t = torch.randn(2, 6, dtype=D)
with expect_fail('the cleaner level as s', Problem):
    posterior(x0, x_t, Level(-1.), Level(1.))


# %%NBQA-CELL-SEP15d533
posterior(x0[:3], x0[:3], CLEAN, CLEAN)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1
second = ...
tenth = ...
variances = coefficients(constant(10, .2))[2]
close(variances[[0, -1]], torch.tensor([second, tenth], dtype=D), tol=.01)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2: mean(x_t, eps, s, t)
mean = ...
x = torch.randn(9, dtype=D)
e = torch.randn(9, dtype=D)
s, t = Level(number(1.)), Level(number(-2.))
want, _ = posterior((x - t.sigma*e)/t.signal, x, s, t)
close(mean(x, e, s, t), want)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: third(x0, x_t, x_u, s, t, u) -> mean, std
third = ...


def cov(a, b):
    "The covariance of the states at two levels, given x0."
    cleaner, noisier = sorted((a, b), key=lambda l: -l.log_snr)
    return noisier.signal/cleaner.signal*cleaner.sigma**2


three = [from_alpha_bar(torch.tensor(a, dtype=D)) for a in (.7, .4, .1)]
s, t, u = three
m = torch.stack([l.signal*1.3 for l in three])
C = torch.stack([cov(a, b) for a in three for b in three]).reshape(3, 3)
# x_t = -.4 and x_u = .2 pull at x_s
pull = torch.linalg.solve(C[1:, 1:], C[1:, 0])
mean, std = third(1.3, -.4, .2, s, t, u)
errors = (close(mean, m[0] + pull @ (torch.tensor([-.4, .2], dtype=D) - m[1:])),
          close(std**2, C[0, 0] - pull @ C[1:, 0]))
errors


# %%NBQA-CELL-SEP15d533
# solution 1: (12.8) with alpha-bar_t = .8^t. 1/9 is nearer to .2, .194 nearly there
second = .2*(1 - .8)/(1 - .8**2)
tenth = .2*(1 - .8**9)/(1 - .8**10)
variances = coefficients(constant(10, .2))[2]
close(variances[[0, -1]], torch.tensor([second, tenth], dtype=D), tol=.01)


# %%NBQA-CELL-SEP15d533
# solution 2: x0 brings signal_s c x_t/signal_t = c x_t/r; with (sigma_s/sigma_t)^2 r = (1 - c)/r
# the coefficient of x_t is 1/r; eps has -c sigma_t/r. For neighbours c sigma_t is
# beta_t/sqrt(1 - alpha-bar_t)
def mean(x_t, eps, s, t):
    return (x_t - new_noise(s, t)*t.sigma*eps)*s.signal/t.signal


x = torch.randn(9, dtype=D)
e = torch.randn(9, dtype=D)
s, t = Level(number(1.)), Level(number(-2.))
want, _ = posterior((x - t.sigma*e)/t.signal, x, s, t)
close(mean(x, e, s, t), want)


# %%NBQA-CELL-SEP15d533
# solution 3: x_u comes from x_t by fresh noise (11.2), so q(x_u | x_t) does not contain x_s, and
# once x_t is known x_u adds nothing
def third(x0, x_t, x_u, s, t, u):
    return posterior(x0, x_t, s, t)


def cov(a, b):
    "The covariance of the states at two levels, given x0."
    cleaner, noisier = sorted((a, b), key=lambda l: -l.log_snr)
    return noisier.signal/cleaner.signal*cleaner.sigma**2


three = [from_alpha_bar(torch.tensor(a, dtype=D)) for a in (.7, .4, .1)]
s, t, u = three
m = torch.stack([l.signal*1.3 for l in three])
C = torch.stack([cov(a, b) for a in three for b in three]).reshape(3, 3)
# x_t = -.4 and x_u = .2 pull at x_s
pull = torch.linalg.solve(C[1:, 1:], C[1:, 0])
mean, std = third(1.3, -.4, .2, s, t, u)
errors = (close(mean, m[0] + pull @ (torch.tensor([-.4, .2], dtype=D) - m[1:])),
          close(std**2, C[0, 0] - pull @ C[1:, 0]))
errors
