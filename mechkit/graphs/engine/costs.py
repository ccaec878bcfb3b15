"""What a graph takes in memory: what the frozen model holds, what goes with active features, and each row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.engine.memory import free_memory
from mechkit.graphs.engine.attribution import ROOM, Attribution

_NODE = 700
"""Bytes of one node and what refers to it."""

_SHARE = 0.5
"""Part of free memory that is taken when no limit is named."""

_PLANNED = 0.9
"""Part of the limit that is planned for; allocators take some of the rest."""

_DESCENT = 0.25
"""Part of what is left for rows that one descent may take."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a graph may take beside the model and its dictionaries."""

    limit: float
    """All of it."""
    fixed: float
    """What is held whatever rows are computed."""

    @classmethod
    def of(cls, engine: Attribution, memory: int | None) -> "Budget":
        """The limit that was named, or half of what is free beside what the frozen model already holds."""
        device, frozen = engine.frozen.final.device, frozen_bytes(engine)
        limit = memory if memory is not None else _SHARE * free_memory(device) + frozen
        return cls(float(limit), float(frozen + feature_bytes(engine)))

    @property
    def left(self) -> float:
        """What is left for rows and descents."""
        return _PLANNED * self.limit - self.fixed

    @property
    def room(self) -> int:
        """What one descent may take."""
        return max(1, min(ROOM, int(_DESCENT * self.left)))

    @property
    def rows(self) -> float:
        """What rows may take; pruning takes as much again, when descents are done."""
        return self.left / 2

    def needed(self, rows: float) -> float:
        """The limit that rows of so many bytes need."""
        return (self.fixed + 2 * rows) / _PLANNED


def frozen_bytes(engine: Attribution) -> int:
    """Bytes of the values that the frozen model holds."""
    values = engine.frozen.values
    return sum(_bytes(values[site]) for site in values) + _bytes(engine.frozen.given)


def feature_bytes(engine: Attribution) -> int:
    """Bytes of nodes, of what active features and biases write, and of the largest dictionary's activations."""
    frozen, size = engine.frozen, engine.frozen.final.element_size()
    n_pos, d = frozen.final.shape
    biases = sum(len(layer) for layer in engine.attention_constants) + 2 * len(engine.bases)
    total = 2 * biases * n_pos * d * size + _NODE * engine.layout.n_columns
    for basis, active in zip(engine.bases, engine.active, strict=True):
        rows = min(len(active.index), basis.d_features) if active.is_most else len(active.index)
        total += rows * d * size * len(basis.reaches)
    total += 2 * n_pos * n_pos * d * size * engine.is_short
    return total + 3 * n_pos * size * max((basis.d_features for basis in engine.bases), default=0)


def row_bytes(engine: Attribution) -> Float[Tensor, "feature"]:
    """Bytes of each feature's rows: each part's, and what they come to together."""
    layout, n_pos = engine.layout, engine.frozen.n_positions
    widths = torch.arange(1, n_pos + 1) if engine.frozen.is_causal else torch.full((n_pos,), n_pos)
    below = torch.zeros(n_pos, dtype=torch.float64)
    found = []
    for basis, active, offsets in zip(engine.bases, engine.active, layout.features, strict=True):
        n_parts = len(basis.parts)
        each = (below + 2 * widths + len(layout.biases)) * (1 if n_parts == 1 else 1 + n_parts)
        found.append(each[active.pos.cpu()] * engine.frozen.final.element_size())
        below = below + torch.tensor(offsets)[widths] - offsets[0] + widths
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def said(n: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:.3g} {unit}"


def _bytes(values: Tensor) -> int:
    return values.numel() * values.element_size()
