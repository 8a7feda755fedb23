"""
Makes training data from language: images, questions and answers.

    python -m fusion_vlm.synthesis.generate --num 1000 --output DIR --seed 1
    python -m fusion_vlm.synthesis.generate --num 1000 --output DIR --captions FILE \
        --llm http://localhost:8000/v1 --model NAME [--judge-model NAME] --images flux

The first draws scenes and says about them what is exactly true, with no model at all; the second has a language model
behind an OpenAI-compatible endpoint (key in OPENAI_API_KEY) write, and FLUX or another endpoint draw. A run that was
stopped or killed goes on when the same command is given again. `--task I --num-tasks N` does a share of it: one for
each of N machines that see the folder.
"""

import argparse
import asyncio
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fusion_vlm.commands.interrupts import accept_interrupts
from fusion_vlm.synthesis.engine import Engine, RunError, RunFolder, finish
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
from fusion_vlm.synthesis.report import Prices, describe_estimate, describe_summary, summarise
from fusion_vlm.synthesis.sample import KINDS


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


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fusion_vlm.synthesis.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what").add_argument
    add("--num", type=int, required=True, metavar="N", help="samples that are begun; filters may reject some")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the run and of what comes out")
    add("--seed", type=int, default=0)
    add("--kinds", nargs="+", default=KINDS, metavar="KIND", help=f"in turn, of: {', '.join(KINDS)} (default: all)")
    add("--captions", metavar="FILE", help=".txt, .jsonl, .parquet or a Hub data set (default: the scene grammar)")
    add("--caption-column", default="caption", metavar="NAME")
    add = parser.add_argument_group("models").add_argument
    add(
        "--llm", metavar="URL", help="OpenAI-compatible endpoint of the model that writes, such as http://host:8000/v1"
    )
    add("--model", metavar="NAME", help="its name there")
    add("--judge-model", metavar="NAME", help="model that checks the answers")
    add("--judge-llm", metavar="URL", help="its endpoint (default: that of --llm)")
    add("--temperature", type=float, default=0.7)
    add("--max-tokens", type=int, default=1024, metavar="N", help="of an answer")
    add("--images", default="pillow", metavar="pillow|flux|URL", help="what draws; URL: /v1/images/generations")
    add("--image-model", metavar="NAME", help=f"for flux (default: {FLUX}) or at the URL")
    add("--image-size", type=int, metavar="PIXELS", help="side (default: 336 with pillow, 1024 else)")
    add("--clip-model", metavar="NAME", help="CLIP that scores images and answers")
    add("--min-image-score", type=float, metavar="X")
    add("--min-statement-score", type=float, metavar="X")
    add = parser.add_argument_group("how").add_argument
    add("--num-workers", type=int, default=os.cpu_count(), metavar="N", help="processes that draw with pillow")
    add("--concurrency", type=int, default=8, metavar="N", help="calls in flight at an endpoint; a kill repeats them")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="for an answer of the language model")
    add("--task", type=int, default=0, metavar="I", help="the share of this machine, from 0")
    add("--num-tasks", type=int, default=1, metavar="N")
    add = parser.add_argument_group("cost").add_argument
    add("--price-in", type=float, metavar="X", help="of a million tokens read")
    add("--price-out", type=float, metavar="X", help="of a million tokens written")
    add("--price-image", type=float, metavar="X", help="of an image")
    add("--dry-run", action="store_true", help="print the estimate and stop")
    arguments = parser.parse_args(argv)
    if (arguments.llm is None) != (arguments.model is None):
        parser.error("--llm and --model are given together")
    if arguments.images.startswith("http") and arguments.image_model is None:
        parser.error("--images URL needs --image-model")
    if arguments.images not in ("pillow", "flux") and not arguments.images.startswith(("http://", "https://")):
        parser.error(f"--images is {arguments.images!r}, expected pillow, flux or a URL")
    return arguments


def options_of(arguments: argparse.Namespace) -> Options:
    names = ("num", "seed", "captions", "caption_column", "model", "judge_model", "temperature", "max_tokens")
    names += ("clip_model", "min_image_score", "min_statement_score")
    images = arguments.images if arguments.images in ("pillow", "flux") else "endpoint"
    return Options(
        **{name: getattr(arguments, name) for name in names},
        kinds=tuple(arguments.kinds),
        images=images,
        image_model=arguments.image_model or (FLUX if images == "flux" else None),
        image_size=arguments.image_size or (336 if images == "pillow" else 1024),
    )


def main(argv: list[str] | None = None) -> int:
    accept_interrupts()
    arguments = parse_arguments(argv)
    prices = Prices(arguments.price_in, arguments.price_out, arguments.price_image)
    images = None if arguments.images in ("pillow", "flux") else arguments.images
    connections = Connections(arguments.llm, arguments.judge_llm, images, arguments.concurrency, arguments.timeout)
    try:
        options = options_of(arguments)
        folder = RunFolder(arguments.output, arguments.num, arguments.task, arguments.num_tasks)
        print(describe_estimate(options, prices), flush=True)
        if arguments.dry_run:
            return 0
        summary = generate(options, folder, connections, arguments.num_workers)
    except (RunError, ImportError) as error:
        print(f"\nStopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    if summary is None:
        print(f"{folder.name} is through; {len(folder.missing_parts())} parts of other tasks are missing.")
        return 0
    print(describe_summary(summary, count_all_tokens(folder), count_all_tokens(folder, is_valid=False), prices))
    print(f"output: {folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
