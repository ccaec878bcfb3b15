"""The features of a model that adds: how active each is on every sum, and what the answers become without some of them.

features = SumFeatures.of(model, bases, grid_of(model, "35+59="), nodes)
lookups = features.which(lambda meaning: meaning.group == "ones-digit lookup")
features.suppress(sums, lookups, scale=-1.0)            # answers where the lookups are turned round
features.swap(sums, [(31, 59), ...], lookups)           # answers with the lookups of another sum

Every feature's activity on all 10,000 sums is known from its operand plot, so that asking is one batched pass. What a
feature writes is shifted by a constant; features above respond to that, so those of one layer belong in a swap.

Source: Lindsey et al. 2025 (Biology), section "Addition"; Ameisen et al. 2025, section "Addition".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.interventions import Add
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import activations, sweep
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.graph import AttributionGraph, Meaning
from mechkit.graphs.meaning.classes import classify
from mechkit.graphs.meaning.operands import OperandGrid
from mechkit.graphs.meaning.supernodes import likeliest_token
from mechkit.graphs.nodes import Node, token_text

Sums = Sequence[tuple[int, int]]
"""Pairs of operands."""

_ROOM = 1 << 28
"""Bytes of activations that are held at once while plots are made."""

_MOST = 2500
"""Prompts run at once."""


@dataclass(frozen=True, eq=False)
class SumFeatures:
    """Features at their positions in a sum, with their operand plots."""

    model: Any
    """The model that adds."""
    bases: Sequence
    """Its dictionaries, one a layer."""
    grid: OperandGrid
    """Every sum of two operands."""
    nodes: Sequence[Node]
    """The features, each at a position."""
    plots: Float[Tensor, "node a b"]
    """How active each is on every sum."""

    @classmethod
    @torch.no_grad()
    def of(cls, model, bases: Sequence, grid: OperandGrid, nodes: Sequence[Node]) -> "SumFeatures":
        """The features of `nodes` on all sums of a grid (`grid_of`). Cost: one short forward pass a sum.

        Raises ValueError for dictionaries that write under a norm after the MLP.
        """
        under_norm = [basis.name for basis in bases if basis.hook_out.endswith("mlp.hook_out")]
        if under_norm:
            raise ValueError(
                f"dictionaries {under_norm} write under a norm after the MLP; their shifts are not constant"
            )
        plots = torch.empty(len(nodes), len(grid.prompts))
        n_pos, widest = grid.prompts.tokens.shape[1], max(basis.d_features for basis in bases)
        step = max(1, min(_MOST, _ROOM // (4 * n_pos * widest)))
        for start in progress(range(0, len(grid.prompts), step), "operand plots"):
            some = grid.prompts[slice(start, start + step)]
            plots[:, start : start + step] = feature_values(model, bases, some, nodes).T.cpu().float()
        return cls(model, bases, grid, nodes, plots.view(len(nodes), grid.size, grid.size))

    @cached_property
    def meanings(self) -> list[Meaning]:
        """What each feature stands for."""
        return classify(self.plots)

    @cached_property
    def numbers(self) -> dict[tuple, int]:
        """The number of each feature by layer, position and number in its dictionary."""
        return {(node.layer, node.pos, node.index): i for i, node in enumerate(self.nodes)}

    def explain(self, graph: AttributionGraph) -> None:
        """Give a graph's features their meanings and plots, where they are among these."""
        for node in graph.attribution.features:
            i = self.numbers.get((node.layer, node.pos, node.index))
            if i is not None:
                graph.meanings[node.id], graph.plots[node.id] = self.meanings[i], self.plots[i]

    def which(self, choice: Callable[[Meaning], bool], pos: int | None = -1) -> Bool[Tensor, "node"]:
        """The features whose meaning is chosen, at one position (the last unless told) or at all."""
        at = None if pos is None else pos % self.grid.prompts.tokens.shape[1]
        chosen = [choice(m) and at in (None, node.pos) for node, m in zip(self.nodes, self.meanings, strict=True)]
        return torch.tensor(chosen, dtype=torch.bool)

    def values(self, sums: Sums) -> Float[Tensor, "sum node"]:
        """How active each feature is on these sums."""
        a, b = torch.tensor(list(sums), dtype=torch.long).reshape(-1, 2).T
        return self.plots[:, a, b].T

    def suppress(self, sums: Sums, chosen: Tensor, *, scale: float = 0.0, draws: int = 0, seed: int = 0) -> "Asked":
        """Answers with the chosen features at `scale` times what they are: a mask of nodes, or of nodes by sum.

        With `draws`, the control: as many active features of each layer and position, drawn at random, so many times.
        """
        return self.changed(sums, (scale - 1) * self.values(sums), chosen, draws, seed)

    def swap(self, sums: Sums, others: Sums, chosen: Tensor, *, draws: int = 0, seed: int = 0) -> "Asked":
        """Answers with the chosen features as active as they are on the other sums; `draws` as in `suppress`."""
        return self.changed(sums, self.values(others) - self.values(sums), chosen, draws, seed)

    @torch.no_grad()
    def changed(self, sums: Sums, change: Float[Tensor, "sum node"], chosen: Tensor, draws: int, seed: int) -> "Asked":
        """Answers where the chosen features, or as many at random, are changed. Cost: a batched pass a draw."""
        mask = (change != 0) & chosen
        masks = [mask] if not draws else self._at_random(change != 0, mask, draws, seed)
        a, b = torch.tensor(list(sums), dtype=torch.long).reshape(-1, 2).T
        prompts = self.grid.prompts[(a * self.grid.size + b).tolist()]
        runs = [self._edits((change * one).to(self.model.W_E)) for one in masks]
        tokens = sweep(self.model, prompts, runs, likeliest_token).scores
        return Asked(self._as_numbers(tokens), a + b, float(mask.sum()) / len(a))

    def _at_random(
        self, able: Bool[Tensor, "sum node"], mask: Bool[Tensor, "sum node"], draws: int, seed: int
    ) -> list[Bool[Tensor, "sum node"]]:
        """As many of the features that would change as `mask` has, for each sum, layer and position."""
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(draws):
            drawn = torch.zeros_like(mask)
            for members in places(self.nodes).values():
                here, wanted = able[:, members], mask[:, members].sum(1, keepdim=True)
                order = torch.rand(here.shape, generator=generator).masked_fill(~here, 2.0)
                drawn[:, members] = order.argsort(1).argsort(1) < wanted
            found.append(drawn)
        return found

    def _edits(self, change: Float[Tensor, "sum node"]) -> list[Add]:
        """What the features' changes add to MLP outputs."""
        shifts: dict[tuple[int, int], Tensor] = {}
        used = change.any(0).cpu()
        for (layer, pos), members in places(self.nodes).items():
            mine = [i for i in members if used[i]]
            for out in self.bases[layer].reaches if mine else ():
                rows = self.bases[layer].writes([self.nodes[i].index for i in mine], out)
                shifts[out, pos] = shifts.get((out, pos), 0) + change[:, mine] @ rows
        return [Add(f"L{layer}.mlp_out@{pos}", shift) for (layer, pos), shift in sorted(shifts.items())]

    def _as_numbers(self, tokens: Float[Tensor, "draw sum"]) -> Int[Tensor, "draw sum"]:
        """Answers as numbers, -1 for a token that is none."""
        words = {int(i): self.model.tokenizer.decode([int(i)]).strip() for i in tokens.unique().tolist()}
        numbers = {i: int(word) if word.isascii() and word.isdigit() else -1 for i, word in words.items()}
        return torch.tensor([[numbers[int(i)] for i in row] for row in tokens.tolist()]).reshape(tokens.shape)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a model answered."""

    answers: Int[Tensor, "draw sum"]
    """Its answers, one row a draw; -1 where that is no number."""
    truth: Int[Tensor, "sum"]
    """The sums."""
    n_features: float
    """Features changed a sum, on average."""

    def share(self, test: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Share of sums whose answer passes `test(answers, truth)`, mean over draws; no number passes none."""
        return float((test(self.answers, self.truth) & (self.answers >= 0)).double().mean())


def grid_of(model, text: str) -> OperandGrid:
    """Every sum of the form of `text`.

    Raises ValueError, with how the model reads numbers, where these are not always as many tokens.
    """
    grid = OperandGrid.of(model, text)
    if grid is not None:
        return grid
    if model.tokenizer is None:
        raise ValueError(f"the model has no tokenizer to read {text!r} with")
    read = [[token_text(model, i) for i in model.to_tokens(one)[0].tolist()] for one in ("7+7", "77+77")]
    raise ValueError(
        f"{text!r} does not stand for a grid of sums: it needs two numbers below 100, and the numbers from 0 to 99 "
        f"must all be as many tokens; this model reads '7+7' as {read[0]} and '77+77' as {read[1]}"
    )


def places(nodes: Sequence[Node]) -> dict[tuple[int, int], list[int]]:
    """Numbers of the nodes by layer and position."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(nodes):
        found.setdefault((node.layer, node.pos or 0), []).append(i)
    return found


@torch.no_grad()
def feature_values(model, bases: Sequence, prompts: Prompts, nodes: Sequence[Node]) -> Float[Tensor, "prompt node"]:
    """How active features are at their positions on prompts of one length. Cost: one forward pass."""
    at, sites = places(nodes), {basis.layer: mlp_input(basis) for basis in bases}
    layers = sorted({layer for layer, _ in at})
    inputs = activations(model, prompts, [sites[layer] for layer in layers])
    out = torch.zeros(len(prompts), len(nodes), device=model.W_E.device, dtype=model.W_E.dtype)
    for layer in layers:
        acts = bases[layer].activations(inputs[sites[layer]])
        for (own, pos), members in at.items():
            if own == layer:
                out[:, members] = acts[:, pos, [nodes[i].index for i in members]]
    return out
