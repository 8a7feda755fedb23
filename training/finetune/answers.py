"""Compares generated answers with the known answers of rows."""

import re
from collections import Counter
from statistics import median

from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import message_text


MAX_NEW_TOKENS = 256
LONG_ANSWER = 40  # characters


def normalize_answer(text: str) -> str:
    """Return a text without differences of case, space and final punctuation."""
    text = " ".join(text.casefold().split())
    return re.sub(r"[\s.,;:!?]+$", "", text) or text


def expected_answer(row: dict) -> str:
    """Return the last answer of a row with `messages`."""
    return message_text(row["messages"][-1])


def find_question(row: dict) -> str:
    """Return the question before the last answer of a row with `messages`."""
    turns = [message for message in row["messages"] if message["role"] == "user"]
    return message_text(turns[-1])


def are_long(rows: list[dict]) -> bool:
    """Return whether the answers are so long that hardly one can be repeated exactly."""
    return median(len(expected_answer(row)) for row in rows) > LONG_ANSWER


def count_new_tokens(processor: FusionProcessor, rows: list[dict]) -> int:
    """Return how many tokens to generate: as many as the longest answer has, and a few more, within a limit."""
    ids = processor.tokenizer([expected_answer(row) for row in rows], add_special_tokens=False).input_ids
    return min(MAX_NEW_TOKENS, max(map(len, ids)) + 4)


def most_frequent_share(train: list[dict], held_out: list[dict]) -> tuple[str, float]:
    """Return the answer that most rows of a training have, and how many held-out rows have it too."""
    answer = Counter(normalize_answer(expected_answer(row)) for row in train).most_common(1)[0][0]
    return answer, sum(normalize_answer(expected_answer(row)) == answer for row in held_out) / len(held_out)


class AnswerMetrics:
    """
    Computes the accuracy of generated answers, as `compute_metrics` of `FusionTrainer`, and keeps the answers.

    Args:
        processor (`FusionProcessor`)
        rows (`list[dict]`): those that are evaluated.

    Attributes:
        answers (`list[str]`): of the last evaluation, in the order of the rows.
    """

    def __init__(self, processor: FusionProcessor, rows: list[dict]):
        self.processor = processor
        self.expected = [expected_answer(row) for row in rows]
        self.answers = []

    def __call__(self, prediction) -> dict[str, float]:
        ids = [row[row >= 0] for row in prediction.predictions]
        self.answers = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        pairs = zip(self.answers, self.expected, strict=True)
        right = [normalize_answer(answer) == normalize_answer(expected) for answer, expected in pairs]
        return {"accuracy": sum(right) / len(right)}
