"""Finds samples of a run by kind, type of question and reason of rejection, and reads a few with their images."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.shards import (
    first_image,
    list_shards,
    read_reject_file,
    read_reject_images,
    read_shard,
)


class Shown(NamedTuple):
    """A sample, and its encoded image if it has one."""

    sample: Sample
    image: bytes | None


class SampleIndex:
    """
    An index of the samples of a run: 12 bytes for each, without texts and images.

    Args:
        folder (`Path`): folder of a run. Parts that are not finished are not there yet.

    Raises:
        ValueError: if the folder holds no shards of a run.
    """

    def __init__(self, folder: Path):
        shards, rejects = list_shards(folder), sorted((folder / "rejects").glob("part-*.jsonl"))
        if not shards and not rejects:
            raise ValueError(f"{folder} holds no shards, expected the --output of `fusion-vlm synthesize`.")
        self.paths = [*shards, *rejects]
        self._labels: dict[tuple[str, tuple[str, ...], str], int] = {}  # kind, types, reason
        rows = [
            (file, row, self._labels.setdefault(label, len(self._labels)))
            for file, path in enumerate(self.paths)
            for row, label in enumerate(_read_labels(path))
        ]
        self.rows = np.array(rows, dtype=np.int32).reshape(-1, 3)

    @property
    def kinds(self) -> list[str]:
        return sorted({kind for kind, _, _ in self._labels})

    @property
    def types(self) -> list[str]:
        return sorted({name for _, types, _ in self._labels for name in types})

    @property
    def reasons(self) -> list[str]:
        """Return the reasons of rejects: `stage/rule`."""
        return sorted({reason for _, _, reason in self._labels if reason})

    def find(
        self,
        is_kept: bool = True,
        kinds: Iterable[str] = (),
        types: Iterable[str] = (),
        reasons: Iterable[str] = (),
    ) -> np.ndarray:
        """
        Find samples in the order of the run.

        Args:
            is_kept (`bool`): whether to find accepted or rejected samples.
            kinds (`Iterable[str]`), types (`Iterable[str]`), reasons (`Iterable[str]`): the only kinds, types of
                questions (of any turn) and reasons to find; none are all.

        Returns:
            `np.ndarray` of shape `(num_found,)`: places for `read`.
        """
        kinds, types, reasons = set(kinds), set(types), set(reasons)
        labels = [
            number
            for (kind, own, reason), number in self._labels.items()
            if (reason == "") == is_kept
            and (not kinds or kind in kinds)
            and (not types or types & {*own})
            and (not reasons or is_kept or reason in reasons)
        ]
        return np.flatnonzero(np.isin(self.rows[:, 2], labels))

    def read(self, places: Iterable[int]) -> list[Shown]:
        """Read samples by their places, from `find`."""
        places = [int(place) for place in places]
        numbers, shown = defaultdict(list), {}
        for place in places:
            numbers[int(self.rows[place, 0])].append(int(self.rows[place, 1]))
        for file, rows in numbers.items():
            read = _read_rejects if self.paths[file].suffix == ".jsonl" else _read_accepted
            for row, each in read(self.paths[file], set(rows)):
                shown[file, row] = each
        return [shown[tuple(self.rows[place, :2].tolist())] for place in places]


def _read_labels(path: Path) -> Iterator[tuple[str, tuple[str, ...], str]]:
    if path.suffix == ".jsonl":
        for sample in read_reject_file(path):
            types = tuple(sorted({turn.type for turn in sample.turns}))
            yield sample.kind, types, "/".join(sample.rejected_by)
    else:
        for row in read_shard(path, ("kind", "question_types")):
            yield row["kind"], tuple(sorted(set(row["question_types"]))), ""


def _read_accepted(path: Path, numbers: set[int]) -> Iterator[tuple[int, Shown]]:
    for number, row in _read_rows(path, numbers):
        yield number, Shown(Sample.from_dict(json.loads(row["sample"])), first_image(row))


def _read_rows(path: Path, numbers: set[int]) -> Iterator[tuple[int, dict]]:
    """Yield some rows of a shard with their numbers. Of a parquet file, only their row groups are read."""
    columns = ["images", "sample"]
    if path.suffix == ".tar":
        yield from (each for each in enumerate(read_shard(path, columns)) if each[0] in numbers)
        return
    first = 0
    with import_table_library("pyarrow.parquet").ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if own := sorted(numbers & set(range(first, end))):
                rows = file.read_row_group(group, columns).take([number - first for number in own])
                yield from zip(own, rows.to_pylist(), strict=True)
            first = end


def _read_rejects(path: Path, numbers: set[int]) -> Iterator[tuple[int, Shown]]:
    samples = {number: sample for number, sample in enumerate(read_reject_file(path)) if number in numbers}
    ids = {sample.id for sample in samples.values()}
    file = path.with_name(f"images-{path.stem.removeprefix('part-')}.parquet")
    images = {id: image for id, image in read_reject_images(file) if id in ids}
    yield from ((number, Shown(sample, images.get(sample.id))) for number, sample in samples.items())
