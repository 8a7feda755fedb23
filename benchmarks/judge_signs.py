"""Answer questions about the texts of signs and of objects, from OCR and from the objects on which the lines are."""

import re
from difflib import SequenceMatcher
from itertools import chain

from judge_answers import Finding
from judge_scenes import Picture
from judge_tables import group_rows
from judge_text import Line, squeeze
from judge_words import find_references


SIGN = re.compile(r"the (?:([a-z]+) )?sign\b", re.IGNORECASE)
QUOTED = re.compile(r'"([^"]+)"')
NTH = {"first": 0, "second": 1, "third": 2, "line 1": 0, "line 2": 1, "line 3": 2}
LIKE, UNLIKE = 0.86, 0.6  # share of equal letters of texts that are the same but for OCR, and of other texts


class Signs:
    """
    The texts of a picture.

    Args:
        picture (`Picture`)
        lines (`list[Line]`): what OCR has read.
    """

    def __init__(self, picture: Picture, lines: list[Line]):
        self.picture = picture
        side = len(picture.pixels)
        self.texts: dict[int, list[str]] = {}
        for line in chain.from_iterable(group_rows(lines)):
            around = [
                index
                for index, thing in enumerate(picture.things)
                if thing.box[0] < line.x / side < thing.box[2] and thing.box[1] < line.y / side < thing.box[3]
            ]
            if len(around) == 1:
                self.texts.setdefault(around[0], []).append(line.text.strip())

    def find(self, question: str) -> int | None:
        """Return the index of the object whose text a question is about."""
        stem = QUOTED.sub('""', question)
        match = SIGN.search(stem)
        if match is None:
            _, names = find_references(stem)
            index = self.picture.find(names[0]) if len(names) == 1 else None
            return index if index in self.texts else None
        color = match[1].lower() if match[1] and match[1].lower() not in ("first", "exact") else None
        boards = [i for i in self.texts if color is None or self.picture.things[i].color in (color, None)]
        return boards[0] if len(boards) == 1 and (color is None or self.picture.things[boards[0]].color) else None

    def solve(self, question: str) -> Finding | None:
        """Answer a question about a text, or about the color of the board with a text."""
        quoted = QUOTED.search(question)
        if quoted is not None and re.search(r"colou?r", question):
            found = [index for index, lines in self.texts.items() if compare("".join(lines), quoted[1]) is True]
            color = self.picture.things[found[0]].color if len(found) == 1 else None
            return None if color is None else Finding("color", color, (), "color of a sign")
        index = self.find(question)
        if index is None:
            return None
        lines = self.texts[index]
        if quoted is not None:
            is_same = compare("".join(lines), quoted[1])
            return None if is_same is None else Finding("yes_no", is_same, (), "text")
        nth = next((place for word, place in NTH.items() if re.search(rf"\b{word}\b", question.lower())), None)
        if nth is not None and "line" in question:
            return Finding("text", lines[nth], (), "line") if nth < len(lines) else None
        if re.search(r"spell|letters (are on|on|make)|letter by letter|hyphen", question, re.IGNORECASE):
            return Finding("text", "".join(lines), (), "spelling")
        return Finding("text", "".join(lines), (), "text")


def compare(read: str, text: str) -> bool | None:
    """Check whether OCR has read a text; None if it may have read it wrong. Digits have to be the same."""
    first, second = squeeze(read), squeeze(text)
    ratio = SequenceMatcher(None, first, second).ratio()
    if first == second:
        return True
    if first in second or second in first:
        return None  # a word or a line was not read
    digits = [re.sub(r"\D", "", word) for word in (read, text)]
    if ratio > LIKE and min(len(first), len(second)) > 5:
        return True if digits[0] == digits[1] else None if max(map(len, digits)) < 3 else False
    return False if ratio < UNLIKE else None
