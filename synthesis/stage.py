"""What the parts of a pipeline have in common, as types: stages, filters, renderers."""

from collections.abc import Awaitable
from typing import Protocol

from PIL import Image

from fusion_vlm.synthesis.sample import Sample


class Stage(Protocol):
    """Changes a sample. An async stage runs in the event loop. The name is the first part of `Sample.reason`."""

    name: str

    def __call__(self, sample: Sample) -> Sample | Awaitable[Sample]: ...


class Filter(Protocol):
    """Returns None to keep a sample, or the reason to reject it: `rule: what was found, what was expected`."""

    name: str

    def __call__(self, sample: Sample) -> str | None: ...


class Renderer(Protocol):
    """
    Makes the image of a sample.

    `draws_scenes` is True if the image is drawn from `Sample.scenes`, and False if a model draws it from
    `Sample.description`.
    """

    name: str
    draws_scenes: bool

    def __call__(self, sample: Sample) -> Image.Image: ...
