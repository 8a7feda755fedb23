"""
What vLLM may do with FUSION: settings are checked, and defaults changed, before the engine starts.

Information flows backwards within a FUSION prompt: the latent tokens near its start depend on the end of the question.
So a prompt has to be computed in one piece, and no part of its keys and values belongs to another prompt.
"""

from collections.abc import Iterator

import vllm
from packaging.version import Version
from transformers import AutoConfig
from vllm import ModelRegistry, envs

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.serving.vllm import ARCHITECTURE, TESTED_RELEASES, describe_tested_releases, logger
from fusion_vlm.serving.vllm.internals import (
    MODELS_CONFIG_MAP,
    RENDERER_REGISTRY,
    TokenizerRegistry,
    VerifyAndUpdateConfig,
)


MODE = "fusion"  # name of the renderer and of the tokenizer mode
LONG_ROPE_OPTION = "fusion_long_rope"  # in vLLM's --additional-config

ONE_PIECE = "FUSION has to process a prompt in one piece, because its latent tokens depend on the question after them"


def install():
    """Register FUSION with vLLM; a second call changes nothing."""
    if ARCHITECTURE in MODELS_CONFIG_MAP:
        return
    # The configuration comes from this package instead of the model's folder, so nobody has to trust remote code.
    AutoConfig.register(FusionConfig.model_type, FusionConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, f"fusion_vlm.serving.vllm.model:{ARCHITECTURE}")
    RENDERER_REGISTRY.register(MODE, "fusion_vlm.serving.vllm.renderer", "FusionRenderer")
    TokenizerRegistry.register(MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    MODELS_CONFIG_MAP[ARCHITECTURE] = FusionSettings


class FusionSettings(VerifyAndUpdateConfig):
    """The checks that vLLM runs on its configuration for FUSION."""

    @staticmethod
    def verify_and_update_model_config(model_config):
        """Choose FUSION's renderer, and keep Phi-3.5 within the range of its short position factors."""
        model_config.tokenizer_mode = MODE
        limit = find_short_rope_limit(model_config.hf_config)
        if limit is not None and model_config.original_max_model_len is None and model_config.max_model_len > limit:
            logger.info(
                "FUSION: --max-model-len is %d. Beyond it, vLLM uses the decoder's long position factors for short"
                " prompts too, which changes all answers.",
                limit,
            )
            model_config.max_model_len = limit

    @staticmethod
    def verify_and_update_config(vllm_config):
        """
        Turn off vLLM's defaults that are wrong for FUSION, and refuse settings that cannot be right.

        Raises:
            ValueError: naming the first option that is refused.
        """
        for problem in find_problems(vllm_config):
            raise ValueError(f"FUSION cannot be served like this: {problem}.")
        warn_of_other_releases()
        turn_off_defaults(vllm_config)
        fit_budgets(vllm_config)


def warn_of_other_releases():
    """Say in one line that the installed vLLM is not one that the plugin was tested with."""
    lowest, newest = TESTED_RELEASES
    if not Version(lowest).release <= Version(vllm.__version__).release[:2] <= Version(newest).release:
        logger.warning(
            "FUSION's plugin is tested with vLLM %s, and %s is installed. Compare some answers with `fusion-vlm ask`.",
            describe_tested_releases(),
            vllm.__version__,
        )


def find_short_rope_limit(config: FusionConfig) -> int | None:
    """Return the longest context of the decoder's short position factors, None for a decoder with one range."""
    return getattr(config.text_config, "original_max_position_embeddings", None)


def find_problems(vllm_config) -> Iterator[str]:
    """Yield what cannot be right, option first."""
    yield from find_scheduling_problems(vllm_config)
    yield from find_model_problems(vllm_config)
    yield from find_compilation_problems(vllm_config.compilation_config)


def find_scheduling_problems(vllm_config) -> Iterator[str]:
    """Yield the settings that split a prompt, or take keys and values from elsewhere."""
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    max_model_len = vllm_config.model_config.max_model_len
    if scheduler.long_prefill_token_threshold:
        yield f"--long-prefill-token-threshold cuts long prompts. {ONE_PIECE}"
    if (scheduler.max_num_scheduled_tokens or max_model_len) < max_model_len:
        yield (
            f"--max-num-scheduled-tokens is below --max-model-len ({max_model_len}), so a longer prompt would wait for"
            f" ever. {ONE_PIECE}"
        )
    if parallel.pipeline_parallel_size > 1:
        yield "--pipeline-parallel-size: later stages have no image to read. Use --tensor-parallel-size"
    if parallel.prefill_context_parallel_size > 1:
        yield f"--prefill-context-parallel-size splits prompts. {ONE_PIECE}"
    if parallel.use_ubatching:
        yield "--enable-dbo and --ubatch-size split a step in two, and the interaction layers act on whole steps"
    if vllm_config.speculative_config is not None:
        yield "--speculative-config: a draft model would not see what the latent tokens see"
    if vllm_config.kv_transfer_config is not None or vllm_config.cache_config.kv_offloading_size is not None:
        yield (
            "--kv-transfer-config and --kv-offloading-size reuse the beginnings of other prompts, which depend on"
            " their questions"
        )
    if vllm_config.ec_transfer_config is not None:
        yield "--ec-transfer-config: encoded images of FUSION belong to one question"
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill skips layers of the prompt, in which latent tokens are rewritten"


def find_model_problems(vllm_config) -> Iterator[str]:
    """Yield the settings of the model that leave out what FUSION needs, or change its answers silently."""
    model, multimodal = vllm_config.model_config, vllm_config.model_config.multimodal_config
    config, limit = model.hf_config, find_short_rope_limit(model.hf_config)
    if model.runner_type != "generate":
        yield f"--runner {model.runner_type}: the plugin generates text only"
    if config.question_end_token_ids is None:
        yield "config.json has no `question_end_token_ids`. Set it to `processor.question_end_token_ids`"
    if vllm_config.lora_config is not None:
        yield "--enable-lora: adapters have to be merged into the model, see `fusion-vlm finetune`"
    if model.enable_prompt_embeds:
        yield "--enable-prompt-embeds: places of images and questions are found from token ids"
    if model.skip_tokenizer_init:
        yield "--skip-tokenizer-init: questions are read back from the prompt's text"
    if multimodal is None or multimodal.language_model_only or not multimodal.get_limit_per_prompt("image"):
        yield "--language-model-only and --limit-mm-per-prompt image=0: questions without an image need the tower too"
    elif multimodal.mm_encoder_only:
        yield "--mm-encoder-only: the plugin encodes and answers in one engine"
    elif multimodal.enable_mm_embeds:
        yield "--enable-mm-embeds: encoded images of FUSION belong to one question"
    if limit is not None and model.max_model_len > limit and not vllm_config.additional_config.get(LONG_ROPE_OPTION):
        yield (
            f"--max-model-len {model.max_model_len} is above {limit}. vLLM then uses the decoder's long position"
            " factors for short prompts too, so that all answers differ from transformers'. To accept that, pass"
            f" --additional-config '{{\"{LONG_ROPE_OPTION}\": true}}'"
        )


def find_compilation_problems(compilation_config) -> Iterator[str]:
    """Yield the settings with which compiled graphs would not split at the interaction layers."""
    if compilation_config.splitting_ops == []:
        yield "splitting_ops [] (--compilation-config): graphs have to split at the interaction layers. Leave it out"
    if compilation_config.pass_config.fuse_attn_quant and not compilation_config.use_inductor_graph_partition:
        yield "pass_config.fuse_attn_quant (--compilation-config) needs full CUDA graphs, see cudagraph_mode"
    yield from find_graph_problems(compilation_config)


def find_graph_problems(compilation_config) -> Iterator[str]:
    """Yield the mode in which a CUDA graph would be replayed without the interaction layers."""
    mode = compilation_config.cudagraph_mode
    if mode is not None and mode.mixed_mode().name == "FULL":
        yield (
            f"cudagraph_mode {mode.name} (--compilation-config): steps with prompts would replay a graph without the"
            " interaction layers. Use PIECEWISE, FULL_DECODE_ONLY or FULL_AND_PIECEWISE"
        )
    if mode is not None and mode.mixed_mode().name != "NONE" and envs.VLLM_USE_BREAKABLE_CUDAGRAPH:
        yield "VLLM_USE_BREAKABLE_CUDAGRAPH=1 captures the interaction layers in CUDA graphs. Set it to 0"


def turn_off_defaults(vllm_config):
    """
    Turn off chunked prefill and prefix caching, and say so.

    Both are on by default, and vLLM has forgotten by now whether the user asked for them. vLLM's cache of processed
    images goes too: the plugin's processor does not use it, and the engine would only fill its memory.
    """
    scheduler, cache = vllm_config.scheduler_config, vllm_config.cache_config
    options = {"--enable-chunked-prefill": scheduler.enable_chunked_prefill}
    options["--enable-prefix-caching"] = cache.enable_prefix_caching
    if any(options.values()):
        names = " and ".join(name for name, is_on in options.items() if is_on)
        logger.info("FUSION: turned off %s (on by default in vLLM). %s.", names, ONE_PIECE)
    scheduler.enable_chunked_prefill = cache.enable_prefix_caching = False
    vllm_config.model_config.multimodal_config.mm_processor_cache_gb = 0


def fit_budgets(vllm_config):
    """Make room for the longest prompt in one step, which vLLM requires only where it knows that chunks are off."""
    scheduler, max_model_len = vllm_config.scheduler_config, vllm_config.model_config.max_model_len
    if scheduler.max_num_batched_tokens < max_model_len:
        logger.info(
            "FUSION: --max-num-batched-tokens is %d instead of %d, since a prompt of --max-model-len has to fit.",
            max_model_len,
            scheduler.max_num_batched_tokens,
        )
        scheduler.max_num_batched_tokens = max_model_len
    # All tokens of a prompt could be latents, and a prompt whose latents have no room would wait for ever.
    scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_encoder_input_tokens, max_model_len)
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, max_model_len)
