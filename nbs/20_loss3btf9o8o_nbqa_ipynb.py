# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.loss


# %%NBQA-CELL-SEP7dc948
#| export
import math
from typing import Callable
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, Prediction
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.forward import new_noise, q_sample
from ddpm_lit.diffusion.posterior import gaussian_kl, posterior
from ddpm_lit.diffusion.sample import learned_range
from ddpm_lit.diffusion.schedule import Schedule


# %%NBQA-CELL-SEP7dc948
#| hide
import copy
import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch.distributions import Normal
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.denoiser import from_eps, from_v, from_x0
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import loss as library  # the first pages use what later ones build
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.posterior import posterior_kl
from ddpm_lit.diffusion.sample import Gaussian, exact, fixed_large, fixed_small, reverse
from ddpm_lit.diffusion.schedule import Cosine, constant, cosine, linear
from ddpm_lit.show import INK
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64


def figure(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160,
                             squeeze=False, **kw)
    return [*axes[0]]


def tilde(S):
    "The variance beta-tilde of DDPM's steps, from t = 2, by running products."
    ab = (1 - S.betas).cumprod(0)
    return S.betas[1:]*(1 - ab[:-1])/(1 - ab[1:])


def paper(S, var):
    "DDPM's weight of the squared error of the noise (20.6), in betas, from t = 2."
    beta = S.betas[1:]
    ab = (1 - S.betas).cumprod(0)[1:]
    return beta**2/(2*var*(1 - beta)*(1 - ab))


# %%NBQA-CELL-SEP7dc948
# Figure 20.1: a digit at five timesteps, and what an error of the noise costs there
torch.manual_seed(0)
S = linear()
steps = torch.arange(2, 1001)
bound_weight = paper(S, tilde(S))
relative = bound_weight/bound_weight.mean()

fig = plt.figure(figsize=(7, 3.), dpi=160)
ax = fig.add_axes((.08, .15, .9, .5))
ax.loglog(steps, relative, color=INK['model'], lw=1.8)
ax.axhline(1, color=INK['data'], lw=1.2)
ax.text(2.9, 40, 'variational bound', color=INK['model'])
ax.text(2.05, 1.25, '$L_\\mathrm{simple}$')
ax.set(xlim=(1.6, 1250), ylim=(.2, 130), xlabel='timestep $t$ (noise increases to the right)',
       ylabel='relative weight', xticks=[2, 5, 10, 50, 200, 1000], yticks=[1, 10, 100])
ax.set_xticklabels([2, 5, 10, 50, 200, '1,000'])
ax.set_yticklabels([1, 10, 100])
ax.minorticks_off()

digit = to_unit(mnist('test').pixels[[18]])
noise = torch.randn_like(digit)
for t in (2, 10, 50, 200, 1000):
    x_t = q_sample(digit, Level(S.log_snr[t - 1]), noise)
    across = math.log(t/1.6)/math.log(1250/1.6)
    inset = fig.add_axes((.08 + .9*across - .05, .7, .1, .233))
    inset.imshow(x_t[0, 0], vmin=-1.2, vmax=1.2)
    inset.set(xticks=[], yticks=[])
    inset.spines[:].set_visible(False)
    inset.set_title(f'$t$ = {t:,}', pad=3)
    ax.plot(t, relative[t - 2], 'o', color=INK['model'], markersize=4)


# %%NBQA-CELL-SEP7dc948
import torch

betas = torch.linspace(1e-4, .02, 1000, dtype=torch.float64)  # DDPM's schedule
alpha_bar = (1 - betas).cumprod(0)  # index t is step t + 1


def training_step(net, optimizer, x0):
    t = torch.randint(1000, (len(x0),), device=x0.device)  # a step for each picture
    eps = torch.randn_like(x0)
    ab = alpha_bar.to(x0)[t].view(-1, 1, 1, 1)
    x_t = ab.sqrt()*x0 + (1 - ab).sqrt()*eps
    loss = (eps - net(x_t, t)).square().mean()  # L_simple
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %%NBQA-CELL-SEP7dc948
# Two networks for the check of the plain code, and the same training step with the library's loss
class TinyNet(torch.nn.Module):
    "A convolution, and a factor for each timestep."

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.factor = torch.nn.Embedding(1000, 1)

    def forward(self, x_t, t):
        return self.conv(x_t)*self.factor(t)[..., None, None]


class Digits(torch.nn.Module):
    "The trained digit network as net(x_t, t)."

    def __init__(self):
        super().__init__()
        self.denoiser = load_weights('mnist')[0].given(None)
        self.scale = torch.nn.Parameter(torch.ones(()))  # something for an optimizer to change

    def forward(self, x_t, t):
        with torch.no_grad():
            eps = self.denoiser(x_t, Level(S.log_snr[t]).like(x_t)).eps
        return self.scale*eps


def library_step(net, optimizer, x0):
    "The same step with the library's loss."
    t = torch.randint(1000, (len(x0),))
    eps = torch.randn_like(x0)

    def denoiser(x, level):
        return from_eps(net(x, t), x, level)

    loss = library.l_simple(denoiser, x0, Level(S.log_snr[t]).like(x0), eps).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %%NBQA-CELL-SEP7dc948
# The plain code against the library: on a small network, the loss and the parameters after three
# steps; and the loss of a trained digit network
def both(net, x0, n):
    "Losses and final parameters of n steps, in the plain way and with the library."
    for step in (training_step, library_step):
        torch.manual_seed(1)
        trained = copy.deepcopy(net)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        losses = [step(trained, optimizer, x0) for _ in range(n)]
        yield torch.tensor(losses), torch.nn.utils.parameters_to_vector(trained.parameters())


torch.manual_seed(0)
x0 = to_unit(mnist('test').pixels[:16])
(plain_losses, plain_end), (losses, end) = both(TinyNet(), x0, 3)
passed('plain training step = library: loss and parameters', close(plain_losses, losses, 1e-5),
       close(plain_end, end, 1e-5), by='three steps of Adam')
(plain_losses, _), (losses, _) = both(Digits(), x0, 1)
passed(f'plain loss = library ({losses[0]:.3f})', close(plain_losses, losses, 1e-5),
       by='trained digit network')

# Figure 20.1: its numbers
assert 58.5 < relative[0] < 59.5 and .18 < relative[:9].sum()/relative.sum() < .19
passed('Figure 20.1: 59 times the mean at t = 2; 18 % of the weight up to t = 10')


# %%NBQA-CELL-SEP7dc948
# The example: a chain of three steps, 100,000 forward paths, and the log density of each step
S = constant(3, .3)
levels = [Level(l) for l in S.log_snr]  # the cleanest first


def half(x, t):
    "A denoiser that is wrong but simple."
    return from_x0(.5*x, x, t)


def back(x, i):
    "The distribution of x_i when the reverse chain stands at x in level i + 1."
    if i:
        return reverse(half, x, levels[i - 1], levels[i], fixed_large)
    return Gaussian(.5*x, torch.tensor(.6, dtype=D))


# 100,000 forward paths from x_0 = 0.7
torch.manual_seed(0)
xs = [torch.full((100_000, 1), .7, dtype=D)]
for b in S.betas:
    xs.append((1 - b).sqrt()*xs[-1] + b.sqrt()*torch.randn_like(xs[0]))


def up(i):
    "log q(x_i | x_{i-1}) on each path."
    b = S.betas[i - 1]
    return Normal((1 - b).sqrt()*xs[i - 1], b.sqrt()).log_prob(xs[i])


def down(i):
    "log p(x_{i-1} | x_i) on each path."
    k = back(xs[i], i - 1)
    return Normal(k.mean, k.std).log_prob(xs[i - 1])


# both joint densities of a path: log q(x_1 x_2 x_3 | x_0) and log p(x_0 x_1 x_2 x_3)
log_q = up(1) + up(2) + up(3)
log_p = Normal(0, 1).log_prob(xs[3]) + down(3) + down(2) + down(1)


# %%NBQA-CELL-SEP7dc948
# Eq. 20.1: the average of p/q over 100,000 forward paths is p(x0), known in closed form;
# the average of log q/p lies above -log p(x0)
ratio = (log_p - log_q).exp()
bound_value = (log_q - log_p).mean()

# the closed form: a step that multiplies by m and adds noise turns a variance V into m^2 V + std^2
one = torch.ones(1, 1, dtype=D)
var = 1.
for i in (2, 1, 0):
    k = back(one, i)
    var = k.mean**2*var + k.std**2
truth = Normal(0, var.sqrt()).log_prob(xs[0][:1])

assert bound_value > -truth
print(f'-log p(x0) = {-truth.item():.3f}, bound {bound_value:.3f}')
passed('(20.1) the average of p/q over forward paths is p(x0)',
       close(ratio.mean(), truth.exp().squeeze(), tol=5*ratio.std()/1e5**.5), by='closed form')


# %%NBQA-CELL-SEP7dc948
# Figure 20.2: the four terms of the bound in the example of three steps, averaged over the paths
def jump(i):
    "log q(x_i | x_0)."
    return Normal(levels[i - 1].signal*xs[0], levels[i - 1].sigma).log_prob(xs[i])


def post(i):
    "log q(x_{i-1} | x_i, x_0)."
    return Normal(*posterior(xs[0], xs[i], levels[i - 2], levels[i - 1])).log_prob(xs[i - 1])


L_3 = jump(3) - Normal(0, 1).log_prob(xs[3])
L_2 = post(3) - down(3)
L_1 = post(2) - down(2)
L_0 = -down(1)

ax = figure(1, 1.5)[0]
left = 0
shades = ('.75', '#9ecae1', '#6baed6', '#4292c6')
for i, (term, shade) in enumerate(zip((L_3, L_2, L_1, L_0), shades)):
    value = term.mean().item()
    ax.barh(0, value, left=left, color=shade, edgecolor='white')
    ax.text(left + value/2, 0, f'$L_{3 - i}$\n{value:.3f}', ha='center', va='center')
    left += value
exact_value = -truth.item()
ax.barh(1, exact_value, color=INK['data'])
ax.text(exact_value/2, 1, f'$-\\log p(x_0)$ = {exact_value:.3f}', color='white', ha='center',
        va='center')
ax.plot([exact_value]*2, [-.4, 1.4], color=INK['guidance'], lw=1)
ax.text(1.155, 0, f'bound {left:.3f}', va='center')
ax.text(exact_value + .012, .93, f'gap {left - exact_value:.3f}', color=INK['guidance'],
        va='center')
ax.spines['left'].set_visible(False)
ax.set(yticks=[], xlim=(0, 1.32), xlabel='nats')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.2: both sides on the 100,000 paths, one step up against a step down and two jumps
errors = [close(post(i) + jump(i) - jump(i - 1), up(i)) for i in (2, 3)]
passed('(20.2) a step up, turned round', *errors, by='100,000 paths')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.3: on every path the telescoped sum is the log ratio of Eq. 20.1
passed('(20.3) four terms = log q/p, on every path',
       close(L_3 + L_2 + L_1 + L_0, log_q - log_p), by='100,000 paths')

# Eq. 20.3: averaged over the paths, the ratios are KL divergences of Gaussians
errors = []
t = levels[2]
kl = gaussian_kl(t.signal*.7, t.sigma, torch.zeros((), dtype=D), torch.ones((), dtype=D))
errors.append(close(L_3.mean(), kl, 5*L_3.std()/1e5**.5))
for i, ratio in ((3, L_2), (2, L_1)):
    k = back(xs[i], i - 1)
    mean, std = posterior(xs[0], xs[i], levels[i - 2], levels[i - 1])
    gap_ = ratio - gaussian_kl(mean, std, k.mean, k.std)
    errors.append(close(gap_.mean(), 0., 5*gap_.std()/1e5**.5))
passed('(20.3) averages of log ratios = KL divergences', *errors, by='5 standard errors')


# %%NBQA-CELL-SEP7dc948
#| export
def prior_nats(x0: Tensor,   # [b ...] clean data
               t: Level,     # the noisiest level
               ) -> Tensor:  # [b ...], in nats
    "L_T: KL from q(x_T | x_0) to p(x_T) = N(0, I). Eq. 20.4."
    return .5*(t.alpha_bar*(x0**2 - 1) - 2*t.sigma.log())


# %%NBQA-CELL-SEP7dc948
# Eq. 20.4: against the KL of 12.10; linear: about 1e-5 bits (DDPM sec. 4);
# ten steps of a lecture (Sources): digit .0045 and .082, roll .227 and .659
def bits(x0, t):
    return prior_nats(torch.tensor(x0, dtype=D), t)/math.log(2)


torch.manual_seed(0)
t = Level(torch.linspace(-9, 9, 41, dtype=D))
x0 = torch.randn(41, dtype=D)
want = gaussian_kl(t.signal*x0, t.sigma, 0*x0, 1 + 0*x0)
passed('(20.4) L_T', close(prior_nats(x0, t), want), by='KL of two Gaussians, Eq. 12.10')

schedules = linear(), constant(10, .2), constant(10, .05)
ddpm, digit, roll = [Level(s.log_snr[-1]) for s in schedules]
names = 'linear, x0^2 = .325', 'digits, x0 = 0', 'roll, x0 = 0', 'digits, x0 = 1', 'roll, x0 = 1'
shown = (.325**.5, ddpm), (0., digit), (0., roll), (1., digit), (1., roll)
for name, case in zip(names, shown):
    print(f'{name:20s} {bits(*case).item():.3g} bits')
errors = (close(bits(0., digit), .00448, 5e-6), close(bits(1., digit), .0819, 5e-5),
          close(bits(0., roll), .2268, 5e-5))
assert 9e-6 < bits(*shown[0]) < 1e-5 and .6585 < bits(1., roll) < .6595
passed('(20.4) bits of the short schedules', *errors, by='known values')


# %%NBQA-CELL-SEP7dc948
# Figure 20.3: the posterior and the model's step, if the predicted noise is off by 1
S = linear()
u = torch.linspace(-4, 4, 400, dtype=D)
for ax, step in zip(figure(3, 1.9, sharey=True), (2, 20, 500)):
    s, t = Level(S.log_snr[step - 2]), Level(S.log_snr[step - 1])
    x0 = torch.zeros((), dtype=D)
    x_t = t.sigma.clone()  # the noise is 1, its prediction 0
    true_mean, std = posterior(x0, x_t, s, t)
    mean, _ = posterior(from_eps(x0, x_t, t).x0, x_t, s, t)
    away = ((mean - true_mean)/std).item()
    cost = gaussian_kl(true_mean, std, mean, std).item()
    ax.fill_between(u, Normal(0, 1).log_prob(u).exp(), color='.75', lw=0)
    ax.plot(u, Normal(away, 1).log_prob(u).exp(), color=INK['model'], lw=1.8)
    ax.set(title=f'$t = {step}$: {cost:.4f} nats', yticks=[], ylim=(0, .5), xlim=(-4, 4),
           xlabel='$x_{t-1}$, in standard deviations')
    if step == 2:
        ax.text(-1.1, .33, 'posterior', color='.45', ha='right')
        ax.text(2.1, .33, 'model', color=INK['model'])
    ax.spines['left'].set_visible(False)


# %%NBQA-CELL-SEP7dc948
#| export
def bound_term(p: Prediction,  # what the denoiser predicts from x_t
               x0: Tensor,     # [b ...] clean data
               x_t: Tensor,    # [b ...] the noisy data
               s: Level,       # where the step goes
               t: Level,       # where it comes from
               variance=learned_range) -> Tensor:  # [b], nats per dimension
    "L_{t-1}: KL from the true posterior to the model's step. Eq. 20.5 (DDPM eq. 5)."
    # the true posterior q(x_s | x_t, x_0)
    true_mean, true_std = posterior(x0, x_t, s, t)

    # the model's step p(x_s | x_t): the posterior given the predicted x_0
    mean, _ = posterior(p.x0, x_t, s, t)
    std = variance(p, x_t, s, t)
    return gaussian_kl(true_mean, true_std, mean, std).flatten(1).mean(1)


# %%NBQA-CELL-SEP7dc948
# Eq. 20.5: with matching variances it is 12.11, with others the KL of torch.distributions,
# averaged over dimensions
torch.manual_seed(0)
s = Level(torch.tensor(1.5, dtype=D))
t = Level(torch.tensor(.3, dtype=D))
x0, x_t = torch.randn(2, 7, 3, dtype=D)
p = from_x0(torch.randn(7, 3, dtype=D), x_t, t)


def step(x0, std):
    return Normal(posterior(x0, x_t, s, t)[0], std)


small_std = fixed_small(p, x_t, s, t)
large_std = fixed_large(p, x_t, s, t)
kl = torch.distributions.kl_divergence(step(x0, small_std), step(p.x0, large_std))
errors = (close(bound_term(p, x0, x_t, s, t, fixed_small), posterior_kl(x0, p.x0, s, t).mean(1)),
          close(bound_term(p, x0, x_t, s, t, fixed_large), kl.mean(1)))
passed('(20.5) L_(t-1), with equal and with unequal variances', *errors, by='Eq. 12.11, torch')


# %%NBQA-CELL-SEP7dc948
# How much L_(t-1) rises when the predicted noise is off by 1, at every step of a schedule
def rise(S, variance):  # [T-1]
    s, t = Level(S.log_snr[:-1, None]), Level(S.log_snr[1:, None])
    x0, eps = torch.randn(2, len(S) - 1, 1, dtype=D)
    x_t = q_sample(x0, t, eps)

    def term(guess):
        return bound_term(from_eps(guess, x_t, t), x0, x_t, s, t, variance)

    return term(eps + 1) - term(eps)


# %%NBQA-CELL-SEP7dc948
# Eq. 20.6: how much L_{t-1} rises when eps is off by 1, against DDPM's weight in betas,
# and its values at t = 2 and T
torch.manual_seed(0)
cases = (('linear', linear(), fixed_large, (.2726920843, .0102044935)),
         ('linear', linear(), fixed_small, (.5996715, .0102045019)),
         ('cosine', cosine(), fixed_large, (.26390833, 499.5)),
         ('cosine', cosine(), fixed_small, (.5588561, 499.5012)))
errors = []
print('schedule  variance     weight at t = 2   at t = T')
for name, S, variance, ends in cases:
    weight = rise(S, variance)
    close(weight[[0, -1]]/torch.tensor(ends, dtype=D), 1., 1e-6)
    var = S.betas[1:] if variance is fixed_large else tilde(S)
    errors.append(close(weight/paper(S, var), 1., 1e-8))
    print(f'{name:9s} {variance.__name__:12s} {weight[0]:15.4f} {weight[-1]:10.4f}')
passed('(20.6) the weight of a squared error of the noise', *errors, by="DDPM's form in betas")

# the words under Eq. 20.6: two forms of the weight, and how the variances differ
S = linear()
snr = S.log_snr.exp()
c = 1 - snr[1:]/snr[:-1]
errors = (close(paper(S, tilde(S)), .5*(snr[:-1]/snr[1:] - 1)),
          close(paper(S, S.betas[1:]), c/(2*(1 - S.betas[1:]))))
passed('(20.6) as a ratio of SNRs, and as c/2 alpha', *errors, by='linear schedule')
factor = tilde(S)/S.betas[1:]
assert factor[0] < .5 and factor[98:].min() > .98

# Figure 20.3: the costs at t = 2 and 500
ratio = paper(S, tilde(S))[0]/paper(S, tilde(S))[498]
assert 105 < ratio < 112
passed(f'an error of the noise costs {ratio:.0f} times more at t = 2 than at t = 500')


# %%NBQA-CELL-SEP7dc948
# Figure 20.4: the probability of a byte under the Gaussian of the last step
u = torch.linspace(-12, 12, 600, dtype=D)
shown_nats = []  # the L_0 above each panel
cases = ((127, 129.2, 2.5, (121, 138)), (255, 252.6, 2.5, (243, 262)))
for ax, (byte, middle, std, ends) in zip(figure(2, 1.9, sharey=True), cases):
    y = u + middle
    normal = Normal(torch.tensor(middle, dtype=D), torch.tensor(std, dtype=D))
    density_ = normal.log_prob(y).exp()
    ax.plot(y, density_, color=INK['model'], lw=1.8)
    inside = y > byte - .5 if byte == 255 else (y > byte - .5) & (y < byte + .5)
    ax.fill_between(y, density_, where=inside, color=INK['guidance'], alpha=.6, lw=0)
    for edge in range(math.ceil(ends[0]), min(math.ceil(ends[1]) + 1, 256)):
        ax.axvline(edge - .5, color='.85', lw=.6, zorder=0)
    edges = torch.tensor([byte - .5, byte + .5 if byte < 255 else math.inf], dtype=D)
    mass = normal.cdf(edges).diff().item()
    shown_nats.append(-math.log(mass))
    marks = range(round(ends[0]), round(ends[1]), 3)
    ax.set(xlim=ends, yticks=[], ylim=(0, .18), xlabel='byte', xticks=marks,
           title=f'$x_0$ is byte {byte}: probability {mass:.2f}, $L_0$ = {shown_nats[-1]:.2f}')
    ax.spines['left'].set_visible(False)


# %%NBQA-CELL-SEP7dc948
#| export
def decoder_nats(x0: Tensor,    # [b ...] pictures in [-1, 1], in 256 steps
                 mean: Tensor,  # [b ...]
                 std: Tensor,   # anything that broadcasts
                 log_cdf=torch.special.log_ndtr,  # log of Phi, or of what stands for it
                 ) -> Tensor:   # [b ...], in nats
    "L_0: -log of a Gaussian's mass in the pixel's bin. Eq. 20.7 (DDPM eq. 13)."
    # both edges of the bin, in standard deviations; the outer bins reach to infinity
    hi = torch.where(x0 > .999, math.inf, (x0 - mean + 1/255)/std)
    lo = torch.where(x0 < -.999, -math.inf, (x0 - mean - 1/255)/std)

    # Phi(hi) - Phi(lo) = Phi(-lo) - Phi(-hi): in the lower tail no digits cancel
    flip = lo > 0
    hi, lo = torch.where(flip, -lo, hi), torch.where(flip, -hi, lo)

    # log(a - b) = log a + log(1 - exp(log b - log a))
    log_hi = log_cdf(hi)
    log_lo = log_cdf(lo)
    return -log_hi - torch.log(-torch.expm1((log_lo - log_hi).clamp(max=-1e-30)))


# %%NBQA-CELL-SEP7dc948
# Eq. 20.7: the masses of the 256 bytes sum to 1, for a Gaussian that is wide, narrow
# or outside the picture
bytes_ = torch.arange(256, dtype=D)/127.5 - 1


def total(mean, std):
    nats = decoder_nats(bytes_, torch.tensor(mean, dtype=D), torch.tensor(std, dtype=D))
    return (-nats).exp().sum()


means = -1.3, -1., .1, .999, 2.
stds = 1e-3, .02, .5, 5.
errors = [close(total(m, s), 1.) for m in means for s in stds]
passed('(20.7) the probabilities of 256 bytes sum to 1', *errors, by='20 Gaussians')

# Figure 20.4: the numbers above its panels
byte, middle = torch.tensor([[127., 129.2], [255., 252.6]], dtype=D).T
nats = decoder_nats(byte/127.5 - 1, middle/127.5 - 1, torch.tensor(2.5/127.5, dtype=D))
passed('Figure 20.4: L_0 above both panels', close(nats, torch.tensor(shown_nats, dtype=D)),
       by='cdf of torch.distributions')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.7: inner bins against an integral, far in either tail too;
# the outer bin reaches to infinity
def integral(x0, m, s):
    "-log of the density's mean over 4,000 midpoints of the bin, times the bin's width."
    y = x0 - 1/255 + (torch.arange(4000, dtype=D) + .5)/510_000
    return -torch.logsumexp(Normal(m, s).log_prob(y) - math.log(510_000), 0)


inner = bytes_[[1, 100, 254]].tolist()
cases = [(b, m, s) for b in inner for m in (-.9, .1, .8) for s in (.02, .3)]
x0, m, s = torch.tensor(cases, dtype=D).T
want = torch.stack([integral(*c) for c in cases])
edge = -(.5*torch.special.erfc((1 - 1/255 - m)/.3/2**.5)).log()
passed('(20.7) inner bins', close(decoder_nats(x0, m, s), want, 1e-3), by='integral as a sum')
passed('(20.7) the outer bin', close(decoder_nats(x0*0 + 1, m, .3), edge), by='erfc')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.7: gradients by differences, at both edges, in the tails, and with a tiny std in float32:
# finite everywhere
def nats(m, s):
    return decoder_nats(x0.to(m.dtype), m, s)


x0 = torch.tensor([-1., -1, 1, 1, .2, .2], dtype=D)
m = torch.tensor([-.9, .8, -.8, .9, .21, -.7], dtype=D, requires_grad=True)
s = torch.full((6,), .1, dtype=D, requires_grad=True)
torch.autograd.gradcheck(nats, (m, s))
passed('(20.7) gradients at both edges and in the tails', by='finite differences')

tiny = torch.full((6,), 1e-4, requires_grad=True)
slope, = torch.autograd.grad(nats(m.float(), tiny).sum(), tiny)
assert slope.isfinite().all()
passed('(20.7) finite in float32 at std 1e-4',
       close(nats(m.float(), tiny)/nats(m, tiny.double()), 1., 1e-3), by='float64')


# %%NBQA-CELL-SEP7dc948
#| export
# (denoiser, x0 [b ...], t, noise [b ...]) -> [b]
Loss = Callable[[Denoiser, Tensor, Level, Tensor], Tensor]


def l_simple(denoiser: Denoiser,  # what is to be trained
             x0: Tensor,          # [b ...] clean data
             t: Level,            # a level each, [b] or [b 1 ... 1]
             eps: Tensor,         # [b ...] noise from N(0, I)
             ) -> Tensor:         # [b]
    "The mean squared error of the noise. Eq. 20.8 (DDPM eq. 14)."
    t = t.like(x0)
    x_t = q_sample(x0, t, eps)
    return (eps - denoiser(x_t, t).eps).square().flatten(1).mean(1)


# %%NBQA-CELL-SEP7dc948
torch.manual_seed(0)
world = ring()  # the exact denoiser of eight Gaussians on a circle
x0 = world.sample(10_000)
t = Cosine()(torch.rand(10_000)).like(x0)  # a random level for each sample
eps = torch.randn_like(x0)
least = l_simple(world, x0, t, eps)
print(f'least possible L_simple on the ring: {least.mean():.2f}; '
      f'with 0 as the predicted noise: {eps.square().mean():.2f}')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.8: the least loss is the variance of the noise given x_t, SNR times that of x_0 (13.6)
x_t = q_sample(x0, t, eps)
variance = (t.snr*world.var_x0(x_t, t)).mean(1)
gap_ = least - variance
passed('(20.8) least loss = variance of the noise given x_t',
       close(gap_.mean(), 0., 5*gap_.std()/100), by='Eq. 13.6, 10,000 samples')

# written out for one sample
one = (eps[7] - world(x_t[7:8], Level(t.log_snr[7:8])).eps[0]).square().mean()
passed('(20.8) a mean over dimensions, for each sample', close(least[7], one, 1e-5))


# %%NBQA-CELL-SEP7dc948
#| export
Weight = Callable[[Tensor], Tensor]  # log SNR -> what multiplies the squared error of x0


def weighted(weight: Weight) -> Loss:
    "The squared error of x0, times a weight of the level. Eq. 20.9."

    def loss(denoiser, x0, t, eps):
        t = t.like(x0)
        x_t = q_sample(x0, t, eps)
        error = (x0 - denoiser(x_t, t).x0).square().flatten(1).mean(1)
        return weight(t.log_snr).reshape(-1)*error

    return loss


# %%NBQA-CELL-SEP7dc948
#| export
def x0_weight(log_snr: Tensor) -> Tensor:
    "Every error of x0 counts alike. Eq. 20.9."
    return torch.ones_like(log_snr)


def eps_weight(log_snr: Tensor) -> Tensor:
    "L_simple: SNR. Eq. 20.10."
    return log_snr.exp()


def v_weight(log_snr: Tensor) -> Tensor:
    "The squared error of v: 1 + SNR. Eq. 20.11 (Salimans & Ho 2022)."
    return 1 + log_snr.exp()


def min_snr(gamma: float = 5.) -> Weight:
    "SNR, but no more than gamma. Eq. 20.12 (Hang et al. 2023)."
    def weight(log_snr):
        return log_snr.exp().clamp(max=gamma)
    return weight


def p2(k: float = 1., gamma: float = 1.) -> Weight:
    "L_simple divided by (k + SNR)^gamma. Eq. 20.13 (Choi et al. 2022)."
    def weight(log_snr):
        return log_snr.exp()/(k + log_snr.exp())**gamma
    return weight


# %%NBQA-CELL-SEP7dc948
# Eq. 20.9-20.13: each as its authors define it, on the error of x0, of eps or of v,
# at 200 levels in one batch
def network(x, t):
    return from_v(.3*x.sin(), x, t)


torch.manual_seed(0)
x0, eps = torch.randn(2, 200, 6, dtype=D)
t = Level(torch.linspace(-8, 8, 200, dtype=D)).like(x0)
p = network(q_sample(x0, t, eps), t)

# the three errors; v = signal eps - sigma x0
e_x0 = ((x0 - p.x0)**2).mean(1)
e_eps = ((eps - p.eps)**2).mean(1)
e_v = ((t.signal*(eps - p.eps) - t.sigma*(x0 - p.x0))**2).mean(1)

ab = t.alpha_bar.squeeze(1)
snr = ab/(1 - ab)
pairs = [(x0_weight, e_x0),
         (eps_weight, e_eps),
         (v_weight, e_v),
         (min_snr(), (5/snr).clamp(max=1)*e_eps),
         (min_snr(2.), (2/snr).clamp(max=1)*e_eps),
         (p2(), (1 - ab)*e_eps),
         (p2(2., .5), e_eps/(2 + snr)**.5)]
ratios = [weighted(weight)(network, x0, t, eps)/want for weight, want in pairs]
errors = [close(r, 1., 1e-8) for r in ratios]
passed('(20.9-20.13) each weight', *errors, by='the definitions of its authors')
passed('(20.8) L_simple', close(l_simple(network, x0, t, eps), e_eps))


# %%NBQA-CELL-SEP7dc948
def density(schedule, lam):
    "How often a uniform time draws the log SNR lam: -du/dlam, by autograd."
    return torch.autograd.grad(-schedule.time(Level(lam)).sum(), lam)[0]


def table_density(table, lam):
    "The same for a table of timesteps, by differences."
    u = table.time(Level(lam))
    return -torch.gradient(u, spacing=(lam,))[0]


# %%NBQA-CELL-SEP7dc948
# Eq. 20.14: for the pure cosine the density is 1/(2 pi cosh(lambda/2)), by hand; it sums to 1;
# and both sides of 20.14 agree
def w(lam):
    "A weight times some error that falls with SNR."
    return min_snr()(lam)*torch.sigmoid(-lam)


lam = torch.linspace(-19, 19, 20_001, dtype=D, requires_grad=True)
u = (torch.arange(20_000, dtype=D) + .5)/20_000
h = 38/20_000
q = density(Cosine(s=1e-9), lam)
over_levels = (w(lam)*density(Cosine(), lam)).sum()*h
over_times = w(Cosine()(u).log_snr).mean()
passed('(20.14) density of the cosine schedule', close(q, 1/(2*math.pi*torch.cosh(lam/2)), 1e-7),
       by='closed form')
passed('(20.14) the density integrates to 1', close(q.sum()*h, 1., 1e-3))
passed('(20.14) average over times = average over levels', close(over_levels, over_times, 1e-3))


# %%NBQA-CELL-SEP7dc948
# Figure 20.5: five weights, alone and times the density of levels of two schedules
lam = torch.linspace(-9.5, 9, 400, dtype=D, requires_grad=True)
l = lam.detach()
named = {'x0': x0_weight, 'ε': eps_weight, 'v': v_weight, 'min-SNR': min_snr(), 'P2': p2()}
# colour, width, opacity and dashes: where curves coincide, all of them can be seen
looks = {'x0': ('black', 5, .25, '-'), 'ε': ('tab:blue', 5, .35, '-'),
         'v': ('tab:green', 1.4, 1, '-'), 'min-SNR': ('tab:red', 1.4, 1, '-'),
         'P2': ('tab:purple', 1.6, 1, (0, (3, 3)))}
densities = 1., density(Cosine(), lam), table_density(linear(), l)
titles = ['weight $w$', '… times the cosine density', '… times the linear density']
panels = figure(3, 3., sharey=True)
for ax, title, q in zip(panels, titles, densities):
    for name, weight in named.items():
        colour, width, opacity, dashes = looks[name]
        ax.plot(l, weight(l)*q, color=colour, lw=width, alpha=opacity, ls=dashes)
    ax.set(yscale='log', ylim=(1e-4, 3e4), xlim=(9, -9.5), xlabel='log SNR', title=title)
    ax.yaxis.set_major_locator(plt.LogLocator(100))
    ax.minorticks_off()

# each curve's name in each panel: (log SNR, height)
high = {'v': (3.6, 400), 'ε': (6.4, 60), 'min-SNR': (8.6, 10), 'x0': (-7, .22), 'P2': (8.6, .2)}
middle = {'v': (-5, .12), 'ε': (8.2, 2.2), 'min-SNR': (8.6, .42), 'x0': (-3.6, .004),
          'P2': (3.2, .008)}
low = {'v': (-5, .16), 'ε': (8.2, 1.2), 'min-SNR': (8.6, .15), 'x0': (-4.9, .014), 'P2': (3, .005)}
places = high, middle, low
letters = {'ε': '$\\epsilon$', 'v': '$v$', 'x0': '$x_0$'}
for ax, where in zip(panels, places):
    for name, at in where.items():
        ax.text(*at, letters.get(name, name), color=looks[name][0])


# %%NBQA-CELL-SEP7dc948
# Eq. 20.8, 20.9: slope zero at the exact denoiser and a rise on either side, for every loss,
# integrated over three points and 2,001 noises
points = torch.tensor([-1.5, .2, 1.], dtype=D)
share = torch.tensor([.3, .5, .2], dtype=D)
e = torch.linspace(-8, 8, 2001, dtype=D)
world = Mixture(share, points[:, None], torch.zeros(3, dtype=D))

# all pairs of a point and a noise, and their probabilities
mass = (share[:, None]*Normal(0, 1).log_prob(e).exp()*.008).reshape(-1)
x0 = points.repeat_interleave(2001)[:, None]
eps = e.repeat(3)[:, None]


def average(loss, a, t):
    "The mean loss of the exact denoiser plus a times some other function."
    def off(x, t):
        return from_x0(world(x, t).x0 + a*(2*x).sin(), x, t)
    return mass @ loss(off, x0, t.like(x0), eps)


slopes = []
for loss in [l_simple, *map(weighted, named.values())]:
    for log_snr in (-2., 0., 2.):
        t = Level(log_snr)
        a = torch.zeros((), dtype=D, requires_grad=True)
        slopes.append(torch.autograd.grad(average(loss, a, t), a)[0])
        assert min(average(loss, .1, t), average(loss, -.1, t)) > average(loss, 0., t)
passed('(20.8, 20.9) six losses have slope 0 at the exact denoiser',
       close(torch.stack(slopes), 0.), by='integral, three levels')


# %%NBQA-CELL-SEP7dc948
# The whole bound for Gaussian data and exact predictions
def bound(S, std, variance):
    "The whole bound for data N(0, std^2) and exact predictions, in nats."
    one = torch.ones(1, dtype=D)
    world = Mixture(one, 0*one[None], std*one)
    first = Level(S.log_snr[:1, None])
    s, t = Level(S.log_snr[:-1, None]), Level(S.log_snr[1:, None])

    # every term is quadratic in x_0 and eps, so four points give its mean
    total = 0
    for x0, e in ((std, 1.), (std, -1.), (-std, 1.), (-std, -1.)):
        x0 = torch.full((1, 1), x0, dtype=D)
        x1 = first.signal*x0 + first.sigma*e
        x_t = t.signal*x0 + t.sigma*e

        L_T = prior_nats(x0, Level(S.log_snr[-1])).sum()
        between = bound_term(world(x_t, t), x0.expand_as(x_t), x_t, s, t, variance(world)).sum()
        last_step = Normal(world(x1, first).x0, world.var_x0(x1, first).sqrt())
        L_0 = -last_step.log_prob(x0).sum()
        total += L_T + between + L_0
    return total/4


def entropy(std):
    return .5*math.log(2*math.pi*math.e*std**2)


def large(world):
    return fixed_large


def small(world):
    return fixed_small


# %%NBQA-CELL-SEP7dc948
# Eq. 20.3-20.5: N(0, I): beta loses nothing, beta-tilde a known sum;
# other widths: exact variance loses the prior's mismatch only
def mismatch(std, t):
    "KL from the noisiest marginal, N(0, alpha_bar std^2 + sigma^2), to N(0, 1)."
    zero = torch.zeros((), dtype=D)
    return gaussian_kl(zero, (t.alpha_bar*std**2 + t.sigma**2).sqrt(), zero, zero + 1)


S = linear()
ratio = S.betas[1:]/tilde(S)
known = .5*(ratio - 1 - ratio.log()).sum()
with_beta = bound(S, 1., large)
with_tilde = bound(S, 1., small)
print(f'entropy {entropy(1.):.7f}, bound {with_beta.item():.7f}; '
      f'with beta-tilde {with_tilde.item():.7f}')
passed('(20.3-20.5) N(0, 1), variance beta: the bound is the entropy',
       close(with_beta, entropy(1.)))
passed('(20.3-20.5) N(0, 1), beta-tilde: a KL of two variances per step',
       close(with_tilde, entropy(1.) + known), by='Eq. 12.10')
passed('(20.3-20.5) N(0, 0.09), exact variance: only the start is wrong',
       close(bound(S, .3, exact), entropy(.3) + mismatch(.3, Level(S.log_snr[-1]))))


# %%NBQA-CELL-SEP7dc948
# Figure 20.6: how far the bound lies above the entropy, by number of steps
def gap(n, variance):
    "How far the bound of n steps lies above the entropy, for data N(0, 0.3^2)."
    table = Cosine()(torch.arange(1, n + 1, dtype=D)/n*.99)
    return (bound(table, .3, variance) - entropy(.3)).item()


ns = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
variances = {'β': large, 'β̃': small, 'exact': exact}
gaps = {name: [gap(n, v) for n in ns] for name, v in variances.items()}
ax = figure(1, 2.2)[0]
ax.plot(ns, gaps['β'], 'o-', color=INK['model'], ms=3)
ax.plot(ns, gaps['β̃'], 'o-', color=INK['guidance'], ms=3)
ax.plot(ns, gaps['exact'], 'o-', color=INK['data'], ms=3)
ax.axhline(.2886, color=INK['guidance'], lw=.8, ls=':')
ax.text(4096, .22, 'limit for $\\tilde\\beta$: 0.289', color=INK['guidance'], ha='right')
ax.text(45, .43, 'variance $\\tilde\\beta$', color=INK['guidance'])
ax.text(24, .1, 'variance $\\beta$', color=INK['model'])
ax.text(2, -.085, 'exact variance')
ax.set(xscale='log', xticks=ns, xlabel='steps', ylabel='nats above the entropy', ylim=(-.12, None))
ax.set_xticklabels([f'{n:,}' for n in ns])
ax.minorticks_off()
assert min(map(min, gaps.values())) > 0
assert gaps['β'][ns.index(512)] < .005 < .3 < gaps['β̃'][ns.index(512)]


# %%NBQA-CELL-SEP7dc948
# Eq. 20.3, 20.5: 4,096, 32,768 and 262,144 steps: the gap of beta-tilde comes down to half of
# Euler's constant, and no further
limit = .5*.5772156649
open_ = [gap(n, small) for n in (2**12, 2**15, 2**18)]
print('4,096, 32,768 and 262,144 steps:', *(f'{g:.4f}' for g in open_))
assert open_[0] > open_[1] > open_[2] > limit
passed("the gap of beta-tilde tends to half of Euler's constant, 0.2886",
       close(open_[2], limit, .002))


# %%NBQA-CELL-SEP7dc948
#| export
def _in_last_step(time: Tensor, n: int, rounding: float = 1e-3) -> Tensor:  # bool
    "Whether no step of 1/n fits below these times: 1/n itself, or less."
    return time*n < 1 + rounding


def hybrid(schedule: Schedule,  # what draws the levels
           n: int,              # steps of the chain whose bound is meant
           share: float = .001,
           weight: Weight | None = None,  # of x0's error (20.9); None: that of L_simple
           ) -> Loss:
    "A weighted error for the mean, a share of the bound for the variance. Eq. 20.15."
    if n < 2:
        raise Problem(f'A chain of {n} steps has no variance to learn: give at least 2.')
    one, two = [schedule(torch.tensor(k/n, dtype=torch.float64)) for k in (1, 2)]

    def loss(denoiser, x0, t, eps):
        t = t.like(x0)
        x_t = q_sample(x0, t, eps)
        p = denoiser(x_t, t)

        # the bound trains the variance only: it sees the mean without its gradient
        detached = p._replace(x0=p.x0.detach(), eps=p.eps.detach())

        # s: a step of 1/n below t; a last step has none, and its entry, + 1, is not used
        time = schedule.time(t)
        last = _in_last_step(time, n).to(x0.device)
        below = schedule((time - 1/n).clamp(min=0)).log_snr.to(t.log_snr)
        s = Level(torch.where(last, t.log_snr + 1, below))

        # L_{t-1} for steps in the middle, L_0 for the last step
        middle = bound_term(detached, x0, x_t, s, t)
        std = one.sigma*new_noise(one, two)**((1 - p.frac)/2)
        mean = torch.where(last, detached.x0, x0)
        end = decoder_nats(x0, mean, std).flatten(1).mean(1)
        bits = torch.where(last.reshape(-1), end, middle)/math.log(2)

        if weight is None:
            error = eps - p.eps
        else:
            error = weight(t.log_snr).sqrt()*(x0 - p.x0)
        return error.square().flatten(1).mean(1) + share*n*bits

    return loss


# %%NBQA-CELL-SEP7dc948
# Eq. 20.15: as improved DDPM writes it, in betas, for all timesteps 1..T at once:
# log variance = f log beta + (1-f) log beta-tilde
torch.manual_seed(0)
S = linear(50, .001, .3)
beta = S.betas[:, None]
ab = (1 - S.betas).cumprod(0)[:, None]
before = torch.cat([torch.ones(1, 1, dtype=D), ab[:-1]])
btilde = beta*(1 - before)/(1 - ab)
btilde[0] = btilde[1]

x0 = (torch.arange(50, dtype=D)[:, None].expand(50, 4)*5/127.5 - 1).contiguous()
eps = torch.randn(50, 4, dtype=D)
f = torch.rand(50, 4, dtype=D)
x_t = ab.sqrt()*x0 + (1 - ab).sqrt()*eps
p = from_v(.4*x_t, x_t, Level(S.log_snr[:, None]))

# both means differ by sqrt(ab_before) beta/(1 - ab) times the error of x0
logvar = f*beta.log() + (1 - f)*btilde.log()
apart = before.sqrt()*beta/(1 - ab)*(x0 - p.x0)
kl = .5*(logvar - btilde.log() - 1 + (btilde + apart**2)/logvar.exp())
nll = decoder_nats(x0, p.x0, (logvar/2).exp())
first = torch.arange(50)[:, None] == 0
vb = torch.where(first, nll, kl).mean(1)/math.log(2)
want = ((eps - p.eps)**2).mean(1) + .05*vb


def guess(x, t):
    return from_v(.4*x, x, t)._replace(frac=f)


t = Level(S.log_snr).like(x0)
t32 = Level(t.log_snr.float())
passed('(20.15) the hybrid loss at all 50 timesteps',
       close(hybrid(S, 50)(guess, x0, t, eps), want, 1e-9), by="Improved DDPM's form in betas")
passed('(20.15) the same with levels in float32',
       close(hybrid(S, 50)(guess, x0, t32, eps), want, 1e-4))


# %%NBQA-CELL-SEP7dc948
# Eq. 20.15: in continuous time with the cosine schedule, one level from the middle of the run
# and one a little above the last step
def guess(x, t):
    return from_v(.4*x, x, t)._replace(frac=f)


torch.manual_seed(0)
x0 = torch.rand(2, 4, dtype=D)
eps = torch.randn(2, 4, dtype=D)
f = torch.full((2, 4), .3, dtype=D)
u = torch.tensor([.35, .11], dtype=D)
s, t = Cosine()(u - .1).like(x0), Cosine()(u).like(x0)
x_t = q_sample(x0, t, eps)
simple = l_simple(guess, x0, t, eps)
bits = bound_term(guess(x_t, t), x0, x_t, s, t)/math.log(2)


def hybrid_loss(weight=None):
    return hybrid(Cosine(), 10, weight=weight)(guess, x0, t, eps)


# another weight for the mean, the same term for the variance
heavy = hybrid_loss(v_weight) - weighted(v_weight)(guess, x0, t, eps)
errors = (close(hybrid_loss(), simple + .01*bits), close(heavy, .01*bits),
          close(hybrid_loss(eps_weight), simple + .01*bits, 1e-8))
passed('(20.15) in continuous time, also with other weights', *errors, by='its two parts')

# levels as a schedule gives them, [b] and float64, for data in float32
raw = Cosine()(u)
x0, eps, f = x0.float(), eps.float(), f.float()
errors = []
for loss in (l_simple, weighted(v_weight), hybrid(Cosine(), 10)):
    value = loss(guess, x0, raw, eps)
    assert value.dtype == torch.float32
    errors.append(close(value, loss(guess, x0, raw.like(x0), eps), tol=0))
passed('levels need not be numbers like the data', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 20.15: the gradient of the mean is that of L_simple, at the last step too;
# frac has one of its own, finite everywhere
def guess(x, t):
    return from_v(out, x, t)._replace(frac=f)


torch.manual_seed(0)
x0 = torch.rand(8, 3, dtype=D)*2 - 1
eps = torch.randn(8, 3, dtype=D)
out = torch.randn(8, 3, dtype=D, requires_grad=True)
f = torch.rand(8, 3, dtype=D, requires_grad=True)
t = Cosine()(torch.tensor([0., .004, .05, .1, .11, .5, .99, 1.], dtype=D)).like(x0)
g_out, g_f = torch.autograd.grad(hybrid(Cosine(), 10)(guess, x0, t, eps).sum(), (out, f))
assert g_f.isfinite().all() and (g_f != 0).all()
want, = torch.autograd.grad(l_simple(guess, x0, t, eps).sum(), out)
passed('(20.15) the mean has the gradient of L_simple', close(g_out, want), by='autograd')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.15: a network that predicts the noise implies enormous clean data in pure noise;
# in float32 too its loss and both gradients stay finite
def guess(x, t):
    return from_eps(out, x, t)._replace(frac=f)


torch.manual_seed(0)
x0 = torch.rand(6, 3)*2 - 1
eps = torch.randn(6, 3)
out = torch.zeros(6, 3, requires_grad=True)
f = torch.full((6, 3), .5, requires_grad=True)
times = torch.tensor([0., .001, .5, .99, .9999, 1.], dtype=D)
t = Level(Cosine()(times).log_snr.float()).like(x0)
value = hybrid(Cosine(), 1000)(guess, x0, t, eps)
g_out, g_f = torch.autograd.grad(value.sum(), (out, f))
assert value.isfinite().all() and g_f.isfinite().all()
passed('(20.15) finite in float32, down to pure noise', close(g_out, -2/3*eps, 1e-6),
       by='gradient by hand')


# %%NBQA-CELL-SEP7dc948
# Eq. 20.15: in a Gaussian world the best frac is the exact variance of a step (14.4)
# on the log scale; two points average exactly
world = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 1, dtype=D), torch.tensor([.3], dtype=D))
S = linear()
x_t = torch.full((2, 1), .6, dtype=D)


def best(i):
    "The loss's slope in frac, at the exact variance of step i, and that frac."
    s, t = Level(S.log_snr[i - 2]), Level(S.log_snr[i - 1])
    p = world(x_t, t)

    # where the exact variance lies between beta-tilde and beta
    lo, true, hi = [v(p, x_t, s, t)**2 for v in (fixed_small, exact(world), fixed_large)]
    f = ((true/lo).log()/(hi/lo).log()).requires_grad_()

    # two clean points with the posterior's mean and variance
    x0 = p.x0 + torch.tensor([[1.], [-1.]])*world.var_x0(x_t, t).sqrt()
    eps = (x_t - t.signal*x0)/t.sigma
    loss = hybrid(S, 1000)(lambda x, t: world(x, t)._replace(frac=f), x0, t.like(x0), eps)
    return torch.autograd.grad(loss.mean(), f)[0].sum(), f.mean().item()


steps = 2, 10, 100, 500, 1000
slopes, fracs = zip(*map(best, steps))
print('best fraction:', *(f't = {t}: {frac:.3f};' for t, frac in zip(steps, fracs)))
passed('(20.15) slope 0 at the exact variance', close(torch.stack(slopes), 0., 1e-8),
       by='Eq. 14.4, five steps')


# %%NBQA-CELL-SEP7dc948
class Listing:
    def __init__(self, schedule):
        self.schedule = schedule

    def q_sample(self, x_0, t, noise):
        ab = (1 - self.schedule.betas).cumprod(0)[t].view(-1, 1, 1, 1)
        return ab.sqrt()*x_0 + (1 - ab).sqrt()*noise

    def p_loss(self, model, x_0, t, noise=None):
        if noise is None:
            noise = torch.randn_like(x_0)
        x_noise = self.q_sample(x_0, t, noise)
        x_recon = model(x_noise, t)
        return F.mse_loss(x_recon, noise)


# %%NBQA-CELL-SEP7dc948
# Eq. 20.8: the listed p_loss, on the same noise and the same network; t counts from 0 there
torch.manual_seed(0)
S = linear()
conv = torch.nn.Conv2d(1, 1, 3, padding=1, dtype=D)


def raw(x, t):
    "The network as the listing calls it: its output is the noise."
    return conv(x)


x0, noise = torch.randn(2, 5, 1, 8, 8, dtype=D)
i = torch.tensor([0, 1, 500, 998, 999])
theirs = Listing(S).p_loss(raw, x0, i, noise)
ours = l_simple(lambda x, t: from_eps(conv(x), x, t), x0, Level(S.log_snr[i]).like(x0), noise)
passed('(20.8) l_simple = the listing', close(ours.mean(), theirs))


# %%NBQA-CELL-SEP7dc948
class Indented(Listing):
    def p_loss(self, model, x_0, t, noise=None):
        if noise is None:
            noise = torch.randn_like(x_0)
            x_noise = self.q_sample(x_0, t, noise)
            x_recon = model(x_noise, t)
            return F.mse_loss(x_recon, noise)


x_0, noise = torch.randn(2, 5, 1, 8, 8, dtype=D)
with expect_fail("'NoneType' object has no attribute 'backward'"):
    Indented(S).p_loss(raw, x_0, i, noise).backward()


# %%NBQA-CELL-SEP7dc948
def network(x, t):
    return from_v(x, x, t)


x0 = torch.rand(2, 3)
t = Cosine()(torch.tensor([.2, .5])).like(x0)
with expect_fail('no learned variance', Problem):
    hybrid(Cosine(), 10)(network, x0, t, torch.randn(2, 3))
with expect_fail('give at least 2', Problem):
    hybrid(Cosine(), 1)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...
other = ...
t = Level(torch.tensor(1.))
x0, eps = .3**.5*torch.randn(10_000, 4), torch.randn(10_000, 4)
noise_loss = l_simple(lambda x, t: from_eps(0*x, x, t), x0, t, eps)
data_loss = weighted(x0_weight)(lambda x, t: from_x0(0*x, x, t), x0, t, eps)
close(noise_loss.mean(), guess, .05), close(data_loss.mean(), other, .03)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: the unweighted integral of SNR/2 over lambda from -5 to 5, by drawing times
weight = ...  # Weight
u = Cosine().time(Level(torch.tensor([5., -5.], dtype=D)))
v = u[0] + (u[1] - u[0])*(torch.arange(100_000, dtype=D) + .5)/1e5
average = weight(Cosine()(v).log_snr).mean()
close(average*(u[1] - u[0]), .5*(math.exp(5) - math.exp(-5)), .01)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3: for data of standard deviation 1 EDM's weight is that of v;
# and one number for data of .5
edm_weight = ...
lam = torch.linspace(-5, 5, 11, dtype=D)
four = torch.tensor(4., dtype=D).log()
close(edm_weight(1.)(lam)/v_weight(lam), 1.), close(edm_weight(.5)(four), 8.)


# %%NBQA-CELL-SEP7dc948
# solution 1: the mean square of N(0, 1) is 1; and an x0 error of all of x0 costs its mean square
guess = 1.
other = .3
t = Level(torch.tensor(1.))
x0, eps = .3**.5*torch.randn(10_000, 4), torch.randn(10_000, 4)
noise_loss = l_simple(lambda x, t: from_eps(0*x, x, t), x0, t, eps)
data_loss = weighted(x0_weight)(lambda x, t: from_x0(0*x, x, t), x0, t, eps)
close(noise_loss.mean(), guess, .05), close(data_loss.mean(), other, .03)


# %%NBQA-CELL-SEP7dc948
# solution 2: d SNR = SNR d lambda, since SNR = exp(lambda): the sum becomes the integral of SNR/2
# over lambda; (20.14) brings in the density, which we take out
def weight(lam):
    return .5*lam.exp()/density(Cosine(), lam.detach().requires_grad_())


u = Cosine().time(Level(torch.tensor([5., -5.], dtype=D)))
v = u[0] + (u[1] - u[0])*(torch.arange(100_000, dtype=D) + .5)/1e5
average = weight(Cosine()(v).log_snr).mean()
close(average*(u[1] - u[0]), .5*(math.exp(5) - math.exp(-5)), .01)


# %%NBQA-CELL-SEP7dc948
# solution 3: edm_sigma is exp(-lambda/2); with s = 1 the weight is
# (edm_sigma^2 + 1)/edm_sigma^2 = 1 + SNR
def edm_weight(s):
    def weight(lam):
        sigma = Level(lam).edm_sigma
        return (sigma**2 + s**2)/(sigma*s)**2
    return weight


lam = torch.linspace(-5, 5, 11, dtype=D)
four = torch.tensor(4., dtype=D).log()
close(edm_weight(1.)(lam)/v_weight(lam), 1.), close(edm_weight(.5)(four), 8.)
