"""
What only a GPU can show. Skipped without one; not run so far where this was developed.

    make test-gpu
"""

import copy

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

from .helpers import process, relative_error
from .tiny import last_logits


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}


@pytest.fixture
def inputs(processor, conversations):
    return process(processor, conversations)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_logits_are_those_of_the_cpu(backend, model, inputs):
    other = copy.deepcopy(model).to("cuda")
    other.set_attn_implementation(backend)
    assert relative_error(last_logits(other, inputs.to("cuda")).cpu(), last_logits(model, inputs.to("cpu"))) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, model, inputs):
    expected = last_logits(model, inputs)
    logits = last_logits(copy.deepcopy(model).to("cuda", dtype), inputs.to("cuda"))
    assert logits.dtype == dtype
    assert relative_error(logits.cpu(), expected) < 0.1


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs the package flash-attn")
def test_flash_attention_in_the_decoder(folder, model, inputs):
    parts = {"text_config": "flash_attention_2", "vision_config": "sdpa"}
    other = FusionForConditionalGeneration.from_pretrained(
        folder, attn_implementation=parts, dtype=torch.bfloat16, device_map="cuda"
    )
    assert relative_error(last_logits(other, inputs.to("cuda")).cpu(), last_logits(model, inputs.to("cpu"))) < 0.1


@pytest.mark.parametrize("cache_implementation", ["offloaded", "static", "offloaded_static"])
def test_caches_agree(cache_implementation, model, inputs):
    """A static cache makes `generate` compile the decoding step."""
    other, inputs = copy.deepcopy(model).to("cuda"), inputs.to("cuda")
    expected = other.generate(**inputs, **GREEDY)
    assert torch.equal(other.generate(**inputs, **GREEDY, cache_implementation=cache_implementation), expected)


def test_parts_on_gpu_and_cpu(folder, model, inputs):
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": 0,
        "model.text_to_vision_projector": "cpu",
        "model.language_model": 0,
        "model.interaction_layers": "cpu",
        "lm_head": 0,
    }
    other = FusionForConditionalGeneration.from_pretrained(folder, device_map=device_map)
    assert relative_error(last_logits(other, inputs.to("cuda")).cpu(), last_logits(model, inputs.to("cpu"))) < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized(bits, folder, model, inputs):
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    other = FusionForConditionalGeneration.from_pretrained(folder, quantization_config=config, device_map="cuda")
    error = relative_error(last_logits(other, inputs.to("cuda")).cpu(), last_logits(model, inputs.to("cpu")))
    assert 1e-4 < error < 1.0
