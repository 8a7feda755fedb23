"""Read the value of an answer, compare it with what the judge finds, and plant wrong answers of the same form."""

import random
import re
from dataclasses import replace

import numpy as np
from judge_answers import Finding
from judge_colors import NAMES
from judge_contrasts import CHANGES, name_changes
from judge_signs import compare
from judge_words import (
    NUMBERS,
    PATTERNS,
    ZONE,
    ZONES,
    find_nouns,
    find_references,
    find_words,
    read_number,
)


NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
SIDES = ("left", "right", "above", "below")


def split_options(question: str) -> tuple[str, dict[str, str]]:
    """Return a question without its options and hints, and the options by letter."""
    options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))
    return question.split("\n")[0], options


def read_value(finding: Finding, answer: str):
    """Return the value that an answer gives, of the sort of a finding; None if it gives none or several."""
    text = answer.lower()
    if finding.sort == "yes_no":
        return {"yes": True, "no": False}.get(re.split(r"\W", text)[0])
    if finding.sort == "number":
        return read_number(answer)
    if finding.sort == "difference":
        return name_changes(answer)
    if finding.sort == "text":
        quoted = re.findall(r'"([^"]+)"', answer)
        return quoted[-1] if quoted else answer
    if finding.sort == "zone":
        found = ZONE.findall(text)
        return found[0] if len(found) == 1 else None
    if finding.sort == "odd":
        _, names = find_references(answer.partition("odd one out is ")[2].replace("plain ", ""))
        noun = names[0].noun if names and finding.value.noun else None
        return replace(names[0], noun=noun, pattern=names[0].pattern or "plain") if names else None
    if finding.sort == "name":
        _, names = find_references(answer if re.search(r"\bthe\b", text) else f"the {answer}")
        return finding.names.index(names[0]) if names and names[0] in finding.names else None
    if finding.sort == "noun":
        asked = {name.noun for name in finding.names}
        found = [noun for noun in find_nouns(answer) if noun not in asked] or find_nouns(answer)
        return found[-1] if found else None
    words = {"color": NAMES, "pattern": PATTERNS, "side": SIDES, "facing": SIDES[:2]}
    taken = {name.color for name in finding.names} | {name.pattern for name in finding.names}
    found = [word for word in find_words(answer, words[finding.sort]) if word not in taken]
    return found[-1] if found else None


def agrees(finding: Finding, answer: str) -> bool | None:
    """Check whether an answer gives the value that the judge has found; None for a text that OCR may have misread."""
    value = read_value(finding, answer)
    return compare(finding.value, value) if finding.sort == "text" else value == finding.value


def plant_wrong(finding: Finding, answer: str, rng: random.Random) -> str | None:
    """Return an answer of the same form with another value; None if its value is not found in it."""
    value = read_value(finding, answer)
    if value is None:
        return None
    if finding.sort == "yes_no":
        return re.sub(r"^(yes|no)", "No" if value else "Yes", answer, flags=re.IGNORECASE)
    if finding.sort == "number":
        other = max(1, value + rng.choice((-2, -1, 1, 2)))
        other = value + 1 if other == value else other
        return _replace_last(
            answer,
            [str(value), NUMBERS[value] if value < len(NUMBERS) else "?"],
            lambda word: str(other) if word.isdigit() else NUMBERS[other],
        )
    if finding.sort == "zone":
        return answer.replace(value, rng.choice([zone for row in ZONES for zone in row if zone != value]))
    if finding.sort == "name":
        return " ".join(filter(None, ("the", *describe(finding.names[1 - value]))))
    if finding.sort == "odd":
        other = rng.choice([name for name in NAMES if name != value.color])
        return f"The odd one out is the {other} {value.noun or 'object'}."
    if finding.sort == "noun":
        other = rng.choice([noun for noun in ("mug", "star", "car", "tree", "key", "hat", "fish") if noun != value])
        return _replace_last(answer, [value, f"{value}s"], lambda word: other)
    if finding.sort == "difference":
        return rng.choice([change for change in CHANGES if change not in value])
    if finding.sort == "text":
        return change_text(value, rng)
    words = {"color": NAMES, "pattern": PATTERNS, "side": SIDES, "facing": SIDES[:2]}[finding.sort]
    other = rng.choice([word for word in words if word != value])
    return _replace_last(answer, [value], lambda word: other)


def change_text(text: str, rng: random.Random) -> str:
    """Return another text of the same form: other digits, or half of the letters of a word."""
    if any(char.isdigit() for char in text):
        return "".join(str((int(char) + rng.randint(1, 9)) % 10) if char.isdigit() else char for char in text)
    place = rng.randrange(2)
    return "".join(
        rng.choice("BDFGKMPRSTVZ") if char.isalpha() and index % 4 // 2 == place else char
        for index, char in enumerate(text)
    )


def describe(name) -> list[str]:
    """Return the words of a name."""
    return [word for word in (name.color, name.pattern, name.noun or "object") if word]


def _replace_last(answer: str, words: list[str], make) -> str:
    matches = list(re.finditer("|".join(rf"\b{re.escape(word)}\b" for word in words), answer, re.IGNORECASE))
    if not matches:
        return answer + " " + make(words[0])
    last = matches[-1]
    return answer[: last.start()] + make(last[0]) + answer[last.end() :]


def agrees_on_page(expected, answer: str) -> bool:
    """Compare what the judge expects of a page with an answer in a word, or in a sentence that holds it."""
    if isinstance(expected, (bool, np.bool_)):
        return answer.lower().startswith("yes" if expected else "no")
    if isinstance(expected, (int, float, np.number)):
        given = answer.rpartition("=")[2] if "=" in answer else answer
        numbers = [float(number.replace(",", "")) for number in NUMBER.findall(given)]
        return any(abs(number - expected) < 0.006 for number in numbers)
    return normalize(expected) in normalize(answer)


def normalize(text: str) -> str:
    """Return letters and digits only: OCR loses blanks and signs."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def plant_on_page(expected, answer: str, options: list[str], rng: random.Random) -> str | None:
    """Return a wrong answer to a question about a page: yes for no, another option, another number or text."""
    if isinstance(expected, (bool, np.bool_)):
        return re.sub(r"^(yes|no)", lambda m: "No" if m[0].lower() == "yes" else "Yes", answer, flags=re.IGNORECASE)
    others = [option for option in options if option != answer]
    return rng.choice(others) if others else change_text(answer, rng)
