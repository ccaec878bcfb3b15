"""Which tokens of the prompt make a feature active: what reaches it from each, along all kept paths."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix

from mechkit.graphs.nodes import Node

_SHOWN, _CLOSE, _LEAST = 2, 0.5, 0.2
"""Tokens named at most; share of the first one's part that another needs; share of a feature's whole that the first
needs."""


@torch.no_grad()
def received(graph, nodes: Sequence[Node]) -> Float[np.ndarray, "feature pos"]:
    """What each token of the prompt adds to each kept feature's pre-activation, along the paths of kept edges.

    Signed, and to first order, with attention and norms held: `C[t, pos] = A[t, token] + sum_f A[t, f] da_f/dh_f / a_f
    C[f, pos]`. Unit: that of the pre-activation. Cost: kept edges times tokens.
    """
    from mechkit.graphs.truth.check import target_slopes

    matrix, n_pos = graph.weighted, graph.attribution.frozen.n_positions
    number = {node.id: i for i, node in enumerate(nodes)}
    places, weights, _ = graph.kept_edges
    slopes = target_slopes(graph).tolist()
    gain = np.zeros(len(nodes))
    for target, slope in zip(matrix.targets[: matrix.n_features], slopes, strict=False):
        if target.id in number:
            gain[number[target.id]] = slope / target.value
    inner, outer = [], []
    for (t, s), weight in zip(places.tolist(), weights.tolist(), strict=True):
        target, source = number.get(matrix.targets[t].id), matrix.sources[s]
        if target is not None and source.id in number:
            inner.append((target, number[source.id], weight * gain[number[source.id]]))
        elif target is not None and source.kind == "token":
            outer.append((target, source.pos or 0, weight))
    among, found = _sparse(inner, len(nodes), len(nodes)), _sparse(outer, len(nodes), n_pos).toarray()
    for layer in sorted({node.layer for node in nodes}):
        rows = np.array([i for i, node in enumerate(nodes) if node.layer == layer])
        found[rows] += among[rows] @ found
    return found


def _sparse(entries: list[tuple[int, int, float]], n_rows: int, n_columns: int) -> csr_matrix:
    rows, columns, values = (np.array(one) for one in zip(*entries, strict=True)) if entries else ([], [], [])
    return csr_matrix((values, (rows, columns)), shape=(n_rows, n_columns), dtype=float)


def tokens_named(graph, parts: Float[np.ndarray, "pos"]) -> list[str]:
    """The tokens that raise a feature, or a group, most: at most two, none where no token stands for much of it."""
    raising = parts.clip(0)
    order = np.argsort(-raising, kind="stable")[:_SHOWN].tolist()
    if not raising.any() or raising[order[0]] < _LEAST * np.abs(parts).sum():
        return []
    tokens = graph.meta["tokens"]
    return [tokens[i].strip() or repr(tokens[i]) for i in order if raising[i] >= _CLOSE * raising[order[0]]]


def elsewhere(graph, node: Node, tokens: Sequence[str]) -> Sequence[str]:
    """The tokens, but none where the only one is that of the feature's own place: that goes without saying."""
    return () if list(tokens) == [graph.meta["tokens"][node.pos or 0].strip()] else tokens
