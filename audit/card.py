"""The audit's part of the card of a data set."""

import json
from collections.abc import Iterable
from pathlib import Path

from fusion_vlm.audit.audit import audit
from fusion_vlm.audit.report import plot


def audit_for_card(folder: Path, rows: Iterable[dict]) -> list[str]:
    """
    Audit rows, and write `audit.json` and `audit.png` in a folder.

    Args:
        folder (`Path`)
        rows (`Iterable[dict]`): the texts of the data, see `audit`.

    Returns:
        `list[str]`: lines for the card, in Markdown.
    """
    report = audit(rows)
    (folder / "audit.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    plot(report, folder / "audit.png")
    return [
        "## Audit",
        "",
        "Of the text alone: `fusion-vlm audit` says what the columns and thresholds mean.",
        "",
        report.table(),
        "",
        "```",
        report.verdicts(),
        "```",
        "",
        "![Distributions of the answers](audit.png)",
        "",
    ]
