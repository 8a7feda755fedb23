"""
Scenes, the content of exact pictures as plain data: sentences about them, and draws of random ones.

Answers are balanced because they are drawn before the scene: how many objects a group has, which of two objects is on
the left, what differs between two images. Colours, shapes and words have the same distribution whatever is asked.
`draw_evenly` draws what has to be even in a small data set too, such as the letters of options.

Objects lie in the cells of a 3 x 3 grid, so none touches another and every position has a name.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fusion_vlm.synthesis.sample import Sample, stable_hash


# Colors are far from those of every background (see render.py), so the exact color of a pixel tells its object.
COLOURS = {
    "red": (230, 0, 0),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 0),
    "green": (0, 150, 0),
    "blue": (30, 60, 230),
    "purple": (130, 0, 150),
    "pink": (255, 110, 180),
    "brown": (120, 70, 20),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "square", "triangle", "rectangle", "oval", "star", "diamond", "cross", "heart", "arrow")
SIZES = {"small": 0.0575, "large": 0.115}  # half the side of the box around an object, as a share of the image side
PLAIN_BACKGROUNDS = {
    "white": (255, 255, 255),
    "light grey": (226, 228, 230),
    "cream": (252, 244, 220),
    "beige": (232, 218, 196),
}
PLACES = (
    "a grassy field",
    "a beach",
    "a night sky",
    "a desert",
    "a forest",
    "a mountain range",
    "a city",
    "the open sea",
)
WORD_LIST = """
ACE AIR ANT APPLE BAG BAKE BALL BANK BAR BED BELL BIKE BIRD BOAT BOOK BOX BREAD BUS CAFE CAKE CAMP CAR CAT CHAIR
CLOCK COAT COIN COLD COOK CORN CUP DANCE DAY DESK DOG DOOR DRUM DUCK EAGLE EAST EGG EXIT FARM FAST FIRE FISH FLAG
FOOD FOX FROG FRUIT GAME GATE GIFT GOAT GOOD GYM HAND HAT HELLO HELP HILL HOME HORSE HOT HOTEL HOUSE ICE INK JAM JAZZ
JUMP KEY KING KITE LAKE LAMP LEAF LEMON LION LOVE LUCK MAP MARKET MILK MOON MOUSE MUSIC NEST NEW NORTH NOTE OPEN OWL
PAINT PARK PEN PIANO PIZZA PLANT POOL PUSH QUEEN QUIET QUIZ RADIO RAIN RICE RIVER ROAD ROCK ROOF SALE SALT SAND
SCHOOL SHIP SHOE SHOP SLOW SNOW SOAP SOCK SONG SOUP SPOON STOP SUGAR SUN TABLE TAXI TEA TENT TIGER TOWER TOY TRAIN
TREE TRUCK VASE VOICE WATER WEST WIND WOLF WOOD YARD ZEBRA ZOO
"""
WORDS = tuple(WORD_LIST.split())
DIRECTIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_COUNT = 6  # the highest number that is asked for
MAX_OTHERS = 6  # objects beside a group: more would leave fewer than two colors for the group
CHANGES = ("colour", "shape", "size", "position", "number", "background")  # in which two images may differ

GRID = 3
JITTER = 0.04  # of a center in its cell: two large neighbors stay 0.02 of the side or more apart
POSITIONS = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)


@dataclass
class SceneObject:
    """
    An object in a scene.

    Args:
        shape (`str`), colour (`str`), size (`str`): one of `SHAPES`, `COLOURS`, `SIZES`.
        x (`float`), y (`float`): the center, as shares of the side from the left and from the top.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def matches(self, group: dict[str, str]) -> bool:
        return all(getattr(self, name) == value for name, value in group.items())

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def position(self) -> str:
        """Return the place with its preposition: `in the upper left`."""
        return POSITIONS[int(self.y * GRID)][int(self.x * GRID)]


@dataclass
class Sign:
    """
    A white board with a word.

    Args:
        word (`str`): in capitals.
        x (`float`), y (`float`), width (`float`): the center and the width, as shares of the side.
    """

    word: str
    x: float
    y: float
    width: float


@dataclass
class Scene:
    """
    The content of one picture.

    Args:
        background (`str`): one of `PLAIN_BACKGROUNDS` or `PLACES`.
        objects (`list[SceneObject]`), signs (`list[Sign]`): in the order in which they are painted.
        groups (`list[dict[str, str]]`): the groups that questions count, each by what its objects have in common:
            `{"shape": "circle"}`, `{"colour": "red"}`, both, or nothing if all objects are counted.
    """

    background: str
    objects: list[SceneObject] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)

    def members(self, group: dict[str, str]) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.matches(group)]

    def others(self) -> list[SceneObject]:
        """Return the objects in no group. In random scenes, each has a shape and a color that no other object has."""
        return [thing for thing in self.objects if not any(thing.matches(group) for group in self.groups)]

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """Build a scene from the data that `to_dict` returns."""
        objects = [SceneObject(**thing) for thing in data["objects"]]
        return cls(data["background"], objects, [Sign(**sign) for sign in data["signs"]], data["groups"])


def find_direction(first: SceneObject, second: SceneObject) -> str | None:
    """Return which of `DIRECTIONS` `first` is in, seen from `second`; None if it is not clearly in one of them."""
    across, down = first.x - second.x, first.y - second.y
    if max(abs(across), abs(down)) < 0.2 or 2 * min(abs(across), abs(down)) > max(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def draw_evenly(sample: Sample, name: str, number: int) -> int:
    """
    Draw a number below `number` that is balanced over the samples of a kind.

    The `number` samples from each multiple of `number` on have all numbers, each once, in random order. Another call
    with the same arguments returns the same number.

    Args:
        sample (`Sample`): a sample with its index in `source`.
        name (`str`): purpose of the draw. Draws of different names are independent.
        number (`int`)
    """
    block, place = divmod(sample.source["index"], number)
    order = list(range(number))
    random.Random(stable_hash(sample.seed, sample.kind, name, block)).shuffle(order)
    return order[place]


# Sentences


def join(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def counted(number: int, name: str) -> str:
    """Return a number and a name in words: `three red circles`."""
    return f"{NUMBERS[number]} {name if number == 1 else plural(name)}"


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def group_name(group: dict[str, str]) -> str:
    """Return the name of an object of a group: `red circle`, `circle`, `red object` or `object`."""
    return " ".join(filter(None, (group.get("colour"), group.get("shape", "object"))))


def list_looks(objects: list[SceneObject]) -> str:
    """List objects in words: `two red circles and a blue star`."""
    looks = Counter(thing.name for thing in objects).items()
    return join([with_article(name) if number == 1 else counted(number, name) for name, number in looks])


def write_caption(scene: Scene) -> str:
    """Write a phrase without a full stop: `A beach with two red circles and a blue star`."""
    content = list_looks(scene.objects) if scene.objects else join([f'a sign "{sign.word}"' for sign in scene.signs])
    if scene.background in PLACES:
        return capitalize(f"{scene.background} with {content}")
    return capitalize(f"{content} on {with_article(scene.background)} background")


def describe_scene(scene: Scene) -> str:
    """Describe all of a scene in sentences: background, objects with their size, color and place, and signs."""
    place = scene.background if scene.background in PLACES else f"a plain {scene.background} background"
    sentences = [f"The picture shows {place}."]
    if scene.objects:
        number = counted(len(scene.objects), "object")
        sentences.append(f"There {'is' if len(scene.objects) == 1 else 'are'} {number} in it.")
    for thing in scene.objects:
        sentences.append(f"{capitalize(with_article(f'{thing.size} {thing.name}'))} is {thing.position}.")
    for sign, where in zip(scene.signs, sign_positions(scene), strict=True):
        sentences.append(f'A white sign{where} says "{sign.word}".')
    return " ".join(sentences)


def sign_positions(scene: Scene) -> list[str]:
    """Return ` on the left` and so on for each of two signs; an empty string for a single sign."""
    if len(scene.signs) < 2:
        return [""] * len(scene.signs)
    names = (
        ("on the left", "on the right") if scene.signs[0].y == scene.signs[1].y else ("at the top", "at the bottom")
    )
    return [f" {name}" for name in names]


def capitalize(text: str) -> str:
    """Make the first character a capital. Unlike `str.capitalize`, leave the rest as it is."""
    return text[0].upper() + text[1:]


# Random scenes


def build_scene(
    rng: random.Random,
    background: str,
    groups: Sequence[tuple[tuple[str, ...], int]] = (),
    num_others: int = 0,
    direction: str | None = None,
) -> Scene:
    """
    Draw a scene of objects.

    Args:
        rng (`random.Random`)
        background (`str`): one of `PLAIN_BACKGROUNDS` or `PLACES`.
        groups (`Sequence[tuple[tuple[str, ...], int]]`): for each group, what its objects have in common (`"shape"`,
            `"colour"`, both or nothing), and their number. No other object of the scene has that in common with them.
        num_others (`int`): number of further objects, each of a shape and a colour that no other object has.
        direction (`str`, *optional*): one of `DIRECTIONS`: where the first of the further objects is, seen from the
            second.
    """
    pools = {"shape": rng.sample(SHAPES, len(SHAPES)), "colour": rng.sample(list(COLOURS), len(COLOURS))}
    looks = [{name: pool.pop() for name, pool in pools.items()} for _ in range(num_others)]
    commons = [{name: pools[name].pop() for name in names} for names, _ in groups]
    for common, (_, number) in zip(commons, groups, strict=True):
        looks += [{name: common.get(name) or rng.choice(pools[name]) for name in pools} for _ in range(number)]
    objects = [
        SceneObject(**look, size=rng.choice(list(SIZES)), x=jitter(rng, column), y=jitter(rng, row))
        for look, (column, row) in zip(looks, _draw_cells(rng, len(looks), direction), strict=True)
    ]
    return Scene(background, objects, groups=commons)


def _draw_cells(rng: random.Random, number: int, direction: str | None) -> list[tuple[int, int]]:
    """Draw different cells of the grid, as column and row."""
    cells = [(column, row) for column in range(GRID) for row in range(GRID)]
    rng.shuffle(cells)
    if direction is not None:
        line, (near, far) = rng.randrange(GRID), sorted(rng.sample(range(GRID), 2))
        pair = (near, far) if direction in ("left", "above") else (far, near)
        pair = [(place, line) if direction in ("left", "right") else (line, place) for place in pair]
        cells = pair + [cell for cell in cells if cell not in pair]
    return cells[:number]


def jitter(rng: random.Random, cell: int) -> float:
    """Draw a coordinate near the center of a cell."""
    return round((cell + 0.5) / GRID + rng.uniform(-JITTER, JITTER), 4)


def draw_background(rng: random.Random) -> str:
    """Draw a plain background or a place, each half of the time."""
    return rng.choice(rng.choice([list(PLAIN_BACKGROUNDS), PLACES]))


def draw_plain(rng: random.Random) -> str:
    return rng.choice(list(PLAIN_BACKGROUNDS))


def draw_common(rng: random.Random) -> tuple[str, ...]:
    """Draw what the objects of a group have in common."""
    return rng.choice([("shape",), ("colour",), ("shape", "colour")])


def draw_count(sample: Sample) -> int:
    """Draw the number that is asked for; the numbers are balanced over the samples of a kind."""
    return 1 + draw_evenly(sample, "count", MAX_COUNT)


def draw_direction(rng: random.Random) -> str:
    return rng.choice(list(DIRECTIONS))


def build_sign_scene(rng: random.Random, num_signs: int) -> Scene:
    """Draw a scene of one or two signs with different words."""
    words = rng.sample(WORDS, num_signs)
    if num_signs == 1:
        places = [(round(rng.uniform(0.36, 0.64), 4), round(rng.uniform(0.25, 0.75), 4), 0.6)]
    elif rng.random() < 0.5:
        places = [(0.26, 0.5, 0.42), (0.74, 0.5, 0.42)]
    else:
        places = [(0.5, 0.28, 0.6), (0.5, 0.72, 0.6)]
    signs = [Sign(word, *place) for word, place in zip(words, places, strict=True)]
    return Scene(draw_background(rng), signs=signs)
