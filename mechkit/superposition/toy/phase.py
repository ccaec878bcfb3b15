"""The phase diagram: what becomes of one feature, by its importance and by how often features are on.

n features share n - 1 dimensions. The last one's importance goes along one axis, 1 - S along the other, and each
cell trains several models from different seeds, all of them in one batch, on the exact expected loss.

>>> found = phase_diagram(n_cells=3, n_seeds=2, n_steps=60)
>>> found.loss.shape, found.theory.shape
(torch.Size([3, 3, 2]), torch.Size([3, 3]))
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import max_pool2d

from mechkit.superposition.measures import feature_interference, feature_norms
from mechkit.superposition.toy.data import Exact
from mechkit.superposition.toy.theory import OUTCOMES, phase_losses
from mechkit.superposition.toy.toys import Toys, instances
from mechkit.superposition.toy.training import expected_loss, train
from mechkit.superposition.toy.weights import Weights

COARSE, FINE = 6, 20
"""Nodes while a model finds its way, and while it settles (two features)."""
LEARNED = 0.5
"""A feature counts as learned from this squared norm, and as sharing its dimension from this interference upwards."""


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Trained models by importance of the last feature, probability and seed."""

    importance: Float[Tensor, "row"]
    """Importance of the last feature; the others' is 1."""
    probability: Float[Tensor, "column"]
    """How often each feature is on, 1 - S."""
    loss: Float[Tensor, "row column seed"]
    """Expected loss, best seed first in every cell."""
    norm: Float[Tensor, "row column seed"]
    """Squared norm of the last feature, in the same order."""
    shared: Float[Tensor, "row column seed"]
    """Its interference, sum over others of (u . W_j)^2, in the same order."""
    n_features: int
    """Features that share n_features - 1 dimensions."""

    @property
    def theory(self) -> Int64[Tensor, "row column"]:
        """Number of the outcome of least loss among the closed forms (see `theory.phase_losses`)."""
        rows, columns = torch.broadcast_tensors(self.importance[:, None], self.probability)
        return phase_losses(columns, rows, self.n_features).argmin(-1)

    def outcome(self, best: int = 1) -> Int64[Tensor, "row column"]:
        """Number of what became of the feature, in `OUTCOMES`: the commonest among the `best` models of each cell."""
        norm, shared = self.norm[..., :best], self.shared[..., :best]
        kind = torch.where(norm < LEARNED, 0, torch.where(shared >= LEARNED, 1, 2))
        return torch.stack([(kind == at).sum(-1) for at in range(len(OUTCOMES))], -1).argmax(-1)

    def inside(self, margin: int = 1) -> Bool[Tensor, "row column"]:
        """Cells whose neighbours up to `margin` cells away all have the same outcome in theory."""
        theory = self.theory[None].float()
        most, least = (sign * max_pool2d(sign * theory, 2 * margin + 1, 1, margin) for sign in (1, -1))
        return (most == least)[0]

    def agreement(self, margin: int = 1, best: int = 1) -> float:
        """Share of the cells inside, with that margin, in which trained models and theory have the same outcome."""
        return float((self.outcome(best) == self.theory)[self.inside(margin)].double().mean())

    def frame(self) -> pd.DataFrame:
        """A row per cell: means over all but the worst model, outcomes of the best one and of theory."""
        but_worst = max(1, self.loss.shape[2] - 1)
        rows, columns = torch.broadcast_tensors(self.importance[:, None], self.probability)
        means = {name: getattr(self, name)[..., :but_worst].mean(-1) for name in ("loss", "norm", "shared")}
        words = {"outcome": self.outcome(), "theory": self.theory}
        table = {"importance": rows, "probability": columns, **means, "best_loss": self.loss[..., 0]}
        named = {name: [OUTCOMES[at] for at in found.flatten().tolist()] for name, found in words.items()}
        return pd.DataFrame({name: values.flatten().cpu().numpy() for name, values in table.items()} | named)


def phase_diagram(
    *,
    n_features: int = 2,
    n_cells: int = 60,
    n_seeds: int = 10,
    n_steps: int = 700,
    seed: int = 0,
    device: torch.device | str | None = None,
    memory: int | None = None,
) -> PhaseDiagram:
    """Models trained on the exact expected loss over importances of 0.1 to 10 and probabilities of 1 to 0.01.

    Every cell trains `n_seeds` models of n features in n - 1 dimensions: six sevenths of the steps on few nodes, the
    rest on many. Models of one seed number start alike in every cell. Cost: n_cells^2 n_seeds n_steps passes over
    7^n rows; 36,000 models of two features take about two minutes on two cores.
    Raises ValueError for fewer than two features, cells or steps to split, or no seed.
    Source: Elhage et al. 2022, section 3 (phase change; 10 models a cell, the worst left out).
    """
    if n_features < 2 or n_cells < 2 or n_seeds < 1 or n_steps < 7:
        raise ValueError(
            f"{n_features} features, {n_cells} cells a side, {n_seeds} seeds and {n_steps} steps; a diagram needs at "
            "least 2, 2, 1 and 7"
        )
    toys = phase_toys(n_features, n_cells, range(seed, seed + n_seeds))
    weights = settle(toys, n_steps, device=device, memory=memory)
    return _diagram(toys, weights, n_cells, n_seeds)


def phase_toys(n_features: int, n_cells: int, seeds) -> Toys:
    """The models of all cells: importances of the last feature outermost, then probabilities, then seeds."""
    importance, probability = 10 ** torch.linspace(-1, 1, n_cells), 10 ** torch.linspace(0, -2, n_cells)
    last = importance.repeat_interleave(n_cells * len(seeds))
    weights = torch.ones(len(last), n_features).index_copy_(1, torch.tensor([n_features - 1]), last[:, None])
    p = probability.repeat_interleave(len(seeds)).repeat(n_cells)
    return instances(
        n_features, n_features - 1, probability=p[:, None], importance=weights, seed=list(seeds) * n_cells**2
    )


def settle(toys: Toys, n_steps: int, *, device=None, memory: int | None = None) -> Weights:
    """Weights at a minimum of the expected loss: first on few nodes, which is fast, then on many, which is exact."""
    n_fine = n_steps // 7
    options = {"weight_decay": 0.0, "betas": (0.9, 0.99), "device": device, "memory": memory}
    coarse = train(
        toys, Exact(COARSE), n_steps=n_steps - n_fine, learning_rate=0.1, shape="cosine",
        label="finding the phases", **options,
    )  # fmt: skip
    fine = FINE if toys.n_features == 2 else COARSE + 2
    return train(
        toys, Exact(fine), n_steps=n_fine, learning_rate=0.01, shape="cosine", start=coarse.weights,
        label="settling", **options,
    ).weights  # fmt: skip


def _diagram(toys: Toys, weights: Weights, n_cells: int, n_seeds: int) -> PhaseDiagram:
    grid = (n_cells, n_cells, n_seeds)
    toys, nodes = toys.to(weights.W.device), 40 if toys.n_features == 2 else 12
    loss = expected_loss(toys, weights, nodes).view(grid)
    features = weights.W.mT
    norm = feature_norms(features)[:, -1].square().view(grid)
    shared = feature_interference(features)[:, -1].view(grid)
    order = loss.argsort(-1)
    probability, importance = toys.probability.view(*grid, -1), toys.importance.view(*grid, -1)
    loss, norm, shared = (found.float().gather(-1, order).cpu() for found in (loss, norm, shared))
    rows, columns = importance[:, 0, 0, -1].cpu(), probability[0, :, 0, 0].cpu()
    return PhaseDiagram(rows, columns, loss, norm, shared, toys.n_features)
