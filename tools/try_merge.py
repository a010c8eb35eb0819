"""Two people change one notebook: python tools/try_merge.py

In a repository of its own, set up as CONTRIBUTING.md says, two branches change a notebook: each
runs it on a machine of its own, so that every picture differs in its last bits, and edits one cell.
Different cells have to merge by themselves into a notebook with both edits; of the same cell both
versions have to stay, marked as a conflict. It ends with `N passed, N failed`.
"""
import base64
import copy
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nb import read, root, save, text
from try_pictures import report

NOTEBOOK = root/'nbs/14_sample.ipynb'
SETUP = 'nbdev_install_hooks'  # as CONTRIBUTING.md says


def other_bits(png: str, seed: int) -> str:
    "The picture as another machine draws it: a few values differ by one."
    import numpy as np
    from PIL import Image
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB'))
    some = np.random.default_rng(seed).random(pixels.shape) < .01
    out = io.BytesIO()
    Image.fromarray(pixels ^ some.astype('uint8')).save(out, 'PNG')
    return base64.b64encode(out.getvalue()).decode()


def edited(nb: dict, index: int, line: str, seed: int) -> dict:
    "The notebook with one more line in a cell, run on another machine."
    nb = copy.deepcopy(nb)
    nb['cells'][index]['source'].append('\n' + line)
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            if 'image/png' in out.get('data', {}):
                out['data']['image/png'] = other_bits(out['data']['image/png'], seed)
    return nb


def git(at: Path, *args) -> subprocess.CompletedProcess:
    return subprocess.run(['git', *args], cwd=at, capture_output=True, text=True)


def repository(at: Path, driver: bool) -> Path:
    "A repository for two people, with the driver for merges or without; gives a notebook's place."
    for name in ('.gitattributes', '.gitignore', 'settings.ini'):
        (at/name).write_bytes((root/name).read_bytes())
    (at/'nbs').mkdir()
    git(at, 'init', '-q', '-b', 'main')
    for key, value in (('user.name', 'somebody'), ('user.email', 'somebody@example.org')):
        git(at, 'config', key, value)
    if driver:
        subprocess.run(SETUP, cwd=at, check=True, capture_output=True)
    return at/'nbs'/NOTEBOOK.name


def merge(first: int, second: int, driver: bool = True):
    "Two branches, an edit on each, merged: (git is content, the file's text, what is untracked)."
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)/'repo'
        at.mkdir()
        os.environ['HOME'] = folder
        path, nb = repository(at, driver), read(NOTEBOOK)
        save(nb, path)
        git(at, 'add', NOTEBOOK.relative_to(root), '.gitattributes', '.gitignore', 'settings.ini')
        git(at, 'commit', '-qm', 'the notebook')

        for branch, index in (('one', first), ('two', second)):
            git(at, 'checkout', '-qb', branch, 'main')
            save(edited(nb, index, f'# edit {branch}', seed=index + len(branch)), path)
            git(at, 'commit', '-qam', branch)
        done = git(at, 'merge', '-qm', 'both', 'one')
        left = git(at, 'ls-files', '--others', '--exclude-standard').stdout.split()
        return done.returncode == 0, path.read_text(encoding='utf-8'), left


def cells(written: str) -> list[str] | None:
    "The sources of a notebook's cells, or None if it is no notebook."
    try:
        return [text(cell['source']) for cell in json.loads(written)['cells']]
    except ValueError:
        return None


def expected(first: int, second: int) -> list[str]:
    "The sources with both edits."
    nb = edited(edited(read(NOTEBOOK), first, '# edit one', 0), second, '# edit two', 0)
    return [text(cell['source']) for cell in nb['cells']]


def tried():
    "(title, whether it is so)."
    yield f'CONTRIBUTING.md says {SETUP}', SETUP in (root/'CONTRIBUTING.md').read_text()
    content, written, left = merge(3, 20)
    yield 'cells 3 and 20: git is content', content
    yield 'cells 3 and 20: a notebook with both edits and nothing else', (
        cells(written) == expected(3, 20))
    yield 'what the hooks write is ignored by git', not left

    content, written, _ = merge(20, 20)
    found = '\n'.join(cells(written) or [])
    yield 'cell 20 twice: git reports a conflict', not content
    yield 'cell 20 twice: a notebook with both versions, marked', (
        all(part in found for part in ('# edit one', '# edit two', '`<<<<<<<', '`>>>>>>>')))

    content, written, _ = merge(3, 20, driver=False)
    yield 'without the driver the same merge is no notebook', cells(written) is None


def main() -> int:
    # git's settings are nobody's, and programs those of this environment
    programs = str(Path(sys.executable).parent)
    os.environ.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM='1',
                      PATH=os.pathsep.join([programs, os.environ['PATH']]))
    return report(tried())


if __name__ == '__main__':
    sys.exit(main())
