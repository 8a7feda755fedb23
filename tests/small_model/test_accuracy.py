"""The facts that `small_model/accuracy.py` reads from a caption."""

import pytest

from fusion_vlm.small_model import accuracy


def test_pairs_and_words_of_a_caption_count_once():
    said = accuracy.read_facts('The picture shows two red stars, a blue cross and a sign "EXIT".')
    assert said == {"red star", "2 red star", "blue cross", "EXIT"}


def test_another_number_of_the_same_objects_is_another_fact():
    one, other = (accuracy.read_facts(f"There are {number} objects: {number} red stars.") for number in ("two", "six"))
    assert one & other == {"red star"} and one != other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "A red circle is to the right of a blue star.",
            "Here, a blue star is to the left of a red circle.",
        ),
        ("An orange cross is below a blue star.", "A blue star is above an orange cross."),
    ],
)
def test_a_relation_is_the_same_from_both_sides(one, other):
    assert accuracy.read_facts(one) == accuracy.read_facts(other)
    assert len(accuracy.read_facts(one)) == 3


def test_the_opposite_relation_is_another_one():
    one = accuracy.read_facts("A red circle is above a blue star.")
    other = accuracy.read_facts("A red circle is below a blue star.")
    assert one & other == {"red circle", "blue star"} and one != other
