"""Training of transcoders: sparse features that read an MLP's input and rebuild its output.

SAELens has the transcoder classes and the files, but no trainer for them. `train_transcoder` takes batches of
(input, output) activations from wherever they come and returns a SAELens `JumpReLUTranscoder`.

While training, the batch's `l0 * rows` largest activations are kept, whichever rows they fall in (BatchTopK,
Bussmann et al. 2024), so that hard rows get more features than easy ones; features that have not fired for a while
learn to rebuild what is left over (Gao et al. 2024, section 2.4). The smallest kept activation, averaged over the
last steps, becomes the threshold of the JumpReLU that the stored transcoder uses.

>>> batches = sample_rows(x, y, n_rows=2048, seed=0)
>>> transcoder = train_transcoder(batches, d_features=768, l0=16, n_steps=2000, seed=0)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, relu

from mechkit.core.progress import progress

Rows = tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]
"""Matching inputs and outputs of an MLP."""
AUXILIARY_WEIGHT = 1 / 32
"""Weight of the loss that revives dead features (Gao et al. 2024)."""
THRESHOLD_DECAY = 0.99
"""Memory of the running threshold, per step."""


@dataclass
class Weights:
    """The parameters of a transcoder in training; decoder rows have length 1."""

    W_enc: Float[Tensor, "d_in feature"]
    """Directions each feature reads."""
    b_enc: Float[Tensor, "feature"]
    """What is added to each pre-activation."""
    W_dec: Float[Tensor, "feature d_out"]
    """Unit directions each feature writes."""
    b_dec: Float[Tensor, "d_out"]
    """What is written whatever the features do."""

    def tensors(self) -> list[Tensor]:
        """The four, in the order of the fields."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


def sample_rows(
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    *,
    n_rows: int,
    seed: int,
    weight: Float[Tensor, "row"] | None = None,
) -> Iterator[Rows]:
    """Endless batches of `n_rows` rows of stored activations, drawn with replacement in proportion to `weight`."""
    generator = torch.Generator().manual_seed(seed)
    cumulative = (torch.ones(len(x)) if weight is None else weight).double().cumsum(0)
    while True:
        chance = torch.rand(n_rows, generator=generator, dtype=torch.float64) * cumulative[-1]
        rows = torch.searchsorted(cumulative, chance).clamp(max=len(x) - 1).to(x.device)
        yield x[rows], y[rows]


def train_transcoder(
    batches: Iterator[Rows],
    *,
    d_features: int,
    l0: float | int,
    n_steps: int,
    seed: int,
    learning_rate: float = 2e-3,
    dead_after: int = 200,
    label: str = "training a transcoder",
    metadata: dict[str, Any] | None = None,
):
    """A SAELens `JumpReLUTranscoder` fitted to `batches` with about `l0` active features per row.

    Adam with a cosine schedule on squared error over the output's variance. A feature is dead after `dead_after`
    steps without firing. `metadata` (hook names, model, weights hash) is stored with the weights. The global random
    state is left as it was.

    Cost: n_steps forward and backward passes of the transcoder. Source: Bussmann et al. 2024; Gao et al. 2024.
    """
    first = next(batches)
    weights = _start(first, d_features, seed)
    optimizer = torch.optim.Adam(weights.tensors(), lr=learning_rate, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    scale = first[1].var(0).sum()
    idle = torch.zeros(d_features, device=first[0].device)
    threshold = torch.zeros((), device=first[0].device)
    for step in progress(range(n_steps), label):
        x, y = next(batches)
        loss, active, lowest = _loss(weights, x, y, l0, idle > dead_after)
        optimizer.zero_grad()
        (loss / scale).backward()
        optimizer.step()
        rate.step()
        with torch.no_grad():
            weights.W_dec.copy_(normalize(weights.W_dec, dim=1))
            idle = torch.where(active, 0, idle + 1)
            keep = min(THRESHOLD_DECAY, step / (step + 1))
            threshold = keep * threshold + (1 - keep) * lowest
    return _as_saelens(weights, threshold, metadata or {})


def _start(rows: Rows, d_features: int, seed: int) -> Weights:
    x, y = rows
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(d_features, x.shape[1], generator=generator), dim=1).to(x)
    decoder = normalize(torch.randn(d_features, y.shape[1], generator=generator), dim=1).to(y)
    gain = y.std() / x.std()
    weights = Weights(gain * directions.T.contiguous(), torch.zeros_like(decoder[:, 0]), decoder, y.mean(0))
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return weights


def _loss(
    weights: Weights,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    l0: float | int,
    dead: Bool[Tensor, "feature"],
) -> tuple[Float[Tensor, ""], Bool[Tensor, "feature"], Float[Tensor, ""]]:
    """Squared error per row, which features fired, and the smallest activation kept."""
    pre = relu(x @ weights.W_enc + weights.b_enc)
    n_kept = round(l0 * len(x))
    lowest = pre.detach().flatten().kthvalue(pre.numel() - n_kept + 1).values
    kept = pre * (pre >= lowest)
    left = y - kept @ weights.W_dec - weights.b_dec
    loss = left.square().sum(1).mean()
    if dead.any():
        revived = pre[:, dead] @ weights.W_dec[dead]
        loss = loss + AUXILIARY_WEIGHT * (left.detach() - revived).square().sum(1).mean()
    return loss, (kept > 0).any(0), lowest


def _as_saelens(weights: Weights, threshold: Float[Tensor, ""], metadata: dict[str, Any]):
    from sae_lens import JumpReLUTranscoder, JumpReLUTranscoderConfig

    d_in, d_features = weights.W_enc.shape
    cfg = JumpReLUTranscoderConfig(
        d_in=d_in, d_sae=d_features, d_out=weights.W_dec.shape[1], apply_b_dec_to_input=False, device="cpu"
    )
    for key, value in metadata.items():
        cfg.metadata[key] = value
    with torch.random.fork_rng():
        transcoder = JumpReLUTranscoder(cfg)
    values = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), (t.detach().cpu() for t in weights.tensors()), strict=True))
    values["threshold"] = threshold.detach().cpu().expand(d_features).contiguous()
    transcoder.load_state_dict(values)
    return transcoder
