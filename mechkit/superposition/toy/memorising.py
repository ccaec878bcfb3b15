"""Toys on a finite data set: they memorise a few samples and learn features of many, with double descent between.

>>> found = memorise([3, 200], n_features=50, probability=0.1, n_seeds=2, n_steps=20)
>>> found.test_loss.shape, [h.shape for h in found.hidden]
(torch.Size([2, 2]), [torch.Size([2, 3, 2]), torch.Size([2, 200, 2])])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mechkit.core.progress import progress
from mechkit.superposition.measures import dimensionality
from mechkit.superposition.toy.data import Finite, Samples
from mechkit.superposition.toy.toys import Toys, instances
from mechkit.superposition.toy.training import train
from mechkit.superposition.toy.weights import Rows, Weights, losses


@dataclass(frozen=True, eq=False)
class Memorised:
    """Toys by size of the data set they were trained on, and seed."""

    sizes: tuple[int, ...]
    """Samples in each data set."""
    train_loss: Float[Tensor, "size seed"]
    """Mean squared error of a sample of the data set, summed over features."""
    test_loss: Float[Tensor, "size seed"]
    """The same on samples that were not in it."""
    weights: tuple[Weights, ...]
    """Parameters by size; instances are seeds."""
    hidden: tuple[Tensor, ...]
    """Hidden vectors of the data set's samples, [seed, row, hidden], by size."""

    def best(self, size: int) -> int:
        """Seed of the lowest loss on its own data at a size: the one that found the best arrangement."""
        return int(self.train_loss[self.sizes.index(size)].argmin())

    def feature_dimensionality(self) -> list[Tensor]:
        """D_i of the features, [seed, feature], by size."""
        return [dimensionality(weights.W.mT) for weights in self.weights]

    def sample_dimensionality(self) -> list[Tensor]:
        """D of the data set's samples, [seed, row], by size: |h_i|^2 / sum_j (u_i . h_j)^2 with u_i = h_i / |h_i|."""
        return [dimensionality(hidden) for hidden in self.hidden]

    def frame(self) -> pd.DataFrame:
        """A row per size: losses of the best seed and dimensions of its samples and features that are not zero."""
        rows = []
        samples, features = self.sample_dimensionality(), self.feature_dimensionality()
        for at, size in enumerate(self.sizes):
            seed = self.best(size)
            row = {"size": size, "train_loss": self.train_loss[at, seed], "test_loss": self.test_loss[at, seed]}
            row |= {"mean_test_loss": self.test_loss[at].mean(), "sample_dimensionality": samples[at][seed].mean()}
            row |= {"largest_feature_dimensionality": features[at][seed].max()}
            rows.append({name: float(value) for name, value in row.items()})
        return pd.DataFrame(rows).astype({"size": int})


def sparse_samples(
    n_rows: int, n_features: int, probability: float, seed: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "row feature"]:
    """Sparse samples of length 1 (0 where no feature is on): each feature on with `probability`, then uniform.

    Source: Henighan et al. 2023, Superposition, Memorization, and Double Descent (their data).
    """
    toys = instances(n_features, 1, probability=probability, seed=seed).to(device)
    return normalize(Samples(n_rows).stream(toys, toys.seed).rows().x[0].T.contiguous(), dim=1)


@torch.no_grad()
def memorise(
    sizes: Sequence[int],
    *,
    n_features: int = 10_000,
    d_hidden: int = 2,
    probability: float = 0.001,
    n_seeds: int = 5,
    n_steps: int = 50_000,
    weight_decay: float = 0.01,
    n_test: int = 2000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Memorised:
    """ReLU-output toys trained on whole data sets of each size, from several seeds, each with a data set of its own.

    The settings left out are the paper's: features on 0.1 % of the time, samples of length 1, full batches, AdamW
    with a rate that rises to 1e-3 in the first twentieth of the steps and falls to 0 as a cosine.
    Cost: n_steps passes over all samples of all sizes and seeds. Raises ValueError for an empty size.
    Source: Henighan et al. 2023.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes are {list(sizes)}; each data set needs at least one sample")
    toys = instances(n_features, d_hidden, probability=probability, seed=range(seed, seed + n_seeds)).to(device)
    unseen = sparse_samples(n_test, n_features, probability, seed + n_seeds, device)
    found = []
    for size in progress(list(sizes), "sizes of the data set"):
        data = torch.stack([sparse_samples(size, n_features, probability, one, device) for one in toys.seed.tolist()])
        trained = train(
            toys, Finite(data), n_steps=n_steps, warmup=n_steps // 20, shape="cosine", weight_decay=weight_decay,
            window=max(1, n_steps // 50), label=f"{size} samples",
        ).weights  # fmt: skip
        test, own = (_loss(toys, trained, x) for x in (unseen, data))
        found.append((own, test, trained, data @ trained.W.mT))
    own, test, weights, hidden = zip(*found, strict=True)
    return Memorised(tuple(sizes), torch.stack(own).cpu(), torch.stack(test).cpu(), weights, hidden)


def _loss(toys: Toys, weights: Weights, x: Tensor) -> Float[Tensor, "seed"]:
    """Mean loss on samples, a seed at a time."""

    def of(seed: int) -> Tensor:
        alone = slice(seed, seed + 1)
        rows = Rows((x[seed] if x.ndim == 3 else x).T, None)
        return losses(toys.kind, weights[alone], rows, toys.importance[alone])

    return torch.cat([of(seed) for seed in range(len(toys))])
