"""
The command `fusion-vlm`: convert released checkpoints, ask and chat on the command line, serve a model, write a card,
check a folder.

    fusion-vlm --help
"""

import argparse
import os
import re
import sys

from fusion_vlm.commands import finetune
from fusion_vlm.commands.interrupts import accept_interrupts


# Nothing here imports torch, so that help texts and wrong usage answer at once; each command imports it when it runs.
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 1, 130, 141

DESCRIPTION = """\
FUSION vision-language models on the command line.

MODEL is a converted folder or the id of a Hub repository that holds one. Answers go to stdout, everything else to
stderr. Exit codes: 0 good, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted with Ctrl-C."""

CONVERT = """\
Convert a released FUSION checkpoint to a folder that the other commands, and transformers, load.

example:
  fusion-vlm convert starriver030515/FUSION-Phi3.5-3B out/fusion-phi3.5-3b"""

ASK = """\
Ask one or more questions about an image. Prints the answers, and nothing else, on stdout, one after the other.
The likeliest answer is taken (no sampling), so that the same question gives the same answer.

examples:
  fusion-vlm ask out/fusion-phi3.5-3b photo.jpg "What is in the picture?"
  curl -s https://example.org/photo.jpg | fusion-vlm ask out/fusion-phi3.5-3b - "How many people are there?" > answer
  fusion-vlm ask --no-image out/fusion-phi3.5-3b "Name three primary colours." """

CHAT = """\
Talk about an image in the terminal; answers appear as they are written. A piped stdin works too: one message a line.
While you chat:
  /image FILE   take this image (a file or http(s) address) and begin a new conversation
  /reset        begin a new conversation, with the same image
  /quit         end (so does Ctrl-D)

example:
  fusion-vlm chat out/fusion-phi3.5-3b photo.jpg"""

SERVE = """\
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

CARD = """\
Write the model card of a folder: README.md as the Hub reads it, with images for the widget. `convert` does so by
itself; this is for folders that were trained, or moved. Only what is given here is claimed.

example:
  fusion-vlm card out/my-model --repo-id me/my-model --base-model starriver030515/FUSION-Phi3.5-3B --license mit"""

VERIFY = """\
Check a converted folder: the numbers in its tensors, how well its matrices fit each other, and its answers to
questions about bundled pictures, under several conditions. Prints a report to paste into an issue, and ends with PASS
(exit code 0) or with FAIL and the damaged part (exit code 1). docs/verify.md says what the check can see.

example:
  fusion-vlm verify out/fusion-phi3.5-3b"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusion-vlm", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, description: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    add("convert", CONVERT, "make a folder of a released checkpoint (--help lists its options)")

    ask = add("ask", ASK, "answer questions about an image")
    ask.add_argument("model", metavar="MODEL", help="folder or Hub id")
    ask.add_argument("image", metavar="IMAGE", help="a file, an http(s) address, or - for stdin")
    ask.add_argument("questions", metavar="QUESTION", nargs="*", help="what to ask; each is answered on its own")
    ask.add_argument("--no-image", action="store_true", help="ask without an image; leave IMAGE out")
    add_generation_options(ask)
    add_model_options(ask)

    chat = add("chat", CHAT, "talk about an image in the terminal")
    chat.add_argument("model", metavar="MODEL", help="folder or Hub id")
    chat.add_argument("image", metavar="IMAGE", nargs="?", help="a file or an http(s) address")
    add_generation_options(chat)
    add_model_options(chat)

    serve = add("serve", SERVE, "serve the OpenAI API")
    serve.add_argument("model", metavar="MODEL", help="folder or Hub id")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)")
    serve.add_argument("--name", help="what requests call the model (default: the folder's name, or the Hub id)")
    serve.add_argument(
        "--max-new-tokens", type=positive, default=1024, help="longest answer, whatever is asked for (default: 1024)"
    )
    serve.add_argument(
        "--api-key",
        metavar="KEY",
        help="clients have to send it, except to /health; better set in the environment variable FUSION_VLM_API_KEY,"
        " because others on the machine can see command lines",
    )
    serve.add_argument(
        "--cors",
        type=origin,
        nargs="+",
        metavar="ORIGIN",
        help="web pages that may use the server from a browser, such as http://localhost:3000; '*' is all of them",
    )
    add_model_options(serve)

    finetune.add_arguments(add("finetune", finetune.DESCRIPTION, finetune.SUMMARY))

    verify = add("verify", VERIFY, "check a converted folder")
    verify.add_argument("folder", metavar="FOLDER", help="a converted folder")
    verify.add_argument(
        "--device", default="auto", help="such as cpu or cuda:1 (default: auto, a GPU if there is one)"
    )
    verify.add_argument(
        "--trust-remote-code", action="store_true", help="load with the folder's own code, through the Auto classes"
    )
    verify.add_argument(
        "--time-limit",
        type=float,
        default=60,
        metavar="SECONDS",
        help="begin no further optional check after this time (default: 60)",
    )

    add_card_options(add("card", CARD, "write the model card of a folder"))
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def origin(text: str) -> str:
    value = text.rstrip("/").lower()  # as browsers send an origin
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", value):
        raise argparse.ArgumentTypeError(f"expected an origin such as http://localhost:3000, or '*', got {text!r}")
    return value


def add_generation_options(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--max-new-tokens", type=positive, default=256, help="longest answer, in tokens (default: 256)"
    )
    parser.add_argument(
        "--latent-grid-size", type=positive, metavar="SIDE", help="side of a question's latent grid (default: 8)"
    )
    parser.add_argument(
        "--image-grid-size", type=positive, metavar="SIDE", help="side of the grid of image tokens; 16 is FUSION-L"
    )


def add_model_options(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--4bit", dest="four_bit", action="store_true", help="load the decoder in 4 bits (bitsandbytes)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the weights (default: auto, as they are stored)",
    )
    parser.add_argument(
        "--device", default="auto", help="such as cpu or cuda:1 (default: auto, a GPU if there is one)"
    )


def add_card_options(parser: argparse.ArgumentParser):
    parser.add_argument("folder", metavar="FOLDER", help="a folder that loads")
    parser.add_argument("--repo-id", metavar="REPO", help="the Hub repository it is meant for, owner/name")
    parser.add_argument("--released", metavar="REPO", help="the authors' checkpoint that the weights are")
    parser.add_argument("--name", help="title (default: that of the repository, or of the folder)")
    parser.add_argument("--description", metavar="TEXT", help="a paragraph on what it was trained on, say")
    parser.add_argument("--base-model", metavar="REPO", nargs="+", help="what it was trained from")
    parser.add_argument("--license", metavar="ID", help="the Hub's id of the licence, such as apache-2.0")
    parser.add_argument("--license-link", metavar="URL")
    parser.add_argument("--datasets", metavar="REPO", nargs="+", help="what it was trained on")
    parser.add_argument("--results", metavar="FILE", help="YAML or JSON with evaluation results")
    parser.add_argument(
        "--examples", metavar="FILE", help="YAML or JSON with widget examples: image, question, answer"
    )


def run_command(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    if argv[:1] == ["convert"]:  # its options are its own
        from ..convert_checkpoints import main as convert

        sys.argv[0] = "fusion-vlm convert"  # the name in its usage
        convert(argv[1:])
        return 0
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "ask":
        from .ask import ask

        if args.no_image:
            args.image, args.questions = None, [args.image, *args.questions]
        if not args.questions:
            parser.error("ask needs a QUESTION after the IMAGE, or --no-image")
        ask(args)
    elif args.command == "chat":
        from .chat import chat

        chat(args)
    elif args.command == "serve":
        try:
            from .serve import serve
        except ImportError as error:
            raise ImportError(f'{error}. What the server needs comes with: pip install "fusion-vlm[serve]"') from error
        serve(args)
    elif args.command == "finetune":
        return finetune.run(args)
    elif args.command == "verify":
        from .verify import verify

        return verify(args)
    elif args.command == "card":
        from ..hub.card import write_card
        from .model import refuse_adapter

        refuse_adapter(args.folder)
        options = {name: value for name, value in vars(args).items() if name != "command"}
        print(f"Wrote {write_card(**options)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv (`list[str]`, *optional*): arguments of the command line; defaults to those of the process.

    Returns:
        `int`: the exit code. Wrong usage raises `SystemExit` with code 2, as `argparse` does.
    """
    accept_interrupts()
    try:
        code = run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who reads has had enough. Python flushes stdout once more at its end, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return EXIT_ERROR
    return code


if __name__ == "__main__":
    sys.exit(main())
