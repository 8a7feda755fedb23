"""Two images, left and right, that differ in one thing or a few."""

import random

from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.questions import (
    Fact,
    add_short_hint,
    ask_description,
    open_colour,
    open_shape,
    yes_no_fact,
)
from fusion_vlm.small_model.grammar.scene import (
    CHANGES,
    COLOURS,
    GRID,
    MAX_COUNT,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    build_scene,
    capitalize,
    describe_scene,
    draw_background,
    draw_evenly,
    jitter,
    join,
    with_article,
    write_caption,
)
from fusion_vlm.synthesis.sample import Sample, Turn


LEFT_IMAGE, RIGHT_IMAGE = "Left image: ", "Right image: "


def describe_sides(left: Scene, right: Scene) -> tuple[str, str]:
    """Return the caption and the description of two scenes beside each other."""
    caption = f"{LEFT_IMAGE}{write_caption(left)}. {RIGHT_IMAGE}{write_caption(right)}"
    return caption, f"{LEFT_IMAGE}{describe_scene(left)} {RIGHT_IMAGE}{describe_scene(right)}"


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build two scenes that differ in one of `CHANGES`; in `contrast_long`, half of them differ in two."""
    scene = build_scene(rng, draw_background(rng), num_others=rng.randint(3, 5))
    changes = [rng.choice(CHANGES)]
    if sample.kind == "contrast_long" and rng.random() < 0.5:
        changes.append(rng.choice([change for change in CHANGES if change not in changes]))
    changed = Scene.from_dict(scene.to_dict())
    # Each change is of another object, so that each object can be named by what has stayed the same.
    for name, index in zip(changes, rng.sample(range(len(scene.objects)), len(changes)), strict=True):
        _change(rng, changed, name, index, scene.objects + changed.objects)
    return rng.sample([scene, changed], 2)


def _change(rng: random.Random, scene: Scene, name: str, index: int, known: list[SceneObject]):
    """Change a scene in one of `CHANGES`. New values differ from those of all objects in `known`."""
    thing = scene.objects[index]
    cells = {(int(other.x * GRID), int(other.y * GRID)) for other in known}
    free = [(column, row) for column in range(GRID) for row in range(GRID) if (column, row) not in cells]
    unused = {
        "colour": [colour for colour in COLOURS if colour not in {other.colour for other in known}],
        "shape": [shape for shape in SHAPES if shape not in {other.shape for other in known}],
        "size": [size for size in SIZES if size != thing.size],
    }
    if name in unused:
        setattr(thing, name, rng.choice(unused[name]))
    elif name == "position":
        thing.x, thing.y = (jitter(rng, place) for place in rng.choice(free))
    elif name == "number":
        number = rng.randint(1, MAX_COUNT - len(scene.objects))
        for shape, colour, (column, row) in zip(
            rng.sample(unused["shape"], number),
            rng.sample(unused["colour"], number),
            rng.sample(free, number),
            strict=True,
        ):
            size, x, y = rng.choice(list(SIZES)), jitter(rng, column), jitter(rng, row)
            scene.objects.append(SceneObject(shape, colour, size, x, y))
    else:
        scene.background = rng.choice([place for place in PLACES if place != scene.background])


def _ask_short(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Ask what differs, or whether one thing differs; then ask about one of the images."""
    return add_short_hint([_compare(sample, scenes, rng).short(), _ask_side(scenes, rng).short()])


def _ask_long(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    facts = [_compare(sample, scenes, rng), _ask_side(scenes, rng)]
    return [fact.long() for fact in facts] + ask_description(sample, rng)


def _compare(sample: Sample, scenes: list[Scene], rng: random.Random) -> Fact:
    differences = _differences(*scenes)
    changed = [change for change in CHANGES if any(name == change for name, _ in differences)]
    form = draw_evenly(sample, "form", 4)
    if form < 2:
        question = rng.choice(
            (
                "What differs between the two images",
                "What is the difference between the left and the right image",
                "What has changed from the left image to the right one",
            )
        )
        if sample.kind == "contrast_short":
            question += f": {', '.join(CHANGES[:-1])} or {CHANGES[-1]}"
        sentence = " ".join(f"{capitalize(_compare_one(name, index, scenes))}." for name, index in differences)
        return Fact(f"{question}?", join(changed), sentence, "difference")
    same = form == 2
    change = rng.choice([change for change in CHANGES if (change in changed) != same])
    index = rng.choice(_candidates(change, differences, scenes))
    return yes_no_fact(_ask_whether_same(rng, change, index, scenes), same, _compare_one(change, index, scenes) + ".")


def _differences(left: Scene, right: Scene) -> list[tuple[str, int | None]]:
    """Find the `CHANGES` between two scenes, each with the index of the object or None. Added objects come last."""
    found = []
    for index, (one, other) in enumerate(zip(left.objects, right.objects, strict=False)):
        found += [(name, index) for name in ("colour", "shape", "size") if getattr(one, name) != getattr(other, name)]
        found += [("position", index)] * ((one.x, one.y) != (other.x, other.y))
    found += [("number", None)] * (len(left.objects) != len(right.objects))
    return found + [("background", None)] * (left.background != right.background)


def _candidates(change: str, differences: list[tuple[str, int | None]], scenes: list[Scene]) -> list[int | None]:
    """Return the objects to ask about: those that differ in `change`, or if none does, those that can be named."""
    if change in ("number", "background"):
        return [None]
    changed = [index for name, index in differences if name == change]
    if changed:
        return changed
    # The name has to be right in both images.
    named_by = "colour" if change == "shape" else "shape"
    return [
        index
        for index, (one, other) in enumerate(zip(*(scene.objects for scene in scenes), strict=False))
        if getattr(one, named_by) == getattr(other, named_by)
    ]


def _ask_whether_same(rng: random.Random, change: str, index: int | None, scenes: list[Scene]) -> str:
    if change == "number":
        return rng.choice(
            ("Do both images show the same number of objects?", "Is the number of objects the same in both images?")
        )
    if change == "background":
        return rng.choice(("Do both images have the same background?", "Is the background the same in both images?"))
    name = _name_in_both(change, scenes[0].objects[index])
    return rng.choice(
        (f"Does {name} have the same {change} in both images?", f"Is the {change} of {name} the same in both images?")
    )


def _name_in_both(change: str, thing: SceneObject) -> str:
    return f"the {thing.colour} object" if change == "shape" else f"the {thing.shape}"


def _compare_one(change: str, index: int | None, scenes: list[Scene]) -> str:
    """Say what one thing is in the left and in the right image, or in both, without a full stop."""
    if change == "number":
        subject, values = "the number of objects", [NUMBERS[len(scene.objects)] for scene in scenes]
    elif change == "background":
        subject = "the background"
        values = [scene.background if scene.background in PLACES else f"plain {scene.background}" for scene in scenes]
    else:
        things = [scene.objects[index] for scene in scenes]
        subject = _name_in_both(change, things[0])
        values = [with_article(thing.shape) if change == "shape" else getattr(thing, change) for thing in things]
    if values[0] == values[1]:
        return f"{subject} is {values[0]} in both images"
    if change == "position":
        return f"{subject} is {values[0]} of the left image and {values[1]} of the right image"
    return f"{subject} is {values[0]} in the left image and {values[1]} in the right image"


def _ask_side(scenes: list[Scene], rng: random.Random) -> Fact:
    """Ask about an object that is the same in both images, so that the first turn does not give the answer away."""
    changed = {index for _, index in _differences(*scenes)}
    side = rng.randrange(2)
    thing = rng.choice([thing for index, thing in enumerate(scenes[side].objects) if index not in changed])
    return rng.choice((open_colour, open_shape))(rng, thing, f" in the {('left', 'right')[side]} image")


KINDS = [
    Kind("contrast_short", _build_scenes, _ask_short),
    Kind("contrast_long", _build_scenes, _ask_long),
]
