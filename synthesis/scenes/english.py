"""Small pieces of English: articles, plurals, numbers in words, lists; and phrases from phrases.txt."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from fusion_vlm.synthesis.scenes.outlines import load_outlines
from fusion_vlm.synthesis.scenes.scene import SceneObject


NUMBER_WORDS = (
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
NUMBERS = tuple(NUMBER_WORDS.split())
ALTERNATIVES = re.compile(r"\(([^()]*)\)")
SPACE_BEFORE_MARK = re.compile(r" ([.,?!:])")
ADJECTIVES = ("size", "color", "pattern")  # in the order in which they are said


def join(parts: Sequence[str], word: str = "and") -> str:
    """Join parts to a list: `a`, `a and b`, `a, b, and c`."""
    if len(parts) < 3:
        return f" {word} ".join(parts)
    return f"{', '.join(parts[:-1])}, {word} {parts[-1]}"


def with_article(words: str) -> str:
    return f"{'an' if words[0].lower() in 'aeio' or words.startswith('umbrella') else 'a'} {words}"


def capitalize(text: str) -> str:
    """Make the first character a capital. Unlike `str.capitalize`, leave the rest as it is."""
    return text[0].upper() + text[1:]


def pluralize(noun: str) -> str:
    outlines = load_outlines()
    return outlines[noun].plural if noun in outlines else f"{noun}s"


def count_noun(number: int, adjectives: str, noun: str) -> str:
    """Return a number and a name in words: `three red stars`, `one red star`."""
    return " ".join(filter(None, (NUMBERS[number], adjectives, noun if number == 1 else pluralize(noun))))


def list_adjectives(group: dict[str, str]) -> str:
    """Return the adjectives of a group, or of attributes of an object: `large red striped`."""
    return " ".join(group[name] for name in ADJECTIVES if name in group)


def name_group(group: dict[str, str], plural: bool = True) -> str:
    """Return the name of the objects of a group: `red stars`, `striped objects`."""
    noun = group.get("noun", "object")
    return " ".join(filter(None, (list_adjectives(group), pluralize(noun) if plural else noun)))


def look(thing: SceneObject) -> str:
    """Return color, pattern and noun of an object: `red striped mug`."""
    attributes = {"color": thing.color} | ({} if thing.pattern == "plain" else {"pattern": thing.pattern})
    return f"{list_adjectives(attributes)} {thing.noun}"


def list_looks(things: Iterable[SceneObject]) -> str:
    """List objects in words: `two red mugs, a blue striped fish, and a green star`."""
    looks = Counter((look(thing).removesuffix(thing.noun).strip(), thing.noun) for thing in things)
    return join(
        [
            with_article(f"{adjectives} {noun}") if number == 1 else count_noun(number, adjectives, noun)
            for (adjectives, noun), number in looks.items()
        ]
    )


@cache
def _load_phrases() -> dict[str, tuple[str, ...]]:
    phrases, name = {}, ""
    for line in (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
        elif line and not line.startswith("#"):
            phrases[name] = (*phrases.get(name, ()), line)
    return phrases


def say(rng: random.Random, name: str, **words: str) -> str:
    """
    Draw a phrase of a section of phrases.txt, and fill in words.

    `(a|b)` in a phrase stands for one of its alternatives.

    Raises:
        KeyError: for an unknown section, or a word that the phrase needs and is not given.
    """
    phrase = rng.choice(_load_phrases()[name])
    while "(" in phrase:
        phrase = ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), phrase, count=1)
    # An empty alternative leaves a space behind; texts of signs keep theirs, as they are filled in later.
    phrase = SPACE_BEFORE_MARK.sub(r"\1", " ".join(phrase.split()))
    return phrase.format(**words)


def list_sections() -> dict[str, tuple[str, ...]]:
    """Return the phrases of each section, with their alternatives unexpanded."""
    return dict(_load_phrases())
