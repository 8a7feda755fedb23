"""Tests of the vLLM plugin: `make test-vllm` runs them in an environment of its own; elsewhere they are left out."""

import importlib.util
import os

import pytest


if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["*"]
else:
    # Before vLLM is imported. The engine runs in the test's process, where a test can look into it.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from .engines import Reference, write_random_model


from ...helpers import SMALL_MODEL


@pytest.fixture(scope="session")
def folders(converted, tmp_path_factory) -> dict:
    """Return the small model, or a random one of the released layout with heads that vLLM's CPU kernels take."""
    root = tmp_path_factory.mktemp("random")
    names = ("phi3", "llama", "qwen3")
    return {"small": SMALL_MODEL, **{name: write_random_model(root / name, name, converted) for name in names}}


@pytest.fixture(scope="session")
def references(folders):
    """Return the function that loads transformers' model of a name, once."""
    loaded = {}

    def load(name: str, dtype: str = "float32") -> Reference:
        if (name, dtype) not in loaded:
            loaded[name, dtype] = Reference(folders[name], dtype)
        return loaded[name, dtype]

    return load
