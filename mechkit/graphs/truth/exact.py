"""Level (i): with all else frozen, every target must move as its matrix column says.

Patterns, scales and MLP outputs are held at their values; what still flows are the residual stream, attention's
values and the skip connections of transcoders. That is what the matrix claims to be the derivative of, so the two
must be equal.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Add
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.held import HeldRuns, Hold, Shift
from mechkit.graphs.truth.root_values import RootReader


@torch.no_grad()
def exact_error(graph, groups: Sequence[Sequence[int]]) -> float:
    """Suppress each group of sources (columns of features) with all else frozen and compare every target's change with
    the sum of their columns. The largest difference, relative to the sum of sizes of the target's row; 0 for no groups.

    Cost: one row of a forward pass per group and one more.
    """
    worst = 0.0
    sizes = graph.rows.per_row(lambda block: block.values.abs().sum(1)).clamp_min(torch.finfo(graph.rows.dtype).tiny)
    for start in range(0, len(groups), _AT_ONCE):
        some = groups[start : start + _AT_ONCE]
        change = target_changes(graph, [suppressed(graph, *(graph.sources[i] for i in one)) for one in some])
        worst = max(worst, float(((change + _columns(graph, some)).abs() / sizes).max()))
    return worst


_AT_ONCE = 256
"""Groups compared at once."""


@torch.no_grad()
def target_changes(graph, runs: Sequence[Shift]) -> Float[Tensor, "run target"]:
    """How every row of the graph's matrix moves in these runs, with patterns, scales and MLP outputs held."""
    engine = graph.attribution
    hold = Hold(attention=True, norms=True, mlps=range(engine.frozen.model.cfg.n_layers))
    readers = [RootReader.of(graph, i) for i in range(len(graph.roots))]
    hooks = [*(basis.hook_in for basis in engine.bases), *(reader.site.hook for reader in readers)]
    values = HeldRuns(graph, hold).read([{}, *runs], hooks)
    out = torch.empty(len(runs) + 1, len(graph.targets), dtype=graph.rows.dtype, device=graph.rows.device)
    first = len(graph.targets) - len(readers)
    for (layer, pos, part), members in _places(graph.targets[:first]).items():
        basis = engine.bases[layer]
        rows, added = basis.reads([graph.targets[i].index for i in members], part or basis.parts[0])
        out[:, members] = values[basis.hook_in][:, pos] @ rows.T + added
    for i, reader in enumerate(readers):
        out[:, first + i] = reader.of_hook(values, norms_held=True)
    return out[1:] - out[:1]


def _places(targets: Sequence[Node]) -> dict[tuple[int, int, str], list[int]]:
    """Numbers of the features' rows by layer, position and part."""
    found: dict[tuple[int, int, str], list[int]] = {}
    for i, node in enumerate(targets):
        found.setdefault((node.layer, node.pos or 0, node.part), []).append(i)
    return found


def _columns(graph, groups: Sequence[Sequence[int]]) -> Float[Tensor, "run target"]:
    """The sum of each group's columns of the matrix."""
    out = torch.zeros(len(groups), graph.rows.n_rows, dtype=graph.rows.dtype, device=graph.rows.device)
    weights = torch.zeros(len(groups), graph.rows.n_columns, dtype=graph.rows.dtype, device=graph.rows.device)
    for i, group in enumerate(groups):
        weights[i, list(group)] = 1
    for block in graph.rows.blocks:
        out[:, block.rows] = block.take(weights) @ block.values.T
    return out


def suppressed(graph, *nodes: Node) -> Shift:
    """What taking features out changes in what MLPs write."""
    return shift(graph, [(node, -node.value) for node in nodes])


def shift(graph, changes: Sequence[tuple[Node, float]]) -> Shift:
    """What MLPs write more when each feature (or error node, of size 1) changes by so much, norms after the MLP held
    at their scales."""
    written: dict[tuple[int, int], Tensor] = {}
    for node, change in changes:
        for layer, row in writes(graph, node, change).items():
            place = layer, node.pos or 0
            written[place] = written[place] + row if place in written else row
    return written


def writes(graph, node: Node, change: float) -> dict[int, Float[Tensor, "d_model"]]:
    """What an MLP output gains, by layer, when a feature's activation (or an error's share of itself) grows by so much.

    Raises ValueError for a node that is neither.
    """
    if node.kind == "feature":
        return graph.attribution.writes(replace(node, value=change))
    if node.kind == "error":
        return {node.layer: change * graph.attribution.errors[node.layer][node.pos or 0]}
    raise ValueError(f"'{node}' is no feature and no error; only what an MLP writes can be changed")


def adds(written: Shift) -> list[Add]:
    """The same as interventions."""
    return [Add(f"L{layer}.mlp_out@{pos}", row) for (layer, pos), row in written.items()]


def suppression(graph, *nodes: Node) -> list[Add]:
    """Take what features write out of the MLP outputs that they write to, norms after the MLP held at their scales."""
    return adds(suppressed(graph, *nodes))
