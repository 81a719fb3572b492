"""Rows of words and numbers as lines of text, set in columns by rich."""

from __future__ import annotations

import io
from collections.abc import Sequence

from sh2gen.base.errors import printable

_UNBOUNDED = 1 << 20  # columns: lines are data, which no terminal's width breaks


def columns(rows: Sequence[Sequence[str]], *, words: int, indent: int = 0) -> list[str]:
    """Rows as lines whose cells stand under each other, two spaces apart.

    Args:
        words: columns of words, from the left, which begin under each other; numbers end so.
        indent: spaces before each line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for i in range(max(map(len, rows))):
        table.add_column(justify="left" if i < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=_UNBOUNDED, color_system=None, highlight=False).print(table)
    return [" " * indent + line.rstrip() for line in text.getvalue().splitlines()]
