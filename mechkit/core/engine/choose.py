"""Which engine runs what: the lean layers where they apply, the model's own modules for the rest."""

from collections.abc import Sequence

import torch

from mechkit.core.engine.agenda import lean_site
from mechkit.core.engine.fused import obstacle
from mechkit.core.engine.general import General
from mechkit.core.engine.lean import Lean
from mechkit.core.engine.measured import Measured
from mechkit.core.engine.memory import Budget
from mechkit.core.engine.question import Question
from mechkit.core.engine.trust import trusted
from mechkit.core.site import Site


def measure(question: Question, memory: int | None) -> Measured:
    """The metrics of all runs, by the engines that suit them."""
    model, runs, device = question.model, question.runs, question.prompts.tokens.device
    budget = Budget.of(memory, device)
    lean = suits(model, [*(edit.site for edit in question.base), *question.read]) and trusted(model)
    easy = [i for i, run in enumerate(runs) if lean and suits_sites(model, [edit.site for edit in run])]
    hard = sorted(set(range(len(runs))) - set(easy))
    parts = [
        (name, numbers, engine(question.of_runs(numbers), budget).measure())
        for name, numbers, engine in (("lean", easy, Lean), ("general", hard, General))
        if numbers or (not runs and name == ("lean" if lean else "general"))
    ]
    if len(parts) == 1:
        parts[0][2].path = parts[0][0]
        return parts[0][2]
    back = torch.tensor([i for _, numbers, _ in parts for i in numbers], device=device).argsort()
    found = [part for _, _, part in parts]
    return Measured(
        torch.cat([part.scores for part in found])[back],
        {site: torch.cat([part.read[site] for part in found])[back] for site in question.read},
        sum(part.passes for part in found),
        sum(part.n_rows for part in found),
        "+".join(name for name, _, _ in parts),
    )


def suits(model, shared: Sequence[Site]) -> bool:
    """Whether the lean layers apply to the model and know the sites that all runs share."""
    return obstacle(model) is None and suits_sites(model, shared)


def suits_sites(model, sites: Sequence[Site]) -> bool:
    """Whether the lean layers know all of `sites`."""
    return all(site.basis is None and lean_site(model, site) for site in sites)
