"""`fusion-vlm cost`: what training by a recipe takes."""

import argparse
import sys

from fusion_vlm.commands.options import add_recipe, find_recipe


# A copy, since training/cost/memory.py imports torch; tests/commands/test_main.py compares both.
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp")

DESCRIPTION = """\
Print what training by a recipe costs before it runs: parameters, memory of each GPU, FLOPs and time. It needs no
weights, hardly any memory, and about half a minute for a model of 3B.

example:
  fusion-vlm cost training/recipes/stage2.yaml model.path=out/fusion-phi3.5-3b --gpus 8 --sharding zero2"""


class _FormerName(argparse.Action):
    """Takes a flag by its former name, with a warning; goes with the next release."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"warning: {option_string} is now --{self.dest}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def add_arguments(parser: argparse.ArgumentParser):
    add_recipe(parser)
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="number of GPUs (default: 8)")
    parser.add_argument("--sharding", choices=SHARDINGS, help="how the GPUs share the model (default: all)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of an epoch (default: those of the recipe's data)")
    parser.add_argument(
        "--tokens-per-row", type=int, metavar="N", help="tokens of text (default: the mean of the recipe's data)"
    )
    parser.add_argument(
        "--peak-tflops", type=float, default=989, metavar="X", help="of one GPU (default: 989, H100 in dense bfloat16)"
    )
    parser.add_argument("--utilization", type=float, default=0.4, metavar="X", help="share of the peak (default: 0.4)")
    parser.add_argument(
        "--utilisation",
        dest="utilization",
        type=float,
        default=argparse.SUPPRESS,
        action=_FormerName,
        help=argparse.SUPPRESS,
    )


def run(args: argparse.Namespace):
    recipe = find_recipe(args)
    from fusion_vlm.training.build import check_arguments
    from fusion_vlm.training.cost.report import describe_cost

    check_arguments(recipe)
    text = describe_cost(
        recipe,
        gpus=args.gpus,
        sharding=args.sharding,
        num_rows=args.rows,
        text_tokens=args.tokens_per_row,
        peak_tflops=args.peak_tflops,
        utilization=args.utilization,
    )
    print(text)
