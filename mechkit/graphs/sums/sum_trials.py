"""What a model answers when kinds of features are suppressed, or given the activity they have on another sum.

trials, digits = trials_of(features, kinds_of(features), sums, seed=0)
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.meaning.classes import EXPLAINED, groupings, variance_shares
from mechkit.graphs.meaning.meanings import PATHWAYS
from mechkit.graphs.nodes import token_text
from mechkit.graphs.sums.sum_features import Asked, SumFeatures, Sums
from mechkit.graphs.truth.suppression import NEAR

DRAWS = 5
"""Random draws that a control averages over."""

OUTCOMES = {
    "right": lambda a, t: a == t,
    "last digit kept": lambda a, t: a % 10 == t % 10,
    "size kept": lambda a, t: (a - t).abs() <= NEAR,
}
"""What is counted of the answers: right; the right last digit; off by at most `NEAR`."""


@dataclass(frozen=True)
class Trial:
    """One intervention on all sums, and its control."""

    title: str
    """What was done."""
    n_features: float
    """Features changed a sum, on average."""
    shares: dict[str, float]
    """Share of sums with each outcome."""
    control: dict[str, float] = field(default_factory=dict)
    """The same with as many features at random; empty where there is no control."""
    follows: float | None = None
    """Share of sums whose answer does what the swap predicts; None where nothing was swapped."""
    follows_control: float | None = None
    """The same of the control."""


def kinds_of(features: SumFeatures) -> dict[str, Bool[Tensor, "node"]]:
    """Which features each intervention is on. At the last token, but for those of one operand's last digit."""
    shares, names = variance_shares(features.plots), [grouping.name for grouping in groupings()]
    digit = {letter: shares[names.index(f"last digit of {letter}")] >= EXPLAINED for letter in "ab"}
    return {
        "last digit of a (_6-like)": digit["a"],
        "last digit of b (_9-like)": digit["b"],
        "lookups of both last digits": features.which(lambda meaning: meaning.group == "ones-digit lookup"),
        "magnitude": features.which(PATHWAYS["magnitude features"]),
        "all that know the tens": features.which(PATHWAYS["all features of the tens"]),
        "functions of the sum": features.which(lambda meaning: meaning.group == "sum"),
    }


def trials_of(
    features: SumFeatures, kinds: Mapping[str, Bool[Tensor, "node"]], sums: Sums, seed: int
) -> tuple[list[Trial], Int[np.ndarray, "asked answered"]]:
    """Every suppression and swap with its control; and how often each last digit was answered for each that the lookups
    of the other sum have.

    Unit: sums. Cost: `1 + DRAWS` batched passes for each of the trials.
    """
    nothing = features.suppress(sums, torch.zeros(len(features.nodes), dtype=torch.bool))
    trials = [Trial("nothing", 0.0, outcomes(nothing))]
    for scale, words in ((0.0, "suppressed"), (-1.0, "at -1x")):
        for kind, mask in kinds.items():
            own = features.suppress(sums, mask, scale=scale)
            control = features.suppress(sums, mask, scale=scale, draws=DRAWS, seed=seed)
            trials.append(Trial(f"{kind} {words}", own.n_features, outcomes(own), outcomes(control)))
    ones, tens = others(sums, seed)
    swaps = (
        ("lookups of both last digits", ones, lambda a, other: a % 10 == other % 10),
        ("all that know the tens", tens, lambda a, other: (a - other).abs() <= NEAR),
        ("functions of the sum", ones, lambda a, other: a == other),
    )
    digits = np.zeros((10, 10), int)
    for i, (kind, other, does) in enumerate(swaps):
        own = features.swap(sums, other, kinds[kind])
        control = features.swap(sums, other, kinds[kind], draws=DRAWS, seed=seed)
        wanted = torch.tensor([a + b for a, b in other])
        follows = [one.share(lambda a, _, does=does, wanted=wanted: does(a, wanted)) for one in (own, control)]
        trials.append(Trial(f"{kind} swapped", own.n_features, outcomes(own), outcomes(control), *follows))
        if i == 0:
            numbers = own.answers[0] >= 0
            np.add.at(digits, (wanted[numbers] % 10, own.answers[0][numbers] % 10), 1)
    return trials, digits


def outcomes(asked: Asked) -> dict[str, float]:
    """The share of sums with each outcome."""
    return {name: asked.share(test) for name, test in OUTCOMES.items()}


def others(sums: Sums, seed: int) -> tuple[Sums, Sums]:
    """For each sum one whose first operand ends otherwise, and one whose first operand is at least 20 away."""
    draw = random.Random(seed + 1)
    ones = [(a - a % 10 + draw.choice([d for d in range(10) if d != a % 10]), b) for a, b in sums]
    tens = [(10 * draw.choice([t for t in range(10) if abs(t - a // 10) >= 2]) + a % 10, b) for a, b in sums]
    return ones, tens


def interval(share: float, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of `n`. Source: Wilson 1927."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def turned(graph: AttributionGraph, features: SumFeatures, kinds: Mapping[str, Bool[Tensor, "node"]]) -> list[dict]:
    """One sum's likeliest answers with each kind of features turned to -1 times what they are, as in the paper.

    Cost: two passes a kind.
    """
    found, model = [], graph.attribution.frozen.model
    numbers = {node.id: features.numbers.get((node.layer, node.pos, node.index)) for node in graph.attribution.features}
    for kind, mask in kinds.items():
        mine = [node for node, i in numbers.items() if i is not None and bool(mask[i])]
        after = graph.intervene(dict.fromkeys(mine, -1.0)).after if mine else graph.attribution.frozen.capped_logits
        best = after.softmax(-1).topk(4)
        words = [token_text(model, token).strip() for token in best.indices.tolist()]
        answers = [(word, round(float(p), 3)) for word, p in zip(words, best.values, strict=True)]
        found.append({"features": kind, "n": len(mine), "answers": answers})
    return found
