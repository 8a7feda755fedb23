"""The files of a run: all forms hold exactly the accepted samples, readers read them, and bytes do not change."""

import io
import json
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from fusion_vlm.audit.audit import audit, read_rows
from fusion_vlm.audit.card import audit_for_card
from fusion_vlm.rows.forms import conversation_text
from fusion_vlm.rows.messages import to_messages
from fusion_vlm.synthesis import shards
from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.kinds.table import KINDS
from fusion_vlm.synthesis.options import MAX_LLAVA, Options
from fusion_vlm.synthesis.output import read_counts, write_output, write_part
from fusion_vlm.synthesis.part_images import FORMATS, PartImages, encode_image
from fusion_vlm.synthesis.run_folder import MIN_PART_SIZE, RunFolder
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.shards import (
    REJECT_FEATURES,
    SHARD_FEATURES,
    list_shards,
    read_accepted,
    read_reject_images,
    read_rejects,
    read_shard,
)
from fusion_vlm.training.data import load_mixture


def write(samples, folder: Path, audit=audit_for_card, info=None, num=None, **options) -> Counts:
    """Write the parts and the output as `fusion-vlm synthesize` does, audit included."""
    samples = list(samples)
    run, options = RunFolder(folder, num or len(samples)), Options(num or len(samples), image_format="png", **options)
    run.prepare({})
    images = PartImages(folder / "work" / "images")
    for sample in samples:
        if sample.image is not None:
            index = int(sample.id[1:])
            image = Image.new("RGB", (8, 6), (index, 2 * index, 9))
            images.write(sample.image, encode_image(image, "png"))
    for part in range(run.num_parts):
        indices = run.part_indices(part)
        write_part(run, part, samples[indices[0] : indices[-1] + 1], images, options)
    run.clean()
    return write_output(run, options, audit, info)


OPTIONS = Turn("What colour is it?", "B", "multiple_choice", ["red", "gr\u00fcn"])
FILES = [
    "README.md",
    "audit.json",
    "audit.png",
    "data",
    "images",
    "parts",
    "rejected.png",
    "rejects",
    "run.json",
    "samples.png",
    "train.json",
    "work",
]
TWO_PARTS = 2 * MIN_PART_SIZE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_sample(index: int, reason: str | None = None) -> Sample:
    """Make a sample of two turns; its image is of a color of its index."""
    rng = random.Random(index)
    turns = [OPTIONS, Turn("Is it \u00bbthere\u00ab?", rng.choice(["Yes", "No"]), "yes_no")]
    sample = Sample(f"s{index:03}", KINDS[index % 3], seed=7, image=f"s{index:03}.png", turns=turns, reason=reason)
    sample.source = {"captions": "scene grammar", "row": index, "prompts": ["ask_colour.txt"]}
    sample.scores = {"clip_score": None}
    return sample


def make_samples(num: int = 12) -> list[Sample]:
    """Make samples in descending order of ids; every fourth of the first twelve is rejected."""
    reasons = {0: "image/ssim_a: 0.2, expected 1.1 or more", 4: "image/ssim_a: 0.3", 8: "judge/wrong_answer: turn 1"}
    return [make_sample(index, reasons.get(index)) for index in reversed(range(num))]


def accepted(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.reason is None]


def expected_texts(sample: Sample) -> list[str]:
    return [text for turn in sample.turns for text in (turn.question_with_options, turn.answer)]


def check_messages(messages: list[dict], sample: Sample):
    """Check that the sample's image is before the first question, and that all texts follow in order."""
    kinds = [[part["type"] for part in message["content"]] for message in messages]
    assert kinds == [["image", "text"], ["text"], ["text"], ["text"]]
    assert [conversation_text([message]) for message in messages] == expected_texts(sample)
    index = int(sample.id[1:])
    assert messages[0]["content"][0]["image"].convert("RGB").getpixel((3, 3)) == (index, 2 * index, 9)


def test_llava_json_and_images_hold_the_accepted_samples_in_order(tmp_path):
    samples = make_samples()
    write(iter(samples), tmp_path)
    rows = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == [sample.id for sample in accepted(samples)]
    for row, sample in zip(rows, accepted(samples), strict=True):
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * 2
        values = expected_texts(sample)
        assert [turn["value"] for turn in row["conversations"]] == ["<image>\n" + values[0], *values[1:]]
        assert (tmp_path / "images" / row["image"]).is_file()


def test_training_reads_llava_json(tmp_path):
    samples = make_samples()
    write(samples, tmp_path)
    data = {"datasets": [{"json_path": "train.json", "image_folder": "images"}]}
    mixture = load_mixture(data, tmp_path, seed=0)
    assert len(mixture) == len(accepted(samples))
    for index, sample in enumerate(accepted(samples)):
        check_messages(mixture[index]["messages"], sample)


def test_datasets_reads_the_folder_and_training_and_trl_its_rows(tmp_path):
    samples = make_samples()
    write(samples, tmp_path)
    assert list(datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))) == ["train"]
    table = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == list(SHARD_FEATURES)
    for row, sample in zip(table, accepted(samples), strict=True):
        assert (row["id"], row["kind"]) == (sample.id, sample.kind)
        assert row["question_types"] == ["multiple_choice", "yes_no"]
        check_messages(to_messages(row), sample)
        check_messages(prepare_multimodal_messages(row["messages"], row["images"]), sample)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_training_reads_the_parquet_form(source, tmp_path):
    samples = make_samples()
    write(samples, tmp_path)
    entry = {"hub": str(tmp_path)} if source == "folder" else {"json_path": "data/train-00000-of-00001.parquet"}
    mixture = load_mixture({"datasets": [entry]}, tmp_path, seed=0)
    for index, sample in enumerate(accepted(samples)):
        check_messages(mixture[index]["messages"], sample)


def test_images_are_embedded_byte_for_byte(tmp_path):
    samples = make_samples()
    write(samples, tmp_path)
    rows = pyarrow.parquet.read_table(tmp_path / "data").to_pylist()
    for row in rows:
        (image,) = row["images"]
        assert image["bytes"] == (tmp_path / "images" / image["path"]).read_bytes()


def test_equal_samples_give_equal_bytes(tmp_path):
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        for shard_format in ("parquet", "webdataset"):
            write(make_samples(), folder / shard_format, shard_format=shard_format)
            assert sorted(path.name for path in (folder / shard_format).iterdir()) == FILES
        contents.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


def test_a_part_is_a_shard(tmp_path):
    samples = make_samples(TWO_PARTS + 5)
    write(samples, tmp_path)
    names = [f"train-{index:05}-of-00003.parquet" for index in range(3)]
    assert [file.name for file in list_shards(tmp_path)] == names
    assert [pyarrow.parquet.read_metadata(file).num_rows for file in list_shards(tmp_path)] == [64, 63, 3]
    table = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["id"][:] == [sample.id for sample in accepted(samples)]


def test_rows_are_written_in_groups(tmp_path, monkeypatch):
    """At most a row group is held in memory."""
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 4)
    samples = make_samples()
    write(samples, tmp_path)
    (file,) = list_shards(tmp_path)
    assert pyarrow.parquet.read_metadata(file).num_row_groups == 3
    assert [sample for sample, _ in read_accepted(tmp_path)] == accepted(samples)


def test_columns_are_those_that_datasets_writes():
    text = datasets.Value("string")
    images = datasets.List(datasets.Image())
    features = {"id": text, "messages": datasets.List({"role": text, "content": text}), "images": images}
    features |= {"kind": text, "question_types": datasets.List(text)}
    features |= {"caption": text, "description": text, "sample": text}
    for found, expected in ((SHARD_FEATURES, features), (REJECT_FEATURES, {"id": text, "images": images})):
        schema, ours = datasets.Features(expected).arrow_schema, shards._build_schema(found)
        assert ours.equals(schema)
        assert json.loads(ours.metadata[b"huggingface"]) == json.loads(schema.metadata[b"huggingface"])


def test_a_webdataset_holds_the_same_samples(tmp_path):
    samples = make_samples(TWO_PARTS)
    write(samples, tmp_path / "parquet")
    write(samples, tmp_path / "tar", shard_format="webdataset")
    rows = [[row for path in list_shards(folder) for row in read_shard(path)] for folder in sorted(tmp_path.iterdir())]
    assert rows[0] == rows[1] and len(rows[0]) == TWO_PARTS - 3
    assert audit(read_rows(tmp_path / "tar")).to_dict() == audit(read_rows(tmp_path / "parquet")).to_dict()
    # `datasets` reads it by the card, as WebDataset does.
    table = datasets.load_dataset(str(tmp_path / "tar"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["id"] for row in table] == [sample.id for sample in accepted(samples)]
    first = accepted(samples)[0]
    assert [message["content"] for message in table[0]["json"]["messages"]] == expected_texts(first)
    assert table[0]["png"].getpixel((3, 3)) == (int(first.id[1:]), 2 * int(first.id[1:]) % 256, 9)


def test_large_sets_have_no_llava_form_unless_asked_and_then_folders_of_images(tmp_path):
    samples = make_samples(TWO_PARTS)
    assert Options(MAX_LLAVA).llava and not Options(MAX_LLAVA + 1).llava
    write(samples, tmp_path / "none", llava=False)
    assert {"train.json", "images"}.isdisjoint(path.name for path in (tmp_path / "none").iterdir())
    folder, images = RunFolder(tmp_path / "large", MAX_LLAVA + 1), PartImages(tmp_path / "large" / "work")
    folder.prepare({})
    sample = make_sample(1)
    images.write(sample.image, encode_image(Image.new("RGB", (8, 6)), "png"))
    write_part(folder, 70, [sample], images, Options(MAX_LLAVA + 1, llava=True))
    assert (folder.path / "images" / "00070" / sample.image).is_file()


@pytest.mark.parametrize("image_format", FORMATS)
def test_images_are_stored_in_each_form(image_format):
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    content = encode_image(image, image_format)
    found = Image.open(io.BytesIO(content))
    assert found.format == image_format.upper() and encode_image(image, image_format) == content
    difference = np.abs(np.asarray(found.convert("RGB"), dtype=int) - np.asarray(image, dtype=int)).max()
    assert difference == 0 if image_format != "jpeg" else 0 < difference < 20


def test_counts_of_parts_add_up(tmp_path):
    samples = make_samples(TWO_PARTS)
    counts = write(samples, tmp_path)
    alone = Counts()
    for sample in samples:
        alone.add(sample)
    assert counts == alone == Counts.from_json(counts.to_json()) == read_counts(RunFolder(tmp_path, TWO_PARTS))


def test_rejects_are_whole_and_their_reasons_counted(tmp_path):
    samples = make_samples()
    counts = write(samples, tmp_path)
    rejects = list(read_rejects(tmp_path))
    assert rejects == [sample for sample in samples if sample.reason is not None]
    images = list(read_reject_images(tmp_path))
    assert [sample_id for sample_id, _ in images] == [sample.id for sample in rejects]
    assert Image.open(io.BytesIO(images[0][1])).getpixel((3, 3)) == (8, 16, 9)
    assert counts.reasons == {"image/ssim_a": 2, "judge/wrong_answer": 1}
    assert (counts.num_samples, counts.num_turns, counts.num_rejected) == (9, 18, 3)
    assert "| image/ssim_a | 2 |" in (tmp_path / "README.md").read_text()


def test_card_is_one_of_the_hub(tmp_path):
    write(make_samples(), tmp_path, info={"license": "cc-by-4.0", "command": "generate --seed 7"})
    card = DatasetCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    assert "visual-question-answering" in data["task_categories"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    for text in (
        "| caption_colour | 3 |",
        "| yes_no | 9 |",
        "Seeds: 7.",
        "- captions: scene grammar (9)",
        '- prompts: ["ask_colour.txt"] (9)',
        "clip_score was not available for 9",
        "generate --seed 7",
        "| multiple_choice ",
        "language_only_gain: ",
        "(audit.png)",
    ):
        assert text in card.text, text


def test_card_counts_what_it_does_not_list(tmp_path):
    write((make_sample(index) for index in range(30)), tmp_path)
    assert "- row: more than 20 different" in (tmp_path / "README.md").read_text()


def test_audit_is_of_what_was_written_and_can_be_left_out(tmp_path):
    samples = make_samples()
    write(samples, tmp_path)
    reports = [audit(read_rows(path)).to_dict() for path in (tmp_path, tmp_path / "train.json")]
    assert reports[0] == reports[1] == json.loads((tmp_path / "audit.json").read_text())
    assert reports[0]["num_rows"] == 9
    write(samples, tmp_path / "other", audit=None)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        name for name in FILES if not name.startswith("audit")
    ]
    assert "## Audit" not in (tmp_path / "other" / "README.md").read_text()


def test_options_are_shown_once_with_their_letters():
    shown = "What colour is it?\nA. red\nB. gr\u00fcn\nAnswer with the letter of the option."
    assert OPTIONS.question_with_options == shown
    assert Turn(shown, "B", "multiple_choice", ["red", "gr\u00fcn"]).question_with_options == shown
    assert Turn("Is it red?", "No", "yes_no").question_with_options == "Is it red?"


def test_text_that_would_break_a_reader_is_cleaned(tmp_path):
    sample = make_sample(1)
    sample.turns = [Turn("What is in <image>?", "A dog \ud83d.", "other")]
    write([sample], tmp_path)
    for row in (
        json.loads((tmp_path / "train.json").read_text())[0],
        *datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"],
    ):
        messages = to_messages({**row, "image": None, "images": [Image.new("RGB", (2, 2))]})
        assert conversation_text(messages) == "What is in ?A dog ?."


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": None}, ValueError, "s001 has the image None"),
        ({"turns": []}, ValueError, "0 turns"),
        ({"image": "missing.png"}, FileNotFoundError, "missing.png"),
        ({"id": "s002"}, ValueError, "two samples with the id 's002'"),
    ],
)
def test_broken_samples_leave_the_part_unfinished(change, error, message, tmp_path):
    samples = [make_sample(2), make_sample(1)]
    folder, images = RunFolder(tmp_path, 2), PartImages(tmp_path / "work" / "images")
    folder.prepare({})
    for sample in samples:
        images.write(sample.image, encode_image(Image.new("RGB", (8, 6)), "png"))
    for name, value in change.items():
        setattr(samples[1], name, value)
    with pytest.raises(error, match=message):
        write_part(folder, 0, samples, images, Options(2))
    assert folder.missing_parts() == [0] and not list_shards(tmp_path)


def test_no_accepted_sample_leaves_empty_sets(tmp_path):
    write([make_sample(0, "image/ssim_a: 0")], tmp_path)
    assert json.loads((tmp_path / "train.json").read_text()) == []
    assert pyarrow.parquet.read_table(tmp_path / "data").num_rows == 0
    assert "0 samples" in (tmp_path / "README.md").read_text()
