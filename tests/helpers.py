"""Paths, golden data, and what several test files do to a model or its inputs."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fusion_vlm.modeling_fusion import CHECKPOINTS_HOOKS
from fusion_vlm.processing_fusion import CAN_SANITIZE


ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
SMALL_MODEL = ROOT / "small_model" / "model"
GOLDEN_DIR = FIXTURES / "golden"
PHI, LLAMA = "fusion-phi-siglip", "fusion-llama-siglip2"
VARIANTS = (PHI, LLAMA)

# For processes that report their peak resident memory in bytes. Not `resource.getrusage`, whose figure begins with
# what the parent had in memory when it started the process.
PEAK_MEMORY = """
def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""


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
        """Return the conversation of a case, with its image; `turns` is `"turns"` or `"train"`."""
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
