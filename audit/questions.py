"""
What a question asks and what its answer amounts to, read from the text alone: most sets do not name question types.

English only. `read_question` is what the audit calls for each turn; `attributes_of` finds what is said of which
object.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
# The words that an answer of a type is looked for in; a count is a number instead.
VOCABULARIES = {
    "colour": _words(
        "red green blue yellow orange purple pink brown black white gray cyan magenta turquoise teal violet beige gold"
        " silver golden maroon navy tan olive lime indigo cream"
    ),
    "shape": _words(
        "circle square triangle rectangle star cube sphere cylinder cone pyramid ball diamond heart hexagon pentagon"
        " oval ellipse cross ring arrow octagon crescent"
    ),
    "size": _words("small large big tiny huge little medium giant tall short long"),
    "material": _words(
        "metal metallic rubber plastic wooden wood glass stone leather paper striped dotted spotted plain"
    ),
    "spatial": _words(
        "left right above below behind front inside outside between top bottom middle center near under"
    ),
}
ATTRIBUTES = {word: name for name in ("colour", "size", "material") for word in VOCABULARIES[name]}
SAME = {"grey": "gray", "over": "above", "beneath": "below", "underneath": "below", "centre": "center"}
SAME |= {"round": "circle", "circular": "circle", "triangular": "triangle", "rectangular": "rectangle"}
SAME |= {word: str(number) for number, word in enumerate(NUMBERS.split())}

ANY_ATTRIBUTE = re.compile(rf"\b(?:{'|'.join(sorted({*ATTRIBUTES, 'grey'}))})\b")

# The first that is found in the question decides; at `None` the answer may, before the rest is tried.
TOPICS = (
    ("count", r"\bhow many\b|\bnumber of\b|^count\b"),
    ("text", r"\bwritten\b|\btext\b|\b(?:say|read)s?\b|\b(?:what|which) (?:word|letter|number|digit)s?\b"),
    ("colour", r"\bcolou?r(?:s|ed)?\b"),
    ("shape", r"\bshapes?\b"),
    ("size", r"\bsize\b|\bhow (?:big|large|small|tall)\b"),
    ("material", r"\bmaterial\b|\bmade (?:of|from)\b"),
    (None, ""),
    ("spatial", r"^where\b(?! (?:was|were) th\w+ (?:photo|picture|image))|\bposition\b|\blocat\w+\b|\brelative to\b"),
    ("spatial", r"\b(?:what|which|who|object|item) (?:is|are|lies) (?:[a-z]+ ){0,3}(?:left|right|above|below)\b"),
    ("scene", r"\bscene\b|\bsetting\b|\b(?:what|which) (?:room|place|season|weather|time of day)\b|\bwhere was\b"),
    ("difference", r"\bdiffer\w*\b"),
    ("caption", r"\bdescri\w+|\bcaption\b|\bsummari[sz]e\b|\b(?:in|of) (?:the|this) (?:image|picture|photo)\W*$"),
    ("reasoning", r"^(?:why|how)\b"),
)
TOPICS = tuple((name, re.compile(pattern)) for name, pattern in TOPICS)
AUXILIARY = r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|isn't|aren't|doesn't)\b"
CLOSED = re.compile(AUXILIARY)
# "what sport is it" asks for a sport.
ASKED_FOR = re.compile(rf"\b(?:what|which) (?:(?:kind|type|sort)s? of )?([a-z]{{3,}}) {AUXILIARY}")
WH = re.compile(r"\b(?:what|which|where|who|whose|how|why|when)\b")
YES_NO = {"yes": "yes", "yeah": "yes", "yep": "yes", "true": "yes", "no": "no", "nope": "no", "false": "no"}
NEGATION = re.compile(r"\b(?:no|not|none|never)\b|n't\b")

OPTION = re.compile(r"(?:^[ \t]*|(?<=[\s(\[]))[(\[]?([A-Za-z])[.):\]]\s*(?=\S)", re.MULTILINE)
# "or" in these gives no alternatives, and they hide what is asked.
FOLLOW_UP = re.compile(
    r"(?:\band )?\bwhy,? or why not\b\W*|\bor not\b|(?:,? and| but)? explain\b[^?]*$", re.IGNORECASE
)
ANSWER_IS = re.compile(r"^.*\banswer is\b", re.IGNORECASE | re.DOTALL)
MAX_SENTENCE_WORDS = 20  # of an answer in which a short one is looked for; a longer one describes
MIN_SHORT_ANSWERS = 3
LETTER_LEAD = r"(?:(?:the |correct |right |best |my )*(?:answer|option|choice)(?: is)?:? *)(?:option |choice )?"
LETTERS = (
    re.compile(rf"(?:{LETTER_LEAD})?[(\[]?([a-z])[)\].:,]*", re.IGNORECASE),  # all of the answer
    re.compile(rf"(?:{LETTER_LEAD})?[(\[]?([a-z])[)\].:,]+\s.*", re.IGNORECASE | re.DOTALL),
    # Not in lower case: "the answer is a red ball".
    re.compile(rf"(?:.*\b)?(?i:{LETTER_LEAD})[(\[]?([A-Z])\b.*", re.DOTALL),
)

# Words that begin a short answer without being a part of it: "It is on the left" and "left" are one answer.
LEADING = _words("it is it's its they are there that's this that the a an answer to on in at of i see")
# Words that are never an object.
STOP_WORDS = _words(
    "a an the is are was were be been do does did has have had can could will would there here it its it's this that"
    " these those they them in on at of to from with by for and or not no yes any some all one what which who whose"
    " where when how why many much number color colour size shape material kind type sort image picture photo scene"
    " background left right above below behind front next near side you i we he she his her their see visible shown"
    " seen than as but if so very only also both each other another same different object objects thing things item"
    " items colored coloured please tell me describe say name identify given look looks appears light dark bright pale"
)
COPULAS = _words("is are was were looks appears very painted colored coloured")
WORD = re.compile(r"\w+(?:[.:'\u2019-]\w+)*")


@dataclass
class Question:
    """
    A turn as the audit sees it.

    Args:
        text (`str`): the question as it was asked, options and all.
        stem (`str`): without options.
        type (`str`): what it asks for: a declared type, or one that was inferred.
        answer (`str`): in the form in which answers are counted: `yes`, `2`, `red`, the letter of an option, the place
            (`choice -1` for the last) in a question that names its alternatives.
        meaning (`str`): the same in words: the text of the option, the alternative.
        said (`str`): the answer as it was given.
        options (`list[str]`): of a multiple-choice question.
        row, turn (`int`): where it is from, both from 0.
    """

    text: str
    stem: str
    type: str
    answer: str
    meaning: str
    said: str
    options: list[str] = field(default_factory=list)
    row: int = 0
    turn: int = 0


@lru_cache(maxsize=10_000)
def words_of(text: str) -> tuple[str, ...]:
    """Words in lower case without punctuation; signs of a text that has no words."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return tuple(WORD.findall(text) or text.split())


def read_question(text: str, answer: str, declared: str | None = None, row: int = 0, turn: int = 0) -> Question:
    """
    Args:
        text, answer (`str`): of one turn.
        declared (`str`, *optional*): the type that the data set gives. It is not trusted with the form: a question
            that it calls `spatial` and that is answered by yes or no is `spatial: yes_no`, because answers of
            different forms have different balances.
        row, turn (`int`)
    """
    stem, options = split_options(text)
    plain = FOLLOW_UP.sub("", stem)
    asked = last_question(plain)
    letter = letter_of(answer, options)
    if letter:
        form, value = "multiple_choice", letter
        meaning = canonical(options[ord(letter) - ord("A")], "", "")
    elif yes_no_of(asked, answer):
        form, value = "yes_no", yes_no_of(asked, answer)
        meaning = value
    else:
        value = alternative_of(plain, answer)
        form = "either_or" if value else None
        topic = declared or infer_type(asked, answer)
        meaning = canonical(answer, topic, asked)
    kind = declared or form or topic
    if form and declared and declared != form:
        kind = f"{declared}: {form}"
    return Question(text, stem, kind, value or meaning, meaning, answer, options if letter else [], row, turn)


def last_question(text: str) -> str:
    """The words of the last question in a text, or of the text if it asks none; what is after it is an instruction."""
    if "?" not in text:
        return " ".join(words_of(text))
    sentences = re.split(r"[.!?]\s|\n|question:", text[: text.rfind("?")], flags=re.IGNORECASE)
    return " ".join(next((words for words in map(words_of, reversed(sentences)) if words), ()))


def split_options(text: str) -> tuple[str, list[str]]:
    """The question without its lettered options, and their texts; none unless there are two in order from A."""
    marks = list(OPTION.finditer(text))
    chain = []
    for start, mark in enumerate(marks):
        if mark[1] not in "Aa":
            continue
        candidate = [mark]
        for other in marks[start + 1 :]:
            if ord(other[1]) == ord(candidate[-1][1]) + 1:
                candidate.append(other)
        chain = max(chain, candidate, key=len)
    if len(chain) < 2:
        return text, []
    ends = [mark.start() for mark in chain[1:]] + [len(text)]
    options = [text[mark.end() : end].split("\n")[0].strip(" ,;\t") for mark, end in zip(chain, ends, strict=True)]
    return text[: chain[0].start()].strip(), options


def letter_of(answer: str, options: list[str]) -> str | None:
    """The letter of the option that an answer names, by letter or by its text."""
    if not options:
        return None
    answer = answer.strip()
    for pattern in LETTERS:
        match = pattern.fullmatch(answer)
        if match and ord(match[1].upper()) - ord("A") < len(options):
            return match[1].upper()
    words = [without_lead(words_of(option)) for option in options]
    given = without_lead(words_of(answer))
    hits = [i for i, option in enumerate(words) if option == given]
    hits = hits or [i for i, option in enumerate(words) if f" {' '.join(option)} " in f" {' '.join(given)} "]
    return chr(ord("A") + hits[0]) if len(hits) == 1 else None


def yes_no_of(asked: str, answer: str) -> str | None:
    """`yes`, `no`, or `None` where the question cannot be answered so. `asked` has lower-case words."""
    words = words_of(answer)
    first = YES_NO.get(words[0]) if words else None
    if first and (len(words) == 1 or not WH.match(asked)):
        return first
    if CLOSED.match(asked) and " or " not in asked and len(words) > 1:
        return "no" if NEGATION.search(" ".join(words)) else None
    return None


def alternative_of(stem: str, answer: str) -> str | None:
    """`choice -2` or `choice -1` in "Is it red or blue?"; `None` where the answer is none of the alternatives."""
    asked = stem[: stem.rfind("?")] if "?" in stem else stem
    given = without_lead(words_of(answer))
    if not re.search(r"\bor\b", asked, re.IGNORECASE) or len(given) > MAX_SENTENCE_WORDS:
        return None
    parts = [words_of(part) for part in re.split(r"[,;]|\bor\b", asked.rpartition(":")[2].lower()) if part.strip()]
    if len(parts) < 2:
        return None
    # An alternative ends before "or" and begins after it: compare these words, then all that one part has alone.
    keys = [{part[-1]} for part in parts[:-1]] + [{(without_lead(parts[-1]) or parts[-1])[0]}]
    others = [set().union(*parts[:i], *parts[i + 1 :]) for i in range(len(parts))]
    for marks in (keys, [set(part) - other for part, other in zip(parts, others, strict=True)]):
        hits = [i for i, words in enumerate(marks) if words.intersection(given)]
        if len(hits) == 1:
            return f"choice {hits[0] - len(parts)}"
    return None


def infer_type(asked: str, answer: str) -> str:
    """The type of an open question: from its words, and from the answer where that says more."""
    for name, pattern in TOPICS:
        if name and pattern.search(asked):
            return name
        by_answer = None if name else type_of_answer(answer)
        if by_answer:
            return by_answer
    match = ASKED_FOR.search(asked)
    if match and match[1] not in STOP_WORDS and not CLOSED.match(match[1]):
        return match[1]
    return "other"


def type_of_answer(answer: str) -> str | None:
    """The type that a short answer belongs to by itself: "Two." is a count, "dark red" a colour."""
    words = [SAME.get(word, word) for word in without_lead(words_of(answer))]
    if len(words) == 1 and words[0].isdecimal():
        return "count"
    if 1 <= len(words) <= 2:
        return next((name for name in ("colour", "spatial") if words[-1] in VOCABULARIES[name]), None)
    return None


def canonical(answer: str, kind: str, asked: str) -> str:
    """Equal answers in one form: to a count, "There are two dogs." is `2`; to a colour, "It is Red" is `red`."""
    words = [SAME.get(word, word) for word in words_of(ANSWER_IS.sub("", answer))]
    kind = kind.partition(":")[0]
    vocabulary = VOCABULARIES.get(kind, frozenset())
    found = {word for word in words if (word.isdecimal() if kind == "count" else word in vocabulary)}
    if len(found) > 1:
        found -= {SAME.get(word, word) for word in asked.split()}
    if len(found) == 1:
        return found.pop()
    if kind == "count" and words and words[0] in ("no", "none"):
        return "0"
    return YES_NO.get(words[0], words[0]) if len(words) == 1 else " ".join(without_lead(words))


def without_lead(words: list[str]) -> list[str]:
    """What is left when words such as "it is the" are dropped from the beginning; all if nothing else is there."""
    start = next((i for i, word in enumerate(words) if word not in LEADING), 0)
    return words[start:]


def unify_answers(questions: list[Question]):
    """
    Changes answers in sentences to the short answers of the same type that they hold: "The scene shows a night sky."
    to `night sky` if others say so in short.
    """
    counts = Counter((question.type, question.answer) for question in questions if question.answer.count(" ") < 3)
    known = {answer for answer, count in counts.items() if count >= MIN_SHORT_ANSWERS}
    for question in questions:
        words = question.answer.split()
        if not 3 < len(words) <= MAX_SENTENCE_WORDS:
            continue
        spans = [" ".join(words[start : start + size]) for size in (3, 2, 1) for start in range(len(words) - size + 1)]
        asked = f" {' '.join(words_of(question.stem))} "
        hits = []
        for span in spans:
            is_new = f" {span} " not in asked and not any(f" {span} " in f" {hit} " for hit in hits)
            if (question.type, span) in known and is_new:
                hits.append(span)
        if len(hits) == 1:
            question.answer = question.meaning = hits[0]


def attributes_of(question: Question) -> set[tuple[str, str]]:
    """
    Pairs of an attribute (colour, size, material) and the object that has it, as far as the turn says that it is so:
    a question that is answered by no, or that names alternatives, says nothing.
    """
    meaning = question.meaning.split()
    pairs = set()
    if question.meaning not in ("no", "0") and not question.answer.startswith("choice "):
        pairs |= _pairs(question.stem)
    if len(meaning) > 2:
        pairs |= _pairs(question.said)
    elif meaning and meaning[-1] in ATTRIBUTES:
        words = [word for word in words_of(question.stem) if word not in STOP_WORDS]
        noun = next((word for word in words if SAME.get(word, word) not in ATTRIBUTES), None)
        pairs |= {(meaning[-1], _singular(noun))} if noun else set()
    return pairs


def _pairs(text: str) -> set[tuple[str, str]]:
    """From "red ball", "the ball is red" and "is the ball red"; nothing from a sentence that denies something."""
    pairs = set()
    for sentence in re.split(r"[.!?;:\n]", text.lower()):
        if not ANY_ATTRIBUTE.search(sentence) or NEGATION.search(sentence):
            continue
        words = [SAME.get(word, word) for word in words_of(sentence)]
        for index, word in enumerate(words):
            if word in ATTRIBUTES:
                after = next((other for other in words[index + 1 :] if other not in ATTRIBUTES), None)
                before = next((other for other in reversed(words[:index]) if other not in COPULAS), None)
                noun = after if _is_noun(after) else before
                pairs |= {(word, _singular(noun))} if _is_noun(noun) else set()
    return pairs


def _is_noun(word: str | None) -> bool:
    return word is not None and word.isalpha() and len(word) > 2 and word not in STOP_WORDS and word not in ATTRIBUTES


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
