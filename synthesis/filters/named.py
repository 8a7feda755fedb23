"""
Filters that a run names: built-in checks that need packages of their own, and filters of users.

A filter is named as `NAME` or `NAME=ARGUMENT`, where `NAME` is one of `CHECKS`, an entry point of the group
`fusion_vlm.filters`, or `module:Class`. The class is called with the argument if there is one, and the filter then
with each sample and its image. It returns None to keep the sample, or `rule: what was found, what was expected`.
"""

import functools
import importlib
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol

from PIL import Image

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.sample import Sample


ENTRY_POINTS = "fusion_vlm.filters"
# What the card calls the built-in checks. Those that a run does not name are listed there as not run.
CHECKS = {"personal_data": "personal data in the texts", "unsafe_images": "unsafe images"}
CLASSES = {
    "personal_data": "fusion_vlm.synthesis.filters.personal_data:PersonalData",
    "unsafe_images": "fusion_vlm.synthesis.filters.unsafe_images:UnsafeImages",
}


class NamedFilter(Protocol):
    """Returns None to keep a sample, or the reason to reject it: `rule: what was found, what was expected`."""

    def __call__(self, sample: Sample, image: Image.Image) -> str | None: ...


def parse_filter(text: str) -> tuple[str, str]:
    """Split `NAME=ARGUMENT`; the argument is empty if there is none."""
    name, _, argument = text.partition("=")
    return name.strip(), argument.strip()


def check_filters(filters: tuple[str, ...]):
    """
    Check that filters exist, without loading their models.

    Raises:
        RunError: for a name that is no filter, or a name that comes twice.
    """
    names = [parse_filter(text)[0] for text in filters]
    stages = [name_stage(name) for name in names]
    for name, stage in zip(names, stages, strict=True):
        if stages.count(stage) > 1:
            raise RunError(f"The filter {stage!r} is named twice, expected once.")
        find_class(name)


def name_stage(name: str) -> str:
    """Return the name of the stage of a filter: of `module:Class`, the class. A colon ends the rule of a reject."""
    return name.rpartition(":")[2]


def find_class(name: str) -> Callable[..., NamedFilter]:
    """
    Return the class of a filter by its name.

    Raises:
        RunError: if there is no such filter, or its module cannot be imported.
    """
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | CLASSES
    path = found.get(name, name)
    if not re.fullmatch(r"[\w.]+:\w+", path):
        raise RunError(f"There is no filter {name!r}. Expected module:Class or one of: {', '.join(sorted(found))}.")
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RunError(f"The filter {name!r} cannot be loaded: {error}.") from error


class ApplyFilter:
    """
    A stage that rejects the samples for which a named filter gives a reason. The filter is made when first needed.

    Args:
        text (`str`): name, and argument if there is one.
        open_image (`Callable[[Sample], Image]`): opens the image of a sample.
    """

    def __init__(self, text: str, open_image: Callable[[Sample], Image.Image]):
        self.filter, self.open_image = parse_filter(text), open_image
        self.name = name_stage(self.filter[0])

    def __call__(self, sample: Sample) -> Sample:
        reason = load_filter(*self.filter)(sample, self.open_image(sample))
        if reason is not None:
            sample.reject(self.name, reason)
        return sample


@functools.cache  # once in a process, since it may hold a model
def load_filter(name: str, argument: str) -> NamedFilter:
    """
    Make a filter.

    Raises:
        RunError: if the filter cannot be made.
    """
    try:
        return find_class(name)(*([argument] if argument else []))
    except (ImportError, OSError, ValueError, TypeError) as error:
        raise RunError(f"The filter {name!r} cannot be loaded: {error}") from error
