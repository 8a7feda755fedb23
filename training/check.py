"""
Checks the data of a recipe before training: every row is read and every image decoded, in parallel processes.

    fusion-vlm check recipe.yaml

Prints rows, lengths and tokens of each source, and the broken rows with file, line and id. Exits with 1 if there are
broken rows, with `on_error: skip` if there are more of them than `max_errors`.
"""

import json
import sys
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.utils import logging

from fusion_vlm.hub.names import find_model
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import RowError, conversation_text, has_image
from fusion_vlm.training.data import FusionDataset, load_mixture
from fusion_vlm.training.recipe import read_recipe


logger = logging.get_logger(__name__)

NUM_SHOWN = 20


class RowCheck(NamedTuple):
    """What is known of a row: the error, or the counts."""

    error: str | None = None
    num_images: int = 0
    num_turns: int = 0
    num_characters: int = 0
    num_text_tokens: int = 0
    num_tokens: int = 0


@dataclass
class BrokenRow:
    """A row that cannot be trained on: `index` in the data set, `number` of the line or entry in the file, from 1."""

    index: int
    source: str
    number: int
    error: str


@dataclass
class SourceCheck:
    """
    Totals of a source over its rows that are not broken.

    Attributes:
        num_rows, num_rows_in_file (`int`): rows that are used, broken ones included, and all.
        num_turns (`int`): questions.
        num_characters, max_characters (`int`): of the text of the messages, in total and of the longest row.
        num_text_tokens (`int`): of the rendered conversations. 0 without a processor, as are the next.
        num_tokens, max_tokens (`int`): image and latent tokens included, in total and of the longest row.
    """

    name: str
    num_rows: int
    num_rows_in_file: int
    num_broken: int = 0
    num_images: int = 0
    num_turns: int = 0
    num_characters: int = 0
    max_characters: int = 0
    num_text_tokens: int = 0
    num_tokens: int = 0
    max_tokens: int = 0

    def add(self, row: RowCheck):
        self.num_broken += row.error is not None
        self.num_images += row.num_images
        self.num_turns += row.num_turns
        self.num_characters += row.num_characters
        self.max_characters = max(self.max_characters, row.num_characters)
        self.num_text_tokens += row.num_text_tokens
        self.num_tokens += row.num_tokens
        self.max_tokens = max(self.max_tokens, row.num_tokens)


@dataclass
class MixtureCheck:
    """What `check_rows` has found; `str` makes a table of it, a line for each source."""

    sources: list[SourceCheck] = field(default_factory=list)
    broken: list[BrokenRow] = field(default_factory=list)
    has_tokens: bool = False

    def __str__(self) -> str:
        header = ["source", "rows", "of", "broken", "with image", "turns", "mean chars", "max chars"]
        header += ["text tokens", "all tokens", "max tokens"] if self.has_tokens else []
        table = [header]
        for source in self.sources:
            mean = source.num_characters / max(1, source.num_rows - source.num_broken)
            cells = [source.num_rows, source.num_rows_in_file, source.num_broken, source.num_images, source.num_turns]
            cells += [round(mean), source.max_characters]
            cells += [source.num_text_tokens, source.num_tokens, source.max_tokens] if self.has_tokens else []
            table.append([source.name, *(f"{cell:,}" for cell in cells)])
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        alignments = ["<", *">" * (len(header) - 1)]
        return "\n".join(
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, alignments, widths, strict=True))
            for line in table
        )


class RowChecks(Dataset):
    """Checks a row when it is asked for, so that a `DataLoader` spreads the work over processes."""

    def __init__(self, dataset: FusionDataset, processor: FusionProcessor | None):
        self.dataset = dataset
        self.processor = processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RowCheck:
        source, row_index = self.dataset.locate(index)
        place = source.place(row_index, {})
        try:
            row = self.dataset[index]
            place, messages = row["source"], row["messages"]
            tokens = count_tokens(self.processor, row) if self.processor else (0, 0)
        except RowError as error:
            return RowCheck(str(error))
        except Exception as error:  # whatever a decoder or a chat template raises, training would stop with it
            return RowCheck(f"{place}: {type(error).__name__}: {error}")
        num_turns = sum(message["role"] == "user" for message in messages)
        return RowCheck(None, has_image(messages), num_turns, len(conversation_text(messages)), *tokens)


def check_rows(dataset: FusionDataset, num_workers: int = 0, processor: FusionProcessor | None = None) -> MixtureCheck:
    """
    Reads every row and decodes every image. With a processor, tokens are counted too, and texts that hold its
    placeholders are found.

    Args:
        dataset (`FusionDataset`)
        num_workers (`int`): processes; 0 works in this one.
        processor (`FusionProcessor`, *optional*): its grids decide how many image and latent tokens there are.
    """
    report = MixtureCheck(has_tokens=processor is not None)
    loader = DataLoader(
        RowChecks(dataset, processor),
        batch_size=16,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # the global one is left alone, so that a check changes no training
    )
    rows = enumerate(tqdm(chain.from_iterable(loader), total=len(dataset), desc="Checking rows", unit=" rows"))
    for source in dataset.sources:
        check = SourceCheck(source.name, num_rows=len(source.indices), num_rows_in_file=len(source.rows))
        report.sources.append(check)
        for index, row in islice(rows, len(source.indices)):
            check.add(row)
            if row.error is not None:
                number = source.rows.number(dataset.locate(index)[1])
                report.broken.append(BrokenRow(index, source.name, number, row.error))
    return report


def count_tokens(processor: FusionProcessor, row: dict) -> tuple[int, int]:
    """
    Tokens of a row of `FusionDataset`, rendered, without and with its image and latent tokens.

    Raises:
        RowError: for what the processor refuses, such as control tokens in a text.
    """
    try:
        prompt = processor.apply_chat_template(row["messages"])
    except ValueError as error:
        raise RowError(f"{row['source']}: {error}") from error
    num_images, num_latents = prompt.count(processor.image_token), prompt.count(processor.latent_token)
    bos = processor.tokenizer.bos_token
    # As the processor does it: the template may have rendered the BOS.
    ids = processor.tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos)), verbose=False).input_ids
    num_text_tokens = len(ids) - num_images - num_latents
    image_processor = processor.image_processor
    num_placeholders = num_images * image_processor.image_grid_size**2
    num_placeholders += num_latents * image_processor.latent_grid_size**2
    return num_text_tokens, num_text_tokens + num_placeholders


def write_broken(rows: list[BrokenRow], path: str | Path):
    """Writes broken rows as JSON lines: `source`, `row` (number of the line or entry) and `error`."""
    lines = [json.dumps({"source": row.source, "row": row.number, "error": row.error}) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def prepare_dataset(
    data: dict,
    folder: Path,
    seed: int,
    report_path: str | Path,
    num_workers: int = 0,
    processor: FusionProcessor | None = None,
) -> FusionDataset:
    """
    The data set of a recipe as training uses it. With `on_error: skip` all rows are checked now and the broken ones
    left out, so that the length is known, and a resumed training sees the same rows.

    Args:
        data, folder, seed: see `load_mixture`.
        report_path (`str` or `Path`): where the broken rows are written, as JSON lines; only with `on_error: skip`.
        num_workers (`int`): processes to check with; 0 works in this one.
        processor (`FusionProcessor`, *optional*): with it, rows that it refuses are broken too.

    Raises:
        RowError: if more rows are broken than `max_errors`.
        ValueError, FileNotFoundError: as `load_mixture`.
    """
    dataset = load_mixture(data, folder, seed)
    if data.get("on_error", "stop") == "stop":
        return dataset
    broken = check_rows(dataset, num_workers, processor).broken
    write_broken(broken, report_path)
    if len(broken) > max_errors(data):
        raise RowError(
            f"{len(broken)} of {len(dataset)} rows are broken, expected at most {max_errors(data)} (`max_errors`). All"
            f" are in {report_path}, the first is: {broken[0].error}"
        )
    logger.warning(f"{len(broken)} of {len(dataset)} rows are broken and left out; they are in {report_path}.")
    return dataset.without(row.index for row in broken)


def max_errors(data: dict) -> int:
    """How many broken rows a section `data` allows."""
    return data.get("max_errors", 0) if data.get("on_error") == "skip" else 0


def mixture_seed(recipe: dict) -> int:
    """The seed of a recipe's data: `training.data_seed` or, as in transformers, `training.seed`, which is 42."""
    training = recipe.get("training") or {}
    return training["data_seed"] if training.get("data_seed") is not None else training.get("seed", 42)


def find_processor(given: str | None, recipe: dict) -> FusionProcessor | None:
    """
    The processor to count tokens with: the given one, else that of the recipe's `model.path`, else none.

    Raises:
        OSError, ValueError: if the given one cannot be loaded.
    """
    path = given or (recipe.get("model") or {}).get("path")
    try:
        if path is None:
            raise ValueError("the recipe has no `model.path`")
        return FusionProcessor.from_pretrained(find_model(path))
    except (OSError, ValueError) as error:
        if given:
            raise
        print(f"no processor: tokens not counted ({str(error).splitlines()[0]})")


def print_check(name: str, data: dict, report: MixtureCheck) -> bool:
    """Prints what was found of a section; returns whether it may be trained on."""
    num_broken, limit = len(report.broken), max_errors(data)
    print(f"\n{name}\n{report}\n{num_broken} broken rows, {limit} allowed")
    for row in report.broken[:NUM_SHOWN]:
        print(f"  {row.error}")
    if num_broken > NUM_SHOWN:
        print(f"  ... and {num_broken - NUM_SHOWN} more; --report FILE writes all")
    return num_broken <= limit


def check_recipe(
    path: Path, overrides: list[str], processor: str | None, num_workers: int, report_path: str | None
) -> bool:
    """
    Check the data of a recipe, print what was found, and return whether it may be trained on.

    Args:
        path (`Path`): of the recipe.
        overrides (`list[str]`): see `load_recipe`.
        processor (`str`, *optional*): folder or Hub id to count tokens with. Defaults to the recipe's model.
        num_workers (`int`): processes; 0 works in this one.
        report_path (`str`, *optional*): where all broken rows are written, as JSON lines.

    Raises:
        ValueError, OSError: if the recipe or its files cannot be read.
    """
    recipe = read_recipe(path, overrides)
    if recipe.get("data") is None:
        raise ValueError(f"{path} has no section `data`.")
    sections = {name: recipe[name] for name in ("data", "eval_data") if recipe.get(name) is not None}
    mixtures = {name: load_mixture(data, path.parent, mixture_seed(recipe)) for name, data in sections.items()}
    found = find_processor(processor, recipe)
    reports = {name: check_rows(dataset, num_workers, found) for name, dataset in mixtures.items()}
    if report_path:
        write_broken([row for report in reports.values() for row in report.broken], report_path)
    passed = [print_check(name, sections[name], report) for name, report in reports.items()]
    return all(passed)


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["check", *sys.argv[1:]]))
