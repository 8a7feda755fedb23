"""Shows the progress of a training: a bar in a terminal, a few lines in a log, with the remaining time."""

import sys
import time

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback


NUM_LINES = 20
NAMES = {"loss": "loss", "eval_loss": "held-out loss", "eval_accuracy": "held-out accuracy"}


def describe(logs: dict, step: int, num_steps: int) -> str | None:
    """Return a line about what `Trainer` logs, None if there is nothing to show."""
    values = [f"{name} {logs[key]:.3g}" for key, name in NAMES.items() if key in logs]
    return f"  step {step}/{num_steps}: {', '.join(values)}" if values else None


def describe_time(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class ProgressBar(ProgressCallback):
    """`Trainer`'s bar, with the held-out figures above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "eval_loss" in logs:
            self.training_bar.write(describe(logs, state.global_step, state.max_steps), file=sys.stderr)


class ProgressLines(TrainerCallback):
    """Lines on stderr, about `NUM_LINES` of them and one for each evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first_step, self.last_step = time.monotonic(), state.global_step, state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        step, num_steps = state.global_step, state.max_steps
        line = describe(logs, step, num_steps)
        is_training = hasattr(self, "start") and num_steps > 0
        if line is None or not is_training:
            return
        if "eval_loss" not in logs and step - self.last_step < num_steps / NUM_LINES:
            return
        self.last_step = step
        if step > self.first_step:
            left = (time.monotonic() - self.start) / (step - self.first_step) * (num_steps - step)
            line += f" ({describe_time(left)} left)" if step < num_steps else ""
        print(line, file=sys.stderr, flush=True)
