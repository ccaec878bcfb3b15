"""Path patching: what a sender does to an answer through its paths into some receivers alone.

    heads = path_patch(model, pair, "L*.H*.z", "logits", logit_diff)             # direct effects on the logits
    path_patch(model, pair, "L*.H*.z", ["L9.H9.q", "L9.H6.q"], logit_diff)       # through two heads' queries

Senders' changes are propagated as rows of the residual stream (`deltas`) where the model's blocks are TransformerLens's
own and nothing is hooked; elsewhere by one hooked pass per sender. The patched runs are one `sweep`.
"""

from collections.abc import Callable, Iterable

import torch

from mechkit.core.metrics import Metric, as_metric
from mechkit.core.places import expand
from mechkit.core.prompts import Pair
from mechkit.core.result import Result
from mechkit.core.site import Edge, Site
from mechkit.patching.deltas import SENDERS
from mechkit.patching.protocol import Protocol

Sites = str | Site | Iterable[str | Site]

_HELD = {"attention": ("z", "result", "attn_out"), "all": ("z", "result", "attn_out", "mlp_out")}


@torch.no_grad()
def path_patch(
    model,
    pair: Pair,
    senders: Sites,
    receivers: Sites,
    metric: Metric | Callable,
    *,
    freeze: str = "attention",
    memory: int | None = None,
) -> Result:
    """Change in `metric` on the clean prompts when one sender is corrupt for the receivers alone, a row per sender.

    The protocol, with x_orig the clean and x_new the corrupt prompts of `pair`, for each sender:

    1. Record x_orig and x_new.
    2. Run x_orig with the sender's value from x_new. Every other head's output is held at x_orig; MLPs and norms are
       recomputed. With `freeze="all"` every MLP's output is held too, which leaves the direct path. Record what
       each receiver reads.
    3. Run x_orig again, nothing held, with those recordings in place of the receivers' own values; measure.

    Score: the metric of (3) minus the metric of x_orig; negative where the sender supports the answer along these
    paths. `gap` is metric(corrupt) minus metric(clean), what changing everything does. Unit: the metric's.

    `senders` write to the residual stream: z of heads, attn_out, mlp_out, resid_pre, resid_mid, resid_post, embed,
    pos_embed, anywhere or at positions; each is a row of its own. `receivers` are one set, patched together: q, k and v
    (before any rotation; key/value heads for k and v), the residual stream, mlp_out as the MLP that reads, or
    "logits", which stands for the last block's resid_post where the metric reads it. Rows name the receiver, or
    `receivers` where there are several, listed in `meta["receivers"]`. A sender without a path to them scores 0.

    Cost: one pass of clean and corrupt prompts together (two passes per prompt length where lengths differ, plus the
    sweep's base run), one propagation of all senders through the MLPs up to the last receiver (of rows that changed
    and are read), and one `sweep` of a run per sender, which goes on from the first pass. `memory` is the most that
    rows and runs take, in bytes, beside the recordings: senders are handled in as many chunks as that needs.
    `meta["path"]` says "deltas", or why each sender took a pass of its own: the model has hooks, or parts whose steps
    are not known, or a receiver is another hook (pattern, mlp_post, ...).
    Raises ValueError for a site the model lacks, a sender that is not in the residual stream, a receiver that is held,
    and slices whose shapes differ between clean and corrupt.
    Source: Wang et al. 2022, section 3.1 and appendix B.
    """
    if freeze not in _HELD:
        raise ValueError(f"freeze is 'attention' or 'all', not {freeze!r}")
    measured = as_metric(metric)
    ends = _ends(model, pair, senders, receivers, measured, freeze)
    protocol = Protocol(model, pair, *ends, measured, hold_mlps=freeze == "all")
    scores, gap = protocol.measure(memory)
    meta = {
        "verb": "path_patch",
        "metrics": [measured.name],
        "units": [measured.unit],
        "freeze": freeze,
        "receivers": [str(site) for site in protocol.receivers],
        "path": f"two passes per sender: {protocol.obstacle}" if protocol.obstacle else "deltas",
    }
    receiver = protocol.receivers[0] if len(protocol.receivers) == 1 else Site("receivers")
    edges = [Edge(sender, receiver) for sender in protocol.senders]
    return Result.of_edges(edges, scores, measured.unit, meta, gap=gap.cpu())


def _ends(model, pair: Pair, senders: Sites, receivers: Sites, metric: Metric, freeze: str):
    """Concrete senders and receivers. Raises ValueError for what cannot send or receive."""
    if receivers == "logits":
        receivers = Site("resid_post", model.cfg.n_layers - 1, pos=-1 if metric.reads == "last" else None)
    sending, receiving = expand(model, senders, pair.clean), expand(model, receivers, pair.clean)
    if not sending or not receiving:
        raise ValueError(f"{len(sending)} senders and {len(receiving)} receivers are given; there must be one of each")
    for site in sending:
        if site.name not in SENDERS:
            raise ValueError(
                f"'{site}' cannot send: a sender is one of {', '.join(SENDERS)}, which the stream is made of"
            )
    for site in receiving:
        if site.name in _HELD[freeze] or site.name in ("embed", "pos_embed"):
            raise ValueError(
                f"'{site}' cannot receive: it is held at its clean value with freeze='{freeze}'; take what it reads, "
                "such as q, k and v of a head, or mlp_post"
            )
    return sending, receiving
