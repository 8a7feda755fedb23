"""How the tests of the data engine make runs, here or in another process, and read what is in them."""

import io
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fusion_vlm.synthesis.connections import Connections
from fusion_vlm.synthesis.generate import generate
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.shards import list_shards, read_accepted, read_rejects, read_shard


FAULTS = {"429": 0.05, "500": 0.05, "503_html": 0.03, "reset": 0.02, "cut_body": 0.03, "cut_content": 0.03}


COMMAND = Path(__file__).parent / "run_without_audit.py"


def start(output: Path, *options, **settings) -> subprocess.Popen:
    """Start the command in another process, without the audit, whose imports take longer than these runs."""
    line = [sys.executable, COMMAND, "--output", output, "--seed", "7", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(part) for part in line], **pipes, **settings)


def complete(output: Path, *options) -> str:
    """Run the command in another process, check that it succeeds, and return what it printed."""
    process = start(output, *options)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


def read_files(output: Path) -> dict[str, bytes]:
    """Read all files of a finished run. In `work/` are locks, and what the answers cost that were not valid."""
    names = {path.name for path in output.glob("work/*")}
    assert all(name.endswith(".lock") or name.startswith("invalid-") for name in names), names
    paths = (path for path in sorted(output.rglob("*")) if path.is_file() and path.parent.name != "work")
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def read_records(output: Path) -> list[dict]:
    """Read the finished samples of a run in order, accepted and rejected."""
    samples = [*(sample for sample, _ in read_accepted(output)), *read_rejects(output)]
    return sorted((sample.to_dict() for sample in samples), key=lambda record: record["source"]["position"])


def check_that_nothing_is_torn(output: Path, num: int):
    """Check that every file is whole."""
    for path in [*(output / "images").glob("*"), *(output / "work").glob("part-*/images/*.jpg")]:
        with Image.open(path) as image:
            image.load()
    for path in list_shards(output):
        for row in read_shard(path):
            Image.open(io.BytesIO(row["images"][0]["bytes"])).load()
    folder, found = RunFolder(output, num), [record["source"]["position"] for record in read_records(output)]
    for part in folder.done_parts():
        indices = folder.part_indices(part)
        assert [index for index in found if index in indices] == [*indices]
    for path in [*output.glob("*.json"), *output.glob("parts/*")]:
        json.loads(path.read_text(encoding="utf-8"))


def run(
    output: Path, num: int = 24, task: int = 0, num_tasks: int = 1, num_workers: int = 0, url: str = "", **options
):
    """Run in this process, without the audit; with `url`, the address of an endpoint, with a language model."""
    settings = {name: options.pop(name) for name in ("retry_rejected",) if name in options}
    options = Options(num, model="stub" if url else None, **{"seed": 7, "image_size": 128, **options})
    folder = RunFolder(output, num, task, num_tasks)
    return generate(options, folder, Connections(llm=url, images=url), num_workers, **settings)
