"""`fusion-vlm synthesize`: make training data from language."""

import argparse
import os
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.hub.names import resolve
from fusion_vlm.synthesis.sample import KINDS


DESCRIPTION = """\
Make training data from language: images, questions and answers.

examples:
  fusion-vlm synthesize --num 1000 --output DIR --seed 1
  fusion-vlm synthesize --num 1000 --output DIR --captions FILE \\
      --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

The first draws scenes and says about them what is exactly true, with no model at all; the second has a language model
behind an OpenAI-compatible endpoint (key in OPENAI_API_KEY) write, and FLUX or another endpoint draw. A run that was
stopped or killed continues when the same command is given again. `--task I --num-tasks N` does a share of it: one for
each of N machines that see the folder."""


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("what").add_argument
    add("--num", type=int, required=True, metavar="N", help="samples that are begun; filters may reject some")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the run and of what comes out")
    add("--seed", type=int, default=0)
    add("--kinds", nargs="+", default=KINDS, metavar="KIND", help=f"in turn, of: {', '.join(KINDS)} (default: all)")
    add("--captions", metavar="FILE", help=".txt, .jsonl, .parquet or a Hub data set (default: the scene grammar)")
    add("--caption-column", default="caption", metavar="NAME")
    add = parser.add_argument_group("models").add_argument
    add(
        "--llm", metavar="URL", help="OpenAI-compatible endpoint of the model that writes, such as http://host:8000/v1"
    )
    add("--model", metavar="NAME", help="its name there")
    add("--judge-model", metavar="NAME", help="model that checks the answers")
    add("--judge-llm", metavar="URL", help="its endpoint (default: that of --llm)")
    add("--temperature", type=float, default=0.7)
    add("--max-tokens", type=int, default=1024, metavar="N", help="of an answer")
    add("--images", default="pillow", metavar="pillow|flux|URL", help="what draws; URL: /v1/images/generations")
    add("--image-model", metavar="NAME", help="for flux (default: FLUX.1-dev) or at the URL")
    add("--image-size", type=int, metavar="PIXELS", help="side (default: 336 with pillow, 1024 else)")
    add("--clip-model", metavar="NAME", help="CLIP that scores images and answers")
    add("--min-image-score", type=float, metavar="X")
    add("--min-statement-score", type=float, metavar="X")
    add = parser.add_argument_group("how").add_argument
    add("--num-workers", type=int, default=os.cpu_count(), metavar="N", help="processes that draw with pillow")
    add("--concurrency", type=int, default=8, metavar="N", help="calls in flight at an endpoint; a kill repeats them")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="for an answer of the language model")
    add("--task", type=int, default=0, metavar="I", help="the share of this machine, from 0")
    add("--num-tasks", type=int, default=1, metavar="N")
    add = parser.add_argument_group("cost").add_argument
    add("--price-in", type=float, metavar="X", help="of a million tokens read")
    add("--price-out", type=float, metavar="X", help="of a million tokens written")
    add("--price-image", type=float, metavar="X", help="of an image")
    add("--dry-run", action="store_true", help="print the estimate and stop")


def check_options(args: argparse.Namespace):
    """Raise a UsageError for options that do not go together."""
    if (args.llm is None) != (args.model is None):
        raise UsageError("--llm and --model are given together")
    if args.images.startswith("http") and args.image_model is None:
        raise UsageError("--images URL needs --image-model")
    if args.images not in ("pillow", "flux") and not args.images.startswith(("http://", "https://")):
        raise UsageError(f"--images is {args.images!r}, expected pillow, flux or a URL")


def run(args: argparse.Namespace):
    check_options(args)
    if args.captions and not args.captions.endswith((".txt", ".jsonl", ".parquet")):
        args.captions = resolve(args.captions)  # a folder, or a data set of the Hub
    from fusion_vlm.synthesis.engine import RunFolder
    from fusion_vlm.synthesis.generate import FLUX, Connections, count_all_tokens, generate
    from fusion_vlm.synthesis.pipeline import Options
    from fusion_vlm.synthesis.report import Prices, describe_estimate, describe_summary

    drawer = args.images if args.images in ("pillow", "flux") else "endpoint"
    names = ("num", "seed", "captions", "caption_column", "model", "judge_model", "temperature", "max_tokens")
    names += ("clip_model", "min_image_score", "min_statement_score")
    options = Options(
        **{name: getattr(args, name) for name in names},
        kinds=tuple(args.kinds),
        images=drawer,
        image_model=args.image_model or (FLUX if drawer == "flux" else None),
        image_size=args.image_size or (336 if drawer == "pillow" else 1024),
    )
    prices = Prices(args.price_in, args.price_out, args.price_image)
    address = args.images if drawer == "endpoint" else None
    connections = Connections(args.llm, args.judge_llm, address, args.concurrency, args.timeout)
    folder = RunFolder(args.output.expanduser(), args.num, args.task, args.num_tasks)
    print(describe_estimate(options, prices), flush=True)
    if args.dry_run:
        return
    try:
        summary = generate(options, folder, connections, args.num_workers)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        raise
    if summary is None:
        print(f"{folder.name} is through; {len(folder.missing_parts())} parts of other tasks are missing.")
        return
    print(describe_summary(summary, count_all_tokens(folder), count_all_tokens(folder, is_valid=False), prices))
    print(f"output: {folder.path}")
