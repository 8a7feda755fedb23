"""`fusion-vlm serve --engine vllm` over HTTP: right answers, images, hostile requests, and the command itself."""

import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from PIL import Image

from fusion_vlm.hub.loading import load
from fusion_vlm.serving.chat_request import RequestError, parse_request
from fusion_vlm.serving.server import ChatServer
from fusion_vlm.serving.vllm.launch import find_obstacle

from ...helpers import SMALL_MODEL, make_messages
from .engines import Request, draw_image


NAME = "small"
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--trust-request-mm-kwargs"]
SECONDS_TO_START = 900  # on a busy machine


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def run_server(*options, port: int):
    """Run the command, and wait until it answers."""
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", str(SMALL_MODEL), "--engine", "vllm"]
    command += ["--name", NAME, "--port", str(port), "--api-key", "secret", *OPTIONS, *options]
    # The engine in a process of its own, as users have it.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while get_status(port, "/health") != 200:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def get_status(port: int, path: str) -> int | None:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20).status
    except OSError:
        return None


@pytest.fixture(scope="module")
def port():
    port = find_port()
    with run_server(port=port):
        yield port


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0, timeout=120)


def post(port: int, path: str, body: dict | bytes) -> tuple[int, str]:
    """Return the status and the body, or the error's message, of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]["message"]
        return error.code, text


def encode(image: Image.Image, image_format: str = "PNG", **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return f"data:image/{image_format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def picture(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*content, **fields) -> dict:
    content = [text(part) if isinstance(part, str) else part for part in content]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


PICTURE = picture(encode(draw_image(1)))
QUESTION = "What is it?"


# Answers ------------------------------------------------------------------------------------------------------------


def check_answer(client, reference, messages: list[dict], url: str | None, **fields):
    """Compare an answer and its log probabilities with transformers'."""
    expected = reference.answer(Request(messages), 12)
    content = [text(part["text"]) if part["type"] == "text" else picture(url) for part in messages[0]["content"]]
    turns = [{"role": "user", "content": content}, *messages[1:]]
    options = {"temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 20, **fields}
    answer = client.chat.completions.create(model=NAME, messages=turns, **options)
    assert answer.usage.prompt_tokens == len(expected.prompt_ids)
    assert answer.choices[0].message.content == reference.processor.decode(
        expected.token_ids, skip_special_tokens=True
    )
    # Names of tokens are not unique in the small vocabulary, values are.
    values = [entry.logprob for entry in answer.choices[0].logprobs.content[0].top_logprobs]
    right = sorted(expected.log_probs.values(), reverse=True)[: len(values)]
    assert max(abs(value - other) for value, other in zip(values, right, strict=True)) < 1e-4


def test_conversations(client, references):
    image = draw_image(3)
    turns = ["What is it?", "A red circle.", "Where is it?"]
    for number in (1, 3):
        check_answer(client, references("small"), make_messages(turns[:number], image), encode(image))
        check_answer(client, references("small"), make_messages(turns[:number]), None)


def rotated() -> tuple[Image.Image, dict]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return draw_image(5, 90, 60), {"image_format": "JPEG", "exif": exif, "quality": 95}


def transparent() -> tuple[Image.Image, dict]:
    image = draw_image(6, 64, 48).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image, {}


IMAGES = {
    "16-bit": lambda: (Image.fromarray((np.arange(48 * 64) * 21).astype(np.uint16).reshape(48, 64)), {}),
    "cmyk": lambda: (draw_image(7, 64, 48).convert("CMYK"), {"image_format": "JPEG", "quality": 95}),
    "transparent": transparent,
    "rotated": rotated,
    "palette": lambda: (draw_image(8, 64, 48).quantize(16), {}),
    "gray and alpha": lambda: (transparent()[0].convert("LA"), {}),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_have_the_pixels_of_the_processor(client, references, kind):
    image, options = IMAGES[kind]()
    url = encode(image, **options)
    check_answer(client, references("small"), make_messages([QUESTION], url), url)


def test_streaming(client, references):
    expected = references("small").answer(Request(make_messages([QUESTION])), 12)
    messages = [{"role": "user", "content": QUESTION}]
    stream = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=12, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == references("small").processor.decode(expected.token_ids, skip_special_tokens=True)


# Hostile requests ---------------------------------------------------------------------------------------------------

WRONG_MESSAGES = {
    "two images": [{"role": "user", "content": [PICTURE, PICTURE, text(QUESTION)]}],
    "image in a later turn": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": [PICTURE, text("And this?")]},
    ],
    "image of the assistant": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [PICTURE]},
        {"role": "user", "content": QUESTION},
    ],
    "system in the middle": [{"role": "user", "content": QUESTION}, {"role": "system", "content": "Be brief."}],
    "assistant last": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "A circle."}],
    "assistant twice": [
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": QUESTION},
    ],
    "no text": [{"role": "user", "content": [PICTURE]}],
    "empty text": [{"role": "user", "content": "  "}],
    "no image": [{"role": "user", "content": [picture("data:image/png;base64,bm8gaW1hZ2U="), text(QUESTION)]}],
    "no base64": [{"role": "user", "content": [picture("data:image/png;base64,!!!"), text(QUESTION)]}],
    "empty image": [{"role": "user", "content": [picture("data:image/png;base64,"), text(QUESTION)]}],
    "cut image": [{"role": "user", "content": [picture(PICTURE["image_url"]["url"][:200]), text(QUESTION)]}],
}


@pytest.fixture(scope="module")
def own_server():
    """Build the part of the one-process server that checks requests."""
    model, processor = load(SMALL_MODEL, dtype="float32")
    model.config.text_config.max_position_embeddings = 512  # as the other server's --max-model-len
    return ChatServer(model, processor, NAME)


@pytest.mark.parametrize("kind", WRONG_MESSAGES)
def test_the_words_are_those_of_the_own_server(port, own_server, kind):
    body = {"model": NAME, "messages": WRONG_MESSAGES[kind]}
    with pytest.raises(RequestError) as error:
        own_server.prepare(*parse_request(json.dumps(body).encode()))
    status, message = post(port, "/v1/chat/completions", body)
    assert (status, message) == (400, str(error.value))


def test_a_conversation_that_is_too_long(port):
    """vLLM counts the text before the plugin counts the expanded prompt, which has 50 tokens more here."""
    for number in (600, 470):
        status, message = post(port, "/v1/chat/completions", chat(PICTURE, "blue " * number))
        assert status == 400 and ("maximum context length is 512" in message or "takes 511 at most" in message)


@pytest.mark.parametrize("sizes", [{"latent_grid_size": 99}, {"image_grid_size": 0}, {"latent_grid_size": -1}])
def test_a_wrong_grid_has_the_same_words(port, own_server, sizes):
    with pytest.raises(RequestError) as error:
        own_server.prepare(*parse_request(json.dumps(chat(QUESTION, **sizes)).encode()))
    assert post(port, "/v1/chat/completions", chat(QUESTION, mm_processor_kwargs=sizes)) == (400, str(error.value))


@pytest.mark.parametrize("token", ["<latent>", "<image>", "<vision_end>"])
def test_typed_control_tokens_are_refused(port, token):
    for content in ([f"What is {token}?"], [PICTURE, f"What is {token}?"]):
        status, message = post(port, "/v1/chat/completions", chat(*content))
        assert status == 400
        assert f"Message 0 (user) holds the control token {token!r} as text. Take it out." in message


def bomb() -> str:
    return encode(Image.new("1", (20000, 20000)))


def hostile_requests() -> list[tuple[str, dict | bytes]]:
    """Return requests that must be refused, each with the path it goes to."""
    chats = [
        *({"model": NAME, "messages": messages} for messages in WRONG_MESSAGES.values()),
        chat(QUESTION, add_generation_prompt=False),
        chat(PICTURE, QUESTION, add_generation_prompt=False),
        chat("blue " * 600),
        *(chat(PICTURE, QUESTION, truncate_prompt_tokens=number) for number in (1, 3, 9, 20, 40, 60)),
        *(chat(QUESTION, truncate_prompt_tokens=number, truncation_side="right") for number in (1, 4, 6, 20)),
        chat(QUESTION, mm_processor_kwargs={"latent_grid_size": 10**9}),
        chat(QUESTION, mm_processor_kwargs={"latent_grid_size": "8"}),
        chat(QUESTION, mm_processor_kwargs={"latent_grid_size": True}),
        chat(PICTURE, QUESTION, mm_processor_kwargs={"size": {"height": 9, "width": 9}}),
        chat(PICTURE, QUESTION, mm_processor_kwargs={"images_kwargs": {"latent_grid_size": 4}}),
        chat("<latent>"),
        chat("<image>"),
        chat("<latent><vision_end>", PICTURE),
        chat(picture(bomb()), QUESTION),
        chat(picture("file:///etc/passwd"), QUESTION),
        chat(picture("http://127.0.0.1:9/none.png"), QUESTION),
        chat(picture("ftp://127.0.0.1/none.png"), QUESTION),
        chat(picture("data:image/svg+xml;base64,PHN2Zy8+"), QUESTION),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, QUESTION),
        chat({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, QUESTION),
        chat({"type": "image_embeds", "image_embeds": "AAAA"}, QUESTION),
        chat({"type": "image_pil", "image_pil": "x"}, QUESTION),
        chat({"type": "nothing"}, QUESTION),
        {"model": NAME, "messages": []},
        {"model": NAME, "messages": [{"role": "user", "content": None}]},
        {"model": NAME, "messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]},
        {"model": NAME, "messages": "x"},
        {"model": NAME, "messages": [{"role": "user", "content": "half \ud800"}]},
        chat(QUESTION, max_tokens=-1),
        chat(QUESTION, temperature=-1),
        chat(QUESTION, top_logprobs=5000, logprobs=True),
        chat(QUESTION, logit_bias={"99999": 5}),
        chat(QUESTION, stop_token_ids=["x"]),
        chat(QUESTION, structured_outputs={"regex": "("}),
        b"{",
        b"",
        b'\xff{"model"',
    ]
    completions = [
        {"prompt": "<latent>"},
        {"prompt": "<image><latent><vision_end>What?"},
        {"prompt": "<vision_start><latent><latent><vision_end>What?"},
        {"prompt": [4, 5, 6, 7]},
        {"prompt": [5] * 16},
        {"prompt": [4] * 36 + [5] * 16 + [3]},
        {"prompt": [10**9]},
        {"prompt": [-1]},
        {"prompt": ""},
        {"prompt": "blue " * 600},
        {"prompt_embeds": "AAAA"},
    ]
    others = [("/tokenize", {"messages": 3}), ("/v1/embeddings", {"model": NAME, "input": "x"})]
    others += [("/inference/v1/generate", {"token_ids": [1], "sampling_params": {}, "features": {}})]
    return [
        *(("/v1/chat/completions", body) for body in chats),
        *(("/v1/completions", {"model": NAME, "max_tokens": 4, **body}) for body in completions),
        *others,
    ]


def test_a_hundred_hostile_requests_beside_good_ones(port, client, references):
    hostile = hostile_requests()
    hostile = hostile + hostile[: max(0, 100 - len(hostile))]
    jobs = [*hostile, *[None] * 30]
    random.Random(0).shuffle(jobs)
    image = draw_image(3)

    def run(job) -> str | None:
        if job is None:
            check_answer(client, references("small"), make_messages([QUESTION], image), encode(image))
            return None
        status, message = post(port, *job)
        return None if 400 <= status < 500 else f"{status} for {str(job)[:300]}: {message[:300]}"

    references("small").answer(Request(make_messages([QUESTION], image)), 12)
    with ThreadPoolExecutor(16) as pool:
        wrong = [problem for problem in pool.map(run, jobs) if problem]
    assert wrong == []
    assert get_status(port, "/health") == 200


def test_odd_requests_that_are_sound(port, client, references):
    """Generated latent tokens are text, whatever their ids; so is what follows them when a beam is continued."""
    latent = references("small").processor.latent_token_id
    bodies = [
        chat(PICTURE, QUESTION, logit_bias={str(latent): 100}, max_tokens=40),
        chat(PICTURE, QUESTION, use_beam_search=True, n=2, temperature=0),
        chat(PICTURE, QUESTION, n=3, temperature=1),
        chat(PICTURE, QUESTION, temperature=0, prompt_logprobs=2),
        chat(PICTURE, QUESTION, chat_template_kwargs={"add_generation_prompt": False}),  # the request's own field wins
        chat(PICTURE, QUESTION, mm_processor_kwargs={"latent_grid_size": 2, "image_grid_size": 3}),
    ]
    for body in bodies:
        status, message = post(port, "/v1/chat/completions", body)
        assert status == 200, message
    check_answer(client, references("small"), make_messages([QUESTION]), None)


@pytest.mark.slow
def test_kill_and_restart_under_load(references):
    port, image = find_port(), draw_image(3)
    for _ in range(2):
        with run_server(port=port) as process, ThreadPoolExecutor(8) as pool:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0)
            check_answer(client, references("small"), make_messages([QUESTION], image), encode(image))
            body = chat(PICTURE, QUESTION, max_tokens=200, ignore_eos=True)
            load_jobs = [pool.submit(post, port, "/v1/chat/completions", body) for _ in range(32)]
            time.sleep(2)
            os.killpg(process.pid, signal.SIGKILL)
            for job in load_jobs:
                with contextlib.suppress(OSError):
                    job.result(timeout=60)


# The command --------------------------------------------------------------------------------------------------------


def run_command(*options) -> tuple[int, str]:
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", str(SMALL_MODEL), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_START)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "options, words",
    [
        (["--engine", "vllm", "--enable-prefix-caching"], "--enable-prefix-caching: the beginning of a FUSION prompt"),
        (["--engine", "vllm", "--enable_chunked_prefill=true"], "--enable-chunked-prefill: FUSION has to process"),
        (["--engine", "vllm", "--4bit"], "vLLM has no 4 bits of bitsandbytes"),
        (["--engine", "vllm", "--device", "cpu"], "--device: vLLM's build decides"),
        (["--max-model-len", "9"], "options of vLLM need --engine vllm"),
    ],
)
def test_what_the_command_refuses(options, words):
    code, stderr = run_command(*options)
    assert code in (1, 2) and words in stderr and "Traceback" not in stderr


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(SMALL_MODEL)}))
    assert "is an adapter" in find_obstacle(str(tmp_path), four_bit=False)
    assert find_obstacle(str(SMALL_MODEL), four_bit=False) is None
