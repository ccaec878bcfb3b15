"""Attribution: estimates of what patching a site would do, all sites from a few passes, and direct effects on logits.

    attribute(model, pair, "L*.H*.z@*", logit_diff)                                # attribution patching (AtP)
    attribute(model, pair, "L*.H*.q@*", logit_diff, qk_fix=True, grad_drop=True)   # AtP*
    attribute(model, pair, "L*.mlp_post#*", logit_diff, method="integrated", steps=10)
    attribute(model, pair, "L*.resid_pre@*", logit_diff, method="relp")
    attribute(model, prompts, None, logit_diff, method="direct")                   # direct logit attribution

What stands out is worth a patch: `patch(model, pair, found.top(20).sites, logit_diff)` is exact.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from mechkit.core.gradients import Side
from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import expand
from mechkit.core.prompts import Pair, Prompts
from mechkit.core.result import Result
from mechkit.core.site import Site
from mechkit.patching.direct import direct_effects
from mechkit.patching.estimates import Estimate, Path
from mechkit.patching.qk_fix import require_heads_apart
from mechkit.patching.rows import check_match

Method = Literal["gradient", "integrated", "relp", "direct"]


def attribute(
    model,
    pair: Pair | Prompts,
    sites: str | Site | Iterable[str | Site] | None,
    metric: Metric | Callable,
    *,
    method: Method = "gradient",
    mode: Literal["denoise", "noise"] = "denoise",
    steps: int = 10,
    path: Path = "inputs",
    qk_fix: bool = False,
    grad_drop: bool = False,
    norm: Literal["frozen", "live"] = "frozen",
    batch_size: int = 64,
) -> Result:
    """Estimated change in `metric` when each site of the corrupt run takes its clean value, as `patch` measures it.

    0 is no effect, the pair's `gap` (clean metric minus corrupt metric) is full recovery. `mode="noise"` is the
    reverse: clean run, corrupt values, `gap` corrupt minus clean. A score is (new value - old value) · slope, summed
    over the site's slice; the slope of `metric` at the site is, by `method`:

    - `"gradient"`, attribution patching (AtP): its gradient in the patched run. Two options make AtP*: `qk_fix`
      computes the pattern anew with each new q or k (or rot_q, rot_k) and is linear from there on; `grad_drop` repeats
      the backward pass once per layer with nothing flowing through that layer's attn_out and mlp_out, and gives
      Σ|score| / (n_layers - 1), which has no sign and, for sites in the residual stream, a factor too much.
    - `"integrated"`: the mean of its gradients at `steps` midpoints (k + 1/2) / steps of a straight line.
      `path="inputs"` moves the token and position embeddings from the patched run's to the other's (EAP-IG inputs): as
      `steps` grows, the scores of `L0.resid_pre@*` sum to the gap; later layers', which do not move straight, need
      not. `path="activations"` moves each hook's whole tensor in turn, all else left to follow: the scores of
      any hook's parts then sum to what patching all of it does.
    - `"relp"`: its gradient under the rules of layer-wise relevance propagation, `core.rules.relp`: patterns and
      norms' scales held, so q and k score 0.
    - `"direct"`, direct logit attribution: no patch, but what each component writes itself in the metric, with
      `norm="frozen"` through the final norm's scale on this prompt, and `norm="live"` as the fall of the metric when
      the component is taken out of the final residual stream and the norm is computed anew. Prompts are enough; of a
      pair the clean side is taken. `sites=None` stands for all: embeddings, each head's z, each mlp_out (with its
      b_out), and the biases b_O of each layer, ln_final.b and b_U. Frozen, these sum to the metric, which is `gap`.
      Logits are those before any soft-cap.

    Unit: the metric's. Cost: two forward passes and one backward pass per batch of at most `batch_size` prompts
    of one length; `integrated` `steps` (times the number of hooks for activations) forward and backward passes,
    batched; `grad_drop` a backward pass per layer; `qk_fix` one block's attention per layer, position and q or k;
    `direct` one forward pass. Raises ValueError for a site the model lacks or a method does not cover, a metric
    without a gradient (for `"direct"`, one that is not linear in the logits), and prompts that do not match at a site.
    Source: Nanda 2023 (AtP); Kramár et al. 2024, sections 3.1 and 3.2 (AtP*); Hanna et al. 2024 (inputs) and Mueller
    et al. 2025 (activations); Jafari et al. 2025 (RelP); Elhage et al. 2021 (direct).
    """
    measured = as_metric(metric)
    check_options(model, method, mode, path, norm, steps, batch_size, qk_fix, grad_drop)
    meta: dict[str, Any] = {"verb": "attribute", "metrics": [measured.name], "units": [measured.unit], "method": method}
    if method == "direct":
        prompts = pair.clean if isinstance(pair, Pair) else pair
        rows, scores, total = direct_effects(model, prompts, sites, measured, norm, batch_size)
        return Result.of_sites(rows, scores, measured.unit, {**meta, "norm": norm}, gap=total.cpu())
    if not isinstance(pair, Pair):
        raise TypeError(f"method='{method}' compares two runs and needs a Pair; of Prompts alone there is 'direct'")
    if sites is None:
        raise ValueError(f"method='{method}' needs sites, such as 'L*.H*.z@*'; None is for method='direct'")
    sides = _sides(pair, mode)
    found = expand(model, sites, sides[0].prompts)
    check_match(found, pair.clean, pair.corrupt, "its corrupt prompt")
    estimate = Estimate(model, *sides, found, measured, method, steps, path, qk_fix, grad_drop, batch_size)
    scores, gap = estimate.scores()
    options = {
        "gradient": {"qk_fix": qk_fix, "grad_drop": grad_drop},
        "integrated": {"steps": steps, "path": path},
    }
    meta |= {"mode": mode, **options.get(method, {})}
    return Result.of_sites(found, scores, measured.unit, meta, gap=gap.cpu())


def _sides(pair: Pair, mode: str) -> tuple[Side, Side]:
    """The run that would be patched and the one values come from."""
    corrupt, clean = Side(pair.corrupt, tuple(pair.edits)), Side(pair.clean)
    return (corrupt, clean) if mode == "denoise" else (clean, corrupt)


def check_options(
    model, method: str, mode: str, path: str, norm: str, steps: int, batch_size: int, qk_fix: bool, grad_drop: bool
) -> None:
    """Raise ValueError, naming the choices, for options that are none or do not go together."""
    choices = {
        "method": (method, get_args(Method)),
        "mode": (mode, ("denoise", "noise")),
        "path": (path, get_args(Path)),
        "norm": (norm, ("frozen", "live")),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, not {given!r}")
    for name, given in {"steps": steps, "batch_size": batch_size}.items():
        if given < 1:
            raise ValueError(f"{name} is {given}; it must be at least 1")
    if (qk_fix or grad_drop) and method != "gradient":
        raise ValueError(f"qk_fix and grad_drop belong to method='gradient' (AtP*), not to '{method}'")
    if grad_drop and model.cfg.n_layers == 1:
        raise ValueError("grad_drop leaves layers out in turn and needs two or more; the model has one")
    if qk_fix:
        require_heads_apart(model)
