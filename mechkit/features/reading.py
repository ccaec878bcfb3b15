"""Activations of SAE features on rows of tokens: the model stops once the last hook that is wanted has fired."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechkit.core.loop import hooked

AT_ONCE = 1 << 24
"""Activations of features that are encoded together, at most."""


class _Reached(Exception):
    """The last hook that is wanted has fired."""


@torch.no_grad()
def values_at(model, tokens: Int[Tensor, "row pos"], hooks: Iterable[str]) -> dict[str, Float[Tensor, "row pos ..."]]:
    """What the model holds at each hook. Cost: a forward pass as far as the last of them.

    Raises ValueError for a hook that does not fire.
    """
    wanted, found = dict.fromkeys(hooks), {}

    def keep(name: str):
        def hook(x: Tensor, hook) -> None:
            found.setdefault(name, x)
            if len(found) == len(wanted):
                raise _Reached

        return hook

    with hooked(model, [(name, keep(name)) for name in wanted]), suppress(_Reached):
        model(tokens, return_type=None)
    silent = [name for name in wanted if name not in found]
    if silent:
        raise ValueError(f"{', '.join(silent)} does not fire on this model as it is set up")
    return found


@torch.no_grad()
def encoded(sae, x: Float[Tensor, "row pos ..."], real: Bool[Tensor, "row pos"]) -> Float[Tensor, "token feature"]:
    """Activations of the features on every real token, row after row. `x` is what lies at the SAE's hook."""
    x = own_part(sae, x)
    if sae.cfg.architecture() == "temporal":  # reads a token's context as well
        return sae.encode(x)[real]
    return sae.encode(x[real])


def own_part(sae, x: Float[Tensor, "row pos ..."]) -> Float[Tensor, "row pos ..."]:
    """The part of a hook's values that an SAE reads: one head, or all of them side by side."""
    head = sae.cfg.metadata.hook_head_index
    if head is not None and x.ndim == 4:
        return x[:, :, head]
    return x if x.ndim == 3 or sae.cfg.reshape_activations == "hook_z" else x.flatten(2)


def named_saes(saes: Any) -> dict[str, Any]:
    """SAEs by name, from one of them, a list or a mapping; those of a list are called by their hooks.

    Raises ValueError where two have one name or a name is no file name, TypeError for what is no SAE.
    """
    if hasattr(saes, "cfg"):
        saes = [saes]
    pairs = list(saes.items()) if isinstance(saes, Mapping) else [(_hook_of(sae), sae) for sae in saes]
    named = dict(pairs)
    twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
    odd = [name for name in named if not re.fullmatch(r"\w[\w.\-]*", name)]
    if twice or odd or not named:
        raise ValueError(
            f"SAEs need different names of letters, digits, dots and dashes: "
            f"{'given twice ' + str(twice) if twice else odd or 'there are none'}; give a mapping of names to SAEs"
        )
    return named


def _hook_of(sae) -> str:
    if not hasattr(sae, "cfg") or not hasattr(sae, "encode"):
        raise TypeError(f"an SAE is one of SAELens's, not {type(sae).__name__}; see mechkit.dictionaries.load_sae")
    return str(sae.cfg.metadata.hook_name)


def require_fit(model, saes: Mapping[str, Any]) -> None:
    """Raise ValueError for an SAE whose hook the model lacks or whose width is another. Cost: a pass of one token."""
    for name, sae in saes.items():
        hook = sae.cfg.metadata.hook_name
        if hook not in model.hook_dict:
            raise ValueError(f"SAE '{name}' reads {hook!r}, which is no hook of this model")
    token = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
    found = values_at(model, token, [sae.cfg.metadata.hook_name for sae in saes.values()])
    for name, sae in saes.items():
        hook = sae.cfg.metadata.hook_name
        width = own_part(sae, found[hook])[0, 0].numel()
        if width != sae.cfg.d_in:
            raise ValueError(f"SAE '{name}' reads {sae.cfg.d_in} numbers; {hook} of this model has {width}")
        if sae.W_dec.device != found[hook].device:
            raise ValueError(
                f"SAE '{name}' is on {sae.W_dec.device}, the model on {found[hook].device}; move one of them"
            )


def device_of(model) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def padded(rows: Sequence[Any], device: torch.device) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Rows of token ids padded on the right with zeros, and which tokens are real."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return tokens.to(device), (torch.arange(width) < lengths[:, None]).to(device)
