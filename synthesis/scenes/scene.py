"""Scenes, the content of exact pictures as plain data."""

import dataclasses
import random
from dataclasses import dataclass, field

from fusion_vlm.synthesis.sample import Sample, stable_hash
from fusion_vlm.synthesis.scenes.outlines import Outline, load_outlines


PATTERNS = ("plain", "striped", "polka-dotted", "checkered", "zigzag")
# Half of the square root of an object's area, as a share of the image side. Any two sizes differ by a fifth or more.
SIZES = {"small": (0.036, 0.042), "medium": (0.052, 0.061), "large": (0.077, 0.093)}
MAX_COUNT = 12  # the highest number of a group


@dataclass
class SceneObject:
    """
    An object in a scene.

    Args:
        noun (`str`): one of `load_outlines()`.
        color (`str`), rgb (`list[int]`): the name of the main color, and the color itself.
        pattern (`str`): one of `PATTERNS`, of the parts with the main color.
        size (`str`): one of `SIZES`.
        scale (`float`): the value within the range of `size`: half of the square root of the area.
        x (`float`), y (`float`): the center, as shares of the side from the left and from the top.
        angle (`float`): rotation in degrees, clockwise.
        facing (`str`, *optional*): `left` or `right`, for things that have a side to look to.
        finish (`str`): `flat`, `shaded` (darker toward the bottom) or `outlined`.
    """

    noun: str
    color: str
    rgb: list[int]
    pattern: str
    size: str
    scale: float
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0
    facing: str | None = None
    finish: str = "flat"

    @property
    def outline(self) -> Outline:
        return load_outlines()[self.noun]

    @property
    def radius(self) -> float:
        """Return the radius of the circle around the object, as a share of the side."""
        return 2 * self.scale / (3.1416 * self.outline.fill) ** 0.5

    def matches(self, group: dict[str, str]) -> bool:
        return all(getattr(self, name) == value for name, value in group.items())


@dataclass
class Sign:
    """
    A board with text.

    Args:
        lines (`list[str]`): the text, line by line.
        x (`float`), y (`float`), width (`float`), height (`float`): the center and the sides, as shares of the side.
        color (`str`), rgb (`list[int]`): the board.
        ink (`list[int]`): the letters.
        font (`str`): name of a face in `fonts.available_fonts()`.
        form (`str`): `board`, `rounded`, `oval`, or `label` for text on an object, without a board.
        angle (`float`): rotation in degrees, clockwise.
        on (`int`, *optional*): index of the object that a label is on.
    """

    lines: list[str]
    x: float
    y: float
    width: float
    height: float
    color: str
    rgb: list[int]
    ink: list[int]
    font: str
    form: str = "board"
    angle: float = 0.0
    on: int | None = None

    @property
    def text(self) -> str:
        return " ".join(self.lines)


@dataclass
class Background:
    """
    What is behind the objects.

    Args:
        kind (`str`): `place`, `surface` or `photo`.
        name (`str`): a place with its article (`a beach`), the name of a surface, or that of a photograph.
        seed (`int`): decides horizon, palette and clutter.
        time (`str`, *optional*): `day`, `sunset` or `night`, of places outdoors.
    """

    kind: str
    name: str
    seed: int
    time: str | None = None

    @property
    def is_place(self) -> bool:
        return self.kind == "place"


@dataclass
class Scene:
    """
    The content of one picture.

    Args:
        background (`Background`)
        objects (`list[SceneObject]`), signs (`list[Sign]`): in the order in which they are painted.
        groups (`list[dict[str, str]]`): groups that questions count, each by what its objects have in common:
            `{"noun": "star", "color": "red"}`. A group may be empty.
        relations (`list[list]`): relations that the scene was built for: name, index of the object, index of what it
            stands in relation to (two for `between`).
    """

    background: Background
    objects: list[SceneObject] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)
    relations: list[list] = field(default_factory=list)

    def members(self, group: dict[str, str]) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.matches(group)]

    def others(self) -> list[SceneObject]:
        """Return the objects in no group."""
        return [thing for thing in self.objects if not any(thing.matches(group) for group in self.groups)]

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """Build a scene from the data that `to_dict` returns."""
        return cls(
            Background(**data["background"]),
            [SceneObject(**thing) for thing in data["objects"]],
            [Sign(**sign) for sign in data["signs"]],
            [dict(group) for group in data["groups"]],
            [list(relation) for relation in data["relations"]],
        )


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
