"""A tiny FUSION of any decoder, with random weights and the Llama golden's tokenizer and template."""

import copy

import numpy as np
import torch
from PIL import Image
from transformers import LlamaConfig, Phi3Config, Qwen3Config, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor


TEXT_CONFIGS = {"llama": LlamaConfig, "phi3": Phi3Config, "qwen3": Qwen3Config}
VISION_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 4,
}


def tiny_processor(original: FusionProcessor) -> FusionProcessor:
    """Return a processor with 24x24 crops, 36 image tokens and 4 latents."""
    return FusionProcessor(
        FusionImageProcessor(size={"height": 24, "width": 24}, image_grid_size=6, latent_grid_size=2),
        copy.deepcopy(original.tokenizer),
        chat_template=original.chat_template,
        end_of_turn_token=original.end_of_turn_token,
    )


def tiny_config(processor, decoder="llama", **values) -> FusionConfig:
    text_config = TEXT_CONFIGS[decoder](
        vocab_size=len(processor.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    values = {"question_end_token_ids": processor.question_end_token_ids, **values}
    return FusionConfig(
        vision_config=SiglipVisionConfig(**VISION_CONFIG),
        text_config=text_config,
        image_token_id=processor.image_token_id,
        latent_token_id=processor.latent_token_id,
        num_interaction_heads=4,
        interaction_layer_indices=[0, 2],
        **values,
    )


def wide_config(processor) -> FusionConfig:
    """Return a configuration of widths that bitsandbytes' CPU kernels take."""
    config = tiny_config(processor)
    config.text_config.hidden_size, config.text_config.intermediate_size = 128, 256
    config.text_config.head_dim = 32
    config.vision_config = SiglipVisionConfig(**{**VISION_CONFIG, "hidden_size": 64, "intermediate_size": 128})
    return config


def random_model(config: FusionConfig) -> FusionForConditionalGeneration:
    torch.manual_seed(0)
    model = FusionForConditionalGeneration(config).eval()
    # With the default scale of initialization, outputs would hardly depend on inputs.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=0.3)
    return model


def tiny_model(processor, decoder="llama", **values) -> FusionForConditionalGeneration:
    return random_model(tiny_config(processor, decoder, **values))


def random_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@torch.no_grad()
def last_logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits[:, -1]
