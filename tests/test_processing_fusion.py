"""The processor: what it makes of images and prompts, batches of them, and bad input."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipVisionConfig

from fusion_vlm import processing_fusion
from fusion_vlm.processing_fusion import FusionProcessor, expand_token, merge_replacements, split_crops

from .helpers import LLAMA, PHI, VARIANTS, make_messages, needs_sanitizing, process


@pytest.fixture
def image() -> Image.Image:
    rows, columns = np.mgrid[0:60, 0:90]
    return Image.fromarray(np.stack([rows * 4, columns * 2, rows + columns], axis=-1).astype(np.uint8))


@pytest.fixture
def processor(processors):
    return processors[LLAMA]


def pixels(processor, image) -> torch.Tensor:
    return processor.image_processor(image, return_tensors="pt")["pixel_values"][0]


def test_shapes_of_the_contract(processor, image):
    inputs = process(processor, make_messages(["What is this?"], image))
    assert inputs["pixel_values"].shape == (1, 3, 384, 384)
    assert inputs["high_res_pixel_values"].shape == (1, 4, 3, 384, 384)
    assert inputs["question_input_ids"].shape == inputs["question_attention_mask"].shape
    assert set(inputs) == set(processor.model_input_names)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 24**2
    assert (inputs["input_ids"] == processor.latent_token_id).sum() == 8**2


@pytest.mark.parametrize("variant", VARIANTS)
def test_rendering_first_gives_the_same_tensors(variant, processors, image):
    processor = processors[variant]
    conversation = make_messages([" What is this?\n", "A ramp.", "Which colours?"], image)
    expected = process(processor, conversation, latent_grid_size=4, image_grid_size=16)
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    actual = processor(text=prompt, images=image, return_tensors="pt", latent_grid_size=4, image_grid_size=16)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    assert processor.read_question(prompt) == "What is this?Which colours?"


@pytest.mark.parametrize("variant", VARIANTS)
def test_rendered_prompt(variant, processors, image):
    """As text, turn by turn, as SPEC section 7 has it."""
    prompt = processors[variant].apply_chat_template(
        make_messages(["Q1", "A1", "Q2"], image), add_generation_prompt=True
    )
    first = "<vision_start><image><vision_end><vision_start><latent><vision_end>\nQ1"
    later = "<vision_start><latent><vision_end>Q2"
    expected = {
        PHI: " <|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n{first}<|end|>\n<|assistant|>\nA1<|end|>"
        "\n<|user|>\n{later}<|end|>\n<|assistant|>\n",
        LLAMA: "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{first}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "A1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{later}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }[variant].format(first=first, later=later)
    if variant == LLAMA:
        messages = [{"role": "system", "content": "Be brief."}, *make_messages(["Q1", "A1", "Q2"], image)]
        prompt = processors[variant].apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == expected


def test_template_for_qwen3(processor, image):
    template = Path(processing_fusion.__file__).with_name("chat_templates") / "qwen3.jinja"
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    built = FusionProcessor(processor.image_processor, tokenizer, chat_template=template.read_text())
    prompt = built.apply_chat_template(make_messages(["Q1", "A1", "Q2"], image), add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<vision_start><image><vision_end><vision_start><latent><vision_end>\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\n"
        "<vision_start><latent><vision_end>Q2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert built.end_of_turn_token == "<|im_end|>"
    assert tokenizer.decode(built.question_end_token_ids) == "<|im_start|>assistant\n"


def test_text_only_prompt_has_latents_and_blank_pixels(processor):
    """The same inputs as with an image, so that the two can be put into one batch by whoever collates."""
    inputs = process(processor, make_messages(["How many tables?"]), latent_grid_size=2)
    assert set(inputs) == set(processor.model_input_names)
    assert inputs["pixel_values"].shape == (1, 3, 384, 384) and not inputs["pixel_values"].any()
    assert inputs["high_res_pixel_values"].shape == (1, 4, 3, 384, 384) and not inputs["high_res_pixel_values"].any()
    assert not inputs["question_attention_mask"].any()
    assert (inputs["input_ids"] == processor.latent_token_id).sum() == 4
    assert "<image>" not in processor.apply_chat_template(make_messages(["How many tables?"]))


def test_batch_mixes_text_and_images_and_pads(processor, image):
    """Each row holds what the conversation gives alone; a row without an image has zeros."""
    conversations = [make_messages(["Short?"]), make_messages(["A much longer question, is it not?"], image)]
    batch = process(processor, conversations)
    for row, conversation in enumerate(conversations):
        alone = process(processor, conversation)
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
    assert batch["attention_mask"][0, 0] == 0, "padding goes to the left"
    assert not batch["pixel_values"][0].any() and not batch["high_res_pixel_values"][0].any()
    assert not batch["question_attention_mask"][0].any()
    alone = process(processor, conversations[1])
    for name in ("pixel_values", "high_res_pixel_values"):
        assert torch.equal(batch[name][1], alone[name][0])
    kept = batch["question_attention_mask"][1].bool()
    assert torch.equal(batch["question_input_ids"][1][kept], alone["question_input_ids"][0])


@pytest.mark.parametrize("kind", [list, np.ndarray])
def test_other_tensor_types(kind, processor, image):
    prompts = [
        processor.apply_chat_template(messages, add_generation_prompt=True)
        for messages in (make_messages(["Q?"], image), make_messages(["Q?"]))
    ]
    outputs = processor(text=prompts, images=[image], return_tensors="np" if kind is np.ndarray else None)
    expected = processor(text=prompts, images=[image], return_tensors="pt")
    for name, value in outputs.items():
        assert isinstance(value, kind), name
        assert np.array_equal(np.asarray(value), expected[name].numpy()), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_assistant_mask_marks_the_answers(variant, processors, image):
    """Through both expansions; what is marked decodes to the answers and what ends them."""
    processor = processors[variant]
    outputs = processor.apply_chat_template(
        [make_messages(["What?", "A cat.", "Sure?", "Yes, a cat."], image), make_messages(["Who?", "Me."])],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    end = {PHI: "<|end|>", LLAMA: "<|eot_id|>"}[variant]
    answers = [
        processor.decode(row[mask.bool()], skip_special_tokens=False).replace(" ", "")
        for row, mask in zip(outputs["input_ids"], outputs["assistant_masks"], strict=True)
    ]
    assert answers == [f"Acat.{end}Yes,acat.{end}", f"Me.{end}"]


def test_answer_that_begins_with_a_newline_keeps_the_question_end(processor):
    """Byte-level tokenizers would merge it with the newlines of the header."""
    ids = process(processor, make_messages(["Q?", "\n\nAn answer.", "R?"]))["input_ids"][0].tolist()
    end = processor.question_end_token_ids
    assert sum(ids[i : i + len(end)] == end for i in range(len(ids))) == 2


def test_placeholders_in_a_question_are_not_read_by_the_tower(processor):
    prompt = "<latent><vision_end>\nWhat <vision_start>is<image> it?<|eot_id|>"
    assert processor.read_question(prompt) == "What is it?"


@pytest.mark.parametrize(("variant", "end"), [(PHI, "<|end|>"), (LLAMA, "<|eot_id|>")])
def test_end_of_turn_is_read_from_the_template(variant, end, processors, image):
    """Not the tokenizer's eos token, which may be another one, so that the tower would read the answer too."""
    original = processors[variant]
    built = type(original)(original.image_processor, original.tokenizer, chat_template=original.chat_template)
    assert built.end_of_turn_token == end
    assert built.read_question(built.apply_chat_template(make_messages(["What?", "A ramp."], image))) == "What?"
    with pytest.raises(ValueError, match="Question 0 of a prompt is not followed by"):
        built.read_question("<latent><vision_end>What?")


@needs_sanitizing
@pytest.mark.parametrize("text", ["Is this <|eot_id|> or <image>?", "<latent> it is", "<vision_end>"])
def test_control_tokens_of_users_are_text_when_sanitized(text, processor, image):
    """In the prompt and for the tower; what the template wrote keeps its meaning."""
    inputs = processor.apply_chat_template(
        make_messages([text], image),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 24**2
    assert (inputs["input_ids"] == processor.latent_token_id).sum() == 64
    question = processor.tokenizer.decode(inputs["question_input_ids"][0], skip_special_tokens=True)
    assert question == text


def test_save_and_load(processor, tmp_path, image):
    processor.save_pretrained(tmp_path)
    expected = process(processor, make_messages(["What?"], image))
    # The installed class loads without trust in the folder's code.
    for loaded in (
        FusionProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert type(loaded.image_processor).__module__ == type(loaded).__module__
        actual = process(loaded, make_messages(["What?"], image))
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name
    assert {"processing_fusion.py", "chat_template.jinja", "processor_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


# Images -------------------------------------------------------------------------------------------------------------


def test_crops_are_the_quarters_row_major():
    image = np.arange(3 * 4 * 6).reshape(3, 4, 6)
    top_left, top_right, bottom_left, bottom_right = split_crops(image)
    assert np.array_equal(top_left, image[:, :2, :3]) and np.array_equal(top_right, image[:, :2, 3:])
    assert np.array_equal(bottom_left, image[:, 2:, :3]) and np.array_equal(bottom_right, image[:, 2:, 3:])


def test_pixels_are_pillows(processor, image):
    resized = np.asarray(image.resize((384, 384), Image.Resampling.BICUBIC), dtype=np.float32)
    expected = torch.tensor((resized / 255 - 0.5) / 0.5).permute(2, 0, 1)
    torch.testing.assert_close(pixels(processor, image), expected, rtol=0, atol=1e-6)


def test_arrays_tensors_and_files_give_the_pixels_of_the_image(processor, image, tmp_path):
    array = np.asarray(image)
    image.save(tmp_path / "image.png")
    for other in (
        array,
        array.transpose(2, 0, 1),
        torch.tensor(array).permute(2, 0, 1),
        array.astype(np.float32) / 255,
        array.astype(np.int64),
        array.astype(np.uint16) * 257,
        str(tmp_path / "image.png"),
    ):
        assert torch.equal(pixels(processor, other), pixels(processor, image))


def test_transparency_is_composited_onto_white(processor, image):
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    assert (pixels(processor, transparent) == 1).all()
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert pixels(processor, palette)[:, 0, 0].tolist() == [1, 1, 1]


def test_cmyk_palette_and_grayscale_convert_as_pillow_does(processor, image):
    for mode in ("CMYK", "P", "L", "1", "YCbCr"):
        converted = image.convert(mode)
        assert torch.equal(pixels(processor, converted), pixels(processor, converted.convert("RGB"))), mode


@pytest.mark.parametrize("source", ["image", "file"])
def test_sixteen_bit_values_are_scaled(source, processor, image, tmp_path):
    gray = np.asarray(image.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    given = str(tmp_path / "deep.png") if source == "file" else Image.open(tmp_path / "deep.png")
    assert torch.equal(pixels(processor, given), pixels(processor, Image.fromarray(gray)))


@pytest.mark.parametrize("source", ["image", "file"])
def test_exif_orientation_is_applied(source, processor, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    given = str(tmp_path / "turned.png") if source == "file" else Image.open(tmp_path / "turned.png")
    assert torch.equal(pixels(processor, given), pixels(processor, image.transpose(Image.Transpose.ROTATE_270)))


def test_image_of_one_pixel(processor):
    outputs = processor.image_processor(Image.new("RGB", (1, 1), (255, 0, 0)), return_tensors="pt")
    for value in outputs.values():
        assert (value[..., 0, :, :] == 1).all() and (value[..., 1:, :, :] == -1).all()


def test_image_without_pixels(processor):
    with pytest.raises(ValueError, match="no pixels: its size is 0 x 5"):
        processor.image_processor(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match="no pixels"):
        processor.image_processor(np.zeros((3, 0, 4), dtype=np.uint8))


def test_file_that_is_no_image(processor, image, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match="Cannot read an image from .*notes.png': it is not an image"):
        process(processor, make_messages(["What?"], str(tmp_path / "notes.png")))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ValueError, match="Cannot read an image from .*cut.png"):
        process(processor, make_messages(["What?"], str(tmp_path / "cut.png")))
    with pytest.raises(ValueError, match="missing.png.*there is no such file"):
        process(processor, make_messages(["What?"], str(tmp_path / "missing.png")))


def test_nan_and_normalized_arrays(processor):
    with pytest.raises(ValueError, match="NaN"):
        processor.image_processor(np.full((5, 5, 3), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="values from -1.0 to 1.0, expected 0 to 255"):
        processor.image_processor(np.linspace(-1, 1, 75, dtype=np.float32).reshape(5, 5, 3))


def test_resizing_cannot_be_switched_off(processor, image):
    with pytest.raises(ValueError, match="do_resize must be True"):
        processor.image_processor(image, do_resize=False)


# Bad prompts --------------------------------------------------------------------------------------------------------


def test_two_images_in_a_conversation(processor, image):
    messages = make_messages(["What?"], image)
    messages[0]["content"].insert(0, {"type": "image", "image": image})
    with pytest.raises(ValueError, match=r"Messages hold 2 images \(0, 0\), expected at most 1"):
        process(processor, messages)
    with pytest.raises(ValueError, match="Prompt 0 has 2 <image> placeholders"):
        processor(text="<image><image>", images=[image, image])


@pytest.mark.parametrize("turn", [1, 2])
def test_image_in_a_later_turn(turn, processor, image):
    messages = make_messages(["What?", "This.", "And?"])
    messages[turn]["content"].append({"type": "image", "image": image})
    with pytest.raises(
        ValueError, match=f"Conversation 1: Message {turn} has the image, expected it in the first message"
    ):
        process(processor, [make_messages(["Fine?"]), messages])


def test_placeholder_without_image_and_reverse(processor, image):
    with pytest.raises(ValueError, match="but 1 prompts have one, and there are 0 images"):
        processor(text="<image><latent><vision_end>What?<|eot_id|>")
    with pytest.raises(ValueError, match="but 0 prompts have one, and there are 1 images"):
        processor(text="no placeholder", images=image)
    with pytest.raises(ValueError, match="but 1 prompts have one, and there are 0 images"):
        processor(text=processor.apply_chat_template(make_messages(["What?"], image)))


@pytest.mark.parametrize("num_tokens", [300, 720])
def test_truncated_placeholders(num_tokens, processor, image):
    """Within the image tokens and within the latents."""
    with pytest.raises(ValueError, match="Mismatch in `(image|latent)` token count"):
        process(processor, make_messages(["What?"], image), truncation=True, max_length=num_tokens, padding=False)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
def test_grid_size_that_is_no_size(size, processor, image):
    with pytest.raises((ValueError, TypeError), match="latent_grid_size"):
        process(processor, make_messages(["What?"], image), latent_grid_size=size)


def test_placeholders_as_text(processor, image):
    for question in ("<image>\nWhat?", "What is <latent>?", "Is it <|eot_id|> or not?"):
        with pytest.raises(ValueError, match="Message 0 .user. holds the control token .* as text"):
            process(processor, make_messages([question], image))
    with pytest.raises(ValueError, match="Prompt 0 has 2 <image> placeholders.*If a question holds one as text"):
        processor(text="<image><image><latent><vision_end>What?<|eot_id|>", images=image)
    with pytest.raises(ValueError, match="Prompt 0 has 2 <latent> placeholders, expected 1"):
        processor(text="<latent><vision_end>What is <latent>?<|eot_id|>")
    with pytest.raises(ValueError, match="Prompt 0 has its <image> placeholder after a <latent>"):
        processor(text="<latent><vision_end>Q<|eot_id|><image>", images=image)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "expected a list of messages"),
        ([{"content": "What?"}], "Message 0 is {'content'.*expected a dict with `role`"),
        (
            [{"role": "user", "content": [{"type": "video", "path": "x.mp4"}]}],
            "Message 0 has the part {'type': 'video'",
        ),
        ([{"role": "user", "content": ["What?"]}], "Message 0 has the part 'What.'"),
    ],
)
def test_messages_that_are_none(messages, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize("prompt", ["<image>What is it?", "<vision_start><image><vision_end>\nWhat is it?<|eot_id|>"])
def test_prompt_with_an_image_and_no_latents_is_refused(prompt, processor, image):
    """A harness that does not apply the chat template scored 0.10 instead of 1.00 on the small model."""
    good = processor.apply_chat_template(make_messages(["What?"], image))
    with pytest.raises(ValueError, match="Prompt 1 has an <image> but no <latent>.*lm-eval: --apply_chat_template"):
        processor(text=[good, prompt], images=[image, image])


def test_text_needs_no_chat_template(processor):
    assert processor(text="Once upon a time", return_tensors="pt")["input_ids"].shape[0] == 1


def test_size_and_tokenizer_are_needed(processor, image):
    with pytest.raises(ValueError, match="expected a height and a width"):
        processor.image_processor(image, size={"shortest_edge": 384})
    with pytest.raises(ValueError, match="needs a tokenizer"):
        type(processor)(processor.image_processor)


def test_unknown_role(processor):
    with pytest.raises(ValueError, match="Message 0 is of the role 'tool', expected one of system, user, assistant"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_replacements_of_two_passes_are_merged():
    """Positions in the original text and in the final one, each replacement at its own place."""
    text, first = expand_token("a<L>b<I>c<L>", "<L>", 3)
    start = text.index("<I>")
    second = [{"type": "image", "span": (start, start + 3), "new_span": (start, start + 6), "replacement": "<I><I>"}]
    final = text.replace("<I>", "<I><I>")
    merged = merge_replacements(first, second)
    assert [item["span"] for item in merged] == [(1, 4), (5, 8), (9, 12)]
    assert [final[slice(*item["new_span"])] for item in merged] == ["<L>" * 3, "<I>" * 2, "<L>" * 3]


def test_processor_of_a_new_model_has_the_sizes_of_its_tower(processors):
    original = processors[LLAMA]
    tower = SiglipVisionConfig(image_size=384, patch_size=14)
    processor = FusionProcessor.from_tokenizer(
        copy.deepcopy(original.tokenizer), tower, chat_template=original.chat_template
    )
    assert processor.image_processor.size == {"height": 384, "width": 384}
    assert (processor.image_processor.image_grid_size, processor.image_processor.latent_grid_size) == (27, 8)
    assert processor.question_end_token_ids == original.question_end_token_ids
    tower = SiglipVisionConfig(image_size=24, patch_size=8)
    small = FusionProcessor.from_tokenizer(original.tokenizer, tower, chat_template=original.chat_template)
    assert small.image_processor.latent_grid_size == 6  # the largest that a map of 6 cells a side allows
