# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.oracle


# %%NBQA-CELL-SEP15d533
# Figure 13.1: a noisy digit, the average of what could be behind it, and the likeliest candidates
import matplotlib.pyplot as plt
import torch
from ddpm_lit.core.check import setup
from ddpm_lit.core.level import Level
from ddpm_lit.data.images import mnist, to_unit

setup()
D = torch.float64


def level(log_snr):
    "A noise level in float64."
    return Level(torch.tensor(log_snr, dtype=D))


# one handwritten digit, and 5,000 others
images = mnist('train')
digits = to_unit(images.pixels[:5001])
example, others = digits[:1], digits[1:]

torch.manual_seed(0)
noise = torch.randn(1, 784, dtype=D)
data = others.flatten(1).double()
behind = {}  # log SNR -> the probability of each of the 5,000
fig, axes = plt.subplots(3, 9, figsize=(7, 2.9), layout='constrained', dpi=160,
                         width_ratios=(1, 1, .15, *[1]*6))
for row, v in zip(axes, (-4., -2., 0.)):
    t = level(v)
    x = t.signal*example.flatten(1) + t.sigma*noise
    distance = (x - t.signal*data).square().sum(1)
    p = behind[v] = (-distance/(2*t.sigma**2)).softmax(0)
    top = p.topk(6)
    pictures = [x[0], p @ data, None, *data[top.indices]]
    notes = ['', '', '', *[f'{100*q:.1f} %' if q > .001 else '< 0.1 %' for q in top.values]]
    for ax, picture, note in zip(row, pictures, notes):
        ax.axis('off')
        if picture is None:
            continue
        ax.imshow(picture.reshape(28, 28), vmin=-1, vmax=1, interpolation='nearest')
        ax.text(.5, -.05, note, transform=ax.transAxes, ha='center', va='top')
    row[0].text(-.12, .5, f'log SNR {v:.0f}'.replace('-', '−'), transform=row[0].transAxes,
                ha='right', va='center')
axes[0, 0].set_title('noisy $x_t$')
axes[0, 1].set_title(r'$\mathrm{E}[x_0 \mid x_t]$')
title = axes[0, 3].text(0, 1.1, 'the six most probable of 5,000 training digits',
                        transform=axes[0, 3].transAxes)
title.set_in_layout(False)


# %%NBQA-CELL-SEP15d533
import torch


def best_guess_for_data(x_t, alpha_bar, data):  # [b d], a tensor, [n d]
    distance = (x_t[:, None] - alpha_bar.sqrt()*data).square().sum(2)  # [b n]
    return (-distance/(2*(1 - alpha_bar))).softmax(1) @ data


# %%NBQA-CELL-SEP15d533
#| export
import math
from dataclasses import dataclass
import torch
from torch import Tensor
from ddpm_lit.core.problem import Problem
from ddpm_lit.core.denoiser import Prediction, from_x0
from ddpm_lit.core.level import Level, CLEAN


# %%NBQA-CELL-SEP15d533
#| hide
from torch.distributions import Categorical, MixtureSameFamily, Normal
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed
from ddpm_lit.data.toy import swiss_roll
from ddpm_lit.diffusion import oracle as library  # the first page uses what later ones build
from ddpm_lit.diffusion.forward import q_sample


# %%NBQA-CELL-SEP15d533
# The plain function against the library, at five noise levels
torch.manual_seed(0)
pixels = data[:300].float()
exact = library.EmpiricalDenoiser(pixels)
errors = []
for v in (-5., -1., 0., 2., 5.):
    t = Level(torch.tensor(v))
    x_t = q_sample(digits[300:310].flatten(1), t, torch.randn(10, 784))
    errors.append(close(best_guess_for_data(x_t, t.alpha_bar, pixels), exact(x_t, t).x0, 1e-3))
# the time of 05, in which signal is the cosine of a quarter turn
ts = Level(torch.tensor([0., -2., -4.], dtype=D))
close(ts.signal.acos()*2/math.pi, torch.tensor([.5, .78, .91], dtype=D), tol=.005)
passed("the plain code agrees with this book's library", *errors, by='float32')


# %%NBQA-CELL-SEP15d533
# Measured: the expected squared error of five guesses at one x_t, log SNR -2
p = behind[-2.]
order = p.argsort(descending=True)
mean = p @ data
guesses = {'the conditional mean': mean,
           'the most probable digit': data[order[0]],
           'the second most probable digit': data[order[1]],
           'the mean of all 5,000 digits': data.mean(0),
           'a black image': -torch.ones(784, dtype=D)}


def expected(guess):  # per pixel
    return p @ (data - guess).square().mean(1)


print('guess                            expected squared error per pixel')
least = expected(mean)
errors = []
for name, guess in guesses.items():
    found = expected(guess)
    print(f'{name:30} {found:20.3f}')
    errors.append(close(found, least + (guess - mean).square().mean()))
    assert guess is mean or found > 1.2*least

# what Figure 13.1 says: so many digits have 90 % of the probability
share = [(q.sort(descending=True).values.cumsum(0) < .9).sum() + 1 for q in behind.values()]
assert share[0] > 1000 and share[1:] == [21, 1]
passed('each error = that of the mean + squared distance from the mean', *errors)


# %%NBQA-CELL-SEP15d533
#| export
class EmpiricalDenoiser:
    "The exact denoiser of a data set: each example is a point component. Eq. 13.10."

    def __init__(self, data: Tensor):  # [n ...] floating
        self.shape = data.shape[1:]
        self.data = data.flatten(1).double()
        self.half_norm = .5*self.data.square().sum(1)

    def weights(self, x: Tensor, t: Level) -> Tensor:  # [b ...] -> [b n]
        "p(example | x_t). Eq. 13.10."
        if x.shape[1:] != self.shape:
            raise Problem(f'The data are {[*self.shape]} each, x is {[*x.shape[1:]]}: '
                          'give x the same shape.')
        t = Level(t.log_snr.reshape(-1, 1).to(self.data))
        if not (t.sigma > 0).all():
            raise Problem('The ideal denoiser has no answer without noise: '
                          'ask at a level below CLEAN.')
        # -|x_t - signal x0|^2/(2 sigma^2), without |x_t|^2, which all examples share
        overlap = x.flatten(1).double() @ self.data.T
        log_p = (t.signal*overlap - t.alpha_bar*self.half_norm)/t.sigma**2
        return log_p.softmax(1)

    def __call__(self, x: Tensor, t: Level) -> Prediction:  # [b ...]
        "The mean of the examples, weighted by p(example | x_t): a Denoiser. Eq. 13.10."
        x0 = (self.weights(x, t) @ self.data).to(x).reshape(x.shape)
        return from_x0(x0, x, t.like(x))


# %%NBQA-CELL-SEP15d533
# Figure 13.2: where the exact denoiser of 2,000 points moves the points of the plane
torch.manual_seed(0)
ideal = EmpiricalDenoiser(swiss_roll(2000))
at = show.lattice(10, 2.7)
fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout='constrained', dpi=160)
for v, ax in zip((4., 1., -1., -4.), axes):
    t = level(v)
    show.cloud(t.signal*ideal.data, ax, 'noise', alpha=.3)
    arrows = -.35*t.sigma*ideal(at, t).eps
    ax.quiver(*at.T, *arrows.T, color='tab:blue', width=.009, headwidth=3.5, headlength=4,
              angles='xy', scale_units='xy', scale=1)
    ax.set_title(f'log SNR {v:.0f}'.replace('-', '−'))


# %%NBQA-CELL-SEP15d533
# Figure 13.3: a digit at six levels, and the prediction of the exact denoiser of 5,000 others
torch.manual_seed(2)
ideal = EmpiricalDenoiser(others)
t = Level(torch.tensor([6., 1., -2., -4., -6., -9.]).reshape(-1, 1, 1, 1))  # six levels at once
x = q_sample(example, t, torch.randn(1, 1, 28, 28).expand(6, -1, -1, -1))
guess = ideal(x, t).x0
chance, likeliest = ideal.weights(x, t).max(1)
named = images.label[1:5001][likeliest]  # the label of the most probable digit
fig, axes = plt.subplots(2, 6, figsize=(7, 2.7), layout='constrained', dpi=160)
for row, pictures, name in zip(axes, (x, guess), ('noisy $x_t$', 'prediction')):
    row[0].set_ylabel(name)
    for ax, picture in zip(row, pictures):
        ax.imshow(picture[0], vmin=-1, vmax=1, interpolation='nearest')
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
for i, v in enumerate(t.log_snr.flatten()):
    axes[0, i].set_title(f'log SNR {v:.0f}'.replace('-', '−'))
    share = f'{100*chance[i]:.0f} %' if chance[i] > .01 else '< 1 %'
    axes[1, i].set_xlabel(f'one {named[i]}: {share}')


# %%NBQA-CELL-SEP15d533
ideal = EmpiricalDenoiser(others)  # 5,000 digits
levels = [level(v) for v in torch.linspace(-12., 8., 30).tolist()]
torch.manual_seed(0)
x = torch.randn(10, 1, 28, 28, dtype=D)
for t, s in zip(levels, levels[1:]):
    p = ideal(x, t)
    x = s.signal*p.x0 + s.sigma*p.eps
sample = ideal(x, levels[-1]).x0


# %%NBQA-CELL-SEP15d533
# Figure 13.4: ten samples, and for each the nearest training digit
nearest = torch.cdist(sample.flatten(1), ideal.data).argmin(1)
found = ideal.data[nearest].reshape(10, 1, 28, 28)
assert len(set(nearest.tolist())) == 10
fig, axes = plt.subplots(2, 10, figsize=(7, 1.6), layout='constrained', dpi=160)
for row, pictures, name in zip(axes, (sample, found), ('sample', 'nearest')):
    row[0].set_ylabel(name)
    for ax, picture in zip(row, pictures):
        ax.imshow(picture[0], vmin=-1, vmax=1, interpolation='nearest')
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
passed('ten samples are ten training images', close(sample, found), by='the nearest of 5,000')


# %%NBQA-CELL-SEP15d533
# Eq. 13.10: with little noise the answer is a training digit (which one: the nearest), with pure
# noise the mean
torch.manual_seed(2)
t = Level(torch.tensor([6., 1., -2., -4., -6., -9.]).reshape(-1, 1, 1, 1))
x = q_sample(example, t, torch.randn(1, 1, 28, 28).expand(6, -1, -1, -1))
x0 = ideal(x, t).x0
scaled = (x[:1]/t.signal[:1]).flatten(1).double()
nearest = torch.cdist(scaled, ideal.data)[0].argmin()
assert (x0[0] - example[0]).square().mean() > .01  # another digit than the one behind x
mean = others.mean(0).expand(6, 1, 28, 28)
passed('(13.10) at log SNR 6 the nearest training digit, in pure noise the mean',
       close(x0[0].flatten(), ideal.data[nearest], 1e-6),
       close(ideal(x, level(-math.inf)).x0, mean, 1e-6), by='distances')


# %%NBQA-CELL-SEP15d533
# Figure 13.5: the density of a mixture at four levels, coloured by p(k | x_t)
blobs = library.Gaussians(torch.tensor([.2, .3, .5]), torch.tensor([[-2., 0], [1, 2], [1, -1]]),
                          torch.tensor([.3, .5, .2]))
paint = torch.tensor([[.12, .47, .71], [.17, .63, .17], [.84, .15, .16]])  # one colour for each k
at = show.lattice(34, 2.9)
fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout='constrained', dpi=160)
for v, ax in zip((6., 2., 0., -4.), axes):
    t = level(v)
    density = blobs.log_prob(at, t).exp()
    size = (density/density.max())**.35  # small densities would not be seen
    colour = blobs.classify(at, t).exp() @ paint
    show.plane(ax).scatter(*at.T, s=11*size, c=colour.clamp(0, 1).numpy(), linewidths=0)
    ax.set_title(f'log SNR {v:.0f}'.replace('-', '−'))
for k, (x, y) in enumerate(((-2, 1.2), (-1.3, 2.3), (1, -2.2))):
    axes[0].text(x, y, f'$k = {k + 1}$', ha='center', va='center', color=paint[k].tolist())


# %%NBQA-CELL-SEP15d533
#| export
@dataclass(frozen=True)
class Gaussians:
    "Round Gaussians with weights, seen at any level of noise. Eq. 13.1."
    weight: Tensor  # [k], sums to 1
    mean: Tensor  # [k d]
    std: Tensor  # [k], the same in every direction; 0 makes a component a point

    def __post_init__(self):
        w = self.weight
        mean = self.mean
        std = self.std
        k = (len(w),)

        if mean.shape[:1] != k or mean.ndim != 2 or std.shape != k:
            raise Problem(f'Give weight [k], mean [k d] and std [k], not {[*w.shape]}, '
                          f'{[*mean.shape]} and {[*std.shape]}.')
        if not ((w >= 0).all() and abs(w.sum() - 1) < 1e-5 and (std >= 0).all()):
            raise Problem('Give weights that are not negative and sum to 1, '
                          'and no negative std.')

    def _parts(self, x, t):  # x [b d], t [b 1]
        "Variance v [b k], x_t - signal mean [b k d], log of the joint [b k]."
        v = t.signal**2*self.std**2 + t.sigma**2
        if not (v > 0).all():
            raise Problem('A component without width has no density without noise: '
                          'ask at a level below CLEAN.')
        diff = x[:, None] - t.signal[..., None]*self.mean
        exponent = diff.square().sum(2)/(2*v)
        log_volume = x.shape[1]/2*(2*math.pi*v).log()
        return v, diff, self.weight.log() - exponent - log_volume

    def log_prob(self, x: Tensor, t: Level = CLEAN) -> Tensor:  # [b d] -> [b]
        "log q(x_t), in nats. Eq. 13.2."
        return self._parts(x, t.like(x))[2].logsumexp(1)

    def classify(self, x: Tensor, t: Level = CLEAN) -> Tensor:  # [b d] -> [b k]
        "log p(k | x_t): the exact noisy classifier. Eq. 13.3."
        return self._parts(x, t.like(x))[2].log_softmax(1)

    def given(self, k: int) -> 'Gaussians':
        "The world in which component k is the only one."
        if not 0 <= k < len(self.weight):
            raise Problem(f'There is no component {k}: '
                          f'ask for 0 to {len(self.weight) - 1}.')
        one = slice(k, k + 1)
        return type(self)(torch.ones_like(self.weight[:1]), self.mean[one], self.std[one])

    def sample(self, n: int) -> Tensor:  # [n d]
        "Draw clean data."
        k = torch.multinomial(self.weight, n, replacement=True)
        return torch.normal(self.mean[k], self.std[k, None].expand_as(self.mean[k]))

    def to(self, *where) -> 'Gaussians':
        "The same world on another device or in another dtype."
        parts = (self.weight, self.mean, self.std)
        return type(self)(*(v.to(*where) for v in parts))


# %%NBQA-CELL-SEP15d533
# The reference: q(x_t) and p(x0 | x_t) by sums over x0
line = dict(weight=torch.tensor([.2, .3, .5], dtype=D),
            mean=torch.tensor([[-2.], [.5], [1.5]], dtype=D),
            std=torch.tensor([.3, .5, .2], dtype=D))
grid0 = torch.linspace(-9, 9, 9001, dtype=D)  # the values of x0
bells = Normal(line['mean'][:, 0], line['std']).log_prob(grid0[:, None]).exp()
each = line['weight']*bells*(grid0[1] - grid0[0])  # [grid k]


def brute(x, t, prior=None):  # x [b 1] -> [b], [b grid]; None: all three components
    "q(x_t) and p(x0 | x_t), by sums over the values of x0."
    if prior is None:
        prior = each.sum(1)
    joint = prior*Normal(t.signal*grid0, t.sigma).log_prob(x).exp()
    return joint.sum(1), joint/joint.sum(1, keepdim=True)


x1 = torch.linspace(-4, 4, 41, dtype=D)[:, None]
ts = [level(v) for v in (-5., -1., 0., 2., 5.)]


# %%NBQA-CELL-SEP15d533
# Eq. 13.1, 13.2: the density against brute force at five levels, and against torch.distributions
# where it is clean
world = Gaussians(**line)
parts = Normal(line['mean'][:, 0], line['std'])
clean = MixtureSameFamily(Categorical(line['weight']), parts).log_prob(x1[:, 0])
without = close(world.log_prob(x1), clean)
errors = []
for t in ts:
    density, _ = brute(x1, t)
    errors.append(close(world.log_prob(x1, t).exp(), density))
passed('(13.1, 13.2) density of a mixture, clean and at five levels', without, *errors,
       by='torch.distributions; sums over x0')


# %%NBQA-CELL-SEP15d533
# Eq. 13.1, 13.2: in two dimensions a lattice of densities must sum to 1, with the mean that noise
# leaves
t = level(1.)
side = torch.linspace(-8, 8, 321, dtype=D)
at = torch.cartesian_prod(side, side)
blobs = Gaussians(blobs.weight, blobs.mean, blobs.std)
q = blobs.log_prob(at, t).exp()*.05**2
mean = t.signal*(blobs.weight @ blobs.mean).double()
errors = [close(q.sum(), 1, 1e-6), close(q @ at, mean, 1e-6)]
passed('(13.1) in the plane the density sums to 1, about the mean', *errors, by='a lattice')


# %%NBQA-CELL-SEP15d533
# Eq. 13.3: the share of each component, by brute force
errors = []
for t in ts:
    joint = torch.stack([brute(x1, t, each[:, k])[0] for k in range(3)], 1)
    errors.append(close(world.classify(x1, t).exp(), joint/joint.sum(1, keepdim=True)))
passed('(13.3) probability of each component given x_t', *errors, by='sums over x0')


# %%NBQA-CELL-SEP15d533
# Figure 13.6: the best prediction of x0 as a function of x_t, at three levels
narrow = library.Mixture(line['weight'], line['mean'], line['std']/3)
x = torch.linspace(-4, 4, 800, dtype=D)[:, None]
fig, ax = plt.subplots(figsize=(7, 2.6), layout='constrained', dpi=160)
for k, (m, r) in enumerate(zip(line['mean'][:, 0], line['std']/3)):
    ax.axhspan(m - r, m + r, color='.9', lw=0)
    ax.text(-3.9, m + r, f'component {k + 1}', color='.4', va='bottom')
places = {3.: (-.7, -1.5), 0.: (-2.35, -1.2), -4.: (3., .8)}
for (v, (left, up)), ink in zip(places.items(), ('tab:blue', 'tab:purple', 'tab:red')):
    ax.plot(x, narrow(x, level(v)).x0, color=ink)
    ax.text(left, up, f'log SNR {v:.0f}'.replace('-', '−'), color=ink, va='center')
ax.set(xlabel='$x_t$', ylabel=r'$\mathrm{E}[x_0 \mid x_t]$', xlim=(-4, 4), ylim=(-2.5, 2.1))


# %%NBQA-CELL-SEP15d533
#| export
class Mixture(Gaussians):
    "A mixture of round Gaussians: a world and its exact denoiser. Eq. 13.4-13.6."

    def _clean(self, x, t):
        "E[x0 | x_t, k] [b k d], p(k | x_t) [b k 1], (x_t - signal mean)/v [b k d], v."
        v, diff, joint = self._parts(x, t)
        pull = diff/v[..., None]
        x0 = self.mean + (t.signal*self.std**2)[..., None]*pull
        return x0, joint.softmax(1)[..., None], pull, v[..., None]

    def __call__(self, x: Tensor, t: Level) -> Prediction:  # [b d]
        "E[x0 | x_t] and E[eps | x_t]: a Denoiser. Eq. 13.4-13.5."
        t = t.like(x)
        x0, p, pull, _ = self._clean(x, t)
        return Prediction((p*x0).sum(1), t.sigma*(p*pull).sum(1))

    def var_x0(self, x: Tensor, t: Level) -> Tensor:  # [b d]
        "Variance of each coordinate of x0 given x_t. Eq. 13.6."
        t = t.like(x)
        x0, p, _, v = self._clean(x, t)
        within = self.std[:, None]**2*t.sigma[..., None]**2/v
        between = (x0 - (p*x0).sum(1, keepdim=True))**2
        return (p*(within + between)).sum(1)


# %%NBQA-CELL-SEP15d533
# Eq. 13.4, 13.5: both conditional means by brute force, and the guess consistent with x_t
world = Mixture(**line)
errors = []
together = []
for t in ts:
    _, p = brute(x1, t)
    guess = world(x1, t)
    eps = (x1 - t.signal*grid0)/t.sigma  # the noise that leads from each x0 to x_t
    errors += [close(guess.x0[:, 0], p @ grid0),
               close(guess.eps[:, 0], (p*eps).sum(1))]
    together.append(close(q_sample(guess.x0, t, guess.eps), x1))
passed('(13.4), (13.5) conditional means of x0 and noise, which make x_t', *errors, *together,
       by='sums over x0')


# %%NBQA-CELL-SEP15d533
# Eq. 13.6: the variance by brute force
def spread(x, t):
    _, p = brute(x, t)
    return p @ grid0**2 - (p @ grid0)**2


errors = [close(world.var_x0(x1, t)[:, 0], spread(x1, t)) for t in ts]
passed('(13.6) variance of x0 given x_t, at five levels', *errors, by='sums over x0')


# %%NBQA-CELL-SEP15d533
# Eq. 13.10: against the mixture without width, at five levels; nothing but the shared terms has
# been left out
torch.manual_seed(0)
roll = swiss_roll(300).double()
points = Mixture(torch.full((300,), 1/300, dtype=D), roll, torch.zeros(300, dtype=D))
ideal = EmpiricalDenoiser(roll)
x = torch.randn(50, 2, dtype=D)
errors = []
for t in ts:
    p, want = ideal(x, t), points(x, t)
    errors += [close(ideal.weights(x, t), points.classify(x, t).exp()),
               close(p.x0, want.x0),
               close(p.eps, want.eps)]
passed('(13.10) weights and both predictions', *errors, by='a mixture of points')


# %%NBQA-CELL-SEP15d533
three = Mixture(torch.tensor([.2, .3, .5]),
                torch.tensor([[-2., 0], [1, 2], [1, -1]]),
                torch.tensor([.3, .5, .2]))
x_t = torch.tensor([[.5, .5]])
t = Level(0.)
x0, eps, _ = three(x_t, t)
print('E[x0 | x_t] ', x0[0])
print('E[eps | x_t]', eps[0])
print('Var[x0 | x_t]', three.var_x0(x_t, t)[0])
print('p(k | x_t)  ', three.classify(x_t, t).exp()[0])
print('log q(x_t)  ', three.log_prob(x_t, t)[0])


# %%NBQA-CELL-SEP15d533
#| export
def ring(k: int = 8, std: float = .15, radius: float = 2.,
         dtype=torch.float32) -> Mixture:
    "k equal Gaussians on a circle: a world that the book comes back to."
    a = torch.arange(k, dtype=dtype)*2*math.pi/k
    mean = radius*torch.stack([a.cos(), a.sin()], 1)
    return Mixture(torch.full_like(a, 1/k), mean, torch.full_like(a, std))


# %%NBQA-CELL-SEP15d533
# Eq. 13.1, 13.3: samples of the ring, noised, have the moments of the formula (5 sigma/sqrt(N)),
# and p(k | x_t) averages to the weights
torch.manual_seed(0)
N = 20_000
r = ring(4, std=.1)
corners = torch.tensor([[2., 0], [0, 2], [-2, 0], [0, -2]])
passed('the ring of four has its means on the axes', close(r.mean, corners, 1e-6))
passed('the mean of samples of one component',
       close(r.given(2).sample(N).mean(0), r.mean[2], 5*.1/N**.5), by='20,000 samples')

t = level(1.)
x = q_sample(r.sample(N), t, torch.randn(N, 2))
var = t.signal**2*(.1**2 + 2) + t.sigma**2  # half of the squared radius in each direction
share = r.classify(x, t).exp().mean(0)
errors = (close(x.mean(0), 0., 5*(var/N)**.5),
          close((x**2).mean(0), torch.ones(2)*var, 5*2*var/N**.5),
          close(share, .25, 5*.44/N**.5))
passed('(13.1), (13.3) moments and shares of noisy samples', *errors, by='20,000 samples')


# %%NBQA-CELL-SEP15d533
# Figure 13.7: the ring of eight from clean to noisy, and the best prediction for each point
a, b = torch.randn(2, 400, 2, generator=torch.Generator().manual_seed(0))
r = ring()
x0 = r.mean.repeat(50, 1) + .15*a
frames, labels = [], []
for v in (6., 3., 2., 1., 0., -1., -2., -5.):
    x = q_sample(x0, level(v), b)
    guess = r(x, level(v)).x0
    left, right = show.panels(2, ('$x_t$', 'predicted $x_0$'), height=2.4)
    for ax, y, ink in ((left, x, 'noise'), (right, guess, 'model')):
        show.cloud(y, ax, ink, size=4.)
        ax.scatter(*y[::8].T, s=4, color='tab:orange')
    frames.append(left.figure)
    kept = 100*guess.square().sum()/x0.square().sum()
    number = f'{v:.0f}'.replace('-', '−')
    labels.append(f'log SNR {number}: the predictions keep {kept:.0f} % of the spread of the data')
show.Slider(frames, labels, 'From clean to noisy: at which level does a prediction first land '
            'between the components, and at which are all predictions near the middle? '
            'Answer both, then move.')


# %%NBQA-CELL-SEP15d533
# Eq. 13.7: three wrong denoisers; the error each adds to the oracle's is its own size, all by sums
# over x0 and x_t
t = level(0.)
xs = torch.linspace(-9, 9, 601, dtype=D)[:, None]
density, p = brute(xs, t)
qx = density*(xs[1] - xs[0])  # the probability of each x_t
x0 = world(xs, t).x0[:, 0]  # the oracle's guess


def loss(guess):
    return qx @ (p @ grid0**2 - 2*(p @ grid0)*guess + guess**2)


wrong = [.1*torch.ones_like(x0), .3*(3*xs[:, 0]).sin(), -.2*x0]
added = [close(loss(x0 + w) - loss(x0), qx @ w**2) for w in wrong]
unavoidable = close(loss(x0), qx @ world.var_x0(xs, t)[:, 0])
passed('(13.7) error = that of the best denoiser + squared distance from it', *added, unavoidable,
       by='sums')


# %%NBQA-CELL-SEP15d533
# Figure 13.8: left, the step from x_t to signal times the prediction; right, its uncertainty
exact = library.Mixture(**line)
t = level(1.)
x = torch.linspace(-3.6, 3.6, 800, dtype=D)[:, None]
fig, (ax, side) = plt.subplots(1, 2, figsize=(7, 2.6), layout='constrained', dpi=160)
ax.plot(x, exact.log_prob(x, t).exp(), color='.3')
ax.text(-1.75, .2, '$q(x_t)$', color='.3', ha='center')
start = torch.linspace(-3., 3., 21, dtype=D)[:, None]
height = exact.log_prob(start, t).exp()
end = t.signal*exact(start, t).x0
for a, h, b in zip(start[:, 0], height, end[:, 0]):
    ax.annotate('', (b, h), (a, h), arrowprops=dict(arrowstyle='-|>', color='tab:blue', lw=1,
                                                    shrinkA=0, shrinkB=0, mutation_scale=7))
ax.plot(start, height, 'o', color='tab:blue', markersize=2.5)
ax.set(xlabel='$x_t$', ylim=(0, None))
ax.set_title(r'from $x_t$ to signal $\cdot\ \mathrm{E}[x_0 \mid x_t]$')
mean = exact(x, t).x0[:, 0]
std = exact.var_x0(x, t)[:, 0].sqrt()
side.fill_between(x[:, 0], mean - std, mean + std, color='tab:blue', alpha=.2, lw=0)
side.plot(x, mean, color='tab:blue')
side.set(xlabel='$x_t$', title=r'$\mathrm{E}[x_0 \mid x_t]$ ± standard deviation')


# %%NBQA-CELL-SEP15d533
def log_density(x_t, alpha_bar, weight, mean, std):
    # each component, seen through noise
    var = alpha_bar*std**2 + 1 - alpha_bar
    gap = x_t[:, None] - alpha_bar.sqrt()*mean  # [b k d]

    # the log density of component and x_t, summed over components
    log_joint = weight.log() - gap.square().sum(2)/(2*var)
    log_joint = log_joint - x_t.shape[1]/2*(2*torch.pi*var).log()
    return log_joint.logsumexp(1)


def best_guess(x_t, alpha_bar, *mixture):  # E[x0 | x_t], by Tweedie's formula
    x_t = x_t.detach().requires_grad_()
    score, = torch.autograd.grad(log_density(x_t, alpha_bar, *mixture).sum(), x_t)
    return (x_t.detach() + (1 - alpha_bar)*score)/alpha_bar.sqrt()


# %%NBQA-CELL-SEP15d533
# The plain functions against the library, at five noise levels
torch.manual_seed(0)
parts = torch.tensor([.2, .3, .5]), torch.tensor([[-2., 0], [1, 2], [1, -1]]), \
    torch.tensor([.3, .5, .2])
scattered = 2*torch.randn(50, 2)
exact = library.Mixture(*parts)
errors = []
for v in (-5., -1., 0., 2., 5.):
    t = Level(torch.tensor(v))
    errors += [close(log_density(scattered, t.alpha_bar, *parts),
                     exact.log_prob(scattered, t), 1e-3),
               close(best_guess(scattered, t.alpha_bar, *parts), exact(scattered, t).x0, 1e-3)]
passed("the plain code of a mixture agrees with this book's library", *errors, by='float32')


# %%NBQA-CELL-SEP15d533
# Eq. 13.8: the oracle's noise against the gradient that autograd takes of the log density, in two
# dimensions
torch.manual_seed(0)
plane = Mixture(line['weight'], blobs.mean.double(), line['std'])
x = 2*torch.randn(500, 2, dtype=D).requires_grad_()


def slope(t):
    return torch.autograd.grad(plane.log_prob(x, t).sum(), x)[0]


errors = [close(plane(x, t).eps, -t.sigma*slope(t), 1e-10) for t in ts]
passed('(13.8) best noise prediction = −σ · score, in the plane', *errors, by='autograd')


# %%NBQA-CELL-SEP15d533
# Eq. 13.8: a world that is no mixture, x0 uniform on [-1, 1]: the mean noise by brute force, the
# density in closed form
cdf = Normal(0, 1).cdf
inside = [(grid0.abs() < edge).double() for edge in (1 - 1e-6, 1 + 1e-6)]
flat = sum(inside)/2  # the ends count half


def log_q(x, t):
    return ((cdf((x + t.signal)/t.sigma) - cdf((x - t.signal)/t.sigma))/(2*t.signal)).log()


t = level(1.)
x = torch.linspace(-1.5, 1.5, 31, dtype=D)[:, None].requires_grad_()
slope = torch.autograd.grad(log_q(x, t).sum(), x)[0]
_, p = brute(x, t, flat)
eps = (p*(x - t.signal*grid0)/t.sigma).sum(1)
passed('(13.8) for data uniform on [−1, 1]', close(eps, -t.sigma*slope[:, 0], 1e-5),
       by='its closed density')


# %%NBQA-CELL-SEP15d533
# Eq. 13.9: the variances of 13.6 against the second derivatives of the log density
torch.manual_seed(0)
x = 2*torch.randn(20, 2, dtype=D)


def hessian(t):  # [20 2 2]
    def log_q(y):
        return plane.log_prob(y[None], t)[0]
    return torch.stack([torch.autograd.functional.hessian(log_q, row) for row in x])


errors = []
for t in ts:
    curvature = hessian(t).diagonal(dim1=1, dim2=2)
    want = (t.sigma/t.signal)**2*(1 + t.sigma**2*curvature)
    errors.append(close(plane.var_x0(x, t), want, 1e-9))
passed('(13.9) variances = curvature of log q, on the diagonal', *errors, by='autograd')


# %%NBQA-CELL-SEP15d533
# Eq. 13.4, 13.5: without noise the point itself is the answer; in pure noise the mean of the world,
# and the point is all noise
torch.manual_seed(0)
x = torch.randn(9, 2, dtype=D)
mean = (plane.weight @ plane.mean).expand(9, 2)
clean = plane(x, CLEAN)
void = plane(x, level(-math.inf))
without = (close(clean.x0, x), close(clean.eps, 0.), close(plane.var_x0(x, CLEAN), 0.))
nothing_else = (close(void.x0, mean), close(void.eps, x))
passed('(13.4-13.6) without noise x_t itself, in pure noise the mean', *without, *nothing_else)


# %%NBQA-CELL-SEP15d533
# Eq. 13.4, 13.6, 13.10: a level for each point equals one by one; float32 is near float64; far
# points stay finite
t = Level(torch.linspace(-8, 8, 9, dtype=D)[:, None])
ideal = EmpiricalDenoiser(roll)


def guess(x, t):
    return plane(x, t).x0


def one_by_one(f):
    return torch.cat([f(x[i:i + 1], Level(t.log_snr[i, 0])) for i in range(9)])


functions = (guess, plane.var_x0, plane.classify, plane.log_prob, ideal.weights)
passed('nine levels in one batch = one by one', *[close(f(x, t), one_by_one(f)) for f in functions])
x32 = plane.to(torch.float32)(x.float(), t).x0
assert x32.dtype == torch.float32
passed('float32 = float64', close(x32, guess(x, t), 1e-4))
far = plane(1e6*x, t)
assert far.x0.isfinite().all() and far.eps.isfinite().all()

# a component of weight 1e-9 is seen where it lies
rare = Mixture(torch.tensor([1 - 1e-9, 1e-9], dtype=D), torch.tensor([[0.], [9.]], dtype=D),
               torch.tensor([.5, .5], dtype=D))
passed('a component of weight 1e-9 is found where it lies',
       close(rare(torch.tensor([[9.]], dtype=D), level(4.)).x0, 9, .1))


# %%NBQA-CELL-SEP15d533
w = torch.tensor([.5, .5])
m = torch.zeros(2, 3)
s = torch.ones(2)
with expect_fail('sum to 1', Problem):
    Mixture(2*w, m, s)
with expect_fail('sum to 1', Problem):
    Mixture(torch.tensor([1.5, -.5]), m, s)
with expect_fail('[k d]', Problem):
    Mixture(w, m[:1], s)
with expect_fail('below CLEAN', Problem):
    points.log_prob(roll[:4])
with expect_fail('no component -1: ask for 0 to 7', Problem):
    ring().given(-1)
with expect_fail('same shape', Problem):
    ideal(torch.zeros(4, 3), level(0.))
with expect_fail('below CLEAN', Problem):
    ideal(roll[:4], CLEAN)


# %%NBQA-CELL-SEP15d533
x = torch.tensor([[30., 30.]])
t = Level(4.)
joint = three._parts(x, t.like(x))[2].exp()
naive = joint/joint.sum()
assert naive.isnan().all() and three.classify(x, t).isfinite().all()
print('p(k | x_t) by plain exponentials:', naive[0])
print('by log_softmax:                  ', three.classify(x, t).exp()[0])


# %%NBQA-CELL-SEP15d533
#| eval: false
def my_guess(x, t):
    return ...


two = Mixture(torch.tensor([.5, .5], dtype=D), torch.tensor([[-1.], [1.]], dtype=D),
              torch.zeros(2, dtype=D))
close(two(x1, level(1.)).x0, my_guess(x1, level(1.)))


# %%NBQA-CELL-SEP15d533
#| eval: false
def my_error(t):
    return ...


normal = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 1, dtype=D),
                 torch.ones(1, dtype=D))
max(close(normal.var_x0(x1, t).mean(), my_error(t)) for t in ts)


# %%NBQA-CELL-SEP15d533
#| eval: false
def cov_x0(world, x, t):  # [b d d]
    ...


def want(t):
    return (t.sigma/t.signal)**2*(torch.eye(2) + t.sigma**2*hessian(t))


x = torch.randn(20, 2, dtype=D)
max(close(cov_x0(plane, x, t), want(t)) for t in ts)


# %%NBQA-CELL-SEP15d533
# solution 1: the joint of either point is proportional to exp(+-signal x/sigma^2), all else is
# shared; their difference over their sum is a hyperbolic tangent
def my_guess(x, t):
    return (t.signal*x/t.sigma**2).tanh()


two = Mixture(torch.tensor([.5, .5], dtype=D), torch.tensor([[-1.], [1.]], dtype=D),
              torch.zeros(2, dtype=D))
close(two(x1, level(1.)).x0, my_guess(x1, level(1.)))


# %%NBQA-CELL-SEP15d533
# solution 2: (13.6) with one component and r = 1: v = signal^2 + sigma^2 = 1, and
# r^2 sigma^2/v = sigma^2
def my_error(t):
    return t.sigma**2


normal = Mixture(torch.ones(1, dtype=D), torch.zeros(1, 1, dtype=D), torch.ones(1, dtype=D))
max(close(normal.var_x0(x1, t).mean(), my_error(t)) for t in ts)


# %%NBQA-CELL-SEP15d533
# solution 3: within a component the coordinates are independent; the spread of the means becomes an
# outer product
def cov_x0(world, x, t):  # [b d d]
    t = t.like(x)
    mu, p, _, v = world._clean(x, t)
    off = mu - (p*mu).sum(1, keepdim=True)  # [b k d]
    within = (p*world.std[:, None]**2*t.sigma[..., None]**2/v).sum(1)  # [b 1]
    between = torch.einsum('bkx,bki,bkj->bij', p, off, off)
    return within[..., None]*torch.eye(x.shape[1]) + between


def want(t):
    return (t.sigma/t.signal)**2*(torch.eye(2) + t.sigma**2*hessian(t))


x = torch.randn(20, 2, dtype=D)
max(close(cov_x0(plane, x, t), want(t)) for t in ts)
