"""What is kept of every feature while activations stream by: counts, and the firings that make its examples.

A firing is a token on which a feature is not 0; its strength is the absolute activation. Kept are

- a histogram of strengths in half octaves, whose bins sum to the number of firings, and the sum of strengths;
- the `top` rows of the corpus where the feature is strongest, each by its strongest token;
- a sample of `sample` firings drawn alike from all of them: those whose hash of (place, feature) is least. It is the
  same whatever the order of the corpus is read in, and its ranks are the feature's quantiles.

Ties go to the earlier place. Everything is done for all features at once, and a firing that cannot be kept any more
(weaker than the `top`-th, hash above the `sample`-th) costs one comparison.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_BINS, LOWEST = 64, -20
"""Bins of the histogram, two an octave, and the power of 2 at which they begin."""
MASK = (1 << 31) - 1
FULL = 1 << 18
"""Candidates that are held before the best are picked out, at least."""


def bin_edges() -> list[float]:
    """The strengths at which the bins begin: 1 and 1.5 times each power of 2. The ends take what lies beyond."""
    return [2.0 ** (LOWEST + i // 2) * (1 + i % 2 / 2) for i in range(N_BINS)]


def bins_of(strength: Float[Tensor, "firing"]) -> Int[Tensor, "firing"]:
    """The bin of each strength: its float32 exponent and the first bit after it."""
    halves = (strength.float().view(torch.int32) >> 22) - 2 * (127 + LOWEST)
    return halves.clamp_(0, N_BINS - 1)


def position_hash(position: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
    """31 well-mixed bits of each place in the corpus; products stay below 2**63."""
    x = (position & MASK) ^ (position >> 31)
    x = (x * 0x2C1B3C6D) & MASK
    x = ((x ^ (x >> 12)) * 0x297A2D39) & MASK
    return x ^ (x >> 15)


def firing_hash(place: Int[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Int[Tensor, "firing"]:
    """31 bits of each firing, from its place's hash and its feature's number."""
    x = ((place ^ (feature * 0x9E3779B1 & MASK)) * 0x2C1B3C6D) & MASK
    return x ^ (x >> 15)


@dataclass(frozen=True)
class Chunk:
    """Activations of whole rows of the corpus, a line per token."""

    active: Float[Tensor, "token feature"]
    """Activations."""
    position: Int[Tensor, "token"]
    """Each token's place in the corpus."""
    row: Int[Tensor, "token"]
    """The row of the corpus it is in."""
    within: Int[Tensor, "token"]
    """Its place in the row."""
    length: Int[Tensor, "token"]
    """How many tokens that row has."""
    counted: Bool[Tensor, "token"] | None = None
    """Tokens that count; None where all do."""


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
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def none(cls, width: int, device: torch.device | str = "cpu") -> "Firings":
        """No firings at all."""
        whole = torch.zeros(0, dtype=torch.long, device=device)
        real = torch.zeros(0, device=device)
        return cls(whole, real, whole, whole, real.new_zeros(0, width))


class Best:
    """The firings of every feature with the greatest keys; among equal keys the earlier place."""

    def __init__(self, n_features: int, size: int, width: int, one_per_row: bool, device: torch.device | str) -> None:
        self.n_features, self.size, self.one_per_row = n_features, size, one_per_row
        self.bar = torch.full((n_features,), -MASK - 1.0 if size else torch.inf, dtype=torch.float64, device=device)
        self._firings, self._keys = [Firings.none(width, device)], [self.bar.new_zeros(0)]
        self._held, self._limit = 0, max(FULL, 2 * n_features * size)

    def passes(self, key: Float[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Bool[Tensor, "firing"]:
        """Which firings can still be among the best."""
        return key >= self.bar[feature]

    def offer(self, key: Float[Tensor, "firing"], firings: Firings) -> None:
        """Take firings in, with their keys."""
        self._firings.append(firings)
        self._keys.append(key.double())
        self._held += len(firings)
        if self._held > self._limit:
            self.kept()

    def kept(self) -> Firings:
        """The best so far, by feature, greatest key first."""
        firings, key = Firings.joined(self._firings), torch.cat(self._keys)
        order = self._order(firings, key)
        firings, key = firings[order], key[order]
        n = torch.bincount(firings.feature, minlength=self.n_features)
        rank = torch.arange(len(firings), device=key.device) - (n.cumsum(0) - n)[firings.feature]
        within = rank < self.size
        last = within & (rank == self.size - 1)
        self.bar[firings.feature[last]] = key[last]
        self._firings, self._keys = [firings[within]], [key[within]]
        self._held = len(self._firings[0])
        return self._firings[0]

    def _order(self, firings: Firings, key: Float[Tensor, "firing"]) -> Int[Tensor, "kept"]:
        order = firings.position.argsort(stable=True)
        order = order[key[order].argsort(descending=True, stable=True)]
        if self.one_per_row and len(order):
            pair = firings.row[order] * self.n_features + firings.feature[order]
            by_pair = pair.argsort(stable=True)
            first = torch.ones_like(pair, dtype=torch.bool)
            first[1:] = pair[by_pair[1:]] != pair[by_pair[:-1]]
            order = order[by_pair[first].sort().values]
        return order[firings.feature[order].argsort(stable=True)]


class Selection:
    """The running state of one SAE."""

    def __init__(
        self, n_features: int, top: int, sample: int, window: tuple[int, int], device: torch.device | str
    ) -> None:
        self.window, self.n_features = window, n_features
        width = window[0] + 1 + window[1]
        self._offsets = torch.arange(-window[0], window[1] + 1, device=device)
        self.top = Best(n_features, top, width, True, device)
        self.sample = Best(n_features, sample, width, False, device)
        self.clear()

    def clear(self) -> None:
        """Set the counts to 0; what is strongest and the sample stay."""
        device = self._offsets.device
        self.histogram = torch.zeros(self.n_features * N_BINS, dtype=torch.long, device=device)
        self.total = torch.zeros(self.n_features, dtype=torch.float64, device=device)
        self.n_tokens = 0

    def add(self, chunk: Chunk) -> tuple[Int[Tensor, "firing"], Int[Tensor, "firing"], Float[Tensor, "firing"]]:
        """Take a chunk in; returns its firings: tokens of the chunk, features, activations, token after token."""
        token, feature = chunk.active.nonzero(as_tuple=True)
        if chunk.counted is not None:
            own = chunk.counted[token]
            token, feature = token[own], feature[own]
        value = chunk.active[token, feature].float()
        strength = value.abs()
        self.n_tokens += len(chunk.active) if chunk.counted is None else int(chunk.counted.sum())
        counted = chunk.active if chunk.counted is None else chunk.active[chunk.counted]
        self.total += counted.abs().sum(0, dtype=torch.float64)
        self.histogram.index_add_(0, feature * N_BINS + bins_of(strength), torch.ones_like(feature))
        drawn = -firing_hash(position_hash(chunk.position)[token], feature).double()
        self._offer(self.top, strength.double(), chunk, token, feature, value)
        self._offer(self.sample, drawn, chunk, token, feature, value)
        return token, feature, value

    def _offer(self, best: Best, key: Tensor, chunk: Chunk, token: Tensor, feature: Tensor, value: Tensor) -> None:
        keep = best.passes(key, feature).nonzero()[:, 0]
        if len(keep) == 0:
            return
        token, feature = token[keep], feature[keep]
        best.offer(
            key[keep],
            Firings(feature, value[keep], chunk.position[token], chunk.row[token], self._around(chunk, token, feature)),
        )

    def _around(self, chunk: Chunk, token: Int[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Tensor:
        """The feature's activations on the tokens around each firing; NaN beyond its row."""
        place = chunk.within[token][:, None] + self._offsets
        inside = (place >= 0) & (place < chunk.length[token][:, None])
        beside = (token[:, None] + self._offsets).clamp_(0, len(chunk.active) - 1)
        return torch.where(inside, chunk.active[beside, feature[:, None]].float(), torch.nan)
