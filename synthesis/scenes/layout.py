"""Free places for objects: apart from each other, or touching, overlapping, inside or between."""

import math
import random
from dataclasses import replace

from fusion_vlm.synthesis.scenes.masks import Tile, hidden_share
from fusion_vlm.synthesis.scenes.scene import SceneObject


Circle = tuple[float, float, float]  # x, y and radius, as shares of the side
GAP = 0.022  # between the circles around two objects
MARGIN = 0.018  # to the border of the image
HIDDEN = (0.2, 0.42)  # share of an object that the one in front of it hides
MAX_CONTACT = 0.012  # share of an object that one which touches it may hide
HOLE = {"ring": 0.68, "frame": 0.69}  # clear radius of the hole, as a share of the radius around; a square's half side


def draw_free_place(
    rng: random.Random, radius: float, taken: list[Circle], tries: int = 80
) -> tuple[float, float] | None:
    """Draw a center for a circle that keeps clear of others; None if there seems to be no room."""
    least, most = radius + MARGIN, 1 - radius - MARGIN
    if least > most:
        return None
    for _ in range(tries):
        x, y = rng.uniform(least, most), rng.uniform(least, most)
        if all(math.hypot(x - a, y - b) >= radius + other + GAP for a, b, other in taken):
            return round(x, 4), round(y, 4)
    return None


def place_apart(rng: random.Random, things: list[SceneObject], taken: list[Circle]) -> bool:
    """Place objects apart from each other and from what is taken, the largest first; False if there is no room."""
    for thing in sorted(things, key=lambda thing: -thing.radius):
        place = draw_free_place(rng, thing.radius, taken)
        if place is None:
            return False
        thing.x, thing.y = place
        taken.append((*place, thing.radius))
    return True


def place_relation(rng: random.Random, name: str, things: list[SceneObject], taken: list[Circle]) -> bool:
    """
    Place the two or three objects of a relation; False if there is no room.

    Args:
        rng (`random.Random`)
        name (`str`): `behind`, `inside`, `touching` or `between`: the first object stands so to the others.
        things (`list[SceneObject]`): in the order of the name. A later object is painted over an earlier one.
        taken (`list[Circle]`): what keeps free; the new objects are added.
    """
    if name == "between":
        return _place_between(rng, things, taken)
    first, second = things
    reach = second.radius if name == "inside" else first.radius + second.radius
    place = draw_free_place(rng, reach, taken, tries=40)
    if place is None:
        return False
    second.x, second.y = place
    angle = rng.uniform(0, 2 * math.pi)
    if name == "inside":
        first.x, first.y = place
        fits = first.radius <= HOLE[second.noun] * second.radius / (1.4143 if second.noun == "frame" else 1) - 0.008
        taken.append((*place, second.radius))
        return fits
    found = _slide(first, second, angle, name)
    if found:
        # Move both so that their middle is where the room is.
        shift_x, shift_y = (first.x - second.x) / 2, (first.y - second.y) / 2
        for thing in things:
            thing.x, thing.y = round(thing.x - shift_x, 4), round(thing.y - shift_y, 4)
            taken.append((thing.x, thing.y, thing.radius))
        found = all(
            thing.radius + MARGIN <= at <= 1 - thing.radius - MARGIN for thing in things for at in (thing.x, thing.y)
        )
    return found


def _slide(first: SceneObject, second: SceneObject, angle: float, name: str) -> bool:
    """Move the first object toward the second until it touches it, or until a good part of it is hidden."""
    near, far = 0.0, first.radius + second.radius + 0.01
    for _ in range(11):
        middle = (near + far) / 2
        moved = replace(first, x=second.x + middle * math.cos(angle), y=second.y + middle * math.sin(angle))
        share = hidden_share(moved, second)
        if name == "touching":
            is_near = share > 0
        else:
            if HIDDEN[0] <= share <= HIDDEN[1]:
                first.x, first.y = moved.x, moved.y
                return True
            is_near = share > HIDDEN[1]
        near, far = (middle, far) if is_near else (near, middle)
    if name != "touching":
        return False
    # A hair nearer than the last distance without contact, so that both outlines meet.
    first.x, first.y = (
        at + (near - 0.002) * turn for at, turn in ((second.x, math.cos(angle)), (second.y, math.sin(angle)))
    )
    return (
        0 < hidden_share(first, second) < MAX_CONTACT
        and 0 < Tile(first).count_common(Tile(second)) < MAX_CONTACT * Tile(second).area
    )


def _place_between(rng: random.Random, things: list[SceneObject], taken: list[Circle]) -> bool:
    middle, one, other = things
    angle = rng.uniform(0, math.pi)
    reach = max(one.radius, other.radius) + middle.radius + rng.uniform(0.05, 0.1)
    for _ in range(40):
        x, y = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
        share = rng.uniform(-0.04, 0.04)
        ends = [(x + side * reach * math.cos(angle), y + side * reach * math.sin(angle)) for side in (-1, 1)]
        places = [(x + share, y - share), *ends]
        fits = all(
            thing.radius + MARGIN <= value <= 1 - thing.radius - MARGIN
            for thing, place in zip(things, places, strict=True)
            for value in place
        )
        # All that lies in the way would be between the two as well.
        if fits and all(math.hypot(x - a, y - b) >= reach + radius for a, b, radius in taken):
            for thing, place in zip(things, places, strict=True):
                thing.x, thing.y = (round(value, 4) for value in place)
            taken.append((x, y, reach))
            taken += [(thing.x, thing.y, thing.radius) for thing in (one, other)]
            return True
    return False
