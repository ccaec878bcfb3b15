"""`measure_superposition`: how n features share m dimensions, beside what chance would give.

>>> report = measure_superposition(model.W_E, draws=19)   # print(report): the numbers, and what may be concluded
>>> print(report.conclusions()[0])
209 features in 128 dimensions: no arrangement keeps the largest |cos| below 0.06, here it is 0.61; they fill 47.8
dimensions, 4.38 features in each.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechkit.superposition import bounds
from mechkit.superposition.activity import Activity, measure_activity
from mechkit.superposition.measured import Superposition
from mechkit.superposition.measures import (
    as_features,
    dimensionality,
    dimensions_per_feature,
    effective_rank,
    feature_interference,
    feature_norms,
    features_per_neuron,
    frame_potential,
    participation_ratio,
    singular_values,
    stable_rank,
    unit_rows,
)
from mechkit.superposition.nulls import NULLS, compare
from mechkit.superposition.overlaps import Overlaps, overlaps


def measure_superposition(
    W,
    activations=None,
    *,
    draws: int = 199,
    sample: int | None = 1024,
    seed: int = 0,
    nulls: Sequence[str] = NULLS,
    block: int = 1,
) -> Superposition:
    """How the features of W[feature, hidden] share its dimensions: lengths, overlaps, dimensionality, bounds, nulls.

    Weights show capacity: what could be held at once. With `activations[sample, feature]` (0 is off) it also says how
    sparse the features are and how much of their overlap is felt. Every sum and maximum is over all pairs; the nulls
    (see `nulls.compare`, which `draws`, `sample`, `seed` and `block` go to; `nulls=()` for none) compare at most
    `sample` features, drawn at random. Computed in float64 on W's device; half precision is taken as it is.

    Unit: lengths and singular values in that of W, overlaps |cos|. Cost: n^2 m multiplications block by block, n m^2
    for the spectrum, 2 x draws x sample^2 m for the nulls; about two minutes of CPU time for 50,257 x 768.
    Raises TypeError for a W (or activations) that is not floating-point, ValueError for NaN or infinite values, naming
    the rows, shapes other than two axes, and what `compare` raises. Zero rows have dimensionality 0 and no direction;
    one feature has no pairs: then overlaps are NaN and there are no tests.
    Source: Elhage et al. 2022, Toy Models of Superposition; see each of `mechkit.superposition`'s functions.
    """
    wide = as_features(W)
    if wide.ndim != 2:
        raise ValueError(f"W has shape {list(wide.shape)}; measure one [feature, hidden] at a time")
    seen = None if activations is None else measure_activity(wide, activations)
    directed = wide[(wide != 0).any(1)]
    found = overlaps(unit_rows(directed)) if len(directed) > 1 else None
    options = {"draws": draws, "sample": sample, "seed": seed, "block": block}
    tests = {} if found is None else {null: compare(wide, null, **options) for null in nulls}
    return Superposition(
        W=wide,
        tests=tests,
        activity=seen,
        **_features(wide, found, seen),
        **_whole(wide, found, torch.as_tensor(W).dtype),
    )


def _features(wide, found: Overlaps | None, seen: Activity | None) -> dict[str, Any]:
    """What is one number per feature or dimension."""
    largest = wide.new_full((len(wide),), torch.nan)
    if found is not None:
        largest[(wide != 0).any(1)] = found.largest
    return {
        "norms": feature_norms(wide),
        "dimensionality": dimensionality(wide),
        "feature_interference": feature_interference(wide),
        "largest_cosines": largest,
        "features_per_neuron": features_per_neuron(wide, None if seen is None else seen.mean_square),
    }


def _whole(wide, found: Overlaps | None, dtype: torch.dtype) -> dict[str, Any]:
    """What is one number."""
    values = singular_values(wide)
    n, m = int((wide != 0).any(1).sum()), wide.shape[1]
    numbers = {
        "dimensions_per_feature": dimensions_per_feature(wide),
        "mean_cosine": torch.nan if found is None else found.mean,
        "max_cosine": torch.nan if found is None else found.max,
        "mean_square_cosine": torch.nan if found is None else found.mean_square,
        "kurtosis": torch.nan if found is None else found.kurtosis,
        "frame_potential": frame_potential(wide),
        "welch_bound": bounds.welch_bound(max(n, 1), m),
        "least_frame_potential": bounds.least_frame_potential(n, m) if n else 0.0,
        "random_cosine": bounds.random_overlap(m),
        "johnson_lindenstrauss": bounds.johnson_lindenstrauss_overlap(max(n, 1), m),
        "effective_rank": effective_rank(values),
        "participation_ratio": participation_ratio(values.square()),
        "stable_rank": stable_rank(values),
    }
    return {name: float(value) for name, value in numbers.items()} | {"rank": _rank(values, wide.shape, dtype)}


def _rank(values: Tensor, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Singular values beyond what a few roundings of each entry in `dtype` add up to."""
    rounding = 4 * torch.finfo(dtype).eps * float(values.norm()) * sum(1 / math.sqrt(size) for size in shape)
    return int((values > rounding).sum())
