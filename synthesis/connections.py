"""The models of a run: their addresses, and how a process connects or loads them."""

import dataclasses
import functools
from dataclasses import dataclass

from fusion_vlm.synthesis.filters.named import load_filter, parse_filter
from fusion_vlm.synthesis.models.clip import ClipScorer
from fusion_vlm.synthesis.models.renderers import EndpointRenderer, FluxRenderer
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.pipeline import Clients
from fusion_vlm.synthesis.stage import Renderer


@dataclass(frozen=True)
class Connections:
    """
    The addresses of models and how they are called: nothing that decides the result.

    Args:
        llm (`str`, *optional*), judge (`str`, *optional*), image_judge (`str`, *optional*), images (`str`,
            *optional*): addresses of endpoints. Judges are at that of the one before by default.
        concurrency (`int`): calls in flight at once at each endpoint.
        timeout (`float`): seconds for an answer of a language model.
        clip_device (`str`), image_device (`str`): devices of CLIP and FLUX.
        image_batch (`int`): images that FLUX draws at once, at most `concurrency`.
    """

    llm: str | None = None
    judge: str | None = None
    image_judge: str | None = None
    images: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    clip_device: str = "cpu"
    image_device: str = "cuda"
    image_batch: int = 1

    def shared(self, num_processes: int) -> "Connections":
        """Return the connections of one of so many processes, which share the calls in flight."""
        return dataclasses.replace(self, concurrency=-(-self.concurrency // num_processes))


def connect(options: Options, connections: Connections) -> Clients:
    """Connect or load all models of a run in this process. Chat clients belong to the event loop that runs."""
    for text in options.filters:
        load_filter(*parse_filter(text))  # a filter that cannot be loaded stops the run before any work
    if options.is_exact:
        return Clients(concurrency=connections.concurrency)
    # Late: it needs pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.chat import ChatClient

    settings = {name: getattr(options, name) for name in ("temperature", "max_tokens")}
    settings |= {name: getattr(connections, name) for name in ("concurrency", "timeout")}
    judge, image_judge = None, None
    judge_url = connections.judge or connections.llm
    if options.judge_model:
        judge = ChatClient(judge_url, options.judge_model, **settings)
    if options.image_judge_model:
        image_judge = ChatClient(connections.image_judge or judge_url, options.image_judge_model, **settings)
    return Clients(
        writer=ChatClient(connections.llm, options.model, **settings) if options.model else None,
        judge=judge,
        image_judge=image_judge,
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
        settings = {"num_inference_steps": options.flux_steps, "dtype": options.image_dtype}
        settings |= {"device": connections.image_device}
        if options.image_guidance is not None:
            settings["guidance_scale"] = options.image_guidance
        return FluxRenderer(options.image_model, side, side, batch_size=connections.image_batch, **settings)
    if options.images == "endpoint":
        return EndpointRenderer(
            connections.images, options.image_model, f"{side}x{side}", send_seed=options.image_seed
        )
    return None
