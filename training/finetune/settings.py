"""Chooses the settings of a fine-tuning, and recognizes a run in its output folder by them."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.trainer import TRAINER_STATE_NAME

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.names import UNFINISHED
from fusion_vlm.training.finetune.rows import Data


METHODS = ("lora", "qlora", "full")
SETTINGS_NAME = "settings.json"
REPORT_NAME = "finetune.json"
MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 150, 3, 30
# Times the width of the decoder: 2e-4 and 2e-5 at the 3072 of the 3B model. Adam moves each weight by about the rate,
# so wider layers need smaller ones.
SCALED_LEARNING_RATES = {"lora": 0.6, "qlora": 0.6, "full": 0.06}
MAX_LEARNING_RATES = {"lora": 5e-3, "qlora": 5e-3, "full": 5e-4}


@dataclass(frozen=True)
class Settings:
    """The values that decide the result of a fine-tuning besides its rows. A run is resumed with equal ones only."""

    model: str
    method: str
    adapter: bool
    epochs: int
    learning_rate: float
    batch_size: int
    lora_rank: int | None
    seed: int
    device: str
    dtype: str


def choose_settings(
    model: str | Path,
    config: FusionConfig,
    num_rows: int,
    *,
    method: str,
    batch_size: int,
    device: str,
    epochs: int | None,
    learning_rate: float | None,
    lora_rank: int,
    **given,
) -> Settings:
    """
    Return settings with the defaults that depend on the model, the rows and the machine.

    Args:
        num_rows (`int`): rows to train on.
        device (`str`): from `choose_device`.
        epochs, learning_rate, lora_rank: as given to `finetune`.
        given: all other fields of `Settings`.
    """
    return Settings(
        model=str(model),
        method=method,
        epochs=epochs or choose_epochs(num_rows, batch_size),
        learning_rate=learning_rate or choose_learning_rate(method, config),
        batch_size=batch_size,
        lora_rank=None if method == "full" else lora_rank,
        device=device,
        dtype=choose_dtype(method, device),
        **given,
    )


def choose_device(name: str) -> str:
    """
    Return `"cuda"` or `"cpu"`.

    Raises:
        ValueError: for another device, or a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"The device is {name!r}, expected auto, cpu or cuda. CUDA_VISIBLE_DEVICES=1 chooses a GPU.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU that torch can use; leave --device out to train on the CPU.")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(method: str, device: str) -> str:
    """Return the dtype of the frozen weights; weights that are trained in full need float32 for small updates."""
    can_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if can_bfloat16 and method != "full" else "float32"


def choose_epochs(num_rows: int, batch_size: int) -> int:
    """Return how often to go over the rows: small tables more often."""
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(MIN_STEPS / math.ceil(num_rows / batch_size))))


def choose_learning_rate(method: str, config: FusionConfig) -> float:
    """Return a rate for the method and the width of the decoder."""
    rate = SCALED_LEARNING_RATES[method] / config.text_config.hidden_size
    return float(f"{min(rate, MAX_LEARNING_RATES[method]):.1e}")


def check_output(output: Path, resume: bool):
    """
    Raise a ValueError if the folder has something in it that a run would overwrite.

    Args:
        output (`Path`)
        resume (`bool`): whether an unfinished run may be there.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, expected a new folder.")
    if not output.exists() or not any(output.iterdir()):
        return
    if (output / UNFINISHED / SETTINGS_NAME).is_file():
        if not resume:
            raise ValueError(
                f"{output} holds an unfinished run. Continue it with --resume, or remove the folder to start again."
            )
    elif (output / REPORT_NAME).is_file():
        raise ValueError(f"{output} holds a finished run. Name another --output, or remove that folder.")
    else:
        raise ValueError(f"{output} is not empty. Name another --output: a folder that does not exist yet.")


def check_same_run(output: Path, settings: Settings, data: Data):
    """Raise a ValueError if an unfinished run has other settings or rows."""
    path = output / UNFINISHED / SETTINGS_NAME
    if not path.is_file():
        return
    started, now = json.loads(path.read_text(encoding="utf-8")), describe_run(settings, data)
    names = [name for name in now if started.get(name) != now[name]]
    if names:
        changes = "; ".join(f"{name} was {started.get(name)} and is {now[name]}" for name in names)
        raise ValueError(
            f"The unfinished run in {output} differs: {changes}. Give what it began with, or another --output."
        )


def find_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint. The trainer's state is written last, so an incomplete one lacks it."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def describe_run(settings: Settings, data: Data) -> dict:
    """Return what makes a run another one, by name."""
    return {**dataclasses.asdict(settings), "digest of the rows": data.digest[:12]}
