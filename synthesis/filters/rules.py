"""
Reasons to reject a sample: by its image (the paper's image score), by its turns, by their statements.

A filter is a callable `Sample -> str | None`: `None` keeps the sample, a reason rejects it. A reason reads `rule: what
was found, what was expected`. `apply_filters` puts the filter's name before it, so that `count_reasons` can count.

Scorers are arguments, `(image, text) -> float`. Where there is none, `sample.scores` says `None`, "not available", and
the bound is not applied: a score that is missing is neither a pass nor a reject.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fusion_vlm.synthesis.sample import Sample, Turn


Filter = Callable[[Sample], str | None]
ImageTextScorer = Callable[[Image.Image, str], float]

# The paper, appendix E.2.3: weights of a quadrant in SSIM_a, and of SSIM_a in the image score.
QUADRANT_COEF = 0.25
SSIM_COEF = 0.5
# Wang et al. 2004, section III.C; pixels are in [0, 1] here.
SSIM_WINDOW_SIZE, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03

# An LLM that speaks of the text it was given instead of the image. A sign may well have text above it, and a user may
# ask for "a description": only what points at a given text counts.
SOURCE_TEXT = re.compile(
    r"\b(the|this|that|your|given|provided)\s+((image|given|provided|above|detailed|original)\s+)?"
    r"(description|caption|prompt)s?\b"
    r"|\b(the|this)\s+(text|paragraph)\s+(above|below|provided|given)\s*([,.;:?!]|$)"
    r"|\b(not|n't)\s+(been\s+)?(explicitly\s+)?(mentioned|specified|stated|described)\b",
    re.IGNORECASE,
)
# "I cannot" only where a sentence begins, and not in capitals: a sign in an image may say it too.
REFUSAL = re.compile(
    r"(^|[.!?\n]\s*)(I (cannot|can't|can not|am unable|am not able|am sorry|won't)|I'm (unable|not able|sorry)"
    r"|Sorry, |Unfortunately, I )"
    r"|(?i:\bas an? (AI|artificial intelligence|(large )?language model)\b)"
)


def apply_filters(sample: Sample, filters: Iterable[Filter]) -> Sample:
    """
    Sets `sample.reason` to that of the first filter that gives one, as `filter/rule: ...`; the later ones do not run.
    A sample that is rejected already is returned as it is.
    """
    for keep in filters:
        if sample.reason is None and (reason := keep(sample)) is not None:
            sample.reason = f"{keep.name if hasattr(keep, 'name') else keep.__name__}/{reason}"
    return sample


def count_reasons(samples: Iterable[Sample]) -> dict[str, Counter]:
    """How many samples each rule rejected: `{filter: Counter({rule: count})}`."""
    counts: dict[str, Counter] = {}
    for sample in samples:
        if sample.reason is not None:
            stage, _, rule = sample.reason.partition(":")[0].partition("/")
            counts.setdefault(stage, Counter())[rule or stage] += 1
    return counts


def out_of_bounds(rule: str, value: float, low: float, high: float) -> str | None:
    """A reason that names the value and its bounds, or `None` if `low <= value <= high`. NaN is out of all bounds."""
    if low <= value <= high:
        return None
    if math.isinf(high):
        return f"{rule}: {value:.6g}, expected at least {low:.8g}"
    if math.isinf(low):
        return f"{rule}: {value:.6g}, expected at most {high:.8g}"
    return f"{rule}: {value:.6g}, expected {low:.8g} to {high:.8g}"


def normalise(text: str) -> str:
    """
    Text for comparison: Unicode NFKC, case folded, punctuation and white space made single spaces. Symbols (`+`, `<`,
    `$`) stay, and so does a text that is nothing but punctuation.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(" " if unicodedata.category(character)[0] == "P" else character for character in folded)
    return " ".join(spaced.split()) or folded.strip()


class ImageFilter:
    """
    The paper's image score, CLIPScore + 0.5 * SSIM_a (appendix E.2.3, equation 15). Records `clip_score`, `ssim_a` and
    `image_score`. The paper gives no bound; it kept 6 of 12 million images.

    Args:
        open_image (`Callable[[Sample], Image]`): where the image of a sample is.
        clip_score (`Callable[[Image, str], float]`, *optional*): of the image and its description (the caption if it
            has none). Without it there is no image score.
        min_score, min_ssim (`float`): least image score, and least SSIM_a.
        crop_size (`int`): side of the tower's input in pixels.
    """

    name = "image_filter"

    def __init__(
        self,
        open_image: Callable[[Sample], Image.Image],
        clip_score: ImageTextScorer | None = None,
        min_score: float = -math.inf,
        min_ssim: float = -math.inf,
        crop_size: int = 384,
    ):
        self.open_image, self.clip_score = open_image, clip_score
        self.min_score, self.min_ssim, self.crop_size = min_score, min_ssim, crop_size

    def __call__(self, sample: Sample) -> str | None:
        image = self.open_image(sample)
        ssim_a = structural_similarity_after_resize(image, self.crop_size)
        clip_score = self.clip_score(image, sample.description or sample.caption) if self.clip_score else None
        score = None if clip_score is None else clip_score + SSIM_COEF * ssim_a
        sample.scores |= {"clip_score": clip_score, "ssim_a": ssim_a, "image_score": score}
        reason = out_of_bounds("ssim_a", ssim_a, self.min_ssim, math.inf)
        if reason is None and score is not None:
            reason = out_of_bounds("image_score", score, self.min_score, math.inf)
        return reason


class StatementFilter:
    """
    The paper's score of question-answer pairs (appendix E.2.4, equation 16): each pair as a statement, scored against
    the image, averaged. Records `statement_score`. The paper gives no bound.

    Args:
        open_image (`Callable[[Sample], Image]`): where the image of a sample is.
        scorer (`Callable[[Image, str], float]`, *optional*): of the image and a statement, such as `ClipScorer`.
        min_score (`float`): least average.
        to_statement (`Callable[[Turn], str]`): the paper has an LLM write the statement; by default it is question and
            answer, one after the other.
    """

    name = "statement_filter"

    def __init__(
        self,
        open_image: Callable[[Sample], Image.Image],
        scorer: ImageTextScorer | None = None,
        min_score: float = -math.inf,
        to_statement: Callable[[Turn], str] | None = None,
    ):
        self.open_image, self.scorer, self.min_score = open_image, scorer, min_score
        self.to_statement = to_statement or question_and_answer

    def __call__(self, sample: Sample) -> str | None:
        sample.scores["statement_score"] = None
        if self.scorer is None or not sample.turns:
            return None
        image = self.open_image(sample)
        scores = [self.scorer(image, self.to_statement(turn)) for turn in sample.turns]
        sample.scores["statement_score"] = score = sum(scores) / len(scores)
        return out_of_bounds("statement_score", score, self.min_score, math.inf)


def question_and_answer(turn: Turn) -> str:
    """Question and answer in one line, the option in place of its letter; of a caption, the caption alone."""
    answer = turn.answer
    if turn.options and answer in string.ascii_uppercase[: len(turn.options)]:
        answer = turn.options[string.ascii_uppercase.index(answer)]
    return answer if turn.type == "caption" else f"{turn.question} {answer}"


@dataclass
class TurnRules:
    """
    What is wrong with questions and answers as text, whoever wrote them: no turns or too many, an empty question or
    answer, an answer that is too long, a letter that no option has, a question asked twice, a refusal, talk about the
    description that the writer was given.

    Args:
        max_turns (`int`): the paper's prompts ask for 8 at most.
        max_characters (`int`): of an answer.
    """

    max_turns: int = 8
    max_characters: int = 3000
    name = "turn_rules"

    def __call__(self, sample: Sample) -> str | None:
        if not 1 <= len(sample.turns) <= self.max_turns:
            return f"turns: {len(sample.turns)}, expected 1 to {self.max_turns}"
        questions = set()
        for turn in sample.turns:
            if (reason := self.check_text(turn) or self.check_options(turn)) is not None:
                return reason
            if normalise(turn.question) in questions:
                return f"repeated_question: {quote(turn.question)}, expected each once"
            questions.add(normalise(turn.question))
        return None

    def check_text(self, turn: Turn) -> str | None:
        """The reason, if any, that lies in the words of one turn."""
        question, answer = (text.replace("\u2019", "'") for text in (turn.question, turn.answer))
        if not question.strip() or not answer.strip():
            return f"empty: question {quote(question)}, answer {quote(answer)}, expected both"
        if len(answer) > self.max_characters:
            return f"long_answer: {len(answer)} characters, expected at most {self.max_characters}"
        for text in (question, answer):
            if found := SOURCE_TEXT.search(text):
                return f"source_text: {quote(found[0])} in {quote(text)}, expected talk of the image only"
        if found := REFUSAL.search(answer):
            return f"refusal: {quote(found[0])} in {quote(answer)}, expected an answer"
        return None

    def check_options(self, turn: Turn) -> str | None:
        """The reason, if any, that lies in the options of one turn, or in a letter that is not theirs."""
        if not turn.options:
            return "options: none, expected 2 or more" if turn.type == "multiple_choice" else None
        distinct = {normalise(option) for option in turn.options}
        if "" in distinct or len(distinct) < max(2, len(turn.options)):
            return f"options: {quote(str(turn.options))}, expected 2 or more, all different, none empty"
        letters = list(string.ascii_uppercase[: len(turn.options)])
        if turn.answer not in letters:
            rule = "letter" if len(turn.answer) == 1 and turn.answer.isalpha() else "not_an_option"
            return f"{rule}: {quote(turn.answer)}, expected a letter from A to {letters[-1]}"
        return None


def quote(text: str) -> str:
    """The beginning of a text, quoted, in one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def structural_similarity_after_resize(image: Image.Image, crop_size: int = 384) -> float:
    """
    SSIM_a, equations 11 to 14 of the paper's appendix: how much of the image and of its four quadrants is left when
    each is resized to `crop_size` squared, which is what the tower sees, and back. At most 2; resizing is bicubic, as
    the image processor's.

    Raises:
        ValueError: if the image has fewer than 22 pixels on a side (a quadrant must hold the window of SSIM).
    """
    width, height = image.size
    if min(width, height) < 2 * SSIM_WINDOW_SIZE:
        raise ValueError(
            f"The image has {width} x {height} pixels, expected {2 * SSIM_WINDOW_SIZE} or more on each side."
        )
    grey = image.convert("RGB").convert("L")
    columns, rows = ((0, width // 2), (width // 2, width)), ((0, height // 2), (height // 2, height))
    quadrants = [grey.crop((left, top, right, bottom)) for top, bottom in rows for left, right in columns]
    whole, *parts = (structural_similarity(part, _resize_and_back(part, crop_size)) for part in (grey, *quadrants))
    return whole + QUADRANT_COEF * sum(parts)


def _resize_and_back(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def structural_similarity(first: Image.Image, second: Image.Image) -> float:
    """
    Mean SSIM of two grey images of one size (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, where it fits
    inside of the image). 1 for equal ones.

    Raises:
        ValueError: if the sizes differ or are smaller than the window.
    """
    if first.size != second.size or min(first.size) < SSIM_WINDOW_SIZE:
        raise ValueError(
            f"The sizes are {first.size} and {second.size}, expected equal and {SSIM_WINDOW_SIZE} or more."
        )
    first, second = (np.asarray(image.convert("L"), dtype=np.float64) / 255 for image in (first, second))
    first_mean, second_mean, product = _blur(first), _blur(second), _blur(first * second)
    squares = _blur(first**2 + second**2)
    means, squared_means = first_mean * second_mean, first_mean**2 + second_mean**2
    luminance = (2 * means + SSIM_K1**2) / (squared_means + SSIM_K1**2)
    structure = (2 * (product - means) + SSIM_K2**2) / (squares - squared_means + SSIM_K2**2)
    return float((luminance * structure).mean())


def _blur(pixels: np.ndarray) -> np.ndarray:
    """Weighted means under the Gaussian window: (height, width) -> (height - 10, width - 10)."""
    offsets = np.arange(SSIM_WINDOW_SIZE) - SSIM_WINDOW_SIZE // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    height, width = (size - SSIM_WINDOW_SIZE + 1 for size in pixels.shape)
    rows = sum(weight * pixels[start : start + height] for start, weight in enumerate(weights))
    return sum(weight * rows[:, start : start + width] for start, weight in enumerate(weights))


class ClipScorer:
    """
    CLIPScore of an image and a text: the cosine of their embeddings, at least 0. Without the factor of 2.5 of Hessel
    et al. 2021, as the paper's own values (0.31 to 0.38, table 13) are. A long text is cut to what the model reads.

    Args:
        model (`str`): name or folder of a CLIP or SigLIP model.
        device (`str`): where it runs.
    """

    def __init__(self, model: str = "openai/clip-vit-base-patch32", device: str = "cpu"):
        from transformers import AutoModel, AutoProcessor

        self.name, self.device = model, device
        self.processor = AutoProcessor.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).to(device).eval()

    def __call__(self, image: Image.Image, text: str) -> float:
        import torch

        inputs = self.processor(
            text=[text],
            images=[image.convert("RGB")],
            return_tensors="pt",
            truncation=True,
            padding="max_length",  # SigLIP was trained with it, and CLIP does not mind
            max_length=self.model.config.text_config.max_position_embeddings,
        )
        with torch.no_grad():
            outputs = self.model(**inputs.to(self.device))
        cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        return max(cosine.item(), 0.0)
