"""`fusion-vlm chat`: a conversation in the terminal, or through a pipe."""

import argparse
import difflib
import os
import shlex
import stat
import sys

from fusion_vlm.commands.completion import complete_lines
from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.images import check_image, is_image_name, is_question, read_image, shorten, unquote
from fusion_vlm.commands.options import add_generation_options, add_model_options
from fusion_vlm.hub.bug_report import one_line
from fusion_vlm.hub.loading import build_user_message, check_grid_sizes, limit_new_tokens, load, process
from fusion_vlm.hub.names import find_fusion


COMMANDS = {
    "/image": "/image FILE   take this image (a file or an http(s) address) and begin a new conversation",
    "/reset": "/reset        begin a new conversation, with the same image",
    "/help": "/help         list the commands",
    "/quit": "/quit         end (so does Ctrl-D)",
}
HELP = "\n".join(f"  {line}" for line in COMMANDS.values())
# Names that other programs use, which are too different to be recognized as misspellings.
OTHER_NAMES = {"/exit": "/quit", "/bye": "/quit", "/q": "/quit", "/clear": "/reset", "/new": "/reset", "/?": "/help"}

DESCRIPTION = f"""\
Talk about an image in the terminal; answers appear as they are written. While you chat:
{HELP}

On a terminal, Ctrl-C stops an answer: what was written of it stays in the conversation. Tab completes commands and
paths, and a path may be quoted, as when a file is dropped on the terminal. An error ends nothing but the line.
A piped stdin works too: one message a line, and the first error ends the command.

example:
  fusion-vlm chat out/fusion-phi3.5-3b photo.jpg"""


class ChatError(ValueError):
    """A line that cannot be answered; the conversation is unchanged."""


class Chat:
    """
    A conversation about one image.

    Args:
        model (`FusionForConditionalGeneration`), processor (`FusionProcessor`)
        image (`PIL.Image.Image`, *optional*)
        grid_sizes (`dict[str, int]`): arguments for the processor.
        max_new_tokens (`int`): limit of one answer.
        is_terminal (`bool`): whether a person types: then Ctrl-C stops only the answer, and an image is acknowledged.
    """

    def __init__(self, model, processor, image, grid_sizes: dict[str, int], max_new_tokens: int, is_terminal: bool):
        self.model, self.processor, self.image = model, processor, image
        self.grid_sizes, self.max_new_tokens, self.is_terminal = grid_sizes, max_new_tokens, is_terminal
        self.turns: list[dict] = []

    def take(self, line: str):
        """
        Run a command, or answer a message.

        Raises:
            ValueError: if the command is unknown or fails, or if the message cannot be answered.
        """
        command, argument = (*line.split(None, 1), "")[:2]
        if command == "/image":
            if self.is_terminal:
                check_is_file(unquote(argument))
            self.image, self.turns = read_chat_image(argument), []
            if self.is_terminal:
                width, height = self.image.size
                print(f"(a new conversation, about an image of {width} x {height} pixels)", file=sys.stderr)
        elif command == "/reset":
            self.turns = []
            if self.is_terminal:
                print(
                    "(a new conversation)" if self.image is None else "(a new conversation, same image)",
                    file=sys.stderr,
                )
        elif command == "/help":
            print(HELP, file=sys.stderr)
        elif is_image_name(line):
            path = line if line == unquote(line) or line[:1] in "'\"" else shlex.quote(unquote(line))
            raise ChatError(f"{shorten(line)} is a file or an image, not a question. To talk about it: /image {path}")
        elif line.startswith("/"):
            raise ChatError(describe_unknown(command))
        else:
            self.answer(line)

    def answer(self, text: str):
        """Answer a message, print the answer while it is generated, and add both to the conversation."""
        turn = build_user_message(text, None if self.turns else self.image)  # the image belongs to the first turn
        written: list[str] = []
        try:
            reply = self.generate([*self.turns, turn], written)
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            print("\n(stopped)", file=sys.stderr)
            reply = "".join(written).strip()
            if not reply:  # a question without an answer would confuse the model
                return
        self.turns += [turn, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]

    def generate(self, messages: list[dict], written: list[str]) -> str:
        """
        Return the answer to the last message, and append each printed piece of it to `written`.

        Raises:
            ValueError: if the conversation has become too long for the model.
        """
        inputs = process(self.processor, messages, self.grid_sizes).to(self.model.device)
        try:
            max_new_tokens = limit_new_tokens(self.model.config, inputs, self.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{error} Begin a new one with /reset.") from error
        streamer = build_streamer(self.processor.tokenizer, written)
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": streamer}
        output = self.model.generate(**inputs, **options)
        return self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def build_streamer(tokenizer, written: list[str]):
    """Build a streamer that prints an answer word by word, and appends what it printed to `written`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False):
            super().on_finalized_text(text, stream_end)
            written.append(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def read_chat_image(argument: str):
    """
    Return the image that the argument of `/image` names.

    Raises:
        ValueError: if there is no image.
    """
    source = unquote(argument)
    if not source:
        raise ChatError("/image needs the name of a file, or an http(s) address: /image photo.jpg")
    if source == "-":
        raise ChatError("stdin is where your messages come from: name a file, or an http(s) address.")
    return read_image(source)


def check_is_file(source: str):
    """Check that a path is no pipe and no terminal: reading one waits for whoever writes to it."""
    path = os.path.expanduser(source)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # an address, or a name that the reader of images refuses
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ChatError(f"Cannot read an image from {shorten(source)}: it is a pipe or a device, not a file.")


def describe_unknown(command: str) -> str:
    """Return a message about an unknown command, with the command that may be meant."""
    name = command.lower()
    near = OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name, COMMANDS, n=1)), None)
    hint = f" Did you mean {near}?" if near else ""
    return f"There is no command {command[:100]}.{hint} /help lists the commands."


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="a file or an http(s) address")
    add_generation_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace):
    """Read messages from stdin until it ends, and print the answers as they are written."""
    if args.image is not None and is_question(args.image):
        raise UsageError(f"IMAGE is {shorten(args.image)}, which reads like a question: ask when the chat has begun.")
    if args.image is not None:
        check_image(args.image)
    find_fusion(args.model)
    image = None if args.image is None else read_chat_image(args.image)
    model, processor = load(args.model, dtype=args.dtype, device=args.device, four_bit=args.four_bit)
    grid_sizes = check_grid_sizes(model.config, args.latent_grid_size, args.image_grid_size)
    is_terminal = sys.stdin.isatty()
    chat = Chat(model, processor, image, grid_sizes, args.max_new_tokens, is_terminal)
    if is_terminal:
        talk(chat)
        return
    while not is_end(line := read_line("")):
        if line:
            chat.take(line)


def talk(chat: Chat):
    """Chat on a terminal until the input ends; an error ends only the line that caused it."""
    complete_lines(list(COMMANDS))
    print("/image FILE, /reset, /help and /quit are commands; Ctrl-C stops an answer.", file=sys.stderr)
    is_open = True
    while is_open:
        try:
            is_open = take_line(chat)
        except KeyboardInterrupt:
            print("\n(To leave: Ctrl-D or /quit.)", file=sys.stderr)


def take_line(chat: Chat) -> bool:
    """Read a line of a terminal, run or answer it, and return whether the chat continues."""
    line = read_line("> ")
    if line is None:
        print(file=sys.stderr)  # the shell's prompt begins a line
    if is_end(line):
        return False
    try:
        if line:
            chat.take(line)
    except KeyboardInterrupt:  # while an image was fetched, for example
        print("\n(stopped)", file=sys.stderr)
    except BrokenPipeError:
        raise  # the reader of the answers is gone, so the chat ends
    except Exception as error:  # decoders of images and GPUs raise errors of all kinds
        print(f"error: {one_line(error)}", file=sys.stderr)
    return True


def is_end(line: str | None) -> bool:
    """Return whether a line, or the end of the input, ends the chat."""
    return line is None or line.split(None, 1)[:1] == ["/quit"]


def read_line(prompt: str) -> str | None:
    """Return the next line without surrounding space; None at the end of the input."""
    if prompt and not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)  # `input` would write it among the answers
        prompt = ""
    try:
        return input(prompt).strip()
    except EOFError:
        return None
