"""The estimate before a run, and the summary after it: counts by stage and reason, tokens, images, cost."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.kinds.table import find_kind
from fusion_vlm.synthesis.kinds.weights import count_samples
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.pipeline import Options


# Tokens that a model writes, about; those of questions and answers are in the record of each kind.
DESCRIPTION_TOKENS, CAPTION_TOKENS, VERDICT_TOKENS = 180, 60, 60
CHARACTERS_PER_TOKEN = 4


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
        add(options.model, number, lengths[f"describe_{kind}"] + CAPTION_TOKENS, DESCRIPTION_TOKENS)
        add(options.model, number, lengths[f"ask_{kind}"] + DESCRIPTION_TOKENS, num_answer_tokens)
        if options.judge_model:
            given = lengths["judge"] + DESCRIPTION_TOKENS + num_answer_tokens
            add(options.judge_model, number, given, VERDICT_TOKENS)
    return {model: dict(counts) for model, counts in tokens.items()}


def describe_estimate(options: Options, prices: Prices) -> str:
    """Describe the estimate in a few lines, to read before a run."""
    tokens = {} if options.is_exact else estimate_tokens(options)
    lines = [f"{options.num:,} samples of {len(options.kinds)} kinds, {options.num:,} images ({options.images})"]
    lines += [f"about {describe_tokens(model, counts)}" for model, counts in tokens.items()]
    cost = prices.cost(tokens.values(), options.num)
    return "\n".join(lines + ([] if cost is None else [f"about {cost:,.2f} in all, at the prices given"]))


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
    width = max(map(len, summary["stages"]))
    lines = [f"{'stage':{width}}  {'begun':>9}  {'kept':>9}  rejected"]
    for stage, row in summary["stages"].items():
        reasons = ", ".join(f"{rule} {number:,}" for rule, number in row["reasons"].items())
        lines.append(f"{stage:{width}}  {row['begun']:>9,}  {row['kept']:>9,}  {reasons or '-'}")
    lines += ["", "kept: " + ", ".join(f"{kind} {number:,}" for kind, number in summary["kinds"].items())]
    if summary["not_available"]:
        lines.append("scores not available: " + ", ".join(summary["not_available"]))
    lines.append(f"images: {summary['images']:,}")
    lines += [describe_tokens(model, counts) for model, counts in tokens.items()]
    lines += [f"not valid: {describe_tokens(model, counts)}" for model, counts in invalid_tokens.items()]
    cost = prices.cost([*tokens.values(), *invalid_tokens.values()], summary["images"])
    return "\n".join(lines + ([] if cost is None else [f"cost: {cost:,.2f}, at the prices given"]))
