"""What an operand plot shows: the class of a feature of an arithmetic model.

A class is a grouping of the (a, b) grid; the share of the plot's variance between its groups says how much of the
feature it explains. Classes are nested (the last digit of the sum is a function of the sum, and of both last
digits), so the coarsest one with at least 0.95 of the best share is taken; below half of the variance it is `other`.

Source: the taxonomy of Ameisen et al. 2025, section "Addition"; the selection rule is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.graphs.graph import Meaning

NEARLY_BEST = 0.95
"""Share of the best grouping's share that a coarser one needs."""

EXPLAINED = 0.5
"""Share of the variance below which a feature is `other`."""


PERIODS = (12, 14, 15, 16, 18, 20, 22, 24, 25, 26, 28, 29, 30, 31, 32, 33, 34, 35, 36, 38, 40, 45, 50)
"""Periods of operands that are neither those of digits nor the whole range."""


@dataclass(frozen=True)
class Grouping:
    """One way to group the grid of operands."""

    kind: str
    """Class of the features it explains."""
    name: str
    """What is constant within a group."""
    key: Callable[[Tensor, Tensor], Tensor]
    """Group number of each (a, b)."""
    describe: Callable[[Sequence[int]], str]
    """The feature in words, from the groups it is most active on, strongest first."""
    kind_of: Callable[[Sequence[int]], str] | None = None
    """The class by those groups, where it is not always `kind`."""


def _numbers(values: Sequence[int], modulus: int | None = None) -> str:
    """Numbers with runs joined, `3, 7–9`; around a modulus they may run over the end, `9–1`."""
    ordered = sorted(values)
    if modulus and len(ordered) < modulus:
        start = next(i for i in range(modulus) if (i not in values and (i + 1) % modulus in values))
        ordered = sorted(values, key=lambda value: (value - start - 1) % modulus)
    runs: list[list[int]] = []
    for value in ordered:
        follows = runs and value == (runs[-1][-1] + 1 if not modulus else (runs[-1][-1] + 1) % modulus)
        if follows:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(parts[:5]) + (", …" if len(parts) > 5 else "")


def _range(bins: Sequence[int], width: int | float, modulus: int | None = None) -> str:
    """Bins as the numbers in them, `0–19`; around a modulus they may run over the end."""
    lows = _numbers(bins, modulus).split(", ")
    ends = [(run.split("–")[0], run.split("–")[-1]) for run in lows if run != "…"]
    return ", ".join(f"{round(int(first) * width)}–{round((int(last) + 1) * width) - 1}" for first, last in ends)


def _of_sum(modulus: int) -> Grouping:
    words = {2: lambda g: "sum is " + ("even", "odd")[g[0]], 10: lambda g: f"sum ends in {_numbers(g, 10)}"}
    plain = lambda g: f"sum mod {modulus} is {_numbers(g, modulus)}"  # noqa: E731
    return Grouping("modular", f"sum mod {modulus}", lambda a, b: (a + b) % modulus, words.get(modulus, plain))


def _of_operand(letter: str, pick: Callable[[Tensor, Tensor], Tensor]) -> list[Grouping]:
    return [
        Grouping(
            "operand",
            f"last digit of {letter}",
            lambda a, b: pick(a, b) % 10,
            lambda g: f"{letter} ends in {_numbers(g, 10)}",
        ),
        Grouping(
            "operand",
            f"tens of {letter}",
            lambda a, b: pick(a, b) // 10,
            lambda g: f"{letter} is {_range(g, 10)}",
        ),
        Grouping("operand", letter, pick, lambda g: f"{letter} is {_numbers(g)}"),
    ]


def _of_both(kind: str, name: str, part: Callable[[Tensor], Tensor], n: int, word: Callable) -> Grouping:
    """A function of the same `part` of both operands, which takes `n` values; `word` says a set of them."""

    def describe(groups: Sequence[int]) -> str:
        firsts, seconds = {group // n for group in groups}, {group % n for group in groups}
        some = "" if len(groups) == len(firsts) * len(seconds) else " (some pairs)"
        return f"a {word(sorted(firsts))}, b {word(sorted(seconds))}{some}"

    return Grouping(kind, name, lambda a, b: part(a) * n + part(b), describe)


def _period(period: int) -> Grouping:
    """A function of where both operands are in a period, in ten steps."""

    def word(bins: Sequence[int]) -> str:
        return f"mod {period} in {_range(bins, period / 10, 10)}"

    return _of_both("modular", f"both mod {period}", lambda x: x % period * 10 // period, 10, word)


@cache
def groupings() -> tuple[Grouping, ...]:
    """All groupings, coarsest (fewest groups) first."""
    found = [_of_sum(modulus) for modulus in (2, 5, 10, 20, 25, 50)] + [_period(period) for period in PERIODS]
    found += _of_operand("a", lambda a, b: a) + _of_operand("b", lambda a, b: b)
    lookup = "ones-digit lookup"
    found += [
        _of_both(lookup, "parity of both", lambda x: x % 2, 2, lambda g: "/".join(("even", "odd")[i] for i in g)),
        _of_both(lookup, "both mod 5", lambda x: x % 5, 5, lambda g: f"mod 5 is {_numbers(g, 5)}"),
        _of_both(lookup, "last digits of both", lambda x: x % 10, 10, lambda g: f"ends in {_numbers(g, 10)}"),
        replace(
            _of_both("magnitude", "tens of both", lambda x: x // 10, 10, lambda g: f"is {_range(g, 10)}"),
            kind_of=_tens_kind,
        ),
        Grouping(
            "magnitude",
            "tens of the sum",
            lambda a, b: (a + b) // 10,
            lambda g: f"sum is about {_range(g, 10)}",
            lambda g: "magnitude" if _one_stretch(g) else "modular",
        ),
        Grouping("sum", "sum", lambda a, b: a + b, lambda g: f"sum is {_numbers(g)}"),
    ]
    return tuple(sorted(found, key=lambda grouping: _n_groups(grouping)))


def _one_stretch(numbers: Sequence[int]) -> bool:
    """Whether the numbers follow one another without a gap."""
    return max(numbers) - min(numbers) == len(set(numbers)) - 1


def _tens_kind(groups: Sequence[int]) -> str:
    """Tens of both operands are a magnitude where each is one stretch; tens that come back are periodic."""
    return (
        "magnitude" if _one_stretch([g // 10 for g in groups]) and _one_stretch([g % 10 for g in groups]) else "modular"
    )


def _n_groups(grouping: Grouping) -> int:
    return len(grid_key(grouping, 100).unique())


def grid_key(grouping: Grouping, size: int) -> Int[Tensor, "cell"]:
    """Group number of every cell of the grid, row-major."""
    a = torch.arange(size)
    return grouping.key(a[:, None].expand(size, size), a[None].expand(size, size)).flatten()


def variance_shares(plots: Float[Tensor, "feature a b"]) -> Float[Tensor, "grouping feature"]:
    """Share of each plot's variance that lies between the groups of each grouping; 0 for a constant plot."""
    flat = plots.flatten(1).T
    flat = flat - flat.mean(0)
    total = flat.square().sum(0).clamp_min(1e-12)
    found = (group_means(flat, grid_key(grouping, plots.shape[1])) for grouping in groupings())
    return torch.stack([(means.square() * counts[:, None]).sum(0) / total for means, counts in found])


def group_means(cells: Float[Tensor, "cell feature"], key: Int[Tensor, "cell"]):
    """Mean of the cells of each group, and how many there are. One matrix product: many features go at once."""
    members = torch.nn.functional.one_hot(key).to(cells.dtype)
    counts = members.sum(0)
    return members.T @ cells / counts.clamp_min(1)[:, None], counts


def classify(plots: Float[Tensor, "feature a b"]) -> list[Meaning]:
    """The class of each plot, with the share of its variance that the class explains and a label in words."""
    varied = (plots.flatten(1).amax(1) > plots.flatten(1).amin(1)).nonzero()[:, 0].tolist()
    found = [Meaning("always the same", "other", 0.0, "nothing")] * len(plots)
    if varied:
        for i, meaning in zip(varied, _classify_varied(plots[varied]), strict=True):
            found[i] = meaning
    return found


def _classify_varied(plots: Float[Tensor, "feature a b"]) -> list[Meaning]:
    shares = variance_shares(plots)
    best = shares.max(0).values
    coarseness = torch.tensor([-_n_groups(grouping) for grouping in groupings()])[:, None]
    chosen = (coarseness + shares / 2).masked_fill(shares < NEARLY_BEST * best, -torch.inf).argmax(0)
    found: dict[int, Meaning] = {}
    for g in chosen.unique().tolist():
        grouping, members = groupings()[g], (chosen == g).nonzero()[:, 0].tolist()
        means, _ = group_means(plots[members].flatten(1).T, grid_key(grouping, plots.shape[1]))
        for i, column in zip(members, means.T, strict=True):
            found[i] = _meaning(grouping, column, float(shares[g, i]), float(best[i]))
    return [found[i] for i in range(len(plots))]


def _meaning(grouping: Grouping, means: Float[Tensor, "group"], share: float, best: float) -> Meaning:
    active = _active_groups(means)
    label = grouping.describe(active)
    if best < EXPLAINED:
        return Meaning(f"mixed; nearest: {label}", "other", share, grouping.name)
    kind = grouping.kind if grouping.kind_of is None else grouping.kind_of(active)
    return Meaning(label, kind, share, grouping.name)


def _active_groups(means: Float[Tensor, "group"]) -> list[int]:
    """Groups whose mean is at least half of the largest, counted from the smallest, strongest first."""
    height, order = (means - means.min()).sort(descending=True, stable=True)
    return order[height >= 0.5 * height[0]].tolist()
