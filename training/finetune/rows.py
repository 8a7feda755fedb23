"""Reads the rows of a fine-tuning, checks them as training will use them, and holds some out."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.split import default_share, split_rows
from fusion_vlm.rows.table import BadRowsError, RowProblem, check_images, read_rows
from fusion_vlm.training.check import count_tokens
from fusion_vlm.training.finetune.answers import expected_answer


MAX_LENGTH = 4096


@dataclass(frozen=True)
class Data:
    """
    The rows of a fine-tuning.

    Attributes:
        train, held_out (`list[dict]`): rows with `messages` and `source`. `held_out` may be empty.
        num_skipped (`int`): bad rows of both tables that were skipped.
        notices (`list[str]`): what the user should know about the tables.
        digest (`str`): of all rows and images, to recognize a changed table.
    """

    train: list[dict]
    held_out: list[dict]
    num_skipped: int
    notices: list[str]
    digest: str


def load_rows(
    path: str | Path,
    processor: FusionProcessor,
    config: FusionConfig,
    *,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    progress: bool = False,
    **reading,
) -> tuple[list[dict], list[str | None], list[RowProblem], list[str]]:
    """
    Read a table and check each row as training will use it.

    Args:
        path (`str` or `Path`), reading: see `read_rows`.
        max_length (`int`, *optional*): longest row in tokens. Defaults to what the decoder takes, 4096 at most.
        skip_bad_rows (`bool`): whether to skip bad rows.
        progress (`bool`): whether to show a bar.

    Returns:
        The rows, the fingerprints of their images, the problems of skipped rows, and notices.

    Raises:
        BadRowsError: if rows are bad and may not be skipped, or if all rows are bad.
        ValueError, FileNotFoundError: as `read_rows`.
    """
    rows, problems, notices = read_rows(path, **reading)
    num_rows = len(rows) + len(problems)
    num_positions = getattr(config.text_config, "max_position_embeddings", None) or MAX_LENGTH
    limit = min(max_length or MAX_LENGTH, num_positions)
    # Training draws latent grids that may be larger than the processor's.
    more_latents = max(config.latent_grid_sizes) ** 2 - processor.image_processor.latent_grid_size**2
    bad = {}
    for row in rows:
        if (reason := _find_problem(row, processor, limit, max(0, more_latents))) is not None:
            bad[row["source"]] = RowProblem(row["source"].rpartition(", ")[2], reason)
    fingerprints, image_problems = check_images(rows, progress)
    with_bad_image = {problem.place: problem for problem in image_problems}
    for row in rows:
        if problem := with_bad_image.get(row["source"].rpartition(", ")[2]):
            bad.setdefault(row["source"], problem)
    problems += bad.values()
    kept = [(row, key) for row, key in zip(rows, fingerprints, strict=True) if row["source"] not in bad]
    problems.sort(key=lambda problem: int(problem.place.rpartition(" ")[2]))
    if problems and (not skip_bad_rows or not kept):
        raise BadRowsError(Path(path).name, problems, num_rows)
    return [row for row, _ in kept], [key for _, key in kept], problems, notices


def _find_problem(row: dict, processor: FusionProcessor, limit: int, more_latents: int) -> str | None:
    try:
        processor.check_messages(row["messages"], is_prompt=False)
        num_tokens = count_tokens(processor, row)[1]
    except (RowError, ValueError) as error:
        return str(error).removeprefix(f"{row['source']}: ")
    num_tokens += more_latents * sum(message["role"] == "user" for message in row["messages"])
    if num_tokens > limit:
        return f"it has {num_tokens} tokens, image included, expected at most {limit} (--max-length; see docs)"
    return None


def load_data(
    path: str | Path,
    processor: FusionProcessor,
    config: FusionConfig,
    *,
    eval_path: str | Path | None = None,
    eval_share: float | None = None,
    seed: int = 0,
    **options,
) -> Data:
    """
    Read the table and hold rows out, or read them from a table of their own.

    Args:
        path, processor, config, options: see `load_rows`.
        eval_path (`str` or `Path`, *optional*): a table of held-out rows.
        eval_share (`float`, *optional*): of the rows to hold out. Defaults to a fifth below 100 rows, else a tenth.
        seed (`int`): of the split.

    Raises:
        ValueError: as `load_rows` and `split_rows`, and for `eval_path` beside `eval_share`.
    """
    if eval_path is not None and eval_share is not None:
        raise ValueError("--eval-data and --eval-share exclude each other: held-out rows come from one place.")
    rows, fingerprints, problems, notices = load_rows(path, processor, config, **options)
    if eval_path is not None:
        train = rows
        held_out, eval_fingerprints, eval_problems, eval_notices = load_rows(eval_path, processor, config, **options)
        problems, notices = problems + eval_problems, notices + eval_notices
        shared = {key for key in fingerprints if key} & set(eval_fingerprints)
        if shared:
            notices.append(f"{len(shared)} images of {Path(eval_path).name} are trained on, too: no fair measure.")
    else:
        train, held_out = split_rows(
            rows, fingerprints, default_share(len(rows)) if eval_share is None else eval_share, seed
        )
    notices += _describe_oddities(train, held_out)
    texts = [
        [row["source"], *[str(message["content"][-1]) for message in row["messages"]]] for row in train + held_out
    ]
    digest = hashlib.sha256(json.dumps([texts, fingerprints]).encode()).hexdigest()
    return Data(train, held_out, len(problems), notices, digest)


def _describe_oddities(train: list[dict], held_out: list[dict]) -> list[str]:
    notices = []
    if len(train) < 20:
        count = "One row is" if len(train) == 1 else f"{len(train)} rows are"
        notices.append(f"{count} very few to learn from; expect little on other images.")
    if 0 < len(held_out) < 5:
        notices.append(f"With {len(held_out)} held-out row{'s' * (len(held_out) > 1)}, the figures say little.")
    answers = {expected_answer(row) for row in train}
    if len(answers) == 1 and len(train) > 1:
        notices.append(f"All rows have the same answer, {answers.pop()!r}: the model learns to say that to anything.")
    return notices
