"""
Facts of a page as questions with exact answers, and the turns that are made of them.

Whether the answer is yes or no is drawn first, and the question is made to fit from the same words. Numbers in
questions lie between values of the page, so that a number alone tells nothing.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusion_vlm.synthesis.documents.phrases import phrase
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.scene import draw_evenly


NUM_OPTIONS = 4
SORT_SHARE = 0.1  # of samples that are asked for the sort of page
_LARGEST_COUNT = 6
_SMALLEST_RANGE = 4  # numbers that a count may be
DESCRIBE_SHARE = 0.08  # of samples that end with a request for a full description


@dataclass
class Fact:
    """
    A fact that can be asked of a page.

    Args:
        question (`str`)
        answer (`str`), sentence (`str`): the answer in a word or a number, and in a sentence.
        type (`str`): type of the turn: `value`, `text`, `count`, `comparison`, `yes_no` or `sort`.
        choices (`Sequence[str]`): wrong answers that multiple choice may offer; few or none for other questions.
    """

    question: str
    answer: str
    sentence: str
    type: str
    choices: Sequence[str] = ()


class Asker:
    """
    Draws wordings for the facts of one page.

    Args:
        sample (`Sample`)
        rng (`random.Random`)
        words (`str`): name of the file of wordings.
        slots: words for slots that all wordings of the page may have.
    """

    def __init__(self, sample: Sample, rng: random.Random, words: str, **slots: str):
        self.sample, self.rng, self.words, self.slots = sample, rng, words, slots
        self.prefix = ""

    def say(self, section: str, /, **slots) -> str:
        return phrase(self.rng, self.words, section, **{**self.slots, **slots})

    def truth(self, name: str) -> bool:
        """Draw whether the answer is yes; both have equal shares over the samples of a kind."""
        return bool(draw_evenly(self.sample, name, 2))

    def fact(
        self, section: str, answer: str, type: str, answers: str | None = None, choices: Sequence[str] = (), **slots
    ) -> Fact:
        """Build an open fact, with the sentence from the section `answers` (default: `SECTION.answer`)."""
        question = self.prefix + self.say(section, **slots)
        sentence = self.say(answers or f"{section}.answer", answer=answer, **slots)
        return Fact(question, answer, sentence, type, [choice for choice in choices if choice != answer])

    def yes_no(self, section: str, truth: bool, answers: str, **slots) -> Fact:
        """Build a fact that is answered by yes or no. The sentence is true in both cases."""
        answer = "Yes" if truth else "No"
        question = self.prefix + self.say(section, **slots)
        return Fact(question, answer, self.say(answers, yes=answer, **slots), "yes_no")


def draw_facts(
    sample: Sample,
    rng: random.Random,
    forms: list[Callable[[], Fact | None]],
    sort: Callable[[], Fact] | None = None,
) -> list[Fact]:
    """
    Draw two to four facts of a page, with one count and one yes or no at most.

    Args:
        sample (`Sample`), rng (`random.Random`)
        forms (`list[Callable]`): build a fact each, or return None where the page has none of that form left.
        sort (`Callable`, *optional*): asks for the sort of page. Its share is the same for all pages, whatever else
            can be asked, since its answers would not be balanced otherwise.
    """
    facts: list[Fact] = []
    number = 2 + sample.source["index"] % 3
    for form in rng.sample(forms, len(forms)):
        fact = form()
        if fact is not None and all(fact.type != other.type for other in facts if fact.type in ("count", "yes_no")):
            facts.append(fact)
        if len(facts) == number:
            break
    if sort is not None and rng.random() < SORT_SHARE:
        facts[rng.randrange(len(facts))] = sort()
    return facts


def draw_place(rng: random.Random, number: int) -> int | None:
    """Draw how many of `number` values a question counts, or None for so few that the number could be guessed."""
    most = min(number - 1, _LARGEST_COUNT)
    return rng.randint(1, most) if most >= _SMALLEST_RANGE else None


def make_turns(sample: Sample, rng: random.Random, facts: list[Fact]) -> list[Turn]:
    """Make turns with short answers, with sentences or with options; one form for all turns of a sample."""
    form = rng.choice(("short", "short", "sentence", "options"))
    with_options = [fact for fact in facts if len(set(fact.choices)) >= NUM_OPTIONS - 1]
    if form == "options" and with_options:
        facts = with_options
        turns = [_offer_options(sample, rng, fact, index) for index, fact in enumerate(facts)]
    elif form == "sentence":
        turns = [Turn(fact.question, fact.sentence, fact.type) for fact in facts]
    else:
        turns = [Turn(fact.question, fact.answer, fact.type) for fact in facts]
        turns[0].question += f"\n{phrase(rng, 'pages', 'short hint')}"
        return turns
    if rng.random() < DESCRIBE_SHARE:
        turns.append(Turn(phrase(rng, "pages", "describe"), sample.description, "caption"))
    return turns


def _offer_options(sample: Sample, rng: random.Random, fact: Fact, index: int) -> Turn:
    place = draw_evenly(sample, f"letter {index}", NUM_OPTIONS)
    options = rng.sample(sorted(set(fact.choices)), NUM_OPTIONS - 1)
    options.insert(place, fact.answer)
    turn = Turn.from_options(fact.question, options, place)
    turn.question = turn.question_with_options
    return turn
