"""One MLP seen through a feature basis: what each feature reads, when it is active, and what it writes.

A `Transcoder` reads an MLP's input and rebuilds its output from features: `y = activations(x) @ W_dec + b_dec`,
plus `x @ W_skip.T` where it has a skip connection (SAELens's convention, `W_skip[d_out, d_in]`). `neurons` gives
the model's own MLP neurons in the same shape, where the rebuilding is exact.

>>> first, second = transcoders
>>> first.activations(cache[first.hook_in]).shape              # [prompt, pos, feature]
torch.Size([50, 4, 448])
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Transcoder:
    """The features of one layer's MLP; all tensors on one device, in one dtype."""

    layer: int
    """The layer whose MLP it stands for."""
    W_enc: Float[Tensor, "d_model feature"]
    """The direction of the MLP's input that each feature reads."""
    b_enc: Float[Tensor, "feature"]
    """What is added to each pre-activation."""
    W_dec: Float[Tensor, "feature d_model"]
    """The direction of the MLP's output that each feature writes, for an activation of 1."""
    b_dec: Float[Tensor, "d_model"]
    """What is written whatever the features do."""
    hook_in: str
    """Hook of the MLP's input, `blocks.{layer}.ln2.hook_normalized`."""
    hook_out: str
    """Hook of the MLP's output, `blocks.{layer}.hook_mlp_out`."""
    threshold: Float[Tensor, "feature"] | None = None
    """JumpReLU: a feature is active where its pre-activation exceeds this; None is a plain ReLU."""
    W_skip: Float[Tensor, "d_model d_model"] | None = None
    """Linear part `[d_out, d_in]`, used as `x @ W_skip.T`; None is no skip connection."""
    name: str = ""
    """What the basis is called in results."""
    function: Callable[[Tensor], Tensor] | None = None
    """Elementwise activation function of neurons that are not ReLU; None is ReLU, or JumpReLU with `threshold`."""

    @property
    def d_features(self) -> int:
        """How many features there are."""
        return self.W_enc.shape[1]

    def preactivations(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b feature"]:
        """What each feature reads off `x`, before the activation function."""
        return x @ self.W_enc + self.b_enc

    def activations(self, x: Float[Tensor, "*b d_model"]) -> Float[Tensor, "*b feature"]:
        """How active each feature is on `x`."""
        return self.activate(self.preactivations(x))

    def activate(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """The activation function on pre-activations."""
        if self.function is not None:
            return self.function(pre)
        active = torch.relu(pre)
        return active if self.threshold is None else active * (pre > self.threshold).to(pre.dtype)

    def slope(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """Derivative of `activate`: 1 where a ReLU or JumpReLU feature is active, else 0."""
        if self.function is None:
            floor = 0 if self.threshold is None else self.threshold.clamp(min=0)
            return (pre > floor).to(pre.dtype)
        with torch.enable_grad():
            point = pre.detach().requires_grad_(True)
            return torch.autograd.grad(self.function(point).sum(), point)[0]

    def decode(
        self, activations: Float[Tensor, "*b feature"], x: Float[Tensor, "*b d_model"] | None = None
    ) -> Float[Tensor, "*b d_model"]:
        """The MLP output that these activations write, `b_dec` included.

        Raises ValueError where there is a skip connection and `x`, the MLP's input, is not given.
        """
        written = activations @ self.W_dec + self.b_dec
        if self.W_skip is None:
            return written
        if x is None:
            raise ValueError(f"'{self.name}' has a skip connection; decode needs the MLP's input x as well")
        return written + x @ self.W_skip.T


def neurons(model) -> list[Transcoder]:
    """The MLP neurons of every layer as a basis; decoding their activations is exact.

    The weights of the norm before the MLP, if any are left, are folded into what a neuron reads. Raises ValueError
    for a model whose MLPs are missing, gated, normed inside or after, or mixtures of experts: a neuron of theirs is
    more than a function of one pre-activation.
    """
    cfg = model.cfg
    switches = ("attn_only", "gated_mlp", "num_experts", "use_normalization_before_and_after")
    odd = [name for name in switches if getattr(cfg, name)]
    odd += [cfg.act_fn] if "solu" in str(cfg.act_fn) or str(cfg.act_fn).endswith("_ln") else []
    if odd:
        raise ValueError(
            f"'{cfg.model_name}' has no plain MLP neurons ({', '.join(odd)}); "
            "a neuron basis needs an ungated MLP with an elementwise activation function; give transcoders instead"
        )
    return [_neurons_of(model, layer) for layer in range(cfg.n_layers)]


def mlp_hooks(model, layer: int) -> tuple[str, str]:
    """The hooks of a layer's MLP input and output."""
    block, unnormed = f"blocks.{layer}", "hook_resid_pre" if model.cfg.parallel_attn_mlp else "hook_resid_mid"
    normed = f"{block}.ln2.hook_normalized"
    return normed if normed in model.hook_dict else f"{block}.{unnormed}", f"{block}.hook_mlp_out"


@torch.no_grad()
def _neurons_of(model, layer: int) -> Transcoder:
    block = model.blocks[layer]
    mlp, norm = block.mlp, getattr(block, "ln2", None)
    gain, shift = getattr(norm, "w", None), getattr(norm, "b", None)
    hook_in, hook_out = mlp_hooks(model, layer)
    return Transcoder(
        layer=layer,
        W_enc=(mlp.W_in if gain is None else gain[:, None] * mlp.W_in).detach(),
        b_enc=(mlp.b_in if shift is None else shift @ mlp.W_in + mlp.b_in).detach(),
        W_dec=mlp.W_out.detach(),
        b_dec=mlp.b_out.detach(),
        hook_in=hook_in,
        hook_out=hook_out,
        name="neurons",
        function=None if model.cfg.act_fn == "relu" else mlp.act_fn,
    )
