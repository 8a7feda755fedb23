"""Questions that need steps of thought: which group is larger, what is the odd one out, chains of relations."""

import random

from fusion_vlm.synthesis.kinds.kind import SHORT_CONVERSATION, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.ask_relations import Step, find_steps
from fusion_vlm.synthesis.scenes.backgrounds import draw_background, draw_surface
from fusion_vlm.synthesis.scenes.build import build_scene, draw_nouns, draw_object
from fusion_vlm.synthesis.scenes.colors import COLORS, NEUTRAL, jitter_color
from fusion_vlm.synthesis.scenes.english import (
    NUMBERS,
    capitalize,
    count_noun,
    join,
    list_adjectives,
    look,
    name_group,
    say,
    with_article,
)
from fusion_vlm.synthesis.scenes.scene import PATTERNS, Scene, draw_evenly
from fusion_vlm.synthesis.scenes.view import View


# Forms of the question. Comparisons of two groups are answered by yes, by no or by a number.
COMPARE_YES, COMPARE_NO, DIFFERENCE, SUM, ODD_ONE_OUT, CHAIN = range(6)
MAX_TOTAL = 15  # objects of two groups
COMMON = (("noun",), ("noun", "color"), ("noun", "pattern"))
ODD_TYPES = {"color": "colour", "noun": "object", "pattern": "pattern"}


def _draw_form(sample: Sample) -> int:
    """Draw the form of the question. Scene and question are built for one form, so both draw it here."""
    return draw_evenly(sample, "form", 6)


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build two groups to compare, a group and an exception, or single objects in clear relations."""
    form = _draw_form(sample)
    if form == ODD_ONE_OUT:
        return [_build_exception(rng)]
    if form == CHAIN:
        while True:
            scene = build_scene(rng, draw_surface(rng), num_others=rng.randint(4, 6))
            if _find_chains(random.Random(0), View(scene)):
                return [scene]
    difference = 1 + draw_evenly(sample, "difference", 9)
    fewer = rng.randint(1, (MAX_TOTAL - difference) // 2)
    numbers = rng.sample([fewer, fewer + difference], 2)
    background = draw_background(rng)
    common = rng.choice(COMMON if background.has_things else (*COMMON, ("color",), ("pattern",)))
    return [build_scene(rng, background, [(common, number) for number in numbers])]


def _build_exception(rng: random.Random) -> Scene:
    """Build a group of equal objects, and one that differs from them in one attribute; it is the first object."""
    scene = build_scene(rng, draw_surface(rng), [(("noun", "color", "pattern"), rng.randint(3, 8))], num_others=1)
    odd, alike = scene.objects[0], scene.objects[1]
    for thing in scene.objects[2:]:
        thing.rgb = list(alike.rgb)  # the ink of a pattern follows the shade, and two inks would be another odd one
    attribute = rng.choice(sorted(ODD_TYPES))
    noun, color, pattern = alike.noun, alike.color, alike.pattern
    if attribute == "noun":
        (noun,) = _draw_patterned_noun(rng, {alike.outline.family})
    elif attribute == "color":
        color = rng.choice([name for name in COLORS if name not in (color, *NEUTRAL)])
    else:
        pattern = rng.choice([name for name in PATTERNS if name != pattern])
    fresh = draw_object(rng, noun, "small", color=color, pattern=pattern)
    fresh.x, fresh.y = odd.x, odd.y
    # It takes the room of the object that was there, so it cannot be larger.
    fresh.scale = min(fresh.scale, round(fresh.scale * odd.radius / fresh.radius, 4))
    fresh.rgb = list(alike.rgb) if attribute != "color" else list(jitter_color(rng, color))
    scene.objects[0] = fresh
    return scene


def _draw_patterned_noun(rng: random.Random, families: set[str]) -> list[str]:
    while True:
        nouns = draw_nouns(rng, 1, set(), families)
        if draw_object(rng, nouns[0]).outline.takes_pattern:
            return nouns


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    form = _draw_form(sample)
    if form == ODD_ONE_OUT:
        return [_find_odd_one(scenes[0], rng)]
    if form == CHAIN:
        return [_follow_chain(scenes[0], rng)]
    return [_compare_groups(scenes[0], rng, form)]


def _compare_groups(scene: Scene, rng: random.Random, form: int) -> Turn:
    groups = sorted(scene.groups, key=lambda group: len(scene.members(group)), reverse=True)
    many, few = numbers = [len(scene.members(group)) for group in groups]
    names = [name_group(group) for group in groups]
    counted = [
        count_noun(number, list_adjectives(group), group.get("noun", "object"))
        for number, group in zip(numbers, groups, strict=True)
    ]
    counts = f"there are {join(rng.sample(counted, 2))}" if few > 1 else f"there are {join(counted)}"
    if form in (DIFFERENCE, SUM):
        words = {"things": names[0], "others": names[1], "Things": capitalize(names[0])}
        topic, sign, result = ("number", "-", many - few) if form == DIFFERENCE else ("sum", "+", many + few)
        question = f"{say(rng, f'compare.{topic}', **words)} {say(rng, 'explain.open')}"
        ending = rng.choice(("so the answer is", "and so the answer is", "which means that the answer is"))
        return Turn(question, f"{capitalize(counts)}. {many} {sign} {few} = {result}, {ending} {result}.", "count")
    more = rng.random() < 0.5
    # The group that is named first: in a true claim of "more", the larger one.
    first = 0 if more == (form == COMPARE_YES) else 1
    words = {
        "more": "more" if more else "fewer",
        "higher": rng.choice(("higher", "larger") if more else ("lower", "smaller")),
    }
    words |= {"things": names[first], "others": names[1 - first]}
    question = f"{say(rng, 'compare.ask', **words)} {say(rng, 'explain')}"
    than = f"{NUMBERS[numbers[first]]} is {'more' if first == 0 else 'fewer'} than {NUMBERS[numbers[1 - first]]}"
    return Turn(question, f"{'Yes' if form == COMPARE_YES else 'No'}: {counts}, and {than}.", "yes_no")


def _find_odd_one(scene: Scene, rng: random.Random) -> Turn:
    odd, *alike = scene.objects
    attribute = next(name for name in ODD_TYPES if getattr(odd, name) != getattr(alike[0], name))
    what = {"color": "color", "noun": "shape", "pattern": "pattern"}[attribute]
    names = [
        look(thing) if thing.pattern != "plain" or attribute != "pattern" else f"plain {look(thing)}"
        for thing in (odd, alike[0])
    ]
    group = names[1].removesuffix(alike[0].noun).strip()
    answer = (
        f"There are {count_noun(len(alike), group, alike[0].noun)} and {with_article(names[0])}. All but one have the"
        f" same {what}, so the odd one out is the {names[0]}."
    )
    return Turn(say(rng, "odd.open"), answer, "odd_one_out")


def _find_chains(rng: random.Random, view: View) -> list[tuple[Step, Step]]:
    """Find chains of two steps: the object that an extreme or a relation names, and the object in relation to it."""
    steps = find_steps(rng, view)
    chains = [(first, second) for first in steps for second in steps if second.other == first.index]
    return [(first, second) for first, second in chains if first.other not in (second.index, second.other)]


def _follow_chain(scene: Scene, rng: random.Random) -> Turn:
    """Ask for the color, or the kind, of the object at the end of a chain."""
    view = View(scene)
    first, second = rng.choice(_find_chains(rng, view))
    start = "" if first.other is None else f"the {view[first.other].noun}"
    phrase = first.phrase.format(other=start)
    middle, end = view[first.index], view[second.index]
    name = second.phrase.format(other=phrase)
    last = second.phrase.format(other=f"the {middle.noun}")
    steps = f"{capitalize(phrase)} is the {middle.noun}, and {last} is the {end.noun}"
    explain = say(rng, "explain.open")
    if rng.random() < 0.5:
        question = say(rng, "color.open", a=name, A=capitalize(name))
        return Turn(
            f"{question} {explain}", f"{steps}. The {end.noun} is {end.color}, so the answer is {end.color}.", "colour"
        )
    question = say(rng, "noun.open", a=name, A=capitalize(name))
    return Turn(f"{question} {explain}", f"{steps}, so the answer is {with_article(end.noun)}.", "object")


KINDS = [Kind("reasoning", _build_scenes, _ask, SHORT_CONVERSATION, None, num_answer_tokens=250)]
