"""Superposition: measures of weights, models and dictionaries against the right null, and toy models of it (`toy`).

>>> from mechkit.superposition import dimensionality, measure_superposition, recovered
"""

from mechkit.core.lazy import lazily

_HOMES = {
    "activity": ("Activity", "measure_activity"),
    "bounds": (
        "johnson_lindenstrauss_capacity",
        "johnson_lindenstrauss_overlap",
        "least_frame_potential",
        "random_overlap",
        "welch_bound",
    ),
    "matching": ("max_cosines", "mean_max_cosine", "recovered"),
    "measure": ("measure_superposition",),
    "measured": ("Superposition",),
    "measures": (
        "dimensionality",
        "dimensions_per_feature",
        "effective_rank",
        "feature_interference",
        "feature_norms",
        "features_per_neuron",
        "frame_potential",
        "interference",
        "participation_ratio",
        "singular_values",
        "stable_rank",
        "unit_rows",
    ),
    "model": ("ModelSuperposition", "measure_model"),
    "nulls": ("NullTest", "compare"),
    "overlaps": ("nearest",),
    "toy": ("toy",),
}

__getattr__, __dir__, __all__ = lazily(__name__, {name: home for home, names in _HOMES.items() for name in names})
