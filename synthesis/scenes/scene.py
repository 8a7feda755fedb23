"""
Scenes: what an exact picture shows, as plain data; random ones for each kind of sample, and sentences about them.

Answers are balanced because they are drawn before the scene that they are true of: how many objects a group has, which
of two objects is on the left, what differs between two images. Everything else is exchangeable: colours, shapes and
words are drawn alike, whatever will be asked. What must come out even in a small data set too, such as the letters of
options, comes from `draw_evenly`.

Objects lie in the cells of a 3 x 3 grid, so that none touches another and every position has a name.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fusion_vlm.synthesis.sample import KINDS, Sample, stable_hash


# Colours are flat and far from those of every background (see render.py): an object can be read by its exact colour.
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
MAX_COUNT = 6  # the highest that is asked for
MAX_OTHERS = 6  # that a group lies among: two colours are left for it
CHANGES = ("colour", "shape", "size", "position", "number", "background")  # what two images may differ in

GRID = 3
JITTER = 0.04  # of a centre in its cell: the distance of two large neighbours stays above 0.02 of the side
POSITIONS = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)


@dataclass
class SceneObject:
    """
    Args:
        shape, colour, size (`str`): of `SHAPES`, `COLOURS`, `SIZES`.
        x, y (`float`): the centre, as shares of the side from the left and from the top.
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
        """With its preposition: `in the upper left`."""
        return POSITIONS[int(self.y * GRID)][int(self.x * GRID)]


@dataclass
class Sign:
    """
    A white board with a word.

    Args:
        word (`str`): in capitals.
        x, y, width (`float`): the centre and the width, as shares of the side.
    """

    word: str
    x: float
    y: float
    width: float


@dataclass
class Scene:
    """
    Args:
        background (`str`): of `PLAIN_BACKGROUNDS` or `PLACES`.
        objects (`list[SceneObject]`), signs (`list[Sign]`): in the order in which they are painted.
        groups (`list[dict[str, str]]`): what the objects that questions count have in common, a group each:
            `{"shape": "circle"}`, `{"colour": "red"}`, both, or nothing if all are counted.
    """

    background: str
    objects: list[SceneObject] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)

    def members(self, group: dict[str, str]) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.matches(group)]

    def others(self) -> list[SceneObject]:
        """Objects in no group. The grammar gives each a shape and a colour that no other object has."""
        return [thing for thing in self.objects if not any(thing.matches(group) for group in self.groups)]

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """The opposite of `to_dict`."""
        objects = [SceneObject(**thing) for thing in data["objects"]]
        return cls(data["background"], objects, [Sign(**sign) for sign in data["signs"]], data["groups"])


def direction_of(first: SceneObject, second: SceneObject) -> str | None:
    """Where `first` is, seen from `second`: of `DIRECTIONS`, or `None` where it is not clearly in one of them."""
    across, down = first.x - second.x, first.y - second.y
    if max(abs(across), abs(down)) < 0.2 or 2 * min(abs(across), abs(down)) > max(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def draw_evenly(sample: Sample, name: str, number: int) -> int:
    """
    A number below `number`, the same whenever it is asked for: random, but of any `number` samples of a kind whose
    indices follow each other from a multiple of it, each has another one.

    Args:
        sample (`Sample`): with its index in `source`.
        name (`str`): of what is drawn; draws of different names are independent.
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
    """`three red circles`"""
    return f"{NUMBERS[number]} {name if number == 1 else plural(name)}"


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def group_name(group: dict[str, str]) -> str:
    """`red circle`, `circle`, `red object` or `object`"""
    return " ".join(filter(None, (group.get("colour"), group.get("shape", "object"))))


def list_looks(objects: list[SceneObject]) -> str:
    """`two red circles and a blue star`"""
    looks = Counter(thing.name for thing in objects).items()
    return join([with_article(name) if number == 1 else counted(number, name) for name, number in looks])


def caption_of(scene: Scene) -> str:
    """One phrase without a full stop: `A beach with two red circles and a blue star`."""
    content = list_looks(scene.objects) if scene.objects else join([f'a sign "{sign.word}"' for sign in scene.signs])
    if scene.background in PLACES:
        return capitalise(f"{scene.background} with {content}")
    return capitalise(f"{content} on {with_article(scene.background)} background")


def describe(scene: Scene) -> str:
    """All of the scene in full sentences: background, objects with their size, colour and place, and signs."""
    place = scene.background if scene.background in PLACES else f"a plain {scene.background} background"
    sentences = [f"The picture shows {place}."]
    if scene.objects:
        number = counted(len(scene.objects), "object")
        sentences.append(f"There {'is' if len(scene.objects) == 1 else 'are'} {number} in it.")
    for thing in scene.objects:
        sentences.append(f"{capitalise(with_article(f'{thing.size} {thing.name}'))} is {thing.position}.")
    for sign, where in zip(scene.signs, sign_positions(scene), strict=True):
        sentences.append(f'A white sign{where} says "{sign.word}".')
    return " ".join(sentences)


def sign_positions(scene: Scene) -> list[str]:
    """Of two signs, ` on the left` and so on; of one sign, nothing."""
    if len(scene.signs) < 2:
        return [""] * len(scene.signs)
    names = (
        ("on the left", "on the right") if scene.signs[0].y == scene.signs[1].y else ("at the top", "at the bottom")
    )
    return [f" {name}" for name in names]


def capitalise(text: str) -> str:
    """Unlike `str.capitalize`, leaves the rest as it is."""
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
    Args:
        groups: for each one, what its objects have in common (`"shape"`, `"colour"`, both or nothing), and how many
            there are; nothing else in the scene has that in common with them.
        num_others (`int`): further objects, each of a shape and a colour of its own.
        direction (`str`, *optional*): where the first one of these is, seen from the second.
    """
    pools = {"shape": rng.sample(SHAPES, len(SHAPES)), "colour": rng.sample(list(COLOURS), len(COLOURS))}
    looks = [{name: pool.pop() for name, pool in pools.items()} for _ in range(num_others)]
    commons = [{name: pools[name].pop() for name in names} for names, _ in groups]
    for common, (_, number) in zip(commons, groups, strict=True):
        looks += [{name: common.get(name) or rng.choice(pools[name]) for name in pools} for _ in range(number)]
    objects = [
        SceneObject(**look, size=rng.choice(list(SIZES)), x=_jittered(rng, column), y=_jittered(rng, row))
        for look, (column, row) in zip(looks, _draw_cells(rng, len(looks), direction), strict=True)
    ]
    return Scene(background, objects, groups=commons)


def _draw_cells(rng: random.Random, number: int, direction: str | None) -> list[tuple[int, int]]:
    """Columns and rows, all different."""
    cells = [(column, row) for column in range(GRID) for row in range(GRID)]
    rng.shuffle(cells)
    if direction is not None:
        line, (near, far) = rng.randrange(GRID), sorted(rng.sample(range(GRID), 2))
        pair = (near, far) if direction in ("left", "above") else (far, near)
        pair = [(place, line) if direction in ("left", "right") else (line, place) for place in pair]
        cells = pair + [cell for cell in cells if cell not in pair]
    return cells[:number]


def _jittered(rng: random.Random, cell: int) -> float:
    return round((cell + 0.5) / GRID + rng.uniform(-JITTER, JITTER), 4)


def _draw_background(rng: random.Random) -> str:
    return rng.choice(rng.choice([list(PLAIN_BACKGROUNDS), PLACES]))


def _draw_plain(rng: random.Random) -> str:
    return rng.choice(list(PLAIN_BACKGROUNDS))


def _draw_common(rng: random.Random) -> tuple[str, ...]:
    return rng.choice([("shape",), ("colour",), ("shape", "colour")])


def _draw_count(sample: Sample) -> int:
    return 1 + draw_evenly(sample, "count", MAX_COUNT)


def _colour_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, _draw_plain(rng), num_others=_draw_count(sample))]


def _count_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    both, number = ("shape", "colour"), _draw_count(sample)
    more = [(both, rng.randint(1, min(MAX_COUNT, 8 - number)))] if rng.random() < 0.5 else []
    return [build_scene(rng, _draw_plain(rng), [(both, number), *more])]


def _spatial_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, _draw_plain(rng), num_others=2, direction=_draw_direction(rng))]


def _draw_direction(rng: random.Random) -> str:
    return rng.choice(list(DIRECTIONS))


def _place_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    return [build_scene(rng, rng.choice(PLACES), num_others=rng.randint(1, 3))]


def _text_scenes(sample: Sample, rng: random.Random, num_signs: int | None = None) -> list[Scene]:
    num_signs = num_signs or rng.randint(1, 2)
    words = rng.sample(WORDS, num_signs)
    if num_signs == 1:
        places = [(round(rng.uniform(0.36, 0.64), 4), round(rng.uniform(0.25, 0.75), 4), 0.6)]
    elif rng.random() < 0.5:
        places = [(0.26, 0.5, 0.42), (0.74, 0.5, 0.42)]
    else:
        places = [(0.5, 0.28, 0.6), (0.5, 0.72, 0.6)]
    signs = [Sign(word, *place) for word, place in zip(words, places, strict=True)]
    return [Scene(_draw_background(rng), signs=signs)]


def _conversation_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """
    A group to count, and objects that are unlike it and each other. Questions are about the first two of these; there
    may be more, so that the number of all objects does not tell that of the group.
    """
    number = _draw_count(sample)
    num_others = rng.randint(2, min(MAX_OTHERS, GRID**2 - number))
    groups = [(_draw_common(rng), number)]
    return [build_scene(rng, _draw_background(rng), groups, num_others=num_others, direction=_draw_direction(rng))]


def _multiple_choice_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Mostly the same; the questions that do not go with others have scenes of their own."""
    topic = rng.choice(("text", "all", "one", "one", "one", "one"))
    if topic == "text":
        return _text_scenes(sample, rng)
    if topic == "all":
        return [build_scene(rng, _draw_plain(rng), [((), _draw_count(sample))])]
    return _conversation_scenes(sample, rng)


def _reasoning_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """Two groups to compare, or a group of like objects and one that differs from them in one thing."""
    if draw_evenly(sample, "form", 4) == 3:
        scene = build_scene(rng, _draw_plain(rng), [(("shape", "colour"), rng.randint(3, 6))], num_others=1)
        same = rng.choice(("shape", "colour"))
        setattr(scene.objects[0], same, scene.groups[0][same])
        return [scene]
    difference = _draw_count(sample)
    fewer = rng.randint(1, (9 - difference) // 2)
    numbers = rng.sample([fewer, fewer + difference], 2)
    common = rng.choice([("shape",), ("colour",)])
    return [build_scene(rng, _draw_plain(rng), [(common, number) for number in numbers])]


def _contrast_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    """The left and the right image, which differ in one of `CHANGES`, or sometimes in two in `contrast_long`."""
    scene = build_scene(rng, _draw_background(rng), num_others=rng.randint(3, 5))
    changes = [rng.choice(CHANGES)]
    if sample.kind == "contrast_long" and rng.random() < 0.5:
        changes.append(rng.choice([change for change in CHANGES if change not in changes]))
    changed = Scene.from_dict(scene.to_dict())
    # Of different objects: each can then still be named by what has stayed the same.
    for name, index in zip(changes, rng.sample(range(len(scene.objects)), len(changes)), strict=True):
        _change(rng, changed, name, index, scene.objects + changed.objects)
    return rng.sample([scene, changed], 2)


def _change(rng: random.Random, scene: Scene, name: str, index: int, known: list[SceneObject]):
    """`known`: objects of both images; nothing new takes a place, a colour or a shape of theirs."""
    thing = scene.objects[index]
    cells = {(int(other.x * GRID), int(other.y * GRID)) for other in known}
    free = [(column, row) for column in range(GRID) for row in range(GRID) if (column, row) not in cells]
    unused = {
        "colour": [colour for colour in COLOURS if colour not in {other.colour for other in known}],
        "shape": [shape for shape in SHAPES if shape not in {other.shape for other in known}],
        "size": [size for size in SIZES if size != thing.size],
    }
    if name in unused:
        setattr(thing, name, rng.choice(unused[name]))
    elif name == "position":
        thing.x, thing.y = (_jittered(rng, place) for place in rng.choice(free))
    elif name == "number":
        number = rng.randint(1, MAX_COUNT - len(scene.objects))
        for shape, colour, (column, row) in zip(
            rng.sample(unused["shape"], number),
            rng.sample(unused["colour"], number),
            rng.sample(free, number),
            strict=True,
        ):
            size, x, y = rng.choice(list(SIZES)), _jittered(rng, column), _jittered(rng, row)
            scene.objects.append(SceneObject(shape, colour, size, x, y))
    else:
        scene.background = rng.choice([place for place in PLACES if place != scene.background])


def _text_qa_scenes(sample: Sample, rng: random.Random) -> list[Scene]:
    return _text_scenes(sample, rng, num_signs=2)


BUILDERS: dict[str, Callable[[Sample, random.Random], list[Scene]]] = {
    "caption_colour": _colour_scenes,
    "caption_count": _count_scenes,
    "caption_spatial": _spatial_scenes,
    "caption_scene": _place_scenes,
    "caption_text": _text_scenes,
    "multiple_choice": _multiple_choice_scenes,
    "short_conversation": _conversation_scenes,
    "long_conversation": _conversation_scenes,
    "contrast_short": _contrast_scenes,
    "contrast_long": _contrast_scenes,
    "reasoning": _reasoning_scenes,
    "text_qa": _text_qa_scenes,
}


def make_scene_sample(index: int, kind: str, seed: int) -> Sample:
    """
    A sample with random scenes, caption and description, and nothing else yet.

    Args:
        index (`int`): of the sample among those of its kind, from 0. Small data sets are balanced only if each kind
            has all indices up to its number of samples.
        kind (`str`): of `KINDS`.
        seed (`int`): of the run.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in BUILDERS:
        raise ValueError(f"The kind is {kind!r}, expected one of {', '.join(KINDS)}.")
    sample = Sample(f"{kind}-{index:07}", kind, seed, source={"captions": "scene grammar", "index": index})
    scenes = BUILDERS[kind](sample, sample.rng("scene"))
    sample.scenes = [scene.to_dict() for scene in scenes]
    sample.caption, sample.description = caption_of(scenes[0]), describe(scenes[0])
    if len(scenes) == 2:
        sample.caption = f"Left image: {caption_of(scenes[0])}. Right image: {caption_of(scenes[1])}"
        sample.description = f"Left image: {describe(scenes[0])} Right image: {describe(scenes[1])}"
    return sample
