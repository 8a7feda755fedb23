"""
The plugin on a GPU: CUDA graphs, and no waiting in a decoding step. Skipped without one; not run so far.

    python -m pytest tests/serving/vllm -m gpu      # in the environment of pip install "fusion-vlm[vllm,test-core]"
"""

import pytest
import torch

from fusion_vlm.serving.vllm.model import FusionForConditionalGeneration

from ...helpers import SMALL_MODEL
from .engines import ask, measure, mixed_requests, run_engine


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"dtype": "bfloat16", "max_model_len": 2048, "block_size": None, "gpu_memory_utilization": 0.5}


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enforce_eager": False},
        {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "PIECEWISE"}},
        {"enforce_eager": False, "compilation_config": {"use_inductor_graph_partition": True}},
    ],
    ids=["eager", "default graphs", "piecewise", "partitioned by inductor"],
)
def test_answers_are_within_the_rounding_of_bfloat16(folders, references, name, options):
    """Graphs that captured the interaction layers would leave the latents as they are."""
    requests = mixed_requests(references(name).processor)
    exact = [references(name).answer(request, 1) for request in requests]
    rounded = [references(name, "bfloat16").answer(request, 1) for request in requests]
    with run_engine(folders[name], **{**OPTIONS, **options}) as llm:
        answers = ask(llm, references(name).processor, requests, max_tokens=1)
        again = ask(llm, references(name).processor, requests, max_tokens=1)
    allowed = measure(rounded, exact)
    assert measure(answers, exact) < 2 * allowed
    assert measure(again, exact) < 2 * allowed


def test_a_decoding_step_waits_for_nothing(references, monkeypatch):
    steps = []
    for name in ("embed_input_ids", "interact"):
        method = getattr(FusionForConditionalGeneration, name)

        def run(model, *args, method=method, name=name, **kwargs):
            decodes = not (kwargs.get("multimodal_embeddings") if name == "embed_input_ids" else model.contexts)
            torch.cuda.set_sync_debug_mode("error" if decodes else "default")
            try:
                return method(model, *args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                steps.append(decodes)

        monkeypatch.setattr(FusionForConditionalGeneration, name, run)
    processor = references("small").processor
    with run_engine(SMALL_MODEL, **{**OPTIONS, "max_model_len": 512}) as llm:
        ask(llm, processor, mixed_requests(processor), max_tokens=6, ignore_eos=True)
    assert any(steps) and not all(steps)
