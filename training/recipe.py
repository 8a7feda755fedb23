"""
Recipes: YAML files (see `training/recipes/`) that say what is trained, on which rows, and how.

A recipe is read and checked once, here, and carries its defaults. Nothing here imports torch, so commands refuse a
wrong recipe at once; `build.check_arguments` checks the names that only the libraries know.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from fusion_vlm.hub.names import ModelNameError, expand, resolve
from fusion_vlm.training.yaml_file import read_yaml


MODEL_NAMES = ("path", "vision", "decoder")  # keys of `model` with a folder or a Hub id
REQUIRED_SECTIONS = ("model", "data", "global_batch_size", "max_length", "training")
SEED = 42  # the default of `seed` in transformers' TrainingArguments


@dataclass(frozen=True)
class ModelSection:
    """
    The section `model`: a saved FUSION (`path`), or two pretrained parts (`vision` and `decoder`).

    Args:
        path, vision, decoder (`str`, *optional*): folders or Hub ids.
        chat_template (`str`, *optional*): name of a file of `chat_templates/`, for a model of two parts.
        config (`dict`): fields of `FusionConfig` that differ from what is saved, or from the defaults.
        dtype (`str`): of the parameters.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
    """

    path: str | None = None
    vision: str | None = None
    decoder: str | None = None
    chat_template: str | None = None
    config: dict = field(default_factory=dict)
    dtype: str = "float32"
    attn_implementation: str | None = None

    @classmethod
    def read(cls, section: dict | None) -> "ModelSection":
        """Return a checked section; a key without a value has its default."""
        check_names(section or {}, cls, "`model`")
        return cls(**{name: value for name, value in (section or {}).items() if value is not None})


@dataclass(frozen=True)
class DataSection:
    """
    A section `data` or `eval_data`; see `training.data`.

    Args:
        datasets (`list` or `str`): sources, or the path of a YAML file with a list of sources.
        image_folder (`str`, *optional*): where relative image paths begin.
        on_error (`str`): `"stop"` at a broken row, or `"skip"` broken rows.
        max_errors (`int`): with `"skip"`, the number of broken rows that are allowed.
    """

    datasets: list | str
    image_folder: str | None = None
    on_error: str = "stop"
    max_errors: int = 0

    @classmethod
    def read(cls, section: Any) -> "DataSection":
        """
        Return a checked section. The sources in it are checked when they are loaded.

        Raises:
            ValueError: for anything but a section with `datasets`, and for wrong values.
        """
        if not isinstance(section, dict) or "datasets" not in section:
            raise ValueError(f"`data` is {section!r}, expected a section with `datasets`.")
        check_names(section, cls, "`data`")
        if section.get("on_error", "stop") not in ("stop", "skip"):
            raise ValueError(f"`on_error` is {section['on_error']!r}, expected stop or skip.")
        max_errors = section.get("max_errors", 0)
        if not isinstance(max_errors, int) or isinstance(max_errors, bool) or max_errors < 0:
            raise ValueError(f"`max_errors` is {max_errors!r}, expected a number of rows from 0 on.")
        return cls(**section)

    @property
    def skips_errors(self) -> bool:
        """Return whether broken rows are skipped."""
        return self.on_error == "skip"

    @property
    def num_allowed_errors(self) -> int:
        """Return the number of broken rows with which training may start."""
        return self.max_errors if self.skips_errors else 0


@dataclass(frozen=True)
class Recipe:
    """
    A recipe with its overrides.

    Args:
        path (`Path`): of the file. Relative paths of the data begin at its folder.
        content (`dict`): the sections as they are written, which a run keeps to recognize itself.
        model (`ModelSection`), data, eval_data (`DataSection`, *optional*)
        global_batch_size (`int`, *optional*): rows of a step, over all GPUs and accumulation steps.
        max_length (`int`, *optional*): longest row in tokens.
        training (`dict`): fields of `FusionTrainingArguments`.
    """

    path: Path
    content: dict
    model: ModelSection
    data: DataSection | None
    eval_data: DataSection | None
    global_batch_size: int | None
    max_length: int | None
    training: dict

    @property
    def folder(self) -> Path:
        """Return the folder where relative paths of the data begin."""
        return self.path.parent

    @property
    def seed(self) -> int:
        """Return the seed of the training."""
        return self.training.get("seed", SEED)

    @property
    def data_seed(self) -> int:
        """Return the seed that draws rows from the sources: `training.data_seed`, else the seed of the training."""
        data_seed = self.training.get("data_seed")
        return self.seed if data_seed is None else data_seed

    @property
    def data_sections(self) -> dict[str, DataSection]:
        """Return the sections with rows by name, as far as the recipe has them."""
        sections = {"data": self.data, "eval_data": self.eval_data}
        return {name: section for name, section in sections.items() if section is not None}

    def count_accumulation_steps(self, batch_size: int, num_processes: int) -> int:
        """
        Return how many batches of each process make one step of the global batch size.

        Raises:
            ValueError: if the global batch size is no multiple of the batches of all processes.
        """
        steps, rest = divmod(self.global_batch_size, batch_size * num_processes)
        if rest or not steps:
            raise ValueError(
                f"`global_batch_size` is {self.global_batch_size}, expected a multiple of"
                f" {batch_size * num_processes}: {batch_size} rows (`training.per_device_train_batch_size`) on each of"
                f" {num_processes} processes or GPUs."
            )
        return steps

    def check_complete(self):
        """Raise a ValueError if a section is missing that training needs; a check of the data needs fewer."""
        missing = sorted(name for name in REQUIRED_SECTIONS if name not in self.content)
        if missing or self.data is None:
            raise ValueError(f"{self.path} lacks {missing or ['data']}.")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe.

    Args:
        overrides (`Sequence[str]`): such as `training.learning_rate=1e-5`: dots lead into sections, values are YAML.

    Raises:
        ValueError: if the file is no recipe, if a section or key is unknown, or if an override leads nowhere.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no recipe: expected sections such as `model` and `data`.")
    for override in overrides:
        _apply(override, content)
    check_names(content, (*REQUIRED_SECTIONS, "eval_data"), "the recipe")
    for key in MODEL_NAMES:
        if isinstance(content.get("model"), dict) and content["model"].get(key):
            content["model"][key] = expand(content["model"][key])
    data, eval_data = (content.get(name) for name in ("data", "eval_data"))
    training = content.get("training") or {}
    if not isinstance(training, dict):
        raise ValueError(f"`training` is {training!r}, expected a section.")
    return Recipe(
        path=Path(path),
        content=content,
        model=ModelSection.read(content.get("model")),
        data=None if data is None else DataSection.read(data),
        eval_data=None if eval_data is None else DataSection.read(eval_data),
        global_batch_size=content.get("global_batch_size"),
        max_length=content.get("max_length"),
        training={name: to_number(value) for name, value in training.items()},
    )


def check_models(recipe: Recipe):
    """
    Check that the folders of a recipe's `model` are there; asks nothing of the Hub.

    Raises:
        ValueError: if one is not.
    """
    for key in MODEL_NAMES:
        name = getattr(recipe.model, key)
        if name:
            try:
                resolve(name)
            except ModelNameError as error:
                raise ValueError(f"`model.{key}`: {error}") from error


def check_names(section: Any, known: type | Iterable[str], label: str):
    """
    Raise a ValueError if a section is no section, or has a key that nothing reads.

    Args:
        known (`type` or `Iterable[str]`): a dataclass whose fields are the keys, or the keys.
        label (`str`): what errors call the section.
    """
    if not isinstance(section, dict):
        raise ValueError(f"{label} is {section!r}, expected a section.")
    known = {each.name for each in fields(known)} if isinstance(known, type) else set(known)
    unknown = sorted(set(map(str, section)) - known)
    if unknown:
        # Of a hundred training arguments only those are listed that may have been meant.
        names = sorted(known) if len(known) < 20 else difflib.get_close_matches(unknown[0], known)
        raise ValueError(f"{label} has the keys {unknown}, which nothing reads. Known are {names}.")


def to_number(value: Any) -> Any:
    """Convert floats such as `1e-5`, which YAML takes for text without a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _apply(override: str, content: dict):
    """Write an override into the sections of a recipe."""
    key, sign, value = override.partition("=")
    if not sign:
        raise ValueError(f"{override!r} is no override of the recipe, expected key=value.")
    *sections, name = key.split(".")
    section = content
    for part in sections:
        if not isinstance(section.get(part), dict):
            raise ValueError(f"{override!r}: there is no section {part!r}, expected one of {sorted(section)}.")
        section = section[part]
    section[name] = to_number(yaml.safe_load(value))
