"""The models of a run: their addresses, and how a process connects or loads them."""

import functools
from dataclasses import dataclass

from fusion_vlm.synthesis.models.clip import ClipScorer
from fusion_vlm.synthesis.models.renderers import EndpointRenderer, FluxRenderer
from fusion_vlm.synthesis.pipeline import Clients, Options
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


def connect(options: Options, connections: Connections) -> Clients:
    """Connect or load all models of a run in this process. Chat clients belong to the event loop that runs."""
    if options.is_exact:
        return Clients(concurrency=connections.concurrency)
    # Late: it needs pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.chat import ChatClient

    settings = {name: getattr(options, name) for name in ("temperature", "max_tokens")}
    settings |= {name: getattr(connections, name) for name in ("concurrency", "timeout")}
    judge = None
    if options.judge_model:
        judge = ChatClient(connections.judge or connections.llm, options.judge_model, **settings)
    return Clients(
        writer=ChatClient(connections.llm, options.model, **settings),
        judge=judge,
        renderer=load_renderer(options, connections),
        clip_score=load_clip(options.clip_model, connections.clip_device) if options.clip_model else None,
        concurrency=connections.concurrency,
    )


@functools.cache  # one copy in a process that makes several parts
def load_clip(model: str, device: str) -> ClipScorer:
    """Load CLIP once in this process."""
    return ClipScorer(model, device)


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
