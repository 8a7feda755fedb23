"""Nameable colors: a name, a range of RGB values that all bear this name, and distances as eyes see them."""

import math
import random
from functools import cache


Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 24, 30),
    "orange": (250, 134, 16),
    "yellow": (250, 222, 30),
    "green": (34, 146, 52),
    "teal": (20, 166, 166),
    "blue": (36, 72, 214),
    "purple": (128, 44, 160),
    "pink": (248, 128, 186),
    "brown": (124, 76, 34),
    "black": (22, 22, 26),
    "gray": (136, 138, 142),
    "white": (250, 250, 250),
}
NEUTRAL = ("black", "gray", "white")
LIGHT_INK, DARK_INK = (252, 252, 252), (30, 30, 36)
MAX_DRIFT = 9.0  # CIELAB distance of a jittered color to that of its name
MIN_MARGIN = 2.0  # how many times farther any other name has to be


def to_lab(rgb: Rgb) -> tuple[float, float, float]:
    """Convert sRGB to CIELAB (D65)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    red, green, blue = linear
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def color_distance(one: Rgb, other: Rgb) -> float:
    """Return the CIELAB distance of two colors; about 2 is just visible, 20 is plain to see."""
    return math.dist(to_lab(one), to_lab(other))


@cache
def name_color(rgb: Rgb) -> str | None:
    """Return the name of a color; None where another name is almost as near."""
    (near, name), (far, _) = sorted((color_distance(rgb, base), name) for name, base in COLORS.items())[:2]
    return name if near <= MAX_DRIFT and far >= MIN_MARGIN * near else None


def jitter_color(rng: random.Random, name: str) -> Rgb:
    """Draw a color that bears a name."""
    for _ in range(20):
        rgb = tuple(min(255, max(0, value + rng.randint(-16, 16))) for value in COLORS[name])
        if name_color(rgb) == name:
            return rgb
    return COLORS[name]


def luminance(rgb: Rgb) -> float:
    """Return the relative brightness of a color, from 0 to 1."""
    return (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255


def mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    """Mix two colors; `share` is that of the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def contrast_ratio(one: Rgb, other: Rgb) -> float:
    """Return the contrast of two colors as WCAG defines it, from 1 to 21; 4.5 is easy to read."""
    lightness = [((to_lab(rgb)[0] + 16) / 116) ** 3 for rgb in (one, other)]
    return (max(lightness) + 0.05) / (min(lightness) + 0.05)


def contrast_ink(rgb: Rgb) -> Rgb:
    """Return dark ink for a light color and light ink for a dark color."""
    return DARK_INK if luminance(rgb) > 0.6 else LIGHT_INK
