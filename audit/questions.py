"""
Reads from the text what a question asks for and what its answer means: most data sets name no types of questions.

English only. `read_question` is called for each turn; `find_attributes` finds attributes of objects.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from string import ascii_uppercase


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LETTERS = ascii_uppercase  # of options
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
# The words that answers of a type consist of; counts are numbers.
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

# Types of questions: the first pattern found in the question decides. At `None`, the answer may decide.
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
# Follow-ups are removed: their "or" names no alternatives, and they hide the question.
FOLLOW_UP = re.compile(
    r"(?:\band )?\bwhy,? or why not\b\W*|\bor not\b|(?:,? and| but)? explain\b[^?]*$", re.IGNORECASE
)
ANSWER_IS = re.compile(r"^.*\banswer is\b", re.IGNORECASE | re.DOTALL)
MAX_SENTENCE_WORDS = 20  # in an answer that may hold a short one; longer answers are descriptions
NUM_SHORT_WORDS, MIN_SHORT_ANSWERS = 3, 3  # most words of a short answer, and how often it occurs
LETTER_LEAD = r"(?:(?:the |correct |right |best |my )*(?:answer|option|choice)(?: is)?:? *)(?:option |choice )?"
LETTER_PATTERNS = (
    re.compile(rf"(?:{LETTER_LEAD})?[(\[]?([a-z])[)\].:,]*", re.IGNORECASE),  # the whole answer
    re.compile(rf"(?:{LETTER_LEAD})?[(\[]?([a-z])[)\].:,]+\s.*", re.IGNORECASE | re.DOTALL),
    # Not in lower case: "the answer is a red ball".
    re.compile(rf"(?:.*\b)?(?i:{LETTER_LEAD})[(\[]?([A-Z])\b.*", re.DOTALL),
)

# Words that may begin a short answer and do not change it: "It is on the left" and "left" are one answer.
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
    A turn as the audit counts it.

    Args:
        text (`str`): the question as it was asked, with its options.
        stem (`str`): the question without options.
        type (`str`): the type of the question, declared or inferred.
        answer (`str`): the answer in the form in which answers are counted: `yes`, `2`, `red`, the letter of an
            option, or the place (`choice -1` for the last) of an alternative that the question names.
        meaning (`str`): the answer in words: the text of the option, the alternative.
        said (`str`): the answer as it was given.
        options (`list[str]`): options of a multiple-choice question.
        row (`int`), turn (`int`): index of the row and of the turn in it, both from 0.
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
def split_into_words(text: str) -> tuple[str, ...]:
    """Split a text into words in lower case without punctuation; a text without words into its signs."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return tuple(WORD.findall(text) or text.split())


def read_question(text: str, answer: str, declared: str | None = None, row: int = 0, turn: int = 0) -> Question:
    """
    Read one turn.

    Args:
        text (`str`), answer (`str`): question and answer.
        declared (`str`, *optional*): the type that the data set gives. Answers of different forms have different
            balances, so a `spatial` question that is answered by yes or no becomes `spatial: yes_no`.
        row (`int`), turn (`int`): index of the row and of the turn in it.
    """
    stem, options = split_options(text)
    plain = FOLLOW_UP.sub("", stem)
    asked = last_question(plain)
    letter = find_letter(answer, options)
    if letter:
        form, value = "multiple_choice", letter
        meaning = unify_answer(options[LETTERS.index(letter)], "", "")
    elif find_yes_no(asked, answer):
        form, value = "yes_no", find_yes_no(asked, answer)
        meaning = value
    else:
        value = find_alternative(plain, answer)
        form = "either_or" if value else None
        topic = declared or infer_type(asked, answer)
        meaning = unify_answer(answer, topic, asked)
    kind = declared or form or topic
    if form and declared and declared != form:
        kind = f"{declared}: {form}"
    return Question(
        text=text,
        stem=stem,
        type=kind,
        answer=value or meaning,
        meaning=meaning,
        said=answer,
        options=options if letter else [],
        row=row,
        turn=turn,
    )


def last_question(text: str) -> str:
    """Return the words of the last question in a text, or of the whole text. Text after it is an instruction."""
    if "?" not in text:
        return " ".join(split_into_words(text))
    sentences = re.split(r"[.!?]\s|\n|question:", text[: text.rfind("?")], flags=re.IGNORECASE)
    return " ".join(next((words for words in map(split_into_words, reversed(sentences)) if words), ()))


def split_options(text: str) -> tuple[str, list[str]]:
    """Split a question from its lettered options; there have to be two or more, in order from A."""
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


def find_letter(answer: str, options: list[str]) -> str | None:
    """Find the letter of the option that an answer names, by letter or by text."""
    if not options:
        return None
    answer = answer.strip()
    for pattern in LETTER_PATTERNS:
        match = pattern.fullmatch(answer)
        if match and match[1].upper() in LETTERS[: len(options)]:
            return match[1].upper()
    words = [without_lead(split_into_words(option)) for option in options]
    given = without_lead(split_into_words(answer))
    hits = [i for i, option in enumerate(words) if option == given]
    hits = hits or [i for i, option in enumerate(words) if f" {' '.join(option)} " in f" {' '.join(given)} "]
    return LETTERS[hits[0]] if len(hits) == 1 else None


def find_yes_no(asked: str, answer: str) -> str | None:
    """Find `yes` or `no` in an answer; None if the question asks for something else. `asked` is in lower case."""
    words = split_into_words(answer)
    first = YES_NO.get(words[0]) if words else None
    if first and (len(words) == 1 or not WH.match(asked)):
        return first
    if CLOSED.match(asked) and " or " not in asked and len(words) > 1:
        return "no" if NEGATION.search(" ".join(words)) else None
    return None


def find_alternative(stem: str, answer: str) -> str | None:
    """Find the alternative that an answer names: `choice -2` or `choice -1` in "Is it red or blue?", else None."""
    asked = stem[: stem.rfind("?")] if "?" in stem else stem
    given = without_lead(split_into_words(answer))
    if not re.search(r"\bor\b", asked, re.IGNORECASE) or len(given) > MAX_SENTENCE_WORDS:
        return None
    alternatives = re.split(r"[,;]|\bor\b", asked.rpartition(":")[2].lower())
    parts = [split_into_words(part) for part in alternatives if part.strip()]
    if len(parts) < 2:
        return None
    # Compare the words next to "or", at the end of one part and the beginning of the next. Then compare all words that
    # only one part has.
    keys = [{part[-1]} for part in parts[:-1]] + [{(without_lead(parts[-1]) or parts[-1])[0]}]
    others = [set().union(*parts[:i], *parts[i + 1 :]) for i in range(len(parts))]
    for marks in (keys, [set(part) - other for part, other in zip(parts, others, strict=True)]):
        hits = [i for i, words in enumerate(marks) if words.intersection(given)]
        if len(hits) == 1:
            return f"choice {hits[0] - len(parts)}"
    return None


def infer_type(asked: str, answer: str) -> str:
    """Infer the type of an open question from its words, and from the answer where that tells more."""
    for name, pattern in TOPICS:
        if name and pattern.search(asked):
            return name
        by_answer = None if name else infer_type_from_answer(answer)
        if by_answer:
            return by_answer
    match = ASKED_FOR.search(asked)
    if match and match[1] not in STOP_WORDS and not CLOSED.match(match[1]):
        return match[1]
    return "other"


def infer_type_from_answer(answer: str) -> str | None:
    """Infer the type of a short answer: "Two." is a count, "dark red" a color."""
    words = [SAME.get(word, word) for word in without_lead(split_into_words(answer))]
    if len(words) == 1 and words[0].isdecimal():
        return "count"
    if 1 <= len(words) <= 2:
        return next((name for name in ("colour", "spatial") if words[-1] in VOCABULARIES[name]), None)
    return None


def unify_answer(answer: str, kind: str, asked: str) -> str:
    """Write equal answers in one form: as a count, "There are two dogs." is `2`; as a color, "It is Red" is `red`."""
    words = [SAME.get(word, word) for word in split_into_words(ANSWER_IS.sub("", answer))]
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
    """Drop words such as "it is the" from the beginning, unless there are no others."""
    start = next((i for i, word in enumerate(words) if word not in LEADING), 0)
    return words[start:]


def unify_answers(questions: list[Question]):
    """
    Replace answers in sentences by the short answers of the same type that they hold.

    "The scene shows a night sky." becomes `night sky` if other answers are "night sky".
    """
    answers = [(question.type, question.answer) for question in questions]
    counts = Counter(each for each in answers if each[1].count(" ") < NUM_SHORT_WORDS)
    known = {answer for answer, count in counts.items() if count >= MIN_SHORT_ANSWERS}
    for question in questions:
        shorten_answer(question, known)


def shorten_answer(question: Question, known: set[tuple[str, str]]):
    """
    Replace the answer of a question, and its meaning, by the one short answer that it holds, if there is just one.

    Args:
        question (`Question`)
        known (`set[tuple[str, str]]`): types and answers of at most `NUM_SHORT_WORDS` words that occur often.
    """
    words = question.answer.split()
    if not NUM_SHORT_WORDS < len(words) <= MAX_SENTENCE_WORDS:
        return
    sizes = range(NUM_SHORT_WORDS, 0, -1)
    spans = [" ".join(words[start : start + size]) for size in sizes for start in range(len(words) - size + 1)]
    asked = f" {' '.join(split_into_words(question.stem))} "
    hits = []
    for span in spans:
        is_new = f" {span} " not in asked and not any(f" {span} " in f" {hit} " for hit in hits)
        if (question.type, span) in known and is_new:
            hits.append(span)
    if len(hits) == 1:
        question.answer = question.meaning = hits[0]


def find_attributes(question: Question) -> set[tuple[str, str]]:
    """
    Find the pairs of an attribute (color, size, material) and its object that a turn states.

    A question that is answered by no, or that names alternatives, states nothing.
    """
    meaning = question.meaning.split()
    pairs = set()
    if question.meaning not in ("no", "0") and not question.answer.startswith("choice "):
        pairs |= _pairs(question.stem)
    if len(meaning) > 2:
        pairs |= _pairs(question.said)
    elif meaning and meaning[-1] in ATTRIBUTES:
        words = [word for word in split_into_words(question.stem) if word not in STOP_WORDS]
        noun = next((word for word in words if SAME.get(word, word) not in ATTRIBUTES), None)
        pairs |= {(meaning[-1], _singular(noun))} if noun else set()
    return pairs


def _pairs(text: str) -> set[tuple[str, str]]:
    """Find pairs in "red ball", "the ball is red" and "is the ball red"; none in sentences with a negation."""
    pairs = set()
    for sentence in re.split(r"[.!?;:\n]", text.lower()):
        if not ANY_ATTRIBUTE.search(sentence) or NEGATION.search(sentence):
            continue
        words = [SAME.get(word, word) for word in split_into_words(sentence)]
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
