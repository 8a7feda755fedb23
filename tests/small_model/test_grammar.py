"""The grammar of the small model's training data is pinned: draws, sentences, pixels and files."""

import hashlib
import json

import pytest

from fusion_vlm.small_model.grammar.exact import ExactQuestions, make_scene_sample
from fusion_vlm.small_model.grammar.render import PillowRenderer
from fusion_vlm.small_model.grammar.table import KINDS
from fusion_vlm.small_model.grammar.write import write_samples


# Recorded from commit 63bafb0, where the data engine itself had this grammar.
TEXTS = {
    "caption_colour": "74f896166448f79a",
    "caption_count": "07b43415ed6555f1",
    "caption_spatial": "2920d1766b10de6a",
    "caption_scene": "7247131adccf8d52",
    "caption_text": "90869cb5f346e750",
    "multiple_choice": "4e82add526ad92b3",
    "short_conversation": "2a879edcc7739761",
    "long_conversation": "840e05fb23f3e453",
    "contrast_short": "8c3427814e8d2032",
    "contrast_long": "eaade96b218fb07b",
    "reasoning": "a4aa4f8820c9b1e3",
    "text_qa": "06ee8f5f012487b0",
}
PIXELS = "9d9fed8b8acbe64d"


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_that_the_small_model_was_trained_on(kind):
    made = hashlib.sha256()
    for index in range(25):
        made.update(json.dumps(ExactQuestions()(make_scene_sample(index, kind, 11)).to_dict()).encode())
    assert made.hexdigest()[:16] == TEXTS[kind]


def test_pixels_are_those_that_the_small_model_was_trained_on():
    made = hashlib.sha256()
    for kind in KINDS:
        for index in range(3):
            made.update(PillowRenderer(144)(make_scene_sample(index, kind, 11)).tobytes())
    assert made.hexdigest()[:16] == PIXELS


def test_files_are_the_same_after_a_kill(tmp_path):
    kinds = ("multiple_choice", "contrast_short")
    for name in ("whole", "killed"):
        write_samples(tmp_path / name, 8, 5, kinds, 128)
    rows = (tmp_path / "whole" / "train.json").read_text()
    assert [row["id"] for row in json.loads(rows)] == [f"{kind}-{n:07}" for n in range(4) for kind in kinds]
    (tmp_path / "killed" / "train.json").unlink()
    (tmp_path / "killed" / "images" / "contrast_short-0000002.png").write_bytes(b"cut")
    write_samples(tmp_path / "killed", 8, 5, kinds, 128)
    for path in [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]:
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
