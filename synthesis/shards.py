"""
Writes and reads the shards of a run: the accepted samples of a part, with their images inside.

A parquet shard has the columns that `datasets`, `rows.messages` and TRL read. A WebDataset shard is a tar file with an
image and a JSON object for each sample. Both have the whole sample as JSON, so a later stage loses nothing.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.sample import Sample


SHARD_SUFFIXES = {"parquet": "parquet", "webdataset": "tar"}
ROW_GROUP_BYTES, ROW_GROUP_ROWS = 32_000_000, 1000  # the most that is held in memory
_TEXT = {"dtype": "string", "_type": "Value"}
_TEXTS = {"feature": _TEXT, "_type": "List"}
_IMAGES = {"feature": {"_type": "Image"}, "_type": "List"}
# As `datasets` writes them, without its import, which takes seconds in each worker process. A test compares them.
SHARD_FEATURES = {
    "id": _TEXT,
    "messages": {"feature": {"role": _TEXT, "content": _TEXT}, "_type": "List"},
    "images": _IMAGES,
    "kind": _TEXT,
    "question_types": _TEXTS,
    "caption": _TEXT,
    "description": _TEXT,
    "sample": _TEXT,
}
REJECT_FEATURES = {"id": _TEXT, "images": _IMAGES}


def write_shard(path: Path, samples: Iterable[Sample], images: PartImages, shard_format: str):
    """
    Write accepted samples in order. Equal samples give equal bytes.

    Args:
        path (`Path`): the file.
        samples (`Iterable[Sample]`): read once.
        images (`PartImages`): their images.
        shard_format (`str`): `parquet` or `webdataset`.
    """
    rows = (to_row(sample, images) for sample in samples)
    if shard_format == "webdataset":
        _write_tar(path, rows)
    else:
        write_parquet(path, rows, SHARD_FEATURES)


def to_row(sample: Sample, images: PartImages) -> dict:
    """Build the row of a sample. Contents are plain text: readers put the image before the first."""
    messages = []
    for turn in sample.turns:
        messages.append({"role": "user", "content": clean(turn.question_with_options)})
        messages.append({"role": "assistant", "content": clean(turn.answer)})
    return {
        "id": sample.id,
        "messages": messages,
        "images": [{"bytes": images.read(sample.image), "path": sample.image}] if sample.image else [],
        "kind": sample.kind,
        "question_types": [turn.type for turn in sample.turns],
        "caption": clean(sample.caption),
        "description": clean(sample.description),
        "sample": json.dumps(sample.to_dict()),
    }


def first_image(row: dict) -> bytes | None:
    """Return the encoded image of a row; None for a description without one."""
    return row["images"][0]["bytes"] if row["images"] else None


def clean(text: str) -> str:
    """Remove text that a model may write and readers fail on: placeholders of images, halves of surrogate pairs."""
    return text.replace("<image>", "").encode("utf-8", "replace").decode("utf-8")


def write_parquet(path: Path, rows: Iterable[dict], features: dict):
    """Write rows in groups, so that few of their images are in memory at once."""
    table_class = import_table_library("pyarrow").Table
    schema = _build_schema(features)
    group, num_bytes = [], 0
    # Images do not compress further, and a dictionary of them would be a copy.
    writer_class = import_table_library("pyarrow.parquet").ParquetWriter
    with writer_class(path, schema, compression="zstd", use_dictionary=False) as writer:
        for row in rows:
            group.append(row)
            num_bytes += sum(len(image["bytes"]) for image in row["images"])
            if len(group) >= ROW_GROUP_ROWS or num_bytes >= ROW_GROUP_BYTES:
                writer.write_table(table_class.from_pylist(group, schema))
                group, num_bytes = [], 0
        if group:
            writer.write_table(table_class.from_pylist(group, schema))


def _build_schema(features: dict):
    pyarrow = import_table_library("pyarrow")

    def build(feature: dict):
        kind = feature.get("_type")
        if kind == "List":
            return pyarrow.list_(build(feature["feature"]))
        if kind == "Image":
            return pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        if kind == "Value":
            return pyarrow.string()
        return pyarrow.struct({name: build(part) for name, part in feature.items()})

    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.schema({name: build(feature) for name, feature in features.items()}, metadata=metadata)


def _write_tar(path: Path, rows: Iterable[dict]):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            members = [(image["path"], image["bytes"]) for image in row.pop("images")]
            row["sample"] = json.loads(row["sample"])
            for name, content in (*members, (f"{row['id']}.json", json.dumps(row).encode())):
                member = tarfile.TarInfo(name)  # without time and owner, so that bytes are equal
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


# Readers ------------------------------------------------------------------------------------------------------------


def list_shards(folder: Path) -> list[Path]:
    """Return the shards of a run in order."""
    return sorted((folder / "data").glob("train-*"))


def read_shard(path: Path, columns: Iterable[str] = tuple(SHARD_FEATURES)) -> Iterator[dict]:
    """Yield the rows of a shard with some of its columns. Without `images`, images stay on disk."""
    columns = list(columns)
    if path.suffix == ".tar":
        yield from _read_tar(path, columns)
        return
    with import_table_library("pyarrow.parquet").ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def _read_tar(path: Path, columns: list[str]) -> Iterator[dict]:
    with tarfile.open(path) as tar:
        image = None
        for member in tar:
            if not member.name.endswith(".json"):
                image = member
                continue
            row = json.load(tar.extractfile(member))
            row["sample"] = json.dumps(row["sample"])
            if "images" in columns:
                row["images"] = [{"bytes": tar.extractfile(image).read(), "path": image.name}] if image else []
            image = None
            yield {name: row[name] for name in columns}


def read_texts(folder: Path) -> Iterator[dict]:
    """Yield `messages` and `question_types` of all accepted samples of a run, for the audit."""
    for path in list_shards(folder):
        yield from read_shard(path, ("messages", "question_types"))


def read_accepted(folder: Path) -> Iterator[tuple[Sample, bytes | None]]:
    """Yield the accepted samples of a run in order, with their encoded images."""
    for path in list_shards(folder):
        for row in read_shard(path, ("images", "sample")):
            yield Sample.from_dict(json.loads(row["sample"])), first_image(row)


def read_rejects(folder: Path) -> Iterator[Sample]:
    """Yield the rejected samples of a run in order. `read_reject_images` has the images of those that have one."""
    for path in sorted((folder / "rejects").glob("part-*.jsonl")):
        yield from read_reject_file(path)


def read_reject_file(path: Path) -> Iterator[Sample]:
    """Yield the rejected samples of a part."""
    with open(path, encoding="utf-8") as file:
        yield from (Sample.from_dict(json.loads(line)) for line in file)


def read_reject_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield id and encoded image of the rejected samples that have one: of a run, or of one file of a part."""
    files = sorted((path / "rejects").glob("images-*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    for file in files:
        yield from ((row["id"], row["images"][0]["bytes"]) for row in read_shard(file, REJECT_FEATURES))
