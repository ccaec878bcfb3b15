"""Which features of a graph are alike: by what they mean, or by what they take in and give out; and groups of these.

Only kept features at one position, in one layer or two adjacent ones, are ever alike. Groups are made by complete
linkage: every two features of a group are at least as alike as the threshold, whatever the order they come in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mechkit.graphs.meaning.promoted import chance_likeness, likeness, unembedding_gram
from mechkit.graphs.nodes import Node

BY_MEANING, BY_EDGES = 0.4, 0.8
"""Likeness that features of one supernode have at least, unless told; by meaning, more where chance would give more."""

_APART = 3.0
"""Distance of features that cannot be alike."""


def by_meaning(
    graph, nodes: Sequence[Node], labels: Mapping[str, str], threshold: float | None = None
) -> list[list[Node]]:
    """Groups of two or more features with one label, or, where neither has a label, that promote the same tokens.

    `labels` are texts by node id. Two features without are as alike as the cosine of their direct effects on the
    logits. The threshold is `BY_MEANING` unless given, or what `chance_likeness` says of as many features as the
    largest place has, where that is more. Cost: that of `unembedding_gram`, and n^2 for all features.
    """
    plain = [node for node in nodes if node.id not in labels]
    place = {node.id: i for i, node in enumerate(plain)}
    gram, most = unembedding_gram(graph.attribution), max(Counter(node.pos for node in nodes).values(), default=0)
    cosines = likeness(graph.attribution, plain, gram).cpu().numpy() if plain else np.zeros((0, 0))
    threshold = max(BY_MEANING, min(1.0, chance_likeness(gram, most))) if threshold is None else threshold

    def alike(members: Sequence[Node]) -> Float[np.ndarray, "n n"]:
        texts = np.array([labels.get(node.id, "") for node in members])
        same = ((texts[:, None] == texts) & (texts != "")).astype(float)
        own = np.array([place.get(node.id, -1) for node in members])
        bare = np.flatnonzero(own >= 0)
        same[np.ix_(bare, bare)] = cosines[np.ix_(own[bare], own[bare])]
        return same

    return _grouped(nodes, alike, threshold)


def by_edges(graph, nodes: Sequence[Node], threshold: float) -> list[list[Node]]:
    """Groups of two or more features with the same in- and out-edges.

    Two features are as alike as the lesser of two cosines: of their kept in-edges by source, and of their kept
    out-edges by target. An edge counts by its signed share of its target's row, so that no target counts for more
    because its pre-activation is large. Cost: n^2 for the features of each place.
    """
    inward, outward = _edge_vectors(graph, nodes)
    place = {node.id: i for i, node in enumerate(nodes)}

    def alike(members: Sequence[Node]) -> Float[np.ndarray, "n n"]:
        own = [place[node.id] for node in members]
        return np.minimum((inward[own] @ inward[own].T).toarray(), (outward[own] @ outward[own].T).toarray())

    return _grouped(nodes, alike, threshold)


def _edge_vectors(graph, nodes: Sequence[Node]):
    """Kept in-edges and out-edges of each feature as sparse rows of length 1 (0 for a feature without)."""
    from scipy.sparse import csr_matrix

    matrix = graph.weighted
    places, weights, _ = graph.kept_edges
    sums = matrix.rows.per_row(lambda block: block.values.abs().sum(1)).clamp_min(1e-30)
    t, s = (column.cpu().numpy() for column in places.T)
    values = (weights / sums[places[:, 0]]).double().cpu().numpy()
    number = np.full(len(matrix.sources), -1)
    number[[graph.column_of(node) for node in nodes]] = np.arange(len(nodes))
    own = matrix.own.cpu().numpy()
    receiver = np.where(own[t] >= 0, number[own[t]], -1)

    def vectors(of: np.ndarray, along: np.ndarray, width: int):
        mine = of >= 0
        found = csr_matrix((values[mine], (of[mine], along[mine])), shape=(len(nodes), width))
        size = np.sqrt(np.asarray(found.multiply(found).sum(1)))[:, 0]
        return found.multiply(np.divide(1, size, np.zeros_like(size), where=size > 0)[:, None]).tocsr()

    return vectors(receiver, s, len(matrix.sources)), vectors(number[s], t, len(matrix.targets))


def _grouped(nodes: Sequence[Node], alike, threshold: float) -> list[list[Node]]:
    by_pos: dict[int, list[Node]] = {}
    for node in nodes:
        by_pos.setdefault(node.pos or 0, []).append(node)
    return [
        [members[i] for i in group]
        for members in by_pos.values()
        for group in _linked(members, alike(members), threshold)
    ]


def _linked(members: Sequence[Node], alike: Float[np.ndarray, "n n"], threshold: float) -> list[list[int]]:
    """Numbers of the members of each group of two or more, by complete linkage."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(members) < 2:
        return []
    layers = np.array([node.layer for node in members])
    distance = np.where(np.abs(layers[:, None] - layers) <= 1, 1 - alike, _APART)
    upper = distance[np.triu_indices(len(members), 1)].clip(0)
    numbers = fcluster(linkage(upper, "complete"), 1 - threshold + 1e-9, "distance")
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(numbers.tolist()):
        groups.setdefault(number, []).append(i)
    return [group for group in groups.values() if len(group) > 1]
