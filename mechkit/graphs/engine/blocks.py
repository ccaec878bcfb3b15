"""A matrix of contributions stored by blocks: the rows of one layer and position, on the columns they can reach.

About a fifth of a square matrix of all nodes is such; the rest is zero and is not stored. Columns of a block are a few
ranges, so they are not listed either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.graphs.engine.reach import Reach

_HIGH = 1 << 15
"""Bins of the leading bits of a float32 that is not negative."""

_ROUNDING = 1e-12
"""What sums of float64 may be off by, relative to all."""

_PIECE = 1 << 18
"""Entries that are binned at once."""

_FEW = 1 << 17
"""Entries up to which a sort takes less time than bins."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows on the columns they reach."""

    rows: Int[Tensor, "row"]
    """Their numbers."""
    reach: Reach
    """The columns."""
    values: Float[Tensor, "*stream row column"]
    """Contributions."""
    level: int
    """Their layer: rows of lower levels come after those of higher ones when influence flows down."""

    @property
    def columns(self) -> Int[Tensor, "column"]:
        """Numbers of the columns."""
        return self.reach.columns.to(self.values.device)

    def take(self, x: Tensor) -> Tensor:
        """The entries of `x`, one for each column of the matrix on its last axis, that belong to these columns."""
        return torch.cat([x[..., start:stop] for start, stop in self.reach.ranges], -1)

    def add_to(self, x: Tensor, values: Tensor) -> None:
        """Add one number for each of these columns to `x`, one for each column of the matrix."""
        done = 0
        for start, stop in self.reach.ranges:
            x[start:stop] += values[done : done + stop - start]
            done += stop - start


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix as blocks, highest level first."""

    blocks: Sequence[Block]
    """The blocks; every row is in exactly one."""
    n_rows: int
    """Rows in all."""
    n_columns: int
    """Columns in all."""
    dtype: torch.dtype
    """Type of the contributions."""
    device: torch.device
    """Where they lie."""

    @classmethod
    def of(cls, blocks: Sequence[Block], n_rows: int, n_columns: int, like: Tensor) -> "Blocks":
        """The blocks in the order in which influence flows down."""
        return cls(sorted(blocks, key=lambda block: -block.level), n_rows, n_columns, like.dtype, like.device)

    @property
    def n_stored(self) -> int:
        """Numbers that are stored."""
        return sum(block.values.numel() for block in self.blocks)

    def levels(self) -> Iterator[list[Block]]:
        """Blocks of the same level together, highest first."""
        for level in sorted({block.level for block in self.blocks}, reverse=True):
            yield [block for block in self.blocks if block.level == level]

    def dense(self) -> Float[Tensor, "row column"]:
        """The whole matrix, zeros and all."""
        out = torch.zeros(self.n_rows, self.n_columns, dtype=self.dtype, device=self.device)
        for block in self.blocks:
            out[block.rows[:, None], block.columns] = block.values
        return out

    def map(self, change: Callable[[Block], Tensor]) -> "Blocks":
        """The same rows and columns with other values."""
        return replace(self, blocks=[replace(block, values=change(block)) for block in self.blocks])

    def per_row(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """One number for each row."""
        out = torch.zeros(self.n_rows, dtype=self.dtype, device=self.device)
        for block in self.blocks:
            out[block.rows] = measure(block)
        return out

    def at(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Single entries."""
        out = torch.zeros(len(rows), dtype=self.dtype, device=self.device)
        owner, place = self._owners
        for i in owner[rows].unique().tolist():
            block, mine = self.blocks[i], (owner[rows] == i).nonzero()[:, 0]
            local = torch.searchsorted(block.columns, columns[mine]).clamp(max=block.reach.n_columns - 1)
            found = block.values[place[rows[mine]], local]
            out[mine] = torch.where(block.columns[local] == columns[mine], found, torch.zeros_like(found))
        return out

    @property
    def _owners(self) -> tuple[Tensor, Tensor]:
        """The block of each row, and its place there."""
        owner = torch.zeros(self.n_rows, dtype=torch.long, device=self.device)
        place = owner.clone()
        for i, block in enumerate(self.blocks):
            owner[block.rows] = i
            place[block.rows] = torch.arange(len(block.rows), device=self.device)
        return owner, place


def largest(parts: Callable[[], Iterator[tuple[int, Tensor]]], threshold: float) -> list[tuple[int, Int[Tensor, "n"]]]:
    """The fewest entries that hold `threshold` of the sum of all, none of them negative: part by part, their places.

    `parts` gives each part's number and values, and is called up to four times. Values are binned by their leading
    bits, then those of one bin by the rest: no sort of all, and no copy, but where they are few.
    """
    few = _few(parts)
    if few is not None:
        return _largest_of_few(few, threshold)
    high = _bins(parts, lambda bits: bits >> 16, _HIGH)
    wanted = threshold * high[0].sum()
    cut, above = _crossing(high[0], wanted)
    low = _bins(parts, lambda bits: torch.where(bits >> 16 == cut, bits & 0xFFFF, -1), 1 << 16)
    last, before = _crossing(low[0], wanted - above)
    floor = (cut << 16) | last
    each = float(low[0][last] / low[1][last]) if low[1][last] else 0.0
    left = int(-(-(wanted - above - before) // each)) if each else 0
    found = []
    for number, values in parts():
        places, start = [], 0
        for piece in values.flatten().split(_PIECE):
            bits = _bits(piece)
            exact = (bits == floor).nonzero()[:, 0] if floor else bits.new_empty(0)
            chosen, left = exact[: max(0, left)], left - len(exact)
            places += [(bits > floor).nonzero()[:, 0] + start, chosen + start]
            start += len(piece)
        found.append((number, torch.cat(places)))
    return found


def _few(parts: Callable[[], Iterator[tuple[int, Tensor]]]) -> dict[int, Tensor] | None:
    """All parts, where a sort of them takes less time than bins; None where they are more."""
    found, n = {}, 0
    for number, values in parts():
        found[number], n = values.flatten(), n + values.numel()
        if n > _FEW:
            return None
    return found


def _largest_of_few(parts: dict[int, Tensor], threshold: float) -> list[tuple[int, Int[Tensor, "n"]]]:
    values = torch.cat([part.double() for part in parts.values()])
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[order] = (before < threshold * (1 - _ROUNDING) * ordered.sum()) & (ordered > 0)
    shares = chosen.split([len(part) for part in parts.values()])
    return [(number, share.nonzero()[:, 0]) for number, share in zip(parts, shares, strict=True)]


def _bits(values: Tensor) -> Tensor:
    return values.float().contiguous().view(torch.int32).long()


def _bins(parts, bin_of: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each bin."""
    sums, counts = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for piece in (piece for _, values in parts() for piece in values.flatten().split(_PIECE)):
        bins = bin_of(_bits(piece))
        values, bins = piece[bins >= 0], bins[bins >= 0]
        sums += torch.bincount(bins, values.double(), minlength=n).cpu()
        counts += torch.bincount(bins, minlength=n).cpu()
    return sums, counts


def _crossing(sums: Tensor, wanted: Tensor | float) -> tuple[int, float]:
    """The bin in which the sum from the top down reaches `wanted`, and the sum above it."""
    from_top = sums.flip(0).cumsum(0)
    place = int((from_top < wanted).sum())
    full = min(place, len(sums) - 1)
    above = float(from_top[full - 1]) if full else 0.0
    return len(sums) - 1 - full, above
