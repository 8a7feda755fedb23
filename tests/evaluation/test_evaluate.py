"""The command `fusion-vlm evaluate` with the small model: results, resuming, errors that fail it, the card."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import easy_vqa
import pytest
import yaml


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-eval")

from datasets import Dataset, Image
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import fusion_vlm
from fusion_vlm.commands.main import main
from fusion_vlm.evaluation import harness, session
from fusion_vlm.evaluation.columns import read_columns

from ..docs.pages import RUN_EVAL, read_blocks
from ..helpers import GOLDEN_DIR, LLAMA, ROOT, SMALL_MODEL
from .local_tasks import BENCHMARKS, local_data, write_documents


FLOAT32 = ("--dtype", "float32", "--device", "cpu")
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function images.read
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def write_data(path: Path, num_questions: int):
    """Write the first questions of easy-VQA's test set."""
    paths, (questions, answers, images) = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
    rows = [
        {"image": {"path": None, "bytes": Path(paths[image]).read_bytes()}, "question": question, "answer": answer}
        for question, answer, image in list(zip(questions, answers, images, strict=True))[:num_questions]
    ]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(path)


def write_task(folder: Path, name: str, num_questions: int) -> Path:
    """Write a task, and return its folder."""
    folder.mkdir(exist_ok=True)
    write_data(folder / f"{name}.parquet", num_questions)
    (folder / "images.py").write_text('def read(doc):\n    return [doc["image"].convert("RGB")]\n')
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / f"{name}.parquet"))
    return folder


OURS = [name for name, column in read_columns().items() if column.task.startswith("fusion_") and not column.judge]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Write all tasks into one folder, because indexing lmms-eval's own takes seconds for each folder."""
    folder, columns = tmp_path_factory.mktemp("tasks") / "tasks", read_columns()
    for name, num_questions in {"easy": 24, "changing": 3, "long": 40, "b_broken": 1}.items():
        write_task(folder, name, num_questions)
    (folder / "a_broken.yaml").write_text(TASK.format(name="a_broken", file=folder / "nothing.parquet"))
    broken = folder / "b_broken.yaml"
    broken.write_text(broken.read_text().replace("images.read", "images.fail"))
    with open(folder / "images.py", "a") as file:
        file.write('def fail(doc):\n    raise RuntimeError("no such picture")\n')
    for name in OURS:
        column = columns[name]
        fields = local_data(name, column.split, folder / f"{column.task}.parquet")
        included = Path(fusion_vlm.__file__).parent / "evaluation" / "tasks" / f"{column.task}.yaml"
        fields |= {"include": str(included), "task": f"local_{column.task}"}
        (folder / f"{column.task}.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_index():
    """Index the tasks of lmms-eval once for all commands with the same folder."""
    find = functools.cache(harness.find_tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "find_tasks", lambda path=None: find(path))
        yield


@pytest.fixture(scope="module")
def finished(tasks, tmp_path_factory) -> Path:
    """Return the folder of a run that is complete."""
    output = tmp_path_factory.mktemp("run") / "output"
    assert run(tasks, output) == 0
    return output


def run(tasks: Path, output: Path, *more: str, names: tuple[str, ...] = ("easy",), model: Path = SMALL_MODEL) -> int:
    """Run the command on tasks of one's own."""
    options = ["--include-path", str(tasks), "--tasks", *names, "--output", str(output), *FLOAT32]
    return main(["evaluate", str(model), *options, *more])


def test_small_model_answers_rightly_and_the_run_is_recorded(finished):
    record = json.loads((finished / "results" / "easy.json").read_text())
    assert record["values"]["exact_match,none"] == 1.0
    assert (record["num_questions"], record["num_all"]) == (24, 24)
    assert record["identity"]["dtype"] == "float32"
    samples = [json.loads(line) for line in (finished / "samples" / "easy.jsonl").read_text().splitlines()]
    assert [sample["filtered_resps"] for sample in samples] == [[sample["target"]] for sample in samples]
    report = json.loads((finished / "report.json").read_text())
    assert [(row["name"], row["value"]) for row in report["rows"]] == [("easy exact_match", 1.0)]


def test_finished_task_is_not_measured_again(tasks, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*.json*")}
    num_answers = (finished / "answers.jsonl").read_text().count("\n")
    assert run(tasks, finished) == 0
    output = capsys.readouterr()
    assert "easy: finished on" in output.err
    assert "easy exact_match  1.000  24         easy" in output.out
    assert before and {path: path.stat().st_mtime_ns for path in before} == before
    assert (finished / "answers.jsonl").read_text().count("\n") == num_answers


@pytest.mark.parametrize(
    "change, message",
    [
        (("--limit", "4"), "is a result with limit None, and this run has 4"),
        (("--latent-grid-size", "2"), "is a result with latent_grid_size 4, and this run has 2"),
        (("--draw-latents", "0"), "is a result with draw_latents None, and this run has 0"),
    ],
)
def test_result_of_other_settings_is_refused_and_kept(tasks, finished, capsys, change, message):
    before = (finished / "results" / "easy.json").read_bytes()
    assert run(tasks, finished, *change) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Name another --output" in error
    assert (finished / "results" / "easy.json").read_bytes() == before


def test_result_of_other_data_is_refused(tasks, tmp_path, capsys):
    assert run(tasks, tmp_path / "output", names=("changing",)) == 0
    write_data(tasks / "changing.parquet", 5)
    assert run(tasks, tmp_path / "output", names=("changing",)) == 1
    assert "is a result with another version of the task or its data" in capsys.readouterr().err


def test_limit_prints_an_interval(tasks, tmp_path, capsys):
    assert run(tasks, tmp_path / "output", "--limit", "6") == 0
    output = capsys.readouterr().out
    # Six of six right, of which the standard error would be 0.
    assert "1.000 (0.610 to 1.000, wilson)  6 of 24" in output
    assert "the first 6 of 24 questions; not drawn at random" in output


def test_task_without_a_result_fails_the_command_and_the_others_are_measured(tasks, tmp_path, capsys):
    assert run(tasks, tmp_path / "output", names=("a_broken", "b_broken", "easy")) == 1
    output = capsys.readouterr()
    assert "easy exact_match  1.000" in output.out
    assert "a_broken: no result: its data cannot be loaded: FileNotFoundError" in output.out
    assert "b_broken: no result: " in output.out
    assert "no such picture" in output.out
    last = output.err.splitlines()[-1]
    assert last == "error: no result for 2 of 3: a_broken, b_broken; the reasons are above"
    assert [path.name for path in (tmp_path / "output" / "results").iterdir()] == ["easy.json"]


def test_interrupted_run_resumes_without_a_second_answer(tmp_path, capsys):
    folder, output = write_task(tmp_path / "tasks", "easy", 40), tmp_path / "output"
    options = [
        "--include-path",
        str(folder),
        "--tasks",
        "easy",
        "--output",
        str(output),
        *FLOAT32,
        "--batch-size",
        "2",
    ]
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "evaluate", str(SMALL_MODEL), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    log = output / "answers.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") > 4:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert f"Interrupted. The same command resumes: {output} has what is finished." in error
    assert not (output / "results").exists()
    num_before = log.read_bytes().count(b"\n")
    assert main(["evaluate", str(SMALL_MODEL), *options]) == 0
    keys = [json.loads(line)["doc_id"] for line in log.read_text().splitlines() if '"answer"' in line]
    assert num_before < 41
    assert sorted(keys) == list(range(40))


# Names and weights --------------------------------------------------------------------------------------------------


def fails(capsys, *arguments: str, code: int = 1) -> str:
    """Run the command, check that it ends with an error in one line, and return the line."""
    assert main(["evaluate", *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def damage(kind: str, folder: Path) -> Path:
    """Write a copy of the small model that is not the small model any more."""
    shutil.copytree(SMALL_MODEL, folder, ignore=shutil.ignore_patterns("widget"))
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif kind == "missing":
        tensors = load_file(weights)
        del tensors["model.interaction_layers.1.q_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "config":
        content = json.loads(config.read_text())
        content["text_config"]["hidden_size"] *= 2
        config.write_text(json.dumps(content))
    elif kind == "other":
        config.write_text(json.dumps({"model_type": "llava"}))
    elif kind == "none":
        weights.unlink()
    return folder


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", "The weights of .* cannot be read: SafetensorError"),
        ("missing", "does not hold the weights of its config: 1 tensors are missing, such as model.interaction"),
        ("config", "does not hold the weights of its config: .* tensors have another shape"),
        ("other", "is no FUSION model: the model type of its config.json is 'llava'"),
        ("none", "The weights of .* cannot be read: OSError"),
    ],
)
def test_wrong_weights_are_refused(kind, message, tmp_path, capsys):
    folder = damage(kind, tmp_path / "model")
    line = fails(capsys, str(folder), "--benchmarks", "POPE", "--output", str(tmp_path / "output"))
    assert re.search(message, line), line
    assert not (tmp_path / "output").exists()


def test_released_checkpoint_is_to_be_converted(tmp_path, capsys):
    checkpoint = GOLDEN_DIR / LLAMA / "checkpoint"
    line = fails(capsys, str(checkpoint), "--benchmarks", "POPE", "--output", str(tmp_path / "output"))
    assert "has to be converted first: fusion-vlm convert" in line


def test_missing_task_is_named_before_the_model_is_loaded(tmp_path, capsys):
    line = fails(capsys, str(SMALL_MODEL), "--tasks", "popes", "--output", str(tmp_path / "output"))
    assert "has no task 'popes'. Did you mean pope?" in line


def test_missing_folder_of_tasks(tmp_path, capsys):
    options = ("--tasks", "easy", "--output", str(tmp_path / "output"))
    line = fails(capsys, str(SMALL_MODEL), "--include-path", str(tmp_path / "none"), *options)
    assert f"There is no folder {tmp_path / 'none'} with tasks" in line


def test_task_with_the_name_of_another_is_refused(tmp_path, capsys):
    """lmms-eval would run its own task of the name without a word."""
    folder = write_task(tmp_path / "tasks", "pope", 2)
    options = ("--tasks", "pope", "--output", str(tmp_path / "output"))
    line = fails(capsys, str(SMALL_MODEL), "--include-path", str(folder), *options)
    assert "has the task 'pope', a name that lmms-eval or fusion-vlm has already. Rename it." in line


def test_data_that_cannot_be_had_without_a_network(tmp_path, capsys):
    arguments = ["evaluate", str(SMALL_MODEL), "--benchmarks", "POPE", "MME_P", "--output", str(tmp_path / "output")]
    assert main([*arguments, *FLOAT32]) == 1
    output = capsys.readouterr()
    for data in ("lmms-lab-encoder/POPE", "lmms-lab-encoder/MME"):
        assert output.out.count(f"hf download {data} --repo-type dataset") == 1
    assert output.err.splitlines()[-1].startswith("error: no result for 2 of 2: POPE, MME_P")


def test_column_is_measured_without_a_network_on_downloaded_data(tmp_path, capsys, monkeypatch):
    """A column of the table from end to end, its data where `hf download` puts them."""
    cache, name = tmp_path / "hub" / "datasets--lmms-lab-encoder--RealWorldQA", "a" * 40
    (cache / "snapshots" / name / "data").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(name)
    write_documents("RWQA", cache / "snapshots" / name / "data" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    output = tmp_path / "output"
    assert main(["evaluate", str(SMALL_MODEL), "--benchmarks", "RWQA", "--output", str(output), *FLOAT32]) == 0
    (row,) = json.loads((output / "report.json").read_text())["rows"]
    assert (row["name"], row["num_questions"], row["data"]) == ("RWQA", 2, "lmms-lab-encoder/RealWorldQA")
    assert f"RWQA    {row['value']:.1f}" in capsys.readouterr().out


def test_judged_columns_need_a_judge(tmp_path, capsys):
    options = ("--output", str(tmp_path / "output"))
    line = fails(capsys, str(SMALL_MODEL), "--benchmarks", "MM-Vet", "LLaVA_W", *options, code=2)
    assert "MM-Vet, LLaVA_W: a language model grades the answers. Name one with --judge" in line
    line = fails(capsys, str(SMALL_MODEL), "--judge", "http://127.0.0.1:1/v1", *options, code=2)
    assert "belong together" in line
    judge = ("--judge", "http://127.0.0.1:1/v1", "--judge-model", "m")
    line = fails(capsys, str(SMALL_MODEL), "--benchmarks", "MM-Vet", *judge, *options)
    assert "The judge m at http://127.0.0.1:1/v1 does not answer" in line


# The tasks of this package, with the small model --------------------------------------------------------------------


def test_tasks_of_this_package_run_with_the_small_model(tasks, tmp_path, capsys):
    """On made-up documents in the formats of the benchmarks: each gives a value, the one with two images too."""
    columns = read_columns()
    names = tuple(f"local_{columns[name].task}" for name in OURS)
    assert run(tasks, tmp_path / "output", names=names) == 0
    for name in OURS:
        record = json.loads((tmp_path / "output" / "results" / f"local_{columns[name].task}.json").read_text())
        assert 0 <= record["values"][columns[name].key] <= 1, name
        assert record["num_questions"] == len(BENCHMARKS[name]["right"])
    assert f"local_fusion_mmmu_val {columns['MMMU'].metric}" in capsys.readouterr().out


def test_page_shows_a_task_of_ones_own_that_runs(tmp_path):
    """The blocks of docs/evaluation.md, and the table that the page shows below them."""
    page = ROOT / "docs" / "evaluation.md"
    blocks = read_blocks(page)
    python, shell = [block for block in blocks if block.mark == RUN_EVAL]
    shown = blocks[blocks.index(shell) + 1].text
    (tmp_path / "small_model").symlink_to(ROOT / "small_model")
    subprocess.run([sys.executable, "-c", python.text], cwd=tmp_path, check=True)
    program, *arguments = shlex.split(shell.text)
    assert program == "fusion-vlm"
    command = [sys.executable, "-m", "fusion_vlm.commands.main", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.rstrip() == shown.rstrip(), done.stderr
