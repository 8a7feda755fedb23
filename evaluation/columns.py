"""
Read the columns of the paper's table: the task that measures each, and what differs from the authors' run.

Nothing here imports torch or lmms-eval, so that a wrong name on a command line is refused at once.
"""

import difflib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

from fusion_vlm.hub import names


BENCHMARKS = Path(__file__).resolve().parent / "benchmarks.yaml"
AUTHORS_RESULTS = Path(names.__file__).resolve().parent / "results.yaml"
INTERVALS = ("wilson", "stderr", "none")
ALL = "all"


@dataclass(frozen=True)
class Column:
    """
    A column of the paper's table, or a task that was named by itself; benchmarks.yaml says what the fields are.

    A task that was named by itself has no `metric`, and a column for each one that it computes. `full` is the value of
    answers that are all right.
    """

    name: str
    task: str
    metric: str | None
    scale: float
    split: str
    interval: str
    filter: str = "none"
    questions: int | None = None
    judge: bool = False
    paired: bool = False
    zero: bool = False
    comparable: bool = True
    also: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    limited: str | None = None
    full: float = 100

    @property
    def key(self) -> str:
        """Key of the value in the results of lmms-eval."""
        return f"{self.metric},{self.filter}"


def read_columns(path: Path = BENCHMARKS) -> dict[str, Column]:
    """
    Read the columns of a file such as benchmarks.yaml, in its order.

    Raises:
        ValueError: for an unknown, missing or malformed field; the message names the column.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: build_column(name, row, path) for name, row in table.items()}


def build_column(name: str, row: dict, path: Path) -> Column:
    """Build a column of its fields in a file, or raise a ValueError that names the column and the field."""
    kinds = {field.name: field.type for field in fields(Column)}
    needed = {field.name for field in fields(Column) if field.default is MISSING} - {"name"}
    if unknown := row.keys() - kinds.keys() | ({"name"} & row.keys()):
        raise ValueError(f"{path}: {name} has the unknown field {sorted(unknown)[0]!r}; known: {', '.join(kinds)}.")
    if missing := needed - row.keys():
        raise ValueError(f"{path}: {name} lacks {', '.join(sorted(missing))}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    for key, value in values.items():
        if not fits(value, kinds[key]):
            raise ValueError(f"{path}: the field {key} of {name} is {row[key]!r}, expected {kinds[key]}.")
    if values["interval"] not in INTERVALS:
        raise ValueError(f"{path}: the interval of {name} is {values['interval']!r}, expected one of {INTERVALS}.")
    return Column(name=name, **values)


def fits(value, kind) -> bool:
    """Return whether a value of a YAML file has the type of a field."""
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, kind)


def choose_columns(chosen: list[str], columns: dict[str, Column]) -> list[Column]:
    """
    Return the columns that are named, in the order of the table; `all` names each.

    Names are compared without case, `-` and `_`, because the table spells MM-Vet and MME_P.

    Raises:
        ValueError: for a name that no column has; the message names the nearest one.
    """

    def normalize(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    found = {normalize(name): name for name in columns}
    for name in chosen:
        if normalize(name) not in {ALL, *found}:
            near = difflib.get_close_matches(normalize(name), found, n=1)
            hint = f"Did you mean {found[near[0]]}?" if near else f"The benchmarks are {', '.join(columns)}, or all."
            raise ValueError(f"There is no benchmark {name!r}. {hint}")
    wanted = {normalize(name) for name in chosen}
    return [column for name, column in columns.items() if ALL in wanted or normalize(name) in wanted]


def make_columns(tasks: list[str]) -> list[Column]:
    """Make a column for each task of lmms-eval that is named by itself, which the paper's table does not have."""
    return [
        Column(name=task, task=task, metric=None, scale=1, split="", interval="none", full=1)
        for task in dict.fromkeys(tasks)
    ]


def read_authors_scores(name: str | None) -> dict[str, float]:
    """Read the figures of the paper's table for a released model; empty for None, which stands for other sizes."""
    table = yaml.safe_load(AUTHORS_RESULTS.read_text(encoding="utf-8"))
    return table["scores"][name] if name else {}


def read_column_names() -> list[str]:
    """Read the names of the columns of the paper's table, in its order."""
    table = yaml.safe_load(AUTHORS_RESULTS.read_text(encoding="utf-8"))
    return [benchmark["key"] for benchmark in table["benchmarks"]]
