"""What may be concluded from measures of superposition, in words.

Weights show capacity: how many directions there are, and how close to each other. That features are *stored* so takes
sparse activations. The sentences say which of the two was measured, and against which chance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mechkit.superposition.nulls import NULLS, NullTest

if TYPE_CHECKING:
    from mechkit.superposition.activity import Activity
    from mechkit.superposition.measured import Superposition

HEADLINES = {NULLS[0]: "mean cos^2", NULLS[1]: "mean largest |cos|"}
"""The statistic that speaks for each null: chosen beforehand, so that one p is one p. The mean of cos^2 is all but
fixed by the covariance, so that null is judged by how near each feature's nearest neighbour is."""
WEIGHTS_ALONE = (
    "Weights show capacity, not storage: that features are held in superposition takes sparse activations of features "
    "(activations=...) and a dictionary that recovers them."
)
LEVEL = 0.05
"""p below which a difference from a null is said to be one."""


def conclusions(report: Superposition) -> list[str]:
    """A sentence on capacity, one on each null, and one on what the activations show or that there were none."""
    said = [_capacity(report), *(_beside(test) for test in report.tests.values())]
    return [*said, *(_storage(report, report.activity) if report.activity else [WEIGHTS_ALONE])]


def verdict(test: NullTest, statistic: str | None = None) -> str:
    """`more`, `less` or `as much`: the overlap beside its null, by the null's headline statistic unless told."""
    observed, expected, p = test.of(statistic or HEADLINES[test.null])
    return "as much" if p >= LEVEL else "more" if observed > expected else "less"


def _capacity(report: Superposition) -> str:
    n, m = report.n_directed, report.n_dimensions
    if n < 2:
        return f"{n} of {report.n_features} features {'has' if n == 1 else 'have'} a direction: no pair can overlap."
    bound = (
        f"no arrangement keeps the largest |cos| below {report.welch_bound:.2f}" if n > m else "all could be orthogonal"
    )
    return (
        f"{n} features in {m} dimensions: {bound}, here it is {report.max_cosine:.2f}; "
        f"they fill {report.participation_ratio:.3g} dimensions, {report.features_per_dimension:.3g} features in each."
    )


def _beside(test: NullTest) -> str:
    statistic = HEADLINES[test.null]
    observed, expected, p = test.of(statistic)
    found = verdict(test)
    number = f"{statistic} {observed:.3g} against {expected:.3g}, p = {p:.2g}"
    if test.null == NULLS[0]:
        words = {
            "more": "They overlap more than random directions do",
            "less": "They overlap less than random directions do, as a tight frame does",
            "as much": "They overlap as random directions do",
        }
        return f"{words[found]} ({number})."
    words = {
        "more": "They lie closer to their nearest neighbours than their covariance alone explains",
        "less": "They keep further from their nearest neighbours than their covariance alone explains",
        "as much": "Their covariance alone (anisotropy) explains how near they lie to one another",
    }
    return f"{words[found]} ({number})."


def _storage(report: Superposition, seen: Activity) -> list[str]:
    n, m = seen.n_active, report.n_dimensions
    said = [f"On {seen.n_samples} samples {n} features are active, {seen.l0:.3g} at a time, in {m} dimensions."]
    if n <= m:
        said.append("No more features than dimensions are in use: on these samples nothing need be superposed.")
    elif seen.l0 < m:
        said.append(
            "More features than dimensions are in use, few at a time: held in superposition, as far as these "
            "activations are features of the model (a dictionary's are its own reading)."
        )
    else:
        said.append("As many features as there are dimensions are active at once: this is not sparse enough to tell.")
    if math.isfinite(seen.lift):
        said.append(
            f"{seen.realised:.2g} of the overlap is felt; features that overlap are active together "
            f"{seen.lift:.2f} ± {seen.lift_error:.2f} times as often as if they were independent."
        )
    return said
