"""How far small changes of the input throw a toy off: superposition and adversarial examples.

>>> from mechkit.superposition.toy import Exact, instances, train
>>> found = train(instances(6, 2, probability=torch.tensor([[1.0], [0.1]])), Exact(2), n_steps=50)
>>> attacks(found.toys, found.weights, n_samples=64, seed=0).gain.shape
torch.Size([2, 6])
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.superposition.toy.data import Samples
from mechkit.superposition.toy.toys import Toys
from mechkit.superposition.toy.training import instance_bytes
from mechkit.superposition.toy.weights import Rows, Weights, hidden, losses


@dataclass(frozen=True, eq=False)
class Attacks:
    """What an attack on each feature does to the loss."""

    loss: Float[Tensor, "instance"]
    """Mean loss without an attack."""
    gain: Float[Tensor, "instance feature"]
    """By how much the mean loss rises when all inputs are moved along one feature's row of W^T W."""
    length: Float[Tensor, "instance"]
    """Euclidean length of the attack: a share of the mean length of an input."""

    @property
    def vulnerability(self) -> Float[Tensor, "instance"]:
        """The worst rise over that of a model with a dimension for each feature it learns, on the same data.

        Such a model passes an attack of length l on a feature of importance 1 straight on, at a cost of l^2. So 1 is
        no superposition, and a feature that shares its dimension with another of opposite sign comes to 2.
        """
        return self.gain.amax(1) / self.length.square()


@torch.no_grad()
def attacks(toys: Toys, weights: Weights, *, n_samples: int = 512, size: float = 0.1, seed: int = 0) -> Attacks:
    """Rise of each instance's loss when its inputs are moved, by `size` of their mean length, along each feature.

    The attack on feature i goes along row i of W^T W: the input change that moves its output most. It is the same
    for all inputs, targets stay as they were, and the same uniform draws make the samples of all instances.
    Unit: that of the loss. Cost: n + 1 passes over the samples. Raises ValueError for a size of 0 or below.
    Source: Elhage et al. 2022, section 8 (superposition and adversarial vulnerability).
    """
    if size <= 0:
        raise ValueError(f"size is {size}; it is the attack's length over the mean length of inputs, above 0")
    loss, gain, length = (torch.empty(len(toys), device=toys.seed.device) for _ in range(3))
    gain = gain[:, None].repeat(1, toys.n_features)
    step = max(1, (32 << 20) // instance_bytes(toys, n_samples))
    for at in progress([slice(at, at + step) for at in range(0, len(toys), step)], "attacking toys"):
        part = toys[at]
        same = Toys(**{**vars(part), "seed": torch.full_like(part.seed, seed)})
        rows = Samples(n_samples).stream(same, torch.arange(len(part))).rows()
        length[at] = size * torch.linalg.vector_norm(rows.x, dim=1).mean(1)
        loss[at], gain[at] = _attacked(part, weights[at], rows, length[at])
    return Attacks(loss, gain, length)


def _attacked(toys: Toys, weights: Weights, rows: Rows, length: Tensor) -> tuple[Tensor, Tensor]:
    before = losses(toys.kind, weights, rows, toys.importance)
    through = weights.output @ weights.W
    units = through / torch.linalg.vector_norm(through, dim=2, keepdim=True).clamp(min=1e-30)
    moved = units * length[:, None, None]
    gains = []
    for change in moved.unbind(1):
        h = hidden(toys.kind, weights, rows.x + change[..., None])
        out = torch.baddbmm(weights.b[..., None], weights.output, h)
        out = out.relu_() if toys.kind.output_relu else out
        error = out.sub_(rows.target(toys.kind)).square_().mean(2)
        gains.append((error * toys.importance).sum(1) - before)
    return before, torch.stack(gains, 1)
