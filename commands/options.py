"""Options that commands share. Nothing here imports torch."""

import argparse
from pathlib import Path

from fusion_vlm.training.recipe import Recipe, check_models, read_recipe


# convert_checkpoints.py, which imports torch, has these names too; tests/commands/test_main.py compares them.
DTYPES = ("float32", "float16", "bfloat16")


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def add_generation_options(parser: argparse.ArgumentParser):
    """Add the options of commands that generate answers."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=256, help="longest answer, in tokens (default: 256)"
    )
    parser.add_argument(
        "--latent-grid-size", type=positive, metavar="SIDE", help="side of a question's latent grid (default: 8)"
    )
    parser.add_argument(
        "--image-grid-size", type=positive, metavar="SIDE", help="side of the grid of image tokens; 16 is FUSION-L"
    )


def add_model_options(parser: argparse.ArgumentParser):
    """Add the options of commands that load a model."""
    parser.add_argument(
        "--4bit", dest="four_bit", action="store_true", help="load the decoder in 4 bits (bitsandbytes)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="dtype of the weights (default: auto, as they are stored)",
    )
    parser.add_argument(
        "--device", default="auto", help="such as cpu or cuda:1 (default: auto, a GPU if there is one)"
    )


def add_recipe(parser: argparse.ArgumentParser):
    """Add the arguments of commands that read a recipe."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as training/recipes/stage1.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override the recipe, such as training.learning_rate=1e-5"
    )


def find_recipe(args: argparse.Namespace, needs_model: bool = True) -> Recipe:
    """
    Return the recipe of a command, checked before torch is imported.

    Args:
        needs_model (`bool`): whether the folders of its `model` have to be there, which an earlier stage may write.

    Raises:
        ValueError: if there is no such file or folder, or if the recipe or its overrides cannot be read.
    """
    path = Path(args.recipe).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}: expected a YAML file.")
    recipe = read_recipe(path, args.overrides)
    if needs_model:
        check_models(recipe)
    return recipe
