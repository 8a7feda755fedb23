"""Asks about tables."""

import random
from collections.abc import Callable

from fusion_vlm.synthesis.documents.facts import Asker, Fact, draw_facts, draw_place, make_turns
from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import enumerate_names, read_phrases
from fusion_vlm.synthesis.documents.table_layout import FORMATS, show_cells
from fusion_vlm.synthesis.sample import Sample, Turn


_LARGEST_SUM = 5  # rows that a question for a total adds up
_NUMBERS = ("number", "money")  # formats that can be added
_DATES = ("time", "year")  # formats with an earliest and a latest entry


class _Table:
    """
    Asks about a table. Each row is in one question at most, and so is each column that a question goes through.

    Args:
        asker (`Asker`)
        content (`dict`): of the page.
    """

    def __init__(self, asker: Asker, content: dict):
        self.asker, self.rng, self.content = asker, asker.rng, content
        self.first, *self.others = content["columns"]
        self.keys = show_cells(self.first)
        self.free = self.rng.sample(range(len(self.keys)), len(self.keys))
        self.ordered = [column for column in self.others if column["format"] != "text"]
        self.numbers = [column for column in self.others if column["format"] in _NUMBERS]
        self.unused = self.rng.sample(self.ordered, len(self.ordered))

    def forms(self) -> list[Callable[[], Fact | None]]:
        """Return the questions that can be asked of this table."""
        forms = [self.cell, self.cell, self.reverse, self.is_cell, self.is_cell, self.neighbor, self.count_rows]
        forms += [self.count_columns, self.title, self.header]
        if self.ordered:
            forms += [self.extreme, self.extreme]
        if any(column["format"] not in _DATES for column in self.ordered):
            forms += [self.either, self.either, self.is_more, self.count_above]
        if self.numbers:
            forms += [self.difference, self.sum] + [self.total] * (len(self.keys) <= _LARGEST_SUM)
        return forms

    def take(self, number: int) -> list[int] | None:
        """Take rows that no question has had, or return None if there are too few."""
        if len(self.free) < number:
            return None
        return [self.free.pop() for _ in range(number)]

    def cell(self) -> Fact | None:
        if (rows := self.take(1)) is None:
            return None
        column = self.rng.choice(self.others)
        cells = show_cells(column)
        type = "text" if column["format"] in ("text", *_DATES) else "value"
        return self.asker.fact("cell", cells[rows[0]], type, row=self.keys[rows[0]], choices=cells, **_name(column))

    def reverse(self) -> Fact | None:
        if (rows := self.take(1)) is None:
            return None
        column = self.rng.choice(self.others)
        cells = show_cells(column)
        if cells.count(cells[rows[0]]) > 1:
            return None
        key = self.keys[rows[0]]
        return self.asker.fact("reverse", key, "text", choices=self.keys, t=cells[rows[0]], **_name(column))

    def is_cell(self) -> Fact | None:
        if (rows := self.take(1)) is None:
            return None
        column = self.rng.choice(self.others)
        cells, truth = show_cells(column), self.asker.truth("is cell")
        cell = cells[rows[0]]
        others = [other for other in cells if other != cell]
        if not others:
            return None
        slots = {"row": self.keys[rows[0]], "a": cell, **_name(column)}
        return self.asker.yes_no(
            "is cell", truth, "is cell.yes_no", t=cell if truth else self.rng.choice(others), **slots
        )

    def neighbor(self) -> Fact | None:
        if (rows := self.take(1)) is None:
            return None
        section, step = self.rng.choice((("next", 1), ("before", -1)))
        if not 0 <= rows[0] + step < len(self.keys):
            return None
        answer = self.keys[rows[0] + step]
        return self.asker.fact(section, answer, "text", "neighbor.answer", self.keys, row=self.keys[rows[0]])

    def extreme(self) -> Fact | None:
        """Ask for the row with the highest or lowest entry of a column, if only one row has it."""
        if not self.unused:
            return None
        column = self.unused.pop()
        sections = ("latest", "earliest") if column["format"] in _DATES else ("highest", "lowest")
        choose, section = self.rng.choice(((max, sections[0]), (min, sections[1])))
        value = choose(column["values"])
        row = column["values"].index(value)
        if column["values"].count(value) > 1 or row not in self.free:
            return None
        self.free.remove(row)
        slots = {**_name(column), "value": show_cells(column)[row]}
        return self.asker.fact(section, self.keys[row], "text", "extreme.answer", self.keys, **slots)

    def _draw_pair(self, columns: list[dict]) -> tuple[dict, list[int]] | None:
        """Draw a column and two unused rows whose entries differ."""
        column = self.rng.choice(columns)
        if (rows := self.take(2)) is None or column["values"][rows[0]] == column["values"][rows[1]]:
            return None
        return column, rows

    def either(self) -> Fact | None:
        pair = self._draw_pair([column for column in self.ordered if column["format"] not in _DATES])
        if pair is None:
            return None
        column, rows = pair
        section = self.rng.choice(("either more", "either less"))
        best, other = sorted(rows, key=column["values"].__getitem__, reverse=section == "either more")
        cells = show_cells(column)
        slots = {"row": self.keys[rows[0]], "other": self.keys[rows[1]], **_name(column)}
        slots |= {"value": cells[best], "lesser": cells[other]}
        return self.asker.fact(section, self.keys[best], "comparison", "either.answer", **slots)

    def is_more(self) -> Fact | None:
        pair = self._draw_pair([column for column in self.ordered if column["format"] not in _DATES])
        if pair is None:
            return None
        column, rows = pair
        section, truth = self.rng.choice(("is more", "is less")), self.asker.truth("is more")
        rows.sort(key=column["values"].__getitem__, reverse=truth == (section == "is more"))
        cells = show_cells(column)
        slots = {"row": self.keys[rows[0]], "other": self.keys[rows[1]], **_name(column)}
        return self.asker.yes_no(section, truth, "compare.yes_no", a=cells[rows[0]], b=cells[rows[1]], **slots)

    def difference(self) -> Fact | None:
        if (pair := self._draw_pair(self.numbers)) is None:
            return None
        column, rows = pair
        show = FORMATS[column["format"]]
        low, high = sorted(column["values"][row] for row in rows)
        slots = {"row": self.keys[rows[0]], "other": self.keys[rows[1]], **_name(column)}
        return self.asker.fact("difference", show(high - low), "value", high=show(high), low=show(low), **slots)

    def sum(self) -> Fact | None:
        if (pair := self._draw_pair(self.numbers)) is None:
            return None
        column, rows = pair
        show = FORMATS[column["format"]]
        a, b = (column["values"][row] for row in rows)
        slots = {"row": self.keys[rows[0]], "other": self.keys[rows[1]], **_name(column)}
        return self.asker.fact("sum", show(a + b), "value", a=show(a), b=show(b), **slots)

    def total(self) -> Fact:
        column = self.rng.choice(self.numbers)
        show, terms = FORMATS[column["format"]], " + ".join(show_cells(column))
        return self.asker.fact("total", show(sum(column["values"])), "value", terms=terms, **_name(column))

    def count_rows(self) -> Fact:
        return self.asker.fact("count rows", str(len(self.keys)), "count")

    def count_columns(self) -> Fact:
        names = enumerate_names([column["name"] for column in self.content["columns"]])
        return self.asker.fact("count columns", str(len(self.others) + 1), "count", names=names)

    def count_above(self) -> Fact | None:
        """Count the entries above a number, or below: the number lies between two entries."""
        column = self.rng.choice([column for column in self.ordered if column["format"] not in _DATES])
        ranked = sorted(set(column["values"]))
        section, place = self.rng.choice(("count above", "count below")), draw_place(self.rng, len(ranked))
        if place is None:
            return None
        if section == "count above":
            place = len(ranked) - place
        unit = 5 if column["format"] == "money" else 1
        limits = range(ranked[place - 1] + unit, ranked[place], unit)
        if not limits:
            return None
        limit = self.rng.choice(limits)
        rows = [row for row, value in enumerate(column["values"]) if (value > limit) == (section == "count above")]
        slots = {**_name(column), "t": FORMATS[column["format"]](limit)}
        slots["names"] = enumerate_names([self.keys[row] for row in rows])
        return self.asker.fact(section, str(len(rows)), "count", "count above.answer", **slots)

    def title(self) -> Fact:
        return self.asker.fact("title", self.content["title"], "text")

    def header(self) -> Fact:
        number = self.rng.randint(1, len(self.others) + 1)
        names = [column["name"] for column in self.content["columns"]]
        return self.asker.fact("header", names[number - 1], "text", choices=names, t=str(number))


def _name(column: dict) -> dict[str, str]:
    return {"head": column["name"], "col": column["say"]}


def ask_table(sample: Sample, pages: list[Page], rng: random.Random) -> list[Turn]:
    """Write two to four turns about a table."""
    content = pages[0].content
    words = rng.choice(read_phrases("tables")["table"])
    table = _Table(Asker(sample, rng, "tables", table=words, key=content["key"]), content)
    return make_turns(sample, rng, draw_facts(sample, rng, table.forms()))
