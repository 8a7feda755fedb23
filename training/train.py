"""
Trains a FUSION by a recipe, on one process or many, and writes a folder that loads like any other.

    fusion-vlm train RECIPE [key=value ...]
    accelerate launch --config_file training/recipes/launch/fsdp2.yaml -m fusion_vlm.training.train RECIPE

A run that was interrupted continues from its last checkpoint when it is started again. `key=value` overrides the
recipe: `training.learning_rate=1e-5`, `data.image_folder=/data`. What a recipe costs: `fusion-vlm cost`.
"""

import sys
from pathlib import Path

import yaml
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.training.build import build_arguments, build_model, build_processor
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.consolidate import find_reader, write_folder
from fusion_vlm.training.prepare import load_data
from fusion_vlm.training.recipe import Recipe
from fusion_vlm.training.trainer import FusionTrainer


RECIPE_NAME = "recipe.yaml"
# Prefixes of recipe keys that may change when a run is resumed.
MAY_CHANGE = tuple(
    f"training.{name}"
    for name in (
        "max_steps",
        "num_train_epochs",
        "per_device_",
        "output_dir",
        "logging_",
        "save_",
        "eval_",
        "dataloader_",
        "report_to",
        "disable_tqdm",
        "activation_checkpointing",
    )
)


def train(recipe: Recipe) -> FusionTrainer:
    """
    Train by a recipe, and return the trainer. A run that stopped is continued from its last checkpoint.

    Args:
        recipe (`Recipe`): from `load_recipe`.
    """
    trainer = build_trainer(recipe)
    arguments, model = trainer.args, trainer.model  # FSDP replaces the trainer's model by a wrapper
    checkpoint = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    if checkpoint is not None:
        check_same_run(recipe, Path(arguments.output_dir, RECIPE_NAME))
        num_steps = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step
        if 0 < arguments.max_steps <= num_steps:
            print(f"{arguments.output_dir} is finished: {num_steps} steps of {arguments.max_steps} (max_steps).")
            return trainer
        print(f"Continuing from {checkpoint}.")
    # All processes have to compare the old recipe before the first one overwrites it.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        write_start(trainer, recipe)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_model(trainer, model)
    trainer.save_state()
    return trainer


def build_trainer(recipe: Recipe) -> FusionTrainer:
    """
    Build the trainer of a recipe, with model, processor and data.

    Raises:
        ValueError: if the run would end without a model that can be saved.
    """
    arguments = build_arguments(recipe)
    # `Trainer` sets the seed later than the new parts are initialized.
    set_seed(arguments.seed)
    processor = build_processor(recipe)
    model = build_model(recipe, processor)
    collator = FusionDataCollator(
        processor,
        max_length=recipe.max_length,
        latent_grid_sizes=model.config.latent_grid_sizes,
        seed=arguments.seed,
    )
    trainer = FusionTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=load_data(recipe, "data", arguments, processor),
        eval_dataset=load_data(recipe, "eval_data", arguments, processor),
        processing_class=processor,
    )
    if trainer.is_fsdp_enabled and arguments.save_strategy == "no":
        raise ValueError("`training.save_strategy` is no: with FSDP the trained model comes from the last checkpoint.")
    return trainer


def write_start(trainer: FusionTrainer, recipe: Recipe):
    """Write the recipe, configs and processor: sharded checkpoints lack these, so `consolidate` reads them here."""
    output_dir = trainer.args.output_dir
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    Path(output_dir, RECIPE_NAME).write_text(yaml.safe_dump(recipe.content))
    trainer.model.config.save_pretrained(output_dir)
    trainer.model.generation_config.save_pretrained(output_dir)
    trainer.processing_class.save_pretrained(output_dir)


def check_same_run(recipe: Recipe, path: Path):
    """
    Check that a run was started with the same recipe, as far as it decides the result.

    How long the run trains, and how it is split over processes, logged and saved, may change.

    Args:
        path (`Path`): of the recipe that the run was started with.

    Raises:
        ValueError: if another value would decide the result.
    """
    if not path.is_file():
        return
    started, now = (flatten(content) for content in (yaml.safe_load(path.read_text()), recipe.content))
    differing = [key for key in started.keys() | now.keys() if started.get(key) != now.get(key)]
    differing = sorted(key for key in differing if not key.startswith(MAY_CHANGE))
    if differing:
        changes = ", ".join(f"{key} was {started.get(key)!r} and is {now.get(key)!r}" for key in differing)
        raise ValueError(
            f"{path.parent} holds checkpoints of another recipe: {changes}. Name another `training.output_dir`, or"
            " remove that one."
        )


def flatten(section: dict, prefix: str = "") -> dict:
    """Return `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat = {}
    for key, value in section.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def save_model(trainer: FusionTrainer, model: FusionForConditionalGeneration):
    """Write the trained model into the output folder of the run, as a folder that loads like any other."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model()
        return
    # `Trainer.save_model` writes nothing that loads of sharded weights. They are in the last checkpoint.
    checkpoint = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
    if trainer.is_world_process_zero():
        write_folder(
            find_reader(checkpoint)(),
            model.config,
            trainer.processing_class,
            trainer.args.output_dir,
            generation_config=model.generation_config,
        )


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
