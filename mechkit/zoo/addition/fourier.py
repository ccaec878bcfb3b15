"""Which periods the number embeddings are built from."""

import torch
from jaxtyping import Float
from torch import Tensor


def spectrum(embeddings: Float[Tensor, "number d_model"]) -> dict[float, float]:
    """Share of the embeddings' variance at each period, strongest first.

    The power of the discrete Fourier transform along the numbers, summed over dimensions, mean taken out. With
    numbers 0 to 99 the periods are 100/k for k from 1 to 50. Unit: share, the sum is 1.
    Source: Kantamneni & Tegmark 2025, section 4.1.

    >>> shares = spectrum(model.W_E[:100])
    >>> round(sum(shares.values()), 3)
    1.0
    """
    centred = embeddings.detach().double() - embeddings.detach().double().mean(0)
    power = torch.fft.rfft(centred, dim=0).abs().square().sum(1)[1:]
    # Every frequency but the highest of an even count stands for its negative as well.
    power[: (len(embeddings) - 1) // 2] *= 2
    share = power / power.sum()
    periods = [round(len(embeddings) / k, 4) for k in range(1, len(power) + 1)]
    return dict(sorted(zip(periods, share.tolist(), strict=True), key=lambda item: -item[1]))


def peaks(shares: dict[float, float]) -> list[float]:
    """The periods that stand higher than both their neighbours, strongest first."""
    periods = sorted(shares, reverse=True)
    heights = [0.0, *(shares[period] for period in periods), 0.0]
    tops = [p for i, p in enumerate(periods) if heights[i] < heights[i + 1] > heights[i + 2]]
    return sorted(tops, key=lambda period: -shares[period])
