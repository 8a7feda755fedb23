"""Exact samples, without a language model: random scenes of a kind, and questions whose answers the scenes decide."""

from fusion_vlm.small_model.grammar.contrasts import describe_sides
from fusion_vlm.small_model.grammar.render import visible_objects
from fusion_vlm.small_model.grammar.scene import Scene, describe_scene, write_caption
from fusion_vlm.small_model.grammar.table import find_kind
from fusion_vlm.synthesis.sample import Sample


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
    """
    build_scenes = find_kind(kind).build_scenes
    sample = Sample(f"{kind}-{index:07}", kind, seed, source={"captions": "scene grammar", "index": index})
    scenes = build_scenes(sample, sample.rng("scene"))
    sample.scenes = [scene.to_dict() for scene in scenes]
    sample.caption, sample.description = write_caption(scenes[0]), describe_scene(scenes[0])
    if len(scenes) == 2:
        sample.caption, sample.description = describe_sides(*scenes)
    return sample


class ExactQuestions:
    """
    The stage that writes `turns` from `scenes`, for samples of `make_scene_sample`.

    A sample is rejected if some object of its scenes is partly hidden: answers might not be true of the pixels.

    Raises:
        ValueError: if a sample has no scene.
    """

    name = "exact_questions"

    def __call__(self, sample: Sample) -> Sample:
        if sample.reason is not None:
            return sample
        if not sample.scenes:
            raise ValueError(f"The sample {sample.id} has no scene, expected one of the scene grammar.")
        scenes = [Scene.from_dict(scene) for scene in sample.scenes]
        for scene in scenes:
            num_hidden = len(scene.objects) + len(scene.signs) - len(visible_objects(scene))
            if num_hidden:
                sample.reject(self.name, f"hidden: {num_hidden} of the objects, expected 0")
                return sample
        sample.turns = find_kind(sample.kind).ask(sample, scenes, sample.rng("questions"))
        sample.source["questions"] = self.name
        return sample
