"""Tell which model an answer comes from: the content of its files, or its commit on the Hub."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from fusion_vlm.hub.names import ADAPTER_CONFIG


# What decides about answers. The model card and its figures may change.
FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    ADAPTER_CONFIG,
)
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
BLOCK_SIZE = 2**22


def find_snapshot(model: str | os.PathLike) -> Path:
    """
    Return a folder, or for the id of a Hub repository the folder of the cache that it was loaded from.

    Raises:
        ValueError: if a repository is not in the cache, as it is after loading.
    """
    if os.path.isdir(model):
        return Path(model)
    for name in ("config.json", ADAPTER_CONFIG):
        file = try_to_load_from_cache(os.fspath(model), name)
        if isinstance(file, str):
            return Path(file).parent
    raise ValueError(f"{model} is neither a folder nor a repository in the cache of the Hub: load the model first.")


def identify_model(model: str | os.PathLike, *, with_code: bool = False) -> str:
    """
    Return a hash of all that decides about a model's answers: weights, configs, tokenizer and chat template.

    Weights are read in full, at the speed of the disk: two trainings of one model differ in nothing but their values.

    Args:
        model (`str` or `os.PathLike`):
            The folder of a model or an adapter, or a Hub id that has been loaded.
        with_code (`bool`):
            Whether the code files of the folder count too, because they are what runs (`trust_remote_code`).

    Raises:
        ValueError: if there are no weights.
    """
    folder = find_snapshot(model)
    weights = [path for pattern in PATTERNS for path in folder.glob(pattern)]
    if not weights:
        raise ValueError(f"There are no weights in {folder}: expected safetensors files.")
    others = [folder / name for name in FILES if (folder / name).is_file()]
    code = list(folder.glob("*.py")) if with_code else []
    paths = sorted({*weights, *others, *code})
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(_hash_file, paths)
    text = "".join(f"{path.name}:{each}\n" for path, each in zip(paths, hashes, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_SIZE):
            digest.update(block)
    return digest.hexdigest()
