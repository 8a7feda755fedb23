"""Asks about charts."""

import random
from collections.abc import Callable

from fusion_vlm.synthesis.documents.charts import LAYOUTS, SHARES
from fusion_vlm.synthesis.documents.facts import Asker, Fact, draw_facts, draw_place, make_turns
from fusion_vlm.synthesis.documents.page import Page
from fusion_vlm.synthesis.documents.phrases import enumerate_names, phrase, read_phrases
from fusion_vlm.synthesis.sample import Sample, Turn


_LARGEST_ORDER = 5  # names that a ranking lists


class Column:
    """
    Asks about the values of one series, or of all series at one category.

    Each name is in one question at most, so that no turn tells the answer of another.

    Args:
        asker (`Asker`)
        values (`dict[str, int]`): by name; all differ.
        step (`int`): of the axis.
        has_labels (`bool`): whether the values are written at the bars.
        is_ordered (`bool`): whether the names are in the order of time.
        sign (`str`): behind each value.
    """

    def __init__(self, asker: Asker, values: dict[str, int], step: int, has_labels: bool, is_ordered: bool, sign: str):
        self.asker, self.rng, self.values, self.step = asker, asker.rng, values, step
        self.has_labels, self.is_ordered, self.sign = has_labels, is_ordered, sign
        self.free = self.rng.sample(list(values), len(values))
        self.ranked = sorted(values, key=values.get, reverse=True)

    def forms(self) -> list[Callable[[], Fact | None]]:
        """Return the questions that can be asked of these values."""
        forms = [self.extreme, self.either, self.is_more]
        if len(self.values) > 2:
            forms += [self.second]
        if len(self.values) <= _LARGEST_ORDER:
            forms += [self.order]
        if self.has_labels or not self.sign:
            forms += [self.value, self.value, self.extreme_value, self.is_value, self.is_above]
            forms += [self.difference, self.sum, self.average]
            forms += [self.count_above] * (len(self.values) > 2)
            forms += [self.rise_or_fall] * (2 * self.is_ordered)
        return forms

    def show(self, number: int) -> str:
        return f"{number}{self.sign}"

    def take(self, number: int) -> list[str] | None:
        """Take names that no question has had, or return None if there are too few."""
        if len(self.free) < number:
            return None
        return [self.free.pop() for _ in range(number)]

    def value(self) -> Fact | None:
        if (names := self.take(1)) is None:
            return None
        choices = [self.show(number) for number in self.values.values()]
        return self.asker.fact("value", self.show(self.values[names[0]]), "value", cat=names[0], choices=choices)

    def extreme(self) -> Fact | None:
        section = self.rng.choice(("highest", "lowest"))
        name = self.ranked[0 if section == "highest" else -1]
        return self._name(section, name)

    def second(self) -> Fact | None:
        return self._name("second", self.ranked[1])

    def _name(self, section: str, name: str) -> Fact | None:
        if name not in self.free:
            return None
        self.free.remove(name)
        value = self.show(self.values[name]) if self.has_labels or not self.sign else "its share"
        return self.asker.fact(section, name, "text", value=value, choices=list(self.values))

    def extreme_value(self) -> Fact | None:
        section = self.rng.choice(("highest value", "lowest value"))
        name = self.ranked[0 if section == "highest value" else -1]
        choices = [self.show(number) for number in self.values.values()]
        return self.asker.fact(section, self.show(self.values[name]), "value", cat=name, choices=choices)

    def either(self) -> Fact | None:
        if (names := self.take(2)) is None:
            return None
        section = self.rng.choice(("either more", "either less"))
        name = (max if section == "either more" else min)(names, key=self.values.get)
        (other,) = set(names) - {name}
        fact = self.asker.fact(
            section,
            name,
            "comparison",
            "either.answer",
            cat=names[0],
            other=names[1],
            value=self.show(self.values[name]),
            lesser=self.show(self.values[other]),
        )
        if self.sign and not self.has_labels:
            fact.sentence = f"It is {name}."
        return fact

    def is_more(self) -> Fact | None:
        if (names := self.take(2)) is None:
            return None
        section = self.rng.choice(("is more", "is less"))
        truth = self.asker.truth("is more")
        names.sort(key=self.values.get, reverse=truth == (section == "is more"))
        a, b = (self.show(self.values[name]) for name in names)
        fact = self.asker.yes_no(section, truth, "compare.yes_no", cat=names[0], other=names[1], a=a, b=b)
        if self.sign and not self.has_labels:
            fact.sentence = f"{fact.answer}."
        return fact

    def is_value(self) -> Fact | None:
        if (names := self.take(1)) is None:
            return None
        truth = self.asker.truth("is value")
        value = self.values[names[0]]
        claimed = value if truth else self.rng.choice([other for other in self.values.values() if other != value])
        slots = {"cat": names[0], "t": self.show(claimed), "a": self.show(value)}
        return self.asker.yes_no("is value", truth, "is value.yes_no", **slots)

    def is_above(self) -> Fact | None:
        """Ask whether a value is above a number, or below. There are values on both sides of the number."""
        limit = self._limit(self.rng.randrange(1, len(self.values)))
        if limit is None:
            return None
        section, truth = self.rng.choice(("is above", "is below")), self.asker.truth("is above")
        is_above = truth == (section == "is above")
        names = [name for name in self.free if (self.values[name] > limit) == is_above]
        if not names:
            return None
        self.free.remove(names[0])
        slots = {"cat": names[0], "t": self.show(limit), "a": self.show(self.values[names[0]])}
        return self.asker.yes_no(section, truth, "is value.yes_no", **slots)

    def _limit(self, place: int) -> int | None:
        """Return a number below the first `place` of the ranking and above the others, or None if none is simple."""
        high, low = self.values[self.ranked[place - 1]], self.values[self.ranked[place]]
        unit = 1 if self.has_labels else max(1, self.step // 2)
        first = (low // unit + 1) * unit
        numbers = list(range(first, high, unit))
        return self.rng.choice(numbers) if numbers else None

    def count_above(self) -> Fact | None:
        place = draw_place(self.rng, len(self.values))
        if place is None:
            return None
        section = self.rng.choice(("count above", "count below"))
        limit = self._limit(place if section == "count above" else len(self.values) - place)
        if limit is None:
            return None
        names = self.ranked[:place] if section == "count above" else self.ranked[-place:]
        slots = {"t": self.show(limit), "names": enumerate_names(names)}
        return self.asker.fact(section, str(len(names)), "count", "count above.answer", **slots)

    def difference(self) -> Fact | None:
        if (names := self.take(2)) is None:
            return None
        low, high = sorted(self.values[name] for name in names)
        slots = {"cat": names[0], "other": names[1], "high": self.show(high), "low": self.show(low)}
        return self.asker.fact("difference", self.show(high - low), "value", **slots)

    def sum(self) -> Fact | None:
        return self._combine("sum", lambda a, b: a + b)

    def average(self) -> Fact | None:
        return self._combine("average", lambda a, b: (a + b) / 2)

    def _combine(self, section: str, combine: Callable[[int, int], float]) -> Fact | None:
        if (names := self.take(2)) is None:
            return None
        a, b = (self.values[name] for name in names)
        slots = {"cat": names[0], "other": names[1], "a": self.show(a), "b": self.show(b)}
        return self.asker.fact(section, f"{combine(a, b):g}{self.sign}", "value", **slots)

    def order(self) -> Fact | None:
        if len(self.free) < len(self.values):
            return None
        self.free.clear()
        return self.asker.fact("order", ", ".join(self.ranked), "text")

    def rise_or_fall(self) -> Fact | None:
        if (names := self.take(2)) is None:
            return None
        times = list(self.values)
        before, after = sorted(names, key=times.index)
        wording, up, down = self.rng.choice(read_phrases("charts")["rise or fall"]).split("; ")
        first, last = self.rng.sample([up, down], 2)
        word = phrase(self.rng, "pages", "chart") if "{chart}" in wording else ""
        question = wording.format(cat=before, other=after, first=first, last=f"or {last}", chart=word)
        question = question.replace("or or ", "or ")
        values = [self.values[before], self.values[after]]
        answer = up if values[1] > values[0] else down
        slots = {"before": self.show(values[0]), "after": self.show(values[1])}
        sentence = self.asker.say("rise or fall.answer", answer=answer, **slots)
        return Fact(self.asker.prefix + question, answer, sentence, "comparison")


def ask_chart(sample: Sample, pages: list[Page], rng: random.Random) -> list[Turn]:
    """Write two to four turns about a chart."""
    page, content = pages[0], pages[0].content
    slots = {name: content[name] for name in ("measure", "noun", "plural", "unit")}
    asker = Asker(sample, rng, "charts", **slots)
    whole = _list_whole(page, asker)
    if page.layout == "scatter":
        forms = _Points(asker, content).forms() + whole
    elif content["series"][0]:
        forms = _list_parts(page, asker) + whole
    else:
        forms = _build_column(page, asker, content["categories"], content["values"][0]).forms() + whole

    def ask_layout() -> Fact:
        return asker.fact("type", LAYOUTS[page.layout], "sort", choices=list(LAYOUTS.values()))

    return make_turns(sample, rng, draw_facts(sample, rng, forms, ask_layout))


def _build_column(page: Page, asker: Asker, names: list[str], values: list[int], in_time: bool = True) -> Column:
    content = page.content
    sign = "%" if page.layout in SHARES else ""
    is_ordered = in_time and content["ordered"] and page.layout not in SHARES
    return Column(asker, dict(zip(names, values, strict=True)), content["step"], content["labels"], is_ordered, sign)


def _list_whole(page: Page, asker: Asker) -> list[Callable[[], Fact | None]]:
    """List the questions about a chart as a whole."""
    content = page.content

    def count() -> Fact:
        section = "point count" if page.layout == "scatter" else "count"
        return asker.fact(section, str(len(content["categories"])), "count")

    def title() -> Fact:
        return asker.fact("title", content["title"], "text")

    def unit() -> Fact:
        return asker.fact("unit", content["unit"], "text")

    return [count, title] + [unit] * (page.layout not in (*SHARES, "scatter"))


def _list_parts(page: Page, asker: Asker) -> list[Callable[[], Fact | None]]:
    """List questions about a chart of several series: about one series, about one category, and about the legend."""
    content, rng = page.content, asker.rng
    series, categories = content["series"], content["categories"]
    rows = dict(zip(series, content["values"], strict=True))
    columns = {name: [row[index] for row in content["values"]] for index, name in enumerate(categories)}
    free = rng.sample(categories, len(categories))

    def value() -> Fact | None:
        if not free:
            return None
        name, one = free.pop(), rng.choice(series)
        choices = [str(number) for row in content["values"] for number in row]
        number = str(rows[one][categories.index(name)])
        return asker.fact("series value", number, "value", cat=name, series=one, choices=choices)

    def leader() -> Fact | None:
        if not free:
            return None
        name = free.pop()
        best = max(range(len(series)), key=lambda index: columns[name][index])
        slots = {"cat": name, "value": str(columns[name][best])}
        return asker.fact("leading series", series[best], "text", choices=series, **slots)

    def total() -> Fact | None:
        if not free:
            return None
        name = free.pop()
        terms = " + ".join(map(str, columns[name]))
        return asker.fact("series total", str(sum(columns[name])), "value", cat=name, terms=terms)

    def num_series() -> Fact:
        return asker.fact("series count", str(len(series)), "count", names=enumerate_names(series))

    def about_series() -> Fact | None:
        name = rng.choice(series)
        return _focus(asker, name, _build_column(page, asker, categories, rows[name]))

    def about_category() -> Fact | None:
        if not free:
            return None
        name = free.pop()
        words = {"noun": "series", "plural": "series"}
        return _focus(asker, name, _build_column(page, asker, series, columns[name], False), **words)

    return [value, value, leader, total, num_series, about_series, about_series, about_category]


def _focus(asker: Asker, name: str, column: Column, **words: str) -> Fact | None:
    """Ask about a part of a chart, which the question names first."""
    asker.prefix = asker.say("focus", name=name) + " "
    before, asker.slots = asker.slots, {**asker.slots, **words}
    fact = asker.rng.choice(column.forms())()
    asker.prefix, asker.slots = "", before
    return fact


class _Points:
    """Asks about a scatter plot."""

    def __init__(self, asker: Asker, content: dict):
        self.asker, self.rng = asker, asker.rng
        self.x, self.y = (dict(zip(content["categories"], row, strict=True)) for row in content["values"])
        self.free = self.rng.sample(list(self.x), len(self.x))

    def forms(self) -> list[Callable[[], Fact | None]]:
        return [self.read_x, self.read_y, self.read_y, self.highest, self.rightmost, self.is_higher, self.is_higher]

    def read_x(self) -> Fact | None:
        return self._read("point x", self.x)

    def read_y(self) -> Fact | None:
        return self._read("point y", self.y)

    def _read(self, section: str, places: dict[str, int]) -> Fact | None:
        if not self.free:
            return None
        letter = self.free.pop()
        choices = [str(place) for place in places.values()]
        return self.asker.fact(section, str(places[letter]), "value", "point.answer", choices, cat=letter)

    def highest(self) -> Fact | None:
        return self._extreme("highest point", self.y)

    def rightmost(self) -> Fact | None:
        return self._extreme("rightmost point", self.x)

    def _extreme(self, section: str, places: dict[str, int]) -> Fact | None:
        letter = max(places, key=places.get)
        if letter not in self.free:
            return None
        self.free.remove(letter)
        return self.asker.fact(section, letter, "text", "extreme point.answer", list(places))

    def is_higher(self) -> Fact | None:
        if len(self.free) < 2:
            return None
        truth = self.asker.truth("is higher")
        names = sorted([self.free.pop(), self.free.pop()], key=self.y.get, reverse=truth)
        a, b = (str(self.y[name]) for name in names)
        slots = {"cat": names[0], "other": names[1], "a": a, "b": b}
        return self.asker.yes_no("point higher", truth, "point higher.yes_no", **slots)
