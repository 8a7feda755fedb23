"""
The command `fusion-vlm`: the table of its commands, and the only place for their errors and exit codes.

    fusion-vlm --help

A command is a module of this folder with `DESCRIPTION`, `add_arguments(parser)` and `run(args)`, which returns the
exit code, or None for 0. It is imported when it is called, and imports torch only in `run`, so that help texts and
wrong usage answer at once.
"""

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from types import ModuleType
from typing import NamedTuple

from fusion_vlm.commands.errors import EXIT_ERROR, EXIT_USAGE, UsageError
from fusion_vlm.hub.bug_report import describe_versions, one_line


EXIT_CLOSED_PIPE, EXIT_INTERRUPTED = 141, 130
DEBUG_VARIABLE = "HF_DEBUG"  # the Hub's own commands read it too


class Command(NamedTuple):
    """A row of the table. `extra` is the extra of the package that installs what the command needs."""

    summary: str
    extra: str | None = None


COMMANDS = {
    "convert": Command("make a folder of a released checkpoint", "convert"),
    "verify": Command("check a converted folder"),
    "ask": Command("answer questions about an image"),
    "chat": Command("talk about an image in the terminal"),
    "serve": Command("serve the OpenAI API", "serve"),
    "finetune": Command("fine-tune a model on a table of images, questions and answers", "train"),
    "evaluate": Command("measure a model on the paper's benchmarks with lmms-eval", "eval"),
    "card": Command("write the model card of a folder"),
    "check": Command("verify the data of a recipe before training", "train"),
    "cost": Command("print what training by a recipe takes", "train"),
    "train": Command("train by a recipe", "train"),
    "consolidate": Command("make a folder of a sharded training checkpoint", "train"),
    "synthesize": Command("make training data from language", "synthesis"),
    "synthesize view": Command("look at the samples of a run in a browser", "demo"),
    "synthesize push": Command("upload the output of a run to the Hub", "synthesis"),
    "audit": Command("look for bias in training data", "synthesis"),
}

DESCRIPTION = f"""\
FUSION vision-language models on the command line.

MODEL is a converted folder or the id of a Hub repository that holds one. Answers go to stdout, everything else to
stderr. Exit codes: 0 good, 1 an error (one line on stderr; with {DEBUG_VARIABLE}=1 a traceback too), 2 wrong usage,
130 interrupted with Ctrl-C."""


class ShowVersions(argparse.Action):
    """The action of `--version`."""

    def __call__(self, parser, *_):
        print(describe_versions())
        parser.exit()


def build_overview() -> argparse.ArgumentParser:
    """Build the parser of `fusion-vlm` without a command, which lists the commands and reports a wrong one."""
    rows = [f"  {name:17}{command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="fusion-vlm",
        description=DESCRIPTION,
        epilog="\n".join(["commands, each with --help:", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=ShowVersions, nargs=0, help="print the versions of fusion-vlm, transformers and torch"
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    return parser


def build_parser(name: str) -> argparse.ArgumentParser:
    """Build the parser of a command."""
    module = import_command(name)
    parser = argparse.ArgumentParser(
        prog=f"fusion-vlm {name}",
        description=module.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def import_command(name: str) -> ModuleType:
    """Return the module of a command."""
    return importlib.import_module(f"fusion_vlm.commands.{name.replace(' ', '_')}")


def split_command(argv: list[str]) -> tuple[str, list[str]]:
    """Split a command line into the command, which may have two words, and the rest."""
    for num_words in (2, 1):
        if (name := " ".join(argv[:num_words])) in COMMANDS:
            return name, argv[num_words:]
    return "", argv


def run_command(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    name, rest = split_command(argv)
    if not name:
        overview = build_overview()
        if argv and not argv[0].startswith("-"):
            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(COMMANDS)}."
            overview.error(f"there is no command {argv[0]!r}. {hint}")
        overview.parse_args(argv)  # exits: with the help or the version, or because there is no command
    # Intermixed, so that options may stand between the questions of `ask` and the overrides of a recipe.
    parse = getattr(import_command(name), "parse_arguments", argparse.ArgumentParser.parse_intermixed_args)
    args = parse(build_parser(name), rest)
    # At import it warns about kernels that it does not find, which tells users of the command line nothing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return import_command(name).run(args) or 0
    except ImportError as error:
        extra = COMMANDS[name].extra
        if extra is None or "pip install" in str(error):
            raise
        raise ImportError(f'{error}. What {name} needs comes with: pip install "fusion-vlm[{extra}]"') from error


def accept_interrupts():
    """Let SIGINT end the process even if a shell started it in the background, where SIGINT is ignored."""
    is_main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_closed_streams():
    """Open empty streams in place of those that a shell closed (`<&-`): Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the process ends


def main(argv: list[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv (`list[str]`, *optional*): arguments of the command line; defaults to those of the process.

    Returns:
        `int`: the exit code. Wrong usage raises `SystemExit` with code 2, as `argparse` does.
    """
    accept_interrupts()
    open_closed_streams()
    try:
        code = run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe (`... | head`). Python flushes stdout again at exit, which would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR
    return code


if __name__ == "__main__":
    sys.exit(main())
