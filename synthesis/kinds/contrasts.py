"""Two images, left and right, that differ in one thing or a few."""

import random
from dataclasses import replace

from fusion_vlm.synthesis.kinds.conversations import ask_description
from fusion_vlm.synthesis.kinds.kind import ONE_QUESTION, TWO_QUESTIONS, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.backgrounds import draw_background, list_look_alikes
from fusion_vlm.synthesis.scenes.build import build_scene, draw_nouns, draw_object
from fusion_vlm.synthesis.scenes.colors import COLORS, NEUTRAL
from fusion_vlm.synthesis.scenes.describe import describe_scene, name_background, name_third, write_caption
from fusion_vlm.synthesis.scenes.english import NUMBERS, capitalize, join, say, with_article
from fusion_vlm.synthesis.scenes.facts import Fact, make_fact
from fusion_vlm.synthesis.scenes.layout import MARGIN, draw_free_place
from fusion_vlm.synthesis.scenes.scene import PATTERNS, SIZES, Scene, SceneObject, draw_evenly
from fusion_vlm.synthesis.scenes.topics import add_hint


LEFT_IMAGE, RIGHT_IMAGE = "Left image: ", "Right image: "
PARAGRAPH = "\n\n"  # between the two descriptions that a language model writes
# In which two images may differ. "object" means that another object takes the place of one.
CHANGES = ("color", "pattern", "size", "position", "number", "background", "object")
CLOSED_CHANGES = CHANGES[:-1]  # which questions with yes or no ask about
MIN_RATIO = 1.3  # of the lengths of an object whose size changes
MIN_MOVE = 0.25  # distance of an object from its former place, as a share of the side
OPEN_FORMS, NUM_FORMS = 2, 4  # of the forms of the first question; the others are answered by no and by yes


def describe_sides(left: Scene, right: Scene) -> tuple[str, str]:
    """Return the caption and the description of two scenes beside each other."""
    caption = f"{LEFT_IMAGE}{write_caption(left)}. {RIGHT_IMAGE}{write_caption(right)}"
    return caption, f"{LEFT_IMAGE}{describe_scene(left)} {RIGHT_IMAGE}{describe_scene(right)}"


def join_sides(left: str, right: str) -> str:
    """Return the description of both images, from the two that a language model wrote."""
    return LEFT_IMAGE + left + PARAGRAPH + RIGHT_IMAGE + right


def split_sides(description: str) -> tuple[str, str]:
    """Return the descriptions of the left and of the right image, from the description that `join_sides` made."""
    left, _, right = description.removeprefix(LEFT_IMAGE).partition(PARAGRAPH + RIGHT_IMAGE)
    return left, right


def _draw_form(sample: Sample) -> int:
    """Draw the form of the first question: open, or answered by no (2) or yes (3)."""
    return draw_evenly(sample, "form", NUM_FORMS)


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build two scenes that differ in one of `CHANGES`; in `contrast_long`, half of them differ in two."""
    known = CHANGES if _draw_form(sample) < OPEN_FORMS else CLOSED_CHANGES
    while True:
        scene = build_scene(rng, draw_background(rng), num_others=rng.randint(3, 5))
        # A question about a pattern needs an object that has one, whether or not the pattern changes.
        possible = [change for change in known if change != "pattern" or _list_patterned(scene)]
        changes = [rng.choice(possible)]
        if sample.kind == "contrast_long" and rng.random() < 0.5:
            changes.append(rng.choice([change for change in possible if change not in changes]))
        changed = Scene.from_dict(scene.to_dict())
        # Each change is of another object, so that each object can be named by what has stayed the same.
        indices = rng.sample(range(len(scene.objects)), len(scene.objects))
        if all(_change(rng, changed, change, indices) for change in changes):
            return rng.sample([scene, changed], 2)


def _list_patterned(scene: Scene) -> list[int]:
    return [index for index, thing in enumerate(scene.objects) if thing.pattern != "plain"]


def _change(rng: random.Random, scene: Scene, change: str, indices: list[int]) -> bool:
    """Change a scene; take the object from `indices`. False if no object of these can be changed so."""
    if change == "background":
        nouns = {thing.noun for thing in scene.objects}
        while True:
            background = draw_background(rng)
            if background.name != scene.background.name and not nouns & list_look_alikes(background):
                scene.background = background
                return True
    if change == "number":
        return _add_objects(rng, scene)
    for index in list(indices):
        if _change_object(rng, scene, change, scene.objects[index]):
            indices.remove(index)
            return True
    return False


def _add_objects(rng: random.Random, scene: Scene) -> bool:
    families = {thing.outline.family for thing in scene.objects}
    for noun in draw_nouns(rng, rng.randint(1, 3), list_look_alikes(scene.background), families):
        thing = draw_object(rng, noun, "small")
        place = draw_free_place(rng, thing.radius, _list_circles(scene))
        if place is None:
            return False
        thing.x, thing.y = place
        scene.objects.append(thing)
    return True


def _list_circles(scene: Scene, without: SceneObject | None = None) -> list[tuple[float, float, float]]:
    return [(thing.x, thing.y, thing.radius) for thing in scene.objects if thing is not without]


def _change_object(rng: random.Random, scene: Scene, change: str, thing: SceneObject) -> bool:
    if change == "color":
        pool = [name for name in COLORS if name != thing.color and not (thing.pattern != "plain" and name in NEUTRAL)]
        fresh = draw_object(rng, thing.noun, thing.size, color=rng.choice(pool), pattern=thing.pattern)
        thing.color, thing.rgb = fresh.color, fresh.rgb
        return True
    if change == "pattern":
        if not thing.outline.takes_pattern or thing.color in NEUTRAL:
            return False
        thing.pattern = rng.choice([pattern for pattern in PATTERNS if pattern != thing.pattern])
        return True
    if change == "size":
        size = {"large": "small", "small": "large"}.get(thing.size) or rng.choice(("small", "large"))
        fresh = replace(thing, size=size, scale=round(rng.uniform(*SIZES[size]), 4))
        ratio = fresh.radius / thing.radius
        if 1 / MIN_RATIO < ratio < MIN_RATIO or (ratio > 1 and not _has_room(scene, fresh, thing)):
            return False
        thing.size, thing.scale = fresh.size, fresh.scale
        return True
    if change == "position":
        before = thing.x, thing.y
        for _ in range(20):
            place = draw_free_place(rng, thing.radius, _list_circles(scene, thing))
            if place and (place[0] - before[0]) ** 2 + (place[1] - before[1]) ** 2 >= MIN_MOVE**2:
                moved = replace(thing, x=place[0], y=place[1])
                if name_third(moved) != name_third(thing):
                    thing.x, thing.y = place
                    return True
        return False
    return _replace_object(rng, scene, thing)


def _has_room(scene: Scene, thing: SceneObject, former: SceneObject) -> bool:
    """Check whether an object has room in the place of a former one."""
    fits = all(thing.radius + MARGIN <= at <= 1 - thing.radius - MARGIN for at in (thing.x, thing.y))
    return fits and all(
        ((thing.x - x) ** 2 + (thing.y - y) ** 2) ** 0.5 > thing.radius + radius
        for x, y, radius in _list_circles(scene, former)
    )


def _replace_object(rng: random.Random, scene: Scene, thing: SceneObject) -> bool:
    """Put another object in the place of one, in its color and its pattern."""
    families = {other.outline.family for other in scene.objects}
    for noun in draw_nouns(rng, 30, list_look_alikes(scene.background), families):
        fresh = draw_object(rng, noun, thing.size, color=thing.color, pattern=thing.pattern)
        if fresh.outline.takes_pattern or thing.pattern == "plain":
            fresh.x, fresh.y, fresh.rgb, fresh.finish = thing.x, thing.y, thing.rgb, thing.finish
            if fresh.size == thing.size and _has_room(scene, fresh, thing):
                scene.objects[scene.objects.index(thing)] = fresh
                return True
    return False


def _ask_short(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Ask what differs, or whether one thing differs; then ask about one of the images."""
    return add_hint(rng, [_compare(sample, scenes, rng).short(), _ask_side(scenes, rng).short()])


def _ask_long(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    facts = [_compare(sample, scenes, rng), _ask_side(scenes, rng)]
    return [fact.long() for fact in facts] + ask_description(sample, rng)


def _compare(sample: Sample, scenes: list[Scene], rng: random.Random) -> Fact:
    differences = find_differences(*scenes)
    changed = [change for change in CHANGES if any(name == change for name, _ in differences)]
    form = _draw_form(sample)
    if form < OPEN_FORMS:
        question = say(rng, "difference.open")
        if sample.kind == "contrast_short":
            changes = join(rng.sample(CHANGES, len(CHANGES)), "or")
            question += f" {say(rng, 'difference.short', changes=changes)}"
        sentence = " ".join(f"{capitalize(_compare_one(name, index, scenes))}." for name, index in differences)
        return Fact(question, join(changed), sentence, "difference", ("difference",))
    same = form == NUM_FORMS - 1
    possible = [change for change in CLOSED_CHANGES if (change in changed) != same]
    possible = [change for change in possible if _list_candidates(change, differences, scenes)]
    change = rng.choice(possible)
    index = rng.choice(_list_candidates(change, differences, scenes))
    question = say(rng, "same_in_both.ask", what=_name_subject(change, index, scenes))
    answer = "Yes" if same else "No"
    return Fact(question, answer, f"{answer}, {_compare_one(change, index, scenes)}.", "yes_no", ("difference",))


def find_differences(left: Scene, right: Scene) -> list[tuple[str, int | None]]:
    """Find the `CHANGES` between two scenes, each with the index of the object or None. Added objects come last."""
    found = []
    for index, (one, other) in enumerate(zip(left.objects, right.objects, strict=False)):
        if one.noun != other.noun:
            found.append(("object", index))
            continue
        found += [(name, index) for name in ("color", "pattern", "size") if getattr(one, name) != getattr(other, name)]
        found += [("position", index)] * ((one.x, one.y) != (other.x, other.y))
    found += [("number", None)] * (len(left.objects) != len(right.objects))
    return found + [("background", None)] * (left.background != right.background)


def _list_candidates(change: str, differences: list[tuple[str, int | None]], scenes: list[Scene]) -> list[int | None]:
    """Return the objects to ask about: those that differ in `change`, or if none does, those that can be named."""
    if change in ("number", "background"):
        return [None]
    changed = [index for name, index in differences if name == change]
    if changed:
        return changed
    return [
        index
        for index, (one, other) in enumerate(zip(*(scene.objects for scene in scenes), strict=False))
        if one.noun == other.noun and (change != "pattern" or one.pattern != "plain")
    ]


def _name_subject(change: str, index: int | None, scenes: list[Scene]) -> str:
    if change == "number":
        return "the number of objects"
    return "the background" if change == "background" else f"the {change} of the {scenes[0].objects[index].noun}"


def _compare_one(change: str, index: int | None, scenes: list[Scene]) -> str:
    """Say what one thing is in the left and in the right image, or in both, without a period."""
    if change == "number":
        subject, values = "the number of objects", [NUMBERS[len(scene.objects)] for scene in scenes]
    elif change == "background":
        subject, values = "the background", [name_background(scene.background) for scene in scenes]
    elif change == "object":
        values = [with_article(scene.objects[index].noun) for scene in scenes]
        place = name_third(scenes[0].objects[index])
        return f"{place} there is {values[0]} in the left image, and {values[1]} in the right image"
    else:
        things = [scene.objects[index] for scene in scenes]
        subject = f"the {things[0].noun}"
        values = [name_third(thing) if change == "position" else getattr(thing, change) for thing in things]
    if values[0] == values[1]:
        return f"{subject} is {values[0]} {'of' if change == 'position' else 'in'} both images"
    word = "of" if change == "position" else "in"
    return f"{subject} is {values[0]} {word} the left image and {values[1]} {word} the right image"


def _ask_side(scenes: list[Scene], rng: random.Random) -> Fact:
    """Ask about an object that is the same in both images, so that the first turn does not give the answer away."""
    changed = {index for _, index in find_differences(*scenes)}
    side = rng.randrange(2)
    things = [thing for index, thing in enumerate(scenes[side].objects) if index not in changed]
    thing = rng.choice(things)
    name = f"the {thing.noun} in the {('left', 'right')[side]} image"
    index = scenes[side].objects.index(thing)
    if thing.pattern != "plain" and rng.random() < 0.4:
        words = {"a": name, "pattern": thing.pattern}
        return make_fact(rng, "pattern", words, thing.pattern, "pattern", ("pattern", index))
    return make_fact(rng, "color", {"a": name, "color": thing.color}, thing.color, "colour", ("color", index))


KINDS = [
    Kind("contrast_short", _build_scenes, _ask_short, TWO_QUESTIONS, "difference", 80, has_two_images=True),
    Kind("contrast_long", _build_scenes, _ask_long, ONE_QUESTION, "difference", 160, has_two_images=True),
]
