"""The three passes of path patching: recordings, what receivers read, the patched runs.

Prompts of one length are recorded and propagated together; the patched runs are one `sweep` over all prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.engine.agenda import stage_of
from mechkit.core.engine.base import Pass, kept_stages
from mechkit.core.engine.choose import measure, suits
from mechkit.core.engine.measured import refuse_nan
from mechkit.core.engine.question import Question
from mechkit.core.engine.trust import trusted
from mechkit.core.interventions import Intervention, Replace, Slice
from mechkit.core.metrics import Metric
from mechkit.core.places import Place, cut
from mechkit.core.progress import progress
from mechkit.core.prompts import Pair, Prompts
from mechkit.core.site import Site
from mechkit.core.sweep import sweep
from mechkit.patching.deltas import RECEIVERS, Deltas, swapped, whole

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Error of the row that changes nothing, relative to the clean run, above which the model computes something else."""
_HALF_TOLERANCE = 0.05
_BYTES = 1 << 29
"""Bytes of rows and receivers' values at a time, unless a limit is named."""
_NOTHING = Metric("nothing", "", "last", lambda logits, prompts: logits.new_zeros(logits.shape[:-2]), batched=True)


class Received(Replace):
    """Put what a receiver read in its place; `value[prompt, *slice]` may be longer than a prompt's own slice."""

    replaces: ClassVar[bool] = True

    def edit(self, x: Slice, prompts: list[int], place: Place) -> Slice:
        assert isinstance(self.value, Tensor)
        return self.value[prompts][(slice(None), *(slice(size) for size in x.shape[1:]))]


class Protocol:
    """One question: who sends, who receives, what is held."""

    def __init__(
        self, model, pair: Pair, senders: Sequence[Site], receivers: Sequence[Site], metric: Metric, hold_mlps: bool
    ) -> None:
        self.model, self.pair, self.senders, self.receivers = model, pair, senders, receivers
        self.metric = metric
        self.hold_mlps = hold_mlps and not model.cfg.attn_only
        self.obstacle = obstacle(model, receivers)
        by_lengths: dict[tuple[int, int], list[int]] = {}
        for i, lengths in enumerate(zip(pair.clean.lengths, pair.corrupt.lengths, strict=True)):
            by_lengths.setdefault(lengths, []).append(i)
        self.groups = [Group(self, numbers) for numbers in by_lengths.values()]
        self.shared = Shared(self) if len(by_lengths) == 1 and self._alike(*by_lengths) else None

    def _alike(self, lengths: tuple[int, int]) -> bool:
        """Whether clean and corrupt prompts can go through the model together, and the patched runs on from there."""
        model, sites = self.model, [*self.receivers, *self.senders]
        if lengths[0] != lengths[1] or self.pair.edits or self.obstacle is not None:
            return False
        return suits(model, sites) and trusted(model)

    def measure(self, memory: int | None) -> tuple[Float[Tensor, "sender prompt"], Float[Tensor, "prompt"]]:
        """The metric of the patched runs minus that of x_orig, and that of x_new minus that of x_orig."""
        each = sum(group.bytes_per_sender for group in self.groups)
        size = max(1, (_BYTES if memory is None else memory // 2) // each)
        chunks = [self.senders[i : i + size] for i in range(0, len(self.senders), size)]
        found = [self._patched(chunk, None if memory is None else memory // 2) for chunk in progress(chunks, "senders")]
        clean = found[0][0]
        return torch.cat([scores[1:] - scores[0] for scores in found]), self._of_x_new() - clean

    def _patched(self, senders: Sequence[Site], memory: int | None) -> Float[Tensor, "run prompt"]:
        """The metric of x_orig, then of the patched run of each sender."""
        try:
            values = self._received(senders)
            runs = [
                [Received(site, value[i]) for site, value in zip(self.receivers, values, strict=True)]
                for i in range(len(senders))
            ]
            start = self.shared.start if self.shared else None
            question = Question(self.model, self.pair.clean, [[], *runs], [self.metric], start=start)
            return measure(question, memory).scores[..., 0]
        except torch.OutOfMemoryError:
            if len(senders) == 1:
                raise
        half = len(senders) // 2
        return torch.cat([self._patched(senders[:half], memory), self._patched(senders[half:], memory)[1:]])

    def _of_x_new(self) -> Float[Tensor, "prompt"]:
        """The metric of x_new, from its recording where that is of all prompts."""
        if len(self.groups) == 1:
            return self.groups[0].corrupt.scores[0]
        return sweep(self.model, self.pair.corrupt, [[]], self.metric, base=self.pair.edits).scores[0]

    def _received(self, senders: Sequence[Site]) -> list[Float[Tensor, "sender prompt *slice"]]:
        """What each receiver reads for every sender, on all prompts."""
        if self.obstacle is None:
            found = [group.deltas.values(senders) for group in self.groups]
            dtype = found[0][0][0].dtype
            if max(error for _, error in found) <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
                return self._all_prompts([values for values, _ in found])
            self.obstacle = "a row that changes nothing does not arrive as in the clean run"
        return self._all_prompts([group.by_passes(senders) for group in self.groups])

    def _all_prompts(self, of_groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [self._merged(parts, 1) for parts in zip(*of_groups, strict=True)]

    def _merged(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One tensor for all prompts from one per group, prompts on `axis`; NaN where a group's is smaller."""
        if len(parts) == 1:
            return parts[0]
        sizes = [max(size) for size in zip(*(part.shape for part in parts), strict=True)]
        sizes[axis] = len(self.pair)
        merged = parts[0].new_full(sizes, torch.nan)
        for group, part in zip(self.groups, parts, strict=True):
            at: list = [slice(size) for size in part.shape]
            at[axis] = group.numbers
            merged[tuple(at)] = part
        return merged


@dataclass(frozen=True)
class Recording:
    """One unedited run."""

    values: Mapping[Site, Tensor]
    """Whole hook tensors, by site."""
    scores: Float[Tensor, "1 prompt"]
    """The metric that was measured on it."""


def recording(
    model, prompts: Prompts, sites: Iterable[Site], metric: Metric = _NOTHING, base: Sequence[Intervention] = ()
) -> Recording:
    """The hook tensors of `sites` in the run that `base` edits."""
    wanted = list(dict.fromkeys(sites))
    found = sweep(model, prompts, [[]], metric, base=base, read=wanted)
    return Recording({site: found.read[site][0] for site in wanted}, found.scores)


class Shared:
    """One pass of clean and corrupt prompts together: both recordings, and where the patched runs start."""

    def __init__(self, protocol: Protocol) -> None:
        model, pair, n = protocol.model, protocol.pair, len(protocol.pair)
        device = next(model.parameters()).device
        needs = Deltas.needs(model, protocol.senders, protocol.receivers, protocol.hold_mlps)
        sent = [whole(site) for site in protocol.senders]
        stages = kept_stages(model, {stage_of(site) for site in protocol.receivers})
        tokens = torch.cat([pair.clean.tokens, pair.corrupt.tokens]).to(device)
        both = Pass.of(model, tokens, stages | {stage_of(site) for site in (*needs, *sent)})
        self.start, new = both.rows(slice(n)), both.rows(slice(n, None))
        for logits in (self.start.logits, new.logits):
            refuse_nan(logits, range(n))
        scores = protocol.metric(new.logits.clone(), pair.corrupt.to(device))[None]
        clean = {site: cut(self.start.value[stage_of(site)], site, slice(None)) for site in needs}
        self.clean = Recording(clean, scores)
        self.corrupt = Recording({site: new.value[stage_of(site)] for site in sent}, scores)


class Group:
    """Prompts of one length, clean and corrupt: what was recorded on them, and what receivers read."""

    def __init__(self, protocol: Protocol, numbers: list[int]) -> None:
        self.protocol, self.numbers, self.pair = protocol, numbers, protocol.pair[numbers]

    @cached_property
    def clean(self) -> Recording:
        """Hook tensors of x_orig that the deltas start from."""
        p = self.protocol
        if p.shared:
            return p.shared.clean
        wanted = Deltas.needs(p.model, p.senders, p.receivers, p.hold_mlps)
        return recording(p.model, self.pair.clean, wanted)

    @cached_property
    def corrupt(self) -> Recording:
        """Hook tensors of x_new that are sent, and the metric where these are all prompts."""
        p = self.protocol
        if p.shared:
            return p.shared.corrupt
        metric = p.metric if len(self.numbers) == len(p.pair) else _NOTHING
        wanted = [whole(site) for site in p.senders]
        return recording(p.model, self.pair.corrupt, wanted, metric, self.pair.edits)

    @cached_property
    def deltas(self) -> Deltas:
        """The propagation on these prompts."""
        p = self.protocol
        return Deltas(p.model, self.pair, p.receivers, p.hold_mlps, self.clean.values, self.corrupt.values)

    @cached_property
    def _held(self) -> Recording:
        """Clean values of what is held in passes of two, and of the senders."""
        p = self.protocol
        held = [Site(name, layer) for layer in range(p.model.cfg.n_layers) for name in _held_names(p.hold_mlps)]
        return recording(p.model, self.pair.clean, [*held, *(whole(site) for site in p.senders)])

    def by_passes(self, senders: Sequence[Site]) -> list[Float[Tensor, "sender prompt *slice"]]:
        """What each receiver reads, by one pass per sender with everything held that is not on its paths."""
        p = self.protocol
        clean, corrupt, held = self._held.values, self.corrupt.values, _held_names(p.hold_mlps)
        base = [Replace(site, value) for site, value in clean.items() if site.name in held]
        runs = [
            [Replace(whole(site), swapped(site, clean[whole(site)], corrupt[whole(site)], self.pair))]
            for site in senders
        ]
        read = sweep(p.model, self.pair.clean, runs, _NOTHING, base=base, read=p.receivers).read
        return [read[site] for site in p.receivers]

    @property
    def bytes_per_sender(self) -> int:
        """About how much memory one sender takes."""
        cfg, tokens = self.protocol.model.cfg, self.pair.clean.tokens
        if self.protocol.obstacle is None:
            return self.deltas.bytes_per_sender
        return 8 * tokens.numel() * cfg.d_model * len(self.protocol.receivers)


def obstacle(model, receivers: Sequence[Site]) -> str | None:
    """Why deltas do not apply, in words; None where they may."""
    if any(type(block).__name__ != "TransformerBlock" for block in getattr(model, "blocks", [None])):
        return f"{type(model).__name__} has blocks of its own"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"the model has a hook on '{name}'"
    if other := [site for site in receivers if site.name not in RECEIVERS]:
        return f"deltas do not compute '{other[0]}'"
    cfg = model.cfg
    if cfg.positional_embedding_type == "shortformer" or cfg.ungroup_grouped_query_attention or cfg.load_in_4bit:
        return "its heads do not read the normalised residual stream through their own weights"
    return None


def _held_names(hold_mlps: bool) -> tuple[str, ...]:
    return ("z", "mlp_out") if hold_mlps else ("z",)
