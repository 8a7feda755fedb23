"""The paper's rules for captions: their measures, also those of Data-Juicer, and their bounds."""

import json
import random
import string

import pytest

from fusion_vlm.synthesis.filters.captions import (
    FLAGGED_WORDS,
    SCORES,
    TEXT_BOUNDS,
    CaptionRules,
    alphanumeric_ratio,
    character_repetition_ratio,
    flagged_word_ratio,
    is_special,
    load_flagged_words,
    special_character_ratio,
    split_words,
    word_repetition_ratio,
)
from fusion_vlm.synthesis.sample import Sample

from ..helpers import FIXTURES


GOOD = "A red bicycle leans against the left side of a park bench, under an old tree."
WORDS = [f"{first}{second}" for first in "bcdfghjklmnp" for second in ("ab", "ek", "iz", "ost", "und")]


def make_sample(caption: str = GOOD, id: str = "a", **fields) -> Sample:
    return Sample(id=id, kind="caption_scene", seed=0, caption=caption, **fields)


def rule_of(reason: str | None) -> str | None:
    return None if reason is None else reason.partition(":")[0]


# -- the rules' measures, by hand


def test_alphanumeric_ratio_counts_letters_and_digits_of_any_script():
    assert alphanumeric_ratio("abc 123!") == 6 / 8
    assert alphanumeric_ratio("\u00e9\u4e00.") == 2 / 3
    assert alphanumeric_ratio("") == 0


def test_special_characters_are_all_but_letters():
    assert special_character_ratio("3 apples") == 2 / 8  # the digit and the space
    assert special_character_ratio("a\u00e9\u4e00 \u201c\U0001f600") == 3 / 6  # the space, a quotation mark, an emoji
    assert special_character_ratio("") == 0
    ascii_special = string.punctuation + string.digits + string.whitespace
    assert {character for character in string.printable if is_special(character)} == set(ascii_special)


def test_character_repetition_ratio_is_that_of_the_most_frequent_pieces():
    assert character_repetition_ratio("a" * 9) == 0  # no piece of 10 characters
    assert character_repetition_ratio(string.ascii_lowercase) == 0  # 17 pieces, none twice
    assert character_repetition_ratio("a" * 12) == 1  # one piece, 3 times
    # 20 + 5 characters: 16 pieces, abcdefghij twice, 15 different ones: 1 repeats, isqrt(15) = 3 would be allowed.
    assert character_repetition_ratio("abcdefghijABCDEabcdefghij") == 2 / 16
    # Period 10: 21 pieces, 10 different, one 3 times and nine twice; of those only isqrt(10) = 3 count: 3 + 2 + 2
    assert character_repetition_ratio("abcdefghij" * 3) == 7 / 21


def test_word_repetition_ratio_is_that_of_runs_that_come_again():
    words = string.ascii_lowercase[:10]
    assert word_repetition_ratio(" ".join(words[:9])) == 0
    assert word_repetition_ratio(" ".join(words)) == 0
    # 21 words: 12 runs, the first and the last are the same, whatever their case and punctuation.
    assert word_repetition_ratio(" ".join(words) + " x " + ", ".join(words).upper() + ".") == 2 / 12


def test_words_are_lower_case_without_special_characters_at_their_ends():
    assert split_words('A "Red"\tball,\n3 apples; it\'s  T-shirt (new)!') == (
        ["a", "red", "ball", "apples", "it's", "t-shirt", "new"]
    )
    assert split_words(" 3 - 4 !") == []


def test_flagged_words_are_found_whole_and_in_any_case():
    words = frozenset({"bad"})
    assert flagged_word_ratio("A BAD, bad day", words) == 2 / 4
    assert flagged_word_ratio("A badge", words) == 0
    assert flagged_word_ratio("", words) == 0


def test_the_list_of_flagged_words_can_match():
    """Check that `split_words` returns each word as it is; other words would never be found."""
    words = load_flagged_words()
    assert 50 < len(words) < 300
    assert all(split_words(word) == [word] for word in words)
    lines = [line for line in FLAGGED_WORDS.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(words)
    innocent = (
        "a nude in a museum, a cock and a tit in the grass, a naked tree, a shot glass, an escort car, black people"
    )
    assert flagged_word_ratio(innocent, words) == 0


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("alphanumeric", alphanumeric_ratio),
        ("special_characters", special_character_ratio),
        ("character_repetition", character_repetition_ratio),
        ("word_repetition", word_repetition_ratio),
        ("flagged_words", lambda text: flagged_word_ratio(text, frozenset({"bad"}))),
    ],
)
def test_measures_equal_those_that_data_juicer_gave(name, measure):
    """The package itself does not import as it is installed; tests/fixtures/README.md says how this was recorded."""
    rows = json.loads((FIXTURES / "data_juicer.json").read_text())
    assert len({row[name] for row in rows}) > 2
    for row in rows:
        assert measure(row["text"]) == row[name], row["text"]


# -- the rules


def test_bounds_are_those_of_the_paper():
    infinity = float("inf")
    assert CaptionRules().bounds == {
        "alphanumeric": (0.60, infinity),
        "character_repetition": (-infinity, 0.09373663),
        "special_characters": (0.16534802, 0.42023757),
        "word_repetition": (-infinity, 0.03085751),
        "flagged_words": (-infinity, 0.0),
    }


def test_a_good_caption_passes_and_a_bad_one_names_its_rule():
    repeated = " ".join(WORDS[:14])
    flagged = next(iter(load_flagged_words()))
    for caption, rule in [
        (GOOD, None),
        ("3 apples", None),
        ("", "alphanumeric"),
        ("*** $$$ --- buy now", "alphanumeric"),
        ("ha" * 20 + " she laughs again and again", "character_repetition"),
        ("threeredcubes", "special_characters"),
        ("a red sign: 0123456789876", "special_characters"),
        (GOOD + f" {flagged}", "flagged_words"),
    ]:
        assert rule_of(CaptionRules()(make_sample(caption))) == rule, caption
    # Repeated words are repeated characters too, so the rule for characters must not apply.
    rules = CaptionRules(bounds=[("character_repetition", None, None)])
    assert rule_of(rules(make_sample(f"{repeated}. {repeated}."))) == "word_repetition"


def letters_and_digits(num_letters: int, num_digits: int, num_spaces: int = 0) -> str:
    """Make a text of so many letters, digits and spaces, in which no piece repeats."""
    rng = random.Random(0)
    kinds = [string.ascii_letters] * num_letters + [string.digits] * num_digits + [" "] * num_spaces
    rng.shuffle(kinds)
    return "".join(map(rng.choice, kinds))


def repeated_ends(units: list[str], num_units: int) -> list[str]:
    """Repeat the first 10 units at the end; nothing else repeats."""
    return units[: num_units - 10] + units[:10]


@pytest.mark.parametrize(
    "rule, inside, outside",
    [
        ("alphanumeric", letters_and_digits(60, 0, 40), letters_and_digits(59, 0, 40)),
        ("special_characters", letters_and_digits(106, 21), letters_and_digits(101, 20)),  # 0.165354, 0.165289
        ("special_characters", letters_and_digits(69, 50), letters_and_digits(40, 29)),  # 0.420168, 0.420290
        # 2 of 22 pieces, 2 of 21
        ("character_repetition", *("".join(repeated_ends([*string.ascii_letters], size)) for size in (31, 30))),
        # 2 of 65 runs, 2 of 64
        (
            "word_repetition",
            *(
                " ".join(repeated_ends([f"{a}{b}" for a in "abcdefghi" for b in "klmnopqrs"], size))
                for size in (74, 73)
            ),
        ),
    ],
)
def test_ratios_just_inside_of_the_paper_s_bounds_pass_and_just_outside_fail(rule, inside, outside):
    others = [(name, -1.0, 2.0) for name in TEXT_BOUNDS if name != rule]
    assert CaptionRules(bounds=others)(make_sample(inside)) is None
    assert rule_of(CaptionRules(bounds=others)(make_sample(outside))) == rule


def test_scorers_that_are_not_there_are_recorded_as_such():
    sample = make_sample()
    assert CaptionRules()(sample) is None
    names = ["caption_perplexity", "caption_image_text_matching", "caption_image_text_similarity"]
    assert sample.scores == dict.fromkeys(names)
    assert names == [f"caption_{name}" for name in SCORES["caption"]]


def test_descriptions_have_the_same_rules_without_the_image_text_scores():
    sample = make_sample("", description=GOOD)
    rules = CaptionRules("description")
    assert rules(sample) is None and sample.scores == {"description_perplexity": None}
    assert rule_of(rules(make_sample(GOOD, description="*** $$$"))) == "alphanumeric"


def test_an_open_bound_bounds_nothing():
    rules = CaptionRules(bounds=[("special_characters", None, 0.5)])
    assert rules(make_sample("threeredcubes")) is None
    assert rule_of(rules(make_sample("a1b2c3d4e5!"))) == "special_characters"


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="`text_field` is 'turns'"):
        CaptionRules("turns")
    with pytest.raises(ValueError, match="bounds for 'perplexity', expected for some of alphanumeric, "):
        CaptionRules(bounds=[("perplexity", 0, 1)])


def test_a_sample_of_the_scene_grammar_passes_through():
    """Rules for captions of the web would reject short exact captions."""
    caption = "three red cubes"
    assert rule_of(CaptionRules()(make_sample(caption))) == "special_characters"
    assert CaptionRules()(make_sample(caption, scenes=[{"objects": [{"shape": "cube"}]}])) is None
