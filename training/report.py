"""What a fine-tuning came to: a table for the terminal, and curves."""

from pathlib import Path


NUM_EXAMPLES, MAX_WRONG_EXAMPLES = 6, 3
CELL_WIDTH = 36


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
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines.append("")
    for row in cells:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines)


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 3] + "..."


def draw_curves(report: dict, path: str | Path):
    """Draw the losses, and the accuracy if rows were held out, over the steps of a report of `finetune`."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

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
