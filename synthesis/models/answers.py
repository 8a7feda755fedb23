"""
The JSON that language models have to answer, as pydantic classes.

Each class is the schema that is sent with a call, and the check of the answer that comes back.
"""

import functools
import random
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from fusion_vlm.synthesis.kinds.kind import AnswerForm
from fusion_vlm.synthesis.sample import Turn


MAX_CHARACTERS = 8_000  # of each text that is kept; 80 to 200 words are asked for


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    # Not in the schema that is sent: servers that build a grammar of it take long for large numbers.
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    return text.strip()


Text = Annotated[str, AfterValidator(_check_text)]
Remark = Annotated[str, AfterValidator(lambda text: text[:MAX_CHARACTERS])]


class Answer(BaseModel):
    """An answer of a language model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def json_schema(cls) -> dict:
        """Return the JSON schema without references: not every server follows a `$ref`."""
        schema = cls.model_json_schema()
        return _inline(schema, schema.pop("$defs", {}))


def _inline(schema: Any, definitions: dict) -> Any:
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inline(part, definitions) for name, part in schema.items()}


# Descriptions of images. Pydantic sends a docstring as the schema's description, so the classes below have none but
# `Choice`: another docstring is another request, and calls cached before would not be used.


class Description(Answer):
    description: Text


class ContrastDescription(Answer):
    left: Text
    right: Text


# Questions and answers. Each class makes a turn of itself.


class Question(Answer):
    question: Text
    answer: Text

    def to_turn(self, turn_type: str | None, rng: random.Random) -> Turn:
        return Turn(self.question, self.answer, turn_type)


class TypedQuestion(Question):
    type: Literal["colour", "shape", "count", "spatial", "yes_no", "text", "scene"]

    def to_turn(self, turn_type: str | None, rng: random.Random) -> Turn:
        return Turn(self.question, self.answer, turn_type or self.type)


class Choice(Answer):
    """The right option has no letter yet: which it gets is not the model's to choose, as models prefer some."""

    question: Text
    correct: Text
    wrong: list[Text] = Field(min_length=3, max_length=3)

    def to_turn(self, turn_type: str | None, rng: random.Random) -> Turn:
        options = [self.correct, *self.wrong]
        rng.shuffle(options)
        return Turn.from_options(self.question, options, options.index(self.correct))


TURN_FORMS = {"question": Question, "typed_question": TypedQuestion, "choice": Choice}


@functools.cache
def questions_type(form: AnswerForm) -> type[Answer]:
    """Return the class of answers that hold the turns of a kind."""
    turns = (list[TURN_FORMS[form.turn]], Field(min_length=form.min_turns, max_length=form.max_turns))
    return create_model(form.name, __base__=Answer, turns=turns)


def rewrites_of(num_turns: int) -> type[Answer]:
    """Return the class of answers that hold one reworded `Question` for each turn, in order."""
    turns = (list[Question], Field(min_length=num_turns, max_length=num_turns))
    return create_model("Rewrites", __base__=Answer, turns=turns)


# The judge.


class Verdict(Answer):
    correct: bool
    problem: Remark


def verdicts_on(num_turns: int) -> type[Answer]:
    """Return the class of answers that hold one `Verdict` for each turn, in order."""
    verdicts = (list[Verdict], Field(min_length=num_turns, max_length=num_turns))
    return create_model("Verdicts", __base__=Answer, verdicts=verdicts)


def explain(error: ValidationError) -> str:
    """Return the first thing that pydantic found wrong, in a line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{place}: {first['msg']}, found {str(first['input'])[:100]!r}"
