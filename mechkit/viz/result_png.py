"""A `Result` as a PNG for a paper or a slide, drawn by matplotlib: no browser, no window, no network."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechkit.viz.picture import DIVERGING, NEGATIVE, POSITIVE, Bars, Heatmap, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1f2933", "#b8bec6"
DPI = 200
MOST_ROWS, MOST_COLUMNS = 40, 32
"""Labels along an axis at most; every so many are shown where there are more."""


def result_png(rows: pd.DataFrame, values: np.ndarray, unit: str, title: str) -> bytes:
    """PNG of one value per row: a heatmap where axes span the rows, else bars (see `picture`).

    Labels are plain text: nothing in them is read as mathematics. The scale is centred on 0. Unit: `unit`, on the
    colour bar or the value axis. Raises ValueError unless there is one value per row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = picture(rows, values)
    figure = _heatmap(drawn, unit, title) if isinstance(drawn, Heatmap) else _bars(drawn, unit, title)
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10, parse_math=False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    return figure, axes


def _heatmap(drawn: Heatmap, unit: str, title: str) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap

    n_rows, n_columns = drawn.values.shape
    cell = max(0.12, min(0.42, 9.0 / max(n_columns, 1), 7.0 / max(n_rows, 1)))
    width = max(4.2, 2.0 + cell * min(n_columns, 80))
    figure, axes = _figure(width, max(2.6, 1.5 + cell * min(n_rows, 160)), title)
    colours = LinearSegmentedColormap.from_list("diverging", [tuple(stop) for stop in DIVERGING])
    edges = {"edgecolors": "white", "linewidth": 0.6} if max(n_rows, n_columns) <= 60 else {}
    limit = drawn.limit
    mesh = axes.pcolormesh(np.ma.masked_invalid(drawn.values), cmap=colours, vmin=-limit, vmax=limit, **edges)
    _ticks(axes, "y", drawn.row_labels or list(map(str, drawn.rows)), MOST_ROWS)
    _ticks(axes, "x", drawn.column_labels or list(map(str, drawn.columns)), MOST_COLUMNS)
    axes.set_xlabel(drawn.horizontal, fontsize=9, color=INK, parse_math=False)
    axes.set_ylabel(drawn.vertical, fontsize=9, color=INK, parse_math=False)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03, aspect=24)
    bar.outline.set_visible(False)  # type: ignore[attr-defined]
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.set_label(unit, fontsize=9, color=INK, parse_math=False)
    return figure


def _ticks(axes: Axes, which: str, labels: list[str], most: int) -> None:
    """Labels at the middle of their cells; long ones along the bottom stand upright."""
    some = range(0, len(labels), -(-len(labels) // most))
    axis = axes.xaxis if which == "x" else axes.yaxis
    upright = which == "x" and max(map(len, labels)) * len(some) > 110
    axis.set_ticks([i + 0.5 for i in some], [labels[i] for i in some], rotation=90 if upright else 0, parse_math=False)


def _bars(drawn: Bars, unit: str, title: str) -> Figure:
    n = len(drawn.values)
    figure, axes = _figure(6.4, max(2.2, 1.1 + 0.2 * n), title)
    colours = [POSITIVE if value >= 0 else NEGATIVE for value in drawn.values]
    axes.barh(range(n), drawn.values, color=colours, height=0.72)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.xaxis.grid(color=RULE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_yticks(range(n), drawn.labels, parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(unit, fontsize=9, color=INK, parse_math=False)
    return figure
