"""Kinds with weights: how they are parsed, and which sample an index is."""

from collections import Counter

import pytest

from fusion_vlm.synthesis.kinds.table import KINDS
from fusion_vlm.synthesis.kinds.weights import count_samples, find_sample, parse_weights, reduce_weights


def test_weights_are_parsed_in_any_spelling():
    expected = (("caption_text", 2), ("reasoning", 1))
    for texts in (["caption_text=2", "reasoning"], ["caption_text=2,reasoning"], ["caption_text=4, reasoning=2"]):
        assert parse_weights(texts) == expected
    assert parse_weights(KINDS) == tuple((kind, 1) for kind in KINDS)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["speech"], "'speech', expected some of caption_colour"),
        (["reasoning=0"], "weight of reasoning is '0', expected a whole number from 1"),
        (["reasoning=1.5"], "'1.5'"),
        (["reasoning", "reasoning=2"], "reasoning is given twice"),
        ([""], "'', expected some of"),
    ],
)
def test_wrong_weights_say_what_was_expected(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(texts)


def test_equal_weights_take_turns_as_without_weights():
    weights = tuple((kind, 1) for kind in KINDS)
    for index in range(40):
        number, kind = divmod(index, len(KINDS))
        assert find_sample(index, weights) == (KINDS[kind], number)


def test_kinds_are_spread_evenly_and_numbered_without_gaps():
    weights = reduce_weights([("a", 6), ("b", 2), ("c", 4)])
    assert weights == (("a", 3), ("b", 1), ("c", 2))
    found = [find_sample(index, weights) for index in range(60)]
    for kind, weight in weights:
        numbers = [number for name, number in found if name == kind]
        assert numbers == list(range(10 * weight))
    for start in range(0, 60, 6):
        assert Counter(kind for kind, _ in found[start : start + 6]) == {"a": 3, "b": 1, "c": 2}
    assert "aaa" not in "".join(kind for kind, _ in found)


@pytest.mark.parametrize("num", [0, 1, 5, 6, 17])
def test_samples_are_counted_without_being_made(num):
    weights = (("a", 3), ("b", 1), ("c", 2))
    found = Counter(find_sample(index, weights)[0] for index in range(num))
    assert count_samples(num, weights) == {kind: found[kind] for kind, _ in weights}
