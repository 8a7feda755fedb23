"""A fact of a scene as a question with its answer, and what a question and its answer give away."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from fusion_vlm.synthesis.sample import Turn
from fusion_vlm.synthesis.scenes.english import capitalize, say


Key = tuple  # a thing that can be known: ("color", index of an object), ("place",), ...


@dataclass
class Fact:
    """
    A fact that can be asked of a scene.

    Args:
        question (`str`)
        answer (`str`): the answer in a word or two.
        sentence (`str`): the answer in a sentence.
        type (`str`): type of the turn. The answers of a type come from one set.
        asks (`Key`): what has to be unknown before.
        tells (`frozenset[Key]`): what is known after question and answer, beside `asks`.
        choices (`Sequence[str]`): what multiple choice may offer; nothing for yes and no.
        also (`frozenset[Key]`): what else has to be unknown before, since the answer follows from it.
    """

    question: str
    answer: str
    sentence: str
    type: str
    asks: Key
    tells: frozenset = frozenset()
    choices: Sequence[str] = field(default_factory=tuple)
    also: frozenset = frozenset()

    @property
    def known(self) -> frozenset:
        return self.tells | {self.asks}

    def short(self) -> Turn:
        return Turn(self.question, self.answer, self.type)

    def long(self) -> Turn:
        return Turn(self.question, self.sentence, self.type)


def make_fact(
    rng: random.Random,
    topic: str,
    words: dict[str, str],
    answer: str,
    type: str,
    asks: Key,
    tells: frozenset = frozenset(),
    choices: Sequence[str] = (),
    say_topic: str | None = None,
) -> Fact:
    """Build an open question of the phrases `TOPIC.open`, and its answer of `TOPIC.say`."""
    words = with_capitals(words)
    question = say(rng, f"{topic}.open", **words)
    return Fact(
        question, answer, capitalize(say(rng, f"{say_topic or topic}.say", **words)), type, asks, tells, choices
    )


def make_yes_no(
    rng: random.Random,
    topic: str,
    claimed: dict[str, str],
    truth: bool,
    sentence: str,
    asks: Key,
    tells: frozenset = frozenset(),
) -> Fact:
    """
    Build a question of the phrases `TOPIC.ask`, which is answered by yes or no.

    Args:
        rng (`random.Random`)
        topic (`str`)
        claimed (`dict[str, str]`): words of the claim.
        truth (`bool`): whether the claim is true.
        sentence (`str`): a true sentence, whatever is claimed.
        asks (`Key`), tells (`frozenset[Key]`): see `Fact`.
    """
    question = say(rng, f"{topic}.ask", **with_capitals(claimed))
    answer = "Yes" if truth else "No"
    # A name keeps its capital: `"LEMON" is written on it`.
    sentence = sentence[0].lower() + sentence[1:] if sentence[0].isalpha() else sentence
    return Fact(question, answer, f"{answer}, {sentence}", "yes_no", asks, tells)


def with_capitals(words: dict[str, str]) -> dict[str, str]:
    """Add each word with a capital first letter, under its name with a capital."""
    return words | {capitalize(name): capitalize(value) for name, value in words.items() if value}
