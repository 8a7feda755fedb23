"""LoRA (PEFT) on a FUSION: which of its layers are adapted, and which are trained in full."""

from peft import LoraConfig, TaskType
from torch import nn

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


PROJECTORS = ("multi_modal_projector", "text_to_vision_projector")


def lora_config(
    model: FusionForConditionalGeneration, *, tower: bool = False, connectors: bool = False, **kwargs
) -> LoraConfig:
    """
    A config for `peft.get_peft_model`, with LoRA on the linear layers of the decoder.

    Args:
        model (`FusionForConditionalGeneration`):
            What the config is for; its layers are looked up by name, so any decoder will do.
        tower (`bool`):
            Whether the linear layers of the vision tower get LoRA too.
        connectors (`bool`):
            Whether the projectors and the interaction layers are trained in full, and saved with the adapter.
        kwargs:
            Of `LoraConfig`, such as `r` and `lora_alpha`.

    Raises:
        ValueError: if what is to be trained in full is quantised.
    """
    trained = []
    if connectors:
        # One by one: PEFT can take the place of a layer, but not of a list of them.
        names = [f"interaction_layers.{index}" for index in range(len(model.model.interaction_layers))]
        trained = [*PROJECTORS, *names]
        for name in trained:
            if not all(parameter.is_floating_point() for parameter in model.model.get_submodule(name).parameters()):
                raise ValueError(
                    f"`{name}` is quantised, so it cannot be trained in full. Load the model with"
                    ' `llm_int8_skip_modules=[*SKIPPED_IN_4BIT, "model.interaction_layers"]` in its'
                    " `BitsAndBytesConfig` (`SKIPPED_IN_4BIT` is in modeling_fusion.py)."
                )
    return LoraConfig(
        # Without a task the adapter's config would name the module of the model's class, which for remote code is a
        # path that only this machine has.
        task_type=TaskType.CAUSAL_LM,
        target_modules="|".join(_pattern(model, part) for part in ("language_model", "vision_tower")[: 1 + tower]),
        modules_to_save=trained or None,
        **kwargs,
    )


def _pattern(model: FusionForConditionalGeneration, part: str) -> str:
    """Of the full names of all linear layers of a part."""
    modules = model.model.get_submodule(part).named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    return rf"model\.{part}\..*\.({'|'.join(sorted(names))})"
