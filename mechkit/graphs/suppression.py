"""Whole classes of features suppressed on many sums: which digits does the answer lose?

For every sum, the features of the chosen classes at the last position are taken out of every MLP's output, and the
model answers again. Beside each class stands a control: as many other active features, chosen at random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.interventions import Add
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import activations, sweep
from mechkit.graphs.attribution import mlp_input
from mechkit.graphs.classes import classify
from mechkit.graphs.graph import Meaning
from mechkit.graphs.nodes import Node
from mechkit.graphs.operands import Inputs, operand_plots
from mechkit.graphs.supernodes import likeliest_token

NEAR = 5
"""An answer off by more has lost its size."""


CONTROL = "as many others (control)"
"""Title of the control that follows each set of features."""


@dataclass(frozen=True)
class Finding:
    """How a model answers sums with some of its features suppressed."""

    title: str
    """What was suppressed."""
    n_sums: int
    """Sums asked."""
    n_features: float
    """Features suppressed per sum, on average."""
    right: int
    """Answers that are still right."""
    ones_changed: int
    """Answers whose last digit is wrong (or that are no number)."""
    size_changed: int
    """Answers off by more than `NEAR` (or that are no number)."""

    def row(self) -> list[str]:
        """What happened, as text: title, features per sum, right, last digit changed, size changed."""
        counts = map(str, (self.right, self.ones_changed, self.size_changed))
        return [self.title, f"{self.n_features:.1f}", *counts]


def feature_meanings(bases: Sequence, inputs: Inputs) -> list[list[Meaning]]:
    """The class of every feature of every layer at the last position, `[layer][feature]`.

    A feature that is never active there is `other`.
    """
    pos = next(iter(inputs.values())).shape[1] - 1
    found = []
    for layer, basis in enumerate(bases):
        nodes = [Node("feature", layer, pos, i, basis.name) for i in range(basis.d_features)]
        found.append(classify(operand_plots(inputs, bases, nodes)))
    return found


@torch.no_grad()
def suppress_classes(
    model,
    bases: Sequence,
    meanings: Sequence[Sequence[Meaning]],
    sums: Sequence[tuple[int, int]],
    classes: Mapping[str, Sequence[str]],
    *,
    template: str = "{a}+{b}=",
    seed: int = 0,
) -> list[Finding]:
    """How the model answers `sums` as it is, with each set of feature classes suppressed, and with its control.

    `classes` names sets of features by what they are a function of (`{"magnitude": ["tens of both"]}`).
    Cost: two batched forward passes, and two more per set.
    """
    prompts = Prompts.from_text(model, [template.format(a=a, b=b) for a, b in sums])
    inputs = activations(model, prompts, [f"{mlp_input(basis)}@-1" for basis in bases])
    acts = [basis.activations(inputs[f"{mlp_input(basis)}@-1"]) for basis in bases]
    generator = torch.Generator().manual_seed(seed)
    chosen: list[tuple[str, list[Tensor]]] = [("nothing", [torch.zeros_like(a, dtype=torch.bool) for a in acts])]
    for title, groups in classes.items():
        masks = [_of_classes(a, of_layer, groups) for a, of_layer in zip(acts, meanings, strict=True)]
        others = [_random_others(a, mask, generator) for a, mask in zip(acts, masks, strict=True)]
        chosen += [(title, masks), (CONTROL, others)]
    runs = [_edits(bases, acts, masks) for _, masks in chosen]
    tokens = sweep(model, prompts, runs, likeliest_token).scores
    truth = torch.tensor([a + b for a, b in sums])
    return [
        _finding(title, masks, _as_numbers(model, answers), truth)
        for (title, masks), answers in zip(chosen, tokens, strict=True)
    ]


def _of_classes(acts: Float[Tensor, "sum feature"], meanings: Sequence[Meaning], groups: Sequence[str]):
    """The active features that are a function of one of `groups`."""
    wanted = torch.tensor([meaning.of in groups for meaning in meanings], device=acts.device)
    return (acts != 0) & wanted


def _random_others(
    acts: Float[Tensor, "sum feature"], mask: Bool[Tensor, "sum feature"], generator: torch.Generator
) -> Bool[Tensor, "sum feature"]:
    """As many other active features of each sum as `mask` has, at random (all of them where there are fewer)."""
    order = torch.rand(acts.shape, generator=generator).to(acts.device)
    order = order.masked_fill((acts == 0) | mask, 2.0)
    rank = order.argsort(1).argsort(1)
    return (rank < mask.sum(1, keepdim=True)) & (order < 2)


def _edits(bases: Sequence, acts: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Add]:
    """Take what the masked features write out of each MLP's output at the last position."""
    return [
        Add(f"L{basis.layer}.mlp_out@-1", -(a * mask) @ basis.W_dec)
        for basis, a, mask in zip(bases, acts, masks, strict=True)
        if bool(mask.any())
    ]


def _as_numbers(model, tokens: Float[Tensor, "sum"]) -> Int[Tensor, "sum"]:
    """Answers as numbers, -1 for a token that is none."""
    words = [model.tokenizer.decode([int(token)]).strip() for token in tokens.tolist()]
    return torch.tensor([int(word) if word.isdigit() else -1 for word in words])


def _finding(title: str, masks: Sequence[Tensor], answers: Int[Tensor, "sum"], truth: Int[Tensor, "sum"]) -> Finding:
    no_number = answers < 0
    return Finding(
        title=title,
        n_sums=len(truth),
        n_features=float(sum(mask.sum() for mask in masks)) / len(truth),
        right=int((answers == truth).sum()),
        ones_changed=int((no_number | (answers % 10 != truth % 10)).sum()),
        size_changed=int((no_number | ((answers - truth).abs() > NEAR)).sum()),
    )
