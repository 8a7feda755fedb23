"""What the pixels show of each object: painted again as masks, and counted."""

import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from fusion_vlm.synthesis.scenes.canvas import list_parts
from fusion_vlm.synthesis.scenes.scene import Scene, SceneObject, Sign


MASK_SIDE = 448  # pixels of the raster
WHOLE = 0.985  # visible share of an object that counts as whole; borders of neighbors cost a little


@dataclass(frozen=True)
class Seen:
    """
    What can be seen of an object or a sign.

    Args:
        area (`float`): area of the whole, as a share of the image.
        visible (`float`): visible share of the area; the image's border and later objects hide the rest.
        box (`tuple[float, float, float, float]`): left, top, right and bottom of the whole, as shares of the side.
    """

    area: float
    visible: float
    box: tuple[float, float, float, float]

    @property
    def is_whole(self) -> bool:
        return self.visible >= WHOLE


class Tile:
    """The mask of one object, only as large as the object."""

    def __init__(self, thing: SceneObject | Sign):
        polygons = [[(x * MASK_SIDE, y * MASK_SIDE) for x, y in points] for _, points in list_parts(thing)]
        xs, ys = zip(*(point for points in polygons for point in points), strict=True)
        self.left, self.top = math.floor(min(xs)), math.floor(min(ys))
        self.box = tuple(value / MASK_SIDE for value in (min(xs), min(ys), max(xs), max(ys)))
        self.image = Image.new("L", (math.ceil(max(xs)) - self.left + 2, math.ceil(max(ys)) - self.top + 2))
        draw = ImageDraw.Draw(self.image)
        for points in polygons:
            draw.polygon([(x - self.left, y - self.top) for x, y in points], 255)
        self.area = self.image.histogram()[255]

    def count_common(self, other: "Tile") -> int:
        """Count the pixels that both objects cover."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right = min(self.left + self.image.width, other.left + other.image.width)
        bottom = min(self.top + self.image.height, other.top + other.image.height)
        if right <= left or bottom <= top:
            return 0
        parts = [
            tile.image.crop((left - tile.left, top - tile.top, right - tile.left, bottom - tile.top))
            for tile in (self, other)
        ]
        return ImageChops.darker(*parts).histogram()[255]


def measure_scene(scene: Scene) -> list[Seen]:
    """Measure all objects of a scene, then all signs."""
    tiles = [Tile(thing) for thing in (*scene.objects, *scene.signs)]
    together = Image.new("L", (MASK_SIDE, MASK_SIDE))
    hides = [True] * len(scene.objects) + [sign.form != "label" for sign in scene.signs]
    for number, (tile, is_solid) in enumerate(zip(tiles, hides, strict=True), start=1):
        if is_solid:
            together.paste(number, (tile.left, tile.top), tile.image)
    counts = together.histogram()
    return [
        # A label is part of its object, so it is as visible as that is.
        Seen(tile.area / MASK_SIDE**2, counts[number] / tile.area if is_solid else 1.0, tile.box)
        for number, (tile, is_solid) in enumerate(zip(tiles, hides, strict=True), start=1)
    ]


def hidden_share(back: SceneObject, front: SceneObject) -> float:
    """Return the share of an object that another one hides if it is painted later."""
    tile = Tile(back)
    return tile.count_common(Tile(front)) / tile.area
