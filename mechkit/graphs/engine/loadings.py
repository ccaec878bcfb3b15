"""Which head carries an edge: shares of each head as the last one on the paths from source to target.

Signed loadings, `graph.head_loadings`, sum to the edge. Shares are of sizes, and sum to 1. Both are computed when they
are asked for, a layer and position at a time, since all together are as many matrices as there are heads.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def carried(graph, targets: Sequence[int], groups: Int[Tensor, "source"]) -> Float[Tensor, "stream target group"]:
    """Share of each target's input from each group of sources that each head carries last, by size.

    The first stream is no head; over streams and groups a target's shares sum to 1. `targets` are rows of
    `graph.weighted`, `groups` a number for each source, from 0 without gaps.
    Cost: one descent with heads apart for each layer and position among the targets.
    """
    engine, matrix, cfg = graph.attribution, graph.weighted, graph.attribution.frozen.model.cfg
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    out = matrix.weights.new_zeros(1 + cfg.n_layers * cfg.n_heads, len(targets), n_groups)
    rows, owner, factor = rows_of_targets(graph, targets)
    for block in engine.blocks(rows, heads=True):
        mine, back = owner[block.rows].unique(return_inverse=True)
        values = block.values.new_zeros(block.values.shape[0], len(mine), block.values.shape[2])
        values.index_add_(1, back, block.values * factor[block.rows, None])
        size = values.abs()
        heads = size / size.sum(0).clamp_min(torch.finfo(size.dtype).tiny)
        total = values.sum(0).abs() * block.take(matrix.counted)
        shares = total / total.sum(1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
        out[:, mine] = torch.zeros_like(out[:, mine]).index_add_(2, groups[block.columns], heads * shares)
    return out


def rows_of_targets(graph, targets: Sequence[int]) -> tuple[list, Int[Tensor, "row"], Float[Tensor, "row"]]:
    """The rows of these targets, which target each is of, and what it is multiplied by."""
    engine, matrix = graph.attribution, graph.weighted
    rows, owner, factor = [], [], []
    for i, target in enumerate(targets):
        column = int(matrix.own[target])
        if column < 0:
            rows, owner, factor = [*rows, matrix.targets[target]], [*owner, i], [*factor, 1.0]
            continue
        parts = engine.rows_of([column])
        layer = parts[0].layer
        within = column - engine.layout.features[layer][0]
        slopes = [1.0] if len(parts) == 1 else engine.active[layer].slopes[:, within].tolist()
        rows, owner, factor = rows + parts, owner + [i] * len(parts), factor + slopes
    return rows, torch.tensor(owner, dtype=torch.long), matrix.weights.new_tensor(factor)
