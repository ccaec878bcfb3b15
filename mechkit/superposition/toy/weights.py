"""The parameters of a batch of toys, what they rebuild, and the exact gradient of the weighted squared error.

Rows of data lie along the last axis, `x[instance, feature, row]`, so that every product runs along it; data without
an instance axis are shared. The gradient is written out: one pass over the activations a step, no graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.superposition.toy.toys import Kind, Toys


@dataclass(frozen=True, eq=False)
class Weights:
    """Parameters, an instance each along the first axis."""

    W: Float[Tensor, "instance hidden feature"]
    """What the hidden dimensions read; columns are the features' directions."""
    b: Float[Tensor, "instance feature"]
    """What is added to each output."""
    W_out: Float[Tensor, "instance feature hidden"] | None = None
    """What the outputs read, where it is not W transposed."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.W, self.b] if self.W_out is None else [self.W, self.b, self.W_out])

    @property
    def output(self) -> Float[Tensor, "instance feature hidden"]:
        """What the outputs read."""
        return self.W.mT if self.W_out is None else self.W_out

    def __getitem__(self, which) -> "Weights":
        return Weights(*(tensor[which] for tensor in self))

    def clone(self) -> "Weights":
        """A copy."""
        return Weights(*(tensor.clone() for tensor in self))

    def to(self, device) -> "Weights":
        """The same on another device."""
        return Weights(*(tensor.to(device) for tensor in self))

    @classmethod
    def empty(cls, toys: Toys, device) -> "Weights":
        """Room for the parameters of every instance."""
        shapes = [(toys.d_hidden, toys.n_features), (toys.n_features,), (toys.n_features, toys.d_hidden)]
        return cls(*(torch.empty(len(toys), *shape, device=device) for shape in shapes[: 2 if toys.kind.tied else 3]))

    @classmethod
    def initial(cls, toys: Toys) -> "Weights":
        """Xavier normal matrices and zero biases, drawn from each instance's own seed, the same on every device.

        Source: Glorot and Bengio 2010, as the papers' code has it.
        """
        made = cls.empty(toys, "cpu")
        made.b.zero_()
        scale = (2 / (toys.n_features + toys.d_hidden)) ** 0.5
        for seed in toys.seed.unique().tolist():
            generator = torch.Generator().manual_seed(2 * seed)
            same = (toys.seed == seed).cpu()
            for matrix in (made.W, *([] if made.W_out is None else [made.W_out])):
                matrix[same] = scale * torch.randn(matrix.shape[1:], generator=generator)
        return made.to(toys.seed.device)


@dataclass(frozen=True, eq=False)
class Rows:
    """Data with their weights; a row's share of the loss is its weight."""

    x: Float[Tensor, "instance feature row"] | Float[Tensor, "feature row"]
    """Inputs; without an instance axis all instances share them."""
    weight: Float[Tensor, "instance row"] | None
    """Weights that sum to 1 for each instance; None for equal ones."""

    def target(self, kind: Kind) -> Tensor:
        """What the outputs should be."""
        return self.x.abs() if kind.signed else self.x


def hidden(kind: Kind, weights: Weights, x: Tensor) -> Float[Tensor, "instance hidden row"]:
    """The hidden layer on inputs."""
    h = weights.W @ x
    return h.relu_() if kind.hidden_relu else h


def rebuilt(kind: Kind, weights: Weights, h: Tensor) -> Float[Tensor, "instance feature row"]:
    """The outputs, from the hidden layer."""
    out = torch.baddbmm(weights.b[..., None], weights.output, h)
    return out.relu_() if kind.output_relu else out


def losses(
    kind: Kind, weights: Weights, rows: Rows, importance: Float[Tensor, "instance feature"]
) -> Float[Tensor, "instance"]:
    """Mean over rows of sum_i I_i (x_i - x'_i)^2."""
    error = rebuilt(kind, weights, hidden(kind, weights, rows.x)).sub_(rows.target(kind)).square_()
    by_row = (importance[:, None] @ error).squeeze(1)
    return by_row.mean(1) if rows.weight is None else (by_row * rows.weight).sum(1)


def losses_and_gradients(
    kind: Kind, weights: Weights, rows: Rows, importance: Float[Tensor, "instance feature"]
) -> tuple[Float[Tensor, "instance"], Weights]:
    """`losses` and what each instance's weights change them by."""
    h = hidden(kind, weights, rows.x)
    out = rebuilt(kind, weights, h)
    error = out - rows.target(kind)
    if rows.weight is None:  # equal weights are left for the end, where there is less to multiply
        g, scale = error, importance / error.shape[2]
        square = torch.linalg.vector_norm(error, dim=2).square()
    else:
        g, scale = error * rows.weight[:, None], importance
        square = torch.linalg.vecdot(g, error)
    loss = (square * scale).sum(1)
    if kind.output_relu:
        g = torch.ops.aten.threshold_backward(g, out, 0)
    twice = 2 * scale
    d_out = (g @ h.mT).mul_(twice[..., None])
    d_h = (weights.output * twice[..., None]).mT @ g
    if kind.hidden_relu:
        d_h = torch.ops.aten.threshold_backward(d_h, h, 0)
    d_W = d_h @ rows.x.mT
    d_b = g.sum(2).mul_(twice)
    return loss, Weights(d_W + d_out.mT, d_b) if kind.tied else Weights(d_W, d_b, d_out)
