"""`fusion-vlm evaluate`: measure a model on the benchmarks of the paper, or on tasks of one's own."""

import argparse
import sys
from pathlib import Path

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.options import DTYPES, positive


DESCRIPTION = """\
Measure a model on the benchmarks of the paper with lmms-eval, and print the scores beside the authors', with the
differences of the protocol. Results are written after each task: the same command resumes an interrupted run. A
benchmark that gives no result is reported, the others are measured, and the exit code is 1.

examples:
  fusion-vlm evaluate out/fusion-phi3.5-3b --benchmarks POPE MME_P --dtype float16 --output out/evaluation
  fusion-vlm evaluate out/mine --include-path my_tasks --tasks my_task --output out/evaluation-mine"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="a converted folder, or the id of a Hub repository")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="folder for results and answers")
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        default=[],
        help="columns of the paper's table, such as POPE, or all (default, unless --tasks is given)",
    )
    what.add_argument("--tasks", nargs="+", metavar="TASK", default=[], help="tasks of lmms-eval by their own names")
    what.add_argument("--include-path", metavar="DIR", type=Path, help="folder with tasks of your own (YAML)")
    what.add_argument("--limit", type=positive, metavar="N", help="ask the first N questions of each task only")
    add_model_arguments(parser.add_argument_group("the model"))
    judge = parser.add_argument_group(
        "the judge of MM-Vet, LLaVA_W and MathVista; its key is read from OPENAI_API_KEY"
    )
    judge.add_argument("--judge", metavar="URL", help="base of any OpenAI-compatible API, http://127.0.0.1:8000/v1")
    judge.add_argument("--judge-model", metavar="NAME", help="name of the model there")
    parser.add_argument(
        "--write-card", action="store_true", help="add the scores to the model card of the folder MODEL, as yours"
    )


def add_model_arguments(group):
    """Add the options of how the model is loaded and asked."""
    group.add_argument("--batch-size", type=positive, default=8, help="questions at once (default: 8)")
    group.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="dtype of the weights; the authors': float16"
    )
    group.add_argument("--device", default="auto", help="such as cpu or cuda:1 (default: auto, a GPU if there is one)")
    group.add_argument("--load-in-4bit", action="store_true", help="load the decoder in 4 bits (bitsandbytes)")
    latents = group.add_mutually_exclusive_group()
    latents.add_argument(
        "--latent-grid-size", type=positive, metavar="SIDE", help="side of a question's latent grid (default: 8)"
    )
    latents.add_argument(
        "--draw-latents", type=int, metavar="SEED", help="draw that side for each question, as the authors do"
    )


def check_arguments(args: argparse.Namespace):
    """Check options that depend on each other, before anything is imported."""
    if bool(args.judge) != bool(args.judge_model):
        raise UsageError("--judge URL and --judge-model NAME belong together: give both.")
    if args.write_card and args.limit:
        raise UsageError("--write-card needs all questions: leave --limit out.")
    if args.write_card and not Path(args.model).expanduser().is_dir():
        raise UsageError(f"--write-card needs a folder to write to, and {args.model} is none.")
    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"--output {args.output} is a file, expected a folder.")


def choose(args: argparse.Namespace) -> tuple[list, list[str]]:
    """Return the columns to measure, and the names of those that are left out for want of a judge."""
    from fusion_vlm.evaluation.columns import choose_columns, make_columns, read_columns

    names = args.benchmarks or ([] if args.tasks else ["all"])
    columns = choose_columns(names, read_columns())
    left_out = [column.name for column in columns if column.judge and not args.judge]
    measured = [column for column in columns if column.name not in left_out] + make_columns(args.tasks)
    if not measured:
        raise UsageError(
            f"{', '.join(left_out)}: a language model grades the answers. Name one with --judge and --judge-model."
        )
    return measured, left_out


def run(args: argparse.Namespace) -> int | None:
    check_arguments(args)
    columns, left_out = choose(args)
    from fusion_vlm.evaluation.judge import Judge, read_url
    from fusion_vlm.hub.names import find_fusion

    path = find_fusion(args.model)
    judge = Judge(read_url(args.judge), args.judge_model) if args.judge else None
    # Imports lmms-eval and torch, which take seconds; a wrong name has been refused by now.
    from fusion_vlm.evaluation.session import Session

    session = Session(
        path,
        columns,
        output=args.output,
        include_path=args.include_path,
        limit=args.limit,
        judge=judge,
        left_out=left_out,
    )
    try:
        rows = session.run(
            batch_size=args.batch_size,
            dtype=args.dtype,
            device=args.device,
            load_in_4bit=args.load_in_4bit,
            latent_grid_size=args.latent_grid_size,
            draw_latents=args.draw_latents,
        )
    except KeyboardInterrupt:
        print(f"Interrupted. The same command resumes: {args.output} has what is finished.", file=sys.stderr)
        raise
    print(session.print_report(rows))
    if args.write_card:
        print(f"Wrote {session.write_card(rows)}", file=sys.stderr)
    failed = [row.name for row in rows if row.problem]
    if failed:
        raise ValueError(f"no result for {len(failed)} of {len(rows)}: {', '.join(failed)}; the reasons are above")
    return None
