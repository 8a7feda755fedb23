"""
FUSION (arXiv 2504.09925), a vision-language model.

The question guides the vision encoder, and latent tokens re-read the image inside the decoder.
SigLIP and the decoder are transformers' own modules. This file adds the tower's forward with question tokens
(`FusionVisionModel`, paper section 3.1), the two projectors, the interaction layers (section 3.2) and the mapping loss
(section 3.3). Where the paper and the released weights differ, the code does what the weights were trained with and
says so.

Dimensions named in the shape comments:
    batch      prompts                      questions  all questions of the batch, example by example
    patches    of one crop, side * side     tokens     question tokens of an example, padded
    latents    latent tokens of a question  window     cells of the context map under one latent token
    vision_dim, dim                         widths of the tower and of the decoder
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, NamedTuple


# First, because it checks the version of transformers.
from .configuration_fusion import NUM_CROPS, NUM_CROPS_PER_SIDE, FusionConfig  # isort: skip

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoder,
    SiglipPreTrainedModel,
    SiglipVisionEmbeddings,
)
from transformers.processing_utils import Unpack
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging, torch_compilable_check
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.utils.quantization_config import QuantizationConfigMixin


logger = logging.get_logger(__name__)


# Releases of transformers -------------------------------------------------------------------------------------------
# All that differs between the releases of `TESTED_RELEASES`, each with the release that makes it unnecessary.

# 5.24 renamed the cache from `past_key_values`, in arguments and in outputs. The decoder takes the cache from
# `**kwargs`, by the names that its release knows; FUSION only looks at it there.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def find_cache(kwargs: dict) -> Cache | None:
    """Return the cache among keyword arguments, under its name of any release."""
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def num_cached_tokens(cache: Cache | None) -> int:
    return 0 if cache is None else cache.get_seq_length()


# From 5.23 on, a checkpointed layer computes its `forward` again, without the hooks around it.
CHECKPOINTS_HOOKS = not hasattr(PreTrainedModel, "activation_checkpointing_enable")

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # 5.21

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Return the hidden states of the last `logits_to_keep` positions (0: all), or of the positions in a list."""
        if isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.ndim > 1:
            raise ValueError("A `logits_to_keep` of two dimensions needs transformers 5.21 or newer.")
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, positions]


# --------------------------------------------------------------------------------------------------------------------

# The released weights were trained with this id taken for padding: as a question token it is no attention key and has
# no mapping loss, although it is "!" for the Llama tokenizer. Its row stays in the tower all the same.
UNATTENDED_TOKEN_ID = 0


@dataclass
class FusionVisionOutput(ModelOutput):
    """
    Output of `FusionVisionModel`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, patches, vision_dim)`):
            The patches after the last layer.
        features (`torch.Tensor` of shape `(batch, patches + tokens, 3 * vision_dim)`):
            The last hidden state and the means over two groups of layers, concatenated; question tokens last.
        patch_embeds (`torch.Tensor` of shape `(batch, patches, vision_dim)`):
            The patches before the first layer.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*):
            Of every layer, question tokens included, when asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
    patch_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FusionImageFeaturesOutput(BaseModelOutputWithPooling):
    """
    Output of `FusionModel.get_image_features`.

    Args:
        pooler_output (`list[torch.Tensor]`, one of shape `(image_grid_size**2, dim)` for each image):
            What enters the decoder.
        image_features (`torch.Tensor` of shape `(batch, patches, dim)`):
            The projected patches before the image grid is resized.
        question_features (`torch.Tensor` of shape `(batch, tokens, dim)`, *optional*):
            The question tokens, projected back to the decoder's width.
        patch_embeds (`torch.Tensor` of shape `(batch, patches, vision_dim)`):
            The patches before the tower's first layer.
    """

    image_features: torch.FloatTensor | None = None
    question_embeds: torch.FloatTensor | None = None
    question_features: torch.FloatTensor | None = None
    patch_embeds: torch.FloatTensor | None = None


@dataclass
class FusionModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of `FusionModel`.

    Args:
        image_hidden_states (`torch.Tensor` of shape `(images, image_grid_size**2, dim)`, *optional*):
            The image features that entered the decoder.
        image_outputs (`FusionImageFeaturesOutput`, *optional*):
            What `get_image_features` returned for the examples with an image; in-tree models have it since 5.24.
        text_mapping_loss, vision_mapping_loss (`torch.Tensor` of shape `(batch,)`, *optional*):
            Terms of the mapping loss of each example, zero for one without an image.
    """

    image_hidden_states: torch.FloatTensor | None = None
    text_mapping_loss: torch.FloatTensor | None = None
    vision_mapping_loss: torch.FloatTensor | None = None
    image_outputs: FusionImageFeaturesOutput | None = None


@dataclass
class FusionCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of `FusionForConditionalGeneration`.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
            `language_loss + mapping_loss_coef * (text_mapping_loss + vision_mapping_loss)`.
        logits (`torch.Tensor` of shape `(batch, sequence, vocab_size)`):
            Prediction scores.
        image_hidden_states, image_outputs:
            See `FusionModelOutputWithPast`.
        language_loss, text_mapping_loss, vision_mapping_loss (`torch.Tensor` of shape `()`, *optional*):
            The parts of the loss.
    """

    image_hidden_states: torch.FloatTensor | None = None
    language_loss: torch.FloatTensor | None = None
    text_mapping_loss: torch.FloatTensor | None = None
    vision_mapping_loss: torch.FloatTensor | None = None
    image_outputs: FusionImageFeaturesOutput | None = None


def find_question_keys(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
    """Return the mask of question tokens that are attention keys and have a mapping loss."""
    mask = input_ids != UNATTENDED_TOKEN_ID
    return mask if attention_mask is None else mask & attention_mask.bool()


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `1 - cos` over the last dimension, in float32."""
    return 1 - F.cosine_similarity(a.float(), b.float().to(a.device), dim=-1)


def resize_image_grid(image_features: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Resize `(batch, side * side, dim)` to `(batch, grid_size * grid_size, dim)`, bilinearly (FUSION-L)."""
    side = isqrt(image_features.shape[1])
    if grid_size == side:
        return image_features
    feature_map = image_features.transpose(1, 2).unflatten(2, (side, side))  # (batch, dim, side, side)
    feature_map = F.interpolate(feature_map, size=(grid_size, grid_size), mode="bilinear", align_corners=False)
    return feature_map.flatten(2).transpose(1, 2)


def stitch_crops(crop_features: torch.Tensor) -> torch.Tensor:
    """Join four crops `(batch, 4, side * side, dim)`, row-major, to one map `(batch, dim, 2 * side, 2 * side)`."""
    batch, num_crops, num_patches, dim = crop_features.shape
    side = isqrt(num_patches)
    crops = crop_features.view(batch, NUM_CROPS_PER_SIDE, NUM_CROPS_PER_SIDE, side, side, dim)
    # (batch, dim, crop row, row, crop column, column)
    return crops.permute(0, 5, 1, 3, 2, 4).reshape(batch, dim, NUM_CROPS_PER_SIDE * side, NUM_CROPS_PER_SIDE * side)


def context_windows(context_map: torch.Tensor, grid_size: int, window_size: int) -> torch.Tensor:
    """
    Max-pool `(batch, dim, height, width)` so that each latent token has a window of its own.

    Returns:
        `torch.Tensor` of shape `(batch, grid_size**2 * window_size**2, dim)`: window by window, row-major.
    """
    pooled = F.adaptive_max_pool2d(context_map, grid_size * window_size)
    windows = pooled.unflatten(3, (grid_size, window_size)).unflatten(2, (grid_size, window_size))
    # (batch, dim, grid row, window row, grid column, window column)
    return windows.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)


# Prompt layout ------------------------------------------------------------------------------------------------------
# Where images, latents and question ends are in a batch of prompts. It is found from token ids, so that any collator,
# padding side or tool keeps it right. All checks of their counts are here; nothing here needs weights.


@dataclass(frozen=True)
class PromptLayout:
    """
    Places of the images and questions in a batch of prompts, as `locate_prompts` finds them.

    Args:
        image_mask, latent_mask (`torch.BoolTensor` of shape `(batch, sequence)`):
            The image tokens and the latent tokens.
        image_examples (`list[int]`):
            The examples with an image.
        image_grid_size, latent_grid_size (`int`):
            Sides of the grid of image tokens and of the latents of a question; 0 if there are none.
        latent_positions (`torch.LongTensor` of shape `(questions, latents)`):
            Index of each latent token in the flattened `(batch * sequence)`.
        question_end_positions (`torch.LongTensor` of shape `(questions,)`):
            Index of the last token of each question, likewise.
        question_examples (`torch.LongTensor` of shape `(questions,)`):
            The example that each question belongs to.
    """

    image_mask: torch.BoolTensor
    latent_mask: torch.BoolTensor
    image_examples: list[int]
    image_grid_size: int = 0
    latent_grid_size: int = 0
    latent_positions: torch.LongTensor | None = None
    question_end_positions: torch.LongTensor | None = None
    question_examples: torch.LongTensor | None = None

    @property
    def has_image(self) -> torch.BoolTensor:
        """Mask of shape `(batch,)` of the examples with an image."""
        return self.image_mask.any(dim=1)


def locate_prompts(
    config: FusionConfig,
    find_token: Callable[[int], torch.BoolTensor],
    *,
    num_prompt_tokens: int | None = None,
    num_cached: int = 0,
    has_merged_images: bool = False,
    may_guess: bool = True,
) -> PromptLayout:
    """
    Find the layout of a batch of prompts, and check that its counts match.

    Args:
        find_token (`Callable`):
            Returns the mask of shape `(batch, sequence)` of a token id.
        num_prompt_tokens (`int`, *optional*):
            How many of the first tokens are the prompt; those after them are text whatever their ids.
        num_cached (`int`):
            Tokens that are in the cache already.
        has_merged_images (`bool`):
            Whether the caller has put image features in, whose rows equal that of the image token by chance only.
        may_guess (`bool`):
            Whether the question ends may be guessed if the config does not say how a question ends; they cannot in a
            prompt that holds the answer.

    Raises:
        ValueError: if part of the prompt is in the cache already; if the processor has not expanded the placeholders;
            if image tokens, latent tokens and question ends do not match, naming the example and both counts.
    """
    image_mask, latent_mask = find_token(config.image_token_id), find_token(config.latent_token_id)
    if num_prompt_tokens is not None:
        image_mask[:, num_prompt_tokens:] = latent_mask[:, num_prompt_tokens:] = False
    if num_cached:
        _check_one_piece(image_mask, latent_mask, num_cached)
    if has_merged_images:
        image_mask = torch.zeros_like(image_mask)
    _check_expansion(config, image_mask, latent_mask)
    num_image_tokens = image_mask.sum(dim=1).tolist()
    images = {
        "image_examples": [example for example, number in enumerate(num_image_tokens) if number],
        "image_grid_size": _measure_image_grid(config, num_image_tokens),
    }
    if not latent_mask.any():
        return PromptLayout(image_mask, latent_mask, **images)
    end_mask = _find_question_ends(config, find_token, latent_mask, num_prompt_tokens, may_guess)
    latent_positions, end_positions, examples = locate_questions(latent_mask, end_mask)
    latent_grid_size = isqrt(latent_positions.shape[1])
    if latent_grid_size > config.max_latent_grid_size:
        raise ValueError(
            f"A latent grid of side {latent_grid_size} does not fit: expected at most {config.max_latent_grid_size},"
            " the side of the context map. Pass a smaller `latent_grid_size` to the processor."
        )
    return PromptLayout(
        image_mask,
        latent_mask,
        **images,
        latent_grid_size=latent_grid_size,
        latent_positions=latent_positions,
        question_end_positions=end_positions,
        question_examples=examples,
    )


def shift_right(mask: torch.BoolTensor, distance: int) -> torch.BoolTensor:
    """Move `mask` of shape `(batch, sequence)` by `distance` positions to the right; what comes in is False."""
    return F.pad(mask, (distance, 0))[:, : mask.shape[1]]


def find_group_starts(latent_mask: torch.BoolTensor) -> torch.BoolTensor:
    """Return the mask of the first token of each group of adjacent latents: of each question."""
    return latent_mask & ~shift_right(latent_mask, 1)


def _check_one_piece(image_mask: torch.BoolTensor, latent_mask: torch.BoolTensor, num_cached: int):
    num_placeholders = (image_mask | latent_mask).sum().item()
    if num_placeholders:
        raise ValueError(
            f"{num_placeholders} image and latent tokens follow {num_cached} tokens that are in the cache already."
            " A FUSION prompt has to be processed in one piece, because what comes first in it depends on the"
            " questions that come last: no chunked prefill, no reuse of a prefix cache. For a new turn, pass the"
            f" whole conversation without `{CACHE_NAME}`."
        )


def _check_expansion(config: FusionConfig, image_mask: torch.BoolTensor, latent_mask: torch.BoolTensor):
    """Refuse a prompt with one token for each placeholder, as a tokenizer makes it without the processor."""
    num_groups = find_group_starts(latent_mask).sum(dim=1)
    num_latents, num_images = latent_mask.sum(dim=1), image_mask.sum(dim=1)
    for example in ((num_images > 0) & (num_groups == 0)).nonzero().squeeze(1).tolist():
        raise ValueError(
            f"Example {example} has {num_images[example].item()} image tokens but no latent tokens, so the vision"
            " tower reads no question, and nothing reads the image again. Render the prompt with the chat template"
            " (`apply_chat_template`; evaluation harnesses have a switch for it)."
        )
    if 1 in (config.latent_grid_size, *config.latent_grid_sizes):
        return
    for example in ((num_groups > 0) & (num_latents == num_groups)).nonzero().squeeze(1).tolist():
        raise ValueError(
            f"Example {example} has {num_images[example].item()} image tokens and {num_latents[example].item()}"
            f" latent tokens for {num_groups[example].item()} questions, expected"
            f" {config.image_grid_size**2} and {config.latent_grid_size**2} for each: the placeholders"
            " were not expanded. Make the inputs with the processor instead of its tokenizer."
        )


def _measure_image_grid(config: FusionConfig, num_image_tokens: list[int]) -> int:
    """Return the side of the grid of image tokens, the same for all images of a batch; 0 without images."""
    grid_size = 0
    for example, number in enumerate(num_image_tokens):
        if not number:
            continue
        grid_size = grid_size or isqrt(number)
        if grid_size > config.num_patches_per_side:
            raise ValueError(
                f"Example {example} has {number} image tokens, a grid of side {grid_size}, expected at most"
                f" {config.num_patches_per_side}, the side of the tower's patch grid. Set `image_grid_size` of"
                " the image processor."
            )
        if number != grid_size**2:
            raise ValueError(
                f"Example {example} has {number} image tokens, expected {grid_size**2} (a square, the"
                " same for all images of a batch). Was the prompt truncated?"
            )
    return grid_size


def _find_question_ends(
    config: FusionConfig,
    find_token: Callable[[int], torch.BoolTensor],
    latent_mask: torch.BoolTensor,
    num_prompt_tokens: int | None,
    may_guess: bool,
) -> torch.BoolTensor:
    """Return the mask of the last token of each generation prompt, of the prompt's tokens."""
    if config.question_end_token_ids is None:
        if not may_guess:
            raise ValueError(
                "A loss needs `config.question_end_token_ids`: in a prompt that holds the answer, the end of the"
                " question cannot be guessed. Set it to `processor.question_end_token_ids`."
            )
        logger.warning_once(
            "`config.question_end_token_ids` is not set: taking the last token before the next latent group, or of"
            " the sequence, for the end of a question. Set it to `processor.question_end_token_ids`."
        )
        return _guess_question_ends(latent_mask, num_prompt_tokens)
    ends = torch.ones_like(latent_mask)
    for distance, token_id in enumerate(reversed(config.question_end_token_ids)):
        ends &= shift_right(find_token(token_id), distance)
    if num_prompt_tokens is not None:
        ends[:, num_prompt_tokens:] = False
    # Before the first latents there is no question, only what the conversation may have begun with.
    return ends & (latent_mask.cumsum(dim=1) > 0)


def _guess_question_ends(latent_mask: torch.BoolTensor, num_prompt_tokens: int | None) -> torch.BoolTensor:
    """Return the last position before each following latent group, and of the prompt, in examples with latents."""
    starts = find_group_starts(latent_mask)
    ends = F.pad(starts, (0, 1))[:, 1:] & (starts.cumsum(dim=1) > 0)
    ends[:, (num_prompt_tokens or latent_mask.shape[1]) - 1] = starts.any(dim=1)
    return ends


def locate_questions(
    latent_mask: torch.BoolTensor, end_mask: torch.BoolTensor
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """
    Pair the latent groups of a batch with the ends of their questions.

    Args:
        latent_mask (`torch.BoolTensor` of shape `(batch, sequence)`):
            The latent tokens; those of one question are adjacent.
        end_mask (`torch.BoolTensor` of shape `(batch, sequence)`):
            The last token of each question.

    Returns:
        Positions in the flattened `(batch * sequence)` of the latents `(questions, latents)` and of the question ends
        `(questions,)`, and the example of each question `(questions,)`.

    Raises:
        ValueError: if the groups differ in size or are not square, or if a group has no question end of its own.
    """
    start_mask = find_group_starts(latent_mask)
    num_groups, num_ends = start_mask.sum(dim=1), end_mask.sum(dim=1)
    for example in (num_groups != num_ends).nonzero().squeeze(1).tolist():
        raise ValueError(
            f"Example {example} has {num_groups[example].item()} groups of latent tokens but"
            f" {num_ends[example].item()} question ends (generation prompts of the chat template). Was the prompt"
            " truncated, split over two forwards, or rendered without `add_generation_prompt=True`?"
        )
    latent_positions = latent_mask.flatten().nonzero().squeeze(1)
    starts = start_mask.flatten().nonzero().squeeze(1)  # (questions,)
    ends = end_mask.flatten().nonzero().squeeze(1)  # (questions,)
    example_indices = starts // latent_mask.shape[1]

    group_of_latent = start_mask.flatten().cumsum(dim=0)[latent_positions] - 1
    sizes = torch.bincount(group_of_latent, minlength=len(starts))
    num_latents = sizes[0].item()
    for group in (sizes != num_latents).nonzero().squeeze(1).tolist():
        raise ValueError(
            f"Example {example_indices[group].item()} has a group of {sizes[group].item()} latent tokens, expected"
            f" {num_latents} as in the first group of the batch. Process all prompts of a batch with one"
            " `latent_grid_size`."
        )
    if isqrt(num_latents) ** 2 != num_latents:
        raise ValueError(
            f"Example {example_indices[0].item()} has groups of {num_latents} latent tokens, expected a square such as"
            f" {isqrt(num_latents) ** 2}. Was the prompt truncated?"
        )
    following_starts = torch.cat([starts[1:], starts.new_tensor([latent_mask.numel()])])
    for question in ((ends < starts) | (ends > following_starts)).nonzero().squeeze(1).tolist():
        raise ValueError(
            f"Example {example_indices[question].item()} has a question end at position"
            f" {ends[question].item() % latent_mask.shape[1]}, which is not between the latent tokens of its question"
            " and those of the next one."
        )
    return latent_positions.view(-1, num_latents), ends, example_indices


# --------------------------------------------------------------------------------------------------------------------


class FusionVisionAttention(SiglipAttention):
    """SigLIP's attention, in which question rows may attend uniformly to all tokens instead."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        uniform_weights: torch.Tensor | None = None,
        num_patches: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend, and replace the question rows by a weighted mean where there are `uniform_weights`.

        Args:
            uniform_weights (`torch.Tensor` of shape `(batch, patches + tokens)`, *optional*):
                Attention weights of every question row, in place of those from its scores.
            num_patches (`int`, *optional*):
                Where the question rows begin.
        """
        attn_output, attn_weights = super().forward(hidden_states, attention_mask, **kwargs)
        if uniform_weights is None:
            return attn_output, attn_weights

        # Early question rows of the released models are a mean. No mask gives that mean in every dtype and backend, so
        # it is computed as one: the mean of the values is the value of the mean.
        mean_states = torch.einsum("bt,btd->bd", uniform_weights, hidden_states.float()).to(hidden_states.dtype)
        mean_output = self.out_proj(self.v_proj(mean_states.unsqueeze(1)))  # (batch, 1, vision_dim)
        num_tokens = hidden_states.shape[1] - num_patches
        attn_output = torch.cat([attn_output[:, :num_patches], mean_output.expand(-1, num_tokens, -1)], dim=1)
        if attn_weights is not None:
            rows = uniform_weights[:, None, None].expand(-1, self.num_heads, num_tokens, -1).to(attn_weights.dtype)
            attn_weights = torch.cat([attn_weights[:, :, :num_patches], rows], dim=2)
        return attn_output, attn_weights


class FusionVisionModel(SiglipPreTrainedModel):
    """
    A SigLIP tower that takes question tokens: text-guided unified vision encoding (paper section 3.1).

    The question states are appended to the patches, without positions, and go through the encoder with them. In the
    late layers everything attends to everything. In the early layers (the first half) the question rows attend
    uniformly to all tokens, which is what the released weights were trained with; the paper describes a mask there.

    Built from a `SiglipVisionConfig`; its parameters are named as those of `SiglipVisionModel`, without the pooling
    head and the final norm, whose outputs FUSION does not use.
    """

    config: SiglipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = "vision_model"
    # SigLIP's own list has classes that this tower does not contain, which FSDP refuses.
    _no_split_modules = ["SiglipVisionEmbeddings", "SiglipEncoderLayer"]
    _input_embed_layer = "patch_embedding"
    # It drops masked rows, but a question row may be masked as a key only (`UNATTENDED_TOKEN_ID`).
    _supports_flash_attn = False
    # Of a whole SigLIP checkpoint: its text model, head, final norm and last layers.
    _keys_to_ignore_on_load_unexpected = [r"text_model", r"head\.", r"post_layernorm", r"logit_", r"encoder\.layers"]

    def __init__(self, config: SiglipVisionConfig):
        super().__init__(config)
        self.num_early_layers = config.num_hidden_layers // 2
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        for layer in self.encoder.layers:
            layer.self_attn = FusionVisionAttention(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        question_states: torch.Tensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        question_key_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> FusionVisionOutput:
        """
        Encode images together with their questions.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, size, size)`)
            question_states (`torch.Tensor` of shape `(batch, tokens, vision_dim)`, *optional*)
            question_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                1 for a token, 0 for padding, which counts nowhere. Defaults to all ones.
            question_key_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                1 for a token that may be attended to. Defaults to `question_attention_mask`.
        """
        hidden_states = patch_embeds = self.embeddings(pixel_values)
        num_patches = patch_embeds.shape[1]
        attention_mask, early_kwargs = None, {}
        if question_states is not None:
            hidden_states = torch.cat([patch_embeds, question_states.to(patch_embeds.dtype)], dim=1)
            if question_attention_mask is None:
                question_attention_mask = torch.ones(question_states.shape[:2], device=hidden_states.device)
            if question_key_mask is None:
                question_key_mask = question_attention_mask
            attention_mask = F.pad(question_key_mask.bool(), (num_patches, 0), value=True)
            token_mask = F.pad(question_attention_mask.float(), (num_patches, 0), value=1.0)
            uniform_weights = token_mask / token_mask.sum(dim=1, keepdim=True)  # (batch, patches + tokens)
            early_kwargs = {"uniform_weights": uniform_weights, "num_patches": num_patches}
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )

        # A tower of an odd number of layers leaves the input of its last layer out of both groups, as the released
        # 39-layer towers do.
        layers, num_early = self.encoder.layers, self.num_early_layers
        hidden_states, early_mean = self._encode_group(layers[:num_early], hidden_states, attention_mask, early_kwargs)
        hidden_states, late_mean = self._encode_group(layers[num_early : 2 * num_early], hidden_states, attention_mask)
        for layer in layers[2 * num_early :]:
            hidden_states = layer(hidden_states, attention_mask)

        return FusionVisionOutput(
            last_hidden_state=hidden_states[:, :num_patches],
            features=torch.cat([hidden_states, early_mean, late_mean], dim=-1),
            patch_embeds=patch_embeds,
        )

    def _encode_group(
        self,
        layers: nn.ModuleList,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run layers, and return the states after them and the mean of the states before each of them."""
        total: Any = 0  # a running sum in float32, instead of the hidden states of all layers
        for layer in layers:
            total = total + hidden_states.float()
            hidden_states = layer(hidden_states, attention_mask, **(kwargs or {}))
        return hidden_states, (total / len(layers)).to(hidden_states.dtype)


class FusionProjector(nn.Module):
    """Two linear layers with an activation between them; the second is square."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str, bias: bool = True):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features, bias=bias)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(out_features, out_features, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(hidden_states)))


# The decoder passes this keyword argument on to its layers, where the hooks of the interaction layers find it.
CONTEXT_NAME = "fusion_context"


class InteractionContext(NamedTuple):
    """
    Inputs of the interaction layers in one forward; the decoder passes them on as the argument `CONTEXT_NAME`.

    Args:
        windows (`torch.Tensor` of shape `(maps, latents * window, dim)`):
            The context maps, window by window: one for each example, or one for all.
        latent_positions (`torch.Tensor` of shape `(questions, latents)`):
            Index of each latent token in the flattened `(batch * sequence)`.
        question_end_positions (`torch.Tensor` of shape `(questions,)`):
            Index of each question end, likewise.
        map_indices (`torch.Tensor` of shape `(questions,)`):
            The context map that each question reads.
    """

    windows: torch.Tensor
    latent_positions: torch.Tensor
    question_end_positions: torch.Tensor
    map_indices: torch.Tensor


class FusionInteractionLayer(GradientCheckpointingLayer):
    """
    Rewrites the latent tokens of each question with what they see of the image (paper section 3.2).

    A latent token, joined with the state at the end of its question, attends to its own window of the context map.
    """

    def __init__(self, config: FusionConfig):
        super().__init__()
        dim = config.text_config.hidden_size
        self.num_heads, self.head_dim = config.num_interaction_heads, dim // config.num_interaction_heads
        self.proj_in = nn.Linear(2 * dim, dim, bias=False)
        self.proj_context = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_norm = nn.LayerNorm(dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_norm = nn.LayerNorm(dim)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.proj_out = FusionProjector(dim, dim, config.projector_hidden_act, bias=False)

    def forward(
        self,
        latent_states: torch.Tensor,
        question_end_states: torch.Tensor,
        windows: torch.Tensor,
        map_indices: torch.Tensor,
    ) -> torch.Tensor:
        """
        Rewrite the latent states of each question.

        Args:
            latent_states (`torch.Tensor` of shape `(questions, latents, dim)`)
            question_end_states (`torch.Tensor` of shape `(questions, dim)`)
            windows (`torch.Tensor` of shape `(maps, latents * window, dim)`)
            map_indices (`torch.Tensor` of shape `(questions,)`)

        Returns:
            `torch.Tensor` of shape `(questions, latents, dim)`: the latent states that replace the given ones.
        """
        num_questions, num_latents, _ = latent_states.shape
        question_end_states = question_end_states.unsqueeze(1).expand_as(latent_states)
        query = self.proj_in(torch.cat([question_end_states, latent_states], dim=-1))  # (questions, latents, dim)
        context = self.proj_context(windows)  # (maps, latents * window, dim)

        q = self.q_proj(self.q_norm(query)).view(num_questions * num_latents, self.num_heads, 1, -1)
        # Keys and values belong to an image: the questions about it share them.
        kv_shape = (num_questions * num_latents, -1, self.num_heads, self.head_dim)
        k = self.k_proj(self.k_norm(context))[map_indices].view(kv_shape).transpose(1, 2)
        v = self.v_proj(self.v_norm(context))[map_indices].view(kv_shape).transpose(1, 2)
        # Not by the attention interface: one query over the few cells of a window gains nothing from another backend.
        attn_output = F.scaled_dot_product_attention(q, k, v)  # (questions * latents, heads, 1, head_dim)

        attn_output = self.o_proj(attn_output.reshape(num_questions, num_latents, -1))
        return self.proj_out(self.norm(attn_output + query)) + latent_states


class FusionPreTrainedModel(PreTrainedModel):
    config: FusionConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FusionInteractionLayer"]
    # The interaction layers move what they need themselves; accelerate would copy the context at every layer.
    _skip_keys_device_placement = ["cache", "past_key_values", CONTEXT_NAME]

    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True  # a decoding step, which is what `generate` compiles

    if CHECKPOINTS_HOOKS:

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None):
            """
            Turn on checkpointing; see `PreTrainedModel.gradient_checkpointing_enable`.

            Raises:
                ValueError: for reentrant checkpoints, whose backward would go through the context map twice.
            """
            if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
                raise ValueError("`use_reentrant=True` needs transformers 5.23 or newer. Pass False, or leave it out.")
            super().gradient_checkpointing_enable(gradient_checkpointing_kwargs)


class FusionModel(FusionPreTrainedModel):
    """
    Tower, projectors, decoder and interaction layers, without a language model head.

        question ids --> decoder embedding --> text_to_vision_projector --+
                                                                          |
        base image  ------------------------------------> vision_tower <--+
                                                               |
                                                     multi_modal_projector --> image tokens -----+
                                                                                                 v
        four crops --> vision_tower --> multi_modal_projector --> context map            prompt embeddings
                                                                       |                         |
                                                          max pooling: +--> latent tokens -------+
                                                                       |                         v
                                                                       +--> windows --> language_model, whose layers
                                                                            `config.interaction_layer_indices` are
                                                                            each followed by an interaction layer

    An interaction layer acts where its decoder layer ends: `_interact` is registered as a forward hook on it, so that
    any decoder works unchanged and parameter names stay the decoder's. Replacing a decoder layer loses its hook.
    """

    def __init__(self, config: FusionConfig):
        super().__init__(config)
        vision_dim, dim = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_tower = FusionVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = FusionProjector(3 * vision_dim, dim, config.projector_hidden_act)
        self.text_to_vision_projector = FusionProjector(dim, vision_dim, config.projector_hidden_act)
        self.language_model = AutoModel.from_config(config.text_config)
        if not hasattr(self.language_model, "layers"):
            raise ValueError(
                f"The decoder type {config.text_config.model_type!r} has no `.layers`, which the interaction layers"
                " attach to. Use a decoder like Llama, Phi-3 or Qwen3."
            )
        self.interaction_layers = nn.ModuleList(
            FusionInteractionLayer(config) for _ in config.interaction_layer_indices
        )
        for index, layer_index in enumerate(config.interaction_layer_indices):
            # By index and not by module: PEFT, FSDP and accelerate may put another module in its place.
            hook = partial(self._interact, index)
            self.language_model.layers[layer_index].register_forward_hook(hook, with_kwargs=True)
        self.post_init()

    def _interact(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor
    ) -> torch.Tensor | None:
        """Replace the latent states in the output of a decoder layer; return None, which keeps it, when decoding."""
        context: InteractionContext | None = kwargs.get(CONTEXT_NAME)
        if context is None:
            return None
        hidden_states = output.flatten(0, 1)  # (batch * sequence, dim)
        windows, latent_positions, end_positions, map_indices = (tensor.to(output.device) for tensor in context)
        latent_states = self.interaction_layers[index](
            hidden_states[latent_positions],
            hidden_states[end_positions],
            windows.to(output.dtype),
            map_indices,
        )
        rows, columns = latent_positions // output.shape[1], latent_positions % output.shape[1]
        return output.index_put((rows, columns), latent_states.to(hidden_states))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        image_grid_size: int | None = None,
        **kwargs,
    ) -> FusionImageFeaturesOutput:
        """
        Encode images with their questions.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, size, size)`):
                Normalized base images.
            question_input_ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*):
                Ids of the questions about each image. Without them the tower sees the image alone.
            question_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                1 for a token, 0 for padding. Defaults to all ones.
            image_grid_size (`int`, *optional*):
                Side of the grid of image tokens. Defaults to `config.image_grid_size`.

        Raises:
            ValueError: if `pixel_values` has the wrong size or holds NaN or infinity.
        """
        self._check_pixels(pixel_values, "pixel_values")
        question_embeds, question_kwargs = None, {}
        if question_input_ids is not None:
            question_embeds = self.get_input_embeddings()(question_input_ids)
            if question_attention_mask is None:
                question_attention_mask = torch.ones_like(question_input_ids)
            question_kwargs = {
                "question_states": self.text_to_vision_projector(question_embeds),
                "question_attention_mask": question_attention_mask,
                "question_key_mask": find_question_keys(question_input_ids, question_attention_mask),
            }
        outputs = self.vision_tower(pixel_values, **question_kwargs, **kwargs, return_dict=True)
        num_patches = outputs.patch_embeds.shape[1]
        features = self.multi_modal_projector(outputs.features)  # (batch, patches + tokens, dim)
        image_features = features[:, :num_patches]
        return FusionImageFeaturesOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=list(resize_image_grid(image_features, image_grid_size or self.config.image_grid_size)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
            question_embeds=question_embeds,
            question_features=features[:, num_patches:] if question_input_ids is not None else None,
            patch_embeds=outputs.patch_embeds,
        )

    def get_context_map(self, high_res_pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Encode the four crops of each image, without text, to the map that latent tokens read from.

        Args:
            high_res_pixel_values (`torch.Tensor` of shape `(batch, 4, 3, size, size)`):
                Normalized crops, row-major.

        Returns:
            `torch.Tensor` of shape `(batch, dim, 2 * side, 2 * side)`: to pass as `context_map` instead of the crops,
            as often as there are questions about the image.

        Raises:
            ValueError: if the crops have the wrong shape or hold NaN or infinity.
        """
        self._check_crops(high_res_pixel_values)
        return stitch_crops(self._encode_crops(high_res_pixel_values.flatten(0, 1)).unflatten(0, (-1, NUM_CROPS)))

    def _check_crops(self, high_res_pixel_values: torch.Tensor):
        if high_res_pixel_values.ndim != 5 or high_res_pixel_values.shape[1] != NUM_CROPS:
            raise ValueError(
                f"`high_res_pixel_values` has shape {tuple(high_res_pixel_values.shape)}, expected"
                f" (batch, {NUM_CROPS}, 3, size, size)."
            )
        self._check_pixels(high_res_pixel_values, "high_res_pixel_values")

    def _encode_crops(self, crops: torch.Tensor) -> torch.Tensor:
        """Encode `(crops, 3, size, size)` without text to projected patches `(crops, patches, dim)`."""
        return self.multi_modal_projector(self.vision_tower(crops, return_dict=True).features)

    def _make_blank_image(self, device: torch.device) -> torch.Tensor:
        """Return `(1, 3, size, size)` zeros: where there is no image, the same modules run on this one."""
        size = self.config.vision_config.image_size
        return torch.zeros(1, 3, size, size, device=device)

    def _check_pixels(self, pixel_values: torch.Tensor, name: str):
        size = self.config.vision_config.image_size
        if pixel_values.shape[-3:] != (3, size, size):
            raise ValueError(
                f"`{name}` has images of shape {tuple(pixel_values.shape[-3:])}, expected (3, {size}, {size}). Use the"
                " processor that was saved with this model."
            )
        torch_compilable_check(
            pixel_values.isfinite().all(), f"`{name}` holds NaN or infinity; check the input images."
        )

    def _locate_prompts(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        pixel_values: torch.Tensor | None,
        **kwargs,
    ) -> PromptLayout:
        """Find the layout of the prompts by their ids or, without ids, by their embeddings; see `locate_prompts`."""

        def find_token(token_id: int) -> torch.BoolTensor:
            if input_ids is not None:
                return input_ids == token_id
            token_embed = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
            return (inputs_embeds == token_embed).all(dim=-1)

        has_merged_images = input_ids is None and pixel_values is None
        return locate_prompts(self.config, find_token, has_merged_images=has_merged_images, **kwargs)

    def _encode_images(
        self,
        layout: PromptLayout,
        pixel_values: torch.Tensor | None,
        question_input_ids: torch.LongTensor | None,
        question_attention_mask: torch.Tensor | None,
    ) -> FusionImageFeaturesOutput | None:
        """
        Encode the images of those examples that have image tokens; return None if there are none.

        Raises:
            ValueError: if images and image tokens do not belong together.
        """
        examples = layout.image_examples
        self._check_images(layout, pixel_values)
        if not examples:
            return None
        if question_input_ids is None:
            logger.warning_once(
                "Images come without `question_input_ids`: the vision tower is not guided by the questions, as it was"
                " in training. Pass on all that the processor returns."
            )
        else:
            question_input_ids = question_input_ids[examples]
        if question_attention_mask is not None:
            question_attention_mask = question_attention_mask[examples]
        return self.get_image_features(
            pixel_values[examples],
            question_input_ids,
            question_attention_mask,
            layout.image_grid_size,
            return_dict=True,
        )

    def _check_images(self, layout: PromptLayout, pixel_values: torch.Tensor | None):
        num_prompts, examples = len(layout.image_mask), layout.image_examples
        if pixel_values is None:
            for example in examples:
                number = layout.image_mask[example].sum().item()
                raise ValueError(f"Example {example} has {number} image tokens but 0 images: pass `pixel_values`.")
            return
        if len(pixel_values) != num_prompts:
            raise ValueError(
                f"Got {len(pixel_values)} images in `pixel_values` for {num_prompts} prompts. Each prompt needs a"
                " row, all zeros for a prompt without an image."
            )
        for example in set(range(num_prompts)).difference(examples):
            if pixel_values[example].any():
                raise ValueError(f"Example {example} has an image but 0 image tokens in its prompt.")

    def _encode_blank_image(self, device: torch.device) -> FusionImageFeaturesOutput:
        """
        Encode a blank image, in a training step without any image, to no effect on its loss.

        So every step uses all parameters in the same order. Else DDP fails, which expects the gradients of each
        process, and FSDP and ZeRO-3 hang, which wait for each other in every layer.
        """
        question_input_ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        return self.get_image_features(self._make_blank_image(device), question_input_ids, return_dict=True)

    def _encode_context(
        self, layout: PromptLayout, high_res_pixel_values: torch.Tensor | None, context_map: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Return the context map of each example, `(batch, dim, 2 * side, 2 * side)`; one row if all have the same.

        The map is the given one, that of the crops, or for an example without an image that of a blank image.

        Raises:
            ValueError: if an example with an image has neither map nor crops, or if the map has the wrong shape.
        """
        num_prompts, examples = len(layout.image_mask), layout.image_examples
        if context_map is not None:
            self._check_context_map(context_map, num_prompts)
            return context_map
        if examples and (high_res_pixel_values is None or len(high_res_pixel_values) != num_prompts):
            rows = 0 if high_res_pixel_values is None else len(high_res_pixel_values)
            raise ValueError(
                f"Got {rows} rows of crops for {num_prompts} prompts, {len(examples)} of them with an image: pass"
                " `high_res_pixel_values` (or `context_map`) with a row for each prompt. Of TRL's trainers, GRPO and"
                " RLOO drop them: use those of fusion_vlm.training.grpo."
            )
        if len(examples) == num_prompts:
            return self.get_context_map(high_res_pixel_values)
        blank_image = self._make_blank_image(layout.image_mask.device)
        crops = blank_image
        if examples:
            self._check_crops(high_res_pixel_values)
            crops = high_res_pixel_values[examples].flatten(0, 1)
            # One pass of the tower for both kinds, as in a batch of one kind: see `_encode_blank_image`.
            crops = torch.cat([crops, blank_image.to(crops)])
        features = self._encode_crops(crops)
        blank_map = stitch_crops(features[-1:].unsqueeze(1).expand(-1, NUM_CROPS, -1, -1))
        if not examples:
            return blank_map
        maps = stitch_crops(features[:-1].unflatten(0, (-1, NUM_CROPS)))
        return blank_map.repeat(num_prompts, 1, 1, 1).index_copy(0, torch.tensor(examples, device=maps.device), maps)

    def _check_context_map(self, context_map: torch.Tensor, num_prompts: int):
        side = NUM_CROPS_PER_SIDE * self.config.num_patches_per_side
        shape = (self.config.text_config.hidden_size, side, side)
        if context_map.shape[1:] != shape:
            raise ValueError(
                f"`context_map` has shape {tuple(context_map.shape)}, expected (1 or batch, "
                + ", ".join(map(str, shape))
                + "): what `get_context_map` returns."
            )
        if len(context_map) not in (1, num_prompts):
            raise ValueError(
                f"`context_map` has {len(context_map)} rows for {num_prompts} prompts, expected 1 (all prompts"
                " are about one image) or a row for each prompt."
            )

    def _prepare_latents(
        self, inputs_embeds: torch.Tensor, layout: PromptLayout, context_map: torch.Tensor
    ) -> tuple[torch.Tensor, InteractionContext]:
        """
        Put the initial latent states into the embeddings, and gather what the interaction layers need.

        The latents of a question start as the max-pooled context map, or as zeros where there is no image.

        Returns:
            The embeddings `(batch, sequence, dim)` and the context of this forward.
        """
        context_map, examples = context_map.to(inputs_embeds), layout.question_examples
        map_indices = examples if len(context_map) > 1 else torch.zeros_like(examples)
        # (maps, latents, dim)
        latents = F.adaptive_max_pool2d(context_map, layout.latent_grid_size).flatten(2).transpose(1, 2)
        latents = latents[map_indices] * layout.has_image[examples, None, None]  # (questions, latents, dim)
        inputs_embeds = inputs_embeds.masked_scatter(layout.latent_mask.unsqueeze(-1), latents)
        windows = context_windows(context_map, layout.latent_grid_size, self.config.window_size)
        context = InteractionContext(windows, layout.latent_positions, layout.question_end_positions, map_indices)
        return inputs_embeds, context

    def _compute_mapping_losses(
        self,
        image_outputs: FusionImageFeaturesOutput,
        has_image: torch.BoolTensor,
        question_input_ids: torch.LongTensor | None,
        question_attention_mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """
        Compute the dual-supervised semantic mapping loss (paper section 3.3) of each example.

        It is the mean of `1 - cos` of the question embeddings against the tower's output for them, and of the patch
        embeddings against the image features mapped back.

        Args:
            image_outputs (`FusionImageFeaturesOutput`):
                Of the examples with an image, or of `_encode_blank_image` if there is none.

        Returns:
            Two `torch.Tensor` of shape `(batch,)`, float32: the text term (zero without a question) and the vision
            term; both zero for an example without an image.
        """
        text_losses = torch.zeros(len(has_image), device=has_image.device)
        examples = has_image.nonzero().squeeze(1)
        mapped_features = self.text_to_vision_projector(image_outputs.image_features)
        losses = cosine_distance(image_outputs.patch_embeds, mapped_features).mean(dim=1)
        if len(examples) == 0:
            unused = image_outputs.question_features.float().mean() + image_outputs.question_embeds.float().mean()
            zero = 0.0 * (losses.sum() + unused).to(text_losses.device)
            return {"text_mapping_loss": text_losses + zero, "vision_mapping_loss": text_losses + zero}
        vision_losses = text_losses.index_copy(0, examples, losses.to(text_losses))
        if image_outputs.question_features is not None:
            # (images, tokens)
            distances = cosine_distance(image_outputs.question_embeds, image_outputs.question_features)
            mask = find_question_keys(question_input_ids, question_attention_mask)[examples].to(distances.device)
            losses = (distances * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            text_losses = text_losses.index_copy(0, examples, losses.to(text_losses))
        return {"text_mapping_loss": text_losses, "vision_mapping_loss": vision_losses}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        context_map: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        num_prompt_tokens: int | None = None,
        output_mapping_losses: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionModelOutputWithPast:
        """
        Compute hidden states; see `FusionForConditionalGeneration.forward` for the other arguments and for errors.

        Args:
            num_prompt_tokens (`int`, *optional*):
                How many of the first tokens are the prompt; those after them were generated, and are text whatever
                their ids. Set by `generate`: 0 when it decodes with a cache. Defaults to all.
            output_mapping_losses (`bool`):
                Whether to compute the terms of the mapping loss of each example.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        layout = image_outputs = image_hidden_states = None
        is_decoding = inputs_embeds.shape[1] == 1 or num_prompt_tokens == 0
        if not is_decoding or pixel_values is not None or output_mapping_losses:
            layout = self._locate_prompts(
                input_ids,
                inputs_embeds,
                pixel_values,
                num_prompt_tokens=num_prompt_tokens,
                num_cached=num_cached_tokens(find_cache(kwargs)),
                may_guess=not output_mapping_losses,
            )
            image_outputs = self._encode_images(layout, pixel_values, question_input_ids, question_attention_mask)
            if image_outputs is not None:
                image_hidden_states = torch.stack(image_outputs.pooler_output).to(inputs_embeds)
                inputs_embeds = inputs_embeds.masked_scatter(layout.image_mask.unsqueeze(-1), image_hidden_states)
            elif output_mapping_losses:
                image_outputs = self._encode_blank_image(inputs_embeds.device)
            if layout.latent_grid_size:
                context_map = self._encode_context(layout, high_res_pixel_values, context_map)
                inputs_embeds, kwargs[CONTEXT_NAME] = self._prepare_latents(inputs_embeds, layout, context_map)

        if output_mapping_losses and self.training:
            # No cache in training: checkpointed layers run twice and would append twice.
            kwargs.setdefault("use_cache", False)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        losses = {}
        if output_mapping_losses:
            losses = self._compute_mapping_losses(
                image_outputs, layout.has_image, question_input_ids, question_attention_mask
            )
        return FusionModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_hidden_states,
            image_outputs=None if image_hidden_states is None else image_outputs,
            **losses,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )


def read_tower_config(vision_path: str) -> SiglipVisionConfig:
    """
    Return the config of a pretrained SigLIP tower as FUSION uses it: without its last layer and without its head.

    The released models use the features before the last layer, which is trained for the head.
    """
    config = SiglipVisionConfig.from_pretrained(vision_path)
    config.num_hidden_layers -= 1
    config.vision_use_head = False
    return config


class FusionForConditionalGeneration(FusionPreTrainedModel, GenerationMixin):
    """FUSION with a language model head: what the Auto classes load and `generate` runs on."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: FusionConfig):
        super().__init__(config)
        self.model = FusionModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision_path: str, text_path: str, processor, *, dtype: torch.dtype | None = None, **config_kwargs
    ) -> "FusionForConditionalGeneration":
        """
        Build a model to be trained from a pretrained SigLIP tower and a pretrained decoder; what FUSION adds is new.

        As in the released models, the tower lacks its last layer (`read_tower_config`). The vocabulary grows, if it
        has to, for the tokens that the processor added to the tokenizer.

        Args:
            vision_path (`str`):
                Folder or Hub id of a SigLIP (or fixed-resolution SigLIP 2) checkpoint.
            text_path (`str`):
                Folder or Hub id of a causal language model.
            processor (`FusionProcessor`):
                With the decoder's tokenizer and a chat template.
            dtype (`torch.dtype`, *optional*):
                Of all parameters. Defaults to the decoder's.
            config_kwargs:
                Fields of `FusionConfig`, such as `interaction_layer_indices`.
        """
        decoder = AutoModelForCausalLM.from_pretrained(text_path, dtype=dtype or "auto")
        vision_config = read_tower_config(vision_path)
        tower = FusionVisionModel.from_pretrained(vision_path, config=vision_config, dtype=decoder.dtype)
        token_ids = {
            name: getattr(processor, name) for name in ("image_token_id", "latent_token_id", "question_end_token_ids")
        }
        config = FusionConfig(
            vision_config=vision_config,
            text_config=AutoConfig.from_pretrained(text_path),
            **{**token_ids, **config_kwargs},
        )
        model = cls._from_config(config, dtype=decoder.dtype)
        model.model.vision_tower.load_state_dict(tower.state_dict(), assign=True)
        model.model.language_model.load_state_dict(decoder.get_decoder().state_dict(), assign=True)
        model.lm_head.load_state_dict(decoder.get_output_embeddings().state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = decoder.generation_config
        if len(processor.tokenizer) > config.text_config.vocab_size:
            model.resize_token_embeddings(len(processor.tokenizer))
        return model

    def get_context_map(self, high_res_pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode crops; see `FusionModel.get_context_map`."""
        return self.model.get_context_map(high_res_pixel_values)

    def get_image_features(self, pixel_values: torch.Tensor, *args, **kwargs) -> FusionImageFeaturesOutput:
        """Encode images with their questions; see `FusionModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, *args, **kwargs)

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """Generate answers; see `GenerationMixin.generate`."""
        candidates = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((candidate for candidate in candidates if candidate is not None), None)
        if prompt is not None:
            # An assistant model gets that of the model that it assists.
            kwargs.setdefault("num_prompt_tokens", prompt.shape[1])
        if "tokenizer" in kwargs:  # `stop_strings` need a tokenizer, and some servers pass a processor
            kwargs["tokenizer"] = getattr(kwargs["tokenizer"], "tokenizer", kwargs["tokenizer"])
        return super().generate(inputs, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        context_map: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionCausalLMOutputWithPast:
        """
        Compute logits, and with `labels` the loss, from the output of `FusionProcessor`.

        A prompt is processed in one piece, since its latent tokens depend on the question that follows them. After the
        prompt, decoding is the plain decoder's.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, size, size)`, *optional*):
                Base images; zeros for a prompt without one.
            high_res_pixel_values (`torch.Tensor` of shape `(batch, 4, 3, size, size)`, *optional*):
                Their four crops, row-major.
            question_input_ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*):
                Ids of all questions of the conversation, for the tower.
            question_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                1 for a token of a question, 0 for padding.
            context_map (`torch.Tensor` of shape `(batch, dim, 2 * side, 2 * side)` or `(1, ...)`, *optional*):
                From `get_context_map`, instead of `high_res_pixel_values`; one row if all prompts are about one image.
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*):
                Ids to predict, -100 where there is no loss.
            kwargs:
                Of the decoder; the cache among them, by its name in the installed transformers.

        Raises:
            ValueError: if images, image tokens, latent tokens and question ends do not match (naming the example and
                both counts), if pixels hold NaN or infinity, or if the prompt comes in several pieces.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            high_res_pixel_values=high_res_pixel_values,
            question_input_ids=question_input_ids,
            question_attention_mask=question_attention_mask,
            context_map=context_map,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_mapping_losses=labels is not None,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))

        loss: torch.Tensor | None = None
        parts: dict[str, torch.Tensor] = {}
        if labels is not None:
            loss, parts = self._compute_loss(logits, labels, outputs, **kwargs)
        else:
            self._check_labels_were_kept(**kwargs)
        return FusionCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            image_outputs=outputs.image_outputs,
            **parts,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def _check_labels_were_kept(self, num_items_in_batch: torch.Tensor | int | None = None, **kwargs):
        """Refuse the call of a `Trainer` that computes a loss of its own, without the labels."""
        if num_items_in_batch is not None:
            raise ValueError(
                "Got `num_items_in_batch` without `labels`: `Trainer` took the labels away, to compute a loss of its"
                " own. That loss lacks the mapping loss, and with `label_smoothing_factor` it compares each token with"
                " itself. Use `FusionTrainer` for label smoothing. Assign another language loss to"
                " `model.loss_function`, in place of `compute_loss_func`."
            )

    def _compute_loss(
        self,
        logits: torch.Tensor,
        labels: torch.LongTensor,
        outputs: FusionModelOutputWithPast,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.LongTensor | None = None,
        label_smoothing: float = 0.0,
        **kwargs,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Return the training loss and its parts.

        The mapping loss of an example weighs as much as its share of the labels, of this batch or, when `Trainer`
        passes `num_items_in_batch`, of all that make one step. So the loss of a batch is the sum over its
        micro-batches, as it is for the language loss.

        Args:
            label_smoothing (`float`):
                Share of the language loss that is the mean over the vocabulary instead of the right token's.
        """
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
        shift_labels = shift_labels.to(logits.device)
        is_labelled = shift_labels != -100
        # The loss function copies its logits to float32, so it gets only those with a label: a thousand image tokens
        # have none.
        logits = logits[is_labelled]
        language_loss = self.loss_function(
            logits=logits,
            labels=labels,
            shift_labels=shift_labels[is_labelled],
            vocab_size=self.config.text_config.vocab_size,
            num_items_in_batch=num_items_in_batch,
            **kwargs,
        )
        num_labels = is_labelled.sum(dim=1).to(outputs.text_mapping_loss)
        total = num_labels.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).to(num_labels)
        if label_smoothing:
            logits = logits.float()
            uniform_loss = (logits.logsumexp(dim=-1) - logits.mean(dim=-1)).sum() / total.to(logits.device)
            language_loss = (1 - label_smoothing) * language_loss + label_smoothing * uniform_loss
        parts = {
            name: (outputs[name] * num_labels).sum() / total for name in ("text_mapping_loss", "vision_mapping_loss")
        }
        loss = language_loss + self.config.mapping_loss_coef * sum(parts.values()).to(language_loss.device)
        return loss, {"language_loss": language_loss, **parts}

    def prepare_inputs_for_generation(
        self,
        input_ids,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        is_first_iteration=False,
        use_cache=True,
        next_sequence_length=None,
        num_prompt_tokens=None,
        context_map=None,
        **kwargs,
    ):
        """
        Drop what belongs to the prompt once the prompt is in the cache.

        Raises:
            ValueError: if there are two caches, or if `generate` splits the prompt (`prefill_chunk_size`).
        """
        if cache is not None and past_key_values is not None:
            raise ValueError(f"Got two caches, `cache` and `past_key_values`: pass only `{CACHE_NAME}`.")
        cache = past_key_values if cache is None else cache
        # The prompt of an assistant model comes as if it were not the first.
        is_prompt = is_first_iteration or next_sequence_length == input_ids.shape[1] > 1
        if use_cache and self._splits_prompt(input_ids, is_prompt, num_cached_tokens(cache), next_sequence_length):
            raise ValueError(
                "`generate` passes the prompt in pieces, but FUSION has to process a prompt in one piece: its latent"
                " tokens depend on the question that follows them. Leave out `prefill_chunk_size`."
            )
        needs_prompt = is_prompt or not use_cache
        if not is_prompt and self._leaves_short_context(input_ids.shape[1], cache):
            cache, next_sequence_length, needs_prompt = None, None, True
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_prompt or (needs_prompt and use_cache),
            use_cache=use_cache,
            next_sequence_length=next_sequence_length,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        model_inputs["num_prompt_tokens"] = num_prompt_tokens if needs_prompt else 0
        if not needs_prompt:
            # `pixel_values` and `high_res_pixel_values` are on the list that the base class drops.
            for name in ("question_input_ids", "question_attention_mask"):
                model_inputs.pop(name, None)
        elif context_map is not None:
            # `generate` repeats inputs for beams and samples, also the one map that all questions share.
            is_shared = len(context_map) < len(input_ids) and bool((context_map == context_map[:1]).all())
            model_inputs["context_map"] = context_map[:1] if is_shared else context_map
        return model_inputs

    def _splits_prompt(
        self, input_ids: torch.LongTensor, is_prompt: bool, num_cached: int, next_sequence_length: int | None
    ) -> bool:
        """
        Tell whether `generate` passes the prompt in chunks.

        Below transformers 5.23 no chunk counts as the prompt; later, all of them do. In a chunk of one token, the
        model itself would take a placeholder for generated text.
        """
        if not is_prompt or num_cached == 0:
            return not is_prompt and num_cached == 0
        chunk = input_ids[:, -(next_sequence_length or input_ids.shape[1]) :]
        return bool(((chunk == self.config.image_token_id) | (chunk == self.config.latent_token_id)).any())

    def _leaves_short_context(self, length: int, cache: Cache | None) -> bool:
        """
        Tell whether this step takes a decoder with LongRoPE (Phi-3) past its original context.

        Its position factors change there, so everything in the cache is computed again, as `Phi3ForCausalLM` does.
        """
        limit = getattr(self.config.text_config, "original_max_position_embeddings", None)
        return limit is not None and length > limit and 0 < num_cached_tokens(cache) <= limit

    # 4 bits, with the section at the end of the file

    @classmethod
    def from_pretrained(cls, *args, quantization_config: QuantizationConfigMixin | dict | None = None, **kwargs):
        """
        Load a model; see `PreTrainedModel.from_pretrained`.

        4-bit quantization skips `SKIPPED_IN_4BIT`, unless the config names modules in `llm_int8_skip_modules`.
        """
        if isinstance(quantization_config, dict):
            quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
        if getattr(quantization_config, "load_in_4bit", False) and quantization_config.llm_int8_skip_modules is None:
            quantization_config = copy.deepcopy(quantization_config)
            quantization_config.llm_int8_skip_modules = list(SKIPPED_IN_4BIT)
        return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)

    def train(self, mode: bool = True) -> "FusionForConditionalGeneration":
        """Set the mode; see `nn.Module.train`. 4-bit layers are made ready for training."""
        super().train(mode)
        for module in self.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                guard_4bit_packing(module, mode)
        return self


# 4 bits (bitsandbytes) -----------------------------------------------------------------------------------------------

# Where 4 bits cost more accuracy than they save memory (benchmarks/quantization.py). The interaction layers, a sixth
# of the 3B model, are hardly harmed. Patterns match from the start of a module's name.
SKIPPED_IN_4BIT = (
    "lm_head",
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.text_to_vision_projector",
)


def guard_4bit_packing(layer: nn.Module, is_training: bool):
    """
    Keep bitsandbytes (0.50) from packing a 4-bit layer where that does harm, and unpack it for training.

    On CPUs with AVX512-BF16 it packs a layer's weights in the first forward in evaluation mode, for kernels that have
    no gradient (training afterwards learns nothing, without an error) and that fail on narrow layers. What is not
    doubly quantized it unpacks wrong.
    """
    quant_state = layer.weight.quant_state
    if is_training and getattr(quant_state, "packing_format_for_cpu", False):
        layer.state_dict()  # unpacks the weights, to save them
    can_be_packed = (
        layer.out_features % 32 == 0 and layer.in_features % 64 == 0 and getattr(quant_state, "nested", True)
    )
    if is_training or not can_be_packed:
        layer.support_avx512bf16_for_cpu = False


# --------------------------------------------------------------------------------------------------------------------

FusionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
