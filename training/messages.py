"""
What a row of training data may look like, and the one form that it is brought to: chat messages with the image inside.

Rows are dicts with either
    `messages`       chat messages, `{"role", "content"}`; content is text or a list of parts, as transformers takes it
    `conversations`  LLaVA's turns, `{"from": "human" | "gpt" | "system", "value"}`; `<image>` in the first human one
and, unless the image is inside of `messages`, an `image` column (or `images` with one). An image is a `PIL.Image`, a
path, encoded bytes, a `{"bytes", "path"}` dict of `datasets`, or an array.
"""

import io
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_utils import is_valid_image


LLAVA_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LLAVA_IMAGE = "<image>"
CONTENT_KEYS = ("image", "path", "url")  # of an image part


class RowError(ValueError):
    """A row of training data that cannot be used; says which part of it, what was expected and, if known, where."""


def to_messages(row: dict, image_folder: str | Path | None = None, load_images: bool = True) -> list[dict]:
    """
    Chat messages of a row, the image opened and inside of the first user turn.

    Args:
        row (`dict`): see above; other keys are left alone.
        image_folder (`str` or `Path`, *optional*): where relative image paths begin.
        load_images (`bool`): whether to open the image; if not, it stays what the row says.

    Returns:
        `list[dict]`: messages whose content is a list of parts.

    Raises:
        RowError: if the row has neither form, has no answer, has an image too many or too few, or if its image cannot
            be read.
    """
    if row.get("messages") is not None:
        messages = [_parse_message(message, index) for index, message in enumerate(_as_list(row, "messages"))]
    elif row.get("conversations") is not None:
        messages = [_parse_llava_turn(turn, index) for index, turn in enumerate(_as_list(row, "conversations"))]
    else:
        raise RowError(f"The row has the keys {sorted(row)}, expected `messages` or LLaVA's `conversations`.")
    _check_turns(messages)
    _insert_image(messages, _image_columns(row))
    for message in messages:
        for part in message["content"] if load_images else ():
            if part["type"] == "image":
                part["image"] = load_image(part["image"], image_folder)
    return messages


def load_image(value: Any, folder: str | Path | None = None) -> Any:
    """
    Opens and decodes what a row gives as its image; images and arrays are returned as they are.

    Raises:
        RowError: if it cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (str, Path)) and str(value):
        if str(value).startswith(("http://", "https://")):
            raise RowError(f"The image is an address, {str(value)[:100]!r}. Download it first: training reads files.")
        name, value = repr(str(value)), Path(folder or "", value)
    elif isinstance(value, bytes):
        name, value = f"of {len(value)} bytes", io.BytesIO(value)
    elif is_valid_image(value):
        return value
    else:
        raise RowError(f"The image is {value!r}, expected a path, bytes, a `PIL.Image` or an array.")
    try:
        with Image.open(value) as image:
            image.load()
            return image
    # RuntimeError: from the AVIF decoder.
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise RowError(f"The image {name} cannot be read: {error}") from error


def _as_list(row: dict, key: str) -> list:
    if not isinstance(row[key], (list, tuple)) or not row[key]:
        raise RowError(f"`{key}` is {str(row[key])[:100]!r}, expected a list of turns.")
    return row[key]


def _parse_message(message: dict, index: int) -> dict:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise RowError(
            f"Message {index} is {str(message)[:100]!r}, expected a dict with a role: system, user, assistant."
        )
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": [{"type": "text", "text": content}]}
    if not isinstance(content, (list, tuple)):
        raise RowError(f"Message {index} has the content {str(content)[:100]!r}, expected text or a list of parts.")
    return {"role": message["role"], "content": [_parse_part(part, index) for part in content]}


def _parse_part(part: dict, index: int) -> dict:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url"):
        # `datasets` fills every part up with the keys of all, so keys may be there with nothing in them.
        values = [part[key] for key in CONTENT_KEYS if part.get(key) is not None]
        return {"type": "image", "image": values[0] if values else None}
    raise RowError(f"Message {index} has the part {str(part)[:100]!r}, expected one of type text or image.")


def _parse_llava_turn(turn: dict, index: int) -> dict:
    role = LLAVA_ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    if role is None or not isinstance(turn.get("value"), str):
        raise RowError(f"Turn {index} is {str(turn)[:100]!r}, expected a dict with `from` (human or gpt) and `value`.")
    content = [{"type": "text", "text": turn["value"].replace(LLAVA_IMAGE, "").strip()}]
    if role == "user":
        content = [{"type": "image", "image": None}] * turn["value"].count(LLAVA_IMAGE) + content
    return {"role": role, "content": [dict(part) for part in content]}


def _check_turns(messages: list[dict]):
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["assistant" if index % 2 else "user" for index in range(len(turns))]
    if turns != expected or len(turns) < 2 or len(turns) % 2:
        raise RowError(
            f"The turns are {roles}, expected user and assistant in turn, ending with the assistant (after at most one"
            " system message)."
        )


def _image_columns(row: dict) -> list:
    images = []
    for name in ("image", "images"):
        value = row.get(name)
        images += value if isinstance(value, (list, tuple)) else [value]
    # LLaVA's text-only rows have no image, or an empty name.
    return [image for image in images if image is not None and not (isinstance(image, str) and not image)]


def _insert_image(messages: list[dict], images: list):
    """Puts the image of a column where its part is, or at the beginning of the first user turn."""
    first_user = next(message for message in messages if message["role"] == "user")
    parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
    empty_parts = [part for part in parts if part["image"] is None]
    if len(images) > 1 or len(parts) > 1:
        raise RowError(f"The row has {max(len(images), len(parts))} images, expected at most 1: FUSION reads one.")
    if parts and not any(part is parts[0] for part in first_user["content"]):
        raise RowError("The image is not in the first user turn, where FUSION expects it.")
    if empty_parts and not images:
        raise RowError("The text has a place for an image, but the row has none: expected an `image` column.")
    if images and parts and not empty_parts:
        raise RowError("The row has one image inside of `messages` and one in a column, expected at most 1.")
    if images and not parts:
        first_user["content"].insert(0, {"type": "image", "image": images[0]})
    elif images:
        empty_parts[0]["image"] = images[0]
