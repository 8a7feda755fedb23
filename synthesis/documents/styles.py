"""Draws how pages look: fonts and colors. Nothing here changes an answer."""

import colorsys
import random

from fusion_vlm.synthesis.documents.sheet import Color
from fusion_vlm.synthesis.scenes.fonts import available_fonts


# Faces whose letters and digits are hard to read at the size of a label, and those with a second form of digits.
_ONLY_LARGE = {"Amatic SC", "Intuitive"}
_PAPERS = ((255, 255, 255), (255, 255, 255), (250, 248, 243), (245, 247, 250), (252, 249, 240), (244, 244, 244))
_INKS = ((20, 20, 24), (35, 35, 40), (30, 36, 52), (52, 40, 34), (28, 44, 40))
_NIGHTS = ((28, 30, 38), (24, 34, 46), (38, 32, 44), (20, 28, 26))
_CHALKS = ((238, 238, 240), (226, 232, 240), (240, 236, 224))


def draw_face(rng: random.Random, designs: tuple[str, ...] = ("sans", "serif", "mono", "display")) -> str:
    """Draw the name of a face for small text: the families have equal shares, and most text is regular."""
    faces = [face for face in available_fonts() if face.design in designs and face.family not in _ONLY_LARGE]
    family = rng.choice(sorted({face.family for face in faces}))
    faces = [face for face in faces if face.family == family]
    plain = [face for face in faces if face.style in ("Regular", "Medium")]
    return rng.choice(plain if plain and rng.random() < 0.7 else faces).name


def draw_heading_face(rng: random.Random) -> str:
    """Draw the name of a face for a heading: any at all."""
    family = rng.choice(sorted({face.family for face in available_fonts()}))
    return rng.choice([face for face in available_fonts() if face.family == family]).name


def draw_paper(rng: random.Random, dark_share: float = 0.15) -> tuple[Color, Color]:
    """Draw a color of the background and one of the text, far apart."""
    if rng.random() < dark_share:
        return rng.choice(_NIGHTS), rng.choice(_CHALKS)
    return rng.choice(_PAPERS), rng.choice(_INKS)


def draw_palette(rng: random.Random, number: int, paper: Color) -> list[Color]:
    """
    Draw colors that differ from each other and from the paper.

    The hues are spread over the circle from a random start, and neighbors differ in brightness, too.
    """
    start, saturation = rng.random(), rng.uniform(0.5, 0.95)
    step = 1 / max(number, 3)
    is_dark = sum(paper) < 384
    colors = []
    for index in range(number):
        hue = (start + index * step + rng.uniform(-0.15, 0.15) * step) % 1
        value = (0.92, 0.62)[index % 2] if not is_dark else (0.98, 0.74)[index % 2]
        # Yellow and cyan are bright: on a bright paper they need less value to be seen.
        if not is_dark and (0.12 < hue < 0.22 or 0.42 < hue < 0.55):
            value -= 0.18
        colors.append(tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)))
    rng.shuffle(colors)
    return colors


def mix(first: Color, second: Color, share: float) -> Color:
    """Mix two colors; `share` is that of the second one."""
    return tuple(round(one + (other - one) * share) for one, other in zip(first, second, strict=True))


def tint(rng: random.Random) -> Color:
    """Draw a pale color, for stripes and the ground under a page."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.04, 0.18), 0.95))


def shade(rng: random.Random) -> Color:
    """Draw a strong color that white text can be read on."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.45, 0.85), 0.45))
