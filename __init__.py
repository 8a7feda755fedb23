"""
FUSION vision-language models for transformers.

The public names; each is imported when it is first used. Nothing may be imported here: pytest imports this file a
second time under the name of the checkout, and the Auto classes would then know two of each class.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from fusion_vlm.audit.audit import audit
    from fusion_vlm.configuration_fusion import FusionConfig
    from fusion_vlm.convert_checkpoints import convert
    from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, FusionModel, FusionVisionModel
    from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor
    from fusion_vlm.rows.messages import to_messages
    from fusion_vlm.training.collator import FusionDataCollator
    from fusion_vlm.training.lora import lora_config
    from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments
    from fusion_vlm.visualization import visualize

__all__ = [
    "FusionConfig",
    "FusionDataCollator",
    "FusionForConditionalGeneration",
    "FusionImageProcessor",
    "FusionModel",
    "FusionProcessor",
    "FusionTrainer",
    "FusionTrainingArguments",
    "FusionVisionModel",
    "__version__",
    "audit",
    "convert",
    "lora_config",
    "to_messages",
    "visualize",
]

_MODULES = {
    "FusionConfig": "configuration_fusion",
    "FusionDataCollator": "training.collator",
    "FusionForConditionalGeneration": "modeling_fusion",
    "FusionImageProcessor": "processing_fusion",
    "FusionModel": "modeling_fusion",
    "FusionProcessor": "processing_fusion",
    "FusionTrainer": "training.trainer",
    "FusionTrainingArguments": "training.trainer",
    "FusionVisionModel": "modeling_fusion",
    "audit": "audit.audit",
    "convert": "convert_checkpoints",
    "lora_config": "training.lora",
    "to_messages": "rows.messages",
    "visualize": "visualization",
}


def __getattr__(name: str):
    if name == "__version__":
        return importlib.metadata.version("fusion-vlm")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # By the installed name, also where this file runs under another one.
    return getattr(importlib.import_module(f"fusion_vlm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
