# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.masked


# %%NBQA-CELL-SEP7dc948
# Figure 95.1: a caption appears out of masks; what the network expects at one place
import matplotlib.pyplot as plt
import torch
from ddpm_lit.core.check import setup
from ddpm_lit.diffusion import masked as library  # the first cells use what later ones build
from ddpm_lit.systems import write as writing

setup()
hero_writer = writing.open_writer()
torch.manual_seed(36)
blank = torch.full((1, hero_writer.length), hero_writer.mask)
hero_states = [blank, *library.unmask(hero_writer, blank, hero_writer.length, library.at_random)]
shown_states = hero_states[::2] + hero_states[-1:]
caption = hero_states[-1][0]
n_words = int((caption > 0).sum())
target = 1
written = next(i for i, x in enumerate(shown_states) if x[0, target] != hero_writer.mask)

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.), layout='constrained', dpi=160,
                                  width_ratios=(3.1, 1))
before = blank
for row, x in enumerate(shown_states):
    for i in range(n_words):
        masked = x[0, i] == hero_writer.mask
        new = not masked and before[0, i] == hero_writer.mask
        ink = '.82' if masked else ('#cfe3f5' if new else 'white')
        left.add_patch(plt.Rectangle((i + .04, row + .1), .92, .8, facecolor=ink, lw=0))
        if not masked:
            left.text(i + .5, row + .5, hero_writer.words[x[0, i]], ha='center', va='center',
                      fontsize=6.5)
    before = x
left.add_patch(plt.Rectangle((target, 0), 1, written, fill=False, color='tab:blue', lw=1.))
left.set(xlim=(0, n_words), ylim=(len(shown_states), 0), xticks=[],
         yticks=[row + .5 for row in range(len(shown_states))])
left.set_yticklabels([2*row for row in range(len(shown_states) - 1)] + [hero_writer.length])
left.set_ylabel('calls of the network')
left.tick_params(length=0)
left.spines[:].set_visible(False)
with torch.no_grad():
    for row, x in enumerate(shown_states[:written]):
        p = hero_writer(x)[0, target].softmax(-1)
        start = 0.
        for k in p.argsort(descending=True)[:12].tolist():
            shade = .95 - .5*min(1., p[k].item())
            right.barh(row + .5, p[k], left=start, height=.8, color=str(shade), edgecolor='white',
                       lw=.4)
            if p[k] > .5:
                right.text(start + p[k].item()/2, row + .5, hero_writer.words[k], ha='center',
                           va='center', fontsize=6.5)
            start += p[k].item()
        if p.max() < .5:
            right.text(.5, row + .5, f'{int((p > .02).sum())} words', ha='center', va='center',
                       fontsize=6.5)
right.set(xlim=(0, 1), ylim=(len(shown_states), 0), xticks=[0, 1], yticks=[])
right.set_title('chances at the framed place', color='tab:blue', fontsize=8)
right.spines[:].set_visible(False)


# %%NBQA-CELL-SEP7dc948
import torch
from torch.nn import functional as F


def loss(net, x, mask):  # x [b l]; a bound on nats a row
    k = torch.randint(1, x.shape[1] + 1, (len(x), 1), device=x.device)
    masked = torch.rand(x.shape, device=x.device).argsort(1).argsort(1) < k
    nats = F.cross_entropy(net(x.masked_fill(masked, mask)).mT, x, reduction='none')
    return (x.shape[1]/k*nats*masked).sum(1).mean()


@torch.no_grad()
def sample(net, x, mask, steps):  # x [b l]: masks, and words that stay
    for left in range(steps, 0, -1):
        p = net(x).double().softmax(-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1).view_as(x)
        now = (x == mask) & (torch.rand(x.shape, device=x.device) < 1/left)
        x = torch.where(now, drawn, x)
    return x


# %%NBQA-CELL-SEP7dc948
#| export
from typing import Callable, Iterator
import torch
from torch import Tensor
from torch.nn import functional as F
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP7dc948
#| export systems.write
import json
import re
from difflib import get_close_matches
from typing import Any, Iterable, Iterator, Sequence
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from ddpm_lit.core.files import data_dir, read_text
from ddpm_lit.core.problem import Problem, counted
from ddpm_lit.core.tensors import load_strictly, read_tensors, write_tensors
from ddpm_lit.data.captions import every_scene
from ddpm_lit.diffusion.masked import masked_nats, unmask, at_random, surest_place
from ddpm_lit.nets.transformer import Transformer, gelu


# %%NBQA-CELL-SEP7dc948
#| export cli.write
import click
from ddpm_lit.cli.base import Bar, Command, Count, Range, emit, note, options


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, four random bits with their exact denoiser
import itertools
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
from ddpm_lit.cli.base import COMMANDS, Terminal, command
from ddpm_lit.core.check import close, expect_fail, keep_measurement, measurement, passed
from ddpm_lit.data.captions import _WORDINGS, COLOURS, GROUNDS, PLACES, SHAPES, read

D = torch.float64
BITS = 1/math.log(2)  # in a nat
MASK = 2
four = torch.tensor([*itertools.product((0, 1), repeat=4)])  # all rows of four bits
p = torch.from_numpy(np.random.default_rng(0).gamma(.6, size=16))
p = p/p.sum()
entropy = -(p*p.log()).sum()


def exact_of(rows, p, mask):
    "The exact denoiser of rows of bits [n l] with chances p [n]."
    def denoiser(x):
        fits = ((x[:, None] == mask) | (x[:, None] == rows)).all(2)*p
        total = fits.sum(1, keepdim=True).clamp(min=1e-99)
        one = (fits @ rows.double()/total).clamp(0, 1)
        return torch.stack([1 - one, one], -1).log()
    return denoiser


exact = exact_of(four, p, MASK)


# %%NBQA-CELL-SEP7dc948
# Figure 95.1: what is written is a caption, and after "an" the network is sure of "orange"
hero_text = hero_writer.decode(hero_states[-1])[0]
assert len(read(hero_text).things) == 2
with torch.no_grad():
    sure = {hero_writer.words[k]: v for k, v in enumerate(
        hero_writer(shown_states[7])[0, target].softmax(-1).tolist())}
    unsure = hero_writer(shown_states[6])[0, target].softmax(-1).max().item()
assert sure['orange'] > .98 and unsure < .25
passed(f'Figure 95.1: "{hero_text}" is read; "orange" {sure["orange"]:.1%} once "an" is there')


# %%NBQA-CELL-SEP7dc948
# Set-up: the grammar of the captions as a weighted automaton, whose conditionals are exact
class Grammar:
    "The exact denoiser of `scene_captions`: -log p(x), and p(x_i | the rest), by two sweeps."

    def __init__(self, words):
        self.number = {w: i for i, w in enumerate(words)}
        self.mask = len(words)
        self.edges = []  # from, word, chance, to
        self.nodes = 1   # node 0 is the end
        self.edge(0, '<end>', 1., 0)
        start = {}
        for things, sized in itertools.product((1, 2), (True, False)):
            a, b = self.node(), self.node()
            start[a] = (.7 if sized else .3)/2
            self.thing(a, b, sized)
            if things == 1:
                middle = dict.fromkeys(PLACES, .8/9)
            else:
                ways = [w for plain in ('left of', 'right of', 'above', 'below')
                        for w in _WORDINGS[plain]]
                middle = {'and': .2} | dict.fromkeys(ways, .1)
            c = self.node()
            for text, chance in middle.items():
                self.phrase(b, text, chance, c)
            if things == 1:
                self.ground(b, .2)
            else:
                d = self.node()
                self.thing(c, d, sized)
                c = d
            self.ground(c, 1.)
        self.first = torch.zeros(self.nodes, dtype=D)
        for a, chance in start.items():
            self.first[a] = chance
        a, w, p, b = zip(*self.edges)
        self.a, self.w, self.b = map(torch.tensor, (a, w, b))
        self.p = torch.tensor(p, dtype=D)

    def node(self):
        self.nodes += 1
        return self.nodes - 1

    def edge(self, a, word, chance, b):
        self.edges.append((a, self.number[word], chance, b))

    def phrase(self, a, text, chance, b):
        *words, final = text.split()
        for word in words:
            c = self.node()
            self.edge(a, word, chance, c)
            a, chance = c, 1.
        self.edge(a, final, chance, b)

    def thing(self, a, b, sized):
        noun = self.node()
        for shape in SHAPES:
            self.edge(noun, shape, 1/5, b)
        if sized:
            for size, colour in itertools.product(('small', 'little', 'large', 'big'), COLOURS):
                self.phrase(a, f'a {size} {colour}', 1/24, noun)
        for colour in () if sized else COLOURS:
            self.phrase(a, f'{"an" if colour == "orange" else "a"} {colour}', 1/6, noun)

    def ground(self, a, chance):
        self.edge(a, '<end>', .4*chance, 0)
        for g in GROUNDS:
            for text in _WORDINGS[f'on {g}']:
                self.phrase(a, f'{text} <end>', .1*chance, 0)

    def sweep(self, x):
        "What each edge may carry at each place, and what reaches each node."
        open_ = ((x[..., None] == self.w) | (x[..., None] == self.mask))*self.p
        reached = [self.first.expand(len(x), -1)]
        for i in range(x.shape[1]):
            flow = reached[-1][:, self.a]*open_[:, i]
            reached.append(torch.zeros_like(reached[0]).index_add(1, self.b, flow))
        return open_, reached

    def nats(self, x):
        "-log p of whole captions."
        return -self.sweep(x)[1][-1][:, 0].log()

    def __call__(self, x):  # ids [b l] -> log p(x_i | the rest) [b l v]
        open_, reached = self.sweep(x)
        back = torch.zeros_like(reached[0])
        back[:, 0] = 1.
        found = []
        for i in reversed(range(x.shape[1])):
            flow = reached[i][:, self.a]*self.p*back[:, self.b]
            found.append(torch.zeros(len(x), self.mask, dtype=D).index_add(1, self.w, flow))
            flow = open_[:, i]*back[:, self.b]
            back = torch.zeros_like(back).index_add(1, self.a, flow)
        p = torch.stack(found[::-1], 1)
        total = p.sum(-1, keepdim=True)
        # what is impossible already goes on anyhow
        return torch.where(total > 0, p/total, 1/self.mask).log()


def h(*chances):
    "Entropy in bits."
    return -sum(p*math.log2(p) for p in chances)


frame_bits = (1 + h(.7, .3) + h(.4, *[.1]*6)
              + h(.2, *[.8/9]*9)/2 + h(.2, *[.1]*8)/2)  # the caption without what its things are
caption_bits = frame_bits + 1.5*math.log2(30) + .7*1.5*2  # colours and shapes, words for sizes


# %%NBQA-CELL-SEP7dc948
# The grammar: captions of the library cost their entropy; the sum over one order is -log p
caption_writer = writing.open_writer()
grammar = Grammar(caption_writer.words)
said = caption_writer.encode(writing.scene_captions(3000, seed=11))
costs = grammar.nats(said)
passed('captions cost their entropy, within 5 standard errors',
       close(costs.mean()*BITS, caption_bits, 5*costs.std().item()*BITS/3000**.5),
       by='3,000 captions as the library says them')
torch.manual_seed(0)
shuffled = torch.rand(said[:40].shape).argsort(1)
passed('their exact chances in any order multiply to p',
       close(library.order_nats(grammar, said[:40], shuffled, grammar.mask), costs[:40]),
       by='a sweep from left to right')
print(f'{caption_bits:.4f} bits a caption')


# %%NBQA-CELL-SEP7dc948
# The plain loss and sampler against the library's, with the same draws
x0 = four[torch.multinomial(p, 500, replacement=True)]
torch.manual_seed(0)
plain_loss = loss(exact, x0, MASK)
torch.manual_seed(0)
count = torch.randint(1, 5, (500, 1))
ours = library.masked_nats(lambda x: exact(x), x0, count[:, 0], MASK)
same_places = library._first(-torch.arange(4.).expand(2, 4), torch.tensor([1, 3]))
assert same_places.sum(1).tolist() == [1, 3]
torch.manual_seed(0)
every = library.masked_nats(exact, x0, torch.full((500,), 4), MASK)
everything = loss(lambda x: exact(torch.full_like(x, MASK)), x0, MASK)
torch.manual_seed(0)
begin = torch.full((500, 4), MASK)
plain_end = sample(exact, begin, MASK, 6)
torch.manual_seed(0)
*_, end = library.unmask(exact, begin, 6)
spread = ours.std().item()
passed('plain loss = library, within 5 standard errors', close(plain_loss, ours.mean(),
       5*2**.5*spread/500**.5), by='500 rows')
passed('plain sampler = library', close(plain_end, end, 0), by='6 steps, the same draws')


# %%NBQA-CELL-SEP7dc948
#| export
def mask_tokens(x0: Tensor,     # [b l] ids
                share: Tensor,  # of masks, broadcasting to [b l]
                mask: int) -> Tensor:
    "q(x_t | x0): each token alone becomes a mask with this chance. Eq. 95.1 (D3PM)."
    chance = torch.rand(x0.shape, device=x0.device)
    return torch.where(chance < share, mask, x0)


def reveal_chance(share_s: float, share_t: float,  # of masks; s is the cleaner level
                  again: float = 0.) -> float:     # the chance of a new mask
    "The chance that a mask is taken away between t and s. Eq. 95.2, 95.11."
    if not 0 <= share_s < share_t <= 1:
        raise Problem(f'The share of masks falls from t to s, not from {share_t} to '
                      f'{share_s}: give the smaller one as share_s.')
    kept = (1 - again)*(1 - share_t)
    return (1 - share_s - kept)/share_t


# %%NBQA-CELL-SEP7dc948
# Eq. 95.1, 95.2: one token, from the chain data -> s -> t by its 2 x 2 tables and Bayes' rule;
# shares of masks in 40,000 tokens
errors = []
for s, t in ((0., .4), (.2, .5), (.3, 1.), (.6, .7)):
    to_s = torch.tensor([[1 - s, s], [0, 1]], dtype=D)
    hidden = (t - s)/(1 - s)  # of those visible at s
    to_t = to_s @ torch.tensor([[1 - hidden, hidden], [0, 1]], dtype=D)
    errors.append(close(to_t[0, 1], t))
    errors.append(close(reveal_chance(s, t), to_s[0, 0]*hidden/to_t[0, 1]))
passed('(95.2) a mask is taken away', *errors, by="Bayes' rule on the chain")
torch.manual_seed(0)
share = torch.tensor([[.1], [.5], [.9]])
x_t = mask_tokens(torch.zeros(3, 40_000, dtype=torch.long), share, 7)
assert set(x_t.unique().tolist()) == {0, 7}
passed('(95.1) shares of masks, within 5 standard errors',
       close((x_t == 7).double().mean(1), share[:, 0].double(), 5*.5/40_000**.5))


# %%NBQA-CELL-SEP7dc948
#| export
# ids [b l] -> logits [b l v]; the id v is the mask, and nothing says how many there are
TokenDenoiser = Callable[[Tensor], Tensor]


def token_nats(denoiser: TokenDenoiser,
               x_t: Tensor,  # [b l] ids, some of them masks
               x0: Tensor) -> Tensor:  # [b l] ids -> [b l]
    "-log p(x0_i | what is not masked) at each mask, and 0 elsewhere. Eq. 95.3."
    logits = denoiser(x_t)
    log_p = logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0]
    return torch.where(x_t == logits.shape[-1], -log_p, 0.)


# %%NBQA-CELL-SEP7dc948
# Eq. 95.3: Bayes' rule over all rows of four bits, at three levels, for all 81 states
states = torch.tensor([*itertools.product((0, 1, MASK), repeat=4)])
errors = []
for m in (.1, .5, .9):
    like = torch.where(states[:, None] == MASK, m, (1 - m)*(states[:, None] == four)).prod(2)
    joint = like*p  # q(x_t | x0) p(x0)
    one = joint @ four.double()/joint.sum(1, keepdim=True)
    errors.append(close(exact(states).exp()[..., 1], one))
hidden = token_nats(exact, states[-1:].expand(16, 4), four)
alone = torch.where(four == 1, p @ four.double(), 1 - p @ four.double())
passed('(95.3) the same chances at every level', *errors, by="Bayes' rule, 81 states")
passed('(95.3) the cost at masks', close(hidden, -alone.log()), by='the chance of each bit')


# %%NBQA-CELL-SEP7dc948
#| export
def _first(score: Tensor, n: Tensor) -> Tensor:  # [b l], [b] -> [b l] bool
    "The n places of each row with the highest score."
    rank = score.argsort(1, descending=True).argsort(1)
    return rank < n[:, None]


def masked_nats(denoiser: TokenDenoiser,
                x0: Tensor,     # [b l] ids
                count: Tensor,  # [b] how many are masked; 1 to l, each alike
                mask: int) -> Tensor:  # [b]
    "The bound on -log p(x0) by one random set of masks a row. Eq. 95.6 (LLaDA)."
    l = x0.shape[1]
    if ((count < 1) | (count > l)).any():
        raise Problem(f'A row of {l} tokens has 1 to {l} masks: draw `count` from these.')
    masked = _first(torch.rand(x0.shape, device=x0.device), count)
    nats = token_nats(denoiser, torch.where(masked, mask, x0), x0)
    return l/count*nats.sum(1)


# %%NBQA-CELL-SEP7dc948
#| export
def order_nats(denoiser: TokenDenoiser,
               x0: Tensor,     # [b l] ids
               order: Tensor,  # [b l] the places of each row, the first written first
               mask: int,
               at_once: int = 1) -> Tensor:  # [b]
    "-log of the chance to write x0 in this order, some at once. Eq. 95.7, 95.9."
    turn = order.argsort(1) // at_once  # when a place is written
    nats = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for now in range(int(turn.max()) + 1):
        x_t = torch.where(turn >= now, mask, x0)
        cost = token_nats(denoiser, x_t, x0)
        nats += torch.where(turn == now, cost, 0.).sum(1)
    return nats


# %%NBQA-CELL-SEP7dc948
# Eq. 95.4-95.7 on four random bits, all sums over all rows, sets and orders
sets = [torch.tensor(s, dtype=torch.bool) for s in itertools.product((0, 1), repeat=4)]
cost = {}  # of a set of masks, in the mean
for s in sets:
    nats = token_nats(exact, torch.where(s, MASK, four), four).sum(1)
    cost[s] = int(s.sum()), (p*nats).sum().item()


def masked_cost(m):
    "E sum of -log p at the masks, for a share m of masks."
    return sum(m**k*(1 - m)**(4 - k)*c for k, c in cost.values())


nodes, weights = np.polynomial.legendre.leggauss(8)
nodes, weights = (nodes + 1)/2, weights/2  # exact for polynomials
integral = sum(w/m*masked_cost(m) for m, w in zip(nodes, weights))
by_count = sum(4/k*c/math.comb(4, k)/4 for k, c in cost.values() if k)
every_order = torch.tensor([*itertools.permutations(range(4))])
by_order = torch.stack([(p*order_nats(exact, four, o.expand(16, 4), MASK)).sum()
                        for o in every_order])
passed(f'(95.5) the integral is the entropy, {integral:.6f} nats', close(integral, entropy))
passed('(95.6) masks counted, each number alike', close(by_count, entropy))
passed('(95.7) each of 24 orders costs the entropy', close(by_order, entropy))


def chain_cost(T):
    "The right side of (95.4) for m = t/T."
    return sum(masked_cost(t/T)/t for t in range(1, T + 1))


for T in (1, 4, 16, 256):
    print(f'T = {T:3}: {chain_cost(T):.4f} nats')
halves = (chain_cost(256) - entropy)/(chain_cost(128) - entropy)
passed('(95.4) the excess of T levels falls like 1/T', close(halves, .5, .01))
passed('(95.4) one level: bits one by one', close(chain_cost(1), (p*hidden.sum(1)).sum()))

# a denoiser that errs: the three forms are still one number, and the estimate has it as its mean


def wrong(x):
    tilt = torch.where(x == MASK, .3, .1*x).cumsum(1)[..., None]*torch.tensor([1., -1.])
    return .6*exact(x).clamp(min=-9) + tilt


cost_wrong = {s: (int(s.sum()), (p*token_nats(wrong, torch.where(s, MASK, four), four).sum(1))
                  .sum().item()) for s in sets}
counted_wrong = sum(4/k*c/math.comb(4, k)/4 for k, c in cost_wrong.values() if k)
ordered = torch.stack([(p*order_nats(wrong, four, o.expand(16, 4), MASK)).sum()
                       for o in every_order])
torch.manual_seed(0)
x0 = four[torch.multinomial(p, 40_000, replacement=True)]
drawn_nats = masked_nats(wrong, x0, 1 + torch.arange(40_000) % 4, MASK)
error = drawn_nats.std().item()/200
assert ordered.std() > .01 and counted_wrong > entropy + .01
passed('(95.7) a wrong denoiser: orders differ, their mean is (95.6)',
       close(ordered.mean(), counted_wrong))
passed('(95.6) random masks, within 5 standard errors',
       close(drawn_nats.mean(), counted_wrong, 5*error), by='all sets')


# %%NBQA-CELL-SEP7dc948
# Eq. 95.8: the bracket term by term, and the integral over sigma by Gauss and Laguerre
sigmas, weights = np.polynomial.laguerre.laggauss(60)
total = 0.
for sigma, w in zip(sigmas, weights*np.exp(sigmas)):
    m = -math.expm1(-sigma)
    r = 1/math.expm1(sigma)
    for s in sets:
        k = int(s.sum())
        score = r*exact(torch.where(s, MASK, four)).exp()  # [16 4 2]
        own = score.gather(-1, four[..., None])[..., 0]
        bracket = score.sum(-1) - r*own.log() + r*(math.log(r) - 1)
        total += w*m**k*math.exp(-sigma*(4 - k))*(p*(bracket*s).sum(1)).sum().item()
passed('(95.8) score entropy', close(total, entropy, 1e-6), by='the entropy')


# %%NBQA-CELL-SEP7dc948
x = caption_writer.encode(['___ ___ circle above a blue square'])
torch.manual_seed(0)
*_, x = library.unmask(grammar, x.expand(2000, -1), steps=1)
texts = caption_writer.decode(x)
wrong_pairs = [t for t in texts if t.startswith('an ') != ('orange' in t)]
print(f'{len(wrong_pairs)/2000:.0%} are wrong, such as "{wrong_pairs[0]}"')


# %%NBQA-CELL-SEP7dc948
# The example: 2 · 1/6 · 5/6 of the pairs are wrong
passed('two words at once, within 5 standard errors',
       close(len(wrong_pairs)/2000, 10/36, 5*(10/36*26/36/2000)**.5), by='2 · 1/6 · 5/6')


# %%NBQA-CELL-SEP7dc948
# Eq. 95.9: blocks of four bits, by entropies of marginals; 24 orders, 1 to 4 at once
def entropy_of(places):
    "The entropy of some of the bits together."
    places = [*places]
    key = four[:, places] @ 2**torch.arange(len(places))
    q = torch.zeros(16, dtype=D).index_add(0, key, p)
    return -torch.xlogy(q, q).sum()


errors = []
for k in (1, 2, 3, 4):
    excess = 0.
    for o in every_order:
        for a in range(0, 4, k):
            A, B = o[:a].tolist(), o[a:a + k].tolist()
            each = sum(entropy_of([*A, i]) - entropy_of(A) for i in B)
            excess += (each - entropy_of(A + B) + entropy_of(A))/24
    mean_cost = torch.stack([(p*order_nats(exact, four, o.expand(16, 4), MASK, k)).sum()
                             for o in every_order]).mean()
    errors.append(close(mean_cost - entropy, excess))
    print(f'{k} at once: {mean_cost:.4f} nats')
passed('(95.9) what a block costs', *errors, by='entropies of marginals')


# %%NBQA-CELL-SEP7dc948
# Figure 95.2: bits of a caption and shares of captions that are read, by the calls of the network
book = measurement('text')
results = book['rows']
calls = results['calls']
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.7), layout='constrained', dpi=160)
for name, colour in (('exact', 'black'), ('network', 'tab:blue')):
    bits = [caption_bits + above for above, _ in results[name]['above']]
    left.plot(calls, bits, 'o-', color=colour, markersize=3.5)
    for rule, line in (('at_random', '-'), ('surest_place', '--')):
        shares = [results[name]['drawn'][f'{rule} {c}']['read'] for c in calls]
        right.plot(calls, shares, 'o', ls=line, color=colour, markersize=3.5)
left.axhline(caption_bits, color='.6', lw=.8, ls='--')
left.text(1.05, caption_bits - .3, 'entropy; a network from left to right is '
          f'{results["causal"]["above"][0]:.2f} above it', color='.4', va='top', fontsize=7.5)
left.text(2.1, 31., 'network', color='tab:blue')
left.text(2.1, 29.3, 'exact chances, just below', color='black')
left.set(xscale='log', xlabel='calls of the network', ylabel='bits a caption',
         ylim=(caption_bits - 2.5, None))
right.text(1.1, .93, 'dashed: surest place first', fontsize=8)
right.text(1.1, .85, 'black: exact chances', fontsize=8)
right.set(xscale='log', xlabel='calls of the network', ylabel='share read', ylim=(0, 1.03))
for ax in (left, right):
    ax.set_xticks(calls, calls)
    ax.minorticks_off()


# %%NBQA-CELL-SEP7dc948
# Figure 95.2: exact chances, a word at a time, cost nothing; two words, computed again; the network
by_calls = {name: dict(zip(calls, results[name]['above'])) for name in ('exact', 'network')}
torch.manual_seed(12)
fresh = caption_writer.encode(writing.scene_captions(100, seed=12))
places = torch.rand(fresh.shape).argsort(1)
again = (library.order_nats(grammar, fresh, places, grammar.mask, 2) - grammar.nats(fresh))*BITS
mean, error = by_calls['exact'][9]
passed('(95.9) two words at once, by exact chances, within 5 standard errors',
       close(again.mean(), mean, 5*(error**2 + again.var().item()/100)**.5), by='other captions')
passed('a word at a time costs nothing', close(by_calls['exact'][17][0], 0., 1e-6))
with torch.no_grad():
    nats = library.order_nats(caption_writer, fresh, places, grammar.mask)
above = (nats - grammar.nats(fresh))*BITS
mean, error = by_calls['network'][17]
passed('the network, within 5 standard errors',
       close(above.mean(), mean, 5*(error**2 + above.var().item()/100)**.5), by='other captions')
share = {(name, n, rule): results[name]['drawn'][f'{rule} {n}']['read']
         for name in ('exact', 'network') for n in calls for rule in ('at_random', 'surest_place')}
assert share['network', 17, 'at_random'] >= .95 and by_calls['exact'][9][0] > .8
assert by_calls['exact'][9][0] > .85*by_calls['network'][9][0]
assert all(share[name, n, 'at_random'] > share[name, n, 'surest_place'] + .05
           for name in ('exact', 'network') for n in (9, 5))


# %%NBQA-CELL-SEP7dc948
#| export
# (chances [b l v], words drawn [b l]) -> [b l]: the places with the highest go first
Order = Callable[[Tensor, Tensor], Tensor]


def at_random(chances: Tensor, drawn: Tensor) -> Tensor:
    "Any order: places go in a random one. Eq. 95.7."
    return torch.rand_like(chances[..., 0])


def surest_place(chances: Tensor, drawn: Tensor) -> Tensor:
    "First the place whose likeliest word is likeliest; its word is drawn. Eq. 95.10."
    return chances.amax(-1)


def surest_draw(chances: Tensor, drawn: Tensor) -> Tensor:
    "First the place whose drawn word is likeliest; not exact. Eq. 95.10 (LLaDA)."
    return chances.gather(-1, drawn[..., None])[..., 0]


def _chances(logits: Tensor, temperature: float) -> Tensor:  # [b l v] float64
    "The chances of words; at temperature 0 the likeliest word."
    if temperature == 0:
        best = logits.argmax(-1)
        return F.one_hot(best, logits.shape[-1]).double()
    return (logits.double()/temperature).softmax(-1)


@torch.no_grad()
def unmask(denoiser: TokenDenoiser,
           x: Tensor,   # [b l] ids; masks are gaps, the rest stays
           steps: int,  # calls of the denoiser
           order: Order | None = None,  # None: each mask by chance, apart from the others
           temperature: float = 1.,
           again: float = 0.,  # new masks, as a share of what is possible; by chance only
           ) -> Iterator[Tensor]:
    "Fill the gaps step by step; yields each state, the last without masks. Eq. 95.2."
    if steps < 1 or temperature < 0 or not 0 <= again <= 1:
        raise Problem('Filling gaps takes 1 step or more, a temperature of 0 or more, '
                      'and `again` from 0 to 1.')
    if again and order is not None:
        raise Problem('New masks come by chance: leave out `again` or the order.')

    gap = None
    for left in range(steps, 0, -1):
        logits = denoiser(x)
        mask = logits.shape[-1]
        masked = x == mask
        gap = masked if gap is None else gap

        # a word for each place, from float64: see (95.13)
        chances = _chances(logits, temperature)
        drawn = torch.multinomial(chances.flatten(0, 1), 1).view_as(x)

        if order is not None:
            # as many of a row as leave the same for each later step
            n = -(-masked.sum(1) // left)
            score = order(chances, drawn).masked_fill(~masked, -torch.inf)
            x = torch.where(masked & _first(score, n), drawn, x)
        else:
            # each alone (95.2), and some words become masks again (95.11)
            t, s = left/steps, (left - 1)/steps
            rho = again*min(1, s/(1 - t)) if t < 1 else 0.
            chance = torch.rand(x.shape, device=x.device)
            new = torch.where(masked & (chance < reveal_chance(s, t, rho)), drawn, x)
            x = torch.where(gap & ~masked & (chance < rho), mask, new)
        yield x


# %%NBQA-CELL-SEP7dc948
# Table 95.1, Eq. 95.10: the law of each sampler on four bits, exactly, and 20,000 of its rows
def law(keep, calls, again=0., temperature=1.):
    "The chances of all rows; keep(likeliest, drawn, left, calls, rho) -> [(places, chance)]."
    now = {(MASK,)*4: 1.}
    for left in range(calls, 0, -1):
        new = Counter()
        t, s = left/calls, (left - 1)/calls
        rho = again*min(1., s/(1 - t)) if t < 1 else 0.
        chances = (exact(torch.tensor([*now]))/temperature).softmax(-1).tolist()
        for (state, weight), c in zip([*now.items()], chances):
            gaps = [i for i in range(4) if state[i] == MASK]
            there = [i for i in range(4) if state[i] != MASK]
            for words in itertools.product((0, 1), repeat=len(gaps)):
                drawn = [c[i][v] for i, v in zip(gaps, words)]
                likeliest = [max(c[i]) for i in gaps]
                for kept, share in keep(likeliest, drawn, left, calls, rho):
                    for back in itertools.product((0, 1), repeat=len(there)):
                        q = weight*math.prod(drawn)*share
                        q *= math.prod(rho if b else 1 - rho for b in back)
                        if q:
                            y = [*state]
                            for j in kept:
                                y[gaps[j]] = words[j]
                            for i, b in zip(there, back):
                                y[i] = MASK if b else y[i]
                            new[tuple(y)] += q
        now = new
    return torch.tensor([now[tuple(row)] for row in four.tolist()], dtype=D)


def best(score, left):
    n = -(-len(score) // left)
    return [(sorted(range(len(score)), key=lambda j: -score[j])[:n], 1.)]


def random_places(likeliest, drawn, left, calls, rho):
    chosen = [*itertools.combinations(range(len(drawn)), -(-len(drawn) // left))]
    return [(c, 1/len(chosen)) for c in chosen]


def place_rule(likeliest, drawn, left, calls, rho):
    return best(likeliest, left)


def draw_rule(likeliest, drawn, left, calls, rho):
    return best(drawn, left)


def by_chance(likeliest, drawn, left, calls, rho):
    u = ((calls - left + 1)/calls - (1 - rho)*(calls - left)/calls)*calls/left
    return [([j for j, k in enumerate(kept) if k], math.prod(u if k else 1 - u for k in kept))
            for kept in itertools.product((0, 1), repeat=len(drawn))]


def divergence(q):
    return (p*(p/q).log()).sum().item()


laws = {
    'any order, one at a time': (law(random_places, 4), dict(steps=4, order=at_random)),
    'surest place first, one at a time': (law(place_rule, 4), dict(steps=4, order=surest_place)),
    'surest draw kept, one at a time': (law(draw_rule, 4), dict(steps=4, order=surest_draw)),
    'any order, two at a time': (law(random_places, 2), dict(steps=2, order=at_random)),
    'surest place first, two at a time': (law(place_rule, 2), dict(steps=2, order=surest_place)),
    'each by chance, four steps': (law(by_chance, 4), dict(steps=4)),
}
print(f'{"":36}KL(p || rows)   entropy of rows   (data {entropy:.3f})')
worst = 0.
for name, (q, how) in laws.items():
    print(f'{name:36}{abs(divergence(q)):10.3f} nats {-torch.xlogy(q, q).sum():13.3f} nats')
    torch.manual_seed(1)
    *_, x = unmask(exact, torch.full((20_000, 4), MASK), **how)
    found = (x @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)/20_000
    worst = max(worst, close((found - q)/(q*(1 - q)/20_000).sqrt(), 0., 5))
one, place, draw = (laws[name][0] for name in [*laws][:3])
passed('(95.10) any order and the surest place are exact', close(one, p), close(place, p))
assert divergence(draw) > 1 and -torch.xlogy(draw, draw).sum() < .7*entropy
passed('20,000 rows of each sampler have these laws, within 5 standard errors', worst)


# %%NBQA-CELL-SEP7dc948
# Temperature: four bits at 1/2 in two orders, against p squared; rows of the library; temperature 0
square = p**2/(p**2).sum()
for name, rule in (('any order', random_places), ('surest place first', place_rule)):
    cool = law(rule, 4, temperature=.5)
    far = (square*(square/cool).log()).sum().item()
    print(f'temperature 1/2, {name}: KL(p squared || rows) {far:.4f} nats, '
          f'entropy {-torch.xlogy(cool, cool).sum():.3f}, of p squared '
          f'{-torch.xlogy(square, square).sum():.3f}')
    assert far > .001
cool = law(random_places, 4, temperature=.5)
torch.manual_seed(0)
*_, x = unmask(exact, torch.full((20_000, 4), MASK), 4, at_random, .5)
found = (x @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)/20_000
passed('rows at temperature 1/2, within 5 standard errors',
       close((found - cool)/(cool*(1 - cool)/20_000).sqrt(), 0., 5), by='the exact law')
*_, x = unmask(exact, torch.full((50, 4), MASK), 4, surest_place, 0.)
assert len(x.unique(dim=0)) == 1

# with one mask in the row it is p squared
one_gap = torch.tensor([[0, 1, MASK, 1]])
assert _chances(exact(one_gap), 0.).shape == (1, 4, 2)
pair = p[[0b0101, 0b0111]]
passed('a single gap at temperature 1/2', close(
    _chances(exact(one_gap), .5)[0, 2], pair**2/(pair**2).sum()), by='p squared')


# %%NBQA-CELL-SEP7dc948
# Eq. 95.11, 95.12: shares of masks with remasking; the jumps; four bits with remasking
errors = []
for s, t in ((0., .2), (.2, .5), (.6, .7)):
    for rho in (0., .3*min(1, s/(1 - t)), min(1, s/(1 - t))):
        kept = (1 - t)*(1 - rho) + t*reveal_chance(s, t, rho)
        assert 0 <= reveal_chance(s, t, rho) <= 1 + 1e-12
        errors.append(close(kept, 1 - s))
passed('(95.11) the share of masks is kept', *errors, by='words kept and masks taken away')
torch.manual_seed(0)
begin = torch.full((20_000, 4), MASK)
run = [begin, *unmask(exact, begin, 4, again=.7)]
shares = [(x == MASK).double().mean() for x in run[1:]]
anew = [(y == MASK)[x != MASK].double().mean() for x, y in zip(run[1:], run[2:])]
passed('(95.11) shares in a run, within 5 standard errors',
       close(torch.stack(shares), torch.tensor([.75, .5, .25, 0.]), 5*.5/80_000**.5))
passed('(95.11) words masked again in a step, within 5 standard errors',
       close(torch.stack(anew), torch.tensor([.7, .35, 0.]), 5*.5/15_000**.5), by='.7 of the most')
mended = law(by_chance, 8, again=.5)
torch.manual_seed(0)
*_, x = unmask(exact, begin, 8, again=.5)
found = (x @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)/20_000
passed('(95.11) rows with words masked again, within 5 standard errors',
       close((found - mended)/(mended*(1 - mended)/20_000).sqrt(), 0., 5), by='the exact law')
plain_8 = law(by_chance, 8)
print(f'8 steps with exact chances: KL {divergence(plain_8):.4f} nats, with words masked again '
      f'{divergence(mended):.4f}')
assert divergence(mended) > divergence(plain_8)

# the times at which four masks go, jump by jump, against four uniform times in order
u = torch.rand(4, 50_000, dtype=D)
m = torch.ones(50_000, dtype=D)
times = []
for n in (4, 3, 2, 1):
    m = m*u[4 - n]**(1/n)
    times.append(m.mean())
passed('(95.12) mean times of the jumps, within 5 standard errors',
       close(torch.stack(times), torch.tensor([.8, .6, .4, .2]), 5*.3/50_000**.5),
       by='four uniform times in order')
fine = law(by_chance, 256)
passed('(95.12) 256 steps come near the law of jumps', close(fine, one, .002))


# %%NBQA-CELL-SEP7dc948
# Eq. 95.13: the sum, against races with uniforms of 11 binary digits, and with float32's 24
def race(h, V, rho):
    "(95.13)."
    k = np.arange(1, min(round(1/h), 400_000))
    top = np.exp(V*np.log1p(-(k - 1)*h)) - np.exp(V*np.log1p(-k*h))
    return (top*np.exp(np.log1p(-k*h)*V*(1 - rho)/rho)).sum()


dice = np.random.default_rng(0)
n, V, rho = 60_000, 100, .02
u = np.floor(dice.random((n, V))*2**11)/2**11
with np.errstate(divide='ignore'):
    first_word = (-np.log(u)).min(1)*V/rho
share = (first_word < dice.exponential(size=n)/(1 - rho)).mean()
want = race(2**-11, V, rho)
passed(f'(95.13) 11 digits, a share of {want:.4f} in place of .02, within 5 standard errors',
       close(share, want, 5*(want/n)**.5), by='60,000 races')

# 50,000 words, the largest of their uniforms drawn at once, as float32 holds it
n, V, rho = 2_000_000, 50_000, 1e-3
u = np.floor(dice.random(n)**(1/V)*2**24)/2**24
u = np.minimum(u, 1 - 2**-24)
share = (-np.log(u)*V/rho < dice.exponential(size=n)/(1 - rho)).mean()
want = race(2**-24, V, rho)
torch.manual_seed(0)
uniforms = torch.rand(1_000_000)
assert (uniforms*2**24 % 1 == 0).all()  # float32's uniforms are on that grid
assert want < rho/5
passed(f'(95.13) float32, {want:.1e} in place of .001, within 5 standard errors',
       close(share, want, 5*(want/n)**.5), by='two million races')
passed('(95.13) a fine grid gives the share itself', close(race(2**-20, 5, .02), .02, 1e-4))


# %%NBQA-CELL-SEP7dc948
#| export systems.write
GAP = '___'    # one word
OPEN = '...'   # whatever may follow, or nothing
_END = '<end>'
_MOST = 1 << 12  # the most words in a row, and the widest network that is read


def _words_of(text: str) -> list[str]:
    "Words, signs, and gaps of a text in lower case."
    return re.findall(r"\.{3}|_{2,}|[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]", text.lower())


class Writer(nn.Module):
    "A transformer that predicts the words at masks, and has no clock. Eq. 95.3."

    def __init__(self,
                 words: Sequence[str],
                 length: int,  # of a row, with at least one end
                 width: int = 56, layers: int = 3, heads: int = 4,
                 causal: bool = False):  # True: from left to right, to compare with (33)
        super().__init__()
        self.words = (_END, *words)
        self.length = length
        self.mask = len(self.words)
        self.about = dict(words=[*words], length=length, width=width, layers=layers,
                          heads=heads, causal=causal)
        self.token = nn.Embedding(self.mask + 1, width)
        self.place = nn.Parameter(.02*torch.randn(length, width))
        self.net = Transformer(width, layers, heads, causal, gelu)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, self.mask)
        nn.init.normal_(self.token.weight, std=.3)

    def forward(self, x: Tensor) -> Tensor:  # [b l] ids -> [b l v] logits
        if self.net.causal:  # each place reads what stands before it
            x = F.pad(x[:, :-1], (1, 0), value=self.mask)
        return self.out(self.norm(self.net(self.token(x) + self.place)))

    def nats(self, x0: Tensor) -> Tensor:  # [b l] ids -> [b]
        "-log p(x0) if causal (33.1), else an estimate of its bound. Eq. 95.6."
        b, l = x0.shape
        if self.net.causal:
            return F.cross_entropy(self(x0).mT, x0, reduction='none').sum(1)
        u = (torch.randperm(b) + torch.rand(b))/b  # one in each b-th
        count = 1 + (u*l).long().clamp(max=l - 1)
        return masked_nats(self, x0, count.to(x0.device), self.mask)

    def encode(self, texts: Iterable[str]) -> Tensor:  # [b l] ids
        "Words as ids, gaps as masks; ends fill the row, or after `...` masks."
        number = {w: i for i, w in enumerate(self.words)}
        rows = []
        for text in texts:
            words = _words_of(text)
            fill = self.mask if words[-1:] == [OPEN] else 0
            words = words[:-1] if fill else words
            if len(words) >= self.length:
                raise Problem(f'"{text}" has {len(words)} words, and there is room for '
                              f'{self.length - 1}: shorten it.')
            rows.append([self.mask if w[:2] == '__' else self._number(w, number)
                         for w in words] + [fill]*(self.length - len(words)))
        return torch.tensor(rows)

    def _number(self, word: str, number: dict[str, int]) -> int:
        "The id of a word."
        if word in number:
            return number[word]
        near = get_close_matches(word, self.words[1:], 3)
        known = ', '.join(self.words[1:])
        hint = f'did you mean {" or ".join(near)}?' if near else f'it knows {known}.'
        raise Problem(f'The writer has no word "{word}": {hint}')

    def decode(self, x: Tensor) -> list[str]:  # [b l] ids
        "Rows as text; an end that is followed by words is shown."
        words = [*self.words, GAP]
        texts = (' '.join(words[i] for i in row) for row in x.tolist())
        return [re.sub(rf'(^| ){_END}(?= {_END}|$)', '', t).strip() for t in texts]


# %%NBQA-CELL-SEP7dc948
#| export systems.write
def fill(writer: Writer, text: str, n: int = 8,
         steps: int | None = None,  # None: a word at a time
         temperature: float = 1.,
         surest: bool = False,  # the surest place first; False: any order
         ) -> list[str]:
    "The text n times, its gaps filled. Eq. 95.7."
    x = writer.encode([text])
    gaps = int((x == writer.mask).sum())
    if not gaps:
        raise Problem(f'"{text}" has no gap: write {GAP} for a word, or {OPEN} at the '
                      'end for all that may follow.')
    order = surest_place if surest else at_random
    states = unmask(writer.eval(), x.expand(n, -1), min(steps or gaps, gaps), order,
                    temperature)
    return writer.decode([*states][-1])


# %%NBQA-CELL-SEP7dc948
#| export systems.write
def learn(writer: Writer,
          rows: Tensor,  # [n l] ids
          steps: int, batch: int = 64, lr: float = 4e-3) -> Iterator[float]:
    "Train on random rows; yields the loss of each step in nats a row. Eq. 95.6."
    opt = torch.optim.AdamW(writer.parameters(), lr, (.9, .98), weight_decay=.01)
    writer.train()
    for step in range(steps):
        # a hundred steps up, then straight down
        rate = min((step + 1)/100, 1)*(1 - step/steps)
        for group in opt.param_groups:
            group['lr'] = lr*rate
        loss = writer.nats(rows[torch.randint(len(rows), (batch,))]).mean()
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(writer.parameters(), 1.)
        opt.step()
        yield loss.item()


def scene_captions(n: int, seed: int = 0) -> list[str]:
    "Captions of scenes of one thing or two, alike often, in varied words (50)."
    rng = np.random.default_rng(seed)
    pools = every_scene(1), every_scene(2)
    picked = []
    for _ in range(n):
        pool = pools[int(rng.random()*2)]
        picked.append(pool[int(rng.random()*len(pool))].say(rng))
    return picked


def writer_of(lines: Iterable[str], **shape: Any) -> tuple[Writer, Tensor]:
    "A new writer with the words of some lines, and the lines as ids [n l]."
    lines = [line for line in lines if _words_of(line)]
    split = [_words_of(line) for line in lines]
    words = sorted({w for line in split for w in line})
    if not words:
        raise Problem('There are no words in these lines: give one sentence a line.')
    if any(w[:2] == '__' or w == OPEN for w in words):
        raise Problem(f'Lines to learn from have no gaps: leave out {GAP} and {OPEN}.')
    length = max(map(len, split)) + 1
    if max(len(words), length) > _MOST:
        raise Problem(f'{counted(len(words), "word")} and rows of {length}: a writer '
                      f'holds {_MOST} of each, so give fewer or shorter lines.')
    writer = Writer(words, length, **shape)
    return writer, writer.encode(lines)


# %%NBQA-CELL-SEP7dc948
#| export systems.write
def save_writer(writer: Writer, path):
    "Write a writer as half-precision numbers, with its words."
    half = {k: v.half() for k, v in writer.state_dict().items()}
    write_tensors(path, half, writer=json.dumps(writer.about))


def open_writer(path=None) -> Writer:  # None: the one that ships with the book
    "The writer of a file. A file of another kind is a `Problem`."
    path = path or data_dir('runs')/'text.safetensors'
    tensors = read_tensors(path)
    with safe_open(path, 'pt') as f:
        said = (f.metadata() or {}).get('writer', '')
    try:
        about = json.loads(said)
        sizes = [about[k] for k in ('length', 'width', 'layers', 'heads')]
        words = about['words']
        assert all(type(v) is int and 0 < v <= _MOST for v in (*sizes, len(words)))
        assert all(isinstance(w, str) for w in words)
        writer = Writer(**about)
    except (ValueError, KeyError, TypeError, AssertionError, Problem) as e:
        raise Problem(f'{path} is no writer: name a file that `ddpm_lit write --data` '
                      'has made.') from e
    load_strictly(writer, tensors, path)
    return writer.eval()


def read_lines(path) -> list[str]:
    "The lines of a text file that are not empty; a `Problem` if there are none."
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise Problem(f'{path} is empty: give one sentence a line.')
    return lines


# %%NBQA-CELL-SEP7dc948
# The writer: words and ids; causal or two-way; its bound has the mean of all orders; its file
lines = ['the cat sat on the mat .', 'the dog lay on the rug .', "don't wake the dog !"]
torch.manual_seed(0)
small, small_rows = writer_of(lines, width=8, layers=1)
assert small.decode(small_rows) == lines and small.words[:4] == ('<end>', '!', '.', 'cat')
assert small_rows.shape == (3, 8) and small.length == 8
asked = small.encode(['The ___ sat ...', 'the ____ on'])
assert small.decode(asked)[1] == 'the ___ on' and (asked == small.mask).sum(1).tolist() == [6, 1]
broken = small.encode(['the cat sat on'])
broken[0, 2] = 0
assert small.decode(broken) == ['the cat <end> on']


def reach(net):
    "Which tokens [j] change which logits [i]."
    x = small_rows[:1].repeat(9, 1)
    x[range(1, 9), range(8)] = small.mask
    with torch.no_grad():
        y = net(x)
    return ((y[1:] - y[:1]).abs().amax(-1) > 1e-7).T


torch.manual_seed(0)
left, _ = writer_of(lines, width=8, layers=1, causal=True)
assert reach(small).all() and torch.equal(reach(left), torch.ones(8, 8).tril(-1).bool())
passed('the causal writer reads what is before a place, the other all', by='one token changed')

few = small_rows[:1].expand(8000, -1)
with torch.no_grad():
    estimate = small.nats(few)
    places = torch.rand(2000, 8).argsort(1)
    orders_cost = order_nats(small, few[:2000], places, small.mask)
    steps_cost = -left(few[:1]).log_softmax(-1)[0, range(8), small_rows[0]].sum()
spread = (estimate.var()/8000 + orders_cost.var()/2000).sqrt().item()
passed('(95.7) `nats` of a writer has the mean of its orders, within 5 standard errors',
       close(estimate.double().mean(), orders_cost.mean(), 5*spread), by='2,000 orders')
passed('`nats` of a causal writer', close(left.nats(few[:1])[0], steps_cost, 1e-5),
       by='its own chances, place by place')

# it learns: two lines by heart, in 300 steps
torch.manual_seed(0)
small, small_rows = writer_of(lines[:2], width=32, layers=1)
curve, moved = [], []
for nats in learn(small, small_rows, 300, batch=32):
    curve.append(nats)
    moved.append(small.out.bias.detach().clone())
sizes = [(b - a).abs().max().item()/4e-3 for a, b in zip(moved, moved[1:])]  # of the rate
known = {fill(small, 'the ___ lay on the ___ .', 1)[0] for _ in range(5)}
print(f'two lines: {curve[0]*BITS:.0f} bits at first, {np.mean(curve[-20:])*BITS:.2f} at the end; '
      'their entropy is 1')
assert np.mean(curve[-20:])*BITS < 1.6 and 'the dog lay on the rug .' in known
assert np.mean(curve[-20:])*BITS > .7
assert .5*.02 < sizes[0] < 1.5*.02 and sizes[-1] < 3/300 and max(sizes[100:]) < 1.2
torch.manual_seed(0)
again = fill(caption_writer, 'a red ___ on ___', 60, surest=True)
assert all(t.startswith('a red ') for t in again) and len({*again}) > 5
x = caption_writer.encode(['a red ___ on ___'])
assert len({*fill(caption_writer, 'a red ___ on ___', 60, 1)} - {*again}) >= 0

path = Path(tempfile.mkdtemp())/'small.safetensors'
save_writer(small, path)
back = open_writer(path)
assert back.words == small.words and back.about == small.about
passed('half-precision numbers are read again', close(
    back.token.weight, small.token.weight.half(), 0))
write_tensors(path, {'a': torch.zeros(2)}, writer='{"words": [], "length": 3}')
with expect_fail('is no writer', Problem):
    open_writer(path)
path.write_text('\n  one line \n\n')
assert read_lines(path) == ['one line']
path.write_text('\n')
with expect_fail('is empty', Problem):
    read_lines(path)
said_again = scene_captions(2000, 5)
two_things = sum(len(read(t).things) == 2 for t in said_again)
passed('half of the captions are of two things, within 5 standard errors',
       close(two_things/2000, .5, 5*.5/2000**.5), by='the parser')


# %%NBQA-CELL-SEP7dc948
#| slow
# Trained and measured: five minutes of a core. The captions are drawn anew for each purpose
def frames(texts):
    "What is said, without sizes, colours and shapes."
    kinds = dict.fromkeys(('small', 'little', 'large', 'big'), 'size')
    kinds |= dict.fromkeys(COLOURS, 'colour') | dict.fromkeys(SHAPES, 'shape') | {'an': 'a'}
    return [' '.join(kinds.get(w, w) for w in text.split()) for text in texts]


def variety(texts):
    "The entropy of the frames of some captions, in bits."
    counts = torch.tensor([*Counter(frames(texts)).values()], dtype=D)
    return (-(counts/counts.sum()).log2()*counts).sum().item()/len(texts)


def is_read(text):
    try:
        read(text)
    except Problem:
        return False
    return True


def judged(x):
    "Of generated rows: the share that the parser reads, that is in the language; variety."
    texts = writer.decode(x)
    inside = grammar.nats(x).isfinite().double().mean().item()
    return dict(read=sum(map(is_read, texts))/len(x), inside=inside, variety=variety(texts))


def drawn_by(net, **how):
    torch.manual_seed(4)
    *_, x = unmask(net, torch.full((N, 17), writer.mask), **how)
    return x


def paired(nats, exact):
    "Bits a caption above those of the exact chances, and the standard error."
    d = (nats.double() - exact)/math.log(2)
    return [d.mean().item(), d.std().item()/len(d)**.5]


N = 500
book = dict(what='masked diffusion of captions and a model from left to right, of the same size '
            'and time or less: [bits above the exact chances, standard error]; captions judged',
            command='python tools/nb.py test nbs/95_text.ipynb --flags slow', rows={})
results = book['rows']
captions_to_learn = scene_captions(200_000, seed=1)
trained = {}
for name, steps, batch in (('masked', 4200, 64), ('causal', 1800, 128)):
    torch.manual_seed(0)
    writer, ids = writer_of(captions_to_learn, causal=name == 'causal')
    begun = time.process_time()
    for _ in learn(writer, ids, steps, batch):
        pass
    trained[name] = writer
    results[name] = dict(parameters=sum(p.numel() for p in writer.parameters()),
                         seconds=round(time.process_time() - begun))

# the shipped weights are those that are measured
save_writer(trained['masked'], data_dir('runs')/'text.safetensors')
writer = open_writer()
held = writer.encode(scene_captions(N, seed=2))
least = grammar.nats(held)
torch.manual_seed(3)
order = torch.rand(held.shape).argsort(1)
with torch.no_grad():
    results['causal']['above'] = paired(trained['causal'].eval().nats(held), least)
    results['calls'] = [17, 9, 5, 3, 2, 1]
    for name, net in (('exact', grammar), ('network', writer)):
        results[name] = dict(above=[], drawn={})
        for n in results['calls']:
            nats = order_nats(net, held, order, writer.mask, -(-17 // n))
            results[name]['above'].append(paired(nats, least))
            for rule in (at_random, surest_place, surest_draw):
                found = judged(drawn_by(net, steps=n, order=rule))
                results[name]['drawn'][f'{rule.__name__} {n}'] = found
        for steps, again in itertools.product((8, 32), (0., .5)):
            found = judged(drawn_by(net, steps=steps, again=again))
            results[name]['drawn'][f'chance {steps} {again}'] = found
for t in (.25, .5, .75):
    found = judged(drawn_by(writer, steps=17, order=at_random, temperature=t))
    results['network']['drawn'][f'temperature {t}'] = found

# baselines: words of each place by their frequency there, and a caption as said by the grammar
counts = F.one_hot(ids, writer.mask).double().mean(0)
torch.manual_seed(4)
results['places'] = judged(torch.multinomial(counts, N, replacement=True).T)
price = -counts.log2()[range(17), held].sum(1)
results['places']['bits'] = price.mean().item()
results['captions'] = judged(held)
keep_measurement('text', book)


# %%NBQA-CELL-SEP7dc948
# Table 95.2: bits of a caption, and generated captions: read, possible, and how varied
def line_of(name, bits, found):
    "A line of the table."
    shares = ''
    if found:
        shares = f'{found["read"]:7.1%}{found["inside"]:10.1%}{found["variety"]:10.2f}'
    print(f'{name:34}{bits:>14}  {shares}')


def with_error(above):
    return f'{caption_bits + above[0]:.2f} ± {above[1]:.2f}'


print(f'{"":34}{"bits":>14}     read  possible  variety, bits')
line_of('the captions themselves', f'{caption_bits:.2f}', results['captions'])
line_of('from left to right', with_error(results['causal']['above']), None)
for k, n in enumerate(calls):
    line_of(f'masked, {n} call{"s"*(n > 1)}', with_error(results['network']['above'][k]),
            results['network']['drawn'][f'at_random {n}'])
line_of('each place by its frequencies', f'{results["places"]["bits"]:.2f}', results['places'])
for name, key in (('surest place first, 17 calls', 'surest_place 17'),
                  ('surest draw kept, 17 calls', 'surest_draw 17'),
                  ('temperature 0.5, 17 calls', 'temperature 0.5')):
    line_of(name, '', results['network']['drawn'][key])


# %%NBQA-CELL-SEP7dc948
#| export cli.write
def _learned(data, steps, out):
    "A writer of the lines of a file, trained here and saved."
    from pathlib import Path
    from ddpm_lit.core.files import check_output, check_unnamed
    from ddpm_lit.systems.write import learn, read_lines, save_writer, writer_of
    if not out:
        out = f'{Path(data).stem}.safetensors'
        check_unnamed(out)
    check_output(out, '.safetensors')
    writer, rows = writer_of(read_lines(data))
    with Bar(steps, f'learning {len(rows)} lines') as bar:
        for step, nats in enumerate(learn(writer, rows, steps), 1):
            bar(step, f'{nats/.6931:.1f} bits a line')
    save_writer(writer, out)
    note(f'{out} holds the writer: use it again with --weights {out}.')
    return writer


@click.command('write', cls=Command)
@click.argument('text', default='...')
@click.option('--n', type=Count(1, 10_000), default=8, show_default=True,
              help='How many times.')
@click.option('--steps', type=Count(1, 10_000),
              help='Calls of the network; fewer write several words at once.  '
                   '[default: one for each gap]')
@click.option('--temperature', type=Range(0, 100), default=1., show_default=True,
              help='Below 1 likely words become likelier; 0: the likeliest.')
@click.option('--surest', is_flag=True,
              help='Fill the surest gap first.  [default: in random order]')
@click.option('--weights', metavar='FILE',
              help='A writer that --data has made.  [default: the one of the book]')
@click.option('--data', metavar='FILE', help='First learn the lines of this text.')
@click.option('--train-steps', type=Count(1), default=1000, show_default=True,
              help='For --data: how long.')
@click.option('--out', metavar='FILE',
              help='For --data: where the writer is kept.  [default: FILE.safetensors]')
@options('seed', 'threads', 'json')
def write_command(text, n, steps, temperature, surest, weights, data, train_steps, out,
                  seed, threads, as_json):
    """Fill the gaps of TEXT: ___ is a word, ... at its end whatever may follow. Without
    TEXT, whole captions; with --data, in the words of a file of yours."""
    import torch
    from ddpm_lit.cli.base import start
    from ddpm_lit.core.problem import Problem
    from ddpm_lit.systems.write import fill, open_writer
    if data and weights:
        raise Problem('A writer is learned or opened: give `data` or `weights`.')
    if out and not data:
        raise Problem('Nothing is learned without `data`: leave out `out`, or give it.')
    start('cpu', threads)
    torch.manual_seed(seed)
    writer = _learned(data, train_steps, out) if data else open_writer(weights)
    found = fill(writer, text, n, steps, temperature, surest)
    emit(as_json, found, '\n'.join(found))


# %%NBQA-CELL-SEP7dc948
terminal = Terminal(tempfile.mkdtemp())
assert terminal.show('write "a red ___ above a blue square" --n 4') == 0
assert terminal.show('write "a small ___ circle ..." --n 3 --seed 1') == 0


# %%NBQA-CELL-SEP7dc948
# The command: gaps are filled and the rest stays; own lines; what is refused; help without torch
out, err, code = terminal('write "a red ___ above a blue square" --n 40 --json')
texts = json.loads(out)
shape = re.compile(f'a red ({"|".join(SHAPES)}) above a blue square')
assert code == 0 and len(texts) == 40 and len({*texts}) > 2
good = sum(bool(shape.fullmatch(t)) for t in texts)
assert good >= 38, texts
again = terminal('write "a red ___ above a blue square" --n 40 --json')[0]
assert again == out and terminal('write "a red ___" --n 40 --json --seed 1')[0] != out
assert len({*json.loads(terminal('write "a red ___" --temperature 0 --json')[0])}) == 1
for more in ('', '--steps 3', '--surest', '--steps 2 --surest --temperature .7'):
    texts = json.loads(terminal(f'write --n 5 --json {more}')[0])
    assert len(texts) == 5 and not any(writing.GAP in t for t in texts)
passed(f'{good} of 40 gaps hold a shape, the rest of the text stays', by='a pattern')

# the parser's word for the first answers of the page
with_parser = json.loads(terminal('write "a red ___ above a blue square" --json')[0])
assert all(read(t).things[1].colour == 'blue' for t in with_parser if shape.fullmatch(t))

# lines of one's own, learned by heart in a few steps, kept in a file, opened again
folder = Path(terminal.folder)
(folder/'lines.txt').write_text('\n'.join(lines*3) + '\n\n')
out, err, code = terminal(
    'write "the cat ___ on the ___ ." --data lines.txt --train-steps 60 --n 3')
assert code == 0 and 'lines.safetensors holds the writer' in err, err
assert all(re.fullmatch(r"the cat \S+ on the \S+ \.", t) for t in out.split('\n')[:3]), out
out2, _, code = terminal('write "the ___ ..." --weights lines.safetensors --n 2')
assert code == 0 and len(out2.split('\n')) == 3
kept = writing.open_writer(folder/'lines.safetensors')
assert kept.words == writer_of(lines)[0].words
passed('own lines are learned, kept and opened', by='their words')

refused = {
    'write "a red circle"': 'has no gap: write ___',
    'write "a red ___ above a blue star"': 'has no word "star"',
    'write "a rde ___"': 'did you mean red',
    f'write "___{" a"*20}"': 'there is room for 16: shorten it',
    'write "___" --data empty.txt': 'empty.txt is empty: give one sentence a line',
    'write "___" --data gaps.txt': 'Lines to learn from have no gaps',
    'write "___" --data none.txt': 'none.txt',
    'write "___" --weights lines.txt': 'not a whole safetensors file',
    'write "___" --weights other.safetensors': 'is no writer: name a file that',
    'write "___" --weights lines.safetensors --data lines.txt': 'give --data or --weights',
    'write "___" --out a.safetensors': 'without --data',
    'write "___" --data lines.txt': 'lines.safetensors already',
    'write "___" --temperature -1': 'temperature',
}
(folder/'empty.txt').write_text(' \n')
(folder/'gaps.txt').write_text('a ___ b\n')
write_tensors(folder/'other.safetensors', {'a': torch.zeros(2)})
for line, words in refused.items():
    out, err, code = terminal(line)
    assert code in (1, 2) and words in err and not out, (line, err)
program = ('import sys\nfrom ddpm_lit.cli import main\n'
           'try: main(["write", "-h"])\n'
           'finally: print("torch" in sys.modules, file=sys.stderr)')
done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
assert done.stdout.startswith('Usage: ddpm_lit write') and done.stderr.strip() == 'False'
passed(f'{len(refused)} mistakes are refused in a sentence; help imports no torch')


# %%NBQA-CELL-SEP7dc948
with expect_fail('has no gap', Problem):
    writing.fill(caption_writer, 'a red circle')
with expect_fail('no word "star"', Problem):
    writing.fill(caption_writer, 'a red ___ above a blue star')
with expect_fail('shorten it', Problem):
    writing.fill(caption_writer, 'a red circle ' + 'on white '*8 + '___')
with expect_fail('no words', Problem):
    writing.writer_of(['', '  '])
with expect_fail('1 step or more', Problem):
    next(unmask(exact, four, 0))
with expect_fail('leave out `again`', Problem):
    next(unmask(exact, four, 2, at_random, again=.5))
with expect_fail('1 to 4 masks', Problem):
    masked_nats(exact, four, torch.zeros(16), MASK)
with expect_fail('falls from t to s', Problem):
    reveal_chance(.5, .5)


# %%NBQA-CELL-SEP7dc948
# Question 1: of 2 masks in 4 bits; question 2: BERT's loss; question 3: T steps that need a call
bert = masked_cost(.15)
print(f'15 % masked, weight 1: {bert:.4f} nats; divided by .15: {bert/.15:.4f}; '
      f'entropy {entropy:.4f}')
assert bert/.15 < entropy - .1
torch.manual_seed(0)
level = torch.randint(20, (30_000, 17)).sort(1).values  # the step in which each of 17 masks goes
needed = 1 + (level.diff(dim=1) > 0).sum(1).double()
passed('question 3: steps in which a mask goes, within 5 standard errors',
       close(needed.mean(), 20*(1 - .95**17), 5*needed.std().item()/30_000**.5), by='30,000 runs')


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 1
guess = ...
beats = torch.eye(5, dtype=torch.long).repeat(1, 4)
beat_exact = exact_of(beats, torch.full((5,), .2, dtype=D), MASK)
at_once = order_nats(beat_exact, beats, torch.arange(20).expand(5, 20), MASK, 20)
close(at_once.mean()*BITS - math.log2(5), guess, .1)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 2: L = 6
def all_equal(a): ...


same = exact_of(torch.tensor([[0]*6, [1]*6]), torch.full((2,), .5, dtype=D), MASK)
torch.manual_seed(0)
*_, x = unmask(same, torch.full((20_000, 6), MASK), 2, at_random)
share = (x.sum(1) % 6 == 0).double().mean()
close(share, all_equal(3), .02)


# %%NBQA-CELL-SEP7dc948
#| eval: false
# exercise 3
def from_left(chances, drawn):
    ...


states = [*unmask(exact, torch.full((3, 4), MASK), 4, from_left)]
assert [(x == MASK).tolist()[0] for x in states[:2]] == [[False, True, True, True],
                                                         [False, False, True, True]]


# %%NBQA-CELL-SEP7dc948
# solution 1: twenty bits with a chance of 1/5 each, less one of five rows
guess = 20*h(.2, .8) - math.log2(5)
beats = torch.eye(5, dtype=torch.long).repeat(1, 4)
beat_exact = exact_of(beats, torch.full((5,), .2, dtype=D), MASK)
at_once = order_nats(beat_exact, beats, torch.arange(20).expand(5, 20), MASK, 20)
print(f'{guess:.2f} bits')
close(at_once.mean()*BITS - math.log2(5), guess, .1)


# %%NBQA-CELL-SEP7dc948
# solution 2: the first call tosses a coins; if they are equal, the second call knows the rest, and
# if they differ the row is wrong already
def all_equal(a):
    return 2**(1 - a)


same = exact_of(torch.tensor([[0]*6, [1]*6]), torch.full((2,), .5, dtype=D), MASK)
torch.manual_seed(0)
*_, x = unmask(same, torch.full((20_000, 6), MASK), 2, at_random)
share = (x.sum(1) % 6 == 0).double().mean()
close(share, all_equal(3), .02)


# %%NBQA-CELL-SEP7dc948
# solution 3: the further to the left, the higher
def from_left(chances, drawn):
    return -torch.arange(drawn.shape[1], dtype=chances.dtype).expand(drawn.shape)


states = [*unmask(exact, torch.full((3, 4), MASK), 4, from_left)]
assert [(x == MASK).tolist()[0] for x in states[:2]] == [[False, True, True, True],
                                                         [False, False, True, True]]
