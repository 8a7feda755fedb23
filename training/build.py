"""Builds what a recipe (a YAML file of `training/recipes/`, with `key=value` overrides) describes."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.names import find_fusion, find_model
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, read_tower_config
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.recipe import Recipe, check_names, read_recipe
from fusion_vlm.training.trainer import FusionTrainingArguments


CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe to train by, and check all names in it.

    Args:
        overrides (`Sequence[str]`): see `read_recipe`.

    Raises:
        ValueError: if a section or key is unknown or missing.
    """
    recipe = read_recipe(path, overrides)
    check_arguments(recipe)
    return recipe


def check_arguments(recipe: Recipe):
    """
    Check that a recipe has all sections, and check the names in it that only the libraries know.

    Raises:
        ValueError: if a section is missing, or a field of the config, a training argument or a dtype is unknown.
    """
    recipe.check_complete()
    check_names(recipe.model.config, FusionConfig.__dataclass_fields__, "`model.config`")
    if not isinstance(getattr(torch, recipe.model.dtype, None), torch.dtype):
        raise ValueError(f"`model.dtype` is {recipe.model.dtype!r}, expected one such as float32 or bfloat16.")
    arguments = {field.name for field in dataclasses.fields(FusionTrainingArguments)}
    if "activation_checkpointing" not in arguments:
        raise ValueError(
            "Recipes need transformers 5.23 or newer. `Trainer` and `FusionTrainer` take older ones, too."
        )
    check_names(recipe.training, arguments, "`training`")


def build_arguments(recipe: Recipe) -> FusionTrainingArguments:
    """
    Build training arguments, with as many accumulation steps as the global batch size takes.

    Raises:
        ValueError: if the global batch size cannot be divided so.
    """
    arguments = FusionTrainingArguments(**recipe.training)
    arguments.gradient_accumulation_steps = recipe.count_accumulation_steps(
        arguments.train_batch_size, arguments.world_size
    )
    return arguments


def build_config(recipe: Recipe) -> FusionConfig:
    """
    Build the config of the model of a recipe; reads configs only, no weights.

    Raises:
        ValueError: if `model` names neither a FUSION nor two parts, or if `model.path` is no converted FUSION.
    """
    model = recipe.model
    if model.path:
        return FusionConfig.from_pretrained(find_fusion(model.path), **model.config)
    if not model.vision or not model.decoder:
        raise ValueError("`model` has neither `path` nor both of `vision` and `decoder`: nothing to start from.")
    vision_config = read_tower_config(find_model(model.vision))
    text_config = AutoConfig.from_pretrained(find_model(model.decoder))
    return FusionConfig(vision_config=vision_config, text_config=text_config, **model.config)


def build_processor(recipe: Recipe) -> FusionProcessor:
    """
    Load the processor that is saved with the model, or build a new one around the decoder's tokenizer.

    Raises:
        ValueError: if there is no such chat template.
    """
    model = recipe.model
    if model.path:
        return FusionProcessor.from_pretrained(model.path)
    template = CHAT_TEMPLATES / f"{model.chat_template}.jinja"
    if not template.exists():
        known = sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja"))
        raise ValueError(f"`model.chat_template` is {model.chat_template!r}, expected one of {known}.")
    config = build_config(recipe)
    return FusionProcessor.from_tokenizer(
        AutoTokenizer.from_pretrained(model.decoder, padding_side="left"),
        config.vision_config,
        chat_template=template.read_text(),
        image_grid_size=config.image_grid_size,
        latent_grid_size=config.latent_grid_size,
    )


def build_model(recipe: Recipe, processor: FusionProcessor) -> FusionForConditionalGeneration:
    """Load the saved model of a recipe, or build one of two pretrained parts and new ones between them."""
    model = recipe.model
    dtype = getattr(torch, model.dtype)
    options = {"attn_implementation": model.attn_implementation} if model.attn_implementation else {}
    if model.path:
        config = build_config(recipe)
        return FusionForConditionalGeneration.from_pretrained(model.path, config=config, dtype=dtype, **options)
    built = FusionForConditionalGeneration.from_vision_text_pretrained(
        os.fspath(model.vision), os.fspath(model.decoder), processor, dtype=dtype, **model.config
    )
    if options:
        built.set_attn_implementation(model.attn_implementation)
    return built
