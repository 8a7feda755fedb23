"""What the commands share: loading a model, prompts that fit."""

import os
import sys
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from fusion_vlm.hub.names import find_fusion, read_base


if TYPE_CHECKING:
    from PIL import Image

# torch, transformers and PIL are imported where they are needed: a wrong name is told at once.


def refuse_adapter(model: str):
    """Raise a ValueError for the folder of an adapter (PEFT), which has no weights of its own."""
    if base := read_base(model):
        raise ValueError(
            f"{model} is an adapter of {base}, not a whole model. Merge it first: PeftModel.from_pretrained(model,"
            f" {model!r}).merge_and_unload().save_pretrained(FOLDER), and processor.save_pretrained(FOLDER)."
        )


def load(model: str | os.PathLike, *, dtype: str = "auto", device: str = "auto", four_bit: bool = False):
    """
    Load the model and the processor of a folder or Hub id, by the classes of this package.

    No code of the folder is run. The folder of an adapter is loaded with its base model.

    Args:
        model (`str` or `os.PathLike`): a folder or Hub id.
        dtype (`str`): of the weights. Defaults to that in which they are stored.
        device (`str`): such as `"cpu"` or `"cuda:1"`. Defaults to a GPU if there is one.
        four_bit (`bool`): whether to load the decoder in 4 bits.

    Returns:
        The model and its processor.

    Raises:
        ValueError, OSError: if there is no FUSION model.
        ImportError: for an adapter without PEFT.
    """
    path = find_fusion(model)
    import torch
    from huggingface_hub.utils import disable_progress_bars
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging

    from fusion_vlm.hub.loading import find_base, has_processor, load_adapter, load_processor
    from fusion_vlm.modeling_fusion import SKIPPED_IN_4BIT, FusionForConditionalGeneration

    logging.set_verbosity_error()
    getLogger("bitsandbytes").setLevel(ERROR)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        disable_progress_bars()
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
            raise ValueError(f"There is no device {device!r} here: {error}") from error
    base = find_base(path)
    base_path = find_fusion(base) if base else path
    options = {"dtype": dtype, "device_map": device}
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            # An adapter may hold interaction layers that were trained in full; they cannot replace quantized ones.
            llm_int8_skip_modules=[*SKIPPED_IN_4BIT, "model.interaction_layers"] if base else None,
        )
    processor = load_processor(path if has_processor(path) else base_path)
    loaded = FusionForConditionalGeneration.from_pretrained(base_path, **options)
    if base:
        loaded = load_adapter(loaded, path, merge=not four_bit)
    return loaded, processor


def user_message(text: str, image: "Image.Image | None" = None) -> dict:
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts if image is None else [{"type": "image", "image": image}, *parts]}


def check_grid_sizes(config, latent_grid_size: int | None, image_grid_size: int | None) -> dict[str, int]:
    """
    Return the sizes that were given, as the processor takes them.

    Raises:
        ValueError: if the model has no such size.
    """
    limits = {
        "latent_grid_size": (latent_grid_size, config.max_latent_grid_size),
        "image_grid_size": (image_grid_size, config.num_patches_per_side),
    }
    for name, (size, limit) in limits.items():
        if size is not None and not 1 <= size <= limit:
            raise ValueError(f"{name} is {size}, expected 1 to {limit} for this model.")
    return {name: size for name, (size, _) in limits.items() if size is not None}


def process(processor, conversation: list, grid_sizes: dict[str, int]):
    """Return the model's inputs of conversations. Control tokens that a user wrote are text, or refused below 5.23."""
    return processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=dict(grid_sizes),
        sanitize_control_tokens=True,
    )


def limit_new_tokens(config, inputs, max_new_tokens: int) -> int:
    """
    Return how many new tokens there are positions for, `max_new_tokens` at most.

    Raises:
        ValueError: if the prompt leaves none.
    """
    # Decoders without such a limit do not have the field.
    num_positions = getattr(config.text_config, "max_position_embeddings", None)
    if num_positions is None:
        return max_new_tokens
    length = inputs["input_ids"].shape[1]
    if length >= num_positions:
        raise ValueError(f"The conversation has {length} tokens, the model takes {num_positions - 1} at most.")
    return min(max_new_tokens, num_positions - length)
