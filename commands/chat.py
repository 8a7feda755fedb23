"""`fusion-vlm chat`: a conversation in the terminal, or through a pipe."""

import argparse
import sys

from .model import check_grid_sizes, limit_new_tokens, load, process, read_image, user_message


def chat(args: argparse.Namespace):
    """Reads messages from stdin until it ends, and prints the answers as they are written."""
    image = None if args.image is None else read_image(args.image)
    model, processor = load(args)
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
