"""How far two dictionaries hold the same features.

>>> first, second = transcoders
>>> recovered(first.W_dec, first.W_dec), recovered(first.W_dec, second.W_dec)
(1.0, 0.0)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.progress import progress
from mechkit.superposition.measures import as_features, unit_rows
from mechkit.superposition.overlaps import BLOCK_BYTES


def max_cosines(D, G) -> Float[Tensor, "feature"]:
    """Largest cosine of each feature of D[feature, hidden] with any of G[other, hidden]; sign counts.

    A zero row has cosine 0 with everything. Cost: len(D) x len(G) x m multiplications, block by block. Raises as
    `as_features`, and ValueError where the two are not of the same hidden dimensions.
    """
    ours, theirs = as_features(D, "D"), as_features(G, "G")
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"D has shape {list(ours.shape)} and G {list(theirs.shape)}; give [feature, hidden] of one hidden size"
        )
    theirs = unit_rows(theirs).to(ours.device)
    parts = unit_rows(ours).split(max(1, BLOCK_BYTES // (8 * len(theirs))))
    return torch.cat([(part @ theirs.mT).amax(1) for part in progress(parts, "cosines")]).clamp(-1, 1)


def mean_max_cosine(D, G) -> float:
    """MMCS(D, G): the mean over features of D of the largest cosine with any feature of G; at most 1.

    Not symmetric: the mean over G is `mean_max_cosine(G, D)`. Cost and errors as `max_cosines`.
    Source: Sharkey et al. 2022, Taking features out of superposition with sparse autoencoders.
    """
    return float(max_cosines(D, G).mean())


def recovered(D, G, threshold: float = 0.9) -> float:
    """The share of G's features that some feature of D has found: a cosine above `threshold`.

    Cost and errors as `max_cosines`; ValueError for a threshold outside -1 to 1. Source: Sharkey et al. 2022.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"a threshold of cosines lies from -1 to 1; got {threshold}")
    return float((max_cosines(G, D) > threshold).double().mean())
