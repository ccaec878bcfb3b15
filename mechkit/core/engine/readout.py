"""From the last block's residual stream to metrics, computing no logit that is not read.

A metric that reads the last position gets logits of full length whose other positions are not there: for a metric of
ours they repeat the last one (a view, no memory), for a plain function they are NaN. Whether a plain function reads
only the last position is tried out: NaN and large values of both signs in the others must leave its value as it is.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.metrics import Metric
from mechkit.core.prompts import Prompts

_TRIALS = (float("nan"), 3e4, -3e4)
"""What a plain function is tried with in unread positions; half precision can hold them."""


class Readout:
    """Metrics of many runs on the same prompts, from what differs between each run's logits and the base run's."""

    def __init__(self, prompts: Prompts, metrics: Sequence[Metric], base: Float[Tensor, "prompt pos vocab"]) -> None:
        self.prompts, self.metrics = prompts, list(metrics)
        self.base = base
        """Logits of the base run; one position where no metric reads more."""
        self.last = torch.tensor(prompts.lengths, device=base.device) - 1
        self.every = torch.arange(len(prompts), device=base.device)
        self.reads = [self._reads(metric) for metric in self.metrics]
        self._buffer: Tensor | None = None
        self._version = 0

    @property
    def base_last(self) -> Float[Tensor, "prompt vocab"]:
        """Each prompt's last logits in the base run."""
        return self.base[:, 0] if self.base.shape[1] == 1 else self.base[self.every, self.last]

    @property
    def last_only(self) -> bool:
        """Whether no metric reads anything but last positions."""
        return "all" not in self.reads

    @property
    def on_trial(self) -> bool:
        """Whether a plain function is taken to read last positions only, as the base run says."""
        return any(m.reads == "unknown" and r == "last" for m, r in zip(self.metrics, self.reads, strict=True))

    @property
    def n_bytes(self) -> int:
        """Bytes that stay."""
        return self.base.nbytes * (2 if "unknown" in [metric.reads for metric in self.metrics] else 1)

    def _reads(self, metric: Metric) -> str:
        if metric.reads != "unknown":
            return metric.reads
        value = metric(self.base.clone(), self.prompts)
        return "last" if all(_same(value, self._tried(metric, self.base, filler)) for filler in _TRIALS) else "all"

    def settle(self, logits: Float[Tensor, "prompt pos vocab"]) -> None:
        """Look again, on an edited run, at the plain functions that seem to read last positions only."""
        for i, metric in enumerate(self.metrics):
            if metric.reads == "unknown" and self.reads[i] == "last":
                value = metric(logits.clone(), self.prompts)
                same = all(_same(value, self._tried(metric, logits, filler)) for filler in _TRIALS)
                self.reads[i] = "last" if same else "all"

    def distrusts(self, found: Float[Tensor, "run prompt metric"]) -> bool:
        """Whether a plain function gave NaN where positions were not there: from now on it gets them all."""
        doubted = [i for i, m in enumerate(self.metrics) if m.reads == "unknown" and self.reads[i] == "last"]
        doubted = [i for i in doubted if bool(found[..., i].isnan().any())]
        for i in doubted:
            self.reads[i] = "all"
        return bool(doubted)

    def _tried(self, metric: Metric, logits: Tensor, filler: float) -> Tensor | None:
        """The metric with `filler` in every position but the last; None where it fails."""
        filled = torch.full_like(logits, filler)
        filled[self.every, self.last] = logits[self.every, self.last]
        try:
            return metric(filled, self.prompts)
        except Exception:
            return None

    def of_base(self) -> Float[Tensor, "prompt metric"]:
        """The metrics of the base run."""
        wide = self.base if self.base.shape[1] > 1 else self.base.expand(-1, max(self.prompts.lengths), -1)
        return torch.stack([metric(wide.clone(), self.prompts).detach().clone() for metric in self.metrics], -1)

    def of_last(self, logits: Float[Tensor, "run prompt vocab"]) -> Float[Tensor, "run prompt metric"]:
        """The metrics of runs whose last logits these are."""
        wide = logits[:, :, None].expand(-1, -1, max(self.prompts.lengths), -1)
        found = [
            metric.over(wide, self.prompts)
            if metric.batched
            else torch.stack([self._plain(metric, one) for one in logits])
            for metric in self.metrics
        ]
        return torch.stack(found, -1)

    def _plain(self, metric: Metric, last: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt"]:
        """A metric that takes one run at a time; what it may do to its logits does not reach the next run."""
        if self._buffer is None or self._buffer._version != self._version:
            shape = (len(self.prompts), max(self.prompts.lengths), last.shape[-1])
            self._buffer = last.new_full(shape, torch.nan)
        self._buffer[self.every, self.last] = last
        self._version = self._buffer._version
        return metric(self._buffer, self.prompts).detach().clone()

    def of_all(self, logits: Float[Tensor, "run prompt pos vocab"]) -> Float[Tensor, "run prompt metric"]:
        """The metrics of runs whose logits these are, padding NaN; a metric may write into them."""
        found = [
            metric.over(logits if i + 1 == len(self.metrics) else logits.clone(), self.prompts)
            for i, metric in enumerate(self.metrics)
        ]
        return torch.stack([values.detach().clone() for values in found], -1)


def _same(value: Tensor, tried: Tensor | None) -> bool:
    return (
        tried is not None and value.shape == tried.shape and bool(torch.equal(value.nan_to_num(), tried.nan_to_num()))
    )
