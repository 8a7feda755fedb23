"""The image score, CLIP, and scorers that are not available."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from fusion_vlm.synthesis.filters.images import (
    CROP_SIZE,
    ImageFilter,
    StatementFilter,
    structural_similarity,
    structural_similarity_after_resize,
    to_statement,
)
from fusion_vlm.synthesis.models.clip import ClipScorer
from fusion_vlm.synthesis.sample import Sample, Turn


def make_sample(*turns: Turn, **fields) -> Sample:
    return Sample(id="a", kind="short_conversation", seed=0, turns=list(turns), **fields)


def make_image(width: int, height: int, number: int) -> Image.Image:
    """Make a picture from integers alone: a gradient with a pattern over it."""
    rows, columns = np.mgrid[:height, :width]
    pixels = (rows * 3 + columns * 2 + number * ((rows * columns + number * rows) % 97)) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def test_ssim_of_an_image_with_itself_is_one():
    image = make_image(40, 30, 3)
    assert structural_similarity(image, image) == 1
    assert structural_similarity_after_resize(make_image(384, 384, 0).resize((32, 32)), crop_size=16) < 2


def test_ssim_has_the_window_and_the_variances_of_the_paper():
    """Compare with values of an implementation of the equations of Wang et al. 2004."""
    for size, expected_other, expected_coarse in [
        ((40, 30), -0.031406280, 0.941071132),
        ((64, 48), -0.190533275, 0.958619414),
        ((11, 11), 0.734684495, 0.841512530),
    ]:
        image, other = make_image(*size, 1), make_image(*size, 2)
        coarse = image.point(lambda value: value // 32 * 32)
        assert structural_similarity(image, other) == pytest.approx(expected_other, abs=1e-7)
        assert structural_similarity(image, coarse) == pytest.approx(expected_coarse, abs=1e-7)
    with pytest.raises(ValueError, match="expected equal and 11 or more"):
        structural_similarity(make_image(40, 30, 1), make_image(30, 40, 1))
    with pytest.raises(ValueError, match="expected equal and 11 or more"):
        structural_similarity(make_image(10, 30, 1), make_image(10, 30, 1))


def test_ssim_a_is_the_whole_and_a_quarter_of_each_quadrant():
    image = make_image(60, 44, 2)

    def left_of(part):
        return structural_similarity(part, part.resize((24, 24), 3).resize(part.size, 3))

    boxes = [(0, 0, 30, 22), (30, 0, 60, 22), (0, 22, 30, 44), (30, 22, 60, 44)]
    expected = left_of(image) + 0.25 * sum(left_of(image.crop(box)) for box in boxes)
    assert structural_similarity_after_resize(image, crop_size=24) == pytest.approx(expected, abs=1e-12)
    assert structural_similarity_after_resize(Image.new("RGB", (60, 44), "red"), crop_size=24) == pytest.approx(2)
    with pytest.raises(ValueError, match="60 x 21 pixels, expected 22"):
        structural_similarity_after_resize(make_image(60, 21, 1), crop_size=24)


def test_ssim_a_falls_with_detail_that_the_tower_cannot_see():
    smooth = make_image(96, 96, 0)
    noisy = Image.effect_noise((96, 96), 90)
    assert structural_similarity_after_resize(noisy, 24) < 1 < structural_similarity_after_resize(smooth, 24)


def test_image_score_is_clip_score_plus_half_of_ssim_a():
    asked = []

    def clip_score(image, text):
        asked.append(text)
        return 0.3

    image = Image.new("RGB", (60, 60), "red")
    sample = make_sample(caption="short", description="long")
    assert ImageFilter(lambda _: image, clip_score, min_score=1.3 - 1e-9)(sample) is None
    assert sample.scores == pytest.approx({"clip_score": 0.3, "ssim_a": 2.0, "image_score": 1.3})
    reason = ImageFilter(lambda _: image, clip_score, min_score=1.31)(sample)
    assert reason == "image_score: 1.3, expected at least 1.31"
    ImageFilter(lambda _: image, clip_score)(make_sample(caption="short"))
    assert asked == ["long"] * 2 + ["short"]


def test_a_clip_score_that_is_not_there_is_recorded_and_bounds_nothing():
    sample = make_sample()
    image_filter = ImageFilter(lambda _: Image.new("RGB", (60, 60)), min_score=99.0)
    assert image_filter(sample) is None
    assert sample.scores["clip_score"] is None and sample.scores["image_score"] is None
    assert sample.scores["ssim_a"] == pytest.approx(2)
    assert sample.scores["ssim_a"] == structural_similarity_after_resize(Image.new("RGB", (60, 60)), CROP_SIZE)
    assert json.loads(json.dumps(sample.to_dict()))["scores"]["clip_score"] is None


def test_statements_are_scored_one_by_one_and_averaged():
    scores = {"Which colour? red": 0.2, "A red ball.": 0.4}
    turns = [
        Turn("Which colour?", "B", "multiple_choice", ["blue", "red"]),
        Turn("Describe the image.", "A red ball.", "caption"),
    ]
    sample = make_sample(*turns)
    statement_filter = StatementFilter(lambda _: None, lambda image, text: scores[text], min_score=0.31)
    assert statement_filter(sample) == "statement_score: 0.3, expected at least 0.31"
    assert sample.scores["statement_score"] == pytest.approx(0.3)
    assert StatementFilter(lambda _: None, min_score=0.31)(sample) is None
    assert sample.scores["statement_score"] is None
    assert to_statement(Turn("Which?", "Z", "multiple_choice", ["blue", "red"])) == "Which? Z"


def test_clip_scorer_is_the_cosine_of_a_clip_model(tmp_path):
    words = ["<s>", "</s>", "a", "red", "ball", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    size = {"height": 16, "width": 16}
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=dict(tiny, vocab_size=6, max_position_embeddings=8, bos_token_id=0, eos_token_id=1),
        vision_config=dict(tiny, image_size=16, patch_size=8),
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), fast).save_pretrained(tmp_path)

    scorer = ClipScorer(str(tmp_path))
    images = [Image.effect_noise((20, 20), sigma) for sigma in (20, 90)] + [Image.new("RGB", (20, 20), "red")]
    texts = ["a red ball", "blue", "ball " * 20]  # the last one is longer than the model reads
    scores = np.array([[scorer(image, text) for text in texts] for image in images])
    ids = [[0, 2, 3, 4, 1], [0, 5, 1], [0, 4, 4, 4, 4, 4, 4, 1]]
    pixel_values = scorer.processor(
        images=[image.convert("RGB") for image in images], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        outputs = [scorer.model(input_ids=torch.tensor([row]), pixel_values=pixel_values) for row in ids]
    cosines = torch.cat([output.image_embeds @ output.text_embeds.T for output in outputs], dim=1).numpy()
    assert (cosines < 0).any() and (cosines > 0).any()
    np.testing.assert_allclose(scores, np.maximum(cosines, 0), atol=1e-5)
