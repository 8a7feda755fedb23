"""The topics that can be asked of a scene, and conversations in which no turn gives a later answer away."""

import random
from collections.abc import Callable, Sequence

from fusion_vlm.synthesis.sample import Turn
from fusion_vlm.synthesis.scenes import ask_objects, ask_relations, ask_scene, ask_text
from fusion_vlm.synthesis.scenes.english import say
from fusion_vlm.synthesis.scenes.facts import Fact
from fusion_vlm.synthesis.scenes.view import View


Topic = Callable[[random.Random, View, bool | None], Fact | None]

OPEN: tuple[Topic, ...] = (
    ask_objects.ask_color,
    ask_objects.ask_pattern,
    ask_objects.ask_noun,
    ask_objects.ask_position,
    ask_objects.ask_facing,
    ask_relations.ask_direction,
    ask_relations.ask_nearest,
    ask_relations.ask_between,
    ask_relations.ask_related,
    ask_relations.ask_larger,
    ask_relations.ask_extreme,
    ask_relations.ask_same_color,
    ask_relations.ask_color_by_relation,
    ask_scene.ask_count,
    ask_scene.ask_place,
    ask_scene.ask_time,
    ask_scene.ask_indoors,
)
CLOSED: tuple[Topic, ...] = (
    ask_objects.ask_color,
    ask_objects.ask_pattern,
    ask_objects.ask_exists,
    ask_objects.ask_position,
    ask_relations.ask_direction,
    ask_relations.ask_nearest,
    ask_relations.ask_between,
    ask_relations.ask_related,
    ask_relations.ask_larger,
    ask_relations.ask_same_color,
    ask_scene.ask_count,
    ask_scene.ask_place,
)
OPEN_TEXT: tuple[Topic, ...] = (ask_text.ask_text, ask_text.ask_spelling, ask_text.ask_line, ask_text.ask_sign_color)


def draw_facts(
    rng: random.Random, view: View, truths: Sequence[bool | None], with_choices: bool = False
) -> list[Fact]:
    """
    Draw a fact for each truth, none of which an earlier question or answer gives away.

    Args:
        rng (`random.Random`)
        view (`View`)
        truths (`Sequence[bool | None]`): None for an open question, else the answer of a yes-or-no question.
        with_choices (`bool`): whether facts need choices for options.

    Returns:
        `list[Fact]`: in the order of the truths; fewer if the scene does not have so many.
    """
    facts, known, used = [], set(), set()
    for truth in truths:
        topics = OPEN if truth is None else CLOSED
        for topic in rng.sample(topics, len(topics)):
            # Several topics for conversations: one that was used comes again only if there is no other.
            if topic in used:
                continue
            fact = topic(rng, view, truth)
            if fact is None or (fact.also | {fact.asks}) & known or (with_choices and len(set(fact.choices)) < 4):
                continue
            if fact.tells & {other.asks for other in facts}:
                continue
            facts.append(fact)
            known |= fact.known
            used.add(topic)
            break
    return facts


def add_hint(rng: random.Random, turns: list[Turn]) -> list[Turn]:
    """Ask for short answers at the end of the first question."""
    turns[0].question += f"\n{say(rng, 'hint')}"
    return turns
