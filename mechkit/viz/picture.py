"""What a picture of one value per row shows, before a library draws it: a heatmap, or sorted bars.

`picture(rows, values)` decides which; `result_figure` draws it with plotly, `result_png` with matplotlib.

>>> import numpy as np, pandas as pd
>>> picture(pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1]}), np.arange(4.0)).vertical
'layer'
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

AXES = {"layer": "layer", "head": "head", "pos": "position", "src": "source position", "index": "index"}
"""Columns that can span a picture, and what their axis is called."""
DIVERGING = [[0, "#a8402c"], [0.25, "#e0a087"], [0.5, "#f7f5f0"], [0.75, "#86aecb"], [1, "#215a8c"]]
"""Colours from the most negative value by way of 0 to the most positive."""
NEGATIVE, POSITIVE = DIVERGING[0][1], DIVERGING[-1][1]
MAX_BARS = 40
"""Bars shown; the rows largest in size."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Two axes and a value for each pair of their places."""

    values: np.ndarray
    """`[row, column]`, NaN where there is none."""
    rows: list
    """Places of the vertical axis, in order."""
    columns: list
    """Places of the horizontal axis, in order."""
    vertical: str
    """What the vertical axis is."""
    horizontal: str
    """What the horizontal axis is."""
    row_labels: list[str] | None
    """Words at the places of the vertical axis; None for the places themselves."""
    column_labels: list[str] | None
    """Words at the places of the horizontal axis, such as `2: 59`; None for the places themselves."""

    @property
    def limit(self) -> float:
        """Largest size of a value: the ends of a scale centred on 0."""
        return float(np.nanmax(np.abs(self.values), initial=0)) or 1.0


@dataclass(frozen=True, eq=False)
class Bars:
    """Labelled values, largest first."""

    values: np.ndarray
    """One value per bar."""
    labels: list[str]
    """One label per bar."""


def picture(rows: pd.DataFrame, values: np.ndarray) -> Heatmap | Bars:
    """The picture of one value per row.

    `rows` has any of the columns of `AXES` (numbers; missing where a row has none), `name` (the row's label) and
    `token` (text at `pos`). Two varying axes make a heatmap where each pair occurs at most once; one without a row
    is left blank. So do layer, head and a third, every head at every place of it once: layer and head then share the
    vertical axis. All else is bars of the 40 rows largest in size, sorted.
    Raises ValueError unless there is one value per row.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(rows),) or not len(rows):
        raise ValueError(f"a figure needs one value for each row; got {values.shape} for {len(rows)} rows")
    varying = [axis for axis in AXES if axis in rows and len(set(rows[axis].dropna())) > 1]
    if len(varying) == 2 and _is_grid(rows, varying):
        return _heatmap(rows, values, varying[0], varying[1])
    if len(varying) == 3 and varying[:2] == ["layer", "head"] and _is_full(rows, varying):
        return _by_head(rows, values, varying[2])
    return _bars(rows, values)


def with_tokens(rows: pd.DataFrame, tokens: Sequence[str]) -> pd.DataFrame:
    """The rows with a `token` column: what stands at each position of a prompt of these tokens.

    Rows at no one position (a span, all positions) have none.
    """
    places = rows["pos"] if "pos" in rows else [None] * len(rows)
    known = range(-len(tokens), len(tokens))
    found = [tokens[pos] if isinstance(pos, int) and pos in known else None for pos in places]
    return rows.assign(token=pd.Series(found, index=rows.index, dtype=object))


def _is_grid(rows: pd.DataFrame, axes: list[str]) -> bool:
    """Whether every row has all axes and no two rows share them."""
    return not rows[axes].isna().to_numpy().any() and not rows.duplicated(axes).to_numpy().any()


def _is_full(rows: pd.DataFrame, axes: list[str]) -> bool:
    """Whether there is one row for every head at every place."""
    heads = rows[axes[:2]].drop_duplicates()
    return _is_grid(rows, axes) and len(rows) == len(heads) * rows[axes[2]].nunique()


def _heatmap(rows: pd.DataFrame, values: np.ndarray, vertical: str, horizontal: str) -> Heatmap:
    grid = rows.assign(value=values).pivot(index=vertical, columns=horizontal, values="value")
    grid = grid.sort_index().sort_index(axis=1)
    places = list(grid.index), list(grid.columns)
    labels = (_token_labels(rows, axis, at) for axis, at in zip((vertical, horizontal), places, strict=True))
    return Heatmap(grid.to_numpy(), *places, AXES[vertical], AXES[horizontal], *labels)


def _by_head(rows: pd.DataFrame, values: np.ndarray, horizontal: str) -> Heatmap:
    """Every head of every layer on the vertical axis, `9.6` for head 6 of layer 9."""
    heads = sorted(set(zip(rows["layer"], rows["head"], strict=True)))
    number = {head: i for i, head in enumerate(heads)}
    at = [number[head] for head in zip(rows["layer"], rows["head"], strict=True)]
    drawn = _heatmap(rows.assign(layer=at), values, "layer", horizontal)
    labels = [f"{layer}.{head}" for layer, head in heads]
    return Heatmap(drawn.values, drawn.rows, drawn.columns, "layer.head", drawn.horizontal, labels, drawn.column_labels)


def _token_labels(rows: pd.DataFrame, axis: str, places: list) -> list[str] | None:
    """`2: 59` at each position, where every row there agrees on its token."""
    tokens = _token_at(rows) if axis == "pos" and "token" in rows else {}
    return [f"{place}: {shown(tokens[place])}" for place in places] if len(tokens) == len(places) else None


def shown(token: str) -> str:
    """A token without the space before it; one of nothing but spaces and line ends with these made visible."""
    visible = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return visible.strip() or visible.replace(" ", "␣")


def _token_at(rows: pd.DataFrame) -> dict[Hashable, str]:
    """The token of each position; positions where rows disagree, or have none, are left out."""
    seen: dict = {}
    for pos, token in zip(rows["pos"], rows["token"], strict=True):
        seen.setdefault(pos, set()).add(token)
    return {pos: str(*tokens) for pos, tokens in seen.items() if len(tokens) == 1 and not pd.isna(*tokens)}


def _bars(rows: pd.DataFrame, values: np.ndarray) -> Bars:
    strongest = np.argsort(-np.abs(values), kind="stable")[:MAX_BARS]
    order = strongest[np.argsort(-values[strongest], kind="stable")]
    return Bars(values[order], [_row_label(rows.iloc[at]) for at in order])


def _row_label(row: pd.Series) -> str:
    """The row's own name with its token, or its axes in words where it has none."""
    known: dict[str, Any] = {str(key): value for key, value in row.dropna().items()}
    axes = (f"{AXES[axis]} {known[axis]}" for axis in AXES if axis in known)
    label = str(known["name"]) if "name" in known else ", ".join(axes)
    return f"{label} ‘{known['token']}’" if "token" in known else label
