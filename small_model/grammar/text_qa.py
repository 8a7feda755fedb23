"""Questions that only someone can answer who reads the words in the image."""

import random

from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.questions import add_short_hint, ask_word, spell_word
from fusion_vlm.small_model.grammar.scene import Scene, build_sign_scene, draw_evenly
from fusion_vlm.synthesis.sample import Sample, Turn


def _build_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_sign_scene(rng, num_signs=2)]


def _ask(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Ask for one of two words, and ask a question with yes or no about the other."""
    first, second = rng.sample(range(2), 2)
    fact = spell_word(rng, scenes[0], first) if rng.random() < 0.3 else ask_word(rng, scenes[0], None, first)
    claim = ask_word(rng, scenes[0], bool(draw_evenly(sample, "yes_no", 2)), second)
    return add_short_hint(rng.sample([fact.short(), claim.short()], 2))


KINDS = [Kind("text_qa", _build_scenes, _ask)]
