"""Draws signs: what they say, in which form, and where; on boards of their own or on objects."""

import random
from calendar import month_name
from functools import cache
from pathlib import Path

from fusion_vlm.synthesis.scenes.backgrounds import list_look_alikes
from fusion_vlm.synthesis.scenes.build import draw_nouns, draw_object
from fusion_vlm.synthesis.scenes.colors import COLORS, DARK_INK, LIGHT_INK, contrast_ink, contrast_ratio, jitter_color
from fusion_vlm.synthesis.scenes.layout import Circle, place_apart
from fusion_vlm.synthesis.scenes.lettering import TEXT_HEIGHT, TEXT_WIDTH, draw_face, measure_text
from fusion_vlm.synthesis.scenes.scene import Background, Scene, SceneObject, Sign


TOWN_SHARE = 0.6  # of the signs with one word
FORMS = ("board", "board", "rounded", "oval")
LETTER_SIZE = (0.062, 0.12)  # of the em square, as a share of the side
MIN_LETTER_SIZE = 0.047  # where there is little room: capitals have 11 pixels at 336
MIN_CONTRAST = 4.0  # of ink and board
MAX_WIDTH, MAX_HEIGHT = 0.62, 0.4
# Objects that carry text, and the box for it: center and sides, in shares of the radius around the object.
CARRIERS = {
    "T-shirt": (0.0, 0.25, 0.72, 0.62),
    "truck": (-0.34, -0.02, 1.0, 0.62),
    "bus": (0.0, 0.3, 1.3, 0.26),
    "book": (0.2, 0.32, 0.72, 0.6),
    "shield": (0.0, -0.1, 0.95, 0.6),
    "rectangle": (0.0, 0.0, 1.45, 0.6),
    "square": (0.0, 0.0, 1.2, 0.9),
    "circle": (0.0, 0.0, 1.2, 0.7),
    "oval": (0.0, 0.0, 1.3, 0.55),
    "mug": (-0.08, 0.2, 0.8, 0.55),
    "drum": (0.0, 0.25, 1.2, 0.4),
}
CARRIER_SCALE = (0.15, 0.19)
# Many, because "Which words are on the first line?" could be answered with the one unseen.
GREETINGS = ("Welcome to", "Now entering", "Next stop", "Ferry to", "Trail to", "Road to", "Visit", "Greetings from")
LABEL_SHARE = 0.45  # of the texts, if they are short


@cache
def load_words() -> dict[str, tuple[str, ...]]:
    """Read words.txt: the words of each section; of `notice`, the notices with `|` between lines."""
    words, name = {}, ""
    for line in (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            words[name] = ()
        elif name and not line.startswith("#"):
            words[name] += (line,) if name == "notice" else tuple(line.split())
    return words


def draw_text(rng: random.Random, form: str | None = None) -> list[str]:
    """
    Draw the lines of a sign.

    Args:
        rng (`random.Random`)
        form (`str`, *optional*): `word`, `number`, or `lines` for two or more; any form by default.
    """
    words = load_words()
    form = form or rng.choice(("word", "word", "number", "lines", "lines", "phrase"))
    if form == "word":
        lines = [_draw_town(rng) if rng.random() < TOWN_SHARE else rng.choice(words["word"])]
    elif form == "number":
        return [_draw_number(rng)]
    elif form == "phrase":
        phrases = (
            f"{rng.choice(words['name'])}'s {rng.choice(words['shop'])}",
            " ".join(rng.sample(words["word"], 2)),
            f"{_draw_town(rng)} {rng.choice(words['shop'])}",
            f"{_draw_town(rng)} to {_draw_town(rng)}",
        )
        lines = [rng.choice(phrases)]
    else:
        name = rng.choice((_draw_town(rng), rng.choice(words["name"])))
        street = f"{name} {rng.choice(('Street', 'Avenue', 'Road', 'Lane', 'Drive', 'Court'))}"
        lines = rng.choice(
            (
                rng.choice(words["notice"]).split("|"),
                [rng.choice(words["name"]) + "'s", rng.choice(words["shop"])],
                [rng.choice(words["shop"]), f"& {rng.choice(words['shop'])}"],
                [street, str(rng.randint(2, 9900))],
                [rng.choice(words["word"]), _draw_town(rng), _draw_number(rng)],
                [rng.choice(words["shop"]), _draw_number(rng)],
                [_draw_town(rng), f"{rng.randint(2, 180)} miles"],
                [f"{_draw_town(rng)} {rng.randint(2, 180)}" for _ in range(2)],
                [f"{_draw_town(rng)} {rng.randint(2, 180)}" for _ in range(3)],
                [_draw_town(rng), rng.choice(words["shop"])],
                [rng.choice(GREETINGS), _draw_town(rng)],
            )
        )
    return _set_case(rng, lines)


def _draw_town(rng: random.Random) -> str:
    """Draw the name of a town that may not exist."""
    words = load_words()
    return rng.choice(words["town_start"]) + rng.choice(words["town_end"])


def _set_case(rng: random.Random, lines: list[str]) -> list[str]:
    """Write lines in capitals, with capital first letters, or as they are."""
    case = rng.randrange(3)
    if case == 0:
        return [line.upper() for line in lines]
    if case == 1:
        return [" ".join(word[0].upper() + word[1:] for word in line.split()) for line in lines]
    return lines


def _draw_number(rng: random.Random) -> str:
    """Draw a number, a price, a time, a date, a telephone number or a code."""
    form = rng.randrange(7)
    if form == 0:
        return f"${rng.randint(1, 99)}.{rng.choice(('00', '50', '95', '99', '25', '75'))}"
    if form == 1:
        return f"{rng.randint(1, 12)}:{rng.randint(0, 59):02} {rng.choice(('AM', 'PM'))}"
    if form == 2:
        return f"{rng.choice(month_name[1:])} {rng.randint(1, 28)}"
    if form == 3:
        return f"555-{rng.randint(0, 9999):04}"
    if form == 4:
        return f"{rng.choice('ABCDEFGHJKLMNPRSTUVWXYZ')}-{rng.randint(2, 99)}"
    return str(rng.randint(2, 10 ** rng.randint(1, 4)))


def draw_sign(rng: random.Random, lines: list[str], color: str, shrink: float = 1.0) -> Sign:
    """Draw the form of a sign; its size follows from its text."""
    face = draw_face(rng, lines)
    rgb = jitter_color(rng, color)
    inks = [
        ink for ink in (DARK_INK, LIGHT_INK, (150, 30, 30), (24, 60, 130)) if contrast_ratio(ink, rgb) > MIN_CONTRAST
    ]
    ink = rng.choice([*inks, contrast_ink(rgb)])
    wide, tall = measure_text(lines, face)
    form = rng.choice(FORMS)
    shares = (0.7, 0.62) if form == "oval" else (TEXT_WIDTH - 0.06, TEXT_HEIGHT - 0.08)
    size = min(
        max(MIN_LETTER_SIZE, shrink * rng.uniform(*LETTER_SIZE)),
        MAX_WIDTH * shares[0] / wide,
        MAX_HEIGHT * shares[1] / tall,
    )
    width, height = (round(size * length / share, 4) for length, share in ((wide, shares[0]), (tall, shares[1])))
    return Sign(
        lines,
        0.5,
        0.5,
        max(width, 0.16),
        max(height, 0.11),
        color,
        list(rgb),
        list(ink),
        face,
        form,
        round(rng.uniform(-7, 7), 1),
    )


def build_sign_scene(
    rng: random.Random, background: Background, texts: list[list[str]], num_objects: int = 0
) -> Scene:
    """
    Draw a scene of signs in different colors, some on objects, and further objects between them.

    Args:
        rng (`random.Random`)
        background (`Background`)
        texts (`list[list[str]]`): the lines of each sign. They have to differ.
        num_objects (`int`): further objects.
    """
    for attempt in range(60):
        shrink = 1.15 - 0.15 * len(texts) - 0.02 * attempt
        scene = _try_sign_scene(rng, background, texts, num_objects, shrink)
        if scene is not None:
            return scene
        num_objects = max(0, num_objects - 1)
    raise AssertionError(f"There is no room for the signs {texts}.")


def _try_sign_scene(
    rng: random.Random, background: Background, texts: list[list[str]], num_objects: int, shrink: float
) -> Scene | None:
    scene, taken = Scene(background), []
    excluded = list_look_alikes(background)
    colors = rng.sample(list(COLORS), len(texts))
    carriers = rng.sample([noun for noun in CARRIERS if noun not in excluded], len(texts))
    families = set()
    for lines, color, noun in zip(texts, colors, carriers, strict=True):
        carrier = _draw_carrier(rng, lines, noun, color) if rng.random() < LABEL_SHARE else None
        if carrier is not None and carrier[0].outline.family not in families:
            thing, label = carrier
            families.add(thing.outline.family)
            if not place_apart(rng, [thing], taken):
                return None
            scene.objects.append(thing)
            label.x, label.y, label.on = (
                round(thing.x + label.x, 4),
                round(thing.y + label.y, 4),
                len(scene.objects) - 1,
            )
            scene.signs.append(label)
        else:
            sign = draw_sign(rng, lines, color, shrink)
            place = draw_free_sign(rng, sign, taken)
            if place is None:
                return None
            sign.x, sign.y = place
            scene.signs.append(sign)
    things = [draw_object(rng, noun, "small") for noun in draw_nouns(rng, num_objects, excluded, families)]
    if not place_apart(rng, things, taken):
        return None
    scene.objects += things
    return scene


def draw_free_sign(rng: random.Random, sign: Sign, taken: list[Circle]) -> tuple[float, float] | None:
    """Draw a center for a sign, and take its room as a row of circles."""
    half = sign.height / 2 + 0.02
    number = max(1, round(sign.width / sign.height))
    for _ in range(60):
        # A little more than half of the width: a board may be turned.
        x, y = rng.uniform(sign.width / 2 + 0.03, 0.97 - sign.width / 2), rng.uniform(half + 0.05, 0.95 - half)
        step = sign.width / number
        row = [(x + (place - (number - 1) / 2) * step, y, 0.75 * max(step, sign.height)) for place in range(number)]
        clear = all((a - c) ** 2 + (b - d) ** 2 >= (r + s) ** 2 for a, b, r in row for c, d, s in taken)
        if sign.width < 0.94 and clear:
            taken += row
            return round(x, 4), round(y, 4)
    return None


def _draw_carrier(rng: random.Random, lines: list[str], noun: str, color: str) -> tuple[SceneObject, Sign] | None:
    """Draw an object and the text on it, relative to its center; None if the text is too long to be read there."""
    thing = draw_object(rng, noun, "large", color=color, pattern="plain")
    thing.scale, thing.angle, thing.facing = round(rng.uniform(*CARRIER_SCALE), 4), 0.0, None
    across, down, width, height = (round(share * thing.radius, 4) for share in CARRIERS[noun])
    face = draw_face(rng, lines)
    wide, tall = measure_text(lines, face)
    if min(TEXT_WIDTH * width / wide, TEXT_HEIGHT * height / tall) < MIN_LETTER_SIZE:
        return None
    ink = list(contrast_ink(tuple(thing.rgb)))
    return thing, Sign(lines, across, down, width, height, thing.color, list(thing.rgb), ink, face, "label")
