"""Direct logit attribution: what each component writes itself in the logits, nothing in between.

The final residual stream is a sum of what the embeddings, heads, MLPs and biases wrote. With the final norm's scale
held the logits are linear in it, so that a metric linear in the logits is a sum over components.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.gradients import Found, Side, at, measure_part, values
from mechkit.core.metrics import Metric
from mechkit.core.places import cut, expand, groups, paste, places
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, by_length, check_tokens
from mechkit.core.rules import direct_paths
from mechkit.core.site import EACH, Site
from mechkit.patching.contraction import Contraction, hooks_for, tensors

Scores = Float[Tensor, "site prompt"]

WRITES = (
    "embed",
    "pos_embed",
    "resid_pre",
    "z",
    "result",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
"""Hooks that hold what is written to the residual stream, or the stream itself."""

BIASES = ("b_O", "ln_final.b", "b_U")
"""Parameters that are added to the stream, to its final norm and to the logits."""

_POST_NORMS = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_ROUNDING = 0.05
"""Largest difference from linear, relative to the sum of sizes, that passes for rounding."""


def direct_effects(
    model,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site] | None,
    metric: Metric,
    norm: str,
    batch_size: int,
) -> tuple[list[Site], Scores, Float[Tensor, "prompt"]]:
    """The sites, the direct effect of each on every prompt, and the metric itself.

    Cost: one forward pass per batch of prompts of one length; with a live norm the final norm and the unembedding
    once per site more. Raises ValueError for a site that writes nothing, and for models whose components are
    normalised after they are computed or whose MLPs cannot be told from the rest.
    """
    _require_additive(model)
    check_tokens(model, prompts)
    rows = components(model) if sites is None else _written_sites(model, sites, prompts)
    effects = _frozen if norm == "frozen" else _live
    parts, members, totals = [], [], []
    batches = [alike[i : i + batch_size] for alike in by_length(prompts) for i in range(0, len(alike), batch_size)]
    for numbers in progress(batches, "batches of prompts"):
        scores, total = effects(model, prompts, numbers, rows, metric)
        parts.append(scores)
        totals.append(total)
        members += numbers
    back = torch.tensor(members, device=totals[0].device).argsort()
    return rows, torch.cat(parts, 1)[:, back], torch.cat(totals)[back]


def components(model) -> list[Site]:
    """Everything that is added to the final residual stream or to the logits, once: components, then biases."""
    cfg = model.cfg
    found = [Site("embed")] + [Site("pos_embed")] * (cfg.positional_embedding_type == "standard")
    for layer in range(cfg.n_layers):
        found += [Site("z", layer, head) for head in range(cfg.n_heads)]
        found += [] if cfg.attn_only else [Site("mlp_out", layer)]
    found += [Site("b_O", layer) for layer in range(cfg.n_layers)]
    found += [Site("ln_final.b")] if _final_bias(model) is not None else []
    return [*found, Site("b_U")]


def _frozen(model, prompts: Prompts, rows: list[int], sites: Sequence[Site], metric: Metric) -> tuple[Scores, Tensor]:
    """Effects through the final norm's scale as it is, and the metric."""
    chosen = [site for site in sites if site.name not in BIASES]
    biases = [_bias_hook(site) for site in sites if site.name in BIASES]
    names = [*hooks_for(model, chosen, qk_fix=False), *biases, "unembed"]
    held: dict[str, Tensor] = {}

    def measure(logits: Tensor) -> Tensor:
        held["metric"] = measure_part(metric, prompts, rows, held["logits"])
        return held["metric"]

    neurons = {site.layer for site in chosen if site.name == "mlp_post"}
    rules = replace(direct_paths(model, neurons), after=[("unembed", lambda x, module: held.update(logits=x))])
    found = at(model, Side(prompts), rows, list(dict.fromkeys(names)), measure, rules)
    total = held.pop("metric").detach()
    held.clear()
    _require_linear(metric, found, total)
    scores = Contraction(model, found, None, (prompts[rows], prompts[rows]), {}).scores(chosen)[0]
    by_site = dict(zip(chosen, scores, strict=True))
    return torch.stack(
        [by_site[site] if site in by_site else _bias_effect(model, site, found) for site in sites]
    ), total


def _live(model, prompts: Prompts, rows: list[int], sites: Sequence[Site], metric: Metric) -> tuple[Scores, Tensor]:
    """Falls of the metric as each site's part is taken out of the final residual stream, and the metric."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    chosen = [site for site in sites if site.name not in BIASES]
    names = [*hooks_for(model, chosen, qk_fix=False), last]
    found = values(model, Side(prompts), rows, list(dict.fromkeys(names)))
    final = found.values[last][0]
    with torch.no_grad():
        total = measure_part(metric, prompts, rows, _logits(model, final))
        falls = []
        for site in progress(list(sites), "components"):
            less = _without(model, site, found, prompts[rows], final)
            falls.append(total - measure_part(metric, prompts, rows, less))
    return torch.stack(falls), total


def _without(model, site: Site, found: Found, prompts: Prompts, final: Tensor) -> Tensor:
    """Logits without what a site writes."""
    if site.name == "b_U":
        return _logits(model, final) - model.unembed.b_U
    if site.name == "ln_final.b":
        return model.unembed(_normed(model, final) - model.ln_final.b)
    if site.name == "b_O":
        return _logits(model, final - model.blocks[site.layer].attn.b_O)
    return _logits(model, final - _written(model, site, found, prompts).to(final.dtype))


def _written(model, site: Site, found: Found, prompts: Prompts) -> Float[Tensor, "prompt pos d_model"]:
    """What the slice of a site adds to the residual stream."""
    if site.name == "result" and site.index is None:
        site = site.at(name="z")
    whole = tensors(model, found.values, site.hook)[0]
    kept = torch.zeros_like(whole)
    for place, rows in groups(places(site, prompts)):
        kept[rows] = paste(kept[rows], site, place, cut(whole[rows], site, place))
    if site.name == "z":
        return torch.einsum("bphe,hed->bpd", kept, model.blocks[site.layer].attn.W_O)
    if site.name == "mlp_post":
        return kept @ model.blocks[site.layer].mlp.W_out
    return kept.sum(2) if site.name == "result" else kept


def _bias_effect(model, site: Site, found: Found) -> Float[Tensor, "prompt"]:
    """What a bias adds to the metric, at all positions together."""
    bias = {
        "b_O": lambda: model.blocks[site.layer].attn.b_O,
        "ln_final.b": lambda: model.ln_final.b,
        "b_U": lambda: model.unembed.b_U,
    }[site.name]()
    slopes = found.gradients[0][_bias_hook(site)][0]
    return (bias.detach().to(slopes.dtype) * slopes).flatten(1).sum(1)


def _bias_hook(site: Site) -> str:
    """The module whose output a bias is added to."""
    return {"b_O": f"blocks.{site.layer}.attn", "ln_final.b": "ln_final", "b_U": "unembed"}[site.name]


def _final_bias(model) -> Tensor | None:
    return getattr(getattr(model, "ln_final", None), "b", None)


def _normed(model, final: Tensor) -> Tensor:
    return final if model.cfg.normalization_type is None else model.ln_final(final)


def _logits(model, final: Tensor) -> Float[Tensor, "prompt pos vocab"]:
    """Logits, before any soft-cap, of a final residual stream."""
    return model.unembed(_normed(model, final))


def _written_sites(model, sites: str | Site | Iterable[str | Site], prompts: Prompts) -> list[Site]:
    """The concrete sites, biases among them. Raises ValueError for one that writes nothing to the stream."""
    given = [Site.parse(site) for site in ([sites] if isinstance(sites, str | Site) else sites)]
    found = [one for site in given for one in (_biases(model, site) or expand(model, site, prompts))]
    for site in found:
        if site.name not in WRITES and site.name not in BIASES:
            raise ValueError(
                f"site '{site}' writes nothing to the residual stream itself; those that do are {', '.join(WRITES)} "
                f"and the biases {', '.join(BIASES)}"
            )
    return found


def _biases(model, site: Site) -> list[Site]:
    """The biases a site names, none for other sites. Raises ValueError for one the model lacks."""
    if site.name not in BIASES:
        return []
    known = {str(one) for one in components(model) if one.name in BIASES}
    found = [site.at(layer=layer) for layer in (range(model.cfg.n_layers) if site.layer == EACH else [site.layer])]
    for one in found:
        if str(one) not in known:
            raise ValueError(f"no bias '{one}': there are {', '.join(sorted(known))}")
    return found


def _require_linear(metric: Metric, found: Found, total: Tensor) -> None:
    """Raise ValueError where the metric is not a weighted sum of the logits."""
    terms = (found.values["unembed"][0] * found.gradients[0]["unembed"][0]).flatten(1)
    allowed = _ROUNDING.get(terms.dtype, _HALF_ROUNDING)
    if bool(((terms.sum(1) - total).abs() > allowed * terms.abs().sum(1)).any()):
        raise ValueError(
            f"metric '{metric.name}' is not linear in the logits, so it is no sum over components; take logit, "
            "logit_diff or another sum of logits, or norm='live'"
        )


def _require_additive(model) -> None:
    """Raise ValueError where the final residual stream is not the sum of what components compute."""
    cfg = model.cfg
    parts = {
        "norms after attention and MLP": getattr(cfg, "use_normalization_before_and_after", False)
        or getattr(cfg, "original_architecture", None) in _POST_NORMS,
        "a norm after the embedding": getattr(cfg, "post_embedding_ln", False),
    }
    for part, present in parts.items():
        if present:
            raise ValueError(
                f"the model has {part}, so its residual stream is no plain sum of components; take method='gradient'"
            )
