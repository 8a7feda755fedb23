"""The local runner: worker processes that make parts, watched by this process, which replaces those that die."""

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.parts import Job, Report, make_parts
from fusion_vlm.synthesis.run_folder import RunFolder


MAX_DEATHS = 3  # processes that may die over one part before the run stops


class _WorkerTraceback(Exception):
    """The traceback of an error in a worker process, as the cause of that error here."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class Deaths:
    """Counts the processes that die over a part without getting farther, and stops the run at the third."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._found: dict[int | None, tuple[int, int]] = {}  # by part: deaths since it got farther, and how far

    def count(self, part: int | None, num_samples: int, cause: str):
        """
        Count the death of a process.

        Args:
            part (`int`, *optional*): the part that it made; None before its first.
            num_samples (`int`): samples of the part that it had finished.
            cause (`str`): for the error.

        Raises:
            RunError: if too many have died. It says what to do.
        """
        num_deaths, farthest = self._found.get(part, (0, -1))
        if num_samples > farthest:
            num_deaths, farthest = 0, num_samples
        self._found[part] = num_deaths + 1, farthest
        if num_deaths + 1 < MAX_DEATHS:
            return
        place = "before they began"
        if part is not None:
            indices = self.folder.part_indices(part)
            place = f"over samples {indices[0]} to {indices[-1]}"
        raise RunError(
            f"{MAX_DEATHS} processes died {place} ({cause}). The usual cause is a lack of memory: give fewer"
            " --num-workers, or a smaller --image-size in another --output. The same command continues; finished"
            " parts stay."
        )

    def forget(self, part: int | None):
        self._found.pop(part, None)


@dataclass
class _Worker:
    process: BaseProcess
    samples_by_part: dict[int, int] = field(default_factory=dict)  # parts in progress: their finished samples


def run_here(job: Job, progress: tqdm):
    """Make all parts in this process; see `make_parts`."""
    asyncio.run(make_parts(job, Report(sample=lambda part: progress.update())))


class WorkerPool:
    """
    Runs worker processes until all parts are finished or held by other tasks.

    A worker that dies is replaced, and the parts that it held are made again. Each worker has a pipe of its own: a
    queue that all share would stay locked if a worker was killed while it writes.

    Args:
        job (`Job`)
        num_workers (`int`): processes.
        progress (`tqdm`): a bar of samples.
    """

    def __init__(self, job: Job, num_workers: int, progress: tqdm):
        self.job, self.num_workers, self.progress = job, num_workers, progress
        self.context = multiprocessing.get_context("spawn")
        self.workers: dict[Connection, _Worker] = {}
        self.deaths = Deaths(job.folder)

    def run(self):
        """
        Run until all workers have ended.

        Raises:
            RunError: if processes die over one part again and again.
            Exception: any error of a worker. The others are ended.
        """
        try:
            for _ in range(self.num_workers):
                self._start()
            while self.workers:
                for pipe in multiprocessing.connection.wait(list(self.workers)):
                    self._read(pipe)
        finally:
            for worker in self.workers.values():
                worker.process.kill()
            for worker in self.workers.values():
                worker.process.join()

    def _start(self):
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(self.job, sender), daemon=True)
        process.start()
        sender.close()  # the copy of this process; with it, the death of the worker would not end the pipe
        self.workers[receiver] = _Worker(process)

    def _read(self, pipe: Connection):
        worker = self.workers[pipe]
        try:
            name, value = pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._end(pipe, worker)
            return
        if name == "begin":
            worker.samples_by_part[value] = 0
            self.deaths.forget(None)
        elif name == "sample":
            worker.samples_by_part[value] += 1
            self.progress.update()
        elif name == "end":
            del worker.samples_by_part[value]
        else:
            error, text = value
            raise error from _WorkerTraceback(text)

    def _end(self, pipe: Connection, worker: _Worker):
        pipe.close()
        del self.workers[pipe]
        worker.process.join()
        if worker.process.exitcode == 0:
            return
        for part, num_samples in (worker.samples_by_part or {None: 0}).items():
            self.progress.update(-num_samples)
            self.deaths.count(part, num_samples, _name_exit(worker.process.exitcode))
        self._start()


def _name_exit(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


def _work(job: Job, pipe: Connection):
    """Make parts in a worker process, and tell the parent."""
    # One thread for each worker: the threads of torch and others in many workers would compete for the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Ctrl-C reaches all processes of a terminal, and the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this, a worker whose parent is killed would go on.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

    def tell(name: str):
        return lambda value: pipe.send((name, value))

    try:
        asyncio.run(make_parts(job, Report(tell("begin"), tell("sample"), tell("end"))))
    except BaseException as error:
        pipe.send(("error", (make_picklable(error), traceback.format_exc())))


def make_picklable(error: BaseException) -> BaseException:
    """Return an error, or one with the same text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


def count_missing(job: Job) -> int:
    """Return the samples of all parts that are not finished."""
    return sum(len(job.folder.part_indices(part)) for part in job.folder.missing_parts())


def bar(job: Job) -> tqdm:
    """Return a bar for the samples that are not finished."""
    settings: dict[str, Any] = {"unit": "sample", "dynamic_ncols": True, "mininterval": 1}
    return tqdm(total=count_missing(job), desc=job.folder.path.name, **settings)
