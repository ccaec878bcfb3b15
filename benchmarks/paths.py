"""What does path patching cost, against two hooked passes per sender?

Every head sends, all positions; three heads' queries in upper layers receive. Both sides follow Wang et al. 2022:
other heads held at the clean prompt's, MLPs between live.
"""

from collections.abc import Iterator

import torch

import mechkit as mk
from benchmarks.measure import Case, Row, Side, measured
from benchmarks.models import Subject, one_pass
from benchmarks.peers import Paths
from benchmarks.sweeps import PAIRS, described, is_target, sampled, too_long
from mechkit.core.site import Site
from mechkit.patching.paths import path_patch

WANTED = 25
"""How many times the CPU time of mechkit two passes per sender are to take: GPT-2-small shape, 16 tokens."""


@torch.no_grad()
def path_rows(subject: Subject, device: str, size: str, seconds: float) -> Iterator[Row]:
    """Rows of path patching on every pair and prompt length of one model."""
    for n_tokens in subject.lengths:
        for first in PAIRS[:1] if size == "small" else PAIRS:
            pair = subject.pair(n_tokens, first=first)
            paths = Paths(subject.model, pair, receivers(subject.model))
            senders, (largest, flops) = paths.senders(), one_pass(subject.model, pair.clean)
            name = f"every head to {', '.join(map(str, paths.receivers))}, {described(pair)}"
            if too_long(name, len(senders), flops, device, size):
                continue
            _ = paths.heads, paths.start  # values to patch in and to measure from
            chosen = sampled(len(senders), 2 * flops, device, size)
            wanted = WANTED if is_target(subject, n_tokens) and first is not None else None
            case = Case(subject.name, name, _sides(paths, senders, chosen, wanted), largest, flops)
            yield from measured(case, device, seconds)


def receivers(model) -> list[Site]:
    """The queries of three heads: two in the last quarter of the layers, one in the layer after them."""
    last, n_heads = model.cfg.n_layers - 1, model.cfg.n_heads
    here = min(last, 3 * model.cfg.n_layers // 4)
    heads = [(here, n_heads - 3), (here, n_heads // 2), (min(here + 1, last), 0)]
    return [Site("q", layer=layer, head=head) for layer, head in heads]


def _sides(paths: Paths, senders: list[Site], chosen: list[int], wanted: float | None) -> list[Side]:
    sample = None if len(chosen) == len(senders) else chosen
    some = [senders[i] for i in chosen]
    return [
        Side("mechkit", lambda: by_mechkit(paths, senders), len(senders)),
        Side("two hooked passes", lambda: paths.by_loop(some), len(senders), sample, wanted),
    ]


def by_mechkit(paths: Paths, senders: list[Site]) -> torch.Tensor:
    """The metric after each sender's paths are patched: what `path_patch` gives, and what it starts from."""
    found = path_patch(paths.model, paths.pair, senders, paths.receivers, mk.logit_diff)
    return found.scores[:, 0] + paths.start
