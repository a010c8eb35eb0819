# %%NBQA-CELL-SEP7dc948
#| default_exp core.level


# %%NBQA-CELL-SEP7dc948
#| export
import math
from dataclasses import dataclass
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| hide
import matplotlib.pyplot as plt
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.data.captions import emoji
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit import show

setup()


# %%NBQA-CELL-SEP7dc948
# Figure 01.1: a drawing and a digit at eight levels, with the numbers that papers give them
torch.manual_seed(1)
lam = torch.tensor([7., 5., 3., 1., -1., -3., -5., -7.])
kept = lam.sigmoid()[:, None, None, None]  # alpha-bar
drawings = emoji('train', 64, 'noto')
fox = [row.name for row in drawings.rows].index('fox')
drawing = to_unit(drawings.pixels[[fox]])
digit = to_unit(mnist('test').pixels[:1])  # [1 1 28 28] in [-1, 1]
noisy = [kept.sqrt()*picture + (1 - kept).sqrt()*torch.randn(8, *picture.shape[1:])
         for picture in (drawing, digit)]

# the step of DDPM whose alpha-bar is nearest, on the scale of log SNR
by_step = (1 - torch.linspace(1e-4, .02, 1000, dtype=torch.float64)).cumprod(0)
step = (by_step.log() - (1 - by_step).log() - lam[:, None]).abs().argmin(1) + 1

rows = [('log SNR λ', [f'{l:.0f}'.replace('-', '−') for l in lam]),
        (r'$\bar\alpha$ (DDPM)', [f'{s:.3g}' for s in lam.sigmoid()]),
        (r'$\sigma$ (EDM)', [f'{s:.2g}' for s in (-lam/2).exp()]),
        (r'$\sigma$ (NCSN)', [f'{s:.2g}' for s in (-lam/2).exp()/2]),
        (r'$\gamma$ (VDM)', [f'{-l:.0f}'.replace('-', '−') for l in lam]),
        ('DDPM step', [f'{k}' for k in step])]
_, axes = plt.subplots(3, 1, figsize=(7, 3.1), layout='constrained', dpi=160,
                       height_ratios=(1, 1, 1))
for ax, x in zip(axes, noisy):
    ax.imshow(show.tile(x, 8), interpolation='nearest', extent=(0, 8, 0, 1), aspect='equal')
    ax.axis('off')
    ax.vlines(range(9), 0, 1, color='.8', linewidth=.6, clip_on=False)  # white ends where it ends
    ax.hlines((0, 1), 0, 8, color='.8', linewidth=.6, clip_on=False)
table = axes[2]
table.axis('off')
table.set(xlim=(0, 8), ylim=(6, 0))
for j, (name, values) in enumerate(rows):
    table.text(-.1, j, name, ha='right', va='center')
    for i, value in enumerate(values):
        table.text(i + .5, j, value, ha='center', va='center')


# %%NBQA-CELL-SEP7dc948
import torch

betas = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)  # DDPM
log_alpha_bar = torch.log1p(-betas).cumsum(0)
log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

signal = log_snr.sigmoid().sqrt().float()    # sqrt(alpha_bar)
sigma = (-log_snr).sigmoid().sqrt().float()  # sqrt(1 - alpha_bar), to all digits
edm_sigma = (-log_snr/2).exp().float()       # sigma/signal

x0 = 2*torch.rand(8, 1, 28, 28) - 1  # your pictures, in [-1, 1]
t = torch.randint(1000, (8,))        # a step for each
eps = torch.randn_like(x0)
x_t = signal[t].view(-1, 1, 1, 1)*x0 + sigma[t].view(-1, 1, 1, 1)*eps


# %%NBQA-CELL-SEP7dc948
# The plain code: signal² against DDPM's product, sigma² against 1 minus it, in float64
product = (1 - betas).cumprod(0)
errors = (close(signal**2, product, tol=1e-6),
          close(sigma**2/(1 - product), 1., tol=1e-6),
          close(x_t, product.sqrt()[t][:, None, None, None]*x0
                + (1 - product).sqrt()[t][:, None, None, None]*eps, tol=1e-5))
passed('the plain code gives the shares of DDPM', *errors, by='the product, in float64')
plain = dict(log_snr=log_snr, signal=signal, sigma=sigma, edm_sigma=edm_sigma)


# %%NBQA-CELL-SEP7dc948
# Eq. 01.1: noisy versions of one number have mean signal x0 and standard deviation sigma;
# those of coin tosses, +-1, have variance 1
N = 100_000
x0, signal, sigma = 1.5, .6, .8
eps = torch.randn(N, dtype=torch.float64)
coins = torch.randint(2, (N,))*2. - 1
x_t = signal*x0 + sigma*eps
toss = signal*coins + sigma*eps

# each statistic to within five of its standard errors
errors = (close(x_t.mean(), signal*x0, tol=5*sigma/N**.5),
          close(x_t.std(), sigma, tol=5*sigma/(2*N)**.5),
          close(toss.var(), 1., tol=5*(2/N)**.5))
passed('(01.1) mean, standard deviation, and variance one', *errors,
       by='100,000 draws, 5 standard errors')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.3: the two recursions, step by step, against the product; then two toys of ten equal
# steps, and DDPM's last value
def walk(betas):
    "Signal, and variance of the noise, after each of the steps."
    signal = torch.ones((), dtype=torch.float64)
    var = torch.zeros((), dtype=torch.float64)
    for beta in betas:
        signal = (1 - beta).sqrt()*signal
        var = (1 - beta)*var + beta
        yield signal, var


ddpm = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)
signal, var = map(torch.stack, zip(*walk(ddpm)))
alpha_bar = (1 - ddpm).cumprod(0)
for beta, last in ((.2, .1073741824), (.05, .5987369392383786)):
    ten = torch.full((10,), beta, dtype=torch.float64)
    kept, _ = [*walk(ten)][-1]
    close(kept**2, last, tol=1e-15)
close(signal[-1]**2, 4.035829765375676e-5, tol=1e-17)
errors = close(signal**2, alpha_bar, tol=1e-12), close(1 - var, signal**2, tol=1e-12)
passed('(01.3) the product, for the thousand steps of DDPM', *errors, by='step after step')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.4: Bayes by brute force, on a lumpy prior over a line of 400 values, for three c
x0 = torch.linspace(-2, 2, 400, dtype=torch.float64)
prior = (3*x0).sin()**2 + .1


def p_x0(x, signal, sigma):
    "p(x0 | x_t = x) at each of the 400 values."
    joint = prior*(-.5*((x - signal*x0)/sigma)**2).exp()
    return joint/joint.sum()


want = p_x0(.7, .6, .8)
errors = [close(p_x0(c*.7, c*.6, c*.8), want, tol=1e-14) for c in (.01, 1/.6, 50)]
passed('(01.4) a known factor changes no probability of x0', *errors, by="Bayes' rule, 400 values")


# %%NBQA-CELL-SEP7dc948
#| export
def widest(device: torch.device) -> torch.dtype:
    "The most precise floating numbers of a device: Apple's GPU has no float64."
    return torch.float32 if device.type == 'mps' else torch.float64


def append_dims(v: Tensor, x: Tensor) -> Tensor:  # [b], [b ...] -> [b 1 ... 1]
    "A number for each sample, in a shape that broadcasts over x."
    return v.reshape(-1, *[1]*(x.ndim - 1))


@dataclass(frozen=True)
class Level:
    "How noisy: the log signal-to-noise ratio, read in every spelling. Eq. 01.5-01.7."
    # [] (float64, when sampling), [b 1 ... 1] (one level a sample, when training), or
    # with all axes of x (a level for each of its parts); a plain number will do
    log_snr: Tensor

    def __post_init__(self):  # numbers become tensors; a frozen class is set so
        object.__setattr__(self, 'log_snr', _number(self.log_snr))

    @property
    def alpha_bar(self):  # the signal's share of the variance, DDPM's alpha-bar
        return self.log_snr.sigmoid()

    @property
    def signal(self):  # what multiplies x0
        return self.log_snr.sigmoid().sqrt()

    @property
    def sigma(self):  # what multiplies the noise; without 1 - alpha_bar (01.10)
        return (-self.log_snr).sigmoid().sqrt()

    @property
    def snr(self):  # alpha_bar/(1 - alpha_bar)
        return self.log_snr.exp()

    @property
    def edm_sigma(self):  # sigma/signal: the noise level of NCSN and EDM
        return (-self.log_snr/2).exp()

    def like(self, x: Tensor) -> 'Level':  # x [b ...] floating
        "The same levels, one a sample or a part of x, on its device and in its dtype."
        if not x.is_floating_point():
            raise Problem(f'Levels cannot be {x.dtype}: '
                          'turn x into floating numbers first.')
        log_snr = self.log_snr
        if log_snr.ndim != x.ndim:  # one for each sample
            log_snr = append_dims(log_snr, x)
        return Level(log_snr.to(x, non_blocking=x.is_cuda))


def _number(x) -> Tensor:  # a tensor as it is, a plain number in float64
    "What a `Level` can hold."
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


# %%NBQA-CELL-SEP7dc948
# Eq. 01.2: signal^2 + sigma^2 is 1 at every level, in float64 and in float32
lam = torch.linspace(-40, 40, 801, dtype=torch.float64)
t = Level(lam)
t32 = Level(lam.float())
errors = (close(t.signal**2 + t.sigma**2, 1., tol=1e-15),
          close(t32.signal**2 + t32.sigma**2, 1., tol=3e-7))
passed('(01.2) signal² + sigma² = 1, in float64 and in float32', *errors, by='801 levels')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.5: the log of the ratio of the two, read back; SNR is its exponential
ratio = t.signal**2/t.sigma**2
errors = close(ratio.log(), lam, tol=1e-13), close(t.snr.log(), lam, tol=1e-13)
passed('(01.5) the log of signal²/sigma² is log SNR', *errors, by='801 levels')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.6: the root p of log(p/(1 - p)) = lambda, found by bisection, is alpha_bar = signal^2
lo = torch.zeros(41, dtype=torch.float64)
hi = torch.ones(41, dtype=torch.float64)
at = torch.linspace(-10, 10, 41, dtype=torch.float64)
for _ in range(60):
    mid = (lo + hi)/2
    below = (mid/(1 - mid)).log() < at
    lo = torch.where(below, mid, lo)
    hi = torch.where(below, hi, mid)

u = Level(at)
errors = (close(u.alpha_bar, mid, tol=2e-15),
          close(u.signal**2, mid, tol=2e-15),
          close(u.sigma**2, 1 - mid, tol=2e-15))
passed('(01.6) both squares are sigmoids', *errors, by='bisection')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.7: a ratio of the two shares; at log SNR 2 log 2 the signal is twice the noise
errors = (close(Level(2*math.log(2)).edm_sigma, .5, tol=1e-15),
          close(t.edm_sigma*t.signal/t.sigma, 1., tol=1e-13))
passed("(01.7) EDM's sigma is sigma/signal", *errors, by='801 levels')


# %%NBQA-CELL-SEP7dc948
# Figure 01.2: one level in four spellings
t = Level(torch.linspace(10, -10, 201))
four = [('signal', t.signal, '0', '-', (8, 1.03)),
        ('sigma', t.sigma, 'tab:blue', '-', (-8, 1.03)),
        ('alpha_bar', t.alpha_bar, '.55', '-', (2.8, .64)),
        ('edm_sigma', t.edm_sigma, 'tab:blue', '--', (-2.2, 1.5))]
_, ax = plt.subplots(figsize=(7, 2.4), layout='constrained', dpi=160)
for name, y, colour, line, place in four:
    ax.plot(t.log_snr, y, line, color=colour)
    ax.text(*place, name, color=colour, ha='center')
ax.plot(0, .5**.5, 'o', color='black', ms=4)
ax.set(xlabel='log SNR λ: clean on the left, noise on the right', xlim=(10, -10), ylim=(0, 1.7))


# %%NBQA-CELL-SEP7dc948
#| export
def from_alpha_bar(alpha_bar: Tensor | float) -> Level:  # alpha_bar in [0, 1]
    "The level whose alpha-bar is given. Eq. 01.8."
    alpha_bar = _number(alpha_bar)
    if not ((0 <= alpha_bar) & (alpha_bar <= 1)).all():
        raise Problem('alpha_bar is a share of the variance: '
                      'give numbers between 0 and 1.')
    return Level(alpha_bar.log() - (-alpha_bar).log1p())


def from_edm_sigma(edm_sigma: Tensor | float) -> Level:  # sigma/signal, in [0, inf]
    "The level whose sigma/signal is given. Eq. 01.9."
    edm_sigma = _number(edm_sigma)
    if not (edm_sigma >= 0).all():
        raise Problem('edm_sigma is a ratio of two sizes: '
                      'give numbers that are not negative.')
    return Level(-2*edm_sigma.log())


# %%NBQA-CELL-SEP7dc948
t = from_edm_sigma(.5)  # a level of EDM
print(f'log SNR {t.log_snr:.3f}, alpha-bar {t.alpha_bar:.3f}, '
      f'signal {t.signal:.3f}, sigma {t.sigma:.3f}')


# %%NBQA-CELL-SEP7dc948
# Eq. 01.8: there and back, and DDPM's last step, whose SNR Lin et al. print
ab = torch.linspace(0, 1, 1001, dtype=torch.float64)
last = from_alpha_bar(4.035829765375676e-5)
errors = (close(from_alpha_bar(ab).alpha_bar, ab, tol=1e-15),
          close(last.snr, 4.035993e-5, tol=5e-12))
passed("(01.8) there and back, and DDPM's last step", *errors, by='Lin et al., table 1')

# the plain code at the top, against the library
library = from_alpha_bar(alpha_bar)
errors = [close(library.log_snr, plain['log_snr'], tol=1e-9),
          close(library.signal, plain['signal'].double(), tol=1e-6),
          close(library.sigma, plain['sigma'].double(), tol=1e-6),
          close(library.edm_sigma/plain['edm_sigma'], 1., tol=1e-6)]
passed('plain PyTorch = library, for the thousand steps of DDPM', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 01.9: there and back over EDM's range, and the other spelling of DDPM's last step
e = torch.logspace(-3, 3, 1001, dtype=torch.float64)
last = from_edm_sigma(157.40728081040757)
errors = (close(from_edm_sigma(e).edm_sigma/e, 1., tol=1e-14),
          close(last.alpha_bar, 4.035829765375676e-5, tol=1e-17))
passed("(01.9) there and back, and DDPM's last step", *errors, by='its alpha-bar')


# %%NBQA-CELL-SEP7dc948
# The level after ten steps with beta .2, as each of the five would write it
kept = .1073741824  # .8^10
lost = .8926258176  # 1 - kept
levels = {'2015': from_alpha_bar((1 - .2)**10),
          'NCSN': from_edm_sigma(2*(.5*(lost/kept)**.5)),
          'DDPM': from_alpha_bar(kept),
          'VDM': Level(-math.log(lost/kept)),
          'EDM': from_edm_sigma((lost/kept)**.5)}
errors = [close(t.snr, kept/lost, tol=1e-15) for t in levels.values()]
print({name: round(float(t.log_snr), 12) for name, t in levels.items()})
passed('five papers, one level: ten steps with β = 0.2', *errors, by='0.8 to the power of ten')


# %%NBQA-CELL-SEP7dc948
#| export
CLEAN = Level(_number(math.inf))  # signal 1, sigma 0


# %%NBQA-CELL-SEP7dc948
# Both ends, each spelling, in both precisions: exact, and never NaN
def spell(t):
    return torch.stack([t.alpha_bar, t.signal, t.sigma, t.snr, t.edm_sigma])


x = torch.zeros(2, 3, 4, 4)
assert CLEAN.log_snr.dtype == torch.float64
assert CLEAN.like(x).sigma.shape == (1, 1, 1, 1)
for dtype in (torch.float32, torch.float64):
    inf = CLEAN.log_snr.to(dtype)
    close(spell(Level(inf)), [1, 1, 0, math.inf, 0], tol=0)
    close(spell(Level(-inf)), [0, 0, 1, 0, math.inf], tol=0)
ends = (from_alpha_bar(torch.tensor([0., 1.])),
        from_edm_sigma(torch.tensor([math.inf, 0.])))
errors = [close(t.log_snr, [-math.inf, math.inf], tol=0) for t in ends]
passed('clean data and pure noise, in each spelling', *errors, by='the limits')


# %%NBQA-CELL-SEP7dc948
x = torch.randn(5, 3, 8, 8)                 # five pictures
t = Level(torch.linspace(-3, 3, 5)).like(x)  # a level for each
(t.signal*x).shape, t.signal.shape


# %%NBQA-CELL-SEP7dc948
# `like`: shape, dtype and device of the data; whole samples are multiplied
x = torch.randn(5, 3, 8, 8, dtype=torch.float32)
lam = torch.linspace(-3, 3, 5, dtype=torch.float64)
t = Level(lam).like(x)
assert t.log_snr.shape == (5, 1, 1, 1) and t.sigma.dtype == torch.float32
assert Level(0.).like(x[:, 0, 0]).sigma.shape == (1, 1)

one_by_one = torch.stack([Level(l).signal*sample for l, sample in zip(lam, x)])
passed('a level for each sample', close(t.signal*x, one_by_one, tol=1e-6), by='one by one')

# with all axes of the data: a level for each column, the same in all rows
columns = torch.linspace(-3, 3, 8, dtype=torch.float64)
t = Level(columns.view(1, 1, 1, 8)).like(x)
assert t.log_snr.shape == (1, 1, 1, 8) and t.sigma.dtype == torch.float32
by_column = torch.stack([Level(l).signal*x[..., k] for k, l in enumerate(columns)], -1)
passed('a level for each part', close(t.signal*x, by_column, tol=1e-6), by='part by part')


# %%NBQA-CELL-SEP7dc948
# Figure 01.3: the variance of DDPM's noise in float32, in two ways, against sixty-digit arithmetic
from decimal import Decimal, getcontext

# the variance of the noise and log SNR of each step, with sixty digits
getcontext().prec = 60
keep = Decimal(1)
true = []
for beta in ddpm.tolist():
    keep *= 1 - Decimal(beta)
    log_snr = (keep/(1 - keep)).ln()
    true.append((float(1 - keep), float(log_snr)))
noise_var, lam = torch.tensor(true, dtype=torch.float64).T

# the relative errors of the two ways in float32
by_subtraction = 1 - (1 - ddpm.float()).cumprod(0)
by_sigmoid = Level(lam.float()).sigma.double()**2
subtract = (by_subtraction.double()/noise_var - 1).abs()
from_lam = (by_sigmoid/noise_var - 1).abs()


# %%NBQA-CELL-SEP7dc948
# Figure 01.3: drawn
_, ax = plt.subplots(figsize=(7, 2.5), layout='constrained', dpi=160)
steps = range(1, 1001)
ax.plot(steps, subtract.clamp(min=1e-9), color='.6', lw=1)
ax.plot(steps, from_lam.clamp(min=1e-9), color='tab:blue', lw=1)
ax.text(6, 2e-4, '1 − alpha_bar', color='.45')
ax.text(6, 3e-9, 'sigma² from log SNR', color='tab:blue')
ax.set(xscale='log', yscale='log', xlabel='step of DDPM', ylabel='relative error',
       ylim=(1e-9, 2e-3))


# %%NBQA-CELL-SEP7dc948
# Eq. 01.10: small errors made on purpose, in float64, against the formulas
t = Level(torch.linspace(-4, 9, 131, dtype=torch.float64))
d = 1e-6

# alpha_bar off by the factor 1 + d, then log SNR off by d: the relative error of sigma^2 over d
exact = 1 - t.alpha_bar
by_ab = ((1 - t.alpha_bar*(1 + d)) - exact)/exact/d
by_lam = (Level(t.log_snr + d).sigma**2/t.sigma**2 - 1)/d
errors = close(by_ab/t.snr, -1., tol=1e-6), close(by_lam, -t.alpha_bar, tol=1e-6)
passed('(01.10) what an error of α-bar and of log SNR costs', *errors, by='errors made on purpose')


# %%NBQA-CELL-SEP7dc948
# More than six digits from log SNR at every step, by the bound in the text; fewer than four at
# the first step, if alpha_bar is subtracted from 1
assert (from_lam <= (lam.abs() + 8)*2**-24).all()
assert 1e-4 < subtract[0] < 2e-3
errors = close(from_lam, 0., tol=1e-6), close(from_alpha_bar(alpha_bar).log_snr, lam, tol=1e-11)
print(f'relative error at the first step: by subtraction {subtract[0]:.0e}')
passed('sigma² from log SNR, at every step', *errors, by='sixty digits')


# %%NBQA-CELL-SEP7dc948
with expect_fail('between 0 and 1', Problem):
    from_alpha_bar(1.5)
with expect_fail('between 0 and 1', Problem):
    from_alpha_bar(torch.tensor([.5, -.1]))
with expect_fail('between 0 and 1', Problem):
    from_alpha_bar(math.nan)
with expect_fail('not negative', Problem):
    from_edm_sigma(-1.)
with expect_fail('floating numbers', Problem):
    Level(0.).like(mnist('test').pixels[:1])


# %%NBQA-CELL-SEP7dc948
x = to_unit(mnist('test').pixels[:28])
t = Level(torch.linspace(6, -6, 28))
with expect_fail('largest error is'):
    close(t.signal*x, t.like(x).signal*x)
with expect_fail('must match'):
    t.signal*x[..., :20]


# %%NBQA-CELL-SEP7dc948
#| eval: false
rise = ...
close(Level(1. + rise).edm_sigma, Level(1.).edm_sigma/2)


# %%NBQA-CELL-SEP7dc948
#| eval: false
lam = torch.linspace(-5, 5, 11, dtype=torch.float64).requires_grad_()
t = Level(lam)
slope, = torch.autograd.grad(t.signal.sum(), lam)
close(slope, ...)


# %%NBQA-CELL-SEP7dc948
#| eval: false
def from_angle(angle):
    ...


angle = torch.logspace(-8, 0, 100, dtype=torch.float64)
close(from_angle(angle).sigma/angle.sin(), 1., tol=1e-14)


# %%NBQA-CELL-SEP7dc948
# solution 1: edm_sigma = exp(-log_snr/2) by (01.7), and exp(-rise/2) = 1/2
rise = 2*math.log(2)
close(Level(1. + rise).edm_sigma, Level(1.).edm_sigma/2)


# %%NBQA-CELL-SEP7dc948
# solution 2: log signal = log sigmoid(lambda)/2, whose derivative is sigmoid(-lambda)/2
# = sigma^2/2; and d signal = signal * d log signal
lam = torch.linspace(-5, 5, 11, dtype=torch.float64).requires_grad_()
t = Level(lam)
slope, = torch.autograd.grad(t.signal.sum(), lam)
close(slope, t.signal*t.sigma**2/2)


# %%NBQA-CELL-SEP7dc948
# solution 3: sigma/signal is the tangent, which keeps all digits of a small angle;
# 1 - cos(angle)**2 would not
def from_angle(angle):
    return from_edm_sigma(angle.tan())


angle = torch.logspace(-8, 0, 100, dtype=torch.float64)
close(from_angle(angle).sigma/angle.sin(), 1., tol=1e-14)
