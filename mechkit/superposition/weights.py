"""The matrices of a model whose rows are features: what is embedded, read, written and unembedded, each at its site.

>>> [str(one.site) for one in weights_of(model)][:3]
['embed', 'pos_embed', 'L0.z']
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.site import Site, short_name

CIRCUITS = {"OV": "z", "QK": "attn_scores"}
"""Bilinear maps of a head, and the hook that each decides."""
STREAM = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed"})
"""Hooks as wide as the residual stream."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Directions in the residual stream, a row per feature."""

    site: Site
    """Where the features are active: `L3.mlp_post` for what the neurons of layer 3 write."""
    matrix: str
    """Which matrix, such as `W_out`, or `OV writes` for the heads of a layer together."""
    W: Float[Tensor, "feature d_model"]
    """A direction per feature."""
    block: int = 1
    """Rows whose overlap is given by construction: those of one head, or of heads that share keys and values."""


def weights_of(model, dictionaries: Iterable[Any] = ()) -> Iterator[Weights]:
    """The matrices of `model` from the bottom up, then the decoders of `dictionaries`, made one at a time.

    Token and position embeddings; by layer what its heads write (`OV writes`), read as values (`OV reads`), as queries
    and as keys, and what its neurons read (`W_in`, `W_gate`) and write (`W_out`); the unembedding. Reading directions
    include the weights of the norm before them, where these are not folded in. A head's directions are the singular
    vectors of its bilinear map times their singular values, since its own basis is arbitrary; rotary embeddings are
    left out of QK. Raises ValueError for a dictionary without `W_dec`, of another size or without a hook.
    """
    yield Weights(Site("embed"), "W_E", model.embed.W_E.detach())
    if hasattr(model, "pos_embed"):
        yield Weights(Site("pos_embed"), "W_pos", model.pos_embed.W_pos.detach())
    for layer, block in enumerate(model.blocks):
        yield from _heads(block, layer)
        yield from _neurons(block, layer)
    yield Weights(Site("ln_final"), "W_U", _gained(getattr(model, "ln_final", None), model.unembed.W_U).mT)
    for dictionary in dictionaries:
        yield _decoder(dictionary, model.cfg.d_model)


def left_out(model) -> list[str]:
    """What of the model has no matrix in `weights_of`, in words."""
    experts = [str(layer) for layer, block in enumerate(model.blocks) if hasattr(block, "mlp") and not _plain(block)]
    return [f"mixtures of experts (layers {', '.join(experts)})"] if experts else []


@torch.no_grad()
def circuits(block) -> dict[str, tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head d_head d_model"]]]:
    """`OV` and `QK` of a block's heads: reading and writing directions (queries and keys), each times singular values.

    OV is W_V W_O, QK is W_Q W_K^T, both without biases.
    """
    attn, norm = block.attn, getattr(block, "ln1", None)
    read = {name: _gained(norm, getattr(attn, name)).double() for name in ("W_Q", "W_K", "W_V")}
    return {"OV": _split(read["W_V"], attn.W_O.detach().double()), "QK": _split(read["W_Q"], read["W_K"].mT)}


def _split(left: Float[Tensor, "head d k"], right: Float[Tensor, "head k e"]) -> tuple[Tensor, Tensor]:
    """Left and right singular vectors of `left @ right` as rows, times the singular values; nothing d x e is made."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.mT)
    u, values, vh = torch.linalg.svd(r_left @ r_right.mT)
    return values[..., None] * (q_left @ u).mT, values[..., None] * (q_right @ vh.mT).mT


def _heads(block, layer: int) -> Iterator[Weights]:
    found = circuits(block)
    (reads, writes), (queries, keys) = found["OV"], found["QK"]
    places = {"OV writes": ("z", writes), "OV reads": ("v", reads), "queries": ("q", queries), "keys": ("k", keys)}
    shared = block.attn.cfg.n_heads // (block.attn.cfg.n_key_value_heads or block.attn.cfg.n_heads)
    for matrix, (name, rows) in places.items():
        heads = shared if name in "kv" else 1
        yield Weights(Site(name, layer), matrix, rows.flatten(0, 1), block=heads * rows.shape[1])


def _neurons(block, layer: int) -> Iterator[Weights]:
    if not hasattr(block, "mlp") or not _plain(block):
        return
    mlp, norm = block.mlp, getattr(block, "ln2", None)
    gated = hasattr(mlp, "W_gate")
    reads = {"W_gate": "mlp_pre", "W_in": "mlp_pre_linear"} if gated else {"W_in": "mlp_pre"}
    for matrix, name in reads.items():
        yield Weights(Site(name, layer), matrix, _gained(norm, getattr(mlp, matrix)).mT)
    yield Weights(Site("mlp_post", layer), "W_out", mlp.W_out.detach())


def _plain(block) -> bool:
    return hasattr(block.mlp, "W_in")


def _gained(norm, W: Float[Tensor, "*head d_model k"]) -> Float[Tensor, "*head d_model k"]:
    """What is read off the normalised stream: the norm's own weights, if any are left, times `W`."""
    gain = getattr(norm, "w", None)
    return W.detach() if gain is None else gain.detach()[:, None] * W.detach()


def _decoder(dictionary: Any, d_model: int) -> Weights:
    W, name = getattr(dictionary, "W_dec", None), _name(dictionary)
    if not isinstance(W, Tensor) or W.ndim != 2:
        raise ValueError(f"dictionary '{name}' has no W_dec[feature, d_model]; give SAEs or transcoders, one a site")
    hook = _hook(dictionary)
    if hook is None:
        raise ValueError(f"dictionary '{name}' names no hook (hook_out, hook_name or cfg.metadata.hook_name)")
    site = Site.parse(short_name(hook))
    if site.name in STREAM and W.shape[1] != d_model:
        raise ValueError(f"dictionary '{name}' writes {W.shape[1]} dimensions, this model has d_model {d_model}")
    return Weights(site.at(basis=name), "W_dec", W.detach())


def _hook(dictionary: Any) -> str | None:
    cfg = getattr(dictionary, "cfg", None)
    for owner in (dictionary, getattr(cfg, "metadata", None), cfg):
        for key in ("hook_out", "hook_name_out", "hook_name"):
            found = getattr(owner, key, None)
            if isinstance(found, str):
                return found
    return None


def _name(dictionary: Any) -> str:
    """Its own name, without what a site's text could not hold."""
    name = getattr(dictionary, "name", None)
    return "".join(c for c in name if c not in "[]@#<>") if isinstance(name, str) and name else "dictionary"
