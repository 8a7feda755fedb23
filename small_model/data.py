"""Make the training data of the small model: scenes of the data engine, rows about their objects, and easy-VQA."""

import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import easy_vqa

from fusion_vlm.small_model.grammar.exact import make_scene_sample
from fusion_vlm.small_model.grammar.questions import (
    SHORT_HINT,
    Fact,
    ask_direction,
    open_colour,
    open_count,
    open_shape,
)
from fusion_vlm.small_model.grammar.scene import (
    COLOURS,
    GRID,
    SHAPES,
    Scene,
    SceneObject,
    capitalize,
    find_direction,
    with_article,
)
from fusion_vlm.small_model.grammar.table import CAPTION_KINDS, INSTRUCTION_KINDS
from fusion_vlm.small_model.grammar.write import write_samples


# Folder, seed, number and kinds of scenes. A model learns most from short questions, so they have the most scenes.
SCENES = (
    ("captions", 11, 15000, CAPTION_KINDS),
    ("instructions", 12, 14000, INSTRUCTION_KINDS),
    ("questions", 13, 40000, ("short_conversation",)),
    ("objects", 14, 24000, ("caption_colour",)),
)
IMAGE_SIZE = 144  # side of a scene: twice the crop, so that the crops show the scene without scaling
GROUPS = [{"shape": shape} for shape in SHAPES] + [{"colour": colour} for colour in COLOURS]  # what can be counted
EASY_VQA_SHAPES = {"circle", "rectangle", "triangle"}
EASY_VQA_COLOURS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}


def make_data(folder: Path):
    """Make all files of rows that are missing."""
    make_scenes(folder)
    if not all(path.exists() for path in list_told_files(folder)):
        for name in TELLERS:
            tell_objects(folder / name)
    if not (folder / "easy_vqa" / "train.json").exists():
        make_easy_vqa(folder / "easy_vqa")


def list_files(folder: Path) -> list[Path]:
    """List the files of all rows."""
    return [*sorted(folder.glob("*/train.json")), folder / "easy_vqa" / "captions.json", *list_told_files(folder)]


def list_told_files(folder: Path) -> list[Path]:
    """List the files that `tell_objects` writes."""
    return [folder / scenes / f"{name}.json" for scenes, tellers in TELLERS.items() for name in tellers]


def make_scenes(folder: Path):
    for name, seed, number, kinds in SCENES:
        write_samples(folder / name, number, seed, kinds, IMAGE_SIZE)


class EasyVqaRow(NamedTuple):
    """One question of easy-VQA."""

    path: str  # of the image
    question: str
    answer: str
    image: int  # number of the image in its split


def read_easy_vqa(split: str) -> list[EasyVqaRow]:
    """
    Return all questions of a split of easy-VQA in their order.

    Args:
        split (`str`): `"train"` or `"test"`.
    """
    if split == "train":
        questions, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    else:
        questions, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    return [
        EasyVqaRow(paths[image], question, answer, image) for question, answer, image in zip(*questions, strict=True)
    ]


def group_by_image(rows: list[EasyVqaRow]) -> dict[int, list[tuple[str, str]]]:
    """Group questions and answers by the number of their image."""
    asked = defaultdict(list)
    for row in rows:
        asked[row.image].append((row.question, row.answer))
    return asked


def to_conversation(turns: list[tuple[str, str]]) -> list[dict]:
    """Return questions and answers about an image as a conversation in LLaVA's form."""
    conversation = [
        {"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)
    ]
    conversation[0]["value"] = "<image>\n" + conversation[0]["value"]
    return conversation


def make_easy_vqa(folder: Path, num_passes: int = 4, max_turns: int = 3):
    """
    Write conversations about the images of easy-VQA's training split, in LLaVA's form.

    Each pass asks every question, in conversations of one to `max_turns` questions. Several turns share one image, so
    a step teaches more.

    Most yes-or-no questions of easy-VQA ask about absent shapes and colours, so their words give five of six answers.
    Further questions of easy-VQA about present ones balance that, for shapes and for colours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    asked = group_by_image(read_easy_vqa("train"))
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
    """Yield the questions about the shape, then the colour, of an object, and how many of them to add."""
    for look in looks:
        kind = EASY_VQA_SHAPES if look in EASY_VQA_SHAPES else EASY_VQA_COLOURS
        there = [question for question in presence if look in split_words(question)]
        own = [question for question, answer in questions if is_bool(answer) and split_words(question) & kind]
        missing = len(own) - 2 * len(set(own) & set(there))
        yield there, min(max(missing, 0), len(there))


def answer_there(question: str) -> str:
    """Answer a yes-or-no question about something that is there."""
    return "no" if is_negated(question) else "yes"


def is_bool(answer: str) -> bool:
    return answer in ("yes", "no")


def split_words(question: str) -> set[str]:
    return set(question.rstrip("?").split())


def is_negated(question: str) -> bool:
    """Check whether a yes-or-no question of easy-VQA asks if something is absent."""
    return bool(split_words(question) & {"not", "no"})


def known_objects() -> Iterator[tuple[int, str, str]]:
    """Yield image, colour and shape for the training images whose questions and answers tell both."""
    for image, questions in sorted(group_by_image(read_easy_vqa("train")).items()):
        found = set()
        for question, answer in questions:
            if not is_bool(answer):
                found |= split_words(question) | {answer}
            elif (answer == "yes") != is_negated(question):
                found |= split_words(question)
        shape, colour = found & EASY_VQA_SHAPES, found & EASY_VQA_COLOURS
        if shape and colour:
            yield image, colour.pop(), shape.pop()


def list_objects() -> list[tuple[str, str, str]]:
    """List path, colour and shape for the images of `known_objects`."""
    paths = easy_vqa.get_train_image_paths()
    return [(paths[image], colour, shape) for image, colour, shape in known_objects()]


def caption_easy_vqa(prompts=("What is in the picture?", "Caption this image.")) -> Iterator[dict]:
    """Yield rows that name the one object of each image."""
    for image, colour, shape in known_objects():
        for number, prompt in enumerate(prompts):
            conversation = to_conversation([(prompt, f"There is a {colour} {shape}.")])
            yield {"id": f"{image}-caption-{number}", "image": f"{image}.png", "conversations": conversation}


# Rows about scenes. Those of `objects` have up to six objects with different shapes and colours, those of `questions`
# up to nine, some of them alike. In those of `captions` all objects may be alike.


def tell_objects(folder: Path):
    """
    Write a file of rows for each of the folder's `TELLERS`.

    The captions of the data engine name colours before shapes and give the places of two objects at most. A short
    answer has one fact. From rows about every object, a small model learns to find an object by its shape.
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
    parts = [f"the {thing.shape} is {thing.colour}" for thing in sort_objects(scene, "shape")]
    return [("What colour is each shape?", join_parts(parts))]


def join_parts(parts: list[str]) -> str:
    return capitalize(", ".join(parts)) + "."


def sort_objects(scene: Scene, name: str) -> list[SceneObject]:
    """Sort objects by the name of their shape or colour: an order that the image tells."""
    return sorted(scene.objects, key=attrgetter(name))


def tell_places(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    Tell the place of every object, by shape and by colour.

    The place directly follows the object. In sentences ("the star is in the lower left") the model learnt only which
    places have an object.
    """
    turns = []
    for name in ("shape", "colour"):
        parts = [f"{getattr(thing, name)}: {name_place(thing)}" for thing in sort_objects(scene, name)]
        turns.append((f"Where is each {name}?", join_parts(parts)))
    rng.shuffle(turns)
    return turns


def name_place(thing: SceneObject) -> str:
    """Return the place of an object without its preposition: `lower left`."""
    return thing.position.partition(" the ")[2]


def tell_contents(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Tell what is at each place, row by row."""
    things = sorted(scene.objects, key=lambda thing: (int(thing.y * GRID), thing.x))
    parts = [f"{name_place(thing)}: {thing.name}" for thing in things]
    return [("What is at each place?", join_parts(parts))]


def tell_numbers(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Tell numbers by shape and by colour. Only one question of a scene at most asks for a number."""
    turns = []
    for name in ("shape", "colour"):
        counts = Counter(getattr(thing, name) for thing in scene.objects)
        parts = [f"{value}: {number}" for value, number in sorted(counts.items())]
        turns.append((f"How many objects of each {name} are there?", join_parts(parts)))
    rng.shuffle(turns)
    return turns


def ask_numbers(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    Ask short questions about numbers.

    Up to three are about shapes or colours of several objects, up to two about those of one object, and one about a
    shape or colour of none.
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
    """Add the hint that asks for short answers to the first question."""
    return [(f"{turns[0][0]}\n{SHORT_HINT}", turns[0][1]), *turns[1:]]


def find_pairs(rng: random.Random, scene: Scene) -> list[tuple[SceneObject, SceneObject]]:
    """Pair each object with a random one in a clear direction from it, if there is one."""
    pairs = []
    for first in sort_objects(scene, "shape"):
        others = [thing for thing in scene.objects if thing is not first and find_direction(thing, first)]
        pairs += [(first, rng.choice(others))] if others else []
    return pairs


def tell_directions(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """Name both objects before their direction: a model cannot tell a direction before it knows both."""
    parts = [
        f"from the {second.colour} object the {first.shape} is {find_direction(first, second)}"
        for first, second in find_pairs(rng, scene)
    ]
    return [("How do the objects lie to each other?", join_parts(parts))] if parts else []


def ask_objects(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    """
    Ask short questions in random order.

    They are about one fact of each of up to five objects, and about up to two directions. No fact gives away another.
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
    return Fact(question, name_place(thing), f"The {name} is {thing.position}.", "spatial")


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
