"""Trained toys as a page of terminal output, as plain data, and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from mechkit.report.console import plain, print_written, table, terminal
from mechkit.superposition import dimensionality, feature_interference, feature_norms
from mechkit.superposition.toy import Trained
from mechkit.viz.chart import COLOURS, chart, label, png, rule

LEARNED = 0.5
"""A feature is stored from this norm upwards."""
COLUMNS = {
    "density": ("1 - S", ".3g"),
    "seed": ("seed", "d"),
    "loss": ("loss", ".4g"),
    "n_steps": ("steps", "d"),
    "stored": ("stored", "d"),
    "dimensions_per_feature": ("D*", ".3f"),
    "mean_dimensionality": ("mean D_i", ".3f"),
    "sharing": ("sharing", ".0%"),
}
"""Columns of the table, their heads and how their numbers are written."""
KEY = (
    f"stored: features of norm {LEARNED} or more; D*: m over the squared norm of W; D_i: dimensions of stored features",
    "sharing: stored features of whose direction others take half or more",
)
"""What the columns are."""


def toys_rows(trained: Trained) -> pd.DataFrame:
    """A row per instance: its settings, loss, how many features it stores and how."""
    norm, own = feature_norms(trained.features), dimensionality(trained.features)
    shared, stored = feature_interference(trained.features) >= 0.5, norm >= LEARNED
    count = stored.sum(1)
    rows = trained.frame().rename(columns={"probability": "density"})
    return rows.assign(
        stored=count.cpu().numpy(),
        mean_dimensionality=((own * stored).sum(1) / count.clamp(min=1)).cpu().numpy(),
        sharing=((shared & stored).sum(1) / count.clamp(min=1)).cpu().numpy(),
    )[list(COLUMNS)]


def toys_summary(trained: Trained) -> dict:
    """What `print_toys` prints, as JSON-able data."""
    toys, rows = trained.toys, toys_rows(trained).to_dict("records")
    return {
        "kind": toys.kind.words, "n_features": toys.n_features, "d_hidden": toys.d_hidden,
        "instances": [{str(name): value for name, value in row.items()} for row in rows],
    }  # fmt: skip


def print_toys(trained: Trained, written: Sequence[Path], console: Console | None = None) -> None:
    """Print a row per instance, what the columns are, and what was written."""
    console = console or terminal()
    toys = trained.toys
    about = f"{len(toys)} toys, {toys.n_features} features in {toys.d_hidden} dimensions"
    console.print(f"\n[bold]{about}[/bold], {plain(toys.kind.words)}\n")
    lines = table(*[head for head, _ in COLUMNS.values()])
    for row in toys_rows(trained).to_dict("records"):
        cells = [format(int(row[name]) if form == "d" else row[name], form) for name, (_, form) in COLUMNS.items()]
        lines.add_row(f" {cells[0]}", *cells[1:])
    console.print(lines)
    for line in KEY:
        console.print(f"  [dim]{line}[/dim]", soft_wrap=True)
    print_written(written, console)


def toys_png(trained: Trained) -> bytes:
    """D* and the number of stored features against sparsity, as a PNG."""
    rows = toys_rows(trained)
    names = ["dimensions per feature, D*", "features stored"]
    figure, panels = chart(f"{trained.toys.n_features} features in {trained.toys.d_hidden} dimensions", [names])
    for name, column, colour in zip(names, ("dimensions_per_feature", "stored"), COLOURS, strict=False):
        panels[name].plot(1 / rows["density"], rows[column], "o", color=colour, markersize=5)
        panels[name].set_xscale("log")
        panels[name].set_ylim(bottom=0)
        label(panels[name], "1 / (1 - S)", name)
    rule(panels[names[0]], 1.0, "1")
    rule(panels[names[0]], 0.5, "1/2")
    return png(figure)
