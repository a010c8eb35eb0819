"""What every platform has to do, in two minutes: python tools/smoke.py [--device DEVICE]

Runs the installed command in a temporary folder: draw digits, train points, stop and resume, train
on a folder of pictures, weigh the result, and the five lines of Python. It ends with the number of
those that failed. By default the command chooses the device; `--device mps` asks for that of a Mac,
`--device cuda` for one of NVIDIA.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = '''
import ddpm_lit
x = ddpm_lit.load('mnist').sample(4, label=3, w=1, steps=4)
assert x.shape == (4, 1, 28, 28) and x.isfinite().all()
ddpm_lit.save(x, 'threes.png')
'''


def write_pictures(folder: Path, n: int = 120):
    "Small drawings: discs of two colours, as PNG files in two folders."
    from PIL import Image, ImageDraw
    for i in range(n):
        colour = ('red', 'blue')[i % 2]
        image = Image.new('RGB', (24, 24), 'white')
        r = 4 + i % 7
        ImageDraw.Draw(image).ellipse((12 - r, 12 - r, 12 + r, 12 + r), fill=colour)
        (folder/colour).mkdir(parents=True, exist_ok=True)
        image.save(folder/colour/f'{i:03}.png')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='auto')
    device = parser.parse_args().device
    on = ['--device', device]
    steps = [
        ['--version'],
        ['sample', 'mnist', '--n', '4', '--steps', '4', *on],
        ['train', 'roll', '--steps', '20', '--out', 'roll', *on],
        ['train', 'roll', '--resume', '--steps', '30', '--out', 'roll', *on],
        ['sample', 'roll', '--n', '100', '--steps', '5', *on],
        ['train', '--data', 'discs', '--labels', 'folders', '--steps', '5', *on],
        ['sample', 'runs/discs', '--n', '4', '--label', 'red', '--steps', '3', *on],
        ['eval', 'runs/discs', '--n', '60', '--steps', '2', *on],
    ]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder)/'discs')
        commands = [[sys.executable, '-m', 'ddpm_lit', *args] for args in steps]
        commands.append([sys.executable, '-c', PYTHON])
        for command in commands:
            name = ' '.join(command[3:]) if command[1] == '-m' else 'five lines of Python'
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            print('ok    ' if done.returncode == 0 else 'FAILED', name, flush=True)
            if done.returncode:
                failed.append(name)
                print(done.stdout, done.stderr)
    print(f'{len(commands) - len(failed)} passed, {len(failed)} failed')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
