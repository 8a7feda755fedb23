"""
Facts of a scene as questions with exact answers; the modules of kinds/ make turns of them.

Whether the answer is yes or no is drawn first, and the question is made to fit. False claims are drawn from the same
distribution as true ones, so the words of a question do not give the answer away. Nor do earlier turns: a conversation
asks for one fact of each object, and no turn states what a later turn asks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fusion_vlm.small_model.grammar.scene import (
    COLOURS,
    DIRECTIONS,
    MAX_COUNT,
    PLACES,
    SHAPES,
    WORDS,
    Scene,
    SceneObject,
    capitalize,
    counted,
    find_direction,
    group_name,
    join,
    plural,
    sign_positions,
    with_article,
)
from fusion_vlm.synthesis.sample import Sample, Turn


SHORT_HINT = "Answer with a single word or phrase."
COUNTS = tuple(str(number) for number in range(1, MAX_COUNT + 1))
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass
class Fact:
    """
    A fact that can be asked of a scene.

    Args:
        question (`str`)
        answer (`str`): the answer in a word or two.
        sentence (`str`): the answer in a sentence, with another true fact that no other question asks for.
        type (`str`): type of the turn.
        choices (`Sequence[str]`): what multiple choice may offer; nothing for yes and no.
    """

    question: str
    answer: str
    sentence: str
    type: str
    choices: Sequence[str] = ()

    def short(self) -> Turn:
        return Turn(self.question, self.answer, self.type)

    def long(self) -> Turn:
        return Turn(self.question, self.sentence, self.type)


def yes_no_fact(question: str, truth: bool, sentence: str) -> Fact:
    """Build a fact that is answered by yes or no. `sentence` has to be true in both cases."""
    answer = "Yes" if truth else "No"
    return Fact(question, answer, f"{answer}, {sentence}", "yes_no")


# Facts of one scene: an open question if `truth` is None, else a question with that answer, True for yes.


def ask_count(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Ask for the number of objects in the first group."""
    group = scene.groups[0]
    if truth is None:
        return open_count(rng, scene, group)
    name, number = group_name(group), len(scene.members(group))
    claimed = str(number) if truth else rng.choice([count for count in COUNTS if count != str(number)])
    question = rng.choice(
        (
            f"Is the number of {plural(name)} in the picture {claimed}?",
            f"Does the picture show exactly {claimed} {name if claimed == '1' else plural(name)}?",
        )
    )
    return yes_no_fact(question, truth, _say_count(scene, group))


def _say_count(scene: Scene, group: dict[str, str]) -> str:
    members = scene.members(group)
    said = f"there {'is' if len(members) == 1 else 'are'} {counted(len(members), group_name(group))}"
    # No question asks for the places of a group, so the sentence may state them.
    where = sorted({thing.position for thing in members})
    return f"{said}: {join(where)}." if where else f"{said}."


def open_count(rng: random.Random, scene: Scene, group: dict[str, str]) -> Fact:
    """Ask for the number of objects in `group`, which may be empty."""
    name = group_name(group)
    question = rng.choice(
        (
            f"How many {plural(name)} are there in the picture?",
            f"How many {plural(name)} can you see?",
            f"Count the {plural(name)}. How many are there?",
            f"What is the number of {plural(name)} in the image?",
        )
    )
    sentence = capitalize(_say_count(scene, group))
    return Fact(question, str(len(scene.members(group))), sentence, "count", COUNTS)


def _unnamed(scene: Scene, name: str, values: Sequence[str]) -> list[str]:
    """
    Return the colors or shapes that no question of the scene uses as a name.

    Names are the colors and shapes of the groups and of the two objects that are asked about. No answer about another
    object has such a value, so a false claim or a wrong option with it would give itself away.
    """
    named = {getattr(thing, name) for thing in scene.others()[:2]} | {group.get(name) for group in scene.groups}
    return [value for value in values if value not in named]


def _false_claim(rng: random.Random, scene: Scene, name: str, values: Sequence[str]) -> str:
    """Draw a wrong value: half of the time of an object that no question is about, else of no object at all."""
    present = {getattr(thing, name) for thing in scene.objects}
    unnamed = _unnamed(scene, name, values)
    claims = [[value for value in unnamed if (value in present) == shown] for shown in (True, False)]
    return rng.choice(rng.choice([some for some in claims if some]))


def ask_colour(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Ask for the color of the first object outside of the groups, which is named by its shape."""
    thing = scene.others()[0]
    if truth is None:
        return replace(open_colour(rng, thing), choices=[thing.colour, *_unnamed(scene, "colour", COLOURS)])
    claimed = thing.colour if truth else _false_claim(rng, scene, "colour", COLOURS)
    question = rng.choice(
        (
            f"Is the {thing.shape} {claimed}?",
            f"Is there {with_article(f'{claimed} {thing.shape}')} in the picture?",
            f"Can you see {with_article(f'{claimed} {thing.shape}')}?",
        )
    )
    return yes_no_fact(question, truth, f"the {thing.shape} is {thing.colour} and {thing.size}.")


def open_colour(rng: random.Random, thing: SceneObject, where: str = "") -> Fact:
    """Ask for the color of an object. `where` names one of two images: ` in the left image`."""
    question = rng.choice(
        (
            f"What colour is the {thing.shape}{where}?",
            f"What is the colour of the {thing.shape}{where}?",
            f"Which colour does the {thing.shape}{where} have?",
        )
    )
    sentence = rng.choice(
        (
            f"The {thing.shape}{where} is {thing.colour}, and it is {thing.size}.",
            f"It is {with_article(f'{thing.size} {thing.shape}')}, and its colour is {thing.colour}.",
        )
    )
    return Fact(question, thing.colour, sentence, "colour")


def ask_shape(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Ask for the shape of the second object outside of the groups, which is named by its color."""
    thing = scene.others()[1]
    if truth is None:
        return replace(open_shape(rng, thing), choices=[thing.shape, *_unnamed(scene, "shape", SHAPES)])
    claimed = thing.shape if truth else _false_claim(rng, scene, "shape", SHAPES)
    question = rng.choice(
        (
            f"Is the {thing.colour} object {with_article(claimed)}?",
            f"Does the picture show {with_article(f'{thing.colour} {claimed}')}?",
            f"Can you find {with_article(f'{thing.colour} {claimed}')} in the image?",
        )
    )
    return yes_no_fact(question, truth, f"the {thing.colour} object is {with_article(f'{thing.size} {thing.shape}')}.")


def open_shape(rng: random.Random, thing: SceneObject, where: str = "") -> Fact:
    """Ask for the shape of an object. `where` is that of `open_colour`."""
    question = rng.choice(
        (
            f"What shape is the {thing.colour} object{where}?",
            f"What is the shape of the {thing.colour} object{where}?",
            f"Which shape does the {thing.colour} object{where} have?",
        )
    )
    sentence = rng.choice(
        (
            f"The {thing.colour} object{where} is {with_article(f'{thing.size} {thing.shape}')}.",
            f"It is {with_article(thing.shape)}, {with_article(thing.size)} one.",
        )
    )
    return Fact(question, thing.shape, sentence, "shape")


def ask_direction(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Ask for the direction between the two objects, named as in the questions for color and shape."""
    first, second = scene.others()[:2]
    subject, reference = f"the {first.shape}", f"the {second.colour} object"
    direction = find_direction(first, second)
    size = "it is the same size" if first.size == second.size else "it is a different size"
    sentence = f"{subject} is {DIRECTIONS[direction]} {reference}, and {size}."
    if truth is None:
        question = rng.choice(
            (
                f"Where is {subject} in relation to {reference}: left, right, above or below?",
                f"Seen from {reference}, where is {subject}: left, right, above or below?",
                f"In which direction from {reference} does {subject} lie: left, right, above or below?",
            )
        )
        return Fact(question, direction, capitalize(sentence), "spatial", tuple(DIRECTIONS))
    claimed = DIRECTIONS[direction if truth else OPPOSITES[direction]]
    question = rng.choice((f"Is {subject} {claimed} {reference}?", f"Does {subject} lie {claimed} {reference}?"))
    return yes_no_fact(question, truth, sentence)


def ask_place(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Ask for the place in the background."""
    if truth is None:
        question = rng.choice(
            (
                "What place is in the background of the picture?",
                "What does the background of the picture show?",
                "What kind of scene is behind the objects?",
            )
        )
        sentence = rng.choice(
            ("The background shows {}.", "Behind the objects there is {}.", "The objects are in front of {}.")
        )
        return Fact(question, scene.background, sentence.format(scene.background), "scene", PLACES)
    claimed = scene.background if truth else rng.choice([place for place in PLACES if place != scene.background])
    question = rng.choice((f"Does the background show {claimed}?", f"Is {claimed} behind the objects?"))
    return yes_no_fact(question, truth, f"the background shows {scene.background}.")


def ask_word(rng: random.Random, scene: Scene, truth: bool | None, index: int = 0) -> Fact:
    """Ask for the word on the sign `index`."""
    word, sign = scene.signs[index].word, f"the sign{sign_positions(scene)[index]}"
    if truth is None:
        question = rng.choice(
            (f"What word is on {sign}?", f"What does {sign} say?", f"Read {sign}. Which word is written there?")
        )
        return Fact(question, word, f'{capitalize(sign)} says "{word}".', "text", WORDS)
    claimed = word if truth else rng.choice([other for other in WORDS if other not in {s.word for s in scene.signs}])
    question = rng.choice((f'Does {sign} say "{claimed}"?', f'Is the word on {sign} "{claimed}"?'))
    return yes_no_fact(question, truth, f'{sign} says "{word}".')


def spell_word(rng: random.Random, scene: Scene, index: int) -> Fact:
    """Ask to spell the word on the sign `index`."""
    letters, sign = "-".join(scene.signs[index].word), f"the sign{sign_positions(scene)[index]}"
    question = rng.choice((f"Spell the word on {sign}.", f"How is the word on {sign} spelled?"))
    return Fact(question, letters, f"The word is spelled {letters}.", "text")


# Parts of turns that several kinds share.


def list_topics(scene: Scene) -> list[Callable[[random.Random, Scene, bool | None], Fact]]:
    """Return the questions above that can be asked of a scene, each about another fact."""
    if scene.signs:
        return [ask_word]
    topics = [ask_count]
    if len(scene.others()) >= 2:
        topics += [ask_colour, ask_shape, ask_direction]
    if scene.background in PLACES:
        topics.append(ask_place)
    return topics


def add_short_hint(turns: list[Turn]) -> list[Turn]:
    """Ask for short answers at the end of the first question."""
    turns[0].question += f"\n{SHORT_HINT}"
    return turns


def ask_description(sample: Sample, rng: random.Random) -> list[Turn]:
    """Ask for the description of the sample, in one turn."""
    questions = ("Describe the image in detail.", "Now describe all that you see.", "Please give a full description.")
    return [Turn(rng.choice(questions), sample.description, "caption")]
