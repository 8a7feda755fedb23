"""Name objects by their shapes: the judge's own reference drawings, in judge_shapes.png and judge_shapes.txt."""

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import numpy as np
from judge_colors import NAMES, NUM_HUES
from PIL import Image
from scipy import ndimage


SIZE = 32  # pixels of the side of a tile, in which shapes are compared
TILE = 2 * SIZE  # pixels of the side of a reference drawing
SPREAD = 0.22  # of an object in its tile: square root of its second moment, as a share of the side
COLUMNS = 12
MIN_PLAIN = 0.92
MIN_FACING = 0.01  # difference of the fits of an object that looks to one side
ANGLES = tuple(range(-45, 46, 9))
ALL_ANGLES = tuple(range(-180, 180, 9))
BACK, PART, MAIN = 0, 128, 255  # levels of a drawing: outside, parts in other colors, parts of the main color


@dataclass
class Library:
    """
    Reference drawings, rotated and flipped.

    Args:
        nouns (`tuple[str, ...]`), plurals (`dict[str, str]`): names; a plural with its noun.
        owner (`np.ndarray`): `(num,)`, the index of the noun of each variant.
        flips (`np.ndarray`), angles (`np.ndarray`): `(num,)`, how each variant was turned.
        shapes (`np.ndarray`), mains (`np.ndarray`): `(num, SIZE * SIZE)`, 1 within the object, and of the main color.
        faces (`frozenset[str]`): nouns that are drawn as they look to the right.
    """

    nouns: tuple[str, ...]
    plurals: dict[str, str]
    owner: np.ndarray
    flips: np.ndarray
    angles: np.ndarray
    shapes: np.ndarray
    mains: np.ndarray
    faces: frozenset[str]

    @cached_property
    def shape_squares(self) -> np.ndarray:
        return np.square(self.shapes).sum(-1)

    @cached_property
    def main_squares(self) -> np.ndarray:
        return np.square(self.mains).sum(-1)

    @cached_property
    def shares(self) -> np.ndarray:
        """Return the share of each drawing that has the main color."""
        return self.mains.sum(-1) / self.shapes.sum(-1)


@cache
def load_library() -> Library:
    """Read the drawings, and turn each by the angles that its line allows."""
    folder = Path(__file__).parent
    sheet = np.asarray(Image.open(folder / "judge_shapes.png").convert("L"))
    nouns, plurals, faces, variants = [], {}, set(), []
    for index, line in enumerate((folder / "judge_shapes.txt").read_text(encoding="utf-8").splitlines()):
        noun, plural, flags = (part.strip() for part in line.split("|"))
        row, column = divmod(index, COLUMNS)
        tile = sheet[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        nouns.append(noun)
        plurals[plural] = noun
        faces |= {noun} if "faces" in flags else set()
        for angle, flip, filled in product(ALL_ANGLES if "turns" in flags else ANGLES, (False, True), (False, True)):
            base = fill_holes(tile) if filled else tile
            if not filled or ("hollow" not in flags and (base != tile).any()):
                base = base[:, ::-1] if flip else base
                turned = [
                    ndimage.rotate(plane.astype(np.float32), -angle, reshape=False, order=1)
                    for plane in (base > 64, base > 192)
                ]
                variants.append((index, flip, angle, *(soften(halve(plane)).ravel() for plane in turned)))
    owner, flips, angles, shapes, mains = (np.array(column) for column in zip(*variants, strict=True))
    return Library(tuple(nouns), plurals, owner, flips, angles, shapes, mains, frozenset(faces))


def fill_holes(tile: np.ndarray) -> np.ndarray:
    """Return a drawing without holes and narrow gaps: where these are small, the background in them is not seen."""
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(tile > BACK, np.ones((3, 3)), iterations=4))
    return np.where(filled & (tile == BACK), PART, tile)


def halve(plane: np.ndarray) -> np.ndarray:
    """Reduce a drawing to a tile, each pixel of which is the mean of four."""
    return plane.reshape(SIZE, 2, SIZE, 2).mean((1, 3))


def soften(plane: np.ndarray) -> np.ndarray:
    """Blur a tile a little, so that edges half a pixel apart still overlap."""
    return ndimage.gaussian_filter(np.clip(plane, 0, 1), 0.7)


def normalize_shape(mask: np.ndarray, planes: list[np.ndarray]) -> list[np.ndarray]:
    """Move planes so that the mask is in the middle of a tile, with the spread of the reference drawings."""
    rows, columns = np.nonzero(mask)
    middle = np.array([rows.mean(), columns.mean()])
    spread = np.sqrt(rows.var() + columns.var())
    step = spread / (SPREAD * SIZE)
    offset = middle - step * (SIZE - 1) / 2
    blurred = [ndimage.gaussian_filter(plane.astype(np.float32), max(0.01, 0.35 * step)) for plane in planes]
    return [
        soften(ndimage.affine_transform(plane, (step, step), offset, (SIZE, SIZE), order=1, mode="constant"))
        for plane in blurred
    ]


def compare(thing) -> np.ndarray:
    """Return how well an object fits each variant of the library, from 0 to 1: (num,)."""
    library = load_library()
    planes = normalize_shape(thing.mask, [thing.mask, thing.mask if thing.main is None else thing.main])
    fit = overlap(planes[0].ravel(), library.shapes, library.shape_squares)
    if thing.main is None or thing.color in NAMES[NUM_HUES:]:
        return fit  # parts of other things are white, gray or black, too
    plain = 0.65 * fit + 0.35 * overlap(planes[1].ravel(), library.mains, library.main_squares)
    if thing.pattern == "plain":
        return plain
    # What has a pattern on it has no other large parts.
    return np.maximum(plain, 0.985 * fit * (0.95 + 0.05 * np.minimum(1, library.shares / 0.6)))


def is_plain(thing) -> bool:
    """Check whether the main color is where a plain drawing has it, so that what looks like a pattern is none."""
    library = load_library()
    best = int(compare(thing).argmax())
    main = normalize_shape(thing.mask, [thing.main])[0].ravel()
    return float(overlap(main, library.mains[best : best + 1], library.main_squares[best])[0]) >= MIN_PLAIN


def overlap(plane: np.ndarray, planes: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Compare a soft mask with others: twice what is common as a share of the sum, by squares; 1 for equal ones."""
    return 2 * (planes @ plane) / np.maximum(squares + plane @ plane, 1e-6)


def score_nouns(thing) -> np.ndarray:
    """Return how well an object fits each noun: (num_nouns,)."""
    library = load_library()
    scores = np.zeros(len(library.nouns))
    np.maximum.at(scores, library.owner, compare(thing))
    return scores


def find_facing(thing, noun: str) -> str | None:
    """Return the side that an object looks to, if the mirrored drawing fits less."""
    library = load_library()
    index = library.nouns.index(noun)
    mine = (library.owner == index) & (np.abs(library.angles) <= 27)
    fits = compare(thing)
    straight, mirrored = (fits[mine & (library.flips == flip)].max() for flip in (False, True))
    if abs(straight - mirrored) < MIN_FACING or noun not in library.faces:
        return None
    return "right" if straight > mirrored else "left"
