"""Counts of samples and calls: of a part as JSON, and of a run as their sum. The card and the summary read them."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fusion_vlm.synthesis.sample import Sample


MAX_LISTED = 20  # different values of an entry of `Sample.source` that are counted; of more, nothing but that is known


@dataclass
class Counts:
    """
    Counts of finished samples.

    Args:
        num_samples (`int`), num_turns (`int`), num_rejected (`int`)
        num_images (`int`): images of accepted and rejected samples.
        kinds (`Counter`), types (`Counter`): accepted samples of each kind, their turns of each type.
        reasons (`Counter`): rejects by `stage/rule`.
        sources (`dict[str, dict[str, int] | None]`): for each entry of `Sample.source`, the number of accepted samples
            with each value; `None` for more than `MAX_LISTED` values.
        seeds (`Counter`): accepted samples by seed.
        missing_scores (`Counter`): accepted samples without a score, by scorer.
        tokens (`dict[str, dict[str, int]]`): by model, `calls`, `prompt_tokens` and `completion_tokens` of valid
            answers.
    """

    num_samples: int = 0
    num_turns: int = 0
    num_rejected: int = 0
    num_images: int = 0
    kinds: Counter = field(default_factory=Counter)
    types: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    sources: dict[str, dict[str, int] | None] = field(default_factory=dict)
    seeds: Counter = field(default_factory=Counter)
    missing_scores: Counter = field(default_factory=Counter)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, sample: Sample):
        """Count a finished sample."""
        self.num_images += sample.image is not None
        if sample.reason is not None:
            self.num_rejected += 1
            self.reasons["/".join(sample.rejected_by)] += 1
            return
        self.num_samples += 1
        self.num_turns += len(sample.turns)
        self.kinds[sample.kind] += 1
        self.types.update(turn.type for turn in sample.turns)
        self.seeds[str(sample.seed)] += 1
        self.missing_scores.update(name for name, score in sample.scores.items() if score is None)
        for name, value in sample.source.items():
            self._add_source(name, {value if isinstance(value, str) else json.dumps(value, sort_keys=True): 1})

    def _add_source(self, name: str, values: dict[str, int] | None):
        known = self.sources.setdefault(name, {})
        if known is None or values is None:
            self.sources[name] = None
            return
        for value, number in values.items():
            known[value] = known.get(value, 0) + number
        if len(known) > MAX_LISTED:
            self.sources[name] = None

    def merge(self, other: "Counts"):
        """Add the counts of other samples."""
        for name in ("num_samples", "num_turns", "num_rejected", "num_images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("kinds", "types", "reasons", "seeds", "missing_scores"):
            getattr(self, name).update(getattr(other, name))
        for name, values in other.sources.items():
            self._add_source(name, values)
        add_tokens(self.tokens, other.tokens)

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Counts":
        data = json.loads(text)
        counters = ("kinds", "types", "reasons", "seeds", "missing_scores")
        return cls(**{**data, **{name: Counter(data[name]) for name in counters}})


def add_tokens(total: dict[str, dict[str, int]], tokens: dict[str, dict[str, int]]):
    """Add the tokens of each model to a total."""
    for model, counts in tokens.items():
        row = total.setdefault(model, {})
        for name, number in counts.items():
            row[name] = row.get(name, 0) + number


def merge_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sum of the counts of several parts."""
    total = Counts()
    for part in counts:
        total.merge(part)
    return total
