"""Which features fire on the same tokens, from the lists of features that fire on each of some tokens."""

import numpy as np

CELLS, PAIRS = 1 << 22, 1 << 21
"""Counts held, and pairs expanded, at once."""


def cofiring(
    n_by_token: np.ndarray, feature: np.ndarray, n_features: int, n_best: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each feature's firings on these tokens, the features it shares most of them with, and how many it shares.

    Ranked by Jaccard overlap, shared / (either); ties go to the lower number. -1 and 0 where there are no more.
    Cost: one count per pair of features that fire on a token.
    """
    fired = np.bincount(feature, minlength=n_features)
    starts = np.cumsum(n_by_token) - n_by_token
    token = np.repeat(np.arange(len(n_by_token)), n_by_token)[np.argsort(feature, kind="stable")]
    ends = np.cumsum(fired)
    best, shared = np.full((n_features, n_best), -1, np.int32), np.zeros((n_features, n_best), np.int64)
    block = max(1, CELLS // n_features)
    for first in range(0, n_features, block):
        last = min(first + block, n_features)
        own = slice(int(ends[first] - fired[first]), int(ends[last - 1]))
        line = np.repeat(np.arange(last - first), fired[first:last])
        counts = _counts(line, token[own], starts, n_by_token, feature, last - first, n_features)
        counts[np.arange(last - first), np.arange(first, last)] = 0
        _rank(counts, fired, first, best, shared)
    return fired, best, shared


def _counts(line, token, starts, n_by_token, feature, n_lines: int, n_features: int) -> np.ndarray:
    """`[line, feature]`: on how many of the line's tokens each feature fires."""
    counts = np.zeros(n_lines * n_features, np.int64)
    n = n_by_token[token]
    edges = np.searchsorted(np.cumsum(n), np.arange(PAIRS, int(n.sum()) + PAIRS, PAIRS)) + 1
    before = 0
    for edge in np.minimum(edges, len(n)):
        few = slice(before, int(edge))
        before = int(edge)
        width = n[few]
        offset = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
        other = feature[np.repeat(starts[token[few]], width) + offset]
        counts += np.bincount(np.repeat(line[few], width) * n_features + other, minlength=len(counts))
    return counts.reshape(n_lines, n_features)


def _rank(counts: np.ndarray, fired: np.ndarray, first: int, best: np.ndarray, shared: np.ndarray) -> None:
    line, other = counts.nonzero()
    n = counts[line, other]
    overlap = n / (fired[first + line] + fired[other] - n)
    order = np.lexsort((other, -overlap, line))
    line, other, n = line[order], other[order], n[order]
    of_line = np.bincount(line, minlength=len(counts))
    rank = np.arange(len(line)) - np.repeat(np.cumsum(of_line) - of_line, of_line)
    keep = rank < best.shape[1]
    best[first + line[keep], rank[keep]] = other[keep]
    shared[first + line[keep], rank[keep]] = n[keep]
