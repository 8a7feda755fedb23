"""Questions about the text on signs and objects."""

import random

from fusion_vlm.synthesis.scenes.colors import COLORS
from fusion_vlm.synthesis.scenes.english import capitalize, say
from fusion_vlm.synthesis.scenes.facts import Fact, make_fact, make_yes_no
from fusion_vlm.synthesis.scenes.scene import Scene
from fusion_vlm.synthesis.scenes.signs import draw_text
from fusion_vlm.synthesis.scenes.view import View


NTH = ("first", "second", "third")


def name_sign(scene: Scene, index: int) -> str:
    """Return the name of a sign with its article: `the red sign`, `the sign`, `the T-shirt`."""
    sign = scene.signs[index]
    if sign.on is not None:
        return f"the {scene.objects[sign.on].noun}"
    boards = [other for other in scene.signs if other.on is None]
    return "the sign" if len(boards) == 1 else f"the {sign.color} sign"


def _tell(index: int) -> frozenset:
    return frozenset({("sign color", index), *(("line", index, number) for number in range(3)), ("spelling", index)})


def ask_text(rng: random.Random, view: View, truth: bool | None, index: int | None = None) -> Fact | None:
    """Ask what a sign says."""
    index = rng.randrange(len(view.scene.signs)) if index is None else index
    sign = view.scene.signs[index]
    words = {"a": name_sign(view.scene, index), "text": sign.text}
    if truth is None:
        choices = (sign.text, *_draw_other_texts(rng, view, index, 4))
        return make_fact(rng, "text", words, sign.text, "text", ("text", index), _tell(index), choices)
    claimed = sign.text if truth else _draw_other_texts(rng, view, index, 1)[0]
    sentence = say(rng, "text.say", **words, A=capitalize(words["a"]))
    return make_yes_no(rng, "text", words | {"text": claimed}, truth, sentence, ("text", index), _tell(index))


def _draw_other_texts(rng: random.Random, view: View, index: int, number: int) -> list[str]:
    """Draw texts that are not in the scene, of the form of a sign's text."""
    sign = view.scene.signs[index]
    form = "lines" if len(sign.lines) > 1 else "number" if any(char.isdigit() for char in sign.text) else "word"
    if form == "word" and " " in sign.text:
        form = "phrase"
    taken, found = {other.text.lower() for other in view.scene.signs}, []
    while len(found) < number:
        text = " ".join(draw_text(rng, form))
        if text.lower() not in taken:
            taken.add(text.lower())
            found.append(text)
    return found


def ask_spelling(rng: random.Random, view: View, truth: bool | None, index: int | None = None) -> Fact | None:
    """Ask for the letters of a sign with one word."""
    words = [i for i, sign in enumerate(view.scene.signs) if sign.text.isalpha()]
    if truth is not None or not words or (index is not None and index not in words):
        return None
    index = rng.choice(words) if index is None else index
    letters = "-".join(view.scene.signs[index].text.upper())
    words = {"a": name_sign(view.scene, index), "letters": letters}
    return make_fact(rng, "spell", words, letters, "text", ("spelling", index), _tell(index) | {("text", index)})


def ask_line(rng: random.Random, view: View, truth: bool | None, index: int | None = None) -> Fact | None:
    """Ask for one line of a sign that has several."""
    several = [i for i, sign in enumerate(view.scene.signs) if len(sign.lines) > 1]
    if truth is not None or not several or (index is not None and index not in several):
        return None
    index = rng.choice(several) if index is None else index
    sign = view.scene.signs[index]
    line = rng.randrange(len(sign.lines))
    words = {"a": name_sign(view.scene, index), "nth": NTH[line], "n": str(line + 1), "text": sign.lines[line]}
    choices = (sign.lines[line], *(other for other in sign.lines if other != sign.lines[line]))
    choices += tuple(_draw_other_texts(rng, view, index, 3))
    asks = ("line", index, line)
    return make_fact(rng, "line", words, sign.lines[line], "text", asks, _tell(index) | {("text", index)}, choices)


def ask_sign_color(rng: random.Random, view: View, truth: bool | None, index: int | None = None) -> Fact | None:
    """Ask for the color of the board with a text."""
    boards = [i for i, sign in enumerate(view.scene.signs) if sign.on is None]
    if truth is not None or not boards or (index is not None and index not in boards):
        return None
    index = rng.choice(boards) if index is None else index
    sign = view.scene.signs[index]
    words = {"text": sign.text, "color": sign.color}
    tells = frozenset({("text", index), ("spelling", index), *(("line", index, number) for number in range(3))})
    return make_fact(rng, "sign_color", words, sign.color, "colour", ("sign color", index), tells, tuple(COLORS))
