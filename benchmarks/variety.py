"""
Measures how varied the exact scenes are, beside those of the small model's grammar, which the data engine once had.

    python benchmarks/variety.py [--num 10000] [--num-images 2000]

It prints distinct words (of letters), captions, templates of questions and of captions (their names, colors, numbers
and texts are masked), backgrounds and pictures (by a difference hash of 256 bits), and the CPU time of a sample.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from fusion_vlm.small_model.grammar import exact as small_exact
from fusion_vlm.small_model.grammar import render as small_render
from fusion_vlm.small_model.grammar import scene as small_scene
from fusion_vlm.small_model.grammar import table as small_table
from fusion_vlm.synthesis.kinds import exact
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes import render
from fusion_vlm.synthesis.scenes.backgrounds import PLACES
from fusion_vlm.synthesis.scenes.colors import COLORS
from fusion_vlm.synthesis.scenes.english import NUMBERS
from fusion_vlm.synthesis.scenes.outlines import load_outlines
from fusion_vlm.synthesis.scenes.scene import PATTERNS, SIZES


HASH_SIDE = 16
NOUNS = [name for outline in load_outlines().values() for name in (outline.noun, outline.plural)]
NOUNS += [name for shape in small_scene.SHAPES for name in (shape, small_scene.plural(shape))]
VALUES = {*NOUNS, *COLORS, *small_scene.COLOURS, *small_scene.SIZES, *PATTERNS, *SIZES, *NUMBERS, *PLACES}
VALUES |= set(small_scene.PLACES)
VALUES |= {*small_scene.PLAIN_BACKGROUNDS, *(word for row in small_scene.POSITIONS for word in row)}
MASKED = re.compile(
    r'"[^"]*"|\b(?:' + "|".join(sorted(map(re.escape, VALUES), key=len, reverse=True)) + r")\b|\d+", re.IGNORECASE
)


def list_samples(make: Callable, ask: Callable, kinds: tuple[str, ...], num: int) -> Iterator[Sample]:
    for index in range(num):
        number, kind = divmod(index, len(kinds))
        sample = ask(make(number, kinds[kind], 1))
        if sample.reason is None:
            yield sample


def mask(text: str) -> str:
    """Return a text with its names, colors, numbers and quoted texts masked, and without options."""
    return re.sub(r"(?:\* )+\*|\*", "*", MASKED.sub("*", text.split("\nA. ")[0]))


def hash_picture(image: Image.Image) -> bytes:
    """Return the difference hash of an image: which of neighboring cells is brighter."""
    cells = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=int)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def measure(module, renderer, kinds: tuple[str, ...], empty: Callable, num: int, num_images: int) -> dict[str, float]:
    """
    Measure a grammar.

    Args:
        module: has `make_scene_sample` and `ExactQuestions`.
        renderer (`Renderer`)
        kinds (`tuple[str, ...]`)
        empty (`Callable`): returns the picture of a scene's background alone, from its dictionary.
        num (`int`), num_images (`int`): samples whose texts are read, and of these those that are drawn.
    """
    words, templates, captions, caption_templates, captioned = set(), set(), set(), set(), 0
    pictures, backgrounds = set(), set()
    texts_time = drawing_time = 0.0
    samples = list_samples(module.make_scene_sample, module.ExactQuestions(), kinds, num)
    start = time.process_time()
    for index, sample in enumerate(samples):
        for turn in sample.turns:
            words |= set(re.findall(r"[a-z']*[a-z]", f"{turn.question} {turn.answer}".lower()))
            templates |= {mask(turn.question)}
            if turn.type == "caption":
                captions.add(turn.answer)
                caption_templates.add(mask(turn.answer))
                captioned += 1
        texts_time += time.process_time() - start
        if index < num_images:
            start = time.process_time()
            image = renderer(sample)
            drawing_time += time.process_time() - start
            pictures.add(hash_picture(image))
            backgrounds.add(hash_picture(empty(sample.scenes[0])))
        start = time.process_time()
    return {
        "distinct words": len(words),
        "question templates": len(templates),
        "distinct captions": len(captions),
        "caption templates": len(caption_templates),
        "captions": captioned,
        "distinct backgrounds": len(backgrounds),
        "distinct pictures": len(pictures),
        "ms a sample, scene and text": 1000 * texts_time / num,
        "ms a sample, drawing": 1000 * drawing_time / min(num, num_images),
    }


def draw_empty(scene: dict) -> Image.Image:
    return render.draw_scene(render.Scene(render.Scene.from_dict(scene).background), 128)


def draw_small_empty(scene: dict) -> Image.Image:
    return small_render.draw_scene(small_scene.Scene(scene["background"]), 128)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="samples whose texts are read (default: 10000)")
    parser.add_argument("--num-images", type=int, default=2000, help="samples that are drawn (default: 2000)")
    args = parser.parse_args()
    kinds, counts = small_table.KINDS, (args.num, args.num_images)
    old = measure(small_exact, small_render.PillowRenderer(336), kinds, draw_small_empty, *counts)
    new = measure(exact, render.PillowRenderer(336), kinds, draw_empty, *counts)
    print(f"{args.num} samples, {args.num_images} of them drawn")
    for name in old:
        print(f"{name:32}{old[name]:10.1f}{new[name]:10.1f}{new[name] / old[name]:8.1f} times")


if __name__ == "__main__":
    main()
