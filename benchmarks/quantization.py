"""
Measure what quantization costs and saves.

    python benchmarks/quantization.py

The first table has the error of the small trained model's logits when one part alone is quantized, on the examples of
its model card. The second has the memory of the weights of the four released models, computed from their sizes.

The small model is narrow, and narrow layers lose more: compare the errors of the parts with each other. They do not
tell what a released model loses.
"""

import re
import tempfile
from pathlib import Path

import torch
from geometries import RELEASED, released_config
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from fusion_vlm.hub.loading import nf4_config
from fusion_vlm.modeling_fusion import SKIPPED_IN_4BIT, FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.small_model.grammar.questions import SHORT_HINT
from fusion_vlm.small_model.train import EXAMPLES
from fusion_vlm.visualization import process_questions


ROOT = Path(__file__).resolve().parents[1]
SMALL_MODEL = ROOT / "small_model" / "model"
PARTS = {
    "vision tower": r"model\.vision_tower",
    "projectors": r"model\.(multi_modal|text_to_vision)_projector",
    "decoder": r"model\.language_model",
    "interaction layers": r"model\.interaction_layers",
    "lm_head": r"lm_head",
}
# Bytes of a weight: NF4 takes half a byte, an 8-bit scale for 64 weights, and a float for 256 scales.
BYTES = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


def quantization_config(bits: int, skip: list[str] | None) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return nf4_config(torch.float32, skip=skip)


def save_untied(folder: Path):
    """Save the small model with a head of its own: bitsandbytes cannot quantize one that is tied to the embedding."""
    model = FusionForConditionalGeneration.from_pretrained(SMALL_MODEL, dtype=torch.float32)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)


@torch.no_grad()
def compute_logits(folder: Path, inputs, config: BitsAndBytesConfig | None = None) -> torch.Tensor:
    model = FusionForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    return model(**inputs, logits_to_keep=1).logits


def print_errors(folder: Path):
    save_untied(folder)
    print("Relative error of the logits when one part is quantized (the small model, its card's examples)\n")
    print(f"{'part':22}" + "".join(f"{name:>18}" for name in ("nf4", "int8")))
    processor = FusionProcessor.from_pretrained(SMALL_MODEL)
    image = str(ROOT / "examples" / "images" / f"{EXAMPLES[0][0]}.png")
    inputs = process_questions(processor, image, [f"{question}\n{SHORT_HINT}" for _, question, _ in EXAMPLES], {})
    expected = compute_logits(folder, inputs)
    rows = {part: [pattern for name, pattern in PARTS.items() if name != part] for part in PARTS}
    rows |= {"everything": ["nothing"], "4-bit default": list(SKIPPED_IN_4BIT)}
    for part, skip in rows.items():
        errors = []
        for bits in (4, 8):
            actual = compute_logits(folder, inputs, quantization_config(bits, skip))
            errors.append(((actual - expected).norm() / expected.norm()).item())
        print(f"{part:22}" + "".join(f"{error:18.4f}" for error in errors), flush=True)


def print_memory():
    print("\nMemory of the weights in GB, from the shapes (embedding, norms and biases stay in bf16)\n")
    header = [*PARTS, "bf16", "int8", "nf4 default", "nf4 everything"]
    print(f"{'model':22}" + "".join(f"{name:>20}" for name in header))
    for model_name in RELEASED:
        with torch.device("meta"):
            parameters = FusionForConditionalGeneration(released_config(model_name)).state_dict()
        sizes = dict.fromkeys(PARTS, 0.0)
        totals = dict.fromkeys(("bf16", "int8", "nf4 default", "nf4 everything"), 0.0)
        for name, parameter in parameters.items():
            count = parameter.numel()
            part = next(part for part, pattern in PARTS.items() if re.match(pattern, name))
            sizes[part] += count * BYTES["bf16"]
            is_linear = parameter.ndim == 2 and "embed" not in name and name != "lm_head.weight"
            totals["bf16"] += count * BYTES["bf16"]
            totals["int8"] += count * BYTES["int8" if is_linear else "bf16"]
            is_skipped = name.startswith(SKIPPED_IN_4BIT)
            totals["nf4 default"] += count * BYTES["nf4" if is_linear and not is_skipped else "bf16"]
            totals["nf4 everything"] += count * BYTES["nf4" if is_linear else "bf16"]
        print(f"{model_name:22}" + "".join(f"{size / 1e9:20.2f}" for size in [*sizes.values(), *totals.values()]))


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        print_errors(Path(scratch))
    print_memory()
