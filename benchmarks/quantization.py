"""
What quantisation costs and saves: the error that each part causes on the goldens' logits when it alone is quantised,
and the memory of the weights of the four released models, from the shapes of their tensors.

    .venv/bin/python benchmarks/quantization.py

The goldens' weights are random, which is harder on quantisation than trained weights are: read the errors against each
other, not as what a released model loses.
"""

import json
import re
import tempfile
from math import prod
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, BitsAndBytesConfig
from transformers.utils import logging

from fusion_vlm.convert_checkpoints import convert, map_names
from fusion_vlm.modeling_fusion import SKIPPED_IN_4BIT, FusionForConditionalGeneration


FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PARTS = {
    "vision tower": r"model\.vision_tower",
    "projectors": r"model\.(multi_modal|text_to_vision)_projector",
    "decoder": r"model\.language_model",
    "interaction layers": r"model\.interaction_layers",
    "lm_head": r"lm_head",
}
# Bytes of a weight: NF4 holds half a byte, an 8-bit scale for 64 weights, and a float for 256 scales.
BYTES = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


def quantization_config(bits: int, skip: list[str] | None) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=skip,
    )


@torch.no_grad()
def logits_of(folder: Path, inputs, config: BitsAndBytesConfig | None = None) -> torch.Tensor:
    model = FusionForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    return model(**inputs).logits[0]


def print_errors():
    print("Relative error of the logits when one part is quantised (golden case `single`, random weights)\n")
    print(f"{'part':22}" + "".join(f"{name:>18}" for name in ("Phi nf4", "Llama nf4", "Phi int8", "Llama int8")))
    with tempfile.TemporaryDirectory() as scratch:
        cases = []
        for variant in ("fusion-phi-siglip", "fusion-llama-siglip2"):
            golden = FIXTURES / "golden" / variant
            folder = convert(golden / "checkpoint", Path(scratch, variant))
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
            image = Image.open(golden / "single.png")
            content = [{"type": "image", "image": image}, {"type": "text", "text": "What colour is the ball?"}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            cases.append((folder, inputs, logits_of(folder, inputs)))
        rows = {part: [pattern for name, pattern in PARTS.items() if name != part] for part in PARTS}
        rows |= {"everything": ["nothing"], "4-bit default": list(SKIPPED_IN_4BIT)}
        for part, skip in rows.items():
            errors = []
            for bits in (4, 8):
                for folder, inputs, expected in cases:
                    actual = logits_of(folder, inputs, quantization_config(bits, skip))
                    errors.append(((actual - expected).norm() / expected.norm()).item())
            print(f"{part:22}" + "".join(f"{error:18.4f}" for error in errors), flush=True)


def print_memory():
    print("\nMemory of the weights in GB, from the shapes (embedding, norms and biases stay in bf16)\n")
    header = [*PARTS, "bf16", "int8", "nf4 default", "nf4 everything"]
    print(f"{'model':22}" + "".join(f"{name:>20}" for name in header))
    for name, shapes in json.loads((FIXTURES / "released_tensors.json").read_text()).items():
        sizes = dict.fromkeys(PARTS, 0.0)
        totals = dict.fromkeys(("bf16", "int8", "nf4 default", "nf4 everything"), 0.0)
        for ours, released in map_names(shapes).items():
            count = prod(shapes[released])
            part = next(part for part, pattern in PARTS.items() if re.match(pattern, ours))
            sizes[part] += count * BYTES["bf16"]
            is_linear = len(shapes[released]) == 2 and "embed" not in ours and ours != "lm_head.weight"
            totals["bf16"] += count * BYTES["bf16"]
            totals["int8"] += count * BYTES["int8" if is_linear else "bf16"]
            skipped = ours.startswith(SKIPPED_IN_4BIT)
            totals["nf4 default"] += count * BYTES["nf4" if is_linear and not skipped else "bf16"]
            totals["nf4 everything"] += count * BYTES["nf4" if is_linear else "bf16"]
        print(f"{name:22}" + "".join(f"{size / 1e9:20.2f}" for size in [*sizes.values(), *totals.values()]))


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print_errors()
    print_memory()
