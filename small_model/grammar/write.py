"""Draws samples of the grammar into a folder: images, and rows in LLaVA's form."""

import functools
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

from fusion_vlm.small_model.grammar.exact import ExactQuestions, make_scene_sample
from fusion_vlm.small_model.grammar.render import PillowRenderer
from fusion_vlm.synthesis.sample import Sample


def write_samples(folder: Path, number: int, seed: int, kinds: Sequence[str], image_size: int):
    """
    Write `train.json` and the images of its rows to a folder, unless `train.json` is there.

    The bytes do not depend on the number of processes, nor on earlier calls that were killed.

    Args:
        folder (`Path`): made if missing; images go to its folder `images`.
        number (`int`): samples that are begun. Samples with hidden objects have no row.
        seed (`int`)
        kinds (`Sequence[str]`): the kinds, taken in turn.
        image_size (`int`): side of an image in pixels.
    """
    if (folder / "train.json").exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write = functools.partial(_write_sample, folder, seed, tuple(kinds), image_size)
    # "spawn": a forked copy of a process with threads (torch) may deadlock.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        rows = [json.dumps(row, ensure_ascii=False) for row in pool.imap(write, range(number), 64) if row is not None]
    content = "[" + ",".join(f"\n{row}" for row in rows) + "\n]\n"
    temporary = folder / "train.json.tmp"
    temporary.write_text(content, encoding="utf-8")
    temporary.rename(folder / "train.json")


def _write_sample(folder: Path, seed: int, kinds: tuple[str, ...], image_size: int, index: int) -> dict | None:
    """Write the image of a sample and return its row; None for a rejected sample."""
    # Numbered within each kind, because draws are balanced over consecutive numbers.
    number, kind = divmod(index, len(kinds))
    sample = ExactQuestions()(make_scene_sample(number, kinds[kind], seed))
    if sample.reason is not None:
        return None
    PillowRenderer(image_size)(sample).save(folder / "images" / f"{sample.id}.png")
    return to_row(sample)


def to_row(sample: Sample) -> dict:
    """Return the row of a sample in LLaVA's form, with its kind and the types of its questions."""
    conversations = []
    for turn in sample.turns:
        image = "" if conversations else "<image>\n"
        conversations.append({"from": "human", "value": image + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
    row = {"id": sample.id, "image": f"{sample.id}.png", "conversations": conversations}
    return {**row, "kind": sample.kind, "question_types": [turn.type for turn in sample.turns]}
