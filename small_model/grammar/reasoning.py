"""Questions that need a step of thought: which of two groups is larger, and which object is the odd one out."""

import random

from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.scene import (
    NUMBERS,
    Scene,
    build_scene,
    capitalize,
    counted,
    draw_count,
    draw_evenly,
    draw_plain,
    group_name,
    join,
    plural,
    with_article,
)
from fusion_vlm.synthesis.sample import Sample, Turn


# Forms of the question. A comparison is answered by yes, by no or by a number.
COMPARE_YES, COMPARE_NO, COMPARE_NUMBER, ODD_ONE_OUT = range(4)


def _draw_form(sample: Sample) -> int:
    """Draw the form of the question. Scene and question are built for one form, so both draw it here."""
    return draw_evenly(sample, "form", 4)


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build two groups to compare, or a group of equal objects and one that differs from them in one thing."""
    if _draw_form(sample) == ODD_ONE_OUT:
        scene = build_scene(rng, draw_plain(rng), [(("shape", "colour"), rng.randint(3, 6))], num_others=1)
        same = rng.choice(("shape", "colour"))
        setattr(scene.objects[0], same, scene.groups[0][same])
        return [scene]
    difference = draw_count(sample)
    fewer = rng.randint(1, (9 - difference) // 2)
    numbers = rng.sample([fewer, fewer + difference], 2)
    common = rng.choice([("shape",), ("colour",)])
    return [build_scene(rng, draw_plain(rng), [(common, number) for number in numbers])]


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    form = _draw_form(sample)
    return [_find_odd_one(scenes[0], rng) if form == ODD_ONE_OUT else _compare_groups(scenes[0], rng, form)]


def _compare_groups(scene: Scene, rng: random.Random, form: int) -> Turn:
    groups = sorted(scene.groups, key=lambda group: len(scene.members(group)), reverse=True)
    numbers = [len(scene.members(group)) for group in groups]
    names = [group_name(group) for group in groups]
    many, few = numbers
    counts = join([counted(number, name) for number, name in zip(numbers, names, strict=True)])
    counts = f"there {'is' if many == 1 else 'are'} {counts}"
    if form == COMPARE_NUMBER:
        question = rng.choice(
            (
                f"How many more {plural(names[0])} than {plural(names[1])} are there? Explain your answer.",
                f"By how many do the {plural(names[0])} outnumber the {plural(names[1])}? Show your reasoning.",
            )
        )
        answer = f"{capitalize(counts)}. {many} - {few} = {many - few}, so the answer is {many - few}."
        return Turn(question, answer, "count")
    compared = rng.choice(("more", "fewer"))
    # The group that is named first: in a true claim of "more", the larger one.
    first = 0 if (compared == "more") == (form == COMPARE_YES) else 1
    claim = f"{compared} {plural(names[first])} than {plural(names[1 - first])}"
    question = rng.choice(
        (f"Are there {claim}? Explain your answer.", f"Does the picture show {claim}? Why, or why not?")
    )
    than = f"{NUMBERS[numbers[first]]} is {'more' if first == 0 else 'fewer'} than {NUMBERS[numbers[1 - first]]}"
    return Turn(question, f"{'Yes' if form == COMPARE_YES else 'No'}: {counts}, and {than}.", "yes_no")


def _find_odd_one(scene: Scene, rng: random.Random) -> Turn:
    (odd,) = scene.others()
    alike = scene.members(scene.groups[0])
    attribute = "shape" if odd.shape != alike[0].shape else "colour"
    question = rng.choice(
        (
            "Which object is the odd one out, and why?",
            "One object does not belong with the others. Which is it, and why?",
            "Find the object that differs from all others and explain how.",
        )
    )
    answer = (
        f"There are {counted(len(alike), alike[0].name)} and {with_article(odd.name)}. All but one have the same"
        f" {attribute}, so the odd one out is the {odd.name} {odd.position}."
    )
    return Turn(question, answer, attribute)


KINDS = [Kind("reasoning", _build_scenes, _ask)]
