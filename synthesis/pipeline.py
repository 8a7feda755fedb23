"""
The data engine as two lists of stages.

`exact_steps` needs the scene grammar alone, `model_steps` a language model and any renderer. `Options` has everything
that decides the result; how fast and on which machine a run works is elsewhere.
"""

import dataclasses
import functools
import hashlib
import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from PIL import Image

from fusion_vlm.synthesis.engine import FailureLimit, RunError, RunFolder, Step
from fusion_vlm.synthesis.filters.captions import CaptionRules, Deduplicate, read_captions
from fusion_vlm.synthesis.filters.images import ImageFilter, StatementFilter
from fusion_vlm.synthesis.filters.turns import TurnRules
from fusion_vlm.synthesis.kinds.contrasts import split_sides
from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.kinds.table import KINDS, find_kind
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.renderers import RenderError
from fusion_vlm.synthesis.sample import IMAGE_DIR, Sample
from fusion_vlm.synthesis.scenes.render import PillowRenderer, paste_sides
from fusion_vlm.synthesis.stage import Filter, Renderer


if TYPE_CHECKING:
    from fusion_vlm.synthesis.models.chat import ChatClient

# Options that run.json has only if they are set: runs of earlier versions have no such entries, and can be resumed.
LATER_OPTIONS = ("caption_split", "caption_bounds", "image_steps", "image_guidance", "image_seed")


@dataclass(frozen=True)
class Options:
    """
    The options that decide the result of a run.

    Args:
        num (`int`): samples that are begun; filters may reject some.
        seed (`int`)
        kinds (`tuple[str, ...]`): some of `KINDS`, taken in turn.
        captions (`str`, *optional*): file or Hub data set, see `read_captions`. Without, scenes are drawn at random.
        caption_column (`str`), caption_split (`str`): column and split of the captions.
        caption_bounds (`tuple[tuple[str, float | None, float | None], ...]`): name, least and most value of rules in
            `CaptionRules`, in place of the paper's.
        model (`str`, *optional*): language model that writes. Without, questions and answers are exact.
        judge_model (`str`, *optional*): language model that checks.
        temperature (`float`), max_tokens (`int`): sent with each call of a language model.
        images (`str`): `pillow`, `flux` or `endpoint`.
        image_model (`str`, *optional*): model of `flux` or `endpoint`.
        image_size (`int`): side in pixels.
        image_steps (`int`, *optional*), image_guidance (`float`, *optional*): of `flux`; see `FluxRenderer`.
        image_seed (`bool`): whether a seed is sent to `endpoint`.
        clip_model (`str`, *optional*): CLIP that scores images and answers. Without, these scores are not available.
        min_image_score (`float`, *optional*), min_statement_score (`float`, *optional*): least scores of CLIP.

    Raises:
        RunError: if options do not go together.
        ValueError: for bounds of an unknown rule.
    """

    num: int
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    captions: str | None = None
    caption_column: str = "caption"
    caption_split: str = "train"
    caption_bounds: tuple[tuple[str, float | None, float | None], ...] = ()
    model: str | None = None
    judge_model: str | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    images: str = "pillow"
    image_model: str | None = None
    image_size: int = 336
    image_steps: int | None = None
    image_guidance: float | None = None
    image_seed: bool = True
    clip_model: str | None = None
    min_image_score: float | None = None
    min_statement_score: float | None = None

    def __post_init__(self):
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise RunError(f"The kinds are {self.kinds}, expected some of {', '.join(KINDS)}, each once.")
        if self.num < 1:
            raise RunError(f"The number of samples is {self.num}, expected 1 or more.")
        if self.captions and self.images == "pillow":
            raise RunError("Pillow draws the built-in scenes, not captions. Give --images flux or a URL.")
        if self.model is None and (self.captions or self.images != "pillow" or self.judge_model):
            raise RunError(
                "Without a language model there are exact scenes drawn with Pillow and nothing else. Give --llm and"
                " --model, or leave out --captions, --images and --judge-model."
            )
        if self.clip_model is None and (self.min_image_score, self.min_statement_score) != (None, None):
            raise RunError("A least score needs a model that scores. Give --clip-model.")
        CaptionRules(bounds=self.caption_bounds)  # raises for an unknown rule, before the run has a folder
        self._check_unused()

    def _check_unused(self):
        """Raise for options that would have no effect."""
        if self.caption_bounds and not self.captions:
            raise RunError("--caption-bound is for --captions: exact captions have no rules.")
        if self.images != "flux" and (self.image_steps, self.image_guidance) != (None, None):
            raise RunError("--image-steps and --image-guidance are for --images flux.")
        if self.images != "endpoint" and not self.image_seed:
            raise RunError("--no-image-seed is for --images URL.")

    @property
    def is_exact(self) -> bool:
        return self.model is None

    def config(self) -> dict:
        """Return all that makes two runs the same, for `RunFolder.opened`."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        config = dataclasses.asdict(self)
        for name in LATER_OPTIONS:
            if config[name] == defaults[name]:
                del config[name]
        if not self.is_exact:
            config["prompts"] = hashlib.sha256(repr(load_prompts()).encode()).hexdigest()
        return config


@dataclass
class Clients:
    """
    The models that the main process has and worker processes have not.

    Args:
        writer (`ChatClient`, *optional*), judge (`ChatClient`, *optional*)
        renderer (`Renderer`, *optional*): an image model.
        clip_score (`Callable[[Image, str], float]`, *optional*)
        concurrency (`int`): images that the renderer is asked for at once.
    """

    writer: "ChatClient | None" = None
    judge: "ChatClient | None" = None
    renderer: Renderer | None = None
    clip_score: Callable[[Image.Image, str], float] | None = None
    concurrency: int = 1

    def __post_init__(self):
        self.renderer_limit = FailureLimit(f"the renderer {self.renderer.name}") if self.renderer else None

    @property
    def chat_clients(self) -> "list[ChatClient]":
        return [client for client in (self.writer, self.judge) if client is not None]

    @property
    def limits(self) -> list[FailureLimit]:
        limits = [client.limit for client in self.chat_clients]
        return limits + ([self.renderer_limit] if self.renderer_limit else [])


def build_steps(options: Options, folder: RunFolder, clients: Clients) -> list[Step]:
    """Build the stages of a run in order."""
    return exact_steps(options, folder) if options.is_exact else model_steps(options, folder, clients)


@functools.cache
def build_worker_steps(options: Options, folder: RunFolder) -> list[Step]:
    """Build the stages once in a worker process. It has no clients, so only stages placed in processes work."""
    return build_steps(options, folder, Clients())


def exact_steps(options: Options, folder: RunFolder) -> list[Step]:
    """Build the stages of a run without models."""
    return [
        Step(ExactQuestions()),
        Step(Render(PillowRenderer(options.image_size), folder)),
    ]


def model_steps(options: Options, folder: RunFolder, clients: Clients) -> list[Step]:
    """Build the stages of a run with a language model."""
    # Late: they need pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.stages import AskFromDescription, Describe, Judge

    prompts = load_prompts()
    draws_scenes = options.images == "pillow"
    renderer = PillowRenderer(options.image_size) if draws_scenes else clients.renderer
    render = Render(renderer, folder, clients.concurrency, clients.renderer_limit)
    open_image = OpenImage(folder)
    image_filter = ImageFilter(open_image, clients.clip_score, _bound(options.min_image_score))
    statement_filter = StatementFilter(open_image, clients.clip_score, _bound(options.min_statement_score))
    return [
        Step(Keep(CaptionRules("caption", options.caption_bounds)), "thread"),
        Step(Describe(clients.writer, prompts)),
        Step(Keep(CaptionRules("description", options.caption_bounds), "description_rules"), "thread"),
        Step(render, "process" if draws_scenes else "thread"),
        Step(Keep(image_filter), "thread" if options.clip_model else "process"),
        Step(AskFromDescription(clients.writer, prompts)),
        Step(Keep(TurnRules()), "thread"),
        Step(Judge(clients.judge, prompts)),
        Step(Keep(statement_filter), "thread"),
    ]


def _bound(score: float | None) -> float:
    return -math.inf if score is None else score


class SceneSource:
    """Returns samples with random scenes, the kinds in turn."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, index: int) -> Sample:
        # Numbered within each kind, because draws are balanced over consecutive numbers.
        number, kind = divmod(index, len(self.options.kinds))
        sample = make_scene_sample(number, self.options.kinds[kind], self.options.seed)
        sample.source["position"] = index
        return sample


class CaptionSource:
    """
    Returns samples of the first `num` captions, the kinds in turn. Duplicates of earlier captions are rejected.

    Raises:
        RunError: if there are fewer captions.
    """

    def __init__(self, options: Options):
        rows = read_captions(options.captions, options.caption_column, options.caption_split)
        # Not a step, because steps run in no fixed order, and the first of equal texts is to be kept.
        deduplicate = Keep(Deduplicate())
        self.samples = []
        for index, (caption, source) in enumerate(islice(rows, options.num)):
            kind = options.kinds[index % len(options.kinds)]
            source = {**source, "position": index}
            sample = Sample(f"{kind}-{index:07}", kind, options.seed, caption=caption, source=source)
            self.samples.append(deduplicate(sample))
        if len(self.samples) < options.num:
            raise RunError(f"{options.captions} has {len(self.samples)} captions, expected {options.num} (--num).")

    def __call__(self, index: int) -> Sample:
        return self.samples[index]


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
    """Opens the image of a sample in the folder of a run."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, sample: Sample) -> Image.Image:
        return Image.open(self.folder.image_dir / sample.image)


class Render:
    """
    Writes the image of a sample, unless a run that was killed has written it.

    Args:
        renderer (`Renderer`)
        folder (`RunFolder`): folder of the run.
        concurrency (`int`): images in progress at once.
        limit (`FailureLimit`, *optional*): counts failed images; needed for renderers that may fail.
    """

    name = "render"

    def __init__(self, renderer: Renderer, folder: RunFolder, concurrency: int = 1, limit: FailureLimit | None = None):
        self.renderer, self.folder, self.limit = renderer, folder, limit
        self.semaphore = threading.Semaphore(concurrency)

    def __call__(self, sample: Sample) -> Sample:
        sample.image = f"{sample.id}.png"
        sample.source[self.name] = self.renderer.name
        if (self.folder.image_dir / sample.image).is_file():
            return sample
        try:
            with self.semaphore:
                image = self.draw(sample)
        except RenderError as error:
            self.limit.failed(error)
            sample.reject(self.name, f"no_image: {error}")
            return sample
        if self.limit is not None:
            self.limit.succeeded()
        content = io.BytesIO()
        image.save(content, "PNG")
        self.folder.write(f"{IMAGE_DIR}/{sample.image}", content.getvalue())
        return sample

    def draw(self, sample: Sample) -> Image.Image:
        """Draw a sample. An image model draws each side of a contrast by itself, both from the same noise."""
        if self.renderer.draws_scenes or not find_kind(sample.kind).has_two_images:
            return self.renderer(sample)
        sides = split_sides(sample.description)
        left, right = (self.renderer(dataclasses.replace(sample, description=side)) for side in sides)
        gap = left.width // 20
        return paste_sides(left, right, gap, 2 * left.width + gap)
