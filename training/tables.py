"""Tables in a terminal."""

from collections.abc import Sequence


def format_table(table: Sequence[Sequence[str]], *, numbers: bool = True, indent: int = 0) -> list[str]:
    """
    Return the lines of a table.

    Args:
        table (`Sequence[Sequence[str]]`): rows of cells.
        numbers (`bool`): whether all columns but the first hold numbers, which are aligned on the right.
        indent (`int`): spaces before each line.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = ["<", *(">" if numbers else "<") * (len(widths) - 1)]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in table
    ]
    return [" " * indent + line.rstrip() for line in lines]
