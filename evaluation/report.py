"""
Make the table of an evaluation: our value, the authors' figure, the difference, and what differs in protocol.

A value never stands alone: without a difference the table says why, and below it each column has the differences of
the protocol that are known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion_vlm.evaluation.columns import Column


Z = 1.96  # quantile of the normal distribution for intervals of 95 %
KINDS = {
    "wilson": "Wilson's interval",
    "stderr": "1.96 standard errors of lmms-eval",
}
AUTHORS_DTYPE = "float16"
AUTHORS_GRIDS = "2, 4, 6, 8 and 12"
HARNESS = "0.7.3"  # the release of lmms-eval that benchmarks.yaml describes
NO_DIFFERENCE = "none known"


@dataclass(frozen=True)
class Interval:
    """An interval of 95 %, in the unit of the table, and how it was computed: a key of `KINDS`."""

    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    Args:
        name, task, metric, split (`str`): what was measured.
        value (`float`, *optional*): ours, in the unit of the table; None if there is none.
        authors (`float`, *optional*): the authors' figure.
        difference (`float`, *optional*): ours minus theirs, None where it would say nothing.
        interval (`Interval`, *optional*): of a part of the questions.
        num_questions (`int`), num_all (`int`): how many questions were asked, and how many there are.
        also (`dict[str, float]`): other metrics of the task.
        differs (`tuple[str, ...]`): what differs from the authors' run.
        problem (`str`, *optional*): why there is no value.
        judge (`dict`, *optional*): who graded the answers.
        data (`str`): the data set.
        finished (`str`): when, in ISO 8601.
        is_column (`bool`): whether this is a column of the paper's table.
    """

    name: str
    task: str
    metric: str
    split: str
    value: float | None = None
    authors: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    num_questions: int = 0
    num_all: int = 0
    also: dict[str, float] | None = None
    differs: tuple[str, ...] = ()
    problem: str | None = None
    judge: dict | None = None
    data: str = ""
    finished: str = ""
    is_column: bool = True

    @property
    def is_partial(self) -> bool:
        """Return whether a limit cut questions off."""
        return self.num_questions < self.num_all


# Intervals ----------------------------------------------------------------------------------------------------------


def wilson(share: float, count: int) -> tuple[float, float]:
    """
    Return Wilson's interval of 95 % for a share of right answers.

    It has a width at 0 and 1 too, where the standard error is 0.
    """
    center = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, center - half), min(1.0, center + half)


def find_interval(value: float, column: Column, record: dict) -> Interval | None:
    """Return the interval of a value in the unit of the table, or None if there is no way to compute one."""
    count = record["counts"].get(column.metric, 0)
    if column.interval == "wilson" and count:
        low, high = wilson(value / column.full, count)
        return Interval(low * column.full, high * column.full, "wilson")
    # Of a mean of numbers, and of a mean of the numbers that a task keeps in rows.
    errors = [record["values"].get(f"{column.metric}_{name},{column.filter}") for name in ("stderr", "stderr_clt")]
    error = next((each * column.scale for each in errors if isinstance(each, float)), None)
    if column.interval == "stderr" and error is not None:
        return Interval(value - Z * error, value + Z * error, "stderr")
    return None


# Rows ---------------------------------------------------------------------------------------------------------------


def make_rows(
    columns: Sequence[Column], records: dict[str, dict], failures: dict[str, str], authors: dict[str, float]
) -> list[Row]:
    """
    Make the lines of the table.

    Args:
        columns (`list[Column]`): what was to be measured.
        records (`dict[str, dict]`), failures (`dict[str, str]`): what `evaluate` returned.
        authors (`dict[str, float]`): the authors' figures of the model, by column; empty for another model.
    """
    rows = []
    for column in columns:
        if column.task in failures:
            rows.append(
                Row(column.name, column.task, column.metric or "", column.split, problem=failures[column.task])
            )
        elif column.metric is None:
            rows += [make_row(each, records[column.task], {}) for each in split_metrics(column, records[column.task])]
        else:
            rows.append(make_row(column, records[column.task], authors))
    return rows


def split_metrics(column: Column, record: dict) -> list[Column]:
    """Return a column for each metric of a task that was named by itself."""
    found = []
    for key, value in record["values"].items():
        metric, _, filter_name = key.partition(",")
        if "_stderr" in metric or not isinstance(value, (int, float)):
            continue
        kind = "wilson" if metric in record["right_or_wrong"] and 0 <= value <= 1 else "stderr"
        name = f"{column.name} {metric}" + (f" ({filter_name})" if filter_name not in ("none", "") else "")
        split = record["config"].get("test_split") or record["config"].get("validation_split") or ""
        found.append(replace(column, name=name, metric=metric, filter=filter_name, interval=kind, split=split))
    return found


def make_row(column: Column, record: dict, authors: dict[str, float]) -> Row:
    """Make the line of a column whose task has a result."""
    row = Row(
        column.name,
        column.task,
        str(column.metric),
        column.split,
        num_questions=record["num_questions"],
        num_all=record["num_all"],
        judge=record["judge"],
        data=record["data"],
        finished=record["finished"],
        is_column=column.full == 100,
    )
    value = record["values"].get(column.key)
    if value is None and column.zero:
        value = 0
    if not isinstance(value, (int, float)):
        where = f" among the first {row.num_questions}" if row.is_partial else ""
        return replace(row, problem=f"no question{where} has the metric {column.metric}")
    is_comparable = column.comparable and not (row.is_partial and column.limited) and column.name in authors
    also = {name: record["values"].get(f"{name},{column.filter}") for name in column.also}
    differs = list(column.differs)
    if row.is_partial:
        reason = f": {column.limited}" if column.limited else "; not drawn at random"
        differs.append(f"the first {row.num_questions} of {row.num_all} questions{reason}")
    return replace(
        row,
        value=value * column.scale,
        authors=authors.get(column.name),
        difference=value * column.scale - authors[column.name] if is_comparable else None,
        interval=find_interval(value * column.scale, column, record) if row.is_partial else None,
        also={name: each * column.scale for name, each in also.items() if isinstance(each, (int, float))},
        differs=tuple(differs),
    )


def describe_run(settings: dict, limit: int | None, harness: str, has_authors: bool) -> list[str]:
    """
    Return how a run was made, and what differs from the authors' in every column.

    Args:
        settings (`dict`): those of the model.
        limit (`int`, *optional*): the number of questions of each task.
        harness (`str`): the version of lmms-eval.
        has_authors (`bool`): whether the authors have figures of this model.
    """
    grid, seed = settings["latent_grid_size"], settings["draw_latents"]
    latents = f"{grid}x{grid} for each question"
    if seed is not None:
        latents = f"the side of the grid is drawn from {', '.join(map(str, grid))} with the seed {seed}"
    bits = f"in 4 bits ({settings['quantization']})" if settings["quantization"] else ""
    theirs = {"latents": "", "dtype": "", "weights": ""}
    if has_authors:
        theirs["latents"] = f"; the authors draw that side for each question from {AUTHORS_GRIDS}, without a seed"
        theirs["dtype"] = f"; the authors: {AUTHORS_DTYPE}" if settings["dtype"] != AUTHORS_DTYPE else ""
        theirs["weights"] = "; the authors' are not"
    ours = {"latents": latents, "dtype": settings["dtype"], "weights": bits}
    notes = [f"{name}: {text}{theirs[name]}" for name, text in ours.items() if text]
    if harness != HARNESS:
        notes.append(f"harness: lmms-eval {harness}; the table of columns was written for {HARNESS}")
    if limit:
        notes.append(
            f"questions: at most the first {limit} of each task; intervals of 95 % hold for a random sample, which the"
            " first questions are not"
        )
    return notes


# Printing -----------------------------------------------------------------------------------------------------------


def print_number(value: float | None, form: str = ".1f") -> str:
    """Return a number as a cell of the table."""
    return "-" if value is None else format(value, form)


def print_report(rows: Sequence[Row], *, model: str, authors: str | None, notes: Sequence[str], left_out) -> str:
    """
    Return the report as text.

    Args:
        rows (`list[Row]`): the lines of the table.
        model (`str`): the model, for the heading.
        authors (`str`, *optional*): the released model whose figures stand beside.
        notes (`list[str]`): what differs in every column.
        left_out (`list[str]`): names of columns that need a judge.
    """
    header = ["column", "ours", *(["authors'", "difference"] if authors else []), "questions", "task"]
    table = [header, *([*print_cells(row, bool(authors)), row.task] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(header))]
    lines = [f"{model}" + (f", beside the authors' figures of {authors}, which has its sizes" if authors else "")]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    lines += ["", "What differs from the authors' run, as far as it is known:" if authors else "How it was measured:"]
    lines += [f"  all: {note}" for note in notes]
    for row in rows:
        lines += print_notes(row, bool(authors))
    if kinds := sorted({row.interval.kind for row in rows if row.interval}):
        lines += ["", "Intervals of 95 %: " + "; ".join(f"{kind}, {KINDS[kind]}" for kind in kinds) + "."]
    if left_out:
        lines += ["", f"Left out, because a language model grades them (--judge): {', '.join(left_out)}."]
    return "\n".join(lines)


def print_cells(row: Row, has_authors: bool) -> list[str]:
    """Return the cells of a line of the table, but for the task."""
    digits = ".1f" if row.is_column else ".3f"
    if row.problem:
        return [row.name, "no result", *(["-", "-"] if has_authors else []), "-"]
    ours = print_number(row.value, digits)
    if row.interval:
        ours += f" ({row.interval.low:{digits}} to {row.interval.high:{digits}}, {row.interval.kind})"
    elif row.is_partial:
        ours += " (no interval)"
    theirs = [print_number(row.authors)]
    is_comparable = row.authors is None or row.difference is not None
    theirs.append(print_number(row.difference, "+.1f") if is_comparable else "not comparable")
    count = f"{row.num_questions} of {row.num_all}" if row.is_partial else str(row.num_questions)
    return [row.name, ours, *(theirs if has_authors else []), count]


def print_notes(row: Row, has_authors: bool) -> list[str]:
    """Return what differs in a column, in lines."""
    if row.problem:
        return [f"  {row.name}: no result: {row.problem}"]
    notes = [f"metric {row.metric}" + (f", split {row.split}" if row.split else "")]
    if row.also:
        notes[0] += " (" + ", ".join(f"{name} {value:.1f}" for name, value in row.also.items()) + ")"
    if row.judge:
        notes.append(f"graded by {row.judge['model']} at {row.judge['url']}")
    notes += row.differs if has_authors else [note for note in row.differs if note.startswith("the first ")]
    if has_authors and not row.differs:
        notes.append(f"beside what holds for all: {NO_DIFFERENCE}")
    return [f"  {row.name}: {notes[0]}", *(f"    {note}" for note in notes[1:])]
