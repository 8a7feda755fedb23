"""
Read requests to `/v1/chat/completions`.

This file lists the fields that are served, accepted without effect, or refused, and has the errors in OpenAI's form. A
field that could change the answer is either served or refused. Unknown fields are refused, because the sender of a
misspelled field would never learn that it had no effect. Null means the same as no field, at every level.

The image of a request is decoded here, so that no other file handles an address or a path from a request.
"""

import json
import reprlib
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fusion_vlm.processing_fusion import open_image


# Formats whose decoders are part of Pillow (EPS would start Ghostscript). handler.py has a copy, and
# processing_fusion.py has the limits of size.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class RequestError(ValueError):
    """An error for the sender of a request, with the HTTP status and the name of the wrong field, if there is one."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


def error_body(message: str, kind: str = "invalid_request_error", param: str | None = None, code=None) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def drop_nulls(value):
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


# The type of a field that never changes an answer: hints and notes for OpenAI's own service.
Hint = Any


def only(*neutral_values):
    """Return the type of a field that this server does not implement: it accepts only values without effect."""

    def check(value):
        value = drop_nulls(value)
        for neutral in neutral_values:
            # True == 1 in Python, but not in JSON.
            if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
                return value
        raise ValueError(f"this server supports only {' or '.join(map(json.dumps, neutral_values))} here")

    return Annotated[Any, AfterValidator(check)]


class Strict(BaseModel):
    """A JSON object without unknown fields; values are not converted, and nulls are dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    _drop_nulls = model_validator(mode="before")(drop_nulls)


class TextPart(Strict):
    type: Literal["text"]
    text: str
    annotations: only([]) = None
    cache_control: Hint = None
    prompt_cache_breakpoint: Hint = None


class ImageUrl(Strict):
    url: str
    detail: str | None = None  # FUSION has one resolution


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: Hint = None
    prompt_cache_breakpoint: Hint = None


def as_parts(content):
    if not isinstance(content, (str, list)):
        raise ValueError("expected a text, or a list of parts of type text or image_url")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_system(role: str) -> str:
    """Return the role that chat templates have: OpenAI's newer name of a system message is `developer`."""
    return "system" if role == "developer" else role


class Message(Strict):
    role: Annotated[Literal["system", "developer", "user", "assistant"], AfterValidator(as_system)]
    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], BeforeValidator(as_parts)]
    name: str | None = None  # chat templates have no place for it
    # Fields of an answer, which clients send back as part of the conversation.
    refusal: only("") = None
    annotations: only([]) = None
    tool_calls: only([]) = None
    reasoning: only("") = None
    reasoning_content: only("") = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: only(False) = None


def as_list(value):
    return [value] if isinstance(value, str) else value


class ChatCompletionRequest(Strict):
    """A request: first the fields that are served, OpenAI's and FUSION's grid sizes, then those without effect."""

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
    # Not implemented. Many clients send them with the value that has no effect.
    n: only(1) = None
    frequency_penalty: only(0) = None
    presence_penalty: only(0) = None
    logit_bias: only({}) = None
    logprobs: only(False) = None
    top_logprobs: only(0) = None
    response_format: only({"type": "text"}) = None
    modalities: only(["text"]) = None
    tools: only([]) = None
    tool_choice: only("none", "auto") = None
    functions: only([]) = None
    function_call: only("none", "auto") = None
    reasoning_effort: only("none") = None
    verbosity: only("medium") = None
    # The same for fields of vLLM's API.
    best_of: only(1) = None
    use_beam_search: only(False) = None
    min_tokens: only(0) = None
    ignore_eos: only(False) = None
    stop_token_ids: only([]) = None
    skip_special_tokens: only(True) = None
    echo: only(False) = None
    add_generation_prompt: only(True) = None
    continue_final_message: only(False) = None
    chat_template_kwargs: only({}) = None
    # For OpenAI's own service.
    user: Hint = None
    metadata: Hint = None
    store: Hint = None
    service_tier: Hint = None
    safety_identifier: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_options: Hint = None
    prompt_cache_retention: Hint = None
    prediction: Hint = None  # a guess of the answer, to make generation faster
    parallel_tool_calls: Hint = None  # there are no tools


def parse_request(body: bytes) -> tuple[ChatCompletionRequest, list[dict]]:
    """
    Read the JSON of a request.

    Returns:
        `tuple[ChatCompletionRequest, list[dict]]`: the fields, and the messages as FUSION's processor expects them.

    Raises:
        RequestError: with the name of the wrong field, and its value.
    """
    try:
        request = ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise to_request_error(error) from error
    return request, read_messages(request.messages)


def to_request_error(error: ValidationError) -> RequestError:
    """Return an error about the first wrong field, with its value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return RequestError(f"{place}: this server does not know that field", param=place)
    found = "" if first["type"] in ("json_invalid", "missing") else f", got {reprlib.repr(first['input'])}"
    message = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{place or 'request body'}: {message}{found}", param=place or None)


def check_num_images(number: int):
    """Refuse a second image, before any image is decoded."""
    if number > 1:
        raise RequestError(
            f"messages: {number} images, expected at most 1: FUSION reads one image in a conversation",
            param="messages",
        )


def read_messages(messages: list[Message]) -> list[dict]:
    """Return messages for the processor, which checks them, with the image decoded."""
    check_num_images(sum(part.type == "image_url" for message in messages for part in message.content))
    return [{"role": message.role, "content": [read_part(part) for part in message.content]} for message in messages]


def read_part(part: TextPart | ImagePart) -> dict:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": decode_image(part.image_url.url)}


def decode_image(url: str) -> Image.Image:
    """
    Decode the image of a data URI.

    Raises:
        RequestError: for every other address, and for an image that is too large or cannot be read.
    """
    # RFC 2397 allows parameters before ";base64", and letters of any case. The handler reads data URIs alike.
    header, _, encoded = url.partition(",")
    if not (header[:5].lower() == "data:" and header.lower().endswith(";base64")):
        raise RequestError(
            f"image_url: the address {reprlib.repr(url)} is no data URI with base64 data; this server opens no other"
            " addresses and no files. Send the image as data:image/jpeg;base64,...",
            param="messages",
        )
    try:
        return open_image(url, IMAGE_FORMATS)
    except ValueError as error:
        raise RequestError(f"image_url: {error} Formats are {', '.join(IMAGE_FORMATS)}.", param="messages") from error
