"""
Extends `Trainer` by what the paper's recipe needs.

That is a separate learning rate for the vision tower, batches grouped by modality and length, the parts of the loss in
the logs, and evaluation by generating answers. To train without these, plain `Trainer` with a `FusionDataCollator`
works.
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from fusion_vlm.training.muon import MuonWithAdamW, split_for_muon


logger = logging.get_logger(__name__)

LOSS_PARTS = ("language_loss", "text_mapping_loss", "vision_mapping_loss")
VISION_TOWER = "vision_tower"


@dataclass
class FusionTrainingArguments(TrainingArguments):
    """
    Training arguments of `FusionTrainer`: those of `Trainer`, and some more.

    Args:
        vision_learning_rate (`float`, *optional*):
            Learning rate of the vision tower. Defaults to `learning_rate`.
        use_muon (`bool`):
            Whether Muon trains the weight matrices of hidden layers, with the learning rates of AdamW, which trains
            the other parameters. Meant for random initial weights (docs/small_model.md has the gain there).
        group_by_modality_length (`bool`):
            Whether a batch (over all processes and accumulation steps) holds rows with an image only or without one
            only, of similar length. The dataset needs `lengths` and `has_images`, a value for each row.
        predict_with_generate (`bool`):
            Whether evaluation generates the last answer of each row, greedily; `compute_metrics` then gets token ids.
        generation_max_new_tokens (`int`):
            Longest generated answer, in tokens.
    """

    remove_unused_columns: bool = field(default=False)
    vision_learning_rate: float | None = field(default=None)
    use_muon: bool = field(default=False)
    group_by_modality_length: bool = field(default=False)
    predict_with_generate: bool = field(default=False)
    generation_max_new_tokens: int = field(default=64)


class ModalityLengthSampler(Sampler):
    """
    Shuffles a dataset so that each batch is of one modality and of similar lengths.

    Rows of either modality that fill no batch make mixed batches at the end.

    Args:
        lengths (`list[int]`), has_images (`list[bool]`): of the rows.
        batch_size (`int`): rows of all processes and accumulation steps together.
        seed (`int`): the order depends on it and on the epoch.
    """

    def __init__(self, lengths: list[int], has_images: list[bool], batch_size: int, seed: int):
        self.lengths = lengths
        self.has_images = has_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Set the epoch, which the order depends on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        batches, rest = [], []
        for modality in (True, False):
            rows = [row for row, has_image in enumerate(self.has_images) if has_image == modality]
            lengths = [self.lengths[row] for row in rows]
            order = get_length_grouped_indices(lengths, self.batch_size, generator=generator) if rows else []
            order = [rows[index] for index in order]
            full = len(order) // self.batch_size * self.batch_size
            batches += [order[start : start + self.batch_size] for start in range(0, full, self.batch_size)]
            rest += order[full:]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        yield from rest


class LossParts(TrainerCallback):
    """
    Sums the parts of the loss over the steps since the last log.

    The sums are cleared when a training begins, since `train()` may be called twice, and `auto_find_batch_size` starts
    again after an out-of-memory error.
    """

    def __init__(self):
        self.sums = {}
        self.last_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.reset(state.global_step)

    def add(self, name: str, value: torch.Tensor):
        """Add a part of the loss of one micro-batch."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def reset(self, step: int):
        """Clear the sums after the log of a step."""
        self.sums, self.last_step = {}, step


class FusionTrainer(Trainer):
    """
    Trains a FUSION. The arguments are those of `Trainer`, with `FusionTrainingArguments` and a `FusionDataCollator`.

    Evaluation uses the latent grid of the processor, as inference does, instead of a drawn one.
    `label_smoothing_factor` smooths the language loss, not the mapping loss.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loss_parts = LossParts()
        self.add_callback(self._loss_parts)
        # The model smooths the labels. `Trainer` would not pass them on, and would compare each token with itself.
        self.label_smoother = None
        if self.compute_loss_func is not None:
            raise ValueError(
                "`compute_loss_func` takes the labels away from the model, which needs them for the mapping loss."
                " Assign another language loss to `model.loss_function`, or override `compute_loss` in a subclass."
            )
        if self.args.predict_with_generate and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise ValueError(
                "`predict_with_generate` does not work on sharded parameters: processes that generate different rows"
                " would wait for each other. Evaluate the saved model in one process, or train with DDP or ZeRO-2."
            )
        if self.args.use_muon:
            self._check_muon()

    def _check_muon(self):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"`use_muon` needs torch 2.9 or newer, this is {torch.__version__}.")
        adamw = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
        if self.args.optim not in adamw:
            raise ValueError(
                f"`use_muon` goes with `optim` {' or '.join(adamw)}, for what Muon does not train; got"
                f" {self.args.optim.value!r}."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "`use_muon` needs whole weight matrices and does not work with FSDP or DeepSpeed, which shard them or"
                " their optimizer. Train with DDP, or leave `use_muon` out."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """
        Create the optimizer like `Trainer`, with groups of their own for the vision tower.

        With `use_muon`, an optimizer of Muon and AdamW takes over all groups.
        """
        is_made_already = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if is_made_already:
            return optimizer
        model = self.model if model is None else model
        self._warn_about_16_bit_weights(model)
        if self.args.vision_learning_rate is not None:
            self._move_tower(optimizer, model)
        if self.args.use_muon:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            groups = split_for_muon(optimizer.param_groups, model)
            self.optimizer = MuonWithAdamW(groups, betas, self.args.adam_epsilon)
        return self.optimizer

    def _warn_about_16_bit_weights(self, model: nn.Module):
        # FSDP and DeepSpeed keep a float32 copy of the weights that they train.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rounded = [parameter for parameter in trained if parameter.dtype in (torch.bfloat16, torch.float16)]
        if rounded:
            share = sum(map(torch.numel, rounded)) / sum(map(torch.numel, trained))
            dtype = str(rounded[0].dtype).removeprefix("torch.")
            logger.warning(
                f"{share:.0%} of the trained weights are in {dtype}, which rounds small updates away: at a learning"
                " rate of 1e-5 nearly all of these weights stay as they are. Load the model with `dtype=torch.float32`"
                " and train with `bf16=True`, or train LoRA adapters."
            )

    def _move_tower(self, optimizer: torch.optim.Optimizer, model: nn.Module):
        named_parameters = model.named_parameters()
        tower_ids = {id(parameter) for name, parameter in named_parameters if VISION_TOWER in name.split(".")}
        for group in list(optimizer.param_groups):
            tower = [parameter for parameter in group["params"] if id(parameter) in tower_ids]
            if tower:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in tower_ids]
                optimizer.add_param_group({**group, "params": tower, "lr": self.args.vision_learning_rate})

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_modality_length:
            return super()._get_train_sampler(train_dataset)
        if not hasattr(dataset, "lengths") or not hasattr(dataset, "has_images"):
            raise ValueError(
                "`group_by_modality_length` needs a dataset with `lengths` and `has_images`, such as"
                f" `training.data.FusionDataset`; got a {type(dataset).__name__}."
            )
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ModalityLengthSampler(dataset.lengths, dataset.has_images, batch_size, seed)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self):
        training_collator = self.data_collator
        self.data_collator = copy.copy(training_collator)
        self.data_collator.latent_grid_sizes = [training_collator.processor.image_processor.latent_grid_size]
        self.data_collator.with_prompts = self.args.predict_with_generate
        try:
            yield
        finally:
            self.data_collator = training_collator

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        if self.args.label_smoothing_factor:
            inputs = {**inputs, "label_smoothing": self.args.label_smoothing_factor}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            # Without a count of labels, the loss is a mean over the micro-batch, and not a share of the step's mean.
            num_means = 1 if num_items_in_batch is not None else self.current_gradient_accumulation_steps
            for name in LOSS_PARTS:
                self._loss_parts.add(name, outputs[name].detach().float() / num_means)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, means over the steps since the last log, to logs that have the loss."""
        num_steps = self.state.global_step - self._loss_parts.last_step
        if "loss" in logs and num_steps > 0 and self._loss_parts.sums:
            parts = torch.stack([part.to(self.args.device) for part in self._loss_parts.sums.values()])
            # The model divided by the number of labels of all processes, so the shares of the processes add up.
            reduction = "sum" if self.args.average_tokens_across_devices else "mean"
            parts = self.accelerator.reduce(parts, reduction) / num_steps
            logs.update(zip(self._loss_parts.sums, parts.tolist(), strict=True))
            self._loss_parts.reset(self.state.global_step)
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only: bool, ignore_keys: list[str] | None = None):
        """
        Evaluate a batch like `Trainer`, or with `predict_with_generate` by generating answers.

        Then the predictions are the generated token ids `(batch, new tokens)`, and the labels are the last answers
        `(batch, tokens)`. Both are padded with -100 at the end.
        """
        prompts = inputs.pop("generation_inputs", None)
        if prompts is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)
        prompts = self._prepare_inputs(prompts)
        model = self.accelerator.unwrap_model(model)
        output = model.generate(**prompts, do_sample=False, max_new_tokens=self.args.generation_max_new_tokens)
        generated = output[:, prompts["input_ids"].shape[1] :]
        pad_token_id = self.data_collator.processor.tokenizer.pad_token_id
        return loss, generated.masked_fill(generated == pad_token_id, -100), last_answers(inputs["labels"])


def last_answers(labels: torch.LongTensor) -> torch.LongTensor:
    """Return the last run of labels of each row `(batch, sequence)`, moved to the beginning: `(batch, tokens)`."""
    rows = []
    for row in labels:
        positions = (row != -100).nonzero().squeeze(1)
        breaks = (positions.diff() > 1).nonzero().squeeze(1)
        rows.append(row[positions[breaks[-1] + 1 :] if len(breaks) else positions])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
