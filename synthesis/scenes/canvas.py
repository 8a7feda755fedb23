"""Paints polygons, objects and signs on an image, in shares of its side."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from fusion_vlm.synthesis.scenes.colors import DARK_INK, LIGHT_INK, Rgb, luminance, mix
from fusion_vlm.synthesis.scenes.outlines import Part, Point, place_parts
from fusion_vlm.synthesis.scenes.patterns import draw_pattern
from fusion_vlm.synthesis.scenes.scene import SceneObject, Sign


BORDER = 0.005  # around objects and signs, so that they stand out from any background
MAX_CORNERS = 24
PERIOD = 0.95  # of a pattern, as a share of twice an object's scale
# Colors of parts that are not the main color.
PART_COLORS = {
    "white": (248, 248, 246),
    "gray": (140, 142, 148),
    "black": (34, 34, 40),
    "wood": (146, 108, 70),
    "glass": (190, 220, 236),
    "skin": (232, 202, 162),
    "leaf": (70, 140, 66),
}


class Canvas:
    """
    An image to paint on, in shares of its side from its upper left corner.

    Args:
        image (`PIL.Image.Image`): square; mode `RGB` for pictures, `L` for masks.
    """

    def __init__(self, image: Image.Image):
        self.image = image
        self.side = image.width
        self.draw = ImageDraw.Draw(image)

    def polygon(self, points: Sequence[Point], fill: Rgb | int):
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Rgb | int):
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def disc(self, x: float, y: float, radius: float, fill: Rgb | int, flat: float = 1.0):
        """Fill a disc, or with `flat` below 1 an ellipse that is less high."""
        s = self.side
        self.draw.ellipse(((x - radius) * s, (y - radius * flat) * s, (x + radius) * s, (y + radius * flat) * s), fill)

    def line(self, points: Sequence[Point], width: float, fill: Rgb | int):
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(scaled, fill, max(1, round(width * self.side)), joint="curve")

    def below(self, line: Callable[[float], float], fill: Rgb | int):
        """Fill the area below a line, which is a function from the place across to the height."""
        self.polygon([(step / 60, line(step / 60)) for step in range(61)] + [(1, 1), (0, 1)], fill)

    def silhouette(self, thing: SceneObject | Sign, fill: int):
        """Fill all that an object or a sign covers, without its border."""
        for _, points in list_parts(thing):
            self.polygon(points, fill)

    def paint_object(self, thing: SceneObject):
        parts = list_parts(thing)
        rgb = tuple(thing.rgb)
        edge = DARK_INK if luminance(rgb) > 0.7 else LIGHT_INK
        self._border([points for _, points in parts], edge, BORDER)
        if thing.finish == "outlined":
            dark = mix(rgb, (0, 0, 0), 0.55) if luminance(rgb) > 0.2 else (90, 90, 96)
            self._border([points for _, points in parts], dark, BORDER / 2)
        texture, corner = self._texture(thing)
        for role, points in parts:
            if role == "main" and texture is not None:
                mask = Image.new("L", texture.size)
                shifted = [(x * self.side - corner[0], y * self.side - corner[1]) for x, y in points]
                ImageDraw.Draw(mask).polygon(shifted, 255)
                self.image.paste(texture, corner, mask)
            else:
                self.polygon(points, part_color(role, rgb))

    def _border(self, polygons: list[Sequence[Point]], fill: Rgb, width: float):
        pixels = max(1, round(2 * width * self.side))
        for points in polygons:
            scaled = [(x * self.side, y * self.side) for x, y in points]
            # Round joints are slow, and curves of many points have no corner that needs one.
            joint = "curve" if len(points) < MAX_CORNERS else None
            self.draw.line([*scaled, *scaled[:2]], fill, pixels, joint)

    def _texture(self, thing: SceneObject) -> tuple[Image.Image | None, tuple[int, int]]:
        """Return the image that fills the main parts of an object, if they are not flat, and its upper left corner."""
        if thing.pattern == "plain" and thing.finish != "shaded":
            return None, (0, 0)
        rgb, radius = tuple(thing.rgb), thing.radius
        side = 2 * round(radius * self.side) + 4
        corner = (round(thing.x * self.side) - side // 2, round(thing.y * self.side) - side // 2)
        texture = Image.new("RGB", (side, side), rgb)
        if thing.finish == "shaded":
            dark = Image.new("RGB", (side, side), mix(rgb, (0, 0, 0), 0.22))
            texture.paste(dark, mask=_ramp(side))
        if thing.pattern != "plain":
            second = PART_COLORS["black"] if luminance(rgb) > 0.62 else PART_COLORS["white"]
            period = PERIOD * 2 * thing.scale * self.side / (2 if thing.size == "large" else 1.6)
            # Stripes lie across or aslant, whatever the rotation of the object.
            texture.paste(second, mask=draw_pattern(thing.pattern, side, period, thing.angle + 30))
        return texture, corner

    def paint_sign(self, sign: Sign, write: Callable[[Sign, int], Image.Image]):
        """Paint a sign; `write` returns its letters as a mask of the board's size, from the side of the image."""
        if sign.form != "label":
            rgb, parts = tuple(sign.rgb), list_parts(sign)
            self._border([points for _, points in parts], DARK_INK if luminance(rgb) > 0.5 else LIGHT_INK, BORDER)
            for _, points in parts:
                self.polygon(points, rgb)
        letters = write(sign, self.side)
        if sign.angle:
            letters = letters.rotate(-sign.angle, Image.Resampling.BICUBIC, expand=True)
        corner = (round(sign.x * self.side - letters.width / 2), round(sign.y * self.side - letters.height / 2))
        self.image.paste(tuple(sign.ink), corner, letters)


def list_parts(thing: SceneObject | Sign) -> list[Part]:
    """Return the color roles and polygons of an object or a sign, in shares of the side."""
    if isinstance(thing, Sign):
        return _list_sign_parts(thing)
    return place_parts(thing.outline, thing.x, thing.y, thing.radius, thing.angle, thing.facing == "left")


def _list_sign_parts(sign: Sign) -> list[Part]:
    width, height = sign.width / 2, sign.height / 2
    corner = {"oval": min(width, height), "rounded": 0.35 * min(width, height)}.get(sign.form, 0.0)
    points = []
    for across, down, start in ((1, 1, 0), (-1, 1, 90), (-1, -1, 180), (1, -1, 270)):
        for step in range(9 if corner else 1):
            t = math.radians(start + step * 90 / 8)
            points.append(
                (across * (width - corner) + corner * math.cos(t), down * (height - corner) + corner * math.sin(t))
            )
    turn = math.radians(sign.angle)
    turned = tuple(
        (sign.x + u * math.cos(turn) - v * math.sin(turn), sign.y + u * math.sin(turn) + v * math.cos(turn))
        for u, v in points
    )
    return [("main", turned)]


def part_color(role: str, rgb: Rgb) -> Rgb:
    """Return the color of a part of a thing with the main color `rgb`."""
    if role in PART_COLORS:
        return PART_COLORS[role]
    return {"main": rgb, "dark": mix(rgb, (0, 0, 0), 0.2), "light": mix(rgb, (255, 255, 255), 0.25)}[role]


@lru_cache(32)
def _ramp(side: int) -> Image.Image:
    """Return a mask that grows from the middle to the bottom."""
    ramp = Image.linear_gradient("L").resize((side, side))
    return ImageChops.subtract(ramp, Image.new("L", (side, side), 96))
