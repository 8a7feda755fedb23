"""
Runs samples through stages, such that a run may be killed at any moment.

A run that was killed and started again ends with the same files as a run that was not. docs/engine.md says how, and
why datatrove is not used. A run is a folder:

    run.json                  its configuration; a run of another configuration is refused
    images/                   each file is whole or not there
    work/parts/part-00012     finished samples from index 12 * 64 on, one JSON a line; a part that exists is done
    work/...                  temporary files and caches of each task
    done.json                 the last file that is written

Parts are dealt out to tasks: one, or many on a cluster. The task that ends last writes the output.
"""

import asyncio
import functools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from fusion_vlm.synthesis.sample import IMAGE_DIR, Sample
from fusion_vlm.synthesis.stage import Stage


PART_SIZE = 64


class RunError(RuntimeError):
    """A run that cannot start or continue. The message says why and what to do. Finished samples stay."""


class FailureLimit:
    """
    Stops the run if a service is down, but not if it fails now and then. Stages report the end of each call here.

    Args:
        name (`str`): name of the service, for the error.
        max_in_a_row (`int`): failed calls in a row that stop the run.
    """

    def __init__(self, name: str, max_in_a_row: int = 20):
        self.name, self.max_in_a_row = name, max_in_a_row
        self.num_in_a_row, self.has_succeeded, self.last = 0, False, None

    def succeeded(self):
        self.num_in_a_row, self.has_succeeded = 0, True

    def failed(self, error: Exception):
        """
        Count a failed call.

        Raises:
            RunError: if too many calls in a row have failed.
        """
        self.num_in_a_row, self.last = self.num_in_a_row + 1, error
        if self.num_in_a_row >= self.max_in_a_row:
            self._give_up()

    def check(self):
        """
        Check that some call has worked.

        The engine calls this before it stores samples as finished. Without it, rejects of a service that never worked
        would be final.

        Raises:
            RunError: if every call has failed.
        """
        if self.num_in_a_row and not self.has_succeeded:
            self._give_up()

    def _give_up(self):
        raise RunError(f"{self.num_in_a_row} calls in a row failed at {self.name}; the last one: {self.last}")


@dataclass(frozen=True)
class Step:
    """
    A stage of a pipeline, and the place where it runs.

    Args:
        stage (`Stage`): an async stage runs in the event loop.
        place (`str`): for other stages: `process` if it computes, `thread` if it waits or holds a model.
    """

    stage: Stage
    place: str = "process"

    @property
    def is_async(self) -> bool:
        return iscoroutinefunction(self.stage.__call__)


@dataclass(frozen=True)
class RunFolder:
    """
    The files of one task in the folder of a run.

    Args:
        path (`Path`): folder of the run.
        num_samples (`int`): samples of all tasks.
        task (`int`), num_tasks (`int`): index of this task, and number of tasks.

    Raises:
        RunError: if there is no such task.
    """

    path: Path
    num_samples: int
    task: int = 0
    num_tasks: int = 1

    def __post_init__(self):
        if not 0 <= self.task < self.num_tasks:
            raise RunError(
                f"The task is {self.task} of {self.num_tasks}, expected one from 0 to {self.num_tasks - 1}."
            )

    @property
    def name(self) -> str:
        return f"task-{self.task:05d}-of-{self.num_tasks:05d}"

    @property
    def image_dir(self) -> Path:
        return self.path / IMAGE_DIR

    @property
    def parts_dir(self) -> Path:
        return self.path / "work" / "parts"

    @property
    def temporary_dir(self) -> Path:
        return self.path / "work" / f"{self.name}.tmp"

    @property
    def calls_path(self) -> Path:
        """File of the cache of finished calls."""
        return self.path / "work" / f"{self.name}.calls.sqlite"

    @property
    def num_parts(self) -> int:
        return -(-self.num_samples // PART_SIZE)

    @contextmanager
    def opened(self, config: dict) -> Iterator[None]:
        """
        Create the folder, or check that it holds a run of the same configuration; keep other processes from this task.

        Temporary files that a kill has left are removed.

        Raises:
            RunError: if the folder holds something else, or if another process runs this task.
        """
        # A run that was killed before it wrote its configuration has created `work` and nothing else.
        others = {path.name for path in self.path.iterdir()} - {"work"} if self.path.is_dir() else set()
        if others and "run.json" not in others:
            raise RunError(f"{self.path} is not empty and holds no run. Give another --output.")
        self.parts_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = self.lock(self.name).acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"Another process runs {self.name} in {self.path}. Let it end, or kill it.") from error
        with lock:
            shutil.rmtree(self.temporary_dir, ignore_errors=True)
            self.temporary_dir.mkdir()
            if not (self.path / "run.json").is_file():
                self.write("run.json", json.dumps(config, indent=2) + "\n")
            check_config(json.loads((self.path / "run.json").read_text()), json.loads(json.dumps(config)), self.path)
            try:
                yield
            finally:
                shutil.rmtree(self.temporary_dir)

    def write(self, name: str, content: str | bytes):
        """Write a file in the folder of the run. A kill leaves the whole file or none."""
        content = content.encode() if isinstance(content, str) else content
        temporary = self.temporary_dir / f"{os.getpid()}-{threading.get_ident()}-{Path(name).name}"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)

    def lock(self, name: str) -> FileLock:
        return FileLock(self.path / "work" / f"{name}.lock")

    def part_path(self, part: int) -> Path:
        return self.parts_dir / f"part-{part:05d}.jsonl"

    def part_indices(self, part: int) -> range:
        return range(part * PART_SIZE, min((part + 1) * PART_SIZE, self.num_samples))

    def missing_parts(self) -> list[int]:
        """Return the parts of all tasks that are not finished."""
        return [part for part in range(self.num_parts) if not self.part_path(part).is_file()]

    def write_part(self, part: int, samples: Iterable[Sample]):
        lines = (json.dumps(sample.to_dict(), ensure_ascii=False) + "\n" for sample in samples)
        self.write(self.part_path(part).relative_to(self.path), "".join(lines))

    def read_samples(self) -> Iterator[Sample]:
        """Read all finished samples of the run in order, including the rejected ones."""
        for part in range(self.num_parts):
            if self.part_path(part).is_file():
                with open(self.part_path(part), encoding="utf-8") as file:
                    yield from (Sample.from_dict(json.loads(line)) for line in file)


def check_config(found: dict, expected: dict, path: Path):
    """Raise a `RunError` that names the options that differ, if any."""
    names = sorted(found.keys() | expected.keys())
    differences = [
        f"{name} was {found.get(name)!r} and is {expected.get(name)!r}"
        for name in names
        if found.get(name) != expected.get(name)
    ]
    if differences:
        found = "; ".join(differences)
        raise RunError(f"{path} holds a run of another configuration: {found}. Give another --output.")


class Engine:
    """
    Runs the samples of one task that are not finished.

    Args:
        source (`Callable[[int], Sample]`): returns the sample of an index before its first stage; cheap.
        steps (`list[Step]`): in order. Rejected samples skip the following steps.
        build_steps (`Callable[[], list[Step]]`): builds the steps in each worker process, which runs those placed in
            processes. Has to be picklable.
        folder (`RunFolder`): the folder, opened.
        limits (`list[FailureLimit]`): the limits that the stages report to.
        num_workers (`int`): worker processes; with 0, the stages that compute run in threads.
        num_active (`int`): samples in progress at once.
    """

    def __init__(
        self,
        source: Callable[[int], Sample],
        steps: list[Step],
        build_steps: Callable[[], list[Step]],
        folder: RunFolder,
        limits: list[FailureLimit],
        num_workers: int = 0,
        num_active: int = 8,
    ):
        self.source, self.steps, self.build_steps, self.folder = source, steps, build_steps, folder
        self.limits, self.num_workers, self.num_active = limits, num_workers, num_active
        # Neighboring steps of one place run together, so that a sample is sent to a process once.
        places = ("loop" if step.is_async else step.place for step in steps)
        groups = groupby(enumerate(places), key=lambda pair: pair[1])
        self.groups = [(place, [index for index, _ in members]) for place, members in groups]

    async def run(self):
        """
        Finish the missing parts of this task.

        Raises:
            Exception: any error of a stage. Samples in progress are lost, finished parts stay.
        """
        parts = [part for part in self.folder.missing_parts() if part % self.folder.num_tasks == self.folder.task]
        work = ((part, index) for part in parts for index in self.folder.part_indices(part))
        finished = {part: {} for part in parts}
        num_total = sum(len(self.folder.part_indices(part)) for part in parts)
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(max(1, self.num_workers), context, _start_worker) as processes,
            # Not asyncio's default executor, where stages that wait long would block other users.
            ThreadPoolExecutor(self.num_active) as threads,
            tqdm(total=num_total, unit="sample", desc=self.folder.name, dynamic_ncols=True, mininterval=1) as progress,
        ):
            executors = {"process": processes if self.num_workers else threads, "thread": threads}
            lanes = [self._run_lane(work, finished, executors, progress) for _ in range(self.num_active)]
            lanes = [asyncio.create_task(lane) for lane in lanes]
            try:
                await asyncio.gather(*lanes)
            finally:
                for lane in lanes:
                    lane.cancel()
                await asyncio.gather(*lanes, return_exceptions=True)

    async def _run_lane(
        self, work: Iterator[tuple[int, int]], finished: dict, executors: dict[str, Executor], progress: tqdm
    ):
        """Run samples one after another. All lanes take them from the same iterator."""
        for part, index in work:
            finished[part][index] = await self._run_sample(self.source(index), executors)
            progress.update()
            indices = self.folder.part_indices(part)
            if len(finished[part]) == len(indices):
                for limit in self.limits:
                    limit.check()
                samples = finished.pop(part)
                self.folder.write_part(part, (samples[index] for index in indices))

    async def _run_sample(self, sample: Sample, executors: dict[str, Executor]) -> Sample:
        for place, indices in self.groups:
            if sample.reason is not None:
                break
            if place == "loop":
                for index in indices:
                    sample = await self.steps[index].stage(sample) if sample.reason is None else sample
            else:
                run = functools.partial(run_steps, self.steps)
                if executors[place] is executors["process"] and self.num_workers:
                    run = functools.partial(_run_in_worker, self.build_steps)
                sample = await asyncio.get_running_loop().run_in_executor(executors[place], run, indices, sample)
        return sample


def run_steps(steps: list[Step], indices: list[int], sample: Sample) -> Sample:
    """Run a sample through the steps of these indices, none of them async."""
    for index in indices:
        if sample.reason is None:
            sample = steps[index].stage(sample)
    return sample


def _run_in_worker(build_steps: Callable[[], list[Step]], indices: list[int], sample: Sample) -> Sample:
    return run_steps(build_steps(), indices, sample)


def _start_worker():
    # One thread for each worker: the threads of torch and others in many workers would compete for the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Ctrl-C reaches all processes of a terminal, and the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this, a worker whose parent is killed would wait for work forever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def finish(folder: RunFolder, write_output: Callable[[], dict]) -> dict | None:
    """
    Write the output if all parts of all tasks are finished and no other task has written it.

    Args:
        folder (`RunFolder`)
        write_output (`Callable[[], dict]`): writes everything but `done.json`, and returns the content of that.

    Returns:
        `dict`, *optional*: the content of `done.json`, or `None` while other tasks are not finished.
    """
    if folder.missing_parts():
        return None
    with folder.lock("finish"):
        done = folder.path / "done.json"
        if not done.is_file():
            folder.write("done.json", json.dumps(write_output(), indent=2) + "\n")
        return json.loads(done.read_text())
