"""What does path patching cost, against two hooked passes per sender?

Every head sends, all positions; three heads' queries in upper layers receive. Both sides follow Wang et al. 2022:
other heads held at the clean prompt's, MLPs between live.
"""

from collections.abc import Iterator

import torch

import mechkit as mk
from benchmarks.measure import Case, Row, Side, measured
from benchmarks.models import Subject, one_pass
from benchmarks.peers import Paths, spaced
from benchmarks.sweeps import PAIRS, described
from mechkit.core.site import Site
from mechkit.patching.paths import path_patch

WANTED = 25
"""How many times the CPU time of mechkit two passes per sender are to take, at GPT-2-small shape and 16 tokens."""
PEERS_UP_TO = 128
"""Longest prompt that peers run on."""


@torch.no_grad()
def path_rows(subject: Subject, device: str, size: str, seconds: float) -> Iterator[Row]:
    """Rows of path patching on every pair and prompt length of one model."""
    for n_tokens in subject.lengths:
        for first in PAIRS:
            pair = subject.pair(n_tokens, first=first)
            paths = Paths(subject.model, pair, receivers(subject.model))
            words = ", ".join(str(site) for site in paths.receivers)
            case = Case(
                subject.name, f"every head to {words}, {described(pair)}", _sides(subject, paths, size),
                *one_pass(subject.model, pair.clean),
            )  # fmt: skip
            yield from measured(case, device, seconds)


def receivers(model) -> list[Site]:
    """The queries of three heads: two in the last quarter of the layers, one in the layer after them."""
    last, n_heads = model.cfg.n_layers - 1, model.cfg.n_heads
    here = min(last, 3 * model.cfg.n_layers // 4)
    heads = [(here, n_heads - 3), (here, n_heads // 2), (min(here + 1, last), 0)]
    return [Site("q", layer=layer, head=head) for layer, head in heads]


def _sides(subject: Subject, paths: Paths, size: str) -> list[Side]:
    senders = paths.senders()
    sides = [Side("mechkit", lambda: by_mechkit(paths, senders), len(senders))]
    n_tokens = paths.pair.clean.tokens.shape[1]
    if n_tokens > PEERS_UP_TO:
        return sides
    chosen = spaced(len(senders), 8 if size == "small" else 48)
    sample = None if len(chosen) == len(senders) else chosen
    wanted = WANTED if subject.name == "GPT-2-small shape" and n_tokens == 16 else None
    some = [senders[i] for i in chosen]
    return [*sides, Side("two hooked passes", lambda: paths.by_loop(some), len(senders), sample, wanted)]


def by_mechkit(paths: Paths, senders: list[Site]) -> torch.Tensor:
    """The metric after each sender's paths are patched: what `path_patch` gives, and what it starts from."""
    found = path_patch(paths.model, paths.pair, senders, paths.receivers, mk.logit_diff)
    return found.scores[:, 0] + paths.start
