"""The data mixture: what rows a recipe takes from files of each kind, where errors are placed, and the check of it."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml

from fusion_vlm.commands.main import main
from fusion_vlm.rows.forms import RowError, conversation_text
from fusion_vlm.training.check import check_rows
from fusion_vlm.training.data import load_mixture, sample
from fusion_vlm.training.prepare import prepare_dataset

from ..helpers import process
from ..tiny import random_image


KINDS = ["rows.json", "rows.jsonl", "rows.parquet", "rows", "hub"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the folder of a recipe, with `images/0.png` to `images/3.png`."""
    (tmp_path / "images").mkdir()
    for index in range(4):
        random_image(index).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def make_row(index: int, image: str | None = None, question: str = "Wie hei\u00dft das?") -> dict:
    turns = [("human", ("<image>\n" if image else "") + question), ("gpt", f"Answer {index}.")]
    return {
        "id": f"r{index}",
        "image": image,
        "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
    }


def make_rows(count: int) -> list[dict]:
    """Return rows, the first four with an image."""
    return [make_row(index, f"{index}.png" if index < 4 else None) for index in range(count)]


def write_rows(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[" + ",\n ".join(lines) + "]\n"
    path.write_text(text, encoding="utf-8")
    return path


def write_kind(folder: Path, kind: str, rows: list[dict]) -> dict:
    """Write rows as a file of a kind, with the images if it can hold them; return the source for a recipe."""
    if kind in ("rows.json", "rows.jsonl"):
        write_rows(folder / kind, rows)
        return {"json_path": kind, "image_folder": "images"}
    rows = [{**row, "image": row["image"] and str(folder / "images" / row["image"])} for row in rows]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    if kind == "rows":
        table.save_to_disk(folder / kind)
    if kind == "rows.parquet":
        table.to_parquet(folder / kind)
    if kind == "hub":
        (folder / "repository").mkdir()
        table.to_parquet(folder / "repository" / "validation.parquet")
        return {"hub": str(folder / "repository"), "split": "validation"}
    return {"json_path": kind}


def load(folder: Path, *sources: dict, seed: int = 0, **values):
    return load_mixture({"datasets": list(sources), **values}, folder, seed)


def answers(dataset) -> list[str]:
    return [dataset[index]["messages"][-1]["content"][0]["text"] for index in range(len(dataset))]


# Sampling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:10", range(10)),
        ("first:25%", range(3)),
        ("end:0.5%", range(9, 10)),
        ("end:100%", range(10)),
    ],
)
def test_sampling_strategies(strategy, expected):
    assert sample(strategy, 10, [0, 0]).tolist() == list(expected)


@pytest.mark.parametrize("amount", ["30", "30%"])
def test_random_rows_depend_on_seed_and_position_and_keep_their_order(amount):
    first = sample(f"random:{amount}", 100, [1, 0]).tolist()
    assert len(set(first)) == 30 and first == sorted(first)
    assert first == sample(f"random:{amount}", 100, [1, 0]).tolist()
    assert first != sample(f"random:{amount}", 100, [2, 0]).tolist()
    assert first != sample(f"random:{amount}", 100, [1, 1]).tolist()


def test_random_rows_are_the_same_for_good():
    """A run can be repeated on any machine and with any version of NumPy."""
    assert sample("random:4", 1000, [42, 3]).tolist() == [13, 176, 497, 597]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("first:11", "takes 11 rows, expected 1 to 10"),
        ("random:101%", "takes 11 rows, expected 1 to 10"),
        ("end:0", "takes 0 rows, expected 1 to 10"),
        ("first", "first', expected all, first:N"),
        ("some:3", "some:3', expected all, first:N"),
        ("first:-1", "first:-1', expected all, first:N"),
        ("first:1.5", "first:1.5', expected all, first:N"),
        (None, "None, expected all, first:N"),
    ],
)
def test_sampling_strategies_that_cannot_be(folder, strategy, message):
    write_rows(folder / "rows.jsonl", make_rows(10))
    with pytest.raises(ValueError, match=f"Source 1 of `datasets`, rows.jsonl: .*{message}"):
        load(folder, {"json_path": "rows.jsonl", "sampling_strategy": strategy})


def test_mixture_order(folder):
    """Source after source, each in the order of its file; a source may come twice."""
    write_rows(folder / "a.json", make_rows(20))
    write_rows(folder / "b.jsonl", [make_row(index) for index in range(100, 120)])
    sources = [
        {"json_path": "a.json", "sampling_strategy": "random:4", "image_folder": "images"},
        {"json_path": "b.jsonl", "sampling_strategy": "end:2"},
        {"json_path": "a.json", "sampling_strategy": "random:4", "image_folder": "images"},
    ]
    mixture = answers(load(folder, *sources, seed=5))
    assert len(mixture) == 10
    assert mixture[4:6] == ["Answer 118.", "Answer 119."]
    assert mixture[:4] != mixture[6:]  # drawn anew
    assert mixture == answers(load(folder, *sources, seed=5))
    assert mixture != answers(load(folder, *sources, seed=6))


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(folder, kind):
    source = write_kind(folder, kind, make_rows(6))
    dataset = load(folder, {**source, "sampling_strategy": "end:4"})
    assert len(dataset) == 4
    unit = {"rows.json": "entry", "rows.jsonl": "line"}.get(kind, "row")
    name = source.get("json_path") or source["hub"]
    for index in range(4):
        row = dataset[index]
        assert row["source"] == f"{name}, {unit} {index + 3}, id r{index + 2}"
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert conversation_text(row["messages"]) == f"Wie hei\u00dft das?Answer {index + 2}."
        part = row["messages"][0]["content"][0]
        assert part["type"] == ("image" if index < 2 else "text")
        if index < 2:
            assert np.array_equal(np.asarray(part["image"]), np.asarray(random_image(index + 2)))
    assert dataset.has_images == [True, True, False, False]
    assert dataset.lengths == [6] * 4  # 24 or 25 bytes, of which four are a token
    assert answers(dataset) == answers(pickle.loads(pickle.dumps(dataset)))
    with pytest.raises(IndexError):
        dataset[4]


def test_images_inside_of_messages(folder):
    """Parquet keeps them as bytes; they are decoded here, at access, and not by `datasets`."""
    features = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    features = {"role": datasets.Value("string"), "content": datasets.List(features)}
    question = [{"type": "image", "image": str(folder / "images" / "0.png")}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
    ]
    table = datasets.Dataset.from_list(
        [{"messages": messages}], features=datasets.Features({"messages": datasets.List(features)})
    )
    table.to_parquet(folder / "rows.parquet")
    dataset = load(folder, {"json_path": "rows.parquet"})
    image, question = dataset[0]["messages"][0]["content"]
    assert np.array_equal(np.asarray(image["image"]), np.asarray(random_image(0)))
    assert question == {"type": "text", "text": "What?"}
    assert dataset.has_images == [True]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lists_of_any_layout(folder, encoding):
    """Entries are found by their bytes, so nothing that moves bytes or looks like structure may matter."""
    texts = ["\u00fc \u20ac \U0001f600", '"],[{\\', "", "\x85 \xa0"]
    rows = [make_row(index, question=text) for index, text in enumerate(texts)]
    for indent, ascii_only in [(None, True), (None, False), (2, False)]:
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        (folder / "rows.json").write_text("\n " + text + " \n", encoding=encoding)
        dataset = load(folder, {"json_path": "rows.json"})
        assert [source.rows[index] for source, index in map(dataset.locate, range(4))] == rows


def test_blank_lines_are_no_rows_but_count_as_lines(folder):
    write_rows(folder / "rows.jsonl", [make_row(0), "", " ", make_row(1), ""])
    dataset = load(folder, {"json_path": "rows.jsonl"})
    assert [row["source"] for row in dataset] == ["rows.jsonl, line 1, id r0", "rows.jsonl, line 4, id r1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": 2}', "expected a list.*jsonl"),
        ("", "rows.json is empty"),
        ("\ufeff \n", "rows.json is empty"),
        ('[{"id": 1}, {"id": 2', r"rows.json, entry 2: not valid JSON"),
        ('[{"id": 1} {"id": 2}]', r"rows.json, entry 1: not valid JSON.*Expected `,` or `]`"),
        ('[{"id": 1},]', r"rows.json, entry 2: not valid JSON"),
        ('[{"id": 1}, {"id": 2},', r"rows.json, entry 3: not valid JSON"),
        ("[ ]", "rows.json holds no rows"),
        ('{"id": 1}{"id": 2}', "expected a list.*jsonl"),
        # What follows a list holds rows that would be lost.
        ('[{"id": 1}, {"id": 2}]\n[{"id": 3}]', r"rows.json, byte 23: '\[\{\"id\": 3.*ends after entry 2"),
        ('[{"id": 1}]{"id": 2}', "rows.json, byte 11: .*ends after entry 1"),
        ('\ufeff[{"id": 1}] ,', "rows.json, byte 15: ',' follows the list"),
        ('[]\n[{"id": 1}]', "rows.json, byte 3: .*ends after entry 0"),
    ],
)
def test_json_files_that_are_no_lists(folder, text, message):
    (folder / "rows.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(folder, {"json_path": "rows.json"})


@pytest.mark.parametrize("text", ['[{"id": 1},\n {"id": 2}]', '\n\ufeff [\n{"id": 1}', "[[1]]"])
def test_lists_named_jsonl_are_refused(folder, text):
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, line \d begins with `\[`.* \.json"):
        load(folder, {"json_path": "rows.jsonl"})


def test_rows_glued_into_one_line_are_placed(folder):
    """`cat a.jsonl b.jsonl` does this if the first file lacks the last line break."""
    text = "\n".join(map(json.dumps, make_rows(2)))
    (folder / "rows.jsonl").write_text(text + text)
    dataset = load(folder, {"json_path": "rows.jsonl"})
    assert len(dataset) == 3
    with pytest.raises(RowError, match="rows.jsonl, line 2: not valid JSON: Extra data"):
        dataset[1]


def test_files_with_a_byte_order_mark(folder):
    rows = make_rows(3)
    (folder / "rows.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    (folder / "rows.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("rows.json", "rows.jsonl"):
        table = load(folder, {"json_path": name}).sources[0].rows
        assert [table[index] for index in range(len(table))] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [{json_path: a.json}]\ndatasets: [{json_path: b.json}]", "'datasets' stands twice.*line 2"),
        ("datasets: [{json_path: a.json}]\n---\ndatasets: [{json_path: b.json}]", "single document"),
        ("datasets: [", "not valid YAML"),
    ],
)
def test_two_lists_of_sources_in_one_file(folder, text, message):
    """`cat a.yaml b.yaml`: YAML keeps the last of two equal keys."""
    (folder / "mixture.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"(?s)mixture.yaml.*{message}"):
        load_mixture({"datasets": "mixture.yaml"}, folder, seed=0)


def test_image_folders(folder):
    """A source's folder comes first, then that of `data`, then the file's; relative ones begin at the recipe's."""
    write_rows(folder / "images" / "rows.jsonl", [make_row(0, "0.png")])
    write_rows(folder / "rows.jsonl", [make_row(0, "0.png")])
    assert load(folder, {"json_path": "images/rows.jsonl"})[0]
    assert load(folder, {"json_path": "rows.jsonl"}, image_folder="images")[0]
    assert load(folder, {"json_path": "rows.jsonl", "image_folder": str(folder / "images")}, image_folder="x")[0]
    with pytest.raises(RowError, match="0.png"):
        load(folder, {"json_path": "rows.jsonl"})[0]


def test_sources_in_a_file_of_their_own(folder):
    (folder / "recipes").mkdir()
    write_rows(folder / "rows.jsonl", make_rows(6))
    (folder / "mixture.yaml").write_text("datasets: [{json_path: ../rows.jsonl, sampling_strategy: end:2}]")
    data = {"datasets": "../mixture.yaml"}
    assert answers(load_mixture(data, folder / "recipes", 0)) == ["Answer 4.", "Answer 5."]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "`data` is None"),
        ({}, "expected a section with `datasets`"),
        ({"datasets": []}, "expected a list of sources"),
        ({"datasets": [{"json_path": "a.json"}], "on_eror": "skip"}, r"`data` has the keys \['on_eror'\].*'on_error'"),
        ({"datasets": [{"json_path": "a.json"}], "on_error": "ignore"}, "'ignore', expected stop or skip"),
        ({"datasets": [{"json_path": "a.json"}], "max_errors": -1}, "`max_errors` is -1"),
        ({"datasets": [{"json_path": "a.json", "sampling": "all"}]}, r"Source 1 .* \['sampling'\].*sampling_strategy"),
        ({"datasets": [{"json_path": "a.json", "split": "train"}]}, r"\['split'\]"),
        ({"datasets": [{"json_path": "a.json", "hub": "b"}]}, "either `json_path` or `hub`"),
        ({"datasets": ["a.json"]}, "Source 1 .* 'a.json', expected either"),
        ({"datasets": [{"json_path": "a.csv"}]}, "a.csv is of no kind"),
        ({"datasets": "mixture.yaml"}, r"mixture.yaml has the keys \['seed'\]"),
        ({"datasets": [{"json_path": "splits"}]}, r"\['train', 'test'\], expected one: splits/train"),
    ],
)
def test_sections_that_cannot_be(folder, data, message):
    (folder / "a.csv").touch()
    (folder / "mixture.yaml").write_text("{datasets: [], seed: 1}")
    if "splits" in str(data):
        table = datasets.Dataset.from_list(make_rows(2))
        datasets.DatasetDict(train=table, test=table).save_to_disk(folder / "splits")
    with pytest.raises(ValueError, match=message):
        load_mixture(data, folder, 0)


def test_missing_file(folder):
    with pytest.raises(FileNotFoundError, match="Source 1 .*there is no .*rows.json.*recipe's folder"):
        load(folder, {"json_path": "rows.json"})


# Access -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.parquet"])
def test_images_are_opened_at_access_only(folder, kind):
    source = write_kind(folder, kind, make_rows(2))
    if kind == "rows.jsonl":
        (folder / "images" / "1.png").unlink()
    else:
        images = [(folder / "images" / "0.png").read_bytes(), b"no image"]
        rows = [{**make_row(index), "image": image} for index, image in enumerate(images)]
        datasets.Dataset.from_list(rows).to_parquet(folder / kind)
    dataset = load(folder, source)
    assert dataset.has_images == [True, True] and len(dataset.lengths) == 2
    assert dataset[0]["messages"][0]["content"][0]["image"].size == (50, 40)
    with pytest.raises(RowError, match=f"^{kind}, (line|row) 2, id r1: Cannot read an image from "):
        dataset[1]


def test_broken_rows_are_placed(folder):
    two_images = {**make_row(2), "id": 7, "image": ["0.png", "1.png"]}
    no_answer = {"conversations": make_row(3)["conversations"][:1]}
    rows = [make_row(0), '{"id": "r1", ', two_images, no_answer, "[1]"]
    write_rows(folder / "rows.jsonl", rows)
    dataset = load(folder, {"json_path": "rows.jsonl"})
    messages = [
        "rows.jsonl, line 2: not valid JSON",
        "rows.jsonl, line 3, id 7: The row has 2 images",
        r"rows.jsonl, line 4: The messages are of the roles \['user'\]",
        r"rows.jsonl, line 5: the row is '\[1\]', expected an object",
    ]
    for index, message in enumerate(messages, 1):
        with pytest.raises(RowError, match=f"^{message}"):
            dataset[index]
    with pytest.raises(RowError, match="^rows.jsonl, line 2"):
        dataset.lengths  # noqa: B018
    write_rows(folder / "rows.json", [rows[0], rows[2]])
    with pytest.raises(RowError, match="^rows.json, entry 2, id 7: The row has 2 images"):
        load(folder, {"json_path": "rows.json"})[1]


def test_without(folder):
    write_rows(folder / "a.jsonl", [make_row(index) for index in range(3)])
    write_rows(folder / "b.json", [make_row(index) for index in range(3, 6)])
    dataset = load(folder, {"json_path": "a.jsonl"}, {"json_path": "b.json"})
    assert answers(dataset.without([])) == answers(dataset)
    assert answers(dataset.without([1, 3, 5])) == ["Answer 0.", "Answer 2.", "Answer 4."]
    left = dataset.without([0, 1, 2]).without([1])
    assert answers(left) == ["Answer 3.", "Answer 5."]
    assert len(left.lengths) == len(left) == 2


@pytest.mark.parametrize("kind", ["rows.json", "rows.jsonl", "rows"])
def test_pickles_hold_places_and_not_rows(folder, kind):
    """Each worker of a loader receives one."""
    source = write_kind(folder, kind, [make_row(index, question="long " * 2000) for index in range(20)])
    assert len(pickle.dumps(load(folder, source))) < 10_000


# Check --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(folder) -> dict:
    """Return a source of 8 rows: the image of the fourth is broken, and the syntax of the sixth."""
    rows = make_rows(8)
    (folder / "images" / "3.png").write_bytes((folder / "images" / "3.png").read_bytes()[:-500])
    write_rows(folder / "rows.jsonl", [*rows[:5], "{", *rows[6:]])
    return {"json_path": "rows.jsonl", "image_folder": "images"}


def write_recipe(folder: Path, *sources: dict, **sections) -> str:
    path = folder / "recipe.yaml"
    data = {"datasets": list(sources), **sections.pop("data", {})}
    path.write_text(yaml.safe_dump({"data": data, **sections}))
    return str(path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_checked_rows(folder, broken, num_workers):
    write_rows(folder / "other.json", [make_row(9)])
    report = check_rows(load(folder, broken, {"json_path": "other.json"}), num_workers)
    assert [(row.index, row.source, row.number) for row in report.broken] == [
        (3, "rows.jsonl", 4),
        (5, "rows.jsonl", 6),
    ]
    assert report.broken[0].error.startswith("rows.jsonl, line 4, id r3: Cannot read an image from '3.png'")
    assert report.broken[1].error.startswith("rows.jsonl, line 6: not valid JSON")
    first, second = report.sources
    assert (first.num_rows, first.num_rows_in_file, first.num_broken) == (8, 8, 2)
    assert (first.num_images, first.num_turns, first.max_characters) == (3, 6, len("Wie hei\u00dft das?Answer 0."))
    assert (second.num_rows, second.num_images, second.num_turns) == (1, 0, 1)


def test_tokens_are_those_of_the_processor(folder, processor):
    rows = make_rows(6)
    rows[0]["conversations"] *= 2
    rows[0]["conversations"][2] = {"from": "human", "value": "And then?"}
    write_rows(folder / "rows.json", rows)
    dataset = load(folder, {"json_path": "rows.json", "image_folder": "images"})
    lengths = [
        process(processor, row["messages"], add_generation_prompt=False)["input_ids"].shape[1] for row in dataset
    ]
    source = check_rows(dataset, processor=processor).sources[0]
    assert (source.num_tokens, source.max_tokens) == (sum(lengths), max(lengths))
    grids = processor.image_processor
    placeholders = 4 * grids.image_grid_size**2 + 7 * grids.latent_grid_size**2
    assert source.num_text_tokens == sum(lengths) - placeholders


@pytest.mark.parametrize("text", ["What is <image> here?", "What is <latent> here?", "Half a pair: \ud83d"])
def test_check_finds_texts_that_the_processor_refuses(folder, processor, text):
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "That."}]}
    (folder / "rows.json").write_text(json.dumps([row]))
    report = check_rows(load(folder, {"json_path": "rows.json"}), processor=processor)
    assert len(report.broken) == 1 and report.broken[0].error.startswith("rows.json, entry 1: ")
    assert re.search("control token .* as text|half of a surrogate pair", report.broken[0].error)
    data = {"datasets": [{"json_path": "rows.json"}], "on_error": "skip", "max_errors": 1}
    assert len(prepare_dataset(data, folder, 0, folder / "out" / "broken.jsonl", processor=processor)) == 0


def test_skipped_rows(folder, broken):
    """They are dropped before training and written down, so the length is known and the order does not change."""
    data = {"datasets": [broken], "on_error": "skip", "max_errors": 2}
    random_state = torch.get_rng_state()
    dataset = prepare_dataset(data, folder, 0, folder / "broken.jsonl")
    assert torch.equal(torch.get_rng_state(), random_state)  # what training draws next does not depend on the check
    assert answers(dataset) == [f"Answer {index}." for index in (0, 1, 2, 4, 6, 7)]
    assert dataset.has_images == [True] * 3 + [False] * 3
    report = [json.loads(line) for line in (folder / "broken.jsonl").read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in report] == [("rows.jsonl", 4), ("rows.jsonl", 6)]
    assert report[0]["error"].startswith("rows.jsonl, line 4, id r3: Cannot read an image from '3.png'")


@pytest.mark.parametrize("limit", [{}, {"max_errors": 1}])
def test_too_many_broken_rows_stop(folder, broken, limit):
    data = {"datasets": [broken], "on_error": "skip", **limit}
    with pytest.raises(RowError, match="2 of 8 rows are broken, expected at most [01] .*broken.jsonl.*line 4, id r3"):
        prepare_dataset(data, folder, 0, folder / "broken.jsonl")
    assert len((folder / "broken.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("on_error", [{}, {"on_error": "stop"}])
def test_without_skip_nothing_is_dropped(folder, broken, on_error):
    dataset = prepare_dataset({"datasets": [broken], **on_error}, folder, 0, folder / "broken.jsonl")
    assert len(dataset) == 8 and not (folder / "broken.jsonl").exists()
    with pytest.raises(RowError, match="line 6"):
        dataset[5]


def test_check_command(folder, capsys):
    write_rows(folder / "rows.jsonl", make_rows(6))
    sources = {"json_path": "rows.jsonl", "sampling_strategy": "first:5", "image_folder": "images"}
    assert main(["check", write_recipe(folder, sources), "--num-workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no processor: tokens not counted (the recipe has no `model.path`)"
    header, row = lines[3:5]
    assert header.split("  ") and "text tokens" not in header
    assert row.split() == ["rows.jsonl", "5", "6", "0", "4", "5", "23", "23"]
    assert lines[-1] == "0 broken rows, 0 allowed"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({}, 1),
        ({"on_error": "stop", "max_errors": 2}, 1),
        ({"on_error": "skip", "max_errors": 1}, 1),
        ({"on_error": "skip", "max_errors": 2}, 0),
    ],
)
def test_exit_codes(folder, broken, data, code, capsys):
    assert main(["check", write_recipe(folder, broken, data=data), "--num-workers", "0"]) == code
    assert "  rows.jsonl, line 4, id r3: Cannot read an image from '3.png'" in capsys.readouterr().out


def test_check_command_shows_some_and_reports_all(folder, capsys):
    write_rows(folder / "rows.jsonl", ["{"] * 25)
    recipe = write_recipe(folder, {"json_path": "rows.jsonl"})
    assert main(["check", recipe, "--num-workers", "0", "--report", str(folder / "broken.jsonl")]) == 1
    output = capsys.readouterr().out
    assert output.count("not valid JSON") == 20 and "... and 5 more" in output
    assert len((folder / "broken.jsonl").read_text().splitlines()) == 25


def test_check_command_counts_tokens(folder, processor, capsys):
    processor.save_pretrained(folder / "model")
    write_rows(folder / "rows.jsonl", make_rows(6))
    source = {"json_path": "rows.jsonl", "image_folder": "images"}
    expected = check_rows(load(folder, source), processor=processor).sources[0]
    # The recipe's own, and one that is given.
    for recipe, options in [
        ({"model": {"path": str(folder / "model")}}, []),
        ({}, ["--processor", str(folder / "model")]),
    ]:
        assert main(["check", write_recipe(folder, source, **recipe), "--num-workers", "0", *options]) == 0
        cells = capsys.readouterr().out.splitlines()[-2].replace(",", "").split()
        assert cells[-3:] == [str(expected.num_text_tokens), str(expected.num_tokens), str(expected.max_tokens)]


def test_check_command_checks_evaluation_data_and_samples_with_the_seed_of_training(folder, broken, capsys):
    write_rows(folder / "train.jsonl", ["{"] * 100)
    source = {"json_path": "train.jsonl", "sampling_strategy": "random:10"}
    for training, seed in [({}, 42), ({"seed": 3}, 3), ({"seed": 3, "data_seed": 4}, 4)]:
        recipe = write_recipe(folder, source, training=training, eval_data={"datasets": [broken]})
        main(["check", recipe, "--num-workers", "0", "--report", str(folder / "report.jsonl")])
        assert "2 broken rows" in capsys.readouterr().out.partition("eval_data")[2]
        lines = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
        expected = sample("random:10", 100, [seed, 0]) + 1
        assert [line["row"] for line in lines if line["source"] == "train.jsonl"] == expected.tolist()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("data: {datasets: [{json_path: none.json}]}", "there is no"),
        ("data: null", "no section `data`"),
        ("data: {datasets: [", "expected the node content"),
    ],
)
def test_check_command_says_what_is_wrong_with_a_recipe(folder, recipe, message, capsys):
    (folder / "recipe.yaml").write_text(recipe)
    assert main(["check", str(folder / "recipe.yaml")]) == 1
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


def test_check_command_in_a_process_of_its_own(folder, broken):
    recipe = write_recipe(folder, broken)
    command = [sys.executable, "-m", "fusion_vlm.training.check", recipe, "--num-workers", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "2 broken rows, 0 allowed" in result.stdout and "line 4, id r3" in result.stdout
