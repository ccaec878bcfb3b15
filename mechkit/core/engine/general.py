"""A sweep through the model's own modules, for models and sites that the lean layers do not know.

Many runs go through the model as one batch, from the layer of their first edit on where the model can start there.
Hooks of the user's own see every batch; those that only work on the prompts as given get one run at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from mechkit.core.engine.agenda import Agenda, Scout, Stage
from mechkit.core.engine.fused import first_own_block, foreign
from mechkit.core.engine.measured import Measured, refuse_nan
from mechkit.core.engine.memory import Budget, halving, itemsize
from mechkit.core.engine.question import Question
from mechkit.core.engine.readout import Readout
from mechkit.core.interventions import Hook
from mechkit.core.loop import computes_results, head_outputs, hooked, merge, require_fired, require_one_shape
from mechkit.core.places import cut
from mechkit.core.progress import progress
from mechkit.core.prompts import Prompts, by_length
from mechkit.core.site import Site


class Batch:
    """Prompts of one length, and edited runs of them side by side, `[run prompt, pos, ...]`."""

    def __init__(self, model, prompts: Prompts, agenda: Agenda) -> None:
        self.model, self.prompts, self.agenda = model, prompts, agenda
        self.n_prompts, n_pos = prompts.tokens.shape
        self.scout = Scout(agenda, n_pos)
        self.plain = type(model).__name__ == "HookedTransformer"
        self.starts: dict[int, Tensor] = {}
        self.pos_embed: Tensor | None = None
        self.logits, self.slices = self.forward(None)
        self.tile = foreign(model) is None or self._tiles()

    def _tiles(self) -> bool:
        """Whether the model gives each prompt the same logits beside other prompts; hooks may look across the batch."""
        both = torch.cat([self.prompts.tokens, self.prompts.tokens.flip(1)])
        try:
            with ExitStack() as stack:
                stack.enter_context(hooked(self.model, self._hooks([None, None], {}, set())))
                self._results(stack, [None, None], {}, set(), False)
                logits = self.model(both)
        except Exception:
            return False
        close = 1e-3 * float(self.logits.abs().max())
        return len(logits) == len(both) and bool(((logits[: self.n_prompts] - self.logits).abs() <= close).all())

    def forward(self, runs: Sequence[int] | None) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits and read slices, `[run prompt, ...]`, of some runs; of the base run, tried and kept, for None."""
        slots = [None] if runs is None else list(runs)
        slices: dict[Site, Tensor] = {}
        fired: set[Stage] = set()
        first = self._first(slots)
        with ExitStack() as stack:
            stack.enter_context(hooked(self.model, self._hooks(slots, slices, fired, runs is None)))
            self._results(stack, slots, slices, fired, runs is None)
            logits = self._model(first, len(slots))
        sites = [site for sites in self.agenda.reads.values() for site in sites]
        sites += [edit.site for edits in self.agenda.base.values() for edit in edits]
        if runs is None:
            sites += [edit.site for run in self.agenda.runs for edit in run]
            require_fired(sites, {site for site in sites if self.agenda.at(site) in fired})
        return logits, slices

    def _first(self, slots: Sequence[int | None]) -> int:
        """The layer to start at: nothing that happens before differs from the base run."""
        own = min((self.agenda.first_layer(slot) for slot in slots if slot is not None), default=0)
        return max((layer for layer in self.starts if layer <= own), default=0)

    def _model(self, first: int, n: int) -> Tensor:
        if not first:
            return self.model(self.prompts.tokens.repeat(n, 1))
        pos_embed = None if self.pos_embed is None else self.pos_embed.repeat(n, 1, 1)
        x = self.starts[first].repeat(n, 1, 1)
        return self.model(x, start_at_layer=first, shortformer_pos_embed=pos_embed)

    def _hooks(self, slots: Sequence[int | None], slices: dict, fired: set, scouting: bool = False) -> list:
        """One hook for each stage where something happens, and in the base run one that keeps where to start."""
        hooks = []
        for stage, name in self.agenda.hooks.items():
            if stage[1] == "result" and not computes_results(self.model):
                continue
            if stage[1] == "resid_mid" and not self.plain:
                hooks += self._portable_mid(stage, slots, slices, fired, scouting)
                continue

            def hook(x: Tensor, hook, stage=stage) -> Tensor:
                return self._at(stage, x, slots, slices, fired, scouting)

            hooks.append((name, hook))
        return hooks + (self._keepers() if scouting else [])

    def _keepers(self) -> list:
        if not self.plain or getattr(getattr(self.model, "tokenizer", None), "padding_side", "right") == "left":
            return []
        last = min(first_own_block(self.model), self.model.cfg.n_layers - 1)
        wanted = {min(self.agenda.first_layer(run), last) for run in range(len(self.agenda.runs))}
        hooks: list[Hook] = [
            (f"blocks.{layer - 1}.hook_resid_post", lambda x, hook, layer=layer: self.starts.__setitem__(layer, x))
            for layer in wanted
            if layer > 0
        ]
        if self.model.cfg.positional_embedding_type == "shortformer":
            hooks.append(("hook_pos_embed", lambda x, hook: setattr(self, "pos_embed", x)))
        return hooks

    def _at(self, stage: Stage, x: Tensor, slots: Sequence, slices: dict, fired: set, scouting: bool) -> Tensor:
        """The hook's tensor after the edits at `stage`."""
        fired.add(stage)
        shared, own = self.agenda.base.get(stage, []), self.agenda.edits.get(stage, {})
        if shared or any(slot in own for slot in slots):
            x = x.clone()
            self._edit(stage, x, slots)
        if scouting:
            self.scout.look(stage, x)
        for site in self.agenda.reads.get(stage, []):
            slices[site] = self._read(site, x)
        return x

    def _edit(self, stage: Stage, x: Tensor, slots: Sequence) -> None:
        prompts = self.agenda.all_prompts
        if shared := self.agenda.base.get(stage):
            self.agenda.apply(shared, x, np.tile(prompts, len(slots)))
        for number, slot in enumerate(slots):
            if edits := self.agenda.edits.get(stage, {}).get(slot):
                self.agenda.apply(edits, x[number * self.n_prompts : (number + 1) * self.n_prompts], prompts)

    def _read(self, site: Site, x: Tensor) -> Tensor:
        placed = self.agenda.placed(site)
        tiles = x.unflatten(0, (-1, self.n_prompts))
        parts = [cut(tiles[:, members].flatten(0, 1), site, place) for place, members in placed]
        require_one_shape(site, parts)
        parts = [part.unflatten(0, (len(tiles), -1)) for part in parts]
        order = torch.tensor([prompt for _, members in placed for prompt in members], device=x.device).argsort()
        return torch.cat(parts, 1)[:, order].clone()

    def _portable_mid(self, stage: Stage, slots: Sequence, slices: dict, fired: set, scouting: bool) -> list:
        """Edits of resid_mid on a bridge, whose hook there feeds the MLP alone: made as a change of attn_out."""
        block, kept = f"blocks.{stage[0]}", {}

        def keep(x: Tensor, hook) -> None:
            kept["pre"] = x

        def edit(out: Tensor, hook) -> Tensor:
            mid = kept["pre"] + out
            new = self._at(stage, mid, slots, slices, fired, scouting)
            return out if new is mid else new - kept["pre"]

        return [(f"{block}.hook_resid_pre", keep), (f"{block}.hook_attn_out", edit)]

    def _results(self, stack: ExitStack, slots: Sequence, slices: dict, fired: set, scouting: bool) -> None:
        """The same for head outputs, where the model's flag for them is off."""
        for stage in self.agenda.hooks:
            if stage[1] == "result" and not computes_results(self.model):
                hook = lambda x, stage=stage: self._at(stage, x, slots, slices, fired, scouting)  # noqa: E731
                stack.enter_context(head_outputs(self.model, stage[0], hook))


class General:
    """One sweep: `General(question, budget).measure()`."""

    def __init__(self, question: Question, budget: Budget) -> None:
        self.runs, self.prompts = question.runs, question.prompts
        self.members = by_length(self.prompts)
        self.batches = [self._batch(question, rows) for rows in self.members]
        for batch, rows in zip(self.batches, self.members, strict=True):
            refuse_nan(batch.logits, rows)
        logits = merge(self.prompts, self.members, [batch.logits for batch in self.batches])
        self.readout = Readout(self.prompts, question.metrics, logits)
        self.read = {site: self._of_base(site) for site in question.read}
        self.passes = len(self.batches)
        self.size = self._runs_at_once(question.model, budget)

    def _batch(self, question: Question, rows: list[int]) -> Batch:
        """The base run of the prompts of one length."""
        some = self.prompts[rows]
        return Batch(question.model, some, Agenda(question.runs, question.base, question.read, some, rows))

    def _runs_at_once(self, model, budget: Budget) -> int:
        if not all(batch.tile for batch in self.batches):
            return 1
        cfg, n_pos = model.cfg, max(self.prompts.lengths)
        width = 3 * cfg.d_vocab_out + 16 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 4 * cfg.n_heads * n_pos
        kept = sum(sum(x.nbytes for x in batch.starts.values()) for batch in self.batches)
        per_run = len(self.prompts) * n_pos * width * itemsize(model)
        return max(1, int((budget.planned - kept) // per_run))

    def _of_base(self, site: Site) -> Tensor:
        parts = [batch.slices[site][0] for batch in self.batches]
        require_one_shape(site, parts)
        merged = merge(self.prompts, self.members, parts)
        return merged[None].repeat(len(self.runs), *([1] * merged.ndim))

    def measure(self) -> Measured:
        """The metrics of all runs."""
        live = np.any([batch.scout.live.any(1) for batch in self.batches], axis=0)
        first = [self.batches[0].agenda.first_layer(run) for run in range(len(self.runs))]
        todo = sorted(np.flatnonzero(live).tolist(), key=lambda run: first[run])
        scores = self.readout.of_base()[None].repeat(len(self.runs), 1, 1)
        for run, values in progress(self._each(todo), "runs", len(todo)):
            scores[run] = values
        return Measured(scores, self.read, self.passes, int(sum(batch.scout.live.sum() for batch in self.batches)))

    def _each(self, todo: list[int]) -> Iterator[tuple[int, Tensor]]:
        for at in range(0, len(todo), self.size):
            for done, values in halving(self._scores, todo[at : at + self.size]):
                yield from zip(done, values, strict=True)

    def _scores(self, runs: list[int]) -> Tensor:
        """Metrics of some runs, `[run, prompt, metric]`."""
        logits = self.readout.base[None].repeat(len(runs), 1, 1, 1)
        for batch, members in zip(self.batches, self.members, strict=True):
            mine = [run for run in runs if batch.scout.live[run].any()]
            if not mine:
                continue
            found, slices = batch.forward(mine)
            self.passes += 1
            numbers = [runs.index(run) for run in mine]
            at = (torch.tensor(numbers)[:, None], torch.tensor(members)[None])
            logits[(*at, slice(found.shape[1]))] = found.unflatten(0, (len(mine), -1))
            for site, values in slices.items():
                self.read[site][torch.tensor(mine)[:, None], at[1]] = values
        return self.readout.of_all(logits)
