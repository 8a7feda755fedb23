"""Multiple-choice questions with four lettered options."""

import random

from fusion_vlm.synthesis.kinds.captions import draw_texts
from fusion_vlm.synthesis.kinds.conversations import build_conversation_scenes
from fusion_vlm.synthesis.kinds.kind import CHOICES, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.ask_text import ask_line, ask_sign_color, ask_text
from fusion_vlm.synthesis.scenes.backgrounds import draw_background
from fusion_vlm.synthesis.scenes.facts import Fact
from fusion_vlm.synthesis.scenes.scene import Scene, draw_evenly
from fusion_vlm.synthesis.scenes.signs import build_sign_scene
from fusion_vlm.synthesis.scenes.topics import draw_facts
from fusion_vlm.synthesis.scenes.view import View


TEXT_SHARE = 0.2


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Build mostly scenes of conversations, and some with signs."""
    if rng.random() < TEXT_SHARE:
        return [build_sign_scene(rng, draw_background(rng), draw_texts(rng, rng.randint(1, 3)), rng.randint(0, 3))]
    return build_conversation_scenes(sample, rng)


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Write one to three turns."""
    view = View(scenes[0])
    if scenes[0].signs:
        topics = (ask_text, ask_line, ask_sign_color)
        facts = [topic(rng, view, None) for topic in rng.sample(topics, len(topics))]
        facts = [fact for fact in facts if fact is not None and len(set(fact.choices)) >= 4][:1]
    else:
        facts = draw_facts(rng, view, [None] * rng.randint(1, 3), with_choices=True)
    return [_offer_options(sample, fact, f"letter {index}", rng) for index, fact in enumerate(facts)]


def _offer_options(sample: Sample, fact: Fact, draw_name: str, rng: random.Random) -> Turn:
    options = rng.sample(sorted({choice for choice in fact.choices if choice != fact.answer}), 3)
    place = draw_evenly(sample, draw_name, 4)
    options.insert(place, fact.answer)
    turn = Turn.from_options(fact.question, options, place)
    turn.question = turn.question_with_options
    return turn


KINDS = [Kind("multiple_choice", _build_scenes, _ask, CHOICES, "multiple_choice", num_answer_tokens=150)]
