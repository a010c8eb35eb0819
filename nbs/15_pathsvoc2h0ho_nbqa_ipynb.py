# %%NBQA-CELL-SEP7dc948
#| default_exp diffusion.paths


# %%NBQA-CELL-SEP7dc948
import torch


def sweep(path, step):  # path [n+1 ...], a guess of the run
    after = step(path[:-1], range(len(path) - 1))  # all n steps in one batch
    new = [path[0]]
    for old, stepped in zip(path, after):
        new.append(stepped + (new[-1] - old))
    return torch.stack(new)


def keep_or_mirror(x, draft_mean, mean, std):  # [b d], [b d], [b d], a number
    z = (x - draft_mean)/std
    d = (mean - draft_mean)/std
    dz = (d*z).sum(1, keepdim=True)
    dd = (d*d).sum(1, keepdim=True)

    kept = torch.rand(len(x), 1).log().to(x) <= dz - dd/2
    mirrored = mean + std*(z - 2*dz/dd.clamp(min=1e-30)*d)
    return torch.where(kept, x, mirrored), kept


# %%NBQA-CELL-SEP7dc948
#| export
from typing import Callable, Iterator
import torch
from torch import Tensor
from ddpm_lit.core.denoiser import Denoiser
from ddpm_lit.core.level import Level, append_dims
from ddpm_lit.core.problem import Problem
from ddpm_lit.diffusion.posterior import posterior
from ddpm_lit.diffusion.sample import Gaussian, steps
from ddpm_lit.diffusion.schedule import Grid


# %%NBQA-CELL-SEP7dc948
#| hide
# Set-up: imports, a mixture on a line, a ring of eight Gaussians, digits and their network
import math
import matplotlib.pyplot as plt
from ddpm_lit.core.check import close, expect_fail, passed, setup
from ddpm_lit.core.denoiser import Prediction
from ddpm_lit.data.images import mnist, to_unit
from ddpm_lit.diffusion import paths as library  # the figure comes before the functions
from ddpm_lit.diffusion.forward import q_sample
from ddpm_lit.diffusion.oracle import Mixture, ring
from ddpm_lit.diffusion.sample import Counted, ancestral, ddim, last
from ddpm_lit.diffusion.schedule import Cosine, grid, karras
from ddpm_lit.diffusion.solve import heun
from ddpm_lit.show import INK
from ddpm_lit.train.weights import load_weights

setup()
D = torch.float64


def number(v):
    "Numbers in float64."
    return torch.tensor(v, dtype=D)


class ByRow:
    "A denoiser to which every row brings its own level, also where all are the same."

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, x, t):
        log_snr = t.log_snr.reshape(-1).to(x)
        return self.denoiser(x, Level(log_snr.expand(len(x)) if len(log_snr) == 1 else log_snr)
                             .like(x))


line = ByRow(Mixture(number([.3, .7]), number([[-1.5], [.8]]), number([.25, .4])))
torch.manual_seed(0)
starts = torch.randn(256, 1, dtype=D)
slow = grid(Cosine(), 64)
in_order = torch.stack([starts, *ddim(line, slow, starts)])

network, _ = load_weights('mnist')
network.eval()
torch.manual_seed(3)
noise = torch.randn(1, 1, 28, 28)


class Places:
    "A denoiser of one sample that notes where each call looks."

    def __init__(self, denoiser, levels):
        self.denoiser, self.levels, self.found = denoiser, levels.log_snr, []

    def __call__(self, x, t):
        self.found.append((self.levels - t.log_snr.reshape(-1)[0]).abs().nan_to_num(0.).argmin()
                          .item())
        return self.denoiser(x, t)


hundred = grid(Cosine(), 100)
calls = Places(network.given(torch.tensor([5])), hundred)
drawn = last(library.speculative(calls, hundred, noise))

few = karras(12, .05, 20.)
real = mnist('test')
digits = to_unit(torch.stack([real.pixels[(real.label == k).nonzero()[0, 0]] for k in (2, 5, 8)]))
torch.manual_seed(1)
eps = torch.randn_like(digits)
known = network.given(torch.tensor([2, 5, 8]))


def there_and_back():
    "Digits walked up to noise and down again: by DDIM, and by the step through two states."
    first = Level(few.log_snr[-2])
    noisy = q_sample(digits, first, eps)
    up = last(ddim(known, few.flip(), noisy))
    yield last(ddim(known, few, up))
    top = [digits, noisy, *library.leapfrog(known, Grid(few.log_snr.flip(0)), (digits, noisy))]
    yield last(library.leapfrog(known, few, (top[-1], top[-2])))


by_ddim, by_leapfrog = there_and_back()


# %%NBQA-CELL-SEP7dc948
# Figure 15.1: sweeps on a line; calls of one digit; digits there and back
fig = plt.figure(figsize=(7, 2.5), dpi=160, layout='constrained')
left, middle, right = fig.subfigures(1, 3, width_ratios=(1, 1, .95))
ax = left.subplots()
errors = [(path - in_order).abs().amax((1, 2)).clamp(min=1e-16).log10()
          for _, path in zip(range(24), library.sweeps(line, slow, starts))]
shown = ax.imshow(torch.stack(errors), aspect='auto', origin='lower', cmap='Greys',
                  vmin=-16, vmax=0, extent=(0, 64, .5, 24.5))
ax.set(xlabel='step of the run', ylabel='sweep', title='all at once', yticks=(1, 8, 16, 24))
ax.text(20, 22.3, 'exact', ha='center')
ax.text(46, 4, 'a guess', color='white', ha='center')

ax = middle.subplots()
for call, (a, b) in enumerate(zip(calls.found[1:], [*calls.found[2:], 100])):
    got = b - a
    ax.plot(range(a + 1, b + 1), [call + 1]*got, 's', ms=1.8, color=INK['model'])
    ax.plot(range(b + 1, a + 5), [call + 1]*(4 - got), 's', ms=1.8, color='.85')
ax.plot([0, 100], [0, 100], color='.6', lw=1)
ax.text(60, 72, 'one call a step', color='.5', ha='right', fontsize=8)
ax.text(98, 8, f'{len(calls.found)} calls', color=INK['model'], ha='right')
ax.set(xlabel='step of the run', ylabel='call of the network', title='drafted ahead', xlim=(0, 101),
       ylim=(0, 100))

axes = right.subplots(3, 3, gridspec_kw=dict(wspace=.05, hspace=.05))
for row, pictures, name in zip(axes, (digits, by_ddim, by_leapfrog),
                               ('real', 'DDIM', 'two states')):
    for place, picture in zip(row, pictures):
        place.imshow(picture[0].clamp(-1, 1), cmap='gray', vmin=-1, vmax=1)
        place.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=8)
right.suptitle('up to noise and back', fontsize=9)


# %%NBQA-CELL-SEP7dc948
# The plain code against the library's: a sweep, and drafts with the same chances
def plain_step(x, places):
    t = Level(slow.log_snr[[*places]][:, None, None])
    s = Level(slow.log_snr[[j + 1 for j in places]][:, None, None])
    p = line(x.flatten(0, 1), Level((t.log_snr + 0*x).flatten(0, 1)))
    return s.signal*p.x0.reshape(x.shape) + s.sigma*p.eps.reshape(x.shape)


plain, ours = starts.expand(65, 256, 1), library.sweeps(line, slow, starts)
for _ in range(3):
    plain = sweep(plain, plain_step)
    theirs = next(ours)
sweep_error = close(plain, theirs, 1e-12)

torch.manual_seed(0)
draft_mean, mean, x = torch.randn(3, 400, 2, dtype=D)
torch.manual_seed(1)
plain = keep_or_mirror(x, draft_mean, mean, .7)
torch.manual_seed(1)
theirs = library.keep_or_mirror(Gaussian(draft_mean, number(.7)), Gaussian(mean, number(.7)), x,
                                torch.rand(400, 1)[:, 0])
assert torch.equal(plain[1][:, 0], theirs[1])
passed('plain code = library', sweep_error, close(plain[0], theirs[0], 1e-12))


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def sweeps(denoiser: Denoiser,  # of n*b rows, each with its own level
           levels: Grid,        # of n steps
           x: Tensor,           # [b ...] at the first level
           ) -> Iterator[Tensor]:  # [n+1 b ...] after each sweep, the last one the run
    "All steps of DDIM at once, from the states of the last sweep. Eq. 15.1-15.2."
    n = len(steps(levels))
    rows = x.repeat(n, *[1]*(x.ndim - 1))
    t, s = (Level(log_snr.repeat_interleave(len(x))).like(rows)
            for log_snr in (levels.log_snr[:-1], levels.log_snr[1:]))
    path = x.expand(n + 1, *x.shape)

    while True:
        # every step from its old state, in one batch
        p = denoiser(path[:-1].flatten(0, 1), t)
        after = (s.signal*p.x0 + s.sigma*p.eps).reshape(n, *x.shape)

        # moved by how far that state has moved (15.2)
        new = [x]
        for old, stepped in zip(path, after):
            new.append(stepped + (new[-1] - old))
        before, path = path, torch.stack(new)
        yield path
        if torch.equal(path, before):
            return


# %%NBQA-CELL-SEP7dc948
# Eq. 15.1, 15.2: the sum over the run's own states; sweeps end at the run, state by state
changes = (in_order[1:] - in_order[:-1]).cumsum(0)
passed('(15.1) a state is the first and all changes',
       close(in_order[0] + changes, in_order[1:], 1e-12))

far = []
for k, path in zip(range(1, 25), sweeps(line, slow, starts)):
    # as many states as there were sweeps are those of the run, up to rounding in a larger batch
    close(path[:k + 1], in_order[:k + 1], 1e-13)
    far.append((path - in_order).abs().max().item())
needed = next(k for k, e in enumerate(far, 1) if e < 1e-4)
print(f'64 steps in {needed} sweeps up to 1e-4')
assert needed < 20
passed('(15.2) after 24 sweeps all 64 steps are those taken in order', close(path, in_order, 1e-12))

# the baseline, old states stepped and not moved, needs the 64 sweeps
plain = starts.expand(65, 256, 1)
for _ in range(needed):
    plain = torch.cat([starts[None], plain_step(plain[:-1], range(64))])
assert (plain - in_order).abs().max() > .1, 'without the bracket it would be as quick'

# digits: how near the last states of 20 steps are after each sweep
twenty = grid(Cosine(), 20)
tens = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
label = torch.arange(4)
run = last(ddim(network.given(label), twenty, tens))
apart = {k: (path[-1] - run).square().mean().sqrt().item() for k, path in
         zip(range(1, 11), sweeps(network.given(label.repeat(20)), twenty, tens))}
print('digits of 20 steps, distance from the run in order: ' +
      ', '.join(f'{apart[k]:.3f} after {k} sweeps' for k in (2, 4, 6, 8, 10)))
assert apart[8] < .05 < apart[2]


# %%NBQA-CELL-SEP7dc948
#| export
def _dot(a: Tensor, b: Tensor) -> Tensor:  # [b ...] -> [b]
    return (a*b).flatten(1).sum(1)


def keep_or_mirror(draft: Gaussian, target: Gaussian,  # of one std, above 0
                   x: Tensor,      # [b ...] drawn from the draft
                   chance: Tensor  # [b], uniform in [0, 1)
                   ) -> tuple[Tensor, Tensor]:  # [b ...], and which were kept [b]
    "A draw from the target that is the draft's, or its mirror image. Eq. 15.3-15.4."
    z = (x - draft.mean)/draft.std
    d = (target.mean - draft.mean)/draft.std
    kept = chance.to(x).log() <= _dot(d, z) - _dot(d, d)/2  # (15.3)

    along = 2*_dot(d, z)/_dot(d, d).clamp(min=1e-30)
    mirrored = target.mean + draft.std*(z - append_dims(along, x)*d)  # (15.4)
    return torch.where(append_dims(kept, x), x, mirrored), kept


# %%NBQA-CELL-SEP7dc948
# Eq. 15.3-15.5: against log densities; 15.4: against the mirror at the middle plane; the
# distribution and the share kept (15.5) by draws, beside a draft that is drawn afresh
torch.manual_seed(0)
draft, target = Gaussian(number([[.3, -.2]]), number(.8)), Gaussian(number([[1., .5]]), number(.8))
z = torch.randn(400_000, 2, dtype=D)
x = draft.sample(z)
chance = torch.rand(len(x), dtype=D)
new, kept = keep_or_mirror(draft, target, x, chance)


def log_prob(g, x):
    return torch.distributions.Normal(g.mean, g.std).log_prob(x).sum(1)


ratio = (log_prob(target, x) - log_prob(draft, x)).exp().clamp(max=1)
assert torch.equal(kept, chance <= ratio)
middle, gap = (draft.mean + target.mean)/2, target.mean - draft.mean
across = x - 2*((x - middle)*gap).sum(1, keepdim=True)/gap.square().sum()*gap
mirror_error = close(new, torch.where(kept[:, None], x, across), 1e-12)
passed('(15.3), (15.4) which are kept, and where the others go', mirror_error,
       by='densities, a mirror')

d = (gap.norm()/draft.std).item()
overlap = math.erfc(d/2/math.sqrt(2))
shares = kept.to(D).mean().item() - overlap
std_error = math.sqrt(overlap*(1 - overlap)/len(x))
passed('(15.5) the share of drafts kept', close(kept.to(D).mean(), number(overlap), 5*std_error),
       by=f'{len(x):,} draws, standard error {std_error:.0e}')

lost = 4*.8/math.sqrt(len(x))
moments = close(new.mean(0), target.mean[0], lost), close(new.std(0), number([.8, .8]), lost)
passed('what comes out has the mean and std of the target', *moments, by='4 standard errors')
afresh = torch.where(kept[:, None], x, target.sample(torch.randn_like(x)))
assert (afresh.mean(0) - target.mean[0]).abs().max() > 20*lost, 'drawn afresh it would be as good'


# %%NBQA-CELL-SEP7dc948
# Figure 15.2: draft and target, what is kept, what is mirrored
fig, ax = plt.subplots(figsize=(7, 2.1), dpi=160, layout='constrained')
at = torch.linspace(-3.2, 4.4, 500)


def bell(m):
    return (-(at - m).square()/2).exp()/math.sqrt(2*math.pi)


q, p = bell(0.), bell(1.2)
ax.fill_between(at, torch.minimum(p, q), color='.9', lw=0)
ax.fill_between(at, p, q, where=q > p, color=INK['guidance'], alpha=.25, lw=0)
ax.fill_between(at, q, p, where=p > q, color=INK['model'], alpha=.25, lw=0)
ax.plot(at, q, color=INK['guidance'], lw=1.2)
ax.plot(at, p, color=INK['model'], lw=1.2)
ax.plot([.6, .6], [.2, .47], color='.5', lw=.8, ls=':')
ax.annotate('', (1.75, .27), (-.55, .27), arrowprops=dict(arrowstyle='->', color='.3',
            connectionstyle='arc3,rad=-.45'))
ax.text(.6, .1, 'kept', ha='center')
ax.text(-1.15, .25, 'draft $q$', color=INK['guidance'], ha='right')
ax.text(2.35, .25, 'target $p$', color=INK['model'])
ax.text(.6, .475, 'mirror', fontsize=8, color='.3', ha='center')
ax.set(yticks=[], ylim=(0, .52), xlabel="stds from the draft's mean")
ax.spines[['left', 'top', 'right']].set_visible(False)


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def speculative(denoiser: Denoiser,  # of ahead*b rows, each with its own level
                levels: Grid,
                x: Tensor,       # [b ...] at the first level
                ahead: int = 4,  # steps drafted for each call
                noise: Callable[[Tensor], Tensor] = torch.randn_like
                ) -> Iterator[Tensor]:  # [b ...] after each call; at any levels
    "`ancestral` in fewer calls: steps drafted, then kept or mirrored. Eq. 15.3-15.6."
    if ahead < 1:
        raise Problem(f'A call approves {ahead} drafts: make `ahead` 1 or more.')
    n = len(steps(levels))
    log_snr = levels.log_snr.to(x.device)
    at = torch.zeros(len(x), dtype=torch.long, device=x.device)  # steps done, a row

    # the first prediction, in a batch as large as all later ones
    rows = x.repeat(ahead, *[1]*(x.ndim - 1))
    x0 = denoiser(rows, Level(log_snr[at.repeat(ahead)]).like(rows)).x0[:len(x)]

    while (at < n).any():
        # draft with the old prediction; a row that is done drafts its last step again
        states, drafts, ends = [x], [], []
        for j in range(ahead):
            i = (at + j).clamp(max=n - 1)
            t, s = Level(log_snr[i]).like(x), Level(log_snr[i + 1]).like(x)
            mean, std = posterior(x0, states[-1], s, t)
            drafts.append(Gaussian(mean, std))
            states.append(drafts[-1].sample(noise(x)))
            ends.append((t, s))

        # one call for all of them
        every = Level(torch.cat([t.log_snr for t, _ in ends]))
        found = denoiser(torch.cat(states[:-1]), every).x0.split(len(x))

        # approve until one is not kept
        going = at < n
        rounds = zip(ends, drafts, states, states[1:], found)
        for (t, s), draft, before, drawn, new in rounds:
            target, std = posterior(new, before, s, t)
            safe = std.clamp(min=1e-30)
            both = Gaussian(draft.mean, safe), Gaussian(target, safe)
            y, kept = keep_or_mirror(*both, drawn,
                                     torch.rand(len(x), device=x.device))
            y = torch.where(std > 0, y, target)  # the last step draws nothing
            here = append_dims(going, x)
            x, x0 = torch.where(here, y, x), torch.where(here, new, x0)
            at = at + going
            going = going & kept & (at < n)
        yield x


# %%NBQA-CELL-SEP7dc948
# Eq. 15.6: the gap of the means; the chain's distribution on a line, where a recursion gives that
# of ancestral sampling; an always-kept draft fails; conditions of their own for the rows
t, s = Level(number(-1.)), Level(number(-.6))
old, new, x = torch.randn(3, 5, 1, dtype=D)
means = [posterior(x0, x, s, t)[0] for x0 in (old, new)]
weight = posterior(torch.ones(1, 1, dtype=D), torch.zeros(1, 1, dtype=D), s, t)[0]
std = posterior(old, x, s, t)[1]
passed('(15.6) what separates draft and step', close((means[1] - means[0])/std,
       weight/std*(new - old), 1e-12),
       close(weight/std, (s.log_snr.exp() - t.log_snr.exp()).sqrt(), 1e-12), by='(12.4)')

# data N(.3, .5^2): every step of the chain is linear, so its end is Gaussian
steep = Mixture(torch.ones(1), torch.tensor([[.3]]), torch.tensor([.5]))
coarse = grid(Cosine(), 12)
m, v = 0., 1.
for t, s in steps(coarse):
    slope = steep(torch.ones(1, 1), t).x0 - steep(torch.zeros(1, 1), t).x0
    zero = posterior(steep(torch.zeros(1, 1), t).x0, torch.zeros(1, 1), s, t)[0].item()
    one = posterior(steep(torch.ones(1, 1), t).x0, torch.ones(1, 1), s, t)
    m, v = zero + (one[0].item() - zero)*m, (one[0].item() - zero)**2*v + float(one[1])**2
torch.manual_seed(0)
many = torch.randn(60_000, 1)
out = last(speculative(steep, coarse, many))
error = 4*math.sqrt(v/len(many))
passed('the chain has the distribution of ancestral sampling: mean and std after 12 steps',
       close(out.mean(), torch.tensor(m), error),
       close(out.std(), torch.tensor(math.sqrt(v)), error), by='its recursion, 4 standard errors')


def always(draft, target, x, chance):
    return x, torch.ones(len(x), dtype=torch.bool)


mirror, keep_or_mirror = keep_or_mirror, always
careless = last(speculative(steep, coarse, many))
keep_or_mirror = mirror
assert abs(careless.std().item() - math.sqrt(v)) > 4*error, 'drafts kept without asking are as good'

# rows with conditions of their own: each ends at its own point
points = number([[-1.], [2.], [.5]])


def of_points(x, t):
    return Prediction(points.repeat(4, 1), 0*x)


drawn = last(speculative(of_points, coarse, torch.randn(3, 1, dtype=D), ahead=4))
assert torch.allclose(drawn, points), 'rows do not end at their own points'


# %%NBQA-CELL-SEP7dc948
# Measured: calls one after another for one sample (mean of 6 points, of 2 digits, one seed)
def count(denoiser, x, n, ahead):
    c = Counted(denoiser)
    last(speculative(c, grid(Cosine(), n), x, ahead))
    return c.nfe


torch.manual_seed(0)
points = torch.randn(6, 2)
pictures = torch.randn(2, 1, 28, 28)
print('steps  drafts a call  ring  digits')
kept = {}
for n, ahead in ((100, 4), (100, 8), (200, 4)):
    ring_calls = sum(count(ring(), x[None], n, ahead) for x in points)/len(points)
    of_digits = [count(network.given(torch.tensor([k])), x[None], n, ahead)
                 for k, x in zip((3, 8), pictures)]
    kept[n, ahead] = n/(sum(of_digits)/2)
    print(f'{n:5}  {ahead:13}  {ring_calls:4.0f}  {sum(of_digits)/2:6.0f}')
assert kept[200, 4] > kept[100, 4] > 2, 'a call is not worth two steps, or a finer grid keeps less'


# %%NBQA-CELL-SEP7dc948
#| export
@torch.no_grad()
def leapfrog(denoiser: Denoiser, levels: Grid,  # finite noise; up or down
             pair: tuple[Tensor, Tensor],       # states at the first two levels
             ) -> Iterator[Tensor]:             # states at the others
    "The flow by steps through two states, which undo themselves. Eq. 15.7-15.8 (BELM)."
    if len(levels) < 2:
        raise Problem('A step through two states needs three levels: give a grid of two '
                      'steps or more.')
    if not (levels.log_snr > -torch.inf).all():
        raise Problem('Pure noise has no signal to divide by: begin at a finite level, '
                      'as karras(n) does.')
    at = [Level(log_snr) for log_snr in levels.log_snr]
    before, y = (x/t.signal for x, t in zip(pair, at))

    for u, t, s in zip(at, at[1:], at[2:]):
        eps = denoiser(y*t.signal, t).eps
        step, last_step = s.edm_sigma - t.edm_sigma, t.edm_sigma - u.edm_sigma
        beta = (step/last_step)**2
        before, y = y, (1 - beta)*y + beta*before + (step + beta*last_step)*eps
        yield y*s.signal


# %%NBQA-CELL-SEP7dc948
# Eq. 15.7, 15.8: exact where the slope is linear in kappa; there and back; second order; DDIM's way
# back fails
k = number([3., 1.8, .7])
a, b, c = .4, -1.1, .6
levels = Grid(-2*k.log())


def of_parabola(x, t):
    "The slope of a + b kappa + c kappa^2, as predicted noise."
    return Prediction(x, b + 2*c*t.edm_sigma + 0*x)


def parabola(kappa):
    "States x of y = a + b kappa + c kappa^2."
    level = Level(-2*kappa.log())
    return ((a + b*kappa + c*kappa**2)*level.signal).reshape(1, 1)


y = last(leapfrog(of_parabola, levels, (parabola(k[0]), parabola(k[1]))))
passed('(15.7) right for a parabola', close(y, parabola(k[2]), 1e-12))


def solve(n):
    "n steps on the mixture, the first one by DDIM."
    levels = karras(n, .03, 40.)
    first = next(ddim(line, levels, starts))
    return [starts, first, *leapfrog(line, levels, (starts, first))]


fine = last(heun(line, Grid(karras(1000, .03, 40.).log_snr[:-1]), starts))


def of_levels(n):
    "The distance from a fine run at the last level above CLEAN, by leapfrog and by DDIM."
    by_ddim = [*ddim(line, karras(n, .03, 40.), starts)][-2]
    return [(x - fine).square().mean().sqrt().item() for x in (solve(n)[-2], by_ddim)]


found = {n: of_levels(n) for n in (40, 80, 160, 320)}
print('\n'.join(f'{n:3} steps: {leap:.4f}, DDIM {euler:.4f}' for n, (leap, euler) in found.items()))
order = [math.log2(a/b) for a, b in zip(found[160], found[320])]
passed('second order, where DDIM is of first', close(number(order), number([2., 1.]), .2),
       by='Heun in 1,000 steps')
assert found[40][0] < found[80][1]

down = solve(50)
up = last(leapfrog(line, Grid(karras(50, .03, 40.).log_snr.flip(0)), (down[-1], down[-2])))
passed('(15.8) down and up again', close(up, starts, 1e-10), by='where it began')
ends = [*ddim(line, karras(50, .03, 40.), starts)]
again = last(ddim(line, karras(50, .03, 40.).flip(), ends[-2]))
print(f'by DDIM it misses by {(again - starts).abs().max():.2f}')
assert (again - starts).abs().max() > .05
passed('digits of Figure 15.1 come back', close(by_leapfrog, digits, .02), by='the test set')
assert (by_ddim - digits).square().mean().sqrt() > .05


# %%NBQA-CELL-SEP7dc948
with expect_fail('make `ahead` 1 or more', Problem):
    next(speculative(line, slow, starts, ahead=0))
with expect_fail('begin at a finite level', Problem):
    next(leapfrog(line, Grid(number([-math.inf, 0., 1.])), (starts, starts)))
with expect_fail('needs three levels', Problem):
    next(leapfrog(line, karras(1), (starts, starts)))

# a small error in the second state: by how much it is multiplied until the end
even = Grid(-2*torch.linspace(40., .03, 51, dtype=D).log())
shrinking = Grid(karras(50, .03, 40.).log_snr[:-1])


def gain(levels, rest):
    "The shift of the last y, for a small one of the second; `rest` takes the other steps."
    second = next(ddim(line, levels, starts))
    first_signal, last_signal = (Level(levels.log_snr[j]).signal for j in (1, -1))
    shifted = rest(levels, second + 1e-5*first_signal)
    return ((shifted - rest(levels, second))/last_signal).abs().mean().item()/1e-5


def by_leapfrog_from(levels, second):
    return last(leapfrog(line, levels, (starts, second)))


def by_ddim_from(levels, second):
    return last(ddim(line, Grid(levels.log_snr[1:]), second))


gains = {}
for name, levels in (('even', even), ('shrinking', shrinking)):
    gains[name] = gain(levels, by_leapfrog_from), gain(levels, by_ddim_from)
    print(f'{name} steps: an error of the second state grows {gains[name][0]:.3f}-fold, '
          f'with DDIM {gains[name][1]:.3f}-fold')
assert gains['even'][0] > 1 > 10*gains['shrinking'][0]
assert gains['even'][1] < .1

# where the predicted noise is 0, the changes of y alternate, times beta a step
walk = [starts, starts, *leapfrog(lambda x, t: Prediction(x, 0*x), shrinking, (starts, starts))]
y = torch.stack([x/Level(log_snr).signal for x, log_snr in zip(walk, shrinking.log_snr)])
h = Level(shrinking.log_snr).edm_sigma.diff()
alternating = -((h[1:]/h[:-1])**2)[:, None, None]*y.diff(dim=0)[:-1]
passed('with no predicted noise, changes alternate, times beta',
       close(y.diff(dim=0)[1:], alternating, 1e-10))


# %%NBQA-CELL-SEP7dc948
#| eval: false
def random_step(x, places):
    return ...


# %%NBQA-CELL-SEP7dc948
#| eval: false
apart = ...
close(number(math.erfc(apart/2/math.sqrt(2))), number(.9), 1e-3)


# %%NBQA-CELL-SEP7dc948
# solution 1: it does; each step adds its own noise, the same in every sweep
drawn_before = torch.randn(64, 256, 1, dtype=D, generator=torch.Generator().manual_seed(5))
given = iter(drawn_before)
chain = torch.stack([starts, *ancestral(line, slow, starts, noise=lambda x: next(given))])


def random_step(x, places):
    after = []
    for j in places:
        t, s = Level(slow.log_snr[j]), Level(slow.log_snr[j + 1])
        mean, std = posterior(line(x[j], t).x0, x[j], s, t)
        after.append(mean + std*drawn_before[j])
    return torch.stack(after)


guess = starts.expand(65, 256, 1)
for _ in range(30):
    guess = sweep(guess, random_step)
close(guess, chain, 1e-6)


# %%NBQA-CELL-SEP7dc948
# solution 2: 2 Phi(-d/2) = .9, so d = -2 Phi^-1(.45), a quarter of a std
apart = -2*torch.special.ndtri(number(.45)).item()
close(number(math.erfc(apart/2/math.sqrt(2))), number(.9), 1e-3)
