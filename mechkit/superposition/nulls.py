"""What the overlaps of features would be by chance, two kinds of chance, and how far the features are from it.

*Random directions* (`random_directions`): every feature keeps its length and takes a direction uniform on the sphere,
independently. With `block` k, every k rows turn together, each block by a rotation of its own, so that what lies inside
a block (the dimensions of one head) stays as it is.

*Same covariance* (`same_covariance`): features are drawn independently from one Gaussian, of whatever mean and
covariance. Drawing from the Gaussian fitted to W would make a wrong test: the frame potential is all but a function of
the fitted covariance, whose noise would count twice. Instead the test is conditional. Under this null, given its mean
and covariance, `W = mean + Q R` with `Q` uniform among orthonormal frames orthogonal to the vector of ones. So draws
replace Q by such a frame at random: each has exactly the mean and covariance of W, and W is exchangeable with them.
Anisotropy alone is therefore never significant. Rows of one length are not Gaussian; `spread of lengths` shows that.

Both tests are exact: under its null, p is uniform (in steps of 2 / (draws + 1)) at any n, m, mean and covariance.

>>> test = compare(model.W_E, "random directions", draws=39, seed=0)
>>> float(test.frame().loc["mean cos^2", "p"])              # the lowest that 39 draws can show
0.05
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.superposition.measures import as_features
from mechkit.superposition.overlaps import overlaps

NULLS = ("random directions", "same covariance")
"""Names of the two nulls."""
STATISTICS = ("mean |cos|", "mean cos^2", "max |cos|", "mean largest |cos|", "excess kurtosis", "spread of lengths")
"""What is compared: four of |cos| over pairs, the kurtosis of cos, and the deviation of lengths over their mean."""

Sampler = Callable[[int, torch.Generator], Tensor]
"""`(draws, generator) -> W0[draw, feature, hidden]`."""

_PRECISE = 2**14
"""Entries of W up to which draws are in float64; larger ones in float32."""
_DRAWN_BYTES = 2**27
"""Bytes of draws and of their cosines held at a time."""
_WELL_CONDITIONED = 1.25
_FEW = 16
"""Gaussian noise of `_WELL_CONDITIONED` rows per column and a few more is far enough from singular to be squared."""
_TIE = 1e-6, 1e-7
"""Relative and absolute difference up to which a draw counts as equal to what was observed."""


@dataclass(frozen=True, eq=False)
class NullTest:
    """Features beside draws of a null, by statistic."""

    null: str
    """Which null, one of `NULLS`."""
    observed: Float[Tensor, "statistic"]
    """The statistics of the features, in the order of `STATISTICS`."""
    drawn: Float[Tensor, "draw statistic"]
    """The statistics of each draw."""
    n_features: int
    """Features compared: all with a direction, or as many as were sampled from them."""

    @property
    def p(self) -> Float[Tensor, "statistic"]:
        """Two-sided p of each statistic: twice the smaller share of draws beyond what was observed, it included.

        A draw that equals the observed statistic counts on both sides, so a statistic that the null fixes has p = 1.
        The statistics are tests of their own, not corrected for being several.
        Source: Phipson and Smyth 2010, Permutation P-values should never be zero.
        """
        tie = _TIE[0] * self.observed.abs() + _TIE[1]
        more = (self.drawn >= self.observed - tie).sum(0) + 1
        less = (self.drawn <= self.observed + tie).sum(0) + 1
        return (2 * torch.minimum(more, less).double() / (len(self.drawn) + 1)).clamp(max=1)

    @property
    def ratio(self) -> Float[Tensor, "statistic"]:
        """What was observed over the median of the draws: the size of the difference, which p does not tell."""
        return self.observed / self.drawn.median(0).values

    def of(self, statistic: str) -> tuple[float, float, float]:
        """Observed, median of the draws, and p of one of `STATISTICS`."""
        i = STATISTICS.index(statistic)
        return float(self.observed[i]), float(self.drawn[:, i].median()), float(self.p[i])

    def frame(self) -> pd.DataFrame:
        """A row per statistic: observed, the draws' median and middle 95 %, the ratio to the median, and p."""
        low, middle, high = self.drawn.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=torch.double), dim=0)
        columns = {
            "observed": self.observed, "null_median": middle, "null_low": low, "null_high": high,
            "ratio": self.ratio, "p": self.p,
        }  # fmt: skip
        return pd.DataFrame(
            {name: values.tolist() for name, values in columns.items()}, index=pd.Index(STATISTICS, name="statistic")
        )


def compare(
    W, null: str = NULLS[0], *, draws: int = 199, sample: int | None = 1024, seed: int = 0, block: int = 1
) -> NullTest:
    """The overlaps of W[feature, hidden] beside `draws` of a null, with an exact two-sided p for each statistic.

    Zero rows have no direction and are left out. More than `sample` features are represented by as many at random (a
    test of these alone, as exact); None takes all. `block` is for random directions only. Cost: draws x (n^2 m)
    multiplications, n at most `sample`; draws are made on the CPU from `seed`, so every device gets the same ones.
    Raises as `as_features`, ValueError for fewer than two features with a direction, an unknown null, no draws, or
    rows that are no whole number of blocks.
    """
    rows = _comparable(as_features(W), sample, seed, block)
    if null not in NULLS:
        raise ValueError(f"no null '{null}'; it is one of {', '.join(NULLS)}")
    if draws < 1:
        raise ValueError(f"a test needs draws of its null; draws is {draws}")
    if block > 1 and null != NULLS[0]:
        raise ValueError(f"rows in blocks of {block} can be compared with {NULLS[0]} only, not with '{null}'")
    rows = rows if rows.numel() <= _PRECISE else rows.float()
    sampler = random_directions(rows, block) if null == NULLS[0] else same_covariance(rows)
    generator = torch.Generator().manual_seed(seed)
    drawn = [_statistics(sampler(n, generator)) for n in progress(_portions(rows, draws), f"null: {null}")]
    return NullTest(null, _statistics(rows).cpu(), torch.cat(drawn).cpu(), len(rows))


def random_directions(W: Float[Tensor, "feature hidden"], block: int = 1) -> Sampler:
    """Draws in which every `block` rows of W are turned at random together, each block by a rotation of its own."""
    n, m = W.shape
    blocks = W.reshape(n // block, block, m)
    frame, coordinates = torch.linalg.qr(blocks.mT)  # W = coordinates^T frame^T in each block

    def draw(draws: int, generator: torch.Generator) -> Tensor:
        noise = _normal((draws, n // block, m, frame.shape[-1]), W, generator)
        return (haar_frames(noise) @ coordinates).mT.reshape(draws, n, m)

    return draw


def same_covariance(W: Float[Tensor, "feature hidden"]) -> Sampler:
    """Draws with exactly the mean and covariance of W's rows, else as random as independent Gaussian rows are."""
    n, m = W.shape
    mean = W.mean(0)
    _, values, directions = torch.linalg.svd(W - mean, full_matrices=False)
    kept = values > values.max() * max(n, m) * torch.finfo(W.dtype).eps
    root = values[kept, None] * directions[kept]

    def draw(draws: int, generator: torch.Generator) -> Tensor:
        noise = _normal((draws, n, len(root)), W, generator)
        return mean + haar_frames(noise - noise.mean(-2, keepdim=True)) @ root

    return draw


def haar_frames(noise: Float[Tensor, "*draw row column"]) -> Float[Tensor, "*draw row column"]:
    """Orthonormal columns that span those of Gaussian `noise`: uniform among all orthonormal frames.

    The R of `noise = Q R` needs a positive diagonal, as a Cholesky factor has; Householder's has not.
    Source: Mezzadri 2007, How to generate random matrices from the classical compact groups.
    """
    rows, columns = noise.shape[-2:]
    if columns == 1:
        return noise / torch.linalg.vector_norm(noise, dim=-2, keepdim=True)
    if rows >= _WELL_CONDITIONED * columns + _FEW:
        lower = torch.linalg.cholesky(noise.mT @ noise)
        return torch.linalg.solve_triangular(lower.mT, noise, upper=True, left=False)
    frames, upper = torch.linalg.qr(noise)
    return frames * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def _comparable(wide: Tensor, sample: int | None, seed: int, block: int) -> Float[Tensor, "feature hidden"]:
    """Rows with a direction, at most `sample` of them, whole blocks at a time."""
    if wide.ndim != 2 or block < 1 or len(wide) % block:
        raise ValueError(f"W has shape {list(wide.shape)}; give [feature, hidden] with features in blocks of {block}")
    if sample is not None and sample < 2:
        raise ValueError(f"a sample of {sample} features has no pairs; take at least 2, or None for all")
    blocks = wide.reshape(len(wide) // block, block, -1)
    blocks = blocks[(blocks != 0).any(-1).all(-1)]
    most = math.inf if sample is None else max(sample // block, 2)
    if len(blocks) > most:
        chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))[: int(most)]
        blocks = blocks[chosen.sort().values.to(blocks.device)]
    rows = blocks.flatten(0, 1)
    if len(rows) < 2:
        raise ValueError(f"a null is of pairs of features; {len(rows)} of {len(wide)} features have a direction")
    return rows / rows.abs().amax()


def _portions(rows: Tensor, draws: int) -> list[int]:
    """How many draws to make at a time."""
    n, m = rows.shape
    most = max(1, _DRAWN_BYTES // (rows.element_size() * n * max(n, m)))
    return [min(most, draws - done) for done in range(0, draws, most)]


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def _statistics(W: Float[Tensor, "*draw feature hidden"]) -> Float[Tensor, "*draw statistic"]:
    """`STATISTICS` of each matrix."""
    lengths = torch.linalg.vector_norm(W, dim=-1)
    found = overlaps(W / lengths[..., None])
    spread = lengths.double().std(-1) / lengths.double().mean(-1)
    return torch.stack(
        [found.mean, found.mean_square, found.max, found.largest.mean(-1), found.kurtosis, spread], dim=-1
    )
