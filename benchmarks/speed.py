"""
Speed and memory of FUSION beside the reference's way of working, the bare decoder and in-tree models. Weights are
random, so no checkpoint is needed; contenders alternate within one run, and the best of the repeats counts (the two
sections with eight examples have one repeat, after a first run that warms up and checks that both give the same).

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python benchmarks/speed.py [--quick] [--full-3b] [--profile] [SECTION ...]

Sections: first-token, questions, images, memory, training, decode, in-tree, limit. All by default. The towers have the
released grids and depths at reduced widths; --full-3b runs the first three with FUSION-Phi3.5-3B's sizes in bfloat16.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import reference_way
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.generation.streamers import BaseStreamer
from transformers.initialization import no_init_weights
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


NUM_QUESTIONS = NUM_IMAGES = 8
NUM_NEW_TOKENS = 64
NUM_ANSWER_TOKENS = 64
IMAGE_HEIGHT, IMAGE_WIDTH = 750, 1000
# Those that LlavaNextConfig has for crops of 336 pixels, for crops of 384.
LLAVA_NEXT_PINPOINTS = [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]


@dataclass(frozen=True)
class Settings:
    """What to measure on; travels to the processes that measure memory."""

    geometries: tuple[str, ...]
    device: str
    dtype: torch.dtype
    repeats: int
    quick: bool


# Models -------------------------------------------------------------------------------------------------------------


def make_config(geometry: str, quick: bool) -> FusionConfig:
    """The sizes of a geometry: "so400m", "giant" (reduced widths) or "full-3b"; a few layers only if `quick`."""
    if geometry == "full-3b":
        return FusionConfig(question_end_token_ids=[32001])
    num_layers, patch_size = {"so400m": (26, 14), "giant": (39, 16)}[geometry]
    vision_config = SiglipVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=5 if quick else num_layers,
        num_attention_heads=16,
        image_size=384,
        patch_size=patch_size,
        vision_use_head=False,
    )
    text_config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4 if quick else 8,
        num_attention_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return FusionConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=8190,
        latent_token_id=8191,
        question_end_token_ids=[8189],
        interaction_layer_indices=[0, 3] if quick else [0, 3, 6],
    )


@torch.no_grad()
def build_model(model_class: type, config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    """A model with random weights, of a scale that passes the size of activations on and lets them differ."""
    torch.manual_seed(0)
    with no_init_weights():
        model = model_class._from_config(config, dtype=settings.dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.to(settings.device).eval()


def build_fusion(geometry: str, settings: Settings) -> FusionForConditionalGeneration:
    return build_model(FusionForConditionalGeneration, make_config(geometry, settings.quick), settings)


# Inputs -------------------------------------------------------------------------------------------------------------


def make_example(config: FusionConfig, settings: Settings, index: int, one_image: bool, has_answer: bool) -> dict:
    """
    What the processor would make of one question of 16 to 23 tokens, of random ids and pixels.

    Args:
        index: of the example; its question, and unless `one_image` its image, depend on it.
        has_answer: whether an answer and its labels follow, for training.
    """
    generator = torch.Generator().manual_seed(index)
    image_generator = torch.Generator().manual_seed(0 if one_image else index)
    size = config.vision_config.image_size

    def text(length):
        return torch.randint(1000, 8000, (1, length), generator=generator)

    question = text(16 + index % 8)
    image = torch.full((1, config.image_grid_size**2), config.image_token_id)
    latents = torch.full((1, config.latent_grid_size**2), config.latent_token_id)
    end = torch.tensor([config.question_end_token_ids])
    prompt = torch.cat([text(20), image, text(2), latents, text(2), question, text(3), end], dim=1)
    example = {
        "input_ids": prompt,
        "pixel_values": torch.rand(1, 3, size, size, generator=image_generator) * 2 - 1,
        "high_res_pixel_values": torch.rand(1, 4, 3, size, size, generator=image_generator) * 2 - 1,
        "question_input_ids": question,
    }
    if has_answer:
        answer = text(NUM_ANSWER_TOKENS)
        example["input_ids"] = torch.cat([prompt, answer], dim=1)
        example["labels"] = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
    return {
        name: value.to(settings.device, settings.dtype if value.is_floating_point() else None)
        for name, value in example.items()
    }


def make_examples(config: FusionConfig, settings: Settings, count: int, one_image: bool = False) -> list[dict]:
    return [make_example(config, settings, index, one_image, has_answer=False) for index in range(count)]


def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of shape `(1, length)` each, padded to a batch, and its mask."""
    masks = [torch.ones_like(row[0]) for row in rows]
    pad_rows = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad_rows([row[0] for row in rows]), pad_rows(masks)


def collate(examples: list[dict]) -> dict:
    """One batch, with padding as the processor makes it."""
    batch = {
        name: torch.cat([example[name] for example in examples]) for name in ("pixel_values", "high_res_pixel_values")
    }
    batch["input_ids"], batch["attention_mask"] = pad([example["input_ids"] for example in examples], "left")
    batch["question_input_ids"], batch["question_attention_mask"] = pad(
        [example["question_input_ids"] for example in examples], "right"
    )
    return batch


# Contenders ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def our_prefill(model, inputs: dict) -> torch.Tensor:
    """Logits of the next token, `(batch, vocab_size)`."""
    return model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def our_prefill_of_questions(model, inputs: dict) -> torch.Tensor:
    """The same for a batch of questions about one image, whose crops are encoded once."""
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
    """Raises unless both give the same numbers; runs each once, so that what follows is warm. Seconds of each."""
    outputs, times = [], []
    for contender in contenders.values():
        start = time.perf_counter()
        outputs.append(contender().float())
        times.append(time.perf_counter() - start)
    actual, expected = outputs
    error = ((actual - expected).norm() / expected.norm()).item()
    # In half precision the order of the sums shows.
    tolerance = 1e-4 if contenders["ours"].args[0].dtype == torch.float32 else 0.1
    if not error < tolerance:
        raise AssertionError(f"Ours and the reference's way differ by {error:.1e}, expected less than {tolerance}.")
    return times


# Measuring ----------------------------------------------------------------------------------------------------------


def synchronize(device: str):
    if device != "cpu":
        torch.cuda.synchronize()


def measure_times(contenders: dict[str, Callable], device: str, repeats: int) -> list[float]:
    """Best seconds of each contender; they alternate. Each must have run once before."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, contender in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            contender()
            synchronize(device)
            best[name] = min(best[name], time.perf_counter() - start)
    return list(best.values())


def read_status(field: str) -> int:
    """Bytes of a memory field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_peak(contender: Callable, device: str) -> int:
    """Peak bytes that `contender` needs beyond what is there before; its second run counts."""
    contender()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = read_status("VmRSS")
    contender()
    return read_status("VmHWM") - before


def in_fresh_process(function: Callable, *args):
    """What `function(*args)` returns in a process of its own, whose freed tensors go back to the system at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_of_prefill(contender: str, geometry: str, settings: Settings) -> int:
    model = build_fusion(geometry, settings)
    examples = make_examples(model.config, settings, 1)
    if contender == "ours":
        return measure_peak(partial(our_prefill, model, examples[0]), settings.device)
    return measure_peak(partial(reference_prefill, reference_way.as_reference(model), examples), settings.device)


def peak_of_training(contender: str, geometry: str, settings: Settings) -> int:
    model = build_fusion(geometry, settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    example = make_example(model.config, settings, 0, one_image=False, has_answer=True)
    if contender == "ours":
        return measure_peak(partial(our_training_step, model, example), settings.device)
    reference = reference_way.as_reference(model)
    return measure_peak(partial(reference_training_step, reference, example), settings.device)


def peak_of_in_tree(model_name: str, geometry: str, settings: Settings) -> int:
    contender, _ = build_in_tree(model_name, geometry, settings)
    return measure_peak(contender, settings.device)


class TokenClock(BaseStreamer):
    """Takes the time of every token that `generate` gives out."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass

    @property
    def seconds_per_token(self) -> float:
        # The first call brings the prompt, the second the token that prefill gives.
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


# Tables -------------------------------------------------------------------------------------------------------------


def print_table(title: str, header: list[str], rows: list[list[str]], notes: str = ""):
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells))
    if notes:
        print(f"  {notes}")
    print(end="", flush=True)


def compare_times(
    title: str, make_contenders: Callable, settings: Settings, repeats: int, target: float, notes: str = ""
):
    """A row for each geometry; `make_contenders` takes the model, its reference and the settings."""
    rows = []
    for geometry in settings.geometries:
        model = build_fusion(geometry, settings)
        contenders = make_contenders(model, reference_way.as_reference(model), settings)
        first_times = check_equal(contenders)
        # At full size the eight examples take so long that being cold does not show.
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
        "ours": partial(our_prefill_of_questions, model, collate(examples)),
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
        notes="Ours: the four crops once, the base image for every question (it is encoded with the question's text).",
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
        "Peak activation memory of prefill, one question (beyond the weights; the cache is in it)",
        peak_of_prefill,
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
    compare_peaks("Its peak activation memory (gradients are there before)", peak_of_training, settings, target=0.6)


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
        "The bare decoder has the same weights and as long a prompt of text.",
    )


def build_in_tree(name: str, geometry: str, settings: Settings) -> tuple[Callable, str]:
    """Prefill of one question about an image of 1000x750 by a model of the same sizes, and its token counts."""
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
        peaks = [in_fresh_process(peak_of_in_tree, name, geometry, settings) for name in names]
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
    """Operations per second of the best of several square products."""
    best = 0.0
    for size in (1024, 2048) if settings.device == "cpu" else (4096, 8192):
        matrix = torch.randn(size, size, device=settings.device, dtype=settings.dtype)
        product = {"product": partial(torch.mm, matrix, matrix)}
        best = max(best, 2 * size**3 / measure_times(product, settings.device, repeats=10)[0])
    return best


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def count_cpu_attention(query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    """Return the FLOPs of SDPA on a CPU, unknown to `FlopCounterMode`; training/cost/trace.py counts the same."""
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
        "The operations are ours (causal attention counted in full) for both, so that the last column compares.",
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
    parser.add_argument("--quick", action="store_true", help="few layers and one repeat: a check of this file")
    parser.add_argument("--full-3b", action="store_true", help="sizes of FUSION-Phi3.5-3B in bfloat16, sections 1-3")
    parser.add_argument("--profile", action="store_true", help="also the operators that take most time in prefill")
    arguments = parser.parse_args()
    settings = Settings(
        geometries=("full-3b",) if arguments.full_3b else ("so400m", "giant"),
        device=arguments.device,
        dtype=torch.bfloat16 if arguments.full_3b else getattr(torch, arguments.dtype),
        repeats=1 if arguments.quick else 2 if arguments.full_3b else 3,
        quick=arguments.quick,
    )
    print(f"{settings}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")
    default = list(SECTIONS)[:3] if arguments.full_3b else list(SECTIONS)
    for name in arguments.sections or default:
        SECTIONS[name](settings)
    if arguments.profile:
        print_profiles(settings)


if __name__ == "__main__":
    main()
