"""
All names of vLLM that are no documented extension point, with what breaks if a release moves or changes them.

* `MODELS_CONFIG_MAP`, `VerifyAndUpdateConfig`: checks of settings before the engine starts. Without them, vLLM serves
  FUSION with chunked prefill and prefix caching, which are both wrong without an error.
* `RENDERER_REGISTRY`, `HfRenderer`, `TokenizerRegistry`: requests are read as everywhere in this package, and checked.
  Without them, text-only prompts keep one latent token for each question, and a prompt without a question end reaches
  the model, where it ends the engine. vLLM chooses a renderer by the name of the tokenizer mode, so the plain
  tokenizer is registered under the plugin's name too.
* `direct_register_custom_op`, `get_forward_context`, `static_forward_context`: the operator of the interaction layers,
  and how it finds its model. torch.compile would trace a plain hook while there are no latents, and drop it.

What else has an underscore or a fixed place, and fails loudly at the start: the hooks `_get_mm_fields_config` and
`_get_prompt_updates` and the helper `_get_dummy_images`, which vLLM documents for new models; the names of settings
that settings.py reads; the two modules that launch.py starts. The rest of the plugin uses public interfaces only:
`ModelRegistry`, `MULTIMODAL_REGISTRY`, `SupportsMultiModal`, `BaseMultiModalProcessor` and its companions, the linear
layers, the weight loader's utilities and `vllm.inputs`.
"""

from vllm.forward_context import get_forward_context
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.renderers.hf import HfRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry
from vllm.utils.torch_utils import direct_register_custom_op


__all__ = [
    "MODELS_CONFIG_MAP",
    "RENDERER_REGISTRY",
    "HfRenderer",
    "TokenizerRegistry",
    "VerifyAndUpdateConfig",
    "direct_register_custom_op",
    "find_layer",
    "register_layer",
]


def register_layer(vllm_config, name: str, module):
    """Make `module` known to operators under `name`; attention layers register themselves there too."""
    vllm_config.compilation_config.static_forward_context[name] = module


def find_layer(name: str):
    """Return what `register_layer` registered, in the forward that runs now."""
    return get_forward_context().no_compile_layers[name]
