r"""Edges between groups of nodes, summed: supernodes, single kept features, tokens, errors, and what is explained.

In logits, an edge carries the part of the change of the first root that goes along it. A source that changes by its own
size changes the root by its effect, to first order along every path (`Matrix.effects`). With a target t's effect
`E_t = da_t/dh_t / a_t * sum_u A[u, t] E_u`, an edge from s to t carries `A[t, s] * da_t/dh_t / a_t * E_t(a_t)`, so that

- what leaves a group adds up to the group's effect, and
- what reaches a group of ReLU or JumpReLU features adds up to it as well, biases included: h_t = a_t there.

Every source is in one group (pruned features in one of their own), so both sums are exact. In pre-activations, an edge
is the sum of the matrix over its sources and targets: what its sources together add to its targets' pre-activations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechkit.graphs.meaning.notes import label_of
from mechkit.graphs.meaning.supernodes import partition, place_name
from mechkit.graphs.nodes import Node

PRUNED = "pruned features"
"""The group of all features that pruning leaves out."""

_SHOWN = 12
"""Edges shown when it is printed."""

_REST = (PRUNED, "biases")
"""Groups whose edges are not among these."""


@dataclass(frozen=True, eq=False, repr=False)
class Supergraph:
    """Signed edges between groups of nodes."""

    sources: Sequence[str]
    """Groups that edges leave: features, then errors, tokens and other inputs, biases."""
    targets: Sequence[str]
    """Groups that edges reach: features, then what the graph explains."""
    weights: Float[np.ndarray, "target source"]
    """The edges, in `unit`; 0 where there is none."""
    members: Mapping[str, Sequence[Node]]
    """The nodes of each group."""
    unit: str
    """"logit", or the first root's unit; or "pre-activation"."""
    meta: Mapping = field(default_factory=dict)
    """How the graph was made."""

    def frame(self, n: int | None = None) -> pd.DataFrame:
        """One row per edge, largest first: `source`, `target`, `weight`, and how many nodes each has; the first `n`."""
        t, s = self.weights.nonzero()
        order = np.argsort(-np.abs(self.weights[t, s]), kind="stable")[:n]
        sources, targets = (np.array(names, dtype=object) for names in (self.sources, self.targets))
        rows = {"source": sources[s[order]], "target": targets[t[order]], "weight": self.weights[t[order], s[order]]}
        sizes = {f"n_{end}s": [len(self.members[name]) for name in rows[end]] for end in ("source", "target")}
        return pd.DataFrame({**rows, **sizes})

    def matrix(self) -> pd.DataFrame:
        """Targets by sources, labelled."""
        return pd.DataFrame(self.weights, index=pd.Index(self.targets), columns=pd.Index(self.sources))

    def __repr__(self) -> str:
        edges, n_edges = self.frame(), int((self.weights != 0).sum())
        shown = edges[~edges["source"].isin(_REST) & ~edges["target"].isin(_REST)].head(_SHOWN)
        edges = zip(shown["weight"], shown["source"], shown["target"], strict=True)
        lines = [f"{weight:+8.2f}  {source} → {target}" for weight, source, target in edges]
        more = f"({n_edges - len(shown)} more edges, among them all of biases and pruned features)"
        lines += [more] if n_edges > len(shown) else []
        return "\n".join([*lines, f"unit: {self.unit}"])


@torch.no_grad()
def supergraph(graph, unit: str) -> Supergraph:
    """The edges of a graph between its groups; see `AttributionGraph.supergraph`. Cost: one sweep of the matrix."""
    if unit not in ("logit", "pre-activation"):
        raise ValueError(f"unit is {unit!r}; edges are in 'logit' or 'pre-activation'")
    matrix, members = graph.weighted, groups(graph)
    names = list(members)
    of_source = _numbers(len(matrix.sources), members.values())
    roots = {f"{node}" if node.kind != "logit" else f"logit {node.name}": [node] for node in graph.roots}
    features = [name for name in names if matrix.sources[members[name][0]].kind == "feature"]
    place = {name: i for i, name in enumerate([*features, *roots])}
    of_target = torch.full((len(matrix.targets),), -1)
    for row, column in enumerate(matrix.own.tolist()):
        of_target[row] = (
            place[names[int(of_source[column])]] if column >= 0 else len(features) + row - matrix.n_features
        )
    gains = torch.ones_like(matrix.weights) if unit == "pre-activation" else edge_gains(graph)
    weights = torch.zeros(len(place), len(names), dtype=torch.float64)
    for block in matrix.rows.blocks:
        carried = (block.values * gains[block.rows, None]).double().cpu()
        by_target = torch.zeros(len(place), carried.shape[1], dtype=torch.float64).index_add_(
            0, of_target[block.rows.cpu()], carried
        )
        weights.index_add_(1, of_source[block.columns.cpu()], by_target)
    nodes = {name: [matrix.sources[i] for i in columns] for name, columns in members.items()}
    named = "logit" if graph.roots[0].kind == "logit" else str(graph.roots[0])
    return Supergraph(
        names, list(place), weights.numpy(), nodes | roots, named if unit == "logit" else unit, graph.meta
    )


def groups(graph) -> dict[str, list[int]]:
    """Columns by group: supernodes, kept features that stand alone, pruned features, the rest by token or kind."""
    inside = {node.id: name for name, nodes in graph.supernodes.items() for node in nodes}
    found: dict[str, list[int]] = {}
    for name, columns in partition(graph).items():
        for i in columns:
            node = graph.weighted.sources[i]
            own = name if node.kind != "feature" else inside.get(node.id)
            found.setdefault(own or (single_name(graph, node) if bool(graph.kept.nodes[i]) else PRUNED), []).append(i)
    first = {name: graph.weighted.sources[columns[0]].kind != "feature" for name, columns in found.items()}
    return dict(sorted(found.items(), key=lambda item: first[item[0]]))


def single_name(graph, node: Node) -> str:
    """A feature that stands alone: layer, number and place, and what is known of it."""
    words = label_of(graph, node)
    return f"L{node.layer}#{node.index}{f' {words}' if words else ''} at {place_name(graph, node.pos or 0)}"


def edge_gains(graph) -> Float[torch.Tensor, "target"]:
    """What a unit of each target's pre-activation is worth to the first root, along every path."""
    from mechkit.graphs.truth.check import target_slopes

    matrix, root = graph.weighted, graph.weighted.n_features
    slopes, gains = target_slopes(graph), torch.zeros_like(matrix.weights)
    effects = matrix.effects(root, slopes)
    sizes = torch.tensor([node.value for node in matrix.targets[:root]], dtype=gains.dtype, device=gains.device)
    gains[:root] = slopes[:root] / sizes * effects[matrix.own[:root]]
    gains[root] = 1
    return gains


def _numbers(n: int, groups) -> torch.Tensor:
    of = torch.zeros(n, dtype=torch.long)
    for number, columns in enumerate(groups):
        of[columns] = number
    return of
