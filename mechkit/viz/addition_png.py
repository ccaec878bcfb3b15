"""How a model adds: operand plots of its key features, what it answers without them, and with those of another sum."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechkit.viz.result_png import DPI, INK, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"right": "#215a8c", "last digit kept": "#5b8c3a", "size kept": "#c08a2d"}
"""Shares that are drawn for each intervention, and their colours."""

_PER_ROW = 6


def addition_png(
    plots: Sequence[tuple[str, np.ndarray]], rows: pd.DataFrame, digits: np.ndarray, title: str, about: str
) -> bytes:
    """PNG of three parts: operand plots, bars of `rows`, and the last digit asked for against the one answered.

    `plots` are titles and activities `[a, b]`. `rows` has `title`, and for each of `COLOURS` a share with its interval
    (`right`, `right_low`, `right_high`) and the control's share (`right_control`, missing where there is none).
    `digits[asked, answered]` counts sums whose lookups were swapped; `about` says what it is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    n_rows = max(1, -(-len(plots) // _PER_ROW))
    height = 1.95 * n_rows + 0.46 * len(rows) + 1.6
    figure = Figure(figsize=(12.5, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    upper, lower = list(figure.subfigures(2, 1, height_ratios=[1.95 * n_rows, 0.46 * len(rows) + 1.1]))  # type: ignore
    _plots(upper, plots, n_rows)
    left, right = lower.subfigures(1, 2, width_ratios=[1.9, 1])
    _bars(left.subplots(), rows)
    _digits(right.subplots(), digits, about)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _plots(figure, plots: Sequence[tuple[str, np.ndarray]], n_rows: int) -> None:
    axes = np.atleast_1d(figure.subplots(n_rows, _PER_ROW, squeeze=False)).flatten()
    for panel, (title, values) in zip(axes, plots, strict=False):
        panel.imshow(values, origin="lower", cmap="Blues", interpolation="nearest")
        panel.set_title(title, fontsize=7.5, color=INK, parse_math=False)
        panel.set_xticks([0, 50, 99])
        panel.set_yticks([0, 50, 99])
        panel.tick_params(labelsize=6, colors=INK, length=2)
        panel.set_xlabel("b", fontsize=7, color=INK, labelpad=1)
        panel.set_ylabel("a", fontsize=7, color=INK, labelpad=1)
    for panel in axes[len(plots) :]:
        panel.set_axis_off()


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    """A group of bars per intervention, with intervals, and a line where the control is."""
    width = 0.8 / len(COLOURS)
    for i, (name, colour) in enumerate(COLOURS.items()):
        at = np.arange(len(rows)) + (i - (len(COLOURS) - 1) / 2) * width
        values = rows[name].to_numpy(float)
        ends = [values - rows[f"{name}_low"].to_numpy(float), rows[f"{name}_high"].to_numpy(float) - values]
        errors = np.clip(ends, 0, None)
        axes.barh(at, values, 0.9 * width, color=colour, label=name, xerr=errors, error_kw={"lw": 0.7, "ecolor": INK})
        control = rows[f"{name}_control"].to_numpy(float)
        axes.vlines(control, at - width / 2, at + width / 2, color="#a8402c", linewidth=1.8,
                    label="as many at random" if i == len(COLOURS) - 1 else "_")  # fmt: skip
    axes.set_yticks(np.arange(len(rows)), rows["title"].tolist(), parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of sums (95 % intervals)", fontsize=8, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK, length=2)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, labelcolor=INK)


def _digits(axes: Axes, digits: np.ndarray, about: str) -> None:
    axes.imshow(digits, origin="lower", cmap="Blues", interpolation="nearest")
    for (asked, answered), count in np.ndenumerate(digits):
        if count:
            dark = count > digits.max() / 2
            axes.text(
                answered, asked, f"{count:.0f}", ha="center", va="center", fontsize=6.5, color="white" if dark else INK
            )
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.tick_params(labelsize=7, colors=INK, length=2)
    axes.set_xlabel("last digit answered", fontsize=8, color=INK)
    axes.set_ylabel("last digit of the sum whose lookups were put in", fontsize=8, color=INK)
    axes.set_title(about, fontsize=8, color=INK, parse_math=False)
