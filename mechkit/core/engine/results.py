"""Edits of head outputs (`result`), which TransformerLens computes only under a costly flag.

A head's output is its z through its part of W_O, so an edit of it is a change of attn_out. Both travel side by side,
`[row, pos, z and attn_out]`.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from mechkit.core.interventions import Intervention
from mechkit.core.loop import hooked
from mechkit.core.places import Place, key


class HeadOutputs:
    """The head outputs of one layer, computed where an edit looks at them."""

    def __init__(self, W_O: Tensor, n_heads: int) -> None:
        self.W_O, self.n_heads = W_O.reshape(n_heads, -1, W_O.shape[-1]), n_heads
        self.width = self.n_heads * self.W_O.shape[1]

    def write(self, edit: Intervention, both: Tensor, place: Place, numbers: list[int]) -> None:
        """Make `edit` in place: what it adds to the head outputs is added to attn_out."""
        old, new = self.tried(edit, both, place, numbers)
        delta, out = new - old, both[..., self.width :]
        if edit.site.head is None:
            delta = delta.sum(-1 if edit.site.index is not None else -2)
        where = (slice(None), place, slice(None) if edit.site.index is None else edit.site.index)
        out[where] = out[where] + delta

    def tried(self, edit: Intervention, both: Tensor, place: Place, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """The slice of the head outputs before and after `edit`."""
        site = edit.site
        z = both[..., : self.width].unflatten(-1, (self.n_heads, -1))[(slice(None), *key(site.at(index=None), place))]
        old = torch.einsum("...hd,hdm->...hm", z, self.W_O) if site.head is None else z @ self.W_O[site.head]
        old = old if site.index is None else old[..., site.index]
        return old, edit.edit(old, numbers, place).to(old.dtype)


@contextmanager
def through_attention(model, layer: int, change: Callable[[Tensor, HeadOutputs], Tensor]):
    """Inside the block, `change(z and attn_out, heads)` says what attention in `layer` puts out, before any norm.

    Enter it after hooks that edit z, so that it sees their work.
    """
    attn, kept = model.blocks[layer].attn, {}
    heads = HeadOutputs(attn.W_O, model.cfg.n_heads)

    def after(module, inputs, out: Tensor) -> Tensor:
        return change(torch.cat([kept["z"].flatten(2), out], -1), heads)[..., heads.width :]

    with hooked(model, [(f"blocks.{layer}.attn.hook_z", lambda x, hook: kept.update(z=x))]):
        handle = attn.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()
