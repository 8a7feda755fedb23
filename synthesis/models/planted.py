"""Makes right answers wrong, to measure how many errors a judge accepts."""

import dataclasses
import random
import re

from fusion_vlm.synthesis.sample import Turn


# Words of a group exclude each other, so an answer with one of them in place of another is wrong.
GROUPS = (
    ("yes", "no"),
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray"),
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    ("left", "right"),
    ("above", "below"),
    ("top", "bottom"),
    ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "arrow"),
    ("sunny", "snowy", "rainy", "foggy"),
    ("morning", "night"),
    ("dog", "cat", "horse", "bird", "cow", "sheep"),
)
GROUP_OF = {word: group for group in GROUPS for word in group}
SAME = {"grey": "gray"}
WORD = re.compile(r"[A-Za-z]+|\d+")


def plant_error(turn: Turn, rng: random.Random) -> Turn | None:
    """
    Return a turn with a wrong answer: another letter, another number, or another word of its group.

    One word of the answer is replaced, or its first `yes` or `no`, so that the error is not easy to overlook nor hard
    to find. None if no word of the answer has a group.
    """
    if turn.options:
        letters = [letter for letter in turn.options_by_letter if letter != turn.answer]
        return dataclasses.replace(turn, answer=rng.choice(letters)) if letters else None
    places = [match for match in WORD.finditer(turn.answer) if _find_others(match[0])]
    if not places:
        return None
    place = places[0] if places[0][0].lower() in GROUPS[0] else rng.choice(places)
    word = rng.choice(_find_others(place[0]))
    word = word.capitalize() if place[0][0].isupper() else word
    return dataclasses.replace(turn, answer=turn.answer[: place.start()] + word + turn.answer[place.end() :])


def _find_others(word: str) -> list[str]:
    """Return the words that would be wrong in place of a word; none if that is not known."""
    if word.isdecimal():
        return [str(number) for number in (int(word) - 1, int(word) + 1) if number >= 0]
    word = SAME.get(word.lower(), word.lower())
    return [other for other in GROUP_OF.get(word, ()) if other != word]
