"""How well an SAE stands in for what it reads, on a text: what it misses, what that costs the model, how sparse it is.

    found = sae_quality(model, sae, tokens)
    found.explained_variance, found.recovered, found.l0     # (0.93, 0.98, 16.2)

`dictionaries.fidelity` scores several dictionaries, transcoders of ours among them, on rows of one length; this takes
one SAE of SAELens, rows of any lengths, single heads, and tokens that the SAE was not trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.metrics import loss as loss_metric
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, check_tokens
from mechkit.core.sweep import sweep
from mechkit.features.effects import Put, Reading
from mechkit.features.reading import AT_ONCE, device_of, require_fit

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

DENSE = 0.1
"""Share of the tokens above which a feature counts as dense."""
ROWS = 64
"""Rows of tokens read together, at most."""


@dataclass(frozen=True)
class Quality:
    """What `sae_quality` found."""

    hook: str
    """What the SAE rebuilds."""
    n_features: int
    """How many features it has."""
    explained_variance: float
    """1 minus its squared error over the variance about the mean, both summed over dimensions; 1 is perfect."""
    l0: float
    """Mean number of features that fire on a token."""
    dead: int
    """Features that fire on no token."""
    dense: int
    """Features that fire on more than a tenth of the tokens."""
    loss: float
    """The model's own loss, nats per token."""
    loss_rebuilt: float
    """Its loss with the SAE's reconstruction in place of what it reads."""
    loss_zeroed: float
    """Its loss with zeros there instead."""
    loss_mean: float
    """Its loss with the mean over the text there instead."""
    n_tokens: int
    """Tokens on which losses and variance were measured."""
    n_counted: int
    """Tokens on which `l0`, `dead` and `dense` were counted."""

    @property
    def recovered(self) -> float:
        """Share of the loss that zeros cost which the SAE spares: (zeroed - rebuilt) / (zeroed - own).

        1 is as good as the model, 0 as bad as zeros, below 0 worse; NaN where zeros cost nothing.
        """
        return _share(self.loss, self.loss_rebuilt, self.loss_zeroed)

    @property
    def recovered_mean(self) -> float:
        """The same against the mean, which costs less than zeros: the stricter of the two."""
        return _share(self.loss, self.loss_rebuilt, self.loss_mean)

    def facts(self) -> list[tuple[str, str]]:
        """What it found, in names and values, as a page or a terminal shows it."""
        return [
            ("variance explained", f"{self.explained_variance:.3f}"),
            ("loss recovered, against zeros", f"{self.recovered:.3f}"),
            ("against the mean", f"{self.recovered_mean:.3f}"),
            ("loss of the model, rebuilt, nats", f"{self.loss:.3f}, {self.loss_rebuilt:.3f}"),
            ("with zeros, with the mean", f"{self.loss_zeroed:.3f}, {self.loss_mean:.3f}"),
            ("features per token", f"{self.l0:.1f}"),
            ("dead", f"{self.dead:,} of {self.n_features:,}"),
            (f"dense (over {DENSE:.0%} of tokens)", f"{self.dense:,}"),
            ("measured on, counted on", f"{self.n_tokens:,}, {self.n_counted:,} tokens"),
        ]


def _share(own: float, rebuilt: float, without: float) -> float:
    return (without - rebuilt) / (without - own) if without > own else float("nan")


@torch.no_grad()
def sae_quality(model, sae, tokens: Any, *, ignore: Sequence[int] = ()) -> Quality:
    """How well an SAE (or transcoder) of SAELens stands in for what it reads, on rows of token ids `tokens`.

    Rows may have any lengths from 2 on. On tokens in `ignore` the SAE is left alone: they count for nothing but the
    loss of the tokens after them, and nothing is put in their place.

    Unit: nats per token for losses. Cost: two forward passes as far as the SAE, and a sweep of three runs.
    Raises ValueError for an SAE that does not fit the model, token ids it lacks, and where no row has two tokens.
    """
    require_fit(model, {"sae": sae})
    rows = [[int(token) for token in row] for row in tokens]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError("no row has two tokens; the loss is of tokens from the second on")
    n_firing, tally = torch.zeros(sae.cfg.d_sae, dtype=torch.long), _Tally()
    for _, reading in _readings(model, sae, rows, ignore, range(sae.cfg.d_sae)):
        n_firing += (reading.active != 0)[reading.counted].sum(0).cpu()
        tally.add(*(value[reading.counted].flatten(1).double() for value in (reading.held, reading.rebuilt)))
    if tally.n == 0:
        raise ValueError("every token is one to ignore; give text that the SAE is meant to read")
    losses = _losses(model, sae, rows, ignore, tally.mean)
    return Quality(
        hook=str(sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name),
        n_features=sae.cfg.d_sae,
        explained_variance=tally.explained,
        l0=float(n_firing.sum()) / tally.n,
        dead=int((n_firing == 0).sum()),
        dense=int((n_firing > DENSE * tally.n).sum()),
        **dict(zip(("loss", "loss_rebuilt", "loss_zeroed", "loss_mean"), losses, strict=True)),
        n_tokens=tally.n,
        n_counted=tally.n,
    )


def of_index(index: "FeatureIndex", n_tokens: int = 20_000, seed: int = 0) -> Quality:
    """The quality of an index's SAE: losses and variance on about `n_tokens` tokens of its corpus, in rows drawn at
    random, and `l0`, `dead` and `dense` on the whole of it.

    Cost: as `sae_quality`, on the rows drawn. Raises ValueError as that does, and for another model than the scanned.
    """
    from mechkit.features.questions import model_of, sae_of

    corpus = index.text.rows
    rows, n = [], 0
    for row in np.random.default_rng(seed).permutation(corpus.n_rows):
        if n >= n_tokens:
            break
        rows.append(corpus.tokens[corpus.starts[row] : corpus.starts[row + 1]].tolist())
        n += len(rows[-1])
    found = sae_quality(model_of(index), sae_of(index), rows, ignore=index.manifest["settings"]["ignore"])
    density = index.density
    return replace(
        found,
        l0=float(density.sum()),
        dead=int((density == 0).sum()),
        dense=int((density > DENSE).sum()),
        n_counted=index.n_tokens,
    )


def _readings(
    model, sae, rows: Sequence[Sequence[int]], ignore: Sequence[int], features: Sequence[int]
) -> Iterator[tuple[Prompts, Reading]]:
    """What the SAE makes of the rows, a few of one length at a time."""
    order = sorted(rows, key=len)
    widest = max(1, AT_ONCE // (len(order[-1]) * sae.cfg.d_sae))
    few = min(ROWS, widest)
    groups = [order[i : i + few] for i in range(0, len(order), few)]
    for group in progress(groups, "measuring an SAE"):
        prompts = Prompts.from_tokens(group).to(device_of(model))
        check_tokens(model, prompts)
        yield prompts, Reading.of(model, sae, prompts, features, ignore)


def _losses(model, sae, rows: Sequence[Sequence[int]], ignore: Sequence[int], mean: Float[Tensor, "d"]) -> list[float]:
    """The loss per token of the model: its own, rebuilt, with zeros, with the mean."""
    total, n = torch.zeros(4).double(), 0
    for prompts, reading in _readings(model, sae, rows, ignore, []):
        counted = reading.counted.reshape(*reading.counted.shape, *[1] * (reading.held.ndim - 2))
        instead = torch.zeros_like(reading.held), mean.to(reading.held).reshape(reading.held.shape[2:])
        values = [reading.rebuilt, *(torch.where(counted, one, reading.held) for one in instead)]
        runs = [[], *([Put(reading.site, value)] for value in values)]
        following = torch.tensor(prompts.lengths) - 1
        total += (sweep(model, prompts, runs, loss_metric).scores.cpu().double() * following).sum(1)
        n += int(following.sum())
    return (total / n).tolist()


class _Tally:
    """Sums over tokens, in float64."""

    def __init__(self) -> None:
        self.n, self.missed, self.squares = 0, 0.0, 0.0
        self.total: Tensor | float = 0.0

    def add(self, held: Float[Tensor, "token d"], rebuilt: Float[Tensor, "token d"]) -> None:
        self.n += len(held)
        self.missed += float((rebuilt - held).square().sum())
        self.squares += float(held.square().sum())
        self.total = self.total + held.sum(0)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        return torch.as_tensor(self.total) / self.n

    @property
    def explained(self) -> float:
        return 1 - self.missed / (self.squares - self.n * float(self.mean.square().sum()))
