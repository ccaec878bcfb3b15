"""Operand plots: a feature's activity over every pair of operands of an arithmetic prompt.

A prompt with two whole numbers, such as "35+59=", stands for a grid of prompts, one per (a, b). The activity of a
feature at its own position over that grid shows what it responds to: diagonals are functions of the sum, stripes
of one operand, lattices of both ones digits.

Source: Lindsey et al. 2025 (Biology), section "Addition"; Ameisen et al. 2025.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import activations
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.nodes import Node

_TWO_NUMBERS = re.compile(r"(\D*)(\d+)(\D+)(\d+)(\D*)")

_BATCH = 2500
"""Prompts run at once."""


@dataclass(frozen=True, eq=False)
class OperandGrid:
    """Every prompt that a two-operand prompt stands for, in row-major order of (a, b)."""

    prompts: Prompts
    """`size * size` prompts of one length."""
    size: int
    """Operands run from 0 to `size - 1`."""
    operands: tuple[int, int]
    """The operands of the prompt itself."""

    @classmethod
    def of(cls, model, text: str, size: int = 100) -> "OperandGrid | None":
        """The grid around `text`, or None where it has not two numbers or they are not always as many tokens."""
        match, operands = _TWO_NUMBERS.fullmatch(text), cls.operands_of(text)
        if match is None or operands is None or model.tokenizer is None:
            return None
        before, _, between, _, after = match.groups()
        texts = [f"{before}{i}{between}{j}{after}" for i in range(size) for j in range(size)]
        rows = model.tokenizer(texts, add_special_tokens=bool(model.cfg.default_prepend_bos))["input_ids"]
        same_length = len({len(row) for row in rows}) == 1 and len(rows[0]) == len(model.to_tokens(text)[0])
        if not same_length or max(operands) >= size:
            return None
        return cls(Prompts.from_tokens(rows).to(model.W_E.device), size, operands)

    @staticmethod
    def operands_of(text: str) -> tuple[int, int] | None:
        """The two numbers of a prompt, or None where there are not exactly two."""
        match = _TWO_NUMBERS.fullmatch(text)
        return None if match is None else (int(match[2]), int(match[4]))


Inputs = Mapping[int, Float[Tensor, "cell pos d_model"]]
"""What each layer's dictionary reads, on every prompt of a grid."""


@torch.no_grad()
def operand_inputs(model, bases: Sequence, grid: OperandGrid) -> Inputs:
    """What each layer's dictionary reads over the grid. Cost: `grid.size ** 2` prompts through the model."""
    sites = {basis.layer: mlp_input(basis) for basis in bases}
    parts: dict[int, list[Tensor]] = {layer: [] for layer in sites}
    for start in progress(range(0, len(grid.prompts), _BATCH), "operand plots"):
        values = activations(model, grid.prompts[slice(start, start + _BATCH)], sites.values())
        for layer, site in sites.items():
            parts[layer].append(values[site])
    return {layer: torch.cat(batches) for layer, batches in parts.items()}


@torch.no_grad()
def operand_plots(inputs: Inputs, bases: Sequence, nodes: Sequence[Node]) -> Float[Tensor, "feature a b"]:
    """Activity of each feature of `nodes`, at its own position, over the grid. Row a, column b."""
    cells = len(next(iter(inputs.values())))
    plots = torch.empty(len(nodes), cells)
    for layer, pos, members in _places(nodes):
        basis = _some(bases[layer], [nodes[i].index for i in members])
        plots[members] = basis.activations(inputs[layer][:, pos]).T.cpu().float()
    return plots.view(len(nodes), isqrt(cells), isqrt(cells))


def _places(nodes: Sequence[Node]) -> list[tuple[int, int, list[int]]]:
    """Layer, position and the numbers of the nodes there."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(nodes):
        found.setdefault((node.layer, node.pos or 0), []).append(i)
    return [(layer, pos, members) for (layer, pos), members in found.items()]


def _some(basis, features: Sequence[int | None]):
    """The basis with only these features."""
    chosen = list(features)
    threshold = None if basis.threshold is None else basis.threshold[chosen]
    return replace(
        basis,
        W_enc=basis.W_enc[:, chosen],
        b_enc=basis.b_enc[chosen],
        W_dec=basis.W_dec[chosen],
        threshold=threshold,
    )
