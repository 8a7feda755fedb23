"""
The data engine as two lists of stages.

`exact_steps` needs the scene grammar alone, `model_steps` a language model and any renderer. `Options` has everything
that decides the result; how fast and on which machine a run works is elsewhere.
"""

import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from PIL import Image

from fusion_vlm.synthesis.failures import FailureLimit, RunError
from fusion_vlm.synthesis.filters.captions import CaptionRules, Deduplicate, read_captions
from fusion_vlm.synthesis.filters.images import ImageFilter, StatementFilter
from fusion_vlm.synthesis.filters.turns import TurnRules
from fusion_vlm.synthesis.inputs import identify
from fusion_vlm.synthesis.kinds.contrasts import split_sides
from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.kinds.table import KINDS, MODEL_KINDS, find_kind
from fusion_vlm.synthesis.kinds.weights import Weights, find_sample, reduce_weights
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.renderers import RenderError
from fusion_vlm.synthesis.part_images import FORMATS, SUFFIXES, PartImages, encode_image
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.identity import identify_drawing
from fusion_vlm.synthesis.scenes.render import PillowRenderer, paste_sides
from fusion_vlm.synthesis.shards import SHARD_SUFFIXES
from fusion_vlm.synthesis.stage import Filter, Renderer, Stage


if TYPE_CHECKING:
    from fusion_vlm.synthesis.models.call_cache import CallCache
    from fusion_vlm.synthesis.models.chat import ChatClient

MAX_LLAVA = 10_000  # samples of a run that LLaVA's form is written for by default


@dataclass(frozen=True)
class Options:
    """
    The options that decide the result of a run.

    Args:
        num (`int`): samples that are begun; filters may reject some.
        seed (`int`)
        kinds (`tuple[str, ...]`, *optional*): some of `KINDS`, taken in turn; by default all, and without those that
            are exact only if a language model writes.
        weights (`tuple[int, ...]`): how often each of the kinds comes; equally often without.
        captions (`str`, *optional*): file or Hub data set, see `read_captions`. Without, scenes are drawn at random.
        caption_column (`str`), caption_split (`str`): column and split of the captions.
        caption_bounds (`tuple[tuple[str, float | None, float | None], ...]`): name, least and most value of rules in
            `CaptionRules`, in place of the paper's.
        model (`str`, *optional*): language model that writes. Without, questions and answers are exact.
        rewrite (`bool`): whether the model does nothing but reword exact questions and answers; see `Rewrite`.
        judge_model (`str`, *optional*): language model that checks.
        temperature (`float`), max_tokens (`int`): sent with each call of a language model.
        images (`str`): `pillow`, `flux` or `endpoint`.
        image_model (`str`, *optional*): model of `flux` or `endpoint`.
        image_size (`int`): side in pixels.
        image_steps (`int`, *optional*), image_guidance (`float`, *optional*): of `flux`; see `FluxRenderer`.
        image_seed (`bool`): whether a seed is sent to `endpoint`.
        clip_model (`str`, *optional*): CLIP that scores images and answers. Without, these scores are not available.
        min_image_score (`float`, *optional*), min_statement_score (`float`, *optional*): least scores of CLIP.
        image_format (`str`, *optional*): `webp` (without loss), `jpeg` or `png`; by default `webp` for what Pillow
            draws, `jpeg` for what an image model draws.
        shard_format (`str`): `parquet` or `webdataset`.
        llava (`bool`, *optional*): whether to write LLaVA's form, too; by default for 10,000 samples or fewer.

    Raises:
        RunError: if options do not go together.
        ValueError: for bounds of an unknown rule.
    """

    num: int
    seed: int = 0
    kinds: tuple[str, ...] | None = None
    weights: tuple[int, ...] = ()
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
    image_format: str | None = None
    shard_format: str = "parquet"
    llava: bool | None = None
    rewrite: bool = False

    def __post_init__(self):
        if self.kinds is None:
            object.__setattr__(self, "kinds", KINDS if self.writes_exactly else MODEL_KINDS)
        if self.image_format is None:
            object.__setattr__(self, "image_format", "webp" if self.images == "pillow" else "jpeg")
        if self.llava is None:
            object.__setattr__(self, "llava", self.num <= MAX_LLAVA)
        for name, known in (("image_format", FORMATS), ("shard_format", SHARD_SUFFIXES)):
            if getattr(self, name) not in known:
                raise RunError(f"The {name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise RunError(f"The kinds are {self.kinds}, expected some of {', '.join(KINDS)}, each once.")
        exact_only = [kind for kind in self.kinds if kind not in MODEL_KINDS]
        if exact_only and not self.writes_exactly:
            raise RunError(
                f"No model draws or describes the numbers of {', '.join(exact_only)} exactly. Leave these kinds out,"
                " or give --rewrite: then the model rewords exact questions and answers."
            )
        if self.weights and len(self.weights) != len(self.kinds):
            raise RunError(f"There are {len(self.weights)} weights for {len(self.kinds)} kinds, expected one each.")
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
        if self.rewrite and self.model is None:
            raise RunError("--rewrite needs a language model. Give --llm and --model.")
        if self.rewrite and (self.captions or self.images != "pillow" or self.judge_model or self.clip_model):
            raise RunError(
                "--rewrite is for exact scenes: leave out --captions, --images, --judge-model, --clip-model."
            )
        if self.images != "endpoint" and not self.image_seed:
            raise RunError("--no-image-seed is for --images URL.")

    @property
    def is_exact(self) -> bool:
        return self.model is None

    @property
    def writes_exactly(self) -> bool:
        """Return whether the answers are those of the scenes, whoever words them."""
        return self.is_exact or self.rewrite

    @property
    def kind_weights(self) -> Weights:
        """Return the weight of each kind, for `find_sample`."""
        return reduce_weights(zip(self.kinds, self.weights or [1] * len(self.kinds), strict=True))

    def config(self) -> dict:
        """Return all that makes two runs the same, for `RunFolder.prepare`. A file of captions is its content."""
        config = dataclasses.asdict(self)
        if self.captions is not None:
            config["captions"] = identify(self.captions)
        if self.images == "pillow":
            config["drawing"] = identify_drawing()
        if not self.is_exact:
            config["prompts"] = hashlib.sha256(repr(load_prompts()).encode()).hexdigest()
        return config


@dataclass
class Clients:
    """
    The models that a process has connected or loaded.

    Args:
        writer (`ChatClient`, *optional*), judge (`ChatClient`, *optional*)
        renderer (`Renderer`, *optional*): an image model.
        clip_score (`Callable[[Image, str], float]`, *optional*)
        concurrency (`int`): images that the renderer is asked for at once.
        renderer_limit (`FailureLimit`, *optional*), renderer_slots (`Semaphore`, *optional*): of all parts together;
            made from the above.
    """

    writer: "ChatClient | None" = None
    judge: "ChatClient | None" = None
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
        writer, judge = (client and client.with_cache(cache) for client in (self.writer, self.judge))
        return dataclasses.replace(self, writer=writer, judge=judge)

    @property
    def chat_clients(self) -> "list[ChatClient]":
        return [client for client in (self.writer, self.judge) if client is not None]

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
    render = Render(PillowRenderer(options.image_size), images, options.image_format)
    if not options.rewrite:
        return [ExactQuestions(), render]
    # Late: the stage needs pydantic, an extra, and runs without a model do not.
    from fusion_vlm.synthesis.models.rewrite import Rewrite

    return [ExactQuestions(), render, Rewrite(clients.writer, load_prompts())]


def model_stages(options: Options, images: PartImages, clients: Clients) -> list[Stage]:
    """Build the stages of a run with a language model."""
    # Late: they need pydantic, an extra, and exact runs do not.
    from fusion_vlm.synthesis.models.stages import AskFromDescription, Describe, Judge

    prompts = load_prompts()
    renderer = PillowRenderer(options.image_size) if options.images == "pillow" else clients.renderer
    open_image = OpenImage(images)
    image_filter = ImageFilter(open_image, clients.clip_score, _bound(options.min_image_score))
    statement_filter = StatementFilter(open_image, clients.clip_score, _bound(options.min_statement_score))
    return [
        Keep(CaptionRules("caption", options.caption_bounds)),
        Describe(clients.writer, prompts),
        Keep(CaptionRules("description", options.caption_bounds), "description_rules"),
        Render(renderer, images, options.image_format, clients.renderer_limit, clients.renderer_slots),
        Keep(image_filter),
        AskFromDescription(clients.writer, prompts),
        Keep(TurnRules()),
        Judge(clients.judge, prompts),
        Keep(statement_filter),
    ]


def _bound(score: float | None) -> float:
    return -math.inf if score is None else score


def open_source(options: Options) -> Callable[[int], Sample]:
    """Open the input of a run: a function that returns the sample of an index before its first stage."""
    return CaptionSource(options) if options.captions else SceneSource(options)


class SceneSource:
    """Returns samples with random scenes, the kinds in turn."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, index: int) -> Sample:
        # Numbered within each kind, because draws are balanced over consecutive numbers.
        kind, number = find_sample(index, self.options.kind_weights)
        sample = make_scene_sample(number, kind, self.options.seed)
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
        identity = identify(options.captions)  # not the path, which may differ between the tasks of a run
        # Not a step, because steps run in no fixed order, and the first of equal texts is to be kept.
        deduplicate = Keep(Deduplicate())
        self.samples = []
        for index, (caption, source) in enumerate(islice(rows, options.num)):
            kind, _ = find_sample(index, options.kind_weights)
            source = {**source, "captions": identity, "position": index}
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
