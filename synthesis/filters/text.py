"""Text helpers of the filters: normalize texts to compare them, and word the reasons of rejects."""

import math
import unicodedata


def normalize(text: str) -> str:
    """
    Normalize a text for comparison.

    Unicode becomes NFKC, case is folded, punctuation and white space become single spaces. Symbols (`+`, `<`, `$`)
    stay, and so does a text that is nothing but punctuation.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SPACES).split()) or folded.strip()


class _Spaces(dict):
    """Maps the codes of punctuation to spaces, and others to themselves; filled as codes are met."""

    def __missing__(self, code: int) -> int:
        self[code] = found = ord(" ") if unicodedata.category(chr(code))[0] == "P" else code
        return found


_SPACES = _Spaces()


def quote(text: str) -> str:
    """Return the beginning of a text, quoted, in one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def out_of_bounds(rule: str, value: float, low: float, high: float) -> str | None:
    """Return None if `low <= value <= high`, else a reason that names the value and its bounds. NaN is out of all."""
    if low <= value <= high:
        return None
    if math.isinf(high):
        return f"{rule}: {value:.6g}, expected at least {low:.8g}"
    if math.isinf(low):
        return f"{rule}: {value:.6g}, expected at most {high:.8g}"
    return f"{rule}: {value:.6g}, expected {low:.8g} to {high:.8g}"
