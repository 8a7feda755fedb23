"""Builds tables: rows and columns of a topic, and how they look."""

import random
from collections.abc import Sequence

from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import enumerate_names, read_lists, split_list
from fusion_vlm.synthesis.documents.styles import draw_face, draw_heading_face, draw_paper, mix, shade, tint
from fusion_vlm.synthesis.documents.table_layout import fits, show_cells
from fusion_vlm.synthesis.documents.things import (
    DAYS,
    SHOPS,
    draw_firm,
    draw_person,
    draw_phone,
    draw_things,
    show_time,
)
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.scene import draw_evenly


RULES = ("plain", "striped", "bordered", "ruled", "filled header")


def build_table(sample: Sample, rng: random.Random) -> list[Page]:
    """Build the table of a sample. Topics, looks and numbers of rows are balanced."""
    topic = list(_TOPICS)[draw_evenly(sample, "topic", len(_TOPICS))]
    title, key, others = _TOPICS[topic](rng, 3 + draw_evenly(sample, "rows", 7))
    others = rng.sample(others, min(len(others), 1 + draw_evenly(sample, "columns", 4)))
    style = _draw_style(rng, RULES[draw_evenly(sample, "rules", len(RULES))])
    while len(others) > 1 and not fits([key, *others], style):
        others.pop()
    page = Page("table", topic, {"title": title, "key": key["say"], "columns": [key, *others]}, style)
    page.caption, page.description = f"A table titled {title}", describe_table(page)
    return [page]


def column(name: str, format: str, values: Sequence, say: str = "") -> dict:
    """Return a column; `say` are the words for one of its cells, as in "the number of wins of the Hawks"."""
    return {"name": name, "format": format, "values": list(values), "say": say or name.lower()}


def _distinct(rng: random.Random, low: int, high: int, number: int, step: int = 1) -> list[int]:
    return rng.sample(range(low, high + 1, step), number)


def _statistics(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    noun = rng.choice(sorted(read_lists("categories")))
    group = read_lists("categories")[noun]
    items = [item for item in split_list(group["items"]) if len(item) < 13]
    start = rng.randrange(max(1, len(items) - number))
    names = items[start : start + number] if "ordered" in group else rng.sample(items, number)
    others = []
    for line in group["measures"].strip().split("\n"):
        measure, _, low, high = split_list(line, ";")
        values = _distinct(rng, int(low), max(int(high), int(low) + number), number)
        others.append(column(measure, "number", values, f'"{measure}" figure'))
    plural = group["plural"].title()
    titles = (
        f"Facts about {plural}",
        f"{plural} Compared",
        f"{plural}, {rng.randint(1990, 2025)}",
        f"Survey: {plural}",
    )
    return rng.choice(titles), column(noun.title(), "text", names), others


def _timetable(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    kind, key = rng.choice((("Bus", "Stop"), ("Train", "Station"), ("Ferry", "Pier"), ("Shuttle", "Stop")))
    places = draw_things(rng, "places", rng.choice(("street", "town")), number)
    start, gaps, others = rng.randrange(300, 600), [rng.randint(4, 35) for _ in range(number)], []
    names = rng.sample(["Early", "Express", "Local", "Midday", "Late", "Holiday", "School", "Market"], 4)
    for name in names:
        times = [start + sum(gaps[:index]) for index in range(number)]
        others.append(column(name, "time", times, f"{name.lower()} departure"))
        start += rng.randrange(61, 180)
    title = f"{kind} {rng.randint(2, 98)}: {rng.choice(('Timetable', 'Schedule', 'Departures'))}"
    return title, column(key, "text", places), others


def _departures(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    towns = draw_things(rng, "places", "town", number)
    codes = [f"{rng.choice('ABDFKLMNQ')}{rng.randint(100, 999)}" for _ in range(number)]
    times = sorted(_distinct(rng, 300, 1200, number, 5))
    vehicle, place = rng.choice(("Flight", "Train", "Coach", "Boat")), rng.choice(("Gate", "Platform", "Track", "Bay"))
    leaves, arrives = rng.choice((("Departs", "Arrives"), ("Leaves", "Gets In")))
    others = [
        column(vehicle, "text", codes, f"{vehicle.lower()} number"),
        column(leaves, "time", times, "departure time"),
        column(arrives, "time", [time + rng.randint(35, 230) for time in times], "arrival time"),
        column(place, "text", list(map(str, _distinct(rng, 1, 60, number))), f"{place.lower()} number"),
    ]
    key = rng.choice(("Destination", "Town", "To"))
    title = rng.choice(("Departures", "Departures Today", "Now Leaving", "Connections"))
    return title, column(key, "text", towns, "destination"), others


def _prices(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    sort = rng.choice(sorted(SHOPS))
    single = _distinct(rng, 95, 2495, number, 5)
    codes = [f"{rng.choice('ACEHJKPRTX')}{rng.randint(10, 99)}" for _ in range(number)]
    others = [
        column(rng.choice(("Price", "Each", "Unit Price", "Cost")), "money", single, "price"),
        column(
            rng.choice(("Dozen", "Per Dozen", "Pack of 12")),
            "money",
            [12 * cents - 50 for cents in single],
            "price for twelve",
        ),
        column(
            rng.choice(("In Stock", "Stock", "On Hand", "Left")), "number", _distinct(rng, 2, 150, number), "stock"
        ),
        column(rng.choice(("Code", "No.", "Shelf")), "text", codes, "code"),
    ]
    title = f"{draw_firm(rng, sort)}: {rng.choice(('Prices', 'Price List', 'Offers'))}"
    key = rng.choice(("Item", "Product", "Article"))
    return title, column(key, "text", draw_things(rng, "goods", sort, number)), others


def _standings(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    teams = rng.sample(split_list(read_lists("categories")["team"]["items"]), number)
    won = sorted(_distinct(rng, 2, 40, number), reverse=True)
    others = [
        column(rng.choice(("Won", "Wins", "W")), "number", won, "number of wins"),
        column(rng.choice(("Lost", "Losses", "L")), "number", _distinct(rng, 1, 40, number), "number of losses"),
        column(rng.choice(("Drawn", "Draws", "D")), "number", _distinct(rng, 0, 20, number), "number of draws"),
        column(rng.choice(("Goals", "Scored", "GF")), "number", _distinct(rng, 10, 99, number), "number of goals"),
    ]
    sport = rng.choice(split_list(read_lists("categories")["sport"]["items"]))
    return (
        f"{sport} League, Week {rng.randint(2, 30)}",
        column(rng.choice(("Team", "Club")), "text", teams, "team"),
        others,
    )


def _lessons(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    start, length = rng.randrange(450, 620, 5), rng.choice((35, 40, 45, 50, 55, 65))
    times = [show_time(start + index * length) for index in range(number)]
    others = []
    for day in DAYS:
        subjects = draw_things(rng, "school", "subject", number)
        others.append(column(day[:3], "text", subjects, f"{day} class"))
    title = f"{draw_person(rng)}: {rng.choice(('Classes', 'Lessons', 'Weekly Schedule'))}"
    return title, column(rng.choice(("Time", "Begins", "Hour")), "text", times, "time"), others


def _contacts(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    names = list(dict.fromkeys(draw_person(rng) for _ in range(4 * number)))[:number]
    rooms, jobs = _distinct(rng, 100, 499, number), split_list(read_lists("fillers")["lists"]["job"])
    others = [
        column(rng.choice(("Phone", "Telephone", "Call")), "text", [draw_phone(rng) for _ in names], "phone number"),
        column(rng.choice(("Room", "Office", "Desk")), "text", list(map(str, rooms)), "room number"),
        column(rng.choice(("Town", "Home", "Branch")), "text", draw_things(rng, "places", "town", number), "town"),
        column(rng.choice(("Job", "Position", "Role")), "text", rng.sample(jobs, number), "job"),
    ]
    title = f"{draw_firm(rng, 'office')}: {rng.choice(('Contacts', 'Staff', 'Directory'))}"
    return title, column(rng.choice(("Name", "Person", "Contact")), "text", names, "person"), others


def _weather(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    highs = _distinct(rng, 48, 98, number)
    lows = [high - rng.randint(8, 24) for high in highs]
    others = [
        column(rng.choice(("High", "Max.", "Day")), "degrees", highs, "high temperature"),
        column(rng.choice(("Low", "Min.", "Night")), "degrees", lows, "low temperature"),
        column(
            rng.choice(("Rain", "Showers", "Rain Risk")), "percent", _distinct(rng, 0, 95, number, 5), "chance of rain"
        ),
        column(rng.choice(("Wind", "Gusts", "mph")), "number", _distinct(rng, 1, 60, number), "wind speed"),
    ]
    title = f"Weather on {rng.choice(DAYS)}, Week {rng.randint(1, 52)}"
    return (
        title,
        column(rng.choice(("Town", "Place")), "text", draw_things(rng, "places", "town", number), "town"),
        others,
    )


def _books(rng: random.Random, number: int) -> tuple[str, dict, list[dict]]:
    firsts, seconds = (draw_things(rng, "books", name, number) for name in ("first", "second"))
    titles = [f"{first} {second}" for first, second in zip(firsts, seconds, strict=True)]
    pages = _distinct(rng, 90, 640, number)
    others = [
        column(rng.choice(("Author", "Writer", "By")), "text", draw_things(rng, "people", "last", number), "author"),
        column(
            rng.choice(("Year", "Printed", "Dated")), "year", _distinct(rng, 1901, 2024, number), "year of publication"
        ),
        column(rng.choice(("Pages", "Length", "pp.")), "number", pages, "number of pages"),
        column(
            rng.choice(("Copies", "On Shelf", "Loans")), "number", _distinct(rng, 1, 60, number), "number of copies"
        ),
    ]
    title = rng.choice(("Reading List", "New Arrivals", "Books on Loan", "Catalog", "Staff Picks"))
    return title, column(rng.choice(("Book", "Title")), "text", titles, "book"), others


_TOPICS = {
    "statistics": _statistics,
    "timetable": _timetable,
    "departures": _departures,
    "price list": _prices,
    "standings": _standings,
    "lessons": _lessons,
    "contacts": _contacts,
    "weather": _weather,
    "books": _books,
}


def _draw_style(rng: random.Random, rules: str) -> dict:
    paper, ink = draw_paper(rng, dark_share=0.1)
    return {
        "rules": rules,
        "face": draw_face(rng, ("sans", "serif", "mono")),
        "title_face": draw_heading_face(rng),
        "paper": paper,
        "ink": ink,
        "line": mix(paper, ink, rng.uniform(0.25, 0.6)),
        "stripe": tint(rng) if sum(paper) > 384 else mix(paper, ink, 0.12),
        "header": shade(rng),
        "header_ink": (255, 255, 255),
        "title_side": rng.choice(("l", "m")),
        "number_side": rng.choice(("r", "r", "m")),
        "capitals": rng.uniform(0.024, 0.034),
        "row_height": rng.uniform(2.3, 5.0),
        "place": rng.random(),
        "is_bold_key": rng.random() < 0.3,
    }


def describe_table(page: Page) -> str:
    """Describe all of a table in sentences."""
    first, *others = page.content["columns"]
    parts = [f'The image shows a table with the title "{page.content["title"]}".']
    names = enumerate_names([column["name"] for column in page.content["columns"]])
    parts.append(f"Its columns are {names}.")
    cells = [show_cells(column) for column in others]
    for index, key in enumerate(show_cells(first)):
        entries = [f"{column['name']} {shown[index]}" for column, shown in zip(others, cells, strict=True)]
        parts.append(f"{key}: {', '.join(entries)}.")
    return " ".join(parts)
