"""What a GPU needs of a step, shown on the CPU: decoding waits for nothing, and graphs split at the operator."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.compilation.backends import split_graph
from vllm.config import CompilationConfig

from fusion_vlm.serving.vllm import model as plugin_model
from fusion_vlm.serving.vllm.model import FusionForConditionalGeneration, call_operator, split_graphs

from ...helpers import SMALL_MODEL, make_messages
from .engines import Reference, Request, ask, check_equal, draw_image, run_engine


# What reads values of a tensor, so that the CPU waits for the GPU.
WAITING = {"nonzero", "_local_scalar_dense", "item", "is_nonzero", "equal", "masked_select", "unique_consecutive"}


class Recorder(TorchDispatchMode):
    """Record the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def record(monkeypatch):
    """Return the operations of FUSION's parts of each step: `(begins a prompt, names)`."""
    steps = []
    for name in ("embed_input_ids", "interact"):
        method = getattr(FusionForConditionalGeneration, name)

        def run(model, *args, method=method, name=name, **kwargs):
            with Recorder() as recorder:
                output = method(model, *args, **kwargs)
            begins = bool(model.next_contexts if name == "embed_input_ids" else model.contexts)
            steps.append((name, begins, recorder.names))
            return output

        monkeypatch.setattr(FusionForConditionalGeneration, name, run)
    return steps


def test_a_decoding_step_does_nothing_for_fusion_and_waits_for_nothing(record, references):
    requests = [Request(make_messages(["What is it?"], image)) for image in (draw_image(1), None)]
    with run_engine(SMALL_MODEL, max_model_len=512) as llm:
        record.clear()
        ask(llm, references("small").processor, requests, max_tokens=6, ignore_eos=True)
    for name in ("embed_input_ids", "interact"):
        prompts = [names for other, begins, names in record if other == name and begins]
        decoding = [names for other, begins, names in record if other == name and not begins]
        assert len(prompts) > 0 and len(decoding) >= 5
        for names in decoding:
            assert names == [] if name == "interact" else not WAITING & set(names)
    # The recorder sees what it is for: building the contexts of a prompt looks for places, on the CPU.
    assert any("nonzero" in names for _, begins, names in record if begins)


def test_new_weights_make_new_context_maps(references):
    """Trainers send weights to a running engine, which has kept maps of its last images and of the blank one."""
    processor, image = references("small").processor, draw_image(1)
    # A question that was not asked before, so that vLLM's own cache of encoded items has nothing.
    old, new = ([Request(make_messages([text], picture)) for picture in (image, None)] for text in ("Why?", "How?"))
    reference = Reference(SMALL_MODEL, "float32")
    state = {name: value * 1.5 for name, value in reference.model.state_dict().items() if ".multi_modal_proj" in name}
    with run_engine(SMALL_MODEL, max_model_len=512) as llm:
        ask(llm, processor, old, max_tokens=1)
        llm.apply_model(lambda model: model.load_weights(state.items()))
        answers = ask(llm, processor, new)
    reference.model.load_state_dict(state, strict=False)
    check_equal(answers, [reference.answer(request, 12) for request in new])


def test_compiled_graphs_split_at_the_operator():
    """CUDA graphs are captured between the pieces, so the operator is in none of them."""

    class Decoder(torch.nn.Module):
        def forward(self, hidden_states, residual):
            hidden_states, residual = hidden_states * 2, residual + hidden_states
            call_operator("decoder", 0, self, (), (hidden_states, residual))
            return hidden_states + residual

    graphs, config = [], CompilationConfig(mode=3, splitting_ops=["vllm::unified_attention_with_output"])
    split_graphs(config)
    split_graphs(config)
    assert config.splitting_ops == ["vllm::unified_attention_with_output", f"vllm::{plugin_model.OPERATOR}"]

    def keep(graph, inputs):
        graphs.append(graph)
        return lambda *args: (args[0],)

    torch.compile(Decoder(), backend=keep, fullgraph=True)(torch.ones(3, 4), torch.ones(3, 4))
    _, pieces = split_graph(graphs[0], config.splitting_ops)
    assert [piece.is_splitting_graph for piece in pieces] == [False, True, False]


def test_the_operator_needs_no_values():
    """Tracing runs on tensors without values, on any device."""
    with FakeTensorMode():
        states = torch.empty(3, 4, device="cuda")
        assert getattr(torch.ops.vllm, plugin_model.OPERATOR)(states, states.clone(), "decoder", 0) is None
