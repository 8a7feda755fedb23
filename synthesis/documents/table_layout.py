"""Lays out tables: what stands in their cells, and how wide columns have to be."""

from collections.abc import Callable

from fusion_vlm.synthesis.documents.sheet import MIN_CAPITALS, Sheet, bolder, find_face
from fusion_vlm.synthesis.documents.things import show_time


MARGIN = 0.03
PADDING = 0.012  # left and right of a cell's text
WIDTH = 1 - 2 * MARGIN

# What a column holds, and how it is written. Text columns are the only ones that have no order.
FORMATS: dict[str, Callable] = {
    "number": str,
    "money": lambda cents: f"${cents / 100:.2f}",
    "percent": lambda value: f"{value}%",
    "time": show_time,
    "year": str,
    "degrees": str,
    "text": str,
}


def show_cells(column: dict) -> list[str]:
    """Return the cells of a column as they are written."""
    return [FORMATS[column["format"]](value) for value in column["values"]]


def split_header(name: str) -> list[str]:
    """Break a header into one line or two of nearly equal length."""
    words = name.split()
    if len(name) <= 8 or len(words) == 1:
        return [name]
    cuts = range(1, len(words))
    cut = min(cuts, key=lambda cut: max(len(" ".join(words[:cut])), len(" ".join(words[cut:]))))
    return [" ".join(words[:cut]), " ".join(words[cut:])]


def measure_columns(sheet: Sheet, columns: list[dict], style: dict, capitals: float) -> list[float]:
    """Return the width that each column needs at a height of capitals, as a share of the side."""
    face = find_face(style["face"])
    widths = []
    for index, column in enumerate(columns):
        header = [sheet.width(line, bolder(face), capitals) for line in split_header(column["name"])]
        cell_face = bolder(face) if index == 0 and style["is_bold_key"] else face
        cells = [sheet.width(cell, cell_face, capitals) for cell in show_cells(column)]
        widths.append(max(header + cells) + 2 * PADDING)
    return widths


def fits(columns: list[dict], style: dict) -> bool:
    """Check whether all columns fit beside each other in legible text."""
    # At 384 pixels, the smallest side that matters, rounding of letters to pixels widens a text most.
    return sum(measure_columns(Sheet(384, (0, 0, 0)), columns, style, MIN_CAPITALS)) <= 0.97 * WIDTH
