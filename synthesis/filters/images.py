"""
The filters that look at images: the paper's image score, and the score of statements about the image.

Scorers are arguments, `(image, text) -> float`. Without a scorer, the entry of `sample.scores` is `None` ("not
available") and no bound is applied: a missing score neither passes nor rejects a sample.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from fusion_vlm.synthesis.filters.text import out_of_bounds
from fusion_vlm.synthesis.sample import Sample, Turn


ImageTextScorer = Callable[[Image.Image, str], float]

CROP_SIZE = 384  # side of the vision tower's input in pixels
# The paper, appendix E.2.3: weights of a quadrant in SSIM_a, and of SSIM_a in the image score.
QUADRANT_COEF = 0.25
SSIM_COEF = 0.5
SSIM_WINDOW_SIZE = 11  # pixels; of a Gaussian with sigma 1.5


class ImageFilter:
    """
    The paper's image score, CLIPScore + 0.5 * SSIM_a (appendix E.2.3, equation 15).

    Records `clip_score`, `ssim_a` and `image_score`. The paper gives no bound; it kept 6 of 12 million images.

    Args:
        open_image (`Callable[[Sample], Image]`): opens the image of a sample.
        clip_score (`Callable[[Image, str], float]`, *optional*): scores the image and its description (the caption if
            it has none). Without `clip_score` there is no image score.
        min_score (`float`): least image score.
    """

    name = "image_filter"

    def __init__(
        self,
        open_image: Callable[[Sample], Image.Image],
        clip_score: ImageTextScorer | None = None,
        min_score: float = -math.inf,
    ):
        self.open_image, self.clip_score, self.min_score = open_image, clip_score, min_score

    def __call__(self, sample: Sample) -> str | None:
        image = self.open_image(sample)
        ssim_a = structural_similarity_after_resize(image)
        clip_score = self.clip_score(image, sample.description or sample.caption) if self.clip_score else None
        score = None if clip_score is None else clip_score + SSIM_COEF * ssim_a
        sample.scores |= {"clip_score": clip_score, "ssim_a": ssim_a, "image_score": score}
        return None if score is None else out_of_bounds("image_score", score, self.min_score, math.inf)


class StatementFilter:
    """
    The paper's score of questions and answers (appendix E.2.4, equation 16).

    Each pair is scored against the image as a statement, and the scores are averaged. The paper has an LLM write the
    statement; here the statement is question and answer in one line. Records `statement_score`. The paper gives no
    bound.

    Args:
        open_image (`Callable[[Sample], Image]`): opens the image of a sample.
        scorer (`Callable[[Image, str], float]`, *optional*): scores the image and a statement, such as `ClipScorer`.
        min_score (`float`): least average.
    """

    name = "statement_filter"

    def __init__(
        self,
        open_image: Callable[[Sample], Image.Image],
        scorer: ImageTextScorer | None = None,
        min_score: float = -math.inf,
    ):
        self.open_image, self.scorer, self.min_score = open_image, scorer, min_score

    def __call__(self, sample: Sample) -> str | None:
        sample.scores["statement_score"] = None
        if self.scorer is None or not sample.turns:
            return None
        image = self.open_image(sample)
        scores = [self.scorer(image, to_statement(turn)) for turn in sample.turns]
        sample.scores["statement_score"] = score = sum(scores) / len(scores)
        return out_of_bounds("statement_score", score, self.min_score, math.inf)


def to_statement(turn: Turn) -> str:
    """Return question and answer in one line, with the option in place of its letter; of a caption, the answer."""
    answer = turn.options_by_letter.get(turn.answer, turn.answer)
    return answer if turn.type == "caption" else f"{turn.question} {answer}"


def structural_similarity_after_resize(image: Image.Image, crop_size: int = CROP_SIZE) -> float:
    """
    Compute SSIM_a, equations 11 to 14 of the paper's appendix; at most 2.

    The image and its four quadrants are each resized to `crop_size` squared, as for the vision tower, and back. SSIM_a
    says how similar the results are. Resizing is bicubic, as in the image processor.

    Raises:
        ValueError: if the image has fewer than 22 pixels on a side (a quadrant must hold the window of SSIM).
    """
    width, height = image.size
    if min(width, height) < 2 * SSIM_WINDOW_SIZE:
        raise ValueError(
            f"The image has {width} x {height} pixels, expected {2 * SSIM_WINDOW_SIZE} or more on each side."
        )
    gray = image.convert("RGB").convert("L")
    columns, rows = ((0, width // 2), (width // 2, width)), ((0, height // 2), (height // 2, height))
    quadrants = [gray.crop((left, top, right, bottom)) for top, bottom in rows for left, right in columns]
    whole, *parts = (structural_similarity(part, _resize_and_back(part, crop_size)) for part in (gray, *quadrants))
    return whole + QUADRANT_COEF * sum(parts)


def _resize_and_back(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def structural_similarity(first: Image.Image, second: Image.Image) -> float:
    """
    Compute the mean SSIM of two gray images of one size; 1 for equal images.

    As in Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5, only where the window fits inside of the image.

    Raises:
        ValueError: if the sizes differ or are smaller than the window.
    """
    # Late: it takes half a second to import, in each worker process, and exact runs do not need it.
    from skimage.metrics import structural_similarity as compute

    if first.size != second.size or min(first.size) < SSIM_WINDOW_SIZE:
        raise ValueError(
            f"The sizes are {first.size} and {second.size}, expected equal and {SSIM_WINDOW_SIZE} or more."
        )
    pixels = [np.asarray(image.convert("L")) for image in (first, second)]
    # scikit-image's way to the window and the variances of the paper.
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(compute(*pixels, data_range=255, **options))
