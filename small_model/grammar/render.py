"""
Draws scenes exactly: the pixels show what the scene says.

Colors are flat. A scene is drawn at twice the size and reduced, so that only edges are blended. `visible_objects`
paints the same outlines again and counts how much of each object the others leave visible.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fusion_vlm.small_model.grammar.scene import COLOURS, PLAIN_BACKGROUNDS, SIZES, Scene, SceneObject, Sign
from fusion_vlm.synthesis.sample import Sample


FONT = Path(__file__).parents[2] / "synthesis" / "scenes" / "fonts" / "DejaVuSans-Bold.ttf"
SUPERSAMPLING = 2
MIN_SIDE = 128  # pixels; below, words cannot be read
MIN_VISIBLE_SHARE = 0.95  # of the area of an object
MIN_AREA = 0.002  # of the image
MASK_SIDE = 224  # pixels of the image in which visible areas are counted

FRAME = (196, 198, 202)  # color around the two images of a contrast
BOARD, BOARD_EDGE, INK = (255, 255, 255), (96, 98, 104), (28, 28, 32)
BOARD_HEIGHT = 0.19  # share of the side
EDGE_WIDTH = 0.012

SKY, SUN, SEA, FOAM, SAND = (178, 214, 240), (255, 242, 178), (112, 170, 204), (214, 232, 240), (238, 216, 172)
GRASS, TUFT = (166, 208, 134), (138, 186, 112)
DUNE, DUNE_SHADE, CACTUS = (230, 194, 146), (214, 174, 126), (112, 152, 118)
NIGHT, STARLIGHT = (72, 80, 128), (236, 236, 216)
TRUNK, LEAVES, SOIL = (152, 134, 120), (118, 160, 124), (196, 188, 160)
ROCK, SNOW = (150, 156, 172), (244, 247, 252)
WALL, WINDOW, STREET = (164, 166, 182), (244, 236, 196), (192, 192, 196)

Point = tuple[float, float]
Fill = tuple[int, int, int] | int


def _around(number: int, radius: Callable[[int], float] = lambda step: 1.0) -> list[Point]:
    """Return points around the center, clockwise from the top."""
    angles = [2 * math.pi * step / number for step in range(number)]
    return [(radius(i) * math.sin(angle), -radius(i) * math.cos(angle)) for i, angle in enumerate(angles)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * step / 64 for step in range(64)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
        )
        for t in angles
    ]


# In the box from -1 to 1, y downwards.
OUTLINES: dict[str, list[Point]] = {
    "circle": _around(64),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.9), (1, 0.8), (-1, 0.8)],
    "rectangle": [(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)],
    "oval": [(x, 0.55 * y) for x, y in _around(64)],
    "star": _around(10, lambda step: 0.42 if step % 2 else 1.0),
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "cross": [
        *((-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)),
        *((0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)),
    ],
    "heart": _heart(),
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
}


class PillowRenderer:
    """
    Draws the scenes of a sample.

    Args:
        size (`int`): side of the image in pixels. A contrast has twice that side, for two images of about `size`.

    Raises:
        ValueError: if the side is too small for words to be read.
    """

    name = "pillow"
    draws_scenes = True

    def __init__(self, size: int = 336):
        if size < MIN_SIDE:
            raise ValueError(f"The side of the image is {size} pixels, expected at least {MIN_SIDE}.")
        self.size = size

    def __call__(self, sample: Sample) -> Image.Image:
        """
        Draw a sample as a square RGB image. Equal samples give equal pixels.

        Raises:
            ValueError: if the sample has no scene.
        """
        scenes = [Scene.from_dict(scene) for scene in sample.scenes]
        if not 1 <= len(scenes) <= 2:
            raise ValueError(
                f"The sample {sample.id} has {len(scenes)} scenes, expected one or two: this renderer draws the scene"
                " grammar. Render other captions with an image model."
            )
        if len(scenes) == 1:
            return draw_scene(scenes[0], self.size)
        gap = self.size // 20
        return paste_sides(*(draw_scene(scene, self.size - gap) for scene in scenes), gap, 2 * self.size)


def paste_sides(left: Image.Image, right: Image.Image, gap: int, side: int) -> Image.Image:
    """
    Paste two images of one size beside each other into the middle of a square.

    FUSION resizes every image to a square, so a wide image of the two would be distorted.

    Args:
        left (`Image`), right (`Image`)
        gap (`int`): pixels between them.
        side (`int`): side of the square in pixels.
    """
    image = Image.new("RGB", (side, side), FRAME)
    margin, top = (side - gap - 2 * left.width) // 2, (side - left.height) // 2
    image.paste(left, (margin, top))
    image.paste(right, (margin + left.width + gap, top))
    return image


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """Draw a scene as an RGB image of `size` pixels a side."""
    image = Image.new("RGB", (size * SUPERSAMPLING,) * 2, PLAIN_BACKGROUNDS.get(scene.background, SKY))
    canvas = Canvas(image)
    if scene.background in PLACE_PAINTERS:
        PLACE_PAINTERS[scene.background](canvas)
    for thing in scene.objects:
        canvas.outline(thing, COLOURS[thing.colour])
    for sign in scene.signs:
        canvas.sign(sign)
    return image.reduce(SUPERSAMPLING)


def visible_objects(scene: Scene) -> list[SceneObject | Sign]:
    """
    Return the objects and signs that can be seen in full.

    Nothing of them is hidden by another or cut off by the border, and they are large enough to see.
    """
    size = MASK_SIDE
    things = scene.objects + scene.signs
    together = Canvas(Image.new("L", (size, size)))
    areas = []
    for number, thing in enumerate(things, start=1):
        # Draw the object alone, and moved to the center by whole pixels, to get its full area.
        alone = Canvas(Image.new("L", (size, size)))
        alone.outline(thing, 1, center=tuple(at + round((0.5 - at) * size) / size for at in (thing.x, thing.y)))
        areas.append(alone.image.histogram()[1])
        together.outline(thing, number)
    visible = together.image.histogram()
    return [
        thing
        for number, (thing, area) in enumerate(zip(things, areas, strict=True), start=1)
        if area >= MIN_AREA * size**2 and visible[number] >= MIN_VISIBLE_SHARE * area
    ]


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

    def polygon(self, points: list[Point], fill: Fill):
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Fill):
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def disc(self, x: float, y: float, radius: float, fill: Fill):
        self.polygon([(x + radius * across, y + radius * down) for across, down in OUTLINES["circle"]], fill)

    def below(self, line: Callable[[float], float], fill: Fill):
        """Fill the area below a line, which is a function from the place across to the height."""
        self.polygon([(step / 60, line(step / 60)) for step in range(61)] + [(1, 1), (0, 1)], fill)

    def outline(self, thing: SceneObject | Sign, fill: Fill, center: Point | None = None):
        """Fill all that an object or a sign covers with one color."""
        x, y = center or (thing.x, thing.y)
        if isinstance(thing, Sign):
            width, height = thing.width / 2, BOARD_HEIGHT / 2
            self.box(x - width, y - height, x + width, y + height, fill)
        else:
            radius = SIZES[thing.size]
            self.polygon([(x + radius * across, y + radius * down) for across, down in OUTLINES[thing.shape]], fill)

    def sign(self, sign: Sign):
        self.outline(sign, BOARD_EDGE)
        width, height = sign.width / 2 - EDGE_WIDTH, BOARD_HEIGHT / 2 - EDGE_WIDTH
        self.box(sign.x - width, sign.y - height, sign.x + width, sign.y + height, BOARD)
        # One size for all words, in which the longest fits: the size must not give the word away.
        font = _font(round(0.36 * sign.width / 2 * self.side))
        self.draw.text((sign.x * self.side, sign.y * self.side), sign.word, fill=INK, font=font, anchor="mm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size, layout_engine=ImageFont.Layout.BASIC)


# Places: each paints over the sky. Nothing in them looks like an object, and no color is near a color of objects.


def _paint_field(canvas: Canvas):
    _paint_sun(canvas)
    canvas.below(lambda x: 0.52 + 0.03 * math.sin(7 * x), GRASS)
    for x, y in _scattered(70, 0.58, 0.99):
        for lean in (-0.012, 0, 0.012):
            canvas.polygon([(x - 0.004, y), (x + 0.004, y), (x + lean, y - 0.035)], TUFT)


def _paint_beach(canvas: Canvas):
    _paint_sun(canvas)
    canvas.box(0, 0.36, 1, 1, SEA)
    canvas.below(lambda x: 0.595 + 0.02 * math.sin(11 * x), FOAM)
    canvas.below(lambda x: 0.62 + 0.02 * math.sin(11 * x), SAND)
    for x, y in _scattered(90, 0.68, 0.99):
        canvas.disc(x, y, 0.003, DUNE_SHADE)


def _paint_night(canvas: Canvas):
    canvas.box(0, 0, 1, 1, NIGHT)
    for x, y in _scattered(110, 0.01, 0.99):
        canvas.disc(x, y, 0.0045, STARLIGHT)
    canvas.disc(0.9, 0.1, 0.07, STARLIGHT)
    canvas.disc(0.87, 0.085, 0.06, NIGHT)


def _paint_desert(canvas: Canvas):
    _paint_sun(canvas)
    canvas.below(lambda x: 0.5 - 0.06 * math.sin(5 * x), DUNE)
    canvas.below(lambda x: 0.68 + 0.05 * math.sin(6 * x + 1), DUNE_SHADE)
    canvas.below(lambda x: 0.84 - 0.04 * math.sin(7 * x), DUNE)
    for x, y, scale in ((0.335, 0.58, 1.0), (0.665, 0.8, 1.3)):
        canvas.box(x - 0.014 * scale, y - 0.2 * scale, x + 0.014 * scale, y, CACTUS)
        for side, height in ((-1, 0.09), (1, 0.12)):
            near, far = sorted((x, x + side * 0.06 * scale))
            canvas.box(near, y - height * scale, far, y - (height - 0.022) * scale, CACTUS)
            near, far = sorted((x + side * 0.04 * scale, x + side * 0.06 * scale))
            canvas.box(near, y - (height + 0.05) * scale, far, y - (height - 0.022) * scale, CACTUS)


def _paint_forest(canvas: Canvas):
    canvas.box(0, 0.72, 1, 1, SOIL)
    for step in range(9):
        x = (step + 0.5) / 9
        canvas.box(x - 0.016, 0.3, x + 0.016, 0.78 + 0.04 * (step % 3), TRUNK)
    crowns = [(0, 0), *((step / 60, 0.4 + 0.05 * abs(math.sin(14 * step / 60))) for step in range(61)), (1, 0)]
    canvas.polygon(crowns, LEAVES)
    canvas.below(lambda x: 0.93 - 0.02 * abs(math.sin(25 * x)), LEAVES)


def _paint_mountains(canvas: Canvas):
    ridge = [(0, 0.62), (0.17, 0.3), (0.33, 0.55), (0.55, 0.14), (0.74, 0.5), (0.87, 0.33), (1, 0.52)]
    canvas.polygon([*ridge, (1, 1), (0, 1)], ROCK)
    for x, y, drop in ((0.17, 0.3, 0.1), (0.55, 0.14, 0.14), (0.87, 0.33, 0.08)):
        slope = 0.52 * drop
        snow = [(x, y), (x + slope, y + drop), (x + slope / 3, y + 0.75 * drop), (x - slope / 4, y + 1.05 * drop)]
        canvas.polygon([*snow, (x - slope, y + drop)], SNOW)
    canvas.below(lambda x: 0.8 + 0.03 * math.sin(6 * x), GRASS)


def _paint_city(canvas: Canvas):
    tops = (0.4, 0.25, 0.48, 0.16, 0.36, 0.52, 0.22, 0.42, 0.3)
    for step, top in enumerate(tops):
        left, right = step / len(tops), (step + 1) / len(tops)
        canvas.box(left, top, right, 0.86, WALL)
        for row in range(int((0.82 - top) / 0.05)):
            y = top + 0.03 + 0.05 * row
            canvas.box(left + 0.02, y, right - 0.02, y + 0.012, WINDOW)
    canvas.box(0, 0.86, 1, 1, STREET)
    for step in range(6):
        canvas.box(0.03 + step / 6, 0.925, 0.12 + step / 6, 0.935, SNOW)


def _paint_sea(canvas: Canvas):
    _paint_sun(canvas)
    canvas.box(0, 0.3, 1, 1, SEA)
    for row in range(8):
        y = 0.36 + 0.08 * row
        wave = [(step / 60, y + 0.012 * math.sin(40 * step / 60 + 2 * row)) for step in range(61)]
        canvas.polygon(wave + [(x, height + 0.008) for x, height in reversed(wave)], FOAM)


def _paint_sun(canvas: Canvas):
    canvas.disc(1, 0, 0.14, SUN)


def _scattered(number: int, top: float, bottom: float) -> list[Point]:
    rng = random.Random(number)
    return [(rng.random(), rng.uniform(top, bottom)) for _ in range(number)]


PLACE_PAINTERS = {
    "a grassy field": _paint_field,
    "a beach": _paint_beach,
    "a night sky": _paint_night,
    "a desert": _paint_desert,
    "a forest": _paint_forest,
    "a mountain range": _paint_mountains,
    "a city": _paint_city,
    "the open sea": _paint_sea,
}
