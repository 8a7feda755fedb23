"""Read a picture as objects with colors, patterns, shapes and places, and resolve names and relations among them."""

from functools import cached_property

import numpy as np
from judge_colors import NAMES, NUM_HUES, name_pixels, to_lab
from judge_objects import CELL, PURE, Thing, find_ink, find_things
from judge_shapes import is_plain, load_library, score_nouns
from judge_words import Reference
from scipy import ndimage


MIN_SCORE, MIN_GAP = 0.94, 0.006  # of the fit of a shape; lower values are unsure
OTHER_GAP = 0.025  # a shape that fits so much better is the right one
MIN_WHOLE = 0.93  # of the fit of each object, if all are to be counted
MIN_COLORLESS = 0.98  # of the fit of an object without a name for its color
MAX_SHADES = 90  # of a background that leaves all objects whole; photographs of many things have more
MAX_SPREAD = 20  # CIELAB, of the lightness of a background of few shades
MAX_AREA = 0.085  # of an object, as a share of the picture
MIN_RATIO = 1.2  # of sizes that are compared


class Picture:
    """
    The objects of a picture.

    Args:
        pixels (`np.ndarray`): `(side, side, 3)` bytes.

    Attributes:
        things (`list[Thing]`)
        scores (`np.ndarray`): `(num_things, num_nouns)`, how well each object fits each noun.
    """

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.things: list[Thing] = find_things(pixels, lambda thing: float(score_nouns(thing).max()))
        self.scores = np.zeros((len(self.things), len(load_library().nouns)))
        for index, thing in enumerate(self.things):
            self.scores[index] = score_nouns(thing)
        for thing in self.things:
            if thing.pattern != "plain" and thing.main is not None and is_plain(thing):
                thing.pattern = "plain"

    @property
    def is_complete(self) -> bool:
        """Check that all objects are found: none has a color of the background, and none is lost in clutter."""
        return self.is_clear and not self.border_colors

    @cached_property
    def is_clear(self) -> bool:
        """Check that each object has a shape and a color that the judge knows, so none is clutter or two in one."""
        ink = find_ink(self.border, *PURE) > 0
        groups = [thing.group for thing in self.things]
        return (
            ink.mean() < 0.03
            and self.num_shades <= MAX_SHADES
            and all(
                (best >= MIN_WHOLE or groups.count(thing.group) > 1)
                and (thing.color is not None or best >= MIN_COLORLESS)
                and thing.area < MAX_AREA * thing.side**2
                for thing, best in zip(self.things, self.scores.max(1), strict=True)
            )
        )

    @cached_property
    def border(self) -> np.ndarray:
        """Return the pixels at the border, which no object reaches: (num, 3)."""
        border = np.ones(self.pixels.shape[:2], dtype=bool)
        border[3:-3, 3:-3] = False
        return self.pixels[border]

    @cached_property
    def num_shades(self) -> int:
        """Count the colors of the border, in cells of the histogram that separates the background."""
        return len(np.unique(np.round(to_lab(self.border) / CELL), axis=0))

    @cached_property
    def border_colors(self) -> set[str]:
        """
        Return the names of colors that a background of many shades has.

        A plain object in such a color could be missed, because the shades may bridge the outline around the object.
        """
        if np.ptp(np.percentile(to_lab(self.border)[:, 0], (1, 99))) < MAX_SPREAD:
            return set()
        names = name_pixels(self.border)
        return {name for index, name in enumerate(NAMES) if (names == index).mean() > 0.003}

    def may_miss(self, group: Reference) -> bool:
        """Check whether objects of a group could be missed."""
        if not self.is_clear:
            return True
        # Of an object with a pattern, its second color may be lost: white or black.
        has_pattern = group.pattern not in (None, "plain")
        risky = {group.color, "white", "black"} if has_pattern else {group.color} if group.color else set(NAMES)
        return bool(self.border_colors & risky)

    def index_of(self, noun: str) -> int:
        return load_library().nouns.index(noun)

    def has_looks(self, index: int, name: Reference) -> bool | None:
        """Check color and pattern of an object; None if one of them is unclear."""
        thing, unclear = self.things[index], False
        for wanted, found in ((name.color, thing.color), (name.pattern, thing.pattern)):
            if wanted is not None and found is None:
                unclear = True
            elif wanted is not None and wanted != found:
                return False
        return None if unclear else True

    def has_noun(self, index: int, noun: str) -> bool | None:
        """Check the shape of an object by itself; None if it is unclear."""
        scores = self.scores[index]
        score, best = scores[self.index_of(noun)], scores.max()
        others = np.delete(scores, self.index_of(noun)).max()
        # White, gray and black objects show fewer of their parts.
        is_neutral = self.things[index].color in NAMES[NUM_HUES:]
        if score < best - (3 * OTHER_GAP if is_neutral else OTHER_GAP):
            return False
        return True if score >= MIN_SCORE and score > others + (OTHER_GAP if is_neutral else MIN_GAP) else None

    def belongs(self, index: int, group: Reference) -> bool | None:
        """Check whether an object belongs to a group; None if it is unclear."""
        answers = [self.has_looks(index, group), True if group.noun is None else self.has_noun(index, group.noun)]
        return False if False in answers else None if None in answers else True

    def count(self, group: Reference) -> int | None:
        """Count the objects of a group; None if one of them is unclear."""
        answers = [self.belongs(index, group) for index in range(len(self.things))]
        return None if self.may_miss(group) or None in answers else sum(answers)

    def find(self, name: Reference) -> int | None:
        """Return the index of the one object that a name fits; None if no object or several fit it."""
        if name.relations:
            inner = Reference(name.noun, name.color, name.pattern, name.extreme, name.relations[1:])
            other = self.find(inner)
            return None if other is None else self.follow(name.relations[0], other)
        if name.extreme is not None:
            return self.find_extreme(name.extreme)
        possible = [index for index in range(len(self.things)) if self.has_looks(index, name) is not False]
        if name.noun is None:
            sure = [index for index in possible if self.has_looks(index, name)]
            return sure[0] if len(sure) == len(possible) == 1 else None
        ranked = sorted(possible, key=lambda index: -self.scores[index, self.index_of(name.noun)])
        if not ranked:
            return None
        first, *others = (self.scores[index, self.index_of(name.noun)] for index in ranked)
        if first < MIN_SCORE or (others and others[0] > first - 3 * MIN_GAP):
            return None
        return ranked[0] if self.has_noun(ranked[0], name.noun) is not False else None

    def follow(self, relation: str, other: int) -> int | None:
        """Return the object that stands in a relation to another."""
        if relation in ("nearest to", "closest to"):
            return self.find_nearest(other)
        if relation == "inside":
            return self.find_inside(other)
        if relation == "that touches":
            return self.find_touching(other)
        pair = self.find_overlap()
        return pair[0] if pair is not None and pair[1] == other else None

    def find_extreme(self, extreme: str) -> int | None:
        """Return the object that is the first in an order, by center and by edge, or by area."""
        if len(self.things) < 2 or not self.is_complete:
            return None
        axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "highest": (1, 1), "lowest": (1, -1)}.get(
            extreme, (0, 0)
        )
        if sign:
            values = [sign * thing.center[axis] for thing in self.things]
            edges = [min(sign * thing.box[axis], sign * thing.box[axis + 2]) for thing in self.things]
            return pick_first(values, 0.02) if pick_first(values, 0.02) == pick_first(edges, 0.0) else None
        sizes = [np.log(thing.area) * (1 if extreme == "smallest" else -1) for thing in self.things]
        return pick_first(sizes, np.log(MIN_RATIO))

    def find_nearest(self, index: int) -> int | None:
        """Return the object that is nearest to another, by centers and by the gap between both."""
        others = [other for other in range(len(self.things)) if other != index]
        if len(others) < 2 or not self.is_complete:
            return None
        gaps = self.distances[index]
        centers = [np.hypot(*np.subtract(self.things[index].center, self.things[other].center)) for other in others]
        first = pick_first(centers, 0.02)
        second = pick_first([gaps[other] for other in others], 0.01)
        return others[first] if first is not None and first == second else None

    @cached_property
    def distances(self) -> np.ndarray:
        """Return the smallest gaps between the objects, as shares of the side: (num, num)."""
        shape = self.pixels.shape[:2]
        masks = [thing.whole_mask(shape) for thing in self.things]
        found = np.zeros((len(masks), len(masks)))
        for index, mask in enumerate(masks):
            distance = ndimage.distance_transform_edt(~mask)
            found[index] = [distance[other].min() for other in masks]
        return found / shape[0]

    def find_direction(self, first: int, second: int) -> str | None:
        """Return the direction from the second object to the first; None if no direction is clear."""
        across, down = np.subtract(self.things[first].center, self.things[second].center)
        if max(abs(across), abs(down)) < 1.7 * min(abs(across), abs(down)) or max(abs(across), abs(down)) < 0.1:
            return None
        return ("left" if across < 0 else "right") if abs(across) > abs(down) else ("above" if down < 0 else "below")

    def find_zone(self, index: int) -> tuple[int, int] | None:
        """Return row and column of the nine parts of the picture; None near a border between them."""
        x, y = self.things[index].center
        if min(abs(value - border) for value in (x, y) for border in (1 / 3, 2 / 3)) < 0.02:
            return None
        return int(3 * y), int(3 * x)

    def find_inside(self, outer: int) -> int | None:
        """Return the object whose box is within that of another, in the hole of which it is."""
        left, top, right, bottom = self.things[outer].box
        found = [
            index
            for index, thing in enumerate(self.things)
            if index != outer
            and left < thing.box[0]
            and top < thing.box[1]
            and thing.box[2] < right
            and thing.box[3] < bottom
        ]
        return found[0] if len(found) == 1 else None

    def find_touching(self, index: int) -> int | None:
        """Return the one object that shares a border with another and is not within it."""
        found = [
            other
            for other in range(len(self.things))
            if other != index and self.things[other].group == self.things[index].group
        ]
        nested = {self.find_inside(index)} | {other for other in found if self.find_inside(other) == index}
        return found[0] if len(found) == 1 and not nested & {found[0]} else None

    def find_between(self, first: int, second: int) -> int | None:
        """Return the one object that the line between two others crosses."""
        start, end = (np.array(self.things[index].center) for index in (first, second))
        length = np.linalg.norm(end - start)
        found = []
        for index, thing in enumerate(self.things):
            along = (np.array(thing.center) - start) @ (end - start) / length**2
            away = np.linalg.norm(start + along * (end - start) - thing.center)
            if index not in (first, second) and 0.15 < along < 0.85 and away < 0.5 * thing.length:
                found.append(index)
        return found[0] if len(found) == 1 else None

    def find_overlap(self) -> tuple[int, int] | None:
        """Return the one pair of objects of which the second hides a part of the first."""
        groups = [thing.group for thing in self.things]
        pairs = [
            (one, other)
            for one in range(len(groups))
            for other in range(len(groups))
            if one < other and groups[one] == groups[other]
        ]
        if len(pairs) != 1 or self.find_inside(pairs[0][0]) is not None or self.find_inside(pairs[0][1]) is not None:
            return None
        best = [self.scores[index].max() for index in pairs[0]]
        if abs(best[0] - best[1]) < 0.02:
            return None
        return pairs[0] if best[0] < best[1] else pairs[0][::-1]


def pick_first(values: list[float], margin: float) -> int | None:
    """Return the index of the smallest value; None if another one is within a margin."""
    order = np.argsort(values)
    return int(order[0]) if values[order[1]] - values[order[0]] >= margin else None
