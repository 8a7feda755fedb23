"""Where and how the model runs: attention backends, dtypes, devices and offload, compilation, quantization."""

import copy
import functools

import pytest
import torch
from transformers import BitsAndBytesConfig, pipeline

from fusion_vlm.convert_checkpoints import convert
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

from .helpers import GOLDEN_DIR, LLAMA, make_messages, process, relative_error
from .tiny import last_logits, random_image, random_model, tiny_config


GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    return path


@pytest.fixture
def inputs(processor, conversations):
    """Return a mixed, padded batch."""
    return process(processor, conversations)


# Attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attention",
    [
        "eager",
        "flex_attention",
        {"vision_config": "eager", "text_config": "flex_attention"},
        {"vision_config": "sdpa", "text_config": "eager"},
    ],
    ids=str,
)
def test_attention_backends_agree(attention, model, inputs):
    other = copy.deepcopy(model)
    other.set_attn_implementation(attention)
    torch.testing.assert_close(last_logits(other, inputs), last_logits(model, inputs), rtol=1e-4, atol=1e-4)


def test_backend_of_each_part_on_loading(folder, model, inputs):
    attention = {"vision_config": "eager", "text_config": "sdpa"}
    loaded = FusionForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    assert loaded.model.vision_tower.config._attn_implementation == "eager"
    assert loaded.model.language_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(last_logits(loaded, inputs), last_logits(model, inputs), rtol=1e-4, atol=1e-4)


def test_attentions_and_hidden_states_are_complete(model, inputs):
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = other(**inputs, output_attentions=True, output_hidden_states=True)
    num_layers = model.config.text_config.num_hidden_layers
    batch, length = inputs["input_ids"].shape
    assert [weights.shape for weights in outputs.attentions] == [(batch, 4, length, length)] * num_layers
    assert [states.shape for states in outputs.hidden_states] == [(batch, length, 32)] * (num_layers + 1)


# Devices and dtypes -------------------------------------------------------------------------------------------------


def test_offload_of_every_part_changes_nothing(folder, model, inputs, tmp_path):
    """Tower, projectors, decoder layers and interaction layers in different places; disk is read when it is needed."""
    device_map = {
        "model.vision_tower": "disk",
        "model.multi_modal_projector": "cpu",
        "model.text_to_vision_projector": "disk",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.rotary_emb": "cpu",
        "model.language_model.layers.0": "disk",
        "model.language_model.layers.1": "cpu",
        "model.language_model.layers.2": "cpu",
        "model.language_model.layers.3": "disk",
        "model.language_model.norm": "cpu",
        "model.interaction_layers.0": "cpu",
        "model.interaction_layers.1": "disk",
        "lm_head": "cpu",
    }
    loaded = FusionForConditionalGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert loaded.model.interaction_layers[1].proj_in.weight.device.type == "meta"
    assert torch.equal(last_logits(loaded, inputs), last_logits(model, inputs))
    assert torch.equal(loaded.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def test_automatic_device_map(folder, model, inputs):
    loaded = FusionForConditionalGeneration.from_pretrained(folder, device_map="auto", dtype="auto")
    assert torch.equal(last_logits(loaded, inputs), last_logits(model, inputs))


def test_decode_step_compiles_without_graph_breaks(model, inputs):
    """As `generate` with a static cache does it on an accelerator: the prompt as it is, each token compiled."""
    other = copy.deepcopy(model)
    plain_forward, steps = other.forward, []
    compiled = torch.compile(plain_forward, fullgraph=True, backend="eager")

    @functools.wraps(plain_forward)
    def forward(*args, **kwargs):
        steps.append(kwargs["input_ids"].shape[1])
        return (compiled if steps[-1] == 1 else plain_forward)(*args, **kwargs)

    other.forward = forward
    output = other.generate(**inputs, **GREEDY, cache_implementation="static")
    assert steps == [inputs["input_ids"].shape[1], 1, 1, 1, 1, 1]
    assert torch.equal(output, model.generate(**inputs, **GREEDY))


# Quantization -------------------------------------------------------------------------------------------------------


def quantized_parts(model) -> set[str]:
    names = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    return {name.split(".")[1] if name.startswith("model.") else name for name in names}


def nf4(**values) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        **values,
    )


def test_4_bits_skip_what_they_would_harm(wide_folder):
    load = FusionForConditionalGeneration.from_pretrained
    config = nf4()
    assert quantized_parts(load(wide_folder, quantization_config=config)) == {"language_model", "interaction_layers"}
    assert config.llm_int8_skip_modules is None, "the config of the caller stays as it is"
    own = load(wide_folder, quantization_config=nf4(llm_int8_skip_modules=["lm_head", "model.language_model"]))
    assert "vision_tower" in quantized_parts(own) and "language_model" not in quantized_parts(own)
    given_as_dict = load(wide_folder, quantization_config=nf4().to_dict())
    assert quantized_parts(given_as_dict) == {"language_model", "interaction_layers"}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_model_answers_and_is_the_same_when_saved_and_loaded(bits, wide_folder, inputs, tmp_path):
    load = FusionForConditionalGeneration.from_pretrained
    expected = last_logits(load(wide_folder), inputs)
    config = nf4() if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    quantized = load(wide_folder, quantization_config=config, dtype=torch.bfloat16)
    quantized.save_pretrained(tmp_path)
    logits = last_logits(quantized, inputs)
    # Random weights take quantization worse than trained ones.
    assert relative_error(logits, expected) < (0.3 if bits == 4 else 0.05)
    assert relative_error(logits, expected) > 1e-4, "quantized, not loaded as it was"
    loaded = load(tmp_path)
    assert quantized_parts(loaded) == quantized_parts(quantized)
    torch.testing.assert_close(last_logits(loaded, inputs), logits)
    assert torch.equal(loaded.generate(**inputs, **GREEDY), quantized.generate(**inputs, **GREEDY))


def test_converter_writes_a_4_bit_folder(tmp_path, converted, models, processors, goldens):
    """It loads without a quantization config, and is complete."""
    folder = convert(GOLDEN_DIR / LLAMA / "checkpoint", tmp_path / "nf4", quantize="nf4")
    assert {path.name for path in folder.iterdir()} == {path.name for path in converted[LLAMA].iterdir()}
    model = FusionForConditionalGeneration.from_pretrained(folder)
    assert quantized_parts(model) == {"language_model", "interaction_layers"}
    inputs = process(processors[LLAMA], goldens[LLAMA].messages("single"), latent_grid_size=2)
    error = relative_error(last_logits(model, inputs), last_logits(models[LLAMA], inputs))
    assert 1e-3 < error < 1


@pytest.mark.slow  # optimum-quanto compiles its kernels first, for a minute
def test_quantized_cache(model, inputs):
    """The prompt's own token is exact, later ones read 4-bit keys and values; those within the residual are exact."""
    options = {**GREEDY, "max_new_tokens": 2, "return_dict_in_generate": True, "output_scores": True}
    expected = model.generate(**inputs, **options).scores
    cache = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 2}
    scores = model.generate(**inputs, **options, cache_implementation="quantized", cache_config=cache).scores
    assert torch.equal(scores[0], expected[0])
    assert 1e-4 < relative_error(scores[1], expected[1]) < 0.5


# Long prompts, pipelines --------------------------------------------------------------------------------------------


def test_decoder_with_two_ranges_of_positions_switches_as_it_does_alone(processor, conversations):
    """
    Generate past Phi-3's original context, where its position factors change.

    The model then computes the whole cache again, image included. The answer must equal that without a cache.
    """
    config = tiny_config(processor, "phi3")
    inputs = process(processor, conversations[0])
    limit = inputs["input_ids"].shape[1] + 3
    config.text_config.original_max_position_embeddings = limit
    config.text_config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "factor": 4.0,
        "original_max_position_embeddings": limit,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 4.0, 8.0, 16.0],
    }
    model = random_model(config)
    options = {**GREEDY, "max_new_tokens": 12}
    expected = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(model.generate(**inputs, **options), expected)
    model._leaves_short_context = lambda *args: False
    assert not torch.equal(model.generate(**inputs, **options), expected), "there is something to switch"


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_pipeline_answers_do_not_depend_on_the_batch(batch_size, model, processor):
    conversations = [
        make_messages(["What is it?"], random_image(0)),
        make_messages(["Hello!"]),
        make_messages(["How many?", "Three of them.", "Which of them is the reddest one?"], random_image(1)),
        make_messages(["And you?", "Me?", "Yes!", "Well.", "So?"]),
    ]
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    outputs = pipe(
        text=conversations, batch_size=batch_size, max_new_tokens=4, do_sample=False, return_full_text=False
    )
    for conversation, output in zip(conversations, outputs, strict=True):
        inputs = process(processor, conversation)
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = processor.decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert output[0]["generated_text"].strip() == answer.strip()
