"""
Traces one training step of a model without data: FLOPs and the peak of the memory that activations take.

Activations and FLOPs are not formulas of this file. The model, whichever decoder it has, runs one step on tensors that
have a shape and a dtype but no data (torch's `FakeTensorMode`). Meanwhile the living storages and the operations of
each product are counted. tests/training/test_cost.py compares the result with steps of real small models.

The counting leans on names of torch and transformers that are not public. What breaks when they move:
    torch._subclasses.fake_tensor.FakeTensorMode      no model without data: nothing here works
    torch.utils._python_dispatch.TorchDispatchMode    `Meter` sees no operators
    torch.utils._pytree.tree_leaves                   `Meter` does not find the tensors of an output
    FusionForConditionalGeneration._from_config       no model in a dtype without its weights
    aten._scaled_dot_product_flash_attention_for_cpu  FLOPs lack attention, which the tests notice

torch's own `MemTracker` (torch.distributed._tools) finds the same peak, within 1 %. It is private as well, takes two
to three times as long, and counts no FLOPs, so the tests compare with it and nothing here uses it.
"""

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

import torch
from accelerate.utils import convert_to_fp32
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers.initialization import no_init_weights

from fusion_vlm.configuration_fusion import NUM_CROPS, FusionConfig
from fusion_vlm.modeling_fusion import UNATTENDED_TOKEN_ID, FusionForConditionalGeneration


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
    The cost of one pass forward and backward.

    Args:
        activations (`int`): peak of the bytes beyond parameters and gradients.
        forward_flops, backward_flops (`int`): the second includes what checkpointing computes again.
    """

    activations: int
    forward_flops: int
    backward_flops: int


def count_attention(query, key, value, *args, **kwargs) -> int:
    """Return the FLOPs of SDPA on a CPU; `count_cpu_attention` of benchmarks/speed.py counts the same."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def count_attention_backward(grad, query, key, value, *args, **kwargs) -> int:
    """Return the FLOPs of the backward pass of SDPA on a CPU."""
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FLOP_FORMULAS = {
    **flop_registry,
    # torch has no formula for SDPA on a CPU, which stores the same tensors for its backward pass as kernels of GPUs.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
}


class Meter(TorchDispatchMode):
    """
    Counts FLOPs of matrix products, convolutions and attention, and the peak of the bytes that operators allocate.

    torch's `FlopCounterMode` follows modules, so it would keep alive what checkpointing frees.

    Args:
        known (`Iterable[torch.Tensor]`): tensors that exist already; their bytes are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.flops = self.num_bytes = self.peak_bytes = 0
        # A storage that is freed may give its id to another one, so known storages are kept alive.
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
    """Replaces boolean-mask indexing by integer indexing: fake tensors have no data to count the positions of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            args = (args[0], args[1].nonzero(as_tuple=True))
        return func(*args, **(kwargs or {}))


def build_without_data(config: FusionConfig, dtype: torch.dtype) -> FusionForConditionalGeneration:
    """Build a model in training mode, with parameters that have a shape and a dtype but no data."""
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model = FusionForConditionalGeneration._from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model.train()


def make_inputs(config: FusionConfig, batch: Batch) -> dict[str, torch.Tensor]:
    """
    Build a batch like one of the collator, of real tensors. All rows but the first are padded by one token.

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
    for name, ids_name in (("attention_mask", "input_ids"), ("question_attention_mask", "question_input_ids")):
        inputs[name] = torch.ones_like(inputs[ids_name])
        inputs[name][1:, -1:] = 0
    if batch.has_image:
        pixels = torch.zeros(batch.batch_size, NUM_CROPS, 3, *2 * [config.vision_config.image_size])
        inputs |= {"pixel_values": pixels[:, 0].clone(), "high_res_pixel_values": pixels}
    return inputs


def share(total: int, num_parts: int, index: int) -> int:
    """Return the size of part `index` of `total`, cut into parts that are as equal as possible."""
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
    Count one pass forward and backward.

    Args:
        dtype (`torch.dtype`): of the parameters and gradients.
        autocast (`bool`): whether the passes run under autocast to bfloat16, as accelerate does it.
        gradient_checkpointing (`bool`): of the tower's, the decoder's and the interaction layers.

    Raises:
        ValueError: if the batch is not possible.
    """
    if config.question_end_token_ids is None:
        # The config of two pretrained parts. Any token will do here.
        used = {UNATTENDED_TOKEN_ID, config.image_token_id, config.latent_token_id}
        config = copy.deepcopy(config)
        config.question_end_token_ids = [next(token for token in range(4) if token not in used)]
    inputs = make_inputs(config, batch)
    model = build_without_data(config, dtype)
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():  # gradients exist from the second accumulation step on
        parameter.grad = torch.zeros_like(parameter)
    known = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *inputs.values()]
    with Meter(known) as meter, IndexByPosition():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(**inputs, use_cache=False)
        # accelerate converts all outputs to float32, the logits of every position too.
        loss = (convert_to_fp32(outputs) if autocast else outputs).loss
        del outputs
        forward_flops = meter.flops
        loss.backward()
    num_input_bytes = sum(value.nbytes for value in inputs.values())
    return Trace(meter.peak_bytes + num_input_bytes, forward_flops, meter.flops - forward_flops)
