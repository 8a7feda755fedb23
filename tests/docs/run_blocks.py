"""
Run the blocks of a page in the current folder, in order, and write what each printed.

    python run_blocks.py BLOCKS.json RESULTS.json

Python blocks share one namespace, as in a session. The first block that fails ends the run.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
import traceback


TIMEOUT = 300  # seconds of a shell block


def run_python(text: str, name: str, namespace: dict) -> tuple[str, str | None]:
    """Return what a block printed, and the traceback if it failed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(text, name, "exec"), namespace)
    except BaseException:
        return printed.getvalue(), traceback.format_exc()
    return printed.getvalue(), None


def run_shell(text: str) -> tuple[str, str | None]:
    """Return what a block printed on stdout, and stderr if it failed."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    return done.stdout, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}" if done.returncode else None


def main():
    blocks_file, results_file = sys.argv[1:]
    with open(blocks_file) as file:
        blocks = json.load(file)
    namespace, results = {"__name__": "__main__"}, []
    for block in blocks:
        start = time.perf_counter()
        if block["language"] == "python":
            # The lines before it are there as empty ones, so that a traceback has the line of the page.
            text = "\n" * (block["line"] - 1) + block["text"]
            printed, error = run_python(text, block["page"], namespace)
        else:
            printed, error = run_shell(block["text"])
        results.append({"printed": printed, "error": error, "seconds": round(time.perf_counter() - start, 1)})
        if error:
            break
    with open(results_file, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
