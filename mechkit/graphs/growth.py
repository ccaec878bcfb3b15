"""Which rows of the matrix are computed: all, or the most influential ones, within a limit of memory.

Influence flows from the roots down, so what reaches a feature is known once the rows above it are. Rows are computed
in rounds: first the roots', then those of the features that most influence has reached, until the share that is
followed to inputs and errors is enough, or there are as many as allowed. What has reached features without a row is
the share that is not covered; no feature left out can matter more than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.core.engine.memory import free_memory
from mechkit.graphs.attribution import ROOM, Attribution
from mechkit.graphs.blocks import Block, Blocks
from mechkit.graphs.influence import Matrix
from mechkit.graphs.nodes import Node

_FIRST = 64
"""Rows of the first round."""

_SHARE = 0.5
"""Part of free memory that rows may take when no limit is named."""

_DESCENT = 0.25
"""Part of the limit that one descent may take."""


@dataclass(frozen=True, eq=False)
class Grown:
    """The rows that were computed."""

    matrix: Matrix
    """One row per feature or root."""
    rows: Blocks
    """One row per pre-activation: those of `matrix`, or two for a gated neuron."""
    targets: Sequence[Node]
    """What the rows of `rows` are."""


@torch.no_grad()
def grow(
    engine: Attribution,
    weights: Float[Tensor, "root"],
    *,
    coverage: float = 1.0,
    max_nodes: int | None = None,
    memory: int | None = None,
) -> Grown:
    """The rows of the roots and of as many features as `coverage`, `max_nodes` and `memory` ask for and allow.

    Raises ValueError for values out of range, MemoryError where `memory` (half of what is free, unless named) holds
    neither all rows nor as many as are asked for, with what is needed and what fits.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage}; it is a share of influence, above 0 and at most 1")
    if max_nodes is not None and max_nodes < 1:
        raise ValueError(f"max_nodes is {max_nodes}; name at least one, or None for all")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory is {memory} bytes; name a positive number of bytes")
    limit = memory if memory is not None else int(_SHARE * free_memory(engine.frozen.final.device))
    return _Growth(engine, weights, limit).run(coverage, max_nodes)


class _Growth:
    def __init__(self, engine: Attribution, weights: Float[Tensor, "root"], limit: int) -> None:
        self.engine, self.weights, self.limit = engine, weights, limit
        self.room = max(1, min(ROOM, int(_DESCENT * limit)))
        self.sizes = torch.tensor([self.row_bytes(node) for node in engine.features], dtype=torch.float64)
        self.used = 0.0
        self.columns: list[int] = []
        self.blocks: list[Block] = []

    def run(self, coverage: float, max_nodes: int | None) -> Grown:
        n = len(self.engine.features)
        most = n if max_nodes is None else min(n, max_nodes)
        self.add_roots()
        if most == n and coverage == 1.0 and self.fits(range(n)):
            self.add(range(n))
            return self.grown()
        while True:
            found = self.grown()
            chosen = self.next_round(found.matrix, coverage, most)
            if not chosen:
                return found
            if not self.fits(chosen):
                raise self.too_much(found.matrix, coverage, most)
            self.add(chosen)

    def next_round(self, matrix: Matrix, coverage: float, most: int) -> list[int]:
        """The features that get a row next; none where that is enough."""
        waiting = matrix.influence[: len(self.engine.features)] / matrix.weights.sum()
        waiting[self.columns] = 0
        values, order = waiting.sort(descending=True, stable=True)
        n_left = int((values.cumsum(0) < values.sum() - (1 - coverage)).sum()) + 1 if coverage < 1 else len(values)
        if float(values.sum()) <= 1 - coverage:
            return []
        n = min(n_left, most - len(self.columns), max(_FIRST, len(self.columns) // 2), int((values > 0).sum()))
        return order[: max(0, n)].tolist()

    def add_roots(self) -> None:
        roots = self.engine.root_nodes
        offset = len(self.engine.sources)
        for block in self.engine.blocks(roots, room=self.room):
            self.blocks.append(replace(block, rows=block.rows + offset))

    def add(self, features: Sequence[int]) -> None:
        """Rows of these features; their blocks' rows are numbered by column for now, parts together."""
        rows = self.engine.rows_of(features)
        owners = torch.tensor([i for i in features for _ in self.parts(i)], dtype=torch.long)
        for block in self.engine.blocks(rows, room=self.room):
            self.blocks.append(replace(block, rows=owners[block.rows]))
        self.columns = sorted([*self.columns, *features])
        self.used += float(self.sizes[list(features)].sum())

    def parts(self, feature: int) -> Sequence[str]:
        return self.engine.bases[self.engine.features[feature].layer].parts

    def row_bytes(self, node: Node) -> int:
        """Bytes of a feature's rows: each part's, and what they come to together."""
        layout, width = self.engine.layout, (node.pos or 0) + 1
        n_columns = sum(
            layout.features[below][width] - layout.features[below][0] + width for below in range(node.layer)
        )
        n_parts = len(self.engine.bases[node.layer].parts)
        copies = 1 if n_parts == 1 else 1 + n_parts
        return copies * (n_columns + 2 * width + len(layout.biases)) * self.engine.frozen.final.element_size()

    def fits(self, features: Sequence[int]) -> bool:
        return self.used + float(self.sizes[list(features)].sum()) <= (1 - _DESCENT) * self.limit

    def too_much(self, matrix: Matrix, coverage: float, most: int) -> MemoryError:
        needed = float(self.sizes.sort(descending=True).values[:most].sum()) / (1 - _DESCENT)
        reached = matrix.coverage
        asked = f"{most} rows" if coverage == 1 else f"a coverage of {coverage}"
        return MemoryError(
            f"{asked} may need up to {_bytes(needed)}, and {_bytes(float(self.limit))} may be used: "
            f"{len(self.columns)} of {len(self.sizes)} features fit, which cover {reached:.3f} of the influence; "
            f"give coverage={int(reached * 1000) / 1000} or max_nodes={max(1, len(self.columns))}, or more memory"
        )

    def grown(self) -> Grown:
        """The rows so far, numbered as targets: features by column, then roots."""
        engine, offset = self.engine, len(self.engine.sources)
        own = torch.tensor([*self.columns, *[-1] * len(engine.roots)], dtype=torch.long)
        columns = torch.tensor(self.columns, dtype=torch.long)
        rows, merged = [], []
        parts = torch.tensor([len(self.parts(i)) for i in self.columns], dtype=torch.long)
        first = torch.cat([torch.zeros(1, dtype=torch.long), parts.cumsum(0)])
        for block in self.blocks:
            if int(block.rows[0]) >= offset:
                numbers = block.rows - offset
                rows.append(replace(block, rows=numbers + int(first[-1])))
                merged.append(replace(block, rows=numbers + len(columns)))
                continue
            places = torch.searchsorted(columns, block.rows)
            k = int(parts[places[0]])
            within = torch.arange(len(places)) % k
            rows.append(replace(block, rows=first[places] + within))
            merged.append(rows[-1] if k == 1 and len(parts) == int(first[-1]) else self.merged(block, places, k))
        weights = torch.cat([self.weights.new_zeros(len(columns)), self.weights])
        features = [engine.features[i] for i in self.columns]
        like, n_sources = engine.frozen.final, len(engine.sources)
        matrix = Matrix(
            Blocks.of(merged, len(own), n_sources, like), [*features, *engine.root_nodes], engine.sources, weights, own
        )
        targets = [*engine.rows_of(self.columns), *engine.root_nodes]
        return Grown(matrix, Blocks.of(rows, len(targets), n_sources, like), targets)

    def merged(self, block: Block, places: Int[Tensor, "row"], k: int) -> Block:
        """A block with one row per feature: its rows, each times the feature's derivative by it."""
        if k == 1:
            return replace(block, rows=places)
        layer = self.engine.features[int(block.rows[0])].layer
        active = block.rows[::k] - self.engine.layout.features[layer][0]
        slopes = self.engine.active[layer].slopes[:, active]
        values = (block.values.unflatten(0, (-1, k)) * slopes.T[:, :, None]).sum(1)
        return replace(block, rows=places[::k], values=values)


def _bytes(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:.3g} {unit}"
