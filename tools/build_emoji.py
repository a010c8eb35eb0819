"""Makes the emoji set of data/emoji anew, from npm packages of fixed versions.

    pip install numpy pillow resvg-py==0.5.0
    python tools/build_emoji.py --npm DOWNLOADS --out NEW [--style twemoji ...] [--check data/emoji]

Packages that are not yet in DOWNLOADS are fetched with `npm pack`; after that no network is needed. All six styles take about
four minutes of one core. --check compares words and pixels with a folder made before and says what differs.
Pixels repeat exactly; the bytes of the WebP files also depend on the version of libwebp inside Pillow.
"""
import argparse, hashlib, io, json, re, subprocess, sys, tarfile, unicodedata
from collections import Counter, defaultdict
from pathlib import Path
import numpy as np
from PIL import Image

# style: package, version, and the side in pixels, of 256, to which its canvas is drawn: then the median drawing is as large in all
ART = {
    'noto': ('@iconify-json/noto', '1.2.9', 240),
    'twemoji': ('@iconify-json/twemoji', '1.2.5', 224),
    'fluent-flat': ('@iconify-json/fluent-emoji-flat', '1.2.6', 256),
    'fluent-3d': ('@lobehub/fluent-emoji-3d', '1.1.0', 256),
    'blob': ('@iconify-json/noto-v1', '1.2.5', 226), 'openmoji': ('@iconify-json/openmoji',
                                                                  '1.2.29', 268)
}
WORDS = {'emojibase-data': '17.0.0', 'emojilib': '4.0.3'}
CANVAS, SIDE, COLUMNS, SALT = 256, 64, 40, 'ddpm_lit-emoji-v1'
HOLDABLE = ('noto', 'twemoji', 'fluent-flat', 'fluent-3d') # styles that `held_style` may name
ALWAYS_TRAIN = {'family', 'kiss (couple)', 'couple with heart', 'adult'}

def package(downloads: Path, name: str, version: str) -> Path:
    "The unpacked folder of a package, fetched if it is missing."
    home = downloads/f'{name.strip("@").replace("/", "-")}-{version}'
    if not (home/'package.json').exists():
        downloads.mkdir(parents=True, exist_ok=True)
        if not (tgz := home.with_name(home.name + '.tgz')).exists():
            subprocess.run(['npm', 'pack', '--silent', f'{name}@{version}'], cwd=downloads,
                           check=True)
        with tarfile.open(tgz) as tar:
            for member in tar.getmembers():
                # npm puts all into one folder
                inside = Path(*Path(member.name).parts[1:])
                if member.isfile() and inside.parts and '..' not in inside.parts:
                    (home/inside).parent.mkdir(parents=True, exist_ok=True)
                    (home/inside).write_bytes(tar.extractfile(member).read())
    return home

# ---- words ---------------------------------------------------------------------------------------------------------------

def ascii_of(text):
    return unicodedata.normalize('NFKD', text.translate({0x2019: "'", 0x201c: '"',
                                                         0x201d: '"'})).encode('ascii',
                                                                               'ignore').decode()

def code_of(hexes):
    return '-'.join(part for part in hexes.lower().split('-')
                    if part != 'fe0f') # without the mark "show as picture"

def digest(*parts):
    return hashlib.sha256('|'.join((SALT, *parts)).encode()).hexdigest()

HOURS = 'one two three four five six seven eight nine ten eleven twelve'.replace(' ', '|')
# applied in this order to a name in small letters
SAME_FAMILY = [
    (re.compile(pattern), to)
    for pattern, to in ((': facing right', ''), (r'\b(wo)?men with bunny ears',
                                                 'people with bunny ears'),
                        ('^(man|woman|men|women|person|people)[: ]+',
                         ''), ('^(man|woman|person) ', ''), ('^(man|woman|person)$', 'adult'),
                        ('^deaf (man|woman|person)$', 'deaf person'), ('busts in silhouette',
                                                                       'bust in silhouette'),
                        ('^(prince|royalty|with crown)$',
                         'princess'), (r'^(mr|mrs\.|mx|santa) claus$',
                                       'claus'), ('^(merman|mermaid)$', 'merperson'),
                        ('^(boy|girl)$', 'child'), ('^(old man|old woman|older)$', 'older person'),
                        ('^kiss(:.*)?$', 'kiss (couple)'), ('^couple with heart.*',
                                                            'couple with heart'), ('^family.*',
                                                                                   'family'),
                        ('^.*holding hands.*$', 'holding hands'), (f"^({HOURS})(-thirty| o'clock)$",
                                                                   r'clock face: \1'))
]

def family_of(name: str) -> str:
    "One word for all emoji that differ by gender or direction alone."
    text = name.lower()
    for pattern, to in SAME_FAMILY:
        text = pattern.sub(to, text).strip()
    return name.lower() if text.startswith('keycap') or not text else text

def keywords_of(label, *lists):
    kept = {}
    for word in (w.replace('_', ' ').strip().lower() for words in lists for w in words):
        if word != label.lower() and word.isascii() and re.search('[a-z]{2}|^[0-9]+$', word):
            kept[word] = True
    return list(kept)

def table(downloads: Path) -> list[dict]:
    "One row an emoji, in Unicode's order, with its part of the split."
    base, lib = (package(downloads, n, v) for n, v in WORDS.items())
    load = lambda path: json.loads(path.read_text(encoding='utf-8'))
    titles, more = load(base/'meta'/'groups.json'), {
        code_of('-'.join(f'{ord(c):x}' for c in char)): words for char, words in load(
            lib/'dist'/'emoji-en-US.json').items()
    }
    rows = []
    for e in sorted((e for e in load(base/'en'/'data.json') if e.get('group') is not None),
                    key=lambda e: e['order']):
        group, subgroup, code, name = titles['groups'][str(e['group'])], titles['subgroups'][str(
            e['subgroup'])], code_of(e['hexcode']), ascii_of(e['label'])
        if group == 'component' or subgroup in ('country-flag', 'subdivision-flag'):
            continue
        rows.append(
            dict(hex=code, char=e['emoji'], name=name, keywords=keywords_of(
                e['label'], e.get('tags', []), more.get(code, [])), group=group, subgroup=subgroup,
                 version=e['version'], family=family_of(name)))
    test = set()
    # families in order of their hash, until a tenth of the group is for testing
    for group in {r['group'] for r in rows}:
        sizes, taken = Counter(r['family'] for r in rows if r['group'] == group), 0
        for family in sorted(sizes, key=digest):
            if taken >= .1*sum(sizes.values()):
                break
            if family not in ALWAYS_TRAIN:
                test.add(family)
                taken += sizes[family]
    return [r | dict(split='test' if r['family'] in test else 'train') for r in rows]

def held_style(row):
    "For a training emoji in four: one of its styles, whose drawing may be kept from training."
    styles, number = [s for s in row['tiles'] if s in HOLDABLE], int(
        digest('style', row['hex'])[:8], 16)
    return styles[
        number // 4 %
        len(styles)] if row['split'] == 'train' and len(styles) > 2 and number % 4 == 0 else None

# ---- drawings ------------------------------------------------------------------------------------------------------------

class Icons:
    "A package of drawings in SVG: names, other names, and the code points of those names."
    def __init__(self, home: Path):
        self.set, chars = (json.loads((home/f'{f}.json').read_text(encoding='utf-8'))
                           for f in ('icons', 'chars'))
        self.aliases, self.codes = self.set.get('aliases',
                                                {}), {code_of(k): v for k, v in chars.items()}
        # a mirror image: the list leaves it out
        if 'backhand-index-pointing-right' in self.aliases:
            self.codes.setdefault('1f449', 'backhand-index-pointing-right')

    def __contains__(self, name):
        return name in self.set['icons'] or name in self.aliases

    def svg(self, name: str) -> str:
        mirrored = False
        while name not in self.set['icons']:
            mirrored ^= bool(self.aliases[name].get('hFlip'))
            name = self.aliases[name]['parent']
        icon = self.set['icons'][name]
        w, h, x, y = (icon.get(k, self.set.get(k, default))
                      for k, default in (('width', 16), ('height', 16), ('left', 0), ('top', 0)))
        body, side = icon['body'], max(w, h)
        if mirrored:
            body = f'<g transform="translate({2*x + w} 0) scale(-1 1)">{body}</g>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{x - (side - w)/2} {y - (side - h)/2} {side} {side}" width="{side}" '
            f'height="{side}">{body}</svg>'
        )

def by_name(rows, others: list[Icons], icons: Icons):
    "Codes for a package that has only names: an emoji may be called as in any other package."
    called = {
        r['hex']: {re.sub('[^a-z0-9]+', '-', r['name'].lower().replace("'", '')).strip('-'): True}
        for r in rows
    }
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
        if code not in icons.codes and (known := [n for n in names if n in icons]):
            icons.codes[code] = known[0]

def artist(downloads: Path, style: str, rows):
    "A function: code -> the drawing in 256 x 256 pixels with transparency, or None where the style lacks it."
    icons = lambda s: Icons(package(downloads, *ART[s][:2]))
    if style == 'fluent-3d':
        files, flat = {
            code_of(p.stem): p
            for p in sorted((package(downloads, *ART[style][:2])/'assets').glob('*.webp'))
        }, icons('fluent-flat').codes
        # the package exchanges deaf man and deaf woman
        other = {'1f9cf-200d-2640': '1f9cf-200d-2642', '1f9cf-200d-2642': '1f9cf-200d-2640'}

        def draw(code):
            code = other.get(code, code)
            # what Fluent flat lacks is not of Microsoft's free set
            if code not in files or code not in flat:
                return None
            with Image.open(files[code]) as image:
                return squeezed(image.convert('RGBA'), ART[style][2])
    else:
        import resvg_py
        mine, side = icons(style), ART[style][2]
        if style == 'blob':
            by_name(rows, [icons(s) for s in ('noto', 'twemoji', 'openmoji')], mine)

        def draw(code):
            if code not in mine.codes:
                return None
            return Image.open(
                io.BytesIO(
                    bytes(
                        resvg_py.svg_to_bytes(svg_string=mine.svg(mine.codes[code]), width=side,
                                              height=side)))).convert('RGBA')

    def centred(code):
        if (image := draw(code)) is None:
            return None
        canvas = Image.new('RGBA', (CANVAS, CANVAS))
        canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
        return canvas

    return centred

def squeezed(image, side: int):
    "A picture brought to side x side; colours are weighted by how opaque they are, so that what is transparent lends no colour."
    if image.size == (side, side):
        return image
    a = np.array(image, np.float32)
    a[..., :3] *= a[..., 3:]/255
    *colours, alpha = (np.asarray(
        Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))
                       for plane in np.ascontiguousarray(a.transpose(2, 0, 1)))
    alpha = alpha.clip(0, 255)
    colours = np.stack(colours, -1)/np.maximum(alpha, 1e-3)[..., None]*255
    return Image.fromarray(
        np.concatenate([colours.clip(0, 255), alpha[..., None]], -1).round().astype(np.uint8),
        'RGBA')

def small_on_white(image) -> np.ndarray: # [64 64 3] uint8
    "Laid on white, then the mean of each 4 x 4 pixels."
    a = np.asarray(image, np.float32)
    alpha = a[..., 3:]/255
    return (a[..., :3]*alpha + 255*(1 - alpha)).reshape(SIDE, CANVAS // SIDE, SIDE, CANVAS // SIDE,
                                                        3).mean((1, 3)).round().clip(0, 255).astype(
                                                            np.uint8)

def style_of(downloads: Path, style: str, rows) -> dict[int, np.ndarray]:
    "The drawings of a style by row; of several that are equal only the one with the shortest name."
    draw, drawn, equal = artist(downloads, style, rows), {}, defaultdict(list)
    for i, row in enumerate(rows):
        if (image := draw(row['hex'])) is not None:
            drawn[i] = small_on_white(image)
            equal[drawn[i].tobytes()].append(i)
    for same in equal.values():
        for i in sorted(same, key=lambda i: len(rows[i]['name']))[1:]:
            del drawn[i]
    return drawn

def sheet_of(tiles: list[np.ndarray]) -> Image.Image:
    lines = -(-len(tiles) // COLUMNS)
    page = np.full((lines*COLUMNS, SIDE, SIDE, 3), 255, np.uint8)
    page[:len(tiles)] = tiles
    return Image.fromarray(
        page.reshape(lines, COLUMNS, SIDE, SIDE,
                     3).swapaxes(1, 2).reshape(lines*SIDE, COLUMNS*SIDE, 3))

def differences(new: Path, old: Path, styles) -> list[str]:
    "What two builds disagree about, in words and in pixels."
    read = lambda home: {
        r['hex']: r
        for r in map(json.loads, (home/'base.jsonl').read_text(encoding='utf-8').splitlines())
    }
    a, b, found = read(new), read(old), []
    part = lambda r: {k: v
                      for k, v in r.items()
                      if k not in ('tiles', 'held_style')} | {s: r['tiles'].get(s) for s in styles}
    found += [
        f'the words or tiles of {b[h]["name"]}' for h in b if h in a and part(a[h]) != part(b[h])
    ] + [
        f'one of them lacks {h}' for h in a.keys() ^ b.keys()
        if set(styles) & {*(a.get(h) or b[h])['tiles']}
    ]
    for s in styles:
        name = f'base-{s}-64.webp'
        if not (old/name).exists():
            print(f'{old} has no {name}: not compared')
            continue
        x, y = (np.asarray(Image.open(home/name).convert('RGB')).astype(int) for home in (new, old))
        if x.shape != y.shape or (x != y).any():
            found.append(f'{name}: ' +
                         (f'{(x != y).any(-1).sum()} pixels, by up to {abs(x - y).max()}' if x.
                          shape == y.shape else f'sizes {x.shape} and {y.shape}'))
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
        sheet_of([*drawn.values()]).save(a.out/f'base-{style}-64.webp', lossless=True, quality=100,
                                         method=6)
        print(f'{style}: {len(drawn)} drawings', flush=True)
    with open(a.out/'base.jsonl', 'w', encoding='utf-8') as f:
        for row in rows:
            if row['tiles']:
                f.write(
                    json.dumps(row | dict(held_style=held_style(row)), ensure_ascii=False) + '\n')
    if a.check:
        found = differences(a.out, a.check, styles)
        print('\n'.join(found[:20])
              or f'the same as {a.check}: {len(rows)} rows, {len(styles)} styles')
        sys.exit(bool(found))

if __name__ == '__main__':
    main()
