"""Draws random scenes: what is counted, what stands in relation, and further objects."""

import random
from collections.abc import Sequence

from fusion_vlm.synthesis.scenes.backgrounds import list_look_alikes
from fusion_vlm.synthesis.scenes.colors import COLORS, NEUTRAL, jitter_color
from fusion_vlm.synthesis.scenes.layout import Circle, place_apart, place_relation
from fusion_vlm.synthesis.scenes.outlines import load_outlines
from fusion_vlm.synthesis.scenes.scene import PATTERNS, SIZES, Background, Scene, SceneObject


RELATIONS = ("behind", "inside", "touching", "between")
CONTAINERS = ("ring", "frame")
CONTAINER_SCALE = (0.115, 0.135)
MAX_RADIUS = 0.17  # of the circle around an object that is no container
MIN_GROUP_FILL = 0.33  # thin things take too much room to be counted
PLAIN_SHARE = 0.45  # of the objects that could have a pattern


def draw_object(rng: random.Random, noun: str, size: str | None = None, **attributes: str) -> SceneObject:
    """Draw an object of a noun; `color` and `pattern` may be given."""
    outline = load_outlines()[noun]
    pattern = attributes.get("pattern")
    colors = [name for name in COLORS if not (pattern and pattern != "plain" and name in NEUTRAL)]
    color = attributes.get("color") or rng.choice(colors)
    if pattern is None:
        may = outline.takes_pattern and color not in NEUTRAL
        pattern = rng.choice(PATTERNS[1:]) if may and rng.random() > PLAIN_SHARE else "plain"
    size = size or rng.choice(list(SIZES))
    thing = SceneObject(
        noun,
        color,
        list(jitter_color(rng, color)),
        pattern,
        size,
        round(rng.uniform(*SIZES[size]), 4),
        angle=round(rng.uniform(-outline.max_angle, outline.max_angle), 1),
        facing=rng.choice(("left", "right")) if outline.faces else None,
        finish=rng.choice(("flat", "flat", "shaded", "outlined")),
    )
    if thing.radius > MAX_RADIUS:
        smaller = {"large": "medium", "medium": "small"}[size]
        thing.size, thing.scale = smaller, round(rng.uniform(*SIZES[smaller]), 4)
    return thing


def draw_nouns(rng: random.Random, number: int, excluded: set[str], families: set[str] = frozenset()) -> list[str]:
    """Draw nouns of different families, none of them excluded nor of one of `families`."""
    found, taken = [], set(families)
    nouns = list(load_outlines().values())
    for outline in rng.sample(nouns, len(nouns)):
        if outline.noun not in excluded and outline.family not in taken and len(found) < number:
            found.append(outline.noun)
            taken.add(outline.family)
    return found


def draw_size(rng: random.Random, number: int) -> str:
    """Draw a size that leaves room for `number` objects."""
    weights = (3, 4, 3) if number <= 5 else (5, 5, 1) if number <= 8 else (7, 3, 0) if number <= 10 else (1, 0, 0)
    return rng.choices(list(SIZES), weights)[0]


def build_scene(
    rng: random.Random,
    background: Background,
    groups: Sequence[tuple[tuple[str, ...], int]] = (),
    num_others: int = 0,
    relation: str | None = None,
    num_decoys: int = 0,
) -> Scene:
    """
    Draw a scene of objects.

    Args:
        rng (`random.Random`)
        background (`Background`)
        groups (`Sequence[tuple[tuple[str, ...], int]]`): for each group, what its objects have in common (of `noun`,
            `color`, `pattern`; one of them at least), and their number. No other object has all of that in common.
        num_others (`int`): number of further objects, each with a noun of a family that no other object has.
        relation (`str`, *optional*): one of `RELATIONS`, in which the first of the further objects stand.
        num_decoys (`int`): objects that share a part of what the first group has in common, if it is two things.
    """
    for _ in range(30):
        scene = _draw_things(rng, background, groups, num_others, relation, num_decoys)
        if _place_all(rng, scene, relation):
            return scene
        num_decoys = max(0, num_decoys - 1)
    raise AssertionError(f"There is no room for groups of {[number for _, number in groups]} and {num_others} others.")


def _draw_things(
    rng: random.Random,
    background: Background,
    groups: Sequence[tuple[tuple[str, ...], int]],
    num_others: int,
    relation: str | None,
    num_decoys: int,
) -> Scene:
    excluded = list_look_alikes(background) | set(CONTAINERS)
    total = num_others + num_decoys + sum(number for _, number in groups)
    needs_pattern = any("pattern" in names for names, _ in groups)
    outlines = load_outlines()
    countable = {
        o.noun for o in outlines.values() if o.fill < MIN_GROUP_FILL or (needs_pattern and not o.takes_pattern)
    }
    group_nouns = draw_nouns(rng, len(groups), excluded | countable)
    families = {outlines[noun].family for noun in group_nouns}
    colors = rng.sample([color for color in COLORS if color not in NEUTRAL], len(groups))
    patterns = rng.sample(PATTERNS[1:], len(groups))
    commons = [
        {name: {"noun": noun, "color": color, "pattern": pattern}[name] for name in names}
        for (names, _), noun, color, pattern in zip(groups, group_nouns, colors, patterns, strict=True)
    ]
    nouns = draw_nouns(rng, num_others, excluded | (countable if needs_pattern else set()), families)
    others = [draw_object(rng, noun, draw_size(rng, total)) for noun in nouns]
    scene = Scene(background, groups=commons)
    if relation is not None:
        _prepare_relation(rng, scene, others, relation)
    things = list(others)
    for common, (_, number) in zip(commons, groups, strict=True):
        things += [_draw_member(rng, common, excluded | countable, families, total) for _ in range(number)]
    if groups and len(commons[0]) > 1:
        things += [_draw_decoy(rng, commons[0], total) for _ in range(num_decoys)]
    for index, thing in enumerate(things):
        if index < num_others + sum(number for _, number in groups):
            own = [common for common in commons if thing.matches(common)]
            while (index < num_others and own) or len(own) > 1:
                _recolor(rng, thing)
                own = [common for common in commons if thing.matches(common)]
    scene.objects = things
    return scene


def _draw_member(
    rng: random.Random, common: dict[str, str], excluded: set[str], families: set[str], total: int
) -> SceneObject:
    attributes = {name: value for name, value in common.items() if name != "noun"}
    noun = common.get("noun") or draw_nouns(rng, 1, excluded, families)[0]
    return draw_object(rng, noun, draw_size(rng, total), **attributes)


def _draw_decoy(rng: random.Random, common: dict[str, str], total: int) -> SceneObject:
    """Draw an object that has the noun of a group, but another color or pattern."""
    while True:
        thing = draw_object(rng, common["noun"], draw_size(rng, total))
        if not thing.matches(common):
            return thing


def _recolor(rng: random.Random, thing: SceneObject):
    fresh = draw_object(rng, thing.noun, thing.size)
    thing.color, thing.rgb, thing.pattern = fresh.color, fresh.rgb, fresh.pattern


def _prepare_relation(rng: random.Random, scene: Scene, others: list[SceneObject], relation: str):
    """Give the first of the further objects sizes that fit the relation, and note it in the scene."""
    if relation == "inside":
        look_alikes = list_look_alikes(scene.background)
        container = draw_object(rng, rng.choice([noun for noun in CONTAINERS if noun not in look_alikes]), "large")
        container.scale = round(rng.uniform(*CONTAINER_SCALE), 4)
        others[1] = container
        others[0].size, others[0].scale = "small", round(rng.uniform(*SIZES["small"]), 4)
    elif relation == "between":
        for thing in others[:3]:
            thing.size, thing.scale = "small", round(rng.uniform(*SIZES["small"]), 4)
    elif relation == "behind":
        for thing in others[:2]:
            if thing.size == "small":
                thing.size, thing.scale = "medium", round(rng.uniform(*SIZES["medium"]), 4)
    scene.relations = [[relation, *range(3 if relation == "between" else 2)]]


def _place_all(rng: random.Random, scene: Scene, relation: str | None) -> bool:
    taken: list[Circle] = []
    related = len(scene.relations[0]) - 1 if relation else 0
    if relation and not place_relation(rng, relation, scene.objects[:related], taken):
        return False
    return place_apart(rng, scene.objects[related:], taken)
