"""What `fusion-vlm evaluate` does, in order: check all that is named, load the model, measure, report."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.evaluation.card import add_to_card
from fusion_vlm.evaluation.checkpoint import check_checkpoint
from fusion_vlm.evaluation.columns import Column, read_authors_scores
from fusion_vlm.evaluation.harness import check_task, find_tasks, quiet_harness
from fusion_vlm.evaluation.judge import Judge, check_judge, use_judge
from fusion_vlm.evaluation.lmms_model import FusionVL
from fusion_vlm.evaluation.report import Row, describe_run, make_rows, print_report
from fusion_vlm.evaluation.run import Plan, evaluate, write_json
from fusion_vlm.hub.loading import find_base
from fusion_vlm.hub.released import find_architecture


class Session:
    """
    An evaluation of a model.

    Args:
        model (`str`):
            A folder or Hub id of a FUSION.
        columns (`list[Column]`):
            What to measure.
        output (`Path`):
            Folder for results.
        include_path (`Path`, *optional*):
            Folder with further tasks.
        limit (`int`, *optional*):
            Number of questions of each task.
        judge (`Judge`, *optional*):
            Who grades answers.
        left_out (`list[str]`):
            Names of columns that were asked for and are not measured, for the report.

    Raises:
        ValueError: for a task that does not exist, a judge that does not answer, and weights that are not complete.
    """

    def __init__(
        self,
        model: str,
        columns: Sequence[Column],
        *,
        output: Path,
        include_path: Path | None = None,
        limit: int | None = None,
        judge: Judge | None = None,
        left_out: Sequence[str] = (),
    ):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "fusion-vlm evaluate runs in one process. On several GPUs: accelerate launch -m lmms_eval --model"
                " fusion_vl ..., as docs/evaluation.md shows."
            )
        quiet_harness()
        self.model, self.output, self.limit, self.left_out = model, output, limit, left_out
        check_checkpoint(model)
        # Before any task is loaded: tasks build their judges when they are imported.
        log = None
        if judge:
            check_judge(judge)
            log = use_judge(judge)
        manager = find_tasks(include_path)
        for column in columns:
            check_task(manager, column.task)
        self.plan = Plan(list(columns), output, manager, limit, judge, log)
        architecture = find_architecture(FusionConfig.from_pretrained(find_base(model) or model))
        self.authors = architecture.name if architecture else None
        self.settings: dict = {}

    def run(self, **options) -> list[Row]:
        """
        Load the model, measure what has no result yet, and write the report.

        Args:
            options: arguments of `FusionVL`.

        Returns:
            The lines of the table.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("device") == "auto":
            del given["device"]
        lm = FusionVL(self.model, answers=str(self.output / "answers.jsonl"), **given)
        self.settings = lm.settings
        try:
            records, failures = evaluate(lm, self.plan)
        finally:
            lm.answerer.log.close()
        rows = make_rows(self.plan.columns, records, failures, read_authors_scores(self.authors))
        write_json(self.output / "report.json", self.describe(rows))
        return rows

    def describe(self, rows: Sequence[Row]) -> dict:
        """Return the report as JSON."""
        return {
            "model": self.model,
            "harness": version("lmms_eval"),
            "settings": self.settings,
            "limit": self.limit,
            "judge": asdict(self.plan.judge) if self.plan.judge else None,
            "authors": self.authors,
            "differs": self.describe_run(),
            "rows": [asdict(row) for row in rows],
            "left_out": list(self.left_out),
        }

    def describe_run(self) -> list[str]:
        """Return how the run was made, and what differs from the authors' in every column."""
        return describe_run(self.settings, self.limit, version("lmms_eval"), self.authors is not None)

    def print_report(self, rows: Sequence[Row]) -> str:
        """Return the report as text."""
        return print_report(
            rows, model=self.model, authors=self.authors, notes=self.describe_run(), left_out=self.left_out
        )

    def write_card(self, rows: Sequence[Row]) -> Path:
        """Add the rows to the model card of the folder, and return its path."""
        return add_to_card(Path(self.model), rows, self.describe(rows))
