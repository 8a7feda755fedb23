"""
Looks for biases that let a model answer without seeing: in the questions and answers of any LLaVA JSON or `datasets`.

    fusion-vlm audit PATH [--json FILE] [--plot FILE] [--fail-on default] [--fail-on NAME=LIMIT]

commands/audit.py describes the thresholds.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fusion_vlm.audit.language_only import (
    MAX_QUESTIONS,
    NUM_FOLDS,
    count_features,
    find_associations,
    list_features,
    tail,
    try_language_only,
)
from fusion_vlm.audit.questions import ATTRIBUTES, Question, find_attributes, read_question
from fusion_vlm.audit.report import AuditReport, Group, Pair
from fusion_vlm.audit.store import QuestionStore
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

    Rows are read once, as they come. Questions are kept in a temporary file, and memory holds the questions that the
    language-only model is fitted on: at most `MAX_QUESTIONS` at once.

    Args:
        rows (`Iterable[dict]`): rows with LLaVA's `conversations`, or `messages`. Types of questions may be declared
            as `question_types` (a list, one for each turn) or as `type` of a turn.
        limits (`dict`, *optional*): thresholds to judge, from `parse_limits`; by default all, with their defaults.
        seed (`int`): seed of the folds of the language-only model, and of the questions drawn for it.

    Raises:
        ValueError: if no row has a question and an answer.
    """
    num_rows, num_skipped = 0, 0

    def read_questions() -> Iterator[Question]:
        nonlocal num_rows, num_skipped
        for num_rows, row in enumerate(rows, 1):  # noqa: B007
            turns = read_turns(row)
            num_skipped += not turns
            yield from (read_question(*turn, num_rows - 1, index) for index, turn in enumerate(turns))

    with closing(QuestionStore(LAST_TURN)) as store:
        store.add_all(read_questions())
        if not len(store):
            raise ValueError(
                f"None of {num_rows} rows has a question and an answer. Expected LLaVA's `conversations`, or"
                " `messages`."
            )
        store.shorten_answers()
        report = _report(store, num_rows, num_skipped, seed)
    judge(report, parse_limits(["default"]) if limits is None else limits)
    return report


def _report(store: QuestionStore, num_rows: int, num_skipped: int, seed: int) -> AuditReport:
    folds = np.random.RandomState(seed).permutation(num_rows) % NUM_FOLDS
    tallies, joint = tally_questions(store.read_all())
    pairs, num_pairs = find_pairs(joint)
    sizes = Counter()
    for type, _, num in store.list_groups():
        sizes[type] += num
    by_type = sorted(sizes, key=lambda type: (-sizes[type], type))
    by_turn = sorted(
        (f"{type} (turn {turn}{' and later' if turn == LAST_TURN else ''})", type, turn)
        for type, turn, num in store.list_groups()
        if MIN_PAIR <= num < sizes[type]
    )

    def measure(name: str, type: str, turn: int | None = None) -> Group:
        group = _count(store, tallies, name, type, turn)
        return _try_language(group, store, store.list_ids(type, turn), folds, seed)

    return AuditReport(
        num_rows=num_rows,
        num_skipped=num_skipped,
        num_questions=len(store),
        types=[measure(type, type) for type in by_type],
        turns=[measure(*group) for group in by_turn],
        overall=_count(store, tallies, "all"),
        pairs=pairs,
        num_pairs=num_pairs,
    )


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


@dataclass
class Tally:
    """What is counted of the questions of a type in a turn, beside the answers; see `Group`."""

    yes_no: Counter = field(default_factory=Counter)
    letters: Counter = field(default_factory=Counter)
    numbers: Counter = field(default_factory=Counter)
    letter_shares: float = 0.0  # sum over questions of 1 / number of options

    def add(self, question: Question):
        if question.meaning in ("yes", "no"):
            self.yes_no[question.meaning] += 1
        if question.options:
            self.letters[question.answer] += 1
            self.letter_shares += 1 / len(question.options)
        is_count = question.type in ("count", "count: multiple_choice")
        if is_count and question.meaning.isdecimal() and len(question.meaning) < 10:
            self.numbers[question.meaning] += 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.yes_no + other.yes_no,
            self.letters + other.letters,
            self.numbers + other.numbers,
            self.letter_shares + other.letter_shares,
        )


def tally_questions(questions: Iterable[Question]) -> tuple[dict[tuple[str, int], Tally], Counter]:
    """
    Count the questions, which are in order of rows, in one pass.

    Returns:
        a `Tally` for each type and turn, and the number of rows that state each pair of an attribute and an object.
    """
    tallies, joint, row, found = defaultdict(Tally), Counter(), None, set()
    for question in questions:
        if question.row != row:
            joint.update(found)
            row, found = question.row, set()
        found |= find_attributes(question)
        tallies[question.type, min(question.turn + 1, LAST_TURN)].add(question)
    joint.update(found)
    return tallies, joint


def _count(
    store: QuestionStore,
    tallies: dict[tuple[str, int], Tally],
    name: str,
    type: str | None = None,
    turn: int | None = None,
) -> Group:
    """Count the answers of a group, without language-only model and words."""
    answers, num_by_count = store.count_answers(type, turn)
    counts, nums = (np.array(values) for values in zip(*sorted(num_by_count.items()), strict=True))
    total = int((counts * nums).sum())
    shares = counts / total
    keys = [key for key in sorted(tallies) if type in (None, key[0]) and turn in (None, key[1])]
    tally = sum((tallies[key] for key in keys), Tally())
    num_lettered = tally.letters.total()
    return Group(
        name=name,
        num=total,
        num_answers=int(nums.sum()),
        answers=answers,
        entropy=float(-(nums * shares * np.log2(shares)).sum()) + 0.0,  # not -0.0
        yes_no={answer: tally.yes_no[answer] for answer in ("yes", "no")},
        letters=dict(sorted(tally.letters.items())),
        expected_letter=tally.letter_shares / num_lettered if num_lettered else 0.0,
        # Of all questions together, numbers would be of several types.
        numbers=dict(sorted(tally.numbers.items(), key=lambda item: int(item[0]))) if type else {},
    )


def _try_language(group: Group, store: QuestionStore, ids: np.ndarray, folds: np.ndarray, seed: int) -> Group:
    """Add the language-only model and the words that predict answers, if there are enough questions."""
    if len(ids) < MIN_LANGUAGE:
        return group
    if len(ids) > MAX_QUESTIONS:
        ids = np.sort(np.random.RandomState(seed).choice(ids, MAX_QUESTIONS, replace=False))
    questions = list(store.read(ids))
    features, names = count_features(questions, list_features)
    group.language_only = try_language_only(questions, features, folds[[question.row for question in questions]])
    answers = [question.answer for question in questions]
    group.words = find_associations(features, names, answers, MIN_PAIR)[:10]
    return group


def find_pairs(joint: Counter) -> tuple[list[Pair], int]:
    """
    Find the attributes that come with an object more often than by chance.

    Args:
        joint (`Counter`): number of rows by attribute and object.

    Returns:
        the ten pairs with the largest normalized mutual information, and the number of all that were counted.
    """
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
    return sorted(pairs, key=lambda pair: (-pair.npmi, pair.attribute, pair.object))[:10], joint.total()


def read_rows(path: str | Path) -> Iterator[dict]:
    """
    Yield the rows of a file or folder, without columns of images; see `stream_rows`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the path is of a kind that cannot be read.
    """
    return stream_rows(path, TEXT_COLUMNS)
