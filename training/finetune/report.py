"""Reports a fine-tuning: lines while it runs, the report that is kept, a table for the terminal, and curves."""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from matplotlib.figure import Figure  # pyplot would choose a window system
from torch import nn

from fusion_vlm.training.finetune.answers import (
    are_long,
    expected_answer,
    find_question,
    most_frequent_share,
    normalize_answer,
)
from fusion_vlm.training.finetune.rows import Data
from fusion_vlm.training.finetune.settings import Settings
from fusion_vlm.training.tables import format_table


NUM_EXAMPLES, MAX_WRONG_EXAMPLES = 6, 3
CELL_WIDTH = 36


@dataclass(frozen=True)
class Figures:
    """Loss and accuracy on the held-out rows, and the answers in their order."""

    loss: float
    accuracy: float
    answers: list[str]


def describe_rows(path: str | Path, data: Data, eval_path: str | Path | None) -> list[str]:
    """Return the lines on the rows that a run begins with."""
    origin = f"all of {Path(eval_path).name}" if eval_path is not None else "no image is in both"
    held_out = f"{len(data.held_out)} held out ({origin})" if data.held_out else "none held out: nothing is measured"
    skipped = f"; {data.num_skipped} bad rows skipped" if data.num_skipped else ""
    return [
        f"Rows of {Path(path).name}: {len(data.train)} to train on, {held_out}{skipped}.",
        *(f"Note: {notice}" for notice in data.notices),
    ]


def describe_training(settings: Settings, model: nn.Module, output: Path) -> list[str]:
    """Return the lines on parameters and settings that a run begins with."""
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
    """Return what to change if the memory is too small."""
    where = "GPU" if settings.device == "cuda" else "machine"
    advice = [f"a smaller --batch-size (now {settings.batch_size})"]
    advice += {"full": ["LoRA (leave --full out)"], "lora": ["--qlora"], "qlora": []}[settings.method]
    return (
        f"The {where} has too little memory. Try {', or '.join(advice)}; then close what else uses the memory. After"
        " the first checkpoint the folder keeps the run: remove it, since other settings are another run."
    )


def build_report(
    settings: Settings,
    path: str | Path,
    data: Data,
    before: Figures | None,
    after: Figures | None,
    history: list[dict],
    seconds: float,
) -> dict:
    """Return the report of a fine-tuning, which JSON can hold."""
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
                "question": find_question(row),
                "expected": expected_answer(row),
                "before": answer_before,
                "after": answer_after,
                "right": normalize_answer(answer_after) == normalize_answer(expected_answer(row)),
            }
            for row, answer_before, answer_after in zip(data.held_out, before.answers, after.answers, strict=True)
        ]
    return report


def choose_examples(examples: list[dict]) -> list[dict]:
    """Return a few examples (`right` says which are): some wrong ones, then right ones."""
    wrong = [example for example in examples if not example["right"]]
    right = [example for example in examples if example["right"]]
    num_right = min(len(right), NUM_EXAMPLES - min(len(wrong), MAX_WRONG_EXAMPLES))
    return right[:num_right] + wrong[: NUM_EXAMPLES - num_right]


def format_report(report: dict) -> str:
    """Return the figures and a few examples of a report of `finetune` as text."""
    before, after = report["before"], report["after"]
    if after is None:
        return "Nothing was held out, so nothing was measured."
    lines = [f"{'Held-out rows: ' + str(report['data']['held_out']):24}{'before':>8}{'after':>8}"]
    lines.append(f"{'  loss':24}{before['loss']:8.2f}{after['loss']:8.2f}")
    lines.append(f"{'  right answers':24}{before['accuracy']:8.0%}{after['accuracy']:8.0%}")
    baseline = report["most_frequent_answer"]
    if report["long_answers"]:
        lines.append("  The answers are long, so hardly one is repeated exactly: go by the loss and the examples.")
    else:
        lines.append(f"  (always answering {shorten(baseline['answer'])!r}: {baseline['accuracy']:.0%})")
    names = ("question", "expected", "before", "after")
    cells = [names, *([shorten(example[name]) for name in names] for example in choose_examples(report["examples"]))]
    return "\n".join([*lines, "", *format_table(cells, numbers=False)])


def shorten(text: str) -> str:
    """Return a text in one line that fits a cell of the table."""
    text = " ".join(text.split())
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 3] + "..."


def draw_curves(report: dict, path: str | Path):
    """Draw the losses, and the accuracy if rows were held out, over the steps of a report of `finetune`."""
    history = list(report["history"])
    if report["before"] is not None:
        before = {
            "step": 0,
            "held_out_loss": report["before"]["loss"],
            "held_out_accuracy": report["before"]["accuracy"],
        }
        history.insert(0, before)
    panels = [("loss", {"loss": "training", "held_out_loss": "held out"})]
    if report["before"] is not None:
        panels.append(("right answers (held out)", {"held_out_accuracy": None}))
    figure = Figure(figsize=(4.8 * len(panels), 3.6), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, label in curves.items():
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0, **({"top": 1.02} if "answers" in title else {}))
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)
