"""The options that decide the result of a run, and which of them go together."""

import dataclasses
import hashlib
from dataclasses import dataclass

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.filters.captions import CaptionRules
from fusion_vlm.synthesis.filters.named import check_filters
from fusion_vlm.synthesis.kinds.table import KINDS, MODEL_KINDS
from fusion_vlm.synthesis.kinds.weights import Weights, reduce_weights
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.names import STAGES
from fusion_vlm.synthesis.part_images import FORMATS
from fusion_vlm.synthesis.scenes.identity import identify_drawing
from fusion_vlm.synthesis.shards import SHARD_SUFFIXES
from fusion_vlm.synthesis.sources.identity import identify_input
from fusion_vlm.synthesis.sources.inputs import find_input


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
        stages (`tuple[str, ...]`): some of `STAGES` that follow each other, or `filter` alone.
        captions (`str`, *optional*): a file, a pattern of files, a folder or a data set on the Hub, see `find_input`.
            Without, scenes are drawn at random.
        input (`str`, *optional*): the same for rows that another stage begins from, or for captions.
        caption_split (`str`): split of a data set.
        caption_column (`str`), description_column (`str`), conversation_column (`str`, *optional*), image_column
            (`str`, *optional*): columns of these rows.
        image_folder (`str`, *optional*): folder that paths of images begin in; does not count for the result.
        caption_bounds (`tuple[tuple[str, float | None, float | None], ...]`): name, least and most value of rules in
            `CaptionRules`, in place of the paper's.
        model (`str`, *optional*): language model that writes. Without, questions and answers are exact.
        rewrite (`bool`): whether the model does nothing but reword exact questions and answers; see `Rewrite`.
        judge_model (`str`, *optional*): language model that checks the answers against the description.
        image_judge_model (`str`, *optional*): model that checks the answers against the image.
        plant_share (`float`): share of the samples of which a copy with a wrong answer is judged, too, see `Judge`.
        temperature (`float`), max_tokens (`int`): sent with each call of a language model.
        images (`str`): `pillow`, `flux` or `endpoint`.
        image_model (`str`, *optional*): model of `flux` or `endpoint`.
        image_size (`int`): side in pixels.
        image_steps (`int`, *optional*), image_guidance (`float`, *optional*), image_dtype (`str`): of `flux`; see
            `FluxRenderer`.
        image_seed (`bool`): whether a seed is sent to `endpoint`.
        clip_model (`str`, *optional*): CLIP that scores images and answers. Without, these scores are not available.
        min_image_score (`float`, *optional*), min_statement_score (`float`, *optional*): least scores of CLIP.
        min_image_distance (`int`, *optional*): bits in which the hashes of two images of a part have to differ.
        filters (`tuple[str, ...]`): names of filters that run last, see `filters.named`.
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
    stages: tuple[str, ...] = STAGES
    captions: str | None = None
    input: str | None = None
    caption_column: str = "caption"
    caption_split: str = "train"
    description_column: str = "description"
    conversation_column: str | None = None
    image_column: str | None = None
    image_folder: str | None = None
    caption_bounds: tuple[tuple[str, float | None, float | None], ...] = ()
    model: str | None = None
    judge_model: str | None = None
    image_judge_model: str | None = None
    plant_share: float = 0.0
    temperature: float = 0.7
    max_tokens: int = 1024
    images: str = "pillow"
    image_model: str | None = None
    image_size: int = 336
    image_steps: int | None = None
    image_guidance: float | None = None
    image_dtype: str = "bfloat16"
    image_seed: bool = True
    clip_model: str | None = None
    min_image_score: float | None = None
    min_statement_score: float | None = None
    min_image_distance: int | None = None
    filters: tuple[str, ...] = ()
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
            object.__setattr__(self, "llava", self.num <= MAX_LLAVA and self.has_turns)
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
        self._check_stages()
        if not 0 <= self.plant_share <= 1:
            raise RunError(f"The share of planted errors is {self.plant_share:g}, expected 0 to 1.")
        if self.min_image_distance is not None and not 1 <= self.min_image_distance <= 64:
            raise RunError(f"The distance of images is {self.min_image_distance}, expected 1 to 64 bits.")
        check_filters(self.filters)
        if self.clip_model is None and (self.min_image_score, self.min_statement_score) != (None, None):
            raise RunError("A least score needs a model that scores. Give --clip-model.")
        CaptionRules(bounds=self.caption_bounds)  # raises for an unknown rule, before the run has a folder
        self._check_unused()

    def _check_stages(self):
        """Raise for stages that cannot be, or that lack what they need."""
        positions = [STAGES.index(stage) for stage in self.stages if stage in STAGES]
        is_in_order = positions == list(range(positions[0], positions[0] + len(positions))) if positions else False
        if self.stages != ("filter",) and not (is_in_order and len(positions) == len(self.stages)):
            raise RunError(
                f"The stages are {' '.join(self.stages)}, expected some of {', '.join(STAGES)} that follow each other,"
                " or filter alone."
            )
        if self.captions and (self.input or self.first_stage != "descriptions"):
            raise RunError(
                f"--captions is for runs that begin with descriptions, without --input; the first stage is"
                f" {self.first_stage}."
            )
        if self.rows is None and self.first_stage != "descriptions":
            raise RunError(f"The stage {self.first_stage} begins from rows of a data set. Give --input.")
        if self.first_stage == "descriptions" and self.rows and "images" in self.stages and self.images == "pillow":
            raise RunError("Pillow draws the built-in scenes, not captions. Give --images flux or a URL.")
        if self.model is None and self.needs_writer:
            is_scenes = self.rows is None and self.stages == STAGES
            if not is_scenes or self.images != "pillow" or self.judge_model or self.image_judge_model:
                raise RunError(
                    "Without a language model there are exact scenes drawn with Pillow and nothing else. Give --llm"
                    " and --model, or leave out --captions, --images, --stage, --judge-model and --judge-sees-image."
                )

    def _check_unused(self):
        """Raise for options that would have no effect."""
        stages = " ".join(self.stages)
        if self.model is not None and not self.needs_writer:
            raise RunError(f"--llm and --model are for the stages descriptions and questions, not for {stages}.")
        has_judge = self.judge_model is not None or self.image_judge_model is not None
        if has_judge and not self.has_turns:
            raise RunError(
                f"--judge-model and --judge-sees-image are for the stages questions and filter, not for {stages}."
            )
        if self.plant_share and not has_judge:
            raise RunError("--plant-errors is for judges: give --judge-model or --judge-sees-image.")
        if (self.filters or self.min_image_distance) and not self.has_images:
            raise RunError(f"--filter and --min-image-distance are for samples with images, and {stages} makes none.")
        takes_images = self.first_stage in ("questions", "filter")
        if (self.image_column or self.image_folder) and not takes_images:
            raise RunError("--image-column and --image-folder are for runs that begin with questions or filter.")
        if self.conversation_column and self.first_stage != "filter":
            raise RunError("--conversation-column is for the stage filter.")
        if self.description_column != "description" and self.first_stage == "descriptions":
            raise RunError(
                "--description-column is for runs that begin from descriptions: --stage images or a later one."
            )
        if self.llava and not self.has_turns:
            raise RunError(f"--llava is for samples with questions, and {stages} writes none.")
        if self.images != "pillow" and "images" not in self.stages:
            raise RunError(f"--images is for the stage images, not for {stages}.")
        if self.clip_model is not None and self.stages == ("descriptions",):
            raise RunError("--clip-model scores images, and the stage descriptions has none.")
        if self.caption_bounds and not self.rows:
            raise RunError("--caption-bound is for --captions: exact captions have no rules.")
        flux_options = (self.image_steps, self.image_guidance, self.image_dtype)
        if self.images != "flux" and flux_options != (None, None, "bfloat16"):
            raise RunError("--image-steps, --image-guidance and --image-dtype are for --images flux.")
        if self.rewrite and self.model is None:
            raise RunError("--rewrite needs a language model. Give --llm and --model.")
        if self.rewrite and (
            self.rows or self.stages != STAGES or self.images != "pillow" or has_judge or self.clip_model
        ):
            raise RunError(
                "--rewrite is for exact scenes: leave out --captions, --input, --stage, --images, --judge-model,"
                " --judge-sees-image and --clip-model."
            )
        if self.images != "endpoint" and not self.image_seed:
            raise RunError("--no-image-seed is for --images URL.")

    @property
    def rows(self) -> str | None:
        """Return where the rows of the run are; None for random scenes."""
        return self.captions or self.input

    @property
    def first_stage(self) -> str:
        return self.stages[0]

    @property
    def needs_writer(self) -> bool:
        return "descriptions" in self.stages or "questions" in self.stages

    @property
    def has_images(self) -> bool:
        """Return whether finished samples have images."""
        return self.stages != ("descriptions",)

    @property
    def has_turns(self) -> bool:
        """Return whether finished samples have questions."""
        return self.stages[-1] in ("questions", "filter")

    @property
    def has_models(self) -> bool:
        """Return whether a stage waits for a model: of language, of images, or a CLIP."""
        models = (self.model, self.judge_model, self.image_judge_model, self.clip_model)
        return any(models) or self.images != "pillow"

    @property
    def flux_steps(self) -> int:
        """Return the steps of FLUX: those given, or those of the model's authors."""
        return self.image_steps or (4 if "schnell" in (self.image_model or "").lower() else 50)

    @property
    def is_exact(self) -> bool:
        return self.model is None and self.rows is None

    @property
    def writes_exactly(self) -> bool:
        """Return whether the answers are those of the scenes, whoever words them."""
        return self.is_exact or self.rewrite

    @property
    def kind_weights(self) -> Weights:
        """Return the weight of each kind, for `find_sample`."""
        return reduce_weights(zip(self.kinds, self.weights or [1] * len(self.kinds), strict=True))

    def config(self) -> dict:
        """Return all that makes two runs the same, for `RunFolder.prepare`. Rows are known by their content."""
        config = dataclasses.asdict(self)
        del config["image_folder"]
        if self.rows is not None:
            name = "captions" if self.captions else "input"
            config[name] = identify_input(find_input(self.rows, self.caption_split, self.image_column))
        if self.images == "pillow" and (self.rows is None or "images" in self.stages):
            config["drawing"] = identify_drawing()
        if not self.is_exact:
            config["prompts"] = hashlib.sha256(repr(load_prompts()).encode()).hexdigest()
        return config
