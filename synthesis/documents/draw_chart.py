"""Draws charts."""

import math

from fusion_vlm.synthesis.documents.charts import SHARES
from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.sheet import MIN_CAPITALS, Sheet, bolder, find_face


_MARGIN = 0.03


class ChartPainter:
    """
    Draws one chart on a sheet.

    Args:
        page (`Page`)
        size (`int`): side of the image in pixels.
    """

    def __init__(self, page: Page, size: int):
        self.page, self.content, self.style = page, page.content, page.style
        self.sheet = Sheet(size, self.style["paper"])
        self.face = find_face(self.style["face"])
        self.ink, self.palette = self.style["ink"], self.style["palette"]
        self.capitals = self.style["capitals"]
        # The plot, between the axes.
        self.left, self.top, self.right, self.bottom = _MARGIN, _MARGIN, 1 - _MARGIN, 1 - _MARGIN

    def draw(self):
        """Draw the chart and return the image."""
        self._draw_title()
        if self.page.layout in SHARES:
            self._draw_shares()
        elif self.page.layout == "scatter":
            self._draw_points()
        elif self.page.layout == "horizontal bar":
            self._draw_horizontal_bars()
        else:
            if self.content["series"][0]:
                self._draw_legend(self.content["series"])
            self._draw_upright()
        return self.sheet.finish()

    def _draw_title(self):
        face, capitals = find_face(self.style["title_face"]), 1.35 * self.capitals
        lines = self.sheet.wrap(self.content["title"], face, capitals, 1 - 2 * _MARGIN)
        for line in lines:
            x = 0.5 if self.style["title_side"] == "m" else _MARGIN
            self.sheet.text(
                x, self.top + capitals, line, face, capitals, self.ink, self.style["title_side"], 1 - 2 * _MARGIN
            )
            self.top += 2 * capitals
        self.top += 0.02

    def _draw_legend(self, names: list[str]):
        """Draw the legend in lines of as many entries as fit, above or below the plot."""
        gap, swatch = 0.025, 1.2 * self.capitals
        lines, width = [[]], 0.0
        for index, name in enumerate(names):
            needed = swatch + 0.012 + self.sheet.width(name, self.face, self.capitals) + gap
            if lines[-1] and width + needed > 1 - 2 * _MARGIN:
                lines.append([])
                width = 0.0
            lines[-1].append((index, name, width))
            width += needed
        height = LINE * self.capitals
        y = self.top if self.style["legend"] == "top" else self.bottom - height * len(lines)
        for line in lines:
            for index, name, x in line:
                middle, start = y + height / 2, _MARGIN + x
                self.sheet.box(start, middle - swatch / 2, start + swatch, middle + swatch / 2, self.palette[index])
                self.sheet.text(start + swatch + 0.012, middle, name, self.face, self.capitals, self.ink)
            y += height
        if self.style["legend"] == "top":
            self.top = y + 0.015
        else:
            self.bottom -= height * len(lines) + 0.01

    def _label_margins(self, ticks: list[int], unit: str):
        """Make room for the numbers of the vertical axis and the unit beside them."""
        widest = max(self.sheet.width(str(tick), self.face, self.capitals) for tick in ticks)
        self.left = _MARGIN + 1.9 * self.capitals + widest + 0.012
        self.sheet.turned_text(
            _MARGIN + 0.6 * self.capitals,
            (self.top + self.bottom) / 2 - 0.03,
            self._short(unit, 0.95 * (self.bottom - self.top)),
            self.face,
            self.capitals,
            self.ink,
            "m",
        )

    def _short(self, text: str, most: float) -> str:
        """Return the text, or its unit in parentheses alone where the text is longer than `most`."""
        return text if self.sheet.width(text, self.face, self.capitals) <= most else text[text.rfind("(") + 1 : -1]

    def _draw_upright(self):
        """Draw bars, lines or lollipops over a horizontal axis of categories."""
        content, layout = self.content, self.page.layout
        totals = [sum(column) for column in zip(*content["values"], strict=True)]
        highest = max(totals) if layout == "stacked bar" else max(max(values) for values in content["values"])
        # Numbers at narrow bars are written upright and need more height.
        room = 0.0 if not content["labels"] or layout == "stacked bar" else 1.4 if layout == "grouped bar" else 0.7
        ticks = make_ticks(highest, content["step"], room)
        self._label_margins(ticks, f"{content['measure']} ({content['unit']})")
        slot = (self.right - self.left) / len(content["categories"])
        widest = max(self.sheet.width(name, self.face, self.capitals) for name in content["categories"])
        is_turned = widest > 0.92 * slot
        self.bottom -= (widest + 0.02) if is_turned else LINE * self.capitals
        self._draw_ground(ticks)
        centers = [self.left + (index + 0.5) * slot for index in range(len(content["categories"]))]
        for x, name in zip(centers, content["categories"], strict=True):
            if is_turned:
                self.sheet.turned_text(x, self.bottom + 0.012, name, self.face, self.capitals, self.ink, "r")
            else:
                y = self.bottom + 1.1 * self.capitals
                self.sheet.text(x, y, name, self.face, self.capitals, self.ink, "m")
        if layout in ("line", "multi-line"):
            self._draw_lines(centers, ticks[-1])
        else:
            self._draw_bars(centers, slot, ticks[-1])
        self.sheet.line([(self.left, self.bottom), (self.right, self.bottom)], self.ink, 0.004)

    def _draw_ground(self, ticks: list[int]):
        self.sheet.box(self.left, self.top, self.right, self.bottom, self.style["plot"])
        for tick in ticks:
            y = self._height(tick, ticks[-1])
            if self.style["has_grid"]:
                self.sheet.line([(self.left, y), (self.right, y)], self.style["grid"], 0.002, self.style["dash"])
            self.sheet.line([(self.left - 0.008, y), (self.left, y)], self.ink, 0.003)
            self.sheet.text(self.left - 0.014, y, str(tick), self.face, self.capitals, self.ink, "r")
        self.sheet.line([(self.left, self.top), (self.left, self.bottom)], self.ink, 0.004)
        if self.style["has_box"]:
            self.sheet.frame(self.left, self.top, self.right, self.bottom, self.ink)

    def _height(self, value: float, most: float) -> float:
        return self.bottom - (self.bottom - self.top) * value / most

    def _color(self, series: int, category: int) -> list[int]:
        is_single = len(self.content["series"]) == 1
        return self.palette[(category if is_single else series) % len(self.palette)]

    def _draw_bars(self, centers: list[float], slot: float, most: int):
        layout, values = self.page.layout, self.content["values"]
        width = slot * self.style["bar_width"] / (len(values) if layout == "grouped bar" else 1)
        for category, center in enumerate(centers):
            below = 0
            for series, row in enumerate(values):
                x, value = center, row[category]
                if layout == "grouped bar":
                    x += (series - (len(values) - 1) / 2) * width
                low, high = self._height(below, most), self._height(below + value, most)
                color = self._color(series, category)
                if layout == "lollipop":
                    self.sheet.line([(x, low), (x, high)], color, 0.008)
                    self.sheet.disc(x, high, 0.016, color)
                else:
                    self.sheet.box(x - width / 2, high, x + width / 2, low, color)
                if layout == "stacked bar":
                    below += value
                    self._label(value, x, (low + high) / 2, width, contrast(color))
                else:
                    lift = self.capitals * (1.0 if layout != "lollipop" else 1.4)
                    self._label(value, x, high - lift - 0.004, width * (1.0 if len(values) > 1 else 1.6), self.ink)

    def _label(self, value: int, x: float, y: float, width: float, color):
        """Write a value at a bar, from bottom to top where the bar is too narrow for the number."""
        if not self.content["labels"]:
            return
        text = str(value)
        if self.sheet.width(text, self.face, MIN_CAPITALS) <= width:
            self.sheet.text(x, y, text, self.face, self.capitals, color, "m", width)
        else:
            self.sheet.turned_text(x, y + self.capitals / 2, text, self.face, MIN_CAPITALS, color, "l")

    def _draw_lines(self, centers: list[float], most: int):
        for series, row in enumerate(self.content["values"]):
            color = self.palette[series]
            points = [(x, self._height(value, most)) for x, value in zip(centers, row, strict=True)]
            self.sheet.line(points, color, 0.008)
            for x, y in points:
                if self.style["marker"] == "disc":
                    self.sheet.disc(x, y, 0.012, color)
                else:
                    self.sheet.box(x - 0.011, y - 0.011, x + 0.011, y + 0.011, color)
            if self.content["labels"]:
                self._label_line(points, row)

    def _label_line(self, points: list[tuple[float, float]], row: list[int]):
        """Write the values at a line: below a point that is lower than its neighbors, else above."""
        for index, ((x, y), value) in enumerate(zip(points, row, strict=True)):
            neighbors = row[max(0, index - 1) : index] + row[index + 1 : index + 2]
            is_below = all(value < other for other in neighbors) and y < self.bottom - 4 * self.capitals
            y += (1.2 * self.capitals + 0.008) * (1 if is_below else -1)
            self.sheet.text(x, y, str(value), self.face, self.capitals, self.ink, "m", halo=self.style["plot"])

    def _draw_horizontal_bars(self):
        content, values = self.content, self.content["values"][0]
        widest = max(self.sheet.width(name, self.face, self.capitals) for name in content["categories"])
        self.left = _MARGIN + widest + 0.02
        ticks = make_ticks(max(values), content["step"], 0.6 * content["labels"])
        self.right -= self.sheet.width(str(ticks[-1]), self.face, self.capitals) / 2
        unit = f"{content['measure']} ({content['unit']})"
        self.bottom -= 2 * LINE * self.capitals
        y = self.bottom + 1.5 * LINE * self.capitals
        self.sheet.text(0.5, y, self._short(unit, 0.9), self.face, self.capitals, self.ink, "m")
        self.sheet.box(self.left, self.top, self.right, self.bottom, self.style["plot"])
        scale = (self.right - self.left) / ticks[-1]
        for tick in ticks:
            x = self.left + tick * scale
            if self.style["has_grid"]:
                self.sheet.line([(x, self.top), (x, self.bottom)], self.style["grid"], 0.002, self.style["dash"])
            self.sheet.text(x, self.bottom + 1.2 * self.capitals, str(tick), self.face, self.capitals, self.ink, "m")
        slot = (self.bottom - self.top) / len(values)
        for index, (name, value) in enumerate(zip(content["categories"], values, strict=True)):
            y, half = self.top + (index + 0.5) * slot, slot * self.style["bar_width"] / 2
            self.sheet.box(self.left, y - half, self.left + value * scale, y + half, self._color(0, index))
            self.sheet.text(self.left - 0.012, y, name, self.face, self.capitals, self.ink, "r")
            if content["labels"]:
                x = self.left + value * scale + 0.01
                self.sheet.text(x, y, str(value), self.face, self.capitals, self.ink)
        self.sheet.line([(self.left, self.top), (self.left, self.bottom)], self.ink, 0.004)

    def _draw_shares(self):
        """Draw a pie or a donut with a legend that names the slices."""
        content, shares = self.content, self.content["values"][0]
        names = content["categories"]
        self._draw_legend(names)
        radius = min(self.right - self.left, self.bottom - self.top) / 2 - 0.02
        x, y = 0.5, (self.top + self.bottom) / 2
        start = self.style["start"]
        for index, share in enumerate(shares):
            end = start + 3.6 * share
            self.sheet.slice(x, y, radius, start, end, self.palette[index])
            if content["labels"]:
                self._label_slice(f"{share}%", x, y, radius, (start + end) / 2, index)
            start = end
        if self.page.layout == "donut":
            self.sheet.disc(x, y, 0.5 * radius, self.style["paper"])

    def _label_slice(self, text: str, x: float, y: float, radius: float, angle: float, index: int):
        away = 0.76 if self.page.layout == "donut" else 0.8
        across, down = math.sin(math.radians(angle)), -math.cos(math.radians(angle))
        place = (x + away * radius * across, y + away * radius * down)
        self.sheet.text(*place, text, bolder(self.face), self.capitals, contrast(self.palette[index]), "m")

    def _draw_points(self):
        """Draw lettered points over a grid of both axes."""
        content = self.content
        (across, up), (x_values, y_values) = content["series"], content["values"]
        ticks, x_ticks = (make_ticks(9 * content[name], content[name], 1) for name in ("step", "x_step"))
        self._label_margins(ticks, up)
        self.bottom -= 2 * LINE * self.capitals
        self.right -= self.sheet.width(str(x_ticks[-1]), self.face, self.capitals) / 2
        self._draw_ground(ticks)
        scale = (self.right - self.left) / x_ticks[-1]
        for tick in x_ticks:
            x = self.left + tick * scale
            self.sheet.line([(x, self.top), (x, self.bottom)], self.style["grid"], 0.002, self.style["dash"])
            text = str(tick)
            self.sheet.text(x, self.bottom + 1.2 * self.capitals, text, self.face, self.capitals, self.ink, "m", 0.07)
        y = self.bottom + 1.5 * LINE * self.capitals
        self.sheet.text(0.5, y, self._short(across, 0.9), self.face, self.capitals, self.ink, "m")
        self.sheet.line([(self.left, self.bottom), (self.right, self.bottom)], self.ink, 0.004)
        for letter, x_value, y_value in zip(content["categories"], x_values, y_values, strict=True):
            x, y = self.left + x_value * scale, self._height(y_value, ticks[-1])
            self.sheet.disc(x, y, 0.014, self.palette[0])
            self.sheet.text(x + 0.02, y - 0.02, letter, bolder(self.face), self.capitals, self.ink)


LINE = 2.2  # height of a line of labels, in heights of capitals


def make_ticks(highest: int, step: int, room: float) -> list[int]:
    """Return the numbers of an axis from 0 to the first one that is `room` steps or more above the highest value."""
    last = math.ceil(highest / step + room)
    return [step * index for index in range(last + 1)]


def contrast(color) -> tuple[int, int, int]:
    """Return black or white, whichever can be read on a color."""
    red, green, blue = color
    return (16, 16, 18) if 0.3 * red + 0.59 * green + 0.11 * blue > 128 else (255, 255, 255)


def draw_chart(page: Page, size: int):
    """Draw a chart as an RGB image of `size` pixels a side."""
    return ChartPainter(page, size).draw()
