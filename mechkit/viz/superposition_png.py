"""How the matrices of a model share its dimensions, layer by layer, as a PNG."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import pandas as pd

from mechkit.viz.result_png import DPI, INK, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "features_per_dimension": ("features per dimension filled", None),
    "random_mean_square": ("mean cos² over that of\nrandom directions", "random_mean_square_p"),
    "covariance_nearest": ("mean largest |cos| over that of\nthe same covariance", "covariance_nearest_p"),
}
"""Measures drawn, what their axis is called, and the column of their p."""
LEVEL = 0.05
COLOURS = ("#215a8c", "#a8402c", "#5b8c3a", "#8a5fa8", "#c08a2d", "#3a8c88", "#7a7a7a", "#b04a82", "#4a4a9c", "#7c5a3a")
MARKERS = "osD^vPXh*<"


def superposition_png(rows: pd.DataFrame, title: str) -> bytes:
    """PNG of a panel per measure, a line per matrix over the layers; filled where p < 0.05.

    `rows` has `layer` (missing for embeddings, drawn before the first layer, and for the unembedding, after the
    last), `matrix` and the columns of `PANELS`, missing where a matrix has none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    n_layers = 1 + max([int(layer) for layer in rows["layer"].dropna().tolist()], default=-1)
    figure = Figure(figsize=(max(10.5, 3 * 0.28 * n_layers + 6), 3.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title} (filled: p < {LEVEL})", x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    axes = figure.subplots(1, len(PANELS))
    for panel, (name, (label, p)) in zip(axes, PANELS.items(), strict=True):
        _panel(panel, rows, name, label, p, n_layers)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Axes, rows: pd.DataFrame, name: str, label: str, p: str | None, n_layers: int) -> None:
    for i, (matrix, part) in enumerate(rows.groupby("matrix", sort=False)):
        values = part[name].to_numpy(dtype=float)
        places = [_place(matrix, layer, n_layers) for layer in _plain(part["layer"].tolist())]
        sure = [True] * len(part) if p is None else (part[p] < LEVEL).tolist()
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(places, values, color=colour, linewidth=0.9, marker=marker, markersize=5, label=str(matrix),
                  markerfacecolor="white", markeredgewidth=1)  # fmt: skip
        filled = [(x, y) for x, y, yes in zip(places, values, sure, strict=True) if yes]
        axes.plot(
            [x for x, _ in filled], [y for _, y in filled], color=colour, linewidth=0, marker=marker, markersize=5
        )
    if p is not None:
        axes.axhline(1, color=INK, linewidth=0.8)
    _scale(axes, values=rows[name].dropna().tolist())
    axes.set_ylabel(label, fontsize=9, color=INK, parse_math=False)
    _ticks(axes, n_layers)


def _scale(axes: Axes, values: list[float]) -> None:
    """Logarithmic where values differ by more than a few times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if values and max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ticks(axes: Axes, n_layers: int) -> None:
    some = range(0, n_layers, max(1, n_layers // 8))
    axes.set_xticks([-1, *some, n_layers], ["in", *map(str, some), "out"])
    axes.set_xlim(-1.5, n_layers + 0.5)
    axes.set_xlabel("layer", fontsize=9, color=INK)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.yaxis.grid(color=RULE, linewidth=0.5, alpha=0.6)
    axes.spines[:].set_visible(False)


def _place(matrix: object, layer: int | None, n_layers: int) -> float:
    """The layer, or before the first for what is read from tokens, or after the last."""
    if layer is None:
        return float(n_layers) if matrix == "W_U" else -1.0
    return float(layer)


def _plain(layers: list) -> list[int | None]:
    return [None if pd.isna(layer) else int(layer) for layer in layers]
