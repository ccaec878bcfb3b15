"""Activation patching and ablation: what a site does to an answer, by giving it another value.

heads = patch(model, pair, "L*.H*.z@-1", logit_diff)                        # denoise: 0 no effect, gap = all of it
patch(model, pair, "L*.resid_pre@*", logit_diff, mode="noise")
patch(model, pair, "L*.mlp_out", logit_diff, ablate="mean", reference=others)
patch(model, pair, [["L0.H*.z"], ["L1.H*.z"]], [logit_diff, logprob])       # each layer's heads together
patch(model, pair, "L8.resid_pre[sae]@-1#4812", logit_diff, dictionaries={"sae": sae})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.metrics import Metric, as_metric
from mechkit.core.prompts import Pair, Prompts
from mechkit.core.result import Result
from mechkit.core.site import Site
from mechkit.core.sweep import sweep
from mechkit.patching.contrast import Contrast, Kind
from mechkit.patching.edits import row_edits
from mechkit.patching.rows import Row, all_sites, list_rows
from mechkit.patching.values import Reader, Value


@torch.no_grad()
def patch(
    model,
    pair: Pair | Prompts,
    sites: "str | Site | Iterable",
    metric: "Metric | Callable | Sequence[Metric | Callable]",
    *,
    mode: Literal["denoise", "noise"] | None = None,
    ablate: Literal["zero", "mean", "resample"] | None = None,
    reference: Prompts | None = None,
    dictionaries: Mapping[str, Any] | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> Result:
    """Change in `metric` when each site of the corrupt run takes its clean value.

    0 is no effect, the pair's `gap` (clean metric minus corrupt metric) is full recovery. `mode="noise"` is the
    reverse: each site of the clean run takes its corrupt value, and `gap` is corrupt minus clean. `ablate` changes
    the clean run, and needs clean prompts only: `"zero"`; `"mean"`, by position, over `reference` (the corrupt
    prompts unless given); or `"resample"`, the value on another prompt of `reference`, drawn by `seed`.
    A sequence inside `sites` is patched together, in one row. Several metrics, in a list, add an axis to the scores;
    `.metric(name)` takes one. `dictionaries` maps the names in feature sites, `L8.resid_pre[sae]@-1#4812`, to SAEs or
    transcoders: a feature moves the hook by the change of its activation times its decoder row.

    Unit: the metric's; positive where it rises. Cost: one `sweep` of a run per row, within `memory` bytes, and one
    pass for the source: at most rows + 2 forward passes per prompt length. Features take 1 more, a mean one per 64
    reference prompts of a length instead.
    Raises ValueError for a site the model lacks, for prompts that do not match at a site, answers the metric cannot
    read or that equal each other, a metric that is not one number per prompt or is NaN before any patch.
    Source: Meng et al. 2022, section 2.1, with corrupt prompts or noise; denoise and noise as in Heimersheim and
    Nanda 2024, section 2; choice of corruption and metric, Zhang and Nanda 2024.
    """
    several = isinstance(metric, Sequence)
    metrics = [as_metric(one) for one in (metric if several else [metric])]
    reader = Reader(model, dictionaries or {})
    contrast = Contrast.of(pair, _kind(mode, ablate), reference, seed)
    rows = list_rows(model, sites, contrast.target, reader.dictionaries)
    contrast.check(all_sites(rows))
    _check_metrics(model, metrics, contrast.target)

    values, full = _values(reader, contrast, all_sites(rows), metrics)
    inside = [site for site in all_sites(rows) if site.basis is not None]
    current = reader.read(contrast.target, inside, (), contrast.base)[1] if inside else {}
    runs = [row_edits(reader, row, values, current) for row in rows]
    swept = sweep(model, contrast.target, [[], *runs], metrics, base=contrast.base, memory=memory)
    _require_numbers(metrics, swept.scores[0])
    scores = swept.scores[1:] - swept.scores[0]
    gap = None if full is None else full - swept.scores[0]
    if not several:
        scores, gap = scores[..., 0], None if gap is None else gap[..., 0]
    about = {"verb": "patch", "model": model.cfg.model_name, "kind": contrast.kind, "seed": seed, "path": swept.path}
    return _result(rows, scores, gap, metrics, about | _texts(contrast))


def _texts(contrast: Contrast) -> dict[str, list[str]]:
    """The prompts' text, where they came from text."""
    sides = {"prompts": contrast.target.text, "source": contrast.source.text}
    return {side: list(text) for side, text in sides.items() if text is not None}


def _kind(mode: Any, ablate: Any) -> Kind:
    """What is done. Raises ValueError for a word that means nothing, and where both are given."""
    if mode is not None and ablate is not None:
        raise ValueError(f"mode={mode!r} takes values from the pair, ablate={ablate!r} does not; give one of the two")
    for name, given, known in (("mode", mode, ("denoise", "noise")), ("ablate", ablate, ("zero", "mean", "resample"))):
        if given is not None and given not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {given!r}")
    return ablate or mode or "denoise"


def _check_metrics(model, metrics: Sequence[Metric], prompts: Prompts) -> None:
    """Try the metrics that read the last position alone before any pass: their answers, and one number per prompt."""
    names = [metric.name for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics are told apart by their names, which are {names}; give each another")
    device = next(model.parameters()).device
    logits = torch.zeros((), device=device).expand(len(prompts), max(prompts.lengths), model.cfg.d_vocab_out)
    for metric in metrics:
        if metric.reads == "last":
            metric(logits, prompts)


def _values(
    reader: Reader, contrast: Contrast, sites: Sequence[Site], metrics: Sequence[Metric]
) -> tuple[dict[Site, Value] | None, Tensor | None]:
    """What each site takes (None: zero), and the metrics of the source run where it is the pair's other side."""
    if contrast.kind == "zero":
        return None, None
    if contrast.kind == "mean":
        return reader.means(contrast.source, sites, contrast.target), None
    if contrast.kind == "resample":
        return reader.read(contrast.source, sites)[1], None
    full, values = reader.read(contrast.source, sites, metrics, contrast.source_base)
    _require_numbers(metrics, full)
    return values, full


def _require_numbers(metrics: Sequence[Metric], scores: Float[Tensor, "prompt metric"]) -> None:
    broken = scores.isnan().nonzero().tolist()
    if broken:
        prompt, metric = broken[0]
        raise ValueError(
            f"metric '{metrics[metric].name}' is NaN on prompt {prompt} before any patch; "
            "look at the model's weights and hooks, and at what the metric divides by"
        )


def _result(
    rows: Sequence[Row], scores: Tensor, gap: Tensor | None, metrics: Sequence[Metric], meta: dict[str, Any]
) -> Result:
    axes = ("row", "prompt", "metric")[: scores.ndim]
    about = meta | {"metrics": [metric.name for metric in metrics], "units": [metric.unit for metric in metrics]}
    unit = ", ".join(metric.unit for metric in metrics)
    gap = None if gap is None else gap.cpu()
    if all(len(row) == 1 for row in rows):
        return Result.of_sites([row[0] for row in rows], scores, unit, about, axes=axes, gap=gap)
    return Result.of_groups(rows, scores, unit, about, axes=axes, gap=gap)
