"""What is kept of every feature while activations stream by: counts, and the firings that make its examples.

A firing is a token on which a feature is not 0; its strength is the absolute activation. Kept are

- a histogram of strengths in half octaves, whose bins sum to the number of firings, and the sum of strengths;
- the `top` rows of the corpus where the feature is strongest, each by its strongest token;
- a sample of `sample` firings drawn alike from all of them: those whose hash of (place, feature) is least. It is the
  same whatever the order of the corpus is read in, and its ranks are the feature's quantiles.

Firings are gathered until there are many, and sorted by feature once for all that is kept. A feature's firings then lie
side by side, in the order of the tokens, so the surroundings of an example are found among its neighbours, and
activations that are 0 are never looked at.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.features.best import KEY_BITS, Best, Firings
from mechkit.features.firing import Fired

N_BINS, LOWEST = 64, -20
"""Bins of the histogram, two an octave, and the power of 2 at which they begin."""
MASK = (1 << KEY_BITS) - 1
MANY = 1 << 20
"""Firings that are gathered before they are looked at, about."""


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


def top_key(value: Float[Tensor, "firing"]) -> Int[Tensor, "firing"]:
    """Whole numbers in the order of strength: the bits of its float32."""
    return value.abs().view(torch.int32).long()


def sample_key(place: Int[Tensor, "firing"], feature: Int[Tensor, "firing"]) -> Int[Tensor, "firing"]:
    """Whole numbers, greatest where the firing's hash is least."""
    return MASK - firing_hash(place, feature)


@dataclass(frozen=True)
class Places:
    """Where tokens of whole rows of the corpus are, row after row."""

    position: Int[Tensor, "token"]
    """Each token's place in the corpus."""
    row: Int[Tensor, "token"]
    """The row of the corpus it is in."""
    within: Int[Tensor, "token"]
    """Its place in the row."""
    length: Int[Tensor, "token"]
    """How many tokens that row has."""
    counted: Bool[Tensor, "token"]
    """Whether it counts."""

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, chosen: slice) -> "Places":
        return Places(*(value[chosen] for value in vars(self).values()))

    @classmethod
    def joined(cls, parts: "list[Places]") -> "Places":
        """All tokens of several parts, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


class Selection:
    """The running state of one SAE."""

    def __init__(
        self, n_features: int, top: int, sample: int, window: tuple[int, int], device: torch.device | str
    ) -> None:
        self.n_features, self._window = n_features, window
        width = window[0] + 1 + window[1]
        self.top, self.sample = Best(n_features, top, width, device), Best(n_features, sample, width, device)
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Set the counts to 0; what is strongest and the sample stay."""
        self.histogram = torch.zeros(self.n_features * N_BINS, dtype=torch.long, device=self._device)
        self.total = torch.zeros(self.n_features, dtype=torch.float64, device=self._device)
        self.n_tokens = 0
        self._waiting: list[tuple[Places, Fired]] = []
        self._n_waiting = 0

    def add(self, places: Places, fired: Fired) -> None:
        """Take in whole rows of tokens and what fires on them."""
        self._waiting.append((places, fired))
        self._n_waiting += len(fired)
        self.n_tokens += int(places.counted.sum())
        if self._n_waiting >= MANY:
            self.flush()

    def flush(self) -> None:
        """Bring counts and examples up to date."""
        if self._waiting:
            places, firings = zip(*self._waiting, strict=True)
            fired = Fired.joined(list(firings), [len(one) for one in places])
            self._waiting, self._n_waiting = [], 0
            self._take(_Sorted.of(Places.joined(list(places)), fired))

    def _take(self, found: "_Sorted") -> None:
        own = found.counted()
        strength = own.fired.value.abs()
        bins = own.fired.feature * N_BINS + bins_of(strength)
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        n = torch.bincount(own.fired.feature, minlength=self.n_features)
        self.total += torch.segment_reduce(strength.double(), "sum", lengths=n, unsafe=True)
        key = top_key(own.fired.value)
        chosen = self.top.passes(key, own.fired.feature).nonzero()[:, 0]
        chosen = chosen[_strongest_of_rows(key[chosen], own.fired.feature[chosen], own.row(chosen))]
        chosen = chosen[self.top.raised(key[chosen], own.fired.feature[chosen])]
        self._offer(self.top, key[chosen], found, own.at[chosen])
        key = sample_key(position_hash(found.places.position)[own.fired.token], own.fired.feature)
        chosen = self.sample.passes(key, own.fired.feature).nonzero()[:, 0]
        chosen = chosen[self.sample.raised(key[chosen], own.fired.feature[chosen])]
        self._offer(self.sample, key[chosen], found, own.at[chosen])

    def _offer(self, best: Best, key: Int[Tensor, "few"], found: "_Sorted", at: Int[Tensor, "few"]) -> None:
        token = found.fired.token[at]
        firings = Firings(
            found.fired.feature[at], found.fired.value[at], found.places.position[token], found.places.row[token],
            found.windows(at, *self._window),
        )  # fmt: skip
        best.offer(key, firings)


def _strongest_of_rows(
    key: Int[Tensor, "firing"], feature: Int[Tensor, "firing"], row: Int[Tensor, "firing"]
) -> Int[Tensor, "run"]:
    """Which firings have the greatest key among neighbours of one feature and row, the first where several have."""
    starts = torch.ones_like(key, dtype=torch.bool)
    starts[1:] = (feature[1:] != feature[:-1]) | (row[1:] != row[:-1])
    run = starts.cumsum(0) - 1
    greatest = key.new_zeros(int(starts.sum())).scatter_reduce_(0, run, key, "amax")
    among = (key == greatest[run]).nonzero()[:, 0]
    first = torch.ones_like(among, dtype=torch.bool)
    first[1:] = run[among[1:]] != run[among[:-1]]
    return among[first]


@dataclass(frozen=True)
class _Sorted:
    """Firings by feature, and token after token for each."""

    places: Places
    fired: Fired
    at: Int[Tensor, "firing"]
    """Where each firing is among all that were sorted."""

    @classmethod
    def of(cls, places: Places, fired: Fired) -> "_Sorted":
        order = fired.feature.int().sort(stable=True).indices
        return cls(places, fired[order], torch.arange(len(fired), device=order.device))

    def counted(self) -> "_Sorted":
        """Those on tokens that count."""
        if bool(self.places.counted.all()):
            return self
        own = self.places.counted[self.fired.token].nonzero()[:, 0]
        return _Sorted(self.places, self.fired[own], own)

    def row(self, chosen: Int[Tensor, "few"]) -> Int[Tensor, "few"]:
        """The row of the corpus of some firings."""
        return self.places.row[self.fired.token[chosen]]

    def windows(self, at: Int[Tensor, "few"], before: int, after: int) -> Float[Tensor, "few place"]:
        """The feature's activations on the tokens around some firings; NaN beyond their rows."""
        found = self.fired.value.new_zeros(len(at), before + 1 + after)
        found[:, before] = self.fired.value[at]
        for step, reach in ((-1, before), (1, after)):
            self._fill(found, at, before, step, reach)
        within, length = (getattr(self.places, name)[self.fired.token[at]] for name in ("within", "length"))
        edge = ((within < before) | (within + after >= length)).nonzero()[:, 0]
        place = within[edge, None] + torch.arange(-before, after + 1, device=at.device)
        beyond = (place < 0) | (place >= length[edge, None])
        found[edge] = found[edge].masked_fill(beyond, torch.nan)
        return found

    def _fill(self, found: Float[Tensor, "few place"], at: Int[Tensor, "few"], before: int, step: int, reach: int):
        """Go from neighbour to neighbour, each further than the one before, while any is within reach."""
        line, centre, beside = torch.arange(len(at), device=at.device), self.fired.token[at], at
        feature = self.fired.feature[at]
        while len(line):
            beside = beside + step
            inside = (beside >= 0) & (beside < len(self.at))
            beside = beside.clamp(0, len(self.at) - 1)
            token = self.fired.token[beside]
            apart = (token - centre) * step
            near = inside & (self.fired.feature[beside] == feature) & (apart > 0) & (apart <= reach)
            near = near & (self.places.row[token] == self.places.row[centre])
            line, centre, beside, feature = (one[near] for one in (line, centre, beside, feature))
            found[line, before + (token[near] - centre)] = self.fired.value[beside]
