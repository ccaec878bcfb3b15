"""What active features write: which are active, and products of reading directions with what they write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.graphs.engine.layers import Directions, Norm
from mechkit.graphs.engine.reach import Column
from mechkit.graphs.nodes import Node

_MOST = 0.4
"""Share of active features above which all of a dictionary's decoders are multiplied, and none is copied."""


@dataclass(frozen=True, eq=False)
class Active:
    """The active features of one layer, by position and number."""

    basis: Any
    """Their dictionary."""
    x: Float[Tensor, "pos d_model"]
    """What it reads."""
    pos: Int[Tensor, "n"]
    """Positions, ascending."""
    index: Int[Tensor, "n"]
    """Numbers in the dictionary."""
    value: Float[Tensor, "n"]
    """Activations."""
    sums: Float[Tensor, "part n"]
    """Pre-activations by part."""

    @cached_property
    def offsets(self) -> list[int]:
        """How many features come before each position, and how many there are."""
        counts = torch.bincount(self.pos, minlength=len(self.x)).cumsum(0)
        return [0, *counts.tolist()]

    @cached_property
    def slopes(self) -> Float[Tensor, "part n"]:
        """Derivative of each activation by each of its parts."""
        return torch.stack([slope[self.pos, self.index] for slope in self.basis.slopes(self.x)])

    @property
    def is_most(self) -> bool:
        """Whether so many are active that all decoders are multiplied, and none is copied."""
        return len(self.index) > _MOST * len(self.x) * self.basis.d_features

    def nodes(self, basis) -> list[Node]:
        """Their nodes; a feature of one part has its pre-activation."""
        places = zip(self.pos.tolist(), self.index.tolist(), self.value.tolist(), strict=True)
        sums = self.sums[0].tolist() if len(self.sums) == 1 else [None] * len(self.pos)
        return [
            Node("feature", basis.layer, pos, i, basis.name, value, total)
            for (pos, i, value), total in zip(places, sums, strict=True)
        ]


def active_features(basis, x: Float[Tensor, "pos d_model"], first: int) -> Active:
    """The features of a basis that are active on `x`, at positions from `first` on."""
    acts = basis.activations(x)
    acts[:first] = 0
    pos, index = acts.nonzero().T
    sums = torch.stack([one[pos, index] for one in basis.sums(x)])
    return Active(basis, x, pos, index, acts[pos, index], sums)


@dataclass(frozen=True, eq=False)
class Written:
    """What the active features of one layer write to the MLP output of one layer."""

    layer: int
    """The layer they read at."""
    active: Active
    """The features."""
    first: Sequence[int]
    """The column of the first feature at each position, and one past the last."""
    rows: Float[Tensor, "n d_model"]
    """What each active feature writes to the residual stream; or, where `dense`, every feature's decoder."""
    dense: bool
    """Whether `rows` holds every feature's decoder, not multiplied by activations."""
    norm: Norm | None
    """The norm between decoders and the residual stream, where `dense`."""

    def columns(self, start: int, stop: int) -> slice:
        """The columns of the features at positions from `start` to `stop`."""
        return slice(self.first[start], self.first[stop])

    def meet(self, g: Directions, start: int, out: Float[Tensor, "target n"]) -> None:
        """Add products of directions at positions from `start` on with what is written there to `out`."""
        g = g if self.norm is None or not self.dense else self.norm.back(g, start)
        offsets = self.active.offsets[start : start + len(g) + 1]
        counts = {b - a for a, b in pairwise(offsets)}
        if not self.dense and len(counts) == 1:  # as many features at each position: one product for all
            rows = self.rows[offsets[0] : offsets[-1]].unflatten(0, (len(g), -1))
            out += (g @ rows.mT).transpose(0, 1).flatten(1)
            return
        for i, (a, b) in enumerate(pairwise(offsets)):
            if a < b:
                here = out[:, a - offsets[0] : b - offsets[0]]
                if self.dense:
                    here += (g[i] @ self.rows.T)[:, self.active.index[a:b]] * self.active.value[a:b]
                else:
                    here.addmm_(g[i], self.rows[a:b].T)

    def total(self) -> Float[Tensor, "pos d_model"]:
        """What they write together at each position."""
        out = self.rows.new_zeros(len(self.active.x), self.rows.shape[1])
        if not self.dense:
            return out.index_add(0, self.active.pos, self.rows)
        acts = self.rows.new_zeros(len(out), len(self.rows))
        acts[self.active.pos, self.active.index] = self.active.value
        return acts @ self.rows if self.norm is None else self.norm.forward(acts @ self.rows)


def written_by(basis, active: Active, columns: Sequence[int], layer: int, norm: Norm | None) -> Written:
    """What active features write to the MLP output of `layer`."""
    if active.is_most:
        return Written(basis.layer, active, columns, basis.writes(range(basis.d_features), layer), True, norm)
    rows = basis.writes(active.index.tolist(), layer) * active.value[:, None]
    rows = rows if norm is None else norm.at(rows, norm.scale[active.pos])
    return Written(basis.layer, active, columns, rows, False, None)


@dataclass(frozen=True, eq=False)
class Beside:
    """What is written at one place of a layer beside features: columns that are few, so that one product meets all."""

    columns: Sequence[Column]
    """The columns; an error has one for each position."""
    vectors: Float[Tensor, "pos d_model column"]
    """What is written at each position."""

    @classmethod
    def of(cls, written: Mapping[Column, Float[Tensor, "pos d_model"]]) -> "Beside":
        """From what each column writes."""
        return cls(list(written), torch.stack(list(written.values()), -1))

    def meet(self, g: Directions, start: int) -> Float[Tensor, "pos target column"]:
        """Products of directions at positions from `start` on with what is written there."""
        return g @ self.vectors[start : start + len(g)]
