"""
Captions from outside: readers of files, the paper's rules, and deduplication.

The rules and the deduplication are filters for text that others wrote: captions as they are read, and descriptions
that an LLM made of them (appendix E.2.2 of the paper: the same rules without the image-text scores). Samples with a
scene graph are kept as they are. Their captions are exact; the short sentences of a grammar ("three red cubes": 13 %
special characters) would fail rules for captions of the web; and two scenes with one caption are two images.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fusion_vlm.rows.readers import stream_parquet
from fusion_vlm.synthesis.filters.text import normalize, out_of_bounds
from fusion_vlm.synthesis.sample import Sample, stable_hash


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
NUM_LONG_WORDS = 50  # from which a text is long enough to have near duplicates
MIN_SIMILARITY = 0.8  # estimated Jaccard similarity of near duplicates


def read_captions(source: str | Path, column: str = "caption", split: str = "train") -> Iterator[tuple[str, dict]]:
    """
    Read captions in order, as they are needed. Rows whose caption is empty or missing (`null`) are skipped.

    Args:
        source (`str` or `Path`): a `.txt` file with a caption a line, a `.jsonl` or `.parquet` file, or what
            `datasets.load_dataset` takes: a name on the Hub or a folder.
        column (`str`): column of the caption; not for `.txt`.
        split (`str`): split of a data set.

    Yields:
        `tuple[str, dict]`: the caption without white space around it, and its origin for `Sample.source`:
        `{"captions": source, "row": index}`. The index counts skipped rows, too.

    Raises:
        FileNotFoundError: if a file of one of the three kinds is missing.
        ValueError: if a row has no such column, if its caption is not text, or if a line is not JSON or not UTF-8; the
            message names the row.
    """
    source = str(source)
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(Path(source).suffix.lower())
    if reader is None and Path(source).is_file():
        raise ValueError(
            f"{source} is none of {', '.join(readers)}. Convert it, or give a folder or a name on the Hub."
        )
    rows = reader(source, column) if reader else _read_dataset(source, column, split)
    for index, caption in enumerate(rows):
        if caption is not None and not isinstance(caption, str):
            raise ValueError(
                f"Row {index} of {source} has a {type(caption).__name__} in the column {column!r}, expected text."
            )
        if caption and caption.strip():
            yield caption.strip(), {"captions": source, "row": index}


def _read_text(path: str, column: str) -> Iterator[str]:
    with open(path, "rb") as file:
        for index, line in enumerate(file):
            try:
                yield line.decode("utf-8-sig" if index == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"Row {index} of {path} is not UTF-8: {error}") from error


def _read_jsonl(path: str, column: str) -> Iterator[str | None]:
    for index, line in enumerate(_read_text(path, column)):
        if not line.strip():
            yield None
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Row {index} of {path} is not JSON: {error}") from error
        yield _get_column(row, column, index, path)


def _read_parquet(path: str, column: str) -> Iterator[str | None]:
    for row in stream_parquet(path, [column], required=[column]):
        yield row[column]


def _read_dataset(name: str, column: str, split: str) -> Iterator[str | None]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("Reading captions from a data set needs `pip install fusion-vlm[synthesis]`.") from error

    rows = load_dataset(name, split=split, streaming=True)
    if rows.column_names is not None:  # some streams do not know their columns
        _get_column(dict.fromkeys(rows.column_names), column, 0, name)
        rows = rows.select_columns([column])  # images need not be fetched and decoded
    for index, row in enumerate(rows):
        yield _get_column(row, column, index, name)


def _get_column(row: dict, column: str, index: int, source: str):
    if not isinstance(row, dict) or column not in row:
        found = f"the columns {sorted(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f"Row {index} of {source} has {found}, expected {column!r} to be one.")
    return row[column]


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
        if sample.scenes:
            return None
        text = getattr(sample, self.text_field)
        for rule, measure in self.measures.items():
            if (reason := out_of_bounds(rule, measure(text), *self.bounds[rule])) is not None:
                return reason
        sample.scores |= {f"{self.text_field}_{name}": None for name in SCORES[self.text_field]}
        return None


class Deduplicate:
    """
    Rejects a caption that an earlier sample has.

    Rejected are the same text, the same text after `normalize`, and, of long texts only, nearly the same text. Short
    texts are never compared for near duplicates: hashing would reject "3 apples" beside "4 apples".

    The first in the order of calls is kept, so call it on samples as they are read, in one process. The result then
    depends on the captions alone, and a run that is resumed decides the same. A sample that comes again, by its id, is
    no duplicate of itself. Memory: 0.2 KB for each text and 8 KB for each long one.
    """

    name = "deduplicate"

    def __init__(self):
        self.first_texts: dict[int, tuple[str, int]] = {}  # hash of the normalized text: id, hash of the text
        self.long_texts = MinHash()

    def __call__(self, sample: Sample) -> str | None:
        if sample.scenes:
            return None
        normalized = normalize(sample.caption)
        key, text_hash = stable_hash(normalized), stable_hash(sample.caption)
        if key in self.first_texts:
            first_id, first_hash = self.first_texts[key]
            if first_id == sample.id:
                return None
            rule = "same_text" if first_hash == text_hash else "same_normalised_text"
            return f"{rule}: as {first_id}, expected a new one"
        words = normalized.split()
        if len(words) >= NUM_LONG_WORDS:
            signature = self.long_texts.sign(words)
            first_id, similarity = self.long_texts.find(signature, MIN_SIMILARITY)
            if first_id is not None:
                return f"nearly_same_text: {similarity:.2f} as {first_id}, expected less than {MIN_SIMILARITY:g}"
            self.long_texts.add(sample.id, signature)
        self.first_texts[key] = (sample.id, text_hash)
        return None


class MinHash:
    """
    An index of texts by the sets of their runs of 5 words (Broder 1997).

    A text's signature is the least value of each of 128 hash functions over its set. The share of equal values in two
    signatures estimates the Jaccard similarity of their sets, with a standard error of 0.035 at 0.8. Two texts are
    compared only if they share a band of 4 values: of pairs at 0.8, all but one in 20 million do.
    """

    run_size, num_bands, band_size = 5, 32, 4

    def __init__(self):
        numbers = range(self.num_bands * self.band_size)
        # Multiplication by an odd number and addition permute the integers of 64 bits.
        self.factors = np.array([stable_hash("factor", number) | 1 for number in numbers], dtype=np.uint64)
        self.offsets = np.array([stable_hash("offset", number) for number in numbers], dtype=np.uint64)
        self.signatures: dict[str, np.ndarray] = {}
        self.bands: dict[tuple[int, bytes], list[str]] = {}

    def sign(self, words: list[str]) -> np.ndarray:
        """Compute the signature of a text of 5 words or more: `(128,)`, uint32."""
        runs = {tuple(words[start : start + self.run_size]) for start in range(len(words) - self.run_size + 1)}
        hashes = np.array([stable_hash(run) for run in runs], dtype=np.uint64)[:, None]
        return ((hashes * self.factors + self.offsets).min(axis=0) >> np.uint64(32)).astype(np.uint32)

    def find(self, signature: np.ndarray, min_similarity: float) -> tuple[str | None, float]:
        """Find id and similarity of the most similar text, the earliest of equals; `(None, 0.0)` if there is none."""
        candidates = dict.fromkeys(id for key in self._keys(signature) for id in self.bands.get(key, ()))
        best_id, best_similarity = None, 0.0
        for id in candidates:
            similarity = float((self.signatures[id] == signature).mean())
            if similarity >= min_similarity and similarity > best_similarity:
                best_id, best_similarity = id, similarity
        return best_id, best_similarity

    def add(self, id: str, signature: np.ndarray):
        self.signatures[id] = signature
        for key in self._keys(signature):
            self.bands.setdefault(key, []).append(id)

    def _keys(self, signature: np.ndarray) -> list[tuple[int, bytes]]:
        return [(band, values.tobytes()) for band, values in enumerate(signature.reshape(self.num_bands, -1))]
