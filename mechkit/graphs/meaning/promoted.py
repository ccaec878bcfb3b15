"""What features write, seen as tokens: their direct effect on the logits after their own position, on one prompt.

A feature at a position adds its activation times its decoder to the residual stream there, for every layer that it
reaches and through whatever norm follows the MLP. The final norm, with its scale held, and the unembedding turn that
into logits. Attention and later MLPs are left out: this is what a feature says itself, not what others make of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechkit.graphs.nodes import Node, token_text

N_TOKENS = 10
"""Promoted and suppressed tokens kept of each feature."""

_AT_ONCE = 1 << 24
"""Logits held at once."""

_NAMED = 3
"""Promoted tokens that a name tells at most."""

_CLOSE = 0.6
"""Share of the first token's effect that a token needs to be named beside it."""


@dataclass(frozen=True)
class Promoted:
    """The tokens whose logits change most by what is written at one position."""

    most: list[tuple[str, float]]
    """Tokens that are promoted most, each with its effect in logits, from the mean over all tokens."""
    least: list[tuple[str, float]]
    """The same for those that are suppressed most."""
    named: list[str]
    """The promoted tokens that stand out, at most three; empty where none does."""


def written(engine, nodes: Sequence[Node]) -> Float[Tensor, "node d_model"]:
    """What each feature adds to the residual stream at its position on this prompt, all layers that it reaches."""
    frozen = engine.frozen
    out = frozen.final.new_zeros(len(nodes), frozen.final.shape[1])
    by_layer: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        by_layer.setdefault(node.layer, []).append(i)
    for layer, members in by_layer.items():
        basis, ids = engine.bases[layer], [nodes[i].index or 0 for i in members]
        pos = torch.tensor([nodes[i].pos or 0 for i in members], device=out.device)
        value = torch.tensor([nodes[i].value for i in members], device=out.device, dtype=out.dtype)
        for reached in basis.reaches:
            rows, norm = basis.writes(ids, reached) * value[:, None], engine.norm_after(engine.bases[reached])
            out[members] += rows if norm is None else norm.at(rows, norm.scale[pos])
    return out


def read_at_end(engine, rows: Float[Tensor, "n d_model"], pos: Sequence[int]) -> Float[Tensor, "n d_model"]:
    """What the unembedding reads of rows written at these positions, the final norm's scale held."""
    norm = engine.frozen.final_norm
    return rows if norm is None else norm.at(rows, norm.scale[list(pos)])


def logit_effects(engine, read: Float[Tensor, "n d_model"]) -> Iterator[Float[Tensor, "some vocab"]]:
    """Logits that come of what the unembedding reads, from their mean over all tokens and before any soft-cap."""
    W_U = engine.frozen.model.W_U.detach()
    for some in read.split(max(1, _AT_ONCE // W_U.shape[1])):
        logits = (some @ W_U).float()
        yield logits - logits.mean(1, keepdim=True)


@torch.no_grad()
def promoted(engine, rows: Float[Tensor, "n d_model"], pos: Sequence[int], n: int = N_TOKENS) -> list[Promoted]:
    """The tokens that each row promotes and suppresses most, written at its position.

    Tokens stand out where the first is more deviations above the mean than the largest of as many normal draws as
    there are tokens would be expected to be, sqrt(2 ln vocab), or all `n` are on average more than their largest n-th
    would be, sqrt(2 ln(vocab / n)). A deviation is 1.48 times the median size, which a crowd of promoted tokens hardly
    raises. Special tokens of the tokenizer are not named.
    Unit: logits. Cost: 2 d vocab FLOPs a row.
    """
    model, found = engine.frozen.model, []
    special = {i for i in getattr(model.tokenizer, "all_special_ids", ()) if i is not None}
    for logits in logit_effects(engine, read_at_end(engine, rows, pos)):
        up, down = (logits.topk(min(n, logits.shape[1]), largest=largest) for largest in (True, False))
        stands_out = _stand_out(logits, up.values)
        found += [
            _told(model, special, _pairs(up, i), _pairs(down, i), bool(stands_out[i])) for i in range(len(logits))
        ]
    return found


def _stand_out(logits: Float[Tensor, "n vocab"], most: Float[Tensor, "n top"]) -> Bool[Tensor, "n"]:
    deviation, (_, vocab) = 1.4826 * logits.abs().median(1).values, logits.shape
    largest, crowd = ((2 * log(vocab / k)) ** 0.5 for k in (1, most.shape[1]))
    return (most[:, 0] > largest * deviation) | (most.mean(1) > crowd * deviation)


def _pairs(top, row: int) -> list[tuple[int, float]]:
    """Tokens and their logits of one row of a `topk`."""
    return list(zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True))


def _told(model, special: set[int], up: list, down: list, stands_out: bool) -> Promoted:
    text = {token: token_text(model, token) for token, _ in (*up, *down)}
    plain = [(text[token], value) for token, value in up if token not in special][:_NAMED]
    return Promoted(
        [(text[token], value) for token, value in up],
        [(text[token], value) for token, value in down],
        [_shown(word) for word, value in plain if stands_out and value >= _CLOSE * plain[0][1] > 0],
    )


def _shown(text: str) -> str:
    return text.strip() or repr(text)


@torch.no_grad()
def unembedding_gram(engine) -> Float[Tensor, "d_model d_model"]:
    """Inner products of the logits, from their mean, that each direction makes. Cost: 2 d^2 vocab FLOPs."""
    W_U = engine.frozen.model.W_U.detach()
    parts, gram = W_U.split(max(1, _AT_ONCE // len(W_U)), 1), W_U.new_zeros(len(W_U), len(W_U), dtype=torch.float32)
    mean = torch.stack([part.float().sum(1) for part in parts]).sum(0) / W_U.shape[1]
    for part in parts:
        centred = part.float() - mean[:, None]
        gram += centred @ centred.T
    return gram


@torch.no_grad()
def likeness(engine, nodes: Sequence[Node], gram: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "node node"]:
    """Cosines of the features' direct effects on the logits, by `unembedding_gram`; no logits are held."""
    read = read_at_end(engine, written(engine, nodes), [node.pos or 0 for node in nodes]).float()
    inner = read @ gram @ read.T
    size = inner.diagonal().clamp_min(torch.finfo(inner.dtype).tiny).sqrt()
    return (inner / size[:, None] / size).clamp(-1, 1)


def chance_likeness(gram: Float[Tensor, "d_model d_model"], n: int) -> float:
    """The largest cosine to expect among `n` features of random directions: sqrt(2 ln pairs / width), the width being
    the participation ratio of the unembedding's spectrum, (tr G)^2 / tr G^2."""
    width = float(gram.trace() ** 2 / gram.square().sum().clamp_min(1e-30))
    return (2 * log(max(1.0, n * (n - 1) / 2)) / max(width, 1.0)) ** 0.5
