# %%NBQA-CELL-SEP15d533
#| default_exp guide.inverse


# %%NBQA-CELL-SEP15d533
# Figure 49.1: a digit whose lower half is hidden, sixteen draws that fit what is seen, their spread
import matplotlib.pyplot as plt
import torch
from ddpm_lit import show
from ddpm_lit.core.check import setup
from ddpm_lit.core.denoiser import Prediction
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.sample import clamp_x0, ddim, last
from ddpm_lit.diffusion.schedule import karras
from ddpm_lit.guide import inverse as library  # the first cells use what is built below
from ddpm_lit.train.fit import has_bf16
from ddpm_lit.train.weights import load_weights

setup()
model = load_weights('mnist')[0].requires_grad_(False).given(None)


def net(x, t):
    "The digit network, with products in bfloat16 where the processor has it."
    with torch.autocast('cpu', torch.bfloat16, enabled=has_bf16(torch.device('cpu'))):
        p = model(x, t)
    return Prediction(p.x0.float(), p.eps.float())


whole = to_unit(mnist('test').pixels[61:62])
upper = torch.zeros(28, 28)
upper[:13] = 1
operator = library.mask(upper)
torch.manual_seed(61)
y = operator(whole + .1*torch.randn_like(whole))
seen = library.observe(operator, y, .1)
draws = last(ddim(clamp_x0(library.second_moment(net, seen)), karras(24, .02),
                  torch.randn(16, 1, 28, 28), eta=1.))
fig, axes = plt.subplots(1, 4, figsize=(7, 1.55), layout='constrained', dpi=160,
                         width_ratios=(1, 4.2, 1, 1))
spread = draws.clamp(-1, 1).std(0)[0]
views = (show.tile(torch.where(upper > 0, y, 0*y), 1), show.tile(draws, 8),
         show.tile(draws.mean(0, keepdim=True), 1), spread)
titles = ('given', 'sixteen draws that fit it', 'their mean', 'their spread')
for ax, view, title in zip(axes, views, titles):
    ax.imshow(view, interpolation='nearest', cmap='magma' if title == 'their spread' else 'gray')
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


# %%NBQA-CELL-SEP15d533
import torch


def restore_plainly(x0_of, A, At, y, noise, x, alpha_bar):  # [steps + 1], the last is 1
    for t, (ab_t, ab_s) in enumerate(zip(alpha_bar, alpha_bar[1:])):
        x = x.detach().requires_grad_()
        guess = x0_of(x, t)
        gap = (y - A(guess)).detach()

        def pull(u):  # J' A' u
            return torch.autograd.grad(guess, x, At(u), retain_graph=True)[0]

        ratio = (1 - ab_t)/ab_t.sqrt()
        V_gap = ratio*A(pull(gap)) + noise**2*gap
        step = (gap*gap).flatten(1).sum(1)/(gap*V_gap).flatten(1).sum(1)
        g = pull(step.view(-1, *[1]*(gap.ndim - 1))*gap)  # J' A' V^-1 gap
        x0 = guess.detach() + ratio*g
        eps = (x - ab_t.sqrt()*x0)/(1 - ab_t).sqrt()
        std = ((1 - ab_s)/(1 - ab_t)*(1 - ab_t/ab_s)).sqrt()
        x = ab_s.sqrt()*x0 + (1 - ab_s - std**2).sqrt()*eps + std*torch.randn_like(x)
    return x.detach()


# %%NBQA-CELL-SEP15d533
#| export
from dataclasses import dataclass
from typing import Callable, Iterator, cast
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser, Prediction, add_score
from ddpm_lit.core.level import Level, append_dims
from ddpm_lit.core.problem import Problem, identity
from ddpm_lit.diffusion.oracle import Mixture
from ddpm_lit.diffusion.posterior import posterior
from ddpm_lit.diffusion.sample import fixed_small, steps
from ddpm_lit.diffusion.schedule import Grid
from ddpm_lit.guide.classifier import LogLikelihood
from ddpm_lit.guide.guided import effective_number, resample


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, three round groups in the plane and a measurement of them
import functools
import math
import time
from torch.quasirandom import SobolEngine
from ddpm_lit.core.check import budget, close, expect_fail, passed, redrawn
from ddpm_lit.core.check import keep_measurement, measurement
from ddpm_lit.core.denoiser import from_x0
from ddpm_lit.core.level import CLEAN
from ddpm_lit.diffusion.sample import ancestral, edit_x0, exact
from ddpm_lit.diffusion.schedule import Cosine, grid
from ddpm_lit.diffusion.solve import dpmpp_2m
from ddpm_lit.guide.classifier import gradient, guide
from ddpm_lit.guide.edit import replacement
from ddpm_lit.show import INK

D = torch.float64
RED, BLUE = INK['guidance'], INK['model']
world = Mixture(torch.tensor([.4, .35, .25], dtype=D),
                torch.tensor([[1.5, 1.], [-1.5, .5], [0., -1.5]], dtype=D),
                torch.tensor([.35, .5, .3], dtype=D))
A = torch.tensor([[.8, .6]], dtype=D)    # what is measured: one coordinate, turned
FREE = torch.tensor([-.6, .8], dtype=D)  # the direction of which nothing is seen
Y, NOISE_Y = -.6, .3


def true_posterior(y, noise=NOISE_Y):
    "p(x0 | y) for y [n]: weights [n 3], means [n 3 2], and variances [3] along A."
    v = world.std**2
    at = world.mean @ A[0]
    log_w = world.weight.log() - ((y[:, None] - at)**2/(v + noise**2) + (v + noise**2).log())/2
    gain = v/(v + noise**2)
    mean = world.mean + (gain*(y[:, None] - at))[..., None]*A[0]
    return log_w.softmax(1), mean, v*noise**2/(v + noise**2)


def true_draws(y):
    "A draw from p(x0 | y) for each of y [n]."
    w, mean, v = true_posterior(y)
    k = torch.multinomial(w, 1)[:, 0]
    z = torch.randn(len(y), 2, dtype=D)
    along = (v[k].sqrt()*z[:, 0])[:, None]*A
    return mean[torch.arange(len(y)), k] + along + (world.std[k]*z[:, 1])[:, None]*FREE


def true_moments(y, noise=NOISE_Y):
    "Variance along A and across it, and the weights, of p(x0 | y) for one y."
    w, mean, v = true_posterior(torch.tensor([y], dtype=D), noise)
    w, mean = w[0], mean[0]
    found = []
    for axis, inside in ((A[0], v), (FREE, world.std**2)):
        at = mean @ axis
        found.append((w @ (inside + at**2) - (w @ at)**2).item())
    return (*found, w)


# %%NBQA-CELL-SEP15d533
# Eq. 49.6: the plain code against the library, from the same draws, in the plane and for a blur
def by_index(denoiser, levels):
    return lambda x, t: denoiser(x, [*levels][t]).x0


few = grid(Cosine(), 12)
table = torch.stack([t.alpha_bar for t in few])
torch.manual_seed(1)
x = torch.randn(40, 2, dtype=D)
plain = restore_plainly(by_index(world, few), lambda v: v @ A.T, lambda v: v @ A, Y, NOISE_Y, x,
                        table)
torch.manual_seed(1)
x = torch.randn(40, 2, dtype=D)
one = library.observe(library.by_matrix(A), torch.full((1, 1), Y, dtype=D), NOISE_Y)
errors = [close(last(ancestral(library.second_moment(world, one), few, x)), plain, 1e-9)]

# pictures of 6 x 5 pixels, a mixture of two; the blur as a matrix, pixel by pixel
pair = Mixture(torch.tensor([.3, .7], dtype=D), torch.randn(2, 30, dtype=D),
               torch.tensor([.5, .8], dtype=D))


def pictures(x, t):
    p = pair(x.flatten(1), t)
    return Prediction(p.x0.view_as(x), p.eps.view_as(x))


soft = library.blur(6, 5, 1.)
pixel = torch.eye(30, dtype=D).view(30, 1, 6, 5)
matrix = soft(pixel).flatten(1).T
y_soft = torch.randn(1, 1, 6, 5, dtype=D)
torch.manual_seed(2)
x = torch.randn(7, 1, 6, 5, dtype=D)
plain = restore_plainly(by_index(pictures, few), lambda v: (v.flatten(1) @ matrix.T).view_as(v),
                        lambda v: (v.flatten(1) @ matrix).view_as(v), y_soft, .2, x, table)
torch.manual_seed(2)
x = torch.randn(7, 1, 6, 5, dtype=D)
blurred = library.observe(soft, y_soft, .2)
errors.append(close(last(ancestral(library.second_moment(pictures, blurred), few, x)), plain, 1e-8))
passed('the plain code gives what the library gives', *errors)


# %%NBQA-CELL-SEP15d533
#| export
_Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    "A linear measurement A = U S V': its singular values, and how to turn. Eq. 49.2."
    gain: Tensor             # S, in the shape of a sample; 0: not seen
    into: _Turn = identity   # V', samples to coordinates [b ...]
    back: _Turn = identity   # V
    read: _Turn = identity   # U', measurements to coordinates
    show: _Turn = identity   # U

    def __call__(self, x: Tensor) -> Tensor:  # [b ...]
        "A x. Eq. 49.2."
        return self.show(self.gain.to(x)*self.into(x))

    def pull(self, u: Tensor) -> Tensor:  # [b ...] coordinates of a measurement
        "A' y. Eq. 49.2."
        return self.back(self.gain.to(u)*u)


# %%NBQA-CELL-SEP15d533
#| export
def _svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [m d] -> [m d], [d], [d d]
    "U, singular values and V', with zeros for directions that A does not see."
    U, s, Vh = torch.linalg.svd(A.double())
    m, d = A.shape
    k = min(m, d)
    return (torch.cat([U[:, :k], U.new_zeros(m, d - k)], 1),
            torch.cat([s, s.new_zeros(d - k)]), Vh)


def by_matrix(A: Tensor) -> Operator:  # [m d], for samples [b d]
    "A measurement by any matrix. Eq. 49.2."
    U, s, Vh = _svd(A)
    return Operator(s, lambda x: x @ Vh.to(x).T, lambda z: z @ Vh.to(z),
                    lambda y: y @ U.to(y), lambda z: z @ U.to(z).T)


def _by_sides(rows: Tensor, columns: Tensor) -> Operator:  # for pictures [b c h w]
    "Both sides of a picture measured alike: rows X columns'. Eq. 49.2."
    U, s, Vh = _svd(rows)
    P, r, Qh = _svd(columns)

    def turn(left, right):
        return lambda x: left.to(x) @ x @ right.to(x)

    return Operator(s[:, None]*r, turn(Vh, Qh.T), turn(Vh.T, Qh), turn(U.T, P),
                    turn(U, P.T))


def mask(known: Tensor) -> Operator:  # [h w], 1 where seen, else 0
    "Some pixels are seen, and others are not. Eq. 49.2."
    if not ((known == 0) | (known == 1)).all():
        raise Problem('A mask is 1 where pixels are known and 0 elsewhere: threshold it '
                      'first.')
    return Operator(known)


def blur(h: int, w: int, std: float) -> Operator:  # std in pixels
    "A Gaussian blur whose weights add up to 1 at the rim too. Eq. 49.2."
    if not 0 < std < 1e4:
        raise Problem(f'A blur of {std} pixels is none: give a width above 0.')

    def weights(n):
        at = torch.arange(n, dtype=torch.float64)
        return (-((at[:, None] - at)/std)**2/2).softmax(1)

    return _by_sides(weights(h), weights(w))


def down(h: int, w: int, factor: int) -> Operator:
    "A smaller picture: the mean of each block of factor x factor pixels. Eq. 49.2."
    if factor < 1 or h % factor or w % factor:
        raise Problem(f'Pictures of {h} x {w} have no whole blocks of {factor} pixels: '
                      'choose a factor that divides height and width.')

    def means(n):
        return torch.eye(n//factor, dtype=torch.float64).repeat_interleave(factor, 1)

    return _by_sides(means(h)/factor, means(w)/factor)


# %%NBQA-CELL-SEP15d533
#| export
@dataclass(frozen=True)
class Observation:
    "What was measured, y = A x0 + noise n: the operator, y in coordinates. Eq. 49.1."
    operator: Operator
    u: Tensor    # [b ...] or [1 ...]: U' y
    noise: float

    def gap(self, x0: Tensor) -> Tensor:  # [b ...]
        "y - A x0, in coordinates. Eq. 49.1."
        o = self.operator
        return self.u.to(x0) - o.gain.to(x0)*o.into(x0)


def observe(operator: Operator, y: Tensor,  # y [b ...] as the operator gives it
            noise: float) -> Observation:   # its standard deviation
    "A measurement with its noise, ready to restore from. Eq. 49.1."
    if not 0 < noise < 1e6:
        raise Problem(f'The noise of a measurement is a standard deviation above 0, not '
                      f'{noise}: give a small one if there is hardly any.')
    want = operator.show(torch.zeros_like(operator.gain)).shape
    if y.shape[-len(want):] != want:
        raise Problem(f'This operator gives measurements of {[*want]}, not '
                      f'{[*y.shape[-len(want):]]}: build it for this size.')
    return Observation(operator, operator.read(y), noise)


# %%NBQA-CELL-SEP15d533
# Eq. 49.2: operators against matrices, pooling and sums by hand; transposes; singular values
torch.manual_seed(0)
x, v = torch.randn(2, 3, 2, 8, 6, dtype=D)
seen_at = (torch.rand(8, 6) < .5).double()
tall = torch.randn(9, 4, dtype=D)
errors = [close(mask(seen_at)(x), x*seen_at),
          close(down(8, 6, 2)(x), torch.nn.functional.avg_pool2d(x, 2)),
          close(by_matrix(tall)(x[..., 0, :4].reshape(6, 4)), x[..., 0, :4].reshape(6, 4) @ tall.T)]

# a blur, by the weights of one pixel, and at the rim
at = torch.arange(8, dtype=D)
row_weights = torch.exp(-(at - 3)**2/2/1.2**2)
column_weights = torch.exp(-(at[:6] - 0)**2/2/1.2**2)
by_hand = torch.einsum('bchw,h,w->bc', x, row_weights/row_weights.sum(),
                       column_weights/column_weights.sum())
soft_8 = blur(8, 6, 1.2)
errors.append(close(soft_8(x)[..., 3, 0], by_hand))
errors.append(close(soft_8(torch.ones_like(x)), 1.))

# <A x, w> = <x, A' w>, and the decomposition has the singular values of the matrix
for o in (mask(seen_at), down(8, 6, 2), soft_8):
    w = torch.randn_like(o(x))
    errors.append(close((o(x)*w).sum(), (x*o.pull(o.read(w))).sum(), 1e-9))
    dense = o(torch.eye(48, dtype=D).view(48, 1, 8, 6)).flatten(1)
    found = torch.linalg.svdvals(dense)
    errors.append(close(o.gain.flatten().sort(descending=True).values[:len(found)], found))
passed('(49.2) operators, transposes and singular values', *errors, by='matrices')

# Eq. 49.1: noise stays white in the coordinates, and what is not seen is 0 there
n = torch.randn(40_000, 1, 2, 2, dtype=D)
small = observe(down(4, 4, 2), .3*n, .3)
there = down(4, 4, 2).gain > 1e-9
spread_u = small.u.flatten(1).T.cov()[there.flatten()][:, there.flatten()]
errors = [close(spread_u, .09*torch.eye(4, dtype=D), 5*.09*2**.5/200),
          close(small.u[..., ~there], 0.)]

# and the closed form of p(x0 | y) against sums over a lattice of points
line = torch.linspace(-5, 5, 801, dtype=D)
lattice = torch.cartesian_prod(line, line)
p = (world.log_prob(lattice) - (Y - lattice @ A[0])**2/2/NOISE_Y**2).softmax(0)
along, across, w = true_moments(Y)
for axis, variance in ((A[0], along), (FREE, across)):
    at = lattice @ axis
    errors.append(close(p @ at**2 - (p @ at)**2, variance, 1e-6))
errors.append(close(p @ world.classify(lattice).exp(), w, 1e-6))
passed('(49.1) noise in coordinates; the posterior of the plane', *errors, by='a lattice')
print(f'the posterior of the plane: variance along A {along:.4f}, across {across:.3f}; '
      f'weights of the groups {w[0]:.3f} {w[1]:.3f} {w[2]:.3f}')


# %%NBQA-CELL-SEP15d533
#| export
def exact_match(world: Mixture, seen: Observation) -> LogLikelihood:
    "log p(y | x_t) for data from a mixture of Gaussians, up to a constant. Eq. 49.4."
    def log_match(x, t):
        fits = []
        for k in range(len(world.weight)):
            # of component k alone: mean and variance of A x0 given x_t
            one = cast(Mixture, world.given(k))
            gap = seen.gap(one(x, t).x0)
            variance = seen.operator.gain.to(x)**2*one.var_x0(x, t) + seen.noise**2
            fits.append(-(gap**2/variance + variance.log()).sum(1)/2)
        return (world.classify(x, t) + torch.stack(fits, 1)).logsumexp(1)

    return log_match


# %%NBQA-CELL-SEP15d533
# Eq. 49.3: the gradient of the integral, by a lattice of x0 and finite differences
one = observe(by_matrix(A), torch.full((1, 1), Y, dtype=D), NOISE_Y)
log_match = exact_match(world, one)


def on_lattice(x, t):
    "log p(y | x_t) for one x_t [2]."
    joint = world.log_prob(lattice) - (x - t.signal*lattice).square().sum(1)/2/t.sigma**2
    fit = -(Y - lattice @ A[0])**2/2/NOISE_Y**2
    return (joint + fit).logsumexp(0) - joint.logsumexp(0)


errors = []
for log_snr, x in ((-1.5, (.4, -.3)), (.5, (-.9, .8)), (2., (.2, -1.1))):
    t = Level(torch.tensor(log_snr, dtype=D))
    x = torch.tensor(x, dtype=D)
    g = gradient(log_match, x[None], t)[0]
    h = 1e-4*torch.eye(2, dtype=D)
    slopes = [(on_lattice(x + e, t) - on_lattice(x - e, t))/2e-4 for e in h]
    errors.append(close(g, torch.stack(slopes), 1e-5))
passed('(49.3) gradient of log p(y | x_t)', *errors, by='an integral on a lattice')

# Eq. 49.4: what the exact term draws has the variances and the weights of the posterior
along, across, w = true_moments(Y)
u = SobolEngine(2).draw(4097)[1:].double()
start = 2**.5*torch.erfinv(2*u - 1)
x = last(dpmpp_2m(guide(world, log_match), grid(Cosine(), 80), start))
found = [close((x @ A[0]).var(), along, .002), close((x @ FREE).var(), across, .02),
         close(world.classify(x).exp().mean(0), w, .005)]
passed('(49.4) draws: variances .0575 and 1.731, weights of the groups', *found,
       by='the posterior in closed form')


# %%NBQA-CELL-SEP15d533
#| export
# (y - A x0-hat, v -> J' v, t) -> V^-1 (y - A x0-hat), in coordinates [b ...]
_Solve = Callable[[Tensor, Callable[[Tensor], Tensor], Level], Tensor]


def _matched(denoiser: Denoiser, seen: Observation, solve: _Solve) -> Denoiser:
    "Guided by the gradient of log N(y; A x0-hat, V) with V held. Eq. 49.5."
    def guided(x, t):
        t = t.like(x)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            p = denoiser(at, t)

        def pull(v):  # J' v
            return torch.autograd.grad(p.x0, at, v, retain_graph=True)[0]

        u = solve(seen.gap(p.x0.detach()), pull, t)
        g = pull(seen.operator.pull(u))
        return add_score(Prediction(p.x0.detach(), p.eps.detach()), t, g)

    return guided


def second_moment(denoiser: Denoiser, seen: Observation, rounds: int = 1) -> Denoiser:
    "Guided with the covariance that the denoiser implies. Eq. 49.6 (Boys et al. 2023)."
    o = seen.operator

    def inner(a, b):
        return append_dims((a*b).flatten(1).sum(1), a)

    def solve(gap, pull, t):
        def times_V(u):
            cov = t.sigma**2/t.signal*pull(o.pull(u))
            return o.gain.to(u)*o.into(cov) + seen.noise**2*u

        # conjugate gradients; V is at least noise^2, which bounds each step
        u = torch.zeros_like(gap)
        rest = along = gap
        for _ in range(rounds):
            image = times_V(along)
            least = seen.noise**2*inner(along, along)
            size = inner(rest, rest)
            step = size/torch.maximum(inner(along, image), least).clamp(min=1e-30)
            u = u + step*along
            rest = rest - step*image
            along = rest + inner(rest, rest)/size.clamp(min=1e-30)*along
        return u

    return _matched(denoiser, seen, solve)


def _sigma(t: Level) -> Tensor:
    return t.sigma


def pigdm(denoiser: Denoiser, seen: Observation,
          width: Callable[[Level], Tensor] = _sigma) -> Denoiser:
    "Guided as if x0 had the width sigma in all directions. Eq. 49.7 (Song et al. 2023)."
    def solve(gap, pull, t):
        return gap/(seen.operator.gain.to(gap)**2*width(t)**2 + seen.noise**2)

    return _matched(denoiser, seen, solve)


# %%NBQA-CELL-SEP15d533
# Eq. 49.6: sigma^2/signal J against the covariance of a mixture, by sums over its components
torch.manual_seed(0)
t = Level(torch.tensor(.7, dtype=D))
x = torch.randn(5, 2, dtype=D)
J = torch.stack([torch.autograd.functional.jacobian(lambda v: world(v[None], t).x0[0], row)
                 for row in x])
p = world.classify(x, t).exp()
means = torch.stack([world.given(k)(x, t).x0 for k in range(3)], 1)
inside = torch.stack([cast(Mixture, world.given(k)).var_x0(x, t)[:, 0] for k in range(3)], 1)
gap = means - (p[..., None]*means).sum(1, keepdim=True)
cov = (torch.einsum('bk,bki,bkj->bij', p, gap, gap)
       + (p*inside).sum(1)[:, None, None]*torch.eye(2, dtype=D))
errors = [close(t.sigma**2/t.signal*J, cov)]

# Eq. 49.5: the gradient of log N with V held, by autograd; V from the covariance above, or sigma^2
for method, spread in ((second_moment, torch.einsum('i,bij,j->b', A[0], cov, A[0])),
                       (pigdm, t.sigma**2*torch.ones(5, dtype=D))):
    at = x.clone().requires_grad_()
    fit = -(Y - world(at, t).x0 @ A[0])**2/2/(spread + NOISE_Y**2)
    g = torch.autograd.grad(fit.sum(), at)[0]
    errors.append(close(method(world, one)(x, t).eps, add_score(world(x, t), t, g).eps))
passed('(49.5), (49.6) covariance and gradient', *errors, by='sums over components; autograd')

# for one Gaussian the second moment is exact, by as many rounds as there are measurements;
# Eq. 49.7: sigma^2 is exact for N(0, I), and for no other width
gaussian = Mixture(torch.ones(1, dtype=D), torch.randn(1, 5, dtype=D), torch.tensor([.6], dtype=D))
normal = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 5, dtype=D), torch.ones(1, dtype=D))
x = torch.randn(4, 5, dtype=D)
some = observe(by_matrix(torch.randn(3, 5, dtype=D)), torch.randn(1, 3, dtype=D), .3)


def exact_score(data):
    return guide(data, exact_match(data, some))(x, t).eps


errors = [close(second_moment(gaussian, some, 3)(x, t).eps, exact_score(gaussian), 1e-8),
          close(pigdm(normal, some)(x, t).eps, exact_score(normal), 1e-8)]
assert (second_moment(gaussian, some, 1)(x, t).eps - exact_score(gaussian)).abs().max() > .01
assert (pigdm(gaussian, some)(x, t).eps - exact_score(gaussian)).abs().max() > .01
passed('(49.6), (49.7) exact for one Gaussian, and for N(0, I)', *errors, by='(49.4)')


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def dps(denoiser: Denoiser, seen: Observation, levels: Grid, x: Tensor,
        scale: float = 1.) -> Iterator[Tensor]:
    "Ancestral steps, then one down the norm of the misfit. Eq. 49.8 (Chung et al. 2023)."
    for t, s in steps(levels):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            p = denoiser(at, t)
            misfit = seen.gap(p.x0).flatten(1).norm(dim=1)
            g = torch.autograd.grad(misfit.sum(), at)[0]
        mean, std = posterior(p.x0.detach(), x, s, t)
        x = mean + std*torch.randn_like(x) - scale*g
        yield x


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def ddrm(denoiser: Denoiser, seen: Observation, levels: Grid, x: Tensor,
         eta: float = .85) -> Iterator[Tensor]:
    "Each coordinate by what is known of it. Eq. 49.9 (Kawar et al. 2022)."
    o = seen.operator
    gain = o.gain.to(x)
    y = seen.u.to(x)/gain.clamp(min=1e-12)
    width = seen.noise/gain.clamp(min=1e-12)  # of y, seen as a measurement of z
    old = (1 - eta**2)**.5

    def given_y(k, z):  # y with noise up to level k, where it has less
        return y + (k**2 - width**2).clamp(min=0).sqrt()*z

    # coordinates of x/signal, whose noise is k = edm_sigma
    first = next(iter(levels)).edm_sigma.to(x)
    u = o.into(x)
    x = o.back(torch.where(width < first, given_y(first, u)/first, u))
    for t, s in steps(levels):
        p = denoiser(x, t)
        x0 = o.into(p.x0)
        k = s.edm_sigma.to(x)
        z = torch.randn_like(x)
        unseen = x0 + k*(old*o.into(p.eps) + eta*z)
        weakly = x0 + k*(old*(y - x0)/width + eta*z)
        seen_well = torch.where(k > width, given_y(k, z), weakly)
        x = s.signal*o.back(torch.where(gain > 0, seen_well, unseen))
        yield x


@torch.no_grad()
def diffpir(denoiser: Denoiser, seen: Observation, levels: Grid, x: Tensor,
            strength: float = 7., zeta: float = .3) -> Iterator[Tensor]:
    "The clean guess moved towards y, then noise again. Eq. 49.10 (Zhu et al. 2023)."
    o = seen.operator
    gain = o.gain.to(x)
    for t, s in steps(levels):
        x0 = denoiser(x, t).x0
        rho = strength*(seen.noise/t.edm_sigma)**2
        x0 = x0 + o.pull(seen.gap(x0)/(gain**2 + rho))
        eps = (x - t.signal*x0)/t.sigma
        x = s.signal*x0 + s.sigma*((1 - zeta)**.5*eps + zeta**.5*torch.randn_like(x))
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 49.8: one step by hand, for data N(0, I) where x0-hat is signal x_t; three steps' noise alone
torch.manual_seed(0)
normal = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 2, dtype=D), torch.ones(1, dtype=D))
x = torch.randn(6, 2, dtype=D)
t, s = (Level(torch.tensor(v, dtype=D)) for v in (-1., .5))
torch.manual_seed(3)
got = next(dps(normal, one, [t, s], x, .7))
torch.manual_seed(3)
plain = next(ancestral(normal, [t, s], x))
slope = -t.signal*torch.sign(Y - t.signal*x @ A[0])[:, None]*A
errors = [close(got, plain - .7*slope)]

# Eq. 49.9: told the true x0, with measurements drawn anew, all coordinates keep the right noise
truth = torch.tensor([[.7, -1.2, .4]], dtype=D).expand(8000, 3)
gains = by_matrix(torch.diag(torch.tensor([1.5, .4, 0.], dtype=D)))
torch.manual_seed(0)
y = gains(truth) + .3*torch.randn(8000, 3, dtype=D)*torch.tensor([1., 1., 0.], dtype=D)
knows = observe(gains, y, .3)
levels = grid(Cosine(), 12)
run = ddrm(lambda x, t: from_x0(truth, x, t), knows, levels, torch.randn(8000, 3, dtype=D), .6)
for x, s in zip(run, [*levels][1:-1]):
    noise = (x - s.signal*truth)/s.sigma
    errors.append(close(noise.T.cov(), torch.eye(3, dtype=D), .09))
    errors.append(close(noise.mean(0), torch.zeros(3, dtype=D), 5/8000**.5))
assert [*levels][-2].edm_sigma < .3/1.5  # both kinds of measured coordinates occurred
passed('(49.8), (49.9) a step by hand; the noise that each level should have', *errors)

# Eq. 49.10: at x0' the slope of what is minimised is zero, by autograd; then a step without noise
torch.manual_seed(0)
wide = torch.randn(2, 4, dtype=D)
some_y = torch.randn(1, 2, dtype=D)
guess = torch.randn(5, 4, dtype=D)
x = torch.randn(5, 4, dtype=D)
t, s = (Level(torch.tensor(v, dtype=D)) for v in (-.5, 1.))
found = next(diffpir(lambda x, t: from_x0(guess, x, t), observe(by_matrix(wide), some_y, .3),
                     [t, s], x, 2., 0.))
moved = (found - s.sigma/t.sigma*x)/(s.signal - s.sigma*t.signal/t.sigma)  # x0' from the step
at = moved.clone().requires_grad_()
rho = 2.*.3**2/t.edm_sigma**2
cost = (some_y - at @ wide.T).square().sum() + rho*(at - guess).square().sum()
errors = [close(torch.autograd.grad(cost, at)[0], torch.zeros(5, 4, dtype=D), 1e-8)]
torch.manual_seed(0)
blind = observe(by_matrix(A), torch.zeros(1, 1, dtype=D), 1e5)
z = torch.randn(20_000, 2, dtype=D)
half_new = next(diffpir(lambda x, t: from_x0(0*x, x, t), blind, [t, s], t.sigma*z, 1., .3))
errors.append(close(half_new.var(0)/s.sigma**2, torch.ones(2, dtype=D), .05))
errors.append(close((half_new*z).mean(0)/s.sigma, .7**.5*torch.ones(2, dtype=D), .04))
passed('(49.10) the slope is zero; the share of new noise', *errors, by='autograd')


# %%NBQA-CELL-SEP15d533
# Figure 49.2: draws for one measurement in the plane; ranks of 500 truths among 19 draws each
levels_100 = grid(Cosine(), 100)


def replaced(seen, x):
    "Replacement (42.3): what is known is taken as exact."
    known = seen.operator.pull(seen.u.to(x)).expand_as(x)
    return last(ancestral(replacement(world, known, lambda v: (v @ A.T)*A), levels_100, x))


def by_ddim(guidance):
    return lambda seen, x: last(ddim(guidance(world, seen), levels_100, x, eta=1.))


PLANE = {
    'truth': None,
    'exact term': by_ddim(lambda d, seen: guide(d, exact_match(world, seen))),
    'second moment': by_ddim(second_moment),
    'PiGDM': by_ddim(pigdm),
    'DPS, 0.3': lambda seen, x: last(dps(world, seen, levels_100, x, .3)),
    'DDRM': lambda seen, x: last(ddrm(world, seen, levels_100, x)),
    'DiffPIR, 7': lambda seen, x: last(diffpir(world, seen, levels_100, x, 7.)),
    'replacement': replaced}


def plane_draws(name, y):
    "A draw for each of y [n]."
    if PLANE[name] is None:
        return true_draws(y)
    seen = observe(by_matrix(A), y[:, None], NOISE_Y)
    return PLANE[name](seen, torch.randn(len(y), 2, dtype=D))


torch.manual_seed(0)
PROBLEMS, EACH = 500, 19
truths = world.sample(PROBLEMS)
measured = truths @ A[0] + NOISE_Y*torch.randn(PROBLEMS, dtype=D)
plane_found = {}
for name in PLANE:
    torch.manual_seed(1)
    cloud = plane_draws(name, torch.full((600,), Y, dtype=D))
    many = plane_draws(name, measured.repeat_interleave(EACH)).view(PROBLEMS, EACH, 2)
    ranks = [library.rank_of(truths @ axis, many @ axis) for axis in (A[0], FREE)]
    plane_found[name] = (cloud, ranks)

fig, axes = plt.subplots(2, 8, figsize=(7, 2.15), layout='constrained', dpi=160,
                         height_ratios=(1.7, 1))
for column, (name, (cloud, ranks)) in zip(axes.T, plane_found.items()):
    top, low = column
    share, error = library.coverage(ranks[0])
    ink = BLUE if abs(share - .9) < 3*error else RED
    ink = 'black' if name == 'truth' else ink
    ends = Y*A[0] + torch.tensor([[-3.5], [3.5]], dtype=D)*FREE
    top.plot(*ends.T, color='.85', zorder=0)
    top.scatter(*cloud.T, s=1.2, alpha=.5, color=ink, linewidths=0)
    top.set_title(name.replace('PiGDM', 'ΠGDM'), fontsize=7.5)
    top.set(xlim=(-2.7, 2.1), ylim=(-2.2, 2.9), xticks=[], yticks=[], aspect='equal')
    heights = torch.histc(ranks[0], 10, 0, 1)/PROBLEMS*10
    low.bar(torch.arange(10), heights, width=1., color=ink, alpha=.6)
    low.axhline(1, color='black', linewidth=.6, linestyle='--')
    low.set(ylim=(0, 3), xticks=[], yticks=[])
    low.set_xlabel(f'{share:.0%}', fontsize=8, labelpad=2)
    low.spines['left'].set_visible(False)
    top.spines[:].set_visible(False)
axes[1, 0].set_ylabel('ranks', fontsize=8)


# %%NBQA-CELL-SEP15d533
# Eq. 49.13: the numbers of the figure, with their errors, along A and across it
print('90 % intervals hold the truth   along A        across A       variance along A, at one y')
for name, (cloud, ranks) in plane_found.items():
    (a, e), (b, f) = map(library.coverage, ranks)
    print(f'{name:30}{a:6.3f} ± {e:.3f}{b:9.3f} ± {f:.3f}{(cloud @ A[0]).var():13.4f}')


def held(name, axis=0):
    return library.coverage(plane_found[name][1][axis])[0]


PLANE['DiffPIR, 1'] = lambda seen, x: last(diffpir(world, seen, levels_100, x, 1.))
torch.manual_seed(1)
many = plane_draws('DiffPIR, 1', measured.repeat_interleave(EACH)).view(PROBLEMS, EACH, 2)
lucky = library.coverage(library.rank_of(truths @ A[0], many @ A[0]))
print(f"{'DiffPIR, 1':30}{lucky[0]:6.3f} ± {lucky[1]:.3f}")
errors = [close(held(name, axis), .9, .045) for axis in (0, 1)
          for name in ('truth', 'exact term', 'second moment', 'PiGDM')]
assert held('DPS, 0.3') < .75 and held('DDRM') < .75 and held('replacement') == 0.
assert held('DiffPIR, 7') > .93
errors.append(close((plane_found['replacement'][0] @ A[0]).var(), 0., 1e-9))
passed('ranks of the exact term and of both moments are level; of replacement none', *errors,
       by='500 truths')

# DPS: the noise of the measurement goes from .1 to .6, and the width of the draws stays
torch.manual_seed(0)
start = torch.randn(1500, 2, dtype=D)
print('noise of y     true variance along A     DPS 0.1     DPS 0.3     DPS 1     PiGDM')
widths = {}
for noise in (.1, .3, .6):
    seen = observe(by_matrix(A), torch.full((1, 1), Y, dtype=D), noise)
    row = [last(dps(world, seen, levels_100, start, scale)) @ A[0] for scale in (.1, .3, 1.)]
    row.append(last(ddim(pigdm(world, seen), levels_100, start, eta=1.)) @ A[0])
    widths[noise] = [v.var().item() for v in row]
    print(f'{noise:.1f}{true_moments(Y, noise)[0]:26.4f}'
          + ''.join(f'{v:12.4f}' for v in widths[noise]))
for k in range(3):
    assert widths[.6][k] < 1.2*widths[.1][k]
assert widths[.1][2] > 20*widths[.1][0] and widths[.6][3] > 10*widths[.1][3]


# the authors' program differentiates the norm over the whole batch at once
def of_whole_batch(seen, x, scale=.3):
    for t, s in steps(levels_100):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            p = world(at, t)
            g = torch.autograd.grad(seen.gap(p.x0).norm(), at)[0]
        mean, std = posterior(p.x0.detach(), x, s, t)
        x = mean + std*torch.randn_like(x) - scale*g
    return x


batch = of_whole_batch(one, start)
alone = last(dps(world, one, levels_100, start, .3))
shares = [world.classify(v).exp().mean(0)[0].item() for v in (batch, alone)]
print(f'DPS 0.3, 1,500 draws in one norm: variance along A {(batch @ A[0]).var():.3f}, '
      f'weight of the excluded group {shares[0]:.3f}; each by itself: {(alone @ A[0]).var():.3f}, '
      f'{shares[1]:.3f}')
assert shares[0] > .15 and shares[1] < .01


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def twisted(denoiser: Denoiser, seen: Observation, levels: Grid, x: Tensor,  # [k ...]
            variance=fixed_small) -> Iterator[Tensor]:
    "Particles, weighted to correct the guess of `pigdm`. Eq. 49.11 (Wu et al. 2023)."
    if len(x) < 2:
        raise Problem('Weights compare samples, and this is one: start from many.')
    gain = seen.operator.gain.to(x)

    def log_twist(x0, t):  # log N(y; A x0, V), up to a constant of y
        V = gain**2*t.sigma**2 + seen.noise**2
        return -(seen.gap(x0)**2/V + V.log()).flatten(1).sum(1)/2

    pairs = steps(levels)
    log_w = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    old = 0.
    for t, s in pairs:
        p = denoiser(x, t)
        guided = pigdm(denoiser, seen)(x, t)
        now = log_twist(p.x0, t)
        log_w = log_w + now - old

        # few weigh as much as all the others: copies of these
        if effective_number(log_w) < len(x)/2:
            every = torch.arange(len(x), device=x.device)
            row = resample(every, log_w, torch.rand(1))
            x, now = x[row], now[row]
            p = Prediction(p.x0[row], p.eps[row])
            guided = Prediction(guided.x0[row], guided.eps[row])
            log_w = torch.zeros_like(log_w)

        # a guided step, and what it weighs against the model's own
        mean, _ = posterior(p.x0, x, s, t)
        aim, _ = posterior(guided.x0, x, s, t)
        std = variance(p, x, s, t)
        z = torch.randn_like(x)
        shift = torch.where(std > 0, (aim - mean)/std, torch.zeros_like(x))
        x = mean + std*(shift + z)
        log_w = log_w - (z*shift + shift**2/2).flatten(1).sum(1)

        # what the twist promised, y itself redeems
        old = now
        if s is pairs[-1][1]:
            x = resample(x, log_w + log_twist(x, s) - old, torch.rand(1))
        yield x


# %%NBQA-CELL-SEP15d533
# Eq. 49.11: weighted particles have the variances and the weights of the true posterior
torch.manual_seed(0)
x = last(twisted(world, one, levels_100, torch.randn(4000, 2, dtype=D), exact(world)))
along, across, w = true_moments(Y)
errors = [close((x @ A[0]).var(), along, .005), close((x @ FREE).var(), across, .06),
          close(world.classify(x).exp().mean(0), w, .025)]
passed('(49.11) variances and weights of the groups, 4,000 particles', *errors,
       by='the posterior in closed form')

# the first step is the guided one, from the same noise
x = torch.randn(50, 2, dtype=D)
firsts = []
for run in (twisted(world, one, levels_100, x), ancestral(pigdm(world, one), levels_100, x)):
    torch.manual_seed(4)
    firsts.append(next(run))
passed('particles take guided steps', close(firsts[0], firsts[1], 1e-9), by='`ancestral`')

# without particles the weights of the groups are off
torch.manual_seed(0)
x = last(ddim(second_moment(world, one), levels_100, torch.randn(6000, 2, dtype=D), eta=1.))
alone = world.classify(x).exp().mean(0)
print(f'weights of the two groups: true {w[1]:.3f} {w[2]:.3f}, second moment without particles '
      f'{alone[1]:.3f} {alone[2]:.3f}')
assert (alone - w).abs().max() > .02


# %%NBQA-CELL-SEP15d533
#| export
def rank_of(truth: Tensor,  # [p ...], one for each of p problems
            draws: Tensor,  # [p n ...]
            ) -> Tensor:    # [p ...] in (0, 1)
    "The rank of the truth among draws: uniform if all is well. Eq. 49.12."
    truth = truth[:, None]
    below = (draws < truth).sum(1)
    equal = (draws == truth).sum(1)
    return (below + torch.rand(below.shape)*(equal + 1))/(draws.shape[1] + 1)


def coverage(rank: Tensor,  # [p ...], as `rank_of` gives them
             level: float = .9,
             counted: Tensor | None = None,  # [p ...] bool: which of them count
             ) -> tuple[float, float]:
    "How often the central interval holds the truth, and its standard error. Eq. 49.13."
    inside = ((rank - .5).abs() < level/2).double().reshape(len(rank), -1)
    use = torch.ones_like(inside)
    if counted is not None:
        use = counted.double().reshape(len(rank), -1)

    # problems are independent, pixels are not
    some = use.sum(1) > 0
    share = (inside*use).sum(1)[some]/use.sum(1)[some]
    return share.mean().item(), (share.std()/len(share)**.5).item()


# %%NBQA-CELL-SEP15d533
# Eq. 49.12: level for draws from the true posterior, ties or not; not if they are too narrow
torch.manual_seed(0)
many = true_draws(measured.repeat_interleave(EACH)).view(PROBLEMS, EACH, 2)


def unevenness(u):
    "Chi squared of a histogram of ten bars; about 9 if all is well, below 28 but once in 1,000."
    bars = torch.histc(u.float(), 10, 0, 1)
    return ((bars - len(u)/10)**2/(len(u)/10)).sum().item()


fine = unevenness(rank_of(truths[:, 0], many[..., 0]))
ties = unevenness(rank_of(truths[:, 0].round(), many[..., 0].round()))
centre = many.mean(1, keepdim=True)
narrow = unevenness(rank_of(truths[:, 0], (centre + .5*(many - centre))[..., 0]))
assert fine < 28 and ties < 28 < 100 < narrow
between = rank_of(torch.full((400,), 2.5), torch.tensor([1., 2., 3.]).expand(400, 3))
assert .5 < between.min() < .51 and .74 < between.max() < .75  # the third of four places
print(f'unevenness {fine:.0f}, with ties {ties:.0f}, at half the width {narrow:.0f}')

# Eq. 49.13: the error is that of problems: the spread of 200 repetitions; pixels counted as if
# they were independent would claim less than half of it
torch.manual_seed(0)
shared = torch.randn(200, 50, 1)
u = .5 + .5*torch.erf((.8*shared + .6*torch.randn(200, 50, 20))/2**.5)
found = torch.tensor([coverage(rows) for rows in u])
true_error = found[:, 0].std().item()
errors = [close(found[:, 0].mean(), .9, 5*true_error/200**.5),
          close(found[:, 1].mean()/true_error, 1., .2)]
assert (.09/1000)**.5 < .6*true_error
only = torch.rand(200, 50, 20) < .3
errors.append(close(coverage(u[0], .9, only[0])[0],
                    torch.stack([((r - .5).abs() < .45).double()[c].mean() if c.any() else r.sum()*0
                                 for r, c in zip(u[0], only[0])]).mean(), .03))
passed('(49.12), (49.13) ranks and the error of a coverage', *errors, by='200 repetitions')


# %%NBQA-CELL-SEP15d533
# How the digits were restored and measured; in the slow cell all of it happens
NOISE, DRAWS, LEVELS = .1, 19, karras(30, .02)
hole = torch.ones(28, 28)
hole[8:20, 8:20] = 0
OPERATORS = dict(blur=blur(28, 28, 1.5), mask=mask(hole), down=down(28, 28, 4))
prior = clamp_x0(net)


def fresh(denoiser, start):
    "Random steps of DDIM (14.9) at 30 levels: what a guided denoiser is drawn with."
    return last(ddim(clamp_x0(denoiser), LEVELS, start, eta=1.))


METHODS = {
    'none': lambda seen, x: fresh(net, x),
    'second moment': lambda seen, x: fresh(second_moment(net, seen), x),
    'PiGDM': lambda seen, x: fresh(pigdm(net, seen), x),
    'DPS 10': lambda seen, x: last(dps(prior, seen, LEVELS, x, 10.)),
    'DDRM': lambda seen, x: last(ddrm(prior, seen, LEVELS, x)),
    'DiffPIR 7': lambda seen, x: last(diffpir(prior, seen, LEVELS, x, 7.))}


@functools.lru_cache
def truth_of(k):
    "Digit k [1 1 28 28], drawn from the model itself."
    torch.manual_seed(k)
    return last(ddim(prior, karras(80, .02), torch.randn(1, 1, 28, 28), eta=1.))


def problem(name, k):
    "What was measured of digit k."
    operator = OPERATORS[name]
    y = operator(truth_of(k))
    torch.manual_seed(1000 + k)
    return observe(operator, y + NOISE*torch.randn_like(y), NOISE)


def restored(method, name, k):
    "Draws [19 1 28 28] for problem k."
    seen = problem(name, k)
    torch.manual_seed(2000 + k)
    return METHODS[method](seen, torch.randn(DRAWS, 1, 28, 28))


def ink(x):
    "The mean brightness of each picture, from 0 to 1."
    return (x.clamp(-1, 1) + 1).flatten(1).mean(1)/2


def measure(method, name, problems):
    "A row: coverage of 90 % intervals, pixel by pixel, and what the draws are like."
    clock = time.process_time()
    draws = torch.stack([restored(method, name, k) for k in problems])
    seconds = time.process_time() - clock
    truth = torch.cat([truth_of(k) for k in problems])

    # as pictures are written; pixels that differ at all, of the hidden ones under a mask
    x, x0 = (((v.clamp(-1, 1) + 1)*127.5).round() for v in (draws, truth))
    torch.manual_seed(0)
    rank = rank_of(x0, x)
    counted = torch.cat([x0[:, None], x], 1).std(1) > 13
    if name == 'mask':
        counted &= hole == 0
    share, error = coverage(rank, .9, counted)
    bars = torch.histc(rank[counted], 8, 0, 1)
    return dict(method=method, operator=name, problems=len(problems), draws=DRAWS,
                coverage=round(share, 4), error=round(error, 4),
                spread=round((x.std(1)/127.5).square().mean().sqrt().item(), 4),
                rmse=round(((x.mean(1) - x0)/127.5).square().mean().sqrt().item(), 4),
                ranks=[round(v, 4) for v in (bars/bars.sum()).tolist()],
                evaluations=len(LEVELS), cpu_seconds=round(seconds, 1),
                ink=[round(v, 4) for v in ink(draws[0]).tolist()])


# %%NBQA-CELL-SEP15d533
#| slow
# Measured: five methods, three operators, ten problems with 19 draws; ten minutes
found = measurement('restore', 'coverage of 90 % intervals of restored digits',
                    'python tools/nb.py test nbs/49_restore.ipynb --flags slow', [])
for name in OPERATORS:
    for method in METHODS:
        done = [(r['method'], r['operator']) for r in found['rows']]
        if (method, name) not in done and (method != 'none' or name == 'blur'):
            found['rows'].append(measure(method, name, range(10)))
            keep_measurement('restore', found)


# %%NBQA-CELL-SEP15d533
# Figure 49.3: coverage and width of the draws, by operator, from the stored rows
rows = measurement('restore')['rows']
by_case = {(r['method'], r['operator']): r for r in rows}
nothing = by_case['none', 'blur']
order = ['second moment', 'PiGDM', 'DPS 10', 'DDRM', 'DiffPIR 7']
fig, axes = plt.subplots(1, 3, figsize=(7, 2.2), layout='constrained', dpi=160, sharey=True)
for ax, name in zip(axes, OPERATORS):
    ax.axvline(.9, color='black', linewidth=.7, linestyle='--')
    for k, method in enumerate(order):
        r = by_case[method, name]
        fits = abs(r['coverage'] - .9) < 3*r['error']
        ax.errorbar(r['coverage'], -k, xerr=2*r['error'], fmt='o', markersize=4,
                    color=BLUE if fits else RED, linewidth=1)
        ax.text(1.03, -k, f"{r['rmse']:.2f}", fontsize=8, va='center', color='.3')
    ax.set(title=dict(blur='blurred', mask='hole', down='four times smaller')[name], xlim=(.3, 1.),
           yticks=[-k for k in range(len(order))], xticks=[.5, .7, .9])
    ax.tick_params(left=False)
    ax.text(1.03, .75, 'error', fontsize=7, color='.3')
axes[0].set_yticklabels([m.replace('PiGDM', 'ΠGDM') for m in order])
axes[1].set_xlabel('share of truths inside their 90 % interval')


# %%NBQA-CELL-SEP15d533
# Table: the stored rows; the first draws of three of them, drawn again
print('operator  method          coverage         spread   error of the mean   CPU seconds')
for r in rows:
    where = '-' if r['method'] == 'none' else r['operator']
    print(f"{where:10}{r['method']:15}{r['coverage']:.3f} ± {r['error']:.3f}{r['spread']:9.3f}"
          f"{r['rmse']:14.3f}{r['cpu_seconds']:18.0f}")
assert len(rows) == 1 + 3*len(order)
for r in rows:  # draws that ignore y, and those of both moments
    if r['method'] in ('none', 'second moment', 'PiGDM'):
        assert abs(r['coverage'] - .9) < 4*r['error'], r
narrow = by_case['DDRM', 'blur']
assert narrow['coverage'] < .75 and narrow['spread'] < .6*narrow['rmse']
assert all(by_case['DPS 10', name]['coverage'] < .86 for name in OPERATORS)
assert by_case['DiffPIR 7', 'blur']['coverage'] > .93
for name in OPERATORS:  # its mean is as good as that of both moments
    best = min(by_case[method, name]['rmse'] for method in ('second moment', 'PiGDM'))
    assert by_case['DPS 10', name]['rmse'] < 1.02*best
for name in ('mask', 'down'):
    r = by_case['DDRM', name]
    assert abs(r['coverage'] - .9) < 4*r['error']
again = []
for case in (('DDRM', 'blur'), ('DiffPIR 7', 'mask'), ('PiGDM', 'down')):
    again.append(redrawn(ink(restored(*case, 0)), by_case[case]['ink']))
passed('brightness of the first draws of three rows', *again, by='stored rows')


# %%NBQA-CELL-SEP15d533
#| export systems.restore
from dataclasses import replace
from functools import partial
from typing import Callable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser, Model
from ddpm_lit.core.problem import Problem, no_progress
from ddpm_lit.diffusion.sample import clamp_x0, ddim
from ddpm_lit.diffusion.schedule import Grid, karras
from ddpm_lit.guide.inverse import (
    Observation, Operator, blur, ddrm, diffpir, down, dps, mask, pigdm, second_moment)
from ddpm_lit.systems.draw import choose_run, labels, recipe_denoiser
from ddpm_lit.train.recipe import Recipe


# %%NBQA-CELL-SEP15d533
#| export systems.restore
# (denoiser, limit of pixels or None, what was seen, levels, noise) -> the states of a run
_Run = Callable[[Denoiser, float | None, Observation, Grid, Tensor], Iterator[Tensor]]


def _guided(guidance: Callable[[Denoiser, Observation], Denoiser]) -> _Run:
    "Random steps of DDIM by a guided denoiser, clamped after the guidance."
    def run(denoiser, limit, seen, levels, x):
        found = guidance(denoiser, seen)
        return ddim(found if limit is None else clamp_x0(found, limit), levels, x, eta=1.)

    return run


def _stepped(sampler: Callable[..., Iterator[Tensor]]) -> _Run:
    "A sampler that uses the measurement itself, by a clamped denoiser."
    def run(denoiser, limit, seen, levels, x):
        prior = denoiser if limit is None else clamp_x0(denoiser, limit)
        return sampler(prior, seen, levels, x)

    return run


RESTORERS: dict[str, _Run] = dict(
    tmpd=_guided(second_moment), pigdm=_guided(pigdm), ddrm=_stepped(ddrm),
    dps=_stepped(partial(dps, scale=10.)), diffpir=_stepped(diffpir))


def operator_for(recipe: Recipe, kind: str, blur_std: float = 1.5, factor: int = 4,
                 known: Tensor | None = None) -> Operator:  # known [h w], 1 where seen
    "How pictures of a recipe were measured: 'blur', 'mask' or 'down'. Eq. 49.2."
    choose_run(recipe)  # it may not draw
    if len(recipe.shape) != 3 or recipe.shape[0] not in (1, 3):
        raise Problem(f'{recipe.name} draws {[*recipe.shape]}, which is no picture: name '
                      'weights that draw pictures.')
    _, h, w = recipe.shape
    if kind == 'blur':
        return blur(h, w, blur_std)
    if kind == 'down':
        return down(h, w, factor)
    if kind != 'mask':
        raise Problem(f'There is no operator "{kind}": choose blur, mask or down.')
    if known is None:
        raise Problem('Which pixels are hidden? Give a picture as `mask`, white where '
                      'pixels are hidden.')
    if known.shape != (h, w):
        raise Problem(f'{recipe.name} draws pictures of {w} x {h}, and the mask is '
                      f'{known.shape[1]} x {known.shape[0]}: make it of that size.')
    return mask(known)


def restore(model: Model, recipe: Recipe, seen: Observation, method: str = 'tmpd',
            n: int = 16, label: str | int | None = 'none', steps: int = 40, seed: int = 0,
            progress: Callable[[int, int], None] = no_progress,  # (done, of)
            ) -> Tensor:  # [n c h w] in [-1, 1], on the CPU
    "Draws that fit a measurement, by a model and a named method. Eq. 49.5-49.10."
    run = RESTORERS.get(method)
    if run is None:
        raise Problem(f'There is no method "{method}": choose one of '
                      f'{", ".join(RESTORERS)}.')
    if n < 2:
        raise Problem(f'{n} draws have no spread: ask for 2 or more.')
    if recipe.jumps:
        raise Problem(f'{recipe.name} was distilled and only jumps: name the weights '
                      'that it was distilled from.')

    which = labels(recipe, n, label)
    device = next(model.parameters()).device
    levels = karras(steps, .02)
    done: list[Tensor] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        noise = torch.randn(n, *recipe.shape)
        for i in range(0, n, 64):
            mine = None if which is None else which[i:i + 64].to(device)
            denoiser = recipe_denoiser(model, replace(recipe, limit=None), mine)
            start = noise[i:i + 64].to(device)
            states = run(denoiser, recipe.limit, seen, levels, start)
            for at, x in enumerate(states, 1):
                progress(len(done)*steps + at, steps*((n + 63)//64))
            done.append(x.cpu())

    found = torch.cat(done)
    if not found.isfinite().all():
        raise Problem(f'What {method} draws here is not finite: say that there is more '
                      '`noise`, or take another `method`.')
    return found.clamp(-1, 1)


# %%NBQA-CELL-SEP15d533
# Eq. 49.5: the method of each name, drawn by hand, from the same seed; and what it refuses
from ddpm_lit.systems.restore import RESTORERS, operator_for, restore
from ddpm_lit.train.run import open_weights

digits, recipe = open_weights('mnist')
bare = digits.given(torch.full((3,), -1))
soft_28 = operator_for(recipe, 'blur')
torch.manual_seed(0)
seen = observe(soft_28, soft_28(whole), .1)
by_hand = dict(tmpd=lambda x: ddim(clamp_x0(second_moment(bare, seen)), karras(3, .02), x, eta=1.),
               pigdm=lambda x: ddim(clamp_x0(pigdm(bare, seen)), karras(3, .02), x, eta=1.),
               ddrm=lambda x: ddrm(clamp_x0(bare), seen, karras(3, .02), x),
               dps=lambda x: dps(clamp_x0(bare), seen, karras(3, .02), x, 10.),
               diffpir=lambda x: diffpir(clamp_x0(bare), seen, karras(3, .02), x))
errors = []
for method in RESTORERS:
    torch.manual_seed(5)
    want = last(by_hand[method](torch.randn(3, 1, 28, 28))).clamp(-1, 1)
    errors.append(close(restore(digits, recipe, seen, method, n=3, steps=3, seed=5), want, 1e-5))
passed('five methods by name', *errors, by='their samplers')

for wrong in (lambda: observe(soft_28, whole, 0.), lambda: observe(soft_28, whole, -1.),
              lambda: observe(soft_28, whole[..., :20], .1), lambda: blur(28, 28, 0.),
              lambda: down(28, 28, 5), lambda: mask(torch.full((28, 28), .5)),
              lambda: operator_for(recipe, 'warp'), lambda: operator_for(recipe, 'mask'),
              lambda: operator_for(recipe, 'mask', known=torch.ones(9, 9)),
              lambda: restore(digits, recipe, seen, 'magic'),
              lambda: restore(digits, recipe, seen, n=1),
              lambda: last(twisted(world, one, levels_100, torch.zeros(1, 2, dtype=D)))):
    with expect_fail(kind=Problem):
        wrong()


# %%NBQA-CELL-SEP15d533
# A wrong noise: said to be .1 where it is .3, and the true posterior for .1
torch.manual_seed(0)
many = []
for y_k in measured.repeat_interleave(EACH).split(2000):
    w, mean, v = true_posterior(y_k, .1)
    k = torch.multinomial(w, 1)[:, 0]
    at = (mean[torch.arange(len(k)), k] @ A[0]) + v[k].sqrt()*torch.randn(len(k), dtype=D)
    many.append(at)
wrong = coverage(rank_of(truths @ A[0], torch.cat(many).view(PROBLEMS, EACH)))
assert wrong[0] < .6
print(f'noise said to be too small: coverage {wrong[0]:.3f} ± {wrong[1]:.3f}')

# DiffPIR from the first level of the cosine schedule, and from that of karras: a blur of 10 x 10
torch.manual_seed(0)
wide_pair = Mixture(torch.tensor([.3, .7], dtype=D), torch.randn(2, 100, dtype=D),
                    torch.tensor([.5, .8], dtype=D))


def as_pictures(x, t):
    p = wide_pair(x.flatten(1), t)
    return Prediction(p.x0.view_as(x), p.eps.view_as(x))


soft_10 = blur(10, 10, 1.5)
x0 = wide_pair.sample(200).view(200, 1, 10, 10)
seen = observe(soft_10, soft_10(x0) + .1*torch.randn_like(x0), .1)
for levels, least, most in ((grid(Cosine(), 20), 5., 100.), (karras(20, .02), .7, 1.3)):
    x = last(diffpir(as_pictures, seen, levels, torch.randn_like(x0), 1.))
    error = (x - x0).square().mean().sqrt().item()
    print(f'DiffPIR from k = {[*levels][0].edm_sigma:,.0f}: error {error:.2f}')
    assert least < error < most


# %%NBQA-CELL-SEP15d533
# Questions 1 and 2: the row without a measurement; equal draws
errors = [close(nothing['coverage'], .9, 4*nothing['error'])]
torch.manual_seed(0)
for n, share in ((9, .5), (19, 0.)):
    u = rank_of(torch.randn(4000), torch.zeros(4000, n))
    errors.append(close(coverage(u)[0], share, .04))
passed('questions 1 and 2', *errors)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1: the variance of x0 given x_t, and how many times too wide sigma^2 is
def variance(s, t):
    return ...


times = ...
t = Level(torch.tensor(.3, dtype=D))
half = Mixture(*(torch.tensor(v, dtype=D) for v in ([1.], [[0., 0.]], [.5])))
close(variance(.5, t), half.var_x0(torch.zeros(1, 2, dtype=D), t)[0, 0])
close(times, .5/variance(.5, Level(torch.tensor(0., dtype=D))))


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2: denoiser x observation -> denoiser
def ddnm(denoiser, seen):
    ...


torch.manual_seed(0)
x, t = torch.randn(5, 2, dtype=D), Level(torch.tensor(.3, dtype=D))
close(ddnm(world, one)(x, t).x0 @ A[0], torch.full((5,), Y, dtype=D))
pir = next(diffpir(world, one, [t, CLEAN], x, 1e-12))
close(ddnm(world, one)(x, t).x0, pir, 1e-9)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: a number in (0, 1)
def brightness_rank(truth, draws):  # [1 1 h w], [n 1 h w]
    ...


torch.manual_seed(0)
u = brightness_rank(truth_of(0), restored('DDRM', 'blur', 0))
assert 0 < u < 1
below = torch.tensor(by_case['DDRM', 'blur']['ink']) < ink(truth_of(0))
close(u, below.double().mean(), .06)


# %%NBQA-CELL-SEP15d533
# solution 1: precisions add. At signal = sigma the variance is 1/5, and sigma^2 = 1/2
def variance(s, t):
    return 1/(1/s**2 + t.signal**2/t.sigma**2)


times = .5/.2
t = Level(torch.tensor(.3, dtype=D))
half = Mixture(*(torch.tensor(v, dtype=D) for v in ([1.], [[0., 0.]], [.5])))
close(variance(.5, t), half.var_x0(torch.zeros(1, 2, dtype=D), t)[0, 0])
close(times, .5/variance(.5, Level(torch.tensor(0., dtype=D))))


# %%NBQA-CELL-SEP15d533
# solution 2: the pseudo-inverse in coordinates; DiffPIR without rho
def ddnm(denoiser, seen):
    o = seen.operator
    inverse = (o.gain > 1e-9)/o.gain.clamp(min=1e-9)
    return edit_x0(denoiser, lambda x0: x0 + o.back(inverse*seen.gap(x0)))


torch.manual_seed(0)
x, t = torch.randn(5, 2, dtype=D), Level(torch.tensor(.3, dtype=D))
close(ddnm(world, one)(x, t).x0 @ A[0], torch.full((5,), Y, dtype=D))
pir = next(diffpir(world, one, [t, CLEAN], x, 1e-12))
close(ddnm(world, one)(x, t).x0, pir, 1e-9)


# %%NBQA-CELL-SEP15d533
# solution 3: one problem, so both have a first axis of length 1
def brightness_rank(truth, draws):  # [1 1 h w], [n 1 h w]
    return rank_of(ink(truth), ink(draws)[None])[0]


torch.manual_seed(0)
u = brightness_rank(truth_of(0), restored('DDRM', 'blur', 0))
assert 0 < u < 1
below = torch.tensor(by_case['DDRM', 'blur']['ink']) < ink(truth_of(0))
close(u, below.double().mean(), .06)
