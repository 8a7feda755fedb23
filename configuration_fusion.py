"""Configuration of FUSION (arXiv 2504.09925): a SigLIP vision tower, a decoder, and the fields that FUSION adds."""

import importlib.metadata
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

from transformers.utils import logging
from transformers.utils.versions import require_version


# The lowest and the newest minor release of transformers that the tests run on (`make test-versions`). CONTRIBUTING.md
# says how to widen the range.
TESTED_RELEASES = ("5.20", "5.24")
RANGE = f"FUSION is tested with transformers {TESTED_RELEASES[0]} to {TESTED_RELEASES[1]}"

# First, because what follows does not exist in older releases.
require_version(f"transformers>={TESTED_RELEASES[0]}", f"{RANGE}: pip install --upgrade transformers")

from huggingface_hub.dataclasses import strict  # noqa: E402
from packaging.version import Version  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig  # noqa: E402
from transformers.configuration_utils import SubConfigSpec  # noqa: E402


_installed = importlib.metadata.version("transformers")
if Version(_installed).release[:2] > Version(TESTED_RELEASES[1]).release:
    # One logger for all copies of this file: each of a folder's Auto classes imports its own.
    logging.get_logger("transformers.fusion_vl").warning_once(
        f"{RANGE}, and {_installed} is newer. If anything fails or changes: update the files of FUSION"
        f" beside the weights, or pip install 'transformers=={TESTED_RELEASES[1]}.*'."
    )

if TYPE_CHECKING:
    # For type checkers: a field that `__post_init__` fills in is never None afterwards.
    T = TypeVar("T")
    FilledIn = Annotated[T, "None before `__post_init__`"]
    SubConfig = Any

    # For transformers, which tells the code of two folders apart by this file and those that it imports. Without the
    # line, a process that loads two revisions of a model would run the modeling code of the first for both.
    from .modeling_fusion import FusionForConditionalGeneration  # noqa: F401
else:
    # For `strict`, which checks a field when it is set, before `__post_init__` runs.
    FilledIn = Optional
    SubConfig = dict | PreTrainedConfig | None

NOT_GIVEN: Any = None

AUTO_MAP = {
    "AutoConfig": "configuration_fusion.FusionConfig",
    "AutoModel": "modeling_fusion.FusionForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_fusion.FusionForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_fusion.FusionForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_fusion.FusionForConditionalGeneration",
}


DEFAULT_LATENT_GRID_SIZE = 8  # of the released models
NUM_CROPS_PER_SIDE = 2  # an image of high resolution is cut into this many crops a side
NUM_CROPS = NUM_CROPS_PER_SIDE**2


def default_latent_grid_size(num_patches_per_side: int) -> int:
    """Return the side of the latent grid of a question, for a tower with this patch grid."""
    return min(DEFAULT_LATENT_GRID_SIZE, NUM_CROPS_PER_SIDE * num_patches_per_side)


@strict
class FusionConfig(PreTrainedConfig):
    """
    Configuration of a FUSION model. The defaults are those of FUSION-Phi3.5-3B.

    Args:
        vision_config (`dict` or `SiglipVisionConfig`):
            The vision tower. Its `num_hidden_layers` counts the layers that are run (the released models keep 26 of 27
            and 39 of 40); its pooling head is never built.
        text_config (`dict` or `PreTrainedConfig`):
            The decoder: any decoder type of transformers whose model has `.layers`.
        image_token_id (`int`):
            Placeholder of one image token in `input_ids`.
        latent_token_id (`int`):
            Placeholder of one latent token in `input_ids`.
        question_end_token_ids (`list[int]`, *optional*):
            The ids of the generation prompt of the chat template (`<|assistant|>`, say). A question ends where they
            end; `FusionProcessor.question_end_token_ids` computes them. Without them, a question is taken to end
            before the next latent group or at the end of the sequence, which is right for a bare prompt only, so that
            a loss cannot be computed.
        latent_grid_size (`int`, *optional*):
            Side of the latent grid of one question at inference; its square is the number of latent tokens. Defaults
            to 8, or to the largest that the tower allows. A record for whoever builds the processor, whose own
            `latent_grid_size` decides: the model follows the placeholders that it receives.
        latent_grid_sizes (`list[int]`, *optional*):
            Sides that are drawn from in training. Defaults to the released `[2, 4, 6, 8, 12]`, without those that the
            tower is too small for.
        image_grid_size (`int`, *optional*):
            Side of the grid of image tokens that enters the decoder. Defaults to the tower's own side
            (`num_patches_per_side`); 16 is FUSION-L. As above, the processor's decides.
        interaction_layer_indices (`list[int]`, *optional*):
            Decoder layers after which an interaction layer acts. Defaults to every third layer of the first 28, which
            is `[0, 3, ..., 27]` for the released decoders of 32 layers.
        num_interaction_heads (`int`):
            Attention heads of an interaction layer.
        window_size (`int`):
            Side of the window of the context map that one latent token attends to.
        mapping_loss_coef (`float`):
            Weight of the dual-supervised semantic mapping loss (paper section 3.3).
        projector_hidden_act (`str`):
            Activation of the projectors and of the interaction layers.
        tie_word_embeddings (`bool`):
            Whether the language model head shares the decoder's embedding. Taken over from `text_config`.

    Raises:
        ValueError: from validation, naming the field, its value and what was expected.
    """

    model_type = "fusion_vl"
    # Outputs that `Trainer` drops, so that the predictions it collects are the logits.
    keys_to_ignore_at_inference = [
        "cache",  # of transformers 5.24 and newer
        "past_key_values",  # of older ones
        "image_hidden_states",
        "image_outputs",
        "language_loss",
        "text_mapping_loss",
        "vision_mapping_loss",
    ]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi3"),
    }

    vision_config: SubConfig = None
    text_config: SubConfig = None
    image_token_id: int = 32002
    latent_token_id: int = 32003
    question_end_token_ids: list[int] | None = None
    latent_grid_size: FilledIn[int] = NOT_GIVEN
    latent_grid_sizes: FilledIn[list[int]] = NOT_GIVEN
    image_grid_size: FilledIn[int] = NOT_GIVEN
    interaction_layer_indices: FilledIn[list[int]] = NOT_GIVEN
    num_interaction_heads: int = 16
    window_size: int = 3
    mapping_loss_coef: float = 0.1
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.image_grid_size is None:
            self.image_grid_size = self.num_patches_per_side
        if self.latent_grid_size is None:
            self.latent_grid_size = default_latent_grid_size(self.num_patches_per_side)
        if self.latent_grid_sizes is None:
            self.latent_grid_sizes = [size for size in (2, 4, 6, 8, 12) if size <= self.max_latent_grid_size]
        if self.interaction_layer_indices is None:
            self.interaction_layer_indices = list(range(0, min(28, self.text_config.num_hidden_layers), 3))
        if getattr(self, "auto_map", None) is None:
            self.auto_map = dict(AUTO_MAP)
        # Tying reads the top-level field, decoders' checkpoints store it in their own config.
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        # `strict` validates after this too, but wraps what is wrong in an error that is no ValueError.
        self.validate_architecture()

    @property
    def num_patches_per_side(self) -> int:
        """Side of the patch grid of one crop."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def max_latent_grid_size(self) -> int:
        """Side of the context map, which latent tokens are pooled from: there are no more of them than its cells."""
        return NUM_CROPS_PER_SIDE * self.num_patches_per_side

    def validate_architecture(self):
        """Check fields against each other; runs on init and on save."""
        if self.vision_config.num_hidden_layers < 2:
            raise ValueError(
                f"The tower has {self.vision_config.num_hidden_layers} layer, expected 2 at least: its features are"
                " means over the early and over the late ones."
            )
        if self.image_token_id == self.latent_token_id:
            raise ValueError(f"`image_token_id` and `latent_token_id` must differ, both are {self.image_token_id}.")
        for size in [self.latent_grid_size, *self.latent_grid_sizes]:
            if not 1 <= size <= self.max_latent_grid_size:
                raise ValueError(
                    f"A latent grid of side {size} does not fit: expected 1 to {self.max_latent_grid_size}, the side"
                    " of the context map. Change `latent_grid_size` or `latent_grid_sizes`."
                )
        if not 1 <= self.image_grid_size <= self.num_patches_per_side:
            raise ValueError(
                f"`image_grid_size` is {self.image_grid_size}, expected 1 to {self.num_patches_per_side} (the side of"
                " the tower's patch grid)."
            )
        num_layers = self.text_config.num_hidden_layers
        indices = self.interaction_layer_indices
        if indices != sorted(set(indices)) or any(not 0 <= index < num_layers for index in indices):
            raise ValueError(
                f"`interaction_layer_indices` is {indices}, expected increasing decoder layers from 0 to"
                f" {num_layers - 1}."
            )
        if self.text_config.hidden_size % self.num_interaction_heads:
            raise ValueError(
                f"`num_interaction_heads` is {self.num_interaction_heads}, which does not divide the decoder's hidden"
                f" size of {self.text_config.hidden_size}."
            )


FusionConfig.register_for_auto_class()
