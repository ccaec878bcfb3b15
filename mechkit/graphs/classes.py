"""What an operand plot shows: the class of a feature of an arithmetic model.

A class is a grouping of the (a, b) grid; the share of the plot's variance between its groups says how much of the
feature it explains. Classes are nested (the last digit of the sum is a function of the sum, and of both last
digits), so the coarsest one with at least 0.95 of the best share is taken; below half of the variance it is `other`.

Source: the taxonomy of Ameisen et al. 2025, section "Addition"; the selection rule is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.graphs.graph import Meaning

NEARLY_BEST = 0.95
"""Share of the best grouping's share that a coarser one needs."""

EXPLAINED = 0.5
"""Share of the variance below which a feature is `other`."""


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


def _numbers(values: Sequence[int]) -> str:
    """Numbers with runs joined: `3, 7-9`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(parts[:4]) + (", …" if len(parts) > 4 else "")


def _tens(values: Sequence[int]) -> str:
    """Tens as ranges: 3, 4 is `30–49`."""
    return _numbers([number for ten in values for number in range(10 * ten, 10 * ten + 10)])


def _digits(values: Sequence[int]) -> str:
    pairs = [f"_{value // 10}+_{value % 10}" for value in values]
    return ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def _both_tens(values: Sequence[int]) -> str:
    pairs = [f"{value // 10}_+{value % 10}_" for value in values]
    return ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")


def _residues(modulus: int) -> Grouping:
    return Grouping(
        "modular",
        f"sum mod {modulus}",
        lambda a, b: (a + b) % modulus,
        lambda groups: (
            f"sum ends in {_numbers(groups)}" if modulus == 10 else f"sum mod {modulus} is {_numbers(groups)}"
        ),
    )


def _operand(letter: str, pick: Callable[[Tensor, Tensor], Tensor]) -> list[Grouping]:
    return [
        Grouping(
            "operand",
            f"last digit of {letter}",
            lambda a, b: pick(a, b) % 10,
            lambda g: f"{letter} ends in {_numbers(g)}",
        ),
        Grouping("operand", f"tens of {letter}", lambda a, b: pick(a, b) // 10, lambda g: f"{letter} is {_tens(g)}"),
        Grouping("operand", letter, pick, lambda g: f"{letter} is {_numbers(g)}"),
    ]


@cache
def groupings() -> tuple[Grouping, ...]:
    """All groupings, coarsest (fewest groups) first."""
    modular = [_residues(modulus) for modulus in (2, 5, 10, 25, 50)]
    operands = _operand("a", lambda a, b: a) + _operand("b", lambda a, b: b)
    rest = [
        Grouping("magnitude", "tens of the sum", lambda a, b: (a + b) // 10, lambda g: f"sum is about {_tens(g)}"),
        Grouping("magnitude", "tens of both", lambda a, b: a // 10 * 10 + b // 10, lambda g: f"tens {_both_tens(g)}"),
        Grouping("ones-digit lookup", "last digits of both", lambda a, b: a % 10 * 10 + b % 10, _digits),
        Grouping("sum", "sum", lambda a, b: a + b, lambda g: f"sum is {_numbers(g)}"),
    ]
    return tuple(sorted([*modular, *operands, *rest], key=lambda grouping: len(grid_key(grouping, 100).unique())))


def grid_key(grouping: Grouping, size: int) -> Int[Tensor, "cell"]:
    """Group number of every cell of the grid, row-major."""
    a = torch.arange(size)
    return grouping.key(a[:, None].expand(size, size), a[None].expand(size, size)).flatten()


def variance_shares(plots: Float[Tensor, "feature a b"]) -> Float[Tensor, "grouping feature"]:
    """Share of each plot's variance that lies between the groups of each grouping; 0 for a constant plot."""
    flat = plots.flatten(1).double().T
    flat = flat - flat.mean(0)
    total = flat.square().sum(0)
    shares = []
    for grouping in groupings():
        means, counts = group_means(flat, grid_key(grouping, plots.shape[1]))
        shares.append((means.square() * counts[:, None]).sum(0) / total.clamp_min(1e-12))
    return torch.stack(shares)


def group_means(cells: Float[Tensor, "cell feature"], key: Int[Tensor, "cell"]):
    """Mean of the cells of each group, and how many there are."""
    n = int(key.max()) + 1
    counts = torch.bincount(key, minlength=n).to(cells.dtype)
    sums = torch.zeros(n, cells.shape[1], dtype=cells.dtype).index_add_(0, key, cells)
    return sums / counts.clamp_min(1)[:, None], counts


def classify(plots: Float[Tensor, "feature a b"]) -> list[Meaning]:
    """The class of each plot, with the share of its variance that the class explains and a label in words."""
    shares = variance_shares(plots)
    best = shares.max(0).values
    enough = shares >= NEARLY_BEST * best
    chosen = enough.int().argmax(0).tolist()
    return [_meaning(plots[i], groupings()[g], float(shares[g, i]), float(best[i])) for i, g in enumerate(chosen)]


def _meaning(plot: Float[Tensor, "a b"], grouping: Grouping, share: float, best: float) -> Meaning:
    if float(plot.max()) == float(plot.min()):
        return Meaning("always the same", "other", 0.0)
    means, _ = group_means(plot.flatten()[:, None], grid_key(grouping, plot.shape[0]))
    label = grouping.describe(_active_groups(means[:, 0]))
    if best < EXPLAINED:
        return Meaning(f"mixed; nearest: {label}", "other", share)
    return Meaning(label, grouping.kind, share)


def _active_groups(means: Float[Tensor, "group"]) -> list[int]:
    """Groups whose mean is at least half of the largest, counted from the smallest, strongest first."""
    height = means - means.min()
    order = height.argsort(descending=True, stable=True)
    return [int(i) for i in order if height[i] >= 0.5 * height.max()]
