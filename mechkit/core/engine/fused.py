"""A HookedTransformer's layers as plain functions of packed tokens `[token, d_model]`, with weights laid out once.

`obstacle` says where this does not apply: the sweep then runs the model's own modules. What a `Fused` copies lives for
one call of `sweep`, so that weights changed between calls are seen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Tokens = Float[Tensor, "token _"]
Neurons = Float[Tensor, "*token d_mlp"]

_GELU_TANH = frozenset({"gelu_new", "gelu_fast", "gelu_pytorch_tanh"})
_SHORT = 256
"""Tokens up to which plain products beat the fused attention kernel on a CPU (measured 1.3 times at 16 and at 128)."""

_POSITIONS = frozenset({"standard", "rotary", "shortformer", "alibi"})
_UNUSUAL = {
    "use_normalization_before_and_after": "norms after its sub-layers",
    "use_qk_norm": "norms on queries and keys",
    "use_attention_sinks": "attention sinks",
    "num_experts": "a mixture of experts",
    "clip_qkv": "clipped queries, keys and values",
    "use_logn_attn": "log-n attention",
    "use_dynamic_ntk_rope": "dynamic rotary embeddings",
    "load_in_4bit": "4-bit weights",
    "post_embedding_ln": "a norm after its embedding",
    "use_hook_tokens": "hooked tokens",
}


def obstacle(model) -> str | None:
    """Why the lean layers do not apply to `model`, in words; None where they do."""
    from transformer_lens import HookedTransformer

    if type(model) is not HookedTransformer or "forward" in vars(model):
        return f"it is a {type(model).__name__}, not a plain HookedTransformer"
    cfg = model.cfg
    for flag, words in _UNUSUAL.items():
        if getattr(cfg, flag, None):
            return f"it has {words}"
    if cfg.positional_embedding_type not in _POSITIONS or getattr(cfg, "n_devices", 1) > 1:
        return f"it has {cfg.positional_embedding_type} positions or lies on several devices"
    if getattr(model.tokenizer, "padding_side", "right") == "left":
        return "its tokenizer pads on the left"
    return foreign(model)


def foreign(model) -> str | None:
    """What of the user's own is in `model`, hooks or modules, in words."""
    return _foreign_hook(model) or _foreign_module(model)


def first_own_block(model) -> int:
    """The first block with a hook or a forward of the user's own; 0 where such a thing lies outside the blocks."""
    own = [name.split(".") for name, module in model.named_modules() if _is_hooked(module) or "forward" in vars(module)]
    return min((int(path[1]) if path[0] == "blocks" and len(path) > 1 else 0 for path in own), default=1 << 30)


def _is_hooked(module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _foreign_hook(model) -> str | None:
    for name, module in model.named_modules():
        if _is_hooked(module):
            return f"it has a hook of its own on '{name or 'the model'}'"
    return None


def _foreign_module(model) -> str | None:
    """The first module that is not TransformerLens's own, or that computes something the lean layers do not."""
    from transformer_lens import HookedTransformer, components

    tl: Any = components
    if not isinstance(model, HookedTransformer):
        return None
    norms = (tl.LayerNorm, tl.LayerNormPre, tl.RMSNorm, tl.RMSNormPre, torch.nn.Identity)
    known = {
        "ln1": norms, "ln2": norms, "attn": (tl.Attention, tl.GroupedQueryAttention), "mlp": (tl.MLP, tl.GatedMLP),
    }  # fmt: skip
    modules = [(f"blocks.{i}", block, (tl.TransformerBlock,)) for i, block in enumerate(model.blocks)]
    modules += [
        (f"blocks.{i}.{name}", part, known.get(name, ()))
        for i, block in enumerate(model.blocks)
        for name, part in block.named_children()
        if not name.startswith("hook_")
    ]
    modules += [("embed", model.embed, (tl.Embed,)), ("unembed", model.unembed, (tl.Unembed,))]
    modules += [("ln_final", model.ln_final, norms)] if hasattr(model, "ln_final") else []
    for name, module, kinds in modules:
        if type(module) not in kinds or "forward" in vars(module):
            return f"its '{name}' is a {type(module).__name__}"
        if name.endswith(".mlp") and (
            getattr(module, "ln", None) is not None or isinstance(module.act_fn, torch.nn.Module)
        ):
            return f"its '{name}' has an activation with weights"
        parts = [part for part, _ in module.named_children() if not part.startswith("hook_")]
        if name.endswith(".attn") and (parts or module._attention_dir_override):
            return f"its '{name}' has a direction or parts of its own: {', '.join(parts)}"
    return None


def norm_of(module) -> Callable[[Tensor], Tensor]:
    """The norm of a module as one fused call, or, in half precision, in the module's own order of casts."""
    if type(module) is torch.nn.Identity:
        return lambda x: x
    centred, w, b = "Layer" in type(module).__name__, getattr(module, "w", None), getattr(module, "b", None)
    if module.cfg.dtype not in (torch.float32, torch.float64):
        return partial(_half_norm, centred=centred, w=w, b=b, eps=module.eps, dtype=module.cfg.dtype)
    if centred:
        return lambda x: F.layer_norm(x, x.shape[-1:], w, b, module.eps)
    return lambda x: F.rms_norm(x, x.shape[-1:], w, module.eps)


def _half_norm(x: Tensor, *, centred: bool, w, b, eps: float, dtype: torch.dtype) -> Tensor:
    x = x.float()
    x = x - x.mean(-1, keepdim=True) if centred else x
    x = (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(dtype)
    x = x if w is None else x * w
    return x if b is None else x + b


class Layer:
    """One block: its norms, projections, attention and MLP on packed tokens."""

    def __init__(self, block, n_pos: int) -> None:
        cfg, attn = block.cfg, block.attn
        self.cfg, self.attn, self.n_pos = cfg, attn, n_pos
        self.norm1 = norm_of(block.ln1)
        grouped = hasattr(attn, "_W_K") and not cfg.ungroup_grouped_query_attention
        inward = [attn.W_Q, attn._W_K if grouped else attn.W_K, attn._W_V if grouped else attn.W_V]
        biases = [attn.b_Q, attn._b_K if grouped else attn.b_K, attn._b_V if grouped else attn.b_V]
        self.n_heads, self.n_kv, self.d_head = cfg.n_heads, inward[1].shape[0], cfg.d_head
        widths = [w.shape[0] * self.d_head for w in inward]
        self.W_QKV = attn.W_Q.new_empty(cfg.d_model, sum(widths))
        for part, w in zip(self.W_QKV.split(widths, 1), inward, strict=True):
            part.unflatten(1, (-1, self.d_head)).copy_(w.transpose(0, 1))
        self.b_QKV = torch.cat([b.reshape(-1) for b in biases])
        self.W_O = attn.W_O.reshape(-1, cfg.d_model)
        self.b_O = attn.b_O
        self.mlp: Any = None if cfg.attn_only else block.mlp
        if not cfg.attn_only:
            self.norm2 = norm_of(block.ln2)
            self.gated = hasattr(block.mlp, "W_gate")
            tanh = cfg.act_fn in _GELU_TANH
            self.act = partial(F.gelu, approximate="tanh") if tanh else block.mlp.act_fn
        self.causal = cfg.attention_dir == "causal"
        self.capped = cfg.attn_scores_soft_cap is not None and cfg.attn_scores_soft_cap > 0
        self.rotary = cfg.positional_embedding_type == "rotary"
        if self.rotary:
            self.sin, self.cos = _rotary(attn, n_pos)
        self.bias = self._bias(self.W_O)

    def _bias(self, like: Tensor) -> Tensor:
        """What is added to the scores, `[head or 1, dest, src]`: the mask, and ALiBi's slopes."""
        here = torch.arange(self.n_pos, device=like.device)
        allowed = (
            here[:, None] >= here[None, :] if self.causal else torch.ones_like(here[:, None] - here, dtype=torch.bool)
        )
        if self.causal and self.attn.attn_type == "local":
            allowed = allowed & (here[None, :] > here[:, None] - self.cfg.window_size)
        bias = like.new_zeros(1, self.n_pos, self.n_pos).masked_fill(~allowed, -torch.inf)
        if self.cfg.positional_embedding_type == "alibi":
            bias = bias + self.attn.create_alibi_bias(self.n_heads, self.n_pos, like.device).to(like.dtype)
        return bias

    def _alibi_shift(self, n_pos: int) -> Tensor | float:
        """TransformerLens takes the last rows of the widest ALiBi matrix it has made; softmax does not feel it."""
        if self.cfg.positional_embedding_type != "alibi":
            return 0.0
        widest = max(self.n_pos, 0 if self.attn.alibi is None else self.attn.alibi.shape[-1])
        multipliers = self.attn.create_alibi_multipliers(self.n_heads, self.W_O.device).to(self.W_O.dtype)
        return (n_pos - widest) * multipliers[:, None, None]

    def project(self, h: Tokens, which: slice) -> Tokens:
        """Some of the columns of queries, keys and values."""
        return torch.addmm(self.b_QKV[which], h, self.W_QKV[:, which])

    @property
    def q_columns(self) -> slice:
        """Columns of the queries."""
        return slice(0, self.n_heads * self.d_head)

    @property
    def k_columns(self) -> slice:
        """Columns of the keys."""
        return slice(self.q_columns.stop, self.q_columns.stop + self.n_kv * self.d_head)

    @property
    def v_columns(self) -> slice:
        """Columns of the values."""
        return slice(self.k_columns.stop, self.k_columns.stop + self.n_kv * self.d_head)

    def heads(self, x: Tensor) -> Tensor:
        """The last axis split into heads."""
        return x.unflatten(-1, (-1, self.d_head))

    def rotate(self, x: Float[Tensor, "*token head d_head"], pos: Int[Tensor, "*token"]) -> Tensor:
        """Queries or keys with their positions' rotation, where the model has one."""
        if not self.rotary:
            return x
        width = self.cos.shape[-1]
        part = x[..., :width]
        if self.cfg.rotary_adjacent_pairs:
            flipped = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
        else:
            flipped = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], -1)
        turned = part * self.cos[pos][..., None, :] + flipped * self.sin[pos][..., None, :]
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, first: int) -> Float[Tensor, "row pos d_attn"]:
        """z of the queries `[row, pos, head, d]` at positions from `first` on, over all keys and values."""
        if self.capped or (q.device.type == "cpu" and self.n_pos <= _SHORT):
            return self.mix(self._scores(q, k, first).softmax(-1), v)
        bias = self.bias[:, first : first + q.shape[1], : k.shape[1]]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        z = F.scaled_dot_product_attention(
            q, k, v, bias, scale=1.0 / self.attn.attn_scale, enable_gqa=self.n_kv != self.n_heads
        )
        return z.transpose(1, 2).flatten(2)

    def scores(self, q: Tensor, k: Tensor, first: int) -> Float[Tensor, "row head dest src"]:
        """Attention scores, masked, as TransformerLens's hook has them."""
        return self._scores(q, k, first) + self._alibi_shift(k.shape[1])

    def _scores(self, q: Tensor, k: Tensor, first: int) -> Float[Tensor, "row head dest src"]:
        scores = q.transpose(1, 2) @ self._spread(k).permute(0, 2, 3, 1) / self.attn.attn_scale
        if self.capped:
            scores = self.cfg.attn_scores_soft_cap * torch.tanh(scores / self.cfg.attn_scores_soft_cap)
        return scores + self.bias[:, first : first + q.shape[1], : k.shape[1]]

    def mix(self, pattern: Tensor, v: Tensor) -> Float[Tensor, "row pos d_attn"]:
        """z of an attention pattern `[row, head, dest, src]`; a row that attends nowhere gives 0."""
        return (pattern.to(v.dtype) @ self._spread(v).transpose(1, 2)).transpose(1, 2).flatten(2)

    def _spread(self, x: Tensor) -> Tensor:
        """Key/value heads repeated for every query head."""
        return x if self.n_kv == self.n_heads else x.repeat_interleave(self.n_heads // self.n_kv, 2)

    def out(self, z: Tokens) -> Tokens:
        """What attention adds to the residual stream."""
        return torch.addmm(self.b_O, z, self.W_O)

    def results(self, z: Float[Tensor, "token head d_head"]) -> Float[Tensor, "token head d"]:
        """What each head adds to the residual stream."""
        return torch.einsum("nhd,hdm->nhm", z, self.W_O.unflatten(0, (self.n_heads, self.d_head)))

    def mlp_pre(self, h: Tokens) -> tuple[Tokens, Tokens | None]:
        """Input of the activation function, and the linear side of a gated MLP."""
        if self.gated:
            return h @ self.mlp.W_gate, h @ self.mlp.W_in
        return torch.addmm(self.mlp.b_in, h, self.mlp.W_in), None

    def mlp_post(self, pre: Neurons, linear: Neurons | None) -> Neurons:
        """Neurons."""
        return self.act(pre) if linear is None else self.act(pre) * linear + self.mlp.b_in

    def mlp_out(self, post: Tokens) -> Tokens:
        """What the MLP adds to the residual stream."""
        return torch.addmm(self.mlp.b_out, post, self.mlp.W_out)

    def mlp_in_blocks(self, x: Tokens, size: int) -> Tokens:
        """The whole MLP, its norm first, on `size` tokens at a time."""
        parts = [self.mlp_out(self.mlp_post(*self.mlp_pre(self.norm2(part)))) for part in x.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rotary(attn, n_pos: int) -> tuple[Tensor, Tensor]:
    if n_pos <= attn.rotary_cos.shape[0]:
        return attn.rotary_sin[:n_pos], attn.rotary_cos[:n_pos]
    made = attn.calculate_sin_cos_rotary(attn.cfg.rotary_dim, n_pos, base=attn._rotary_base(), dtype=attn.cfg.dtype)
    return tuple(part.to(attn.rotary_cos.device) for part in made)  # type: ignore[return-value]


class Fused:
    """A model's layers, made when first asked for and kept for one call (or made anew each time, to save memory)."""

    def __init__(self, model, n_pos: int, keep: bool = True) -> None:
        self.model, self.cfg, self.n_pos, self.keep = model, model.cfg, n_pos, keep
        self._layers: dict[int, Layer] = {}
        self.norm_final = norm_of(model.ln_final) if self.cfg.normalization_type is not None else lambda x: x

    def layer(self, i: int) -> Layer:
        """Block `i`."""
        if i in self._layers:
            return self._layers[i]
        made = Layer(self.model.blocks[i], self.n_pos)
        if self.keep:
            self._layers[i] = made
        return made

    def logits(self, x: Tokens) -> Float[Tensor, "token vocab"]:
        """Logits of the last block's residual stream."""
        logits = torch.addmm(self.model.unembed.b_U, self.norm_final(x), self.model.unembed.W_U)
        cap = self.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits
