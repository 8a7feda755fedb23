"""Descriptions, images and questions as runs of their own, each begun from rows on disk."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from fusion_vlm.commands.main import main
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.shards import list_shards, read_rejects, read_shard

from .stub_endpoint import WORDS, StubEndpoint
from .test_sources import write_llava


def synthesize(output: Path, *options) -> Path:
    line = ["synthesize", "--output", output, "--num-workers", 0, "--seed", 5, *options]
    assert main([str(part) for part in line]) in (0, None)
    return output


def read_rows(output: Path) -> list[dict]:
    return [row for path in list_shards(output) for row in read_shard(path)]


def write_captions(path: Path, num: int) -> Path:
    """Write captions, every seventh of which the rules reject, and one of which comes twice."""
    words = WORDS.split()
    captions = [
        "!!! 000 ???" * 3 + str(index)
        if index % 7 == 6
        else f"A {words[index % 18]} beside a {words[(5 * index + 1) % 18]} and {index % 16} {words[index // 18]}s."
        for index in range(num)
    ]
    captions[16:17] = captions[4:5]
    path.write_text("\n".join(captions))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Run all stages at once, and one after another: each with the models that it needs alone."""
    folder = tmp_path_factory.mktemp("stages")
    captions = write_captions(folder / "captions.txt", 30)
    judged = ("--model", "writer", "--judge-model", "judge", "--concurrency", 4)
    with StubEndpoint() as llm, StubEndpoint() as painter:
        drawn = ("--images", painter.url, "--image-model", "painter", "--image-size", 64)
        synthesize(folder / "whole", "--captions", captions, "--llm", llm.url, *judged, *drawn)
        num_calls, num_images = len(llm.answered), len(painter.prompts)
    with StubEndpoint() as llm:
        writer = ("--llm", llm.url, "--model", "writer")
        synthesize(folder / "1", "--stage", "descriptions", "--captions", captions, *writer)
    with StubEndpoint() as painter:
        drawn = ("--images", painter.url, "--image-model", "painter", "--image-size", 64)
        synthesize(folder / "2", "--stage", "images", "--input", folder / "1", *drawn)
        assert len(painter.prompts) == num_images
    with StubEndpoint() as asker:
        synthesize(folder / "3", "--stage", "questions", "--input", folder / "2", "--llm", asker.url, *judged)
        assert len(llm.answered) + len(asker.answered) == num_calls
    return {path.name: path for path in folder.iterdir()}


def test_three_steps_give_the_rows_of_one_command_byte_for_byte(runs):
    expected, found = read_rows(runs["whole"]), read_rows(runs["3"])
    assert len(expected) > 20 and {row["kind"] for row in expected} == set(MODEL_KINDS)
    assert found == expected


def test_each_step_rejects_its_own_and_writes_no_more_than_it_made(runs, tmp_path):
    whole = {sample.id: sample.reason for sample in read_rejects(runs["whole"])}
    steps = [sample for name in "123" for sample in read_rejects(runs[name])]
    assert {sample.id: sample.reason for sample in steps} == whole
    assert {reason.partition(":")[0] for reason in whole.values()} >= {"deduplicate/same_text"}
    first, second = read_rows(runs["1"])[0], read_rows(runs["2"])[0]
    assert first["description"] and not first["images"] and not first["messages"]
    assert second["images"] and not second["messages"]
    assert not (runs["1"] / "train.json").exists() and (runs["3"] / "train.json").exists()
    rows = datasets.load_dataset(str(runs["1"]), split="train", cache_dir=str(tmp_path))
    assert rows[0]["description"] == first["description"]


def test_a_set_is_asked_again_with_another_seed_and_kind(runs, tmp_path):
    with StubEndpoint() as llm:
        options = ("--input", runs["whole"], "--llm", llm.url, "--model", "writer", "--seed", 6)
        synthesize(tmp_path / "again", "--stage", "questions", *options)
        synthesize(tmp_path / "some", "--stage", "questions", *options, "--kinds", "reasoning", "text_qa")
    old, new = read_rows(runs["whole"]), read_rows(tmp_path / "again")
    assert [row["images"] for row in new] == [row["images"] for row in old]
    assert {row["id"] for row in new} == {row["id"] for row in old}
    sample = json.loads(new[0]["sample"])
    assert sample["seed"] == 6 and "judge" not in sample["source"]
    assert {row["kind"] for row in read_rows(tmp_path / "some")} == {"reasoning", "text_qa"}
    reasons = {sample.reason.partition(":")[0] for sample in read_rejects(tmp_path / "some")}
    assert reasons == {"input/kind"}


def test_a_set_is_drawn_again(runs, tmp_path):
    with StubEndpoint() as painter:
        options = ("--images", painter.url, "--image-model", "other", "--image-size", 48)
        synthesize(tmp_path / "again", "--stage", "images", "--input", runs["whole"], *options)
    rows = read_rows(tmp_path / "again")
    assert [row["description"] for row in rows] == [row["description"] for row in read_rows(runs["whole"])]
    assert not rows[0]["messages"] and json.loads(rows[0]["sample"])["scores"].get("judge", "none") == "none"


def test_images_and_questions_begin_from_descriptions_of_others(tmp_path):
    rows = [{"text": f"A {word} stands beside a {word}house in the {word} wood.", "id": f"x{word}"} for word in "abcd"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with StubEndpoint() as llm, StubEndpoint() as painter:
        options = ("--llm", llm.url, "--model", "w", "--images", painter.url, "--image-model", "p", "--image-size", 48)
        options += ("--stage", "images", "questions", "--input", tmp_path / "rows.jsonl")
        synthesize(tmp_path / "run", *options, "--description-column", "text")
        assert sorted(painter.prompts) == sorted(row["text"] for row in rows)
    made = read_rows(tmp_path / "run")
    assert [row["id"] for row in made] == [row["id"] for row in rows]
    # A description of one image makes no sample of two.
    assert not any("contrast" in row["kind"] for row in made)
    assert all(row["messages"] and row["images"] for row in made)


def test_pairs_of_images_and_descriptions_are_asked_about_and_keep_their_images(tmp_path):
    write_llava(tmp_path / "set", 5)
    with StubEndpoint() as llm:
        options = ("--stage", "questions", "--input", tmp_path / "set", "--llm", llm.url, "--model", "w")
        options += ("--caption-bound", "special_characters=:")
        synthesize(tmp_path / "run", *options, "--description-column", "detail")
    for index, row in enumerate(read_rows(tmp_path / "run")):
        (image,) = row["images"]
        assert image == {"path": f"{index}.jpg", "bytes": (tmp_path / "set" / "images" / f"{index}.jpg").read_bytes()}
        assert row["messages"]


def test_a_llava_set_is_filtered_and_what_is_kept_stays_as_it_was(tmp_path):
    folder = write_llava(tmp_path / "set", 5)
    rows = json.loads((folder / "train.json").read_text())
    rows[1]["conversations"][1]["value"] = "The description does not say."
    rows[2]["conversations"] += rows[2]["conversations"]
    (folder / "images" / "3.jpg").write_bytes((folder / "images" / "3.jpg").read_bytes()[:300])
    (folder / "train.json").write_text(json.dumps(rows))
    synthesize(tmp_path / "run", "--stage", "filter", "--input", folder)
    kept = json.loads((tmp_path / "run" / "train.json").read_text())
    assert [(row["id"], row["conversations"]) for row in kept] == [
        (str(row["id"]), row["conversations"]) for row in (rows[0], rows[4])
    ]
    for row in kept:
        name = row["image"]
        assert (tmp_path / "run" / "images" / name).read_bytes() == (folder / "images" / name).read_bytes()
    reasons = {sample.id: sample.reason.partition(":")[0] for sample in read_rejects(tmp_path / "run")}
    assert reasons == {"1": "turn_rules/source_text", "2": "input/row", "3": "input/image"}


def test_relative_paths_are_read_and_written_where_they_say(tmp_path, monkeypatch):
    write_llava(tmp_path / "set", 2)
    monkeypatch.chdir(tmp_path)
    synthesize(Path("out/run"), "--stage", "filter", "--input", "set/train.json")
    assert len(read_rows(tmp_path / "out" / "run")) == 2 and (tmp_path / "out" / "run" / "done.json").exists()
    assert not (tmp_path / "out" / "run" / "out").exists()


def test_the_judge_filters_a_set_that_has_descriptions(tmp_path, runs):
    def change(content: dict, request: dict) -> dict:
        if "verdicts" in content:
            for verdict in content["verdicts"]:
                verdict["correct"] = False
        return content

    with StubEndpoint(change=change) as judge:
        options = ("--judge-llm", judge.url, "--judge-model", "judge", "--num", 3)
        synthesize(tmp_path / "run", "--stage", "filter", "--input", runs["whole"], *options)
    assert not read_rows(tmp_path / "run")
    assert {sample.reason.partition(":")[0] for sample in read_rejects(tmp_path / "run")} == {"judge/wrong_answer"}


def test_webdataset_shards_are_an_input_too(tmp_path, runs):
    painted = []
    for name, options in (("tar", ("--format", "webdataset")), ("parquet", ())):
        with StubEndpoint() as painter:
            options += ("--images", painter.url, "--image-model", "p", "--image-size", 48, "--num", 6)
            painted.append(synthesize(tmp_path / name, "--stage", "images", "--input", runs["1"], *options))
    rows = []
    for path in painted:
        with StubEndpoint() as llm:
            options = ("--stage", "questions", "--input", path, "--llm", llm.url, "--model", "w")
            rows.append(read_rows(synthesize(path.with_name(f"{path.name} asked"), *options)))
    assert rows[0] == rows[1] and len(rows[0]) == 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stages": ("questions", "images")}, "The stages are questions images, expected some of"),
        ({"stages": ("descriptions", "questions")}, "expected some of descriptions, images, questions that follow"),
        ({"stages": ("filter", "questions")}, "or filter alone"),
        ({"stages": ("images",), "images": "flux"}, "The stage images begins from rows of a data set. Give --input"),
        ({"stages": ("images",), "captions": "a.txt", "images": "flux"}, "--captions is for runs that begin with"),
        ({"captions": "a.txt", "input": "b.txt"}, "--captions is for runs that begin with descriptions, without"),
        (
            {"stages": ("images",), "input": "a", "images": "flux", "model": "w"},
            "--llm and --model are for the stages",
        ),
        ({"stages": ("images",), "input": "a", "images": "flux", "image_folder": "d"}, "are for runs that begin with"),
        ({"stages": ("questions",), "input": "a", "model": "w", "conversation_column": "c"}, "for the stage filter"),
        ({"captions": "a", "model": "w", "images": "flux", "description_column": "d"}, "runs that begin from descr"),
        ({"stages": ("questions",), "input": "a"}, "Without a language model there are exact scenes"),
        ({"stages": ("questions",), "input": "a", "model": "w", "images": "flux"}, "--images is for the stage images"),
        (
            {"stages": ("images",), "input": "a", "images": "flux", "judge_model": "j"},
            "--judge-model and --judge-sees-image are for the stages",
        ),
        (
            {"stages": ("descriptions",), "captions": "a", "model": "w", "clip_model": "c"},
            "--clip-model scores images",
        ),
        (
            {"stages": ("images",), "input": "a", "images": "flux", "llava": True},
            "--llava is for samples with questions",
        ),
    ],
)
def test_stages_that_lack_something_or_have_no_use_for_it_are_refused(options, message):
    with pytest.raises(RunError, match=message):
        Options(num=1, **options)


def test_wrong_stages_on_the_command_line_are_errors_in_words(tmp_path, capsys):
    assert main(["synthesize", "--output", str(tmp_path / "run"), "--stage", "draw", "--num", "1"]) == 2
    assert "--stage is draw, expected descriptions, images, questions or filter" in capsys.readouterr().err
    assert main(["synthesize", "--output", str(tmp_path / "run")]) == 2
    assert "--num is needed" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    write_llava(tmp_path / "set")
    line = ["synthesize", "--output", str(tmp_path / "full"), "--stage", "filter", "--input", str(tmp_path / "set")]
    assert main(line) == 1
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_an_unfinished_run_is_no_input(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    line = ["synthesize", "--output", str(tmp_path / "next"), "--stage", "filter", "--input", str(tmp_path / "run")]
    assert main(line) == 1
    assert "holds a run that is not finished" in capsys.readouterr().err


def test_pillow_refuses_rows_without_scenes_and_draws_those_with(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("A red ball lies on a table beside a cup.\n")
    line = ["synthesize", "--output", str(tmp_path / "run"), "--stage", "images", "--input", str(tmp_path / "a.txt")]
    assert main(line) == 1
    assert "Pillow draws the built-in scenes, and" in capsys.readouterr().err
    with StubEndpoint() as llm:
        writer = ("--llm", llm.url, "--model", "w")
        synthesize(tmp_path / "scenes", "--stage", "descriptions", "--num", 3, *writer)
    synthesize(tmp_path / "drawn", "--stage", "images", "--input", tmp_path / "scenes", "--image-size", 128)
    assert len(read_rows(tmp_path / "drawn")) == 3


PREPARE = """
import sys
from pathlib import Path
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.sources import prepared
from fusion_vlm.synthesis.sources.source import prepare_rows

def write_rows(*arguments):
    with open("log", "a") as file:
        file.write("prepared\\n")
    return original(*arguments)

original, prepared._write_rows = prepared._write_rows, write_rows
assert prepare_rows(Options(num=200, captions="captions.jsonl", model="w", images="flux"), Path("run"), 200) == 200
"""


def test_tasks_that_start_at_once_prepare_once(tmp_path):
    (tmp_path / "captions.jsonl").write_text("".join(f'{{"caption": "{index} cups"}}\n' for index in range(200)))
    processes = [subprocess.Popen([sys.executable, "-c", PREPARE], cwd=tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "prepared\n"


def test_an_input_that_changes_between_two_tasks_is_refused(tmp_path, capsys):
    captions = write_captions(tmp_path / "captions.txt", 3)
    with StubEndpoint() as llm:
        options = ("--stage", "descriptions", "--captions", captions, "--llm", llm.url, "--model", "w")
        synthesize(tmp_path / "run", *options)
        captions.write_text(captions.read_text().replace("beside", "behind"))
        line = ["synthesize", "--output", tmp_path / "run", "--seed", 5, *options]
        assert main([str(part) for part in line]) == 1
        assert "captions was 'sha256:" in capsys.readouterr().err
        # The same content under another name and path is the same run.
        moved = write_captions(tmp_path / "moved.txt", 3)
        moved.rename(tmp_path / "other")
        line[line.index(captions)] = write_captions(tmp_path / "moved.txt", 3)
        assert main([str(part) for part in line]) == 0


def test_broken_images_of_a_parquet_set_are_rejected(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    contents = [(tmp_path / "a.png").read_bytes(), b"no image", None]
    rows = {
        "image": [content and {"bytes": content, "path": None} for content in contents],
        "messages": [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Black."}]] * 3,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    synthesize(tmp_path / "run", "--stage", "filter", "--input", tmp_path / "rows.parquet")
    (row,) = read_rows(tmp_path / "run")
    assert row["id"] == "given-0000000" and row["images"][0]["bytes"] == contents[0]
    assert [sample.reason.partition(":")[0] for sample in read_rejects(tmp_path / "run")] == ["input/image"] * 2
