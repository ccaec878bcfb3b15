"""What matters in a graph: influences, signed effects, scores and pruning.

Edges only go up layers, so one sweep over the rows of the matrix, highest layer first, sums all paths exactly.

Source: Ameisen et al. 2025, appendix on graph pruning and scores. Differences: biases are no part of the
normalised rows, position embeddings and BOS outputs count as inputs, and completeness is a mean over targets only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.graphs.engine.blocks import Block, Blocks, largest
from mechkit.graphs.nodes import Node

INPUTS = ("token", "position", "bos")
"""Kinds of nodes that stand for what goes into the model."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Contributions of sources to targets: features first, then roots, each one row.

    The row of a gated neuron is its two rows, each times the neuron's derivative by it.
    """

    rows: Blocks
    """Signed contributions by blocks; the row of a target with one pre-activation sums to it."""
    targets: Sequence[Node]
    """Rows."""
    sources: Sequence[Node]
    """Columns."""
    weights: Float[Tensor, "target"]
    """What influence starts from: each root's weight, 0 for features."""
    own: Int[Tensor, "target"]
    """The column of each target, -1 for roots."""

    @property
    def n_features(self) -> int:
        """Number of features that have a row; they come first."""
        return int((self.own >= 0).sum())

    @property
    def values(self) -> Float[Tensor, "target source"]:
        """The contributions as one tensor, zeros and all: for small graphs."""
        return self.rows.dense()

    def of_kind(self, *kinds: str) -> Bool[Tensor, "source"]:
        """Which sources are of these kinds."""
        return torch.tensor([node.kind in kinds for node in self.sources], device=self.rows.device)

    @cached_property
    def counted(self) -> Bool[Tensor, "source"]:
        """Sources that influence flows to: all but the biases."""
        return ~self.of_kind("bias")

    @property
    def shares(self) -> Float[Tensor, "target source"]:
        """Each target's share of each source but the biases, |A| over its sum, as one tensor: for small graphs."""
        return self.rows.map(self.share_of(self.counted)).dense()

    @cached_property
    def influence(self) -> Float[Tensor, "source"]:
        """Share of the answer that passes through each source, over all paths. Inputs and errors sum to 1, less what
        reaches features that have no row."""
        return self.descend(self._flow(self.counted), self.weights)

    @cached_property
    def importance(self) -> Float[Tensor, "target"]:
        """Influence of each target: features as sources, roots by their weight."""
        return self._as_targets(self.influence)

    @property
    def coverage(self) -> float:
        """Share of the influence that is followed down to inputs and errors, not to features without a row."""
        unexpanded = self.of_kind("feature") & ~self._expanded
        return 1 - float(self.influence[unexpanded].sum() / self.weights.sum())

    @property
    def _expanded(self) -> Bool[Tensor, "source"]:
        """Which sources are features that have a row."""
        found = torch.zeros(len(self.sources), dtype=torch.bool, device=self.rows.device)
        found[self.own[self.own >= 0]] = True
        return found

    def share_of(self, counted: Bool[Tensor, "source"]) -> Callable[[Block], Tensor]:
        """From a block to its rows' shares of the `counted` sources."""
        sums = self._sums(counted)
        return lambda block: block.values.abs() * block.take(counted) / sums[block.rows, None]

    def through(self) -> Blocks:
        """Influence that flows along each edge."""
        share = self.share_of(self.counted)
        return self.rows.map(lambda block: share(block) * self.importance[block.rows, None])

    def descend(
        self, flow: Callable[[Block, Tensor], Tensor], start: Float[Tensor, "target"], gains: Tensor | None = None
    ) -> Float[Tensor, "source"]:
        """The weight of each source when `start` at the targets flows down along every path.

        `flow` says what a block's columns receive from what its rows pass on: `gains` (1 unless given) times what
        reaches them. Exact in one sweep.
        """
        total, reached = start.clone(), self.weights.new_zeros(len(self.sources))
        for blocks in self.rows.levels():
            for block in blocks:
                own = self.own[block.rows]
                total[block.rows] += torch.where(own >= 0, reached[own.clamp(min=0)], torch.zeros_like(reached[:1]))
            for block in blocks:
                passed = total[block.rows] if gains is None else total[block.rows] * gains[block.rows]
                block.add_to(reached, flow(block, passed))
        return reached

    def arriving(self, start: Float[Tensor, "target"]) -> Float[Tensor, "target"]:
        """What reaches each target, over all paths, of the influence `start`, that itself included."""
        reached = self.descend(self._flow(self.counted), start)
        return start + torch.where(self.own >= 0, reached[self.own.clamp(min=0)], torch.zeros_like(start))

    def step(self, mass: Float[Tensor, "target"]) -> Float[Tensor, "source"]:
        """What `mass` at the targets gives to each source, one step down."""
        flow, reached = self._flow(self.counted), self.weights.new_zeros(len(self.sources))
        for block in self.rows.blocks:
            if bool(mass[block.rows].any()):
                block.add_to(reached, flow(block, mass[block.rows]))
        return reached

    def effects(
        self, root: int, slopes: Float[Tensor, "target"], rows: Blocks | None = None
    ) -> Float[Tensor, "source"]:
        """Signed change of row `root` when each source changes by its own size, along every path.

        `slopes` are the targets' derivatives at the prompt; `rows` stands in for the matrix's own.
        A feature that is suppressed changes the root by minus its effect, to first order.
        """
        start = torch.zeros_like(self.weights)
        start[root] = 1
        n = self.n_features
        sizes = torch.tensor([node.value for node in self.targets[:n]], device=start.device, dtype=start.dtype)
        gains = torch.ones_like(start)
        gains[:n] = slopes[:n] / sizes
        if rows is not None:
            return replace(self, rows=rows).descend(lambda block, passed: passed @ block.values, start, gains)
        return self.descend(lambda block, passed: passed @ block.values, start, gains)

    def scores(self) -> dict[str, float]:
        """Replacement and completeness, each from 0 to 1.

        Replacement: share of the influence reaching the bottom that comes from inputs rather than errors.
        Completeness: mean share of a target's input that is not an error, weighted by the target's influence.
        """
        errors = self.of_kind("error")
        share = self.share_of(self.counted)
        inputs, lost = self.influence[self.of_kind(*INPUTS)].sum(), self.influence[errors].sum()
        missed = self.rows.per_row(lambda block: (share(block) * block.take(errors)).sum(1))
        complete = self.importance @ (1 - missed) / self.importance.sum()
        return {"replacement": float(inputs / (inputs + lost)), "completeness": float(complete)}

    def prune(self, node_threshold: float, edge_threshold: float) -> "Kept":
        """The smallest set of features with a row and errors holding `node_threshold` of their influence, with every
        embedding, and the smallest set of edges between them holding `edge_threshold` of what is left; nodes that no
        path joins to a root, or features without an input, are dropped.
        """
        for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it is a share of influence, above 0 and at most 1")
        chosen = _largest(self.influence * (self.of_kind("error") | self._expanded), node_threshold)
        nodes = chosen | (self.of_kind(*INPUTS) & (self.influence > 0))
        kept_rows, share = self._rows(nodes), self.share_of(nodes)
        start = self._as_targets(self.descend(self._flow(nodes, kept_rows), self.weights)) * kept_rows
        parts = lambda: ((i, share(b) * start[b.rows, None]) for i, b in enumerate(self.rows.blocks))  # noqa: E731
        places = [self._places(i, flat) for i, flat in largest(parts, edge_threshold)]
        return self._connected(nodes, torch.cat(places))

    def _places(self, number: int, flat: Int[Tensor, "n"]) -> Int[Tensor, "n 2"]:
        """Targets and sources of entries of a block."""
        block = self.rows.blocks[number]
        return torch.stack([block.rows[flat // block.reach.n_columns], block.columns[flat % block.reach.n_columns]], 1)

    def _connected(self, nodes: Bool[Tensor, "source"], places: Int[Tensor, "edge 2"]) -> "Kept":
        features = self.of_kind("feature")
        while True:
            t, s = places.T
            places = places[nodes[s] & self._rows(nodes)[t]]
            has_out, has_in = torch.zeros_like(nodes), ~features
            has_out[places[:, 1]] = True
            receivers = self.own[places[:, 0]]
            has_in[receivers[receivers >= 0]] = True
            live = nodes & has_out & has_in
            if bool((live == nodes).all()):
                order = (places[:, 0] * len(self.sources) + places[:, 1]).argsort()
                return Kept(nodes, places[order], len(self.targets))
            nodes = live

    def _rows(self, nodes: Bool[Tensor, "source"]) -> Bool[Tensor, "target"]:
        """Which rows remain when only these sources do: their own, and the roots'."""
        return (self.own < 0) | nodes[self.own.clamp(min=0)]

    def _as_targets(self, reached: Float[Tensor, "source"]) -> Float[Tensor, "target"]:
        return self.weights + torch.where(self.own >= 0, reached[self.own.clamp(min=0)], torch.zeros_like(self.weights))

    def _sums(self, counted: Bool[Tensor, "source"]) -> Float[Tensor, "target"]:
        """Sum of the sizes of each row's counted contributions."""
        counted = counted.to(self.weights.dtype)
        sums = self.rows.per_row(lambda block: block.values.abs() @ block.take(counted))
        return sums.clamp_min(torch.finfo(sums.dtype).tiny)

    def _flow(self, counted: Bool[Tensor, "source"], rows: Tensor | None = None) -> Callable[[Block, Tensor], Tensor]:
        sums = self._sums(counted)
        open_rows = torch.ones_like(sums) if rows is None else rows.to(sums.dtype)
        return lambda block, passed: (
            ((passed * open_rows[block.rows] / sums[block.rows]) @ block.values.abs()) * block.take(counted)
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """What pruning keeps."""

    nodes: Bool[Tensor, "source"]
    """Sources kept. Roots always are."""
    places: Int[Tensor, "edge 2"]
    """Target and source of each edge kept, all between kept nodes; ascending."""
    n_targets: int
    """Rows of the matrix."""

    @property
    def edges(self) -> Bool[Tensor, "target source"]:
        """The edges kept, as one tensor: for small graphs."""
        edges = torch.zeros(self.n_targets, len(self.nodes), dtype=torch.bool, device=self.nodes.device)
        edges[tuple(self.places.T)] = True
        return edges


def _largest(values: Float[Tensor, "n"], threshold: float) -> Bool[Tensor, "n"]:
    """The fewest of `values` that hold `threshold` of their sum."""
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    keep = torch.zeros_like(values, dtype=torch.bool)
    keep[order] = (before < threshold * values.sum()) & (ordered > 0)
    return keep
