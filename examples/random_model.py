"""
Write a small FUSION with random weights to a folder, to train where nothing can be downloaded.

It has 64x64 crops, 4 decoder layers, the tokenizer of the small trained model and the chat template of Llama.

    python examples/random_model.py OUTPUT_DIR
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor


ROOT = Path(__file__).resolve().parents[1]
# Tokens of the Llama template that the tokenizer of the small model lacks.
TEMPLATE_TOKENS = ["<|start_header_id|>", "<|end_header_id|>"]


def write_small_model(folder: str | Path) -> Path:
    """Write model and processor, like `convert_checkpoints.py`, and return the folder."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "small_model" / "model")
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    tokenizer.add_tokens(TEMPLATE_TOKENS, special_tokens=True)
    image_processor = FusionImageProcessor(size={"height": 64, "width": 64}, image_grid_size=8, latent_grid_size=4)
    template = (ROOT / "chat_templates" / "llama.jinja").read_text()
    processor = FusionProcessor(image_processor, tokenizer, chat_template=template, end_of_turn_token="<|eot_id|>")
    config = FusionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=1024,
            initializer_range=0.1,  # so that adapters alone can move the logits of the frozen head
            pad_token_id=processor.tokenizer.pad_token_id,
            bos_token_id=processor.tokenizer.bos_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
        ),
        image_token_id=processor.image_token_id,
        latent_token_id=processor.latent_token_id,
        question_end_token_ids=processor.question_end_token_ids,
        interaction_layer_indices=[0, 2],
        num_interaction_heads=4,
        latent_grid_size=4,
        latent_grid_sizes=[2, 4],
    )
    FusionForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_small_model(sys.argv[1]))
