"""Ground, ridges and plants that several places share."""

import math
import random

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.colors import Rgb


def vary_color(rng: random.Random, rgb: Rgb, by: int = 14) -> Rgb:
    """Change a color a little."""
    return tuple(min(255, max(0, value + rng.randint(-by, by))) for value in rgb)


def paint_hills(canvas: Canvas, rng: random.Random, level: float, rise: float, fill: Rgb):
    """Paint a wavy ground from a height down."""
    speed, shift = rng.uniform(2.5, 8), rng.uniform(0, 6)
    canvas.below(lambda x: level + rise * math.sin(speed * x + shift), fill)


def paint_ridge(
    canvas: Canvas, rng: random.Random, base: float, height: float, fill: Rgb
) -> list[tuple[float, float]]:
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


def paint_tufts(canvas: Canvas, rng: random.Random, top: float, fill: Rgb, number: int):
    """Paint tufts of grass below a height."""
    for _ in range(number):
        x, y = rng.random(), rng.uniform(top, 1)
        tall = 0.02 + 0.03 * (y - top)
        for lean in (-0.01, 0, 0.01):
            canvas.polygon([(x - 0.003, y), (x + 0.003, y), (x + lean, y - tall)], fill)


def paint_fir(canvas: Canvas, x: float, y: float, size: float, fill: Rgb):
    """Paint a fir that stands at a point."""
    canvas.box(x - 0.06 * size, y - 0.2 * size, x + 0.06 * size, y, (96, 80, 66))
    for level in range(3):
        width, top = (0.3 - 0.07 * level) * size, y - (0.85 + 0.3 * level) * size
        canvas.polygon([(x, top), (x + width, top + 0.7 * size), (x - width, top + 0.7 * size)], fill)
