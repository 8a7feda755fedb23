"""From a recipe (a YAML file of `training/recipes/`, with `key=value` changes) to what is trained."""

import dataclasses
import difflib
import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.names import find_fusion, find_model
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.recipe import read_recipe, to_number
from fusion_vlm.training.trainer import FusionTrainingArguments


CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"
SECTIONS = {"model", "data", "eval_data", "global_batch_size", "max_length", "training"}
REQUIRED_SECTIONS = SECTIONS - {"eval_data"}
MODEL_KEYS = {"path", "vision", "decoder", "chat_template", "config", "dtype", "attn_implementation"}


def load_recipe(path: str | Path, overrides: list[str] = ()) -> dict:
    """
    Reads a recipe.

    Args:
        overrides (`list[str]`): such as `training.learning_rate=1e-5`: dots lead into sections, values are YAML.

    Returns:
        `dict`: the sections, with all names in them checked.

    Raises:
        ValueError: if a section or key is unknown or missing.
    """
    recipe = read_recipe(path, overrides)
    _check_names(recipe, SECTIONS, "the recipe")
    if missing := REQUIRED_SECTIONS - set(recipe):
        raise ValueError(f"{path} lacks {sorted(missing)}.")
    _check_names(recipe["model"], MODEL_KEYS, "`model`")
    _check_names(recipe["model"].get("config") or {}, set(FusionConfig.__dataclass_fields__), "`model.config`")
    arguments = {field.name for field in dataclasses.fields(FusionTrainingArguments)}
    if "activation_checkpointing" not in arguments:
        raise ValueError(
            "Recipes need transformers 5.23 or newer. `Trainer` and `FusionTrainer` take older ones, too."
        )
    _check_names(recipe["training"], arguments, "`training`")
    return recipe


def _check_names(section: dict, known: set[str], name: str):
    for unknown in sorted(set(section) - known):
        # Of a hundred training arguments only those that may have been meant.
        names = sorted(known) if len(known) < 20 else difflib.get_close_matches(unknown, known)
        raise ValueError(f"Unknown in {name}: {unknown!r}. Known: {', '.join(names) or 'nothing like it'}.")


def build_arguments(recipe: dict) -> FusionTrainingArguments:
    """
    Training arguments, with as many accumulation steps as the global batch size takes.

    Raises:
        ValueError: if the batch size does not divide into them.
    """
    arguments = FusionTrainingArguments(**{name: to_number(value) for name, value in recipe["training"].items()})
    arguments.gradient_accumulation_steps = count_accumulation_steps(
        recipe, arguments.train_batch_size, arguments.world_size
    )
    return arguments


def count_accumulation_steps(recipe: dict, batch_size: int, num_processes: int) -> int:
    """
    How many batches of each process make one step of the recipe's global batch size.

    Raises:
        ValueError: if that is no whole number.
    """
    steps, rest = divmod(recipe["global_batch_size"], batch_size * num_processes)
    if rest or not steps:
        raise ValueError(
            f"`global_batch_size` is {recipe['global_batch_size']}, expected a multiple of"
            f" {batch_size * num_processes}: {batch_size} rows (`training.per_device_train_batch_size`) on each of"
            f" {num_processes} processes or GPUs."
        )
    return steps


def build_config(recipe: dict) -> FusionConfig:
    """
    The config of the model of a recipe; reads configs only, no weights.

    Raises:
        ValueError: if `model` names neither a FUSION nor two parts, or if `model.path` is no converted FUSION.
    """
    model, changes = recipe["model"], recipe["model"].get("config") or {}
    if model.get("path"):
        return FusionConfig.from_pretrained(find_fusion(model["path"]), **changes)
    if not model.get("vision") or not model.get("decoder"):
        raise ValueError("`model` has neither `path` nor both of `vision` and `decoder`: nothing to start from.")
    vision_config = SiglipVisionConfig.from_pretrained(find_model(model["vision"]))
    vision_config.num_hidden_layers -= 1  # see `from_vision_text_pretrained`
    vision_config.vision_use_head = False
    return FusionConfig(
        vision_config=vision_config, text_config=AutoConfig.from_pretrained(find_model(model["decoder"])), **changes
    )


def build_processor(recipe: dict) -> FusionProcessor:
    """
    The processor that is saved with the model, or a new one around the decoder's tokenizer.

    Raises:
        ValueError: if there is no such chat template.
    """
    model = recipe["model"]
    if model.get("path"):
        return FusionProcessor.from_pretrained(model["path"])
    template = CHAT_TEMPLATES / f"{model.get('chat_template')}.jinja"
    if not template.exists():
        known = sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja"))
        raise ValueError(f"`model.chat_template` is {model.get('chat_template')!r}, expected one of {known}.")
    config = build_config(recipe)
    return FusionProcessor.from_tokenizer(
        AutoTokenizer.from_pretrained(model["decoder"], padding_side="left"),
        config.vision_config,
        chat_template=template.read_text(),
        image_grid_size=config.image_grid_size,
        latent_grid_size=config.latent_grid_size,
    )


def build_model(recipe: dict, processor: FusionProcessor) -> FusionForConditionalGeneration:
    """The model of a recipe: saved, or of two pretrained parts and new ones between them."""
    model, changes = recipe["model"], recipe["model"].get("config") or {}
    dtype = getattr(torch, model.get("dtype") or "float32")
    options = {"attn_implementation": model["attn_implementation"]} if model.get("attn_implementation") else {}
    if model.get("path"):
        config = build_config(recipe)
        built = FusionForConditionalGeneration.from_pretrained(model["path"], config=config, dtype=dtype, **options)
    else:
        built = FusionForConditionalGeneration.from_vision_text_pretrained(
            os.fspath(model["vision"]), os.fspath(model["decoder"]), processor, dtype=dtype, **changes
        )
        if options:
            built.set_attn_implementation(options["attn_implementation"])
    return built
