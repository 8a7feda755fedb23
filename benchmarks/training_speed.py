"""
Measure tokens per second and peak memory of training: all parameters, LoRA, and LoRA on a 4-bit model.

Steps use AdamW, random weights and the sizes of `geometries.py`. Each way runs in a new process, and the best of the
repeats counts. `speed.py training` compares a step with the reference's way of working.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_speed.py [--quick]
"""

import argparse
import tempfile
import time

import torch
from geometries import Settings, build_fusion, make_config, make_example
from measuring import in_fresh_process, measure_peak, print_table, read_status
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from fusion_vlm.hub.loading import nf4_config
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


WAYS = {
    "all parameters": {},
    "all, gradient checkpointing": {"checkpointing": True},
    "LoRA on the decoder": {"lora": True},
    "QLoRA on the decoder (nf4)": {"lora": True, "four_bit": True},
}
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")


def build(geometry: str, settings: Settings, lora=False, four_bit=False, checkpointing=False) -> PreTrainedModel:
    model = build_fusion(geometry, settings)
    if four_bit:
        config = nf4_config(settings.dtype, double_quant=False)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = FusionForConditionalGeneration.from_pretrained(
                folder, quantization_config=config, dtype=settings.dtype
            )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return (get_peft_model(model, LORA) if lora else model).train()


def measure(way: str, geometry: str, settings: Settings) -> tuple[float, int, int, int]:
    """Return seconds of a step, its tokens, peak bytes (all tensors), and the number of trained parameters."""
    before = read_status("VmRSS")
    model = build(geometry, settings, **WAYS[way])
    example = make_example(make_config(geometry, settings.quick), settings, 0, one_image=False, has_answer=True)
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
    # The peak counts from what is held between two steps, so building the model is not in it.
    held = read_status("VmRSS") - before
    peak = held + measure_peak(step, settings.device)
    return min(times), example["input_ids"].numel(), peak, sum(parameter.numel() for parameter in trained)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few layers and one repeat, to check this script")
    quick = parser.parse_args().quick
    settings = Settings(("so400m",), "cpu", torch.float32, repeats=1 if quick else 3, quick=quick)
    for geometry in settings.geometries:
        rows, first = [], None
        for way in WAYS:
            seconds, tokens, peak, trained = in_fresh_process(measure, way, geometry, settings)
            first = first or (seconds, peak)
            rows.append([way, f"{trained / 1e6:.2f} M", f"{tokens / seconds:.0f}", f"{first[0] / seconds:.2f}x"])
            rows[-1] += [f"{peak / 2**20:.0f} MiB", f"{peak / first[1]:.2f}x"]
        print_table(
            f"Training steps of one example of {tokens} tokens ({geometry}, reduced widths, float32)",
            ["what is trained", "parameters", "tokens/s", "speed", "peak memory", "memory"],
            rows,
        )


if __name__ == "__main__":
    main()
