"""A `Result` as a plotly figure: a heatmap where two axes span the rows, sorted bars otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

AXES = {"layer": "layer", "head": "head", "pos": "position", "src": "source position", "index": "index"}
DIVERGING = [[0, "#a8402c"], [0.25, "#e0a087"], [0.5, "#f7f5f0"], [0.75, "#86aecb"], [1, "#215a8c"]]
MAX_BARS = 40


def result_figure(rows: pd.DataFrame, values: np.ndarray, unit: str, title: str) -> go.Figure:
    """Figure of one value per row: a heatmap where exactly two of the axes vary, else a bar chart.

    `rows` has any of the columns layer, head, pos, src, index (numbers; missing where a row has none),
    `name` (the row's label) and `token` (text at `pos`). Two axes make a heatmap only where each pair
    occurs at most once; a pair without a row is left blank. The colour scale is centred on 0. Bars are
    the 40 rows largest in absolute value, sorted. Unit: `unit`, on the colour bar or the value axis.
    Raises ValueError unless there is one value per row.
    """
    import plotly.graph_objects as go

    values = np.asarray(values, dtype=float)
    if values.shape != (len(rows),) or not len(rows):
        raise ValueError(f"a figure needs one value for each row; got {values.shape} for {len(rows)} rows")
    varying = [axis for axis in AXES if axis in rows and len(set(rows[axis].dropna())) > 1]
    whole = len(varying) == 2 and _is_grid(rows, varying)
    trace = _heatmap(rows, values, unit, varying) if whole else _bars(rows, values, unit)
    layout = _heatmap_layout(rows, varying) if whole else _bars_layout(unit, trace["text"])
    figure = go.Figure(trace, layout)
    return figure.update_layout(title={"text": _plain(title)}, template="plotly_white")


def _is_grid(rows: pd.DataFrame, axes: list[str]) -> bool:
    """Whether every row has both axes and no two rows share them."""
    return not rows[axes].isna().to_numpy().any() and not rows.duplicated(axes).to_numpy().any()


def _heatmap(rows: pd.DataFrame, values: np.ndarray, unit: str, axes: list[str]) -> dict:
    vertical, horizontal = axes
    grid = rows.assign(value=values).pivot(index=vertical, columns=horizontal, values="value").sort_index()
    grid = grid.sort_index(axis=1)
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    return {
        "type": "heatmap",
        "z": grid.to_numpy(),
        "x": list(grid.columns),
        "y": list(grid.index),
        "colorscale": DIVERGING,
        "zmin": -limit,
        "zmax": limit,
        "colorbar": {"title": {"text": _plain(unit), "side": "right"}},
        "hovertemplate": f"{AXES[vertical]} %{{y}}, {AXES[horizontal]} %{{x}}<br>%{{z:.4g}}<extra></extra>",
    }


def _heatmap_layout(rows: pd.DataFrame, axes: list[str]) -> dict:
    vertical, horizontal = axes
    return {"xaxis": _axis(rows, horizontal), "yaxis": _axis(rows, vertical)}


def _axis(rows: pd.DataFrame, axis: str) -> dict:
    """Ticks at whole numbers; at a position, the token too where every row there agrees on it."""
    ticks = sorted(set(rows[axis]))
    style = {"title": {"text": AXES[axis]}, "showgrid": False, "zeroline": False, "tickvals": ticks}
    tokens = _token_at(rows) if axis == "pos" and "token" in rows else {}
    if len(tokens) == len(ticks):
        return style | {"tickmode": "array", "ticktext": [f"{_plain(tokens[tick])}<br>{tick}" for tick in ticks]}
    return style | {"tickmode": "array" if len(ticks) <= MAX_BARS else "auto"}


def _token_at(rows: pd.DataFrame) -> dict:
    """The token of each position; positions where rows disagree, or have none, are left out."""
    seen: dict = {}
    for pos, token in zip(rows["pos"], rows["token"], strict=True):
        seen.setdefault(pos, set()).add(token)
    return {pos: str(*tokens) for pos, tokens in seen.items() if len(tokens) == 1 and not pd.isna(*tokens)}


def _bars(rows: pd.DataFrame, values: np.ndarray, unit: str) -> dict:
    strongest = np.argsort(-np.abs(values), kind="stable")[:MAX_BARS]
    order = strongest[np.argsort(-values[strongest], kind="stable")]
    return {
        "type": "bar",
        "orientation": "h",
        "x": values[order],
        "y": list(range(len(order))),
        "text": [_row_label(rows.iloc[at]) for at in order],
        "textposition": "none",
        "marker": {"color": ["#215a8c" if values[at] >= 0 else "#a8402c" for at in order]},
        "hovertemplate": f"%{{text}}<br>%{{x:.4g}} {_plain(unit)}<extra></extra>",
    }


def _bars_layout(unit: str, labels: list[str]) -> dict:
    """Bars sit at 0, 1, 2, ... and carry their labels as ticks, so that equal labels stay two bars."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": labels}
    return {
        "xaxis": {"title": {"text": _plain(unit)}, "zeroline": True, "zerolinecolor": "#5f6875"},
        "yaxis": ticks | {"autorange": "reversed", "automargin": True, "showgrid": False},
        "height": 140 + 20 * len(labels),
    }


def _row_label(row: pd.Series) -> str:
    """The row's own name with its token, or its axes in words where it has none."""
    known = {str(key): value for key, value in row.dropna().items()}
    axes = (f"{AXES[axis]} {known[axis]}" for axis in AXES if axis in known)
    label = str(known["name"]) if "name" in known else ", ".join(axes)
    return _plain(f"{label} ‘{known['token']}’" if "token" in known else label)


def _plain(text: str) -> str:
    """Text that plotly shows as it stands: it reads a small HTML dialect, so its signs are escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
