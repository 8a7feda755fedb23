"""Exact samples, without a language model: random scenes of a kind, and questions whose answers the scenes decide."""

from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.kinds.contrasts import describe_sides
from fusion_vlm.synthesis.kinds.table import find_kind
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.describe import describe_scene, write_caption
from fusion_vlm.synthesis.scenes.scene import Scene
from fusion_vlm.synthesis.scenes.view import View


def make_scene_sample(index: int, kind: str, seed: int) -> Sample:
    """
    Make a sample with random scenes, caption and description, and nothing else yet.

    Args:
        index (`int`): index of the sample among the samples of its kind, from 0. Small data sets are balanced only if
            each kind has all indices up to its number of samples.
        kind (`str`): one of `KINDS`.
        seed (`int`): seed of the run.

    Raises:
        ValueError: for an unknown kind.
        ImportError: if a font or a photograph that scenes are drawn with is not installed.
    """
    record = find_kind(kind)
    sample = Sample(f"{kind}-{index:07}", kind, seed, source={"captions": "scene grammar", "index": index})
    scenes = record.build_scenes(sample, sample.rng("scene"))
    sample.scenes = [scene.to_dict() for scene in scenes]
    if record.is_exact_only:
        sample.caption, sample.description = scenes[0].caption, scenes[0].description
        return sample
    sample.caption, sample.description = write_caption(scenes[0]), describe_scene(scenes[0])
    if len(scenes) == 2:
        sample.caption, sample.description = describe_sides(*scenes)
    return sample


class ExactQuestions:
    """
    The stage that writes `turns` from `scenes`, for samples of `make_scene_sample`.

    A sample is rejected if some object of its scenes is hidden that should not be: answers might not be true of the
    pixels.

    Raises:
        ValueError: if a sample has no scene.
    """

    name = "exact_questions"

    def __call__(self, sample: Sample) -> Sample:
        if sample.reason is not None:
            return sample
        if not sample.scenes:
            raise ValueError(f"The sample {sample.id} has no scene, expected one of the scene grammar.")
        kind = find_kind(sample.kind)
        if kind.is_exact_only:
            pages = [Page.from_dict(page) for page in sample.scenes]
            sample.turns = kind.ask(sample, pages, sample.rng("questions"))
            sample.source["questions"] = self.name
            return sample
        scenes = [Scene.from_dict(scene) for scene in sample.scenes]
        for scene in scenes:
            num_hidden = View(scene).num_hidden()
            if num_hidden:
                sample.reject(self.name, f"hidden: {num_hidden} of the objects, expected 0")
                return sample
        sample.turns = kind.ask(sample, scenes, sample.rng("questions"))
        sample.source["questions"] = self.name
        return sample
