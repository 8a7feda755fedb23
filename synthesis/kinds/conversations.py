"""Conversations about one image: short ones in single words or phrases, long ones in sentences."""

import random

from fusion_vlm.synthesis.kinds.kind import LONG_CONVERSATION, SHORT_CONVERSATION, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.backgrounds import draw_background
from fusion_vlm.synthesis.scenes.build import RELATIONS, build_scene
from fusion_vlm.synthesis.scenes.english import say
from fusion_vlm.synthesis.scenes.scene import MAX_COUNT, Scene, draw_evenly
from fusion_vlm.synthesis.scenes.topics import add_hint, draw_facts
from fusion_vlm.synthesis.scenes.view import View


MAX_OBJECTS = 15
# What the objects of a group have in common. The last two need a background in which nothing passes for an object.
COMMON = (("noun",), ("noun", "color"), ("noun", "pattern"))
GENERIC = (("color",), ("pattern",))


def build_conversation_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """
    Build a scene of a group to count, and of objects that are unlike the group and each other.

    The number of the other objects is drawn by itself, so that the number of all does not tell that of the group.
    """
    background = draw_background(rng)
    common = rng.choice(COMMON if background.is_place else (*COMMON, *GENERIC))
    number = 1 + draw_evenly(sample, "count", MAX_COUNT)
    num_others = rng.randint(3, max(3, min(6, MAX_OBJECTS - number)))
    num_decoys = rng.randint(0, max(0, min(3, MAX_OBJECTS - number - num_others))) if len(common) == 2 else 0
    relation = rng.choice((None, *RELATIONS))
    return [build_scene(rng, background, [(common, number)], num_others, relation, num_decoys)]


def _ask_short(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write two to four turns, one of them with yes or no."""
    truths = _draw_truths(sample, rng, rng.choice((2, 3, 3, 4)), ("yes_no",))
    return add_hint(rng, [fact.short() for fact in draw_facts(rng, View(scenes[0]), truths)])


def _ask_long(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write four to six turns in sentences, two of them with yes or no. The last one may be the description."""
    truths = _draw_truths(sample, rng, rng.randint(4, 5), ("yes_no", "other_yes_no"))
    turns = [fact.long() for fact in draw_facts(rng, View(scenes[0]), truths)]
    return turns + ask_description(sample, rng) * rng.randint(0, 1)


def ask_description(sample: Sample, rng: random.Random) -> list[Turn]:
    """Ask for the description of the sample, in one turn."""
    return [Turn(say(rng, "describe"), sample.description, "caption")]


def _draw_truths(sample: Sample, rng: random.Random, number: int, names: tuple[str, ...]) -> list[bool | None]:
    """Draw which turns are answered by yes or no, and these answers; None for the other turns."""
    truths: list[bool | None] = [None] * number
    for index, name in zip(rng.sample(range(number), len(names)), names, strict=True):
        truths[index] = bool(draw_evenly(sample, name, 2))
    return truths


KINDS = [
    Kind("short_conversation", build_conversation_scenes, _ask_short, SHORT_CONVERSATION, None, num_answer_tokens=120),
    Kind("long_conversation", build_conversation_scenes, _ask_long, LONG_CONVERSATION, None, num_answer_tokens=300),
]
