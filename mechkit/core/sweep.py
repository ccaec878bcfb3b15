"""The sweep: run many edited versions of one forward pass and read one number from each.

    runs = [[Zero(site)] for site in expand(model, "L*.H*.z@-1")]
    sweep(model, prompts, runs, logit_diff).scores          # [run, prompt]

The definition is `core.loop`, one hooked forward pass per run and prompt length; `core.engine` gives the same numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.engine.choose import measure
from mechkit.core.engine.question import Question
from mechkit.core.interventions import Intervention
from mechkit.core.loop import Loop
from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import check_site, expand
from mechkit.core.prompts import Prompts, check_tokens
from mechkit.core.site import Site


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep measured."""

    scores: Float[Tensor, "run prompt *metric"]
    """The metric of each run on each prompt; a last axis where several metrics were given."""
    unit: str
    """The metric's unit."""
    read: Mapping[Site, Float[Tensor, "run prompt *slice"]] = field(default_factory=dict)
    """The slices of the sites that were asked for, by site."""
    path: str = "lean"
    """What ran: `lean`, `general`, or `lean+general` where only some runs needed the model's own modules."""
    passes: int = 0
    """Passes over the layers, whole or in part."""
    n_rows: int = 0
    """Runs on prompts that changed something; the others were not run."""


class Activations(Mapping):
    """Slices of concrete sites, `[prompt, *slice]`, by `Site` or its text."""

    def __init__(self, slices: Mapping[Site, Tensor]) -> None:
        self._slices = dict(slices)

    def __getitem__(self, site: "Site | str") -> Tensor:
        return self._slices[Site.parse(site)]

    def __iter__(self):
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def __repr__(self) -> str:
        return "\n".join(f"{site}  {list(slices.shape)}" for site, slices in self.items())


@torch.no_grad()
def activations(model, prompts: Prompts, sites: "str | Site | Iterable[str | Site]") -> Activations:
    """The slices `[prompt, *slice]` of every site that `sites` expand to, from the unedited model.

    Cost: one forward pass per prompt length. Raises ValueError for a site the model lacks, and where a site's
    slice has not the same shape in every prompt.
    """
    wanted = expand(model, sites, prompts)
    return Activations(Loop(model, prompts, wanted).forward([])[1])


@torch.no_grad()
def sweep(
    model,
    prompts: Prompts,
    runs: Sequence[Sequence[Intervention]],
    metric: "Metric | Callable | Sequence[Metric | Callable]",
    *,
    base: Sequence[Intervention] = (),
    read: "str | Site | Iterable[str | Site]" = (),
    memory: int | None = None,
) -> Sweep:
    """The metric on every prompt after each run's edits, `scores[run, prompt]`.

    Each run is a list of edits, made in forward order, then list order, after those of `base`, which all runs
    share. `read` names sites whose slices are returned for every run. Several metrics, in a list, are measured on the
    same runs and give `scores[run, prompt, metric]`. `memory` is the most to use above the loaded model, in bytes
    (half of what is free, unless told).

    The numbers are those of one hooked forward pass per run. What a run shares with the base run is not computed
    again: layers and positions before its first change, and what the metric does not read. `Sweep.path` says how it
    ran: `lean` (laid out weights, packed tokens), `general` (the model's own modules, many runs a batch) or both.

    Unit: the metric's. Cost: one pass over the layers for the base run, then one with a growing batch for as many runs
    as fit into memory; see `plan`.
    Raises ValueError for a site the model lacks, an edit that never fires, a metric of the wrong shape, NaN in the
    unedited model, and a `memory` that one run exceeds.
    """
    several = isinstance(metric, Sequence)
    metrics = [as_metric(one) for one in (metric if several else [metric])]
    runs, base, wanted = [list(run) for run in runs], list(base), expand(model, read, prompts)
    for edit in [*base, *(edit for run in runs for edit in run)]:
        check_site(model, edit.site)
    check_tokens(model, prompts)
    device = next(model.parameters()).device
    measured = measure(Question(model, prompts.to(device), runs, metrics, base, wanted), memory)
    unit = ", ".join(one.unit for one in metrics)
    scores = measured.scores if several else measured.scores[..., 0]
    return Sweep(scores, unit, measured.read if runs else {}, measured.path, measured.passes, measured.n_rows)
