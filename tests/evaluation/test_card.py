"""Results of ours in a model card: apart from the authors', kept when the card is written again."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from fusion_vlm.evaluation.card import add_to_card
from fusion_vlm.evaluation.columns import read_columns
from fusion_vlm.evaluation.report import make_rows
from fusion_vlm.hub.card import write_card

from ..helpers import SMALL_MODEL


COLUMNS = read_columns()
AUTHORS = {
    "dataset_name": "POPE",
    "dataset_type": "lmms-lab-encoder/POPE",
    "metric_type": "score",
    "metric_value": 88.9,
    "source_name": "FUSION repository",
    "source_url": "https://github.com/starriver030515/FUSION",
}
SETTINGS = {"weights": "abc", "dtype": "float32", "latent_grid_size": 4, "draw_latents": None, "quantization": None}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a copy of the small model whose card has a figure of the authors."""
    folder = tmp_path / "model"
    shutil.copytree(SMALL_MODEL, folder, ignore=shutil.ignore_patterns("widget"))
    (folder / "README.md").unlink(missing_ok=True)
    write_card(folder, results=[AUTHORS])
    return folder


def measure(name: str, value: float, num_all: int = 9000) -> list:
    column = COLUMNS[name]
    record = {
        "values": {column.key: value},
        "counts": {column.metric: 9000},
        "right_or_wrong": [],
        "num_questions": 9000,
        "num_all": num_all,
        "judge": None,
        "data": f"lmms-lab-encoder/{name}",
        "config": {},
        "finished": "2026-11-29T12:00:00+00:00",
    }
    return make_rows([column], {column.task: record}, {}, {})


def add(folder: Path, name: str, value: float, **settings) -> str:
    """Add a value to the card, and return its text."""
    run = {"settings": {**SETTINGS, **settings}, "harness": "0.7.3"}
    return add_to_card(folder, measure(name, value), run).read_text(encoding="utf-8")


def read_entries(folder: Path) -> dict[str, list]:
    return {path.name: yaml.safe_load(path.read_text()) for path in (folder / ".eval_results").iterdir()}


def test_ours_stand_apart_from_the_authors(folder):
    before = (folder / ".eval_results" / "pope.yaml").read_bytes()
    text = add(folder, "POPE", 0.9123)
    assert "| POPE | score | 88.9 |" in text
    assert "| POPE | `pope`, pope_accuracy | test | 9000 | 91.2 |" in text
    assert "Float32, latents 4x4, lmms-eval 0.7.3 ([the run](evaluation/float32-latents-4.json)):" in text
    assert text.index("## Results") < text.index("## Measured with lmms-eval") < text.index("## Limits and biases")
    assert (folder / ".eval_results" / "pope.yaml").read_bytes() == before
    (entry,) = read_entries(folder)["pope.float32-latents-4.yaml"]
    assert (entry["dataset"]["id"], entry["value"]) == ("lmms-lab-encoder/POPE", 91.23)
    for part in ("lmms-eval 0.7.3", "split test", "9000 questions", "float32, latents 4x4", "evaluation/float32"):
        assert part in entry["notes"]
    metadata = {result.metric_value: result for result in ModelCard.load(folder / "README.md").data.eval_results}
    assert metadata[88.9].source_name == "FUSION repository"
    assert metadata[91.23].source_name == "lmms-eval 0.7.3, fusion-vlm evaluate"
    assert json.loads((folder / "evaluation" / "float32-latents-4.json").read_text())["rows"][0]["value"] == 91.23


def test_second_run_replaces_its_rows_and_keeps_the_others(folder):
    add(folder, "POPE", 0.5)
    add(folder, "RWQA", 0.25)
    text = add(folder, "POPE", 0.75)
    assert text.count("## Measured with lmms-eval") == 1
    assert "| 75.0 |" in text and "| 25.0 |" in text and "| 50.0 |" not in text
    assert len(ModelCard.load(folder / "README.md").data.eval_results) == 3


def test_each_setting_has_files_of_its_own(folder):
    add(folder, "POPE", 0.5)
    add(folder, "POPE", 0.75, dtype="float16", draw_latents=0, latent_grid_size=[2, 4])
    assert read_entries(folder).keys() == {
        "pope.yaml",
        "pope.float32-latents-4.yaml",
        "pope.float16-latents-drawn-0.yaml",
    }


def test_other_weights_replace_the_rows_of_the_old_ones(folder):
    add(folder, "RWQA", 0.25)
    text = add(folder, "POPE", 0.75, weights="other")
    assert "| 25.0 |" not in text
    assert read_entries(folder).keys() == {"pope.yaml", "pope.float32-latents-4.yaml"}


def test_card_that_is_written_again_keeps_what_was_measured(folder):
    add(folder, "POPE", 0.75)
    text = write_card(folder, name="Another title", results=[AUTHORS]).read_text(encoding="utf-8")
    assert "# Another title" in text
    assert "| 75.0 |" in text


def test_card_is_written_where_there_is_none(folder):
    (folder / "README.md").unlink()
    assert "| 75.0 |" in add(folder, "POPE", 0.75)


def test_part_of_the_questions_is_no_result_for_a_card(folder):
    with pytest.raises(ValueError, match="no column of the paper's table has a value of all of its questions"):
        add_to_card(folder, measure("POPE", 0.5, num_all=9001), {"settings": SETTINGS, "harness": "0.7.3"})
