"""Why a head attends where it does: its score as a sum over pairs of sources, a query's and a key's.

With scales held, query and key are each a sum over everything that is written below, biases and errors included.
Rotation and norms of queries and keys are linear too, so the score is a bilinear sum over pairs:

    score = sum over s, t of (query's part from s) . (key's part from t) / scale

before a soft-cap, and beside the bias of ALiBi. The largest pairs are kept, the others are one remainder.

Source: the QK attribution of Anthropic's "Tracing Attention Computation Through Feature Interactions" (2025), here
exact, over the graph's own sources instead of residual SAEs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.site import Site
from mechkit.core.sweep import activations
from mechkit.graphs.engine.reading import read_projection
from mechkit.graphs.nodes import Node

_ROWS = 512
"""Query sources whose pairs are formed at once."""


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """One attention score and the pairs of sources that make it."""

    site: Site
    """The score, `L1.H2.attn_scores@5<-3`."""
    score: float
    """The model's own score, after any soft-cap and position bias."""
    bilinear: float
    """The score before soft-cap and position bias: what all pairs sum to."""
    position_bias: float
    """What ALiBi adds to it; 0 without."""
    pairs: Sequence[tuple[Node, Node, float]]
    """Query source, key source and what the pair adds, largest first by size."""
    remainder: float
    """What all other pairs add."""
    n_pairs: int
    """Pairs in all that are not 0."""
    by_query: Sequence[tuple[Node, float]]
    """What each source on the query's side adds with all keys, in the order of the graph's sources."""
    by_key: Sequence[tuple[Node, float]]
    """What each source on the key's side adds with all queries."""

    def frame(self) -> pd.DataFrame:
        """The largest pairs, and the remainder as the last row."""
        rows = [{"query": str(s), "key": str(t), "adds": value} for s, t, value in self.pairs]
        return pd.DataFrame([*rows, {"query": "all other pairs", "key": "", "adds": self.remainder}])


@torch.no_grad()
def qk_attribution(engine, site: "Site | str", n: int = 20) -> QKAttribution:
    """The `n` largest pairs of sources behind one attention score, such as `L1.H2.attn_scores@5<-3`.

    Unit: that of the score, before softmax. Exact: pairs and remainder sum to the score before soft-cap and position
    bias. Cost: one forward pass and two descents of d_head directions.
    Raises ValueError for a site that is not one score of this prompt, or that the mask hides.
    """
    site, (layer, head, query, key) = _resolved(engine.frozen, Site.parse(site))
    scores = activations(engine.frozen.model, engine.frozen.prompts, [Site("attn_scores", layer)])
    score = float(scores[Site("attn_scores", layer)][0, head, query, key])
    if score in (float("-inf"), float(engine.frozen.model.blocks[layer].attn.IGNORE)):
        raise ValueError(f"'{site}' is hidden by the attention mask; name a source position that the head can see")
    q_nodes, q = _parts(engine, layer, "q", head, query)
    k_nodes, k = _parts(engine, layer, "k", head, key)
    k = k / engine.frozen.model.blocks[layer].attn.attn_scale
    places, values = _largest_pairs(q, k, n)
    bilinear = float(q.sum(0) @ k.sum(0))
    pairs = [(q_nodes[s], k_nodes[t], value) for (s, t), value in zip(places, values.tolist(), strict=True)]
    cap = engine.frozen.model.cfg.attn_scores_soft_cap
    capped = float(cap * torch.tanh(torch.tensor(bilinear) / cap)) if cap is not None and cap > 0 else bilinear
    alibi = engine.frozen.model.cfg.positional_embedding_type == "alibi"
    return QKAttribution(
        site=site,
        score=score,
        bilinear=bilinear,
        position_bias=score - capped if alibi else 0.0,
        pairs=pairs,
        remainder=float((q.sum(0).double() @ k.sum(0).double()) - values.double().sum()),
        n_pairs=int((q != 0).any(1).sum() * (k != 0).any(1).sum()),
        by_query=list(zip(q_nodes, (q @ k.sum(0)).tolist(), strict=True)),
        by_key=list(zip(k_nodes, (k @ q.sum(0)).tolist(), strict=True)),
    )


def _resolved(frozen, site: Site) -> tuple[Site, tuple[int, int, int, int]]:
    """The site with positions from 0. Raises ValueError, with what there is, for one that is not a single score."""
    cfg, n_pos = frozen.model.cfg, frozen.n_positions
    places = (site.layer, site.head, site.pos, site.src)
    if site.name not in ("attn_scores", "pattern") or not all(isinstance(place, int) for place in places):
        raise ValueError(f"'{site}' is not one attention score; write L1.H2.attn_scores@5<-3")
    layer, head, query, key = (int(place) for place in places if place is not None)
    if layer >= cfg.n_layers or head >= cfg.n_heads:
        raise ValueError(
            f"no site '{site}': the model has layers 0 to {cfg.n_layers - 1} and heads 0 to {cfg.n_heads - 1}"
        )
    if not (-n_pos <= query < n_pos and -n_pos <= key < n_pos):
        raise ValueError(f"'{site}' is outside the prompt, which has positions 0 to {n_pos - 1}")
    query, key = query % n_pos, key % n_pos
    return Site("attn_scores", layer, head, query, key), (layer, head, query, key)


def _parts(engine, layer: int, kind, head: int, pos: int) -> tuple[list[Node], Float[Tensor, "source d_head"]]:
    """What each source adds to a head's query or key as it enters the score, zeros left out."""
    frozen, cfg = engine.frozen, engine.frozen.model.cfg
    W = getattr(frozen.model.blocks[layer].attn, f"W_{kind.upper()}")
    eye = torch.eye(cfg.d_head, dtype=W.dtype, device=W.device)
    reads = read_projection(frozen, layer, kind, head, pos, eye)
    reach = engine.reach(reads)
    found = [values[0] for _, _, values in engine.contributions(reads)]
    parts, nodes = torch.cat(found).T, [engine.sources[i] for i in reach.columns.tolist()]
    for (name, of), values in reads.constants.items():
        if ("bias", name, of) not in reach.local:
            nodes.append(Node("bias", of, None, None, f"{name}_{kind}" if name == "position" else name))
            parts = torch.cat([parts, values[None]])
    parts, constant = _entering(frozen, layer, kind, head, pos, parts)
    if constant is not None:
        nodes, parts = [*nodes, Node("bias", layer, None, None, f"clipped_{kind}")], torch.cat([parts, constant[None]])
    used = (parts != 0).any(1).nonzero()[:, 0]
    return [nodes[i] for i in used.tolist()], parts[used]


def _entering(
    frozen, layer: int, kind, head: int, pos: int, parts: Float[Tensor, "source d_head"]
) -> tuple[Float[Tensor, "source d_head"], Float[Tensor, "d_head"] | None]:
    """Parts of a query or key after its norm, clipping, rotation and scaling, all held, and what clipping puts in."""
    model, attn = frozen.model, frozen.model.blocks[layer].attn
    norm, whole, constant = getattr(attn, f"{kind}_norm", None), parts.sum(0), None
    if norm is not None:
        n_own = norm.length // model.cfg.d_head
        kv = head if kind == "q" or n_own == model.cfg.n_heads else head // (model.cfg.n_heads // n_own)
        every = whole if n_own == 1 else _projection(frozen, layer, kind, pos)
        scale = (every.pow(2).mean() + norm.eps).sqrt()
        mine = slice(0, None) if n_own == 1 else slice(kv * model.cfg.d_head, (kv + 1) * model.cfg.d_head)
        parts = parts * norm.w.detach()[mine] / scale
        whole = parts.sum(0)
    clip = model.cfg.clip_qkv
    if clip is not None:
        passing = whole.abs() <= clip
        parts, constant = parts * passing, whole.clamp(-clip, clip) * ~passing
    turn = _turn(frozen, attn, kind, pos, parts)
    return parts @ turn, None if constant is None else constant @ turn


def _projection(frozen, layer: int, kind: str, pos: int) -> Float[Tensor, "all"]:
    """Queries or keys of all heads at one position, biases included."""
    attn, norm = frozen.model.blocks[layer].attn, frozen.layers[layer].before_attention
    x = frozen.values[f"L{layer}.resid_pre"][0]
    x = x if norm is None else norm.forward(x) + norm.bias(x)
    W, b = (
        getattr(attn, f"_{name}{kind.upper()}", getattr(attn, f"{name}{kind.upper()}")).detach()
        for name in ("W_", "b_")
    )
    return (torch.einsum("d,hde->he", x[pos], W) + b).flatten()


def _turn(frozen, attn, kind: str, pos: int, like: Tensor) -> Float[Tensor, "d_head d_head"]:
    """The rotation and scaling of queries or keys at one position, by the model's own functions."""
    cfg, d = frozen.model.cfg, like.shape[1]
    x = like.new_zeros(d, frozen.n_positions, 1, d)
    x[:, pos, 0] = torch.eye(d, dtype=like.dtype, device=like.device)
    x = attn.apply_rotary(x, 0, None) if cfg.positional_embedding_type == "rotary" else x
    x = attn._apply_logn_scaling(x, 0) if kind == "q" and cfg.use_logn_attn and not attn.training else x
    return x[:, pos, 0]


def _largest_pairs(
    q: Float[Tensor, "query d"], k: Float[Tensor, "key d"], n: int
) -> tuple[list[tuple[int, int]], Float[Tensor, "pair"]]:
    """The `n` products of rows that are largest by size, largest first; never more than a few rows' at once."""
    values, places = q.new_empty(0), torch.empty(0, dtype=torch.long, device=q.device)
    for start in range(0, len(q), _ROWS):
        products = (q[start : start + _ROWS] @ k.T).flatten()
        best = products.abs().topk(min(n, len(products))).indices
        values, places = torch.cat([values, products[best]]), torch.cat([places, best + start * len(k)])
        order = values.abs().argsort(descending=True)[:n]
        values, places = values[order], places[order]
    return [(place // len(k), place % len(k)) for place in places.tolist()], values
