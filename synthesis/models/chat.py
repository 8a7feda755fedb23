"""
The client of language models behind an OpenAI-compatible endpoint.

Calls have a JSON schema, are retried, and are never repeated once finished: each is cached on disk.
"""

import asyncio
import hashlib
import json
import os
import random
import uuid
from typing import Any

from pydantic import BaseModel, ValidationError

from fusion_vlm.synthesis.engine import FailureLimit, RunError
from fusion_vlm.synthesis.models.answers import Answer, explain
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.sample import stable_hash


class CallError(Exception):
    """
    A call that got no valid answer. The message is the reason by which its sample is rejected.

    Args:
        rule (`str`): the kind of failure in a word; rejects are counted by it.
        message (`str`): what was found.
        is_final (`bool`): whether a retry is of no use.
    """

    def __init__(self, rule: str, message: str, is_final: bool = False):
        super().__init__(f"{rule}: {' '.join(message.split())[:300]}")
        self.rule, self.is_final = rule, is_final


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
        cache (`CallCache`): stores finished calls.
        temperature (`float`), max_tokens (`int`): sent with every call.
        concurrency (`int`): calls in flight at once, which is also the most calls that a kill can repeat.
        timeout (`float`): longest time for an answer in seconds, including the SDK's tries and waits. It also ends an
            answer that comes byte by byte; the SDK's timeout is for a single read.
        num_sdk_tries (`int`): tries of the SDK; 7 take half a minute.
        num_tries (`int`): tries for an answer that is not valid. An answer that is late gets half as many.
        max_failures (`int`): failed calls in a row that stop the run.
        backoff (`float`): first wait between tries in seconds, doubled with each try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: CallCache,
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
        self.temperature, self.max_tokens, self.timeout = temperature, max_tokens, timeout
        self.num_tries, self.backoff = num_tries, backoff
        self.semaphore = asyncio.Semaphore(concurrency)
        self.limit = FailureLimit(f"{url} (model {model})", max_failures)

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
            self.limit.succeeded()
            return answer_type.model_validate_json(stored)
        async with self.semaphore:
            try:
                answer = await self._try_until_valid(body, key, answer_type)
            except CallError as error:
                self.limit.failed(error)
                raise
            self.limit.succeeded()
        return answer

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

    async def _try_until_valid(self, body: dict, key: str, answer_type: type[Answer]) -> Answer:
        """Send a request until its answer is valid, and cache the answer."""
        num_timeouts, attempt, request = 0, 0, body
        while True:
            try:
                reply = await asyncio.wait_for(self._send(request), self.timeout)
                return self._read(reply, key, answer_type)
            except asyncio.TimeoutError:
                num_timeouts += 1
                error = CallError("timeout", f"no answer in {self.timeout:g} s")
            except CallError as call_error:
                error = call_error
            attempt += 1
            if error.is_final or attempt == self.num_tries or num_timeouts >= self.num_tries / 2:
                raise error
            # First repeat the same request, as the connection may be at fault. Then change the seed for the model.
            if attempt > 1 or error.rule == "too_long":
                request = {**body, "seed": stable_hash(body["seed"], attempt) % 2**31}
            await asyncio.sleep(self.backoff * 2**attempt * random.uniform(0.75, 1.0))

    async def _send(self, body: dict) -> _Reply:
        try:
            # Raw, because the SDK would make an object of nearly anything that a server sends.
            response = await self.sdk.chat.completions.with_raw_response.create(**body)
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

    def _read(self, reply: _Reply, key: str, answer_type: type[Answer]) -> Answer:
        """Check the answer in a reply. Its tokens are counted in any case; it is cached only if it is valid."""
        try:
            answer = answer_type.model_validate_json(reply.choices[0].message.content)
        except ValidationError as error:
            self.cache.put(f"{key} {uuid.uuid4()}", self.model, None, *reply.num_tokens)
            if reply.choices[0].finish_reason == "length":
                raise CallError("too_long", f"not complete after {self.max_tokens} tokens") from error
            raise CallError("invalid_answer", explain(error)) from error
        self.cache.put(key, self.model, answer.model_dump_json(), *reply.num_tokens)
        return answer

    async def close(self):
        await self.sdk.close()
