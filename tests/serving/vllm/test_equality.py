"""
Answers of vLLM equal those of transformers: log probabilities of the first token within 1e-4, and all tokens.

Every test runs on the small model and on the three released layouts.
"""

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from fusion_vlm.serving.vllm.model import FusionForConditionalGeneration

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


@pytest.mark.parametrize("name", MODELS)
def test_grid_sizes_that_share_a_step(folders, references, monkeypatch, name):
    """Items of one step have image tokens and latents of different numbers."""
    steps, build = [], FusionForConditionalGeneration.build_contexts

    def record(model, input_ids, is_multimodal, items, dim):
        contexts = build(model, input_ids, is_multimodal, items, dim)
        steps.append(({len(item) for item in items}, {context.windows.shape[1] for context in contexts}))
        return contexts

    monkeypatch.setattr(FusionForConditionalGeneration, "build_contexts", record)
    reference = references(name)
    side = reference.processor.image_processor.image_grid_size
    sizes = [{}, {"image_grid_size": side - 1}, {"latent_grid_size": 2, "image_grid_size": side // 2}]
    requests = [Request(make_messages(["Why?", "So.", "And?"], draw_image(3)), size) for size in sizes]
    requests += [Request(make_messages(["Why?"]), {"latent_grid_size": size}) for size in (2, 3)]
    expected = [reference.answer(request, 4) for request in requests]
    with run_engine(folders[name], max_model_len=LENGTHS[name], max_num_batched_tokens=8192) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=4), expected)
    assert any(len(rows) >= 4 and len(windows) >= 3 for rows, windows in steps)


@pytest.mark.parametrize("name", MODELS)
def test_a_token_budget_for_one_prompt(folders, references, requests, name):
    """Prompts that do not fit the rest of a step wait, whole, and so do items that the encoder cache is full for."""
    reference, requests = references(name), requests(name)
    expected = [reference.answer(request, 12) for request in requests]
    longest = max(len(answer.prompt_ids) for answer in expected) + 16
    with run_engine(folders[name], max_model_len=longest, max_num_batched_tokens=longest, max_num_seqs=8) as llm:
        check_equal(ask(llm, reference.processor, requests), expected)


@pytest.mark.parametrize("name", MODELS)
def test_preempted_requests(folders, references, requests, monkeypatch, name):
    """A preempted request begins again, with its prompt and what it had generated in one piece."""
    preempted, preempt = [], Scheduler._preempt_request

    def record(scheduler, request, *args, **kwargs):
        preempted.append(request.num_output_tokens)
        return preempt(scheduler, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", record)
    # The blocks of 32 tokens hold a few prompts, and not all that these generate.
    number, num_blocks = (60, 24) if name == "small" else (40, 80)
    reference, requests = references(name), requests(name) if name == "small" else requests(name)[::3]
    expected = [reference.answer(request, number, eos_token_id=-1) for request in requests]
    with run_engine(folders[name], max_model_len=LENGTHS[name], num_gpu_blocks_override=num_blocks) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=number, ignore_eos=True), expected)
    assert max(preempted) > 0


@pytest.mark.parametrize("name", MODELS)
def test_compiled(folders, references, requests, name):
    reference = references(name)
    expected = [reference.answer(request, 12) for request in requests(name)]
    options = {"max_model_len": LENGTHS[name], "max_num_batched_tokens": 4096}
    with run_engine(folders[name], enforce_eager=False, **options) as llm:
        check_equal(ask(llm, reference.processor, requests(name)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_within_its_rounding(folders, references, requests, name):
    """
    vLLM in bfloat16 is as near to transformers in float32 as transformers in bfloat16 is.

    Both round in other places, so single errors differ, and the largest and the median one are compared.
    """
    exact = [references(name).answer(request, 12) for request in requests(name)]
    rounded = [references(name, "bfloat16").answer(request, 1) for request in requests(name)]
    with run_engine(folders[name], dtype="bfloat16", max_model_len=LENGTHS[name]) as llm:
        answers = ask(llm, references(name).processor, requests(name), max_tokens=1)
    errors = sorted(measure([answer], [right]) for answer, right in zip(answers, exact, strict=True))
    allowed = sorted(measure([answer], [right]) for answer, right in zip(rounded, exact, strict=True))
    print(f"bfloat16, {name}: vLLM {errors[-1]:.3f} (median {errors[len(errors) // 2]:.3f}),", end=" ")
    print(f"transformers {allowed[-1]:.3f} (median {allowed[len(allowed) // 2]:.3f})")
    assert errors[-1] < 2 * allowed[-1]
    assert errors[len(errors) // 2] < 1.5 * allowed[len(allowed) // 2]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_up_to_the_limit(folders, references, name):
    reference = references(name)
    question = "What is in the image?" + " blue" * (150 if name == "small" else 300)
    requests = [Request(make_messages([question + end], draw_image(0))) for end in ("", " blue")]
    expected = reference.answer(requests[0], 1)
    limit = len(expected.prompt_ids)
    with run_engine(folders[name], max_model_len=limit + 1, max_num_batched_tokens=limit + 1) as llm:
        check_equal(ask(llm, reference.processor, requests[:1], max_tokens=1), [expected])
        with pytest.raises(ValueError, match=f"The conversation has .* tokens, the model takes {limit} at most"):
            ask(llm, reference.processor, requests[1:], max_tokens=1)
