"""A sweep by the lean layers: base runs, then waves of as many runs as memory allows, then metrics.

Prompts of one length run together, without padding; metrics see all prompts at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION, HIDDEN, Agenda
from mechkit.core.engine.base import BaseRun
from mechkit.core.engine.front import Rows
from mechkit.core.engine.fused import Fused
from mechkit.core.engine.measured import Measured, refuse_nan
from mechkit.core.engine.memory import Budget, Costs, chunks, fused_bytes, halving
from mechkit.core.engine.question import Question
from mechkit.core.engine.readout import Readout
from mechkit.core.engine.wave import Wave
from mechkit.core.loop import merge, require_one_shape
from mechkit.core.metrics import Metric
from mechkit.core.places import cut
from mechkit.core.progress import progress
from mechkit.core.prompts import by_length
from mechkit.core.site import Site


class Lean:
    """One sweep: `Lean(question, budget).measure()`."""

    def __init__(self, question: Question, budget: Budget) -> None:
        self.model, self.runs, self.prompts = question.model, question.runs, question.prompts
        self.fused = Fused(self.model, max(self.prompts.lengths), budget.keeps_weights(self.model))
        self.members, self.causal = by_length(self.prompts), self.model.cfg.attention_dir == "causal"
        self.bases = [self._base_run(question, rows) for rows in self.members]
        self.readout = Readout(self.prompts, question.metrics, self._base_logits(question.metrics))
        self.read = {site: self._of_base(site) for site in question.read}
        self.passes = 1
        stages = self.bases[0].agenda.stages
        happens = [any(name in names for _, name in stages) for names in (HIDDEN, ATTENTION, ("result",))]
        self.costs = Costs.of(self.model, max(self.prompts.lengths), *happens)
        self.room = self._room(budget)

    def _base_run(self, question: Question, rows: list[int]) -> BaseRun:
        """The base run of the prompts of one length."""
        some = self.prompts[rows]
        agenda = Agenda(question.runs, question.base, question.read, some, rows)
        return BaseRun(self.model, some, agenda, question.start)

    def _room(self, budget: Budget) -> int:
        """Bytes left for a wave beside what stays. Raises ValueError where a named limit leaves too little."""
        weights = fused_bytes(self.model)
        kept = weights if self.fused.keep else weights // self.model.cfg.n_layers
        kept += sum(base.n_bytes for base in self.bases) + self.readout.n_bytes
        kept += sum(slices.nbytes for slices in self.read.values())
        least = self.costs.row + self.costs.laid + max(self.prompts.lengths) * self.costs.token
        if budget.named and budget.planned - kept < 2 * least:
            raise ValueError(
                f"memory={budget.limit:,} bytes is too little for this sweep, which takes about "
                f"{int((kept + 2 * least) / 0.7):,}; name a larger limit, or take fewer prompts at a time"
            )
        return max(budget.planned - kept, 2 * least)

    def _base_logits(self, metrics: Sequence[Metric]) -> Tensor:
        """The base run's logits, `[prompt, pos, vocab]`, or `[prompt, 1, vocab]` where no metric can read more."""
        last = all(metric.reads == "last" for metric in metrics)
        for rows, base in zip(self.members, self.bases, strict=True):
            refuse_nan(base.logits, rows)
            base.logits = base.logits[:, -1:].clone() if last else base.logits
        return merge(self.prompts, self.members, [base.logits for base in self.bases])

    def _of_base(self, site: Site) -> Tensor:
        """The slices of `site` in the base run, `[run, prompt, *slice]`: what runs that change nothing have."""
        parts = []
        for base in self.bases:
            placed = base.agenda.placed(site)
            value = base.value[base.agenda.at(site)]
            found = [cut(value[members], site, place) for place, members in placed]
            require_one_shape(site, found)
            order = torch.tensor([prompt for _, members in placed for prompt in members], device=value.device)
            parts.append(torch.cat(found)[order.argsort()])
        require_one_shape(site, parts)
        merged = merge(self.prompts, self.members, parts)
        return merged[None].repeat(len(self.runs), *([1] * merged.ndim))

    def measure(self) -> Measured:
        """The metrics of all runs."""
        live = np.any([base.scout.live.any(1) for base in self.bases], axis=0)
        first = [self.bases[0].agenda.first_layer(run) for run in range(len(self.runs))]
        todo = sorted(np.flatnonzero(live).tolist(), key=lambda run: first[run])
        if todo and self.readout.on_trial:
            self.readout.settle(next(self._logits(todo[-1:], False))[1][0])  # the last joins latest: the cheapest
        scores = self.readout.of_base()[None].repeat(len(self.runs), 1, 1)
        for run, values in progress(self._each(todo), "runs", len(todo)):
            scores[run] = values
        return Measured(scores, self.read, self.passes, int(sum(base.scout.live.sum() for base in self.bases)))

    def _each(self, todo: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Runs with their metrics, `[prompt, metric]`."""
        for part in self._chunks(todo):
            for done, values in halving(self._scores, part):
                yield from zip(done, values, strict=True)

    def _chunks(self, todo: list[int]) -> Iterator[list[int]]:
        tokens, n_rows = np.zeros(len(self.runs), dtype=np.int64), np.zeros(len(self.runs), dtype=np.int64)
        for base in self.bases:
            live, start = base.scout.live, base.scout.start
            tokens += (live * (base.n_pos - (start if self.causal else 0))).sum(1)
            n_rows += live.sum(1)
        for part in chunks(tokens[todo].tolist(), n_rows[todo].tolist(), self.costs, self.room // 2):
            yield [todo[number] for number in part]

    def rows(self, group: int, runs: Sequence[int]) -> Rows:
        """The rows of some runs on the prompts of one length, by run and then prompt."""
        scout, chosen = self.bases[group].scout, np.sort(np.asarray(runs, dtype=np.int64))
        number, prompt = np.nonzero(scout.live[chosen])
        run = chosen[number]
        return Rows(run, prompt, scout.start[run, prompt] if self.causal else np.zeros_like(run))

    def _scores(self, runs: list[int]) -> Tensor:
        """Metrics of some runs that fit into memory together, `[run, prompt, metric]`."""
        last = self.readout.last_only
        of = self.readout.of_last if last else self.readout.of_all
        found = torch.cat([of(logits) for _, logits in self._logits(runs, last)])
        self.passes += 1
        return self._scores(runs) if last and self.readout.distrusts(found) else found

    def _logits(self, runs: list[int], last: bool) -> Iterator[tuple[list[int], Tensor]]:
        """Some runs and their logits, `[run, prompt, vocab]` of last positions or `[run, prompt, pos, vocab]`."""
        waves = [self._wave(group, runs, last) for group in range(len(self.bases))]
        base = self.readout.base_last if last else self.readout.base
        per_run = base[..., 0].numel() * self.costs.logits
        size = max(1, self.room // 4 // per_run)
        for some in (runs[at : at + size] for at in range(0, len(runs), size)):
            logits = base[None].repeat(len(some), *([1] * base.ndim))
            place = {run: number for number, run in enumerate(some)}
            for members, (run, prompt, pos, x) in zip(self.members, waves, strict=True):
                chosen = np.flatnonzero(np.isin(run, some))
                if len(chosen):
                    at = [np.array([place[r] for r in run[chosen].tolist()]), np.asarray(members)[prompt[chosen]]]
                    at += [] if last else [pos[chosen]]
                    self._write(
                        logits,
                        [torch.from_numpy(part).to(x.device) for part in at],
                        x[torch.from_numpy(chosen).to(x.device)],
                    )
            yield some, logits

    def _write(self, logits: Tensor, at: list[Tensor], x: Tensor) -> None:
        size = max(1, self.room // 4 // self.costs.logits)
        for number, part in enumerate(x.split(size)):
            chosen = slice(number * size, number * size + size)
            logits[tuple(one[chosen] for one in at)] = self.fused.logits(part)

    def _wave(self, group: int, runs: list[int], last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
        """Run, prompt, position and final residual stream of every token that may differ from the base run."""
        base = self.bases[group]
        if not len(self.rows(group, runs)):
            empty = np.empty(0, dtype=np.int64)
            return empty, empty, empty, base.logits.new_empty(0, self.model.cfg.d_model)
        slab = max(1, self.room // 4 // self.costs.laid)
        block = max(16, self.room // 8 // max(self.costs.mlp, 1))
        reads = {site: self.read[site][:, members] for site in self.read for members in [self.members[group]]}
        trim = last and not base.agenda.needs_all(self.model.cfg.n_layers - 1)
        wave = Wave(self.fused, base, self.rows(group, runs), runs, trim, slab, min(block, 2048), reads)
        x = wave.run()
        for site, slices in reads.items():
            self.read[site][:, self.members[group]] = slices
        row, pos = wave.front.tokens()
        keep = np.flatnonzero(pos == base.n_pos - 1) if last else np.arange(len(pos))
        row, pos = row[keep], pos[keep]
        return wave.rows.run[row], wave.rows.prompt[row], pos, x[wave.front.index(keep)]
