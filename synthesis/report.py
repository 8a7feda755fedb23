"""The estimate before a run, and the summary after it: counts by stage and reason, tokens, images, cost."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fusion_vlm.rows.markdown import format_table
from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.kinds.table import find_kind
from fusion_vlm.synthesis.kinds.weights import count_samples
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.options import Options


# Tokens that a model writes, about; those of questions and answers are in the record of each kind.
DESCRIPTION_TOKENS, CAPTION_TOKENS, VERDICT_TOKENS = 180, 60, 60
IMAGE_TOKENS = 1000  # of an image for a judge; models differ from 200 to 2,000
CHARACTERS_PER_TOKEN = 4
# Of an H100 for a step of FLUX.1 at 1024 pixels, from published figures; and bytes of a pixel of a photograph as JPEG.
FLUX_STEP_SECONDS, PIXEL_BYTES = 0.13, 0.2


@dataclass(frozen=True)
class Prices:
    """Prices in any one currency: of a million tokens in and out, and of an image. `None` if unknown."""

    million_in: float | None = None
    million_out: float | None = None
    image: float | None = None

    def cost(self, tokens: Iterable[dict[str, int]], num_images: int) -> float | None:
        """Compute the cost of the tokens of all models and of the images; None if no price is known."""
        tokens = list(tokens)
        amounts = (
            (self.million_in, sum(counts["prompt_tokens"] for counts in tokens) / 1e6),
            (self.million_out, sum(counts["completion_tokens"] for counts in tokens) / 1e6),
            (self.image, num_images),
        )
        known = [price * amount for price, amount in amounts if price is not None]
        return sum(known) if known else None


def estimate_tokens(options: Options) -> dict[str, dict[str, int]]:
    """Estimate calls and tokens by model, as if no sample was rejected and no call failed."""
    lengths = {name: len(prompt) // CHARACTERS_PER_TOKEN for name, prompt in load_prompts().items()}
    tokens = {}

    def add(model: str, number: int, prompt_tokens: int, completion_tokens: int):
        counts = tokens.setdefault(model, Counter())
        counts["calls"] += number
        counts["prompt_tokens"] += number * prompt_tokens
        counts["completion_tokens"] += number * completion_tokens

    for kind, number in count_samples(options.num, options.kind_weights).items():
        num_answer_tokens = find_kind(kind).num_answer_tokens
        if options.rewrite:
            add(options.model, number, lengths["rewrite"] + num_answer_tokens, num_answer_tokens)
            continue
        if "descriptions" in options.stages:
            add(options.model, number, lengths[f"describe_{kind}"] + CAPTION_TOKENS, DESCRIPTION_TOKENS)
        if "questions" in options.stages:
            add(options.model, number, lengths[f"ask_{kind}"] + DESCRIPTION_TOKENS, num_answer_tokens)
        num_judged = number + round(number * options.plant_share)  # copies with planted errors, too
        for model, prompt, given in (
            (options.judge_model, "judge", DESCRIPTION_TOKENS),
            (options.image_judge_model, "judge_image", IMAGE_TOKENS),
        ):
            if model:
                add(model, num_judged, lengths[prompt] + given + num_answer_tokens, VERDICT_TOKENS)
    return {model: dict(counts) for model, counts in tokens.items()}


def describe_estimate(options: Options, prices: Prices) -> str:
    """Describe the estimate in a few lines, to read before a run."""
    tokens = {} if options.is_exact else estimate_tokens(options)
    num_images = options.num if "images" in options.stages else 0
    images = f"{num_images:,} images ({options.images})" if num_images else "no new images"
    lines = [f"{options.num:,} samples of {len(options.kinds)} kinds, {images}"]
    lines += [f"about {describe_tokens(model, counts)}" for model, counts in tokens.items()]
    if options.images != "pillow":
        lines += _describe_images(options)
    cost = prices.cost(tokens.values(), num_images)
    return "\n".join(lines + ([] if cost is None else [f"about {cost:,.2f} in all, at the prices given"]))


def _describe_images(options: Options) -> list[str]:
    """Describe what the images of a model take: a contrast has two."""
    numbers = [1 + find_kind(kind).has_two_images for kind in options.kinds]
    num_pixels = options.num * sum(numbers) / len(numbers) * options.image_size**2
    lines = [f"about {num_pixels * PIXEL_BYTES / 1e9:,.1f} GB of images as JPEG"]
    if options.images == "flux":
        hours = num_pixels / 1024**2 * options.flux_steps * FLUX_STEP_SECONDS / 3600
        lines.append(f"about {hours:,.1f} hours of an H100 for FLUX")
    return lines


def describe_tokens(model: str, counts: dict[str, int]) -> str:
    """Describe the calls and tokens of a model in a line."""
    return (
        f"{counts['calls']:,} calls of {model}: {counts['prompt_tokens']:,} tokens in,"
        f" {counts['completion_tokens']:,} out"
    )


def summarize(counts: Counts, stages: list[str]) -> dict:
    """
    Follow the samples of a run through the stages.

    Args:
        counts (`Counts`): of the whole run.
        stages (`list[str]`): names of the stages in order.

    Returns:
        `dict`: `begun`, `kept`, `images`, `kinds` (kept samples of each), `stages` (for each `begun`, `kept` and the
        `reasons` of rejects), `not_available` (scores that nothing measured).
    """
    reasons = {stage: Counter() for stage in stages}
    for reason, number in sorted(counts.reasons.items()):
        stage, _, rule = reason.partition("/")
        reasons.setdefault(stage, Counter())[rule] += number
    left, rows = counts.num_samples + counts.num_rejected, {}
    for stage, rules in reasons.items():
        rows[stage] = {"begun": left, "kept": left - rules.total(), "reasons": dict(rules.most_common())}
        left -= rules.total()
    return {
        "begun": counts.num_samples + counts.num_rejected,
        "kept": counts.num_samples,
        "images": counts.num_images,
        "kinds": dict(sorted(counts.kinds.items())),
        "stages": rows,
        "not_available": dict(sorted(counts.missing_scores.items())),
    }


def describe_summary(summary: dict, tokens: dict, invalid_tokens: dict, prices: Prices) -> str:
    """
    Write the table at the end of a run.

    Args:
        summary (`dict`): from `summarize`.
        tokens (`dict[str, dict[str, int]]`), invalid_tokens (`dict[str, dict[str, int]]`): by model, tokens of valid
            answers, and of the others, which were paid for, too.
        prices (`Prices`)
    """
    rows = [
        (
            stage,
            f"{row['begun']:,}",
            f"{row['kept']:,}",
            ", ".join(f"{rule} {n:,}" for rule, n in row["reasons"].items()),
        )
        for stage, row in summary["stages"].items()
    ]
    lines = [format_table(("stage", "begun", "kept", "rejected"), rows)]
    lines += ["", "kept: " + ", ".join(f"{kind} {number:,}" for kind, number in summary["kinds"].items())]
    if summary["not_available"]:
        lines.append("scores not available: " + ", ".join(summary["not_available"]))
    lines.append(f"images: {summary['images']:,}")
    lines += [describe_tokens(model, counts) for model, counts in tokens.items()]
    lines += [f"not valid: {describe_tokens(model, counts)}" for model, counts in invalid_tokens.items()]
    cost = prices.cost([*tokens.values(), *invalid_tokens.values()], summary["images"])
    return "\n".join(lines + ([] if cost is None else [f"cost: {cost:,.2f}, at the prices given"]))
