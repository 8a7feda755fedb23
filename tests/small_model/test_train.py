"""The making of the small trained model (`train.py`, `data.py` and `tower.py` of `small_model`)."""

import json
import random
import re
import shutil
import sys
from collections import Counter

import easy_vqa
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, SiglipVisionConfig

from fusion_vlm.modeling_fusion import FusionVisionModel
from fusion_vlm.small_model import data, tower, train
from fusion_vlm.small_model.grammar.exact import make_scene_sample
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import (
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    find_direction,
    plural,
)


def test_each_pass_asks_every_question_and_as_much_about_what_is_there_as_about_what_is_not(tmp_path):
    data.make_easy_vqa(tmp_path, num_passes=2, max_turns=3)
    asked = Counter()
    for row in json.loads((tmp_path / "train.json").read_text()):
        turns = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        assert len(turns) <= 6
        asked.update(zip([row["image"]] * len(turns), turns[::2], turns[1::2]))  # noqa: B905
    texts, answers, images = easy_vqa.get_train_questions()
    truth = Counter((f"{image}.png", text, answer) for text, answer, image in zip(texts, answers, images, strict=True))
    assert all(asked[row] >= 2 * count for row, count in truth.items())
    known = {f"{image}.png": set(looks) for image, *looks in data.known_objects()}
    about = Counter()
    for (image, text, answer), count in asked.items():
        if image in known and answer in ("yes", "no"):
            words = set(text.rstrip("?").split())
            is_there = bool(words & known[image])
            assert (answer == "yes") == (is_there != bool(words & {"not", "no"})), (image, text, answer)
            kind = "shape" if words & data.EASY_VQA_SHAPES else "colour"
            about[kind, is_there] += count
    for kind in ("shape", "colour"):
        assert about[kind, True] / (about[kind, True] + about[kind, False]) == pytest.approx(0.5, abs=0.05), kind


def test_captions_of_easy_vqa_say_what_its_answers_say():
    answers = {}
    for _, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
        answers.setdefault(f"{image}.png", set()).add(answer)
    captions = list(data.caption_easy_vqa())
    assert len(captions) > 4000
    for row in captions:
        colour, shape = row["conversations"][1]["value"].removesuffix(".").split()[-2:]
        said = answers[row["image"]]
        assert colour in said or not said & data.EASY_VQA_COLOURS
        assert shape in said or not said & data.EASY_VQA_SHAPES


def test_rows_about_objects_are_true_of_their_scene():
    """Compare each sentence and each short answer with the places and looks in the scene."""
    told = Counter()
    for index in range(60):
        scene = Scene.from_dict(make_scene_sample(index, "caption_colour", 5).scenes[0])
        if len(scene.objects) < 2:
            continue
        things = {name: thing for thing in scene.objects for name in (thing.shape, f"{thing.colour} object")}
        for name, tell in data.TELLERS["objects"].items():
            turns = tell(random.Random(index), scene)
            if name == "questions":
                for question, answer in turns:
                    told[check_answer(question, answer, things)] += 1
                continue
            for _, answer in turns:
                parts = answer.removesuffix(".").lower().split(", ")
                assert name == "directions" or len(parts) == len(scene.objects)
                for part in parts:
                    told[check_part(part, things)] += 1
    kinds = ("colour", "place", "content", "direction", "asked place", "asked content", "shape")
    assert all(told[kind] > 20 for kind in kinds), told


def test_numbers_and_contents_are_those_of_scenes_with_like_objects():
    for index in range(40):
        scene = Scene.from_dict(make_scene_sample(index, "short_conversation", 5).scenes[0])
        for question, answer in data.tell_numbers(random.Random(index), scene):
            name = "shape" if "shape" in question else "colour"
            told = dict(part.split(": ") for part in answer.removesuffix(".").lower().split(", "))
            assert {key: int(number) for key, number in told.items()} == Counter(
                getattr(thing, name) for thing in scene.objects
            )
        asked = data.ask_numbers(random.Random(index), scene)
        for question, answer in asked:
            (group,) = [
                {name: value}
                for name, values in (("shape", SHAPES), ("colour", COLOURS))
                for value in values
                if re.search(rf"\b({plural(value)}|{value} objects)\b", question)
            ]
            assert int(answer) == len(scene.members(group))
        assert 3 <= len(asked) <= 6 and "0" in dict(asked).values()
        ((_, answer),) = data.tell_contents(random.Random(index), scene)
        parts = answer.removesuffix(".").lower().split(", ")
        assert sorted(parts) == sorted(f"{data.name_place(thing)}: {thing.name}" for thing in scene.objects)


def check_part(part: str, things: dict[str, SceneObject]) -> str:
    found = re.fullmatch(r"from the (\w+ object) the (\w+) is (\w+)", part)
    if found is not None:
        reference, subject, said = found.groups()
        assert find_direction(things[subject], things[reference]) == said
        return "direction"
    found = re.fullmatch(r"the (\w+) is (\w+)", part)
    if found is not None:
        subject, said = found.groups()
        assert things[subject].colour == said
        return "colour"
    subject, said = part.split(": ")
    if said in {thing.name for thing in things.values()}:
        assert things[said.split()[1]].position.endswith(f" the {subject}")
        return "content"
    thing = things[subject if subject in things else f"{subject} object"]
    assert re.fullmatch(rf"(in|at|on) the {said}", thing.position)
    return "place"


def check_answer(question: str, answer: str, things: dict[str, SceneObject]) -> str:
    content = re.fullmatch(r"What (?:is|can you see) ((?:in|at|on) .*)\?", question.partition("\n")[0])
    if content is not None:
        thing = things[answer.split()[1]]
        assert (thing.name, thing.position) == (answer, content.group(1))
        return "asked content"
    named = [name for name in things if re.search(rf"\bthe {name}\b", question)]
    if "left, right" in question:
        first, second = sorted(named, key=lambda name: name.endswith("object"))
        assert find_direction(things[first], things[second]) == answer
        return "direction"
    (thing,) = [things[name] for name in named]
    if question.startswith("Where"):
        assert re.fullmatch(rf"(in|at|on) the {answer}", thing.position)
        return "asked place"
    assert answer in (thing.colour, thing.shape)
    return "colour" if answer == thing.colour else "shape"


def test_rows_about_objects_are_of_the_scenes_that_were_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SCENES", (("objects", 14, 12, ("caption_colour",)),))
    data.make_scenes(tmp_path)
    data.tell_objects(tmp_path / "objects")
    rows = json.loads((tmp_path / "objects" / "colours.json").read_text())
    assert len(rows) > 5
    for row in rows:
        pixels = np.asarray(Image.open(tmp_path / "objects" / "images" / row["image"]).convert("RGB"))
        for colour in re.findall(r" is (\w+)", row["conversations"][1]["value"]):
            assert (pixels == COLOURS[colour]).all(axis=2).sum() > 30


def test_tokenizer_writes_anything_and_uses_no_id_0_for_text():
    tokenizer = train.make_tokenizer(["How many red circles can you see?", "3"] * 10)
    text = "How many r\u00e9d 42 circles?\n\t\u4f60\u597d!"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert 0 not in ids and tokenizer.pad_token_id == 0


def test_patch_labels_are_where_the_object_is():
    scene = Scene("white", [SceneObject("square", "red", "large", 0.3, 0.7)])
    labels = tower.label_scene(scene, 16)
    pixels = np.asarray(draw_scene(scene, 128))
    centres = pixels[4::8, 4::8]  # of the patches
    is_red = (centres == COLOURS["red"]).all(axis=2)
    assert is_red.sum() > 4
    names = [classes[index] for classes, index in zip(tower.CLASSES.values(), labels[is_red][0], strict=True)]
    assert names == ["square", "red"]
    # Labels cover the box around the object. The square leaves a margin of at most a patch in it.
    assert (labels[is_red] > 0).all()
    rows, columns = np.nonzero(labels[..., 0])
    red_rows, red_columns = np.nonzero(is_red)
    assert np.ptp(rows) <= np.ptp(red_rows) + 1 and np.ptp(columns) <= np.ptp(red_columns) + 1


def test_crops_follow_the_order_of_the_processor():
    array = np.arange(16).reshape(4, 4, 1)
    quarters = tower._quarters(array)[..., 0]
    assert quarters.tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]]]


def test_input_layer_begins_by_whitening_patches():
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    model = FusionVisionModel(config)
    rng = random.Random(0)
    images = torch.stack([torch.rand(3, 32, 32) * rng.random() for _ in range(200)])
    tower.initialize(model, images)
    outputs = model.embeddings.patch_embedding(images).flatten(2).transpose(1, 2).flatten(0, 1)
    covariance = torch.cov(outputs.T)
    assert outputs.mean(dim=0).abs().max() < 1e-3
    assert (covariance - torch.eye(64)).abs().max() < 0.1


def test_shipped_card_is_the_one_that_is_written_today(tmp_path):
    """Compare the card with one that is written from the code and the weights in this repository."""
    folder = tmp_path / "tiny"
    shutil.copytree(train.ROOT / "model", folder)
    train.write_small_model_card(folder)
    for name in ("README.md", "requirements.txt"):
        assert (folder / name).read_text() == (train.ROOT / "model" / name).read_text(), name


@pytest.mark.slow
def test_whole_way_in_miniature_and_again(tmp_path, monkeypatch):
    """Run all stages with two optimizer steps each. A second run only exports."""
    monkeypatch.setattr(data, "SCENES", tuple((name, seed, 36, kinds) for name, seed, _, kinds in data.SCENES))
    monkeypatch.setattr(train, "TOWER_STEPS", 2)
    work, output = tmp_path / "work", tmp_path / "tiny"
    for recipe in train.RECIPES.glob("*.yaml"):
        (tmp_path / recipe.name).write_text(recipe.read_text().replace("sampling_strategy: random:", "# "))
    (tmp_path / "chat_template.jinja").write_text((train.RECIPES / "chat_template.jinja").read_text())
    monkeypatch.setattr(train, "RECIPES", tmp_path)
    command = ["train.py", "--work-dir", str(work), "--output-dir", str(output), "training.max_steps=2"]
    command.append("training.logging_steps=1")
    monkeypatch.setattr(sys, "argv", command)
    output.mkdir()
    (output / "results.json").write_text("{}")
    train.main()
    assert not (output / "results.json").exists()  # measured on other weights
    states = {path: path.stat().st_mtime_ns for path in work.rglob("trainer_state.json")}
    assert len(states) == 6  # one of each stage, and one of its checkpoint
    model = AutoModelForImageTextToText.from_pretrained(output, trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    assert {"README.md", "curves.png", "handler.py", "processor_config.json"} <= {
        path.name for path in output.iterdir()
    }
    train.main()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("trainer_state.json")} == states
