"""
Looks for biases that let a model answer without seeing: in the questions and answers of any LLaVA JSON or `datasets`.

    fusion-vlm audit PATH [--json FILE] [--plot FILE] [--fail-on default] [--fail-on NAME=LIMIT]

commands/audit.py describes the thresholds.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fusion_vlm.audit.language_only import (
    MAX_QUESTIONS,
    NUM_FOLDS,
    Features,
    find_associations,
    label_answers,
    list_features,
    tail,
    try_language_only,
)
from fusion_vlm.audit.questions import ATTRIBUTES, Question, find_attributes, read_question, unify_answers
from fusion_vlm.audit.report import AuditReport, Group, Pair
from fusion_vlm.audit.thresholds import CERTAINTY, Limits, judge, parse_limits
from fusion_vlm.rows.forms import CHAT_COLUMNS, read_dialogue
from fusion_vlm.rows.readers import stream_rows


# Types of questions. A key `type` of a whole row counts only with such a value: in some sets it has another meaning.
TYPES = {"colour", "shape", "count", "spatial", "yes_no", "text", "scene", "multiple_choice", "difference", "caption"}
TEXT_COLUMNS = (*CHAT_COLUMNS, "question_types", "type")
MIN_LANGUAGE = 30  # questions that the language-only model needs
MIN_PAIR = 10  # rows in which an attribute comes with an object, or questions with a word
LAST_TURN = 4  # later turns are in one group with this turn


def audit(rows: Iterable[dict], limits: Limits | None = None, seed: int = 0) -> AuditReport:
    """
    Audit the texts of rows, without their images.

    Args:
        rows (`Iterable[dict]`): rows with LLaVA's `conversations`, or `messages`. Types of questions may be declared
            as `question_types` (a list, one for each turn) or as `type` of a turn. Only texts are kept in memory.
        limits (`dict`, *optional*): thresholds to judge, from `parse_limits`; by default all, with their defaults.
        seed (`int`): seed of the folds of the language-only model, and of the questions drawn for it.

    Raises:
        ValueError: if no row has a question and an answer.
    """
    questions, num_rows, num_skipped = [], 0, 0
    for num_rows, row in enumerate(rows, 1):  # noqa: B007
        turns = read_turns(row)
        num_skipped += not turns
        questions += [read_question(*turn, num_rows - 1, index) for index, turn in enumerate(turns)]
    if not questions:
        raise ValueError(
            f"None of {num_rows} rows has a question and an answer. Expected LLaVA's `conversations`, or `messages`."
        )
    unify_answers(questions)
    folds = np.random.RandomState(seed).permutation(num_rows) % NUM_FOLDS
    features = Features.build(list_features(question) for question in questions)
    by_type, by_turn = _partition(questions)
    pairs, num_pairs = count_pairs(questions)
    report = AuditReport(
        num_rows=num_rows,
        num_skipped=num_skipped,
        num_questions=len(questions),
        types=[_measure(name, questions, indices, features, folds, seed) for name, indices in by_type.items()],
        turns=[_measure(name, questions, indices, features, folds, seed) for name, indices in by_turn.items()],
        overall=_count("all", questions),
        pairs=pairs,
        num_pairs=num_pairs,
    )
    judge(report, parse_limits(["default"]) if limits is None else limits)
    return report


def read_turns(row: dict) -> list[tuple[str, str, str | None]]:
    """Return question, answer and declared type of each turn of a row; nothing for a row of another form."""
    said = [turn for turn in read_dialogue(row) if turn[0] != "system"]
    pairs = [
        (question, answer)
        for question, answer in zip(said, said[1:], strict=False)
        if (question[0], answer[0]) == ("user", "assistant")
    ]
    if not pairs:
        return []
    types = row.get("question_types")
    if not isinstance(types, list) or len(types) != len(pairs):
        types = [row.get("type") if str(row.get("type")) in TYPES else None] * len(pairs)
    turns = []
    for ((_, question, asked), (_, answer, answered)), declared in zip(pairs, types, strict=True):
        declared = asked.get("type") or answered.get("type") or declared
        turns.append((question, answer, declared if isinstance(declared, str) else None))
    return turns


def _partition(questions: list[Question]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the indices of the questions of each type, largest first, and of each type and turn."""
    by_type, by_turn = defaultdict(list), defaultdict(list)
    for index, question in enumerate(questions):
        turn = f"{question.turn + 1}" if question.turn + 1 < LAST_TURN else f"{LAST_TURN} and later"
        by_type[question.type].append(index)
        by_turn[f"{question.type} (turn {turn})"].append(index)
    by_type = dict(sorted(by_type.items(), key=lambda item: (-len(item[1]), item[0])))
    sizes = {name: len(indices) for name, indices in by_type.items()}
    by_turn = {
        name: indices
        for name, indices in sorted(by_turn.items())
        if MIN_PAIR <= len(indices) < sizes[name.rpartition(" (turn ")[0]]
    }
    return by_type, by_turn


def _count(name: str, questions: list[Question]) -> Group:
    """Count the answers of a group, without language-only model and words."""
    counts = Counter(question.answer for question in questions)
    shares = np.array(list(counts.values())) / len(questions)
    meanings = Counter(question.meaning for question in questions)
    lettered = [question for question in questions if question.options]
    letters = Counter(question.answer for question in lettered)
    group = Group(
        name=name,
        num=len(questions),
        num_answers=len(counts),
        answers=sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10],
        entropy=float(-(shares * np.log2(shares)).sum()) + 0.0,  # not -0.0
        yes_no={"yes": meanings["yes"], "no": meanings["no"]},
        letters=dict(sorted(letters.items())),
        expected_letter=float(np.mean([1 / len(question.options) for question in lettered])) if lettered else 0.0,
    )
    if name.partition(" (")[0] in ("count", "count: multiple_choice"):
        numbers = {meaning: count for meaning, count in meanings.items() if meaning.isdecimal() and len(meaning) < 10}
        group.numbers = dict(sorted(numbers.items(), key=lambda item: int(item[0])))
    return group


def _measure(
    name: str, questions: list[Question], indices: list[int], features: Features, folds: np.ndarray, seed: int
) -> Group:
    group = _count(name, [questions[index] for index in indices])
    if len(indices) < MIN_LANGUAGE:
        return group
    drawn = np.array(indices)
    if len(drawn) > MAX_QUESTIONS:
        drawn = np.sort(np.random.RandomState(seed).choice(drawn, MAX_QUESTIONS, replace=False))
    some = [questions[index] for index in drawn]
    labels, names = label_answers([question.answer for question in some])
    own = features.take(drawn)
    group.language_only = try_language_only(some, own, folds[[question.row for question in some]], labels)
    group.words = find_associations(own, labels, names, MIN_PAIR)[:10]
    return group


def count_pairs(questions: list[Question]) -> tuple[list[Pair], int]:
    """Find the attributes that come with an object more often than by chance, and count all that were found."""
    found = {(question.row, *pair) for question in questions for pair in find_attributes(question)}
    joint = Counter((attribute, noun) for _, attribute, noun in found)
    # Attributes are compared within their kind: a large red ball counts once among colors and once among sizes.
    totals, attributes, objects = Counter(), Counter(), Counter()
    for (attribute, noun), count in joint.items():
        kind = ATTRIBUTES[attribute]
        totals[kind] += count
        attributes[attribute] += count
        objects[kind, noun] += count
    pairs = []
    for (attribute, noun), count in sorted(joint.items()):
        total, num_objects = totals[ATTRIBUTES[attribute]], objects[ATTRIBUTES[attribute], noun]
        if count < MIN_PAIR or attributes[attribute] == total or num_objects == total:
            continue
        expected = attributes[attribute] / total
        npmi = math.log(count / num_objects / expected) / -math.log(count / total)
        chance = min(1.0, float(tail(count, num_objects, expected)) * len(joint))
        pairs.append(Pair(attribute, noun, count, npmi, chance))
    pairs = [pair for pair in pairs if pair.npmi > 0 and pair.chance < CERTAINTY]
    return sorted(pairs, key=lambda pair: (-pair.npmi, pair.attribute, pair.object))[:10], len(found)


def read_rows(path: str | Path) -> Iterator[dict]:
    """
    Yield the rows of a file or folder, without columns of images; see `stream_rows`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the path is of a kind that cannot be read.
    """
    return stream_rows(path, TEXT_COLUMNS)
