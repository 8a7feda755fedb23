"""
Reads files of rows as the rows are needed: JSON lists, JSON lines, parquet, and folders of `datasets`.

`open_rows` gives access to any row by its index, `stream_rows` yields all of them once. Neither holds a whole file in
memory. What a row looks like is the matter of `rows.forms`; tables that people made by hand are read by `rows.files`.
"""

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fusion_vlm.rows.forms import CHAT_COLUMNS, IMAGE_COLUMNS, RowError


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_SUFFIXES = (".json", ".jsonl")
JSON_SPACE = re.compile(r"[ \t\r\n]*")
BATCH_SIZE = 1000  # rows of a table that are read at once


def open_rows(path: Path, name: str) -> "JsonRows | TableRows":
    """
    Open a file or folder so that each row can be read by its index.

    Args:
        path (`Path`): a `.json`, `.jsonl` or `.parquet` file, or a folder of `datasets.save_to_disk`.
        name (`str`): what errors call the file.

    Raises:
        ValueError: for a file of another kind, a folder of several splits, or a file that is broken as a whole.
    """
    if path.suffix in JSON_SUFFIXES:
        return JsonRows(path, name)
    if path.suffix == ".parquet":
        # `datasets` copies the file to its cache once, in a form that can be mapped into memory.
        load_dataset = import_table_library("datasets").load_dataset
        return TableRows(load_dataset("parquet", data_files=str(path), split="train"), name)
    if not path.is_dir():
        raise ValueError(
            f"{name} is of no kind that can be read: expected .json, .jsonl, .parquet or a folder of"
            " `datasets.save_to_disk`."
        )
    splits = load_splits(path)
    if None not in splits:
        raise ValueError(f"{name} holds the splits {list(splits)}, expected one: {name}/{next(iter(splits))}, say.")
    return TableRows(splits[None], name)


def stream_rows(path: str | Path, columns: Iterable[str]) -> Iterator[Any]:
    """
    Yield the rows of a file or folder, one after the other. JSON may hold values that are no rows; they come as is.

    Args:
        path (`str` or `Path`): a `.json`, `.jsonl` or `.parquet` file, a folder of `datasets.save_to_disk` (all
            splits), or a folder with parquet files or one JSON file.
        columns (`Iterable[str]`): the only columns that are read of tables, so that images stay on disk.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the path is of another kind, if a table has no column of `CHAT_COLUMNS`, or if JSON is broken.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.is_dir():
        yield from _stream_folder(path, columns)
    elif path.suffix == ".parquet":
        yield from stream_parquet(path, columns)
    elif path.suffix in JSON_SUFFIXES:
        yield from JsonRows(path, str(path)).values()
    else:
        raise ValueError(f"{path} is of no kind that can be read: expected .json, .jsonl, .parquet or a folder.")


def stream_parquet(path: str | Path, columns: Iterable[str], required: Iterable[str] = CHAT_COLUMNS) -> Iterator[dict]:
    """
    Yield the rows of a parquet file, with some of its columns.

    Args:
        columns (`Iterable[str]`): names to read, as far as the file has them.
        required (`Iterable[str]`): the file has to have one of these.

    Raises:
        ValueError: if the file has no required column.
    """
    with import_table_library("pyarrow.parquet").ParquetFile(path) as file:
        names = _choose_columns(file.schema_arrow.names, columns, required, path)
        for batch in file.iter_batches(batch_size=BATCH_SIZE, columns=names):
            yield from batch.to_pylist()


def load_splits(folder: Path) -> dict:
    """Return the data sets in a folder of `datasets.save_to_disk` by split; a single one has the key None."""
    table = import_table_library("datasets").load_from_disk(str(folder))
    return dict(table) if isinstance(table, dict) else {None: table}


def import_table_library(name: str) -> ModuleType:
    """
    Import `datasets` or `pyarrow`, which only the readers of tables need.

    Raises:
        ImportError: with the command that installs the library.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Tables need {name}, which comes with `pip install 'fusion-vlm[train]'`.") from error


def _stream_folder(path: Path, columns: Iterable[str]) -> Iterator[Any]:
    if (path / "run.json").exists():  # of the data engine: other folders hold rejected samples
        path = path / "data"
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        for split in load_splits(path).values():
            yield from split.select_columns(_choose_columns(split.column_names, columns, CHAT_COLUMNS, path))
    elif files := sorted(path.rglob("*.parquet")):
        for file in files:
            yield from stream_parquet(file, columns)
    else:
        files = [file for file in (path / "train.json", path / "train.jsonl") if file.exists()]
        files = files or sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
        if len(files) != 1:
            raise ValueError(f"{path} holds no .parquet and {len(files)} .json files, expected one. Name the file.")
        yield from stream_rows(files[0], columns)


def _choose_columns(names: list[str], columns: Iterable[str], required: Iterable[str], path: str | Path) -> list[str]:
    if not set(required) & set(names):
        expected = " or ".join(map(repr, required))
        raise ValueError(f"{path} has the columns {sorted(names)}, expected {expected} among them.")
    return [name for name in columns if name in names]


# JSON ---------------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """
    Return what a line or entry of a JSON file holds.

    Raises:
        RowError: if it is not valid JSON. Without the position, whose "line 1" would be read as that of the file.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON: {getattr(error, 'msg', error)}") from error


def check_row(row: Any) -> dict:
    """
    Return a value of a JSON file if it is a row.

    Raises:
        RowError: if it is no dict.
    """
    if not isinstance(row, dict):
        raise RowError(f"the row is {str(row)[:100]!r}, expected an object with keys")
    return row


class JsonRows:
    """
    Rows of a `.json` list or a `.jsonl` file, read and parsed at each access.

    Only the places of the rows in the file are kept in memory.

    Args:
        path (`Path`)
        name (`str`): what errors call the file.

    Raises:
        ValueError: if a `.json` file is not exactly one list of JSON values, or a `.jsonl` file is a list. (A broken
            line of a `.jsonl` file raises a `RowError` at access.)
    """

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name
        self.unit = "line" if path.suffix == ".jsonl" else "entry"
        if path.suffix == ".jsonl":
            with open(path, "rb") as file:
                spans = list(find_lines(file, name))
        else:
            spans = list(find_entries(path.read_bytes(), name))
        # (rows, 3): first byte, end, and number of the line or entry from 1
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict:
        return next(self.outlines([index]))

    def outlines(self, indices: Sequence[int]) -> Iterator[dict]:
        """Yield the rows at `indices`. They hold paths of images, so nothing has to be dropped."""
        for index, value in zip(indices, self.values(indices), strict=True):
            try:
                yield check_row(value)
            except RowError as error:
                raise RowError(f"{self.place(index)}: {error}.") from error

    def values(self, indices: Iterable[int] | None = None) -> Iterator[Any]:
        """
        Yield what the file holds at `indices`, by default everything, whether it is a row or not.

        Raises:
            RowError: for what is not valid JSON, with its place.
        """
        with open(self.path, "rb") as file:
            for index in range(len(self)) if indices is None else indices:
                start, end, _ = self.spans[index].tolist()
                file.seek(start)
                try:
                    yield parse_json(file.read(end - start))
                except RowError as error:
                    raise RowError(f"{self.place(index)}: {error}") from error

    def number(self, index: int) -> int:
        """Return the number of the line or entry of a row, from 1."""
        return int(self.spans[index, 2])

    def place(self, index: int) -> str:
        """Return file and line (or entry) of a row, for errors."""
        return f"{self.name}, {self.unit} {self.number(index)}"


def find_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, int, int]]:
    """
    Find the first byte, end and number (from 1) of each line that is not blank.

    Raises:
        ValueError: if the file is a JSON list, each line of which would be a broken row.
    """
    start, is_first = 0, True
    for number, line in enumerate(file, 1):
        end = start + len(line)
        if content := line.strip():
            if is_first and content.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
                raise ValueError(
                    f"{name}, line {number} begins with `[`, expected a row, `{{`. Name a file with a JSON list .json."
                )
            is_first = False
            yield start, end, number
        start = end


def _skip_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    assert match is not None  # the pattern matches no space, too
    return match.end()


def find_entries(data: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """
    Find the first byte, end and number (from 1) of each entry of a JSON list.

    Raises:
        ValueError: if the file is anything but one list, with the entry and the byte where it is not.
    """
    # One character for each byte, so that positions are those of the file. JSON's structure is ASCII.
    text = data.decode("latin-1")
    decode = json.JSONDecoder().raw_decode
    position = _skip_space(text, len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0)
    if position == len(text):
        raise ValueError(f"{name} is empty, expected a list of rows.")
    if text[position] != "[":
        raise ValueError(
            f"{name} begins with {text[position : position + 20]!r}, expected a list, `[`, in UTF-8. JSON lines are"
            " named .jsonl."
        )
    position, number = _skip_space(text, position + 1), 0
    is_open = text[position : position + 1] != "]"
    while is_open:
        number += 1
        try:
            end = decode(text, position)[1]
            yield position, end, number
            position = _skip_space(text, end)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expected `,` or `]`", text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, entry {number}: not valid JSON, so the file cannot be read: {error}") from error
        is_open = text[position] == ","
        position = _skip_space(text, position + is_open)
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        # `cat a.json b.json`: the rows of the second list would be lost.
        raise ValueError(
            f"{name}, byte {rest}: {text[rest : rest + 20]!r} follows the list, which ends after entry {number}."
            " A .json file is one list; join lists by their entries, or write one row a line and name the file .jsonl."
        )


# Tables -------------------------------------------------------------------------------------------------------------


class TableRows:
    """
    Rows of a `datasets.Dataset`, which stays on disk.

    Images come as they are stored, `{"bytes", "path"}`.

    Args:
        dataset (`datasets.Dataset`)
        name (`str`): what errors call it.
    """

    unit = "row"

    def __init__(self, dataset, name: str):
        # The arrow format keeps `datasets` from decoding images, in columns and inside of `messages`.
        self.dataset = dataset.with_format("arrow")
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[int(index)].to_pylist()[0]

    def outlines(self, indices: Sequence[int]) -> Iterator[dict]:
        """Yield the rows at `indices`. A word stands for each image of an image column: only its presence is read."""
        for batch in self.dataset.select(indices).iter(batch_size=BATCH_SIZE):
            names = [name for name in IMAGE_COLUMNS if name in batch.column_names]
            replaced = {name: _replace_images(batch[name]) for name in names}
            for position, row in enumerate(batch.drop_columns(names).to_pylist()):
                yield {**row, **{name: column[position] for name, column in replaced.items()}}

    def number(self, index: int) -> int:
        """Return the number of a row, from 1."""
        return int(index) + 1

    def place(self, index: int) -> str:
        """Return file and row number of a row, for errors."""
        return f"{self.name}, {self.unit} {self.number(index)}"


def _replace_images(column) -> list:
    """Return an image column (`pyarrow.ChunkedArray`) with each image replaced by a word."""
    import pyarrow.compute  # only tables need it

    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return column.to_pylist()
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [["image"] * (count or 0) for count in pyarrow.compute.list_value_length(column).to_pylist()]
    return ["image" if there else None for there in column.is_valid().to_pylist()]
