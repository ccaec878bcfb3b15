"""What a graph explains: logits, differences of logits, directions, features, heads, any site at any position.

roots_of(frozen, bases, ["94", ("94", "84"), Site.parse("L1.H2.z@-1")])
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.site import Site
from mechkit.graphs.engine.reading import (
    Reads,
    Stage,
    at_position,
    read_features,
    read_head,
    read_logits,
    read_projection,
)
from mechkit.graphs.nodes import Node, token_text

FOLLOWED = (
    "logits", "ln_final", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "ln1.normalized",
    "ln2.normalized", "q", "k", "v", "z",
)  # fmt: skip
"""Names of sites that can be targets."""

Target = Any
"""A token's text or id; two of them, for the difference of their logits; a direction `[d_model]` over what the
unembedding reads; a site, as `Site` or text (`L1.H2.z@-1`, `L0.mlp_out[name]@3#17`); a site and a direction there."""


@dataclass(frozen=True, eq=False)
class Root:
    """One target: a direction at a site and what is added to it."""

    node: Node
    """Its node."""
    site: Site
    """Where it is read, its position counted from 0."""
    vector: Float[Tensor, "d"]
    """The direction that is read; for logits, over what the unembedding reads."""
    added: Float[Tensor, ""]
    """What is added, for logits."""

    @property
    def group(self) -> tuple:
        """Roots of one group are read together."""
        return self.site.name, self.site.layer, self.site.head, self.site.pos, self.site.basis

    @staticmethod
    def reads(roots: "Sequence[Root]", engine) -> Reads:
        """What roots of one group read."""
        frozen, site = engine.frozen, roots[0].site
        vectors, pos = torch.stack([root.vector for root in roots]), int(site.pos or 0)
        layer = int(site.layer or 0)
        maps = frozen.layers[layer]
        match site.name:
            case "logits":
                return read_logits(frozen, pos, vectors, torch.stack([root.added for root in roots]))
            case "ln_final":
                norm = frozen.final_norm.plain
                return at_position(frozen, frozen.model.cfg.n_layers, "pre", pos, vectors, norm, {})
            case "q" | "k" | "v":
                return read_projection(frozen, layer, site.name, int(site.head or 0), pos, vectors)
            case "z":
                return read_head(frozen, layer, int(site.head or 0), pos, vectors)
            case "ln1.normalized":
                return at_position(frozen, layer, "pre", pos, vectors, maps.before_attention.plain, {})
            case "ln2.normalized":
                stage: Stage = "pre" if frozen.model.cfg.parallel_attn_mlp else "mid"
                return at_position(frozen, layer, stage, pos, vectors, maps.before_mlp.plain, {})
            case "mlp_out" if site.basis is not None:
                return _combined(engine, layer, pos, [int(root.site.index or 0) for root in roots])
            case "resid_post":
                return at_position(frozen, layer + 1, "pre", pos, vectors, None, {})
        stages: dict[str, Stage] = {"resid_pre": "pre", "resid_mid": "mid", "attn_out": "attn", "mlp_out": "mlp"}
        return at_position(frozen, layer, stages[site.name], pos, vectors, None, {})

    def biases(self, engine) -> list[tuple[str, int]]:
        """Biases that add to it on its own side of the residual stream."""
        return sorted(self.reads([self], engine).constants, reverse=True)


def _combined(engine, layer: int, pos: int, ids: Sequence[int]) -> Reads:
    """What features read; for gated neurons, their parts times the neuron's slopes there."""
    basis = engine.bases[layer]
    if len(basis.parts) == 1:
        return read_features(engine.frozen, basis, pos, ids)
    slopes = basis.slopes(engine.mlp_in(basis)[pos : pos + 1])
    reads = [read_features(engine.frozen, basis, pos, ids, part) for part in basis.parts]
    g = sum(one.g * slope[0, list(ids), None] for one, slope in zip(reads, slopes, strict=True))
    constants = {
        name: sum(one.constants[name] * slope[0, list(ids)] for one, slope in zip(reads, slopes, strict=True))
        for name in reads[0].constants
    }
    return replace(reads[0], g=g, constants=constants)


def logit_roots(frozen, ids: Sequence[int], *, centred: bool) -> list[Root]:
    """The logits of these tokens after the last one, measured from the mean logit if `centred`."""
    model, pos = frozen.model, frozen.n_positions - 1
    W_U, b_U, values = model.W_U.detach(), model.b_U.detach(), frozen.logits
    if centred:
        W_U, b_U, values = W_U - W_U.mean(1, keepdim=True), b_U - b_U.mean(), values - values.mean()
    site = Site("logits", pos=pos)
    return [
        Root(
            Node("logit", model.cfg.n_layers, pos, i, token_text(model, i), float(values[i]), float(values[i]), root=n),
            site.at(index=i),
            W_U[:, i],
            b_U[i],
        )
        for n, i in enumerate(ids)
    ]


def roots_of(frozen, bases: Sequence, targets: Sequence[Target], *, centred: bool) -> list[Root]:
    """The roots that `targets` name. Raises ValueError, with what there is, for one that the model has not."""
    if not targets:
        raise ValueError("targets is empty; name a token, a site, or leave it out for the likeliest tokens")
    return [_root(frozen, bases, target, n, centred) for n, target in enumerate(targets)]


def sites_read(model, targets: Sequence[Target]) -> list[str]:
    """Sites, without position, that have to be kept for these targets."""
    found = []
    for target in targets:
        site = _site_of(target)
        if site is not None and site.name != "logits":
            found.append(str(Site(site.name, site.layer)))
    return list(dict.fromkeys(found))


def _site_of(target: Target) -> Site | None:
    """The site that a target names; None where it names tokens or a direction."""
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], Tensor):
        return Site.parse(target[0])
    if isinstance(target, Site):
        return target
    if isinstance(target, str) and re.match(r"L\d+\.|ln_final", target):
        return Site.parse(target)
    return None


def _root(frozen, bases: Sequence, target: Target, n: int, centred: bool) -> Root:
    model, pos = frozen.model, frozen.n_positions - 1
    site = _site_of(target)
    if site is not None:
        return _site_root(frozen, bases, site, target[1] if isinstance(target, tuple) else None, n)
    if isinstance(target, Tensor):
        if target.shape != (model.cfg.d_model,):
            raise ValueError(f"a direction has d_model = {model.cfg.d_model} entries, not shape {list(target.shape)}")
        vector = target.to(frozen.final)
        return _made(
            frozen, Site("logits", pos=pos), vector, vector.new_zeros(()), frozen.final[pos] @ vector, n, "direction"
        )
    if isinstance(target, tuple):
        first, second = (_token(model, one) for one in target)
        W_U, b_U = model.W_U.detach(), model.b_U.detach()
        name = f"{token_text(model, first)} − {token_text(model, second)}"
        vector, added = W_U[:, first] - W_U[:, second], b_U[first] - b_U[second]
        return _made(
            frozen, Site("logits", pos=pos), vector, added, frozen.logits[first] - frozen.logits[second], n, name
        )
    root = logit_roots(frozen, [_token(model, target)], centred=centred)[0]
    return replace(root, node=replace(root.node, root=n))


def _token(model, target: Target) -> int:
    """A token's id. Raises ValueError for a text that is not one token, and for an id outside the vocabulary."""
    if isinstance(target, str):
        if model.tokenizer is None:
            raise ValueError(f"target {target!r} is text, and the model has no tokenizer; give the token's id")
        ids = model.tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"target {target!r} is {len(ids)} tokens for this model; a target is exactly one")
        target = int(ids[0])
    if not isinstance(target, int):
        raise TypeError(f"a target is a token, two tokens, a direction or a site, not {type(target).__name__}")
    if not 0 <= target < model.W_U.shape[1]:
        raise ValueError(f"target {target} is outside the output vocabulary (0 to {model.W_U.shape[1] - 1})")
    return target


def _site_root(frozen, bases: Sequence, site: Site, vector: Tensor | None, n: int) -> Root:
    site = _resolved(frozen, bases, site)
    if site.basis is not None:
        basis, index = bases[int(site.layer or 0)], int(site.index or 0)
        from mechkit.graphs.engine.reading import input_of

        x = frozen.values[input_of(frozen, basis).site][0, int(site.pos or 0)][None]
        sums = torch.stack([one[0, index] for one in basis.sums(x)])
        slopes = torch.stack([one[0, index] for one in basis.slopes(x)])
        value = sums[0] if len(sums) == 1 else sums @ slopes
        none = frozen.final.new_zeros(1)
        return _made(frozen, site, none, none[0], value, n, str(site))
    x = _slice(frozen, site)
    if site.index is not None:
        vector = torch.nn.functional.one_hot(torch.tensor(site.index), len(x))
    vector = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny) if vector is None else vector.to(x)
    if vector.shape != x.shape:
        raise ValueError(f"the direction at '{site}' has shape {list(vector.shape)}; the site's is {list(x.shape)}")
    return _made(frozen, site.at(index=None), vector, vector.new_zeros(()), x @ vector, n, str(site))


def _slice(frozen, site: Site) -> Float[Tensor, "d"]:
    """The value of a site on this prompt, before any soft-cap for logits."""
    x = frozen.values[Site(site.name, site.layer)][0, int(site.pos or 0)]
    if site.head is None:
        return x
    repeated = frozen.layers[int(site.layer or 0)].n_heads // len(x)  # key/value heads serve several heads
    return x[int(site.head) // repeated]


def _resolved(frozen, bases: Sequence, site: Site) -> Site:
    """The site with its position counted from 0. Raises ValueError for one that cannot be a target."""
    cfg, n_pos = frozen.model.cfg, frozen.n_positions
    if site.name not in FOLLOWED or not site.is_concrete:
        raise ValueError(f"'{site}' cannot be a target; one concrete site of {', '.join(FOLLOWED)} can")
    pos = -1 if site.pos is None else site.pos
    if not isinstance(pos, int) or not -n_pos <= pos < n_pos:
        raise ValueError(f"target '{site}' is at position {pos}; the prompt has positions 0 to {n_pos - 1}")
    if site.layer is not None and not 0 <= int(site.layer) < cfg.n_layers:
        raise ValueError(f"no site '{site}': the model has layers 0 to {cfg.n_layers - 1}")
    if site.name in ("q", "k", "v", "z") and (site.head is None or not 0 <= int(site.head) < cfg.n_heads):
        raise ValueError(f"target '{site}' must name a head, H0 to H{cfg.n_heads - 1}")
    if site.basis is not None:
        names = {basis.name: basis.d_features for basis in bases if basis.layer == site.layer}
        if site.basis not in names or site.index is None or not 0 <= int(site.index) < names[site.basis]:
            raise ValueError(f"no feature '{site}': layer {site.layer} has {names} features by dictionary")
    return site.at(pos=pos % n_pos)


def _made(frozen, site: Site, vector: Tensor, added: Tensor, value: Tensor, n: int, name: str) -> Root:
    layer = frozen.model.cfg.n_layers if site.layer is None else int(site.layer)
    pos = int(site.pos or 0)
    node = Node("target", layer, pos, n, name, float(value), float(value), root=n, place=site)
    return Root(node, site, vector, added)
