"""Rules for the backward pass: what is taken as constant, and by what a slope is replaced.

    at(model, side, rows, names, measure, relp(model))

Every rule leaves the forward pass as it is, bit for bit.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from mechkit.core.gradients import Rules
from mechkit.core.interventions import Hook


def relp(model) -> Rules:
    """Layer-wise relevance propagation's rules, as gradients.

    Attention patterns and normalisation scales are constants. An activation function f(x) is the line f(x) / x · x
    through its value (its slope where x is 0), and a product of gate and linear part passes half to each. Raises
    ValueError for MLPs whose pre-activations have no hook of their own (mixtures of experts).
    Source: Jafari et al. 2025 (RelP), section 3: the LN, identity, attention and half rules.
    """
    constant = [name for name in model.hook_dict if name.endswith(("hook_pattern", "hook_scale"))]
    layers = [] if model.cfg.attn_only else range(model.cfg.n_layers)
    rules = [_activation(model, f"blocks.{layer}.mlp", model.blocks[layer].mlp) for layer in layers]
    before = [(name, _detached) for name in constant] + [hook for before, _ in rules for hook in before]
    return Rules(before, [hook for _, after in rules for hook in after])


def direct_paths(model, neurons: Collection[Any] = ()) -> Rules:
    """Only skip connections carry gradients: what heads and MLPs write is constant, and so is the final norm's scale.

    In the layers `neurons` it is the neurons that are constant, so that what they write has a gradient at each.
    """
    layers = range(model.cfg.n_layers)
    cuts = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    if not model.cfg.attn_only:
        cuts += [f"blocks.{layer}.{'mlp.hook_post' if layer in neurons else 'hook_mlp_out'}" for layer in layers]
    cuts += ["ln_final.hook_scale"] if "ln_final.hook_scale" in model.hook_dict else []
    return Rules([(name, _detached) for name in cuts])


def _detached(x: Tensor, module) -> Tensor:
    return x.detach()


def _activation(model, name: str, mlp) -> tuple[list[Hook], list[Hook]]:
    """Hooks of one MLP that keep its pre-activations, and that give its activations a new slope."""
    if f"{name}.hook_pre" not in model.hook_dict:
        raise ValueError(
            f"RelP needs the pre-activations of every MLP, and '{name}' has no hook_pre (a mixture of "
            "experts?); take method='gradient' or 'integrated'"
        )
    kept: dict[str, Tensor] = {}
    inputs = [part for part in ("pre", "pre_linear") if f"{name}.hook_{part}" in model.hook_dict]
    output = f"{name}.hook_mid" if f"{name}.hook_mid" in model.hook_dict else f"{name}.hook_post"

    def keep(part: str) -> Hook:
        return f"{name}.hook_{part}", lambda x, module: kept.update({part: x})

    def bend(x: Tensor, module) -> Tensor:
        pre, linear = kept.pop("pre"), kept.pop("pre_linear", None)
        if linear is None:
            return _As.apply(x, _line(pre, x))  # type: ignore[return-value]
        return _As.apply(x, _line(pre, mlp.act_fn(pre)) * linear / 2)  # type: ignore[return-value]

    return [(output, bend)], [keep(part) for part in inputs]


def _line(x: Tensor, y: Tensor) -> Tensor:
    """`y` as a multiple of `x`, with the multiple held; `y` itself where `x` is 0."""
    ratio = torch.where(x == 0, 0, y / x).detach()
    return torch.where(x == 0, y, x * ratio)


class _As(torch.autograd.Function):
    """A value with the gradient of another tensor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]
