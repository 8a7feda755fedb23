"""
Fixtures shared by the tests: the golden data of the reference implementation (tests/fixtures/golden/README.md says
what it holds) and the checkpoints in it, converted once.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor

from fusion_vlm.convert_checkpoints import convert
from fusion_vlm.modeling_fusion import CHECKPOINTS_HOOKS, FusionForConditionalGeneration
from fusion_vlm.processing_fusion import CAN_SANITIZE

from .tiny import random_image, tiny_model, tiny_processor, wide_config


GOLDEN_DIR = Path(__file__).parent / "fixtures" / "golden"
PHI, LLAMA = "fusion-phi-siglip", "fusion-llama-siglip2"
VARIANTS = (PHI, LLAMA)

# For processes that report their peak resident memory in bytes. Not `resource.getrusage`, whose figure begins with
# what the parent had in memory when it started the process.
PEAK_MEMORY = """
def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""


@pytest.fixture(scope="session")
def import_script() -> Callable[[str], ModuleType]:
    """Import a script of `examples` or `benchmarks` by its path from the root."""

    def run(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


# tests/test_releases.py shows that older releases refuse in words.
needs_sanitizing = pytest.mark.skipif(not CAN_SANITIZE, reason="control tokens stay text from transformers 5.23 on")
needs_reentrant = pytest.param(True, marks=pytest.mark.skipif(CHECKPOINTS_HOOKS, reason="refused below 5.23"))
needs_recipes = pytest.mark.skipif(CHECKPOINTS_HOOKS, reason="recipes need transformers 5.23")


def enable_checkpointing(model, use_reentrant: bool = False):
    """Turn on activation checkpointing, under its name in the installed transformers (5.23 renamed it)."""
    enable = model.gradient_checkpointing_enable if CHECKPOINTS_HOOKS else model.activation_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


class Golden:
    """What the reference computes on the cases of one variant."""

    def __init__(self, variant: str, folder: str = ""):
        self.variant = variant
        self.folder = GOLDEN_DIR / variant / folder
        self.cases = json.loads((self.folder / "golden.json").read_text())["cases"]
        self.tensors = safe_open(self.folder / "golden.safetensors", "pt")
        self.names = set(self.tensors.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors.get_tensor(name)

    def image(self, case: str) -> Image.Image | None:
        return Image.open(GOLDEN_DIR / self.variant / f"{case}.png") if self.cases[case]["image"] else None

    def messages(self, case: str, turns: str = "turns") -> list[dict]:
        """The conversation of a case, with its image; `turns` is `"turns"` or `"train"`."""
        return make_messages(self.cases[case][turns], self.image(case))


def make_messages(turns: list[str], image=None) -> list[dict]:
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": [{"type": "text", "text": text}]}
        for index, text in enumerate(turns)
    ]
    if image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": image})
    return messages


def process(processor, messages, *, add_generation_prompt=True, **processor_kwargs):
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=processor_kwargs,
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.fixture(scope="session")
def goldens() -> dict[str, Golden]:
    return {variant: Golden(variant) for variant in VARIANTS}


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> dict[str, Path]:
    """The converted checkpoint folders."""
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
    """A tiny model with a Llama decoder; tests that change it make a copy."""
    return tiny_model(processor)


@pytest.fixture(scope="session")
def wide_folder(processor, tmp_path_factory) -> Path:
    """A model of widths that bitsandbytes' CPU kernels take."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    FusionForConditionalGeneration(wide_config(processor)).save_pretrained(path)
    return path
