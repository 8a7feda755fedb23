"""Questions about two or more objects: direction, nearness, order, size, color in common."""

import random
from dataclasses import dataclass
from itertools import permutations

from fusion_vlm.synthesis.scenes.ask_objects import offer_nouns
from fusion_vlm.synthesis.scenes.colors import COLORS
from fusion_vlm.synthesis.scenes.english import capitalize, say, with_article
from fusion_vlm.synthesis.scenes.facts import Fact, make_fact, make_yes_no, with_capitals
from fusion_vlm.synthesis.scenes.view import DIRECTIONS, Name, View


OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
EXTREMES = {
    "leftmost": "farthest to the left",
    "rightmost": "farthest to the right",
    "highest": "closest to the top",
    "lowest": "closest to the bottom",
    "largest": "the largest",
    "smallest": "the smallest",
}


def _draw_pair(rng: random.Random, view: View, fits) -> tuple[int, int, Name, Name] | None:
    """Draw an ordered pair of objects that fits, with a name for each."""
    pairs = [pair for pair in permutations(view.singles, 2) if fits(*pair)]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    names = [view.name(rng, index) for index in (first, second)]
    return None if None in names else (first, second, *names)


def ask_direction(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the direction between two objects."""
    found = _draw_pair(rng, view, lambda one, other: view.find_direction(one, other) is not None)
    if found is None:
        return None
    first, second, name, other = found
    direction = view.find_direction(first, second)
    words = {"a": name.text, "b": other.text, "where": DIRECTIONS[direction]}
    asks, tells = ("direction", first, second), name.tells | other.tells | {("direction", second, first)}
    if truth is None:
        return make_fact(rng, "direction", words, direction, "spatial", asks, tells, tuple(DIRECTIONS))
    claimed = direction if truth else OPPOSITES[direction]
    sentence = say(rng, "direction.say", **with_capitals(words))
    return make_yes_no(rng, "direction", words | {"where": DIRECTIONS[claimed]}, truth, sentence, asks, tells)


def _name_noun(view: View, index: int) -> str:
    return f"the {view[index].noun}"


def ask_nearest(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask which object is nearest to another."""
    found = [(index, view.find_nearest(index)) for index in view.singles]
    found = [(index, nearest) for index, nearest in found if nearest in view.singles]
    if not found:
        return None
    index, nearest = rng.choice(found)
    name = view.name(rng, index)
    if name is None:
        return None
    words = {"a": name.text, "b": _name_noun(view, nearest)}
    asks, tells = ("nearest", index), name.tells | {("noun", nearest)}
    if truth is None:
        # The answer names the object, so earlier turns must not have told what is near.
        return make_fact(
            rng, "nearest", words, view[nearest].noun, "object", asks, tells, offer_nouns(rng, view, nearest)
        )
    others = [other for other in view.singles if other not in (index, nearest)]
    if not others:
        return None
    claimed = nearest if truth else rng.choice(others)
    sentence = say(rng, "nearest.say", **with_capitals(words))
    return make_yes_no(rng, "nearest", words | {"b": _name_noun(view, claimed)}, truth, sentence, asks, tells)


def _find_relation(view: View, name: str) -> list[int] | None:
    return next((relation[1:] for relation in view.scene.relations if relation[0] == name), None)


def ask_between(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask which object is between two others."""
    found = _find_relation(view, "between")
    if found is None or not set(found) <= set(view.singles):
        return None
    middle, *ends = found
    ends = rng.sample(ends, 2)
    words = dict(zip("abc", (_name_noun(view, index) for index in (*ends, middle)), strict=True))
    words["c2"] = with_article(view[middle].noun)
    asks, tells = ("between", *sorted(ends)), frozenset(("noun", index) for index in found)
    if truth is None:
        return make_fact(
            rng, "between", words, view[middle].noun, "object", asks, tells, offer_nouns(rng, view, middle)
        )
    others = [index for index in view.singles if index not in found]
    if not others:
        return None
    claimed = middle if truth else rng.choice(others)
    sentence = say(rng, "between.say", **with_capitals(words))
    return make_yes_no(rng, "between", words | {"c": _name_noun(view, claimed)}, truth, sentence, asks, tells)


def ask_related(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask what hides, contains or touches an object."""
    name = next((n for n in ("behind", "inside", "touching") if _find_relation(view, n)), None)
    if name is None:
        return None
    first, second = _find_relation(view, name)
    if not {first, second} <= set(view.singles):
        return None
    topic = {"behind": "front", "inside": "inside", "touching": "touching"}[name]
    if name == "behind":
        subject, reference = second, first
    elif name == "inside":
        subject, reference = first, second
    else:
        subject, reference = rng.sample((first, second), 2)
    words = {"a": _name_noun(view, reference), "b": _name_noun(view, subject), "b2": with_article(view[subject].noun)}
    tells = frozenset({("noun", first), ("noun", second), ("related",)})
    if truth is None:
        choices = offer_nouns(rng, view, subject)
        if name == "behind" and rng.random() < 0.4:
            question = say(rng, "hidden.open")
            sentence = capitalize(say(rng, "front.say", **with_capitals(words)))
            noun = view[reference].noun
            return Fact(question, noun, sentence, "object", ("related",), tells, offer_nouns(rng, view, reference))
        return make_fact(rng, topic, words, view[subject].noun, "object", ("related",), tells, choices)
    others = [index for index in view.singles if index not in (first, second)]
    if not others:
        return None
    sentence = say(rng, f"{topic}.say", **with_capitals(words))
    claimed = words if truth else words | {"b": _name_noun(view, rng.choice(others))}
    return make_yes_no(rng, topic, claimed, truth, sentence, ("related",), tells)


def ask_larger(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask which of two objects is larger, or smaller."""
    found = _draw_pair(rng, view, lambda one, other: view.is_larger(one, other) or view.is_larger(other, one))
    if found is None or set(found[:2]) & {*view.behind, *view.nested}:
        return None
    first, second, name, other = found
    larger = rng.random() < 0.5
    more, room, extent = ("larger", "more", "the larger") if larger else ("smaller", "less", "the smaller")
    first_is = view.is_larger(first, second) == larger
    words = {"a": name.text, "b": other.text, "more": more, "room": room, "extent": extent}
    words |= {"extent2": extent.replace("the ", "a "), "c": name.text if first_is else other.text}
    words["d"] = other.text if first_is else name.text
    asks, tells = ("larger", *sorted((first, second))), name.tells | other.tells
    if truth is None:
        answer = words["c"].removeprefix("the ")
        return make_fact(rng, "larger", words, answer, "comparison", asks, tells)
    if truth != first_is:
        words |= {"a": other.text, "b": name.text}
    sentence = say(rng, "larger.say", **with_capitals(words))
    return make_yes_no(rng, "larger", words, truth, sentence, asks, tells)


def ask_extreme(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask which object is farthest to a side, or the largest or smallest."""
    found = {name: index for name, index in view.find_extremes().items() if index in view.singles}
    if truth is not None or not found:
        return None
    superlative = rng.choice(sorted(found))
    index = found[superlative]
    words = {"a": _name_noun(view, index), "superlative": superlative, "most": EXTREMES[superlative]}
    asks, tells = ("extreme", superlative), frozenset({("noun", index)})
    return make_fact(rng, "extreme", words, view[index].noun, "object", asks, tells, offer_nouns(rng, view, index))


def ask_same_color(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask which object has the color of another, or whether two have the same color."""
    colors = {index: view[index].color for index in view.singles}
    every = [thing.color for thing in view.scene.objects]
    same = [pair for pair in permutations(view.singles, 2) if colors[pair[0]] == colors[pair[1]]]
    if truth is None:
        same = [pair for pair in same if every.count(colors[pair[0]]) == 2]
    unlike = [pair for pair in permutations(view.singles, 2) if colors[pair[0]] != colors[pair[1]]]
    if not same or not unlike:
        return None
    first, second = rng.choice(unlike if truth is False else same)
    words = {"a": _name_noun(view, first), "b": _name_noun(view, second), "color": colors[first]}
    tells = frozenset({("noun", first), ("noun", second), ("color", first), ("color", second)})
    asks = ("same color", *sorted((first, second)))
    if truth is None:
        choices = offer_nouns(rng, view, second)
        fact = make_fact(rng, "same", words, view[second].noun, "object", asks, tells, choices)
    else:
        both = say(rng, "same.say", **with_capitals(words))
        sentence = both if truth else f"{words['a']} is {colors[first]} and {words['b']} is {colors[second]}."
        fact = make_yes_no(rng, "same", words, truth, sentence, asks, tells)
    fact.also = frozenset({("color", first), ("color", second)})
    return fact


@dataclass(frozen=True)
class Step:
    """
    An object that is named by a relation.

    Args:
        index (`int`): the object.
        phrase (`str`): its name, such as `the object nearest to {other}`; of extremes, without `{other}`.
        other (`int`, *optional*): the object that it stands in relation to.
    """

    index: int
    phrase: str
    other: int | None = None


def find_steps(rng: random.Random, view: View) -> list[Step]:
    """Find the single objects that a relation names clearly."""
    steps = []
    for index in view.singles:
        nearest = view.find_nearest(index)
        if nearest is not None:
            steps.append(Step(nearest, f"the object {rng.choice(('nearest', 'closest'))} to {{other}}", index))
    for name, index in view.find_extremes().items():
        steps.append(Step(index, f"the {name} object"))
    phrases = {"inside": "the object inside", "touching": "the object that touches", "behind": "the object behind"}
    for name, first, *others in view.scene.relations:
        if name in phrases:
            steps.append(Step(first, f"{phrases[name]} {{other}}", others[0]))
    return [step for step in steps if {step.index, step.other} <= {None, *view.singles}]


def ask_color_by_relation(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the color of an object that is named by a relation: a question of two steps."""
    steps = find_steps(rng, view)
    if truth is not None or not steps:
        return None
    step = rng.choice(steps)
    tells = frozenset() if step.other is None else frozenset({("noun", step.other)})
    phrase = step.phrase.format(other="" if step.other is None else _name_noun(view, step.other))
    words = {"a": phrase, "color": view[step.index].color}
    asks = ("color", step.index)
    return make_fact(rng, "color", words, view[step.index].color, "colour", asks, tells, tuple(COLORS))
