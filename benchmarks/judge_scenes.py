"""
Check what captions say about the objects of a scene: a color at a place, or a color anywhere.

The judge names colors by itself, from CIELAB distances to typical colors. It does not know shapes. Each claim is also
checked with another color in its place, which shows how often the judge confirms what is not true.
"""

import random
import re

import numpy as np
from skimage.color import rgb2lab
from skimage.measure import label, regionprops


TYPICAL = {
    "red": (215, 25, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 40),
    "green": (40, 145, 60),
    "teal": (20, 160, 160),
    "blue": (40, 75, 215),
    "purple": (130, 45, 160),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
    "black": (20, 20, 25),
    "gray": (135, 137, 140),
    "white": (250, 250, 250),
}
NAMES = list(TYPICAL)
MAX_DISTANCE = 16.0  # CIELAB, to the typical color
MIN_AREA = 0.0006  # of the image
OBJECT = re.compile(rf"\b({'|'.join(NAMES)}) [a-z -]+? is ((?:in|on|at|near) the [a-z ]+?)[.,]")
COLORED = re.compile(rf"\b({'|'.join(NAMES)}) [a-z]+")


def name_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return the index of the color name of each pixel, and -1 where none is near: (height, width)."""
    lab = rgb2lab(pixels)
    typical = rgb2lab(np.array([list(TYPICAL.values())], dtype=np.uint8))[0]
    distances = np.linalg.norm(lab[:, :, None] - typical, axis=-1)
    return np.where(distances.min(-1) < MAX_DISTANCE, distances.argmin(-1), -1)


def in_place(place: str, x: float, y: float) -> bool:
    """Check whether a point, in shares of the side, is where the words say; places overlap at their borders."""
    rules = {
        "left": x < 0.5,
        "right": x > 0.5,
        "upper": y < 0.5,
        "top": y < 0.42,
        "lower": y > 0.5,
        "bottom": y > 0.58,
    }
    if "center" in place:
        return 0.2 < x < 0.8 and 0.2 < y < 0.8
    return all(holds for word, holds in rules.items() if word in place.split())


def has_color(named: np.ndarray, color: str, place: str) -> bool:
    """Check whether an area of a color has its center at a place."""
    side = len(named)
    mask = named == NAMES.index(color)
    regions = [region for region in regionprops(label(mask)) if region.area >= MIN_AREA * side**2]
    return any(in_place(place, region.centroid[1] / side, region.centroid[0] / side) for region in regions)


def check_claims(pixels: np.ndarray, texts: list[str]):
    """Yield type, claim, what the judge finds and what the text says, for true claims and for changed ones."""
    rng, named = random.Random(0), name_pixels(pixels[::2, ::2])
    for text in texts:
        claims = [(match[1], match[2]) for match in OBJECT.finditer(text)]
        claims = claims or [(match[1], "") for match in COLORED.finditer(text)]
        colors = {color for color, _ in claims}
        for color, place in claims:
            other = rng.choice([name for name in NAMES if name not in colors])
            sort = "color at a place" if place else "color"
            yield sort, f"{color} {place}", has_color(named, color, place), "yes"
            yield f"{sort}, changed", f"{other} {place}", has_color(named, other, place), "no"
