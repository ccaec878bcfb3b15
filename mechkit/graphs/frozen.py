"""A model frozen on one prompt: attention patterns and normalisation scales held at their values there.

With these held and each MLP's output a given vector, the residual stream is linear in what is written to it.
`FrozenModel` holds those values and the transposes of the linear maps, which carry a reading direction down
through normalisations and attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Replace
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import Activations, activations

Directions = Float[Tensor, "stream target pos d_model"]
"""Reading directions of targets in the residual stream, one stream per last head."""


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """One prompt's attention patterns, scales and MLP inputs and outputs, and the linear maps they fix."""

    model: Any
    """The HookedTransformer."""
    prompts: Prompts
    """The one prompt."""
    values: Activations
    """Patterns, scales, embeddings, MLP inputs and outputs, each `[1, *slice]`."""
    final: Float[Tensor, "pos d_model"]
    """What the unembedding reads."""

    @classmethod
    def on(cls, model, prompts: Prompts, hooks_in: Sequence[str] = ()) -> "FrozenModel":
        """Freeze `model` on its one prompt; `hooks_in` are the MLP inputs to keep. Cost: one forward pass.

        Raises ValueError for an architecture that is not traced yet, and for more than one prompt.
        """
        _require_traceable(model.cfg)
        if len(prompts) != 1:
            raise ValueError(f"a graph is of one prompt, {len(prompts)} were given; call trace once for each")
        sites = ["embed", *_frozen_sites(model.cfg), *hooks_in]
        sites += ["pos_embed"] if adds_positions(model.cfg) else []
        sites += [] if model.cfg.attn_only else ["L*.mlp_out"]
        sites += ["ln_final"] if has_norm(model.cfg) else [f"L{model.cfg.n_layers - 1}.resid_post"]
        values = activations(model, prompts, dict.fromkeys(sites))
        final = values[sites[-1]][0]
        if has_norm(model.cfg):
            final = final * getattr(model.ln_final, "w", 1) + getattr(model.ln_final, "b", 0)
        return cls(model, prompts, values, final)

    @property
    def n_positions(self) -> int:
        """Tokens of the prompt."""
        return self.prompts.tokens.shape[1]

    @property
    def logits(self) -> Float[Tensor, "vocab"]:
        """Logits after the last token, before any soft-cap."""
        return self.final[-1] @ self.model.W_U.detach() + self.model.b_U.detach()

    @property
    def capped_logits(self) -> Float[Tensor, "vocab"]:
        """Logits as the model gives them, after its soft-cap if it has one."""
        cap = self.soft_cap
        return self.logits if cap is None else cap * torch.tanh(self.logits / cap)

    @property
    def soft_cap(self) -> float | None:
        """The bound that logits are squeezed under by tanh; None where there is none."""
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return cap if cap is not None and cap > 0 else None

    def pattern(self, layer: int) -> Float[Tensor, "head dest src"]:
        """Attention probabilities of one layer."""
        return self.values[f"L{layer}.pattern"][0]

    def mlp_out(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """What one layer's MLP writes."""
        return self.values[f"L{layer}.mlp_out"][0]

    def norm_back(self, g: Tensor, norm: str, *, affine: bool) -> Tensor:
        """Directions over a norm's output, `[..., pos, d]`, as directions over its input.

        A norm is y = n * w + b with n = (x - mean x) / s, s held (no mean for RMSNorm, no w and b when folded).
        `affine` says whether y was read, or n, which is what TransformerLens's `hook_normalized` holds.
        """
        module = _module(self.model, norm)
        if module is None or not hasattr(module, "hook_scale"):
            return g
        g = g * module.w if affine and hasattr(module, "w") else g
        scale = self.values[f"{norm}.scale"][0, : g.shape[-2]]
        g = g / scale.to(g.dtype)
        return g - g.mean(-1, keepdim=True) if "LayerNorm" in type(module).__name__ else g

    def norm_bias(self, norm: str) -> Float[Tensor, "d_model"] | None:
        """The bias of a norm, None where it has none."""
        return getattr(_module(self.model, norm), "b", None)

    def values_back(self, g: Directions, layer: int, *, per_head: bool) -> Float[Tensor, "head stream target pos d"]:
        """Directions over one layer's attention output as directions over its normalised input, through values.

        One entry per head, or a single one for all heads together.
        """
        attn = self.model.blocks[layer].attn
        pattern = self.pattern(layer)[:, : g.shape[2], : g.shape[2]].to(g.dtype)
        over_z = torch.einsum("stqd,hed->hstqe", g, attn.W_O)
        over_v = torch.einsum("hqr,hstqe->hstre", pattern, over_z)
        by_head = "hstrd" if per_head else "strd"
        back = torch.einsum(f"hstre,hde->{by_head}", over_v, attn.W_V)
        return back if per_head else back[None]

    def value_bias(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """What the value biases of one layer write at each position."""
        attn = self.model.blocks[layer].attn
        return torch.einsum("hq,he,hed->qd", self.pattern(layer).sum(-1), attn.b_V, attn.W_O)

    def freeze(self, *, mlps: bool) -> list[Replace]:
        """Interventions that hold patterns and scales, and MLP outputs too if `mlps`, at this prompt's values."""
        sites = list(_frozen_sites(self.model.cfg))
        sites += [f"L{layer}.mlp_out" for layer in range(self.model.cfg.n_layers)] if mlps else []
        return [Replace(site, self.values[site]) for site in sites]


def adds_positions(cfg) -> bool:
    """Whether position embeddings are added to the residual stream."""
    return cfg.positional_embedding_type == "standard"


def has_norm(cfg) -> bool:
    """Whether the model normalises."""
    return cfg.normalization_type is not None


def _frozen_sites(cfg) -> list[str]:
    norms = ["ln1"] if cfg.attn_only else ["ln1", "ln2"]
    sites = [f"L{layer}.pattern" for layer in range(cfg.n_layers)]
    if has_norm(cfg):
        sites += [f"L{layer}.{norm}.scale" for layer in range(cfg.n_layers) for norm in norms] + ["ln_final.scale"]
    return sites


def _module(model, norm: str):
    """The module of `L3.ln1` or `ln_final`."""
    layer, _, name = norm.rpartition(".")
    return getattr(model.blocks[int(layer[1:])], name) if layer else getattr(model, "ln_final", None)


def _require_traceable(cfg) -> None:
    """Raise ValueError, naming the part, for what the linear maps do not cover yet."""
    parts = {
        "parallel attention and MLP": cfg.parallel_attn_mlp,
        "norms after attention and MLP": getattr(cfg, "use_normalization_before_and_after", False),
        "a norm after the embedding": getattr(cfg, "post_embedding_ln", False),
        "bidirectional attention": cfg.attention_dir != "causal",
    }
    for part, present in parts.items():
        if present:
            raise ValueError(f"the model has {part}, which graphs do not cover yet; trace a model without")
