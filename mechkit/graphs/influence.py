"""What matters in a graph: influences, signed effects, scores and pruning.

Edges only go up layers, so one sweep over the rows of the matrix, highest layer first, sums all paths exactly.

Source: Ameisen et al. 2025, appendix on graph pruning and scores. Differences: biases are no part of the
normalised rows, position embeddings and BOS outputs count as inputs, and completeness is a mean over targets only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechkit.graphs.nodes import Node

INPUTS = ("token", "position", "bos")
"""Kinds of nodes that stand for what goes into the model."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Contributions of sources to targets. Target `i` is source `i` while it is a feature; logits come last."""

    values: Float[Tensor, "target source"]
    """Signed contributions; a row sums to its target's pre-activation."""
    targets: Sequence[Node]
    """Rows."""
    sources: Sequence[Node]
    """Columns."""
    weights: Float[Tensor, "target"]
    """What influence starts from: each logit's probability, 0 for features."""

    @property
    def n_features(self) -> int:
        """Number of features, the first rows and the first columns."""
        return sum(node.kind == "feature" for node in self.targets)

    @cached_property
    def layers(self) -> Tensor:
        """Layer of each target."""
        return torch.tensor([node.layer for node in self.targets], device=self.values.device)

    def of_kind(self, *kinds: str) -> Bool[Tensor, "source"]:
        """Which sources are of these kinds."""
        return torch.tensor([node.kind in kinds for node in self.sources], device=self.values.device)

    @cached_property
    def shares(self) -> Float[Tensor, "target source"]:
        """Each target's share of each source but the biases: |A| over its sum."""
        return self._shares_of(~self.of_kind("bias"))

    @cached_property
    def influence(self) -> Float[Tensor, "source"]:
        """Share of the answer that passes through each source, over all paths. Inputs and errors sum to 1."""
        return self.descend(self.shares, self.weights)

    @cached_property
    def importance(self) -> Float[Tensor, "target"]:
        """Influence of each target: features as sources, logits by their weight."""
        return self._as_targets(self.influence)

    def descend(self, rows: Tensor, start: Float[Tensor, "target"], gains: Tensor | None = None) -> Tensor:
        """The weight of each source when `start` at the targets flows down `rows` along every path.

        A target passes on `gains` (1 unless given) times what reaches it. Exact in one sweep.
        """
        total, reached = start.clone(), rows.new_zeros(rows.shape[1])
        for layer in self.layers.unique().flip(0):
            here = (self.layers == layer).nonzero()[:, 0]
            features = here[here < self.n_features]
            total[features] += reached[features]
            passed = total[here] if gains is None else total[here] * gains[here]
            reached += passed @ rows[here]
        return reached

    def effects(self, logit: int, slopes: Float[Tensor, "target"], values: Tensor | None = None) -> Tensor:
        """Signed change of row `logit` when each source changes by its own size, along every path.

        `slopes` are the targets' derivatives at the prompt; `values` stands in for the matrix's own.
        A feature that is suppressed changes the logit by minus its effect, to first order.
        """
        start = torch.zeros_like(self.weights)
        start[logit] = 1
        sizes = torch.tensor([node.value for node in self.targets[: self.n_features]], device=self.values.device)
        gains = torch.ones_like(self.weights)
        gains[: self.n_features] = slopes[: self.n_features] / sizes
        return self.descend(self.values if values is None else values, start, gains)

    def scores(self) -> dict[str, float]:
        """Replacement and completeness, each from 0 to 1.

        Replacement: share of the influence reaching the bottom that comes from inputs rather than errors.
        Completeness: mean share of a target's input that is not an error, weighted by the target's influence.
        """
        errors = self.of_kind("error")
        inputs, lost = self.influence[self.of_kind(*INPUTS)].sum(), self.influence[errors].sum()
        complete = self.importance @ (1 - self.shares[:, errors].sum(1)) / self.importance.sum()
        return {"replacement": float(inputs / (inputs + lost)), "completeness": float(complete)}

    def prune(self, node_threshold: float, edge_threshold: float) -> "Kept":
        """The smallest set of features and errors holding `node_threshold` of all influence, with every embedding,
        and the smallest set of edges between them holding `edge_threshold` of what is left; nodes that no path
        joins to a logit, or features without an input, are dropped.
        """
        for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it is a share of influence, above 0 and at most 1")
        chosen = _largest(self.influence * self.of_kind("feature", "error"), node_threshold)
        nodes = chosen | (self.of_kind(*INPUTS) & (self.influence > 0))
        shares = self._shares_of(nodes) * self._rows(nodes)[:, None]
        through = shares * self._as_targets(self.descend(shares, self.weights))[:, None]
        edges = _largest(through.flatten(), edge_threshold).view_as(through)
        return self._connected(nodes, edges)

    def _connected(self, nodes: Tensor, edges: Tensor) -> "Kept":
        while True:
            edges = edges & nodes & self._rows(nodes)[:, None]
            live = nodes & edges.any(0)
            live[: self.n_features] &= edges[: self.n_features].any(1)
            if bool((live == nodes).all()):
                return Kept(nodes, edges)
            nodes = live

    def _rows(self, nodes: Bool[Tensor, "source"]) -> Bool[Tensor, "target"]:
        """Which rows remain when only these sources do: their own, and the logits'."""
        rows = torch.ones_like(self.weights, dtype=torch.bool)
        rows[: self.n_features] = nodes[: self.n_features]
        return rows

    def _as_targets(self, reached: Float[Tensor, "source"]) -> Float[Tensor, "target"]:
        weight = self.weights.clone()
        weight[: self.n_features] += reached[: self.n_features]
        return weight

    def _shares_of(self, counted: Bool[Tensor, "source"]) -> Tensor:
        size = self.values.abs() * counted
        return size / size.sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Kept:
    """What pruning keeps."""

    nodes: Bool[Tensor, "source"]
    """Sources kept. Logits always are."""
    edges: Bool[Tensor, "target source"]
    """Edges kept, all between kept nodes."""


def _largest(values: Float[Tensor, "n"], threshold: float) -> Bool[Tensor, "n"]:
    """The fewest of `values` that hold `threshold` of their sum."""
    ordered, order = values.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    keep = torch.zeros_like(values, dtype=torch.bool)
    keep[order] = (before < threshold * values.sum()) & (ordered > 0)
    return keep
