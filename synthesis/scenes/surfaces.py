"""Paints surfaces behind objects: paper, boards, tiles, wallpaper and the like, in pale or deep muted colors."""

import colorsys
import math
import random

import numpy as np
from PIL import Image, ImageFilter

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import Rgb, mix


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MIN_CONTRAST = 40  # of 255, between the two colors of a surface


def draw_muted(rng: random.Random, deep: bool = False) -> Rgb:
    """Draw a color of low saturation: pale, or deep."""
    hue, saturation = rng.random(), rng.uniform(0.05, 0.28)
    value = rng.uniform(0.3, 0.5) if deep else rng.uniform(0.82, 0.97)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def paint_gradient(canvas: Canvas, top: Rgb, bottom: Rgb, begin: float = 0.0, end: float = 1.0):
    """Fill the rows between two heights with a gradient, and all below with its last color."""
    side = canvas.side
    first, last = round(begin * side), round(end * side)
    if last <= first:
        return
    ramp = Image.linear_gradient("L").resize((side, last - first))
    canvas.image.paste(Image.new("RGB", ramp.size, top), (0, first))
    canvas.image.paste(bottom, (0, first), ramp)
    canvas.image.paste(bottom, (0, last, side, side))


def add_grain(canvas: Canvas, rng: random.Random, strength: float, cells: int):
    """Lighten and darken an image softly by random amounts; fewer `cells` make broader clouds."""
    noise = np.random.RandomState(rng.getrandbits(32)).uniform(-1, 1, (cells, cells))
    mask = Image.fromarray(np.uint8(127.5 + 127.5 * noise)).resize(
        (canvas.side, canvas.side), Image.Resampling.BICUBIC
    )
    limit = round(255 * strength)
    dark = mask.point(lambda value: max(0, 128 - value) * limit // 128)
    light = mask.point(lambda value: max(0, value - 128) * limit // 128)
    canvas.image.paste(BLACK, mask=dark)
    canvas.image.paste(WHITE, mask=light)


def paint_surface(canvas: Canvas, name: str, rng: random.Random):
    """Paint one of `SURFACES`."""
    deep = rng.random() < 0.3
    base = draw_muted(rng, deep)
    second = mix(base, draw_muted(rng, deep), rng.uniform(0.5, 1.0))
    # Otherwise the waves, stripes and gradients that captions name could not be seen.
    while abs(sum(second) - sum(base)) < 3 * MIN_CONTRAST:
        second = mix(second, WHITE if deep else BLACK, 0.1)
    canvas.box(0, 0, 1, 1, base)
    SURFACES[name](canvas, rng, base, second)


def _plain(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    pass


def _gradient(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    paint_gradient(canvas, base, second)
    canvas.image.paste(canvas.image.rotate(rng.choice((0, 90, 180, 270))))


def _paper(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    add_grain(canvas, rng, 0.1, 160)
    add_grain(canvas, rng, 0.08, rng.randint(3, 9))


def _clouds(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    add_grain(canvas, rng, 0.3, rng.randint(3, 6))
    add_grain(canvas, rng, 0.12, rng.randint(9, 20))


def _ruled(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    step, ink = rng.uniform(0.03, 0.08), mix(second, (100, 130, 180), 0.15)
    start, is_grid = rng.uniform(0, step), rng.random() < 0.5
    for number in range(int(1 / step) + 1):
        at = start + number * step
        canvas.box(0, at, 1, at + 0.003, ink)
        if is_grid:
            canvas.box(at, 0, at + 0.003, 1, ink)


def _planks(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    wood = mix(base, (176, 140, 100), 0.7)
    number, across = rng.randint(4, 10), rng.random() < 0.5
    for plank in range(number):
        near, far = plank / number, (plank + 1) / number
        shade = mix(wood, (90, 60, 30), rng.uniform(0, 0.25))
        canvas.box(*((0, near, 1, far) if across else (near, 0, far, 1)), shade)
        for _ in range(3):
            at = rng.uniform(near, far)
            grain = mix(shade, (70, 45, 20), 0.25)
            canvas.box(*((0, at, 1, at + 0.002) if across else (at, 0, at + 0.002, 1)), grain)
        edge = mix(shade, (40, 25, 10), 0.6)
        canvas.box(*((0, far - 0.004, 1, far) if across else (far - 0.004, 0, far, 1)), edge)


def _tiles(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    number, gap, brick = rng.randint(4, 11), 0.004, rng.random() < 0.4
    canvas.box(0, 0, 1, 1, second)
    for row in range(number * (2 if brick else 1)):
        height = 1 / (number * (2 if brick else 1))
        for column in range(-1, number + 1):
            left = (column + (row % 2 / 2 if brick else 0)) / number
            shade = mix(base, second, rng.uniform(0, 0.5))
            canvas.box(left + gap, row * height + gap, left + 1 / number - gap, (row + 1) * height - gap, shade)


def _wallpaper(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    soft, number = mix(base, second, 0.6), rng.randint(5, 16)
    lean = rng.choice((0.0, 0.0, rng.uniform(-1, 1)))
    for stripe in range(-number, 2 * number):
        left = stripe / number
        canvas.polygon([(left, 0), (left + 0.5 / number, 0), (left + 0.5 / number + lean, 1), (left + lean, 1)], soft)


def _bokeh(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    for _ in range(rng.randint(12, 40)):
        shade = mix(base, rng.choice((second, WHITE)), rng.uniform(0.2, 0.6))
        canvas.disc(rng.random(), rng.random(), rng.uniform(0.03, 0.16), shade)
    small = canvas.image.resize((canvas.side // 4,) * 2).filter(ImageFilter.GaussianBlur(canvas.side / 90))
    canvas.image.paste(small.resize((canvas.side,) * 2))


def _waves(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    number, height, speed = rng.randint(5, 12), rng.uniform(0.01, 0.05), rng.uniform(3, 14)
    for wave in range(number):
        shade = mix(base, second, (0.2, 1.0)[wave % 2])
        shift, top = rng.uniform(0, 6), wave / number
        canvas.below(lambda x, top=top, shift=shift: top + height * math.sin(speed * x + shift), shade)


def _table(canvas: Canvas, rng: random.Random, base: Rgb, second: Rgb):
    horizon = rng.uniform(0.3, 0.6)
    paint_gradient(canvas, mix(base, WHITE, 0.3), base, 0, horizon)
    canvas.box(0, horizon, 1, 1, mix(second, (120, 100, 80), 0.35))
    canvas.box(0, horizon, 1, horizon + 0.012, mix(second, (60, 50, 40), 0.45))
    add_grain(canvas, rng, 0.06, 60)


SURFACES = {
    "plain": _plain,
    "gradient": _gradient,
    "paper": _paper,
    "clouds": _clouds,
    "ruled paper": _ruled,
    "planks": _planks,
    "tiles": _tiles,
    "wallpaper": _wallpaper,
    "soft lights": _bokeh,
    "waves": _waves,
    "table": _table,
}
