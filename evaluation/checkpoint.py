"""Check that a folder or Hub repository holds all weights of the model that its config describes."""

import contextlib
import logging
from pathlib import Path

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import find_base, silence_libraries
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


class CheckpointError(ValueError):
    """Weights that are missing, damaged or of another model; the message says which."""


def check_checkpoint(path: str | Path):
    """
    Check names and shapes of the weights of a model, and that their files are complete; nothing is loaded.

    transformers only warns about weights that are missing or have other shapes, and draws them at random: such a model
    would be scored like any other. Adapters and weights in 4 bits are checked when they are loaded.

    Raises:
        CheckpointError: for a model that would not be the one that its authors saved.
    """
    path = find_base(path) or path
    if getattr(FusionConfig.from_pretrained(path), "quantization_config", None) is not None:
        return
    silence_libraries()
    try:
        with silenced("transformers.modeling_utils"):
            _, info = FusionForConditionalGeneration.from_pretrained(
                path, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # safetensors has an error of its own for files that were cut off
        raise CheckpointError(f"The weights of {path} cannot be read: {type(error).__name__}: {error}") from error
    shapes = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    for names, problem in ((info["missing_keys"], "are missing"), (shapes, "have another shape")):
        if names:
            first = sorted(map(str, names))[0]
            raise CheckpointError(
                f"{path} does not hold the weights of its config: {len(names)} tensors {problem}, such as {first}."
                " transformers would draw them at random. Convert or download the model again."
            )


@contextlib.contextmanager
def silenced(name: str):
    """Keep a logger quiet, which reports missing weights in a table of hundreds of lines."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
