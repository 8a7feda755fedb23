"""
The stages that ask a language model behind an OpenAI-compatible endpoint, and the client that asks it: under a JSON
schema, with retries, and never twice, because every finished call is kept on disk.

What the model is told is in prompts/*.txt: `describe_KIND`, `ask_KIND` and `judge`.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import string
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

from fusion_vlm.synthesis.engine import FailureLimit, RunError
from fusion_vlm.synthesis.sample import CAPTION_KINDS, Sample, Turn, stable_hash


EXTRA_HELP = "It comes with the extra `synthesis`: pip install 'fusion-vlm[synthesis]'."

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
except ImportError as error:
    raise ImportError(f"Answers are checked with `pydantic`, not installed. {EXTRA_HELP}") from error

PROMPT_DIR = Path(__file__).parent / "prompts"
LEFT_IMAGE, RIGHT_IMAGE = "Left image: ", "\n\nRight image: "  # how the scene grammar begins the two


class CallError(Exception):
    """
    One call found no valid answer; its sample is rejected with this as the reason.

    Args:
        rule (`str`): what went wrong, in a word, to count by.
        message (`str`): what was found.
        is_final (`bool`): whether trying again would be in vain.
    """

    def __init__(self, rule: str, message: str, is_final: bool = False):
        super().__init__(f"{rule}: {' '.join(message.split())[:300]}")
        self.rule, self.is_final = rule, is_final


# --- what a model has to answer -------------------------------------------------------------------------------------


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text.strip()


Text = Annotated[str, AfterValidator(_not_blank)]


class Answer(BaseModel):
    """The schema that is sent with a call, and the check of what comes back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def json_schema(cls) -> dict:
        """With all parts in their places: not every server follows a `$ref`."""
        schema = cls.model_json_schema()
        return _inline(schema, schema.pop("$defs", {}))


def _inline(schema: Any, definitions: dict) -> Any:
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inline(part, definitions) for name, part in schema.items()}


class Description(Answer):
    description: Text


class ContrastDescription(Answer):
    left: Text
    right: Text


class Question(Answer):
    question: Text
    answer: Text


class TypedQuestion(Question):
    type: Literal["colour", "shape", "count", "spatial", "yes_no", "text", "scene"]


class Choice(Answer):
    """The right option has no letter yet: which it gets is not the model's to choose, as models prefer some."""

    question: Text
    correct: Text
    wrong: list[Text] = Field(min_length=3, max_length=3)


class Questions(Answer):
    turns: list[Question] = Field(min_length=1, max_length=1)


class TwoQuestions(Answer):
    turns: list[Question] = Field(min_length=1, max_length=2)


class ShortConversation(Answer):
    turns: list[TypedQuestion] = Field(min_length=2, max_length=4)


class LongConversation(Answer):
    turns: list[TypedQuestion] = Field(min_length=4, max_length=6)


class MultipleChoice(Answer):
    turns: list[Choice] = Field(min_length=1, max_length=3)


class Verdict(Answer):
    correct: bool
    problem: str


def verdicts_on(num_turns: int) -> type[Answer]:
    """The schema of one `Verdict` for each turn, in order."""
    verdicts = (list[Verdict], Field(min_length=num_turns, max_length=num_turns))
    return create_model("Verdicts", __base__=Answer, verdicts=verdicts)


# By kind of sample: the schema, and the type of those turns that do not name one.
ASKED = dict.fromkeys(CAPTION_KINDS, (Questions, "caption")) | {
    "multiple_choice": (MultipleChoice, "multiple_choice"),
    "short_conversation": (ShortConversation, None),
    "long_conversation": (LongConversation, None),
    "contrast_short": (TwoQuestions, "difference"),
    "contrast_long": (Questions, "difference"),
    "reasoning": (ShortConversation, None),
    "text_qa": (TwoQuestions, "text"),
}


# --- the client -----------------------------------------------------------------------------------------------------


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

    def count(self, name: str) -> int:
        """Tokens as the server counts them, 0 if it does not."""
        value = self.usage.get(name) if isinstance(self.usage, dict) else None
        return value if isinstance(value, int) and 0 <= value < 2**40 else 0


class CallCache:
    """
    The finished calls of a run in an sqlite file. A call is committed as it finishes, so that a process that is killed
    loses those in flight and no other. One process at a time.

    Args:
        path (`Path`): of the file; made if it is not there.
    """

    def __init__(self, path: Path):
        self.connection = sqlite3.connect(path, isolation_level=None)  # every statement is a transaction of its own
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS calls"
            " (key TEXT PRIMARY KEY, model TEXT, answer TEXT, prompt_tokens INTEGER, completion_tokens INTEGER)"
        )

    def get(self, key: str) -> str | None:
        """The answer of a finished call, as JSON."""
        row = self.connection.execute("SELECT answer FROM calls WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def put(self, key: str, model: str, answer: str | None, reply: _Reply):
        """Keeps an answer; `None` for one that was paid for but not valid, under a key of its own."""
        values = (key, model, answer, reply.count("prompt_tokens"), reply.count("completion_tokens"))
        self.connection.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?)", values)

    def close(self):
        self.connection.close()


def count_tokens(path: Path, is_valid: bool = True) -> dict[str, dict[str, int]]:
    """By model, `calls`, `prompt_tokens` and `completion_tokens` of the valid answers in a cache, or of the others."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens) FROM calls"
        " WHERE (answer IS NOT NULL) = ? GROUP BY model ORDER BY model",
        (is_valid,),
    ).fetchall()
    connection.close()
    names = ("calls", "prompt_tokens", "completion_tokens")
    return {model: dict(zip(names, counts, strict=True)) for model, *counts in rows}


class ChatClient:
    """
    Asks a model behind an OpenAI-compatible endpoint. 429, 5xx and connections that break are the SDK's to try again,
    with backoff and as the server's `Retry-After` says; timeouts and answers that are not valid are tried again here.

    Args:
        url (`str`): such as `http://localhost:8000/v1`.
        model (`str`): its name there.
        cache (`CallCache`): of finished calls.
        temperature (`float`), max_tokens (`int`): of every answer.
        concurrency (`int`): calls in flight at once, which is also how many a kill can repeat.
        timeout (`float`): longest time for an answer in seconds, with the SDK's tries and waits. It also ends an
            answer that trickles in; the SDK's own timeout is for a single read.
        num_sdk_tries (`int`): of the SDK; 7 take half a minute.
        num_tries (`int`): for an answer that is not valid; half of them for one that does not come in time.
        max_failures (`int`): after how many failed calls in a row the endpoint is given up.
        backoff (`float`): first wait between tries in seconds, doubled with each.
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
            import openai
        except ImportError as error:
            raise ImportError(f"A language model is asked through `openai`, not installed. {EXTRA_HELP}") from error
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
        Connects once, so that a wrong address is told before anything else.

        Raises:
            RunError: if nothing listens there. That the server knows no list of models is no error.
        """
        try:
            await self.sdk.with_options(max_retries=1, timeout=5).models.list()
        except self.openai.APIConnectionError as error:
            self._give_up_if_unreachable(error)
        except (self.openai.APIError, ValueError):
            return

    async def ask(self, prompt: str, text: str, answer_type: type[Answer], seed: int) -> Answer:
        """
        The model's answer to `text` under the system prompt `prompt`.

        Args:
            answer_type (`type[Answer]`): sent as the JSON schema and checked again.
            seed (`int`): sent too; calls that differ in it only are different calls.

        Raises:
            CallError: if there is no valid answer.
            RunError: if that was one failed call in a row too many, or the server refuses all calls.
        """
        body = self._request(prompt, text, answer_type, seed)
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if (stored := self.cache.get(key)) is not None:
            self.limit.succeeded()
            return answer_type.model_validate_json(stored)
        async with self.semaphore:
            try:
                answer = await self._try(body, key, answer_type)
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

    async def _try(self, body: dict, key: str, answer_type: type[Answer]) -> Answer:
        """Sends a request until its answer is valid, and keeps that."""
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
            # The second try is the same request, as damage may lie in the connection; after that it is the model's.
            if attempt > 1 or error.rule == "too_long":
                request = {**body, "seed": stable_hash(body["seed"], attempt) % 2**31}
            await asyncio.sleep(self.backoff * 2**attempt * random.uniform(0.75, 1.0))

    async def _send(self, body: dict) -> _Reply:
        try:
            # Raw, as the SDK makes an object of nearly anything that a server may send.
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
        # By name: the HTTP library is the SDK's to choose.
        if type(error.__cause__).__name__ == "ConnectError":
            raise RunError(f"Nothing answers at {self.url}: {error.__cause__}.") from error

    def _read(self, reply: _Reply, key: str, answer_type: type[Answer]) -> Answer:
        """The checked answer in a reply. It is kept if it is valid, and counted in any case."""
        try:
            answer = answer_type.model_validate_json(reply.choices[0].message.content)
        except ValidationError as error:
            self.cache.put(f"{key} {uuid.uuid4()}", self.model, None, reply)
            if reply.choices[0].finish_reason == "length":
                raise CallError("too_long", f"not complete after {self.max_tokens} tokens") from error
            raise CallError("invalid_answer", explain(error)) from error
        self.cache.put(key, self.model, answer.model_dump_json(), reply)
        return answer

    async def close(self):
        await self.sdk.close()


def explain(error: ValidationError) -> str:
    """The first thing that pydantic found, in a line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{place}: {first['msg']}, found {str(first['input'])[:100]!r}"


# --- the stages -----------------------------------------------------------------------------------------------------


def load_prompts(folder: Path = PROMPT_DIR) -> dict[str, str]:
    """The prompts of a folder of text files, by name without `.txt`."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


class LanguageModelStage:
    """
    What the stages below have in common: a call that failed for good rejects the sample, and says why.

    Args:
        client (`ChatClient`): or anything that has `model` and `ask`.
        prompts (`dict[str, str]`): from `load_prompts`.
    """

    name: str

    def __init__(self, client: ChatClient, prompts: dict[str, str]):
        self.client, self.prompts = client, prompts

    async def __call__(self, sample: Sample) -> Sample:
        try:
            return await self.run(sample)
        except CallError as error:
            sample.reason = f"{self.name}/{error}"
            return sample

    async def run(self, sample: Sample) -> Sample:
        raise NotImplementedError

    async def ask(self, sample: Sample, prompt: str, text: str, answer_type: type[Answer]) -> Answer:
        """The model's answer; the sample keeps which model and prompt it was."""
        sample.source[self.name] = {"model": self.client.model, "prompt": f"{prompt}.txt"}
        return await self.client.ask(self.prompts[prompt], text, answer_type, sample.rng(self.name).getrandbits(31))


def split_sides(description: str) -> tuple[str, str]:
    """The descriptions of the left and the right image of a contrast, from that of both."""
    left, _, right = description.removeprefix(LEFT_IMAGE).partition(RIGHT_IMAGE)
    return left, right


class Describe(LanguageModelStage):
    """Writes `description`, in detail, from the caption, or from the exact facts if the sample has a scene."""

    name = "describe"

    async def run(self, sample: Sample) -> Sample:
        answer_type = ContrastDescription if sample.kind.startswith("contrast") else Description
        given = sample.description or sample.caption
        answer = await self.ask(sample, f"describe_{sample.kind}", given, answer_type)
        if answer_type is ContrastDescription:
            sample.description = LEFT_IMAGE + answer.left + RIGHT_IMAGE + answer.right
        else:
            sample.description = answer.description
        return sample


class AskFromDescription(LanguageModelStage):
    """Writes `turns` of the sample's kind from its description."""

    name = "ask"

    async def run(self, sample: Sample) -> Sample:
        answer_type, turn_type = ASKED[sample.kind]
        answer = await self.ask(sample, f"ask_{sample.kind}", sample.description, answer_type)
        for index, turn in enumerate(answer.turns):
            if isinstance(turn, Choice):
                options = [turn.correct, *turn.wrong]
                sample.rng(f"options {index}").shuffle(options)
                letter = string.ascii_uppercase[options.index(turn.correct)]
                sample.turns.append(Turn(turn.question, letter, turn_type, options))
            else:
                sample.turns.append(Turn(turn.question, turn.answer, turn_type or turn.type))
        return sample


class Judge(LanguageModelStage):
    """
    Has a model check every answer against the description; one wrong answer rejects the sample. `scores["judge"]` is
    the share of correct answers, or `None`, not available, if there is no client.
    """

    name = "judge"

    def __init__(self, client: ChatClient | None, prompts: dict[str, str]):
        super().__init__(client, prompts)

    async def run(self, sample: Sample) -> Sample:
        sample.scores[self.name] = None
        if self.client is None:
            return sample
        turns = [f"{number}. {describe_turn(turn)}" for number, turn in enumerate(sample.turns, start=1)]
        text = "\n\n".join([f"Description: {sample.description}", *turns])
        answer = await self.ask(sample, "judge", text, verdicts_on(len(sample.turns)))
        wrong = [number for number, verdict in enumerate(answer.verdicts, start=1) if not verdict.correct]
        sample.scores[self.name] = 1 - len(wrong) / len(answer.verdicts)
        if wrong:
            sample.reason = f"judge/wrong_answer: turn {wrong[0]}, {answer.verdicts[wrong[0] - 1].problem}"
        return sample


def describe_turn(turn: Turn) -> str:
    """Question, options and answer in text, for a judge to read."""
    lines = [f"Question: {turn.question}", f"Answer: {turn.answer}"]
    lines[1:1] = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, turn.options, strict=False)]
    return "\n".join(lines)
