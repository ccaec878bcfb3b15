"""Which heads carry the kept edges, within a budget: what files and pages say of an edge.

A head's part of an edge is what it carries as the last head before the target, `graph.head_loadings`. Splitting a
target's row by heads costs as many descents as there are heads below it, so the most influential targets come first
and the rest have no heads once the budget is spent.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.engine.loadings import rows_of_targets

FLOPS = 2e11
"""Budget of one graph: seconds on one core."""

SHOWN = 0.1
"""Share of an edge, by size, that a stream carries before it is named."""

Heads = list[list]
"""Names and signed shares of an edge's weight, largest first: `L1.H3`, or `no head`; shares of all streams sum to 1."""


@torch.no_grad()
def edge_heads(graph, *, budget: float = FLOPS) -> list[Heads | None]:
    """For each of `graph.kept_edges` the heads that carry it; None where `budget`, in FLOPs, did not reach its target.

    Cost: at most `budget` FLOPs, most influential targets first, one descent with heads apart for each place.
    """
    places, weights, _ = graph.kept_edges
    edges: dict[int, list[int]] = defaultdict(list)
    for i, target in enumerate(places[:, 0].tolist()):
        edges[target].append(i)
    found: list[Heads | None] = [None] * len(places)
    targets = _affordable(graph, list(edges), budget)
    if not targets:
        return found
    rows, owner, factor = rows_of_targets(graph, targets)
    parts: dict[int, Tensor] = {}
    for block in graph.attribution.blocks(rows, heads=True):
        for place, row in enumerate(block.rows.tolist()):
            target = targets[int(owner[row])]
            columns = places[edges[target], 1]
            local = torch.searchsorted(block.columns, columns)
            part = block.values[:, place, local] * factor[row]
            parts[target] = parts[target] + part if target in parts else part
    names = _names(graph)
    for target, streams in parts.items():
        for i, loadings in zip(edges[target], streams.T, strict=True):
            found[i] = _shown(loadings, float(weights[i]), names)
    return found


def heads_are_affordable(graph, *, budget: float = 10 * FLOPS) -> bool:
    """Whether the heads of all rows cost at most `budget` FLOPs."""
    targets = range(len(graph.weighted.targets))
    return len(_affordable(graph, targets, budget)) == len(targets)


def _shown(loadings: Float[Tensor, "stream"], weight: float, names: Sequence[str]) -> Heads:
    size = float(loadings.abs().sum()) or 1.0
    order = loadings.abs().argsort(descending=True)[:3].tolist()
    whole = weight or 1.0
    return [[names[i], round(float(loadings[i]) / whole, 3)] for i in order if abs(float(loadings[i])) >= SHOWN * size]


def _names(graph) -> list[str]:
    cfg = graph.attribution.frozen.model.cfg
    return ["no head", *(f"L{layer}.H{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads))]


def _affordable(graph, targets: Sequence[int], budget: float) -> list[int]:
    """The most influential of `targets` that the budget allows, the answer first."""
    cfg, importance = graph.attribution.frozen.model.cfg, graph.weighted.importance
    chosen, spent = [], 0.0
    for target in sorted(targets, key=lambda t: -float(importance[t])):
        node = graph.weighted.targets[target]
        layers, n_pos = max(node.layer, 0), (node.pos or 0) + 1
        each = 4 * cfg.d_model**2 * max(layers, 1) * n_pos + cfg.d_model * cfg.n_heads * layers * n_pos**2
        spent += each * (1 + layers * cfg.n_heads)
        if spent > budget:
            break
        chosen.append(target)
    return chosen
