"""Which features fire on which tokens: an SAE's activations that are not 0, without the many that are.

Tokens are encoded a few at a time, and only firings outlive the few, so that activations `[token, feature]` never exist
whole. SAEs that keep the k largest say which these are, and nothing is searched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.features.reading import own_part

AT_ONCE = {"cpu": 1 << 21}
"""Activations encoded together: on a CPU as many as its cache holds, elsewhere `AT_ONCE_ELSEWHERE`."""
AT_ONCE_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class Fired:
    """Firings on some tokens, token after token, and by feature on each."""

    token: Int[Tensor, "firing"]
    """Which of the tokens."""
    feature: Int[Tensor, "firing"]
    """The feature that fires."""
    value: Float[Tensor, "firing"]
    """Its activation, in float32."""

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, chosen: Tensor) -> "Fired":
        return Fired(self.token[chosen], self.feature[chosen], self.value[chosen])

    @classmethod
    def joined(cls, parts: "list[Fired]", n_tokens: list[int]) -> "Fired":
        """Firings of several groups of tokens, whose sizes are given, as those of all of them in a row."""
        first = np.cumsum([0, *n_tokens[:-1]]).tolist()
        token = torch.cat([part.token + start for part, start in zip(parts, first, strict=True)])
        return cls(token, torch.cat([part.feature for part in parts]), torch.cat([part.value for part in parts]))


@torch.no_grad()
def fired(sae, x: Float[Tensor, "row pos ..."], real: Bool[Tensor, "row pos"]) -> Fired:
    """Firings of an SAE's features on every real token, row after row. `x` is what lies at its hook."""
    x = own_part(sae, x)
    if sae.cfg.architecture() == "temporal":  # reads a token's context as well
        return nonzero(sae.encode(x)[real])
    x = x.flatten(0, 1) if bool(real.all()) else x[real]
    few = x.split(max(1, AT_ONCE.get(x.device.type, AT_ONCE_ELSEWHERE) // sae.cfg.d_sae))
    with sparse(sae):
        parts = [nonzero(sae.encode(one)) for one in few]
    return parts[0] if len(parts) == 1 else Fired.joined(parts, [len(one) for one in few])


@contextmanager
def sparse(sae) -> Iterator[None]:
    """Let an SAE of the k largest give these alone, where it can; any other is left as it is."""
    own: Any = getattr(sae, "activation_fn", None)
    if not hasattr(own, "use_sparse_activations"):
        yield
        return
    before, own.use_sparse_activations = own.use_sparse_activations, True
    try:
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # they hold, and unsaid PyTorch warns of them
            yield
    finally:
        own.use_sparse_activations = before


def nonzero(active: Float[Tensor, "token feature"]) -> Fired:
    """The activations that are not 0, of a dense or a sparse tensor."""
    if active.is_sparse:
        return _of_sparse(active)
    width = active.shape[1]
    if active.device.type != "cpu":
        flat = active.flatten().nonzero()[:, 0]
        token = flat.div(width, rounding_mode="floor")
    else:  # NumPy looks through a mask ten times as fast
        mask = active.numpy() != 0 if active.dtype == torch.float32 else (active != 0).numpy()
        found = np.flatnonzero(mask)
        flat, token = torch.from_numpy(found), torch.from_numpy(found // width)
    return Fired(token, flat - token * width, active.flatten()[flat].float())


def _of_sparse(active: Tensor) -> Fired:
    token, feature = active._indices()
    value = active._values()
    order = (token * active.shape[1] + feature).argsort()
    order = order[value[order] != 0]
    return Fired(token[order], feature[order], value[order].float())
