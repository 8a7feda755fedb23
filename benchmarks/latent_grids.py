"""
Accuracy of the small model by the side of the latent grid, fixed or drawn for each question as the authors evaluate.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/latent_grids.py [--grids 2 4 8] [--questions 500] [--scenes 100]

Rows are sides of the grid, and then draws with several seeds from the sides that the model was trained with. easy-VQA
is a sample of the test split; scenes have one question of each kind about an object, in a word. All rows answer the
same questions, so they differ by less than independent samples would. The last column is CPU time for a question.
"""

import argparse
import random
import time
from pathlib import Path

from fusion_vlm.evaluation.answering import Answerer
from fusion_vlm.small_model import accuracy
from fusion_vlm.small_model.data import read_easy_vqa


MODEL = Path(__file__).parents[1] / "small_model" / "model"
GRIDS, SEEDS = tuple(range(2, 13)), (0, 1, 2)
KINDS = ("colour", "shape", "place", "content", "direction", "number")


def measure(model: accuracy.Model, num_questions: int, num_scenes: int) -> dict[str, float]:
    """Return the accuracy on easy-VQA and on each kind of questions about scenes, and the CPU seconds a question."""
    rows = random.Random(0).sample(read_easy_vqa("test"), num_questions)
    begin = time.process_time()
    answers = model.answer([(row.path, [row.question]) for row in rows], 6)
    scores = {"easy-VQA": accuracy.share([said == row.answer for said, row in zip(answers, rows, strict=True)])}
    scenes = accuracy.measure_grounds(model, accuracy.GROUNDS["objects"], num_scenes)
    num_answers = num_questions + sum(each["num"] for each in scenes.values())
    scores |= {kind: scenes[kind]["accuracy"] for kind in KINDS}
    scores["scenes"] = sum(scores[kind] for kind in KINDS) / len(KINDS)
    return {**scores, "seconds": (time.process_time() - begin) / num_answers}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="folder (default: the small model)")
    parser.add_argument("--grids", type=int, nargs="*", default=GRIDS, help="sides (default: 2 to 12)")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="of draws (default: 0 1 2)")
    parser.add_argument("--questions", type=int, default=500, help="of easy-VQA (default: 500)")
    parser.add_argument("--scenes", type=int, default=100, help="scenes with questions (default: 100)")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights (default: auto, as they are stored)")
    args = parser.parse_args()
    model = accuracy.Model(args.model, four_bit=False, dtype=args.dtype)
    loaded, config = (model.answerer.model, model.answerer.processor), model.answerer.model.config
    print(
        f"{model.settings['dtype']}; sides in training {config.latent_grid_sizes}, default {config.latent_grid_size}"
    )
    columns = ("easy-VQA", "scenes", *KINDS)
    print("| latent grid | latents | " + " | ".join(columns) + " | ms |\n|---|---|" + "---|" * (len(columns) + 1))
    cases = [(f"{side}", f"{side**2}", {"latent_grid_size": side}) for side in args.grids]
    cases += [(f"drawn, seed {seed}", "", {"draw_latents": seed}) for seed in args.seeds]
    for name, number, options in cases:
        model.answerer = Answerer(*loaded, batch_size=64, **options)
        scores = measure(model, args.questions, args.scenes)
        cells = " | ".join(f"{scores[column]:.3f}" for column in columns)
        print(f"| {name} | {number} | {cells} | {1000 * scores['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
