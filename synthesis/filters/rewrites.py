"""
The check of a question and answer that a language model has reworded.

A rewording is kept only if it has all facts of the exact pair, in the same order, and no other. All words are facts
but those of `neutral_words.txt`, so that an unknown word rejects a rewording and does not pass it.
"""

import re
from functools import cache
from pathlib import Path

from fusion_vlm.synthesis.filters.text import quote
from fusion_vlm.synthesis.filters.turns import check_text
from fusion_vlm.synthesis.sample import Turn


MAX_GROWTH = 2.5  # length of a rewording, in lengths of the exact text
_SLACK = 40  # characters that a short text may grow by in any case

_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
# "one" is a number after the words that begin a count, else a pronoun, so it stays a word.
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"grey": "gray"}
_TOKEN = re.compile(r"[$]?\d+(?:[.,:/-]\d+)*%?|\w+(?:['’-]\w+)*|[+=%$\"“”]")
_AUXILIARY = re.compile(r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|may|should)\b")
_POLITE = re.compile(r"(?:could|can|would|will) you (?:please )?(?:tell|count|name|read|give|show|list)\b")
# What a question asks for, by the first pattern that is found in it; a request to read something asks "what".
_ASKED = (
    ("count", r"\bhow many\b|\b(?:the|total) number of\b|^count\b"),
    ("amount", r"\bhow much\b|\bwhat amount\b"),
    ("place", r"\bwhere\b"),
    ("time", r"\bwhen\b"),
    ("reason", r"\bwhy\b"),
    ("manner", r"\bhow\b"),
    ("person", r"\bwho(?:m|se)?\b"),
    ("thing", r"\bwhat\b|\bwhich\b"),
)
_ASKED = tuple((name, re.compile(pattern)) for name, pattern in _ASKED)
# Forms that ask for the same thing.
_ALIKE = {"amount": "thing", "manner": "thing"}


@cache
def _neutral_words() -> frozenset[str]:
    lines = (Path(__file__).parent / "neutral_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def list_facts(text: str) -> list[str]:
    """List the words of a text that are not neutral, in order: numbers as digits, plurals as singulars."""
    facts = []
    for token in _TOKEN.findall(text):
        word = token.lower().replace("’", "'").replace("“", '"').replace("”", '"').removesuffix("'s")
        if word in _neutral_words() and not (word == "one" and facts[-1:] == ["exactly"]):
            continue
        facts.append(_DIGITS.get(word) or _singular(word))
    return facts


def _singular(word: str) -> str:
    if len(word) > 3 and word.isalpha() and word.endswith("s") and not word.endswith("ss"):
        return word[:-3] + "y" if word.endswith("ies") else word[:-1]
    return word


def find_asked(question: str) -> str:
    """Find what a question asks for: `count`, `yes_no`, `either`, `place`, `time`, `reason`, `person` or `thing`."""
    text = " ".join(question.lower().split())
    last = re.split(r"(?<=[.!:])\s", text)[-1]
    if " or " in last:
        return "either"
    if _AUXILIARY.match(last) and not _POLITE.match(last):
        return "yes_no"
    for name, pattern in _ASKED:
        if pattern.search(text):
            return _ALIKE.get(name, name)
    return "yes_no" if any(_AUXILIARY.match(part) for part in last.split(", ")) else "thing"


def check_rewrite(exact: Turn, question: str, answer: str) -> str | None:
    """
    Return the reason to keep the exact wording of a turn, or None if the rewording says the same.

    Args:
        exact (`Turn`): question without options and without a hint at the form of the answer, and answer.
        question (`str`), answer (`str`): the rewording.
    """
    reason = check_text(Turn(question, answer, exact.type))
    if reason is not None:
        return reason
    for name, before, after in (("question", exact.question, question), ("answer", exact.answer, answer)):
        if "\n" in after or len(after) > max(MAX_GROWTH * len(before), len(before) + _SLACK):
            return f"form: {name} {quote(after)}, expected a line of about the length of {quote(before)}"
        facts, found = list_facts(before), list_facts(after)
        if facts != found:
            lost = [fact for fact in facts if fact not in found]
            added = [fact for fact in found if fact not in facts]
            change = f"lost {lost}, added {added}" if lost or added else f"order {found}"
            return f"facts: {name} {quote(after)}, {change}, expected {facts}"
    if find_asked(question) != find_asked(exact.question):
        return f"asked: {find_asked(question)} in {quote(question)}, expected {find_asked(exact.question)}"
    return None
