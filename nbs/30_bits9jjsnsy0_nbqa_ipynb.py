# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.bits


# %%NBQA-CELL-SEP15d533
# Figure 30.1: a digit at eight noise levels, what the network predicts there, and what it costs
import matplotlib.pyplot as plt
import numpy as np
import torch
from ddpm_lit.core.check import setup
from ddpm_lit.core.level import Level
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import bits as library  # the first figure uses what the page builds
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.sample import clamp_x0
from ddpm_lit.diffusion.schedule import Cosine
from ddpm_lit.show import INK
from ddpm_lit.train.weights import load_weights

setup()
BLUE, RED, GREY = INK['model'], INK['guidance'], '.5'
torch.manual_seed(0)
model, _ = load_weights('mnist')
some = mnist('test')[:24]
network = clamp_x0(model.given(some.label))
cost = library.bits_per_dim(network, to_unit(some.pixels), Cosine(), 1000, draws=11)

# the first digit of the test set, one noise for all levels
levels = torch.arange(-5., 10., 2.)
t = Level(levels.view(-1, 1, 1, 1))
digit = to_unit(some.pixels[:1])
x_t = q_sample(digit, t, torch.randn(1, 1, 28, 28).expand(8, -1, -1, -1))
predicted = model.given(some.label[:1].expand(8))(x_t, t).x0

fig, axes = plt.subplots(3, 1, figsize=(7, 3.25), layout='constrained', dpi=160, sharex=True,
                         height_ratios=(1, 1, 1.5))
for ax, pictures, name in zip(axes, (x_t, predicted), ('$x_t$', r'$\hat x_0(x_t)$')):
    for centre, picture in zip(levels.tolist(), pictures):
        ax.imshow(picture[0], extent=(centre - .93, centre + .93, 0, 1), vmin=-1, vmax=1)
    ax.set(aspect='auto', ylim=(0, 1), yticks=[])
    ax.set_ylabel(name, rotation=0, ha='right', va='center')
    ax.tick_params(bottom=False)
    ax.spines[:].set_visible(False)

# below: the cost of a unit of log SNR, and the bits spent so far in the middle of each run
axes[2].plot(cost.log_snr, cost.runs/cost.width, '.-', color=BLUE)
axes[2].set(xlim=(-6, 10), ylim=(0, .95), xlabel='log SNR: noise left, clean right',
            ylabel='bits/dim per\nunit of log SNR')
so_far = np.interp(levels[:-1], cost.log_snr, cost.rate + cost.runs/2)
for centre, spent in zip(levels.tolist(), so_far):
    axes[2].text(centre, .85, f'{spent:.2f}', ha='center')
axes[2].text(9, .85, f'end: {cost.prior + cost.steps:.1f}', ha='center')
axes[2].text(-5.9, .68, 'bits/dim spent so far', color=GREY)


# %%NBQA-CELL-SEP15d533
#| export
import math
from dataclasses import dataclass
from typing import Callable
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Denoiser, Prediction, each_part
from ddpm_lit.core.level import Level, append_dims
from ddpm_lit.diffusion.forward import new_noise, q_sample
from ddpm_lit.diffusion.loss import bound_term, decoder_nats, prior_nats
from ddpm_lit.diffusion.sample import fixed_small
from ddpm_lit.diffusion.schedule import Grid, Schedule, grid


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, and double precision for the toy data whose answers are known
import gzip
from torch.distributions import Normal, kl_divergence
from ddpm_lit.core.check import budget, close, expect_fail, passed
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import exact, fixed_large
from ddpm_lit.diffusion.schedule import constant, cosine, linear
from ddpm_lit.train.fit import Training, fit, has_bf16
from ddpm_lit.train.recipe import find_recipe

D = torch.float64


def row(n, height, **kw):
    "A figure with n panels in a row, seven inches wide."
    fig, axes = plt.subplots(1, n, figsize=(7, height), layout='constrained', dpi=160, **kw)
    return [*axes]


def standard_error(d):
    return d.std().item()/len(d)**.5


# %%NBQA-CELL-SEP15d533
import math
import torch


@torch.no_grad()
def plain_bits(net, x0, betas, noise=torch.randn_like):  # x0: bytes/127.5 - 1, [b c h w]
    ab = (1 - betas).cumprod(0)  # alpha-bar; index t is step t + 1
    snr = ab/(1 - ab)
    total = (ab[-1]*x0**2 - ab[-1] - torch.log1p(-ab[-1]))/2  # prior
    for t in reversed(range(len(betas))):
        x_t = ab[t].sqrt()*x0 + (1 - ab[t]).sqrt()*noise(x0)
        eps = net(x_t.float(), torch.full((len(x0),), t, device=x0.device)).to(x0)
        guess = (x_t - (1 - ab[t]).sqrt()*eps)/ab[t].sqrt()  # the predicted x0
        guess = guess.clamp(-1, 1)  # as in sampling
        if t > 0:
            total = total + (snr[t - 1] - snr[t])/2*(x0 - guess)**2  # a step
    std = (betas[1]*(1 - ab[0])/(1 - ab[1])).sqrt()
    hi = torch.where(x0 > .999, math.inf, (x0 - guess + 1/255)/std)
    lo = torch.where(x0 < -.999, -math.inf, (x0 - guess - 1/255)/std)
    mass = torch.special.ndtr(hi) - torch.special.ndtr(lo)
    total = total - mass.clamp(min=1e-12).log()  # decoder
    return total.mean((1, 2, 3))/math.log(2)


# %%NBQA-CELL-SEP15d533
# The plain loop against the library with all steps and the same noise: for the trained network on
# a short schedule, and for pixels with a known best denoiser on 100 steps
def plain_net(denoiser, S):
    "net(x, t) of a denoiser, at the timesteps of a schedule."
    def net(x, t):
        return denoiser(x, Level(S.log_snr[t]).like(x)).eps

    return net


def both(denoiser, x0, S, noise):
    plain = plain_bits(plain_net(denoiser, S), x0, S.betas, noise)
    ours = library.bits_per_dim(clamp_x0(denoiser), x0.float(), S, len(S), draws=None, noise=noise)
    return plain, ours.each


torch.manual_seed(0)
fixed = torch.randn(2, 1, 28, 28, dtype=D)
two = to_unit(some.pixels[:2]).double()
plain, ours = both(model.given(some.label[:2]), two, linear(12), lambda x: fixed)
passed('plain loop = library', close(plain, ours, 1e-3),
       by='trained digit network, 12 steps')

# independent pixels, black or white at random
fair = Mixture(torch.tensor([.5, .5]), torch.tensor([[-1.], [1.]]), torch.zeros(2))


def pixels(x, t):
    p = fair(x.reshape(-1, 1), Level(t.log_snr.flatten()[0]))
    return Prediction(p.x0.view_as(x), p.eps.view_as(x))


signs = torch.randn(9, 1, 2, 2, dtype=D).sign()
plain, ours = both(pixels, signs, cosine(100), lambda x: fixed[0, 0, :9, :4].reshape(9, 1, 2, 2))
passed('plain loop = library', close(plain, ours, 1e-3),
       by='black and white pixels, 100 steps')


# %%NBQA-CELL-SEP15d533
#| export
def to_bits(nats: Tensor) -> Tensor:  # nats per dimension
    "Nats to bits. Eq. 30.1."
    return nats/math.log(2)


def density_to_grey(nats: Tensor) -> Tensor:  # -log density on [-1, 1], per dimension
    "Bits per dimension of the 256 grey values whose density is known. Eq. 30.2."
    return to_bits(nats) + math.log2(127.5)


# %%NBQA-CELL-SEP15d533
# Eq. 30.1: a byte that may be any of 256 costs 8 bits
# Eq. 30.2: so does a flat density over 256 cells; a smooth Gaussian against its mass in each bin
any_byte = torch.tensor(256., dtype=D)
passed('(30.1) a byte that may be any of 256 costs 8 bits', close(to_bits(any_byte.log()), 8.))
passed('(30.2) so does a flat density over 256 cells',
       close(density_to_grey((any_byte/127.5).log()), 8.))

mean, std = torch.tensor([.1, .2], dtype=D)
byte = torch.arange(80, 200, dtype=D)/127.5 - 1
by_density = density_to_grey(-Normal(mean, std).log_prob(byte))
by_mass = to_bits(decoder_nats(byte, mean, std))
passed('(30.2) bits of a Gaussian density + 6.994', close(by_density, by_mass, tol=5e-4),
       by="its mass in 120 bins")
three = torch.tensor(3., dtype=D)
passed('the example: 5.41 bits', close(density_to_grey(-three.log()), 5.41, tol=.005))


# %%NBQA-CELL-SEP15d533
#| export
# (prediction, x0, x_1, levels 1 and 2) -> nats [b ...]
_LastStep = Callable[[Prediction, Tensor, Tensor, Level, Level], Tensor]


def byte_nats(p: Prediction, x0: Tensor, x_1: Tensor,
              one: Level, two: Level) -> Tensor:  # [b ...]
    "L_0 of pictures of bytes, with DDPM's deviation or the learned one. Eq. 20.7, 30.3."
    if not (x0.abs() <= 1 + 1e-6).all():
        raise Problem('Bytes lie within [-1, 1], these pictures do not: scale them as '
                      '`to_unit` does.')

    # interpolated in the log, from the standard deviation of beta-tilde to that of beta
    frac = 0. if p.frac is None else p.frac
    std = one.sigma*new_noise(one, two)**((1 - frac)/2)
    return decoder_nats(x0, p.x0, std)


# %%NBQA-CELL-SEP15d533
#| export
@dataclass(frozen=True)
class Bits:
    "A bound in bits per dimension, in its parts. Eq. 30.3."
    each: Tensor  # [b] the whole bound of each picture
    prior: float  # L_T
    runs: Tensor  # [n] what the steps cost in each run, the noisiest first
    width: Tensor  # [n] how much of the log SNR axis a run spans
    decoder: float  # L_0
    log_snr: Tensor  # [n] where these runs lie
    rmse: Tensor  # [n] root mean squared error of the clean guess there, in grey values

    @property
    def total(self) -> float:
        return self.each.mean().item()

    @property
    def steps(self) -> float:
        return self.runs.sum().item()

    @property
    def error(self) -> float:  # standard error of the total; NaN for one picture
        n = len(self.each)
        return self.each.std().item()/n**.5 if n > 1 else math.nan

    @property
    def rate(self) -> Tensor:  # [n] spent before the run begins. Eq. 30.9
        return self.prior + self.runs.cumsum(0) - self.runs

    def __str__(self):
        return (f'{self.total:.3f} ± {self.error:.3f} = {self.prior:.4f} (prior) + '
                f'{self.steps:.3f} (steps) + {self.decoder:.3f} (decoder)')


# %%NBQA-CELL-SEP15d533
#| export
def _chain_log_snr(levels: Schedule | Grid, steps: int) -> Tensor:  # [T]
    "The log SNR of a chain's levels, cleanest first; a `Problem` if they are no chain."
    chain = levels if isinstance(levels, Grid) else grid(levels, steps)
    log_snr = chain.flip().log_snr
    if len(log_snr) < 2 or not (log_snr.diff() < 0).all():
        raise Problem('The bound needs two or more levels, each noisier than the one '
                      'before: give another schedule or fewer steps.')
    return log_snr


def _step_chances(log_snr: Tensor) -> Tensor:  # [T] -> [T-1], from clean to noisy
    "p_t: half of it even, half by each step's share of log(1 + SNR). Eq. 30.3."
    g = torch.nn.functional.softplus(log_snr).diff()
    return (1/len(g) + g/g.sum())/2


def _draw_steps(
    p_t: Tensor,  # [T-1]
    j: int,  # of the n runs, from the noisiest
    n: int,
    u: Tensor,  # [b] uniform in [0, 1)
    every: bool,  # is each step a run of its own? then nothing is drawn
) -> tuple[Tensor, Tensor]:  # [b] t, counted from 0; [b] 1/(n p_t), or 1
    "One step for each picture, from the j-th of n parts of equal chance. Eq. 30.3."
    if every:
        return torch.full_like(u, len(p_t) - j, dtype=torch.long), torch.ones_like(u)
    edges = p_t.flip(0).cumsum(0)[:-1]  # of the steps, from the noisy end
    t = len(p_t) - torch.searchsorted(edges, (j + u)/n)
    return t, 1/(n*p_t[t - 1])


def _noised_guess(
    denoiser: Denoiser,
    x0: Tensor,  # [b ...]
    t: Level,
    noise=torch.randn_like,
) -> tuple[Tensor, Prediction]:  # in float64
    "x_t, and the prediction from it; the network computes in the precision of x0."
    x = x0.double()
    x_t = q_sample(x, t, noise(x))
    p = denoiser(x_t.to(x0), t.like(x0))
    return x_t, each_part(Tensor.double, p)


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def bits_per_dim(
        denoiser: Denoiser,
        x0: Tensor,  # [b ...] clean pictures in [-1, 1]
        levels: Schedule | Grid,  # a grid brings its own steps
        steps: int = 1000,  # T
        variance=fixed_small,  # of the steps
        draws: int | None = 16,  # n, network calls a picture; None: every step
        last_step: _LastStep = byte_nats,  # L_0
        noise=torch.randn_like) -> Bits:
    "The variational bound of pictures, by n random steps each. Eq. 30.3 (DDPM eq. 5)."
    log_snr = _chain_log_snr(levels, steps).to(x0.device)  # [T], the cleanest first
    if draws is not None and draws < 1:
        raise Problem(f'{draws} draws see nothing: ask for 1 or more, '
                      'or None for every step.')
    x = x0.double()
    T = len(log_snr)
    n = draws or T - 1
    span = -log_snr.diff()  # [T-1] width of each step
    p_t = _step_chances(log_snr)

    def at(i):
        return Level(append_dims(log_snr[i], x))

    # L_0 and L_T, exactly; L_0 comes first, since it refuses what is no picture
    x_1, p = _noised_guess(denoiser, x0, at(0), noise)
    decoder = to_bits(last_step(p, x, x_1, at(0), at(1))).flatten(1).mean(1)
    prior = to_bits(prior_nats(x, at(T - 1))).flatten(1).mean(1)

    # the steps between: in each run one step of each picture
    runs = []
    for j in range(n):
        u = torch.rand(len(x), device=x.device, dtype=x.dtype)
        i, weight = _draw_steps(p_t, j, n, u, every=draws is None)
        x_t, p = _noised_guess(denoiser, x0, at(i), noise)
        nats = weight*bound_term(p, x, x_t, at(i - 1), at(i), variance)
        runs.append((nats, weight*span[i - 1], log_snr[i], (x - p.x0).square().mean()))

    nats, width, where, mse = map(torch.stack, zip(*runs))  # [n b], [n b], [n b], [n]
    bits = to_bits(nats)
    return Bits(each=prior + bits.sum(0) + decoder,
                prior=prior.mean().item(),
                runs=bits.mean(1),
                width=width.mean(1),
                decoder=decoder.mean().item(),
                log_snr=where.mean(1),
                rmse=127.5*mse.sqrt())


# %%NBQA-CELL-SEP15d533
#| export
def join_bits(parts: list[Bits]) -> Bits:  # all with the same number of draws
    "One bound for pictures that were handled in several parts. Eq. 30.3."
    each = torch.cat([p.each for p in parts])
    share = [len(p.each)/len(each) for p in parts]

    def mean(values):
        return sum(s*v for s, v in zip(share, values))

    return Bits(each=each,
                prior=mean(p.prior for p in parts),
                runs=mean(p.runs for p in parts),
                width=mean(p.width for p in parts),
                decoder=mean(p.decoder for p in parts),
                log_snr=mean(p.log_snr for p in parts),
                rmse=mean(p.rmse**2 for p in parts).sqrt())


# %%NBQA-CELL-SEP15d533
coin = Mixture(weight=torch.tensor([.25, .75], dtype=D),
               mean=torch.tensor([[-1.], [1.]], dtype=D),
               std=torch.zeros(2, dtype=D))


def sure(p, x0, x_1, one, two):
    "A last step that is almost certain of its prediction."
    return decoder_nats(x0, p.x0, .001)


torch.manual_seed(0)
flat = coin.sample(4000)
far = bits_per_dim(coin, flat, Cosine(), 20, draws=20, last_step=sure)
near = bits_per_dim(coin, flat, Cosine(), 1000, draws=20, last_step=sure)
print('  20 steps:', far)
print('1000 steps:', near)


# %%NBQA-CELL-SEP15d533
# Figure 30.2: bits for the coin over the number of steps, with a sharp last step and with DDPM's
torch.manual_seed(0)
quarter = torch.cat([torch.full((1000, 1), -1., dtype=D), torch.full((3000, 1), 1., dtype=D)])
counts = (10, 30, 100, 300, 1000)
curves = {end: [bits_per_dim(coin, quarter, Cosine(), T, draws=20, last_step=end).total
                for T in counts] for end in (sure, byte_nats)}
fig, ax = plt.subplots(figsize=(7, 2.2), layout='constrained', dpi=160)
ax.axhline(.8113, color='black', lw=1, linestyle='--')
ax.text(10, .79, 'entropy: 0.811 bits', va='top')
ax.plot(counts, curves[sure], '.-', color=BLUE)
ax.plot(counts, curves[byte_nats], '.-', color=RED)
ax.text(1050, curves[sure][-1], 'sharp last step', color=BLUE, va='bottom')
ax.text(1050, curves[byte_nats][-1], "DDPM's last step", color=RED, va='center')
ax.set(xscale='log', xlabel='number of steps $T$', ylabel='bits', ylim=(.65, None),
       xlim=(9, 2500))
ax.minorticks_off()
ax.set_xticks(counts, map(str, counts))


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: with a sharp last step the perfect denoiser pays the entropy, and more at long steps
H = -.25*math.log2(.25) - .75*math.log2(.75)
torch.manual_seed(0)
ddpm = bits_per_dim(coin, flat, Cosine(), 1000, draws=20, last_step=byte_nats)
print('as in DDPM, 1000 steps:', ddpm)
assert far.total - H > 5*far.error
passed('(30.3) 1,000 steps, sharp last step: the entropy', close(near.total, H, tol=5*near.error),
       by='5 standard errors')

# DDPM's last step has a cost of its own: the mass of its Gaussian outside the bin of black
width = 2.178949614569182e-5**.5  # the root of beta-tilde_2
inside = Normal(0, 1).cdf(torch.tensor(1/255/width, dtype=D))
passed("(30.3) DDPM's last step costs 0.323 bits for a certain pixel",
       close(ddpm.decoder, -inside.log2(), 1e-3), by='a Gaussian')

# the curves of Figure 30.2
assert abs(curves[sure][-1] - H) < .03 and curves[sure][0] > H + .2
assert all(red > blue + .2 for blue, red in zip(curves[sure], curves[byte_nats]))


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: the last step's standard deviation against published values of the linear schedule:
# beta-tilde_2, which is also the learned one at frac 0, and beta_1 = 1e-4 at frac 1
one, two = map(Level, linear().log_snr[:2])
x0 = torch.arange(256, dtype=D)[:, None]/127.5 - 1
guess = x0 + .01


def got(frac):
    return byte_nats(Prediction(guess, guess, frac), x0, x0, one, two)


def known(variance):
    return decoder_nats(x0, guess, torch.tensor(variance**.5, dtype=D))


tilde = 5.4531876613021935e-5
errors = (close(got(None), known(tilde), 1e-7),
          close(got(torch.zeros_like(x0)), known(tilde), 1e-7),
          close(got(torch.ones_like(x0)), known(1e-4), 1e-7))
passed('(30.3) last step: fixed and learned variances', *errors, by='the linear schedule')


# %%NBQA-CELL-SEP15d533
test = mnist('test')
coded = test[:budget(64, 1000)]
pictures = to_unit(coded.pixels)


def bits_of(denoiser, variance=fixed_small):  # the same steps and noise for all
    torch.manual_seed(1)
    return bits_per_dim(denoiser, pictures, Cosine(), 1000, variance, budget(16, 100))


labelled = model.given(coded.label)
runs = {'fixed_small': bits_of(clamp_x0(labelled)),
        'fixed_large': bits_of(clamp_x0(labelled), fixed_large),
        'not clamped': bits_of(labelled)}
for name, r in runs.items():
    print(f'{name}: {r}')


# %%NBQA-CELL-SEP15d533
def train_on_bound(model, data, steps=150, batch=16, lr=2e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        some = data[torch.randint(len(data), (batch,))]
        x0 = to_unit(some.pixels)
        eps = torch.randn_like(x0)

        # log SNR evenly from -5 to 12, one in each of as many parts as there are digits
        u = (torch.arange(batch) + torch.rand(batch))/batch
        t = Level((17*u - 5).view(-1, 1, 1, 1))
        # products in bfloat16 where the processor has it, as in notebook 22
        with torch.autocast('cpu', torch.bfloat16, enabled=has_bf16(x0.device)):
            p = model.given(some.label)(q_sample(x0, t, eps), t)
        loss = (p.eps - eps).square().mean()

        optimizer.param_groups[0]['lr'] = lr*min(1, step/20)*(1 - step/steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


torch.manual_seed(0)
tuned = load_weights('mnist')[0].requires_grad_(True)
train_on_bound(tuned, mnist('train'))
runs['on the bound'] = bits_of(clamp_x0(tuned.given(coded.label)))
print(f'fixed_small, trained on the bound: {runs["on the bound"]}')


# %%NBQA-CELL-SEP15d533
# Measured: the same digits with raw bytes, with one table of grey values, and with gzip
counted = torch.bincount(test.pixels[len(coded):].flatten().long(), minlength=256) + 1.
frequency = counted.double()/counted.sum()
table = -frequency[coded.pixels.long()].log2().mean().item()
packed = 8*len(gzip.compress(coded.pixels.numpy().tobytes(), 9))/coded.pixels.numel()
codes = {'raw bytes': 8., **{f'diffusion, {name}': r.total for name, r in runs.items()},
         'one table': table, 'gzip': packed}
for name, value in codes.items():
    print(f'{name:23} {value:.2f} bits per pixel')


# %%NBQA-CELL-SEP15d533
# Figure 30.3: seven codes for the same digits, and where the steps of the model spend their bits
left, right = row(2, 2.5)
names = [*codes][::-1]
left.barh(names, [codes[name] for name in names], color='.75', height=.62)
inks = {'fixed_small': BLUE, 'fixed_large': RED, 'not clamped': '.35',
        'on the bound': INK['data']}
for name, r in runs.items():
    left.barh('diffusion, ' + name, r.steps + r.prior, color=inks[name], height=.62)
for name in names:
    left.text(codes[name] + .1, name, f'{codes[name]:.2f}', va='center')
left.text(4.9, 'diffusion, fixed_small', 'steps', va='center', color=BLUE)
left.text(6.5, 'diffusion, fixed_small', '+ decoder', va='center', color=GREY)
left.set(xlabel='bits per dimension', xlim=(0, 9.2))
left.tick_params(left=False)

# beside a denoiser that removes no noise at all, clamped too, on the same steps and noise
none = bits_of(clamp_x0(lambda x, t: Prediction(x/t.signal, 0*x)))
right.plot(none.log_snr, none.runs/none.width, '--', color=GREY)
right.text(-1.2, .63, 'no denoising', color=GREY)
at = 0.
for name, r in sorted(runs.items(), key=lambda named: named[1].runs[-1]/named[1].width[-1]):
    right.plot(r.log_snr, r.runs/r.width, '.-', color=inks[name])
    at = max(at + .085, (r.runs[-1]/r.width[-1]).item())  # labels do not touch
    right.text(9.6, at, name, color=inks[name], va='center')
right.set(xlabel='log SNR: noise left, clean right', ylabel='bits/dim per unit of log SNR',
          xlim=(-5.5, 14.5), ylim=(0, .95), xticks=range(-4, 11, 2))


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: the bookkeeping: the parts make the whole, and the pictures cost less than raw bytes;
# where the steps spend theirs. The checks of the bound itself are above and below
b = runs['fixed_small']
assert all(0 < r.total < 8 and r.error > 0 for r in runs.values())
low = b.runs[b.log_snr < 0].sum()
high = b.runs[b.log_snr > 4].sum()
black = (pictures == -1).double().mean()
print(f'of the steps, {low:.3f} bits are spent below log SNR 0, {high:.3f} above 4')
print(f'{black:.0%} of the pixels are exactly black')
passed('(30.3) prior + steps + decoder = the whole',
       close(b.total, b.prior + b.steps + b.decoder), by='two sums of the same terms')

# the last run beside no denoising at all, clamped too, on the same steps and noise
by_network = b.runs[-1]/b.width[-1]
by_none = none.runs[-1]/none.width[-1]
print(f'the last run costs {by_network:.2f} bits per unit of log SNR, no denoising {by_none:.2f}')
assert .8 < by_network/by_none < 1

# the clamp saves bits
saved = runs['not clamped'].each - b.each
print(f'the clamp saves {saved.mean():.2f} ± {standard_error(saved):.2f} bits')
assert saved.mean() > 5*standard_error(saved)

# the simple codes are cheaper, by far more than the standard error; gzip needs little more than
# half as much
for r in runs.values():
    assert r.total - max(table, packed) > 5*r.error
assert min(runs[name].total for name in ('fixed_small', 'fixed_large')) > 1.7*packed
passed('both simple codes are cheaper than the model, by more than 5 standard errors')

# training on the bound: the same pictures cost less
for name in ('fixed_small', 'fixed_large'):
    saved = runs[name].each - runs['on the bound'].each
    assert saved.mean() > 5*standard_error(saved)
passed('training on the bound saves bits, by more than 5 standard errors')

# all of it in the clean steps and in the decoder
tuned_bits = runs['on the bound']
clean = (b.runs - tuned_bits.runs)[b.log_snr > 4].sum() + b.decoder - tuned_bits.decoder
saving = b.total - tuned_bits.total
assert clean > .9*saving
print(f'above log SNR 4 and in the decoder it saves {clean/saving:.0%} of it')


# %%NBQA-CELL-SEP15d533
# Set-up: Gaussian data in four points, and the bound less the entropy
def density(world):
    "The last step as a density, with the exact variance."

    def last_step(p, x0, x_1, one, two):
        std = world.var_x0(x_1, one).sqrt()
        return -Normal(p.x0, std).log_prob(x0)

    return last_step


def one_gaussian(mean, std):
    one = torch.ones(1, dtype=D)
    return Mixture(one, mean*one[None], std*one)


# two points at ±1 standard deviation of x0, times two of the noise
corners = torch.tensor([[1., 1], [1, -1], [-1, 1], [-1, -1]], dtype=D)


def gap(S, mean, std, variance):
    "The bound less the entropy, in nats, without error."
    world = one_gaussian(mean, std)
    x0 = mean + std*corners[:, :1]
    b = bits_per_dim(world, x0, S, len(S), variance(world), draws=None,
                     last_step=density(world), noise=lambda x: corners[:, 1:])
    return b.total*math.log(2) - .5*math.log(2*math.pi*math.e*std**2)


# %%NBQA-CELL-SEP15d533
# Eq. 30.4: the computed bound against zero, and against the sum in betas, on three schedules
def large(world):
    return fixed_large


def small(world):
    return fixed_small


def lost_each(S):
    ab = (1 - S.betas).cumprod(0)
    ratio = (1 - ab[1:])/(1 - ab[:-1])
    return .5*(ratio - 1 - ratio.log())


errors = []
for S in (linear(), constant(30, .1), cosine(100)):
    errors.append(close(gap(S, 0., 1., large), 0.))
    errors.append(close(gap(S, 0., 1., small), lost_each(S).sum()))
print(f'with beta-tilde, linear: {gap(linear(), 0., 1., small):.6f} nats, '
      f'{lost_each(linear())[0]:.3f} of them in the step from 2 to 1')
passed('(30.4) the gap of N(0, I), with both variances', *errors, by='the sum in betas')


# %%NBQA-CELL-SEP15d533
# Eq. 30.5: with the exact variance only the prior loses: by torch's KL, for short chains that end
# far from noise
def mismatch(S, mean, std):
    a = (1 - S.betas).prod()
    end = Normal(a.sqrt()*mean, (a*std**2 + 1 - a).sqrt())
    return kl_divergence(end, Normal(0*a, 1 + 0*a))


cases = [(linear(), .7, .3)]
for S in (constant(10, .2), constant(10, .05)):
    cases += [(S, 0., 1.), (S, .7, .3), (S, -2., 1.8)]
print(f'gap of N(.7, .3²), ten steps of .05: {gap(constant(10, .05), .7, .3, exact):.4f} nats')
errors = [close(gap(*case, exact), mismatch(*case)) for case in cases]
passed('(30.5) the gap of N(m, v) is the mismatch at the start', *errors, by="torch's KL")


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: seven draws of 99, and one of two, are right on average, within 5 standard errors
torch.manual_seed(0)
world = one_gaussian(.7, .3)
x0 = (.7 + .3*corners[:, :1]).repeat(1000, 1)
S = cosine(100)


def signs(x):
    return corners[:, 1:].repeat(len(x) // 4, 1)


few = bits_per_dim(world, x0, S, 100, draws=7, noise=signs)
full = bits_per_dim(world, x0, S, 100, draws=None, noise=signs)
one_of_two = bits_per_dim(world, x0, constant(3, .4), 3, draws=1, noise=signs)
both_steps = bits_per_dim(world, x0, constant(3, .4), 3, draws=None, noise=signs)

d = one_of_two.each - both_steps.each
passed('(30.3) one draw of two steps is right on average',
       close(d.mean(), 0., 5*standard_error(d)), by='5 standard errors')
d = few.each - full.each
passed('(30.3) seven draws of 99 steps are right on average',
       close(d.mean(), 0., 5*standard_error(d)), by='5 standard errors')

# 200 runs of 40 other pictures: the spread of their totals against the errors that they report
many = [bits_per_dim(world, world.sample(40), S, 100, draws=7, last_step=density(world))
        for _ in range(200)]
spread = torch.tensor([b.total for b in many]).std().item()
reported = torch.tensor([b.error for b in many]).square().mean().sqrt().item()
passed('(30.3) the standard error', close(spread/reported, 1., .25), by='the spread of 200 runs')


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: the parts of the bound: runs go from noise to clean, and rmse is that of the world
t = Level(S.log_snr[1:].flip(0))
var_x0 = world.var_x0(torch.zeros(99, 1, dtype=D), Level(t.log_snr[:, None]))[:, 0]
passed('(30.3) runs go from noise to clean', close(full.log_snr, t.log_snr, 1e-12))
passed('(30.3) the error at each level', close(full.rmse, 127.5*var_x0.sqrt(), 1e-9),
       by='the variance of x0 given x_t')
passed('(30.3) the parts make the whole',
       close(full.each.mean() - full.prior - full.steps - full.decoder, 0.))
assert (few.log_snr.diff() > 0).all() and few.error > 0

# the width of a picture's runs; free draws would have this variance, stratified ones have less
span = -S.log_snr.diff()
g = -torch.nn.functional.softplus(S.log_snr).diff()
p_t = (1/99 + g/g.sum())/2
free_draws = ((span**2/p_t).sum() - span.sum()**2)/7
errors = (close(full.width.sum(), S.log_snr[0] - S.log_snr[-1]),
          close(few.width.sum(), full.width.sum(), 5*(free_draws/4000)**.5))
passed('(30.3) the runs cover the whole axis of log SNR', *errors)


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: a set in two unequal parts, on the same noise, costs what it costs as one
world = one_gaussian(.7, .3)
whole_set = torch.cat([x0[:4], .9*x0[:12]])


def cost(x):
    return bits_per_dim(world, x, S, 100, draws=None, noise=signs)


whole = cost(whole_set)
joined = join_bits([cost(whole_set[:4]), cost(whole_set[4:])])
assert cost(whole_set[:4]).rmse[-1] != cost(whole_set[4:]).rmse[-1]

names = 'each prior runs width decoder log_snr rmse total error'.split()
errors = [close(getattr(whole, name), getattr(joined, name)) for name in names]
passed('(30.3) two parts joined = the whole set', *errors, by='all nine results')


# %%NBQA-CELL-SEP15d533
# Figure 30.4: bound minus exact -log p on the same 10,000 points, at 4 to 512 steps
torch.manual_seed(0)
world = ring(dtype=D)
x0 = world.sample(10_000)
truth = to_bits(-world.log_prob(x0)/2)
gaps = []
gap_errors = []
for T in (4, 8, 32, 512):
    b = bits_per_dim(world, x0, Cosine(), T, exact(world), 32, density(world))
    d = b.each - truth
    gaps.append(d.mean().item())
    gap_errors.append(standard_error(d))

fig, ax = plt.subplots(figsize=(7, 2.), layout='constrained', dpi=160)
ax.axhline(0, color='black', lw=1, linestyle='--')
ax.errorbar((4, 8, 32, 512), gaps, [2*e for e in gap_errors], fmt='.-', color=BLUE, capsize=3)
for T, value in zip((4, 8, 32, 512), gaps):
    ax.annotate(f'{value:.2f}', (T, value), (5, 4), textcoords='offset points', color=BLUE)
ax.text(4, -.02, 'no gap: the bound is the truth', va='top')
ax.set(xscale='log', xlabel='number of steps $T$', ylabel='gap in bits per dimension',
       ylim=(-.13, .85))
ax.minorticks_off()
ax.set_xticks((4, 8, 32, 512), ('4', '8', '32', '512'))


# %%NBQA-CELL-SEP15d533
# Eq. 30.6: the gap in bits per dimension is never negative by 5 standard errors, and falls
for T, value, e in zip((4, 8, 32, 512), gaps, gap_errors):
    print(f'{T:4} steps: gap {value:7.4f} ± {e:.4f} bits per dimension')
    assert value > -5*e
assert gaps[0] > gaps[1] + .05 and gaps[1] > gaps[2] + .05
passed('(30.6) the gap falls to 0 with 512 steps', close(gaps[-1], 0., tol=5*e),
       by='the exact density of the ring')


# %%NBQA-CELL-SEP15d533
# Figure 30.5: the sum over a chain as rectangles above the curve of the error, for three chains
curve = torch.linspace(math.exp(-2.), math.exp(2.), 300, dtype=D)
chains = []
for name, S, n in (('linear', linear(), 8), ('cosine', Cosine(), 8), ('cosine', Cosine(), 40)):
    first, end = S.time(Level(torch.tensor([-2., 2.], dtype=D))).tolist()
    edges = S(torch.linspace(first, end, n + 1, dtype=D)).snr.sort().values
    area = (edges.diff()/(1 + edges[:-1])).sum()/2
    chains.append((f'{name}, {n} steps: {area:.2f} nats', edges))
    assert area > .5*torch.log((1 + edges[-1])/(1 + edges[0]))

panels = row(3, 2., sharey=True)
panels[0].set_ylabel('squared error of $\\hat x_0$')
for ax, (title, edges) in zip(panels, chains):
    ax.stairs(1/(1 + edges[:-1]), edges, fill=True, color=BLUE, alpha=.25)
    ax.stairs(1/(1 + edges[:-1]), edges, color=BLUE, lw=.8)
    ax.plot(curve, 1/(1 + curve), color='black', lw=1.3)
    ax.set(title=title, xlabel='SNR', ylim=(0, 1), xlim=(0, 7.5))
exact_half = .5*math.log((1 + curve[-1])/(1 + curve[0]))
ax.text(1.6, .55, f'half the area under\nthe curve: {exact_half:.2f} nats')


# %%NBQA-CELL-SEP15d533
#| export
def continuous_nats(
        log_snr: Tensor,  # [l] in order, either way
        mse: Tensor,  # [l] squared error of the clean guess there, per dimension
) -> Tensor:  # [] nats per dimension
    "The bound of infinitely many steps: half the integral of error over SNR. Eq. 30.7."
    return .5*torch.trapezoid(mse*log_snr.exp(), log_snr).abs()  # d SNR = SNR d log SNR


# %%NBQA-CELL-SEP15d533
# Eq. 30.8: three schedules between the same two ends give one integral, and it is the logarithm
v = torch.tensor(.3**2, dtype=D)
ends = -6., 8.
low, high = (1 + v*math.exp(end) for end in ends)
closed = .5*(high/low).log()


def clipped(S, n=40_000):
    "n levels of the schedule S between the ends."
    first, last = S.time(Level(torch.tensor(ends, dtype=D))).tolist()
    return S(torch.linspace(first, last, n, dtype=D)).log_snr


def integral(log_snr):
    return continuous_nats(log_snr, v/(1 + v*log_snr.exp()))


paths = dict(linear=clipped(linear()), cosine=clipped(Cosine()),
             straight=torch.linspace(*ends, 40_000, dtype=D))
print({name: f'{integral(path).item():.7f}' for name, path in paths.items()})
paths['linear'] = paths['linear'].flip(0)  # from the other end it is the same
errors = [close(integral(path), closed, 1e-4) for path in paths.values()]
passed('(30.8) one integral for three schedules', *errors, by='the logarithm')


# %%NBQA-CELL-SEP15d533
# Eq. 30.7: bits_per_dim's own sum, over grids between these ends, falls to the integral from
# above as 1/T, for both schedules
def middle(log_snr):
    "The steps of the bound above the integral, in nats."
    chain = Grid(log_snr.sort().values)
    b = bits_per_dim(one_gaussian(0., .3), .3*corners[:, :1], chain, draws=None,
                     noise=lambda x: corners[:, 1:])
    return b.steps*math.log(2) - closed


over = {}
for name, S in dict(linear=linear(), cosine=Cosine()).items():
    over[name] = torch.tensor([middle(clipped(S, n + 1)) for n in (800, 1600)])
print({name: [f'{x:.5f}' for x in excess] for name, excess in over.items()})
assert all((excess > 0).all() for excess in over.values())
errors = [close(excess[1:]/excess[:-1], .5, .02) for excess in over.values()]
passed('(30.7) twice the steps, half the excess over the integral', *errors, by='ratio')


# %%NBQA-CELL-SEP15d533
# Eq. 30.7: short steps, no denoising: half a nat for each of 14 units of log SNR
def idle(x, t):
    return Prediction(x/t.signal, 0*x)


fine = Grid(torch.linspace(-6, 8, 2001, dtype=D))
b = bits_per_dim(idle, corners[:, :1], fine, draws=None, noise=lambda x: corners[:, 1:])
passed('(30.7) no denoising costs half a nat per unit of log SNR',
       close(b.steps*math.log(2)/14, .5, tol=.002), by='14 units')


# %%NBQA-CELL-SEP15d533
# Eq. 30.7: the shipped network on two schedules, picture by picture, within 5 standard errors (both
# draw the same random numbers); and the cost of no label, on the same steps and noise
few = pictures[:budget(48, 500)]


def free(p, x0, x_1, one, two):
    return 0*x0


def walk(denoiser, S):
    torch.manual_seed(2)
    chain = Grid(clipped(S, 80_000).sort().values)
    return bits_per_dim(denoiser, few, chain, draws=budget(12, 50), last_step=free)


conditional = model.given(coded.label[:len(few)])
unconditional = model.given(torch.full((len(few),), -1))
on_cosine = walk(conditional, Cosine())
on_linear = walk(conditional, linear())
without = walk(unconditional, linear())

price = without.each - on_linear.each
schedules = on_cosine.each - on_linear.each
print(f'cosine {on_cosine.steps:.3f} ± {on_cosine.error:.3f}, '
      f'linear {on_linear.steps:.3f} ± {on_linear.error:.3f}; '
      f'no label costs {price.mean():.4f} ± {standard_error(price):.4f} more')
print(f'picture by picture, the schedules differ by {schedules.mean():.4f} '
      f'± {standard_error(schedules):.4f}')
passed('(30.7) the network costs the same on both schedules',
       close(schedules.mean(), 0., 5*standard_error(schedules)), by='5 standard errors')


# %%NBQA-CELL-SEP15d533
# Eq. 30.6: never below the roll's own -log p; the oracle is at it, and the trained network is
# nearer than the untrained one, all by 5 standard errors
angle = 1.5*math.pi*(1 + 2*(torch.arange(400) + .5)/400)
spiral = angle[:, None]/7*torch.stack([angle.cos(), angle.sin()], 1)
world = Mixture(torch.full((400,), 1/400), spiral, torch.full((400,), .05))
torch.manual_seed(3)
points = world.sample(1000)
truth = to_bits(-world.log_prob(points)/2)

roll = find_recipe('roll')
torch.manual_seed(3)
training = Training(roll.build())
raw = roll.build()
batches = roll.batches(256, 0, torch.device('cpu'))
for _ in fit(training, batches, roll.schedule, roll.loss, budget(250, 2000), **roll.settings):
    pass


def wide(p, x0, x_1, one, two):
    return -Normal(p.x0, one.sigma).log_prob(x0)


def above(denoiser):
    torch.manual_seed(4)
    b = bits_per_dim(denoiser, points, roll.schedule, 1000, fixed_large, last_step=wide)
    return b.each - truth


distance = dict(oracle=above(world), learned=above(training.average), untrained=above(raw))
for name, d in distance.items():
    e = standard_error(d)
    print(f'{name:9} {d.mean():6.2f} ± {e:.2f} bits per dimension above the truth')
    assert d.mean() > -5*e
for better, worse in (('oracle', 'learned'), ('learned', 'untrained')):
    d = distance[worse] - distance[better]
    assert d.mean() > 5*standard_error(d)
oracle = distance['oracle']
passed('(30.6) the exact denoiser of the roll is at the truth',
       close(oracle.mean(), 0., 5*standard_error(oracle)), by='5 standard errors')


# %%NBQA-CELL-SEP15d533
# Figure 30.6: the error of the prediction over the level, and over the bits spent so far
b = runs['fixed_small']
left, right = row(2, 2.4, sharey=True)
left.plot(b.log_snr, b.rmse, '.-', color=BLUE)
left.set(xlabel='log SNR: noise left, clean right', ylabel='RMSE in grey values',
         title='distortion on the way', ylim=(0, None))
right.plot(b.rate + b.runs/2, b.rmse, '.-', color=BLUE)
right.axvline(.1, color='.5', lw=1)
right.text(.11, 55, 'a tenth of a bit', color='.5')
right.plot(.12, 12, 'D', color='black', ms=4)
right.annotate('DDPM on CIFAR-10', (.12, 12), (.16, 25), va='center',
               arrowprops=dict(arrowstyle='-', color='.5', lw=.7))
right.set(xlabel='bits per dimension so far', title='distortion and rate', xscale='log')


# %%NBQA-CELL-SEP15d533
# Eq. 30.9: Gaussian data: with short steps, rate against half the log of variance over squared
# error, at every run
v = .3**2
fine = Grid(torch.linspace(-14, 8, 4001, dtype=D))
b = bits_per_dim(one_gaussian(0., .3), .3*corners[:, :1], fine, draws=None,
                 noise=lambda x: corners[:, 1:])
mse = (b.rmse/127.5)**2
passed('(30.9) rate and distortion of Gaussian data',
       close(b.rate, .5*torch.log2(v/mse), tol=.01), by='the law of Gaussian sources')


# %%NBQA-CELL-SEP15d533
# Eq. 30.9: on digits the rate only grows, the distortion falls up to the noise of the draws, and
# after the last run the rate is prior and steps
b = runs['fixed_small']
k = (b.rate < .1).sum() - 1
print(f'between {b.rate[k]:.3f} and {b.rate[k+1]:.3f} bits the prediction is off by '
      f'{b.rmse[k]:.1f} grey values')
assert round(b.steps - .1, 1) == 1.6 and (b.rate.diff() > 0).all()
assert b.rmse.diff().max() < .2  # draws of one level differ by noise
errors = close(b.rate[-1] + b.runs[-1], b.prior + b.steps), close(b.rate[0], b.prior)
passed('(30.9) the rate starts at the prior and ends at prior + steps', *errors)


# %%NBQA-CELL-SEP15d533
with expect_fail('within [-1, 1]', Problem):
    bits_per_dim(labelled, pictures*2, Cosine(), draws=1)
with expect_fail('within [-1, 1]', Problem, show=False):  # the same answer
    bits_per_dim(labelled, pictures*math.nan, Cosine(), draws=1)
with expect_fail('each noisier', Problem):
    bits_per_dim(coin, flat, Grid(torch.tensor([-1., -1., 3.], dtype=D)))
with expect_fail('each noisier', Problem, show=False):
    bits_per_dim(coin, flat, Grid(torch.tensor([-1., -2., 3.], dtype=D)))
with expect_fail('at most as many', Problem):
    bits_per_dim(coin, flat, linear(20), 50)
with expect_fail('see nothing', Problem):
    bits_per_dim(coin, flat, Cosine(), draws=0)


# %%NBQA-CELL-SEP15d533
# Eq. 30.3: float32 and float64 data agree; one picture has a bound, but no standard error
def cost(denoiser, x):
    return bits_per_dim(denoiser, x, Cosine(), 50, draws=None, noise=lambda x: x.flip(0))


torch.manual_seed(0)
one_x = coin.sample(1)
double = cost(coin, flat)
single = cost(coin.to(torch.float32), flat.float())
assert math.isnan(bits_per_dim(coin, one_x, Cosine(), 50).error)
passed('(30.3) float32 data cost the same', close(single.total, double.total, 1e-4), by='float64')


# %%NBQA-CELL-SEP15d533
# Questions 1 and 3: the number put right; what 20 steps cost above the integral on two schedules
passed('the bits per dimension put right', close(3 - 8 + math.log2(127.5), 1.99, .005))
few_steps = [middle(clipped(S, 21)) for S in (linear(), Cosine())]
assert few_steps[0] > 1.3*few_steps[1] > 0
passed(f'20 steps cost {few_steps[0]:.1f} nats (linear) and {few_steps[1]:.1f} (cosine) '
       'above the integral')


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1
fair, white = ..., ...
half = Mixture(torch.tensor([.5, .5], dtype=D), coin.mean, coin.std)
b = bits_per_dim(half, half.sample(4000), Cosine(), last_step=sure)
always = coin.given(1)
b_white = bits_per_dim(always, always.sample(9), Cosine(), last_step=sure)
errors = close(b.total, fair, 5*b.error), close(b_white.total, white, 1e-4)
errors


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2: the constant for 65,536 grey values on [-1, 1]; a flat density over all
# their cells then costs 16 bits
constant_16 = ...
close(math.log2(2*65_536/65_535) + constant_16, 16.)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: `cost` is that of the step i [b], a place in a table of 99 steps, the
# cleanest first, for each of 20,000 points
world = one_gaussian(.7, .3)
schedule = cosine(100)
points = .7 + .3*torch.randn(20_000, 1, dtype=D)


def cost(i):
    s, t = (Level(schedule.log_snr[j, None]) for j in (i, i + 1))
    x_t = q_sample(points, t, torch.randn_like(points))
    return to_bits(bound_term(world(x_t, t), points, x_t, s, t, fixed_small))


def estimate(p, n):
    ...  # [20000]: n free draws from p [99] for each point


g = torch.nn.functional.softplus(schedule.log_snr).diff()
even = torch.full((99,), 1/99, dtype=D)
ours = (even + g/g.sum())/2
best = ...
costs = [cost(torch.full((20_000,), i)) for i in range(99)]
rows = dict(even=estimate(even, 7), ours=estimate(ours, 7), best=estimate(best, 7))
whole = torch.stack(costs).sum(0)
print({name: f'{v.mean():.2f}, spread {v.std():.2f}' for name, v in rows.items()})
assert rows['best'].std() < rows['ours'].std() < rows['even'].std()
errors = []
for v in rows.values():
    sigma = ((v.var() + whole.var())/20_000).sqrt().item()
    errors.append(close(v.mean(), whole.mean(), 5*sigma))
max(errors)


# %%NBQA-CELL-SEP15d533
# solution 1: the perfect denoiser pays the entropy: 1 bit for a fair coin, 0 bits where
# nothing is uncertain
torch.manual_seed(0)
fair, white = 1., 0.
half = Mixture(torch.tensor([.5, .5], dtype=D), coin.mean, coin.std)
b = bits_per_dim(half, half.sample(4000), Cosine(), last_step=sure)
always = coin.given(1)
b_white = bits_per_dim(always, always.sample(9), Cosine(), last_step=sure)
errors = close(b.total, fair, 5*b.error), close(b_white.total, white, 1e-4)
errors


# %%NBQA-CELL-SEP15d533
# solution 2: byte/127.5 - 1 becomes value/32767.5 - 1, a cell is 1/32767.5 wide: 15.000
# for 6.994, so 8.006 more
constant_16 = math.log2(32_767.5)
close(math.log2(2*65_536/65_535) + constant_16, 16.)


# %%NBQA-CELL-SEP15d533
# solution 3: E (L/p)^2 = sum of E L_t^2/p_t, under sum p_t = 1, is least where
# E L_t^2/p_t^2 is the same for all t: p_t in proportion to the root of E L_t^2
torch.manual_seed(0)
world = one_gaussian(.7, .3)
schedule = cosine(100)
points = .7 + .3*torch.randn(20_000, 1, dtype=D)


def cost(i):
    s, t = (Level(schedule.log_snr[j, None]) for j in (i, i + 1))
    x_t = q_sample(points, t, torch.randn_like(points))
    return to_bits(bound_term(world(x_t, t), points, x_t, s, t, fixed_small))


def estimate(p, n):
    draws = torch.multinomial(p, 20_000*n, replacement=True).reshape(n, -1)
    return sum(cost(i)/p[i] for i in draws)/n


g = torch.nn.functional.softplus(schedule.log_snr).diff()
even = torch.full((99,), 1/99, dtype=D)
ours = (even + g/g.sum())/2
costs = [cost(torch.full((20_000,), i)) for i in range(99)]
root = torch.stack([c.square().mean().sqrt() for c in costs])
best = root/root.sum()
rows = dict(even=estimate(even, 7), ours=estimate(ours, 7), best=estimate(best, 7))
whole = torch.stack(costs).sum(0)
print({name: f'{v.mean():.2f}, spread {v.std():.2f}' for name, v in rows.items()})
assert rows['best'].std() < rows['ours'].std() < rows['even'].std()
errors = []
for v in rows.values():
    sigma = ((v.var() + whole.var())/20_000).sqrt().item()
    errors.append(close(v.mean(), whole.mean(), 5*sigma))
max(errors)
