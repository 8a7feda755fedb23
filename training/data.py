"""
The data mixture of a recipe (its section `data`): rows of several files, which are read at access.

    data:
      datasets:                      # the paper's form; or the path of a YAML file that holds `datasets`
        - json_path: train.json      # .json (a list), .jsonl, .parquet, or a folder of `datasets.save_to_disk`
          sampling_strategy: all     # all | first:N | end:N | random:N; N is a number of rows, or a share such as 10%
          image_folder: images       # default: that of `data`, else the folder of the file
        - hub: owner/name            # a data set of the Hub in place of `json_path`
          name: null                 # its configuration
          split: train
      image_folder: null
      on_error: stop                 # stop at a broken row, or skip broken rows before training begins
      max_errors: 0                  # with skip: more broken rows than this stop, too

Relative paths begin at the folder of the recipe. `rows.messages` says what a row looks like.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import datasets
import numpy as np
from torch.utils.data import Dataset

from fusion_vlm.hub.names import ModelNameError, expand, find_model
from fusion_vlm.rows.forms import RowError, conversation_text, has_image
from fusion_vlm.rows.messages import Messages, to_messages
from fusion_vlm.rows.readers import JsonRows, TableRows, open_rows
from fusion_vlm.training.recipe import DataSection, check_names
from fusion_vlm.training.yaml_file import read_yaml


FILE_KEYS = {"json_path", "sampling_strategy", "image_folder"}
HUB_KEYS = {"hub", "name", "split", "sampling_strategy", "image_folder"}
BYTES_PER_TOKEN = 4  # of text, about
SAMPLING = re.compile(r"(first|end|random):(\d+|\d+(?:\.\d+)?%)")


@dataclass
class Source:
    """
    The rows of a file that are trained on.

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
        """Return what errors call the file."""
        return self.rows.name

    def place(self, index: int, row: dict) -> str:
        """Return file, line and id of a row of the file."""
        place = self.rows.place(index)
        return place if row.get("id") in (None, "") else f"{place}, id {row['id']}"

    def to_messages(self, index: int, row: dict, load_images: bool = True) -> Messages:
        """Return the messages of a row of the file; see `rows.messages.to_messages`. Errors name the row."""
        try:
            return to_messages(row, self.image_folder, load_images)
        except RowError as error:
            raise RowError(f"{self.place(index, row)}: {error}") from error


class FusionDataset(Dataset):
    """
    The rows of a mixture, source after source; see `load_mixture`.

    Pickles are small, since the data set holds the places of rows and not the rows.

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
        Read a row.

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
        """Return the source of a row, and the index of the row in the file of the source."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source, int(source.indices[index - self._ends[number]])  # from the end of the source

    def without(self, indices: Iterable[int]) -> "FusionDataset":
        """Return the data set without the rows at `indices`."""
        kept = np.ones(len(self), dtype=bool)
        kept[list(indices)] = False
        parts = np.split(kept, self._ends[:-1])
        return FusionDataset(
            [replace(source, indices=source.indices[part]) for source, part in zip(self.sources, parts, strict=True)]
        )

    @property
    def lengths(self) -> list[int]:
        """Return the approximate number of text tokens of each row. Broken rows raise a `RowError`."""
        return self._outlines[0]

    @property
    def has_images(self) -> list[bool]:
        """Return whether each row has an image; opens no image. Broken rows raise a `RowError`."""
        return self._outlines[1]

    @cached_property
    def _outlines(self) -> tuple[list[int], list[bool]]:
        lengths, has_images = [], []
        for source in self.sources:
            for index, row in zip(source.indices, source.rows.outlines(source.indices), strict=True):
                messages = source.to_messages(index, row, load_images=False)
                lengths.append(ceil(estimate_tokens(conversation_text(messages))))
                has_images.append(has_image(messages))
        return lengths, has_images


def estimate_tokens(text: str) -> float:
    """Return about how many tokens a text has, without a tokenizer."""
    return len(text.encode(errors="replace")) / BYTES_PER_TOKEN


def load_mixture(data: DataSection | dict, folder: Path, seed: int) -> FusionDataset:
    """
    Find the rows of a recipe's section `data` (see above); reads no image.

    Args:
        data (`DataSection` or `dict`): the section.
        folder (`Path`): of the recipe, where relative paths begin.
        seed (`int`): of `random:N`. A sample also depends on the source's position in the list and on the number of
            rows in the file. Rows stay in the order of the file, since training shuffles.

    Raises:
        ValueError: for an unknown key or value, a sampling strategy that asks for more rows than there are, a file
            without rows or of another kind.
        FileNotFoundError: if there is no such file.
    """
    data = data if isinstance(data, DataSection) else DataSection.read(data)
    folder = Path(folder)
    entries = data.datasets
    if isinstance(entries, str):
        entries = _read_entries(folder / expand(entries))
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"`datasets` is {entries!r}, expected a list of sources, or the path of a YAML file with one."
        )
    return FusionDataset(
        [_load_source(entry, position, data.image_folder, folder, seed) for position, entry in enumerate(entries)]
    )


def sample(strategy: str, num_rows: int, seed: list[int]) -> np.ndarray:
    """
    Return the indices of the rows that a sampling strategy takes, int64, increasing. A share of rows is rounded up.

    Raises:
        ValueError: if there is no such strategy, or if it takes no row or more rows than the file has.
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
        # Every version of NumPy draws the same numbers with `RandomState`; newer generators give no such promise.
        return np.sort(np.random.RandomState(seed).permutation(num_rows)[:count])
    return np.arange(count) if match[1] == "first" else np.arange(num_rows - count, num_rows)


def _load_source(entry: dict, position: int, image_folder: str | None, folder: Path, seed: int) -> Source:
    """Load the source at `position` of the list."""
    label = f"Source {position + 1} of `datasets`"
    if not isinstance(entry, dict) or ("json_path" in entry) == ("hub" in entry):
        raise ValueError(f"{label} is {entry!r}, expected either `json_path` or `hub` in it.")
    check_names(entry, FILE_KEYS if "json_path" in entry else HUB_KEYS, label)
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
        rows = open_rows(path, name)
    if not len(rows):
        raise ValueError(f"{label}: {name} holds no rows.")
    try:
        indices = sample(entry.get("sampling_strategy", "all"), len(rows), [seed, position])
    except ValueError as error:
        raise ValueError(f"{label}, {name}: {error}") from error
    image_folder = entry.get("image_folder") or image_folder
    return Source(rows, indices, folder / expand(image_folder) if image_folder else default_folder)


def _read_entries(path: Path) -> list:
    content = read_yaml(path)
    if not isinstance(content, dict) or "datasets" not in content:
        raise ValueError(f"{path} holds {str(content)[:100]!r}, expected `datasets` with a list of sources.")
    check_names(content, {"datasets"}, str(path))
    return content["datasets"]
