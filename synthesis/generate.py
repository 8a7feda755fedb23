"""
Makes training data from language: images, questions and answers.

    fusion-vlm synthesize --num 1000 --output DIR --seed 1
    fusion-vlm synthesize --num 1000 --output DIR --captions FILE \
        --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

commands/synthesize.py has the options. This module connects the models, runs the stages and writes the output.
"""

import asyncio
import functools
import sys
from dataclasses import dataclass

from fusion_vlm.synthesis.engine import Engine, RunFolder, finish
from fusion_vlm.synthesis.models.call_cache import CallCache, count_tokens
from fusion_vlm.synthesis.models.clip import ClipScorer
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.renderers import EndpointRenderer, FluxRenderer
from fusion_vlm.synthesis.output import Audit, write_output
from fusion_vlm.synthesis.pipeline import (
    CaptionSource,
    Clients,
    Options,
    SceneSource,
    build_steps,
    build_worker_steps,
)
from fusion_vlm.synthesis.report import summarize
from fusion_vlm.synthesis.stage import Renderer


@dataclass(frozen=True)
class Connections:
    """
    The addresses of models and how they are called: nothing that decides the result.

    Args:
        llm (`str`, *optional*), judge (`str`, *optional*), images (`str`, *optional*): addresses of endpoints.
        concurrency (`int`): calls in flight at once at each endpoint.
        timeout (`float`): seconds for an answer of a language model.
        clip_device (`str`), image_device (`str`): devices of CLIP and FLUX.
    """

    llm: str | None = None
    judge: str | None = None
    images: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    clip_device: str = "cpu"
    image_device: str = "cuda"


def generate(
    options: Options,
    folder: RunFolder,
    connections: Connections = Connections(),
    num_workers: int = 0,
    audit: Audit | None = None,
) -> dict | None:
    """
    Run a task, or resume it, and write the output if it was the last.

    Args:
        options (`Options`)
        folder (`RunFolder`): folder of the run, and the task.
        connections (`Connections`)
        num_workers (`int`): processes that draw; with 0, this process draws.
        audit (`Callable`, *optional*): audits the output, see `write_output`.

    Returns:
        `dict`, *optional*: the result of `summarize`, or `None` while other tasks are not finished.

    Raises:
        RunError: if the task cannot start or continue.
    """
    with folder.opened(options.config()):
        if folder.missing_parts():
            asyncio.run(_run(options, folder, connections, num_workers))
        return finish(folder, functools.partial(_write_output, options, folder, audit))


async def _run(options: Options, folder: RunFolder, connections: Connections, num_workers: int):
    folder.image_dir.mkdir(exist_ok=True)
    source = CaptionSource(options) if options.captions else SceneSource(options)
    clients = connect(options, folder, connections)
    steps = build_steps(options, folder, clients)
    num_active = 4 * max(num_workers, 1) + (2 * connections.concurrency if clients.chat_clients else 0)
    build = functools.partial(build_worker_steps, options, folder)
    try:
        for client in clients.chat_clients:
            await client.check()
        await Engine(source, steps, build, folder, clients.limits, num_workers, num_active).run()
    finally:
        for client in clients.chat_clients:
            await client.close()
            client.cache.close()


def connect(options: Options, folder: RunFolder, connections: Connections) -> Clients:
    """Connect or load all models of a run."""
    if options.is_exact:
        return Clients(concurrency=connections.concurrency)
    # Late: it needs pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.chat import ChatClient

    cache = CallCache(folder.calls_path)
    settings = {name: getattr(options, name) for name in ("temperature", "max_tokens")}
    settings |= {name: getattr(connections, name) for name in ("concurrency", "timeout")}
    judge = None
    if options.judge_model:
        judge = ChatClient(connections.judge or connections.llm, options.judge_model, cache, **settings)
    return Clients(
        writer=ChatClient(connections.llm, options.model, cache, **settings),
        judge=judge,
        renderer=load_renderer(options, connections),
        clip_score=ClipScorer(options.clip_model, connections.clip_device) if options.clip_model else None,
        concurrency=connections.concurrency,
    )


def load_renderer(options: Options, connections: Connections) -> Renderer | None:
    """Load or connect the image model; None if Pillow draws."""
    side = options.image_size
    if options.images == "flux":
        settings = {"num_inference_steps": options.image_steps, "guidance_scale": options.image_guidance}
        settings = {name: value for name, value in settings.items() if value is not None}
        return FluxRenderer(options.image_model, side, side, device=connections.image_device, **settings)
    if options.images == "endpoint":
        return EndpointRenderer(
            connections.images, options.image_model, f"{side}x{side}", send_seed=options.image_seed
        )
    return None


def _write_output(options: Options, folder: RunFolder, audit: Audit | None) -> dict:
    stages = [step.stage.name for step in build_steps(options, folder, Clients())]
    if options.captions:
        stages.insert(0, "deduplicate")
    summary = summarize(folder.read_samples(), stages)
    info = {"options": options.config(), "stages": summary["stages"]}
    if not options.is_exact:
        info["language_models"] = count_all_tokens(folder)
        _copy_prompts(folder)
    write_output(folder.read_samples(), folder.path, audit=audit, info=info)
    return summary


def _copy_prompts(folder: RunFolder):
    (folder.path / "prompts").mkdir(exist_ok=True)
    for name, prompt in load_prompts().items():
        folder.write(f"prompts/{name}.txt", prompt)


def count_all_tokens(folder: RunFolder, is_valid: bool = True) -> dict[str, dict[str, int]]:
    """Count the tokens of all tasks by model, see `count_tokens`."""
    total = {}
    for path in sorted((folder.path / "work").glob("*.calls.sqlite")):
        for model, counts in count_tokens(path, is_valid).items():
            row = total.setdefault(model, dict.fromkeys(counts, 0))
            for name, number in counts.items():
                row[name] += number
    return total


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["synthesize", *sys.argv[1:]]))
