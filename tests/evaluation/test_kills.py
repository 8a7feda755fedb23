"""
Six kills of lmms-eval, at random moments, and the answers that are generated twice.

A batch is written to the log when its answers are complete. So a kill costs at most the answers of the batch that the
model is working on, which the next run generates again. All other answers are generated exactly once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-eval")

from ..helpers import SMALL_MODEL
from .easy_tasks import write_lmms_tasks


NUM_KILLS, BATCH_SIZE, NUM_DOCUMENTS = 6, 4, 100
# lmms-eval with a note of each batch that is passed to the model.
PROGRAM = """
import json, sys
from fusion_vlm.evaluation.answering import Answerer

notes, generate = open(sys.argv.pop(1), "a", buffering=1), Answerer._generate_batch

def noted(self, batch, *args):
    notes.write(json.dumps([job.request.key["doc_id"] for job in batch]) + "\\n")
    return generate(self, batch, *args)

Answerer._generate_batch = noted
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def start(folder: Path, notes: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(notes), "--model", "fusion_vl", "--include_path", str(folder)]
    command += ["--model_args", f"pretrained={SMALL_MODEL},answers={log}", "--tasks", "easy_vqa"]
    command += ["--batch_size", str(BATCH_SIZE), "--output_path", str(log.parent / "results"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_notes(notes: Path) -> list[list[int]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def read_log(log: Path) -> list[int]:
    """Return the documents that the log has whole lines of."""
    if not log.exists():
        return []
    rows = [json.loads(line) for line in log.read_bytes().rpartition(b"\n")[0].splitlines()]
    return [row["doc_id"] for row in rows if "answer" in row]


def test_answers_are_generated_once_but_for_the_batches_that_were_killed(tmp_path):
    folder, notes, log = tmp_path / "tasks", tmp_path / "notes", tmp_path / "answers.jsonl"
    write_lmms_tasks(folder, NUM_DOCUMENTS)
    rng = random.Random()
    allowed = Counter()  # documents in a batch at the moment of a kill
    for _ in range(NUM_KILLS):
        logged, num_before = set(read_log(log)), len(read_notes(notes))
        process = start(folder, notes, log)
        wanted = num_before + rng.randint(0, 3)
        while len(read_notes(notes)) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        generated = {document for batch in read_notes(notes)[num_before:] for document in batch}
        assert not generated & logged
        allowed.update(generated - set(read_log(log)))
        assert len(generated - set(read_log(log))) <= BATCH_SIZE
    process = start(folder, notes, log)
    assert process.wait() == 0
    counts = Counter(document for batch in read_notes(notes) for document in batch)
    assert sorted(counts) == sorted(read_log(log)) == list(range(NUM_DOCUMENTS))
    assert all(count == 1 + allowed[document] for document, count in counts.items())
    (results,) = (tmp_path / "results").rglob("*results.json")
    assert json.loads(results.read_text())["results"]["easy_vqa"]["exact_match,none"] == 1
