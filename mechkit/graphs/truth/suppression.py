"""Whole classes of features suppressed on many sums: which digits does the answer lose?

For every sum, the chosen features at the last position are taken out of every MLP's output, and the model answers
again. Beside each choice stands a control: as many of all active features, drawn at random, averaged over draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.interventions import Add
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import activations, sweep
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.graph import Meaning
from mechkit.graphs.meaning.classes import classify
from mechkit.graphs.meaning.operands import Inputs, operand_plots
from mechkit.graphs.meaning.supernodes import likeliest_token
from mechkit.graphs.nodes import Node

NEAR = 5
"""An answer off by more has lost its size."""


CONTROL = "as many at random (control)"
"""Title of the control that follows each set of features."""

N_DRAWS = 5
"""Random draws that a control averages over."""


@dataclass(frozen=True)
class Finding:
    """How a model answers sums with some of its features suppressed."""

    title: str
    """What was suppressed."""
    n_sums: int
    """Sums asked."""
    n_features: float
    """Features suppressed per sum, on average."""
    right: float
    """Answers that are still right, mean over draws."""
    ones_changed: float
    """Answers whose last digit is wrong (or that are no number)."""
    size_changed: float
    """Answers off by more than `NEAR` (or that are no number)."""

    def row(self) -> list[str]:
        """What happened, as text: title, features per sum, right, last digit changed, size changed."""
        counts = (f"{count:.0f}" for count in (self.right, self.ones_changed, self.size_changed))
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
    choices: Mapping[str, Callable[[Meaning], bool]],
    *,
    template: str = "{a}+{b}=",
    seed: int = 0,
) -> list[Finding]:
    """How the model answers `sums` as it is, with each choice of features suppressed, and with its control.

    `choices` says by title which features, by their `meanings`, are suppressed.
    Unit: sums. Cost: two batched forward passes, and `1 + N_DRAWS` more per choice.
    """
    prompts = Prompts.from_text(model, [template.format(a=a, b=b) for a, b in sums])
    inputs = activations(model, prompts, [f"{mlp_input(basis)}@-1" for basis in bases])
    acts = [basis.activations(inputs[f"{mlp_input(basis)}@-1"]) for basis in bases]
    generator, truth = torch.Generator().manual_seed(seed), torch.tensor([a + b for a, b in sums])

    def ask(title: str, draws: Sequence[Sequence[Tensor]]) -> Finding:
        tokens = sweep(model, prompts, [_edits(bases, acts, masks) for masks in draws], likeliest_token).scores
        answers = torch.stack([_as_numbers(model, one) for one in tokens])
        return _finding(title, draws, answers, truth)

    findings = [ask("nothing", [[torch.zeros_like(a, dtype=torch.bool) for a in acts]])]
    for title, choice in choices.items():
        masks = [_chosen(a, of_layer, choice) for a, of_layer in zip(acts, meanings, strict=True)]
        drawn = [[_at_random(a, mask, generator) for a, mask in zip(acts, masks, strict=True)] for _ in range(N_DRAWS)]
        findings += [ask(title, [masks]), ask(CONTROL, drawn)]
    return findings


def _chosen(
    acts: Float[Tensor, "sum feature"], meanings: Sequence[Meaning], choice: Callable[[Meaning], bool]
) -> Bool[Tensor, "sum feature"]:
    """The active features whose meaning is chosen."""
    return (acts != 0) & torch.tensor([choice(meaning) for meaning in meanings], device=acts.device)


def _at_random(
    acts: Float[Tensor, "sum feature"], mask: Bool[Tensor, "sum feature"], generator: torch.Generator
) -> Bool[Tensor, "sum feature"]:
    """As many of each sum's active features as `mask` has, drawn from all of them."""
    order = torch.rand(acts.shape, generator=generator).to(acts.device).masked_fill(acts == 0, 2.0)
    return order.argsort(1).argsort(1) < mask.sum(1, keepdim=True)


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


def _finding(title: str, draws: Sequence, answers: Int[Tensor, "draw sum"], truth: Int[Tensor, "sum"]) -> Finding:
    no_number = answers < 0
    per_draw = lambda counts: float(counts.sum(1).float().mean())  # noqa: E731
    return Finding(
        title=title,
        n_sums=len(truth),
        n_features=float(sum(mask.sum() for masks in draws for mask in masks)) / len(truth) / len(draws),
        right=per_draw(answers == truth),
        ones_changed=per_draw(no_number | (answers % 10 != truth % 10)),
        size_changed=per_draw(no_number | ((answers - truth).abs() > NEAR)),
    )
