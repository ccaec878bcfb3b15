"""Which columns of the matrix a target can reach: what is written in lower layers, at positions it can see.

Columns are listed kind by kind, layer by layer and position by position, so that those of one target are a few ranges
of neighbours. Rows are stored for these ranges only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

Column = tuple
"""`("error", layer)`, `("token",)`, `("position",)`, `("bos", layer)`, `("bias", name, layer)`: the first of such."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of each kind start."""

    features: Sequence[Sequence[int]]
    """By layer, the column of the first feature at each position, and one past the last."""
    first: Mapping[Column, int]
    """The first column of errors by layer, of tokens, positions, BOS outputs and biases."""
    biases: Sequence[tuple[str, int]]
    """Name and layer of each bias, by layer."""
    n_columns: int
    """Columns in all."""
    n_positions: int
    """Positions of the prompt."""
    first_error: int
    """The first position that has errors."""


@dataclass(frozen=True)
class Reach:
    """The columns that targets of one stage and position reach, as ranges of all columns."""

    ranges: Sequence[tuple[int, int]]
    """First and one past the last, ascending."""
    local: Mapping[Column, slice]
    """Where columns of each kind are among those reached."""
    shifts: Sequence[int]
    """By layer, what takes a feature's column to its place among those reached."""
    width: int
    """How many positions are seen."""

    @classmethod
    def of(cls, layout: Layout, n_mlps: int, layer: int, width: int) -> "Reach":
        """Columns below: of the first `n_mlps` MLPs, biases up to `layer`, at the first `width` positions."""
        ranges, local, shifts, used = [], {}, [], 0

        def take(start: int, n: int) -> slice:
            nonlocal used
            if n > 0:
                joins = ranges and ranges[-1][1] == start
                ranges[-1:] = [(ranges[-1][0], start + n)] if joins else [*ranges[-1:], (start, start + n)]
            used += n
            return slice(used - n, used)

        for below in range(min(n_mlps, len(layout.features))):
            offsets = layout.features[below]
            shifts.append(take(offsets[0], offsets[width] - offsets[0]).start - offsets[0])
        for below in range(len(shifts)):
            local["error", below] = take(layout.first["error", below], max(0, width - layout.first_error))
        for kind in ("token", "position"):
            if (kind,) in layout.first:
                local[kind,] = take(layout.first[kind,], width)
        for below in range(len(shifts)):
            if ("bos", below) in layout.first:
                local["bos", below] = take(layout.first["bos", below], 1)
        for name, below in layout.biases:
            if below <= layer:
                local["bias", name, below] = take(layout.first["bias", name, below], 1)
        return cls(ranges, local, shifts, width)

    @property
    def n_columns(self) -> int:
        """How many columns are reached."""
        return sum(stop - start for start, stop in self.ranges)

    @cached_property
    def columns(self) -> Int[Tensor, "column"]:
        """Their numbers among all columns."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.ranges])

    def of_features(self, layer: int, columns: slice) -> slice:
        """Where a layer's features, given by their columns, are among those reached."""
        return slice(columns.start + self.shifts[layer], columns.stop + self.shifts[layer])
