"""The output of a run: both forms hold exactly the accepted samples, readers read them, and bytes do not change."""

import json
import random
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from fusion_vlm.audit.audit import audit, read_rows
from fusion_vlm.audit.card import audit_for_card
from fusion_vlm.rows.forms import conversation_text
from fusion_vlm.rows.messages import to_messages
from fusion_vlm.synthesis import output
from fusion_vlm.synthesis.kinds.table import KINDS
from fusion_vlm.synthesis.output import write_output
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.training.data import load_mixture


def write(samples, folder: Path, **options):
    """Write the output as `fusion-vlm synthesize` does, audit included."""
    return write_output(samples, folder, audit=audit_for_card, **options)


OPTIONS = Turn("What colour is it?", "B", "multiple_choice", ["red", "gr\u00fcn"])
FILES = ["README.md", "audit.json", "audit.png", "data", "images", "rejects.jsonl", "train.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_sample(index: int, folder: Path, reason: str | None = None) -> Sample:
    """Make a sample of two turns, and its image in a color of its index."""
    rng = random.Random(index)
    turns = [OPTIONS, Turn("Is it \u00bbthere\u00ab?", rng.choice(["Yes", "No"]), "yes_no")]
    sample = Sample(f"s{index:03}", KINDS[index % 3], seed=7, image=f"s{index:03}.png", turns=turns, reason=reason)
    sample.source = {"captions": "scene grammar", "row": index, "prompts": ["ask_colour.txt"]}
    sample.scores = {"clip_score": None}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (index, 2 * index, 9)).save(folder / "images" / sample.image)
    return sample


def make_samples(folder: Path, num: int = 12) -> list[Sample]:
    """Make samples in descending order of ids; every fourth is rejected."""
    reasons = {0: "image/ssim_a: 0.2, expected 1.1 or more", 4: "image/ssim_a: 0.3", 8: "judge/wrong_answer: turn 1"}
    return [make_sample(index, folder, reasons.get(index)) for index in reversed(range(num))]


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
    samples = make_samples(tmp_path)
    write(iter(samples), tmp_path)
    rows = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == [sample.id for sample in accepted(samples)]
    for row, sample in zip(rows, accepted(samples), strict=True):
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * 2
        values = expected_texts(sample)
        assert [turn["value"] for turn in row["conversations"]] == ["<image>\n" + values[0], *values[1:]]
        assert (tmp_path / "images" / row["image"]).is_file()


def test_training_reads_llava_json(tmp_path):
    samples = make_samples(tmp_path)
    write(samples, tmp_path)
    data = {"datasets": [{"json_path": "train.json", "image_folder": "images"}]}
    mixture = load_mixture(data, tmp_path, seed=0)
    assert len(mixture) == len(accepted(samples))
    for index, sample in enumerate(accepted(samples)):
        check_messages(mixture[index]["messages"], sample)


def test_datasets_reads_the_folder_and_training_and_trl_its_rows(tmp_path):
    samples = make_samples(tmp_path)
    write(samples, tmp_path)
    assert list(datasets.load_dataset(str(tmp_path))) == ["train"]
    table = datasets.load_dataset(str(tmp_path), split="train")
    assert table.column_names == ["id", "messages", "images", "kind", "question_types"]
    for row, sample in zip(table, accepted(samples), strict=True):
        assert (row["id"], row["kind"]) == (sample.id, sample.kind)
        assert row["question_types"] == ["multiple_choice", "yes_no"]
        check_messages(to_messages(row), sample)
        check_messages(prepare_multimodal_messages(row["messages"], row["images"]), sample)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_training_reads_the_parquet_form(source, tmp_path):
    samples = make_samples(tmp_path)
    write(samples, tmp_path)
    entry = {"hub": str(tmp_path)} if source == "folder" else {"json_path": "data/train-00000-of-00001.parquet"}
    mixture = load_mixture({"datasets": [entry]}, tmp_path, seed=0)
    for index, sample in enumerate(accepted(samples)):
        check_messages(mixture[index]["messages"], sample)


def test_images_are_embedded_byte_for_byte(tmp_path):
    samples = make_samples(tmp_path)
    write(samples, tmp_path)
    rows = pyarrow.parquet.read_table(tmp_path / "data").to_pylist()
    for row in rows:
        (image,) = row["images"]
        assert image["bytes"] == (tmp_path / "images" / image["path"]).read_bytes()


def test_equal_samples_give_equal_bytes_and_leave_nothing_of_an_earlier_run(tmp_path, monkeypatch):
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        if name == "two":  # another run was there before, of more shards
            monkeypatch.setattr(output, "ROW_GROUP_ROWS", 2)
            monkeypatch.setattr(output, "SHARD_BYTES", 1)
            write(make_samples(folder, 20), folder)
            monkeypatch.undo()
        write(make_samples(folder), folder)
        contents.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        assert sorted(path.name for path in folder.iterdir()) == FILES
    left = set(contents[1]) - set(contents[0])
    assert all(path.parts[0] == "images" for path in left)
    assert all(contents[1][path] == content for path, content in contents[0].items())


def test_rows_are_written_in_groups_and_shards(tmp_path, monkeypatch):
    """At most a row group is held in memory."""
    samples = make_samples(tmp_path)
    size = (tmp_path / "images" / samples[0].image).stat().st_size
    monkeypatch.setattr(output, "ROW_GROUP_BYTES", 2 * size)
    monkeypatch.setattr(output, "SHARD_BYTES", 4 * size)
    write(samples, tmp_path)
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [f"train-{index:05}-of-00003.parquet" for index in range(3)]
    metadata = [pyarrow.parquet.ParquetFile(file).metadata for file in files]
    assert [part.num_rows for part in metadata] == [4, 4, 1]
    assert [part.num_row_groups for part in metadata] == [2, 2, 1]
    table = datasets.load_dataset(str(tmp_path), split="train")
    assert table["id"][:] == [sample.id for sample in accepted(samples)]


def test_rejects_are_whole_and_their_reasons_counted(tmp_path):
    samples = make_samples(tmp_path)
    counts = write(samples, tmp_path)
    rejects = [Sample.from_dict(json.loads(line)) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [sample for sample in samples if sample.reason is not None]
    assert counts.reasons == {"image/ssim_a": 2, "judge/wrong_answer": 1}
    assert (counts.num_samples, counts.num_turns, counts.num_rejected) == (9, 18, 3)
    assert "| image/ssim_a | 2 |" in (tmp_path / "README.md").read_text()


def test_card_is_one_of_the_hub(tmp_path):
    write(make_samples(tmp_path), tmp_path, info={"license": "cc-by-4.0", "command": "generate --seed 7"})
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
    write((make_sample(index, tmp_path) for index in range(30)), tmp_path)
    assert "- row: 30 different" in (tmp_path / "README.md").read_text()


def test_audit_is_of_what_was_written_and_can_be_left_out(tmp_path):
    samples = make_samples(tmp_path)
    write(samples, tmp_path)
    reports = [audit(read_rows(path)).to_dict() for path in (tmp_path, tmp_path / "train.json")]
    assert reports[0] == reports[1] == json.loads((tmp_path / "audit.json").read_text())
    assert reports[0]["num_rows"] == 9
    write_output(samples, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        name for name in FILES if not name.startswith("audit")
    ]
    assert "## Audit" not in (tmp_path / "README.md").read_text()


def test_options_are_shown_once_with_their_letters():
    shown = "What colour is it?\nA. red\nB. gr\u00fcn\nAnswer with the letter of the option."
    assert OPTIONS.question_with_options == shown
    assert Turn(shown, "B", "multiple_choice", ["red", "gr\u00fcn"]).question_with_options == shown
    assert Turn("Is it red?", "No", "yes_no").question_with_options == "Is it red?"


def test_text_that_would_break_a_reader_is_cleaned(tmp_path):
    sample = make_sample(1, tmp_path)
    sample.turns = [Turn("What is in <image>?", "A dog \ud83d.", "other")]
    write([sample], tmp_path)
    for row in (json.loads((tmp_path / "train.json").read_text())[0], *datasets.load_dataset(str(tmp_path))["train"]):
        messages = to_messages({**row, "image": None, "images": [Image.new("RGB", (2, 2))]})
        assert conversation_text(messages) == "What is in ?A dog ?."


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": None}, ValueError, "s001 has the image None"),
        ({"turns": []}, ValueError, "0 turns"),
        ({"image": "missing.png"}, FileNotFoundError, "s001"),
        ({"id": "s002"}, ValueError, "two samples with the id 's002'"),
    ],
)
def test_broken_samples_stop_before_anything_is_replaced(change, error, message, tmp_path):
    samples = [make_sample(2, tmp_path), make_sample(1, tmp_path)]
    write(samples, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("[a-zR]*.*")}
    for name, value in change.items():
        setattr(samples[1], name, value)
    with pytest.raises(error, match=message):
        write(samples, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("[a-zR]*.*")} == before
    assert datasets.load_dataset(str(tmp_path), split="train")["id"][:] == ["s002", "s001"]


def test_no_accepted_sample_leaves_empty_sets(tmp_path):
    write([make_sample(0, tmp_path, "image/ssim_a: 0")], tmp_path)
    assert json.loads((tmp_path / "train.json").read_text()) == []
    assert pyarrow.parquet.read_table(tmp_path / "data").num_rows == 0
    assert "0 samples" in (tmp_path / "README.md").read_text()
