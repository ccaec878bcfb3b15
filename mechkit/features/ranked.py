"""Answers of an index: rows in order, with a unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

_SHOWN = 20
"""Rows shown before it says how many more there are."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranked:
    """Rows of an answer, best first."""

    rows: pd.DataFrame
    """One row per feature, token or example."""
    unit: str
    """Unit of the column that they are ranked by."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What was asked, and numbers of the whole answer."""

    def __len__(self) -> int:
        return len(self.rows)

    def top(self, n: int = 10) -> "Ranked":
        """The first `n` rows."""
        return Ranked(self.rows.head(n), self.unit, self.meta)

    def frame(self) -> pd.DataFrame:
        """The rows as a pandas table of the caller's own."""
        return self.rows.copy()

    def _shown(self) -> pd.DataFrame:
        """The first rows, without columns of lists."""
        rows = self.rows.head(_SHOWN)
        lists = [name for name in rows if any(isinstance(value, list) for value in rows[name])]
        return rows.drop(columns=lists)

    def __repr__(self) -> str:
        shown = self._shown().to_string(index=False, float_format=lambda x: f"{x:.4g}")
        more = len(self.rows) - _SHOWN
        return shown + (f"\n({more} more rows)" if more > 0 else "") + f"\nunit: {self.unit}"

    def _repr_html_(self) -> str:
        return self._shown().to_html(index=False, float_format=lambda x: f"{x:.4g}")
