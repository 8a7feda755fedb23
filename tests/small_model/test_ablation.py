"""The parts of `small_model/ablation.py` that make its variants what their names say."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionVisionModel
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.small_model import ablation
from fusion_vlm.small_model.grammar.scene import COLOURS
from fusion_vlm.training.collator import FusionDataCollator

from ..helpers import SMALL_MODEL


pytestmark = pytest.mark.skipif(
    not SMALL_MODEL.exists(), reason="small_model/train.py has not written small_model/model yet"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("scenes")
    rng = random.Random(0)
    return [ablation.make_scene(rng, folder / f"{index}.png", list(ablation.TASKS))[1] for index in range(4)]


@pytest.fixture
def processor() -> FusionProcessor:
    processor = FusionProcessor.from_pretrained(SMALL_MODEL)
    ablation.set_up(processor)
    return processor


@pytest.fixture(scope="module")
def config() -> FusionConfig:
    return FusionConfig.from_pretrained(SMALL_MODEL)


def test_batches_of_the_whole_model_are_those_of_the_training_code(rows, processor, config):
    data = ablation.prepare(rows, processor)
    batch = ablation.Collator(ablation.VARIANTS["h4"], config)([data[index] for index in range(4)])
    processor.image_processor.image_grid_size = ablation.SIDE
    expected = FusionDataCollator(processor, latent_grid_sizes=[2])(rows)
    assert set(batch) == set(expected)
    for name, value in batch.items():
        torch.testing.assert_close(value, expected[name], msg=name, rtol=0, atol=1e-6)


def test_twin_has_no_latents_and_no_question_in_the_tower(rows, processor, config):
    data = ablation.prepare(rows, processor)
    batch = ablation.Collator(ablation.VARIANTS["a"], config)([data[index] for index in range(4)])
    assert set(batch) == {"input_ids", "labels", "attention_mask", "pixel_values"}
    text = processor.tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert "<latent>" not in text
    assert text.count("<image>") == ablation.SIDE**2
    assert text.count("<vision_start>") == text.count("<vision_end>") == 1
    question = rows[0]["conversations"][0]["value"].removeprefix("<image>\n")
    assert f"<vision_end>{question}<|end|>" in text


def test_variant_of_one_image_token_has_one_and_the_question_but_no_crops(rows, processor, config):
    data = ablation.prepare(rows, processor)
    batch = ablation.Collator(ablation.VARIANTS["b1"], config)([data[index] for index in range(4)])
    assert ((batch["input_ids"] == config.image_token_id).sum(dim=1) == 1).all()
    assert "question_input_ids" in batch and "high_res_pixel_values" not in batch


def test_paper_mask_hides_the_question_from_patches_of_early_layers_only():
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    tower = FusionVisionModel(config).eval()
    pixels, questions = torch.randn(1, 3, 32, 32), torch.randn(2, 1, 5, 32)

    def patches_after_layers() -> list[list[torch.Tensor]]:
        outputs = [tower(pixels, question, output_hidden_states=True).hidden_states for question in questions]
        return [[states[:, :16] for states in each] for each in outputs]

    first, second = patches_after_layers()
    assert not torch.allclose(
        first[1], second[1]
    )  # released models: patches attend to the question from the first layer on
    for layer in tower.encoder.layers:
        layer.self_attn.__class__ = ablation.PaperMaskAttention
    first, second = patches_after_layers()
    assert torch.equal(first[2], second[2])  # after both early layers
    assert not torch.allclose(first[3], second[3])


def test_answers_of_scenes_are_true_of_the_pixels(tmp_path):
    """Count the cells with much of a color, and find the pattern by rows and columns."""
    rng = random.Random(1)
    for index in range(20):
        row = ablation.make_scene(rng, tmp_path / f"{index}.png", ["pattern", "count"])[1]
        turns = [turn["value"] for turn in row["conversations"]]
        pixels = np.asarray(Image.open(row["image"]).convert("RGB")).astype(int)
        colour, pattern = turns[0].split()[-2], turns[1]
        inked, tinted = find_looks(COLOURS[colour], pixels)
        if pattern == "plain":
            assert tinted.sum() > 100
        else:
            rows, columns = np.nonzero(inked)
            parities = {"striped": columns, "barred": rows, "dotted": rows + columns}
            shares = {name: (values % 2).mean() for name, values in parities.items()}
            assert len(rows) > 50
            assert [name for name, share in shares.items() if share in (0, 1)] == [pattern]
        inked, tinted = find_looks(COLOURS[turns[2].split()[2]], pixels)
        assert count_cells(inked | tinted) == int(turns[3])


def find_looks(colour: tuple[int, int, int], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels have the color of a pattern, and which have that of a plain object."""
    plain = 255 - (255 - np.array(colour)) // 2
    return (pixels == 2 * plain - 255).all(axis=2), (pixels == plain).all(axis=2)


def count_cells(mask: np.ndarray) -> int:
    """Count the cells of the 3 x 3 grid with much of the mask: only a rim of an object leaves its cell."""
    third = len(mask) // 3
    cells = [mask[row : row + third, column : column + third] for row in range(0, 3 * third, third)
             for column in range(0, 3 * third, third)]  # fmt: skip
    return sum(cell.sum() > 20 for cell in cells)


def test_base_images_do_not_depend_on_patterns(processor):
    """Compare base images and crops: without the crops, a model must not be able to tell patterns apart."""
    objects = ablation.place_objects(random.Random(0), ["red", "blue", "black", "red"])
    images = [ablation.draw_objects([(thing, name) for thing, _ in objects]) for name in ablation.PATTERNS]
    batch = processor.image_processor(images, return_tensors="pt")
    base, crops = batch["pixel_values"], batch["high_res_pixel_values"]
    for index in range(1, len(images)):
        assert torch.equal(base[index], base[0])
        assert not torch.equal(crops[index], crops[0])
