"""A model's own MLP neurons as a feature basis: nothing is left out, so every model can be traced.

A plain neuron is a function of one pre-activation, and its basis a `Transcoder`. A gated neuron is
`act(gate) * linear`, two numbers that are each linear in the input. The neurons of a mixture of experts are those of
all its experts, times the weight that the router gives the expert; that weight counts as part of the gating.

    basis = neurons(model)[3]
    basis.activations(cache[basis.hook_in])        # [prompt, pos, neuron]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.dictionaries.transcoder import Transcoder, after_norm, mlp_hooks, mlp_input_norm, slopes_of

_ONE_HOTS = 64
"""Neurons whose derivative is taken at once where neurons share a norm."""


@dataclass(frozen=True, eq=False)
class GatedNeurons:
    """The neurons `function(gate) * linear` of one layer's MLP; all tensors on one device, in one dtype."""

    layer: int
    """The layer whose MLP it is."""
    W_gate: Float[Tensor, "d_model feature"]
    """The direction that each neuron's gate reads."""
    b_gate: Float[Tensor, "feature"]
    """What is added to each gate."""
    W_linear: Float[Tensor, "d_model feature"]
    """The direction that each neuron's linear part reads."""
    b_linear: Float[Tensor, "feature"]
    """What is added to each linear part."""
    W_dec: Float[Tensor, "feature d_model"]
    """The direction that each neuron writes, for an activation of 1."""
    b_dec: Float[Tensor, "d_model"]
    """What the MLP writes whatever its neurons do."""
    hook_in: str
    """Hook of the MLP's input."""
    hook_out: str
    """Hook of the MLP's output."""
    function: Callable[[Tensor], Tensor]
    """The gate's activation function."""
    route: Callable[[Tensor], Tensor] | None = None
    """From the MLP's input to each neuron's weight, for a mixture of experts."""
    name: str = "neurons"
    """What the basis is called in results."""
    W_skip: ClassVar[None] = None
    """There is no skip connection."""
    parts: ClassVar[tuple[str, ...]] = ("gate", "linear")
    """Names of a neuron's two pre-activations."""

    @property
    def d_features(self) -> int:
        """How many neurons there are."""
        return self.W_gate.shape[1]

    @property
    def reaches(self) -> range:
        """Layers whose MLP output the neurons write to."""
        return range(self.layer, self.layer + 1)

    def sums(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Gates and linear parts."""
        return x @ self.W_gate + self.b_gate, x @ self.W_linear + self.b_linear

    def activations(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b feature"]:
        """The neurons, times their expert's weight where there are experts."""
        gate, linear = self.sums(x)
        active = self.function(gate) * linear
        return active if self.route is None else active * self.route(x)

    def slopes(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Derivative by the gate and by the linear part, the router's weights held."""
        gate, linear = self.sums(x)
        slopes = slopes_of(self.function, gate) * linear, self.function(gate)
        return slopes if self.route is None else tuple(slope * self.route(x) for slope in slopes)

    def reads(self, ids: Sequence[int], part: str = "gate") -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n"]]:
        """The directions that these neurons' gates, or linear parts, read, and what is added to each."""
        W, b = (self.W_gate, self.b_gate) if part == "gate" else (self.W_linear, self.b_linear)
        chosen = torch.as_tensor(ids, device=W.device)
        return W[:, chosen].T, b[chosen]

    def writes(self, ids: Sequence[int], layer: int) -> Float[Tensor, "n d_model"]:
        """The directions that these neurons write, for an activation of 1."""
        return self.W_dec[torch.as_tensor(ids, device=self.W_dec.device)]

    def decode(self, activations: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b d_model"]:
        """The MLP output that these activations write, `b_dec` included."""
        return activations @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class NormedNeurons(Transcoder):
    """Neurons whose activation function mixes them (SoLU and the norm after it)."""

    def slope(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """Derivative of each neuron by its own pre-activation. Cost: one backward pass of the function per neuron."""
        assert self.function is not None
        slopes = torch.empty_like(pre)
        with torch.enable_grad():
            point = pre.detach().requires_grad_(True)
            out = self.function(point)
            for chosen in torch.arange(pre.shape[-1], device=pre.device).split(_ONE_HOTS):
                ones = torch.zeros(len(chosen), *pre.shape, dtype=pre.dtype, device=pre.device)
                ones[torch.arange(len(chosen)), ..., chosen] = 1
                moved = torch.autograd.grad(out, point, ones, is_grads_batched=True, retain_graph=True)[0]
                slopes[..., chosen] = torch.stack([one[..., i] for one, i in zip(moved, chosen, strict=True)], -1)
        return slopes


@torch.no_grad()
def neurons(model) -> "list[Transcoder | GatedNeurons]":
    """The MLP neurons of every layer as a basis; decoding their activations is exact. None for a model without MLPs.

    The weights of the norm before the MLP, if any are left, are folded into what a neuron reads. Where a norm follows
    the MLP, neurons write to what goes into it (`blocks.{layer}.mlp.hook_out`). Raises ValueError for an MLP that is
    not TransformerLens's own.
    """
    return [] if model.cfg.attn_only else [_neurons_of(model, layer) for layer in range(model.cfg.n_layers)]


def _neurons_of(model, layer: int) -> "Transcoder | GatedNeurons":
    from transformer_lens import components

    tl: Any = components
    mlp, (hook_in, hook_out) = model.blocks[layer].mlp, mlp_hooks(model, layer)
    hook_out = f"blocks.{layer}.mlp.hook_out" if after_norm(model, layer, "mlp") else hook_out
    if type(mlp) is tl.GatedMLP and getattr(mlp, "ln", None) is None:
        return _gated(model, layer, hook_in, hook_out)
    if type(mlp) is tl.MoE:
        return _experts(model, layer, hook_in, hook_out)
    if type(mlp) is not tl.MLP:
        raise ValueError(
            f"the MLP of layer {layer} is a {type(mlp).__name__}, whose neurons are not known; give transcoders instead"
        )
    W_enc, b_enc = _folded(model, layer, mlp.W_in, mlp.b_in)
    normed = getattr(mlp, "ln", None) is not None
    kind = NormedNeurons if normed or "solu" in str(model.cfg.act_fn) else Transcoder
    after = partial(_normed, mlp) if normed else mlp.act_fn
    plain = mlp.act_fn in (torch.relu, torch.nn.functional.relu)
    return kind(
        layer=layer,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=mlp.W_out.detach(),
        b_dec=mlp.b_out.detach(),
        hook_in=hook_in,
        hook_out=hook_out,
        name="neurons",
        function=None if plain and not normed else after,
    )


def _normed(mlp, pre: Tensor) -> Tensor:
    return mlp.ln(mlp.act_fn(pre))


def _gated(model, layer: int, hook_in: str, hook_out: str) -> GatedNeurons:
    mlp, none = model.blocks[layer].mlp, 0.0
    return GatedNeurons(
        layer,
        *_folded(model, layer, mlp.W_gate, none),
        *_folded(model, layer, mlp.W_in, none),
        W_dec=mlp.W_out.detach(),
        b_dec=(mlp.b_in @ mlp.W_out + mlp.b_out).detach(),
        hook_in=hook_in,
        hook_out=hook_out,
        function=mlp.act_fn,
    )


def _experts(model, layer: int, hook_in: str, hook_out: str) -> GatedNeurons:
    mlp, experts = model.blocks[layer].mlp, model.blocks[layer].mlp.experts
    side = lambda name: torch.cat([getattr(expert, name).weight.T for expert in experts], 1)  # noqa: E731
    W_router, b_router = _folded(model, layer, mlp.W_gate.weight.T, 0.0)

    def route(x: Tensor) -> Tensor:
        shares = torch.softmax((x @ W_router + b_router).float(), -1)
        best = shares.topk(mlp.experts_per_token, -1)
        values = best.values / best.values.sum(-1, keepdim=True) if model.cfg.norm_topk_prob else best.values
        weights = torch.zeros_like(shares).scatter(-1, best.indices, values)
        return weights.to(x.dtype).repeat_interleave(experts[0].d_mlp, -1)

    W_dec = torch.cat([expert.W_out.weight.T for expert in experts]).detach()
    return GatedNeurons(
        layer,
        *_folded(model, layer, side("W_gate"), 0.0),
        *_folded(model, layer, side("W_in"), 0.0),
        W_dec=W_dec,
        b_dec=W_dec.new_zeros(W_dec.shape[1]),
        hook_in=hook_in,
        hook_out=hook_out,
        function=experts[0].act_fn,
        route=route,
    )


def _folded(model, layer: int, W: Tensor, b: "Tensor | float") -> tuple[Tensor, Tensor]:
    """Weights and bias over what the MLP's norm holds before its own weights."""
    norm = mlp_input_norm(model, layer)
    gain, shift = getattr(norm, "w", None), getattr(norm, "b", None)
    added = W.new_zeros(W.shape[1]) + b if shift is None else shift @ W + b
    return (W if gain is None else gain[:, None] * W).detach(), added.detach()
