"""Transcoders whose features write to several layers, in memory or left on disk.

A `CrossLayerTranscoder` holds the features that read at one layer; what they write to each layer from there on is a
decoder of its own. With one such layer it is a per-layer transcoder. Its matrices may be `Stored`: then encoders are
streamed, and decoders are read for active features only.

    first, *rest = load_transcoders("clt/", model, lazy=True)
    first.writes([12, 40], layer=3).shape           # torch.Size([2, 16])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.dictionaries.stored import Rows, products, rows_of
from mechkit.dictionaries.transcoder import gated


@dataclass(frozen=True, eq=False)
class CrossLayerTranscoder:
    """The features that read the MLP input of one layer."""

    layer: int
    """The layer they read at, and the first that they write to."""
    W_enc: Rows
    """`[feature, d_model]`: the direction that each feature reads."""
    b_enc: Float[Tensor, "feature"]
    """What is added to each pre-activation."""
    W_dec: Rows
    """`[feature, reached, d_model]`: the directions that each feature writes to its own and later layers; or
    `[feature, d_model]`, to its own alone."""
    b_dec: Float[Tensor, "d_model"]
    """What is written to its own layer whatever the features do."""
    hook_in: str
    """Hook of the MLP's input."""
    hook_out: str
    """Hook of the MLP's output, of its own layer."""
    threshold: Float[Tensor, "feature"] | None = None
    """JumpReLU: a feature is active where its pre-activation exceeds this; None is a plain ReLU."""
    W_skip: Float[Tensor, "d_model d_model"] | None = None
    """Linear part `[d_out, d_in]` to its own layer, used as `x @ W_skip.T`; None is no skip connection."""
    k: int | None = None
    """TopK: how many features a token keeps at most; None is all."""
    over: Literal["token", "prompt"] = "token"
    """As for `Transcoder`."""
    gain: Float[Tensor, "d_model"] | None = None
    """What multiplies `hook_in` before features read it (the weights of a norm); None is nothing."""
    shift: Float[Tensor, "d_model"] | None = None
    """What is then added (the bias of a norm); None is nothing."""
    name: str = ""
    """What the basis is called in results."""
    parts: ClassVar[tuple[str, ...]] = ("",)
    """Names of a feature's pre-activations; it has one."""

    @property
    def d_features(self) -> int:
        """How many features there are."""
        return len(self.b_enc)

    @property
    def reaches(self) -> range:
        """Layers whose MLP output the features write to."""
        return range(self.layer, self.layer + (self.W_dec.shape[1] if len(self.W_dec.shape) == 3 else 1))

    def read(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b d_model"]:
        """What the features read, from what `hook_in` holds."""
        x = x if self.gain is None else x * self.gain
        return x if self.shift is None else x + self.shift

    def preactivations(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b feature"]:
        """What each feature reads, before the activation function."""
        return products(self.read(x), self.W_enc) + self.b_enc

    def activations(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b feature"]:
        """How active each feature is."""
        return self.activate(self.preactivations(x))

    def activate(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """The activation function on pre-activations."""
        return gated(pre, self.threshold, self.k, self.over)

    def slope(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """Derivative of `activate`: 1 where a feature is active, else 0."""
        return (self.activate(pre) > 0).to(pre.dtype)

    def sums(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Pre-activations by part."""
        return (self.preactivations(x),)

    def slopes(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Derivative of each activation by each of its parts."""
        return (self.slope(self.preactivations(x)),)

    def reads(self, ids: Sequence[int], part: str = "") -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n"]]:
        """The directions of `hook_in` that these features read, and what is added to each."""
        rows = rows_of(self.W_enc, ids)
        added = self.b_enc[torch.as_tensor(ids, dtype=torch.long, device=self.b_enc.device)]
        added = added if self.shift is None else added + rows @ self.shift
        return (rows if self.gain is None else rows * self.gain), added

    def writes(self, ids: Sequence[int], layer: int) -> Float[Tensor, "n d_model"]:
        """The directions that these features write to `layer`. Raises ValueError for one that they do not reach."""
        if layer not in self.reaches:
            raise ValueError(
                f"features of layer {self.layer} write to layers {self.reaches.start} to {self.reaches.stop - 1}, "
                f"not to {layer}"
            )
        rows = rows_of(self.W_dec, ids)
        return rows if rows.ndim == 2 else rows[:, layer - self.layer]

    def write(self, activations: Float[Tensor, "*b feature"], layer: int | None = None) -> Float[Tensor, "*b d_model"]:
        """What these activations write to `layer` (its own unless given); only active features are read."""
        flat = activations.flatten(0, -2) if activations.ndim > 1 else activations[None]
        ids = flat.ne(0).any(0).nonzero()[:, 0]
        written = flat[:, ids] @ self.writes(ids.tolist(), self.layer if layer is None else layer)
        return written.view(*activations.shape[:-1], written.shape[-1])
