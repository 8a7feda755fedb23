"""
Makes training data from language: images, questions and answers.

    fusion-vlm synthesize --num 1000 --output DIR --seed 1
    fusion-vlm synthesize --num 1000 --output DIR --captions FILE \
        --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

The first draws scenes and says about them what is exactly true, with no model at all; the second has a language model
behind an OpenAI-compatible endpoint (key in OPENAI_API_KEY) write, and FLUX or another endpoint draw. A run that was
stopped or killed goes on when the same command is given again. `--task I --num-tasks N` does a share of it: one for
each of N machines that see the folder.
"""

import asyncio
import functools
import sys
from dataclasses import dataclass

from fusion_vlm.synthesis.engine import Engine, RunFolder, finish
from fusion_vlm.synthesis.pipeline import (
    IMAGE_DIR,
    CaptionSource,
    Models,
    Options,
    Render,
    SceneSource,
    build_steps,
    build_worker_steps,
)
from fusion_vlm.synthesis.report import summarise


FLUX = "black-forest-labs/FLUX.1-dev"


@dataclass(frozen=True)
class Connections:
    """
    Where models are and how they are asked: nothing that may change what comes out.

    Args:
        llm, judge, images (`str`, *optional*): addresses of endpoints.
        concurrency (`int`): calls in flight at once at each.
        timeout (`float`): seconds for an answer.
    """

    llm: str | None = None
    judge: str | None = None
    images: str | None = None
    concurrency: int = 8
    timeout: float = 120.0


def generate(
    options: Options,
    folder: RunFolder,
    connections: Connections = Connections(),
    num_workers: int = 0,
) -> dict | None:
    """
    Runs a task, or what is left of it, and writes the output if it was the last.

    Args:
        num_workers (`int`): processes that draw; with 0, this one does.

    Returns:
        `dict`, *optional*: what came out, see `summarise`, or `None` while other tasks are not through.

    Raises:
        RunError: if it cannot start or go on.
    """
    with folder.opened(options.config()):
        if folder.missing_parts():
            asyncio.run(_run(options, folder, connections, num_workers))
        return finish(folder, functools.partial(_write_output, options, folder))


async def _run(options: Options, folder: RunFolder, connections: Connections, num_workers: int):
    (folder.path / IMAGE_DIR).mkdir(exist_ok=True)
    source = CaptionSource(options) if options.captions else SceneSource(options)
    models = load_models(options, folder, connections)
    clients = [client for client in (models.writer, models.judge) if client is not None]
    steps = build_steps(options, folder, models)
    limits = [client.limit for client in clients]
    limits += [step.stage.limit for step in steps if isinstance(step.stage, Render)]
    num_active = 4 * max(num_workers, 1) + (2 * connections.concurrency if clients else 0)
    build = functools.partial(build_worker_steps, options, folder)
    try:
        for client in clients:
            await client.check()
        await Engine(source, steps, build, folder, limits, num_workers, num_active).run()
    finally:
        for client in clients:
            await client.close()
            client.cache.close()


def load_models(options: Options, folder: RunFolder, connections: Connections) -> Models:
    models = Models(concurrency=connections.concurrency)
    if options.is_exact:
        return models
    from fusion_vlm.synthesis.models.chat import CallCache, ChatClient

    cache = CallCache(folder.calls_path)
    settings = {name: getattr(options, name) for name in ("temperature", "max_tokens")}
    settings |= {name: getattr(connections, name) for name in ("concurrency", "timeout")}
    models.writer = ChatClient(connections.llm, options.model, cache, **settings)
    if options.judge_model:
        models.judge = ChatClient(connections.judge or connections.llm, options.judge_model, cache, **settings)
    if options.images == "flux":
        from fusion_vlm.synthesis.models.renderers import FluxRenderer

        size = options.image_size
        models.renderer = FluxRenderer(options.image_model, width=size, height=size)
    if options.images == "endpoint":
        from fusion_vlm.synthesis.models.renderers import EndpointRenderer

        size = f"{options.image_size}x{options.image_size}"
        models.renderer = EndpointRenderer(connections.images, options.image_model, size)
    if options.clip_model:
        from fusion_vlm.synthesis.filters.rules import ClipScorer

        models.clip_score = ClipScorer(options.clip_model)
    return models


def _write_output(options: Options, folder: RunFolder) -> dict:
    from fusion_vlm.synthesis.output import write_output

    stages = [step.stage.name for step in build_steps(options, folder, Models())]
    if options.captions:
        stages.insert(0, "deduplicate")
    summary = summarise(folder.read_samples(), stages)
    info = {"options": options.config(), "stages": summary["stages"]}
    if not options.is_exact:
        info["language_models"] = count_all_tokens(folder)
        _copy_prompts(folder)
    write_output(folder.read_samples(), folder.path, audit=True, info=info)
    return summary


def _copy_prompts(folder: RunFolder):
    from fusion_vlm.synthesis.models.chat import load_prompts

    (folder.path / "prompts").mkdir(exist_ok=True)
    for name, prompt in load_prompts().items():
        folder.write(f"prompts/{name}.txt", prompt)


def count_all_tokens(folder: RunFolder, is_valid: bool = True) -> dict[str, dict[str, int]]:
    """`llm.count_tokens` over all tasks."""
    total = {}
    for path in sorted((folder.path / "work").glob("*.calls.sqlite")):
        from fusion_vlm.synthesis.models.chat import count_tokens

        for model, counts in count_tokens(path, is_valid).items():
            row = total.setdefault(model, dict.fromkeys(counts, 0))
            for name, number in counts.items():
                row[name] += number
    return total


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["synthesize", *sys.argv[1:]]))
