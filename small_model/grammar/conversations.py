"""Conversations about one image: short ones in single words or phrases, long ones in sentences."""

import random

from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.questions import Fact, add_short_hint, ask_description, list_topics
from fusion_vlm.small_model.grammar.scene import (
    GRID,
    MAX_OTHERS,
    Scene,
    build_scene,
    draw_background,
    draw_common,
    draw_count,
    draw_direction,
    draw_evenly,
)
from fusion_vlm.synthesis.sample import Sample, Turn


def build_conversation_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """
    Build a scene of a group to count, and of objects that are unlike the group and each other.

    Questions are about the first two of the other objects. There may be more of them, so that the number of all
    objects does not tell the number of the group.
    """
    number = draw_count(sample)
    num_others = rng.randint(2, min(MAX_OTHERS, GRID**2 - number))
    groups = [(draw_common(rng), number)]
    return [build_scene(rng, draw_background(rng), groups, num_others=num_others, direction=draw_direction(rng))]


def _ask_short(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write two or three turns, one of them with yes or no."""
    facts = _converse(sample, scenes[0], rng, rng.choice((2, 3, 3)), num_yes_no=1)
    return add_short_hint([fact.short() for fact in facts])


def _ask_long(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write four to six turns in sentences, two of them with yes or no. The last one may be the description."""
    facts = _converse(sample, scenes[0], rng, rng.randint(4, 5), num_yes_no=2)
    return [fact.long() for fact in facts] + ask_description(sample, rng) * rng.randint(0, 1)


def _converse(sample: Sample, scene: Scene, rng: random.Random, number: int, num_yes_no: int) -> list[Fact]:
    topics = list_topics(scene)
    number = min(number, len(topics))  # one less on a plain background
    topics = rng.sample(topics, number)
    truths = [None] * number
    for index, name in zip(rng.sample(range(number), num_yes_no), ("yes_no", "other_yes_no"), strict=False):
        truths[index] = bool(draw_evenly(sample, name, 2))
    return [topic(rng, scene, truth) for topic, truth in zip(topics, truths, strict=True)]


KINDS = [
    Kind("short_conversation", build_conversation_scenes, _ask_short),
    Kind("long_conversation", build_conversation_scenes, _ask_long),
]
