"""`fusion-vlm serve` over HTTP: by the `openai` client where a request is sound, byte by byte where it is not."""

import base64
import copy
import http.client
import io
import json
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

from fusion_vlm.commands.main import main
from fusion_vlm.commands.serve import MAX_BODY_BYTES, ChatServer, build_uvicorn, listen
from fusion_vlm.handler import read_image
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor

from .conftest import process
from .tiny import random_image


ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny"
NAME = "small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    write_small_model = runpy.run_path(str(ROOT / "examples" / "small_model.py"))["write_small_model"]
    return write_small_model(tmp_path_factory.mktemp("model") / NAME)


@pytest.fixture(scope="module")
def model(folder) -> FusionForConditionalGeneration:
    return FusionForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder) -> FusionProcessor:
    return FusionProcessor.from_pretrained(folder)


class Served:
    """A server in a thread, while it is entered as a context."""

    def __init__(self, model, processor):
        listener = listen("127.0.0.1", 0)
        listener.listen()
        self.port = listener.getsockname()[1]
        self.server = build_uvicorn(ChatServer(model, processor, NAME, max_new_tokens=900))
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
        """The answer's text, streamed or not."""
        reply = self.client.chat.completions.create(model=NAME, messages=messages, max_tokens=max_tokens, **options)
        if not options.get("stream"):
            return reply.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply)

    def send(self, body: bytes, path="/v1/chat/completions", method="POST", content_type="application/json"):
        """Status and body of the answer to what is no sound request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, answer


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
    """A message of a request."""
    parts = [{"type": "text", "text": text}]
    return {"role": "user", "content": parts if image is None else [to_part(data_uri(image)), *parts]}


def expect(model, processor, messages: list[dict], images=(), max_tokens=8, **grid_sizes) -> str:
    """The answer without a server: what `generate` gives for the same messages, with the image in them."""
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


@pytest.mark.skipif(not TINY.exists(), reason="examples/train_tiny.py has not written examples/tiny yet")
def test_trained_model_answers_rightly():
    """Images that it has not seen, many at once."""
    model = FusionForConditionalGeneration.from_pretrained(TINY)
    paths = easy_vqa.get_test_image_paths()
    rows = random.Random(0).sample(list(zip(*easy_vqa.get_test_questions(), strict=True)), 32)
    with Served(model, FusionProcessor.from_pretrained(TINY)) as served, ThreadPoolExecutor(8) as threads:
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
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


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
    "two users": (
        {"messages": [USER, USER]},
        400,
        "the roles are ['user', 'user'], expected user and assistant in turn",
    ),
    "answer last": ({"messages": [USER, ASSISTANT]}, 400, "the first and the last of them user"),
    "system late": ({"messages": [USER, {"role": "system", "content": "x"}, USER]}, 400, "at most one system message"),
    "two images": (
        {"messages": [{"role": "user", "content": [to_part(IMAGE), to_part(IMAGE)]}]},
        400,
        "2 images, expected at most 1",
    ),
    "image in a later turn": (
        {"messages": [USER, ASSISTANT, {"role": "user", "content": [to_part(IMAGE)]}]},
        400,
        "the image belongs to the first user message",
    ),
    "unknown model": ({"model": "gpt-4"}, 404, "there is no model 'gpt-4' here, only 'small'"),
    "path as model": ({"model": "/etc"}, 404, "there is no model '/etc' here"),
    "model a list": ({"model": ["small"]}, 400, "model: Input should be a valid string"),
    "max_tokens text": ({"max_tokens": "8"}, 400, "max_tokens: Input should be a valid integer, got '8'"),
    "max_tokens float": ({"max_tokens": 8.5}, 400, "max_tokens: Input should be a valid integer, got 8.5"),
    "max_tokens bool": ({"max_tokens": True}, 400, "max_tokens: Input should be a valid integer"),
    "max_tokens zero": ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
    "max_tokens huge": ({"max_tokens": 10**30}, 400, "is more than this server allows, which is 900"),
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
    "base64": (with_image("data:image/png;base64,!!!"), 400, "not an image"),
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
            assert re.search("no data URI|not an image", json.loads(answer)["error"]["message"])
        with pytest.raises(BlockingIOError):
            listener.accept()


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


def test_command_serves_a_folder_until_it_is_interrupted(folder, model, processor, tmp_path):
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", folder, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            url = re.fullmatch(r"Serving small at (\S+) \(Ctrl-C ends\)\n", process.stderr.readline())[1]
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                image = random_image(3)
                messages = [to_user("What is it?", image)]
                reply = client.chat.completions.create(model=NAME, messages=messages, max_tokens=8)
            expected = expect(model, processor, messages, [image])
            assert reply.choices[0].message.content.rstrip("\ufffd") == expected
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_taken_port_is_told_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", "no such model", "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"error: Cannot listen on 127.0.0.1 port {port}: ")
