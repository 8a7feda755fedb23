"""`rows.messages` and `rows.forms`: one form for rows of every form, made once."""

import re
import subprocess
import sys

import pytest

import fusion_vlm
from fusion_vlm.rows import messages as module
from fusion_vlm.rows.forms import read_dialogue
from fusion_vlm.rows.messages import Messages, to_messages
from fusion_vlm.training.collator import FusionDataCollator

from ..helpers import ROOT
from ..tiny import random_image


ROW = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}],
}


@pytest.fixture
def folder(tmp_path):
    random_image(0).save(tmp_path / "a.png")
    return tmp_path


def test_a_row_is_normalized_once(folder, processor, monkeypatch):
    """Data set, table and collator each call `to_messages`; only the first call has to check the row."""
    calls = []
    normalize = module.normalize_messages
    monkeypatch.setattr(module, "normalize_messages", lambda messages: calls.append(1) or normalize(messages))
    row = {"messages": to_messages(ROW, folder, load_images=False)}
    assert isinstance(row["messages"], Messages) and len(calls) == 1
    collator = FusionDataCollator(processor, latent_grid_sizes=[2], image_folder=folder)
    inputs = collator([row])
    assert len(calls) == 1
    assert (inputs["input_ids"] == collator([ROW])["input_ids"]).all() and len(calls) == 2


def test_opened_images_are_not_kept_in_the_row(folder):
    """A table of many images would fill the memory."""
    messages = to_messages(ROW, folder, load_images=False)
    opened = to_messages({"messages": messages}, folder)
    assert opened[0]["content"][0]["image"].size == random_image(0).size
    assert messages[0]["content"][0]["image"] == "a.png"


def test_texts_are_read_of_every_form(folder):
    messages = to_messages(ROW, folder)
    for row in (ROW, {"messages": messages}, {"messages": [*messages, {"role": "tool"}, "no turn"]}):
        assert [(role, text) for role, text, _ in read_dialogue(row)] == [
            ("user", "What is it?"),
            ("assistant", "A ball."),
        ]
    assert read_dialogue({"id": 1}) == read_dialogue("text") == read_dialogue({"messages": 3}) == []


def test_the_former_module_warns_and_works(folder):
    sys.modules.pop("fusion_vlm.training.messages", None)
    with pytest.warns(FutureWarning, match="moved to `fusion_vlm.rows.messages`"):
        from fusion_vlm.training.messages import to_messages as former
    assert former is fusion_vlm.to_messages is to_messages


def test_rows_know_no_room_and_forms_no_torch():
    """Training, audit and captions meet here; an audit starts at once."""
    for path in (ROOT / "rows").glob("*.py"):
        imported = re.findall(r"from fusion_vlm\.(\w+)", path.read_text())
        assert set(imported) <= {"rows", "processing_fusion"}, path
    modules = "fusion_vlm.rows.readers, fusion_vlm.audit.audit"
    code = f"import sys, {modules}; print({{'torch', 'datasets'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
