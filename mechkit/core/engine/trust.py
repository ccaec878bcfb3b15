"""Whether the lean layers reproduce a model: tried once per model, against one hooked forward pass.

The pass holds one row for every kind of edit. Where they differ, the model's sweeps run through its own modules.
"""

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mechkit.core.engine.agenda import BLOCK, lean_site
from mechkit.core.engine.general import General
from mechkit.core.engine.lean import Lean
from mechkit.core.engine.memory import Budget
from mechkit.core.engine.question import Question
from mechkit.core.interventions import Intervention, Scale
from mechkit.core.metrics import Metric
from mechkit.core.prompts import Prompts
from mechkit.core.site import HEAD_NAMES, SQUARE_NAMES, Site

_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest error, relative to the largest logit; half precision is held to 5 %."""

_verdicts: WeakKeyDictionary = WeakKeyDictionary()


def trusted(model) -> bool:
    """Whether the lean layers give the model's own logits under every kind of edit. Warns, once, where they do not."""
    about = str(sorted(model.cfg.to_dict().items(), key=lambda item: item[0]))
    if _verdicts.get(model, ("", False))[0] != about:
        error, close = _error(model), _CLOSE.get(model.cfg.dtype, 0.05)
        if not error <= close:
            warnings.warn(
                f"the lean layers differ from this model by {error:.1e} of its largest logit; "
                "sweeps on it run through its own modules, several times slower",
                stacklevel=4,
            )
        _verdicts[model] = (about, error <= close)
    return _verdicts[model][1]


def _error(model) -> float:
    """The largest difference of logits after any kind of edit, relative to the largest logit."""
    device = next(model.parameters()).device
    tokens = torch.arange(min(3, model.cfg.n_ctx), device=device)[None] % model.cfg.d_vocab
    runs, sides = _every_kind(model, tokens.shape[1]), []
    for engine in (Lean, General):
        seen: list[Tensor] = []
        metric = Metric("logits", "logits", "all", lambda logits, prompts, seen=seen: _keep(logits, seen))
        engine(Question(model, Prompts.from_tokens(tokens), runs, [metric]), Budget.of(None, device)).measure()
        sides.append(torch.stack(seen).double())
    if sides[0].shape != sides[1].shape:
        return float("inf")
    return float((sides[0] - sides[1]).abs().max() / sides[1].abs().max().clamp(min=1e-30))


def _keep(logits: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(logits.clone())
    return logits.new_zeros(len(logits))


def _every_kind(model, n_pos: int) -> Sequence[Sequence[Intervention]]:
    """One run for each kind of edit, layers taken in turn, and one with several edits."""
    layers = model.cfg.n_layers
    sites = [Site("embed", pos=0)]
    for i, name in enumerate(BLOCK):
        pos, src = (-1, 0) if name in SQUARE_NAMES else (n_pos // 2, None)
        head = 0 if name in HEAD_NAMES else None
        sites.append(Site(name, layer=(5 * i) % layers, head=head, pos=pos, src=src))
    sites = [site for site in sites if lean_site(model, site)]
    return [*([Scale(site, -0.5)] for site in sites), [Scale(site, 0.5) for site in sites]]
