"""`fusion-vlm synthesize`: make training data from language."""

import argparse
import os
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.hub.names import resolve
from fusion_vlm.synthesis.kinds.table import KINDS
from fusion_vlm.synthesis.kinds.weights import parse_weights


DESCRIPTION = """\
Make training data from language: images, questions and answers.

examples:
  fusion-vlm synthesize --num 1000 --output DIR --seed 1
  fusion-vlm synthesize --num 1000 --output DIR --captions FILE \\
      --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

The first command draws scenes with Pillow and writes exact questions and answers, without any model. In the second, a
language model behind an OpenAI-compatible endpoint (key in OPENAI_API_KEY) writes, and FLUX or another endpoint draws.
Give the same command again to resume a run that was stopped or killed. Machines that see the folder share a run: give
each the same command, and `--task I --num-tasks N`, with I from 0, so that each begins at another place."""


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("data").add_argument
    add("--num", type=int, required=True, metavar="N", help="number of samples to begin; filters may reject some")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the run and of its output")
    add("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    kinds_help = f"take in turn, KIND=2 twice as often: {', '.join(KINDS)} (default: all that the models can make)"
    add("--kinds", nargs="+", metavar="KIND", help=kinds_help)
    add("--captions", metavar="FILE", help=".txt, .jsonl, .parquet or a Hub data set (default: random scenes)")
    add("--caption-column", default="caption", metavar="NAME", help="column of the captions (default: caption)")
    add("--caption-split", default="train", metavar="NAME", help="split of a Hub data set (default: train)")
    add(
        "--caption-bound",
        type=parse_bound,
        action="append",
        default=[],
        metavar="RULE=LOW:HIGH",
        help="change a rule for captions and descriptions, such as special_characters=0.1: (default: the paper's)",
    )
    _add_model_arguments(parser)
    _add_output_arguments(parser)
    add = parser.add_argument_group("speed").add_argument
    add("--runner", default="local", choices=("local", "ray"), help="what makes the parts of the run (default: local)")
    add("--ray-address", metavar="HOST:PORT", help="cluster for --runner ray (default: Ray on this machine)")
    add("--num-workers", type=int, metavar="N", help="most processes, or parts on Ray (default: one a core)")
    add("--concurrency", type=int, default=8, metavar="N", help="calls in flight at an endpoint; a kill repeats them")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="for an answer of the language model")
    add("--task", type=int, default=0, metavar="I", help="index of this task, from 0: where it begins")
    add("--num-tasks", type=int, default=1, metavar="N", help="number of tasks that share the run")
    add(
        "--retry-rejected",
        nargs="*",
        metavar="RULE",
        help="retry rejects of these rules, such as ask/timeout or http_* (default: all whose cause may have passed)",
    )
    add = parser.add_argument_group("cost").add_argument
    add("--price-in", type=float, metavar="X", help="price of a million tokens read")
    add("--price-out", type=float, metavar="X", help="price of a million tokens written")
    add("--price-image", type=float, metavar="X", help="price of an image")
    add("--dry-run", action="store_true", help="print the estimate and stop")


def _add_output_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("output").add_argument
    formats = ("webp", "jpeg", "png")
    add("--image-format", choices=formats, help="default: webp without loss for drawn scenes, jpeg else")
    add("--format", default="parquet", choices=("parquet", "webdataset"), help="of the shards (default: parquet)")
    add(
        "--llava",
        action=argparse.BooleanOptionalAction,
        help="write train.json and images/, too (default: for 10,000 samples or fewer)",
    )


def _add_model_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("models").add_argument
    add("--llm", metavar="URL", help="OpenAI-compatible endpoint of the writing model, such as http://host:8000/v1")
    add("--model", metavar="NAME", help="name of that model at the endpoint")
    add("--rewrite", action="store_true", help="have the model reword exact questions and answers, and nothing else")
    add("--judge-model", metavar="NAME", help="model that checks the answers")
    add("--judge-llm", metavar="URL", help="endpoint of the judge (default: that of --llm)")
    add("--temperature", type=float, default=0.7, help="of the language models (default: 0.7)")
    add("--max-tokens", type=int, default=1024, metavar="N", help="longest answer of a language model")
    add("--images", default="pillow", metavar="pillow|flux|URL", help="what draws; URL: /v1/images/generations")
    add("--image-model", metavar="NAME", help="model for flux (default: FLUX.1-dev) or at the URL")
    add("--image-size", type=int, metavar="PIXELS", help="side (default: 336 with pillow, 1024 else)")
    add("--image-steps", type=int, metavar="N", help="steps of flux (default: 50; 4 for FLUX.1-schnell)")
    add("--image-guidance", type=float, metavar="X", help="guidance scale of flux (default: 3.5)")
    add("--image-device", default="cuda", metavar="DEVICE", help="device of flux (default: cuda)")
    add("--no-image-seed", action="store_true", help="send no seed to the URL, for servers that refuse it")
    add("--clip-model", metavar="NAME", help="CLIP that scores images and answers")
    add("--clip-device", default="cpu", metavar="DEVICE", help="device of CLIP (default: cpu)")
    add("--min-image-score", type=float, metavar="X", help="reject images with a lower score of CLIP")
    add("--min-statement-score", type=float, metavar="X", help="reject answers with a lower score of CLIP")


def parse_bound(text: str) -> tuple[str, float | None, float | None]:
    """Parse RULE=LOW:HIGH; an empty LOW or HIGH is no bound."""
    rule, _, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    if not rule or not colon:
        raise argparse.ArgumentTypeError(f"expected RULE=LOW:HIGH, got {text!r}")
    return rule, float(low) if low else None, float(high) if high else None


def check_options(args: argparse.Namespace):
    """Raise a UsageError for options that do not go together."""
    if args.ray_address and args.runner != "ray":
        raise UsageError("--ray-address needs --runner ray")
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
    # Late: they need extras and import numpy, and help texts have to answer at once.
    from fusion_vlm.audit.card import audit_for_card
    from fusion_vlm.synthesis.connections import Connections
    from fusion_vlm.synthesis.generate import generate
    from fusion_vlm.synthesis.models.renderers import FLUX
    from fusion_vlm.synthesis.output import read_counts, read_invalid_tokens
    from fusion_vlm.synthesis.pipeline import Options
    from fusion_vlm.synthesis.report import Prices, describe_estimate, describe_summary
    from fusion_vlm.synthesis.run_folder import RunFolder

    weights = parse_weights(args.kinds) if args.kinds else ()
    drawer = args.images if args.images in ("pillow", "flux") else "endpoint"
    names = ("num", "seed", "captions", "caption_column", "caption_split", "model", "judge_model", "temperature")
    names += ("max_tokens", "image_steps", "image_guidance", "clip_model", "min_image_score", "min_statement_score")
    names += ("image_format", "llava", "rewrite")
    options = Options(
        **{name: getattr(args, name) for name in names},
        kinds=tuple(kind for kind, _ in weights) or None,
        weights=tuple(weight for _, weight in weights),
        caption_bounds=tuple(args.caption_bound),
        images=drawer,
        image_model=args.image_model or (FLUX if drawer == "flux" else None),
        image_size=args.image_size or (336 if drawer == "pillow" else 1024),
        image_seed=not args.no_image_seed,
        shard_format=args.format,
    )
    prices = Prices(args.price_in, args.price_out, args.price_image)
    address = args.images if drawer == "endpoint" else None
    connections = Connections(
        args.llm, args.judge_llm, address, args.concurrency, args.timeout, args.clip_device, args.image_device
    )
    folder = RunFolder(args.output.expanduser(), args.num, args.task, args.num_tasks)
    num_workers = args.num_workers
    if num_workers is None:
        num_workers = 0 if args.runner == "ray" else os.cpu_count() or 1
    print(describe_estimate(options, prices), flush=True)
    if args.dry_run:
        return
    try:
        summary = generate(
            options,
            folder,
            connections,
            num_workers,
            audit_for_card,
            retry_rejected=args.retry_rejected,
            runner=args.runner,
            ray_address=args.ray_address,
        )
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        raise
    if summary is None:
        num = len(folder.missing_parts())
        print(
            f"Other tasks make the last {num} parts; the task that ends last writes the output. If one dies, give the"
            " same command again."
        )
        return
    counts = read_counts(folder)
    print(describe_summary(summary, counts.tokens, read_invalid_tokens(folder), prices))
    print(f"output: {folder.path}")
