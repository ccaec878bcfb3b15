"""What a sweep is asked, as one record: every engine takes it and answers with `Measured`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mechkit.core.interventions import Intervention
from mechkit.core.metrics import Metric
from mechkit.core.prompts import Prompts
from mechkit.core.site import Site

if TYPE_CHECKING:
    from mechkit.core.engine.base import Pass


@dataclass(frozen=True, eq=False)
class Question:
    """The arguments of `sweep`, checked and expanded."""

    model: Any
    """A `HookedTransformer` or what is like one."""
    prompts: Prompts
    """On the model's device."""
    runs: Sequence[Sequence[Intervention]]
    """One list of edits per run."""
    metrics: Sequence[Metric]
    """What is measured on every run."""
    base: Sequence[Intervention] = ()
    """Edits under all runs."""
    read: Sequence[Site] = ()
    """Concrete sites whose slices are returned."""
    start: "Pass | None" = None
    """The base run, where it has been made already: of prompts of one length, without edits."""

    def of_runs(self, numbers: Sequence[int]) -> "Question":
        """The same of some of the runs."""
        return replace(self, runs=[self.runs[number] for number in numbers])
