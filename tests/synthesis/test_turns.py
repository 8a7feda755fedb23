"""The rules for turns, and the texts of reasons."""

import pytest

from fusion_vlm.synthesis.filters.text import normalize, out_of_bounds
from fusion_vlm.synthesis.filters.turns import MAX_CHARACTERS, MAX_TURNS, TurnRules
from fusion_vlm.synthesis.sample import Sample, Turn


def make_sample(*turns: Turn, **fields) -> Sample:
    return Sample(id="a", kind="short_conversation", seed=0, turns=list(turns), **fields)


def rule_of(reason: str | None) -> str | None:
    return None if reason is None else reason.partition(":")[0]


def test_bounds_are_inclusive_and_the_reason_names_value_and_bounds():
    assert out_of_bounds("share", 0.5, 0.5, 0.7) is None
    assert out_of_bounds("share", 0.7, 0.5, 0.7) is None
    assert out_of_bounds("share", 0.71, 0.5, 0.7) == "share: 0.71, expected 0.5 to 0.7"
    assert out_of_bounds("share", 0.4, 0.5, float("inf")) == "share: 0.4, expected at least 0.5"
    assert out_of_bounds("share", 0.8, -float("inf"), 0.7) == "share: 0.8, expected at most 0.7"
    assert out_of_bounds("share", float("nan"), 0.5, 0.7) == "share: nan, expected 0.5 to 0.7"


def test_normalize_ignores_case_punctuation_and_space_but_no_number_or_symbol():
    assert normalize("  A Red,\tball! ") == normalize("a red ball") == "a red ball"
    assert normalize("\uff23\uff41\uff54 \ufb01ne \u2121") == "cat fine tel"  # full-width letters, a ligature, a sign
    assert (
        len({normalize(text) for text in ("3 apples", "4 apples", "3.4 apples", "34 apples", "3 < 4", "3 > 4")}) == 6
    )
    assert normalize("!!!") != normalize("???")


GOOD = Turn("What colour is the ball?", "Red", "colour")


def test_good_turns_pass():
    turns = [
        GOOD,
        Turn("How many balls are there?", "3", "count"),
        Turn("Which shape is it?", "B", "multiple_choice", ["a cube", "a ball"]),
        Turn("Which is larger?", "A", "multiple_choice", ["3", "4", "3 or 4"]),
        Turn("Give a detailed description of the image.", "A red ball lies left of a cube.", "caption"),
        Turn("What does the text above the door say?", "I CAN'T STOP", "text"),
        Turn("Is the text above or below the door?", "The sign reads 'I cannot wait'. It is below.", "text"),
        Turn("Is there a sorry looking dog?", "No, the dog can not be called sorry.", "yes_no"),
    ]
    for turn in turns:
        assert TurnRules()(make_sample(turn)) is None, turn
    assert TurnRules()(make_sample(*turns)) is None


@pytest.mark.parametrize(
    "turn, rule",
    [
        (Turn(" ", "Red", "colour"), "empty"),
        (Turn("What colour?", "\n", "colour"), "empty"),
        (Turn("What?", "x" * 3001, "scene"), "long_answer"),
        (Turn("According to the description, what is red?", "A ball", "colour"), "source_text"),
        (Turn("What does this caption mention?", "A ball", "scene"), "source_text"),
        (Turn("Based on the text above, what is red?", "A ball", "colour"), "source_text"),
        (Turn("What is in the image description?", "A ball", "scene"), "source_text"),
        (Turn("Who made the ball?", "The description does not say.", "scene"), "source_text"),
        (Turn("How old is the dog?", "Its age is not specified.", "scene"), "source_text"),
        (Turn("How old is the dog?", "I cannot tell.", "scene"), "refusal"),
        (Turn("How old is the dog?", "It is a dog. I can\u2019t tell its age.", "scene"), "refusal"),
        (Turn("How old is the dog?", "Well, as an AI language model, I have no eyes.", "scene"), "refusal"),
        (Turn("How old is the dog?", "I'm sorry, but no.", "scene"), "refusal"),
        (Turn("Which?", "C", "multiple_choice", ["red", "blue"]), "letter"),
        (Turn("Which?", "b", "multiple_choice", ["red", "blue"]), "letter"),
        (Turn("Which?", "green", "multiple_choice", ["red", "blue"]), "not_an_option"),
        (Turn("Which?", "AB", "multiple_choice", ["red", "blue"]), "not_an_option"),
        (Turn("Which?", "A", "multiple_choice"), "options"),
        (Turn("Which?", "A", "multiple_choice", ["red"]), "options"),
        (Turn("Which?", "A", "multiple_choice", ["red", "Red."]), "options"),
        (Turn("Which?", "A", "multiple_choice", ["red", " "]), "options"),
    ],
)
def test_a_bad_turn_is_rejected_by_its_rule_also_after_a_good_one(turn, rule):
    for turns in ([turn], [GOOD, turn]):
        assert rule_of(TurnRules()(make_sample(*turns))) == rule


def test_limits_of_turns_are_inclusive():
    turns = [Turn(f"What is number {number}?", "x" * MAX_CHARACTERS, "scene") for number in range(MAX_TURNS)]
    assert (MAX_TURNS, MAX_CHARACTERS) == (8, 3000)
    assert TurnRules()(make_sample(*turns)) is None
    assert TurnRules()(make_sample(*turns, GOOD)) == "turns: 9, expected 1 to 8"
    assert TurnRules()(make_sample()) == "turns: 0, expected 1 to 8"
    turns[0].answer += "x"
    assert TurnRules()(make_sample(*turns)) == "long_answer: 3001 characters, expected at most 3000"


def test_a_question_asked_twice_is_rejected_whatever_its_case_and_punctuation():
    again = Turn("what colour is THE ball", "Blue", "colour")
    assert rule_of(TurnRules()(make_sample(GOOD, again))) == "repeated_question"
    assert TurnRules()(make_sample(GOOD, Turn("What colour is the cube?", "Red", "colour"))) is None


def test_a_reason_is_one_short_line():
    sample = make_sample(Turn("What?", "I cannot.\n" + "word\n" * 500, "scene"))
    reason = TurnRules()(sample)
    assert rule_of(reason) == "refusal" and "\n" not in reason and len(reason) < 150
