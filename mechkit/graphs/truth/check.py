"""Whether a graph is true: what it predicts of changing its features against what the model does.

A feature is suppressed, or steered to a multiple of its activation, by adding to what its MLP writes. The graph
predicts the change of a root from its edges alone, along every path. The model is asked at three levels:

    (i)   all frozen: patterns, scales and MLP outputs. Every target must move as its column says, exactly.
    (ii)  attention patterns and scales frozen, MLPs live.
    (iii) nothing frozen: what the graph is worth.

Beside it stand the model's own gradient, the direct edge alone, and a control: the same graph with its weights
permuted within each pair of layers.

    graph.verify()                                   # each kept feature suppressed
    graph.verify("supernodes", multiple=2.0).table   # each supernode twice as active
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.loop import hooked
from mechkit.core.metrics import Metric
from mechkit.graphs.engine.blocks import Blocks
from mechkit.graphs.nodes import Node
from mechkit.graphs.truth.changes import Change, referred
from mechkit.graphs.truth.effects import Effects, target_slopes
from mechkit.graphs.truth.exact import adds, exact_error, shift, suppression, writes
from mechkit.graphs.truth.root_values import RootReader, logit_metric, measured

__all__ = ["Check", "answer_logit", "check_graph", "same_sign", "spearman", "suppression", "target_slopes", "verify"]

N_CONTROLS = 20
"""Permuted graphs that the control averages over."""

PREDICTORS = ("predicted", "gradient", "direct", "control")
"""What is compared with the measurements; the first is the graph."""

LEVELS = {"frozen": "ii: attention and norms frozen", "measured": "iii: nothing frozen"}
"""Names of the levels at which the model is asked, by the field that holds what it did."""


@dataclass(frozen=True, eq=False)
class Check:
    """Changes of a root when features, or groups of features, change: predicted and measured, in the root's unit."""

    groups: Sequence[Sequence[Node]]
    """The features that change together, for each row."""
    predicted: Float[Tensor, "row"]
    """By the graph, along every path."""
    direct: Float[Tensor, "row"]
    """By the features' edges to the root alone."""
    gradient: Float[Tensor, "row"]
    """By the model's own gradient, nothing frozen."""
    control: Float[Tensor, "draw row"]
    """By graphs whose weights are permuted within each pair of layers."""
    frozen: Float[Tensor, "row"]
    """Measured, attention patterns and scales frozen: level (ii)."""
    measured: Float[Tensor, "row"]
    """Measured, nothing frozen: level (iii)."""
    exact_error: float
    """Level (i): largest |measured - predicted| of any target, relative to the sum of its row's sizes."""
    names: Sequence[str] = ()
    """What each row is called; left out, the one feature that it changes."""
    root: str = ""
    """What was measured, such as a logit."""
    change: str = "suppressed"
    """What was done to the features, in words."""

    @property
    def nodes(self) -> list[Node]:
        """The first feature of each row; the only one unless rows are supernodes."""
        return [group[0] for group in self.groups]

    @property
    def labels(self) -> list[str]:
        """What each row is called."""
        return list(self.names) or [str(node) for node in self.nodes]

    @property
    def layers(self) -> list[int]:
        """The layer of each row, the lowest where its features are of several."""
        return [min(node.layer for node in group) for group in self.groups]

    @property
    def agreement(self) -> float | None:
        """Spearman correlation of predicted and measured changes at level (iii); None for fewer than three rows."""
        return spearman(self.predicted, self.measured) if len(self.groups) > 2 else None

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per feature or supernode: layer and changes, in the root's unit; the control is a mean of sizes."""
        columns = ("predicted", "direct", "gradient", "frozen", "measured")
        rows = {"feature": self.labels, "layer": self.layers, "features": [len(group) for group in self.groups]}
        values = {name: getattr(self, name).cpu().numpy() for name in columns}
        return pd.DataFrame({**rows, **values, "control": self.control.abs().mean(0).cpu().numpy()})

    def summary(self) -> pd.DataFrame:
        """Spearman correlation and sign agreement of each predictor with each level, over all and by layer.

        Features of the last layer feed only logits, so at level (ii) the graph and the direct edge are exact there.
        Over all layers the control need not be 0: permuted weights keep each layer's share of the effect.
        """
        layers, rows = torch.tensor(self.layers), []
        for level, title in LEVELS.items():
            truth = getattr(self, level)
            for name in PREDICTORS:
                guess = getattr(self, name)
                row = {"level": title, "by": "graph" if name == "predicted" else name}
                row |= {"spearman": spearman(guess, truth), "same sign": same_sign(guess, truth)}
                for layer in sorted(set(self.layers)):
                    here = (layers == layer).to(truth.device)
                    row[f"spearman L{layer}"] = spearman(guess[..., here], truth[here])
                rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        what = "supernodes" if self.names else "features"
        return (
            f"Check of {self.root}: {len(self.groups)} {what} {self.change}; all frozen, equal within "
            f"{self.exact_error:.0e}\n{self.summary().to_string(index=False, float_format='{:.2f}'.format)}"
        )

    @classmethod
    def pooled(cls, checks: Sequence["Check"]) -> "Check":
        """Several prompts' checks as one."""
        joined = {
            name: torch.cat([getattr(check, name) for check in checks], dim=-1)
            for name in ("predicted", "direct", "gradient", "control", "frozen", "measured")
        }
        groups = [group for check in checks for group in check.groups]
        names = [label for check in checks for label in check.labels] if any(check.names for check in checks) else ()
        worst = max(check.exact_error for check in checks)
        roots = list(dict.fromkeys(check.root for check in checks))
        root = roots[0] if len(roots) == 1 else f"{len(roots)} roots"
        return cls(groups, **joined, exact_error=worst, names=names, root=root, change=checks[0].change)


def check_graph(graph, *, root: int = 0, seed: int = 0) -> Check:
    """Suppress every kept feature of `graph` in the model and compare with what the graph predicts of a root.

    Unit: the root's. Cost: three forward passes per kept feature and one backward pass.
    """
    return verify(graph, root=root, seed=seed)


def verify(
    graph,
    what: Any = "nodes",
    *,
    multiple: float = 0.0,
    amount: float | None = None,
    root: int = 0,
    seed: int = 0,
) -> Check:
    """Predicted and measured change of a root when features, or supernodes, are made `multiple` times as active.

    `what` is "nodes" (every kept feature), "supernodes", or a list of references (`graphs.truth.changes`): nodes,
    ids, sites of features, names of supernodes. With `amount` that much is added to each activation instead, which
    features that are not active on the prompt need. `root` numbers what the graph explains, the first unless told.

    Unit: the root's. Cost: three rows of a forward pass for each, one backward pass, one descent per permuted graph.
    Raises ValueError for a root that there is not, and for a reference that names nothing.
    """
    if not 0 <= root < len(graph.roots):
        raise ValueError(f"root {root} does not exist; the graph explains {len(graph.roots)}, numbered from 0")
    names, members = _chosen(graph, what)
    groups = [[_changed(node, multiple, amount) for node in group] for group in members]
    runs = [[], *(adds(shift(graph, _by(group))) for group in groups)]
    at = {name: measured(graph, runs, [root], frozen=name == "frozen")[0] for name in LEVELS}
    effects = Effects(graph, root, groups)
    known = [[graph.column_of(node) for node in group] for group in members if all(node.value for node in group)]
    return Check(
        groups=members,
        predicted=effects.along_paths,
        direct=effects.direct,
        gradient=_gradient(graph, groups, root),
        control=_controls(graph, effects, seed),
        frozen=at["frozen"][1:] - at["frozen"][0],
        measured=at["measured"][1:] - at["measured"][0],
        exact_error=exact_error(graph, known),
        names=names,
        root=str(graph.roots[root]),
        change=_in_words(multiple, amount),
    )


def _chosen(graph, what: Any) -> tuple[list[str], list[list[Node]]]:
    """The features that change together, row by row, and what the rows are called; no names where each is a feature."""
    if isinstance(what, str) and what == "nodes":
        sources = graph.weighted.sources
        return [], [[sources[i]] for i in graph.kept_sources if sources[i].kind == "feature"]
    if isinstance(what, str) and what == "supernodes":
        what = list(graph.supernodes)
    asked = [what] if isinstance(what, str | Node) else list(what)
    found = [referred(graph, one) for one in asked]
    if all(len(group) == 1 for group in found):
        return [], found
    return [one if isinstance(one, str) else f"{len(found[i])} features" for i, one in enumerate(asked)], found


def _changed(node: Node, multiple: float, amount: float | None) -> Change:
    return Change(node, multiple, "multiple") if amount is None else Change(node, amount, "amount")


def _by(group: Sequence[Change]) -> list[tuple[Node, float]]:
    return [(change.node, change.by) for change in group]


def _in_words(multiple: float, amount: float | None) -> str:
    if amount is not None:
        return f"changed by {amount:+g}"
    return "suppressed" if multiple == 0 else f"steered to {multiple:g} times their activation"


def spearman(a: Float[Tensor, "*draw n"], b: Float[Tensor, "n"]) -> float:
    """Spearman rank correlation, averaged over draws; NaN for fewer than three pairs."""
    if b.numel() < 3:
        return float("nan")
    ranks = pd.DataFrame(np.vstack([a.reshape(-1, b.numel()).cpu().numpy(), b.cpu().numpy()])).rank(axis=1).to_numpy()
    return float(np.mean([np.corrcoef(row, ranks[-1])[0, 1] if row.std() else 0.0 for row in ranks[:-1]]))


def same_sign(a: Float[Tensor, "*draw n"], b: Float[Tensor, "n"]) -> float:
    """Share of pairs with the same sign."""
    return float((a.sign() == b.sign()).float().mean())


def answer_logit(graph) -> Metric:
    """The answer's logit, measured as the graph's logit targets are: before a soft-cap, from the mean if centred."""
    return logit_metric(graph, graph.logits[0].index)


def _gradient(graph, groups: Sequence[Sequence[Change]], root: int) -> Float[Tensor, "row"]:
    """Change that the model's own gradient predicts; no parameter's gradient is allocated."""
    if not groups:
        return torch.zeros(0)
    frozen, reader = graph.attribution.frozen, RootReader.of(graph, root)
    n_layers, leaves, seen = frozen.model.cfg.n_layers, {}, {}

    def leaf(layer: int):
        def hook(x: Tensor, hook) -> Tensor:
            leaves[layer] = x if x.requires_grad else x.detach().requires_grad_(True)
            return leaves[layer]

        return f"blocks.{layer}.hook_mlp_out", hook

    read = (reader.site.hook, lambda x, hook: seen.update({reader.site.hook: x}))
    with torch.enable_grad(), hooked(frozen.model, [*(leaf(layer) for layer in range(n_layers)), read]):
        frozen.model(frozen.prompts.tokens, stop_at_layer=n_layers)
        value = reader.of_hook(seen, norms_held=False).sum()
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else ()
    slopes = {layer: slope[0] for layer, slope in zip(leaves, found, strict=False) if slope is not None}
    return torch.stack(
        [
            torch.stack([value.detach() * 0, *(
                slopes[layer][change.node.pos] @ row
                for change in group
                for layer, row in writes(graph, change.node, change.by).items()
                if layer in slopes
            )]).sum()
            for group in groups
        ]
    )  # fmt: skip


def _controls(graph, effects: Effects, seed: int) -> Float[Tensor, "draw row"]:
    generator = torch.Generator().manual_seed(seed)
    draws = (_permuted(graph.weighted, generator) for _ in range(N_CONTROLS))
    return torch.stack([effects.with_rows(rows) for rows in draws])


def _permuted(matrix, generator: torch.Generator) -> Blocks:
    """The matrix's rows with their nonzero weights permuted within each pair of layers."""
    columns = torch.tensor([node.layer for node in matrix.sources], device=matrix.rows.device)
    counted, changed = matrix.counted, []
    for blocks in reversed(list(matrix.rows.levels())):
        values = [block.values.clone() for block in blocks]
        for lower in columns[counted].unique().tolist():
            lower_columns = counted & (columns == lower)
            masks = [(new != 0) & block.take(lower_columns) for block, new in zip(blocks, values, strict=True)]
            weights = torch.cat([new[mask] for new, mask in zip(values, masks, strict=True)])
            weights = weights[torch.randperm(len(weights), generator=generator)]
            parts = weights.split([int(mask.sum()) for mask in masks])
            for new, mask, part in zip(values, masks, parts, strict=True):
                new[mask] = part
        changed += [replace(block, values=new) for block, new in zip(blocks, values, strict=True)]
    return replace(matrix.rows, blocks=sorted(changed, key=lambda block: -block.level))
