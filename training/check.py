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

from fusion_vlm.hub.names import find_model
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import RowError, conversation_text, has_image
from fusion_vlm.training.data import FusionDataset, load_mixture
from fusion_vlm.training.recipe import DataSection, Recipe
from fusion_vlm.training.tables import format_table


NUM_SHOWN = 20


class RowCheck(NamedTuple):
    """The result of checking a row: an error, or counts."""

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
        """Add the counts of a row."""
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
    """The result of `check_rows`. `str` makes a table with a line for each source."""

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
        return "\n".join(format_table(table))


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
        except Exception as error:  # any error of a decoder or a chat template would stop training
            return RowCheck(f"{place}: {type(error).__name__}: {error}")
        num_turns = sum(message["role"] == "user" for message in messages)
        return RowCheck(
            num_images=int(has_image(messages)),
            num_turns=num_turns,
            num_characters=len(conversation_text(messages)),
            num_text_tokens=tokens[0],
            num_tokens=tokens[1],
        )


def check_rows(dataset: FusionDataset, num_workers: int = 0, processor: FusionProcessor | None = None) -> MixtureCheck:
    """
    Read every row and decode every image.

    With a processor, tokens are counted too, and texts that hold its placeholders are found.

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
        generator=torch.Generator(),  # drawing from the global one would change what training draws next
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
    Count the tokens of a row of `FusionDataset`, rendered, without and with its image and latent tokens.

    Raises:
        RowError: for a row that the processor rejects, such as one with control tokens in a text.
    """
    try:
        return processor.count_tokens(row["messages"])
    except ValueError as error:
        raise RowError(f"{row['source']}: {error}") from error


def write_broken(rows: list[BrokenRow], path: str | Path):
    """Write broken rows as JSON lines: `source`, `row` (number of the line or entry) and `error`."""
    lines = [json.dumps({"source": row.source, "row": row.number, "error": row.error}) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def find_processor(given: str | None, recipe: Recipe) -> FusionProcessor | None:
    """
    Return the processor to count tokens with: the given one, else that of the recipe's `model.path`, else None.

    Raises:
        OSError, ValueError: if the given one cannot be loaded.
    """
    path = given or recipe.model.path
    try:
        if path is None:
            raise ValueError("the recipe has no `model.path`")
        return FusionProcessor.from_pretrained(find_model(path))
    except (OSError, ValueError) as error:
        if given:
            raise
        print(f"no processor: tokens not counted ({str(error).splitlines()[0]})")
        return None


def print_check(name: str, data: DataSection, report: MixtureCheck) -> bool:
    """Print what was found in a section, and return whether it may be trained on."""
    num_broken, limit = len(report.broken), data.num_allowed_errors
    print(f"\n{name}\n{report}\n{num_broken} broken rows, {limit} allowed")
    for row in report.broken[:NUM_SHOWN]:
        print(f"  {row.error}")
    if num_broken > NUM_SHOWN:
        print(f"  ... and {num_broken - NUM_SHOWN} more; --report FILE writes all")
    return num_broken <= limit


def check_recipe(recipe: Recipe, processor: str | None, num_workers: int, report_path: str | None) -> bool:
    """
    Check the data of a recipe, print what was found, and return whether it may be trained on.

    Args:
        recipe (`Recipe`): only the sections with rows have to be there.
        processor (`str`, *optional*): folder or Hub id to count tokens with. Defaults to the recipe's model.
        num_workers (`int`): processes; 0 works in this one.
        report_path (`str`, *optional*): where all broken rows are written, as JSON lines.

    Raises:
        ValueError, OSError: if the files cannot be read.
    """
    if recipe.data is None:
        raise ValueError(f"{recipe.path} has no section `data`.")
    sections = recipe.data_sections
    mixtures = {name: load_mixture(data, recipe.folder, recipe.data_seed) for name, data in sections.items()}
    found = find_processor(processor, recipe)
    reports = {name: check_rows(dataset, num_workers, found) for name, dataset in mixtures.items()}
    if report_path:
        write_broken([row for report in reports.values() for row in report.broken], report_path)
    passed = [print_check(name, sections[name], report) for name, report in reports.items()]
    return all(passed)


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["check", *sys.argv[1:]]))
