"""
What training by a recipe costs, printed before it runs: parameters, memory of each GPU, FLOPs and time.

    fusion-vlm cost RECIPE [--gpus 8] [--sharding zero2] [--rows N] [--tokens-per-row N]
        [--peak-tflops 989] [--utilization 0.4] [key=value ...]

Activations and FLOPs are not formulas of this file: the model of the recipe, whichever decoder it has, runs one
training step on tensors that have a shape and a dtype but no data (torch's `FakeTensorMode`), while the storages that
are alive and the operations of each product are counted. It needs no weights, hardly any memory, and about half a
minute for a model of 3B. tests/training/test_cost.py compares it with steps of real small models.
"""

import copy
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil, isqrt
from pathlib import Path

import torch
from accelerate.utils import convert_to_fp32
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers.initialization import no_init_weights

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import NUM_CROPS_PER_SIDE, UNATTENDED_TOKEN_ID, FusionForConditionalGeneration
from fusion_vlm.rows.forms import RowError, conversation_text, has_image
from fusion_vlm.training.build import build_config, count_accumulation_steps, load_recipe
from fusion_vlm.training.data import load_mixture
from fusion_vlm.training.recipe import to_number
from fusion_vlm.training.trainer import FusionTrainingArguments


SHARDINGS = ("ddp", "zero2", "zero3", "fsdp")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# DeepSpeed's defaults, in elements: `reduce_bucket_size` and `stage3_max_live_parameters`.
REDUCE_BUCKET_SIZE, MAX_LIVE_PARAMETERS = 5 * 10**8, 10**9
BYTES_PER_TOKEN = 4  # of text, as `FusionDataset.lengths` takes it
TEMPLATE_TOKENS = 10  # what a chat template adds to a turn, about
NUM_SAMPLED_ROWS = 1000
GB = 1e9


@dataclass(frozen=True)
class Batch:
    """
    The shape of the rows that pass through the model at once; all are alike.

    Args:
        batch_size (`int`): rows.
        text_tokens (`int`): tokens of a row that are neither image nor latent tokens: questions, answers, template.
        num_latent_tokens (`int`): of one question; a square.
        num_turns (`int`): questions of a row.
        has_image (`bool`): without one, the tower runs on one blank crop for the whole batch.
        answer_tokens (`int`, *optional*): those of `text_tokens` that have labels. Defaults to half of them.
        question_tokens (`int`, *optional*): those of `text_tokens` that the tower reads, too. Defaults to all others.
    """

    batch_size: int
    text_tokens: int
    num_latent_tokens: int
    num_turns: int = 1
    has_image: bool = True
    answer_tokens: int | None = None
    question_tokens: int | None = None


@dataclass(frozen=True)
class Trace:
    """
    What one pass forward and backward takes.

    Args:
        activations (`int`): most bytes at a time, beyond parameters and gradients.
        forward_flops, backward_flops (`int`): the second includes what checkpointing computes again.
    """

    activations: int
    forward_flops: int
    backward_flops: int


@dataclass(frozen=True)
class Memory:
    """
    Bytes on each GPU at its fullest.

    Args:
        weights, gradients, optimizer (`int`): what this GPU holds of them all the time; `optimizer` with its float32
            copy of the weights, if the passes have a copy of their own.
        buffers (`int`): for what is exchanged with other GPUs.
        activations (`int`): of the passes, at their peak.
        optimizer_step (`int`): temporaries of the optimizer, which needs them when no activations are left.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    optimizer_step: int

    @property
    def total(self) -> int:
        states = self.weights + self.gradients + self.optimizer + self.buffers
        return states + max(self.activations, self.optimizer_step)


@dataclass(frozen=True)
class Cost:
    """
    Args:
        parameters (`dict[str, int]`): numbers of parameters by part of the model.
        memory (`dict[str, Memory]`): by sharding.
        forward_flops, backward_flops (`int`): of one batch on one GPU.
    """

    parameters: dict[str, int]
    memory: dict[str, Memory]
    forward_flops: int
    backward_flops: int


# A step without data ------------------------------------------------------------------------------------------------


def count_attention(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def count_attention_backward(grad, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FLOP_FORMULAS = {
    **flop_registry,
    # SDPA on a CPU, which torch has no formula for. It keeps what the fused kernels of GPUs keep.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
}


class Meter(TorchDispatchMode):
    """
    Counts `flops`, those of matrix products, convolutions and attention, and `peak_bytes`, the most bytes at a time of
    the storages that operators make. (`FlopCounterMode` follows modules, and so keeps what checkpointing frees.)

    Args:
        known (`Iterable[torch.Tensor]`): tensors that are there before, which do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.flops = self.num_bytes = self.peak_bytes = 0
        # Ids are unique only as long as what they belong to is alive.
        self.known = [tensor.untyped_storage() for tensor in known]
        self.ids = {id(storage) for storage in self.known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket in FLOP_FORMULAS:
            self.flops += FLOP_FORMULAS[func.overloadpacket](*args, **kwargs, out_val=output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage):
        if id(storage) not in self.ids:
            self.ids.add(id(storage))
            self.num_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)
            weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, storage_id: int, num_bytes: int):
        self.ids.remove(storage_id)
        self.num_bytes -= num_bytes


class IndexByPosition(TorchFunctionMode):
    """Indexes with the positions of a mask in its place, whose number a tensor without data could not know."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            args = (args[0], args[1].nonzero(as_tuple=True))
        return func(*args, **(kwargs or {}))


def build_without_data(config: FusionConfig, dtype: torch.dtype) -> FusionForConditionalGeneration:
    """The model in training mode, with parameters that have a shape and a dtype but no data."""
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model = FusionForConditionalGeneration._from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model.train()


def make_inputs(config: FusionConfig, batch: Batch) -> dict[str, torch.Tensor]:
    """
    A batch as the collator makes it, of real tensors. Its last row is padded, if it is not the only one.

    Raises:
        ValueError: if `num_latent_tokens` is no square, or if there is too little text for the turns.
    """
    if isqrt(batch.num_latent_tokens) ** 2 != batch.num_latent_tokens:
        raise ValueError(f"`num_latent_tokens` is {batch.num_latent_tokens}, expected a square such as 64.")
    end = config.question_end_token_ids
    num_answer = batch.text_tokens // 2 if batch.answer_tokens is None else batch.answer_tokens
    num_question = batch.text_tokens - num_answer if batch.question_tokens is None else batch.question_tokens
    num_prompt = batch.text_tokens - num_answer - batch.num_turns * len(end)
    if min(num_answer, num_question, num_prompt - batch.num_turns) < batch.num_turns:
        raise ValueError(
            f"A row has {batch.text_tokens} text tokens, {num_answer} of them in answers. That is too little for"
            f" {batch.num_turns} questions: expected at least {2 + len(end)} and 1 in the answer for each."
        )
    special = {UNATTENDED_TOKEN_ID, config.image_token_id, config.latent_token_id, *end}
    text = next(token for token in range(config.text_config.vocab_size) if token not in special)
    ids, labels = [], []
    for turn in range(batch.num_turns):
        prompt = [config.image_token_id] * (config.image_grid_size**2 if batch.has_image and turn == 0 else 0)
        prompt += [text] + [config.latent_token_id] * batch.num_latent_tokens
        prompt += [text] * (share(num_prompt, batch.num_turns, turn) - 1) + end
        answer = [text] * share(num_answer, batch.num_turns, turn)
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    inputs = {
        "input_ids": torch.tensor([ids] * batch.batch_size),
        "labels": torch.tensor([labels] * batch.batch_size),
        "question_input_ids": torch.full((batch.batch_size, num_question), text),
    }
    for name, of in (("attention_mask", "input_ids"), ("question_attention_mask", "question_input_ids")):
        inputs[name] = torch.ones_like(inputs[of])
        inputs[name][1:, -1:] = 0
    if batch.has_image:
        pixels = torch.zeros(batch.batch_size, NUM_CROPS_PER_SIDE**2, 3, *2 * [config.vision_config.image_size])
        inputs |= {"pixel_values": pixels[:, 0].clone(), "high_res_pixel_values": pixels}
    return inputs


def share(total: int, num_parts: int, index: int) -> int:
    """Size of part `index` of `total`, cut into parts as equal as can be."""
    return total * (index + 1) // num_parts - total * index // num_parts


def trace_step(
    config: FusionConfig,
    batch: Batch,
    *,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    gradient_checkpointing: bool = False,
) -> Trace:
    """
    Counts one pass forward and backward.

    Args:
        dtype (`torch.dtype`): of the parameters and gradients.
        autocast (`bool`): whether the passes run under autocast to bfloat16, as accelerate does it.
        gradient_checkpointing (`bool`): of the tower's, the decoder's and the interaction layers.

    Raises:
        ValueError: if the batch is not possible.
    """
    if config.question_end_token_ids is None:
        # As of a recipe that starts from parts: which token it is does not matter here.
        used = {UNATTENDED_TOKEN_ID, config.image_token_id, config.latent_token_id}
        config = copy.deepcopy(config)
        config.question_end_token_ids = [next(token for token in range(4) if token not in used)]
    inputs = make_inputs(config, batch)
    model = build_without_data(config, dtype)
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():  # that there are after the first accumulation step
        parameter.grad = torch.zeros_like(parameter)
    known = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *inputs.values()]
    with Meter(known) as meter, IndexByPosition():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(**inputs, use_cache=False)
        # accelerate gives back all outputs, the logits of every position too, in float32.
        loss = (convert_to_fp32(outputs) if autocast else outputs).loss
        del outputs
        forward_flops = meter.flops
        loss.backward()
    num_input_bytes = sum(value.nbytes for value in inputs.values())
    return Trace(meter.peak_bytes + num_input_bytes, forward_flops, meter.flops - forward_flops)


# From the step to the GPUs ------------------------------------------------------------------------------------------


def count_parameters(model: FusionForConditionalGeneration) -> dict[str, int]:
    """Numbers of parameters by part; a tied head counts once."""
    counts = dict.fromkeys(
        ["vision tower", "projectors", "interaction layers", "decoder layers", "embedding and head"], 0
    )
    embeddings = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            part = "embedding and head"
        elif name.startswith("model.vision_tower."):
            part = "vision tower"
        elif name.startswith("model.interaction_layers."):
            part = "interaction layers"
        elif name.startswith("model.language_model."):
            part = "decoder layers"
        else:
            part = "projectors"
        counts[part] += parameter.numel()
    return counts


def count_gathered(model: FusionForConditionalGeneration) -> int:
    """Parameters that FSDP has whole at a time: those outside of its units, and two units, one of them prefetched."""
    units = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in model.modules()
        if type(module).__name__ in model._no_split_modules
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - sum(units) + sum(sorted(units)[-2:])


def get_memory(
    num_parameters: int,
    num_gathered: int,
    activations: int,
    *,
    sharding: str,
    gpus: int,
    itemsize: int,
    bf16: bool,
    optim: str,
) -> Memory:
    """
    What a GPU holds, by how accelerate, DeepSpeed and FSDP2 keep weights, gradients and AdamW's states.

    Args:
        num_parameters, num_gathered (`int`): of the model, and those that FSDP has whole at a time.
        activations (`int`): bytes, of a pass as this sharding does it.
        itemsize (`int`): bytes of a parameter as the model is loaded.
        bf16 (`bool`): whether the passes run in bfloat16.
        optim (`str`): of `OPTIMIZERS`.
    """
    # Of the unfused AdamW: the square roots of the second moments of all parameters at a time.
    roots = 0 if optim.endswith("fused") else 1
    part = ceil(num_parameters / gpus)
    pass_size = 2 if bf16 else itemsize  # bytes of a weight in the passes
    if sharding == "ddp":
        held = num_parameters * itemsize
        # DDP's buckets are a second copy of the gradients (`gradient_as_bucket_view=False`).
        return Memory(held, held, 2 * held, held if gpus > 1 else 0, activations, roots * held)
    if sharding == "fsdp":
        # The parameters in float32 (accelerate sees to it); of the gathered ones also the gradients, in bfloat16.
        held = part * (4 if bf16 else itemsize)
        return Memory(held, held, 2 * held, 2 * num_gathered * pass_size, activations, roots * held)
    # DeepSpeed's weights are bfloat16; its optimizer has them and two moments in float32, and in its step gradients.
    is_zero3 = sharding == "zero3"
    buffers = min(num_parameters, REDUCE_BUCKET_SIZE) + min(num_parameters, MAX_LIVE_PARAMETERS) * is_zero3
    weights = part if is_zero3 else num_parameters
    optimizer_step = (4 + 4 * roots) * part
    return Memory(weights * pass_size, part * pass_size, 12 * part, buffers * pass_size, activations, optimizer_step)


def estimate(
    config: FusionConfig,
    batch: Batch,
    *,
    gpus: int = 1,
    shardings: Iterable[str] = ("ddp",),
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    bf16: bool = True,
    optim: str = "adamw_torch",
) -> Cost:
    """
    What training a model costs: `Trainer` on accelerate, AdamW, all parameters trained.

    Args:
        batch (`Batch`): what one GPU takes at once (`per_device_train_batch_size`).
        shardings (`Iterable[str]`): of `SHARDINGS`. zero2 and zero3 are DeepSpeed's, fsdp shards fully.
        dtype (`torch.dtype`): that the model is loaded in.
        bf16 (`bool`), optim (`str`): of the training arguments.

    Raises:
        ValueError: if the batch is not possible, or a sharding or optimizer unknown.
    """
    if optim not in OPTIMIZERS:
        raise ValueError(f"`optim` is {optim!r}, whose memory is not known here. Expected one of {list(OPTIMIZERS)}.")
    if unknown := set(shardings) - set(SHARDINGS):
        raise ValueError(f"Unknown sharding: {sorted(unknown)}. Expected some of {list(SHARDINGS)}.")
    model = build_without_data(config, dtype)
    parameters, num_gathered = count_parameters(model), count_gathered(model)
    traces, memory = {}, {}
    for sharding in shardings:
        # Only DDP keeps the weights as they were loaded, and casts them in every pass.
        autocast = bf16 and sharding == "ddp"
        if autocast not in traces:
            traces[autocast] = trace_step(
                config,
                batch,
                dtype=torch.bfloat16 if bf16 and not autocast else dtype,
                autocast=autocast,
                gradient_checkpointing=gradient_checkpointing,
            )
        trace = traces[autocast]
        memory[sharding] = get_memory(
            sum(parameters.values()),
            num_gathered,
            trace.activations,
            sharding=sharding,
            gpus=gpus,
            itemsize=dtype.itemsize,
            bf16=bf16,
            optim=optim,
        )
    return Cost(parameters, memory, trace.forward_flops, trace.backward_flops)


# From a recipe to the table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """
    The rows of a recipe.

    Args:
        num_rows (`int`)
        kinds (`list[tuple[float, Batch]]`): shares of the rows, and the mean row of each share.
        source (`str`): in words, where this comes from.
    """

    num_rows: int
    kinds: list[tuple[float, Batch]]
    source: str


def read_rows(recipe: dict, folder: Path, num_latent_tokens: int) -> Rows:
    """
    Counts the rows of a recipe's data, and takes the mean lengths of a sample of them, of those with an image and
    those without. Broken rows of the sample are left out.

    Raises:
        OSError: if the files are not there.
        ValueError: if they cannot be read.
    """
    dataset = load_mixture(recipe["data"], folder, recipe["training"].get("seed", 42))
    sample = {True: [], False: []}
    for index in range(0, len(dataset), ceil(len(dataset) / NUM_SAMPLED_ROWS)):
        source, row_index = dataset.locate(index)
        try:
            messages = source.to_messages(row_index, source.rows[row_index], load_images=False)
        except RowError:
            continue
        turns = [[message for message in messages if message["role"] == role] for role in ("user", "assistant")]
        texts = [conversation_text(each) for each in (messages, *turns)]
        sizes = [len(text.encode(errors="replace")) / BYTES_PER_TOKEN for text in texts]
        sample[has_image(messages)].append((*sizes, len(turns[0])))
    num_sampled = len(sample[True] + sample[False])
    if not num_sampled:
        raise ValueError("No row of the data can be read: fusion-vlm check RECIPE says why.")
    kinds = []
    for with_image, rows in sample.items():
        if rows:
            text, question, answer, num_turns = (round(sum(column) / len(rows)) for column in zip(*rows, strict=True))
            batch = Batch(
                1,
                text_tokens=text + TEMPLATE_TOKENS * num_turns,
                num_latent_tokens=num_latent_tokens,
                num_turns=num_turns,
                has_image=with_image,
                answer_tokens=max(answer, num_turns),
                question_tokens=max(question, num_turns),
            )
            kinds.append((len(rows) / num_sampled, batch))
    source = (
        f"{num_sampled} rows of the data: a token for {BYTES_PER_TOKEN} bytes of text, and {TEMPLATE_TOKENS} for the"
        " template of a turn"
    )
    return Rows(len(dataset), kinds, source)


def plan_rows(recipe: dict, folder: Path, config: FusionConfig, num_rows: int | None, text_tokens: int | None) -> Rows:
    """
    The rows that the time is computed for: as asked for, else of the recipe's data, else as long as `max_length`.

    Raises:
        ValueError: if the number of rows or their length is not known.
    """
    # A square near the mean of what is drawn.
    sizes = config.latent_grid_sizes
    num_latent_tokens = round((sum(size**2 for size in sizes) / len(sizes)) ** 0.5) ** 2
    rows = None
    if num_rows is None or text_tokens is None:
        try:
            rows = read_rows(recipe, folder, num_latent_tokens)
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
    return Rows(num_rows, [(1.0, row)], "`max_length`, which all are taken to have (pass --tokens-per-row)")


def longest_row(recipe: dict, config: FusionConfig, num_latent_tokens: int, with_image: bool = True) -> Batch:
    """
    A row of one question that fills `max_length`.

    Raises:
        ValueError: if `max_length` is not set, or too short for the image and the latent tokens.
    """
    max_length = recipe["max_length"]
    if max_length is None:
        raise ValueError("`max_length` is null, so that the longest row is not known: pass max_length=N.")
    num_placeholders = num_latent_tokens + (config.image_grid_size**2 if with_image else 0)
    if max_length <= num_placeholders:
        raise ValueError(
            f"`max_length` is {max_length}, expected more than the {num_placeholders} image and latent tokens."
        )
    return Batch(1, max_length - num_placeholders, num_latent_tokens, has_image=with_image)


def read_training(recipe: dict, gpus: int) -> dict:
    """
    The training arguments of a recipe with `Trainer`'s defaults (as a dict: making them would look for the GPUs).

    Raises:
        ValueError: if the batch size does not divide into them.
    """
    training = {field.name: field.default for field in fields(FusionTrainingArguments)}
    training |= {name: to_number(value) for name, value in recipe["training"].items()}
    # Two names of one thing; the one kept here is the older.
    checkpointing = training["activation_checkpointing"] or training["gradient_checkpointing"]
    return {
        **training,
        "gradient_checkpointing": bool(checkpointing),
        "gradient_accumulation_steps": count_accumulation_steps(recipe, training["per_device_train_batch_size"], gpus),
    }


def format_table(table: list[list[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = ["<", *">" * (len(widths) - 1)]
    return [
        "  " + "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
        for line in table
    ]


def format_memory(memory: dict[str, Memory]) -> list[str]:
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
    return format_table(table)


def format_parameters(parameters: dict[str, int]) -> list[str]:
    parts = {**parameters, "total": sum(parameters.values())}
    return format_table([[part, f"{count:,}"] for part, count in parts.items()])


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
        ]
    )


def format_assumptions(
    rows: Rows, batch: Batch, training: dict, dtype: torch.dtype, shardings: Iterable[str]
) -> list[str]:
    """One line for each thing that the figures depend on."""
    kinds = [
        f"{part:.0%} of them have {'an' if row.has_image else 'no'} image, {row.text_tokens} text tokens and"
        f" {row.num_turns} x {row.num_latent_tokens} latent tokens"
        for part, row in rows.kinds
    ]
    checkpointing = "with" if training["gradient_checkpointing"] else "without"
    loaded = str(dtype).removeprefix("torch.")
    passes = "bfloat16" if training["bf16"] else loaded
    deepspeed = f"DeepSpeed, default bucket sizes; passes in {passes}, a float32 copy of the weights with the states"
    of_sharding = {
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
        *(f"{sharding}: {of_sharding[sharding]}" for sharding in shardings),
        "left out: CUDA context, workspaces, fragmentation (leave some GB free); loading of data, communication,"
        " evaluation, saving",
    ]
    return [f"  - {line}" for line in lines]


def report(
    path: Path,
    overrides: list[str],
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
        path (`Path`), overrides (`list[str]`): of the recipe, see `load_recipe`.
        gpus (`int`): on how many it runs.
        sharding (`str`, *optional*): of `SHARDINGS`. Defaults to all.
        num_rows, text_tokens (`int`, *optional*): see `plan_rows`.
        peak_tflops, utilization (`float`): of a GPU, and the share of it that is reached.

    Raises:
        ValueError: if the recipe does not fit the GPUs, or if rows or lengths are not known.
        OSError: if the recipe, or a config that it names, is not there.
    """
    recipe = load_recipe(path, overrides)
    training, config = read_training(recipe, gpus), build_config(recipe)
    rows = plan_rows(recipe, path.parent, config, num_rows, text_tokens)
    has_images = any(row.has_image for _, row in rows.kinds)
    longest = longest_row(recipe, config, max(config.latent_grid_sizes) ** 2, has_images)
    batch = replace(longest, batch_size=training["per_device_train_batch_size"])
    checkpointing = training["gradient_checkpointing"]
    dtype = getattr(torch, recipe["model"].get("dtype") or "float32")
    cost = estimate(
        config,
        batch,
        gpus=gpus,
        shardings=[sharding] if sharding else SHARDINGS,
        gradient_checkpointing=checkpointing,
        dtype=dtype,
        bf16=training["bf16"],
        optim=training["optim"],
    )
    traces = [
        (part, trace_step(config, row, dtype=torch.bfloat16, gradient_checkpointing=checkpointing))
        for part, row in rows.kinds
    ]
    step_size = recipe["global_batch_size"]
    forward = step_size * sum(part * trace.forward_flops for part, trace in traces)
    backward = step_size * sum(part * trace.backward_flops for part, trace in traces)
    num_steps = ceil(training["num_train_epochs"] * ceil(rows.num_rows / step_size))
    if training["max_steps"] > 0:
        num_steps = training["max_steps"]
    sections = {
        "Parameters": format_parameters(cost.parameters),
        f"Memory of each of {gpus} GPUs, GB (1e9 bytes)": format_memory(cost.memory),
        f"Time at {utilization:.0%} of {peak_tflops:g} TFLOP/s": format_time(
            forward, backward, num_steps, gpus, peak_tflops * 1e12 * utilization
        ),
        "Assumed": format_assumptions(rows, batch, training, dtype, cost.memory),
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items())


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["cost", *sys.argv[1:]]))
