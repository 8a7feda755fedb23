"""`fusion-vlm audit`: look for bias in training data."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fusion_vlm.commands.errors import UsageError


DESCRIPTION = """\
Look for biases that let a model answer without seeing: in the questions and answers of any LLaVA JSON or `datasets`.

PATH is a .json, .jsonl or .parquet file or a folder (of `fusion-vlm synthesize`, of the Hub, of `save_to_disk`). All
splits are read. Types of questions are those that the set declares, else inferred from the text (English). Each turn
is audited alone, so a model that reads earlier turns may find more. The thresholds of `--fail-on`, which may be
repeated:

    yes_no=LOW:HIGH        share of yes among yes/no answers; limits are wider by 0.2 for questions that share a word
    max_letter=M           share of the most frequent letter among answers to lettered options
    max_count=M            share of the most frequent number among answers to "how many"
    majority=M             share of the most frequent answer
    language_only_gain=M   accuracy of a language-only model, less the share of the most frequent answer
    word_gain=M            share of an answer among questions with a word, less its share among all
    co_occurrence=M        normalized pointwise mutual information of an attribute and an object

Each threshold judges every type of question, and the type in first, second, ... turns; yes_no and max_letter also
judge all questions together. A threshold fails where the value is outside of the limit and chance does not explain it
(a risk of 1 % over all groups that it judges). It is "not judged" where chance may explain the value, and where fewer
than 30 answers are inside of the limit.

Exit codes: 1 if a threshold of --fail-on fails, or is named there and judged nowhere (`default` names none); 2 if
there is nothing to audit, or the report cannot be written.

example:
  fusion-vlm audit out/scenes --plot bias.png --fail-on default"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("path", metavar="PATH", help="file or folder of the data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the distributions, a PNG")
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="NAME[=LIMIT]",
        help="exit with code 1 if this threshold fails; `default`: all thresholds",
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="look for near-duplicate images, too, by perceptual hashes (a few milliseconds an image)",
    )
    parser.add_argument(
        "--image-folder", type=Path, metavar="DIR", help="images of a JSON file (default: images/ beside it)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the language-only model (default: 0)")


def run(args: argparse.Namespace) -> int:
    # Late: they import numpy, and help texts have to answer at once.
    from fusion_vlm.audit.audit import audit, read_rows
    from fusion_vlm.audit.images import audit_images
    from fusion_vlm.audit.report import NOT_JUDGED, plot
    from fusion_vlm.audit.thresholds import parse_limits

    try:
        limits = parse_limits(args.fail_on or ["default"])
        path = Path(args.path).expanduser()
        report = audit(read_rows(path), limits, args.seed)
        images = audit_images(path, args.image_folder) if args.images else None
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            content = report.to_dict() | ({"images": asdict(images)} if images else {})
            args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if args.plot:
            plot(report, args.plot)
    except (ImportError, OSError, ValueError) as error:
        # Not code 1: scripts have to tell a threshold that failed from an audit that did not run.
        raise UsageError(str(error)) from error
    print(report.summary())
    if images:
        print(f"\n{images.summary()}")
    named = {text.partition("=")[0].strip() for text in args.fail_on}
    unjudged = [name for name in limits if name in named and report.verdict(name) == NOT_JUDGED]
    if unjudged:
        print(
            f"\nNamed in --fail-on, but too few answers to show that it is kept: {', '.join(unjudged)}",
            file=sys.stderr,
        )
    return int(bool(args.fail_on and (report.failed or unjudged)))
