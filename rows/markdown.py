"""Tables as text, for terminals and cards."""

import io
from collections.abc import Iterable, Sequence


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, with columns of equal width."""
    # Late: rich takes a tenth of a second to import, and readers of rows do not need it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*map(Text, row))  # cells are not in rich's markup
    stream = io.StringIO()
    Console(file=stream, width=10_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip().splitlines())
