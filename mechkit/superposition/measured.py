"""What was measured of one set of features, with words for it.

>>> report = measure_superposition(model.W_E, draws=19)
>>> report.dimensionality.shape, report.interference.shape
(torch.Size([209]), torch.Size([209, 209]))
>>> table = report.tests["same covariance"].frame()      # observed, what chance gives, p, by statistic
>>> near = report.nearest(12, k=5)                       # the features that overlap most with feature 12
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechkit.superposition import measures
from mechkit.superposition.activity import Activity
from mechkit.superposition.conclusions import conclusions
from mechkit.superposition.nulls import NullTest
from mechkit.superposition.overlaps import nearest

INTERFERENCE_BYTES = 2**30
"""Largest interference matrix that `Superposition.interference` makes."""


@dataclass(frozen=True, eq=False, repr=False)
class Superposition:
    """Features `W[feature, hidden]` and how they share the hidden dimensions. Tensors are float64, on W's device."""

    W: Float[Tensor, "feature hidden"]
    """The directions that were measured."""
    norms: Float[Tensor, "feature"]
    """Length of each feature, in the unit of W."""
    dimensionality: Float[Tensor, "feature"]
    """D_i, the share of a dimension that each feature has: 0 to 1, 0 for a zero row."""
    feature_interference: Float[Tensor, "feature"]
    """sum over j != i of (u_i . W_j)^2, in the unit of W squared."""
    largest_cosines: Float[Tensor, "feature"]
    """Largest |cos| of each feature with any other; NaN where it has no direction or there is no other."""
    features_per_neuron: Float[Tensor, "hidden"]
    """How many features each hidden dimension carries (participation ratio), weighted by activations where given;
    of meaning only where hidden dimensions are neurons."""
    dimensions_per_feature: float
    """D* = m / |W|^2 (Frobenius); depends on the scale of W."""
    mean_cosine: float
    """Mean |cos| over pairs of features with a direction; NaN without a pair."""
    max_cosine: float
    """Largest |cos| of any pair."""
    mean_square_cosine: float
    """Mean cos^2 over pairs."""
    kurtosis: float
    """Excess kurtosis of cos over pairs."""
    frame_potential: float
    """sum over all i, j of cos^2, i = j included."""
    least_frame_potential: float
    """What a tight frame of as many features would have."""
    welch_bound: float
    """Least largest |cos| that as many features in m dimensions can have."""
    random_cosine: float
    """Mean |cos| of random directions in m dimensions."""
    johnson_lindenstrauss: float
    """|cos| within which as many random directions can all stay."""
    rank: int
    """Rank of W."""
    effective_rank: float
    """exp of the entropy of the singular values."""
    participation_ratio: float
    """(sum of squared singular values)^2 over the sum of their squares: dimensions that the features fill."""
    stable_rank: float
    """Squared Frobenius norm over the largest squared singular value."""
    tests: Mapping[str, NullTest]
    """The overlaps beside each null, by its name; empty where there is no pair or none was asked for."""
    activity: Activity | None
    """What activations show; None where none were given."""

    @property
    def n_features(self) -> int:
        """Rows of W."""
        return self.W.shape[0]

    @property
    def n_dimensions(self) -> int:
        """Columns of W, m."""
        return self.W.shape[1]

    @property
    def n_directed(self) -> int:
        """Features with a direction: rows that are not zero."""
        return int((self.W != 0).any(1).sum())

    @property
    def frame_ratio(self) -> float:
        """The least frame potential over the actual one: 1 for a tight frame, towards 0 as features crowd together."""
        return self.least_frame_potential / self.frame_potential if self.frame_potential else float("nan")

    @property
    def features_per_dimension(self) -> float:
        """Features with a direction over the dimensions that they fill (the participation ratio)."""
        return self.n_directed / self.participation_ratio if self.participation_ratio else float("nan")

    @property
    def interference(self) -> Float[Tensor, "feature feature"]:
        """W_i . W_j for all pairs, squared lengths on the diagonal; in the unit of W squared.

        Made anew at each call. Raises ValueError where it would take more than `INTERFERENCE_BYTES`: take some rows.
        """
        needed = 8 * self.n_features**2
        if needed > INTERFERENCE_BYTES:
            raise ValueError(
                f"the interference of {self.n_features} features takes {needed / 2**30:.1f} GiB, more than "
                f"{INTERFERENCE_BYTES / 2**30:.0f}; take rows of it with interference_of(features), or the features "
                "nearest to one with nearest(feature)"
            )
        return measures.interference(self.W)

    def interference_of(self, features: Sequence[int]) -> Float[Tensor, "row feature"]:
        """The rows of the interference matrix of some features."""
        return self.W[list(features)] @ self.W.mT

    def nearest(self, feature: int, k: int = 10) -> list[tuple[int, float]]:
        """The `k` features of largest |cos| with `feature`, with their cosines. ValueError where it is not there."""
        return nearest(self.W, feature, k)

    def frame(self) -> pd.DataFrame:
        """A row per feature: norm, dimensionality, interference, largest |cos|, and what its activations show."""
        columns = {
            "norm": self.norms,
            "dimensionality": self.dimensionality,
            "interference": self.feature_interference,
            "largest_cosine": self.largest_cosines,
        }
        if self.activity is not None:
            columns |= {"density": self.activity.density, "noise_to_signal": self.activity.noise_to_signal}
        table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        return table.rename_axis("feature")

    def numbers(self) -> dict[str, int | float]:
        """Every measure that is one number, by name. JSON-able but for NaN."""
        fields = (
            "n_features", "n_directed", "n_dimensions", "rank", "effective_rank", "participation_ratio", "stable_rank",
            "features_per_dimension", "dimensions_per_feature", "mean_cosine", "max_cosine", "mean_square_cosine",
            "kurtosis", "welch_bound", "random_cosine", "johnson_lindenstrauss", "frame_potential", "frame_ratio",
        )  # fmt: skip
        return {name: getattr(self, name) for name in fields} | {
            "mean_dimensionality": float(self.dimensionality.mean())
        }

    def conclusions(self) -> list[str]:
        """What may be concluded, and what may not, a sentence each."""
        return conclusions(self)

    def plot(self, title: str = "Feature dimensionality"):
        """A plotly histogram of the dimensionality, with the fractions of regular shapes marked."""
        from mechkit.viz.dimensionality_figure import dimensionality_figure

        return dimensionality_figure(self.dimensionality.cpu().numpy(), title)

    def __str__(self) -> str:
        width = max(map(len, self.numbers()))
        lines = [f"{name:<{width}}  {value:.4g}" for name, value in self.numbers().items()]
        for test in self.tests.values():
            lines += ["", f"against {test.null} ({test.n_features} features, {len(test.drawn)} draws)"]
            lines += _words(test.frame())
        return "\n".join([*lines, "", *self.conclusions()])

    __repr__ = __str__


def _words(table: pd.DataFrame) -> list[str]:
    lines = [f"{'':<18}  {'observed':>9}  {'by chance':>9}  {'p':>6}"]
    for name, row in table.iterrows():
        lines.append(f"{name:<18}  {row['observed']:>9.4g}  {row['null_median']:>9.4g}  {row['p']:>6.3g}")
    return lines
