"""
An OpenAI-compatible endpoint for tests, which fails as its arguments say and counts requests.

Chat answers are a function of the messages and the schema of a request, images of the prompt.
"""

import base64
import hashlib
import io
import json
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


WORDS = "amber boat cabin dog elm fence garden hill island jar kite lamp meadow nest orchard pond quilt river"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
# Failures that a request may get instead of an answer.
FAULTS = (
    "429",
    "500",
    "503_html",
    "reset",
    "cut_body",
    "cut_content",
    "wrong_shape",
    "wrong_content_type",
    "error_body",
    "no_choices",
    "null_content",
    "slow_loris",
    "401",
)


class StubEndpoint:
    """
    Serves `url` in threads while it is entered as a context.

    Args:
        faults (`dict[str, float]`): share of requests by fault, one of `FAULTS`.
        max_faults (`int`): number of faults that a request body gets before it is answered.
        latency (`float`): longest time of an answer, in seconds.
        retry_after (`float`): seconds in the header of a 429.
        change (`callable`, *optional*): changes the content of an answer, a dict, given the content and the request.
        text (`str`, *optional*): text in place of the content; need not be JSON.
        content_type (`str`), usage: sent with every answer.
    """

    def __init__(
        self,
        faults: dict | None = None,
        max_faults: int = 1,
        latency: float = 0.0,
        retry_after: float = 0.05,
        change=None,
        text: str | None = None,
        content_type: str = "application/json",
        usage=USAGE,
    ):
        self.faults = faults or {}
        self.max_faults = max_faults
        self.latency, self.retry_after = latency, retry_after
        self.change, self.text, self.content_type, self.usage = change, text, content_type, usage
        self.requested, self.answered, self.met_faults = Counter(), Counter(), Counter()
        self.bodies, self.prompts = {}, []
        self.in_flight = self.max_in_flight = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "StubEndpoint":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def next_fault(self, key: str) -> str | None:
        """Draw the fault of a request, from its body and the number of its earlier requests."""
        with self.lock:
            self.requested[key] += 1
            met = self.met_faults[key]
            if met >= self.max_faults:
                return None
            draw = random.Random(f"{key} {self.requested[key]}").random()
            for fault, share in self.faults.items():
                draw -= share
                if draw < 0:
                    self.met_faults[key] += 1
                    return fault
        return None

    @property
    def num_repeats(self) -> int:
        """Answers that reached a client beyond the first to each request body."""
        return sum(self.answered.values()) - len(self.answered)


def answer(request: dict) -> dict:
    """Fill the schema of a request with words that depend on the messages."""
    schema = request["response_format"]["json_schema"]["schema"]
    text = json.dumps([request["messages"], schema], sort_keys=True)
    return _instance(schema, random.Random(hashlib.sha256(text.encode()).hexdigest()))


def _instance(schema: dict, rng: random.Random):
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "object":
        return {name: _instance(part, rng) for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        length = rng.randint(schema.get("minItems", 1), schema.get("maxItems", 3))
        return [_instance(schema["items"], rng) for _ in range(length)]
    if schema["type"] == "boolean":
        return True
    if schema["type"] == "integer":
        return rng.randint(1, 9)
    return " ".join(rng.sample(WORDS.split(), 8)).capitalize() + "."


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Report nothing: clients that are killed reset their connections."""


class _Handler(BaseHTTPRequestHandler):
    stub: StubEndpoint
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for an answer, or Nagle's algorithm delays it by 40 ms

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send(200, b'{"object": "list", "data": [{"id": "stub", "object": "model"}]}')

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = hashlib.sha256(body).hexdigest()
        request = json.loads(body)
        with self.stub.lock:
            self.stub.bodies[key] = request
            self.stub.in_flight += 1
            self.stub.max_in_flight = max(self.stub.max_in_flight, self.stub.in_flight)
        try:
            if self.path.endswith("/images/generations"):
                self.send_image(request)
            else:
                self.reply(key, request)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            with self.stub.lock:
                self.stub.in_flight -= 1

    def reply(self, key: str, request: dict):
        fault = self.stub.next_fault(key)
        time.sleep(random.Random(f"{key} latency").random() * self.stub.latency)
        content = answer(request)
        if self.stub.change:
            content = self.stub.change(content, request)
        text = self.stub.text if self.stub.text is not None else json.dumps(content)
        if fault == "cut_content":
            text = text[: len(text) // 2]
        elif fault == "wrong_shape":
            text = json.dumps([{"unexpected": 1}])
        elif fault == "null_content":
            text = None
        completion = {
            "id": key[:12],
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}},
            ],
            "usage": self.stub.usage,
        }
        if fault == "no_choices":
            completion["choices"] = []
        data = json.dumps(completion).encode()
        if fault is None:
            if self.is_client_gone():
                return None
            with self.stub.lock:
                self.stub.answered[key] += 1
            return self.send(200, data, self.stub.content_type)
        getattr(self, f"fault_{fault}", self.send_plain)(data)
        return None

    def send_image(self, request: dict):
        self.stub.prompts.append(request["prompt"])
        width, height = map(int, request["size"].split("x"))
        noise = random.Random(request["prompt"]).randbytes(8 * 8 * 3)
        content = io.BytesIO()
        Image.frombytes("RGB", (8, 8), noise).resize((width, height)).save(content, "PNG")
        data = base64.b64encode(content.getvalue()).decode()
        self.send(200, json.dumps({"created": 0, "data": [{"b64_json": data}]}).encode())

    def is_client_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def send_plain(self, data: bytes):
        self.send(200, data)

    def send(self, status: int, data: bytes, content_type: str = "application/json", headers: dict | None = None):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def fault_429(self, data: bytes):
        self.send(429, b'{"error": {"message": "slow down"}}', headers={"Retry-After": str(self.stub.retry_after)})

    def fault_500(self, data: bytes):
        self.send(500, b'{"error": {"message": "out of memory"}}', headers={"retry-after-ms": "20"})

    def fault_503_html(self, data: bytes):
        self.send(503, b"<html>Service Unavailable</html>", "text/html", headers={"retry-after-ms": "20"})

    def fault_401(self, data: bytes):
        self.send(401, b'{"error": {"message": "no such key"}}')

    def fault_reset(self, data: bytes):
        # Closing with unsent data and no lingering sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def fault_cut_body(self, data: bytes):
        self.send(200, data[: len(data) // 2])

    def fault_wrong_content_type(self, data: bytes):
        self.send(200, b"<html><body>Welcome to the proxy</body></html>", "text/html")

    def fault_error_body(self, data: bytes):
        self.send(200, b'{"error": {"message": "the model is loading", "code": 503}}')

    def fault_slow_loris(self, data: bytes):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.stub.closing.wait(0.1):
                break
        self.close_connection = True
