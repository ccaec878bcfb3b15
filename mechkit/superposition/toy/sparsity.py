"""Toys of equal importance over a range of sparsity: what dimensions, geometry and vulnerability are drawn from.

>>> by_sparsity("quick", n_instances=2, n_steps=5).features.shape
torch.Size([2, 60, 12])
"""

import torch

from mechkit.superposition.toy.toys import instances
from mechkit.superposition.toy.trained import Trained
from mechkit.superposition.toy.training import train

SIZES = {
    "paper": (400, 30, 20, 10_000, (1.0, 20.0)),
    "colab": (200, 20, 20, 10_000, (1.0, 20.0)),
    "reduced": (60, 12, 32, 10_000, (1.2, 7.0)),
    "quick": (60, 12, 12, 3000, (1.0, 10.0)),
}
"""Features, hidden dimensions, instances, steps of 1,024 samples, and the range of 1 / (1 - S)."""


def by_sparsity(
    size: str = "colab",
    *,
    n_instances: int | None = None,
    n_steps: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    memory: int | None = None,
) -> Trained:
    """ReLU-output toys trained on samples, one for each 1 / (1 - S), which are in equal ratios over the size's range.

    `paper` is the published setting, `colab` that of the published notebook; the others fit a CPU. All start alike
    and see the same draws. Cost on one core: `quick` half a minute, `reduced` 2, `colab` 9, `paper` about 30.
    Raises ValueError for an unknown size or fewer than two instances.
    Source: Elhage et al. 2022, section 4.
    """
    if size not in SIZES:
        raise ValueError(f"size is one of {', '.join(SIZES)}, not {size!r}")
    n, m, n_default, n_steps_default, (low, high) = SIZES[size]
    count = n_default if n_instances is None else n_instances
    if count < 2:
        raise ValueError(f"{count} instances do not span a range of sparsity; give at least 2")
    probability = 1 / (low * (high / low) ** torch.linspace(0, 1, count))
    toys = instances(n, m, probability=probability[:, None], seed=seed)
    return train(toys, n_steps=n_steps or n_steps_default, device=device, memory=memory, label="toys by sparsity")
