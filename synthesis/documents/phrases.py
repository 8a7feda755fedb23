"""Reads the words of charts, tables and documents from the data files in words/."""

import configparser
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path


_FOLDER = Path(__file__).parent / "words"


@cache
def read_phrases(name: str) -> dict[str, tuple[str, ...]]:
    """
    Read `words/NAME.txt`: sections in brackets, a phrase a line.

    Raises:
        ValueError: if a section comes twice, or a phrase comes before the first section.
    """
    sections: dict[str, list[str]] = {}
    phrases = None
    for line in (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            if line[1:-1] in sections:
                raise ValueError(f"{name}.txt has the section {line} twice.")
            phrases = sections.setdefault(line[1:-1], [])
        elif line.strip() and not line.startswith("#"):
            if phrases is None:
                raise ValueError(f"{name}.txt has a phrase before the first section: {line!r}.")
            phrases.append(line.strip())
    return {section: tuple(lines) for section, lines in sections.items()}


@cache
def read_lists(name: str) -> dict[str, dict[str, str]]:
    """Read `words/NAME.ini` as plain text by section and key."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((_FOLDER / f"{name}.ini").read_text(encoding="utf-8"))
    return {section: dict(parser[section]) for section in parser.sections()}


def split_list(text: str, separator: str = ",") -> tuple[str, ...]:
    """Split a text of a list file at a separator, without the blanks around each part."""
    return tuple(part.strip() for part in text.split(separator) if part.strip())


def phrase(rng: random.Random, name: str, section: str, /, **slots) -> str:
    """
    Draw a phrase and fill its slots.

    Raises:
        KeyError: for an unknown section, or a slot that is not given.
    """
    text = rng.choice(read_phrases(name)[section])
    filled = text.format(chart=rng.choice(read_phrases("pages")["chart"]), **slots) if "{" in text else text
    return filled[0].upper() + filled[1:]


def enumerate_names(names: Sequence[str]) -> str:
    """Join names with commas and a last `and`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
