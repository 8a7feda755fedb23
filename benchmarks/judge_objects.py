"""Find the objects of a picture by their thin outlines, and measure color, pattern and place of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from judge_colors import name_main_color, name_pattern, to_lab
from scipy import ndimage


MIN_AREA = 0.0034  # share of a picture; smaller areas are clutter
OUTLINE_WIDTH = 0.0075  # share of the side, of the outline around an object with its soft edge
LIGHT, DARK = 225, 60  # outlines are nearly white or nearly black
PURE = 249, 37  # outlines where no other color is mixed in
CELL = 3.0  # CIELAB, of the histogram of the background's colors
BALL = np.linalg.norm(np.mgrid[-2:3, -2:3, -2:3], axis=0) <= 2.3
GOOD_SCORE, SURE_SCORE = 0.962, 0.95  # of a whole object, and of the front one of two
DOUBTFUL_SCORE = 0.88  # of an object that has no main color
MAX_PARTS = 6
MIN_HOLE = 12  # pixels
SQUARE = ndimage.generate_binary_structure(2, 2)


@dataclass
class Thing:
    """
    An object that the judge has found.

    Args:
        mask (`np.ndarray`): `(height, width)`, what can be seen of the object, in the box.
        pixels (`np.ndarray`): `(height, width, 3)`, the box of the picture.
        left (`int`), top (`int`): corner of the box in pixels.
        side (`int`): side of the picture in pixels.
        group (`int`): objects of one group touch each other, or one is within the other.
    """

    mask: np.ndarray
    pixels: np.ndarray
    left: int
    top: int
    side: int
    group: int = 0
    color: str | None = None
    pattern: str | None = None
    main: np.ndarray | None = None

    def __post_init__(self):
        self.color, self.main, rgb = name_main_color(self.pixels, self.mask)
        self.pattern = name_pattern(self.pixels, self.mask, rgb) if rgb is not None else None

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom as shares of the side."""
        height, width = self.mask.shape
        return tuple(v / self.side for v in (self.left, self.top, self.left + width, self.top + height))

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def length(self) -> float:
        return max(self.mask.shape) / self.side

    def whole_mask(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the mask in the whole picture."""
        whole = np.zeros(shape, dtype=bool)
        height, width = self.mask.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.mask
        return whole


def find_ink(pixels: np.ndarray, light: int, dark: int) -> np.ndarray:
    """Return where a picture is as white or as dark as the outlines around objects: 1, 2, or 0 elsewhere."""
    red, green, blue = np.moveaxis(pixels, -1, 0).astype(np.int16)
    low = np.minimum(np.minimum(red, green), blue)
    high = np.maximum(np.maximum(red, green), blue)
    return np.where(low >= light, 1, np.where((high <= dark) & (high - low <= 14), 2, 0))


def find_lines(ink: np.ndarray) -> np.ndarray:
    """Return the parts of white and of dark areas that are only one or two pixels wide."""
    return np.any([(ink == value) & ~ndimage.binary_opening(ink == value, SQUARE) for value in (1, 2)], axis=0)


def find_background(lab: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return what has a color of the border of the picture, and which part of it is connected with the border.

    No object reaches the border, so that all colors there are colors of the background.
    """
    cells = np.round((lab - (0, -110, -110)) / CELL).astype(int)
    border = np.ones(lab.shape[:2], dtype=bool)
    border[width:-width, width:-width] = False
    palette = np.zeros((round(100 / CELL) + 1, round(220 / CELL) + 1, round(220 / CELL) + 1), dtype=bool)
    palette[tuple(cells[border].T)] = True
    palette = ndimage.binary_dilation(palette, BALL)
    alike = palette[tuple(np.moveaxis(cells, -1, 0))]
    labels, _ = ndimage.label(alike)
    ends = np.unique(labels[border])
    return alike, np.isin(labels, ends[ends > 0])


def find_things(pixels: np.ndarray, score: Callable[[Thing], float]) -> list[Thing]:
    """
    Find all objects of a square picture, in no order.

    Args:
        pixels (`np.ndarray`): `(side, side, 3)` bytes.
        score (`Callable`): how well a thing fits the best of all shapes, from 0 to 1.
    """
    side = len(pixels)
    lab = to_lab(pixels)
    width = max(1, round(OUTLINE_WIDTH * side))
    alike, background = find_background(lab, width)
    ink = find_ink(pixels, LIGHT, DARK)
    labels, _ = ndimage.label(~background, SQUARE)
    things = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        blob = labels[place] == number
        if blob.sum() < MIN_AREA * side**2:
            continue
        margin = tuple(slice(max(0, part.start - 8), min(side, part.stop + 8)) for part in place)
        blob = labels[margin] == number
        outline = (ink[margin] > 0) & blob
        body = take_body(blob, outline, alike[margin], width)
        if body.sum() < MIN_AREA * side**2:
            continue
        cut = partial(
            cut_thing, pixels=pixels[margin], left=margin[1].start, top=margin[0].start, side=side, group=number
        )
        things += split_body(body, pixels[margin], cut, score)
    return things


def take_body(blob: np.ndarray, outline: np.ndarray, alike: np.ndarray, width: int) -> np.ndarray:
    """Remove from an area its soft edge, and the holes where the background is seen."""
    depth = ndimage.distance_transform_cdt(np.pad(blob, 1), "chessboard")[1:-1, 1:-1]
    labels, _ = ndimage.label(blob & alike)
    for index in 1 + np.flatnonzero(np.bincount(labels.ravel())[1:] >= MIN_HOLE):
        hole = labels == index
        # An outline runs around a hole, but not around a part that has a color of the background.
        edge = ndimage.binary_dilation(hole, SQUARE) & ~hole
        if depth[hole].min() > width and outline[edge].mean() > 0.35:
            blob = blob & ~hole
    # All sides lose the same, so that white stripes at the edge stay as long as the colored ones.
    return ndimage.binary_erosion(blob)


def cut_thing(mask: np.ndarray, pixels: np.ndarray, left: int, top: int, side: int, group: int) -> Thing:
    """Make an object of a mask, in the box of what it covers."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Thing(mask[box], pixels[box], left + int(columns[0]), top + int(rows[0]), side, group)


def split_body(
    body: np.ndarray, pixels: np.ndarray, cut: Callable[[np.ndarray], Thing], score: Callable[[Thing], float]
) -> list[Thing]:
    """
    Split an area into two objects where outlines cross it, if these fit shapes better than the whole.

    Args:
        body (`np.ndarray`), pixels (`np.ndarray`): mask of the area, and the picture there.
        cut (`Callable`), score (`Callable`): make an object of a mask, and tell how well it fits a shape.
    """
    whole = cut(body)
    islands, num_islands = ndimage.label(body, SQUARE)
    areas = ndimage.sum_labels(body, islands, range(1, num_islands + 1))
    if num_islands > 1 and sorted(areas)[-2] >= 0.6 * MIN_AREA * whole.side**2:
        first = islands == int(np.argmax(areas)) + 1
        return [cut(first), cut(body & ~first)]
    if score(whole) >= GOOD_SCORE:
        return [whole]
    lines = find_lines(find_ink(pixels, LIGHT, DARK)) | find_lines(find_ink(pixels, *PURE))
    labels, number = ndimage.label(ndimage.binary_erosion(body & ~lines))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, number + 1))
    least = MIN_AREA * whole.side**2 / 8
    large = [int(index) + 1 for index in np.argsort(-sizes)[:MAX_PARTS] if sizes[index] >= least]
    if len(large) < 2:
        return [whole]
    # Each pixel goes with the nearest of the large parts.
    kept = np.where(np.isin(labels, large), labels, 0)
    rows, columns = ndimage.distance_transform_edt(kept == 0, return_distances=False, return_indices=True)
    nearest = np.where(body, kept[rows, columns], 0)
    # No object has two main colors.
    best, found = DOUBTFUL_SCORE if whole.color is None else score(whole) + 0.005, [whole]
    for size in range(1, len(large) // 2 + 1):
        for chosen in combinations(large, size):
            first = np.isin(nearest, chosen)
            things = [cut(first), cut(body & ~first)]
            if min(thing.area for thing in things) < 0.6 * MIN_AREA * whole.side**2:
                continue
            fits = [score(thing) for thing in things]
            if sum(fits) / 2 > best and max(fits) > SURE_SCORE:
                best, found = sum(fits) / 2, things
    return found
