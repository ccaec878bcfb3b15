"""How many facts m neurons hold: MLPs trained on k facts, for many k at once.

Every pair of a first and a last name is a row. k of them are facts with one of several attributes, the others must
say nothing, so that no name alone gives an answer away: that takes an AND for each fact.

>>> found = capacity([2, 4], [4, 16], n_names=8, n_seeds=2, n_steps=5)
>>> found.accuracy.shape
torch.Size([2, 2, 2])
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from mechkit.core.progress import progress
from mechkit.superposition.toy.facts import ACTIVATIONS, directions, excess

REPORTED = 50
"""Steps between reports of progress."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """Trained MLPs by neurons, facts and seed."""

    neurons: tuple[int, ...]
    """Neurons of each MLP, m."""
    facts: tuple[int, ...]
    """Facts it was trained on, k."""
    accuracy: Float[Tensor, "neuron fact seed"]
    """Share of its facts for which the right attribute wins, over silence too; 0 for an MLP that says nothing."""
    silence: Float[Tensor, "neuron fact seed"]
    """Share of the other pairs of names for which silence wins."""
    excess: Float[Tensor, "neuron fact seed"]
    """Median over facts of the non-linear excess of the right attribute's logit, as a share of what both names give."""

    def held(self, level: float = 0.5) -> Float[Tensor, "neuron"]:
        """Facts at which mean accuracy falls to `level`, straight lines between in log k.

        NaN where accuracy starts below it, infinite where it stays above.
        """
        return torch.tensor([_crossing(self.facts, curve, level) for curve in self.accuracy.mean(2).tolist()])

    def frame(self) -> pd.DataFrame:
        """A row per number of neurons and facts: means over seeds."""
        table = {"accuracy": self.accuracy, "silence": self.silence, "excess": self.excess}
        places = [(m, k) for m in self.neurons for k in self.facts]
        made = pd.DataFrame(places, columns=["neurons", "facts"])
        return made.assign(**{name: values.mean(2).flatten().numpy() for name, values in table.items()})


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What each instance is to know."""

    names: Float[Tensor, "name d_model"]
    """Directions of the first names, then of the last names."""
    answer: Int64[Tensor, "instance pair"]
    """Attribute of each pair of names, counted from 1; 0 for those that are no fact."""
    n_attributes: int
    """Attributes there are."""

    def to(self, device) -> "Knowledge":
        """The same on another device."""
        return Knowledge(self.names.to(device), self.answer.to(device), self.n_attributes)

    @property
    def share(self) -> Float[Tensor, "instance pair"]:
        """Weight of each pair in the loss: half for the facts, half for the others."""
        fact = (self.answer > 0).float()
        return 0.5 * fact / fact.sum(1, keepdim=True) + 0.5 * (1 - fact) / (1 - fact).sum(1, keepdim=True)


def capacity(
    neurons: Sequence[int],
    facts: Sequence[int],
    *,
    n_names: int = 32,
    n_attributes: int = 8,
    d_model: int | None = None,
    n_seeds: int = 3,
    n_steps: int = 2000,
    learning_rate: float = 0.02,
    activation: str = "relu",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Capacity:
    """MLPs of each number of neurons trained on each number of facts, all facts and seeds of one width in one batch.

    Facts are random pairs of `n_names` first and as many last names, with random attributes. Names are orthonormal,
    or random directions where `d_model` is below 2 n_names. Adam on the cross-entropy over attributes and silence,
    facts and other pairs weighing the same, the rate falling to 0 as a cosine.
    Cost: n_steps passes over n_names^2 pairs of every MLP. Raises ValueError for more facts than pairs leave room
    for, an unknown activation, or counts below 1.
    Source: the toy of 3Blue1Brown 2024 with m below k neurons; excess as in Nanda et al. 2023, Fact Finding.
    """
    n_pairs = n_names**2
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    if not neurons or not facts or min(*neurons, *facts, n_attributes, n_seeds, n_steps) < 1:
        raise ValueError(
            f"neurons {list(neurons)} and facts {list(facts)} must be given and, as all counts, at least 1"
        )
    if max(facts) >= n_pairs:
        raise ValueError(f"{max(facts)} facts of {n_pairs} pairs of names leave none that is no fact; give more names")
    known = _knowledge(facts, n_names, n_attributes, d_model or 2 * n_names, range(seed, seed + n_seeds)).to(device)
    found = [
        _trained(known, m, n_steps, learning_rate, activation, seed)
        for m in progress(list(neurons), "numbers of neurons")
    ]
    shape = (len(neurons), len(facts), n_seeds)
    return Capacity(
        tuple(neurons), tuple(facts), *(torch.stack(part).view(shape).cpu() for part in zip(*found, strict=True))
    )


def _crossing(facts: Sequence[int], curve: Sequence[float], level: float) -> float:
    """Where a curve first falls below `level`, a straight line in log k between its points."""
    below = next((at for at, value in enumerate(curve) if value < level), None)
    if below is None or below == 0:
        return math.inf if below is None else math.nan
    (k, high), (k_next, low) = ((facts[at], curve[at]) for at in (below - 1, below))
    return k * (k_next / k) ** ((high - level) / (high - low))


def _knowledge(facts: Sequence[int], n_names: int, n_attributes: int, d_model: int, seeds: Sequence[int]) -> Knowledge:
    """Facts of each number and seed; of one seed, a larger number holds the smaller's facts."""
    names = directions(2 * n_names, d_model, torch.Generator().manual_seed(seeds[0]))
    answer = torch.zeros(len(facts), len(seeds), n_names**2, dtype=torch.int64)
    for at, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n_names**2, generator=generator)
        drawn = torch.randint(1, n_attributes + 1, (n_names**2,), generator=generator)
        for row, k in enumerate(facts):
            answer[row, at, order[:k]] = drawn[order[:k]]
    return Knowledge(names, answer.flatten(0, 1), n_attributes)


class _Nets:
    """MLPs of m neurons, one for each instance, in training."""

    def __init__(self, known: Knowledge, m: int, activation: str, seed: int):
        n, d, n_logits = len(known.answer), known.names.shape[1], 1 + known.n_attributes
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, size: float) -> Tensor:
            return (size * torch.randn(n, *shape, generator=generator)).to(known.names.device).requires_grad_()

        self.W_in, self.b_in = drawn(m, d, size=1.0), drawn(m, size=0.1)
        self.W_out, self.b_out = drawn(m, n_logits, size=1 / math.sqrt(m)), drawn(n_logits, size=0.0)
        self.names, self.act = known.names, ACTIVATIONS[activation]

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.W_in, self.b_in, self.W_out, self.b_out]

    def answers(self) -> Float[Tensor, "instance pair answer"]:
        """Logits of silence and of each attribute, for every pair of names."""
        first, last = (self.names @ self.W_in.mT).chunk(2, dim=1)
        read = (first[:, :, None] + last[:, None]).flatten(1, 2) + self.b_in[:, None]
        return torch.baddbmm(self.b_out[:, None], self.act(read), self.W_out)


@torch.enable_grad()
def _trained(known: Knowledge, m: int, n_steps: int, learning_rate: float, activation: str, seed: int):
    """Accuracy, silence and median excess of every instance after training MLPs of m neurons."""
    nets = _Nets(known, m, activation, seed)
    adam = torch.optim.Adam(nets.parameters(), learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    for start in progress(range(0, n_steps, REPORTED), f"{m} neurons"):
        for _ in range(start, min(start + REPORTED, n_steps)):
            wrong = cross_entropy(nets.answers().flatten(0, 1), known.answer.flatten(), reduction="none")
            adam.zero_grad()
            (wrong * known.share.flatten()).sum().backward()
            adam.step()
            rate.step()
    with torch.no_grad():
        return _measured(nets, known)


def _measured(nets: _Nets, known: Knowledge) -> tuple[Tensor, Tensor, Tensor]:
    """Accuracy on facts, share of other pairs met with silence, excess."""
    logits = nets.answers()
    right, fact = logits.argmax(2) == known.answer, known.answer > 0
    share = [(right & some).sum(1) / some.sum(1) for some in (fact, ~fact)]
    return share[0], share[1], _excess(logits, known.answer)


def _excess(logits: Float[Tensor, "instance pair answer"], answer: Tensor) -> Float[Tensor, "instance"]:
    """Median over facts of the excess of the right attribute's logit, over what both names change it by.

    Without a name means the mean over all names in its place.
    """
    side = math.isqrt(logits.shape[1])
    grid = logits.unflatten(1, (side, side))
    means = {"both": (), "first": (2,), "last": (1,), "neither": (1, 2)}
    table = {name: grid.mean(over, keepdim=True) if over else grid for name, over in means.items()}
    own = {
        name: effect.expand_as(grid).flatten(1, 2).gather(2, answer[..., None])[..., 0]
        for name, effect in table.items()
    }
    share = excess(own) / (own["both"] - own["neither"])
    return torch.where(answer > 0, share, math.nan).nanmedian(1).values
