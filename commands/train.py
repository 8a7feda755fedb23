"""`fusion-vlm train`: train by a recipe."""

import argparse
import sys
import traceback

from fusion_vlm.commands.errors import EXIT_ERROR
from fusion_vlm.commands.options import add_recipe, find_recipe


DESCRIPTION = """\
Train a FUSION by a recipe, on one process or many, and write a folder that loads like any other. A run that was
interrupted continues from its last checkpoint when it is started again. What a recipe costs: fusion-vlm cost.

examples:
  fusion-vlm train training/recipes/stage1.yaml training.learning_rate=1e-5 data.image_folder=/data
  accelerate launch --config_file training/recipes/launch/fsdp2.yaml -m fusion_vlm.training.train RECIPE"""


def add_arguments(parser: argparse.ArgumentParser):
    add_recipe(parser)


def run(args: argparse.Namespace) -> int | None:
    recipe = find_recipe(args)
    import torch

    from fusion_vlm.training.build import check_arguments
    from fusion_vlm.training.train import train

    try:
        check_arguments(recipe)
        train(recipe)
    except RuntimeError:
        # A run of days on many GPUs cannot be repeated to see where it failed.
        traceback.print_exc()
        print("error: the training failed; the traceback is above", file=sys.stderr)
        return EXIT_ERROR
    finally:
        # The threads of a process group may abort the process at its end.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return None
