"""
FUSION's model in vLLM: the decoder is vLLM's own, everything else is this package's.

vLLM keeps one two-dimensional tensor for each encoded item, and cuts it by rows only. So an item has one row for each
image or latent token, `[embedding | cells of the windows]`: the cells that the interaction layers read are spread over
the rows.

Dimensions named in the shape comments:
    tokens     of a step: the tokens of all its requests, prompts and decoding mixed, one after the other
    rows       image and latent tokens of an item
    latents, window, questions, dim     as in modeling_fusion.py
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from fusion_vlm.configuration_fusion import NUM_CROPS, FusionConfig
from fusion_vlm.modeling_fusion import (
    FusionInteractionLayer,
    FusionModel,
    FusionPreTrainedModel,
    FusionProjector,
    FusionVisionModel,
    InteractionContext,
    context_windows,
    find_group_starts,
    shift_right,
)
from fusion_vlm.serving.vllm.internals import direct_register_custom_op, find_layer, register_layer
from fusion_vlm.serving.vllm.processor import (
    FusionDummyInputsBuilder,
    FusionMultiModalProcessor,
    FusionProcessingInfo,
)
from fusion_vlm.serving.vllm.settings import ONE_PIECE, find_graph_problems


OPERATOR = "fusion_interact"

# Context maps of the last images are kept, because a map does not depend on the question. In the 3B model, a map has
# 18 MB.
CONTEXT_MAPS_OPTION, NUM_CONTEXT_MAPS = "fusion_context_maps", 8


class FusionEncoder(FusionModel):
    """`FusionModel` without its decoder: tower, projectors, interaction layers, and the methods that use them."""

    def __init__(self, config: FusionConfig, dtype: torch.dtype, embed_tokens, num_context_maps: int):
        FusionPreTrainedModel.__init__(self, config)
        vision_dim, dim = config.vision_config.hidden_size, config.text_config.hidden_size
        # The configuration has a dtype of its own, which would be taken without `dtype`.
        self.vision_tower = FusionVisionModel._from_config(config.vision_config, dtype=dtype)
        self.multi_modal_projector = FusionProjector(3 * vision_dim, dim, config.projector_hidden_act)
        self.text_to_vision_projector = FusionProjector(dim, vision_dim, config.projector_hidden_act)
        self.interaction_layers = nn.ModuleList(
            shard(FusionInteractionLayer(config)) for _ in config.interaction_layer_indices
        )
        self.embed_tokens = embed_tokens  # a method of the decoder, no module: its weights are loaded there
        self.num_context_maps, self.context_maps = num_context_maps, OrderedDict()

    def get_input_embeddings(self):
        return self.embed_tokens

    @cached_property
    def blank_map(self) -> torch.Tensor:
        """Return the context map of prompts without an image, `(1, dim, 2 * side, 2 * side)`."""
        blank_image = self._make_blank_image(self.device).to(self.dtype)
        return self.get_context_map(blank_image.unsqueeze(1).expand(-1, NUM_CROPS, -1, -1, -1))

    def get_context_maps(self, image_keys: list[bytes], crops: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """
        Return the context map of each image, `(1, dim, 2 * side, 2 * side)`, encoding each image once.

        Images are encoded one by one, four crops at a time. vLLM measures memory with equal images, which share a map,
        so a batch of different ones could take more memory than there is.
        """
        maps = []
        for key, rows in zip(image_keys, crops, strict=True):
            if key not in self.context_maps:
                self.context_maps[key] = self.get_context_map(rows.unsqueeze(0))
            self.context_maps.move_to_end(key)
            maps.append(self.context_maps[key])
            while len(self.context_maps) > max(self.num_context_maps, 1):
                self.context_maps.popitem(last=False)
        return maps

    def forget_maps(self):
        """Drop the context maps that other weights have made."""
        self.context_maps.clear()
        self.__dict__.pop("blank_map", None)

    def encode_images(
        self, pixel_values: Iterable[torch.Tensor], questions: Iterable[torch.Tensor], grid_sizes: list[int]
    ) -> list[torch.Tensor]:
        """Encode images with their questions to `(image_grid_size**2, dim)` each, equal sizes in one batch."""
        items, features = list(zip(pixel_values, questions, strict=True)), [None] * len(grid_sizes)
        for size in set(grid_sizes):
            places = [place for place, other in enumerate(grid_sizes) if other == size]
            question_ids = [items[place][1] for place in places]
            outputs = self.get_image_features(
                torch.stack([items[place][0] for place in places]),
                nn.utils.rnn.pad_sequence(question_ids, batch_first=True),
                nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in question_ids], batch_first=True),
                size,
                return_dict=True,
            )
            for place, rows in zip(places, outputs.pooler_output, strict=True):
                features[place] = rows
        return features


@MULTIMODAL_REGISTRY.register_processor(
    FusionMultiModalProcessor, info=FusionProcessingInfo, dummy_inputs=FusionDummyInputsBuilder
)
class FusionForConditionalGeneration(nn.Module, SupportsMultiModal):
    """
    FUSION with vLLM's decoder.

    Of one step, `embed_input_ids` runs before `forward`, and leaves there what the interaction layers need.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.": "encoder.",
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: FusionConfig = vllm_config.model_config.hf_config
        split_graphs(vllm_config.compilation_config)
        text_config = self.config.text_config
        text_config.tie_word_embeddings = self.config.tie_word_embeddings
        self.language_model = init_vllm_registered_model(
            vllm_config=vllm_config,
            hf_config=text_config,
            prefix=maybe_prefix(prefix, "language_model"),
            architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text_config.model_type]],
        )
        self.encoder = FusionEncoder(
            self.config,
            vllm_config.model_config.dtype,
            self.language_model.embed_input_ids,
            vllm_config.additional_config.get(CONTEXT_MAPS_OPTION, NUM_CONTEXT_MAPS),
        )
        self.name = maybe_prefix(prefix, OPERATOR)
        register_layer(vllm_config, self.name, self)
        for index, layer_index in enumerate(self.config.interaction_layer_indices):
            layer = self.language_model.model.layers[layer_index]
            layer.register_forward_hook(partial(call_operator, self.name, index))
        self.next_contexts: list[InteractionContext] = []
        self.contexts: list[InteractionContext] = []

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None  # chat templates write it

    def get_language_model(self) -> nn.Module:
        return self.language_model

    # Items

    def embed_multimodal(
        self,
        grid_sizes: torch.Tensor,
        image_key: torch.Tensor | None = None,
        pixel_values: torch.Tensor | list[torch.Tensor] | None = None,
        high_res_pixel_values: torch.Tensor | list[torch.Tensor] | None = None,
        question_input_ids: torch.Tensor | list[torch.Tensor] | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        """
        Encode items, all with or all without an image, to their rows.

        Args:
            grid_sizes (`torch.Tensor` of shape `(items, 3)`):
                Side of the image tokens (0 without an image), side of the latents, number of questions.
            image_key (`torch.Tensor` of shape `(items, 32)`):
                Equal for equal images.
            pixel_values, high_res_pixel_values, question_input_ids:
                A row for each item, see `FusionProcessor`.
        """
        image_grids, latent_grids, numbers = zip(*grid_sizes.tolist(), strict=True)
        if pixel_values is None:  # latents begin as zeros, and their windows are those of a blank image
            dim, like = self.config.text_config.hidden_size, self.encoder.blank_map
            return [like.new_zeros(side**2 * number, dim) for side, number in zip(latent_grids, numbers, strict=True)]
        features = self.encoder.encode_images(pixel_values, question_input_ids, image_grids)
        maps = self.encoder.get_context_maps([bytes(key.tolist()) for key in image_key], high_res_pixel_values)
        return [self.make_rows(*values) for values in zip(features, maps, latent_grids, numbers, strict=True)]

    def make_rows(
        self, features: torch.Tensor, context_map: torch.Tensor, latent_grid_size: int, num_questions: int
    ) -> torch.Tensor:
        """Return the rows of an item with an image: its embeddings, with its windows beside them."""
        latents = F.adaptive_max_pool2d(context_map, latent_grid_size)[0].flatten(1).T  # (latents, dim)
        embeds = torch.cat([features, latents.repeat(num_questions, 1)])  # (rows, dim)
        windows = context_windows(context_map, latent_grid_size, self.config.window_size)[0]
        return pack_rows(embeds, windows)

    # Steps

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: list[torch.Tensor] | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Embed the tokens of a step, and prepare the interaction layers for `forward`.

        Args:
            multimodal_embeddings (`list[torch.Tensor]`): the rows of each prompt that begins in this step.
            is_multimodal (`torch.Tensor` of shape `(tokens,)`, on the CPU): the tokens that these rows belong to.
                Generated tokens are never among them, whatever their ids.
        """
        embeds = self.language_model.embed_input_ids(input_ids)  # (tokens, dim)
        self.next_contexts = []
        if not multimodal_embeddings:
            return embeds  # no prompt begins: nothing to look for, and nothing to wait for
        is_multimodal = is_multimodal.cpu()
        dim = embeds.shape[1]
        rows = torch.cat([item[:, :dim] for item in multimodal_embeddings])
        embeds[is_multimodal.nonzero().squeeze(1).to(embeds.device)] = rows.to(embeds)
        self.next_contexts = self.build_contexts(input_ids.cpu(), is_multimodal, multimodal_embeddings, dim)
        return embeds

    def build_contexts(
        self, input_ids: torch.Tensor, is_multimodal: torch.Tensor, items: list[torch.Tensor], dim: int
    ) -> list[InteractionContext]:
        """Return what the interaction layers need, for the prompts of each latent grid size."""
        latent_mask = is_multimodal & (input_ids == self.config.latent_token_id)
        end_mask = torch.ones_like(latent_mask)
        for distance, token_id in enumerate(reversed(self.config.question_end_token_ids)):
            end_mask &= shift_right((input_ids == token_id).unsqueeze(0), distance)[0]
        ends = end_mask.nonzero().squeeze(1)
        start_mask = find_group_starts(latent_mask.unsqueeze(0))[0]
        groups, window_size = defaultdict(list), self.config.window_size
        places_of_items = is_multimodal.nonzero().squeeze(1).split([len(item) for item in items])
        limits = [int(places[0]) for places in places_of_items[1:]] + [len(input_ids)]
        for item, places, limit in zip(items, places_of_items, limits, strict=True):
            latents = places[latent_mask[places]].view(int(start_mask[places].sum()), -1)  # (questions, latents)
            # The first end after the latents: further ones may have been generated, if the request was preempted.
            following = torch.searchsorted(ends, latents[:, -1].contiguous())
            if following[-1] == len(ends) or ends[following[-1]] >= limit:
                raise ValueError(f"A prompt came in pieces. {ONE_PIECE}.")
            question_ends = ends[following]
            if item.shape[1] == dim:
                windows = context_windows(self.encoder.blank_map, math.isqrt(latents.shape[1]), window_size)[0]
            else:
                windows = unpack_windows(item, dim, latents.shape[1] * window_size**2)
            groups[latents.shape[1]].append((windows, latents, question_ends))
        return [make_context(*zip(*group, strict=True)) for group in groups.values()]

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs):
        """Run the decoder on a step."""
        # Taken and not read: vLLM also runs steps that it has not embedded, to warm up or to keep pace with others.
        self.contexts, self.next_contexts = self.next_contexts, []
        try:
            return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)
        finally:
            self.contexts = []

    def interact(self, index: int, hidden_states: torch.Tensor, residual: torch.Tensor):
        """Replace the latent states after a decoder layer, whose state is `hidden_states + residual`, in place."""
        for context in self.contexts:
            latents, ends = context.latent_positions, context.question_end_positions
            latent_states = self.encoder.interaction_layers[index](
                hidden_states[latents] + residual[latents],
                hidden_states[ends] + residual[ends],
                context.windows.to(hidden_states.dtype),
                context.map_indices,
            )
            residual[latents] = latent_states.to(residual.dtype)
            hidden_states[latents] = 0

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        self.encoder.forget_maps()  # new weights may reach a running engine
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


def split_graphs(compilation_config):
    """
    Make compiled graphs split at the operator, so that it runs between CUDA graphs instead of inside of one.

    Captured inside of a graph, the operator would do nothing in every replay. vLLM has decided about graphs when it
    builds the model, and has compiled none.

    Raises:
        ValueError: for graphs that do not split.
    """
    for problem in find_graph_problems(compilation_config):
        raise ValueError(f"FUSION cannot be served like this: {problem}.")
    operator = f"vllm::{OPERATOR}"
    if operator not in (compilation_config.splitting_ops or []):
        compilation_config.splitting_ops = [*(compilation_config.splitting_ops or []), operator]


def shard(layer: FusionInteractionLayer) -> FusionInteractionLayer:
    """
    Split an interaction layer over the processes of tensor parallelism: heads, and units of the output's projector.

    What comes before the layer norms is whole in each process, since these need whole states. A number of heads that
    the processes cannot share leaves the whole layer to each of them.
    """
    num_processes = get_tensor_model_parallel_world_size()
    if num_processes == 1 or layer.num_heads % num_processes:
        return layer

    def split(kind, linear: nn.Linear):
        dtype = linear.weight.dtype
        return kind(linear.in_features, linear.out_features, bias=False, params_dtype=dtype, return_bias=False)

    layer.num_heads //= num_processes
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(layer, name, split(ColumnParallelLinear, getattr(layer, name)))
    layer.o_proj = split(RowParallelLinear, layer.o_proj)
    layer.proj_out.linear_1 = split(ColumnParallelLinear, layer.proj_out.linear_1)
    layer.proj_out.linear_2 = split(RowParallelLinear, layer.proj_out.linear_2)
    return layer


def pack_rows(embeds: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Return `(rows, (1 + k) * dim)`: embeddings `(rows, dim)`, and the cells `(cells, dim)` spread over the rows."""
    num_rows, dim = embeds.shape
    cells_per_row = math.ceil(len(windows) / num_rows)
    padding = num_rows * cells_per_row - len(windows)
    return torch.cat([embeds, F.pad(windows, (0, 0, 0, padding)).view(num_rows, cells_per_row * dim)], dim=1)


def unpack_windows(rows: torch.Tensor, dim: int, num_cells: int) -> torch.Tensor:
    """Return the cells `(cells, dim)` that `pack_rows` has spread over the rows."""
    return rows[:, dim:].reshape(-1, dim)[:num_cells]


def make_context(
    windows: tuple[torch.Tensor, ...], latents: tuple[torch.Tensor, ...], ends: tuple[torch.Tensor, ...]
) -> InteractionContext:
    """Return the context of prompts with one latent grid size: one context map for each, and all their questions."""
    device = windows[0].device
    numbers = torch.tensor([len(rows) for rows in latents])
    return InteractionContext(
        torch.stack(windows),
        torch.cat(latents).to(device),
        torch.cat(ends).to(device),
        torch.arange(len(latents)).repeat_interleave(numbers).to(device),
    )


def call_operator(name: str, index: int, layer: nn.Module, args: tuple, output: tuple):
    """Run the interaction layer `index` after a decoder layer, as an operator: a hook of torch."""
    if not (isinstance(output, tuple) and len(output) == 2):
        raise ValueError(f"vLLM's {type(layer).__name__} returns no (hidden_states, residual), which FUSION needs.")
    getattr(torch.ops.vllm, OPERATOR)(*output, name, index)


def fusion_interact(hidden_states: torch.Tensor, residual: torch.Tensor, name: str, index: int) -> None:
    find_layer(name).interact(index, hidden_states, residual)


def fusion_interact_fake(hidden_states: torch.Tensor, residual: torch.Tensor, name: str, index: int) -> None:
    return None


direct_register_custom_op(
    op_name=OPERATOR,
    op_func=fusion_interact,
    mutates_args=["hidden_states", "residual"],
    fake_impl=fusion_interact_fake,
)
