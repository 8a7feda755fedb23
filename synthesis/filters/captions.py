"""
The paper's rules for captions, and for the descriptions that a language model makes of them.

Those for descriptions (appendix E.2.2 of the paper) are the same without the image-text scores. Samples with a scene
graph are kept as they are. Their captions are exact, and the short sentences of a grammar ("three red cubes": 13 %
special characters) would fail rules for captions of the web.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fusion_vlm.synthesis.filters.text import out_of_bounds
from fusion_vlm.synthesis.sample import Sample


FLAGGED_WORDS = Path(__file__).with_name("flagged_words.txt")
REPETITION_SIZE = 10  # characters, or words

# Least and most, the paper's table 12 (Data-Juicer's recipe for LLaVA's captions). Values on a bound pass.
TEXT_BOUNDS = {
    "alphanumeric": (0.60, math.inf),
    "character_repetition": (-math.inf, 0.09373663),
    "special_characters": (0.16534802, 0.42023757),
    "word_repetition": (-math.inf, 0.03085751),
    "flagged_words": (-math.inf, 0.0),
}
# Scores that the paper has from KenLM, BLIP and CLIP. Nothing here measures them: they are recorded as not available.
SCORES = {
    "caption": ("perplexity", "image_text_matching", "image_text_similarity"),
    "description": ("perplexity",),
}


def alphanumeric_ratio(text: str) -> float:
    """Compute the share of letters and digits of any script (Data-Juicer's alphanumeric_filter); 0 for ""."""
    return sum(character.isalnum() for character in text) / max(len(text), 1)


def special_character_ratio(text: str) -> float:
    """Compute the share of special characters, see `is_special` (special_characters_filter); 0 for ""."""
    return sum(map(is_special, text)) / max(len(text), 1)


def is_special(character: str) -> bool:
    """
    Check that a character is neither a letter nor a mark on a letter.

    So a digit is alphanumeric and special. Data-Juicer has a list: ASCII's punctuation, digits and white space, emojis
    and some 150 others. This function agrees with that list but for 29 letters and marks.
    """
    return unicodedata.category(character)[0] not in "LM"


def character_repetition_ratio(text: str) -> float:
    """
    Compute the share of the most frequent pieces of 10 characters (character_repetition_filter).

    All overlapping pieces are counted. Of d different pieces, those that repeat are taken, but at most the sqrt(d)
    (rounded down) most frequent. Their occurrences are divided by those of all pieces. 0 for fewer than 10 characters.
    """
    counts = Counter(text[start : start + REPETITION_SIZE] for start in range(len(text) - REPETITION_SIZE + 1))
    num_repeated = sum(count > 1 for count in counts.values())
    most_frequent = counts.most_common(min(math.isqrt(len(counts)), num_repeated))
    return sum(count for _, count in most_frequent) / max(counts.total(), 1)


def word_repetition_ratio(text: str) -> float:
    """
    Compute the share of overlapping runs of 10 words that occur more than once (word_repetition_filter).

    Words are those of `split_words`. 0 for fewer than 10 words.
    """
    words = split_words(text)
    starts = range(len(words) - REPETITION_SIZE + 1)
    counts = Counter(tuple(words[start : start + REPETITION_SIZE]) for start in starts)
    return sum(count for count in counts.values() if count > 1) / max(counts.total(), 1)


def flagged_word_ratio(text: str, flagged_words: frozenset[str]) -> float:
    """Compute the share of the words that are flagged (flagged_words_filter)."""
    words = split_words(text)
    return sum(word in flagged_words for word in words) / max(len(words), 1)


def split_words(text: str) -> list[str]:
    """
    Split a text into words as Data-Juicer does.

    It is split at spaces, tabs and line ends. Words are in lower case, without special characters at their ends. A
    number consists of special characters, so it is no word.
    """
    words = []
    for word in re.split(r"[ \t\n]+", text.lower()):
        kept = [index for index, character in enumerate(word) if not is_special(character)]
        if kept:
            words.append(word[kept[0] : kept[-1] + 1])
    return words


def load_flagged_words() -> frozenset[str]:
    """Read the list of flagged words: one a line, in lower case; a `#` begins a comment."""
    lines = (line.partition("#")[0].strip().lower() for line in FLAGGED_WORDS.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


class CaptionRules:
    """
    The paper's rules for captions and descriptions (appendix E.2.1 and E.2.2), as a filter.

    Records the paper's scores as `caption_perplexity` and so on, `None` for not available.

    Args:
        text_field (`str`): `caption` or `description`.
        bounds (`Iterable[tuple[str, float | None, float | None]]`): name of a rule, least and most value (`None` for
            no bound), in place of those in `TEXT_BOUNDS`.

    Raises:
        ValueError: if there is no such text field or rule.
    """

    name = "caption_rules"

    def __init__(self, text_field: str = "caption", bounds: Iterable[tuple[str, float | None, float | None]] = ()):
        if text_field not in SCORES:
            raise ValueError(f"`text_field` is {text_field!r}, expected 'caption' or 'description'.")
        self.text_field, self.bounds = text_field, dict(TEXT_BOUNDS)
        for rule, low, high in bounds:
            if rule not in TEXT_BOUNDS:
                raise ValueError(f"There are bounds for {rule!r}, expected for some of {', '.join(TEXT_BOUNDS)}.")
            self.bounds[rule] = (-math.inf if low is None else low, math.inf if high is None else high)
        flagged_words = load_flagged_words()
        self.measures = {
            "alphanumeric": alphanumeric_ratio,
            "character_repetition": character_repetition_ratio,
            "special_characters": special_character_ratio,
            "word_repetition": word_repetition_ratio,
            "flagged_words": lambda text: flagged_word_ratio(text, flagged_words),
        }

    def __call__(self, sample: Sample) -> str | None:
        text = getattr(sample, self.text_field)
        if sample.scenes or (self.text_field == "description" and not text):
            return None
        for rule, measure in self.measures.items():
            if (reason := out_of_bounds(rule, measure(text), *self.bounds[rule])) is not None:
                return reason
        sample.scores |= {f"{self.text_field}_{name}": None for name in SCORES[self.text_field]}
        return None
