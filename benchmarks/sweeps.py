"""What does a patching sweep cost, against `transformer_lens.patching` and a plain loop of hooked passes?

Every side answers the same question on the same pair, without gradients. `mechkit.patching.compat` is given the cache
of the clean run, as its peer is; `mk.patch` makes its own, and runs the corrupt prompt once more. Peers answer a
stated sample of the runs, as each costs them one whole forward pass; their times are scaled to all runs.
"""

from collections.abc import Iterator

import torch

import mechkit as mk
from benchmarks.measure import Case, Row, Side, left_out, matmul_rate, measured
from benchmarks.models import Subject, one_pass
from benchmarks.peers import AXES, BLOCK_EVERY, Sweep, spaced

KINDS = {
    "resid_pre": ("resid_pre",),
    "heads, all positions": ("attn_head_out_all_pos",),
    "every block": BLOCK_EVERY,
    "heads by position": ("attn_head_out_by_pos",),
}
"""Sweeps by what `transformer_lens.patching` calls its parts."""
PAIRS = (5, None)
"""The first token at which the two prompts differ; None for prompts that differ everywhere."""
WANTED = {
    ("resid_pre", 5): 30, ("heads, all positions", 5): 11, ("every block", 5): 30, ("heads by position", 5): 30,
    ("resid_pre", None): 14, ("every block", None): 14,
}  # fmt: skip
"""How many times the CPU time of mechkit `transformer_lens.patching` is to take at GPT-2-small shape, 16 tokens."""
FULL_ONLY = {("heads, all positions", None), ("heads by position", None)}
"""Left out of the small size, and so are plain loops and, but for resid_pre, `mk.patch`."""
POSITIONS = 16
"""Positions patched one by one at most, evenly spaced."""
LONGEST = {"small": 30.0, "full": 200.0}
"""Busy seconds of one call of mechkit above which a sweep is left out, estimated from its FLOPs."""
PEER_SECONDS = {"small": 1.0, "full": 9.0}
"""Busy seconds of the sample of runs that a peer makes, estimated likewise."""
FEWEST, MOST = 4, 48
"""Runs in such a sample."""
OF_RATE = 0.2
"""Share of the matrix-product rate that peers' forward passes reach on a CPU, about."""


@torch.no_grad()
def sweep_rows(subject: Subject, device: str, size: str, seconds: float) -> Iterator[Row]:
    """Rows of every sweep on every pair and prompt length of one model."""
    _settle(subject)
    for n_tokens in subject.lengths:
        for first in PAIRS:
            pair = subject.pair(n_tokens, first=first)
            largest, flops = one_pass(subject.model, pair.clean)
            for name, kinds in KINDS.items():
                sweep = Sweep(subject.model, pair, kinds, positions_of(pair))
                if size == "small" and (name, first) in FULL_ONLY:
                    continue
                if too_long(f"{name}, {described(pair)}", len(sweep.cells()), flops, device, size):
                    continue
                _ = sweep.cache, sweep.start  # given to every side
                wanted = WANTED.get((name, first)) if is_target(subject, n_tokens) else None
                sides = _sides(sweep, size, sampled(len(sweep.cells()), flops, device, size), wanted)
                along = sweep.positions is not None and any("p" in AXES[kind] for kind in kinds)
                some = f", {len(sweep.positions or ())} positions patched" if along else ""
                case = Case(subject.name, f"{name}, {described(pair)}{some}", sides, largest, flops)
                yield from measured(case, device, seconds)


def too_long(name: str, n_runs: int, flops: float, device: str, size: str) -> bool:
    """Whether `n_runs` would take mechkit longer than is waited for; says so. A run costs about a third of a pass."""
    expected = n_runs * flops / 3 / matmul_rate(device)
    if expected <= LONGEST[size]:
        return False
    left_out(name, f"{n_runs} runs would take about {expected:.0f} s a call")
    return True


def sampled(n_runs: int, flops: float, device: str, size: str) -> list[int]:
    """The runs that a peer makes, of `n_runs` that cost it one forward pass each."""
    a_pass = flops / matmul_rate(device) / OF_RATE
    return spaced(n_runs, max(FEWEST, min(MOST, int(PEER_SECONDS[size] / a_pass))))


def is_target(subject: Subject, n_tokens: int) -> bool:
    """Whether the ratios are those that are wanted: GPT-2-small shape, 16 tokens."""
    return subject.name == "GPT-2-small shape" and n_tokens == 16


def described(pair: mk.Pair) -> str:
    """A pair in words: how long it is and where its prompts differ."""
    differ = (pair.clean.tokens != pair.corrupt.tokens)[0]
    where = "differ everywhere" if bool(differ.all()) else f"first differ at token {int(differ.int().argmax())}"
    return f"{len(differ)} tokens, {where}"


def positions_of(pair: mk.Pair) -> tuple[int, ...] | None:
    """The positions that are patched one by one; None for every one."""
    n_tokens = pair.clean.tokens.shape[1]
    return None if n_tokens <= POSITIONS else tuple(spaced(n_tokens, POSITIONS))


def _settle(subject: Subject) -> None:
    """One sweep of one run: the engine's check of itself, once per model, is made before anything is counted."""
    pair = subject.pair(min(subject.lengths), first=5)
    mk.sweep(subject.model, pair.clean, [[mk.Zero("L0.mlp_out@-1")]], mk.logit_diff)


def _sides(sweep: Sweep, size: str, chosen: list[int], wanted: float | None) -> list[Side]:
    cells, small = sweep.cells(), size == "small"
    sides = [Side("mechkit compat", sweep.by_compat, len(cells))]
    if not small or sweep.kinds == KINDS["resid_pre"]:
        sides.append(Side("mechkit patch", sweep.by_patch, len(cells)))
    sample = None if len(chosen) == len(cells) else chosen
    some = [cells[i] for i in chosen]
    sides.append(Side("transformer_lens.patching", lambda: sweep.by_transformer_lens(some), len(cells), sample, wanted))
    loop = Side("run_with_hooks loop", lambda: sweep.by_loop(some), len(cells), sample)
    return sides if small else [*sides, loop]
