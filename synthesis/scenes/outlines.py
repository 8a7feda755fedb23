"""The forms of all things as polygons, read from outlines.txt."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw


Point = tuple[float, float]
Part = tuple[str, tuple[Point, ...]]  # color role and polygon

MASK_SIDE = 120  # pixels of the raster that areas are counted in
MIN_PATTERN_FILL = 0.27  # share of the circle around a thing that its main color fills, so that a pattern shows
SHADES = ("main", "dark", "light")


@dataclass(frozen=True)
class Outline:
    """
    The form of a thing, in a circle of radius 1 around (0, 0), y downward.

    Args:
        noun (`str`), plural (`str`)
        family (`str`): of names that could be confused with each other.
        max_angle (`int`): degrees of rotation, either way, that leave the name right.
        faces (`bool`): whether the thing has a side to look to; as written, to the right.
        parts (`tuple[Part, ...]`): color roles and polygons, in the order in which they are painted.
        fill (`float`): area as a share of the circle.
        main_share (`float`): share of the area that has the main color or a shade of it.
        takes_pattern (`bool`): whether the main parts are large enough to show a pattern, and have none of their own.
    """

    noun: str
    plural: str
    family: str
    max_angle: int
    faces: bool
    parts: tuple[Part, ...]
    fill: float
    main_share: float
    takes_pattern: bool


@cache
def load_outlines() -> dict[str, Outline]:
    """Read all outlines, by noun."""
    outlines = {}
    for line in (Path(__file__).parent / "outlines.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            outline = _read_outline(*(field.strip() for field in line.split("|")))
            outlines[outline.noun] = outline
    return outlines


def _read_outline(names: str, family: str, turns: str, forms: str) -> Outline:
    *words, last = names.split()
    # "cross crosses" gives the plural; "pine tree" does not.
    has_plural = bool(words) and last[:2] == words[-1][:2]
    noun = " ".join(words) if has_plural else names
    plural = " ".join([*words[:-1], last]) if has_plural else f"{names}s"
    parts = [part for form in forms.split(";") for part in _read_form(form.split())]
    points = [point for _, polygon in parts for point in polygon]
    middle = [(min(values) + max(values)) / 2 for values in zip(*points, strict=True)]
    radius = max(math.dist(point, middle) for point in points)
    parts = tuple(
        (role, tuple(((x - middle[0]) / radius, (y - middle[1]) / radius) for x, y in polygon))
        for role, polygon in parts
    )
    angle, *marks = turns.split()
    fill, main_share, main_fill = _measure(parts)
    takes_pattern = "detailed" not in marks and main_fill >= MIN_PATTERN_FILL
    return Outline(noun, plural, family, int(angle), "faces" in marks, parts, fill, main_share, takes_pattern)


def _read_form(words: list[str]) -> list[Part]:
    """Return the polygons of one form."""
    name, role, *numbers = words
    if name == "l":
        width, *pairs = numbers
        return [(role, polygon) for polygon in _trace(float(width), [_pair(pair) for pair in pairs])]
    points = [_pair(number) for number in numbers if "," in number]
    rest = [float(number) for number in numbers if "," not in number]
    if name == "p":
        return [(role, tuple(points))]
    if name == "b":
        (left, top), (right, bottom) = points
        return [(role, ((left, top), (right, top), (right, bottom), (left, bottom)))]
    center, radii = points
    if name == "e":
        return [(role, _sector(center, radii, *(rest or (0, 360))))]
    inner = tuple(radius * rest[0] / 100 for radius in radii)
    return [(role, _sector(center, radii, 0, 360) + _sector(center, inner, 0, 360)[::-1])]


def _pair(text: str) -> Point:
    x, y = text.split(",")
    return float(x), float(y)


def _sector(center: Point, radii: Point, start: float, end: float) -> tuple[Point, ...]:
    steps = 48
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return tuple((center[0] + radii[0] * math.cos(t), center[1] + radii[1] * math.sin(t)) for t in angles)


def _trace(width: float, points: list[Point]) -> list[tuple[Point, ...]]:
    """Return the polygons of a line: a box for each stretch, a disc for each joint."""
    polygons = [_sector(point, (width / 2, width / 2), 0, 360) for point in points]
    for (x, y), (to_x, to_y) in zip(points, points[1:], strict=False):
        length = math.hypot(to_x - x, to_y - y) or 1.0
        across, down = -(to_y - y) / length * width / 2, (to_x - x) / length * width / 2
        polygons.append(((x + across, y + down), (to_x + across, to_y + down), (to_x - across, to_y - down),
                         (x - across, y - down)))  # fmt: skip
    return polygons


def _measure(parts: tuple[Part, ...]) -> tuple[float, float, float]:
    """Return area, share of the main color with its shades, and area of the main color alone."""
    roles = ["", *sorted({role for role, _ in parts})]
    image = Image.new("L", (MASK_SIDE, MASK_SIDE))
    draw, half = ImageDraw.Draw(image), MASK_SIDE / 2
    for role, polygon in parts:
        draw.polygon([(half + x * half, half + y * half) for x, y in polygon], roles.index(role))
    counts = dict(zip(roles, image.histogram(), strict=False))
    area = sum(counts[role] for role in roles[1:])
    circle = math.pi * half**2
    return area / circle, sum(counts.get(role, 0) for role in SHADES) / area, counts.get("main", 0) / circle


def place_parts(outline: Outline, x: float, y: float, radius: float, angle: float, flip: bool) -> list[Part]:
    """
    Return the polygons of a thing in an image.

    Args:
        outline (`Outline`)
        x (`float`), y (`float`), radius (`float`): the circle around the thing, as shares of the side.
        angle (`float`): degrees, clockwise.
        flip (`bool`): whether left and right are swapped, before the rotation.
    """
    cosine, sine = math.cos(math.radians(angle)) * radius, math.sin(math.radians(angle)) * radius
    sign = -1 if flip else 1
    return [
        (role, tuple((x + sign * u * cosine - v * sine, y + sign * u * sine + v * cosine) for u, v in polygon))
        for role, polygon in outline.parts
    ]
