"""Losses that can be written down: what a model could do with a feature, linear models, one feature at a time.

>>> round(left_out(0.5), 3), round(2 * antipodal(0.5), 3)        # two features had better share than one be left out
(0.104, 0.083)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.superposition.toy.toys import Toys
from mechkit.superposition.toy.weights import Weights

OUTCOMES = ("not learned", "superposition", "dedicated")
"""What can become of a feature."""


def left_out(p):
    """Expected squared error of a feature that is not learned, p / 3 - p^2 / 4: its variance, as the bias is its mean.

    `p` is how often it is on; a number or a tensor. Source: Elhage et al. 2022, section 3 (their theory of the phase
    diagram compares losses of fixed weights), with the best bias.
    """
    return p / 3 - p * p / 4


def antipodal(p):
    """Expected squared error of each of two features on one dimension with opposite signs, p^2 / 6.

    They err only when both are on, each by the smaller of the two: E[min(x, y)^2] = 1 / 6. `p` is how often each is
    on; a number or a tensor. Source: as `left_out`.
    """
    return p * p / 6


def phase_losses(
    probability: Float[Tensor, "*b"], importance: Float[Tensor, "*b"], n_features: int
) -> Float[Tensor, "*b outcome"]:
    """Least loss of n features in n - 1 dimensions by what becomes of the last one, in the order of `OUTCOMES`.

    The others have importance 1, the last one `importance`; all are on as often. It is left out; or shares a
    dimension with one of the others; or has one of its own, while another is left out or two others share.
    Raises ValueError for fewer than two features. Source: as `left_out`.
    """
    if n_features < 2:
        raise ValueError(f"{n_features} feature has a dimension of its own in any case; there must be at least 2")
    p = probability
    others = left_out(p) if n_features == 2 else torch.minimum(left_out(p), 2 * antipodal(p))
    return torch.stack([importance * left_out(p), (1 + importance) * antipodal(p), others.expand_as(importance)], -1)


def linear_loss(toys: Toys, weights: Weights) -> Float[Tensor, "instance"]:
    """Expected loss of a linear model, from the mean p / 2 and the variance p / 3 - p^2 / 4 of each feature.

    Exact for any number of independent features. Raises ValueError for other kinds and for groups.
    Source: Elhage et al. 2022, section 2 (feature benefit and interference, for features of any mean).
    """
    _require_independent(toys, "linear_loss")
    if toys.kind.output_relu or toys.kind.hidden_relu:
        raise ValueError(f"linear_loss is for linear models; these are: {toys.kind.words}")
    mean, spread = toys.probability / 2, left_out(toys.probability)
    through = weights.output @ weights.W
    missed = torch.eye(toys.n_features, device=mean.device) - through
    bias = (missed @ mean[..., None]).squeeze(-1) - weights.b
    return (toys.importance * ((missed.square() @ spread[..., None]).squeeze(-1) + bias.square())).sum(1)


def linear_optimum(toys: Toys) -> Float[Tensor, "instance"]:
    """Least expected loss of a linear model: the d_hidden features of most importance times variance are kept.

    Raises ValueError for groups. Source: Elhage et al. 2022, section 2 ("linear models: ... the most important").
    """
    _require_independent(toys, "linear_optimum")
    worth = toys.importance * left_out(toys.probability)
    return worth.sort(1).values[:, : max(0, toys.n_features - toys.d_hidden)].sum(1)


def one_active_loss(toys: Toys, weights: Weights) -> Float[Tensor, "instance"]:
    """Sum over features of the expected loss when this one alone is on: what is left of the loss as 1 - S goes to 0.

    L_1 of the expansion in sparsity, which outweighs the rest by a factor of 1 / (1 - S). Exact, in closed form.
    Raises ValueError unless the model is linear, or a ReLU of a linear one, on [0, 1].
    Source: Elhage et al. 2022, section 3 (L = (1 - S)^n L_n + ... + (1 - S) S^(n-1) L_1 + S^n L_0).
    """
    if toys.kind.hidden_relu or toys.kind.signed:
        raise ValueError(f"one_active_loss needs a linear hidden layer; these are: {toys.kind.words}")
    slope, at_0 = weights.output @ weights.W, weights.b[..., None]
    at_1 = slope + at_0
    if toys.kind.output_relu:
        square, moment = _square_relu(at_0, at_1), _moment_relu(at_0, at_1)
    else:
        square, moment = (at_0 * at_0 + at_0 * at_1 + at_1 * at_1) / 3, at_0 / 6 + at_1 / 3
    own = 1 / 3 - 2 * moment.diagonal(dim1=1, dim2=2)
    return (toys.importance * (square.sum(2) + own)).sum(1)


def _square_relu(a: Tensor, b: Tensor) -> Tensor:
    """Integral of ReLU(z)^2 over [0, 1] for z from a to b in a straight line."""
    up, down = torch.maximum(a, b), torch.minimum(a, b)
    crossing = up.clamp(min=0) ** 3 / (up - down).clamp(min=1e-30) / 3
    return torch.where(down >= 0, (a * a + a * b + b * b) / 3, crossing)


def _moment_relu(a: Tensor, b: Tensor) -> Tensor:
    """Integral of x ReLU(z) over [0, 1] for z from a to b in a straight line."""
    a, b = torch.broadcast_tensors(a, b)
    share = torch.maximum(a, b).clamp(min=0) / (a - b).abs().clamp(min=1e-30)  # the stretch where z is positive
    rising, falling = b * share / 2 - b * share**2 / 6, a * share**2 / 6
    return torch.where(torch.minimum(a, b) >= 0, a / 6 + b / 3, torch.where(b > a, rising, falling))


def _require_independent(toys: Toys, name: str) -> None:
    if toys.correlated or toys.anticorrelated or toys.kind.signed:
        raise ValueError(f"{name} is for independent features on [0, 1]; these toys have groups or signed features")
