"""
A sheet to draw pages on, in shares of its side.

Lines of text are measured by the height of their capitals. No text is smaller than `MIN_CAPITALS`: the vision tower
sees the whole image at 384 pixels, and below that height its letters have too few pixels there.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from fusion_vlm.synthesis.scenes.fonts import FontFace, available_fonts, load, size_for_capitals


SUPERSAMPLING = 2
MIN_CAPITALS = 0.021  # of the side: 8 pixels of the tower's 384
LINE_SPACING = 1.9  # from a line of text to the next one, in heights of capitals

Color = Sequence[int]
Point = tuple[float, float]


class Sheet:
    """
    A square RGB image under way.

    Args:
        size (`int`): side of the finished image in pixels.
        color (`Color`): background, as red, green and blue from 0 to 255.
    """

    def __init__(self, size: int, color: Color):
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side), tuple(color))
        self.draw = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        """Return the image at its size, with smooth edges."""
        return self.image.reduce(SUPERSAMPLING)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, radius: float = 0.0):
        corners = [left * self.side, top * self.side, right * self.side - 1, bottom * self.side - 1]
        # Rounded to whole pixels of the finished image, so that flat areas have sharp and equal edges.
        corners = [round(corner / SUPERSAMPLING) * SUPERSAMPLING for corner in corners]
        corners[2:] = [max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1)]
        if radius:
            self.draw.rounded_rectangle(corners, radius * self.side, tuple(color))
        else:
            self.draw.rectangle(corners, tuple(color))

    def frame(self, left: float, top: float, right: float, bottom: float, color: Color, width: float = 0.003):
        for start, end in (
            ((left, top), (right, top)),
            ((right, top), (right, bottom)),
            ((right, bottom), (left, bottom)),
            ((left, bottom), (left, top)),
        ):
            self.line([start, end], color, width)

    def line(self, points: Sequence[Point], color: Color, width: float = 0.003, dash: float = 0.0):
        """Draw a line through points; dashed, if `dash` is the length of a dash."""
        pixels = max(SUPERSAMPLING, round(width * self.side))
        if not dash:
            flat = [(x * self.side, y * self.side) for x, y in points]
            self.draw.line(flat, tuple(color), pixels, joint="curve")
            return
        (x1, y1), (x2, y2) = points
        steps = max(1, math.ceil(math.dist((x1, y1), (x2, y2)) / dash))
        for step in range(0, steps, 2):
            ends = [
                (x1 + (x2 - x1) * share, y1 + (y2 - y1) * share)
                for share in (step / steps, min(1.0, (step + 1) / steps))
            ]
            self.draw.line([(x * self.side, y * self.side) for x, y in ends], tuple(color), pixels)

    def disc(self, x: float, y: float, radius: float, color: Color):
        box = [(x - radius) * self.side, (y - radius) * self.side, (x + radius) * self.side, (y + radius) * self.side]
        self.draw.ellipse(box, tuple(color))

    def polygon(self, points: Sequence[Point], color: Color):
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], tuple(color))

    def slice(self, x: float, y: float, radius: float, start: float, end: float, color: Color):
        """Fill a sector of a disc, from `start` to `end` in degrees clockwise from the top."""
        box = [(x - radius) * self.side, (y - radius) * self.side, (x + radius) * self.side, (y + radius) * self.side]
        self.draw.pieslice(box, start - 90, end - 90, tuple(color))

    def font(self, face: FontFace, capitals: float) -> ImageFont.FreeTypeFont:
        return load(face, size_for_capitals(face, max(4, round(capitals * self.side))))

    def width(self, text: str, face: FontFace, capitals: float) -> float:
        """Return the width of a line of text."""
        return self.font(face, capitals).getlength(text) / self.side

    def text(
        self,
        x: float,
        y: float,
        text: str,
        face: FontFace,
        capitals: float,
        color: Color,
        anchor: str = "l",
        max_width: float | None = None,
        halo: Color | None = None,
    ):
        """
        Write a line of text.

        Args:
            x (`float`), y (`float`): the left end, the middle or the right end of the line, halfway up the capitals.
            text (`str`)
            face (`FontFace`), capitals (`float`): font, and height of its capitals.
            color (`Color`)
            anchor (`str`): `l`, `m` or `r`: what `x` is.
            max_width (`float`, *optional*): a longer text is written smaller.
            halo (`Color`, *optional*): color around the letters, which keeps them apart from lines behind them.
        """
        if max_width is not None:
            capitals = self.fit([text], face, capitals, max_width)
        font = self.font(face, capitals)
        place = (x * self.side, y * self.side + self._half_capitals(face, capitals))
        stroke = {"stroke_width": 3 * SUPERSAMPLING, "stroke_fill": tuple(halo)} if halo else {}
        self.draw.text(place, text, tuple(color), font, anchor=f"{anchor}s", **stroke)

    def _half_capitals(self, face: FontFace, capitals: float) -> float:
        return max(4, round(capitals * self.side)) / 2

    def turned_text(self, x: float, y: float, text: str, face: FontFace, capitals: float, color: Color, anchor: str):
        """Write a line of text from bottom to top; `anchor` as for `text`: `r` is the upper end at `y`."""
        font = self.font(face, capitals)
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        mask = Image.new("L", (right - left + 4, bottom - top + 4))
        ImageDraw.Draw(mask).text((2 - left, 2 - top), text, 255, font, anchor="ls")
        mask = mask.transpose(Image.Transpose.ROTATE_90)
        up = {"l": 0.0, "m": 0.5, "r": 1.0}[anchor]
        # The baseline is at the right of the turned mask, `bottom + 2` from its edge.
        column = round(x * self.side + self._half_capitals(face, capitals)) - (mask.width - bottom - 2)
        row = round(y * self.side - mask.height * (1 - up))
        self.image.paste(Image.new("RGB", mask.size, tuple(color)), (column, row), mask)

    def fit(self, texts: Sequence[str], face: FontFace, capitals: float, max_width: float) -> float:
        """Return the height of capitals at which all texts are at most `max_width` wide, and at least the smallest."""
        widest = max((self.width(text, face, capitals) for text in texts), default=0.0)
        if widest <= max_width:
            return capitals
        return max(MIN_CAPITALS, capitals * max_width / widest * 0.98)

    def wrap(self, text: str, face: FontFace, capitals: float, max_width: float) -> list[str]:
        """Break a text into lines of at most `max_width`; a longer word has a line of its own."""
        lines, line = [], ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self.width(longer, face, capitals) > max_width:
                lines.append(line)
                line = word
            else:
                line = longer
        return [*lines, line] if line else lines


def find_face(name: str) -> FontFace:
    """
    Return the face with this name.

    Raises:
        KeyError: for an unknown name.
    """
    return {face.name: face for face in available_fonts()}[name]


def bolder(face: FontFace) -> FontFace:
    """Return the upright bold face of the same family, or the face itself if there is none."""
    return next((other for other in available_fonts() if (other.family, other.style) == (face.family, "Bold")), face)
