"""The finished calls of language models on disk, so that a run that was killed does not repeat them."""

import sqlite3
from pathlib import Path


class CallCache:
    """
    The finished calls of a task in an sqlite file, for one process at a time.

    Each call is committed as it finishes, so a process that is killed loses only the calls in flight.

    Args:
        path (`Path`): the file; created if there is none.
    """

    def __init__(self, path: Path):
        self.connection = sqlite3.connect(path, isolation_level=None)  # every statement is its own transaction
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS calls"
            " (key TEXT PRIMARY KEY, model TEXT, answer TEXT, prompt_tokens INTEGER, completion_tokens INTEGER)"
        )

    def get(self, key: str) -> str | None:
        """Return the answer of a finished call as JSON, or None."""
        row = self.connection.execute("SELECT answer FROM calls WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def put(self, key: str, model: str, answer: str | None, prompt_tokens: int, completion_tokens: int):
        """Store an answer; `None` and a unique key for an answer that was paid for but not valid."""
        values = (key, model, answer, prompt_tokens, completion_tokens)
        self.connection.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?)", values)

    def close(self):
        self.connection.close()


def count_tokens(path: Path, is_valid: bool = True) -> dict[str, dict[str, int]]:
    """
    Count the calls in a cache.

    Args:
        path (`Path`): file of the cache.
        is_valid (`bool`): whether to count valid answers, or those that were not.

    Returns:
        `dict[str, dict[str, int]]`: for each model, `calls`, `prompt_tokens` and `completion_tokens`.
    """
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens) FROM calls"
        " WHERE (answer IS NOT NULL) = ? GROUP BY model ORDER BY model",
        (is_valid,),
    ).fetchall()
    connection.close()
    names = ("calls", "prompt_tokens", "completion_tokens")
    return {model: dict(zip(names, counts, strict=True)) for model, *counts in rows}
