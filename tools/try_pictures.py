"""Which stored pictures are kept when a notebook is run anew: python tools/try_pictures.py

Figures are drawn twice, as two machines draw them and with a change that a reader would see, and
saved as tools/nb.py saves them. It ends with `N passed, N failed`.
"""
import base64
import copy
import io
import sys
import tempfile
from pathlib import Path

import matplotlib

from nb import read, save, save_outputs
from pictures import lighter, looks_same

matplotlib.use('agg')


def drawn(draw, noise: float = 0, seed: int = 0, size: tuple = (6, 2)) -> str:
    "A figure as a stored PNG: draw(axes, random) draws it, where random(n) is noise."
    import matplotlib.pyplot as plt
    import numpy as np
    rng = np.random.default_rng(seed)
    figure, axes = plt.subplots(figsize=size)
    draw(axes, lambda *shape: noise*rng.standard_normal(shape))
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=100)
    plt.close(figure)
    return base64.b64encode(out.getvalue()).decode()


def curve(up: float = 0, label: str = '0.93'):
    "A sine; `up` is in pixels, of which the axis has 154."
    def draw(axes, random):
        import numpy as np
        x = np.linspace(0, 6, 200)
        axes.plot(x, np.sin(x) + 3*up/154 + random(200))
        axes.set_ylim(-1.5, 1.5)
        axes.text(1, -1, label, color='.5', fontsize=8)
    return draw


def mosaic(changed: int = 0):
    "Tiles of smooth colours, as many as no palette of 256 holds; the first `changed` are others."
    def draw(axes, random):
        import numpy as np
        rng = np.random.default_rng(1)
        tiles = rng.random((8, 24, 1, 1, 3))*np.linspace(.3, 1, 8)[:, None, None]
        tiles = tiles*np.linspace(.5, 1, 8)[:, None] + random(8, 24, 8, 8, 3)
        tiles[0, :changed] = 1 - tiles[0, :changed]
        axes.imshow(tiles.transpose(0, 2, 1, 3, 4).reshape(64, 192, 3).clip(0, 1))
    return draw


def saved_again(old: str, new: str) -> str:
    "What stands in a notebook with the picture `old` after a run that gave `new`."
    def outputs(png):
        return [dict(output_type='display_data', metadata={}, data={'image/png': png})]

    cell = dict(cell_type='code', id='plot', source='', metadata={}, outputs=outputs(old))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'00_small.ipynb'
        save(dict(cells=[cell]), path)
        save_outputs(path, [(copy.deepcopy(cell), outputs(new))])
        return read(path)['cells'][0]['outputs'][0]['data']['image/png']


def tried():
    "(title, whether it is so)."
    for name, draw in (('curve', curve), ('mosaic', mosaic)):
        first, second = drawn(draw()), drawn(draw(), noise=1e-3, seed=1)
        stored = lighter(first)
        yield f'{name}: the two machines give other bytes', stored != lighter(second)
        yield f'{name}: other last bits are not stored', saved_again(stored, second) == stored
        yield f'{name}: nor over a picture in all its colours', saved_again(first, second) == first

    stored = lighter(drawn(curve()))
    changes = {'a curve one pixel higher': curve(up=1), 'another digit': curve(label='0.98')}
    for title, draw in changes.items():
        new = drawn(draw)
        yield f'{title} is stored', saved_again(stored, new) == lighter(new) != stored
    new = drawn(curve(), size=(6, 2.01))
    yield 'another size is stored', saved_again(stored, new) == lighter(new)
    new = drawn(mosaic(changed=1), noise=1e-3)
    stored = lighter(drawn(mosaic()))
    yield 'one changed tile of 192 is stored', saved_again(stored, new) == lighter(new)
    yield 'a picture looks like itself', looks_same(stored, drawn(mosaic()))


def report(tried) -> int:  # (what was tried, whether it went well), one after the other
    "Print each, and how many went well; the exit status."
    results = []
    for title, good in tried:
        results.append(good)
        print('ok    ' if good else 'FAILED', title, flush=True)
    print(f'{sum(results)} passed, {len(results) - sum(results)} failed')
    return not all(results)


if __name__ == '__main__':
    sys.exit(report(tried()))
