"""Training of transcoders: sparse features that read an MLP's input and rebuild its output.

SAELens has the transcoder classes and the files, but no trainer for them. `train_transcoder` takes batches of
(input, output) activations from wherever they come and returns a SAELens `JumpReLUTranscoder`.

While training, the batch's `l0 * rows` largest activations are kept, whichever rows they fall in (BatchTopK,
Bussmann et al. 2024), so that hard rows get more features than easy ones; features that have not fired for a while
are set anew on rows that are rebuilt badly. The smallest kept activation, averaged over the
last steps, becomes the threshold of the JumpReLU that the stored transcoder uses.

>>> batches = sample_rows(x, y, n_rows=64, seed=0)
>>> train_transcoder(batches, d_features=32, l0=4, n_steps=5, seed=0).W_enc.shape
torch.Size([128, 32])
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
CROWD, CROWDED = 4.0, 0.4
"""Training starts with this many times the wanted number of features, which is reached at this share of the steps."""
RESAMPLED = 0.7
"""Dead features are set anew until this share of the steps."""
SELECTIVE = 0.7
"""A feature that is set anew on a row fires from this share of its projection on that row upwards."""
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
    learning_rate: float = 4e-3,
    dead_after: int = 100,
    label: str = "training a transcoder",
    metadata: dict[str, Any] | None = None,
):
    """A SAELens `JumpReLUTranscoder` fitted to `batches` with about `l0` active features per row.

    Adam with a cosine schedule on squared error over the output's variance. The first batch fixes the scale and
    should be typical. More features than `l0` are kept at first, so that all of them learn. A feature that has not
    fired for `dead_after` steps is set anew on a row that is rebuilt badly. `metadata` (hook names, model, weights
    hash) is stored with the weights. The global random state is left as it was.

    Cost: n_steps forward and backward passes of the transcoder. Source: Bussmann et al. 2024; resampling as in
    Bricken et al. 2023.
    """
    first = next(batches)
    centre, scale = first[0].mean(0), first[1].std()
    generator = torch.Generator().manual_seed(seed)
    weights = _start(first[0].shape[1], first[1] / scale, d_features, generator)
    optimizer = torch.optim.Adam(weights.tensors(), lr=learning_rate, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    idle = torch.zeros(d_features, device=centre.device)
    threshold = torch.zeros((), device=centre.device)
    for step in progress(range(n_steps), label):
        x, y = next(batches)
        x, y = x - centre, y / scale
        left, active, lowest = _miss(weights, x, y, crowd(step, n_steps) * l0)
        optimizer.zero_grad()
        left.square().mean().backward()
        optimizer.step()
        rate.step()
        idle = torch.where(active, 0, idle + 1)
        threshold = torch.lerp(lowest, threshold, min(THRESHOLD_DECAY, step / (step + 1)))
        with torch.no_grad():
            weights.W_dec.copy_(normalize(weights.W_dec, dim=1))
            if (step + 1) % dead_after == 0 and step < RESAMPLED * n_steps:
                _resample(weights, optimizer, idle >= dead_after, x, y, left, generator)
    return _as_saelens(weights, threshold, centre, scale, metadata or {})


def crowd(step: int, n_steps: int) -> float:
    """How many times the final number of features is kept at `step`: from `CROWD` down to 1, then 1."""
    return 1 + (CROWD - 1) * max(0.0, 1 - step / (CROWDED * n_steps))


def _start(d_in: int, y: Float[Tensor, "row d_out"], d_features: int, generator: torch.Generator) -> Weights:
    directions = normalize(torch.randn(d_features, d_in, generator=generator), dim=1).to(y)
    decoder = normalize(torch.randn(d_features, y.shape[1], generator=generator), dim=1).to(y)
    weights = Weights(directions.T.contiguous(), torch.zeros_like(decoder[:, 0]), decoder, y.mean(0))
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return weights


def _miss(
    weights: Weights, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], l0: float
) -> tuple[Float[Tensor, "row d_out"], Bool[Tensor, "feature"], Float[Tensor, ""]]:
    """What is left of `y`, which features fired, and the smallest activation kept."""
    pre = relu(x @ weights.W_enc + weights.b_enc)
    n_kept = min(round(l0 * len(x)), pre.numel())
    lowest = pre.detach().flatten().kthvalue(pre.numel() - n_kept + 1).values
    kept = pre * (pre >= lowest)
    return y - kept @ weights.W_dec - weights.b_dec, (kept > 0).any(0), lowest


def _resample(
    weights: Weights,
    optimizer: torch.optim.Adam,
    dead: Bool[Tensor, "feature"],
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    left: Float[Tensor, "row d_out"],
    generator: torch.Generator,
) -> None:
    """Give each dead feature a row, drawn in proportion to the share of it that is left: fire there, write that."""
    if not dead.any():
        return
    chance = (left.detach().square().sum(1) / y.square().sum(1)).cpu()
    rows = torch.multinomial(chance, int(dead.sum()), replacement=True, generator=generator).to(x.device)
    length = x[rows].norm(dim=1)
    gain = left.detach()[rows].norm(dim=1) / ((1 - SELECTIVE) * length)
    weights.W_dec[dead] = normalize(left.detach()[rows], dim=1)
    weights.W_enc[:, dead] = (gain / length * x[rows].T).to(weights.W_enc)
    weights.b_enc[dead] = -SELECTIVE * gain * length
    for tensor, part in ((weights.W_dec, dead), (weights.W_enc, (slice(None), dead)), (weights.b_enc, dead)):
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[tensor][moment][part] = 0


def _as_saelens(
    weights: Weights,
    threshold: Float[Tensor, ""],
    centre: Float[Tensor, "d_in"],
    scale: Float[Tensor, ""],
    metadata: dict[str, Any],
):
    """The same function of inputs and outputs as they come, with `centre` and `scale` folded in."""
    from sae_lens import JumpReLUTranscoder, JumpReLUTranscoderConfig

    d_in, d_features = weights.W_enc.shape
    cfg = JumpReLUTranscoderConfig(
        d_in=d_in, d_sae=d_features, d_out=weights.W_dec.shape[1], apply_b_dec_to_input=False, device="cpu"
    )
    for key, value in metadata.items():
        cfg.metadata[key] = value
    with torch.random.fork_rng():
        transcoder = JumpReLUTranscoder(cfg)
    values = {
        "W_enc": scale * weights.W_enc,
        "b_enc": scale * (weights.b_enc - centre @ weights.W_enc),
        "W_dec": weights.W_dec,
        "b_dec": scale * weights.b_dec,
        "threshold": (scale * threshold).expand(d_features),
    }
    transcoder.load_state_dict({name: value.detach().cpu() for name, value in values.items()})
    return transcoder
