"""`fusion-vlm finetune`: train a model on a table of images, questions and answers."""

import argparse
import shlex
import sys

from fusion_vlm.commands.options import positive
from fusion_vlm.hub.names import find_fusion, refuse_adapter


DESCRIPTION = """\
Fine-tune a model on a table: CSV, TSV, JSON, JSON lines or parquet with a column of images (paths), one of questions
and one of answers, found by name. Checks all rows first, holds some out, trains LoRA adapters, prints loss and share
of right answers before and after, and writes a folder that `ask`, `chat`, `serve` and `from_pretrained` load.
Needs: pip install "fusion-vlm[train]". docs/finetune.md has a whole example.

examples:
  fusion-vlm finetune out/fusion-phi3.5-3b table.csv --output out/mine
  fusion-vlm finetune out/fusion-phi3.5-3b labels.csv --question "Which bird is it?" --output out/birds"""


def positive_float(text: str) -> float:
    """Convert an option to a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def share(text: str) -> float:
    """Convert an option to a share below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected 0 or more and less than 1, got {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a converted model")
    parser.add_argument("data", metavar="DATA", help="the table: .csv, .tsv, .json, .jsonl or .parquet")
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder for the result")

    table = parser.add_argument_group("table")
    table.add_argument("--image-column", metavar="NAME", help="column of images, if its name does not say so")
    table.add_argument("--question-column", metavar="NAME", help="column of questions")
    table.add_argument("--answer-column", metavar="NAME", help="column of answers")
    table.add_argument("--question", metavar="TEXT", help="the question of every row, for a table without questions")
    table.add_argument("--image-folder", metavar="DIR", help="where image paths begin (default: the table's folder)")
    table.add_argument("--skip-bad-rows", action="store_true", help="skip rows that cannot be used")
    table.add_argument("--eval-data", metavar="FILE", help="a table of held-out rows")
    table.add_argument(
        "--eval-share",
        type=share,
        metavar="SHARE",
        help="of the rows to hold out (default: 0.2 below 100 rows, else 0.1; 0 holds none out)",
    )

    training = parser.add_argument_group("training")
    method = training.add_mutually_exclusive_group()
    method.add_argument("--full", action="store_true", help="train all weights instead of LoRA adapters")
    method.add_argument("--qlora", action="store_true", help="LoRA on a decoder in 4 bits (bitsandbytes): less memory")
    training.add_argument("--adapter", action="store_true", help="write the adapter only, not merged weights")
    training.add_argument(
        "--epochs", type=positive, help="passes over the rows (default: 3, more for a small table, 30 at most)"
    )
    training.add_argument(
        "--learning-rate",
        type=positive_float,
        help="(default: by method and width; 2e-4 for LoRA and 2e-5 for --full at a decoder of width 3072)",
    )
    training.add_argument("--batch-size", type=positive, default=8, help="rows of a step (default: 8)")
    training.add_argument("--lora-rank", type=positive, default=16, help="(default: 16)")
    training.add_argument(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="longest row, image included (default: 4096, or what the model takes)",
    )
    training.add_argument("--seed", type=int, default=0, help="of the split and the training (default: 0)")
    training.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default: auto, a GPU if there is one)"
    )
    training.add_argument("--resume", action="store_true", help="continue the unfinished run in DIR, if there is one")


def run(args: argparse.Namespace) -> int:
    """Fine-tune as the options say, print the figures on stdout, and return the exit code."""
    model = find_fusion(args.model)
    refuse_adapter(model)
    quiet()
    from fusion_vlm.rows.table import BadRowsError, Columns
    from fusion_vlm.training.finetune import finetune
    from fusion_vlm.training.finetune.report import format_report

    options = vars(args)
    names = ("image_folder", "question", "eval_data", "eval_share", "skip_bad_rows", "adapter", "epochs")
    names += ("learning_rate", "batch_size", "lora_rank", "max_length", "seed", "device", "resume")
    try:
        report = finetune(
            model,
            args.data,
            args.output,
            method="full" if args.full else "qlora" if args.qlora else "lora",
            columns=Columns(args.image_column, args.question_column, args.answer_column),
            **{name: options[name] for name in names},
        )
    except BadRowsError as error:
        print(f"error: {error}\nMend these rows, or skip them with --skip-bad-rows.", file=sys.stderr)
        return 1
    print(format_report(report))
    folder = shlex.quote(args.output)
    print(
        f"\nWrote {folder}: the model, finetune.json and curves.png. Ask it: fusion-vlm ask {folder} IMAGE QUESTION",
        file=sys.stderr,
    )
    return 0


def quiet():
    """Silence loading bars and hints of libraries, which would bury the lines of the command."""
    import warnings
    from logging import ERROR, getLogger

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
