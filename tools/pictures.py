"""The pictures among a notebook's outputs: made smaller, and kept where a new one looks the same.

Machines differ in the last bits of what they compute, so a notebook that is run anew gives other
bytes for nearly every picture. Used by `python tools/nb.py run`; tried by tools/try_pictures.py.
"""
import base64
import io

import numpy as np
from PIL import Image, ImageChops, ImageFilter

# Levels of 255, averaged over 3x3 pixels. Of old and new pictures in the history, none of six pairs
# below 13 could be told apart; a digit that changed, white on grey, made 20 in another. A line of
# 1.5 points that moves by half a pixel makes 38, by a tenth 8.
LIMIT = 12


def opened(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def flat(picture: Image.Image) -> Image.Image:
    "The picture on white paper."
    picture = picture.convert('RGBA')
    paper = Image.new('RGB', picture.size, 'white')
    paper.paste(picture, mask=picture.getchannel('A'))
    return paper


def lighter(png: str) -> str:
    "A picture in its own 256 colours, if that takes clearly fewer bytes: nobody sees a difference."
    out = io.BytesIO()
    few = flat(opened(png)).quantize(256, dither=Image.Dither.NONE)
    few.save(out, 'PNG', optimize=True)
    new = base64.b64encode(out.getvalue()).decode()
    return new if len(new) < .9*len(png) else png


def in_colours(picture: Image.Image, palette: list[int]) -> Image.Image:
    "The picture in the nearest colours of a palette: [r, g, b, r, g, b, ...]."
    pixels = np.asarray(picture)
    few = np.array(palette, 'float32').reshape(-1, 3)
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    # |c - p|^2 without |c|^2, which is the same for every p
    distance = (few**2).sum(1) - 2*colours.astype('float32') @ few.T
    nearest = few[distance.argmin(1)].astype('uint8')
    return Image.fromarray(nearest[index.reshape(-1)].reshape(pixels.shape))


def difference(a: Image.Image, b: Image.Image) -> int:
    "The largest difference of a colour, averaged over 3x3 pixels, in levels of 255."
    blurred = (picture.filter(ImageFilter.BoxBlur(1)) for picture in (a, b))
    return max(high for low, high in ImageChops.difference(*blurred).getextrema())


def looks_same(stored: str, new: str) -> bool:
    "Whether a stored picture, perhaps in 256 colours, shows what a new one shows in all its own."
    old, now = opened(stored), flat(opened(new))
    if old.size != now.size:
        return False
    # other last bits give another choice of 256 colours, so the stored ones are used for both
    same = in_colours(now, old.getpalette()) if old.mode == 'P' else now
    worst = difference(flat(opened(lighter(new))), now) if old.mode == 'P' else 0
    return difference(flat(old), same) <= LIMIT and difference(same, now) <= worst + LIMIT


def kept(stored: list[dict], new: list[dict]) -> list[dict]:
    "The new outputs of a cell, with each stored picture that looks the same as the new one."
    for i, out in enumerate(new):
        png = out.get('data', {}).get('image/png')
        if png:
            old = stored[i].get('data', {}).get('image/png') if i < len(stored) else None
            out['data']['image/png'] = old if old and looks_same(old, png) else lighter(png)
    return new
