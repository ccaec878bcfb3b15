"""The sweep: run many edited versions of one forward pass and read one number from each.

    runs = [[Zero(site)] for site in expand(model, "L*.H*.z@-1")]
    sweep(model, prompts, runs, logit_diff).scores          # [run, prompt]

The definition is `core.loop`: one hooked forward pass per run and prompt length.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Intervention
from mechkit.core.loop import Loop, loop
from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import check_site, expand
from mechkit.core.prompts import Prompts
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
    path: str = "loop"
    """The engine that ran: `loop` is one hooked forward pass per run and prompt length."""
    passes: int = 0
    """Forward passes made."""


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
) -> Sweep:
    """The metric on every prompt after each run's edits, `scores[run, prompt]`.

    Each run is a list of edits, made in forward order, then list order, after those of `base`, which all runs
    share. `read` names sites whose slices are returned for every run. Several metrics, in a list, are measured on the
    same runs and give `scores[run, prompt, metric]`.

    Unit: the metric's. Cost: one forward pass per run and prompt length.
    Raises ValueError for a site the model lacks, an edit that never fires, or a metric of the wrong shape.
    """
    several = isinstance(metric, Sequence)
    metrics = [as_metric(one) for one in (metric if several else [metric])]
    wanted = expand(model, read, prompts)
    for edit in [*base, *(edit for run in runs for edit in run)]:
        check_site(model, edit.site)
    scores, slices, passes = loop(model, prompts, runs, metrics, base, wanted)
    unit = ", ".join(one.unit for one in metrics)
    return Sweep(scores if several else scores[..., 0], unit, slices, "loop", passes)
