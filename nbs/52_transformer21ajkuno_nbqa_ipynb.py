# %%NBQA-CELL-SEP7dc948
#| default_exp nets.transformer


# %%NBQA-CELL-SEP7dc948
# Figure 52.1: one block with one head learns to reverse a row of ten digits
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F
from ddpm_lit.core.check import setup
from ddpm_lit.nets import transformer as library  # the first pages use what the later ones build
from ddpm_lit.nets.attention import in_heads

setup()
D = torch.float64


def table_of(ax, m, title, **look):
    "A table [row column] in shades of blue, counted from 1."
    n = len(m)
    ax.imshow(m, cmap='Blues', **look)
    ax.set(title=title, xticks=range(n), yticks=range(n), xticklabels=range(1, n + 1),
           yticklabels=range(1, n + 1))


torch.manual_seed(1)


class Mirror(nn.Module):
    def __init__(self, d=32, l=10):
        super().__init__()
        self.token = nn.Embedding(10, d)
        self.place = nn.Parameter(torch.randn(l, d))
        self.net = library.Transformer(d, 1, 1)
        self.out = nn.Linear(d, 10)

    def forward(self, s):
        return self.out(self.net(self.token(s) + self.place))


net = Mirror()
opt = torch.optim.Adam(net.parameters(), 3e-3)


def weights_of(s):
    "The mean attention weights of the block."
    b = net.net.blocks[0]
    x = net.token(s) + net.place
    q, k, _ = in_heads(b.attn.qkv(b.norm1(x)), 3, b.attn.heads)
    return (q @ k.mT/32**.5).softmax(-1).detach()[:, 0].mean(0)


test = torch.randint(10, (200, 10))
seen = {'before training': weights_of(test)}
for step in range(300):
    s = torch.randint(10, (64, 10))
    loss = F.cross_entropy(net(s).flatten(0, 1), s.flip(1).flatten())
    opt.zero_grad()
    loss.backward()
    opt.step()
seen['after 300 steps'] = weights_of(test)
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout='constrained', dpi=160,
                         width_ratios=(1.1, 1, 1))
row = test[0]
answer = net(test[:1])[0].argmax(-1)
for i in range(10):
    for y, digits, name in ((.8, row, 'input'), (.3, answer, 'output')):
        axes[0].text(i/10 + .05, y, digits[i].item(), ha='center', fontsize=11)
axes[0].set(xticks=[], yticks=[])
axes[0].spines[:].set_visible(False)
axes[0].text(0., .92, 'input row', color='.4')
axes[0].text(0., .42, 'output row', color='.4')
for ax, (name, m) in zip(axes[1:], seen.items()):
    table_of(ax, m, name, vmin=0, vmax=1)
    ax.set_xlabel('position attended to')
axes[1].set_ylabel('by this position')


# %%NBQA-CELL-SEP7dc948
import torch
from torch import nn
from torch.nn import functional as F


class PlainBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3*d), nn.Linear(d, d)
        self.inner, self.outer = nn.Linear(d, 4*d), nn.Linear(4*d, d)

    def forward(self, x, mask):  # [b l d]; [l l], True where position i may attend to j
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # [b l 3 n d/n]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                              # [b n l d/n]
        fit = (q @ k.mT/q.shape[-1]**.5).masked_fill(~mask, -torch.inf)   # [b n l l]
        a = (fit.softmax(-1) @ v).transpose(1, 2).flatten(2)              # [b l d]
        x = x + self.out(a)
        return x + self.outer(F.gelu(self.inner(self.norm2(x))))


# %%NBQA-CELL-SEP7dc948
#| export
from typing import Callable
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ddpm_lit.core.problem import Problem
from ddpm_lit.nets.attention import attend, heads_of, in_heads


# %%NBQA-CELL-SEP7dc948
#| hide
import itertools
import math
from ddpm_lit.core.check import close, expect_fail, passed
from ddpm_lit.core.files import data_dir
from ddpm_lit.nets.mlp import sinusoid
from ddpm_lit.core.tensors import read_tensors


def randn(*shape):
    return torch.randn(*shape, dtype=D)


def awake(net, std=.3):
    "Random numbers in every parameter and float64: for checks, which want nothing to be zero."
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net.double()


def reach(net, x, *given):
    "How much output i changes with input j: the size of each gradient [i j], for x [l d]."
    def outputs(x):
        return net(x[None], *given)[0].sum(-1)

    return torch.autograd.functional.jacobian(outputs, x).norm(dim=-1)


# %%NBQA-CELL-SEP7dc948
# Figure 52.1: after training, nearly all digits are right, and each position attends to its mirror
right = (net(test).argmax(-1) == test.flip(1)).float().mean().item()
assert right > .99
assert seen['after 300 steps'].argmax(-1).tolist() == [*range(9, -1, -1)]
passed(f'Figure 52.1: {right:.0%} of the digits of 200 new rows are right, '
       'by weights on the other diagonal')


# %%NBQA-CELL-SEP7dc948
# The plain block against the library's with the same weights, full and causal
torch.manual_seed(0)
plain = awake(PlainBlock(12, 3))
ours = library.Transformer(12, 1, 3, act=library.gelu).double()
names = {'qkv': 'attn.qkv', 'out': 'attn.out'}
state = {}
for k, v in plain.state_dict().items():
    part, end = k.split('.')
    state[f'blocks.0.{names.get(part, part)}.{end}'] = v
ours.load_state_dict(state)
x = randn(2, 5, 12)
everywhere = torch.ones(5, 5, dtype=torch.bool)
errors = [close(plain(x, everywhere), ours(x))]
ours.causal = True
errors.append(close(plain(x, everywhere.tril()), ours(x)))
passed('plain block = library, with and without a causal mask', *errors, by='random weights')


# %%NBQA-CELL-SEP7dc948
# Figure 52.2: the mean largest weight of 32 random keys, by their width
torch.manual_seed(0)
widths = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128, 256])


def best(d, root):
    "The mean largest weight of 32 random keys."
    fits = (torch.randn(400, 1, d) @ torch.randn(400, 32, d).mT)[:, 0]
    return torch.softmax(fits/root, -1).amax(-1).mean()


fig, ax = plt.subplots(figsize=(7, 2.1), layout='constrained', dpi=160)
for name, root, colour in (('undivided', 0., 'tab:red'), ('divided by √d', .5, 'tab:blue')):
    shares = [best(int(d), d**root) for d in widths]
    ax.plot(widths, shares, 'o-', color=colour, markersize=3)
    ax.text(290, shares[-1], name, color=colour, va='center')
ax.set(xscale='log', xlabel='width d', ylabel='largest weight', ylim=(0, 1), xlim=(.9, 900))
ax.set_xticks(widths, widths.tolist())
ax.minorticks_off()


# %%NBQA-CELL-SEP7dc948
# Figure 52.2, Eq. 52.1: the largest weights; all signs of eight entries, so that mean and variance
# are exact; and what attend divides by, read off its weights
torch.manual_seed(0)
assert best(256, 1.) > .85 and .12 < best(1, 1.) < best(256, 16.) < .19
q = torch.tensor([*itertools.product((-1., 1.), repeat=8)], dtype=D)
fit = q @ q.T
passed('(52.1) mean and variance of a product of width 8', close(fit.mean(), 0.),
       close((fit**2).mean(), 8.), by='all signs')

# two keys, and the value 1 for the first only: the output is the first weight
a = randn(1, 1, 1, 9)
k = randn(1, 1, 2, 9)
v = torch.tensor([[[[1.]*9, [0.]*9]]], dtype=D)
first_weight = attend(a, k, v)[0, 0, 0, 0]
passed('(52.1) `attend` divides by the root of the width',
       close(first_weight.logit()*3, a[0, 0, 0] @ (k[0, 0, 0] - k[0, 0, 1])), by='its weights')


# %%NBQA-CELL-SEP7dc948
#| export
class SelfAttention(nn.Module):
    "Each position reads the others, and further tokens, by heads. Eq. 52.2, 52.6."

    def __init__(self, width: int, heads: int,
                 tokens: int = 0):  # the width of further tokens, 0: none
        super().__init__()
        self.heads = heads_of(width, heads)
        self.qkv = nn.Linear(width, 3*width)
        self.out = nn.Linear(width, width)
        self.kv = nn.Linear(tokens, 2*width) if tokens else None

    def forward(self,
                x: Tensor,  # [b l d]
                mask: Tensor | None = None,  # [b 1 l m+l] True where i may read j
                empty: Tensor | None = None,  # [b 1 l 1] True where i may read none
                context: Tensor | None = None,  # [b m tokens], the further tokens
                ) -> Tensor:  # [b l d]
        q, k, v = in_heads(self.qkv(x), 3, self.heads)

        # further keys and values come first
        if context is not None:
            k_context, v_context = in_heads(self.kv(context), 2, self.heads)
            k = torch.cat([k_context, k], 2)
            v = torch.cat([v_context, v], 2)

        # a query without keys reads all of them, and its output is set to 0
        if empty is not None and mask is not None:
            mask = mask | empty
        a = attend(q, k, v, mask)  # [b n l d/n]
        if empty is not None:
            a = a.masked_fill(empty, 0.)
        return self.out(a.transpose(1, 2).flatten(2))


# %%NBQA-CELL-SEP7dc948
# Eq. 52.2: heads as projections that add up, exponentials by hand, one query at a time; and
# PyTorch's own class with the same weights
torch.manual_seed(0)
net = awake(SelfAttention(12, 3))
x = randn(2, 5, 12)
Q, K, V = (x @ net.qkv.weight.T + net.qkv.bias).chunk(3, -1)
y = net.out.bias.expand(2, 5, 12).clone()
for h, i in itertools.product(range(3), range(5)):
    block = torch.diag(torch.tensor([float(m // 4 == h) for m in range(12)], dtype=D))
    fits = [((Q[:, i] @ block*K[:, j]).sum(-1)/math.sqrt(4)).exp() for j in range(5)]
    P = torch.stack(fits, -1)/sum(fits)[:, None]
    mean = sum(P[:, j, None]*V[:, j] for j in range(5))
    y[:, i] += mean @ block @ net.out.weight.T

theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=D)
theirs.load_state_dict({'in_proj_weight': net.qkv.weight, 'in_proj_bias': net.qkv.bias,
                        'out_proj.weight': net.out.weight, 'out_proj.bias': net.out.bias})
passed('(52.2) heads add up', close(net(x), y), by='exponentials by hand')
passed('(52.2) and it is PyTorch\'s attention', close(net(x), theirs(x, x, x)[0]),
       by='nn.MultiheadAttention')


# %%NBQA-CELL-SEP7dc948
# Figure 52.3: how much each output of two blocks changes with each input, under three masks
torch.manual_seed(0)
net = awake(library.Transformer(12, 2, 3))
twin = library.Transformer(12, 2, 3, causal=True).double()
twin.load_state_dict(net.state_dict())
x = randn(5, 12)
there = torch.tensor([[True, True, True, False, False]])
shown = {'no mask': reach(net, x), 'causal': reach(twin, x),
         'padding at 4 and 5': reach(net, x, there)}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.4), layout='constrained', dpi=160)
for ax, (name, m) in zip(axes, shown.items()):
    table_of(ax, m**.3, name, vmin=0, vmax=1.4)
    ax.set_xlabel('input')
    for i, j in (m == 0).nonzero().tolist():
        ax.text(j, i, '0', ha='center', va='center', color='tab:red')
axes[0].set_ylabel('output')


# %%NBQA-CELL-SEP7dc948
#| export
def allowed(
        x: Tensor,  # [b l d]
        causal: bool = False,
        mask: Tensor | None = None,  # [b l] True where a position may be read
        m: int = 0,  # so many further tokens stand before, which all may read,
        context_mask: Tensor | None = None,  # [b m] save where this is False
        ) -> tuple[Tensor | None, Tensor | None]:  # [b 1 l m+l], [b 1 l 1]; or no limit
    "Which keys each query may read, and which queries may read none. Eq. 52.4."
    if not causal and mask is None and context_mask is None:
        return None, None

    # the row itself: [1 l l] or [1 1 l], with a mask [b ...]
    at = torch.arange(x.shape[1], device=x.device)
    if causal:
        own = (at <= at[:, None])[None]
    else:
        own = torch.ones_like(at, dtype=torch.bool)[None, None]
    if mask is not None:
        own = own & mask[:, None]

    # further tokens: [1 1 m] or [b 1 m]
    more = own.new_ones(1, 1, m) if context_mask is None else context_mask[:, None]
    b = max(len(own), len(more))
    l = own.shape[1]
    pairs = torch.cat([more.expand(b, l, m), own.expand(b, l, -1)], -1)[:, None]

    # without a mask each may read itself
    if causal and mask is None:
        return pairs, None
    return pairs, ~pairs.any(-1, keepdim=True)


# %%NBQA-CELL-SEP7dc948
# Eq. 52.4, 52.6: sums written out, over own and further keys, causal or not, with both masks; a
# query without keys gets 0
torch.manual_seed(0)
net = awake(SelfAttention(8, 2, tokens=3))
x = randn(3, 5, 8)
e = randn(3, 4, 3)
mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
e_mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()


def by_sums(causal, mask, e, e_mask):
    W, b = net.kv.weight.T, net.kv.bias
    Q, K, V = net.qkv(x).chunk(3, -1)
    a = torch.zeros(3, 5, 8, dtype=D)
    for s, i in itertools.product(range(3), range(5)):
        # keys and values that position i of row s may attend to
        keys = []
        if e is not None:
            for j in range(4):
                if e_mask is None or e_mask[s, j]:
                    keys.append((e[s, j] @ W + b).chunk(2))
        for j in range(5):
            if (j <= i or not causal) and (mask is None or mask[s, j]):
                keys.append((K[s, j], V[s, j]))

        for h in (slice(0, 4), slice(4, 8)):
            w = [(Q[s, i, h] @ k[h]/2).exp() for k, v in keys]
            a[s, i, h] = sum(u*v[h] for u, (k, v) in zip(w, keys))/sum(w) if w else 0.
    return net.out(a)


def ours(causal, mask, e, e_mask):
    return net(x, *allowed(x, causal, mask, 0 if e is None else 4, e_mask), e)


errors = []
for causal, m in itertools.product((False, True), (None, mask)):
    for more in ((None, None), (e, None), (e, e_mask)):
        errors.append(close(ours(causal, m, *more), by_sums(causal, m, *more)))
passed(f'(52.4, 52.6) {len(errors)} combinations of masks and further tokens', *errors,
       by='sums written out')


# %%NBQA-CELL-SEP7dc948
#| export
def quick_gelu(x: Tensor) -> Tensor:
    "x times a logistic curve close to the normal's. Eq. 52.8 (GELU section 2)."
    return x*torch.sigmoid(1.702*x)


def gelu(x: Tensor) -> Tensor:
    "x times the normal distribution function. Eq. 52.8 (GELU section 2)."
    return F.gelu(x)


# %%NBQA-CELL-SEP7dc948
# Eq. 52.8: the distribution by its error function; 1.702 is the best of all factors, by trying
# them, and good to 0.0095
x = torch.linspace(-6, 6, 6001, dtype=D)
x = x[x.abs() > .01]
normal = (1 + torch.special.erf(x/2**.5))/2
factors = torch.linspace(1.6, 1.8, 2001, dtype=D)
worst = torch.stack([(1/(1 + torch.exp(-c*x)) - normal).abs().max() for c in factors])
passed('(52.8) GELU', close(gelu(x)/x, normal), by='the error function')
passed('(52.8) 1.702 is the best factor', close(factors[worst.argmin()], 1.702, 5e-4),
       by='2,001 factors')
passed(f'(52.8) the largest difference is {worst.min():.4f}',
       close((quick_gelu(x)/x - normal).abs().max(), worst.min(), 5e-5))


# %%NBQA-CELL-SEP7dc948
#| export
class Block(nn.Module):
    "The stream, plus attention, plus a small network at each position. Eq. 52.7."

    def __init__(self, width: int, heads: int,
                 act: Callable[[Tensor], Tensor] = quick_gelu, tokens: int = 0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, tokens)
        self.norm2 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4*width)
        self.outer = nn.Linear(4*width, width)
        self.act = act

    def forward(self, x: Tensor, mask=None, empty=None,
                context: Tensor | None = None) -> Tensor:  # as `SelfAttention`'s
        y = x + self.attn(self.norm1(x), mask, empty, context)
        return y + self.outer(self.act(self.inner(self.norm2(y))))


# %%NBQA-CELL-SEP7dc948
#| export
class Transformer(nn.Module):
    "A stack of blocks. Eq. 52.7."

    def __init__(self,
                 width: int,
                 layers: int,
                 heads: int,
                 causal: bool = False,  # no position reads a later one
                 act: Callable[[Tensor], Tensor] = quick_gelu,
                 tokens: int = 0):  # the width of further tokens that all may read
        super().__init__()
        self.width = width
        self.causal = causal
        self.tokens = tokens
        self.blocks = nn.ModuleList([Block(width, heads, act, tokens)
                                     for _ in range(layers)])
        _start_transformer(self)

    def forward(self,
                x: Tensor,  # [b l d], places already added
                mask: Tensor | None = None,  # [b l] True where a position may be read
                context: Tensor | None = None,  # [b m tokens] further tokens
                context_mask: Tensor | None = None,  # [b m] True where one may be read
                ) -> Tensor:  # [b l d]
        _check_input(self, x, mask, context, context_mask)
        m = 0 if context is None else context.shape[1]
        pairs, empty = allowed(x, self.causal, mask, m, context_mask)
        for block in self.blocks:
            x = block(x, pairs, empty, context)
        return x


# %%NBQA-CELL-SEP7dc948
#| export
def _check_attention_mask(name: str, mask: Tensor | None,  # [b l]
                          tokens: Tensor | None):  # [b l d]
    "A `Problem` unless a mask, if there is one, says True or False of each token."
    if mask is None:
        return
    if tokens is None or mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        wanted = 'and there are none' if tokens is None else [*tokens.shape[:2]]
        raise Problem(f'The {name} should say True or False of each token, {wanted}; it '
                      f'is {[*mask.shape]} of {mask.dtype}.')


def _check_input(net: Transformer, x: Tensor, mask, context, context_mask):
    "A `Problem` that says what does not fit."
    if x.ndim != 3 or x.shape[2] != net.width:
        raise Problem(f'This transformer reads [b l {net.width}], not {[*x.shape]}.')
    if context is not None:
        if not net.tokens:
            raise Problem('This transformer was built without further tokens: give their '
                          'width as tokens.')
        flat = context.ndim != 3
        if flat or len(context) != len(x) or context.shape[2] != net.tokens:
            raise Problem(f'The further tokens should be [{len(x)} m {net.tokens}], not '
                          f'{[*context.shape]}.')
    _check_attention_mask('mask', mask, x)
    _check_attention_mask('context_mask', context_mask, context)


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def _start_transformer(net: Transformer) -> Transformer:
    "CLIP's first weights: the stream stays bounded at any depth; biases 0. Eq. 52.9."
    width = net.width

    # 2 L layers write to the stream, each a 2 L-th of the variance (52.9)
    deep = (2*max(len(net.blocks), 1))**-.5

    for b in net.blocks:
        stds = [(b.attn.qkv, width**-.5), (b.attn.out, width**-.5*deep),
                (b.inner, (2*width)**-.5), (b.outer, width**-.5*deep)]
        if net.tokens:
            stds.append((b.attn.kv, net.tokens**-.5))
        for layer, std in stds:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return net


# %%NBQA-CELL-SEP7dc948
# Eq. 52.9: what both parts write, summed over the layers, against 1/2 and 2c, with c an integral;
# for rows of one position. Within 5 sigma of a variance of 256 numbers a layer
torch.manual_seed(0)


@torch.no_grad()
def written(layers, width=256, length=1, act=quick_gelu, louder=1.):
    "Variances of all that attention, and all that the small networks write; of the stream."
    net = Transformer(width, layers, 4, act=act)
    x = torch.randn(128, length, width)
    by_attention = 0.
    by_network = 0.
    stream = []
    for b in net.blocks:
        a = b.attn(b.norm1(x))*louder
        y = x + a
        z = b.outer(act(b.inner(b.norm2(y))))*louder
        x = y + z
        by_attention = by_attention + a.var()
        by_network = by_network + z.var()
        stream.append(x.var())
    return torch.stack([by_attention, by_network, x.var()]), torch.stack(stream)


u = torch.linspace(-8, 8, 20001, dtype=D)
p = torch.exp(-u**2)/math.pi**.5  # N(0, 1/2)
for act, layers in ((quick_gelu, 2), (gelu, 8), (quick_gelu, 24)):
    c = torch.trapezoid(act(u)**2*p, u).item()
    variances, _ = written(layers, act=act)
    formula = torch.tensor([.5, 2*c, 1.5 + 2*c])
    passed(f'(52.9) variances after {layers} layers, c = {c:.3f}, over the formula',
           close(variances/formula, 1., 5*(2/256/layers)**.5), by='random networks')
assert written(8, length=16)[0][2] < 1.5 + 2*c


# one layer: the error comes from the weights, and from the inputs
def near(n, d, inputs):
    return 5*(2/(n*d) + 2/(n*inputs))**.5


attn = Transformer(128, 1, 4, tokens=64).blocks[0].attn
passed('(52.9) keys and values have variance 1',
       close(attn.kv(torch.randn(500, 64)).var(), 1., near(64, 256, 500)),
       close(attn.qkv(torch.randn(500, 128)).var(), 1., near(128, 384, 500)), by='random rows')


# %%NBQA-CELL-SEP7dc948
# Figure 52.4: the variance of the stream after each layer, for three depths, and without 1/(2L)
torch.manual_seed(0)
fig, ax = plt.subplots(figsize=(7, 2.3), layout='constrained', dpi=160)


def share(n):
    return torch.arange(1, n + 1)/n


for n, mark in ((4, 'o'), (16, '.'), (64, '-')):
    _, stream = written(n, 128, 16)
    ax.plot(share(n), stream, mark, color='tab:blue', ms=4)
ax.text(1.02, 1., '4 (discs), 16 (dots)\nand 64 layers', color='tab:blue', va='center')
_, stream = written(64, 128, 16, louder=128**.5)
ax.plot(share(64), stream, color='tab:red')
ax.text(1.02, stream[-1], '64 layers, without\nthe factor 1/(2L)', color='tab:red', va='center')
ax.axhline(1.5 + 2*c, color='black', ls='--', linewidth=1)
ax.text(1.02, 2.6, 'bound (52.9)', va='center')
ax.set(yscale='log', xlabel='share of the layers', ylabel='variance of the stream',
       xlim=(0, 1.3), ylim=(.5, 200), xticks=(0, .25, .5, .75, 1))


# %%NBQA-CELL-SEP7dc948
# Eq. 52.7: PyTorch's encoder layers with the same weights, full and causal, with and without
# padding
torch.manual_seed(0)
net = awake(Transformer(12, 2, 3, act=quick_gelu))
x = randn(2, 5, 12)
pad = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
layer = nn.TransformerEncoderLayer(12, 3, 48, dropout=0., activation=quick_gelu, batch_first=True,
                                   norm_first=True, dtype=D)
theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
names = {'self_attn.in_proj_': 'attn.qkv.', 'self_attn.out_proj': 'attn.out', 'linear1': 'inner',
         'linear2': 'outer', 'layers.': 'blocks.'}


def our_name(k):
    for a, b in names.items():
        k = k.replace(a, b)
    return k


theirs.load_state_dict({k: net.state_dict()[our_name(k)] for k in theirs.state_dict()})
causal = awake(Transformer(12, 2, 3, causal=True))
causal.load_state_dict(net.state_dict())

later = torch.ones(5, 5).triu(1).bool()
passed('(52.7) two blocks, full and causal', close(net(x), theirs(x)),
       close(causal(x), theirs(x, mask=later)), by='nn.TransformerEncoder')
passed('(52.7) the same with padding', close(net(x, ~pad), theirs(x, src_key_padding_mask=pad)),
       close(causal(x, ~pad), theirs(x, mask=later, src_key_padding_mask=pad)),
       by='nn.TransformerEncoder')


# %%NBQA-CELL-SEP7dc948
# Eq. 52.3: permuted positions, permuted outputs; a causal network depends on the order
order = torch.tensor([3, 1, 4, 0, 2])
assert (causal(x[:, order]) - causal(x)[:, order]).abs().max() > .01
passed('(52.3) permuted positions give permuted outputs', close(net(x[:, order]), net(x)[:, order]))


# %%NBQA-CELL-SEP7dc948
# Eq. 52.5: the size of each gradient of output i in input j, by autograd, through both layers:
# exactly 0 where it is forbidden, and nowhere else
maps = {'full': reach(net, x[1]), 'causal': reach(causal, x[1]),
        'padding at 4, 5': reach(net, x[1], ~pad[1:])}
up = torch.ones(5, 5).triu(1).bool()
assert (maps['full'] > 0).all()
assert (maps['causal'][~up] > 0).all()
# padding still reads itself, along the stream
own = torch.eye(5).bool()[:, 3:]
assert ((maps['padding at 4, 5'][:, 3:] > 0) == own).all()
passed('(52.5) no output depends on a later input', close(maps['causal'][up], 0., tol=0),
       by='autograd')
passed('(52.4, 52.5) padding, or what comes later, can be cut off',
       close(net(x[1:], ~pad[1:])[:, :3], net(x[1:, :3])),
       close(causal(x)[:, :3], causal(x[:, :3])), by='shorter rows')


# %%NBQA-CELL-SEP7dc948
# Eq. 52.4: a row without a key is what the blocks make of it without attention; further tokens that
# may not be attended to change nothing; no NaN comes back
torch.manual_seed(0)
alone = x
for b in net.blocks:
    alone = alone + b.attn.out.bias
    alone = alone + b.outer(b.act(b.inner(b.norm2(alone))))

with_more = awake(Transformer(12, 2, 3, causal=True, tokens=7))
with_more.load_state_dict(net.state_dict(), strict=False)
none = torch.zeros(2, 5, dtype=torch.bool)
e = randn(2, 4, 7)
leaf = x.clone().requires_grad_()
with_more(leaf, none, e, none[:, :4]).square().sum().backward()
assert all(p.grad.isfinite().all() for p in [leaf, *with_more.parameters()])

passed('(52.4) a row of padding passes without attention', close(net(x, none), alone))
passed('(52.6) further tokens: without them if forbidden, and causal all the same',
       close(with_more(x, ~pad, e, none[:, :4]), causal(x, ~pad)),
       close(with_more(x, None, e)[:, :2], with_more(x[:, :2], None, e)))


# %%NBQA-CELL-SEP7dc948
# Eq. 52.10: counted on the device that stores nothing, against a published network, a rounded
# count, and the formula
def count(width, layers, **kw):
    with torch.device('meta'):
        return sum(p.numel() for p in Transformer(width, layers, 8, **kw).parameters())


counted = []
formula = []
for (d, L), n in {(512, 16): 50_438_144, (2048, 24): 1_208_598_528}.items():
    counted.append(close(count(d, L), n, tol=0))
    formula.append(close(count(d, L), L*(12*d**2 + 13*d), tol=0))
assert round(count(2048, 24)/1e9, 1) == 1.2
passed('(52.10) 50,438,144 and 1.2 billion parameters', *counted, by="GLIDE's text encoders")
passed('(52.10) the formula; further tokens add 2 d (their width + 1) per layer', *formula,
       close(count(64, 3, tokens=10) - count(64, 3), 3*(2*64*10 + 2*64), tol=0), by='the tensors')


# %%NBQA-CELL-SEP7dc948
# Official weights in our layout
def read(name):
    "The tensors of a fixture, in float64."
    tensors = read_tensors(data_dir('parity', f'{name}.safetensors'))
    return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}


def cut(f):
    "The weights of a fixture."
    return {k.removeprefix('weights.'): v for k, v in f.items() if k.startswith('weights.')}


def fill(net, w, root, qkv, out, swap=lambda t: t):
    "Official weights in our network; `swap` puts the rows of queries, keys, values in our order."
    kinds = {'norm1': 'ln_1.', 'norm2': 'ln_2.', 'inner': 'mlp.c_fc.', 'outer': 'mlp.c_proj.',
             'attn.qkv': qkv, 'attn.out': out}
    state = {}
    for i, end in itertools.product(range(len(net.blocks)), ('weight', 'bias')):
        for ours, theirs in kinds.items():
            value = w[f'{root}transformer.resblocks.{i}.{theirs}{end}']
            state[f'blocks.{i}.{ours}.{end}'] = swap(value) if ours == 'attn.qkv' else value
    net.double().load_state_dict(state)
    return net


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'])


# %%NBQA-CELL-SEP7dc948
# Eq. 52.7: CLIP's text and image towers, and GLIDE's text encoder, around our blocks: every number
# of their outputs

@torch.no_grad()
def clip_text(f, w):
    "The output at the end of the text, which has the largest id."
    net = fill(Transformer(32, 2, 4, causal=True), w, '', 'attn.in_proj_', 'attn.out_proj.')
    tokens = f['in.text'].long()
    x = w['token_embedding.weight'][tokens] + w['positional_embedding']
    y = norm(net(x), w, 'ln_final')
    return y[torch.arange(4), tokens.argmax(-1)] @ w['text_projection']


@torch.no_grad()
def clip_image(f, w):
    "The output at the class token, which stands before the patches."
    net = fill(Transformer(64, 2, 1), w, 'visual.', 'attn.in_proj_', 'attn.out_proj.')
    patches = F.conv2d(f['in.image'], w['visual.conv1.weight'], stride=4).flatten(2).mT
    first = w['visual.class_embedding'].expand(len(patches), 1, -1)
    x = torch.cat([first, patches], 1) + w['visual.positional_embedding']
    y = net(norm(x, w, 'visual.ln_pre'))[:, 0]
    return norm(y, w, 'visual.ln_post') @ w['visual.proj']


def heads_inside(t):
    "Rows as [heads 3 d] -> [3 heads d]."
    return t.unflatten(0, (4, 3, 8)).transpose(0, 1).flatten(0, 2)


@torch.no_grad()
def glide_text(f, w):
    "All outputs; padding is replaced by a learned vector."
    net = fill(Transformer(32, 2, 4, act=gelu), w, '', 'attn.c_qkv.', 'attn.c_proj.', heads_inside)
    x = w['token_embedding.weight'][f['in.tokens'].long()] + w['positional_embedding']
    x = torch.where(f['in.mask'].bool()[..., None], x, w['padding_embedding'])
    return norm(net(x), w, 'final_ln').mT


clip = read('openai_clip_vit')
glide = read('glide_base')
passed('(52.7) text and image encoder of CLIP',
       close(clip_text(clip, cut(clip)), clip['out.text_features'], 1e-10),
       close(clip_image(clip, cut(clip)), clip['out.image_features'], 1e-10),
       by="OpenAI's program")
passed('(52.7) text encoder of GLIDE',
       close(glide_text(glide, cut(glide)), glide['out.xf_out'], 1e-10), by="OpenAI's program")


# %%NBQA-CELL-SEP7dc948
# Eq. 52.4, 52.7: the prior: text (some of it padding), its summary, the time, the noisy image
# embedding and a last token, at which the output is read
@torch.no_grad()
def prior(f, w):
    kinds = {'norm1': ['norm1'], 'norm2': ['norm3'], 'inner': ['ff.net.0.proj'],
             'outer': ['ff.net.2'], 'attn.qkv': ['attn1.to_q', 'attn1.to_k', 'attn1.to_v'],
             'attn.out': ['attn1.to_out.0']}
    state = {}
    for i, end in itertools.product((0, 1), ('weight', 'bias')):
        for ours, theirs in kinds.items():
            parts = [w[f'transformer_blocks.{i}.{name}.{end}'] for name in theirs]
            state[f'blocks.{i}.{ours}.{end}'] = torch.cat(parts)
    net = Transformer(32, 2, 2, causal=True, act=gelu).double()
    net.load_state_dict(state)

    def linear(x, name):
        return F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])

    time = linear(sinusoid(f['in.t'].double(), 32), 'time_embedding.linear_1')
    time = linear(F.silu(time), 'time_embedding.linear_2')
    text = linear(f['in.hid'], 'encoder_hidden_states_proj')
    summary = linear(f['in.proj'], 'embedding_proj')
    image = linear(f['in.x'], 'proj_in')
    last = w['prd_embedding'].expand(len(time), 1, -1)
    row = torch.cat([text, summary[:, None], time[:, None], image[:, None], last], 1)

    mask = F.pad(f['in.mask'].bool(), (0, 4), value=True)
    y = net(row + w['positional_embedding'], mask)
    return linear(norm(y, w, 'norm_out')[:, -1], 'proj_to_clip_embeddings')


f = read('unclip_prior')
passed('(52.4, 52.7) the prior of unCLIP', close(prior(f, cut(f)), f['out.pred'], 1e-10),
       by='diffusers')


# %%NBQA-CELL-SEP7dc948
# float64, float32 and bfloat16, with padding and with further tokens, against float64
torch.manual_seed(0)
mask = torch.tensor([[True]*6, [False]*2 + [True]*4])
for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, .15)):
    net = Transformer(32, 2, 4, causal=True, tokens=8).to(dtype)
    x = torch.randn(2, 6, 32).to(dtype)
    e = torch.randn(2, 3, 8).to(dtype)
    y = net(x, mask, e)
    z = net(x, mask)
    assert y.dtype == z.dtype == dtype

    net.double()
    with_tokens = net(x.double(), mask, e.double())
    without = net(x.double(), mask)
    passed(f'{dtype}, with and without further tokens', close(y, with_tokens, tol),
           close(z, without, tol), by='float64')


# %%NBQA-CELL-SEP7dc948
net = Transformer(12, 1, 3)
x = torch.randn(2, 5, 12)
for heads in (5, -3, 0, 3.):
    with expect_fail('choose a divisor of 12', Problem):
        Transformer(12, 1, heads)
with expect_fail('[b l 12], not [2, 5, 8]', Problem):
    net(x[..., :8])
with expect_fail('[b l 12], not [5, 12]', Problem):
    net(x[0])
with expect_fail('True or False of each token', Problem):
    net(x, torch.ones(2, 5))
with expect_fail('it is [2, 4]', Problem):
    net(x, torch.ones(2, 4).bool())
with expect_fail('and there are none', Problem):
    net(x, context_mask=torch.ones(2, 4).bool())
with expect_fail('built without further tokens', Problem):
    net(x, context=torch.randn(2, 3, 8))
with expect_fail('[2 m 8], not [1, 3, 8]', Problem):
    Transformer(12, 1, 3, tokens=8)(x, context=torch.randn(1, 3, 8))


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1: can it tell them apart, with so many blocks?
guess = {1: ..., 2: ...}
exchanged = [1, 0, 2]  # the first two
for layers in (1, 2):
    net = awake(Transformer(12, layers, 3, causal=True))
    x = randn(1, 3, 12)
    difference = net(x)[:, -1] - net(x[:, exchanged])[:, -1]
    assert (difference.abs().max() > 1e-6) == guess[layers]


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: for d = 16
variance = ...
factor = ...
u, v = (F.normalize(torch.randn(200_000, 16, dtype=D), dim=1) for _ in 'uv')
dot = (u*v).sum(1)
(close(dot.var(), variance, 5*2**.5/16/200_000**.5),
 close((factor*dot).var(), 1., 5*(2/200_000)**.5))


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3: each new position is the last output
def generate(net, x, n):
    ...  # [b l d] -> [b l+n d]


net = awake(Transformer(12, 2, 3, causal=True), .1)
x = randn(1, 3, 12)
y = x
for _ in range(4):
    y = torch.cat([y, net(y)[:, -1:]], 1)

asked = []
for b in net.blocks:
    b.attn.qkv.register_forward_hook(lambda m, i, o: asked.append(i[0].shape[1]))
# of seven positions the last is not read, in two blocks
close(generate(net, x, 4), y), close(sum(asked), 2*6, tol=0)


# %%NBQA-CELL-SEP7dc948
# solution 1: with one block no. The last position takes a mean over the set of those before it,
# which knows no order (52.3). With two, the second token has read the first or not, and the third
# reads that
guess = {1: False, 2: True}
exchanged = [1, 0, 2]  # the first two
for layers in (1, 2):
    net = awake(Transformer(12, layers, 3, causal=True))
    x = randn(1, 3, 12)
    difference = net(x)[:, -1] - net(x[:, exchanged])[:, -1]
    assert (difference.abs().max() > 1e-6) == guess[layers]


# %%NBQA-CELL-SEP7dc948
# solution 2: turn the sphere until v is the first axis: the dot product is u_1. The squares of u's
# d entries have equal means and sum to 1, so Var = E[u_1^2] = 1/d, and it should be multiplied by
# the root of d: with unit vectors the scale goes up, not down
variance = 1/16
factor = 16**.5
u, v = (F.normalize(torch.randn(200_000, 16, dtype=D), dim=1) for _ in 'uv')
dot = (u*v).sum(1)
close(dot.var(), variance, 5*2**.5/16/200_000**.5), close((factor*dot).var(), 1., 5*(2/200_000)**.5)


# %%NBQA-CELL-SEP7dc948
# solution 3: a later position changes no earlier one (52.5), so keys and values once made stay
# right; one query reads them all, and needs no mask
def generate(net, x, n):
    kept = [([], []) for _ in net.blocks]
    l = x.shape[1]
    for i in range(l + n - 1):
        h = x[:, i:i + 1]
        for b, (keys, values) in zip(net.blocks, kept):
            q, k, v = in_heads(b.attn.qkv(b.norm1(h)), 3, b.attn.heads)
            keys.append(k)
            values.append(v)
            a = attend(q, torch.cat(keys, 2), torch.cat(values, 2))
            h = h + b.attn.out(a.transpose(1, 2).flatten(2))
            h = h + b.outer(b.act(b.inner(b.norm2(h))))
        if i >= l - 1:
            x = torch.cat([x, h], 1)
    return x


net = awake(Transformer(12, 2, 3, causal=True), .1)
x = randn(1, 3, 12)
y = x
for _ in range(4):
    y = torch.cat([y, net(y)[:, -1:]], 1)

asked = []
for b in net.blocks:
    b.attn.qkv.register_forward_hook(lambda m, i, o: asked.append(i[0].shape[1]))
# of seven positions the last is not read, in two blocks
close(generate(net, x, 4), y), close(sum(asked), 2*6, tol=0)
