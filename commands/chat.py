"""`fusion-vlm chat`: a conversation in the terminal, or through a pipe."""

import argparse
import sys

from fusion_vlm.commands.model import check_grid_sizes, limit_new_tokens, load, process, read_image, user_message
from fusion_vlm.commands.options import add_generation_options, add_model_options


DESCRIPTION = """\
Talk about an image in the terminal; answers appear as they are written. A piped stdin works too: one message a line.
While you chat:
  /image FILE   take this image (a file or http(s) address) and begin a new conversation
  /reset        begin a new conversation, with the same image
  /quit         end (so does Ctrl-D)

example:
  fusion-vlm chat out/fusion-phi3.5-3b photo.jpg"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="a file or an http(s) address")
    add_generation_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace):
    """Read messages from stdin until it ends, and print the answers as they are written."""
    image = None if args.image is None else read_image(args.image)
    model, processor = load(args.model, dtype=args.dtype, device=args.device, four_bit=args.four_bit)
    grid_sizes = check_grid_sizes(model.config, args.latent_grid_size, args.image_grid_size)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  gives `input` line editing and a history

        print("/image FILE, /reset and /quit are commands.", file=sys.stderr)
    turns = []
    while (line := read_line(is_terminal)) is not None and line != "/quit":
        try:
            if line == "/reset":
                turns = []
            elif line.split()[:1] == ["/image"]:
                image, turns = read_image(line.removeprefix("/image").strip()), []
            elif line.startswith("/"):
                raise ValueError(f"There is no command {line.split()[0]}: /image FILE, /reset and /quit are.")
            elif line:
                # The image belongs to the first turn.
                turn = user_message(line, None if turns else image)
                reply = answer(model, processor, [*turns, turn], grid_sizes, args.max_new_tokens)
                turns += [turn, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]
        except ValueError as error:
            if not is_terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def read_line(is_terminal: bool) -> str | None:
    """The next line without surrounding space; None at the end of the input."""
    try:
        return input("> " if is_terminal else "").strip()
    except EOFError:
        return None


def answer(model, processor, messages: list[dict], grid_sizes: dict[str, int], max_new_tokens: int) -> str:
    """
    Answers the last message and prints the answer while it is written.

    Raises:
        ValueError: if the conversation has become too long for the model.
    """
    from transformers import TextStreamer

    inputs = process(processor, messages, grid_sizes).to(model.device)
    try:
        max_new_tokens = limit_new_tokens(model.config, inputs, max_new_tokens)
    except ValueError as error:
        raise ValueError(f"{error} Begin a new one with /reset.") from error
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
