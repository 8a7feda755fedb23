"""
Makes a Hub folder of a checkpoint whose weights are split over processes, as FSDP and DeepSpeed write them.

    fusion-vlm consolidate out/stage2/checkpoint-1000 out/stage2-1000

One process, no GPU; memory for the whole model, in the dtype of the checkpoint (FSDP: that of the parameters that were
trained; DeepSpeed: float32). A checkpoint of one process or of DDP is a Hub folder already.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import GenerationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.output_folder import check_output_folder, partial_folder
from fusion_vlm.hub.tensors import compare_tensors
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor


FSDP_FOLDER = "pytorch_model_fsdp_0"
FSDP_METADATA = ".metadata"
FSDP_PREFIX = "model."  # accelerate saves {"model": the model's own state dict}
DEEPSPEED_FILE = "latest"


def find_reader(checkpoint: Path) -> Callable[[], dict[str, torch.Tensor]]:
    """
    Return a function that loads the whole state dict of a checkpoint on the CPU.

    Raises:
        ValueError: if the checkpoint has no weights.
    """
    if (checkpoint / FSDP_FOLDER).is_dir():
        return partial(read_fsdp, checkpoint / FSDP_FOLDER)
    if (checkpoint / DEEPSPEED_FILE).is_file():
        return partial(read_deepspeed, checkpoint)
    if paths := sorted(checkpoint.glob("model*.safetensors")):
        return partial(read_safetensors, paths)
    raise ValueError(
        f"{checkpoint} holds no weights: expected a folder {FSDP_FOLDER} (FSDP), a file {DEEPSPEED_FILE} (DeepSpeed)"
        " or model*.safetensors, as in a checkpoint-N of `Trainer`."
    )


def read_safetensors(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of all files."""
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


def read_fsdp(folder: Path) -> dict[str, torch.Tensor]:
    """
    Return the tensors of a distributed checkpoint (DCP) that accelerate has written.

    Raises:
        ValueError: if the checkpoint is incomplete.
    """
    if not (folder / FSDP_METADATA).is_file():
        # The metadata is written last.
        raise ValueError(f"{folder} has no {FSDP_METADATA}: it is incomplete. Take an earlier checkpoint.")
    reader = dcp.FileSystemReader(folder)
    saved = reader.read_metadata().state_dict_metadata
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(FSDP_PREFIX): tensor for name, tensor in weights.items()}


def read_deepspeed(checkpoint: Path) -> dict[str, torch.Tensor]:
    """
    Return the float32 weights of a ZeRO optimizer.

    Raises:
        ValueError: if DeepSpeed is not installed.
    """
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise ValueError(f"{checkpoint} is a checkpoint of DeepSpeed, which is needed to read it: {error}.") from error
    return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))


def find_base(checkpoint: Path) -> Path:
    """
    Return the folder with config and processor: the checkpoint, or the folder of the training around it.

    Raises:
        ValueError: if neither has them.
    """
    for folder in (checkpoint, checkpoint.absolute().parent):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise ValueError(
        f"Neither {checkpoint} nor the folder around it has a {CONFIG_NAME}: sharded checkpoints hold weights only."
        " Name a folder with the config and the processor: --base FOLDER, such as the `model.path` of the recipe."
    )


def write_folder(
    weights: dict[str, torch.Tensor],
    config: FusionConfig,
    processor: FusionProcessor,
    folder: str | os.PathLike,
    *,
    generation_config: GenerationConfig | None = None,
    max_shard_size: int | str = "5GB",
):
    """
    Write what `from_pretrained` loads: weights, configs, processor and code.

    Args:
        weights (`dict[str, torch.Tensor]`): by parameter name; they are written in their dtype.

    Raises:
        ValueError: if names or shapes do not fit the config.
    """
    with torch.device("meta"):
        model = FusionForConditionalGeneration(config)
    expected = model.state_dict()
    found = compare_tensors(expected, weights)
    problems = {
        "lacks": found.missing - model.all_tied_weights_keys.keys(),
        "has unknown": found.unexpected,
        "has misshapen": found.misshapen,
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"The checkpoint {problem} tensors, by its config: {len(names)} such as {min(names)}. Is that the"
                " config of the model that was trained?"
            )
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    if generation_config is not None:
        model.generation_config = generation_config
    processor.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def consolidate(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """
    Write a folder that loads with `trust_remote_code=True`, with the weights of a checkpoint as safetensors.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A `checkpoint-N` of `Trainer`, of FSDP (sharded), DeepSpeed or neither.
        output_dir (`str` or `os.PathLike`):
            The folder to make. May exist if it is empty.
        base (`str` or `os.PathLike`, *optional*):
            A folder with the config and the processor. Defaults to the checkpoint, or else the folder it lies in.
        max_shard_size (`int` or `str`):
            Of one file, in bytes or as `"5GB"`.

    Returns:
        `Path`: the output folder.

    Raises:
        ValueError: if the checkpoint cannot be used, or `output_dir` is not empty. Nothing is left behind.
    """
    checkpoint, output_dir = Path(checkpoint), check_output_folder(output_dir)
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint folder {checkpoint}.")
    read = find_reader(checkpoint)
    base = find_base(checkpoint) if base is None else Path(base)
    try:
        config = FusionConfig.from_pretrained(base)
        processor = FusionProcessor.from_pretrained(base)
    except OSError as error:
        raise ValueError(f"{base} has no complete config and processor: {error}") from error
    has_generation_config = (base / GENERATION_CONFIG_NAME).is_file()
    generation_config = GenerationConfig.from_pretrained(base) if has_generation_config else None
    options = {"generation_config": generation_config, "max_shard_size": max_shard_size}
    with partial_folder(output_dir) as folder:
        write_folder(read(), config, processor, folder, **options)
    return output_dir


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["consolidate", *sys.argv[1:]]))
