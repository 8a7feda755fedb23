"""`fusion-vlm serve`: the OpenAI API for one model."""

import argparse
import re
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.options import add_model_options, positive
from fusion_vlm.hub.names import download_config, find_fusion, read_config


DESCRIPTION = """\
Serve a model with the OpenAI API: POST /v1/chat/completions (text and one image, streaming or not), GET /v1/models.
The engine is that of `transformers serve`. Needs: pip install "fusion-vlm[serve]"

example:
  fusion-vlm serve out/fusion-phi3.5-3b --port 8000
  curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{"model": "fusion-phi3.5-3b", "messages": [{"role": "user", "content": "Hello!"}]}'

An image is sent inside the request, as {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}}, in
the first user message. The request fields `latent_grid_size` and `image_grid_size` choose FUSION's sizes.

--engine vllm runs vLLM's server instead, for many users at once: continuous batching, log probabilities, JSON schemas
and more. vLLM has to be installed, and any of its own options may follow MODEL. --engine auto takes vLLM where it is
installed, and says which engine runs. docs/serving.md compares the two.

What the transformers engine does not do: it answers one request at a time, the others wait (no continuous batching,
no prefix cache: the latent tokens at the start of a FUSION prompt depend on its end); it fetches no addresses and
reads no files for a request; no tools, JSON schemas, log probabilities or more than one choice. A field of a request
that asks for one of these is refused; the values that change nothing ("tools": [], "n": 1, ...) are accepted.

Each of its requests is one line on stderr: client, method, path, status, seconds, tokens of prompt and answer. Status
499 is a client that left. GET /health, /metrics (Prometheus), /version. No TLS: put a proxy in front if others can
reach it."""


def origin(text: str) -> str:
    """Parse an origin, in the form in which browsers send it."""
    value = text.rstrip("/").lower()
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", value):
        raise argparse.ArgumentTypeError(f"expected an origin such as http://localhost:3000, or '*', got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument(
        "--engine",
        choices=["transformers", "vllm", "auto"],
        default="transformers",
        help="what generates the answers (default: transformers, one request at a time)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)")
    parser.add_argument("--name", help="what requests call the model (default: the folder's name, or the Hub id)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=1024, help="longest answer, whatever is asked for (default: 1024)"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="clients have to send it, except to /health; better set in the environment variable FUSION_VLM_API_KEY,"
        " because others on the machine can see command lines",
    )
    parser.add_argument(
        "--cors",
        type=origin,
        nargs="+",
        metavar="ORIGIN",
        help="web pages that may use the server from a browser, such as http://localhost:3000; '*' is all of them",
    )
    add_model_options(parser)


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse a command line, on which options of vLLM may follow the model."""
    args, others = parser.parse_known_intermixed_args(argv)
    if others and args.engine == "transformers":
        parser.error(f"unrecognized arguments: {' '.join(others)} (options of vLLM need --engine vllm)")
    args.vllm_options = others
    return args


def choose_vllm(model: str, args: argparse.Namespace) -> bool:
    """
    Return whether vLLM is to answer, and say why not if that was left open.

    Raises:
        UsageError: if vLLM is asked for, or its options are, and it cannot be used.
    """
    from fusion_vlm.serving.vllm.launch import find_obstacle

    if args.engine == "transformers":
        return False
    obstacle = find_obstacle(model, args.four_bit)
    if obstacle is None:
        return True
    if args.engine == "vllm" or args.vllm_options:
        raise UsageError(f"{obstacle}.")
    print(f"Serving with the transformers engine: {obstacle}.", file=sys.stderr)
    return False


def find_dtype(model: str) -> str:
    """Return the dtype in which a model is stored. vLLM's own `auto` would round weights in float32."""
    config = read_config(model) if Path(model).is_dir() else download_config(model)
    return config.get("dtype") or "auto"


def run_vllm(model: str, args: argparse.Namespace):
    """Run vLLM's server, which takes the place of this process."""
    from fusion_vlm.serving.middleware import read_api_key
    from fusion_vlm.serving.vllm.launch import build_options, serve

    if args.device != "auto":
        raise UsageError("--device: vLLM's build decides about the device; choose a GPU with CUDA_VISIBLE_DEVICES.")
    options = build_options(
        name=args.name or (Path(model).resolve().name if Path(model).is_dir() else None),
        host=args.host,
        port=args.port,
        max_new_tokens=args.max_new_tokens,
        dtype=find_dtype(model) if args.dtype == "auto" else args.dtype,
        cors=args.cors,
    )
    serve(model, list(options), args.vllm_options, read_api_key(args.api_key))


def run(args: argparse.Namespace):
    model = find_fusion(args.model)
    if choose_vllm(model, args):
        run_vllm(model, args)
        return
    from fusion_vlm.serving.server import serve

    serve(
        model,
        name=args.name,
        host=args.host,
        port=args.port,
        max_new_tokens=args.max_new_tokens,
        api_key=args.api_key,
        cors=args.cors,
        dtype=args.dtype,
        device=args.device,
        four_bit=args.four_bit,
    )
