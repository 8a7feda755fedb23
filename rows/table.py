"""
Makes rows that training reads, chat messages with the image inside, of a table of images, questions and answers.

    rows, problems, notices = read_rows("table.csv")

A table has a column of answers, one of questions, and unless it is about text alone one of images; they are found by
name. Rows with `messages` or LLaVA's `conversations` (JSON, parquet) need no columns. `rows.files` reads files.
"""

import hashlib
import math
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fusion_vlm.rows.files import RawRow, Table, read_file
from fusion_vlm.rows.forms import CHAT_COLUMNS, RowError, image_parts, message_text
from fusion_vlm.rows.messages import load_image, to_messages


# Compared without case, spaces and punctuation.
COLUMN_NAMES = {
    "image": (
        "image", "images", "image_path", "image_file", "image_name", "image_filename", "img", "img_path", "file",
        "file_name", "file_path", "path", "picture", "photo",
    ),
    "question": ("question", "prompt", "instruction", "query", "user", "problem"),
    "answer": ("answer", "label", "response", "output", "target", "completion", "solution", "caption"),
}  # fmt: skip
ADDRESSES = ("http://", "https://", "data:", "file:")


@dataclass(frozen=True)
class Columns:
    """The names of columns, None for one that is to be found, or that the table lacks."""

    image: str | None = None
    question: str | None = None
    answer: str | None = None


BY_NAME = Columns()


@dataclass(frozen=True)
class RowProblem:
    """A row that cannot be used: `place` such as "line 3", and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class BadRowsError(ValueError):
    """
    Rows of a table that cannot be used.

    Args:
        name (`str`): of the table.
        problems (`list[RowProblem]`): at least one.
        num_rows (`int`): of the table, good and bad.
    """

    def __init__(self, name: str, problems: list[RowProblem], num_rows: int):
        self.problems = problems
        # One problem of each kind says more than five of the same.
        kinds = {re.sub(r"'.*?'|\d+", "", problem.reason): problem for problem in reversed(problems)}
        shown = list(dict.fromkeys([*reversed(kinds.values()), *problems]))[:6]
        shown.sort(key=problems.index)
        lines = [f"{name}: {len(problems)} of {num_rows} rows cannot be used:", *(f"  {problem}" for problem in shown)]
        if len(problems) > len(shown):
            lines.append(f"  and {len(problems) - len(shown)} more")
        super().__init__("\n".join(lines))


def read_rows(
    path: str | Path,
    *,
    image_folder: str | Path | None = None,
    columns: Columns = BY_NAME,
    question: str | None = None,
) -> tuple[list[dict], list[RowProblem], list[str]]:
    """
    Read a table; opens no image.

    Args:
        path (`str` or `Path`): see `read_file`.
        image_folder (`str` or `Path`, *optional*): where relative image paths begin. Defaults to the table's folder.
        columns (`Columns`): those that are not to be found by name.
        question (`str`, *optional*): the question of every row, for a table without such a column.

    Returns:
        The good rows, `{"messages": [...], "source": "table.csv, line 2"}`, an image part holding a `Path` or what the
        file has of the image; what is wrong with the others; and what was guessed about the file.

    Raises:
        ValueError: as `read_file` and `find_columns`.
    """
    table = read_file(path)
    base = table.path if table.path.is_dir() else table.path.parent
    folder = Path(image_folder).expanduser() if image_folder else base
    if not folder.is_dir():
        raise ValueError(f"There is no folder of images {folder}.")
    flat = [row for row in table.rows if row.error is None and not _is_chat(row)]
    if columns != BY_NAME or flat:
        # A file of lines may mix both kinds; the columns of conversations are none of a table.
        names = [name for name in table.columns if any(name in row.values for row in flat)]
        columns = find_columns(replace(table, columns=names or table.columns), columns, question)
    rows, problems = [], []
    for raw in table.rows:
        place = f"{table.unit} {raw.number}"
        try:
            messages = _to_messages(raw, columns, question)
            for part in image_parts(messages):
                part["image"] = resolve_image(part["image"], folder)
            rows.append({"messages": messages, "source": f"{table.path.name}, {place}"})
        except RowError as error:
            problems.append(RowProblem(place, str(error)))
    return rows, problems, table.notices


def find_columns(table: Table, named: Columns = BY_NAME, question: str | None = None) -> Columns:
    """
    Return which columns hold images, questions and answers; no image column means a table about text.

    Args:
        table (`Table`)
        named (`Columns`): names to use instead of searching.
        question (`str`, *optional*): stands in for a column of questions.

    Raises:
        ValueError: if none or several columns fit, or a named one is not there or there twice. It lists the columns.
    """
    found: dict[str, Any] = {}
    for role in ("image", "question", "answer"):
        name = getattr(named, role)
        if role == "question" and question is not None:
            if name is not None:
                raise ValueError("There is a question for every row and a column of questions; give one of them.")
            found[role] = None
        else:
            found[role] = _find_column(table, role, name)
    for first, second in (("question", "answer"), ("image", "question"), ("image", "answer")):
        if found[first] and found[first] == found[second]:
            raise ValueError(f"The column {found[first]!r} is both {first} and {second}.")
    return Columns(**found)


def _find_column(table: Table, role: str, name: str | None) -> str | None:
    names = [name] if name is not None else COLUMN_NAMES[role]
    fitting = [column for column in table.columns if _key(column) in map(_key, names)]
    if name is not None and name in fitting:
        fitting = [column for column in fitting if column == name]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(map(repr, table.columns[:20])) or "none"
    if len(table.columns) > 20:
        listed += f" and {len(table.columns) - 20} more"
    option = f"--{role}-column"
    if len(fitting) > 1:
        if len(set(fitting)) == 1:
            raise ValueError(f"{table.path.name} has the column {fitting[0]!r} twice. Rename one of them.")
        raise ValueError(
            f"{table.path.name} has several columns that may hold the {role}: {', '.join(map(repr, fitting))}."
            f" Name the right one: {option} {fitting[0]!r}"
        )
    if name is not None:
        raise ValueError(f"{table.path.name} has no column {name!r} ({option}). Its columns: {listed}.")
    if role == "image":
        return None
    advice = f"Name it: {option} NAME"
    if role == "question":
        advice += "; or give one question for all rows: --question TEXT"
    raise ValueError(
        f"{table.path.name} has no column of {role}s. Its columns (the first row names them): {listed}. {advice}."
        f" Found without: {', '.join(COLUMN_NAMES[role])}."
    )


def _key(name: Any) -> str:
    return re.sub(r"[\W_]+", "", str(name).casefold())


def _is_chat(row: RawRow) -> bool:
    return any(row.values.get(name) is not None for name in CHAT_COLUMNS)


def _to_messages(raw: RawRow, columns: Columns, question: str | None) -> list[dict]:
    if raw.error is not None:
        raise RowError(raw.error)
    if _is_chat(raw):
        messages = to_messages(raw.values, load_images=False)
        for message in messages:
            if not message_text(message).strip():
                raise RowError(f"a message of the role {message['role']} is empty")
        return messages
    text = question if question is not None else to_text(raw.values.get(columns.question), "question")
    turns = [
        {"from": "human", "value": text},
        {"from": "gpt", "value": to_text(raw.values.get(columns.answer), "answer")},
    ]
    image = raw.values.get(columns.image) if columns.image else None
    # As turns, so that `<image>` in a question is where the image stands.
    return to_messages({"conversations": turns, "image": _drop_missing(image)}, load_images=False)


def _drop_missing(image: Any) -> Any:
    """Return None for what stands for a missing image: blanks, NaN, an image of `datasets` without content."""
    if isinstance(image, str):
        return image.strip() or None
    if isinstance(image, dict):
        return image if image.get("bytes") or image.get("path") else None
    return None if isinstance(image, float) and math.isnan(image) else image


def to_text(value: Any, name: str) -> str:
    """
    Return a cell as text, stripped; whole numbers without a point, since pandas makes 3.0 of 3.

    Raises:
        RowError: if it is empty, a list or a dict.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, dict)):
        raise RowError(f"the {name} is {str(value)[:60]!r}, expected a text or a number")
    if isinstance(value, bytes):
        raise RowError(f"the {name} is binary, expected a text or a number")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError(f"the {name} is empty")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if not text:
        raise RowError(f"the {name} is empty")
    return text


def resolve_image(source: Any, folder: Path) -> Any:
    """
    Return where an image is: a `Path` for whatever names a file, else the source (bytes, base64) as it is.

    Args:
        source: what the table has. `~`, absolute paths and Windows separators are understood.
        folder (`Path`): where relative paths begin.

    Raises:
        RowError: if there is no such file, or if the source is an address.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, (int, float)):
        source = str(source)
    if not isinstance(source, str) or source.lower().startswith(ADDRESSES) or _is_base64(source):
        if isinstance(source, str) and source.lower().startswith("http"):
            raise RowError(f"the image is an address, {source[:80]!r}; download it and name the file")
        return {"bytes": source} if isinstance(source, bytes) else source
    # macOS writes the names of files with letters and accents apart (NFD), tables have them in one (NFC), or reversed.
    names = [source, source.replace("\\", "/")]
    names += [unicodedata.normalize(form, names[1]) for form in ("NFC", "NFD")]
    for name in dict.fromkeys(names):
        path = folder / os.path.expanduser(name)
        if path.is_file():
            return path
    path = folder / os.path.expanduser(names[1])
    kind = "it is a folder" if path.is_dir() else "there is no such file"
    if near := _list_names(path.parent).get(path.name.casefold()):
        kind += f", but {near!r}"
    raise RowError(f"image {source[:120]!r}: {kind} ({path})")


@lru_cache(maxsize=64)
def _list_names(folder: Path) -> dict[str, str]:
    """Return the names of the files of a folder by what a table may have instead: other case, no suffix."""
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except (OSError, ValueError):
        return {}
    return {key: path.name for path in files for key in (path.stem.casefold(), path.name.casefold())}


def _is_base64(text: str) -> bool:
    return len(text) > 255 and re.fullmatch(r"[A-Za-z0-9+/=\s]+", text) is not None


def check_images(rows: list[dict], progress: bool = False) -> tuple[list[str | None], list[RowProblem]]:
    """
    Decode every image once.

    Args:
        rows (`list[dict]`): of `read_rows`.
        progress (`bool`): whether to show a bar.

    Returns:
        For each row a fingerprint of its image, equal for equal content and None without an image; and the rows whose
        image cannot be read.
    """
    sources = [next((part["image"] for part in image_parts(row["messages"])), None) for row in rows]
    # By path, or by identity: bytes are long.
    unique = {source if isinstance(source, Path) else id(source): source for source in sources if source is not None}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(_check_image, unique.values())
        results = tqdm(results, total=len(unique), desc="Checking images", disable=not progress, leave=False)
        checked = dict(zip(unique, results, strict=True))
    fingerprints, problems = [], []
    for row, source in zip(rows, sources, strict=True):
        key = source if isinstance(source, Path) else id(source)
        fingerprint, error = checked[key] if source is not None else (None, None)
        fingerprints.append(fingerprint)
        if error is not None:
            problems.append(RowProblem(row["source"].rpartition(", ")[2], error))
    return fingerprints, problems


def _check_image(source: Any) -> tuple[str | None, str | None]:
    """Return the fingerprint of an image, and what is wrong with it."""
    try:
        load_image(source)
        if isinstance(source, Path):
            return hashlib.sha256(source.read_bytes()).hexdigest(), None
        data = source["bytes"] if isinstance(source, dict) else str(source).encode()
        return hashlib.sha256(data).hexdigest(), None
    except (ValueError, OSError) as error:
        name = f"image '{source}': " if isinstance(source, Path) else ""
        return None, f"{name}{error}"
