"""From one traced step to the memory of each GPU, by how the GPUs share the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import torch

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.training.cost.trace import Batch, build_without_data, trace_step


SHARDINGS = ("ddp", "zero2", "zero3", "fsdp")  # commands/cost.py has these too
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# DeepSpeed's defaults, in elements: `reduce_bucket_size` and `stage3_max_live_parameters`.
REDUCE_BUCKET_SIZE, MAX_LIVE_PARAMETERS = 5 * 10**8, 10**9


@dataclass(frozen=True)
class Memory:
    """
    Bytes on each GPU at the peak.

    Args:
        weights, gradients, optimizer (`int`): what this GPU holds all the time. With DeepSpeed, `optimizer` includes
            the float32 copy of the weights.
        buffers (`int`): for the exchange with other GPUs.
        activations (`int`): peak of the passes.
        optimizer_step (`int`): temporaries of the optimizer. By then all activations are freed.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    optimizer_step: int

    @property
    def total(self) -> int:
        """Return the peak: states and buffers, and either activations or temporaries of the optimizer."""
        states = self.weights + self.gradients + self.optimizer + self.buffers
        return states + max(self.activations, self.optimizer_step)


@dataclass(frozen=True)
class Cost:
    """
    The cost of a training step.

    Args:
        parameters (`dict[str, int]`): numbers of parameters by part of the model.
        memory (`dict[str, Memory]`): by sharding.
        forward_flops, backward_flops (`int`): of one batch on one GPU.
    """

    parameters: dict[str, int]
    memory: dict[str, Memory]
    forward_flops: int
    backward_flops: int


def count_parameters(model: FusionForConditionalGeneration) -> dict[str, int]:
    """Count the parameters of each part; a tied head counts once."""
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
    """Count the parameters that FSDP gathers at a time: those outside of its units, and two units, one prefetched."""
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
    Return what a GPU holds, by how accelerate, DeepSpeed and FSDP2 keep weights, gradients and AdamW's states.

    Args:
        num_parameters (`int`): all of the model.
        num_gathered (`int`): those that FSDP gathers at a time.
        activations (`int`): bytes of a pass with this sharding.
        itemsize (`int`): bytes of a parameter as the model is loaded.
        bf16 (`bool`): whether the passes run in bfloat16.
        optim (`str`): of `OPTIMIZERS`.
    """
    # Unfused AdamW materializes the square roots of the second moments of all parameters at a time.
    roots = 0 if optim.endswith("fused") else 1
    part = ceil(num_parameters / gpus)
    pass_size = 2 if bf16 else itemsize  # bytes of a weight in the passes
    if sharding == "ddp":
        held = num_parameters * itemsize
        return Memory(
            weights=held,
            gradients=held,
            optimizer=2 * held,
            buffers=held if gpus > 1 else 0,  # DDP's buckets copy the gradients (`gradient_as_bucket_view=False`)
            activations=activations,
            optimizer_step=roots * held,
        )
    if sharding == "fsdp":
        held = part * (4 if bf16 else itemsize)  # accelerate makes the parameters float32
        return Memory(
            weights=held,
            gradients=held,
            optimizer=2 * held,
            buffers=2 * num_gathered * pass_size,  # gathered weights and their gradients
            activations=activations,
            optimizer_step=roots * held,
        )
    # DeepSpeed's weights are bfloat16. Its optimizer has weights and moments in float32, and in its step gradients.
    weights, buffers = num_parameters, min(num_parameters, REDUCE_BUCKET_SIZE)
    if sharding == "zero3":
        weights, buffers = part, buffers + min(num_parameters, MAX_LIVE_PARAMETERS)
    return Memory(
        weights=weights * pass_size,
        gradients=part * pass_size,
        optimizer=12 * part,
        buffers=buffers * pass_size,
        activations=activations,
        optimizer_step=(4 + 4 * roots) * part,
    )


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
    Estimate what training a model costs: `Trainer` on accelerate, AdamW, all parameters trained.

    Args:
        batch (`Batch`): the rows that a GPU processes at once (`per_device_train_batch_size`).
        shardings (`Iterable[str]`): of `SHARDINGS`. zero2 and zero3 are DeepSpeed's, fsdp shards fully.
        dtype (`torch.dtype`): in which the model is loaded.
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
        # Only DDP keeps the weights in their dtype, and casts them in every pass.
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
