"""
Reports what training by a recipe costs, before it runs: parameters, memory of each GPU, FLOPs and time.

    fusion-vlm cost RECIPE [--gpus 8] [--sharding zero2] [--rows N] [--tokens-per-row N]
        [--peak-tflops 989] [--utilization 0.4] [key=value ...]

The report needs no weights, hardly any memory, and about half a minute for a model of 3B.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil

import torch

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.rows.forms import RowError, conversation_text, has_image
from fusion_vlm.training.build import build_config
from fusion_vlm.training.cost.memory import SHARDINGS, Memory, estimate
from fusion_vlm.training.cost.trace import Batch, trace_step
from fusion_vlm.training.data import BYTES_PER_TOKEN, estimate_tokens, load_mixture
from fusion_vlm.training.recipe import Recipe
from fusion_vlm.training.tables import format_table
from fusion_vlm.training.trainer import FusionTrainingArguments


TEMPLATE_TOKENS = 10  # what a chat template adds to a turn, about
NUM_SAMPLED_ROWS = 1000
GB = 1e9


@dataclass(frozen=True)
class Rows:
    """
    The rows of a training.

    Args:
        num_rows (`int`)
        kinds (`list[tuple[float, Batch]]`): shares of the rows, and the mean row of each share.
        source (`str`): in words, where this comes from.
    """

    num_rows: int
    kinds: list[tuple[float, Batch]]
    source: str


def sample_rows(recipe: Recipe, num_latent_tokens: int) -> Rows:
    """
    Count the rows of a recipe's data, and take the mean lengths of a sample, with and without an image.

    The rows are those that training draws from the sources. Broken rows of the sample are skipped.

    Raises:
        OSError: if the files are not there.
        ValueError: if they cannot be read.
    """
    dataset = load_mixture(recipe.data, recipe.folder, recipe.data_seed)
    sample = {True: [], False: []}
    for index in range(0, len(dataset), ceil(len(dataset) / NUM_SAMPLED_ROWS)):
        source, row_index = dataset.locate(index)
        try:
            messages = source.to_messages(row_index, source.rows[row_index], load_images=False)
        except RowError:
            continue
        turns = [[message for message in messages if message["role"] == role] for role in ("user", "assistant")]
        sizes = [estimate_tokens(conversation_text(each)) for each in (messages, *turns)]
        sample[has_image(messages)].append((*sizes, len(turns[0])))
    num_sampled = len(sample[True] + sample[False])
    if not num_sampled:
        raise ValueError("No row of the data can be read: fusion-vlm check RECIPE says why.")
    kinds = [
        (len(sizes) / num_sampled, average_row(sizes, num_latent_tokens, with_image))
        for with_image, sizes in sample.items()
        if sizes
    ]
    source = (
        f"{num_sampled} rows of the data: a token for {BYTES_PER_TOKEN} bytes of text, and {TEMPLATE_TOKENS} for the"
        " template of a turn"
    )
    return Rows(len(dataset), kinds, source)


def average_row(sizes: list[tuple], num_latent_tokens: int, with_image: bool) -> Batch:
    """Return the mean of rows, given as tokens of text, of questions and of answers, and number of turns."""
    text, question, answer, num_turns = (round(sum(column) / len(sizes)) for column in zip(*sizes, strict=True))
    return Batch(
        1,
        text_tokens=text + TEMPLATE_TOKENS * num_turns,
        num_latent_tokens=num_latent_tokens,
        num_turns=num_turns,
        has_image=with_image,
        answer_tokens=max(answer, num_turns),
        question_tokens=max(question, num_turns),
    )


def plan_rows(recipe: Recipe, config: FusionConfig, num_rows: int | None, text_tokens: int | None) -> Rows:
    """
    Return the rows that the time is computed for: the given ones, else the recipe's, else rows of `max_length`.

    Raises:
        ValueError: if the number of rows or their length is not known.
    """
    # The square that is nearest to the mean of what training draws.
    sizes = config.latent_grid_sizes
    num_latent_tokens = round((sum(size**2 for size in sizes) / len(sizes)) ** 0.5) ** 2
    rows = None
    if num_rows is None or text_tokens is None:
        try:
            rows = sample_rows(recipe, num_latent_tokens)
        except OSError as error:
            if num_rows is None:
                raise ValueError(f"The data of the recipe is not there, so pass --rows. {error}") from error
    num_rows = rows.num_rows if num_rows is None else num_rows
    if text_tokens is not None:
        row = Batch(1, text_tokens, num_latent_tokens)
        return Rows(num_rows, [(1.0, row)], "--tokens-per-row, one image and one question in each")
    if rows is not None:
        return replace(rows, num_rows=num_rows)
    row = longest_row(recipe, config, num_latent_tokens)
    return Rows(num_rows, [(1.0, row)], "`max_length`, which all rows are taken to have (pass --tokens-per-row)")


def longest_row(recipe: Recipe, config: FusionConfig, num_latent_tokens: int, with_image: bool = True) -> Batch:
    """
    Return a row of one question that fills `max_length`.

    Raises:
        ValueError: if `max_length` is not set, or too short for the image and the latent tokens.
    """
    max_length = recipe.max_length
    if max_length is None:
        raise ValueError("`max_length` is null, so that the longest row is not known: pass max_length=N.")
    num_placeholders = num_latent_tokens + (config.image_grid_size**2 if with_image else 0)
    if max_length <= num_placeholders:
        raise ValueError(
            f"`max_length` is {max_length}, expected more than the {num_placeholders} image and latent tokens."
        )
    return Batch(1, max_length - num_placeholders, num_latent_tokens, has_image=with_image)


def read_training(recipe: Recipe, gpus: int) -> dict:
    """
    Return the training arguments of a recipe with `Trainer`'s defaults.

    They are a dict, since `FusionTrainingArguments` would look for the GPUs of this machine.

    Raises:
        ValueError: if the batch size does not divide into the rows of a step.
    """
    training = {field.name: field.default for field in fields(FusionTrainingArguments)} | recipe.training
    # Two names of one thing; the one kept here is the older.
    checkpointing = training["activation_checkpointing"] or training["gradient_checkpointing"]
    return {
        **training,
        "gradient_checkpointing": bool(checkpointing),
        "gradient_accumulation_steps": recipe.count_accumulation_steps(training["per_device_train_batch_size"], gpus),
    }


def format_memory(memory: dict[str, Memory]) -> list[str]:
    """Return the lines on memory, a column for each sharding."""
    names = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimizer states",
        "buffers": "exchange between GPUs",
        "activations": "activations",
        "optimizer_step": "or, in the optimizer's step",
        "total": "peak",
    }
    table = [["", *memory]]
    for kind, name in names.items():
        table.append([name, *(f"{getattr(each, kind) / GB:.2f}" for each in memory.values())])
    return format_table(table, indent=2)


def format_parameters(parameters: dict[str, int]) -> list[str]:
    """Return the lines on the numbers of parameters."""
    parts = {**parameters, "total": sum(parameters.values())}
    return format_table([[part, f"{count:,}"] for part, count in parts.items()], indent=2)


def format_time(forward: float, backward: float, num_steps: int, gpus: int, flops_per_second: float) -> list[str]:
    """
    Return the lines on operations and time.

    Args:
        forward, backward (`float`): FLOPs of a step, on all GPUs together.
        flops_per_second (`float`): that one GPU reaches.
    """
    flops = (forward + backward) * num_steps
    gpu_hours = flops / flops_per_second / 3600
    return format_table(
        [
            ["a step forward", f"{forward:.3e} FLOPs"],
            ["a step backward", f"{backward:.3e} FLOPs"],
            ["steps", f"{num_steps:,}"],
            ["all steps", f"{flops:.3e} FLOPs"],
            ["GPU hours", f"{gpu_hours:,.1f}"],
            [f"hours on {gpus} GPUs", f"{gpu_hours / gpus:,.1f}"],
        ],
        indent=2,
    )


def format_assumptions(
    rows: Rows, batch: Batch, training: dict, dtype: torch.dtype, shardings: Iterable[str]
) -> list[str]:
    """Return a line for each thing that the figures depend on."""
    kinds = [
        f"{part:.0%} of them have {'an' if row.has_image else 'no'} image, {row.text_tokens} text tokens and"
        f" {row.num_turns} x {row.num_latent_tokens} latent tokens"
        for part, row in rows.kinds
    ]
    checkpointing = "with" if training["gradient_checkpointing"] else "without"
    loaded = str(dtype).removeprefix("torch.")
    passes = "bfloat16" if training["bf16"] else loaded
    deepspeed = f"DeepSpeed, default bucket sizes; passes in {passes}, a float32 copy of the weights with the states"
    notes = {
        "ddp": f"weights, gradients and states in {loaded}, passes in {passes} (copies of the weights that autocast"
        " makes are activations here); its buckets are a second copy of the gradients",
        "zero2": deepspeed,
        "zero3": deepspeed,
        "fsdp": f"FSDP2; passes in {passes}, for which two layers and all that is outside of layers are gathered",
    }
    muon = " (what Muon trains is counted so, too: one moment more than it has)" if training["use_muon"] else ""
    lines = [
        f"time: {rows.num_rows:,} rows without padding; lengths are from {rows.source}",
        *kinds,
        "FLOPs: products of matrices, convolution, attention (causal attention in full), what is computed again",
        f"memory: rows of `max_length`, {batch.batch_size} at once on a GPU, {batch.num_latent_tokens} of their tokens"
        f" latent ones; {checkpointing} gradient checkpointing; fused attention",
        f"all parameters trained by {training['optim']}{muon}; gradients kept over"
        f" {training['gradient_accumulation_steps']} accumulation steps",
        *(f"{sharding}: {notes[sharding]}" for sharding in shardings),
        "not included: CUDA context, workspaces, fragmentation (leave some GB free); loading of data, communication,"
        " evaluation, saving",
    ]
    return [f"  - {line}" for line in lines]


def describe_cost(
    recipe: Recipe,
    *,
    gpus: int,
    sharding: str | None = None,
    num_rows: int | None = None,
    text_tokens: int | None = None,
    peak_tflops: float = 989,
    utilization: float = 0.4,
) -> str:
    """
    Return what the command prints.

    Args:
        recipe (`Recipe`): from `load_recipe`.
        gpus (`int`): the number of GPUs of the training.
        sharding (`str`, *optional*): of `SHARDINGS`. Defaults to all.
        num_rows, text_tokens (`int`, *optional*): see `plan_rows`.
        peak_tflops, utilization (`float`): of a GPU, and the share of it that is reached.

    Raises:
        ValueError: if the recipe does not fit the GPUs, or if rows or lengths are not known.
        OSError: if a config that the recipe names is not there.
    """
    training, config = read_training(recipe, gpus), build_config(recipe)
    rows = plan_rows(recipe, config, num_rows, text_tokens)
    has_images = any(row.has_image for _, row in rows.kinds)
    longest = longest_row(recipe, config, max(config.latent_grid_sizes) ** 2, has_images)
    batch = replace(longest, batch_size=training["per_device_train_batch_size"])
    dtype = getattr(torch, recipe.model.dtype)
    cost = estimate(
        config,
        batch,
        gpus=gpus,
        shardings=[sharding] if sharding else SHARDINGS,
        gradient_checkpointing=training["gradient_checkpointing"],
        dtype=dtype,
        bf16=training["bf16"],
        optim=training["optim"],
    )
    forward, backward = count_flops(recipe, rows, config, training["gradient_checkpointing"])
    sections = {
        "Parameters": format_parameters(cost.parameters),
        f"Memory of each of {gpus} GPUs, GB (1e9 bytes)": format_memory(cost.memory),
        f"Time at {utilization:.0%} of {peak_tflops:g} TFLOP/s": format_time(
            forward, backward, count_steps(recipe, rows, training), gpus, peak_tflops * 1e12 * utilization
        ),
        "Assumed": format_assumptions(rows, batch, training, dtype, cost.memory),
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items())


def count_flops(recipe: Recipe, rows: Rows, config: FusionConfig, checkpointing: bool) -> tuple[float, float]:
    """Return the FLOPs of a step on all GPUs together, forward and backward."""
    traces = [
        (part, trace_step(config, row, dtype=torch.bfloat16, gradient_checkpointing=checkpointing))
        for part, row in rows.kinds
    ]
    step_size = recipe.global_batch_size
    forward = step_size * sum(part * trace.forward_flops for part, trace in traces)
    backward = step_size * sum(part * trace.backward_flops for part, trace in traces)
    return forward, backward


def count_steps(recipe: Recipe, rows: Rows, training: dict) -> int:
    """Return the number of optimizer steps of the training."""
    if training["max_steps"] > 0:
        return training["max_steps"]
    return ceil(training["num_train_epochs"] * ceil(rows.num_rows / recipe.global_batch_size))
