"""
Load the model and the processor of a folder or Hub id, with or without an adapter (PEFT), and build prompts that fit.

The commands, the server and the page use these functions. torch, transformers and PEFT are imported inside of them:
importing torch takes seconds, and a command has to name a wrong path or option before.
"""

import os
import sys
import warnings
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_vlm.hub.names import ADAPTER_CONFIG, find_fusion, is_path, read_base


if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BitsAndBytesConfig

    from fusion_vlm.configuration_fusion import FusionConfig
    from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
    from fusion_vlm.processing_fusion import FusionProcessor

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


# Models and processors ----------------------------------------------------------------------------------------------


def nf4_config(
    compute_dtype: "torch.dtype | str" = "bfloat16", *, double_quant: bool = True, skip: list[str] | None = None
) -> "BitsAndBytesConfig":
    """
    Build the config that loads a FUSION in 4 bits (NF4 of bitsandbytes).

    Args:
        compute_dtype (`torch.dtype` or `str`):
            Dtype of the matrix products.
        double_quant (`bool`):
            Whether the scales of the weights are quantized too, which saves about 0.4 bits a weight.
        skip (`list[str]`, *optional*):
            Modules that stay as they are. Defaults to the model's own choice, `SKIPPED_IN_4BIT`.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip,
    )


def load(
    model: str | os.PathLike, *, dtype: str = "auto", device: str = "auto", four_bit: bool = False
) -> "tuple[FusionForConditionalGeneration, FusionProcessor]":
    """
    Load the model and the processor of a folder or Hub id, by the classes of this package.

    No code of the folder is run. The folder of an adapter is loaded with its base model.

    Args:
        model (`str` or `os.PathLike`):
            A folder or Hub id.
        dtype (`str`):
            Dtype of the weights. Defaults to the dtype in which they are stored.
        device (`str`):
            A device such as `"cpu"` or `"cuda:1"`. Defaults to a GPU if there is one.
        four_bit (`bool`):
            Whether to load the decoder in 4 bits.

    Returns:
        The model and its processor.

    Raises:
        ValueError, OSError: if there is no FUSION model.
        ImportError: for an adapter without PEFT.
    """
    path = find_fusion(model)
    from fusion_vlm.modeling_fusion import SKIPPED_IN_4BIT, FusionForConditionalGeneration

    silence_libraries()
    check_device(device)
    base = find_base(path)
    base_path = find_fusion(base) if base else path
    options: dict[str, Any] = {"dtype": dtype, "device_map": device}
    if four_bit:
        # An adapter may hold interaction layers that were trained in full; they cannot replace quantized ones.
        skip = [*SKIPPED_IN_4BIT, "model.interaction_layers"] if base else None
        options["quantization_config"] = nf4_config(skip=skip)
    processor = load_processor(path if has_processor(path) else base_path)
    loaded = FusionForConditionalGeneration.from_pretrained(base_path, **options)
    if base:
        loaded = load_adapter(loaded, path, merge=not four_bit)
    return loaded, processor


def silence_libraries():
    """Turn off the libraries' notices, and without a terminal their progress bars too."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    getLogger("bitsandbytes").setLevel(ERROR)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        disable_progress_bars()


def check_device(device: str):
    """Raise a ValueError for a device that this machine does not have."""
    import torch

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ValueError(f"There is no device {device!r} here: {error}") from error


def find_base(folder: str | Path) -> str | None:
    """
    Return the model that an adapter folder adapts, None for a folder or id of anything else.

    Raises:
        ValueError: if the adapter names no model, or one that is not there.
    """
    base = read_base(folder)
    if base is not None and is_path(base) and not os.path.isdir(base):
        raise ValueError(
            f"{folder} is an adapter of {base}, which is not there. Write where that model is, a folder or a Hub id,"
            f" into `base_model_name_or_path` of {Path(folder, ADAPTER_CONFIG)}."
        )
    return base


def has_processor(folder: str | Path) -> bool:
    """Return whether a folder holds a processor."""
    return any(Path(folder, name).is_file() for name in PROCESSOR_FILES)


def load_processor(path: str | Path) -> "FusionProcessor":
    """
    Return the processor of a folder or Hub id.

    Raises:
        ValueError: if a folder has none; the message says where to get it.
    """
    from fusion_vlm.processing_fusion import FusionProcessor

    if os.path.isdir(path) and not has_processor(path):
        raise ValueError(
            f"{path} has no processor (image sizes, tokenizer, chat template); `Trainer` saves it only with"
            " `processing_class=processor`. Copy it from the base model:"
            f" AutoProcessor.from_pretrained(BASE, trust_remote_code=True).save_pretrained({str(path)!r})"
        )
    return FusionProcessor.from_pretrained(path)


def load_adapter(
    model: "FusionForConditionalGeneration", folder: str | Path, merge: bool = True
) -> "FusionForConditionalGeneration":
    """
    Return a loaded model with the adapter of a folder.

    Args:
        model (`FusionForConditionalGeneration`):
            The base model; it is changed.
        folder (`str` or `Path`):
            The folder of the adapter.
        merge (`bool`):
            Whether the adapter becomes part of the weights, for speed. Merging would round a model in 4 bits a second
            time, so there the adapter stays beside the weights.

    Raises:
        ImportError: if PEFT is not installed.
        ValueError: if the adapter does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f'{folder} is an adapter, which needs PEFT: pip install "fusion-vlm[train]"') from error
    try:
        with warnings.catch_warnings():
            # PEFT asks for a property that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The adapter {folder} does not fit {model.name_or_path}: {reason}") from error
    # PEFT puts the layers of an adapter inside of `model`, so it needs no wrapper without merging either.
    return (adapted.merge_and_unload() if merge else model).eval()


# Prompts ------------------------------------------------------------------------------------------------------------


def build_user_message(text: str, image: "Image.Image | None" = None) -> dict:
    """Build the message of a user, as the processor takes it; the image precedes the text."""
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts if image is None else [{"type": "image", "image": image}, *parts]}


def check_grid_sizes(
    config: "FusionConfig", latent_grid_size: int | None, image_grid_size: int | None
) -> dict[str, int]:
    """
    Return the given sizes as arguments for the processor.

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


def process(processor: "FusionProcessor", conversation: list, grid_sizes: dict[str, int]):
    """
    Return the model's inputs for one conversation or a list of conversations.

    Control tokens that a user wrote become plain text; transformers below 5.23 refuses them.
    """
    return processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=dict(grid_sizes),
        sanitize_control_tokens=True,
    )


def limit_new_tokens(config: "FusionConfig", inputs, max_new_tokens: int) -> int:
    """
    Return the number of new tokens that the decoder has positions for, at most `max_new_tokens`.

    handler.py, which stands alone, has a copy; tests/test_handler.py compares.

    Raises:
        ValueError: if the prompt leaves no position.
    """
    # Decoders without such a limit do not have the field.
    num_positions = getattr(config.text_config, "max_position_embeddings", None)
    if num_positions is None:
        return max_new_tokens
    length = inputs["input_ids"].shape[1]
    if length >= num_positions:
        raise ValueError(f"The conversation has {length} tokens, the model takes {num_positions - 1} at most.")
    return min(max_new_tokens, num_positions - length)
