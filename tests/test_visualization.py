"""Where the interaction layers look: that the weights are those the model used, and that the figure shows them."""

import copy
import io
import sys
import threading
from itertools import product

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import BitsAndBytesConfig

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, context_windows
from fusion_vlm.training.lora import lora_config
from fusion_vlm.visualization import interaction_attention, tile_windows, visualize

from .conftest import make_messages, process
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
    """What goes into the attention of each interaction layer as values, and what comes out of it."""
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


# Figure -------------------------------------------------------------------------------------------------------------


def test_figure_shows_questions_answers_and_attention(model, processor, tmp_path):
    """A panel for each question, with the answer that it gets when asked alone."""
    image = random_image(0)
    answers, figure = visualize(model, processor, image, QUESTIONS, tmp_path / "new" / "a.png", max_new_tokens=6)
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


def test_colours_mean_the_same_in_every_figure(model, processor):
    """None where a latent looks evenly, blue below, red above."""
    for questions in (QUESTIONS, "What is it?"):
        _, figure = visualize(model, processor, random_image(0), questions, max_new_tokens=1)
        for axis in figure.axes[1:-1]:
            below, even, above, most = axis.images[1].to_rgba(np.array([0.5, 1.0, 2.0, 9.0]))
            assert even[3] < 0.01
            assert below[2] > below[0] and 0 < below[3] < 1
            assert above[0] > above[2] and 0 < above[3] < most[3]


@pytest.mark.parametrize("num_questions", [1, 4, 8])
def test_any_number_of_questions_and_long_ones(num_questions, model, processor):
    """No text leaves the figure, or meets that of the panel beside it."""
    questions = [QUESTIONS[2]] * num_questions if num_questions > 1 else "Why? " * 40
    answers, figure = visualize(model, processor, random_image(0), questions, max_new_tokens=12)
    assert len(answers) == num_questions
    figure.savefig(io.BytesIO())  # lays it out
    texts = [text for axis in figure.axes[: num_questions + 1] for text in (axis.title, axis.xaxis.label)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_latent_grid_of_the_call(model, processor):
    _, figure = visualize(model, processor, random_image(0), "What is it?", latent_grid_size=3, max_new_tokens=1)
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
        _, figure = visualize(model, processor, image, "What is it?", max_new_tokens=1)
        assert (np.asarray(figure.axes[0].images[0].get_array()) == expected).all()
    _, figure = visualize(model, processor, tmp_path / "turned.jpg", "What is it?", max_new_tokens=1)
    assert figure.axes[0].images[0].get_array().shape == (50, 40, 3)
    assert figure.axes[1].images[1].get_extent() == [0, 40, 50, 0]


def test_clear_errors(model, processor, monkeypatch):
    with pytest.raises(ValueError, match="`image` is None"):
        visualize(model, processor, None, "What is it?")
    with pytest.raises(ValueError, match="`questions` is empty"):
        visualize(model, processor, random_image(0), [])
    with pytest.raises(ValueError, match="Cannot read an image from 'nowhere.png'"):
        visualize(model, processor, "nowhere.png", "What is it?")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"fusion-vlm\[train\]"):
        visualize(model, processor, random_image(0), "What is it?")


def test_figure_of_a_model_with_an_adapter(model, processor, tmp_path):
    adapted = get_peft_model(copy.deepcopy(model), lora_config(model)).eval()
    expected, _ = visualize(model, processor, random_image(0), QUESTIONS, max_new_tokens=4)
    answers, _ = visualize(adapted, processor, random_image(0), QUESTIONS, tmp_path / "a.png", max_new_tokens=4)
    assert answers == expected
