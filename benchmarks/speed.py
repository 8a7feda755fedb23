"""
Compare speed and memory of FUSION with the reference's way of working, the bare decoder and in-tree models.

Weights are random, so no checkpoint is needed. Contenders alternate within one run, and the best of the repeats
counts. The two sections with eight examples have one repeat, after a first run that warms up and compares the outputs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/speed.py [--quick] [--full-3b] [--profile] [SECTION ...]

Sections: first-token, questions, images, memory, training, decode, in-tree, limit. All by default. The towers have the
released grids and depths at reduced widths; --full-3b runs the first three with FUSION-Phi3.5-3B's sizes in bfloat16.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import reference_way
import torch
from geometries import Settings, build_fusion, build_model, collate, make_config, make_example, make_examples
from measuring import TokenClock, in_fresh_process, measure_peak, measure_times, print_table, synchronize
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count
from transformers import (
    AutoModelForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


NUM_QUESTIONS = NUM_IMAGES = 8
NUM_NEW_TOKENS = 64
IMAGE_HEIGHT, IMAGE_WIDTH = 750, 1000
# The pinpoints of LlavaNextConfig for crops of 336 pixels, scaled to crops of 384.
LLAVA_NEXT_PINPOINTS = [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]


# Contenders ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def our_prefill(model, inputs: dict) -> torch.Tensor:
    """Return the logits of the next token, `(batch, vocab_size)`."""
    return model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def our_question_prefill(model, inputs: dict) -> torch.Tensor:
    """Return the same for a batch of questions about one image, whose crops are encoded once."""
    context_map = model.get_context_map(inputs["high_res_pixel_values"][:1])
    inputs = {name: value for name, value in inputs.items() if name != "high_res_pixel_values"}
    return our_prefill(model, {**inputs, "context_map": context_map})


reference_prefill = torch.no_grad()(reference_way.prefill)


def our_training_step(model, example: dict) -> torch.Tensor:
    loss = model(**example).loss
    loss.backward()
    return loss.detach()


def reference_training_step(reference, example: dict) -> torch.Tensor:
    loss = reference_way.training_loss(reference, example)
    loss.backward()
    return loss.detach()


def check_equal(contenders: dict[str, Callable]) -> list[float]:
    """Run both contenders once, raise unless their outputs agree, and return the seconds of each."""
    outputs, times = [], []
    for contender in contenders.values():
        start = time.perf_counter()
        outputs.append(contender().float())
        times.append(time.perf_counter() - start)
    actual, expected = outputs
    error = ((actual - expected).norm() / expected.norm()).item()
    # In half precision the order of sums changes the result.
    tolerance = 1e-4 if contenders["ours"].args[0].dtype == torch.float32 else 0.1
    if not error < tolerance:
        raise AssertionError(f"Ours and the reference's way differ by {error:.1e}, expected less than {tolerance}.")
    return times


# Measuring ----------------------------------------------------------------------------------------------------------


def measure_prefill_peak(contender: str, geometry: str, settings: Settings) -> int:
    model = build_fusion(geometry, settings)
    examples = make_examples(model.config, settings, 1)
    if contender == "ours":
        return measure_peak(partial(our_prefill, model, examples[0]), settings.device)
    return measure_peak(partial(reference_prefill, reference_way.as_reference(model), examples), settings.device)


def measure_training_peak(contender: str, geometry: str, settings: Settings) -> int:
    model = build_fusion(geometry, settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    example = make_example(model.config, settings, 0, one_image=False, has_answer=True)
    if contender == "ours":
        return measure_peak(partial(our_training_step, model, example), settings.device)
    reference = reference_way.as_reference(model)
    return measure_peak(partial(reference_training_step, reference, example), settings.device)


def measure_in_tree_peak(model_name: str, geometry: str, settings: Settings) -> int:
    contender, _ = build_in_tree(model_name, geometry, settings)
    return measure_peak(contender, settings.device)


# Tables -------------------------------------------------------------------------------------------------------------


def compare_times(
    title: str, make_contenders: Callable, settings: Settings, repeats: int, target: float, notes: str = ""
):
    """Print a row for each geometry; `make_contenders` takes the model, its reference and the settings."""
    rows = []
    for geometry in settings.geometries:
        model = build_fusion(geometry, settings)
        contenders = make_contenders(model, reference_way.as_reference(model), settings)
        first_times = check_equal(contenders)
        # At full size eight examples take so long that a cold start makes no difference.
        is_cold = geometry == "full-3b" and repeats == 1
        ours, reference = first_times if is_cold else measure_times(contenders, settings.device, repeats)
        rows.append([geometry, f"{reference:.3f} s", f"{ours:.3f} s", f"{reference / ours:.2f}x", f">= {target}x"])
    print_table(title, ["geometry", "reference's way", "ours", "faster", "target"], rows, notes)


def compare_peaks(title: str, measure: Callable, settings: Settings, target: float, notes: str = ""):
    rows = []
    for geometry in settings.geometries:
        ours, reference = (in_fresh_process(measure, name, geometry, settings) for name in ("ours", "reference"))
        rows.append([geometry, f"{reference / 2**20:.0f} MiB", f"{ours / 2**20:.0f} MiB", f"{ours / reference:.2f}x"])
        rows[-1].append(f"<= {target}x")
    print_table(title, ["geometry", "reference's way", "ours", "memory", "target"], rows, notes)


# Sections -----------------------------------------------------------------------------------------------------------


def prefill_contenders(model, reference, settings: Settings) -> dict[str, Callable]:
    examples = make_examples(model.config, settings, 1)
    return {
        "ours": partial(our_prefill, model, examples[0]),
        "reference": partial(reference_prefill, reference, examples),
    }


def question_contenders(model, reference, settings: Settings) -> dict[str, Callable]:
    examples = make_examples(model.config, settings, NUM_QUESTIONS, one_image=True)
    return {
        "ours": partial(our_question_prefill, model, collate(examples)),
        "reference": partial(reference_prefill, reference, examples),
    }


def image_contenders(model, reference, settings: Settings) -> dict[str, Callable]:
    examples = make_examples(model.config, settings, NUM_IMAGES)
    return {
        "ours": partial(our_prefill, model, collate(examples)),
        "reference": partial(reference_prefill, reference, examples),
    }


def training_contenders(model, reference, settings: Settings) -> dict[str, Callable]:
    example = make_example(model.config, settings, 0, one_image=False, has_answer=True)
    return {
        "ours": partial(our_training_step, model, example),
        "reference": partial(reference_training_step, reference, example),
    }


def first_token(settings: Settings):
    compare_times(
        "Time to first token, one question", prefill_contenders, settings, repeats=settings.repeats, target=1.5
    )


def questions(settings: Settings):
    compare_times(
        f"{NUM_QUESTIONS} questions about one image, first tokens of all",
        question_contenders,
        settings,
        repeats=1,
        target=4,
        notes="Ours: the crops are encoded once, the base image once a question, together with its text.",
    )


def images(settings: Settings):
    compare_times(
        f"{NUM_IMAGES} images with a question each, one batch",
        image_contenders,
        settings,
        repeats=1,
        target=2,
    )


def memory(settings: Settings):
    compare_peaks(
        "Peak activation memory of prefill, one question (weights excluded, cache included)",
        measure_prefill_peak,
        settings,
        target=0.5,
    )


def training(settings: Settings):
    compare_times(
        "Training step (forward and backward), one example",
        training_contenders,
        settings,
        repeats=settings.repeats,
        target=1.3,
    )
    compare_peaks("Its peak activation memory (gradients excluded)", measure_training_peak, settings, target=0.6)


@torch.no_grad()
def decode(settings: Settings):
    rows = []
    for geometry in settings.geometries:
        model = build_fusion(geometry, settings)
        example = make_examples(model.config, settings, 1)[0]
        bare = AutoModelForCausalLM.from_config(model.config.text_config, dtype=settings.dtype).to(settings.device)
        bare.get_decoder().load_state_dict(model.model.language_model.state_dict(), assign=True)
        bare.lm_head.load_state_dict(model.lm_head.state_dict(), assign=True)
        text = torch.randint_like(example["input_ids"], 1000, 8000)
        prompts = {"ours": (model, example), "bare": (bare.eval(), {"input_ids": text})}
        best = dict.fromkeys(prompts, float("inf"))
        for _ in range(1 + 2 * settings.repeats):
            for name, (generator, inputs) in prompts.items():
                clock = TokenClock()
                mask = torch.ones_like(inputs["input_ids"])
                generator.generate(
                    **inputs, attention_mask=mask, do_sample=False, max_new_tokens=NUM_NEW_TOKENS, streamer=clock
                )
                best[name] = min(best[name], clock.seconds_per_token)
        ours, bare_speed = (1 / seconds for seconds in best.values())
        rows.append([geometry, f"{bare_speed:.1f}/s", f"{ours:.1f}/s", f"{ours / bare_speed:.3f}x", ">= 0.95x"])
    print_table(
        f"Decoding {NUM_NEW_TOKENS} tokens, greedy",
        ["geometry", "bare decoder", "ours", "speed", "target"],
        rows,
        "The bare decoder has the same weights and a text prompt of the same length.",
    )


def build_in_tree(name: str, geometry: str, settings: Settings) -> tuple[Callable, str]:
    """Build the prefill of one question about a 1000x750 image by a model of the same sizes; also its token counts."""
    fusion_config = make_config(geometry, settings.quick)
    if name == "FUSION":
        model = build_model(FusionForConditionalGeneration, fusion_config, settings)
        example = make_examples(model.config, settings, 1)[0]
        counts = f"5 crops, {fusion_config.image_grid_size**2} + {fusion_config.latent_grid_size**2} latents"
        return partial(our_prefill, model, example), counts
    shared = {"vision_config": fusion_config.vision_config, "text_config": fusion_config.text_config}
    image_token = {"image_token_index": fusion_config.image_token_id}
    if name == "LLaVA-NeXT":
        options = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        config = LlavaNextConfig(**shared, **image_token, **options, image_grid_pinpoints=LLAVA_NEXT_PINPOINTS)
        model = build_model(LlavaNextForConditionalGeneration, config, settings)
    else:
        config = LlavaOnevisionConfig(**shared, **image_token, video_token_index=fusion_config.latent_token_id)
        model = build_model(LlavaOnevisionForConditionalGeneration, config, settings)
    size = fusion_config.vision_config.image_size
    num_tiles = image_size_to_num_patches([IMAGE_HEIGHT, IMAGE_WIDTH], config.image_grid_pinpoints, size)
    inputs = {
        "pixel_values": torch.rand(1, num_tiles, 3, size, size, device=settings.device, dtype=settings.dtype) * 2 - 1,
        "image_sizes": torch.tensor([[IMAGE_HEIGHT, IMAGE_WIDTH]], device=settings.device),
    }
    with torch.no_grad():
        num_tokens = len(model.model.get_image_features(**inputs, return_dict=True).pooler_output[0])
    text = torch.randint(1000, 8000, (1, 44))
    image = torch.full((1, num_tokens), fusion_config.image_token_id)
    inputs["input_ids"] = torch.cat([text[:, :20], image, text[:, 20:]], dim=1).to(settings.device)
    return partial(our_prefill, model, inputs), f"{num_tiles} crops, {num_tokens}"


def in_tree(settings: Settings):
    names = ["FUSION", "LLaVA-NeXT", "LLaVA-OneVision"]
    for geometry in settings.geometries:
        built = {name: build_in_tree(name, geometry, settings) for name in names}
        contenders = {name: contender for name, (contender, _) in built.items()}
        for contender in contenders.values():
            contender()
        seconds = measure_times(contenders, settings.device, settings.repeats)
        peaks = [in_fresh_process(measure_in_tree_peak, name, geometry, settings) for name in names]
        rows = [
            [name, built[name][1], f"{time:.3f} s", f"{time / seconds[0]:.2f}x", f"{peak / 2**20:.0f} MiB"]
            + [f"{peak / peaks[0]:.2f}x"]
            for name, time, peak in zip(names, seconds, peaks, strict=True)
        ]
        print_table(
            f"In-tree models of the same tower and decoder, one {IMAGE_WIDTH}x{IMAGE_HEIGHT} image ({geometry})",
            ["model", "image tokens", "first token", "of ours", "peak memory", "of ours"],
            rows,
        )


def matmul_rate(settings: Settings) -> float:
    """Return the operations per second of the fastest of several square products."""
    best = 0.0
    for size in (1024, 2048) if settings.device == "cpu" else (4096, 8192):
        matrix = torch.randn(size, size, device=settings.device, dtype=settings.dtype)
        product = {"product": partial(torch.mm, matrix, matrix)}
        best = max(best, 2 * size**3 / measure_times(product, settings.device, repeats=10)[0])
    return best


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def count_cpu_attention(query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    """
    Count the operations of SDPA on a CPU, for which `FlopCounterMode` has no formula.

    `FLOP_FORMULAS` in training/cost/trace.py and tests/training/test_cost.py have the same formula.
    """
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def limit(settings: Settings):
    rate = matmul_rate(settings)
    rows = []
    for geometry in settings.geometries:
        model = build_fusion(geometry, settings)
        contenders = prefill_contenders(model, reference_way.as_reference(model), settings)
        with FlopCounterMode(display=False) as counter:
            contenders["ours"]()
        operations = counter.get_total_flops()
        contenders["reference"]()
        times = measure_times(contenders, settings.device, settings.repeats)
        for name, seconds in zip(contenders, times, strict=True):
            least = operations / rate
            figures = [f"{operations / 1e9:.0f} G", f"{least:.3f} s", f"{seconds:.3f} s", f"{least / seconds:.0%}"]
            rows.append([f"{geometry}, {name}", *figures])
    print_table(
        f"Prefill of one question beside the matmul limit ({rate / 1e9:.0f} G operations per second)",
        ["geometry", "operations", "limit", "measured", "of the limit"],
        rows,
        "Both rows count our operations (causal attention in full), so the last column is comparable.",
    )


def print_profiles(settings: Settings):
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.device != "cpu" else [])
    for geometry in settings.geometries:
        model = build_fusion(geometry, settings)
        for name, contender in prefill_contenders(model, reference_way.as_reference(model), settings).items():
            contender()
            with profile(activities=activities) as profiler:
                contender()
                synchronize(settings.device)
            order = f"self_{'cpu' if settings.device == 'cpu' else 'cuda'}_time_total"
            print(f"\nProfile of prefill, one question: {geometry}, {name}")
            print(profiler.key_averages().table(sort_by=order, row_limit=16, max_name_column_width=45))


SECTIONS = {
    "first-token": first_token,
    "questions": questions,
    "images": images,
    "memory": memory,
    "training": training,
    "decode": decode,
    "in-tree": in_tree,
    "limit": limit,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], metavar="SECTION")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quick", action="store_true", help="few layers and one repeat, to check this script")
    parser.add_argument("--full-3b", action="store_true", help="sizes of FUSION-Phi3.5-3B in bfloat16, sections 1-3")
    parser.add_argument("--profile", action="store_true", help="also print the slowest operators of prefill")
    args = parser.parse_args()
    settings = Settings(
        geometries=("full-3b",) if args.full_3b else ("so400m", "giant"),
        device=args.device,
        dtype=torch.bfloat16 if args.full_3b else getattr(torch, args.dtype),
        repeats=1 if args.quick else 2 if args.full_3b else 3,
        quick=args.quick,
    )
    print(f"{settings}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")
    default_sections = list(SECTIONS)[:3] if args.full_3b else list(SECTIONS)
    for name in args.sections or default_sections:
        SECTIONS[name](settings)
    if args.profile:
        print_profiles(settings)


if __name__ == "__main__":
    main()
