"""
Finds captions that an earlier row has.

Duplicates are the same text, the same text after `normalize`, and, of long texts only, nearly the same text. Short
texts are never compared for near duplicates: hashing would reject "3 apples" beside "4 apples".
"""

import tempfile
from array import array

import numpy as np

from fusion_vlm.synthesis.filters.text import normalize
from fusion_vlm.synthesis.sample import stable_hash


NUM_LONG_WORDS = 50  # from which a text is long enough to have near duplicates
MIN_SIMILARITY = 0.8  # estimated Jaccard similarity of near duplicates
# Similar are the sets of runs of 5 words (Broder 1997). Two texts are compared if they share a band of 4 of the 128
# values of their signatures: of pairs at a similarity of 0.8, all but one in 20 million do.
RUN_SIZE, NUM_BANDS, BAND_SIZE = 5, 32, 4
SIGNATURE_SEED = 42
RULES = ("", "same_text", "same_normalised_text", "nearly_same_text")  # why a text is rejected; "" if it is not


class Duplicates:
    """
    Collects texts with `add`, and then finds the duplicates among them.

    The first of equal texts is kept. A text that is nearly the same as a rejected text only is kept, so chains of
    small changes end. Memory: 16 bytes for each text. Signatures of long texts, 512 bytes each, are in a file.
    """

    def __init__(self):
        self.keys, self.texts = array("Q"), array("Q")
        self.long_positions = array("Q")
        self.signatures = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, text: str):
        normalized = normalize(text)
        words = normalized.split()
        if len(words) >= NUM_LONG_WORDS:
            self.long_positions.append(len(self.keys))
            self.signatures.write(sign(words).tobytes())
        self.keys.append(stable_hash(normalized))
        self.texts.append(stable_hash(text))

    def find(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Find all duplicates.

        Returns:
            `np.ndarray`: `(texts,)`, int64; position of the first of equal texts, its own if it is no duplicate.
            `np.ndarray`: `(texts,)`, uint8; index in `RULES` of the rule that rejects a text, 0 for none.
        """
        keys, texts = np.frombuffer(self.keys, np.uint64), np.frombuffer(self.texts, np.uint64)
        _, firsts, groups = np.unique(keys, return_index=True, return_inverse=True)
        firsts = firsts[groups]
        is_same = texts == texts[firsts]
        rules = np.where(is_same, RULES.index("same_text"), RULES.index("same_normalised_text")).astype(np.uint8)
        rules[firsts == np.arange(len(firsts))] = 0
        self._find_near(firsts, rules)
        return firsts, rules

    def _find_near(self, firsts: np.ndarray, rules: np.ndarray):
        """Add the near duplicates to the results of `find`."""
        positions = np.frombuffer(self.long_positions, np.uint64).astype(np.int64)
        if not len(positions):
            return
        self.signatures.flush()
        signatures = np.memmap(self.signatures, np.uint32, "r").reshape(-1, NUM_BANDS * BAND_SIZE)
        rows = np.flatnonzero(rules[positions] == 0)
        rows = rows[_shares_band(signatures, rows)]
        index: dict[tuple[int, bytes], list[int]] = {}
        for row in rows.tolist():
            signature = np.asarray(signatures[row])
            bands = list(enumerate(part.tobytes() for part in signature.reshape(NUM_BANDS, -1)))
            near = np.array(sorted({other for band in bands for other in index.get(band, ())}), np.int64)
            shares = (signatures[near] == signature).mean(axis=1)
            if len(near) and shares.max() >= MIN_SIMILARITY:
                firsts[positions[row]] = positions[near[shares.argmax()]]
                rules[positions[row]] = RULES.index("nearly_same_text")
                continue
            for band in bands:
                index.setdefault(band, []).append(row)


def sign(words: list[str]) -> np.ndarray:
    """Compute the MinHash signature of a text of 5 words or more: `(128,)`, uint32; the same in every process."""
    from rensa import RMinHash  # late: an extra, and only long texts need it

    signature = RMinHash(NUM_BANDS * BAND_SIZE, SIGNATURE_SEED)
    signature.update([" ".join(words[start : start + RUN_SIZE]) for start in range(len(words) - RUN_SIZE + 1)])
    return np.array(signature.digest(), np.uint32)


def _shares_band(signatures: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """
    Find the rows that share a band with another row: `(len(rows),)`, bool.

    Only these can be near duplicates, and only these are kept in memory. Two bands with one hash are no error: the
    signatures are compared later.
    """
    shares = np.zeros(len(rows), bool)
    weights = np.array([stable_hash("weight", index) | 1 for index in range(BAND_SIZE)], np.uint64)
    for band in range(NUM_BANDS):
        values = signatures[:, band * BAND_SIZE : (band + 1) * BAND_SIZE][rows].astype(np.uint64)
        _, groups, counts = np.unique((values * weights).sum(axis=1), return_inverse=True, return_counts=True)
        shares |= counts[groups] > 1
    return shares
