"""The thresholds of an audit: the values that each judges, their limits, and the verdicts."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fusion_vlm.audit.language_only import tail
from fusion_vlm.audit.report import FAILED, NOT_JUDGED, OK, AuditReport, Finding, Group


MIN_ROWS = 30  # answers that are needed to say that a limit is kept
CERTAINTY = 0.01  # risk that chance alone fails a threshold somewhere
WORD_MARGIN = 0.2

Limits = dict[str, tuple[float | None, float]]  # lowest (or None) and highest value by threshold


class Measure(NamedTuple):
    """
    A value that a threshold judges.

    Args:
        group (`str`), value (`float`), num (`int`), chance (`float`): as in `Finding`.
        is_part (`bool`): whether the group is only a part of a type of question, such as a turn or a word. A part can
            fail a threshold, but does not show that the threshold is kept.
        margin (`float`): how much wider the limits are for this value.
    """

    group: str
    value: float
    num: int
    chance: float
    is_part: bool = False
    margin: float = 0.0


def _measure_yes_no(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report, lambda group: group.yes_no):
        num = sum(group.yes_no.values())
        if num:
            chance = min(1.0, 2 * float(tail(max(group.yes_no.values()), num, 0.5)))
            yield Measure(group.name, group.yes_share, num, chance, is_part)
    for group in report.types:
        for word in group.words:
            if word.answer in ("yes", "no"):
                share = word.share if word.answer == "yes" else 1 - word.share
                yield Measure(f'{group.name} with "{word.word}"', share, word.num, word.chance, True, WORD_MARGIN)


def _measure_max_letter(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report, lambda group: group.letters):
        if group.letters:
            yield _commonest(group, group.letters, group.expected_letter, is_part)


def _measure_max_count(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report):
        if group.numbers:
            yield _commonest(group, group.numbers, 1 / max(2, len(group.numbers)), is_part)


def _measure_majority(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report):
        (answer, count), num_answers = group.answers[0], max(2, group.num_answers)
        chance = min(1.0, num_answers * float(tail(count, group.num, 1 / num_answers)))
        yield Measure(f'{group.name} "{answer[:30]}"', group.majority, group.num, chance, is_part)


def _commonest(group: Group, counts: dict[str, int], expected: float, is_part: bool) -> Measure:
    name, count = max(counts.items(), key=lambda item: item[1])
    num = sum(counts.values())
    chance = min(1.0, max(2, len(counts)) * float(tail(count, num, expected)))
    return Measure(f"{group.name} {name}", count / num, num, chance, is_part)


def _groups(report: AuditReport, counts: Callable[[Group], dict] | None = None) -> Iterator[tuple[Group, bool]]:
    """Return types and their parts; also all questions, if the counts of no type are those of all questions."""
    yield from ((group, False) for group in report.types)
    yield from ((group, True) for group in report.turns)
    if counts and all(counts(group) != counts(report.overall) for group in report.types):
        yield report.overall, False


def _measure_language_only(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report):
        model = group.language_only
        if model:
            yield Measure(group.name, model.gain, model.num, model.chance, is_part)


def _measure_words(report: AuditReport) -> Iterator[Measure]:
    for group, is_part in _groups(report):
        if group.language_only and not group.words:
            yield Measure(group.name, 0.0, group.num, 1.0, is_part)
        for word in group.words:
            name = f'{group.name} "{word.word}" -> {word.answer}'
            yield Measure(name, word.excess, word.num, word.chance, is_part)


def _measure_pairs(report: AuditReport) -> Iterator[Measure]:
    for pair in report.pairs:
        yield Measure(f"{pair.attribute} {pair.object}", pair.npmi, pair.num, pair.chance)
    if report.num_pairs and not report.pairs:
        yield Measure("all attributes", 0.0, report.num_pairs, 1.0)


class Threshold(NamedTuple):
    """A threshold: its default limits, lowest (or `None`) and highest, and the values that it judges."""

    limits: tuple[float | None, float]
    measure: Callable[[AuditReport], Iterator[Measure]]


# Data that was balanced on purpose can keep the defaults. Questions about photographs of the world cannot.
THRESHOLDS = {
    "yes_no": Threshold((0.45, 0.55), _measure_yes_no),
    "max_letter": Threshold((None, 0.30), _measure_max_letter),
    "max_count": Threshold((None, 0.35), _measure_max_count),
    "majority": Threshold((None, 0.60), _measure_majority),
    "language_only_gain": Threshold((None, 0.05), _measure_language_only),
    "word_gain": Threshold((None, 0.20), _measure_words),
    "co_occurrence": Threshold((None, 0.25), _measure_pairs),
}


def parse_limits(texts: Iterable[str]) -> Limits:
    """
    Parse limits by threshold, from `default`, `NAME` (with its default) or `NAME=LIMIT`; later texts win.

    Raises:
        ValueError: for an unknown name or a limit of the wrong form.
    """
    limits = {}
    for text in texts:
        name, equals, value = text.strip().partition("=")
        if text.strip() == "default":
            limits |= {name: threshold.limits for name, threshold in THRESHOLDS.items()}
        elif name not in THRESHOLDS:
            raise ValueError(f"There is no threshold {name!r}. Expected default or one of: {', '.join(THRESHOLDS)}.")
        else:
            limits[name] = _parse_limit(name, value) if equals else THRESHOLDS[name].limits
    return limits


def _parse_limit(name: str, value: str) -> tuple[float | None, float]:
    is_range = THRESHOLDS[name].limits[0] is not None
    try:
        numbers = [float(number) for number in value.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != 1 + is_range or not all(0 <= number <= 1 for number in numbers) or numbers != sorted(numbers):
        form = "LOW:HIGH, as 0.45:0.55" if is_range else "a number, as 0.3"
        raise ValueError(f"The limit of {name} is {value!r}, expected {form}, from 0 to 1.")
    return (numbers[0] if is_range else None, numbers[-1])


def judge(report: AuditReport, limits: Limits):
    """Judge the groups of a report: set its `limits` and `findings`."""
    report.limits = limits
    report.findings = [finding for name, limit in limits.items() for finding in _judge(report, name, limit)]


def _judge(report: AuditReport, name: str, limits: tuple[float | None, float]) -> Iterator[Finding]:
    measures = list(THRESHOLDS[name].measure(report))
    for measure in measures:
        low, high = limits[0], limits[1] + measure.margin
        low = None if low is None else low - measure.margin
        finding = Finding(name, measure.group, (low, high), measure.value, measure.num, measure.chance, NOT_JUDGED)
        if not finding.is_inside and measure.chance * len(measures) < CERTAINTY:
            finding.verdict = FAILED
        elif finding.is_inside and measure.num >= MIN_ROWS:
            finding.verdict = OK
        if finding.verdict == FAILED or not measure.is_part:
            yield finding
