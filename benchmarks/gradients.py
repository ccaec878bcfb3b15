"""What does attribution patching cost, against `value.backward()` with caching hooks both ways?

The same first-order estimate of every patch, on the same pair. The usual recipe also computes the gradient of every
parameter; mechkit asks for those of activations alone.
"""

from collections.abc import Iterator

import torch

import mechkit as mk
from benchmarks.measure import Case, Row, Side, measured
from benchmarks.models import Subject, gradients_allowed, one_pass
from benchmarks.peers import Sweep, attribution_by_backward
from benchmarks.sweeps import KINDS, described, positions_of


def gradient_rows(subject: Subject, device: str, size: str, seconds: float) -> Iterator[Row]:
    """Rows of attribution patching of every block and of heads, by prompt length."""
    for n_tokens in subject.lengths:
        pair = subject.pair(n_tokens, first=None)
        for name in ("every block", "heads by position"):
            sweep = Sweep(subject.model, pair, KINDS[name], positions_of(pair))
            n = len(sweep.cells())
            with gradients_allowed(subject.model), torch.no_grad():
                largest = float(attribution_by_backward(sweep).abs().max())
                sides = [
                    Side("mechkit", lambda sweep=sweep: by_mechkit(sweep), n),
                    Side("backward with hooks", lambda sweep=sweep: attribution_by_backward(sweep), n),
                ]
                _, flops = one_pass(subject.model, pair.clean)
                case = Case(subject.name, f"{name}, {described(pair)}", sides, largest, flops, 1e-4)
                yield from measured(case, device, seconds)


def by_mechkit(sweep: Sweep) -> torch.Tensor:
    """The estimate of every run's effect."""
    return mk.attribute(sweep.model, sweep.pair, sweep.sites(), mk.logit_diff).scores[:, 0]
