"""
Training of the whole model, of LoRA adapters and of LoRA adapters on a 4-bit model: tokens per second and peak memory
of optimisation steps with AdamW, on the geometries of `speed.py` and random weights. Each way runs in a process of its
own; the best of the repeats counts. A step beside the reference's way of working: `speed.py training`.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python benchmarks/training.py [--quick]
"""

import argparse
import tempfile
import time

import speed
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


WAYS = {
    "all parameters": {},
    "all, gradient checkpointing": {"checkpointing": True},
    "LoRA on the decoder": {"lora": True},
    "QLoRA on the decoder (nf4)": {"lora": True, "quantized": True},
}
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")


def build(
    geometry: str, settings: speed.Settings, lora=False, quantized=False, checkpointing=False
) -> PreTrainedModel:
    model = speed.build_fusion(geometry, settings)
    if quantized:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=settings.dtype
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = FusionForConditionalGeneration.from_pretrained(
                folder, quantization_config=config, dtype=settings.dtype
            )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return (get_peft_model(model, LORA) if lora else model).train()


def measure(way: str, geometry: str, settings: speed.Settings) -> tuple[float, int, int, int]:
    """Seconds of a step, its tokens, peak bytes of weights, gradients, states and activations, trained parameters."""
    before = speed.read_status("VmRSS")
    model = build(geometry, settings, **WAYS[way])
    example = speed.make_example(
        speed.make_config(geometry, settings.quick), settings, 0, one_image=False, has_answer=True
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step():
        model(**example).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    times = []
    for _ in range(settings.repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    # Beginning with what is held between two steps, so that building the model does not count.
    held = speed.read_status("VmRSS") - before
    peak = held + speed.measure_peak(step, settings.device)
    return min(times), example["input_ids"].numel(), peak, sum(parameter.numel() for parameter in trained)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few layers and one repeat: a check of this file")
    quick = parser.parse_args().quick
    settings = speed.Settings(("so400m",), "cpu", torch.float32, repeats=1 if quick else 3, quick=quick)
    for geometry in settings.geometries:
        rows, first = [], None
        for way in WAYS:
            seconds, tokens, peak, trained = speed.in_fresh_process(measure, way, geometry, settings)
            first = first or (seconds, peak)
            rows.append([way, f"{trained / 1e6:.2f} M", f"{tokens / seconds:.0f}", f"{first[0] / seconds:.2f}x"])
            rows[-1] += [f"{peak / 2**20:.0f} MiB", f"{peak / first[1]:.2f}x"]
        speed.print_table(
            f"Training steps of one example of {tokens} tokens ({geometry}, reduced widths, float32)",
            ["what is trained", "parameters", "tokens/s", "speed", "peak memory", "memory"],
            rows,
        )


if __name__ == "__main__":
    main()
