"""Which engine runs what: the lean layers where they apply, the model's own modules for the rest."""

from collections.abc import Sequence

import torch

from mechkit.core.engine.agenda import lean_site
from mechkit.core.engine.fused import obstacle
from mechkit.core.engine.general import General
from mechkit.core.engine.lean import Lean
from mechkit.core.engine.measured import Measured
from mechkit.core.engine.memory import Budget
from mechkit.core.engine.trust import trusted
from mechkit.core.interventions import Intervention
from mechkit.core.metrics import Metric
from mechkit.core.prompts import Prompts
from mechkit.core.site import Site


def measure(
    model,
    prompts: Prompts,
    runs: Sequence[Sequence[Intervention]],
    metrics: Sequence[Metric],
    base: Sequence[Intervention],
    read: Sequence[Site],
    memory: int | None,
) -> Measured:
    """The metrics of all runs, by the engines that suit them."""
    device = next(model.parameters()).device
    budget, prompts = Budget.of(memory, device), prompts.to(device)
    shared = [*(edit.site for edit in base), *(site for site in read)]
    lean = suits(model, shared) and trusted(model)
    easy = [i for i, run in enumerate(runs) if lean and suits_sites(model, [edit.site for edit in run])]
    hard = sorted(set(range(len(runs))) - set(easy))
    parts = [
        (name, numbers, engine(model, prompts, [runs[i] for i in numbers], metrics, base, read, budget).measure())
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
        {site: torch.cat([part.read[site] for part in found])[back] for site in read},
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
