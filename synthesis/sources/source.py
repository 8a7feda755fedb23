"""What a run begins from: random scenes, or the rows of an input."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fusion_vlm.rows.forms import RowError
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.kinds.exact import make_scene_sample
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS, find_kind
from fusion_vlm.synthesis.kinds.weights import find_sample, reduce_weights
from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.sources.given import STAGE, Columns, build_sample
from fusion_vlm.synthesis.sources.inputs import Input, find_input
from fusion_vlm.synthesis.sources.prepared import PreparedRow, PreparedRows, Request, prepare


if TYPE_CHECKING:
    from fusion_vlm.synthesis.options import Options

DEDUPLICATE = "deduplicate"
SOURCE_STAGES = (DEDUPLICATE, STAGE)  # first parts of the reasons of rows that are rejected as they are read


class Source(Protocol):
    """Gives the samples of a run before their first stage."""

    def read(self, indices: range, images: PartImages) -> Iterator[Sample]:
        """Yield the samples at consecutive indices. Images that are given go to `images`."""


class SceneSource:
    """Gives samples with random scenes, the kinds in turn."""

    def __init__(self, options: "Options"):
        self.options = options

    def read(self, indices: range, images: PartImages) -> Iterator[Sample]:
        for index in indices:
            # Numbered within each kind, because draws are balanced over consecutive numbers.
            kind, number = find_sample(index, self.options.kind_weights)
            sample = make_scene_sample(number, kind, self.options.seed)
            sample.source["position"] = index
            yield sample


class RowSource:
    """
    Gives samples of the rows of an input, which `prepare_rows` has prepared.

    Duplicates of earlier captions are rejected, and so are rows that cannot be used.

    Args:
        options (`Options`)
        folder (`RunFolder`): folder of the run.

    Raises:
        RunError: if no row fits the options.
    """

    def __init__(self, options: "Options", folder: RunFolder):
        self.options = options
        self.has_images = options.first_stage in ("questions", "filter")
        self.rows = PreparedRows(build_request(options, needs_input=self.has_images), folder.work_dir / "input")
        # A description that others wrote is that of one image.
        self.kinds = [
            kind
            for kind in options.kinds
            if options.first_stage == "descriptions" or not find_kind(kind).has_two_images
        ]
        self.weights = reduce_weights((kind, weight) for kind, weight in options.kind_weights if kind in self.kinds)
        self._check_first_row()

    def _check_first_row(self):
        (first,) = self.rows.read(range(1))
        options, path = self.options, self.options.rows
        if "images" in options.stages and options.images == "pillow" and not first.given.get("scenes"):
            raise RunError(f"Pillow draws the built-in scenes, and {path} has none. Give --images flux or a URL.")
        if "kind" not in first.given and options.kinds != MODEL_KINDS and len(self.kinds) < len(options.kinds):
            names = ", ".join(kind for kind in options.kinds if kind not in self.kinds)
            raise RunError(f"{names} need two descriptions, and {path} has one a row. Begin with its captions.")

    def read(self, indices: range, images: PartImages) -> Iterator[Sample]:
        for row in self.rows.read(indices):
            sample = self._build_sample(row)
            name, sample.image = sample.image, None
            if sample.reason is None:
                if row.rule:
                    sample.reject(DEDUPLICATE, f"{row.rule}: as {self._first_id(row)}, expected a new one")
                elif (problem := self._find_problem(sample)) is not None:
                    sample.reject(STAGE, problem)
                elif self.has_images:
                    self._take_image(sample, row, name, images)
            yield sample

    def _build_sample(self, row: PreparedRow) -> Sample:
        given = dict(row.given)
        if "id" in given and not self.rows.info["keeps_ids"]:
            given["source"] = {**given["source"], "id": given.pop("id")}
        if "position" not in given["source"] or not self.rows.info["keeps_positions"]:
            given["source"] = {**given["source"], "position": row.index}
        return build_sample(given, self._kind_at(row.index), row.index, self.options.seed)

    def _kind_at(self, index: int) -> str:
        # Questions that are there already are of no kind.
        return "given" if self.options.first_stage == "filter" else find_sample(index, self.weights)[0]

    def _first_id(self, row: PreparedRow) -> str:
        return f"row {row.first}" if "id" in row.given else f"{self._kind_at(row.first)}-{row.first:07}"

    def _find_problem(self, sample: Sample) -> str | None:
        """Return why a row does not fit the options, or None."""
        options = self.options
        if options.kinds != MODEL_KINDS and options.first_stage != "filter" and sample.kind not in options.kinds:
            return f"kind: {sample.kind}, expected one of --kinds"
        if "images" in options.stages and options.images == "pillow" and not sample.scenes:
            return "no_scene: Pillow draws nothing else"
        if options.first_stage == "filter" and options.judge_model and not sample.description:
            return "no_description: expected one, because the judge reads it"
        return None

    def _take_image(self, sample: Sample, row: PreparedRow, name: str | None, images: PartImages):
        """Take the image of a row, under the name that it has in a run of the data engine."""
        try:
            content, suffix = self.rows.images.read(row.image)
        except RowError as error:
            sample.reject(STAGE, f"image: {error}")
            return
        sample.image = name if name and self.rows.info["keeps_ids"] else f"{sample.id}.{suffix}"
        images.write(sample.image, content)


class CheckImage:
    """The stage that rejects a sample whose given image is broken."""

    name = STAGE

    def __init__(self, images: PartImages):
        self.images = images

    def __call__(self, sample: Sample) -> Sample:
        try:
            with self.images.open(sample.image) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            sample.reject(self.name, f"image: it cannot be read: {error}")
        return sample


def open_source(options: "Options", folder: RunFolder) -> Source:
    """Open what a run begins from."""
    return RowSource(options, folder) if options.rows else SceneSource(options)


def build_request(options: "Options", num: int | None = None, needs_input: bool = True) -> Request:
    """
    Build the request for the rows of a run.

    Args:
        options (`Options`)
        num (`int`, *optional*): rows to take; without, all.
        needs_input (`bool`): whether the input itself is read, not only the prepared rows.
    """
    columns = Columns(options.caption_column, options.description_column, options.conversation_column)
    found = Input(options.rows, "stream")
    if needs_input:
        found = find_input(options.rows, options.caption_split, options.image_column)
    return Request(found, columns, options.first_stage, num, options.image_folder)


def prepare_rows(options: "Options", path: Path, num: int | None) -> int:
    """
    Prepare the rows of a run, unless that is done. Of several processes, one prepares and the others wait.

    Args:
        options (`Options`)
        path (`Path`): folder of the run.
        num (`int`, *optional*): rows to take; without, all.

    Returns:
        `int`: the number of rows.

    Raises:
        RunError, ValueError, OSError: see `prepare`.
    """
    folder = RunFolder(path, 1)
    folder.work_dir.mkdir(parents=True, exist_ok=True)
    with folder.locked("input"):
        return prepare(build_request(options, num), folder.work_dir / "input")["num_rows"]
