"""Prepares the data sets that training gets: the rows of a recipe, without broken ones if `on_error` is skip."""

from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import RowError
from fusion_vlm.training.check import check_rows, write_broken
from fusion_vlm.training.data import FusionDataset, load_mixture
from fusion_vlm.training.recipe import DataSection, Recipe
from fusion_vlm.training.trainer import FusionTrainingArguments


logger = logging.get_logger(__name__)


def load_data(
    recipe: Recipe, name: str, arguments: FusionTrainingArguments, processor: FusionProcessor
) -> FusionDataset | None:
    """
    Return the rows of a section (`data` or `eval_data`), the same on every process; None without such a section.

    The first process finds the rows and checks them, the others receive the result.
    """
    datasets = [None]
    section = recipe.data_sections.get(name)
    if arguments.process_index == 0 and section is not None:
        report_path = Path(arguments.output_dir, f"broken_rows_{name}.jsonl")
        num_workers = arguments.dataloader_num_workers
        datasets = [prepare_dataset(section, recipe.folder, recipe.data_seed, report_path, num_workers, processor)]
    broadcast_object_list(datasets)
    return datasets[0]


def prepare_dataset(
    data: DataSection | dict,
    folder: Path,
    seed: int,
    report_path: str | Path,
    num_workers: int = 0,
    processor: FusionProcessor | None = None,
) -> FusionDataset:
    """
    Return the data set of a section as training uses it.

    With `on_error: skip` all rows are checked now and broken ones are dropped. So the length is known, and a resumed
    training sees the same rows.

    Args:
        data, folder, seed: see `load_mixture`.
        report_path (`str` or `Path`): where the broken rows are written, as JSON lines; only with `on_error: skip`.
        num_workers (`int`): processes to check with; 0 works in this one.
        processor (`FusionProcessor`, *optional*): with it, rows that it rejects are broken too.

    Raises:
        RowError: if more rows are broken than `max_errors`.
        ValueError, FileNotFoundError: see `load_mixture`.
    """
    data = data if isinstance(data, DataSection) else DataSection.read(data)
    dataset = load_mixture(data, folder, seed)
    if not data.skips_errors:
        return dataset
    broken = check_rows(dataset, num_workers, processor).broken
    write_broken(broken, report_path)
    if len(broken) > data.num_allowed_errors:
        raise RowError(
            f"{len(broken)} of {len(dataset)} rows are broken, expected at most {data.num_allowed_errors}"
            f" (`max_errors`). All are in {report_path}, the first is: {broken[0].error}"
        )
    logger.warning(f"{len(broken)} of {len(dataset)} rows are broken and skipped; they are in {report_path}.")
    return dataset.without(row.index for row in broken)
