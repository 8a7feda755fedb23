"""
The folder of a run: where its files are, who may write them, and how a file is written whole or not at all.

    run.json                               all that makes two runs the same; another run is refused
    data/train-00012-of-00063.parquet      accepted samples of a part, with their images (or a .tar)
    rejects/part-00012.jsonl               rejected samples, whole; rejects/images-00012.parquet has their images
    parts/part-00012.json                  counts of a part; it is written last, so a part that has it is finished
    work/part-00012/                       images and calls of a part under way, and on Ray how many of its samples are
                                           finished; removed when the part is finished
    work/input/                            rows that the run begins from, prepared once; removed at the end
    work/part-00012.lock                   held by the process that makes the part
    work/invalid-00012.json                tokens of the answers of a part that were not valid
    done.json                              the last file that is written

A part is the unit of work, of resuming and of output. Processes claim parts, so any number of them share a folder.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fusion_vlm.synthesis.failures import RunError


FORMAT = 2  # of the files above; a run of another format is refused
FOLDERS = ("work", "data", "rejects", "parts")
MIN_PART_SIZE, MAX_PARTS = 64, 8000  # the Hub advises fewer than 10,000 files in a folder


@dataclass(frozen=True)
class RunFolder:
    """
    The files of a run, and the order in which one of several tasks makes its parts.

    Args:
        path (`Path`): folder of the run.
        num_samples (`int`): samples of the whole run.
        task (`int`), num_tasks (`int`): a task begins with the parts `task`, `task + num_tasks` and so on, and then
            takes any others that nobody has finished.

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
    def part_size(self) -> int:
        """Return the samples of a part. It depends on their number alone, so that every machine finds the same."""
        return MIN_PART_SIZE * -(-self.num_samples // (MIN_PART_SIZE * MAX_PARTS))

    @property
    def num_parts(self) -> int:
        return -(-self.num_samples // self.part_size)

    def part_indices(self, part: int) -> range:
        return range(part * self.part_size, min((part + 1) * self.part_size, self.num_samples))

    @property
    def work_dir(self) -> Path:
        return self.path / "work"

    def part_dir(self, part: int) -> Path:
        """Return the folder of what has to survive a kill while a part is made."""
        return self.work_dir / f"part-{part:05d}"

    def counts_path(self, part: int) -> Path:
        return self.path / "parts" / f"part-{part:05d}.json"

    def shard_path(self, part: int, suffix: str) -> Path:
        return self.path / "data" / f"train-{part:05d}-of-{self.num_parts:05d}.{suffix}"

    def rejects_path(self, part: int) -> Path:
        return self.path / "rejects" / f"part-{part:05d}.jsonl"

    def reject_images_path(self, part: int) -> Path:
        return self.path / "rejects" / f"images-{part:05d}.parquet"

    def invalid_tokens_path(self, part: int) -> Path:
        """Return the file of the tokens of answers that were not valid: what faults cost is no part of the result."""
        return self.work_dir / f"invalid-{part:05d}.json"

    def check(self):
        """
        Check that the folder is empty, or holds a run.

        Raises:
            RunError: if the folder holds something else.
        """
        # A run that was killed before it wrote its configuration has created folders of this list and nothing else.
        others = {path.name for path in self.path.iterdir()} - {*FOLDERS} if self.path.is_dir() else set()
        if others and "run.json" not in others:
            raise RunError(f"{self.path} is not empty and holds no run. Give another --output.")

    def read_num(self) -> int | None:
        """Return the number of samples of the run in the folder, or None if there is none."""
        path = self.path / "run.json"
        return json.loads(path.read_text())["num"] if path.is_file() else None

    def prepare(self, config: dict):
        """
        Create the folder, or check that it holds a run of the same configuration.

        Raises:
            RunError: if the folder holds something else, or a run of another format or configuration.
        """
        self.check()
        config = json.loads(json.dumps({"format": FORMAT, **config}))
        if self.read_num():
            check_config(json.loads((self.path / "run.json").read_text()), config, self.path)
        for name in FOLDERS:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with self.locked("run"):
            if not (self.path / "run.json").is_file():
                self.write("run.json", json.dumps(config, indent=2) + "\n")
        check_config(json.loads((self.path / "run.json").read_text()), config, self.path)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path, and move that file to `path` at the end. A kill leaves the whole file or none."""
        temporary = self.work_dir / f"{uuid.uuid4().hex}.tmp"
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, path: str | Path, content: str | bytes):
        """Write a file of the folder, by its relative or whole path. A kill leaves the whole file or none."""
        # A whole path begins with that of the folder, which may be relative itself.
        path = path if Path(path).is_relative_to(self.path) else self.path / path
        with self.replacing(Path(path)) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)

    def lock(self, name: str) -> FileLock:
        return FileLock(self.work_dir / f"{name}.lock")

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock of the run, once no other process holds it."""
        with _explained(self.path):
            lock = self.lock(name).acquire()
        with lock:
            yield

    @contextmanager
    def claimed(self, part: int) -> Iterator[bool]:
        """Hold a part, and yield True; or yield False if the part is finished or another process makes it."""
        lock = self.lock(f"part-{part:05d}")
        try:
            with _explained(self.path):
                lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield not self.is_done(part)
        finally:
            if self.is_done(part):
                shutil.rmtree(self.part_dir(part), ignore_errors=True)
                # A process that waits for this file finds that the part is finished, whichever file it locks.
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def is_done(self, part: int) -> bool:
        return self.counts_path(part).is_file()

    def done_parts(self) -> list[int]:
        """Return the finished parts of the run in order."""
        try:
            names = os.listdir(self.path / "parts")
        except FileNotFoundError:
            return []
        return sorted(int(name[5:10]) for name in names if name.startswith("part-") and name.endswith(".json"))

    def missing_parts(self) -> list[int]:
        """Return the parts that are not finished, in the order in which this task makes them."""
        parts = set(range(self.num_parts)).difference(self.done_parts())
        return sorted(parts, key=lambda part: (part % self.num_tasks != self.task, part))

    def clean(self):
        """Remove what kills have left of a run whose parts are all finished."""
        for path in self.work_dir.iterdir():
            if path.name.startswith("input") and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".tmp":
                path.unlink(missing_ok=True)
            elif path.name.startswith("part-") and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("part-"):
                path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the error of a file system without locks into one that says what to do."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise RunError(
            f"Files cannot be locked in {path}: {error}. Mount the folder with locks (NFS 4, Lustre with `-o flock`),"
            " or give a local --output."
        ) from error


def check_config(found: dict, expected: dict, path: Path):
    """Raise a `RunError` that names what differs, if anything does."""
    if found.get("format") != expected["format"]:
        raise RunError(
            f"{path} holds a run of an earlier version of the data engine (format {found.get('format', 1)}, expected"
            f" {expected['format']}). Its finished output stays readable; to make more, give another --output."
        )
    names = sorted(found.keys() | expected.keys())
    differences = [
        f"{name} was {found.get(name)!r} and is {expected.get(name)!r}"
        for name in names
        if found.get(name) != expected.get(name)
    ]
    if differences:
        found = "; ".join(differences)
        raise RunError(f"{path} holds a run of another configuration: {found}. Give another --output.")
