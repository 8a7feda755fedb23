"""`fusion-vlm serve` over HTTP: by the `openai` client where a request is sound, byte by byte where it is not."""

import asyncio
import base64
import contextlib
import copy
import http.client
import importlib.metadata
import io
import json
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import easy_vqa
import numpy as np
import openai
import pytest
from PIL import Image

from fusion_vlm.commands.main import build_parser, main
from fusion_vlm.handler import read_image
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import CAN_SANITIZE, FusionProcessor
from fusion_vlm.serving import server
from fusion_vlm.serving.chat_request import parse_request
from fusion_vlm.serving.server import (
    CHAT_PATH,
    MAX_BODY_BYTES,
    ChatServer,
    EventStream,
    build_uvicorn,
    listen,
    read_api_key,
)

from ..helpers import ROOT, SMALL_MODEL, process
from ..tiny import random_image


NAME = "small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    write_small_model = runpy.run_path(str(ROOT / "examples" / "random_model.py"))["write_small_model"]
    return write_small_model(tmp_path_factory.mktemp("model") / NAME)


@pytest.fixture(scope="module")
def model(folder) -> FusionForConditionalGeneration:
    return FusionForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder) -> FusionProcessor:
    return FusionProcessor.from_pretrained(folder)


class Served:
    """A server in a thread, while it is entered as a context."""

    def __init__(self, model, processor, max_new_tokens=900, **options):
        listener = listen("127.0.0.1", 0)
        listener.listen()
        self.port = listener.getsockname()[1]
        self.chat_server = ChatServer(model, processor, NAME, max_new_tokens)
        self.server = build_uvicorn(self.chat_server, **options)
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=60
        )

    def __enter__(self) -> "Served":
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()

    def ask(self, messages, max_tokens=8, **options) -> str:
        """Return the text of the answer, streamed or not."""
        reply = self.client.chat.completions.create(model=NAME, messages=messages, max_tokens=max_tokens, **options)
        if not options.get("stream"):
            return reply.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply)

    def send(self, body: bytes, path=CHAT_PATH, method="POST", content_type="application/json"):
        """Return status and body of the answer to what is no sound request."""
        response, answer = self.exchange(path, method, body, {"Content-Type": content_type})
        return response.status, answer

    def exchange(self, path, method="GET", body=b"", headers=()) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response, answer

    def open(self, body: dict) -> socket.socket:
        """Send a request, and return the socket without reading the answer."""
        content = json.dumps({"model": NAME, **body}).encode()
        client = socket.create_connection(("127.0.0.1", self.port))
        head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return client

    @property
    def num_requests(self) -> int:
        """Return the number of unfinished requests for an answer."""
        return self.chat_server.metrics.in_flight[CHAT_PATH]


@pytest.fixture(scope="module")
def served(model, processor):
    with Served(model, processor) as served:
        yield served


def data_uri(image: Image.Image, kind: str = "png") -> str:
    content = io.BytesIO()
    image.save(content, kind)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def to_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def to_user(text: str, image: Image.Image | None = None) -> dict:
    """Return a message of a request."""
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts if image is None else [to_part(data_uri(image)), *parts]}


def expect(model, processor, messages: list[dict], images=(), max_tokens=8, **grid_sizes) -> str:
    """Return what `generate` gives for the same messages without a server, with the image in them."""
    messages = copy.deepcopy(messages)
    images = list(images)
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                part.pop("image_url")
                part.update(type="image", image=images.pop())
    inputs = process(processor, messages, **grid_sizes)
    output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    # A letter that is cut in half at the end is not sent.
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).rstrip("\ufffd")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_those_of_generate(stream, served, model, processor):
    image = random_image(0)
    conversations = [
        ([to_user("Hello!")], []),
        ([to_user("What is it?", image)], [image]),
        (
            [
                {"role": "system", "content": "Be brief."},
                to_user("What is it?", image),
                {"role": "assistant", "content": [{"type": "text", "text": "A picture."}]},
                {"role": "user", "content": "Of what?"},
            ],
            [image],
        ),
    ]
    for messages, images in conversations:
        expected = expect(model, processor, messages, images)
        assert expected.strip()
        assert served.ask(messages, stream=stream).rstrip("\ufffd") == expected


def test_fields_of_an_answer(served, processor):
    image = random_image(0)
    messages = [to_user("What is it?", image)]
    num_prompt_tokens = process(processor, [to_user("What is it?")])["input_ids"].shape[1] + 8 * 8 + 3  # <image> frame
    reply = served.client.chat.completions.create(model=NAME, messages=messages, max_tokens=3)
    assert (reply.object, reply.model, reply.choices[0].finish_reason) == ("chat.completion", NAME, "length")
    assert reply.usage.completion_tokens == 3
    chunks = list(
        served.client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == reply.usage
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 3
    assert reply.usage.prompt_tokens == num_prompt_tokens
    assert served.client.models.list().data[0].id == served.client.models.retrieve(NAME).id == NAME


def test_stream_ends_as_clients_expect(served):
    body = {"model": NAME, "messages": [to_user("Hello!")], "max_tokens": 2, "stream": True}
    status, answer = served.send(json.dumps(body).encode())
    assert status == 200
    assert answer.endswith(b"data: [DONE]\n\n")


def test_sizes_can_be_chosen(served, model, processor):
    image = random_image(0)
    sizes = {"latent_grid_size": 2, "image_grid_size": 5}
    messages = [to_user("What is it?", image)]
    expected = expect(model, processor, messages, [image], **sizes)
    assert expected != expect(model, processor, messages, [image])
    assert served.ask(messages, extra_body=sizes).rstrip("\ufffd") == expected


def test_temperature_and_seed(served):
    messages = [to_user("Hello!")]
    drawn = [served.ask(messages, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert served.ask(messages, temperature=1.5) != served.ask(messages, temperature=1.5)
    greedy = served.ask(messages)
    assert served.ask(messages, temperature=0) == served.ask(messages, temperature=1e-300) == greedy


@pytest.mark.parametrize("stream", [False, True])
def test_stop_text_ends_the_answer_and_is_not_in_it(stream, served):
    messages = [to_user("Hello!")]
    whole = served.ask(messages, max_tokens=30)
    # It begins in one token and ends in another, so that its first part must be held back.
    stop = whole[len(whole) // 2 : len(whole) // 2 + 9]
    options = {"max_tokens": 30, "stop": [stop, "never written"], "stream": stream}
    assert served.ask(messages, **options) == whole[: whole.index(stop)]
    reply = served.client.chat.completions.create(model=NAME, messages=messages, **{**options, "stream": False})
    assert reply.choices[0].finish_reason == "stop"
    # What looks like a stop text at the very end and is none is part of the answer.
    assert served.ask(messages, max_tokens=30, stop=whole[-3:] + "?", stream=stream) == whole


def test_concurrent_requests_get_the_answers_they_get_alone(served):
    requests = []
    for index in range(12):
        image = random_image(index) if index % 3 else None
        messages = [to_user(f"Question number {index}, what is it?" * (1 + index % 4), image)]
        sampling = {"temperature": 1.0, "seed": index} if index % 2 else {}
        requests.append({"messages": messages, "stream": index % 4 < 2, **sampling})
    alone = [served.ask(**request) for request in requests]
    assert len(set(alone)) > 9
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda request: served.ask(**request), requests * 2))
    assert together == alone * 2


@pytest.mark.skipif(not SMALL_MODEL.exists(), reason="small_model/train.py has not written small_model/model yet")
def test_trained_model_answers_rightly():
    """Images that it has not seen, many at once."""
    model = FusionForConditionalGeneration.from_pretrained(SMALL_MODEL)
    paths = easy_vqa.get_test_image_paths()
    rows = random.Random(0).sample(list(zip(*easy_vqa.get_test_questions(), strict=True)), 32)
    with Served(model, FusionProcessor.from_pretrained(SMALL_MODEL)) as served, ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda row: served.ask([to_user(row[0], Image.open(paths[row[2]]))]), rows)
        right = sum(answer == row[1] for answer, row in zip(answers, rows, strict=True))
    assert right >= 0.9 * len(rows)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_hangs_up_does_not_hold_up_the_next(stream, served, model):
    num_steps = 0

    def count(*_):
        nonlocal num_steps
        num_steps += 1

    hook = model.lm_head.register_forward_hook(count)
    body = json.dumps({"model": NAME, "messages": [to_user("Hello!")], "max_tokens": 900, "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    while num_steps < 3:
        time.sleep(0.01)
    connection.close()
    served.ask([to_user("Hello!")], max_tokens=2)  # after the other, for there is one engine
    hook.remove()
    assert num_steps < 450


IMAGE = data_uri(Image.new("RGB", (20, 10), "red"))
USER = {"role": "user", "content": "What is it?"}
ASSISTANT = {"role": "assistant", "content": "A ball."}


def with_image(url) -> dict:
    image = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]}


def base64_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


# Changes of a sound request, the status and what the message has to say.
WRONG = {
    "no messages": ({"messages": None}, 400, "messages: Field required"),
    "empty messages": ({"messages": []}, 400, "messages: List should have at least 1 item"),
    "messages no list": ({"messages": "Hello!"}, 400, "messages: Input should be a valid array, got 'Hello!'"),
    "message no object": ({"messages": ["Hello!"]}, 400, "messages.0"),
    "no role": ({"messages": [{"content": "Hello!"}]}, 400, "messages.0.role: Field required"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages.0.content: Field required"),
    "content a number": ({"messages": [{"role": "user", "content": 3}]}, 400, "expected a text, or a list of parts"),
    "unknown role": (
        {"messages": [{"role": "tool", "content": "3"}]},
        400,
        "'system', 'developer', 'user' or 'assistant', got 'tool'",
    ),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "'input_audio'"),
    "two answers": ({"messages": [USER, ASSISTANT, ASSISTANT, USER]}, 400, "Messages 1 and 2 are both of the role"),
    "answer last": ({"messages": [USER, ASSISTANT]}, 400, "The last message (1) is of the role 'assistant'"),
    "no question": ({"messages": [{"role": "user", "content": [to_part(IMAGE)]}]}, 400, "(0) holds no text"),
    "system late": ({"messages": [USER, {"role": "system", "content": "x"}, USER]}, 400, "Message 1 is of the role"),
    "two images": (
        {"messages": [{"role": "user", "content": [to_part(IMAGE), to_part(IMAGE)]}]},
        400,
        "2 images, expected at most 1",
    ),
    "image in a later turn": (
        {"messages": [USER, ASSISTANT, {"role": "user", "content": [to_part(IMAGE)]}]},
        400,
        "Message 2 has the image, expected it in the first message of the role 'user'",
    ),
    "unknown model": ({"model": "gpt-4"}, 404, "there is no model 'gpt-4' here, only 'small'"),
    "path as model": ({"model": "/etc"}, 404, "there is no model '/etc' here"),
    "model a list": ({"model": ["small"]}, 400, "model: Input should be a valid string"),
    "max_tokens text": ({"max_tokens": "8"}, 400, "max_tokens: Input should be a valid integer, got '8'"),
    "max_tokens float": ({"max_tokens": 8.5}, 400, "max_tokens: Input should be a valid integer, got 8.5"),
    "max_tokens bool": ({"max_tokens": True}, 400, "max_tokens: Input should be a valid integer"),
    "max_tokens zero": ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "temperature NaN": ({"temperature": float("nan")}, 400, "temperature"),
    "top_p": ({"top_p": 0}, 400, "top_p"),
    "seed": ({"seed": 2**70}, 400, "seed"),
    "stop": ({"stop": [""]}, 400, "stop.0"),
    "stream": ({"stream": "yes"}, 400, "stream: Input should be a valid boolean"),
    "unknown field": ({"max_token": 8}, 400, "max_token: this server does not know that field"),
    "unknown field of a message": (
        {"messages": [{**USER, "text": "x"}]},
        400,
        "messages.0.text: this server does not",
    ),
    "engine's own field": ({"generation_config": "{}"}, 400, "generation_config: this server does not know"),
    "latents": ({"latent_grid_size": 99}, 400, "latent_grid_size is 99, expected 1 to 16"),
    "image tokens": ({"image_grid_size": 0}, 400, "image_grid_size is 0, expected 1 to 8"),
    "long prompt": ({"messages": [{"role": "user", "content": "a " * 3000}]}, 400, "the model takes 1023 at most"),
    "base64": (with_image("data:image/png;base64,!!!"), 400, "its content is not base64"),
    "no base64": (with_image("data:image/svg+xml,<svg/>"), 400, "no data URI with base64 data"),
    "empty image": (with_image("data:image/png;base64,"), 400, "not an image"),
    "text as image": (with_image(base64_uri(b"Hello!" * 99)), 400, "not an image"),
    "cut image": (with_image(base64_uri(base64.b64decode(IMAGE.split(",")[1])[:40])), 400, "not an image"),
    "PostScript": (with_image(base64_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 400, "not an image"),
    "url a number": (with_image(3), 400, "image_url.url: Input should be a valid string"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_request_is_told_what_is_wrong(case, served):
    changes, status, words = WRONG[case]
    body = {"model": NAME, "messages": [USER], "max_tokens": 1, **changes}
    actual_status, answer = served.send(json.dumps(body).encode())
    assert (actual_status, words in json.loads(answer)["error"]["message"]) == (status, True), answer


# Fields that are not implemented: values that change nothing, and values that would.
NOT_IMPLEMENTED = {
    "n": ([1, 1.0], [2, 0, True, "1"]),
    "frequency_penalty": ([0, 0.0, -0.0], [0.1, False, float("nan")]),
    "presence_penalty": ([0], [-2]),
    "logit_bias": ([{}], [{"50256": -100}, []]),
    "logprobs": ([False], [True, 0]),
    "top_logprobs": ([0], [5]),
    "response_format": (
        [{"type": "text"}, {"type": "text", "json_schema": None}],
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, {}, "text"],
    ),
    "modalities": ([["text"]], [["text", "audio"], []]),
    "tools": ([[]], [[{"type": "function", "function": {"name": "f"}}], {}]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function", "function": {"name": "f"}}]),
    "functions": ([[]], [[{"name": "f"}]]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "reasoning_effort": (["none"], ["high"]),
    "verbosity": (["medium"], ["low"]),
    "best_of": ([1], [3]),
    "use_beam_search": ([False], [True]),
    "min_tokens": ([0], [5]),
    "ignore_eos": ([False], [True]),
    "stop_token_ids": ([[]], [[2]]),
    "skip_special_tokens": ([True], [False]),
    "echo": ([False], [True]),
    "chat_template_kwargs": ([{}], [{"enable_thinking": False}]),
    "audio": ([], [{"voice": "alloy", "format": "wav"}]),
    "web_search_options": ([], [{}]),
    "stream_options": ([{}, {"include_obfuscation": False}], [{"include_obfuscation": True}]),
}
# Notes to a service, which take no part in an answer.
HINTS = {
    "user": "u-1",
    "metadata": {"key": "value"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "hash",
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "prediction": {"type": "content", "content": "A guess."},
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("field", NOT_IMPLEMENTED)
def test_field_that_is_not_implemented_is_accepted_if_it_changes_nothing(field, served):
    neutral, others = NOT_IMPLEMENTED[field]
    sound = {"model": NAME, "messages": [USER], "max_tokens": 1, "temperature": 0}
    expected = served.ask([USER], max_tokens=1)
    for value in [None, *neutral]:
        status, answer = served.send(json.dumps({**sound, field: value}).encode())
        assert status == 200, (value, answer)
        assert json.loads(answer)["choices"][0]["message"]["content"] == expected
    for value in others:
        status, answer = served.send(json.dumps({**sound, field: value}).encode())
        error = json.loads(answer)["error"]
        assert status == 400, value
        assert error["param"].startswith(field)
        assert re.match(rf"{field}[\w.]*: this server (supports only|does not know)", error["message"])


def test_hints_and_nulls_are_accepted(served):
    expected = served.ask([USER])
    assert served.ask([USER], extra_body=HINTS) == expected
    # Whatever field a client has, null is the same as none.
    fields = openai.types.chat.completion_create_params.CompletionCreateParamsBase.__annotations__
    nulls = dict.fromkeys({*fields, "stream", "latent_grid_size", "not_yet_invented"} - {"model", "messages"})
    parts = [{"type": "text", "text": USER["content"], "image_url": None, "cache_control": {"type": "ephemeral"}}]
    message = {"role": "user", "content": parts, "name": None, "tool_calls": None}
    body = {"model": NAME, "messages": [message], **nulls, "max_completion_tokens": 8}
    status, answer = served.send(json.dumps(body).encode())
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, expected)


@pytest.mark.parametrize("form", ["object", "dict"])
def test_an_answer_can_be_sent_back_as_it_came(form, served):
    reply = served.client.chat.completions.create(model=NAME, messages=[USER], max_tokens=8).choices[0].message
    turn = {"role": "assistant", "content": reply.content}
    # What other servers add to their answers.
    extras = {"refusal": None, "annotations": [], "tool_calls": [], "function_call": None, "reasoning_content": ""}
    message = reply if form == "object" else {**reply.model_dump(), **extras}
    assert served.ask([USER, message, USER]) == served.ask([USER, turn, USER])


def test_developer_is_a_system_role(served):
    first = {"role": "system", "content": "Answer in one word."}
    expected = served.ask([first, USER])
    assert served.ask([{**first, "role": "developer"}, USER]) == expected != served.ask([USER])


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;charset=utf-8;base64",
        "data:image/png;name=a.png;charset=UTF-8;base64",
        "DATA:IMAGE/PNG;BASE64",
        "data:;base64",
        'data:image/svg+xml;x="a b";base64',
    ],
)
def test_data_uris_have_parameters(header, served):
    encoded = data_uri(random_image(0)).split(",")[1]
    lines = "\r\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
    urls = [f"{header},{encoded}", f"{header},{lines}"]
    text = {"type": "text", "text": "What is it?"}
    expected = served.ask([to_user("What is it?", random_image(0))])
    for url in urls:
        assert served.ask([{"role": "user", "content": [to_part(url), text]}]) == expected
        assert read_image(url).size == random_image(0).size  # the handler's reader


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_length_above_the_limit_is_capped(field, model, processor):
    with Served(model, processor, max_new_tokens=5) as served:
        for asked, num_tokens in ((3, 3), (5, 5), (4096, 5), (10**30, 5), (None, 5)):
            body = {"model": NAME, "messages": [USER], field: asked}
            status, answer = served.send(json.dumps(body).encode())
            answer = json.loads(answer)
            assert (status, answer["usage"]["completion_tokens"]) == (200, num_tokens)
            assert answer["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_ends_at_the_limit_is_not_cut(model, processor):
    inputs = process(processor, [to_user("Hello!")])
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    end = next(place for place in range(1, 6) if tokens[place] not in tokens[:place])
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = [tokens[end]]
    with Served(model, processor) as served:
        for limit, reason in ((end, "length"), (end + 1, "stop"), (end + 2, "stop")):
            reply = served.client.chat.completions.create(
                model=NAME, messages=[to_user("Hello!")], max_tokens=limit, temperature=0
            )
            assert (limit, reply.choices[0].finish_reason) == (limit, reason)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"model": "small", "model": "\\ud800"}'],
)
def test_what_is_no_json_object_is_refused(body, served):
    status, answer = served.send(body)
    assert (status, "request body" in json.loads(answer)["error"]["message"]) == (400, True)


def test_http_errors(served):
    sound = json.dumps({"model": NAME, "messages": [USER]}).encode()
    # A web page may send text to a server on its reader's machine without asking.
    assert served.send(sound, content_type="text/plain")[0] == 415
    assert served.send(sound, path="/v1/completions")[0] == 404
    assert served.send(b"", method="GET")[0] == 405
    # Those with which `transformers serve` loads models, and drops the loaded one.
    assert served.send(b'{"model": "gpt2"}', path="/load_model")[0] == 404
    assert served.send(b"{}", path="/reset")[0] == 404
    status, answer = served.send(b" " * (MAX_BODY_BYTES + 1))
    assert (status, "at most 32 MiB" in json.loads(answer)["error"]["message"]) == (413, True)
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")


def test_image_with_too_many_pixels_is_not_decoded(served):
    huge = base64_uri(bytes_of_png(Image.new("1", (16_000, 16_000))))
    status, answer = served.send(json.dumps({"model": NAME, **with_image(huge)}).encode())
    assert (status, "pixels" in json.loads(answer)["error"]["message"]) == (400, True)


def bytes_of_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_requests_open_no_files_and_no_addresses(served, tmp_path):
    """Of a real image and of a server that listens, each in all spellings."""
    path = tmp_path / "image.png"
    Image.new("RGB", (20, 10)).save(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"127.0.0.1:{listener.getsockname()[1]}/image.png"
        files = [str(path), f"file://{path}", f"FILE://localhost{path}", f"data:{path}", "image.png"]
        addresses = [
            f"http://{address}",
            f"https://{address}",
            f"HTTP://{address}",
            f"ftp://{address}",
            f"//{address}",
        ]
        for url in [*files, *addresses, f" http://{address}", f"data:image/png;base64,http://{address}"]:
            status, answer = served.send(json.dumps({"model": NAME, **with_image(url)}).encode())
            assert status == 400
            assert re.search("no data URI|not an image|not base64", json.loads(answer)["error"]["message"])
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_control_token_of_a_user_is_text_or_refused(served):
    for token in ("<|eot_id|>", "<image>", "<latent>"):
        status, answer = served.send(
            json.dumps(
                {"model": NAME, "max_tokens": 1, "messages": [{"role": "user", "content": f"a {token}?"}]}
            ).encode()
        )
        assert status == (200 if CAN_SANITIZE else 400), answer
        assert CAN_SANITIZE or f"control token '{token}' as text. To keep it as text needs" in answer.decode()


def test_messages_of_a_user_in_a_row_are_one(served):
    image, question = {"role": "user", "content": [to_part(IMAGE)]}, {"role": "user", "content": "What is it?"}
    together = [{"role": "user", "content": [to_part(IMAGE), {"type": "text", "text": "What is it?"}]}]
    assert served.ask([image, question]) == served.ask(together)


def test_broken_requests_are_never_the_servers_fault(served):
    """Every field of a sound request in turn is something odd; images have bytes changed."""
    rng = random.Random(0)
    sound = {
        "model": NAME,
        "messages": [{"role": "user", "content": [to_part(IMAGE), {"type": "text", "text": "x"}]}, ASSISTANT, USER],
        "max_tokens": 1,
        "stop": ["x"],
    }
    odd = [True, -1, 1e308, "\0", "<image><latent>", "\U000f0000<vision_end>", [], [None], {}, {"type": "text"}]
    bodies = [replace(sound, path, rng.choice(odd)) for path in paths(sound) for _ in range(3) if path]
    jpeg = np.frombuffer(base64.b64decode(data_uri(random_image(0), "jpeg").split(",")[1]), dtype=np.uint8)
    for _ in range(40):
        broken = jpeg.copy()
        broken[[rng.randrange(len(broken)) for _ in range(10)]] = rng.randrange(256)
        bodies.append({**sound, **with_image(base64_uri(broken.tobytes()))})
    statuses = []
    for body in bodies:
        status, answer = served.send(json.dumps(body).encode())
        statuses.append(status)
        assert status == 200 or (400 <= status < 500 and json.loads(answer)["error"]["message"]), (body, answer)
    assert statuses.count(200) > 10


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths(child, (*path, key))


def replace(value, path, other):
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = other
    return value


def test_failure_of_the_model_is_said_and_the_next_request_answered(model, processor, capfd):
    fails = True

    def fail(*_):
        if fails:
            raise RuntimeError('out of "memory"')

    model = copy.deepcopy(model)
    model.lm_head.register_forward_pre_hook(fail)
    with Served(model, processor) as served:
        with pytest.raises(openai.InternalServerError, match="the server failed"):
            served.ask([USER])
        with pytest.raises(openai.APIError, match="the server failed"):
            served.ask([USER], stream=True)
        fails = False
        assert served.ask([USER])
    assert 'out of "memory"' in capfd.readouterr().err


class Gate:
    """Holds the model's steps while it is closed, and counts them."""

    def __init__(self, model):
        self.num_steps, self.opened = 0, threading.Event()
        model.model.language_model.register_forward_pre_hook(self.hold)

    def hold(self, *_):
        self.num_steps += 1
        assert self.opened.wait(60)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.01)


@pytest.fixture
def gated(model, processor):
    """Serve a model that waits for `gate.opened`."""
    model = copy.deepcopy(model)
    gate = Gate(model)
    with Served(model, processor) as served:
        yield served, gate
        gate.opened.set()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))  # large as PNG


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_computed_for_clients_that_left_the_queue(stream, gated):
    served, gate = gated
    first = served.open({"messages": [USER], "max_tokens": 3})
    wait_until(lambda: gate.num_steps == 1)
    # Large requests fill uvicorn's buffer, and uvicorn then stops to read until the application asks for more.
    questions = [to_user("Hello!"), to_user("What is it?", random_image(0)), to_user("What is it?", NOISE)]
    waiting = [served.open({"messages": [question], "stream": stream}) for question in questions * 3]
    last = served.open({"messages": [USER], "max_tokens": 2})
    wait_until(lambda: served.num_requests == 11)
    for client in waiting:
        client.close()
    wait_until(lambda: served.num_requests == 2)
    gate.opened.set()
    for client in (first, last):
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    assert gate.num_steps == 3 + 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_answer_stops_at_its_next_token(stream, gated):
    served, gate = gated
    client = served.open({"messages": [USER], "stream": stream})
    wait_until(lambda: gate.num_steps == 1)
    client.close()
    wait_until(lambda: served.num_requests == 0)
    gate.opened.set()
    served.ask([USER], max_tokens=2)
    assert gate.num_steps == 1 + 2


def test_events_of_a_client_that_left_are_closed_at_once():
    """The reference to the events keeps the garbage collector from closing them."""
    is_closed = False

    async def write_events():
        nonlocal is_closed
        try:
            while True:
                yield "data: x\n\n"
        finally:
            is_closed = True

    async def send(message):
        if message.get("body"):
            await asyncio.sleep(60)

    async def leave_during_an_event():
        events = write_events()
        task = asyncio.create_task(EventStream(events)({"type": "http"}, asyncio.Queue().get, send))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        return events, is_closed

    assert asyncio.run(leave_during_an_event())[1]


def test_a_client_that_reads_slowly_holds_up_no_others(model, processor):
    server = ChatServer(model, processor, NAME)
    body = json.dumps({"model": NAME, "messages": [USER], "max_tokens": 8}).encode()
    slow, quick = (server.prepare(*parse_request(body)) for _ in range(2))

    async def read() -> tuple[str, str]:
        async with contextlib.aclosing(slow.pieces()) as slow_pieces:
            first = await anext(slow_pieces)
            async with contextlib.aclosing(quick.pieces()) as quick_pieces:
                text = "".join([piece async for piece in quick_pieces])
            return first + "".join([piece async for piece in slow_pieces]), text

    slow_text, quick_text = asyncio.run(asyncio.wait_for(read(), 60))
    assert slow_text == quick_text != ""


def test_nothing_is_prepared_for_clients_that_left(gated, monkeypatch):
    served, gate = gated
    gate.opened.set()
    entered, released, calls = threading.Event(), threading.Event(), []

    def watch(name):
        function = getattr(server, name)

        def watched(*args):
            calls.append(name)
            if len(calls) == 1:
                entered.set()
                assert released.wait(60)
            return function(*args)

        monkeypatch.setattr(server, name, watched)

    watch("parse_request")
    watch("process")
    clients = [served.open({"messages": [to_user("What is it?", NOISE)]}) for _ in range(6)]
    assert entered.wait(60)
    wait_until(lambda: served.num_requests == 6)
    for client in clients:
        client.close()
    wait_until(lambda: served.num_requests == 0)
    released.set()
    served.ask([USER], max_tokens=2)
    assert calls == ["parse_request", "parse_request", "process"]  # of the first client, which was begun; of the last
    assert gate.num_steps == 2


def start_log(capfd):
    """Drop what servers of other tests have logged: a line is written a moment after the answer."""
    time.sleep(0.2)
    capfd.readouterr()


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
LINE = TIME + r"127\.0\.0\.1:\d+ "


def test_client_that_hangs_up_while_it_sends_is_one_line_of_the_log(model, processor, capfd):
    heads = ["Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n400\r\n"]
    start_log(capfd)
    with Served(model, processor) as served:
        for head in heads:
            client = socket.create_connection(("127.0.0.1", served.port))
            request = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}"
            client.sendall(request.encode() + b'{"model": "small", ')
            wait_until(lambda: served.num_requests == 1)
            client.close()
            wait_until(lambda: served.num_requests == 0)
        served.ask([USER], max_tokens=1)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert re.fullmatch(LINE + rf"POST {CHAT_PATH} 499 \d+\.\d{{3}}s 0\+0 tokens", line)


def test_access_log(model, processor, capfd):
    start_log(capfd)
    with Served(model, processor) as served:
        usage = served.client.chat.completions.create(model=NAME, messages=[USER], max_tokens=3).usage
        served.ask([USER], stream=True, max_tokens=2)
        served.send(b"{}")
        served.exchange("/health?key=secret")
        served.exchange("/health", headers={"X-Forwarded-For": "10.0.0.1 GET /"})  # from a proxy on this machine
        served.exchange("/none%0A2026-01-01%200.0.0.0:1")  # a line break, which would forge a line
    lines = capfd.readouterr().err.splitlines()
    expected = [
        rf"{LINE}POST {CHAT_PATH} 200 \d+\.\d{{3}}s {usage.prompt_tokens}\+3 tokens",
        rf"{LINE}POST {CHAT_PATH} 200 \d+\.\d{{3}}s {usage.prompt_tokens}\+2 tokens",
        rf"{LINE}POST {CHAT_PATH} 400 \d+\.\d{{3}}s 0\+0 tokens",
        rf"{LINE}GET /health 200 \d+\.\d{{3}}s 0\+0 tokens",
        rf"{TIME}10\.0\.0\.1%20GET%20%2F:0 GET /health 200 \d+\.\d{{3}}s 0\+0 tokens",
        rf"{LINE}GET /none%0A2026-01-01%200\.0\.0\.0%3A1 404 \d+\.\d{{3}}s 0\+0 tokens",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def read_metrics(served) -> dict[str, float]:
    """Read `/metrics` as Prometheus does, checking the form of each line."""
    response, text = served.exchange("/metrics")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    values, described = {}, set()
    for line in text.decode().splitlines():
        if match := re.fullmatch(r"# (?:HELP|TYPE) (\w+) .+", line):
            described.add(match[1])
            continue
        name, labels, value = re.fullmatch(r'(\w+)(\{\w+="[^"]*"(?:,\w+="[^"]*")*\})? (\S+)', line).groups()
        assert name in described or name.rsplit("_", 1)[0] in described
        values[name.removeprefix("fusion_vlm_") + (labels or "")] = float(value)
    return values


def test_metrics(gated):
    served, gate = gated
    before = read_metrics(served)
    assert (before["prompt_tokens_total"], before["requests_running"], before["requests_waiting"]) == (0, 0, 0)
    clients = [served.open({"messages": [USER], "max_tokens": 3}) for _ in range(4)]
    wait_until(lambda: gate.num_steps == 1 and served.num_requests == 4)
    during = read_metrics(served)
    assert (during["requests_running"], during["requests_waiting"]) == (1, 3)
    clients.pop().close()
    wait_until(lambda: served.num_requests == 3)
    gate.opened.set()
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    wait_until(lambda: not served.chat_server.turn.locked())  # the model returns a moment after the last token
    served.send(b"{}")
    served.exchange("/a")
    served.exchange("/b")
    after = read_metrics(served)
    assert (after["requests_running"], after["requests_waiting"]) == (0, 0)
    usage = served.client.chat.completions.create(model=NAME, messages=[USER], max_tokens=1).usage
    # Of the client that left while it waited, nothing was processed.
    assert (after["prompt_tokens_total"], after["generated_tokens_total"]) == (3 * usage.prompt_tokens, 3 * 3)
    statuses = {status: after[f'requests_total{{path="{CHAT_PATH}",status="{status}"}}'] for status in (200, 400, 499)}
    assert statuses == {200: 3, 400: 1, 499: 1}
    assert after['requests_total{path="other",status="404"}'] == 2
    name = "request_duration_seconds"
    counts = [value for key, value in after.items() if key.startswith(f'{name}_bucket{{path="{CHAT_PATH}"')]
    assert counts == sorted(counts)
    assert counts[-1] == after[f'{name}_count{{path="{CHAT_PATH}"}}'] == 5
    assert after[f'{name}_bucket{{path="{CHAT_PATH}",le="+Inf"}}'] == 5
    assert after[f'{name}_sum{{path="{CHAT_PATH}"}}'] > 0


def test_server_says_what_it_is(served):
    response, text = served.exchange("/")
    assert response.status == 200
    assert re.fullmatch(r"FUSION .*small.* fusion-vlm .*/v1/chat/completions.*\n", text.decode())
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    expected = {"version": importlib.metadata.version("fusion-vlm"), **versions, "model": NAME}
    assert json.loads(served.exchange("/version")[1]) == expected


KEY = "sk-0123"


def test_api_key(model, processor):
    sound = json.dumps({"model": NAME, "messages": [USER], "max_tokens": 1}).encode()
    with Served(model, processor, api_key=KEY) as served:
        with pytest.raises(openai.AuthenticationError) as error:
            served.ask([USER])
        assert error.value.body["code"] == "invalid_api_key"
        assert KEY not in str(error.value)
        assert served.client.with_options(api_key=KEY).models.list().data[0].id == NAME
        for header, status in (
            (f"Bearer {KEY}", 200),
            (f"bearer {KEY}", 200),
            (f"Bearer {KEY}4", 401),
            (f"Bearer {KEY[:-1]}", 401),
            (f"Basic {KEY}", 401),
            (KEY, 401),
            ("Bearer", 401),
            ("Bearer \xe9", 401),
            ("", 401),
        ):
            headers = {"Authorization": header.encode("latin-1"), "Content-Type": "application/json"}
            response, answer = served.exchange(CHAT_PATH, "POST", sound, headers)
            assert (header, response.status) == (header, status)
            if status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert json.loads(answer)["error"]["type"] == "invalid_request_error"
        assert served.exchange("/health")[0].status == 200
        for path in ("/", "/v1/models", "/metrics", "/version", "/health/", "//health", "/none"):
            assert (path, served.exchange(path)[0].status) == (path, 401)
        # The body of a large request is not read, but its client must see the answer.
        assert served.send(b"x" * 4 * 2**20)[0] == 401


def test_api_key_comes_from_the_command_line_or_the_environment(monkeypatch, capsys):
    monkeypatch.delenv("FUSION_VLM_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("FUSION_VLM_API_KEY", KEY)
    assert (read_api_key(None), read_api_key("other")) == (KEY, "other")
    for key in ("", " ", f"{KEY}\n", "schl\xfcssel"):
        monkeypatch.setenv("FUSION_VLM_API_KEY", key)
        assert main(["serve", str(SMALL_MODEL)]) == 1
        assert "FUSION_VLM_API_KEY) is empty, or has" in capsys.readouterr().err


PAGE = "http://localhost:3000"


def test_cors(model, processor):
    sound = json.dumps({"model": NAME, "messages": [USER], "max_tokens": 1}).encode()
    headers = {"Origin": PAGE, "Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    ask_first = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
    }
    with Served(model, processor, cors=[PAGE, "app://desk"], api_key=KEY) as served:
        # A browser asks without the key.
        response, _ = served.exchange(CHAT_PATH, "OPTIONS", headers=ask_first)
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert "x-stainless-lang" in response.headers["Access-Control-Allow-Headers"]
        # The page can read answers and errors.
        for body, key, status in ((sound, KEY, 200), (b"{}", KEY, 400), (sound, "wrong", 401)):
            request_headers = {**headers, "Authorization": f"Bearer {key}"}
            response, _ = served.exchange(CHAT_PATH, "POST", body, request_headers)
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (status, PAGE)
        other = {**ask_first, "Origin": "http://localhost:3001"}
        response, _ = served.exchange(CHAT_PATH, "OPTIONS", headers=other)
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (400, None)
    with Served(model, processor, cors=["*"]) as served:
        assert (
            served.exchange(CHAT_PATH, "OPTIONS", headers=ask_first)[0].headers["Access-Control-Allow-Origin"] == "*"
        )
    with Served(model, processor) as served:
        assert served.exchange(CHAT_PATH, "OPTIONS", headers=ask_first)[0].status == 405
        assert served.exchange(CHAT_PATH, "POST", sound, headers)[0].headers["Access-Control-Allow-Origin"] is None


def test_origins_on_the_command_line(capsys):
    parser = build_parser("serve")
    origins = ["http://localhost:3000/", "https://Example.org", "*", "null", "app://desk", "http://[::1]:80"]
    expected = ["http://localhost:3000", "https://example.org", "*", "null", "app://desk", "http://[::1]:80"]
    assert parser.parse_args(["model", "--cors", *origins]).cors == expected
    for wrong in ("localhost:3000", "http://localhost/page", "", "http://a b"):
        with pytest.raises(SystemExit):
            parser.parse_args(["model", "--cors", wrong])
        assert "expected an origin such as http://localhost:3000" in capsys.readouterr().err


def test_who_is_answered_while_the_server_ends_is_told(gated, capfd):
    served, gate = gated
    running = served.open({"messages": [USER], "stream": True})
    wait_until(lambda: gate.num_steps == 1)
    waiting = served.open({"messages": [USER]})
    wait_until(lambda: served.num_requests == 2)
    served.server.should_exit = True
    served.thread.join()
    answer = waiting.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "the server is shutting down"
    assert b"[DONE]" not in running.makefile("rb").read()
    log = capfd.readouterr().err
    assert len(re.findall(rf"POST {CHAT_PATH} 503", log)) == 2
    assert "Traceback" not in log


def ignore_interrupts():
    """Do what a shell does to a process that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("signal_number, return_code", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_command_serves_a_folder_until_it_is_interrupted(
    signal_number, return_code, folder, model, processor, tmp_path
):
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", folder, "--port", "0", "--cors", PAGE]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options = {**pipes, "cwd": tmp_path, "env": {**os.environ, "FUSION_VLM_API_KEY": KEY}}
    with subprocess.Popen(command, preexec_fn=ignore_interrupts, **options) as process:
        try:
            url = re.fullmatch(r"Serving small at (\S+) \(Ctrl-C ends\)\n", process.stderr.readline())[1]
            headers = {"Origin": PAGE}
            with openai.OpenAI(
                base_url=url, api_key=KEY, max_retries=0, timeout=60, default_headers=headers
            ) as client:
                image = random_image(3)
                messages = [to_user("What is it?", image)]
                reply = client.chat.completions.with_raw_response.create(model=NAME, messages=messages, max_tokens=8)
            expected = expect(model, processor, messages, [image])
            assert reply.parse().choices[0].message.content.rstrip("\ufffd") == expected
            assert reply.headers["access-control-allow-origin"] == PAGE
            process.send_signal(signal_number)
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stdout) == (return_code, "")
    assert re.fullmatch(rf"\S+ \S+ \S+ POST {CHAT_PATH} 200 \S+ \d+\+8 tokens\n", stderr)


SLOW = """
import torch
from fusion_vlm.commands import main
from fusion_vlm.serving import server

load = server.load

def load_slow_model(model, **options):
    model, processor = load(model, **options)
    model.lm_head.register_forward_pre_hook(lambda *_: [torch.ones(1).add_(1) for _ in range(200_000)] and None)
    return model, processor

server.load = load_slow_model
raise SystemExit(main.main())
"""


def test_command_is_interrupted_in_the_middle_of_a_step(folder, tmp_path):
    """The model's thread would abort the process, were it still in a step when Python exits."""
    command = [sys.executable, "-c", SLOW, "serve", folder, "--port", "0"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=ignore_interrupts, cwd=tmp_path, **pipes) as process:
        try:
            port = int(re.search(r":(\d+)/v1", process.stderr.readline())[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps({"model": NAME, "messages": [USER]})
            connection.request("POST", CHAT_PATH, body, {"Content-Type": "application/json"})
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            status = connection.getresponse().status
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, status) == (130, 503)
    assert "Traceback" not in stderr


def test_taken_port_is_told_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", str(SMALL_MODEL), "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"error: Cannot listen on 127.0.0.1 port {port}: ")
