"""Lines of text that OCR has read, and how they compare with words of a question."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass
class Line:
    """A line of text with its box in pixels."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def number(self) -> float | None:
        """Return the number that the line consists of, such as `45`, `12%` or `$4.50`; else None."""
        text = self.text.strip().replace("O", "0").replace("o", "0").replace(",", "").lstrip("$").rstrip("%")
        return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


def squeeze(text: str) -> str:
    """Return letters and digits in lower case, with those made equal that OCR mixes up."""
    text = re.sub(r"[^a-z0-9]", "", text.lower())
    return text.translate(str.maketrans({"l": "i", "1": "i", "0": "o"}))


def is_same(first: str, second: str) -> bool:
    """Check whether two texts are the same but for errors of OCR."""
    first, second = squeeze(first), squeeze(second)
    return first == second or (
        min(len(first), len(second)) > 4 and SequenceMatcher(None, first, second).ratio() > 0.85
    )


def find_names(question: str, names: list[str]) -> list[str]:
    """Find names in a question, in order, and none inside of a longer one."""
    found, text = [], question
    for name in sorted(set(names), key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            found.append((match.start(), name))
            text = text[: match.start()] + "\0" * len(name) + text[match.end() :]
    return [name for _, name in sorted(found)]
