"""
Exact samples: true answers, balance, and the form of every kind.

Answers are compared with a reader of pixels that has only the palette, balance with a model that has only the text.
"""

import io
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.kinds.table import CAPTION_KINDS
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS as KINDS  # without drawn pages: test_documents.py
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.render import PillowRenderer, draw_scene, visible_objects
from fusion_vlm.synthesis.scenes.scene import (
    COLOURS,
    PLACES,
    PLAIN_BACKGROUNDS,
    SHAPES,
    WORDS,
    Scene,
    SceneObject,
    Sign,
)


NUM_TURNS = {"multiple_choice": (1, 3), "short_conversation": (2, 3), "long_conversation": (4, 6)}
NUM_TURNS |= {"contrast_short": (2, 2), "contrast_long": (3, 3), "reasoning": (1, 1), "text_qa": (2, 2)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIDE = 336
WHITE = "white"
COLOUR, SHAPE = f"({'|'.join(COLOURS)})", f"({'|'.join(SHAPES)})"  # regular expressions


def make(index: int, kind: str, seed: int = 0) -> Sample:
    return ExactQuestions()(make_scene_sample(index, kind, seed))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Make 1,000 samples of all kinds, in the order of the command."""
    return [make(index // len(KINDS), KINDS[index % len(KINDS)]) for index in range(1000)]


@pytest.fixture(scope="module")
def many_samples(samples) -> list[Sample]:
    """Make 3,000 samples of all kinds, for statistics."""
    return samples + [make(index // len(KINDS), KINDS[index % len(KINDS)], seed=1) for index in range(2000)]


# The reader of the pixels


@dataclass
class Blob:
    colour: str
    shape: str
    x: float
    y: float
    width: float

    def is_called(self, name: str) -> bool:
        """`red circles`, `circle`, `red objects`, `objects`"""
        words = [re.sub(r"(?<=s)es$|(?<!s)s$", "", word) for word in name.split()]
        return all(word in (self.colour, self.shape, "object") for word in words)


def read_blobs(pixels: np.ndarray) -> list[Blob]:
    """Find connected areas of the exact colors of the palette, in every second pixel."""
    pixels = pixels[::2, ::2]
    height, width = pixels.shape[:2]
    blobs = []
    for colour, rgb in COLOURS.items():
        left = {(int(row), int(column)) for row, column in np.argwhere((pixels == rgb).all(-1))}
        while left:
            stack, area = [left.pop()], []
            while stack:
                row, column = stack.pop()
                area.append((row, column))
                around = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left
                left -= around
                stack += around
            rows, columns = np.array(area).T
            if len(area) > 8:  # less is a blend at an edge
                top, side = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
                box = (np.ptp(columns) + 1) / width
                blobs.append(Blob(colour, shape_of(rows, columns), side / width, top / height, box))
    return blobs


def shape_of(rows: np.ndarray, columns: np.ndarray) -> str:
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    aspect, filled = width / height, len(rows) / (width * height)
    middle = (rows.mean() - rows.min() + 0.5) / height
    if filled > 0.93:
        return "rectangle" if aspect > 1.5 else "square"
    if not 0.45 < middle < 0.58:
        return "triangle" if middle > 0.5 else "heart"
    if filled > 0.7:
        return "oval" if aspect > 1.4 else "circle"
    lengths = np.bincount(rows - rows.min())
    if (np.flatnonzero(lengths == lengths.max()).mean() + 0.5) / height < 0.45:
        return "star"  # the widest row is above the middle
    if not 0.85 < aspect < 1.2:
        return "arrow" if aspect > 1 else "diamond"
    return "cross"


def only(blobs: list[Blob], name: str) -> Blob:
    (found,) = [blob for blob in blobs if blob.is_called(name)]
    return found


def direction(first: Blob, second: Blob) -> str:
    across, down = first.x - second.x, first.y - second.y
    assert max(abs(across), abs(down)) > 2 * min(abs(across), abs(down))
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def solve(question: str, blobs: list[Blob]) -> str | None:
    """Answer in a word, or with None if the question is not about objects."""
    shape, colour = SHAPE, COLOUR
    group = rf"((?:{'|'.join(COLOURS)}|{'|'.join(SHAPES)}|object)(?: (?:{'|'.join(SHAPES)}|object))?(?:es|s)?)"

    def count(name: str) -> int:
        return sum(blob.is_called(name) for blob in blobs)

    def said(truth: bool) -> str:
        return "Yes" if truth else "No"

    if match := re.search(rf"(more|fewer) {group} than {group}", question):
        difference = count(match[2]) - count(match[3])
        if question.startswith("How many"):
            return str(difference)
        return said(difference > 0 if match[1] == "more" else difference < 0)
    if match := re.search(rf"do the {group} outnumber the {group}", question):
        return str(count(match[1]) - count(match[2]))
    if match := re.search(rf"number of {group} in the picture (\d)|exactly (\d) {group}", question):
        return said(count(match[1] or match[4]) == int(match[2] or match[3]))
    if match := re.search(rf"(?:How many|Count the|number of) {group}", question):
        return str(count(match[1]))
    match = re.search(rf"the {shape} .*(left|right|above|below).* the {colour} object\?", question)
    if match and "left, right" not in question:
        return said(direction(only(blobs, match[1]), only(blobs, match[3])) == match[2])
    if match := re.search(rf"the {shape} .*the {colour} object|the {colour} object.* the {shape}", question):
        return direction(only(blobs, match[1] or match[4]), only(blobs, match[2] or match[3]))
    if match := re.search(rf"(?:an?|the) {colour} {shape}|the {colour} object an? {shape}", question):
        return said(count(f"{match[1] or match[3]} {match[2] or match[4]}") == 1)
    if match := re.search(rf"Is the {shape} {colour}\?", question):
        return said(only(blobs, match[1]).colour == match[2])
    if match := re.search(rf"olour .*the {shape}", question):
        return only(blobs, match[1]).colour
    if match := re.search(rf"hape .*the {colour} object", question):
        return only(blobs, match[1]).shape
    return None


def solve_contrast(question: str, left: list[Blob], right: list[Blob], same_background: bool) -> str:
    """Answer a question about both images."""

    def differs(change: str, name: str) -> bool:
        one, other = only(left, name), only(right, name)
        if change == "position":
            return math.dist((one.x, one.y), (other.x, other.y)) > 0.1
        if change == "size":
            return not 0.8 < one.width / other.width < 1.25
        return getattr(one, change) != getattr(other, change)

    if "background" in question and " or " not in question:
        return "Yes" if same_background else "No"
    if "number" in question and " or " not in question:
        return "Yes" if len(left) == len(right) else "No"
    if match := re.search(r"the (\w+)(?: object)? have the same (\w+)|the (\w+) of the (\w+)", question):
        return "No" if differs(match[2] or match[3], match[1] or match[4]) else "Yes"
    (change,) = changes_between(left, right, same_background)
    return change


def changes_between(left: list[Blob], right: list[Blob], same_background: bool) -> list[str]:
    changes = [] if same_background else ["background"]
    changes += ["number"] * (len(left) != len(right))
    for one in left:
        other = next((other for other in right if math.dist((one.x, one.y), (other.x, other.y)) < 0.03), None)
        if other is None:
            changes += ["position"] * any(other.is_called(f"{one.colour} {one.shape}") for other in right)
        else:
            changes += ["colour"] * (one.colour != other.colour) + ["shape"] * (one.shape != other.shape)
            changes += ["size"] * (one.shape == other.shape and not 0.8 < one.width / other.width < 1.25)
    return changes


@cache
def rendered(sample_id: str, seed: int = 0) -> np.ndarray:
    kind, index = sample_id.rsplit("-", 1)
    return np.asarray(PillowRenderer(SIDE)(make_scene_sample(int(index), kind, seed)))


def panels(sample: Sample) -> list[np.ndarray]:
    pixels = rendered(sample.id)
    if len(sample.scenes) == 1:
        return [pixels]
    gap = SIDE // 20
    rows = slice((SIDE + gap) // 2, (SIDE + gap) // 2 + SIDE - gap)
    return [pixels[rows, left : left + SIDE - gap] for left in (gap // 2, SIDE + gap // 2)]


def first_of(samples: list[Sample], kinds, number: int) -> list[Sample]:
    """Select `number` samples of each kind."""
    return [sample for sample in samples if sample.kind in kinds and sample.source["index"] < number]


def test_pixels_show_exactly_the_objects_of_the_scene(samples):
    for sample in first_of(samples, set(KINDS) - {"text_qa", "caption_text"}, 8):
        for pixels, scene in zip(panels(sample), sample.scenes, strict=True):
            blobs = read_blobs(pixels)
            assert len(blobs) == len(scene["objects"]), sample.id
            for thing in scene["objects"]:
                nearest = min(blobs, key=lambda blob: math.dist((blob.x, blob.y), (thing["x"], thing["y"])))
                assert math.dist((nearest.x, nearest.y), (thing["x"], thing["y"])) < 0.03, sample.id
                assert (nearest.colour, nearest.shape) == (thing["colour"], thing["shape"]), sample.id
                assert (nearest.width > 0.125) == (thing["size"] == "large"), sample.id


@pytest.mark.parametrize("kind", ["multiple_choice", "short_conversation", "long_conversation", "reasoning"])
def test_answers_are_true_of_the_pixels(samples, kind):
    solved = Counter()
    for sample in first_of(samples, {kind}, 50):
        blobs = read_blobs(panels(sample)[0])
        for turn in sample.turns:
            expected = solve(turn.question.split("\n")[0], blobs)
            if expected is None:
                assert turn.type in ("scene", "text", "caption", "yes_no") or turn.options or kind == "reasoning"
                continue
            solved[turn.type] += 1
            answer = turn.options["ABCD".index(turn.answer)] if turn.options else turn.answer
            if kind == "long_conversation" and turn.type == "count":
                expected = NUMBERS[int(expected)]
            if kind == "reasoning" and turn.type == "count":
                expected = f"the answer is {expected}."
            assert re.search(rf"\b{expected}(?!\w)", answer), (sample.id, turn)
            if turn.type == "yes_no":
                assert answer.startswith(expected), (sample.id, turn)
    assert sum(solved.values()) >= 25, solved


def test_answers_about_two_images_are_true_of_the_pixels(samples):
    for sample in first_of(samples, {"contrast_short", "contrast_long"}, 25):
        (left, left_pixels), (right, right_pixels) = ((read_blobs(pixels), pixels) for pixels in panels(sample))
        # Between two columns of the grid there is nothing but the background.
        column = round(left_pixels.shape[1] / 3)
        same_background = np.array_equal(left_pixels[:, column], right_pixels[:, column])
        first, second = sample.turns[:2]
        side = left if "left image" in second.question else right
        assert solve(second.question, side) in second.answer, (sample.id, second)
        if first.type == "yes_no" or sample.kind == "contrast_short":
            expected = solve_contrast(first.question.split("\n")[0], left, right, same_background)
            assert first.answer.startswith(expected), (sample.id, first)
        else:
            signs = {"number": "number of objects", "background": "The background", "position": "of the left image"}
            signs |= {"size": r"is (small|large) in", "shape": r"object is an? \w+ in", "colour": rf"is {COLOUR} in"}
            found = [change for change, sign in signs.items() if re.search(sign, first.answer)]
            assert sorted(found) == sorted(changes_between(left, right, same_background)), (sample.id, first)


def test_captions_are_true_of_the_pixels(samples):
    for sample in first_of(samples, {"caption_colour", "caption_count", "caption_spatial", "caption_scene"}, 10):
        blobs = read_blobs(panels(sample)[0])
        answer = sample.turns[0].answer.lower()
        for name, number in Counter(f"{blob.colour} {blob.shape}" for blob in blobs).items():
            word = NUMBERS[number] if number > 1 else "an?"
            assert re.search(rf"\b{word} {name}", answer), (sample.id, answer)
        if sample.kind == "caption_spatial":
            first, relation, second = re.search(
                r"an? (\w+ \w+) is .*?(left|right|above|below).* an? (\w+ \w+)", answer
            ).groups()
            assert direction(only(blobs, first), only(blobs, second)) == relation


def test_signs_show_the_words_of_the_answers(samples):
    """Compare each sign with all words, drawn with matplotlib's copy of the font."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    for sample in first_of(samples, {"text_qa", "caption_text"}, 8):
        pixels = np.asarray(PillowRenderer(SIDE)(sample).convert("L"), dtype=float)
        for sign in sample.scenes[0]["signs"]:
            left, top, right, bottom = (
                round(SIDE * place)
                for place in (sign["x"] - 0.19, sign["y"] - 0.05, sign["x"] + 0.19, sign["y"] + 0.05)
            )
            font = ImageFont.truetype(path, round(sign["width"] * 121), layout_engine=ImageFont.Layout.BASIC)
            distances = {}
            for word in WORDS:
                drawn = Image.new("L", (2 * (right - left), 2 * (bottom - top)), 255)
                middle = (2 * (sign["x"] * SIDE - left), 2 * (sign["y"] * SIDE - top))
                ImageDraw.Draw(drawn).text(middle, word, fill=28, font=font, anchor="mm")
                seen = np.asarray(drawn.reduce(2), dtype=float) - pixels[top:bottom, left:right]
                distances[word] = np.abs(seen).mean()
            assert min(distances, key=distances.get) == sign["word"], sample.id
        for turn in sample.turns:
            words = re.findall(r"\b[A-Z]{2,}\b", turn.answer.replace("-", ""))
            assert set(words) <= {sign["word"] for sign in sample.scenes[0]["signs"]}, sample.id


@pytest.mark.parametrize("background", [*PLAIN_BACKGROUNDS, *PLACES])
def test_backgrounds_are_far_from_the_colours_of_objects(background):
    pixels = np.asarray(draw_scene(Scene(background), 128), dtype=int)
    distances = [np.linalg.norm(pixels - rgb, axis=-1).min() for rgb in COLOURS.values()]
    assert min(distances) > 90


# What can be seen


def test_visible_objects():
    circle = SceneObject("circle", "red", "large", 0.5, 0.5)
    assert visible_objects(Scene(WHITE, [circle])) == [circle]
    beside = replace(circle, colour="blue", x=0.8)
    assert visible_objects(Scene(WHITE, [circle, beside])) == [circle, beside]
    # A small object behind, a large one that is partly covered, and one that the border cuts off.
    assert visible_objects(Scene(WHITE, [replace(circle, size="small"), circle])) == [circle]
    assert visible_objects(Scene(WHITE, [replace(beside, x=0.65), circle])) == [circle]
    assert visible_objects(Scene(WHITE, [replace(circle, x=0.97)])) == []
    # A sign hides objects, too.
    sign = Sign("CAT", 0.5, 0.5, 0.6)
    assert visible_objects(Scene(WHITE, [circle], [sign])) == [sign]


def test_samples_with_hidden_objects_are_rejected():
    sample = make_scene_sample(5, "short_conversation", 0)
    assert ExactQuestions()(Sample.from_dict(sample.to_dict())).reason is None
    first, second = sample.scenes[0]["objects"][:2]
    second |= {"x": first["x"], "y": first["y"], "size": "large"}
    sample = ExactQuestions()(sample)
    assert sample.reason.startswith("exact_questions/hidden: ") and sample.turns == []


def test_all_random_scenes_are_fully_visible(many_samples):
    assert [sample.id for sample in many_samples if sample.reason] == []


# The same every time


def test_same_seed_same_bytes_and_other_seed_other_bytes():
    def encode(index: int, kind: str, seed: int) -> tuple[str, bytes]:
        sample = make(index, kind, seed)
        stream = io.BytesIO()
        PillowRenderer(128)(sample).save(stream, "png")
        return json.dumps(sample.to_dict()), stream.getvalue()

    for kind in KINDS:
        expected = encode(3, kind, seed=7)
        encode(4, kind, seed=7)  # what is made in between does not matter
        assert encode(3, kind, seed=7) == expected
        others = [encode(3, kind, seed=8), encode(4, kind, seed=7)]
        assert all(other[0] != expected[0] and other[1] != expected[1] for other in others), kind


def test_questions_are_the_same_after_json():
    for kind in KINDS:
        sample = make_scene_sample(2, kind, 0)
        restored = Sample.from_dict(json.loads(json.dumps(sample.to_dict())))
        assert ExactQuestions()(restored) == ExactQuestions()(sample)


# Balance


def shares(answers: list[str]) -> dict[str, float]:
    return {answer: number / len(answers) for answer, number in Counter(answers).items()}


def answers_of(samples: list[Sample], type: str) -> list[str]:
    return [turn.answer for sample in samples for turn in sample.turns if turn.type == type]


def test_yes_and_no_letters_and_counts_are_balanced(samples):
    def yes(answers: list[str]) -> float:
        return sum(answer.startswith("Yes") for answer in answers) / len(answers)

    yes_no = answers_of(samples, "yes_no")
    assert len(yes_no) > 300 and 0.45 <= yes(yes_no) <= 0.55
    for kind in ("short_conversation", "long_conversation", "contrast_short", "reasoning", "text_qa"):
        assert 0.4 <= yes(answers_of([sample for sample in samples if sample.kind == kind], "yes_no")) <= 0.6, kind
    letters = shares(answers_of(samples, "multiple_choice"))
    assert sorted(letters) == list("ABCD") and max(letters.values()) < 0.27
    counts = shares([answer for answer in answers_of(samples, "count") if answer.isdecimal()])
    assert sorted(counts) == list("123456") and max(counts.values()) < 0.3 and min(counts.values()) > 0.05


def test_words_of_yes_no_questions_do_not_give_the_answer(many_samples):
    """Each wording is answered by yes as often as by no."""
    claims = rf"\b({'|'.join([*COLOURS, *SHAPES, 'object'])})(es|s)?\b|\d|\"[A-Z]+\"|{'|'.join(PLACES)}"
    answers = defaultdict(list)
    for sample in many_samples:
        for turn in sample.turns:
            if turn.type == "yes_no":
                answers[re.sub(claims, "*", turn.question.split("\n")[0])].append(turn.answer.startswith("Yes"))
    for wording, truths in answers.items():
        deviation = abs(sum(truths) - len(truths) / 2) / math.sqrt(len(truths) / 4)
        assert deviation < 3.7, (wording, len(truths), sum(truths))


def language_only_gain(pairs: list[tuple[str, str]]) -> float:
    """
    Compute how much better than the most frequent answer a language-only model is.

    The model is naive Bayes from words and word pairs of a text to the answer, cross-validated.
    """
    features = [set(words) | set(zip(words, words[1:], strict=False)) for words in (text.split() for text, _ in pairs)]
    answers = [answer for _, answer in pairs]
    right = 0
    for fold in range(3):
        labels, seen = Counter(), defaultdict(Counter)
        for index, (words, answer) in enumerate(zip(features, answers, strict=True)):
            if index * 3 // len(pairs) != fold:
                labels[answer] += 1
                seen[answer].update(words)
        for index, words in enumerate(features):
            if index * 3 // len(pairs) == fold:
                scores = {
                    answer: math.log(total)
                    + sum(math.log((seen[answer][word] + 0.1) / (total + 0.2)) for word in words)
                    for answer, total in labels.items()
                }
                right += max(scores, key=scores.get) == answers[index]
    return (right - max(Counter(answers).values())) / len(pairs)


# Answers in sentences are reduced to a word, as nearly all sentences differ.
VALUES = {"count": [*"123456", *NUMBERS[1:]], "colour": COLOURS, "shape": SHAPES, "scene": PLACES}
VALUES |= {"spatial": ("left", "right", "above", "below"), "yes_no": ("Yes", "No")}


def value_of(turn) -> str:
    found = [value for value in VALUES.get(turn.type, ()) if re.search(rf"\b{value}\b", turn.answer)]
    if turn.type == "yes_no" or len(found) == 1:
        return str(NUMBERS.index(found[0])) if found[0] in NUMBERS else found[0]
    return turn.answer


@pytest.mark.parametrize("with_context", [False, True])
def test_language_alone_does_not_tell_the_answer(many_samples, with_context):
    pairs = defaultdict(list)
    for sample in many_samples:
        context = ""
        for turn in sample.turns:
            if sample.kind != "reasoning" or turn.type == "yes_no":
                pairs[turn.type].append((context + turn.question, value_of(turn)))
            if with_context:
                context += f"{turn.question} {turn.answer} "
    del pairs["caption"], pairs["text"]  # nearly all different
    assert set(pairs) == {*VALUES, "multiple_choice", "difference"}
    gains = {type: round(language_only_gain(found), 3) for type, found in pairs.items()}
    assert max(gains.values()) <= 0.05, gains


def test_number_of_all_objects_does_not_tell_that_of_the_group():
    """Guess the group from it alone: a sixth is right by chance. With two other objects always, all were right."""
    numbers = defaultdict(Counter)
    for index in range(1200):
        scene = Scene.from_dict(make_scene_sample(index, "short_conversation", 0).scenes[0])
        numbers[len(scene.objects)][len(scene.members(scene.groups[0]))] += 1
    assert sum(max(each.values()) for each in numbers.values()) / 1200 <= 0.42


def test_no_caption_or_sentence_or_word_is_common(many_samples):
    """Answers that are all different cannot be guessed from the text alone."""
    for type in ("caption", "text", "count", "colour", "shape", "spatial", "difference"):
        answers = answers_of(many_samples, type)
        if type not in ("caption", "text"):
            answers = [answer for answer in answers if len(answer.split()) > 3]
        assert max(shares(answers).values()) < 0.05, type


def test_colours_and_shapes_are_independent(many_samples):
    pairs = Counter(
        (thing["colour"], thing["shape"]) for s in many_samples for scene in s.scenes for thing in scene["objects"]
    )
    expected = sum(pairs.values()) / (len(COLOURS) * len(SHAPES))
    assert len(pairs) == len(COLOURS) * len(SHAPES)
    assert all(0.6 * expected < number < 1.5 * expected for number in pairs.values())


# Form


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_a_kind(samples, kind):
    fewest, most = NUM_TURNS.get(kind, (1, 1))
    for sample in first_of(samples, {kind}, 100):
        assert sample.id == f"{kind}-{sample.source['index']:07}" and sample.kind == kind
        assert sample.caption and sample.description and len(sample.scenes) == (2 if "contrast" in kind else 1)
        assert fewest <= len(sample.turns) <= most
        assert all(turn.question and turn.answer and turn.type for turn in sample.turns)
        assert "<image>" not in "".join(turn.question + turn.answer for turn in sample.turns)
        for turn in sample.turns:
            assert (turn.type == "multiple_choice") == (kind == "multiple_choice") == bool(turn.options)
            assert (turn.type == "caption") == (kind in CAPTION_KINDS) or "long" in kind
            if turn.options:
                assert turn.answer in "ABCD" and len(set(turn.options)) == len(turn.options) == 4
                listed = [f"{letter}. {option}" for letter, option in zip("ABCD", turn.options, strict=True)]
                assert "\n".join(listed) in turn.question
            elif "short" in kind or kind == "text_qa":
                assert len(turn.answer.split()) <= 3
            elif kind != "multiple_choice":
                assert turn.answer.endswith(".") and turn.answer[0].isupper()


def test_kinds_use_all_their_types_of_questions(samples):
    types = defaultdict(set)
    for sample in samples:
        types[sample.kind] |= {turn.type for turn in sample.turns}
    facts = {"count", "colour", "shape", "spatial", "scene", "yes_no"}
    assert types["short_conversation"] == facts and types["long_conversation"] == facts | {"caption"}
    assert types["contrast_short"] == {"difference", "yes_no", "colour", "shape"}
    assert types["reasoning"] == {"count", "yes_no", "colour", "shape"} and types["text_qa"] == {"text", "yes_no"}


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="'captions', expected one of caption_colour"):
        make_scene_sample(0, "captions", 0)
    sample = Sample("a-1", "multiple_choice", 0, description="A dog.")
    with pytest.raises(ValueError, match="a-1 has no scene"):
        ExactQuestions()(sample)
    with pytest.raises(ValueError, match="a-1 has 0 scenes, expected one or two"):
        PillowRenderer()(sample)
    with pytest.raises(ValueError, match="40 pixels, expected at least 128"):
        PillowRenderer(40)
