"""Answers of vLLM equal those of transformers: log probabilities of the first token within 1e-4, and all tokens."""

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from ...helpers import make_messages
from .engines import Request, ask, check_equal, draw_image, measure, mixed_requests, run_engine


MODELS = ("small", "phi3", "llama", "qwen3")
LENGTHS = {"small": 512, "phi3": 2048, "llama": 2048, "qwen3": 2048}


@pytest.fixture(scope="module")
def requests(references):
    """Return the function that returns the mixed requests of a model, the same objects each time."""
    made = {}
    return lambda name: made.setdefault(name, mixed_requests(references(name).processor))


@pytest.mark.parametrize("name", MODELS)
def test_mixed_requests_at_once(folders, references, requests, name):
    reference = references(name)
    expected = [reference.answer(request, 12) for request in requests(name)]
    with run_engine(folders[name], max_model_len=LENGTHS[name], max_num_batched_tokens=8192) as llm:
        check_equal(ask(llm, reference.processor, requests(name)), expected)
        # Once more, with encoder outputs and context maps in the caches, and in another order.
        check_equal(ask(llm, reference.processor, requests(name)[::-1]), expected[::-1])


@pytest.mark.parametrize("name", ["small", "phi3"])
def test_a_token_budget_for_one_prompt(folders, references, requests, name):
    """Prompts that do not fit the rest of a step wait, whole, and so do items that the encoder cache is full for."""
    reference, requests = references(name), requests(name)
    expected = [reference.answer(request, 12) for request in requests]
    longest = max(len(answer.prompt_ids) for answer in expected) + 16
    with run_engine(folders[name], max_model_len=longest, max_num_batched_tokens=longest, max_num_seqs=8) as llm:
        check_equal(ask(llm, reference.processor, requests), expected)


def test_preempted_requests(folders, references, requests, monkeypatch):
    """A preempted request begins again, with its prompt and what it had generated in one piece."""
    preempted, preempt = [], Scheduler._preempt_request

    def record(scheduler, request, *args, **kwargs):
        preempted.append(request.num_output_tokens)
        return preempt(scheduler, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", record)
    reference, requests = references("small"), requests("small")
    expected = [reference.answer(request, 60, eos_token_id=-1) for request in requests]
    with run_engine(folders["small"], max_model_len=512, num_gpu_blocks_override=24) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=60, ignore_eos=True), expected)
    assert max(preempted) > 0


@pytest.mark.parametrize("name", ["small", "llama"])
def test_compiled(folders, references, requests, name):
    reference = references(name)
    expected = [reference.answer(request, 12) for request in requests(name)]
    options = {"max_model_len": LENGTHS[name], "max_num_batched_tokens": 4096}
    with run_engine(folders[name], enforce_eager=False, **options) as llm:
        check_equal(ask(llm, reference.processor, requests(name)), expected)


@pytest.mark.parametrize("name", ["small", "phi3"])
def test_bfloat16_within_its_rounding(folders, references, requests, name):
    """vLLM in bfloat16 is as near to float32 as transformers in bfloat16 is."""
    exact = [references(name).answer(request, 1) for request in requests(name)]
    rounded = [references(name, "bfloat16").answer(request, 1) for request in requests(name)]
    with run_engine(folders[name], dtype="bfloat16", max_model_len=LENGTHS[name]) as llm:
        answers = ask(llm, references(name).processor, requests(name), max_tokens=1)
    errors = sorted(measure([answer], [right]) for answer, right in zip(answers, exact, strict=True))
    allowed = sorted(measure([answer], [right]) for answer, right in zip(rounded, exact, strict=True))
    assert errors[-1] < 2 * allowed[-1]
    assert errors[len(errors) // 2] < 1.5 * allowed[len(allowed) // 2]


def test_a_prompt_up_to_the_limit(folders, references):
    reference = references("small")
    words = ["What is in the image?", *["blue"] * 400]
    lengths = {}
    for number in range(1, 400):
        request = Request(make_messages([" ".join(words[:number])], draw_image(0)))
        text = reference.processor.apply_chat_template(request.messages, add_generation_prompt=True)
        lengths[len(reference.processor.tokenizer(text).input_ids)] = request
    # 36 image and 16 latent tokens stand for one placeholder each.
    request = lengths[256 - 1 - 50]
    with run_engine(folders["small"], max_model_len=256, max_num_batched_tokens=256) as llm:
        answers = ask(llm, reference.processor, [request], max_tokens=1)
        assert len(answers[0].prompt_ids) == 255
        check_equal(answers, [reference.answer(request, 1)])
        with pytest.raises(ValueError, match="The conversation has 256 tokens, the model takes 255 at most"):
            ask(llm, reference.processor, [lengths[256 - 50]], max_tokens=1)
