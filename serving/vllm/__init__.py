"""
FUSION on vLLM: continuous batching and vLLM's OpenAI server, as a plugin of vLLM.

vLLM finds `register` by the entry point group `vllm.general_plugins` and calls it in each of its processes. The
files, in the order to read them:

    settings.py     what vLLM may do with FUSION: checked, and defaults changed, before the engine starts
    renderer.py     a request becomes a prompt, or is refused
    processor.py    a prompt becomes tokens and an item
    model.py        an item becomes rows, which act in the decoder
    internals.py    every name of vLLM that is no documented extension point

Importing this package imports neither vLLM nor torch.
"""

import logging


# The releases of vLLM that tests/serving/vllm runs on, lowest and newest.
TESTED_RELEASES = ("0.32", "0.33")

ARCHITECTURE = "FusionForConditionalGeneration"

logger = logging.getLogger("vllm.fusion")  # below vLLM's logger, so that messages reach its handlers


def register():
    """
    Register FUSION's model, configuration and renderer with vLLM.

    vLLM calls all plugins, whatever model it serves, and an exception here would end every engine. So a plugin that
    cannot work says so in one line, and registers nothing.
    """
    try:
        from fusion_vlm.serving.vllm.settings import install
    except ImportError as error:
        logger.warning("FUSION's plugin is off: %s", " ".join(str(error).split()))
        return
    install()


def describe_tested_releases() -> str:
    """Return the releases of vLLM that this version was tested with, for messages."""
    lowest, newest = TESTED_RELEASES
    return lowest if lowest == newest else f"{lowest} to {newest}"
