"""
Trains a FUSION as a recipe says, on one process or many, and writes a folder that loads like any other.

    fusion-vlm train RECIPE [key=value ...]
    accelerate launch --config_file training/recipes/launch/fsdp2.yaml -m fusion_vlm.training.train RECIPE

A run that was interrupted goes on from its last checkpoint when it is started again. `key=value` changes the recipe:
`training.learning_rate=1e-5`, `data.image_folder=/data`. What a recipe costs: `fusion-vlm cost`.
"""

import sys
from pathlib import Path

import yaml
from accelerate.utils import broadcast_object_list
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.build import build_arguments, build_model, build_processor
from fusion_vlm.training.check import mixture_seed, prepare_dataset
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.consolidate import find_reader, write_folder
from fusion_vlm.training.data import FusionDataset
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments


RECIPE_NAME = "recipe.yaml"
# Beginnings of the names of what may be another in a run that goes on.
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


def train(recipe: dict, folder: Path) -> FusionTrainer:
    """
    Runs a recipe.

    Args:
        recipe (`dict`): from `load_recipe`.
        folder (`Path`): where relative paths of the data begin.
    """
    arguments = build_arguments(recipe)
    # New parts are initialised before `Trainer` sets the seed.
    set_seed(arguments.seed)
    processor = build_processor(recipe)
    model = build_model(recipe, processor)
    collator = FusionDataCollator(
        processor,
        max_length=recipe["max_length"],
        latent_grid_sizes=model.config.latent_grid_sizes,
        seed=arguments.seed,
    )
    trainer = FusionTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=load_data(recipe, "data", folder, arguments, processor),
        eval_dataset=load_data(recipe, "eval_data", folder, arguments, processor),
        processing_class=processor,
    )
    if trainer.is_fsdp_enabled and arguments.save_strategy == "no":
        raise ValueError("`training.save_strategy` is no: with FSDP the trained model comes from the last checkpoint.")
    checkpoint = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    if checkpoint is not None:
        check_same_run(recipe, Path(arguments.output_dir, RECIPE_NAME))
        num_steps = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step
        if 0 < arguments.max_steps <= num_steps:
            print(f"{arguments.output_dir} is finished: {num_steps} steps of {arguments.max_steps} (max_steps).")
            return trainer
        print(f"Going on from {checkpoint}.")
    # Nobody is to read the recipe of before while it is written anew.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
        Path(arguments.output_dir, RECIPE_NAME).write_text(yaml.safe_dump(recipe))
        # With sharded weights a checkpoint has none of these; `consolidate` looks for them here.
        model.config.save_pretrained(arguments.output_dir)
        model.generation_config.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    save_model(trainer, model, processor)
    trainer.save_state()
    return trainer


def check_same_run(recipe: dict, path: Path):
    """
    Raises a ValueError if the recipe that a run was started with is another one in what decides the result. How long
    it trains, and how that is split over processes, logged and saved, may change.
    """
    if not path.is_file():
        return
    started, now = (flatten(one) for one in (yaml.safe_load(path.read_text()), recipe))
    differing = [key for key in started.keys() | now.keys() if started.get(key) != now.get(key)]
    differing = sorted(key for key in differing if not key.startswith(MAY_CHANGE))
    if differing:
        changes = ", ".join(f"{key} was {started.get(key)!r} and is {now.get(key)!r}" for key in differing)
        raise ValueError(
            f"{path.parent} holds checkpoints of another recipe: {changes}. Name another `training.output_dir`, or"
            " remove that one."
        )


def flatten(section: dict, prefix: str = "") -> dict:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat = {}
    for key, value in section.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def save_model(trainer: FusionTrainer, model: FusionForConditionalGeneration, processor: FusionProcessor):
    """Writes the trained model into the output folder of the run, as a folder that loads like any other."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model()
        return
    # Of sharded weights `Trainer.save_model` writes nothing that loads; they are in the last checkpoint.
    checkpoint = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
    if trainer.is_world_process_zero():
        weights = find_reader(checkpoint)()
        write_folder(
            weights, model.config, processor, trainer.args.output_dir, generation_config=model.generation_config
        )


def load_data(
    recipe: dict, section: str, folder: Path, arguments: FusionTrainingArguments, processor: FusionProcessor
) -> FusionDataset | None:
    """The rows of a section; the first process looks for them and, if broken ones may be left out, verifies them."""
    datasets = [None]
    if arguments.process_index == 0 and recipe.get(section):
        report_path = Path(arguments.output_dir, f"broken_rows_{section}.jsonl")
        num_workers = arguments.dataloader_num_workers
        datasets = [
            prepare_dataset(recipe[section], folder, mixture_seed(recipe), report_path, num_workers, processor)
        ]
    broadcast_object_list(datasets)
    return datasets[0]


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
