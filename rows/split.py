"""Splits rows into those to train on and those held out, so that no image is in both parts."""

import json
import random


MAX_HELD_OUT = 1000


def default_share(num_rows: int) -> float:
    """Return which share of rows to hold out: a fifth of a small table, or the figures would rest on a few rows."""
    return 0.2 if num_rows < 100 else min(0.1, MAX_HELD_OUT / num_rows)


def split_rows(
    rows: list[dict], fingerprints: list[str | None], share: float, seed: int
) -> tuple[list[dict], list[dict]]:
    """
    Split rows by their images.

    Args:
        rows (`list[dict]`): of `read_rows`.
        fingerprints (`list[str | None]`): of their images, see `check_images`. Rows without an image count as one
            group if their messages are equal.
        share (`float`): of the rows to hold out, from 0 on and below 1; at least one row unless it is 0.
        seed (`int`): the split depends on it and on the rows alone.

    Returns:
        The rows to train on and those held out, both in the order of the table. Neither part is empty, except that a
        share of 0 holds nothing out.

    Raises:
        ValueError: if the share is no share, or if there are too few different images to split.
    """
    if not 0 <= share < 1:
        raise ValueError(f"The share of held-out rows is {share}, expected 0 or more and less than 1.")
    if share == 0:
        return list(rows), []
    groups: dict[str, list[int]] = {}
    for index, (row, fingerprint) in enumerate(zip(rows, fingerprints, strict=True)):
        groups.setdefault(fingerprint or json.dumps(row["messages"], default=str), []).append(index)
    if len(groups) < 2:
        what = "is one row" if len(rows) == 1 else f"are {len(rows)} rows about one image"
        raise ValueError(
            f"There {what}: none can be held out to measure on. Give more rows, a table of your own with --eval-data"
            " FILE, or hold nothing out with --eval-share 0."
        )
    names = sorted(groups)  # not the order of the file, so that sorting a table changes nothing
    random.Random(seed).shuffle(names)
    wanted = max(1, round(share * len(rows)))
    held_out: set[int] = set()
    for name in names[:-1]:
        if len(held_out) >= wanted:
            break
        held_out.update(groups[name])
    parts: tuple[list, list] = ([], [])
    for index, row in enumerate(rows):
        parts[index in held_out].append(row)
    return parts
