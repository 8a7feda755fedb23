"""LoRA (PEFT) on a FUSION: which of its layers are adapted, and which are trained in full."""

from peft import LoraConfig, TaskType
from torch import nn

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


PROJECTORS = ("multi_modal_projector", "text_to_vision_projector")


def lora_config(
    model: FusionForConditionalGeneration, *, tower: bool = False, connectors: bool = False, **kwargs
) -> LoraConfig:
    """
    Return a config for `peft.get_peft_model`, with LoRA on the linear layers of the decoder.

    Args:
        model (`FusionForConditionalGeneration`):
            The model to adapt. Its layers are looked up by name, so any decoder will do.
        tower (`bool`):
            Whether the linear layers of the vision tower get LoRA too.
        connectors (`bool`):
            Whether the projectors and the interaction layers are trained in full, and saved with the adapter.
        kwargs:
            Arguments of `LoraConfig`, such as `r` and `lora_alpha`.

    Raises:
        ValueError: if a module that is to be trained in full is quantized.
    """
    trained = []
    if connectors:
        # PEFT can replace a layer, but not a list of layers.
        names = [f"interaction_layers.{index}" for index in range(len(model.model.interaction_layers))]
        trained = [*PROJECTORS, *names]
        for name in trained:
            if not all(parameter.is_floating_point() for parameter in model.model.get_submodule(name).parameters()):
                raise ValueError(
                    f"`{name}` is quantized, so it cannot be trained in full. Load the model with"
                    ' `llm_int8_skip_modules=[*SKIPPED_IN_4BIT, "model.interaction_layers"]` in its'
                    " `BitsAndBytesConfig` (`SKIPPED_IN_4BIT` is in modeling_fusion.py)."
                )
    parts = ["language_model", "vision_tower"] if tower else ["language_model"]
    return LoraConfig(
        # Without a task the adapter's config names the module of the model's class. For remote code that is a path
        # of this machine.
        task_type=TaskType.CAUSAL_LM,
        target_modules="|".join(_pattern(model, part) for part in parts),
        modules_to_save=trained or None,
        **kwargs,
    )


def _pattern(model: FusionForConditionalGeneration, part: str) -> str:
    """Return a regular expression for the full names of all linear layers of a part."""
    modules = model.model.get_submodule(part).named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    return rf"model\.{part}\..*\.({'|'.join(sorted(names))})"
