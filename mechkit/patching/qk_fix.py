"""The QK fix of AtP*: what a query or key does through the softmax, exactly.

A softmax that is saturated has no slope, so that a gradient through it says that no query matters. Here the pattern is
computed anew, by the model's own attention, with the query or key in place; only from the pattern on is the effect
linear.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.gradients import Found, Side, installed
from mechkit.core.places import Place, cut, paste
from mechkit.core.site import Site

FIXED = frozenset({"q", "k", "rot_q", "rot_k"})
"""Hooks whose effect passes the softmax and nothing else."""

_CACHES = frozenset({"past_kv_cache_entry", "past_key_values", "past_key_value"})
"""Arguments that would add the keys of the first call to those of the next."""

_NORMS_ACROSS_HEADS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")


@dataclass(frozen=True, eq=False)
class Attention:
    """One block's attention on some prompts, ready to be run again with other queries or keys."""

    model: Any
    """The HookedTransformer."""
    layer: int
    """Block, from 0."""
    inputs: tuple[tuple, dict]
    """What the block's attention was called with."""
    side: Side
    """The prompts and their edits."""
    rows: Sequence[int]
    """Which of the prompts."""
    found: Found
    """Values and gradients of the base run."""

    def effects(self, site: Site, new: Tensor, spots: Sequence[tuple[list[int], Place, Place]]) -> Tensor:
        """What the slice of `new` at `site` does to the metric through the pattern, `[set, prompt, head]`.

        Heads are the site's own kind, and each is changed alone: no head's pattern depends on another's. `spots` are
        batch rows with the site's place in the base and in `new`.
        """
        base, whole = self.found.values[site.hook][0], site.at(head=None)
        changed = base.clone()
        for rows, here, there in spots:
            part = cut(new[rows], whole, there)
            changed[rows] = paste(base[rows], whole, here, part)
        pattern = self.pattern(site.hook, changed) - self.found.values[self.hook("pattern")][0]
        slopes = torch.stack([gradients[self.hook("pattern")][0] for gradients in self.found.gradients])
        effect = (pattern * slopes).sum((-1, -2))
        return effect.unflatten(-1, (base.shape[2], -1)).sum(-1)

    def hook(self, name: str) -> str:
        """Full name of one of this attention's hooks."""
        return f"blocks.{self.layer}.attn.hook_{name}"

    @torch.no_grad()
    def pattern(self, hook: str, changed: Tensor) -> Float[Tensor, "prompt head dest src"]:
        """The pattern with one hook's tensor changed, and all else as in the base run."""
        seen: list[Tensor] = []
        edits = [edit for edit in self.side.hooks(self.rows) if edit[0].startswith(f"blocks.{self.layer}.attn.")]
        put = [(hook, lambda x, module: changed), (self.hook("pattern"), lambda x, module: seen.append(x))]
        args, kwargs = self.inputs
        with installed(self.model, [*edits, *put]):
            self.model.blocks[self.layer].attn(*args, **kwargs)
        return seen[0]


@contextmanager
def attention_inputs(model, layers: Sequence[int]) -> Iterator[dict[int, tuple[tuple, dict]]]:
    """What the attention of these blocks is called with inside the block, by layer."""
    kept: dict[int, tuple[tuple, dict]] = {}

    def keep(layer: int):
        def hook(module, args, kwargs) -> None:
            kwargs = {name: value for name, value in kwargs.items() if name not in _CACHES}
            plain = {name: value.detach() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
            kept[layer] = (tuple(x.detach() if isinstance(x, Tensor) else x for x in args), plain)

        return hook

    handles = []
    try:
        for layer in layers:
            handles.append(model.blocks[layer].attn.register_forward_pre_hook(keep(layer), with_kwargs=True))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def require_heads_apart(model) -> None:
    """Raise ValueError where a norm over all heads together makes one head's pattern depend on another's query."""
    architecture = getattr(model.cfg, "original_architecture", None)
    if architecture in _NORMS_ACROSS_HEADS:
        raise ValueError(
            f"qk_fix takes heads one by one, and {architecture} normalises queries and keys over all heads together; "
            "take qk_fix=False"
        )
