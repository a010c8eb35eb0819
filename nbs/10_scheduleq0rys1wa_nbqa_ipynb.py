# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.schedule


# %%NBQA-CELL-SEP7dc948
# Figure 10.1: two schedules, and one digit at eleven times of each, always with the same noise
import matplotlib.pyplot as plt
import torch
from ddpm_lit.core.check import setup
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import schedule as library  # the first pages use what later ones build
from ddpm_lit.show import INK, tile

setup()
D = torch.float64
BLUE = INK['model']
RED = INK['guidance']

torch.manual_seed(0)
digit = to_unit(mnist('test').pixels[[32]])
eps = torch.randn(1, 1, 28, 28)
fig, axes = plt.subplots(3, 1, figsize=(7, 3.9), layout='constrained', dpi=160, sharex=True,
                         gridspec_kw=dict(height_ratios=(2.2, 1, 1)))
top, *rows = axes
u = torch.linspace(0, 1, 501, dtype=D)
shown = torch.linspace(0, 1, 11, dtype=D)
for ax, name, f, colour in ((rows[0], 'cosine', library.Cosine(), BLUE),
                            (rows[1], 'linear', library.linear(), RED)):
    top.plot(u, f(u).log_snr, color=colour)
    top.plot(shown, f(shown).log_snr, '.', color=colour)
    t = f(shown).like(eps.expand(11, 1, 28, 28))
    ax.imshow(tile(t.signal*digit + t.sigma*eps, 11), extent=(-.05, 1.05, 0, 1), aspect='auto',
              interpolation='nearest')
    ax.set_ylabel(name, color=colour)
    ax.set_yticks([])
    ax.tick_params(bottom=False)
    ax.spines[:].set_visible(False)
top.axhline(0, color='.8', lw=.8, zorder=0)
top.text(1.045, .4, 'as much noise as signal', color='.5', ha='right')
top.text(.42, 2.6, 'cosine', color=BLUE)
top.text(.3, -2.2, 'linear', color=RED, ha='right')
top.set(ylabel='log SNR', xlim=(-.05, 1.05), ylim=(-14, 14))
rows[1].set(xlabel='time', xticks=[k/10 for k in range(11)])


# %%NBQA-CELL-SEP7dc948
import math
import torch

T = 1000
linear_betas = torch.linspace(1e-4, .02, T, dtype=torch.float64)           # DDPM
angle = (torch.arange(T + 1, dtype=torch.float64)/T + .008)/1.008*math.pi/2
f = angle.cos()**2
cosine_betas = (1 - f[1:]/f[:-1]).clamp(max=.999)                          # improved DDPM

# alpha_bar[t] is that of step t, and alpha_bar[0] = 1 is clean; or take cosine_betas
alpha_bar = torch.cat([torch.ones(1), (1 - linear_betas).cumprod(0)])
log_snr = (alpha_bar/(1 - alpha_bar)).log()
timesteps = range(T, 0, -20)                  # 50 of them for a sampler: 1000, 980 .. 20


def add_noise(x0, eps, t):  # pictures [b c h w], standard normal noise, steps 1 .. T [b]
    ab = alpha_bar[t.cpu()].view(-1, 1, 1, 1)  # float64 up to the square roots
    return ab.sqrt().to(x0)*x0 + (1 - ab).sqrt().to(x0)*eps


# %%NBQA-CELL-SEP7dc948
#| export
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Iterator, Protocol
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.registry import Registry
from ddpm_lit.core.level import Level, CLEAN, from_edm_sigma


# %%NBQA-CELL-SEP7dc948
#| hide
import contextlib
import io
import time
from torch.distributions import Normal, kl_divergence
from ddpm_lit.core.check import close, expect_fail, passed
from ddpm_lit.data.toy import swiss_roll


def row(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160, **kw)
    return [axes] if n == 1 else [*axes]


# %%NBQA-CELL-SEP7dc948
# The plain code against the library, for all 1,000 steps of both schedules
torch.manual_seed(0)
want = library.linear()
errors = [close(linear_betas, want.betas, tol=1e-17),
          close(cosine_betas, library.cosine().betas, tol=1e-14),
          close(log_snr[1:], want.log_snr)]
x0, eps = torch.randn(2, T, 1, 4, 4)
t = Level(want.log_snr).like(x0)
noisy = add_noise(x0, eps, torch.arange(1, T + 1))
close(noisy, t.signal*x0 + t.sigma*eps, tol=1e-5)  # in float32
assert [*timesteps] == library.grid(want, 50).step.tolist()
passed("the plain code agrees with this book's library", *errors, by='1,000 steps')


# %%NBQA-CELL-SEP7dc948
# Figure 10.1: which schedule is noisier at the same time, and the shares of signal halfway
u = torch.linspace(0, .995, 500, dtype=D)
behind = library.Cosine()(u).log_snr - library.linear()(u).log_snr
assert (behind > 0).all() and library.Cosine()(1).log_snr < library.linear()(1).log_snr
halfway = torch.stack([library.linear()(.5).alpha_bar, library.Cosine()(.5).alpha_bar])
close(halfway, torch.tensor([.08, .49]), tol=.005)
passed(f'Figure 10.1: halfway, {100*halfway[0]:.1f} and {100*halfway[1]:.1f} % are signal')


# %%NBQA-CELL-SEP7dc948
from ddpm_lit.diffusion import schedule as library

S = library.linear()         # DDPM's schedule; S.betas and S.log_snr are its tables
t = S(.5)                    # the level at half time, here of step 500
print(f'alpha-bar {t.alpha_bar:.4f}, log SNR {t.log_snr:.3f}, time {S.time(t):.3f}')

levels = library.grid(S, 50)  # 50 levels for a sampler, noisiest first, and then clean
print('timesteps', *levels.step[:3].tolist(), '..', levels.step[-1].item())

t = library.Cosine()(torch.rand(8))  # eight random levels for a batch of eight pictures


# %%NBQA-CELL-SEP7dc948
# The table of families: each state, divided by the root of signal^2 + noise^2, has the signal and
# the sigma of a `Level` of the log SNR that the table gives
u = torch.linspace(.01, .99, 99, dtype=D)
ab = library.Cosine()(u).alpha_bar
families = ((ab.sqrt(), (1 - ab).sqrt(), (ab/(1 - ab)).log()),
            (torch.ones_like(u), 80*u, -2*(80*u).log()),
            (1 - u, u, 2*((1 - u)/u).log()))
errors = []
for a, noise, lam in families:
    whole = (a**2 + noise**2).sqrt()
    errors += [close(Level(lam).signal, a/whole), close(Level(lam).sigma, noise/whole)]
passed('three families, one curve of log SNR each', *errors, by='99 times')


# %%NBQA-CELL-SEP7dc948
#| export
class Schedule(Protocol):
    "A noise schedule: time in [0, 1] to level, and back."

    def __call__(self, time) -> Level:
        ...

    def time(self, t: Level) -> Tensor:
        ...


def as_times(time) -> Tensor:  # a number or a tensor of any shape -> float64, on the CPU
    "Times for a schedule: all in [0, 1], none of them NaN."
    if isinstance(time, Tensor):
        time = time.cpu().double()  # first to the CPU: not every device has float64
    else:
        time = torch.as_tensor(time, dtype=torch.float64)
    if not ((time >= 0) & (time <= 1)).all():
        raise Problem('Time runs from 0 (clean) to 1 (noisy): give times between them.')
    return time


# %%NBQA-CELL-SEP7dc948
#| export
@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    "A discrete schedule beta_1..beta_T; log SNR is linear between steps. Eq. 10.1-10.2."
    # [T] float64, each in (0, 1): the share of the variance that each step replaces
    betas: Tensor

    def __post_init__(self):
        inside = (self.betas > 0) & (self.betas < 1)
        if self.betas.ndim != 1 or len(self) < 2 or not inside.all():
            raise Problem('A schedule is a row of two or more betas, '
                          'each between 0 and 1.')

    def __len__(self) -> int:
        return len(self.betas)  # T

    @cached_property
    def log_snr(self) -> Tensor:  # [T], falling
        log_ab = torch.log1p(-self.betas.cpu().double()).cumsum(0)
        return log_ab - torch.log(-torch.expm1(log_ab))

    def __call__(self, time) -> Level:  # any shape, in [0, 1]
        i = (as_times(time)*len(self) - 1).clamp(min=0)  # row i holds step i + 1
        lo = i.floor().long()
        hi = i.ceil().long()
        return Level(torch.lerp(self.log_snr[lo], self.log_snr[hi], i - lo))

    def time(self, t: Level) -> Tensor:  # in [1/T, 1]
        # the two steps around each level; a level beyond an end gets the time of that end
        x = -self.log_snr
        y = -t.log_snr.cpu().double().contiguous()
        hi = torch.searchsorted(x, y).clamp(1, len(self) - 1)
        lo = hi - 1
        between = ((y - x[lo])/(x[hi] - x[lo])).clamp(0, 1)
        return (hi + between)/len(self)


# %%NBQA-CELL-SEP7dc948
# Figure 10.2: linear schedules with other numbers of steps, with DDPM's betas and with scaled ones
u = torch.linspace(0, 1, 501, dtype=D)
left, right = row(2, 2.5, sharey=True)
for T, colour in ((250, 'tab:green'), (1000, 'black'), (4000, 'tab:purple')):
    left.plot(u, library.linear(T)(u).log_snr, color=colour)
    scaled = library.linear_scaled(T)
    right.plot(u, scaled(u).log_snr, color=colour, lw=1.2)
    right.plot(1/T, scaled(0).log_snr, 'o', ms=4, color=colour, clip_on=False)
    name_at = {250: 7.2, 1000: 9.4, 4000: 11.6}[T]
    right.text(1/T + .03, name_at, f'T = {T:,} begins here', color=colour, va='center')
left.text(.98, -.6, 'T = 250', color='tab:green', ha='right')
left.text(.77, -8., 'T = 1,000', ha='right')
left.text(.55, -14.6, 'T = 4,000', color='tab:purple', ha='right')
left.set(title='betas from 0.0001 to 0.02', xlabel='time', ylabel='log SNR', ylim=(-16, 13))
right.set(title='betas scaled by 1,000/T', xlabel='time')


# %%NBQA-CELL-SEP7dc948
#| export
def _row(T: int) -> int:
    "How many betas a schedule may have."
    if T < 2:
        raise Problem(f'A schedule is a row of two or more betas, not of {T}.')
    return T


def constant(T: int, beta: float) -> DiscreteSchedule:
    "The same beta at every step. Eq. 10.3."
    return DiscreteSchedule(torch.full((_row(T),), beta, dtype=torch.float64))


def linear(T: int = 1000, first: float = 1e-4, last: float = .02) -> DiscreteSchedule:
    "Betas on a straight line from `first` to `last`. Eq. 10.4 (DDPM sec. 4)."
    return DiscreteSchedule(torch.linspace(first, last, _row(T), dtype=torch.float64))


def linear_scaled(T: int) -> DiscreteSchedule:  # T > 20
    "Linear for any T, betas times 1000/T: the last level stays near. Eq. 10.5 (IDDPM)."
    return linear(T, .1/T, 20/T)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.1, 10.4: against signal and noise variance carried from step to step (Eq. 01.3), where
# nothing is subtracted from nearly itself
S = linear()
signal, noise = 1., 0.
worst = 0.
for k in range(1000):
    beta = 1e-4 + k/999*(.02 - 1e-4)
    signal = (1 - beta)*signal
    noise = (1 - beta)*noise + beta
    worst = max(worst, close(S.log_snr[k], math.log(signal/noise), tol=1e-12))
three = Level(constant(3, .2).log_snr).alpha_bar
keep = close(three, torch.tensor([.8, .64, .512], dtype=D), tol=1e-14)
passed('(10.1, 10.4) log SNR of 1,000 steps; three steps of 0.2', worst, keep,
       by='variances, step by step')


# %%NBQA-CELL-SEP7dc948
# Eq. 10.1: the obvious way, in float32 as is often seen: the relative error of 1 - alpha-bar
ab32 = (1 - S.betas.float()).cumprod(0)
error = ((1 - ab32)/Level(S.log_snr).sigma**2 - 1).abs()
print(f'relative error of 1 - alpha-bar in float32: up to {error.max():.1e}')
assert 1e-4 < error.max() < 3e-4
passed('(10.1) alpha-bar = cumprod in float64',
       close(Level(S.log_snr).alpha_bar, (1 - S.betas).cumprod(0), tol=1e-14))


# %%NBQA-CELL-SEP7dc948
# Eq. 10.2: the table at t/T, for whole and for irregular times; halfway between two points the
# mean; the inverse, in any shape
torch.manual_seed(0)
t = torch.arange(1, 1001, dtype=D)
u = torch.rand(4, 5, 1, dtype=D)*.99 + .005
means = (S.log_snr[1:] + S.log_snr[:-1])/2
third = S(10/1000 + 1/3000).log_snr
errors = (close(S(t/1000).log_snr, S.log_snr),
          close(S((t[:-1] + .5)/1000).log_snr, means),
          close(third, (2*S.log_snr[9] + S.log_snr[10])/3))
errors += (close(S.time(S(u)), u),
          close(S.time(Level(S.log_snr)), t/1000))
passed('(10.2) the table, straight lines between its steps, and back', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.2: the ends: time 0 is step 1, time 1 is step T; levels beyond an end get its time
assert S(0).log_snr == S(1/1000).log_snr == S.log_snr[0]
assert S(1).log_snr == S.log_snr[-1]
beyond = Level(torch.tensor([math.inf, 50, -50, -math.inf], dtype=D))
passed('(10.2) levels beyond an end get its time',
       close(S.time(beyond), torch.tensor([.001, .001, 1, 1], dtype=D), tol=0))


# %%NBQA-CELL-SEP7dc948
# Eq. 10.3-10.5: numbers published for these schedules: both toys, the largest and the smallest
# edm_sigma, then alpha-bar and SNR at T, alpha-bar at T = 4,000 and at T/2
lev = Level(S.log_snr)
toys = torch.stack([constant(10, .2)(1.).alpha_bar, constant(10, .05)(1.).alpha_bar])
sigmas = torch.tensor([157.40728081040757, .0100005], dtype=D)
errors = (close(toys, torch.tensor([.1073741824, .5987369392383786], dtype=D), tol=1e-14),
          close(constant(10, .2).log_snr.exp()[-1], .12029, tol=1e-5))
errors += (close(lev.edm_sigma[[-1, 0]], sigmas, tol=1e-8),
          close(S.betas[[0, -1]], torch.tensor([1e-4, .02], dtype=D), tol=0))

got = torch.stack([lev.alpha_bar[-1], lev.snr[-1], linear_scaled(4000)(1.).alpha_bar,
                   lev.alpha_bar[499]])
published = torch.tensor([4.035829765375676e-5, 4.0359926511684205e-5, 4.246652275802249e-5,
                          .07858724288177824], dtype=D)
errors += (close(got/published, 1., tol=1e-12),)
passed('(10.3-10.5) betas, edm_sigma, alpha-bar and SNR', *errors, by='published numbers')


# %%NBQA-CELL-SEP7dc948
# Eq. 10.5: the limit of many steps: log(1 - beta) becomes -beta, so that log alpha-bar_T tends
# to -10.05, with an error that falls like 1/T
error = torch.stack([linear_scaled(T)(1.).alpha_bar.log() + 10.05 for T in (10_000, 20_000)])
close(linear_scaled(1000).betas, linear().betas, tol=1e-17)
errors = close(error, 0., tol=.01), close(error[0]/error[1], 2., tol=.01)
passed('(10.5) log alpha-bar at the end tends to -10.05, the error like 1/T', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.5: what Figure 10.2 says of betas that are not scaled
left = linear(250)(1.).alpha_bar
when = linear(4000).time(S(1.))
close(left, .08, tol=.005)
close(when, .5, tol=.01)
close(linear(4000)(1.).log_snr, -40, tol=.5)
passed(f'Figure 10.2: 250 steps leave {100*left:.1f} %; 4,000 are at the end at time {when:.2f}')
assert (linear_scaled(250)(1.).log_snr - S(1.).log_snr).abs() < .3
assert linear_scaled(250)(0).log_snr < S(0).log_snr < linear_scaled(4000)(0).log_snr


# %%NBQA-CELL-SEP7dc948
# Figure 10.3: alpha-bar and beta of the linear and the cosine schedule, and cosine without offset
u = torch.linspace(0, 1, 501, dtype=D)
left, right = row(2, 2.5)
left.plot(u, library.linear()(u).alpha_bar, color=RED)
left.plot(u, library.Cosine()(u).alpha_bar, color=BLUE)
left.text(.27, .33, 'linear', color=RED, ha='right')
left.text(.55, .5, 'cosine', color=BLUE)
left.set(title=r'share of signal, $\bar\alpha$', xlabel='time')
steps = torch.arange(1, 1001)/1000
right.plot(steps, library.cosine(s=0.).betas, ':', color=BLUE)
right.plot(steps, library.linear().betas, color=RED)
right.plot(steps, library.cosine().betas, color=BLUE)
right.text(.5, .02, 'linear', color=RED, ha='center')
right.text(.7, 1.5e-3, 'cosine', color=BLUE)
right.text(.05, 1.2e-5, 'cosine with $s = 0$', color=BLUE)
right.set(title=r'share replaced in one step of 1,000, $\beta_t$', xlabel='time', yscale='log',
          ylim=(1e-6, 2))


# %%NBQA-CELL-SEP7dc948
#| export
@dataclass(frozen=True)
class Cosine:
    "The cosine schedule in continuous time. Eq. 10.6 (improved DDPM eq. 17)."
    s: float = .008  # offset that keeps the first steps from being too small
    limit: float = 20.  # log SNR stays within +-limit

    def angle(self, time):  # in radians: a quarter turn at time 1
        return (time + self.s)/(1 + self.s)*math.pi/2

    def __call__(self, time) -> Level:  # any shape, in [0, 1]
        a = self.angle(as_times(time))
        a0 = self.angle(0)
        # SNR is cos^2 a over cos^2 a0 - cos^2 a, a product of two sines
        log_snr = 2*a.cos().log() - ((a + a0).sin()*(a - a0).sin()).log()
        return Level(log_snr.clamp(-self.limit, self.limit))

    def time(self, t: Level) -> Tensor:
        a0 = self.angle(0)
        t = Level(t.log_snr.cpu().double())
        # cos a = signal cos a0, and so sin^2 a = sigma^2 + signal^2 sin^2 a0
        a = torch.atan2((t.sigma**2 + t.alpha_bar*math.sin(a0)**2).sqrt(),
                        t.signal*math.cos(a0))
        return (a/(math.pi/2)*(1 + self.s) - self.s).clamp(0, 1)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.6: from its definition by the quotient of squared cosines; its inverse; the limits at
# both ends; float32 levels
C = Cosine()
u = torch.linspace(1e-3, .9999, 500, dtype=D)
definition = (((u + .008)/1.008*math.pi/2).cos()/math.cos(.008/1.008*math.pi/2))**2
ends = C(torch.tensor([0, 1.])).log_snr
errors = (close(ends, torch.tensor([20., -20], dtype=D), tol=0),
          close(C(u).alpha_bar, definition))
close(C.time(Level(C(u).log_snr.float())), u, tol=1e-6)
passed('(10.6) alpha-bar, the ends, and back to the time', *errors, close(C.time(C(u)), u),
       by='quotient of cosines')


# %%NBQA-CELL-SEP7dc948
# Eq. 10.6: the clean end, where the quotient has lost its digits: cos^2 a0 - cos^2 a by its
# Taylor series in d = a - a0; the ends read backwards
a0 = C.angle(0)
d = C.angle(1e-6) - a0
snr = math.cos(a0 + d)**2/(math.sin(2*a0)*d + math.cos(2*a0)*d**2)
passed('(10.6) log SNR at time 1e-6', close(C(1e-6).log_snr, math.log(snr), tol=1e-9),
       by='Taylor series')

both = Level(torch.tensor([math.inf, -math.inf], dtype=D))
ends = torch.stack([Cosine(s).time(both) for s in (0., .008, .01)])
assert ((ends >= 0) & (ends <= 1)).all()
passed('(10.6) clean and pure noise are at times 0 and 1, for three offsets',
       close(ends, torch.tensor([[0., 1]]).expand(3, 2)))


# %%NBQA-CELL-SEP7dc948
#| export
def cosine(T: int = 1000, s: float = .008) -> DiscreteSchedule:
    "The published cosine table, its betas cut at .999. Eq. 10.7 (improved DDPM eq. 17)."
    times = torch.arange(_row(T) + 1, dtype=torch.float64)/T
    f = torch.cos(Cosine(s).angle(times))**2
    return DiscreteSchedule((1 - f[1:]/f[:-1]).clamp(max=.999))


# %%NBQA-CELL-SEP7dc948
# Eq. 10.7: the table is the continuous schedule at t/T, up to the cut at the last step; numbers
# published for it; alpha-bar_T from the cut
tab = cosine()
lev = Level(tab.log_snr)
steps = torch.arange(1, 1000, dtype=D)/1000
got = torch.stack([tab.betas[0], tab.betas[-1], lev.edm_sigma[-1], lev.edm_sigma[0],
                   lev.alpha_bar[499], lev.snr[-1]])
published = torch.tensor([4.128422482196914e-5, .999, 20291.1696, .0064254,
                          .4938435904406382, 2.42876691e-9], dtype=D)
errors = (close(tab.log_snr[:-1], C(steps).log_snr, tol=1e-8),
          close(got/published, 1., tol=1e-5),
          close(got[[0, 4]], published[[0, 4]], tol=1e-15),
          close(cosine(4000)(1.).alpha_bar/1.51798e-10, 1., tol=1e-5))

# the cut: cos(pi/2 - x) = sin x, then the last step's .001
cut = math.sin(math.pi/2/1008)**2/math.cos(.008/1.008*math.pi/2)**2*.001
assert [(cosine(T).betas == .999).sum() for T in (10, 1000, 4000)] == [1, 1, 1]
errors += (close(lev.alpha_bar[-1]/cut, 1.),
          close(tab.betas[-2], .75, tol=1e-5))
passed('(10.7) the table, its cut, and published numbers', *errors, by='Eq. 10.6')


# %%NBQA-CELL-SEP7dc948
# Eq. 10.7: the first beta without the offset s, by 1 - cos^2 = sin^2; what Figure 10.3 says
first = cosine(s=0.).betas[0]
passed('(10.7) without s, the first beta is 2e-6', close(first/math.sin(math.pi/2000)**2, 1., 1e-8))
assert 2e-6 < first < 3e-6 < 4e-5 < tab.betas[0] < 5e-5
late = (tab.betas > S.betas).nonzero()[0].item()/1000
assert late > .6 and (tab.betas[1:] > tab.betas[:-1]).all()
close(S(.5).alpha_bar, .08, tol=.005)
passed(f'Figure 10.3: cosine betas are below the linear ones until time {late:.2f}')


# %%NBQA-CELL-SEP7dc948
# Figure 10.4: five schedules, each as log SNR over time (dots: ten steps); and how often training
# that draws times evenly meets each level
u = torch.linspace(0, 1, 1001, dtype=D)
fig, (ax, side) = plt.subplots(1, 2, figsize=(7, 2.9), layout='constrained', dpi=160,
                               gridspec_kw=dict(width_ratios=(1.75, 1)))
ax.axhline(0, color='.85', lw=.8, zorder=0)
ten = torch.arange(1, 11, dtype=D)/10
for f, colour, marks in ((C, BLUE, False), (S, RED, False),
                         (library.one_over_t(), 'black', False),
                         (constant(10, .2), 'tab:green', True),
                         (constant(10, .05), 'tab:purple', True)):
    shown = u[u >= .1] if marks else u
    ax.plot(shown, f(shown).log_snr, color=colour, lw=1.3)
    if marks:
        ax.plot(ten, f(ten).log_snr, '.', color=colour, ms=5, clip_on=False)
ends = {'cosine': (-13.5, BLUE), 'linear': (-10.1, RED), '2015': (-6.9, 'black'),
        r'$\beta = 0.2$, ten steps': (-2.1, 'tab:green'),
        r'$\beta = 0.05$, ten steps': (.4, 'tab:purple')}
for name, (y, colour) in ends.items():
    ax.text(1.015, y, name, color=colour, va='center')
ax.text(.02, -13.4, 'mostly noise', color='.5')
ax.text(.02, 12.2, 'mostly signal', color='.5')
ax.set(xlabel='time', ylabel='log SNR', xlim=(0, 1), ylim=(-14, 14))

# the share of the time in each unit of log SNR
at = torch.linspace(-14, 14, 561, dtype=D)
for f, colour in ((C, BLUE), (S, RED)):
    density = -f.time(Level(at)).diff()/at.diff()
    side.plot(density, (at[1:] + at[:-1])/2, color=colour)
side.text(.135, 2.6, 'cosine', color=BLUE)
side.text(.075, -6.6, 'linear', color=RED)
side.set(xlabel='share of time per unit', ylim=(-14, 14), xlim=(0, .19), xticks=[0, .1])


# %%NBQA-CELL-SEP7dc948
# Eq. 10.11, 10.12: a mean over even times = an integral over levels, with the density as a
# difference quotient of the inverse; for the cosine schedule, 500,000 even times
def some_loss(lam):
    "Any function of the level."
    return torch.sigmoid(lam)*(2 + lam.sin())


lam = torch.linspace(-19.9, 19.9, 200_001, dtype=D)
time_of = 2/math.pi*(-lam/2).exp().arctan()
even = (torch.arange(500_000, dtype=D) + .5)/500_000
C0 = library.Cosine(s=0.)
p = 1/(2*math.pi*(lam/2).cosh())
by_levels = (p*some_loss(lam)).sum()*(lam[1] - lam[0])
density = -time_of.diff()/lam.diff()
errors = [close(C0.time(Level(lam)), time_of, tol=1e-12),
          close(density, (p[1:] + p[:-1])/2, tol=1e-8),
          close(some_loss(C0(even).log_snr).mean(), by_levels, tol=1e-4)]
passed('(10.11, 10.12) mean over times = integral over levels', *errors, by='500,000 even times')


# %%NBQA-CELL-SEP7dc948
# Figure 10.4: when cosine reaches the last levels of the toys (their shares of signal, put back
# into (10.6)); the linear schedule below log SNR 0; what 2015 leaves
when = torch.stack([C.time(constant(10, beta)(1.)) for beta in (.2, .05)])
share = (C.angle(when).cos()/math.cos(C.angle(0)))**2
errors = [close(share, torch.tensor([.8**10, .95**10], dtype=D))]
below = (S(torch.linspace(0, 1, 10_001)).log_snr < 0).double().mean()
close(below, .75, tol=.02)
close(library.one_over_t()(1.).alpha_bar, .001, tol=1e-5)
passed(f'Figure 10.4: {100*below:.0f} % of the linear time are below log SNR 0', *errors)


# %%NBQA-CELL-SEP7dc948
# Figure 10.5: networks trained with the cosine and with the linear schedule, 1,500 steps of 128
# points: their distance from the best prediction by level, and what they draw
import torch.nn.functional as F
from ddpm_lit.diffusion.oracle import EmpiricalDenoiser

torch.manual_seed(0)
roll_points = swiss_roll(1000, noise=0.)
best = EmpiricalDenoiser(roll_points)
sizes = (18, 64, 64, 64, 2)
waves = torch.tensor([.125, .25, .5, 1.])


def eight(x, log_snr, layers):  # x [8 b 2], log SNR [8 b 1] -> v [8 b 2]
    "Eight networks at once, four for each schedule."
    angle = log_snr*waves
    places = torch.cat([2*x, 4*x, angle], 2)
    h = torch.cat([x, places.sin(), places.cos()], 2)
    for k, (w, b) in enumerate(layers):
        h = torch.baddbmm(b, F.silu(h) if k else h, w)
    return h


def twice(v):
    "The same four for both schedules."
    return torch.cat([v, v])


layers = []
for i, o in pairwise(sizes):
    w = twice(torch.randn(4, i, o)/i**.5)
    layers.append((w.requires_grad_(), torch.zeros(8, 1, o, requires_grad=True)))
opt = torch.optim.Adam([v for layer in layers for v in layer])
for k in range(1500):
    opt.param_groups[0]['lr'] = 4e-3*(1 - k/1500)
    u = torch.rand(4*128, dtype=D)
    levels = torch.stack([library.Cosine()(u).log_snr, library.linear()(u).log_snr])
    t = Level(levels.reshape(8, 128, 1).float())
    x0 = twice(roll_points[torch.randint(1000, (4, 128))])
    eps = twice(torch.randn(4, 128, 2))
    v = eight(t.signal*x0 + t.sigma*eps, t.log_snr, layers)
    loss = (v - (t.signal*eps - t.sigma*x0)).square().mean((1, 2)).sum()  # the velocity (02)
    opt.zero_grad()
    loss.backward()
    opt.step()


@torch.no_grad()
def predict(x, t):  # x [8 b 2] -> x0
    t = Level(t.log_snr.float())
    return t.signal*x - t.sigma*eight(x, t.log_snr.expand(8, x.shape[1], 1), layers)


at_levels = torch.linspace(-10, 6, 17)
x0 = roll_points.repeat(2, 1)
eps = torch.randn(2000, 2)
excess = []
for lam in at_levels:
    t = Level(lam)
    x = t.signal*x0 + t.sigma*eps
    off = predict(x.expand(8, -1, -1), t) - best(x, Level(lam.double())).x0
    excess.append(off.square().mean((1, 2)))
excess = torch.stack(excess, 1).view(2, 4, -1)

# 20 steps of DDIM: on the grid of the schedule, and on EDM's for both
start = torch.randn(1000, 2)
drawn = {}
for name, grids in (('own', [library.grid(f, 20) for f in (library.Cosine(), library.linear())]),
                    ('EDM', [library.karras(20)]*2)):
    ends = []
    for k, g in enumerate(grids):
        x = start.expand(8, -1, -1)
        for t, s in g.pairs():
            t, s = (Level(v.log_snr.float()) for v in (t, s))
            guess = predict(x, t)
            x = s.signal*guess + s.sigma*(x - t.signal*guess)/t.sigma
        ends.append(x[4*k:4*k + 4])
    drawn[name] = torch.stack(ends)  # [2 4 1000 2]
away = {name: torch.cdist(x, roll_points).min(3).values.mean(2) for name, x in drawn.items()}

fig, (ax, *clouds) = plt.subplots(1, 3, figsize=(7, 2.4), layout='constrained', dpi=160,
                                  width_ratios=(1.5, 1, 1))
for k, (name, colour) in enumerate((('cosine', BLUE), ('linear', RED))):
    ax.plot(at_levels, excess[k].T, color=colour, lw=.7, alpha=.7)
    clouds[k].scatter(*drawn['own'][k, 0].T, s=1.2, color=colour, lw=0)
    clouds[k].set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xticks=[], yticks=[], aspect='equal',
                  title=f'drawn with {name}')
for y, name, colour in ((.95, 'cosine', BLUE), (.85, 'linear', RED)):
    ax.text(.3, y, name, color=colour, transform=ax.transAxes)
ax.set(yscale='log', xlabel='log SNR: noise left, data right',
       title='squared error beyond the best')
ax.minorticks_off()
ax.set_yticks([5e-4, 1e-3, 2e-3, 5e-3], ['0.0005', '0.001', '0.002', '0.005'])


# %%NBQA-CELL-SEP7dc948
# Figure 10.5: which network is nearer to the best prediction at which levels, in all four pairs;
# how far drawn points are from the roll: mean and standard error over four networks
ratio = excess[0]/excess[1]  # cosine over linear [4 levels]
assert (ratio[:, (at_levels >= 0) & (at_levels <= 2)] < 1).all()
assert (ratio.mean(0)[at_levels <= -4] > 1).all()
assert (ratio.mean(0)[at_levels >= 0] < 1).all()
densities = [-f.time(Level(torch.tensor([-4., 0.], dtype=D) + d)) for d in (-.1, .1)
             for f in (library.Cosine(), library.linear())]
cosine_falls, linear_falls = (densities[k + 2] - densities[k] for k in (0, 1))
assert cosine_falls[0] < linear_falls[0] and cosine_falls[1] > linear_falls[1]
for name, x in away.items():
    mean = x.mean(1)
    error = x.std(1)/2
    print(f'{name} grid: cosine {mean[0]:.3f} ± {error[0]:.3f}, linear {mean[1]:.3f} ± '
          f'{error[1]:.3f} from the roll')
    assert mean[1] - mean[0] > 3*error.norm()
middle = ratio[:, (at_levels >= 0) & (at_levels <= 2)].mean()
passed(f'Figure 10.5: at log SNR 0 to 2 cosine has {middle:.2f} of the error of linear')


# %%NBQA-CELL-SEP7dc948
# Figure 10.6: a drawing at 16 and at 64 pixels, at the same log SNR and at a shifted one
from ddpm_lit.data.captions import emoji

torch.manual_seed(0)
drawings = emoji('train', 64, 'noto')
parrot = [r.name for r in drawings.rows].index('parrot')
large = to_unit(drawings.pixels[[parrot]])
small = F.avg_pool2d(large, 4)
eps64 = torch.randn_like(large)
eps16 = torch.randn_like(small)
fig, axes = plt.subplots(3, 5, figsize=(7, 4.3), layout='constrained', dpi=160)
rows = (('16 pixels', small, eps16, 0.), ('64 pixels,\nsame log SNR', large, eps64, 0.),
        ('64 pixels,\nshifted by −2.8', large, eps64, -2*math.log(4)))
for axs, (name, x0, eps, shift) in zip(axes, rows):
    axs[0].set_ylabel(name)
    for ax, lam in zip(axs, (20., 4., 2., 0., -2.)):
        t = Level(torch.tensor(lam + shift if lam < 20 else lam))
        ax.imshow(tile(t.signal*x0 + t.sigma*eps, 1, 0), interpolation='nearest')
        ax.set(xticks=[], yticks=[])
        if x0 is small:
            ax.set_title('clean' if lam == 20 else f'log SNR {lam:.0f}'.replace('-', '−'))


# %%NBQA-CELL-SEP7dc948
# Eq. 10.13: blocks of 4 x 4 of a noisy picture at the shifted level, averaged and brought to unit
# variance again, are the small picture at the level that was not shifted
torch.manual_seed(0)
x0 = torch.full((1, 1, 1024, 1024), .8, dtype=D)  # its blocks are constant
errors = []
for lam in (2., 0., -3.):
    t = Level(torch.tensor(lam - 2*math.log(4), dtype=D))
    blocks = F.avg_pool2d(t.signal*x0 + t.sigma*torch.randn_like(x0), 4)
    snr = blocks.mean()**2/.8**2/blocks.var()
    n = blocks.numel()
    error = math.sqrt(2/n + 4/n*blocks.var()/blocks.mean()**2)
    errors.append(close(snr.log(), lam, tol=5*error))
passed('(10.13) averaging 4 x 4 pixels takes the shift back', *errors, by='65,536 blocks')


# %%NBQA-CELL-SEP7dc948
# Figure 10.7: where one pixel and one coordinate are after ten steps, and N(0, 1)
y = torch.linspace(-3.5, 3.5, 300, dtype=D)
titles = (r'digit, $\beta = 0.2$: a pixel at $-1$', r'swiss roll, $\beta = 0.05$: coordinate 1')
for ax, title, beta, x0 in zip(row(2, 2.1, sharey=True), titles, (.2, .05), (-1, 1)):
    t = library.constant(10, beta)(1.)
    ax.plot(y, Normal(0., 1.).log_prob(y).exp(), color='.6')
    ax.plot(y, Normal(t.signal*x0, t.sigma).log_prob(y).exp(), color='black')
    ax.set(title=title, xlabel='$x_T$', yticks=[], ylim=(0, .75))
    side = 1 if x0 < 0 else -1
    ax.text(side*1.35, .2, r'$\mathcal{N}(0, 1)$', color='.5', ha='left' if x0 < 0 else 'right')
    top = float(t.signal*x0)
    ax.text(top, .45 if x0 < 0 else .66, '$q(x_T\\,|\\,x_0)$', ha='center')


# %%NBQA-CELL-SEP7dc948
def zero_terminal_snr(betas):
    root = (1 - betas).cumprod(0).sqrt()
    root = root[0]*(root - root[-1])/(root[0] - root[-1])
    alpha_bar = torch.cat([torch.ones(1), root**2])
    return 1 - alpha_bar[1:]/alpha_bar[:-1]  # the last one is 1


# %%NBQA-CELL-SEP7dc948
# Eq. 10.14: on Stable Diffusion's betas: both ends, equal ratios of differences in between, and the
# first beta kept
betas = torch.linspace(.00085**.5, .012**.5, 1000, dtype=D)**2
root = (1 - betas).cumprod(0).sqrt()
new = (1 - zero_terminal_snr(betas)).cumprod(0).clamp(min=0).sqrt()
errors = [close(root[-1]**2, .0047, tol=5e-5), close(new[0], root[0]), close(new[-1], 0., tol=1e-8),
          close(new.diff()/root.diff(), new.diff()[0]/root.diff()[0], tol=1e-8)]
passed("(10.14) Stable Diffusion's schedule, ending at SNR 0", *errors[1:], by='its two ends')


# %%NBQA-CELL-SEP7dc948
# The divergence in bits at x0 = 0 and 1, by torch's formula, against the formula of notebook 12;
# the numbers of the text
def bits(S):
    t = S(1.)
    end = Normal(t.signal*torch.tensor([0., 1], dtype=D), t.sigma.expand(2))
    return kl_divergence(end, Normal(torch.zeros(2, dtype=D), 1.))/math.log(2)


digit, roll = constant(10, .2), constant(10, .05)
print('bits per coordinate      x0 = 0  x0 = 1')
errors = []
for name, f, text in (('digit', digit, .08), ('roll', roll, .66), ('linear', S, 3e-5)):
    print(f'{name:22}', *(f'{v:.2e}' for v in bits(f)))
    ab = f(1.).alpha_bar.item()
    by_hand = [(m2 + 1 - ab - 1 - math.log1p(-ab))/2/math.log(2) for m2 in (0, ab)]
    errors.append(close(bits(f), torch.tensor(by_hand, dtype=D), tol=1e-12))
    close(bits(f)[1]/text, 1., tol=.04)
passed('bits that ten and a thousand steps leave', *errors, by='the formula of 12')


# %%NBQA-CELL-SEP7dc948
# The mean pixel after ten steps, over all test digits, and that of pure noise
pixel = to_unit(mnist('test').pixels).mean()
after = digit(1.).signal*pixel
print(f'mean pixel after ten steps {after:.3f}; in pure noise 0, standard deviation {1/28:.3f}')
close(after, -.24, tol=.01)
close(-after*28, 6.75, tol=.2)
passed(f'pure noise is brighter by {-after*28:.1f} standard deviations')


# %%NBQA-CELL-SEP7dc948
# The same for the whole roll: q(x_T) is a bell around each shrunken point; half the area between
# it and N(0, I), on a lattice
def bell(sq, v):
    "The density of N(0, v I) in the plane at squared distance sq."
    return (-sq/(2*v)).exp()/(2*math.pi*v)


torch.manual_seed(0)
t = constant(10, .05)(1.)
x0 = swiss_roll(2000, noise=0.)
y = torch.linspace(-4, 4, 81)
at = torch.cartesian_prod(y, y)
distance = torch.cdist(at, t.signal.float()*x0)
q = bell(distance**2, t.sigma.float()**2).mean(1)
n = bell((at**2).sum(1), 1.)
print(f'in the wrong place: {.5*(q - n).abs().sum()*.01:.2f} of all starts')
passed('both densities sum to one', close(torch.stack([q.sum(), n.sum()])*.01, 1., tol=1e-3))


# %%NBQA-CELL-SEP7dc948
# Figure 10.8: three grids of 20 levels, in the order in which a sampler uses them
ax, = row(1, 2.7)
k = range(1, 21)
for g, colour in ((library.karras(20), 'black'), (library.grid(library.linear(), 20), RED),
                  (library.grid(library.Cosine(), 20), BLUE)):
    ax.plot(k, g.log_snr[:-1], '.-', color=colour, lw=.8, ms=6)
ax.text(17, 8.5, 'EDM', ha='right')
ax.text(13.5, -2.4, 'linear, even in time', color=RED, va='top')
ax.text(2.2, -13.5, 'cosine, even in time', color=BLUE)
ax.set(xlabel='level number, in the order of sampling', ylabel='log SNR', ylim=(-21, 14))
ax.set_xticks([1, 5, 10, 15, 20], ['1\nstart', '5', '10', '15', '20\nthen clean'])


# %%NBQA-CELL-SEP7dc948
#| export
@dataclass(frozen=True, eq=False)
class Grid:
    "The levels of a run; iterate over it or `pairs()`: (noisier t, cleaner s). Eq. 10.9."
    # [n+1] float64, rising; the last one is CLEAN in a sampler's grid
    log_snr: Tensor
    # [n] the timestep 1..T of each level before the last, where the schedule has them
    step: Tensor | None = None

    def __len__(self) -> int:
        return len(self.log_snr) - 1  # steps to take

    def __iter__(self) -> Iterator[Level]:
        return map(Level, self.log_snr)

    def __getitem__(self, i: int | slice) -> Level:  # a slice: one Level that holds several
        return Level(self.log_snr[i])

    def pairs(self) -> Iterator[tuple[Level, Level]]:
        return pairwise(self)

    def flip(self) -> 'Grid':
        "The levels from clean to noisy, for inversion; no CLEAN, where eps is undefined."
        return Grid(self.log_snr[self.log_snr.isfinite()].flip(0))


# %%NBQA-CELL-SEP7dc948
#| export
def _check_steps(n: int):
    "A `Problem` unless a run can have so many steps."
    if n < 1:
        raise Problem(f'A run needs at least one step, not {n}.')
    if n > 10**6:
        raise Problem(f'A run of {n:,} steps is too long: ask for a million at most.')


def grid(schedule: Schedule, n: int) -> Grid:
    "n levels evenly spaced in time, 1, (n-1)/n .. 1/n, and then CLEAN. Eq. 10.9."
    _check_steps(n)

    # a discrete schedule has only T levels of its own
    T = len(schedule) if isinstance(schedule, DiscreteSchedule) else None
    if T and n > T:
        raise Problem(f'This schedule has {T} steps: ask for at most as many, not {n}.')

    # even times, then clean (10.9)
    times = torch.arange(n, 0, -1, dtype=torch.float64)/n
    log_snr = torch.cat([schedule(times).log_snr, CLEAN.log_snr[None]])

    # where n divides T, every level is a step of the table
    step = (times*T).round().long() if T and T % n == 0 else None
    return Grid(log_snr, step)


def karras(n: int,
           lo: float = .002, hi: float = 80.,  # edm_sigma at the ends
           rho: float = 7.) -> Grid:
    "n levels evenly spaced in edm_sigma^(1/rho), then CLEAN. Eq. 10.10 (EDM eq. 5)."
    _check_steps(n)
    if not 0 < lo < hi:
        raise Problem('The noise falls from hi to lo, both above 0: '
                      f'{hi} and {lo} do not.')
    if not (1e-20 <= lo and hi <= 1e20 and .1 <= rho <= 1e6):
        raise Problem(f'From {hi} to {lo} with rho {rho}, numbers are lost: choose hi up '
                      'to 1e20, lo from 1e-20 and rho from .1 to a million.')

    # even in the root of order rho, then clean (10.10)
    edm_sigma = torch.linspace(hi**(1/rho), lo**(1/rho), n, dtype=torch.float64)**rho
    return Grid(torch.cat([from_edm_sigma(edm_sigma).log_snr, CLEAN.log_snr[None]]))


# %%NBQA-CELL-SEP7dc948
g = grid(S, 50)
print(len(g), 'steps, from timestep', g.step[0].item(), 'to', g.step[-1].item())
for t, s in [*g.pairs()][:2]:  # what a sampler does: from the level t to the cleaner s
    print(f'from log SNR {t.log_snr:.2f} to {s.log_snr:.2f}')


# %%NBQA-CELL-SEP7dc948
# Eq. 10.9: n = T is the table, noisy first; n that divides T picks its rows; another n lies
# between; continuous time asks the formula
g = grid(S, 1000)
g50 = grid(S, 50)
g7 = grid(S, 7)
gc = grid(C, 4)
assert g.step.tolist() == [*range(1000, 0, -1)]
assert g50.step.tolist() == [*range(1000, 0, -20)]
assert g7.step is None and gc.step is None
assert len(g50) == 50 and isinstance(g50[0], Level) and g50[-1].sigma == 0
assert g50[0] == next(iter(g50)) and (g50[:-1].log_snr == g50.log_snr[:-1]).all()
for one in (g, g50, g7, gc):
    assert one.log_snr[-1] == math.inf and (one.log_snr.diff() > 0).all()

sevenths = torch.tensor([7, 6, 5, 4, 3, 2, 1], dtype=D)/7
quarters = torch.tensor([1, .75, .5, .25])
errors = (close(g.log_snr[:-1], S.log_snr.flip(0), tol=1e-12),
          close(g50.log_snr[:-1], S.log_snr[g50.step - 1], tol=1e-12))
errors += (close(g7.log_snr[:-1], S(sevenths).log_snr),
          close(gc.log_snr[:-1], C(quarters).log_snr))
passed('(10.9) rows of the table where n divides T, else even in time', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.9: each pair is one step down, the last one to CLEAN; flipped, the grid goes up and
# leaves CLEAN out
down = [*g50.pairs()]
up = g50.flip()
assert len(down) == 50 and all(s.log_snr > t.log_snr for t, s in down)
assert down[-1][1].sigma == 0
assert len(up) == 49 and up.log_snr.isfinite().all()
passed('(10.9) pairs go from noisy to clean, and flipped the other way',
       close(torch.stack([t.log_snr for t, _ in down]).flip(0), up.log_snr, tol=0))


# %%NBQA-CELL-SEP7dc948
# Eq. 10.10: its ends; even spacing of the seventh root; rho = 1 is an even spacing, and a very
# large rho a constant ratio
def sig(n, **settings):
    "edm_sigma at each level but CLEAN."
    return torch.stack([t.edm_sigma for t, _ in karras(n, **settings).pairs()])


gaps = (sig(18)**(1/7)).diff()
geometric = sig(5, rho=1e5)
errors = (close(sig(18)[[0, -1]], torch.tensor([80, .002], dtype=D)),
          close(gaps, (.002**(1/7) - 80**(1/7))/17),
          close(sig(1), 80.))
errors += (close(sig(5, rho=1.), torch.linspace(80, .002, 5, dtype=D)),)
close(geometric[1:]/geometric[:-1], (.002/80)**.25, tol=1e-4)  # a very large rho: equal ratios
close(karras(20).log_snr[0], -8.8, tol=.05)
passed('(10.10) its ends, even in the seventh root, even in sigma for rho = 1', *errors)
assert karras(20).log_snr[-2] > max(grid(f, 20).log_snr[-2] for f in (C, S))


# %%NBQA-CELL-SEP7dc948
#| export
def one_over_t(T: int = 1000) -> DiscreteSchedule:
    "A step erases about 1/T of the data variance. Eq. 10.8 (Sohl-Dickstein 2015, 2.4.1)."
    floor = torch.full((_row(T),), 1e-6, dtype=torch.float64)  # as in the authors' code
    floor[0] += 1e-3
    denominator = torch.linspace(T, 2, T, dtype=torch.float64)
    return DiscreteSchedule(floor + (1 - floor - 1e-5)/denominator)


# %%NBQA-CELL-SEP7dc948
# Eq. 10.8: 1/(T-t+1) erases exactly 1/T a step (all steps but the last); the code's variant
# nearly so, and its published numbers
plain = Level(DiscreteSchedule(1/torch.arange(1000, 1, -1, dtype=D)).log_snr).alpha_bar
passed('(10.8) 1/(T - t + 1) erases 1/T at each step',
       close(plain, 1 - torch.arange(1, 1000, dtype=D)/1000), by='all steps but the last')

E = one_over_t(1000)
ab = Level(E.log_snr).alpha_bar
erased = -1000*ab.diff()
print(f'with the bounds of the code, variance erased per step, times T: '
      f'{1000*(1 - ab[0]):.4f} at first, then {erased.min():.4f} to {erased.max():.4f}')
passed('(10.8) after its first step the code erases nearly equal shares',
       close(erased, 1., tol=.01))
errors = (close(E.betas[[0, -1]], torch.tensor([.001999989, .4999955], dtype=D), tol=1e-12),
          close(ab[-1], 9.916122877e-4, tol=1e-13))
passed('(10.8) first and last beta, last alpha-bar', *errors, by='published numbers')


# %%NBQA-CELL-SEP7dc948
#| export
# name -> a schedule, or () -> a schedule
SCHEDULES = Registry('schedule', group='ddpm_lit.schedules')
SCHEDULES.add('cosine', Cosine)
SCHEDULES.add('linear', linear)
SCHEDULES.add('one-over-t', one_over_t)


def find_schedule(name: str) -> Schedule:
    "The schedule of that name; a `Problem` unless its levels get noisier with time."
    make = SCHEDULES.look(name)
    if make is None:
        known = ', '.join(SCHEDULES.names())
        raise Problem(f'There is no schedule "{name}" here: load the file that adds it '
                      f'with `load_plugin`, or choose one of {known}.')

    # levels at nine times, and the way back
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    try:
        is_schedule = hasattr(make, 'time') and not isinstance(make, type)
        schedule = make if is_schedule else make()
        log_snr = schedule(times).log_snr
        falls = log_snr.isfinite().all() and (log_snr.diff() < 0).all()
        error = (schedule.time(schedule(times[1:])) - times[1:]).abs().max()
    except Exception as e:
        raise Problem(f'The schedule "{name}" fails on times from 0 to 1 '
                      f'({type(e).__name__}: {e}): mend it first.') from e
    if not falls or not error < .01:
        raise Problem(f'"{name}" is not a schedule: its log SNR has to fall with '
                      'time, and its `time` to lead back.')
    return schedule


# %%NBQA-CELL-SEP7dc948
# Each name is the schedule of this page; what is no schedule is refused in a sentence
named = [(name, find_schedule(name)) for name in library.SCHEDULES.names()]
assert [name for name, _ in named] == ['cosine', 'linear', 'one-over-t']
times = torch.linspace(0, 1, 101, dtype=D)
errors = [close(S(times).log_snr, want(times).log_snr, 0)
          for (_, S), want in zip(named, (Cosine(), linear(), one_over_t()))]
passed('schedules by name', *errors, by='made by hand')


class Odd:
    "Log SNR by any function of time."

    def __init__(self, log_snr):
        self.log_snr = log_snr

    def __call__(self, time):
        return Level(self.log_snr(time))

    def time(self, t):
        return -t.log_snr


for log_snr, why in ((lambda t: t, 'its log SNR has to fall'), (lambda t: 0*t, 'has to fall'),
                     (lambda t: -t/0, 'has to fall'), (lambda t: 8 - 16*t, 'to lead back'),
                     (lambda t: 1/0, 'fails on times from 0 to 1 (ZeroDivisionError'),
                     (lambda t: 'x', 'fails on times')):
    SCHEDULES['odd'] = lambda: Odd(log_snr)
    with expect_fail(why, Problem, show=False):
        find_schedule('odd')
SCHEDULES['odd'] = lambda: Odd(lambda t: -t)
assert find_schedule('odd')(.5).log_snr == -.5
SCHEDULES['odd'] = Odd(lambda t: -t)  # itself, not what makes it
assert find_schedule('odd')(.5).log_snr == -.5
del SCHEDULES['odd']
for name in ('odd', 7):
    with expect_fail('', Problem):
        find_schedule(name)


# %%NBQA-CELL-SEP7dc948
#| volatile
# Measured: the time for the levels of a batch of 128
torch.manual_seed(0)
u = torch.rand(128)
x = torch.randn(128, 1, 28, 28)
began = time.perf_counter()
for _ in range(200):
    t = C(u).like(x)
    t = S(u).like(x)
microseconds = (time.perf_counter() - began)/400*1e6
print(f'{microseconds:.0f} microseconds for 128 levels of {t.log_snr.dtype}, '
      f'shape {tuple(t.log_snr.shape)}')


# %%NBQA-CELL-SEP7dc948
# Times and levels from a device without float64 (as Apple's GPUs are; played here by tensors
# that refuse it) are moved to the CPU first
class Narrow(Tensor):
    def cpu(self):
        return self.as_subclass(Tensor)

    def double(self):
        raise TypeError('no float64 here')


def there(v):
    return v.as_subclass(Narrow)


lam = S(u).log_snr.float()
b = S.betas.float()
errors = (close(C(there(u)).log_snr, C(u).log_snr),
          close(DiscreteSchedule(there(b)).log_snr, DiscreteSchedule(b).log_snr),
          close(S.time(Level(there(lam))), S.time(Level(lam))),
          close(C.time(Level(there(lam))), C.time(Level(lam))))
passed('times, betas and levels from a device without float64', *errors, by='the same on the CPU')


# %%NBQA-CELL-SEP7dc948
with contextlib.redirect_stdout(io.StringIO()) as said:
    for bad in (1.5, -.1, math.nan):
        with expect_fail('between them', Problem):
            S(bad)
        with expect_fail('between them', Problem):
            C(torch.tensor([.5, bad]))
    for bad in ([.1, 1.], [0., .1], [.1, math.nan], [.1]):
        with expect_fail('each between 0 and 1', Problem):
            DiscreteSchedule(torch.tensor(bad))
    with expect_fail('each between 0 and 1', Problem):
        linear_scaled(20)  # its last beta would be 1
    with expect_fail('at least one step', Problem):
        grid(C, 0)
    with expect_fail('at least one step', Problem):
        karras(0)
    with expect_fail('a million at most', Problem):
        grid(C, 10**9)
    with expect_fail('a million at most', Problem):
        karras(10**9)
    with expect_fail('at most as many', Problem):
        grid(constant(10, .2), 11)
    for lo, hi in ((0, 80.), (2., 1.)):
        with expect_fail('both above 0', Problem):
            karras(5, lo, hi)
    for T in (-2, 0, 1):
        with expect_fail('two or more betas', Problem):
            constant(T, .1)
        for make in (linear, cosine, one_over_t):
            with expect_fail('two or more betas', Problem):
                make(T)
    lost = ((1, math.inf, 7), (1e-300, 1, 7), (1, 2, 0), (1, 2, math.nan), (1, 2, 1.1e6))
    for lo, hi, rho in lost:
        with expect_fail('numbers are lost', Problem):
            karras(5, lo, hi, rho)
assert karras(5, 1., 2., 1e6).log_snr[:-1].isfinite().all()
print(*dict.fromkeys(said.getvalue().splitlines()), sep='\n')  # each sentence once


# %%NBQA-CELL-SEP7dc948
# The three answers: the signal left by every second beta; where each schedule is flattest, and the
# share of linear time below log SNR 0; the last levels of EDM's grid with rho = 1
for name, f in (('cosine', C), ('linear', S)):
    lam = f(torch.linspace(.01, 1, 1000, dtype=D)).log_snr
    fall = -lam.diff()*999/.99
    k = fall.argmin()
    print(f'{name}: flattest at log SNR {lam[k]:.1f}, slope {fall[k]:.1f} per whole time')
last_two = ', '.join(f'{float(v):.2f}' for v in karras(20, rho=1.).log_snr[-3:-1])
print(f'EDM with rho = 1 ends at log SNR {last_two}')

half = Level(torch.zeros((), dtype=D))
passed('answer 1: every second beta leaves 0.63 % of the variance',
       close(DiscreteSchedule(S.betas[1::2])(1.).alpha_bar, .0063, tol=2e-4))
close(1 - S.time(half), .75, tol=.02)
passed(f'answer 2: {100*(1 - S.time(half)):.0f} % of linear time are below log SNR 0')
passed('answer 3: rho = 1 is even in sigma', close(sig(20, rho=1.).diff(), -(80 - .002)/19))


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
n = ...
assert constant(n, .05)(1.).alpha_bar < .001 <= constant(n - 1, .05)(1.).alpha_bar


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2
without = ...
with_s = ...
zero = Level(torch.tensor(0., dtype=D))
errors = close(Cosine(s=0.).time(zero), without), close(Cosine().time(zero), with_s)
errors


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def scaled_linear(T=1000):
    ...


close(scaled_linear()(1.).alpha_bar, .00466009851, tol=1e-10)


# %%NBQA-CELL-SEP7dc948
# solution 1: .95^n < 1/1000 from n = log(1/1000)/log(.95) on, by (10.3)
n = math.ceil(math.log(1e-3)/math.log(.95))
assert constant(n, .05)(1.).alpha_bar < .001 <= constant(n - 1, .05)(1.).alpha_bar
n


# %%NBQA-CELL-SEP7dc948
# solution 2: alpha-bar is 1/2, so cos a = cos a0/sqrt(2) by (10.6); without s that is an eighth
# of a turn, half the time
a0 = .008/1.008*math.pi/2
without = .5
with_s = 1.008*math.acos(math.cos(a0)/2**.5)/(math.pi/2) - .008
zero = Level(torch.tensor(0., dtype=D))
errors = close(Cosine(s=0.).time(zero), without), close(Cosine().time(zero), with_s)
errors


# %%NBQA-CELL-SEP7dc948
# solution 3: a row of betas is all that a schedule needs
def scaled_linear(T=1000):
    return DiscreteSchedule(torch.linspace(.00085**.5, .012**.5, T, dtype=D)**2)


close(scaled_linear()(1.).alpha_bar, .00466009851, tol=1e-10)
