"""Two processes of a CPU share decoder and interaction layers (tensor parallelism), and answer as one does."""

import pytest

from .engines import ask, check_equal, mixed_requests, run_engine


@pytest.mark.parametrize("name", ["small"])
def test_tensor_parallelism(folders, references, monkeypatch, name):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # to send `find_shards`

    def find_shards(worker) -> list[list[int]]:  # inside, so that it is sent by value to the workers
        return [
            [layer.num_heads, layer.q_proj.output_size_per_partition, layer.o_proj.input_size_per_partition]
            for layer in worker.get_model().encoder.interaction_layers
        ]

    reference = references(name)
    requests = mixed_requests(reference.processor)
    expected = [reference.answer(request, 8) for request in requests]
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "max_num_batched_tokens": 2048}
    with run_engine(folders[name], max_model_len=512, **options) as llm:
        check_equal(ask(llm, reference.processor, requests, max_tokens=8), expected)
        shards = llm.collective_rpc(find_shards)
    config = reference.model.config
    dim, num_heads = config.text_config.hidden_size, config.num_interaction_heads
    assert len(shards) == 2
    for layers in shards:
        assert layers == [[num_heads // 2, dim // 2, dim // 2]] * len(config.interaction_layer_indices)
