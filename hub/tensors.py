"""Compares the tensors of a checkpoint with those of a model."""

from collections.abc import Mapping
from typing import NamedTuple


class TensorProblems(NamedTuple):
    """Names of tensors that do not fit a model."""

    missing: set[str]
    unexpected: set[str]
    misshapen: set[str]


def compare_tensors(expected: Mapping, found: Mapping) -> TensorProblems:
    """Compare the names and shapes of tensors with those of a model's state dict."""
    misshapen = {name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape}
    return TensorProblems(expected.keys() - found.keys(), found.keys() - expected.keys(), misshapen)
