# %%NBQA-CELL-SEP15d533
#| default_exp nets.dit


# %%NBQA-CELL-SEP15d533
# Figure 66.1: the network and one of its blocks, with sizes read from that of notebook 67
import torch
from torch.nn import functional as F
from ddpm_lit import show
from ddpm_lit.core.check import setup
from ddpm_lit.nets import dit as library  # the first figures use what the later cells build

setup()
with torch.device('meta'):
    net = library.DiT(8, 8, 320, 8, 5, side=8, patch=2, tokens=192)
places, width = net.places.shape
cut = f'patches\n{places} × {width}'
stack = f'{len(net.blocks)} blocks'
state, back = 'noisy latent\n8 × 8 × 8', 'norm, scale,\nshift'
guess = 'prediction\n8 × 8 × 8'
first, second = (f'scale $\\gamma_{i}$\nshift $\\delta_{i}$' for i in (1, 2))
gate1, gate2 = (f'gate $g_{i}$' for i in (1, 2))
known = 'time, label,\ncaption'
boxes = {state: (.65, 3.25), cut: (2.2, 3.25), stack: (3.65, 3.25), back: (4.95, 3.25),
         guess: (6.35, 3.25),
         'in $h$': (1.35, 2.1), 'norm': (2.25, 2.1), first: (3.3, 2.1), 'attention': (4.45, 2.1),
         gate1: (5.5, 2.1), 'add $h$': (6.4, 2.1),
         known: (1.35, 1.2), '$c$': (3.9, 1.2),
         ' norm ': (6.4, .35), second: (5.4, .35), 'MLP': (4.35, .35), gate2: (3.35, .35),
         ' add $h$ ': (2.3, .35), 'out $h$': (1.35, .35)}
arrows = [(state, cut, ''), (cut, stack, ''), (stack, back, ''), (back, guess, ''),
          ('in $h$', 'norm', ''), ('norm', first, ''), (first, 'attention', ''),
          ('attention', gate1, ''), (gate1, 'add $h$', ''), ('add $h$', ' norm ', ''),
          (' norm ', second, ''), (second, 'MLP', ''), ('MLP', gate2, ''),
          (gate2, ' add $h$ ', ''), (' add $h$ ', 'out $h$', ''), (known, '$c$', ''),
          ('$c$', first, ''), ('$c$', gate1, ''), ('$c$', second, ''), ('$c$', gate2, '')]
trained = (cut, 'attention', 'MLP', first, second, gate1, gate2, stack, back, known)
ax = show.diagram(boxes, arrows, show.panels(1, height=3.6, dpi=160)[0],
                  dict.fromkeys(trained, 'model') | {'$c$': 'guidance', known: 'guidance'}, 3.6)
for y, words in ((3.25, 'the whole'), (2.1, 'one block')):
    ax.text(.05, y + .36, words, fontsize=9, style='italic', color='.3')


# %%NBQA-CELL-SEP15d533
#| export
from typing import Callable
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ddpm_lit.core.problem import Problem
from ddpm_lit.nets.transformer import SelfAttention
from ddpm_lit.nets.unet import TimeEmbedding, check_given, zero


# %%NBQA-CELL-SEP15d533
#| hide
import math
import matplotlib.pyplot as plt
from torch.utils.flop_counter import FlopCounterMode
from ddpm_lit.core.check import close, expect_fail, passed
from ddpm_lit.data.captions import emoji
from ddpm_lit.data.images import to_unit

D = torch.float64


# %%NBQA-CELL-SEP15d533
# Figure 66.2: a picture, its patches, and the sequence that a transformer reads
x = to_unit(emoji('train', 32).pixels[[1200]])
patches = F.unfold(x, 8, stride=8).unflatten(1, (3, 8, 8))[0].permute(3, 0, 1, 2)  # [16 3 8 8]
place = library.sin_cos(16, 4)  # [16 16]
fig = plt.figure(figsize=(7, 2.1), layout='constrained', dpi=160)
cells = fig.add_gridspec(2, 3, width_ratios=(1, 1, 3.4), height_ratios=(1, 1.2))
whole, cut = (fig.add_subplot(cells[:, i]) for i in (0, 1))
row, below = (fig.add_subplot(cells[i, 2]) for i in (0, 1))


def framed(ax, title):
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set(visible=True, color='.8', linewidth=.6)


def numbered(ax, column, line, i):
    ax.text(column, line, i, fontsize=5, ha='left', va='top', color='black')


whole.imshow((x[0].permute(1, 2, 0) + 1)/2)
framed(whole, 'picture')
gap = torch.full((3, 52, 46), .8)
line = torch.full((3, 12, 16*10 - 2), .8)
strips = torch.full((16, 16*10 - 2), float('nan'))
for i, patch in enumerate((patches + 1)/2):
    r, c = divmod(i, 4)
    gap[:, 13*r + 4:13*r + 12, 12*c + 1:12*c + 9] = patch
    line[:, 4:, 10*i:10*i + 8] = patch
    strips[:, 10*i:10*i + 8] = place[i, :, None]
    numbered(cut, 12*c + 1, 13*r, i + 1)
    numbered(row, 10*i, 0, i + 1)
cut.imshow(gap.permute(1, 2, 0))
framed(cut, 'patches')
row.imshow(line.permute(1, 2, 0))
framed(row, 'a sequence of 16 patches')
below.imshow(strips, cmap='viridis', vmin=-1, vmax=1, aspect='auto', interpolation='nearest')
framed(below, 'their position vectors')


# %%NBQA-CELL-SEP15d533
from torch import nn
from torch.nn import functional as F


def to_patches(x, p):             # [b c H W] -> [b l c*p*p]
    return F.unfold(x, p, stride=p).mT


def from_patches(y, side, p):     # and back
    return F.fold(y.mT, (side, side), p, stride=p)


class PlainBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 4*d), nn.GELU('tanh'), nn.Linear(4*d, d))
        self.ada = nn.Linear(d, 6*d)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def forward(self, h, c):  # c already includes the SiLU
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.ada(c)[:, None].chunk(6, dim=-1))
        a = self.norm(h)*(1 + scale1) + shift1
        h = h + gate1*self.attn(a, a, a, need_weights=False)[0]
        a = self.norm(h)*(1 + scale2) + shift2
        return h + gate2*self.mlp(a)


# %%NBQA-CELL-SEP15d533
#| export
def sin_cos(width: int, side: int) -> Tensor:  # [side*side width]
    "The place of each patch: waves across, then waves down. Eq. 66.2."
    if width % 4:
        raise Problem(f'A width of {width} does not split into four kinds of waves: '
                      'choose a multiple of 4.')
    k = torch.arange(width//4, dtype=torch.float64)
    speed = 10_000**(-4*k/width)
    angle = torch.arange(side, dtype=torch.float64)[:, None]*speed  # [side width/4]
    waves = torch.cat([angle.sin(), angle.cos()], 1)  # [side width/2]

    across = waves[None].expand(side, -1, -1)
    down = waves[:, None].expand(-1, side, -1)
    return torch.cat([across, down], 2).reshape(side*side, width).float()


# %%NBQA-CELL-SEP15d533
# Eq. 66.2: products of places depend on the offset alone
e = sin_cos(64, 6).double().reshape(6, 6, 64)
product = torch.einsum('abk,cdk->abcd', e, e)
k = torch.arange(16, dtype=D)
i = torch.arange(6, dtype=D)
cosines = torch.cos((i[:, None] - i)[..., None]*10_000**(-4*k/64)).sum(-1)  # [6 6]
wanted = cosines[:, None, :, None] + cosines[None, :, None, :]
passed('(66.2) products of places depend on their offset alone', close(product, wanted, 1e-5),
       by='cosines of offsets')
w = 10_000**(-4*k/64)
waves = torch.cat([(5*w).sin(), (5*w).cos(), (2*w).sin(), (2*w).cos()])
passed('(66.2) row 2, column 5', close(e[2, 5], waves, 1e-6), by='the formula')


# %%NBQA-CELL-SEP15d533
#| export
def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # [b l d], [b d], [b d]
    "Tokens scaled and shifted by the condition. Eq. 66.4."
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


def _gelu_tanh(x: Tensor) -> Tensor:
    "GELU by a hyperbolic tangent, as DiT was trained."
    return F.gelu(x, approximate='tanh')


class DiTBlock(nn.Module):
    "A transformer block that the condition scales, shifts and gates. Eq. 66.4."

    def __init__(self, width: int, heads: int, tokens: int = 0,
                 act: Callable[[Tensor], Tensor] = _gelu_tanh):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, heads, tokens)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.inner = nn.Linear(width, 4*width)
        self.outer = nn.Linear(4*width, width)
        self.ada = zero(nn.Linear(width, 6*width))
        self.act = act

    def forward(self, h: Tensor, c: Tensor, words: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c).chunk(6, 1)

        # each patch learns from the others, and from the words
        a = self.attn(modulate(self.norm1(h), shift1, scale1), context=words)
        h = torch.addcmul(h, gate1[:, None], a)

        # a small network for each patch alone
        f = self.act(self.inner(modulate(self.norm2(h), shift2, scale2)))
        return torch.addcmul(h, gate2[:, None], self.outer(f))


# %%NBQA-CELL-SEP15d533
# Eq. 66.3: LayerNorm removes mean and size
# Eq. 66.4: the block against the plain one; at the start it is the identity
torch.manual_seed(0)
h = torch.randn(3, 7, 32, dtype=D)
c = torch.randn(3, 32, dtype=D)
norm = nn.LayerNorm(32, eps=1e-6, elementwise_affine=False)
formula = (h - h.mean(-1, keepdim=True))/(h.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
passed('(66.3) LayerNorm by its formula', close(norm(h), formula))
passed('(66.3) it does not see scale and shift', close(norm(5*h + 2), norm(h), 1e-5))

ours, plain = DiTBlock(32, 4).double(), PlainBlock(32, 4).double()
passed('(66.4) every block starts as the identity', close(ours(h, c), h, 0))
with torch.no_grad():
    for p in ours.parameters():
        p.normal_(std=.2)
    plain.attn.in_proj_weight.copy_(ours.attn.qkv.weight)
    plain.attn.in_proj_bias.copy_(ours.attn.qkv.bias)
    for a, b in ((plain.attn.out_proj, ours.attn.out), (plain.mlp[0], ours.inner),
                 (plain.mlp[2], ours.outer), (plain.ada, ours.ada)):
        a.load_state_dict(b.state_dict())
passed('(66.4) the block = plain PyTorch', close(ours(h, c), plain(h, c)),
       by="torch's own attention")


# %%NBQA-CELL-SEP15d533
#| export
class DiT(nn.Module):
    "From a picture or latent at time t, a prediction of the same side. Eq. 66.1-66.5."

    def __init__(self, channels_in: int, channels_out: int,
                 width: int, depth: int, heads: int,
                 side: int,         # of the picture
                 patch: int = 2,    # side of a patch
                 classes: int = 0,  # labels it can be conditioned on
                 tokens: int = 0,   # width of the caption's tokens
                 act: Callable[[Tensor], Tensor] = _gelu_tanh):
        super().__init__()
        if not (side > 0 and patch > 0) or side % patch:
            raise Problem(f'A side of {side} does not divide into patches of {patch}.')

        # by the names that check_given reads, as of a U-Net
        self.channels_in = channels_in
        self.side = side
        self.factor = patch
        self.emb = width
        self.tokens = tokens
        self.classes = classes

        # patches as tokens, and where each of them lies
        self.first = nn.Conv2d(channels_in, width, patch, stride=patch)
        self.places = nn.Parameter(sin_cos(width, side//patch), requires_grad=False)

        # the condition: time and label
        self.time = TimeEmbedding(256, width)
        # one more row for 'no label'
        self.label = nn.Embedding(classes + 1, width) if classes else None

        blocks = [DiTBlock(width, heads, tokens, act) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)

        # tokens back to patches
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ada = zero(nn.Linear(width, 2*width))
        self.last = zero(nn.Linear(width, patch**2*channels_out))
        _start_dit(self)

    def condition(self, t: Tensor, dtype: torch.dtype, label, emb) -> Tensor:  # [b d]
        "Time, label and whatever else is known, as one vector."
        c = self.time(t, dtype)
        if self.label is not None:
            none = torch.full_like(t, self.classes, dtype=torch.long)
            label = none if label is None else torch.where(label < 0, none, label)
            c = c + self.label(label)
        return F.silu(c if emb is None else c + emb)

    def forward(self, x: Tensor,                  # [b c side side]
                t: Tensor,                        # [b] or []
                label: Tensor | None = None,      # [b], below 0: none
                emb: Tensor | None = None,        # [b width], a caption as one vector
                tokens: Tensor | None = None,     # [b m d'], and as tokens
                ) -> Tensor:                      # [b c' side side]
        t, label = check_given(self, x, t, label, emb, tokens)
        if x.shape[2:] != (self.side, self.side):
            raise Problem(f'This transformer knows places for {self.side} x {self.side}, '
                          f'not for {x.shape[2]} x {x.shape[3]}.')
        c = self.condition(t, x.dtype, label, emb)

        # patches to tokens, and through the blocks
        h = self.first(x).flatten(2).mT + self.places
        for block in self.blocks:
            h = block(h, c, tokens)

        # tokens to patches: row, column and channel of a patch, as the authors order them
        shift, scale = self.ada(c).chunk(2, 1)
        y = self.last(modulate(self.norm(h), shift, scale))
        n = self.side//self.factor
        p = self.factor
        y = y.unflatten(2, (p, p, -1)).unflatten(1, (n, n))  # [b rows columns p p c']
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).to(x.dtype)


# %%NBQA-CELL-SEP15d533
#| export
@torch.no_grad()
def _start_dit(net: DiT):
    "First weights as published; what starts at zero stays there."
    for m in net.modules():
        if isinstance(m, nn.Linear) and not hasattr(m, 'starts_at_zero'):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)

    # the patches, as the linear layer that they are
    nn.init.xavier_uniform_(net.first.weight.flatten(1))
    nn.init.zeros_(net.first.bias)

    # the condition: time and label
    layers = [net.time.inner, net.time.outer]
    if net.label is not None:
        layers.append(net.label)
    for layer in layers:
        nn.init.normal_(layer.weight, std=.02)


# %%NBQA-CELL-SEP15d533
# Eq. 66.5: one softmax over caption and patches, by hand; a caption of no weight changes nothing
torch.manual_seed(0)
attn = SelfAttention(32, 4, tokens=12).double()
words = torch.randn(3, 5, 12, dtype=D)
q, k, val = attn.qkv(h).chunk(3, -1)
k2, v2 = attn.kv(words).chunk(2, -1)


def heads(y):
    return y.unflatten(-1, (4, 8)).transpose(1, 2)


fit_ = heads(q) @ heads(torch.cat([k2, k], 1)).mT/math.sqrt(8)
mixed = (fit_.softmax(-1) @ heads(torch.cat([v2, val], 1))).transpose(1, 2).flatten(2)
passed('(66.5) one softmax over caption and patches',
       close(attn(h, context=words), attn.out(mixed)))
order = torch.tensor([3, 0, 4, 1, 2])
passed('(66.5) the order of keys does not matter: the encoder of the caption must tell it',
       close(attn(h, context=words[:, order]), attn(h, context=words)))

# Eq. 66.1, 66.4: a fresh network predicts zero; where each number of the output comes from
net = DiT(3, 3, 32, 2, 4, side=8, classes=5).double()
v = torch.randn(2, 3, 8, 8, dtype=D)
t = torch.tensor([3., 900.])
passed('(66.4) a fresh network predicts exactly zero', close(net(v, t), 0., 0))
with torch.no_grad():
    for p in net.parameters():
        p.normal_(std=.3)
label = torch.tensor([2, -1])
y = net(v, t, label)
passed('a negative label means none', close(y[1:], net(v[1:], t[1:])),
       close(y[:1], net(v[:1], t[:1], label[:1])))
assert (net(v, t, torch.tensor([2, 3])) - y)[1].abs().max() > .01


# %%NBQA-CELL-SEP15d533
# Eq. 66.8: the cost of caption tokens, read only and updated, by torch's counter; the plain patches
def products_of(block, *given):
    with FlopCounterMode(display=False) as counter:
        block(*given)
    return counter.get_total_flops()//2


l, m, d, d2 = 16, 24, 320, 192
with torch.device('meta'):
    alone, reading = DiTBlock(d, 5), DiTBlock(d, 5, tokens=d2)
    c1, h1, words1 = torch.empty(1, d), torch.empty(1, l, d), torch.empty(1, m, d2)
    longer = torch.empty(1, l + m, d)
base = products_of(alone, h1, c1)
read_only = products_of(reading, h1, c1, words1) - base
updated = products_of(alone, longer, c1) - base
assert read_only == m*(2*d*d2 + 2*l*d) and updated == m*(12*d*d + 4*l*d + 2*m*d)
assert (4*l*d + 2*m*d)/(2*l*d) == 3.5
passed(f'(66.8) {read_only/m:,.0f} products a token that is read, {updated/m:,.0f} if updated',
       by="torch's counter")

x8 = torch.randn(2, 3, 8, 8, dtype=D)
passed('plain patches, there and back', close(from_patches(to_patches(x8, 2), 8, 2), x8),
       close(to_patches(x8, 2)[:, 5], x8[:, :, 2:4, 2:4].flatten(1)), by='row 1, column 1')


# %%NBQA-CELL-SEP15d533
# Eq. 66.1-66.5: a block with a caption, and a whole network, against the formulas written out
def by_formula(block, h, c, words):
    "A block of 32 channels and 4 heads. Eq. 66.4, 66.5."
    six = (c @ block.ada.weight.T + block.ada.bias)[:, None]
    shift1, scale1, g1, shift2, scale2, g2 = six.split(32, -1)
    a = F.layer_norm(h, (32,), eps=1e-6)*(1 + scale1) + shift1
    q, k, val = (a @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(32, -1)
    k2, v2 = (words @ block.attn.kv.weight.T + block.attn.kv.bias).split(32, -1)
    fit_ = heads(q) @ heads(torch.cat([k2, k], 1)).mT/math.sqrt(8)
    mixed = (fit_.softmax(-1) @ heads(torch.cat([v2, val], 1))).transpose(1, 2).flatten(2)
    h = h + g1*(mixed @ block.attn.out.weight.T + block.attn.out.bias)
    f = F.layer_norm(h, (32,), eps=1e-6)*(1 + scale2) + shift2
    f = F.gelu(f @ block.inner.weight.T + block.inner.bias, approximate='tanh')
    return h + g2*(f @ block.outer.weight.T + block.outer.bias)


torch.manual_seed(0)
net = DiT(3, 5, 32, 2, 4, side=8, classes=5, tokens=12).double()
with torch.no_grad():
    for p in net.parameters():
        p.normal_(std=.3)
v = torch.randn(2, 3, 8, 8, dtype=D)
t = torch.tensor([3., 900.])
emb = torch.randn(2, 32, dtype=D)
words6 = torch.randn(2, 6, 12, dtype=D)
errors = []
for label, row in ((torch.tensor([2, -1]), [2, 5]), (None, [5, 5])):
    # the condition: waves of the time through two layers, the label's row, the caption's vector
    angle = t.double()[:, None]*10_000**(-torch.arange(128, dtype=D)/128)
    c = net.time.inner(torch.cat([angle.cos(), angle.sin()], 1))
    c = F.silu(net.time.outer(F.silu(c)) + net.label.weight[row] + emb)

    # patches, blocks, and back
    h = F.unfold(v, 2, stride=2).mT @ net.first.weight.flatten(1).T + net.first.bias + net.places
    for block in net.blocks:
        h = by_formula(block, h, c, words6)
    shift, scale = (c @ net.ada.weight.T + net.ada.bias)[:, None].split(32, -1)
    y = F.layer_norm(h, (32,), eps=1e-6)*(1 + scale) + shift
    y = (y @ net.last.weight.T + net.last.bias).reshape(2, 16, 4, 5)
    y = F.fold(y.permute(0, 3, 2, 1).reshape(2, 20, 16), (8, 8), 2, stride=2)
    errors.append(close(net(v, t, label, emb, words6), y))
passed('(66.1-66.5) the whole network, with label, vector and caption', *errors, by='written out')

coarse = DiT(3, 5, 32, 1, 4, side=12, patch=3)
assert coarse(torch.zeros(1, 3, 12, 12), torch.zeros(1)).shape == (1, 5, 12, 12)


# %%NBQA-CELL-SEP15d533
# Eq. 66.1: the way back puts each patch where it came from, in the authors' order: a network whose
# last layer copies tokens that hold the pixels themselves gives the picture back
torch.manual_seed(0)
copy = DiT(3, 3, 12, 0, 1, side=8).double()
with torch.no_grad():
    copy.places.zero_()
    copy.first.bias.zero_()
    copy.first.weight.copy_(torch.eye(12).reshape(12, 3, 2, 2))  # channel, row, column
    order = torch.arange(12).reshape(3, 2, 2).permute(1, 2, 0).flatten()  # row, column, channel
    copy.last.weight.copy_(torch.eye(12)[order])
copy.norm = nn.Identity()
passed('(66.1) patches return to their places', close(copy(v, t), v))


# %%NBQA-CELL-SEP15d533
def published(size: str, patch: int = 2) -> DiT:
    "A published DiT for latents of 32 x 32 x 4, on the meta device."
    width, depth, heads = dict(S=(384, 12, 6), B=(768, 12, 12), L=(1024, 24, 16),
                               XL=(1152, 28, 16))[size]
    with torch.device('meta'):
        # eight channels of output: four for the noise, four for its variance
        return DiT(4, 8, width, depth, heads, side=32, patch=patch, classes=1000)


# %%NBQA-CELL-SEP15d533
# Eq. 66.6, 66.7: against the tensors themselves, torch's counter, and the paper's table 1 and 4
def parameters(d, N, k=1000, p=2, side=32):
    inside = N*(18*d*d + 15*d)
    p_in, p_out, l = 4*p**2, 8*p**2, (side//p)**2
    outside = (p_in + 1)*d + 257*d + d*d + d + (k + 1)*d + 2*d*d + 2*d + (d + 1)*p_out
    return inside + outside + l*d


paper = {('S', 2): (33, 6.06), ('B', 2): (130, 23.01), ('L', 2): (458, 80.71),
         ('XL', 2): (675, 118.64), ('XL', 8): (None, 7.39)}  # millions, Gflops
errors = []
shares = []
work = {}
for (size, p), (millions, gflops) in paper.items():
    net = published(size, p)
    own = sum(w.numel() for w in net.parameters())
    d = net.emb
    N = len(net.blocks)
    l = (32//p)**2
    assert own == parameters(d, N, p=p), (size, own)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 4, 32, 32, device='meta'), torch.empty(1, device='meta'),
            torch.empty(1, dtype=torch.long, device='meta'))
    products = counter.get_total_flops()/2
    by_formula = N*(12*l*d*d + 2*l**2*d + 6*d*d)
    errors.append(close(by_formula/products, 1., .0015 if p == 2 else .005))
    assert abs(products/1e9/gflops - 1) < .02, (size, products)
    assert millions is None or abs(own/1e6 - millions) < 1, (size, own)
    published_too = f' (paper: {millions} million)' if millions else ''
    print(f'DiT-{size}/{p}: {own:,} parameters{published_too}, '
          f'{products/1e9:.1f} billion products (paper: {gflops})')
    work[size, p] = products
    if p == 2:
        shares.append(6*N*d*d/products)
passed('(66.6) parameters, to the last one', by='the tensors')
passed('(66.7) products, within .15 % at l = 256, .5 % at 16', *errors, by="torch's counter")
assert all(.0015 < share < .0025 for share in shares)
print(f'of which the conditioning of the blocks: {100*min(shares):.2f} to {100*max(shares):.2f} %')
print(f"DiT-XL/2 against DiT-XL/8: {work['XL', 2]/work['XL', 8]:.1f} times the products")


# %%NBQA-CELL-SEP15d533
# Figure 66.3: published distances (Peebles & Xie 2023, table 4) against products counted by (66.7)
published_fid = {'S': (153.60, 100.41, 68.40), 'B': (122.74, 68.38, 43.47),
                 'L': (118.87, 45.64, 23.33), 'XL': (106.41, 43.01, 19.47)}
shape = dict(S=(384, 12), B=(768, 12), L=(1024, 24), XL=(1152, 28))
fig, ax = plt.subplots(figsize=(7, 2.6), layout='constrained', dpi=160)
points = []
for (size, fids), grey in zip(published_fid.items(), ('.65', '.45', '.25', 'C0')):
    d, N = shape[size]
    gflops = [N*(12*l*d*d + 2*l**2*d + 6*d*d)/1e9 for l in (16, 64, 256)]
    points += list(zip(gflops, fids))
    ax.plot(gflops, fids, 'o-', color=grey, markersize=4, linewidth=1)
    if size != 'XL':
        ax.annotate(f'DiT-{size}', (gflops[0], fids[0]), xytext=(-6, 4), ha='right',
                    textcoords='offset points', color=grey)
for p, at, fid in zip((8, 4, 2), gflops, fids):
    ax.annotate(f'DiT-XL, patches of {p} × {p}', (at, fid), xytext=(6, 6), color='C0',
                textcoords='offset points', fontsize=8)
ax.set(xscale='log', xlabel='billions of products', ylabel='Fréchet inception distance',
       ylim=(0, 170), xlim=(.15, 900))
places_in = torch.tensor(points).T.argsort(1).argsort(1).float()
rank = torch.corrcoef(places_in)
print(f'rank correlation of work and distance: {rank[0, 1]:.2f}')
assert rank[0, 1] < -.9
assert min(fid for work, fid in points if 5 < work < 6.2) < 69


# %%NBQA-CELL-SEP15d533
# Measured: the size and direction of the tokens after each of 28 blocks, gates 0 or 1
@torch.no_grad()
def passage(gate, seed, depth=28, width=128):
    "Block by block: root mean square of the tokens, cosine with the first ones, the tokens."
    torch.manual_seed(seed)
    net = DiT(3, 3, width, depth, 4, side=8).double()
    for block in net.blocks:
        for part in (2, 5):  # the two gates of (66.4)
            block.ada.bias.view(6, width)[part] = gate
    start = net.first(torch.randn(2, 3, 8, 8, dtype=D)).flatten(2).mT + net.places
    c = torch.randn(2, width, dtype=D)
    states = [start]
    for block in net.blocks:
        states.append(block(states[-1], c))
    size = torch.stack([h.square().mean().sqrt() for h in states])
    cosine = torch.stack([F.cosine_similarity(start, h, dim=-1).mean() for h in states])
    return size, cosine, states


runs = {gate: [passage(gate, seed) for seed in range(8)] for gate in (0, 1)}


# %%NBQA-CELL-SEP15d533
# Eq. 66.4: gates at 0 change nothing; gates at 1 let the tokens grow and turn, at every depth
for *_, states in runs[0]:
    for h in states:
        close(h, states[0], 0)
size, cosine = (torch.stack([r[k] for r in runs[1]]) for k in (0, 1))
later = size[:, -1]/size[:, 1]
twice = (size[:, 28]/size[:, 14]).mean()
assert abs(twice - 2**.5) < .1, twice
turning = cosine[:, 1] - cosine[:, -1]
assert later.mean() - 2*later.std() > 3 and turning.mean() - 2*turning.std() > .2
for k in (0, 1, 14, 28):
    print(f'gates 1, after {k:2} blocks: size {size[:, k].mean():.2f} ± {size[:, k].std():.2f}, '
          f'cosine {cosine[:, k].mean():.2f} ± {cosine[:, k].std():.2f}')


# %%NBQA-CELL-SEP15d533
net = DiT(3, 3, 32, 1, 4, side=8)
with expect_fail('knows places for 8 x 8', Problem):
    net(torch.zeros(1, 3, 16, 16), torch.zeros(1))
with expect_fail('does not divide into patches', Problem):
    DiT(3, 3, 32, 1, 4, side=9)
with expect_fail('knows no labels', Problem):
    net(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.tensor([3]))
with expect_fail('multiple of 4', Problem):
    sin_cos(30, 4)


# %%NBQA-CELL-SEP15d533
# one order read in the other, on independent random numbers: the same numbers, in the wrong places
y = F.pixel_shuffle(F.unfold(v, 2, stride=2).unflatten(1, (3, 2, 2)).permute(0, 2, 3, 1, 4)
                    .flatten(1, 3).unflatten(2, (4, 4)), 2)
wrong = (y - v).square().mean().item()
assert wrong > .5*v.square().mean().item()
zeros = v.square().mean().item()
print(f'random numbers: squared error of the wrong order {wrong:.2f}, of zeros {zeros:.2f}')


# %%NBQA-CELL-SEP15d533
# Question 1: without places, exchanged patches give an exchanged output
torch.manual_seed(0)
net = DiT(3, 3, 32, 2, 4, side=8).double()
with torch.no_grad():
    for p in net.parameters():
        p.normal_(std=.3)
turned = v.roll(2, 3)  # a patch further to the right
moved = (net(turned, t) - net(v, t).roll(2, 3)).abs().max().item()
net.places.data.zero_()
passed('question 1: without places patches are exchangeable',
       close(net(turned, t), net(v, t).roll(2, 3)))
assert moved > .01

# Question 2: at the first step only the last layer has a gradient
net = DiT(3, 3, 32, 2, 4, side=8)
(net(v.float(), t) - 1).square().mean().backward()
alive = {name for name, p in net.named_parameters()
         if p.grad is not None and p.grad.abs().max() > 0}
assert alive == {'last.weight', 'last.bias'}, alive
passed('question 2: only the last layer has a gradient at the first step')


# %%NBQA-CELL-SEP15d533
#| eval: false
guess = ...
d, N, l = 1152, 28, 256
products = [N*(12*n*d*d + 2*n*n*d + 6*d*d) for n in (l, 4*l)]
close(products[1]/products[0], guess, guess/10)


# %%NBQA-CELL-SEP15d533
#| eval: false
equal = ...  # a function of d
close(2*equal(384)**2*384, 12*equal(384)*384**2)


# %%NBQA-CELL-SEP15d533
#| eval: false
registers = nn.Parameter(torch.randn(1, 4, 16))
added = ...
plain = DiTBlock(32, 4)
with_registers = DiTBlock(32, 4, tokens=16)
before = sum(p.numel() for p in plain.parameters())
after = sum(p.numel() for p in with_registers.parameters())
assert after - before == added
with_registers(torch.randn(2, 9, 32), torch.randn(2, 32),
               registers.expand(2, -1, -1)).shape


# %%NBQA-CELL-SEP15d533
# solution 1: four times as many patches: the linear layers grow by 4, attention by 16
guess = 4.4
d, N, l = 1152, 28, 256
products = [N*(12*n*d*d + 2*n*n*d + 6*d*d) for n in (l, 4*l)]
close(products[1]/products[0], guess, guess/10)


# %%NBQA-CELL-SEP15d533
# solution 2: l = 6 d
def equal(d):
    return 6*d


close(2*equal(384)**2*384, 12*equal(384)*384**2)


# %%NBQA-CELL-SEP15d533
# solution 3: in a block only the projection to keys and values; the registers themselves
# are shared by all blocks
registers = nn.Parameter(torch.randn(1, 4, 16))
added = (16 + 1)*2*32
plain = DiTBlock(32, 4)
with_registers = DiTBlock(32, 4, tokens=16)
before = sum(p.numel() for p in plain.parameters())
after = sum(p.numel() for p in with_registers.parameters())
assert after - before == added
with_registers(torch.randn(2, 9, 32), torch.randn(2, 32), registers.expand(2, -1, -1)).shape
