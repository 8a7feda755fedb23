"""
The reference's way of working, built of our modules, so that both give the same logits.

The reference takes one example at a time and computes the logits of all positions. Its tower has eager attention,
keeps all hidden states, stacks and averages them. For each question, it encodes five crops and computes the keys and
values of the interaction layers. The decoder is the same in both. `speed.py` compares the two: `python
benchmarks/speed.py --quick first-token`
"""

import copy

import torch
import torch.nn.functional as F

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, FusionVisionModel, FusionVisionOutput


class ReferenceTower(FusionVisionModel):
    """The tower with eager attention, all hidden states kept, and a mask that makes early question rows uniform."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        question_states: torch.Tensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        question_key_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> FusionVisionOutput:
        """Return the output of `FusionVisionModel.forward`. Questions must have no padding: masks are ignored."""
        patch_embeds = self.embeddings(pixel_values)
        num_patches = patch_embeds.shape[1]
        hidden_states, early_mask = [patch_embeds], None
        if question_states is not None:
            hidden_states = [torch.cat([patch_embeds, question_states], dim=1)]
            length = hidden_states[0].shape[1]
            early_mask = patch_embeds.new_zeros(1, 1, length, length)
            early_mask[:, :, num_patches:] = torch.finfo(early_mask.dtype).min
        for index, layer in enumerate(self.encoder.layers):
            hidden_states.append(layer(hidden_states[-1], early_mask if index < self.num_early_layers else None))
        early = torch.stack(hidden_states[: self.num_early_layers]).mean(dim=0)
        late = torch.stack(hidden_states[self.num_early_layers : 2 * self.num_early_layers]).mean(dim=0)
        return FusionVisionOutput(
            last_hidden_state=hidden_states[-1][:, :num_patches],
            features=torch.cat([hidden_states[-1], early, late], dim=-1),
            patch_embeds=patch_embeds,
        )


def as_reference(model: FusionForConditionalGeneration) -> FusionForConditionalGeneration:
    """Return a copy of `model` that shares its parameters and has the reference's tower."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    reference = copy.deepcopy(model, memo=shared)
    reference.model.vision_tower.__class__ = ReferenceTower
    reference.model.vision_tower.set_attn_implementation("eager")
    return reference


def prefill(reference: FusionForConditionalGeneration, examples: list[dict]) -> torch.Tensor:
    """Return the logits of the next token of each example, `(examples, vocab_size)`."""
    return torch.cat([reference(**example, use_cache=True).logits[:, -1] for example in examples])


def training_loss(reference: FusionForConditionalGeneration, example: dict) -> torch.Tensor:
    """Return the loss of one example, from the logits of all positions."""
    inputs = {name: value for name, value in example.items() if name != "labels"}
    outputs = reference.model(**inputs, output_mapping_losses=True)
    logits = reference.lm_head(outputs.last_hidden_state).float()
    language_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), example["labels"][:, 1:].flatten())
    mapping_loss = outputs.text_mapping_loss.mean() + outputs.vision_mapping_loss.mean()
    return language_loss + reference.config.mapping_loss_coef * mapping_loss
