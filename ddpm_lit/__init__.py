"""The book on diffusion models that runs, as a library.

    import ddpm_lit

    digits = ddpm_lit.load('mnist')
    x = digits.sample(16, label=3, w=1)      # [16 1 28 28] in [-1, 1]
    ddpm_lit.save(x, 'threes.png')

    hearts = ddpm_lit.load('latent').sample('a red heart', n=4)

ddpm_lit.load(NAME or PATH)    shipped weights, a system, a run's folder, a file, a diffusers folder
ddpm_lit.save(x, PATH)         pictures to a PNG
ddpm_lit.core                  levels, predictions, denoisers
ddpm_lit.diffusion             schedules, losses, samplers, solvers
ddpm_lit.guide, ddpm_lit.clip  guidance; CLIP, captions, judges
ddpm_lit.nets, ddpm_lit.train  networks; the training loop, runs, measures
ddpm_lit.systems               whole systems, from DDPM to latent diffusion
ddpm_lit.interop               other people's checkpoints, in and out; speed beside their libraries

In a terminal: ddpm_lit --help. The chapters: jupyter lab nbs/index.ipynb.
"""
__version__ = "0.1.0"

__all__ = ['load', 'save']


def __getattr__(name):
    # fetched when first used: importing the package loads nothing
    if name in __all__:
        from . import front
        return getattr(front, name)
    raise AttributeError(f"module 'ddpm_lit' has no attribute '{name}'")


def __dir__():
    return sorted([*globals(), *__all__])
