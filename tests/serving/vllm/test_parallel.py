"""Two processes of a CPU share decoder and interaction layers (tensor parallelism), and answer as one does."""

import pytest

from .engines import ask, check_equal, mixed_requests, run_engine


def count_parameters(worker) -> dict[str, int]:
    """Return the numbers of parameters of a worker's interaction layers and of all else."""
    named = list(worker.get_model().named_parameters())
    counts = {"interaction_layers": 0, "other": 0}
    for name, parameter in named:
        counts["interaction_layers" if ".interaction_layers." in name else "other"] += parameter.numel()
    return counts


@pytest.mark.parametrize("name", ["small"])
def test_tensor_parallelism(folders, references, monkeypatch, name):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # to send `count_parameters`
    reference = references(name)
    requests = mixed_requests(reference.processor)
    expected = [reference.answer(request, 8) for request in requests]
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "max_num_batched_tokens": 2048}
    with run_engine(folders[name], max_model_len=512, **options) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=8), expected)
        counts = llm.collective_rpc(count_parameters)
    whole = sum(value.numel() for value in reference.model.model.interaction_layers.parameters())
    assert len(counts) == 2
    for count in counts:  # norms and what comes before them are whole
        assert 0.4 * whole < count["interaction_layers"] < 0.9 * whole
