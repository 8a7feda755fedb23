"""Answer questions about charts, tables and documents from what the judge has read. None: it cannot tell."""

import re

from judge_charts import Chart
from judge_tables import Grid
from judge_text import Line, find_names, is_same, squeeze


LESS = re.compile(
    r"\b(less|lower|lowest|least|lesser|smaller|smallest|below|under|behind|minimum|fewest|bottom|trails?|last)\b"
    r"|falls? (short|below)|not reach|from low to high"
)
MORE = re.compile(
    r"\b(more|higher|highest|greater|greatest|larger|largest|most|exceeds?|above|over|ahead|maximum|top|tops|leads?"
    r"|surpass|outdo|beat|first|peak|leading|reaches further|comes out on top|number one)\b|from high to low"
)
CHANGES = "rise fall drop grow shrink increase decrease gain decline climb higher lower up down"
SIGN = re.compile(r"\$?\d[\d,]*(?:\.\d+)?%?")
ASKS_NUMBER = re.compile(
    r"what (is the|value does|figure does)|which number|how (high|low)|give the|read the"
    r"|according to the \w+, what is the"
)
YES_NO = re.compile(
    r"^(is|are|was|does|do|did|has|would|can (?!you)|somebody says|under .*does|comparing|by .*does|in the column"
    r"|on the vertical axis, is|according to the \w+, (is|does|was))",
    re.IGNORECASE,
)


def direction(text: str) -> int | None:
    """Return 1 for a question for more, -1 for less, None if the words do not tell."""
    less, more = LESS.search(text.lower()), MORE.search(text.lower())
    return -1 if less else 1 if more else None


def solve_chart(question: str, chart: Chart):
    """Answer a question about a chart."""
    if re.search(
        r"title|heading|headline|called|written at the top|unit|measured in|sort of chart|kind of|type", question
    ):
        return None
    answer = solve_values(question, chart)
    return answer if isinstance(answer, bool) or not YES_NO.match(question) or " or " in question else None


def solve_values(question: str, chart: Chart):
    if chart.sort == "scatter":
        return solve_points(question, chart)
    values = {name: row for name, row in chart.values.items() if row}
    categories = list(next(iter(values.values())))
    if len(values) > 1 or "" not in values:
        return solve_series(question, values, categories, chart.exact)
    return solve_column(question, values[""], chart.exact)


def solve_series(question: str, values: dict, categories: list[str], is_exact: bool):
    columns = {name: {series: row[name] for series, row in values.items()} for name in categories}
    focus, _, rest = question.partition(". ")
    if rest and len(find_names(focus, [*values, *categories])) == 1:
        (name,) = find_names(focus, [*values, *categories])
        return solve_column(rest, values.get(name) or columns[name], is_exact)
    if re.match(r"look at|consider|this is about|focus|take only|leave out", question, re.IGNORECASE):
        return None  # a name that was not read
    if re.search(r"how many|number of|count|into how", question, re.IGNORECASE):
        is_series = re.search(r"series|legend|entries|items", question)
        return len(values) if is_series else len(categories)
    names = find_names(question, [*values, *categories])
    series, of = [name for name in names if name in values], [name for name in names if name in columns]
    if len(series) == len(of) == 1:
        return values[series[0]][of[0]] if is_exact else None
    if len(of) == 1 and re.search(r"total|sum|add|altogether|together|combined", question, re.IGNORECASE):
        return sum(columns[of[0]].values()) if is_exact else None
    if len(of) == 1:
        return max(columns[of[0]], key=columns[of[0]].get)
    return None


def solve_column(question: str, values: dict[str, float], is_exact: bool):
    """Answer a question about one row of values."""
    text, names = question.lower(), find_names(question, list(values))
    ranked = sorted(values, key=values.get, reverse=True)
    rest = question
    for name in names:
        rest = rest.replace(name, " ")
    limits = [float(number.strip("$%,").replace(",", "")) for number in SIGN.findall(rest)]
    if len(names) == 2:
        return solve_pair(text, names, values, is_exact)
    if len(names) == 1 and limits and YES_NO.match(text):
        return solve_claim(text, values[names[0]], limits[-1], is_exact)
    if len(names) == 1 and re.search(r" or |differ|apart|gap|\bsum\b|add|together|total|average|mean|between", text):
        return None  # the other name was not read
    if len(names) == 1 and not limits:
        return values[names[0]] if is_exact else None
    if names:
        return None
    if re.search(r"how many|number of|count|how often|in how|for how", text):
        if not limits:
            return len(values)
        way = direction(re.sub(r"how many|how much", "", text))
        return sum((value > limits[-1]) if way != -1 else (value < limits[-1]) for value in values.values())
    if re.search(r"descending|^order|rank the|ranking|sort the|from the maximum|beginning with|from highest", text):
        return None if "second" in text else ", ".join(ranked)
    if re.search(r"second|runner-up|next to highest|right after|beaten by only|only one", text):
        return ranked[1]
    way = direction(text)
    if ASKS_NUMBER.match(text) and " with the " not in text:
        if not is_exact or way is None:
            return None
        return max(values.values()) if way == 1 else min(values.values())
    return None if way is None else ranked[0 if way == 1 else -1]


def solve_pair(text: str, names: list[str], values: dict[str, float], is_exact: bool):
    """Answer a question about two names."""
    first, second = (values[name] for name in names)
    if re.search(r"difference|differ|far apart|gap|separates|subtract|to match", text):
        return abs(first - second) if is_exact else None
    if re.search(r"average|mean|halfway|midpoint|equally", text):
        return (first + second) / 2 if is_exact else None
    if re.search(r"\bsum\b|add|together|total|combined|plus|merged", text):
        return first + second if is_exact else None
    either = re.search(r"(?:an? )?([a-z]+(?: (?:up|down))?),? or (?:an? )?([a-z]+(?: (?:up|down))?)", text)
    words = set(CHANGES.split())
    if either and set(" ".join(either.groups()).split()) & words and " or " + names[1].lower() not in text:
        up = next(word for word in either.groups() if re.search(r"rise|grow|increase|gain|climb|higher|up", word))
        down = next(word for word in either.groups() if word != up)
        return up if second > first else down
    way = direction(text)
    if way is None:
        return None
    if re.search(rf" or {re.escape(names[1].lower())}", text):
        return names[0] if (first > second) == (way == 1) else names[1]
    return (first > second) == (way == 1) if YES_NO.match(text) else None


def solve_claim(text: str, value: float, limit: float, is_exact: bool):
    way = direction(text)
    if way is None or "right value" in text or "exactly" in text:
        return value == limit if is_exact else None
    return value > limit if way == 1 else value < limit


def solve_points(question: str, chart: Chart):
    text, names = question, find_names(question, list(chart.points))
    if not chart.exact:
        return None
    if re.search(r"how many|number of|count", text, re.IGNORECASE):
        return len(chart.points)
    if len(names) == 2:
        return chart.points[names[0]][1] > chart.points[names[1]][1]
    is_across = re.search(r"x-|horizontal|right", text)
    if len(names) == 1:
        return chart.points[names[0]][0 if is_across else 1]
    if names:
        return None
    return max(chart.points, key=lambda letter: chart.points[letter][0 if is_across else 1])


def solve_table(question: str, grid: Grid):
    """Answer a question that quotes a header, or asks for rows and columns."""
    text = question.lower()
    if (
        re.search(r"how many (rows|entries|different entries|lines)|number of rows|count the rows", text)
        and "under" not in text
    ):
        return len(grid.rows) if not re.search(r"\d|\"", text) else None
    if re.search(r"columns|headers", text) and re.search(r"how many|number of|count", text):
        return len(grid.header)
    header = re.search(r"column (?:number )?(\d)", text)
    if header:
        return grid.header[int(header[1]) - 1] if int(header[1]) <= len(grid.header) else None
    keys = [row[0] for row in grid.rows]
    names, quoted = find_names(question, keys), re.findall(r'"([^"]+)"', question)
    steps = {"below": 1, "after": 1, "under": 1, "over": -1, "above": -1, "before": -1, "precede": -1, "follow": 1}
    if (
        len(names) == 1
        and not quoted
        and re.search(
            r"directly|right (below|above)|row (under|over|below|above)|follow|preced|next|last .* before", text
        )
    ):
        step = next((step for word, step in steps.items() if word in text), None)
        if re.search(r"going up", text):
            step = -1
        place = keys.index(names[0]) + (step or 0)
        return keys[place] if step and 0 <= place < len(keys) else None
    column = next((i for i, name in enumerate(grid.header) if quoted and is_same(name, quoted[0])), None)
    if column is None:
        return None
    cells = [row[column] for row in grid.rows]
    return solve_cells(question, names, keys, cells, quoted)


def solve_cells(question: str, names: list[str], keys: list[str], cells: list[str], quoted: list[str]):
    """Answer a question about the cells of one column."""
    text = question.lower()
    rest = re.sub(r'"[^"]*"', " ", question)
    for name in names:
        rest = rest.replace(name, " ")
    claimed = [cell for cell in cells if re.search(rf"(?<!\w){re.escape(cell)}(?!\w)", rest)]
    if len(names) == 1 and YES_NO.match(text) and " or " not in text:
        return bool(claimed) and cells[keys.index(names[0])] in claimed if len(claimed) <= 1 else None
    if len(names) == 1:
        return cells[keys.index(names[0])]
    if not names and len(set(claimed)) == 1 and cells.count(claimed[0]) == 1:
        return keys[cells.index(claimed[0])]
    numbers = [re.fullmatch(r"\$?(\d+(?:\.\d+)?)%?", cell) for cell in cells]
    if not all(numbers):
        return None
    values = dict(zip(keys, (float(match[1]) for match in numbers), strict=True))
    if len(names) == 2:
        return solve_pair(re.sub(r'under "[^"]*"', "", text), names, values, True)
    limits = [float(number.strip("$%")) for number in SIGN.findall(rest)]
    if re.search(r"how many|number of|count|how often", text) and limits:
        way = direction(re.sub(r"how many|how much|number of|under (?=\")", "", text))
        return sum(value > limits[-1] if way == 1 else value < limits[-1] for value in values.values())
    if re.search(r"total|add up|sum|altogether", text):
        return sum(values.values())
    return None


def solve_document(question: str, lines: list[Line]):
    """Check a claim, or look up the number in a line. The text of a document is read, its meaning is not."""
    text = " ".join(line.text for line in lines)
    question = question.replace(". Is that right?", "?")
    claims = re.findall(r"(?<= )[A-Z0-9$(][\w'.,:$&()-]*(?: (?:[A-Z0-9$(&][\w'.,:$&()-]*|to|of))*", question)
    names = {line.text.strip(): line for line in lines if line.number is None}
    items = find_names(question, [name for name in names if len(name) > 2])
    rows = {
        name: [o for o in lines if abs(o.y - names[name].y) < 0.6 * o.height and o.number is not None]
        for name in items
    }
    if any(len(row) > 1 for row in rows.values()):
        return None  # one of several numbers may not have been read
    values = {name: row[-1].number for name, row in rows.items() if row}
    if len(values) == len(items) == 2:
        return solve_pair(question.lower(), items, values, True)
    if len(values) == len(items) == 1 and not SIGN.search(question.replace(items[0], "")):
        return values[items[0]]
    if len(claims) == 1 and YES_NO.match(question) and len(squeeze(claims[0])) > 3 and '"' not in question:
        return squeeze(claims[0]) in squeeze(text)
    return None
