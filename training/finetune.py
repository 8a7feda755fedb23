"""
Fine-tunes a FUSION on a table of images, questions and answers, and writes a folder that loads like any other.

    fusion-vlm finetune MODEL table.csv --output out/mine

`finetune` is the whole way: it checks the table, holds rows out, trains adapters or all weights, measures before and
after, and saves. docs/finetune.md has an example and all options.
"""

import dataclasses
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import load_adapter, load_processor
from fusion_vlm.modeling_fusion import CHECKPOINTS_HOOKS, FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.split import default_share, split_rows
from fusion_vlm.rows.table import BY_NAME, BadRowsError, Columns, RowProblem, check_images, read_rows
from fusion_vlm.training.answers import (
    AnswerMetrics,
    are_long,
    count_new_tokens,
    expected_answer,
    most_frequent_share,
    normalize_answer,
    question_of,
)
from fusion_vlm.training.check import count_tokens
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.lora import lora_config
from fusion_vlm.training.progress import ProgressBar, ProgressLines
from fusion_vlm.training.report import draw_curves
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments


METHODS = ("lora", "qlora", "full")
UNFINISHED = "unfinished"  # the subfolder of a run that is not finished: settings, checkpoints, what is being saved
SETTINGS_NAME = "settings.json"
REPORT_NAME = "finetune.json"
MAX_LENGTH = 4096
MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 150, 3, 30
NUM_EVALUATIONS = 10
# Times the width of the decoder: 2e-4 and 2e-5 at the 3072 of the 3B model. Adam moves each weight by about the rate,
# so wider layers need smaller ones.
SCALED_LEARNING_RATES = {"lora": 0.6, "qlora": 0.6, "full": 0.06}
MAX_LEARNING_RATES = {"lora": 5e-3, "qlora": 5e-3, "full": 5e-4}


@dataclass(frozen=True)
class Data:
    """
    The rows of a fine-tuning.

    Attributes:
        train, held_out (`list[dict]`): rows with `messages` and `source`. Nothing may be held out.
        num_skipped (`int`): bad rows that were left out of both tables.
        notices (`list[str]`): what the user should know about the tables.
        digest (`str`): of all rows and images, to recognize a changed table.
    """

    train: list[dict]
    held_out: list[dict]
    num_skipped: int
    notices: list[str]
    digest: str


@dataclass(frozen=True)
class Settings:
    """What decides the result of a fine-tuning besides its rows. An unfinished run is continued with equal ones."""

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


@dataclass(frozen=True)
class Figures:
    """Loss and accuracy on the held-out rows, and the answers in their order."""

    loss: float
    accuracy: float
    answers: list[str]


# Rows ---------------------------------------------------------------------------------------------------------------


def load_rows(
    path: str | Path,
    processor: FusionProcessor,
    config: FusionConfig,
    *,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    progress: bool = False,
    **reading,
) -> tuple[list[dict], list[str | None], list[RowProblem], list[str]]:
    """
    Read a table and check each row as training will use it.

    Args:
        path (`str` or `Path`), reading: see `read_rows`.
        max_length (`int`, *optional*): longest row in tokens. Defaults to what the decoder takes, 4096 at most.
        skip_bad_rows (`bool`): whether to leave bad rows out.
        progress (`bool`): whether to show a bar.

    Returns:
        The rows, the fingerprints of their images, the problems of rows that were left out, and notices.

    Raises:
        BadRowsError: if rows are bad and are not to be skipped, or if all are.
        ValueError, FileNotFoundError: as `read_rows`.
    """
    rows, problems, notices = read_rows(path, **reading)
    num_rows = len(rows) + len(problems)
    num_positions = getattr(config.text_config, "max_position_embeddings", None) or MAX_LENGTH
    limit = min(max_length or MAX_LENGTH, num_positions)
    # Training draws latent grids that may be larger than the processor's.
    more_latents = max(config.latent_grid_sizes) ** 2 - processor.image_processor.latent_grid_size**2
    bad = {}
    for row in rows:
        if (reason := _find_problem(row, processor, limit, max(0, more_latents))) is not None:
            bad[row["source"]] = RowProblem(row["source"].rpartition(", ")[2], reason)
    fingerprints, image_problems = check_images(rows, progress)
    with_bad_image = {problem.place: problem for problem in image_problems}
    for row in rows:
        if problem := with_bad_image.get(row["source"].rpartition(", ")[2]):
            bad.setdefault(row["source"], problem)
    problems += bad.values()
    kept = [(row, key) for row, key in zip(rows, fingerprints, strict=True) if row["source"] not in bad]
    problems.sort(key=lambda problem: int(problem.place.rpartition(" ")[2]))
    if problems and (not skip_bad_rows or not kept):
        raise BadRowsError(Path(path).name, problems, num_rows)
    return [row for row, _ in kept], [key for _, key in kept], problems, notices


def _find_problem(row: dict, processor: FusionProcessor, limit: int, more_latents: int) -> str | None:
    try:
        processor.check_messages(row["messages"], is_prompt=False)
        num_tokens = count_tokens(processor, row)[1]
    except (RowError, ValueError) as error:
        return str(error).removeprefix(f"{row['source']}: ")
    num_tokens += more_latents * sum(message["role"] == "user" for message in row["messages"])
    if num_tokens > limit:
        return f"it has {num_tokens} tokens, image included, expected at most {limit} (--max-length; see docs)"
    return None


def load_data(
    path: str | Path,
    processor: FusionProcessor,
    config: FusionConfig,
    *,
    eval_path: str | Path | None = None,
    eval_share: float | None = None,
    seed: int = 0,
    **options,
) -> Data:
    """
    Read the table and hold rows out, or read them from a table of their own.

    Args:
        path, processor, config, options: see `load_rows`.
        eval_path (`str` or `Path`, *optional*): a table of held-out rows.
        eval_share (`float`, *optional*): of the rows to hold out. Defaults to a fifth below 100 rows, else a tenth.
        seed (`int`): of the split.

    Raises:
        ValueError: as `load_rows` and `split_rows`, and for `eval_path` beside `eval_share`.
    """
    if eval_path is not None and eval_share is not None:
        raise ValueError("--eval-data and --eval-share exclude each other: held-out rows come from one place.")
    rows, fingerprints, problems, notices = load_rows(path, processor, config, **options)
    if eval_path is not None:
        train = rows
        held_out, eval_fingerprints, eval_problems, eval_notices = load_rows(eval_path, processor, config, **options)
        problems, notices = problems + eval_problems, notices + eval_notices
        shared = {key for key in fingerprints if key} & set(eval_fingerprints)
        if shared:
            notices.append(f"{len(shared)} images of {Path(eval_path).name} are trained on, too: no fair measure.")
    else:
        train, held_out = split_rows(
            rows, fingerprints, default_share(len(rows)) if eval_share is None else eval_share, seed
        )
    notices += _describe_oddities(train, held_out)
    texts = [
        [row["source"], *[str(message["content"][-1]) for message in row["messages"]]] for row in train + held_out
    ]
    digest = hashlib.sha256(json.dumps([texts, fingerprints]).encode()).hexdigest()
    return Data(train, held_out, len(problems), notices, digest)


def _describe_oddities(train: list[dict], held_out: list[dict]) -> list[str]:
    notices = []
    if len(train) < 20:
        notices.append(f"{len(train)} rows are very few to learn from; expect little on other images.")
    if 0 < len(held_out) < 5:
        notices.append(f"With {len(held_out)} held-out row{'s' * (len(held_out) > 1)}, the figures say little.")
    answers = {expected_answer(row) for row in train}
    if len(answers) == 1 and len(train) > 1:
        notices.append(f"All rows have the same answer, {answers.pop()!r}: the model learns to say that to anything.")
    return notices


# Settings and the output folder -------------------------------------------------------------------------------------


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
    """Return the last whole checkpoint. The state is written last, so one that was cut off has none."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def describe_run(settings: Settings, data: Data) -> dict:
    return {**dataclasses.asdict(settings), "digest of the rows": data.digest[:12]}


# Models -------------------------------------------------------------------------------------------------------------


def load_model(path: str | Path, dtype: str, device: str, four_bit: bool = False) -> FusionForConditionalGeneration:
    """
    Return a model, its frozen weights in a dtype.

    Raises:
        ValueError: if bitsandbytes cannot load 4 bits here.
    """
    options = {"dtype": getattr(torch, dtype), "device_map": device}
    if not four_bit:
        return FusionForConditionalGeneration.from_pretrained(path, **options)
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
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
    Write a folder that loads like the base model: weights in the dtype in which the base model is stored, processor,
    code, generation config. With `settings.adapter` it holds an adapter in place of weights.

    Adapters are merged into weights that are read anew, so that neither 4 bits nor the dtype of the training matter.
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
    """Return what `save` has written, as `Trainer` evaluates it: in 4 bits after a training in 4 bits."""
    four_bit = settings.method == "qlora"
    model = load_model(settings.model if settings.adapter else folder, settings.dtype, settings.device, four_bit)
    if settings.adapter:
        return PeftModel.from_pretrained(model, folder)
    # `Trainer` refuses a model in 4 bits without an adapter. A new one changes nothing.
    return add_adapter(model, settings) if four_bit else model


# Training -----------------------------------------------------------------------------------------------------------


def build_arguments(settings: Settings, data: Data, new_tokens: int, output: Path) -> FusionTrainingArguments:
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


# The whole way ------------------------------------------------------------------------------------------------------


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
    settings = Settings(
        model=str(model),
        method=method,
        adapter=adapter,
        epochs=epochs or choose_epochs(len(rows.train), batch_size),
        learning_rate=learning_rate or choose_learning_rate(method, config),
        batch_size=batch_size,
        lora_rank=None if method == "full" else lora_rank,
        seed=seed,
        device=device,
        dtype=choose_dtype(method, device),
    )
    check_same_run(output, settings, rows)
    say(*describe_rows(data, rows, eval_data))
    is_new = not output.exists()
    try:
        before, history = train(settings, rows, processor, config, output)
        after = measure_saved(settings, rows, processor, config, output)
    except BaseException as error:  # also Ctrl-C
        clean_up(output, is_new)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise ValueError(describe_memory(settings)) from error
        raise
    report = build_report(settings, data, rows, before, after, history, time.monotonic() - start)
    finish(output, report)
    return report


def clean_up(output: Path, is_new: bool):
    """Remove what a run has left that stopped before its first checkpoint; say how to continue another one."""
    unfinished = output / UNFINISHED
    if unfinished.is_dir() and find_checkpoint(unfinished) is not None:
        say(f"{output} holds an unfinished run: the same command with --resume continues it.")
    elif output.is_dir():
        shutil.rmtree(output if is_new else unfinished, ignore_errors=True)


def say(*lines: str):
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def describe_rows(path: str | Path, data: Data, eval_path: str | Path | None) -> list[str]:
    origin = f"all of {Path(eval_path).name}" if eval_path is not None else "no image is in both"
    held_out = f"{len(data.held_out)} held out ({origin})" if data.held_out else "none held out: nothing is measured"
    skipped = f"; {data.num_skipped} bad rows skipped" if data.num_skipped else ""
    return [
        f"Rows of {Path(path).name}: {len(data.train)} to train on, {held_out}{skipped}.",
        *(f"Note: {notice}" for notice in data.notices),
    ]


def describe_training(
    settings: Settings, model: FusionForConditionalGeneration | PeftModel, output: Path
) -> list[str]:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in model.parameters())
    names = {"lora": f"LoRA of rank {settings.lora_rank}", "full": "All weights", "qlora": "LoRA on 4 bits"}
    # Weights in 4 bits are packed two to a number, so the share would be wrong.
    share = "" if settings.method == "qlora" else f" of {whole / 1e6:.1f}"
    passes = " with bfloat16 passes" if settings.device == "cuda" and torch.cuda.is_bf16_supported() else ""
    return [
        f"{names[settings.method]}: {trained / 1e6:.2f}{share} million parameters are trained on the"
        f" {settings.device.upper().replace('CUDA', 'GPU')} in {settings.dtype}{passes}.",
        f"Steps of {settings.batch_size} rows, {settings.epochs} times over all, learning rate"
        f" {settings.learning_rate:g}. The result will be in {output}.",
    ]


def describe_memory(settings: Settings) -> str:
    where = "GPU" if settings.device == "cuda" else "machine"
    advice = [f"a smaller --batch-size (now {settings.batch_size})"]
    advice += {"full": ["LoRA (leave --full out)"], "lora": ["--qlora"], "qlora": []}[settings.method]
    return (
        f"The {where} has too little memory. Try {', or '.join(advice)}; then close what else uses the memory. After"
        " the first checkpoint the folder keeps the run: remove it, since other settings are another run."
    )


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
    trainer = build_trainer(model, processor, config, build_arguments(settings, data, new_tokens, output), data)
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
    arguments = build_arguments(settings, data, count_new_tokens(processor, data.held_out), output)
    return measure(build_trainer(model, processor, config, arguments, data))


def build_report(
    settings: Settings,
    path: str | Path,
    data: Data,
    before: Figures | None,
    after: Figures | None,
    history: list[dict],
    seconds: float,
) -> dict:
    """Return what `finetune` returns."""
    report = {
        "settings": dataclasses.asdict(settings),
        "data": {
            "file": str(path),
            "train": len(data.train),
            "held_out": len(data.held_out),
            "skipped": data.num_skipped,
            "notices": data.notices,
        },
        "before": before and {"loss": before.loss, "accuracy": before.accuracy},
        "after": after and {"loss": after.loss, "accuracy": after.accuracy},
        "history": history,
        "seconds": round(seconds),
        "versions": {name: version(name) for name in ("fusion-vlm", "transformers", "torch", "peft")},
    }
    if after is not None:
        answer, accuracy = most_frequent_share(data.train, data.held_out)
        report["most_frequent_answer"] = {"answer": answer, "accuracy": accuracy}
        report["long_answers"] = are_long(data.held_out)
        report["examples"] = [
            {
                "source": row["source"],
                "question": question_of(row),
                "expected": expected_answer(row),
                "before": answer_before,
                "after": answer_after,
                "right": normalize_answer(answer_after) == normalize_answer(expected_answer(row)),
            }
            for row, answer_before, answer_after in zip(data.held_out, before.answers, after.answers, strict=True)
        ]
    return report


def finish(output: Path, report: dict):
    """Move what was saved into the output folder, write the report and the curves, and remove the rest of the run."""
    saved = output / UNFINISHED / "result"
    # Without its config a folder is no model, so one that is only half moved does not load.
    for path in sorted(saved.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
        os.replace(path, output / path.name)
    draw_curves(report, output / "curves.png")
    (output / REPORT_NAME).write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(output / UNFINISHED)
