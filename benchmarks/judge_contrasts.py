"""Compare the two halves of a contrast picture, object by object."""

import re
from functools import cached_property

import numpy as np
from judge_answers import Finding, solve
from judge_colors import NAMES
from judge_scenes import Picture
from judge_words import PATTERNS, ZONE, find_references, find_words


SAME_PLACE = 0.03  # of two centers, as a share of the side
SAME_SIZE, OTHER_SIZE = 1.1, 1.4  # ratio of two areas
CHANGES = ("color", "pattern", "size", "position", "number", "background", "object")
HALF = re.compile(r" in the (left|right) image")
THIRD = re.compile(ZONE.pattern + r"|on the (left|right) side|in the (upper|lower) part|near the center")


def split_halves(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Cut the two square halves out of their frame; None if there is no frame."""
    frame = (pixels == pixels[0, 0]).all(-1)
    columns, rows = np.flatnonzero(~frame.all(0)), np.flatnonzero(~frame.all(1))
    breaks = np.flatnonzero(np.diff(columns) > 1)
    if not len(rows) or len(breaks) != 1:
        return None
    top, bottom = rows[0], rows[-1] + 1
    left, right = columns[: breaks[0] + 1], columns[breaks[0] + 1 :]
    if not len(left) == len(right) == len(rows) == right[-1] - right[0] + 1:
        return None
    return tuple(pixels[top:bottom, part[0] : part[-1] + 1] for part in (left, right))


class Halves:
    """
    Two pictures of nearly the same objects.

    Args:
        left (`np.ndarray`), right (`np.ndarray`): `(side, side, 3)` bytes.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray):
        self.pictures = Picture(left), Picture(right)

    @cached_property
    def has_same_background(self) -> bool:
        """Compare the borders of both halves, which no object reaches."""
        left, right = (picture.pixels for picture in self.pictures)
        border = np.ones(left.shape[:2], dtype=bool)
        border[4:-4, 4:-4] = False
        return bool(np.abs(left[border].astype(int) - right[border]).mean() < 1)

    @cached_property
    def pairs(self) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """Return the pairs of objects at one place, and those without such a partner in the other half."""
        left, right = (picture.things for picture in self.pictures)
        pairs, free = [], set(range(len(right)))
        for one, thing in enumerate(left):
            near = [other for other in free if np.hypot(*np.subtract(right[other].center, thing.center)) < SAME_PLACE]
            if len(near) == 1:
                pairs.append((one, near[0]))
                free -= {near[0]}
        paired = {one for one, _ in pairs}
        return pairs, [[one for one in range(len(left)) if one not in paired], sorted(free)]

    def compare(self, change: str, one: int, other: int) -> bool | None:
        """Check whether an object differs between the halves in one way; None if that is unclear."""
        left, right = self.pictures[0].things[one], self.pictures[1].things[other]
        if change in ("color", "pattern"):
            values = getattr(left, change), getattr(right, change)
            return None if None in values else values[0] != values[1]
        if change == "size":
            ratio = max(left.area, right.area) / min(left.area, right.area)
            return None if SAME_SIZE < ratio < OTHER_SIZE else ratio >= OTHER_SIZE
        if change == "position":
            return bool(np.hypot(*np.subtract(left.center, right.center)) >= SAME_PLACE)
        best = [
            int(picture.scores[index].argmax()) for picture, index in zip(self.pictures, (one, other), strict=True)
        ]
        if best[0] == best[1]:
            return False
        losses = [
            picture.scores[index].max() - picture.scores[index, noun]
            for picture, index, noun in zip(self.pictures, (one, other), best[::-1], strict=True)
        ]
        return True if min(losses) > 0.02 else None

    def find_changes(self) -> frozenset[str] | None:
        """Return the ways in which the halves differ; None if one of them is unclear."""
        if not all(picture.is_complete for picture in self.pictures):
            return None
        pairs, alone = self.pairs
        found = set() if self.has_same_background else {"background"}
        for one, other in pairs:
            is_other = self.compare("object", one, other)
            changes = ("object",) if is_other is not False else ("color", "pattern", "size")
            answers = {change: self.compare(change, one, other) for change in changes}
            if None in answers.values():
                return None
            found |= {change for change, answer in answers.items() if answer}
        while alone[0] and alone[1]:
            one = alone[0].pop()
            twins = [other for other in alone[1] if self.compare("object", one, other) is False]
            if len(twins) != 1:
                return None
            alone[1].remove(twins[0])
            found.add("position")
        return frozenset(found | ({"number"} if alone[0] or alone[1] else set()))

    def solve(self, question: str) -> Finding | None:
        """Answer a question about one half, or about what differs."""
        half = HALF.search(question)
        text, names = find_references(question)
        if half is not None and len(names) == 1:
            return solve(HALF.sub("", question), self.pictures[half[1] == "right"])
        match = re.search(r"the (color|pattern|size|position) of \[0\]", text)
        if match is not None:
            found = [picture.find(names[0]) for picture in self.pictures]
            differs = None if None in found else self.compare(match[1], *found)
            return None if differs is None else Finding("yes_no", not differs, tuple(names), f"same {match[1]}")
        if "the background" in text:
            return Finding("yes_no", self.has_same_background, (), "same background")
        if "number of objects" in text:
            numbers = [len(picture.things) if picture.is_complete else None for picture in self.pictures]
            return None if None in numbers else Finding("yes_no", numbers[0] == numbers[1], (), "same number")
        changes = None if names else self.find_changes()
        return Finding("difference", changes, (), "difference") if changes else None


def name_changes(answer: str) -> frozenset[str]:
    """Return the ways in which an answer says that two halves differ, in words or in sentences."""
    if "image" not in answer:
        return frozenset(find_words(answer, CHANGES))
    found = set()
    for sentence in answer.lower().split(". "):
        values = {
            "background": "background is" in sentence,
            "number": "number of objects" in sentence or re.search(r"more objects?\b", sentence),
            "object": "there is" in sentence,
            "size": find_words(sentence, ("small", "medium", "large")),
            "color": find_words(sentence, NAMES),
            "pattern": find_words(sentence, (*PATTERNS, "plain")),
            "position": THIRD.search(sentence),
        }
        found |= {next((change for change, value in values.items() if value), "nothing")}
    return frozenset(found)
