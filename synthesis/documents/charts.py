"""Builds charts: what they compare, their values, and how they look."""

import random

from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import enumerate_names, read_lists, split_list
from fusion_vlm.synthesis.documents.styles import draw_face, draw_heading_face, draw_palette, draw_paper, mix
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.scene import draw_evenly


# The layouts, with the name that an answer gives them.
LAYOUTS = {
    "bar": "bar chart",
    "horizontal bar": "horizontal bar chart",
    "grouped bar": "grouped bar chart",
    "stacked bar": "stacked bar chart",
    "line": "line chart",
    "multi-line": "multi-line chart",
    "pie": "pie chart",
    "donut": "donut chart",
    "scatter": "scatter plot",
    "lollipop": "lollipop chart",
}
WITH_SERIES = ("grouped bar", "stacked bar", "multi-line")
SHARES = ("pie", "donut")
_MAX_NAME = {"bar": 13, "grouped bar": 11, "stacked bar": 12, "line": 9, "multi-line": 9, "lollipop": 13}  # letters
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def build_chart(sample: Sample, rng: random.Random) -> list[Page]:
    """Build the chart of a sample. The layouts, the numbers of bars and the sorts of categories are balanced."""
    layout = list(LAYOUTS)[draw_evenly(sample, "layout", len(LAYOUTS))]
    content = _draw_points(sample, rng) if layout == "scatter" else _draw_content(sample, rng, layout)
    page = Page("chart", layout, content, _draw_style(rng, layout, content))
    page.caption, page.description = _caption(page), describe_chart(page)
    return [page]


def _draw_content(sample: Sample, rng: random.Random, layout: str) -> dict:
    lists = read_lists("categories")
    with_order = [name for name, group in lists.items() if "ordered" in group]
    if layout in ("line", "multi-line"):
        noun = rng.choice(with_order)
    else:
        noun = rng.choice([name for name in lists if layout not in SHARES or name not in with_order])
    group = lists[noun]
    measure, unit, low, high = split_list(rng.choice(group["measures"].strip().split("\n")), ";")
    fewest, most = {
        "grouped bar": (2, 6),
        "stacked bar": (2, 7),
        "multi-line": (3, 7),
        "pie": (3, 7),
        "donut": (3, 7),
    }.get(layout, (3, 8))
    number = fewest + draw_evenly(sample, "number", most - fewest + 1)
    categories = _draw_categories(rng, group, number, layout)
    series = _draw_series(sample, rng, layout, len(categories))
    # The parts of a stack begin at no line of the grid, so only numbers tell their values. Numbers at several lines
    # would cover each other.
    has_labels = layout == "stacked bar" or (layout != "multi-line" and rng.random() < 0.6)
    if layout in SHARES:
        values, unit, step = [_draw_shares(rng, len(categories))], "percent", 10
        has_labels = rng.random() < 0.75
    else:
        values, step = _draw_values(rng, len(series), len(categories), int(low), int(high), has_labels, layout)
    return {
        "title": _draw_title(rng, measure, noun, group["plural"]),
        "measure": measure,
        "unit": unit,
        "noun": noun,
        "plural": group["plural"],
        "ordered": "ordered" in group,
        "categories": categories,
        "series": series,
        "values": values,
        "labels": has_labels,
        "step": step,
    }


def _draw_categories(rng: random.Random, group: dict[str, str], number: int, layout: str) -> list[str]:
    items = [item for item in split_list(group["items"]) if len(item) <= _MAX_NAME.get(layout, 14)]
    if "ordered" not in group:
        return rng.sample(items, number)
    start = rng.randrange(len(items) - number + 1)
    return items[start : start + number]


def _draw_series(sample: Sample, rng: random.Random, layout: str, number: int) -> list[str]:
    if layout not in WITH_SERIES:
        return [""]
    names = split_list(rng.choice(read_lists("series")["group"]["items"].strip().split("\n")))
    # Bars of many groups would be too narrow for their numbers.
    most = {2: 5, 3: 5, 4: 4}.get(number, 3) if layout == "grouped bar" else 5
    return rng.sample(names, min(most, 2 + draw_evenly(sample, "series", 4)))


def _draw_title(rng: random.Random, measure: str, noun: str, plural: str) -> str:
    year = rng.randint(1990, 2025)
    return rng.choice(
        (
            measure,
            f"{measure} by {noun.title()}",
            f"{measure} by {noun.title()}, {year}" if noun != "year" else measure,
            f"{measure} in {year}" if noun != "year" else measure,
            f"{measure} for Selected {plural.title()}",
            f"Survey: {measure}",
            f"{measure}, Overview",
            f"Comparing {plural.title()}: {measure}",
        )
    )


def _draw_values(
    rng: random.Random, num_series: int, number: int, low: int, high: int, has_labels: bool, layout: str
) -> tuple[list[list[int]], int]:
    """
    Draw the values of each series and the step of the axis.

    Without labels, values are multiples of the step, so that the grid tells them exactly. In each series all values
    differ, and at each category those of the series do, so that no comparison is a tie.
    """
    top = high * (num_series if layout == "stacked bar" else 1)
    step = next(step for step in _STEPS if top / step <= 13)
    span = max(1, (high - low) // 40)
    num_levels = max(high // step, number + 1)
    if layout == "stacked bar":  # a part that is lower than its number would share the number's place
        low = max(low, high // 4)
    levels = list(range(low, high + 1, span)) if has_labels else [step * (index + 1) for index in range(num_levels)]
    for _ in range(500):
        values = [rng.sample(levels, number) for _ in range(num_series)]
        if all(len(set(column)) == num_series for column in zip(*values, strict=True)):
            break
    else:  # shifted copies of one series differ at each category
        order = rng.sample(levels, number)
        values = [order[index % number :] + order[: index % number] for index in range(num_series)]
    return values, step


def _draw_shares(rng: random.Random, number: int) -> list[int]:
    """Draw percentages that add up to 100 and differ by three or more, so that slices can be compared."""
    shares = [4 + 3 * index for index in range(number)]
    left = 100 - sum(shares)
    while left:
        num_raised = rng.randint(1, min(number, left))
        for index in range(number - num_raised, number):  # the largest ones, so that no two get closer
            shares[index] += 1
        left -= num_raised
    return rng.sample(shares, number)


def _draw_points(sample: Sample, rng: random.Random) -> dict:
    """Draw lettered points on a grid: no two in one row or one column, so that none is hidden and no two are tied."""
    group = read_lists("categories")[rng.choice(("employee", "student", "city", "team", "store"))]
    first, second = (split_list(line, ";") for line in rng.sample(group["measures"].strip().split("\n"), 2))
    number = 3 + draw_evenly(sample, "number", 6)
    steps = [next(step for step in _STEPS if int(high) / step <= 10) for _, _, _, high in (first, second)]
    across, up = (rng.sample(range(1, 10), number) for _ in range(2))
    letters = rng.sample("BCDEFGHJKLMNPQRSTUVWXYZ", number)  # "A" would be read as a word
    return {
        "title": f"{second[0]} and {first[0]}",
        "measure": second[0],
        "unit": second[1],
        "noun": "point",
        "plural": "points",
        "ordered": False,
        "categories": letters,
        "series": [f"{first[0]} ({first[1]})", f"{second[0]} ({second[1]})"],
        "values": [[place * steps[0] for place in across], [place * steps[1] for place in up]],
        "labels": False,
        "step": steps[1],
        "x_step": steps[0],
    }


def _draw_style(rng: random.Random, layout: str, content: dict) -> dict:
    paper, ink = draw_paper(rng)
    num_colors = len(content["categories"]) if layout in SHARES else len(content["series"])
    has_many = layout in ("bar", "horizontal bar", "lollipop") and rng.random() < 0.4
    num_colors = len(content["categories"]) if has_many else num_colors
    return {
        "face": draw_face(rng),
        "title_face": draw_heading_face(rng),
        "paper": paper,
        "ink": ink,
        "grid": mix(paper, ink, rng.uniform(0.12, 0.25)),
        "plot": rng.choice((paper, paper, mix(paper, ink, 0.05))),
        "palette": draw_palette(rng, num_colors, paper),
        "bar_width": rng.uniform(0.5, 0.85),
        "title_side": rng.choice(("m", "m", "l")),
        "legend": rng.choice(("top", "bottom")),
        "has_grid": not content["labels"] or rng.random() < 0.6,
        "has_box": rng.random() < 0.35,
        "dash": rng.choice((0.0, 0.0, 0.012)),
        "marker": rng.choice(("disc", "square")),
        "start": rng.randrange(0, 360),
        "capitals": rng.uniform(0.0225, 0.0265),
    }


def _caption(page: Page) -> str:
    name = LAYOUTS[page.layout]
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name} titled {page.content['title']}"


def describe_chart(page: Page) -> str:
    """Describe all of a chart in sentences."""
    content = page.content
    parts = [f'The image shows a {LAYOUTS[page.layout]} with the title "{content["title"]}".']
    if page.layout == "scatter":
        across, up = content["series"]
        parts.append(f"The horizontal axis shows {across}, the vertical axis {up}.")
        for letter, x, y in zip(content["categories"], *content["values"], strict=True):
            parts.append(f"Point {letter} is at {x} and {y}.")
        return " ".join(parts)
    number = len(content["categories"])
    parts.append(f"It compares {number} {content['plural']}; the unit is {content['unit']}.")
    for name, values in zip(content["series"], content["values"], strict=True):
        listed = enumerate_names(
            [f"{category} {value}" for category, value in zip(content["categories"], values, strict=True)]
        )
        parts.append(f"{name}: {listed}." if name else f"The values are {listed}.")
    return " ".join(parts)
