"""Draws documents."""

from PIL import Image

from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.sheet import MIN_CAPITALS, Sheet, bolder, find_face
from fusion_vlm.synthesis.documents.styles import mix


# Width of the paper, and its least height, as shares of the side.
_PAPERS = {"page": (0.92, 0.94), "card": (0.92, 0.5), "strip": (0.66, 0.5), "poster": (0.94, 0.9)}
_PADDING = 0.035
_HEADING = 1.45  # height of a heading in heights of capitals


class DocumentPainter:
    """
    Draws one document on a sheet: first all blocks are measured, then drawn.

    Args:
        page (`Page`)
        size (`int`): side of the image in pixels.
    """

    def __init__(self, page: Page, size: int):
        self.page, self.style, self.blocks = page, page.style, page.content["blocks"]
        self.sheet = Sheet(size, self.style["ground"])
        self.face, self.heading_face = find_face(self.style["face"]), find_face(self.style["heading_face"])
        self.width, self.least = _PAPERS[self.style["paper"]]
        self.left, self.right = 0.5 - self.width / 2 + _PADDING, 0.5 + self.width / 2 - _PADDING
        self.capitals = self.style["capitals"]

    def draw(self) -> Image.Image:
        """Draw the document and return the image."""
        # Smaller text until all of the document fits: in height, and each line in width.
        while self._measure() > 0.97 - 2 * _PADDING and self.capitals > MIN_CAPITALS:
            self.capitals = max(MIN_CAPITALS, 0.95 * self.capitals)
        needed = self._measure()
        height = max(self.least, needed + 2 * _PADDING)
        top = 0.5 - height / 2
        self.sheet.box(0.5 - self.width / 2, top, 0.5 + self.width / 2, top + height, self.style["color"])
        if self.style["has_frame"]:
            inset = 0.012
            self.sheet.frame(
                0.5 - self.width / 2 + inset,
                top + inset,
                0.5 + self.width / 2 - inset,
                top + height - inset,
                self.style["line"],
            )
        spare = height - 2 * _PADDING - needed
        y = top + _PADDING + (spare / 2 if self.style["paper"] in ("card", "poster") else min(spare, 0.03))
        for block in self.blocks:
            y = self._draw_block(block, y)
        return self._tilt(self.sheet.finish())

    def _tilt(self, image: Image.Image) -> Image.Image:
        """Turn the document by a few degrees on its ground, where nothing of it is cut off."""
        if not self.style["tilt"] or self.style["paper"] in ("page", "poster"):
            return image
        color = tuple(self.style["ground"])
        return image.rotate(self.style["tilt"], Image.Resampling.BICUBIC, fillcolor=color)

    @property
    def _line(self) -> float:
        return self.style["spacing"] * self.capitals

    def _measure(self) -> float:
        return sum(self._height(block) for block in self.blocks)

    def _height(self, block: dict) -> float:
        if block["kind"] == "rule":
            return 0.6 * self._line
        if block["kind"] == "heading":
            return len(self._wrap_heading(block["text"])) * self._line * _HEADING
        if block["kind"] == "paragraph":
            return (len(self._wrap(block["text"])) + 0.4) * self._line
        if block["kind"] in ("line", "center"):
            return len(self._wrap(block["text"])) * self._line
        return self._line * (1.15 if block["kind"] == "box" else 1)

    def _wrap(self, text: str) -> list[str]:
        return self.sheet.wrap(text, self.face, self.capitals, self.right - self.left)

    def _wrap_heading(self, text: str) -> list[str]:
        return self.sheet.wrap(text, self.heading_face, _HEADING * self.capitals, self.right - self.left)

    def _draw_block(self, block: dict, y: float) -> float:
        """Draw a block with its upper edge at `y`, and return its lower edge."""
        kind, bottom = block["kind"], y + self._height(block)
        middle, ink = (y + bottom) / 2, self.style["ink"]
        if kind == "rule":
            self.sheet.line([(self.left, middle), (self.right, middle)], self.style["line"], 0.003)
        elif kind == "heading":
            is_page = self.style["paper"] == "page" and self.style["label_width"] == 0.0
            for line in self._wrap_heading(block["text"]):
                middle = y + self._line * _HEADING / 2
                place = (self.left, middle) if is_page else (0.5, middle)
                self.sheet.text(
                    *place,
                    line,
                    self.heading_face,
                    _HEADING * self.capitals,
                    self.style["heading_color"],
                    "l" if is_page else "m",
                    self.right - self.left,
                )
                y += self._line * _HEADING
        elif kind in ("paragraph", "line", "center"):
            side = "m" if kind == "center" else "l"
            for line in self._wrap(block["text"]):
                x = 0.5 if side == "m" else self.left
                self.sheet.text(
                    x, y + self._line / 2, line, self.face, self.capitals, ink, side, self.right - self.left
                )
                y += self._line
        elif kind == "box":
            self._draw_check_box(block, middle)
        else:
            self._draw_pair(block, middle)
        return bottom

    def _draw_pair(self, block: dict, y: float):
        """Write a label and its value, or goods and their price."""
        face = bolder(self.face) if block.get("bold") else self.face
        room = self.right - self.left
        if block["kind"] == "item":
            price = self.sheet.width(block["right"], face, self.capitals)
            self.sheet.text(
                self.left, y, block["left"], face, self.capitals, self.style["ink"], "l", room - price - 0.03
            )
            self.sheet.text(self.right, y, block["right"], face, self.capitals, self.style["ink"], "r")
            return
        label = f"{block['left']}:"
        self.sheet.text(self.left, y, label, self.face, self.capitals, self.style["label_color"])
        after = self.left + self.sheet.width(label, self.face, self.capitals) + 0.015
        x = max(after, self.left + self.style["label_width"] * room)
        if x + self.sheet.width(block["right"], self.face, self.capitals) > self.right:
            x = after
        self.sheet.text(x, y, block["right"], bolder(self.face), self.capitals, self.style["ink"], "l", self.right - x)
        if self.style["has_lines"]:
            below = y + 0.9 * self.capitals
            self.sheet.line(
                [(x, below), (self.right, below)], mix(self.style["color"], self.style["line"], 0.6), 0.002
            )

    def _draw_check_box(self, block: dict, y: float):
        half, x, ink = 0.62 * self.capitals, self.left + 0.8 * self.capitals, self.style["ink"]
        left, top, right, bottom = x - half, y - half, x + half, y + half
        self.sheet.frame(left, top, right, bottom, ink, 0.003)
        if block["checked"]:
            if self.style["mark"] == "cross":
                self.sheet.line([(left, top), (right, bottom)], ink, 0.005)
                self.sheet.line([(left, bottom), (right, top)], ink, 0.005)
            elif self.style["mark"] == "tick":
                points = [(left + 0.2 * half, y), (x - 0.1 * half, bottom - 0.3 * half), (right + 0.2 * half, top)]
                self.sheet.line(points, ink, 0.006)
            else:
                self.sheet.box(left, top, right, bottom, ink)
        self.sheet.text(right + 0.02, y, block["text"], self.face, self.capitals, ink, "l", self.right - right - 0.02)


def draw_document(page: Page, size: int) -> Image.Image:
    """Draw a document as an RGB image of `size` pixels a side."""
    return DocumentPainter(page, size).draw()
