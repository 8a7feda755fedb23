"""A drawn page: a chart, a table or a document as plain data, from which its image and its questions are made."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Page:
    """
    What one image shows. It takes the place of a scene in `Sample.scenes`.

    Args:
        page (`str`): genre, `chart`, `table` or `document`. Scenes have no such key; see `is_page`.
        layout (`str`): form within the genre, such as `pie`, `striped` or `receipt`.
        content (`dict`): all that is shown, as plain data.
        style (`dict`): fonts, colors and lines, as plain data. They change how the page looks and no answer.
        caption (`str`), description (`str`): what the page shows, short and in full.
    """

    page: str
    layout: str
    content: dict[str, Any]
    style: dict[str, Any]
    caption: str = ""
    description: str = ""

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # lists for tuples, as after reading a file

    @classmethod
    def from_dict(cls, data: dict) -> "Page":
        """Build a page from the data that `to_dict` returns."""
        return cls(**data)


def is_page(data: dict) -> bool:
    """Check whether an entry of `Sample.scenes` is a page and not a scene of objects."""
    return "page" in data
