"""Paints landscapes: places outdoors without buildings."""

import math
import random

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import mix
from fusion_vlm.synthesis.scenes.ground import paint_fir, paint_hills, paint_ridge, paint_tufts, vary_color
from fusion_vlm.synthesis.scenes.surfaces import add_grain, paint_gradient


def _field(canvas: Canvas, rng: random.Random, horizon: float):
    grass = vary_color(rng, rng.choice(((160, 196, 122), (180, 190, 116), (132, 176, 118))))
    paint_hills(canvas, rng, horizon - 0.03, 0.04, mix(grass, (150, 176, 160), 0.5))
    paint_hills(canvas, rng, horizon + 0.04, 0.03, grass)
    paint_tufts(canvas, rng, horizon + 0.1, mix(grass, (60, 100, 50), 0.4), rng.randint(40, 110))


def _meadow(canvas: Canvas, rng: random.Random, horizon: float):
    grass = vary_color(rng, (150, 190, 120))
    paint_hills(canvas, rng, horizon, 0.03, grass)
    paint_tufts(canvas, rng, horizon + 0.08, mix(grass, (60, 100, 50), 0.4), 40)
    tones = [vary_color(rng, tone) for tone in ((238, 214, 226), (244, 238, 200), (222, 214, 240), (250, 246, 246))]
    for _ in range(rng.randint(60, 120)):
        x, y, tone = rng.random(), rng.uniform(horizon + 0.07, 1), rng.choice(tones)
        size = 0.004 + 0.008 * (y - horizon)
        for turn in range(5):
            angle = turn * 1.257
            canvas.disc(x + size * math.cos(angle), y + size * math.sin(angle), size * 0.7, tone)
        canvas.disc(x, y, size * 0.6, (206, 170, 90))


def _beach(canvas: Canvas, rng: random.Random, horizon: float):
    sea, sand = vary_color(rng, (104, 168, 198)), vary_color(rng, (236, 214, 170))
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
    sand = vary_color(rng, rng.choice(((230, 192, 142), (222, 176, 130), (236, 206, 160))))
    for level, shade in ((0, 0.0), (0.14, 0.12), (0.3, 0.04), (0.42, 0.16)):
        paint_hills(canvas, rng, horizon + level, 0.05, mix(sand, (150, 100, 60), shade))
    for _ in range(rng.randint(1, 4)):
        x, y, size = rng.random(), rng.uniform(horizon + 0.15, 0.95), rng.uniform(0.6, 1.4)
        green = vary_color(rng, (116, 150, 118))
        canvas.box(x - 0.012 * size, y - 0.16 * size, x + 0.012 * size, y, green)
        for side, low in ((-1, 0.06), (1, 0.09)):
            near, far = sorted((x, x + side * 0.05 * size))
            canvas.box(near, y - low * size - 0.018 * size, far, y - low * size, green)
            near, far = sorted((x + side * 0.034 * size, x + side * 0.05 * size))
            canvas.box(near, y - low * size - 0.05 * size, far, y - low * size, green)


def _forest(canvas: Canvas, rng: random.Random, horizon: float):
    soil, green = vary_color(rng, (150, 146, 112)), vary_color(rng, (96, 140, 100))
    canvas.box(0, horizon + 0.12, 1, 1, soil)
    for row, number in ((0, 16), (1, 11), (2, 7)):
        shade = mix(green, (200, 220, 210), 0.5 - 0.25 * row)
        for step in range(number):
            x = (step + rng.uniform(0, 1)) / number
            y = horizon + 0.14 + 0.07 * row + rng.uniform(0, 0.03)
            if rng.random() < 0.6:
                paint_fir(canvas, x, y, 0.13 + 0.07 * row, shade)
            else:
                canvas.box(x - 0.01, y - 0.2, x + 0.01, y, (112, 94, 78))
                canvas.disc(x, y - 0.22 - 0.04 * row, 0.05 + 0.02 * row, shade, 1.3)
    paint_tufts(canvas, rng, horizon + 0.35, mix(green, soil, 0.4), 50)


def _mountains(canvas: Canvas, rng: random.Random, horizon: float):
    rock = vary_color(rng, rng.choice(((140, 146, 164), (150, 140, 136), (126, 140, 150))))
    paint_ridge(canvas, rng, horizon + 0.08, 0.34, mix(rock, (210, 220, 232), 0.55))
    for x, y in paint_ridge(canvas, rng, horizon + 0.2, 0.38, rock):
        drop = rng.uniform(0.05, 0.09)
        canvas.polygon(
            [(x, y), (x + 0.42 * drop, y + drop), (x, y + 0.7 * drop), (x - 0.42 * drop, y + drop)], (244, 247, 252)
        )
    paint_hills(canvas, rng, horizon + 0.3, 0.03, vary_color(rng, (138, 168, 120)))


def _sea(canvas: Canvas, rng: random.Random, horizon: float):
    sea = vary_color(rng, rng.choice(((84, 144, 182), (70, 130, 160), (100, 160, 190))))
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
    paint_hills(canvas, rng, horizon, 0.05, (220, 228, 238))
    for _ in range(rng.randint(4, 12)):
        paint_fir(
            canvas,
            rng.random(),
            horizon + rng.uniform(0.06, 0.16),
            rng.uniform(0.08, 0.18),
            vary_color(rng, (126, 152, 146)),
        )
    paint_hills(canvas, rng, horizon + 0.16, 0.04, (238, 242, 247))
    for _ in range(rng.randint(50, 120)):
        canvas.disc(rng.random(), rng.random(), rng.uniform(0.002, 0.005), (252, 252, 255))


def _underwater(canvas: Canvas, rng: random.Random, horizon: float):
    water = vary_color(rng, (70, 140, 168))
    paint_gradient(canvas, mix(water, (200, 236, 240), 0.5), mix(water, (20, 50, 90), 0.55))
    for _ in range(rng.randint(2, 5)):
        x = rng.random()
        canvas.polygon([(x, 0), (x + 0.06, 0), (x + 0.25, 0.8), (x + 0.05, 0.8)], mix(water, (200, 236, 240), 0.32))
    floor = rng.uniform(0.82, 0.9)
    paint_hills(canvas, rng, floor, 0.025, vary_color(rng, (196, 184, 146)))
    for _ in range(rng.randint(5, 12)):
        x, tall, green = rng.random(), rng.uniform(0.1, 0.3), vary_color(rng, (76, 130, 106))
        shift = rng.uniform(0, 6)
        weed = [
            (x + 0.012 * math.sin(12 * tall * step / 8 + shift), floor + 0.05 - tall * step / 8) for step in range(9)
        ]
        canvas.line(weed, 0.012, green)
    for _ in range(rng.randint(10, 30)):
        x, y, size = rng.random(), rng.random() * floor, rng.uniform(0.004, 0.011)
        canvas.disc(x, y, size, mix(water, (230, 246, 250), 0.6))
    for _ in range(rng.randint(2, 5)):
        canvas.disc(rng.random(), floor + 0.06, rng.uniform(0.03, 0.06), vary_color(rng, (196, 140, 136)), 0.7)


def _space(canvas: Canvas, rng: random.Random, horizon: float):
    deep = vary_color(rng, (18, 18, 38), 8)
    canvas.box(0, 0, 1, 1, deep)
    add_grain(canvas, rng, 0.14, rng.randint(3, 6))
    for _ in range(rng.randint(90, 240)):
        shade = rng.choice(((240, 240, 250), (200, 210, 250), (250, 230, 200)))
        canvas.disc(rng.random(), rng.random(), rng.uniform(0.001, 0.004), shade)
    for _ in range(rng.randint(1, 2)):
        x, y, size = rng.choice((0.05, 0.95)), rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.16)
        planet = vary_color(rng, rng.choice(((150, 130, 110), (110, 130, 150), (160, 140, 150))))
        canvas.disc(x, y, size, planet)
        for _ in range(4):
            canvas.disc(
                x + rng.uniform(-0.5, 0.5) * size,
                y + rng.uniform(-0.5, 0.5) * size,
                0.16 * size,
                mix(planet, (60, 60, 60), 0.25),
            )


def _lake(canvas: Canvas, rng: random.Random, horizon: float):
    paint_ridge(canvas, rng, horizon + 0.02, 0.2, vary_color(rng, (138, 160, 160)))
    for _ in range(rng.randint(10, 22)):
        paint_fir(canvas, rng.random(), horizon + 0.03, rng.uniform(0.05, 0.1), vary_color(rng, (90, 128, 100)))
    water = vary_color(rng, (120, 168, 190))
    canvas.box(0, horizon + 0.03, 1, 1, water)
    for _ in range(rng.randint(12, 30)):
        x, y = rng.random(), rng.uniform(horizon + 0.06, 0.85)
        canvas.box(x, y, x + rng.uniform(0.03, 0.12), y + 0.003, mix(water, (230, 240, 246), 0.5))
    shore, left = vary_color(rng, (170, 186, 126)), rng.random() < 0.5
    canvas.polygon([(0, 1), (0, 0.8 if left else 0.94), (0.5, 0.9), (1, 0.94 if left else 0.8), (1, 1)], shore)
    for _ in range(24):
        x = rng.uniform(0, 0.3) if left else rng.uniform(0.7, 1)
        canvas.line(
            [(x, 0.93), (x + rng.uniform(-0.01, 0.01), 0.93 - rng.uniform(0.06, 0.13))],
            0.004,
            mix(shore, (80, 100, 50), 0.6),
        )


def _volcano(canvas: Canvas, rng: random.Random, horizon: float):
    x, base, rock = rng.uniform(0.3, 0.7), horizon + 0.2, vary_color(rng, (110, 98, 98))
    for _ in range(9):
        canvas.disc(
            x + rng.uniform(-0.1, 0.1),
            rng.uniform(0.02, 0.16),
            rng.uniform(0.03, 0.08),
            vary_color(rng, (150, 146, 150)),
        )
    canvas.polygon([(x - 0.09, 0.22), (x + 0.09, 0.22), (x + 0.5, base), (x - 0.5, base)], rock)
    lava = vary_color(rng, (226, 120, 66))
    canvas.disc(x, 0.22, 0.09, lava, 0.22)
    for side in (-1, 0.2, 1):
        canvas.line(
            [(x + 0.05 * side, 0.23), (x + 0.1 * side, 0.34), (x + 0.22 * side, rng.uniform(0.45, base - 0.02))],
            0.016,
            lava,
        )
    canvas.box(0, base, 1, 1, vary_color(rng, (128, 136, 104)))
    for _ in range(rng.randint(15, 35)):
        canvas.disc(
            rng.random(), rng.uniform(base + 0.03, 1), rng.uniform(0.005, 0.02), mix(rock, (160, 150, 140), 0.4), 0.7
        )


def _canyon(canvas: Canvas, rng: random.Random, horizon: float):
    rock = vary_color(rng, rng.choice(((204, 140, 104), (190, 126, 96), (214, 160, 120))))
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
    canvas.polygon(
        [(0.47, horizon + 0.12), (0.53, horizon + 0.12), (0.62, 1), (0.36, 1)], vary_color(rng, (128, 166, 176))
    )


LANDSCAPES = {
    "a grassy field": _field,
    "a flower meadow": _meadow,
    "a beach": _beach,
    "a desert": _desert,
    "a forest": _forest,
    "a mountain range": _mountains,
    "the open sea": _sea,
    "a snowy landscape": _snow,
    "the bottom of the sea": _underwater,
    "outer space": _space,
    "a lake": _lake,
    "a volcano": _volcano,
    "a canyon": _canyon,
}
