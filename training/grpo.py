"""
GRPO and RLOO of TRL, with images.

TRL computes log probabilities from a fixed list of inputs and drops all others, but FUSION needs the crops and the
question as well. SFT and DPO of TRL pass on whatever the processor returns, so they work unchanged.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from trl import GRPOTrainer, RLOOTrainer


FUSION_INPUTS = ("high_res_pixel_values", "question_input_ids", "question_attention_mask")


class PassesFusionInputs:
    """
    Passes `FUSION_INPUTS` from the processor to the model, in a trainer of TRL that samples completions.

    Raises:
        ValueError: if a batch mixes prompts with and without images. TRL expects pixels for images only, but a prompt
            without one has zeros.
    """

    def _tokenize_prompts(self, prompts: list):
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        if images is not None and not all(images):
            num_without = sum(not row for row in images)
            raise ValueError(
                f"{num_without} of {len(images)} prompts in the batch have no image, expected none or all. Train on"
                " prompts of one kind, or put a blank image where there is none."
            )
        self._fusion_inputs = {
            name: torch.as_tensor(np.array(fields[name]), device=self.accelerator.device)
            for name in FUSION_INPUTS
            if name in fields
        }
        return prompt_ids, images, fields

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        output = super()._generate_and_score_completions(inputs)
        return {**output, **self._fusion_inputs} if "pixel_values" in output else output

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args, **kwargs):
        model = add_inputs(model, {name: kwargs.pop(name) for name in FUSION_INPUTS if name in kwargs})
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict) -> torch.Tensor:
        model = add_inputs(model, {name: inputs[name] for name in FUSION_INPUTS if name in inputs})
        return super()._compute_loss(model, inputs)


class FusionGRPOTrainer(PassesFusionInputs, GRPOTrainer):
    """`trl.GRPOTrainer` for prompts with and without images; takes the same arguments."""


class FusionRLOOTrainer(PassesFusionInputs, RLOOTrainer):
    """`trl.RLOOTrainer` for prompts with and without images; takes the same arguments."""


def add_inputs(model: Callable, inputs: dict[str, torch.Tensor]) -> Callable:
    """Return `model` with further inputs. TRL passes a batch in chunks, so each call takes the rows that come next."""
    start = 0

    def forward(input_ids: torch.LongTensor, **kwargs):
        nonlocal start
        rows = slice(start, start + len(input_ids))
        start = rows.stop
        return model(input_ids=input_ids, **kwargs, **{name: value[rows] for name, value in inputs.items()})

    return forward
