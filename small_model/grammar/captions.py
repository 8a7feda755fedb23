"""Captions, the kinds for pre-training: colors, numbers, positions, the place, or words."""

import random
from collections.abc import Callable, Sequence

from fusion_vlm.small_model.grammar.kind import Kind
from fusion_vlm.small_model.grammar.scene import (
    DIRECTIONS,
    MAX_COUNT,
    PLACES,
    Scene,
    build_scene,
    build_sign_scene,
    capitalize,
    counted,
    draw_count,
    draw_direction,
    draw_plain,
    find_direction,
    join,
    list_looks,
    sign_positions,
    with_article,
    write_caption,
)
from fusion_vlm.synthesis.sample import Sample, Turn


def _build_colours(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, draw_plain(rng), num_others=draw_count(sample))]


def _caption_colours(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe the colours in the picture.",
        "What colours do the objects in this picture have?",
        "Write a caption that names the colour of each object.",
        "Caption this image, with the colours.",
    )
    looks = list_looks(scenes[0].objects)
    answers = (f"The picture shows {looks}.", f"In the picture there is {looks}.", f"{capitalize(looks)}.")
    return _caption_turn(rng, questions, rng.choice(answers))


def _build_counts(sample: Sample, rng: random.Random) -> list[Scene]:
    both, number = ("shape", "colour"), draw_count(sample)
    more = [(both, rng.randint(1, min(MAX_COUNT, 8 - number)))] if rng.random() < 0.5 else []
    return [build_scene(rng, draw_plain(rng), [(both, number), *more])]


def _caption_counts(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe how many objects of each kind the picture shows.",
        "Count what you see in the picture.",
        "Write a caption that says how many objects there are.",
        "Caption this image, with the numbers of objects.",
    )
    things = scenes[0].objects
    number, looks = counted(len(things), "object"), list_looks(things)
    answers = (f"There {'is' if len(things) == 1 else 'are'} {number} in the picture: {looks}.",)
    return _caption_turn(rng, questions, rng.choice((*answers, f"The picture shows {number}: {looks}.")))


def _build_pair(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, draw_plain(rng), num_others=2, direction=draw_direction(rng))]


def _caption_relation(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe where the objects are in relation to each other.",
        "How are the two objects arranged?",
        "Write a caption that says where things are.",
        "Caption this image, with the positions of the objects.",
    )
    first, second = scenes[0].others()
    relation = DIRECTIONS[find_direction(first, second)]
    relation = f"{with_article(first.name)} is {relation} {with_article(second.name)}"
    answers = (f"{capitalize(relation)}.", f"In the picture, {relation}.")
    return _caption_turn(rng, questions, rng.choice(answers))


def _build_place(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, rng.choice(PLACES), num_others=rng.randint(1, 3))]


def _caption_place(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe the scene in the picture.",
        "What scene does the picture show?",
        "Write a caption for the scene.",
        "Caption this image: the place, and what is in it.",
    )
    place, looks = scenes[0].background, list_looks(scenes[0].objects)
    answers = (
        f"{write_caption(scenes[0])}.",
        f"The picture shows {place} with {looks}.",
        f"This is {place}, with {looks}.",
    )
    return _caption_turn(rng, questions, rng.choice(answers))


def _build_signs(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_sign_scene(rng, rng.randint(1, 2))]


def _caption_words(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe the text in the picture.",
        "What is written in the picture?",
        "Write a caption that quotes the text in the image.",
        "Caption this image, with the words in it.",
    )
    signs = list(zip(scenes[0].signs, sign_positions(scenes[0]), strict=True))
    answer = rng.choice(
        (
            join([f'the sign{where} says "{sign.word}"' for sign, where in signs]),
            join([f'the word "{sign.word}" is written on the sign{where}' for sign, where in signs]),
        )
    )
    return _caption_turn(rng, questions, f"{capitalize(answer)}.")


def _caption_turn(rng: random.Random, questions: Sequence[str], answer: str) -> list[Turn]:
    return [Turn(rng.choice(questions), answer, "caption")]


def _make_kind(name: str, build_scenes: Callable, ask: Callable) -> Kind:
    return Kind(name, build_scenes, ask, is_caption=True)


KINDS = [
    _make_kind("caption_colour", _build_colours, _caption_colours),
    _make_kind("caption_count", _build_counts, _caption_counts),
    _make_kind("caption_spatial", _build_pair, _caption_relation),
    _make_kind("caption_scene", _build_place, _caption_place),
    _make_kind("caption_text", _build_signs, _caption_words),
]
