"""
Finds the files of an input and reads their rows, one after the other, without images.

An input is a file or a pattern of files (text, JSON lines, a JSON list, CSV, parquet; all but parquet may be
compressed), a folder of the data engine, a folder with a LLaVA JSON file, any other folder that `datasets` reads, or a
name on the Hub. Images stay where they are; a row says where its image is.
"""

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion_vlm.rows.forms import IMAGE_COLUMNS, RowError
from fusion_vlm.rows.readers import find_entries, import_table_library, load_splits, parse_json
from fusion_vlm.synthesis.shards import read_shard


FORMS = {".txt": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "list", ".csv": "csv", ".tsv": "csv"}
FORMS |= {".parquet": "parquet"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
TEXT_COLUMN = "\n"  # of a text file, whose lines are captions or descriptions; no column of a table has this name
BATCH_SIZE = 1000  # rows of a table that are read at once


@dataclass(frozen=True)
class Input:
    """
    Where the rows of a run are.

    Args:
        path (`str`): as the user gave it.
        form (`str`): `text`, `lines` (JSON), `list` (JSON), `csv`, `parquet`, `tar` (shards of the data engine),
            `disk` (`datasets.save_to_disk`) or `stream` (whatever else `datasets.load_dataset` reads).
        files (`tuple[str, ...]`): of all forms but the last two, in order.
        split (`str`): split of the last two forms.
        image_column (`str`, *optional*): column of the image; without, one of `IMAGE_COLUMNS`.
    """

    path: str
    form: str
    files: tuple[str, ...] = ()
    split: str = "train"
    image_column: str | None = None

    @property
    def image_columns(self) -> tuple[str, ...]:
        return (self.image_column,) if self.image_column else IMAGE_COLUMNS


@dataclass
class Row:
    """
    A row of an input.

    Args:
        number (`int`): index among all rows, from 0.
        values (`dict`): the columns but images.
        image: a path, base64, or `[file, row]` for an image inside of a table: index in `Input.files`, and of the row
            in that file. None if the row has none.
    """

    number: int
    values: dict
    image: Any = None


def find_input(path: str, split: str = "train", image_column: str | None = None) -> Input:
    """
    Find the files of an input.

    Raises:
        FileNotFoundError: if there is no such file or folder, or if a pattern matches none.
        ValueError: for a file of another kind, files of several kinds, or a run that is not finished.
    """
    found = Input(path, "stream", (), split, image_column)
    if any(character in path for character in "*?["):
        files = sorted(glob.glob(path, recursive=True))
        if not files:
            raise FileNotFoundError(f"No file matches {path}.")
        return replace(found, form=_choose_form(files), files=tuple(files))
    if Path(path).is_dir():
        return _find_in_folder(found, Path(path))
    if Path(path).is_file() or _suffix(path) in FORMS:
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no {path}.")
        return replace(found, form=_choose_form([path]), files=(path,))
    if HUB_NAME.fullmatch(path):
        return found
    raise FileNotFoundError(f"There is no {path}, and the name cannot be one on the Hub.")


def _suffix(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _choose_form(files: list[str]) -> str:
    for file in files:
        if _suffix(file) not in FORMS:
            raise ValueError(
                f"{file} is none of {', '.join(FORMS)} (or one of these with {', '.join(COMPRESSIONS)}). Convert it,"
                " or give a folder or a name on the Hub."
            )
    forms = {FORMS[_suffix(file)] for file in files}
    if len(forms) > 1:
        raise ValueError(f"The files are of {len(forms)} kinds, {', '.join(sorted(forms))}; expected one kind.")
    return forms.pop()


def _find_in_folder(found: Input, folder: Path) -> Input:
    if (folder / "run.json").exists():
        if not (folder / "done.json").exists():
            raise ValueError(f"{folder} holds a run that is not finished. Give its command again, then this one.")
        form = "parquet" if any(folder.glob("data/*.parquet")) else "tar"
        return replace(found, form=form, files=tuple(map(str, sorted(folder.glob(f"data/*.{form}")))))
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return replace(found, form="disk")
    names = ("train.json", "train.jsonl")
    listed = [folder / name for name in names if (folder / name).exists()]
    others = [path for path in sorted(folder.glob("*.json*")) if path.suffix in (".json", ".jsonl")]
    has_others = any(folder.glob("metadata.*")) or any(folder.rglob("*.parquet"))
    if listed or (len(others) == 1 and not has_others):
        file = str((listed or others)[0])
        return replace(found, form=_choose_form([file]), files=(file,))
    builder = _load_builder(found)
    files = tuple(map(str, builder.config.data_files[found.split]))
    return replace(found, form="parquet", files=files) if builder.name == "parquet" else found


def _load_builder(found: Input, **settings):
    """Return the builder of `datasets` for a folder or a name on the Hub."""
    builder = import_table_library("datasets").load_dataset_builder(found.path, **settings)
    splits = list(builder.config.data_files or builder.info.splits or [found.split])
    if found.split not in splits:
        raise ValueError(f"{found.path} has the splits {', '.join(map(str, splits))}, expected {found.split!r}.")
    return builder


def copy_to_parquet(found: Input, folder: Path) -> Input:
    """
    Copy an input of the forms `disk` and `stream` to parquet files, because images are read from files in any order.

    Args:
        folder (`Path`): of the files; a copy that was stopped is made again.
    """
    if found.form == "disk":
        dataset = _load_from_disk(found)
        folder.mkdir(parents=True, exist_ok=True)
        num_files = max(1, dataset.dataset_size // 500_000_000) if dataset.dataset_size else 1
        for index in range(num_files):
            dataset.shard(num_files, index, contiguous=True).to_parquet(folder / f"{index:05}.parquet")
    else:
        builder = _load_builder(found, cache_dir=str(folder / "cache"))
        builder.download_and_prepare(str(folder), file_format="parquet")
    pattern = "*.parquet" if found.form == "disk" else f"*-{found.split}*.parquet"
    files = tuple(map(str, sorted(folder.glob(pattern))))
    return replace(found, form="parquet", files=files)


def _load_from_disk(found: Input):
    splits = load_splits(Path(found.path))
    dataset = splits.get(None, splits.get(found.split))
    if dataset is None:
        raise ValueError(f"{found.path} has the splits {', '.join(map(str, splits))}, expected {found.split!r}.")
    return dataset


# Rows ---------------------------------------------------------------------------------------------------------------


def read_rows(found: Input, columns: Iterable[str]) -> Iterator[Row]:
    """
    Read all rows in order, as they are needed.

    Args:
        found (`Input`)
        columns (`Iterable[str]`): columns that are read of tables, as far as they are there. JSON comes whole.

    Raises:
        ValueError: for what is not UTF-8, not JSON or not readable otherwise; the message says where.
    """
    number = -1
    try:
        for number, (values, image) in enumerate(_READERS[found.form](found, list(columns))):
            yield Row(number, values, image)
    except RowError as error:
        raise ValueError(f"Row {number + 1} of {found.path} is {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{found.path} is not UTF-8, in row {number + 1} or a later one: {error}") from error
    except (import_table_library("pyarrow").ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{found.path} cannot be read in row {number + 1} or a later one: {error}") from error


def _stream(kind: str, found: Input, **settings) -> Iterator[dict]:
    """Read rows of text files by `datasets`, which decompresses them, too."""
    load_dataset = import_table_library("datasets").load_dataset
    files = {"train": [str(Path(file).resolve()) for file in found.files]}
    settings |= {"encoding": "utf-8-sig"}  # without the mark that some editors write first
    rows = load_dataset(kind, data_files=files, split="train", streaming=True, **settings)
    for batch in rows.with_format("arrow").iter(batch_size=BATCH_SIZE):
        yield from batch.to_pylist()


def _read_text(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    for row in _stream("text", found):
        yield {TEXT_COLUMN: row["text"]}, None


def _read_lines(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    # Parsed here: `datasets` expects that a column has one type in all lines.
    for row in _stream("text", found):
        yield _split_image(found, parse_json(row["text"])) if row["text"].strip() else ({}, None)


def _read_list(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    fsspec = import_table_library("fsspec")
    for file in found.files:
        opened = fsspec.open(str(Path(file).resolve()), "rb", compression="infer")
        # Two handles, because the search for the next entry reads ahead.
        with opened as searched, opened as read:
            for start, end, _ in find_entries(searched, file):
                read.seek(start)
                yield _split_image(found, parse_json(read.read(end - start)))


def _read_csv(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    settings = {"sep": "\t"} if _suffix(found.files[0]) == ".tsv" else {}
    # Or captions such as "123" and "NA" would be a number and a missing value.
    texts = dict.fromkeys([*columns, *found.image_columns], str)
    for row in _stream("csv", found, converters=texts, keep_default_na=False, **settings):
        yield _split_image(found, row)


def _split_image(found: Input, values: Any) -> tuple[dict, Any]:
    """Take the image out of a row of JSON or CSV: a name, or a list of one."""
    if not isinstance(values, dict):
        raise RowError(f"a {type(values).__name__}, expected an object with keys.")
    image = next((values[name] for name in found.image_columns if values.get(name)), None)
    return {name: value for name, value in values.items() if name not in found.image_columns}, image


def _read_parquet(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    parquet, types = import_table_library("pyarrow.parquet"), import_table_library("pyarrow.types")
    for index, path in enumerate(found.files):
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            image = next((name for name in found.image_columns if name in schema.names), None)
            is_path = image is not None and types.is_string(schema.field(image).type)
            names = [name for name in columns if name in schema.names] + ([image] if is_path else [])
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_SIZE, columns=names):
                for values in batch.to_pylist():
                    place = values.pop(image) if is_path else [index, number] if image else None
                    yield values, place
                    number += 1


def _read_tar(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    for index, path in enumerate(found.files):
        for number, row in enumerate(read_shard(Path(path), ("sample",))):
            yield row, [index, number]


def _read_stream(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    rows = import_table_library("datasets").load_dataset(found.path, split=found.split, streaming=True)
    if rows.column_names is not None:  # some streams do not know their columns
        rows = rows.select_columns([name for name in columns if name in rows.column_names])
    for row in rows:
        yield row, None


def _read_disk(found: Input, columns: list[str]) -> Iterator[tuple[dict, Any]]:
    dataset = _load_from_disk(found)
    dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
    for batch in dataset.with_format("arrow").iter(batch_size=BATCH_SIZE):
        for row in batch.to_pylist():
            yield row, None


_READERS = {
    "text": _read_text,
    "lines": _read_lines,
    "list": _read_list,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "tar": _read_tar,
    "disk": _read_disk,
    "stream": _read_stream,
}


def read_column_names(found: Input) -> list[str] | None:
    """Return the columns of a table, or None if only its rows have names."""
    if found.form == "parquet":
        return import_table_library("pyarrow.parquet").read_schema(found.files[0]).names
    if found.form == "disk":
        return _load_from_disk(found).column_names
    if found.form == "stream":
        load_dataset = import_table_library("datasets").load_dataset
        return load_dataset(found.path, split=found.split, streaming=True).column_names
    return None
