"""What an audit found, the thresholds that judge it, and how it is shown."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fusion_vlm.audit.language_only import Association, LanguageOnly, tail


OK, FAILED, NOT_JUDGED = "ok", "FAILED", "not judged"
MIN_ROWS = 30  # answers, to say that a limit is kept
CERTAINTY = 0.01  # the risk that chance alone fails a threshold somewhere
WORD_MARGIN = 0.2
MAX_LINES = 6  # of a threshold, in print


@dataclass
class Group:
    """
    Questions of a type, or of a type in one turn, or all of them.

    Args:
        name (`str`)
        num (`int`): of questions.
        num_answers (`int`): of different answers.
        answers (`list`): the commonest ten, each with its number.
        entropy (`float`): of the answers, in bits.
        yes_no (`dict[str, int]`): numbers of `yes` and `no`, also where they are the texts of options.
        letters (`dict[str, int]`): how often each option is the right one.
        expected_letter (`float`): share of each letter if the place were drawn; the mean of 1 / number of options.
        numbers (`dict[str, int]`): of a count, how often each number is the answer.
        language_only (`LanguageOnly`, *optional*): `None` if there are too few questions.
        words (`list[Association]`): words that go with an answer, the strongest ten.
    """

    name: str
    num: int
    num_answers: int
    answers: list[tuple[str, int]]
    entropy: float
    yes_no: dict[str, int]
    letters: dict[str, int]
    expected_letter: float
    numbers: dict[str, int] = field(default_factory=dict)
    language_only: LanguageOnly | None = None
    words: list[Association] = field(default_factory=list)

    @property
    def majority(self) -> float:
        return self.answers[0][1] / self.num

    @property
    def yes_share(self) -> float | None:
        total = sum(self.yes_no.values())
        return self.yes_no["yes"] / total if total else None

    def to_dict(self) -> dict:
        data = dataclasses.asdict(self) | {"majority": self.majority, "yes_share": self.yes_share}
        if self.language_only:
            data["language_only"]["gain"] = self.language_only.gain
        return data


@dataclass
class Pair:
    """An attribute and an object: in how many rows they come together, and their normalised mutual information."""

    attribute: str
    object: str
    num: int
    npmi: float
    chance: float


@dataclass
class Finding:
    """
    What a threshold says of one group.

    Args:
        threshold, group (`str`)
        limits (`tuple[float | None, float]`): that `value` is to be within; `None` for no lower one.
        value (`float`), num (`int`): what was measured, and on how many answers.
        chance (`float`): how probable that is, or an upper bound of it, without a bias.
        verdict (`str`): `ok`, `FAILED` or `not judged`.
    """

    threshold: str
    group: str
    limits: tuple[float | None, float]
    value: float
    num: int
    chance: float
    verdict: str

    @property
    def is_inside(self) -> bool:
        low, high = self.limits
        # A share of 3 in 10 is to keep a limit of 0.3.
        return (low is None or self.value >= low - 1e-9) and self.value <= high + 1e-9

    def __str__(self) -> str:
        low, high = self.limits
        limit = f"at most {high:.2f}" if low is None else f"{low:.2f} to {high:.2f}"
        notes = {FAILED: "", OK: "", NOT_JUDGED: "; too few" if self.is_inside else "; may be chance"}
        return f"{self.verdict}: {self.group}, {self.value:.3f} (of {self.num}), expected {limit}{notes[self.verdict]}"


@dataclass
class AuditReport:
    """
    Args:
        num_rows, num_skipped, num_questions (`int`): rows read, rows without a question and an answer, turns.
        types, turns (`list[Group]`): by type of question; by type and turn, if rows have several.
        overall (`Group`): all questions; without a language-only model.
        pairs (`list[Pair]`): objects and attributes that come together more than by chance, the strongest ten.
        num_pairs (`int`): attributes of objects that were found at all.
        findings (`list[Finding]`), limits (`dict`): of the thresholds that were judged, from `judge`.
    """

    num_rows: int
    num_skipped: int
    num_questions: int
    types: list[Group]
    turns: list[Group]
    overall: Group
    pairs: list[Pair]
    num_pairs: int
    findings: list[Finding] = field(default_factory=list)
    limits: dict[str, tuple[float | None, float]] = field(default_factory=dict)

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == FAILED]

    def verdict(self, threshold: str) -> str:
        """`FAILED` if it fails in any group, else `ok` if it is kept in any."""
        verdicts = {finding.verdict for finding in self.findings if finding.threshold == threshold}
        return next((verdict for verdict in (FAILED, OK) if verdict in verdicts), NOT_JUDGED)

    def judge(self, limits: dict[str, tuple[float | None, float]]):
        """Sets `limits` and `findings`."""
        self.limits = limits
        self.findings = [finding for name, limit in limits.items() for finding in _judge(self, name, limit)]

    def to_dict(self) -> dict:
        """Plain data for JSON; numbers are rounded to six places."""
        data = dataclasses.asdict(self)
        data["types"] = [group.to_dict() for group in self.types]
        data["turns"] = [group.to_dict() for group in self.turns]
        data["overall"] = self.overall.to_dict()
        data["verdicts"] = {name: self.verdict(name) for name in self.limits}
        return _rounded(data)

    def table(self) -> str:
        """The types of questions as a Markdown table."""
        head = [
            "type",
            "questions",
            "answers",
            "commonest",
            "share",
            "bits",
            "yes",
            "letters",
            "language only",
            "gain",
        ]
        rows = [_table_row(group) for group in [*self.types, self.overall]]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        lines = [head, ["-" * width for width in widths], *rows]
        return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)

    def verdicts(self) -> str:
        """A line for each threshold, and one for each group that fails or is outside of it."""
        lines = []
        for name in self.limits:
            findings = [finding for finding in self.findings if finding.threshold == name]
            judged = sum(finding.verdict != NOT_JUDGED for finding in findings)
            lines.append(f"{name}: {self.verdict(name)} (judged in {judged} of {len(findings)} places)")
            outside = [finding for finding in findings if not finding.is_inside]
            outside.sort(key=lambda finding: finding.verdict != FAILED)
            lines += [f"    {finding}" for finding in outside[:MAX_LINES]]
            lines += [f"    and {len(outside) - MAX_LINES} more"] if len(outside) > MAX_LINES else []
        return "\n".join(lines)

    def summary(self) -> str:
        """All of it as text."""
        lines = [f"{self.num_rows} rows, {self.num_questions} questions; each turn is audited alone."]
        if self.num_skipped:
            lines.append(f"{self.num_skipped} rows have no question with an answer and were left out.")
        lines += ["", self.table(), "", "Words that go with an answer:"]
        words = [f"    {group.name}: {word}" for group in self.types for word in group.words[:3]]
        lines += words or ["    none"]
        lines.append("Attributes that go with an object (normalised mutual information):")
        pairs = [f"    {pair.attribute} {pair.object}: {pair.npmi:.2f}, {pair.num} rows" for pair in self.pairs]
        return "\n".join([*lines, *(pairs or ["    none"]), "", self.verdicts()])


class Measure(NamedTuple):
    """A number that a threshold judges: `Finding` without verdict, and by how much its limits are wider. What is only
    a part of a type, a turn or a word, can fail a threshold, but does not show that it is kept."""

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
    """Types, and parts of them; all questions too if something is counted in them that no type has all of."""
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
    """The limits it has by default, lowest (or `None`) and highest, and what it judges."""

    limits: tuple[float | None, float]
    measure: Callable[[AuditReport], Iterator[Measure]]


# The defaults are what data can keep that was balanced on purpose; photographs of the world are not.
THRESHOLDS = {
    "yes_no": Threshold((0.45, 0.55), _measure_yes_no),
    "max_letter": Threshold((None, 0.30), _measure_max_letter),
    "max_count": Threshold((None, 0.35), _measure_max_count),
    "majority": Threshold((None, 0.60), _measure_majority),
    "language_only_gain": Threshold((None, 0.05), _measure_language_only),
    "word_gain": Threshold((None, 0.20), _measure_words),
    "co_occurrence": Threshold((None, 0.25), _measure_pairs),
}


def parse_limits(texts: Iterable[str]) -> dict[str, tuple[float | None, float]]:
    """
    Limits by threshold, from `default`, `NAME` (with its default) or `NAME=LIMIT`; later ones win.

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


def import_extra(name: str) -> ModuleType:
    """A module of the extra `synthesis`, or an ImportError that says so."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"This needs {name}, which comes with `pip install 'fusion-vlm[synthesis]'`.") from error


def plot(report: AuditReport, path: str | Path):
    """Draws the distributions as a PNG: yes and no, letters, the language-only model, and answers of each type."""
    # Not `pyplot`, which would change the backend of a program that draws.
    figure_class = import_extra("matplotlib.figure").Figure
    types = report.types[:12]
    num_rows = 1 + math.ceil(len(types) / 3)
    figure = figure_class(figsize=(13, 3 * num_rows), layout="constrained")
    figure.suptitle(f"{report.num_questions} questions in {report.num_rows} rows")
    axes = figure.subplots(num_rows, 3, squeeze=False).ravel()
    _draw_bars(axes[0], "share of yes", {group.name: group.yes_share for group in types}, (0.5,))
    letters = report.overall.letters
    shares = {letter: count / sum(letters.values()) for letter, count in letters.items()}
    _draw_bars(axes[1], "letters of right options", shares, (report.overall.expected_letter,))
    gains = {group.name: group.language_only.gain for group in types if group.language_only}
    _draw_bars(axes[2], "language only, less the commonest answer", gains, (0.0, 0.05))
    for axis, group in zip(axes[3:], types, strict=False):
        shares = {answer: count / group.num for answer, count in group.answers}
        _draw_bars(axis, f"{group.name}: {group.num} questions, {group.num_answers} answers", shares, ())
    for axis in axes[3 + len(types) :]:
        axis.set_axis_off()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=80, metadata={"Software": None})


def _draw_bars(axis, title: str, values: dict[str, float | None], lines: tuple[float, ...]):
    values = {name: value for name, value in values.items() if value is not None}
    # Matplotlib reads dollar signs as mathematics.
    names = [name[:24].replace("$", r"\$") for name in values]
    axis.set_title(title.replace("$", r"\$"), fontsize=9)
    axis.barh(range(len(values)), list(values.values()))
    axis.set_yticks(range(len(values)), names, fontsize=8)
    axis.tick_params("x", labelsize=8)
    axis.locator_params("x", nbins=5)
    axis.invert_yaxis()
    for line in lines:
        axis.axvline(line, color="black", linestyle=":")


def _table_row(group: Group) -> list[str]:
    total = sum(group.letters.values())
    model = group.language_only
    return [
        group.name,
        str(group.num),
        str(group.num_answers),
        group.answers[0][0][:20].replace("|", "/"),
        f"{group.majority:.3f}",
        f"{group.entropy:.2f}",
        "" if group.yes_share is None else f"{group.yes_share:.3f}",
        " ".join(f"{letter} {count / total:.2f}" for letter, count in group.letters.items()),
        f"{model.accuracy:.3f}" if model else "",
        f"{model.gain:+.3f}" if model else "",
    ]


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
