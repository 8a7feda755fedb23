"""
Answer requests to Hugging Face Inference Endpoints.

This file goes to the Hub beside the weights, where huggingface-inference-toolkit imports it by its path. So it imports
nothing of the package, and needs only the folder that it is in.

    {"inputs": {"image": IMAGE, "question": "What is it?"}, "parameters": {"max_new_tokens": 32}}
    {"inputs": "What is it?", "image": IMAGE}
    {"inputs": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, ...]}, ...]}
    {"inputs": [INPUT, ...]}                           a batch; an INPUT is a dict, messages or text as above
    {"inputs": {"messages": [...], "max_tokens": 32}}  answered as OpenAI's chat completions are
    an image as the body, with its question in the query: POST /?question=...

IMAGE is base64, a data URI, or an https URL of a public host.
"""

import base64
import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import torch
from jinja2 import TemplateError
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForImageTextToText, AutoProcessor


MAX_INPUTS = 16
# The same limits as in processing_fusion.py, which tests/test_handler.py compares. That file's reader opens local
# files, so it cannot be used for strangers' requests.
MAX_IMAGE_BYTES = 50 * 2**20
MAX_IMAGE_PIXELS = 100_000_000  # checked before they are decoded
# What the toolkit takes as a body. Pillow reads more, and runs Ghostscript for one of them. The same list as in
# serving/chat_request.py, which tests/test_handler.py compares.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
FETCH_SECONDS = 10
MAX_REDIRECTS = 3
DEFAULT_NEW_TOKENS = 256
SAMPLING_PARAMETERS = ("temperature", "top_p", "top_k")
OPENAI_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}


class EndpointHandler:
    """
    Hold model and processor of a folder, and answer requests. Threads that call it take turns.

    Args:
        path (`str` or `Path`, *optional*):
            The model's folder. Defaults to that of this file.
    """

    def __init__(self, path: str | Path = ""):
        path = Path(path or Path(__file__).parent)
        self.name = path.resolve().name
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=True, dtype="auto", device_map="auto"
        )
        self.parameters = {  # type, lowest and highest value
            "max_new_tokens": (int, 1, 2048),
            "num_beams": (int, 1, 8),
            "repetition_penalty": (float, 0.1, 10),
            "do_sample": (bool, False, True),
            "temperature": (float, 0, 10),
            "top_p": (float, 0, 1),
            "top_k": (int, 1, 1000),
            "seed": (int, 0, 2**63 - 1),
            "latent_grid_size": (int, 1, self.model.config.max_latent_grid_size),
            "image_grid_size": (int, 1, self.model.config.num_patches_per_side),
        }
        # Tokenizers keep a state during a call, and seeds are those of the whole process.
        self.lock = threading.Lock()

    def __call__(self, data: dict) -> list | dict:
        """
        Answer one request.

        Args:
            data (`dict`):
                The parsed body, see the top of this file. `self.parameters` names the parameters; OpenAI's
                `max_tokens` is `max_new_tokens`. Answers are greedy unless `do_sample` or one of `temperature`,
                `top_p` and `top_k` is given; these are not used with `do_sample: false` or a `temperature` below 0.01.

        Returns:
            `[{"generated_text": ...}]`, as the pipeline `image-text-to-text` gives it; a list of those for a batch;
            an OpenAI `chat.completion` for `messages`.

        Raises:
            ValueError: for what the client can change; in a batch it begins with the place of the input, as in
                `inputs[2]: ...`. The toolkit answers this and all other errors with HTTP status 400 and
                `{"error": message}`.
        """
        items, parameters, form = read_body(data)
        model_name = parameters.pop("model", self.name)
        options, grid_sizes, seed = self._read_parameters(parameters)
        conversations = []
        for index, item in enumerate(items):
            try:
                conversations.append(self._read_conversation(item))
            except (ValueError, TemplateError) as error:
                place = f"inputs[{index}]: " if form == "batch" else ""
                raise ValueError(f"{place}{error}") from error
        texts, usage, finish_reason = self._generate(conversations, options, grid_sizes, seed)
        if form == "chat":
            message = {"role": "assistant", "content": texts[0]}
            choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
            answer = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
            return {**answer, "model": model_name, "choices": [choice], "usage": usage}
        answers = [[{"generated_text": text}] for text in texts]
        return answers if form == "batch" else answers[0]

    def _read_parameters(self, parameters: dict) -> tuple[dict, dict, int | None]:
        """Return the options of `generate`, the grid sizes for the processor, and the seed."""
        if parameters.pop("stream", False):
            raise ValueError("`stream` is true, but an endpoint with a handler answers in one piece: leave it out.")
        values = {OPENAI_NAMES.get(name, name): value for name, value in parameters.items() if value is not None}
        for name, value in values.items():
            if name not in self.parameters:
                known = ", ".join(sorted([*self.parameters, *OPENAI_NAMES]))
                raise ValueError(f"There is no parameter {name!r}. Those that can be set are: {known}.")
            kind, low, high = self.parameters[name]
            is_kind = isinstance(value, (int, float) if kind is float else kind)
            if not is_kind or (isinstance(value, bool) and kind is not bool) or not low <= value <= high:
                raise ValueError(f"`{name}` is {value!r}, expected {kind.__name__} from {low} to {high}.")
            values[name] = kind(value)  # `generate` refuses whole numbers for floats
        seed = values.pop("seed", None)
        grid_sizes = {name: values.pop(name) for name in ("latent_grid_size", "image_grid_size") if name in values}
        do_sample = values.pop("do_sample", any(name in values for name in SAMPLING_PARAMETERS))
        if not do_sample or values.get("temperature", 1) < 0.01:
            do_sample, values = False, {name: values[name] for name in values if name not in SAMPLING_PARAMETERS}
        return {"max_new_tokens": DEFAULT_NEW_TOKENS, **values, "do_sample": do_sample}, grid_sizes, seed

    def _read_conversation(self, item) -> list[dict]:
        """Return the messages of one input, with images opened."""
        # Before any image is opened.
        messages = self.processor.check_messages(read_item(item), sanitize_control_tokens=True)
        for part in [part for message in messages for part in message["content"] if part["type"] == "image"]:
            part["image"] = read_image(part.get("image"))
        return messages

    def _generate(self, conversations: list, options: dict, grid_sizes: dict, seed: int | None) -> tuple:
        """Return the answers, and OpenAI's `usage` and `finish_reason` of the first one."""
        with self.lock, torch.random.fork_rng(enabled=seed is not None):
            inputs = self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,  # users' <image> and the like are text
                processor_kwargs=grid_sizes,
            ).to(self.model.device)
            max_new_tokens = limit_new_tokens(self.model.config, inputs, options["max_new_tokens"])
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(**inputs, **{**options, "max_new_tokens": max_new_tokens})
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        eos = self.model.generation_config.eos_token_id
        eos_ids = eos if isinstance(eos, list) else [eos]
        ends = [step for step, token in enumerate(answers[0].tolist()) if token in eos_ids]
        num_prompt, num_answer = int(inputs["attention_mask"][0].sum()), ends[0] + 1 if ends else answers.shape[1]
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_answer, "total_tokens": num_prompt + num_answer}
        return [text.strip() for text in texts], usage, "stop" if ends else "length"


# Requests -----------------------------------------------------------------------------------------------------------


def limit_new_tokens(config, inputs, max_new_tokens: int) -> int:
    """
    Return the number of new tokens that the decoder has positions for, at most `max_new_tokens`.

    A copy of the function in hub/loading.py; tests/test_handler.py compares.

    Raises:
        ValueError: if the prompt leaves no position.
    """
    # Decoders without such a limit do not have the field.
    num_positions = getattr(config.text_config, "max_position_embeddings", None)
    if num_positions is None:
        return max_new_tokens
    length = inputs["input_ids"].shape[1]
    if length >= num_positions:
        raise ValueError(f"The conversation has {length} tokens, the model takes {num_positions - 1} at most.")
    return min(max_new_tokens, num_positions - length)


def read_body(data: dict) -> tuple[list, dict, str]:
    """Return the inputs of a request, its parameters, and its form: `"single"`, `"batch"` or `"chat"`."""
    if not isinstance(data, dict) or not isinstance(data.get("parameters") or {}, dict):
        raise ValueError("Expected a JSON object with `inputs`, and `parameters`, if any, as an object too.")
    body = {**data}
    parameters, inputs = body.pop("parameters", None) or {}, body.pop("inputs", None)
    if isinstance(inputs, dict) and "messages" in inputs:
        body, inputs = {**body, **inputs}, None
    # What is misspelt is refused with the parameters.
    messages, image, parameters = body.pop("messages", None), body.pop("image", None), {**parameters, **body}
    question = parameters.pop("question", None)
    if messages is not None:
        if inputs or image or question:
            raise ValueError("The body has `messages` and inputs beside it, expected all of them in `messages`.")
        return [{"messages": messages}], parameters, "chat"
    if image is not None:
        return [{"image": image, "question": inputs if question is None else question}], parameters, "single"
    if inputs is None:
        raise ValueError("The body has no `inputs`, expected an image with a question, messages, or a list of those.")
    is_message = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict) and "role" in inputs[0]
    form = "batch" if isinstance(inputs, list) and not is_message else "single"
    items = inputs if form == "batch" else [inputs]
    if not 1 <= len(items) <= MAX_INPUTS:
        raise ValueError(f"`inputs` has {len(items)} items, expected 1 to {MAX_INPUTS}.")
    return [{"image": item, "question": question} for item in items] if question else items, parameters, form


def read_item(item) -> list[dict]:
    """Return the messages of one input; contents are lists of parts, images stay unread."""
    item = {"text": item} if isinstance(item, (str, list)) else item
    if not isinstance(item, dict):
        raise ValueError(f"There is no question, only {describe(item)}: send it in the query, as in /?question=...")
    text = next((item[name] for name in ("messages", "question", "text") if name in item), None)
    images = item.get("image", item.get("images"))
    images = images if isinstance(images, list) else [] if images is None else [images]
    if isinstance(text, list) and len(item) == 1:
        return text
    unknown = set(item) - {"image", "images", "question", "text"}
    if unknown or not isinstance(text, str) or not text.strip():
        raise ValueError(f"An input has {sorted(item)}, expected `image` and `question`, which is text and not empty.")
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def describe(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Images -------------------------------------------------------------------------------------------------------------


def read_image(source) -> Image.Image:
    """
    Open an image from bytes, base64, a data URI or a public https URL; return a `PIL.Image` of the toolkit as it is.

    Raises:
        ValueError: for everything else, and for what is too large or cannot be decoded.
    """
    if isinstance(source, Image.Image):
        return source
    content = read_source(source) if isinstance(source, str) else source
    if not isinstance(content, bytes):
        raise ValueError(f"An image is {describe(source)}, expected base64, a data URI or an https URL.")
    if len(content) > MAX_IMAGE_BYTES:
        raise ValueError(f"An image has more than {MAX_IMAGE_BYTES} bytes: make it smaller.")
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        if image.width * image.height <= MAX_IMAGE_PIXELS:
            image.load()
            return image
    except Exception as error:  # decoders raise errors of all kinds
        is_none = isinstance(error, UnidentifiedImageError)  # whose message names an object of Python
        reason = "it is not an image" if is_none else error
        raise ValueError(
            f"An image cannot be read: {reason}. Expected the content of a file ({', '.join(IMAGE_FORMATS)}), for"
            " paths are not read."
        ) from error
    raise ValueError(f"An image has {image.width}x{image.height} pixels, expected {MAX_IMAGE_PIXELS} at most.")


def read_source(source: str) -> bytes:
    """Return the content of a public https URL, a data URI or base64."""
    scheme, separator, _ = source[:100].partition("://")
    if separator and scheme.lower() != "https":
        raise ValueError(f"An image is at {describe(source)}, expected an https URL: nothing else is fetched.")
    if separator:
        try:
            return fetch(source)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise ValueError(f"The image at {describe(source)} cannot be fetched: {error}.") from error
    header, _, encoded = source.partition(",") if source[:5].lower() == "data:" else (";base64", "", source)
    try:
        if not header.lower().endswith(";base64"):
            raise ValueError("it has no ;base64,")
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError as error:
        raise ValueError(
            f"An image is {describe(source)}, expected base64, a data URI or an https URL, for paths are not read:"
            f" {error}."
        ) from error


def fetch(url: str) -> bytes:
    """
    Return the content of a public https URL.

    Each address is checked before the connection, that of a redirect too. The certificate has to be one of the URL's
    host, which services inside a network do not have.

    Raises:
        ValueError: if a host is not public, or does not answer with a file.
        OSError, HTTPException, UnicodeError: if there is no proper answer.
    """
    for _ in range(1 + MAX_REDIRECTS):
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"An image is at {describe(url)}, expected an https URL: nothing else is fetched.")
        status, location, content = get(parts, public_address(parts.hostname))
        if status == 200:
            return content
        if status not in (301, 302, 303, 307, 308) or not location:
            raise ValueError(f"The image at {describe(url)} cannot be fetched: HTTP status {status}.")
        url = urljoin(url, location)
    raise ValueError(f"The image at {describe(url)} cannot be fetched: more than {MAX_REDIRECTS} redirects.")


def public_address(host: str) -> str:
    """Return an IPv4 address of a host that has public ones only. (IPv6 has several ways to write an IPv4 address.)"""
    entries = socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in entries]
    if not all(address.is_global and not address.is_multicast for address in addresses):
        raise ValueError(f"The host {describe(host)} is not a public one: images are not fetched from it.")
    return str(addresses[0])


def get(parts: SplitResult, address: str) -> tuple[int, str | None, bytes]:
    """Return status, `Location` and content of a URL, from this address and within `FETCH_SECONDS`."""
    plain = socket.create_connection((address, parts.port or 443), FETCH_SECONDS)
    with ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as encrypted:
        is_late = threading.Event()

        def hang_up():
            is_late.set()
            with contextlib.suppress(OSError):
                encrypted.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(FETCH_SECONDS, hang_up)  # the socket's own limit starts anew with each byte
        timer.start()
        try:
            connection = http.client.HTTPSConnection(parts.hostname or "", parts.port)  # `fetch` refuses an empty one
            connection.sock = encrypted
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "fusion-vlm"})
            response = connection.getresponse()
            return response.status, response.getheader("Location"), response.read(MAX_IMAGE_BYTES + 1)
        finally:
            timer.cancel()
            if is_late.is_set():
                raise TimeoutError(f"it takes longer than {FETCH_SECONDS} s")
