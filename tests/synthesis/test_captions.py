"""Captions: their sources, the paper's rules at their bounds, deduplication."""

import json
import random
import string

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fusion_vlm.synthesis.filters.captions import (
    FLAGGED_WORDS,
    SCORES,
    TEXT_BOUNDS,
    CaptionRules,
    Deduplicate,
    MinHash,
    alphanumeric_ratio,
    character_repetition_ratio,
    flagged_word_ratio,
    is_special,
    load_flagged_words,
    read_captions,
    special_character_ratio,
    split_words,
    word_repetition_ratio,
)
from fusion_vlm.synthesis.sample import Sample


GOOD = "A red bicycle leans against the left side of a park bench, under an old tree."
WORDS = [f"{first}{second}" for first in "bcdfghjklmnp" for second in ("ab", "ek", "iz", "ost", "und")]


def make_sample(caption: str = GOOD, id: str = "a", **fields) -> Sample:
    return Sample(id=id, kind="caption_scene", seed=0, caption=caption, **fields)


def rule_of(reason: str | None) -> str | None:
    return None if reason is None else reason.partition(":")[0]


def long_text(seed: int, num_words: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=num_words)


# -- sources


def test_captions_are_read_alike_from_text_jsonl_parquet_and_a_dataset(tmp_path):
    captions = ["a red ball", "", "  zwei B\u00e4lle ", "3 apples"]
    (tmp_path / "a.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"caption": text, "n": 1}) for text in captions))
    table = pyarrow.table({"n": [1] * 4, "caption": [captions[0], None, *captions[2:]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "folder" / "train.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet", "folder"):
        source = str(tmp_path / name)
        assert list(read_captions(source)) == [
            ("a red ball", {"captions": source, "row": 0}),
            ("zwei B\u00e4lle", {"captions": source, "row": 2}),
            ("3 apples", {"captions": source, "row": 3}),
        ]


def test_another_column_and_split_can_be_read(tmp_path):
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"of {split}"]}), tmp_path / f"{split}.parquet")
    assert [text for text, _ in read_captions(tmp_path / "test.parquet", column="text")] == ["of test"]
    assert [text for text, _ in read_captions(tmp_path, column="text", split="test")] == ["of test"]
    assert [text for text, _ in read_captions(tmp_path, column="text")] == ["of train"]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    (tmp_path / "a.txt").write_text("a ball\na cube\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"caption": "a ball"}\n', encoding="utf-8-sig")
    assert [text for text, _ in read_captions(tmp_path / "a.txt")] == ["a ball", "a cube"]
    assert [text for text, _ in read_captions(tmp_path / "a.jsonl")] == ["a ball"]


def test_images_beside_the_captions_of_a_dataset_are_not_opened(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}], "caption": ["a ball"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert [text for text, _ in read_captions(tmp_path)] == ["a ball"]


def test_captions_are_read_as_they_are_needed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"caption": "a ball"}\nnot json\n')
    captions = read_captions(tmp_path / "a.jsonl")
    assert next(captions)[0] == "a ball"
    with pytest.raises(ValueError, match="Row 1 of .*a.jsonl is not JSON"):
        next(captions)


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("a.jsonl", b'{"text": "a ball"}', ValueError, r"Row 0 of .* has the columns \['text'\], expected 'caption'"),
        ("a.jsonl", b'["a ball"]', ValueError, "Row 0 of .* has a list, expected 'caption'"),
        ("a.jsonl", b'{"caption": ["a ball"]}', ValueError, "Row 0 of .* has a list in the column 'caption'"),
        ("a.txt", b"a ball\nB\xe4lle\n", ValueError, "Row 1 of .* is not UTF-8"),
        ("a.csv", b"caption\na ball\n", ValueError, "a.csv is none of .txt, .jsonl, .parquet"),
        ("a.txt", None, FileNotFoundError, "a.txt"),
        ("a.parquet", None, FileNotFoundError, "a.parquet"),
    ],
)
def test_a_source_that_cannot_be_read_says_where_and_why(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        list(read_captions(tmp_path / name))


def test_a_missing_column_of_parquet_or_a_dataset_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a ball"]}), tmp_path / "train.parquet")
    for source in (tmp_path / "train.parquet", tmp_path):
        with pytest.raises(ValueError, match=r"has the columns \['text'\], expected 'caption'"):
            list(read_captions(source))


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
    """Rules for captions of the web would reject short exact captions, and scenes may share a caption."""
    caption = "three red cubes"
    assert rule_of(CaptionRules()(make_sample(caption))) == "special_characters"
    deduplicate = Deduplicate()
    for id in ("a", "b"):
        sample = make_sample(caption, id=id, scenes=[{"objects": [{"shape": "cube", "number": id}]}])
        assert CaptionRules()(sample) is None
        assert deduplicate(sample) is None


# -- deduplication


def deduplicated(captions: list[str]) -> list[str | None]:
    deduplicate = Deduplicate()
    return [rule_of(deduplicate(make_sample(caption, id=str(index)))) for index, caption in enumerate(captions)]


def test_the_same_text_and_the_same_normalized_text_are_duplicates():
    captions = [
        "A red ball.",
        "A red ball.",
        "a RED  ball",
        "A red ball on a table",
        "\uff21 red ball!",
        "A red ball.",
    ]
    assert deduplicated(captions) == [
        None,
        "same_text",
        "same_normalised_text",
        None,
        "same_normalised_text",
        "same_text",
    ]


def test_short_texts_that_differ_in_a_number_are_kept():
    captions = [f"{number} apples" for number in range(10)]
    captions += [
        f"{number} apples on a table beside a bowl and a cup, seen from above" for number in (3, 4, "3.5", "35")
    ]
    assert deduplicated(captions) == [None] * 14


def test_the_reason_names_the_first():
    deduplicate = Deduplicate()
    assert deduplicate(make_sample("A ball", id="x")) is None
    assert deduplicate(make_sample("a ball", id="y")) == "same_normalised_text: as x, expected a new one"
    assert deduplicate(make_sample("a ball", id="z")) == "same_normalised_text: as x, expected a new one"


def test_long_texts_that_are_nearly_the_same_are_duplicates(monkeypatch):
    words = long_text(0, num_words=100)
    changed = [*words[:50], "other", *words[51:]]
    half = [*words[:50], *long_text(1, num_words=50)]
    captions = [" ".join(text) for text in (words, changed, half, long_text(2, num_words=100))]
    expected = [None, "nearly_same_text", None, None]
    assert deduplicated(captions) == expected
    for name, value, found in (
        ("MIN_SIMILARITY", 0.99, [None] * 4),
        ("NUM_LONG_WORDS", 101, [None] * 4),
        ("NUM_LONG_WORDS", 100, expected),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"fusion_vlm.synthesis.filters.captions.{name}", value)
            assert deduplicated(captions) == found


def test_a_near_duplicate_that_was_rejected_is_no_first():
    """Otherwise a chain of small changes would reject texts that are unlike all kept ones."""
    words = long_text(0, num_words=100)
    chain = [" ".join([*["new"] * count, *words[count:]]) for count in range(0, 100, 9)]
    assert None in deduplicated(chain)[1:]


def test_deduplication_is_the_same_in_a_run_that_starts_again():
    samples = [make_sample(" ".join(long_text(seed % 7, 55)), id=str(seed)) for seed in range(20)]
    samples += [make_sample(f"{number % 3} apples", id=f"apples{number}") for number in range(9)]
    whole = Deduplicate()
    expected = [whole(sample) for sample in samples]
    assert sum(reason is None for reason in expected) == 7 + 3
    killed = Deduplicate()
    for sample in samples[:13]:
        killed(sample)
    again = Deduplicate()
    assert [again(sample) for sample in samples] == expected
    # A process may see its samples again: none is a duplicate of itself.
    assert [again(sample) for sample in samples] == expected


def test_similarity_is_estimated_within_its_error():
    """Compare with the Jaccard similarity by hand: with one of 100 words changed, 91 of 101 runs are equal."""
    index, errors = MinHash(), []
    for seed in range(30):
        words = long_text(seed, num_words=100)
        changed = [*words[:50], "other", *words[51:]]
        errors.append(float((index.sign(words) == index.sign(changed)).mean()) - 91 / 101)
    assert abs(sum(errors) / 30) < 0.02 and max(map(abs, errors)) < 0.12


def test_signatures_are_the_same_in_every_process():
    """A resumed run has to find the same duplicates; Python's hash of texts differs between processes."""
    assert MinHash().sign(["a", "b", "c", "d", "e", "f"])[:3].tolist() == [4275920, 870795928, 532549697]
