"""`fusion-vlm audit`: look for bias in training data."""

import argparse
import json
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError


DESCRIPTION = """\
Look for biases that let a model answer without seeing: in the questions and answers of any LLaVA JSON or `datasets`.

PATH is a .json, .jsonl or .parquet file or a folder (of `write_output`, of the Hub, of `save_to_disk`); all splits are
read. Types of questions are those that the set declares, else inferred from the text (English). Each turn is audited
alone: a model that reads earlier turns may find more. `--fail-on` may be repeated. What a threshold looks at:

    yes_no=LOW:HIGH        share of yes among yes/no answers; wider by 0.2 for questions that share a word
    max_letter=M           share of the commonest letter among answers to lettered options
    max_count=M            share of the commonest number among answers to "how many"
    majority=M             share of the commonest answer
    language_only_gain=M   accuracy of a language-only model, less the share of the commonest answer
    word_gain=M            share of an answer among questions with a word, less its share among all
    co_occurrence=M        normalized pointwise mutual information of an attribute and an object

Each is judged for every type of question and for the types in first, second, ... turns; yes_no and max_letter for all
questions together, too. It fails where the value is outside of the limit and chance does not explain it (a risk of 1 %
over all that a threshold judges). It is "not judged" where chance may explain it, and where fewer than 30 answers keep
the limit. The exit code is 1 if a threshold of --fail-on fails, or is named there and judged nowhere (`default` names
none); 2 if there is nothing to audit, or the report cannot be written.

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
        help="exit with code 1 if this threshold fails; `default` is all of them",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the language-only model (default: 0)")


def run(args: argparse.Namespace) -> int:
    from fusion_vlm.audit.audit import audit, read_rows
    from fusion_vlm.audit.report import NOT_JUDGED, parse_limits, plot

    try:
        limits = parse_limits(args.fail_on or ["default"])
        report = audit(read_rows(Path(args.path).expanduser()), limits, args.seed)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        if args.plot:
            plot(report, args.plot)
    except (ImportError, OSError, ValueError) as error:
        # Code 1 is that of a threshold that failed, which a script must not mix up with an audit that did not run.
        raise UsageError(str(error)) from error
    print(report.summary())
    named = {text.partition("=")[0].strip() for text in args.fail_on}
    unjudged = [name for name in limits if name in named and report.verdict(name) == NOT_JUDGED]
    if unjudged:
        print(
            f"\nNamed in --fail-on, but too few answers to show that it is kept: {', '.join(unjudged)}",
            file=sys.stderr,
        )
    return int(bool(args.fail_on and (report.failed or unjudged)))
