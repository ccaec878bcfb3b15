"""The two runs of an attribution, batch by batch: values of both, slopes by one of the methods, scores."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mechkit.core.gradients import Found, Side, along, at, dropping_layers, measure_part, values
from mechkit.core.interventions import Intervention
from mechkit.core.metrics import Metric
from mechkit.core.progress import progress
from mechkit.core.prompts import check_tokens
from mechkit.core.rules import relp
from mechkit.core.site import Site
from mechkit.patching.contraction import Contraction, by_place, hooks_for
from mechkit.patching.qk_fix import FIXED, Attention, attention_inputs

Path = Literal["inputs", "activations"]

_INPUTS = ("hook_embed", "hook_pos_embed")


@dataclass(frozen=True, eq=False)
class Estimate:
    """One question: which slopes, at which sites, between which runs."""

    model: Any
    """The HookedTransformer."""
    near: Side
    """The run that would be patched, where slopes are taken."""
    far: Side
    """The run that values would come from."""
    sites: Sequence[Site]
    """Concrete sites."""
    metric: Metric
    """What is measured."""
    method: str
    """Which slopes."""
    steps: int
    """Points of a path."""
    path: Path
    """What moves along it."""
    qk_fix: bool
    """Whether queries and keys go through the softmax exactly."""
    grad_drop: bool
    """Whether layers are left out of the backward pass in turn."""
    batch_size: int
    """Rows of one forward pass."""

    def scores(self) -> tuple[Tensor, Tensor]:
        """Scores `[site, prompt]` and the gap of each prompt."""
        check_tokens(self.model, self.near.prompts)
        check_tokens(self.model, self.far.prompts)
        parts, members, gaps = [], [], []
        for rows in progress(self._batches(), "batches of prompts"):
            scores, gap = self._batch(rows)
            parts.append(scores)
            gaps.append(gap)
            members += rows
        back = torch.tensor(members, device=gaps[0].device).argsort()
        return torch.cat(parts, 1)[:, back], torch.cat(gaps)[back]

    def _batches(self) -> list[list[int]]:
        """Prompt numbers, `batch_size` at most, of one length on each side."""
        found: dict[tuple[int, int], list[int]] = {}
        for i, lengths in enumerate(zip(self.near.prompts.lengths, self.far.prompts.lengths, strict=True)):
            found.setdefault(lengths, []).append(i)
        size = self.batch_size
        return [alike[i : i + size] for alike in found.values() for i in range(0, len(alike), size)]

    def _batch(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Scores `[site, prompt]` and gap of some of the prompts."""
        names = hooks_for(self.model, self.sites, qk_fix=self.qk_fix)
        moved = self._inputs() if self.method == "integrated" and self.path == "inputs" else []
        measure = partial(measure_part, self.metric, self.near.prompts, rows)
        far = values(self.model, self.far, rows, list(dict.fromkeys([*names, *moved])))
        self._require_fired(far)
        layers = sorted({site.layer for site in self.sites if self.qk_fix and site.name in FIXED})  # type: ignore[type-var]
        with attention_inputs(self.model, layers) if layers else nullcontext({}) as inputs:  # type: ignore[arg-type]
            near = self._slopes(rows, names, moved, measure, far)
        attentions = {
            layer: Attention(self.model, layer, called, self.near, rows, near) for layer, called in inputs.items()
        }
        prompts = self.near.prompts[rows], self.far.prompts[rows]
        scores = Contraction(self.model, near, far.values, prompts, attentions).scores(self.sites)
        scores = scores.abs().sum(0) / (len(scores) - 1) if self.grad_drop else scores[0]
        with torch.no_grad():
            ends = measure_part(self.metric, self.far.prompts, rows, far.logits), measure(near.logits)
        return scores, ends[0] - ends[1]

    def _slopes(self, rows: list[int], names: list[str], moved: list[str], measure: Callable, far: Found) -> Found:
        """Values of the run that would be patched, and the slopes of the method there."""
        if self.method == "relp":
            return at(self.model, self.near, rows, names, measure, relp(self.model))
        if self.method == "gradient":
            run = dropping_layers if self.grad_drop else at
            return run(self.model, self.near, rows, names, measure)
        near = values(self.model, self.near, rows, list(dict.fromkeys([*names, *moved])))
        mean = partial(
            along, self.model, self.near, rows, measure=measure, steps=self.steps, batch_size=self.batch_size
        )
        ends = {name: (near.values[name][0], found[0]) for name, found in far.values.items()}
        if self.path == "inputs":
            slopes = mean(names, ends={name: ends[name] for name in moved if name in ends})
        else:
            slopes = {name: mean([name], ends={name: ends[name]})[name] for name in names}
        return Found(near.logits, near.values, [slopes])

    def _inputs(self) -> list[str]:
        """The hooks that a path of inputs moves. Raises ValueError where the two runs differ in more than those."""
        for side in (self.near, self.far):
            _require_inputs_only(side.edits)
        if self.near.prompts.lengths != self.far.prompts.lengths:
            raise ValueError(
                "integrated gradients move one prompt's embeddings to the other's, and clean and corrupt differ in "
                "length; take method='gradient'"
            )
        return [name for name in _INPUTS if name in self.model.hook_dict]

    def _require_fired(self, found: Found) -> None:
        for site, _ in by_place([site.at(head=None, pos=None, src=None) for site in self.sites]):
            if not all(name in found.values for name in hooks_for(self.model, [site], qk_fix=False)):
                raise ValueError(
                    f"site '{site}' was never reached: '{site.hook}' does not fire on this model as it is set up; "
                    "turn on the model's own flag for that hook"
                )


def _require_inputs_only(edits: Sequence[Intervention]) -> None:
    for edit in edits:
        if edit.site.hook not in _INPUTS:
            raise ValueError(
                f"path='inputs' moves embeddings alone, and the corrupt run is edited at '{edit.site}' too; "
                "take path='activations'"
            )
