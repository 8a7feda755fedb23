"""
The client of language models behind an OpenAI-compatible endpoint.

Calls have a JSON schema, are retried, and are never repeated once finished: each is cached on disk.
"""

import asyncio
import copy
import hashlib
import json
import os
from typing import Any

from pydantic import BaseModel, ValidationError

from fusion_vlm.synthesis.failures import FailureLimit, RunError
from fusion_vlm.synthesis.models.answers import Answer, explain
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.models.retries import CallError, Retries
from fusion_vlm.synthesis.sample import stable_hash


MAX_REPLY_BYTES = 1_000_000  # of a whole reply; a longer one is not parsed


class _Message(BaseModel):
    content: str


class _ReplyChoice(BaseModel):
    message: _Message
    finish_reason: Any = None


class _Reply(BaseModel):
    """The part of a chat completion that is read; servers differ in the rest."""

    choices: list[_ReplyChoice] | None = None
    usage: Any = None
    error: Any = None

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer as the server counts them, 0 where it does not."""
        return self._count("prompt_tokens"), self._count("completion_tokens")

    def _count(self, name: str) -> int:
        value = self.usage.get(name) if isinstance(self.usage, dict) else None
        return value if isinstance(value, int) and 0 <= value < 2**40 else 0


class ChatClient:
    """
    Asks a model behind an OpenAI-compatible endpoint.

    The SDK retries 429, 5xx and broken connections, with backoff and as the server's `Retry-After` says. Timeouts and
    answers that are not valid are retried here.

    Args:
        url (`str`): address with the version, such as `http://localhost:8000/v1`.
        model (`str`): name of the model at that endpoint.
        cache (`CallCache`, *optional*): stores finished calls; `with_cache` gives each part its own.
        temperature (`float`), max_tokens (`int`): sent with every call.
        concurrency (`int`): calls in flight at once, which is also the most calls that a kill can repeat.
        timeout (`float`): longest time for an answer in seconds, including the SDK's tries and waits.
        num_sdk_tries (`int`): tries of the SDK; 7 take half a minute.
        num_tries (`int`), backoff (`float`): see `Retries`.
        max_failures (`int`): failed calls in a row that stop the run.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: CallCache | None = None,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        concurrency: int = 8,
        timeout: float = 120.0,
        num_sdk_tries: int = 7,
        num_tries: int = 4,
        max_failures: int = 20,
        backoff: float = 0.5,
    ):
        try:
            import openai  # late, because it takes a second to import
        except ImportError as error:
            raise ImportError(
                "A language model is asked through `openai`, not installed. It comes with the extra `synthesis`: pip"
                " install 'fusion-vlm[synthesis]'."
            ) from error
        self.openai = openai
        self.sdk = openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=timeout,
            max_retries=num_sdk_tries - 1,
        )
        self.url, self.model, self.cache = url, model, cache
        self.temperature, self.max_tokens = temperature, max_tokens
        self.retries = Retries(timeout, num_tries, backoff)
        self.semaphore = asyncio.Semaphore(concurrency)
        self.limit = FailureLimit(f"{url} (model {model})", max_failures)
        # Answers that were not valid since the last one that was: cache, key, error.
        self._unsettled: list[tuple[CallCache, str, list[str]]] = []

    def with_cache(self, cache: CallCache) -> "ChatClient":
        """Return a client that stores its calls in another cache; connections and limits are shared."""
        client = copy.copy(self)
        client.cache = cache
        return client

    async def check(self):
        """
        Connect once, so that a wrong address stops the run before any work.

        Raises:
            RunError: if nothing listens at the address. A server without a list of models is no error.
        """
        try:
            await self.sdk.with_options(max_retries=1, timeout=5).models.list()
        except self.openai.APIConnectionError as error:
            self._give_up_if_unreachable(error)
        except (self.openai.APIError, ValueError):
            return

    async def ask(self, prompt: str, text: str, answer_type: type[Answer], seed: int) -> Answer:
        """
        Ask the model, or return the cached answer of an equal call.

        Args:
            prompt (`str`), text (`str`): the system prompt and the user's message.
            answer_type (`type[Answer]`): sent as a JSON schema; the answer is checked against it.
            seed (`int`): sent, too. Calls that differ in nothing but the seed are different calls.

        Raises:
            CallError: if there is no valid answer.
            RunError: if too many calls in a row failed, or the server refuses all calls.
        """
        body = self._request(prompt, text, answer_type, seed)
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if (stored := self.cache.get(key)) is not None:
            self._succeed()
            return answer_type.model_validate_json(stored)

        async def send(attempt: int, error: CallError | None) -> Answer:
            # First repeat the same request, as the connection may be at fault. Then change the seed for the model.
            is_same = attempt == 0 or attempt == 1 and error.rule != "too_long"
            request = body if is_same else {**body, "seed": stable_hash(seed, attempt) % 2**31}
            return await self._ask_once(request, key, f"{key} {attempt}", answer_type)

        async with self.semaphore:
            try:
                answer = await self.retries.run(send)
            except CallError as error:
                self.limit.failed(error)
                raise
            self._succeed()
        return answer

    def _succeed(self):
        """Count a call that worked. Answers before it that were not valid are then the model's fault: store them."""
        self.limit.succeeded()
        for cache, key, error in self._unsettled:
            cache.put_error(key, error)
        self._unsettled.clear()

    def _request(self, prompt: str, text: str, answer_type: type[Answer], seed: int) -> dict:
        schema = {"name": answer_type.__name__, "schema": answer_type.json_schema(), "strict": True}
        return {
            "model": self.model,
            "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": text}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }

    async def _ask_once(self, request: dict, key: str, try_key: str, answer_type: type[Answer]) -> Answer:
        """Send a request and read its answer, unless an earlier process has found that the answer is not valid."""
        if (stored := self.cache.get_error(try_key)) is not None:
            raise CallError(*stored, is_cached=True)
        reply = await self._send(request)
        try:
            answer = answer_type.model_validate_json(reply.choices[0].message.content)
        except ValidationError as validation_error:
            error = CallError("invalid_answer", explain(validation_error))
            if reply.choices[0].finish_reason == "length":
                error = CallError("too_long", f"not complete after {self.max_tokens} tokens")
            self.cache.add_invalid_tokens(self.model, reply.num_tokens)
            self._unsettled.append((self.cache, try_key, [error.rule, error.message]))
            raise error from validation_error
        self.cache.put(key, self.model, answer.model_dump_json(), reply.num_tokens)
        return answer

    async def _send(self, body: dict) -> _Reply:
        try:
            # Raw, because the SDK would make an object of nearly anything that a server sends.
            response = await self.sdk.chat.completions.with_raw_response.create(**body)
            if len(response.content) > MAX_REPLY_BYTES:
                raise CallError("too_large", f"{len(response.content):,} bytes, expected at most {MAX_REPLY_BYTES:,}")
            reply = _Reply.model_validate_json(response.content)
            if not reply.choices:
                raise CallError("error_body" if reply.error else "no_choices", response.text)
            return reply
        except ValidationError as error:
            content_type = response.headers.get("content-type")
            raise CallError("not_a_completion", f"{explain(error)}, content type {content_type}") from error
        except self.openai.APITimeoutError as error:
            raise asyncio.TimeoutError from error
        except self.openai.APIConnectionError as error:
            self._give_up_if_unreachable(error)
            raise CallError("connection", str(error.__cause__ or error), is_final=True) from error
        except self.openai.APIStatusError as error:
            if error.status_code in (401, 403, 404):
                raise RunError(
                    f"{self.url} refuses the model {self.model!r}: {error}. The key is read from OPENAI_API_KEY."
                ) from error
            raise CallError(f"http_{error.status_code}", str(error), is_final=True) from error
        except self.openai.OpenAIError as error:
            raise CallError("sdk", str(error)) from error

    def _give_up_if_unreachable(self, error: Exception):
        # By name, because the SDK may change its HTTP library.
        if type(error.__cause__).__name__ == "ConnectError":
            raise RunError(f"Nothing answers at {self.url}: {error.__cause__}.") from error

    async def close(self):
        await self.sdk.close()
