"""Paints the rooms of a home."""

import random

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import Rgb, mix
from fusion_vlm.synthesis.scenes.furniture import METAL, PALE, WOOD, paint_picture, paint_window
from fusion_vlm.synthesis.scenes.surfaces import draw_muted


def _kitchen(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    cabinet, top = draw_muted(rng), horizon - rng.uniform(0.1, 0.16)
    count = rng.randint(4, 6)
    oven = rng.randrange(count)
    for step in range(count):
        left, right = step / count, (step + 1) / count
        canvas.box(left + 0.004, top, right - 0.004, horizon + 0.08, METAL if step == oven else cabinet)
        if step == oven:
            canvas.box(left + 0.03, top + 0.05, right - 0.03, horizon + 0.05, (70, 74, 82))
            for knob in range(4):
                canvas.disc(left + 0.03 + knob * 0.03, top + 0.022, 0.008, (90, 92, 98))
        else:
            canvas.box(right - 0.035, top + 0.05, right - 0.025, top + 0.11, (120, 120, 124))
            canvas.box(left + 0.004, 0.02, right - 0.004, 0.2, cabinet)
            canvas.box(right - 0.035, 0.13, right - 0.025, 0.18, (120, 120, 124))
    canvas.box(0, top - 0.02, 1, top, mix(cabinet, (90, 80, 70), 0.6))
    hood = (oven + 0.5) / count
    canvas.polygon([(hood - 0.05, 0), (hood + 0.05, 0), (hood + 0.09, 0.18), (hood - 0.09, 0.18)], METAL)
    at = (oven + 1.5) / count if oven < count - 1 else (oven - 0.5) / count
    paint_window(canvas, rng, at, 0.32, 0.07, 0.08)


def _bedroom(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    middle, quilt = rng.uniform(0.4, 0.6), draw_muted(rng)
    paint_window(canvas, rng, middle + rng.choice((-0.36, 0.36)), 0.28, 0.09, 0.13)
    canvas.box(middle - 0.27, horizon - 0.24, middle + 0.27, horizon + 0.08, WOOD)
    for side in (-1, 1):
        canvas.box(middle + side * 0.13 - 0.1, horizon - 0.12, middle + side * 0.13 + 0.1, horizon - 0.01, PALE)
        x = middle + side * 0.38
        canvas.box(x - 0.07, horizon - 0.07, x + 0.07, horizon + 0.08, mix(WOOD, PALE, 0.3))
        canvas.box(x - 0.005, horizon - 0.15, x + 0.005, horizon - 0.07, METAL)
        canvas.polygon(
            [
                (x - 0.03, horizon - 0.22),
                (x + 0.03, horizon - 0.22),
                (x + 0.05, horizon - 0.14),
                (x - 0.05, horizon - 0.14),
            ],
            (246, 232, 200),
        )
    canvas.polygon(
        [
            (middle - 0.26, horizon - 0.03),
            (middle + 0.26, horizon - 0.03),
            (middle + 0.31, 0.98),
            (middle - 0.31, 0.98),
        ],
        quilt,
    )
    canvas.polygon(
        [
            (middle - 0.26, horizon - 0.03),
            (middle + 0.26, horizon - 0.03),
            (middle + 0.265, horizon + 0.03),
            (middle - 0.265, horizon + 0.03),
        ],
        PALE,
    )


def _living_room(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    middle, fabric = rng.uniform(0.35, 0.65), draw_muted(rng, rng.random() < 0.5)
    paint_picture(canvas, rng, middle, 0.28, rng.uniform(0.1, 0.18), rng.uniform(0.08, 0.12))
    paint_window(canvas, rng, middle + rng.choice((-0.34, 0.34)), 0.3, 0.08, 0.15)
    canvas.disc(0.5, 0.92, 0.4, mix(draw_muted(rng), (150, 110, 100), 0.3), 0.18)
    canvas.box(middle - 0.25, horizon - 0.2, middle + 0.25, horizon + 0.02, fabric)
    canvas.box(middle - 0.31, horizon - 0.1, middle + 0.31, horizon + 0.08, mix(fabric, (0, 0, 0), 0.1))
    for step in (-1, 0, 1):
        canvas.box(
            middle + step * 0.165 - 0.08,
            horizon - 0.05,
            middle + step * 0.165 + 0.08,
            horizon + 0.0,
            mix(fabric, PALE, 0.25),
        )
    x = middle - 0.4 if middle > 0.5 else middle + 0.4
    canvas.box(x - 0.005, 0.4, x + 0.005, horizon + 0.05, METAL)
    canvas.polygon([(x - 0.04, 0.32), (x + 0.04, 0.32), (x + 0.07, 0.42), (x - 0.07, 0.42)], (246, 232, 200))


def _bathroom(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    for step in range(1, 14):
        canvas.box(step / 14, 0, step / 14 + 0.003, horizon, mix(wall, PALE, 0.7))
        canvas.box(0, step * horizon / 10, 1, step * horizon / 10 + 0.003, mix(wall, PALE, 0.7))
    x = rng.choice((0.26, 0.74))
    canvas.disc(x, 0.24, 0.11, (206, 226, 234), 1.3)
    canvas.box(x - 0.13, horizon - 0.2, x + 0.13, horizon - 0.12, PALE)
    canvas.box(x - 0.03, horizon - 0.12, x + 0.03, horizon + 0.08, PALE)
    canvas.line(
        [(x, horizon - 0.2), (x, horizon - 0.27), (x + 0.04, horizon - 0.27), (x + 0.04, horizon - 0.24)], 0.012, METAL
    )
    tub = 1 - x
    canvas.box(tub - 0.24, horizon - 0.08, tub + 0.24, horizon + 0.14, PALE)
    canvas.box(tub - 0.26, horizon - 0.1, tub + 0.26, horizon - 0.06, (250, 250, 250))
    canvas.line([(tub + 0.2, horizon - 0.1), (tub + 0.2, 0.2), (tub + 0.12, 0.2)], 0.012, METAL)
    canvas.polygon([(tub + 0.09, 0.24), (tub + 0.15, 0.24), (tub + 0.13, 0.2), (tub + 0.11, 0.2)], METAL)


def _garage(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    door = mix(draw_muted(rng), METAL, 0.4)
    left = rng.uniform(0.05, 0.3)
    canvas.box(left, 0.14, left + 0.55, horizon + 0.02, door)
    for row in range(1, 6):
        y = 0.14 + row * (horizon - 0.12) / 6
        canvas.box(left, y, left + 0.55, y + 0.006, mix(door, (60, 60, 60), 0.4))
    canvas.box(left + 0.25, horizon - 0.06, left + 0.31, horizon - 0.045, (70, 70, 76))
    x = left + 0.6
    canvas.box(x, 0.12, 0.99, 0.4, mix(WOOD, PALE, 0.2))
    for step in range(4):
        at = x + 0.03 + step * 0.05
        canvas.line([(at, 0.17), (at, 0.17 + rng.uniform(0.08, 0.18))], 0.008, (96, 98, 104))
        canvas.box(at - 0.014, 0.16, at + 0.014, 0.18, (96, 98, 104))
    canvas.box(x, horizon - 0.12, 1, horizon - 0.09, WOOD)
    canvas.box(x + 0.02, horizon - 0.09, x + 0.04, horizon + 0.1, WOOD)
    for _ in range(4):
        canvas.disc(
            rng.uniform(0.1, 0.9),
            rng.uniform(horizon + 0.08, 0.96),
            rng.uniform(0.02, 0.06),
            mix(draw_muted(rng, True), (70, 70, 70), 0.5),
            0.35,
        )


def _laundry(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    number = rng.randint(3, 5)
    for step in range(number):
        left, right = step / number + 0.01, (step + 1) / number - 0.01
        middle, top = (left + right) / 2, horizon - 0.26
        canvas.box(left, top, right, horizon + 0.06, PALE)
        canvas.box(left, top, right, top + 0.055, METAL)
        canvas.disc(right - 0.03, top + 0.028, 0.015, (90, 94, 100))
        canvas.disc(middle, top + 0.18, 0.38 / number, (150, 156, 164))
        canvas.disc(middle, top + 0.18, 0.29 / number, (110, 136, 156))
        for _ in range(3):
            canvas.disc(middle + rng.uniform(-0.1, 0.1) / number, top + 0.2, 0.1 / number, draw_muted(rng))
    canvas.box(0.05, 0.16, 0.95, 0.185, WOOD)
    for _ in range(rng.randint(5, 9)):
        x, tall = rng.uniform(0.08, 0.88), rng.uniform(0.04, 0.09)
        canvas.box(x, 0.16 - tall, x + 0.05, 0.16, draw_muted(rng))


HOMES = {
    "a kitchen": _kitchen,
    "a bedroom": _bedroom,
    "a living room": _living_room,
    "a bathroom": _bathroom,
    "a garage": _garage,
    "a laundry room": _laundry,
}
