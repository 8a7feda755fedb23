"""`fusion-vlm synthesize`: make training data from language."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.hub.names import resolve
from fusion_vlm.synthesis.kinds.weights import parse_weights
from fusion_vlm.synthesis.names import KINDS, STAGES


DTYPES = ("bfloat16", "float16", "float32")
DESCRIPTION = """\
Make training data from language: images, questions and answers.

examples:
  fusion-vlm synthesize --num 1000 --output DIR --seed 1
  fusion-vlm synthesize --num 1000 --output DIR --captions FILE \\
      --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

  fusion-vlm synthesize --stage descriptions --output D1 --captions FILE --llm URL --model NAME
  fusion-vlm synthesize --stage images --output D2 --input D1 --images flux
  fusion-vlm synthesize --stage questions --output D3 --input D2 --llm URL --model NAME

The first command draws scenes with Pillow and writes exact questions and answers, without any model. In the second, a
language model behind an OpenAI-compatible endpoint (key in OPENAI_API_KEY) writes, and FLUX or another endpoint draws.
The last three make the same in three steps, each with the models that it needs; each can begin from rows of your own.
`fusion-vlm synthesize view DIR` shows the samples, `fusion-vlm synthesize push DIR REPO` uploads them.
Give the same command again to resume a run that was stopped or killed. Machines that see the folder share a run: give
each the same command, and `--task I --num-tasks N`, with I from 0, so that each begins at another place."""


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("data").add_argument
    add("--num", type=int, metavar="N", help="number of samples to begin; filters may reject some (default: all rows)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the run and of its output")
    add("--seed", type=int, default=0, help="seed of all random draws (default: 0)")
    kinds_help = f"take in turn, KIND=2 twice as often: {', '.join(KINDS)} (default: all that the models can make)"
    add("--kinds", nargs="+", metavar="KIND", help=kinds_help)
    add(
        "--captions",
        metavar="PATH",
        help="text, JSON, CSV or parquet, also compressed or a pattern such as '*.txt.gz'; a folder; or a data set of"
        " the Hub (default: random scenes)",
    )
    add("--caption-column", default="caption", metavar="NAME", help="column of the captions (default: caption)")
    add("--caption-split", default="train", metavar="NAME", help="split of a folder or Hub data set (default: train)")
    add(
        "--caption-bound",
        type=parse_bound,
        action="append",
        default=[],
        metavar="RULE=LOW:HIGH",
        help="change a rule for captions and descriptions, such as special_characters=0.1: (default: the paper's)",
    )
    _add_stage_arguments(parser)
    _add_model_arguments(parser)
    _add_filter_arguments(parser)
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


def _add_stage_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("stages that stand alone").add_argument
    add(
        "--stage",
        nargs="+",
        default=STAGES,
        metavar="STAGE",
        help=f"{', '.join(STAGES)}: one, or some that follow each other (default: all); or filter",
    )
    add("--input", metavar="PATH", help="rows of the first stage, in the forms of --captions, or the output of a run")
    add("--description-column", default="description", metavar="NAME", help="of texts, or of a conversation's answers")
    add("--image-column", metavar="NAME", help="of images or their paths (default: image or images)")
    add("--conversation-column", metavar="NAME", help="for filter (default: messages or conversations)")
    add("--image-folder", metavar="DIR", help="where paths of images begin (default: beside the input, or in images/)")


def _add_output_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("output").add_argument
    formats = ("webp", "jpeg", "png")
    add("--image-format", choices=formats, help="default: webp without loss for drawn scenes, jpeg else")
    add("--license", metavar="ID", help="license of the set in its card, such as cc-by-4.0 (default: other)")
    add("--format", default="parquet", choices=("parquet", "webdataset"), help="of the shards (default: parquet)")
    add(
        "--llava",
        action=argparse.BooleanOptionalAction,
        help="write train.json and images/, too (default: for 10,000 samples or fewer)",
    )


def _add_filter_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("filters").add_argument
    add(
        "--filter",
        action="append",
        default=[],
        metavar="NAME[=ARGUMENT]",
        help="a filter that runs last; may be repeated: personal_data[=ENTITIES] (Presidio), unsafe_images=CLASSIFIER,"
        " or one of yours, module:Class",
    )
    add(
        "--min-image-distance",
        type=int,
        metavar="BITS",
        help="reject an image whose hash differs in fewer of 64 bits from an earlier one of its part",
    )


def _add_model_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("models").add_argument
    add("--llm", metavar="URL", help="OpenAI-compatible endpoint of the writing model, such as http://host:8000/v1")
    add("--model", metavar="NAME", help="name of that model at the endpoint")
    add("--rewrite", action="store_true", help="have the model reword exact questions and answers, and nothing else")
    add("--judge-model", metavar="NAME", help="model that checks the answers against the description")
    add("--judge-llm", metavar="URL", help="endpoint of the judge (default: that of --llm)")
    add(
        "--judge-sees-image",
        nargs="?",
        const="",
        metavar="NAME",
        help="vision-language model that checks the answers against the image (default: --judge-model)",
    )
    add("--image-judge-llm", metavar="URL", help="endpoint of that model (default: that of the judge)")
    add(
        "--plant-errors",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="have copies of this share of the samples judged with a wrong answer, to measure what judges accept",
    )
    add("--temperature", type=float, default=0.7, help="of the language models (default: 0.7)")
    add("--max-tokens", type=int, default=1024, metavar="N", help="longest answer of a language model")
    add("--images", default="pillow", metavar="pillow|flux|URL", help="what draws; URL: /v1/images/generations")
    add("--image-model", metavar="NAME", help="model for flux (default: FLUX.1-dev) or at the URL")
    add("--image-size", type=int, metavar="PIXELS", help="side (default: 336 with pillow, 1024 else)")
    add("--image-steps", type=int, metavar="N", help="steps of flux (default: 50, and 4 for FLUX.1-schnell)")
    add("--image-guidance", type=float, metavar="X", help="guidance scale of flux (default: 3.5)")
    add("--image-dtype", default="bfloat16", choices=DTYPES, help="type of flux's weights (default: bfloat16)")
    add("--image-batch", type=int, default=1, metavar="N", help="images that flux draws at once (default: 1)")
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


def resolve_input(path: str) -> str:
    """Return a path with `~` expanded, or the name of a data set on the Hub; a pattern stays."""
    return os.path.expanduser(path) if any(letter in path for letter in "*?[") else resolve(path)


def check_options(args: argparse.Namespace):
    """Raise a UsageError for options that do not go together."""
    if args.num is None and not (args.captions or args.input):
        raise UsageError("--num is needed, unless --captions or --input has the rows")
    if unknown := [stage for stage in args.stage if stage not in (*STAGES, "filter")]:
        raise UsageError(f"--stage is {' '.join(unknown)}, expected {', '.join(STAGES)} or filter")
    if args.ray_address and args.runner != "ray":
        raise UsageError("--ray-address needs --runner ray")
    if (args.llm is None) != (args.model is None):
        raise UsageError("--llm and --model are given together")
    if args.judge_sees_image == "" and args.judge_model is None:
        raise UsageError("--judge-sees-image needs the name of a model, here or as --judge-model")
    if args.images.startswith("http") and args.image_model is None:
        raise UsageError("--images URL needs --image-model")
    if args.image_batch != 1 and (args.images != "flux" or not 1 <= args.image_batch <= args.concurrency):
        raise UsageError("--image-batch is for --images flux, from 1 to --concurrency")
    if args.images not in ("pillow", "flux") and not args.images.startswith(("http://", "https://")):
        raise UsageError(f"--images is {args.images!r}, expected pillow, flux or a URL")


def build_options(args: argparse.Namespace, num: int):
    """Build the `Options` of a run of so many samples."""
    # Late: see `run`.
    from fusion_vlm.synthesis.models.renderers import FLUX
    from fusion_vlm.synthesis.options import Options

    weights = parse_weights(args.kinds) if args.kinds else ()
    drawer = args.images if args.images in ("pillow", "flux") else "endpoint"
    given = {field.name: getattr(args, field.name, field.default) for field in dataclasses.fields(Options)}
    given |= {
        "num": num,
        "stages": tuple(args.stage),
        "kinds": tuple(kind for kind, _ in weights) or None,
        "weights": tuple(weight for _, weight in weights),
        "caption_bounds": tuple(args.caption_bound),
        "images": drawer,
        "image_model": args.image_model or (FLUX if drawer == "flux" else None),
        "image_size": args.image_size or (336 if drawer == "pillow" else 1024),
        "image_seed": not args.no_image_seed,
        "shard_format": args.format,
        "image_judge_model": args.judge_model if args.judge_sees_image == "" else args.judge_sees_image,
        "plant_share": args.plant_errors,
        "filters": tuple(args.filter),
    }
    return Options(**given)


def find_connections(args: argparse.Namespace):
    """Return the addresses of the models of a run, and how they are called."""
    from fusion_vlm.synthesis.connections import Connections  # late: see `run`

    names = ("concurrency", "timeout", "clip_device", "image_device", "image_batch")
    return Connections(
        llm=args.llm,
        judge=args.judge_llm,
        image_judge=args.image_judge_llm,
        images=None if args.images in ("pillow", "flux") else args.images,
        **{name: getattr(args, name) for name in names},
    )


def run(args: argparse.Namespace):
    check_options(args)
    args.captions, args.input = (path and resolve_input(path) for path in (args.captions, args.input))
    # Late: they need extras and import numpy, and help texts have to answer at once.
    from fusion_vlm.audit.card import audit_for_card
    from fusion_vlm.synthesis.card import set_license
    from fusion_vlm.synthesis.generate import generate
    from fusion_vlm.synthesis.output import read_counts, read_invalid_tokens
    from fusion_vlm.synthesis.report import Prices, describe_estimate, describe_summary
    from fusion_vlm.synthesis.run_folder import RunFolder
    from fusion_vlm.synthesis.sources.source import prepare_rows

    output = args.output.expanduser()
    options = build_options(args, args.num or 1)
    if args.num is None:
        folder = RunFolder(output, 1)
        folder.check()
        options = build_options(args, folder.read_num() or prepare_rows(options, output, None))
    prices = Prices(args.price_in, args.price_out, args.price_image)
    folder = RunFolder(output, options.num, args.task, args.num_tasks)
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
            find_connections(args),
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
    if args.license:
        set_license(folder.path, args.license)
    counts = read_counts(folder)
    print(describe_summary(summary, counts.tokens, read_invalid_tokens(folder), prices))
    print(f"output: {folder.path}")
