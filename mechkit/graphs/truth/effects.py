"""What a graph predicts of an intervention: changes of its roots when features change, to first order.

A feature's change goes along every path, `Δh_t = Σ_s A[t,s] Δa_s / a_s`, `Δa_t = slope_t Δh_t`. A feature that is
not active on the prompt has no column in the matrix; its column is what moves when its decoder's direction is written
with all else frozen, one row of a forward pass.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.graphs.engine.blocks import Blocks
from mechkit.graphs.truth.changes import Change
from mechkit.graphs.truth.exact import shift, target_changes


def target_slopes(graph, held: range = range(0)) -> Float[Tensor, "target"]:
    """Derivative of each target's activation by its row at the prompt; 1 for roots and gated neurons, whose rows
    hold their derivatives already; 0 for features of layers that are `held`."""
    engine, slopes = graph.attribution, torch.ones_like(graph.weighted.weights)
    own = graph.weighted.own[: graph.weighted.n_features]
    for basis, columns in zip(engine.bases, engine.layout.features, strict=True):
        here = ((own >= columns[0]) & (own < columns[-1])).nonzero()[:, 0]
        if basis.layer in held:
            slopes[here] = 0
        elif len(basis.parts) == 1 and len(here):
            slopes[here] = engine.active[basis.layer].slopes[0, own[here] - columns[0]]
    return slopes


class Effects:
    """What one root gains, to first order, when the features of each group change together."""

    def __init__(self, graph, root: int, groups: Sequence[Sequence[Change]], held: range = range(0)) -> None:
        self.graph, self.row, self.n = graph, graph.weighted.n_features + root, len(groups)
        self.slopes = target_slopes(graph, held)
        self.by_source = graph.weighted.effects(self.row, self.slopes)
        known = [(i, change) for i, group in enumerate(groups) for change in group if change.node.value]
        self.of = torch.tensor([i for i, _ in known], dtype=torch.long, device=self.slopes.device)
        columns = [graph.column_of(change.node) for _, change in known]
        self.columns = torch.tensor(columns, dtype=torch.long, device=self.slopes.device)
        self.shares = self.slopes.new_tensor([change.by / change.node.value for _, change in known])
        new = [[(change.node, change.by) for change in group if not change.node.value] for group in groups]
        self.new = [i for i, group in enumerate(new) if group]
        self.moved = (
            merged(graph, target_changes(graph, [shift(graph, new[i]) for i in self.new])) if self.new else None
        )

    @property
    def along_paths(self) -> Float[Tensor, "group"]:
        """Along every path."""
        out = self._sum(self.by_source)
        if self.moved is not None:
            out[self.new] += self._from(self.moved)
        return out

    @property
    def direct(self) -> Float[Tensor, "group"]:
        """By edges to the root alone."""
        here = torch.arange(len(self.graph.weighted.sources), device=self.slopes.device)
        out = self._sum(self.graph.weighted.rows.at(torch.full_like(here, self.row), here))
        if self.moved is not None:
            out[self.new] += self.moved[:, self.row]
        return out

    def with_rows(self, rows: Blocks) -> Float[Tensor, "group"]:
        """Along every path, with other rows in the matrix's place; features that are not active have none."""
        return self._sum(self.graph.weighted.effects(self.row, self.slopes, rows))

    def _sum(self, by_source: Float[Tensor, "source"]) -> Float[Tensor, "group"]:
        return by_source.new_zeros(self.n).index_add(0, self.of, by_source[self.columns] * self.shares)

    def _from(self, moved: Float[Tensor, "group target"]) -> Float[Tensor, "group"]:
        """From how rows move to the change of the root: what each feature then passes on, and what arrives directly."""
        n = self.graph.weighted.n_features
        sizes = moved.new_tensor([node.value for node in self.graph.weighted.targets[:n]])
        passed_on = self.slopes[:n] / sizes * self.by_source[self.graph.weighted.own[:n]]
        return moved[:, :n] @ passed_on + moved[:, self.row]


def merged(graph, moved: Float[Tensor, "group row"]) -> Float[Tensor, "group target"]:
    """Changes of `graph.targets` as changes of the rows of `graph.weighted`: a gated neuron's two, each times its
    slope."""
    n_roots, engine = len(graph.roots), graph.attribution
    out, row = moved.new_zeros(len(moved), len(graph.weighted.targets)), 0
    for i, node in enumerate(graph.weighted.targets[: graph.weighted.n_features]):
        n_parts = len(engine.bases[node.layer].parts)
        slopes = moved.new_ones(1)
        if n_parts > 1:
            place = int(graph.weighted.own[i]) - engine.layout.features[node.layer][0]
            slopes = engine.active[node.layer].slopes[:, place]
        out[:, i] = moved[:, row : row + n_parts] @ slopes
        row += n_parts
    out[:, -n_roots:] = moved[:, -n_roots:]
    return out
