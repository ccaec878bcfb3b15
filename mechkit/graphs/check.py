"""Whether a graph is true: each feature's predicted effect on the answer against the model's.

To suppress a feature is to take what it writes out of its MLP's output. The graph predicts the change of the
answer's logit from its edges alone: every path, `Δh_t = Σ_s A[t,s] Δa_s / a_s`, `Δa_t = slope_t Δh_t`. The model is
asked at three levels:

    (i)   all frozen: patterns, scales and MLP outputs. Every target must move as its column says, exactly.
    (ii)  attention patterns and scales frozen, MLPs live.
    (iii) nothing frozen: what the graph is worth.

Beside it stand the model's own gradient, the direct edge alone, and a control: the same graph with its weights
permuted within each pair of layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.loop import hooked
from mechkit.core.metrics import Metric
from mechkit.core.sweep import sweep
from mechkit.graphs.blocks import Blocks
from mechkit.graphs.exact import exact_error, suppression
from mechkit.graphs.nodes import Node

N_CONTROLS = 20
"""Permuted graphs that the control averages over."""


@dataclass(frozen=True, eq=False)
class Check:
    """Changes of the answer's logit when each feature is suppressed: predicted and measured, in logits."""

    nodes: Sequence[Node]
    """The features suppressed, one at a time."""
    predicted: Float[Tensor, "feature"]
    """By the graph, along every path."""
    direct: Float[Tensor, "feature"]
    """By the feature's edge to the answer alone."""
    gradient: Float[Tensor, "feature"]
    """By the model's own gradient, nothing frozen."""
    control: Float[Tensor, "draw feature"]
    """By graphs whose weights are permuted within each pair of layers."""
    frozen: Float[Tensor, "feature"]
    """Measured, attention patterns and scales frozen: level (ii)."""
    measured: Float[Tensor, "feature"]
    """Measured, nothing frozen: level (iii)."""
    exact_error: float
    """Level (i): largest |measured - predicted| of any target, relative to the sum of its row's sizes."""

    @property
    def agreement(self) -> float | None:
        """Spearman correlation of predicted and measured changes at level (iii); None for fewer than three features."""
        return spearman(self.predicted, self.measured) if len(self.nodes) > 2 else None

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per feature: layer, position and the changes, in logits."""
        columns = ("predicted", "direct", "gradient", "frozen", "measured")
        rows = {"feature": [str(node) for node in self.nodes], "layer": [node.layer for node in self.nodes]}
        return pd.DataFrame({**rows, **{name: getattr(self, name).cpu().numpy() for name in columns}})

    def summary(self) -> pd.DataFrame:
        """Spearman correlation and sign agreement of each predictor with each level, over all and by layer.

        Features of the last layer feed only logits, so at level (ii) the graph and the direct edge are exact there.
        Over all layers the control need not be 0: permuted weights keep each layer's share of the effect.
        """
        layers = sorted({node.layer for node in self.nodes})
        rows = []
        for level, truth in (("ii: attention and norms frozen", self.frozen), ("iii: nothing frozen", self.measured)):
            for name in ("predicted", "gradient", "direct", "control"):
                guess = getattr(self, name)
                row = {"level": level, "by": "graph" if name == "predicted" else name}
                row |= {"spearman": spearman(guess, truth), "same sign": same_sign(guess, truth)}
                for layer in layers:
                    here = torch.tensor([node.layer == layer for node in self.nodes])
                    row[f"spearman L{layer}"] = spearman(guess[..., here], truth[here])
                rows.append(row)
        return pd.DataFrame(rows)

    @classmethod
    def pooled(cls, checks: Sequence["Check"]) -> "Check":
        """Several prompts' checks as one."""
        joined = {
            name: torch.cat([getattr(check, name) for check in checks], dim=-1)
            for name in ("predicted", "direct", "gradient", "control", "frozen", "measured")
        }
        nodes = [node for check in checks for node in check.nodes]
        return cls(nodes, **joined, exact_error=max(check.exact_error for check in checks))


def check_graph(graph, *, seed: int = 0) -> Check:
    """Suppress every kept feature of `graph` in the model and compare with what the graph predicts.

    Unit: logits, as the graph's logit targets. Cost: three forward passes per kept feature and one backward pass.
    """
    chosen = [i for i in graph.kept_sources if graph.weighted.sources[i].kind == "feature"]
    nodes = [graph.weighted.sources[i] for i in chosen]
    answer = graph.weighted.n_features
    slopes = target_slopes(graph)
    frozen, measured = (_measure(graph, nodes, base) for base in (graph.attribution.frozen.freeze(mlps=False), []))
    return Check(
        nodes=nodes,
        predicted=-graph.weighted.effects(answer, slopes)[chosen],
        direct=-_row(graph, answer)[chosen],
        gradient=_gradient(graph, nodes),
        control=-_controls(graph, answer, slopes, seed)[:, chosen],
        frozen=frozen,
        measured=measured,
        exact_error=exact_error(graph, chosen),
    )


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
    token, centred = graph.logits[0].index, graph.meta["logits"] != "raw"
    cap = graph.attribution.frozen.soft_cap

    def compute(logits: Tensor, prompts) -> Tensor:
        last = logits[:, -1] if cap is None else cap * torch.atanh(logits[:, -1] / cap)
        return last[:, token] - last.mean(-1) if centred else last[:, token]

    return Metric("answer logit", "logits", "last", compute)


def _measure(graph, nodes: Sequence[Node], base) -> Float[Tensor, "feature"]:
    frozen = graph.attribution.frozen
    runs = [[], *(suppression(graph, node) for node in nodes)]
    values = sweep(frozen.model, frozen.prompts, runs, answer_logit(graph), base=base).scores[:, 0]
    return values[1:] - values[0]


def target_slopes(graph) -> Float[Tensor, "target"]:
    """Derivative of each target's activation by its row at the prompt; 1 for roots and gated neurons, whose rows
    hold their derivatives already."""
    engine, slopes = graph.attribution, torch.ones_like(graph.weighted.weights)
    own = graph.weighted.own[: graph.weighted.n_features]
    for basis, columns in zip(engine.bases, engine.layout.features, strict=True):
        here = ((own >= columns[0]) & (own < columns[-1])).nonzero()[:, 0]
        if len(basis.parts) == 1 and len(here):
            slopes[here] = engine.active[basis.layer].slopes[0, own[here] - columns[0]]
    return slopes


def _row(graph, target: int) -> Float[Tensor, "source"]:
    matrix, here = graph.weighted, torch.arange(len(graph.weighted.sources))
    return matrix.rows.at(torch.full_like(here, target), here)


def _gradient(graph, nodes: Sequence[Node]) -> Float[Tensor, "feature"]:
    """Change that the model's own gradient predicts; no parameter's gradient is allocated."""
    if not nodes:
        return torch.zeros(0)
    frozen, leaves = graph.attribution.frozen, {}

    def leaf(layer: int):
        def hook(x: Tensor, hook) -> Tensor:
            leaves[layer] = x if x.requires_grad else x.detach().requires_grad_(True)
            return leaves[layer]

        return f"blocks.{layer}.hook_mlp_out", hook

    with torch.enable_grad(), hooked(frozen.model, [leaf(layer) for layer in range(frozen.model.cfg.n_layers)]):
        logits = frozen.model(frozen.prompts.tokens)
        value = answer_logit(graph)(logits, frozen.prompts).sum()
        slopes = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    written = [graph.attribution.writes(node) for node in nodes]
    return torch.stack(
        [
            -torch.stack([slopes[layer][0, node.pos] @ row for layer, row in rows.items()]).sum()
            for node, rows in zip(nodes, written, strict=True)
        ]
    )


def _controls(graph, answer: int, slopes: Tensor, seed: int) -> Float[Tensor, "draw source"]:
    generator = torch.Generator().manual_seed(seed)
    draws = [graph.weighted.effects(answer, slopes, _permuted(graph.weighted, generator)) for _ in range(N_CONTROLS)]
    return torch.stack(draws)


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
