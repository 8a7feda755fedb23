"""The finished calls of language models on disk, so that a run that was killed does not repeat them."""

import json
import os
import threading
from pathlib import Path

from fusion_vlm.synthesis.counts import add_tokens


class CallCache:
    """
    The finished calls of a part, a JSON object on each line of a file that only grows.

    A call is written as it finishes, so a process that is killed loses only the calls in flight. One process at a time
    uses the file (the one that holds the part), with any number of threads. Appending works on shared folders, where
    the log of sqlite does not.

    Args:
        path (`Path`): the file; created with its folder if there is none.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        self._errors: dict[str, list[str]] = {}
        self.tokens: dict[str, dict[str, int]] = {}
        self.invalid_tokens: dict[str, dict[str, int]] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            try:
                self._add(json.loads(line))
            except ValueError:  # a line that a kill has cut
                continue
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if content and not content.endswith(b"\n"):
            os.write(self._file, b"\n")

    def get(self, key: str) -> str | None:
        """Return the valid answer of a finished call as JSON, or None."""
        return self._answers.get(key)

    def get_error(self, key: str) -> list[str] | None:
        """Return rule and message of a try whose answer was not valid, or None."""
        return self._errors.get(key)

    def put(self, key: str, model: str, answer: str, num_tokens: tuple[int, int]):
        """Store a valid answer as JSON, with the tokens of prompt and answer."""
        self._write({"key": key, "model": model, "answer": answer, "tokens": num_tokens})

    def put_error(self, key: str, error: list[str]):
        """Store rule and message of an answer that was not valid. After `close`, nothing is stored."""
        self._write({"key": key, "error": error})

    def add_invalid_tokens(self, model: str, num_tokens: tuple[int, int]):
        """Count the tokens of an answer that was paid for but is not valid."""
        self._write({"model": model, "tokens": num_tokens})

    def add_totals(self, tokens: dict[str, dict[str, int]], invalid_tokens: dict[str, dict[str, int]]):
        """Count the tokens by model of an earlier cache."""
        self._write({"totals": [tokens, invalid_tokens]})

    def _write(self, entry: dict):
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            if self._file is not None:
                os.write(self._file, line)
                self._add(entry)

    def _add(self, entry: dict):
        if "error" in entry:
            self._errors[entry["key"]] = entry["error"]
            return
        if "totals" in entry:
            add_tokens(self.tokens, entry["totals"][0])
            add_tokens(self.invalid_tokens, entry["totals"][1])
            return
        prompt, completion = entry["tokens"]
        counts = {"calls": 1, "prompt_tokens": prompt, "completion_tokens": completion}
        is_valid = "answer" in entry
        if is_valid:
            self._answers[entry["key"]] = entry["answer"]
        add_tokens(self.tokens if is_valid else self.invalid_tokens, {entry["model"]: counts})

    def close(self):
        """Close the file. Later calls find what is in memory."""
        with self._lock:
            os.close(self._file)
            self._file = None
