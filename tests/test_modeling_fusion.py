"""
The model's behavior on tiny random models.

Tests cover its parts, any decoder, batches, generation, gradients, losses, saving, and bad input. Agreement with the
reference is in test_parity.py.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fusion_vlm import modeling_fusion
from fusion_vlm.modeling_fusion import (
    FusionForConditionalGeneration,
    FusionVisionModel,
    context_windows,
    locate_questions,
    resize_image_grid,
    stitch_crops,
)
from fusion_vlm.processing_fusion import FusionProcessor

from .helpers import enable_checkpointing, make_messages, needs_reentrant, process
from .tiny import TEXT_CONFIGS, VISION_CONFIG, last_logits, random_image, tiny_config, tiny_model


# Parts --------------------------------------------------------------------------------------------------------------


def test_stitched_crops_lie_where_they_were_cut():
    """A map is cut into row-major quarters and put together again."""
    whole = torch.arange(4 * 4).view(1, 1, 4, 4)
    crops = torch.stack([whole[0, 0, i : i + 2, j : j + 2].reshape(-1, 1) for i in (0, 2) for j in (0, 2)])
    assert torch.equal(stitch_crops(crops.unsqueeze(0)), whole)


def test_context_windows_lie_over_their_latents():
    """On a map that needs no pooling, the window of latent (row, column) is that square of cells."""
    context_map = torch.arange(36.0).view(1, 1, 6, 6)
    windows = context_windows(context_map, grid_size=2, window_size=3).view(4, 9)
    assert torch.equal(windows[0], context_map[0, 0, :3, :3].flatten())
    assert torch.equal(windows[1], context_map[0, 0, :3, 3:].flatten())
    assert torch.equal(windows[2], context_map[0, 0, 3:, :3].flatten())


def test_image_grid_resize_keeps_orientation():
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    assert torch.allclose(resize_image_grid(rows, 2).flatten(), torch.tensor([0.5, 0.5, 2.5, 2.5]))
    assert resize_image_grid(rows, 4) is rows


def test_questions_are_located_by_example():
    latents = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]]).bool()
    ends = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]]).bool()
    positions, end_positions, examples = locate_questions(latents, ends)
    assert positions.tolist() == [[1, 2, 3, 4], [12, 13, 14, 15], [18, 19, 20, 21]]
    assert end_positions.tolist() == [6, 17, 23]
    assert examples.tolist() == [0, 1, 1]


@pytest.fixture(scope="module")
def tower() -> FusionVisionModel:
    torch.manual_seed(0)
    return FusionVisionModel(SiglipVisionConfig(**VISION_CONFIG)).eval()


def test_tower_without_a_question_is_siglip(tower):
    siglip = SiglipVisionModel(SiglipVisionConfig(**VISION_CONFIG, vision_use_head=False)).eval()
    siglip.load_state_dict(tower.state_dict(), strict=False)
    pixel_values = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        actual = tower(pixel_values, output_hidden_states=True)
        expected = siglip(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(actual.last_hidden_state, expected[-1])
    for ours, theirs in zip(actual.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Five layers: two groups of two, and the input of the last layer in neither.
    groups = [torch.stack(expected[start : start + 2]).mean(dim=0) for start in (0, 2)]
    torch.testing.assert_close(actual.features, torch.cat([expected[-1], *groups], dim=-1))


def test_early_question_rows_attend_uniformly_and_late_ones_do_not(tower):
    question = torch.randn(1, 3, 32)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = tower(torch.randn(1, 3, 24, 24), question, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    for index, weights in enumerate(attentions):
        rows = weights[0, :, 36:]
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
        assert torch.allclose(rows, torch.full_like(rows, 1 / 39)) == (index < 2)


def test_padding_of_a_question_changes_nothing(tower):
    pixel_values, question = torch.randn(1, 3, 24, 24), torch.randn(1, 3, 32)
    padded = torch.cat([torch.randn(1, 2, 32), question, torch.randn(1, 4, 32)], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        expected = tower(pixel_values, question).features
        actual = tower(pixel_values, padded, mask).features
    torch.testing.assert_close(actual[:, :36], expected[:, :36])
    torch.testing.assert_close(actual[:, 38:41], expected[:, 36:])


def test_token_id_zero_is_no_key_but_counts_in_the_early_mean(model):
    """Released behavior (golden case `exclaim`): not the same as leaving the token out."""
    core = copy.deepcopy(model.model)
    core.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = core.get_image_features(torch.randn(1, 3, 24, 24), torch.tensor([[5, 0, 7]]), output_attentions=True)
    early, late = outputs.attentions[0][0], outputs.attentions[-1][0]
    assert (early[:, :36, 37] == 0).all() and (late[:, :, 37] == 0).all()
    assert torch.allclose(early[:, 36:, 37], torch.tensor(1 / 39))


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", TEXT_CONFIGS)
def test_any_decoder(decoder, processor, conversations):
    """Question, image, crops and interaction layers all reach the answer; keys of the decoder stay its own."""
    model = tiny_model(processor, decoder)
    inputs = process(processor, conversations[0])
    logits = last_logits(model, inputs)
    other = process(processor, make_messages(["What is it?"], random_image(5)))
    asked = process(processor, make_messages(["What is he?"], random_image(0)))
    for name, source in (
        ("pixel_values", other),
        ("high_res_pixel_values", other),
        ("question_input_ids", asked),
    ):
        assert not torch.allclose(last_logits(model, {**inputs, name: source[name]}), logits, atol=1e-3), name
    names = {name.removeprefix("model.language_model.") for name in model.state_dict() if "language_model" in name}
    assert names == set(AutoModel.from_config(model.config.text_config).state_dict())
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3


def test_interaction_layers_change_only_what_they_should(model, processor, conversations):
    """Hidden states after a decoder layer are recorded after its interaction layer, which rewrites latents only."""
    inputs = process(processor, conversations[0])
    layer, before = model.model.language_model.layers[0], []
    handle = layer.register_forward_hook(lambda module, args, output: before.append(output), prepend=True)
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    handle.remove()
    assert len(hidden_states) == 5
    changed = (hidden_states[1] != before[0]).any(dim=-1)
    assert torch.equal(changed, inputs["input_ids"] == processor.latent_token_id)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_example_does_not_depend_on_its_batch(padding_side, model, processor, conversations):
    alone = [last_logits(model, process(processor, conversation))[0] for conversation in conversations]
    batch = process(processor, conversations, padding_side=padding_side)
    with torch.no_grad():
        logits = model(**batch).logits
    for row, expected in enumerate(alone):
        last = batch["attention_mask"][row].nonzero().max()
        torch.testing.assert_close(logits[row, last], expected, rtol=1e-4, atol=1e-4)


def test_latents_without_an_image_begin_as_zeros(model, processor):
    """And read a blank image from then on."""
    inputs, embeds = process(processor, make_messages(["Hello!"])), []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: embeds.append(args[0]))
    with torch.no_grad():
        blank = model(**inputs).logits
        other = model(**inputs, context_map=torch.randn(1, 32, 12, 12)).logits
    handle.remove()
    assert not embeds[0][inputs["input_ids"] == processor.latent_token_id].any()
    assert not torch.allclose(blank, other, atol=1e-3)


def test_latents_belong_to_their_own_question(model, processor):
    """A later question leaves what the first round wrote alone, when the tower's view of the questions is the same."""
    first, second = (
        process(processor, make_messages(["How many?", "Three.", text], random_image(0))) for text in ("Why?", "Who?")
    )
    second["question_input_ids"] = first["question_input_ids"]
    with torch.no_grad():
        states = [model(**inputs, output_hidden_states=True).hidden_states[-1] for inputs in (first, second)]
    differ = (states[0] - states[1]).abs().amax(dim=-1)[0] > 1e-5
    latents = (first["input_ids"][0] == processor.latent_token_id).nonzero().squeeze(1)
    assert not differ[: latents[3] + 1].any() and differ[latents[4:]].all()


def test_context_map_replaces_the_crops(model, processor):
    """Eight questions about one image pay for the crops once."""
    image = random_image(0)
    inputs = process(processor, [make_messages([f"What is number {i}?"], image) for i in range(8)])
    expected = last_logits(model, inputs)
    crops = inputs.pop("high_res_pixel_values")
    context_map = model.get_context_map(crops[:1])
    assert context_map.shape == (1, 32, 12, 12)
    inputs["context_map"] = context_map.expand(8, -1, -1, -1)
    torch.testing.assert_close(last_logits(model, inputs), expected)
    inputs["context_map"] = context_map
    torch.testing.assert_close(last_logits(model, inputs), expected)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    inputs.pop("context_map")
    inputs["high_res_pixel_values"] = crops
    assert torch.equal(generated, model.generate(**inputs, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 3},
        {"num_beams": 3, "use_cache": False},
    ],
    ids=str,
)
def test_ways_of_generation_agree(options, model, processor, conversations):
    """With greedy search, or beams with beams; the end-of-turn token is off so that there is something to compare."""
    inputs = process(processor, conversations[1])
    common = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "num_beams": options.get("num_beams", 1)}
    expected = model.generate(**inputs, **common)
    assert torch.equal(model.generate(**inputs, **{**common, **options}), expected)


def test_sampling_and_return_sequences(model, processor, conversations):
    """Repeatable with a seed; sequences of a prompt begin with it and differ from each other."""
    inputs = process(processor, conversations)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(
            model.generate(**inputs, max_new_tokens=5, do_sample=True, num_return_sequences=3, eos_token_id=-1)
        )
    assert torch.equal(*outputs)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(outputs[0][:, :length], inputs["input_ids"].repeat_interleave(3, dim=0))
    assert len({tuple(row.tolist()) for row in outputs[0][:3, length:]}) > 1


def test_scores_streamer_and_stopping_criteria(model, processor, conversations):
    class Collector:
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, ids):
            self.ids += ids.flatten().tolist()

        def end(self):
            self.ended = True

    inputs, streamer = process(processor, conversations[1]), Collector()
    output = model.generate(
        **inputs,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=-1,
        streamer=streamer,
        stopping_criteria=[lambda ids, scores: torch.tensor([ids.shape[1] >= inputs["input_ids"].shape[1] + 3])],
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert len(new) == len(output.scores) == 3 and streamer.ended
    assert streamer.ids == output.sequences[0].tolist()
    for step, logits in enumerate(output.logits):
        full = {**inputs, "input_ids": output.sequences[:, : inputs["input_ids"].shape[1] + step]}
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        torch.testing.assert_close(last_logits(model, {**full, "has_generated_tokens": True}), logits)
        assert logits.argmax() == new[step]


def test_next_turn_encodes_the_image_with_all_questions(model, processor):
    """As a conversation goes on: the whole of it is processed again, and the answer is what it would be anyway."""
    messages = make_messages(["How many?"], random_image(0))
    inputs = process(processor, messages)
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    messages += make_messages(["?", answer, "And why?"])[1:]
    continued = process(processor, messages)
    assert (
        processor.tokenizer.decode(continued["question_input_ids"][0], skip_special_tokens=True) == "How many?And why?"
    )
    with torch.no_grad():
        first, second = (model(**turn).image_hidden_states for turn in (inputs, continued))
    assert not torch.allclose(first, second, atol=1e-3)


def test_assistant_model_gives_the_same_answer(model, processor, conversations):
    """Another FUSION as assistant, which reads the image too."""
    inputs = process(processor, conversations[1])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    expected = model.generate(**inputs, **options)
    torch.manual_seed(7)
    assistant, images = FusionForConditionalGeneration(model.config).eval(), []
    assistant.model.vision_tower.register_forward_hook(lambda module, args, output: images.append(args[0]))
    assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected)
    assert [len(pixels) for pixels in images] == [1, 4], "the assistant read the image and its crops, once"


def test_drafts_of_placeholders_are_text(model, processor, conversations):
    """Prompt lookup copies from the prompt, image tokens too, when the model writes what stands before them."""
    inputs = process(processor, conversations[0])
    start = processor.tokenizer.convert_tokens_to_ids("<vision_start>")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "sequence_bias": [[[start], 1e4]]}
    expected = model.generate(**inputs, **options)
    assert expected[0, -1] == start
    assert torch.equal(model.generate(**inputs, **options, prompt_lookup_num_tokens=4), expected)


def test_generated_generation_prompt_is_no_question_end(model, processor, conversations):
    """Without a cache, what the model writes comes before its eyes again; it may look like the end of a question."""
    inputs = process(processor, conversations[1])
    ids = torch.cat([inputs["input_ids"], torch.tensor([processor.question_end_token_ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(ids)
    inputs["input_ids"] = ids
    with pytest.raises(ValueError, match="Example 0 has 2 groups of latent tokens but 3 question ends"):
        model(**inputs)
    length = ids.shape[1] - len(processor.question_end_token_ids)
    prepared = model.prepare_inputs_for_generation(
        use_cache=False, is_first_iteration=False, num_prompt_tokens=length, **inputs
    )
    with torch.no_grad():
        logits = model(**prepared).logits[:, length - 1]
    torch.testing.assert_close(logits, last_logits(model, process(processor, conversations[1])))


def test_generate_from_embeddings(model, processor, conversations):
    """Placeholders and question ends are found in embeddings too."""
    inputs = process(processor, conversations[1])
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.parametrize("use_reentrant", [False, needs_reentrant])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant, processor, conversations):
    model = tiny_model(processor).train()
    inputs = process(processor, conversations[0])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model, use_reentrant)
            model.enable_input_require_grads()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_every_parameter_has_a_gradient(processor, conversations):
    model = tiny_model(processor).train()
    inputs = process(processor, conversations)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_labels_that_are_shifted_already_count_as_they_are(model, processor, conversations):
    """What collators without padding and sequence parallelism pass beside `labels`."""
    inputs = process(processor, conversations[0])
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    expected = model(**inputs, labels=labels)
    shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    outputs = model(**inputs, labels=torch.full_like(labels, -100), shift_labels=shift_labels)
    assert outputs.loss == expected.loss
    outputs = model(
        **inputs, labels=labels, shift_labels=shift_labels.masked_fill(shift_labels == labels[0, -1], -100)
    )
    assert outputs.language_loss != expected.language_loss


def test_loss_of_a_batch_is_the_sum_over_its_micro_batches(model, processor, conversations):
    """With uneven label counts and an example without an image, as `Trainer` accumulates gradients."""
    batch = process(processor, conversations, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    num_items = (labels[:, 1:] != -100).sum()
    with torch.no_grad():
        expected = model(**batch, labels=labels)
        parts = [
            model(
                **{name: value[row : row + 1] for name, value in batch.items()},
                labels=labels[row : row + 1],
                num_items_in_batch=num_items,
            )
            for row in range(3)
        ]
    for name in ("loss", "language_loss", "text_mapping_loss", "vision_mapping_loss"):
        torch.testing.assert_close(sum(part[name] for part in parts), expected[name], rtol=1e-4, atol=1e-5)
    assert parts[2].vision_mapping_loss == parts[2].text_mapping_loss == 0
    coefficient = model.config.mapping_loss_coef
    mapping_loss = expected.text_mapping_loss + expected.vision_mapping_loss
    torch.testing.assert_close(expected.loss, expected.language_loss + coefficient * mapping_loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, processor, conversations):
    model = tiny_model(processor)
    inputs = process(processor, conversations)
    expected = last_logits(model, inputs)
    actual = last_logits(model.to(dtype), inputs)
    assert actual.dtype == dtype
    assert ((actual.float() - expected).norm() / expected.norm()) < 0.1


# Building, saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", TEXT_CONFIGS)
def test_save_and_load(decoder, processor, conversations, tmp_path):
    model = tiny_model(processor, decoder)
    inputs = process(processor, conversations)
    expected = last_logits(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = FusionForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(last_logits(loaded, inputs), expected)


@pytest.mark.parametrize(("decoder", "tied"), [("llama", False), ("qwen3", True)])
def test_model_from_two_pretrained_parts(decoder, tied, processor, conversations, tmp_path):
    """Tower and decoder keep their weights but for the tower's last layer; new tokens get rows; it saves and loads."""
    old_vocab_size = len(processor.tokenizer) - 4
    text_config = tiny_config(processor, decoder).text_config
    text_config.vocab_size, text_config.tie_word_embeddings = old_vocab_size, tied
    decoder_model = AutoModelForCausalLM.from_config(text_config)
    decoder_model.save_pretrained(tmp_path / "text")
    siglip = SiglipVisionModel(SiglipVisionConfig(**VISION_CONFIG))
    siglip.save_pretrained(tmp_path / "vision")

    decoder_model.generation_config.eos_token_id = [5, 6]
    decoder_model.save_pretrained(tmp_path / "text")
    model = FusionForConditionalGeneration.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), processor, num_interaction_heads=4
    ).eval()
    assert model.generation_config.eos_token_id == [5, 6]
    assert model.config.question_end_token_ids == processor.question_end_token_ids
    assert model.config.vision_config.num_hidden_layers == 4
    for name, parameter in model.model.vision_tower.state_dict().items():
        assert torch.equal(parameter, siglip.state_dict()[name]), name
    for name, parameter in model.model.language_model.state_dict().items():
        expected = decoder_model.get_decoder().state_dict()[name]
        assert torch.equal(parameter[: len(expected)], expected), name
    assert torch.equal(model.lm_head.weight[:old_vocab_size], decoder_model.lm_head.weight)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == len(processor.tokenizer)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    inputs = process(processor, conversations)
    expected = last_logits(model, inputs)
    model.save_pretrained(tmp_path / "model")
    loaded = FusionForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(last_logits(loaded, inputs), expected)


def test_processor_adds_the_tokens_that_a_new_decoder_lacks(processor):
    tokenizer = copy.deepcopy(processor.tokenizer)
    built = FusionProcessor(
        processor.image_processor, tokenizer, image_token="<picture>", chat_template=processor.chat_template
    )
    assert built.image_token_id == len(processor.tokenizer)
    assert tokenizer("<picture>", add_special_tokens=False).input_ids == [built.image_token_id]


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(processor, conversations) -> dict[str, torch.Tensor]:
    """Return a left-padded batch of an example with one question and one with two."""
    return dict(process(processor, conversations[:2]))


def replace_one(inputs, example: int, old: int, new: int, which: int = 0):
    """Overwrite one occurrence of a token."""
    positions = (inputs["input_ids"][example] == old).nonzero().squeeze(1)
    inputs["input_ids"][example, positions[which]] = new


@pytest.mark.parametrize(
    ("token", "which", "message"),
    [
        ("image", 0, "Example 1 has 35 image tokens, expected 36"),
        ("latent", 0, "Example 1 has a group of 3 latent tokens, expected 4"),
        ("question_end", 0, "Example 1 has 2 groups of latent tokens but 1 question ends"),
        ("question_end", -1, "Example 1 has 2 groups of latent tokens but 1 question ends"),
    ],
)
def test_counts_that_do_not_match(token, which, message, model, processor, inputs):
    token_id = {
        "image": processor.image_token_id,
        "latent": processor.latent_token_id,
        "question_end": processor.question_end_token_ids[1],
    }[token]
    replace_one(inputs, 1, token_id, 1, which)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_conversation_may_begin_with_the_assistant(model, processor):
    messages = [{"role": "assistant", "content": "Hello! Ask me."}, *make_messages(["What is it?"], random_image(0))]
    assert last_logits(model, process(processor, messages)).isfinite().all()


def test_missing_group_of_latents(model, processor, inputs):
    for _ in range(4):
        replace_one(inputs, 1, processor.latent_token_id, 1, -1)
    with pytest.raises(ValueError, match="Example 1 has 1 groups of latent tokens but 2 question ends"):
        model(**inputs)


def test_latents_that_are_no_square_or_do_not_fit(model, processor, inputs):
    single = {name: value[:1].clone() for name, value in inputs.items()}
    replace_one(single, 0, processor.latent_token_id, 1, -1)
    with pytest.raises(ValueError, match="Example 0 has groups of 3 latent tokens, expected a square"):
        model(**single)
    with pytest.raises(ValueError, match="latent grid of side 13 does not fit: expected at most 12"):
        model(**process(processor, make_messages(["What?"], random_image(0)), latent_grid_size=13))


def test_images_that_do_not_match_the_prompts(model, processor, inputs):
    with pytest.raises(ValueError, match="Got 1 images in `pixel_values` for 2 prompts"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})
    without = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match="Example 0 has 36 image tokens but 0 images"):
        model(**without)
    without = {name: value for name, value in inputs.items() if name != "high_res_pixel_values"}
    with pytest.raises(ValueError, match="Got 0 rows of crops for 2 prompts"):
        model(**without)
    text_only = process(processor, [make_messages(["What?"]), make_messages(["What?"], random_image(0))])
    text_only["pixel_values"][0] = 1
    with pytest.raises(ValueError, match="Example 0 has an image but 0 image tokens"):
        model(**text_only)
    with pytest.raises(ValueError, match="`context_map` has 3 rows for 2 prompts"):
        model(**{**inputs, "context_map": torch.zeros(3, 32, 12, 12)})


@pytest.mark.parametrize("name", ["pixel_values", "high_res_pixel_values"])
def test_nan_and_wrong_size_in_pixels(name, model, inputs):
    inputs[name] = inputs[name].clone()
    inputs[name][0, ..., 3, 5] = float("nan")
    with pytest.raises(ValueError, match=f"`{name}` holds NaN or infinity"):
        model(**inputs)
    inputs[name] = inputs[name][..., :20]
    with pytest.raises(ValueError, match=r"has images of shape \(3, 24, 20\), expected \(3, 24, 24\)"):
        model(**inputs)


@pytest.mark.parametrize("cache_name", ["cache", "past_key_values"])
def test_prompt_in_several_pieces(cache_name, model, processor, inputs):
    """Chunked prefill, a prefix cache under its name of any release, and a prompt split by hand."""
    prompt = {name: value[:1] for name, value in inputs.items()}
    with pytest.raises(ValueError, match="prefill"):
        model.generate(**prompt, max_new_tokens=2, prefill_chunk_size=8)
    split = (prompt["input_ids"][0] == processor.latent_token_id).nonzero()[0].item()
    with torch.no_grad():
        cache = model(input_ids=prompt["input_ids"][:, :5])[modeling_fusion.CACHE_NAME]
    with pytest.raises(ValueError, match="has to be processed in one piece.*no reuse of a prefix cache"):
        model(**{**prompt, "input_ids": prompt["input_ids"][:, 5:], cache_name: cache, "attention_mask": None})
    with pytest.raises(ValueError, match="1 groups of latent tokens but 0 question ends.*split over two forwards"):
        model(**{**prompt, "input_ids": prompt["input_ids"][:, : split + 6], "attention_mask": None})


@pytest.mark.parametrize("size", [1, 3, 40, 60, 10_000])
@pytest.mark.parametrize("has_image", [True, False])
def test_chunked_prefill_gives_the_same_answer_or_is_refused(size, has_image, model, processor):
    """transformers below 5.23 has no guard, and later ones look at pixels only: latents would be taken for text."""
    messages = make_messages(["What is it?"], random_image(0) if has_image else None)
    inputs = process(processor, messages)
    if not has_image:
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    try:
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False, prefill_chunk_size=size)
    except ValueError as error:
        assert "prefill" in str(error)
    else:
        assert torch.equal(answer, expected)


OPTIONS = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2},
    {"num_beams": 2, "use_cache": False},
    {"prompt_lookup_num_tokens": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("num_questions", [1, 2])
def test_shared_context_map_with_several_sequences(num_questions, options, model, processor):
    """`generate` repeats all inputs, also the one map that all questions share."""
    if "prompt_lookup_num_tokens" in options and num_questions > 1:
        pytest.skip("assisted generation takes one prompt")
    image = random_image(0)
    inputs = process(processor, [make_messages([question], image) for question in ("A?", "And B?")[:num_questions]])
    options = {"max_new_tokens": 4, **options}
    torch.manual_seed(0)
    expected = model.generate(**inputs, **options)
    inputs["context_map"] = model.get_context_map(inputs.pop("high_res_pixel_values")[:1])
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **options), expected)


def test_maps_of_other_questions_are_not_taken_for_a_shared_one(model, processor):
    images = [random_image(seed) for seed in range(4)]
    inputs = process(processor, [make_messages(["What?"], image) for image in images])
    inputs["context_map"] = model.get_context_map(inputs.pop("high_res_pixel_values")[:2])
    with pytest.raises(ValueError, match="`context_map` has 2 rows for 4 prompts"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_placeholders_that_were_not_expanded(has_image, padding_side, model, processor):
    """A tokenizer alone leaves one token of each; grids of side 1 would answer wrongly."""
    content = [{"type": "image"}] * has_image + [{"type": "text", "text": "What?"}]
    ids = processor.tokenizer.apply_chat_template(
        [[{"role": "user", "content": content}], [{"role": "user", "content": [*content, {**content[-1]}]}]],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        tokenizer_kwargs={"padding_side": padding_side},
    )
    pixels = processor.image_processor([random_image(0)] * 2, return_tensors="pt") if has_image else {}
    with pytest.raises(
        ValueError, match=f"Example 0 has {int(has_image)} image tokens and 1 latent tokens.*processor"
    ):
        model.generate(**ids, **pixels, max_new_tokens=2)


def test_prompt_without_the_chat_template_is_refused(model, processor):
    """The processor refuses it too, but not where a tool expands the placeholders itself."""
    inputs = processor.tokenizer("<image>" * 36 + "What is it?", return_tensors="pt")
    inputs |= processor.image_processor(random_image(0), return_tensors="pt")
    with pytest.raises(ValueError, match="Example 0 has 36 image tokens but no latent tokens.*apply_chat_template"):
        model.generate(**inputs, max_new_tokens=2)


@torch.no_grad()
def test_image_outputs_are_those_of_get_image_features(model, inputs):
    names = ("pixel_values", "question_input_ids", "question_attention_mask")
    outputs, expected = model(**inputs), model.get_image_features(**{name: inputs[name] for name in names})
    assert torch.equal(outputs.image_outputs.image_features, expected.image_features)
    assert model(input_ids=torch.full((1, 3), 20)).image_outputs is None


def test_grids_of_one_token_are_allowed_where_the_config_has_them(processor):
    model = tiny_model(processor, latent_grid_sizes=[1, 2], image_grid_size=1)
    inputs = process(processor, make_messages(["What?"], random_image(0)), latent_grid_size=1, image_grid_size=1)
    model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("token", ["<image>", "<latent>", "<vision_end>", "<|eot_id|>"])
@pytest.mark.parametrize("options", [{"use_cache": False}, {"num_beams": 2}, {"num_beams": 2, "use_cache": False}, {}])
def test_generated_control_token_is_text(token, options, model, processor):
    """With and without a cache, alone and in a batch with a shorter prompt, by ids and by embeddings."""
    messages = [make_messages(["What is it?"], random_image(0)), make_messages(["A longer question, is it?"])]
    word, forced = processor.tokenizer.convert_tokens_to_ids(["it", token])
    for conversations in (messages[:1], messages):
        inputs = process(processor, conversations)
        length = inputs["input_ids"].shape[1]
        output = model.generate(
            **inputs,
            max_new_tokens=5,
            eos_token_id=-1,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, ids, length=length: [forced if len(ids) == length + 1 else word],
            **options,
        )
        assert (output[:, length:] == torch.tensor([word, forced, word, word, word])).all()


def test_generated_placeholders_do_not_change_what_follows(model, processor):
    """Logits after a generated `<latent>` are equal with and without a cache."""
    inputs = process(processor, make_messages(["What is it?"], random_image(0)))
    length, latent = inputs["input_ids"].shape[1], processor.latent_token_id
    scores = []
    for use_cache in (True, False):
        output = model.generate(
            **inputs,
            max_new_tokens=4,
            eos_token_id=-1,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            prefix_allowed_tokens_fn=lambda _, ids: [latent] if len(ids) == length else list(range(100)),
        )
        scores.append(torch.stack(output.logits))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_image_features_of_the_top_model(model, inputs):
    names = ("pixel_values", "question_input_ids", "question_attention_mask")
    arguments = {name: inputs[name] for name in names}
    with torch.no_grad():
        top, inner = model.get_image_features(**arguments), model.model.get_image_features(**arguments)
    assert torch.equal(torch.stack(top.pooler_output), torch.stack(inner.pooler_output))


def test_stop_strings_take_the_processor_as_tokenizer(model, processor):
    inputs = process(processor, make_messages(["What is it?"]))
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=-1)[
        0, inputs["input_ids"].shape[1] :
    ]
    stop = processor.decode(answer[2:3])
    output = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, eos_token_id=-1, stop_strings=[stop], tokenizer=processor
    )
    assert output.shape[1] < inputs["input_ids"].shape[1] + 6


def test_more_image_tokens_than_patches(model, processor):
    with pytest.raises(ValueError, match="Example 0 has 49 image tokens, a grid of side 7, expected at most 6"):
        model(**process(processor, make_messages(["What?"], random_image(0)), image_grid_size=7))


def test_context_map_of_another_shape(model, inputs):
    with pytest.raises(ValueError, match=r"has shape \(2, 32, 6, 6\), expected \(1 or batch, 32, 12, 12\)"):
        model(**{**inputs, "context_map": torch.zeros(2, 32, 6, 6)})


def test_images_without_question_ids_warn(model, inputs, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_fusion.logger, "warning_once", warnings.append)
    inputs.pop("question_input_ids")
    model(**inputs)
    assert "not guided by the questions" in warnings[0]


def test_decoder_without_layers(processor):
    config = tiny_config(processor)
    config.text_config = GPT2Config(n_embd=32, n_layer=4, n_head=4)
    with pytest.raises(ValueError, match="'gpt2' has no `.layers`"):
        FusionForConditionalGeneration(config)


def test_ids_and_embeddings_together(model):
    with pytest.raises(ValueError, match="exactly one of"):
        model(input_ids=torch.ones(1, 2, dtype=torch.long), inputs_embeds=torch.ones(1, 2, 32))


def test_unset_question_end(processor, conversations, monkeypatch):
    """For a bare prompt the end of the sequence is right, with a warning; a loss is refused."""
    warnings = []
    monkeypatch.setattr(modeling_fusion.logger, "warning_once", warnings.append)
    model, unset = tiny_model(processor), tiny_model(processor, question_end_token_ids=None)
    inputs = process(processor, conversations[0])
    torch.testing.assert_close(last_logits(unset, inputs), last_logits(model, inputs))
    assert "processor.question_end_token_ids" in warnings[0]
    with pytest.raises(ValueError, match="A loss needs `config.question_end_token_ids`"):
        unset(**inputs, labels=inputs["input_ids"])


def test_no_state_of_a_call_stays_on_the_model(model, processor, conversations):
    def attributes():
        return {
            (name, key): id(value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if not isinstance(value, (nn.Module, dict))
        }

    last_logits(model, process(processor, conversations))
    before = attributes()
    last_logits(model, process(processor, conversations[:1]))
    assert attributes() == before
