"""
Keep the answers of an evaluation in a file, so that a run that was killed resumes with the questions that are left.

The file has one JSON object on each line. Lines are only ever appended:

    {"run": "1f0c...", "settings": {...}}                                 once, before the first answer of a run
    {"run": "1f0c...", "task": ..., "doc_id": ..., ..., "answer": "two"}  for each answer

An answer is found again by everything that it depends on: the run (weights, dtype, grids, versions), the task, the
document, the prompt, the image and the settings of generation. If one of these differs, the question is asked again.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def digest(value: Any) -> str:
    """Return a hash of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


class AnswerLog:
    """
    A file of answers, which one process writes.

    Each of several processes writes a file of its own beside the named one, `answers.rank1.jsonl`, and reads all of
    them. So a run resumes with another number of processes, too.

    Args:
        path (`str` or `Path`):
            The file, such as `answers.jsonl`. It is made if it does not exist, with its folder.
        settings (`dict`):
            What identifies the run, as JSON: answers of a run with other settings are never reused.
        rank (`int`), world_size (`int`):
            The number of this process, and of how many.

    Raises:
        ValueError: if another process writes the file.
    """

    def __init__(self, path: str | Path, settings: dict, *, rank: int = 0, world_size: int = 1):
        named = Path(path).expanduser()
        self.path = named if world_size == 1 else named.with_suffix(f".rank{rank}{named.suffix}")
        self.settings, self.run = settings, digest(settings)
        self.answers: dict[str, str] = {}
        named.parent.mkdir(parents=True, exist_ok=True)
        # The system releases the lock of a process that is killed.
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process writes {self.path}. Wait until that run has ended, or name another file."
            ) from None
        has_header = False
        for file in sorted({named, self.path, *named.parent.glob(f"{named.stem}.rank*{named.suffix}")}):
            if file.is_file():
                has_header |= self._read(file) and file == self.path
        self._file = open(self.path, "ab")  # noqa: SIM115
        self._cut_half_line()
        if not has_header:
            self._write([{"run": self.run, "settings": settings}])

    def _read(self, file: Path) -> bool:
        """Read the answers of this run from a file; return whether the file has the settings of this run."""
        content = file.read_bytes()
        has_header, damaged = False, []
        # What follows the last line end is a line that a killed process had not finished.
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
            try:
                row = json.loads(line)
                if row["run"] != self.run:
                    continue
                has_header |= "settings" in row
                if "answer" in row:
                    answer = row.pop("answer")
                    self.answers.setdefault(digest(row), answer)
            except (ValueError, KeyError, TypeError):
                damaged.append(number)
        if damaged:
            lines = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
            warnings.warn(
                f"{file}: {len(damaged)} lines cannot be read ({lines}); their questions are asked again.",
                stacklevel=3,
            )
        return has_header

    def _cut_half_line(self):
        """Remove a line that a killed process had not finished, or the next line would be lost with it."""
        content = self.path.read_bytes()
        self._file.truncate(content.rfind(b"\n") + 1)

    def _write(self, rows: Sequence[dict]):
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def find(self, key: dict) -> str | None:
        """Return the answer to a question of this run, or None; `key` is JSON that tells the question from others."""
        return self.answers.get(digest({"run": self.run, **key}))

    def add(self, answers: Sequence[tuple[dict, str]]):
        """Write the answers of a batch, each with the key of its question, to the disk."""
        rows = [{"run": self.run, **key} for key, _ in answers]
        self._write([{**row, "answer": answer} for row, (_, answer) in zip(rows, answers, strict=True)])
        self.answers.update({digest(row): answer for row, (_, answer) in zip(rows, answers, strict=True)})

    def close(self):
        """Close the file, which another process may write from then on."""
        self._file.close()
        self._lock.release()
