"""Add the rows of an evaluation to the model card of a folder, apart from the authors' figures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fusion_vlm.evaluation.report import Row
from fusion_vlm.hub.card import write_card
from fusion_vlm.hub.measured import save_run, show_runs


def add_to_card(folder: Path, rows: Sequence[Row], run: dict) -> Path:
    """
    Add what was measured to the card of a folder, which is written first if there is none.

    Args:
        folder (`Path`): folder of a model.
        rows (`list[Row]`): the table; the columns of the paper count, with a value of all of their questions.
        run (`dict`): the report as JSON.

    Raises:
        ValueError: if there is no such row.
    """
    shown = [row for row in rows if row.value is not None and not row.is_partial and row.is_column]
    if not shown:
        raise ValueError("--write-card: no column of the paper's table has a value of all of its questions.")
    if not (folder / "README.md").exists():
        write_card(folder)
    save_run(folder, {**run, "rows": [asdict(row) for row in shown]})
    show_runs(folder)
    return folder / "README.md"
