"""The bias audit: it finds planted biases in sets of any form, and passes balanced sets."""

import json
import random
import time
from math import comb
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from fusion_vlm.audit.audit import audit, read_rows
from fusion_vlm.audit.images import audit_images, find_near_duplicates
from fusion_vlm.audit.language_only import tail
from fusion_vlm.audit.questions import find_attributes, read_question
from fusion_vlm.audit.thresholds import THRESHOLDS, parse_limits
from fusion_vlm.commands.main import main


OBJECTS = ["ball", "cube", "cone", "dog", "car", "tree", "mug", "star"]
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


def ask_object(rng: random.Random) -> tuple[str, str]:
    question = f"Is there a {rng.choice(COLOURS)} {rng.choice(OBJECTS)} in the picture?"
    return question, rng.choice(["Yes.", "yes", "Yes, there is.", "No.", "NO", "No, there is not."])


def ask_colour(rng: random.Random) -> tuple[str, str]:
    thing, colour = rng.choice(OBJECTS), rng.choice(COLOURS)
    return f"What color is the {thing}?", rng.choice([colour.capitalize(), f"The {thing} is {colour}."])


def ask_count(rng: random.Random) -> tuple[str, str]:
    return f"How many {rng.choice(OBJECTS)}s are there?", rng.choice(["1", "Two.", "three", "There are 4.", "5"])


def ask_options(rng: random.Random) -> tuple[str, str]:
    options, place = rng.sample(COLOURS, 4), rng.randrange(4)
    return list_options(f"Which color does the {rng.choice(OBJECTS)} have?", options), "ABCD"[place]


def ask_side(rng: random.Random) -> tuple[str, str]:
    question = f"Is the {rng.choice(OBJECTS)} to the left or to the right of the {rng.choice(OBJECTS)}?"
    return question, rng.choice(["Left.", "left", "Right", "To the right."])


ASK = [ask_object, ask_colour, ask_count, ask_options, ask_side]


def list_options(question: str, options: list[str]) -> str:
    return question + "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))


def make_row(index: int, turns: list[tuple[str, str]]) -> dict:
    turns = [(("" if number else "<image>\n") + question, answer) for number, (question, answer) in enumerate(turns)]
    said = [{"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": str(index), "image": f"{index}.png", "conversations": said}


def make_rows(num_rows: int, num_turns: int = 1, change=lambda rng, turn, asked: asked, seed: int = 0) -> list[dict]:
    """Make balanced questions of all forms, changed by `change(generator, turn, (question, answer))`."""
    rng = random.Random(seed)
    return [
        make_row(index, [change(rng, turn, rng.choice(ASK)(rng)) for turn in range(num_turns)])
        for index in range(num_rows)
    ]


def failed_thresholds(rows: list[dict]) -> set[str]:
    return {finding.threshold for finding in audit(rows).failed}


# Planted biases: functions of a generator, the turn, and question and answer there.


def always_yes_for_dogs(rng, turn, asked):
    """Answer yes for dogs; cars and trees balance yes and no."""
    question, answer = asked
    if question.startswith("Is there"):
        answer = "Yes, it is." if "dog" in question else "no" if "car" in question else answer
    return question, answer


def prefer_letter_b(rng, turn, asked):
    question, answer = asked
    return question, rng.choice(["B.", "b", "(B)", "The answer is B."]) if "\nA." in question and turn == 0 else answer


def red_balls(rng, turn, asked):
    question, answer = asked
    if question.startswith("What color is the ball"):
        answer = rng.choice(["red", "Red.", "The ball is red."])
    return question.replace("ball in", "cube in").replace("ball have", "cube have"), answer


def red_balls_in_captions(rng, turn, asked):
    one, other = rng.sample(OBJECTS, 2)
    colours = {thing: "red" if thing == "ball" else rng.choice(COLOURS) for thing in OBJECTS}
    return "Describe the image.", f"A {colours[one]} {one} is beside a small {colours[other]} {other}."


def red_balls_in_options(rng, turn, asked):
    if "\nA." not in asked[0] or "ball" not in asked[0]:
        return asked
    options = ["red", *rng.sample(COLOURS[1:], 3)]
    rng.shuffle(options)
    return list_options("Which color does the ball have?", options), "ABCD"[options.index("red")]


def mostly_two(rng, turn, asked):
    question, answer = asked
    if question.startswith("How many") and rng.random() < 0.6:
        answer = rng.choice(["2", "two", "There are two.", "Two of them"])
    return question, answer


def leaking_template(rng, turn, asked):
    """Balance the answers, but use one wording for yes and another for no."""
    question, answer = asked
    if question.startswith("Is there") and answer.lower().startswith("no"):
        question = question.replace("Is there", "Do you see")
    return question, answer


def exact_pairs(rng, turn, asked):
    """Balance each word, but give the answer away by the whole question."""
    thing, colour = rng.choice(["ball", "cube"]), rng.choice(["red", "blue"])
    return f"Is the {thing} of this picture {colour}?", "yes" if (thing == "ball") == (colour == "red") else "no"


def longest_option(rng, turn, asked):
    options, place = [f"thing of kind {rng.randrange(90)}" for _ in range(4)], rng.randrange(4)
    options[place] += " with a few more words"
    return list_options("What is shown?", options), "ABCD"[place]


def left_is_first(rng, turn, asked):
    question, answer = asked
    return question, "The left one." if " or to the right" in question and rng.random() < 0.8 else answer


@pytest.mark.parametrize(
    ("plant", "threshold"),
    [
        (always_yes_for_dogs, "yes_no"),
        (prefer_letter_b, "max_letter"),
        (red_balls, "co_occurrence"),
        (red_balls_in_captions, "co_occurrence"),
        (red_balls_in_options, "co_occurrence"),
        (mostly_two, "max_count"),
        (leaking_template, "language_only_gain"),
        (exact_pairs, "language_only_gain"),
        (longest_option, "language_only_gain"),
        (left_is_first, "majority"),
    ],
)
def test_plant_is_found(plant, threshold):
    assert threshold in failed_thresholds(make_rows(1000, change=plant))


def test_only_the_biased_type_fails():
    report = audit(make_rows(1000, change=mostly_two))
    assert {finding.group.split()[0] for finding in report.failed} == {"count"}


def test_bias_of_second_turns_is_found():
    def change(rng, turn, asked):
        """Answer yes in second turns, and balance by the others."""
        question, answer = asked
        is_closed = question.startswith("Is there")
        return question, rng.choice(["Yes", "yes"] if turn == 1 else ["no", "No.", "Yes"]) if is_closed else answer

    report = audit(make_rows(600, num_turns=3, change=change))
    assert report.verdict("yes_no") == "FAILED"
    assert "yes_no (turn 2)" in {finding.group for finding in report.failed}


def test_leak_in_second_turns_is_found():
    def change(rng, turn, asked):
        return leaking_template(rng, turn, asked) if turn == 1 else asked

    report = audit(make_rows(800, num_turns=3, change=change))
    assert "yes_no (turn 2)" in {item.group for item in report.failed if item.threshold == "language_only_gain"}


@pytest.mark.parametrize(("num_rows", "num_turns"), [(150, 1), (600, 2), (3000, 1)])
def test_balanced_sets_pass(num_rows, num_turns):
    for seed in range(4):
        report = audit(make_rows(num_rows, num_turns, seed=seed))
        assert not report.failed, report.verdicts()


def test_declared_types_are_used_but_not_trusted_with_the_form():
    turns = [("Is the ball red?", "Yes"), ("Which one is it?", "the ball")]
    rows = [{**make_row(0, turns), "question_types": ["colour", "shape"]}]
    assert {group.name for group in audit(rows).types} == {"colour: yes_no", "shape"}
    rows[0]["conversations"][1]["type"] = "yes_no"
    assert {group.name for group in audit(rows).types} == {"yes_no", "shape"}
    rows = [{**make_row(0, [("How many?", "2")]), "type": "conv"}]  # of the row, not of its question
    assert {group.name for group in audit(rows).types} == {"count"}


@pytest.mark.parametrize(
    ("question", "answer", "expected_type", "expected_answer"),
    [
        ("Is there a dog?", "Yes, it is.", "yes_no", "yes"),
        ("Are there people?", "There aren't any.", "yes_no", "no"),
        ("Does it show more cats than dogs? Why, or why not?", "No: there are two.", "yes_no", "no"),
        ("What does the sign say?", "No parking", "text", "no parking"),
        ("How many dogs are there?", "There are two dogs.", "count", "2"),
        ("How many dogs are there?", "None.", "count", "0"),
        ("How many more dogs than cats? Explain.", "There are 3 and 1. 3 - 1 = 2, so the answer is 2.", "count", "2"),
        ("Give me the quantity of dogs", "Seven", "count", "7"),
        ("What shade has it?", "Dark grey.", "colour", "gray"),
        ("What colour is the ball?", "It is GREY!", "colour", "gray"),
        ("Where is the ball?", "On the left.", "spatial", "left"),
        ("What animal is this?", "A cat.", "animal", "cat"),
        ("What is it?\nAnswer the question using a single word or phrase.", "cat", "other", "cat"),
        ("Is it a cat or a dog?", "It's a dog.", "either_or", "choice -1"),
        ("In the picture, is it red, green or blue?", "Green", "either_or", "choice -2"),
        ("Is it left of the cube or right of the cube?", "Left of the cube.", "either_or", "choice -2"),
        ("Which?\n(a) cat (b) dog", "b)", "multiple_choice", "B"),
        ("Which? A. cat B. dog C. a fox", "The correct answer is option C.", "multiple_choice", "C"),
        ("Which?\nA: red ball\nB: cube\nAnswer with a letter.", "A red ball", "multiple_choice", "A"),
        ("Which?\nA) cat\nB) red ball", "The answer is a red ball.", "multiple_choice", "B"),
        ("At 7 a.m., is it dark?", "no", "yes_no", "no"),
    ],
)
def test_types_and_answers_are_read_from_the_text(question, answer, expected_type, expected_answer):
    read = read_question(question, answer)
    assert (read.type, read.answer) == (expected_type, expected_answer)


def test_sentences_count_as_the_short_answers_in_them():
    sentences = ["It shows a night sky there.", "A Night Sky!", "night sky", "Night sky", "the scene is a beach today"]
    rows = [make_row(index, [("What place is shown?", answer)]) for index, answer in enumerate(sentences)]
    assert audit(rows).overall.answers[0] == ("night sky", 4)


@pytest.mark.parametrize(
    ("question", "answer", "pairs"),
    [
        ("Is there a red ball?", "yes", {("red", "ball")}),
        ("Is there a red ball?", "no", set()),
        ("Is the ball red?", "Yes.", {("red", "ball")}),
        ("Is the ball red or blue?", "Blue", {("blue", "ball")}),
        ("What color are the small balls?", "Red.", {("red", "ball"), ("small", "ball")}),
        ("Which colour does the ball have?\nA. red\nB. blue", "B", {("blue", "ball")}),
        ("How many red balls are there?", "0", set()),
        ("Describe it.", "The ball is red. There is no blue cube.", {("red", "ball")}),
    ],
)
def test_what_is_said_of_objects(question, answer, pairs):
    assert find_attributes(read_question(question, answer)) == pairs


def test_numbers_of_the_report():
    rows = [make_row(i, [("Is it a cat?", "yes" if i < 12 else "No.")]) for i in range(16)]
    rows += [make_row(20 + i, [(list_options("Which?", ["x", "y", "z"]), "AABC"[i])]) for i in range(4)]
    report = audit([*rows, {"id": "empty"}, "text"])
    assert (report.num_rows, report.num_skipped, report.num_questions) == (22, 2, 20)
    closed, lettered = report.types
    assert (closed.majority, closed.yes_share, closed.yes_no) == (0.75, 0.75, {"yes": 12, "no": 4})
    assert closed.entropy == pytest.approx(0.811278, abs=1e-6)
    assert (lettered.letters, lettered.expected_letter) == ({"A": 2, "B": 1, "C": 1}, pytest.approx(1 / 3))
    assert json.loads(json.dumps(report.to_dict()))["types"][0]["yes_share"] == 0.75


def test_language_only_accuracy_is_that_of_held_out_questions():
    """Questions that all differ tell nothing about each other; a wording with one answer tells all."""
    rng = random.Random(0)
    rows = [make_row(i, [(f"Is number {i} here?", rng.choice(["yes", "no"]))]) for i in range(400)]
    model = audit(rows).types[0].language_only
    assert abs(model.accuracy - 0.5) < 0.08
    rows = [
        make_row(i, [(f"Is number {i} {'there' if i % 2 else 'here'}?", ["no", "yes"][i % 2])]) for i in range(400)
    ]
    model = audit(rows).types[0].language_only
    assert (model.accuracy, model.majority) == (1.0, 0.5)


def test_chance_is_the_exact_probability():
    for count, num, share in [(60, 100, 0.5), (75, 100, 0.5), (20, 20, 0.25), (9, 30, 0.1), (0, 0, 0.5)]:
        exact = sum(comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(count, num + 1))
        assert tail(count, num, share) == pytest.approx(exact, rel=1e-9)
    assert tail(np.array([0, 5]), 10, 0.5).tolist() == pytest.approx([1.0, 638 / 1024])


def write(path: Path, rows: list) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def test_exit_code_says_whether_a_threshold_failed(tmp_path, capsys):
    biased = write(tmp_path / "biased.json", make_rows(2500, change=mostly_two))
    assert main(["audit", biased]) == 0
    assert main(["audit", biased, "--fail-on", "yes_no=0.45:0.55", "--fail-on", "max_letter"]) == 0
    assert main(["audit", biased, "--fail-on", "default"]) == 1
    assert "max_count: FAILED" in capsys.readouterr().out
    assert main(["audit", biased, "--fail-on", "max_count=0.9"]) == 0
    assert (
        main(["audit", biased, "--fail-on", "default", "--fail-on", "max_count=0.9", "--fail-on", "majority=0.9"]) == 0
    )
    assert main(["audit", write(tmp_path / "balanced.json", make_rows(2500)), "--fail-on", "default"]) == 0


def test_named_threshold_does_not_pass_on_nothing(tmp_path, capsys):
    rows = [make_row(i, [("Is it there?", ["yes", "no"][i % 2])]) for i in range(100)]
    path = write(tmp_path / "rows.json", rows)
    assert main(["audit", path, "--fail-on", "default"]) == 0
    assert "max_letter: not judged" in capsys.readouterr().out
    assert main(["audit", path, "--fail-on", "max_letter=0.3"]) == 1
    assert "max_letter" in capsys.readouterr().err
    few = write(tmp_path / "few.json", rows[:10])
    assert main(["audit", few, "--fail-on", "yes_no=0.45:0.55"]) == 1


def test_few_answers_fail_only_if_chance_is_no_explanation():
    def rows(num_yes, num):
        return [make_row(i, [("Is it there?", "yes" if i < num_yes else "no")]) for i in range(num)]

    limits = parse_limits(["yes_no"])
    for num_yes, num, verdict in [(9, 16, "not judged"), (16, 16, "FAILED"), (50, 100, "ok"), (570, 1000, "FAILED")]:
        assert audit(rows(num_yes, num), limits).verdict("yes_no") == verdict


@pytest.mark.parametrize("text", ["yes", "max_leter=0.3", "max_letter=", "max_letter=2", "yes_no=0.5", "yes_no=1:0"])
def test_wrong_thresholds_are_errors(text, tmp_path, capsys):
    path = write(tmp_path / "rows.json", make_rows(10))
    assert main(["audit", path, "--fail-on", text]) == 2
    assert text.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '[{"id": 1}]', "[1, 2]", "[{]"])
def test_nothing_to_audit_is_an_error(content, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert main(["audit", str(path), "--fail-on", "default"]) == 2
    assert main(["audit", str(tmp_path / "missing.json")]) == 2
    assert "error" in capsys.readouterr().err


def as_messages(row: dict, with_parts: bool) -> dict:
    messages = []
    for turn in row["conversations"]:
        text = turn["value"].replace("<image>\n", "")
        content = [{"type": "image", "text": None}, {"type": "text", "text": text}] if with_parts else text
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    return {"messages": messages, "images": [Image.new("RGB", (4, 4))]}


@pytest.mark.parametrize(
    "kind", ["json", "jsonl", "folder of json", "parquet", "hub folder", "save_to_disk", "splits"]
)
def test_same_report_from_every_form(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows, path = make_rows(60, num_turns=2), tmp_path / "set"
    path.mkdir()
    if kind in ("json", "jsonl", "folder of json"):
        file = path / f"rows.{kind.split()[-1]}"
        file.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows))
        path = path if kind == "folder of json" else file
    else:
        table = datasets.Dataset.from_list([as_messages(row, with_parts=kind == "parquet") for row in rows])
        half = table.select(range(30)), table.select(range(30, 60))
        if kind == "parquet":
            path = path / "rows.parquet"
            table.to_parquet(path)
        if kind == "hub folder":
            for index, part in enumerate(half):
                part.to_parquet(path / "data" / f"train-{index:05}-of-00002.parquet")
        if kind == "save_to_disk":
            table.save_to_disk(path)
        if kind == "splits":
            datasets.DatasetDict(train=half[0], test=half[1]).save_to_disk(path)
    assert audit(read_rows(path)).to_dict() == audit(rows).to_dict()


def test_report_and_plot_are_written_and_the_same_each_time(tmp_path):
    path = write(tmp_path / "rows.json", make_rows(120, change=lambda rng, turn, asked: (asked[0], asked[1] + "$")))
    outputs = []
    for run in ("first", "second"):
        report, picture = tmp_path / run / "report.json", tmp_path / run / "plot.png"
        assert main(["audit", path, "--json", str(report), "--plot", str(picture)]) == 0
        outputs.append((report.read_bytes(), picture.read_bytes()))
    assert outputs[0] == outputs[1]
    assert set(json.loads(outputs[0][0])["verdicts"]) == set(THRESHOLDS)
    with Image.open(picture) as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 5


def test_time_is_linear_enough_for_large_sets():
    rows = make_rows(20_000)
    start = time.process_time()
    audit(rows)
    assert time.process_time() - start < 6  # of 30 s for 100,000


def test_near_duplicates_are_those_of_all_pairs():
    rng = np.random.RandomState(0)
    hashes = rng.randint(0, 2**63, 300).astype(np.uint64)
    for copy in range(60):  # copies that differ in 0 to 5 bits, some of them in several bands
        bits = rng.choice(64, copy % 6, replace=False)
        flipped = np.bitwise_xor.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0))
        hashes[240 + copy] = hashes[copy] ^ flipped
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    earlier = np.tril(np.ones((300, 300), dtype=bool), -1)
    found = find_near_duplicates(hashes, 3)
    assert found.num_near == (earlier & (distances <= 3)).any(axis=1).sum() == 40
    assert found.num_equal == (earlier & (distances == 0)).any(axis=1).sum() == 10
    assert all(distances[pair] <= 3 for pair in found.examples) and found.largest_group == 2


def test_near_duplicate_images_of_files_and_tables(tmp_path, capsys):
    rng = np.random.RandomState(1)
    (tmp_path / "images").mkdir()
    pictures = [Image.fromarray(rng.randint(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 96)) for _ in range(4)]
    pictures.append(pictures[1].resize((48, 48)))
    rows = make_rows(6)
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / "images" / f"{index}.png")
    path = write(tmp_path / "rows.json", rows)
    found = audit_images(path)
    assert (found.num, found.num_missing, found.num_near, found.examples) == (5, 1, 1, [(1, 4)])
    table = [{**as_messages(row, False), "images": [picture]} for row, picture in zip(rows, pictures, strict=False)]
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "rows.parquet")
    assert audit_images(tmp_path / "rows.parquet").examples == [(1, 4)]
    report = tmp_path / "report.json"
    assert main(["audit", path, "--images", "--json", str(report)]) == 0
    assert "1 differ from an earlier one" in capsys.readouterr().out
    assert json.loads(report.read_text())["images"]["num_near"] == 1
    assert main(["audit", path, "--images", "--image-folder", str(tmp_path / "none")]) == 2
