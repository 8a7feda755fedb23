"""The questions of an audit on disk: memory stays flat, however many rows a set has."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from fusion_vlm.audit.questions import (
    MAX_SENTENCE_WORDS,
    MIN_SHORT_ANSWERS,
    NUM_SHORT_WORDS,
    Question,
    shorten_answer,
)


BATCH_SIZE = 1000  # questions that are written at once


class QuestionStore:
    """
    A private temporary database, which is gone when the store is closed: about 1 KB for a question.

    The database counts the answers. After `shorten_answers`, answers have the form that is counted.

    Args:
        last_turn (`int`): later turns are counted as this turn. Turns are from 1 here.
    """

    def __init__(self, last_turn: int):
        self.last_turn = last_turn
        # The empty name is a database on disk that SQLite deletes; it keeps 2 MB of pages in memory.
        self.database = sqlite3.connect("", isolation_level=None)
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("CREATE TABLE question (id INTEGER PRIMARY KEY, content TEXT)")
        self.database.execute("CREATE TABLE answer (id INTEGER PRIMARY KEY, type TEXT, turn INTEGER, answer TEXT)")
        self.num = 0

    def __len__(self) -> int:
        return self.num

    def close(self):
        self.database.close()

    def add_all(self, questions: Iterable[Question]):
        """Add questions, a thousand at a time."""
        questions = iter(questions)
        while batch := list(islice(questions, BATCH_SIZE)):
            ids = range(self.num, self.num + len(batch))
            contents = [(id, json.dumps(vars(question))) for id, question in zip(ids, batch, strict=True)]
            self.database.executemany("INSERT INTO question VALUES (?, ?)", contents)
            answers = [
                (id, question.type, min(question.turn + 1, self.last_turn), question.answer)
                for id, question in zip(ids, batch, strict=True)
            ]
            self.database.executemany("INSERT INTO answer VALUES (?, ?, ?, ?)", answers)
            self.num += len(batch)

    def shorten_answers(self):
        """Replace answers in sentences by the short answers that they hold, and count. Call it after `add_all`."""
        spaces = "length(answer) - length(replace(answer, ' ', ''))"
        query = f"SELECT type, answer FROM answer WHERE {spaces} < ? GROUP BY type, answer HAVING count(*) >= ?"
        known = set(self.database.execute(query, (NUM_SHORT_WORDS, MIN_SHORT_ANSWERS)))
        query = f"SELECT id FROM answer WHERE {spaces} BETWEEN ? AND ?"
        ids = self._read_ids(query, (NUM_SHORT_WORDS, MAX_SENTENCE_WORDS - 1))
        for id, question in zip(ids.tolist(), self.read(ids), strict=True):
            answer = question.answer
            shorten_answer(question, known)
            if question.answer != answer:
                self.database.execute("UPDATE answer SET answer = ? WHERE id = ?", (question.answer, id))
                content = json.dumps(vars(question))
                self.database.execute("UPDATE question SET content = ? WHERE id = ?", (content, id))
        self.database.execute(
            "CREATE TABLE count AS SELECT type, turn, answer, count(*) AS num FROM answer GROUP BY type, turn, answer"
        )
        self.database.execute("CREATE INDEX answer_group ON answer (type, turn)")

    def read(self, ids: Iterable[int]) -> Iterator[Question]:
        """Yield the questions of these ids."""
        for id in ids:
            (content,) = self.database.execute("SELECT content FROM question WHERE id = ?", (int(id),)).fetchone()
            yield Question(**json.loads(content))

    def read_all(self) -> Iterator[Question]:
        """Yield all questions in order."""
        for (content,) in self.database.execute("SELECT content FROM question ORDER BY id"):
            yield Question(**json.loads(content))

    def list_groups(self) -> list[tuple[str, int, int]]:
        """Return type, turn and number of questions of each group, in order of type and turn."""
        return self.database.execute("SELECT type, turn, sum(num) FROM count GROUP BY type, turn").fetchall()

    def list_ids(self, type: str, turn: int | None = None) -> np.ndarray:
        """Return the ids of the questions of a type, or of a type in a turn, in order: int64."""
        where, values = self._select(type, turn)
        return self._read_ids(f"SELECT id FROM answer {where} ORDER BY id", values)

    def _read_ids(self, query: str, values: tuple) -> np.ndarray:
        return np.fromiter((id for (id,) in self.database.execute(query, values)), np.int64)

    def count_answers(
        self, type: str | None = None, turn: int | None = None, num_listed: int = 10
    ) -> tuple[list[tuple[str, int]], dict[int, int]]:
        """
        Count the answers of a type, of a type in a turn, or of all questions.

        Returns:
            the most frequent answers with their numbers, equal numbers in order of the alphabet; and how many
            different answers there are of each number of occurrences.
        """
        where, values = self._select(type, turn)
        counts = f"SELECT answer, sum(num) AS num FROM count {where} GROUP BY answer"
        listed = self.database.execute(f"{counts} ORDER BY num DESC, answer LIMIT {num_listed}", values).fetchall()
        return listed, dict(self.database.execute(f"SELECT num, count(*) FROM ({counts}) GROUP BY num", values))

    @staticmethod
    def _select(type: str | None, turn: int | None) -> tuple[str, tuple]:
        if type is None:
            return "", ()
        return ("WHERE type = ?", (type,)) if turn is None else ("WHERE type = ? AND turn = ?", (type, turn))
