"""Runs a fine-tuning from the table to the folder."""

import gc
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import load_processor
from fusion_vlm.hub.names import UNFINISHED
from fusion_vlm.modeling_fusion import CHECKPOINTS_HOOKS, FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.table import BY_NAME, Columns
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.finetune.answers import AnswerMetrics, count_new_tokens
from fusion_vlm.training.finetune.model import add_adapter, load_model, load_saved, save
from fusion_vlm.training.finetune.progress import ProgressBar, ProgressLines
from fusion_vlm.training.finetune.report import (
    Figures,
    build_report,
    describe_memory,
    describe_rows,
    describe_training,
    draw_curves,
)
from fusion_vlm.training.finetune.rows import Data, load_data
from fusion_vlm.training.finetune.settings import (
    REPORT_NAME,
    SETTINGS_NAME,
    Settings,
    check_output,
    check_same_run,
    choose_device,
    choose_settings,
    describe_run,
    find_checkpoint,
)
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments


NUM_EVALUATIONS = 10


def finetune(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    method: str = "lora",
    adapter: bool = False,
    image_folder: str | Path | None = None,
    columns: Columns = BY_NAME,
    question: str | None = None,
    eval_data: str | Path | None = None,
    eval_share: float | None = None,
    skip_bad_rows: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 8,
    lora_rank: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
) -> dict:
    """
    Fine-tune a model on a table and write a folder that loads like the model. Progress goes to stderr.

    Args:
        model (`str` or `Path`): folder or Hub id of a converted FUSION.
        data (`str` or `Path`): a table, see `rows.table`.
        output (`str` or `Path`): a folder that does not exist yet, or is empty.
        method (`str`): `"lora"`, `"qlora"` (LoRA on a decoder in 4 bits) or `"full"`.
        adapter (`bool`): whether the folder is to hold the adapter only, not merged weights.
        image_folder, columns, question: see `read_rows`.
        eval_data, eval_share: see `load_data`.
        skip_bad_rows, max_length: see `load_rows`.
        epochs (`int`, *optional*): defaults to 3, to more for a small table.
        learning_rate (`float`, *optional*): defaults to one for the method and the width of the decoder.
        batch_size (`int`): rows of a step.
        lora_rank (`int`)
        seed (`int`): of the split and of the training.
        device (`str`): `"auto"`, `"cpu"` or `"cuda"`.
        resume (`bool`): whether to continue the unfinished run in `output`, if there is one.

    Returns:
        `dict`: what is written to `finetune.json`: settings, rows, figures before and after, examples and history.

    Raises:
        BadRowsError: for rows that cannot be used.
        ValueError, FileNotFoundError: for whatever else is wrong, before training begins; and for memory that is too
            small.
    """
    start, output = time.monotonic(), Path(output).expanduser()
    if adapter and method == "full":
        raise ValueError("A full fine-tuning has no adapter: leave --adapter or --full out.")
    check_output(output, resume)
    processor, config = load_processor(model), FusionConfig.from_pretrained(model)
    device = choose_device(device)
    rows = load_data(
        data, processor, config, eval_path=eval_data, eval_share=eval_share, seed=seed, image_folder=image_folder,
        columns=columns, question=question, skip_bad_rows=skip_bad_rows, max_length=max_length,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    settings = choose_settings(
        model, config, len(rows.train), method=method, adapter=adapter, epochs=epochs, learning_rate=learning_rate,
        batch_size=batch_size, lora_rank=lora_rank, seed=seed, device=device,
    )  # fmt: skip
    check_same_run(output, settings, rows)
    say(*describe_rows(data, rows, eval_data))
    before, after, history = run(settings, rows, processor, config, output)
    report = build_report(settings, data, rows, before, after, history, time.monotonic() - start)
    finish(output, report)
    return report


def run(
    settings: Settings, data: Data, processor: FusionProcessor, config: FusionConfig, output: Path
) -> tuple[Figures | None, Figures | None, list[dict]]:
    """
    Train and measure. A run that stops before its first checkpoint leaves nothing behind.

    Returns:
        The figures before and after training, and the curves.

    Raises:
        ValueError: if the memory is too small, with what to change.
    """
    is_new = not output.exists()
    try:
        before, history = train(settings, data, processor, config, output)
        return before, measure_saved(settings, data, processor, config, output), history
    except BaseException as error:  # also Ctrl-C
        clean_up(output, is_new)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise ValueError(describe_memory(settings)) from error
        raise


def make_arguments(settings: Settings, data: Data, new_tokens: int, output: Path) -> FusionTrainingArguments:
    """Return arguments that evaluate and save at most `NUM_EVALUATIONS` times, at the ends of epochs."""
    on_gpu = settings.device == "cuda"
    steps_per_epoch = math.ceil(len(data.train) / settings.batch_size)
    num_steps = steps_per_epoch * settings.epochs
    interval = steps_per_epoch * math.ceil(settings.epochs / NUM_EVALUATIONS)
    checkpointing = "gradient_checkpointing" if CHECKPOINTS_HOOKS else "activation_checkpointing"
    arguments = FusionTrainingArguments(
        str(output / UNFINISHED),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * num_steps),
        logging_steps=max(1, num_steps // 50),
        eval_strategy="steps" if data.held_out else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        predict_with_generate=bool(data.held_out),
        generation_max_new_tokens=new_tokens,
        seed=settings.seed,
        report_to="none",
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_num_workers=min(4, os.cpu_count() or 1) if on_gpu else 0,
        **({checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}} if on_gpu else {}),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # `Trainer` would split each batch over all GPUs with DataParallel
    return arguments


def build_trainer(
    model: FusionForConditionalGeneration | PeftModel,
    processor: FusionProcessor,
    config: FusionConfig,
    arguments: FusionTrainingArguments,
    data: Data,
) -> FusionTrainer:
    """Build a trainer that shows its progress on stderr."""
    trainer = FusionTrainer(
        model,
        arguments,
        data_collator=FusionDataCollator(processor, latent_grid_sizes=config.latent_grid_sizes, seed=arguments.seed),
        train_dataset=data.train,
        eval_dataset=data.held_out or None,
        compute_metrics=AnswerMetrics(processor, data.held_out) if data.held_out else None,
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressLines() if arguments.disable_tqdm else ProgressBar())
    return trainer


def measure(trainer: FusionTrainer) -> Figures | None:
    """Return the figures of a trainer's model on its held-out rows, None if there are none."""
    if trainer.eval_dataset is None:
        return None
    metrics = trainer.evaluate()
    return Figures(metrics["eval_loss"], metrics["eval_accuracy"], trainer.compute_metrics.answers)


def read_history(log: list[dict]) -> list[dict]:
    """Return the curves in the log of a trainer: entries with `step`, `epoch` and `loss`, or the held-out figures."""
    names = {"loss": "loss", "eval_loss": "held_out_loss", "eval_accuracy": "held_out_accuracy"}
    entries = []
    for entry in log:
        if values := {new: entry[old] for old, new in names.items() if old in entry}:
            entries.append({"step": entry["step"], "epoch": entry.get("epoch"), **values})
    return entries


def clean_up(output: Path, is_new: bool):
    """Remove what a run without a checkpoint has left; say how to continue a run with one."""
    unfinished = output / UNFINISHED
    if unfinished.is_dir() and find_checkpoint(unfinished) is not None:
        say(f"{output} holds an unfinished run: the same command with --resume continues it.")
    elif output.is_dir():
        shutil.rmtree(output if is_new else unfinished, ignore_errors=True)


def say(*lines: str):
    """Print lines on stderr."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def train(
    settings: Settings, data: Data, processor: FusionProcessor, config: FusionConfig, output: Path
) -> tuple[Figures | None, list[dict]]:
    """
    Train, and save into the subfolder `unfinished/result` of the output folder.

    Returns:
        The figures before training, and the curves.
    """
    set_seed(settings.seed)  # the adapter's weights are random
    model = load_model(settings.model, settings.dtype, settings.device, settings.method == "qlora")
    if settings.method != "full":
        model = add_adapter(model, settings)
    say(*describe_training(settings, model, output))
    new_tokens = count_new_tokens(processor, data.held_out) if data.held_out else 1
    trainer = build_trainer(model, processor, config, make_arguments(settings, data, new_tokens, output), data)
    before = measure(trainer)
    if before is not None:
        say(f"  before: held-out loss {before.loss:.3g}, held-out accuracy {before.accuracy:.3g}")
    unfinished = output / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / SETTINGS_NAME).write_text(json.dumps(describe_run(settings, data), indent=2), encoding="utf-8")
    checkpoint = find_checkpoint(unfinished)
    if checkpoint is not None:
        say(f"Continuing from {checkpoint}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    history = read_history(trainer.state.log_history)
    save(trainer.model, processor, settings, unfinished / "result")
    return before, history


def measure_saved(
    settings: Settings, data: Data, processor: FusionProcessor, config: FusionConfig, output: Path
) -> Figures | None:
    """Return the figures of what was saved: merged and rounded to the dtype of the base model."""
    if not data.held_out:
        return None
    gc.collect()  # the trained model is no longer needed
    torch.cuda.empty_cache()
    model = load_saved(output / UNFINISHED / "result", settings)
    arguments = make_arguments(settings, data, count_new_tokens(processor, data.held_out), output)
    return measure(build_trainer(model, processor, config, arguments, data))


def finish(output: Path, report: dict):
    """Move what was saved into the output folder, write the report and the curves, and remove the rest of the run."""
    saved = output / UNFINISHED / "result"
    # Without its config a folder is no model, so one that is only half moved does not load.
    for path in sorted(saved.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
        os.replace(path, output / path.name)
    draw_curves(report, output / "curves.png")
    (output / REPORT_NAME).write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(output / UNFINISHED)
