"""Superposition: measures of weights and dictionaries against the right null.

>>> from mechkit.superposition import dimensionality, feature_norms, welch_bound
"""

from mechkit.core.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "dimensionality": "measures",
        "dimensions_per_feature": "measures",
        "effective_rank": "measures",
        "feature_interference": "measures",
        "feature_norms": "measures",
        "features_per_neuron": "measures",
        "frame_potential": "measures",
        "interference": "measures",
        "johnson_lindenstrauss_capacity": "bounds",
        "johnson_lindenstrauss_overlap": "bounds",
        "least_frame_potential": "bounds",
        "participation_ratio": "measures",
        "random_overlap": "bounds",
        "singular_values": "measures",
        "stable_rank": "measures",
        "unit_rows": "measures",
        "welch_bound": "bounds",
    },
)
