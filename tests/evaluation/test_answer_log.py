"""The file of answers with which an evaluation resumes."""

import json
import subprocess
import sys

import pytest

from fusion_vlm.evaluation.answer_log import AnswerLog


RUN = {"weights": "abc", "dtype": "float32"}
KEY = {"task": "pope", "split": "test", "doc_id": 3}
OTHER = {**KEY, "doc_id": 4}


def write(path, answers=((KEY, "yes"),), settings=RUN, **options):
    log = AnswerLog(path, settings, **options)
    log.add(list(answers))
    log.close()


def read(path, key=KEY, settings=RUN, **options) -> str | None:
    log = AnswerLog(path, settings, **options)
    log.close()
    return log.find(key)


def test_answers_are_found_again_whatever_the_order_of_keys(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    write(path, [(KEY, "yes"), (OTHER, "two\nlines – and more")])
    assert read(path, dict(reversed(KEY.items())), dict(reversed(RUN.items()))) == "yes"
    assert read(path, OTHER) == "two\nlines – and more"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["settings"] == RUN and [row["answer"] for row in rows[1:]] == ["yes", "two\nlines – and more"]


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        (OTHER, RUN),
        ({**KEY, "prompt": "another"}, RUN),
        (KEY, {**RUN, "weights": "abd"}),
        (KEY, {**RUN, "dtype": "float16"}),
        (KEY, {**RUN, "latent_grid_size": 8}),
    ],
)
def test_answer_to_another_question_or_of_another_model_is_not_reused(key, settings, tmp_path):
    write(tmp_path / "answers.jsonl")
    assert read(tmp_path / "answers.jsonl", key, settings) is None


@pytest.mark.parametrize("num_bytes", [1, 20, 60])
def test_line_that_a_killed_process_had_not_finished_is_removed(num_bytes, tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, [(KEY, "yes"), (OTHER, "no")])
    content = path.read_bytes()
    path.write_bytes(content[:-num_bytes])
    assert read(path) == "yes" and read(path, OTHER) is None
    write(path, [(OTHER, "no")])
    assert path.read_bytes() == content


def test_lines_that_cannot_be_read_are_named_and_the_others_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, [(KEY, "yes")])
    path.write_text(path.read_text() + "{broken\n[]\n")
    with pytest.warns(UserWarning, match=r"answers.jsonl: 2 lines cannot be read \(3, 4\)"):
        assert read(path) == "yes"


def test_each_process_writes_its_own_file_and_reads_all(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path)
    for rank, key in enumerate((OTHER, {**KEY, "doc_id": 5})):
        write(path, [(key, f"of process {rank}")], rank=rank, world_size=2)
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {
        "answers.jsonl",
        "answers.rank0.jsonl",
        "answers.rank1.jsonl",
    }
    # A run that resumes with another number of processes finds the answers of all.
    for options in ({}, {"rank": 1, "world_size": 2}, {"rank": 2, "world_size": 3}):
        assert read(path, **options) == "yes"
        assert read(path, OTHER, **options) == "of process 0"


def test_file_that_another_process_writes_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    code = (
        f"from fusion_vlm.evaluation.answer_log import AnswerLog\nlog = AnswerLog({str(path)!r}, {{}})\n"
        "print('open', flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(ValueError, match="Another process writes .*answers.jsonl. Wait until"):
            AnswerLog(path, RUN)
        other.kill()
    assert read(path) is None  # the lock of a killed process is released
