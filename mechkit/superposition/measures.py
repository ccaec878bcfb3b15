"""What the weights of n features in m dimensions are: lengths, overlaps, dimensions, spectrum.

`W[feature, hidden]` has a row per feature: the direction it is written in (or read along), in m hidden dimensions.
Axes before these two are independent instances, each measured alone. Numbers are computed in float64 on W's device
(on the CPU for devices that have none, such as MPS). Nothing of size n x n is made unless `interference` asks for it.

>>> turn = 2 * torch.pi * torch.arange(5) / 5
>>> dimensionality(torch.stack([turn.cos(), turn.sin()], dim=1))          # a pentagon: 5 features in 2 dimensions
tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000], dtype=torch.float64)
"""

import torch
from jaxtyping import Float
from torch import Tensor

_NAMED = 5
"""Rows an error names."""


def as_features(W, what: str = "W") -> Float[Tensor, "*b feature hidden"]:
    """`W` in float64 without gradient, on its device where that has float64, else on the CPU.

    Raises TypeError for what is no floating-point tensor or array, ValueError for fewer than two axes, an empty one,
    or NaN or infinite values, naming the rows.
    """
    tensor = torch.as_tensor(W).detach()
    if not tensor.is_floating_point():
        raise TypeError(f"{what} is of {tensor.dtype}; features are floating-point rows, so convert it: {what}.float()")
    if tensor.ndim < 2 or not tensor.numel():
        raise ValueError(f"{what} has shape {list(tensor.shape)}; give [feature, hidden] with at least one of each")
    wide = (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
    bad = (~wide.isfinite().all(-1)).nonzero()
    if len(bad):
        rows = [at[0] if len(at) == 1 else tuple(at) for at in bad[:_NAMED].tolist()]
        more = ", ..." if len(bad) > _NAMED else ""
        raise ValueError(
            f"{what} has NaN or infinite values in {len(bad)} of {wide[..., 0].numel()} rows "
            f"({', '.join(map(str, rows))}{more}); leave these rows out or mend them first"
        )
    return wide


def feature_norms(W) -> Float[Tensor, "*b feature"]:
    """Length of each feature's direction, in the unit of W. Raises as `as_features`."""
    return _lengths(as_features(W))


def unit_rows(W) -> Float[Tensor, "*b feature hidden"]:
    """The direction of each feature, of length 1; a zero row stays zero. Raises as `as_features`."""
    return _directions(as_features(W))


def interference(W) -> Float[Tensor, "*b feature feature"]:
    """`W_i . W_j`: what one unit of feature j adds to the readout of feature i; squared lengths on the diagonal.

    Unit: that of W, squared. Memory: n x n numbers. Raises as `as_features`.
    Source: Elhage et al. 2022, Toy Models of Superposition (W^T W there, features in columns).
    """
    wide = as_features(W)
    return wide @ wide.mT


def dimensionality(W) -> Float[Tensor, "*b feature"]:
    """D_i = |W_i|^2 / sum_j (u_i . W_j)^2 with u_i = W_i / |W_i|: the share of a dimension that each feature has.

    1 is a dimension of its own, 1/2 an antipodal pair, 2/5 a pentagon, 3/4 a tetrahedron, 0 a zero row. At most 1,
    and at most rank W in sum. Cost: n m min(4 m, n) multiplications. Raises as `as_features`.
    Source: Elhage et al. 2022, section "The Geometry of Superposition".
    """
    wide = as_features(W)
    felt = _projections(wide)
    own = _lengths(_scaled(wide)).square()
    return torch.where(own > 0, own / felt, torch.zeros_like(own)).nan_to_num(nan=0.0).clamp(0, 1)


def feature_interference(W) -> Float[Tensor, "*b feature"]:
    """sum over j != i of (u_i . W_j)^2 with u_i = W_i / |W_i|: how much of the others lies along each feature.

    0 is a direction of its own, 1 or more is fully shared (for features of length about 1); 0 for a zero row. Unit:
    that of W, squared. Cost and errors as `dimensionality`. Source: Elhage et al. 2022 (the colour of the norm bars).
    """
    wide = as_features(W)
    scale = _peak(wide)
    return ((_projections(wide) - _lengths(_scaled(wide)).square()).clamp(min=0)) * scale.squeeze(-1).square()


def dimensions_per_feature(W) -> Float[Tensor, "*b"]:
    """D* = m / |W|^2, with |W|^2 the squared Frobenius norm, which counts the learned features of unit length.

    1 where each dimension holds one feature, 1/2 where it holds an antipodal pair; infinite where W is zero. Depends
    on the scale of W. Source: Elhage et al. 2022. Raises as `as_features`.
    """
    wide = as_features(W)
    return wide.shape[-1] / wide.square().sum((-2, -1))


def frame_potential(W) -> Float[Tensor, "*b"]:
    """sum over all i, j of (u_i . u_j)^2 of the features' unit directions, i = j included; zero rows are left out.

    At least n^2 / m (`bounds.least_frame_potential`), which a tight frame meets. Raises as `as_features`.
    Source: Benedetto and Fickus 2003, Finite normalized tight frames.
    """
    units = unit_rows(W)
    small = units if units.shape[-2] < units.shape[-1] else units.mT
    return (small @ small.mT).square().sum((-2, -1))


def singular_values(W) -> Float[Tensor, "*b value"]:
    """Singular values, largest first, in the unit of W. Raises as `as_features`."""
    wide = as_features(W)
    tall = wide if wide.shape[-2] >= wide.shape[-1] else wide.mT
    core = torch.linalg.qr(tall, mode="r").R if tall.shape[-2] > tall.shape[-1] else tall
    return torch.linalg.svdvals(core)


def effective_rank(values: Float[Tensor, "*b value"]) -> Float[Tensor, "*b"]:
    """exp of the entropy of the singular values as shares of their sum: 1 to rank W; 0 where all are zero.

    Source: Roy and Vetterli 2007, The effective rank.
    """
    shares = values / values.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return entropy.exp().nan_to_num(nan=0.0)


def participation_ratio(shares: Float[Tensor, "*b value"]) -> Float[Tensor, "*b"]:
    """(sum s)^2 / sum s^2: how many of the values of `shares` (at least 0) count; 0 where all are zero.

    Squared singular values give the number of dimensions that W's second moment fills.
    """
    scaled = shares / shares.amax(-1, keepdim=True)
    return (scaled.sum(-1).square() / scaled.square().sum(-1)).nan_to_num(nan=0.0)


def stable_rank(values: Float[Tensor, "*b value"]) -> Float[Tensor, "*b"]:
    """sum of squares of the singular values over the largest square: 1 to rank W; 0 where all are zero."""
    return (values / values.amax(-1, keepdim=True)).square().sum(-1).nan_to_num(nan=0.0)


def features_per_neuron(W, power: Float[Tensor, "feature"] | None = None) -> Float[Tensor, "*b hidden"]:
    """How many features each hidden dimension carries: the participation ratio of W_ik^2 over features i.

    1 is a neuron of one feature (monosemantic), 0 one of none. `power` (mean square of each feature's activation)
    weighs features by how strongly they drive; without it all are taken alike. Only where the hidden dimensions are
    a basis that means something, such as neurons: a rotation of W changes it. Raises as `as_features`.
    """
    driven = as_features(W).square()
    if power is not None:
        driven = driven * power.to(driven)[..., None]
    return participation_ratio(driven.mT)


def _projections(wide: Float[Tensor, "*b feature hidden"]) -> Float[Tensor, "*b feature"]:
    """sum_j (u_i . W_j)^2 of W in its own scale. The R of a QR stands for the rows of W where they are many."""
    scaled = _scaled(wide)
    n, m = wide.shape[-2:]
    rows = scaled if n <= 4 * m else torch.linalg.qr(scaled, mode="r").R
    return (_directions(wide) @ rows.mT).square().sum(-1)


def _peak(wide: Tensor) -> Float[Tensor, "*b 1 1"]:
    return wide.abs().amax((-2, -1), keepdim=True)


def _scaled(wide: Float[Tensor, "*b feature hidden"]) -> Float[Tensor, "*b feature hidden"]:
    """W over its largest entry, so that squares neither overflow nor vanish."""
    return (wide / _peak(wide)).nan_to_num(nan=0.0)


def _lengths(wide: Float[Tensor, "*b feature hidden"]) -> Float[Tensor, "*b feature"]:
    return torch.linalg.vector_norm(wide, dim=-1)


def _directions(wide: Float[Tensor, "*b feature hidden"]) -> Float[Tensor, "*b feature hidden"]:
    rows = (wide / wide.abs().amax(-1, keepdim=True)).nan_to_num(nan=0.0)
    return (rows / _lengths(rows)[..., None]).nan_to_num(nan=0.0)
