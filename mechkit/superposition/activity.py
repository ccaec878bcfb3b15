"""What features do together on samples: what weights alone cannot show.

Overlap in the weights costs nothing while the features that overlap are never active together. `measure_activity` takes
`activations[sample, feature]` (0 is off) with the directions `W[feature, hidden]` that they are written in, and says
how sparse they are, how much of the overlap is felt, and how loud it is beside the signal.

>>> first = transcoders[0]
>>> seen = measure_activity(first.W_dec, first.activations(x))
>>> seen.n_samples, seen.n_active > 128 > seen.l0         # more features than dimensions, few at a time
(200, True)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.superposition.measures import as_features, unit_rows

_SAMPLES = 4096
"""Samples whose readouts are held at a time."""


@dataclass(frozen=True, eq=False)
class Activity:
    """Features of known directions on samples."""

    n_samples: int
    """How many samples there were."""
    density: Float[Tensor, "feature"]
    """Share of samples on which each feature is active."""
    mean_square: Float[Tensor, "feature"]
    """Mean square of each feature's activation over all samples."""
    noise_to_signal: Float[Tensor, "feature"]
    """What the others add along a feature's direction, squared, over its own signal squared, each a mean over the
    samples where it is active; NaN where it never is. 1 is as loud as the signal."""
    coactive_square: float
    """Mean cos^2 over pairs of features active on one sample, each as often as it is; NaN where there is no pair."""
    independent_square: float
    """The same if features kept their densities and were active independently."""
    coactive_error: float
    """Standard error of `coactive_square`, were the samples drawn anew."""
    realised: float
    """The sum of cos^2 over pairs active on a sample, a mean over samples, over the sum over all pairs: 0 to 1."""

    @property
    def l0(self) -> float:
        """Mean number of features active on a sample."""
        return float(self.density.sum())

    @property
    def n_active(self) -> int:
        """Features active on some sample."""
        return int((self.density > 0).sum())

    @property
    def lift(self) -> float:
        """`coactive_square` over `independent_square`: below 1 where features that overlap avoid each other."""
        return self.coactive_square / self.independent_square if self.independent_square else float("nan")

    @property
    def lift_error(self) -> float:
        """Standard error of `lift`."""
        return self.coactive_error / self.independent_square if self.independent_square else float("nan")


def measure_activity(W, activations) -> Activity:
    """How the features of W[feature, hidden] are used on `activations[sample, feature]`.

    Cost: samples x n x m multiplications, and a product of the active rows of W for each sample: cheap where few are.
    Raises as `as_features` for either, and ValueError where the two are not of the same features.
    """
    wide = as_features(W)
    values = as_features(activations, "activations").to(wide.device)
    if wide.ndim != 2 or values.ndim != 2 or values.shape[1] != wide.shape[0]:
        raise ValueError(
            f"W has shape {list(wide.shape)} and activations {list(values.shape)}; "
            "give W[feature, hidden] and activations[sample, feature] of the same features"
        )
    units, active = unit_rows(wide), values != 0
    density = active.double().mean(0)
    felt, pairs = _coactive(units, active)
    square = float(felt.sum() / pairs.sum())
    together, apart = _independent(units, density)
    everywhere, _ = _independent(units, torch.ones_like(density))
    return Activity(
        n_samples=len(values),
        density=density.cpu(),
        mean_square=values.square().mean(0).cpu(),
        noise_to_signal=_noise_to_signal(wide, units, values).cpu(),
        coactive_square=square,
        coactive_error=float((felt - square * pairs).norm() / pairs.sum()),
        independent_square=together / apart if apart > 0 else float("nan"),
        realised=float(felt.mean()) / everywhere if everywhere > 0 else float("nan"),
    )


def _coactive(units: Tensor, active: Tensor) -> tuple[Float[Tensor, "sample"], Float[Tensor, "sample"]]:
    """The sum of cos^2 over ordered pairs active together, and how many such pairs there are, on each sample."""
    directed = active & (units != 0).any(1)
    felt = [_overlap(units[row]) for row in progress(directed, "pairs active together", len(directed))]
    counts = directed.sum(1).double()
    return torch.stack(felt), counts * (counts - 1)


def _overlap(rows: Float[Tensor, "feature hidden"]) -> Float[Tensor, ""]:
    """Sum of cos^2 over ordered pairs of unit rows."""
    small = rows if rows.shape[0] < rows.shape[1] else rows.mT
    return ((small @ small.mT).square().sum() - len(rows)).clamp(min=0)


def _independent(units: Tensor, density: Tensor) -> tuple[float, float]:
    """The same for independent features: sums over ordered pairs of p_i p_j cos^2, and of p_i p_j."""
    p = torch.where((units != 0).any(1), density, torch.zeros_like(density))
    weighted = units * p[:, None].sqrt()
    moment = weighted.mT @ weighted
    own = p.square().sum()
    return max(float(moment.square().sum() - own), 0.0), max(float(p.sum().square() - own), 0.0)


def _noise_to_signal(wide: Tensor, units: Tensor, values: Tensor) -> Float[Tensor, "feature"]:
    lengths = torch.linalg.vector_norm(wide, dim=1)
    noise, signal = torch.zeros_like(lengths), torch.zeros_like(lengths)
    for part in values.split(_SAMPLES):
        own = part * lengths
        others = (part @ wide) @ units.mT - own
        noise += torch.where(part != 0, others.square(), 0.0).sum(0)
        signal += own.square().sum(0)
    return noise / signal
