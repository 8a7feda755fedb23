"""
Looks for biases that let a model answer without seeing: in the questions and answers of any LLaVA JSON or `datasets`.

    fusion-vlm audit PATH [--json FILE] [--plot FILE] [--fail-on default] [--fail-on NAME=LIMIT]

commands/audit.py describes the thresholds.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fusion_vlm.audit.language_only import (
    MAX_QUESTIONS,
    NUM_FOLDS,
    Features,
    features_of,
    find_associations,
    label_answers,
    tail,
    try_language_only,
)
from fusion_vlm.audit.questions import ATTRIBUTES, Question, find_attributes, read_question, unify_answers
from fusion_vlm.audit.report import AuditReport, Group, Pair, import_extra
from fusion_vlm.audit.thresholds import CERTAINTY, Limits, judge, parse_limits


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# Types of questions. A key `type` of a whole row counts only with such a value: in some sets it has another meaning.
TYPES = {"colour", "shape", "count", "spatial", "yes_no", "text", "scene", "multiple_choice", "difference", "caption"}
TEXT_COLUMNS = ("messages", "conversations", "question_types", "type")
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
        turns = turns_of(row)
        num_skipped += not turns
        questions += [read_question(*turn, num_rows - 1, index) for index, turn in enumerate(turns)]
    if not questions:
        raise ValueError(
            f"None of {num_rows} rows has a question and an answer. Expected LLaVA's `conversations`, or `messages`."
        )
    unify_answers(questions)
    folds = np.random.RandomState(seed).permutation(num_rows) % NUM_FOLDS
    features = Features.build(features_of(question) for question in questions)
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


def turns_of(row: dict) -> list[tuple[str, str, str | None]]:
    """Return question, answer and declared type of each turn of a row; nothing for a row of another form."""
    entries = row.get("conversations") or row.get("messages") if isinstance(row, dict) else None
    if isinstance(entries, dict):  # the form in which `datasets` stores a `Sequence` of dicts
        entries = [dict(zip(entries, values, strict=True)) for values in zip(*entries.values(), strict=False)]
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    said = [(ROLES.get(str(entry.get("from") or entry.get("role"))), entry) for entry in entries]
    said = [(role, entry) for role, entry in said if role]
    pairs = [
        (question, answer)
        for (role, question), (next_role, answer) in zip(said, said[1:], strict=False)
        if (role, next_role) == ("user", "assistant")
    ]
    if not pairs:
        return []
    types = row.get("question_types")
    if not isinstance(types, list) or len(types) != len(pairs):
        types = [row.get("type") if str(row.get("type")) in TYPES else None] * len(pairs)
    turns = []
    for (question, answer), declared in zip(pairs, types, strict=True):
        declared = question.get("type") or answer.get("type") or declared
        turns.append((_text_of(question), _text_of(answer), declared if isinstance(declared, str) else None))
    return turns


def _text_of(entry: dict) -> str:
    content = entry["value"] if entry.get("value") is not None else entry.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = str(content or "").replace("<image>", "").strip()
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be printed


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
    Read the rows of a file or folder, without columns of images.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the path is of no kind that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.suffix == ".jsonl":
        with open(path, encoding="utf-8-sig") as file:
            yield from (_parse(line, f"{path}, line {i}") for i, line in enumerate(file, 1) if line.strip())
    elif path.suffix == ".json":
        rows = _parse(path.read_text(encoding="utf-8-sig"), str(path))
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds {str(rows)[:50]!r}, expected a list of rows. JSON lines are named .jsonl.")
        yield from rows
    else:
        raise ValueError(f"{path} is of no kind that can be read: expected .json, .jsonl, .parquet or a folder.")


def _parse(text: str, place: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from error


def _read_folder(path: Path) -> Iterator[dict]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        table = import_extra("datasets").load_from_disk(str(path))
        for split in table.values() if isinstance(table, dict) else [table]:
            names = [name for name in TEXT_COLUMNS if name in split.column_names]
            _check_columns(split.column_names, path)
            yield from split.select_columns(names)
    elif files := sorted(path.rglob("*.parquet")):
        for file in files:
            yield from _read_parquet(file)
    else:
        files = [file for file in (path / "train.json", path / "train.jsonl") if file.exists()]
        files = files or sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
        if len(files) != 1:
            raise ValueError(f"{path} holds no .parquet and {len(files)} .json files, expected one. Name the file.")
        yield from read_rows(files[0])


def _read_parquet(path: Path) -> Iterator[dict]:
    with import_extra("pyarrow.parquet").ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, path)
        names = [name for name in TEXT_COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1000, columns=names):
            yield from batch.to_pylist()


def _check_columns(names: list[str], path: Path):
    if not {"messages", "conversations"} & set(names):
        raise ValueError(f"{path} has the columns {sorted(names)}, expected `messages` or `conversations` among them.")
