"""Matrices of features that stay on disk: rows are read when they are asked for, in slices.

W = Stored(path, "W_dec")                  # [feature, d_model], nothing is read yet
W.rows([3, 17]).shape                      # torch.Size([2, 16])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

_BLOCK_BYTES = 64 << 20
"""Bytes of a block of rows that is read at once."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, a row for each feature."""

    path: Path
    """The file."""
    key: str
    """The tensor's name in it."""
    device: Any = "cpu"
    """Where rows are put."""
    dtype: torch.dtype = torch.float32
    """The type that rows are given."""
    by_column: bool = False
    """Whether the file has a column for each feature (SAELens's encoders) instead of a row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, features first."""
        with self._slices() as part:
            sizes = tuple(part.get_shape())
        return sizes[::-1] if self.by_column else sizes

    def rows(self, ids: Sequence[int]) -> Float[Tensor, "n ..."]:
        """The rows of these features, in their order."""
        chosen, back = torch.as_tensor(ids, dtype=torch.long).cpu().unique(return_inverse=True)
        with self._slices() as part:
            if not len(chosen):
                found = torch.empty(0, *self.shape[1:])
            else:
                found = part[:, chosen.tolist()].T if self.by_column else part[chosen.tolist()]
        return found[back].to(self.device, self.dtype)

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "n ..."]]]:
        """All rows, some at a time, with their numbers."""
        n, *rest = self.shape
        each = max(1, _BLOCK_BYTES // (4 * max(1, torch.Size(rest).numel())))
        for start in range(0, n, each):
            here = slice(start, min(start + each, n))
            with self._slices() as part:
                found = part[:, here].T if self.by_column else part[here]
            yield here, found.to(self.device, self.dtype)

    def _slices(self) -> "_Open":
        return _Open(self.path, self.key)


class _Open:
    """One tensor of an open file."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def __enter__(self) -> Any:
        try:
            self.file = safe_open(self.path, "pt").__enter__()
            return self.file.get_slice(self.key)
        except (SafetensorError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"'{self.path}' is damaged or has no {self.key}: {error}; copy it again") from error

    def __exit__(self, *error) -> None:
        if hasattr(self, "file"):
            self.file.__exit__(*error)


Rows = Float[Tensor, "feature ..."] | Stored
"""A matrix with a row for each feature, in memory or on disk."""


def rows_of(W: Rows, ids: Sequence[int]) -> Float[Tensor, "n ..."]:
    """Rows of a matrix in memory or on disk."""
    return W.rows(ids) if isinstance(W, Stored) else W[torch.as_tensor(ids, dtype=torch.long, device=W.device)]


def products(x: Float[Tensor, "*b d"], W: Rows) -> Float[Tensor, "*b feature"]:
    """Products of `x` with every row of a matrix in memory or on disk."""
    if not isinstance(W, Stored):
        return x @ W.T
    out = x.new_empty(*x.shape[:-1], W.shape[0])
    for here, part in W.blocks():
        out[..., here] = x @ part.T
    return out
