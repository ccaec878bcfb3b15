"""What features do: the change of a metric when a feature of an SAE is taken out, scaled, or held at a strength.

    found = effect(model, sae, [12, 40], Prompts.from_text(model, "35+59="))
    found.top(5)                                     # the features that matter most to the model's own answer

Only the feature's own contribution changes: x becomes x + (new - old activation) times its decoder row, so that what
the SAE misses of x, its error, stays. Activations are those of the unedited model; all features go in one sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechkit.core.interventions import Intervention, Slice
from mechkit.core.metrics import Metric, as_metric, logprob
from mechkit.core.places import Place, same_device
from mechkit.core.prompts import Prompts, by_length, check_tokens, likeliest
from mechkit.core.result import Result
from mechkit.core.site import Site, short_name
from mechkit.core.sweep import sweep
from mechkit.features.directions import decoder_rows
from mechkit.features.reading import encoded, own_part, require_fit, values_at

ROWS = 64
"""Prompts of a forward pass."""


@dataclass(frozen=True, eq=False)
class Shift(Intervention):
    """Add `amount[prompt, pos] * direction` to the slice."""

    by_position: ClassVar[bool] = True

    amount: Float[Tensor, "prompt pos"]
    """How far each place moves."""
    direction: Float[Tensor, "*d"]
    """What an amount of 1 adds."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        amount = self.amount[prompts][:, place]
        amount = amount.reshape(*amount.shape, *[1] * self.direction.ndim)
        return x + same_device(amount * self.direction, x).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Put(Intervention):
    """Put `value[prompt, pos, *d]` in place of the slice, at whatever positions the site has."""

    by_position: ClassVar[bool] = True

    value: Float[Tensor, "prompt pos *d"]
    """What comes in, at every position."""

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        return same_device(self.value[prompts][:, place], x).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Reading:
    """What an SAE makes of prompts."""

    site: Site
    """Where it writes."""
    active: Float[Tensor, "prompt pos feature"]
    """Activations of the features asked for, 0 at padding."""
    scale: Float[Tensor, "prompt pos"]
    """What its decoder multiplies by at each place, 1 unless it rescales every input; 0 where it is left alone."""
    held: Float[Tensor, "prompt pos *d"]
    """What stands at the site in the unedited model."""
    rebuilt: Float[Tensor, "prompt pos *d"]
    """What stands there with the SAE in place of it; what it holds where the SAE is left alone."""
    counted: Bool[Tensor, "prompt pos"]
    """Real tokens on which the SAE is not left alone."""

    @classmethod
    def of(cls, model, sae, prompts: Prompts, features: Sequence[int], ignore: Sequence[int] = ()) -> "Reading":
        """Read `features` on `prompts`; on the token ids of `ignore` the SAE is left alone.

        Cost: one forward pass per prompt length, as far as the SAE's hooks.
        """
        hook, out = hooks_of(sae)
        shape = prompts.tokens.shape
        chosen = torch.tensor(list(features), dtype=torch.long, device=sae.W_dec.device)
        made: dict[str, Tensor] = {}
        for rows in [same[i : i + ROWS] for same in by_length(prompts) for i in range(0, len(same), ROWS)]:
            width = prompts.lengths[rows[0]]
            tokens = prompts.tokens[rows, :width]
            real = torch.ones_like(tokens, dtype=torch.bool)
            values = values_at(model, tokens, [hook, out])
            x, y = own_part(sae, values[hook]), _slice_of(sae, values[out])
            active, scale = encoded(sae, x, real).unflatten(0, tokens.shape), decoder_scale(sae, x, real)
            alone = torch.isin(tokens, torch.tensor(list(ignore), dtype=torch.long, device=tokens.device))
            rebuilt = sae(x).reshape(y.shape).to(y.dtype)
            alone_there = alone.reshape(*alone.shape, *[1] * (y.ndim - 2))
            found = {
                "active": active[..., chosen],
                "scale": scale.unflatten(0, tokens.shape).masked_fill(alone, 0),
                "held": y,
                "counted": ~alone,
                "rebuilt": torch.where(alone_there, y, rebuilt),
            }
            for key, value in found.items():
                made.setdefault(key, value.new_zeros(*shape, *value.shape[2:]))[rows, :width] = value
        return cls(site_of(sae), **made)


@torch.no_grad()
def effect(
    model,
    sae,
    features: int | Sequence[int],
    prompts: Prompts,
    metric: Metric | Callable = logprob,
    *,
    scale: float = 0.0,
    steer: float | None = None,
    pos: int | str | None = None,
    error: bool = True,
    ignore: Sequence[int] = (),
    name: str = "sae",
    memory: int | None = None,
) -> Result:
    """Change of `metric` on every prompt when each feature is taken out, alone: metric after less metric before.

    Below 0: without the feature the metric falls, so in the unedited model the feature raises it. `scale` multiplies
    the activation instead (0 takes the feature out, 2 doubles it); `steer` gives the feature that activation at every
    chosen position, whether it fires there or not, and then above 0 means that the feature raises the metric. `pos` is
    a position, stretch or span as in a `Site`; all positions without it. Tokens in `ignore` are never edited.

    The SAE's error stays in place, and the run to compare with is the model's own; with `error=False` both have the
    SAE's reconstruction in place of what it reads. Prompts without answers take the model's own likeliest next token.
    Rows are sites `L2.resid_post[name]#12`, which `patch(..., dictionaries={name: sae})` takes.

    Unit: the metric's. Cost: two forward passes as far as the SAE and one sweep of a run per feature.
    Raises ValueError for a feature the SAE lacks, an SAE that does not fit the model, and scale beside steer.
    """
    features = [features] if isinstance(features, int) else [int(one) for one in features]
    _require(sae, features, scale, steer)
    require_fit(model, {name: sae})
    check_tokens(model, prompts)
    measured = as_metric(metric)
    prompts = answered(model, prompts, measured)
    reading = Reading.of(model, sae, prompts, features, ignore)
    site, rows = reading.site.at(pos=pos), decoder_rows(sae, features)
    runs = []
    for i, row in enumerate(rows):
        old = reading.active[..., i]
        new = torch.full_like(old, steer) if steer is not None else scale * old
        runs.append([Shift(site, (new - old) * reading.scale, _shaped(row, reading))])
    base = [] if error else [Put(reading.site, reading.rebuilt)]
    swept = sweep(model, prompts, [[], *runs], measured, base=base, memory=memory)
    sites = [site.at(basis=name, index=feature) for feature in features]
    how = {"scale": scale} if steer is None else {"steer": steer}
    about = {"verb": "effect", "model": model.cfg.model_name, "metric": measured.name, **how, "error": error}
    about |= {"path": swept.path, "before": swept.scores[0].tolist()}
    about |= {} if prompts.text is None else {"prompts": list(prompts.text)}
    return Result.of_sites(sites, swept.scores[1:] - swept.scores[0], measured.unit, about)


@torch.no_grad()
def effects_of_firings(
    model,
    sae,
    prompts: Prompts,
    firings: Sequence[tuple[int, int]],
    metric: Metric | Callable,
    *,
    ignore: Sequence[int] = (),
) -> tuple[Float[Tensor, "firing"], Metric]:
    """Change of `metric` when each firing `(pos, feature)` of one prompt is taken out, alone, and the metric itself.

    Cost: two forward passes as far as the SAE and one sweep of a run per firing.
    """
    measured = as_metric(metric)
    prompts = answered(model, prompts, measured)
    numbers = {feature: i for i, feature in enumerate(dict.fromkeys(feature for _, feature in firings))}
    reading, rows = Reading.of(model, sae, prompts, list(numbers), ignore), decoder_rows(sae, list(numbers))
    taken = -reading.active * reading.scale[..., None]
    runs = [
        [Shift(reading.site.at(pos=pos), taken[..., numbers[feature]], _shaped(rows[numbers[feature]], reading))]
        for pos, feature in firings
    ]
    scores = sweep(model, prompts, [[], *runs], measured).scores[:, 0]
    return (scores[1:] - scores[0]).cpu(), measured


def answered(model, prompts: Prompts, metric: Metric) -> Prompts:
    """The prompts, on the model's device; those without answers with the model's own, where the metric needs one."""
    prompts = prompts.to(next(model.parameters()).device)
    if prompts.answers is not None or metric.reads != "last":
        return prompts
    return replace(prompts, answers=likeliest(model, prompts)[:, None])


def hooks_of(sae) -> tuple[str, str]:
    """The hook that an SAE reads, and the one that it writes."""
    metadata = sae.cfg.metadata
    return str(metadata.hook_name), str(metadata.hook_name_out or metadata.hook_name)


def site_of(sae) -> Site:
    """Where an SAE writes."""
    return Site.parse(short_name(hooks_of(sae)[1])).at(head=sae.cfg.metadata.hook_head_index)


def decoder_scale(sae, x: Float[Tensor, "row pos ..."], real: Tensor) -> Float[Tensor, "token"]:
    """What the decoder multiplies by at each token: 1, unless the SAE rescales every input by its own size."""
    active = encoded(sae, x, real)
    if sae.cfg.normalize_activations not in ("layer_norm", "constant_norm_rescale"):
        return torch.ones_like(active[:, 0])
    full = sae.decode(active).flatten(1)
    encoded(sae, x, real)  # the sizes are kept by encode and used up by decode
    written = full - sae.decode(torch.zeros_like(active)).flatten(1)
    plain = active @ decoder_rows(sae, range(sae.cfg.d_sae))
    size = plain.square().sum(1)
    return torch.where(size > 0, (written * plain).sum(1) / size.clamp(min=1e-30), 1.0)


def _slice_of(sae, y: Float[Tensor, "row pos ..."]) -> Tensor:
    """The values at the site that an SAE writes: one head's, or the hook's as they are."""
    head = sae.cfg.metadata.hook_head_index
    return y[:, :, head] if head is not None and y.ndim == 4 else y


def _shaped(row: Float[Tensor, "d"], reading: Reading) -> Tensor:
    """A decoder row in the shape that a position has at the site."""
    return row.reshape(reading.rebuilt.shape[2:])


def _require(sae, features: Sequence[int], scale: float, steer: float | None) -> None:
    if steer is not None and scale != 0.0:
        raise ValueError(f"scale={scale} multiplies activations and steer={steer} sets them; give one of the two")
    if not features:
        raise ValueError("no features are given; name at least one by its number")
    odd = [feature for feature in features if not 0 <= feature < sae.cfg.d_sae]
    if odd:
        raise ValueError(f"no feature {odd[0]}; the SAE has 0 to {sae.cfg.d_sae - 1}")
