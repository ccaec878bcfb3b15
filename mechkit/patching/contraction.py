"""From hook tensors and gradients to one number per site: change times slope, summed over the site's slice.

`Contraction` holds the tensors of some prompts; sites that differ in head and index alone are handled together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.gradients import Found, Tensors
from mechkit.core.places import Place, cut, places
from mechkit.core.prompts import Prompts
from mechkit.core.site import HEAD_NAMES, SQUARE_NAMES, Site
from mechkit.patching.qk_fix import FIXED, Attention

Scores = Float[Tensor, "set site prompt"]
Spots = Sequence[tuple[list[int], Place, Place]]
"""Rows of a batch, with the place of a site in one side's prompts and in the other's."""

Part = tuple[int | None, int | None]
"""Head and index of a site; None for all."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """Values and gradients of one batch of prompts, ready to be read site by site."""

    model: Any
    """The HookedTransformer."""
    near: Found
    """The run whose slopes are taken."""
    far: Tensors | None
    """Values that would come in; None to score the values of `near` themselves."""
    prompts: tuple[Prompts, Prompts]
    """The prompts of `near` and of `far`."""
    attentions: dict[int, Attention]
    """Attention by layer, for the queries and keys whose softmax is computed anew; empty for none."""

    def scores(self, sites: Sequence[Site]) -> Scores:
        """The score of every site on each prompt, once per set of gradients."""
        n_sets, n_prompts = len(self.near.gradients), len(self.prompts[0])
        dtype = torch.promote_types(self.near.logits.dtype, torch.float32)
        found = torch.empty(n_sets, len(sites), n_prompts, dtype=dtype, device=self.near.logits.device)
        for place, members in by_place(sites):
            spots = self._spots(place)
            numbers, parts = torch.tensor([i for i, *_ in members], device=found.device), [m[1:] for m in members]
            if place.name in FIXED and place.layer in self.attentions:
                found[:, numbers] = self._through_softmax(place, parts, spots).to(dtype)
                continue
            for rows, here, there in spots:
                table = self._table(place, rows, here, there, indexed=parts[0][1] is not None)
                found[:, numbers[:, None], torch.tensor(rows, device=found.device)] = _pick(table, parts).to(dtype)
        return found

    def _table(self, site: Site, rows: list[int], here: Place, there: Place, *, indexed: bool) -> Tensor:
        """Scores of the place on some of the prompts, by head, and by index if `indexed`."""
        total: Any = 0
        name = source_hook(self.model, site, indexed=indexed)
        site = site.at(name="z") if site.name == "result" and name.endswith("hook_z") else site
        for firing, near in enumerate(tensors(self.model, self.near.values, name)):
            change = self._change(name, firing, site, near, rows, here, there)
            slopes = [tensors(self.model, one, name, slopes=True)[firing] for one in self.near.gradients]
            cuts = [cut(_rows(slope, rows), site, here).to(change.dtype) for slope in slopes]
            total = total + _by_head(torch.stack([change * slope for slope in cuts]), site, indexed=indexed)
        return total

    def _change(
        self, name: str, firing: int, site: Site, near: Tensor, rows: list[int], here: Place, there: Place
    ) -> Tensor:
        """What would come in less what is there, or what is there."""
        dtype = torch.promote_types(near.dtype, torch.float32)
        old = cut(_rows(near, rows), site, here).to(dtype)
        if self.far is None:
            return old
        new = cut(_rows(tensors(self.model, self.far, name)[firing], rows), site, there).to(dtype)
        return torch.where(new == old, 0, new - old)  # masked scores are -inf on both sides

    def _through_softmax(self, site: Site, parts: list[Part], spots: Spots) -> Scores:
        """Scores of queries or keys with the pattern computed anew, one index after the other."""
        assert self.far is not None
        new, attention = self.far[site.hook][0], self.attentions[site.layer]  # type: ignore[index]
        indices = dict.fromkeys(index for _, index in parts)
        effects = {index: attention.effects(site.at(index=index), new, spots) for index in indices}
        return torch.cat([_pick(effects[index], [(head, None)]) for head, index in parts], 1)

    def _spots(self, site: Site) -> Spots:
        near, far = (places(site, prompts) for prompts in self.prompts)
        found: dict[str, tuple[list[int], Place, Place]] = {}
        for i, (here, there) in enumerate(zip(near, far, strict=True)):
            found.setdefault(repr((here, there)), ([], here, there))[0].append(i)
        return list(found.values())


def by_place(sites: Sequence[Site]) -> Iterator[tuple[Site, list[tuple[int, int | None, int | None]]]]:
    """Places without head and index, each with the sites there as (number, head, index); sites without index apart."""
    found: dict[tuple[Site, bool], list] = {}
    for i, site in enumerate(sites):
        place = site.at(head=None, index=None), site.index is None
        found.setdefault(place, []).append((i, site.head, site.index))
    for (place, _), members in found.items():
        yield place, members


def source_hook(model, site: Site, *, indexed: bool) -> str:
    """The hook whose tensors score a site.

    A head's result is a linear function of its z, and where the model does not compute it, so is its score. Raises
    ValueError for a resid_mid that is not the residual stream, as on a TransformerBridge.
    """
    if site.name == "resid_mid" and model.hook_dict[site.hook] is getattr(
        model.blocks[site.layer].ln2, "hook_in", None
    ):
        raise ValueError(
            f"site '{site}' is what the MLP alone reads on a {type(model).__name__}, so its slope is not that of the "
            f"residual stream; take 'L{site.layer}.attn_out', whose slope is, or resid_pre and resid_post"
        )
    if site.name != "result" or model.cfg.use_attn_result:
        return site.hook
    return site.hook if indexed else site.at(name="z").hook


def tensors(model, found: Tensors, name: str, *, slopes: bool = False) -> Sequence[Tensor]:
    """The tensors of a hook; those of `result`, where the model has none, from z and from the attention's output."""
    if name in found or not name.endswith("hook_result"):
        return found[name]
    attn = name.removesuffix(".hook_result")
    z = found[f"{attn}.hook_z"][0]
    if slopes:
        return [found[attn][0][:, :, None].expand(-1, -1, z.shape[2], -1)]
    return [torch.einsum("bphe,hed->bphd", z, model.get_submodule(attn).W_O.detach().to(z.dtype))]


def hooks_for(model, sites: Sequence[Site], *, qk_fix: bool) -> list[str]:
    """Full names of the hooks that the scores of these sites need, once each, in order."""
    needed: dict[str, None] = {}
    alike = (site.at(head=None, pos=None, src=None, index=None if site.index is None else 0) for site in sites)
    for place in dict.fromkeys(alike):
        name = source_hook(model, place, indexed=place.index is not None)
        if name.endswith("hook_result") and not model.cfg.use_attn_result:
            attn = name.removesuffix(".hook_result")
            needed |= dict.fromkeys([f"{attn}.hook_z", attn])
            continue
        needed[name] = None
        if qk_fix and place.name in FIXED:
            needed[place.at(name="pattern", index=None).hook] = None
    return list(needed)


def _by_head(product: Float[Tensor, "set prompt *slice"], site: Site, *, indexed: bool) -> Tensor:
    """The product summed over positions, by head (a single one where the hook has none), and by index if `indexed`."""
    if site.name not in HEAD_NAMES:
        product = product.unsqueeze(2)
    elif site.name not in SQUARE_NAMES:
        product = product.movedim(-2, 2)
    rest = product.reshape(*product.shape[:3], -1, product.shape[-1] if indexed else 1)
    return rest.sum(3) if indexed else rest.sum((3, 4))


def _pick(table: Float[Tensor, "set prompt head *index"], parts: Sequence[Part]) -> Scores:
    """What the table holds for each head, None for all of them, and index."""
    n_heads = table.shape[2]
    table = torch.cat([table, table.sum(2, keepdim=True)], 2)
    heads = torch.tensor([n_heads if head is None else head for head, _ in parts], device=table.device)
    if table.ndim == 3:
        return table[:, :, heads].transpose(1, 2)
    return table[:, :, heads, torch.tensor([index for _, index in parts], device=table.device)].transpose(1, 2)


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    return x if len(rows) == len(x) else x[rows]
