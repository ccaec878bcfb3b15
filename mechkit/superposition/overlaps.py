"""|cos| between features: sums over all pairs and each feature's largest, block by block.

Every pair counts and nothing of size n x n is kept: 50,257 features in 768 dimensions take two minutes of CPU time and
two gigabytes. Axes before `[feature, hidden]` are measured side by side.

>>> overlaps(unit_rows(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]))).mean         # one pair of three overlaps
tensor(0.3333, dtype=torch.float64)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.superposition.measures import as_features, unit_rows

BLOCK_BYTES = 2**26
"""Bytes of cosines held at a time."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """What the cosines of all pairs of features come to; all in float64."""

    mean: Float[Tensor, "*draw"]
    """Mean |cos| over pairs."""
    mean_square: Float[Tensor, "*draw"]
    """Mean cos^2 over pairs."""
    kurtosis: Float[Tensor, "*draw"]
    """Excess kurtosis of cos over pairs: above 0 where a few pairs overlap far more than the rest; 0 if all agree."""
    largest: Float[Tensor, "*draw feature"]
    """Largest |cos| of each feature with any other."""

    @property
    def max(self) -> Float[Tensor, "*draw"]:
        """Largest |cos| of any pair."""
        return self.largest.amax(-1)


def overlaps(units: Float[Tensor, "*draw feature hidden"]) -> Overlaps:
    """The overlaps of features of length 1, products in the dtype of `units`, sums in float64.

    Cost: n^2 m multiplications. Raises ValueError for fewer than two features, which have no pairs.
    """
    *draws, n, _ = units.shape
    if n < 2:
        raise ValueError(f"overlaps are of pairs of features; there are {n} features")
    sums = units.new_zeros((5, *draws), dtype=torch.double)
    largest = units.new_zeros((*draws, n))
    for start, stop in progress(_blocks(units), "overlaps"):
        block = units[..., start:stop, :]
        own, others = block @ block.mT, block @ units[..., stop:, :].mT
        own.diagonal(dim1=-2, dim2=-1).zero_()
        sizes, other_sizes = own.abs(), others.abs()
        sums += _sums(own, sizes) / 2 + _sums(others, other_sizes)
        _raise_to(largest[..., start:stop], sizes.amax(-1))
        if stop < n:
            _raise_to(largest[..., start:stop], other_sizes.amax(-1))
            _raise_to(largest[..., stop:], other_sizes.amax(-2))
    absolute, *moments = sums / (n * (n - 1) / 2)
    return Overlaps(absolute, moments[1], _excess_kurtosis(*moments), largest.double().clamp(max=1))


def nearest(W, feature: int, k: int = 10) -> list[tuple[int, float]]:
    """The `k` features of largest |cos| with `feature`, and their signed cosines, largest in size first.

    Raises as `as_features`, and ValueError for a feature that is not there.
    """
    wide = as_features(W)
    if not 0 <= feature < len(wide):
        raise ValueError(f"no feature {feature}; there are features 0 to {len(wide) - 1}")
    units = unit_rows(wide)
    cos = units @ units[feature]
    order = cos.abs().index_fill(0, torch.tensor([feature], device=cos.device), -1.0).argsort(descending=True)
    return [(int(other), float(cos[other])) for other in order[: min(k, len(wide) - 1)].tolist()]


def _blocks(units: Tensor) -> list[tuple[int, int]]:
    *draws, n, _ = units.shape
    per_row = n * units.element_size() * max(1, torch.Size(draws).numel())
    rows = max(1, BLOCK_BYTES // per_row)
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def _raise_to(largest: Tensor, values: Tensor) -> None:
    torch.maximum(largest, values, out=largest)


def _sums(cos: Float[Tensor, "*draw row column"], sizes: Float[Tensor, "*draw row column"]) -> Float[Tensor, "5 *draw"]:
    """Sums of |cos| and of the first four powers of cos."""
    flat = cos.flatten(-2)
    square = flat * flat
    products = (torch.einsum("...k,...k->...", *pair) for pair in ((flat, flat), (square, flat), (square, square)))
    return torch.stack([sizes.sum((-2, -1)), flat.sum(-1), *products]).double()


def _excess_kurtosis(m1: Tensor, m2: Tensor, m3: Tensor, m4: Tensor) -> Tensor:
    """Of raw moments; 0 where the variance is lost in rounding."""
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return torch.where(variance > 1e-12 * (m2 + m1**2), fourth / variance**2 - 3, torch.zeros_like(variance))
