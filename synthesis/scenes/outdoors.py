"""Paints places outdoors with a random horizon, palette and clutter, by day, at sunset or at night."""

import math
import random
from collections.abc import Callable

from PIL import ImageChops

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import Rgb, mix
from fusion_vlm.synthesis.scenes.surfaces import add_grain, paint_gradient


SKIES = {
    "day": (((120, 176, 226), (206, 230, 244)), ((150, 190, 226), (232, 238, 240)), ((96, 160, 220), (190, 220, 240))),
    "sunset": (
        ((112, 92, 138), (246, 170, 116)),
        ((150, 100, 120), (250, 196, 130)),
        ((92, 86, 140), (240, 150, 110)),
    ),
    "night": (((20, 26, 56), (50, 60, 100)), ((14, 18, 44), (40, 44, 84)), ((26, 30, 64), (64, 66, 110))),
}
SUN, LOW_SUN, MOON = (255, 244, 196), (255, 214, 140), (236, 236, 222)
LIGHT = {"sunset": ((150, 70, 40), 0.22), "night": ((14, 18, 50), 0.62)}  # falls on the ground: color and share
# Nouns that the clutter of a place looks like; none of its objects has such a noun.
LOOK_ALIKES = {
    "a grassy field": (),
    "a forest": ("tree", "pine tree", "mushroom", "leaf", "acorn"),
    "a mountain range": ("triangle", "pine tree", "tent"),
    "a city": ("house", "castle", "lighthouse", "square", "rectangle", "car", "bus", "truck"),
    "a farm": ("house", "castle", "tree", "windmill"),
    "a desert": ("cactus",),
    "a snowy landscape": ("pine tree", "tree", "triangle"),
    "a soccer field": ("ball", "circle", "frame"),
    "a highway": ("car", "truck", "bus", "traffic cone"),
    "the bottom of the sea": ("fish", "whale", "leaf"),
    "a lake": ("boat", "pine tree", "tree"),
    "a harbor": ("boat", "house", "anchor"),
    "a flower meadow": ("flower", "tulip", "circle"),
    "a volcano": ("triangle",),
    "outer space": ("circle", "ring", "rocket"),
    "a park": ("tree", "chair", "sofa"),
    "a beach": ("umbrella", "semicircle"),
    "a canyon": (),
    "the open sea": ("boat",),
}


def paint_outdoors(canvas: Canvas, name: str, time: str | None, rng: random.Random):
    """Paint one of `OUTDOORS`; the light of the time falls on everything but the sky's own lights."""
    horizon = rng.uniform(0.3, 0.62)
    if time is None:
        OUTDOORS[name](canvas, rng, horizon)
        return
    top, bottom = rng.choice(SKIES[time])
    paint_gradient(canvas, _vary(rng, top), _vary(rng, bottom), 0, horizon + 0.1)
    _paint_lights(canvas, rng, time, horizon)
    sky = canvas.image.copy()
    OUTDOORS[name](canvas, rng, horizon)
    if time in LIGHT:
        tint, share = LIGHT[time]
        painted = ImageChops.difference(sky, canvas.image).convert("L")
        canvas.image.paste(tint, mask=painted.point(lambda value: round(255 * share) if value else 0))


def _vary(rng: random.Random, rgb: Rgb, by: int = 14) -> Rgb:
    return tuple(min(255, max(0, value + rng.randint(-by, by))) for value in rgb)


def _paint_lights(canvas: Canvas, rng: random.Random, time: str, horizon: float):
    x = rng.uniform(0.08, 0.92)
    if time == "night":
        for _ in range(rng.randint(40, 120)):
            canvas.disc(rng.random(), rng.uniform(0, horizon + 0.08), rng.uniform(0.0015, 0.004), (236, 236, 216))
        canvas.disc(x, rng.uniform(0.06, 0.16), rng.uniform(0.035, 0.06), MOON)
    elif time == "sunset":
        canvas.disc(x, horizon - rng.uniform(0, 0.03), rng.uniform(0.07, 0.12), LOW_SUN)
    else:
        if rng.random() < 0.7:
            canvas.disc(x, rng.uniform(0.04, 0.14), rng.uniform(0.04, 0.07), SUN)
        for _ in range(rng.randint(0, 4)):
            left, top, size = rng.random(), rng.uniform(0.03, horizon * 0.6), rng.uniform(0.03, 0.06)
            for puff in range(4):
                shift = (puff - 1.5) * size
                canvas.disc(left + shift, top - (puff in (1, 2)) * size * 0.4, size, (246, 248, 250), 0.55)


def _hills(canvas: Canvas, rng: random.Random, level: float, rise: float, fill: Rgb):
    speed, shift = rng.uniform(2.5, 8), rng.uniform(0, 6)
    canvas.below(lambda x: level + rise * math.sin(speed * x + shift), fill)


def _ridge(canvas: Canvas, rng: random.Random, base: float, height: float, fill: Rgb) -> list[tuple[float, float]]:
    """Paint a row of peaks, and return them."""
    points, x = [(-0.1, base)], -0.05
    peaks = []
    while x < 1.1:
        x += rng.uniform(0.12, 0.24)
        peak = (x, base - height * rng.uniform(0.5, 1))
        x += rng.uniform(0.1, 0.2)
        peaks.append(peak)
        points += [peak, (x, base - height * rng.uniform(0, 0.35))]
    canvas.polygon([*points, (1.2, 1), (-0.1, 1)], fill)
    return peaks


def _tufts(canvas: Canvas, rng: random.Random, top: float, fill: Rgb, number: int):
    for _ in range(number):
        x, y = rng.random(), rng.uniform(top, 1)
        tall = 0.02 + 0.03 * (y - top)
        for lean in (-0.01, 0, 0.01):
            canvas.polygon([(x - 0.003, y), (x + 0.003, y), (x + lean, y - tall)], fill)


def _fir(canvas: Canvas, x: float, y: float, size: float, fill: Rgb):
    canvas.box(x - 0.06 * size, y - 0.2 * size, x + 0.06 * size, y, (96, 80, 66))
    for level in range(3):
        width, top = (0.3 - 0.07 * level) * size, y - (0.85 + 0.3 * level) * size
        canvas.polygon([(x, top), (x + width, top + 0.7 * size), (x - width, top + 0.7 * size)], fill)


def _field(canvas: Canvas, rng: random.Random, horizon: float):
    grass = _vary(rng, rng.choice(((160, 196, 122), (180, 190, 116), (132, 176, 118))))
    _hills(canvas, rng, horizon - 0.03, 0.04, mix(grass, (150, 176, 160), 0.5))
    _hills(canvas, rng, horizon + 0.04, 0.03, grass)
    _tufts(canvas, rng, horizon + 0.1, mix(grass, (60, 100, 50), 0.4), rng.randint(40, 110))


def _meadow(canvas: Canvas, rng: random.Random, horizon: float):
    grass = _vary(rng, (150, 190, 120))
    _hills(canvas, rng, horizon, 0.03, grass)
    _tufts(canvas, rng, horizon + 0.08, mix(grass, (60, 100, 50), 0.4), 40)
    tones = [_vary(rng, tone) for tone in ((238, 214, 226), (244, 238, 200), (222, 214, 240), (250, 246, 246))]
    for _ in range(rng.randint(60, 120)):
        x, y, tone = rng.random(), rng.uniform(horizon + 0.07, 1), rng.choice(tones)
        size = 0.004 + 0.008 * (y - horizon)
        for turn in range(5):
            angle = turn * 1.257
            canvas.disc(x + size * math.cos(angle), y + size * math.sin(angle), size * 0.7, tone)
        canvas.disc(x, y, size * 0.6, (206, 170, 90))


def _beach(canvas: Canvas, rng: random.Random, horizon: float):
    sea, sand = _vary(rng, (104, 168, 198)), _vary(rng, (236, 214, 170))
    paint_gradient(canvas, mix(sea, (50, 110, 160), 0.4), sea, horizon, horizon + 0.25)
    shore, speed, shift = horizon + rng.uniform(0.12, 0.25), rng.uniform(5, 13), rng.uniform(0, 6)
    canvas.below(lambda x: shore - 0.025 + 0.02 * math.sin(speed * x + shift), (226, 238, 242))
    canvas.below(lambda x: shore + 0.02 * math.sin(speed * x + shift), sand)
    for _ in range(rng.randint(60, 140)):
        canvas.disc(rng.random(), rng.uniform(shore + 0.05, 1), 0.003, mix(sand, (150, 120, 80), 0.4))
    for _ in range(rng.randint(0, 2)):
        x, y, size = rng.random(), rng.uniform(shore + 0.06, 0.95), rng.uniform(0.05, 0.09)
        canvas.box(x - 0.003, y - 1.6 * size, x + 0.003, y, (150, 130, 110))
        canvas.polygon([(x - size, y - 1.2 * size), (x, y - 2 * size), (x + size, y - 1.2 * size)], (222, 196, 190))


def _desert(canvas: Canvas, rng: random.Random, horizon: float):
    sand = _vary(rng, rng.choice(((230, 192, 142), (222, 176, 130), (236, 206, 160))))
    for level, shade in ((0, 0.0), (0.14, 0.12), (0.3, 0.04), (0.42, 0.16)):
        _hills(canvas, rng, horizon + level, 0.05, mix(sand, (150, 100, 60), shade))
    for _ in range(rng.randint(1, 4)):
        x, y, size = rng.random(), rng.uniform(horizon + 0.15, 0.95), rng.uniform(0.6, 1.4)
        green = _vary(rng, (116, 150, 118))
        canvas.box(x - 0.012 * size, y - 0.16 * size, x + 0.012 * size, y, green)
        for side, low in ((-1, 0.06), (1, 0.09)):
            near, far = sorted((x, x + side * 0.05 * size))
            canvas.box(near, y - low * size - 0.018 * size, far, y - low * size, green)
            near, far = sorted((x + side * 0.034 * size, x + side * 0.05 * size))
            canvas.box(near, y - low * size - 0.05 * size, far, y - low * size, green)


def _forest(canvas: Canvas, rng: random.Random, horizon: float):
    soil, green = _vary(rng, (150, 146, 112)), _vary(rng, (96, 140, 100))
    canvas.box(0, horizon + 0.12, 1, 1, soil)
    for row, number in ((0, 16), (1, 11), (2, 7)):
        shade = mix(green, (200, 220, 210), 0.5 - 0.25 * row)
        for step in range(number):
            x = (step + rng.uniform(0, 1)) / number
            y = horizon + 0.14 + 0.07 * row + rng.uniform(0, 0.03)
            if rng.random() < 0.6:
                _fir(canvas, x, y, 0.13 + 0.07 * row, shade)
            else:
                canvas.box(x - 0.01, y - 0.2, x + 0.01, y, (112, 94, 78))
                canvas.disc(x, y - 0.22 - 0.04 * row, 0.05 + 0.02 * row, shade, 1.3)
    _tufts(canvas, rng, horizon + 0.35, mix(green, soil, 0.4), 50)


def _mountains(canvas: Canvas, rng: random.Random, horizon: float):
    rock = _vary(rng, rng.choice(((140, 146, 164), (150, 140, 136), (126, 140, 150))))
    _ridge(canvas, rng, horizon + 0.08, 0.34, mix(rock, (210, 220, 232), 0.55))
    for x, y in _ridge(canvas, rng, horizon + 0.2, 0.38, rock):
        drop = rng.uniform(0.05, 0.09)
        canvas.polygon(
            [(x, y), (x + 0.42 * drop, y + drop), (x, y + 0.7 * drop), (x - 0.42 * drop, y + drop)], (244, 247, 252)
        )
    _hills(canvas, rng, horizon + 0.3, 0.03, _vary(rng, (138, 168, 120)))


def _city(canvas: Canvas, rng: random.Random, horizon: float):
    street = rng.uniform(0.8, 0.9)
    for row, shade in ((0, 0.5), (1, 0.0)):
        left = -0.02
        while left < 1:
            width, top = rng.uniform(0.07, 0.16), rng.uniform(0.14, 0.5) + 0.16 * row
            wall = mix(
                _vary(rng, rng.choice(((156, 158, 174), (176, 160, 150), (140, 150, 164)))), (214, 222, 232), shade
            )
            canvas.box(left, top, left + width, street, wall)
            lit = (244, 230, 180) if rng.random() < 0.6 else (196, 206, 220)
            for line in range(int((street - top) / 0.05)):
                for column in range(int(width / 0.035)):
                    if row and rng.random() < 0.8:
                        x, y = left + 0.012 + 0.035 * column, top + 0.02 + 0.05 * line
                        canvas.box(x, y, x + 0.018, y + 0.022, lit)
            left += width + 0.006
    canvas.box(0, street, 1, 1, (120, 122, 128))
    canvas.box(0, street, 1, street + 0.015, (176, 176, 176))
    for step in range(6):
        canvas.box(0.04 + step / 6, 0.5 + street / 2, 0.12 + step / 6, 0.51 + street / 2, (232, 228, 206))


def _sea(canvas: Canvas, rng: random.Random, horizon: float):
    sea = _vary(rng, rng.choice(((84, 144, 182), (70, 130, 160), (100, 160, 190))))
    paint_gradient(canvas, mix(sea, (30, 70, 110), 0.35), sea, horizon, 1)
    for row in range(rng.randint(8, 14)):
        y = horizon + 0.03 + (row / 13) ** 1.4 * (1 - horizon)
        for _ in range(9 - row // 2):
            x, width = rng.random(), rng.uniform(0.02, 0.05) * (1 + row / 6)
            canvas.polygon(
                [(x, y), (x + width / 2, y - width / 6), (x + width, y), (x + width / 2, y + 0.004)],
                mix(sea, (240, 248, 250), 0.55),
            )


def _snow(canvas: Canvas, rng: random.Random, horizon: float):
    _hills(canvas, rng, horizon, 0.05, (220, 228, 238))
    for _ in range(rng.randint(4, 12)):
        _fir(
            canvas,
            rng.random(),
            horizon + rng.uniform(0.06, 0.16),
            rng.uniform(0.08, 0.18),
            _vary(rng, (126, 152, 146)),
        )
    _hills(canvas, rng, horizon + 0.16, 0.04, (238, 242, 247))
    for _ in range(rng.randint(50, 120)):
        canvas.disc(rng.random(), rng.random(), rng.uniform(0.002, 0.005), (252, 252, 255))


def _farm(canvas: Canvas, rng: random.Random, horizon: float):
    grass = _vary(rng, (166, 194, 120))
    _hills(canvas, rng, horizon, 0.02, grass)
    x, size, wall = rng.uniform(0.15, 0.8), rng.uniform(0.1, 0.16), _vary(rng, (168, 96, 84))
    y = horizon + 0.08
    canvas.box(x - size, y - size, x + size, y, wall)
    canvas.polygon(
        [
            (x - 1.1 * size, y - size),
            (x - 0.6 * size, y - 1.6 * size),
            (x + 0.6 * size, y - 1.6 * size),
            (x + 1.1 * size, y - size),
        ],
        mix(wall, (80, 50, 44), 0.5),
    )
    canvas.box(x - 0.35 * size, y - 0.7 * size, x + 0.35 * size, y, (226, 214, 200))
    canvas.line([(x - 0.35 * size, y - 0.7 * size), (x + 0.35 * size, y)], 0.006, wall)
    silo = x + rng.choice((-1.5, 1.5)) * size
    canvas.box(silo - 0.25 * size, y - 1.5 * size, silo + 0.25 * size, y, (190, 192, 196))
    canvas.disc(silo, y - 1.5 * size, 0.25 * size, (170, 172, 178))
    for step in range(9):
        canvas.polygon(
            [
                (0.5 + (step - 4.5) * 0.05, y + 0.08),
                (0.5 + (step - 4.0) * 0.05, y + 0.08),
                (0.5 + (step - 4.0) * 0.3, 1),
                (0.5 + (step - 4.5) * 0.3, 1),
            ],
            mix(grass, (140, 116, 70), 0.5),
        )
    for step in range(14):
        canvas.box(step / 13 - 0.004, y + 0.02, step / 13 + 0.004, y + 0.075, (200, 186, 164))
    canvas.box(0, y + 0.035, 1, y + 0.042, (200, 186, 164))


def _soccer(canvas: Canvas, rng: random.Random, horizon: float):
    grass = _vary(rng, (124, 174, 104))
    canvas.box(0, horizon - 0.06, 1, horizon, _vary(rng, (150, 154, 170)))
    for _ in range(220):
        canvas.disc(rng.random(), rng.uniform(horizon - 0.055, horizon), 0.006, _vary(rng, (190, 176, 170), 40))
    for band in range(10):
        top = horizon + (1 - horizon) * band / 10
        canvas.box(0, top, 1, 1, mix(grass, (60, 110, 50), 0.18 * (band % 2)))
    chalk, middle = (240, 244, 240), rng.uniform(0.35, 0.65)
    wide, tall = rng.uniform(0.12, 0.18), rng.uniform(0.09, 0.13)
    goal = horizon + 0.05
    for step in range(1, 8):
        at = middle - wide + 2 * wide * step / 8
        canvas.box(at, goal - tall, at + 0.002, goal, (214, 218, 220))
        canvas.box(
            middle - wide, goal - tall * step / 8, middle + wide, goal - tall * step / 8 + 0.002, (214, 218, 220)
        )
    canvas.line(
        [(middle - wide, goal), (middle - wide, goal - tall), (middle + wide, goal - tall), (middle + wide, goal)],
        0.01,
        chalk,
    )
    canvas.box(0, goal, 1, goal + 0.006, chalk)
    canvas.line(
        [
            (middle - 2 * wide, goal),
            (middle - 2.6 * wide, goal + 0.2),
            (middle + 2.6 * wide, goal + 0.2),
            (middle + 2 * wide, goal),
        ],
        0.008,
        chalk,
    )


def _highway(canvas: Canvas, rng: random.Random, horizon: float):
    _hills(canvas, rng, horizon, 0.03, _vary(rng, rng.choice(((170, 190, 128), (206, 186, 140)))))
    road, at = _vary(rng, (120, 122, 128)), rng.uniform(0.35, 0.65)
    canvas.polygon([(at - 0.02, horizon + 0.03), (at + 0.02, horizon + 0.03), (1.05, 1), (-0.05, 1)], road)
    canvas.line([(at - 0.018, horizon + 0.03), (-0.01, 1)], 0.008, (236, 236, 230))
    canvas.line([(at + 0.018, horizon + 0.03), (1.01, 1)], 0.008, (236, 236, 230))
    for step in range(7):
        near, far = (step / 7) ** 2, ((step + 0.5) / 7) ** 2
        depth = 0.96 - horizon
        line = [(at + (0.5 - at) * share, horizon + 0.04 + depth * share) for share in (near, far)]
        canvas.line(line, 0.004 + 0.012 * far, (240, 222, 150))
    for step in range(5):
        x = (at + 0.1 + step * 0.11) if rng.random() < 0.5 else (at - 0.1 - step * 0.11)
        canvas.box(x - 0.003, horizon - 0.14 - 0.03 * step, x + 0.003, horizon + 0.05 + 0.03 * step, (150, 150, 156))


def _underwater(canvas: Canvas, rng: random.Random, horizon: float):
    water = _vary(rng, (70, 140, 168))
    paint_gradient(canvas, mix(water, (200, 236, 240), 0.5), mix(water, (20, 50, 90), 0.55))
    for _ in range(rng.randint(2, 5)):
        x = rng.random()
        canvas.polygon([(x, 0), (x + 0.06, 0), (x + 0.25, 0.8), (x + 0.05, 0.8)], mix(water, (200, 236, 240), 0.32))
    floor = rng.uniform(0.82, 0.9)
    _hills(canvas, rng, floor, 0.025, _vary(rng, (196, 184, 146)))
    for _ in range(rng.randint(5, 12)):
        x, tall, green = rng.random(), rng.uniform(0.1, 0.3), _vary(rng, (76, 130, 106))
        shift = rng.uniform(0, 6)
        weed = [
            (x + 0.012 * math.sin(12 * tall * step / 8 + shift), floor + 0.05 - tall * step / 8) for step in range(9)
        ]
        canvas.line(weed, 0.012, green)
    for _ in range(rng.randint(10, 30)):
        x, y, size = rng.random(), rng.random() * floor, rng.uniform(0.004, 0.011)
        canvas.disc(x, y, size, mix(water, (230, 246, 250), 0.6))
    for _ in range(rng.randint(2, 5)):
        canvas.disc(rng.random(), floor + 0.06, rng.uniform(0.03, 0.06), _vary(rng, (196, 140, 136)), 0.7)


def _space(canvas: Canvas, rng: random.Random, horizon: float):
    deep = _vary(rng, (18, 18, 38), 8)
    canvas.box(0, 0, 1, 1, deep)
    add_grain(canvas, rng, 0.14, rng.randint(3, 6))
    for _ in range(rng.randint(90, 240)):
        shade = rng.choice(((240, 240, 250), (200, 210, 250), (250, 230, 200)))
        canvas.disc(rng.random(), rng.random(), rng.uniform(0.001, 0.004), shade)
    for _ in range(rng.randint(1, 2)):
        x, y, size = rng.choice((0.05, 0.95)), rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.16)
        planet = _vary(rng, rng.choice(((150, 130, 110), (110, 130, 150), (160, 140, 150))))
        canvas.disc(x, y, size, planet)
        for _ in range(4):
            canvas.disc(
                x + rng.uniform(-0.5, 0.5) * size,
                y + rng.uniform(-0.5, 0.5) * size,
                0.16 * size,
                mix(planet, (60, 60, 60), 0.25),
            )


def _lake(canvas: Canvas, rng: random.Random, horizon: float):
    _ridge(canvas, rng, horizon + 0.02, 0.2, _vary(rng, (138, 160, 160)))
    for _ in range(rng.randint(10, 22)):
        _fir(canvas, rng.random(), horizon + 0.03, rng.uniform(0.05, 0.1), _vary(rng, (90, 128, 100)))
    water = _vary(rng, (120, 168, 190))
    canvas.box(0, horizon + 0.03, 1, 1, water)
    for _ in range(rng.randint(12, 30)):
        x, y = rng.random(), rng.uniform(horizon + 0.06, 0.85)
        canvas.box(x, y, x + rng.uniform(0.03, 0.12), y + 0.003, mix(water, (230, 240, 246), 0.5))
    shore, left = _vary(rng, (170, 186, 126)), rng.random() < 0.5
    canvas.polygon([(0, 1), (0, 0.8 if left else 0.94), (0.5, 0.9), (1, 0.94 if left else 0.8), (1, 1)], shore)
    for _ in range(24):
        x = rng.uniform(0, 0.3) if left else rng.uniform(0.7, 1)
        canvas.line(
            [(x, 0.93), (x + rng.uniform(-0.01, 0.01), 0.93 - rng.uniform(0.06, 0.13))],
            0.004,
            mix(shore, (80, 100, 50), 0.6),
        )


def _harbor(canvas: Canvas, rng: random.Random, horizon: float):
    left = 0.0
    while left < 1:
        width, top = rng.uniform(0.08, 0.14), horizon - rng.uniform(0.08, 0.16)
        wall = _vary(rng, rng.choice(((214, 190, 170), (190, 196, 206), (220, 206, 180))))
        canvas.box(left, top, left + width, horizon + 0.02, wall)
        canvas.polygon(
            [(left, top), (left + width / 2, top - 0.05), (left + width, top)], mix(wall, (120, 80, 70), 0.5)
        )
        left += width
    water = _vary(rng, (96, 140, 168))
    canvas.box(0, horizon, 1, 1, water)
    for _ in range(rng.randint(3, 7)):
        x, y, size = rng.random(), horizon + rng.uniform(0.03, 0.12), rng.uniform(0.04, 0.08)
        canvas.polygon(
            [(x - size, y), (x + size, y), (x + 0.7 * size, y + 0.35 * size), (x - 0.7 * size, y + 0.35 * size)],
            _vary(rng, (206, 200, 196)),
        )
        canvas.box(x - 0.002, y - 2 * size, x + 0.002, y, (140, 130, 120))
        canvas.polygon(
            [(x + 0.006, y - 1.9 * size), (x + 0.8 * size, y - 0.2 * size), (x + 0.006, y - 0.2 * size)],
            (236, 236, 232),
        )
    for row in range(14):
        y = horizon + 0.16 + 0.06 * row
        x = rng.random() * 0.8
        canvas.box(x, y, x + 0.15, y + 0.004, mix(water, (230, 240, 246), 0.4))
    for step in range(4):
        canvas.box(0.55, 0.8 + 0.05 * step, 1, 0.84 + 0.05 * step, _vary(rng, (158, 134, 106), 8))


def _volcano(canvas: Canvas, rng: random.Random, horizon: float):
    x, base, rock = rng.uniform(0.3, 0.7), horizon + 0.2, _vary(rng, (110, 98, 98))
    for _ in range(9):
        canvas.disc(
            x + rng.uniform(-0.1, 0.1), rng.uniform(0.02, 0.16), rng.uniform(0.03, 0.08), _vary(rng, (150, 146, 150))
        )
    canvas.polygon([(x - 0.09, 0.22), (x + 0.09, 0.22), (x + 0.5, base), (x - 0.5, base)], rock)
    lava = _vary(rng, (226, 120, 66))
    canvas.disc(x, 0.22, 0.09, lava, 0.22)
    for side in (-1, 0.2, 1):
        canvas.line(
            [(x + 0.05 * side, 0.23), (x + 0.1 * side, 0.34), (x + 0.22 * side, rng.uniform(0.45, base - 0.02))],
            0.016,
            lava,
        )
    canvas.box(0, base, 1, 1, _vary(rng, (128, 136, 104)))
    for _ in range(rng.randint(15, 35)):
        canvas.disc(
            rng.random(), rng.uniform(base + 0.03, 1), rng.uniform(0.005, 0.02), mix(rock, (160, 150, 140), 0.4), 0.7
        )


def _park(canvas: Canvas, rng: random.Random, horizon: float):
    grass = _vary(rng, (154, 190, 118))
    _hills(canvas, rng, horizon, 0.02, grass)
    for _ in range(rng.randint(4, 8)):
        x, y, size = rng.random(), horizon + rng.uniform(0.02, 0.14), rng.uniform(0.05, 0.09)
        canvas.box(x - 0.012, y - 2 * size, x + 0.012, y, (124, 104, 86))
        for across, down in ((0, 0), (-0.6, 0.3), (0.6, 0.3)):
            canvas.disc(x + across * size, y - (2.3 - down) * size, size, _vary(rng, (120, 164, 108), 8))
    bend = rng.uniform(-0.3, 0.3)
    path = [
        (0.5 + bend * (1 - t) + 0.1 * math.sin(5 * t), horizon + 0.05 + (0.95 - horizon) * t)
        for t in (0, 0.2, 0.4, 0.6, 0.8, 1)
    ]
    edges = [(x - 0.02 - 0.14 * step / 5, y) for step, (x, y) in enumerate(path)]
    edges += [(x + 0.02 + 0.14 * step / 5, y) for step, (x, y) in reversed(list(enumerate(path)))]
    canvas.polygon(edges, (222, 208, 180))
    x, y = rng.choice((0.14, 0.84)), horizon + 0.3
    for level in range(4):
        canvas.box(x - 0.1, y - 0.09 + 0.026 * level, x + 0.1, y - 0.073 + 0.026 * level, (150, 122, 92))
    for leg in (-0.09, 0.08):
        canvas.box(x + leg, y - 0.09, x + leg + 0.01, y + 0.05, (90, 90, 94))


def _canyon(canvas: Canvas, rng: random.Random, horizon: float):
    rock = _vary(rng, rng.choice(((204, 140, 104), (190, 126, 96), (214, 160, 120))))
    for side in (-1, 1):
        edge = 0.5 + side * rng.uniform(0.08, 0.2)
        wall = [
            (0.5 + side * 0.7, horizon - 0.2),
            (edge + side * 0.1, horizon - rng.uniform(0.05, 0.18)),
            (edge, horizon + 0.1),
            (edge - side * 0.04, 1),
            (0.5 + side * 0.7, 1),
        ]
        canvas.polygon(wall, rock)
        for layer in range(7):
            y, shade = horizon - 0.04 + 0.11 * layer, mix(rock, rng.choice(((110, 60, 44), (240, 200, 160))), 0.3)
            canvas.polygon(
                [
                    (0.5 + side * 0.7, y),
                    (edge + side * 0.05, y + 0.02),
                    (edge + side * 0.05, y + 0.05),
                    (0.5 + side * 0.7, y + 0.04),
                ],
                shade,
            )
    canvas.polygon([(0.47, horizon + 0.12), (0.53, horizon + 0.12), (0.62, 1), (0.36, 1)], _vary(rng, (128, 166, 176)))


OUTDOORS: dict[str, Callable[[Canvas, random.Random, float], None]] = {
    "a grassy field": _field,
    "a flower meadow": _meadow,
    "a beach": _beach,
    "a desert": _desert,
    "a forest": _forest,
    "a mountain range": _mountains,
    "a city": _city,
    "the open sea": _sea,
    "a snowy landscape": _snow,
    "a farm": _farm,
    "a soccer field": _soccer,
    "a highway": _highway,
    "the bottom of the sea": _underwater,
    "outer space": _space,
    "a lake": _lake,
    "a harbor": _harbor,
    "a volcano": _volcano,
    "a park": _park,
    "a canyon": _canyon,
}
TIMELESS = ("the bottom of the sea", "outer space")  # places without a sky that tells the time of day
