"""
Measure whether the maps of `visualization.py` show what the question asks for, by occlusion and by attention.

    python benchmarks/occlusion.py [MODEL] [--num-scenes 50] [--grid-sizes 4 6 9]

Each picture gets several short questions about objects of different colors. The objects are flat in color, so their
pixels are those of that exact color. The pictures are those of `examples/images`, and scenes drawn anew, on plain
grounds and with a place painted behind. Printed for each method and grid:

* hit: how often the cell of the maximum holds pixels of the object that was asked for, or of one such object.
* chance: the share of cells that do.
* correlation: of the maps of two questions about one picture.
* forwards and seconds of a question; the answer itself is not counted.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.small_model.grammar.questions import SHORT_HINT, open_colour, open_shape
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import COLOURS, PLACES, PLAIN_BACKGROUNDS, build_scene
from fusion_vlm.visualization import (
    answer_occlusion,
    generate_answers,
    interaction_attention,
    process_questions,
    share_crops,
)


ROOT = Path(__file__).resolve().parents[1]
SEED = 1897  # training has the seeds 11 to 14
IMAGE_SIZE = 144  # pixels a side of a scene, as in training
# Questions about the pictures of `examples/images`, each with the color of the object that it is about.
EXAMPLES = {
    "stars.png": {
        "What is the colour of the circle?": "blue",
        "How many red objects are there?": "red",
        "What shape is the green object?": "green",
    },
    "beach.png": {
        "What is the colour of the cross?": "black",
        "What shape is the green object?": "green",
        "Where is the heart?": "purple",
    },
    "shapes.png": {
        "What is the colour of the diamond?": "orange",
        "What shape is the green object?": "green",
        "Where is the circle?": "blue",
    },
}


@dataclass
class Case:
    """
    A picture with questions.

    Args:
        image (`PIL.Image.Image`)
        questions (`dict[str, str]`): the color of the object that each question is about.
    """

    image: Image.Image
    questions: dict[str, str]


@dataclass
class Score:
    """What is measured of one method: a number for each question, and correlations for each pair of them."""

    hits: list[bool] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    correlations: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, case: Case, heat_maps: np.ndarray):
        """Count the maps `(questions, cells, cells)` of one picture."""
        for color, heat_map in zip(case.questions.values(), heat_maps, strict=True):
            cells = object_cells(case.image, color, len(heat_map))
            self.hits.append(bool(cells.flat[heat_map.argmax()]))
            self.chances.append(float(cells.mean()))
        flat = [heat_map.ravel() for heat_map in heat_maps]
        self.correlations += [float(np.corrcoef(one, other)[0, 1]) for one, other in combinations(flat, 2)]


def object_cells(image: Image.Image, color: str, grid_size: int) -> np.ndarray:
    """Return which cells of a grid hold pixels of a color, `(grid_size, grid_size)`."""
    is_object = (np.asarray(image.convert("RGB")) == COLOURS[color]).all(axis=2)
    rows, columns = is_object.nonzero()
    cells = np.zeros((grid_size, grid_size), dtype=bool)
    cells[rows * grid_size // image.height, columns * grid_size // image.width] = True
    assert cells.any(), f"no {color} in the picture"
    return cells


def read_examples() -> Iterator[Case]:
    for name, questions in EXAMPLES.items():
        yield Case(Image.open(ROOT / "examples" / "images" / name).convert("RGB"), questions)


def draw_scenes(num_scenes: int) -> Iterator[Case]:
    """Yield scenes of three to six objects with two questions, about the looks of two of the objects."""
    for index in range(num_scenes):
        rng = random.Random(SEED + index)
        background = rng.choice(rng.choice((PLACES, tuple(PLAIN_BACKGROUNDS))))
        scene = build_scene(rng, background, num_others=rng.randint(3, 6))
        first, second = rng.sample(scene.objects, 2)
        questions = {
            open_colour(rng, first).question: first.colour,
            open_shape(rng, second).question: second.colour,
        }
        yield Case(draw_scene(scene, IMAGE_SIZE), questions)


class Model:
    """A model with its processor, which answers the questions of a case and makes the maps of a method."""

    def __init__(self, path: str):
        self.processor = FusionProcessor.from_pretrained(path)
        self.model: nn.Module = FusionForConditionalGeneration.from_pretrained(path, dtype=torch.float32)

    def answer(self, case: Case):
        """Return the inputs of the questions and the ids of their answers."""
        questions = [f"{question}\n{SHORT_HINT}" for question in case.questions]
        inputs = process_questions(self.processor, case.image, questions, {}).to(self.model.device)
        return inputs, generate_answers(self.model, share_crops(self.model, inputs), 16)

    def occlude(self, inputs, answer_ids: list[torch.Tensor], grid_size: int) -> np.ndarray:
        return answer_occlusion(self.model, inputs, answer_ids, grid_size=grid_size, batch_size=32).drops.numpy()

    def attend(self, inputs, answer_ids: list[torch.Tensor]) -> np.ndarray:
        return interaction_attention(self.model, share_crops(self.model, inputs)).mean(dim=(1, 2)).numpy()


def measure(model: Model, cases: list[Case], grid_sizes: list[int]) -> dict[str, Score]:
    """Return the scores of each method, by its name, over all cases."""
    methods = {"attention": model.attend}
    for grid_size in grid_sizes:
        methods[f"occlusion {grid_size} x {grid_size}"] = lambda *args, size=grid_size: model.occlude(*args, size)
    scores = {name: Score() for name in methods}
    for case in cases:
        with torch.no_grad():
            inputs, answer_ids = model.answer(case)
        for name, make_maps in methods.items():
            start = time.perf_counter()
            heat_maps = make_maps(inputs, answer_ids)
            scores[name].seconds += time.perf_counter() - start
            scores[name].add(case, heat_maps)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(ROOT / "small_model" / "model"), metavar="MODEL")
    parser.add_argument("--num-scenes", type=int, default=50)
    parser.add_argument("--grid-sizes", type=int, nargs="+", default=[4, 6, 9], metavar="SIDE")
    args = parser.parse_args()
    model = Model(args.model)
    print("| pictures | method | questions | hit | chance | correlation | forwards | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for pictures, cases in (("examples", list(read_examples())), ("scenes", list(draw_scenes(args.num_scenes)))):
        for method, score in measure(model, cases, args.grid_sizes).items():
            num_forwards = 1 if method == "attention" else 1 + int(method.rpartition(" ")[2]) ** 2
            print(
                f"| {pictures} | {method} | {len(score.hits)} | {np.mean(score.hits):.2f} |"
                f" {np.mean(score.chances):.2f} | {np.mean(score.correlations):.2f} | {num_forwards} |"
                f" {score.seconds / len(score.hits):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
