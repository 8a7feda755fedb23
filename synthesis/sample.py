"""The one record that every stage of the data engine reads and writes, and how its randomness is drawn."""

import dataclasses
import hashlib
import random
from dataclasses import dataclass, field
from typing import Any


# The paper's kinds of data: captions for pre-training, then instructions.
CAPTION_KINDS = ("caption_colour", "caption_count", "caption_spatial", "caption_scene", "caption_text")
INSTRUCTION_KINDS = (
    "multiple_choice",
    "short_conversation",
    "long_conversation",
    "contrast_short",
    "contrast_long",
    "reasoning",
    "text_qa",
)
KINDS = CAPTION_KINDS + INSTRUCTION_KINDS


@dataclass
class Turn:
    """
    A question and its answer.

    Args:
        question, answer (`str`): the answer as the model is to give it.
        type (`str`): of the question, for balance and the audit: `colour`, `shape`, `count`, `spatial`, `yes_no`,
            `text`, `scene`, `multiple_choice`, `difference` or `caption`.
        options (`list[str]`): of a multiple-choice question, in order; the answer is then a letter, `A` for the first.
    """

    question: str
    answer: str
    type: str
    options: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """
    Args:
        id (`str`): unique in a run, and the stem of its image file.
        kind (`str`): one of `KINDS`.
        seed (`int`): of the run; `rng` draws from it.
        caption, description (`str`): what the image is to show, short and in detail.
        scenes (`list[dict]`): the scene graphs, of one image or of the two sides of a contrast; empty if an LLM wrote
            the description.
        image (`str`, *optional*): file name in the image folder of the output.
        turns (`list[Turn]`): questions and answers about the image, in order.
        scores (`dict[str, float | None]`): by name of the scorer; `None` where a scorer is not available.
        reason (`str`, *optional*): why a filter rejected it; a stage passes rejected samples through.
        source (`dict`): where it is from: models, prompts, renderer, row of captions; the card lists it.
    """

    id: str
    kind: str
    seed: int
    caption: str = ""
    description: str = ""
    scenes: list[dict] = field(default_factory=list)
    image: str | None = None
    turns: list[Turn] = field(default_factory=list)
    scores: dict[str, float | None] = field(default_factory=dict)
    reason: str | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def rng(self, name: str) -> random.Random:
        """A generator of this sample's own for the purpose `name`: no stage depends on what another one has drawn."""
        return random.Random(stable_hash(self.seed, self.id, name))

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Sample":
        """The opposite of `to_dict`."""
        return cls(**{**data, "turns": [Turn(**turn) for turn in data["turns"]]})


def stable_hash(*parts) -> int:
    """64 bits that are the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
