# %%NBQA-CELL-SEP15d533
#| default_exp core.denoiser


# %%NBQA-CELL-SEP15d533
# Figure 02.1: one evaluation of a trained network for each level, in three forms
import matplotlib.pyplot as plt
import torch
from ddpm_lit import show
from ddpm_lit.core.check import close, passed, setup
from ddpm_lit.core.level import Level
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.train.weights import load_weights

setup()


def sheet(x, columns, above=(), beside=()):
    "Pictures [n c 28 28] side by side, with labels above the columns and beside the rows."
    page = show.tile(x, columns)
    height = 6.3*len(page)/page.shape[1] + .3
    _, ax = plt.subplots(figsize=(7, height), layout='constrained', dpi=160)
    ax.imshow(page, interpolation='nearest')
    side = x.shape[-1] + 1
    ax.set_xticks([side*i + side/2 for i in range(len(above))], above)
    ax.set_yticks([side*i + side/2 for i in range(len(beside))], beside)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def named(log_snr):
    "A column's label: its log SNR, with a proper minus."
    return f'λ = {log_snr:g}'.replace('-', '−')


torch.manual_seed(0)
model, _ = load_weights('mnist')
digit = to_unit(mnist('test').pixels[:1])
noise = torch.randn_like(digit)
steps = (6., 4., 2., 0., -2., -4., -6.)
at = Level(torch.tensor(steps)).like(digit)
mixed = at.signal*digit + at.sigma*noise  # [7 1 28 28]
with torch.no_grad():
    seen = model.given(-1)(mixed, at)     # no label

velocity = at.signal*seen.eps - at.sigma*seen.x0
blank = torch.ones_like(digit)
rows = [mixed, blank, velocity, blank, seen.x0, digit, seen.eps, noise]
names = ['input $x_t$', r'output $\hat v$', r'$\hat x_0$', r'$\hat\epsilon$']
sheet(torch.cat(rows), 8, [*map(named, steps), 'true'], names)
passed('(02.1) signal · x̂0 + sigma · ε̂ = x_t, for a trained network',
       close(at.signal*seen.x0 + at.sigma*seen.eps, mixed, tol=1e-5), by='the first row')


# %%NBQA-CELL-SEP15d533
# alpha_bar in float64; a = alpha_bar[t].sqrt() and s = (1 - alpha_bar[t]).sqrt(),
# both as [b 1 1 1]
def target(kind, x0, eps, a, s):  # what the network is trained to output
    return dict(eps=eps, x0=x0, v=a*eps - s*x0, score=-eps/s)[kind]


def x0_and_eps(kind, out, x_t, a, s):  # what its output means
    if kind == 'eps':
        return (x_t - s*out)/a, out
    if kind == 'x0':
        return out, (x_t - a*out)/s
    if kind == 'v':
        return a*x_t - s*out, s*x_t + a*out
    if kind == 'score':
        return (x_t + s**2*out)/a, -s*out

# training: (net(x_t, t) - target('v', x0, eps, a, s)).square().mean()
# sampling: x0_hat, eps_hat = x0_and_eps('v', net(x_t, t), x_t, a, s)


# %%NBQA-CELL-SEP15d533
#| export
from inspect import signature
from typing import Any, Callable, Mapping, NamedTuple, Protocol, TypeVar
import torch
from torch import Tensor, nn
from ddpm_lit.core.problem import Problem, check_each
from ddpm_lit.core.level import Level


# %%NBQA-CELL-SEP15d533
#| hide
import math
from ddpm_lit.core.check import expect_fail
from ddpm_lit.core.level import CLEAN, from_alpha_bar


# %%NBQA-CELL-SEP15d533
#| export
class Prediction(NamedTuple):
    "What a denoiser predicts from x_t: the clean data and the noise. Eq. 02.1."
    x0: Tensor  # [b ...] the clean data
    eps: Tensor  # [b ...] the noise: x_t = signal x0 + sigma eps
    # [b ...] the learned mix of variances, where the network has one; in [0, 1] as a rule
    frac: Tensor | None = None


def each_part(f: Callable[..., Tensor], *predictions: Prediction) -> Prediction:
    "f of each part of predictions: x0, eps, and frac where all of them have it."
    found: list = []
    for parts in zip(*predictions):
        found.append(None if any(p is None for p in parts) else f(*parts))
    return Prediction(*found)


class Denoiser(Protocol):
    "(x_t, level) -> Prediction: a network, an exact mixture, a guided denoiser ..."

    def __call__(self, x: Tensor, t: Level) -> Prediction:
        ...


# (the network's output, x_t, t): what the output means
Parameterization = Callable[[Tensor, Tensor, Level], Prediction]


# %%NBQA-CELL-SEP15d533
# `each_part` leaves out what any prediction lacks
whole = Prediction(torch.ones(2), torch.zeros(2), torch.full((2,), .5))
bare = Prediction(torch.full((2,), 3.), torch.ones(2))
both = each_part(torch.add, whole, bare)
assert both.x0.tolist() == [4, 4] and both.eps.tolist() == [1, 1] and both.frac is None
assert each_part(torch.neg, whole).frac.tolist() == [-.5, -.5]
passed('each_part leaves out what any prediction lacks')


# %%NBQA-CELL-SEP15d533
#| export
def from_eps(eps: Tensor,  # [b ...] the network's output
             x: Tensor,  # [b ...] its input x_t
             t: Level,  # the level of x_t
             ) -> Prediction:
    "The network predicts the noise. Eq. 02.2 (DDPM eq. 15)."
    return Prediction((x - t.sigma*eps)/t.signal, eps)


def from_x0(x0: Tensor, x: Tensor, t: Level) -> Prediction:  # all [b ...]
    "The network predicts the clean data. Eq. 02.3."
    return Prediction(x0, (x - t.signal*x0)/t.sigma)


# %%NBQA-CELL-SEP15d533
# For the checks: 500 numbers x0, noise eps and their mixture x, at each of 81 levels
# [81 1] levels from noise to clean
t = Level(torch.linspace(-20, 20, 81, dtype=torch.float64)[:, None])
x0, eps = torch.randn(2, 81, 500, dtype=torch.float64)
x = t.signal*x0 + t.sigma*eps  # mixed by hand, with a known answer


# %%NBQA-CELL-SEP15d533
# Eq. 02.2: from the true noise follow the true data; rounding x_t costs most where the signal
# is weak
p = from_eps(eps, x, t)
assert p.eps is eps and p.frac is None
error = close((p.x0 - x0)*t.signal, 0., tol=4e-15)
passed('(02.2) the true noise gives the true data, at 81 levels', error, by='a known mixture')

# the pixel of the text, with a noise of -.4 instead of -.5
pixel = torch.tensor(.2)
at_pixel = from_alpha_bar(.36)
passed('the pixel of the text: x̂0 = 0.867 from a noise of −0.4',
       close(from_eps(torch.tensor(-.4), pixel, at_pixel).x0, .52/.6, tol=1e-6))


# %%NBQA-CELL-SEP15d533
# Eq. 02.3: from the true data follows the true noise, except for rounding over sigma
p = from_x0(x0, x, t)
assert p.x0 is x0
error = close((p.eps - eps)*t.sigma, 0., tol=4e-15)
passed('(02.3) the true data give the true noise, at 81 levels', error, by='a known mixture')
passed('the pixel of the text: ε̂ = −0.425',
       close(from_x0(torch.tensor(.9), pixel, at_pixel).eps, -.425, tol=1e-6))


# %%NBQA-CELL-SEP15d533
# Figure 02.2: the pair (x0, noise) and the pair (x_t, v), on the circle
a = torch.linspace(0, 2*math.pi, 200)
titles = ('near clean: $v$ is almost the noise', 'near noise: $v$ is almost minus the data')
for phi, ax in zip((.35, 1.2), show.panels(2, titles, height=3.2, dpi=160)):
    c, s = math.cos(phi), math.sin(phi)
    show.plane(ax, 1.35).plot(a.cos(), a.sin(), **show.style('noise'))

    # the four unit vectors, from the centre
    vectors = {'$x_0$': (1, 0), r'$\epsilon$': (0, 1), '$x_t$': (c, s), '$v$': (-s, c)}
    ax.quiver([0]*4, [0]*4, *zip(*vectors.values()), color=['black']*2 + ['tab:blue']*2,
              angles='xy', scale_units='xy', scale=1)
    for name, (u, w) in vectors.items():
        ax.text(1.18*u, 1.18*w, name, ha='center', va='center', fontsize=11)

    # the angle, from x0 to x_t
    arc = torch.linspace(0, phi, 50)
    ax.plot(.4*arc.cos(), .4*arc.sin(), color='tab:blue', lw=1)
    ax.text(.52*math.cos(phi/2), .52*math.sin(phi/2), r'$\varphi$', ha='center', va='center',
            color='tab:blue')


# %%NBQA-CELL-SEP15d533
#| export
def from_v(v: Tensor, x: Tensor, t: Level) -> Prediction:  # all [b ...]
    "The network predicts v = signal eps - sigma x0. Eq. 02.4-02.5 (Salimans & Ho 2022)."
    return Prediction(t.signal*x - t.sigma*v, t.sigma*x + t.signal*v)


# %%NBQA-CELL-SEP15d533
# Eq. 02.4: the derivative of x_t by the angle, taken by autograd, is the v that from_v expects
def mixture(phi):
    return phi.cos()*x0 + phi.sin()*eps


phi = torch.atan2(t.sigma, t.signal).requires_grad_()
_, v = torch.autograd.functional.jvp(mixture, phi, torch.ones_like(phi))
error = close(v, t.signal*eps - t.sigma*x0, tol=1e-14)
passed('(02.4) v = signal · ε − sigma · x0 is the derivative by the angle', error, by='autograd')


# %%NBQA-CELL-SEP15d533
# Eq. 02.5: from that velocity both come back at every level, to the last digits, with nothing
# to divide by
p = from_v(v, x, t)
errors = close(p.x0, x0, tol=1e-14), close(p.eps, eps, tol=1e-14)
passed('(02.5) the velocity gives data and noise back, at 81 levels', *errors,
       by='a known mixture')


# %%NBQA-CELL-SEP15d533
# Figure 02.3: the score for one known x0, in the plane, at log SNR -1
torch.manual_seed(0)
middle = Level(torch.tensor(-1.))
known = torch.tensor([1.5, .9])
centre = middle.signal*known
titles = ['the score, as arrows', 'sigma² · score, from 14 samples $x_t$']
left, right = show.panels(2, titles, height=3.3, dpi=160)
show.field(lambda z: (centre - z)/middle.sigma**2, left, n=9, limit=2.6, unit=.11)

starts = centre + middle.sigma*torch.randn(14, 2)
show.cloud(starts, right, 'noise', size=14, alpha=1, limit=2.6)
right.quiver(*starts.T, *(centre - starts).T, color=show.INK['model'], width=.004,
             angles='xy', scale_units='xy', scale=1)
angle = torch.linspace(0, 2*math.pi, 100)
for ax in (left, right):
    for radius in (1, 2):  # standard deviations
        size = radius*middle.sigma
        ax.plot(centre[0] + size*angle.cos(), centre[1] + size*angle.sin(), color='.75', lw=.8)
    ax.plot(*centre, 'o', color='black', ms=4)
    ax.plot(*known, '+', color='black', ms=8)
    ax.text(known[0] + .1, known[1] + .1, '$x_0$')
right.text(1.1, -2.2, r'dot: signal$\cdot x_0$')


# %%NBQA-CELL-SEP15d533
#| export
def from_score(score: Tensor, x: Tensor, t: Level) -> Prediction:  # all [b ...]
    "The network predicts the score, the gradient of log q(x_t). Eq. 02.6."
    return from_eps(-t.sigma*score, x, t)


# %%NBQA-CELL-SEP15d533
# Eq. 02.6: autograd through PyTorch's own Gaussian
z = x.clone().requires_grad_()
log_q = torch.distributions.Normal(t.signal*x0, t.sigma).log_prob(z)
score, = torch.autograd.grad(log_q.sum(), z)
p = from_score(score, x, t)
errors = (close(p.eps*t.sigma, eps*t.sigma, tol=1e-14),
          close(p.x0*t.signal, x0*t.signal, tol=1e-14))
passed('(02.6) the score gives data and noise back', *errors, by="autograd, torch's Gaussian")


# %%NBQA-CELL-SEP15d533
# The plain functions against the library: on DDPM's thousand steps, and on the digit network
torch.manual_seed(0)
alpha_bar = (1 - torch.linspace(1e-4, .02, 1000, dtype=torch.float64)).cumprod(0)[:, None]
a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
ours = from_alpha_bar(alpha_bar)
clean, noise_ = torch.randn(2, 1000, 50, dtype=torch.float64)
x_t = a*clean + s*noise_
errors = []
for kind, reading in dict(eps=from_eps, x0=from_x0, v=from_v, score=from_score).items():
    out = target(kind, clean, noise_, a, s)
    plain = x0_and_eps(kind, out, x_t, a, s)
    library = reading(out, x_t, ours)
    for k in range(2):
        errors.append(close(plain[k], library[k], tol=1e-9))
        errors.append(close(plain[k], (clean, noise_)[k], tol=1e-9))

    # what the network predicted, in this form and back
    out = target(kind, seen.x0, seen.eps, at.signal, at.sigma)
    back = x0_and_eps(kind, out, mixed, at.signal, at.sigma)
    close(back[0], seen.x0, tol=1e-3)
    close(back[1], seen.eps, tol=1e-3)
passed('plain PyTorch = library = the truth, in all four forms', *errors, by='1,000 steps')


# %%NBQA-CELL-SEP15d533
#| export
def add_score(p: Prediction, t: Level, g: Tensor) -> Prediction:  # g [b ...]
    "The prediction when g is added to the score. Eq. 02.7."
    return p._replace(x0=p.x0 + t.sigma**2/t.signal*g, eps=p.eps - t.sigma*g)


# %%NBQA-CELL-SEP15d533
# Eq. 02.7: a Gaussian times exp(g x) has a score larger by g; its autograd score against
# add_score, at moderate levels
u = Level(t.log_snr[20:61])
g = torch.randn(500, dtype=torch.float64)
x0_ = x0[20:61]
eps_ = eps[20:61]
x_ = (u.signal*x0_ + u.sigma*eps_).requires_grad_()
log_q = torch.distributions.Normal(u.signal*x0_, u.sigma).log_prob(x_) + g*x_
score, = torch.autograd.grad(log_q.sum(), x_)

p = add_score(Prediction(x0_, eps_, frac=g), u, g)
want = from_score(score, x_.detach(), u)
assert p.frac is g
errors = close(p.eps, want.eps, tol=1e-12), close(p.x0, want.x0, tol=1e-10)
passed('(02.7) adding g to the score', *errors, by='a Gaussian times exp(g x), autograd')


# %%NBQA-CELL-SEP15d533
# Eq. 02.1: each of the five ways to a prediction adds up to x_t again, at all 81 levels
made = dict(eps=from_eps(eps, x, t),
            x0=from_x0(x0, x, t),
            v=from_v(v, x, t),
            score=from_score(-eps/t.sigma, x, t),
            push=add_score(from_v(v, x, t), t, g))
errors = [close(t.signal*p.x0 + t.sigma*p.eps, x, tol=1e-13) for p in made.values()]
passed('(02.1) all five ways to a prediction add up to x_t', *errors, by='81 levels')


# %%NBQA-CELL-SEP15d533
# Figure 02.4: the same error of size .05 in each kind of output, at nine levels
torch.manual_seed(1)
off = .05*torch.randn_like(digit)
nine = (8., 6., 4., 2., 0., -2., -4., -6., -8.)
u = Level(torch.tensor(nine)).like(digit)
x_ = u.signal*digit + u.sigma*noise
v_ = u.signal*noise - u.sigma*digit
by_eps = from_eps(noise + off, x_, u)
by_x0 = from_x0(digit + off, x_, u)
by_v = from_v(v_ + off, x_, u)
names = [r'$\hat x_0$ from $\hat\epsilon$', r'$\hat x_0$ from $\hat v$',
         r'$\hat\epsilon$ from $\hat x_0$', r'$\hat\epsilon$ from $\hat v$']
sheet(torch.cat([by_eps.x0, by_v.x0, by_x0.eps, by_v.eps]), 9, [*map(named, nine)], names)

# the errors that are seen are the factors of (02.8) times the error of the output
size = off.square().mean().sqrt()
rms = (by_eps.x0 - digit).square().mean((1, 2, 3)).sqrt()
passed('the error of the first row grows by sigma/signal',
       close(rms/size/u.edm_sigma.flatten(), 1., tol=1e-3), by='the pictures')


# %%NBQA-CELL-SEP15d533
# Eq. 02.8: derivatives by autograd of what the code computes, against the factors
def slope(reading, i):
    "The derivative of x0 (i = 0) or of eps (i = 1) by the network's output."
    out = torch.zeros_like(t.log_snr, requires_grad=True)
    return torch.autograd.grad(reading(out, x[:, :1], t)[i].sum(), out)[0]


factors = [(from_eps, 0, -t.edm_sigma),
           (from_v, 0, -t.sigma),
           (from_score, 0, t.sigma**2/t.signal),
           (from_x0, 1, -1/t.edm_sigma),
           (from_v, 1, t.signal)]
errors = [close(slope(reading, i)/want, 1., tol=1e-12) for reading, i, want in factors]
passed('(02.8) the five factors, at 81 levels', *errors, by='autograd')


# %%NBQA-CELL-SEP15d533
# Figure 02.5: what an error of 1 in the output becomes, from clean (left) to noise (right)
u = Level(torch.linspace(10, -10, 201))
one = torch.ones(201)
in_data = dict(v=u.sigma, eps=u.edm_sigma, x0=one)
in_noise = dict(v=u.signal, eps=one, x0=1/u.edm_sigma)
titles = [r'error of $\hat x_0$', r'error of $\hat\epsilon$']
look = dict(v=('model', 4, .5), eps=('noise', 1.5, 1), x0=('data', 1.5, 1))
places = [dict(v=(2.6, .02), eps=(-2.1, 14), x0=(6.5, 1.25)),
          dict(v=(-2.6, .02), eps=(-6.5, 1.25), x0=(2.1, 14))]
spoken = dict(v=r'from $\hat v$', eps=r'from $\hat\epsilon$', x0=r'from $\hat x_0$')
axes = show.panels(2, titles, height=2.5, dpi=160)
for ax, curves, place in zip(axes, (in_data, in_noise), places):
    for name, y in curves.items():
        ink, width, alpha = look[name]
        ax.plot(u.log_snr, y, color=show.INK[ink], lw=width, alpha=alpha)
        ax.text(*place[name], spoken[name], ha='center', va='bottom',
                color='.45' if ink == 'noise' else show.INK[ink])
    ax.set(xlabel='log SNR λ', yscale='log', ylim=(.005, 200), xlim=(10, -10))


# %%NBQA-CELL-SEP15d533
# The same in float32: errors of rounding, amplified as (02.8) says and no more
unit = 2**-23  # one unit in the last place
x0_32, eps_32, x_32, v_32 = (a.float() for a in (x0, eps, x, v))
t32 = Level(t.log_snr.float())


def worst(p, scale0, scale1):
    "The errors of x0 and of eps, over 1 + the amplification."
    return (close((p.x0 - x0_32)/(1 + scale0), 0., tol=20*unit),
            close((p.eps - eps_32)/(1 + scale1), 0., tol=20*unit))


errors = (worst(from_eps(eps_32, x_32, t32), 1/t32.signal, 0),
          worst(from_x0(x0_32, x_32, t32), 0, 1/t32.sigma),
          worst(from_v(v_32, x_32, t32), 0, 0))
passed('in float32, rounding errors are amplified by no more than that', *sum(errors, ()),
       by='the float64 values')


# %%NBQA-CELL-SEP15d533
# One level for each sample of a batch, or one for all: the same as one by one
lam = torch.linspace(-3, 3, 4)
X = torch.randn(4, 1, 5, 5)
out = torch.randn(4, 1, 5, 5)
worst_of_all = []
for reading in (from_eps, from_x0, from_v, from_score):
    whole = reading(out, X, Level(lam).like(X))
    single = [reading(out[i], X[i], Level(l)) for i, l in enumerate(lam)]
    errors = (close(whole.x0, torch.stack([p.x0 for p in single]), tol=1e-5),
              close(whole.eps, torch.stack([p.eps for p in single]), tol=1e-5))
    worst_of_all.extend(errors)
passed('a level for each sample of a batch', *worst_of_all, by='one by one')


# %%NBQA-CELL-SEP15d533
#| export
def level_time(t: Level) -> Tensor:
    "The time for a network: 1000 at log SNR -20, 0 at +20, linear in between. Eq. 02.9."
    return 500 - 25*t.log_snr.clamp(-20, 20)


# %%NBQA-CELL-SEP15d533
# Eq. 02.9: both ends, beyond them, and equal steps in between
far = torch.tensor([-math.inf, -30., -20., 20., 30., math.inf])
errors = (close(level_time(Level(far)), [1000, 1000, 1000, 0, 0, 0], tol=0),
          close(level_time(t).diff(dim=0), -12.5))
passed('(02.9) a straight line, clamped at both ends', *errors)


# %%NBQA-CELL-SEP15d533
#| export
# a label, for all samples or for each; or several conditions by name; None: none
Condition = int | Tensor | Mapping[str, Any] | None
Net = TypeVar('Net', bound=nn.Module)


def named_conditions(condition: Condition) -> dict[str, Any]:
    "Conditions by name, the absent ones left out; one without a name is the label."
    if not isinstance(condition, Mapping):
        condition = dict(label=condition)
    return {name: c for name, c in condition.items() if c is not None}


def find_net(model: nn.Module, kind: type[Net]) -> Net:
    "The network of a kind in a model, through whatever is wrapped around it."
    return next(m for m in model.modules() if isinstance(m, kind))


def for_each(c: int | Tensor, x: Tensor) -> Tensor:  # [], [1 ...] or [b ...] -> [b ...]
    "A condition as one row for each sample of x. Eq. 02.11."
    c = torch.as_tensor(c, device=x.device)
    c = c[None] if c.ndim == 0 else c
    check_each(len(c), 'conditions', len(x))
    return c if len(c) == len(x) else c.expand(len(x), *c.shape[1:])


def time_of_each(time: Tensor,  # [], [b 1 ... 1], or with all axes of x
                 x: Tensor) -> Tensor:  # [b ...] -> [b], or [b ...] that broadcasts
    "The time of each sample for a network; bfloat16 cannot tell step 999 from 1000."
    dtype = torch.promote_types(x.dtype, torch.float32)
    time = time.to(x.device, dtype)
    if time.shape[1:].numel() > 1:  # a time for each part of a sample
        return time.expand(len(x), *time.shape[1:])
    return time.reshape(-1).expand(len(x))


def _is_wider(x: Tensor, net: nn.Module) -> bool:
    "Whether x is float64, and the first parameter of a network is not."
    first = next(net.parameters(), x)
    return x.dtype == torch.float64 and first.dtype != torch.float64


class Model(nn.Module):
    "A network behind a parameterization: a trainable denoiser. Eq. 02.10."
    # what the network reads, in rows beside others that have it, where this is absent
    absent: Mapping[str, Any] = dict(label=-1)

    def __init__(self,
                 net: nn.Module,  # net(x [b ...], time [b], **condition) -> [b ...]
                 parameterization: Parameterization = from_v,  # what the output means
                 level_input: Callable[[Level], Tensor] = level_time,  # the net's time
                 learned_variance: bool = False,  # a second half of channels for it?
                 ):
        super().__init__()
        self.net = net
        self.parameterization = parameterization
        self.level_input = level_input
        self.learned_variance = learned_variance

    def forward(self,
                x: Tensor,  # [b ...]
                t: Level,  # [] or [b 1 ... 1], or a level for each part of x
                label: Tensor | None = None,  # [b]
                **condition) -> Prediction:   # [b ...] each
        time = time_of_each(self.level_input(t), x)
        condition = named_conditions(dict(condition, label=label))
        try:
            out = self.net(x, time, **condition).to(x.dtype)
        except RuntimeError as e:
            if not _is_wider(x, self.net):
                raise
            raise Problem(f'x is float64 and the network is not ({e}). Levels in float64 '
                          'do that: write `t = t.like(x0)` before noise is added.') from e
        wanted = [len(x), x.shape[1]*(1 + self.learned_variance), *x.shape[2:]]
        if [*out.shape] != wanted:
            raise Problem(f'The network answered {[*out.shape]} to x of {[*x.shape]}: '
                          f'build it so that it answers {wanted}.')

        if not self.learned_variance:
            return self.parameterization(out, x, t)
        out, frac = out.chunk(2, 1)
        return self.parameterization(out, x, t)._replace(frac=(frac + 1)/2)

    def encode_condition(self, **condition) -> dict[str, Any]:
        "What the network receives of conditions; encoders of captions override this."
        return condition

    def encoded(self, condition: Condition) -> dict[str, Any]:
        "What the network receives, by name; a `Problem` if the model takes other names."
        named = named_conditions(condition)
        takes = signature(self.encode_condition)
        try:
            takes.bind(**named)
        except TypeError as e:
            raise Problem(f'{type(self).__name__} takes conditions by name '
                          f'({", ".join(takes.parameters)}): {e}.') from e
        return named_conditions(self.encode_condition(**named))

    def given(self, label: int | Tensor | None = None,
              **condition) -> Denoiser:  # an int or one row stands for a whole batch
        "The denoiser conditioned on a label or by name; None is no condition. Eq. 02.11."
        encoded = self.encoded(dict(condition, label=label))  # once for a whole run

        def denoiser(x, t):
            return self(x, t, **{name: for_each(c, x) for name, c in encoded.items()})

        return denoiser


# %%NBQA-CELL-SEP15d533
model, _ = load_weights('mnist')   # a U-Net behind from_v, trained on digits (25)
denoiser = model.given(7)          # conditioned on the label 7, for the whole batch
x_t = torch.randn(2, 1, 28, 28)
p = denoiser(x_t, Level(-4.))      # one level for the whole batch
p.x0.shape, p.eps.shape, p.frac


# %%NBQA-CELL-SEP15d533
# Eq. 02.10: a net that knows the one picture there is, and computes the level from the time
class Knows(nn.Module):
    def forward(self, x, time):
        assert time.shape == (len(x),)
        t = Level((500 - time)/25).like(x)
        return (t.signal*x - 3)/t.sigma  # v, when x0 is 3 everywhere


X = torch.randn(6, 2, 4, 4, dtype=torch.float64)
lam = torch.linspace(-8, 8, 6, dtype=torch.float64)
first = Level(lam[1])
one = Model(Knows())(X, first)
each = Model(Knows())(X, Level(lam).like(X))
errors = (close(each.x0, 3., tol=1e-9),
          close(each.eps[1], one.eps[1], tol=1e-9),
          close(one.eps, (X - 3*first.signal)/first.sigma, tol=1e-9))
passed('(02.10) network, time and parameterization', *errors, by='a data set of one picture')


# %%NBQA-CELL-SEP15d533
# A time for each part of a sample reaches the network as it is; one for all parts, as [b]
class KnowsParts(nn.Module):
    def forward(self, x, time):
        t = Level((500 - time)/25)
        assert time.shape == (len(x), 1, 1, 4)
        return (t.signal*x - 3)/t.sigma


parts = torch.linspace(-8, 8, 24, dtype=torch.float64).view(6, 1, 1, 4)
found = Model(KnowsParts())(X, Level(parts))
errors = [close(found.x0, 3., tol=1e-9), close(Model(KnowsParts())(X, Level(parts[:1])).x0, 3.)]
for k in range(4):
    errors.append(close(found.eps[..., k], Model(Knows())(X, Level(parts[..., k].flatten())
                                                          .like(X)).eps[..., k], tol=1e-9))
passed('a level for each part of a sample', *errors, by='column by column')


# %%NBQA-CELL-SEP15d533
# Eq. 02.11: an int or one row is spread over the batch; tensors go through as they are, by name;
# what is absent is absent; no condition is fine; a condition is encoded once
class Records(nn.Module):
    def forward(self, x, time, **condition):
        self.received = condition
        return x


m = Model(Records(), from_x0)
label = torch.tensor([1, 2, 3])
x_ = torch.randn(3, 2)
t_ = Level(0.)
m.given(7, tokens=None, rows=label, row=label[None])(x_, t_)
received = m.net.received
assert {*received} == {'label', 'rows', 'row'}
assert received['label'].tolist() == [7, 7, 7] and received['label'].dtype == torch.int64
assert received['rows'] is label and received['row'].tolist() == [[1, 2, 3]]*3


class Counts(Model):
    def encode_condition(self, words, more=''):
        self.calls = getattr(self, 'calls', 0) + 1
        return dict(letters=len(words), more=len(more))


m2 = Counts(Records(), from_x0)
conditioned = m2.given(words='a', more='bcd')
conditioned(x_, t_)
conditioned(x_, t_)
assert m2.calls == 1 and m2.net.received['more'].tolist() == [3, 3, 3]
for wrong in (dict(label=3), dict(words='a', u=2), {}):
    with expect_fail('Counts takes conditions by name (words, more): ', Problem):
        m2.given(**wrong)
assert named_conditions(3) == named_conditions(dict(label=3, tokens=None)) == dict(label=3)
assert named_conditions(None) == {}
with expect_fail('2 conditions do not fit 3', Problem):
    m.given(label[:2])(x_, t_)
error = close(m.given()(x_, t_).x0, m(x_, t_, label).x0, tol=0)
passed('(02.11) a condition is spread over the batch, and encoded once', error)


# %%NBQA-CELL-SEP15d533
# The second half of the channels becomes a share, and does not touch the first
class Twice(nn.Module):
    def forward(self, x, time):
        return torch.cat([2*x, torch.ones_like(x[:, :1]), -torch.ones_like(x[:, 1:])], 1)


p = Model(Twice(), from_eps, learned_variance=True)(X, Level(0.))
errors = close(p.eps, 2*X, tol=0), close(p.frac[:, 0], 1., tol=0), close(p.frac[:, 1], 0., tol=0)
passed('a second half of channels becomes a share between 0 and 1', *errors)


# %%NBQA-CELL-SEP15d533
# Under autocast the net computes in bfloat16, the prediction stays in x's dtype; and time is
# never rounded to bfloat16
class Sees(nn.Conv2d):
    def forward(self, x, time):
        self.out = super().forward(x)
        self.time = time
        return self.out


m = Model(Sees(1, 1, 1))
with torch.autocast('cpu', torch.bfloat16):
    p = m(torch.randn(2, 1, 4, 4), Level(0.))
assert m.net.out.dtype == torch.bfloat16
assert p.x0.dtype == p.eps.dtype == torch.float32
p = m.bfloat16()(torch.randn(2, 1, 4, 4).bfloat16(), Level(-19.96))
error = close(m.net.time, 999., tol=1e-4)
passed('under bfloat16 the time is still exact, and the prediction in the dtype of x', error)


# %%NBQA-CELL-SEP15d533
# Figure 02.6: the digit network's v, read as v, as noise and as clean data
outputs = velocity  # of Figure 02.1
as_v = from_v(outputs, mixed, at).x0
as_eps = from_eps(outputs, mixed, at).x0
as_x0 = from_x0(outputs, mixed, at).x0
names = ['read as $v$', r'as $\epsilon$', 'as $x_0$']
sheet(torch.cat([as_v, as_eps, as_x0]), 7, [*map(named, steps)], names)
off_eps = (as_eps - as_v).square().mean((1, 2, 3)).sqrt()
off_x0 = (as_x0 + as_v).square().mean((1, 2, 3)).sqrt()
assert off_eps[0] < .1 and off_eps[3:].min() > .3
assert off_x0[-1] < .1
print(f'read as noise: off by {off_eps[0]:.3f} at λ = 6, {off_eps[3]:.2f} at λ = 0, '
      f'{off_eps[-1]:.0f} at λ = −6')
print(f'read as clean data: off from the negative by {off_x0[-1]:.2f} at λ = −6')


# %%NBQA-CELL-SEP15d533
NOISE = Level(-math.inf)
y = torch.randn(3, 2, dtype=torch.float64)
close(from_v(y, y, CLEAN).x0, y, tol=0)
close(from_v(y, y, NOISE).eps, y, tol=0)
assert from_x0(y, y, CLEAN).eps.isnan().all()
assert not from_eps(y + 1, y, NOISE).x0.isfinite().any()
assert not add_score(Prediction(y, y), NOISE, y).x0.isfinite().any()
with expect_fail('largest error is nan'):
    close(from_x0(y, y, CLEAN).eps, 0.)
with expect_fail('build it so that it answers [6, 4, 4, 4]', Problem):
    Model(Records(), learned_variance=True)(X, Level(0.))
with expect_fail('t = t.like(x0)', Problem):  # a network in float32, noise levels in float64
    Model(Sees(1, 1, 1))(X[:, :1], Level(0.))
with expect_fail('build it so that it answers [6, 2, 4, 4]', Problem):
    Model(Twice())(X, Level(0.))


# %%NBQA-CELL-SEP15d533
#| eval: false
p = from_v(torch.zeros_like(x), x, t)
errors = close(p.x0, ...), close(p.eps, ...)
errors


# %%NBQA-CELL-SEP15d533
#| eval: false
c_skip = ...
c_out = ...
close(c_skip*x/t.signal + c_out*(-v), x0)


# %%NBQA-CELL-SEP15d533
#| eval: false
def to_v(p: Prediction, t: Level) -> Tensor:
    ...


close(to_v(from_v(v, x, t), t), v, tol=1e-12)


# %%NBQA-CELL-SEP15d533
# solution 1: (02.5) with v = 0. Near clean the guess is x_t, near noise it is 0, the mean of
# the data: good at both ends (for data from N(0, 1) no guess is better at any level: x0 and x_t
# have covariance `signal`, and x_t has variance 1)
p = from_v(torch.zeros_like(x), x, t)
errors = close(p.x0, t.signal*x), close(p.eps, t.sigma*x)
errors


# %%NBQA-CELL-SEP15d533
# solution 2: by (02.5) x0 = signal x_t - sigma v = signal^2 y + sigma F
c_skip = t.alpha_bar
c_out = t.sigma
close(c_skip*x/t.signal + c_out*(-v), x0)


# %%NBQA-CELL-SEP15d533
# solution 3: the definition (02.4), with the two that a prediction holds
def to_v(p: Prediction, t: Level) -> Tensor:
    return t.signal*p.eps - t.sigma*p.x0


close(to_v(from_v(v, x, t), t), v, tol=1e-12)
