"""Names of images on the command line and in a chat: paths as people and terminals write them, and addresses."""

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image

# PIL and torch are imported in functions only, so that a missing file is reported at once.
SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
ADDRESS = re.compile(r"(https?|file)://\S+|data:image/\S+", re.IGNORECASE)


def unquote(text: str) -> str:
    """
    Return a path without the quotes, or the backslashes before spaces, that terminals write when a file is dropped.

    The name of a file that exists is returned unchanged.
    """
    text = text.strip()
    if os.path.exists(os.path.expanduser(text)):
        return text
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed, such as that of "my dad's photo.jpg"
        return text
    return words[0] if len(words) == 1 else text


def read_image(source: str) -> "Image.Image":
    """
    Return the image of a file, an http(s) address, or stdin (`"-"`).

    Raises:
        ValueError: if there is no image there, with the reason in one line.
    """
    check_image(source)
    from fusion_vlm.processing_fusion import read_image

    return read_image(sys.stdin.buffer, name="stdin") if source == "-" else read_image(source)


def check_image(source: str):
    """Raise a ValueError for a file that does not exist; `read_image` checks that it is an image."""
    if not (source == "-" or ":" in source[:8] or os.path.exists(os.path.expanduser(source))):
        raise ValueError(f"Cannot read an image from {shorten(source)}: there is no such file.")


def is_image_name(text: str) -> bool:
    """Return whether a text that should be a question is the name of a file, or looks like the name of an image."""
    text = unquote(text)
    if ADDRESS.fullmatch(text) or os.path.isfile(os.path.expanduser(text)):
        return True
    return bool(SUFFIX.search(text)) and not re.search(r"\s", text)


def is_question(text: str) -> bool:
    """Return whether a text that should name an image reads like a question."""
    if text == "-" or ADDRESS.fullmatch(text) or os.path.exists(os.path.expanduser(text)) or SUFFIX.search(text):
        return False
    return text.rstrip().endswith("?") or len(text.split()) > 2


def shorten(text: str) -> str:
    """Return a text in quotes, cut after 100 characters."""
    return repr(text) if len(text) <= 100 else repr(f"{text[:97]}...")
