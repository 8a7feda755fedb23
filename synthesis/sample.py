"""The record that every stage of the data engine reads and writes, and the seeds of its random draws."""

import hashlib
import random
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any


MAX_REASON = 500  # characters of a reason that are kept; it may quote what a model wrote
LETTER_HINT = "Answer with the letter of the option."


@dataclass
class Turn:
    """
    A question and its answer.

    Args:
        question (`str`), answer (`str`): the answer is the text that a model has to give.
        type (`str`): type of the question, for balance and the audit: `colour`, `shape`, `count`, `spatial`,
            `yes_no`, `text`, `scene`, `multiple_choice`, `difference` or `caption`; of exact scenes also `object`,
            `pattern`, `position`, `comparison`, `orientation`, `time`, `indoors` or `odd_one_out`; of drawn pages also
            `value`, `comparison` and `sort`.
        options (`list[str]`): of a multiple-choice question, in order. The answer is then a letter, `A` for the first.
    """

    question: str
    answer: str
    type: str
    options: list[str] = field(default_factory=list)

    @property
    def options_by_letter(self) -> dict[str, str]:
        return dict(zip(ascii_uppercase, self.options, strict=False))

    @property
    def listed_options(self) -> str:
        """Return the options with their letters, one a line."""
        return "\n".join(f"{letter}. {option}" for letter, option in self.options_by_letter.items())

    @property
    def question_with_options(self) -> str:
        """Return the question as it is asked: with lettered options, if it has any and does not show them already."""
        if self.listed_options in self.question:
            return self.question
        return f"{self.question}\n{self.listed_options}\n{LETTER_HINT}"

    @classmethod
    def from_options(cls, question: str, options: list[str], correct: int) -> "Turn":
        """Build a multiple-choice turn from its options and the index of the correct one."""
        return cls(question, ascii_uppercase[correct], "multiple_choice", options)


@dataclass
class Sample:
    """
    An image with questions and answers, from its caption to its acceptance or rejection.

    Args:
        id (`str`): unique in a run, and the stem of its image file.
        kind (`str`): one of `KINDS` (kinds/table.py).
        seed (`int`): seed of the run; `rng` draws from it.
        caption (`str`), description (`str`): the content of the image, short and in detail.
        scenes (`list[dict]`): the scene graphs, of one image or of the two sides of a contrast. Empty if an LLM wrote
            the description.
        image (`str`, *optional*): file name of the image in its shard.
        turns (`list[Turn]`): questions and answers about the image, in order.
        scores (`dict[str, float | None]`): by name of the scorer; `None` where a scorer is not available.
        reason (`str`, *optional*): why the sample was rejected, `stage/rule: message`; set by `reject`. Rejected
            samples skip the stages that follow.
        source (`dict`): models, prompts, renderer and row of captions that the sample was made from; the card lists
            them.
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
        """Return a new generator for the purpose `name`. No stage depends on the draws of another stage."""
        return random.Random(stable_hash(self.seed, self.id, name))

    def reject(self, stage: str, reason: str):
        """
        Set `reason`.

        Args:
            stage (`str`): name of the stage that rejects.
            reason (`str`): `rule: message`; rejects are counted by stage and rule.
        """
        self.reason = f"{stage}/{reason}"[:MAX_REASON]

    @property
    def rejected_by(self) -> tuple[str, str]:
        """Return the stage and the rule in `reason`. Only for rejected samples."""
        stage, _, rule = self.reason.partition(":")[0].partition("/")
        return stage, rule

    def to_dict(self) -> dict:
        """Return plain data, for JSON. Nothing is copied in depth, which takes longer than the rest."""
        return {**vars(self), "turns": [dict(vars(turn)) for turn in self.turns]}

    @classmethod
    def from_dict(cls, data: dict) -> "Sample":
        """Build a sample from the data that `to_dict` returns."""
        return cls(**{**data, "turns": [Turn(**turn) for turn in data["turns"]]})


def stable_hash(*parts) -> int:
    """Return a hash of 64 bits that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
