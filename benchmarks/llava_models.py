"""LLaVA and LLaVA-NeXT in vLLM, with the tower and the decoder of a FUSION model: what serving.py compares with."""

import sys
import types
from importlib.util import find_spec
from pathlib import Path

from transformers import LlavaConfig, LlavaNextConfig, LlavaNextProcessor, LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.processing_fusion import FusionProcessor


STAND_INS = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


def register_llava():
    """
    Register vLLM's LLaVA models, which import torchvision, without torchvision.

    Only Pixtral's image processor, which their modules import beside their own, needs it. Empty stand-ins are there
    while the modules are imported, and gone afterwards, so that nothing of torchvision can run.
    """
    from vllm import ModelRegistry

    stand_ins = {} if find_spec("torchvision") else {name: types.ModuleType(name) for name in STAND_INS}
    for name, module in stand_ins.items():
        module.functional = stand_ins[STAND_INS[-1]]
        sys.modules[name] = module
    try:
        from vllm.model_executor.models.llava import LlavaForConditionalGeneration
        from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
    finally:
        for name in stand_ins:
            del sys.modules[name]
    for kind in (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration):
        ModelRegistry.register_model(kind.__name__, kind)  # the class itself: vLLM would import it in another process


def write_llava_folder(folder: Path, source: Path, has_crops: bool) -> Path:
    """Write config and processor of a LLaVA-NeXT (2 x 2 crops) or LLaVA with a FUSION model's tower and decoder."""
    fusion, processor = FusionConfig.from_pretrained(source), FusionProcessor.from_pretrained(source)
    side, values = fusion.vision_config.image_size, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"height": side, "width": side}
    if has_crops:
        kind, kind_of_processor = LlavaNextConfig, LlavaNextProcessor
        options = {"image_grid_pinpoints": [[2 * side, 2 * side]]}
        image_processor = LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=size, **options, **values)
    else:
        kind, kind_of_processor, options = LlavaConfig, LlavaProcessor, {}
        image_processor = SiglipImageProcessorPil(size=size, **values)
    kind(
        architectures=[kind.__name__.replace("Config", "ForConditionalGeneration")],
        vision_config=fusion.vision_config,
        text_config=fusion.text_config,
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        **options,
    ).save_pretrained(folder)
    kind_of_processor(
        image_processor,
        processor.tokenizer,
        patch_size=fusion.vision_config.patch_size,
        vision_feature_select_strategy="full",
        image_token=processor.image_token,
    ).save_pretrained(folder)
    return folder
