"""What a paper says beside what was measured, as lines of a terminal.

>>> from mechkit.report.console import terminal
>>> print_claims([Claim("features per dimension at 1 - S = 0.05", "2", "1.98", True)], terminal())
<BLANKLINE>
features per dimension at 1 - S = 0.05
  published: 2
  measured:  1.98  yes
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from mechkit.core.files import write_atomic
from mechkit.report.console import plain, terminal


@dataclass(frozen=True)
class Claim:
    """One published feature of a figure and what this run gave."""

    what: str
    """The quantity, with its setting."""
    published: str
    """What the paper says of it."""
    measured: str
    """What was measured."""
    met: bool | None = None
    """Whether it is so here; None where there is nothing to meet."""


def print_claims(claims: Iterable[Claim], console: Console) -> None:
    """Print each claim: what it is about, what was published, what was measured and whether they agree."""
    for claim in claims:
        verdict = {None: "", True: "  [bold]yes[/bold]", False: "  [bold]no[/bold]"}[claim.met]
        console.print(f"\n[bold]{plain(claim.what)}[/bold]", soft_wrap=True)
        console.print(f"  published: {plain(claim.published)}", soft_wrap=True)
        console.print(f"  measured:  {plain(claim.measured)}{verdict}", soft_wrap=True)


def report_figure(
    claims: Sequence[Claim],
    table: pd.DataFrame,
    picture: bytes,
    path: Path,
    settings: str,
    console: Console | None = None,
) -> None:
    """Write a figure's picture (PNG) and table (Parquet) beside each other; print its settings, claims and files."""
    console = console or terminal()
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(".png"), path.with_suffix(".parquet")]
    write_atomic(written[0], picture)
    write_atomic(written[1], table.to_parquet(index=False))
    console.print(plain(settings), soft_wrap=True)
    print_claims(claims, console)
    console.print(f"\nwrote {plain(', '.join(map(str, written)))}", soft_wrap=True)
