"""Time and peak memory of what the benchmarks compare, and tables of the figures."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer


def synchronize(device: str):
    if device != "cpu":
        torch.cuda.synchronize()


def measure_times(contenders: dict[str, Callable], device: str, repeats: int) -> list[float]:
    """Return the best seconds of each contender. They alternate, and each must have run once before."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, contender in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            contender()
            synchronize(device)
            best[name] = min(best[name], time.perf_counter() - start)
    return list(best.values())


def read_status(field: str) -> int:
    """Read a memory field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_peak(contender: Callable, device: str) -> int:
    """Return the peak bytes that the second run of `contender` allocates beyond what is there before."""
    contender()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = read_status("VmRSS")
    contender()
    return read_status("VmHWM") - before


def in_fresh_process(function: Callable, *args):
    """Call `function(*args)` in a new process, which returns the memory of freed tensors to the system at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


class TokenClock(BaseStreamer):
    """A streamer that records the time of each token of `generate`."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass

    @property
    def seconds_per_token(self) -> float:
        # The first call has the prompt, the second the token after prefill.
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


def print_table(title: str, header: list[str], rows: list[list[str]], notes: str = ""):
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells))
    if notes:
        print(f"  {notes}")
    print(end="", flush=True)
