"""`Trainer`, `FusionTrainer`, recipes and the training command on tiny models."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from fusion_vlm.commands.main import main
from fusion_vlm.training import trainer as training_trainer
from fusion_vlm.training.build import build_arguments, build_config, build_processor, load_recipe
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.lora import lora_config
from fusion_vlm.training.trainer import LOSS_PARTS, FusionTrainer, FusionTrainingArguments, ModalityLengthSampler

from ..helpers import ROOT, make_messages, needs_recipes
from ..tiny import VISION_CONFIG, random_image, tiny_config


RECIPES = ROOT / "training" / "recipes"
ANSWERS = ["Red.", "A blue cube.", "Three of them, left of the red ball.", "No."]


def make_rows(count: int) -> list[dict]:
    """Return rows with answers of different lengths; every third row has no image."""
    rows = []
    for index in range(count):
        turns = [f"What is number {index}?", ANSWERS[index % 4]] * (1 + index % 2)
        rows.append({"messages": make_messages(turns), "source": f"row {index}"})
        if index % 3:
            rows[-1]["image"] = random_image(index)
    return rows


def arguments(folder, **values) -> FusionTrainingArguments:
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return FusionTrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **{**defaults, **values}
    )


def make_trainer(model, processor, folder, *, rows=8, trainer_class=FusionTrainer, collator=None, **values):
    options = {name: values.pop(name) for name in ("eval_dataset", "compute_metrics") if name in values}
    return trainer_class(
        copy.deepcopy(model),
        arguments(folder, **values),
        data_collator=collator or FusionDataCollator(processor),
        train_dataset=make_rows(rows),
        processing_class=processor,
        **options,
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_plain_trainer_learns(model, processor, tmp_path):
    options = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        max_steps=15,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        copy.deepcopy(model), options, train_dataset=make_rows(4), data_collator=FusionDataCollator(processor)
    )
    trainer.train()
    losses = logged(trainer)
    assert losses[-1] < 0.5 * losses[0]


PERSISTENT = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
MUON = {"use_muon": True, "vision_learning_rate": 1e-4, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "batch_size, steps, extra",
    [
        (2, 10, {"trainer_class": Trainer}),
        (1, 20, {"trainer_class": Trainer}),
        (1, 14, {"trainer_class": Trainer, **PERSISTENT}),
        (2, 10, MUON),
    ],
    ids=["trainer", "trainer-single-rows", "trainer-persistent-workers", "muon"],
)
def test_resumed_training_is_bit_equal(batch_size, steps, extra, model, processor, tmp_path):
    """Over more than an epoch, interrupted within the second one."""
    options = {
        **extra,
        "rows": 6 * batch_size,
        "per_device_train_batch_size": batch_size,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 8,
    }
    whole = make_trainer(model, processor, tmp_path, **options)
    whole.train()
    resumed = make_trainer(model, processor, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert logged(resumed) == logged(whole)
    for (name, expected), parameter in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, expected), name


def test_best_checkpoint_loads_with_trust_remote_code(model, processor, tmp_path):
    rows = make_rows(4)
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        eval_dataset=rows,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    losses = logged(trainer, "eval_loss")
    assert trainer.state.best_metric == min(losses)
    assert losses[0] != losses[1]
    loaded = AutoModelForImageTextToText.from_pretrained(best, trust_remote_code=True)
    loaded_processor = AutoProcessor.from_pretrained(best, trust_remote_code=True)
    inputs = FusionDataCollator(loaded_processor, latent_grid_sizes=[2])(rows[:2])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_micro_batches_give_the_gradients_of_the_batch(model, processor, tmp_path):
    """A batch of 4, with answers of different lengths and a row without an image, and 4 batches of 1."""
    gradients = []
    for batch_size, num_batches in ((4, 1), (1, 4)):
        trainer = make_trainer(
            model,
            processor,
            tmp_path,
            rows=4,
            collator=FusionDataCollator(processor, latent_grid_sizes=[2]),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=num_batches,
            max_grad_norm=0.0,
            optim="sgd",
            learning_rate=1.0,
        )
        trainer.train()
        before = dict(model.named_parameters())
        gradients.append({name: before[name] - after for name, after in trainer.model.named_parameters()})
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).abs().max().item()
        assert error < 2e-5 + 1e-3 * expected.abs().max().item(), name
    assert all(gradients[0][name].any() for name in gradients[0] if "projector" in name)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_logged_parts_add_up_to_the_loss(num_batches, model, processor, tmp_path):
    trainer = make_trainer(
        model, processor, tmp_path, gradient_accumulation_steps=num_batches, logging_steps=2, max_steps=4
    )
    trainer.train()
    coef = model.config.mapping_loss_coef
    for total, language, text, vision in zip(
        logged(trainer), *(logged(trainer, name) for name in LOSS_PARTS), strict=True
    ):
        assert total == pytest.approx(language + coef * (text + vision), rel=1e-4)
        assert text > 0 and vision > 0


def parts_by_step(trainer) -> dict[int, float]:
    """Return the sum of the logged parts and the logged loss, for each log since the last `train()`."""
    coef = trainer.model.config.mapping_loss_coef
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries and all(set(LOSS_PARTS) <= set(entry) for entry in entries)
    sums = [
        entry["language_loss"] + coef * (entry["text_mapping_loss"] + entry["vision_mapping_loss"])
        for entry in entries
    ]
    assert sums == pytest.approx([entry["loss"] for entry in entries], rel=1e-4)
    return {entry["step"]: entry["vision_mapping_loss"] for entry in entries}


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 3, "logging_steps": 2},
        {"max_steps": 5, "logging_steps": 2, "gradient_accumulation_steps": 2, "logging_first_step": True},
        {"num_train_epochs": 3, "max_steps": -1, "logging_steps": 3, "eval_strategy": "epoch"},
        {"max_steps": 6, "logging_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=["rest", "accumulation", "epochs", "evaluation"],
)
def test_second_training_logs_the_parts_of_the_first(options, model, processor, tmp_path):
    """In one process, with steps left at the end of which nothing is logged; the weights stay as they are."""
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        eval_dataset=make_rows(3),
        learning_rate=0.0,
        collator=FusionDataCollator(processor, latent_grid_sizes=[2]),
        **options,
    )
    trainer.train()
    first = parts_by_step(trainer)
    trainer.train()
    assert parts_by_step(trainer) == pytest.approx(first, rel=1e-5)
    trainer.args.logging_steps = 1
    trainer.train()
    parts_by_step(trainer)


def test_parts_after_a_resume_are_those_of_the_steps_since(model, processor, tmp_path):
    options = {"max_steps": 6, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(model, processor, tmp_path, **options)
    whole.train()
    resumed = make_trainer(model, processor, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert list(parts_by_step(resumed)) == list(parts_by_step(whole)) == [3, 6]


class RunsOutOfMemory(TrainerCallback):
    """In the third step of the first training."""

    is_first = True

    def on_step_begin(self, args, state, control, **kwargs):
        if self.is_first and state.global_step == 2:
            self.is_first = False
            raise RuntimeError("CUDA out of memory.")


def test_retry_after_out_of_memory_logs_right_parts(model, processor, tmp_path):
    trainer = make_trainer(
        model, processor, tmp_path, max_steps=6, logging_steps=4, auto_find_batch_size=True, learning_rate=0.0
    )
    trainer.add_callback(RunsOutOfMemory())
    trainer.train()
    assert not trainer.callback_handler.callbacks[-1].is_first
    assert list(parts_by_step(trainer)) == [4]


def smoothed_losses(model, processor, rows, factor: float) -> dict[str, float]:
    """Compute the loss by hand in one batch: each position is compared with the token that follows it."""
    batch = FusionDataCollator(processor, latent_grid_sizes=[2])(rows)
    with torch.no_grad():
        output = model.eval()(**batch)
    labels = batch["labels"][:, 1:]
    log_probs = output.logits[:, :-1][labels != -100].log_softmax(dim=-1)
    right = log_probs.gather(1, labels[labels != -100][:, None])
    language = -((1 - factor) * right.mean() + factor * log_probs.mean())
    mapping = {name: output[name].item() for name in LOSS_PARTS[1:]}
    total = language.item() + model.config.mapping_loss_coef * sum(mapping.values())
    return {"loss": total, "language_loss": language.item(), **mapping}


@pytest.mark.parametrize("batch_size, num_batches", [(4, 1), (1, 4), (3, 2)])
def test_smoothed_loss_is_that_of_the_next_token(batch_size, num_batches, model, processor, tmp_path):
    """With the mapping loss, also in micro-batches, of which the last may hold fewer rows; in evaluation, too."""
    rows = make_rows(4)
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        rows=4,
        eval_dataset=rows,
        collator=FusionDataCollator(processor, latent_grid_sizes=[2]),
        label_smoothing_factor=0.5,
        max_steps=1,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=num_batches,
        learning_rate=0.0,
    )
    trainer.train()
    expected = smoothed_losses(model, processor, rows, 0.5)
    actual = {name: logged(trainer, name)[0] for name in expected}
    assert actual == pytest.approx(expected, rel=1e-4)
    assert abs(expected["loss"] - smoothed_losses(model, processor, rows, 0.0)["loss"]) > 0.01, "smoothing shows"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["label_smoothing_factor", "compute_loss_func"])
def test_trainer_without_labels_is_refused(kind, adapted, model, processor, tmp_path):
    """Plain `Trainer` shifts labels only for names of its own models."""
    values = {"label_smoothing_factor": 0.1} if kind == "label_smoothing_factor" else {}
    options = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False, max_steps=1, **values
    )
    trained = copy.deepcopy(model)
    trainer = Trainer(
        get_peft_model(trained, lora_config(trained)) if adapted else trained,
        options,
        train_dataset=make_rows(4),
        data_collator=FusionDataCollator(processor),
        compute_loss_func=None if values else lambda outputs, labels, num_items_in_batch: outputs.logits.mean(),
    )
    with pytest.raises(ValueError, match="took the labels away.*Use `FusionTrainer`"):
        trainer.train()


def test_another_language_loss_is_the_models(model, processor, tmp_path):
    with pytest.raises(ValueError, match="`compute_loss_func` takes the labels away.*`model.loss_function`"):
        FusionTrainer(model, arguments(tmp_path), compute_loss_func=lambda *args, **kwargs: None)
    trainer = make_trainer(model, processor, tmp_path, max_steps=1)

    def loss_function(logits, labels, vocab_size, num_items_in_batch, shift_labels, **kwargs):
        return 7.0 + 0.0 * logits.sum()

    trainer.model.loss_function = loss_function
    trainer.train()
    assert logged(trainer, "language_loss") == [7.0]
    parts_by_step(trainer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_trained_in_full_are_noticed(dtype, model, processor, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(training_trainer.logger, "warning", messages.append)

    def collect_warnings(trained, **values) -> list[str]:
        messages.clear()
        make_trainer(trained, processor, tmp_path, **values).create_optimizer()
        return list(messages)

    rounded = copy.deepcopy(model).to(dtype)
    name = str(dtype).removeprefix("torch.")
    (message,) = collect_warnings(rounded)
    assert f"100% of the trained weights are in {name}" in message and "dtype=torch.float32" in message
    assert not collect_warnings(model)
    assert not collect_warnings(get_peft_model(copy.deepcopy(rounded), lora_config(rounded))), (
        "adapters are in float32"
    )
    (message,) = collect_warnings(get_peft_model(copy.deepcopy(rounded), lora_config(rounded, connectors=True)))
    assert "100%" not in message and name in message
    rounded.requires_grad_(False)
    rounded.lm_head.float().requires_grad_(True)
    assert not collect_warnings(rounded), "frozen weights are not rounded"


def test_tower_has_its_own_learning_rate(model, processor, tmp_path):
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        vision_learning_rate=1e-5,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        max_steps=1,
    )
    trainer.train()
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        rate, decay = rates[id(parameter)]
        assert rate == (1e-5 if "vision_tower" in name else 1e-3), name
        assert decay == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_muon_trains_hidden_matrices_and_adamw_the_rest(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, **MUON, lr_scheduler_type="constant", max_steps=1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    groups = {
        id(parameter): (group["use_muon"], group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(groups) == len(before)
    for name, parameter in trainer.model.named_parameters():
        use_muon, rate, decay = groups[id(parameter)]
        is_hidden = parameter.ndim == 2 and not any(part in name for part in ("embed_tokens", "lm_head", "position"))
        assert use_muon == is_hidden, name
        assert rate == (1e-4 if "vision_tower" in name else 1e-3), name
        if is_hidden:
            # Its update is orthogonal: singular values alike, but for the decay and what had no gradient.
            update = (before[name] - parameter.detach() - rate * decay * before[name]) / rate
            singular = torch.linalg.svdvals(update)
            assert singular.max() < 1.3 * 0.2 * max(update.shape) ** 0.5, name
            assert singular.median() > 0.5 * 0.2 * max(update.shape) ** 0.5 or parameter.grad is None, name


def test_muon_says_what_it_does_not_go_with(model, processor, tmp_path):
    with pytest.raises(ValueError, match="adamw_torch.*'adafactor'"):
        make_trainer(model, processor, tmp_path, use_muon=True, optim="adafactor")


def test_evaluation_gives_logits(model, processor, tmp_path):
    seen = []
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        eval_dataset=make_rows(3),
        compute_metrics=lambda prediction: seen.append(prediction) or {},
        per_device_eval_batch_size=2,
    )
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"], "the latent grid is not drawn"
    logits = seen[0].predictions
    assert logits.shape == (*seen[0].label_ids.shape, model.config.text_config.vocab_size)
    inputs = FusionDataCollator(processor, latent_grid_sizes=[2])(make_rows(3)[2:])
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(logits[2:, : expected.shape[1]]), expected, rtol=1e-4, atol=1e-4)


def test_evaluation_by_generation(model, processor, tmp_path):
    """Answers of a batch of different lengths are those of each row alone; labels are the last answers."""
    rows, seen = make_rows(3), []
    trainer = make_trainer(
        model,
        processor,
        tmp_path,
        eval_dataset=rows,
        compute_metrics=lambda prediction: seen.append(prediction) or {"answers": 1.0},
        per_device_eval_batch_size=2,
        predict_with_generate=True,
        generation_max_new_tokens=5,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_answers"] == 1.0 and metrics["eval_loss"] > 0
    for row, generated, labels in zip(rows, seen[0].predictions, seen[0].label_ids, strict=True):
        answer = processor.tokenizer.decode(labels[labels != -100])
        assert answer == row["messages"][-1]["content"][0]["text"] + processor.end_of_turn_token
        batch = FusionDataCollator(processor, with_prompts=True)([row])
        prompt = {**batch["generation_inputs"]}
        expected = model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert generated[generated != -100].tolist() == expected.tolist()


def test_sampler_groups_modality_and_length():
    generator = torch.Generator().manual_seed(0)
    num_rows = 2003
    lengths = torch.randint(1, 1000, (num_rows,), generator=generator).tolist()
    has_images = (torch.rand(num_rows, generator=generator) < 0.7).tolist()
    sampler = ModalityLengthSampler(lengths, has_images, batch_size=8, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(num_rows))
    assert order == list(sampler)
    sampler.set_epoch(1)
    assert order != list(sampler)
    num_full = sum(has_images) // 8 + (num_rows - sum(has_images)) // 8
    batches = [order[start : start + 8] for start in range(0, 8 * num_full, 8)]
    assert all(len({has_images[row] for row in batch}) == 1 for batch in batches)
    spreads = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert sum(spreads) / len(spreads) < 100, "random batches of 8 spread over about 780"


def test_grouping_needs_lengths(model, processor, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, group_by_modality_length=True)
    with pytest.raises(ValueError, match="needs a dataset with `lengths`"):
        trainer.train()


# Recipes ------------------------------------------------------------------------------------------------------------


@needs_recipes
@pytest.mark.parametrize(
    "stage, batch_size, rate, vision_rate, length",
    [("stage1", 256, 2e-5, 2e-5, 2048), ("stage1_5", 128, 2e-5, 2e-6, 4096), ("stage2", 128, 1e-5, 1e-6, 4096)],
)
def test_recipes_are_the_papers(stage, batch_size, rate, vision_rate, length):
    recipe = load_recipe(RECIPES / f"{stage}.yaml", ["training.bf16=false", "training.use_cpu=true"])
    training = build_arguments(recipe)
    assert recipe.global_batch_size == batch_size and recipe.max_length == length
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == batch_size
    assert (training.learning_rate, training.vision_learning_rate) == (rate, vision_rate)
    assert (training.lr_scheduler_type, training.warmup_steps, training.weight_decay) == ("cosine", 0.03, 0.0)
    assert training.num_train_epochs == 1 and training.activation_checkpointing and training.group_by_modality_length
    assert yaml.safe_load((RECIPES / f"{stage}.yaml").read_text())["training"]["bf16"] is True


@needs_recipes
@pytest.mark.parametrize(
    "override, message",
    [
        ("training.learning_rat=1", "learning_rat"),
        ("trainig.seed=1", "no section 'trainig'"),
        ("model.config.window=3", "window"),
        ("seed", "key=value"),
        ("global_batch_size=6", "multiple of 4"),
    ],
)
def test_changes_of_a_recipe_are_checked(override, message):
    with pytest.raises(ValueError, match=message):
        build_arguments(
            load_recipe(RECIPES / "stage1.yaml", ["training.bf16=false", "training.use_cpu=true", override])
        )


@pytest.fixture(scope="module")
def parts(processor, tmp_path_factory) -> dict[str, str]:
    """Return the folders of a SigLIP tower and of a decoder with its tokenizer, which stand for pretrained ones."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**{**VISION_CONFIG, "num_hidden_layers": 6})).save_pretrained(
        folder / "siglip"
    )
    LlamaForCausalLM(tiny_config(processor).text_config).save_pretrained(folder / "llama")
    processor.tokenizer.save_pretrained(folder / "llama")
    return {"vision": str(folder / "siglip"), "decoder": str(folder / "llama")}


def write_recipe(folder: Path, parts: dict[str, str]) -> Path:
    recipe = yaml.safe_load((RECIPES / "stage1.yaml").read_text())
    recipe["model"] = {
        **parts,
        "chat_template": "llama",
        "path": None,
        "config": {"interaction_layer_indices": [0, 2]},
    }
    recipe["model"]["config"].update(num_interaction_heads=4, latent_grid_size=2, latent_grid_sizes=[2, 4])
    recipe["global_batch_size"] = 4
    recipe["training"].update(
        per_device_train_batch_size=2,
        output_dir=str(folder / "out"),
        bf16=False,
        use_cpu=True,
        dataloader_num_workers=0,
        learning_rate="1e-3",
        save_steps=2,
        save_total_limit=None,
        disable_tqdm=True,
    )
    rows = []
    for index, row in enumerate(make_rows(12)):
        turns = [
            {"from": ("human", "gpt")[turn % 2], "value": message["content"][0]["text"]}
            for turn, message in enumerate(row["messages"])
        ]
        rows.append({"id": index, "conversations": turns})
        if "image" in row:
            row["image"].save(folder / f"{index}.png")
            rows[-1]["image"] = f"{index}.png"
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
    (folder / "train.json").write_text(json.dumps(rows))
    recipe["data"] = {"datasets": [{"json_path": "train.json", "sampling_strategy": "all"}], "image_folder": "."}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@needs_recipes
def test_training_command(parts, tmp_path):
    """Two pretrained parts become a folder that loads and can be trained on; a second start resumes the run."""
    recipe = write_recipe(tmp_path, parts)
    main(["train", str(recipe), "training.max_steps=2"])
    main(["train", str(recipe), "training.logging_steps=1"])
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logs] == [1, 2, 3]
    parts = [
        entry["language_loss"] + 0.1 * (entry["text_mapping_loss"] + entry["vision_mapping_loss"]) for entry in logs
    ]
    assert parts == pytest.approx([entry["loss"] for entry in logs], rel=1e-4)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.question_end_token_ids == processor.question_end_token_ids
    output = model.generate(**FusionDataCollator(processor, with_prompts=True)(make_rows(2))["generation_inputs"])
    assert output.shape[0] == 2

    main(
        [
            "train",
            str(recipe),
            f"model.path={tmp_path}/out",
            f"training.output_dir={tmp_path}/next",
            "training.max_steps=2",
        ]
    )
    continued = AutoModelForImageTextToText.from_pretrained(tmp_path / "next", trust_remote_code=True)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    weights = [dict(one.named_parameters())[name] for one in (model, continued)]
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.01


@needs_recipes
def test_finished_run_is_left_alone_and_another_recipe_is_refused(parts, tmp_path, capsys):
    recipe = write_recipe(tmp_path, parts)
    main(["train", str(recipe), "training.max_steps=2"])
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    main(["train", str(recipe), "training.max_steps=2"])
    assert "is finished: 2 steps of 2" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert main(["train", str(recipe), "training.learning_rate=0.5"]) == 1
    assert "another recipe: training.learning_rate was '1e-3' and is 0.5" in capsys.readouterr().err
    assert main(["train", str(recipe), "model.vision=null", f"training.output_dir={tmp_path}/other"]) == 1
    assert "nothing to start from" in capsys.readouterr().err


@needs_recipes
def test_recipe_starts_from_what_is_there(parts, tmp_path, converted):
    recipe = load_recipe(write_recipe(tmp_path, parts))
    config = build_config(recipe)
    assert config.vision_config.num_hidden_layers == 5 and config.interaction_layer_indices == [0, 2]
    assert build_processor(recipe).image_processor.latent_grid_size == 2
    saved = replace(recipe.model, path=parts["decoder"])
    with pytest.raises(ValueError, match="is no FUSION model: the model type .* is 'llama'"):
        build_config(replace(recipe, model=saved))
    with pytest.raises(ValueError, match="nothing to start from"):
        build_config(replace(recipe, model=replace(recipe.model, vision=None)))
