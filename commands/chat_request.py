"""
What a client may send to `/v1/chat/completions`, and what that means for FUSION.

A request that passes holds decoded images only: nothing behind this file sees an address or a path.
"""

import base64
import io
import re
import reprlib
from typing import Annotated, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


# Of an image: 64 megapixels. Formats are those whose decoders are Pillow's own (EPS would start Ghostscript).
MAX_PIXELS = 64_000_000
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class RequestError(ValueError):
    """What is wrong with a request, for its sender; `status` is that of HTTP, `param` the field if it is one."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


class Strict(BaseModel):
    """Knows its fields and converts nothing; null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, values):
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: str | None = None  # FUSION has one resolution


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


def as_parts(content):
    if not isinstance(content, (str, list)):
        raise ValueError("expected a text, or a list of parts of type text or image_url")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], BeforeValidator(as_parts)]
    name: str | None = None  # chat templates have no place for it


class StreamOptions(Strict):
    include_usage: bool = False


def as_list(value):
    return [value] if isinstance(value, str) else value


Zero = Annotated[float, Field(ge=0, le=0)]


class ChatCompletionRequest(Strict):
    """The fields of OpenAI's API that are served, and FUSION's grid sizes."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], BeforeValidator(as_list), Field(max_length=4)
    ] = []
    latent_grid_size: int | None = None
    image_grid_size: int | None = None
    # Taken with the values that change nothing, because clients send them.
    n: Annotated[int, Field(ge=1, le=1)] = 1
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logprobs: Literal[False] = False
    user: str | None = None
    metadata: dict | None = None
    store: bool | None = None
    service_tier: str | None = None


def parse_request(body: bytes) -> tuple[ChatCompletionRequest, list[dict]]:
    """
    Reads the JSON of a request: its fields, and its messages as FUSION's processor takes them, the image (if any)
    decoded.

    Raises:
        RequestError: saying which field is wrong, and how.
    """
    try:
        request = ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise describe(error) from error
    return request, read_messages(request.messages)


def describe(error: ValidationError) -> RequestError:
    """The first thing that is wrong, with what was found there."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return RequestError(f"{place}: this server does not know that field", param=place)
    found = "" if first["type"] in ("json_invalid", "missing") else f", got {reprlib.repr(first['input'])}"
    return RequestError(f"{place or 'request body'}: {first['msg']}{found}", param=place or None)


def read_messages(messages: list[Message]) -> list[dict]:
    """Checks the order of roles and the place of the image, and decodes it."""
    system = messages[:1] if messages[0].role == "system" else []
    turns = messages[len(system) :]
    expected = ["user", "assistant"] * len(turns)
    roles = [message.role for message in turns]
    if roles != expected[: len(roles)] or len(roles) % 2 == 0:
        found = reprlib.repr([message.role for message in messages])
        raise RequestError(
            f"messages: the roles are {found}, expected user and assistant in turn, the first and the last of them"
            " user, after at most one system message",
            param="messages",
        )
    images = [message for message in messages for part in message.content if part.type == "image_url"]
    if len(images) > 1:
        raise RequestError(
            f"messages: {len(images)} images, expected at most 1: FUSION reads one image in a conversation",
            param="messages",
        )
    if images and images[0] is not turns[0]:
        raise RequestError("messages: the image belongs to the first user message", param="messages")
    return [{"role": message.role, "content": [read_part(part) for part in message.content]} for message in messages]


def read_part(part: TextPart | ImagePart) -> dict:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": decode_image(part.image_url.url)}


def decode_image(url: str) -> Image.Image:
    """
    The image of a data URI.

    Raises:
        RequestError: for every other address, and for what is no image or too large a one.
    """
    header = re.match(r"data:[\w.+/-]*;base64,", url)
    if header is None:
        raise RequestError(
            f"image_url: the address {reprlib.repr(url)} is no data URI with base64 data; this server opens no other"
            " addresses and no files. Send the image as data:image/jpeg;base64,...",
            param="messages",
        )
    try:
        image = Image.open(io.BytesIO(base64.b64decode(url[header.end() :], validate=True)), formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS / 1e6:.0f} million"
            )
        image.load()
    except Exception as error:  # decoders fail in many ways, and what fails is the sender's data
        raise RequestError(
            f"image_url: not an image of the formats {', '.join(IMAGE_FORMATS)} that can be read: {error}",
            param="messages",
        ) from error
    return image
