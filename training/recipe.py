"""Reads recipes. Nothing here imports torch, so that commands refuse a wrong recipe at once."""

from pathlib import Path

import yaml

from fusion_vlm.hub.names import ModelNameError, expand, resolve
from fusion_vlm.training.yaml_file import read_yaml


MODEL_NAMES = ("path", "vision", "decoder")  # keys of `model` with a folder or a Hub id


def read_recipe(path: str | Path, overrides: list[str] = ()) -> dict:
    """
    Return the sections of a recipe with its overrides, unchecked.

    Raises:
        ValueError: if an override leads nowhere.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is no recipe: expected sections such as `model` and `data`.")
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ValueError(f"{override!r} is no change of the recipe, expected key=value.")
        *sections, name = key.split(".")
        section = recipe
        for part in sections:
            if not isinstance(section.get(part), dict):
                raise ValueError(f"{override!r}: there is no section {part!r}, expected one of {sorted(section)}.")
            section = section[part]
        section[name] = to_number(yaml.safe_load(value))
    if isinstance(recipe.get("model"), dict):
        for key in MODEL_NAMES:
            if recipe["model"].get(key):
                recipe["model"][key] = expand(recipe["model"][key])
    return recipe


def check_models(recipe: dict):
    """
    Check that the folders of a recipe's `model` are there; asks nothing of the Hub.

    Raises:
        ValueError: if one is not.
    """
    model = recipe.get("model")
    for key in MODEL_NAMES:
        if isinstance(model, dict) and model.get(key):
            try:
                resolve(model[key])
            except ModelNameError as error:
                raise ValueError(f"`model.{key}`: {error}") from error


def to_number(value):
    """Convert floats such as `1e-5`, which YAML takes for text without a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
