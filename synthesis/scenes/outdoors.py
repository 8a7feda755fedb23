"""Paints places outdoors with a random horizon, palette and clutter, by day, at sunset or at night."""

import math
import random
from collections.abc import Callable

from PIL import ImageChops

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import mix
from fusion_vlm.synthesis.scenes.ground import paint_hills, vary_color
from fusion_vlm.synthesis.scenes.landscapes import LANDSCAPES
from fusion_vlm.synthesis.scenes.surfaces import paint_gradient


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
    paint_gradient(canvas, vary_color(rng, top), vary_color(rng, bottom), 0, horizon + 0.1)
    _paint_lights(canvas, rng, time, horizon)
    sky = canvas.image.copy()
    OUTDOORS[name](canvas, rng, horizon)
    if time in LIGHT:
        tint, share = LIGHT[time]
        painted = ImageChops.difference(sky, canvas.image).convert("L")
        canvas.image.paste(tint, mask=painted.point(lambda value: round(255 * share) if value else 0))


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


def _city(canvas: Canvas, rng: random.Random, horizon: float):
    street = rng.uniform(0.8, 0.9)
    for row, shade in ((0, 0.5), (1, 0.0)):
        left = -0.02
        while left < 1:
            width, top = rng.uniform(0.07, 0.16), rng.uniform(0.14, 0.5) + 0.16 * row
            tone = rng.choice(((156, 158, 174), (176, 160, 150), (140, 150, 164)))
            wall = mix(vary_color(rng, tone), (214, 222, 232), shade)
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


def _farm(canvas: Canvas, rng: random.Random, horizon: float):
    grass = vary_color(rng, (166, 194, 120))
    paint_hills(canvas, rng, horizon, 0.02, grass)
    x, size, wall = rng.uniform(0.15, 0.8), rng.uniform(0.1, 0.16), vary_color(rng, (168, 96, 84))
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
    grass = vary_color(rng, (124, 174, 104))
    canvas.box(0, horizon - 0.06, 1, horizon, vary_color(rng, (150, 154, 170)))
    for _ in range(220):
        canvas.disc(rng.random(), rng.uniform(horizon - 0.055, horizon), 0.006, vary_color(rng, (190, 176, 170), 40))
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
    paint_hills(canvas, rng, horizon, 0.03, vary_color(rng, rng.choice(((170, 190, 128), (206, 186, 140)))))
    road, at = vary_color(rng, (120, 122, 128)), rng.uniform(0.35, 0.65)
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


def _harbor(canvas: Canvas, rng: random.Random, horizon: float):
    left = 0.0
    while left < 1:
        width, top = rng.uniform(0.08, 0.14), horizon - rng.uniform(0.08, 0.16)
        wall = vary_color(rng, rng.choice(((214, 190, 170), (190, 196, 206), (220, 206, 180))))
        canvas.box(left, top, left + width, horizon + 0.02, wall)
        canvas.polygon(
            [(left, top), (left + width / 2, top - 0.05), (left + width, top)], mix(wall, (120, 80, 70), 0.5)
        )
        left += width
    water = vary_color(rng, (96, 140, 168))
    canvas.box(0, horizon, 1, 1, water)
    for _ in range(rng.randint(3, 7)):
        x, y, size = rng.random(), horizon + rng.uniform(0.03, 0.12), rng.uniform(0.04, 0.08)
        canvas.polygon(
            [(x - size, y), (x + size, y), (x + 0.7 * size, y + 0.35 * size), (x - 0.7 * size, y + 0.35 * size)],
            vary_color(rng, (206, 200, 196)),
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
        canvas.box(0.55, 0.8 + 0.05 * step, 1, 0.84 + 0.05 * step, vary_color(rng, (158, 134, 106), 8))


def _park(canvas: Canvas, rng: random.Random, horizon: float):
    grass = vary_color(rng, (154, 190, 118))
    paint_hills(canvas, rng, horizon, 0.02, grass)
    for _ in range(rng.randint(4, 8)):
        x, y, size = rng.random(), horizon + rng.uniform(0.02, 0.14), rng.uniform(0.05, 0.09)
        canvas.box(x - 0.012, y - 2 * size, x + 0.012, y, (124, 104, 86))
        for across, down in ((0, 0), (-0.6, 0.3), (0.6, 0.3)):
            canvas.disc(x + across * size, y - (2.3 - down) * size, size, vary_color(rng, (120, 164, 108), 8))
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


OUTDOORS: dict[str, Callable[[Canvas, random.Random, float], None]] = {
    **LANDSCAPES,
    "a city": _city,
    "a farm": _farm,
    "a soccer field": _soccer,
    "a highway": _highway,
    "a harbor": _harbor,
    "a park": _park,
}
TIMELESS = ("the bottom of the sea", "outer space")  # places without a sky that tells the time of day
