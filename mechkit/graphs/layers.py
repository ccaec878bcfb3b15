"""The linear maps of one layer of a frozen model: norms with their scales held, attention with its pattern held.

Directions over what a map puts out go back to directions over what it takes in; what is written goes forward.
Directions are `[pos, target, d]`, from some first position on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.dictionaries.transcoder import after_norm, mlp_input_norm, norms_outputs_only

Directions = Float[Tensor, "pos target d"]
"""Reading directions of targets, by position."""

Below = Float[Tensor, "src target d"]
"""Reading directions below attention, by source position."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm whose scale is held: y = (x - mean x) / s * w + b; no mean for RMSNorm, no w and b when folded."""

    scale: Float[Tensor, "pos 1"]
    """The scale at each position."""
    centred: bool
    """Whether the mean is taken out."""
    w: Tensor | None
    """Its weights."""
    b: Tensor | None
    """Its bias."""

    @classmethod
    def of(cls, module, scale: Tensor | None) -> "Norm | None":
        """The norm of a module; None where there is none. `scale` is `[pos, 1]`, or `[pos, head, 1]`."""
        if module is None or scale is None:
            return None
        scale = scale if scale.ndim == 2 else scale[:, 0]
        w, b = (getattr(module, name, None) for name in ("w", "b"))
        w, b = (None if one is None else one.detach() for one in (w, b))
        return cls(scale, "LayerNorm" in type(module).__name__, w, b)

    @property
    def plain(self) -> "Norm":
        """The norm before its own weights, which is what TransformerLens's `hook_normalized` holds."""
        return Norm(self.scale, self.centred, None, None)

    def back(self, g: Directions, start: int = 0) -> Directions:
        """Directions over the output as directions over the input."""
        g = g if self.w is None else g * self.w
        g = g / self.scale[start : start + len(g), None].to(g.dtype)
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def forward(self, x: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
        """The linear part of the norm, all but its bias."""
        return self.at(x, self.scale)

    def at(self, x: Float[Tensor, "n d"], scale: Float[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
        """The linear part of the norm with other scales, one for each row."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        x = x / scale.to(x.dtype)
        return x if self.w is None else x * self.w

    def bias(self, like: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
        """The bias at every position; 0 where there is none."""
        return torch.zeros_like(like) if self.b is None else self.b.expand_as(like)


class FrozenLayer:
    """One block with its attention pattern and scales held."""

    def __init__(self, frozen, layer: int) -> None:
        self.layer, self.block = layer, frozen.model.blocks[layer]
        self.attn, cfg = self.block.attn, frozen.model.cfg
        self.pattern: Float[Tensor, "head dest src"] = frozen.pattern(layer)
        norm = lambda name: frozen.norm(f"L{layer}.{name}") if name else None  # noqa: E731
        self.before_attention = None if norms_outputs_only(cfg) else norm("ln1")
        self.after_attention = norm(after_norm(frozen.model, layer, "attn"))
        self.before_mlp = norm("ln2") if not cfg.attn_only and mlp_input_norm(frozen.model, layer) is not None else None
        self.after_mlp = None if cfg.attn_only else norm(after_norm(frozen.model, layer, "mlp"))
        self.after_names = {part: after_norm(frozen.model, layer, part) for part in _parts(cfg)}
        self.d_head = cfg.d_head
        self.n_heads = self.attn.W_O.shape[0]
        W_V, b_V = (getattr(self.attn, f"_{name}", getattr(self.attn, name)).detach() for name in ("W_V", "b_V"))
        self.n_kv = len(W_V)
        self.W_V: Float[Tensor, "d_model kv"] = W_V.transpose(0, 1).reshape(cfg.d_model, -1)
        self.W_O: Float[Tensor, "z d_model"] = self.attn.W_O.detach().reshape(-1, cfg.d_model)
        self.b_V, self.b_O = b_V.reshape(-1), self.attn.b_O.detach()
        clip = cfg.clip_qkv
        values = None if clip is None else frozen.values[f"L{layer}.v"][0].flatten(1)
        if values is not None and values.shape[1] != self.W_V.shape[1]:  # key/value heads laid out for every head
            values = values.unflatten(1, (self.n_kv, -1, self.d_head))[:, :, 0].flatten(1)
        self.passing: Tensor | None = None if values is None else (values.abs() <= clip).to(values.dtype)
        self.clipped = None if values is None or clip is None else values.clamp(-clip, clip) * (values.abs() > clip)

    # --- back

    def through(self, g: Directions, start: int, width: int) -> Below:
        """Directions over what attention adds as directions over the residual stream before it, all heads together."""
        return self.from_values(self._over_values(self._over_z(g, start), start, width))

    def through_heads(self, g: Directions, start: int, width: int) -> Float[Tensor, "head src target d"]:
        """The same, for each head apart."""
        by_head = self._over_values(self._over_z(g, start), start, width)
        rep = self.n_heads // self.n_kv
        W_V = self.W_V.unflatten(1, (self.n_kv, self.d_head)).repeat_interleave(rep, 1)
        return torch.stack([self._through_norm(v @ W_V[:, h].T) for h, v in enumerate(by_head)])

    def over_head(self, z: Float[Tensor, "pos target d_head"], head: int, start: int, width: int) -> Below:
        """Directions over one head's z as directions over the residual stream before attention."""
        spread = z.new_zeros(*z.shape[:2], self.n_heads, self.d_head)
        spread[:, :, head] = z
        return self.from_values(self._over_values(spread, start, width))

    def from_values(self, by_head: Float[Tensor, "head src target d_head"]) -> Below:
        """Directions over each head's values, the heads summed, as directions over the residual stream."""
        n_pos, n_targets = by_head.shape[1:3]
        by_kv = by_head.view(self.n_kv, -1, n_pos, n_targets, self.d_head).sum(1)
        return self._through_norm(by_kv.permute(1, 2, 0, 3).reshape(n_pos, n_targets, -1) @ self.W_V.T)

    def _through_norm(self, g: Below) -> Below:
        return g if self.before_attention is None else self.before_attention.back(g)

    def _over_z(self, g: Directions, start: int) -> Float[Tensor, "pos target head d_head"]:
        g = g if self.after_attention is None else self.after_attention.back(g, start)
        return (g @ self.W_O.T).unflatten(-1, (self.n_heads, self.d_head))

    def _over_values(self, z: Tensor, start: int, width: int) -> Float[Tensor, "head src target d_head"]:
        n_pos, n_targets = z.shape[:2]
        pattern = self.pattern[:, start : start + n_pos, :width].to(z.dtype)
        over = pattern.mT @ z.permute(2, 0, 1, 3).reshape(self.n_heads, n_pos, -1)
        over = over.view(self.n_heads, width, n_targets, self.d_head)
        if self.passing is None:
            return over
        passing = self.passing[:width].unflatten(1, (self.n_kv, self.d_head)).permute(1, 0, 2)
        return over * passing.repeat_interleave(self.n_heads // self.n_kv, 0)[:, :, None]

    # --- forward

    def values(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos kv"]:
        """Values of a residual stream, biases and clipping included, as the model computes them with scales held."""
        norm = self.before_attention
        x = x if norm is None else norm.forward(x) + norm.bias(x)
        v = x @ self.W_V + self.b_V
        return v if self.passing is None or self.clipped is None else v * self.passing + self.clipped

    def attend(self, v: Float[Tensor, "pos kv"]) -> Float[Tensor, "head pos d_model"]:
        """What each head adds to the residual stream for these values, but for biases after it."""
        spread = v.unflatten(1, (self.n_kv, self.d_head)).repeat_interleave(self.n_heads // self.n_kv, 1)
        out = self.pattern.to(v.dtype) @ spread.transpose(0, 1) @ self.W_O.unflatten(0, (self.n_heads, self.d_head))
        norm = self.after_attention
        return out if norm is None else torch.stack([norm.forward(one) for one in out])

    def attention_out(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What attention adds to the residual stream `x`, biases included."""
        b_O, norm = self.b_O.expand_as(x), self.after_attention
        b_O = b_O if norm is None else norm.forward(b_O) + norm.bias(x)
        return self.attend(self.values(x)).sum(0) + b_O

    def attention_constants(self, like: Float[Tensor, "pos d_model"]) -> dict[str, Float[Tensor, "head pos d_model"]]:
        """What biases add at each position through attention, by name: by head, or as of one where after all heads."""
        passing = 1.0 if self.passing is None else self.passing
        before, after, constants = self.before_attention, self.after_attention, {}
        if before is not None and before.b is not None:
            constants["ln1.b"] = self.attend((before.b @ self.W_V).expand(len(like), -1) * passing)
        constants["b_V"] = self.attend(self.b_V.expand(len(like), -1) * passing).sum(0, keepdim=True)
        if self.clipped is not None:
            constants["clipped_v"] = self.attend(self.clipped).sum(0, keepdim=True)
        b_O = self.b_O.expand_as(like)
        constants["b_O"] = (b_O if after is None else after.forward(b_O))[None]
        if after is not None and after.b is not None:
            constants[f"{self.after_names['attn']}.b"] = after.bias(like)[None]
        return constants


def _parts(cfg) -> tuple[Any, ...]:
    return ("attn",) if cfg.attn_only else ("attn", "mlp")
