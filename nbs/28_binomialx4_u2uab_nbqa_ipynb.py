# %%NBQA-CELL-SEP15d533
#| default_exp diffusion.binomial


# %%NBQA-CELL-SEP15d533
#| export
import math
from typing import Callable, Iterator
import torch
from torch import Tensor, nn
from ddpm_lit.core.problem import Problem


# %%NBQA-CELL-SEP15d533
#| hide
# Set-up: imports, and the forward step from its definition
from itertools import product
import matplotlib.pyplot as plt
from ddpm_lit import show
from ddpm_lit.core.check import budget, close, expect_fail, passed, setup
from ddpm_lit.diffusion import binomial as library  # the first pages use it already
from ddpm_lit.nets.mlp import MLP

setup()
D = torch.float64


def flip(x, y, beta):
    "q(y | x), as defined: with probability beta toss a fair coin."
    return torch.where(x == y, 1 - beta/2, beta/2)


def bit_panels(ax, x, title):
    "Sequences as rows, a 1 as a dark square."
    ax.imshow(x, cmap='Greys', vmin=0, vmax=1.15, interpolation='nearest', aspect='equal')
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color='.6')


# %%NBQA-CELL-SEP15d533
# Figure 28.1: heartbeats become coins, and coins become heartbeats
torch.manual_seed(0)
beat = library.heartbeat()
some = beat[torch.arange(8) % 5]
forward = {f'$t$ = {t}': torch.bernoulli(library.chance_one(some, library.share_kept(2000)[t]))
           for t in (0, 400, 1000, 2000)}

coins = torch.bernoulli(torch.full((8, 20), .5))
back = [coins, *library.bit_chain(library.BitOracle(beat), coins, 2000)]
backward = {f'$t$ = {t}': back[2000 - t] for t in (2000, 1000, 400, 0)}

fig, axes = plt.subplots(2, 4, figsize=(7, 2.1), layout='constrained', dpi=160)
for row, name, states in zip(axes, ('forward', 'backward'), (forward, backward)):
    row[0].set_ylabel(name)
    for ax, (title, x) in zip(row, states.items()):
        bit_panels(ax, x, title)


# %%NBQA-CELL-SEP15d533
# Figure 28.1: the chain ends in heartbeats
known = {tuple(x) for x in beat.tolist()}
assert all(tuple(x) in known for x in backward['$t$ = 0'].tolist())
passed('all eight rows at t = 0 are heartbeats')


# %%NBQA-CELL-SEP15d533
import math
import torch

T = 2000


def corrupt(x0, t):             # q(x_t | x0): a bit is kept with probability 1 - t/T
    kept = 1 - t/T
    return torch.bernoulli(kept*x0 + (1 - kept)/2)


def step_back(x0_hat, x, t):    # p(x_(t-1) = 1 | x_t)
    before = 1 - (t - 1)/T
    kept = (1 - t/T)/before
    like = torch.where(x == 1, 1 + kept, 1 - kept)/2   # q(x_t | x_(t-1) = 1)

    def given(x0):              # Bayes' rule
        prior = (1 + before*(2*x0 - 1))/2              # q(x_(t-1) = 1 | x0)
        return like*prior/(like*prior + (1 - like)*(1 - prior))

    return (1 - x0_hat)*given(0) + x0_hat*given(1)


def loss(net, x0):              # bits per sequence, by one random step
    t = torch.randint(1, T + 1, (len(x0), 1), device=x0.device)
    x = corrupt(x0, t)
    q, p = step_back(x0, x, t), step_back(net(x, t), x, t)
    kl = torch.xlogy(q, q/p) + torch.xlogy(1 - q, (1 - q)/(1 - p))
    return T*kl.sum(1).mean()/math.log(2)


@torch.no_grad()
def sample(net, x):             # x: coins
    for t in reversed(range(1, T + 1)):
        x = torch.bernoulli(step_back(net(x, t), x, t))
    return x


# %%NBQA-CELL-SEP15d533
# The plain code against the library: the loss with the same draws, and a run of 2,000 steps
oracle = library.BitOracle(beat)


def plain_net(x, t):
    "The exact denoiser as net(x, t), kept away from 0 and 1."
    kept = torch.as_tensor(1 - t/T).expand(len(x), 1)
    return oracle(x, kept).clamp(1e-6, 1 - 1e-6)


def library_net(x, kept):
    return oracle(x, kept).clamp(1e-6, 1 - 1e-6)


x0 = beat.repeat(200, 1)
torch.manual_seed(0)
ours = loss(plain_net, x0)
torch.manual_seed(0)
t = torch.randint(1, T + 1, (len(x0), 1))
want = library.sequence_bits(library_net, x0, T, t[:, 0]).mean()
passed('plain loss = library', close(ours/want, 1., 1e-3), by='exact denoiser, 1,000 sequences')

torch.manual_seed(0)
plain_end = sample(plain_net, coins)
torch.manual_seed(0)
*_, end = library.bit_chain(library_net, coins, T)
passed('plain sampler = library', close(plain_end, end, 0), by='2,000 steps, the same draws')


# %%NBQA-CELL-SEP15d533
#| export
def share_kept(T: int) -> Tensor:  # [T+1] float64: 1 at t = 0, 0 at t = T
    "The chance that a bit is not tossed in t of T steps. Eq. 28.1 (Sohl-Dickstein 2015)."
    if T < 2:
        raise Problem(f'A chain of {T} steps has nothing to learn: give at least 2.')
    return 1 - torch.arange(T + 1, dtype=torch.float64)/T


def chance_one(x: Tensor, kept: Tensor) -> Tensor:  # x [b ...] in {0, 1}
    "The probability of a 1 where x was: kept with that chance, or a fair coin. Eq. 28.1."
    return kept*x + (1 - kept)/2


# %%NBQA-CELL-SEP15d533
# Eq. 28.1: 8 steps one by one as products of 2 x 2 tables, against the closed form,
# from 0 to t and from s to t; betas 1/(T-t+1)
T = 8
a = share_kept(T)
beta = 1/torch.arange(T, 0, -1, dtype=D)
x = torch.tensor([0., 1.], dtype=D)
step = [flip(x[:, None], x, b) for b in beta]
jump = torch.eye(2, dtype=D)
errors = []
for t in range(T):
    jump = jump @ step[t]
    errors.append(close(chance_one(x, a[t + 1]), jump[:, 1]))
half = step[3] @ step[4] @ step[5]
passed('(28.1) many steps at once', *errors, close(chance_one(x, a[6]/a[3]), half[:, 1]),
       by='products of single steps')
passed('(28.1) beta = 1/(T − t + 1) keeps 1 − t/T', close(beta, 1 - a[1:]/a[:-1]))


# %%NBQA-CELL-SEP15d533
#| export
def bit_posterior(x0: Tensor,   # [b ...] in {0, 1}
                  x_t: Tensor,  # [b ...] in {0, 1}
                  kept_s: Tensor,  # the larger share kept, broadcasting
                  kept_t: Tensor) -> Tensor:  # [b ...]
    "q(x_s = 1 | x_t, x0). Eq. 28.2."
    if (kept_s < kept_t).any():
        raise Problem('s is noisier than t here: give the larger share kept as kept_s.')

    # prior q(x_s = 1 | x0)
    prior = chance_one(x0, kept_s)

    # likelihoods q(x_t | x_s = 1) and q(x_t | x_s = 0)
    now = kept_t/kept_s
    from_1 = chance_one(now.new_tensor(1.), now)
    from_0 = chance_one(now.new_tensor(0.), now)
    like_1 = torch.where(x_t == 1, from_1, 1 - from_1)
    like_0 = torch.where(x_t == 1, from_0, 1 - from_0)

    # Bayes
    return like_1*prior/(like_1*prior + like_0*(1 - prior))


def bit_step(x0_hat: Tensor,  # [b ...] in [0, 1]
             x_t: Tensor, kept_s: Tensor, kept_t: Tensor) -> Tensor:
    "p(x_s = 1 | x_t) for a prediction of x0. Eq. 28.3."
    if_0 = bit_posterior(torch.zeros_like(x_t), x_t, kept_s, kept_t)
    if_1 = bit_posterior(torch.ones_like(x_t), x_t, kept_s, kept_t)
    return torch.lerp(if_0, if_1, x0_hat)


# %%NBQA-CELL-SEP15d533
# Eq. 28.2: by enumeration of all paths of one bit over 6 steps
T = 6
a = share_kept(T)
beta = 1 - a[1:]/a[:-1]


def path_weight(path):
    "The probability of a path, given its start."
    bits = torch.tensor(path)
    return flip(bits[:-1], bits[1:], beta).prod().item()


weight = {path: path_weight(path) for path in product((0, 1), repeat=T + 1)}
errors = []
for s, t, x0, x_t in product((1, 2, 4), (3, 5, 6), (0, 1), (0, 1)):
    if s < t:
        paths = {p: w for p, w in weight.items() if p[0] == x0 and p[t] == x_t}
        want = sum(w for p, w in paths.items() if p[s])/sum(paths.values())
        bits = torch.tensor([x0, x_t], dtype=D)
        errors.append(close(bit_posterior(bits[0], bits[1], a[s], a[t]), want))
passed('(28.2) one bit, given both ends', *errors, by='all 128 paths of 6 steps')


# %%NBQA-CELL-SEP15d533
# Eq. 28.3: the true probability of each bit for data of three bits with four states
states = torch.tensor([[1., 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=D)
chance = torch.tensor([.4, .3, .2, .1], dtype=D)
cube = torch.tensor([*product((0., 1.), repeat=3)], dtype=D)


def q(x, y, kept):  # [n d], [m d] -> [n m]
    return flip(x[:, None], y[None], 1 - kept).prod(2)


def truth(s, t):
    "p(bit of x_s = 1 | x_t), for each x_t."
    joint = (chance @ q(states, cube, a[s]))[:, None]*q(cube, cube, a[t]/a[s])
    return (joint.T @ cube)/joint.sum(0)[:, None]


def x0_hat(t):
    "p(bit of x0 = 1 | x_t), for each x_t."
    w = chance[:, None]*q(states, cube, a[t])
    return w.T @ states/w.sum(0)[:, None]


errors = []
for s, t in ((1, 2), (2, 5), (0, 4)):
    errors.append(close(bit_step(x0_hat(t), cube, a[s], a[t]), truth(s, t)))
passed('(28.3) each bit one step back, exactly', *errors, by='enumeration of three bits')


# %%NBQA-CELL-SEP15d533
#| export
def bit_kl(q: Tensor, p: Tensor) -> Tensor:  # both [b ...], chances of a 1
    "KL of two bits, in nats. Eq. 28.4."
    minus_entropy = torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)
    return minus_entropy - torch.xlogy(q, p) - torch.xlogy(1 - q, 1 - p)


# (x_t [b d] in {0, 1}, share kept [b 1]) -> chance of x0 = 1, [b d]
_BitDenoiser = Callable[[Tensor, Tensor], Tensor]


def sequence_bits(denoiser: _BitDenoiser,
                  x0: Tensor,  # [b d] in {0, 1}
                  T: int,
                  t: Tensor,   # [b] in 1 .. T: the step that stands for all
                  ) -> Tensor:  # [b]
    "The bound on -log2 P(x0), by one random step a sequence, times T. Eq. 28.4."
    if not ((x0 == 0) | (x0 == 1)).all():
        raise Problem('Binomial diffusion is for zeros and ones: give data of 0. and 1. '
                      'only.')

    # each sequence at its own step (28.1)
    kept = share_kept(T).to(x0)
    before = kept[t - 1, None]
    now = kept[t, None]
    x_t = torch.bernoulli(chance_one(x0, now))

    # T times one term of (28.4): its mean over t is the sum
    q = bit_posterior(x0, x_t, before, now)
    p = bit_step(denoiser(x_t, now), x_t, before, now)
    return T*bit_kl(q, p).sum(1)/math.log(2)


# %%NBQA-CELL-SEP15d533
#| export
def heartbeat(length: int = 20,
              period: int = 5) -> Tensor:  # [period length]: all there are
    "Sequences of bits with a 1 at every `period`-th place, in each phase."
    return (torch.arange(length) % period == torch.arange(period)[:, None]).float()


class BitOracle:
    "The perfect denoiser of equally likely sequences. Eq. 28.5."

    def __init__(self, states: Tensor):
        self.states = states  # [k d] in {0, 1}

    def __call__(self, x_t: Tensor, kept: Tensor) -> Tensor:
        # log q(x_t | state), [b k]
        one = chance_one(self.states.to(x_t), kept[..., None])  # [b k d]
        x = x_t[:, None]
        log_like = (x*one + (1 - x)*(1 - one)).log().sum(2)

        # the posterior mean of the states
        return log_like.softmax(1) @ self.states.to(x_t)


# %%NBQA-CELL-SEP15d533
# Eq. 28.5: against enumeration of the three-bit cube, for equally likely states;
# near the clean end it is sure
S = states[:3]
w = torch.full((3, 1), 1/3, dtype=D)*q(S, cube, a[4])
want = w.T @ S/w.sum(0)[:, None]
beats = heartbeat().double()
nearly_clean = BitOracle(beats)(beats, torch.full((5, 1), .999, dtype=D))
passed('(28.5) nearly clean heartbeats are recognised', close(nearly_clean, beats, 1e-4))
passed('(28.5) the exact denoiser', close(BitOracle(S)(cube, a[4].expand(8, 1)), want),
       by='enumeration of three bits')


# %%NBQA-CELL-SEP15d533
# Eq. 28.4: the bound as a sum over all of x_t in the three-bit world against the chain's own
# -log P(x0), by matrices: never below, P sums to 1, and the excess falls as 1/T
def chain_bound(T):
    a = share_kept(T)
    world = BitOracle(S)
    kl = 0.
    P = torch.full((8,), 1/8, dtype=D)
    for t in range(T, 0, -1):
        p = bit_step(world(cube, a[t].expand(8, 1)), cube, a[t - 1], a[t])
        P = P @ (p[:, None]*cube + (1 - p[:, None])*(1 - cube)).prod(2)
        for x0 in S:
            post = bit_posterior(x0.expand(8, 3), cube, a[t - 1], a[t])
            kl = kl + q(x0[None], cube, a[t])[0] @ bit_kl(post, p).sum(1)/3

    # P(x0), read off at the three states
    at_states = q(S, cube, torch.tensor(1., dtype=D)) @ P
    return kl/math.log(2), -torch.log2(at_states).mean(), P.sum()


torch.manual_seed(0)
entropy = math.log2(3)
rows = {T: chain_bound(T) for T in (2, 8, 32, 128)}
for T, (b, c, _) in rows.items():
    print(f'{T:3d} steps: bound {b:.4f} bits, the chain itself {c:.4f}, entropy {entropy:.4f}')
assert all(b >= c - 1e-12 and c >= entropy - 1e-12 for b, c, _ in rows.values())

x0 = S.repeat(4000, 1)
t = torch.randint(1, 9, (12_000,))
some = sequence_bits(BitOracle(S), x0, 8, t)
fall = (rows[128][0] - entropy)/(rows[32][0] - entropy)
passed('(28.4) the probabilities of the chain sum to 1', close(rows[8][2], 1.), by='matrices')
by_sum = close(some.mean(), rows[8][0], 5*some.std().item()/12_000**.5)
passed('(28.4) random steps estimate the bound', by_sum, by='the sum over all x_t')
passed('(28.4) four times the steps, a quarter of the excess', close(fall, .25, .05))


# %%NBQA-CELL-SEP15d533
# Figure 28.2: bits above the entropy, by the number of steps
_, ax = plt.subplots(figsize=(7, 2.2), layout='constrained', dpi=160)
many = [*rows]
ax.plot(many, [b - entropy for b, _, _ in rows.values()], 'o-', color='tab:blue', markersize=4)
ax.plot(many, [c - entropy for _, c, _ in rows.values()], 'o-', color='black', markersize=4)
ax.text(9, .3, 'the bound (28.4)', color='tab:blue')
ax.text(8, .045, 'the chain itself', ha='center')
ax.set(xscale='log', yscale='log', xlabel='steps', ylabel='bits above the entropy')
ax.set_xticks(many, many)
ax.minorticks_off()


# %%NBQA-CELL-SEP15d533
#| export
class BitNet(nn.Module):
    "A network for bits: (x_t, share kept) -> chance that each bit of x0 is 1. Eq. 28.3."

    def __init__(self, net: nn.Module):  # net(x [b d], time [b]) -> [b d], logits
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, kept: Tensor) -> Tensor:
        chance = self.net(2*x_t - 1, 1000*(1 - kept[:, 0])).sigmoid()
        return chance.clamp(1e-6, 1 - 1e-6)  # a chance of 0 could cost infinite bits


def bit_chain(denoiser: _BitDenoiser, x: Tensor, T: int,
              every: int = 1) -> Iterator[Tensor]:  # x [b d]: coins
    "Run the chain backwards from coins; yields each state, the last one clean. Eq. 28.3."
    kept = share_kept(T)[range(T, -1, -every)].to(x)
    if kept[-1] != 1:
        raise Problem(f'A stride of {every} does not end at the data: choose a '
                      f'divisor of {T}.')

    # x_s is tossed with the chance p(x_s = 1 | x_t) (28.3)
    with torch.no_grad():
        for t, s in zip(kept, kept[1:]):
            x0_hat = denoiser(x, t.expand(len(x), 1))
            x = torch.bernoulli(bit_step(x0_hat, x, s, t))
            yield x


# %%NBQA-CELL-SEP15d533
# Eq. 28.3: the network gets -1 and 1, and a time from 0 to 1000 that grows with noise;
# its logits become chances, none of them quite 0 or 1
class Echo(nn.Module):
    def forward(self, x, time):
        return x - time[:, None]/500


beats = heartbeat().double()
logit = BitNet(Echo())(beats, torch.full((5, 1), .25, dtype=D)).logit()
sure = BitNet(lambda x, time: 99*x)(beats, torch.ones(5, 1))
assert ((sure > 0) & (sure < 1)).all()
passed('(28.3) input and output of the network', close(sure, beats, 2e-6),
       close(logit, torch.where(beats == 1, -.5, -2.5).double()))


# %%NBQA-CELL-SEP15d533
def even_steps(n):
    "n steps, one in each n-th of 1 .. T."
    u = (torch.arange(n) + torch.rand(n))/n
    return (u*T).long().clamp(max=T - 1) + 1


def bits_of(net, data, n):
    "The bound for n sequences of the data, a random step each."
    x0 = data[torch.randint(len(data), (n,))]
    t = even_steps(n)[torch.randperm(n)]
    return sequence_bits(net, x0, T, t).mean()


def train(net, data, steps):
    opt = torch.optim.Adam(net.parameters(), 4e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    losses = []
    for _ in range(steps):
        loss = bits_of(net, data, 256)
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
        rate.step()
    return losses


T = 2000
beats = heartbeat()
torch.manual_seed(0)
net = BitNet(MLP(20, 64, 2))
steps = budget(500, 3000)
losses = train(net, beats, steps)


# %%NBQA-CELL-SEP15d533
# Figure 28.3: the bound during training
_, ax = plt.subplots(figsize=(7, 2.2), layout='constrained', dpi=160)
in_tens = torch.tensor(losses).reshape(-1, 10).mean(1)
ax.plot(range(0, steps, 10), in_tens, color='tab:blue')
ax.axhline(math.log2(5), color='black', linestyle='--', lw=1)
ax.text(.12*steps, 15, 'bound, means of ten steps', color='tab:blue')
ax.text(.02*steps, 2.1, 'entropy, 2.32 bits', va='top')
ax.set(xlabel='training step', ylabel='bits per sequence', yscale='log', ylim=(1.5, None))
ax.set_yticks([2, 5, 10, 20, 50], [2, 5, 10, 20, 50])
ax.minorticks_off()


# %%NBQA-CELL-SEP15d533
# Eq. 28.4: bits for a sequence of oracle and network on the same chain, within their errors:
# above the entropy, and near it
x0 = beats.repeat(10_000, 1)
t = even_steps(50_000)[torch.randperm(50_000)]
mean, error, each = {}, {}, {}
for name, denoiser in (('oracle', BitOracle(beats)), ('network', net)):
    torch.manual_seed(2)  # the same x_t for both
    with torch.no_grad():
        v = sequence_bits(denoiser, x0, T, t)
    each[name] = v
    mean[name] = v.mean().item()
    error[name] = v.std().item()/len(v)**.5

entropy = math.log2(5)
print(f'entropy   {entropy:.3f} bits per sequence')
for name in mean:
    print(f'{name:8}  {mean[name]:.3f} ± {error[name]:.3f}')
paired = (each['network'] - each['oracle']).std().item()/len(v)**.5
print(f'network − oracle {mean["network"] - mean["oracle"]:.3f} ± {paired:.3f}; '
      f'the paper − entropy {2.414 - entropy:.3f}')
assert mean['oracle'] + 3*paired < mean['network'] < 3
assert mean['network'] > entropy - 5*error['network']
passed('(28.4) the oracle pays the entropy, up to five standard errors',
       close(mean['oracle'], entropy, 5*error['oracle'] + .01))


# %%NBQA-CELL-SEP15d533
torch.manual_seed(2)
coins = torch.bernoulli(torch.full((400, 20), .5))
film = [coins, *bit_chain(net, coins, T, 20)]


# %%NBQA-CELL-SEP15d533
# Figure 28.4: eight runs of the network
fig, axes = plt.subplots(1, 4, figsize=(7, 1.25), layout='constrained', dpi=160)
at = {'coins': 0, 'after 60 %': 60, 'after 90 %': 90, 'end': 100}
for ax, (name, i) in zip(axes, at.items()):
    bit_panels(ax, film[i][:8], name)


# %%NBQA-CELL-SEP15d533
# Eq. 28.3: nearly all samples of the network are heartbeats, in all five phases alike;
# a divisor of T as stride is a shorter run
def phases(x):
    "The share of samples that are a heartbeat of each phase."
    return (x[:, None] == beats).all(2).double().mean(0)


share = phases(film[-1])
print(f'{share.sum():.1%} of 400 samples are heartbeats; by phase:',
      ', '.join(f'{v:.2f}' for v in share))
assert share.sum() > .95 and len(film) == 101
*_, ideal = bit_chain(BitOracle(beats), coins, T, 20)
found = phases(ideal)
passed('(28.3) the five phases are equally frequent, within 0.12',
       close(found/found.sum(), .2, 5*.4/20 + .01), close(share/share.sum(), .2, .12))


# %%NBQA-CELL-SEP15d533
with expect_fail('zeros and ones', Problem):
    sequence_bits(net, .5*beats, T, torch.ones(5, dtype=torch.long))
with expect_fail('at least 2', Problem):
    share_kept(1)
with expect_fail('larger share kept', Problem):
    bit_posterior(beats, beats, torch.tensor(.2), torch.tensor(.3))
with expect_fail('choose a divisor', Problem):
    next(bit_chain(net, coins, T, 7))


# %%NBQA-CELL-SEP15d533
# questions 1 and 2: the bound of one bit, two steps, summed over x0 and x_t, less the entropy;
# the denoiser at share 0
bit = BitOracle(torch.tensor([[1.], [0.], [0.]], dtype=D))
a = share_kept(2)
total = 0.
for t, x0, x_t in product((1, 2), (0., 1.), (0., 1.)):
    x0, x_t = torch.tensor([[[x0]], [[x_t]]], dtype=D)
    chance = 1/3 if x0 == 1 else 2/3
    seen = chance_one(x0, a[t])
    seen = torch.where(x_t == 1, seen, 1 - seen)
    q_s = bit_posterior(x0, x_t, a[t - 1], a[t])
    p_s = bit_step(bit(x_t, a[t].expand(1, 1)), x_t, a[t - 1], a[t])
    total += chance*seen*bit_kl(q_s, p_s)
excess = torch.tensor([[math.log2(3) - 2/3]], dtype=D)
blind = BitOracle(beats)(coins[:9], torch.zeros(9, 1))
passed('question 1: two steps pay the entropy of one bit', close(total/math.log(2), excess))
passed('question 2: one fifth for each bit', close(blind, .2, 1e-6))


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 1
guess = ...


def free(x, kept):
    "The perfect denoiser of fair bits."
    return (1 + kept*(2*x - 1))/2


x0 = torch.randint(2, (200_000, 10)).double()
t = torch.randint(1, 101, (200_000,))
close(sequence_bits(free, x0, 100, t).mean(), guess, .3)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 2
def wrong(t, T): ...


x0 = torch.ones(200_000)
x_t = torch.bernoulli(chance_one(x0, share_kept(100)[30].float()))
close(wrong(30, 100), (x_t != x0).double().mean(), 5*.5/200_000**.5)


# %%NBQA-CELL-SEP15d533
#| eval: false
# exercise 3: the entropy of the data, then your network's bound
entropy = ...
bound = ...
close(entropy, math.log2(7))
assert entropy - .05 < bound < entropy + .5


# %%NBQA-CELL-SEP15d533
# solution 1: the entropy is 10 bits, and nothing is lost: bits that are independent
# may be drawn independently
guess = 10


def free(x, kept):
    "The perfect denoiser of fair bits."
    return (1 + kept*(2*x - 1))/2


x0 = torch.randint(2, (200_000, 10)).double()
t = torch.randint(1, 101, (200_000,))
close(sequence_bits(free, x0, 100, t).mean(), guess, .3)


# %%NBQA-CELL-SEP15d533
# solution 2: with probability 1 - t/T it was tossed never, and then it is right;
# else it is a fair coin, wrong in half the cases
def wrong(t, T):
    return t/(2*T)


x0 = torch.ones(200_000)
x_t = torch.bernoulli(chance_one(x0, share_kept(100)[30].float()))
close(wrong(30, 100), (x_t != x0).double().mean(), 5*.5/200_000**.5)


# %%NBQA-CELL-SEP15d533
# solution 3: there are seven sequences; the same training, but 300 steps
torch.manual_seed(0)
seven = heartbeat(21, 7)
seven_net = BitNet(MLP(21, 64, 2))
train(seven_net, seven, 300)
entropy = math.log2(7)
x0 = seven[torch.randint(7, (100_000,))]
with torch.no_grad():
    bound = sequence_bits(seven_net, x0, T, even_steps(100_000)).mean().item()
print(f'{bound:.2f} bits, entropy {entropy:.2f}')
close(entropy, math.log2(7))
assert entropy - .05 < bound < entropy + .5
