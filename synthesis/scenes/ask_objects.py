"""Questions about one object: its color, pattern, name, place, direction and whether there is one of a kind."""

import random

from fusion_vlm.synthesis.scenes.colors import COLORS
from fusion_vlm.synthesis.scenes.english import list_adjectives, say, with_article
from fusion_vlm.synthesis.scenes.facts import Fact, make_fact, make_yes_no, with_capitals
from fusion_vlm.synthesis.scenes.outlines import load_outlines
from fusion_vlm.synthesis.scenes.scene import PATTERNS
from fusion_vlm.synthesis.scenes.view import ZONES, View


ZONE_NAMES = tuple(zone for row in ZONES for zone in row)
SIDES = ("left", "right")


def ask_color(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the color of an object."""
    if not view.singles:
        return None
    index = rng.choice(view.singles)
    name = view.name(rng, index, avoid=("color",))
    if name is None:
        return None
    color = view[index].color
    words = {"a": name.text, "color": color}
    if truth is None:
        return make_fact(rng, "color", words, color, "colour", ("color", index), name.tells, tuple(COLORS))
    claimed = color if truth else rng.choice([other for other in COLORS if other != color])
    sentence = say(rng, "color.say", **with_capitals(words))
    return make_yes_no(rng, "color", words | {"color": claimed}, truth, sentence, ("color", index), name.tells)


def ask_pattern(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the pattern of an object that has one."""
    indices = [index for index in view.singles if view[index].pattern != "plain"]
    if not indices:
        return None
    index = rng.choice(indices)
    name = view.name(rng, index, avoid=("pattern",))
    if name is None:
        return None
    pattern = view[index].pattern
    words = {"a": name.text, "pattern": pattern}
    if truth is None:
        return make_fact(rng, "pattern", words, pattern, "pattern", ("pattern", index), name.tells, PATTERNS[1:])
    claimed = pattern if truth else rng.choice([other for other in PATTERNS[1:] if other != pattern])
    sentence = say(rng, "pattern.say", **with_capitals(words))
    return make_yes_no(rng, "pattern", words | {"pattern": claimed}, truth, sentence, ("pattern", index), name.tells)


def ask_noun(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask what an object is that its color, its pattern or its place in the picture tells from all others."""
    named = {}
    for index in view.singles:
        name = view.name(rng, index, avoid=("noun",))
        if name is not None:
            named[index] = name.text, name.tells
    for extreme, index in view.find_extremes().items():
        if index in view.singles and extreme not in ("largest", "smallest"):
            named[index] = f"the {extreme} object", frozenset({("extreme", extreme)})
    if not named:
        return None
    index = rng.choice(sorted(named))
    text, tells = named[index]
    noun = view[index].noun
    words = {"a": text, "thing": with_article(noun)}
    if truth is None:
        return make_fact(rng, "noun", words, noun, "object", ("noun", index), tells, offer_nouns(rng, view, index))
    return None


def offer_nouns(rng: random.Random, view: View, index: int) -> tuple[str, ...]:
    """Return the noun of an object, and others of other families: half of them from the scene."""
    family = view[index].outline.family
    shown = {thing.noun for thing in view.scene.objects if thing.outline.family != family}
    absent = [name for name, outline in load_outlines().items() if outline.family != family and name not in shown]
    some = rng.sample(sorted(shown), min(2, len(shown)))
    return (view[index].noun, *some, *rng.sample(absent, 3))


def ask_exists(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask whether there is an object with a color, or a color and a pattern."""
    indices = view.singles
    if truth is None or not indices:
        return None
    index = rng.choice(indices)
    thing = view[index]
    attributes = {"color": thing.color}
    if thing.pattern != "plain" and rng.random() < 0.5:
        attributes["pattern"] = thing.pattern
    real = f"{list_adjectives(attributes)} {thing.noun}"
    claimed = dict(attributes, noun=thing.noun)
    if not truth:
        # Another color, another pattern, or another noun, which nothing in the scene has.
        changed = rng.choice(sorted(claimed))
        taken = {other.noun for other in view.scene.objects}
        families = {other.outline.family for other in view.scene.objects}
        if changed == "noun":
            free = [n for n, outline in load_outlines().items() if n not in taken and outline.family not in families]
            if "pattern" in claimed:
                free = [noun for noun in free if load_outlines()[noun].takes_pattern]
        else:
            free = [value for value in (COLORS if changed == "color" else PATTERNS[1:]) if value != claimed[changed]]
        claimed[changed] = rng.choice(free)
    asked = with_article(f"{list_adjectives(claimed)} {claimed['noun']}")
    sentence = f"there is {with_article(real)}."
    tells = frozenset((name, index) for name in (*attributes, "noun"))
    fact = make_yes_no(rng, "exists", {"thing": asked}, truth, sentence, ("color", index), tells)
    fact.also = tells
    return fact


def ask_position(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask in which of nine parts of the image an object is."""
    zones = {index: view.find_zone(index) for index in view.singles}
    indices = [index for index, zone in zones.items() if zone is not None]
    if not indices:
        return None
    index = rng.choice(indices)
    name = view.name(rng, index)
    zone = zones[index]
    if name is None:
        return None
    words = {"a": name.text, "where": zone}
    if truth is None:
        return make_fact(rng, "position", words, zone, "position", ("zone", index), name.tells, ZONE_NAMES)
    claimed = zone if truth else rng.choice([other for other in ZONE_NAMES if other != zone])
    sentence = say(rng, "position.say", **with_capitals(words))
    return make_yes_no(rng, "position", words | {"where": claimed}, truth, sentence, ("zone", index), name.tells)


def ask_facing(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask to which side an object looks."""
    indices = [index for index in view.singles if view[index].facing]
    if truth is not None or not indices:
        return None
    index = rng.choice(indices)
    name = view.name(rng, index)
    if name is None:
        return None
    side = view[index].facing
    words = {"a": name.text, "side": side}
    return make_fact(rng, "facing", words, side, "orientation", ("facing", index), name.tells)
