"""The matrices of a model, measured, as a page of terminal output, as plain data, and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from mechkit.report.console import plain, print_written, table, terminal
from mechkit.superposition.conclusions import LEVEL
from mechkit.superposition.model import ModelSuperposition
from mechkit.viz.superposition_png import superposition_png

KEY = (
    "fill: dimensions that the rows fill (participation ratio); per dim: features over fill; least: Welch bound of max",
    "chance: mean cos² over that of random directions; near: mean largest |cos| over that of Gaussian rows of the same",
    "covariance ({draws} draws each, * p < {level}); the heads of a layer are turned at random as wholes",
)
"""What the columns are."""
HEADS_IN_WORDS = {"OV": "what they write for what they read", "QK": "what they attend to"}
"""The two maps of a head."""


def superposition_summary(found: ModelSuperposition) -> dict:
    """What `print_superposition` prints, as JSON-able data: every matrix with every measure it has."""
    rows = found.frame().reset_index().to_dict("records")
    known = [{str(name): value for name, value in row.items() if not _missing(value)} for row in rows]
    return {**found.meta, "conclusions": found.conclusions(), "matrices": known}


def print_superposition(found: ModelSuperposition, written: Sequence[Path], console: Console | None = None) -> None:
    """Print a row for each matrix, the heads' spectra by layer, what may be concluded, and what was written."""
    console = console or terminal()
    meta = found.meta
    console.print(f"\n[bold]{plain(str(meta['model']))}[/bold], {len(found.layers)} matrices, a row per feature\n")
    console.print(_matrices(found))
    for line in KEY:
        console.print(f"  [dim]{line.format(draws=meta['draws'], level=LEVEL)}[/dim]", soft_wrap=True)
    heads = found.rows[found.rows["head"].notna()]
    for circuit, words in HEADS_IN_WORDS.items() if len(heads) else ():
        console.print(f"  heads, {circuit} ({words}): {_spread(pd.DataFrame(heads[heads['matrix'] == circuit]))}")
    console.print()
    for sentence in found.conclusions():
        console.print(f"  {plain(sentence)}", soft_wrap=True)
    if meta["left_out"]:
        console.print(f"  Left out: {plain(', '.join(meta['left_out']))}.")
    print_written(written, console)


def model_png(found: ModelSuperposition) -> bytes:
    """The picture: three measures by layer, a line per matrix."""
    return superposition_png(found.layers.rows, f"{found.meta['model']}: features and dimensions")


def _matrices(found: ModelSuperposition) -> Table:
    shown = table(
        "site", "matrix", "features", "dims", "fill", "per dim", "mean", "max |cos|", "least", "chance", "near"
    )
    shown.columns[1].justify = "left"
    for row in found.layers.frame().reset_index().to_dict("records"):
        counts = str(row["n_directed"]), str(row["n_dimensions"])
        fill = f"{row['participation_ratio']:.1f}", f"{row['features_per_dimension']:.1f}"
        cosines = (_number(row[name]) for name in ("mean_cosine", "max_cosine", "welch_bound"))
        ratios = (_ratio(row[name], row[f"{name}_p"]) for name in ("random_mean_square", "covariance_nearest"))
        shown.add_row(plain(row["site"]), row["matrix"], *counts, *fill, *cosines, *ratios)
    return shown


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _ratio(value: float, p: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}{'*' if p < LEVEL else ' '}"


def _spread(heads: pd.DataFrame) -> str:
    low, middle, high = heads["effective_rank"].astype(float).quantile([0, 0.5, 1])
    return f"effective rank {low:.1f} to {high:.1f}, median {middle:.1f} of {heads['n_features'].iloc[0]}"


def _missing(value) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
