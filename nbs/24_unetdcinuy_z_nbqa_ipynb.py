# %%NBQA-CELL-SEP7dc948
#| default_exp nets.unet


# %%NBQA-CELL-SEP7dc948
#| export
from functools import partial
from typing import Callable, Sequence
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ddpm_lit.core.denoiser import named_conditions
from ddpm_lit.core.level import widest
from ddpm_lit.core.problem import Problem, check_each
from ddpm_lit.nets.attention import attend, heads_of, in_heads
from ddpm_lit.nets.mlp import sinusoid


# %%NBQA-CELL-SEP7dc948
#| export nets.attention
import math
import torch
from torch import Tensor
from torch.nn import functional as F
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| hide
import matplotlib.pyplot as plt
from torch.utils.flop_counter import FlopCounterMode
from ddpm_lit import show
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.denoiser import from_v
from ddpm_lit.core.level import from_alpha_bar
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.nets import unet as library  # the first pages use what the later ones build
from ddpm_lit.show import INK
from ddpm_lit.train.weights import load_weights
from ddpm_lit.train.measure import load_classifier

setup()
test = mnist('test')
digits = to_unit(test.pixels[:128])
labels = test.label[:128]
trained, _ = load_weights('mnist')  # the digit network of notebook 25; it predicts v
trained.requires_grad_(False)


def noisy(alpha_bar, n=128):
    "Test digits at a noise level, and the level."
    torch.manual_seed(0)
    level = from_alpha_bar(torch.tensor(alpha_bar))
    x0 = digits[:n]
    return q_sample(x0, level, torch.randn_like(x0)), level


def randomized(net: nn.Module, std=.1) -> nn.Module:
    "Random numbers in every parameter, and float64: a check should not meet zeros."
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net.double()


def randn(*shape):
    "Normal random numbers in float64."
    return torch.randn(*shape, dtype=torch.float64)


def count(net):
    "The number of parameters."
    return sum(p.numel() for p in net.parameters())


# %%NBQA-CELL-SEP7dc948
# Figure 24.1: what a trained digit network computes on the way down and up
x, level = noisy(.5, 8)
x = x[[7]]
unet = trained.net.net
stages = dict(down=unet.down[0], below=unet.down[2], middle=unet.middle[1], up=unet.up[0],
              back=unet.up[2])
maps = {}


def recorder(name):
    def hook(module, given, h):
        maps[name] = h[0]

    return hook


hooks = [m.register_forward_hook(recorder(name)) for name, m in stages.items()]
x0 = trained(x, level).x0
for hook in hooks:
    hook.remove()


def four(h):
    "The four channels that vary most, each in its own range of grey."
    h = h[h.std((1, 2)).topk(4).indices]
    low, high = h.amin((1, 2), True), h.amax((1, 2), True)
    h = (h - low)/(high - low)
    side = h.shape[1]
    step = side + side // 7
    page = torch.ones(step + side, step + side)
    for i, channel in enumerate(h):
        top, left = i // 2*step, i % 2*step
        page[top:top + side, left:left + side] = channel
    return page


# picture, name, size; place and side in the drawing
places = [(x[0, 0], 'noisy digit $x_t$', '28 × 28', .5, 2, 1.),
          (four(maps['down']), 'block', '40 of 14 × 14', 2.3, 1, .95),
          (four(maps['below']), '', 'block\n80 of 7 × 7', 4., 0, .7),
          (four(maps['middle']), '', 'middle\n80 of 7 × 7', 5.5, 0, .7),
          (four(maps['up']), '', 'block\n80 of 7 × 7', 7., 0, .7),
          (four(maps['back']), 'block', '40 of 14 × 14', 8.7, 1, .95),
          (x0[0, 0], 'prediction $\\hat x_0$', '28 × 28', 10.5, 2, 1.)]
fig, ax = plt.subplots(figsize=(7, 2.8), layout='constrained', dpi=160)
for page, name, size, left, row, side in places:
    half = .56*side
    up = 1.45*row
    ax.imshow(page, extent=(left - half, left + half, up - half, up + half), zorder=2)
    ax.text(left, up + half + .06, name, ha='center', va='bottom')
    ax.text(left, up - half - .08, size, ha='center', va='top', fontsize=8, color='.35')


def arrow(a, b, **look):
    ax.annotate('', b, a, arrowprops=dict(arrowstyle='->', shrinkA=0, shrinkB=0, **look))


ways = (((1.1, 2.55), (1.75, 1.95)), ((2.9, 1.1), (3.55, .5)), ((4.45, 0), (5.05, 0)),
        ((5.95, 0), (6.55, 0)), ((7.45, .5), (8.1, 1.1)), ((9.25, 1.95), (9.9, 2.55)))
for a, b in ways:
    arrow(a, b, color='.45', lw=1.2)
blue = INK['model']
arrow((2.9, 1.55), (8.1, 1.55), color=blue, lw=1.6)
arrow((4.42, .3), (6.58, .3), color=blue, lw=1.6, connectionstyle='arc3,rad=-.3')
ax.text(5.5, 1.6, 'skip connection: a copy', ha='center', va='bottom', color=blue)
ax.text(5.5, .7, 'skip connection', ha='center', va='bottom', color=blue)
ax.text(5.5, 2.9, 'time $t$ and label enter every block', ha='center', color='.35')
ax.set(xlim=(-.5, 11.5), ylim=(-.95, 3.8), aspect='equal')
ax.axis('off')


# %%NBQA-CELL-SEP7dc948
# Figure 24.1: sizes and channels are those of the network; the drawn prediction is near the digit
sizes = {name: tuple(h.shape) for name, h in maps.items()}
assert sizes['down'] == sizes['back'] == (40, 14, 14), sizes
assert sizes['below'] == sizes['middle'] == sizes['up'] == (80, 7, 7), sizes
error = (x0 - digits[7]).square().mean().item()
assert error < .1 < (x - digits[7]).square().mean()
passed(f'Figure 24.1: sizes as drawn; squared error of the prediction {error:.3f} a pixel')


# %%NBQA-CELL-SEP7dc948
import torch
from torch import nn
from torch.nn import functional as F


def waves(t, width):  # [b] -> [b width]
    speed = 10_000**(-torch.arange(width//2, device=t.device)/(width//2))
    angle = t[:, None]*speed  # speeds from 1 down to about 1/10,000
    return torch.cat([angle.cos(), angle.sin()], 1)


def conv(a, b):
    return nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))


class PlainBlock(nn.Module):  # from a to b channels; d: the width of e
    def __init__(self, a, b, d):
        super().__init__()
        self.conv1 = conv(a, b)
        self.emb = nn.Linear(d, b)
        self.conv2 = conv(b, b)
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, h, e):
        r = self.conv1(h) + self.emb(e)[:, :, None, None]
        return self.skip(h) + self.conv2(r)


class PlainAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(8, c)
        self.qkv = nn.Linear(c, 3*c)
        self.out = nn.Linear(c, c)

    def forward(self, h):
        positions = self.norm(h).flatten(2).mT  # [b height*width c]
        q, k, v = self.qkv(positions).chunk(3, 2)
        weights = (q @ k.mT/q.shape[2]**.5).softmax(2)
        return h + self.out(weights @ v).mT.reshape(h.shape)


# %%NBQA-CELL-SEP7dc948
class PlainUNet(nn.Module):
    def __init__(self, channels=1, c=32):
        super().__init__()
        d = 4*c
        self.time = nn.Sequential(nn.Linear(c, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.first = nn.Conv2d(channels, c, 3, padding=1)
        self.down1 = PlainBlock(c, c, d)
        self.down2 = PlainBlock(c, 2*c, d)
        self.middle1 = PlainBlock(2*c, 2*c, d)
        self.attention = PlainAttention(2*c)
        self.middle2 = PlainBlock(2*c, 2*c, d)
        self.up4 = PlainBlock(2*c + 2*c, 2*c, d)  # from below, and beside it h4
        self.up3 = PlainBlock(2*c + c, 2*c, d)    # ... and h3
        self.up2 = PlainBlock(2*c + c, c, d)      # ... and h2
        self.up1 = PlainBlock(c + c, c, d)        # ... and h1
        self.last = conv(c, channels)

    def forward(self, x, t):  # [b channels height width] with even sides, [b]
        e = self.time(waves(t, self.first.out_channels))

        h1 = self.first(x)                          # c channels, full size
        h2 = self.down1(h1, e)                      # c
        h3 = F.avg_pool2d(h2, 2)                    # c, half the size
        h4 = self.down2(h3, e)                      # 2c
        h = self.attention(self.middle1(h4, e))     # 2c
        h = self.middle2(h, e)                      # 2c

        h = self.up4(torch.cat([h, h4], 1), e)      # 2c: a skip connection
        h = self.up3(torch.cat([h, h3], 1), e)      # 2c
        h = F.interpolate(h, scale_factor=2)        # 2c, full size
        h = self.up2(torch.cat([h, h2], 1), e)      # c
        h = self.up1(torch.cat([h, h1], 1), e)      # c
        return self.last(h)                         # as x


net = PlainUNet()
x_t = torch.randn(8, 1, 28, 28)
t = torch.randint(0, 1000, (8,))
net(x_t, t).shape  # as x_t; the loss is F.mse_loss(net(x_t, t), noise)


# %%NBQA-CELL-SEP7dc948
# The plain network against the library's, with the same random parameters
def copy_parameters(pairs):
    for mine, theirs in pairs:
        theirs.load_state_dict(mine.state_dict())


torch.manual_seed(0)
plain = randomized(PlainUNet()).float()
ours = library.UNet(1, 1, 32, (1, 2), 1, norm=library.norm_small,
                    block=partial(library.ResBlock, norm=library.norm_small),
                    attn=partial(library.Attention, norm=library.norm_small),
                    down=lambda c, emb: library.Resample(library.halve),
                    up=lambda c, emb: library.Resample(library.double))
copy_parameters([(plain.time[0], ours.time.inner), (plain.time[2], ours.time.outer),
                 (plain.first, ours.first), (plain.last[0], ours.norm),
                 (plain.last[2], ours.last), (plain.attention, ours.middle[0].attn)])
steps = [*ours.down, *ours.middle, *ours.up]
blocks = [m for m in plain.children() if isinstance(m, PlainBlock)]
for mine, theirs in zip(blocks, (s.res for s in steps if s.res is not None), strict=True):
    copy_parameters([(mine.conv1[0], theirs.norm1), (mine.conv1[2], theirs.conv1),
                     (mine.emb, theirs.emb), (mine.conv2[0], theirs.norm2),
                     (mine.conv2[2], theirs.conv2), (mine.skip, theirs.skip)])
assert count(plain) == count(ours)

x = torch.randn(4, 1, 28, 20)
t = torch.tensor([0, 1, 500, 999])
with torch.no_grad():
    want = ours(x, t)
    other_time = ours(x, t.flip(0))
    size = want.std()
    error = close(plain(x, t)/size, want/size, tol=1e-3)
assert (other_time - want).abs().max() > .1*size
passed(f'plain U-Net = the class UNet of this page, {count(plain):,} parameters', error)


# %%NBQA-CELL-SEP7dc948
# Figure 24.2: a trained network with all paths, and with one of its two paths set to zero
def walk(unet, x, t, across=1., below=1.):
    "The forward pass, with the copies at full size and what comes from below scaled."
    e = library.embed(unet, t, x.dtype)
    h = unet.first(x)
    trail = [h]
    for step in unet.down:
        h = step(h, e)
        trail.append(h)
    for step in unet.middle:
        h = step(h, e)

    arrived = False  # at full size, from below
    for step in unet.up:
        copy = trail.pop()
        if copy.shape[2] == x.shape[2]:
            copy = across*copy
            h = h if arrived else below*h
            arrived = True
        h = step(torch.cat([h, copy], 1), e)
    return unet.last(F.silu(unet.norm(h)))


def with_paths(x, level, **scales):
    "The prediction of x0 by the digit network, with its paths scaled."
    t = trained.level_input(level).expand(len(x))
    v = walk(trained.net.net, F.pixel_unshuffle(x, 2), t, **scales)
    return from_v(F.pixel_shuffle(v, 2), x, level).x0


x, level = noisy(.15)
rows = {'test digits': digits,
        'noisy x_t': x,
        'both paths': with_paths(x, level),
        'coarse path only': with_paths(x, level, across=0.),
        'skip connections only': with_paths(x, level, below=0.)}
fig, axes = plt.subplots(5, 1, figsize=(7, 3.), layout='constrained', dpi=160)
for ax, (name, pictures) in zip(axes, rows.items()):
    ax.imshow(show.tile(pictures[:12].clamp(-1, 1), 12), interpolation='nearest')
    label = name.replace(' only', '\nonly').replace('x_t', '$x_t$')
    ax.text(-8, 14, label, ha='right', va='center')
    ax.axis('off')


# %%NBQA-CELL-SEP7dc948
# Figure 24.2: nothing closed is the network itself; squared errors, and what a classifier reads
error = close(rows['both paths'][:16], trained(x[:16], level).x0, tol=1e-5)
passed('Figure 24.2: with both paths open, the network itself', error)
judge = load_classifier()
read = {}
wrong = {}
right = {}
for name, pictures in rows.items():
    right[name] = (judge(pictures.clamp(-1, 1)).argmax(1) == labels).float()
    read[name] = right[name].mean().item()
    wrong[name] = (pictures - digits).square().mean().item()
    print(f'{name:21}  squared error {wrong[name]:.3f}, '
          f'read correctly {100*read[name]:3.0f} %')
both, coarse, skips = [*rows][2:]
difference = right[coarse] - right[skips]
error = (difference.std()/len(difference)**.5).item()
print(f'coarse path against skip connections: {100*difference.mean():.0f} points more '
      f'(standard error {100*error:.0f})')
assert read[both] > read[coarse] > read[skips] + 2*error > read['noisy x_t'] + .3
assert wrong[both] < wrong[skips] < wrong[coarse]


# %%NBQA-CELL-SEP7dc948
#| slow
# Measured (seven minutes): the plain network, trained without one of its parts
class Without(PlainUNet):
    "The plain network without one part, with the same parameters at first."
    part = 'nothing'

    def forward(self, x, t):
        t = torch.full_like(t, 500) if self.part == 'the time' else t
        across = 0. if self.part == 'skip connections' else 1.
        below = 0. if self.part == 'the coarse path' else 1.
        e = self.time(waves(t, self.first.out_channels))
        h1 = self.first(x)
        h2 = self.down1(h1, e)
        h3 = F.avg_pool2d(h2, 2)
        h4 = self.down2(h3, e)
        h = self.middle1(h4, e)
        h = self.middle2(h if self.part == 'attention' else self.attention(h), e)
        h = self.up4(torch.cat([h, across*h4], 1), e)
        h = self.up3(torch.cat([h, across*h3], 1), e)
        h = F.interpolate(below*h, scale_factor=2)
        h = self.up2(torch.cat([h, across*h2], 1), e)
        h = self.up1(torch.cat([h, across*h1], 1), e)
        return self.last(h)


def noisy_and_noise(x0, t, g):
    "Digits with the noise of the cosine schedule at times t, and the noise."
    alpha_bar = torch.cos((t + .5)/1000*math.pi/2)[:, None, None, None]**2
    eps = torch.randn(x0.shape, generator=g)
    return alpha_bar.sqrt()*x0 + (1 - alpha_bar).sqrt()*eps, eps


def losses(part, seed, pixels, steps=200, batch=32):
    "Train on digits; the error of the predicted noise on 500 test digits, by time."
    torch.manual_seed(seed)
    net = Without(c=16)
    net.part = part
    opt = torch.optim.Adam(net.parameters())
    g = torch.Generator().manual_seed(seed)
    for i in range(steps):
        opt.param_groups[0]['lr'] = 2e-3*min(1, i/30)*(1 + math.cos(math.pi*i/steps))/2
        x0 = pixels[torch.randint(len(pixels), (batch,), generator=g)]
        t = (torch.arange(batch) + torch.rand(batch, generator=g))/batch*1000
        x, eps = noisy_and_noise(x0, t, g)
        opt.zero_grad()
        F.mse_loss(net(x, t), eps).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
    g.manual_seed(99)
    t = ((torch.arange(500) + .5)*2)[torch.randperm(500, generator=g)]
    x, eps = noisy_and_noise(to_unit(test.pixels[:500]), t, g)
    with torch.no_grad():
        loss = (net(x, t) - eps).square().mean((1, 2, 3))
    return torch.stack([loss.mean(), loss[t < 300].mean(), loss[t >= 700].mean()])


pixels = to_unit(mnist('train').pixels)
parts = 'nothing', 'skip connections', 'the coarse path', 'the time', 'attention'
measured = {part: torch.stack([losses(part, seed, pixels) for seed in range(3)])
            for part in parts}
print('error of the predicted noise, mean of three seeds, and the change against the whole\n'
      'network of the same seed, with its standard error\n')
print('trained without       all times   little noise   much noise   change at all times')
for part, m in measured.items():
    change = 100*(m[:, 0]/measured['nothing'][:, 0] - 1)
    mean, error = change.mean(), change.std()/3**.5
    row = '' if part == 'nothing' else f'{mean:+4.0f} % ± {error:.0f}'
    print(f'{part:20}  {m[:, 0].mean():9.3f}   {m[:, 1].mean():12.3f}   '
          f'{m[:, 2].mean():10.4f}   {row}')
whole, skips, coarse, time, attention = [m.mean(0) for m in measured.values()]
assert skips[0] > 2*whole[0] and (coarse > whole).all() and time[0] > whole[0]
assert coarse[2]/whole[2] > 1.1*coarse[1]/whole[1]
assert (attention/whole - 1).abs().max() < .03


# %%NBQA-CELL-SEP7dc948
#| export
class TimeEmbedding(nn.Module):
    "Two layers on top of the waves of notebook 21. Eq. 24.1."

    def __init__(self, dim: int, width: int, sin_first: bool = False,
                 slowest: bool = False):
        super().__init__()
        self.waves = partial(sinusoid, dim=dim, sin_first=sin_first, slowest=slowest)
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:  # [b] -> [b d]
        t = t.to(widest(t.device))
        return self.outer(F.silu(self.inner(self.waves(t).to(dtype))))


def embed(net,  # has .time, and .label if one is given
          t: Tensor, dtype: torch.dtype,
          label: Tensor | None = None,
          extra: Tensor | None = None) -> Tensor:
    "Time, label and extra vector in one embedding: [b], [b], [b d] -> [b d]. Eq. 24.1."
    e = net.time(t, dtype)
    if label is not None:
        e = e + net.label(label.clamp(min=0))*(label >= 0)[:, None]
    return F.silu(e if extra is None else e + extra)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.1: against sines, cosines and sums written out one by one; label 2, label 0, none
torch.manual_seed(0)


def silu(a):
    return a/(1 + torch.exp(-a))


def by_hand(t):
    "The time embedding of one time, before the label."
    inner, outer = net.time.inner, net.time.outer
    waves = [math.sin(t), math.sin(t/1e4), math.cos(t), math.cos(t/1e4)]
    hidden = silu(inner.weight @ torch.tensor(waves, dtype=torch.float64) + inner.bias)
    return outer.weight @ hidden + outer.bias


net = nn.Module()
net.time = TimeEmbedding(4, 3, sin_first=True, slowest=True)
net.label = nn.Embedding(5, 3)
randomized(net, 1.)
t = torch.tensor([0., 7.25, 999.])
label = torch.tensor([2, 0, -1])
extra = randn(3, 3)
a, b, c = [by_hand(v) for v in t.tolist()]
e = torch.stack([a + net.label.weight[2], b + net.label.weight[0], c])
errors = (close(embed(net, t, torch.float64, label, extra), silu(e + extra)),
          close(embed(net, t, torch.float64), silu(net.time(t, torch.float64))))
passed('(24.1) time, label, no label and an extra vector', *errors, by='sums by hand')


# %%NBQA-CELL-SEP7dc948
#| export
Norm = Callable[[int], nn.Module]  # channels -> the layer that normalizes them
norm_ddpm = partial(nn.GroupNorm, 32, eps=1e-6)
norm_adm = partial(nn.GroupNorm, 32, eps=1e-5)
norm_small = partial(nn.GroupNorm, 8, eps=1e-5)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.2: by hand, on numbers so small that the epsilon matters
torch.manual_seed(0)


def group_norm(h, norm):
    g = h.unflatten(1, (norm.num_groups, -1))
    mean = g.mean((2, 3, 4), keepdim=True)
    var = g.var((2, 3, 4), correction=0, keepdim=True)
    n = ((g - mean)/(var + norm.eps)**.5).flatten(1, 2)
    return n*norm.weight[:, None, None] + norm.bias[:, None, None]


h = randn(2, 64, 3, 5)*1e-3
errors = []
for make in (norm_ddpm, norm_adm, norm_small):
    norm = randomized(make(64), 1.)
    errors.append(close(norm(h), group_norm(h, norm)))
passed('(24.2) group norm of DDPM, of ADM and the small one', *errors, by='by hand')

four_values = torch.tensor([1., 3., 5., 7.]).repeat(8).reshape(1, 16, 1, 2)
normal = norm_small(16)(four_values)[0, :2].flatten()
passed('(24.2) 1, 3, 5, 7', close(normal, torch.tensor([-1.34, -.45, .45, 1.34]), .005))


# %%NBQA-CELL-SEP7dc948
# Figure 24.3: a digit reduced twice, by means and by two strided convolutions
digit = digits[7:8].double()
middle = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
middle[..., 1, 1] = 1


def thin(h, pad):
    "Every second pixel, by a convolution whose stencil passes its middle on."
    return F.conv2d(F.pad(h, pad, value=-1.), middle, stride=2)


paddings = (1, 1, 1, 1), (0, 1, 0, 1)
small = [library.halve(library.halve(digit))]
small += [thin(thin(digit, pad), pad) for pad in paddings]
titles = ('28 × 28', 'means, twice', 'stride 2, twice', 'stride 2, twice, corner')
fig, axes = plt.subplots(1, 4, figsize=(7, 2.), layout='constrained', dpi=160)
for ax, picture, title in zip(axes, [digit, *small], titles):
    ax.imshow(picture[0, 0], vmin=-1, vmax=1)
    ax.set_title(title)
    ax.axis('off')


# %%NBQA-CELL-SEP7dc948
# Figure 24.3: the strided pictures are every fourth pixel of the digit, from two corners
rows_of = [digit[0, 0, start::4, start::4] for start in (0, 3)]
errors = [close(picture[0, 0], want, tol=0) for picture, want in zip(small[1:], rows_of)]
passed('Figure 24.3: pixels 0, 4, 8 ..., and with the corner 3, 7, 11 ...', *errors)


# %%NBQA-CELL-SEP7dc948
#| export
def halve(h: Tensor) -> Tensor:  # [b c h w] -> [b c h/2 w/2]
    "The mean of each square of four pixels. Eq. 24.3."
    return F.avg_pool2d(h, 2)


def double(h: Tensor) -> Tensor:  # [b c h w] -> [b c 2h 2w]
    "Each pixel four times. Eq. 24.3."
    return F.interpolate(h, scale_factor=2., mode='nearest')


class Downsample(nn.Module):
    "Halve by a strided convolution; `corner`: one pixel right and down. Eq. 24.4."

    def __init__(self, c: int, emb: int = 0, corner: bool = False):
        super().__init__()
        self.corner = corner
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=0 if corner else 1)

    def forward(self, h: Tensor, e: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(h, (0, 1, 0, 1)) if self.corner else h)


class Upsample(nn.Module):
    "Double, then a convolution."

    def __init__(self, c: int, emb: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, h: Tensor, e: Tensor | None = None) -> Tensor:
        return self.conv(double(h))


class Resample(nn.Module):
    "Halve or double without learning anything."

    def __init__(self, how: Callable[[Tensor], Tensor]):
        super().__init__()
        self.how = how

    def forward(self, h: Tensor, e: Tensor | None = None) -> Tensor:
        return self.how(h)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.3: squares cut out by strides; halving undoes doubling
torch.manual_seed(0)
h = randn(2, 3, 8, 6)
mean = sum(h[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1))/4
four_times = mean.repeat_interleave(2, 2).repeat_interleave(2, 3)
errors = (close(halve(h), mean), close(Resample(double)(mean), four_times),
          close(halve(double(h)), h))
passed('(24.3) means of four, each pixel four times, and back', *errors, by='strides')


# %%NBQA-CELL-SEP7dc948
# Eq. 24.4: sums over the stencil, written out on a picture with a border of zeros
torch.manual_seed(0)


def down(h, conv, corner):
    b, c, height, width = h.shape
    rim = torch.zeros(b, c, height + 2, width + 2, dtype=h.dtype)
    rim[:, :, 1:-1, 1:-1] = h
    start = 1 if corner else 0
    total = conv.bias[:, None, None]
    for i in range(3):
        for j in range(3):
            seen = rim[:, :, start + i::2, start + j::2][:, :, :height // 2, :width // 2]
            total = total + torch.einsum('oc,bchw->bohw', conv.weight[:, :, i, j], seen)
    return total


h = randn(2, 3, 8, 6)
errors = []
for corner in (False, True):
    d = randomized(Downsample(3, corner=corner))
    errors.append(close(d(h), down(h, d.conv, corner)))
passed('(24.4) strided convolution with both paddings', *errors, by='sums over the stencil')
u = randomized(Upsample(3))
passed('upsampling = double, then convolve', close(u(h), u.conv(double(h))))


# %%NBQA-CELL-SEP7dc948
#| export
def zero(module: nn.Module) -> nn.Module:
    "Start this layer at zero: what it would add is nothing at first."
    for p in module.parameters():
        nn.init.zeros_(p)
    module.starts_at_zero = True
    return module


class ResBlock(nn.Module):
    "h plus two convolutions of it, conditioned on e. Eq. 24.5 (DDPM app. B; ADM sec. 3)."

    def __init__(self, c_in: int, c_out: int, emb: int, norm: Norm = norm_adm,
                 scale_shift: bool = False, dropout: float = 0.,
                 resample: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample

        # r = conv1(silu(GN1(h))), and (s, m) = W e + b (24.5)
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2*c_out if scale_shift else c_out)

        # conv2 is zero at first: nothing is added to the skip
        self.norm2 = norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:  # [b c h w], [b d] -> [b c h w]
        r = F.silu(self.norm1(h))
        if self.resample is not None:
            h, r = self.resample(h), self.resample(r)
        r = self.conv1(r)

        # the embedding: (1 + s) GN(r) + m in ADM, GN(r + m) in DDPM
        m = self.emb(e)[:, :, None, None]
        if self.scale_shift:
            s, m = m.chunk(2, 1)
            n = torch.addcmul(m, self.norm2(r), 1 + s)
        else:
            n = self.norm2(r + m)
        return self.skip(h) + self.conv2(self.dropout(F.silu(n)))


# %%NBQA-CELL-SEP7dc948
# Eq. 24.5: in another way. For one picture, m is a bias of conv1 (DDPM),
# and s and m are part of the weights of GN2 (ADM)
torch.manual_seed(0)


def by_weights(block, h, e):
    r = silu(group_norm(h, block.norm1))
    if block.resample:
        h = block.resample(h)
        r = block.resample(r)
    w = block.emb.weight @ e + block.emb.bias
    g = block.norm2
    if block.scale_shift:
        s, m = w.chunk(2)
        weight = g.weight*(1 + s)
        bias = g.bias*(1 + s) + m
        n = F.group_norm(block.conv1(r), g.num_groups, weight, bias, g.eps)
    else:
        n = g(F.conv2d(r, block.conv1.weight, block.conv1.bias + w, padding=1))
    return block.skip(h) + block.conv2(silu(n))


h = randn(2, 16, 4, 6)
e = randn(2, 5)
cases = (24, False, None), (24, True, None), (16, True, halve), (16, False, double)
errors = []
for c, scale_shift, how in cases:
    block = randomized(ResBlock(16, c, 5, norm_small, scale_shift, resample=how))
    want = torch.cat([by_weights(block, h[:1], e[0]), by_weights(block, h[1:], e[1])])
    errors.append(close(block(h, e), want))
passed('(24.5) shift, scale and shift, halving, doubling', *errors, by='weights changed by e')


# %%NBQA-CELL-SEP7dc948
# Eq. 24.5: a new block returns its input, or its input at half the size
torch.manual_seed(0)
h = randn(2, 16, 4, 6)
e = randn(2, 5)
fresh = ResBlock(16, 16, 5, norm_small, scale_shift=True, dropout=.5).double()
halving = ResBlock(16, 16, 5, norm_small, resample=halve).double()
errors = close(fresh(h, e), h, tol=0), close(halving(h, e), halve(h), tol=0)
passed('(24.5) a new block returns its input', *errors)


# %%NBQA-CELL-SEP7dc948
# Figure 24.4: where positions on the strokes of three digits attend to
x, level = noisy(.5, 64)
layer = trained.net.net.up[1].attn
heads = []


def weights(layer, given, out):
    "The table P of (24.6), for each picture and head."
    q, k, _ = in_heads(layer.qkv(layer.norm(given[0]).flatten(2).mT), 3, layer.heads)
    heads.append((q @ k.mT/math.sqrt(q.shape[-1])).softmax(-1))


hook = layer.register_forward_hook(weights)
trained(x, level)
hook.remove()
P = heads[0].mean(1)  # [64 49 49], the mean of the four heads

queries = {0: (3, 4), 1: (5, 5), 3: (1, 3)}  # a digit, and row and column of the position
fig, axes = plt.subplots(1, 6, figsize=(7, 1.45), layout='constrained', dpi=160)
whole = (-.5, 27.5, 27.5, -.5)
for i, (digit, (r, c)) in enumerate(queries.items()):
    axes[2*i].imshow(x[digit, 0])
    axes[2*i].set_title('input $x_t$')
    ax = axes[2*i + 1]
    ax.imshow(P[digit, 7*r + c].reshape(7, 7), vmin=0, extent=whole, interpolation='nearest')
    ax.contour(digits[digit, 0], [0.], colors='orange', linewidths=1.3)
    ax.plot(4*c + 1.5, 4*r + 1.5, '+', color=INK['guidance'], markersize=7, markeredgewidth=2)
    ax.set_title('weights')
for ax in axes:
    ax.axis('off')


# %%NBQA-CELL-SEP7dc948
# Figure 24.4: rows sum to 1; how much of the weight lies on positions with ink, over 64 digits;
# and how much lies outside the 3 x 3 neighbourhood
passed('Figure 24.4: the weights of a position sum to 1', close(P.sum(-1), 1., tol=1e-5))
ink = F.avg_pool2d(digits[:64], 4).flatten(1) > -.8  # [64 49]; a tenth of full ink
on_ink = (P*ink[:, None]).sum(-1)
assert min(on_ink[i, 7*r + c] for i, (r, c) in queries.items()) > .5
assert all(ink[i, 7*r + c] for i, (r, c) in queries.items())
seen = on_ink[ink].mean().item()
chance = ink.float().mean(1)[:, None].expand_as(ink)[ink].mean().item()
assert seen > chance + .2
print(f'from positions with ink, {100*seen:.0f} % of the weight goes to positions with ink;')
print(f'if all weights were equal: {100*chance:.0f} %')
place = torch.cartesian_prod(torch.arange(7), torch.arange(7))
far = (place[:, None] - place).abs().amax(-1) > 1  # [49 49]
outside = (P*far).sum(-1).mean().item()
even = far.float().mean().item()
assert .6 < outside < even
print(f'outside the 3 x 3 neighbourhood: {100*outside:.0f} % of the weight; '
      f'if all weights were equal: {100*even:.0f} %')


# %%NBQA-CELL-SEP7dc948
#| export nets.attention
def attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    "Softmax attention on [b n l d]; the mask is True where a key may be read. Eq. 24.6."
    fit = (q*q.shape[-1]**-.5) @ k.mT
    if mask is not None:
        fit = fit.masked_fill(~mask, -math.inf)
    return fit.softmax(-1).to(v.dtype) @ v


# %%NBQA-CELL-SEP7dc948
#| export nets.attention
def heads_of(width: int, heads: int = 1, head_width: int | None = None) -> int:
    "How many heads there are, by their number or their width; a `Problem` if none fit."
    n = head_width or heads
    if not isinstance(n, int) or n <= 0 or width % n:
        raise Problem(f'{width} channels do not split into heads: choose a divisor of '
                      f'{width} in place of {n}.')
    return width // head_width if head_width else heads


def in_heads(y: Tensor, parts: int, heads: int) -> Tensor:  # [b l parts*c]
    "Queries, keys and values by heads, as `attend` takes them: [parts b n l c/n]."
    return y.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    "The same, computed the fastest way. Eq. 24.6."
    entries = math.prod(q.shape[:-1])*k.shape[2]
    in_cache = entries < 2**23  # the table of weights still fits a cache
    if q.device.type == 'cpu' and q.dtype == torch.bfloat16 and in_cache:
        return attend_plainly(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.6: one query, head and picture at a time, exponentials summed by hand; some keys masked
torch.manual_seed(0)
q = randn(2, 3, 5, 4)
k = randn(2, 3, 7, 4)
v = randn(2, 3, 7, 4)
mask = torch.rand(2, 1, 1, 7) < .7
mask[..., 0] = True
assert not mask.all()
naive = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
for b, n, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)):
    fits = [q[b, n, i] @ k[b, n, j]/math.sqrt(4) for j in range(7)]
    weight = torch.stack(fits).exp()*mask[b, 0, 0]
    naive[b, n, i] = weight @ v[b, n]/weight.sum()
errors = (close(attend(q, k, v, mask), naive),
          close(attend_plainly(q, k, v, mask), attend(q, k, v, mask)),
          close(attend_plainly(q, k, v), attend(q, k, v)))
passed('(24.6) attention, with and without a mask', *errors, by='one query at a time')


# %%NBQA-CELL-SEP7dc948
# Eq. 24.6: in bfloat16, `attend` takes the plain version for small tables and the kernel for large
torch.manual_seed(0)


def qkv(length):
    return [torch.randn(1, 8, length, 8).bfloat16() for _ in range(3)]


long = qkv(1030)
short = qkv(40)
exact = attend(*[a.double() for a in short])
errors = (close(attend(*long), F.scaled_dot_product_attention(*long), tol=0),
          close(attend(*short), attend_plainly(*short), tol=0))
passed('(24.6) in bfloat16: plain for small tables, fused for large', *errors)
passed('(24.6) bfloat16', close(attend(*short), exact, tol=.03), by='float64')


# %%NBQA-CELL-SEP7dc948
#| export
class Attention(nn.Module):
    "h plus attention among its positions, and to tokens. Eq. 24.6, 24.7."

    def __init__(self, c: int, heads: int = 1, head_width: int | None = None,
                 tokens: int = 0, norm: Norm = norm_adm):
        super().__init__()
        self.heads = heads_of(c, heads, head_width)
        self.norm = norm(c)
        self.qkv = nn.Linear(c, 3*c)

        # tokens bring keys and values of their own (24.7)
        self.kv = nn.Linear(tokens, 2*c) if tokens else None
        self.out = zero(nn.Linear(c, c))

    def forward(self, h: Tensor, tokens: Tensor | None = None,
                mask: Tensor | None = None) -> Tensor:
        q, k, v = in_heads(self.qkv(self.norm(h).flatten(2).mT), 3, self.heads)

        # tokens give further keys and values; positions of the picture are never masked
        if tokens is None:
            mask = None
        else:
            k_text, v_text = in_heads(self.kv(tokens), 2, self.heads)
            k, v = torch.cat([k_text, k], 2), torch.cat([v_text, v], 2)
            if mask is not None:
                mask = F.pad(mask, (0, q.shape[2]), value=True)[:, None, None]

        a = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [b l c]
        return h + self.out(a).mT.reshape(h.shape)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.7: head by head, text and picture attended to apart and mixed; no text if it is masked out
torch.manual_seed(0)
net = randomized(Attention(16, heads=2, tokens=6, norm=norm_small), .3)
h = randn(2, 16, 3, 4)
text = randn(2, 5, 6)
q, k, v = net.qkv(net.norm(h).flatten(2).transpose(1, 2)).chunk(3, -1)
k_text, v_text = net.kv(text).chunk(2, -1)


def apart(q, k, v):
    "Attention to these keys alone, and the sum of its exponentials."
    fit = (q @ k.mT/8**.5).exp()
    total = fit.sum(-1, True)
    return fit @ v/total, total


mixed = []
for head in (slice(0, 8), slice(8, 16)):
    from_text, z_text = apart(q[..., head], k_text[..., head], v_text[..., head])
    from_picture, z_picture = apart(q[..., head], k[..., head], v[..., head])
    pi = z_text/(z_text + z_picture)
    mixed.append(pi*from_text + (1 - pi)*from_picture)
by_parts = h + net.out(torch.cat(mixed, -1)).mT.reshape(2, 16, 3, 4)
none = torch.zeros(2, 5, dtype=torch.bool)
three = torch.tensor([[True]*3 + [False]*2]*2)
passed('(24.7) one softmax = a mix of two', close(net(h, text), by_parts), by='two softmaxes')
errors = (close(net(h, text, none), net(h)),
          close(net(h, text, three), net(h, text[:, :3])))
passed('(24.7) masked tokens have no influence', *errors)


# %%NBQA-CELL-SEP7dc948
# Eq. 24.6: turn the picture by half a circle, and the output turns along: attention alone does not
# depend on places. A new attention returns its input
turned = net(h.flip(2, 3))
fresh = Attention(16, head_width=4, norm=norm_small).double()
passed('(24.6) attention does not depend on places', close(turned, net(h).flip(2, 3)),
       by='the picture turned')
passed('(24.6) a new attention returns its input', close(fresh(h), h, tol=0))


# %%NBQA-CELL-SEP7dc948
#| export
class Step(nn.Module):
    "A step of the ladder: a block, attention, a change of size, each optional. Eq. 24.8."

    def __init__(self, res: nn.Module | None = None, attn: nn.Module | None = None,
                 resample: nn.Module | None = None):
        super().__init__()
        self.res = res
        self.attn = attn
        self.resample = resample

    def forward(self, h: Tensor, e: Tensor, tokens: Tensor | None = None,
                mask: Tensor | None = None) -> Tensor:
        if self.res is not None:
            h = self.res(h, e)
        if self.attn is not None:
            h = self.attn(h, tokens, mask)
        return h if self.resample is None else self.resample(h, e)


def way_down(widths, depth, emb, block, attn_at, down) -> tuple[nn.ModuleList, list[int]]:
    "The steps down, and the channels of every copy on the trail. Eq. 24.8."
    steps = nn.ModuleList()
    trail = [widths[0]]

    for level, c in enumerate(widths):
        for _ in range(depth):
            steps.append(Step(block(trail[-1], c, emb), attn_at(level, c)))
            trail.append(c)

        # the sides are halved after each level but the last
        if level + 1 < len(widths):
            steps.append(Step(resample=down(c, emb)))
            trail.append(c)
    return steps, trail


def _way_up(widths, depth, emb, block, attn_at, up, trail) -> nn.ModuleList:
    "The steps up; each takes a copy off the trail. Eq. 24.8."
    steps = nn.ModuleList()
    c = widths[-1]

    for level, c_out in reversed([*enumerate(widths)]):
        # one block more than on the way down: a level's first state was copied too
        for i in range(depth + 1):
            res = block(c + trail.pop(), c_out, emb)
            attn = attn_at(level, c_out)

            # the sides are doubled after each level but the full size
            resample = up(c_out, emb) if level and i == depth else None
            steps.append(Step(res, attn, resample))
            c = c_out
    return steps


# %%NBQA-CELL-SEP7dc948
#| export
class UNet(nn.Module):
    "A picture and a time in, a picture out. Eq. 24.8 (DDPM appendix B)."

    def __init__(self,
                 channels_in: int,
                 channels_out: int,
                 base: int,               # channels at full size, the unit of mults
                 mults: Sequence[float],  # channels of each level
                 depth: int,              # blocks a level on the way down
                 attention: Sequence[int] = (),  # levels with attention; 0 is full size
                 middle: bool = True,     # attention in the middle?
                 classes: int = 0,        # number of labels
                 time=TimeEmbedding,      # (dim, width) -> module
                 block=ResBlock,          # (c_in, c_out, emb) -> module
                 attn=Attention,          # (c) -> module
                 down=Downsample,         # (c, emb) -> module
                 up=Upsample,             # (c, emb) -> module
                 norm: Norm = norm_adm):
        super().__init__()
        widths = [int(m*base) for m in mults]
        emb = 4*base
        self.channels_in = channels_in
        self.depth = depth
        self.classes = classes
        self.emb = emb
        self.factor = 2**(len(widths) - 1)  # sides must be multiples of it

        def attn_at(level, c):
            return attn(c) if level in attention else None

        # the embedding, then the ladder: down, middle, up
        self.time = time(base, emb)
        self.label = nn.Embedding(classes, emb) if classes else None
        self.first = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        self.down, trail = way_down(widths, depth, emb, block, attn_at, down)
        c = widths[-1]
        before = Step(block(c, c, emb), attn(c) if middle else None)
        after = Step(block(c, c, emb))
        self.middle = nn.ModuleList([before, after])
        self.up = _way_up(widths, depth, emb, block, attn_at, up, trail)
        self.norm = norm(widths[0])
        self.last = zero(nn.Conv2d(widths[0], channels_out, 3, padding=1))

        # the width of the tokens that attention reads; 0: none
        readers = [m.kv for m in self.modules() if getattr(m, 'kv', None)]
        self.tokens = max((kv.in_features for kv in readers), default=0)

    def forward(self,
                x: Tensor,                     # [b c h w]
                t: Tensor,                     # [b] or [], in the units of the training
                label: Tensor | None = None,   # [b] whole numbers; below 0: none
                emb: Tensor | None = None,     # [b d] a condition as wide as `net.emb`
                tokens: Tensor | None = None,  # [b l d] text for every attention
                mask: Tensor | None = None,    # [b l] True where a token may be read
                ) -> Tensor:                   # [b c h w]
        t, label = check_given(self, x, t, label, emb, tokens)
        e = embed(self, t, x.dtype, label, emb)
        h = self.first(x)

        # down, with a copy of every state on the trail
        trail = [h]
        for step in self.down:
            h = step(h, e, tokens, mask)
            trail.append(h)
        for step in self.middle:
            h = step(h, e, tokens, mask)

        # up, with the copies beside
        for step in self.up:
            h = step(torch.cat([h, trail.pop()], 1), e, tokens, mask)
        return self.last(F.silu(self.norm(h))).to(x.dtype)


# %%NBQA-CELL-SEP7dc948
# The trail: the number of copies, and of blocks on the way up, is L(n + 1)
for mults, depth in (((1,), 1), ((1, 2), 1), ((1, 1, 2), 2), ((1, 2, 2, 2), 3)):
    with torch.device('meta'):
        net = UNet(1, 1, 32, mults, depth)
    assert len(net.up) == len(net.down) + 1 == len(mults)*(depth + 1)
passed('as many blocks up as copies: L(n + 1), for four networks')


# %%NBQA-CELL-SEP7dc948
#| export
def check_picture(x: Tensor, channels: int, factor: int):
    "A `Problem` unless x is [b channels h w] with sides that are multiples of `factor`."
    if x.ndim != 4 or x.shape[1] != channels:
        raise Problem(f'This network reads pictures [b {channels} h w], '
                      f'not {[*x.shape]}.')
    if not x.is_floating_point() or not x.numel():
        raise Problem('This network reads numbers, at least one picture of at least one '
                      f'pixel, not {x.dtype} {[*x.shape]}: turn bytes into numbers with '
                      'to_unit.')
    if x.shape[2] % factor or x.shape[3] % factor:
        raise Problem(f'A picture of {x.shape[2]} x {x.shape[3]} does not fit: make both '
                      f'sides multiples of {factor}.')


def check_given(net, x: Tensor, t: Tensor, label, emb,  # net: a UNet or a DiT
                tokens) -> tuple[Tensor, Tensor | None]:
    "One time and one label a picture, or a `Problem` that says what does not fit."
    check_picture(x, net.channels_in, net.factor)
    n = x.shape[0]  # a number, or a name for it in a graph: len(x) would fix it

    check_each(t.numel(), 'times', n, 'pictures')
    if emb is not None and emb.shape[1:] != (net.emb,):
        raise Problem(f'The vector emb should be [b {net.emb}], not {[*emb.shape]}.')
    if tokens is not None and tokens.shape[2:] != (net.tokens,):
        raise Problem(f'The tokens are {[*tokens.shape]}, and the attention was built '
                      f'for [b l {net.tokens}].')

    if label is not None:
        label = _check_label(net, label, n)
    return t.reshape(-1).expand(n), label


def _check_label(net, label: Tensor, n: int) -> Tensor:  # net: a UNet or a DiT
    "One label for each of n pictures, or a `Problem` that says what does not fit."
    if not net.classes:
        raise Problem('This network knows no labels: call it without one, or build '
                      'it with classes.')
    check_each(label.numel(), 'labels', n, 'pictures')

    # to read a label makes a GPU wait, and cannot stand in a compiled graph
    readable = label.device.type == 'cpu' and not torch.compiler.is_compiling()
    if readable and (label >= net.classes).any():
        raise Problem(f'There is no label {int(label.max())}: labels are 0 to '
                      f'{net.classes - 1}, and a negative one means none.')
    return label.reshape(-1).expand(n)


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def _fan_average(net: UNet) -> UNet:
    "Weights of variance 2/(fan in + fan out), zero biases; what starts at zero stays so."
    for name, m in net.named_modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)) and not hasattr(m, 'starts_at_zero'):
            for w in m.weight.chunk(3 if name.endswith('qkv') else 1):
                nn.init.xavier_uniform_(w)
            nn.init.zeros_(m.bias)
    return net


def inside(block) -> dict:
    "Change the size inside a block, rather than by a convolution between two."
    return dict(down=lambda c, emb: block(c, c, emb, resample=halve),
                up=lambda c, emb: block(c, c, emb, resample=double))


def ddpm_unet(base=128, mults=(1, 2, 2, 2), depth=2, attention=(1,), channels_in=3,
              channels_out=3, dropout=.1) -> UNet:
    "The network of Ho et al. 2020, by default theirs for CIFAR-10."
    time = partial(TimeEmbedding, sin_first=True, slowest=True)
    block = partial(ResBlock, norm=norm_ddpm, dropout=dropout)
    attn = partial(Attention, norm=norm_ddpm)
    down = partial(Downsample, corner=True)
    net = UNet(channels_in, channels_out, base, mults, depth, attention, time=time,
               block=block, attn=attn, down=down, norm=norm_ddpm)
    return _fan_average(net)


def iddpm_unet(base=128, mults=(1, 2, 2, 2), depth=3, attention=(1, 2), classes=0,
               dropout=.3) -> UNet:
    "The network of Nichol and Dhariwal 2021, by default theirs for CIFAR-10."
    block = partial(ResBlock, scale_shift=True, dropout=dropout)
    attn = partial(Attention, heads=4)
    return UNet(3, 6, base, mults, depth, attention, classes=classes, block=block,
                attn=attn)


def adm_unet(base=256, mults=(1, 1, 2, 2, 4, 4), depth=2, attention=(3, 4, 5),
             channels_in=3, channels_out=6, classes=0, dropout=0.,
             attn=partial(Attention, head_width=64), middle=True,
             norm: Norm = norm_adm) -> UNet:
    "The network of Dhariwal and Nichol 2021, by default theirs for 256 x 256 pixels."
    block = partial(ResBlock, scale_shift=True, dropout=dropout, norm=norm)
    return UNet(channels_in, channels_out, base, mults, depth, attention, middle, classes,
                block=block, attn=partial(attn, norm=norm), norm=norm, **inside(block))


# %%NBQA-CELL-SEP7dc948
# Eq. 24.8: the formula, summed over DDPM's network by hand; then published sizes, all exact
C = 128


def conv_size(a, b):
    return 9*a*b + b


def block_size(a, b):
    "GN1, conv1, the embedding, GN2, conv2, the skip."
    skip = a*b + b if a != b else 0
    return 2*a + conv_size(a, b) + b*(4*C + 1) + 2*b + conv_size(b, b) + skip


B = block_size
W = 2*C  # channels of all levels but the first
time_size = 4*C*C + 4*C + 16*C*C + 4*C
way_down_size = 2*B(C, C) + conv_size(C, C) + B(C, W) + 5*B(W, W) + 2*conv_size(W, W)
way_up_size = 8*B(2*W, W) + B(3*C, W) + B(3*C, C) + 2*B(W, C) + 3*conv_size(W, W)
attentions = 6*(4*W*W + 6*W)
by_hand = (conv_size(3, C) + time_size + way_down_size + 2*B(W, W) + way_up_size + attentions
           + 2*C + conv_size(C, 3))

with torch.device('meta'):
    nets = {'DDPM, CIFAR-10': ddpm_unet(),
            'iDDPM, CIFAR-10': iddpm_unet(),
            'ADM 64, labels': adm_unet(192, (1, 2, 3, 4), 3, (1, 2, 3), classes=1000),
            'ADM 256': adm_unet(),
            'ADM 256, labels': adm_unet(classes=1000),
            'ADM 64 to 256, labels': adm_unet(192, channels_in=6, classes=1000,
                                              attn=partial(Attention, heads=4))}
published = 35_746_307, 52_546_438, 295_904_454, 552_814_086, 553_838_086, 311_795_910
print(f'{"parameters":22} {"ours":>11}   {"published":>11}')
for (name, net), size in zip(nets.items(), published):
    print(f'{name:22} {count(net):>11,}   {size:>11,}')
assert by_hand == count(nets['DDPM, CIFAR-10'])
off = [abs(count(net) - size) for net, size in zip(nets.values(), published)]
passed('(24.8) DDPM counted by hand; six published sizes', close(sum(off), 0, tol=0))


# %%NBQA-CELL-SEP7dc948
# Figure 24.5: where DDPM's parameters are, and where its multiplications
net = nets['DDPM, CIFAR-10']
ladder = [*net.down, *net.middle, *net.up]
shapes = []
size_at = dict.fromkeys((32, 16, 8, 4), 0)
products_at = dict.fromkeys((32, 16, 8, 4), 0)


def note(layer, given, h):
    "What a layer has and computes, under the side of the picture that it returns."
    if isinstance(layer, Step):
        shapes.append(h.shape[1:3])
    elif isinstance(layer, Attention):  # its linear layers, then the fits and the means
        side, positions = h.shape[2], h.shape[2]**2
        size_at[side] += count(layer.qkv) + count(layer.out)
        products_at[side] += 4*h.shape[1]**2*positions + 2*h.shape[1]*positions**2
    elif isinstance(layer, ResBlock):
        size_at[h.shape[2]] += count(layer.emb)
        products_at[h.shape[2]] += layer.emb.weight.numel()
    elif isinstance(layer, (nn.Conv2d, nn.GroupNorm)):
        size_at[h.shape[2]] += count(layer)
        if isinstance(layer, nn.Conv2d):
            products_at[h.shape[2]] += layer.weight.numel()*h.shape[2]*h.shape[3]


hooks = [m.register_forward_hook(note) for m in net.modules()]
given = torch.zeros(1, 3, 32, 32, device='meta'), torch.zeros(1, device='meta')
net(*given)
for hook in hooks:
    hook.remove()
sides = [32] + [side for _, side in shapes]
fig, axes = plt.subplots(1, 2, figsize=(7, 2.), layout='constrained', dpi=160, sharey=True)
panels = ((axes[0], size_at, 1e6, 'parameters', 'million'),
          (axes[1], products_at, 1e9, 'multiplications for a picture', 'billion'))
names = [f'{side} × {side}' for side in size_at]
for ax, found, unit, title, word in panels:
    values = [n/unit for n in found.values()]
    bars = ax.barh(names, values, color=INK['model'], height=.7)
    ax.bar_label(bars, [f'{v:.1f} {word}' for v in values], padding=3)
    ax.set(title=title, xticks=[], xlim=(0, 1.45*max(values)))
    ax.spines[['top', 'right', 'bottom']].set_visible(False)
axes[0].invert_yaxis()


# %%NBQA-CELL-SEP7dc948
# Figure 24.5: all parameters but those of the time are counted; multiplications against PyTorch's
# own counter; and the parameters of steps that begin or end below full size
small_steps = [count(step) for step, a, b in zip(ladder, sides, sides[1:]) if min(a, b) < 32]
share = sum(small_steps)/count(net)
assert sum(size_at.values()) + count(net.time) == count(net)
with FlopCounterMode(display=False) as counter:
    net(*given)
products = sum(products_at.values()) + net.time.inner.weight.numel() + net.time.outer.weight.numel()
passed(f'Figure 24.5: {sum(products_at.values())/1e9:.2f} billion multiplications',
       close(counter.get_total_flops()/2/products, 1., tol=0), by="PyTorch's counter")
passed(f'{share:.2f} of the parameters in steps that begin or end below full size',
       close(share, .92, .005))
assert .85 < (products_at[32] + products_at[16])/products < .9


# %%NBQA-CELL-SEP7dc948
# DDPM's first weights: variance times (fan in + fan out)/2 is 1, within 5 standard errors;
# new networks predict 0
torch.manual_seed(0)
net = ddpm_unet(32)
off = []
for name, m in net.named_modules():
    if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.any():
        for w in m.weight.detach().chunk(3 if name.endswith('qkv') else 1):
            fans = w[0].numel() + w[:, 0].numel()
            off.append(abs(w.var()*fans/2 - 1)/(.8/w.numel())**.5)
assert max(off) < 5 and len(off) > 50 and not net.first.bias.any()
passed(f"DDPM's first weights: {len(off)} layers have the variance of the rule")

x = torch.randn(2, 3, 16, 16)
seven = torch.tensor(7)
adm = adm_unet(32, (1, 2), 1, (1,), attn=Attention)
passed('new networks predict 0', close(net(x, seven), 0., tol=0), close(adm(x, seven), 0., tol=0))


# %%NBQA-CELL-SEP7dc948
# Eq. 24.1: in the whole network; a label and no label in one batch
torch.manual_seed(0)
block = partial(ResBlock, norm=norm_small)
attn = partial(Attention, heads=2, tokens=6, norm=norm_small)
net = randomized(UNet(3, 3, 16, (1, 2, 2, 1), 1, (1, 3), classes=4, block=block, attn=attn,
                      norm=norm_small, **inside(block)))
x = randn(2, 3, 16, 8)
t = torch.tensor([3., 500.5])
label = torch.tensor([2, -1])
text = randn(2, 5, 6)
out = net(x, t, label)
assert not torch.allclose(out[0], net(x, t)[0])
assert not torch.allclose(net(x, t, tokens=text), net(x, t))
with_vector = net(x[:1], t[:1], emb=net.label.weight[2][None])
one_each = net(x, t[[0, 0]], torch.tensor([2, 2]))
passed('(24.1) a label = its vector', close(out[:1], with_vector))
passed('(24.1) label −1 = no label', close(out[1:], net(x[1:], t[1:])))
passed('one time and label for all = one for each',
       close(net(x, t[0], torch.tensor(2)), one_each, tol=0))


# %%NBQA-CELL-SEP7dc948
# Every parameter has a gradient, but for the bias of the keys where there is no text
net(x, t, torch.tensor([0, 1]), tokens=text).pow(2).sum().backward()
still = [name for name, p in net.named_parameters() if not p.grad.abs().max() > 1e-9]
assert not still, still
passed('every parameter has a gradient')

# a bias of the keys adds the same to all fits of a query
biases = [p for name, p in net.named_parameters() if name.endswith('qkv.bias')]
slopes = torch.autograd.grad(net(x, t).pow(2).sum(), biases)
of_keys = [slope.chunk(3)[1].abs().max() for slope in slopes]
passed('without text, the bias of the keys has none', close(torch.stack(of_keys), 0.))


# %%NBQA-CELL-SEP7dc948
# Figure 24.6: the gradient of one predicted pixel with respect to the input
x, level = noisy(.15, 64)
row, column = 13, 14


def dependence(**scales):
    "How strongly each input pixel changes the predicted one: mean over 64 digits."
    z = x.clone().requires_grad_(True)
    slope, = torch.autograd.grad(with_paths(z, level, **scales)[:, 0, row, column].sum(), z)
    return slope[:, 0].abs().mean(0)


views = {'skip connections only': dependence(below=0.), 'both paths': dependence()}
places = torch.arange(28)
far = torch.maximum((places - row).abs()[:, None], (places - column).abs()[None])
within = {name: [(view[far <= d].sum()/view.sum()).item() for d in range(14)]
          for name, view in views.items()}
colours = {'skip connections only': '.45', 'both paths': INK['model']}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.2), layout='constrained', dpi=160,
                         width_ratios=(1, 1, 1.35))
for ax, (name, view) in zip(axes, views.items()):
    ax.imshow(view, cmap='Greys', vmin=0, vmax=.06, interpolation='nearest')
    ax.set_title(name, color=colours[name])
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
for name, share in within.items():
    axes[2].plot(range(14), [100*s for s in share], '.-', color=colours[name])
axes[2].text(3.6, 82, 'skips only', ha='right', color=colours['skip connections only'])
axes[2].text(6.6, 56, 'both paths', color=colours['both paths'])
axes[2].set(title='share within a distance', xlabel='pixels from the predicted one',
            ylabel='%', ylim=(0, 103), xlim=(-.5, 13.5), xticks=[0, 4, 8, 12])


# %%NBQA-CELL-SEP7dc948
# Figure 24.6, and networks with random weights: the share of the input that changes a pixel at all
outside = {name: 1 - share[3] for name, share in within.items()}
print('more than 3 pixels away: ' + ', '.join(f'{n} {100*s:.0f} %' for n, s in outside.items()))
assert outside['both paths'] > 1.3*outside['skip connections only']


def identity(c):
    return nn.Identity()


def sight(mults, attention):
    "How strongly each pixel changes the one at (48, 48), as a power of ten."
    torch.manual_seed(0)
    net = UNet(1, 1, 8, mults, 1, attention, bool(attention), norm=identity,
               block=partial(ResBlock, norm=identity), attn=partial(Attention, norm=identity))
    randomized(net)
    x = torch.zeros(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(net(x, torch.tensor(9.))[0, 0, 48, 48], x)
    return slope[0, 0].abs().clamp(min=1e-14).log10()


views = [sight((1,), ()), sight((1, 1, 1), ()), sight((1, 1, 1), (2,))]
shares = [(view > -14).float().mean().item() for view in views]
corners = [view[-12:, -12:].mean().item() for view in views]
print('random weights, no norms, 96 × 96 pixels:')
titles = 'one level', 'three levels', 'three levels, attention'
for title, share, corner in zip(titles, shares, corners):
    size = f'about 1e{corner:.0f}' if corner > -14 else 'nothing'
    print(f'{title:24} {100*share:3.0f} % of the input; gradient in a corner {size}')
assert shares[0] < .1 and min(shares[1:]) > .99
assert corners[2] > corners[1] + 1


# %%NBQA-CELL-SEP7dc948
# Figure 24.7: a digit and its four folded channels
digit = digits[7:8]
folded = F.pixel_unshuffle(digit, 2)[0]
titles = ['28 × 28', *(f'a = {a}, b = {b}' for a in (0, 1) for b in (0, 1))]
fig, axes = plt.subplots(1, 5, figsize=(7, 1.6), layout='constrained', dpi=160)
for ax, picture, title in zip(axes, [digit[0, 0], *folded], titles):
    ax.imshow(picture)
    ax.set_title(title)
    ax.axis('off')


# %%NBQA-CELL-SEP7dc948
#| export
class UpsamplerUNet(nn.Module):
    "A network that also takes a smaller picture, enlarged and concatenated to x."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, low: Tensor,
                **condition) -> Tensor:  # [b c h w], [b], [b c h' w'] -> [b c h w]
        low = F.interpolate(low, x.shape[2:], mode='bilinear', align_corners=False)
        return self.net(torch.cat([x, low], 1), t, **condition)


class Unshuffled(nn.Module):
    "A network that takes each square of pixels for one position. Eq. 24.9."

    def __init__(self, net: UNet, factor: int = 2):
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None,
                **condition) -> Tensor:  # [b c h w] -> [b c h w]
        channels = self.net.channels_in // self.factor**2
        check_picture(x, channels, self.factor*self.net.factor)
        condition = named_conditions(dict(condition, label=label))
        y = self.net(F.pixel_unshuffle(x, self.factor), t, **condition)
        return F.pixel_shuffle(y, self.factor)


def small_unet(channels_in=1, classes=10, base=48, mults=(1, 2), depth=1, attention=(1,),
               unshuffle=2, learn_variance=False, channels_out=None, tokens=0,
               middle=True) -> nn.Module:
    "A small fast network; `base` is a multiple of 8; learned variances come last."
    out = (channels_out or channels_in)*(2 if learn_variance else 1)
    square = unshuffle**2
    block = partial(ResBlock, scale_shift=True, norm=norm_small)
    attn = partial(Attention, heads=4, tokens=tokens, norm=norm_small)
    net = UNet(channels_in*square, out*square, base, mults, depth, attention, middle,
               classes, block=block, attn=attn, norm=norm_small)
    return Unshuffled(net, unshuffle) if unshuffle > 1 else net


# %%NBQA-CELL-SEP7dc948
net = small_unet(channels_in=3, classes=10)
x = torch.randn(4, 3, 32, 32)
t = torch.tensor([0., 10., 500., 999.])
label = torch.tensor([3, 1, 4, -1])  # −1: no label
net(x, t, label).shape


# %%NBQA-CELL-SEP7dc948
# Eq. 24.9: a network that passes its input on and stores it: pixel by pixel, then back again
class Mirror(nn.Module):
    channels_in, factor = 18, 2

    def forward(self, x, t):
        self.x = x
        return x


torch.manual_seed(0)
mirror = Mirror()
x = randn(2, 2, 12, 6)
back = Unshuffled(mirror, 3)(x, None)
errors = close(back, x, tol=0), close(mirror.x[:, 1*9 + 2*3 + 1], x[:, 1, 2::3, 1::3], tol=0)
passed('(24.9) folded by 3, and back', *errors, by='strides')


# %%NBQA-CELL-SEP7dc948
# Super-resolution: a linear ramp, enlarged, is the same ramp, and stands behind x
def ramp(n):
    return ((torch.arange(n).double() + .5)/n).expand(1, 1, n, n)


UpsamplerUNet(mirror)(ramp(12), None, ramp(4))
passed('super-resolution: a ramp enlarged is a ramp',
       close(mirror.x[0, 1, :, 2:-2], ramp(12)[0, 0, :, 2:-2]),
       close(mirror.x[:, :1], ramp(12), tol=0))


# %%NBQA-CELL-SEP7dc948
# The small network: shapes, learned variance, no folding, no attention
torch.manual_seed(0)
net = small_unet(channels_in=3, learn_variance=True, unshuffle=4, mults=(1, 2, 2), classes=0)
out = net(torch.randn(2, 3, 32, 16), torch.rand(2))
assert out.shape == (2, 6, 32, 16)
assert small_unet(unshuffle=1).channels_in == 1
convolutional = small_unet(attention=(), middle=False)
assert not any(isinstance(m, Attention) for m in convolutional.modules())
passed(f'a new small network ({count(small_unet()):,} parameters) predicts 0',
       close(out, 0., tol=0))


# %%NBQA-CELL-SEP7dc948
# bfloat16 against float32; the compiled graph against the network
torch.manual_seed(0)
net = small_unet().float()
for p in net.parameters():
    nn.init.normal_(p, std=.1)
x = torch.randn(4, 1, 28, 28)
t = torch.rand(4)*1000
label = torch.tensor([0, 3, 9, -1])
with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
    rough = net(x, t, label)
with torch.no_grad():
    exact = net(x, t, label)
assert rough.dtype == torch.float32
whole = torch.compile(net, backend='eager', fullgraph=True)(x, t, label)
torch.compiler.reset()
relative = (rough - exact).abs().max()/exact.abs().max()
passed('bfloat16, relative to the largest value', close(relative, 0., tol=.05), by='float32')
passed('compiled as one graph', close(whole, exact, tol=1e-4), by='not compiled')


# %%NBQA-CELL-SEP7dc948
net = small_unet()
x = torch.zeros(2, 1, 28, 28)
t = torch.zeros(2)
with expect_fail('multiples of 4', Problem):
    net(torch.zeros(2, 1, 28, 26), t)
with expect_fail('[b 1 h w]', Problem):
    net(torch.zeros(2, 3, 28, 28), t)
with expect_fail('no label 10: labels are 0 to 9', Problem):
    net(x, t, torch.tensor([3, 10]))
with expect_fail('one for each', Problem):
    net(x, t, torch.tensor([3, 1, 2]))
with expect_fail('3 times', Problem):
    net(x, torch.zeros(3))
with expect_fail('knows no labels', Problem):
    small_unet(classes=0)(x, t, torch.tensor([3, 1]))
with expect_fail('[b 192]', Problem):
    net(x, t, emb=torch.zeros(2, 64))
with expect_fail('built for [b l 0]', Problem):
    net(x, t, tokens=torch.zeros(2, 5, 6))
for heads in (3, -4, 0):
    with expect_fail('a divisor of 16', Problem):
        Attention(16, heads=heads)
for width in (-8, 4.):
    with expect_fail('a divisor of 16', Problem):
        Attention(16, head_width=width)
for bad in (x.byte(), x[:, :, :0]):
    with expect_fail('to_unit', Problem):
        net(bad, t)


# %%NBQA-CELL-SEP7dc948
with expect_fail('multiples of 8', Problem):
    UNet(1, 1, 32, (1, 1, 1, 1), 1)(torch.zeros(1, 1, 20, 32), t[:1])
UNet(1, 1, 32, (1,), 1, middle=False)(torch.zeros(1, 1, 3, 5), t[:1]).shape


# %%NBQA-CELL-SEP7dc948
# Measured: the squared error of the prediction with the wrong unit of time, or the wrong padding
x, level = noisy(.15, 48)
t = trained.level_input(level).expand(48)
x0 = digits[:48]


def error_at(t):
    v = trained.net(x, t)
    return (from_v(v, x, level).x0 - x0).square().mean().item()


before = trained(x[:4], level).x0
right = error_at(t)
found = {'as trained': right, 'time from 0 to 1, not to 1,000': error_at(t/1000)}

# the corner padding, in the one halving of the network
step = trained.net.net.down[1].resample
step.corner = True
step.conv.padding = (0, 0)
found['padding of the corner'] = error_at(t)
step.corner = False
step.conv.padding = (1, 1)
for name, error in found.items():
    print(f'{name:31} {error:.3f}')
close(trained(x[:4], level).x0, before, tol=0)
assert all(error > 1.2*right for name, error in found.items() if name != 'as trained')


# %%NBQA-CELL-SEP7dc948
# Question 1: rows of the picture that change the pixel at all,
# against the count of 3 x 3 convolutions
rows_seen = (sight((1,), ()) > -14).any(1).sum().item()
net = UNet(1, 1, 8, (1,), 1, middle=False, norm=norm_small,
           block=partial(ResBlock, norm=norm_small))
convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
passed('question 1: 25 rows = 2 · 12 + 1', close(rows_seen, 2*len(convs) + 1, tol=0),
       by='3 x 3 convolutions counted')


# %%NBQA-CELL-SEP7dc948
#| eval: false
share = ...
net = ddpm_unet()
named = net.named_parameters()
of_time = sum(p.numel() for name, p in named if 'emb' in name or 'time' in name)
close(share, of_time/count(net), tol=.05)


# %%NBQA-CELL-SEP7dc948
#| eval: false
def useless(a): ...  # [32] -> [64], of which GN_2 sees nothing


h = torch.randn(2, 64, 4, 4)
a = torch.randn(32)
assert len(useless(a).unique()) == 32
close(norm_ddpm(64)(h + useless(a)[:, None, None]), norm_ddpm(64)(h), tol=1e-5)


# %%NBQA-CELL-SEP7dc948
#| eval: false
class MeanDown(nn.Module):
    ...  # built as down(c, emb), called with h and e


net = randomized(UNet(1, 1, 32, (1, 1), 1, down=MeanDown))
h = randn(1, 32, 8, 8)
d = next(m for m in net.modules() if isinstance(m, MeanDown))
board = (-1.)**(torch.arange(8) + torch.arange(8)[:, None])
assert net(randn(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)
assert d(h, None).shape == (1, 32, 4, 4) and len([*d.parameters()]) == 2
close(d(h + board, None), d(h, None)), close(d(double(halve(h)), None), d(h, None))


# %%NBQA-CELL-SEP7dc948
# solution 1: a block of c channels has c(4C + 1) of them; 5 blocks have C channels
# and 17 have 2C, so about a twelfth
C = 128
blocks = (5*C + 17*2*C)*(4*C + 1)
share = (C*4*C + 4*C + (4*C)**2 + 4*C + blocks)/35_746_307
net = ddpm_unet()
named = net.named_parameters()
of_time = sum(p.numel() for name, p in named if 'emb' in name or 'time' in name)
close(share, of_time/count(net), tol=.05)


# %%NBQA-CELL-SEP7dc948
# solution 2: what is added to all channels of a group moves the group's mean by the same,
# and the mean is subtracted. 64 channels in 32 groups: m is lost where both channels of a group
# get the same; their difference stays, and so m is not useless
torch.manual_seed(0)


def useless(a):
    return a.repeat_interleave(2)


h = torch.randn(2, 64, 4, 4)
a = torch.randn(32)
assert len(useless(a).unique()) == 32
close(norm_ddpm(64)(h + useless(a)[:, None, None]), norm_ddpm(64)(h), tol=1e-5)


# %%NBQA-CELL-SEP7dc948
# solution 3: on a chessboard the mean of each four is 0, as on grey;
# the 1 x 1 convolution reads only means
torch.manual_seed(0)


class MeanDown(nn.Module):
    def __init__(self, c, emb):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, h, e):
        return self.conv(halve(h))


net = randomized(UNet(1, 1, 32, (1, 1), 1, down=MeanDown))
h = randn(1, 32, 8, 8)
d = next(m for m in net.modules() if isinstance(m, MeanDown))
board = (-1.)**(torch.arange(8) + torch.arange(8)[:, None])
assert net(randn(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)
assert d(h, None).shape == (1, 32, 4, 4) and len([*d.parameters()]) == 2
close(d(h + board, None), d(h, None)), close(d(double(halve(h)), None), d(h, None))
