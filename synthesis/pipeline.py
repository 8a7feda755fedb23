"""
The data engine as two lists of stages.

`exact_stages` need the scene grammar alone, `model_stages` a language model and any renderer. A run of the latter can
be a part of the way: descriptions, images, questions, or only the filters of what is there already. `Options`
(options.py) decide the result; how fast and on which machine a run works is elsewhere.
"""

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from fusion_vlm.synthesis.failures import FailureLimit
from fusion_vlm.synthesis.filters.captions import CaptionRules
from fusion_vlm.synthesis.filters.images import ImageFilter, StatementFilter
from fusion_vlm.synthesis.filters.named import ApplyFilter
from fusion_vlm.synthesis.filters.turns import TurnRules
from fusion_vlm.synthesis.kinds.contrasts import split_sides
from fusion_vlm.synthesis.kinds.exact import ExactQuestions
from fusion_vlm.synthesis.kinds.table import find_kind
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.renderers import RenderError
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.part_images import SUFFIXES, PartImages, encode_image
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.render import PillowRenderer, paste_sides
from fusion_vlm.synthesis.sources.source import CheckImage
from fusion_vlm.synthesis.stage import Filter, Renderer, Stage


if TYPE_CHECKING:
    from fusion_vlm.synthesis.models.call_cache import CallCache
    from fusion_vlm.synthesis.models.chat import ChatClient


@dataclass
class Clients:
    """
    The models that a process has connected or loaded.

    Args:
        writer (`ChatClient`, *optional*), judge (`ChatClient`, *optional*), image_judge (`ChatClient`, *optional*)
        renderer (`Renderer`, *optional*): an image model.
        clip_score (`Callable[[Image, str], float]`, *optional*)
        concurrency (`int`): images that the renderer is asked for at once.
        renderer_limit (`FailureLimit`, *optional*), renderer_slots (`Semaphore`, *optional*): of all parts together;
            made from the above.
    """

    writer: "ChatClient | None" = None
    judge: "ChatClient | None" = None
    image_judge: "ChatClient | None" = None
    renderer: Renderer | None = None
    clip_score: Callable[[Image.Image, str], float] | None = None
    concurrency: int = 1
    renderer_limit: FailureLimit | None = None
    renderer_slots: threading.Semaphore | None = None

    def __post_init__(self):
        if self.renderer is not None and self.renderer_limit is None:
            self.renderer_limit = FailureLimit(f"the renderer {self.renderer.name}")
            self.renderer_slots = threading.Semaphore(self.concurrency)

    def with_cache(self, cache: "CallCache") -> "Clients":
        """Return the same models with another cache of calls, that of a part."""
        clients = {name: getattr(self, name) for name in ("writer", "judge", "image_judge")}
        cached = {name: client and client.with_cache(cache) for name, client in clients.items()}
        return dataclasses.replace(self, **cached)

    @property
    def chat_clients(self) -> "list[ChatClient]":
        return [client for client in (self.writer, self.judge, self.image_judge) if client is not None]

    @property
    def limits(self) -> list[FailureLimit]:
        limits = [client.limit for client in self.chat_clients]
        return limits + ([self.renderer_limit] if self.renderer_limit else [])


def build_stages(options: Options, images: PartImages, clients: Clients) -> list[Stage]:
    """Build the stages of a part in order. Their names are different, since a reject is resumed at its stage."""
    if options.writes_exactly:
        return exact_stages(options, images, clients)
    return model_stages(options, images, clients)


def exact_stages(options: Options, images: PartImages, clients: Clients) -> list[Stage]:
    """Build the stages of a run whose answers are exact. A language model may reword them."""
    stages = [ExactQuestions(), Render(PillowRenderer(options.image_size), images, options.image_format)]
    if options.rewrite:
        # Late: the stage needs pydantic, an extra, and runs without a model do not.
        from fusion_vlm.synthesis.models.rewrite import Rewrite

        stages.append(Rewrite(clients.writer, load_prompts()))
    return stages + named_filters(options, images)


def named_filters(options: Options, images: PartImages) -> list[Stage]:
    """Build the stages of the filters that the options name."""
    return [ApplyFilter(text, OpenImage(images)) for text in options.filters]


def model_stages(options: Options, images: PartImages, clients: Clients) -> list[Stage]:
    """Build the stages of a run with a language model."""
    # Late: they need pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.judge import Judge
    from fusion_vlm.synthesis.models.stages import AskFromDescription, Describe

    prompts = load_prompts()
    renderer = PillowRenderer(options.image_size) if options.images == "pillow" else clients.renderer
    open_image = OpenImage(images)
    description_rules = Keep(CaptionRules("description", options.caption_bounds), "description_rules")
    image_filter = Keep(ImageFilter(open_image, clients.clip_score, _bound(options.min_image_score)))

    def read_image(sample: Sample) -> bytes:
        return images.read(sample.image)

    stages = {
        "descriptions": [
            Keep(CaptionRules("caption", options.caption_bounds)),
            Describe(clients.writer, prompts),
            description_rules,
        ],
        "images": [
            Render(renderer, images, options.image_format, clients.renderer_limit, clients.renderer_slots),
            image_filter,
        ],
        "questions": [AskFromDescription(clients.writer, prompts)],
    }
    chosen = [stage for name in options.stages for stage in stages.get(name, ())]
    if options.first_stage in ("images", "questions"):
        chosen.insert(0, description_rules)  # those of this engine pass again
    if options.first_stage == "filter":
        chosen.append(image_filter)
    if options.first_stage in ("questions", "filter"):
        chosen.insert(0, CheckImage(images))
    if options.has_turns:
        judge = Judge(clients.judge, prompts, clients.image_judge, read_image, options.plant_share)
        statement_filter = StatementFilter(open_image, clients.clip_score, _bound(options.min_statement_score))
        chosen += [Keep(TurnRules()), judge, Keep(statement_filter)]
    return [*chosen, *named_filters(options, images)]


def _bound(score: float | None) -> float:
    return -math.inf if score is None else score


class Keep:
    """
    Makes a stage of a filter: rejects the samples for which the filter gives a reason.

    Args:
        keep (`Filter`)
        name (`str`, *optional*): name of the stage; by default that of the filter.
    """

    def __init__(self, keep: Filter, name: str | None = None):
        self.keep, self.name = keep, name or keep.name

    def __call__(self, sample: Sample) -> Sample:
        if (reason := self.keep(sample)) is not None:
            sample.reject(self.name, reason)
        return sample


class OpenImage:
    """Opens the image of a sample among those of its part."""

    def __init__(self, images: PartImages):
        self.images = images

    def __call__(self, sample: Sample) -> Image.Image:
        return self.images.open(sample.image)


class Render:
    """
    Draws and encodes the image of a sample, unless a run that was killed has kept it.

    Args:
        renderer (`Renderer`)
        images (`PartImages`): takes the images.
        image_format (`str`): see `Options`.
        limit (`FailureLimit`, *optional*), slots (`Semaphore`, *optional*): count failed images, and images in
            progress at once; both are needed for renderers that may fail.
    """

    name = "render"

    def __init__(
        self,
        renderer: Renderer,
        images: PartImages,
        image_format: str,
        limit: FailureLimit | None = None,
        slots: threading.Semaphore | None = None,
    ):
        self.renderer, self.images, self.image_format = renderer, images, image_format
        self.limit, self.slots = limit, slots or threading.Semaphore()

    def __call__(self, sample: Sample) -> Sample:
        name = f"{sample.id}.{SUFFIXES[self.image_format]}"
        sample.source[self.name] = self.renderer.name
        if name not in self.images:
            try:
                with self.slots:
                    image = self.draw(sample)
            except RenderError as error:
                self.limit.failed(error)
                sample.reject(self.name, f"no_image: {error}")
                return sample
            if self.limit is not None:
                self.limit.succeeded()
            self.images.write(name, encode_image(image, self.image_format))
        sample.image = name
        return sample

    def draw(self, sample: Sample) -> Image.Image:
        """Draw a sample. An image model draws each side of a contrast by itself, both from the same noise."""
        if self.renderer.draws_scenes or not find_kind(sample.kind).has_two_images:
            return self.renderer(sample)
        sides = split_sides(sample.description)
        left, right = (self.renderer(dataclasses.replace(sample, description=side)) for side in sides)
        gap = left.width // 20
        return paste_sides(left, right, gap, 2 * left.width + gap)
