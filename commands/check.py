"""`fusion-vlm check`: verify the data of a recipe."""

import argparse
import os

from fusion_vlm.commands.options import add_recipe, find_recipe


DESCRIPTION = """\
Check the data of a recipe before training: every row is read and every image decoded, in parallel processes. Prints
rows, lengths and tokens of each source, and the broken rows with file, line and id. Exits with 1 if there are broken
rows; with `on_error: skip`, if there are more of them than `max_errors`.

example:
  fusion-vlm check training/recipes/stage2.yaml data.image_folder=/data --report broken.jsonl"""


def add_arguments(parser: argparse.ArgumentParser):
    add_recipe(parser)
    parser.add_argument(
        "--processor", metavar="MODEL", help="folder or Hub id to count tokens with (default: the recipe's model.path)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one per CPU)"
    )
    parser.add_argument("--report", metavar="FILE", help="write all broken rows to this file, as JSON lines")


def run(args: argparse.Namespace) -> int:
    recipe = find_recipe(args, needs_model=False)
    from fusion_vlm.training.check import check_recipe

    passed = check_recipe(recipe, args.processor, args.num_workers, args.report)
    return 0 if passed else 1
