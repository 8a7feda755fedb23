"""
Parity with the reference implementation on all golden data.

tests/fixtures/golden/README.md describes each tensor, and the agreement to expect.
"""

from math import isqrt

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_vlm.convert_checkpoints import map_names
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

from .helpers import GOLDEN_DIR, LLAMA, PHI, VARIANTS, Golden, process, relative_error


TOLERANCE = 1e-4
CASES = ["single", "multi", "exclaim", "textonly"]
# The reference's ids of the placeholders, one for each, before they are expanded.
REFERENCE_PLACEHOLDERS = (-200, -300)


def collapse(ids: list[int], processor) -> list[int]:
    """Replace runs of image or latent ids by a single -1, like the placeholders of the goldens."""
    placeholders = {processor.image_token_id, processor.latent_token_id}
    collapsed = []
    for token_id in ids:
        if token_id not in placeholders:
            collapsed.append(token_id)
        elif not collapsed or collapsed[-1] != -1:
            collapsed.append(-1)
    return collapsed


def reference_ids(ids: torch.Tensor) -> list[int]:
    return [-1 if token_id in REFERENCE_PLACEHOLDERS else token_id for token_id in ids.tolist()]


@pytest.fixture(scope="session")
def fusion_l() -> Golden:
    return Golden(PHI, "fusion_l_grid16")


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_are_exact(variant, goldens, processors):
    crops = np.asarray(Image.open(GOLDEN_DIR / variant / "single.crops.png")).reshape(5, 384, 384, 3)
    expected = torch.tensor((crops / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).permute(0, 3, 1, 2)
    outputs = processors[variant].image_processor(goldens[variant].image("single"), return_tensors="pt")
    actual = torch.cat([outputs["high_res_pixel_values"][0], outputs["pixel_values"]])
    assert torch.equal(((actual * 0.5 + 0.5) * 255).round(), torch.tensor(crops).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_and_question_ids(variant, case, goldens, processors):
    golden, processor = goldens[variant], processors[variant]
    for num_latents, length in golden.cases[case]["seq_len"].items():
        inputs = process(processor, golden.messages(case), latent_grid_size=isqrt(int(num_latents)))
        assert inputs["input_ids"].shape == (1, length)
        assert collapse(inputs["input_ids"][0].tolist(), processor) == reference_ids(golden[f"{case}/infer/input_ids"])
        if golden.cases[case]["image"]:
            assert inputs["question_input_ids"][0].tolist() == golden[f"{case}/infer/instruct_ids"].tolist()
        else:
            assert not inputs["question_attention_mask"].any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_labels(variant, case, goldens, processors):
    golden, processor = goldens[variant], processors[variant]
    inputs, labels = training_inputs(processor, golden, case, num_latents=4)
    assert collapse(inputs["input_ids"][0].tolist(), processor) == reference_ids(golden[f"{case}/train/input_ids"])
    placeholders = torch.tensor([processor.image_token_id, processor.latent_token_id])
    is_text = ~torch.isin(inputs["input_ids"], placeholders)
    expected = golden[f"{case}/train/labels"]
    expected = expected[~torch.isin(golden[f"{case}/train/input_ids"], torch.tensor(REFERENCE_PLACEHOLDERS))]
    assert labels[is_text].tolist() == [-100 if label < 0 else label for label in expected.tolist()]
    assert (labels[~is_text] == -100).all()


def training_inputs(processor, golden, case, num_latents, **processor_kwargs):
    inputs = processor.apply_chat_template(
        golden.messages(case, "train"),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"latent_grid_size": isqrt(num_latents), **processor_kwargs},
    )
    answers = inputs.pop("assistant_masks").bool()
    return inputs, inputs["input_ids"].masked_fill(~answers, -100)


def check_logits(model, processor, golden, case, **processor_kwargs):
    for num_latents in golden.cases[case]["qlens"]:
        inputs = process(processor, golden.messages(case), latent_grid_size=isqrt(num_latents), **processor_kwargs)
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        prefix = f"{case}/infer/q{num_latents}"
        assert relative_error(logits[-1], golden[f"{prefix}/last_logits"]) < TOLERANCE
        if f"{prefix}/logits" in golden.names:
            assert relative_error(logits, golden[f"{prefix}/logits"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant, case, goldens, processors, models):
    check_logits(models[variant], processors[variant], goldens[variant], case)


def test_logits_with_eager_attention(goldens, processors, converted):
    model = FusionForConditionalGeneration.from_pretrained(converted[PHI], attn_implementation="eager")
    for case in ("multi", "exclaim"):
        check_logits(model, processors[PHI], goldens[PHI], case)


def test_logits_with_a_16x16_image_grid(fusion_l, processors, models):
    check_logits(models[PHI], processors[PHI], fusion_l, "single", image_grid_size=16)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation(variant, case, goldens, processors, models):
    check_generation(models[variant], processors[variant], goldens[variant], case)


def test_greedy_generation_with_a_16x16_image_grid(fusion_l, processors, models):
    check_generation(models[PHI], processors[PHI], fusion_l, "single", image_grid_size=16)


def check_generation(model, processor, golden, case, **processor_kwargs):
    for num_latents in golden.cases[case]["qlens"]:
        inputs = process(processor, golden.messages(case), latent_grid_size=isqrt(num_latents), **processor_kwargs)
        expected = golden[f"{case}/infer/q{num_latents}/generated"]
        # The goldens run on after the end-of-turn token.
        output = model.generate(**inputs, max_new_tokens=len(expected), do_sample=False, eos_token_id=-1)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == expected.tolist()


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_intermediate_tensors(variant, backend, goldens, processors, converted):
    """Every stored tensor of the way from pixels to the final norm."""
    golden, processor = goldens[variant], processors[variant]
    model = FusionForConditionalGeneration.from_pretrained(converted[variant], attn_implementation=backend)
    captured = {}

    def capture(name, module, transform=lambda output: output[0], call=0):
        """Store one call of a module. The tower and its projector run twice, on the image and on the crops."""
        calls = []

        def hook(module, args, output):
            if len(calls) == call:
                captured[name] = transform(output)
            calls.append(None)

        module.register_forward_hook(hook, prepend=True)

    core = model.model
    capture("instruct_states", core.text_to_vision_projector)
    capture("image_features", core.multi_modal_projector)
    capture("global_features", core.multi_modal_projector, lambda output: output, call=1)
    for index, layer in enumerate(core.vision_tower.encoder.layers):
        capture(f"vision_layer{index}", layer, lambda output: output[0, ::9])
    for index, layer in enumerate(core.language_model.layers):
        # Before the interaction layer, whose hook comes after these.
        capture(f"layer{index}", layer, lambda output: output[0, ::9])
    for index, layer in enumerate(core.interaction_layers):
        capture(f"card{index}", layer)
    capture("norm", core.language_model.norm, lambda output: output[0, ::9])

    with torch.no_grad():
        model(**process(processor, golden.messages("single"), latent_grid_size=2))
    prefix = "single/infer/q4/"
    stored = {name.removeprefix(prefix) for name in golden.names if name.startswith(prefix)}
    compared = stored - {"logits", "last_logits", "generated"}
    assert compared <= captured.keys()
    errors = {name: relative_error(captured[name], golden[prefix + name]) for name in compared}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradient_norms(variant, case, goldens, processors, models):
    check_training(models[variant], processors[variant], goldens[variant], case)


def test_losses_and_gradient_norms_with_a_16x16_image_grid(fusion_l, processors, models):
    check_training(models[PHI], processors[PHI], fusion_l, "single", image_grid_size=16)


def test_losses_and_gradient_norms_with_eager_attention(goldens, processors, converted):
    model = FusionForConditionalGeneration.from_pretrained(converted[LLAMA], attn_implementation="eager")
    check_training(model, processors[LLAMA], goldens[LLAMA], "exclaim")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_with_eager_attention(variant, case, goldens, processors, converted):
    """All that the tests above do with SDPA; eager attention takes five times as long."""
    model = FusionForConditionalGeneration.from_pretrained(converted[variant], attn_implementation="eager")
    for check in (check_logits, check_generation, check_training):
        check(model, processors[variant], goldens[variant], case)


def check_training(model, processor, golden, case, **processor_kwargs):
    has_image = golden.cases[case]["image"] is not None
    for num_latents in golden.cases[case]["qlens"]:
        prefix = f"{case}/train/q{num_latents}"
        if f"{prefix}/loss" not in golden.names:
            continue
        inputs, labels = training_inputs(processor, golden, case, num_latents, **processor_kwargs)
        has_gradients = f"{prefix}/grad_norms" in golden.names and has_image
        with torch.set_grad_enabled(has_gradients):
            outputs = model(**inputs, labels=labels)
        parts = golden[f"{prefix}/loss_parts"].tolist()
        assert outputs.language_loss.item() == pytest.approx(parts[0], abs=1e-5)
        if has_image:
            assert outputs.text_mapping_loss.item() == pytest.approx(parts[1], abs=1e-5)
            assert outputs.vision_mapping_loss.item() == pytest.approx(parts[2], abs=1e-5)
            assert outputs.loss.item() == pytest.approx(golden[f"{prefix}/loss"].item(), abs=1e-5)
        else:
            # The reference adds a vision term for an all-zero image, which is not wanted (SPEC section 6).
            assert outputs.loss.item() == outputs.language_loss.item()
        if has_gradients:
            model.zero_grad()
            outputs.loss.backward()
            check_gradients(model, golden.cases[case]["grad_names"], golden[f"{prefix}/grad_norms"].tolist())
            model.zero_grad()


def check_gradients(model, released_names, norms):
    ours = {released: name for name, released in map_names(released_names).items()}
    parameters = dict(model.named_parameters())
    largest = max(norms)
    for released_name, norm in zip(released_names, norms, strict=True):
        if released_name not in ours:
            assert norm == -1, f"{released_name} is dropped but has a gradient in the reference"
            continue
        gradient = parameters[ours[released_name]].grad
        assert gradient is not None, released_name
        # Key biases have no gradient but rounding errors, since a softmax does not see them.
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6 * largest), released_name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tower_in_half_precision_stays_within_rounding(variant, dtype, goldens, processors, models):
    """The mean of the early question rows must not depend on what a mask of the dtype can express."""
    golden = goldens[variant]
    inputs = process(processors[variant], golden.messages("exclaim"))
    arguments = (inputs["pixel_values"], inputs["question_input_ids"], inputs["question_attention_mask"])
    with torch.no_grad():
        expected = models[variant].model.get_image_features(*arguments)
        half = FusionForConditionalGeneration(models[variant].config).to(dtype)
        half.load_state_dict(models[variant].state_dict())
        actual = half.model.get_image_features(arguments[0].to(dtype), *arguments[1:])
    # A rounding error of half a unit in the last place for each of the layers, added up.
    bound = torch.finfo(dtype).eps * models[variant].config.vision_config.num_hidden_layers / 2
    assert relative_error(actual.last_hidden_state, expected.last_hidden_state) < bound
    assert relative_error(actual.question_features, expected.question_features) < bound
    assert relative_error(actual.image_features, expected.image_features) < bound
