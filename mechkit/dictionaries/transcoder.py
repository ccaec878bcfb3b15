"""One MLP seen through a feature basis: what each feature reads, when it is active, and what it writes.

A `Transcoder` reads an MLP's input and rebuilds its output from features: `y = activations(x) @ W_dec + b_dec`,
plus `x @ W_skip.T` where it has a skip connection (SAELens's convention, `W_skip[d_out, d_in]`). `neurons`
(`mlp_neurons`) gives the model's own MLP neurons in the same shape, where the rebuilding is exact.

>>> first, second = transcoders
>>> first.activations(cache[first.hook_in]).shape              # [prompt, pos, feature]
torch.Size([50, 4, 448])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
    """Activation function of neurons that are not ReLU; None is ReLU, or JumpReLU with `threshold`."""
    k: int | None = None
    """TopK: how many features a token keeps at most, on average over the prompt where `over` says so; None is all."""
    over: Literal["token", "prompt"] = "token"
    """Whether the `k` largest of each token are kept (TopK), or the `k * n` largest of a prompt's n (BatchTopK). A
    BatchTopK dictionary with a stored threshold is a JumpReLU: give `threshold` instead."""
    parts: ClassVar[tuple[str, ...]] = ("",)
    """Names of a feature's pre-activations; it has one."""

    def __post_init__(self) -> None:
        if self.k is not None and not 0 < self.k <= self.d_features:
            raise ValueError(f"'{self.name}' keeps k = {self.k} of {self.d_features} features; k counts from 1")

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
        """The activation function on pre-activations; with `over="prompt"` on those of whole prompts."""
        return self.function(pre) if self.function is not None else gated(pre, self.threshold, self.k, self.over)

    def slope(self, pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
        """Derivative of `activate`: 1 where a ReLU, JumpReLU or TopK feature is active, else 0."""
        return (self.activate(pre) > 0).to(pre.dtype) if self.function is None else slopes_of(self.function, pre)

    # --- as a basis of graphs

    def sums(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Pre-activations by part."""
        return (self.preactivations(x),)

    def slopes(self, x: Float[Tensor, "*b d_model"]) -> tuple[Float[Tensor, "*b feature"], ...]:
        """Derivative of each activation by each of its parts."""
        return (self.slope(self.preactivations(x)),)

    @property
    def reaches(self) -> range:
        """Layers whose MLP output the features write to."""
        return range(self.layer, self.layer + 1)

    def reads(self, ids: Sequence[int], part: str = "") -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n"]]:
        """The directions that these features read, and what is added to each."""
        chosen = torch.as_tensor(ids, device=self.W_enc.device)
        return self.W_enc[:, chosen].T, self.b_enc[chosen]

    def writes(self, ids: Sequence[int], layer: int) -> Float[Tensor, "n d_model"]:
        """The directions that these features write to one of the layers they reach, for an activation of 1."""
        return self.W_dec[torch.as_tensor(ids, device=self.W_dec.device)]

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


def gated(
    pre: Float[Tensor, "*b feature"],
    threshold: Float[Tensor, "feature"] | None = None,
    k: int | None = None,
    over: Literal["token", "prompt"] = "token",
) -> Float[Tensor, "*b feature"]:
    """ReLU, JumpReLU with a `threshold`, TopK with a `k`, BatchTopK over the positions of a prompt."""
    active = torch.relu(pre)
    if threshold is not None:
        active = active * (pre > threshold).to(pre.dtype)
    if k is None:
        return active
    together = active if over == "token" or active.ndim < 2 else active.flatten(-2)
    n_kept = min(k if together is active else k * active.shape[-2], together.shape[-1])
    best = together.topk(n_kept, -1)
    return torch.zeros_like(together).scatter(-1, best.indices, best.values).view_as(active)


def slopes_of(function: Callable[[Tensor], Tensor], pre: Float[Tensor, "*b feature"]) -> Float[Tensor, "*b feature"]:
    """Derivative of an elementwise function."""
    with torch.enable_grad():
        point = pre.detach().requires_grad_(True)
        return torch.autograd.grad(function(point).sum(), point)[0]


def mlp_hooks(model, layer: int) -> tuple[str, str]:
    """The hooks of a layer's MLP input and output."""
    block, unnormed = f"blocks.{layer}", "hook_resid_pre" if model.cfg.parallel_attn_mlp else "hook_resid_mid"
    normed = mlp_input_norm(model, layer) is not None
    return f"{block}.ln2.hook_normalized" if normed else f"{block}.{unnormed}", f"{block}.hook_mlp_out"


def mlp_input_norm(model, layer: int) -> Any:
    """The norm before a layer's MLP; None where there is none."""
    norm = getattr(model.blocks[layer], "ln2", None)
    return norm if hasattr(norm, "hook_scale") and not norms_outputs_only(model.cfg) else None


def after_norm(model, layer: int, part: Literal["attn", "mlp"]) -> str | None:
    """The name of the norm after a layer's attention or MLP (Gemma 2, OLMo 2); None where there is none."""
    name = {"attn": "ln1", "mlp": "ln2"}[part] + ("" if norms_outputs_only(model.cfg) else "_post")
    present = norms_outputs_only(model.cfg) or model.cfg.use_normalization_before_and_after
    return name if present and hasattr(getattr(model.blocks[layer], name, None), "hook_scale") else None


def norms_outputs_only(cfg) -> bool:
    """Whether `ln1` and `ln2` stand after attention and MLP instead of before them, as in OLMo 2."""
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    return getattr(cfg, "original_architecture", None) in POST_NORM_ARCHITECTURES
