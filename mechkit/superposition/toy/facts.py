"""Facts in an MLP: "Michael Jordan plays basketball" as an AND of two names, and how many fit into m neurons.

A fact has a first name, a last name and an attribute, each a direction. One neuron stores one fact exactly: it reads
both names, its bias keeps it silent unless both are there, and it writes the attribute. Training packs more facts
than neurons, in superposition.

>>> names = torch.eye(6)
>>> michael, mike, jordan, tyson, basketball, boxing = names
>>> mlp = hand_set(michael[None], jordan[None], basketball[None])
>>> [round(value, 2) for value in and_table(mlp, michael, jordan, basketball).values()]      # neither, one, other, both
[0.0, 0.0, 0.0, 1.0]
>>> excess(and_table(mlp, michael, jordan, basketball))
1.0
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, relu

ACTIVATIONS = {"relu": relu, "gelu": gelu}
"""What a neuron does with its pre-activation."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """An MLP that reads names and writes attributes."""

    W_in: Float[Tensor, "*b neuron d_model"]
    """What each neuron reads."""
    b_in: Float[Tensor, "*b neuron"]
    """What is added to its pre-activation."""
    W_out: Float[Tensor, "*b neuron d_model"]
    """What each neuron writes."""
    activation: str = "relu"
    """One of `ACTIVATIONS`."""

    def before(self, x: Float[Tensor, "*b row d_model"]) -> Float[Tensor, "*b row neuron"]:
        """Pre-activations."""
        return x @ self.W_in.mT + self.b_in[..., None, :]

    def __call__(self, x: Float[Tensor, "*b row d_model"]) -> Float[Tensor, "*b row d_model"]:
        """What the MLP adds to the residual stream."""
        return ACTIVATIONS[self.activation](self.before(x)) @ self.W_out


def hand_set(
    first: Float[Tensor, "fact d_model"],
    last: Float[Tensor, "fact d_model"],
    attribute: Float[Tensor, "fact d_model"],
    *,
    bias: float = -1.0,
    activation: str = "relu",
) -> Lookup:
    """An MLP of one neuron a fact: it reads first + last, subtracts 1, and writes the attribute.

    Exact for orthonormal names. With a `bias` of -0.5 one name alone is half the answer: a false positive.
    Raises ValueError for an unknown activation. Source: 3Blue1Brown 2024, How might LLMs store facts.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    return Lookup(first + last, torch.full_like(first[:, 0], bias), attribute.clone(), activation)


def and_table(
    mlp: Lookup,
    first: Float[Tensor, "d_model"],
    last: Float[Tensor, "d_model"],
    attribute: Float[Tensor, "d_model"],
) -> dict[str, float]:
    """What the MLP writes along `attribute` given neither name, the first alone, the last alone, and both."""
    rows = torch.stack([torch.zeros_like(first), first, last, first + last])
    return dict(zip(("neither", "first", "last", "both"), (mlp(rows) @ attribute).tolist(), strict=True))


def excess(table: Mapping[str, float] | Mapping[str, Tensor]):
    """Non-linear excess E(A and B) - E(A) - E(B) + E(neither) of an effect E: 1 for AND, -1 for OR, 0 if linear.

    Unit: that of the table. Source: Nanda, Rajamanoharan, Kramar and Shah 2023, Fact Finding, post 3.
    """
    return table["both"] - table["first"] - table["last"] + table["neither"]


def directions(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """n unit directions: orthonormal where they fit into `d_model` dimensions, else random and nearly orthogonal."""
    drawn = torch.randn(n, d_model, generator=generator)
    if n <= d_model:
        return torch.linalg.qr(drawn.T).Q.T.contiguous()
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class FalseReadings:
    """What a hand-set MLP says of each of its facts, in a space too small for its names to be orthogonal."""

    d_model: int
    """Dimensions of the space."""
    n_facts: int
    """Facts, a neuron each."""
    right: float
    """Mean of what it writes along the attribute of a fact that it has, 1 without noise."""
    noise: float
    """Root mean square of what it writes along attributes of other facts, 0 without noise."""
    accuracy: float
    """Share of facts whose own attribute is written most."""


@torch.no_grad()
def false_readings(n_facts: int, d_model: int, *, bias: float = -1.0, seed: int = 0) -> FalseReadings:
    """Noise of a hand-set MLP whose names and attributes are random directions; it falls with the dimension.

    Each fact has names and an attribute of its own, 3 n_facts directions in all. Raises ValueError for fewer than
    two facts, which cannot be confused.
    """
    if n_facts < 2 or d_model < 1:
        raise ValueError(f"{n_facts} facts in {d_model} dimensions; give at least 2 facts and 1 dimension")
    first, last, attribute = directions(3 * n_facts, d_model, torch.Generator().manual_seed(seed)).split(n_facts)
    written = hand_set(first, last, attribute, bias=bias)(first + last) @ attribute.T
    others = written[~torch.eye(n_facts, dtype=torch.bool)]
    right = written.argmax(1) == torch.arange(n_facts)
    return FalseReadings(
        d_model, n_facts, float(written.diagonal().mean()), float(others.square().mean().sqrt()),
        float(right.double().mean()),
    )  # fmt: skip
