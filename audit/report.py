"""The result of an audit, as data, text and plot."""

import dataclasses
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from fusion_vlm.audit.language_only import Association, LanguageOnly
from fusion_vlm.rows.markdown import format_table


OK, FAILED, NOT_JUDGED = "ok", "FAILED", "not judged"
MAX_LINES = 6  # printed for a threshold


@dataclass
class Group:
    """
    Counts of the questions of a type, of a type in one turn, or of all questions.

    Args:
        name (`str`)
        num (`int`): number of questions.
        num_answers (`int`): number of different answers.
        answers (`list[tuple[str, int]]`): the ten most frequent answers, each with its number.
        entropy (`float`): entropy of the answers in bits.
        yes_no (`dict[str, int]`): numbers of `yes` and `no`, including options with these texts.
        letters (`dict[str, int]`): how often each letter is the answer.
        expected_letter (`float`): share of each letter if places were drawn: the mean of 1 / number of options.
        numbers (`dict[str, int]`): for counts, how often each number is the answer.
        language_only (`LanguageOnly`, *optional*): `None` if there are too few questions.
        words (`list[Association]`): the ten words that predict an answer best.
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
    """An attribute and an object: the number of rows with both, and their normalized mutual information."""

    attribute: str
    object: str
    num: int
    npmi: float
    chance: float


@dataclass
class Finding:
    """
    The verdict of a threshold on one group.

    Args:
        threshold (`str`), group (`str`): their names.
        limits (`tuple[float | None, float]`): the range that `value` has to be in; `None` for no lower limit.
        value (`float`), num (`int`): the measured value, and the number of answers.
        chance (`float`): probability of such a value without a bias, or an upper bound of it.
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
        # With rounding errors, a share of 3 in 10 has to be inside of a limit of 0.3.
        return (low is None or self.value >= low - 1e-9) and self.value <= high + 1e-9

    def __str__(self) -> str:
        low, high = self.limits
        limit = f"at most {high:.2f}" if low is None else f"{low:.2f} to {high:.2f}"
        notes = {FAILED: "", OK: "", NOT_JUDGED: "; too few" if self.is_inside else "; may be chance"}
        return f"{self.verdict}: {self.group}, {self.value:.3f} (of {self.num}), expected {limit}{notes[self.verdict]}"


@dataclass
class AuditReport:
    """
    The result of an audit.

    Args:
        num_rows (`int`), num_skipped (`int`), num_questions (`int`): rows, rows without question and answer, turns.
        types (`list[Group]`), turns (`list[Group]`): by type of question; by type and turn, if rows have several.
        overall (`Group`): all questions; without a language-only model.
        pairs (`list[Pair]`): the ten objects and attributes that most exceed chance in coming together.
        num_pairs (`int`): number of all attributes of objects that were found.
        findings (`list[Finding]`), limits (`dict`): the thresholds that were judged, from `thresholds.judge`.
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
        """Return `FAILED` if the threshold fails in any group, else `ok` if any group keeps it, else `not judged`."""
        verdicts = {finding.verdict for finding in self.findings if finding.threshold == threshold}
        return next((verdict for verdict in (FAILED, OK) if verdict in verdicts), NOT_JUDGED)

    def to_dict(self) -> dict:
        """Return plain data for JSON; numbers are rounded to six places."""
        data = dataclasses.asdict(self)
        data["types"] = [group.to_dict() for group in self.types]
        data["turns"] = [group.to_dict() for group in self.turns]
        data["overall"] = self.overall.to_dict()
        data["verdicts"] = {name: self.verdict(name) for name in self.limits}
        return _rounded(data)

    def table(self) -> str:
        """Write the types of questions as a Markdown table."""
        head = (
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
        )
        return format_table(head, [_table_row(group) for group in [*self.types, self.overall]])

    def verdicts(self) -> str:
        """Write a line for each threshold, and one for each group outside of its limits."""
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
        """Write the whole report as text."""
        lines = [f"{self.num_rows} rows, {self.num_questions} questions; each turn is audited alone."]
        if self.num_skipped:
            lines.append(f"{self.num_skipped} rows have no question with an answer and were left out.")
        lines += ["", self.table(), "", "Words that go with an answer:"]
        words = [f"    {group.name}: {word}" for group in self.types for word in group.words[:3]]
        lines += words or ["    none"]
        lines.append("Attributes that go with an object (normalized mutual information):")
        pairs = [f"    {pair.attribute} {pair.object}: {pair.npmi:.2f}, {pair.num} rows" for pair in self.pairs]
        return "\n".join([*lines, *(pairs or ["    none"]), "", self.verdicts()])


def import_extra(name: str) -> ModuleType:
    """Import a module of the extra `synthesis`, or raise an ImportError that names the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"This needs {name}, which comes with `pip install 'fusion-vlm[synthesis]'`.") from error


def plot(report: AuditReport, path: str | Path):
    """Draw the distributions as a PNG: yes and no, letters, the language-only model, and answers of each type."""
    # Not `pyplot`, which would change the backend of the calling program.
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
    # Matplotlib reads text between dollar signs as a formula.
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
