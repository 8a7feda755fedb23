"""
Run the tasks of an evaluation one by one, each result written as soon as it is there.

    OUTPUT/answers.jsonl        each answer, from which an interrupted task resumes (answer_log.py)
    OUTPUT/results/TASK.json    what lmms-eval computed, and what the result depends on
    OUTPUT/samples/TASK.jsonl   each document's prompt, answer and score
    OUTPUT/report.json          the table (report.py)

A result is reused if everything that it depends on is the same, and never overwritten if not.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmms_eval.tasks import TaskManager
from tqdm import tqdm

import fusion_vlm
from fusion_vlm.evaluation.columns import Column
from fusion_vlm.evaluation.harness import TaskError, TaskResult, identify_task, load_task, read_config, run_task
from fusion_vlm.evaluation.judge import Judge, JudgeLog, check_judged
from fusion_vlm.evaluation.lmms_model import FusionVL
from fusion_vlm.hub.bug_report import one_line


# Settings of a run that change no answer.
WITHOUT_EFFECT = ("model", "many_images")
PACKAGES = ("lmms_eval", "transformers", "torch", "datasets")
SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal


@dataclass(frozen=True)
class Plan:
    """
    What to measure, and where to write the results.

    Args:
        columns (`list[Column]`): the columns, some of which share a task.
        output (`Path`): the folder.
        manager (`TaskManager`): the index of tasks.
        limit (`int`, *optional*): number of questions of each task.
        judge (`Judge`, *optional*): who grades answers.
        judge_log (`JudgeLog`, *optional*): the record of its calls.
    """

    columns: list[Column]
    output: Path
    manager: TaskManager
    limit: int | None = None
    judge: Judge | None = None
    judge_log: JudgeLog | None = None

    @property
    def tasks(self) -> dict[str, list[Column]]:
        """Columns of each task, in the order of the table."""
        tasks: dict[str, list[Column]] = {}
        for column in self.columns:
            tasks.setdefault(column.task, []).append(column)
        return tasks

    def find_limit(self, columns: list[Column]) -> int | None:
        """Return the number of questions of a task: the limit, and one more where it would split a pair."""
        is_paired = any(column.paired for column in columns)
        return self.limit + self.limit % 2 if self.limit and is_paired else self.limit

    def find_path(self, task: str) -> Path:
        """Return the path of the result of a task."""
        return self.output / "results" / f"{task}.json"


def evaluate(lm: FusionVL, plan: Plan) -> tuple[dict[str, dict], dict[str, str]]:
    """
    Measure each task of a plan that has no result yet. A task that fails does not stop the others.

    Returns:
        The record of each task, and the reason for each task without one.

    Raises:
        ValueError: if the folder has results of another run; nothing has been asked then.
    """
    identities = {task: identify_result(lm, plan, task) for task in plan.tasks}
    records, failures = {}, {}
    for task, identity in identities.items():
        if record := find_record(plan.find_path(task), identity):
            records[task] = record
    sizes = {task: estimate_size(plan, columns) for task, columns in plan.tasks.items() if task not in records}
    for task, record in records.items():
        print(f"{task}: finished on {record['finished'][:10]}, {plan.find_path(task)}", file=sys.stderr)
    with Progress(sizes, lm) as progress:
        for task in sizes:
            progress.begin(task)
            try:
                records[task] = measure(lm, plan, task, identities[task], progress)
            except ValueError as error:
                failures[task] = one_line(error).removeprefix(f"{task}: ")
                progress.say(f"{task}: no result: {failures[task]}")
            progress.end()
    return records, failures


def identify_result(lm: FusionVL, plan: Plan, task: str) -> dict:
    """Return everything that the result of a task depends on, as JSON."""
    columns = plan.tasks[task]
    settings = {name: value for name, value in lm.settings.items() if name not in WITHOUT_EFFECT}
    settings |= {"task": identify_task(plan.manager, task), "limit": plan.find_limit(columns)}
    settings["judge"] = asdict(plan.judge) if plan.judge and uses_judge(columns) else None
    return json.loads(json.dumps(settings))


def uses_judge(columns: list[Column]) -> bool:
    """Return whether a judge grades the answers of a task."""
    return any(column.judge for column in columns)


def find_record(path: Path, identity: dict) -> dict | None:
    """
    Read the result of a task, if there is one.

    Raises:
        ValueError: if it is a result of other settings; the message names the first that differs.
    """
    if not path.is_file():
        return None
    advice = f"Name another --output, or delete {path} to measure it again."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        old = record["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a result. {advice}") from error
    for name in sorted({*old, *identity}):
        if old.get(name) != identity.get(name):
            what = {"weights": "weights", "task": "version of the task or its data"}.get(name)
            change = f"another {what}" if what else f"{name} {old.get(name)}, and this run has {identity.get(name)}"
            raise ValueError(f"{path} is a result with {change}. {advice}")
    return record


def estimate_size(plan: Plan, columns: list[Column]) -> int:
    """Return the number of questions of a task, before its data are loaded."""
    size = next((column.questions for column in columns if column.questions), plan.limit or 1000)
    return min(size, plan.find_limit(columns) or size)


def measure(lm: FusionVL, plan: Plan, task: str, identity: dict, progress: "Progress") -> dict:
    """Run a task, write its result, and return the record."""
    begin, columns, judged = time.perf_counter(), plan.tasks[task], None
    loaded = load_task(plan.manager, task)
    limit = plan.find_limit(columns)
    progress.resize(min(len(loaded.eval_docs), limit or len(loaded.eval_docs)))
    if uses_judge(columns) and plan.judge_log:
        plan.judge_log.clear()

    def check(samples: list[dict]):
        nonlocal judged
        if uses_judge(columns) and plan.judge and plan.judge_log:
            check_judged(plan.judge_log, plan.judge, samples)
            judged = {**asdict(plan.judge), "calls": plan.judge_log.num_calls}

    result = run_task(lm, loaded, plan.manager, limit=limit, scratch=plan.output / "lmms_eval", check=check)
    if not any(is_number(value) for value in result.values.values()) and not any(column.zero for column in columns):
        raise TaskError(f"{task}: lmms-eval gave no value, only {', '.join(result.values)}.")
    record = build_record(task, identity, result, judged, time.perf_counter() - begin)
    # Not that of the result, which may be a folder of this machine's cache.
    record["data"] = read_config(plan.manager, task).get("dataset_path") or ""
    rows = "".join(json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in result.samples)
    write_text(plan.output / "samples" / f"{task}.jsonl", rows)
    write_json(plan.find_path(task), record)
    return record


def build_record(task: str, identity: dict, result: TaskResult, judge: dict | None, seconds: float) -> dict:
    """Return what is written about the result of a task."""
    return {
        "task": task,
        "values": {name: to_json(value) for name, value in result.values.items()},
        "num_questions": result.num_questions,
        "num_all": result.num_all,
        "counts": result.counts,
        "right_or_wrong": find_right_or_wrong(result.samples, result.counts),
        "judge": judge,
        "seconds": round(seconds, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"fusion_vlm": fusion_vlm.__version__, **{package: version(package) for package in PACKAGES}},
        "config": result.config,
        "identity": identity,
    }


def find_right_or_wrong(samples: list[dict], metrics: Iterable[str]) -> list[str]:
    """Return the metrics whose value for each document is 0 or 1."""
    values = {metric: [sample[metric] for sample in samples if metric in sample] for metric in metrics}
    return [
        metric
        for metric, each in sorted(values.items())
        if each and all(is_number(value) and value in (0, 1) for value in each)
    ]


def is_number(value: Any) -> bool:
    """Return whether a value is a number that can be printed as a score."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def to_json(value: Any) -> Any:
    """Return a value of lmms-eval as JSON: numbers of NumPy as those of Python, which others do not read."""
    if isinstance(value, float) or hasattr(value, "item"):
        number = float(value)
        return number if math.isfinite(number) else None
    return value if isinstance(value, (int, str, bool, type(None))) else str(value)


def write_json(path: Path, content: Any):
    """Write a file of JSON that is complete whenever it exists."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str):
    """Write a file that is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Progress:
    """
    Show how far an evaluation is, and the time that is left for all of its tasks.

    Args:
        sizes (`dict[str, int]`): the number of questions of each task, about.
        lm (`FusionVL`): the model, which reports each batch of answers.
    """

    def __init__(self, sizes: dict[str, int], lm: FusionVL):
        self.sizes, self.lm = dict(sizes), lm
        self.task, self.num_answered, self.num_begun = "", 0, 0
        interval = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        self.bar = tqdm(
            total=sum(sizes.values()), unit="question", mininterval=interval, smoothing=0.05, disable=not sizes
        )

    def __enter__(self) -> "Progress":
        self.lm.answerer.show_progress = False
        self.lm.answerer.on_answers = self.advance
        return self

    def __exit__(self, *_):
        self.lm.answerer.on_answers = None
        self.bar.close()

    def begin(self, task: str):
        """Begin a task."""
        self.task, self.num_answered, self.num_begun = task, 0, self.num_begun + 1
        self.bar.set_description(f"{task} ({self.num_begun} of {len(self.sizes)})")

    def resize(self, size: int):
        """Correct the number of questions of the task, once its data are loaded."""
        self.bar.total += size - self.sizes[self.task]
        self.sizes[self.task] = size

    def advance(self, num_answers: int):
        """Count answers that were generated."""
        self.num_answered += num_answers
        self.bar.update(num_answers)

    def end(self):
        """End a task: the answers that were not generated, because they were there or failed, take no time."""
        left = self.sizes[self.task] - self.num_answered
        self.bar.initial += left
        self.bar.n += left
        self.bar.refresh()

    def say(self, line: str):
        """Print a line above the bar."""
        self.bar.write(line, file=sys.stderr)
