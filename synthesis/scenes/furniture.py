"""Furniture that several rooms share."""

import random

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import mix
from fusion_vlm.synthesis.scenes.surfaces import draw_muted


WOOD, METAL, PALE = (168, 134, 98), (176, 180, 186), (238, 238, 234)


def paint_window(canvas: Canvas, rng: random.Random, x: float, y: float, width: float, height: float):
    """Paint a window by day, in the evening or at night; width and height are halves."""
    glass = rng.choice(((196, 222, 240), (250, 226, 190), (60, 70, 110)))
    canvas.box(x - width - 0.012, y - height - 0.012, x + width + 0.012, y + height + 0.012, PALE)
    canvas.box(x - width, y - height, x + width, y + height, glass)
    canvas.box(x - 0.005, y - height, x + 0.005, y + height, PALE)
    canvas.box(x - width, y - 0.005, x + width, y + 0.005, PALE)


def paint_shelves(
    canvas: Canvas, rng: random.Random, left: float, right: float, top: float, bottom: float, rows: int
) -> float:
    """Paint an empty shelf and return the height of a row."""
    wood = mix(WOOD, draw_muted(rng), 0.35)
    canvas.box(left, top, right, bottom, mix(wood, (60, 44, 30), 0.45))
    height = (bottom - top) / rows
    for row in range(rows + 1):
        canvas.box(left, top + row * height - 0.008, right, top + row * height, wood)
    canvas.box(left, top, left + 0.012, bottom, wood)
    canvas.box(right - 0.012, top, right, bottom, wood)
    return height


def paint_picture(canvas: Canvas, rng: random.Random, x: float, y: float, width: float, height: float):
    """Paint a framed picture; width and height are halves."""
    canvas.box(x - width, y - height, x + width, y + height, mix(WOOD, draw_muted(rng, True), 0.4))
    canvas.box(x - width + 0.012, y - height + 0.012, x + width - 0.012, y + height - 0.012, draw_muted(rng))
    for _ in range(4):
        across, down = rng.uniform(-0.5, 0.5) * width, rng.uniform(-0.5, 0.5) * height
        canvas.disc(x + across, y + down, 0.3 * min(width, height), draw_muted(rng, rng.random() < 0.5))
