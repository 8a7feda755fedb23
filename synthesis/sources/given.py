"""Makes of a row of an input what a sample is given: its caption, its description, its turns."""

import json
import re
from dataclasses import dataclass
from typing import Any

from fusion_vlm.rows.forms import CHAT_COLUMNS, RowError, image_parts, message_text
from fusion_vlm.synthesis.kinds.table import KINDS
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.sources.inputs import TEXT_COLUMN, Row


STAGE = "input"  # the first part of the reasons of rows that cannot be used
# What later stages write, by the first stage of a run: it is written again. Scores are kept by their beginnings.
LATER_SOURCES = {
    "descriptions": ("describe", "render", "ask", "judge"),
    "images": ("render", "ask", "judge"),
    "questions": ("ask", "judge"),
}
EARLIER_SCORES = {
    "descriptions": (),
    "images": ("caption_", "description_"),
    "questions": ("caption_", "description_", "clip_score", "ssim_a", "image_score"),
}
SAFE_ID = re.compile(r"\w[\w.-]{0,99}")  # ids are the stems of image files


@dataclass(frozen=True)
class Columns:
    """
    Names of the columns of an input.

    Args:
        caption (`str`), description (`str`): columns of text. With a column of a conversation as `description`, the
            answers are the description.
        conversation (`str`, *optional*): of chat messages or LLaVA's turns; without, one of `CHAT_COLUMNS`.
    """

    caption: str = "caption"
    description: str = "description"
    conversation: str | None = None

    def needed(self, first_stage: str) -> list[tuple[str, ...]]:
        """Return the columns that the first stage of a run needs, one of each tuple."""
        chat = (self.conversation,) if self.conversation else CHAT_COLUMNS
        if first_stage == "descriptions":
            return [(self.caption,)]
        return [chat] if first_stage == "filter" else [(self.description,)]

    def readable(self, first_stage: str) -> list[str]:
        """Return all columns that are read, if they are there."""
        names = ["id", "kind", "question_types", "sample", self.caption, self.description]
        return [*dict.fromkeys(names + [name for group in self.needed(first_stage) for name in group])]


# The option that names a column, for errors.
COLUMN_OPTIONS = {"descriptions": "--caption-column", "images": "--description-column"}
COLUMN_OPTIONS |= {"questions": "--description-column", "filter": "--conversation-column"}


def check_columns(names: list[str] | dict, columns: Columns, first_stage: str, place: str):
    """
    Check that a table or a row has the columns that a stage needs.

    Raises:
        ValueError: naming the columns that are there, and the option that names another.
    """
    if "sample" in names or (TEXT_COLUMN in names and first_stage in ("descriptions", "images")):
        return
    for group in columns.needed(first_stage):
        if not any(name in names for name in group):
            found = sorted(set(names) - {TEXT_COLUMN})
            expected = " or ".join(map(repr, group))
            hint = f" Name the column: {COLUMN_OPTIONS[first_stage]} NAME."
            if first_stage == "questions" and set(CHAT_COLUMNS) & set(names):
                hint += " To take the answers of the conversation as the description, name its column."
            raise ValueError(f"{place} has the columns {found}, expected {expected} among them.{hint}")


def read_given(row: Row, columns: Columns, first_stage: str, content: str) -> dict | None:
    """
    Return the arguments of `Sample` that a row gives, or None for a row without a caption.

    The content, a hash, names the input in the source of the sample: its path may differ between the tasks of a run.
    Those of a row that cannot be used have a `reason`. Rows of the data engine, with the whole sample in the column
    `sample`, keep their ids, kinds and sources, but not what the stages of this run write.

    Raises:
        ValueError: for a caption that is no text.
    """
    if isinstance(row.values.get("sample"), str):
        return _read_sample(json.loads(row.values["sample"]), first_stage)
    source = {"captions" if first_stage == "descriptions" else "input": content, "row": row.number}
    given = {"source": source}
    if (row_id := row.values.get("id")) is not None and first_stage != "descriptions":
        given["id"] = str(row_id)
    if row.values.get("kind") in KINDS:
        given["kind"] = row.values["kind"]
    try:
        _read_texts(given, row, columns, first_stage)
    except RowError as error:
        if first_stage == "descriptions":
            raise ValueError(f"Row {row.number} of the captions cannot be used: {error}.") from error
        given["reason"] = f"{STAGE}/row: {error}"
    return None if first_stage == "descriptions" and not given["caption"] else given


def _read_sample(sample: dict, first_stage: str) -> dict:
    if first_stage == "filter":
        return sample
    later, earlier = LATER_SOURCES[first_stage], EARLIER_SCORES[first_stage]
    given = {name: sample[name] for name in ("id", "kind", "caption", "scenes")}
    # The exact description of a scene is what a language model describes, unless one has.
    if first_stage != "descriptions" or (sample["scenes"] and "describe" not in sample["source"]):
        given["description"] = sample["description"]
    given["scores"] = {name: value for name, value in sample["scores"].items() if name.startswith(earlier)}
    given["source"] = {name: value for name, value in sample["source"].items() if name not in later}
    return {**given, "image": sample["image"]} if first_stage == "questions" else given


def _read_texts(given: dict, row: Row, columns: Columns, first_stage: str):
    values = row.values
    if TEXT_COLUMN in values:
        values = {columns.needed(first_stage)[0][0]: values[TEXT_COLUMN]}
    given["caption"] = _read_text(values, columns.caption)
    if first_stage == "descriptions":
        return
    messages = None
    if first_stage == "filter" or isinstance(values.get(columns.description), list):
        name = columns.description if first_stage != "filter" else columns.conversation
        messages = _read_messages(values, name, row.image)
        row.image = row.image or next((part.get("image") for part in image_parts(messages)), None)
    if first_stage == "filter":
        given["turns"] = [vars(turn) for turn in to_turns(messages, values.get("question_types"))]
        if isinstance(values.get(columns.description), str):
            given["description"] = _read_text(values, columns.description)
        return
    if messages is not None:
        answers = [message_text(message) for message in messages if message["role"] == "assistant"]
        given["description"] = "\n".join(answers).strip()
    else:
        given["description"] = _read_text(values, columns.description)
    if not given["description"]:
        raise RowError("it has no description")


def _read_text(values: dict, column: str) -> str:
    text = values.get(column)
    if text is not None and not isinstance(text, str):
        raise RowError(f"it has a {type(text).__name__} in the column {column!r}, expected text")
    return (text or "").strip()


def _read_messages(values: dict, column: str | None, image: Any) -> list[dict]:
    from fusion_vlm.rows.messages import to_messages  # late: it imports torch, and captions have no messages

    name = column or next(name for name in CHAT_COLUMNS if values.get(name) is not None or name == CHAT_COLUMNS[-1])
    turns = values.get(name)
    is_llava = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]
    # A word for the image: only its presence counts here.
    image = None if image is None else "image"
    return to_messages({"conversations" if is_llava else "messages": turns, "image": image}, load_images=False)


def to_turns(messages: list[dict], types: list[str] | None = None) -> list[Turn]:
    """
    Return the questions and answers of a conversation.

    Args:
        messages (`list[dict]`): from `to_messages`.
        types (`list[str]`, *optional*): type of each question; without, all are `given`.

    Raises:
        RowError: if questions and answers do not alternate: a sample has no place for anything else.
    """
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError(f"the roles are {', '.join(roles)}, expected user and assistant in turn")
    texts = [message_text(message).strip() for message in messages]
    types = types if types and len(types) == len(texts) // 2 else ["given"] * (len(texts) // 2)
    return [Turn(*pair) for pair in zip(texts[::2], texts[1::2], types, strict=True)]


def is_safe_id(text: Any) -> bool:
    """Check that an id can be the name of a file."""
    return isinstance(text, str) and SAFE_ID.fullmatch(text) is not None


def build_sample(given: dict, kind: str, index: int, seed: int) -> Sample:
    """Build the sample of a row, at an index among all rows; rows without an id or a kind get those."""
    given = {"kind": kind, **given}
    given = {"id": f"{given['kind']}-{index:07}", **given, "seed": seed}
    given["turns"] = [Turn(**turn) for turn in given.get("turns", ())]
    return Sample(**given)
