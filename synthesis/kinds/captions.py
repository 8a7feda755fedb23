"""Captions, the kinds for pre-training: colors, numbers, positions, the place, or words."""

import random
from collections.abc import Callable

from fusion_vlm.synthesis.kinds.kind import ONE_QUESTION, Kind
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.ask_scene import say_before
from fusion_vlm.synthesis.scenes.ask_text import name_sign
from fusion_vlm.synthesis.scenes.backgrounds import draw_background, draw_place, draw_surface
from fusion_vlm.synthesis.scenes.build import RELATIONS, build_scene
from fusion_vlm.synthesis.scenes.describe import (
    RELATION_WORDS,
    TIMES,
    list_contents,
    name_background,
    name_third,
)
from fusion_vlm.synthesis.scenes.english import capitalize, count_noun, join, list_looks, say, with_article
from fusion_vlm.synthesis.scenes.scene import MAX_COUNT, Scene, draw_evenly
from fusion_vlm.synthesis.scenes.signs import build_sign_scene, draw_text
from fusion_vlm.synthesis.scenes.view import DIRECTIONS, View


MAX_RELATIONS = 3  # in a caption


def _build_colors(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, draw_surface(rng), num_others=2 + draw_evenly(sample, "count", 5))]


def _caption_colors(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    looks = list_looks(scenes[0].objects)
    words = {"looks": looks, "Looks": capitalize(looks), "background": name_background(scenes[0].background)}
    return _write_turn(rng, "caption.colour", words)


def _build_counts(sample: Sample, rng: random.Random) -> list[Scene]:
    number = 1 + draw_evenly(sample, "count", MAX_COUNT)
    groups = [(("noun", "color", "pattern"), number)]
    if number < 9 and rng.random() < 0.6:
        groups.append((("noun", "color", "pattern"), rng.randint(1, 12 - number)))
    return [build_scene(rng, draw_background(rng), groups, num_others=rng.randint(0, 2))]


def _caption_counts(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    things = scenes[0].objects
    looks = list_looks(things)
    words = {"looks": looks, "Looks": capitalize(looks), "number": count_noun(len(things), "", "object")}
    words["are"] = "is" if len(things) == 1 else "are"
    return _write_turn(rng, "caption.count", words)


def _build_arranged(sample: Sample, rng: random.Random) -> list[Scene]:
    relation = (None, *RELATIONS)[draw_evenly(sample, "relation", 5)]
    return [build_scene(rng, draw_background(rng), num_others=rng.randint(3, 5), relation=relation)]


def _caption_relations(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Tell the relation that the scene was built for, and directions between other objects, each object once."""
    view = View(scenes[0])
    said, told = [], set()
    for name, first, *others in scenes[0].relations:
        others = [f"the {view[index].noun}" for index in others]
        said.append(f"the {view[first].noun} is {RELATION_WORDS[name]} {join(others)}")
        told |= set(scenes[0].relations[0][1:])
    pairs = [(one, other) for one in view.singles for other in view.singles if one != other]
    for first, second in rng.sample(pairs, len(pairs)):
        direction = view.find_direction(first, second)
        if direction is not None and not {first, second} & told and len(said) < MAX_RELATIONS:
            told |= {first, second}
            said.append(f"the {view[first].noun} is {DIRECTIONS[direction]} the {view[second].noun}")
    for index in view.singles:
        zone = view.find_zone(index)
        if index not in told and zone is not None and len(said) < MAX_RELATIONS:
            said.append(f"{with_article(view[index].noun)} is {zone} of the image")
    if not said:
        said = [f"{with_article(thing.noun)} is {name_third(thing)}" for thing in scenes[0].objects]
    return _write_turn(rng, "caption.spatial", {"relations": join(said)})


def _build_place(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, draw_place(rng), num_others=rng.randint(1, 4))]


def _caption_place(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    place, looks = scenes[0].background.name, list_looks(scenes[0].objects)
    words = {"place": place, "Place": capitalize(place), "looks": looks, "Looks": capitalize(looks)}
    words |= {"before": say_before(place), "Before": capitalize(say_before(place))}
    return _write_turn(rng, "caption.scene", words | {"time": TIMES[scenes[0].background.time]})


def _build_signs(sample: Sample, rng: random.Random) -> list[Scene]:
    texts = draw_texts(rng, 1 + draw_evenly(sample, "signs", 3))
    return [build_sign_scene(rng, draw_background(rng), texts, rng.randint(0, 3))]


def draw_texts(rng: random.Random, number: int) -> list[list[str]]:
    """Draw texts of which no two are the same, whatever their case."""
    texts = []
    while len(texts) < number:
        lines = draw_text(rng)
        if " ".join(lines).lower() not in {" ".join(text).lower() for text in texts}:
            texts.append(lines)
    return texts


def _caption_words(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    scene, parts = scenes[0], []
    for index, sign in enumerate(scene.signs):
        name = name_sign(scene, index)
        verb = rng.choice(("says", "says", "reads", "shows the text", "has the text"))
        parts.append(f'{name} {verb} "{sign.text}"')
    answer = capitalize(join(parts)) + "."
    if rng.random() < 0.3:
        answer = f"The picture shows {list_contents(scene)}."
    return [Turn(say(rng, "caption.text"), answer, "caption")]


def _write_turn(rng: random.Random, section: str, words: dict[str, str]) -> list[Turn]:
    return [Turn(say(rng, section), capitalize(say(rng, f"{section}.say", **words)), "caption")]


def _make_kind(name: str, build_scenes: Callable, ask: Callable) -> Kind:
    return Kind(name, build_scenes, ask, ONE_QUESTION, "caption", num_answer_tokens=90, is_caption=True)


KINDS = [
    _make_kind("caption_colour", _build_colors, _caption_colors),
    _make_kind("caption_count", _build_counts, _caption_counts),
    _make_kind("caption_spatial", _build_arranged, _caption_relations),
    _make_kind("caption_scene", _build_place, _caption_place),
    _make_kind("caption_text", _build_signs, _caption_words),
]
