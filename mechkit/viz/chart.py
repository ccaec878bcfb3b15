"""Plain charts for figures of papers: panels of lines, points, bars and grids, as a PNG. No window, no network.

>>> figure, panels = chart("Losses", [["left", "right"]])
>>> _ = panels["left"].plot([1, 2], [3, 4], color=INK)
>>> png(figure)[1:4]
b'PNG'
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1f2933", "#b8bec6"
COLOURS = ("#215a8c", "#a8402c", "#5a8a3c", "#b58a1b", "#6d4f94", "#3b8f8f")
"""Colours of lines, in order."""
DPI = 160


def chart(
    title: str, panels: Sequence[Sequence[str]], *, width: float | int = 9.0, height: float | int = 4.0
) -> tuple[Figure, dict[str, Axes]]:
    """A figure and its panels by name; `panels` are rows of names, which are also the panels' titles.

    `width` and `height` are in inches. Draw on the panels with matplotlib, then take `png(figure)`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    axes = figure.subplot_mosaic([list(row) for row in panels])
    for name, panel in axes.items():
        panel.set_title(name, loc="left", fontsize=10, color=INK)
        panel.tick_params(which="both", labelsize=8, labelcolor=INK, color=RULE)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(RULE)
    return figure, axes


def label(panel: Axes, x: str, y: str) -> None:
    """Name both axes of a panel."""
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.set_ylabel(y, fontsize=9, color=INK)


def rule(panel: Axes, value: float | int, words: str) -> None:
    """A dashed horizontal line with its name at the right end."""
    panel.axhline(value, color=RULE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    panel.annotate(
        words, (1.0, value), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
        fontsize=8, color=INK, va="center", annotation_clip=False,
    )  # fmt: skip


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as boxes
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
