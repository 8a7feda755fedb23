"""A scene as questions see it: what is visible, and names that fit one object only."""

import math
import random
from dataclasses import dataclass
from itertools import combinations

from fusion_vlm.synthesis.scenes.english import list_adjectives
from fusion_vlm.synthesis.scenes.masks import Seen, measure_scene
from fusion_vlm.synthesis.scenes.scene import Scene, SceneObject


ATTRIBUTES = ("color", "pattern", "size")
MIN_DISTANCE = 0.16  # of two centers of which one is left of the other, or above it
MIN_SLOPE = 2.0  # how much larger the distance along the direction has to be than the one across
ZONES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the center", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
ZONE_MARGIN = 0.06  # of a center from the border of its zone
DIRECTIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


@dataclass
class Name:
    """
    A name of one object, with its article: `the red mug`.

    Args:
        text (`str`)
        tells (`frozenset`): what the name gives away: `("noun", 3)`, `("color", 3)`.
    """

    text: str
    tells: frozenset


class View:
    """
    What can be asked of a scene.

    Args:
        scene (`Scene`)

    Attributes:
        seen (`list[Seen]`): of each object.
        singles (`list[int]`): indices of the objects outside of groups that can be named and seen in full or,
            behind another object, in good part.
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        measured = measure_scene(scene)
        self.seen: list[Seen] = measured[: len(scene.objects)]
        self.seen_signs: list[Seen] = measured[len(scene.objects) :]
        self.behind = [relation[1] for relation in scene.relations if relation[0] == "behind"]
        # What is inside another object is always small, and the other one large.
        self.nested = {index for relation in scene.relations if relation[0] == "inside" for index in relation[1:]}
        # In front of a place, "the red object" could be something of the place.
        self.may_be_generic = not scene.background.is_place
        self.singles = [
            index
            for index, thing in enumerate(scene.objects)
            if sum(other.noun == thing.noun for other in scene.objects) == 1
            and not any(thing.matches(group) for group in scene.groups)
        ]
        labeled = {sign.on for sign in scene.signs}
        self.singles = [index for index in self.singles if index not in labeled]

    def __getitem__(self, index: int) -> SceneObject:
        return self.scene.objects[index]

    def num_hidden(self) -> int:
        """Count the objects and signs that are hidden though the scene was not built so."""
        hidden = [not seen.is_whole for seen in (*self.seen, *self.seen_signs)]
        return sum(is_hidden for index, is_hidden in enumerate(hidden) if index not in self.behind)

    def name(self, rng: random.Random, index: int, avoid: tuple[str, ...] = ()) -> Name | None:
        """
        Draw a name that fits one object only; None if there is none.

        Args:
            rng (`random.Random`)
            index (`int`): index of the object.
            avoid (`tuple[str, ...]`): attributes that the name must not give away: `color`, `pattern`, `noun`.
        """
        thing = self[index]
        found = []
        for number in range(3):
            for attributes in combinations([name for name in ATTRIBUTES[:2] if name not in avoid], number):
                if "pattern" in attributes and not self._shows_pattern():
                    continue
                for has_noun in (True, False):
                    if has_noun and "noun" in avoid or not has_noun and not (attributes and self.may_be_generic):
                        continue
                    group = {name: getattr(thing, name) for name in attributes}
                    group |= {"noun": thing.noun} if has_noun else {}
                    if group.get("pattern") != "plain" and len(self.scene.members(group)) == 1:
                        found.append((group, 6 if has_noun and not attributes else 2 if has_noun else 1))
        if not found:
            return None
        group = rng.choices([group for group, _ in found], [weight for _, weight in found])[0]
        noun = group.get("noun") or rng.choice(("object", "thing"))
        text = " ".join(filter(None, ("the", list_adjectives(group), noun)))
        return Name(text, frozenset((name, index) for name in group))

    def _shows_pattern(self) -> bool:
        """Check whether nothing shows a pattern that is not its `pattern`, such as the spots of a ladybug."""
        return all(thing.outline.takes_pattern or thing.pattern == "plain" for thing in self.scene.objects) and all(
            thing.outline.takes_pattern for thing in self.scene.objects
        )

    def find_direction(self, first: int, second: int) -> str | None:
        """Return which of `DIRECTIONS` an object is in, seen from another; None if no direction is clear."""
        across, down = self[first].x - self[second].x, self[first].y - self[second].y
        if max(abs(across), abs(down)) < MIN_DISTANCE:
            return None
        if max(abs(across), abs(down)) < MIN_SLOPE * min(abs(across), abs(down)):
            return None
        one, other = self.seen[first].box, self.seen[second].box
        if abs(across) > abs(down):
            name = "left" if across < 0 else "right"
            is_apart = one[2] <= other[0] or other[2] <= one[0]
        else:
            name = "above" if down < 0 else "below"
            is_apart = one[3] <= other[1] or other[3] <= one[1]
        return name if is_apart else None

    def find_zone(self, index: int) -> str | None:
        """Return the part of the image that an object is clearly in, with its preposition."""
        places = []
        for value in (self[index].y, self[index].x):
            borders = [abs(value - border) for border in (1 / 3, 2 / 3)]
            if min(borders) < ZONE_MARGIN:
                return None
            places.append(int(value * 3))
        return ZONES[places[0]][places[1]]

    def gap(self, first: int, second: int) -> float:
        """Return the distance between the circles around two objects."""
        one, other = self[first], self[second]
        return math.hypot(one.x - other.x, one.y - other.y) - one.radius - other.radius

    def distance(self, first: int, second: int) -> float:
        return math.hypot(self[first].x - self[second].x, self[first].y - self[second].y)

    def find_nearest(self, index: int) -> int | None:
        """Return the object that is clearly nearest to another, by centers and by circles."""
        others = [other for other in range(len(self.scene.objects)) if other != index]
        if len(others) < 2 or self.scene.signs:
            return None
        for measure in (self.distance, self.gap):
            first, second = sorted(others, key=lambda other: measure(index, other))[:2]  # noqa: B023
            if max(measure(index, first), 0.02) > 0.7 * measure(index, second):
                return None
        nearest = min(others, key=lambda other: self.distance(index, other))
        return nearest if nearest == min(others, key=lambda other: self.gap(index, other)) else None

    def find_extremes(self) -> dict[str, int]:
        """Return the objects that are clearly the leftmost, rightmost, highest, lowest, largest and smallest."""
        found = {}
        indices = range(len(self.scene.objects))
        if len(indices) < 3 or self.scene.signs:
            return {}
        for name, sign, measure in (
            ("leftmost", 1, lambda index: self[index].x),
            ("rightmost", -1, lambda index: self[index].x),
            ("highest", 1, lambda index: self[index].y),
            ("lowest", -1, lambda index: self[index].y),
        ):
            first, second = sorted(indices, key=lambda index: sign * measure(index))[:2]  # noqa: B023
            box = (0, 2) if name in ("leftmost", "rightmost") else (1, 3)
            edges = [[self.seen[index].box[side] for side in box] for index in (first, second)]
            clear = all(sign * (two - one) > 0.03 for one, two in zip(*edges, strict=True))
            if clear and abs(measure(first) - measure(second)) > 0.08:
                found[name] = first
        if self.nested or self.behind:
            return found
        ordered = sorted(indices, key=lambda index: self.seen[index].area)
        if self.is_larger(ordered[-1], ordered[-2]):
            found["largest"] = ordered[-1]
        if self.is_larger(ordered[1], ordered[0]):
            found["smallest"] = ordered[0]
        return found

    def is_larger(self, first: int, second: int) -> bool:
        """Check whether an object is clearly larger than another, by area and by the length of its box."""
        one, other = self.seen[first], self.seen[second]
        lengths = [max(seen.box[2] - seen.box[0], seen.box[3] - seen.box[1]) for seen in (one, other)]
        return one.area >= 1.45 * other.area and lengths[0] >= 1.1 * lengths[1]
