"""How everything here is measured: answers compared first, then sides timed in turn, in one process.

A `Case` is one question with several `Side`s that answer it. `measured(case, device, seconds)` gives one `Row` per
side: whether its answer agrees, its time, passes, FLOPs, share of the matrix-product rate, memory and launches.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median

import torch
from torch import Tensor

from benchmarks.counting import counted, launches, peak_memory, uncounted

ROUNDS = (3, 30)
"""Fewest and most timed rounds of a case; between them, as many as fit into the seconds given."""
LONG = 30.0
"""Seconds of a call above which one round is enough."""
SHORTEST = 0.02
"""Seconds that one timing lasts at least: shorter work is repeated and divided."""
REPEATED = 1.0
"""Seconds of the counted call below which a side is tried again, to see how often to repeat it."""
WARM_UPS = 3
"""Untimed calls of each side before the first round, on CUDA and of short work; the counted call is one for all."""


@dataclass(frozen=True)
class Side:
    """One way to answer a case's question."""

    name: str
    """Who answers, and how."""
    run: Callable[[], Tensor | Sequence[Tensor]]
    """Gives the answer, or the part of it that `sample` names."""
    runs: int = 1
    """Runs that the whole answer is defined by."""
    sample: Sequence[int] | None = None
    """Which entries of the flat answer `run` gives; times and counts are scaled to the whole. None for all."""
    wanted: float | None = None
    """How many times the first side's busy time this one is to take, at least."""
    captured: bool = False
    """Whether `run` replays captured work, which no counter sees."""


@dataclass(frozen=True)
class Case:
    """A question, its sides (the first is compared with the others) and how closely they must agree."""

    model: str
    """The model's name, with its shape."""
    name: str
    """What is asked."""
    sides: Sequence[Side]
    """Who answers; the first gives the whole answer."""
    size: float
    """What errors are relative to, such as the largest |logit|."""
    one_pass: float
    """FLOPs of one plain forward pass on the prompt, which passes are counted in."""
    tolerance: float = 1e-5
    """Largest relative error that counts as agreement."""


@dataclass(frozen=True)
class Time:
    """One timing of one call."""

    busy: float
    """CPU seconds of the process on a CPU; seconds between two events on CUDA."""
    wall: float
    """Seconds on the clock."""


@dataclass(frozen=True)
class Row:
    """What was measured of one side of one case."""

    case: Case
    side: Side
    error: float
    """Largest error of its answer, relative to the case's size."""
    whole: float
    """What a measured amount is multiplied by to stand for the whole answer; 1 where nothing was sampled."""
    seconds: float
    """Seconds of the counted call."""
    times: tuple[Time, ...] = ()
    """One per round; none where the answer disagrees."""
    ratio: float = math.nan
    """Median over rounds of this side's busy time over the first side's."""
    flops: float = math.nan
    """Floating-point operations of its matrix products."""
    bytes_peak: float = math.nan
    """Most memory above what was held before the call."""
    launched: float = math.nan
    """Operations on a CPU; launches of kernels, or of graphs of them, on CUDA."""
    in_kernels: float = math.nan
    """Seconds that CUDA kernels ran; where they are few of the busy ones, launches are what is waited for."""

    @property
    def agrees(self) -> bool:
        """Whether the answer is within the case's tolerance."""
        return self.error <= self.case.tolerance

    @property
    def busy(self) -> float:
        """Median busy seconds of the whole answer."""
        return median(one.busy for one in self.times)


def measured(case: Case, device: str, seconds: float) -> list[Row]:
    """One row per side: answers first; only the sides that agree are timed, in turn, for about `seconds` a side."""
    first, *others = case.sides
    row, reference = _answered(case, first, None, device)
    rows = [row, *(_answered(case, side, reference, device)[0] for side in others)]
    timed_rows = [row for row in rows if row.agrees]
    repeats = {row.side.name: _repeats(row, device) for row in timed_rows}
    rounds: list[dict[str, Time]] = []
    started = time.perf_counter()
    fewest = 1 if max(row.seconds for row in rows) > LONG else ROUNDS[0]
    while len(rounds) < fewest or (
        len(rounds) < ROUNDS[1] and time.perf_counter() - started < seconds * len(timed_rows)
    ):
        rounds.append({row.side.name: _scaled_time(row, device, repeats[row.side.name]) for row in timed_rows})
    return [_with_times(row, rounds, first.name) if row.agrees else row for row in rows]


def _answered(case: Case, side: Side, reference: list[Tensor] | None, device: str) -> tuple[Row, list[Tensor]]:
    """The row of a side before it is timed: its error, its counts, its memory; and its answer."""
    started = time.perf_counter()
    count = uncounted if side.captured else counted
    (answer, flops, operations), peak = peak_memory(lambda: count(side.run), device)
    seconds = time.perf_counter() - started
    found = [answer] if isinstance(answer, Tensor) else list(answer)
    whole, there = 1.0, found if reference is None else reference
    if reference is not None and side.sample is not None:
        flat = reference[0].flatten()
        whole, there = len(flat) / len(side.sample), [flat[list(side.sample)]]
    error = max(_difference(a, b, case, side) for a, b in zip(found, there, strict=True)) / case.size
    launched, in_kernels = (operations, math.nan) if device == "cpu" else launches(side.run)
    row = Row(
        case, side, error if error == error else math.inf, whole, seconds, flops=flops * whole, bytes_peak=peak,
        launched=launched * whole, in_kernels=in_kernels * whole,
    )  # fmt: skip
    return row, found


def _difference(found: Tensor, there: Tensor, case: Case, side: Side) -> float:
    """Largest difference of two parts of an answer; -inf is equal to -inf, and NaN to nothing."""
    if found.numel() != there.numel():
        raise ValueError(f"'{side.name}' gave {found.numel()} numbers on '{case.name}', not {there.numel()}")
    a, b = (part.detach().flatten().cpu() for part in (found, there))
    same = a == b
    return 0.0 if bool(same.all()) else float((a.double() - b.double()).abs().masked_fill(same, 0).max())


def _with_times(row: Row, rounds: Sequence[dict[str, Time]], first: str) -> Row:
    name = row.side.name
    ratio = median(one[name].busy / one[first].busy for one in rounds)
    return replace(row, times=tuple(one[name] for one in rounds), ratio=ratio)


def _repeats(row: Row, device: str) -> int:
    """How often a side is run within one timing; on CUDA, after its warm-up."""
    once = row.seconds
    if device == "cuda" or once < REPEATED:  # the counted call was slowed down by its counters
        for _ in range(WARM_UPS):
            once = timed(row.side.run, device).wall
    return max(1, math.ceil(SHORTEST / max(once, 1e-7)))


def _scaled_time(row: Row, device: str, repeats: int) -> Time:
    gc.collect()
    one = timed(row.side.run, device, repeats)
    return Time(one.busy * row.whole, one.wall * row.whole)


def timed(work: Callable[[], object], device: str, repeats: int = 1) -> Time:
    """Seconds of one call, the mean of `repeats` in a row.

    Busy time is the CPU time of the process on a CPU, which other work on the machine disturbs least, and the time
    between two events on CUDA, which counts the device's waiting for launches too (see `Row.in_kernels`).
    """
    if device != "cuda":
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            work()
        return Time((time.process_time() - busy) / repeats, (time.perf_counter() - start) / repeats)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    before.record()
    for _ in range(repeats):
        work()
    after.record()
    torch.cuda.synchronize()
    return Time(before.elapsed_time(after) / 1000 / repeats, (time.perf_counter() - start) / repeats)


@cache
def matmul_rate(device: str, size: int | None = None) -> float:
    """FLOPs per busy second of a square float32 matrix product, the best of ten."""
    size = size or (8192 if device == "cuda" else 1536)
    a = torch.randn(size, size, device=device)
    timed(lambda: a @ a, device)
    return 2 * size**3 / min(timed(lambda: a @ a, device).busy for _ in range(10))


def left_out(words: str, reason: object) -> None:
    """Say on stderr why a row is not in the table."""
    line = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    print(f"no row '{words}': {line}", file=sys.stderr)
