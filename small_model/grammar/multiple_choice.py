"""Multiple-choice questions with four lettered options."""

import random

from fusion_vlm.small_model.grammar.conversations import build_conversation_scenes
from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.questions import Fact, list_topics
from fusion_vlm.small_model.grammar.scene import (
    Scene,
    build_scene,
    build_sign_scene,
    draw_count,
    draw_evenly,
    draw_plain,
)
from fusion_vlm.synthesis.sample import Sample, Turn


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build mostly scenes of conversations, and scenes for the questions that do not go with others."""
    topic = rng.choice(("text", "all", "one", "one", "one", "one"))
    if topic == "text":
        return [build_sign_scene(rng, rng.randint(1, 2))]
    if topic == "all":
        return [build_scene(rng, draw_plain(rng), [((), draw_count(sample))])]
    return build_conversation_scenes(sample, rng)


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write one to three turns."""
    topics = list_topics(scenes[0])
    facts = [topic(rng, scenes[0], None) for topic in rng.sample(topics, min(len(topics), 3))]
    return [_offer_options(sample, fact, f"letter {index}", rng) for index, fact in enumerate(facts)]


def _offer_options(sample: Sample, fact: Fact, draw_name: str, rng: random.Random) -> Turn:
    options = rng.sample([choice for choice in fact.choices if choice != fact.answer], 3)
    place = draw_evenly(sample, draw_name, 4)
    options.insert(place, fact.answer)
    turn = Turn.from_options(fact.question, options, place)
    turn.question = turn.question_with_options
    return turn


KINDS = [Kind("multiple_choice", _build_scenes, _ask)]
