"""
The data mixture of a recipe: its section `data`, from files to rows that are read when they are asked for.

    data:
      datasets:                      # the paper's form; or the path of a YAML file that holds `datasets`
        - json_path: train.json      # .json (a list), .jsonl, .parquet, or a folder of `datasets.save_to_disk`
          sampling_strategy: all     # all | first:N | end:N | random:N; N is a number of rows, or a share such as 10%
          image_folder: images       # default: that of `data`, else the folder of the file
        - hub: owner/name            # a data set of the Hub in place of `json_path`
          name: null                 # its configuration
          split: train
      image_folder: null
      on_error: stop                 # stop at a broken row, or skip: leave broken rows out before training begins
      max_errors: 0                  # with skip: more broken rows than this stop, too

Relative paths begin at the folder of the recipe. `training.messages` says what a row looks like.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from torch.utils.data import Dataset

from fusion_vlm.hub.names import ModelNameError, expand, find_model
from fusion_vlm.training.messages import RowError, to_messages
from fusion_vlm.training.yaml_file import read_yaml


DATA_KEYS = {"datasets", "image_folder", "on_error", "max_errors"}
FILE_KEYS = {"json_path", "sampling_strategy", "image_folder"}
HUB_KEYS = {"hub", "name", "split", "sampling_strategy", "image_folder"}
IMAGE_COLUMNS = ("image", "images")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SAMPLING = re.compile(r"(first|end|random):(\d+|\d+(?:\.\d+)?%)")


class JsonRows:
    """
    Rows of a `.json` list or a `.jsonl` file. Only their places are held; a row is read and parsed at each access.

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
        # (rows, 3): first byte, end, and the number of the line or entry, which counts from 1
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict:
        return next(self.outlines([index]))

    def outlines(self, indices: Iterable[int]) -> Iterator[dict]:
        """The rows in this order. They hold paths of images, so there is nothing to leave out."""
        with open(self.path, "rb") as file:
            for index in indices:
                start, end, _ = self.spans[index].tolist()
                file.seek(start)
                yield self._parse(index, file.read(end - start))

    def number(self, index: int) -> int:
        return int(self.spans[index, 2])

    def _parse(self, index: int, text: bytes) -> dict:
        place = f"{self.name}, {self.unit} {self.number(index)}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            # Of JSON errors without the position, whose "line 1" would be read as that of the file.
            raise RowError(f"{place}: not valid JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(row, dict):
            raise RowError(f"{place}: the row is {str(row)[:100]!r}, expected an object with keys.")
        return row


class TableRows:
    """
    Rows of a `datasets.Dataset`, which stays on disk. Images come as they are stored, `{"bytes", "path"}`.

    Args:
        dataset (`datasets.Dataset`)
        name (`str`): what errors call it.
    """

    unit = "row"

    def __init__(self, dataset, name: str):
        # In this format `datasets` decodes no image, neither in columns nor inside of `messages`.
        self.dataset = dataset.with_format("arrow")
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[int(index)].to_pylist()[0]

    def outlines(self, indices: Iterable[int]) -> Iterator[dict]:
        """The rows in this order, image columns without images: they say only whether there is one."""
        for batch in self.dataset.select(indices).iter(batch_size=1000):
            names = [name for name in IMAGE_COLUMNS if name in batch.column_names]
            stand_ins = {name: _stand_in(batch[name]) for name in names}
            for position, row in enumerate(batch.drop_columns(names).to_pylist()):
                yield {**row, **{name: column[position] for name, column in stand_ins.items()}}

    def number(self, index: int) -> int:
        return int(index) + 1


@dataclass
class Source:
    """
    The part of a file that is trained on.

    Args:
        rows (`JsonRows` or `TableRows`): all of the file.
        indices (`np.ndarray`): int64, of the rows that are used.
        image_folder (`Path`): where relative image paths begin.
    """

    rows: JsonRows | TableRows
    indices: np.ndarray
    image_folder: Path

    @property
    def name(self) -> str:
        return self.rows.name

    def place(self, index: int, row: dict) -> str:
        """File, line and id of a row of the file."""
        place = f"{self.name}, {self.rows.unit} {self.rows.number(index)}"
        return place if row.get("id") in (None, "") else f"{place}, id {row['id']}"

    def to_messages(self, index: int, row: dict, load_images: bool = True) -> list[dict]:
        try:
            return to_messages(row, self.image_folder, load_images)
        except RowError as error:
            raise RowError(f"{self.place(index, row)}: {error}") from error


class FusionDataset(Dataset):
    """
    The rows of a mixture, source after source; `load_mixture` makes it. It can be pickled: it holds places, not rows.

    Args:
        sources (`list[Source]`)
    """

    def __init__(self, sources: list[Source]):
        self.sources = sources
        self._ends = np.cumsum([len(source.indices) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        """
        Returns:
            `dict` with `messages`, the chat messages of the row with the opened image inside, and `source`, its file,
            line and id.

        Raises:
            RowError: if the row is broken, with its file, line and id.
        """
        source, row_index = self.locate(index)
        row = source.rows[row_index]
        return {"messages": source.to_messages(row_index, row), "source": source.place(row_index, row)}

    def locate(self, index: int) -> tuple[Source, int]:
        """The source of a row, and its index in the file of the source."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source, int(source.indices[index - self._ends[number]])  # from the end of the source

    def without(self, indices: Iterable[int]) -> "FusionDataset":
        """The data set that is left if the rows at `indices` are dropped."""
        kept = np.ones(len(self), dtype=bool)
        kept[list(indices)] = False
        parts = np.split(kept, self._ends[:-1])
        return FusionDataset(
            [replace(source, indices=source.indices[part]) for source, part in zip(self.sources, parts, strict=True)]
        )

    @property
    def lengths(self) -> list[int]:
        """About how many tokens the text of each row has: four bytes are taken for one. Raises as `[]` does."""
        return self._outlines[0]

    @property
    def has_images(self) -> list[bool]:
        """Whether each row has an image. Raises as `[]` does, but opens no image."""
        return self._outlines[1]

    @cached_property
    def _outlines(self) -> tuple[list[int], list[bool]]:
        lengths, has_images = [], []
        for source in self.sources:
            for index, row in zip(source.indices, source.rows.outlines(source.indices), strict=True):
                messages = source.to_messages(index, row, load_images=False)
                lengths.append(ceil(len(text_of(messages).encode(errors="replace")) / 4))
                has_images.append(has_image(messages))
        return lengths, has_images


def load_mixture(data: dict, folder: Path, seed: int) -> FusionDataset:
    """
    Finds the rows of a recipe's section `data` (see above); reads no image.

    Args:
        data (`dict`): the section.
        folder (`Path`): of the recipe, where relative paths begin.
        seed (`int`): of `random:N`. A sample depends on it, on the source's position in the list and on the number of
            rows in the file. Rows stay in the order of the file: it is training that shuffles.

    Raises:
        ValueError: for an unknown key or value, a sampling strategy that asks for more rows than there are, a file
            without rows or of another kind.
        FileNotFoundError: if there is no such file.
    """
    check_data(data)
    folder = Path(folder)
    entries = data["datasets"]
    if isinstance(entries, str):
        entries = _read_entries(folder / expand(entries))
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"`datasets` is {entries!r}, expected a list of sources, or the path of a YAML file with one."
        )
    return FusionDataset(
        [
            _load_source(entry, position, data.get("image_folder"), folder, seed)
            for position, entry in enumerate(entries)
        ]
    )


def check_data(data: dict):
    """Raises a ValueError for what is not a section `data`; does not look at its sources."""
    if not isinstance(data, dict) or "datasets" not in data:
        raise ValueError(f"`data` is {data!r}, expected a section with `datasets`.")
    _check_keys(data, DATA_KEYS, "`data`")
    if data.get("on_error", "stop") not in ("stop", "skip"):
        raise ValueError(f"`on_error` is {data['on_error']!r}, expected stop or skip.")
    max_errors = data.get("max_errors", 0)
    if not isinstance(max_errors, int) or isinstance(max_errors, bool) or max_errors < 0:
        raise ValueError(f"`max_errors` is {max_errors!r}, expected a number of rows from 0 on.")


def sample(strategy: str, num_rows: int, seed: list[int]) -> np.ndarray:
    """
    Indices of the rows that a sampling strategy takes, int64, increasing. A share of rows is rounded up.

    Raises:
        ValueError: if there is no such strategy, or if it takes no row or more than there are.
    """
    if strategy == "all":
        return np.arange(num_rows)
    match = SAMPLING.fullmatch(str(strategy))
    if match is None:
        raise ValueError(
            f"`sampling_strategy` is {strategy!r}, expected all, first:N, end:N or random:N, where N is a number of"
            " rows or a share such as 10%."
        )
    amount = match[2]
    count = ceil(Fraction(amount[:-1]) * num_rows / 100) if amount.endswith("%") else int(amount)
    if not 1 <= count <= num_rows:
        raise ValueError(f"`sampling_strategy` {strategy} takes {count} rows, expected 1 to {num_rows}.")
    if match[1] == "random":
        # The stream of `RandomState`, unlike that of newer generators, is the same in every version of NumPy.
        return np.sort(np.random.RandomState(seed).permutation(num_rows)[:count])
    return np.arange(count) if match[1] == "first" else np.arange(num_rows - count, num_rows)


def text_of(messages: list[dict]) -> str:
    return "".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")


def has_image(messages: list[dict]) -> bool:
    return any(part["type"] == "image" for message in messages for part in message["content"])


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


def find_entries(data: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """
    Find the first byte, end and number (from 1) of each entry of a JSON list.

    Raises:
        ValueError: if the file is anything but one list, with the entry and the byte where it is not.
    """
    # One character for each byte, so that positions are those of the file. JSON's structure is ASCII.
    text = data.decode("latin-1")
    decode, skip_space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*").match
    position = skip_space(text, len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0).end()
    if position == len(text):
        raise ValueError(f"{name} is empty, expected a list of rows.")
    if text[position] != "[":
        raise ValueError(
            f"{name} begins with {text[position : position + 20]!r}, expected a list, `[`, in UTF-8. JSON lines are"
            " named .jsonl."
        )
    position, number = skip_space(text, position + 1).end(), 0
    is_open = text[position : position + 1] != "]"
    while is_open:
        number += 1
        try:
            end = decode(text, position)[1]
            yield position, end, number
            position = skip_space(text, end).end()
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expected `,` or `]`", text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, entry {number}: not valid JSON, so the file cannot be read: {error}") from error
        is_open = text[position] == ","
        position = skip_space(text, position + is_open).end()
    rest = skip_space(text, position + 1).end()
    if rest < len(text):
        # `cat a.json b.json`: the rows of the second list would be lost.
        raise ValueError(
            f"{name}, byte {rest}: {text[rest : rest + 20]!r} follows the list, which ends after entry {number}."
            " A .json file is one list; join lists by their entries, or write one row a line and name the file .jsonl."
        )


def _load_source(entry: dict, position: int, image_folder: str | None, folder: Path, seed: int) -> Source:
    """A source of the list, which is at `position` in it."""
    label = f"Source {position + 1} of `datasets`"
    if not isinstance(entry, dict) or ("json_path" in entry) == ("hub" in entry):
        raise ValueError(f"{label} is {entry!r}, expected either `json_path` or `hub` in it.")
    _check_keys(entry, FILE_KEYS if "json_path" in entry else HUB_KEYS, label)
    name = str(entry.get("json_path") or entry.get("hub"))
    default_folder = folder
    if "hub" in entry:
        split = entry.get("split") or "train"
        try:
            name = find_model(name, repo_type="dataset")
        except ModelNameError as error:
            raise ValueError(f"{label}: {error}") from error
        rows = TableRows(datasets.load_dataset(name, entry.get("name"), split=split), name)
    else:
        path = folder / expand(name)
        if not path.exists():
            raise FileNotFoundError(f"{label}: there is no {path}. Relative paths begin at the recipe's folder.")
        default_folder = path if path.is_dir() else path.parent
        rows = _open_file(path, name)
    if not len(rows):
        raise ValueError(f"{label}: {name} holds no rows.")
    try:
        indices = sample(entry.get("sampling_strategy", "all"), len(rows), [seed, position])
    except ValueError as error:
        raise ValueError(f"{label}, {name}: {error}") from error
    image_folder = entry.get("image_folder") or image_folder
    return Source(rows, indices, folder / expand(image_folder) if image_folder else default_folder)


def _open_file(path: Path, name: str) -> JsonRows | TableRows:
    if path.suffix in (".json", ".jsonl"):
        return JsonRows(path, name)
    if path.suffix == ".parquet":
        # Copied to the cache of `datasets` once, in a form that can be mapped into memory.
        return TableRows(datasets.load_dataset("parquet", data_files=str(path), split="train"), name)
    if not path.is_dir():
        raise ValueError(
            f"{name} is of no kind that can be read: expected .json, .jsonl, .parquet or a folder of"
            " `datasets.save_to_disk`."
        )
    table = datasets.load_from_disk(str(path))
    if isinstance(table, datasets.DatasetDict):
        raise ValueError(f"{name} holds the splits {list(table)}, expected one: {name}/{next(iter(table))}, say.")
    return TableRows(table, name)


def _read_entries(path: Path) -> list:
    content = read_yaml(path)
    if not isinstance(content, dict) or "datasets" not in content:
        raise ValueError(f"{path} holds {str(content)[:100]!r}, expected `datasets` with a list of sources.")
    _check_keys(content, {"datasets"}, str(path))
    return content["datasets"]


def _check_keys(section: dict, known: set[str], label: str):
    unknown = sorted(set(map(str, section)) - known)
    if unknown:
        raise ValueError(f"{label} has the keys {unknown}, which nothing reads. It knows {sorted(known)}.")


def _stand_in(column: pyarrow.ChunkedArray) -> list:
    """What an image column holds, each image replaced by a word: nothing is read but whether it is there."""
    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return column.to_pylist()
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [["image"] * (count or 0) for count in pyarrow.compute.list_value_length(column).to_pylist()]
    return ["image" if there else None for there in column.is_valid().to_pylist()]
