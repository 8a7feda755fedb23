"""Read tables from the places of their texts."""

from dataclasses import dataclass

from judge_text import Line


@dataclass
class Grid:
    header: list[str]
    rows: list[list[str]]


def group_rows(lines: list[Line]) -> list[list[Line]]:
    """Group lines of text whose middles are at one height, from top to bottom."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.y):
        if rows and abs(rows[-1][-1].y - line.y) < 0.5 * line.height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.x) for row in rows]


def read_table(lines: list[Line]) -> Grid | None:
    """Read the rows of one length that end the image, and the header above them; None if cells are missing."""
    rows = group_rows(lines)
    if len(rows) < 4:
        return None
    body = [rows[-1]]
    for row in reversed(rows[:-1]):
        if len(row) != len(body[0]) or any(
            min(a.right, b.right) < max(a.left, b.left) for a, b in zip(row, body[0], strict=True)
        ):
            break
        body.insert(0, row)
    # The first of these rows is the header, unless that has two lines.
    if len(body) < 4 or len(body[0]) < 2:
        return None
    gaps = [after[0].y - before[0].y for before, after in zip(body, body[1:], strict=False)]
    if max(gaps) > 1.5 * min(gaps):
        return None
    # A row right above them has been read in part, or is the first line of a header of two.
    above = rows[: len(rows) - len(body)]
    if above and body[0][0].y - above[-1][-1].y < 1.25 * min(gaps):
        return None
    texts = [[line.text.strip() for line in row] for row in body]
    return Grid(texts[0], texts[1:])
