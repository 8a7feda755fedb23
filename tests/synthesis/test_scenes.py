"""
Exact scenes: their answers are true of the pixels, and their names are clear.

Answers are compared with a reader of pixels. It draws a scene again without one object, so the pixels that change are
those of this object; color, place, size and what hides it are read from them.
"""

import json
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from fusion_vlm.synthesis.kinds import contrasts
from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS as KINDS  # without drawn pages: test_documents.py
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.backgrounds import PLACES, list_look_alikes
from fusion_vlm.synthesis.scenes.build import CONTAINERS
from fusion_vlm.synthesis.scenes.canvas import list_parts
from fusion_vlm.synthesis.scenes.colors import COLORS, color_distance, jitter_color, name_color
from fusion_vlm.synthesis.scenes.english import say
from fusion_vlm.synthesis.scenes.outlines import load_outlines
from fusion_vlm.synthesis.scenes.render import draw_scene
from fusion_vlm.synthesis.scenes.scene import SIZES, Background, Scene, SceneObject
from fusion_vlm.synthesis.scenes.surfaces import SURFACES
from fusion_vlm.synthesis.scenes.topics import CLOSED, OPEN
from fusion_vlm.synthesis.scenes.view import View


SIDE = 224
PLAIN = Background("surface", "plain", 1)


def make(index: int, kind: str, seed: int = 0) -> Sample:
    return ExactQuestions()(make_scene_sample(index, kind, seed))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make(index // len(KINDS), KINDS[index % len(KINDS)]) for index in range(420)]


def put(noun: str, color: str, x: float, y: float, size: str = "medium", **attributes) -> SceneObject:
    """Return a plain object without rotation."""
    return SceneObject(noun, color, list(COLORS[color]), "plain", size, SIZES[size][0], x, y, **attributes)


# A reader of pixels


@dataclass
class Blob:
    """The pixels of one object: its mask, and what can be read from them."""

    mask: np.ndarray
    color: str
    x: float
    y: float
    area: float


@cache
def draw_pixels(scene_text: str) -> np.ndarray:
    return np.asarray(draw_scene(Scene.from_dict(json.loads(scene_text)), SIDE), dtype=int)


def read_blobs(scene: dict) -> list[Blob]:
    """Read each object of a scene from the pixels that change without it."""
    whole = draw_pixels(json.dumps(scene))
    blobs = []
    for index, thing in enumerate(scene["objects"]):
        objects = [other for number, other in enumerate(scene["objects"]) if number != index]
        without = draw_pixels(json.dumps({**scene, "objects": objects}))
        mask = np.abs(whole - without).sum(axis=2) > 24
        pixels = whole[mask]
        # The color that most pixels are near to. White and black are also those of borders, patterns and details.
        votes = Counter()
        for rgb in map(tuple, pixels[:: max(1, len(pixels) // 120)]):
            name = min(COLORS, key=lambda name: color_distance(rgb, COLORS[name]))  # noqa: B023
            votes[name] += color_distance(rgb, COLORS[name]) < 14
        if thing["color"] not in ("white", "black", "gray"):
            for name in ("white", "black", "gray"):
                votes.pop(name, None)
        rows, columns = np.nonzero(mask)
        middle = ((columns.min() + columns.max() + 1) / 2 / SIDE, (rows.min() + rows.max() + 1) / 2 / SIDE)
        blobs.append(Blob(mask, votes.most_common(1)[0][0] if votes else "", *middle, mask.mean()))
    return blobs


def scenes_of(samples: list[Sample], kinds: set[str], number: int) -> list[dict]:
    return [scene for sample in samples if sample.kind in kinds for scene in sample.scenes][:number]


def test_colors_of_objects_are_those_of_their_pixels(samples):
    read = wrong = 0
    for scene in scenes_of(samples, {"caption_colour", "contrast_short", "caption_scene"}, 26):
        for blob, thing in zip(read_blobs(scene), scene["objects"], strict=True):
            # Details of black, gray or white parts outvote a color of their own kind.
            if thing["color"] not in ("white", "black", "gray"):
                read += 1
                wrong += blob.color != thing["color"]
    assert read > 50 and wrong <= 0.03 * read, (read, wrong)


def test_facts_are_true_of_the_pixels(samples):
    """Ask every topic of scenes with relations, and read the answers from the pixels."""
    checked = Counter()
    for number, scene in enumerate(scenes_of(samples, {"short_conversation", "caption_spatial"}, 22)):
        view, blobs = View(Scene.from_dict(scene)), read_blobs(scene)
        for topic in OPEN:
            fact = topic(random.Random(number), view, None)
            if fact is not None:
                checked[check_open(fact, scene, blobs)] += 1
    for name in ("direction", "nearest", "zone", "larger", "extreme", "count", "color"):
        assert checked[name] >= 5, checked


def check_open(fact, scene: dict, blobs: list[Blob]) -> str:
    """Compare the answer of a fact with the pixels; return what was checked."""
    name, *keys = fact.asks
    nouns = [thing["noun"] for thing in scene["objects"]]
    if name == "color" and scene["objects"][keys[0]]["color"] not in ("white", "black", "gray"):
        assert fact.answer == blobs[keys[0]].color, fact
    elif name == "direction":
        one, other = (blobs[index] for index in keys)
        across, down = one.x - other.x, one.y - other.y
        sides = {"left": -across, "right": across, "above": -down, "below": down}
        assert max(sides, key=sides.get) == fact.answer and sides[fact.answer] > 0.1, fact
    elif name == "nearest":
        at = blobs[keys[0]]
        others = [i for i in range(len(blobs)) if i != keys[0]]
        nearest = min(others, key=lambda i: math.hypot(at.x - blobs[i].x, at.y - blobs[i].y))
        assert fact.answer == nouns[nearest], fact
    elif name == "zone":
        blob = blobs[keys[0]]
        column, row = int(3 * blob.x), int(3 * blob.y)
        words = {"left": column == 0, "right": column == 2, "upper": row == 0, "lower": row == 2, "top": row == 0}
        words |= {"bottom": row == 2, "center": row == column == 1}
        assert all(words[word] for word in words if word in fact.answer.split()), fact
    elif name == "larger":
        one, other = (blobs[i].area for i in keys)
        larger = keys[0] if one > other else keys[1]
        wanted = larger if "larger" in fact.sentence else next(i for i in keys if i != larger)
        assert nouns[wanted] in fact.answer or scene["objects"][wanted]["color"] in fact.answer, fact
    elif name == "extreme":
        measures = {"leftmost": lambda b: -b.x, "rightmost": lambda b: b.x, "highest": lambda b: -b.y}
        measures |= {"lowest": lambda b: b.y, "largest": lambda b: b.area, "smallest": lambda b: -b.area}
        assert fact.answer == nouns[max(range(len(blobs)), key=lambda i: measures[keys[0]](blobs[i]))], fact
    elif name == "count":
        group = dict(keys)
        found = sum(all(thing[key] == value for key, value in group.items()) for thing in scene["objects"])
        assert int(fact.answer) == found and all(blob.mask.sum() > 60 for blob in blobs), fact
    return name


@pytest.mark.parametrize("relation", ["behind", "inside", "touching", "between"])
def test_relations_are_those_of_the_pixels(samples, relation):
    found = [
        scene
        for scene in scenes_of(samples, {"short_conversation", "long_conversation", "caption_spatial"}, 400)
        if scene["relations"] and scene["relations"][0][0] == relation
    ][:5]
    assert len(found) == 5
    for scene in found:
        (_, first, *others), blobs = scene["relations"][0], read_blobs(scene)
        if relation == "behind":
            alone = read_blobs({**scene, "objects": [scene["objects"][first]], "relations": []})[0]
            share = blobs[first].mask.sum() / alone.mask.sum()
            hiding = blobs[others[0]].mask & alone.mask & ~blobs[first].mask
            assert 0.5 < share < 0.85 and hiding.sum() > 0.1 * alone.mask.sum(), share
        elif relation == "inside":
            rows, columns = np.nonzero(blobs[others[0]].mask)
            inner_rows, inner_columns = np.nonzero(blobs[first].mask)
            assert rows.min() < inner_rows.min() and inner_rows.max() < rows.max()
            assert columns.min() < inner_columns.min() and inner_columns.max() < columns.max()
        elif relation == "touching":
            grown = grow(blobs[first].mask, 2)
            assert (grown & blobs[others[0]].mask).any()
        else:
            ends = [(blobs[index].x, blobs[index].y) for index in others]
            middle = [sum(values) / 2 for values in zip(*ends, strict=True)]
            length = math.dist(*ends)
            assert math.dist(middle, (blobs[first].x, blobs[first].y)) < 0.3 * length


def grow(mask: np.ndarray, by: int) -> np.ndarray:
    found = mask.copy()
    for down in range(-by, by + 1):
        for across in range(-by, by + 1):
            found |= np.roll(mask, (down, across), (0, 1))
    return found


def test_only_what_is_meant_to_be_hidden_is_hidden(samples):
    """No object is cut off or covered, whatever its form and height: nothing is rejected without cause."""
    assert [sample.id for sample in samples if sample.reason] == []
    for scene in scenes_of(samples, set(KINDS), 300):
        view = View(Scene.from_dict(scene))
        for index, seen in enumerate(view.seen):
            assert seen.visible > 0.955 or index in view.behind


def test_samples_with_hidden_objects_are_rejected():
    sample = make_scene_sample(5, "caption_colour", 0)
    assert ExactQuestions()(Sample.from_dict(sample.to_dict())).reason is None
    first, second = sample.scenes[0]["objects"][:2]
    second |= {"x": first["x"], "y": first["y"]}
    sample = ExactQuestions()(sample)
    assert sample.reason.startswith("exact_questions/hidden: ") and sample.turns == []


@pytest.mark.parametrize("noun", ["rectangle", "parallelogram", "bed", "pencil"])
def test_no_height_hides_a_small_object(noun):
    """A raster that is too coarse once took small rectangles at certain heights for hidden."""
    for step in range(200):
        y = 0.15 + 0.7 * step / 200
        scene = Scene(PLAIN, [put(noun, "red", 0.5, y, "small")])
        assert View(scene).num_hidden() == 0, y


def test_two_images_differ_in_what_is_said(samples):
    for sample in [s for s in samples if s.kind in ("contrast_short", "contrast_long")][:30]:
        left, right = (draw_pixels(json.dumps(scene)) for scene in sample.scenes)
        changed = {name for name, _ in contrasts.find_differences(*map(Scene.from_dict, sample.scenes))}
        same_corners = [np.array_equal(left[at], right[at]) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
        assert changed and all(same_corners) == ("background" not in changed), sample.id
        if sample.kind == "contrast_short" and sample.turns[0].type == "difference":
            assert set(re.split(r", and |, | and ", sample.turns[0].answer)) == changed


# Names and questions


def test_an_odd_one_out_is_the_only_one_that_looks_odd():
    """The ink of a pattern follows the shade of its object, so shades of equal objects are equal."""
    samples = [make(index, "reasoning") for index in range(60)]
    scenes = [Scene.from_dict(sample.scenes[0]) for sample in samples if sample.turns[0].type == "odd_one_out"]
    assert scenes and all(len({tuple(thing.rgb) for thing in scene.objects[1:]}) == 1 for scene in scenes)


def test_names_fit_one_object_only(samples):
    for scene in scenes_of(samples, {"short_conversation", "long_conversation", "multiple_choice"}, 80):
        view = View(Scene.from_dict(scene))
        for index in view.singles:
            for avoid in ((), ("color",), ("noun",)):
                name = view.name(random.Random(index), index, avoid)
                if name is not None:
                    words = name.text.split()[1:]
                    fits = [
                        thing for thing in view.scene.objects
                        if set(words) <= {thing.color, thing.pattern, *thing.noun.split(), "object", "thing"}
                    ]  # fmt: skip
                    assert fits == [view[index]], name


def test_no_turn_states_what_a_later_turn_asks(samples):
    """A color or a noun that an earlier question or answer names is not asked for."""
    for sample in samples:
        if sample.kind not in ("short_conversation", "long_conversation"):
            continue
        said = ""
        for turn in sample.turns:
            if turn.type == "colour" and len(turn.answer.split()) == 1:
                named = re.search(r"the (?!main|color|image|picture)([a-z]+)\b(?=\?|:| )", turn.question.lower())
                nouns = [thing["noun"] for thing in sample.scenes[0]["objects"] if thing["color"] == turn.answer]
                assert not named or not any(
                    f"{turn.answer} {noun}" in said and f"the {noun}" in turn.question.lower() for noun in nouns
                ), sample.id
            said += f" {turn.question} {turn.answer}".lower()


def test_objects_do_not_look_like_their_background(samples):
    for scene in scenes_of(samples, set(KINDS) - {"contrast_short", "contrast_long"}, 300):
        background = Background(**scene["background"])
        assert not {thing["noun"] for thing in scene["objects"]} & list_look_alikes(background)


@pytest.mark.parametrize("name", sorted(set(SURFACES) - {"plain"}))
def test_what_a_surface_is_named_after_can_be_seen(name):
    for seed in range(40):
        image = draw_scene(Scene(Background("surface", name, seed)), SIDE).convert("L")
        darkest, brightest = np.percentile(np.asarray(image), (3, 97))
        assert brightest - darkest >= 16, seed


def test_every_place_leaves_something_that_can_contain_objects():
    for place in PLACES:
        assert set(CONTAINERS) - list_look_alikes(Background("place", place, 0))


@pytest.mark.parametrize("topic", CLOSED, ids=lambda topic: topic.__name__)
def test_yes_and_no_of_a_topic_have_the_same_words(topic):
    """Each wording is answered by yes as often as by no, whatever the scene allows."""
    asked = {True: Counter(), False: Counter()}
    for index in range(40):
        view = View(Scene.from_dict(make_scene_sample(index, "short_conversation", 3).scenes[0]))
        facts = [topic(random.Random(index), view, truth) for truth in (True, False)]
        assert (facts[0] is None) == (facts[1] is None), topic.__name__
        for truth, fact in zip((True, False), facts, strict=True):
            if fact is not None:
                assert fact.answer == ("Yes" if truth else "No") and fact.sentence.startswith(f"{fact.answer}, ")
                asked[truth].update([len(fact.question.split())])
    assert sum(asked[True].values()) > 3


# Colors, outlines


def test_questions_for_a_name_are_sentences():
    """Check that no wording asks "Can you identify the red object is?"."""
    questions = {say(random.Random(seed), "noun.open", a="THING", A="THING") for seed in range(600)}
    asked = {question for question in questions if re.match("Can you (identify|name)", question)}
    assert asked == {"Can you identify THING?", "Can you name THING?"}
    assert "Can you tell me what THING is?" in questions


def test_jittered_colors_keep_their_name():
    rng = random.Random(0)
    for name in COLORS:
        drawn = {jitter_color(rng, name) for _ in range(200)}
        assert len(drawn) > 50 and all(name_color(rgb) == name for rgb in drawn)
    assert name_color((128, 90, 100)) is None


@pytest.mark.parametrize("noun", load_outlines())
def test_outlines_are_mostly_of_the_main_color_and_fit_their_circle(noun):
    outline = load_outlines()[noun]
    assert outline.main_share >= 0.5 and outline.fill > 0.12
    thing = put(noun, "blue", 0.5, 0.5, "large", angle=float(outline.max_angle))
    points = [point for _, polygon in list_parts(thing) for point in polygon]
    assert max(math.dist(point, (0.5, 0.5)) for point in points) <= thing.radius + 1e-6
