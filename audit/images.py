"""
Near-duplicate images of a whole set, by perceptual hashes of 64 bits (imagehash's `phash`).

Memory holds about 100 bytes for each image, and a few images at a time. Hashes within a distance of d bits agree in at
least one of d + 1 bands, so only images that share a band are compared.
"""

import io
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from fusion_vlm.rows.forms import IMAGE_COLUMNS
from fusion_vlm.rows.readers import stream_rows


MAX_DISTANCE = 3  # bits; a picture and its copy at half the size and JPEG quality 60 differ in 0 to 2
NUM_LISTED = 5


@dataclass
class NearDuplicates:
    """
    What the hashes of a set tell.

    Args:
        num (`int`), num_missing (`int`): images that were hashed, and rows whose image is missing or cannot be read.
        num_equal (`int`): images with the hash of an earlier image.
        num_near (`int`): images whose hash differs from that of an earlier image in `MAX_DISTANCE` bits or fewer; the
            equal ones are among them.
        largest_group (`int`): images that share the most frequent hash.
        examples (`list[tuple[int, int]]`): rows, from 0, of some pairs.
    """

    num: int
    num_missing: int
    num_equal: int
    num_near: int
    largest_group: int
    examples: list[tuple[int, int]]

    def summary(self) -> str:
        """Write the result in a few lines."""
        lines = [
            f"{self.num} images; {self.num_equal} have the hash of an earlier image, {self.num_near} differ from an"
            f" earlier one in {MAX_DISTANCE} of 64 bits or fewer. The most frequent hash occurs {self.largest_group}"
            " times."
        ]
        if self.num_missing:
            lines.append(f"{self.num_missing} rows have no image that can be read.")
        if self.examples:
            pairs = "; ".join(f"{first} and {second}" for first, second in self.examples)
            lines.append(f"Examples (rows from 0): {pairs}")
        return "\n".join(lines)


def audit_images(path: str | Path, image_folder: str | Path | None = None) -> NearDuplicates:
    """
    Hash the first image of each row, and find near duplicates.

    Args:
        path (`str` or `Path`): what `audit.read_rows` takes.
        image_folder (`str` or `Path`, *optional*): folder of the paths in a JSON file; by default `images` beside the
            file if there is one, else the folder of the file.

    Raises:
        ValueError: if no row has an image that can be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    base = Path(image_folder) if image_folder else folder / "images" if (folder / "images").is_dir() else folder
    rows, hashes, num_missing = array("q"), array("Q"), 0  # 16 bytes for an image
    for row, value in enumerate(_read_hashes(stream_rows(path, IMAGE_COLUMNS), base)):
        if value is None:
            num_missing += 1
        else:
            rows.append(row)
            hashes.append(value)
    if not hashes:
        raise ValueError(f"None of {num_missing} rows of {path} has an image that can be read below {base}.")
    found = find_near_duplicates(np.array(hashes, dtype=np.uint64), MAX_DISTANCE)
    found.num_missing = num_missing
    found.examples = [(rows[first], rows[second]) for first, second in found.examples]
    return found


def _read_hashes(rows: Iterable[dict], base: Path) -> Iterator[int | None]:
    for row in rows:
        try:
            with _open_image(row, base) as image:
                yield int(str(imagehash.phash(image.convert("RGB"))), 16)
        except (OSError, AttributeError, KeyError, StopIteration, TypeError):  # no image, no path, or no row
            yield None


def _open_image(row: dict, base: Path) -> Image.Image:
    """Open the first image of a row: bytes of a table, or a path of a JSON file."""
    value = next(row[name] for name in IMAGE_COLUMNS if row.get(name))
    value = value[0] if isinstance(value, list) else value
    if isinstance(value, dict):
        return Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else base / value["path"])
    return Image.open(base / value)


def find_near_duplicates(hashes: np.ndarray, max_distance: int) -> NearDuplicates:
    """
    Find hashes that are near an earlier one.

    Args:
        hashes (`np.ndarray` of shape `(num_images,)`): uint64.
        max_distance (`int`): most bits in which two hashes differ; 7 or fewer.
    """
    unique, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    nearest = np.full(len(unique), -1)  # an earlier image that is near the first image of each hash
    width = 64 // (max_distance + 1)
    for band in range(max_distance + 1):
        keys = (unique >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        left, shift = np.arange(len(order)), 0
        while len(left):
            shift += 1
            left = left[left + shift < len(order)]
            left = left[keys[order[left]] == keys[order[left + shift]]]
            one, other = order[left], order[left + shift]
            near = np.bitwise_count(unique[one] ^ unique[other]) <= max_distance
            one, other = one[near], other[near]
            later = np.where(first[one] > first[other], one, other)
            nearest[later] = np.where(first[one] > first[other], first[other], first[one])
    is_first = np.zeros(len(hashes), dtype=bool)
    is_first[first] = True
    repeated = np.flatnonzero(~is_first)
    examples = [(int(first[inverse[index]]), int(index)) for index in repeated[:NUM_LISTED]]
    near = np.flatnonzero(nearest >= 0)
    examples += [(int(nearest[index]), int(first[index])) for index in near[: NUM_LISTED - len(examples)]]
    return NearDuplicates(
        num=len(hashes),
        num_missing=0,
        num_equal=len(repeated),
        num_near=len(repeated) + len(near),
        largest_group=int(counts.max()),
        examples=examples,
    )
