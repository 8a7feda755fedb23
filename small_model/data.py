"""
The data of `train.py`: scenes of the data engine, rows that tell of each object of a scene how it looks and where
it is, and easy-VQA.
"""

import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

import easy_vqa

from fusion_vlm.synthesis import generate
from fusion_vlm.synthesis.kinds.exact import make_scene_sample
from fusion_vlm.synthesis.kinds.table import CAPTION_KINDS, INSTRUCTION_KINDS
from fusion_vlm.synthesis.scenes.questions import SHORT_HINT, Fact, ask_direction, open_colour, open_count, open_shape
from fusion_vlm.synthesis.scenes.scene import (
    COLOURS,
    GRID,
    SHAPES,
    Scene,
    SceneObject,
    capitalize,
    direction_of,
    with_article,
)


# Folder of the scenes, seed, number and kinds. Short questions are the most to learn from, so more is drawn of them.
SCENES = (
    ("captions", 11, 15000, CAPTION_KINDS),
    ("instructions", 12, 14000, INSTRUCTION_KINDS),
    ("questions", 13, 40000, ("short_conversation",)),
    ("objects", 14, 24000, ("caption_colour",)),
)
IMAGE_SIZE = 144  # of a scene: twice the crop, so that the crops show it as it was drawn
GROUPS = [{"shape": shape} for shape in SHAPES] + [{"colour": colour} for colour in COLOURS]  # that can be counted
EASY_VQA_SHAPES = {"circle", "rectangle", "triangle"}
EASY_VQA_COLOURS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}


def make_data(folder: Path):
    """All of it, of what is not there yet."""
    make_scenes(folder)
    if not all(path.exists() for path in told_files(folder)):
        for name in TELLERS:
            tell_objects(folder / name)
    if not (folder / "easy_vqa" / "train.json").exists():
        make_easy_vqa(folder / "easy_vqa")


def list_files(folder: Path) -> list[Path]:
    """Of all rows."""
    return [*sorted(folder.glob("*/train.json")), folder / "easy_vqa" / "captions.json", *told_files(folder)]


def told_files(folder: Path) -> list[Path]:
    """What `tell_objects` writes."""
    return [folder / scenes / f"{name}.json" for scenes, tellers in TELLERS.items() for name in tellers]


def make_scenes(folder: Path):
    for name, seed, number, kinds in SCENES:
        if not (folder / name / "done.json").exists():
            arguments = ["--num", number, "--seed", seed, "--image-size", IMAGE_SIZE, "--output", folder / name]
            generate.main([*map(str, arguments), "--kinds", *kinds])


def read_easy_vqa(questions: tuple[list[str], list[str], list[int]]) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers about each image."""
    asked = defaultdict(list)
    for question, answer, image in zip(*questions, strict=True):
        asked[image].append((question, answer))
    return asked


def to_conversation(turns: list[tuple[str, str]]) -> list[dict]:
    """Questions and answers about an image in LLaVA's form."""
    conversation = [
        {"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)
    ]
    conversation[0]["value"] = "<image>\n" + conversation[0]["value"]
    return conversation


def make_easy_vqa(folder: Path, num_passes: int = 4, max_turns: int = 3):
    """
    Conversations about the images of easy-VQA's training split, in LLaVA's form. In each pass every question is asked,
    in conversations of one to `max_turns` of them: turns share the image, so that more is learnt from a step.

    Most yes-or-no questions of the set ask for what is not there, and their words give five of six answers. So
    questions of the set about what is there are added, as many as make both alike, for shapes and for colours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    asked = read_easy_vqa(easy_vqa.get_train_questions())
    known = {image: looks for image, *looks in known_objects()}
    presence = sorted({question for questions in asked.values() for question, answer in questions if is_bool(answer)})
    rows = []
    for image, questions in sorted(asked.items()):
        missing = list(find_missing(questions, known.get(image, ()), presence))
        for _ in range(num_passes):
            left = list(questions)
            for there, number in missing:
                left += [(question, answer_there(question)) for question in rng.sample(there, number)]
            rng.shuffle(left)
            while left:
                number = rng.randint(1, max_turns)
                turns, left = left[:number], left[number:]
                row = {"id": f"{image}-{len(rows)}", "image": f"{image}.png"}
                rows.append({**row, "conversations": to_conversation(turns)})
    for image, path in easy_vqa.get_train_image_paths().items():
        shutil.copy(path, folder / f"{image}.png")
    (folder / "captions.json").write_text(json.dumps(list(caption_easy_vqa())))
    (folder / "train.json").write_text(json.dumps(rows))


def find_missing(questions: list[tuple[str, str]], looks: list[str], presence: list[str]) -> Iterator[tuple]:
    """For the shape and the colour of an object: questions about its presence, and how many of them to add."""
    for look in looks:
        kind = EASY_VQA_SHAPES if look in EASY_VQA_SHAPES else EASY_VQA_COLOURS
        there = [question for question in presence if look in words_of(question)]
        own = [question for question, answer in questions if is_bool(answer) and words_of(question) & kind]
        missing = len(own) - 2 * len(set(own) & set(there))
        yield there, min(max(missing, 0), len(there))


def answer_there(question: str) -> str:
    """To a yes-or-no question about what is there."""
    return "no" if is_negated(question) else "yes"


def is_bool(answer: str) -> bool:
    return answer in ("yes", "no")


def words_of(question: str) -> set[str]:
    return set(question.rstrip("?").split())


def is_negated(question: str) -> bool:
    """Of a yes-or-no question of easy-VQA: whether it asks if something is not there."""
    return bool(words_of(question) & {"not", "no"})


def known_objects() -> Iterator[tuple[int, str, str]]:
    """Image, colour and shape, for the images of the training split whose questions and answers tell both."""
    for image, questions in sorted(read_easy_vqa(easy_vqa.get_train_questions()).items()):
        found = set()
        for question, answer in questions:
            if not is_bool(answer):
                found |= words_of(question) | {answer}
            elif (answer == "yes") != is_negated(question):
                found |= words_of(question)
        shape, colour = found & EASY_VQA_SHAPES, found & EASY_VQA_COLOURS
        if shape and colour:
            yield image, colour.pop(), shape.pop()


def list_objects() -> list[tuple[str, str, str]]:
    """Path, colour and shape, for the same images."""
    paths = easy_vqa.get_train_image_paths()
    return [(paths[image], colour, shape) for image, colour, shape in known_objects()]


def caption_easy_vqa(prompts=("What is in the picture?", "Caption this image.")) -> Iterator[dict]:
    """One thing to see in each, to begin with."""
    for image, colour, shape in known_objects():
        for number, prompt in enumerate(prompts):
            conversation = to_conversation([(prompt, f"There is a {colour} {shape}.")])
            yield {"id": f"{image}-caption-{number}", "image": f"{image}.png", "conversations": conversation}


# Rows about the scenes of `objects`, up to six objects each of a shape and a colour of its own, of `questions`, up to
# nine, some of them alike, and of `captions`, where all may be alike.


def tell_objects(folder: Path):
    """
    Writes a file of rows for each of the folder's `TELLERS`. The captions of the data engine name colours before
    shapes and say where things are of two objects at most, and a short answer has one fact: a small model learns to
    find a thing by its shape, and where it is, from rows that tell it of every object.
    """
    seed = next(seed for name, seed, *_ in SCENES if name == folder.name)
    tellers = TELLERS[folder.name]
    rows = {name: [] for name in tellers}
    for row in json.loads((folder / "train.json").read_text()):
        kind, _, index = row["id"].rpartition("-")
        scene = Scene.from_dict(make_scene_sample(int(index), kind, seed).scenes[0])
        if len(scene.objects) > 1:
            for name, tell in tellers.items():
                turns = tell(random.Random(f"{name} {row['id']}"), scene)
                if turns:
                    made = {"id": f"{row['id']}-{name}", "image": row["image"]}
                    rows[name].append({**made, "conversations": to_conversation(turns)})
    for name in tellers:
        (folder / f"{name}.json").write_text(json.dumps(rows[name]))


def tell_colours(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    parts = [f"the {thing.shape} is {thing.colour}" for thing in in_order(scene, "shape")]
    return [("What colour is each shape?", list_parts(parts))]


def list_parts(parts: list[str]) -> str:
    return capitalize(", ".join(parts)) + "."


def in_order(scene: Scene, name: str) -> list[SceneObject]:
    """Of shapes or colours, as in the alphabet: an order that can be told from the image."""
    return sorted(scene.objects, key=attrgetter(name))


def tell_places(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    By shape and by colour. A place comes right after what is there, and begins with a word that tells much of it: in
    sentences ("the star is in the lower left") no more was learnt than which places have an object.
    """
    turns = []
    for name in ("shape", "colour"):
        parts = [f"{getattr(thing, name)}: {place_of(thing)}" for thing in in_order(scene, name)]
        turns.append((f"Where is each {name}?", list_parts(parts)))
    rng.shuffle(turns)
    return turns


def place_of(thing: SceneObject) -> str:
    """`lower left`"""
    return thing.position.partition(" the ")[2]


def tell_contents(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Row by row."""
    things = sorted(scene.objects, key=lambda thing: (int(thing.y * GRID), thing.x))
    parts = [f"{place_of(thing)}: {thing.name}" for thing in things]
    return [("What is at each place?", list_parts(parts))]


def tell_numbers(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """By shape and by colour: of the scene's questions one at most asks for a number."""
    turns = []
    for name in ("shape", "colour"):
        counts = Counter(getattr(thing, name) for thing in scene.objects)
        parts = [f"{value}: {number}" for value, number in sorted(counts.items())]
        turns.append((f"How many objects of each {name} are there?", list_parts(parts)))
    rng.shuffle(turns)
    return turns


def ask_numbers(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    Short questions about up to three shapes or colours that several objects have, up to two that one has, and one that
    none has.
    """
    groups = list(GROUPS)
    rng.shuffle(groups)
    by_number = defaultdict(list)
    for group in groups:
        by_number[min(len(scene.members(group)), 2)].append(group)
    asked = by_number[2][:3] + by_number[1][:2] + by_number[0][:1]
    rng.shuffle(asked)
    facts = [open_count(rng, scene, group) for group in asked]
    return with_hint([(fact.question, fact.answer) for fact in facts])


def with_hint(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """That asks for short answers, after the first question."""
    return [(f"{turns[0][0]}\n{SHORT_HINT}", turns[0][1]), *turns[1:]]


def find_pairs(rng: random.Random, scene: Scene) -> list[tuple[SceneObject, SceneObject]]:
    """Of each object with another one that is clearly in one direction from it, as far as there is one."""
    pairs = []
    for first in in_order(scene, "shape"):
        others = [thing for thing in scene.objects if thing is not first and direction_of(thing, first)]
        pairs += [(first, rng.choice(others))] if others else []
    return pairs


def tell_directions(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Both objects are named before the direction is, so that it can be told from the image."""
    parts = [
        f"from the {second.colour} object the {first.shape} is {direction_of(first, second)}"
        for first, second in find_pairs(rng, scene)
    ]
    return [("How do the objects lie to each other?", list_parts(parts))] if parts else []


def ask_objects(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    Short questions in random order: of up to five objects one fact each, none of which gives away another, and up to
    two directions.
    """
    things = rng.sample(scene.objects, len(scene.objects))
    asks = rng.sample((open_colour, open_shape, open_content, open_place, open_place), 5)
    facts = [ask(rng, thing) for ask, thing in zip(asks, things, strict=False)]
    pairs = find_pairs(rng, scene)
    for first, second in rng.sample(pairs, min(len(pairs), 2)):
        facts.append(ask_direction(rng, Scene(scene.background, [first, second]), None))
    rng.shuffle(facts)
    return with_hint([(fact.question, fact.answer) for fact in facts])


def open_place(rng: random.Random, thing: SceneObject) -> Fact:
    name = rng.choice((thing.shape, f"{thing.colour} object"))
    question = rng.choice((f"Where is the {name}?", f"Where in the picture is the {name}?"))
    return Fact(question, place_of(thing), f"The {name} is {thing.position}.", "spatial")


def open_content(rng: random.Random, thing: SceneObject) -> Fact:
    question = rng.choice((f"What is {thing.position}?", f"What can you see {thing.position}?"))
    return Fact(question, thing.name, f"There is {with_article(thing.name)} {thing.position}.", "spatial")


TELLERS: dict[str, dict[str, Callable[[random.Random, Scene], list[tuple[str, str]]]]] = {
    "objects": {
        "colours": tell_colours,
        "contents": tell_contents,
        "directions": tell_directions,
        "questions": ask_objects,
        "places": tell_places,
    },
    "questions": {"contents": tell_contents, "counts": ask_numbers, "numbers": tell_numbers},
    "captions": {"counts": ask_numbers, "numbers": tell_numbers},
}
