"""What a folder of a model holds, told before it is loaded: a processor, or an adapter (PEFT) of another model."""

import os
import warnings
from pathlib import Path

from fusion_vlm.hub.names import ADAPTER_CONFIG, is_path, read_base
from fusion_vlm.processing_fusion import FusionProcessor


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


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
    return any(Path(folder, name).is_file() for name in PROCESSOR_FILES)


def load_processor(path: str | Path) -> FusionProcessor:
    """
    Return the processor of a folder or Hub id.

    Raises:
        ValueError: if a folder has none, with where to get it.
    """
    if os.path.isdir(path) and not has_processor(path):
        raise ValueError(
            f"{path} has no processor (image sizes, tokenizer, chat template); `Trainer` saves it only with"
            " `processing_class=processor`. Copy it from the base model:"
            f" AutoProcessor.from_pretrained(BASE, trust_remote_code=True).save_pretrained({str(path)!r})"
        )
    return FusionProcessor.from_pretrained(path)


def load_adapter(model, folder: str | Path, merge: bool = True):
    """
    Return a loaded model with the adapter of a folder.

    Args:
        model (`FusionForConditionalGeneration`): the base model; it is changed.
        merge (`bool`): whether the adapter becomes part of the weights, for speed. A model in 4 bits would be rounded
            anew, so there the adapter stays beside the weights.

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
    # Otherwise the adapter's layers are inside of `model`, so it needs no wrapper.
    return (adapted.merge_and_unload() if merge else model).eval()
