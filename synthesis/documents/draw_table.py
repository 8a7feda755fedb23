"""Draws tables."""

from PIL import Image

from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.sheet import MIN_CAPITALS, Sheet, bolder, find_face
from fusion_vlm.synthesis.documents.styles import mix
from fusion_vlm.synthesis.documents.table_layout import (
    MARGIN,
    PADDING,
    WIDTH,
    measure_columns,
    show_cells,
    split_header,
)


def draw_table(page: Page, size: int) -> Image.Image:
    """Draw a table as an RGB image of `size` pixels a side."""
    style, columns = page.style, page.content["columns"]
    sheet, face = Sheet(size, style["paper"]), find_face(style["face"])
    top = _draw_title(sheet, page)
    capitals, lefts = _lay_out(sheet, columns, style)
    headers = [split_header(column["name"]) for column in columns]
    # In heights of a row, the header's second line takes less than a whole one.
    num_rows = len(columns[0]["values"]) + (1.7 if max(map(len, headers)) > 1 else 1)
    height = min(style["row_height"] * capitals, (1 - MARGIN - top) / num_rows)
    top += style["place"] * max(0.0, 1 - MARGIN - top - height * num_rows)
    first = top + height * (num_rows - len(columns[0]["values"]))
    lines = [top, *(first + index * height for index in range(len(columns[0]["values"]) + 1))]
    _draw_ground(sheet, style, lefts, lines)
    for index, (column, header) in enumerate(zip(columns, headers, strict=True)):
        side = "l" if column["format"] == "text" else style["number_side"]
        left, right = lefts[index] + PADDING, lefts[index + 1] - PADDING
        x = {"l": left, "m": (left + right) / 2, "r": right}[side]
        color = style["header_ink"] if style["rules"] == "filled header" else style["ink"]
        for row, line in enumerate(header):
            y = (lines[0] + lines[1]) / 2 + (row - (len(header) - 1) / 2) * 1.7 * capitals
            sheet.text(x, y, line, bolder(face), capitals, color, side, right - left)
        cell_face = bolder(face) if index == 0 and style["is_bold_key"] else face
        for row, cell in enumerate(show_cells(column), start=1):
            y = (lines[row] + lines[row + 1]) / 2
            sheet.text(x, y, cell, cell_face, capitals, style["ink"], side, right - left)
    return sheet.finish()


def _draw_title(sheet: Sheet, page: Page) -> float:
    """Write the title and return where the table begins."""
    face, capitals, top = find_face(page.style["title_face"]), 1.35 * page.style["capitals"], MARGIN
    for line in sheet.wrap(page.content["title"], face, capitals, 1 - 2 * MARGIN):
        side = page.style["title_side"]
        x = 0.5 if side == "m" else MARGIN
        sheet.text(x, top + capitals, line, face, capitals, page.style["ink"], side, 1 - 2 * MARGIN)
        top += 2.2 * capitals
    return top + 0.02


def _lay_out(sheet: Sheet, columns: list[dict], style: dict) -> tuple[float, list[float]]:
    """Return the height of capitals, less than that of the style if need be, and the edges of the columns."""
    capitals = style["capitals"]
    widths = measure_columns(sheet, columns, style, capitals)
    while sum(widths) > WIDTH and capitals > MIN_CAPITALS:
        capitals = max(MIN_CAPITALS, capitals * 0.95)
        widths = measure_columns(sheet, columns, style, capitals)
    spare = (WIDTH - sum(widths)) / len(widths)
    lefts = [MARGIN]
    for width in widths:
        lefts.append(lefts[-1] + width + spare)
    return capitals, lefts


def _draw_ground(sheet: Sheet, style: dict, lefts: list[float], lines: list[float]):
    """Draw stripes, rules and borders."""
    rules, left, right = style["rules"], lefts[0], lefts[-1]
    if rules == "striped":
        for top, bottom in list(zip(lines, lines[1:], strict=False))[1::2]:
            sheet.box(left, top, right, bottom, style["stripe"])
    if rules == "filled header":
        sheet.box(left, lines[0], right, lines[1], style["header"])
    if rules in ("ruled", "filled header", "bordered"):
        for y in lines:
            sheet.line([(left, y), (right, y)], style["line"], 0.002)
    if rules == "bordered":
        for x in lefts:
            sheet.line([(x, lines[0]), (x, lines[-1])], style["line"], 0.002)
        sheet.frame(left, lines[0], right, lines[-1], style["line"], 0.004)
    if rules in ("plain", "striped"):
        color = style["ink"] if rules == "plain" else mix(style["paper"], style["ink"], 0.5)
        sheet.line([(left, lines[1]), (right, lines[1])], color, 0.004)
