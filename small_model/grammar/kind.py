"""A kind of sample of the small model's grammar as one record."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fusion_vlm.small_model.grammar.scene import Scene
from fusion_vlm.synthesis.sample import Sample, Turn


@dataclass(frozen=True)
class Kind:
    """
    A kind of sample.

    Args:
        name (`str`)
        build_scenes (`Callable[[Sample, Random], list[Scene]]`): builds one scene, or the left and the right one. The
            sample has nothing but its identity yet.
        ask (`Callable[[Sample, list[Scene], Random], list[Turn]]`): writes the turns about these scenes.
        is_caption (`bool`): whether the kind is for pre-training on captions.
    """

    name: str
    build_scenes: Callable[[Sample, random.Random], list[Scene]]
    ask: Callable[[Sample, list[Scene], random.Random], list[Turn]]
    is_caption: bool = False
