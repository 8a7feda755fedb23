"""
Let any OpenAI-compatible model judge the answers of a task, and tell when it did not.

lmms-eval's tasks build their judges of environment variables when they are imported, and count a failed call as 0, as
-1 or as a wrong answer. So the variables are set before a task is loaded, every call is recorded, and a task whose
judge failed has no result.
"""

import os
import threading
from dataclasses import dataclass, field


ENDPOINT = "/chat/completions"
KEY_VARIABLE = "OPENAI_API_KEY"
# A server of one's own asks for no key, but the client of OpenAI and lmms-eval refuse an empty one.
NO_KEY = "none"


class JudgeError(ValueError):
    """The judge does not answer, or its replies hold no score; the message says why."""


@dataclass(frozen=True)
class Judge:
    """
    A model that grades answers.

    Args:
        url (`str`): the base of an OpenAI-compatible API, such as `http://127.0.0.1:8000/v1`.
        model (`str`): the name of the model there.
    """

    url: str
    model: str


@dataclass
class JudgeLog:
    """The calls of a judge: how many there were, and why some failed. Tasks call from several threads."""

    num_calls: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self):
        """Forget the calls of the task before."""
        self.num_calls = 0
        self.failures.clear()


def read_url(url: str) -> str:
    """
    Return the base of an API from a base or from the full address of its endpoint.

    Raises:
        JudgeError: for anything else.
    """
    base = url.rstrip("/").removesuffix(ENDPOINT)
    if not base.startswith(("http://", "https://")) or len(base.split("/")) < 3 or not base.split("/")[2]:
        raise JudgeError(
            f"The judge's address is {url!r}, expected the base of an OpenAI-compatible API, such as"
            " http://127.0.0.1:8000/v1."
        )
    return base


def check_judge(judge: Judge):
    """
    Ask the judge for a word.

    Raises:
        JudgeError: if it gives no reply.
    """
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=judge.url, api_key=os.environ.get(KEY_VARIABLE) or NO_KEY, max_retries=1, timeout=60)
    try:
        client.chat.completions.create(
            model=judge.model, messages=[{"role": "user", "content": "Reply with the word yes."}]
        )
    except OpenAIError as error:
        raise JudgeError(
            f"The judge {judge.model} at {judge.url} does not answer: {error}. Its key is read from {KEY_VARIABLE}."
        ) from error


def use_judge(judge: Judge) -> JudgeLog:
    """
    Let the tasks that lmms-eval loads from here on ask this judge, and return the record of its calls.

    Once a call has failed, all its retries included, further ones fail at once: the task has no result anyway.
    """
    from lmms_eval.llm_judge.factory import ProviderFactory
    from lmms_eval.llm_judge.providers import OpenAIProvider

    # OPENAI_API_URL is a base here, as the judges of these tasks read it; mmbench_en_dev and hallusion_bench_image,
    # which evaluation/benchmarks.yaml does without, would take it for a full endpoint.
    os.environ |= {"API_TYPE": "openai", "OPENAI_API_URL": judge.url, "MODEL_VERSION": judge.model}
    os.environ[KEY_VARIABLE] = os.environ.get(KEY_VARIABLE) or NO_KEY
    log = JudgeLog()

    class RecordingProvider(OpenAIProvider):
        """The client of lmms-eval, with a record of its calls."""

        def evaluate(self, request):
            if log.failures:
                raise JudgeError(log.failures[0])
            try:
                response = super().evaluate(request)
            except Exception as error:
                with log.lock:
                    log.failures.append(str(error) or type(error).__name__)
                raise
            with log.lock:
                log.num_calls += 1
            return response

    ProviderFactory.register_provider("openai", RecordingProvider)
    return log


def find_unjudged(samples: list[dict]) -> list:
    """
    Return the ids of the documents whose answers the judge did not grade, from the samples that lmms-eval logs.

    These have a score of -1 (llava_in_the_wild), no extracted answer (mathvista), or a mark of ours (fusion_mmvet).
    """

    def is_unjudged(row: dict, answer: str) -> bool:
        scores = row.get("scores")
        return bool(
            row.get("judge_failed")
            or (isinstance(scores, list) and -1 in scores)
            or ("extraction" in row and not row["extraction"] and answer)
        )

    return [
        sample["doc_id"]
        for sample in samples
        if any(is_unjudged(row, read_answer(sample)) for row in sample.values() if isinstance(row, dict))
    ]


def read_answer(sample: dict) -> str:
    """Return the model's answer in a sample that lmms-eval logs."""
    answer = sample.get("filtered_resps") or [""]
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return answer if isinstance(answer, str) else ""


def check_judged(log: JudgeLog, judge: Judge, samples: list[dict]):
    """
    Check that the judge graded each answer of a task.

    Raises:
        JudgeError: if a call failed, or if a reply holds no score.
    """
    if log.failures:
        raise JudgeError(f"The judge {judge.model} at {judge.url} failed: {log.failures[0]}")
    if unjudged := find_unjudged(samples):
        shown = ", ".join(map(str, unjudged[:5])) + (", ..." if len(unjudged) > 5 else "")
        raise JudgeError(
            f"The judge {judge.model} gave no score for {len(unjudged)} of {len(samples)} answers (documents {shown})."
            " Name a judge that follows the format of the task."
        )
