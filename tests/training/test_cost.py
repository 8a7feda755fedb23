"""What training/cost/ counts on tensors without data is what real models have, do and take."""

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig, Phi3Config, SiglipVisionConfig, TrainingArguments

from fusion_vlm.commands.main import main
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import map_names
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.training.build import build_config, load_recipe
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.cost import memory as memory_module
from fusion_vlm.training.cost import report as report_module
from fusion_vlm.training.cost.memory import SHARDINGS, Memory, count_gathered, count_parameters, estimate, get_memory
from fusion_vlm.training.cost.report import plan_rows
from fusion_vlm.training.cost.trace import Batch, Trace, build_without_data, make_inputs, trace_step
from fusion_vlm.training.data import load_mixture, sample
from fusion_vlm.training.recipe import SEED

from ..helpers import FIXTURES, PEAK_MEMORY, ROOT, make_messages
from ..tiny import VISION_CONFIG, random_image, tiny_config, tiny_model


RECIPE = ROOT / "training" / "recipes" / "stage1.yaml"
RELEASED = json.loads((FIXTURES / "released_tensors.json").read_text())
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}

QUESTION = ["What is it?", "A red square on grey."]

# Of a size at which activations are most of the memory, and measured in a few seconds.
SMALL_CONFIG = """
from transformers import LlamaConfig, SiglipVisionConfig
from fusion_vlm.commands.main import main
from fusion_vlm.configuration_fusion import FusionConfig
config = FusionConfig(
    vision_config=SiglipVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=112, patch_size=8
    ),
    text_config=LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    ),
    image_token_id=998,
    latent_token_id=999,
    question_end_token_ids=[997],
    num_interaction_heads=4,
    interaction_layer_indices=[0],
)
"""
# The most memory that a step takes, with the gradients of an earlier accumulation step and AdamW's states, beyond what
# was there before the model.
MEASURE = (
    SMALL_CONFIG
    + PEAK_MEMORY
    + """
import gc, json, sys
import torch
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

def peak_of_step(checkpointing, batch_size=None):
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # sets VmHWM back to VmRSS
    before = peak_memory()
    model = FusionForConditionalGeneration(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    inputs = {name: value[:batch_size] for name, value in torch.load(sys.argv[1]).items()}
    model(**inputs, use_cache=False).loss.backward()
    return before, peak_memory()

peak_of_step(True, 1)  # loads libraries
(before, without), (_, with_checkpointing) = peak_of_step(False), peak_of_step(True)
print(json.dumps([without - before, with_checkpointing - before]))
"""
)


def count_flops(model, inputs) -> tuple[int, int]:
    """Count the FLOPs of a real pass, forward and backward, with torch's own counter."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        loss = model(**inputs, use_cache=False).loss
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def describe(inputs, processor) -> Batch:
    """Return the shape of a collated batch of one conversation, repeated."""
    ids = inputs["input_ids"][0]
    num_latents = (ids == processor.latent_token_id).sum().item()
    num_image_tokens = (ids == processor.image_token_id).sum().item()
    num_turns = num_latents // 4
    return Batch(
        batch_size=len(inputs["input_ids"]),
        text_tokens=len(ids) - num_latents - num_image_tokens,
        num_latent_tokens=4,
        num_turns=num_turns,
        has_image=num_image_tokens > 0,
        answer_tokens=(inputs["labels"][0] != -100).sum().item(),
        question_tokens=inputs["question_input_ids"].shape[1],
    )


@pytest.mark.parametrize("decoder", ["llama", "phi3", "qwen3"])
def test_parameters_by_part_are_those_of_the_model(processor, decoder):
    model = tiny_model(processor, decoder)
    counts = count_parameters(build_without_data(model.config, torch.float32))
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    for part, module in {
        "vision tower": model.model.vision_tower,
        "interaction layers": model.model.interaction_layers,
        "decoder layers": model.model.language_model.layers,
    }.items():
        expected = sum(parameter.numel() for parameter in module.parameters())
        if part == "decoder layers":
            expected += model.model.language_model.norm.weight.numel()
        assert counts[part] == expected


def test_a_tied_head_counts_once(processor):
    config = tiny_config(processor, tie_word_embeddings=True)
    counts = count_parameters(build_without_data(config, torch.float32))
    assert counts["embedding and head"] == config.text_config.vocab_size * config.text_config.hidden_size


def test_parameters_of_the_released_3b():
    shapes = RELEASED["FUSION-Phi3.5-3B"]
    config = FusionConfig(text_config=Phi3Config(vocab_size=32013))
    counts = count_parameters(build_without_data(config, torch.bfloat16))
    assert sum(counts.values()) == sum(prod(shapes[name]) for name in map_names(shapes).values())


@pytest.mark.parametrize(
    ("decoder", "turns", "checkpointing"),
    [
        ("phi3", QUESTION * 2, False),
        ("qwen3", QUESTION, True),
        ("llama", ["Hello!", "Hello to you, too!"], False),
    ],
)
def test_flops_are_those_of_a_real_step(processor, decoder, turns, checkpointing):
    image = random_image(0) if turns[0] == QUESTION[0] else None
    collator = FusionDataCollator(processor, latent_grid_sizes=[2])
    inputs = collator([{"messages": make_messages(turns, image)}] * 2)
    model = tiny_model(processor, decoder).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    forward, backward = count_flops(model, inputs)
    batch = describe(inputs, processor)
    assert batch.num_turns == len(turns) // 2
    trace = trace_step(model.config, batch, gradient_checkpointing=checkpointing)
    assert trace.forward_flops == pytest.approx(forward, rel=0.01)
    assert trace.backward_flops == pytest.approx(backward, rel=0.01)


@pytest.fixture(scope="module")
def small_config() -> FusionConfig:
    names = {}
    exec(SMALL_CONFIG, names)
    return names["config"]


def test_memory_is_what_a_process_takes(small_config, tmp_path):
    """The estimate of weights, gradients, states and activations in float32 is right within 12 %."""
    batch = Batch(6, 100, 64)
    torch.save(make_inputs(small_config, batch), tmp_path / "inputs.pt")
    # Freed tensors go back to the system at once; threads would have memory of their own.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "inputs.pt")]
    output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    for checkpointing, measured in zip([False, True], json.loads(output), strict=True):
        cost = estimate(small_config, batch, gradient_checkpointing=checkpointing, bf16=False)
        memory = cost.memory["ddp"]
        assert memory.activations > 0.4 * memory.total
        assert memory.total == pytest.approx(measured, rel=0.12), checkpointing


@pytest.mark.parametrize(("dtype", "checkpointing"), [(torch.float32, True), (torch.bfloat16, False)])
def test_activations_are_those_of_a_real_step_in_bfloat16(small_config, dtype, checkpointing):
    """Under autocast as accelerate does it, and with bfloat16 weights, by torch's own tracker of real tensors."""
    autocast = dtype == torch.float32
    config, batch = copy.deepcopy(small_config), Batch(2, 100, 16)
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 2
    config.interaction_layer_indices = [0]
    config.text_config.vocab_size = 8000  # so that the logits weigh
    inputs = make_inputs(config, batch)
    model = FusionForConditionalGeneration._from_config(config, dtype=dtype).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        forward = model.forward
        if autocast:
            forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(forward))
        loss = forward(**inputs, use_cache=False).loss
        loss.backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    measured = peak["Total"] - 2 * sum(parameter.nbytes for parameter in model.parameters())
    trace = trace_step(config, batch, dtype=dtype, autocast=autocast, gradient_checkpointing=checkpointing)
    assert trace.activations == pytest.approx(measured, rel=0.05)


def measure_memory(sharding: str, gpus: int, **values) -> Memory:
    """Return the memory for 1000 parameters, 100 of which FSDP gathers, and 5 bytes of activations."""
    values = {"itemsize": 4, "bf16": True, "optim": "adamw_torch_fused", **values}
    return get_memory(1000, 100, 5, sharding=sharding, gpus=gpus, **values)


def test_memory_of_ddp():
    """Sixteen bytes for a parameter in float32, and DDP's second copy of the gradients."""
    assert measure_memory("ddp", 1) == Memory(4000, 4000, 8000, 0, 5, 0)
    assert measure_memory("ddp", 8) == Memory(4000, 4000, 8000, 4000, 5, 0)
    assert measure_memory("ddp", 8, itemsize=2) == Memory(2000, 2000, 4000, 2000, 5, 0)


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_memory_of_zero2_is_that_of_deepspeeds_estimator(gpus):
    """`estimate_zero2_model_states_mem_needs`: 2 bytes for a parameter, and 18 that are split."""
    memory = measure_memory("zero2", gpus)
    assert memory.weights + memory.gradients + memory.optimizer + memory.optimizer_step == 2000 + 18000 // gpus


def test_full_sharding_splits_all_but_the_buffers():
    for sharding in ("zero3", "fsdp"):
        one, four = measure_memory(sharding, 1), measure_memory(sharding, 4)
        assert (four.weights, four.gradients, four.optimizer) == tuple(
            value // 4 for value in (one.weights, one.gradients, one.optimizer)
        )
        assert four.buffers == one.buffers > 0
    # Weights and gradients of what is gathered.
    assert measure_memory("fsdp", 4).buffers == 100 * (2 + 2)


def test_peak_is_in_the_passes_or_in_the_optimizer():
    memory = measure_memory("ddp", 1, optim="adamw_torch")
    assert memory.total == 16000 + 4000
    assert replace(memory, activations=9000).total == 16000 + 9000


def test_fsdp_gathers_two_layers_and_what_is_outside(small_config):
    model = build_without_data(small_config, torch.float32)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    core = model.model
    outside = [core.multi_modal_projector, core.text_to_vision_projector, model.lm_head]
    outside += [core.language_model.embed_tokens, core.language_model.norm]
    largest = max(count(core.language_model.layers[0]), count(core.interaction_layers[0]))
    assert count_gathered(model) == sum(map(count, outside)) + 2 * largest


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(1, 40, 5), "expected a square"),
        (Batch(1, 40, 4, answer_tokens=39), "too little"),
        (Batch(1, 8, 4, num_turns=3), "too little"),
    ],
)
def test_impossible_batches(small_config, batch, message):
    with pytest.raises(ValueError, match=message):
        trace_step(small_config, batch)


def test_unknown_names(small_config):
    with pytest.raises(ValueError, match="zero1"):
        estimate(small_config, Batch(1, 40, 4), shardings=["zero1"])
    with pytest.raises(ValueError, match="adafactor"):
        estimate(small_config, Batch(1, 40, 4), optim="adafactor")


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Return arguments of the command: the recipe of stage 1 with small parts and data."""
    SiglipVisionConfig(**{**VISION_CONFIG, "num_hidden_layers": 3}).save_pretrained(tmp_path / "tower")
    decoder = LlamaConfig(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    decoder.save_pretrained(tmp_path / "decoder")
    text = {"from": "human", "value": "x" * 80}, {"from": "gpt", "value": "y" * 40}
    rows = [{"conversations": [*text], "image": "a.png"}] * 30 + [{"conversations": [*text, *text]}] * 10
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return [
        str(RECIPE),
        f"model.vision={tmp_path / 'tower'}",
        f"model.decoder={tmp_path / 'decoder'}",
        "model.config={latent_grid_sizes: [2, 4], num_interaction_heads: 4}",
        f"data.datasets=[{{json_path: {tmp_path / 'data.json'}}}]",
        "global_batch_size=16",
        "max_length=100",
        "training.num_train_epochs=2",
    ]


def figure(output: str, name: str, column: int = 0) -> float:
    """Return a number of the line of the table that begins with `name`."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return float(re.findall(r"[\d.,]+(?:e\+\d+)?", line.strip().removeprefix(name))[column].replace(",", ""))


def test_command_prints_what_a_recipe_costs(arguments, capsys, monkeypatch):
    calls = []

    def stand_in(config, batch, **options):
        calls.append((batch, options))
        return Trace(5000, 10**15, 2 * 10**15) if batch.has_image else Trace(5000, 10**14, 2 * 10**14)

    for module in (memory_module, report_module):
        monkeypatch.setattr(module, "trace_step", stand_in)
    monkeypatch.setattr(report_module, "GB", 1)
    main(["cost", *arguments, "--gpus", "4", "--peak-tflops", "100", "--utilization", "0.5"])
    output = capsys.readouterr().out

    assert [line.split() for line in output.splitlines() if "ddp" in line][0] == list(SHARDINGS)
    num_parameters = figure(output, "total")
    assert [figure(output, "weights", column) for column in range(4)] == pytest.approx(
        [4 * num_parameters, 2 * num_parameters, num_parameters / 2, num_parameters], rel=1e-3
    )
    assert figure(output, "activations") == 5000
    # 40 rows make 3 steps of 16, in each of two epochs.
    assert figure(output, "steps") == 6
    assert figure(output, "a step forward") == pytest.approx(16 * (0.75 * 10**15 + 0.25 * 10**14), rel=1e-3)
    assert figure(output, "a step backward") == pytest.approx(2 * figure(output, "a step forward"), rel=1e-3)
    hours = 6 * 3 * 16 * (0.75 * 10**15 + 0.25 * 10**14) / (100e12 * 0.5) / 3600
    assert figure(output, "GPU hours") == pytest.approx(hours, abs=0.06)
    assert figure(output, "hours on 4 GPUs") == pytest.approx(hours / 4, abs=0.06)

    # Memory of the longest rows, with 36 tokens of the image and the most latent ones; the recipe has checkpointing.
    longest = Batch(4, 100 - 36 - 16, 16)
    with_autocast = {"dtype": torch.float32, "autocast": True, "gradient_checkpointing": True}
    without = {"dtype": torch.bfloat16, "autocast": False, "gradient_checkpointing": True}
    assert calls[:2] == [(longest, with_autocast), (longest, without)]
    # Time of the mean rows: 30 tokens of text in a turn and 10 of the template; 4 or 16 latents, 10 in the mean.
    with_image = Batch(1, 40, 9, 1, True, answer_tokens=10, question_tokens=20)
    text_only = Batch(1, 80, 9, 2, False, answer_tokens=20, question_tokens=40)
    assert [batch for batch, _ in calls[2:]] == [with_image, text_only]
    assert "75% of them have an image, 40 text tokens and 1 x 9 latent tokens" in output
    assert "25% of them have no image, 80 text tokens and 2 x 9 latent tokens" in output


def test_command_without_the_data(arguments, capsys):
    arguments = [*arguments, "data.datasets=[{json_path: missing.json}]"]
    assert main(["cost", *arguments, "--gpus", "1"]) == 1
    assert "pass --rows" in capsys.readouterr().err
    options = ["--gpus", "1", "--rows", "160", "--tokens-per-row", "50", "--sharding", "zero2"]
    main(["cost", *arguments, *options, "training.max_steps=7", "--utilisation", "0.5"])
    output, warning = capsys.readouterr()
    assert "warning: --utilisation is now --utilization" in warning and "Time at 50%" in output
    assert "zero3" not in output
    assert figure(output, "steps") == 7
    assert "160 rows" in output
    assert "50 text tokens and 1 x 9 latent tokens" in output


def test_rows_are_those_that_training_draws(arguments, monkeypatch):
    """`data_seed` draws them, else `seed`, and without both `Trainer`'s default."""
    mixtures = []
    load = report_module.load_mixture
    monkeypatch.setattr(report_module, "load_mixture", lambda *args: mixtures.append(load(*args)) or mixtures[-1])
    source = next(argument for argument in arguments if argument.startswith("data.datasets"))
    source = source.replace("}]", ", sampling_strategy: 'random:7'}]")
    for training, seed in [([], SEED), (["training.seed=3"], 3), (["training.seed=3", "training.data_seed=4"], 4)]:
        recipe = load_recipe(arguments[0], [*arguments[1:], source, *training])
        plan_rows(recipe, build_config(recipe), num_rows=None, text_tokens=None)
        assert recipe.data_seed == seed
        trained = load_mixture(recipe.data, recipe.folder, recipe.data_seed)
        drawn = [mixture.sources[0].indices.tolist() for mixture in (mixtures[-1], trained)]
        assert drawn[0] == drawn[1] == sample("random:7", 40, [seed, 0]).tolist()


def test_the_default_seed_is_that_of_transformers():
    assert TrainingArguments(output_dir="out").seed == SEED


def test_rows_of_unknown_length_are_as_long_as_they_may_be(arguments):
    recipe = load_recipe(arguments[0], [*arguments[1:], "data.datasets=[{json_path: missing.json}]"])
    rows = plan_rows(recipe, build_config(recipe), num_rows=160, text_tokens=None)
    assert rows.num_rows == 160
    # Of 100 tokens, 36 are of the image and 9 latent ones.
    assert rows.kinds == [(1.0, Batch(1, 100 - 36 - 9, 9))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--gpus", "3"], "`global_batch_size` is 16, expected a multiple of 12"),
        (["--gpus", "4", "max_length=50"], "`max_length` is 50, expected more than the 52"),
        (["--gpus", "4", "model.vision=/nowhere"], "/nowhere"),
    ],
)
def test_command_says_what_does_not_fit(arguments, changes, message, capsys):
    assert main(["cost", *arguments, *changes]) == 1
    assert message in capsys.readouterr().err
