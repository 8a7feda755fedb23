"""Check what captions claim of a picture: so many objects of a kind, in a color and with a pattern."""

import random
import re
from collections.abc import Iterator

from judge_colors import NAMES
from judge_scenes import Picture
from judge_words import NUMBERS, Reference, find_groups


CLAIM = re.compile(rf"\b(an?|{'|'.join(NUMBERS[1:])}) \{{(\d)\}}", re.IGNORECASE)


def find_claims(text: str) -> list[tuple[int, Reference]]:
    """Return the claims of a caption: a number, and what the objects are."""
    marked, groups = find_groups(text)
    found = []
    for match in CLAIM.finditer(marked):
        word, group = match[1].lower(), groups[int(match[2])]
        if group.noun is not None and group.color is not None:
            found.append((1 if word in ("a", "an") else NUMBERS.index(word), group))
    return found


def check(picture: Picture, number: int, group: Reference) -> bool | None:
    """Check whether a picture has a number of objects of a group."""
    found = picture.count(Reference(group.noun, group.color, group.pattern))
    return None if found is None else found == number


def check_claims(picture: Picture, text: str, rng: random.Random) -> Iterator[tuple[str, bool | None, bool | None]]:
    """Yield each claim, what the judge thinks of it, and what the judge thinks of the claim in another color."""
    claims = find_claims(text)
    taken = {group.color for _, group in claims}
    for number, group in claims:
        other = rng.choice([name for name in NAMES if name not in taken])
        wrong = Reference(group.noun, other, group.pattern)
        claim = " ".join(filter(None, (str(number), group.color, group.pattern, group.noun)))
        yield claim, check(picture, number, group), check(picture, number, wrong)
