"""
Names that all forms of rows share, and how the text of a row is read when its images do not matter.

Nothing here imports torch, so that an audit starts at once. `rows.messages` brings rows to one form.
"""

from typing import Any


# Keys of a row that hold a conversation: chat messages (`role`, `content`), or LLaVA's turns (`from`, `value`).
CHAT_COLUMNS = ("messages", "conversations")
IMAGE_COLUMNS = ("image", "images")
IMAGE_MARK = "<image>"
# Names of roles, LLaVA's among them, and the names that messages have.
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class RowError(ValueError):
    """A row that cannot be used. The message says which part is wrong, what was expected and, if known, where."""


def message_text(message: dict) -> str:
    """Return the text of a message that `to_messages` or `normalize_messages` has returned."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def conversation_text(messages: list[dict]) -> str:
    """Return the text of all messages of a conversation, without anything between them."""
    return "".join(map(message_text, messages))


def image_parts(messages: list[dict]) -> list[dict]:
    """Return the image parts of a conversation; at most one, unless the messages are not yet checked."""
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def has_image(messages: list[dict]) -> bool:
    """Return whether a conversation has an image."""
    return bool(image_parts(messages))


def read_dialogue(row: Any) -> list[tuple[str, str, dict]]:
    """
    Read the turns of a row of any form, without images and image marks, and skip whatever is no turn.

    `to_messages` is the strict reader: there a wrong turn is an error.

    Args:
        row: a row of a file. Anything but a dict with a conversation has no turns.

    Returns:
        `list[tuple[str, str, dict]]`: role (a value of `ROLES`), text and the turn as the row has it.
    """
    turns = row.get("conversations") or row.get("messages") if isinstance(row, dict) else None
    if isinstance(turns, dict):  # how `datasets` stores a `Sequence` of dicts
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=False)]
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    roles = [ROLES.get(str(turn.get("from") or turn.get("role"))) for turn in turns]
    return [(role, _read_text(turn), turn) for role, turn in zip(roles, turns, strict=True) if role]


def _read_text(turn: dict) -> str:
    content = turn["value"] if turn.get("value") is not None else turn.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = str(content or "").replace(IMAGE_MARK, "").strip()
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair could not be printed
