"""Identifies an input by its content, so that a run can tell whether its input has changed, whatever its name is."""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.sources.inputs import Input


BLOCK_BYTES = 1 << 20
FOOTER_END_BYTES = 8  # of a parquet file: the length of the footer, and `PAR1`


def identify_input(found: Input) -> str:
    """
    Return what two inputs of the same content have in common: a hash, or of a data set on the Hub its name and split.

    Files are read whole, but for the images inside of parquet files: their places and sizes are in the footer. Image
    files beside the input do not count. From the Hub a run reads once, so the data set may change there.

    Raises:
        ValueError: for a file that is named parquet and is none.
    """
    if found.form == "stream" and not Path(found.path).is_dir():
        return f"{found.path} {found.split}"
    files = found.files
    if not files:
        files = tuple(
            str(path)
            for path in sorted(Path(found.path).rglob("*"))
            if path.is_file() and not path.name.startswith("cache-")
        )
    states = tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, files))
    return f"sha256:{_hash_files(found, files, states)}"


@functools.lru_cache(maxsize=8)
def _hash_files(found: Input, files: tuple[str, ...], states: tuple[tuple[int, int], ...]) -> str:
    """Hash files; again only if one has changed in size or time."""
    digest = hashlib.sha256()
    for path in files:
        blocks = _read_parquet_texts(path, found.image_columns) if found.form == "parquet" else _read_blocks(path)
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()


def _read_blocks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _read_parquet_texts(path: str, image_columns: Iterable[str]) -> Iterator[bytes]:
    """Read the footer of a parquet file and all columns but images, compressed as they are."""
    try:
        metadata = import_table_library("pyarrow.parquet").read_metadata(path)
    except import_table_library("pyarrow").ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    with open(path, "rb") as file:
        file.seek(-FOOTER_END_BYTES, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-FOOTER_END_BYTES - length, 2)
        yield file.read(length)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                if column.path_in_schema.partition(".")[0] not in image_columns:
                    start = column.dictionary_page_offset or column.data_page_offset
                    file.seek(min(start, column.data_page_offset))
                    yield file.read(column.total_compressed_size)
