"""
Measure a FUSION on what the small model was trained on: easy-VQA's test split, and new drawn scenes of all kinds.

Answers are generated greedily. Earlier turns of a conversation have the true answers.

    python -m fusion_vlm.small_model.accuracy [MODEL] [--4bit] [--sections easy-vqa scenes objects turns] [--json FILE]

* easy-vqa: with the image, with a blank (gray) one, and the share of the commonest answer.
* scenes: for each kind, with the image and with a blank one. The baselines are the commonest answer of each type of
  question, and a model of the questions' words alone (that of the audit, cross-validated on more questions of the same
  kind). Answers are read as the audit reads them: "There are two stars." is 2. The score of a caption is the F1 of its
  facts: pairs of a color and a shape, numbers, relations, words on signs. A second table has the questions of
  conversations by type.
* objects: short questions about one of several objects of a scene. They ask for a color, a shape, a place ("Where is
  the star?"), what is at a place, a direction from one object to another, or a number (which may be 0). All scenes are
  drawn on plain grounds, and with a place painted behind.
* turns: two questions about one image, in both orders: how often the second answer is right, and how often it answers
  the first question instead.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fusion_vlm.audit.audit import read_turns
from fusion_vlm.audit.language_only import NUM_FOLDS, Features, label_answers, list_features, try_language_only
from fusion_vlm.audit.questions import Question, read_question, split_into_words, unify_answers
from fusion_vlm.hub.loading import nf4_config
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.small_model.data import (
    EASY_VQA_SHAPES,
    GROUPS,
    IMAGE_SIZE,
    find_pairs,
    open_content,
    open_place,
    read_easy_vqa,
)
from fusion_vlm.small_model.grammar.exact import make_scene_sample
from fusion_vlm.small_model.grammar.questions import (
    SHORT_HINT,
    Fact,
    ask_direction,
    open_colour,
    open_count,
    open_shape,
)
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import (
    COLOURS,
    DIRECTIONS,
    NUMBERS,
    PLACES,
    PLAIN_BACKGROUNDS,
    SHAPES,
    Scene,
    plural,
)
from fusion_vlm.small_model.grammar.table import CAPTION_KINDS, INSTRUCTION_KINDS
from fusion_vlm.small_model.grammar.write import write_samples


SECTIONS = ("easy-vqa", "scenes", "objects", "turns")
GROUNDS = {"objects": tuple(PLAIN_BACKGROUNDS), "objects, place behind": PLACES}
# Other seeds than those of training (11 to 14), or scenes of training would come again.
SCENE_SEED, OBJECT_SEED = 97, 197
NUM_SCENES, NUM_ASKED = 400, 120  # scenes of each kind: for the baselines, and for the model
SINGULAR = {plural(shape): shape for shape in SHAPES}
BLANK = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (128, 128, 128))


class Model:
    """
    A model and its processor, which answer questions.

    Args:
        path (`str`): folder or Hub id.
        four_bit (`bool`): whether to load it in 4 bits (nf4).
    """

    def __init__(self, path: str, four_bit: bool):
        config = nf4_config(torch.float32, double_quant=False) if four_bit else None
        self.processor = FusionProcessor.from_pretrained(path)
        self.model = FusionForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, quantization_config=config
        )

    def answer(self, conversations: list[tuple[Image.Image | str, list[str]]], max_new_tokens: int) -> list[str]:
        """
        Return an answer for each conversation.

        Args:
            conversations: an image, and the texts of the turns, of which the last is the question to answer.
        """
        answers = [""] * len(conversations)
        # Batches of prompts of similar length have little padding.
        order = sorted(range(len(conversations)), key=lambda index: sum(map(len, conversations[index][1])))
        for start in range(0, len(order), 64):
            indices = order[start : start + 64]
            inputs = self.processor.apply_chat_template(
                [to_messages(*conversations[index]) for index in indices],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text.strip()
        return answers


def to_messages(image: Image.Image | str, said: list[str]) -> list[dict]:
    """Return the messages of a conversation about an image: a question, an answer, a question, ..."""
    if isinstance(image, str):
        image = Image.open(image).convert("RGB")
    messages = []
    for index, text in enumerate(said):
        content = [{"type": "text", "text": text}]
        if index == 0:
            content.insert(0, {"type": "image", "image": image})
        messages.append({"role": "assistant" if index % 2 else "user", "content": content})
    return messages


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def measure_easy_vqa(model: Model) -> dict[str, float]:
    rows = read_easy_vqa("test")
    scores = {"questions": len(rows)}
    for name, blank in (("with image", False), ("blank image", True)):
        answers = model.answer([(BLANK if blank else row.path, [row.question]) for row in rows], 6)
        scores[name] = share([answer == row.answer for answer, row in zip(answers, rows, strict=True)])
    scores["majority"] = Counter(row.answer for row in rows).most_common(1)[0][1] / len(rows)
    by_question = defaultdict(Counter)
    for row in rows:
        by_question[row.question][row.answer] += 1
    # A model that knows the commonest answer to each question: the most that is possible without the image.
    scores["majority of each question"] = sum(max(each.values()) for each in by_question.values()) / len(rows)
    print("easy-VQA test: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()), flush=True)
    return scores


def measure_turns(model: Model, num_images: int = 500) -> dict[str, float]:
    """Ask for the color and the shape of the same object, one after the other."""
    questions = ("what color is the shape?", "what shape is in the image?")
    by_image = defaultdict(set)
    for row in read_easy_vqa("test"):
        by_image[row.path].add(row.answer)
    known = []
    for image, answers in by_image.items():
        shape, colour = answers & EASY_VQA_SHAPES, answers - EASY_VQA_SHAPES - {"yes", "no"}
        if len(shape) == len(colour) == 1:
            known.append((image, colour.pop(), shape.pop()))
    known = known[:num_images]
    right, mixed_up = [], []
    for first in (0, 1):
        second = 1 - first
        said = [(row[0], [questions[first], row[1 + first], questions[second]]) for row in known]
        for answer, row in zip(model.answer(said, 6), known, strict=True):
            right.append(answer == row[1 + second])
            mixed_up.append(answer == row[1 + first])
    scores = {"conversations": len(right), "second answer right": share(right), "of the other turn": share(mixed_up)}
    print("turns: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()), flush=True)
    return scores


def draw_one(index: int, kind: str, grounds: Sequence[str]) -> tuple[Scene, Image.Image]:
    scene = Scene.from_dict(make_scene_sample(index, kind, OBJECT_SEED).scenes[0])
    scene.background = random.Random(index).choice(grounds)
    return scene, draw_scene(scene, IMAGE_SIZE)


def ask_objects(rng: random.Random, scene: Scene) -> dict[str, Fact]:
    """Ask a question of each kind about a random object, and for a direction if two objects have a clear one."""
    asks = {"colour": open_colour, "shape": open_shape, "place": open_place, "content": open_content}
    facts = {name: ask(rng, rng.choice(scene.objects)) for name, ask in asks.items()}
    pairs = find_pairs(rng, scene)
    if pairs:
        facts["direction"] = ask_direction(rng, Scene(scene.background, list(rng.choice(pairs))), None)
    return facts


def ask_number(rng: random.Random, scene: Scene) -> Fact:
    """Ask for the number of a shape or a color. All numbers that occur in the scene are equally likely."""
    by_number = defaultdict(list)
    for group in GROUPS:
        by_number[len(scene.members(group))].append(group)
    return open_count(rng, scene, rng.choice(by_number[rng.choice(sorted(by_number))]))


def measure_objects(model: Model) -> dict[str, dict[str, dict[str, float]]]:
    scores = {name: measure_grounds(model, grounds) for name, grounds in GROUNDS.items()}
    print_types(scores)
    return scores


def measure_grounds(model: Model, grounds: Sequence[str], num_scenes: int = 400) -> dict[str, dict[str, float]]:
    asked, truths = defaultdict(list), defaultdict(list)
    rng = random.Random(0)

    def add(image: Image.Image, facts: dict[str, Fact]):
        for name, fact in facts.items():
            asked[name].append((image, [f"{fact.question}\n{SHORT_HINT}"]))
            truths[name].append(fact.answer)

    for index in range(num_scenes):
        scene, image = draw_one(index, "caption_colour", grounds)
        if len(scene.objects) > 1:
            add(image, ask_objects(rng, scene))
    for index in range(num_scenes):
        scene, image = draw_one(index, rng.choice(("caption_count", "short_conversation")), grounds)
        add(image, {"number": ask_number(rng, scene)})
    scores = {}
    for name, answers in truths.items():
        right = [answer == truth for answer, truth in zip(model.answer(asked[name], 8), answers, strict=True)]
        majority = Counter(answers).most_common(1)[0][1] / len(answers)
        scores[name] = {"num": len(answers), "accuracy": share(right), "majority": majority}
    return scores


def make_scenes(folder: Path, kind: str) -> list[dict]:
    """Draw scenes of a kind and return their rows, with the paths of their images."""
    seed = SCENE_SEED + (CAPTION_KINDS + INSTRUCTION_KINDS).index(kind)
    number = NUM_ASKED if kind in CAPTION_KINDS else NUM_SCENES
    write_samples(folder / kind, number, seed, (kind,), IMAGE_SIZE)
    rows = json.loads((folder / kind / "train.json").read_text())
    return [{**row, "image": str(folder / kind / "images" / row["image"])} for row in rows]


RELATION = re.compile(rf"(\w+ \w+) is ({'|'.join(DIRECTIONS.values())}) an? (\w+ \w+)")


def read_facts(caption: str) -> set[str]:
    """
    Return the facts of a caption.

    They are pairs of a color and a shape (`red circle`), numbers above one (`3 red circle`), relations (`red circle
    above blue star`), and words in capitals.
    """
    words = [SINGULAR.get(word, word) for word in split_into_words(caption)]
    pairs = {f"{one} {two}" for one, two in zip(words, words[1:], strict=False) if one in COLOURS and two in SHAPES}
    numbers = {
        f"{NUMBERS.index(number)} {one} {two}"
        for number, one, two in zip(words, words[1:], words[2:], strict=False)
        if f"{one} {two}" in pairs and number in NUMBERS[2:]
    }
    relations = set()
    for first, direction, second in RELATION.findall(caption):
        if direction in (DIRECTIONS["right"], DIRECTIONS["below"]):  # store both forms of a relation as one
            opposite = "left" if direction == DIRECTIONS["right"] else "above"
            first, direction, second = second, DIRECTIONS[opposite], first
        relations.add(f"{first} {direction} {second}")
    return pairs | numbers | relations | set(re.findall(r"\b[A-Z]{2,}\b", caption))


def measure_captions(model: Model, rows: list[dict]) -> dict[str, float]:
    """Return the F1 of the facts of captions. The baseline is the caption that agrees best with all others."""
    turns = [read_turns(row)[0] for row in rows]
    truths = [read_facts(answer) for _, answer, _ in turns]
    kept = [index for index, truth in enumerate(truths) if truth]
    truths = [truths[index] for index in kept]

    def f1(guesses: list[set[str]]) -> float:
        hits = sum(len(guess & truth) for guess, truth in zip(guesses, truths, strict=True))
        return 2 * hits / (sum(map(len, guesses)) + sum(map(len, truths)))

    asked = [(rows[index]["image"], [turns[index][0]]) for index in kept]
    scores = {"num": len(kept)}
    scores["accuracy"] = f1([read_facts(text) for text in model.answer(asked, 96)])
    scores["blank"] = f1([read_facts(text) for text in model.answer([(BLANK, said) for _, said in asked], 96)])
    scores["majority"] = max(f1([truth] * len(truths)) for truth in truths)
    return scores


def measure_instructions(model: Model, rows: list[dict]) -> dict[str, float]:
    read, asked = [], []
    for index, row in enumerate(rows):
        said = []
        for turn, (question, answer, declared) in enumerate(read_turns(row)):
            if declared != "caption":
                read.append(read_question(question, answer, declared, index, turn))
                asked.append((row["image"], [*said, question]))
            said += [question, answer]
    chosen = [index for index, question in enumerate(read) if question.row < NUM_ASKED]
    truths = [read[index] for index in chosen]
    scores = {"num": len(chosen)}
    for name, blank in (("accuracy", False), ("blank", True)):
        conversations = [(BLANK if blank else asked[index][0], asked[index][1]) for index in chosen]
        marks = mark(truths, model.answer(conversations, 64), read)
        scores[name] = share(marks)
        if not blank:
            marks_by_type = defaultdict(list)
            for truth, is_right in zip(truths, marks, strict=True):
                marks_by_type[truth.type.partition(":")[0]].append(is_right)
    unify_answers(read)
    by_type = defaultdict(Counter)
    for question in read:
        by_type[question.type][question.answer] += 1
    scores["majority"] = sum(max(each.values()) for each in by_type.values()) / len(read)
    scores["language only"] = try_words(read, by_type)
    scores["by type"] = {}
    for name, marks in sorted(marks_by_type.items()):
        counters = [each for type, each in by_type.items() if type.partition(":")[0] == name]
        majority = sum(max(each.values()) for each in counters) / sum(each.total() for each in counters)
        scores["by type"][name] = {"num": len(marks), "accuracy": share(marks), "majority": majority}
    return scores


def mark(truths: list[Question], answers: list[str], known: list[Question]) -> list[bool]:
    """
    Check which answers are right.

    The forms of given and of known answers are unified together, or equal answers could get different forms.
    """
    given = [
        read_question(truth.text, answer, truth.type.partition(":")[0])
        for truth, answer in zip(truths, answers, strict=True)
    ]
    pool = [read_question(each.text, each.said, each.type.partition(":")[0]) for each in known]
    places = {id(each): place for each, place in zip(known, pool, strict=True)}
    unify_answers(pool + given)
    return [places[id(truth)].answer == answer.answer for truth, answer in zip(truths, given, strict=True)]


def try_words(questions: list[Question], by_type: dict[str, Counter]) -> float:
    """Return the share of answers that a model of the questions' words alone gets right."""
    right = 0
    folds = np.random.RandomState(0).permutation(max(question.row for question in questions) + 1) % NUM_FOLDS
    for kind in by_type:
        chosen = [question for question in questions if question.type == kind]
        labels, _ = label_answers([question.answer for question in chosen])
        features = Features.build(list_features(question) for question in chosen)
        result = try_language_only(chosen, features, folds[[question.row for question in chosen]], labels)
        right += max(result.accuracy, result.majority) * len(chosen)
    return right / len(questions)


def measure_scenes(model: Model) -> dict[str, dict[str, float]]:
    columns = ("accuracy", "blank", "majority", "language only")
    scores = {}
    print("| kind | questions | with image | blank image | commonest answer | words of the question alone |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in CAPTION_KINDS + INSTRUCTION_KINDS:
            rows = make_scenes(Path(folder), kind)
            measure = measure_captions if kind in CAPTION_KINDS else measure_instructions
            scores[kind] = measure(model, rows)
            # Captions have no baseline of words: all their questions ask for the whole picture.
            cells = [f"{scores[kind][name]:.3f}" if name in scores[kind] else "" for name in columns]
            print(f"| {kind} | {scores[kind]['num']} | " + " | ".join(cells) + " |", flush=True)
    print_types({kind: row["by type"] for kind, row in scores.items() if "by type" in row})
    return scores


def print_types(scores: dict[str, dict[str, dict[str, float]]]):
    """Print a row for each kind of scenes and each type of question."""
    print("\n| kind | type | questions | with image | commonest answer |\n|---|---|---|---|---|")
    for kind, row in scores.items():
        for name, each in row.items():
            print(f"| {kind} | {name} | {each['num']} | {each['accuracy']:.3f} | {each['majority']:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(Path(__file__).with_name("model")))
    parser.add_argument("--4bit", dest="four_bit", action="store_true", help="load the model in 4 bits (nf4)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    model = Model(args.model, args.four_bit)
    measures = {
        "easy-vqa": measure_easy_vqa,
        "scenes": measure_scenes,
        "objects": measure_objects,
        "turns": measure_turns,
    }
    started = time.perf_counter()
    results = {name: measures[name](model) for name in args.sections}
    print(f"{time.perf_counter() - started:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
