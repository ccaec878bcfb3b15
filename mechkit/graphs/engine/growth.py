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

from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.blocks import Block, Blocks
from mechkit.graphs.engine.costs import Budget, row_bytes, said
from mechkit.graphs.engine.influence import Matrix
from mechkit.graphs.nodes import Node

_FIRST = 64
"""Rows of the first round."""


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

    `memory` is for all that a graph takes beside the model and its dictionaries: the frozen model's values, what
    active features write, rows and descents. Raises ValueError for values out of range, MemoryError where `memory`
    (half of what is free, unless named) does not hold as many rows as are asked for, with what is needed and what fits.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage}; it is a share of influence, above 0 and at most 1")
    if max_nodes is not None and max_nodes < 1:
        raise ValueError(f"max_nodes is {max_nodes}; name at least one, or None for all")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory is {memory} bytes; name a positive number of bytes")
    return _Growth(engine, weights, Budget.of(engine, memory)).run(coverage, max_nodes)


class _Growth:
    def __init__(self, engine: Attribution, weights: Float[Tensor, "root"], budget: Budget) -> None:
        self.engine, self.weights, self.budget = engine, weights, budget
        self.sizes = row_bytes(engine)
        self.used = 0.0
        self.columns: list[int] = []
        self.blocks: list[Block] = []

    def run(self, coverage: float, max_nodes: int | None) -> Grown:
        n = len(self.engine.features)
        most = n if max_nodes is None else min(n, max_nodes)
        if self.budget.left <= 0:
            raise self.nothing_fits()
        self.add_roots()
        if most == n and coverage == 1.0 and self.fitting(range(n)) == n:
            self.add(range(n))
            return self.grown()
        while True:
            found = self.grown()
            chosen = self.next_round(found.matrix, coverage, most)
            if not chosen:
                return found
            del found
            fits = self.fitting(chosen)
            self.add(chosen[:fits])
            if fits < len(chosen):
                raise self.too_much(self.grown().matrix, coverage, most)

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
        for block in self.engine.blocks(roots, room=self.budget.room):
            self.blocks.append(replace(block, rows=block.rows + offset))

    def add(self, features: Sequence[int]) -> None:
        """Rows of these features; their blocks' rows are numbered by column for now, parts together."""
        rows, done = self.engine.rows_of(features), len(self.columns)
        label = f"features {done + 1} to {done + len(features)}"
        owners = torch.tensor([i for i in features for _ in self.parts(i)], dtype=torch.long)
        for block in self.engine.blocks(rows, room=self.budget.room, label=label):
            self.blocks.append(replace(block, rows=owners[block.rows]))
        self.columns = sorted([*self.columns, *features])
        self.used += float(self.sizes[list(features)].sum())

    def parts(self, feature: int) -> Sequence[str]:
        return self.engine.bases[self.engine.features[feature].layer].parts

    def fitting(self, features: Sequence[int]) -> int:
        """How many of these features' rows fit, the first ones first."""
        used = self.used + self.sizes[list(features)].cumsum(0)
        return int((used <= self.budget.rows).sum())

    def nothing_fits(self) -> MemoryError:
        budget, n = self.budget, len(self.sizes)
        return MemoryError(
            f"this prompt's values and its {n} active features take {said(budget.fixed)} before any row, and "
            f"{said(budget.limit)} may be used; give more memory, a shorter prompt or sparser dictionaries"
        )

    def too_much(self, matrix: Matrix, coverage: float, most: int) -> MemoryError:
        rows = float(self.sizes.sort(descending=True).values[:most].sum())
        needed, reached = self.budget.needed(rows), matrix.coverage
        asked = f"{most} rows" if coverage == 1 else f"a coverage of {coverage}"
        return MemoryError(
            f"{asked} may need up to {said(needed)}, and {said(self.budget.limit)} may be used: "
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
