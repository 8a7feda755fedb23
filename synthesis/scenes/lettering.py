"""Text on signs: which face fits, and the letters as a mask."""

import random
from functools import cache

from PIL import Image, ImageDraw

from fusion_vlm.synthesis.scenes import fonts
from fusion_vlm.synthesis.scenes.scene import Sign


TEXT_WIDTH, TEXT_HEIGHT = 0.86, 0.8  # share of a board that the text may fill
ROUND_WIDTH, ROUND_HEIGHT = 0.72, 0.66  # of an oval
LEADING = 1.22  # distance of lines, as a share of the size
PROBE = 80  # size in pixels at which a text is measured


@cache
def _faces() -> dict[str, fonts.FontFace]:
    return {face.name: face for face in fonts.available_fonts()}


def draw_face(rng: random.Random, lines: list[str]) -> str:
    """Draw the name of a face that has all letters of a text in the case in which they are written."""
    has_lower = any(char.islower() for line in lines for char in line)
    faces = [name for name, face in _faces().items() if face.has_lower_case or not has_lower]
    return rng.choice(faces)


def measure_text(lines: list[str], face: str) -> tuple[float, float]:
    """Return width and height of a text, as multiples of the size of the letters."""
    font = fonts.load(_faces()[face], PROBE)
    width = max(font.getbbox(line)[2] - font.getbbox(line)[0] for line in lines)
    return width / PROBE, LEADING * (len(lines) - 1) + 1.0


def write_letters(sign: Sign, side: int) -> Image.Image:
    """
    Write the text of a sign as large as it fits.

    Args:
        sign (`Sign`)
        side (`int`): side of the image in pixels.

    Returns:
        `PIL.Image.Image`: mode `L`, of the size of the board; 255 for ink.
    """
    width, height = sign.width * side, sign.height * side
    wide, tall = measure_text(sign.lines, sign.font)
    shares = (ROUND_WIDTH, ROUND_HEIGHT) if sign.form == "oval" else (TEXT_WIDTH, TEXT_HEIGHT)
    size = int(min(shares[0] * width / wide, shares[1] * height / tall))
    mask = Image.new("L", (round(width), round(height)))
    draw, font = ImageDraw.Draw(mask), fonts.load(_faces()[sign.font], size)
    for number, line in enumerate(sign.lines):
        middle = height / 2 + (number - (len(sign.lines) - 1) / 2) * LEADING * size
        left, top, right, bottom = font.getbbox(line)
        # Centered by its ink: faces differ in how far their letters are from the baseline.
        place = (
            width / 2 - (left + right) / 2,
            middle - (top + bottom) / 2 if len(sign.lines) == 1 else middle - size * 0.6,
        )
        draw.text(place, line, fill=255, font=font)
    return mask
