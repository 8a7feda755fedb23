"""
Writes the files of a finished part, and those of a finished run: LLaVA's JSON, the audit, the card.

    README.md        the card; `datasets.load_dataset(FOLDER)` finds the data by it
    data/            a shard for each part, with the images inside, which `rows.messages` and TRL read
    rejects/         rejected samples, whole, with their reasons; and their images
    train.json       LLaVA's form, for small runs or on demand; the image files are in images/
    audit.json, audit.png, samples.png, rejected.png
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fusion_vlm.synthesis.card import make_card, write_sheets
from fusion_vlm.synthesis.counts import Counts, add_tokens, merge_counts
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.options import MAX_LLAVA, Options
from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.shards import (
    REJECT_FEATURES,
    SHARD_SUFFIXES,
    clean,
    read_shard,
    read_texts,
    write_parquet,
    write_shard,
)


# Audits the texts of accepted samples, may write files in the folder, and returns lines for the card.
Audit = Callable[[Path, Iterable[dict]], list[str]]


def write_part(
    folder: RunFolder,
    part: int,
    samples: list[Sample],
    images: PartImages,
    options: Options,
    cache: CallCache | None = None,
):
    """
    Write the files of a part that is finished, and last the counts that say so.

    The order of the samples stays, and equal samples give equal bytes.

    Args:
        folder (`RunFolder`), part (`int`)
        samples (`list[Sample]`): accepted and rejected samples of the part.
        images (`PartImages`): their images.
        options (`Options`)
        cache (`CallCache`, *optional*): the finished calls of the part.

    Raises:
        ValueError: if two samples have one id, or if an accepted sample has no image or no turns.
    """
    if repeated := [name for name, number in Counter(sample.id for sample in samples).items() if number > 1]:
        raise ValueError(f"There are two samples with the id {repeated[0]!r}, expected each once.")
    accepted = [sample for sample in samples if sample.reason is None]
    for sample in accepted:
        _check_finished(sample, options)
    rejected = [sample for sample in samples if sample.reason is not None]
    with folder.replacing(folder.shard_path(part, SHARD_SUFFIXES[options.shard_format])) as path:
        write_shard(path, accepted, images, options.shard_format)
    if options.llava:
        for sample in accepted:
            path = folder.path / "images" / llava_name(sample, folder, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.write(path, images.read(sample.image))
    _write_rejects(folder, part, rejected, images)
    counts = Counts()
    for sample in samples:
        counts.add(sample)
    if cache is not None:
        counts.tokens = cache.tokens
        if cache.invalid_tokens:
            folder.write(folder.invalid_tokens_path(part), json.dumps(cache.invalid_tokens))
    folder.write(folder.counts_path(part), counts.to_json())


def _check_finished(sample: Sample, options: Options):
    if (options.has_images and not sample.image) or (options.has_turns and not sample.turns):
        raise ValueError(
            f"The sample {sample.id} has the image {sample.image!r} and {len(sample.turns)} turns, expected an image"
            " and turns, or a reason why it was rejected."
        )


def _write_rejects(folder: RunFolder, part: int, rejected: list[Sample], images: PartImages):
    """Write the rejects of a part and their images; a part without any has no such file."""
    rows = [
        {"id": sample.id, "images": [{"bytes": images.read(sample.image), "path": sample.image}]}
        for sample in rejected
        if sample.image is not None
    ]
    path, images_path = folder.rejects_path(part), folder.reject_images_path(part)
    # A part that was reopened may have had some.
    for old in (path if not rejected else None, images_path if not rows else None):
        if old is not None:
            old.unlink(missing_ok=True)
    if rows:
        with folder.replacing(images_path) as temporary:
            write_parquet(temporary, rows, REJECT_FEATURES)
    if rejected:
        folder.write(path, "".join(json.dumps(sample.to_dict()) + "\n" for sample in rejected))


def llava_name(sample: Sample, folder: RunFolder, part: int) -> str:
    """Return the path of an image below `images/`: in a folder for each part, if one folder would have too many."""
    return sample.image if folder.num_samples <= MAX_LLAVA else f"{part:05d}/{sample.image}"


def read_counts(folder: RunFolder) -> Counts:
    """Return the counts of all finished parts together."""
    return merge_counts(Counts.from_json(folder.counts_path(part).read_text()) for part in folder.done_parts())


def read_invalid_tokens(folder: RunFolder, part: int | None = None) -> dict[str, dict[str, int]]:
    """Return the tokens by model of answers that were not valid but paid for: of a part, or of all parts."""
    total: dict[str, dict[str, int]] = {}
    for path in folder.work_dir.glob("invalid-*.json") if part is None else [folder.invalid_tokens_path(part)]:
        if path.is_file():
            add_tokens(total, json.loads(path.read_text()))
    return total


def write_output(
    folder: RunFolder, options: Options, audit: Audit | None = None, info: dict[str, Any] | None = None
) -> Counts:
    """
    Write what a run has beside its shards, from the shards: LLaVA's JSON, the audit, and the card last.

    Args:
        folder (`RunFolder`): the folder; all its parts are finished.
        options (`Options`)
        audit (`Audit`, *optional*): `fusion_vlm.audit.card.audit_for_card` is one.
        info (`dict`, *optional*): entries for the card, see `make_card`.
    """
    counts = read_counts(folder)
    if options.llava:
        (folder.path / "images").mkdir(exist_ok=True)
        _write_llava(folder, options)
    is_audited = audit and options.has_turns and counts.num_samples
    audit_lines = audit(folder.path, read_texts(folder.path)) if is_audited else []
    sheets = write_sheets(folder.path, counts)
    folder.write("README.md", make_card(counts, audit_lines, info or {}, options, sheets))
    return counts


def _write_llava(folder: RunFolder, options: Options):
    """Write `train.json` from the shards, an entry a line."""
    with folder.replacing(folder.path / "train.json") as path, open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for part in range(folder.num_parts):
            for row in read_shard(folder.shard_path(part, SHARD_SUFFIXES[options.shard_format]), ("sample",)):
                sample = Sample.from_dict(json.loads(row["sample"]))
                entry = to_llava(sample, llava_name(sample, folder, part))
                file.write(separator + json.dumps(entry, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]\n" if separator == ",\n" else "[]\n")


def to_llava(sample: Sample, image: str) -> dict:
    """Build the entry of LLaVA JSON, with the kind of the sample and the types of its questions."""
    conversations = []
    for index, turn in enumerate(sample.turns):
        begin = "" if index else "<image>\n"
        conversations.append({"from": "human", "value": begin + clean(turn.question_with_options)})
        conversations.append({"from": "gpt", "value": clean(turn.answer)})
    types = [turn.type for turn in sample.turns]
    head = {"id": sample.id, "image": image, "conversations": conversations}
    return {**head, "kind": sample.kind, "question_types": types}
