"""Retries of calls whose answer is late or not valid: the same for language models and image models."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar


T = TypeVar("T")
MAX_MESSAGE = 300  # characters of an error that are kept


class CallError(Exception):
    """
    A call that got no valid answer. The message is the reason by which its sample is rejected.

    Args:
        rule (`str`): the kind of failure in a word; rejects are counted by it.
        message (`str`): what was found.
        is_final (`bool`): whether a retry is of no use.
        is_cached (`bool`): whether the answer came in an earlier process, so that no wait is due.
    """

    def __init__(self, rule: str, message: str, is_final: bool = False, is_cached: bool = False):
        self.message = " ".join(message.split())[:MAX_MESSAGE]
        super().__init__(f"{rule}: {self.message}")
        self.rule, self.is_final, self.is_cached = rule, is_final, is_cached


@dataclass(frozen=True)
class Retries:
    """
    How often and how long a call is tried. SDKs retry 429, 5xx and broken connections inside of a try.

    Args:
        timeout (`float`): longest time of a try in seconds. It also ends an answer that comes byte by byte; an SDK's
            timeout is for a single read.
        num_tries (`int`): tries for an answer that is not valid. An answer that is late gets half as many.
        backoff (`float`): first wait between tries in seconds, doubled with each try.
    """

    timeout: float
    num_tries: int = 4
    backoff: float = 0.5

    async def run(self, send: Callable[[int, CallError | None], Awaitable[T]]) -> T:
        """
        Call `send` until it returns.

        Args:
            send (`Callable`): an async function that is given the number of the try, from 0, and the error of the try
                before. It raises a `CallError` for an answer that is not valid.

        Raises:
            CallError: that of the last try.
        """
        attempt, num_timeouts, error = 0, 0, None
        while True:
            try:
                return await asyncio.wait_for(send(attempt, error), self.timeout)
            except asyncio.TimeoutError:
                num_timeouts += 1
                error = CallError("timeout", f"no answer in {self.timeout:g} s")
            except CallError as call_error:
                error = call_error
            attempt += 1
            if error.is_final or attempt == self.num_tries or num_timeouts >= self.num_tries / 2:
                raise error
            if not error.is_cached:
                await asyncio.sleep(self.backoff * 2**attempt * random.uniform(0.75, 1.0))
