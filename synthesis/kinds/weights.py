"""Weights of kinds: `--kinds caption_text=2 reasoning`, and which kind the sample of an index has."""

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from math import gcd

from fusion_vlm.synthesis.names import KINDS


MAX_WEIGHT = 1000
Weights = tuple[tuple[str, int], ...]


def parse_weights(texts: Iterable[str]) -> Weights:
    """
    Parse kinds with weights: `caption_text=2`, or `reasoning` for a weight of 1; commas or several texts.

    Equal weights such as 2 and 2 are reduced to 1 and 1, so both spellings name the same run.

    Raises:
        ValueError: for an unknown kind, a kind that is given twice, or a weight that is no whole number from 1 on.
    """
    weights = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        kind, equals, weight = part.partition("=")
        if kind not in KINDS:
            raise ValueError(f"The kind is {kind!r}, expected some of {', '.join(KINDS)}.")
        if kind in weights:
            raise ValueError(f"The kind {kind} is given twice, expected each once; a weight is given by {kind}=2.")
        if equals and not (weight.isdecimal() and 1 <= int(weight) <= MAX_WEIGHT):
            raise ValueError(f"The weight of {kind} is {weight!r}, expected a whole number from 1 to {MAX_WEIGHT}.")
        weights[kind] = int(weight) if equals else 1
    if not weights:
        raise ValueError(f"There is no kind, expected some of {', '.join(KINDS)}.")
    return reduce_weights(tuple(weights.items()))


def reduce_weights(weights: Iterable[tuple[str, int]]) -> Weights:
    """Divide weights by what divides all of them."""
    weights = tuple(weights)
    divisor = gcd(*(weight for _, weight in weights))
    return tuple((kind, weight // divisor) for kind, weight in weights)


def count_samples(num: int, weights: Weights) -> dict[str, int]:
    """Count the samples of each kind among the first `num`."""
    order = _order(weights)
    turns, rest = divmod(num, len(order))
    counts = {kind: turns * weight for kind, weight in weights}
    for kind, _ in order[:rest]:
        counts[kind] += 1
    return counts


def find_sample(index: int, weights: Weights) -> tuple[str, int]:
    """
    Return the kind of the sample of an index, and its number within the kind.

    Kinds are spread evenly: with weights 2 and 1, the order is A, B, A, A, B, A and so on. With equal weights, the
    kinds take turns. Numbers within a kind have no gaps, because draws are balanced over consecutive numbers.
    """
    order = _order(weights)
    turn, place = divmod(index, len(order))
    kind, number = order[place]
    return kind, turn * dict(weights)[kind] + number


@lru_cache(32)
def _order(weights: Weights) -> tuple[tuple[str, int], ...]:
    """Return one round of all kinds, each with its number within the round."""
    slots = [
        (Fraction(2 * number + 1, 2 * weight), position, kind, number)
        for position, (kind, weight) in enumerate(weights)
        for number in range(weight)
    ]
    return tuple((kind, number) for _, _, kind, number in sorted(slots))
