"""Loads the model of a fine-tuning, adds adapters to it, and saves the result."""

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import load_adapter, nf4_config
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.finetune.settings import Settings
from fusion_vlm.training.lora import lora_config


def load_model(path: str | Path, dtype: str, device: str, four_bit: bool = False) -> FusionForConditionalGeneration:
    """
    Return a model, its frozen weights in a dtype.

    Raises:
        ValueError: if bitsandbytes cannot load 4 bits here.
    """
    options = {"dtype": getattr(torch, dtype), "device_map": device}
    if not four_bit:
        return FusionForConditionalGeneration.from_pretrained(path, **options)
    options["quantization_config"] = nf4_config(options["dtype"])
    try:
        return FusionForConditionalGeneration.from_pretrained(path, **options)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"bitsandbytes cannot load the model in 4 bits here: {error}. Leave --qlora out.") from error


def add_adapter(model: FusionForConditionalGeneration, settings: Settings) -> PeftModel:
    """Return the model with LoRA on the linear layers of decoder and tower; a new kind of image needs the tower."""
    if settings.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = lora_config(model, tower=True, r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, lora_dropout=0.05)
    return get_peft_model(model, config)


def save(
    model: FusionForConditionalGeneration | PeftModel, processor: FusionProcessor, settings: Settings, folder: Path
):
    """
    Write a folder that loads like the base model, with weights in the dtype of the stored base model.

    Besides weights, it holds processor, code and generation config. With `settings.adapter` it holds an adapter in
    place of weights.

    Adapters are merged into freshly read weights, so that neither 4 bits nor the dtype of the training round them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    stored = FusionConfig.from_pretrained(settings.model).dtype or torch.float32
    if isinstance(model, PeftModel):
        adapter = folder if settings.adapter else folder.with_name("adapter")
        if os.path.isdir(settings.model):
            model.peft_config["default"].base_model_name_or_path = os.path.abspath(settings.model)
        # None of the adapted layers holds embeddings; PEFT would look for their size on the Hub.
        model.save_pretrained(adapter, save_embedding_layers=False)
        (adapter / "README.md").unlink(missing_ok=True)  # PEFT's card: empty headings and a path of this machine
        if not settings.adapter:
            base = FusionForConditionalGeneration.from_pretrained(settings.model, dtype=stored)
            load_adapter(base, adapter).save_pretrained(folder)
            shutil.rmtree(adapter)
    else:
        model.to(stored).save_pretrained(folder)
    processor.save_pretrained(folder)


def load_saved(folder: Path, settings: Settings) -> FusionForConditionalGeneration | PeftModel:
    """Load what `save` has written, as `Trainer` evaluates it: in 4 bits after a training in 4 bits."""
    four_bit = settings.method == "qlora"
    model = load_model(settings.model if settings.adapter else folder, settings.dtype, settings.device, four_bit)
    if settings.adapter:
        return PeftModel.from_pretrained(model, folder)
    # `Trainer` refuses a model in 4 bits without an adapter. A new one changes nothing.
    return add_adapter(model, settings) if four_bit else model
