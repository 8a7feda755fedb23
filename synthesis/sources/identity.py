"""Identifies an input by its content, so that a run can tell whether its input has changed, whatever its name is."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.sources.inputs import Input


BLOCK_BYTES = 1 << 20
FOOTER_END_BYTES = 8  # of a parquet file: the length of the footer, and `PAR1`


def hash_input(found: Input) -> str:
    """
    Compute a hash of the content of an input.

    Files are read whole, but for the images inside of parquet files: their places and sizes are in the footer. Image
    files beside the input do not count. A data set on the Hub is identified by its commit.

    Raises:
        ValueError: for a file that is named parquet and is none.
    """
    digest = hashlib.sha256()
    if found.form == "disk":
        paths = sorted(Path(found.path).rglob("*.json"))  # fingerprints of the tables are in `state.json`
        digest.update(b"".join(path.read_bytes() for path in paths))
    elif found.form == "stream":
        digest.update(_identify_data_set(found).encode())
    for path in found.files:
        blocks = _read_parquet_texts(path, found.image_columns) if found.form == "parquet" else _read_blocks(path)
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()


def _identify_data_set(found: Input) -> str:
    if Path(found.path).is_dir():
        paths = [path for path in sorted(Path(found.path).rglob("*")) if path.is_file()]
        return repr([(str(path.relative_to(found.path)), path.stat().st_size) for path in paths])
    from huggingface_hub import dataset_info  # late: only the Hub needs it

    return f"{dataset_info(found.path).sha} {found.split}"


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
