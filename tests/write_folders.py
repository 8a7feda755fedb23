"""
Write folders of every kind with the installed transformers, and what a model answers from each.

tests/test_releases.py loads them with other releases.

    python -m tests.write_folders OUTPUT_DIR
"""

import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_vlm.convert_checkpoints import convert
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

from .helpers import GOLDEN_DIR, LLAMA, PHI, make_messages, process
from .tiny import random_image, tiny_processor, wide_config


# Converted, saved from what was loaded, an adapter of a converted folder, and in 4 bits.
FOLDERS = ("converted-phi", "converted-llama", "saved", "adapter", "4bit")


def write(folder: Path):
    """Write the folders of `FOLDERS` into `folder`."""
    convert(GOLDEN_DIR / PHI / "checkpoint", folder / "converted-phi")
    convert(GOLDEN_DIR / LLAMA / "checkpoint", folder / "converted-llama")
    model, processor = load("converted-llama", folder)
    model.save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")

    torch.manual_seed(0)
    target = r".*language_model\.layers\.\d+\.self_attn\.[qv]_proj"
    adapted = get_peft_model(model, LoraConfig(target_modules=target, init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")

    processor = tiny_processor(processor)
    torch.manual_seed(0)
    FusionForConditionalGeneration(wide_config(processor)).save_pretrained(folder / "wide")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    quantized = AutoModelForImageTextToText.from_pretrained(
        folder / "wide", trust_remote_code=True, quantization_config=config
    )
    quantized.save_pretrained(folder / "4bit")
    processor.save_pretrained(folder / "4bit")


def load(name: str, folder: Path):
    """Return the model and the processor of one of `FOLDERS`, by the code in the folder."""
    path = folder / ("converted-llama" if name == "adapter" else name)
    model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True)
    if name == "adapter":
        model = PeftModel.from_pretrained(model, folder / name)
    return model.eval(), AutoProcessor.from_pretrained(path, trust_remote_code=True)


@torch.no_grad()
def ask(model, processor) -> dict[str, torch.Tensor]:
    """Return the inputs of one question, and the logits of its first answer token."""
    inputs = process(processor, make_messages(["What is it?"], random_image(0)), latent_grid_size=2)
    logits = model(**inputs).logits[:, -1].float()
    return {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"], "logits": logits}


def main():
    folder = Path(sys.argv[1]) / transformers.__version__
    write(folder)
    for name in FOLDERS:
        tensors = ask(*load(name, folder))
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
