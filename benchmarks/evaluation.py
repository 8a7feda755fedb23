"""
Questions per second of an evaluation: one by one, in batches, and with the context maps of an image shared.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/evaluation.py [--model FOLDER] [--images 1] [--questions 18] [--rounds 2]

POPE asks 18 questions about each image, MME 2 (`--questions 2`). Contenders take turns, and the best of the rounds
counts, in CPU time, which other programs on the machine change less. Without --model a random model of 80 M parameters
is made, that of benchmarks/serving.py.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from fusion_vlm.evaluation.answering import Answerer, Request
from fusion_vlm.hub.loading import load
from serving import draw_images, write_medium_model


THINGS = ("dog", "chair", "bowl", "person", "car", "bottle", "cup", "clock", "bench", "bird")


class Unshared(Answerer):
    """An answerer that encodes the crops of every question."""

    def _get_context_maps(self, batch, crops: torch.Tensor) -> torch.Tensor:
        self.num_encoded += len(crops)
        with torch.no_grad():
            return self.model.get_context_map(crops.to(self.model.device))


def make_requests(num_images: int, num_questions: int, seed: int) -> list[Request]:
    """Make questions as POPE asks them, with answers of two tokens."""
    requests = []
    for number, image in enumerate(draw_images(num_images, seed)):
        for index in range(num_questions):
            text = f"Is there a {THINGS[index % len(THINGS)]} in the image?"
            text += "\nAnswer the question using a single word or phrase."
            key = {"image": number, "question": index}
            requests.append(Request(key, [text + " " * index], lambda image=image: [image], {"max_new_tokens": 2}))
    return requests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder (default: a random model of 80 M parameters)")
    parser.add_argument("--images", type=int, default=1, help="(default: 1)")
    parser.add_argument("--questions", type=int, default=18, help="about each image (default: 18, as POPE)")
    parser.add_argument("--batch-size", type=int, default=8, help="(default: 8)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(args.model or write_medium_model(Path(scratch, "medium")), dtype="float32")
    contenders = {
        "one by one": (Unshared, 1),
        f"batches of {args.batch_size}": (Unshared, args.batch_size),
        f"batches of {args.batch_size}, maps shared": (Answerer, args.batch_size),
    }
    best: dict[str, float] = {}
    encoded: dict[str, int] = {}
    for turn in range(args.rounds):
        requests = make_requests(args.images, args.questions, turn)
        for name, (kind, batch_size) in contenders.items():
            answerer = kind(*loaded, batch_size=batch_size)
            begin = time.process_time()
            answerer.answer(requests)
            seconds = (time.process_time() - begin) / len(requests)
            best[name], encoded[name] = min(best.get(name, seconds), seconds), answerer.num_encoded
    slowest = best["one by one"]
    print("| questions | images encoded | CPU ms a question | speed |\n|---|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {encoded[name]} | {1000 * seconds:.0f} | {slowest / seconds:.2f} |")


if __name__ == "__main__":
    main()
