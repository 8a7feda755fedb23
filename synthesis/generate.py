"""
Makes training data from language: images, questions and answers.

    fusion-vlm synthesize --num 1000 --output DIR --seed 1
    fusion-vlm synthesize --num 1000 --output DIR --captions FILE \
        --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

commands/synthesize.py has the options. This module chooses the runner, and writes the output once all parts are there.
"""

import asyncio
import dataclasses
import json
import socket
import sys
from collections.abc import Iterable

from fusion_vlm.synthesis.connections import Connections
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.output import Audit, read_counts, write_output
from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.parts import Job, Report, make_parts, reopen_parts
from fusion_vlm.synthesis.pipeline import Clients, build_stages
from fusion_vlm.synthesis.ray_runner import run_on_ray
from fusion_vlm.synthesis.report import summarize
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.shards import SHARD_SUFFIXES
from fusion_vlm.synthesis.sources.given import STAGE
from fusion_vlm.synthesis.sources.source import DEDUPLICATE, prepare_rows
from fusion_vlm.synthesis.workers import WorkerPool, bar, run_here


DEFAULT, SILENT = Connections(), Report()
# Calls in flight that one process drives: the client needs about 17 ms of CPU for each call.
CALLS_PER_PROCESS = 8


def generate(
    options: Options,
    folder: RunFolder,
    connections: Connections = DEFAULT,
    num_workers: int = 0,
    audit: Audit | None = None,
    retry_rejected: Iterable[str] | None = None,
    runner: str = "local",
    ray_address: str | None = None,
) -> dict | None:
    """
    Make the parts of a run that are missing, and write the output if no other task has parts in progress.

    Args:
        options (`Options`)
        folder (`RunFolder`): folder of the run, and the task.
        connections (`Connections`)
        num_workers (`int`): most worker processes; with 0, this process makes the parts, or Ray uses all its cores.
        audit (`Audit`, *optional*): audits the output, see `write_output`.
        retry_rejected (`Iterable[str]`, *optional*): retries rejects of these rules first, see `reopen_parts`.
        runner (`str`): `local` or `ray`.
        ray_address (`str`, *optional*): of a cluster; without one, Ray runs on this machine.

    Returns:
        `dict`, *optional*: the result of `summarize`, or `None` while other tasks are not finished.

    Raises:
        RunError: if the run cannot start or continue.
    """
    folder.prepare(options.config())
    if retry_rejected is not None:
        reopen_parts(folder, retry_rejected, SHARD_SUFFIXES[options.shard_format])
    if folder.missing_parts():
        if options.rows:
            prepare_rows(options, folder.path, options.num)
        num_workers = count_workers(options, folder, connections, num_workers, runner)
        job = Job(options, folder, connections)
        with bar(job) as progress:
            if runner == "ray":
                run_on_ray(job, ray_address, num_workers, progress)
            elif num_workers:
                job = dataclasses.replace(job, connections=connections.shared(num_workers))
                WorkerPool(job, num_workers, progress).run()
            else:
                run_here(job, progress)
    return finish(options, folder, audit)


def count_workers(
    options: Options, folder: RunFolder, connections: Connections, num_workers: int, runner: str = "local"
) -> int:
    """Return how many parts to make at once: no more than are of use, 0 for this process or all that Ray has."""
    num_useful = len(folder.missing_parts())
    if options.images == "flux" or options.clip_model:
        # The models are on one device of this machine. On Ray, each part has a GPU of its own.
        return min(num_workers, 1) if runner == "local" else num_workers
    if options.has_models:
        num_useful = min(num_useful, -(-connections.concurrency // CALLS_PER_PROCESS))
    if runner == "ray" and num_workers == 0:
        return 0 if options.is_exact else num_useful
    return min(num_workers, num_useful)


def run_part(
    options: Options,
    folder: RunFolder,
    part: int,
    connections: Connections = DEFAULT,
    report: Report = SILENT,
) -> bool:
    """
    Make one part in this process, for runners of other makes. The folder has to be prepared, see `RunFolder.prepare`.

    Args:
        options (`Options`)
        folder (`RunFolder`)
        part (`int`): index of the part, from 0 to `folder.num_parts - 1`.
        connections (`Connections`): with the calls in flight of this part.
        report (`Report`): functions that are called meanwhile.

    Returns:
        `bool`: whether the part is finished; False if another process holds it.

    Raises:
        RunError: if a service is down, or this machine does not see the folder.
    """
    if not (folder.path / "run.json").is_file():
        raise RunError(
            f"{folder.path} holds no run on {socket.gethostname()}. Mount the folder of the run at the same path on"
            " all nodes; finished parts stay."
        )
    if options.rows and not (folder.work_dir / "input" / "prepared.json").is_file():
        prepare_rows(options, folder.path, options.num)
    asyncio.run(make_parts(Job(options, folder, connections), report, [part]))
    return folder.is_done(part)


def finish(options: Options, folder: RunFolder, audit: Audit | None = None) -> dict | None:
    """
    Write the output if all parts are finished and no other task has written it.

    Returns:
        `dict`, *optional*: the content of `done.json`, or `None` while parts are missing.
    """
    with folder.locked("finish"):
        if folder.missing_parts():
            return None
        done = folder.path / "done.json"
        if not done.is_file():
            folder.clean()
            folder.write(done, json.dumps(_write_output(options, folder, audit), indent=2) + "\n")
        return json.loads(done.read_text())


def _write_output(options: Options, folder: RunFolder, audit: Audit | None) -> dict:
    stages = [stage.name for stage in build_stages(options, PartImages(folder.work_dir), Clients())]
    if options.rows:
        stages = [*dict.fromkeys([DEDUPLICATE if options.first_stage == "descriptions" else STAGE, *stages])]
    counts = read_counts(folder)
    summary = summarize(counts, stages)
    info = {"options": options.config(), "stages": summary["stages"]}
    if not options.is_exact:
        info["language_models"] = counts.tokens
        (folder.path / "prompts").mkdir(exist_ok=True)
        for name, prompt in load_prompts().items():
            folder.write(f"prompts/{name}.txt", prompt)
    write_output(folder, options, audit=audit, info=info)
    return summary


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["synthesize", *sys.argv[1:]]))
