"""
Fine-tuning with other libraries.

LoRA and QLoRA (PEFT, bitsandbytes), SFT, DPO, GRPO and RLOO (TRL), gradient checkpointing, and frozen parts.
"""

import json
from collections import Counter

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from datasets import Dataset
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, RLOOConfig, SFTConfig, SFTTrainer

from fusion_vlm import modeling_fusion
from fusion_vlm.modeling_fusion import SKIPPED_IN_4BIT, FusionForConditionalGeneration
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.grpo import FUSION_INPUTS, FusionGRPOTrainer, FusionRLOOTrainer
from fusion_vlm.training.lora import lora_config

from ..helpers import LLAMA, enable_checkpointing, make_messages, process, relative_error
from ..tiny import last_logits, random_image, tiny_model


QUIET = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}
PARTS = (
    "vision_tower",
    "language_model",
    "multi_modal_projector",
    "text_to_vision_projector",
    "interaction_layers.0",
    "interaction_layers.1",
    "lm_head",
)
CONNECTORS = set(PARTS[2:6])


@pytest.fixture
def rows() -> list[dict]:
    """Return a batch of two rows, one of them with an image."""
    return [
        {"messages": make_messages(["What is it?", "A square.", "Which one?", "The red one."], random_image(0))},
        {"messages": make_messages(["Hello!", "Good morning to you."])},
    ]


def make_trainer(model, processor, rows, folder, eval_dataset=None, **options) -> Trainer:
    arguments = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **QUIET, **options}
    return Trainer(
        model,
        TrainingArguments(str(folder), remove_unused_columns=False, **arguments),
        data_collator=FusionDataCollator(processor, latent_grid_sizes=[2]),
        train_dataset=rows,
        eval_dataset=eval_dataset,
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def find_part(name: str) -> str:
    return next(part for part in PARTS if f".{part}." in f".{name}")


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    """Return the gradients of trainable parameters, in training mode, and the loss."""
    model.train()
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {"loss": loss.detach(), **{name: parameter.grad.clone() for name, parameter in named.items()}}


def assert_same(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


# LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "options", "trained"),
    [
        ("llama", {}, {"language_model"}),
        ("llama", {"tower": True}, {"language_model", "vision_tower"}),
        ("llama", {"connectors": True}, {"language_model"} | CONNECTORS),
        ("phi3", {"tower": True, "connectors": True}, set(PARTS) - {"lm_head"}),
    ],
)
def test_lora_is_trained_saved_loaded_and_merged(decoder, options, trained, processor, rows, conversations, tmp_path):
    """Only what was asked for changes, and the logits stay the same from one form of the model to the next."""
    inputs = process(processor, conversations)
    base = tiny_model(processor, decoder)
    untrained = last_logits(base, inputs)
    model = get_peft_model(base, lora_config(base, **options, r=4))
    torch.testing.assert_close(last_logits(model.eval(), inputs), untrained)

    before = parameters(model)
    trainer = make_trainer(model, processor, rows, tmp_path)
    trainer.train()
    after = parameters(model)
    assert {find_part(name) for name in after if not torch.equal(after[name], before[name])} == trained
    expected = last_logits(model.eval(), inputs)
    assert not torch.allclose(expected, untrained, atol=1e-2)

    trainer.save_model(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(processor, decoder), tmp_path)
    torch.testing.assert_close(last_logits(loaded, inputs), expected, rtol=1e-5, atol=1e-5)
    answer = loaded.generate(**inputs, max_new_tokens=3, do_sample=False)

    merged = loaded.merge_and_unload()
    assert merged.state_dict().keys() == tiny_model(processor, decoder).state_dict().keys()
    assert relative_error(last_logits(merged, inputs), expected) < 1e-5
    assert torch.equal(merged.generate(**inputs, max_new_tokens=3, do_sample=False), answer)
    merged.save_pretrained(tmp_path / "merged")
    again = FusionForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert relative_error(last_logits(again, inputs), expected) < 1e-5


def test_interaction_layers_act_in_an_adapted_decoder(processor, conversations):
    """PEFT puts its own modules into the decoder's layers, which the interaction layers are attached to."""
    inputs = process(processor, conversations[0])
    base = tiny_model(processor)
    model = get_peft_model(base, lora_config(base, connectors=True)).eval()
    expected = last_logits(model, inputs)
    for layer in base.model.interaction_layers:
        with torch.no_grad():
            layer.modules_to_save["default"].proj_out.linear_2.weight.zero_()
    assert not torch.allclose(last_logits(model, inputs), expected, atol=1e-2)


def test_adapter_folder_names_nothing_of_this_machine(converted, tmp_path):
    """The module of a model of remote code is a path in this machine's cache."""

    def load():
        return AutoModelForImageTextToText.from_pretrained(converted[LLAMA], trust_remote_code=True)

    base = load()
    assert type(base).__module__.startswith("transformers_modules")
    model = get_peft_model(base, lora_config(base, tower=True, connectors=True, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.pop("base_model_name_or_path") == str(converted[LLAMA])
    text = json.dumps(config)
    assert "transformers_modules" not in text and str(converted[LLAMA].parent) not in text
    loaded, expected = parameters(PeftModel.from_pretrained(load(), tmp_path)), parameters(model)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


# QLoRA --------------------------------------------------------------------------------------------------------------


def load_in_4_bits(folder, double_quant: bool = True, **values) -> FusionForConditionalGeneration:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant, **values
    )
    return FusionForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def load_qlora(folder, double_quant: bool = True) -> PeftModel:
    """Load a model in 4 bits with a random adapter, in evaluation mode."""
    model = prepare_model_for_kbit_training(load_in_4_bits(folder, double_quant))
    torch.manual_seed(0)
    return get_peft_model(model, lora_config(model, r=4, init_lora_weights=False)).eval()


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes packs weights on CPUs with AVX512-BF16 only")
@pytest.mark.parametrize("double_quant", [True, False])
def test_qlora_learns_after_evaluation(double_quant, wide_folder, processor, rows, monkeypatch):
    """In evaluation bitsandbytes packs the weights for kernels without a gradient; see `guard_4bit_packing`."""
    inputs = FusionDataCollator(processor, latent_grid_sizes=[2])(rows)

    def largest_error(model) -> float:
        actual = gradients(model, inputs)
        return max(relative_error(actual[name], expected[name]) for name in expected)

    model = load_qlora(wide_folder, double_quant)
    expected = gradients(model, inputs)
    last_logits(model.eval(), inputs)
    assert largest_error(model) == 0

    model = load_qlora(wide_folder, double_quant)
    last_logits(model, inputs)
    # Packing rounds the scales of the weights; that much stays.
    assert largest_error(model) < 0.01

    monkeypatch.setattr(modeling_fusion, "guard_4bit_packing", lambda layer, is_training: None)
    model = load_qlora(wide_folder, double_quant)
    last_logits(model, inputs)
    assert largest_error(model) > 0.5, "there is something to guard"


def test_qlora_is_trained_saved_and_loaded(wide_folder, processor, rows, conversations, tmp_path):
    """An evaluation after each step changes nothing."""
    inputs = process(processor, conversations)
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = load_qlora(wide_folder)
        trainer = make_trainer(model, processor, rows, tmp_path, eval_dataset=rows, max_steps=3, **options)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0][-1] < runs[0][0] - 0.1
    assert runs[1] == runs[0]
    trainer.save_model(tmp_path)
    loaded = PeftModel.from_pretrained(load_in_4_bits(wide_folder), tmp_path)
    torch.testing.assert_close(last_logits(loaded, inputs), last_logits(model.eval(), inputs), rtol=1e-2, atol=1e-2)


def test_connectors_trained_in_full_are_not_quantized(wide_folder, processor, rows):
    with pytest.raises(ValueError, match="`interaction_layers.0` is quantized.*llm_int8_skip_modules"):
        lora_config(load_in_4_bits(wide_folder), connectors=True)
    skipped = [*SKIPPED_IN_4BIT, "model.interaction_layers"]
    model = prepare_model_for_kbit_training(load_in_4_bits(wide_folder, llm_int8_skip_modules=skipped))
    model = get_peft_model(model, lora_config(model, connectors=True))
    trained = gradients(model, FusionDataCollator(processor, latent_grid_sizes=[2])(rows))
    assert {find_part(name) for name in trained if name != "loss"} == {"language_model"} | CONNECTORS


# Gradient checkpointing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_checkpointing_of_a_mixed_batch(adapted, use_reentrant, processor, rows):
    """Layers of the tower, of the decoder and of interaction are computed twice, to the same loss and gradients."""
    base = model = tiny_model(processor)
    if adapted:
        model = get_peft_model(base, lora_config(base, tower=True, connectors=True, r=4, init_lora_weights=False))
    inputs = FusionDataCollator(processor, latent_grid_sizes=[2])(rows)
    calls = Counter()
    for name, module in base.named_modules():
        if name.endswith(("self_attn", "proj_in")):
            part = find_part(name)
            module.register_forward_pre_hook(lambda module, args, part=part: calls.update([part]))
    expected, first_calls = gradients(model, inputs), calls.copy()
    assert first_calls.keys() == {"vision_tower", "language_model", "interaction_layers.0", "interaction_layers.1"}
    enable_checkpointing(base, use_reentrant)
    base.enable_input_require_grads()
    calls.clear()
    assert_same(gradients(model, inputs), expected)
    assert calls == {part: 2 * count for part, count in first_calls.items()}


def test_checkpointing_in_trainer(processor, rows, tmp_path):
    """A step with checkpointing changes the weights in the same way."""
    runs = []
    for use_reentrant in (None, False, True):
        options = {
            "gradient_checkpointing": use_reentrant is not None,
            "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant},
        }
        model = tiny_model(processor)
        trainer = make_trainer(model, processor, rows, tmp_path, max_steps=1, optim="sgd", **options)
        trainer.train()
        runs.append({"loss": torch.tensor(losses(trainer)), **parameters(model)})
    assert not torch.equal(runs[0]["lm_head.weight"], tiny_model(processor).lm_head.weight)
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


# Frozen parts -------------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Notes the parts that have a gradient when the optimizer is about to step."""

    def __init__(self):
        self.parts = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.parts |= {find_part(name) for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("frozen", [{"vision_tower"}, {"vision_tower", "language_model", "lm_head"}, CONNECTORS])
def test_frozen_parts_take_no_gradient_and_no_optimizer_state(frozen, processor, rows, tmp_path):
    model = tiny_model(processor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(find_part(name) not in frozen)
    before = parameters(model)
    seen = Gradients()
    trainer = make_trainer(model, processor, rows, tmp_path)
    trainer.add_callback(seen)
    trainer.train()
    rest = set(PARTS) - frozen
    assert seen.parts == rest
    state = trainer.optimizer.state
    assert {find_part(name) for name, parameter in model.named_parameters() if parameter in state} == rest
    after = parameters(model)
    assert {find_part(name) for name in after if not torch.equal(after[name], before[name])} == rest


# TRL ----------------------------------------------------------------------------------------------------------------


class SFTTrainerWithMappingLoss(SFTTrainer):
    """How TRL trains with the loss of the model."""

    compute_loss = Trainer.compute_loss


def make_sft_trainer(model, processor, rows, folder, trainer_class=SFTTrainer, peft_config=None, **options):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 1e-2, **QUIET, **options}
    return trainer_class(
        model,
        args=SFTConfig(str(folder), assistant_only_loss=True, max_length=None, bf16=False, **arguments),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=peft_config,
    )


@pytest.fixture
def chats() -> list[dict]:
    """Return rows as TRL expects them: images in a column, which is empty in a row of text only."""
    dialogs = [["What is it?", "A square.", "Which?", "The red one."], ["Hello!", "Good morning."], ["How?", "So."]]
    images = [[random_image(0)], [], [random_image(1)]]
    roles = ["user", "assistant"]
    messages = [
        [{"role": roles[index % 2], "content": text} for index, text in enumerate(dialog)] for dialog in dialogs
    ]
    return [{"messages": turns, "images": image} for turns, image in zip(messages, images, strict=True)]


@pytest.mark.parametrize("kind", ["mixed", "text"])
def test_sft_trainer_trains_as_trainer_does(kind, processor, chats, tmp_path):
    """Only the language loss is compared: TRL computes it itself, from the hidden states."""
    if kind == "text":
        chats = [{"messages": chat["messages"]} for chat in chats]
    model, other = (tiny_model(processor, mapping_loss_coef=0.0) for _ in range(2))
    trainer = make_sft_trainer(model, processor, chats, tmp_path)
    expected = make_trainer(other, processor, chats, tmp_path, max_steps=4, per_device_train_batch_size=3)
    trainer.train()
    expected.train()
    assert losses(trainer)[0] == pytest.approx(losses(expected)[0], rel=1e-6)
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-3)
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]


def test_sft_trainer_smooths_the_loss_of_the_next_token(processor, chats, tmp_path):
    model = tiny_model(processor, mapping_loss_coef=0.0)
    batch = FusionDataCollator(processor, latent_grid_sizes=[2])(chats)
    with torch.no_grad():
        expected, plain = (model(**batch, label_smoothing=factor).loss.item() for factor in (0.5, 0.0))
    trainer = make_sft_trainer(model, processor, chats, tmp_path, label_smoothing_factor=0.5, max_steps=1)
    trainer.train()
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)
    assert abs(expected - plain) > 0.01


def test_sft_trainer_with_the_mapping_loss(processor, chats, tmp_path):
    models = [tiny_model(processor) for _ in range(2)]
    trainer = make_sft_trainer(models[0], processor, chats, tmp_path, SFTTrainerWithMappingLoss)
    expected = make_trainer(models[1], processor, chats, tmp_path, max_steps=4, per_device_train_batch_size=3)
    trainer.train()
    expected.train()
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-3)


def test_sft_trainer_with_lora(processor, chats, conversations, tmp_path):
    """And with an evaluation after each step."""
    inputs = process(processor, conversations)
    model = tiny_model(processor)
    trainer = make_sft_trainer(
        model,
        processor,
        chats,
        tmp_path,
        peft_config=lora_config(model, tower=True, connectors=True, r=4),
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    trainer.save_model(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(processor), tmp_path)
    torch.testing.assert_close(last_logits(loaded, inputs), last_logits(trainer.model.eval(), inputs))
    answers = [model.generate(**inputs, max_new_tokens=3, do_sample=False) for model in (loaded, trainer.model)]
    assert torch.equal(*answers)


def completion_log_probs(model, processor, prompt: str, completion: str, image) -> float:
    """Compute the log probability of a completion with one forward over the whole conversation."""
    messages = make_messages([prompt, completion], image)
    start = process(processor, messages[:1])["input_ids"].shape[1]
    inputs = process(processor, messages, add_generation_prompt=False)
    with torch.no_grad():
        log_probs = model.eval()(**inputs).logits[0, start - 1 : -1].log_softmax(dim=-1)
    return log_probs.gather(1, inputs["input_ids"][0, start:, None]).sum().item()


class NotesBatches:
    """Keeps the batches that a trainer of TRL computes its loss of."""

    def _compute_loss(self, model, inputs, *args):
        self.batches = [*getattr(self, "batches", []), inputs]
        return super()._compute_loss(model, inputs, *args)


def test_dpo_trainer_compares_right_log_probabilities(processor, tmp_path):
    """TRL's trainer is unmodified; rows with and without images and prompts of different lengths mix."""
    prompts = ["What is it?", "And what is this thing here?", "Hello!"]
    images = [[random_image(0)], [random_image(1)], []]
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "images": image}
        | {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "A cat."), ("rejected", "No"))}
        for prompt, image in zip(prompts, images, strict=True)
    ]
    model = tiny_model(processor)
    options = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "max_length": None, **QUIET}
    trainer = DPOTrainer(
        model,
        ref_model=tiny_model(processor),
        args=DPOConfig(str(tmp_path), bf16=False, lr_scheduler_type="constant", **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    cases = [(prompt, image[0] if image else None) for prompt, image in zip(prompts, images, strict=True)]
    expected = [
        sum(completion_log_probs(model, processor, prompt, text, image) for prompt, image in cases) / 3
        for text in ("A cat.", "No")
    ]
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert [first["logps/chosen"], first["logps/rejected"]] == pytest.approx(expected, rel=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5) and second["rewards/margins"] > 0.01


class NotingGRPOTrainer(NotesBatches, FusionGRPOTrainer):
    pass


class NotingRLOOTrainer(NotesBatches, FusionRLOOTrainer):
    pass


def make_sampling_trainer(trainer_class, model, processor, folder, images, **options):
    config_class = RLOOConfig if issubclass(trainer_class, FusionRLOOTrainer) else GRPOConfig
    prompts = [[{"role": "user", "content": text}] for text in ("What is it?", "And what is this thing here?")]
    rows = [{"prompt": prompt, **image} for prompt, image in zip(prompts, images, strict=True)]
    arguments = {"num_generations": 2, "max_completion_length": 4, "shuffle_dataset": False, **QUIET, **options}
    arguments["per_device_train_batch_size"] = 4
    return trainer_class(
        model,
        reward_funcs=lambda completions, **kwargs: [float(index) for index, _ in enumerate(completions)],
        args=config_class(str(folder), bf16=False, learning_rate=1e-2, trust_remote_code=True, **arguments),
        train_dataset=Dataset.from_list(rows * 2),
        processing_class=processor,
    )


@pytest.mark.parametrize("with_images", [True, False], ids=["images", "text"])
@pytest.mark.parametrize("trainer_class", [NotingGRPOTrainer, NotingRLOOTrainer])
def test_sampling_trainers_compute_right_log_probabilities(trainer_class, with_images, processor, tmp_path):
    """8 samples in two chunks and two steps are compared, for prompts of different lengths."""
    base = tiny_model(processor)
    model = get_peft_model(base, lora_config(base, r=4))
    images = [{"image": random_image(index)} if with_images else {} for index in range(2)]
    options = {"max_steps": 2, "beta": 0.1, "steps_per_generation": 2, "temperature": 1.5}
    trainer = make_sampling_trainer(trainer_class, model, processor, tmp_path, images, **options)
    before = parameters(model)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in parameters(model).items())
    batch = {name: value for name, value in trainer.batches[1].items() if value is not None}
    assert all((name in batch) == with_images for name in FUSION_INPUTS)
    reference = tiny_model(processor).eval()
    for row in range(4):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        inputs = {name: batch[name][row : row + 1] for name in ("pixel_values", *FUSION_INPUTS) if name in batch}
        with torch.no_grad():
            logits = reference(input_ids=torch.cat([prompt, completion])[None], **inputs).logits
        logits = logits[0, len(prompt) - 1 : -1] / 1.5
        expected = logits.log_softmax(dim=-1).gather(1, completion[:, None])[:, 0]
        if "old_logps" in batch:
            torch.testing.assert_close(batch["old_logps"][row], expected.sum(), rtol=1e-4, atol=1e-4)
        else:
            for name in ("old_per_token_logps", "ref_per_token_logps"):
                actual = batch[name][row][: len(completion)]
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        if with_images:
            without = {**inputs, "question_attention_mask": torch.zeros_like(inputs["question_attention_mask"])}
            with torch.no_grad():
                other = reference(input_ids=torch.cat([prompt, completion])[None], **without).logits
            assert not torch.allclose(other[0, len(prompt) - 1 : -1] / 1.5, logits, atol=1e-4), "the question counts"


def test_sampling_trainers_refuse_a_mixed_batch(processor, tmp_path):
    images = [{"images": [random_image(0)]}, {"images": []}]
    trainer = make_sampling_trainer(FusionGRPOTrainer, tiny_model(processor), processor, tmp_path, images, max_steps=1)
    with pytest.raises(ValueError, match="2 of 4 prompts in the batch have no image"):
        trainer.train()
