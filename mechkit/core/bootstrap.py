"""How sure a mean over prompts is, were the prompts drawn anew.

>>> low, high = interval(torch.tensor([[1.0, 2.0, 6.0]]), level=0.95, n=1000, seed=0)
>>> bool(low[0] < 3 < high[0])
True
"""

import torch
from jaxtyping import Float
from torch import Tensor


def interval(
    scores: Float[Tensor, "row prompt"], level: float, n: int, seed: int
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Ends of the middle `level` of `n` means of each row, over prompts drawn whole and with replacement.

    The same draws serve all rows. Raises ValueError for fewer than two prompts, which have no spread.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile intervals).
    """
    n_prompts = scores.shape[1]
    if n_prompts < 2 or not 0 < level < 1 or n < 1:
        raise ValueError(
            "an interval needs two prompts or more, 0 < level < 1 and n >= 1; "
            f"there are {n_prompts} prompts, level is {level} and n is {n}"
        )
    drawn = torch.randint(n_prompts, (n, n_prompts), generator=torch.Generator().manual_seed(seed))
    shares = torch.zeros(n, n_prompts, dtype=torch.double)
    shares.scatter_add_(1, drawn, torch.full_like(shares, 1 / n_prompts))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    parts = [torch.quantile(rows @ shares.T, ends, dim=1) for rows in scores.double().split(max(1, _SIZE // n))]
    low, high = torch.cat(parts, 1).float()
    return low, high


_SIZE = 2**22
"""Means held at a time."""
