"""Makes the emoji set of data/emoji anew, from npm packages of fixed versions.

    pip install numpy pillow resvg-py==0.5.0
    python tools/build_emoji.py --npm DOWNLOADS --out NEW [--style twemoji ...] [--check data/emoji]

Packages that are not yet in DOWNLOADS are fetched with `npm pack`; after that no network is needed.
All six styles take about four minutes of one core. --check compares words and pixels with a folder
made before and says what differs. Pixels repeat exactly; the bytes of the WebP files also depend on
the version of libwebp inside Pillow.
"""
import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
import numpy as np
from PIL import Image

# style: package, version, and the side in pixels, of 256, to which its canvas is drawn:
# then the median drawing is as large in all
ART = {'noto': ('@iconify-json/noto', '1.2.9', 240),
       'twemoji': ('@iconify-json/twemoji', '1.2.5', 224),
       'fluent-flat': ('@iconify-json/fluent-emoji-flat', '1.2.6', 256),
       'fluent-3d': ('@lobehub/fluent-emoji-3d', '1.1.0', 256),
       'blob': ('@iconify-json/noto-v1', '1.2.5', 226),
       'openmoji': ('@iconify-json/openmoji', '1.2.29', 268)}
WORDS = {'emojibase-data': '17.0.0', 'emojilib': '4.0.3'}
CANVAS = 256
SIDE = 64
COLUMNS = 40
SALT = 'ddpm_lit-emoji-v1'
HOLDABLE = ('noto', 'twemoji', 'fluent-flat', 'fluent-3d')  # styles that `held_style` may name
ALWAYS_TRAIN = {'family', 'kiss (couple)', 'couple with heart', 'adult'}


def read_json(path: Path):
    return json.loads(path.read_text(encoding='utf-8'))


def package(downloads: Path, name: str, version: str) -> Path:
    "The unpacked folder of a package, fetched if it is missing."
    home = downloads/f'{name.strip("@").replace("/", "-")}-{version}'
    if (home/'package.json').exists():
        return home

    downloads.mkdir(parents=True, exist_ok=True)
    tgz = home.with_name(home.name + '.tgz')
    if not tgz.exists():
        subprocess.run(['npm', 'pack', '--silent', f'{name}@{version}'], cwd=downloads, check=True)
    with tarfile.open(tgz) as tar:
        for member in tar.getmembers():
            # npm puts all into one folder
            inside = Path(*Path(member.name).parts[1:])
            if member.isfile() and inside.parts and '..' not in inside.parts:
                (home/inside).parent.mkdir(parents=True, exist_ok=True)
                (home/inside).write_bytes(tar.extractfile(member).read())
    return home


# ---- words ------------------------------------------------------------------------------------


def ascii_of(text):
    straight = text.translate({0x2019: "'", 0x201c: '"', 0x201d: '"'})
    return unicodedata.normalize('NFKD', straight).encode('ascii', 'ignore').decode()


def code_of(hexes):
    "Code points without the mark for `show as picture`."
    return '-'.join(part for part in hexes.lower().split('-') if part != 'fe0f')


def digest(*parts):
    return hashlib.sha256('|'.join((SALT, *parts)).encode()).hexdigest()


HOURS = 'one two three four five six seven eight nine ten eleven twelve'.replace(' ', '|')
# applied in this order to a name in small letters
SAME_FAMILY = [(re.compile(pattern), to) for pattern, to in (
    (': facing right', ''),
    (r'\b(wo)?men with bunny ears', 'people with bunny ears'),
    ('^(man|woman|men|women|person|people)[: ]+', ''),
    ('^(man|woman|person) ', ''),
    ('^(man|woman|person)$', 'adult'),
    ('^deaf (man|woman|person)$', 'deaf person'),
    ('busts in silhouette', 'bust in silhouette'),
    ('^(prince|royalty|with crown)$', 'princess'),
    (r'^(mr|mrs\.|mx|santa) claus$', 'claus'),
    ('^(merman|mermaid)$', 'merperson'),
    ('^(boy|girl)$', 'child'),
    ('^(old man|old woman|older)$', 'older person'),
    ('^kiss(:.*)?$', 'kiss (couple)'),
    ('^couple with heart.*', 'couple with heart'),
    ('^family.*', 'family'),
    ('^.*holding hands.*$', 'holding hands'),
    (f"^({HOURS})(-thirty| o'clock)$", r'clock face: \1'))]


def family_of(name: str) -> str:
    "One word for all emoji that differ by gender or direction alone."
    text = name.lower()
    for pattern, to in SAME_FAMILY:
        text = pattern.sub(to, text).strip()
    return name.lower() if text.startswith('keycap') or not text else text


def keywords_of(label, *lists):
    "The other words for an emoji, each once."
    kept = {}
    for words in lists:
        for word in words:
            word = word.replace('_', ' ').strip().lower()
            wanted = word.isascii() and re.search('[a-z]{2}|^[0-9]+$', word)
            if word != label.lower() and wanted:
                kept[word] = True
    return list(kept)


def all_rows(downloads: Path) -> list[dict]:
    "One row an emoji, in Unicode's order."
    base, lib = (package(downloads, name, version) for name, version in WORDS.items())
    titles = read_json(base/'meta'/'groups.json')
    more = {}
    for chars, words in read_json(lib/'dist'/'emoji-en-US.json').items():
        more[code_of('-'.join(f'{ord(c):x}' for c in chars))] = words

    found = [e for e in read_json(base/'en'/'data.json') if e.get('group') is not None]
    rows = []
    for e in sorted(found, key=lambda e: e['order']):
        group = titles['groups'][str(e['group'])]
        subgroup = titles['subgroups'][str(e['subgroup'])]
        if group == 'component' or subgroup in ('country-flag', 'subdivision-flag'):
            continue
        code = code_of(e['hexcode'])
        name = ascii_of(e['label'])
        keywords = keywords_of(e['label'], e.get('tags', []), more.get(code, []))
        rows.append(dict(hex=code, char=e['emoji'], name=name, keywords=keywords, group=group,
                         subgroup=subgroup, version=e['version'], family=family_of(name)))
    return rows


def table(downloads: Path) -> list[dict]:
    "The rows with their part of the split: of each group a tenth, whole families, is for testing."
    rows = all_rows(downloads)
    test = set()
    for group in {r['group'] for r in rows}:
        sizes = Counter(r['family'] for r in rows if r['group'] == group)
        taken = 0
        for family in sorted(sizes, key=digest):
            if taken >= .1*sum(sizes.values()):
                break
            if family not in ALWAYS_TRAIN:
                test.add(family)
                taken += sizes[family]
    return [r | dict(split='test' if r['family'] in test else 'train') for r in rows]


def held_style(row):
    "For a training emoji in four: one of its styles, whose drawing may be kept from training."
    styles = [s for s in row['tiles'] if s in HOLDABLE]
    number = int(digest('style', row['hex'])[:8], 16)
    if row['split'] == 'train' and len(styles) > 2 and number % 4 == 0:
        return styles[number // 4 % len(styles)]
    return None


# ---- drawings ---------------------------------------------------------------------------------


class Icons:
    "A package of drawings in SVG: names, other names, and the code points of those names."

    def __init__(self, home: Path):
        self.set = read_json(home/'icons.json')
        self.aliases = self.set.get('aliases', {})
        self.codes = {code_of(k): v for k, v in read_json(home/'chars.json').items()}
        # a mirror image: the list leaves it out
        if 'backhand-index-pointing-right' in self.aliases:
            self.codes.setdefault('1f449', 'backhand-index-pointing-right')

    def __contains__(self, name):
        return name in self.set['icons'] or name in self.aliases

    def svg(self, name: str) -> str:
        "A drawing on a square canvas."
        mirrored = False
        while name not in self.set['icons']:
            mirrored ^= bool(self.aliases[name].get('hFlip'))
            name = self.aliases[name]['parent']
        icon = self.set['icons'][name]
        defaults = dict(width=16, height=16, left=0, top=0)
        w, h, x, y = (icon.get(k, self.set.get(k, v)) for k, v in defaults.items())
        body, side = icon['body'], max(w, h)
        if mirrored:
            body = f'<g transform="translate({2*x + w} 0) scale(-1 1)">{body}</g>'
        return ('<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{x - (side - w)/2} {y - (side - h)/2} {side} {side}" '
                f'width="{side}" height="{side}">{body}</svg>')


def by_name(rows, others: list[Icons], icons: Icons):
    "Codes for a package that has only names: an emoji may be called as in any other package."
    called = {}
    for r in rows:
        name = re.sub('[^a-z0-9]+', '-', r['name'].lower().replace("'", '')).strip('-')
        called[r['hex']] = {name: True}

    for other in others:
        for code, name in other.codes.items():
            if code in called:
                called[code][name] = True
        for alias, to in other.aliases.items():
            # turned or mirrored: another picture
            if len(to) > 1:
                continue
            for code, name in other.codes.items():
                if name == to['parent'] and code in called:
                    called[code][alias] = True

    for code, names in called.items():
        known = [name for name in names if name in icons]
        if known and code not in icons.codes:
            icons.codes[code] = known[0]


def icons_of(downloads: Path, style: str) -> Icons:
    name, version, _ = ART[style]
    return Icons(package(downloads, name, version))


def artist_3d(downloads: Path):
    "A function: code -> the drawing of Fluent in three dimensions, or None."
    name, version, side = ART['fluent-3d']
    found = sorted((package(downloads, name, version)/'assets').glob('*.webp'))
    paths = {code_of(p.stem): p for p in found}
    flat = icons_of(downloads, 'fluent-flat').codes
    # the package exchanges deaf man and deaf woman
    other = {'1f9cf-200d-2640': '1f9cf-200d-2642', '1f9cf-200d-2642': '1f9cf-200d-2640'}

    def draw(code):
        code = other.get(code, code)
        # what Fluent flat lacks is not of Microsoft's free set
        if code not in paths or code not in flat:
            return None
        with Image.open(paths[code]) as image:
            return squeezed(image.convert('RGBA'), side)

    return draw


def artist_svg(downloads: Path, style: str, rows):
    "A function: code -> the drawing of a package in SVG, or None."
    import resvg_py
    icons = icons_of(downloads, style)
    side = ART[style][2]
    if style == 'blob':
        others = [icons_of(downloads, s) for s in ('noto', 'twemoji', 'openmoji')]
        by_name(rows, others, icons)

    def draw(code):
        if code not in icons.codes:
            return None
        svg = icons.svg(icons.codes[code])
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
        return Image.open(io.BytesIO(png)).convert('RGBA')

    return draw


def artist(downloads: Path, style: str, rows):
    "A function: code -> the drawing, 256 x 256 with transparency; None where the style lacks it."
    if style == 'fluent-3d':
        draw = artist_3d(downloads)
    else:
        draw = artist_svg(downloads, style, rows)

    def centred(code):
        image = draw(code)
        if image is None:
            return None
        canvas = Image.new('RGBA', (CANVAS, CANVAS))
        canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
        return canvas

    return centred


def squeezed(image, side: int):
    "A picture brought to side x side; what is transparent lends no colour."
    if image.size == (side, side):
        return image

    # colours weighted by how opaque they are
    a = np.array(image, np.float32)
    a[..., :3] *= a[..., 3:]/255
    planes = []
    for plane in np.ascontiguousarray(a.transpose(2, 0, 1)):
        small = Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)
        planes.append(np.asarray(small))

    *colours, alpha = planes
    alpha = alpha.clip(0, 255)
    colours = np.stack(colours, -1)/np.maximum(alpha, 1e-3)[..., None]*255
    whole = np.concatenate([colours.clip(0, 255), alpha[..., None]], -1)
    return Image.fromarray(whole.round().astype(np.uint8), 'RGBA')


def small_on_white(image) -> np.ndarray:  # [64 64 3] uint8
    "Laid on white, then the mean of each 4 x 4 pixels."
    a = np.asarray(image, np.float32)
    alpha = a[..., 3:]/255
    on_white = a[..., :3]*alpha + 255*(1 - alpha)
    block = CANVAS // SIDE
    means = on_white.reshape(SIDE, block, SIDE, block, 3).mean((1, 3))
    return means.round().clip(0, 255).astype(np.uint8)


def style_of(downloads: Path, style: str, rows) -> dict[int, np.ndarray]:
    "The drawings of a style by row; of several that are equal the one with the shortest name."
    draw = artist(downloads, style, rows)
    drawn, equal = {}, defaultdict(list)
    for i, row in enumerate(rows):
        image = draw(row['hex'])
        if image is not None:
            drawn[i] = small_on_white(image)
            equal[drawn[i].tobytes()].append(i)
    for same in equal.values():
        for i in sorted(same, key=lambda i: len(rows[i]['name']))[1:]:
            del drawn[i]
    return drawn


def sheet_of(tiles: list[np.ndarray]) -> Image.Image:
    "All drawings of a style as one picture, forty in a line."
    lines = -(-len(tiles) // COLUMNS)
    page = np.full((lines*COLUMNS, SIDE, SIDE, 3), 255, np.uint8)
    page[:len(tiles)] = tiles
    page = page.reshape(lines, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
    return Image.fromarray(page.reshape(lines*SIDE, COLUMNS*SIDE, 3))


# ---- two builds compared ----------------------------------------------------------------------


def different_words(new: Path, old: Path, styles) -> list[str]:
    def rows_of(home):
        lines = (home/'base.jsonl').read_text(encoding='utf-8').splitlines()
        return {r['hex']: r for r in map(json.loads, lines)}

    def compared(row):
        words = {k: v for k, v in row.items() if k not in ('tiles', 'held_style')}
        return words | {s: row['tiles'].get(s) for s in styles}

    a, b = rows_of(new), rows_of(old)
    found = [f'the words or tiles of {b[code]["name"]}' for code in b
             if code in a and compared(a[code]) != compared(b[code])]
    for code in a.keys() ^ b.keys():
        if set(styles) & {*(a.get(code) or b[code])['tiles']}:
            found.append(f'one of them lacks {code}')
    return found


def different_pixels(new: Path, old: Path, name: str) -> list[str]:
    x, y = (np.asarray(Image.open(home/name).convert('RGB')).astype(int) for home in (new, old))
    if x.shape != y.shape:
        return [f'{name}: sizes {x.shape} and {y.shape}']
    differ = (x != y).any(-1).sum()
    return [f'{name}: {differ} pixels, by up to {abs(x - y).max()}'] if differ else []


def differences(new: Path, old: Path, styles) -> list[str]:
    "What two builds disagree about, in words and in pixels."
    found = different_words(new, old, styles)
    for style in styles:
        name = f'base-{style}-64.webp'
        if (old/name).exists():
            found += different_pixels(new, old, name)
        else:
            print(f'{old} has no {name}: not compared')
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--npm', type=Path, required=True, metavar='DOWNLOADS')
    p.add_argument('--out', type=Path, required=True, metavar='NEW')
    p.add_argument('--style', action='append', choices=ART)
    p.add_argument('--check', type=Path, metavar='OLD')
    a = p.parse_args()
    styles = a.style or [*ART]
    a.out.mkdir(parents=True, exist_ok=True)

    rows = [r | dict(tiles={}) for r in table(a.npm)]
    for style in styles:
        drawn = style_of(a.npm, style, rows)
        for number, i in enumerate(drawn):
            rows[i]['tiles'][style] = number
        sheet = sheet_of([*drawn.values()])
        sheet.save(a.out/f'base-{style}-64.webp', lossless=True, quality=100, method=6)
        print(f'{style}: {len(drawn)} drawings', flush=True)

    with open(a.out/'base.jsonl', 'w', encoding='utf-8') as f:
        for row in rows:
            if row['tiles']:
                whole = row | dict(held_style=held_style(row))
                f.write(json.dumps(whole, ensure_ascii=False) + '\n')
    if not a.check:
        return False
    found = differences(a.out, a.check, styles)
    if found:
        print('\n'.join(found[:20]))
    else:
        print(f'the same as {a.check}: {len(rows)} rows, {len(styles)} styles')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
