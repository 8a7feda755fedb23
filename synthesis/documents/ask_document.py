"""Asks about documents."""

import random
from collections.abc import Callable

from fusion_vlm.synthesis.documents.facts import Asker, Fact, draw_facts, make_turns
from fusion_vlm.synthesis.documents.genres import list_genres
from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import enumerate_names, read_lists
from fusion_vlm.synthesis.documents.things import show_money
from fusion_vlm.synthesis.sample import Sample, Turn


class _Document:
    """
    Asks about a document. Each field, listed entry and box is in one question at most.

    Args:
        asker (`Asker`)
        content (`dict`): of the page.
    """

    def __init__(self, asker: Asker, content: dict):
        self.asker, self.rng, self.content = asker, asker.rng, content
        fields = [field for field in content["fields"] if field["words"]]
        self.fields = self.rng.sample(fields, len(fields))
        self.items = self.rng.sample(content["items"], len(content["items"]))
        self.boxes = self.rng.sample(content["boxes"], len(content["boxes"]))

    def forms(self) -> list[Callable[[], Fact | None]]:
        """Return the questions that can be asked of this document."""
        forms = [self.field, self.field, self.field, self.is_field, self.is_field]
        if self.items:
            forms += [self.price, self.price, self.item, self.extreme, self.either, self.is_price]
            forms += [self.sum, self.difference, self.count]
        if self.boxes:
            forms += [self.is_checked, self.is_checked, self.count_checked]
        return forms

    def field(self) -> Fact | None:
        if not self.fields:
            return None
        field = self.fields.pop()
        return self.asker.fact("field", field["value"], "text", field=field["words"], choices=field["others"])

    def is_field(self) -> Fact | None:
        if not self.fields:
            return None
        field, truth = self.fields.pop(), self.asker.truth("is field")
        claimed = field["value"] if truth else self.rng.choice(field["others"])
        slots = {"field": field["words"], "t": claimed, "a": field["value"]}
        return self.asker.yes_no("is field", truth, "is field.yes_no", **slots)

    def genre(self) -> Fact:
        names = sorted({read_lists("genres")[genre]["name"] for genre in list_genres()})
        return self.asker.fact("genre", self.content["name"], "sort", choices=names)

    def take(self, number: int) -> list[dict] | None:
        """Take listed entries that no question has had, or return None if there are too few."""
        if len(self.items) < number:
            return None
        return [self.items.pop() for _ in range(number)]

    def _show(self, value: int) -> str:
        """Write a sum or a difference as the listed numbers are written."""
        return show_money(value) if self.content["items"][0]["shown"].startswith("$") else str(value)

    def price(self) -> Fact | None:
        if (items := self.take(1)) is None:
            return None
        choices = [item["shown"] for item in self.content["items"]]
        return self.asker.fact("price", items[0]["shown"], "value", choices=choices, item=items[0]["name"])

    def item(self) -> Fact | None:
        if (items := self.take(1)) is None:
            return None
        choices = [item["name"] for item in self.content["items"]]
        return self.asker.fact("item", items[0]["name"], "text", choices=choices, t=items[0]["shown"])

    def extreme(self) -> Fact | None:
        choose, section = self.rng.choice(((max, "most"), (min, "least")))
        item = choose(self.content["items"], key=lambda item: item["value"])
        if item not in self.items:
            return None
        self.items.remove(item)
        choices = [item["name"] for item in self.content["items"]]
        return self.asker.fact(section, item["name"], "text", "extreme.answer", choices, value=item["shown"])

    def either(self) -> Fact | None:
        if (items := self.take(2)) is None:
            return None
        section = self.rng.choice(("either more", "either less"))
        best, other = sorted(items, key=lambda item: item["value"], reverse=section == "either more")
        slots = {"item": items[0]["name"], "other": items[1]["name"]}
        slots |= {"value": best["shown"], "lesser": other["shown"]}
        return self.asker.fact(section, best["name"], "comparison", "either.answer", **slots)

    def is_price(self) -> Fact | None:
        if (items := self.take(1)) is None:
            return None
        truth, shown = self.asker.truth("is price"), items[0]["shown"]
        others = [item["shown"] for item in self.content["items"] if item["shown"] != shown]
        slots = {"item": items[0]["name"], "t": shown if truth else self.rng.choice(others), "a": shown}
        return self.asker.yes_no("is price", truth, "is price.yes_no", **slots)

    def sum(self) -> Fact | None:
        if (items := self.take(2)) is None:
            return None
        a, b = items
        slots = {"item": a["name"], "other": b["name"], "a": a["shown"], "b": b["shown"]}
        return self.asker.fact("sum", self._show(a["value"] + b["value"]), "value", **slots)

    def difference(self) -> Fact | None:
        if (items := self.take(2)) is None:
            return None
        low, high = sorted(items, key=lambda item: item["value"])
        slots = {"item": items[0]["name"], "other": items[1]["name"], "high": high["shown"], "low": low["shown"]}
        return self.asker.fact("difference", self._show(high["value"] - low["value"]), "value", **slots)

    def count(self) -> Fact:
        names = enumerate_names([item["name"] for item in self.content["items"]])
        return self.asker.fact("count", str(len(self.content["items"])), "count", names=names)

    def is_checked(self) -> Fact | None:
        """Ask whether a box is checked. Only a box with the answer that was drawn is asked about."""
        truth = self.asker.truth("is checked")
        boxes = [box for box in self.boxes if box["checked"] == truth]
        if not boxes:
            return None
        self.boxes.remove(boxes[0])
        slots = {"item": boxes[0]["name"], "a": "checked" if truth else "empty"}
        return self.asker.yes_no("is checked", truth, "is checked.yes_no", **slots)

    def count_checked(self) -> Fact | None:
        names = [box["name"] for box in self.content["boxes"] if box["checked"]]
        if not names or len(self.boxes) < len(self.content["boxes"]):
            return None
        self.boxes.clear()
        return self.asker.fact("count checked", str(len(names)), "count", names=enumerate_names(names))


def ask_document(sample: Sample, pages: list[Page], rng: random.Random) -> list[Turn]:
    """Write two to four turns about a document."""
    content = pages[0].content
    document = _Document(Asker(sample, rng, "documents", doc=content["name"]), content)
    facts = draw_facts(sample, rng, document.forms(), document.genre)
    return make_turns(sample, rng, facts)
