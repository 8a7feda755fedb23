"""
Fixtures shared by the tests.

They are the golden data of the reference implementation, which tests/fixtures/golden/README.md describes, and the
checkpoints in it, converted once.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoProcessor

from fusion_vlm.convert_checkpoints import convert
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

from .helpers import GOLDEN_DIR, LLAMA, ROOT, VARIANTS, Golden, make_messages
from .tiny import random_image, tiny_model, tiny_processor, wide_config


@pytest.fixture(scope="session")
def import_script() -> Callable[[str], ModuleType]:
    """Import a script of `examples` or `benchmarks` by its path from the root."""

    def run(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


@pytest.fixture(scope="session")
def goldens() -> dict[str, Golden]:
    return {variant: Golden(variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> dict[str, Path]:
    """Convert the golden checkpoints, and return their folders."""
    folder = tmp_path_factory.mktemp("converted")
    return {variant: convert(GOLDEN_DIR / variant / "checkpoint", folder / variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def processors(converted) -> dict:
    return {
        variant: AutoProcessor.from_pretrained(folder, trust_remote_code=True) for variant, folder in converted.items()
    }


@pytest.fixture(scope="session")
def models(converted) -> dict[str, FusionForConditionalGeneration]:
    """Models in evaluation mode with SDPA; tests that change a model load their own."""
    return {variant: FusionForConditionalGeneration.from_pretrained(folder) for variant, folder in converted.items()}


@pytest.fixture
def conversations() -> list[list[dict]]:
    """Mixed lengths, turns, and with and without an image."""
    return [
        make_messages(["What is it?"], random_image(0)),
        make_messages(["How many?", "Three of them.", "Which of them is the reddest one?"], random_image(1)),
        make_messages(["Hello!"]),
    ]


@pytest.fixture(scope="session")
def processor(processors):
    """Of the tiny model."""
    return tiny_processor(processors[LLAMA])


@pytest.fixture(scope="module")
def model(processor) -> FusionForConditionalGeneration:
    """Build a tiny model with a Llama decoder; tests that change it make a copy."""
    return tiny_model(processor)


@pytest.fixture(scope="session")
def wide_folder(processor, tmp_path_factory) -> Path:
    """Build a model of widths that bitsandbytes' CPU kernels take."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    FusionForConditionalGeneration(wide_config(processor)).save_pretrained(path)
    return path
