"""Questions about numbers, the place in the background and the time of day."""

import random

from fusion_vlm.synthesis.scenes.backgrounds import PLACES, TIMES
from fusion_vlm.synthesis.scenes.english import capitalize, count_noun, list_adjectives, name_group, say
from fusion_vlm.synthesis.scenes.facts import Fact, make_fact, make_yes_no, with_capitals
from fusion_vlm.synthesis.scenes.indoors import INDOORS
from fusion_vlm.synthesis.scenes.scene import MAX_COUNT
from fusion_vlm.synthesis.scenes.view import View


COUNTS = tuple(str(number) for number in range(1, MAX_COUNT + 1))
DURING = {"day": "during the day", "sunset": "at sunset", "night": "at night"}


def ask_count(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the number of objects in the first group."""
    if not view.scene.groups:
        return None
    group = view.scene.groups[0]
    number = len(view.scene.members(group))
    counted = count_noun(number, list_adjectives(group), group.get("noun", "object"))
    words = {"things": name_group(group), "counted": counted, "are": "is" if number == 1 else "are"}
    sentence = capitalize(say(rng, "count.say", **words))
    asks = ("count", *sorted(group.items()))
    if truth is None:
        return Fact(say(rng, "count.open", **words), str(number), sentence, "count", asks, frozenset(), COUNTS)
    claimed = number if truth else rng.choice([other for other in range(1, MAX_COUNT + 1) if other != number])
    words |= {"number": str(claimed), "claimed": f"{claimed} {name_group(group, plural=claimed != 1)}"}
    words["are"] = "is" if claimed == 1 else "are"
    return make_yes_no(rng, "count", words, truth, sentence, asks)


def say_before(place: str) -> str:
    """Return the preposition of objects and a place in the background."""
    return "in" if place in INDOORS else "in front of"


def ask_place(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the place in the background."""
    background = view.scene.background
    if not background.is_place:
        return None
    words = {"place": background.name, "before": say_before(background.name)}
    if truth is None:
        return make_fact(rng, "place", words, background.name, "scene", ("place",), frozenset({("indoors",)}), PLACES)
    claimed = background.name if truth else rng.choice([place for place in PLACES if place != background.name])
    sentence = say(rng, "place.say", **with_capitals(words))
    return make_yes_no(
        rng,
        "place",
        {"place": claimed, "before": say_before(claimed)},
        truth,
        sentence,
        ("place",),
        frozenset({("indoors",)}),
    )


def ask_time(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask for the time of day in a place outdoors."""
    time = view.scene.background.time
    if time is None or truth is not None:
        return None
    tells = frozenset({("indoors",)})
    return make_fact(rng, "time", {"time": time, "during": DURING[time]}, time, "time", ("time",), tells, TIMES)


def ask_indoors(rng: random.Random, view: View, truth: bool | None) -> Fact | None:
    """Ask whether the place is indoors or outdoors."""
    background = view.scene.background
    if not background.is_place or truth is not None or background.name in ("outer space", "the bottom of the sea"):
        return None
    side = "indoors" if background.name in INDOORS else "outdoors"
    words = {"side": side, "place": background.name}
    return make_fact(rng, "indoors", words, side, "indoors", ("indoors",), frozenset({("place",)}))
