"""
Rows of an input, prepared once for all tasks and parts of a run, in `work/input/` of its folder.

    rows-00000.parquet      what the rows give to samples, as JSON, and where their images are
    firsts.npy, rules.npy   of captions: the duplicates, see `Duplicates.find`
    copy/                   the input as parquet, if its images could not be read in any order
    prepared.json           written last

Memory does not grow with the text of the rows: preparing holds a few hashes of each, reading a part its rows.
"""

import json
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.sample import stable_hash
from fusion_vlm.synthesis.sources.duplicates import RULES, Duplicates
from fusion_vlm.synthesis.sources.given import Columns, check_columns, is_safe_id, read_given
from fusion_vlm.synthesis.sources.identity import identify_input
from fusion_vlm.synthesis.sources.images import InputImages, find_image_folder
from fusion_vlm.synthesis.sources.inputs import Input, Row, copy_to_parquet, read_column_names, read_rows


SHARD_ROWS, GROUP_ROWS = 50_000, 1000


@dataclass(frozen=True)
class Request:
    """
    What a run takes from its input.

    Args:
        found (`Input`)
        columns (`Columns`)
        first_stage (`str`): first stage of the run: `descriptions`, `images`, `questions` or `filter`.
        num (`int`, *optional*): rows to take; without, all.
        image_folder (`str`, *optional*): where paths of images begin; without, the folder of the input or its
            subfolder `images`.
    """

    found: Input
    columns: Columns
    first_stage: str
    num: int | None = None
    image_folder: str | None = None

    @property
    def has_images(self) -> bool:
        return self.first_stage in ("questions", "filter")


def prepare(request: Request, folder: Path) -> dict:
    """
    Prepare the rows of an input, unless that is done. The caller keeps other processes away.

    Args:
        request (`Request`)
        folder (`Path`): of the prepared rows. What a kill has left is removed.

    Returns:
        `dict`: the content of `prepared.json`: `content` (hash of the input), `num` (that was asked for), `num_rows`,
        `keeps_ids` and `keeps_positions` (whether those of the rows can be those of samples), and `image_folder`
        (subfolder that paths of images begin in).

    Raises:
        RunError: if the content of the input has changed since it was prepared, or if it has too few rows.
        ValueError: if the input cannot be read or has not the columns that the stage needs.
    """
    content = identify_input(request.found)
    if (folder / "prepared.json").is_file():
        return _check_prepared(json.loads((folder / "prepared.json").read_text()), request, content)
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True)
    found = request.found
    if request.has_images and found.form in ("disk", "stream"):
        found = copy_to_parquet(found, unfinished / "copy")
    prepared = {"content": content, "num": request.num, **_write_rows(request, found, content, unfinished)}
    (unfinished / "prepared.json").write_text(json.dumps(prepared, indent=2) + "\n")
    os.replace(unfinished, folder)
    return prepared


def _check_prepared(prepared: dict, request: Request, content: str) -> dict:
    """Return what was prepared, if it is what is asked for."""
    if prepared["content"] != content:
        raise RunError(
            f"The content of {request.found.path} has changed since this run began. Give another --output, or the"
            " input as it was."
        )
    if request.num not in (prepared["num"], prepared["num_rows"]):
        found = prepared["num"] or "all"
        raise RunError(f"This run began with {found} rows, expected {request.num or 'all'}. Give another --output.")
    return prepared


def _write_rows(request: Request, found: Input, content: str, folder: Path) -> dict:
    names = read_column_names(found)
    if names is not None:
        check_columns(names, request.columns, request.first_stage, found.path)
    duplicates = Duplicates() if request.first_stage == "descriptions" else None
    identities, num_broken, problem = _Identities(), 0, None
    image_folder = find_image_folder(request, found) if request.has_images else ""
    writer = _ShardWriter(folder)
    for given, image in _read_all(request, found, content):
        identities.add(given)
        if duplicates is not None:
            duplicates.add(given["caption"])
        if given.get("reason") is not None:
            num_broken, problem = num_broken + 1, problem or given["reason"]
        writer.add({"given": json.dumps(given), "image": json.dumps(image)})
    writer.close()
    num_rows = identities.num_rows
    if num_rows and num_broken == num_rows:
        raise ValueError(f"No row of {found.path} can be used. The first: {problem}")
    if not num_rows or (request.num and num_rows < request.num):
        kind = "captions" if request.first_stage == "descriptions" else "rows"
        expected = f"{request.num} (--num)" if request.num else "some"
        raise RunError(f"{found.path} has {num_rows} {kind}, expected {expected}.")
    if duplicates is not None:
        firsts, rules = duplicates.find()
        np.save(folder / "firsts.npy", firsts)
        np.save(folder / "rules.npy", rules)
    return {"num_rows": num_rows, "image_folder": image_folder, **identities.find()}


class _Identities:
    """Finds out whether all rows have ids and positions that samples can keep."""

    def __init__(self):
        self.num_rows, self.hashes, self.last_position = 0, array("Q"), -1
        self.has_ids = self.has_positions = True

    def add(self, given: dict):
        self.num_rows += 1
        self.has_ids = self.has_ids and is_safe_id(given.get("id"))
        if self.has_ids:
            self.hashes.append(stable_hash(given["id"]))
        position = given["source"].get("position", -1)
        self.has_positions, self.last_position = self.has_positions and position > self.last_position, position

    def find(self) -> dict[str, bool]:
        is_unique = len(np.unique(np.frombuffer(self.hashes, np.uint64))) == self.num_rows
        return {"keeps_ids": self.has_ids and is_unique, "keeps_positions": self.has_positions}


def _read_all(request: Request, found: Input, content: str) -> Iterator[tuple[dict, Any]]:
    """Read what each row gives, and where its image is."""
    rows = read_rows(found, request.columns.readable(request.first_stage))
    rows = _check_rows(rows, request, found)
    pairs = ((read_given(row, request.columns, request.first_stage, content), row) for row in rows)
    pairs = ((given, row.image) for given, row in pairs if given is not None)
    return tqdm(islice(pairs, request.num), desc="reading rows", unit="row", leave=False, dynamic_ncols=True)


def _check_rows(rows: Iterator[Row], request: Request, found: Input) -> Iterator[Row]:
    is_table = found.form not in ("lines", "list")
    for row in rows:
        # Later rows of a set may lack a column and are rejected for it; a caption is never missing in part.
        is_checked = row.number == 0 or (request.first_stage == "descriptions" and not is_table)
        if row.values and is_checked:
            place = f"Row {row.number} of {found.path}"
            check_columns(row.values, request.columns, request.first_stage, place)
        yield row


class _ShardWriter:
    """Writes rows of texts to parquet files of `SHARD_ROWS` rows."""

    def __init__(self, folder: Path):
        pyarrow = import_table_library("pyarrow")
        self.folder, self.parquet = folder, import_table_library("pyarrow.parquet")
        self.schema = pyarrow.schema({"given": pyarrow.string(), "image": pyarrow.string()})
        self.table_class, self.rows, self.num_rows, self.writer = pyarrow.Table, [], 0, None

    def add(self, row: dict):
        self.rows.append(row)
        self.num_rows += 1
        if len(self.rows) == GROUP_ROWS:
            self._write_group()
        if self.num_rows % SHARD_ROWS == 0:
            self._close_shard()

    def close(self):
        if self.rows:
            self._write_group()
        self._close_shard()

    def _write_group(self):
        if self.writer is None:
            index = (self.num_rows - 1) // SHARD_ROWS
            self.writer = self.parquet.ParquetWriter(
                self.folder / f"rows-{index:05}.parquet", self.schema, compression="zstd"
            )
        self.writer.write_table(self.table_class.from_pylist(self.rows, self.schema))
        self.rows = []

    def _close_shard(self):
        if self.writer is not None:
            self.writer.close()
        self.writer = None


@dataclass(frozen=True)
class PreparedRow:
    """
    A row of an input.

    Args:
        index (`int`): among all rows of the run.
        given (`dict`): see `read_given`.
        image: see `Row`.
        first (`int`), rule (`str`): of a duplicate, index of the first and the rule that rejects it; else "".
    """

    index: int
    given: dict
    image: Any = None
    first: int = 0
    rule: str = ""


class PreparedRows:
    """
    Reads prepared rows.

    Args:
        request (`Request`): as for `prepare`.
        folder (`Path`): that `prepare` has made.
    """

    def __init__(self, request: Request, folder: Path):
        self.folder = folder
        self.info = json.loads((folder / "prepared.json").read_text())
        found = request.found
        if (folder / "copy").is_dir():
            files = tuple(str(path) for path in sorted((folder / "copy").glob("*.parquet")))
            found = Input(found.path, "parquet", files, found.split, found.image_column)
        self.images = InputImages(request, found, self.info["image_folder"])

    def __len__(self) -> int:
        return self.info["num_rows"]

    def read(self, indices: range) -> Iterator[PreparedRow]:
        """Read consecutive rows. No others are held, but for those of the same groups of 1,000."""
        firsts, rules = (self._read_array(name, indices) for name in ("firsts", "rules"))
        parquet = import_table_library("pyarrow.parquet")
        for shard in range(indices.start // SHARD_ROWS, (max(indices.stop, 1) - 1) // SHARD_ROWS + 1):
            start = shard * SHARD_ROWS
            low, high = max(indices.start - start, 0), min(indices.stop - start, SHARD_ROWS)
            groups = list(range(low // GROUP_ROWS, -(-high // GROUP_ROWS)))
            with parquet.ParquetFile(self.folder / f"rows-{shard:05}.parquet") as file:
                table = file.read_row_groups(groups).slice(low - groups[0] * GROUP_ROWS, high - low)
            for index, row in enumerate(table.to_pylist(), start + low):
                position = index - indices.start
                duplicate = (int(firsts[position]), RULES[rules[position]]) if firsts is not None else ()
                yield PreparedRow(index, json.loads(row["given"]), json.loads(row["image"]), *duplicate)

    def _read_array(self, name: str, indices: range) -> np.ndarray | None:
        path = self.folder / f"{name}.npy"
        return np.load(path, mmap_mode="r")[indices.start : indices.stop] if path.is_file() else None
