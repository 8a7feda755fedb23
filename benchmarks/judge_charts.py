"""Read charts from pixels: axes and names from OCR, heights and shares from colors."""

from dataclasses import dataclass, field

import numpy as np
from judge_text import Line
from scipy import ndimage


MIN_CHROMA = 45  # colors of data; papers and inks are nearly gray


@dataclass
class Chart:
    """
    What the judge has read of a chart.

    Args:
        values (`dict[str, dict[str, float]]`): by series (an empty name for a single one) and category.
        exact (`bool`): whether the values are numbers that are written or lie on the grid.
    """

    values: dict[str, dict[str, float]]
    sort: str
    exact: bool = True
    points: dict[str, tuple[float, float]] = field(default_factory=dict)


def chroma(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels.astype(int), axis=-1)


def read_chart(pixels: np.ndarray, lines: list[Line]) -> Chart | None:
    """Read a chart, or return None if its axes or names cannot be read."""
    legend = find_legend(pixels, lines)
    vertical = find_axis([line for line in lines if line.right < 0.35 * len(pixels)], "y")
    horizontal = find_axis([line for line in lines if line.top > 0.6 * len(pixels)], "x")
    if vertical is None and horizontal is None:
        return read_shares(pixels, lines, legend)
    if vertical is not None and horizontal is not None:
        return read_points(pixels, lines, vertical, horizontal)
    if vertical is None:
        return read_horizontal(pixels, lines, horizontal)
    return read_upright(pixels, lines, legend, vertical)


@dataclass
class Axis:
    scale: float  # value for a pixel
    zero: float  # place of 0
    step: float
    ticks: list[Line]

    def value(self, place: float) -> float:
        return (place - self.zero) * self.scale


def find_axis(lines: list[Line], side: str) -> Axis | None:
    """Find numbers in equal steps that are in one row (x) or one column (y)."""
    numbers = [line for line in lines if line.number is not None and "%" not in line.text]
    best: list[Line] = []
    for first in numbers:
        if side == "y":
            group = [line for line in numbers if abs(line.right - first.right) < 0.6 * first.height]
        else:
            group = [line for line in numbers if abs(line.y - first.y) < 0.5 * first.height]
        best = max(best, group, key=len)
    if len(best) < 3:
        return None
    places = np.array([line.y if side == "y" else line.x for line in best])
    values = np.array([line.number for line in best])
    scale, offset = np.polyfit(places, values, 1)
    if scale == 0 or np.abs(np.polyval((scale, offset), places) - values).max() > 0.03 * np.ptp(values):
        return None
    if (scale > 0) == (side == "y") or len(set(values)) < len(values):
        return None
    return Axis(float(scale), float(-offset / scale), float(np.diff(np.sort(values)).min()), best)


def find_legend(pixels: np.ndarray, lines: list[Line]) -> dict[str, tuple[int, ...]]:
    """Find the names that have a swatch of one color at their left."""
    legend = {}
    for line in (line for line in lines if line.number is None):
        height = line.height
        left, right = int(line.left - 0.9 * height), int(line.left - 0.6 * height)
        patch = pixels[int(line.y - 0.2 * height) : int(line.y + 0.2 * height), max(left, 0) : max(right, 1)]
        if patch.size and np.ptp(patch.reshape(-1, 3), axis=0).max() < 12 and chroma(patch).min() > MIN_CHROMA:
            legend[line.text.strip()] = tuple(int(part) for part in np.median(patch.reshape(-1, 3), axis=0))
    return legend


def mask_of(pixels: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    return np.abs(pixels.astype(int) - color).max(-1) < 22


def read_shares(pixels: np.ndarray, lines: list[Line], legend: dict) -> Chart | None:
    """Measure the areas of slices; where all have a number that fits, take the numbers."""
    if len(legend) < 3:
        return None
    swatches = np.zeros(pixels.shape[:2], dtype=bool)
    for line in lines:
        if line.text.strip() in legend:
            swatches[int(line.top) - 6 : int(line.bottom) + 6] = True
    # Turn slices into areas of their own: the letters on a slice belong to it.
    areas = {name: float((mask_of(pixels, color) & ~swatches).sum()) for name, color in legend.items()}
    total = sum(areas.values())
    if total < 0.93 * ((chroma(pixels) > MIN_CHROMA) & ~swatches).sum():
        return None  # a name of the legend was not read
    shares = {name: 100 * area / total for name, area in areas.items()}
    written = [line.number for line in lines if line.number is not None and "%" in line.text]
    is_exact = len(written) == len(shares) and abs(sum(written) - 100) < 0.5
    if is_exact:
        for name, share in zip(sorted(shares, key=shares.get), sorted(written), strict=True):
            if abs(shares[name] - share) > 2:
                return None
            shares[name] = share
    return Chart({"": shares}, "pie", is_exact)


def read_upright(pixels: np.ndarray, lines: list[Line], legend: dict, axis: Axis) -> Chart | None:
    """Read bars, lines or lollipops over categories."""
    left = max(line.right for line in axis.ticks)
    side = len(pixels)
    below = [line for line in lines if line.top > axis.zero and line.x > left and line.text.strip() not in legend]
    names = [line for line in below if line.top < axis.zero + 0.05 * side]
    if len(names) < 2:
        return None
    names.sort(key=lambda line: line.x)
    slot = np.diff([line.x for line in names]).min()
    # One name that OCR has missed would give a gap of two slots.
    if np.diff([line.x for line in names]).max() > 1.35 * slot or len({line.text for line in names}) < len(names):
        return None
    top = int(min(line.y for line in axis.ticks)) - 2
    colored = chroma(pixels) > MIN_CHROMA
    colored[: max(0, top)], colored[int(axis.zero) - 1 :], colored[:, : int(left) + 3] = False, False, False
    known = sum((mask_of(pixels, color) for color in legend.values()), np.zeros_like(colored))
    if legend and (colored & known).sum() < 0.9 * colored.sum():
        return None  # a name of the legend was not read
    if not legend and any(
        np.ptp(pixels[int(axis.zero) - 8, int(line.x - slot / 2) : int(line.x + slot / 2)][row], axis=0).max() > 60
        for line in names
        if (row := colored[int(axis.zero) - 8, int(line.x - slot / 2) : int(line.x + slot / 2)]).any()
    ):
        return None  # several colors at one name, and no legend was read
    base = colored[int(axis.zero) - 8 : int(axis.zero) - 4].any(0)
    widths = [base[int(line.x - slot / 2) : int(line.x + slot / 2)].sum() / slot for line in names]
    sort = "bar" if np.median(widths) > 0.2 else "lollipop" if np.median(widths) > 0 else "line"
    values: dict[str, dict[str, float]] = {}
    for series, color in (legend or {"": None}).items():
        mask = colored if color is None else colored & mask_of(pixels, color)
        values[series] = {}
        for line in names:
            box = mask[:, int(line.x - 0.49 * slot) : int(line.x + 0.49 * slot)]
            value = measure(box, axis, sort, line.x - int(line.x - 0.49 * slot))
            if value is None:
                return None
            values[series][line.text.strip()] = value
    return snap(values, lines, axis, sort if not legend else f"{sort}s", names, slot)


def measure(box: np.ndarray, axis: Axis, sort: str, center: float) -> float | None:
    """Measure the height of the colored area in the slot of a category."""
    if sort == "line":
        rows = np.flatnonzero(box[:, int(center) - 1 : int(center) + 2].any(1))
        # Of a marker that another line hides, less than its height is seen.
        return axis.value(rows.mean() + 0.5) if len(rows) >= 13 and np.ptp(rows) < 30 else None
    if sort == "lollipop":
        labels, number = ndimage.label(box)
        rows = np.flatnonzero(box.any(1))
        if not len(rows):
            return None
        widths = box[rows].sum(1)
        disc = rows[widths > 0.55 * widths.max()]
        return axis.value(disc.mean() + 0.5)
    rows = np.flatnonzero(box.sum(1) > 0.5 * np.percentile(box.sum(1)[box.any(1)], 75)) if box.any() else []
    if not len(rows):
        return None
    bottom = rows.max()
    height = rows.max() - rows.min() + 1
    # A bar stands on the axis; a part of a stack on another part.
    return axis.value(rows.min()) if bottom > axis.zero - 8 else -height * axis.scale


def snap(values: dict, lines: list[Line], axis: Axis, sort: str, names: list[Line], slot: float) -> Chart | None:
    """Replace measured heights by the numbers that are written at them, or by the nearest one on the grid."""
    tolerance = 5 * abs(axis.scale)
    inside = [line for line in lines if line.number is not None and line not in axis.ticks and line.top < axis.zero]
    flat = [(series, name) for series, row in values.items() for name in row]
    written: dict[tuple[str, str], float] = {}
    for series, name in flat:
        (center,) = [line.x for line in names if line.text.strip() == name]
        near = [line for line in inside if abs(line.x - center) < slot / 2]
        fitting = [line.number for line in near if abs(line.number - values[series][name]) < tolerance]
        if fitting:
            written[series, name] = min(fitting, key=lambda number: abs(number - values[series][name]))
    if len(written) == len(flat):
        return Chart(_replace(values, written), sort)
    grid = {key: axis.step * round(values[key[0]][key[1]] / axis.step) for key in flat}
    if not inside and all(abs(grid[key] - values[key[0]][key[1]]) < tolerance for key in flat):
        return Chart(_replace(values, grid), sort)
    return Chart(values, sort, exact=False)


def _replace(values: dict, numbers: dict) -> dict:
    return {series: {name: numbers[series, name] for name in row} for series, row in values.items()}


def read_horizontal(pixels: np.ndarray, lines: list[Line], axis: Axis) -> Chart | None:
    """Read horizontal bars."""
    bottom = min(line.top for line in axis.ticks)
    names = [line for line in lines if line.right < axis.zero and line.y < bottom and line.number is None]
    gaps = np.diff(sorted(line.y for line in names))
    if len(names) < 3 or gaps.max() > 1.35 * gaps.min():
        return None  # a name was not read
    colored = chroma(pixels) > MIN_CHROMA
    values: dict[str, float] = {}
    exact = True
    for line in names:
        row = colored[int(line.y) - 2 : int(line.y) + 2, int(axis.zero) + 2 :].all(0)
        ends = np.flatnonzero(~row)
        if not len(ends) or ends[0] < 2:
            continue
        value = axis.value(axis.zero + 2 + ends[0])
        near = [other.number for other in lines if other.number is not None and abs(other.y - line.y) < line.height]
        fitting = [number for number in near if abs(number - value) < 6 * axis.scale]
        grid = axis.step * round(value / axis.step)
        if fitting:
            value = fitting[0]
        elif not near and abs(grid - value) < 6 * axis.scale:
            value = grid
        else:
            exact = False
        values[line.text.strip()] = value
    return Chart({"": values}, "bar", exact) if len(values) > 2 else None


def read_points(pixels: np.ndarray, lines: list[Line], vertical: Axis, horizontal: Axis) -> Chart | None:
    """Read the lettered points of a scatter plot: discs of one color, with a letter at their upper right."""
    labels, _ = ndimage.label(chroma(pixels) > MIN_CHROMA)
    points = {}
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (part.stop - part.start for part in place)
        if not 10 < height < 40 or abs(height - width) > 4:
            continue
        y, x = ndimage.center_of_mass(labels == index)
        letters = [
            line
            for line in lines
            if len(line.text.strip()) == 1 and line.text.isalpha() and 0 < line.x - x < 50 and -45 < line.y - y < 10
        ]
        if len(letters) != 1:
            continue
        values = [axis.step * round(axis.value(place) / axis.step) for axis, place in ((horizontal, x), (vertical, y))]
        points[letters[0].text.strip()] = tuple(values)
    num_discs = sum(
        1
        for place in ndimage.find_objects(labels)
        if 10 < place[0].stop - place[0].start < 40 and 10 < place[1].stop - place[1].start < 40
    )
    return Chart({}, "scatter", len(points) == num_discs, points) if points else None
