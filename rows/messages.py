"""
Brings a row of any form to one: chat messages with the image inside.

Rows are dicts with either
    `messages`       chat messages, `{"role", "content"}`, as `FusionProcessor` takes them
    `conversations`  LLaVA's turns, `{"from": "human" | "gpt" | "system", "value"}`
and, unless the image is inside of `messages`, an `image` column (or `images` with one). `<image>` in a user's text
says where the image of a column belongs. An image is whatever `fusion_vlm.processing_fusion.read_image` reads, except
for addresses.
"""

import os
from pathlib import Path
from typing import Any

from PIL import Image

from fusion_vlm.processing_fusion import normalize_messages, read_image, shorten
from fusion_vlm.rows.forms import IMAGE_COLUMNS, IMAGE_MARK, ROLES, RowError, image_parts


class Messages(list):
    """
    Chat messages in the form of `normalize_messages`, as `to_messages` returns them.

    The type marks a conversation that is normalized and checked, so that the next reader need not do it again.
    """


def to_messages(row: dict, image_folder: str | Path | None = None, load_images: bool = True) -> Messages:
    """
    Return the chat messages of a row, with the image opened and inside of the first user turn.

    Args:
        row (`dict`): see above; other keys are ignored.
        image_folder (`str` or `Path`, *optional*): where relative image paths begin.
        load_images (`bool`): whether to open the image; otherwise the image part holds what the row has.

    Returns:
        `Messages`: a list of messages in the form of `normalize_messages`.

    Raises:
        RowError: if the row has neither form, has no answer, has too many or too few images, or if its image cannot
            be read.
    """
    messages = row.get("messages")
    if not isinstance(messages, Messages):
        messages = _normalize(row)
    return _load_images(messages, image_folder) if load_images else messages


def load_image(source: Any, folder: str | Path | None = None) -> Image.Image:
    """
    Return the 8-bit RGB image that a row gives.

    Raises:
        RowError: if it cannot be read, or is an address: training reads files.
    """
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    name = None
    if isinstance(source, (str, Path)):
        if str(source)[:8].lower().startswith(("http://", "https://")):
            raise RowError(f"The image is an address, {shorten(source)}. Download it first: training reads files.")
        path = Path(folder or "", source)
        if isinstance(source, Path) or os.path.exists(path):  # else it may be base64
            name, source = repr(str(source)), path
    try:
        return read_image(source, name=name)
    except ValueError as error:
        raise RowError(str(error)) from error


def _normalize(row: dict) -> Messages:
    messages = _read_turns(row)
    images = _image_columns(row)
    if images or row.get("messages") is None:
        messages = [_replace_marks(message, index) for index, message in enumerate(messages)]
    try:
        messages = normalize_messages(messages)
    except ValueError as error:
        raise RowError(str(error)) from error
    roles = [message["role"] for message in messages]
    if "user" not in roles or roles[-1] != "assistant":
        raise RowError(f"The messages are of the roles {roles}, expected a question and an answer at the end.")
    _insert_image(messages, images)
    return Messages(messages)


def _load_images(messages: Messages, folder: str | Path | None) -> Messages:
    """Return new messages with opened images. Rows in memory keep the given ones, so that pixels are freed."""
    if not image_parts(messages):
        return messages
    return Messages(
        {**message, "content": [_load_part(part, folder) for part in message["content"]]} for message in messages
    )


def _load_part(part: dict, folder: str | Path | None) -> dict:
    return {**part, "image": load_image(part["image"], folder)} if part["type"] == "image" else part


def _read_turns(row: dict) -> list:
    """Return the messages of a row unchecked, LLaVA's turns as messages."""
    name = "messages" if row.get("messages") is not None else "conversations"
    turns = row.get(name)
    if turns is None:
        raise RowError(f"The row has the keys {sorted(row)}, expected `messages` or LLaVA's `conversations`.")
    if not isinstance(turns, (list, tuple)) or not turns:
        raise RowError(f"`{name}` is {shorten(turns)}, expected a list of turns.")
    if name == "messages":
        return list(turns)
    return [_read_llava_turn(turn, index) for index, turn in enumerate(turns)]


def _read_llava_turn(turn: dict, index: int) -> dict:
    role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    if role is None:
        raise RowError(f"Turn {index} is {shorten(turn)}, expected a dict with `from` (human or gpt) and `value`.")
    if not isinstance(turn.get("value"), str):
        raise RowError(f"Turn {index} has the value {shorten(turn.get('value'))}, expected a text.")
    return {"role": role, "content": turn["value"].strip()}


def _replace_marks(message: dict, index: int) -> dict:
    """Return a message in which each `<image>` of a text is an image part."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)) or IMAGE_MARK not in str(parts):
        return message
    if message.get("role") != "user":
        raise RowError(f"Message {index} ({message.get('role')}) holds {IMAGE_MARK}, expected it in a question.")
    replaced = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            replaced.append(part)
            continue
        pieces = [{"type": "text", "text": piece.strip()} for piece in text.split(IMAGE_MARK)]
        for number, piece in enumerate(pieces):
            replaced += [{"type": "image"}, piece] if number else [piece]
    return {**message, "content": [part for part in replaced if part != {"type": "text", "text": ""}]}


def _image_columns(row: dict) -> list:
    images: list = []
    for name in IMAGE_COLUMNS:
        value = row.get(name)
        images += value if isinstance(value, (list, tuple)) else [value]
    # LLaVA's text-only rows have no image, or an empty name.
    return [image for image in images if image is not None and not (isinstance(image, str) and not image)]


def _insert_image(messages: list[dict], images: list):
    """Put the image of a column where its part is, or else before the first question."""
    first_user = next(message for message in messages if message["role"] == "user")
    parts = [part for part in first_user["content"] if part["type"] == "image"]
    if len(images) > 1:
        raise RowError(f"The row has {len(images)} images, expected at most 1: FUSION reads one.")
    if parts and "image" in parts[0]:
        if images:
            raise RowError("The row has one image inside of `messages` and one in a column, expected at most 1.")
    elif parts and not images:
        raise RowError("The text has a place for an image, but the row has none: expected an `image` column.")
    elif images:
        first_user["content"] = [{"type": "image", "image": images[0]}, first_user["content"][-1]]
