"""
Exact questions and answers about scenes, for every kind of sample.

Whether a question is answered by yes or by no is drawn first and the question made to fit. What is claimed in vain is
drawn as what is true would be, so that the words of a question say nothing about its answer; nor do earlier turns: a
conversation asks for one fact of each thing, and no turn tells what a later one asks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.render import visible_objects
from fusion_vlm.synthesis.scenes.scene import (
    CHANGES,
    COLOURS,
    DIRECTIONS,
    MAX_COUNT,
    NUMBERS,
    PLACES,
    SHAPES,
    WORDS,
    Scene,
    SceneObject,
    capitalise,
    caption_of,
    counted,
    direction_of,
    draw_evenly,
    group_name,
    join,
    list_looks,
    plural,
    sign_positions,
    with_article,
)


SHORT_HINT = "Answer with a single word or phrase."
LETTER_HINT = "Answer with the letter of the option."
COUNTS = tuple(str(number) for number in range(1, MAX_COUNT + 1))
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


class ExactQuestions:
    """
    The stage that fills in `turns` from `scenes`, for samples of `make_scene_sample`. A sample is rejected if a part
    of its scenes cannot be seen in full: answers might not be true of the pixels.

    Raises:
        ValueError: if a sample has no scene.
    """

    name = "exact_questions"

    def __call__(self, sample: Sample) -> Sample:
        if sample.reason is not None:
            return sample
        if not sample.scenes:
            raise ValueError(f"The sample {sample.id} has no scene, expected one of the scene grammar.")
        scenes = [Scene.from_dict(scene) for scene in sample.scenes]
        for scene in scenes:
            hidden = len(scene.objects) + len(scene.signs) - len(visible_objects(scene))
            if hidden:
                sample.reason = f"{self.name}/hidden: {hidden} of the objects, expected 0"
                return sample
        sample.turns = TURNS[sample.kind](sample, scenes, sample.rng("questions"))
        sample.source["questions"] = self.name
        return sample


@dataclass
class Fact:
    """
    One thing that can be asked of a scene.

    Args:
        question (`str`)
        answer (`str`): in a word or two.
        sentence (`str`): the same in full, with something else that is true and that no other question asks for.
        type (`str`): of the turn.
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
    """`sentence` holds whatever the answer is."""
    answer = "Yes" if truth else "No"
    return Fact(question, answer, f"{answer}, {sentence}", "yes_no")


# Facts of one scene: open questions if `truth` is None, otherwise questions with that answer.


def ask_count(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Of the first group."""
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
    # Where they are makes the sentence worth reading, and nothing else asks for it.
    where = sorted({thing.position for thing in members})
    return f"{said}: {join(where)}." if where else f"{said}."


def open_count(rng: random.Random, scene: Scene, group: dict[str, str]) -> Fact:
    """`group`: what those that are counted have in common; there may be none."""
    name = group_name(group)
    question = rng.choice(
        (
            f"How many {plural(name)} are there in the picture?",
            f"How many {plural(name)} can you see?",
            f"Count the {plural(name)}. How many are there?",
            f"What is the number of {plural(name)} in the image?",
        )
    )
    sentence = capitalise(_say_count(scene, group))
    return Fact(question, str(len(scene.members(group))), sentence, "count", COUNTS)


def _unnamed(scene: Scene, name: str, values: Sequence[str]) -> list[str]:
    """
    Colours or shapes that no question of the scene names but as an answer: those of the groups and of the two objects
    that are asked about name something. These two never have one that is named with another object, so what is claimed
    or offered in vain must not be one of those either: it would give itself away.
    """
    named = {getattr(thing, name) for thing in scene.others()[:2]} | {group.get(name) for group in scene.groups}
    return [value for value in values if value not in named]


def _false_claim(rng: random.Random, scene: Scene, name: str, values: Sequence[str]) -> str:
    """Of nothing in the scene or, as often, of an object that has no question of its own."""
    present = {getattr(thing, name) for thing in scene.objects}
    unnamed = _unnamed(scene, name, values)
    claims = [[value for value in unnamed if (value in present) == shown] for shown in (True, False)]
    return rng.choice(rng.choice([some for some in claims if some]))


def ask_colour(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
    """Of the first object outside the groups, which is named by its shape."""
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
    """`where`: in which of two images, ` in the left image`."""
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
    """Of the second object outside the groups, which is named by its colour."""
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
    """Between the two objects, named as the other questions name them."""
    first, second = scene.others()[:2]
    subject, reference = f"the {first.shape}", f"the {second.colour} object"
    direction = direction_of(first, second)
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
        return Fact(question, direction, capitalise(sentence), "spatial", tuple(DIRECTIONS))
    claimed = DIRECTIONS[direction if truth else OPPOSITES[direction]]
    question = rng.choice((f"Is {subject} {claimed} {reference}?", f"Does {subject} lie {claimed} {reference}?"))
    return yes_no_fact(question, truth, sentence)


def ask_place(rng: random.Random, scene: Scene, truth: bool | None) -> Fact:
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
    """On the sign `index`."""
    word, sign = scene.signs[index].word, f"the sign{sign_positions(scene)[index]}"
    if truth is None:
        question = rng.choice(
            (f"What word is on {sign}?", f"What does {sign} say?", f"Read {sign}. Which word is written there?")
        )
        return Fact(question, word, f'{capitalise(sign)} says "{word}".', "text", WORDS)
    claimed = word if truth else rng.choice([other for other in WORDS if other not in {s.word for s in scene.signs}])
    question = rng.choice((f'Does {sign} say "{claimed}"?', f'Is the word on {sign} "{claimed}"?'))
    return yes_no_fact(question, truth, f'{sign} says "{word}".')


def spell_word(rng: random.Random, scene: Scene, index: int) -> Fact:
    letters, sign = "-".join(scene.signs[index].word), f"the sign{sign_positions(scene)[index]}"
    question = rng.choice((f"Spell the word on {sign}.", f"How is the word on {sign} spelled?"))
    return Fact(question, letters, f"The word is spelled {letters}.", "text")


# Turns of each kind: functions of the sample, its scenes and a generator.


def _colour_caption(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe the colours in the picture.",
        "What colours do the objects in this picture have?",
        "Write a caption that names the colour of each object.",
        "Caption this image, with the colours.",
    )
    looks = list_looks(scenes[0].objects)
    answers = (f"The picture shows {looks}.", f"In the picture there is {looks}.", f"{capitalise(looks)}.")
    return _caption_turn(rng, questions, rng.choice(answers))


def _caption_turn(rng: random.Random, questions: Sequence[str], answer: str) -> list[Turn]:
    return [Turn(rng.choice(questions), answer, "caption")]


def _count_caption(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
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


def _spatial_caption(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe where the objects are in relation to each other.",
        "How are the two objects arranged?",
        "Write a caption that says where things are.",
        "Caption this image, with the positions of the objects.",
    )
    first, second = scenes[0].others()
    relation = DIRECTIONS[direction_of(first, second)]
    relation = f"{with_article(first.name)} is {relation} {with_article(second.name)}"
    answers = (f"{capitalise(relation)}.", f"In the picture, {relation}.")
    return _caption_turn(rng, questions, rng.choice(answers))


def _scene_caption(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    questions = (
        "Describe the scene in the picture.",
        "What scene does the picture show?",
        "Write a caption for the scene.",
        "Caption this image: the place, and what is in it.",
    )
    place, looks = scenes[0].background, list_looks(scenes[0].objects)
    answers = (
        f"{caption_of(scenes[0])}.",
        f"The picture shows {place} with {looks}.",
        f"This is {place}, with {looks}.",
    )
    return _caption_turn(rng, questions, rng.choice(answers))


def _text_caption(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
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
    return _caption_turn(rng, questions, f"{capitalise(answer)}.")


def _multiple_choice(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """One to three turns."""
    topics = _topics(scenes[0])
    facts = [topic(rng, scenes[0], None) for topic in rng.sample(topics, min(len(topics), 3))]
    return [_offer_options(sample, fact, f"letter {turn}", rng) for turn, fact in enumerate(facts)]


def _offer_options(sample: Sample, fact: Fact, name: str, rng: random.Random) -> Turn:
    options = rng.sample([choice for choice in fact.choices if choice != fact.answer], 3)
    place = draw_evenly(sample, name, 4)
    options.insert(place, fact.answer)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return Turn(f"{fact.question}\n{listed}\n{LETTER_HINT}", "ABCD"[place], "multiple_choice", options)


def _topics(scene: Scene) -> list[Callable[[random.Random, Scene, bool | None], Fact]]:
    """What can be asked of a scene, each fact once."""
    if scene.signs:
        return [ask_word]
    topics = [ask_count]
    if len(scene.others()) >= 2:
        topics += [ask_colour, ask_shape, ask_direction]
    return topics + [ask_place] * (scene.background in PLACES)


def _short_conversation(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Two or three turns, one of them with yes or no."""
    facts = _converse(sample, scenes[0], rng, rng.choice((2, 3, 3)), num_yes_no=1)
    return _with_hint([fact.short() for fact in facts])


def _with_hint(turns: list[Turn]) -> list[Turn]:
    turns[0].question += f"\n{SHORT_HINT}"
    return turns


def _long_conversation(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Four to six turns in full sentences, two of them with yes or no; the description may be the last."""
    facts = _converse(sample, scenes[0], rng, rng.randint(4, 5), num_yes_no=2)
    return [fact.long() for fact in facts] + _describe_turn(sample, rng) * rng.randint(0, 1)


def _converse(sample: Sample, scene: Scene, rng: random.Random, number: int, num_yes_no: int) -> list[Fact]:
    topics = _topics(scene)
    number = min(number, len(topics))  # one less on a plain background
    topics = rng.sample(topics, number)
    truths = [None] * number
    for index, name in zip(rng.sample(range(number), num_yes_no), ("yes_no", "other_yes_no"), strict=False):
        truths[index] = bool(draw_evenly(sample, name, 2))
    return [topic(rng, scene, truth) for topic, truth in zip(topics, truths, strict=True)]


def _describe_turn(sample: Sample, rng: random.Random) -> list[Turn]:
    questions = ("Describe the image in detail.", "Now describe all that you see.", "Please give a full description.")
    return [Turn(rng.choice(questions), sample.description, "caption")]


def _contrast_short(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """What differs, or whether one thing does; then something about one of the images."""
    return _with_hint([_compare(sample, scenes, rng).short(), _ask_side(scenes, rng).short()])


def _contrast_long(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    facts = [_compare(sample, scenes, rng), _ask_side(scenes, rng)]
    return [fact.long() for fact in facts] + _describe_turn(sample, rng)


def _compare(sample: Sample, scenes: list[Scene], rng: random.Random) -> Fact:
    differences = _differences(*scenes)
    changed = [change for change in CHANGES if any(name == change for name, _ in differences)]
    form = draw_evenly(sample, "form", 4)
    if form < 2:
        question = rng.choice(
            (
                "What differs between the two images",
                "What is the difference between the left and the right image",
                "What has changed from the left image to the right one",
            )
        )
        if sample.kind == "contrast_short":
            question += f": {', '.join(CHANGES[:-1])} or {CHANGES[-1]}"
        sentence = " ".join(f"{capitalise(_compare_one(name, index, scenes))}." for name, index in differences)
        return Fact(f"{question}?", join(changed), sentence, "difference")
    same = form == 2
    change = rng.choice([change for change in CHANGES if (change in changed) != same])
    index = rng.choice(_candidates(change, differences, scenes))
    return yes_no_fact(_same_question(rng, change, index, scenes), same, _compare_one(change, index, scenes) + ".")


def _differences(left: Scene, right: Scene) -> list[tuple[str, int | None]]:
    """Names of `CHANGES`, with the index of the object; objects that both have come first in both."""
    found = []
    for index, (one, other) in enumerate(zip(left.objects, right.objects, strict=False)):
        found += [(name, index) for name in ("colour", "shape", "size") if getattr(one, name) != getattr(other, name)]
        found += [("position", index)] * ((one.x, one.y) != (other.x, other.y))
    found += [("number", None)] * (len(left.objects) != len(right.objects))
    return found + [("background", None)] * (left.background != right.background)


def _candidates(change: str, differences: list[tuple[str, int | None]], scenes: list[Scene]) -> list[int | None]:
    """Objects of which the question whether `change` differs can be asked with the answer that it has."""
    if change in ("number", "background"):
        return [None]
    changed = [index for name, index in differences if name == change]
    if changed:
        return changed
    # The name must hold in both images.
    named_by = "colour" if change == "shape" else "shape"
    return [
        index
        for index, (one, other) in enumerate(zip(*(scene.objects for scene in scenes), strict=False))
        if getattr(one, named_by) == getattr(other, named_by)
    ]


def _same_question(rng: random.Random, change: str, index: int | None, scenes: list[Scene]) -> str:
    if change == "number":
        return rng.choice(
            ("Do both images show the same number of objects?", "Is the number of objects the same in both images?")
        )
    if change == "background":
        return rng.choice(("Do both images have the same background?", "Is the background the same in both images?"))
    name = _name_in_both(change, scenes[0].objects[index])
    return rng.choice(
        (f"Does {name} have the same {change} in both images?", f"Is the {change} of {name} the same in both images?")
    )


def _name_in_both(change: str, thing: SceneObject) -> str:
    return f"the {thing.colour} object" if change == "shape" else f"the {thing.shape}"


def _compare_one(change: str, index: int | None, scenes: list[Scene]) -> str:
    """One thing in both images, without a full stop: what it is in the left and in the right one, or in both."""
    if change == "number":
        subject, values = "the number of objects", [NUMBERS[len(scene.objects)] for scene in scenes]
    elif change == "background":
        subject = "the background"
        values = [scene.background if scene.background in PLACES else f"plain {scene.background}" for scene in scenes]
    else:
        things = [scene.objects[index] for scene in scenes]
        subject = _name_in_both(change, things[0])
        values = [with_article(thing.shape) if change == "shape" else getattr(thing, change) for thing in things]
    if values[0] == values[1]:
        return f"{subject} is {values[0]} in both images"
    if change == "position":
        return f"{subject} is {values[0]} of the left image and {values[1]} of the right image"
    return f"{subject} is {values[0]} in the left image and {values[1]} in the right image"


def _ask_side(scenes: list[Scene], rng: random.Random) -> Fact:
    """About an object that is the same in both: what was said of the differences does not tell."""
    changed = {index for _, index in _differences(*scenes)}
    side = rng.randrange(2)
    thing = rng.choice([thing for index, thing in enumerate(scenes[side].objects) if index not in changed])
    return rng.choice((open_colour, open_shape))(rng, thing, f" in the {('left', 'right')[side]} image")


def _reasoning(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    form = draw_evenly(sample, "form", 4)
    return [_find_odd_one(scenes[0], rng) if form == 3 else _compare_groups(scenes[0], rng, form)]


def _compare_groups(scene: Scene, rng: random.Random, form: int) -> Turn:
    """`form`: 0 for a question that is answered by yes, 1 by no, 2 by a number."""
    groups = sorted(scene.groups, key=lambda group: len(scene.members(group)), reverse=True)
    numbers = [len(scene.members(group)) for group in groups]
    names = [group_name(group) for group in groups]
    many, few = numbers
    counts = join([counted(number, name) for number, name in zip(numbers, names, strict=True)])
    counts = f"there {'is' if many == 1 else 'are'} {counts}"
    if form == 2:
        question = rng.choice(
            (
                f"How many more {plural(names[0])} than {plural(names[1])} are there? Explain your answer.",
                f"By how many do the {plural(names[0])} outnumber the {plural(names[1])}? Show your reasoning.",
            )
        )
        answer = f"{capitalise(counts)}. {many} - {few} = {many - few}, so the answer is {many - few}."
        return Turn(question, answer, "count")
    compared = rng.choice(("more", "fewer"))
    # The first one of the question: of a true claim the more numerous, if it says "more".
    first = 0 if (compared == "more") == (form == 0) else 1
    claim = f"{compared} {plural(names[first])} than {plural(names[1 - first])}"
    question = rng.choice(
        (f"Are there {claim}? Explain your answer.", f"Does the picture show {claim}? Why, or why not?")
    )
    than = f"{NUMBERS[numbers[first]]} is {'more' if first == 0 else 'fewer'} than {NUMBERS[numbers[1 - first]]}"
    return Turn(question, f"{'No' if form else 'Yes'}: {counts}, and {than}.", "yes_no")


def _find_odd_one(scene: Scene, rng: random.Random) -> Turn:
    (odd,) = scene.others()
    alike = scene.members(scene.groups[0])
    attribute = "shape" if odd.shape != alike[0].shape else "colour"
    question = rng.choice(
        (
            "Which object is the odd one out, and why?",
            "One object does not belong with the others. Which is it, and why?",
            "Find the object that differs from all others and explain how.",
        )
    )
    answer = (
        f"There are {counted(len(alike), alike[0].name)} and {with_article(odd.name)}. All but one have the same"
        f" {attribute}, so the odd one out is the {odd.name} {odd.position}."
    )
    return Turn(question, answer, attribute)


def _text_qa(sample: Sample, scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """One of two words is asked for, about the other there is a question with yes or no."""
    first, second = rng.sample(range(2), 2)
    fact = spell_word(rng, scenes[0], first) if rng.random() < 0.3 else ask_word(rng, scenes[0], None, first)
    claim = ask_word(rng, scenes[0], bool(draw_evenly(sample, "yes_no", 2)), second)
    return _with_hint(rng.sample([fact.short(), claim.short()], 2))


TURNS: dict[str, Callable[[Sample, list[Scene], random.Random], list[Turn]]] = {
    "caption_colour": _colour_caption,
    "caption_count": _count_caption,
    "caption_spatial": _spatial_caption,
    "caption_scene": _scene_caption,
    "caption_text": _text_caption,
    "multiple_choice": _multiple_choice,
    "short_conversation": _short_conversation,
    "long_conversation": _long_conversation,
    "contrast_short": _contrast_short,
    "contrast_long": _contrast_long,
    "reasoning": _reasoning,
    "text_qa": _text_qa,
}
