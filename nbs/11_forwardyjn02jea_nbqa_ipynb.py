# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.forward


# %%NBQA-CELL-SEP7dc948
#| export
from typing import Callable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.schedule import Grid


# %%NBQA-CELL-SEP7dc948
#| hide
import math
import matplotlib.pyplot as plt
from torch.distributions import Normal
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.level import CLEAN, from_alpha_bar
from ddpm_lit.data.captions import emoji
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.data.toy import swiss_roll
from ddpm_lit.diffusion import forward as library  # the first pages use what later ones build
from ddpm_lit.diffusion.schedule import constant, grid, linear
from ddpm_lit.show import INK

setup()
D = torch.float64
S = linear()  # DDPM's schedule
levels = [Level(l) for l in S.log_snr]  # of its 1,000 steps


def signs(n):
    "Data of variance 1: n numbers, each +1 or -1."
    return (torch.rand(n, dtype=D) < .5).to(D)*2 - 1


def moments(m, v, betas):
    "Mean and variance after these steps, if they are m and v before: exact, by (11.1)."
    for beta in betas:
        m = (1 - beta).sqrt()*m
        v = (1 - beta)*v + beta
    return m, v


# %%NBQA-CELL-SEP7dc948
# Figure 11.1: a drawing, noised by single steps and by one jump
def jump_and_walk(x0, stops):
    "x_t at these steps: by single steps, one path; and by a jump for each."
    x = x0
    walked = [x0]
    jumped = [x0]
    for step, beta in enumerate(S.betas.float(), 1):
        x = (1 - beta).sqrt()*x + beta.sqrt()*torch.randn_like(x)
        if step in stops:
            walked.append(x)
            ab = levels[step - 1].alpha_bar.float()
            jumped.append(ab.sqrt()*x0 + (1 - ab).sqrt()*torch.randn_like(x0))
    return walked, jumped


torch.manual_seed(0)
drawings = emoji('train', 64, 'noto')
parrot = [row.name for row in drawings.rows].index('parrot')
stops = (50, 150, 300, 500, 1000)
rows = jump_and_walk(to_unit(drawings.pixels[[parrot]]), stops)
fig, axes = plt.subplots(2, 6, figsize=(7, 2.75), layout='constrained', dpi=160)
for row, name, states in zip(axes, ('small steps', 'one jump'), rows):
    row[0].text(-.1, .5, name, rotation=90, ha='right', va='center', transform=row[0].transAxes)
    for ax, x in zip(row, states):
        ax.imshow(show.tile(x, 1, 0), interpolation='nearest')
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color='.8', linewidth=.6)
for ax, step in zip(axes[0], (0, *stops)):
    ax.set_title(f'step {step:,}')
for ax, step in zip(axes[1], (0, *stops)):
    ab = levels[step - 1].alpha_bar.item() if step else 1
    text = rf'$\bar\alpha$ = {ab:.2f}' if step < 1000 else rf'$\bar\alpha$ = {ab:.5f}'
    ax.text(.5, -.05, text, ha='center', va='top', transform=ax.transAxes)


# %%NBQA-CELL-SEP7dc948
# Figure 11.1: what is left of each picture after subtracting the signal has mean 0 and variance 1;
# 5 standard errors, 12,288 pixels
n = rows[0][0].numel()
means = []
variances = []
for states in rows:
    for step, x in zip(stops, states[1:]):
        ab = levels[step - 1].alpha_bar
        noise = (x.double() - ab.sqrt()*states[0].double())/(1 - ab).sqrt()
        means.append(close(noise.mean(), 0., tol=5/math.sqrt(n)))
        variances.append(close(noise.var(), 1., tol=5*math.sqrt(2/n)))
passed('Figure 11.1: the noise in both rows has mean 0 and the variance of (11.4)',
       *means, *variances)


# %%NBQA-CELL-SEP7dc948
import torch

betas = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)
# index t is step t; index 0 is the clean end
alpha_bar = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


def add_noise(x0, t, eps):  # pictures and noise [b c h w]; a step 0 .. 1000 for each [b]
    ab = alpha_bar[t.cpu()].view(-1, 1, 1, 1)
    return ab.sqrt().to(x0)*x0 + (1 - ab).sqrt().to(x0)*eps


# in training: x0 is a batch of pictures, and each is noised to a random step
# t = torch.randint(1, 1001, (len(x0),), device=x0.device)
# x_t = add_noise(x0, t, torch.randn_like(x0))


# %%NBQA-CELL-SEP7dc948
# The plain code against the library, for all 1,000 steps
torch.manual_seed(0)
x0, eps = torch.randn(2, 1000, 1, 2, 2, dtype=D)
t = torch.arange(1, 1001)
want = library.q_sample(x0, Level(S.log_snr).like(x0), eps)
close(add_noise(x0.float(), t, eps.float()), want, 1e-5)  # in float32
passed("the plain code agrees with this book's library", close(add_noise(x0, t, eps), want),
       close(add_noise(x0, 0*t, eps), x0, tol=0), by='all 1,000 steps')


# %%NBQA-CELL-SEP7dc948
def naive(x, betas):
    for beta in betas:
        x = (1 - beta).sqrt()*x + beta.sqrt()*torch.randn_like(x)
        yield x


# %%NBQA-CELL-SEP7dc948
# Eq. 11.1: by simulation, data of variance 1 (here +1 and -1) keep it; the error of a measured
# variance is at most sqrt(2/N), as E x^4 is at most 3 here
torch.manual_seed(0)
N = 200_000
states = naive(signs(N), constant(10, .2).betas)
errors = [close(x_t.var(), 1., tol=5*math.sqrt(2/N)) for x_t in states]
passed('(11.1) data of variance 1 keep it through ten steps', *errors, by='200,000 paths')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.2: least squares of x_3 on (x_2, x_0); coefficients are sqrt(1 - beta) and 0, within 5 of
# their standard errors
torch.manual_seed(1)
x0 = signs(200_000)
_, x2, x3, *_ = naive(x0, constant(10, .2).betas)
A = torch.stack([x2, x0], 1)
got = torch.linalg.lstsq(A, x3[:, None]).solution[:, 0]
error = (.2*torch.linalg.inv(A.T @ A).diagonal()).sqrt()
correlation = torch.corrcoef(torch.stack([x0, x3]))[0, 1]
print(f'coefficient of x_2 {got[0]:.4f} (root of 0.8: {.8**.5:.4f}), of x_0 {got[1]:.4f}, '
      f'each ± {error[0]:.4f}; correlation of x_3 and x_0 {correlation:.2f}')
assert correlation > .6
within = close((got - torch.tensor([math.sqrt(.8), 0], dtype=D))/error, 0., tol=5)
passed(f'(11.2) both coefficients are right within {within:.1f} standard errors')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.3: the density of a sum of independent variables is the convolution of their densities;
# here done by brute force
def bell(x, variance):
    return (-x**2/(2*variance)).exp()/(2*math.pi*variance)**.5


a, b = .6, .35
y = torch.linspace(-6, 6, 4001, dtype=D)
at = torch.tensor([0, .5, 1.7], dtype=D)
convolved = (bell(y, a**2)*bell(at[:, None] - y, b**2)).sum(1)*(y[1] - y[0])
error = close(convolved, bell(at, a**2 + b**2), tol=1e-12)
passed('(11.3) density of a sum of two Gaussians', error, by='convolution on a lattice')


# %%NBQA-CELL-SEP7dc948
# Figure 11.2: paths of single steps, and the distribution of the jump
torch.manual_seed(2)
shown = (100, 300, 1000)
paths = torch.stack([*naive(torch.full((4000,), 1.5), S.betas.float())])
steps = torch.arange(1, 1001)
mean = 1.5*S.log_snr.sigmoid().sqrt()
sigma = (-S.log_snr).sigmoid().sqrt()
fig, axes = plt.subplots(1, 4, figsize=(7, 2.4), layout='constrained', dpi=160, sharey=True,
                         width_ratios=(3.2, 1, 1, 1))
left = axes[0]
left.fill_between(steps, mean - 2*sigma, mean + 2*sigma, color='.9', lw=0)
left.plot(steps, paths[:, :4], color=INK['model'], lw=.6)
left.plot(steps, mean, color=INK['data'], lw=1.2)
left.text(560, 2.6, 'four paths of small steps', color=INK['model'], ha='center', va='bottom')
left.text(30, -1.6, r'black: $\sqrt{\bar\alpha_t}\,x_0$', va='center')
left.text(30, -2.3, r'grey: $\pm\,2\sqrt{1-\bar\alpha_t}$', va='center')
left.set(xlabel='step $t$', ylabel='$x_t$', ylim=(-3.2, 3.2), xlim=(0, 1000))
y = torch.linspace(-3.2, 3.2, 400, dtype=D)
for ax, step in zip(axes[1:], shown):
    ax.hist(paths[step - 1], bins=50, range=(-3.2, 3.2), density=True, orientation='horizontal',
            color=INK['model'], alpha=.35)
    ax.plot(Normal(mean[step - 1], sigma[step - 1]).log_prob(y).exp(), y, color=INK['data'], lw=1.2)
    ax.set(title=f'step {step:,}', xticks=[])


# %%NBQA-CELL-SEP7dc948
#| export
def q_sample(x0: Tensor,  # [b ...] clean data
             t: Level,  # where to jump to
             eps: Tensor,  # [b ...] noise from N(0, I)
             ) -> Tensor:  # [b ...] x_t
    "Draw from q(x_t | x0) in one jump. Eq. 11.4 (DDPM eq. 4)."
    return t.signal*x0 + t.sigma*eps


# %%NBQA-CELL-SEP7dc948
torch.manual_seed(0)
x0 = to_unit(mnist('test').pixels[:4])  # four digits, [4 1 28 28]
t = Level(S.log_snr[[0, 99, 299, 999]]).like(x0)  # steps 1, 100, 300, 1000: one for each
x_t = q_sample(x0, t, torch.randn_like(x0))
x_t.flatten(1).std(1)  # from the spread of a digit to that of the noise


# %%NBQA-CELL-SEP7dc948
# The table of three steps, and the numbers in the text below it
third = from_alpha_bar(torch.tensor(.512, dtype=D))
m, v = moments(torch.tensor(1., dtype=D), 0., constant(3, .2).betas)
errors = [close(m**2, .512), close(v, .488), close(q_sample(1., third, 0.), m),
          close(m, .716, tol=5e-4), close(v.sqrt(), .699, tol=5e-4)]
passed('three steps of 0.2: 0.512 and 0.488, roots 0.716 and 0.699', *errors[:3])


# %%NBQA-CELL-SEP7dc948
# Eq. 11.4: mean and variance carried through 1,000 single steps, against the jump, at every t
mean = torch.tensor(1., dtype=D)
var = torch.tensor(0., dtype=D)
means = []
variances = []
for beta, t in zip(S.betas, levels):
    mean, var = moments(mean, var, [beta])
    means.append(close(q_sample(1., t, 0.), mean, tol=1e-12))
    variances.append(close(q_sample(0., t, 1.)**2, var, tol=1e-12))
passed('(11.4) mean and variance of the jump', *means, *variances, by='1,000 single steps')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.4: 20,000 simulated chains of 1,000 steps from x0 = 1.5, against the jump; 5 sigma of
# mean and of variance
torch.manual_seed(0)
N = 20_000
off = []  # in standard errors
print('step   mean of the chains      jump   variance of the chains      jump')
for k, x in enumerate(naive(torch.full((N,), 1.5), S.betas.float()), 1):
    if k not in (10, 100, 300, 1000):
        continue
    t = levels[k - 1]
    m = q_sample(1.5, t, 0.)
    v = t.sigma**2
    mean_error = (v/N).sqrt()
    var_error = v*math.sqrt(2/N)
    off += [close(x.mean(), m, tol=5*mean_error)/mean_error,
            close(x.var(), v, tol=5*var_error)/var_error]
    print(f'{k:4}      {x.mean():7.4f} ± {mean_error:.4f}   {m:7.4f}      '
          f'{x.var():.5f} ± {var_error:.5f}   {v:.5f}')
passed(f'(11.4) 20,000 chains and the jump: at most {max(off):.1f} standard errors apart')


# %%NBQA-CELL-SEP7dc948
# Figure 11.3: a digit and a swiss roll, every second of ten steps
torch.manual_seed(0)
digit = to_unit(mnist('test').pixels[:1])
roll = swiss_roll(1500)
fig, axes = plt.subplots(2, 6, figsize=(7, 2.75), layout='constrained', dpi=160)
for row, x0, beta in zip(axes, (digit, roll), (.2, .05)):
    log_snr = constant(10, beta).log_snr
    for ax, k in zip(row, range(0, 11, 2)):
        t = Level(log_snr[k - 1]) if k else CLEAN
        x_t = q_sample(x0, t, torch.randn_like(x0))
        ab = f'{t.alpha_bar:.3f}' if k else '1'
        if beta == .2:
            ax.imshow(show.tile(x_t, 1, 0), interpolation='nearest')
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_title(f't = {k}')
        else:
            show.cloud(x_t, ax, size=1.5, alpha=.5)
        ax.set_xlabel(rf'$\bar\alpha$ = {ab}')


# %%NBQA-CELL-SEP7dc948
# correlation of x_10 with x0, measured, against signal std/sqrt(signal^2 std^2 + sigma^2)
torch.manual_seed(0)
x0 = swiss_roll(1500)
t = Level(constant(10, .05).log_snr[-1])
x_10 = q_sample(x0, t, torch.randn_like(x0))
std = x0[:, 0].std()
measured = torch.corrcoef(torch.stack([x0[:, 0], x_10[:, 0]]))[0, 1]
rho = t.signal*std/(t.alpha_bar*std**2 + t.sigma**2).sqrt()
error = close(measured, rho, tol=5*(1 - rho**2)/len(x0)**.5)
close(rho, .75, tol=.01)
digit_end = Level(constant(10, .2).log_snr[-1])
errors = [close(digit_end.alpha_bar, .8**10), close(t.alpha_bar, .95**10)]
close(levels[-1].alpha_bar, 4e-5, tol=5e-7)
passed(f'correlation before and after {measured:.2f}, by the formula {rho:.2f}; what ten steps '
       'leave', error, *errors)


# %%NBQA-CELL-SEP7dc948
# Figure 11.4: eight digits with the same noise at nine levels
torch.manual_seed(0)
digits = to_unit(mnist('test').pixels[:8])
eps = torch.randn(8, 1, 28, 28)
frames = []
labels = []
for log_snr in torch.linspace(6, -6, 9, dtype=D):
    t = Level(log_snr)
    frames.append(q_sample(digits, t, eps))
    number = f'{log_snr:g}'.replace('-', '−')
    labels.append(f'log SNR {number}: ᾱ = {t.alpha_bar:.3f}')
show.Slider(frames, labels, 'At which level do you stop recognising the digits? '
            'Guess, then move the slider.', 8)


# %%NBQA-CELL-SEP7dc948
# Figure 11.5: the density of x_t for two data points, and four paths
torch.manual_seed(0)
times = torch.linspace(0, 1, 201, dtype=D)
t = S(times)
y = torch.linspace(-3, 3, 241, dtype=D)[:, None]
density = sum(Normal(m*t.signal, t.sigma).log_prob(y).exp() for m in (-1, 1))/2
paths = torch.stack([*library.chain(torch.tensor([-1., -1, 1, 1]), grid(S, 200))])
fig, ax = plt.subplots(figsize=(7, 2.9), layout='constrained', dpi=160)
show.heat(density/density.amax(0), ax, extent=(0, 1, -3, 3))
ax.set(xlabel='time = step/1000', ylabel='$x_t$', ylim=(-3, 3))
ax.plot(times[1:], paths, color=INK['model'], lw=.8)
merged = S.time(Level(torch.tensor(0.)))
ax.axvline(merged, **show.style('oracle'), lw=.8)
ax.text(merged + .01, 2.9, 'log SNR = 0: the two hills merge', va='top')
ax.text(.1, -2.3, 'four paths', color=INK['model'])
ax.text(.99, -2.9, 'each column is scaled to its own maximum', ha='right', va='bottom')


# %%NBQA-CELL-SEP7dc948
# Figure 11.5: where the hills merge: the last column of the map with a valley at 0, against the
# time at which log SNR is 0
valley = density[120] < density[121]
last = times[valley][-1]
zero = S.time(Level(torch.tensor(0., dtype=D)))
print(f'a valley until time {last:.3f}; log SNR is 0 at time {zero:.4f}')
merged_at = close(last, zero, tol=.005)  # within a column
torch.manual_seed(0)
start = signs(100_000)
end = q_sample(start, Level(0.), torch.randn(100_000, dtype=D))
same = (start*end > 0).double().mean()
normal = Normal(torch.tensor(0., dtype=D), 1.).cdf(torch.tensor(1., dtype=D))
error = close(same, normal, tol=5*math.sqrt(.84*.16/100_000))
passed(f'the hills merge at log SNR 0; {same:.3f} of the paths keep their sign', merged_at, error)


# %%NBQA-CELL-SEP7dc948
# Figure 11.6: where the variance at t comes from
ab_s, ab_t = .7, .4
r2 = ab_t/ab_s
bars = (('$x_s$', (ab_s, 1 - ab_s)),
        ('$r\\,x_s$', (r2*ab_s, r2*(1 - ab_s))),
        ('$x_t$', (ab_t, r2*(1 - ab_s), 1 - r2)))
colours = ('.25', '.75', INK['model'])
names = ('data', 'noise', 'new noise')
fig, ax = plt.subplots(figsize=(7, 1.7), layout='constrained', dpi=160)
for i, (_, parts) in enumerate(bars):
    left = 0.
    for part, colour, name in zip(parts, colours, names):
        ax.barh(-i, part, .68, left, color=colour)
        name = 'old noise' if name == 'noise' and i == 2 else name
        ax.text(left + part/2, -i, f'{name} {part:.2f}', ha='center', va='center',
                color='black' if colour == '.75' else 'white')
        left += part
ax.set(yticks=[0, -1, -2], yticklabels=[name for name, _ in bars], xlim=(0, 1),
       xlabel='variance (data of variance 1)')
ax.tick_params(axis='y', length=0)
ax.spines['left'].set_visible(False)


# %%NBQA-CELL-SEP7dc948
#| export
def check_order(s: Level, t: Level):
    "Stop if s is noisier than t; not checked on a GPU, which would have to wait."
    if s.log_snr.is_cpu and t.log_snr.is_cpu and (s.log_snr < t.log_snr).any():
        raise Problem('s is noisier than t here: '
                      'give the cleaner level as s and the noisier one as t.')


def new_noise(s: Level, t: Level) -> Tensor:  # s cleaner than t
    "The share of t's noise variance that is newer than s: 1 - SNR_t/SNR_s. Eq. 11.5."
    return -torch.expm1(t.log_snr - s.log_snr)


def q_step(x_s: Tensor,  # [b ...] the state at s
           s: Level,  # any level cleaner than t
           t: Level,  # where to jump to
           eps: Tensor,  # [b ...] noise from N(0, I)
           ) -> Tensor:  # [b ...] x_t
    "Draw from q(x_t | x_s), across any number of steps. Eq. 11.6."
    check_order(s, t)
    return t.signal/s.signal*x_s + t.sigma*new_noise(s, t).sqrt()*eps


# %%NBQA-CELL-SEP7dc948
# Figure 11.6: its numbers
s, t = from_alpha_bar(.7), from_alpha_bar(.4)
v = new_noise(s, t)*t.sigma**2
errors = [close(v, 1 - .4/.7), close(v, .43, tol=.005), close(new_noise(s, t), .71, tol=.005)]
passed('Figure 11.6: new noise 0.43, a share of 0.71', errors[0], by='1 - 0.4/0.7')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.5: new noise between neighbours is beta_t, and between any two levels 1 - r^2 with
# r^2 = the product of alphas
beta = torch.stack([new_noise(s, t)*t.sigma**2 for s, t in zip(levels, levels[1:])])
far = new_noise(levels[99], levels[399])*levels[399].sigma**2
r2 = (1 - S.betas[100:400]).prod()
passed('(11.5) new noise between neighbours, and over 300 steps',
       close(beta, S.betas[1:], tol=1e-12), close(far, 1 - r2, tol=1e-12), by='product of alphas')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.6: 300 single steps by exact moments from x_100 = -.7, against one jump of 300; and by
# 5-sigma simulation
torch.manual_seed(0)
N = 200_000
m, v = moments(torch.tensor(-.7, dtype=D), 0., S.betas[100:400])
s, t = levels[99], levels[399]
jump = q_step(torch.tensor(-.7), s, t, torch.randn(N))
errors = (close(jump.mean(), m, tol=5*(v/N).sqrt()),
          close(jump.var(), v, tol=5*v*math.sqrt(2/N)))
exact = close(q_step(-.7, s, t, 0.), m, tol=1e-12)
passed('(11.6) a jump from step 100 to 400: its mean, and 200,000 draws', exact, *errors,
       by='300 single steps')


# %%NBQA-CELL-SEP7dc948
# Eq. 11.7: by the variances, which do not know it: v(s to t) = (signal_t/signal_u)^2 v(s to u)
# + v(u to t), for 1,000 random triples
def v(s, t):
    return q_step(0., s, t, 1.)**2


def old(s, t):
    return 1 - new_noise(s, t)


torch.manual_seed(0)
lam = torch.empty(3, 1000, dtype=D).uniform_(-12, 12).sort(0, descending=True).values
s, u, t = map(Level, lam)
two = (t.signal/u.signal)**2*v(s, u) + v(u, t)
passed('(11.7) two jumps are one, and shares of old noise multiply', close(v(s, t), two, tol=1e-12),
       close(old(s, t), old(s, u)*old(u, t), tol=1e-12), by='1,000 random triples')


# %%NBQA-CELL-SEP7dc948
#| export
def chain(x0: Tensor,  # [b ...] clean data
          levels: Grid,  # ends with CLEAN; walked from there upwards
          noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Iterator[Tensor]:
    "The forward process by steps: each x_t, cleanest first. Eq. 11.1, by Eq. 11.6."
    x = x0
    s, *rest = [*levels][::-1]
    for t in rest:
        x = q_step(x, s, t, noise(x))
        s = t
        yield x


# %%NBQA-CELL-SEP7dc948
# Eq. 11.1: `chain` on the grid of a schedule is the naive process in betas, given the same noise
torch.manual_seed(0)
toy = constant(10, .05)
x0 = torch.randn(5, 3, dtype=D)
torch.manual_seed(1)
a = torch.stack([*chain(x0, grid(toy, 10))])
torch.manual_seed(1)
b = torch.stack([*naive(x0, toy.betas)])
passed('(11.1) chain = naive, on the same noise', close(a, b, tol=1e-12), by='ten steps')


# %%NBQA-CELL-SEP7dc948
# the ends: clean data, no step, and pure noise; one level for all and one per sample
torch.manual_seed(0)
x0, eps = torch.randn(2, 6, 3, dtype=D)
t = Level(torch.linspace(-8, 8, 6, dtype=D)[:, None])
void = Level(torch.tensor(-math.inf, dtype=D))  # SNR 0
x_t = q_sample(x0, t, eps)
one = q_sample(x0[4], Level(t.log_snr[4]), eps[4])
errors = (close(q_sample(x0, CLEAN, eps), x0, tol=0),
          close(q_step(x0, CLEAN, t, eps), x_t),
          close(q_step(x0, t, t, eps), x0),
          close(q_sample(x0, void, eps), eps, tol=0),
          close(q_step(x0, t, void, eps), eps, tol=0),
          close(x_t[4], one))
passed('CLEAN returns the data, SNR 0 the noise; one level per sample', *errors)
for end in (CLEAN, void):
    assert q_step(x0, end, end, eps).isnan().all()


# %%NBQA-CELL-SEP7dc948
torch.manual_seed(0)
x0 = torch.zeros(100_000, dtype=D)  # so that x_s and x_t are noise only
s, t = levels[299], levels[399]
x_s = q_sample(x0, s, torch.randn_like(x0))
path = q_step(x_s, s, t, torch.randn_like(x0))
jump = q_sample(x0, t, torch.randn_like(x0))
want = (1 - new_noise(s, t)).sqrt()
states = ('steps 300 and 400 of a path', path, want), ('two jumps', jump, 0.)
for name, x_t, rho in states:
    correlation = torch.corrcoef(torch.stack([x_s, x_t]))[0, 1]
    close(x_t.var(), t.sigma**2, tol=.02)
    close(correlation, rho, tol=.02)
    print(f'{name}: variance {x_t.var():.2f}, correlation {correlation:.2f}')


# %%NBQA-CELL-SEP7dc948
# Checked: a white pixel of 255 still has a mean of 1.6 at step 1000
for white in (1., 255.):
    mean = q_sample(white, levels[-1], 0.)
    print(f'a white pixel of {white:3.0f}: mean {mean:.3f} at step 1000')
close(mean, 1.6, tol=.05)


# %%NBQA-CELL-SEP7dc948
x0 = eps = torch.zeros(3, dtype=D)
with expect_fail('the cleaner level as s', Problem):
    q_step(x0, Level(-math.inf), CLEAN, eps)
with expect_fail('the cleaner level as s', Problem):
    q_step(x0, Level(torch.zeros(3)), Level(torch.tensor([-1., -1., 1.])), eps)
print(f'c with s and t exchanged: {new_noise(levels[5], levels[4]):.3f}')


# %%NBQA-CELL-SEP7dc948
def neighbours(log_snr):
    "The share of new noise at each step of a schedule."
    return new_noise(Level(log_snr[:-1]), Level(log_snr[1:]))


worst = (neighbours(S.log_snr.float())/neighbours(S.log_snr) - 1).abs().max()
assert 1e-5 < worst < 1e-3
print(f'largest relative error of c from float32 levels: {worst:.1e}')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
twenty = ...
ten = ...
errors = (close(constant(20, .1)(1.).alpha_bar, twenty),
          close(constant(10, .2)(1.).alpha_bar, ten))
errors


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: b [1000]
b: Tensor = ...
close(b.cumsum(0).sqrt(), Level(S.log_snr).edm_sigma)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3: E x^4 / (E x^2)^2 is 3 for a Gaussian and 1.8 for a uniform variable
def uniform_chain(x, betas):
    ...


x_T = [*uniform_chain(torch.zeros(200_000), torch.full((20,), .1))][-1]
kurtosis = (x_T**4).mean()/(x_T**2).mean()**2
errors = close(x_T.var(), 1 - .9**20, tol=.02), close(kurtosis, 2.92, tol=.055)
errors


# %%NBQA-CELL-SEP7dc948
# solution 1: shares of variance multiply (11.4): .9^20 = (.81)^10 and .8^10; one big step takes
# more than the two small ones
twenty = .9**20
ten = .8**10
errors = close(constant(20, .1)(1.).alpha_bar, twenty), close(constant(10, .2)(1.).alpha_bar, ten)
errors


# %%NBQA-CELL-SEP7dc948
# solution 2: the noise has variance b_1 + .. + b_t beside untouched data, and sigma/signal is
# edm_sigma: b is what edm_sigma^2 gains
b = Level(S.log_snr).edm_sigma.square().diff(prepend=torch.zeros(1, dtype=D))
close(b.cumsum(0).sqrt(), Level(S.log_snr).edm_sigma)


# %%NBQA-CELL-SEP7dc948
# solution 3: x_T = sum of w_i u_i with w_i^2 = .1*.9^i. Of independent terms, E x^4 - 3 (E x^2)^2
# adds up, and it is -1.2 w^4 each: the ratio is 3 - 1.2 sum w^4/(sum w^2)^2 = 2.92 after 20
# steps, and 3 - 1.2 beta/(2 - beta) = 2.94 in the end: the last steps always show, smaller ones
# less
def uniform_chain(x, betas):
    for beta in betas:
        x = (1 - beta).sqrt()*x + (3*beta).sqrt()*(2*torch.rand_like(x) - 1)
        yield x


torch.manual_seed(0)
x_T = [*uniform_chain(torch.zeros(200_000), torch.full((20,), .1))][-1]
kurtosis = (x_T**4).mean()/(x_T**2).mean()**2
errors = close(x_T.var(), 1 - .9**20, tol=.02), close(kurtosis, 2.92, tol=.055)
errors
