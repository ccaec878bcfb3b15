"""A labelled two-dimensional array, which draws itself.

result.grid("layer", "head").plot()
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Grid:
    """A labelled two-dimensional array of mean scores."""

    values: Float[np.ndarray, "row column"]
    """Mean score of the rows with these two labels; NaN where there is none."""
    rows: tuple
    """Labels of the first axis."""
    columns: tuple
    """Labels of the second axis."""
    names: tuple[str, str]
    """What the two axes are, such as `("layer", "head")`."""
    unit: str
    """Unit of the values."""

    def frame(self) -> pd.DataFrame:
        """The grid as a table with labelled index and columns."""
        index, columns = pd.Index(self.rows, name=self.names[0]), pd.Index(self.columns, name=self.names[1])
        return pd.DataFrame(self.values, index, columns)

    def plot(self, title: str = ""):
        """A plotly heatmap, its colours centred on 0."""
        from mechkit.viz.result_figure import result_figure

        rows = pd.MultiIndex.from_product([self.rows, self.columns], names=self.names).to_frame(index=False)
        there = ~np.isnan(self.values.ravel())
        return result_figure(rows.loc[there].reset_index(drop=True), self.values.ravel()[there], self.unit, title)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)

    def __repr__(self) -> str:
        return f"{self.frame().to_string(float_format='{:.4g}'.format)}\nunit: {self.unit}"
