"""
Find, load and run tasks of lmms-eval, one at a time, with an error in words where lmms-eval logs one and exits with 0.
"""

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmms_eval
from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask, Task
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
from loguru import logger
from tenacity import RetryError, stop_after_attempt

from fusion_vlm.hub.names import ModelNameError, find_model


TASKS = Path(__file__).resolve().parent / "tasks"
LMMS_EVAL = Path(lmms_eval.__file__).resolve().parent
MODEL_NAME = "fusion_vl"  # by which tasks choose prompts of their own; none has one for it


class TaskError(ValueError):
    """A task that cannot be found, loaded or scored; the message says why."""


@dataclass(frozen=True)
class TaskResult:
    """
    What lmms-eval computed for a task.

    Args:
        values (`dict`): its results, such as `{"exact_match,none": 0.7, "exact_match_stderr,none": 0.02}`.
        config (`dict`): the task's configuration, as JSON.
        samples (`list[dict]`): each document with its answer and its score.
        counts (`dict[str, int]`): the number of documents with a score, for each metric.
        num_questions (`int`): the number of documents that were asked about.
        num_all (`int`): the number that there are.
    """

    values: dict[str, Any]
    config: dict
    samples: list[dict]
    counts: dict[str, int]
    num_questions: int
    num_all: int


def quiet_harness():
    """Let lmms-eval log errors only: it reports each step, and its progress bars stay."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="lmms-eval: {message}")


def find_tasks(include_path: Path | None = None) -> TaskManager:
    """
    Return the index of lmms-eval's tasks, those of this package, and those of a folder.

    Raises:
        TaskError: if there is no such folder, no task in it, or one that would be hidden by another of its name.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if include_path is None:
            return TaskManager(include_path=str(TASKS), model_name=MODEL_NAME)
        if not include_path.is_dir():
            raise TaskError(f"There is no folder {include_path} with tasks.")
        try:
            added = TaskManager(include_path=str(include_path), include_defaults=False, model_name=MODEL_NAME)
        except Exception as error:  # of YAML, or of what the files hold
            raise TaskError(f"The tasks in {include_path} cannot be read: {error}") from error
        if not added.all_tasks:
            raise TaskError(f"There is no task in {include_path}: expected YAML files of lmms-eval.")
        manager = TaskManager(include_path=[str(TASKS), str(include_path)], model_name=MODEL_NAME)
    # lmms-eval keeps the first task of a name, which is its own.
    for name in added.all_subtasks:
        if manager.task_index[name] != added.task_index[name]:
            raise TaskError(
                f"{include_path} has the task {name!r}, a name that lmms-eval or fusion-vlm has already. Rename it."
            )
    return manager


def check_task(manager: TaskManager, name: str):
    """Raise a TaskError if there is no such task; the message names the nearest one, or the tasks of a group."""
    kind = manager.task_index.get(name, {}).get("type")
    if kind in ("task", "python_task"):
        return
    if kind in ("group", "tag"):
        members = manager.task_index[name]["task"]
        if members == -1:
            members = load_yaml_config(manager.task_index[name]["yaml_path"], mode="simple")["task"]
        shown = " ".join(str(member) for member in members)
        raise TaskError(f"{name} is a {kind} of tasks. Name its tasks: {shown}")
    near = difflib.get_close_matches(name, manager.all_subtasks, n=1)
    hint = f" Did you mean {near[0]}?" if near else " One of your own needs --include-path."
    raise TaskError(f"lmms-eval {version('lmms_eval')} has no task {name!r}.{hint}")


# What a result depends on -------------------------------------------------------------------------------------------


def identify_task(manager: TaskManager, name: str) -> str:
    """
    Return a hash of a task: its configuration, the code that it names outside of lmms-eval, and its local files.

    Raises:
        TaskError: if its configuration cannot be read.
    """
    config = read_config(manager, name)
    files = [Path(path) for path in find_local_files(config)]
    stats = {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
    content = json.dumps([describe(config), stats, version("lmms_eval")], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def read_config(manager: TaskManager, name: str) -> dict:
    """Return the configuration of a task, its functions imported."""
    path = manager.task_index[name]["yaml_path"]
    try:
        return load_yaml_config(path, mode="full")
    except Exception as error:  # whatever the modules of a task raise when they are imported
        raise TaskError(f"The task {name} cannot be read from {path}: {type(error).__name__}: {error}") from error


def describe(value: Any) -> Any:
    """Return a configuration as JSON, each function by its name and, outside of lmms-eval, its file's content."""
    if isinstance(value, dict):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(each) for each in value]
    if not callable(value):
        return value
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    file = find_source(value)
    if file is None or file.is_relative_to(LMMS_EVAL):
        return name
    return [name, hashlib.sha256(file.read_bytes()).hexdigest()]


def find_source(value: Callable) -> Path | None:
    """Return the file of a function or class, by its code: `inspect` does not find modules that are loaded by path."""
    value = getattr(value, "func", value)  # of a partial
    members = vars(value if isinstance(value, type) else type(value)).values()
    codes = [getattr(each, "__code__", None) for each in (value, *members)]
    files = [Path(code.co_filename) for code in codes if code]
    return next((file for file in files if file.is_file()), None)


def find_local_files(config: dict) -> list[str]:
    """Return the files and folders on this machine that a task reads its data from."""
    data = (config.get("dataset_kwargs") or {}).get("data_files", [])
    stack, found = [data, config.get("dataset_path")], []
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        elif isinstance(value, str) and os.path.isdir(value):
            found += [os.path.join(root, file) for root, _, files in os.walk(value) for file in files]
        elif isinstance(value, str) and os.path.isfile(value):
            found.append(value)
    return sorted(found)


# Loading and running ------------------------------------------------------------------------------------------------


def load_task(manager: TaskManager, name: str) -> Task:
    """
    Load a task with its data.

    Raises:
        TaskError: if the data cannot be had, or do not have the fields that the task reads.
    """
    config = read_config(manager, name)
    data, options = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    reach_data(name, data)
    changes: dict[str, Any] = {}
    if options.get("token") is True and get_token() is None:
        # Most tasks ask for a login, which their public data do not need.
        changes["dataset_kwargs"] = {key: value for key, value in options.items() if key != "token"}
    try:
        return build_task(manager, name, changes)
    except Exception as error:  # of whatever library reads the data, and of the task's own functions
        # Without a network, `datasets` finds what it has loaded before, but not what `hf download` has fetched.
        snapshot = find_snapshot(data)
        if snapshot is None:
            raise TaskError(describe_load_error(name, data, error)) from error
    try:
        return build_task(manager, name, {**changes, "dataset_path": snapshot})
    except Exception as error:
        raise TaskError(describe_load_error(name, snapshot, error)) from error


def build_task(manager: TaskManager, name: str, changes: dict) -> Task:
    """Build a task with changes of its configuration."""
    with contextlib.redirect_stdout(sys.stderr):
        return manager.load_config({"task": name, **changes})[name]


def find_snapshot(data: str | None) -> str | None:
    """Return the folder of a data set in the cache of the Hub, if the process works without a network."""
    if not constants.HF_HUB_OFFLINE or not is_hub_id(data):
        return None
    try:
        return snapshot_download(data, repo_type="dataset", cache_dir=constants.HF_HUB_CACHE, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def is_hub_id(data: str | None) -> bool:
    """Return whether a data set is one of the Hub, and not a folder or a format such as `parquet`."""
    return bool(data) and data.count("/") == 1 and not os.path.exists(data)


def reach_data(name: str, data: str | None):
    """
    Check that the Hub answers for a data set, or else let the process look into the cache only.

    Raises:
        TaskError: if the Hub has no such data set.
    """
    if is_hub_id(data):
        try:
            find_model(data, repo_type="dataset")
        except ModelNameError as error:
            raise TaskError(f"{name}: {error}") from error
    if constants.HF_HUB_OFFLINE:
        # lmms-eval tries five times, with pauses, what cannot change without a network.
        ConfigurableTask.download.retry.stop = stop_after_attempt(1)


def unwrap(error: BaseException) -> BaseException:
    """Return the error of the last attempt for one that lmms-eval retried."""
    while isinstance(error, RetryError):
        error = error.last_attempt.exception() or error
        if isinstance(error, RetryError) and error.last_attempt.exception() is None:
            break
    return error


def describe_load_error(name: str, data: str | None, error: Exception) -> str:
    """Return a message on why a task could not be loaded, and what to do."""
    cause = unwrap(error)
    reason = f"{type(cause).__name__}: {cause}"
    if isinstance(cause, OSError) and is_hub_id(data):
        return (
            f"{name}: its data set {data} is neither in the cache nor to be had from the Hub ({reason}). Download it"
            f" where there is a network: hf download {data} --repo-type dataset"
        )
    return f"{name}: its data cannot be loaded: {reason}"


def run_task(
    lm: lmms, task: Task, manager: TaskManager, *, limit: int | None, scratch: Path, check: Callable[[list], None]
) -> TaskResult:
    """
    Ask a model the questions of a task, and score the answers.

    Args:
        lm (`lmms`): the model.
        task (`Task`), manager (`TaskManager`): the task, and the index it comes from.
        limit (`int`, *optional*): number of questions to ask, the first ones.
        scratch (`Path`): folder for the files that tasks write, such as submissions.
        check (`Callable`): called with the samples, before their scores count.

    Raises:
        TaskError: if lmms-eval gives no result.
    """
    name = task.config.task
    # Some tasks read `output_path`, and crash or write to the current folder without it.
    options = argparse.Namespace(output_path=str(scratch), process_with_media=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            results = simple_evaluate(
                model=lm, tasks=[task], task_manager=manager, limit=limit, cli_args=options, bootstrap_iters=1000
            )
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # of the model, the task or lmms-eval
        cause = unwrap(error)
        raise TaskError(f"{name}: {type(cause).__name__}: {cause}") from error
    if not results or not results.get("results", {}).get(name):
        raise TaskError(f"{name}: lmms-eval gave no result.")
    samples = results["samples"][name]
    check(samples)
    metrics = {key.split(",")[0] for key in results["results"][name]}
    counts = Counter(metric for sample in samples for metric in metrics & sample.keys())
    size = results["n-samples"][name]
    return TaskResult(
        values=results["results"][name],
        config=json.loads(json.dumps(results["configs"][name], default=str)),
        samples=samples,
        counts=dict(counts),
        num_questions=size["effective"],
        num_all=size["original"],
    )
