"""Answer questions about the objects of one picture. None: the judge cannot tell."""

import re
from collections import Counter
from dataclasses import dataclass

from judge_colors import NAMES
from judge_scenes import MIN_RATIO, Picture
from judge_shapes import find_facing, load_library
from judge_words import (
    EXTREMES,
    PATTERNS,
    ZONE,
    ZONES,
    Reference,
    find_groups,
    find_references,
    find_words,
    read_number,
)


SIDES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
CLAUSE = re.compile(r"(?:^|[,.:] )(?:is|are|does|do|can|would|has|have|was|were|should|did)\b", re.IGNORECASE)
OPEN = re.compile(
    r"^can you (tell|name|identify|read)|: (left|right)|, or |left or right|left or to the", re.IGNORECASE
)
WHY = re.compile(
    r"(?<=[.?]) (Why, or why not|(Please )?[Ee]xplain|Give your|Show|How do you know|Think|Justify|Describe how"
    r"|Tell me how)\b[^.?]*[.?]$"
)
MORE = re.compile(r"\b(larger|more space|greater)\b")
LESS = re.compile(r"\b(smaller|less space)\b")
EXTREME = re.compile(r"farthest to the (left|right)|closest to the (top|bottom)|\bthe (" + "|".join(EXTREMES) + r")\b")
EDGES = {"left": "leftmost", "right": "rightmost", "top": "highest", "bottom": "lowest"}


@dataclass(frozen=True)
class Finding:
    """
    What the judge answers.

    Args:
        sort (`str`): what the value is: `yes_no`, `color`, `pattern`, `number`, `side`, `zone`, `noun`, `name` (one of
            the objects that the question names), `facing`, `odd`, `text` or `difference`.
        value: of the sort.
        names (`tuple[Reference, ...]`): the objects of the question.
        topic (`str`): what the question is about.
    """

    sort: str
    value: object
    names: tuple[Reference, ...] = ()
    topic: str = ""


class Asked:
    """
    A question with its objects found in a picture.

    Attributes:
        text (`str`): the question in lower case, with `[0]`, `[1]` for its objects.
        names (`list[Reference]`), found (`list[int | None]`): what the question calls them, and their indices.
        is_closed (`bool`): whether the answer is yes or no.
    """

    def __init__(self, question: str, picture: Picture):
        question = WHY.sub("", question)
        self.picture, self.question = picture, question
        text, self.names = find_references(question)
        self.text = text.lower()
        self.found = [picture.find(name) for name in self.names]
        self.is_closed = bool(CLAUSE.search(question)) and not OPEN.search(question) and " or " not in self.text

    def after(self, pattern: str) -> int | None:
        """Return the place in `names` of the object that a phrase stands before; None without such a phrase."""
        match = re.search(rf"(?:{pattern}) \[(\d)\]", self.text)
        return int(match[1]) if match else None

    def pick(self, place: int | None) -> tuple[int | None, int | None]:
        """Return the indices of an object and of the other one of two."""
        if place is None or len(self.found) != 2:
            return None, None
        return self.found[place], self.found[1 - place]


def solve(question: str, picture: Picture) -> Finding | None:
    """Answer a question about a picture."""
    asked = Asked(question, picture)
    for topic, words, solver in TOPICS:
        if re.search(words, asked.text):
            found = solver(asked)
            if found is None or found[1] is None:
                return None
            sort, value = found
            return Finding(sort, value, tuple(asked.names), topic)
    return None


def answer_claim(asked: Asked, sort: str, value, claimed) -> tuple:
    """Return the value of an open question, or whether a claim is true."""
    if value is None:
        return sort, None
    return ("yes_no", value == claimed if claimed is not None else None) if asked.is_closed else (sort, value)


def _name(asked: Asked, index: int | None) -> str | None:
    """Return the noun of an object, if it is clear."""
    if index is None:
        return None
    scores = asked.picture.scores[index]
    noun = load_library().nouns[int(scores.argmax())]
    return noun if asked.picture.has_noun(index, noun) else None


def solve_direction(asked: Asked):
    is_open = "left, right, above" in asked.text or "to the right of, above" in asked.text
    if len(asked.found) != 2 or None in asked.found:
        return None
    reference = asked.after(
        r"from|with|side of|go from|to the left of|to the right of|above|below|respect to|relative to"
        r"|relation to"
    )
    if reference is None:
        return None
    other, first = asked.pick(reference)
    side = asked.picture.find_direction(first, other)
    if is_open:
        return "side", side
    claimed = next((side for words, side in SIDES.items() if words in asked.text), None)
    return "yes_no", None if side is None else side == claimed


def solve_zone(asked: Asked):
    if len(asked.found) != 1 or asked.found[0] is None:
        return None
    zone = asked.picture.find_zone(asked.found[0])
    words = None if zone is None else ZONES[zone[0]][zone[1]]
    match = ZONE.search(asked.text)
    return answer_claim(asked, "zone", words, match[0] if match else None)


def solve_extreme(asked: Asked):
    match = EXTREME.search(asked.text)
    extreme = EDGES.get(match[1] or match[2]) or match[3]
    return "noun", _name(asked, asked.picture.find_extreme(extreme))


def solve_nearest(asked: Asked):
    anchor = asked.after("to|at|of") if len(asked.names) == 2 else 0 if len(asked.names) == 1 else None
    if anchor is None or asked.found[anchor] is None:
        return None
    nearest = asked.picture.find_nearest(asked.found[anchor])
    return answer_claim(
        asked,
        "noun",
        nearest if asked.is_closed else _name(asked, nearest),
        asked.found[1 - anchor] if len(asked.names) == 2 else None,
    )


def solve_between(asked: Asked):
    match = re.search(r"\[(\d)\] (?:and|to) \[(\d)\]", asked.text)
    if match is None or None in asked.found:
        return None
    ends = int(match[1]), int(match[2])
    middle = asked.picture.find_between(*(asked.found[place] for place in ends))
    rest = [place for place in range(len(asked.found)) if place not in ends]
    if not asked.is_closed:
        return ("noun", _name(asked, middle)) if not rest else None
    return answer_claim(asked, "noun", middle, asked.found[rest[0]] if rest else None)


def solve_front(asked: Asked):
    pair = asked.picture.find_overlap()
    if pair is None:
        return None
    if not asked.names:
        if re.search(r"background|setting|place|location|the objects\b", asked.text):
            return None  # the background is behind the objects
        return "noun", _name(asked, pair[0])
    if not asked.is_closed and len(asked.names) == 1:
        # The shape of the hidden object is not whole, so it is known by its touch only.
        return "noun", _name(asked, pair[1])
    if len(asked.names) != 2:
        return None
    places = (0, 1) if re.search(r"(hidden|covered|blocked) by|behind", asked.text) else (1, 0)
    found = tuple(asked.found[place] for place in places)
    return "yes_no", None if found[1] is None else found == pair if found[0] is not None else found[1] == pair[1]


def solve_inside(asked: Asked):
    if not asked.is_closed:
        outer = asked.found[0] if len(asked.found) == 1 else None
        return None if outer is None else ("noun", _name(asked, asked.picture.find_inside(outer)))
    if len(asked.found) != 2 or None in asked.found:
        return None
    is_reversed = re.search(r"\] contain|\[\d\] (enclose|surround)\b", asked.text)
    inner, outer = asked.found[::-1] if is_reversed else asked.found
    return "yes_no", asked.picture.find_inside(outer) == inner


def solve_touching(asked: Asked):
    if not asked.is_closed:
        return (
            None
            if asked.found[:1] in ([], [None])
            else ("noun", _name(asked, asked.picture.find_touching(asked.found[0])))
        )
    if len(asked.found) != 2 or None in asked.found:
        return None
    return "yes_no", asked.picture.find_touching(asked.found[0]) == asked.found[1]


def solve_larger(asked: Asked):
    if len(asked.found) != 2 or None in asked.found:
        return None
    areas = [asked.picture.things[index].area for index in asked.found]
    if max(areas) < MIN_RATIO * min(areas):
        return None
    way = 1 if MORE.search(asked.text) else -1
    first = 0 if (areas[0] > areas[1]) == (way == 1) else 1
    if not asked.is_closed:
        return "name", first
    subject = asked.after("is|does|do|that")
    return None if subject is None else ("yes_no", subject == first)


def solve_same_color(asked: Asked):
    things = asked.picture.things
    if None in asked.found or not asked.found:
        return None
    colors = [things[index].color for index in asked.found]
    if len(asked.found) == 2:
        return None if None in colors else ("yes_no", colors[0] == colors[1])
    if asked.is_closed or None in [thing.color for thing in things] or not asked.picture.is_complete:
        return None
    others = [i for i, thing in enumerate(things) if thing.color == colors[0] and i != asked.found[0]]
    return ("noun", _name(asked, others[0])) if len(others) == 1 else None


def solve_color(asked: Asked):
    if len(asked.found) != 1 or asked.found[0] is None:
        return None
    claimed = find_words(asked.text, NAMES)
    color = asked.picture.things[asked.found[0]].color
    return answer_claim(asked, "color", color, claimed[0] if claimed else None)


def solve_pattern(asked: Asked):
    if len(asked.found) != 1 or asked.found[0] is None:
        return None
    claimed = find_words(asked.text, PATTERNS)
    pattern = asked.picture.things[asked.found[0]].pattern
    if pattern == "plain":
        return None  # the pattern has not been seen
    return answer_claim(asked, "pattern", pattern, claimed[0] if claimed else None)


def solve_count(asked: Asked):
    _, groups = find_groups(asked.question)
    text = asked.question.lower()
    groups = list(dict.fromkeys(Reference(g.noun, g.color, g.pattern) for g in groups))
    if not groups or len(groups) > 2:
        return None
    numbers = [asked.picture.count(group) for group in groups]
    if None in numbers:
        return None
    if len(groups) == 1:
        return answer_claim(asked, "number", numbers[0], read_number(text))
    if re.search(r"altogether|total|together|sum|in all|add |all .* and all", text):
        return "number", sum(numbers)
    if asked.is_closed:
        way = -1 if re.search(r"\bfewer|lower|smaller", text) else 1
        return "yes_no", way * numbers[0] > way * numbers[1]
    return "number", abs(numbers[0] - numbers[1])


def solve_facing(asked: Asked):
    if len(asked.found) != 1 or asked.found[0] is None:
        return None
    noun = asked.names[0].noun or _name(asked, asked.found[0])
    return "facing", None if noun is None else find_facing(asked.picture.things[asked.found[0]], noun)


def solve_exists(asked: Asked):
    if len(asked.names) != 1 or not asked.is_closed:
        return None
    answers = [asked.picture.belongs(index, asked.names[0]) for index in range(len(asked.picture.things))]
    if True in answers:
        return "yes_no", True
    return "yes_no", None if asked.picture.may_miss(asked.names[0]) or None in answers else False


def solve_same_object(asked: Asked):
    if len(asked.found) != 2 or None in asked.found or not asked.is_closed:
        return None
    return "yes_no", asked.found[0] == asked.found[1]


def solve_odd(asked: Asked):
    """Find the one object that differs from all others in color, in pattern or in shape."""
    picture, nouns = asked.picture, load_library().nouns
    if not picture.is_complete or len(picture.things) < 3:
        return None
    shapes = [nouns[int(scores.argmax())] for scores in picture.scores]
    common, _ = Counter(shapes).most_common(1)[0]
    is_common = [picture.has_noun(index, common) for index in range(len(shapes))]
    looks = [[thing.color for thing in picture.things], [thing.pattern for thing in picture.things], is_common]
    alone = [index for values in looks for index in find_alone(values)]
    if len(alone) != 1 or any(None in values for values in looks[:2]):
        return None
    thing = picture.things[alone[0]]
    noun = _name(asked, alone[0])
    if noun is None and is_common[alone[0]] is False:
        return None
    return "odd", Reference(noun, thing.color, thing.pattern)


def find_alone(values: list) -> list[int]:
    """Return the place of the one value that differs from all others, which are equal."""
    return [index for index, value in enumerate(values) if values.count(value) == 1 and len(set(values)) == 2]


def solve_noun(asked: Asked):
    if len(asked.found) != 1 or asked.is_closed:
        return None
    return "noun", _name(asked, asked.found[0])


TEXT_WORDS = (
    r"\"(?!from)|\b(written|printed|lettered|spell|spelled|spelling|letters|lettering|writing|message|text)\b"
    r"|transcribe|\bsay\?|\bread|word on \[|\blines? (of|in|on|\d)|several lines|\bsign\b"
)
COUNT_WORDS = (
    r"how many|number of|\bcount\b|counted|exactly|outnumber|more .* than|fewer .* than|difference|left over"
    r"|by what number|altogether|in number"
)
ODD_WORDS = (
    r"odd one|belong with|differs from all|exception|fit in with|different from the rest|to make all of them"
    r"|unlike the|all (objects|things) but one"
)
DIRECTION_WORDS = r"left, right, above|to the right of, above|to the (left|right) of \[|(above|below) \["
SAME_COLOR_WORDS = (
    r"same color|colored like|\bin color|(shares?|match) .*\bcolor|colors? of \[0\] (and|the same)"
    r"|the color of \[0\]\. which|else has the color|other .* in the color of|a color\?|colors of"
)
TOPICS = (
    ("text", TEXT_WORDS, lambda asked: None),
    ("odd one out", ODD_WORDS, solve_odd),
    ("larger", r"^(?!.*number of).*(\b(larger|smaller)\b(?! in number)|(more|less) space)", solve_larger),
    ("count", COUNT_WORDS, solve_count),
    ("direction", DIRECTION_WORDS, solve_direction),
    (
        "extreme",
        r"farthest to the|closest to the (top|bottom)|\bthe (leftmost|rightmost|highest|lowest|largest|smallest)",
        solve_extreme,
    ),
    ("nearest", r"nearest|closest|shortest|smallest distance|reach|closer|nearer", solve_nearest),
    ("between", r"between|line from|on the way from|separates?|look from", solve_between),
    ("hides", r"hid(e|es|den)\b|cover|block|in front|behind|overlap|out of sight|completely|see all of", solve_front),
    ("same color", SAME_COLOR_WORDS, solve_same_color),
    (
        "facing",
        r"(?<!had to )\b(face|facing|points?|pointing|turned|headed|oriented|forward)\b|front of \[",
        solve_facing,
    ),
    ("color", r"colou?r|\bhue\b|" + "|".join(rf"\b{name}\b" for name in NAMES), solve_color),
    ("pattern", "pattern|design|decorat|" + "|".join(PATTERNS), solve_pattern),
    ("inside", r"inside|\] contain|hold|enclose|surround|within|in the middle of \[|something in it", solve_inside),
    ("touching", r"touch|contact|up against|\bmeets?\b|\bgap\b", solve_touching),
    ("zone", r"\bwhere|part of the|part is|area|region|section|location|position|place|" + ZONE.pattern, solve_zone),
    ("identity", r"\[0\].*\[1\]", solve_same_object),
    ("exists", r"there|see|find|spot|show|contain|include|visible|present|appear|drawn|among", solve_exists),
    ("noun", r"\[0\]", solve_noun),
)
