"""
What the judges of a run are worth: how far two judges agree, and how often they accept errors that were planted.

Verdicts stand in `Sample.source`, so that a later stage can read them: `verdicts` has one for each turn and judge,
`planted` has those on a turn whose answer was made wrong. `Counts.verdicts` counts them, part by part.
"""

from collections import Counter
from collections.abc import Iterator

from fusion_vlm.synthesis.sample import Sample


TEXT_JUDGE, IMAGE_JUDGE = "judge", "image_judge"
JUDGE_NAMES = {TEXT_JUDGE: "the judge of the text", IMAGE_JUDGE: "the judge that sees the image"}


def list_verdicts(sample: Sample) -> Iterator[str]:
    """Yield keys to count: `both/11` for a turn that both judges accept, `planted/judge/1` for an accepted error."""
    verdicts = sample.source.get("verdicts", {})
    if TEXT_JUDGE in verdicts and IMAGE_JUDGE in verdicts:
        for pair in zip(verdicts[TEXT_JUDGE], verdicts[IMAGE_JUDGE], strict=True):
            yield "both/" + "".join(str(int(verdict)) for verdict in pair)
    planted = sample.source.get("planted", {})
    for judge in JUDGE_NAMES:
        if judge in planted:
            yield f"planted/{judge}/{int(planted[judge])}"


def describe_verdicts(verdicts: Counter) -> list[str]:
    """Write a line for each statistic that can be computed from the counts of `list_verdicts`."""
    lines = []
    pairs = [(int(key[-2]), int(key[-1]), number) for key, number in sorted(verdicts.items()) if key[:5] == "both/"]
    if pairs:
        total, equal = sum(pair[2] for pair in pairs), sum(num for one, two, num in pairs if one == two)
        lines.append(
            f"The judges of text and of image give the same verdict on {equal / total:.3f} of {total} answers,"
            f" {_describe_kappa(pairs)}"
        )
    for judge, name in JUDGE_NAMES.items():
        num_accepted, num_refused = (verdicts[f"planted/{judge}/{verdict}"] for verdict in (1, 0))
        if num := num_accepted + num_refused:
            low, high = find_interval(num_accepted, num)
            lines.append(
                f"Planted errors that {name} accepts: {num_accepted} of {num}, {num_accepted / num:.3f} (95 % interval"
                f" {low:.3f} to {high:.3f})"
            )
    return lines


def _describe_kappa(pairs: list[tuple[int, int, int]]) -> str:
    if len({one for one, _, _ in pairs}) == 1 and len({two for _, two, _ in pairs}) == 1:
        return "and neither ever gives the other verdict, so Cohen's kappa is not defined"
    return f"Cohen's kappa {compute_kappa(pairs):.3f}"


def compute_kappa(pairs: list[tuple[int, int, int]]) -> float:
    """
    Compute Cohen's kappa.

    Args:
        pairs (`list[tuple[int, int, int]]`): verdict of one judge, of the other, and how often both came together.
    """
    # Late: it takes a second to import, and only runs with two judges need it.
    from sklearn.metrics import cohen_kappa_score

    first, second, numbers = zip(*pairs, strict=True)
    return float(cohen_kappa_score(first, second, sample_weight=numbers))


def find_interval(num_hits: int, num: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest  # late, as above

    interval = binomtest(num_hits, num).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
