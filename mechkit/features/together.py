"""Which features fire on the same tokens, from the lists of features that fire on each of some tokens."""

import numpy as np
import torch
from scipy.sparse import csr_array

CELLS, PAIRS = 1 << 22, 1 << 20
"""Counts held, and pairs listed, at once."""
GROUPS = 8
"""Groups of features, for each one that is kept, whose greatest overlaps bound those kept from below."""


def cofiring(
    n_by_token: np.ndarray, feature: np.ndarray, n_features: int, n_best: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each feature's firings on these tokens, the features it shares most of them with, and how many it shares.

    Ranked by Jaccard overlap, shared / (either); ties go to the lower number. -1 and 0 where there are no more.
    Cost: one count per pair of features that fire on a token, and a few numbers for every pair of features.
    """
    fired = np.bincount(feature, minlength=n_features)
    ends = np.concatenate([[0], np.cumsum(n_by_token)])
    by_token = csr_array((np.ones(len(feature), np.int8), feature, ends), (len(n_by_token), n_features))
    by_feature = by_token.T.tocsr()
    best, shared = np.full((n_features, n_best), -1, np.int32), np.zeros((n_features, n_best), np.int64)
    block = max(1, CELLS // n_features)
    for first in range(0, n_features, block):
        lines = by_feature[first : first + block]
        counts = _counts(lines, by_token, n_features)
        counts[np.arange(len(counts)), np.arange(first, first + len(counts))] = 0
        _rank(counts, fired, first, best, shared)
    return fired, best, shared


def _counts(lines: csr_array, by_token: csr_array, n_features: int) -> np.ndarray:
    """`[line, feature]`: on how many of the line's tokens each feature fires."""
    n_lines = len(lines.indptr) - 1
    counts = np.zeros(n_lines * n_features, np.int64)
    line = np.repeat(np.arange(n_lines), np.diff(lines.indptr))
    n_pairs = np.cumsum(np.diff(by_token.indptr)[lines.indices])
    edges = np.searchsorted(n_pairs, np.arange(PAIRS, (n_pairs[-1] if len(n_pairs) else 0) + PAIRS, PAIRS)) + 1
    before = 0
    for edge in np.minimum(edges, len(line)).tolist():
        few = by_token[lines.indices[before:edge]]
        key = few.indices + np.repeat(line[before:edge] * n_features, np.diff(few.indptr))
        if len(key):
            low = int(line[before]) * n_features
            own = np.bincount(key - low)
            counts[low : low + len(own)] += own
        before = edge
    return counts.reshape(n_lines, n_features)


def _rank(counts: np.ndarray, fired: np.ndarray, first: int, best: np.ndarray, shared: np.ndarray) -> None:
    """Write the best of each line. What cannot be among them is left out before anything is sorted."""
    n_best, own = best.shape[1], torch.from_numpy(counts).float()
    either = torch.from_numpy(fired).float() + torch.from_numpy(fired[first : first + len(counts), None]).float()
    overlap = own / (either - own).clamp(min=1)
    least = _bound(overlap, n_best).clamp(min=1e-30)  # rounded once, so as good as exact but for very large counts
    flat = np.flatnonzero(overlap.numpy() >= (1 - 1e-6) * least.numpy()[:, None])
    line, other = np.divmod(flat, counts.shape[1])
    n = counts.ravel()[flat]
    exact = n / (fired[first + line] + fired[other] - n)
    order = np.lexsort((other, -exact, line))
    line, other, n = line[order], other[order], n[order]
    of_line = np.bincount(line, minlength=len(counts))
    rank = np.arange(len(line)) - np.repeat(np.cumsum(of_line) - of_line, of_line)
    keep = rank < n_best
    best[first + line[keep], rank[keep]] = other[keep]
    shared[first + line[keep], rank[keep]] = n[keep]


def _bound(overlap: torch.Tensor, n_best: int) -> torch.Tensor:
    """For each line a number that `n_best` of its overlaps reach: they are the greatest of different groups."""
    size = max(1, overlap.shape[1] // (GROUPS * n_best))
    whole = overlap.shape[1] // size * size
    groups = overlap[:, :whole].unflatten(1, (-1, size)).amax(2)
    return groups.topk(min(n_best, groups.shape[1])).values[:, -1]
