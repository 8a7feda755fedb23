"""
Captions from outside: reading them, the paper's rules for them, and deduplication.

The rules and the deduplication are filters (see filters.py) for text that somebody else wrote: captions as they are
read and, with `text_field="description"`, what an LLM made of them (appendix E.2.2 of the paper: the same rules but
for the image-text scores). A sample with a scene graph passes through both as it is: its caption is exact, the short
sentences of a grammar ("three red cubes": 13 % special characters) would fail rules that were fitted to captions of
the web, and two scenes with one caption are two images.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fusion_vlm.rows.readers import stream_parquet
from fusion_vlm.synthesis.filters.rules import normalise, out_of_bounds
from fusion_vlm.synthesis.sample import Sample, stable_hash


FLAGGED_WORDS = Path(__file__).with_name("flagged_words.txt")
REPETITION_SIZE = 10  # characters, or words

# Least and most, the paper's table 12 (Data-Juicer's recipe for LLaVA's captions); both bounds pass.
TEXT_BOUNDS = {
    "alphanumeric": (0.60, math.inf),
    "character_repetition": (-math.inf, 0.09373663),
    "special_characters": (0.16534802, 0.42023757),
    "word_repetition": (-math.inf, 0.03085751),
    "flagged_words": (-math.inf, 0.0),
}
# Of the scorers that the paper used: KenLM on Wikipedia, BLIP (blip-itm-base-coco), CLIP (clip-vit-base-patch32). The
# values of another model mean something else: give bounds with it.
SCORE_BOUNDS = {
    "perplexity": (-math.inf, 5500.0),
    "image_text_matching": (0.8, math.inf),
    "image_text_similarity": (0.28, math.inf),
}


def read_captions(source: str | Path, column: str = "caption", split: str = "train") -> Iterator[tuple[str, dict]]:
    """
    Captions in the order of their source, read as they are needed. Rows whose caption is empty or missing (`null`) are
    left out.

    Args:
        source (`str` or `Path`): a `.txt` file with a caption a line, a `.jsonl` or `.parquet` file, or what
            `datasets.load_dataset` takes: a name on the Hub or a folder.
        column (`str`): where the caption is, but for `.txt`.
        split (`str`): of a data set.

    Yields:
        `tuple[str, dict]`: the caption without white space around it, and where it is from, for `Sample.source`:
        `{"captions": source, "row": index}`, rows counted from 0 with the ones left out.

    Raises:
        FileNotFoundError: if a file of one of the three kinds is not there.
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
    if rows.column_names is not None:  # not known of every stream
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
    """Share of characters that are letters or digits of any script (Data-Juicer's alphanumeric_filter); 0 for ""."""
    return sum(character.isalnum() for character in text) / max(len(text), 1)


def special_character_ratio(text: str) -> float:
    """Share of characters that are special, as `is_special` says (special_characters_filter); 0 for ""."""
    return sum(map(is_special, text)) / max(len(text), 1)


def is_special(character: str) -> bool:
    """
    Whether it is punctuation, a digit, white space or a symbol, emojis among them: all but letters and the marks on
    them. So a digit is alphanumeric and special. Data-Juicer lists ASCII's punctuation, digits and white space, emojis
    and some 150 others one by one; this says the same of ASCII's text and of that list but for 29 letters and marks.
    """
    return unicodedata.category(character)[0] not in "LM"


def character_repetition_ratio(text: str) -> float:
    """
    How much of a text is taken by its most frequent 10-character pieces (character_repetition_filter). All overlapping
    pieces are counted; of d different ones, those that repeat are taken, but at most the sqrt(d) (rounded down) most
    frequent; their occurrences are divided by those of all. 0 for a text of fewer than 10 characters.
    """
    counts = Counter(text[start : start + REPETITION_SIZE] for start in range(len(text) - REPETITION_SIZE + 1))
    num_repeated = sum(count > 1 for count in counts.values())
    most_frequent = counts.most_common(min(math.isqrt(len(counts)), num_repeated))
    return sum(count for _, count in most_frequent) / max(counts.total(), 1)


def word_repetition_ratio(text: str) -> float:
    """
    Share of the overlapping runs of 10 words that occur more than once (word_repetition_filter); 0 for fewer than 10
    words. Words are those of `split_words`.
    """
    words = split_words(text)
    starts = range(len(words) - REPETITION_SIZE + 1)
    counts = Counter(tuple(words[start : start + REPETITION_SIZE]) for start in starts)
    return sum(count for count in counts.values() if count > 1) / max(counts.total(), 1)


def flagged_word_ratio(text: str, flagged_words: frozenset[str]) -> float:
    """Share of the words that are on the list (flagged_words_filter)."""
    words = split_words(text)
    return sum(word in flagged_words for word in words) / max(len(words), 1)


def split_words(text: str) -> list[str]:
    """
    Words as Data-Juicer splits them: at spaces, tabs and line ends, lower case, without special characters at their
    ends. A number is all special characters, so it is no word.
    """
    words = []
    for word in re.split(r"[ \t\n]+", text.lower()):
        kept = [index for index, character in enumerate(word) if not is_special(character)]
        if kept:
            words.append(word[kept[0] : kept[-1] + 1])
    return words


def load_flagged_words(path: str | Path = FLAGGED_WORDS) -> frozenset[str]:
    """Words of a list, one a line, lower case; what follows a `#` is a comment."""
    lines = (line.partition("#")[0].strip().lower() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


class CaptionRules:
    """
    The paper's rules for captions and descriptions (appendix E.2.1 and E.2.2), as a filter. The text rules come first,
    then the scores, which are recorded as `caption_perplexity` and so on; `None` where there is no scorer.

    Args:
        text_field (`str`): `caption`, or `description`: then without the two image-text scores.
        scorers (`dict[str, Callable[[str, Sample], float | None]]`): by name of `SCORE_BOUNDS`. A scorer gets the text
            and its sample (an image-text one finds the caption's own image by `sample.source`), and says `None` of one
            that it cannot score.
        bounds (`dict[str, tuple[float, float]]`): least and most, in place of those in `TEXT_BOUNDS`, `SCORE_BOUNDS`.
        flagged_words (`frozenset[str]`, *optional*): in place of the list shipped.

    Raises:
        ValueError: if there is no such text field or rule.
    """

    name = "caption_rules"

    def __init__(
        self,
        text_field: str = "caption",
        scorers: dict[str, Callable[[str, Sample], float | None]] | None = None,
        bounds: dict[str, tuple[float, float]] | None = None,
        flagged_words: frozenset[str] | None = None,
    ):
        if text_field not in ("caption", "description"):
            raise ValueError(f"`text_field` is {text_field!r}, expected 'caption' or 'description'.")
        self.text_field, self.scorers = text_field, scorers or {}
        self.bounds = {**TEXT_BOUNDS, **SCORE_BOUNDS, **(bounds or {})}
        self.score_names = [*SCORE_BOUNDS] if text_field == "caption" else ["perplexity"]
        if unknown := [name for name in self.scorers if name not in self.score_names]:
            raise ValueError(f"There are scorers for {unknown}, expected for some of {self.score_names}.")
        if unknown := self.bounds.keys() - TEXT_BOUNDS.keys() - SCORE_BOUNDS.keys():
            raise ValueError(
                f"There are bounds for {sorted(unknown)}, expected for some of {[*TEXT_BOUNDS, *SCORE_BOUNDS]}."
            )
        words = load_flagged_words() if flagged_words is None else flagged_words
        self.measures = {
            "alphanumeric": alphanumeric_ratio,
            "character_repetition": character_repetition_ratio,
            "special_characters": special_character_ratio,
            "word_repetition": word_repetition_ratio,
            "flagged_words": lambda text: flagged_word_ratio(text, words),
        }

    def __call__(self, sample: Sample) -> str | None:
        if sample.scenes:
            return None
        text = getattr(sample, self.text_field)
        for rule, measure in self.measures.items():
            if (reason := out_of_bounds(rule, measure(text), *self.bounds[rule])) is not None:
                return reason
        reasons = []
        for rule in self.score_names:
            score = self.scorers[rule](text, sample) if rule in self.scorers else None
            sample.scores[f"{self.text_field}_{rule}"] = score
            reasons.append(None if score is None else out_of_bounds(rule, score, *self.bounds[rule]))
        return next(filter(None, reasons), None)


class Deduplicate:
    """
    Rejects a text that an earlier sample has: the same, the same after `normalise`, or, of long texts only, nearly the
    same. Near-duplicate hashing would throw away "3 apples" beside "4 apples", so short texts are never compared so.

    The first in the order of calls wins: call it on samples as they are read, in one process. It then depends on its
    input alone, so a run that starts again and reads its captions again decides the same; a sample that comes again,
    by its id, is no duplicate of itself. It keeps 0.2 KB for each text and 8 KB for each long one.

    Args:
        text_field (`str`): `caption` or `description`.
        num_long_words (`int`): from how many words on a text is long.
        min_similarity (`float`): from which estimated Jaccard similarity of their runs of 5 words on two long texts
            are nearly the same (`MinHash`).
    """

    name = "deduplicate"

    def __init__(self, text_field: str = "caption", num_long_words: int = 50, min_similarity: float = 0.8):
        self.text_field, self.num_long_words, self.min_similarity = text_field, num_long_words, min_similarity
        self.first_texts: dict[int, tuple[str, int]] = {}  # hash of the normalised text: id, hash of the text
        self.long_texts = MinHash()

    def __call__(self, sample: Sample) -> str | None:
        if sample.scenes:
            return None
        text = getattr(sample, self.text_field)
        normalised = normalise(text)
        key, text_hash = stable_hash(normalised), stable_hash(text)
        if key in self.first_texts:
            first_id, first_hash = self.first_texts[key]
            if first_id == sample.id:
                return None
            rule = "same_text" if first_hash == text_hash else "same_normalised_text"
            return f"{rule}: as {first_id}, expected a new one"
        words = normalised.split()
        if len(words) >= self.num_long_words:
            signature = self.long_texts.sign(words)
            first_id, similarity = self.long_texts.find(signature, self.min_similarity)
            if first_id is not None:
                return f"nearly_same_text: {similarity:.2f} as {first_id}, expected less than {self.min_similarity:g}"
            self.long_texts.add(sample.id, signature)
        self.first_texts[key] = (sample.id, text_hash)
        return None


class MinHash:
    """
    An index of texts by the sets of their runs of 5 words (Broder 1997). A text's signature is the least value of each
    of 128 hash functions over its set; the share of equal values in two signatures estimates the Jaccard similarity
    of their sets, with a standard error of 0.035 at 0.8. Candidates share a band of 4 values: of pairs at 0.8, all but
    one in 20 million do.
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
        """The signature of a text of 5 words or more: `(128,)`, uint32."""
        runs = {tuple(words[start : start + self.run_size]) for start in range(len(words) - self.run_size + 1)}
        hashes = np.array([stable_hash(run) for run in runs], dtype=np.uint64)[:, None]
        return ((hashes * self.factors + self.offsets).min(axis=0) >> np.uint64(32)).astype(np.uint32)

    def find(self, signature: np.ndarray, min_similarity: float) -> tuple[str | None, float]:
        """Id and similarity of the text most like it, the earliest of equals; `(None, 0.0)` if none is enough."""
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
