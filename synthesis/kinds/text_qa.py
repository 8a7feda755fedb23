"""Questions that only someone can answer who reads the words in the image."""

import random

from fusion_vlm.synthesis.kinds.captions import draw_texts
from fusion_vlm.synthesis.kinds.kind import TWO_QUESTIONS, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.ask_text import ask_line, ask_sign_color, ask_spelling, ask_text
from fusion_vlm.synthesis.scenes.backgrounds import draw_background
from fusion_vlm.synthesis.scenes.scene import Scene, draw_evenly
from fusion_vlm.synthesis.scenes.signs import build_sign_scene
from fusion_vlm.synthesis.scenes.topics import add_hint
from fusion_vlm.synthesis.scenes.view import View


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    texts = draw_texts(rng, 2 + draw_evenly(sample, "signs", 2))
    return [build_sign_scene(rng, draw_background(rng), texts, num_objects=rng.randint(0, 3))]


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Ask an open question about one text, and a question with yes or no about another."""
    view = View(scenes[0])
    first, second = rng.sample(range(len(scenes[0].signs)), 2)
    topics = (ask_text, ask_spelling, ask_line, ask_sign_color)
    facts = [topic(rng, view, None, first) for topic in rng.sample(topics, len(topics))]
    fact = next(fact for fact in facts if fact is not None)
    claim = ask_text(rng, view, bool(draw_evenly(sample, "yes_no", 2)), second)
    return add_hint(rng, rng.sample([fact.short(), claim.short()], 2))


KINDS = [Kind("text_qa", _build_scenes, _ask, TWO_QUESTIONS, "text", num_answer_tokens=70)]
