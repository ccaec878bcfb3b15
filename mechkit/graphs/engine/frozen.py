"""A model frozen on one prompt: attention patterns and normalisation scales held at their values there.

With these held and each MLP's output a given vector, the residual stream is linear in what is written to it.
`FrozenModel` holds those values, gives the linear maps (`layers`), and checks once that they are the model: that the
residual stream they rebuild is the one the model had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Replace
from mechkit.core.loop import Loop
from mechkit.core.places import expand
from mechkit.core.prompts import Prompts
from mechkit.core.sweep import Activations
from mechkit.graphs.engine.layers import Folded, FrozenLayer, Norm

_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")

_EMBEDDED = ("standard", "shortformer")
"""Kinds of positions that have embeddings."""

_OFF = 1e-3
"""Largest difference of a rebuilt residual stream from the model's, relative to its largest entry."""

_ROUNDINGS = 8
"""The same in roundings of the model's type, where that is coarse: of bfloat16, 0.06."""


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """One prompt's attention patterns, scales, residual stream and MLP outputs, and the linear maps they fix."""

    model: Any
    """The HookedTransformer."""
    prompts: Prompts
    """The one prompt."""
    values: Activations
    """Patterns, scales, embeddings, residual stream, MLP inputs and outputs, each `[1, *slice]`."""
    given: Float[Tensor, "pos vocab"]
    """The model's own logits."""
    folded: dict[int, Folded] = field(default_factory=dict)
    """By layer, attention's weights with its norms' folded in, once they are made; prompts of one call share them."""

    @classmethod
    @torch.no_grad()
    def on(cls, model, prompts: Prompts, hooks_in: Sequence[str] = ()) -> "FrozenModel":
        """Freeze `model` on its one prompt; `hooks_in` are the sites to keep beside. Cost: one forward pass.

        Raises ValueError for more than one prompt, and where hooks or modules of the user's own make attention, the
        residual stream or the logits other than the model's weights say.
        """
        if len(prompts) != 1:
            raise ValueError(f"a graph is of one prompt, {len(prompts)} were given; call trace once for each")
        return next(cls.each(model, prompts, hooks_in))

    @classmethod
    @torch.no_grad()
    def each(cls, model, prompts: Prompts, hooks_in: Sequence[str] = ()) -> "Iterator[FrozenModel]":
        """`model` frozen on each of several prompts of one length, in turn, from one forward pass for all."""
        sites = dict.fromkeys([*_kept(model), *hooks_in])
        logits, slices = Loop(model, prompts, expand(model, sites, prompts)).forward([])
        folded: dict[int, Folded] = {}
        for i in range(len(prompts)):
            values = Activations({site: value[i : i + 1] for site, value in slices.items()})
            frozen = cls(model, prompts[i], values, logits[i], folded)
            frozen.require_linear()
            yield frozen

    @property
    def n_positions(self) -> int:
        """Tokens of the prompt."""
        return self.prompts.tokens.shape[1]

    @cached_property
    def layers(self) -> list[FrozenLayer]:
        """The linear maps of each block."""
        return [FrozenLayer(self, layer) for layer in range(self.model.cfg.n_layers)]

    @cached_property
    def is_causal(self) -> bool:
        """Whether no position attends to a later one on this prompt."""
        return not any(bool(self.pattern(layer).triu(1).any()) for layer in range(self.model.cfg.n_layers))

    @cached_property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.norm("ln_final")

    @cached_property
    def final(self) -> Float[Tensor, "pos d_model"]:
        """What the unembedding reads."""
        last, norm = self.values[f"L{self.model.cfg.n_layers - 1}.resid_post"][0], self.final_norm
        return last if norm is None else norm.forward(last) + norm.bias(last)

    @cached_property
    def logits(self) -> Float[Tensor, "vocab"]:
        """Logits after the last token, before any soft-cap."""
        return self.logits_at(self.n_positions - 1)

    def logits_at(self, pos: int) -> Float[Tensor, "vocab"]:
        """Logits after the token at `pos`, before any soft-cap."""
        return self.final[pos] @ self.model.W_U.detach() + self.model.b_U.detach()

    @property
    def capped_logits(self) -> Float[Tensor, "vocab"]:
        """Logits after the last token as the model gives them, after its soft-cap if it has one."""
        return self.capped(self.logits)

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the model's soft-cap, if it has one."""
        cap = self.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def soft_cap(self) -> float | None:
        """The bound that logits are squeezed under by tanh; None where there is none."""
        cap = getattr(self.model.cfg, "output_logits_soft_cap", None)
        return cap if cap is not None and cap > 0 else None

    def pattern(self, layer: int) -> Float[Tensor, "head dest src"]:
        """Attention probabilities of one layer."""
        return self.values[f"L{layer}.pattern"][0]

    def mlp_out(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """What one layer's MLP adds to the residual stream."""
        return self.values[f"L{layer}.mlp_out"][0]

    def norm(self, name: str) -> Norm | None:
        """The norm of that name, `L3.ln1` or `ln_final`, with its scale held; None where the model has none."""
        return Norm.of(_module(self.model, name), self.values[f"{name}.scale"][0]) if _has(self.model, name) else None

    def freeze(self, *, mlps: bool) -> list[Replace]:
        """Interventions that hold patterns and scales, and MLP outputs too if `mlps`, at this prompt's values."""
        sites = _frozen_sites(self.model)
        sites += [f"L{layer}.mlp_out" for layer in range(self.model.cfg.n_layers)] if mlps else []
        return [Replace(site, _for_every_head(self.values[site])) for site in sites]

    @torch.no_grad()
    def require_linear(self) -> None:
        """Raise ValueError where the residual stream is not what weights, patterns and scales make of it."""
        model, at = self.model, lambda site: self.values[site][0]
        if not hasattr(model.unembed, "W_U"):
            raise ValueError(
                f"the unembedding is a {type(model.unembed).__name__} without W_U; the logits are not linear"
            )
        stream, last = at("embed"), "the embedding"
        stream = stream + at("pos_embed") if adds_positions(model.cfg) else stream
        for layer in range(model.cfg.n_layers):
            _require_equal(stream, at(f"L{layer}.resid_pre"), f"what goes into layer {layer}", last)
            stream = at(f"L{layer}.resid_pre")
            attended = self.layers[layer].attention_out(stream)
            _require_equal(attended, at(f"L{layer}.attn_out"), f"L{layer}.attn_out", "its patterns and values")
            stream = stream + at(f"L{layer}.attn_out")
            stream = stream if model.cfg.attn_only else stream + self.mlp_out(layer)
            last = f"what layer {layer} puts out"
        _require_equal(stream, at(f"L{model.cfg.n_layers - 1}.resid_post"), "the last residual stream", last)
        logits = torch.stack([self.capped(self.logits_at(pos)) for pos in {0, self.n_positions - 1}])
        seen = torch.stack([self.given[pos] for pos in {0, self.n_positions - 1}])
        if seen.shape != logits.shape:
            raise ValueError(
                f"the model's logits are {list(self.given.shape)}, its unembedding gives {logits.shape[1]}"
            )
        _require_equal(logits, seen, "the logits", "the last residual stream")


def adds_positions(cfg) -> bool:
    """Whether position embeddings are added to the residual stream."""
    return cfg.positional_embedding_type == "standard"


def _kept(model) -> list[str]:
    """Sites whose values a frozen model keeps."""
    cfg, layers = model.cfg, range(model.cfg.n_layers)
    sites = ["embed", *(["pos_embed"] if cfg.positional_embedding_type in _EMBEDDED else []), *_frozen_sites(model)]
    for layer in layers:
        sites += [f"L{layer}.{name}" for name in ("resid_pre", "attn_out", "resid_post")]
        sites += [] if cfg.attn_only else [f"L{layer}.mlp_out"]
        sites += [] if cfg.attn_only or cfg.parallel_attn_mlp else [f"L{layer}.resid_mid"]
        sites += [] if cfg.clip_qkv is None else [f"L{layer}.v"]
    return sites


def _frozen_sites(model) -> list[str]:
    """Patterns, and the scales of all norms of the residual stream."""
    layers = range(model.cfg.n_layers)
    norms = [f"L{layer}.{name}" for layer in layers for name in _NORMS]
    return [f"L{layer}.pattern" for layer in layers] + [f"{n}.scale" for n in [*norms, "ln_final"] if _has(model, n)]


def _module(model, norm: str) -> Any:
    """The module of `L3.ln1` or `ln_final`."""
    layer, _, name = norm.rpartition(".")
    return getattr(model.blocks[int(layer[1:])], name, None) if layer else getattr(model, "ln_final", None)


def _has(model, norm: str) -> bool:
    return hasattr(_module(model, norm), "hook_scale")


def _for_every_head(value: Tensor) -> Tensor:
    """A scale `[1, pos, head, 1]`, the same for all heads, for however many there are."""
    return value[:, :, :1] if value.ndim == 4 and value.shape[-1] == 1 else value


def _require_equal(made: Tensor, seen: Tensor, what: str, of: str) -> None:
    size = float(seen.abs().max())
    off = float((made - seen).abs().max())
    allowed = max(_OFF, _ROUNDINGS * torch.finfo(seen.dtype).eps)
    if not off <= allowed * max(size, torch.finfo(seen.dtype).tiny):
        raise ValueError(
            f"{what} differs by {off:.2g} (its largest entry is {size:.2g}) from what {of} gives by the model's own "
            "weights; hooks and modules of your own between them are not followed by graphs: trace a model without"
        )
