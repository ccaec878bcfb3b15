"""How little n unit directions in m dimensions can overlap, and how much random ones do.

>>> welch_bound(5, 2)                    # no 5 directions in a plane stay below this; the pentagon's largest is 0.81
0.6123724356957945
>>> least_frame_potential(5, 2)          # the pentagon's own: it is a tight frame
12.5
"""

import math


def welch_bound(n: int, m: int) -> float:
    """Least possible largest |cos| between two of n unit directions in m dimensions; 0 where n <= m.

    Its square is also the least possible mean of cos^2 over pairs. Raises ValueError for counts below 1.
    Source: Welch 1974, Lower bounds on the maximum cross correlation of signals (k = 1).
    """
    _require_counts(n, m)
    return math.sqrt((n - m) / (m * (n - 1))) if n > m else 0.0


def least_frame_potential(n: int, m: int) -> float:
    """Least possible sum over all i, j of cos^2 between n unit directions in m dimensions: n^2 / m, or n where n <= m.

    A tight frame meets it. Raises ValueError for counts below 1. Source: Benedetto and Fickus 2003, theorem 6.2.
    """
    _require_counts(n, m)
    return max(float(n), n * n / m)


def random_overlap(m: int) -> float:
    """Mean |cos| of two directions drawn at random in m dimensions, about sqrt(2 / (pi m)).

    Raises ValueError for counts below 1.
    """
    _require_counts(1, m)
    return math.exp(math.lgamma(m / 2) - math.lgamma((m + 1) / 2)) / math.sqrt(math.pi)


def johnson_lindenstrauss_overlap(n: int, m: int) -> float:
    """The |cos| within which n random directions in m dimensions can all stay: sqrt(4 ln n / m), at most 1.

    P(|cos| > eps) <= 2 exp(-m eps^2 / 2) for one pair, so at this eps fewer than one of the n (n - 1) / 2 pairs is
    expected beyond it. Raises ValueError for counts below 1. Source: Johnson and Lindenstrauss 1984.
    """
    _require_counts(n, m)
    return min(1.0, math.sqrt(4 * math.log(n) / m))


def johnson_lindenstrauss_capacity(m: int, overlap: float) -> float:
    """Natural logarithm of how many random directions in m dimensions stay within `overlap` of |cos|: m overlap^2 / 4.

    A logarithm because the number itself is soon too large. Raises ValueError for counts below 1 and overlaps
    outside 0 to 1.
    """
    _require_counts(1, m)
    if not 0 <= overlap <= 1:
        raise ValueError(f"an overlap is a |cos|, from 0 to 1; got {overlap}")
    return m * overlap**2 / 4


def _require_counts(n: int, m: int) -> None:
    if n < 1 or m < 1:
        raise ValueError(f"there are {n} features in {m} dimensions; both must be at least 1")
