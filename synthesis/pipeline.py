"""
The data engine as two lists of stages: `exact_steps`, from the scene grammar alone, and `model_steps`, with a language
model and any renderer. What decides the result is in `Options`; what only says where and how fast is not.
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
from fusion_vlm.synthesis.sample import KINDS, Sample
from fusion_vlm.synthesis.scenes.render import FRAME, PillowRenderer
from fusion_vlm.synthesis.scenes.scene import make_scene_sample


if TYPE_CHECKING:
    from fusion_vlm.synthesis.models.chat import ChatClient

IMAGE_DIR = "images"


@dataclass(frozen=True)
class Options:
    """
    Args:
        num (`int`): samples that are begun; filters may reject some.
        seed (`int`): of the run.
        kinds (`tuple[str, ...]`): of `KINDS`, in turn.
        captions (`str`, *optional*): file or Hub data set, see `read_captions`. Without, the scene grammar.
        caption_column (`str`): where they are in it.
        model (`str`, *optional*): language model that writes. Without, the answers are exact.
        judge_model (`str`, *optional*): language model that checks.
        temperature (`float`), max_tokens (`int`): of their answers.
        images (`str`): `pillow`, `flux` or `endpoint`.
        image_model (`str`, *optional*): of the latter two.
        image_size (`int`): side in pixels.
        clip_model (`str`, *optional*): CLIP that scores images and answers; without, the scores are not available.
        min_image_score, min_statement_score (`float`, *optional*): what it must give at least.

    Raises:
        RunError: if they do not go together.
    """

    num: int
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    captions: str | None = None
    caption_column: str = "caption"
    model: str | None = None
    judge_model: str | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    images: str = "pillow"
    image_model: str | None = None
    image_size: int = 336
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
            raise RunError("A least score needs something that scores. Give --clip-model.")

    @property
    def is_exact(self) -> bool:
        return self.model is None

    def config(self) -> dict:
        """All that makes two runs the same, for `RunFolder.open`."""
        config = dataclasses.asdict(self)
        if not self.is_exact:
            from fusion_vlm.synthesis.models.chat import load_prompts

            config["prompts"] = hashlib.sha256(repr(load_prompts()).encode()).hexdigest()
        return config


@dataclass
class Models:
    """
    What the main process has one of, and the worker processes do not.

    Args:
        concurrency (`int`): images that the renderer is asked for at once.
    """

    writer: "ChatClient | None" = None
    judge: "ChatClient | None" = None
    renderer: Callable[[Sample], Image.Image] | None = None
    clip_score: Callable[[Image.Image, str], float] | None = None
    concurrency: int = 1


def build_steps(options: Options, folder: RunFolder, models: Models) -> list[Step]:
    """The stages of a run in order."""
    return exact_steps(options, folder) if options.is_exact else model_steps(options, folder, models)


@functools.cache
def build_worker_steps(options: Options, folder: RunFolder) -> list[Step]:
    """The same for a worker process, made once in each: without models, only the stages placed there work."""
    return build_steps(options, folder, Models())


def exact_steps(options: Options, folder: RunFolder) -> list[Step]:
    from fusion_vlm.synthesis.scenes.questions import ExactQuestions

    return [
        Step(ExactQuestions()),
        Step(Render(PillowRenderer(options.image_size), folder)),
    ]


def model_steps(options: Options, folder: RunFolder, models: Models) -> list[Step]:
    from fusion_vlm.synthesis.filters.captions import CaptionRules
    from fusion_vlm.synthesis.filters.rules import ImageFilter, StatementFilter, TurnRules
    from fusion_vlm.synthesis.models.chat import AskFromDescription, Describe, Judge, load_prompts

    prompts = load_prompts()
    draws_scenes = options.images == "pillow"
    renderer = PillowRenderer(options.image_size) if draws_scenes else models.renderer
    open_image = OpenImage(folder)
    image_filter = ImageFilter(open_image, models.clip_score, _bound(options.min_image_score))
    statement_filter = StatementFilter(open_image, models.clip_score, _bound(options.min_statement_score))
    return [
        Step(Keep(CaptionRules()), "thread"),
        Step(Describe(models.writer, prompts)),
        Step(Keep(CaptionRules("description"), "description_rules"), "thread"),
        Step(Render(renderer, folder, models.concurrency), "process" if draws_scenes else "thread"),
        Step(Keep(image_filter), "thread" if options.clip_model else "process"),
        Step(AskFromDescription(models.writer, prompts)),
        Step(Keep(TurnRules()), "thread"),
        Step(Judge(models.judge, prompts)),
        Step(Keep(statement_filter), "thread"),
    ]


def _bound(score: float | None) -> float:
    return -math.inf if score is None else score


class SceneSource:
    """Samples of the scene grammar, the kinds in turn."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, index: int) -> Sample:
        # Numbered within each kind: the grammar balances consecutive numbers.
        number, kind = divmod(index, len(self.options.kinds))
        sample = make_scene_sample(number, self.options.kinds[kind], self.options.seed)
        sample.source["position"] = index
        return sample


class CaptionSource:
    """
    Samples of the first `num` captions, the kinds in turn; of those that say the same, all but the first rejected.

    Raises:
        RunError: if there are not as many.
    """

    def __init__(self, options: Options):
        from fusion_vlm.synthesis.filters.captions import Deduplicate, read_captions

        captions = islice(read_captions(options.captions, options.caption_column), options.num)
        # Here, as whether a text is the first of its like depends on the order.
        deduplicate = Keep(Deduplicate())
        self.samples = []
        for index, (caption, source) in enumerate(captions):
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
    A filter as a stage: sets `reason` if it gives one.

    Args:
        keep (`Callable[[Sample], str | None]`): with a `name`.
        name (`str`, *optional*): of the stage, if not that of the filter.
    """

    def __init__(self, keep: Callable[[Sample], str | None], name: str | None = None):
        self.keep, self.name = keep, name or keep.name

    def __call__(self, sample: Sample) -> Sample:
        if (reason := self.keep(sample)) is not None:
            sample.reason = f"{self.name}/{reason}"
        return sample


class OpenImage:
    """The image of a sample in the folder of a run."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, sample: Sample) -> Image.Image:
        return Image.open(self.folder.path / IMAGE_DIR / sample.image)


class Render:
    """
    Writes the image of a sample, unless it is there from before a kill.

    Args:
        renderer (`Callable[[Sample], Image]`): see `render.Renderer`.
        folder (`RunFolder`): of the run.
        concurrency (`int`): images at once.
    """

    name = "render"

    def __init__(self, renderer: Callable[[Sample], Image.Image], folder: RunFolder, concurrency: int = 1):
        self.renderer, self.folder = renderer, folder
        self.semaphore = threading.Semaphore(concurrency)
        self.limit = FailureLimit(f"the renderer {renderer.name}") if renderer else None

    def __call__(self, sample: Sample) -> Sample:
        from fusion_vlm.synthesis.models.renderers import RenderError

        sample.image = f"{sample.id}.png"
        sample.source[self.name] = self.renderer.name
        if (self.folder.path / IMAGE_DIR / sample.image).is_file():
            return sample
        try:
            with self.semaphore:
                image = self.draw(sample)
        except RenderError as error:
            self.limit.failed(error)
            sample.reason = f"{self.name}/no_image: {error}"
            return sample
        self.limit.succeeded()
        content = io.BytesIO()
        image.save(content, "PNG")
        self.folder.write(f"{IMAGE_DIR}/{sample.image}", content.getvalue())
        return sample

    def draw(self, sample: Sample) -> Image.Image:
        """The image; from a model, that of a contrast is two, drawn from the same noise."""
        if isinstance(self.renderer, PillowRenderer) or not sample.kind.startswith("contrast"):
            return self.renderer(sample)
        from fusion_vlm.synthesis.models.chat import split_sides

        sides = (dataclasses.replace(sample, description=side) for side in split_sides(sample.description))
        return paste_sides(*map(self.renderer, sides))


def paste_sides(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images of one size beside each other, in a square, because FUSION resizes an image to a square."""
    width, gap = left.width, left.width // 20
    image = Image.new("RGB", (2 * width + gap,) * 2, FRAME)
    top = (image.height - left.height) // 2
    image.paste(left, (0, top))
    image.paste(right, (width + gap, top))
    return image
