"""The terminal that reports are printed on, and the tables they share."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def terminal() -> Console:
    """The terminal; where there is none, wide enough that nothing wraps."""
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, width=width)


def table(first: str, *others: str) -> Table:
    """An empty table without rules; all columns but the first hold numbers."""
    made = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    made.add_column(f" {first}")
    for name in others:
        made.add_column(name, justify="right")
    return made


def plain(text: str) -> str:
    """Text of a prompt with the console's markup made inert."""
    from rich.markup import escape

    return escape(text)


def print_written(written: Sequence[Path], console: Console) -> None:
    """Which files were written, and where the page among them opens."""
    console.print()
    for path in written:
        console.print(f"wrote {plain(str(path))}", soft_wrap=True)
    page = next((path for path in written if path.suffix == ".html"), None)
    if page is not None:
        console.print(f"open [bold]file://{plain(str(page.resolve()))}[/bold] in a browser", soft_wrap=True)
