# %%NBQA-CELL-SEP7dc948
#| default_exp nets.mlp


# %%NBQA-CELL-SEP7dc948
#| export
import math
import torch
from torch import Tensor, nn
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, and double precision for checks
import copy
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.denoiser import Model, from_eps, from_v
from ddpm_lit.core.level import Level
from ddpm_lit.diffusion.loss import l_simple, v_weight, weighted
from ddpm_lit.diffusion.schedule import Cosine
from ddpm_lit.nets import mlp as library  # the first figure uses what the page builds

setup()
D = torch.float64


# %%NBQA-CELL-SEP7dc948
# Figure 21.1: the waves, and the inner product of two times
titles = ['64 waves over 1,000 timesteps', 'inner product with another time']
left, right = show.panels(2, titles, height=2.6, dpi=160)
times = torch.arange(0., 1000, 4)
e = library.sinusoid(times, 64)
show.heat(e.T, left, (0, 1000, 0, 64)).set(xlabel='time τ', ylabel='wave')
left.set_yticks([16, 48], ['cosines', 'sines'], rotation=90, va='center')
for i, ink in ((100, 'tab:blue'), (500, 'black')):
    other = library.sinusoid(torch.tensor([float(i)]), 64)[0]
    right.plot(times, e @ other/32, color=ink)
    right.text(i + 25, .95, f'with τ = {i}', color=ink)
right.set(xlabel='time τ', ylim=(0, 1.1))


# %%NBQA-CELL-SEP7dc948
import math
import torch


def timestep_embedding(t, dim, max_period=10_000):  # t [b] -> [b dim]
    half = dim // 2
    freqs = torch.exp(-math.log(max_period)*torch.arange(half)/half)
    angles = t[:, None]*freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


# %%NBQA-CELL-SEP7dc948
# The plain embedding against the library's, at all timesteps
t = torch.arange(1000)
passed('plain embedding = library',
       close(timestep_embedding(t, 128), library.sinusoid(t, 128), 1e-3), by='1,000 timesteps')


# %%NBQA-CELL-SEP7dc948
#| export
def sinusoid(time: Tensor,             # [b] a number a sample, in units of timesteps
             dim: int,                 # even: half sines, half cosines
             sin_first: bool = False,  # DDPM's order; ADM and its heirs put cosines first
             slowest: bool = False,    # last wave: full period (DDPM) or a bit less (ADM)
             max_period: float = 1e4,  # in timesteps over 2 pi
             ) -> Tensor:              # [b dim]
    "Waves of falling frequency, read at `time`. Eq. 21.1-21.2 (DDPM, ADM)."
    half = dim // 2
    if dim % 2 or half <= slowest:
        raise Problem(f'Waves come in pairs of sine and cosine, so dim cannot be {dim}: '
                      f'make it even, and at least {4 if slowest else 2}.')
    if not time.is_floating_point():
        time = time.float()  # or the frequencies would be cut to whole numbers, too

    # omega_i = max_period^(-i/half), or with half - 1 below the bar (DDPM)
    power = torch.arange(half, dtype=torch.float64)/(half - slowest)
    freq = torch.exp(-math.log(max_period)*power).to(time, non_blocking=True)

    angle = time[:, None]*freq
    waves = [angle.sin(), angle.cos()] if sin_first else [angle.cos(), angle.sin()]
    return torch.cat(waves, 1)


# %%NBQA-CELL-SEP7dc948
# Eq. 21.1, 21.2: each wave as a power of 10,000, by loops and Python's own floats,
# in both conventions; the ends by hand
def loops(t, dim, sin_first, slowest):
    half = dim // 2
    w = [10_000**(-i/(half - (1 if slowest else 0))) for i in range(half)]
    sines = [math.sin(t*v) for v in w]
    cosines = [math.cos(t*v) for v in w]
    return sines + cosines if sin_first else cosines + sines


times = [0., 1., 3.7, 999.]
errors = []
for order in (False, True):
    for slowest in (False, True):
        want = torch.tensor([loops(t, 8, order, slowest) for t in times], dtype=D)
        got = sinusoid(torch.tensor(times, dtype=D), 8, order, slowest)
        errors.append(close(got, want, 1e-12))

# the fastest and the slowest sine at time 1
ends = sinusoid(torch.ones(1, dtype=D), 8, slowest=True)[0, [4, 7]]
want = torch.tensor([math.sin(1), math.sin(1e-4)], dtype=D)
passed('(21.1) (21.2) both conventions', *errors, by='loops over Python numbers')
passed('(21.1) first and last frequency of DDPM: 1 and 1/10,000', close(ends, want, 1e-15))


# %%NBQA-CELL-SEP7dc948
# Eq. 21.2: integer timesteps are embedded, too; in float32 the largest error over 1,000 timesteps
# is that of rounding the frequency and the angle (about 1000/2^25 each), and no more
t = torch.arange(1000)
single = sinusoid(t.float(), 128)
double = sinusoid(t.double(), 128).float()
passed('(21.2) integer timesteps', close(sinusoid(t, 128), single, 0), by='real ones')
passed('(21.2) in float32, no more than the rounding of frequencies and angles',
       close(single, double, 1.1*1000/2**24), by='float64')


# %%NBQA-CELL-SEP7dc948
# Eq. 21.3: shifted by 300 the inner product is the same, it is the sum of cosines,
# and near by it falls with the square of the distance
a = sinusoid(torch.tensor([10., 13.5, 10.01], dtype=D), 64)
b = sinusoid(torch.tensor([310., 313.5], dtype=D), 64)
w = 1e4**(-torch.arange(32, dtype=D)/32)
fall = (32 - a[0] @ a[2])/(.5*.01**2*(w**2).sum())
errors = (close(a[0] @ a[1], b[0] @ b[1]), close(a[0] @ a[1], (3.5*w).cos().sum()),
          close(a[0] @ a[0], 32.))
passed('(21.3) inner products', *errors, by='another hour, the sum of cosines, n')
passed('(21.3) fall with the square of the distance', close(fall, 1., 1e-4), by='near by')


# %%NBQA-CELL-SEP7dc948
# Eq. 21.2: one rotation takes every time three steps further
angle = 3*w
c, s = angle.cos().diag(), angle.sin().diag()
turn = torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])
times = torch.rand(50, dtype=D)*900
passed('(21.2) one rotation moves every time three steps further',
       close(sinusoid(times, 64) @ turn.T, sinusoid(times + 3, 64)), by='50 times')


# %%NBQA-CELL-SEP7dc948
#| export
class MLP(nn.Module):
    "A small network for points: level and label scale and shift each layer. Eq. 21.4."

    def __init__(self,
                 dim: int = 2,      # of a point
                 width: int = 128,  # of each layer, even
                 depth: int = 3,    # layers
                 classes: int = 0,  # 0: no labels
                 dim_out: int | None = None):  # of the output; None: as the point
        super().__init__()
        self.inp = nn.Linear(dim, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.label = nn.Embedding(classes, width) if classes else None

        # W, b of each layer, and what turns e into its scale and shift (21.4)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, 2*width) for _ in range(depth))

        # the result is zero at first
        self.out = nn.Linear(width, dim_out or dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor,  # [b d]
                time: Tensor,     # [b]
                label: Tensor | None = None,  # [b]; below 0: no label
                ) -> Tensor:      # [b dim_out]
        # one vector for the level and the label
        emb = self.time(sinusoid(time, self.inp.out_features).to(x.dtype))
        if label is not None:
            if self.label is None:
                raise Problem('This network knows no labels: call it without one.')
            emb = emb + self.label(label.clamp(min=0))*(label >= 0)[:, None]

        # each layer normalizes, scales and shifts by that vector, and adds to its input
        h = self.inp(x)
        for layer, shift in zip(self.layers, self.shifts):
            scale, move = shift(emb).chunk(2, 1)
            normed = nn.functional.layer_norm(h, h.shape[1:])
            h = h + nn.functional.silu(layer(normed)*(1 + scale) + move)
        return self.out(h)


# %%NBQA-CELL-SEP7dc948
# Eq. 21.4: one sample through the network by hand, with and without a label
net = MLP(3, 8, 2, classes=4).double()
nn.init.normal_(net.out.weight)
P = {k: v.detach() for k, v in net.state_dict().items()}


def silu(z):
    return z/(1 + (-z).exp())


def linear(name, z):
    return P[name + '.weight'] @ z + P[name + '.bias']


def by_hand(x, time, label):
    waves = torch.tensor(loops(time, 8, False, False), dtype=D)
    e = silu(linear('time.0', waves))
    if label >= 0:
        e = e + P['label.weight'][label]
    h = linear('inp', x)
    for i in range(2):
        scale, shift = linear(f'shifts.{i}', e).chunk(2)
        n = (h - h.mean())/(h.var(correction=0) + 1e-5).sqrt()
        h = h + silu((1 + scale)*linear(f'layers.{i}', n) + shift)
    return linear('out', h)


x = torch.randn(5, 3, dtype=D)
t = torch.tensor([0., 1, 30, 500, 999], dtype=D)
label = torch.tensor([0, 3, -1, 1, -1])
truth = torch.stack([by_hand(a, b, c) for a, b, c in zip(x, t.tolist(), label.tolist())])
passed('(21.4) the network, with and without labels', close(net(x, t, label), truth),
       close(net(x, t)[label < 0], truth[label < 0]), by='one sample by hand')


# %%NBQA-CELL-SEP7dc948
# Each sample's output depends on its own point, level and label, and on no other sample's
by_x, by_t = torch.autograd.functional.jacobian(lambda x, t: net(x, t, label), (x, t))
by_x = by_x.abs().amax((1, 3))  # [5 3 5 3] -> [5 5]
by_t = by_t.abs().amax(1)       # [5 3 5] -> [5 5]
own = torch.eye(5, dtype=torch.bool)
assert (by_x[own] > 0).all() and (by_t[own] > 0).all()
assert not net(x, t, label).equal(net(x, t, label.roll(1)))
passed('no sample depends on another', close(by_x[~own], 0., 0), close(by_t[~own], 0., 0),
       by='gradients')


# %%NBQA-CELL-SEP7dc948
# In bfloat16 the waves are computed in float32 and only then rounded: the output is in bfloat16,
# near that of float32 at each level; the weights of the time are large, so that waves in bfloat16
# would show
net3 = Model(MLP(2, 64, 2))
nn.init.normal_(net3.net.out.weight, std=.1)
for layer in (net3.net.time[0], *net3.net.shifts):
    nn.init.normal_(layer.weight, std=.2)
x = torch.randn(5, 2)
t = Cosine()(torch.tensor([.001, .3, .6, .999, 1.])).like(x)
half = copy.deepcopy(net3).bfloat16()
assert half(x.bfloat16(), Level(.7)).x0.dtype == torch.bfloat16
passed('bfloat16 is near float32 at each level',
       close(half(x.bfloat16(), t).eps, net3(x, t).eps, .05), by='float32')


# %%NBQA-CELL-SEP7dc948
# Untrained: eps = 0 has L_simple 1; v = 0 has the loss alpha_bar + (1 - alpha_bar) E x0^2;
# here at one level
n = 200_000
x0, eps = .5*torch.randn(n, 2), torch.randn(n, 2)
t = Level(torch.tensor(.7))
net2 = MLP(2, 16, 1)
eps_loss = l_simple(Model(net2, from_eps), x0, t.like(x0), eps)
v_loss = weighted(v_weight)(Model(net2, from_v), x0, t.like(x0), eps)
v_want = t.alpha_bar + (1 - t.alpha_bar)*.25
errors = (close(eps_loss.mean(), 1., 5*eps_loss.std().item()/n**.5),
          close(v_loss.mean(), v_want, 5*v_loss.std().item()/n**.5))
passed('untrained losses: 1 for eps, known for v', *errors, by='5 standard errors')


# %%NBQA-CELL-SEP7dc948
def learn(embedding):
    "Train a network to predict sigma at time u from embedding(1000 u)."
    torch.manual_seed(0)
    net = MLP(2, 64, 2, dim_out=1)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        u = torch.rand(256)
        guess = net(torch.randn(256, 2), embedding(1000*u))[:, 0]
        loss = ((guess - Cosine()(u).sigma.float())**2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    u = torch.linspace(0, 1, 101)
    return net(torch.zeros(101, 2), embedding(1000*u))[:, 0].detach()


u = torch.linspace(0, 1, 101)
curve = {'with the time': learn(lambda t: t), 'without it': learn(torch.zeros_like),
         'sigma': Cosine()(u).sigma.float()}


# %%NBQA-CELL-SEP7dc948
# Figure 21.2: sigma, as two networks learned it
ax = show.curves(u, curve, show.panels(1, height=2.3, dpi=160)[0], ('model', 'noise', 'oracle'),
                 xlabel='time u', ylabel='prediction of σ')
ax.get_legend().remove()
ax.text(.25, .3, 'conditioned on the time', color='tab:blue')
ax.text(.02, curve['without it'][0] + .03, 'the same time for all', color='.5')
ax.text(.78, .83, 'exact (dashed)')


# %%NBQA-CELL-SEP7dc948
# Figure 21.2: conditioned on the time, the prediction is right at every level; without it,
# it is the mean of σ
passed('with the time, σ is learned at every level; without it, only its mean',
       close(curve['with the time'], curve['sigma'], .1),
       close(curve['without it'].mean(), curve['sigma'].mean(), .05), by='exact σ')


# %%NBQA-CELL-SEP7dc948
with expect_fail('make it even, and at least 2', Problem):
    sinusoid(torch.zeros(1), 7)
with expect_fail('make it even, and at least 4', Problem):
    sinusoid(torch.zeros(1), 2, slowest=True)
with expect_fail('knows no labels', Problem):
    MLP()(torch.zeros(1, 2), torch.zeros(1), torch.tensor([3]))


# %%NBQA-CELL-SEP7dc948
t = torch.tensor([500.])
a = sinusoid(t, 64)
others = [sinusoid(t, 64, *order)
          for order in ((True, False), (False, True), (True, True))]
print('difference, beside a length of', round(a.norm().item(), 2), ':',
      [round((a - b).norm().item(), 2) for b in others])


# %%NBQA-CELL-SEP7dc948
# Answer 3: the gradients of a fresh network below its last layer
fresh = MLP()
(fresh(torch.randn(9, 2), 1000*torch.rand(9)) - 1).square().sum().backward()
assert fresh.out.weight.grad.abs().max() > 0
below = [p.grad for name, p in fresh.named_parameters() if not name.startswith('out')]
passed('only the last layer has a gradient at first',
       close(torch.stack([g.abs().max() for g in below]), 0., 0))


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...
e = sinusoid(torch.tensor([0., 1.]), 64)
close(e[0] @ e[1]/32, guess, .01)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2
period = ...
times = torch.tensor([period/2, period], dtype=D)
last_wave = sinusoid(times, 64, slowest=True)[:, [31, 63]]
close(last_wave, torch.tensor([[-1., 0.], [1., 0.]], dtype=D), 1e-6)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
fourier = ...
freq = torch.randn(32, dtype=D)
e = fourier(torch.tensor([10., 13., 310., 313.], dtype=D), freq)
close(e[0] @ e[1], e[2] @ e[3]), close(e[0] @ e[1], (3*freq).cos().sum())


# %%NBQA-CELL-SEP7dc948
# solution 1: 1 - (sum of omega^2)/(2 n) for near times; the squares are a geometric series
# with the sum 1/(1 - 10000^(-2/32)) = 2.3: 1 - 1.15/32
guess = .97
e = sinusoid(torch.tensor([0., 1.]), 64)
close(e[0] @ e[1]/32, guess, .01)


# %%NBQA-CELL-SEP7dc948
# solution 2: two times 2 pi apart agree in the fastest hand and in no other;
# the slowest turns at 1/10000 and repeats after 2 pi 10000
period = 2*math.pi*1e4
times = torch.tensor([period/2, period], dtype=D)
last_wave = sinusoid(times, 64, slowest=True)[:, [31, 63]]
close(last_wave, torch.tensor([[-1., 0.], [1., 0.]], dtype=D), 1e-6)


# %%NBQA-CELL-SEP7dc948
# solution 3: cos a cos b + sin a sin b = cos(a - b) holds for each speed, however it was chosen
def fourier(time, freq):
    angle = time[:, None]*freq
    return torch.cat([angle.cos(), angle.sin()], 1)


freq = torch.randn(32, dtype=D)
e = fourier(torch.tensor([10., 13., 310., 313.], dtype=D), freq)
close(e[0] @ e[1], e[2] @ e[3]), close(e[0] @ e[1], (3*freq).cos().sum())
