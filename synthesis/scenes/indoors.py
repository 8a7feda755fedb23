"""Paints rooms with random walls, floors and furniture."""

import random
from collections.abc import Callable

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import Rgb, mix
from fusion_vlm.synthesis.scenes.furniture import METAL, PALE, WOOD, paint_picture, paint_shelves, paint_window
from fusion_vlm.synthesis.scenes.homes import HOMES
from fusion_vlm.synthesis.scenes.surfaces import draw_muted


# Nouns that the furniture of a room looks like; none of its objects has such a noun.
ROOM_LOOK_ALIKES = {
    "a kitchen": ("bottle", "mug", "rectangle", "square"),
    "a bedroom": ("bed", "lamp", "frame", "rectangle"),
    "a living room": ("sofa", "lamp", "frame", "television", "rectangle"),
    "a bathroom": ("circle", "oval", "bucket"),
    "a classroom": ("chair", "rectangle", "frame", "book"),
    "a library": ("book", "rectangle"),
    "an office": ("television", "chair", "telephone", "rectangle"),
    "a museum": ("frame", "square", "rectangle", "vase"),
    "a garage": ("car", "hammer", "wrench", "rectangle"),
    "a gym": ("ball", "ring", "rectangle"),
    "a supermarket": ("bottle", "rectangle", "square"),
    "a theater": ("chair", "rectangle"),
    "a laundry room": ("ring", "circle", "rectangle"),
    "a greenhouse": ("tree", "leaf", "flower", "bucket", "vase"),
}


def paint_indoors(canvas: Canvas, name: str, rng: random.Random):
    """Paint one of `INDOORS`."""
    horizon = rng.uniform(0.6, 0.78)
    wall, floor = draw_muted(rng), mix(draw_muted(rng), rng.choice((WOOD, METAL, (150, 130, 120))), 0.55)
    canvas.box(0, 0, 1, horizon, wall)
    canvas.box(0, horizon, 1, 1, floor)
    _paint_floor(canvas, rng, horizon, floor)
    canvas.box(0, horizon - 0.015, 1, horizon, mix(wall, PALE, 0.6))
    INDOORS[name](canvas, rng, horizon, wall)


def _paint_floor(canvas: Canvas, rng: random.Random, horizon: float, floor: Rgb):
    line, vanish = mix(floor, (60, 50, 40), 0.25), rng.uniform(0.3, 0.7)
    for step in range(-8, 18):
        canvas.line([(vanish + (step / 9 - 0.5) * 0.9, horizon), (vanish + (step / 9 - 0.5) * 2.4, 1)], 0.002, line)
    if rng.random() < 0.5:
        for row in range(1, 5):
            y = horizon + (1 - horizon) * (row / 5) ** 1.6
            canvas.box(0, y, 1, y + 0.002, line)


def _classroom(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    board = rng.choice(((52, 84, 70), (60, 66, 72), (240, 242, 242)))
    left, right = rng.uniform(0.06, 0.16), rng.uniform(0.76, 0.94)
    canvas.box(left - 0.015, 0.12, right + 0.015, 0.46, WOOD)
    canvas.box(left, 0.135, right, 0.445, board)
    chalk = mix(board, (128, 128, 128), 0.35)
    for row in range(rng.randint(2, 4)):
        canvas.line([(left + 0.05, 0.2 + 0.06 * row), (left + rng.uniform(0.2, 0.5), 0.2 + 0.06 * row)], 0.005, chalk)
    canvas.box(left, 0.46, right, 0.475, PALE)
    for row, (y, wide) in enumerate(((horizon + 0.03, 0.09), (horizon + 0.14, 0.12))):
        for step in range(4 - row):
            x = (step + 0.5) / (4 - row)
            canvas.polygon(
                [(x - wide, y), (x + wide, y), (x + 1.15 * wide, y + 0.035), (x - 1.15 * wide, y + 0.035)],
                mix(WOOD, PALE, 0.35),
            )
            for leg in (-1, 1):
                canvas.box(x + leg * wide - 0.005, y + 0.035, x + leg * wide + 0.005, y + 0.1, METAL)


def _library(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    number = rng.randint(2, 3)
    for shelf in range(number):
        left, right = shelf / number + 0.015, (shelf + 1) / number - 0.015
        rows = rng.randint(4, 6)
        height = paint_shelves(canvas, rng, left, right, 0.05, horizon + 0.05, rows)
        for row in range(rows):
            x, bottom = left + 0.014, 0.05 + (row + 1) * height - 0.008
            while x < right - 0.035:
                width = rng.uniform(0.01, 0.024)
                canvas.box(
                    x,
                    bottom - height * rng.uniform(0.55, 0.85),
                    x + width,
                    bottom,
                    draw_muted(rng, rng.random() < 0.6),
                )
                x += width + 0.002 + (rng.random() < 0.08) * 0.03


def _office(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    middle = rng.uniform(0.35, 0.65)
    paint_window(canvas, rng, middle + rng.choice((-0.3, 0.3)), 0.26, 0.14, 0.12)
    desk = horizon - 0.05
    canvas.box(middle - 0.07, desk - 0.21, middle + 0.09, desk - 0.06, (60, 64, 72))
    canvas.box(middle - 0.06, desk - 0.2, middle + 0.08, desk - 0.075, (150, 180, 200))
    canvas.box(middle, desk - 0.06, middle + 0.02, desk, (60, 64, 72))
    for row in range(5):
        canvas.box(
            middle - 0.045, desk - 0.185 + 0.02 * row, middle + rng.uniform(0, 0.06), desk - 0.18 + 0.02 * row, PALE
        )
    canvas.box(middle - 0.36, desk, middle + 0.36, desk + 0.03, mix(WOOD, PALE, 0.2))
    canvas.box(middle + 0.18, desk + 0.03, middle + 0.34, horizon + 0.18, mix(WOOD, PALE, 0.1))
    for row in range(3):
        canvas.box(middle + 0.24, desk + 0.06 + 0.065 * row, middle + 0.28, desk + 0.07 + 0.065 * row, METAL)
    canvas.box(middle - 0.34, desk + 0.03, middle - 0.32, horizon + 0.18, METAL)
    canvas.box(middle - 0.12, desk + 0.06, middle + 0.04, desk + 0.16, (70, 74, 84))
    canvas.box(middle - 0.05, desk + 0.16, middle - 0.03, horizon + 0.22, METAL)
    for paper in range(rng.randint(2, 6)):
        canvas.box(middle - 0.3, desk - 0.008 * (paper + 1), middle - 0.18, desk - 0.008 * paper - 0.002, PALE)


def _museum(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    number = rng.randint(3, 4)
    for step in range(number):
        x = (step + 0.5) / number
        paint_picture(canvas, rng, x, rng.uniform(0.28, 0.36), rng.uniform(0.06, 0.1), rng.uniform(0.08, 0.15))
        canvas.box(x - 0.02, 0.02, x + 0.02, 0.045, METAL)
    for x in (0.1, 0.37, 0.64, 0.91):
        canvas.box(x - 0.006, horizon - 0.02, x + 0.006, horizon + 0.1, (196, 170, 100))
        canvas.disc(x, horizon + 0.1, 0.025, (196, 170, 100), 0.3)
    for x in (0.1, 0.37, 0.64):
        canvas.line(
            [(x + 0.27 * t, horizon - 0.01 + 0.16 * t * (1 - t)) for t in (0, 0.25, 0.5, 0.75, 1)], 0.01, (140, 60, 66)
        )


def _gym(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    for step in range(8):
        canvas.box(0.03, 0.14 + 0.055 * step, 0.22, 0.155 + 0.055 * step, WOOD)
    for x in (0.03, 0.12, 0.21):
        canvas.box(x, 0.1, x + 0.012, horizon, mix(WOOD, (80, 60, 40), 0.4))
    x = rng.uniform(0.5, 0.8)
    canvas.box(x - 0.12, 0.06, x + 0.12, 0.24, PALE)
    canvas.line([(x - 0.05, 0.22), (x - 0.05, 0.12), (x + 0.05, 0.12), (x + 0.05, 0.22)], 0.008, (190, 100, 80))
    canvas.line([(x - 0.045, 0.24), (x + 0.045, 0.24)], 0.012, (200, 106, 70))
    for step in range(5):
        canvas.line([(x - 0.04 + 0.02 * step, 0.25), (x - 0.024 + 0.012 * step, 0.33)], 0.003, PALE)
    canvas.line([(0, horizon + 0.1), (1, horizon + 0.16)], 0.01, (236, 236, 240))
    canvas.disc(0.5, 0.95, 0.3, mix((190, 120, 90), draw_muted(rng), 0.5), 0.15)
    canvas.polygon(
        [(0.62, horizon - 0.03), (0.9, horizon - 0.03), (0.94, horizon + 0.07), (0.58, horizon + 0.07)],
        mix((90, 110, 150), draw_muted(rng), 0.4),
    )


def _supermarket(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    for left, right in ((0.0, 0.46), (0.54, 1.0)):
        rows = rng.randint(4, 5)
        height = paint_shelves(canvas, rng, left, right, 0.1, horizon + 0.08, rows)
        for row in range(rows):
            x, bottom = left + 0.015, 0.1 + (row + 1) * height - 0.008
            while x < right - 0.05:
                tone, width = draw_muted(rng, rng.random() < 0.3), rng.uniform(0.02, 0.04)
                for _ in range(rng.randint(2, 5)):
                    if x < right - 0.05:
                        tall = height * 0.62
                        canvas.box(x, bottom - tall, x + width, bottom, tone)
                        canvas.box(x, bottom - 0.6 * tall, x + width, bottom - 0.35 * tall, PALE)
                        x += width + 0.004
        canvas.box(left, 0.06, right, 0.11, mix(draw_muted(rng, True), (90, 110, 150), 0.4))


def _theater(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    cloth = mix((140, 52, 58), draw_muted(rng, True), rng.uniform(0.1, 0.5))
    canvas.box(0, 0, 1, horizon, (46, 44, 54))
    canvas.box(0, horizon - 0.1, 1, horizon + 0.03, mix(WOOD, (90, 70, 50), 0.3))
    for side in (-1, 1):
        for fold in range(6):
            near = 0.5 + side * (0.5 - 0.045 * fold)
            canvas.polygon(
                [
                    (near, 0),
                    (near - side * 0.045, 0),
                    (near - side * 0.045 * (1 - 0.06 * fold), horizon - 0.08),
                    (near, horizon - 0.08),
                ],
                mix(cloth, (0, 0, 0), 0.12 * (fold % 2)),
            )
    for fold in range(10):
        canvas.disc((fold + 0.5) / 10, 0.02, 0.055, mix(cloth, (0, 0, 0), 0.1 * (fold % 2)), 1.4)
    canvas.box(0, horizon + 0.03, 1, 1, (58, 52, 58))
    for row in range(3):
        for seat in range(7 - row):
            x, y = (seat + 0.5) / (7 - row), horizon + 0.1 + 0.09 * row
            canvas.disc(x, y, 0.055 + 0.008 * row, mix(cloth, (0, 0, 0), 0.25), 0.8)
            canvas.box(x - 0.055 - 0.008 * row, y, x + 0.055 + 0.008 * row, y + 0.07, mix(cloth, (0, 0, 0), 0.25))


def _greenhouse(canvas: Canvas, rng: random.Random, horizon: float, wall: Rgb):
    canvas.box(0, 0, 1, horizon, (206, 226, 226))
    for step in range(9):
        canvas.box(step / 8 - 0.004, 0, step / 8 + 0.004, horizon, PALE)
        canvas.line([(step / 8, 0.2), (0.5, -0.1)], 0.006, PALE)
    canvas.box(0, 0.2, 1, 0.21, PALE)
    for left, right in ((0.0, 0.42), (0.58, 1.0)):
        canvas.box(left, horizon - 0.02, right, horizon + 0.02, WOOD)
        for leg in (left + 0.02, right - 0.04):
            canvas.box(leg, horizon + 0.02, leg + 0.02, horizon + 0.16, WOOD)
        for step in range(5):
            x, green = left + 0.05 + 0.08 * step, mix((92, 140, 90), draw_muted(rng), 0.25)
            for _ in range(rng.randint(4, 8)):
                canvas.line(
                    [(x, horizon - 0.06), (x + rng.uniform(-0.05, 0.05), horizon - rng.uniform(0.12, 0.22))],
                    0.012,
                    green,
                )
            canvas.polygon(
                [
                    (x - 0.03, horizon - 0.08),
                    (x + 0.03, horizon - 0.08),
                    (x + 0.02, horizon - 0.02),
                    (x - 0.02, horizon - 0.02),
                ],
                (186, 122, 92),
            )


INDOORS: dict[str, Callable[[Canvas, random.Random, float, Rgb], None]] = {
    **HOMES,
    "a classroom": _classroom,
    "a library": _library,
    "an office": _office,
    "a museum": _museum,
    "a gym": _gym,
    "a supermarket": _supermarket,
    "a theater": _theater,
    "a greenhouse": _greenhouse,
}
