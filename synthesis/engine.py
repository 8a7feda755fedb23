"""
Runs the samples of a part through stages. docs/engine.md says how a run survives kills.

A sample passes the stages in order until one rejects it. Several samples are in progress at once, and the results come
back in the order of the samples, so nothing depends on which call of a model ends first.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import iscoroutinefunction
from itertools import groupby

from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.stage import Stage


@dataclass(frozen=True)
class Begun:
    """
    A sample and the stage that it continues at.

    Args:
        sample (`Sample`)
        next_stage (`int`): index of that stage; the number of stages for a sample that is finished.
    """

    sample: Sample
    next_stage: int = 0


async def run_samples(
    begun: Iterable[Begun],
    stages: list[Stage],
    num_active: int = 8,
    report: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """
    Run samples through stages, and return them in the order in which they came.

    Async stages run in the event loop. If there is one, the others run in threads, so that a long computation does not
    delay the answers of a model. Without async stages all run here, one sample after another.

    Args:
        begun (`Iterable[Begun]`): read as samples are needed.
        stages (`list[Stage]`): in order. Rejected samples skip the following stages.
        num_active (`int`): samples in progress at once.
        report (`Callable`): called for each finished sample.

    Raises:
        Exception: any error of a stage, at once. Samples in progress are lost.
    """
    work, finished = iter(enumerate(begun)), {}
    with ThreadPoolExecutor(num_active) as threads:

        async def run_lane():
            """Run samples one after another. All lanes take them from the same iterator."""
            for place, item in work:
                finished[place] = await _run_sample(item, stages, threads)
                report()

        lanes = [asyncio.create_task(run_lane()) for _ in range(num_active)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
    return [finished[place] for place in range(len(finished))]


async def _run_sample(begun: Begun, stages: list[Stage], threads: ThreadPoolExecutor) -> Sample:
    sample, left = begun.sample, stages[begun.next_stage :]
    has_calls = any(map(is_async, stages))
    # Neighboring stages of one sort run together, so that a sample goes to a thread once.
    for is_call, group in groupby(left, key=is_async):
        if is_call:
            for stage in group:
                sample = await stage(sample) if sample.reason is None else sample
        elif has_calls:
            loop = asyncio.get_running_loop()
            sample = await loop.run_in_executor(threads, run_stages, list(group), sample)
        else:
            sample = run_stages(group, sample)
            await asyncio.sleep(0)  # without a pause, Ctrl-C would wait for the end of the part
    return sample


def is_async(stage: Stage) -> bool:
    return iscoroutinefunction(stage.__call__)


def run_stages(stages: Iterable[Stage], sample: Sample) -> Sample:
    """Run a sample through stages that are not async."""
    for stage in stages:
        if sample.reason is None:
            sample = stage(sample)
    return sample
