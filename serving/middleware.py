"""Middleware for every request of the server: the API key, the access log, metrics, and clients that leave."""

import asyncio
import hmac
import os
import re
import sys
import time
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusion_vlm.serving.chat_request import error_body
from fusion_vlm.serving.metrics import Metrics


CLIENT_LEFT = 499  # nginx' status for a client that closed the connection before it was answered
API_KEY_VARIABLE = "FUSION_VLM_API_KEY"
OPEN_PATH = "/health"  # load balancers and container runtimes have no key


class RequireKey:
    """Middleware that answers requests without the API key with status 401, except those to `/health`."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        # The comparison takes the same time for every wrong key; otherwise the key could be guessed letter by letter.
        is_allowed = scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.key)
        if is_allowed or scope["path"] == OPEN_PATH:
            await self.app(scope, receive, send)
            return
        body = error_body("the header Authorization has to be: Bearer API-KEY", code="invalid_api_key")
        await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


class Reply:
    """The response of one request: passes messages on, and keeps the status."""

    def __init__(self, send: Send):
        self._send = send
        self.status, self.is_complete = None, False

    async def send(self, message: Message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)


class Monitor:
    """
    Outermost middleware: cancels requests whose client left, logs each request in one line, and counts it.

    An endpoint that generates tokens sets `request.state.answer`, whose `usage` is read when the request ends.

    Args:
        paths (`set[str]`): paths that are counted by name. All others count as "other", because clients make up paths.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        begin = time.perf_counter()
        path = scope["path"] if scope["path"] in self.paths else "other"
        reply, status = Reply(send), 500
        self.metrics.in_flight[path] += 1
        try:
            await run_while_connected(self.app, scope, receive, reply.send)
            status = CLIENT_LEFT
        except asyncio.CancelledError:  # uvicorn shuts down, and would log the error with a traceback of 40 lines
            status = 503
            if reply.status is None:
                body = error_body("the server is shutting down", "server_error")
                await JSONResponse(body, status)(scope, receive, reply.send)
        finally:
            self.metrics.in_flight[path] -= 1
            self.record(scope, path, reply.status if reply.is_complete else status, time.perf_counter() - begin)

    def record(self, scope: Scope, path: str, status: int, seconds: float):
        """Count a request that has ended, and log it."""
        answer = scope.get("state", {}).get("answer")
        usage = answer.usage if answer else {"prompt_tokens": 0, "completion_tokens": 0}
        num_prompt, num_generated = usage["prompt_tokens"], usage["completion_tokens"]
        self.metrics.count(path, status, seconds, num_prompt, num_generated)
        # Quoted, because a line break in a path or a forwarded address would forge a line of the log.
        client = ":".join(quote(str(part), safe=":") for part in scope["client"] or ["-"])
        request = f"{client} {scope['method']} {quote(scope['path'])}"
        line = f"{request} {status} {seconds:.3f}s {num_prompt}+{num_generated} tokens"
        # In one piece, so that lines of several threads do not mix.
        sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stderr.flush()


async def run_while_connected(app: ASGIApp, scope: Scope, receive: Receive, send: Send):
    """Run an application for one request, and cancel it when the client leaves."""
    messages = asyncio.Queue(1)

    # The application itself notices that a client left only while it reads or writes, not while it waits.
    async def watch():
        while (message := await receive())["type"] != "http.disconnect":
            await messages.put(message)

    tasks = work, _ = asyncio.create_task(app(scope, messages.get, send)), asyncio.create_task(watch())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    await asyncio.wait(tasks)
    if not work.cancelled():
        work.result()


def read_api_key(option: str | None) -> str | None:
    """
    Return the API key of the command line or else of the environment; None if there is no key.

    Raises:
        ValueError: if clients cannot send the key. An empty key is one of these: it would leave the server open.
    """
    key = os.environ.get(API_KEY_VARIABLE) if option is None else option
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ValueError(
            f"The API key (--api-key or {API_KEY_VARIABLE}) is empty, or has a space or a letter outside ASCII."
        )
    return key
