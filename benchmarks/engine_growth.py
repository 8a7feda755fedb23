"""
Measures how the data engine grows with the number of samples: wall, CPU, peak memory, files, bytes.

    python benchmarks/engine_growth.py 1000 10000 100000 [--num-workers 2] [--work DIR]

Each number is a run of exact samples by the command line, in a process of its own. CPU is that of all its processes,
the peak is the largest sum of their resident memory, read ten times a second. The last line scales the largest run to
the paper's 4 million samples.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


PAPER_SAMPLES = 4_000_000


@dataclass(frozen=True)
class Growth:
    """What a run took: seconds of wall and CPU, peak bytes of memory, files and bytes on disk."""

    num: int
    wall: float
    cpu: float
    peak: int
    num_files: int
    most_in_a_folder: int
    num_bytes: int

    def row(self) -> str:
        """Return a row of the table."""
        each = self.num / 1000
        return (
            f"| {self.num:,} | {self.wall:.0f} s | {self.cpu:.0f} s | {self.wall / each:.1f} ms"
            f" | {self.cpu / each:.1f} ms | {self.peak / 2**20:.0f} MiB | {self.num_files:,}"
            f" | {self.most_in_a_folder:,} | {self.num_bytes / 1e6:.0f} MB |"
        )


def run(num: int, folder: Path, options: list[str]) -> Growth:
    """Run the command line, and measure it."""
    line = [
        sys.executable,
        "-m",
        "fusion_vlm.synthesis.generate",
        "--num",
        str(num),
        "--output",
        str(folder),
        *options,
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    peak = 0
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads is full after 20,000 steps of the progress bar
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, read_memory(process.pid))
            time.sleep(0.1)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read().decode())
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Growth(
        num=num,
        wall=wall,
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak=peak,
        num_files=len(files),
        most_in_a_folder=max(Counter(path.parent for path in files).values()),
        num_bytes=sum(path.stat().st_size for path in files),
    )


def read_memory(process_id: int) -> int:
    """Return the resident bytes of a process and its children."""
    try:
        pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * resource.getpagesize() + sum(read_memory(int(child)) for child in children)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for the runs, which are removed (default: a temporary one)")
    args = parser.parse_args()
    print("| samples | wall | CPU | wall each | CPU each | peak memory | files | most in a folder | disk |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for num in sorted(args.numbers):
        folder = Path(tempfile.mkdtemp(dir=args.work)) / "run"
        growth = run(num, folder, ["--seed", "1", "--num-workers", str(args.num_workers)])
        shutil.rmtree(folder.parent)
        print(growth.row(), flush=True)
    scale = PAPER_SAMPLES / growth.num
    print(
        f"\n{PAPER_SAMPLES:,} samples, computed from the last row: {growth.cpu * scale / 3600:.0f} core-hours,"
        f" {growth.num_bytes * scale / 1e9:.0f} GB"
    )


if __name__ == "__main__":
    main()
