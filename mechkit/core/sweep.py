"""The sweep: run many edited versions of one forward pass and read one number from each.

    runs = [[Zero(site)] for site in expand(model, "L*.H*.z@-1")]
    sweep(model, prompts, runs, logit_diff).scores          # [run, prompt]

This is the plain form, one hooked forward pass per run and prompt length: the definition that any faster
engine must equal.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.interventions import Hook, Intervention
from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import check_site, cut, expand, groups, places
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, by_length, check_tokens
from mechkit.core.site import Site


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep measured."""

    scores: Float[Tensor, "run prompt"]
    """The metric of each run on each prompt."""
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
    return Activations(_Run(model, prompts, wanted).forward([])[1])


@torch.no_grad()
def sweep(
    model,
    prompts: Prompts,
    runs: Sequence[Sequence[Intervention]],
    metric: "Metric | Callable",
    *,
    base: Sequence[Intervention] = (),
    read: "str | Site | Iterable[str | Site]" = (),
) -> Sweep:
    """The metric on every prompt after each run's edits, `scores[run, prompt]`.

    Each run is a list of edits, made in forward order, then list order, after those of `base`, which all runs
    share. `read` names sites whose slices are returned for every run.

    Unit: the metric's. Cost: one forward pass per run and prompt length.
    Raises ValueError for a site the model lacks, an edit that never fires, or a metric of the wrong shape.
    """
    metric, engine = as_metric(metric), _Run(model, prompts, expand(model, read, prompts))
    for edit in [*base, *(edit for run in runs for edit in run)]:
        check_site(model, edit.site)
    scores, seen = [], []
    for run in progress(list(runs), "runs"):
        logits, slices = engine.forward([*base, *run])
        scores.append(metric(logits, prompts).detach())
        seen.append(slices)
    table = torch.stack(scores) if scores else torch.empty(0, len(prompts))
    read_back = {site: torch.stack([slices[site] for slices in seen]) for site in engine.wanted} if seen else {}
    return Sweep(table, metric.unit, read_back, "loop", engine.passes)


class _Run:
    """Edited forward passes of one batch of prompts, which run without padding, grouped by length."""

    def __init__(self, model, prompts: Prompts, wanted: Sequence[Site]) -> None:
        self.model, self.prompts, self.wanted = model, prompts, list(wanted)
        check_tokens(model, prompts)
        self.batches = [(rows, prompts[rows]) for rows in by_length(prompts)]
        self.passes = 0

    def forward(self, edits: Sequence[Intervention]) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits `[prompt, pos, vocab]` (NaN on padding) and the wanted slices after `edits`."""
        outputs, parts = [], []
        for rows, batch in self.batches:
            fired, slices = set(), {}
            hooks = [_edit_hook(edit, batch, rows, fired) for edit in edits]
            hooks += [_read_hook(site, batch, slices) for site in self.wanted]
            with hooked(self.model, hooks):
                outputs.append(self.model(batch.tokens))
            self.passes += 1
            _require_fired([edit.site for edit in edits], fired)
            _require_fired(self.wanted, slices)
            parts.append(slices)
        for site in self.wanted:
            _require_one_shape(site, [part[site] for part in parts])
        return self._merge(outputs), {site: self._merge([part[site] for part in parts]) for site in self.wanted}

    def _merge(self, values: list[Tensor]) -> Tensor:
        """One tensor for all prompts from one per length, in the prompts' own order."""
        if len(values) == 1:
            return values[0]
        widest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        merged = values[0].new_full((len(self.prompts), *widest), torch.nan)
        for (rows, _), value in zip(self.batches, values, strict=True):
            merged[(rows, *(slice(size) for size in value.shape[1:]))] = value
        return merged


@contextmanager
def hooked(model, hooks: Sequence[Hook]):
    """Forward hooks in place inside the block, and gone after it; the model's own stay."""
    handles = []
    try:
        for name, function in hooks:
            handles.append(_install(model.hook_dict[name], function))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _install(point, function):
    """A hook on one hook point, after those already there. A direct registration: resetting every point is slow."""
    return point.register_forward_hook(lambda module, inputs, output: function(output, module))


def _edit_hook(edit: Intervention, batch: Prompts, rows: list[int], fired: set) -> Hook:
    def hook(x: Tensor, hook) -> Tensor:
        fired.add(edit.site)
        return edit.apply(x, batch, rows)

    return edit.site.hook, hook


def _read_hook(site: Site, batch: Prompts, slices: dict[Site, Tensor]) -> Hook:
    alike = groups(places(site, batch))

    def hook(x: Tensor, hook) -> None:
        parts = [cut(x if len(alike) == 1 else x[rows], site, place) for place, rows in alike]
        _require_one_shape(site, parts)
        back = torch.tensor([row for _, rows in alike for row in rows], device=x.device).argsort()
        slices[site] = (parts[0] if len(alike) == 1 else torch.cat(parts)[back]).clone()

    return site.hook, hook


def _require_one_shape(site: Site, parts: Sequence[Tensor]) -> None:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"site '{site}' has slices of shapes {sorted(shapes)} in these prompts; name one position, "
            "or read prompts of one length at a time"
        )


def _require_fired(sites: Iterable[Site], fired) -> None:
    for site in sites:
        if site not in fired:
            raise ValueError(
                f"site '{site}' was never reached: '{site.hook}' does not fire on this model as it is set up; "
                "use z for heads, or turn on the model's own flag for that hook"
            )
