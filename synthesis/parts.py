"""
Makes parts of a run: claims one, runs its samples through the stages, and writes its files.

A part that was killed is made again: its calls and its images by a model were kept, and the rest is fast to repeat. A
finished part can be reopened to retry some of its rejects.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fusion_vlm.synthesis.connections import Connections, connect
from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.engine import Begun, run_samples
from fusion_vlm.synthesis.filters.duplicates import reject_near_duplicates
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.output import read_invalid_tokens, write_part
from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.pipeline import Clients, build_stages
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.shards import read_reject_file, read_reject_images, read_shard
from fusion_vlm.synthesis.sources.source import SOURCE_STAGES, Source, open_source
from fusion_vlm.synthesis.stage import Stage


# Rules of rejects whose cause may pass. Those about the content of an answer get other seeds in a retry.
ANSWER_RULES = ("invalid_answer", "too_long", "too_large")
PASSING_RULES = (
    *ANSWER_RULES,
    *("no_image", "timeout", "http_*", "connection", "not_a_completion", "error_body", "no_choices", "sdk"),
)
# Parts of a process that are in progress at once: while the last calls of one run, those of the next begin.
NUM_LANES = 2
# Passes over parts that other processes hold, and seconds between them: a process that was just killed lets go soon.
NUM_PASSES, PASS_SECONDS = 10, 0.5


@dataclass(frozen=True)
class Job:
    """
    All that a process needs to make parts of a run; it can be pickled.

    Args:
        options (`Options`)
        folder (`RunFolder`): the folder, prepared.
        connections (`Connections`)
    """

    options: Options
    folder: RunFolder
    connections: Connections = Connections()

    @property
    def num_lanes(self) -> int:
        return NUM_LANES if self.options.has_models else 1

    @property
    def needs_gpu(self) -> bool:
        """Return whether a model that this package loads runs on a GPU."""
        devices = [self.connections.image_device] if self.options.images == "flux" else []
        devices += [self.connections.clip_device] if self.options.clip_model else []
        return any(device != "cpu" for device in devices)


@dataclass(frozen=True)
class Report:
    """Functions that are called when a part begins and ends, with its index, and at the end of each sample."""

    begin: Callable[[int], None] = lambda part: None
    sample: Callable[[int], None] = lambda part: None
    end: Callable[[int], None] = lambda part: None


async def make_parts(job: Job, report: Report = Report(), parts: Iterable[int] | None = None):
    """
    Make the parts of a run that are neither finished nor held by other processes.

    Args:
        job (`Job`)
        report (`Report`)
        parts (`Iterable[int]`, *optional*): the only parts to make; by default all.

    Raises:
        RunError: if a service is down.
        Exception: any error of a stage. Finished parts stay, and so do finished calls.
    """
    if not job.folder.missing_parts():
        return
    only = None if parts is None else set(parts)
    source = open_source(job.options, job.folder)
    clients = connect(job.options, job.connections)
    async with AsyncExitStack() as stack:
        for client in clients.chat_clients:
            stack.push_async_callback(client.close)
            await client.check()
        active: set[int] = set()
        lanes = [_run_lane(job, source, clients, report, only, active) for _ in range(job.num_lanes)]
        lanes = [asyncio.create_task(lane) for lane in lanes]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


async def _run_lane(
    job: Job,
    source: Source,
    clients: Clients,
    report: Report,
    only: set[int] | None,
    active: set[int],
):
    """Make one part after another. `active` are the parts of all lanes of this process."""
    num_left = NUM_PASSES
    while num_left:
        missing = [part for part in job.folder.missing_parts() if only is None or part in only]
        if not set(missing) - active:
            return
        num_left -= 1
        for part in missing:
            if part in active or job.folder.is_done(part):
                continue
            with job.folder.claimed(part) as is_mine:
                if not is_mine:
                    continue
                active.add(part)
                report.begin(part)
                await make_part(job, part, source, clients, lambda part=part: report.sample(part))
                report.end(part)
                active.remove(part)
                num_left = NUM_PASSES
        if num_left and num_left < NUM_PASSES:
            await asyncio.sleep(PASS_SECONDS)


async def make_part(job: Job, part: int, source: Source, clients: Clients, report: Callable[[], None]):
    """Make a part that this process holds, and write its files. `report` is called at the end of each sample."""
    folder, options = job.folder, job.options
    images = PartImages(folder.part_dir(part) / "images", is_kept=options.images != "pillow")
    cache = None
    try:
        if clients.chat_clients:
            cache = CallCache(folder.part_dir(part) / "calls.jsonl")
            clients = clients.with_cache(cache)
        stages = build_stages(options, images, clients)
        # As many again as calls at once, so that a call follows each that ends; and some for the other stages.
        num_active = 4 + 2 * job.connections.concurrency
        begun = _begin(folder, part, source, images, stages)
        samples = await run_samples(begun, stages, num_active, report, options.has_models)
        # Rejects that are retried may fail again without loss, even if they are all that is asked.
        if not _reopened_path(folder, part).is_file():
            for limit in clients.limits:
                limit.check()
        if options.min_image_distance is not None:
            reject_near_duplicates(samples, images, options.min_image_distance)
        write_part(folder, part, samples, images, options, cache)
    finally:
        if cache is not None:
            cache.close()


def _begin(folder: RunFolder, part: int, source: Source, images: PartImages, stages: list[Stage]) -> Iterator[Begun]:
    """Yield the samples of a part: new ones, or those of a part that was reopened."""
    path = _reopened_path(folder, part)
    if not path.is_file():
        yield from map(Begun, source.read(folder.part_indices(part), images))
        return
    names = [stage.name for stage in stages]
    with open(path, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            sample = Sample.from_dict(entry["sample"])
            # Duplicates are found as captions are read, before the first stage.
            next_stage = names.index(entry["stage"]) if entry["stage"] in names else 0
            yield Begun(sample, len(stages) if entry["stage"] is None else next_stage)


# Rejects that are retried -------------------------------------------------------------------------------------------


def reopen_parts(folder: RunFolder, rules: Iterable[str], shard_suffix: str) -> int:
    """
    Reopen the finished parts that have rejects of some rules, so that these are retried at the stage that rejected.

    All else of a part is kept, whenever the process is killed. Numbers of samples and parts do not change.

    Args:
        folder (`RunFolder`)
        rules (`Iterable[str]`): `rule` or `stage/rule`, with `*` for any letters; none are all of `PASSING_RULES`.
        shard_suffix (`str`): of the shards.

    Returns:
        `int`: the number of rejects that are retried.
    """
    rules = tuple(rules) or PASSING_RULES
    total = 0
    with folder.locked("finish"):  # the output is not written meanwhile
        for part in folder.done_parts():
            path = folder.rejects_path(part)
            rejects = list(read_reject_file(path)) if path.exists() else []
            retried = {sample.id for sample in rejects if _matches(sample, rules)}
            if retried:
                with folder.locked(f"part-{part:05d}"):
                    _reopen_part(folder, part, rejects, retried, shard_suffix)
                total += len(retried)
    return total


def _reopen_part(folder: RunFolder, part: int, rejects: list[Sample], retried: set[str], shard_suffix: str):
    # The marker of a finished part goes last: a kill before leaves the part as it was.
    (folder.path / "done.json").unlink(missing_ok=True)
    shutil.rmtree(folder.part_dir(part), ignore_errors=True)
    images = PartImages(folder.part_dir(part) / "images", is_kept=True)
    cache = CallCache(folder.part_dir(part) / "calls.jsonl")
    cache.add_totals(Counts.from_json(folder.counts_path(part).read_text()).tokens, read_invalid_tokens(folder, part))
    cache.close()
    samples = {sample.source["position"]: sample for sample in rejects}
    for row in read_shard(folder.shard_path(part, shard_suffix), ("images", "sample")):
        sample = Sample.from_dict(json.loads(row["sample"]))
        samples[sample.source["position"]] = sample
        if sample.image is not None:
            images.write(sample.image, row["images"][0]["bytes"])
    names = {sample.id: sample.image for sample in rejects}
    for sample_id, content in read_reject_images(folder.reject_images_path(part)):
        images.write(names[sample_id], content)
    lines = [json.dumps(_reopen_sample(samples[index], retried)) for index in sorted(samples)]
    folder.write(_reopened_path(folder, part), "\n".join(lines) + "\n")
    folder.counts_path(part).unlink()


def _matches(sample: Sample, rules: tuple[str, ...]) -> bool:
    stage, rule = sample.rejected_by
    if stage in SOURCE_STAGES:
        return False  # the row is not read again
    return any(fnmatch(rule, pattern) or fnmatch(f"{stage}/{rule}", pattern) for pattern in rules)


def _reopen_sample(sample: Sample, retried: set[str]) -> dict:
    """Return a sample as a line of a part that was reopened, with the stage that it continues at."""
    stage = None
    if sample.id in retried:
        stage, rule = sample.rejected_by
        sample.reason = None
        if rule in ANSWER_RULES:
            sample.source["num_retries"] = sample.source.get("num_retries", 0) + 1
    return {"sample": sample.to_dict(), "stage": stage}


def _reopened_path(folder: RunFolder, part: int) -> Path:
    return folder.part_dir(part) / "reopened.jsonl"
