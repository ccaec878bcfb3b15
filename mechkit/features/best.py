"""The firings of every feature with the greatest keys, kept while activations stream by.

A firing that cannot be among them any more (its key is below the least of those kept) costs one comparison. Ties go to
the earlier place in the corpus.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KEY_BITS = 31
"""Keys are whole numbers of so many bits."""
LARGEST = (1 << KEY_BITS) - 1
FULL = 1 << 18
"""Candidates that are held before the best are picked out, at least."""


@dataclass(frozen=True)
class Firings:
    """Firings with their surroundings."""

    feature: Int[Tensor, "firing"]
    """The feature that fires."""
    value: Float[Tensor, "firing"]
    """Its activation."""
    position: Int[Tensor, "firing"]
    """Place in the corpus."""
    row: Int[Tensor, "firing"]
    """Row of the corpus."""
    window: Float[Tensor, "firing place"]
    """The feature's activations around it, NaN where the row has no such token."""

    def __getitem__(self, chosen: Tensor) -> "Firings":
        return Firings(*(value[chosen] for value in vars(self).values()))

    def __len__(self) -> int:
        return len(self.feature)

    @classmethod
    def joined(cls, parts: "list[Firings]") -> "Firings":
        """All firings of several parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def none(cls, width: int, device: torch.device | str = "cpu") -> "Firings":
        """No firings at all."""
        whole = torch.zeros(0, dtype=torch.long, device=device)
        real = torch.zeros(0, device=device)
        return cls(whole, real, whole, whole, real.new_zeros(0, width))


class Best:
    """The `size` firings of every feature with the greatest keys."""

    def __init__(self, n_features: int, size: int, width: int, device: torch.device | str) -> None:
        self.n_features, self.size = n_features, size
        self.bar = torch.full((n_features,), -1, dtype=torch.long, device=device)
        self._firings, self._keys = [Firings.none(width, device)], [self.bar.new_zeros(0)]
        self._held, self._limit = 0, max(FULL, 2 * n_features * size)

    def passes(self, key: Int[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Bool[Tensor, "firing"]:
        """Which firings can still be among the best."""
        return key >= self.bar[feature] if self.size else torch.zeros_like(key, dtype=torch.bool)

    def raised(self, key: Int[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Int[Tensor, "few"]:
        """Which of firings that pass still do once all of them are known; all with the key of the last are among them.

        No other firing passes from now on, so these must be offered.
        """
        if len(key) > self.n_features:
            ranked = ((feature << KEY_BITS) + (LARGEST - key)).sort().values
            of = ranked >> KEY_BITS
            last = ranks(of, self.n_features) == self.size - 1
            of, least = of[last], LARGEST - (ranked[last] & LARGEST)
            self.bar[of] = torch.maximum(self.bar[of], least)
        return self.passes(key, feature).nonzero()[:, 0]

    def offer(self, key: Int[Tensor, "firing"], firings: Firings) -> None:
        """Take firings in, with their keys."""
        if self.size and len(key):
            self._firings.append(firings)
            self._keys.append(key)
            self._held += len(key)
        if self._held > self._limit:
            self.kept()

    def kept(self) -> Firings:
        """The best so far, by feature, greatest key first."""
        firings, key = Firings.joined(self._firings), torch.cat(self._keys)
        order = firings.position.argsort()
        ranked = (firings.feature << KEY_BITS) + (LARGEST - key)
        order = order[ranked[order].argsort(stable=True)]
        rank = ranks(firings.feature[order], self.n_features)
        order, rank = order[rank < self.size], rank[rank < self.size]
        firings, key = firings[order], key[order]
        last = rank == self.size - 1
        self.bar[firings.feature[last]] = torch.maximum(self.bar[firings.feature[last]], key[last])
        self._firings, self._keys, self._held = [firings], [key], len(key)
        return firings


def ranks(feature: Int[Tensor, "firing"], n_features: int) -> Int[Tensor, "firing"]:
    """Each firing's number among those of its feature; `feature` is sorted."""
    n = torch.bincount(feature, minlength=n_features)
    return torch.arange(len(feature), device=feature.device) - (n.cumsum(0) - n)[feature]
