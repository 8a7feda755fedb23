"""
Where the model looked: attention weights, drops by occlusion, and the figures that show them.

The weights are those that the model used, and the drops equal those of a direct computation.
"""

import copy
import io
import sys
import threading
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from PIL import Image
from transformers import BitsAndBytesConfig

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, context_windows
from fusion_vlm.training.lora import lora_config
from fusion_vlm.visualization import (
    answer_occlusion,
    blur,
    interaction_attention,
    join_crops,
    split_answers,
    split_crops,
    tile_windows,
    visualize,
)

from .helpers import SMALL_MODEL, make_messages, process
from .tiny import TEXT_CONFIGS, random_image, tiny_config, tiny_model


QUESTIONS = [
    "What is it?",
    "How much is it, $5 {or $6}?",
    "Which of the many things in this picture is the reddest one?",
]


@pytest.fixture
def inputs(processor, conversations):
    """Four questions of three prompts: with and without an image, one of two turns."""
    return process(processor, conversations)


def used_values_and_outputs(model, inputs) -> list[list[torch.Tensor]]:
    """Record the values and the outputs of the attention in each interaction layer."""
    calls, handles = {"v_proj": [], "o_proj": []}, []
    for name, module in model.named_modules():
        part = name.rpartition(".")[2]
        if "interaction_layers" in name and part in calls:
            keep = (lambda _, args, output: calls["v_proj"].append(output)) if part == "v_proj" else None
            keep = keep or (lambda _, args, output: calls["o_proj"].append(args[0]))
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return list(zip(calls["v_proj"], calls["o_proj"], strict=True))


def assert_weights_are_those_used(model, inputs, map_indices: list[int], tolerance: float):
    attention = interaction_attention(model, inputs)
    num_questions, num_layers, num_heads, num_cells, _ = attention.shape
    grid_size, window_size = num_cells // 3, 3
    for layer, (values, output) in enumerate(used_values_and_outputs(model, inputs)):
        values = values.float().view(len(values), grid_size**2, window_size**2, num_heads, -1)
        output = output.float().view(num_questions, grid_size**2, num_heads, -1)
        for row, column in product(range(grid_size), repeat=2):
            latent = row * grid_size + column
            top, left = row * window_size, column * window_size
            weights = attention[:, layer, :, top : top + window_size, left : left + window_size].flatten(2)
            expected = torch.einsum("qhw,qwhd->qhd", weights, values[map_indices, latent])
            torch.testing.assert_close(output[:, latent], expected, rtol=tolerance, atol=tolerance)
    assert layer == num_layers - 1


def load_in_4_bits(folder):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return FusionForConditionalGeneration.from_pretrained(folder, quantization_config=config).eval()


# Attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", TEXT_CONFIGS)
def test_weights_are_those_that_the_layers_used(decoder, processor, inputs):
    """The questions of one conversation read one map, and each latent its own window of it."""
    model = tiny_model(processor, decoder)
    assert_weights_are_those_used(model, inputs, [0, 1, 1, 2], tolerance=1e-5)
    attention = interaction_attention(model, inputs)
    assert attention.shape == (4, 2, 4, 6, 6)
    assert attention.dtype == torch.float32
    assert attention.std() > 0.01, "not even"


def test_weights_of_one_map_for_many_questions(model, processor):
    image = random_image(0)
    inputs = process(processor, [make_messages([text], image) for text in QUESTIONS], latent_grid_size=3)
    expected = interaction_attention(model, inputs)
    assert expected.shape == (3, 2, 4, 9, 9)
    inputs["context_map"] = model.get_context_map(inputs.pop("high_res_pixel_values")[:1]).detach()
    assert_weights_are_those_used(model, inputs, [0, 0, 0], tolerance=1e-5)
    torch.testing.assert_close(interaction_attention(model, inputs), expected)


def test_weights_in_half_precision(model, inputs):
    assert_weights_are_those_used(copy.deepcopy(model).bfloat16(), inputs, [0, 1, 1, 2], tolerance=3e-2)


def test_weights_in_4_bits(wide_folder, inputs):
    model = load_in_4_bits(wide_folder)
    assert type(model.model.interaction_layers[0].q_proj).__name__ == "Linear4bit"
    assert_weights_are_those_used(model, inputs, [0, 1, 1, 2], tolerance=1e-5)


def test_weights_of_layers_that_peft_has_copied(model, inputs):
    """The copies run, not the layers that they were made of."""
    adapted = get_peft_model(copy.deepcopy(model), lora_config(model, connectors=True)).eval()
    torch.testing.assert_close(interaction_attention(adapted, inputs), interaction_attention(model, inputs))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name and name.endswith("q_proj.weight"):
                parameter.mul_(3)
    changed = interaction_attention(adapted, inputs)
    assert (changed[:, 0] - interaction_attention(model, inputs)[:, 0]).abs().max() > 0.01
    with adapted.disable_adapter():
        torch.testing.assert_close(interaction_attention(adapted, inputs), interaction_attention(model, inputs))


def test_weights_of_a_compiled_model(model, inputs):
    """What is compiled would not see the hooks, so it is not run."""

    def refuse(*_):
        raise AssertionError("the compiled model was called")

    compiled = torch.compile(copy.deepcopy(model), backend=refuse)
    torch.testing.assert_close(interaction_attention(compiled, inputs), interaction_attention(model, inputs))


def test_cells_are_where_the_windows_were_cut():
    context_map = torch.arange(36.0).view(1, 1, 6, 6)
    windows = context_windows(context_map, grid_size=2, window_size=3).view(1, 4, 9)
    assert torch.equal(tile_windows(windows), context_map[0])


def test_nothing_stays_on_the_model(model, inputs, processor):
    def num_hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    before = num_hooks()
    interaction_attention(model, inputs)
    assert num_hooks() == before
    with pytest.raises(ValueError, match="0 images"):
        interaction_attention(model, {**inputs, "pixel_values": None})
    assert num_hooks() == before


def test_another_thread_may_use_the_model(model, inputs, processor):
    """It runs with another image while this one is between its last interaction layer and its end."""
    expected = interaction_attention(model, inputs)
    others = process(processor, [make_messages(["And now?"], random_image(seed)) for seed in range(5)])
    lengths = []

    def use_model(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: lengths.append(len(model(**others).logits)))
            thread.start()
            thread.join()

    handle = model.model.language_model.norm.register_forward_hook(use_model)
    try:
        attention = interaction_attention(model, inputs)
    finally:
        handle.remove()
    assert lengths == [5]
    assert torch.equal(attention, expected)


def test_prompts_without_latents(model, processor):
    text = processor.apply_chat_template(make_messages(["Hello!"])).replace("<latent>", "")
    inputs = processor.tokenizer(text, return_tensors="pt")
    with pytest.raises(ValueError, match="no latent tokens.*chat template"):
        interaction_attention(model, inputs)


def test_models_without_interaction_layers(processor, inputs):
    config = tiny_config(processor)
    config.interaction_layer_indices = []
    with pytest.raises(ValueError, match="no interaction layers"):
        interaction_attention(FusionForConditionalGeneration(config), inputs)
    with pytest.raises(ValueError, match="Linear has no interaction layers"):
        interaction_attention(torch.nn.Linear(2, 2), inputs)


# Occlusion ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(processor):
    """Two questions of different lengths about one image, the second one in a second turn."""
    image = random_image(0)
    turns = [["What is it?"], ["How many?", "Three of them.", "Which of them is the reddest one?"]]
    return process(processor, [make_messages(each, image) for each in turns])


@pytest.fixture
def answer_ids(processor):
    return [processor.tokenizer(text, return_tensors="pt").input_ids[0] for text in ("A dog", "The third of them</s>")]


def direct_log_prob(model, inputs, row: int, answer: torch.Tensor, square: tuple[slice, slice] | None) -> float:
    """Blur a square of the 48 x 48 image and its place in the 24 x 24 one, and read the log probability off a loss."""
    image, large = inputs["pixel_values"][row].clone(), join_crops(inputs["high_res_pixel_values"][row : row + 1])[0]
    if square is not None:
        (rows, columns), (half_rows, half_columns) = square, [slice(s.start // 2, s.stop // 2) for s in square]
        image[:, half_rows, half_columns] = blur(image)[:, half_rows, half_columns]
        large[:, rows, columns] = blur(large)[:, rows, columns]
    crops = [large[:, top : top + 24, left : left + 24] for top in (0, 24) for left in (0, 24)]
    is_text = inputs["attention_mask"][row].bool()
    input_ids = torch.cat([inputs["input_ids"][row][is_text], answer])
    labels = input_ids.clone()
    labels[: -len(answer)] = -100
    with torch.no_grad():
        loss = model(
            input_ids=input_ids[None],
            labels=labels[None],
            pixel_values=image[None],
            high_res_pixel_values=torch.stack(crops)[None],
            question_input_ids=inputs["question_input_ids"][row : row + 1],
            question_attention_mask=inputs["question_attention_mask"][row : row + 1],
        ).language_loss
    return -loss.item() * len(answer)


@pytest.mark.parametrize("decoder", TEXT_CONFIGS)
def test_drop_is_what_a_direct_computation_gives(decoder, processor, prompts, answer_ids):
    """A cell at the border, whose square has no room on one side; cells whose squares lie in two and in four crops."""
    model = tiny_model(processor, decoder)
    log_probs, drops = answer_occlusion(model, prompts, answer_ids, grid_size=6)
    assert drops.shape == (2, 6, 6)
    squares = {(0, 1): (0, 12, 4, 20), (2, 0): (12, 28, 0, 12), (3, 3): (20, 36, 20, 36), (5, 5): (36, 48, 36, 48)}
    for row, answer in enumerate(answer_ids):
        expected = direct_log_prob(model, prompts, row, answer, None)
        assert log_probs[row].item() == pytest.approx(expected, abs=1e-4)
        for cell, (top, bottom, left, right) in squares.items():
            occluded = direct_log_prob(model, prompts, row, answer, (slice(top, bottom), slice(left, right)))
            assert drops[row][cell].item() == pytest.approx(expected - occluded, abs=1e-4)
            assert abs(expected - occluded) > 1e-3, "large enough to tell"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_does_not_change_the_map(batch_size, model, prompts, answer_ids):
    expected = answer_occlusion(model, prompts, answer_ids, grid_size=4)
    actual = answer_occlusion(model, prompts, answer_ids, grid_size=4, batch_size=batch_size)
    torch.testing.assert_close(actual.log_probs, expected.log_probs)
    torch.testing.assert_close(actual.drops, expected.drops, rtol=1e-3, atol=1e-4)


def test_only_changed_crops_are_encoded_and_once_for_all_questions(model, prompts, answer_ids):
    """Of a 4 x 4 grid 4 squares lie in one crop, 8 in two, 4 in four: 36 crops instead of 64 for each question."""
    num_crops = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: num_crops.append(0 if "question_states" in kwargs else len(args[0])),
        with_kwargs=True,
    )
    try:
        answer_occlusion(model, prompts, answer_ids, grid_size=4, batch_size=17)
    finally:
        handle.remove()
    assert sum(num_crops) == 4 + 36


def test_progress_counts_all_forwards(model, prompts, answer_ids):
    calls = []
    answer_occlusion(
        model, prompts, answer_ids, grid_size=2, batch_size=3, progress=lambda *numbers: calls.append(numbers)
    )
    assert calls == [(3, 10), (6, 10), (8, 10), (10, 10)]


def test_occlusion_in_half_precision_and_with_an_adapter(model, prompts, answer_ids):
    expected = answer_occlusion(model, prompts, answer_ids, grid_size=2)
    adapted = get_peft_model(copy.deepcopy(model), lora_config(model)).eval()
    torch.testing.assert_close(answer_occlusion(adapted, prompts, answer_ids, grid_size=2), expected)
    half = answer_occlusion(copy.deepcopy(model).bfloat16(), prompts, answer_ids, grid_size=2)
    torch.testing.assert_close(half.log_probs, expected.log_probs, rtol=0.02, atol=0.1)


def test_blur_keeps_the_mean_and_reads_no_pixel_beyond_the_border():
    spot = torch.zeros(3, 60, 60)
    spot[1, 30, 30] = 1
    blurred = blur(spot)
    assert blurred[[0, 2]].abs().max() == 0, "colors do not mix"
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    assert blurred[1, 30, 36] / blurred[1, 30, 30] == pytest.approx(np.exp(-0.5), abs=1e-3)  # a tenth of the side
    torch.testing.assert_close(blur(torch.full((3, 60, 60), 0.5)), torch.full((3, 60, 60), 0.5))


def test_crops_are_joined_as_they_were_split():
    images = torch.randn(2, 5, 8, 8)
    crops = split_crops(images)
    assert torch.equal(crops[1, 2], images[1, :, 4:, :4])
    assert torch.equal(join_crops(crops), images)


def test_answers_end_with_their_end_token():
    output_ids = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8], [3, 0, 0, 0]])
    assert [row.tolist() for row in split_answers(output_ids, [2, 3])] == [[5, 2], [5, 6, 7, 8], [3]]
    assert [len(row) for row in split_answers(output_ids, None)] == [4, 4, 4]


def bad_occlusions(prompts, answer_ids, other_image) -> Iterator[tuple[str, dict]]:
    """Yield what an error says, and the arguments that cause the error."""
    given = {"inputs": prompts, "answer_ids": answer_ids}
    yield r"`grid_size` is 0", {**given, "grid_size": 0}
    yield r"`batch_size` is -1", {**given, "batch_size": -1}
    yield r"1 answers for 2 prompts", {**given, "answer_ids": answer_ids[:1]}
    yield r"Answer 1 has shape \(0,\)", {**given, "answer_ids": [answer_ids[0], answer_ids[0][:0]]}
    yield r"no `high_res_pixel_values`", {**given, "inputs": {**prompts, "high_res_pixel_values": None}}
    yield r"Prompts 0 and 1 have different images", {**given, "inputs": {**prompts, "pixel_values": other_image}}
    without = {name: tensor.clone() for name, tensor in prompts.items()}
    without["input_ids"][1] = 1
    yield r"Prompt 1 has no image", {**given, "inputs": without}


def test_clear_errors_of_occlusion(model, prompts, answer_ids):
    other_image = prompts["pixel_values"] * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    for message, arguments in bad_occlusions(prompts, answer_ids, other_image):
        with pytest.raises(ValueError, match=message):
            answer_occlusion(model, **arguments)
    model = copy.deepcopy(model)
    model.config.question_end_token_ids = None
    with pytest.raises(ValueError, match="question_end_token_ids"):
        answer_occlusion(model, prompts, answer_ids)


# The small trained model, in scenes drawn anew -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def scores(import_script):
    """Return figures for ten scenes with two questions each; those for 50 are in docs/visualization.md."""
    benchmark = import_script("benchmarks/occlusion.py")
    cases = [*benchmark.read_examples(), *benchmark.draw_scenes(10)]
    return benchmark.measure(benchmark.Model(str(SMALL_MODEL)), cases, [6])


def test_maximum_lies_on_the_object_that_was_asked_for(scores):
    score = scores["occlusion 6 x 6"]
    assert len(score.hits) == 9 + 20
    assert np.mean(score.hits) >= 0.85
    assert np.mean(score.chances) < 0.15


def test_map_changes_with_the_question(scores):
    """Unlike that of attention."""
    assert np.mean(scores["occlusion 6 x 6"].correlations) < 0.3
    assert np.mean(scores["attention"].correlations) > 0.9


# Figure -------------------------------------------------------------------------------------------------------------


def test_figure_shows_questions_answers_and_attention(model, processor, tmp_path):
    """A panel for each question, with the answer that it gets when asked alone."""
    image = random_image(0)
    answers, figure = visualize(
        model, processor, image, QUESTIONS, tmp_path / "new" / "a.png", method="attention", max_new_tokens=6
    )
    first, *panels, colour_bar = figure.axes
    assert len(panels) == 3
    assert np.array_equal(first.images[0].get_array(), np.asarray(image))
    for question, answer, panel in zip(QUESTIONS, answers, panels, strict=True):
        inputs = process(processor, make_messages([question], image))
        output = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        assert answer == processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert panel.get_title().split() == question.split()
        assert panel.get_xlabel().split() == answer.split()
        heat = panel.images[1]
        assert heat.get_extent() == [0, image.width, image.height, 0], "all of the image"
        expected = interaction_attention(model, inputs)[0].mean(dim=(0, 1)) * 9
        np.testing.assert_allclose(heat.get_array(), expected, rtol=1e-4)
    with Image.open(tmp_path / "new" / "a.png") as png:
        assert png.format == "PNG"
        assert png.width > 2 * png.height


def test_figure_shows_what_the_answers_lose(model, processor):
    """Beside each answer is its probability, which `generate` gives too."""
    image = random_image(0)
    answers, figure = visualize(model, processor, image, QUESTIONS, grid_size=4, max_new_tokens=6)
    first, *panels, color_bar = figure.axes
    assert np.array_equal(first.images[0].get_array(), np.asarray(image))
    for question, answer, panel in zip(QUESTIONS, answers, panels, strict=True):
        inputs = process(processor, make_messages([question], image))
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
        )
        answer_ids = output.sequences[0, inputs["input_ids"].shape[1] :]
        log_probs = F.log_softmax(torch.cat(output.logits), dim=-1)
        log_prob = log_probs.gather(1, answer_ids.unsqueeze(1)).sum().item()
        expected = answer_occlusion(model, inputs, [answer_ids], grid_size=4)
        assert expected.log_probs.item() == pytest.approx(log_prob, abs=1e-4)
        share = f"{np.exp(log_prob):.0%}" if log_prob > np.log(0.01) else "< 1%"
        assert panel.get_xlabel().split() == f"{answer} ({share})".split()
        np.testing.assert_allclose(panel.images[1].get_array(), expected.drops[0], atol=1e-4)
    assert [label.get_text() for label in color_bar.get_yticklabels()] == ["100%", "50%", "10%", "1%"]


def test_colors_of_occlusion_mean_the_same_in_every_figure(model, processor):
    """Clear where nothing is lost, and ever stronger down to a hundredth of the probability."""
    for questions in (QUESTIONS, "What is it?"):
        _, figure = visualize(model, processor, random_image(0), questions, grid_size=2, max_new_tokens=1)
        for axis in figure.axes[1:-1]:
            gain, none, half, tenth, all_of_it = -np.log([2, 1, 0.5, 0.1, 1e-9])
            colors = axis.images[1].to_rgba(np.array([gain, none, half, tenth, all_of_it]))
            assert colors[0, 3] == colors[1, 3] == 0
            assert 0 < colors[2, 3] < colors[3, 3] < colors[4, 3] < 1
            assert colors[4, 0] > colors[4, 2]


def test_colors_of_attention_mean_the_same_in_every_figure(model, processor):
    """None where a latent looks evenly, blue below, red above."""
    for questions in (QUESTIONS, "What is it?"):
        _, figure = visualize(model, processor, random_image(0), questions, method="attention", max_new_tokens=1)
        for axis in figure.axes[1:-1]:
            below, even, above, most = axis.images[1].to_rgba(np.array([0.5, 1.0, 2.0, 9.0]))
            assert even[3] < 0.01
            assert below[2] > below[0] and 0 < below[3] < 1
            assert above[0] > above[2] and 0 < above[3] < most[3]


@pytest.mark.parametrize("num_questions", [1, 4, 8])
def test_any_number_of_questions_and_long_ones(num_questions, model, processor):
    """No text leaves the figure, or meets that of the panel beside it."""
    questions = [QUESTIONS[2]] * num_questions if num_questions > 1 else "Why? " * 40
    answers, figure = visualize(model, processor, random_image(0), questions, grid_size=1, max_new_tokens=12)
    assert len(answers) == num_questions
    figure.savefig(io.BytesIO())  # lays it out
    texts = [text for axis in figure.axes[: num_questions + 1] for text in (axis.title, axis.xaxis.label)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_latent_grid_of_the_call(model, processor):
    options = {"method": "attention", "latent_grid_size": 3, "max_new_tokens": 1}
    _, figure = visualize(model, processor, random_image(0), "What is it?", **options)
    assert figure.axes[1].images[1].get_array().shape == (9, 9)
    assert len(figure.axes[1].lines) == 4, "between three rows and three columns of windows"


def test_images_are_shown_as_the_model_reads_them(model, processor, tmp_path):
    """A file that is to be turned, a transparent one, one of 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(0).save(tmp_path / "turned.jpg", exif=exif)
    transparent = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((20, 20), 514, dtype=np.uint16))
    for image, expected in ((transparent, 255), (deep, 2)):
        _, figure = visualize(model, processor, image, "What is it?", grid_size=1, max_new_tokens=1)
        assert (np.asarray(figure.axes[0].images[0].get_array()) == expected).all()
    _, figure = visualize(model, processor, tmp_path / "turned.jpg", "What is it?", grid_size=1, max_new_tokens=1)
    assert figure.axes[0].images[0].get_array().shape == (50, 40, 3)
    assert figure.axes[1].images[1].get_extent() == [0, 40, 50, 0]


def test_clear_errors(model, processor, monkeypatch):
    with pytest.raises(ValueError, match="`image` is None"):
        visualize(model, processor, None, "What is it?")
    with pytest.raises(ValueError, match="`questions` is empty"):
        visualize(model, processor, random_image(0), [])
    with pytest.raises(ValueError, match="`method` is 'gradient', expected one of 'occlusion', 'attention'"):
        visualize(model, processor, random_image(0), "What is it?", method="gradient")
    with pytest.raises(ValueError, match="Cannot read an image from 'nowhere.png'"):
        visualize(model, processor, "nowhere.png", "What is it?")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"fusion-vlm\[train\]"):
        visualize(model, processor, random_image(0), "What is it?")


def test_figure_of_a_model_with_an_adapter(model, processor, tmp_path):
    adapted = get_peft_model(copy.deepcopy(model), lora_config(model)).eval()
    for method in ("occlusion", "attention"):
        options = {"method": method, "grid_size": 2, "max_new_tokens": 4}
        expected, _ = visualize(model, processor, random_image(0), QUESTIONS, **options)
        answers, _ = visualize(adapted, processor, random_image(0), QUESTIONS, tmp_path / "a.png", **options)
        assert answers == expected
