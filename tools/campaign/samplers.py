"Right results: every sampler and grid on every system of pictures that ships."
import itertools
from dataclasses import replace
from functools import cache, partial
from typing import Callable, NamedTuple

import torch
from campaign.right import Tally, sentence
from torch import Tensor, nn
from ddpm_lit.core.level import CLEAN, Level
from ddpm_lit.core.files import data_dir
from ddpm_lit.core.problem import Problem
from ddpm_lit.diffusion import sample, schedule, score, solve
from ddpm_lit.systems.bf16 import in_bf16
from ddpm_lit.systems.draw import sample_recipe
from ddpm_lit.train import fit, recipe as recipes, weights as stored
from ddpm_lit.train.measure import frechet_distance


def flow_grid(n: int) -> schedule.Grid:
    "Even times of flow matching, from a little below 1, where a network that predicts eps begins."
    times = .99*torch.arange(n, 0, -1, dtype=torch.float64)/n
    return schedule.Grid(torch.cat([solve.StraightPath()(times).log_snr, CLEAN.log_snr[None]]))


# a grid of n levels for a system; `own` is that of its recipe
GRIDS: dict[str, Callable] = dict(
    own=lambda recipe, n: schedule.grid(recipe.schedule, n),
    cosine=lambda _, n: schedule.grid(schedule.Cosine(), n),
    linear=lambda _, n: schedule.grid(schedule.linear(), n),
    karras=lambda _, n: schedule.karras(n, .02),
    flow=lambda _, n: flow_grid(n))
# systems with captions: two samplers show that their denoisers are right
CAPTIONED = 'glide', 'dalle2', 'latent'
# of its 100 evaluations at each level only ten, and on the ladder of a system that walks down one
FEW_STEPS = 'langevin-10'
DRAWN, STEPS = 100, 6  # pictures, and steps of each run
FAR = 10  # times the distance of the best
# runs that may be far off: samplers, grids, why
EXPLAINED = (
    (('ddim', 'heun', 'dpmpp_2m', 'pc', FEW_STEPS), ('cosine',),
     'the grid opens with a leap from log SNR -20, where a prediction is worth nothing (32)'),
    (('ancestral', 'ancestral-large'), tuple(GRIDS),
     'a random step is a Gaussian only if it is short, and six are long (14)'),
    (('ddim', 'heun', 'dpmpp_2m'), ('flow',),
     'the first leap, from log SNR -9 to -3, decides a coloured background (32)'),
    (('pc', FEW_STEPS), tuple(GRIDS),
     'Langevin steps leave a variance of their own at each level (31, 32)'))


def picture_systems() -> list[str]:
    "The shipped weights that a sampler draws pictures from."
    found = []
    for path in sorted(data_dir('weights').glob('*.safetensors')):
        try:
            recipe = recipes.find_recipe(stored.card_in(path)['recipe'])
        except Problem:  # a network beside, such as a classifier that measures
            continue
        # the latents of latent diffusion are its pictures here
        if (recipe.sampler or path.stem == 'latent') and len(recipe.shape) == 3:
            found.append(path.stem)
    return found


def seen_from_afar(x: Tensor) -> Tensor:  # [n c h w] -> [n 8c]
    "The mean of each quarter of a picture, and its standard deviation."
    x = x.float()
    mean = nn.functional.adaptive_avg_pool2d(x, 2)
    square = nn.functional.adaptive_avg_pool2d(x**2, 2)
    return torch.cat([mean, (square - mean**2).clamp(min=0).sqrt()], 1).flatten(1)


def recipe_of(name: str) -> recipes.Recipe:
    "The recipe of shipped weights."
    return recipes.find_recipe(stored.card_in(data_dir('weights', f'{name}.safetensors'))['recipe'])


@cache
def learned_from(name: str) -> tuple[Tensor, dict, Tensor]:
    "A system's own data: [n c h w] and what goes with it, and [10n 8c] of more, from afar."
    recipe = recipe_of(name)
    step = recipe.batches(DRAWN, 1, torch.device('cpu'))
    data, condition = fit.split_batch(step(0))
    more = [seen_from_afar(step(i)[0]) for i in range(1, 11)]
    return data, condition, torch.cat(more)


class Levels(NamedTuple):
    "A grid as the schedule that this grid is even on."
    levels: schedule.Grid

    def __call__(self, times) -> Level:
        return Level(self.levels.log_snr[:-1])


def sampler_on(name: str, which: str, sampler: str, bf16: bool):
    "The Frechet distance of a few samples, seen from afar, to the data; noise is farther away."
    model, recipe = stored.load_weights(name)
    data, condition, real = learned_from(name)
    levels = GRIDS[which](recipe, STEPS)

    def given(_):
        denoiser = model.given(**condition)
        if recipe.limit:
            denoiser = sample.clamp_x0(denoiser, recipe.limit)
        return in_bf16(denoiser) if bf16 else denoiser

    measured = dict(system=name, grid=which, sampler=sampler, bf16=bf16, steps=STEPS, n=DRAWN,
                    data=round(frechet_distance(seen_from_afar(data), real), 4))
    try:
        on_grid = replace(recipe, schedule=Levels(levels), classes=0, sampler=sampler)
        drawn = sample_recipe(model, on_grid, DRAWN, None, 0, STEPS, sampler, edit=given)
    except Problem as e:
        sentence(str(e))
        return Tally(refused=1, measured=measured | dict(frechet=None, refused=str(e)))
    away = frechet_distance(seen_from_afar(drawn.x), real)
    noise = frechet_distance(seen_from_afar(torch.randn_like(data)), real)
    measured |= dict(frechet=round(away, 4), evaluations=drawn.evaluations)
    if away > noise:
        return Tally(failures=(f'worse than noise: {away:.2f}, {noise:.2f}',), measured=measured)
    return Tally(worked=1, measured=measured)


def samplers() -> list[str]:
    "All samplers by name, that of many evaluations with few of them."
    if FEW_STEPS not in sample.SAMPLERS:
        sample.SAMPLERS.add(FEW_STEPS, partial(score.langevin, repeats=10))
    return [FEW_STEPS if name == 'langevin' else name
            for name in sample.SAMPLERS if name != FEW_STEPS]


def grids_of(name: str) -> list[str]:
    "The grids for a system; its own is left out where it is the cosine grid."
    own = recipe_of(name).schedule
    if isinstance(own, score.Ladder):  # its network has learned these few levels and no other
        return ['own']
    return [which for which in GRIDS if which != 'own' or own != schedule.Cosine()]


def runs_on(name: str, bf16: bool) -> list[tuple[str, str]]:
    "The grids and samplers for a system."
    if name.startswith(CAPTIONED):
        learned_from(name)  # a minute of CLIP for all drawings, before a case's clock starts
        return [*itertools.product(('cosine', 'karras'), ('dpmpp_2m', 'heun'))]
    grids = grids_of(name)
    # ten steps of a walk forget where it began only if levels are near each other
    walks = not bf16 and recipe_of(name).sampler == 'langevin'
    return [(which, sampler) for which, sampler in itertools.product(grids, samplers())
            if sampler != FEW_STEPS or (walks and which == grids[0])]


def sampler_cases(_):
    for name, bf16 in itertools.product(picture_systems(), (False, True)):
        for which, sampler in runs_on(name, bf16):
            yield (f'{name}, {which}, {sampler}' + ', bf16'*bf16, sampler_on, name, which,
                   sampler, bf16)


def nearest(rows: list[dict]) -> float:
    "The distance of the best run of a system, or of as many of its data if they are no nearer."
    return max(rows[0]['data'], min(r['frechet'] for r in rows if r['frechet'] is not None))


def why_far(row: dict) -> str:
    "Why a run may be far off, or nothing."
    return next((why for names, grids, why in EXPLAINED
                 if row['sampler'] in names and row['grid'] in grids), '')


def by_system(rows: list[dict]) -> dict[str, list[dict]]:
    return {system: [row for row in rows if row['system'] == system]
            for system in dict.fromkeys(row['system'] for row in rows)}


def key_of(row: dict) -> tuple:
    return row['system'], row['sampler'], row['grid'], row['bf16']


def far_off(rows: list[dict]) -> dict[tuple, str]:
    "(system, sampler, grid, bf16) of the runs that are far off -> why, or nothing."
    return {key_of(r): why_far(r) for ours in by_system(rows).values() for r in ours
            if r['frechet'] is not None and r['frechet'] > FAR*nearest(ours)}


def marked(rows: list[dict], whys: list[str]) -> dict[tuple, str]:
    "The distances as tables show them, each that is large with the number of its reason."
    far = far_off(rows)
    marks = {why: f'({i})' if why else '(!)' for i, why in enumerate(whys, 1)}
    return {key_of(r): f'{r["frechet"]:.3f}' + marks.get(far.get(key_of(r)), '')
            for r in rows if r['frechet'] is not None}


def system_table(system: str, ours: list[dict], shown: dict[tuple, str]):
    "The distances of a system, samplers by grids, in bfloat16 after a slash."
    grids = [g for g in GRIDS if any(r['grid'] == g for r in ours)]
    print(f'\n{system}, {STEPS} steps: {DRAWN} pictures of the data {ours[0]["data"]:.3f}')
    print(' '*16 + ''.join(f'{g:>20}' for g in grids))
    for sampler in dict.fromkeys(r['sampler'] for r in ours):
        both = [' / '.join(shown.get((system, sampler, g, bf16), '-') for bf16 in (False, True))
                for g in grids]
        print(f'{sampler:16}' + ''.join(f'{text:>20}' for text in both))


def sampler_tables(rows: list[dict]):
    "For each system the Frechet distances, and why some of them are large."
    whys = [*dict.fromkeys(far_off(rows).values())]
    shown = marked(rows, whys)
    for system, ours in by_system(rows).items():
        system_table(system, ours, shown)
    for i, why in enumerate(whys, 1):
        print(f'({i}) {why}' if why else f'(!) more than {FAR} times as far as the best')
