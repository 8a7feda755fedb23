"""Makes the batches that `FusionForConditionalGeneration` learns from out of rows of training data."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BatchFeature

from fusion_vlm.configuration_fusion import NUM_CROPS_PER_SIDE, FusionConfig
from fusion_vlm.rows.forms import RowError, message_text
from fusion_vlm.rows.messages import to_messages
from fusion_vlm.training.epoch import EpochCounter


class FusionDataCollator:
    """
    Makes batches of rows of any form that `rows.messages` reads, with and without images.

    Labels are the answers and the end-of-turn token after each (what the chat template marks as generation). All other
    labels are -100.

    The side of the latent grid is drawn for each batch (paper section 3.2). The draw depends only on the seed, the
    epoch and the texts of the batch. So it is the same on any number of workers, however they are started, and after
    a resume. `Trainer` and accelerate know the epoch; a loop over a plain `DataLoader` has to call `set_epoch`.

    Args:
        processor (`FusionProcessor`):
            Its chat template has to mark what the assistant generates.
        max_length (`int`, *optional*):
            Longest prompt with answers, in tokens, image and latent tokens included. A longer conversation loses the
            last turns whose questions do not fit; the answer at the end may be cut.
        latent_grid_sizes (`Sequence[int]`, *optional*):
            Sides to draw from. Defaults to the sides of the released models that are not too large for the context
            map. Pass `latent_grid_sizes` of the model's config if they differ.
        seed (`int`)
        image_folder (`str` or `Path`, *optional*):
            Where relative image paths begin.
        with_prompts (`bool`):
            Whether to add `generation_inputs`, the prompt of the last answer of each row, padded on the left:
            `FusionTrainer` generates from it with `predict_with_generate`.

    Raises:
        RowError: if a row cannot be used; names the row by its `source` or `id`, if it has one.
    """

    def __init__(
        self,
        processor,
        *,
        max_length: int | None = None,
        latent_grid_sizes: Sequence[int] | None = None,
        seed: int = 0,
        image_folder: str | Path | None = None,
        with_prompts: bool = False,
    ):
        self.processor = processor
        self.max_length = max_length
        if latent_grid_sizes is None:
            max_size = NUM_CROPS_PER_SIDE * processor.image_processor.image_grid_size
            latent_grid_sizes = [size for size in FusionConfig().latent_grid_sizes if size <= max_size]
        self.latent_grid_sizes = list(latent_grid_sizes)
        self.seed = seed
        self.image_folder = image_folder
        self.with_prompts = with_prompts
        self._epoch = EpochCounter()

    def set_epoch(self, epoch: int):
        """Set the epoch, which the latent grids depend on. `Trainer` needs no call."""
        self._epoch.set(epoch)

    def __call__(self, rows: list[dict]) -> BatchFeature:
        """
        Make a batch.

        Returns:
            `BatchFeature` with what the processor returns, padded on the right, and `labels` `(batch, sequence)`.
        """
        names = [describe_row(row, index) for index, row in enumerate(rows)]
        conversations = [self._read(row, name) for row, name in zip(rows, names, strict=True)]
        grid_size = self._draw_latent_grid_size(conversations)
        inputs = self._process(conversations, names, grid_size)
        if self.max_length is not None and inputs["input_ids"].shape[1] > self.max_length:
            conversations = [
                self._drop_turns(conversation, ids[mask.bool()], name)
                for conversation, ids, mask, name in zip(
                    conversations, inputs["input_ids"], inputs["attention_mask"], names, strict=True
                )
            ]
            inputs = self._process(conversations, names, grid_size)
            for name in ("input_ids", "attention_mask", "labels"):
                inputs[name] = inputs[name][:, : self.max_length]
        if self.with_prompts:
            inputs["generation_inputs"] = self._process_prompts(conversations)
        return inputs

    def _read(self, row: dict, name: str) -> list[dict]:
        if not row:
            raise RowError(
                "The rows are empty: Trainer has removed their columns. Pass `remove_unused_columns=False` to"
                " `TrainingArguments`."
            )
        try:
            return self.processor.check_messages(to_messages(row, self.image_folder), is_prompt=False)
        except ValueError as error:
            raise RowError(f"Row {name}: {error}") from error

    def _draw_latent_grid_size(self, conversations: list[list[dict]]) -> int:
        epoch = self._epoch.count()
        texts = [message_text(turn) for turns in conversations for turn in turns]
        return random.Random(f"{self.seed} {epoch} {texts}").choice(self.latent_grid_sizes)

    def _process(self, conversations: list[list[dict]], names: list[str], latent_grid_size: int) -> BatchFeature:
        try:
            inputs = self.processor.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
                processor_kwargs={"latent_grid_size": latent_grid_size, "padding_side": "right"},
            )
        except ValueError as error:
            raise RowError(f"In the batch of the rows {'; '.join(names)}: {error}") from error
        is_answer = inputs.pop("assistant_masks").bool()
        if not is_answer.any(dim=1).all():
            raise RowError(
                f"Row {names[is_answer.any(dim=1).tolist().index(False)]}: no answer is marked in the rendered prompt."
                " The chat template needs {% generation %} around what the assistant says."
            )
        inputs["labels"] = inputs["input_ids"].masked_fill(~is_answer, -100)
        return inputs

    def _drop_turns(self, conversation: list[dict], ids: torch.LongTensor, name: str) -> list[dict]:
        """Return the turns whose question ends, and whose answer begins, within `max_length`."""
        end = torch.tensor(self.processor.question_end_token_ids)
        is_end = (ids.unfold(0, len(end), 1) == end).all(dim=1)
        latents = (ids == self.processor.latent_token_id).nonzero()
        first = latents[0].item() if len(latents) else 0
        # Positions of the first token of each answer.
        starts = [start + len(end) for start in is_end.nonzero().squeeze(1).tolist() if start > first]
        num_turns = sum(start < self.max_length for start in starts)
        if num_turns == 0:
            raise RowError(
                f"Row {name}: its first answer begins after {starts[0] if starts else len(ids)} tokens, expected it"
                f" within a `max_length` of {self.max_length}. Raise it, or drop the row."
            )
        kept, num_answers = [], 0
        for message in conversation:
            if num_answers == num_turns:
                break
            kept.append(message)
            num_answers += message["role"] == "assistant"
        return kept

    def _process_prompts(self, conversations: list[list[dict]]) -> dict[str, torch.Tensor]:
        inputs = self.processor.apply_chat_template(
            [conversation[:-1] for conversation in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding_side": "left"},
        )
        return dict(inputs)


def describe_row(row: dict, index: int) -> str:
    """Return the name of a row in errors: its source or id, or else its beginning."""
    name = row.get("source") or row.get("id")
    beginning = str(row.get("messages") or row.get("conversations"))[:100]
    return f"{index} of the batch ({beginning})" if name is None else str(name)
