"""
What vLLM may not do with FUSION: settings are refused before the engine starts, and each guard is needed.

Without a guard, answers are wrong without an error, so the tests that leave one out look at log probabilities: a small
model's likeliest token often survives.
"""

import importlib
import json
import shutil

import pytest
import vllm
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs

from fusion_vlm.serving.vllm import processor as plugin_processor
from fusion_vlm.serving.vllm import register, settings

from ...helpers import SMALL_MODEL, make_messages
from .engines import Request, ask, draw_image, make_prompt, measure, run_engine


EQUAL, WRONG = 1e-4, 1e-2


def build_config(folder=SMALL_MODEL, **options):
    return EngineArgs(str(folder), **{"dtype": "float32", "max_model_len": 512, **options}).create_engine_config()


REFUSED = {
    "--long-prefill-token-threshold": {"long_prefill_token_threshold": 64},
    "--max-num-scheduled-tokens": {"max_num_scheduled_tokens": 511},
    "--pipeline-parallel-size": {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"},
    "--prefill-context-parallel-size": {"prefill_context_parallel_size": 2, "distributed_executor_backend": "mp"},
    "--enable-dbo": {"enable_dbo": True},
    "--ubatch-size": {"ubatch_size": 2},
    "--speculative-config": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "--kv-transfer-config": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "--kv-offloading-size": {"kv_offloading_size": 1.0},
    "--ec-transfer-config": {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_both"}},
    "--kv-sharing-fast-prefill": {"kv_sharing_fast_prefill": True},
    "--runner pooling": {"runner": "pooling"},
    "--enable-lora": {"enable_lora": True},
    "--mm-encoder-only": {"mm_encoder_only": True},
    "--enable-prompt-embeds": {"enable_prompt_embeds": True},
    "--enable-mm-embeds": {"enable_mm_embeds": True},
    "--language-model-only": {"limit_mm_per_prompt": {"image": 0}},
    "--skip-tokenizer-init": {"skip_tokenizer_init": True},
    "cudagraph_mode FULL": {"compilation_config": {"cudagraph_mode": "FULL"}},
    "splitting_ops": {"compilation_config": {"splitting_ops": []}},
    "fuse_attn_quant": {"compilation_config": {"pass_config": {"fuse_attn_quant": True}}},
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(option):
    with pytest.raises(ValueError, match="FUSION cannot be served like this: .*" + option):
        build_config(**REFUSED[option])


def test_graphs_that_capture_whatever_runs_are_refused(monkeypatch):
    monkeypatch.setattr(settings.envs, "VLLM_USE_BREAKABLE_CUDAGRAPH", True, raising=False)
    with pytest.raises(ValueError, match="FUSION cannot be served like this: VLLM_USE_BREAKABLE_CUDAGRAPH=1"):
        build_config(compilation_config={"cudagraph_mode": "PIECEWISE"})


def test_a_model_without_question_ends_is_refused(tmp_path):
    folder = shutil.copytree(SMALL_MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "question_end_token_ids": None}))
    with pytest.raises(ValueError, match="question_end_token_ids"):
        build_config(folder)


def test_defaults_are_turned_off(monkeypatch):
    messages = []
    monkeypatch.setattr(settings.logger, "info", lambda message, *values: messages.append(message % values))
    config = build_config(max_model_len=2048, max_num_batched_tokens=300)
    assert not config.scheduler_config.enable_chunked_prefill and not config.cache_config.enable_prefix_caching
    assert config.scheduler_config.max_num_batched_tokens == 2048
    assert config.model_config.tokenizer_mode == "fusion"
    assert config.model_config.multimodal_config.mm_processor_cache_gb == 0
    assert any("--enable-chunked-prefill and --enable-prefix-caching" in message for message in messages)
    assert any("--max-num-batched-tokens is 2048 instead of 300" in message for message in messages)


def test_phi_stays_in_the_range_of_its_short_factors(folders):
    assert build_config(folders["phi3"], max_model_len=None).model_config.max_model_len == 4096
    with pytest.raises(ValueError, match="--max-model-len 8192 is above 4096"):
        build_config(folders["phi3"], max_model_len=8192)
    accepted = build_config(folders["phi3"], max_model_len=8192, additional_config={settings.LONG_ROPE_OPTION: True})
    assert accepted.model_config.max_model_len == 8192


def test_another_release_of_vllm_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    register()
    assert caplog.records == []  # it is called in each process, whatever model is served
    build_config()
    assert [record.getMessage() for record in caplog.records if "0.99.1" in record.getMessage()] == [
        "FUSION's plugin is tested with vLLM 0.32 to 0.33, and 0.99.1 is installed. Compare some answers with"
        " `fusion-vlm ask`."
    ]


def test_a_plugin_that_cannot_work_harms_no_other_model(caplog, monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "fusion_vlm.serving.vllm.settings", None)
    register()
    assert "FUSION's plugin is off" in caplog.text


# Each guard is needed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beginnings() -> list[Request]:
    """Questions with a long common beginning, without an image and about one image."""
    begin = "What is in the image? " * 8
    ends = ["What color is it?", "Where is the circle?", "How many are there?", "Why?", "What shape is it?"]
    image = draw_image(1)
    return [Request(make_messages([begin + end], picture)) for picture in (None, image) for end in ends]


def serve_without(monkeypatch, guard: str, requests, references, **options) -> float:
    """Return the error of the log probabilities of an engine whose guard does nothing."""
    monkeypatch.setattr(settings, guard, lambda *args: iter(()))
    reference = references("small")
    with run_engine(SMALL_MODEL, max_model_len=512, **options) as llm:
        ask(llm, reference.processor, requests[:1], max_tokens=1)  # what a cache of beginnings holds afterwards
        answers = ask(llm, reference.processor, requests, max_tokens=1)
    return measure(answers, [reference.answer(request, 1) for request in requests])


def test_prefix_caching_is_wrong(monkeypatch, beginnings, references):
    assert serve_without(monkeypatch, "find_problems", beginnings, references) < EQUAL
    options = {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048}
    assert serve_without(monkeypatch, "turn_off_defaults", beginnings, references, **options) > WRONG


@pytest.mark.parametrize("option", ["enable_chunked_prefill", "long_prefill_token_threshold"])
def test_prompts_in_pieces_end_the_engine_instead_of_being_wrong(monkeypatch, beginnings, references, option):
    """The model itself is the second guard: it refuses a piece of a prompt, which must never happen while serving."""
    options = {"max_num_seqs": 8, "enable_prefix_caching": False, "max_num_batched_tokens": 512}
    if option == "enable_chunked_prefill":
        monkeypatch.setattr(settings, "fit_budgets", lambda config: None)
        options = {**options, "enable_chunked_prefill": True, "max_num_batched_tokens": 64}
        guard = "turn_off_defaults"
    else:
        options, guard = {**options, "long_prefill_token_threshold": 64}, "find_problems"
    with pytest.raises(Exception, match="A prompt came in pieces|EngineCore encountered"):
        serve_without(monkeypatch, guard, beginnings, references, **options)


def test_a_prompt_above_the_scheduled_tokens_waits_for_ever(monkeypatch, beginnings, references):
    monkeypatch.setattr(settings, "find_problems", lambda config: iter(()))
    with run_engine(SMALL_MODEL, max_model_len=512, max_num_scheduled_tokens=64) as llm:
        prompt = make_prompt(references("small").processor, beginnings[0])
        llm.llm_engine.add_request("0", prompt, SamplingParams(max_tokens=1))
        assert not any(llm.llm_engine.step() for _ in range(20))
        llm.llm_engine.abort_request(["0"])


def test_an_image_has_to_be_keyed_with_its_question(monkeypatch, beginnings, references):
    hash_item = plugin_processor.hash_item
    hash_image = lambda sizes, outputs: hash_item(sizes, {**outputs, "question_input_ids": outputs["pixel_values"]})  # noqa: E731
    monkeypatch.setattr(plugin_processor, "hash_item", hash_image)
    assert serve_without(monkeypatch, "find_problems", beginnings[5:], references) > WRONG


def test_long_position_factors_change_short_prompts(folders, references):
    request = Request(make_messages(["What is it?"]))
    options = {"max_model_len": 8192, "max_num_batched_tokens": 8192}
    with run_engine(folders["phi3"], additional_config={settings.LONG_ROPE_OPTION: True}, **options) as llm:
        answers = ask(llm, references("phi3").processor, [request], max_tokens=1)
    assert measure(answers, [references("phi3").answer(request, 1)]) > WRONG


def test_a_plain_hook_never_acts_when_compiled(monkeypatch, beginnings, references):
    """Without the opaque operator, torch.compile traces the hook while there are no latents."""
    from fusion_vlm.serving.vllm import model as plugin_model

    def interact_at_once(name, index, layer, args, output):
        plugin_model.find_layer(name).interact(index, *output)

    monkeypatch.setattr(plugin_model, "call_operator", interact_at_once)
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    assert serve_without(monkeypatch, "find_problems", beginnings, references, enforce_eager=False) > WRONG
