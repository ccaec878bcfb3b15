"""The linear maps of one layer of a frozen model: norms with their scales held, attention with its pattern held.

Directions over what a map puts out go back to directions over what it takes in; what is written goes forward.
Directions are `[pos, target, d]`, from some first position on.
"""

from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class Folded:
    """Weights of one layer's attention as directions pass them, with those of the norms around it folded in."""

    W_O: Float[Tensor, "d_model z"]
    """From what attention adds to z."""
    W_V: Float[Tensor, "kv d_model"]
    """From values to the residual stream."""

    @classmethod
    def of(cls, maps: "FrozenLayer") -> "Folded":
        """Those of a layer."""
        before, after = maps.before_attention, maps.after_attention
        W_O, W_V = maps.W_O.T, maps.W_V.T
        if after is not None:
            W_O = W_O - W_O.mean(0) if after.centred else W_O
            W_O = W_O if after.w is None else after.w[:, None] * W_O
        if before is not None:
            W_V = W_V if before.w is None else W_V * before.w
            W_V = W_V - W_V.mean(1, keepdim=True) if before.centred else W_V
        return cls(W_O.contiguous(), W_V.contiguous())


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
        self._shared: dict[int, Folded] = frozen.folded
        clip = cfg.clip_qkv
        values = None if clip is None else frozen.values[f"L{layer}.v"][0].flatten(1)
        if values is not None and values.shape[1] != self.W_V.shape[1]:  # key/value heads laid out for every head
            values = values.unflatten(1, (self.n_kv, -1, self.d_head))[:, :, 0].flatten(1)
        self.passing: Tensor | None = None if values is None else (values.abs() <= clip).to(values.dtype)
        self.clipped = None if values is None or clip is None else values.clamp(-clip, clip) * (values.abs() > clip)

    # --- back

    @property
    def folded(self) -> Folded:
        """The weights that directions pass, made once for all prompts that share them."""
        if self.layer not in self._shared:
            self._shared[self.layer] = Folded.of(self)
        return self._shared[self.layer]

    def through(self, g: Directions, start: int, width: int) -> Below:
        """Directions over what attention adds as directions over the residual stream before it, all heads together."""
        return self.below(self.over_z(g, start), start, range(width))

    def below(self, z: Float[Tensor, "pos target head d_head"], start: int, seen: range) -> Below:
        """Directions over each head's z as directions over the residual stream at the positions `seen`."""
        if len(z) == 1 and self.passing is None:
            return self._spread(z[0].transpose(0, 1), start, seen)
        over = self.over_values(z, start, seen)
        return (over.flatten(0, 1) @ self.folded.W_V).view(len(seen), z.shape[1], len(self.W_V))

    def _spread(self, z: Float[Tensor, "head target d_head"], start: int, seen: range) -> Below:
        """The same from one position: values' weights come first, since all sources share their products."""
        W_V = self.folded.W_V.unflatten(0, (self.n_kv, self.d_head)).repeat_interleave(self.n_heads // self.n_kv, 0)
        src = slice(seen.start, seen.stop)
        weights = self.pattern[:, start, src].T.to(z.dtype) * self.shrinking[src, None]
        return (weights @ (z @ W_V).flatten(1)).view(len(seen), z.shape[1], len(self.W_V))

    def over_first(self, z: Float[Tensor, "pos target head d_head"], start: int) -> Float[Tensor, "target z"]:
        """Directions over z as directions over the values at the first position, heads side by side."""
        weights = self.pattern[:, start : start + len(z), 0].to(z.dtype)
        return torch.einsum("hp,pthd->thd", weights, z).flatten(1)

    def through_heads(self, g: Directions, start: int, width: int) -> Float[Tensor, "head src target d"]:
        """The same, for each head apart."""
        by_head = self._by_head(self.over_z(g, start), start, range(width)) * self.shrinking[:width, None, None]
        W_V = self.folded.W_V.unflatten(0, (self.n_kv, self.d_head)).repeat_interleave(self.n_heads // self.n_kv, 0)
        return by_head @ W_V[:, None]

    def over_head(self, z: Float[Tensor, "pos target d_head"], head: int, start: int, width: int) -> Below:
        """Directions over one head's z as directions over the residual stream before attention."""
        spread = z.new_zeros(*z.shape[:2], self.n_heads, self.d_head)
        spread[:, :, head] = z
        return self.over_values(spread, start, range(width)) @ self.folded.W_V

    def over_z(self, g: Directions, start: int) -> Float[Tensor, "pos target head d_head"]:
        """Directions over what attention adds as directions over each head's z."""
        norm = self.after_attention
        g = g if norm is None else g / norm.scale[start : start + len(g), None].to(g.dtype)
        return (g.flatten(0, 1) @ self.folded.W_O).view(*g.shape[:2], self.n_heads, self.d_head)

    def over_values(self, z: Tensor, start: int, seen: range) -> Float[Tensor, "src target kv"]:
        """Directions over z as directions over the values' heads, divided by the scale of the norm before them."""
        by_head = self._by_head(z, start, seen)
        if self.n_kv < self.n_heads:
            by_head = by_head.unflatten(0, (self.n_kv, -1)).sum(1)
        out = by_head.new_empty(len(seen), z.shape[1], self.n_kv, self.d_head)
        torch.mul(by_head.permute(1, 2, 0, 3), self.shrinking[seen.start : seen.stop, None, None, None], out=out)
        return out.flatten(2)

    def _by_head(self, z: Tensor, start: int, seen: range) -> Float[Tensor, "head src target d_head"]:
        (n_pos, n_targets), src = z.shape[:2], slice(seen.start, seen.stop)
        pattern = self.pattern[:, start : start + n_pos, src].to(z.dtype)
        over = pattern.mT @ z.permute(2, 0, 1, 3).reshape(self.n_heads, n_pos, n_targets * self.d_head)
        over = over.view(self.n_heads, len(seen), n_targets, self.d_head)
        if self.passing is None:
            return over
        passing = self.passing[src].unflatten(1, (self.n_kv, self.d_head)).permute(1, 0, 2)
        return over * passing.repeat_interleave(self.n_heads // self.n_kv, 0)[:, :, None]

    @cached_property
    def shrinking(self) -> Float[Tensor, "pos"]:
        """What directions over the norm's output are multiplied by: one over its scale."""
        norm = self.before_attention
        return self.W_V.new_ones(self.pattern.shape[1]) if norm is None else (1 / norm.scale[:, 0]).to(self.W_V.dtype)

    # --- forward

    def _by_value(self, x: Float[Tensor, "n d_model"], at: slice) -> Float[Tensor, "n head d_head"]:
        """What parts of the residual stream come to in each head's values, with the scales of these positions."""
        v = (x @ self.folded.W_V.T) * self.shrinking[at, None]
        v = v if self.passing is None else v * self.passing[at]
        return v.unflatten(1, (self.n_kv, self.d_head)).repeat_interleave(self.n_heads // self.n_kv, 1)

    def first_values(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n z"]:
        """What parts of the residual stream at the first position come to in its values, heads side by side."""
        return self._by_value(x, slice(0, 1)).flatten(1)

    def first_out(self, v: Float[Tensor, "n z"]) -> Float[Tensor, "n d_model"]:
        """What attention adds at the first position for such values there, where it sees itself alone."""
        z = v.unflatten(1, (self.n_heads, self.d_head)) * self.pattern[:, 0, 0, None].to(v.dtype)
        out = z.flatten(1) @ self.folded.W_O.T
        return out if self.after_attention is None else out / self.after_attention.scale[0].to(v.dtype)

    def spread(self, x: Float[Tensor, "src d_model"]) -> Float[Tensor, "pos d_model src"]:
        """What `x` of each position, as a part of the residual stream before, comes to at every position after."""
        v = self._by_value(x, slice(None))
        z = self.pattern.permute(1, 2, 0)[..., None].to(v.dtype) * v
        out = self.folded.W_O @ z.flatten(2).mT
        out = out if self.after_attention is None else out / self.after_attention.scale[:, :, None].to(v.dtype)
        out.diagonal(dim1=0, dim2=2).add_(x.T)
        return out

    def values(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos kv"]:
        """Values of a residual stream, biases and clipping included, as the model computes them with scales held."""
        norm = self.before_attention
        x = x if norm is None else norm.forward(x) + norm.bias(x)
        v = x @ self.W_V + self.b_V
        return v if self.passing is None or self.clipped is None else v * self.passing + self.clipped

    def attend(self, v: Float[Tensor, "pos kv"]) -> Float[Tensor, "pos d_model"]:
        """What all heads add to the residual stream for these values, but for biases after them."""
        return self._after(self._z(v).transpose(0, 1).flatten(1) @ self.W_O)

    def attend_by_head(self, v: Float[Tensor, "pos kv"]) -> Float[Tensor, "head pos d_model"]:
        """The same, for each head apart."""
        return torch.stack([self._after(z) for z in self._z(v) @ self.W_O.unflatten(0, (self.n_heads, self.d_head))])

    def _z(self, v: Float[Tensor, "pos kv"]) -> Float[Tensor, "head pos d_head"]:
        spread = v.unflatten(1, (self.n_kv, self.d_head)).repeat_interleave(self.n_heads // self.n_kv, 1)
        return self.pattern.to(v.dtype) @ spread.transpose(0, 1)

    def _after(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        return x if self.after_attention is None else self.after_attention.forward(x)

    def attention_out(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What attention adds to the residual stream `x`, biases included."""
        norm = self.after_attention
        out = self.attend(self.values(x)) + self._after(self.b_O.expand_as(x))
        return out if norm is None else out + norm.bias(x)

    def norm_values(self, like: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos kv"] | None:
        """What the bias of the norm before attention puts into values; None where there is none."""
        before = self.before_attention
        if before is None or before.b is None:
            return None
        values = (before.b @ self.W_V).expand(len(like), -1)
        return values if self.passing is None else values * self.passing

    def attention_constants(self, like: Float[Tensor, "pos d_model"]) -> dict[str, Float[Tensor, "pos d_model"]]:
        """What biases add at each position through attention, by name."""
        passing = 1.0 if self.passing is None else self.passing
        after, normed, constants = self.after_attention, self.norm_values(like), {}
        if normed is not None:
            constants["ln1.b"] = self.attend(normed)
        constants["b_V"] = self.attend(self.b_V.expand(len(like), -1) * passing)
        if self.clipped is not None:
            constants["clipped_v"] = self.attend(self.clipped)
        constants["b_O"] = self._after(self.b_O.expand_as(like))
        if after is not None and after.b is not None:
            constants[f"{self.after_names['attn']}.b"] = after.bias(like)
        return constants


def _parts(cfg) -> tuple[Any, ...]:
    return ("attn",) if cfg.attn_only else ("attn", "mlp")
