"""Two processes of a CPU share the decoder (tensor parallelism), and answer as one does."""

import pytest

from .engines import ask, check_equal, mixed_requests, run_engine


@pytest.mark.parametrize("name", ["small"])
def test_tensor_parallelism(folders, references, monkeypatch, name):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    reference = references(name)
    requests = mixed_requests(reference.processor)
    expected = [reference.answer(request, 8) for request in requests]
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "max_num_batched_tokens": 2048}
    with run_engine(folders[name], max_model_len=512, **options) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=8), expected)
