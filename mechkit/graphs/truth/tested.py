"""What of a graph is tested on the model: interventions, agreement with them, faithfulness, a report in words.

graph.verify("supernodes", multiple=2.0)
graph.intervene({"L0 sum at =": 0.0}, freeze=("attention", "norms"))
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from mechkit.graphs.truth.changes import Reference
    from mechkit.graphs.truth.check import Check
    from mechkit.graphs.truth.faithfulness import Faithfulness
    from mechkit.graphs.truth.intervention import Intervened
    from mechkit.graphs.truth.report import Report


class Tested:
    """The part of an `AttributionGraph` that asks the model whether it is true."""

    def verify(
        self,
        what: Any = "nodes",
        *,
        multiple: float = 0.0,
        amount: float | None = None,
        root: int = 0,
        seed: int = 0,
    ) -> "Check":
        """Predicted and measured change of a root when features or supernodes are suppressed or steered; see
        `mechkit.graphs.truth.check.verify`. `graph.check` is that of every kept feature, suppressed.
        """
        from mechkit.graphs.truth.check import verify

        return verify(self, what, multiple=multiple, amount=amount, root=root, seed=seed)

    def levels(self, *, root: int = 0) -> "pd.DataFrame":
        """Agreement with the model as more of it is held, which says what the graph leaves out; see
        `mechkit.graphs.truth.levels.levels`.
        """
        from mechkit.graphs.truth.levels import levels

        return levels(self, root=root)

    def report(self) -> "Report":
        """What was found and how far to trust it, in words: text that prints, with `.markdown`; see
        `mechkit.graphs.truth.report.report`.
        """
        from mechkit.graphs.truth.report import report

        return report(self)

    def faithfulness(
        self,
        keep: Any = None,
        *,
        root: int = 0,
        reference: Any = None,
        freeze: Sequence[str] = (),
        seed: int = 0,
    ) -> "Faithfulness":
        """How much of a root is left when only the kept features are, all others taken out; see
        `mechkit.graphs.truth.faithfulness.faithfulness`.
        """
        from mechkit.graphs.truth.faithfulness import faithfulness

        return faithfulness(self, keep, root=root, reference=reference, freeze=freeze, seed=seed)

    def intervene(
        self,
        values: "Mapping[Reference, float] | None" = None,
        *,
        to: str = "multiple",
        swap: "Mapping[Reference, Reference] | None" = None,
        freeze: Sequence[str] = (),
        constrain: range | None = None,
        generate: int = 0,
        every: bool = False,
    ) -> "Intervened":
        """The answer before and after features or supernodes are set, beside what the graph predicts; see
        `mechkit.graphs.truth.intervention.intervene`.
        """
        from mechkit.graphs.truth.intervention import intervene

        return intervene(
            self, values, to=to, swap=swap, freeze=freeze, constrain=constrain, generate=generate, every=every
        )
