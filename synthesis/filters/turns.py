"""The filter for questions and answers as text."""

import re

from fusion_vlm.synthesis.filters.text import normalize, quote
from fusion_vlm.synthesis.sample import Sample, Turn


MAX_TURNS = 8  # the paper's prompts ask for at most 8
MAX_CHARACTERS = 3000  # of an answer

# An LLM that talks about the text it was given instead of the image. A sign may have text above it, and a user may ask
# for "a description", so only words that point at a given text count.
SOURCE_TEXT = re.compile(
    r"\b(the|this|that|your|given|provided)\s+((image|given|provided|above|detailed|original)\s+)?"
    r"(description|caption|prompt)s?\b"
    r"|\b(the|this)\s+(text|paragraph)\s+(above|below|provided|given)\s*([,.;:?!]|$)"
    r"|\b(not|n't)\s+(been\s+)?(explicitly\s+)?(mentioned|specified|stated|described)\b",
    re.IGNORECASE,
)
# "I cannot" counts only at the beginning of a sentence, and not in capitals: a sign in an image may say it, too.
REFUSAL = re.compile(
    r"(^|[.!?\n]\s*)(I (cannot|can't|can not|am unable|am not able|am sorry|won't)|I'm (unable|not able|sorry)"
    r"|Sorry, |Unfortunately, I )"
    r"|(?i:\bas an? (AI|artificial intelligence|(large )?language model)\b)"
)


class TurnRules:
    """
    Rejects questions and answers that are wrong as text, whoever wrote them.

    Rejected are: no turns or too many; an empty question or answer; an answer that is too long; a letter that no
    option has; a question asked twice; a refusal; talk about the description that the writer was given.
    """

    name = "turn_rules"

    def __call__(self, sample: Sample) -> str | None:
        if not 1 <= len(sample.turns) <= MAX_TURNS:
            return f"turns: {len(sample.turns)}, expected 1 to {MAX_TURNS}"
        questions = set()
        for turn in sample.turns:
            if (reason := check_text(turn) or check_options(turn)) is not None:
                return reason
            if normalize(turn.question) in questions:
                return f"repeated_question: {quote(turn.question)}, expected each once"
            questions.add(normalize(turn.question))
        return None


def check_text(turn: Turn) -> str | None:
    """Return the reason to reject the words of a turn, or None."""
    question, answer = (text.replace("\u2019", "'") for text in (turn.question, turn.answer))
    if not question.strip() or not answer.strip():
        return f"empty: question {quote(question)}, answer {quote(answer)}, expected both"
    if len(answer) > MAX_CHARACTERS:
        return f"long_answer: {len(answer)} characters, expected at most {MAX_CHARACTERS}"
    for text in (question, answer):
        if found := SOURCE_TEXT.search(text):
            return f"source_text: {quote(found[0])} in {quote(text)}, expected talk of the image only"
    if found := REFUSAL.search(answer):
        return f"refusal: {quote(found[0])} in {quote(answer)}, expected an answer"
    return None


def check_options(turn: Turn) -> str | None:
    """Return the reason to reject the options of a turn, or a letter that none of them has, or None."""
    if not turn.options:
        return "options: none, expected 2 or more" if turn.type == "multiple_choice" else None
    distinct = {normalize(option) for option in turn.options}
    if "" in distinct or len(distinct) < max(2, len(turn.options)):
        return f"options: {quote(str(turn.options))}, expected 2 or more, all different, none empty"
    if turn.answer not in turn.options_by_letter:
        rule = "letter" if len(turn.answer) == 1 and turn.answer.isalpha() else "not_an_option"
        return f"{rule}: {quote(turn.answer)}, expected a letter from A to {[*turn.options_by_letter][-1]}"
    return None
