"""What tells one model from another."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from fusion_vlm.evaluation.identity import identify_model

from ..helpers import SMALL_MODEL


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SMALL_MODEL, tmp_path / "model")


def test_copy_of_a_folder_is_the_same_model(folder):
    assert identify_model(folder) == identify_model(SMALL_MODEL)


def test_one_changed_weight_is_another_model(folder):
    """Headers and sizes stay the same, as between two trainings of one model."""
    before, path = identify_model(folder), folder / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1
    size = path.stat().st_size
    save_file(tensors, path, {"format": "pt"})
    assert path.stat().st_size == size and identify_model(folder) != before


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json", "tokenizer.json", "generation_config.json"])
def test_changed_template_config_or_tokenizer_is_another_model(name, folder):
    before = identify_model(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    assert identify_model(folder) != before


def test_card_and_figures_are_not_part_of_the_model(folder):
    before = identify_model(folder)
    (folder / "README.md").write_text("written by --write-card")
    (folder / "results.json").unlink()
    assert identify_model(folder) == before


def test_code_counts_where_it_runs(folder):
    before, plain = identify_model(folder, with_code=True), identify_model(folder)
    (folder / "modeling_fusion.py").unlink()
    (folder / "modeling_fusion.py").write_text("# another")
    assert identify_model(folder, with_code=True) != before and identify_model(folder) == plain


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="There are no weights in .*expected safetensors"):
        identify_model(folder)
    with pytest.raises(ValueError, match="neither a folder nor a repository in the cache"):
        identify_model("nobody/nothing")
