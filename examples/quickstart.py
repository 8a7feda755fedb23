"""
Ask the small FUSION of `small_model/model` three questions about a drawn scene.

A picture shows where each answer came from.

    python examples/quickstart.py [--output out/demo.png]
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from fusion_vlm.small_model.grammar.questions import SHORT_HINT
from fusion_vlm.visualization import visualize


ROOT = Path(__file__).resolve().parent
MODEL, IMAGE = ROOT.parent / "small_model" / "model", ROOT / "images" / "stars.png"
# A colour, a number, and a place.
QUESTIONS = (
    "What is the colour of the circle?",
    "How many red objects are there?",
    "Where is the circle?",
)
NEXT_QUESTION = "What is in the lower right?"


def ask_command(question: str) -> str:
    """Return the command line that asks the small model one more question, as it runs from the current folder."""
    command = Path(sys.executable).with_name("fusion-vlm")
    paths = [os.path.relpath(path) for path in (command, MODEL, IMAGE)]
    return shlex.join([paths[0], "ask", *paths[1:], f"{question} {SHORT_HINT}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/demo.png"), help="picture to write")
    args = parser.parse_args()
    if not MODEL.exists():
        sys.exit(f"error: there is no {MODEL} yet. Train it: python -m fusion_vlm.small_model.train")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, trust_remote_code=True, dtype="auto")
    loaded = time.perf_counter()
    # The hint of the training data: without it, answers are sentences.
    asked = [f"{question}\n{SHORT_HINT}" for question in QUESTIONS]
    answers, _ = visualize(model, processor, IMAGE, asked, args.output)
    print(f"Model:    {os.path.relpath(MODEL)}, two million parameters, trained on drawn shapes")
    print(f"Image:    {os.path.relpath(IMAGE)}, a drawing: red stars, a blue circle and a green square")
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"Question: {question}\nAnswer:   {answer}")
    print(f"Picture:  {args.output} shows the image beside what each answer came from: where it is red, a blur takes")
    print("          the answer's probability away. Look at it with any viewer.")
    print(f"Time:     {loaded - start:.1f} s to load, {time.perf_counter() - loaded:.1f} s to answer and to draw")
    print("Next:     ask a question of your own, about this image or another one:")
    print(f"          {ask_command(NEXT_QUESTION)}")


if __name__ == "__main__":
    main()
