"""Exact samples of every kind: the same in every process, balanced, and of the right form."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.kinds.table import CAPTION_KINDS, KINDS, MODEL_KINDS
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.render import PillowRenderer, paste_sides
from fusion_vlm.synthesis.scenes.scene import Scene


NUM_TURNS = {"multiple_choice": (1, 3), "short_conversation": (2, 4), "long_conversation": (4, 6)}
NUM_TURNS |= {"contrast_short": (2, 2), "contrast_long": (3, 3), "reasoning": (1, 1), "text_qa": (2, 2)}
NUM_TURNS |= dict.fromkeys(set(KINDS) - set(MODEL_KINDS), (1, 5))  # pages


def make(index: int, kind: str, seed: int = 0) -> Sample:
    return ExactQuestions()(make_scene_sample(index, kind, seed))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make(index // len(KINDS), KINDS[index % len(KINDS)]) for index in range(420)]


# The same every time


def encode(index: int, kind: str, seed: int) -> tuple[str, bytes]:
    sample, stream = make(index, kind, seed), io.BytesIO()
    PillowRenderer(128)(sample).save(stream, "png")
    return json.dumps(sample.to_dict()), stream.getvalue()


def test_same_seed_same_bytes_and_other_seed_other_bytes():
    for kind in KINDS:
        expected = encode(3, kind, seed=7)
        encode(4, kind, seed=7)  # what is made in between does not matter
        assert encode(3, kind, seed=7) == expected
        others = [encode(3, kind, seed=8), encode(4, kind, seed=7)]
        assert all(other[0] != expected[0] and other[1] != expected[1] for other in others), kind


def test_samples_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "import hashlib, json\n"
        "from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample\n"
        "from fusion_vlm.synthesis.kinds.table import KINDS\n"
        "from fusion_vlm.synthesis.scenes.render import PillowRenderer\n"
        "made = hashlib.sha256()\n"
        "for index in range(6):\n"
        "    for kind in KINDS:\n"
        "        sample = ExactQuestions()(make_scene_sample(index, kind, 5))\n"
        "        made.update(json.dumps(sample.to_dict()).encode())\n"
        "        made.update(PillowRenderer(128)(sample).tobytes() if index == 0 else b'')\n"
        "print(made.hexdigest())\n"
    )
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) > 60


def test_questions_are_the_same_after_json():
    for kind in KINDS:
        sample = make_scene_sample(2, kind, 0)
        restored = Sample.from_dict(json.loads(json.dumps(sample.to_dict())))
        assert ExactQuestions()(restored) == ExactQuestions()(sample)


# Balance; the audit looks for more


def answers_of(samples: list[Sample], type: str) -> list[str]:
    return [turn.answer for sample in samples for turn in sample.turns if turn.type == type]


def test_yes_and_no_letters_and_counts_are_balanced(samples):
    yes_no = [answer.startswith("Yes") for answer in answers_of(samples, "yes_no")]
    assert len(yes_no) > 170 and 0.42 <= np.mean(yes_no) <= 0.58
    letters = Counter(answers_of(samples, "multiple_choice"))
    assert sorted(letters) == list("ABCD") and max(letters.values()) < 0.36 * letters.total()
    counts = Counter(answer for answer in answers_of(samples, "count") if answer.isdecimal())
    assert len(counts) >= 7 and max(counts.values()) < 0.35 * counts.total()


def test_number_of_all_objects_does_not_tell_that_of_the_group():
    numbers = defaultdict(Counter)
    for index in range(600):
        scene = Scene.from_dict(make_scene_sample(index, "short_conversation", 0).scenes[0])
        numbers[len(scene.objects)][len(scene.members(scene.groups[0]))] += 1
    assert sum(max(each.values()) for each in numbers.values()) / 600 <= 0.4


# Form


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_a_kind(samples, kind):
    fewest, most = NUM_TURNS.get(kind, (1, 1))
    for sample in [sample for sample in samples if sample.kind == kind]:
        assert sample.id == f"{kind}-{sample.source['index']:07}"
        assert sample.caption and sample.description and len(sample.scenes) == (2 if "contrast" in kind else 1)
        assert fewest <= len(sample.turns) <= most
        assert "<image>" not in "".join(turn.question + turn.answer for turn in sample.turns)
        for turn in sample.turns:
            assert turn.question and turn.answer and turn.type and "  " not in turn.question + turn.answer
            assert not re.search(r" [.?,]|colour|grey|centre|[{}|]", turn.question + turn.answer), turn
            assert (turn.type == "multiple_choice") == bool(turn.options)
            if turn.options:
                assert turn.answer in "ABCD" and len(set(turn.options)) == len(turn.options) == 4


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_answers_of_a_kind(samples, kind):
    for turn in [turn for sample in samples if sample.kind == kind for turn in sample.turns]:
        assert (turn.type == "multiple_choice") == (kind == "multiple_choice")
        assert (turn.type == "caption") == (kind in CAPTION_KINDS) or "long" in kind
        if "short" in kind:
            assert len(turn.answer.split()) <= 4
        elif kind not in ("multiple_choice", "text_qa"):
            assert turn.answer.endswith((".", '."')) and (turn.answer[0].isupper() or turn.answer[0] == '"'), turn


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="'captions', expected one of caption_colour"):
        make_scene_sample(0, "captions", 0)
    sample = Sample("a-1", "multiple_choice", 0, description="A dog.")
    with pytest.raises(ValueError, match="a-1 has no scene"):
        ExactQuestions()(sample)
    with pytest.raises(ValueError, match="a-1 has 0 scenes, expected one or two"):
        PillowRenderer()(sample)
    with pytest.raises(ValueError, match="40 pixels, expected at least 128"):
        PillowRenderer(40)


def test_sides_are_pasted_into_a_square():
    sides = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    pixels = np.asarray(paste_sides(*sides, 4, 100))
    assert pixels.shape == (100, 100, 3)
    assert tuple(pixels[50, 20]) == (255, 0, 0) and tuple(pixels[50, 80]) == (0, 0, 255)
