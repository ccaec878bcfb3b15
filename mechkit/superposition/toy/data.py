"""What toys are trained on: fresh samples, the whole distribution as weighted rows, or a finite set.

`Exact` lists the distribution of a few features: each is off, or on at Gauss-Legendre nodes of its interval, so a
weighted sum over all combinations is the expected loss, up to the kinks of the ReLU (see `Exact`).

>>> from mechkit.superposition.toy.toys import instances
>>> rows = Exact(8).stream(instances(2, 1, probability=0.1), torch.arange(1)).rows()
>>> rows.x.shape, round(float((rows.weight * rows.x[0]).sum()), 6)         # E[x] = 0.1 / 2
(torch.Size([2, 81]), 0.05)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mechkit.superposition.toy.toys import Toys
from mechkit.superposition.toy.weights import Rows

MOST_ROWS = 1 << 20
"""Rows of `Exact` at most."""


@runtime_checkable
class Stream(Protocol):
    """Rows for some instances, step after step."""

    def rows(self) -> Rows:
        """The rows of the next step."""
        ...

    def keep(self, which: Tensor) -> None:
        """Go on for these of the instances alone."""
        ...


@runtime_checkable
class Data(Protocol):
    """Where the rows of a training run come from."""

    def n_rows(self, toys: Toys) -> int:
        """Rows of each instance at a step."""
        ...

    def stream(self, toys: Toys, which: Int64[Tensor, "instance"]) -> Stream:
        """Rows for `toys`, which are numbers `which` of the whole batch."""
        ...


@dataclass(frozen=True)
class Samples:
    """Fresh samples at every step, as the papers train.

    One generator for each seed, on the device of the toys, draws one uniform number for each feature, row and step
    (and one for each correlated group); an instance makes its features of them by its own probabilities. So what an
    instance sees depends on its seed and not on the batch it is in, and instances of one seed share their noise.
    """

    batch: int = 1024
    """Samples a step."""

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"a batch of {self.batch} samples is none; give at least 1")

    def n_rows(self, toys: Toys) -> int:
        """Samples a step."""
        return self.batch

    def stream(self, toys: Toys, which: Tensor) -> "SampleStream":
        """Fresh samples for `toys`."""
        return SampleStream(toys, self.batch)


class SampleStream:
    """Samples of the features of some toys."""

    def __init__(self, toys: Toys, batch: int):
        device = toys.seed.device
        seeds, self.seed_of = toys.seed.unique(return_inverse=True)
        self.generators = [torch.Generator(device).manual_seed(2 * seed + 1) for seed in seeds.tolist()]
        self.toys = toys
        self.drawn = torch.empty(len(seeds), toys.n_features + len(toys.correlated), batch, device=device)

    def rows(self) -> Rows:
        """A fresh batch."""
        for draws, generator in zip(self.drawn, self.generators, strict=True):
            draws.uniform_(generator=generator)
        return Rows(_features(self.toys, self.drawn if len(self.drawn) == 1 else self.drawn[self.seed_of]), None)

    def keep(self, which: Tensor) -> None:
        """Go on for some of the instances; the draws of the others' seeds go on unseen."""
        self.toys, self.seed_of = self.toys[which], self.seed_of[which]


def _features(toys: Toys, u: Float[Tensor, "some draw row"]) -> Float[Tensor, "instance feature row"]:
    """Features from uniform draws: the top `probability` of a draw's interval, stretched to [0, 1], is the value."""
    odds = 1 / toys.probability[..., None]
    value = torch.addcmul(1 - odds, u[:, : toys.n_features], odds)
    for at, group in enumerate(map(list, toys.correlated)):
        off = u[:, None, toys.n_features + at] < 1 - toys.probability[:, group, None]
        value[:, group] = torch.where(off, -1.0, u[:, group])
    for group in map(list, toys.anticorrelated):
        p = toys.probability[:, group, None]
        within = (u[:, group[:1]] - (p.cumsum(1) - p)) / p  # consecutive stretches of one draw
        value[:, group] = torch.where(within < 1, within, -1.0)
    return torch.where(value > 0, 2 * value - 1, 0.0) if toys.kind.signed else value.relu_()


@dataclass(frozen=True)
class Exact:
    """The expected loss itself: every combination of features off or at Gauss-Legendre nodes, with its probability.

    For few features: rows are (nodes + 1)^n, with twice the nodes where features are signed. Exact for linear models;
    kinks of the ReLU leave an error that falls with the square of the nodes or faster. Random models of two features:
    at most 4e-3 of the loss at 6 nodes, 7e-4 at 10, 1e-4 at 40. Weights fit themselves to few nodes (up to 1e-2 at
    10), so train with few and then go on with many.
    """

    nodes: int = 10
    """Nodes along each feature."""

    def __post_init__(self):
        if self.nodes < 1:
            raise ValueError(f"{self.nodes} nodes are no quadrature; give at least 1")

    def n_rows(self, toys: Toys) -> int:
        """Combinations."""
        counts = [self._n_values(toys) + 1] * (toys.n_features - sum(map(len, toys.correlated + toys.anticorrelated)))
        counts += [self._n_values(toys) ** len(group) + 1 for group in toys.correlated]
        counts += [self._n_values(toys) * len(group) + 1 for group in toys.anticorrelated]
        return reduce(int.__mul__, counts, 1)

    def _n_values(self, toys: Toys) -> int:
        return self.nodes * (2 if toys.kind.signed else 1)

    def stream(self, toys: Toys, which: Tensor) -> "RowStream":
        """The same weighted rows at every step. Raises ValueError where there are over 2^20."""
        n_rows = self.n_rows(toys)
        if n_rows > MOST_ROWS:
            raise ValueError(
                f"{self.nodes} nodes for {toys.n_features} features make {n_rows} rows, and {MOST_ROWS} is the most; "
                "use fewer nodes or train on Samples()"
            )
        parts = [_solo(toys, i, self._rule(toys)) for i in _alone(toys)]
        parts += [_together(toys, group, self._rule(toys)) for group in toys.correlated]
        parts += [_by_turns(toys, group, self._rule(toys)) for group in toys.anticorrelated]
        return RowStream(reduce(_combined, parts))

    def _rule(self, toys: Toys) -> tuple[Tensor, Tensor]:
        """Values of a feature that is on, and their shares."""
        node, share = np.polynomial.legendre.leggauss(self.nodes)
        value = torch.tensor((node + 1) / 2, dtype=torch.float32)
        weight = torch.tensor(share / 2, dtype=torch.float32)
        if toys.kind.signed:
            value, weight = torch.cat([-value, value]), torch.cat([weight, weight]) / 2
        return value.to(toys.seed.device), weight.to(toys.seed.device)


def _alone(toys: Toys) -> Iterator[int]:
    grouped = {feature for group in toys.correlated + toys.anticorrelated for feature in group}
    return (feature for feature in range(toys.n_features) if feature not in grouped)


def _states(toys: Toys, group: tuple[int, ...], on: Tensor, chance: Tensor) -> Rows:
    """All features off, then `on[member, state]` with `chance[instance, state]`."""
    x = torch.zeros(toys.n_features, on.shape[1] + 1, device=on.device)
    x[list(group), 1:] = on
    return Rows(x, torch.cat([(1 - chance.sum(1, keepdim=True)).clamp(min=0), chance], 1))


def _solo(toys: Toys, feature: int, rule: tuple[Tensor, Tensor]) -> Rows:
    return _states(toys, (feature,), rule[0][None], toys.probability[:, [feature]] * rule[1])


def _together(toys: Toys, group: tuple[int, ...], rule: tuple[Tensor, Tensor]) -> Rows:
    value = torch.cartesian_prod(*[rule[0]] * len(group)).reshape(-1, len(group)).T
    share = torch.cartesian_prod(*[rule[1]] * len(group)).reshape(-1, len(group)).prod(1)
    return _states(toys, group, value, toys.probability[:, group[:1]] * share)


def _by_turns(toys: Toys, group: tuple[int, ...], rule: tuple[Tensor, Tensor]) -> Rows:
    value = torch.kron(torch.eye(len(group), device=rule[0].device), rule[0][None])
    chance = (toys.probability[:, list(group), None] * rule[1]).flatten(1)
    return _states(toys, group, value, chance)


def _combined(a: Rows, b: Rows) -> Rows:
    """Every state of the one with every state of the other, which is of other features."""
    assert a.weight is not None
    assert b.weight is not None
    x = (a.x[:, :, None] + b.x[:, None]).flatten(1)
    return Rows(x, (a.weight[:, :, None] * b.weight[:, None]).flatten(1))


@dataclass(frozen=True, eq=False)
class Finite:
    """The same samples at every step: full batches of a data set, for memorisation."""

    x: Float[Tensor, "row feature"] | Float[Tensor, "instance row feature"]
    """One sample a row; an instance axis gives each instance its own."""

    def n_rows(self, toys: Toys) -> int:
        """Samples."""
        return self.x.shape[-2]

    def stream(self, toys: Toys, which: Tensor) -> "RowStream":
        """All samples at every step. Raises ValueError for shapes that do not fit."""
        of_each = self.x.ndim == 3
        if self.x.shape[-1] != toys.n_features or not self.x.shape[-2]:
            raise ValueError(f"data of shape {list(self.x.shape)} for {toys.n_features} features; give [row, feature]")
        if of_each and len(self.x) <= int(which.max()):
            raise ValueError(f"data for {len(self.x)} instances, and there are more than {int(which.max())}")
        x = (self.x[which.to(self.x.device)] if of_each else self.x).to(toys.seed.device)
        return RowStream(Rows(x.mT.contiguous(), None))


class RowStream:
    """The same rows at every step."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def rows(self) -> Rows:
        """The rows."""
        return self._rows

    def keep(self, which: Tensor) -> None:
        """Go on for some of the instances."""
        x, weight = self._rows.x, self._rows.weight
        self._rows = Rows(x[which] if x.ndim == 3 else x, None if weight is None else weight[which])
