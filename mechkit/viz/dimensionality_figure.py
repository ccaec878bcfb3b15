"""How the features of a matrix share its dimensions, as a plotly histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mechkit.viz.picture import POSITIVE
from mechkit.viz.result_figure import FONT, INK, RULE

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHAPES = {3 / 4: "tetrahedron", 2 / 3: "triangle", 1 / 2: "pair", 2 / 5: "pentagon", 3 / 8: "antiprism"}
"""Dimensionality of each feature of a regular shape, and the shape's name."""


def dimensionality_figure(dimensionality: np.ndarray, title: str) -> go.Figure:
    """Histogram of `dimensionality[feature]`, 0 to 1, with a line at the fraction of each regular shape."""
    import plotly.graph_objects as go

    bins = {"start": 0.0, "end": 1.0 + 1e-9, "size": 0.02}
    figure = go.Figure(go.Histogram(x=dimensionality, xbins=bins, marker_color=POSITIVE))
    for place, name in SHAPES.items():
        figure.add_vline(place, line={"color": RULE, "width": 1, "dash": "dot"})
        figure.add_annotation(x=place, y=1, yref="paper", text=name, textangle=-90, showarrow=False, xshift=-8)
    figure.update_xaxes(title="dimensionality (share of a dimension)", range=[0, 1.02])
    figure.update_yaxes(title="features")
    heading = {"text": title, "font": {"size": 16}, "x": 0.01, "xanchor": "left"}
    font = {"family": FONT, "size": 13, "color": INK}
    return figure.update_layout(title=heading, template="plotly_white", font=font, bargap=0.05)
