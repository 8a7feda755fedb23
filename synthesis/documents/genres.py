"""Builds documents: letters, forms, receipts and the like, with invented content."""

import random
import re
from datetime import date, timedelta
from functools import cache

from fusion_vlm.synthesis.documents import things
from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import read_lists, split_list
from fusion_vlm.synthesis.documents.styles import draw_face, draw_heading_face, draw_paper, mix, shade, tint
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.scene import draw_evenly


# What fills a slot, by its sort; other sorts are lists of fillers.ini or of goods.
_FILLERS = {
    "person": things.draw_person,
    "first name": lambda rng: things.draw_thing(rng, "people", "first"),
    "address": things.draw_address,
    "street": lambda rng: f"{things.draw_thing(rng, 'places', 'street')} {things.draw_thing(rng, 'places', 'way')}",
    "town": lambda rng: things.draw_thing(rng, "places", "town"),
    "venue": lambda rng: things.draw_thing(rng, "places", "venue"),
    "time": things.draw_time,
    "phone": things.draw_phone,
    "code": things.draw_code,
    "account": lambda rng: " ".join(f"{rng.randrange(10000):04}" for _ in range(3)),
    "firm": lambda rng: things.draw_firm(rng, "office"),
    "shop": lambda rng: things.draw_firm(rng, "shop"),
    "money": lambda rng: things.show_money(rng.randrange(500, 30000, 25)),
    "room": lambda rng: f"Room {rng.randint(100, 599)}",
    "book": lambda rng: f"The {things.draw_thing(rng, 'books', 'first')} {things.draw_thing(rng, 'books', 'second')}",
    "year": lambda rng: str(rng.randint(1890, 2024)),
    "page number": lambda rng: str(rng.randint(2, 98)),
    "score": lambda rng: f"{rng.randint(10, 99)} of 100",
    "minutes": lambda rng: f"{rng.randrange(12, 95)} minutes",
    "heat": lambda rng: f"{rng.randrange(275, 476, 5)} degrees",
    "people": lambda rng: f"{rng.randint(2, 24)} people",
    "hours": lambda rng: f"{rng.randint(6, 11)} AM to {rng.randint(2, 11)} PM",
    "row": lambda rng: rng.choice("BCDEFGHJKLMNPQRSTUVWXYZ"),
    "seat": lambda rng: f"{rng.randint(1, 48)}{rng.choice('ABCDEF')}",
    "weight": lambda rng: f"{rng.randrange(5, 480) / 10} lb",
}


# Days from the day of a document, as lowest and highest.
_DAYS = {
    "date": (0, 0),
    "next date": (2, 90),
    "past date": (-60, -2),
    "birth date": (-26000, -6600),
    "short date": (0, 0),
    "short next date": (300, 2600),
    "short birth date": (-26000, -6600),
}


def fill(rng: random.Random, sort: str, today: date) -> str:
    """Draw what fills a slot of this sort, in a document of this day."""
    if sort in _DAYS:
        day = today + timedelta(rng.randint(*_DAYS[sort]))
        return f"{day:%m/%d/%Y}" if sort.startswith("short") else f"{day:%B} {day.day}, {day.year}"
    if sort in _FILLERS:
        return _FILLERS[sort](rng)
    if sort in read_lists("fillers")["lists"]:
        return rng.choice(split_list(read_lists("fillers")["lists"][sort]))
    return things.draw_thing(rng, "goods", sort)


@cache
def list_genres() -> tuple[str, ...]:
    """Return the names of all genres."""
    return tuple(read_lists("genres"))


def build_document(sample: Sample, rng: random.Random) -> list[Page]:
    """Build the document of a sample. The genres are balanced."""
    genre = list_genres()[draw_evenly(sample, "genre", len(list_genres()))]
    record = read_lists("genres")[genre]
    fields = _fill_slots(rng, record["slots"])
    values = {field["slot"]: field["value"] for field in fields}
    goods = record.get("goods", "").split()
    blocks, items, boxes = [], [], []
    for line in record["lines"].strip().split("\n"):
        if line.startswith("* "):
            items, total = _draw_items(rng, rng.choice(goods), line)
            blocks += [{"kind": "item", "left": item["name"], "right": item["shown"]} for item in items]
            blocks += total
        elif line.startswith("+ "):
            boxes.append({"name": line[2:], "checked": rng.random() < 0.5})
            blocks.append({"kind": "box", "text": line[2:], "checked": boxes[-1]["checked"]})
        else:
            blocks.append(_read_line(line, values))
    content = {"name": record["name"], "blocks": blocks, "fields": fields, "items": items, "boxes": boxes}
    page = Page("document", genre, content, _draw_style(rng, record["paper"]))
    page.caption, page.description = f"A document: {record['name']}", describe_document(page)
    return [page]


def _fill_slots(rng: random.Random, text: str) -> list[dict]:
    """Fill the slots of a genre, no two of a sort with the same."""
    fields, seen, today = [], set(), date(rng.randint(1985, 2026), 1, 1) + timedelta(rng.randrange(365))
    for line in text.strip().split("\n"):
        slot, sort, words = (part.strip() for part in f"{line};".split(";")[:3])
        value = fill(rng, sort, today)
        while value in seen:
            value = fill(rng, sort, today)
        seen.add(value)
        fields.append(
            {"slot": slot, "sort": sort, "words": words, "value": value, "others": _draw_others(rng, sort, value)}
        )
    return fields


def _draw_others(rng: random.Random, sort: str, value: str) -> list[str]:
    """Draw three other things of a sort, which a question may claim or offer. Dates are of other days."""
    others: list[str] = []
    while len(others) < 3:
        other = fill(rng, sort, date(rng.randint(1985, 2026), 1, 1) + timedelta(rng.randrange(365)))
        if other != value and other not in others:
            others.append(other)
    return others


def _read_line(line: str, values: dict[str, str]) -> dict:
    """Return the block of a line, with its slots filled."""
    filled = line.format(**values) if "{" in line else line
    if line == "-":
        return {"kind": "rule"}
    for mark, kind in (("! ", "heading"), ("= ", "center"), ("> ", "paragraph")):
        if line.startswith(mark):
            return {"kind": kind, "text": filled[2:]}
    field = re.fullmatch(r"([^{}:]+): \{(\w+)\}", line)
    if field:
        return {"kind": "field", "left": field[1], "right": values[field[2]]}
    return {"kind": "line", "text": filled}


def _draw_items(rng: random.Random, sort: str, line: str) -> tuple[list[dict], list[dict]]:
    """Draw the goods of a line `* FEWEST MOST [total|points]`, and the block of the total."""
    _, fewest, most, *option = line.split()
    number = rng.randint(int(fewest), int(most))
    section = "school" if sort == "subject" else "goods"
    names = things.draw_things(rng, section, sort, number)
    if option == ["points"]:
        values, show = rng.sample(range(45, 100), number), str
    else:
        values, show = rng.sample(range(95, 3495, 5), number), things.show_money
    items = [{"name": name, "value": value, "shown": show(value)} for name, value in zip(names, values, strict=True)]
    total = [{"kind": "rule"}, {"kind": "item", "left": "Total", "right": show(sum(values)), "bold": True}]
    return items, total if option == ["total"] else []


def _draw_style(rng: random.Random, paper: str) -> dict:
    color, ink = draw_paper(rng, dark_share=0.08 if paper == "poster" else 0.0)
    designs = ("mono", "mono", "sans") if paper == "strip" else ("sans", "serif", "mono")
    is_dark = sum(color) < 384
    return {
        "paper": paper,
        "face": draw_face(rng, (rng.choice(designs),)),
        "heading_face": draw_heading_face(rng),
        "color": color if paper != "poster" or rng.random() < 0.5 or is_dark else tint(rng),
        "ink": ink,
        "heading_color": ink if is_dark or rng.random() < 0.5 else shade(rng),
        "label_color": mix(ink, color, rng.choice((0.0, 0.25))),
        "ground": mix(tint(rng), (0, 0, 0), rng.uniform(0.1, 0.5)),
        "line": mix(color, ink, rng.uniform(0.3, 0.6)),
        "capitals": rng.uniform(0.023, 0.034),
        "spacing": rng.uniform(1.9, 2.4),
        "label_width": rng.choice((0.0, 0.34, 0.4)),
        "has_lines": rng.random() < 0.4,
        "has_frame": rng.random() < 0.4,
        "mark": rng.choice(("cross", "tick", "fill")),
        "tilt": rng.choice((0.0, 0.0, rng.uniform(-4, 4))),
    }


def describe_document(page: Page) -> str:
    """Describe all that is written on a document, from top to bottom."""
    parts = [f"The image shows a document of the sort: {page.content['name']}. It reads:"]
    for block in page.content["blocks"]:
        if block["kind"] in ("field", "item"):
            parts.append(f"{block['left']}: {block['right']}.")
        elif block["kind"] == "box":
            parts.append(f'The box "{block["text"]}" is {"checked" if block["checked"] else "not checked"}.')
        elif block["kind"] != "rule":
            parts.append(block["text"] if block["text"][-1] in ".!?," else f"{block['text']}.")
    return " ".join(parts)
