"""
Writes the output of a run: accepted samples as LLaVA JSON and as a `datasets` folder, rejected ones, and a card.

    README.md        the card; `datasets.load_dataset(FOLDER)` finds the data by it
    train.json       LLaVA's form; the image files are in images/
    data/            parquet with the images inside, which `rows.messages` and TRL read
    rejects.jsonl    rejected samples, whole, with their reasons
    audit.json, audit.png
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.sample import IMAGE_DIR, Sample


ROW_GROUP_BYTES, ROW_GROUP_ROWS = 32_000_000, 1000  # the most that is held in memory
SHARD_BYTES = 500_000_000
MAX_LISTED = 20  # different values of an entry of `Sample.source` in the card; more are only counted
# Size categories of the Hub, each with the number of samples that it ends below.
SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}


Audit = Callable[[Path], list[str]]


@dataclass
class Counts:
    """
    Counts of the samples that were written.

    Args:
        num_samples (`int`), num_turns (`int`), num_rejected (`int`)
        kinds (`Counter`), types (`Counter`): samples of each kind, turns of each type.
        reasons (`Counter`): rejects by `stage/rule`.
        sources (`dict[str, Counter]`): for each entry of `Sample.source`, the number of samples with each value.
        seeds (`set[int]`)
        missing_scores (`Counter`): samples without a score, by scorer.
    """

    num_samples: int = 0
    num_turns: int = 0
    num_rejected: int = 0
    kinds: Counter = field(default_factory=Counter)
    types: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    sources: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    seeds: set[int] = field(default_factory=set)
    missing_scores: Counter = field(default_factory=Counter)

    def add(self, sample: Sample):
        if sample.reason is not None:
            self.num_rejected += 1
            self.reasons["/".join(sample.rejected_by)] += 1
            return
        self.num_samples += 1
        self.num_turns += len(sample.turns)
        self.kinds[sample.kind] += 1
        self.types.update(turn.type for turn in sample.turns)
        self.seeds.add(sample.seed)
        self.missing_scores.update(name for name, score in sample.scores.items() if score is None)
        for name, value in sample.source.items():
            self.sources[name][value if isinstance(value, str) else json.dumps(value, sort_keys=True)] += 1


def write_output(
    samples: Iterable[Sample], folder: str | Path, *, audit: Audit | None = None, info: dict[str, Any] | None = None
) -> Counts:
    """
    Write the files above, in place of those of an earlier call.

    The order of the samples stays, and equal samples give equal bytes. Files are replaced after all are written, the
    card last.

    Args:
        samples (`Iterable[Sample]`): accepted and rejected samples; read once.
        folder (`str` or `Path`): the output folder, with the images of accepted samples in `images/`.
        audit (`Callable[[Path], list[str]]`, *optional*): audits the `train.json` of a folder, may write files beside
            it, and returns lines for the card; `fusion_vlm.audit.card.audit_for_card` is one.
        info (`dict`, *optional*): entries for the card: `license` (an identifier of the Hub, default `other`),
            `pretty_name` and `language` (default `en`). Other entries are written out.

    Raises:
        ValueError: if two samples have one id, or if an accepted sample has no image or no turns.
        FileNotFoundError: if an image is missing.
    """
    folder = Path(folder)
    temporary = folder / ".output"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "data").mkdir(parents=True)
    counts = _write_samples(samples, folder / IMAGE_DIR, temporary)
    audit_lines = audit(temporary) if audit and counts.num_samples else []
    (temporary / "README.md").write_text(make_card(counts, audit_lines, info or {}), encoding="utf-8")
    _replace(temporary, folder)
    return counts


def to_llava(sample: Sample) -> dict:
    """Build the entry of LLaVA JSON, with the kind of the sample and the types of its questions."""
    conversations = []
    for index, turn in enumerate(sample.turns):
        image = "" if index else "<image>\n"
        conversations.append({"from": "human", "value": image + _clean(turn.question_with_options)})
        conversations.append({"from": "gpt", "value": _clean(turn.answer)})
    types = [turn.type for turn in sample.turns]
    head = {"id": sample.id, "image": sample.image, "conversations": conversations}
    return {**head, "kind": sample.kind, "question_types": types}


def to_row(sample: Sample, image_folder: Path) -> dict:
    """Build the row of the `datasets` folder. Contents are plain text: readers put the image before the first."""
    messages = []
    for turn in sample.turns:
        messages.append({"role": "user", "content": _clean(turn.question_with_options)})
        messages.append({"role": "assistant", "content": _clean(turn.answer)})
    try:
        content = (image_folder / sample.image).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The image of sample {sample.id}, {error.filename}, is not there.") from error
    images = [{"bytes": content, "path": sample.image}]
    types = [turn.type for turn in sample.turns]
    return {"id": sample.id, "messages": messages, "images": images, "kind": sample.kind, "question_types": types}


def _clean(text: str) -> str:
    """Remove text that a model may write and readers fail on: placeholders of images, halves of surrogate pairs."""
    return text.replace("<image>", "").encode("utf-8", "replace").decode("utf-8")


def _write_samples(samples: Iterable[Sample], image_folder: Path, folder: Path) -> Counts:
    counts, ids = Counts(), set()
    shards = ParquetShards(folder / "data")
    with (
        open(folder / "train.json", "w", encoding="utf-8") as accepted,
        open(folder / "rejects.jsonl", "w", encoding="utf-8") as rejected,
    ):
        accepted.write("[")
        for sample in samples:
            if sample.id in ids:
                raise ValueError(f"There are two samples with the id {sample.id!r}, expected each once.")
            ids.add(sample.id)
            if sample.reason is not None:
                rejected.write(json.dumps(sample.to_dict()) + "\n")
            else:
                _check(sample)
                accepted.write(",\n" if counts.num_samples else "\n")
                accepted.write(json.dumps(to_llava(sample), ensure_ascii=False))
                shards.add(to_row(sample, image_folder))
            counts.add(sample)
        accepted.write("\n]\n")
    shards.close()
    return counts


def _check(sample: Sample):
    if not sample.image or not sample.turns:
        raise ValueError(
            f"The sample {sample.id} has the image {sample.image!r} and {len(sample.turns)} turns, expected an image"
            " and turns, or a reason why it was rejected."
        )


class ParquetShards:
    """
    Writes rows to `train-00000-of-0000N.parquet` in a folder. N is known at the end, so files are renamed then.

    Args:
        folder (`Path`)
    """

    def __init__(self, folder: Path):
        datasets = import_table_library("datasets")
        self._parquet = import_table_library("pyarrow.parquet")
        self._table_class = import_table_library("pyarrow").Table
        text = datasets.Value("string")
        features = datasets.Features(
            {
                "id": text,
                "messages": datasets.List({"role": text, "content": text}),
                "images": datasets.List(datasets.Image()),
                "kind": text,
                "question_types": datasets.List(text),
            }
        )
        self.folder = folder
        self.schema = features.arrow_schema
        self.paths = []
        self._rows, self._row_bytes, self._shard_bytes, self._writer = [], 0, 0, None

    def add(self, row: dict):
        self._rows.append(row)
        self._row_bytes += sum(len(image["bytes"]) for image in row["images"])
        if len(self._rows) >= ROW_GROUP_ROWS or self._row_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()
            if self._shard_bytes >= SHARD_BYTES:
                self._close_shard()

    def close(self):
        """Write the remaining rows, or an empty file if there are none, and rename the files."""
        if self._rows or not self.paths and self._writer is None:
            self._write_row_group()
        self._close_shard()
        for index, path in enumerate(self.paths):
            path.rename(self.folder / f"train-{index:05}-of-{len(self.paths):05}.parquet")

    def _write_row_group(self):
        if self._writer is None:
            self.paths.append(self.folder / f"{len(self.paths)}.parquet")
            self._writer = self._parquet.ParquetWriter(self.paths[-1], self.schema)
        self._writer.write_table(self._table_class.from_pylist(self._rows, self.schema))
        self._shard_bytes += self._row_bytes
        self._rows, self._row_bytes = [], 0

    def _close_shard(self):
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_bytes = None, 0


def _replace(temporary: Path, folder: Path):
    """Move the files of `temporary` to `folder`, in place of those of an earlier run, and remove `temporary`."""
    for name in ("train.json", "rejects.jsonl", "audit.json", "audit.png"):
        if (temporary / name).exists():
            os.replace(temporary / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    # The whole folder: another number of shards has other file names, so old shards would stay.
    if (folder / "data").exists():
        os.replace(folder / "data", temporary / "old")
    os.replace(temporary / "data", folder / "data")
    os.replace(temporary / "README.md", folder / "README.md")
    shutil.rmtree(temporary)


def make_card(counts: Counts, audit_lines: list[str], info: dict[str, Any]) -> str:
    """Write the card of the data set: front matter of the Hub, contents, sources, rejects and audit."""
    info = dict(info)
    name = info.pop("pretty_name", "Visual questions made from language")
    data = DatasetCardData(
        language=info.pop("language", "en"),
        license=info.pop("license", "other"),
        pretty_name=name,
        task_categories=["visual-question-answering", "image-text-to-text"],
        tags=["synthetic", "llava", "fusion-vlm"],
        size_categories=[next((size for size, end in SIZES.items() if counts.num_samples < end), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    lines = [
        f"# {name}",
        "",
        f"{counts.num_samples} samples, an image and a conversation each, {counts.num_turns} questions in all; made"
        f" by `fusion_vlm.synthesis`. {counts.num_rejected} more samples were rejected: `rejects.jsonl`.",
        "",
        "- `datasets.load_dataset` gives rows with `messages` and `images`.",
        "- `train.json` is the same in LLaVA's form, with the images in `images/`.",
        "",
        *_count_table("kind", "samples", counts.kinds),
        *_count_table("type of question", "questions", counts.types),
        "## Sources",
        "",
        f"Seeds: {', '.join(map(str, sorted(counts.seeds))) or 'none'}.",
        "",
        *_source_lines(counts),
        *_info_lines(info),
        "## Rejected",
        "",
        *(_count_table("reason", "samples", counts.reasons) or ["None.", ""]),
        *audit_lines,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n"


def _count_table(name: str, unit: str, counts: Counter) -> list[str]:
    if not counts:
        return []
    rows = [f"| {_cell(key)} | {count} |" for key, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))]
    return [f"| {name} | {unit} |", "| --- | --- |", *rows, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _source_lines(counts: Counts) -> Iterator[str]:
    for name, values in sorted(counts.sources.items()):
        if len(values) > MAX_LISTED:
            yield f"- {_cell(name)}: {len(values)} different"
        else:
            yield f"- {_cell(name)}: {'; '.join(f'{_cell(value)} ({n})' for value, n in sorted(values.items()))}"
    for name, count in sorted(counts.missing_scores.items()):
        yield f"- the score {_cell(name)} was not available for {count} samples"
    yield ""


def _info_lines(info: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in sorted(info.items()):
        text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True, default=str)
        lines += [f"## {name.replace('_', ' ').capitalize()}", "", "```", text, "```", ""]
    return lines
