"""The pixel judge on pictures that are drawn here: right answers, wrong answers, and when it has to abstain."""

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


# The modules of the judge import each other by name, as a script does.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from judge_answers import solve  # noqa: E402
from judge_captions import check_claims  # noqa: E402
from judge_contrasts import Halves, name_changes, split_halves  # noqa: E402
from judge_scenes import Picture  # noqa: E402
from judge_signs import Signs  # noqa: E402
from judge_text import Line  # noqa: E402
from judge_verdicts import agrees, agrees_on_page, plant_on_page, plant_wrong, split_options  # noqa: E402


SIDE = 336
PAPER = (176, 190, 200)
RED, BLUE, GREEN, YELLOW, PURPLE = (214, 24, 30), (36, 72, 214), (34, 146, 52), (250, 222, 30), (128, 44, 160)
WHITE, INK = (252, 252, 252), (30, 30, 36)
Outline = list[tuple[float, float]]


def ellipse(width: float = 1.0, height: float = 1.0) -> Outline:
    return [(width * math.cos(t / 30 * math.pi), height * math.sin(t / 30 * math.pi)) for t in range(60)]


STAR = [
    (
        (1.0 if k % 2 == 0 else 0.42) * math.sin(k * math.pi / 5),
        -(1.0 if k % 2 == 0 else 0.42) * math.cos(k * math.pi / 5),
    )
    for k in range(10)
]
SQUARE = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
CROSS = [(-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32), (0.32, 0.95),
         (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32)]  # fmt: skip
ARROW = [(-1, -0.28), (0.15, -0.28), (0.15, -0.72), (1, 0), (0.15, 0.72), (0.15, 0.28), (-1, 0.28)]


def draw(*things, paper=PAPER, side: int = SIDE) -> np.ndarray:
    """Draw things with thin outlines: outline, color, x, y, radius in shares of the side, and stripes or a hole."""
    image = Image.new("RGB", (2 * side, 2 * side), paper)
    for outline, color, x, y, radius, *extra in things:
        points = [((x + radius * u) * 2 * side, (y + radius * v) * 2 * side) for u, v in outline]
        edge = INK if sum(color) > 500 else WHITE
        pen = ImageDraw.Draw(image)
        pen.line([*points, *points[:2]], edge, 7, "curve")
        fill = Image.new("RGB", image.size, color)
        if "striped" in extra:
            for place in range(-2 * side, 4 * side, 52):
                ImageDraw.Draw(fill).line([(place, 0), (place + 2 * side, 2 * side)], (248, 248, 246), 15)
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).polygon(points, 255)
        image.paste(fill, mask=mask)
        if "hollow" in extra:
            hole = [((x + 0.68 * radius * u) * 2 * side, (y + 0.68 * radius * v) * 2 * side) for u, v in outline]
            pen.polygon(hole, paper)
            pen.line([*hole, *hole[:2]], edge, 7, "curve")
    return np.asarray(image.reduce(2))


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Return a picture of a row of three above a large cross and two stars."""
    return Picture(
        draw(
            (STAR, RED, 0.2, 0.2, 0.09),
            (SQUARE, BLUE, 0.5, 0.17, 0.08, "striped"),
            (ARROW, GREEN, 0.78, 0.2, 0.1),
            (CROSS, YELLOW, 0.2, 0.8, 0.15),
            (STAR, BLUE, 0.55, 0.85, 0.09),
            (ellipse(1, 0.56), PURPLE, 0.86, 0.82, 0.1),
        )
    )


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("What color is the cross?", "yellow", "orange"),
        ("What color is the cross?", "The cross is yellow.", "The cross is green."),
        ("Is the cross yellow?", "Yes", "No"),
        ("Does the oval appear teal?", "No, the oval is purple.", "Yes, the oval is purple."),
        ("Which pattern is on the square?", "striped", "checkered"),
        ("How many stars are there in the picture?", "2", "3"),
        ("Count the blue stars. How many are there?", "1", "2"),
        ("Is the number of stars 2?", "Yes", "No"),
        ("Are there exactly 3 stars here?", "No, there are two stars here.", "Yes, there are two stars here."),
        ("Is there a green arrow in the picture?", "Yes", "No"),
        ("Is there a red arrow in the picture?", "No", "Yes"),
        ("Where in the picture is the cross?", "in the lower left", "on the left"),
        ("Is the arrow in the upper right of the picture?", "Yes", "No"),
        ("Is the cross to the left of, to the right of, above, or below the oval?", "left", "right"),
        ("In which direction from the cross is the oval: left, right, above, or below?", "right", "left"),
        ("Is the arrow above the oval?", "Yes", "No"),
        ("If you look below the oval, do you find the arrow?", "No", "Yes"),
        ("Which is larger, the cross or the arrow?", "cross", "arrow"),
        ("Is the arrow smaller than the cross?", "Yes", "No"),
        ("Compared with the cross, is the arrow larger?", "No", "Yes"),
        ("Which object is farthest to the right?", "oval", "arrow"),
        ("What is the largest object in the picture?", "cross", "star"),
        ("What is the green object?", "It is an arrow.", "It is a star."),
        ("Do the square and the blue star have the same color?", "Yes", "No"),
        ("Does the arrow point left or right?", "right", "left"),
        ("What color is the object nearest to the oval?", "blue", "red"),
        ("Is the square between the red star and the arrow?", "Yes", "No"),
        ("Is the cross the largest object?", "Yes", "No"),
    ],
)
def test_right_answers_are_confirmed_and_wrong_answers_are_not(picture, question, right, wrong):
    finding = solve(question, picture)
    assert finding is not None
    assert agrees(finding, right), finding
    assert not agrees(finding, wrong), finding
    planted = plant_wrong(finding, right, random.Random(0))
    assert planted is not None
    assert planted != right
    assert not agrees(finding, planted), planted


def test_a_choice_among_options_is_judged_by_its_text(picture):
    stem, options = split_options(
        "What color is the oval?\nA. red\nB. purple\nC. blue\nD. green\nAnswer with the letter."
    )
    finding = solve(stem, picture)
    assert [letter for letter, option in options.items() if agrees(finding, option)] == ["B"]


@pytest.mark.parametrize(
    "question",
    [
        "What color is the gizmo?",  # no such name
        "What color is the house?",  # nothing looks like it
        "What color is the star?",  # there are two
        "Which is larger, the blue star or the red star?",  # equal
        "Is the red star to the left of the oval?",  # as far below as to the side
        "What does the sign say?",
        "What place is in the background?",
    ],
)
def test_the_judge_abstains_where_it_cannot_be_sure(picture, question):
    assert solve(question, picture) is None


def test_nothing_is_counted_where_an_object_may_be_lost_in_the_background():
    things = (STAR, RED, 0.3, 0.3, 0.09), (STAR, BLUE, 0.7, 0.7, 0.09)
    pixels = draw(*things)
    noise = np.random.RandomState(0).randint(90, 190, pixels.shape[:2], dtype=np.uint8)
    gray = Picture(np.where((pixels == PAPER).all(-1)[..., None], noise[..., None], pixels))
    assert solve("How many stars are there?", gray) is None
    assert solve("How many red stars are there?", gray).value == 1
    assert solve("How many stars are there?", Picture(draw(*things))).value == 2


def test_what_is_inside_and_what_is_hidden():
    nested = Picture(
        draw(
            (ellipse(), RED, 0.35, 0.35, 0.2, "hollow"),
            (STAR, BLUE, 0.35, 0.35, 0.09),
            (CROSS, GREEN, 0.8, 0.8, 0.1),
        )
    )
    assert solve("What is inside the ring?", nested).value == "star"
    assert solve("Does the ring contain the cross?", nested).value is False
    covered = Picture(
        draw(
            (CROSS, GREEN, 0.4, 0.4, 0.12),
            (SQUARE, RED, 0.52, 0.4, 0.09),
            (STAR, BLUE, 0.8, 0.8, 0.09),
        )
    )
    assert solve("What is in front of the cross?", covered).value == "square"
    assert solve("Is the cross partly hidden by the square?", covered).value is True
    assert solve("Is the star in front of the cross?", covered).value is False


def test_the_odd_one_out():
    stars = [(STAR, RED, 0.2 + 0.3 * k, 0.3, 0.09) for k in range(3)]
    finding = solve("Which object is the odd one out, and why?", Picture(draw(*stars, (STAR, GREEN, 0.5, 0.7, 0.09))))
    assert agrees(finding, "All but one have the same color, so the odd one out is the green star.")
    assert not agrees(finding, "All but one have the same color, so the odd one out is the red star.")


def test_two_halves_are_compared():
    things = [(STAR, RED, 0.3, 0.3, 0.09), (CROSS, GREEN, 0.7, 0.3, 0.1), (ARROW, PURPLE, 0.5, 0.75, 0.1)]
    changed = [things[0], (CROSS, BLUE, 0.7, 0.3, 0.1), things[2]]
    frame = np.full((672, 672, 3), (196, 198, 202), dtype=np.uint8)
    frame[176:496, 8:328], frame[176:496, 344:664] = draw(*things, side=320), draw(*changed, side=320)
    halves = Halves(*split_halves(frame))
    finding = halves.solve("What differs between the two images?")
    assert agrees(finding, "color")
    assert agrees(finding, "The cross is green in the left image and blue in the right image.")
    assert not agrees(finding, "position")
    assert not agrees(finding, plant_wrong(finding, "color", random.Random(0)))
    assert halves.solve("Is the color of the cross the same in both images?").value is False
    assert halves.solve("Is the size of the star the same in both images?").value is True
    assert halves.solve("Is the background the same in both images?").value is True
    assert halves.solve("What color is the cross in the right image?").value == "blue"
    assert split_halves(draw(*things)) is None
    assert name_changes("The left image has two more objects than the right image.") == {"number"}


def test_texts_of_boards_are_compared_with_what_ocr_has_read():
    board = [(-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)]
    picture = Picture(draw((board, RED, 0.3, 0.3, 0.2), (board, BLUE, 0.7, 0.7, 0.2)))
    lines = [Line("OPEN", 60, 85, 130, 115), Line("Alder Street", 180, 215, 290, 235), Line("42", 220, 240, 250, 255)]
    signs = Signs(picture, lines)
    assert agrees(signs.solve("What does the blue sign say?"), 'It says "Alder Street 42".')
    assert not agrees(signs.solve("What does the blue sign say?"), 'It says "Alder Street 43".')
    assert agrees(signs.solve("What does the second line of the blue sign say?"), "42")
    assert agrees(signs.solve("How is the word on the red sign spelled?"), "O-P-E-N")
    assert signs.solve('Does the red sign say "OPEN"?').value is True
    assert signs.solve('Does the red sign say "Bakery"?').value is False
    assert signs.solve('Does the red sign say "OPUN"?') is None
    assert signs.solve('What color is the sign that says "Alder Street 42"?').value == "blue"
    assert signs.solve("What does the green sign say?") is None


def test_claims_of_captions_are_confirmed_and_those_in_another_color_are_not(picture):
    text = "There are six objects: a red star, a blue striped square, a green arrow, and a yellow cross."
    verdicts = list(check_claims(picture, text, random.Random(0)))
    assert [claim for claim, _, _ in verdicts][:2] == ["1 red star", "1 blue striped square"]
    assert len(verdicts) == 4
    assert all(is_true is True and is_other_true is False for _, is_true, is_other_true in verdicts)


def test_answers_about_pages_are_compared_by_value():
    assert agrees_on_page(12.5, "The average is (10 + 15) / 2 = 12.5.")
    assert not agrees_on_page(12.5, "The average is (10 + 15) / 2 = 13.")
    assert not agrees_on_page(True, plant_on_page(True, "Yes, it is.", [], random.Random(0)))
    assert not agrees_on_page("March", plant_on_page("March", "March", ["April", "March"], random.Random(0)))
