"""Averages over prompts of what is there in some and not in others.

A `Table` lists entries: in this prompt, this row has this value. Where a row has no entry in a prompt it is absent
there; means over `n` prompts count it as 0, means over the row's own count leave the prompt out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix

_TINY = 1e-12
"""Variance below this share of the mean square is what float32 leaves of none."""

Means = tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]
"""Means and their standard errors."""


@dataclass(frozen=True, eq=False)
class Table:
    """Values by prompt and row, one entry at most for each."""

    rows: pd.DataFrame
    """What each row is."""
    prompt: Int[np.ndarray, "entry"]
    """The prompt of each entry."""
    row: Int[np.ndarray, "entry"]
    """The row of each entry."""
    values: Mapping[str, Float[np.ndarray, "entry"]]
    """Values by name."""

    @classmethod
    def of(cls, rows: pd.DataFrame, prompt: np.ndarray, row: np.ndarray, values: Mapping[str, np.ndarray]) -> "Table":
        """A table; entries of one prompt and row are added up."""
        place = prompt.astype(np.int64) * max(1, len(rows)) + row
        unique, owner = np.unique(place, return_inverse=True)
        if len(unique) == len(place):
            return cls(rows, prompt, row, {name: some.astype(float) for name, some in values.items()})
        summed = {name: np.bincount(owner, some.astype(float), len(unique)) for name, some in values.items()}
        return cls(rows, unique // len(rows), unique % len(rows), summed)

    def only(self, keep: Bool[np.ndarray, "row"]) -> "Table":
        """Some of the rows."""
        mine, number = keep[self.row], np.cumsum(keep) - 1
        values = {name: some[mine] for name, some in self.values.items()}
        return Table(self.rows.loc[keep], self.prompt[mine], number[self.row[mine]], values)

    def count(self, prompts: Bool[np.ndarray, "prompt"]) -> Int[np.ndarray, "row"]:
        """In how many of these prompts each row is present."""
        return np.bincount(self.row[prompts[self.prompt]], minlength=len(self.rows))

    def mean(self, name: str, prompts: Bool[np.ndarray, "prompt"], n: int | np.ndarray) -> Means:
        """The mean of each row over `n` of these prompts, absent as 0, and its standard error; NaN for too few."""
        mine = prompts[self.prompt]
        row, values = self.row[mine], self.values[name][mine]
        total, squares = (np.bincount(row, weights, len(self.rows)) for weights in (values, values**2))
        return _mean(total, squares, np.asarray(n, float))

    def compare(
        self,
        name: str,
        first: Bool[np.ndarray, "prompt"],
        second: Bool[np.ndarray, "prompt"],
        permutations: int,
        seed: int,
    ) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
        """Each row's difference of means over its standard error, and how often chance does as well for any row.

        The second is the share of `permutations` of the classes, and the classes as they are, in which the largest size
        of all rows is at least this row's; NaN for no permutations, and where a class has one prompt.
        Source: Westfall and Young 1993, Resampling-Based Multiple Testing (single-step maxT).
        """
        members = np.flatnonzero(first | second)
        place = np.full(len(first), -1)
        place[members] = np.arange(len(members))
        mine = place[self.prompt] >= 0
        shape = (len(members), len(self.rows))
        x = csr_matrix((self.values[name][mine], (place[self.prompt[mine]], self.row[mine])), shape)
        squares, labels, generator = x.multiply(x).tocsr(), first[members], np.random.default_rng(seed)
        own = _scores(x, squares, labels)
        if not permutations or min(labels.sum(), (~labels).sum()) < 2:
            return own, np.full(len(own), np.nan)
        as_large = np.ones(len(own))
        for _ in range(permutations):
            as_large += np.abs(_scores(x, squares, generator.permutation(labels))).max(initial=0) >= np.abs(own)
        return own, as_large / (permutations + 1)


def _mean(total: Float[np.ndarray, "*shape"], squares: Float[np.ndarray, "*shape"], n: np.ndarray) -> Means:
    """Means over `n` prompts from sums and sums of squares, and their standard errors."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, square = total / n, squares / n
        variance = np.where(square - mean**2 <= _TINY * square, 0.0, square - mean**2)
        return mean, np.sqrt(variance / np.where(n > 1, n - 1, np.nan))


def _scores(x: csr_matrix, squares: csr_matrix, labels: Bool[np.ndarray, "prompt"]) -> Float[np.ndarray, "row"]:
    """Difference of means over its standard error of each row, prompts with the label against those without."""
    sides = [
        _mean(side @ x, side @ squares, np.asarray(side.sum()))
        for side in (labels.astype(float), (~labels).astype(float))
    ]
    (a, error_a), (b, error_b) = sides
    error = np.hypot(error_a, error_b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(a == b, 0.0 * error, (a - b) / error)
