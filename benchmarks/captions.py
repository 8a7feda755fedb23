"""
Measures how captions are prepared: time, memory and disk, and what a part and a second task then cost.

    python benchmarks/captions.py [--short 1000000] [--long 100000]

Short captions have 12 words, long ones 100; a tenth of them come again. Each row is measured in a process of its own.
"""

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fusion_vlm.synthesis.sources.given import Columns
from fusion_vlm.synthesis.sources.inputs import find_input
from fusion_vlm.synthesis.sources.prepared import PreparedRows, Request, prepare


NUM_WORDS = 5000
REPEATED = 0.1  # share of captions that come again
PART_SIZE = 64


def write_captions(path: Path, num: int, length: int):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(NUM_WORDS)]
    last = "a caption"
    with open(path, "w") as file:
        for _ in range(num):
            if rng.random() >= REPEATED:
                last = " ".join(rng.choices(words, k=length))
            file.write(f"{last}\n")


def read_memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(path: Path, folder: Path) -> dict[str, float]:
    """Prepare captions, and read a part of them."""
    request = Request(find_input(str(path)), Columns(), "descriptions")
    (folder / "few.txt").write_text("a caption\n")
    # First a small input, so that imports are not measured.
    prepare(Request(find_input(str(folder / "few.txt")), Columns(), "descriptions"), folder / "few")
    before, start, cpu_start = read_memory(), time.perf_counter(), time.process_time()
    num_rows = prepare(request, folder / "rows")["num_rows"]
    figures = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu_start}
    figures |= {"memory": read_memory() - before, "before": before}
    start = time.perf_counter()
    prepare(request, folder / "rows")
    figures["again"] = time.perf_counter() - start
    start = time.perf_counter()
    rows = PreparedRows(request, folder / "rows")
    for first in range(0, num_rows, max(num_rows // 20, 1)):
        list(rows.read(range(first, min(first + PART_SIZE, num_rows))))
    figures["part"] = (time.perf_counter() - start) / 20
    figures["disk"] = sum(file.stat().st_size for file in (folder / "rows").iterdir())
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--short", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--long", type=int, default=100_000, metavar="N")
    args = parser.parse_args()
    print("| captions | wall | CPU | memory beyond a process of | disk | second task | a part of 64 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for num, length in ((args.short // 10, 12), (args.short, 12), (args.long // 10, 100), (args.long, 100)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "captions.txt"
            write_captions(path, num, length)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(measure, path, Path(folder)).result()
        print(
            f"| {num:,} of {length} words | {found['wall']:.1f} s | {found['cpu']:.1f} s"
            f" | {found['memory'] / 1e6:.0f} MB, {found['before'] / 1e6:.0f} MB | {found['disk'] / 1e6:.0f} MB"
            f" | {found['again']:.2f} s | {1000 * found['part']:.1f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
