"""`fusion-vlm serve`: the OpenAI API for one model."""

import argparse
import re

from fusion_vlm.commands.options import add_model_options, positive
from fusion_vlm.hub.names import find_fusion


DESCRIPTION = """\
Serve a model with the OpenAI API: POST /v1/chat/completions (text and one image, streaming or not), GET /v1/models.
The engine is that of `transformers serve`. Needs: pip install "fusion-vlm[serve]"

example:
  fusion-vlm serve out/fusion-phi3.5-3b --port 8000
  curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{"model": "fusion-phi3.5-3b", "messages": [{"role": "user", "content": "Hello!"}]}'

An image is sent inside the request, as {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}}, in
the first user message. The request fields `latent_grid_size` and `image_grid_size` choose FUSION's sizes.

What it does not do: it answers one request at a time, the others wait (no continuous batching, no prefix cache: the
latent tokens at the start of a FUSION prompt depend on its end); it fetches no addresses and reads no files for a
request; no tools, JSON schemas, log probabilities or more than one choice. A field of a request that asks for one of
these is refused; the values that change nothing ("tools": [], "n": 1, ...) are accepted.

Each request is one line on stderr: client, method, path, status, seconds, tokens of prompt and answer. Status 499 is a
client that left. GET /health, /metrics (Prometheus), /version. No TLS: put a proxy in front if others can reach it."""


def origin(text: str) -> str:
    """Parse an origin, in the form in which browsers send it."""
    value = text.rstrip("/").lower()
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", value):
        raise argparse.ArgumentTypeError(f"expected an origin such as http://localhost:3000, or '*', got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
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


def run(args: argparse.Namespace):
    model = find_fusion(args.model)
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
