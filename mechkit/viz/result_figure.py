"""A `Result` as a plotly figure: a heatmap where two axes span the rows, sorted bars otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechkit.viz.picture import DIVERGING, MAX_BARS, NEGATIVE, POSITIVE, Bars, Heatmap, picture

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_TICKS = 60
"""Labels along one axis at most; every so many are shown where there are more."""
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
INK, RULE = "#1f2933", "#5f6875"


def result_figure(rows: pd.DataFrame, values: np.ndarray, unit: str, title: str) -> go.Figure:
    """Figure of one value per row: a heatmap where axes span the rows, else a bar chart (see `picture`).

    `rows` has any of the columns layer, head, pos, src, index (numbers; missing where a row has none),
    `name` (the row's label) and `token` (text at `pos`). The colour scale is centred on 0.
    Unit: `unit`, on the colour bar or the value axis. Raises ValueError unless there is one value per row.
    """
    import plotly.graph_objects as go

    drawn = picture(rows, values)
    trace = _heatmap(drawn, unit) if isinstance(drawn, Heatmap) else _bars(drawn, unit)
    layout = _heatmap_layout(drawn) if isinstance(drawn, Heatmap) else _bars_layout(drawn, unit)
    style = {"font": {"family": FONT, "size": 13, "color": INK}, "margin": {"t": 64 if title else 24, "r": 24, "l": 72}}
    heading = {"text": _plain(title), "font": {"size": 16}, "x": 0.01, "xanchor": "left"}
    return go.Figure(trace, layout).update_layout(title=heading, template="plotly_white", **style)


def _heatmap(drawn: Heatmap, unit: str) -> dict:
    rows, columns = (
        labels or list(map(str, places))
        for labels, places in ((drawn.row_labels, drawn.rows), (drawn.column_labels, drawn.columns))
    )
    named = [[f"{drawn.vertical} {row}, {drawn.horizontal} {column}" for column in columns] for row in rows]
    return {
        "type": "heatmap",
        "z": drawn.values,
        "x": drawn.columns,
        "y": drawn.rows,
        "text": [[_plain(name) for name in line] for line in named],
        "colorscale": DIVERGING,
        "zmin": -drawn.limit,
        "zmax": drawn.limit,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": f"{_plain(unit)}<br>&nbsp;", "side": "top"}, "thickness": 14, "outlinewidth": 0},
        "hovertemplate": "%{text}<br>%{z:.4g}<extra></extra>",
        "hoverongaps": False,
    }


def _heatmap_layout(drawn: Heatmap) -> dict:
    return {
        "xaxis": _axis(drawn.horizontal, drawn.columns, drawn.column_labels),
        "yaxis": _axis(drawn.vertical, drawn.rows, drawn.row_labels),
        "width": min(1116, max(560, 280 + 110 * len(drawn.columns))),
        "height": 170 + max(210, min(34 * len(drawn.rows), 900 + 5 * len(drawn.rows))),
    }


def _axis(name: str, places: list, labels: list[str] | None) -> dict:
    """Ticks at whole numbers, with their labels where there are any."""
    style = {"title": {"text": name}, "showgrid": False, "zeroline": False, "automargin": True, "ticks": ""}
    if labels is None:
        return style | {"tickmode": "array" if len(places) <= MAX_BARS else "auto", "tickvals": places}
    some = slice(None, None, -(-len(places) // MOST_TICKS))
    ticks = {"tickvals": places[some], "ticktext": [_plain(label) for label in labels[some]]}
    return style | {"tickmode": "array", **ticks}


def _bars(drawn: Bars, unit: str) -> dict:
    return {
        "type": "bar",
        "orientation": "h",
        "x": drawn.values,
        "y": list(range(len(drawn.values))),
        "text": [_plain(label) for label in drawn.labels],
        "textposition": "none",
        "marker": {"color": [POSITIVE if value >= 0 else NEGATIVE for value in drawn.values]},
        "hovertemplate": f"%{{text}}<br>%{{x:.4g}} {_plain(unit)}<extra></extra>",
    }


def _bars_layout(drawn: Bars, unit: str) -> dict:
    """Bars sit at 0, 1, 2, ... and carry their labels as ticks, so that equal labels stay two bars."""
    labels = [_plain(label) for label in drawn.labels]
    ticks = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": labels}
    return {
        "xaxis": {"title": {"text": _plain(unit)}, "zeroline": True, "zerolinecolor": RULE},
        "yaxis": ticks | {"autorange": "reversed", "automargin": True, "showgrid": False},
        "height": 140 + 20 * len(labels),
    }


def _plain(text: str) -> str:
    """Text that plotly shows as it stands: it reads a small HTML dialect, so its signs are escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
