"""Find in a question which objects it names, and in an answer which value it gives."""

import re
from dataclasses import dataclass
from functools import cache

from judge_colors import NAMES
from judge_shapes import load_library


PATTERNS = ("striped", "polka-dotted", "checkered", "zigzag")
EXTREMES = ("leftmost", "rightmost", "highest", "lowest", "largest", "smallest")
RELATIONS = ("nearest to", "closest to", "inside", "that touches", "behind")
NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
ZONES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the center", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
ZONE = re.compile("|".join(sorted((zone for row in ZONES for zone in row), key=len, reverse=True)))
YES_NO = re.compile(
    r"^(is|are|does|do|can|could|would|has|have|was|were|should|did|would|am)\b|"
    r", (is|are|do|does|can|did|would|has) |someone (says|counted)|^on the way .* do you|: (is|are|do) ",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reference:
    """
    What a question calls an object, or a group of objects.

    Args:
        noun (`str`, *optional*), color (`str`, *optional*), pattern (`str`, *optional*): what is said of it.
        extreme (`str`, *optional*): one of `EXTREMES`.
        relations (`tuple[str, ...]`): of `RELATIONS`, from the outermost: the object that stands so to the rest.
        is_plural (`bool`)
    """

    noun: str | None = None
    color: str | None = None
    pattern: str | None = None
    extreme: str | None = None
    relations: tuple[str, ...] = ()
    is_plural: bool = False


def _either(words) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


@cache
def _patterns() -> tuple[re.Pattern, re.Pattern]:
    library = load_library()
    looks = rf"(?:(?P<color>{_either(NAMES)}) )?(?:(?P<pattern>{_either(PATTERNS)}) )?"
    relation = rf"(?P<relations>(?:the (?:object|thing) (?:{_either(RELATIONS)}) )*)"
    noun = rf"(?P<noun>{_either(library.nouns)}|object|thing)"
    single = rf"\b{relation}(?:the|an?) (?:(?P<extreme>{_either(EXTREMES)}) )?{looks}{noun}\b(?!-)"
    plural = rf"\b{looks}(?P<noun>{_either([*library.plurals, *library.nouns])}|objects?|things?)\b(?!-)"
    return re.compile(single, re.IGNORECASE), re.compile(plural, re.IGNORECASE)


def _make_reference(match: re.Match, is_plural: bool) -> Reference:
    found = {name: value.lower() if value else None for name, value in match.groupdict().items()}
    noun, library = match["noun"], load_library()
    noun = library.plurals.get(noun, noun) if is_plural else noun
    names = {name.lower(): name for name in library.nouns}
    noun = names.get(noun.lower(), names.get(library.plurals.get(noun.lower(), "")))
    relations = tuple(re.findall(_either(RELATIONS), found.get("relations") or ""))
    return Reference(noun, found["color"], found["pattern"], found.get("extreme"), relations, is_plural)


def _is_empty(reference: Reference) -> bool:
    return reference == Reference(relations=reference.relations, is_plural=reference.is_plural)


def find_references(text: str) -> tuple[str, list[Reference]]:
    """Return a text with `[0]`, `[1]` in the places of single objects, and what is said of each object."""
    return _replace(text, False, "[{}]")


def find_groups(text: str) -> tuple[str, list[Reference]]:
    """Return a text with `{0}`, `{1}` in the places of groups, and what is said of each group, each once."""
    return _replace(text, True, "{{{}}}")


def _replace(text: str, is_plural: bool, mark: str) -> tuple[str, list[Reference]]:
    found: list[Reference] = []

    def replace(match: re.Match) -> str:
        reference = _make_reference(match, is_plural)
        if _is_empty(reference):
            return match[0]
        if reference not in found:
            found.append(reference)
        return mark.format(found.index(reference))

    return _patterns()[is_plural].sub(replace, text), found


def read_number(text: str) -> int | None:
    """Return the last number of a text, in digits or as a word of two or more."""
    words = re.findall(r"\d+|[a-z]+", text.lower())
    numbers = [
        int(word) if word.isdigit() else NUMBERS.index(word) for word in words if word.isdigit() or word in NUMBERS
    ]
    return numbers[-1] if numbers else None


def find_words(text: str, words) -> list[str]:
    """Return those of some words that a text has, in order, and none inside of a longer one."""
    return [
        match[0].lower() for match in re.finditer(rf"(?<![\w-])(?:{_either(words)})(?![\w-])", text, re.IGNORECASE)
    ]


def find_nouns(text: str) -> list[str]:
    """Return the names of objects in a text, singular or plural."""
    library = load_library()
    names = {name.lower(): name for name in library.nouns} | {p.lower(): n for p, n in library.plurals.items()}
    return [names[word] for word in find_words(text, names)]
