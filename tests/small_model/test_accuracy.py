"""What `small_model/accuracy.py` takes a caption to say."""

import pytest

from fusion_vlm.small_model import accuracy


def test_pairs_and_words_of_a_caption_count_once():
    said = accuracy.named_in('The picture shows two red stars, a blue cross and a sign "EXIT".')
    assert said == {"red star", "2 red star", "blue cross", "EXIT"}


def test_another_number_of_the_same_objects_is_another_fact():
    one, other = (accuracy.named_in(f"There are {number} objects: {number} red stars.") for number in ("two", "six"))
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
    assert accuracy.named_in(one) == accuracy.named_in(other)
    assert len(accuracy.named_in(one)) == 3


def test_the_opposite_relation_is_another_one():
    one = accuracy.named_in("A red circle is above a blue star.")
    other = accuracy.named_in("A red circle is below a blue star.")
    assert one & other == {"red circle", "blue star"} and one != other
